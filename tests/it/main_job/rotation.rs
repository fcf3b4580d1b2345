//! Step 5: one asks for a rotation, another approves what they have read, a third deploys.

use aws_lc_rs::digest;
use claviger::grpc::proto::{
    ApproveRotationRequest, CreatePrincipalRequest, DeployRotationRequest, GetRotationRequest,
    GrantRoleRequest, IssueTokenResponse, Key, KeyVersionState, PrincipalType, RotateKeyRequest,
    Rotation, RotationState,
};
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;

use super::{Story, refused, token};
use crate::daemon::{Actor, PATIENCE, reason};

pub async fn rotate(story: &mut Story, key: &Key, old: &IssueTokenResponse) {
    let rotation = request(story, key).await;
    let id = rotation.id.clone();
    let approve = approval(story, &rotation).await;
    let deploy = DeployRotationRequest {
        rotation_id: id.clone(),
    };
    // Not announced before the approval, and nothing to deploy.
    assert!(!token::published(story).await.contains(&rotation.new_kid));
    let early = story
        .actor("deployer")
        .rotations()
        .deploy_rotation(deploy.clone())
        .await;
    refused(early, Code::FailedPrecondition, "ROTATION_STATE");
    story.failed("deployer", "DeployRotation", &id);

    for actor in ["issuer", "deployer", "admin"] {
        let own = story
            .actor(actor)
            .rotations()
            .approve_rotation(approve.clone())
            .await;
        refused(own, Code::PermissionDenied, "PERMISSION_DENIED");
        story.was_refused(actor, "ApproveRotation", &id);
    }
    let other = ApproveRotationRequest {
        plan_digest: "0".repeat(64),
        ..approve.clone()
    };
    let other = story
        .actor("approver")
        .rotations()
        .approve_rotation(other)
        .await;
    refused(other, Code::FailedPrecondition, "PLAN_CHANGED");
    story.failed("approver", "ApproveRotation", &id);

    let approved = story
        .actor("approver")
        .rotations()
        .approve_rotation(approve.clone())
        .await;
    // At once, while the new kid soaks.
    let soaking = story
        .actor("deployer")
        .rotations()
        .deploy_rotation(deploy.clone())
        .await;
    let approved = approved.expect("ApproveRotation").into_inner().rotation;
    let approved = approved.expect("a rotation");
    assert_eq!(approved.state(), RotationState::Approved);
    story.did("approver", "ApproveRotation", &id);
    refused(soaking, Code::FailedPrecondition, "ROTATION_SOAKING");
    let again = story
        .actor("approver")
        .rotations()
        .approve_rotation(approve)
        .await;
    refused(again, Code::FailedPrecondition, "ROTATION_STATE");
    for actor in ["issuer", "approver", "service"] {
        let result = story
            .actor(actor)
            .rotations()
            .deploy_rotation(deploy.clone())
            .await;
        refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
        story.was_refused(actor, "DeployRotation", &id);
    }
    let kids = token::published(story).await;
    assert!(kids.contains(&rotation.old_kid) && kids.contains(&rotation.new_kid));
    assert_eq!(token::one(story).await.kid, rotation.old_kid);

    let deployed = deployed(&story.actor("deployer"), deploy).await;
    story.did("deployer", "DeployRotation", &id);
    let mut people = vec![&deployed.requester, &deployed.deployer];
    people.extend(deployed.approvals.iter().map(|approval| &approval.approver));
    people.sort_unstable();
    people.dedup();
    assert_eq!(people.len(), 3);

    let new = token::one(story).await;
    assert_eq!(new.kid, rotation.new_kid);
    for token in [old, &new] {
        token::accepted_by_strangers(story, token).await;
    }
    let query = format!(
        "SELECT kid, state FROM key_versions WHERE key_id = '{}' ORDER BY number",
        key.id
    );
    let states: Vec<_> = story
        .daemon
        .rows(&query)
        .await
        .into_iter()
        .map(|row| row[1].clone())
        .collect();
    let expected = [KeyVersionState::VerifyOnly, KeyVersionState::Active];
    let expected = expected.map(|s| s.as_str_name().replace("KEY_VERSION_STATE_", ""));
    assert_eq!(states, expected);
}

