//! Step 6: the auditor finds all of it in the log, refusals included, and proves that nobody changed it.

use std::collections::BTreeMap;

use tonic::Code;

use super::{Expected, Run, check, refusal};
use crate::{
    cli::{
        audit::outcome,
        dev::tamper,
        exit::{Failure, Result},
    },
    error::Reason,
    grpc::proto::{
        AuditEvent, AuditOutcome, Key, ListAuditEventsRequest, ListPrincipalsRequest, SignRequest,
        VerifyAuditRequest, sign_request,
    },
};

/// How far back the log is read at most; the story leaves a few hundred rows.
const MAX_PAGES: usize = 10;

pub async fn audit(run: &mut Run<'_>, key: &Key) -> Result<()> {
    run.story.step(
        "auditor finds everything in the log, and a row changed behind the daemon's back is found",
    );
    let request = SignRequest {
        tenant: super::TENANT.to_owned(),
        key: key.name.clone(),
        payload: Some(sign_request::Payload::Message(
            b"let me in".as_slice().into(),
        )),
    };
    let result = run.people.stranger.crypto().sign(request).await;
    let refused = refusal(result, Code::Unauthenticated, Reason::UnknownPrincipal)?;
    run.story.refused(
        "stranger",
        "a valid certificate, but nobody's, calls Sign",
        &refused,
    );

    let events = events(run).await?;
    let names = names(run).await?;
    let stranger = events
        .iter()
        .any(|event| event.actor_type == "unknown" && event.action == "Sign");
    check(stranger, "the stranger's call is not in the audit log")?;
    for expected in &run.expected {
        check(
            events.iter().any(|event| expected.is(event)),
            &expected.missing(),
        )?;
    }
    let text = format!(
        "ListAuditEvents: all {} rows expected so far are there",
        run.expected.len() + 1
    );
    run.story.fact("auditor", &text);
    telling(run, &events, &names);

    let answer = run
        .people
        .auditor
        .audit()
        .verify_audit(VerifyAuditRequest::default())
        .await?
        .into_inner();
    for report in &answer.streams {
        let verdict = match report.intact {
            true => "intact".to_owned(),
            false => format!("broken at {}: {}", report.broken_at, report.problem),
        };
        run.story.fact(
            "auditor",
            &format!(
                "VerifyAudit {}: {} rows, {verdict}",
                report.stream, report.rows
            ),
        );
    }
    check(answer.intact, "the audit log is not intact")?;

    let found =
        tamper::tampered_copy_is_found(&run.environment.config, &run.environment.dir).await?;
    run.story.fact(
        "auditor",
        &format!("on a copy of the database, one row changed: {found}"),
    );
    Ok(())
}

/// The newest events of all tenants, newest first.
async fn events(run: &Run<'_>) -> Result<Vec<AuditEvent>> {
    let mut events = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = ListAuditEventsRequest {
            tenant: "*".to_owned(),
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = run
            .people
            .auditor
            .audit()
            .list_audit_events(request)
            .await?
            .into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(events)
}

/// Name of every principal, by id.
async fn names(run: &Run<'_>) -> Result<BTreeMap<String, String>> {
    let mut names = BTreeMap::new();
    for tenant in ["system", "acme", "globex"] {
        let request = ListPrincipalsRequest {
            tenant: tenant.to_owned(),
            page_size: 1000,
            ..Default::default()
        };
        let page = run
            .people
            .admin
            .principals()
            .list_principals(request)
            .await?
            .into_inner();
        names.extend(
            page.principals
                .into_iter()
                .map(|principal| (principal.id, principal.name)),
        );
    }
    Ok(names)
}

/// The rows that tell the story: every change, and every refusal, oldest first.
fn telling(run: &Run<'_>, events: &[AuditEvent], names: &BTreeMap<String, String>) {
    let ours = |event: &&AuditEvent| {
        let expected = run.expected.iter().any(|expected| expected.is(event));
        let change = event.stream == "admin" || event.outcome() == AuditOutcome::Refused;
        (expected && change) || event.actor_type == "unknown"
    };
    let mut rows: Vec<&AuditEvent> = events.iter().filter(ours).take(12).collect();
    rows.reverse();
    for event in rows {
        let actor = names.get(&event.actor).unwrap_or(&event.actor);
        let row = format!("{} {}", event.stream, event.seq);
        let outcome = outcome(event);
        let text = format!(
            "{row:<12.12} {actor:<9.32} {:<16} {outcome:<8} {}",
            event.action, event.entity_id
        );
        run.story.fact("", &text);
    }
}

impl Expected {
    fn is(&self, event: &AuditEvent) -> bool {
        event.action == self.action
            && event.outcome() == self.outcome
            && self.entity.contains(&event.entity_id)
    }

    fn missing(&self) -> String {
        let outcome = self
            .outcome
            .as_str_name()
            .trim_start_matches("AUDIT_OUTCOME_");
        let [id, name] = &self.entity;
        let failure = format!(
            "the audit log has no row {} {outcome} for {id} or {name}",
            self.action
        );
        Failure::other(failure).to_string()
    }
}
