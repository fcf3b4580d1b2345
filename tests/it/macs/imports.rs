//! Secrets that somebody else chose: taken over, never given back, replaced by people alone.

use super::*;
use claviger::clock::Clock;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    daemon::PATIENCE,
    rpcs::{send, send_with},
};

const SECRET: &[u8] = b"whsec canary 3f1c9b72e4";
const NEXT: &[u8] = b"whsec canary 90aa51d7c8";
const PATH: &str = "/claviger.v1.KeyService/ImportKey";

fn rotate(key: &str, secret: &[u8]) -> RotateKeyRequest {
    RotateKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        justification: "the provider changed it".into(),
        secret: Bytes::copy_from_slice(secret),
    }
}

async fn rotate_refused(daemon: &Daemon, key: &str, secret: &[u8]) {
    let mut issuer = daemon.actor("issuer").rotations();
    let answer = issuer.rotate_key(rotate(key, secret)).await;
    refused(answer, Code::InvalidArgument, "INVALID_FIELD");
}

/// To this secret, by the three people that it takes.
pub async fn rotated_to(daemon: &Daemon, key: &str, secret: &[u8]) -> Rotation {
    let mut issuer = daemon.actor("issuer").rotations();
    let opened = issuer.rotate_key(rotate(key, secret)).await;
    let opened = opened.expect("RotateKey").into_inner().rotation;
    let opened = opened.expect("a rotation");
    let approve = ApproveRotationRequest {
        rotation_id: opened.id.clone(),
        plan_digest: opened.plan_digest.clone(),
    };
    let mut approver = daemon.actor("approver").rotations();
    approver
        .approve_rotation(approve)
        .await
        .expect("ApproveRotation");
    let deploy = DeployRotationRequest {
        rotation_id: opened.id,
    };
    let mut deployer = daemon.actor("deployer").rotations();
    let deployed = deployer.deploy_rotation(deploy).await;
    let deployed = deployed.expect("DeployRotation").into_inner().rotation;
    deployed.expect("a rotation")
}

async fn by_python(secret: &[u8]) -> Vec<u8> {
    hmac("sha256", secret, b"m").await
}

