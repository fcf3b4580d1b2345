//! The five tests that R-JWT-5 names. Each runs over real daemons on SQLite and on PostgreSQL, through the gRPC port
//! and the public port that verifiers read the JWK Set from.

mod relying_party;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use claviger::grpc::proto::{incident_service_client::IncidentServiceClient, *};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::relying_party::RelyingParty;
use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup};

const ENGINES: [Engine; 2] = [Engine::Sqlite, Engine::Postgres];
const AUDIENCE: &str = "orders-api";

/// A daemon with one token key, `jwt`.
async fn daemon(engine: Engine) -> (Daemon, Key) {
    let daemon = Daemon::start(engine).await;
    let purpose = KeyPurpose::TokenSigning;
    let key = daemon.key("acme", "jwt", purpose, Algorithm::Es256).await;
    (daemon, key)
}

fn request(ttl: i64) -> IssueTokenRequest {
    IssueTokenRequest {
        key: "jwt".into(),
        audience: vec![AUDIENCE.into()],
        ttl: Some(prost_types::Duration {
            seconds: ttl,
            nanos: 0,
        }),
        ..Default::default()
    }
}

async fn issued(daemon: &Daemon) -> IssueTokenResponse {
    let mut service = daemon.actor("service").tokens();
    let answer = service.issue_token(request(900)).await;
    answer.expect("IssueToken").into_inner()
}

async fn verdict(service: &Actor, token: &str) -> VerifyTokenResponse {
    let request = VerifyTokenRequest {
        token: token.into(),
        audience: AUDIENCE.into(),
        ..Default::default()
    };
    let answer = service.tokens().verify_token(request).await;
    answer.expect("VerifyToken").into_inner()
}

/// VerifyToken says no for this reason, the audit log has it, and a verifier with the JWK Set alone says no too.
async fn rejected(daemon: &Daemon, token: &str, why: TokenRejection) {
    let answer = verdict(&daemon.actor("service"), token).await;
    let found = (answer.valid, answer.rejection(), answer.claims);
    assert_eq!(found, (false, why, None));
    let last =
        "SELECT data FROM audit_events WHERE action = 'VerifyToken' ORDER BY seq DESC LIMIT 1";
    let data: Value = serde_json::from_str(&daemon.rows(last).await[0][0]).expect("JSON");
    let why = why.as_str_name().replace("TOKEN_REJECTION_", "");
    assert_eq!(data, json!({ "rejection": why }));
    let party = RelyingParty::new(daemon);
    assert!(party.accepts(token).await.is_err());
}

async fn accepted(daemon: &Daemon, token: &IssueTokenResponse) {
    let answer = verdict(&daemon.actor("service"), &token.token).await;
    assert!(answer.valid, "{:?}", answer.rejection());
    let party = RelyingParty::new(daemon);
    assert_eq!(party.accepts(&token.token).await.as_ref(), Ok(&token.kid));
}

/// The token with another kid in its header.
fn with_kid(token: &str, kid: &str) -> String {
    let (header, rest) = token.split_once('.').expect("a token");
    let header = B64.decode(header).expect("base64url");
    let mut header: Value = serde_json::from_slice(&header).expect("JSON");
    header["kid"] = kid.into();
    format!("{}.{rest}", B64.encode(header.to_string()))
}

/// Moves the end of a grace window into the past, with the mark that it is reckoned from.
async fn end_grace(daemon: &Daemon, rotation: &Rotation) {
    let end = format!(
        "UPDATE rotations SET grace_ends_at = 1 WHERE id = '{}' AND state = 'DEPLOYED'; \
         UPDATE key_versions SET last_token_exp = 1 WHERE kid = '{}'",
        rotation.id, rotation.old_kid
    );
    daemon.execute(&end).await;
}

// R-JWT-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_with_unknown_kid_is_rejected() {
    for engine in ENGINES {
        let (daemon, _) = daemon(engine).await;
        let good = issued(&daemon).await;
        accepted(&daemon, &good).await;
        let unknown = "A".repeat(43);
        let forged = with_kid(&good.token, &unknown);
        rejected(&daemon, &forged, TokenRejection::UnknownKid).await;
        // A kid of the very same daemon is as unknown where another tenant's tokens are expected.
        let purpose = KeyPurpose::TokenSigning;
        let key = daemon.key("globex", "jwt", purpose, Algorithm::Es256).await;
        let forged = with_kid(&good.token, &key.active_kid);
        rejected(&daemon, &forged, TokenRejection::UnknownKid).await;
        accepted(&daemon, &good).await;
        daemon.stop().await;
    }
}

