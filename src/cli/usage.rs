//! `claviger usage`: what was used, and telling it.

use std::fmt::Write;

use clap::{Args, Subcommand};
use jiff::{ToSpan, civil::Date, tz::TimeZone};
use tonic::Code;

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    AcquireUsageRequest, BudgetWarning, GetUsageReportRequest, GetUsageReportResponse,
    RecordUsageRequest, UsageEvent, UsageGroup, UsageOutcome, UsageSpan, UsageTotals,
};

/// What credentials and principals used
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Sums of a day or any other time
    Report(Report),
    /// Record one use
    Record(Record),
    /// Ask whether requests may be made now; exit code 0 when they may, 1 when they may not
    Acquire(Acquire),
}

#[derive(Args, Debug)]
pub struct Report {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// A day of UTC, such as 2026-01-31; today when no date is given
    #[arg(long, value_name = "DATE", num_args = 0..=1, value_parser = date, default_missing_value = "today", conflicts_with_all = ["begin", "end"])]
    day: Option<Date>,
    /// Begin, such as 2026-01-31T12:00:00Z or 2h for two hours ago; inclusive [default: the begin of today]
    #[arg(long, value_name = "TIME", value_parser = input::past)]
    begin: Option<jiff::Timestamp>,
    /// End, exclusive [default: now]
    #[arg(long, value_name = "TIME", value_parser = input::past)]
    end: Option<jiff::Timestamp>,
    /// Length of the time that a row sums up
    #[arg(long, default_value = "day", ignore_case = true, value_parser = input::choice(&["minute", "hour", "day"], "USAGE_SPAN_", UsageSpan::from_str_name))]
    span: UsageSpan,
    /// By what rows are told apart; repeatable [default: provider and credential]
    #[arg(long = "by", value_name = "WHAT", ignore_case = true, value_parser = input::choice(&["provider", "credential", "principal"], "USAGE_GROUP_", UsageGroup::from_str_name))]
    by: Vec<UsageGroup>,
    /// This provider only; the daemon's own calls are those of `claviger`
    #[arg(long, default_value = "", hide_default_value = true)]
    provider: String,
    /// This credential only
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    credential: String,
    /// This principal only
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    principal: String,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
pub struct Record {
    /// Your id of this use: it counts once, however often you tell it
    #[arg(long, value_name = "ID")]
    event_id: String,
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Provider, such as openai
    #[arg(long)]
    provider: String,
    /// Id of the credential
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    credential: String,
    /// Id of the principal that used it [default: you]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    principal: String,
    /// When; such as 2026-01-31T12:00:00Z, or 5min for five minutes ago [default: now]
    #[arg(long, value_name = "TIME", value_parser = input::past)]
    at: Option<jiff::Timestamp>,
    /// Requests
    #[arg(long, allow_negative_numbers = true, default_value_t = 1)]
    requests: i64,
    /// Requests that failed
    #[arg(long, allow_negative_numbers = true, default_value_t = 0)]
    errors: i64,
    /// Tokens sent
    #[arg(long, allow_negative_numbers = true, default_value_t = 0)]
    tokens_in: i64,
    /// Tokens received
    #[arg(long, allow_negative_numbers = true, default_value_t = 0)]
    tokens_out: i64,
    /// Cost, such as 0.0125
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value = "",
        hide_default_value = true
    )]
    cost: String,
}

#[derive(Args, Debug)]
pub struct Acquire {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Provider, such as openai
    #[arg(long)]
    provider: String,
    /// Id of the credential
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    credential: String,
    /// Id of the principal that will use it [default: you]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    principal: String,
    /// Requests
    #[arg(long, default_value_t = 1)]
    requests: i64,
    /// What they may cost, such as 0.5
    #[arg(
        long,
        value_name = "COST",
        default_value = "",
        hide_default_value = true
    )]
    estimated_cost: String,
}

/// Runs `claviger usage …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Report(args) => report(args, session).await,
        Command::Record(args) => record(args, session).await,
        Command::Acquire(args) => acquire(args, session).await,
    }
}

async fn report(args: Report, session: &Session) -> Result<Exit> {
    let (begin, end) = times(&args)?;
    let by = match args.by.is_empty() {
        true => vec![UsageGroup::Provider, UsageGroup::Credential],
        false => args.by.clone(),
    };
    let mut client = session.usage();
    let mut all = GetUsageReportResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = GetUsageReportRequest {
            tenant: args.tenant.clone(),
            begin_time: Some(input::proto_time(begin)),
            end_time: end.map(input::proto_time),
            span: args.span.into(),
            group_by: by.iter().map(|group| (*group).into()).collect(),
            provider: args.provider.clone(),
            credential_id: args.credential.clone(),
            principal_id: args.principal.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.get_usage_report(request).await?.into_inner();
        pages.got(page.rows.len(), &page.next_page_token);
        all.rows.extend(page.rows);
        all.totals = page.totals;
        all.next_page_token = page.next_page_token;
    }
    if args.csv && session.format() == Format::Table {
        output::print(&csv(&all))?;
    } else {
        session.show(&all, table)?;
        session.explain_nothing(all.rows.len(), &args.tenant);
    }
    Ok(Exit::Ok)
}