async fn request(story: &mut Story, key: &Key) -> Rotation {
    let request = RotateKeyRequest {
        tenant: "acme".into(),
        key: key.name.clone(),
        justification: "every 90 days".into(),
        ..RotateKeyRequest::default()
    };
    for (actor, code, why) in [
        ("service", Code::PermissionDenied, "PERMISSION_DENIED"),
        ("other", Code::NotFound, "KEY_NOT_FOUND"),
        ("approver", Code::PermissionDenied, "PERMISSION_DENIED"),
    ] {
        let result = story
            .actor(actor)
            .rotations()
            .rotate_key(request.clone())
            .await;
        refused(result, code, why);
        story.was_refused(actor, "RotateKey", &key.id);
    }
    let opened = story
        .actor("issuer")
        .rotations()
        .rotate_key(request.clone())
        .await;
    let rotation = opened.expect("RotateKey").into_inner().rotation;
    let rotation = rotation.expect("a rotation");
    story.did("issuer", "RotateKey", &rotation.id);
    assert_eq!(rotation.old_kid, key.active_kid);
    let twice = story.actor("issuer").rotations().rotate_key(request).await;
    refused(twice, Code::FailedPrecondition, "ROTATION_OPEN");
    story.failed("issuer", "RotateKey", &key.id);
    rotation
}

/// Who approves reads the plan and computes its digest on their own machine.
async fn approval(story: &Story, rotation: &Rotation) -> ApproveRotationRequest {
    let request = GetRotationRequest {
        rotation_id: rotation.id.clone(),
    };
    let read = story
        .actor("approver")
        .rotations()
        .get_rotation(request)
        .await;
    let plan = read.expect("GetRotation").into_inner().rotation;
    let plan = plan.expect("a rotation").plan;
    let digest = digest::digest(&digest::SHA256, plan.as_bytes());
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, rotation.plan_digest);
    ApproveRotationRequest {
        rotation_id: rotation.id.clone(),
        plan_digest: digest,
    }
}

/// Deploys as soon as the soak is over.
pub async fn deployed(deployer: &Actor, request: DeployRotationRequest) -> Rotation {
    let until = Instant::now() + PATIENCE;
    loop {
        match deployer.rotations().deploy_rotation(request.clone()).await {
            Ok(answer) => return answer.into_inner().rotation.expect("a rotation"),
            Err(status) => assert_eq!(reason(&status), "ROTATION_SOAKING", "{status}"),
        }
        assert!(Instant::now() < until, "it soaks for ever");
        sleep(Duration::from_millis(50)).await;
    }
}

// R-LIFE-7: whatever the roles are.
pub async fn one_person_with_every_role(story: &mut Story, key: &Key) {
    let identity = "spiffe://claviger.test/boss";
    let admin = story.actor("admin");
    let request = CreatePrincipalRequest {
        tenant: "system".into(),
        name: "boss".into(),
        r#type: PrincipalType::User.into(),
        identities: vec![identity.into()],
        ..Default::default()
    };
    let made = admin.principals().create_principal(request).await;
    let boss = made.expect("CreatePrincipal").into_inner().principal;
    let boss = boss.expect("a principal").id;
    story.did("admin", "CreatePrincipal", &boss);
    for role in ["key-issuer", "key-approver", "key-deployer"] {
        let request = GrantRoleRequest {
            principal_id: boss.clone(),
            role: role.into(),
            tenant: "*".into(),
        };
        admin.principals().grant_role(request).await.expect(role);
    }
    story.did("admin", "GrantRole", &boss);
    let actor = story
        .daemon
        .actor_with(Some(&story.daemon.ca.client(identity)));
    let request = RotateKeyRequest {
        tenant: "acme".into(),
        key: key.name.clone(),
        justification: "because I can".into(),
        ..RotateKeyRequest::default()
    };
    let opened = actor.rotations().rotate_key(request).await;
    let rotation = opened.expect("RotateKey").into_inner().rotation;
    let rotation = rotation.expect("a rotation");
    let approve = approval(story, &rotation).await;
    let own = actor.rotations().approve_rotation(approve.clone()).await;
    refused(own, Code::PermissionDenied, "SEPARATION_OF_DUTIES");
    story.was_refused("boss", "ApproveRotation", &rotation.id);
    let approved = story
        .actor("approver")
        .rotations()
        .approve_rotation(approve)
        .await;
    approved.expect("ApproveRotation");
    let deploy = DeployRotationRequest {
        rotation_id: rotation.id.clone(),
    };
    let own = actor.rotations().deploy_rotation(deploy.clone()).await;
    refused(own, Code::PermissionDenied, "SEPARATION_OF_DUTIES");
    story.was_refused("boss", "DeployRotation", &rotation.id);
    deployed(&story.actor("deployer"), deploy).await;
}
