//! Usage, limits and budgets, as services and operators use them. R-USE-1, R-USE-2.

mod commands;
mod limits;
mod record;
mod replicas;

use claviger::{clock::Clock, grpc::proto::*};
use tonic::Status;

use crate::daemon::{Actor, Daemon};

/// One request to a provider.
pub fn event(id: impl Into<String>, credential: &str, cost: &str) -> UsageEvent {
    UsageEvent {
        event_id: id.into(),
        provider: "openai".into(),
        credential_id: credential.into(),
        cost: cost.into(),
        ..Default::default()
    }
}

pub async fn record(who: &Actor, events: Vec<UsageEvent>) -> Result<Vec<UsageResult>, Status> {
    let request = RecordUsageRequest {
        events,
        ..Default::default()
    };
    let answer = who.usage().record_usage(request).await?;
    Ok(answer.into_inner().results)
}

/// Everything of acme since yesterday, told apart by credential.
pub fn by_credential(span: UsageSpan) -> GetUsageReportRequest {
    GetUsageReportRequest {
        tenant: "acme".into(),
        begin_time: Some(yesterday()),
        span: span.into(),
        group_by: vec![UsageGroup::Credential.into()],
        provider: "openai".into(),
        ..Default::default()
    }
}

pub async fn report(daemon: &Daemon, request: GetUsageReportRequest) -> GetUsageReportResponse {
    let answer = daemon
        .actor("auditor")
        .usage()
        .get_usage_report(request)
        .await;
    answer.expect("GetUsageReport").into_inner()
}

pub fn yesterday() -> prost_types::Timestamp {
    ago(24 * 60 * 60)
}

/// So many seconds ago.
pub fn ago(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: Clock::System.now().seconds() - seconds,
        nanos: 0,
    }
}

pub fn reasons(results: &[UsageResult]) -> Vec<&str> {
    let reason = |result: &'_ UsageResult| match result.outcome() {
        UsageOutcome::Recorded => "recorded",
        UsageOutcome::Duplicate => "duplicate",
        _ => "refused",
    };
    let named = results.iter().map(|result| {
        let error = result.error.as_ref();
        error.map_or_else(|| reason(result), |error| error.reason.as_str())
    });
    named.collect()
}