// R-JWT-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_with_retired_kid_is_rejected() {
    for engine in ENGINES {
        let (daemon, key) = daemon(engine).await;
        let old = issued(&daemon).await;
        let rotation = daemon.rotated("acme", "jwt").await;
        assert_eq!(rotation.old_kid, old.kid);
        // Inside the grace window both verify.
        let new = issued(&daemon).await;
        assert_ne!(new.kid, old.kid);
        accepted(&daemon, &old).await;
        accepted(&daemon, &new).await;
        // The token has a quarter of an hour to live; the test has not.
        end_grace(&daemon, &rotation).await;
        daemon.completed(&rotation).await;
        rejected(&daemon, &old.token, TokenRejection::RetiredKid).await;
        accepted(&daemon, &new).await;
        let retired = "SELECT entity_id FROM audit_events WHERE action = 'CompleteRotation' AND outcome = 'success'";
        assert_eq!(daemon.rows(retired).await, [[rotation.id.clone()]]);
        let states = format!(
            "SELECT state FROM key_versions WHERE key_id = '{}' ORDER BY number",
            key.id
        );
        assert_eq!(daemon.rows(&states).await, [["RETIRED"], ["ACTIVE"]]);
        daemon.stop().await;
    }
}

/// What the load of one no-downtime run amounted to.
#[derive(Default)]
struct Tally {
    issued: AtomicUsize,
    /// Verdicts of the relying party and of VerifyToken.
    verdicts: AtomicUsize,
    over: AtomicBool,
}

/// Tokens live this long, in seconds; so long is the grace window.
const TTL: i64 = 5;

/// Issues until it is told to stop, and has every token verified at once, half-way, and just before its end.
async fn issue_and_verify(
    service: Actor,
    party: Arc<RelyingParty>,
    tally: Arc<Tally>,
) -> BTreeSet<String> {
    let mut kids = BTreeSet::new();
    let mut checks = JoinSet::new();
    while !tally.over.load(Ordering::SeqCst) {
        let answer = service.tokens().issue_token(request(TTL)).await;
        let token = answer.expect("IssueToken").into_inner();
        tally.issued.fetch_add(1, Ordering::SeqCst);
        kids.insert(token.kid.clone());
        let (service, party, tally) = (service.clone(), Arc::clone(&party), Arc::clone(&tally));
        checks.spawn(async move {
            let end = token.expire_time.expect("exp").seconds * 1000;
            for before_the_end in [end, 2500, 400] {
                let left = end - before_the_end - jiff::Timestamp::now().as_millisecond();
                sleep(Duration::from_millis(left.try_into().unwrap_or(0))).await;
                let locally = party.accepts(&token.token).await;
                assert_eq!(locally, Ok(token.kid.clone()), "by the cached JWK Set");
                let answer = verdict(&service, &token.token).await;
                assert!(answer.valid, "{:?} by VerifyToken", answer.rejection());
                tally.verdicts.fetch_add(2, Ordering::SeqCst);
            }
        });
        // Load enough; the machine has other tests to carry.
        sleep(Duration::from_millis(50)).await;
    }
    while let Some(check) = checks.join_next().await {
        check.expect("no valid token is rejected");
    }
    kids
}

