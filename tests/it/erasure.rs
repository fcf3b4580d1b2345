//! Destroying every key of a tenant: two people, a waiting period, a crash or a lost device at any step, and a proof that
//! names what is gone. R-OPS-5, R-LIFE-7. And the counts that tell whether anything is left under a version.

use std::{collections::BTreeMap, fs, os::unix::process::ExitStatusExt};

use bytes::Bytes;
use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Status};

use crate::{
    checkpoints::judged,
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, Twin, reason},
};

const PROOF_KEY: &str = "audit-checkpoints";

/// Somebody with two roles, which policies allow and a destruction does not.
const MORE: &str = r#"
[keys]
tenant_destruction_wait_seconds = 172800
last_used_interval_seconds = 3600
backend_timeout_ms = 3500
generate_timeout_ms = 3500
reconcile_after_seconds = 4

[scheduler]
interval_ms = 50
lease_seconds = 2

[[bootstrap.principals]]
name = "judge"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/judge"]
roles = [{ role = "key-issuer", tenant = "*" }, { role = "key-approver", tenant = "*" }]
"#;

const STATE: Code = Code::FailedPrecondition;
const DENIED: Code = Code::PermissionDenied;
const INVALID: Code = Code::InvalidArgument;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, why: &str) -> String {
    let status = result.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    assert!(status.message().contains(' '), "{status}");
    status.message().to_owned()
}

/// A daemon with a key that signs proofs.
struct Stage {
    daemon: Daemon,
    proof_key: KeyVersion,
}

impl Stage {
    async fn new(engine: Engine) -> Self {
        let mut daemon = Setup::new(engine)
            .replace("max_age_seconds = 1", "max_age_seconds = 0")
            .append(MORE)
            .provision()
            .await;
        let file = daemon.path("checkpoints");
        daemon.edit_config(|text| {
            format!(
                "{text}\n[audit.checkpoint]\nkey = \"{PROOF_KEY}\"\nfile = \"{}\"\ninterval_seconds = 86400\n",
                file.display()
            )
        });
        daemon.up().await.expect("the daemon starts");
        let (purpose, algorithm) = (KeyPurpose::Signing, Algorithm::Es256);
        let key = daemon.key("system", PROOF_KEY, purpose, algorithm).await;
        let proof_key = key.versions[0].clone();
        fs::write(daemon.path("proof.pem"), &proof_key.public_pem).expect("a PEM file");
        Self { daemon, proof_key }
    }

    async fn ask_as(&self, who: &Actor, tenant: &str) -> Result<TenantDestruction, Status> {
        let request = DestroyTenantKeysRequest {
            tenant: tenant.into(),
            reason: "the contract has ended".into(),
        };
        let asked = who.erasures().destroy_tenant_keys(request).await?;
        Ok(asked.into_inner().destruction.expect("a destruction"))
    }

    async fn ask(&self, tenant: &str) -> Result<TenantDestruction, Status> {
        self.ask_as(&self.daemon.actor("issuer"), tenant).await
    }

    async fn approve_as(
        &self,
        who: &Actor,
        id: &str,
        tenant: &str,
    ) -> Result<TenantDestruction, Status> {
        let request = ApproveTenantDestructionRequest {
            destruction_id: id.into(),
            tenant: tenant.into(),
        };
        let approved = who.erasures().approve_tenant_destruction(request).await?;
        Ok(approved.into_inner().destruction.expect("a destruction"))
    }

    async fn approve(&self, id: &str, tenant: &str) -> Result<TenantDestruction, Status> {
        let approver = self.daemon.actor("approver");
        self.approve_as(&approver, id, tenant).await
    }

    async fn cancel(&self, who: &str, id: &str) -> Result<TenantDestruction, Status> {
        let request = CancelTenantDestructionRequest {
            destruction_id: id.into(),
            reason: "they came back".into(),
        };
        let mut erasures = self.daemon.actor(who).erasures();
        let cancelled = erasures.cancel_tenant_destruction(request).await?;
        Ok(cancelled.into_inner().destruction.expect("a destruction"))
    }

    async fn get(&self, id: &str) -> (TenantDestruction, String) {
        let request = GetTenantDestructionRequest {
            destruction_id: id.into(),
        };
        let mut erasures = self.daemon.actor("auditor").erasures();
        let got = erasures.get_tenant_destruction(request).await;
        let got = got.expect("GetTenantDestruction").into_inner();
        (got.destruction.expect("a destruction"), got.proof)
    }

    /// Asked for and approved.
    async fn scheduled(&self, tenant: &str) -> TenantDestruction {
        let asked = self.ask(tenant).await.expect("asked");
        self.approve(&asked.id, tenant).await.expect("approved")
    }

    /// Lets the waiting period be over.
    async fn make_due(&self, id: &str) {
        let sql = format!("UPDATE tenant_destructions SET destroy_at = 1 WHERE id = '{id}'");
        self.daemon.execute(&sql).await;
    }

    /// Waits until everything is destroyed, and returns it with its proof.
    async fn destroyed(&self, id: &str) -> (TenantDestruction, String) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (found, proof) = self.get(id).await;
            if found.state() == TenantDestructionState::Destroyed {
                return (found, proof);
            }
            assert!(Instant::now() < until, "{found:?}: {}", self.daemon.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        let rows = self.daemon.rows(sql).await;
        rows.into_iter().map(|mut row| row.remove(0)).collect()
    }

    /// kids of a tenant, and what of it is left in the database.
    async fn kids(&self, tenant: &str) -> Vec<String> {
        self.rows(&format!(
            "SELECT v.kid FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.tenant = '{tenant}' ORDER BY v.kid"
        ))
        .await
    }

