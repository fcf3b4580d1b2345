//! Step 5: a rotation. One asks, another approves what they have read, a third deploys.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    Run, TENANT, check, part, refusal,
    token::{self, AUDIENCE, Token},
};
use crate::{
    cli::{
        exit::{Failure, Result},
        output,
        rotation::plan,
    },
    error::Reason,
    grpc::proto::{
        ApproveRotationRequest, AuditOutcome, DeployRotationRequest, GetRotationRequest,
        GrantRoleRequest, Key, RevokeRoleRequest, RotateKeyRequest, Rotation, RotationState,
    },
};

/// How long the soak of a development environment may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn rotate(run: &mut Run<'_>, key: &Key, old: &Token) -> Result<()> {
    run.story
        .step("issuer requests a rotation, approver approves it, deployer deploys it");
    let rotation = request(run, key).await?;
    let rotation = approve(run, &rotation).await?;
    deploy(run, &rotation).await?;

    let new = token::one(run, key).await?;
    check(
        new.kid == rotation.new_kid,
        "a new token does not carry the new kid",
    )?;
    token::jwks(run, &new.kid).await?;
    token::verify_locally(run, &new).await?;
    run.story
        .fact("service", &format!("new tokens carry kid {}", new.kid));
    check(
        token::verify(run, old, AUDIENCE).await?.valid,
        "VerifyToken rejects the old token",
    )?;
    token::verify_locally(run, old).await?;
    run.story.fact(
        "verifier",
        &format!("the old token still verifies, by kid {}", old.kid),
    );
    Ok(())
}

async fn request(run: &mut Run<'_>, key: &Key) -> Result<Rotation> {
    let request = RotateKeyRequest {
        tenant: TENANT.to_owned(),
        key: key.name.clone(),
        justification: "shown by claviger dev".to_owned(),
        ..RotateKeyRequest::default()
    };
    let answer = run
        .people
        .issuer
        .rotations()
        .rotate_key(request)
        .await?
        .into_inner();
    let rotation = part(answer.rotation, "rotation")?;
    check(
        rotation.old_kid == key.active_kid,
        "the rotation does not replace the key's ACTIVE version",
    )?;
    let text = format!(
        "RotateKey {}: kid {} is to follow {}",
        key.name, rotation.new_kid, rotation.old_kid
    );
    run.story.fact("issuer", &text);
    // A rotation is opened on a key, so the row may name either.
    run.expect("RotateKey", AuditOutcome::Success, &rotation.id, &key.id);
    Ok(rotation)
}

async fn approve(run: &mut Run<'_>, requested: &Rotation) -> Result<Rotation> {
    let id = requested.id.clone();
    // Who approves reads the plan from the daemon, and computes its digest on their own machine.
    let request = GetRotationRequest {
        rotation_id: id.clone(),
    };
    let read = run
        .people
        .approver
        .rotations()
        .get_rotation(request)
        .await?
        .into_inner();
    let plan = part(read.rotation, "rotation")?.plan;
    let plan_digest = plan::plan_digest(&plan);
    check(
        plan_digest == requested.plan_digest,
        "the plan's digest is not the one the daemon states",
    )?;
    let request = ApproveRotationRequest {
        rotation_id: id.clone(),
        plan_digest: plan_digest.clone(),
    };

    let result = run
        .people
        .issuer
        .rotations()
        .approve_rotation(request.clone())
        .await;
    let refused = denied(result)?;
    run.story
        .refused("issuer", "approves their own request", &refused);
    run.expect("ApproveRotation", AuditOutcome::Refused, &id, &id);
    two_roles(run, requested, &request).await?;

    let answer = run
        .people
        .approver
        .rotations()
        .approve_rotation(request)
        .await?
        .into_inner();
    // At once, while the new kid still soaks.
    let request = DeployRotationRequest {
        rotation_id: id.clone(),
    };
    let too_early = run
        .people
        .deployer
        .rotations()
        .deploy_rotation(request)
        .await;

    run.story
        .fact("approver", &format!("read the plan: {plan}"));
    run.story.fact(
        "approver",
        &format!("ApproveRotation of exactly that plan, SHA-256 {plan_digest}"),
    );
    run.expect("ApproveRotation", AuditOutcome::Success, &id, &id);
    let rotation = part(answer.rotation, "rotation")?;
    check(
        rotation.state() == RotationState::Approved,
        "one approval did not approve the rotation",
    )?;
    let refused = refusal(too_early, Code::FailedPrecondition, Reason::RotationSoaking)?;
    run.story.refused("deployer", "deploys at once", &refused);
    run.expect("DeployRotation", AuditOutcome::Failed, &id, &id);
    Ok(rotation)
}

