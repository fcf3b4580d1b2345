//! System ESCROW: the five findings of the audit that ended in NO-GO, each with the test that would have found it.

use std::time::Duration;

use claviger::grpc::proto::*;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status};

use crate::{
    canaries::{dump, forms::Canaries},
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason},
};

async fn started(engine: Engine) -> Daemon {
    let setup = Setup::new(engine);
    let optional = "[grpc]\nclient_certificate = \"optional\"\n";
    let daemon = setup.replace("[grpc]\n", optional).start().await;
    let (encryption, gcm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    daemon.key("acme", "vault", encryption, gcm).await;
    daemon
}

fn soon(seconds: i64) -> Option<prost_types::Timestamp> {
    let seconds = claviger::clock::Clock::System.now().seconds() + seconds;
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// A key of the service, which is a crypto-user and a token-issuer.
fn wanted(scopes: &[&str]) -> CreateApiKeyRequest {
    CreateApiKeyRequest {
        name: "escrow".into(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        expire_time: soon(3600),
        ..Default::default()
    }
}

async fn create(d: &Daemon, request: CreateApiKeyRequest) -> Result<CreateApiKeyResponse, Status> {
    let mut service = d.actor("service").api_keys();
    let made = service.create_api_key(request).await;
    made.map(Response::into_inner)
}

async fn encrypt(nobody: &Actor, key: &str) -> Result<(), Status> {
    let mut request = Request::new(EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: "payout 17".into(),
        ..Default::default()
    });
    let value = key.parse().expect("a header value");
    request.metadata_mut().insert("x-api-key", value);
    nobody.crypto().encrypt(request).await.map(drop)
}

/// R1: API keys were in clear in the database, and the admin chose them.
#[tokio::test]
async fn r1_a_key_is_made_by_the_daemon_and_nobody_who_reads_or_writes_the_database_has_one() {
    let mut d = started(Engine::Sqlite).await;
    let one = create(&d, wanted(&["claviger:crypto-user"])).await;
    let two = create(&d, wanted(&["claviger:crypto-user"])).await;
    let (one, two) = (one.expect("made"), two.expect("made"));
    // Who reads the database finds no key.
    let mut canaries = Canaries::default();
    for made in [&one, &two] {
        let secret = made.secret.split('_').nth(2).expect("a secret");
        canaries.plant("a key", secret.as_bytes());
    }
    let text = dump(&d).await;
    assert!(text.contains("api_keys") && text.contains("claviger:crypto-user"));
    assert_eq!(canaries.find(text.as_bytes()), None);
    // Who writes it puts in no key of their own: a hash without the pepper is worth nothing, and that of one key is not
    // that of another.
    let nobody = d.actor_with(None);
    encrypt(&nobody, &one.secret).await.expect("it is a key");
    let id = |made: &CreateApiKeyResponse| made.api_key.as_ref().expect("a key").id.clone();
    let (first, second) = (id(&one), id(&two));
    let plain = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, one.secret.as_bytes());
    let hex: String = plain.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    for hash in [
        format!("X'{hex}'"),
        format!("(SELECT hash FROM api_keys WHERE id = '{second}')"),
    ] {
        let plant = format!("UPDATE api_keys SET hash = {hash} WHERE id = '{first}'");
        d.execute(&plant).await;
        d.restart().await;
        let refused = encrypt(&d.actor_with(None), &one.secret).await;
        assert_eq!(reason(&refused.expect_err("planted")), "CREDENTIAL_INVALID");
    }
    encrypt(&d.actor_with(None), &two.secret)
        .await
        .expect("untouched");
    d.stop().await;
}

/// R2: development mode was the default.
#[tokio::test]
async fn r2_nothing_starts_without_an_environment_and_no_convenience_outside_dev() {
    let mut d = Setup::new(Engine::Sqlite).provision().await;
    let good = std::fs::read_to_string(d.config_path()).expect("claviger.toml");
    let production = good
        .replace("environment = \"dev\"", "environment = \"production\"")
        .replace("max_age_seconds = 1", "max_age_seconds = 300")
        .replace("clock_skew_seconds = 0", "clock_skew_seconds = 60");
    let reflecting = production.replace("[grpc]\n", "[grpc]\nreflection = true\n");
    let unaudited = production.replace("[audit]\n", "[audit]\naccess = \"off\"\n");
    for (wrong, says) in [
        (
            good.replace("environment = \"dev\"\n", ""),
            "environment is missing",
        ),
        (reflecting, "grpc.reflection"),
        (unaudited, "audit.access"),
        // A soak of a second.
        (
            good.replace("environment = \"dev\"", "environment = \"production\""),
            "jwks.max_age_seconds",
        ),
    ] {
        assert_ne!(wrong, good);
        d.edit_config(|_| wrong);
        let said = d.up().await.expect_err("it starts");
        assert!(said.contains(says), "{says}: {said}");
    }
    d.edit_config(|_| production);
    d.up().await.expect("production");
    d.stop().await;
}

/// R3: whoever had a key could do everything.
#[tokio::test]
async fn r3_a_key_does_what_its_scopes_say_as_far_as_its_owner_may() {
    let d = started(Engine::Sqlite).await;
    let nobody = d.actor_with(None);
    let poor = create(&d, wanted(&[])).await.expect("made").secret;
    let other = create(&d, wanted(&["claviger:token-issuer"])).await;
    let right = create(&d, wanted(&["claviger:crypto-user"])).await;
    let (other, right) = (other.expect("made").secret, right.expect("made").secret);
    for key in [&poor, &other] {
        let refused = encrypt(&nobody, key).await.expect_err("no such scope");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    encrypt(&nobody, &right).await.expect("its scope");
    let refused = create(&d, wanted(&["claviger:principal-admin"])).await;
    assert_eq!(reason(&refused.expect_err("made")), "SCOPE_EXCEEDED");
    // R-OAUTH-2: a right that the owner loses is lost to its keys at once.
    let revoke = RevokeRoleRequest {
        principal_id: d.id_of("service").await,
        role: "crypto-user".into(),
        tenant: "acme".into(),
    };
    let mut admin = d.actor("admin").principals();
    admin.revoke_role(revoke).await.expect("RevokeRole");
    let refused = encrypt(&nobody, &right).await.expect_err("lost");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let rows = "SELECT seq FROM audit_events WHERE action = 'Encrypt' AND outcome = 'refused'";
    assert_eq!(d.rows(rows).await.len(), 3);
    d.stop().await;
}

/// R4: scheduled work ran in every process, or in none after a deployment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_of_two_replicas_one_ends_each_key_once_also_when_the_leader_is_killed() {
    let lease = "[scheduler]\ninterval_ms = 100\nlease_seconds = 4";
    let setup = Setup::new(Engine::Postgres).for_two().append(lease);
    let mut one = setup.start().await;
    let mut two = one.second(None).await;
    let first_leads = leader(&one, &two).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(short_lived(&one).await);
    }
    let (leading, other) = match first_leads {
        true => (&mut one, &mut two),
        false => (&mut two, &mut one),
    };
    leading.kill().await;
    expired(other, &ids).await;
    leading.up().await.expect("it starts again");
    // Both have looked again when a later one has ended, too.
    ids.push(short_lived(other).await);
    expired(other, &ids).await;
    let rows = "SELECT entity_id FROM audit_events WHERE action = 'ExpireApiKey' AND outcome = 'success' \
         ORDER BY entity_id";
    ids.sort();
    assert_eq!(one.rows(rows).await.concat(), ids, "each of them once");
    two.stop().await;
    one.stop().await;
}

