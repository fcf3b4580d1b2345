//! UsageService: usage, limits and budgets.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, usage_service_server::UsageService},
    status::item_error,
};
use crate::{
    audit::Receipt,
    error::{Error, Reason, Result},
    gate::not_found,
    model::{
        Action, Caller, PrincipalId, Resource, TenantName, Timestamp,
        usage::{
            Budget, Cost, Limit, OWN_PREFIX, Span, Subject, SubjectKind, UsageEvent, UsageKey, Used,
        },
    },
    usage::{Acquire, Acquired, MOST_EVENTS, Recorded, Report, ReportRow},
};

/// UsageService over these parts.
pub struct UsageApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const REPORT: &str = "usage";
const LIMITS: &str = "usage limits";
/// Tokens of one event.
const MOST_TOKENS: i64 = 1_000_000_000_000;
/// Requests of one event.
const MOST_REQUESTS: i64 = 1_000_000;
/// What one event may cost.
const MOST_COST: Cost = Cost::units(100_000);

impl UsageApi {
    async fn record(
        &self,
        caller: Caller,
        r: proto::RecordUsageRequest,
    ) -> Result<proto::RecordUsageResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        if !(1..=MOST_EVENTS).contains(&r.events.len()) {
            return Err(convert::invalid("events must be 1 to 1000"));
        }
        let now = self.0.usage.now();
        let resource = Resource::tenant(tenant.clone());
        let act = async |permit| {
            let events = r.events.iter();
            let events = events.map(|e| event(e, &caller, now)).collect();
            let outcomes = self.0.usage.record(&permit, &tenant, events).await?;
            let results = outcomes.iter().zip(&r.events);
            let results = results.map(|(outcome, event)| result(outcome, &event.event_id));
            let answer = proto::RecordUsageResponse {
                results: results.collect(),
            };
            Ok((answer, counts(&outcomes)))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::RecordUsage, resource, act)
            .await
    }

    async fn acquire(
        &self,
        caller: Caller,
        r: proto::AcquireUsageRequest,
    ) -> Result<proto::AcquireUsageResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let asked = Acquire {
            key: key(&r.provider, &r.credential_id, &r.principal_id, &caller)?,
            requests: match r.requests {
                0 => 1,
                requests => requests,
            },
            cost: cost("estimated_cost", &r.estimated_cost)?.unwrap_or_default(),
        };
        let resource = Resource::tenant(tenant.clone());
        let act = async |permit| {
            let acquired = self.0.usage.acquire(&permit, &tenant, &asked).await?;
            Ok((acquired_message(acquired), String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::AcquireUsage, resource, act)
            .await
    }

    async fn report(
        &self,
        caller: Caller,
        r: proto::GetUsageReportRequest,
    ) -> Result<proto::GetUsageReportResponse> {
        let size = convert::page_size(r.page_size)?;
        let after = position(&convert::page_token(REPORT, &r.page_token)?)?;
        let mut principal = String::new();
        let (resource, missing) = match r.principal_id.as_str() {
            "" => (Resource::tenant(convert::tenant(&r.tenant, &caller)?), None),
            id => {
                let id: PrincipalId = id.parse()?;
                principal = id.to_string();
                let (resource, found) = self.0.directory.find(id).await?;
                let is_elsewhere = !r.tenant.is_empty() && r.tenant != resource.tenant.as_str();
                if is_elsewhere && found.is_some() {
                    return Err(convert::invalid(
                        "the principal is not of that tenant; leave tenant out",
                    ));
                }
                let missing = found.is_none().then(|| not_found(&resource));
                (resource, missing)
            }
        };
        let report = Report {
            tenant: resource.tenant.clone(),
            span: span(r.span)?,
            from: convert::timestamp("begin_time", r.begin_time)?
                .ok_or_else(|| convert::invalid("begin_time is required"))?,
            to: convert::timestamp("end_time", r.end_time)?.unwrap_or_else(|| self.0.usage.now()),
            only: UsageKey {
                provider: name_or_nothing("provider", &r.provider)?,
                credential: name_or_nothing("credential_id", &r.credential_id)?,
                principal,
            },
            apart: groups(&r.group_by)?,
        };
        let act = async |permit| {
            if let Some(missing) = missing {
                return Err(missing);
            }
            let after = (after.0, &after.1);
            let (rows, totals) = self.0.usage.report(&permit, report, after, size).await?;
            let next = convert::next_page(REPORT, &rows, size, place);
            let answer = proto::GetUsageReportResponse {
                rows: rows.into_iter().map(row).collect(),
                totals: Some(totals_message(&totals)),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetUsageReport, resource, act)
            .await
    }

    async fn set(
        &self,
        caller: Caller,
        r: proto::SetLimitRequest,
    ) -> Result<proto::SetLimitResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let asked = r
            .limit
            .ok_or_else(|| convert::invalid("limit is required"))?;
        let limit = limit(asked, tenant.clone())?;
        let usage = Arc::clone(&self.0.usage);
        let answer = |limit: &Limit, receipt: &Receipt| proto::SetLimitResponse {
            limit: Some(limit_message(limit)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| usage.set_limit(permit, limit).await;
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant));
        gate.mutate(&caller, Action::SetLimit, resource, answer, act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListLimitsRequest,
    ) -> Result<proto::ListLimitsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(LIMITS, &r.page_token)?;
        let after = after.split_once('|').unwrap_or_default();
        let resource = Resource::tenant(tenant.clone());
        let usage = &self.0.usage;
        let act = async |permit| {
            let page = usage.limits(&permit, &tenant, after, size).await?;
            let next = convert::next_page(LIMITS, &page, size, |limit| {
                format!("{}|{}", limit.subject.kind.as_str(), limit.subject.id)
            });
            let answer = proto::ListLimitsResponse {
                limits: page.iter().map(limit_message).collect(),
                next_page_token: next,
                default_requests_per_minute: usage.config().default_requests_per_minute,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListLimits, resource, act)
            .await
    }

    async fn delete(
        &self,
        caller: Caller,
        r: proto::DeleteLimitRequest,
    ) -> Result<proto::DeleteLimitResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let subject = subject(r.subject_type, r.subject)?;
        let (usage, of) = (Arc::clone(&self.0.usage), tenant.clone());
        let answer = |(): &(), receipt: &Receipt| proto::DeleteLimitResponse {
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| usage.delete_limit(permit, of, subject).await;
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant));
        gate.mutate(&caller, Action::DeleteLimit, resource, answer, act)
            .await
    }
}