/// A second role does not help whoever asked: the rule is not a policy.
async fn two_roles(
    run: &mut Run<'_>,
    requested: &Rotation,
    approve: &ApproveRotationRequest,
) -> Result<()> {
    let (principal_id, role) = (requested.requester.clone(), "key-approver".to_owned());
    let mut admin = run.people.admin.principals();
    let grant = GrantRoleRequest {
        principal_id: principal_id.clone(),
        role: role.clone(),
        tenant: "*".to_owned(),
    };
    admin.grant_role(grant).await?;
    let mut issuer = run.people.issuer.rotations();
    let result = issuer.approve_rotation(approve.clone()).await;
    // Before anything can fail: the next run begins with one role each.
    let revoke = RevokeRoleRequest {
        principal_id,
        role,
        tenant: "*".to_owned(),
    };
    admin.revoke_role(revoke).await?;
    let refused = refusal(result, Code::PermissionDenied, Reason::SeparationOfDuties)?;
    let text = "approves it with the role key-approver, which admin lent them";
    run.story.refused("issuer", text, &refused);
    Ok(())
}

/// Waits out the soak, during which verifiers learn the new kid, and deploys.
async fn deploy(run: &mut Run<'_>, rotation: &Rotation) -> Result<()> {
    token::jwks(run, &rotation.new_kid).await?;
    run.story.fact(
        "verifier",
        &format!("the JWKS announces kid {}", rotation.new_kid),
    );
    let request = DeployRotationRequest {
        rotation_id: rotation.id.clone(),
    };
    let until = Instant::now() + PATIENCE;
    while output::instant(&rotation.deployable_time).is_some_and(|time| output::now() < time) {
        let late = || {
            Failure::other(format!(
                "the rotation does not become deployable within {PATIENCE:?}"
            ))
        };
        check(Instant::now() < until, &late().to_string())?;
        sleep(Duration::from_millis(50)).await;
    }
    let answer = run
        .people
        .deployer
        .rotations()
        .deploy_rotation(request)
        .await?
        .into_inner();
    let deployed = part(answer.rotation, "rotation")?;
    check(
        deployed.state() == RotationState::Deployed,
        "the rotation is not deployed",
    )?;
    let people = [&deployed.requester, &deployed.deployer];
    let approvers = deployed.approvals.iter().map(|approval| &approval.approver);
    let mut people: Vec<_> = people.into_iter().chain(approvers).collect();
    people.sort_unstable();
    people.dedup();
    check(
        people.len() == 3,
        "requester, approver and deployer are not three different principals",
    )?;
    run.story.fact(
        "deployer",
        "DeployRotation after the soak: three different people have agreed",
    );
    run.expect(
        "DeployRotation",
        AuditOutcome::Success,
        &rotation.id,
        &rotation.id,
    );
    Ok(())
}

/// An issuer's approval is refused twice over: they lack the role, and they asked for it themselves.
fn denied<T>(result: std::result::Result<tonic::Response<T>, tonic::Status>) -> Result<String> {
    let own = |status: &tonic::Status| {
        let info = tonic_types::StatusExt::get_details_error_info(status);
        info.is_some_and(|info| info.reason == Reason::SeparationOfDuties.as_str())
    };
    let reason = match &result {
        Err(status) if own(status) => Reason::SeparationOfDuties,
        Err(_) | Ok(_) => Reason::PermissionDenied,
    };
    refusal(result, Code::PermissionDenied, reason)
}