async fn short_lived(d: &Daemon) -> String {
    let request = CreateApiKeyRequest {
        expire_time: soon(5),
        ..wanted(&[])
    };
    let made = create(d, request).await.expect("made");
    made.api_key.expect("a key").id
}

/// Does the first lead, and not the second?
async fn leader(one: &Daemon, two: &Daemon) -> bool {
    let leads = async |d: &Daemon| {
        let metrics = d.ops_get("/metrics").await.text();
        metrics
            .lines()
            .any(|line| line == "claviger_scheduler_leader 1")
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match (leads(one).await, leads(two).await) {
            (true, false) => return true,
            (false, true) => return false,
            (true, true) | (false, false) => {}
        }
        assert!(Instant::now() < until, "nobody leads");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn expired(d: &Daemon, ids: &[String]) {
    let query = "SELECT id FROM api_keys WHERE state = 'EXPIRED'";
    let until = Instant::now() + PATIENCE;
    while d.rows(query).await.len() < ids.len() {
        assert!(Instant::now() < until, "nobody ended them");
        sleep(Duration::from_millis(50)).await;
    }
}

/// R5: keys never ended.
#[tokio::test]
async fn r5_a_key_has_an_end_and_counts_no_longer() {
    // No job looks during this test: the end holds by itself.
    let idle = "[scheduler]\ninterval_ms = 60000\nlease_seconds = 300";
    let optional = "[grpc]\nclient_certificate = \"optional\"\n";
    let setup = Setup::new(Engine::Sqlite).append(idle);
    let d = setup.replace("[grpc]\n", optional).start().await;
    let (encryption, gcm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    d.key("acme", "vault", encryption, gcm).await;
    let ends = |expire_time| CreateApiKeyRequest {
        expire_time,
        ..wanted(&["claviger:crypto-user"])
    };
    for (end, what) in [
        (None, "no end"),
        (soon(-1), "an end in the past"),
        (soon(367 * 24 * 3600), "an end too far away"),
    ] {
        let refused = create(&d, ends(end)).await.expect_err(what);
        assert_eq!(reason(&refused), "INVALID_FIELD", "{what}");
    }
    let nobody = d.actor_with(None);
    let made = create(&d, ends(soon(3))).await.expect("made");
    let until = Instant::now() + PATIENCE;
    let refused = loop {
        match encrypt(&nobody, &made.secret).await {
            Err(refused) => break refused,
            Ok(()) => assert!(Instant::now() < until, "it does not end"),
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
    let why =
        "SELECT data FROM audit_events WHERE action = 'Encrypt' AND data LIKE '%API_KEY_EXPIRED%'";
    assert_eq!(d.rows(why).await.len(), 1);
    d.stop().await;
}
