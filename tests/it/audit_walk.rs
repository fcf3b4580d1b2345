//! R-CARD-5, R-ACL-2: every RPC, whether it succeeds, fails or is refused, leaves exactly one audit row, on the right
//! stream and with the right actor, action and outcome; a batch leaves one for every item, a stream that has begun a
//! second one when it ends.

use std::collections::BTreeSet;

use claviger::model::{AccessKind, METHODS, Method};
use tonic::Code;

use crate::{
    daemon::{Daemon, Engine},
    rpcs::{World, send},
};

const ACCESS: &str = "access/one";

#[tokio::test]
async fn every_rpc_leaves_its_row_on_sqlite() {
    walk(Engine::Sqlite).await;
}

#[tokio::test]
async fn every_rpc_leaves_its_row_on_postgres() {
    walk(Engine::Postgres).await;
}

async fn walk(engine: Engine) {
    let world = World::new(engine).await;
    let mut failures = 0;
    for method in METHODS {
        let case = world.case(method.path).await;
        let (may, may_not) = people(method);
        let mut log = Log::new(&world.daemon).await;

        let result = send(&world.daemon.actor("stranger"), method.path, &case.valid).await;
        assert_eq!(code(&result), Code::Unauthenticated, "{}", method.path);
        let stranger = "spiffe://claviger.test/stranger";
        log.expect(ACCESS, stranger, method, &["refused"]).await;

        let stream = match method.action.kind() {
            AccessKind::Admin => "admin",
            AccessKind::Read | AccessKind::Data => ACCESS,
        };
        if let Some(may_not) = may_not {
            let result = send(&world.daemon.actor(may_not), method.path, &case.valid).await;
            let expected = match case.items {
                1 => Code::PermissionDenied,
                // Every item is judged on its own.
                _ => Code::Ok,
            };
            assert_eq!(code(&result), expected, "{} as {may_not}", method.path);
            let id = world.daemon.id_of(may_not).await;
            let rows = vec!["refused"; case.items];
            log.expect(stream, &id, method, &rows).await;
        }

        let id = world.daemon.id_of(may).await;
        if let Some(failing) = &case.failing {
            let result = send(&world.daemon.actor(may), method.path, failing).await;
            assert_ne!(code(&result), Code::Ok, "{}", method.path);
            log.expect(stream, &id, method, &["failed"]).await;
            failures += 1;
        }
        let result = send(&world.daemon.actor(may), method.path, &case.valid).await;
        assert!(result.is_ok(), "{}: {result:?}", method.path);
        let rows: &[_] = match case.items {
            // One says that it has begun, the other how it ended.
            _ if case.is_stream => &["success", "success"],
            1 => &["success"],
            _ => &["failed", "success"],
        };
        log.expect(stream, &id, method, rows).await;
        if method.action.kind() == AccessKind::Admin {
            assert!(case.failing.is_some(), "{} has no failure", method.path);
        }
    }
    assert!(failures >= 10);
    world.daemon.stop().await;
}

