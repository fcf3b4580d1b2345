//! The door, where callers leave before they have their answer.

use std::{path::PathBuf, sync::Arc, time::Duration};

use claviger::{
    audit::{ADMIN_STREAM, AccessConfig, AccessLog, AccessMode, AuditRow, Receipt, verify},
    authz::{Authz, Policies},
    error::{Error, Reason},
    gate::{Freshness, Gate},
    grpc::proto::CreateTenantResponse,
    model::{
        Action, Caller, Credential, Grant, Principal, PrincipalId, PrincipalKind, PrincipalState,
        Resource, Role, Scope, Scopes, Secret, TenantName, Timestamp,
    },
    store::{DatabaseConfig, Db},
};
use futures_util::FutureExt;
use serde_json::json;

struct Door {
    dir: PathBuf,
    db: Db,
    gate: Gate,
}

impl Door {
    async fn new() -> Self {
        let name = PrincipalId::random().to_string();
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let url = format!("sqlite://{}", dir.join("claviger.db").display());
        let db = Db::open(&DatabaseConfig::of(Secret::new(url))).await;
        let db = db.expect("a database");
        db.migrate().await.expect("migrated");
        let config = AccessConfig {
            access: AccessMode::Required,
            replica: "one".into(),
            checkpoint: None,
            retention: Default::default(),
        };
        let (log, writer) = AccessLog::new(db.clone(), &config);
        tokio::spawn(writer.run());
        let authz = Arc::new(Authz::new(Policies::built_in().expect("policies")));
        let fresh = Arc::new(Freshness::new(Duration::from_secs(3600)));
        fresh.observe(tokio::time::Instant::now());
        let gate = Gate::new(authz, db.clone(), log, fresh);
        Self { dir, db, gate }
    }

    /// What the admin stream holds once every mutation has ended.
    async fn recorded(&self) -> Vec<AuditRow> {
        self.gate.drain().await;
        let reports = verify::verify(&self.db, ADMIN_STREAM).await;
        assert_eq!(reports.expect("verified")[0].problem, None);
        let rows = self.db.audit_chain(ADMIN_STREAM, 1, 100).await;
        rows.expect("rows")
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn caller(roles: &[Role]) -> Caller {
    let grants = roles.iter().map(|role| Grant {
        role: *role,
        scope: Scope::All,
    });
    let principal = Principal {
        id: PrincipalId::random(),
        tenant: TenantName::system(),
        name: "somebody".parse().expect("a name"),
        kind: PrincipalKind::User,
        owner: String::new(),
        state: PrincipalState::Active,
        scopes: Scopes::default(),
        identities: Vec::new(),
        grants: grants.collect(),
        created_at: Timestamp::default(),
    };
    Caller {
        principal: Arc::new(principal),
        credential: Credential::Certificate,
        request_id: "request-1".into(),
        idempotency: None,
    }
}

fn answer(_: &(), _: &Receipt) -> CreateTenantResponse {
    CreateTenantResponse::default()
}

fn system() -> Resource {
    Resource::tenant(TenantName::system())
}

#[tokio::test]
async fn a_change_is_whole_although_its_caller_left() {
    let door = Door::new().await;
    let admin = caller(&[Role::PrincipalAdmin]);
    let act = async |permit: claviger::gate::AdminPermit| {
        let mut mutation = permit.begin().await?;
        let name: TenantName = "acme".parse()?;
        let tx = mutation.tx();
        tx.insert_tenant(&name, Timestamp::default()).await?;
        mutation.record((), json!({})).await
    };
    let create = door
        .gate
        .mutate(&admin, Action::CreateTenant, system(), answer, act);
    // Polled once and dropped: the caller is gone before the database has said a word.
    assert!(create.now_or_never().is_none());
    let rows = door.recorded().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].outcome, "success");
    let acme = "acme".parse().expect("a name");
    assert!(door.db.tenant_exists(&acme).await.expect("read"));
}

// R-ACL-2
#[tokio::test]
async fn a_refusal_is_recorded_although_its_caller_left() {
    let door = Door::new().await;
    let nobody = caller(&[]);
    let never = async |_| -> Result<claviger::gate::Recorded<()>, Error> {
        panic!("a refused change is never begun")
    };
    let create = door
        .gate
        .mutate(&nobody, Action::CreateTenant, system(), answer, never);
    assert!(create.now_or_never().is_none());
    let rows = door.recorded().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].outcome, "refused");
    assert_eq!(rows[0].data, r#"{"reason":"PERMISSION_DENIED"}"#);
}

#[tokio::test]
async fn a_change_that_panics_is_a_failure_on_record() {
    let door = Door::new().await;
    let admin = caller(&[Role::PrincipalAdmin]);
    let fails = async |_| -> Result<claviger::gate::Recorded<()>, Error> { panic!("a bug") };
    let failed = door
        .gate
        .mutate(&admin, Action::CreateTenant, system(), answer, fails)
        .await;
    let error = failed.map(|_| ()).expect_err("it panicked");
    assert_eq!(error.reason(), Reason::Internal);
    assert!(!error.message().contains("bug"));
    let rows = door.recorded().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].outcome, "failed");
}

// R-ACL-2
#[tokio::test]
async fn a_use_that_was_abandoned_is_a_failure_on_record() {
    let door = Door::new().await;
    let auditor = caller(&[Role::Auditor]);
    let verify = async |permit: claviger::gate::Permit, ends: bool| {
        if !ends {
            std::future::pending::<()>().await;
        }
        drop(permit);
        Ok(((), String::new()))
    };
    let gate = &door.gate;
    let access = |ends| {
        gate.access(&auditor, Action::VerifyAudit, system(), move |p| {
            verify(p, ends)
        })
    };
    // Polled once and dropped in the middle: a device may have been at work.
    assert!(access(false).now_or_never().is_none());
    // One writer, one queue: once this one is durable, so is the one before it.
    access(true).await.expect("verified");
    let rows = door
        .db
        .audit_chain("access/one", 1, 100)
        .await
        .expect("rows");
    let outcomes: Vec<_> = rows.iter().map(|r| (&*r.outcome, &*r.data)).collect();
    assert_eq!(
        outcomes,
        [("failed", r#"{"reason":"ABANDONED"}"#), ("success", "{}")]
    );
}
