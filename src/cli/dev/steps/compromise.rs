//! Step 7: a compromise. One officer freezes the key, its tokens end, a successor takes over, two officers close.

use tonic::Code;

use super::{
    Run, TENANT, check, part, refusal,
    token::{self, AUDIENCE, Token},
};
use crate::{
    cli::{exit::Result, output},
    error::Reason,
    grpc::proto::{
        CloseIncidentRequest, DeclareCompromiseRequest, Incident, IncidentState, Key,
        TokenRejection,
    },
};

pub async fn compromise(run: &mut Run<'_>, key: &Key) -> Result<()> {
    run.story
        .step("officer declares a key compromised: its tokens end, a successor takes over, two officers close");
    let old = token::one(run, key).await?;
    let incident = declare(run, key, &old).await?;
    tokens(run, key, &old, &incident).await?;
    close(run, &incident).await
}

async fn declare(run: &mut Run<'_>, key: &Key, old: &Token) -> Result<Incident> {
    let request = DeclareCompromiseRequest {
        tenant: TENANT.to_owned(),
        key: key.name.clone(),
        kid: String::new(),
        reason: "shown by claviger dev".to_owned(),
    };
    let mut officer = run.people.officer.incidents();
    let answer = officer.declare_compromise(request).await?.into_inner();
    let incident = part(answer.incident, "incident")?;
    check(
        incident.kid == old.kid,
        "another version than the ACTIVE one was declared compromised",
    )?;
    check(
        answer.frozen_everywhere,
        "a replica has not confirmed the freeze, and there is only one",
    )?;
    let text = format!(
        "DeclareCompromise {}: kid {} is frozen everywhere after {}",
        key.name,
        incident.kid,
        output::duration(&answer.freeze_duration)
    );
    run.story.fact("officer", &text);
    check(
        !incident.successor_kid.is_empty(),
        "the key was not switched to a successor",
    )?;
    Ok(incident)
}

async fn tokens(run: &mut Run<'_>, key: &Key, old: &Token, incident: &Incident) -> Result<()> {
    let verdict = token::verify(run, old, AUDIENCE).await?;
    let compromised = verdict.rejection() == TokenRejection::CompromisedKid;
    check(
        !verdict.valid && compromised,
        "VerifyToken does not reject a token of the compromised version",
    )?;
    run.story
        .refused("service", "VerifyToken of an old token", "COMPROMISED_KID");
    let new = token::one(run, key).await?;
    check(
        new.kid == incident.successor_kid,
        "a new token does not carry the successor's kid",
    )?;
    token::jwks(run, &new.kid).await?;
    token::verify_locally(run, &new).await?;
    check(
        token::verify(run, &new, AUDIENCE).await?.valid,
        "VerifyToken rejects a token of the successor",
    )?;
    check(
        token::verify_locally(run, old).await.is_err(),
        "the compromised kid is still in the JWKS",
    )?;
    let text = format!(
        "new tokens carry kid {} and verify; the old kid left the JWKS",
        new.kid
    );
    run.story.fact("verifier", &text);
    Ok(())
}

async fn close(run: &mut Run<'_>, incident: &Incident) -> Result<()> {
    let request = CloseIncidentRequest {
        incident_id: incident.id.clone(),
        postmortem: "PM-1".to_owned(),
    };
    let mut officer = run.people.officer.incidents();
    let proposed = officer.close_incident(request.clone()).await?.into_inner();
    check(
        part(proposed.incident, "incident")?.state() == IncidentState::Closing,
        "one officer alone closed the incident",
    )?;
    let own = officer.close_incident(request.clone()).await;
    let refused = refusal(own, Code::PermissionDenied, Reason::SeparationOfDuties)?;
    run.story
        .refused("officer", "confirms their own proposal to close", &refused);
    let mut deputy = run.people.deputy.incidents();
    let closed = deputy.close_incident(request).await?.into_inner();
    check(
        part(closed.incident, "incident")?.state() == IncidentState::Closed,
        "two officers did not close the incident",
    )?;
    run.story.fact(
        "deputy",
        "CloseIncident with the postmortem PM-1: two people have closed it",
    );
    Ok(())
}