    /// The proof is good, by the specification of notes alone, and names each version of the tenant once.
    async fn assert_proved(&self, tenant: &str, proof: &str) {
        assert!(judged(proof, &self.proof_key, Algorithm::Es256), "{proof}");
        let named = proof.lines().filter(|line| line.starts_with("version "));
        let mut named: Vec<_> = named
            .map(|line| line.split(' ').nth(2).expect("a kid").to_owned())
            .collect();
        named.sort();
        // What became of each; after a crash the device may have been told before.
        let is_told =
            |line: &str| line.contains(" destroyed ") || line.contains(" was already gone \"");
        let untold = proof
            .lines()
            .find(|line| line.starts_with("version ") && !is_told(line));
        assert_eq!(untold, None, "{proof}");
        assert_eq!(named, self.kids(tenant).await, "{proof}");
        let left = self
            .rows(&format!(
                "SELECT v.kid FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.tenant = '{tenant}' \
                 AND (v.state <> 'DESTROYED' OR v.wrapped_key IS NOT NULL OR v.sealed_secret IS NOT NULL \
                 OR v.destroyed_at IS NULL)"
            ))
            .await;
        assert!(left.is_empty(), "{left:?}");
        let open = "SELECT id FROM backend_intents WHERE kind = 'DESTROY' AND state <> 'DONE'";
        assert!(self.rows(open).await.is_empty());
    }

    async fn rotate(&self, tenant: &str, key: &str) -> Result<Rotation, Status> {
        let request = RotateKeyRequest {
            tenant: tenant.into(),
            key: key.into(),
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        };
        let mut issuer = self.daemon.actor("issuer").rotations();
        let opened = issuer.rotate_key(request).await?;
        Ok(opened.into_inner().rotation.expect("a rotation"))
    }

    async fn tenant(&self, name: &str) {
        let request = CreateTenantRequest { name: name.into() };
        let mut admin = self.daemon.actor("admin").principals();
        admin.create_tenant(request).await.expect("CreateTenant");
    }
}

fn sign(key: &str) -> SignRequest {
    SignRequest {
        tenant: String::new(),
        key: key.into(),
        payload: Some(sign_request::Payload::Message("order".into())),
    }
}

fn encrypt(key: &str) -> EncryptRequest {
    EncryptRequest {
        tenant: String::new(),
        key: key.into(),
        plaintext: "secret".into(),
        aad: BTreeMap::new(),
    }
}

fn decrypt(key: &str, sealed: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        tenant: String::new(),
        key: key.into(),
        ciphertext: sealed.ciphertext.clone(),
        aad: BTreeMap::new(),
    }
}

fn compute_mac(key: &str) -> ComputeMacRequest {
    ComputeMacRequest {
        tenant: String::new(),
        key: key.into(),
        message: "order".into(),
    }
}

fn verify_mac(key: &str, mac: &Bytes) -> VerifyMacRequest {
    VerifyMacRequest {
        tenant: String::new(),
        key: key.into(),
        message: "order".into(),
        mac: mac.clone(),
        kid: String::new(),
    }
}

fn create(name: &str, purpose: KeyPurpose, algorithm: Algorithm) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: purpose.into(),
        algorithm: algorithm.into(),
        owner: "team-e2e".into(),
        ..Default::default()
    }
}

/// What a busy tenant has, and what it made.
struct Busy {
    signature: Bytes,
    old: EncryptResponse,
    new: EncryptResponse,
    token: String,
    mac: Bytes,
    /// Ends with its rotation, before the key does.
    announced: String,
}

impl Busy {
    /// Signing, token, encryption and MAC keys: in every state, one in an open rotation, one with a standby, one whose
    /// version somebody wants destroyed already.
    async fn new(stage: &Stage) -> Self {
        let daemon = &stage.daemon;
        let (signing, es256) = (KeyPurpose::Signing, Algorithm::Es256);
        daemon.key("acme", "orders", signing, es256).await;
        daemon.rotated("acme", "orders").await;
        let open = stage.rotate("acme", "orders").await.expect("RotateKey");
        let leaked = daemon.key("acme", "leaked", signing, es256).await;
        let sql = format!(
            "UPDATE key_versions SET state = 'COMPROMISED', compromised_at = activated_at WHERE kid = '{}'",
            leaked.active_kid
        );
        daemon.execute(&sql).await;
        let destroy = DestroyKeyVersionRequest {
            tenant: "acme".into(),
            key: "leaked".into(),
            kid: leaked.active_kid,
            reason: "leaked".into(),
        };
        let mut issuer = daemon.actor("issuer").keys();
        let asked = issuer.destroy_key_version(destroy).await;
        asked.expect("DestroyKeyVersion");
        let mut jwt = create("jwt", KeyPurpose::TokenSigning, es256);
        jwt.standby = true;
        issuer.create_key(jwt).await.expect("CreateKey");
        let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
        daemon.key("acme", "vault", purpose, algorithm).await;
        let mac = create("hooks", KeyPurpose::Mac, Algorithm::Hs256);
        issuer.create_key(mac).await.expect("CreateKey");

        let service = daemon.actor("service");
        let mac = service.macs().compute_mac(compute_mac("hooks")).await;
        let signed = service.crypto().sign(sign("orders")).await.expect("Sign");
        let old = service.crypto().encrypt(encrypt("vault")).await;
        let old = old.expect("Encrypt").into_inner();
        daemon.rotated("acme", "vault").await;
        let new = service.crypto().encrypt(encrypt("vault")).await;
        let issue = IssueTokenRequest {
            key: "jwt".into(),
            audience: vec!["api".into()],
            ..crate::rpcs::issue(60)
        };
        let issued = service.tokens().issue_token(issue).await;
        let until = Instant::now() + PATIENCE;
        let standby = "SELECT kid FROM key_versions WHERE is_standby = 1";
        while stage.rows(standby).await.is_empty() {
            assert!(Instant::now() < until, "no standby version");
            sleep(Duration::from_millis(50)).await;
        }
        Self {
            signature: signed.into_inner().signature,
            old,
            new: new.expect("Encrypt").into_inner(),
            token: issued.expect("IssueToken").into_inner().token,
            mac: mac.expect("ComputeMac").into_inner().mac,
            announced: open.id,
        }
    }

