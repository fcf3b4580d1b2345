//! Three people for one rotation, where the configuration asks for them. R-CRED-7, R-LIFE-7.

use tonic::{Code, Status};

use super::{
    rotation::{HOUR, NEW, OLD, Provider, Realm, some},
    *,
};
use crate::daemon::{Engine, reason};

impl Realm {
    pub(super) async fn approve_as(
        &self,
        actor: &str,
        id: &str,
    ) -> Result<CredentialRotation, Status> {
        let request = ApproveCredentialRotationRequest {
            rotation_id: id.into(),
        };
        let actor = self.d.actor(actor);
        let mut client = actor.credential_rotations();
        let approved = client.approve_credential_rotation(request).await?;
        Ok(approved.into_inner().rotation.expect("a rotation"))
    }

    pub(super) async fn promote_as(
        &self,
        actor: &str,
        id: &str,
    ) -> Result<CredentialRotation, Status> {
        let request = PromoteCredentialRequest {
            rotation_id: id.into(),
            without_probe: false,
        };
        let actor = self.d.actor(actor);
        let mut client = actor.credential_rotations();
        let promoted = client.promote_credential(request).await?;
        Ok(promoted.into_inner().rotation.expect("a rotation"))
    }

    /// As another role too.
    async fn is_also(&self, name: &str, role: &str) {
        let request = GrantRoleRequest {
            principal_id: self.d.id_of(name).await,
            role: role.into(),
            tenant: "acme".into(),
        };
        let granted = self.d.actor("admin").principals().grant_role(request).await;
        granted.expect("GrantRole");
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, why: &str) {
    let refusal = answer.expect_err(why);
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (code, why));
}

async fn three_people(engine: Engine) {
    const DUTIES: &str = "SEPARATION_OF_DUTIES";
    const STATE: &str = "CREDENTIAL_ROTATION_STATE";
    let more =
        "three_roles = [{ provider = \"alpaca\", tenant = \"acme\" }, { provider = \"oanda\" }]";
    let realm = Realm::with(engine, Provider::new().await, more).await;
    // Every role that could do it: what keeps them apart is not the policies.
    realm.is_also("service", "key-approver").await;
    realm.is_also("approver", "credential-manager").await;
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    let staged = realm.get(&id).await;
    assert!(staged.needs_approval);
    assert_eq!(staged.attention, "WAITS_FOR_APPROVAL");
    assert_eq!(staged.requester_id, realm.d.id_of("service").await);
    assert_eq!(realm.alerts().await, ["CREDENTIAL_ROTATION_WAITING"]);

    let denied = Code::PermissionDenied;
    refused(realm.promote_as("service", &id).await, denied, DUTIES);
    let early = realm.promote_as("deployer", &id).await;
    refused(early, Code::FailedPrecondition, STATE);
    refused(realm.approve_as("service", &id).await, denied, DUTIES);
    for actor in ["issuer", "deployer", "auditor"] {
        let refusal = realm.approve_as(actor, &id).await;
        refused(refusal, denied, "PERMISSION_DENIED");
    }
    let other = realm.approve_as("other", &id).await;
    assert_eq!(other.expect_err("hidden").code(), Code::NotFound);
    assert_eq!(realm.values().await, [some(OLD), some(NEW), None]);

    let approved = realm.approve_as("approver", &id).await.expect("approved");
    assert_eq!(approved.approver_id, realm.d.id_of("approver").await);
    assert_eq!(approved.attention, "");
    let twice = realm.approve_as("officer", &id).await;
    refused(twice, denied, "PERMISSION_DENIED");
    let twice = realm.approve_as("approver", &id).await;
    refused(twice, Code::FailedPrecondition, STATE);
    // Neither of the two promotes.
    refused(realm.promote_as("service", &id).await, denied, DUTIES);
    refused(realm.promote_as("approver", &id).await, denied, DUTIES);
    let promoted = realm.promote_as("deployer", &id).await.expect("promoted");
    assert_eq!(promoted.state(), CredentialRotationState::Holding);
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);

    let by = "SELECT p.name, a.action, a.data FROM audit_events a JOIN principals p ON p.id = a.actor \
              WHERE a.outcome = 'success' AND a.action IN ('StageCredential', 'ApproveCredentialRotation', \
              'PromoteCredential') ORDER BY a.seq";
    let rows = realm.d.rows(by).await;
    let by: Vec<_> = rows
        .iter()
        .map(|row| [row[0].as_str(), row[1].as_str()])
        .collect();
    let wanted = [
        ["service", "StageCredential"],
        ["approver", "ApproveCredentialRotation"],
        ["deployer", "PromoteCredential"],
    ];
    assert_eq!(by, wanted);
    assert!(rows[2][2].contains(&approved.approver_id), "{rows:?}");
    realm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_people_rotate_where_the_configuration_asks_for_them_on_sqlite() {
    three_people(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_people_rotate_where_the_configuration_asks_for_them_on_postgresql() {
    three_people(Engine::Postgres).await;
}

// What needs nobody's approval has none, and a rotation that nobody approves goes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_configuration_names_needs_three_people() {
    let more =
        "three_roles = [{ provider = \"alpaca\", tenant = \"globex\" }, { provider = \"openai\" }]";
    let realm = Realm::with(Engine::Sqlite, Provider::new().await, more).await;
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    assert!(!realm.get(&id).await.needs_approval);
    let needless = realm.approve_as("approver", &id).await;
    refused(
        needless,
        Code::FailedPrecondition,
        "CREDENTIAL_ROTATION_STATE",
    );
    let promoted = realm.promote(&id).await;
    assert_eq!(promoted.state(), CredentialRotationState::Holding);
    realm.end().await;
}