/// A name of a provider, or an id of a credential: what fits into a page token and into a line for people.
fn name(field: &str, value: &str) -> Result<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    match (1..=64).contains(&value.len()) && value.bytes().all(fits) {
        true => Ok(value.to_owned()),
        false => Err(convert::invalid(format!(
            "{field} must be 1 to 64 letters, digits and . _ : -"
        ))),
    }
}

fn name_or_nothing(field: &str, value: &str) -> Result<String> {
    match value {
        "" => Ok(String::new()),
        value => name(field, value),
    }
}

fn key(provider: &str, credential: &str, principal: &str, caller: &Caller) -> Result<UsageKey> {
    let provider = name("provider", provider)?;
    if provider
        .bytes()
        .any(|b| b.is_ascii_uppercase() || b == b':')
    {
        return Err(convert::invalid(
            "provider must be lower-case letters, digits and . _ -",
        ));
    }
    if provider.starts_with(OWN_PREFIX) {
        return Err(convert::invalid(
            "providers whose names begin with claviger are the daemon's own",
        ));
    }
    let principal = match principal {
        "" => caller.principal.id.to_string(),
        id => id.parse::<PrincipalId>()?.to_string(),
    };
    Ok(UsageKey {
        provider,
        credential: name_or_nothing("credential_id", credential)?,
        principal,
    })
}

fn event(e: &proto::UsageEvent, caller: &Caller, now: Timestamp) -> Result<UsageEvent> {
    let id = &e.event_id;
    if !(1..=128).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(convert::invalid(
            "event_id must be 1 to 128 visible ASCII characters without blanks",
        ));
    }
    let number = |field: &str, value: i64, most: i64| match (0..=most).contains(&value) {
        true => Ok(value),
        false => Err(convert::invalid(format!("{field} must be 0 to {most}"))),
    };
    let at = convert::timestamp("time", e.time)?.unwrap_or(now);
    let requests = number("requests", e.requests.unwrap_or(1), MOST_REQUESTS)?;
    let cost = cost("cost", &e.cost)?.unwrap_or_default();
    if cost > MOST_COST {
        return Err(convert::invalid(format!(
            "cost must be at most {MOST_COST}"
        )));
    }
    let errors = number("errors", e.errors, MOST_REQUESTS)?;
    if errors > requests {
        return Err(convert::invalid("errors must not be more than requests"));
    }
    Ok(UsageEvent {
        id: id.clone(),
        at,
        key: key(&e.provider, &e.credential_id, &e.principal_id, caller)?,
        used: Used {
            requests,
            errors,
            tokens_in: number("tokens_in", e.tokens_in, MOST_TOKENS)?,
            tokens_out: number("tokens_out", e.tokens_out, MOST_TOKENS)?,
            cost,
            last: Some(at),
        },
    })
}