async fn no_downtime(engine: Engine) {
    // The soak is 3 seconds, and the grace window a token's life and the skew.
    let daemon = Setup::new(engine)
        .replace("max_age_seconds = 1", "max_age_seconds = 2")
        .replace("clock_skew_seconds = 0", "clock_skew_seconds = 1")
        .start()
        .await;
    let purpose = KeyPurpose::TokenSigning;
    let key = daemon.key("acme", "jwt", purpose, Algorithm::Es256).await;
    let party = Arc::new(RelyingParty::new(&daemon));
    let tally = Arc::new(Tally::default());
    let mut issuers = JoinSet::new();
    for _ in 0..3 {
        let service = daemon.actor_with(Some(daemon.leaf("service")));
        issuers.spawn(issue_and_verify(
            service,
            Arc::clone(&party),
            Arc::clone(&tally),
        ));
    }
    let mut kids = vec![key.active_kid];
    for _ in 0..3 {
        let rotation = daemon.rotated("acme", "jwt").await;
        // Long enough for the last token of the old version, verified until just before its end: had the scheduler
        // retired the version before that, it would have been rejected. After that the scheduler would wait for the
        // full minutes that it reckons in, and the test does not.
        sleep(Duration::from_secs(TTL.unsigned_abs() + 1)).await;
        end_grace(&daemon, &rotation).await;
        daemon.completed(&rotation).await;
        kids.push(rotation.new_kid);
    }
    tally.over.store(true, Ordering::SeqCst);
    let mut signed = BTreeSet::new();
    while let Some(kids) = issuers.join_next().await {
        signed.extend(kids.expect("no call fails and no valid token is rejected"));
    }
    assert_eq!(signed, kids.iter().cloned().collect());
    let (issued, verdicts) = (&tally.issued, &tally.verdicts);
    let (issued, verdicts) = (
        issued.load(Ordering::SeqCst),
        verdicts.load(Ordering::SeqCst),
    );
    assert_eq!(verdicts, 6 * issued);
    assert!(issued > 300, "{issued} tokens are no load");
    // It fetched when its copy was too old, and not more often.
    let fetched = party.fetched();
    assert!((6..60).contains(&fetched), "{fetched} times fetched");
    println!("{engine:?}: {issued} tokens, {verdicts} verdicts, {fetched} fetches, 0 rejected");
    daemon.stop().await;
}

// R-JWT-5, R-LIFE-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_causes_no_verification_downtime() {
    for engine in ENGINES {
        no_downtime(engine).await;
    }
}

// R-JWT-5, R-EMER-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emergency_rotation_invalidates_tokens() {
    for engine in ENGINES {
        let (daemon, key) = daemon(engine).await;
        let old = issued(&daemon).await;
        accepted(&daemon, &old).await;
        let mut officer = IncidentServiceClient::new(daemon.actor("officer").channel);
        let request = DeclareCompromiseRequest {
            tenant: "acme".into(),
            key: "jwt".into(),
            kid: old.kid.clone(),
            reason: "the token was seen in a paste".into(),
        };
        let declared = officer.declare_compromise(request).await;
        let declared = declared.expect("DeclareCompromise").into_inner();
        let incident = declared.incident.expect("an incident");
        assert_eq!(incident.kid, key.active_kid);
        // From the answer on, not a moment later.
        rejected(&daemon, &old.token, TokenRejection::CompromisedKid).await;
        // Nobody signs with it any more; a successor takes over without a soak.
        let until = Instant::now() + PATIENCE;
        let new = loop {
            match daemon
                .actor("service")
                .tokens()
                .issue_token(self::request(900))
                .await
            {
                Ok(answer) => break answer.into_inner(),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}")
                }
            }
            assert!(
                Instant::now() < until,
                "nothing replaces the compromised key"
            );
            sleep(Duration::from_millis(50)).await;
        };
        assert_ne!(new.kid, old.kid);
        accepted(&daemon, &new).await;
        rejected(&daemon, &old.token, TokenRejection::CompromisedKid).await;
        daemon.stop().await;
    }
}

/// The audit row of a change, found by its receipt.
async fn row_of(daemon: &Daemon, receipt: Option<Receipt>) -> AuditEvent {
    let receipt = receipt.expect("a receipt");
    let request = ListAuditEventsRequest {
        tenant: "acme".into(),
        stream: "admin".into(),
        page_size: 1000,
        ..Default::default()
    };
    let mut auditor = daemon.actor("auditor").audit();
    let page = auditor.list_audit_events(request).await;
    let events = page.expect("ListAuditEvents").into_inner().events;
    let row = events.into_iter().find(|event| event.seq == receipt.seq);
    let row = row.unwrap_or_else(|| panic!("no row {}", receipt.seq));
    assert_eq!(row.hash, receipt.hash);
    row
}

