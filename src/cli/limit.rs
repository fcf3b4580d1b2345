//! `claviger limit`: how much may be used.

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    Budget, DeleteLimitRequest, LimitSubject, ListLimitsRequest, ListLimitsResponse,
    SetLimitRequest, UsageLimit,
};

/// Limits and budgets of credentials, providers, principals and tenants
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Set a limit, in place of the one that there is
    Set(Set),
    /// List the limits of a tenant
    List {
        /// Tenant; your own when left out
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Take a limit away; the default holds again
    Delete {
        /// Tenant; your own when left out
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
        #[command(flatten)]
        of: Of,
    },
}

/// What a limit is about.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Of {
    /// Id of a credential
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
    /// Name of a provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Id of a principal
    #[arg(long, value_name = "ID")]
    principal: Option<String>,
    /// The whole tenant
    #[arg(long)]
    whole_tenant: bool,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    of: Of,
    /// Requests in any 60 seconds
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<i64>,
    /// Warn when an hour has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    hour_soft: String,
    /// Refuse when an hour has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    hour_hard: String,
    /// Warn when a day has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    day_soft: String,
    /// Refuse when a day has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    day_hard: String,
    /// Warn when a month has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    month_soft: String,
    /// Refuse when a month has cost so much
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    month_hard: String,
}

impl Of {
    fn subject(self) -> (LimitSubject, String) {
        match (self.credential, self.provider, self.principal) {
            (Some(id), _, _) => (LimitSubject::Credential, id),
            (_, Some(name), _) => (LimitSubject::Provider, name),
            (_, _, Some(id)) => (LimitSubject::Principal, id),
            (None, None, None) => (LimitSubject::Tenant, String::new()),
        }
    }
}

/// Runs `claviger limit …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Set(args) => set(args, session).await,
        Command::List { tenant, limit } => list(tenant, limit, session).await,
        Command::Delete { tenant, of } => {
            let (subject_type, subject) = of.subject();
            let request = DeleteLimitRequest {
                tenant,
                subject_type: subject_type.into(),
                subject,
            };
            let answer = session
                .mutate(request, async |r| session.usage().delete_limit(r).await)
                .await?;
            session.show(&answer, |_| "deleted".to_owned())?;
            Ok(Exit::Ok)
        }
    }
}

async fn set(args: Set, session: &Session) -> Result<Exit> {
    let (subject_type, subject) = args.of.subject();
    let limit = UsageLimit {
        subject_type: subject_type.into(),
        subject,
        requests_per_minute: args.requests_per_minute,
        hour: budget(args.hour_soft, args.hour_hard),
        day: budget(args.day_soft, args.day_hard),
        month: budget(args.month_soft, args.month_hard),
        ..Default::default()
    };
    let request = SetLimitRequest {
        tenant: args.tenant,
        limit: Some(limit),
    };
    let answer = session
        .mutate(request, async |r| session.usage().set_limit(r).await)
        .await?;
    session.show(&answer, |answer| table(answer.limit.as_slice()))?;
    Ok(Exit::Ok)
}

fn budget(soft: String, hard: String) -> Option<Budget> {
    (!soft.is_empty() || !hard.is_empty()).then_some(Budget { soft, hard })
}

async fn list(tenant: String, limit: Limit, session: &Session) -> Result<Exit> {
    let mut client = session.usage();
    let mut all = ListLimitsResponse::default();
    let mut pages = limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListLimitsRequest {
            tenant: tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_limits(request).await?.into_inner();
        pages.got(page.limits.len(), &page.next_page_token);
        all.limits.extend(page.limits);
        all.next_page_token = page.next_page_token;
        all.default_requests_per_minute = page.default_requests_per_minute;
    }
    session.show(&all, |all| {
        let default = all.default_requests_per_minute;
        format!(
            "{}\n\nWhere no limit says anything: {default} requests a minute for each credential, and for each principal that \
             uses none.",
            table(&all.limits)
        )
    })?;
    Ok(Exit::Ok)
}

fn table(limits: &[UsageLimit]) -> String {
    let rows = limits.iter().map(|limit| {
        let rate = limit.requests_per_minute;
        [
            output::short(limit.subject_type().as_str_name(), "LIMIT_SUBJECT_"),
            limit.subject.clone(),
            rate.map(|rate| rate.to_string()).unwrap_or_default(),
            money(limit.hour.as_ref()),
            money(limit.day.as_ref()),
            money(limit.month.as_ref()),
        ]
    });
    let header = ["OF", "SUBJECT", "REQUESTS/MIN", "HOUR", "DAY", "MONTH"];
    output::table(header, rows)
}

/// `5 to 10`, `up to 10`, `warn at 5`.
fn money(budget: Option<&Budget>) -> String {
    match budget.map(|b| (b.soft.as_str(), b.hard.as_str())) {
        None | Some(("", "")) => String::new(),
        Some(("", hard)) => format!("up to {hard}"),
        Some((soft, "")) => format!("warn at {soft}"),
        Some((soft, hard)) => format!("{soft} to {hard}"),
    }
}
