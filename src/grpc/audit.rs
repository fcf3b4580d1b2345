//! AuditService.

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, audit_service_server::AuditService},
};
use crate::{
    audit::{self, AuditFilter, Range, Restore, StreamHead, StreamReport},
    error::{Error, Reason, Result},
    model::{Action, Caller, Resource, Scope, TenantName},
};

/// AuditService over these parts.
pub struct AuditApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "audit";
const MAX_EXPECTED: usize = 5000;

impl AuditApi {
    async fn list(
        &self,
        caller: Caller,
        r: proto::ListAuditEventsRequest,
    ) -> Result<proto::ListAuditEventsResponse> {
        let scope = match r.tenant.as_str() {
            "*" => Scope::All,
            name => Scope::Tenant(convert::tenant(name, &caller)?),
        };
        let since = convert::timestamp("since", r.since)?;
        let until = convert::timestamp("until", r.until)?;
        let size = convert::page_size(r.page_size)?;
        let filter = AuditFilter {
            tenant: scope.as_str().to_owned(),
            stream: convert::filter("stream", r.stream)?,
            actor: convert::filter("actor", r.actor)?,
            action: convert::filter("action", r.action)?,
            entity_id: convert::filter("entity_id", r.entity_id)?,
            outcome: convert::outcome(r.outcome)?.to_owned(),
            since: since.map_or(i64::MIN, |t| t.micros()),
            until: until.map_or(i64::MAX, |t| t.micros()),
            after: position(&convert::page_token(LISTING, &r.page_token)?)?,
            limit: size,
        };
        let resource = Resource::tenant(match &scope {
            Scope::Tenant(tenant) => tenant.clone(),
            Scope::All => TenantName::system(),
        });
        // A role in the system tenant alone is not a role in every tenant.
        let every_tenant = caller
            .principal
            .grants
            .iter()
            .any(|g| g.scope == Scope::All);
        let act = async |_permit| {
            if scope == Scope::All && !every_tenant {
                return Err(Error::new(
                    Reason::PermissionDenied,
                    "tenant * needs a role that holds in every tenant",
                ));
            }
            let page = self.0.audit.list(&filter).await?;
            let next = convert::next_page(LISTING, &page, size, |row| {
                format!("{} {} {}", row.at, row.seq, row.stream)
            });
            let answer = proto::ListAuditEventsResponse {
                events: page.into_iter().map(convert::audit_event).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListAuditEvents, resource, act)
            .await
    }

    async fn verify(
        &self,
        caller: Caller,
        r: proto::VerifyAuditRequest,
    ) -> Result<proto::VerifyAuditResponse> {
        let range = range(&r)?;
        let stream = convert::filter("stream", r.stream)?;
        if r.expect.len() > MAX_EXPECTED {
            return Err(convert::invalid("expect must have at most 5000 entries"));
        }
        let expected = r.expect.into_iter().map(head).collect::<Result<_>>()?;
        let act = async |_permit| {
            let reports = self.0.audit.verify(&stream, range).await?;
            // After the rehashing: what grew meanwhile is there, and what is missing now is missing.
            let mismatches = self.0.audit.mismatches(expected).await?;
            // A misspelt name must not look like an intact stream.
            let nothing = |r: &StreamReport| r.rows == 0 && r.head.seq == 0 && r.problem.is_none();
            if !stream.is_empty() && reports.iter().all(nothing) {
                return Err(convert::invalid("there is no audit stream with this name"));
            }
            let whole = reports.iter().all(|report| report.problem.is_none());
            let restores = reports.iter().flat_map(|report| report.restores.clone());
            let restores = restores.map(restore).collect();
            let intact = whole && mismatches.is_empty();
            let answer = proto::VerifyAuditResponse {
                intact,
                streams: reports
                    .into_iter()
                    .map(|report| proto::AuditStreamReport {
                        stream: report.stream,
                        rows: report.rows,
                        head_seq: report.head.seq,
                        head_hash: audit::hex(&report.head.hash),
                        intact: report.problem.is_none(),
                        broken_at: report.problem.as_ref().map_or(0, |(seq, _)| *seq),
                        problem: report.problem.map_or_else(String::new, |(_, why)| why),
                        next_seq: report.next.unwrap_or(0),
                        pruned_seq: report.pruned.as_ref().map_or(0, |last| last.seq),
                        pruned_hash: report
                            .pruned
                            .map_or_else(String::new, |last| audit::hex(&last.hash)),
                    })
                    .collect(),
                restores,
                mismatches: mismatches
                    .into_iter()
                    .map(|mismatch| proto::AuditMismatch {
                        stream: mismatch.stream,
                        seq: mismatch.seq,
                        problem: mismatch.problem,
                    })
                    .collect(),
            };
            Ok((answer, format!(r#"{{"intact":{intact}}}"#)))
        };
        let resource = Resource::tenant(TenantName::system());
        let gate = &self.0.gate;
        gate.access(&caller, Action::VerifyAudit, resource, act)
            .await
    }
}

fn restore(restore: Restore) -> proto::AuditRestore {
    proto::AuditRestore {
        seq: restore.seq,
        time: convert::time(restore.at),
        checkpoint: restore.checkpoint,
        kept_until: convert::time(restore.kept_until),
        by: restore.by,
        reason: restore.reason,
    }
}

fn range(r: &proto::VerifyAuditRequest) -> Result<Range> {
    if r.from_seq < 0 || r.max_rows < 0 {
        return Err(convert::invalid(
            "from_seq and max_rows must not be negative",
        ));
    }
    if r.from_seq > 1 && r.stream.is_empty() {
        return Err(convert::invalid("from_seq needs the name of a stream"));
    }
    Ok(Range {
        from: r.from_seq,
        rows: (r.max_rows > 0).then_some(r.max_rows),
    })
}

fn head(expected: proto::AuditHead) -> Result<StreamHead> {
    let hash = audit::checkpoint::unhex(&expected.hash);
    let hash = hash.filter(|_| expected.seq > 0 && !expected.stream.is_empty());
    let hash = hash.ok_or_else(|| {
        convert::invalid("expect must name a stream, a seq from 1 on, and a hash of 64 hex digits")
    })?;
    Ok(StreamHead {
        stream: convert::filter("expect.stream", expected.stream)?,
        head: audit::Head {
            seq: expected.seq,
            hash,
        },
    })
}

/// Where the page before ended: time, seq, stream.
fn position(text: &str) -> Result<Option<(i64, String, i64)>> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut parts = text.splitn(3, ' ');
    let at = parts.next().and_then(|s| s.parse().ok());
    let seq = parts.next().and_then(|s| s.parse().ok());
    match (at, seq, parts.next()) {
        (Some(at), Some(seq), Some(stream)) => Ok(Some((at, stream.to_owned(), seq))),
        _ => Err(Error::new(
            Reason::PageTokenInvalid,
            "page_token is not from an answer of this call; begin again without it",
        )),
    }
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    async fn list_audit_events(
        &self,
        r: Request<proto::ListAuditEventsRequest>,
    ) -> Answer<proto::ListAuditEventsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListAuditEvents, act).await
    }

    async fn verify_audit(
        &self,
        r: Request<proto::VerifyAuditRequest>,
    ) -> Answer<proto::VerifyAuditResponse> {
        let act = async |caller, m| self.verify(caller, m).await;
        self.0.call(r, Action::VerifyAudit, act).await
    }
}