/// An amount; None for an empty text.
fn cost(field: &str, text: &str) -> Result<Option<Cost>> {
    match text {
        "" => Ok(None),
        text => match text.parse() {
            Ok(cost) => Ok(Some(cost)),
            Err(error) => Err(convert::invalid(format!("{field}: {}", error.message()))),
        },
    }
}

fn result(outcome: &Result<Recorded>, event_id: &str) -> proto::UsageResult {
    use proto::UsageOutcome as O;
    let (outcome, error) = match outcome {
        Ok(Recorded::New) => (O::Recorded, None),
        Ok(Recorded::Duplicate) => (O::Duplicate, None),
        Err(error) => (O::Refused, Some(item_error(error))),
    };
    proto::UsageResult {
        // What is no id is not repeated.
        event_id: event_id.chars().take(128).collect(),
        outcome: outcome.into(),
        error,
    }
}

/// For the audit row.
fn counts(outcomes: &[Result<Recorded>]) -> String {
    let of = |wanted: fn(&Result<Recorded>) -> bool| outcomes.iter().filter(|o| wanted(o)).count();
    format!(
        r#"{{"recorded":{},"duplicates":{},"refused":{}}}"#,
        of(|outcome| matches!(outcome, Ok(Recorded::New))),
        of(|outcome| matches!(outcome, Ok(Recorded::Duplicate))),
        of(Result::is_err),
    )
}

fn acquired_message(acquired: Acquired) -> proto::AcquireUsageResponse {
    let warnings = acquired.warnings.into_iter().map(|w| proto::BudgetWarning {
        subject_type: subject_type(w.subject.kind).into(),
        subject: w.subject.id,
        period: w.period.as_str().to_owned(),
        spent: w.spent.to_string(),
        soft: amount(w.budget.soft),
        hard: amount(w.budget.hard),
    });
    proto::AcquireUsageResponse {
        remaining_requests: acquired.remaining,
        warnings: warnings.collect(),
    }
}

fn span(number: i32) -> Result<Span> {
    use proto::UsageSpan as P;
    match P::try_from(number) {
        Ok(P::Unspecified | P::Day) => Ok(Span::Day),
        Ok(P::Hour) => Ok(Span::Hour),
        Ok(P::Minute) => Ok(Span::Minute),
        Err(_) => Err(convert::invalid("span must be MINUTE, HOUR or DAY")),
    }
}

fn groups(numbers: &[i32]) -> Result<[bool; 3]> {
    use proto::UsageGroup as P;
    let mut apart = [false; 3];
    let [provider, credential, principal] = &mut apart;
    for number in numbers {
        match P::try_from(*number) {
            Ok(P::Provider) => *provider = true,
            Ok(P::Credential) => *credential = true,
            Ok(P::Principal) => *principal = true,
            Ok(P::Unspecified) | Err(_) => {
                return Err(convert::invalid(
                    "group_by must be PROVIDER, CREDENTIAL or PRINCIPAL",
                ));
            }
        }
    }
    Ok(apart)
}

/// Where a page ended, as text: its parts hold no bar.
fn place(row: &ReportRow) -> String {
    let (at, key) = (row.begins_at.micros(), &row.key);
    format!("{at}|{}|{}|{}", key.provider, key.credential, key.principal)
}

fn position(text: &str) -> Result<(Timestamp, UsageKey)> {
    let mut parts = text.split('|');
    let at = match parts.next().unwrap_or_default() {
        "" => i64::MIN,
        at => at.parse().map_err(|_| {
            Error::new(
                Reason::PageTokenInvalid,
                "page_token is not from an answer of this call; begin again without it",
            )
        })?,
    };
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let key = UsageKey {
        provider: part(),
        credential: part(),
        principal: part(),
    };
    Ok((Timestamp::from_micros(at), key))
}

fn row(row: ReportRow) -> proto::UsageRow {
    proto::UsageRow {
        begin_time: convert::time(row.begins_at),
        totals: Some(totals_message(&row.used)),
        provider: row.key.provider,
        credential_id: row.key.credential,
        principal_id: row.key.principal,
    }
}

fn totals_message(used: &Used) -> proto::UsageTotals {
    proto::UsageTotals {
        requests: used.requests,
        errors: used.errors,
        tokens_in: used.tokens_in,
        tokens_out: used.tokens_out,
        cost: used.cost.to_string(),
        last_use_time: used.last.and_then(convert::time),
    }
}