/// Somebody who may, and somebody who may not, if there is one.
pub fn people(method: &Method) -> (&'static str, Option<&'static str>) {
    match method.action.name() {
        "GetJwks" => ("service", None),
        "Sign" | "Verify" | "Encrypt" | "Decrypt" | "Rewrap" | "IssueToken" | "VerifyToken" => {
            ("service", Some("issuer"))
        }
        "GenerateDataKey"
        | "GenerateDataKeyWithoutPlaintext"
        | "DecryptDataKey"
        | "ComputeMac"
        | "VerifyMac"
        | "VerifyWebhook"
        | "GenerateRandom" => ("service", Some("issuer")),
        "ApproveRotation"
        | "RejectRotation"
        | "ApproveRotationPolicy"
        | "ApproveKekRotation"
        | "RejectKekRotation" => ("approver", Some("auditor")),
        "DeployRotation" | "DeployKekRotation" => ("deployer", Some("auditor")),
        "RotateKek" | "CancelKekRotation" => ("issuer", Some("auditor")),
        "ListKeks" | "GetKekRotation" | "ListKekRotations" => ("auditor", Some("admin")),
        "CreateKey"
        | "AdoptKey"
        | "ImportKey"
        | "UpdateKey"
        | "RotateKey"
        | "CancelRotation"
        | "DestroyKeyVersion"
        | "CancelKeyDestruction"
        | "DestroyTenantKeys"
        | "CancelTenantDestruction" => ("issuer", Some("auditor")),
        "ApproveKeyDestruction" | "ApproveTenantDestruction" => ("approver", Some("auditor")),
        "DeclareCompromise" | "AddIncidentNote" | "CloseIncident" | "RevokeToken"
        | "RevokeKeyVersion" => ("officer", Some("auditor")),
        "GetIncident" | "ListIncidents" => ("auditor", Some("admin")),
        "CreateTenant" | "CreatePrincipal" | "GrantRole" | "RevokeRole" => {
            ("admin", Some("auditor"))
        }
        "GetKey"
        | "ListKeys"
        | "GetRotation"
        | "ListRotations"
        | "GetKeyVersionUsage"
        | "ListKeyDestructions"
        | "GetTenantDestruction"
        | "ListTenantDestructions"
        | "ListAuditEvents"
        | "VerifyAudit" => ("auditor", Some("admin")),
        "CreateClient" | "UpdateClient" => ("admin", Some("auditor")),
        "GetClient" | "ListClients" => ("auditor", Some("officer")),
        "UpdatePrincipal" | "SuspendPrincipal" | "ResumePrincipal" | "CreateApiKey"
        | "RotateApiKey" | "RevokeApiKey" => ("admin", Some("auditor")),
        "GetPrincipal" | "GetApiKey" | "ListApiKeys" | "ListPeppers" => ("auditor", Some("issuer")),
        "ListTenants" | "ListPrincipals" => ("auditor", Some("issuer")),
        "PutCredential" | "RevealCredential" | "DeleteCredential" | "ValidateCredential"
        | "ImportCredentials" => ("service", Some("issuer")),
        "GetCredential" | "ListCredentials" | "GetCredentialReport" => ("auditor", Some("issuer")),
        "ListProviders" => ("service", None),
        "RecordUsage" | "AcquireUsage" => ("service", Some("issuer")),
        "SetLimit" | "DeleteLimit" => ("admin", Some("auditor")),
        "GetUsageReport" | "ListLimits" => ("auditor", Some("issuer")),
        "AckAlert" | "RetryDelivery" => ("officer", Some("auditor")),
        "ListAlerts" | "ListDeliveries" => ("auditor", Some("issuer")),
        "LeaseCredential" | "RenewLease" | "ReturnLease" | "RevokeLease" | "WatchCredentials" => {
            ("service", Some("issuer"))
        }
        "ListLeases" => ("auditor", Some("issuer")),
        "StageCredential"
        | "PromoteCredential"
        | "CompleteCredentialRotation"
        | "RollBackCredential"
        | "SetCredentialRotation" => ("service", Some("issuer")),
        "GetCredentialRotation" | "ListCredentialRotations" | "ListDueCredentials" => {
            ("auditor", Some("issuer"))
        }
        unknown => panic!("action {unknown} has nobody in tests/it/audit_walk.rs; add them"),
    }
}

fn code<T>(result: &Result<T, tonic::Status>) -> Code {
    result
        .as_ref()
        .map_or_else(tonic::Status::code, |_| Code::Ok)
}

/// The audit log, read in the database itself so that reading leaves no row.
struct Log<'a> {
    daemon: &'a Daemon,
    /// Stream and seq of the rows that were there at the last look.
    seen: BTreeSet<[String; 2]>,
}

impl<'a> Log<'a> {
    async fn new(daemon: &'a Daemon) -> Self {
        let seen = Self::rows(daemon).await.into_iter();
        let seen = seen.map(|(place, _)| place).collect();
        Self { daemon, seen }
    }

    /// Place and content of every row.
    async fn rows(daemon: &Daemon) -> Vec<([String; 2], Vec<String>)> {
        // A freeze makes a checkpoint due, by the daemon itself and at any moment.
        let query = "SELECT stream, seq, stream, actor, action, outcome, request_id FROM audit_events \
             WHERE action <> 'CheckpointAudit'";
        let rows = daemon.rows(query).await.into_iter();
        rows.map(|mut row| {
            let content = row.split_off(2);
            ([row.remove(0), row.remove(0)], content)
        })
        .collect()
    }

    /// Since the last look, these rows and no others were added.
    async fn expect(&mut self, stream: &str, actor: &str, method: &Method, outcomes: &[&str]) {
        let mut new = Vec::new();
        for (place, mut row) in Self::rows(self.daemon).await {
            if self.seen.insert(place) {
                let request_id = row.pop().unwrap_or_default();
                assert!(!request_id.is_empty(), "{} without request id", method.path);
                new.push(row);
            }
        }
        new.sort();
        let action = method.action.name();
        let expected: Vec<_> = outcomes
            .iter()
            .map(|outcome| vec![stream, actor, action, *outcome])
            .collect();
        assert_eq!(new, expected, "{}", method.path);
    }
}