    async fn verifies(&self, service: &Actor) -> bool {
        let request = VerifyRequest {
            key: "orders".into(),
            signature: self.signature.clone(),
            payload: Some(verify_request::Payload::Message("order".into())),
            ..Default::default()
        };
        let verified = service.crypto().verify(request).await;
        verified.expect("Verify").into_inner().valid
    }

    async fn authenticates(&self, service: &Actor) -> bool {
        let verified = service
            .macs()
            .verify_mac(verify_mac("hooks", &self.mac))
            .await;
        verified.expect("VerifyMac").into_inner().valid
    }

    async fn token(&self, service: &Actor) -> VerifyTokenResponse {
        let request = VerifyTokenRequest {
            token: self.token.clone(),
            audience: "api".into(),
            ..Default::default()
        };
        let verified = service.tokens().verify_token(request).await;
        verified.expect("VerifyToken").into_inner()
    }

    async fn assert_works(&self, service: &Actor) {
        assert!(self.verifies(service).await);
        assert!(self.authenticates(service).await);
        let verified = self.token(service).await;
        assert!(verified.valid, "{verified:?}");
        for sealed in [&self.old, &self.new] {
            let opened = service.crypto().decrypt(decrypt("vault", sealed)).await;
            opened.expect("Decrypt");
        }
        service.crypto().sign(sign("orders")).await.expect("Sign");
    }

    async fn assert_gone(&self, service: &Actor) {
        assert!(!self.verifies(service).await);
        assert!(!self.authenticates(service).await);
        let computed = service.macs().compute_mac(compute_mac("hooks")).await;
        refused(computed, STATE, "NO_USABLE_VERSION");
        let verified = self.token(service).await;
        assert!(!verified.valid, "{verified:?}");
        for sealed in [&self.old, &self.new] {
            let opened = service.crypto().decrypt(decrypt("vault", sealed)).await;
            let said = refused(opened, STATE, "NO_USABLE_VERSION");
            assert!(said.contains("DESTROYED"), "{said}");
        }
        let signed = service.crypto().sign(sign("orders")).await;
        let said = refused(signed, STATE, "NO_USABLE_VERSION");
        assert!(said.contains("destroyed"), "{said}");
        let sealed = service.crypto().encrypt(encrypt("vault")).await;
        refused(sealed, STATE, "NO_USABLE_VERSION");
    }
}

/// On every replica, as soon as each has read the log.
async fn gone_everywhere(stage: &Stage, busy: &Busy, twin: Option<&Twin>) {
    let here = stage.daemon.actor("service");
    busy.assert_gone(&here).await;
    let Some(twin) = twin else { return };
    let there = stage.daemon.actor_of("service", twin);
    let until = Instant::now() + PATIENCE;
    while busy.verifies(&there).await {
        assert!(Instant::now() < until, "the other replica never forgets");
        sleep(Duration::from_millis(50)).await;
    }
    // Rows are read in order, key after key: the last of them.
    loop {
        let sealed = there.crypto().encrypt(encrypt("vault")).await;
        let token = busy.token(&there).await;
        if sealed.is_err() && !token.valid && !busy.authenticates(&there).await {
            break;
        }
        assert!(Instant::now() < until, "the other replica never forgets");
        sleep(Duration::from_millis(50)).await;
    }
    busy.assert_gone(&there).await;
}

/// Nothing is created where everything was destroyed.
async fn nothing_is_created(stage: &Stage) {
    let mut issuer = stage.daemon.actor("issuer").keys();
    for (purpose, algorithm) in [
        (KeyPurpose::Signing, Algorithm::Es256),
        (KeyPurpose::Encryption, Algorithm::A256gcm),
    ] {
        let created = issuer.create_key(create("more", purpose, algorithm)).await;
        refused(created, STATE, "TENANT_ERASED");
    }
    let principal = CreatePrincipalRequest {
        tenant: "acme".into(),
        name: "late".into(),
        r#type: PrincipalType::Service.into(),
        identities: vec!["spiffe://claviger.test/late".into()],
        ..Default::default()
    };
    let mut admin = stage.daemon.actor("admin").principals();
    let created = admin.create_principal(principal).await;
    refused(created, STATE, "TENANT_ERASED");
    refused(stage.ask("acme").await, STATE, "TENANT_ERASED");
    // No pair was made for what was refused.
    let pending = "SELECT label FROM backend_intents WHERE kind = 'CREATE' AND state <> 'DONE'";
    assert_eq!(stage.rows(pending).await, [""; 0]);
}