/// Begin and end of what is asked for.
fn times(args: &Report) -> Result<(jiff::Timestamp, Option<jiff::Timestamp>)> {
    let today = output::now().to_zoned(TimeZone::UTC).date();
    let midnight = |date: Date| {
        let begin = date.to_zoned(TimeZone::UTC).map(|begin| begin.timestamp());
        begin.map_err(|e| Failure::usage(format!("no such day: {e}")))
    };
    match (args.day, args.begin) {
        (Some(day), _) => {
            let next = day.checked_add(1.day());
            let next = next.map_err(|e| Failure::usage(format!("no such day: {e}")))?;
            Ok((midnight(day)?, Some(midnight(next)?)))
        }
        (None, Some(begin)) => Ok((begin, args.end)),
        (None, None) => Ok((midnight(today)?, args.end)),
    }
}

fn date(argument: &str) -> std::result::Result<Date, String> {
    match argument {
        "today" => Ok(output::now().to_zoned(TimeZone::UTC).date()),
        date => date
            .parse()
            .map_err(|_| "expected a date such as 2026-01-31".to_owned()),
    }
}

async fn record(args: Record, session: &Session) -> Result<Exit> {
    let event = UsageEvent {
        event_id: args.event_id,
        time: args.at.map(input::proto_time),
        provider: args.provider,
        credential_id: args.credential,
        principal_id: args.principal,
        requests: Some(args.requests),
        errors: args.errors,
        tokens_in: args.tokens_in,
        tokens_out: args.tokens_out,
        cost: args.cost,
    };
    let request = RecordUsageRequest {
        tenant: args.tenant,
        events: vec![event],
    };
    let answer = session.usage().record_usage(request).await?.into_inner();
    session.show(&answer, |answer| {
        let results = answer.results.iter().map(|result| match &result.error {
            Some(error) => format!("refused: {} ({})", error.message, error.reason),
            None => output::short(result.outcome().as_str_name(), "USAGE_OUTCOME_").to_lowercase(),
        });
        results.collect::<Vec<_>>().join("\n")
    })?;
    let refused = |outcome| outcome == UsageOutcome::Refused;
    Ok(match answer.results.iter().any(|r| refused(r.outcome())) {
        true => Exit::No,
        false => Exit::Ok,
    })
}

async fn acquire(args: Acquire, session: &Session) -> Result<Exit> {
    let request = AcquireUsageRequest {
        tenant: args.tenant,
        provider: args.provider,
        credential_id: args.credential,
        principal_id: args.principal,
        requests: args.requests,
        estimated_cost: args.estimated_cost,
    };
    let answer = match session.usage().acquire_usage(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::ResourceExhausted => {
            output::print(&format!("not now: {}", status.message()))?;
            return Ok(Exit::No);
        }
        Err(status) => return Err(status.into()),
    };
    session.show(&answer, |answer| {
        let warnings = answer.warnings.iter().map(|warning| {
            let what = output::short(warning.subject_type().as_str_name(), "LIMIT_SUBJECT_");
            let BudgetWarning {
                subject,
                period,
                spent,
                ..
            } = warning;
            format!("\n{what} {subject} has spent {spent} this {period}")
        });
        let left = answer.remaining_requests;
        format!(
            "yes; {left} more this minute{}",
            warnings.collect::<String>()
        )
    })?;
    Ok(Exit::Ok)
}

const HEADER: [&str; 9] = [
    "FROM",
    "PROVIDER",
    "CREDENTIAL",
    "PRINCIPAL",
    "REQUESTS",
    "ERRORS",
    "TOKENS IN",
    "TOKENS OUT",
    "COST",
];

fn rows(report: &GetUsageReportResponse) -> impl Iterator<Item = [String; 9]> {
    report.rows.iter().map(|row| {
        let begin = output::instant(&row.begin_time);
        let begin = begin.map(|at| at.to_string()).unwrap_or_default();
        let names = [&row.provider, &row.credential_id, &row.principal_id].map(Clone::clone);
        line(begin, names, row.totals.as_ref())
    })
}

fn line(begin: String, names: [String; 3], totals: Option<&UsageTotals>) -> [String; 9] {
    let [provider, credential, principal] = names;
    let t = totals.cloned().unwrap_or_default();
    [
        begin,
        provider,
        credential,
        principal,
        t.requests.to_string(),
        t.errors.to_string(),
        t.tokens_in.to_string(),
        t.tokens_out.to_string(),
        t.cost,
    ]
}

fn table(report: &GetUsageReportResponse) -> String {
    let total = line(
        "total".to_owned(),
        Default::default(),
        report.totals.as_ref(),
    );
    output::table(HEADER, rows(report).chain([total]))
}

/// RFC 4180. No value holds a comma, a quote or a line end: the daemon takes none.
fn csv(report: &GetUsageReportResponse) -> String {
    let mut text = HEADER
        .map(|name| name.to_lowercase().replace(' ', "_"))
        .join(",");
    for row in rows(report) {
        let _ = write!(text, "\r\n{}", row.join(","));
    }
    text
}