// R-JWT-5, R-LIFE-6, R-ACL-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_events_exist_for_create_rotate_revoke() {
    for engine in ENGINES {
        let daemon = Daemon::start(engine).await;
        let create = CreateKeyRequest {
            tenant: "acme".into(),
            name: "jwt".into(),
            purpose: KeyPurpose::TokenSigning.into(),
            algorithm: Algorithm::Es256.into(),
            owner: "team-e2e".into(),
            ..Default::default()
        };
        let (issuer, officer) = (daemon.actor("issuer"), daemon.actor("officer"));
        let created = issuer.keys().create_key(create).await;
        let created = created.expect("CreateKey").into_inner();
        let key = created.key.expect("a key");
        let mut rows = vec![("issuer", "CreateKey", key.id.clone(), created.receipt)];
        let rotate = RotateKeyRequest {
            tenant: "acme".into(),
            key: "jwt".into(),
            justification: "every 90 days".into(),
            ..RotateKeyRequest::default()
        };
        let opened = issuer.rotations().rotate_key(rotate).await;
        let opened = opened.expect("RotateKey").into_inner();
        let rotation = opened.rotation.expect("a rotation");
        let id = rotation.id.clone();
        rows.push(("issuer", "RotateKey", id.clone(), opened.receipt));
        let approve = ApproveRotationRequest {
            rotation_id: id.clone(),
            plan_digest: rotation.plan_digest,
        };
        let approved = daemon
            .actor("approver")
            .rotations()
            .approve_rotation(approve)
            .await;
        let approved = approved.expect("ApproveRotation").into_inner();
        rows.push(("approver", "ApproveRotation", id.clone(), approved.receipt));
        let deploy = DeployRotationRequest {
            rotation_id: id.clone(),
        };
        let until = Instant::now() + PATIENCE;
        let deployed = loop {
            let mut deployer = daemon.actor("deployer").rotations();
            match deployer.deploy_rotation(deploy.clone()).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => assert_eq!(crate::daemon::reason(&status), "ROTATION_SOAKING"),
            }
            assert!(Instant::now() < until, "it soaks for ever");
            sleep(Duration::from_millis(50)).await;
        };
        rows.push(("deployer", "DeployRotation", id, deployed.receipt));
        let revoke = RevokeKeyVersionRequest {
            tenant: "acme".into(),
            key: "jwt".into(),
            kid: rotation.old_kid.clone(),
            reason: "nobody needs it".into(),
        };
        let revoked = officer.keys().revoke_key_version(revoke).await;
        let revoked = revoked.expect("RevokeKeyVersion").into_inner();
        rows.push((
            "officer",
            "RevokeKeyVersion",
            key.id.clone(),
            revoked.receipt,
        ));
        let token = issued(&daemon).await;
        let revoke = RevokeTokenRequest {
            tenant: "acme".into(),
            jti: token.jti.clone(),
            expire_time: token.expire_time,
            reason: "sent to the wrong place".into(),
        };
        let revoked = officer.tokens().revoke_token(revoke).await;
        let revoked = revoked.expect("RevokeToken").into_inner();
        let receipt = revoked.receipt.clone();

        for (actor, action, entity_id, receipt) in rows {
            let row = row_of(&daemon, receipt).await;
            assert_eq!(row.actor, daemon.id_of(actor).await, "{action}");
            assert_eq!(
                (row.action.as_str(), row.entity_id.as_str()),
                (action, entity_id.as_str())
            );
            assert_eq!(row.outcome(), AuditOutcome::Success);
            assert!(row.time.is_some() && row.tenant == "acme", "{row:?}");
            let data: Value = serde_json::from_str(&row.data).expect("JSON");
            assert!(
                data.as_object().is_some_and(|data| !data.is_empty()),
                "{action}"
            );
        }
        let row = row_of(&daemon, receipt).await;
        assert_eq!(
            (row.actor.as_str(), row.action.as_str()),
            (daemon.id_of("officer").await.as_str(), "RevokeToken")
        );
        assert!(
            row.entity_id.contains(&token.jti) || row.data.contains(&token.jti),
            "{row:?}"
        );
        // Only who asks the daemon learns of a revoked jti: the JWK Set says nothing about single tokens.
        let answer = verdict(&daemon.actor("service"), &token.token).await;
        assert_eq!(answer.rejection(), TokenRejection::Revoked);
        daemon.stop().await;
    }
}