fn subject(kind: i32, id: String) -> Result<Subject> {
    use proto::LimitSubject as P;
    let kind = match P::try_from(kind) {
        Ok(P::Credential) => SubjectKind::Credential,
        Ok(P::Provider) => SubjectKind::Provider,
        Ok(P::Principal) => SubjectKind::Principal,
        Ok(P::Tenant) => SubjectKind::Tenant,
        Ok(P::Unspecified) | Err(_) => {
            return Err(convert::invalid(
                "subject_type must be CREDENTIAL, PROVIDER, PRINCIPAL or TENANT",
            ));
        }
    };
    match (kind, id.is_empty()) {
        (SubjectKind::Tenant, true) => Ok(Subject { kind, id }),
        (SubjectKind::Tenant, false) => {
            Err(convert::invalid("subject must be empty for the tenant"))
        }
        (SubjectKind::Credential | SubjectKind::Provider | SubjectKind::Principal, _) => {
            let id = name("subject", &id)?;
            Ok(Subject { kind, id })
        }
    }
}

const fn subject_type(kind: SubjectKind) -> proto::LimitSubject {
    use proto::LimitSubject as P;
    match kind {
        SubjectKind::Credential => P::Credential,
        SubjectKind::Provider => P::Provider,
        SubjectKind::Principal => P::Principal,
        SubjectKind::Tenant => P::Tenant,
    }
}

fn limit(l: proto::UsageLimit, tenant: TenantName) -> Result<Limit> {
    if !l.set_by.is_empty() || l.set_time.is_some() {
        return Err(convert::invalid("set_by and set_time are the daemon's"));
    }
    let budget = |name: &str, budget: Option<proto::Budget>| {
        let given = budget.unwrap_or_default();
        Ok::<_, Error>(Budget {
            soft: cost(&format!("{name}.soft"), &given.soft)?,
            hard: cost(&format!("{name}.hard"), &given.hard)?,
        })
    };
    Ok(Limit {
        tenant,
        subject: subject(l.subject_type, l.subject)?,
        requests_per_minute: l.requests_per_minute,
        budgets: [
            budget("hour", l.hour)?,
            budget("day", l.day)?,
            budget("month", l.month)?,
        ],
        set_by: String::new(),
        set_at: Timestamp::default(),
    })
}

fn amount(cost: Option<Cost>) -> String {
    cost.map(|cost| cost.to_string()).unwrap_or_default()
}

fn limit_message(l: &Limit) -> proto::UsageLimit {
    let budget = |b: Budget| {
        (b != Budget::default()).then(|| proto::Budget {
            soft: amount(b.soft),
            hard: amount(b.hard),
        })
    };
    let [hour, day, month] = l.budgets.map(budget);
    proto::UsageLimit {
        subject_type: subject_type(l.subject.kind).into(),
        subject: l.subject.id.clone(),
        requests_per_minute: l.requests_per_minute,
        hour,
        day,
        month,
        set_by: l.set_by.clone(),
        set_time: convert::time(l.set_at),
    }
}

#[tonic::async_trait]
impl UsageService for UsageApi {
    async fn record_usage(
        &self,
        r: Request<proto::RecordUsageRequest>,
    ) -> Answer<proto::RecordUsageResponse> {
        let act = async |caller, m| self.record(caller, m).await;
        self.0.call(r, Action::RecordUsage, act).await
    }

    async fn acquire_usage(
        &self,
        r: Request<proto::AcquireUsageRequest>,
    ) -> Answer<proto::AcquireUsageResponse> {
        let act = async |caller, m| self.acquire(caller, m).await;
        self.0.call(r, Action::AcquireUsage, act).await
    }

    async fn get_usage_report(
        &self,
        r: Request<proto::GetUsageReportRequest>,
    ) -> Answer<proto::GetUsageReportResponse> {
        let act = async |caller, m| self.report(caller, m).await;
        self.0.call(r, Action::GetUsageReport, act).await
    }

    async fn set_limit(
        &self,
        r: Request<proto::SetLimitRequest>,
    ) -> Answer<proto::SetLimitResponse> {
        let act = async |caller, m| self.set(caller, m).await;
        self.0.call(r, Action::SetLimit, act).await
    }

    async fn list_limits(
        &self,
        r: Request<proto::ListLimitsRequest>,
    ) -> Answer<proto::ListLimitsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListLimits, act).await
    }

    async fn delete_limit(
        &self,
        r: Request<proto::DeleteLimitRequest>,
    ) -> Answer<proto::DeleteLimitResponse> {
        let act = async |caller, m| self.delete(caller, m).await;
        self.0.call(r, Action::DeleteLimit, act).await
    }
}