/// Nobody needs the daemon to check a proof, and nobody passes a changed one off.
async fn the_proof_is_checked_offline(stage: &Stage, proof: &str) {
    let daemon = &stage.daemon;
    let (file, key) = (daemon.path("proof"), daemon.path("proof.pem"));
    let (file, key) = (file.to_str().expect("UTF-8"), key.to_str().expect("UTF-8"));
    let verify = ["tenant", "proof", "verify", file, "--key", key];
    fs::write(file, proof).expect("a proof");
    let said = daemon.cli_ok(&verify).await;
    assert!(said.contains("The signature is good."), "{said}");
    assert!(said.contains("tenant acme\n"), "{said}");
    let kid = &stage.kids("acme").await[0];
    for changed in [
        proof.replace("tenant acme", "tenant globex"),
        proof.replace(kid.as_str(), &"A".repeat(kid.len())),
        proof.replace("\nkeys ", "\nkeys 1"),
        String::new(),
    ] {
        fs::write(file, changed).expect("a proof");
        let output = daemon.cli(&verify).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    assert!(!judged(
        &proof.replace("tenant acme", "tenant globex"),
        &stage.proof_key,
        Algorithm::Es256
    ));
}

// R-OPS-5, R-LIFE-7
async fn a_tenant_is_destroyed(engine: Engine) {
    let stage = Stage::new(engine).await;
    let daemon = &stage.daemon;
    let globex = daemon.key(
        "globex",
        "theirs",
        KeyPurpose::Encryption,
        Algorithm::A256gcm,
    );
    globex.await;
    let other = daemon.actor("other");
    let theirs = other.crypto().encrypt(encrypt("theirs")).await;
    let theirs = theirs.expect("Encrypt").into_inner();
    let busy = Busy::new(&stage).await;
    let twin = match engine {
        Engine::Postgres => Some(daemon.twin().await),
        Engine::Sqlite => None,
    };
    // In the memory of both now.
    let service = daemon.actor("service");
    busy.assert_works(&service).await;
    if let Some(twin) = &twin {
        busy.assert_works(&daemon.actor_of("service", twin)).await;
    }

    let judge = daemon.actor_with(Some(&daemon.ca.client("spiffe://claviger.test/judge")));
    let asked = stage.ask_as(&judge, "acme").await.expect("asked");
    assert_eq!(asked.state(), TenantDestructionState::Requested);
    let versions = stage.kids("acme").await.len() as i64;
    // orders 3, leaked 1, jwt 2, vault 2, hooks 1
    assert_eq!((asked.remaining_versions, versions), (9, 9));
    refused(stage.ask("acme").await, STATE, "DESTRUCTION_OPEN");
    let own = stage.approve_as(&judge, &asked.id, "acme").await;
    refused(own, DENIED, "SEPARATION_OF_DUTIES");
    let wrong = stage.approve(&asked.id, "globex").await;
    refused(wrong, STATE, "PLAN_CHANGED");
    let approved = stage.approve(&asked.id, "acme").await.expect("approved");
    let (at, due) = (approved.approve_time, approved.destroy_time);
    let (at, due) = (at.expect("approved").seconds, due.expect("due").seconds);
    assert_eq!(due, at + 172_800);
    let alerts = "SELECT entity_id FROM alerts WHERE kind = 'TENANT_DESTRUCTION_SCHEDULED'";
    assert_eq!(stage.rows(alerts).await, [asked.id.as_str()]);
    // Everything goes on until then.
    busy.assert_works(&service).await;
    assert!(stage.get(&asked.id).await.1.is_empty());

    stage.make_due(&asked.id).await;
    let (done, proof) = stage.destroyed(&asked.id).await;
    assert_eq!((done.remaining_versions, done.destroyed_versions), (0, 9));
    gone_everywhere(&stage, &busy, twin.as_ref()).await;
    stage.assert_proved("acme", &proof).await;
    for line in [
        "claviger erasure https://issuer.test".to_owned(),
        "tenant acme".into(),
        format!("destruction {}", asked.id),
        "keys 5".into(),
        "versions 9".into(),
    ] {
        assert!(proof.lines().any(|l| l == line), "{line}: {proof}");
    }
    for (word, who) in [("requested ", "judge"), ("approved ", "approver")] {
        let end = format!(" by {} {who}", daemon.id_of(who).await);
        let said = |l: &str| l.starts_with(word) && l.ends_with(&end);
        assert!(proof.lines().any(said), "{end}: {proof}");
    }
    the_head_is_in_the_log(&stage, &proof).await;
    the_proof_is_checked_offline(&stage, &proof).await;

    // On the token there is the key that signs proofs and nothing else.
    assert_eq!(daemon.private_keys().await.len(), 1);
    let jwks = daemon.public_get("/.well-known/jwks.json").await.text();
    for kid in stage.kids("acme").await {
        assert!(!jwks.contains(&kid), "{jwks}");
    }
    let opened = other.crypto().decrypt(decrypt("theirs", &theirs)).await;
    opened.expect("another tenant is not touched");
    nothing_is_created(&stage).await;
    what_was_open_is_closed(&stage, &busy).await;
    refused(
        stage.cancel("officer", &asked.id).await,
        STATE,
        "DESTRUCTION_STATE",
    );
    drop(twin);
    stage.daemon.stop().await;
}

/// The proof says where the log stood, and the log names every key and the proof.
async fn the_head_is_in_the_log(stage: &Stage, proof: &str) {
    let head = proof.lines().find_map(|line| line.strip_prefix("admin "));
    let (seq, hash) = head.and_then(|head| head.split_once(' ')).expect("a head");
    let expect = VerifyAuditRequest {
        expect: vec![AuditHead {
            stream: "admin".into(),
            seq: seq.parse().expect("a number"),
            hash: hash.into(),
        }],
        ..Default::default()
    };
    let mut auditor = stage.daemon.actor("auditor").audit();
    let report = auditor.verify_audit(expect).await.expect("VerifyAudit");
    let report = report.into_inner();
    assert!(report.intact && report.mismatches.is_empty(), "{report:?}");
    let rows = "SELECT data FROM audit_events WHERE action = 'DestroyTenantMaterial' AND outcome = 'success'";
    let rows = stage.rows(rows).await.concat();
    for kid in stage.kids("acme").await {
        assert_eq!(
            rows.matches(&format!(r#""kid":"{kid}""#)).count(),
            1,
            "{rows}"
        );
    }
    assert!(rows.contains("proof_digest"), "{rows}");
}

async fn what_was_open_is_closed(stage: &Stage, busy: &Busy) {
    let rotation = format!(
        "SELECT state FROM rotations WHERE id = '{}'",
        busy.announced
    );
    assert_eq!(stage.rows(&rotation).await, ["CANCELLED"]);
    let open = "SELECT state FROM rotations WHERE state IN ('REQUESTED', 'APPROVED', 'DEPLOYED')";
    assert_eq!(stage.rows(open).await, [""; 0]);
    let destructions = "SELECT state FROM key_destructions";
    assert_eq!(stage.rows(destructions).await, ["CANCELLED"]);
}

#[tokio::test]
async fn a_tenant_is_destroyed_on_sqlite() {
    a_tenant_is_destroyed(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_tenant_is_destroyed_on_postgres() {
    a_tenant_is_destroyed(Engine::Postgres).await;
}

/// In time: before approval, and in the waiting period.
#[tokio::test]
async fn a_destruction_can_be_called_off_until_it_begins() {
    let stage = Stage::new(Engine::Sqlite).await;
    let key = stage
        .daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256);
    key.await;
    for (who, approved) in [("issuer", false), ("approver", true), ("officer", true)] {
        let asked = stage.ask("acme").await.expect("asked");
        if approved {
            stage.approve(&asked.id, "acme").await.expect("approved");
        }
        let cancelled = stage.cancel(who, &asked.id).await.expect(who);
        assert_eq!(cancelled.state(), TenantDestructionState::Cancelled);
        assert_eq!(cancelled.cancelled_by, stage.daemon.id_of(who).await);
        stage.make_due(&asked.id).await;
    }
    let scheduled = stage.scheduled("acme").await;
    // The scheduler has looked many times since.
    sleep(Duration::from_millis(500)).await;
    let (found, _) = stage.get(&scheduled.id).await;
    assert_eq!(found.state(), TenantDestructionState::Scheduled);
    let service = stage.daemon.actor("service");
    service.crypto().sign(sign("orders")).await.expect("Sign");
    let list = ListTenantDestructionsRequest {
        tenant: "acme".into(),
        page_size: 3,
        ..Default::default()
    };
    let mut auditor = stage.daemon.actor("auditor").erasures();
    let first = auditor.list_tenant_destructions(list.clone()).await;
    let first = first.expect("ListTenantDestructions").into_inner();
    let more = ListTenantDestructionsRequest {
        page_token: first.next_page_token.clone(),
        ..list
    };
    let rest = auditor.list_tenant_destructions(more).await;
    let rest = rest.expect("ListTenantDestructions").into_inner();
    assert_eq!((first.destructions.len(), rest.destructions.len()), (3, 1));
    assert_eq!(first.destructions[0].id, scheduled.id);
    stage.daemon.stop().await;
}

/// What people asked for or approved long ago is not what they want now.
#[tokio::test]
async fn requests_and_approvals_grow_old() {
    let stage = Stage::new(Engine::Sqlite).await;
    let key = stage
        .daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256);
    key.await;
    let ended = async |id: &str| {
        let until = Instant::now() + PATIENCE;
        loop {
            let (found, _) = stage.get(id).await;
            if found.state() == TenantDestructionState::Cancelled {
                return found;
            }
            assert!(Instant::now() < until, "{found:?}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let asked = stage.ask("acme").await.expect("asked");
    let old = format!(
        "UPDATE tenant_destructions SET requested_at = 1 WHERE id = '{}'",
        asked.id
    );
    stage.daemon.execute(&old).await;
    refused(
        stage.approve(&asked.id, "acme").await,
        STATE,
        "DESTRUCTION_STATE",
    );
    assert!(ended(&asked.id).await.cancel_reason.contains("expired"));

    let approved = stage.scheduled("acme").await;
    let old = format!(
        "UPDATE tenant_destructions SET requested_at = 1, approved_at = 2, destroy_at = 3 WHERE id = '{}'",
        approved.id
    );
    stage.daemon.execute(&old).await;
    assert!(ended(&approved.id).await.cancel_reason.contains("expired"));
    let service = stage.daemon.actor("service");
    service.crypto().sign(sign("orders")).await.expect("Sign");
    // The scheduler may have tried to begin the second one just before it was found to be old: that is a row of its own.
    let rows = "SELECT outcome FROM audit_events WHERE action = 'DestroyTenantMaterial' AND outcome = 'success'";
    assert_eq!(stage.rows(rows).await, ["success"; 2]);
    stage.daemon.stop().await;
}

#[tokio::test]
async fn bad_input_changes_nothing() {
    let stage = Stage::new(Engine::Sqlite).await;
    refused(stage.ask("system").await, INVALID, "INVALID_FIELD");
    refused(stage.ask("").await, INVALID, "INVALID_FIELD");
    refused(stage.ask("../x").await, INVALID, "INVALID_FIELD");
    let nobody = stage.ask("nobody-knows").await;
    refused(nobody, Code::NotFound, "TENANT_NOT_FOUND");
    let asked = stage.ask("acme").await.expect("asked");
    let unknown = uuid::Uuid::now_v7().to_string();
    for id in ["", "x", &asked.id.to_uppercase()] {
        refused(stage.approve(id, "acme").await, INVALID, "INVALID_FIELD");
        refused(stage.cancel("issuer", id).await, INVALID, "INVALID_FIELD");
    }
    refused(stage.approve(&asked.id, "").await, INVALID, "INVALID_FIELD");
    // R-ACL-3: somebody of another tenant cannot tell the destruction from none.
    for (who, id) in [
        ("issuer", &unknown),
        ("other", &unknown),
        ("other", &asked.id),
    ] {
        let answer = stage.cancel(who, id).await;
        refused(answer, Code::NotFound, "DESTRUCTION_NOT_FOUND");
    }
    let (found, _) = stage.get(&asked.id).await;
    assert_eq!(found, asked);
    stage.daemon.stop().await;
}

/// What nobody could prove is not begun.
#[tokio::test]
async fn without_a_key_for_the_proof_nothing_is_asked_for() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let request = DestroyTenantKeysRequest {
        tenant: "acme".into(),
        reason: "gone".into(),
    };
    let mut issuer = daemon.actor("issuer").erasures();
    let asked = issuer.destroy_tenant_keys(request).await;
    let said = refused(asked, STATE, "PROOF_KEY_MISSING");
    assert!(said.contains("[audit.checkpoint]"), "{said}");
    daemon.stop().await;
}

const KILL_AT: &str = "CLAVIGER_TEST_KILL_AT";

/// SIGKILL at every step: the next start goes on, and the proof names each version once.
async fn a_crash_at_any_step_is_resumed(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    for (i, point) in [
        "DestroyTenantMaterial.before_commit",
        "DestroyTenantMaterial.after_commit",
        // The open rotation is closed.
        "DestroyTenantMaterial.after_commit:2",
        "erase.intended",
        // One of two pairs is gone, then both.
        "erase.destroyed",
        "erase.destroyed:2",
        "DestroyTenantMaterial.before_commit:3",
        "DestroyTenantMaterial.after_commit:3",
        "erase.signed",
        "DestroyTenantMaterial.before_commit:5",
        "DestroyTenantMaterial.after_commit:5",
    ]
    .into_iter()
    .enumerate()
    {
        let tenant = format!("tenant-{i}");
        stage.tenant(&tenant).await;
        let (purpose, algorithm) = (KeyPurpose::Signing, Algorithm::Es256);
        stage.daemon.key(&tenant, "a", purpose, algorithm).await;
        let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
        stage.daemon.key(&tenant, "b", purpose, algorithm).await;
        stage.rotate(&tenant, "a").await.expect("RotateKey");
        let scheduled = stage.scheduled(&tenant).await;
        let status = stage.daemon.terminate().await;
        assert!(status.success(), "{status}");
        stage.daemon.set_env(KILL_AT, point);
        stage.daemon.up().await.expect("up");
        stage.make_due(&scheduled.id).await;
        let status = stage.daemon.ended().await;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        stage.daemon.unset_env(KILL_AT);
        stage.daemon.restart().await;
        let (done, proof) = stage.destroyed(&scheduled.id).await;
        assert_eq!(done.destroyed_versions, 3, "{point}");
        stage.assert_proved(&tenant, &proof).await;
        assert_eq!(stage.daemon.private_keys().await.len(), 1, "{point}");
    }
    let twice =
        "SELECT data FROM audit_events WHERE data LIKE '%proof_digest%' AND outcome = 'success'";
    assert_eq!(stage.rows(twice).await.len(), 11);
    stage.daemon.stop().await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_resumed_on_sqlite() {
    a_crash_at_any_step_is_resumed(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_resumed_on_postgres() {
    a_crash_at_any_step_is_resumed(Engine::Postgres).await;
}

/// What needs no device goes; people are told about the rest, which goes when the device is back.
#[tokio::test]
async fn a_device_that_is_away_holds_up_only_what_is_in_it() {
    let stage = Stage::new(Engine::Sqlite).await;
    let daemon = &stage.daemon;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    let scheduled = stage.scheduled("acme").await;
    let (here, away) = (daemon.path("tokens"), daemon.path("tokens.away"));
    fs::rename(&here, &away).expect("moved away");
    fs::create_dir(&here).expect("an empty directory");
    stage.make_due(&scheduled.id).await;
    let stuck = "SELECT entity_id FROM alerts WHERE kind = 'TENANT_DESTRUCTION_STUCK'";
    let until = Instant::now() + PATIENCE;
    loop {
        let (found, proof) = stage.get(&scheduled.id).await;
        assert_eq!(proof, "");
        let told = !stage.rows(stuck).await.is_empty();
        if found.destroyed_versions == 1 && told {
            break;
        }
        assert!(Instant::now() < until, "{found:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let left = "SELECT k.name FROM key_versions v JOIN keys k ON k.id = v.key_id \
                WHERE k.tenant = 'acme' AND v.state <> 'DESTROYED'";
    assert_eq!(stage.rows(left).await, ["orders"]);
    refused(
        stage.cancel("officer", &scheduled.id).await,
        STATE,
        "DESTRUCTION_STATE",
    );
    // Not even now.
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    let mut issuer = daemon.actor("issuer").keys();
    let created = issuer.create_key(create("more", purpose, algorithm)).await;
    refused(created, STATE, "TENANT_ERASED");
    fs::remove_dir(&here).expect("still empty");
    fs::rename(&away, &here).expect("moved back");
    let (_, proof) = stage.destroyed(&scheduled.id).await;
    stage.assert_proved("acme", &proof).await;
    assert_eq!(daemon.private_keys().await.len(), 1);
    stage.daemon.stop().await;
}

/// A release that does not know of erased tenants would go on creating keys in this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_begins_while_a_replica_of_an_earlier_release_lives() {
    let stage = Stage::new(Engine::Postgres).await;
    let daemon = &stage.daemon;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    let scheduled = stage.scheduled("acme").await;
    let now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
    let insert = "INSERT INTO replicas (name, seen_seq, seen_at, max_staleness) VALUES";
    // It looks again and again, for as long as this test takes.
    let row = format!("('before/1', 0, {now} + 3600000000, 5000000)");
    daemon.execute(&format!("{insert} {row}")).await;
    stage.make_due(&scheduled.id).await;
    let stuck = "SELECT text FROM alerts WHERE kind = 'TENANT_DESTRUCTION_STUCK'";
    let until = Instant::now() + PATIENCE;
    let told = loop {
        if let Some(text) = stage.rows(stuck).await.pop() {
            break text;
        }
        assert!(Instant::now() < until, "nobody is told");
        sleep(Duration::from_millis(50)).await;
    };
    assert!(told.contains("replica before/1"), "{told}");
    let (found, _) = stage.get(&scheduled.id).await;
    assert_eq!(found.state(), TenantDestructionState::Scheduled);
    let erased = "SELECT name FROM tenants WHERE erased_at IS NOT NULL";
    assert!(stage.rows(erased).await.is_empty());
    daemon
        .execute("DELETE FROM replicas WHERE name = 'before/1'")
        .await;
    stage.destroyed(&scheduled.id).await;
    stage.daemon.stop().await;
}

/// More than a page of destructions that fail keep none of the others from being carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destructions_that_fail_starve_no_other() {
    const FAIL: usize = 25;
    let stage = Stage::new(Engine::Sqlite).await;
    let daemon = &stage.daemon;
    let mut failing = Vec::new();
    for number in 0..FAIL {
        let tenant = format!("bad-{number}");
        stage.tenant(&tenant).await;
        failing.push(stage.scheduled(&tenant).await.id);
    }
    stage.tenant("good").await;
    let last = stage.scheduled("good").await;
    // Nobody can prove these: their rows do not say who agreed.
    let broken = "UPDATE tenant_destructions SET approver = NULL WHERE tenant LIKE 'bad-%'";
    daemon.execute(broken).await;
    let due =
        "UPDATE tenant_destructions SET destroy_at = CASE WHEN tenant = 'good' THEN 2 ELSE 1 END";
    daemon.execute(due).await;
    stage.destroyed(&last.id).await;
    let done =
        "SELECT id FROM tenant_destructions WHERE tenant LIKE 'bad-%' AND state = 'DESTROYED'";
    assert!(stage.rows(done).await.is_empty(), "they were to fail");
    stage.daemon.stop().await;
}

/// The people's commands, from asking to the proof.
#[tokio::test]
async fn people_destroy_a_tenant_on_the_command_line() {
    let stage = Stage::new(Engine::Sqlite).await;
    let daemon = &stage.daemon;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let request = ["--as", "issuer", "tenant", "destroy", "request", "acme"];
    let request = [&request[..], &["--reason", "the contract has ended"]].concat();
    for confirm in [&[][..], &["--confirm", "acm"]] {
        let output = daemon.cli(&[&request[..], confirm].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let open = "SELECT id FROM tenant_destructions";
    assert_eq!(stage.rows(open).await, [""; 0]);
    let said = daemon
        .cli_ok(&[&request[..], &["--confirm", "acme"]].concat())
        .await;
    let id = stage.rows(open).await.remove(0);
    assert!(said.contains(&format!("tenant destroy approve {id} --tenant acme")));
    let approve = ["tenant", "destroy", "approve", &id, "--tenant", "acme"];
    let said = daemon
        .cli_ok(&[&["--as", "approver"][..], &approve[..]].concat())
        .await;
    assert!(said.contains("SCHEDULED") && said.contains("unless it is cancelled"));
    stage.make_due(&id).await;
    stage.destroyed(&id).await;
    let get = ["--as", "auditor", "tenant", "destroy", "get", &id];
    let said = daemon.cli_ok(&get).await;
    assert!(
        said.contains("DESTROYED") && said.contains("0 left, 1 destroyed"),
        "{said}"
    );
    let proof = daemon.cli_ok(&[&get[..], &["--proof"]].concat()).await;
    assert!(
        judged(&proof, &stage.proof_key, Algorithm::Es256),
        "{proof}"
    );
    let list = [
        "--as", "auditor", "tenant", "destroy", "list", "--tenant", "acme",
    ];
    let said = daemon.cli_ok(&list).await;
    assert!(said.contains(&id) && said.contains("DESTROYED"), "{said}");
    stage.daemon.stop().await;
}

async fn usage(daemon: &Daemon, key: &str) -> Vec<KeyVersionUsage> {
    let request = GetKeyVersionUsageRequest {
        tenant: "acme".into(),
        key: key.into(),
    };
    let mut keys = daemon.actor("auditor").keys();
    let usage = keys.get_key_version_usage(request).await;
    usage.expect("GetKeyVersionUsage").into_inner().versions
}

fn counts(usage: &KeyVersionUsage) -> [i64; 4] {
    [usage.made, usage.opened, usage.rewrapped, usage.remaining]
}

// R-CARD-2: how much is left under an old version, without a write per call.
async fn uses_are_counted(engine: Engine) {
    // Written once an hour, and when somebody asks.
    let daemon = Setup::new(engine)
        .replace("max_age_seconds = 1", "max_age_seconds = 0")
        .append("[keys]\nlast_used_interval_seconds = 3600")
        .start()
        .await;
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    daemon.key("acme", "vault", purpose, algorithm).await;
    let mut crypto = daemon.actor("service").crypto();
    let item = |reference: &str| batch_encrypt_request::Item {
        reference: reference.into(),
        request: Some(encrypt("vault")),
    };
    let batch = BatchEncryptRequest {
        items: vec![item("a"), item("b")],
    };
    crypto.batch_encrypt(batch).await.expect("BatchEncrypt");
    let mut sealed = Vec::new();
    for _ in 0..3 {
        let answer = crypto.encrypt(encrypt("vault")).await.expect("Encrypt");
        sealed.push(answer.into_inner());
    }
    crypto
        .decrypt(decrypt("vault", &sealed[0]))
        .await
        .expect("Decrypt");
    let mut broken = decrypt("vault", &sealed[0]);
    let mut bytes = broken.ciphertext.to_vec();
    *bytes.last_mut().expect("bytes") ^= 1;
    broken.ciphertext = bytes.into();
    crypto.decrypt(broken).await.expect_err("changed");
    let written = "SELECT made FROM key_versions";
    assert_eq!(daemon.rows(written).await, [["0"]], "a write per call");
    let now = usage(&daemon, "vault").await;
    assert_eq!(counts(&now[0]), [5, 1, 0, 5]);
    assert!(now[0].last_use_time.is_some() && !now[0].kek.is_empty());

    daemon.rotated("acme", "vault").await;
    for sealed in &sealed {
        let request = RewrapRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            ciphertext: sealed.ciphertext.clone(),
            aad: BTreeMap::new(),
        };
        crypto.rewrap(request).await.expect("Rewrap");
    }
    let now = usage(&daemon, "vault").await;
    assert_eq!(counts(&now[0]), [5, 1, 3, 2]);
    assert_eq!(counts(&now[1]), [3, 0, 0, 3]);
    let shown = [
        "--as", "auditor", "key", "usage", "vault", "--tenant", "acme",
    ];
    let shown = daemon.cli_ok(&shown).await;
    assert!(
        shown.contains("[############........] 2 remaining"),
        "{shown}"
    );

    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    crypto.sign(sign("orders")).await.expect("Sign");
    crypto.sign(sign("orders")).await.expect("Sign");
    assert_eq!(counts(&usage(&daemon, "orders").await[0]), [2, 0, 0, 2]);
    let hooks = create("hooks", KeyPurpose::Mac, Algorithm::Hs256);
    let created = daemon.actor("issuer").keys().create_key(hooks).await;
    created.expect("CreateKey");
    let mut macs = daemon.actor("service").macs();
    let mac = macs.compute_mac(compute_mac("hooks")).await;
    let mac = mac.expect("ComputeMac").into_inner().mac;
    let wrong = Bytes::from(vec![0; 32]);
    for (mac, valid) in [(&mac, true), (&mac, true), (&wrong, false)] {
        let verified = macs.verify_mac(verify_mac("hooks", mac)).await;
        let verified = verified.expect("VerifyMac").into_inner();
        assert_eq!(verified.valid, valid);
    }
    assert_eq!(counts(&usage(&daemon, "hooks").await[0]), [1, 2, 0, 1]);
    daemon.stop().await;
}

#[tokio::test]
async fn uses_are_counted_on_sqlite() {
    uses_are_counted(Engine::Sqlite).await;
}

#[tokio::test]
async fn uses_are_counted_on_postgres() {
    uses_are_counted(Engine::Postgres).await;
}

/// Credentials of a tenant whose keys are destroyed.
async fn the_vault_of_a_tenant_is_gone(engine: Engine) {
    const SECRET: &str = "sk-aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3";
    const NEXT: &str = "sk-zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9";
    let stage = Stage::new(engine).await;
    let service = stage.daemon.actor("service");
    let owner = stage.daemon.id_of("service").await;
    let mut admin = stage.daemon.actor("admin").principals();
    let change = UpdatePrincipalRequest {
        principal_id: owner.clone(),
        add_scopes: vec!["can.use_users".into(), "can.lease_credentials".into()],
        ..Default::default()
    };
    admin
        .update_principal(change)
        .await
        .expect("UpdatePrincipal");
    let field = |secret: &str| CredentialField {
        name: "api_key".into(),
        value: secret.to_owned().into(),
    };
    let put = PutCredentialRequest {
        owner_id: owner.clone(),
        provider: "openai".into(),
        environment: CredentialEnvironment::Production.into(),
        fields: vec![field(SECRET)],
        ..Default::default()
    };
    let stored = service.credentials().put_credential(put).await;
    let stored = stored.expect("PutCredential").into_inner().credential;
    let id = stored.expect("a credential").id;
    let lease = async || {
        let request = LeaseCredentialRequest {
            credential_id: id.clone(),
            ttl: None,
        };
        let leased = service.leases().lease_credential(request).await?;
        Ok::<_, Status>(leased.into_inner().lease.expect("a lease"))
    };
    let reveal = async || {
        let request = RevealCredentialRequest {
            credential_id: id.clone(),
            reason: "a test".into(),
            ..Default::default()
        };
        let revealed = service.credentials().reveal_credential(request).await?;
        Ok::<_, Status>(revealed.into_inner().fields)
    };
    let renew = async |lease: &Lease| {
        let request = RenewLeaseRequest {
            lease_id: lease.id.clone(),
            ttl: None,
        };
        service.leases().renew_lease(request).await
    };
    let held = lease().await.expect("LeaseCredential");
    let staging = StageCredentialRequest {
        credential_id: id.clone(),
        fields: vec![field(NEXT)],
        hold: None,
    };
    let mut rotations = service.credential_rotations();
    let staged = rotations.stage_credential(staging).await;
    let staged = staged.expect("StageCredential").into_inner().rotation;

    // Until it begins, all is as it was.
    let destruction = stage.scheduled("acme").await;
    assert_eq!(reveal().await.expect("RevealCredential").len(), 1);
    renew(&held).await.expect("RenewLease");
    stage.make_due(&destruction.id).await;
    stage.destroyed(&destruction.id).await;

    let erased = "TENANT_ERASED";
    refused(reveal().await, STATE, erased);
    refused(lease().await, STATE, erased);
    let renewed = renew(&held).await;
    assert_eq!(renewed.expect_err("over").code(), STATE);
    let get = GetCredentialRequest {
        credential_id: id.clone(),
    };
    refused(
        service.credentials().get_credential(get).await,
        STATE,
        erased,
    );
    let list = ListCredentialsRequest {
        owner_id: "me".into(),
        ..Default::default()
    };
    refused(
        service.credentials().list_credentials(list).await,
        STATE,
        erased,
    );
    let promote = PromoteCredentialRequest {
        rotation_id: staged.expect("a rotation").id,
        without_probe: true,
    };
    refused(rotations.promote_credential(promote).await, STATE, erased);
    // Nothing is held, and no row is under a key that is left.
    let held = "SELECT id FROM credential_leases WHERE ended_at IS NULL";
    assert!(stage.rows(held).await.is_empty());
    let left = "SELECT v.id FROM user_broker_credentials v JOIN key_versions k ON k.kid = v.kid \
                WHERE v.tenant = 'acme' AND k.state <> 'DESTROYED'";
    assert!(stage.rows(left).await.is_empty());
    stage.daemon.stop().await;
}

// R-OPS-5, R-CRED-1: with the keys of a tenant goes what was sealed by them.
#[tokio::test]
async fn the_vault_of_a_tenant_is_gone_with_its_keys_on_sqlite() {
    the_vault_of_a_tenant_is_gone(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_vault_of_a_tenant_is_gone_with_its_keys_on_postgres() {
    the_vault_of_a_tenant_is_gone(Engine::Postgres).await;
}