// R-ENV-2: no secret in a log, a row, an audit row or an error.
#[tokio::test]
async fn an_imported_secret_is_found_nowhere() {
    let mut daemon = setup(Engine::Sqlite)
        .append("\n[log]\nlevel = \"trace\"\n")
        .start()
        .await;
    imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    // Errors on every way that a secret can take.
    let mut issuer = daemon.actor("issuer").keys();
    let again = issuer
        .import_key(import("hooks", Algorithm::Hs256, SECRET))
        .await;
    let mut said = again.expect_err("the name is taken").to_string();
    let wrong = issuer
        .import_key(import("other", Algorithm::Es256, SECRET))
        .await;
    said += &wrong.expect_err("no MAC algorithm").to_string();
    let mut rotations = daemon.actor("issuer").rotations();
    let same = rotations.rotate_key(rotate("hooks", SECRET)).await;
    said += &same.expect_err("the same secret").to_string();
    let stranger = daemon.actor("service").keys();
    let denied = { stranger }
        .import_key(import("mine", Algorithm::Hs256, SECRET))
        .await;
    said += &denied.expect_err("not permitted").to_string();
    rotated_to(&daemon, "hooks", NEXT).await;
    let events = daemon.rows("SELECT data FROM audit_events").await;
    let details: String = events.concat().concat();
    assert!(details.contains(r#""origin":"imported""#), "{details}");
    let status = daemon.terminate().await;
    assert!(status.success());
    let mut places = vec![
        ("errors", said.into_bytes()),
        ("audit", details.into_bytes()),
    ];
    places.push(("log", daemon.log().into_bytes()));
    for entry in std::fs::read_dir(daemon.path(".")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            places.push(("file", std::fs::read(path).expect("a file")));
        }
    }
    assert!(places.len() > 5, "the database is among the files");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for secret in [SECRET, NEXT] {
        let base64 = base64::Engine::encode(&base64::prelude::BASE64_STANDARD_NO_PAD, secret);
        for needle in [secret, hex(secret).as_bytes(), base64.as_bytes()] {
            for (place, bytes) in &places {
                let found = bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "a secret is in {place}");
            }
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_none_is_refused() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let mut issuer = daemon.actor("issuer").keys();
    for secret in [
        &b""[..],
        b"fifteen bytes..",
        &[0; 32],
        &[b'x'; 512],
        &[7; 513],
    ] {
        let answer = issuer
            .import_key(import("hooks", Algorithm::Hs256, secret))
            .await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    for algorithm in [Algorithm::Es256, Algorithm::A256gcm] {
        let answer = issuer.import_key(import("hooks", algorithm, SECRET)).await;
        refused(answer, Code::InvalidArgument, "ALGORITHM_MISMATCH");
    }
    assert!(
        daemon
            .rows("SELECT id FROM keys WHERE name = 'hooks'")
            .await
            .is_empty()
    );
    daemon.stop().await;
}

// R-LIFE-7
#[tokio::test]
async fn an_imported_key_rotates_to_the_secret_that_people_bring() {
    let daemon = setup(Engine::Sqlite).start().await;
    let key = imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    let policy = key.rotation_policy.expect("a policy");
    assert_eq!(policy.mode(), RotationMode::Manual);
    rotate_refused(&daemon, "hooks", b"").await;
    rotate_refused(&daemon, "hooks", b"short").await;
    rotate_refused(&daemon, "hooks", SECRET).await;
    // HMAC pads its key with zeros, so this is the same key.
    rotate_refused(&daemon, "hooks", &[SECRET, &[0, 0]].concat()).await;
    mac_key(&daemon, "made", Algorithm::Hs256).await;
    rotate_refused(&daemon, "made", NEXT).await;

    let rotation = rotated_to(&daemon, "hooks", NEXT).await;
    let made = computed(&daemon, "hooks", b"m").await;
    assert_eq!(
        (made.kid, made.mac.to_vec()),
        (rotation.new_kid.clone(), by_python(NEXT).await)
    );
    let old = verify("hooks", b"m", &by_python(SECRET).await);
    assert_eq!(verified(&daemon, old.clone()).await, key.active_kid);
    // Nor may it go back to a secret that it had.
    rotate_refused(&daemon, "hooks", SECRET).await;

    // A compromised secret is replaced by one that nobody knows; then people bring the next one.
    declared(&daemon, "hooks", &key.active_kid).await;
    assert_eq!(verified(&daemon, old).await, "");
    declared(&daemon, "hooks", &rotation.new_kid).await;
    for secret in [SECRET, NEXT] {
        let mac = by_python(secret).await;
        assert_eq!(verified(&daemon, verify("hooks", b"m", &mac)).await, "");
        rotate_refused(&daemon, "hooks", secret).await;
    }
    rotate_refused(&daemon, "hooks", b"").await;
    let third = b"whsec the third of them";
    rotated_to(&daemon, "hooks", third).await;
    let mac = by_python(third).await;
    assert_ne!(verified(&daemon, verify("hooks", b"m", &mac)).await, "");
    daemon.stop().await;
}

/// A row that cannot be compared must not keep the key from ever rotating again.
#[tokio::test]
async fn an_imported_key_rotates_although_an_old_version_is_damaged() {
    let mut daemon = setup(Engine::Sqlite).start().await;
    let key = imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    rotated_to(&daemon, "hooks", NEXT).await;
    let spoil = format!(
        "UPDATE key_versions SET wrapped_key = x'00' WHERE kid = '{}'",
        key.active_kid
    );
    daemon.execute(&spoil).await;
    // So that nothing of it is in memory.
    daemon.restart().await;
    rotate_refused(&daemon, "hooks", NEXT).await;
    let third = b"whsec the third of them";
    let rotation = rotated_to(&daemon, "hooks", third).await;
    let made = computed(&daemon, "hooks", b"m").await;
    assert_eq!(made.kid, rotation.new_kid);
    daemon.stop().await;
}

// R-LIFE-3
#[tokio::test]
async fn an_imported_key_never_rotates_by_itself_but_is_overdue() {
    let daemon = setup(Engine::Sqlite)
        .append("\n[scheduler]\ninterval_ms = 50\n")
        .start()
        .await;
    imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    mac_key(&daemon, "made", Algorithm::Hs256).await;
    for (mode, standby) in [
        (RotationMode::Automatic, None),
        (RotationMode::Unspecified, Some(true)),
    ] {
        let request = UpdateKeyRequest {
            tenant: "acme".into(),
            key: "hooks".into(),
            rotation_mode: mode.into(),
            standby,
            ..Default::default()
        };
        let answer = daemon.actor("issuer").keys().update_key(request).await;
        refused(answer, Code::FailedPrecondition, "ROTATION_POLICY");
    }
    let due = Clock::System
        .now()
        .minus(Duration::from_secs(3600))
        .micros();
    daemon
        .execute(&format!("UPDATE keys SET next_rotation_at = {due}"))
        .await;
    // Once the other key has its rotation and the alert is there, the scheduler has looked at both.
    let count = async |sql: &str| daemon.rows(sql).await[0][0].clone();
    let end = Instant::now() + PATIENCE;
    loop {
        let opened = count("SELECT COUNT(*) FROM rotations").await;
        let alerts = count(
            "SELECT COUNT(*) FROM alerts a JOIN keys k ON k.id = a.entity_id \
             WHERE a.kind = 'KEY_OVERDUE' AND k.name = 'hooks'",
        );
        if opened != "0" && alerts.await == "1" {
            break;
        }
        assert!(Instant::now() < end, "{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    let of_hooks =
        "SELECT COUNT(*) FROM rotations r JOIN keys k ON k.id = r.key_id WHERE k.name = 'hooks'";
    assert_eq!(count(of_hooks).await, "0");
    let failed =
        "SELECT COUNT(*) FROM audit_events WHERE actor_type = 'job' AND outcome <> 'success'";
    assert_eq!(count(failed).await, "0");
    daemon.stop().await;
}

// R-OPS-2
#[tokio::test]
async fn an_import_can_be_repeated_and_no_hash_of_its_secret_is_kept() {
    use prost::Message;
    let daemon = Daemon::start(Engine::Sqlite).await;
    let issuer = daemon.actor("issuer");
    let request = import("hooks", Algorithm::Hs256, SECRET);
    let bytes = |request: &ImportKeyRequest| Bytes::from(request.encode_to_vec());
    let first = send_with(&issuer, PATH, &bytes(&request), &["one"]).await;
    let first = first.expect("ImportKey");
    let again = send_with(&issuer, PATH, &bytes(&request), &["one"]).await;
    assert_eq!(again.expect("the same answer"), first);
    // What is hashed is the request without its secret: with another one it gets the first answer, and the first secret
    // stays.
    let mut other = request.clone();
    other.secret = Bytes::from_static(NEXT);
    let again = send_with(&issuer, PATH, &bytes(&other), &["one"]).await;
    assert_eq!(again.expect("the first answer"), first);
    let mac = by_python(SECRET).await;
    assert_eq!(computed(&daemon, "hooks", b"m").await.mac, mac);
    let mut shown = request.clone();
    shown.secret.clear();
    let hash = |request: &ImportKeyRequest| {
        let text = [b"ImportKey\0", &request.encode_to_vec()[..]].concat();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
        digest
            .as_ref()
            .iter()
            .map(|b| format!("{b:02X}"))
            .collect::<String>()
    };
    let stored = daemon
        .rows("SELECT hex(request_hash) FROM idempotency_keys")
        .await;
    assert_eq!(stored, [[hash(&shown)]]);
    let mut renamed = request;
    renamed.name = "another".into();
    let reused = send_with(&issuer, PATH, &bytes(&renamed), &["one"]).await;
    let reused = reused.expect_err("another request");
    assert_eq!(reason(&reused), "IDEMPOTENCY_KEY_REUSED");
    let fresh = send(&issuer, PATH, &bytes(&other)).await;
    assert_eq!(
        reason(&fresh.expect_err("the name is taken")),
        "ALREADY_EXISTS"
    );
    daemon.stop().await;
}
