//! `claviger doctor` in front of a healthy installation, and of each way in which one can be ill.

use claviger::grpc::proto::{Algorithm, KeyPurpose};
use jiff::{ToSpan, Zoned, tz::TimeZone};
use rcgen::date_time_ymd;

use crate::{
    daemon::{Daemon, Engine, Setup, TOKEN},
    pki::{dns, named},
};

/// What doctor prints, and its exit code.
async fn doctor(daemon: &Daemon, more: &[&str]) -> (String, Option<i32>) {
    let config = daemon.config_path();
    let config = config.to_str().expect("UTF-8");
    let args = [&["doctor", "--config", config], more].concat();
    let output = daemon.cli(&args).await;
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    (said, output.status.code())
}

async fn signing_key(daemon: &Daemon, name: &str, algorithm: Algorithm) -> String {
    let key = daemon
        .key("acme", name, KeyPurpose::Signing, algorithm)
        .await;
    key.versions[0].kid.clone()
}

/// The one line that begins so.
fn line<'a>(said: &'a str, begins: &str) -> &'a str {
    let mut lines = said.lines().filter(|line| line.starts_with(begins));
    let line = lines.next();
    line.unwrap_or_else(|| panic!("no line {begins:?} in\n{said}"))
}

/// R-ENV-2, R-LIFE-4: everything that a healthy installation rests on, one line each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_installation_passes_every_check() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let daemon = Setup::new(engine).start().await;
        signing_key(&daemon, "orders", Algorithm::Es256).await;
        signing_key(&daemon, "letters", Algorithm::Eddsa).await;
        let (said, code) = doctor(&daemon, &[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("FAIL"), "{said}");
        assert!(
            line(&said, "ok    backend hsm:").contains("ES256"),
            "{said}"
        );
        assert!(
            line(&said, "ok    backend hsm:").contains("wraps data keys"),
            "{said}"
        );
        assert!(
            line(&said, "ok    module of hsm:").contains("PKCS#11 2."),
            "{said}"
        );
        line(&said, "ok    sessions of hsm:");
        // SoftHSM wraps it; the daemon reads either.
        let point = line(&said, "ok    EC points of hsm:");
        assert!(point.contains("67 bytes"), "{said}");
        assert!(
            line(&said, "ok    ES256 rate of hsm:").contains("/s by 1"),
            "{said}"
        );
        assert!(
            line(&said, "ok    managed keys:").contains("2 key pairs"),
            "{said}"
        );
        assert!(
            line(&said, "ok    expiry of certificate:").contains("-01T"),
            "{said}"
        );
        line(&said, "ok    expiry of client CA:");
        line(&said, "ok    clock:");
        let kek = line(&said, "ok    KEK pkcs11:");
        assert!(kek.contains("ACTIVE in hsm; unwraps its probe"), "{said}");
        line(&said, "ok    needs:");
        let durable = match engine {
            Engine::Sqlite => "ok    database setting synchronous: 2",
            Engine::Postgres => "ok    database setting fsync: on",
        };
        line(&said, durable);
        let (quick, _) = doctor(&daemon, &["--no-measure"]).await;
        assert!(!quick.contains("rate of"), "{quick}");
        daemon.stop().await;
    }
}

/// R-LIFE-4: rows and devices that do not say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_that_is_not_as_it_must_be_is_named() {
    let daemon = Setup::new(Engine::Sqlite).start().await;
    let mut kids = Vec::new();
    for name in ["swapped", "elsewhere", "missing", "open", "healthy"] {
        kids.push(signing_key(&daemon, name, Algorithm::Es256).await);
    }
    let [swapped, elsewhere, missing, open, healthy] = &kids[..] else {
        panic!("five keys");
    };
    let set = async |column: &str, value: &str, kid: &str| {
        let sql = format!("UPDATE key_versions SET {column} = {value} WHERE kid = '{kid}'");
        daemon.execute(&sql).await;
    };
    let other = format!("(SELECT backend_ref FROM key_versions WHERE kid = '{healthy}')");
    set("backend_ref", &other, swapped).await;
    set("backend", "'gone'", elsewhere).await;
    let nowhere = format!("'pkcs11:token={TOKEN};id=%77;type=private'");
    set("backend_ref", &nowhere, missing).await;
    // A pair that may leave the token, in the place of one of ours.
    let args = [
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--id",
        "0e",
        "--label",
        "open",
        "--extractable",
    ];
    daemon.pkcs11_tool(&args).await;
    let extractable = format!("'pkcs11:token={TOKEN};id=%0e;type=private'");
    set("backend_ref", &extractable, open).await;

    let (said, code) = doctor(&daemon, &["--no-measure"]).await;
    assert_eq!(code, Some(1), "{said}");
    for (name, kid, why) in [
        ("swapped", swapped, "holds another key pair"),
        ("elsewhere", elsewhere, "backend gone is not configured"),
        ("missing", missing, "no single object"),
        ("open", open, "does not guarantee it"),
    ] {
        let line = line(
            &said,
            &format!("FAIL  managed key: acme/{name} version {kid}"),
        );
        assert!(line.contains(why), "{line}");
    }
    assert!(
        line(&said, "FAIL  managed keys:").contains("4 of 5"),
        "{said}"
    );
    assert!(!said.contains("acme/healthy"), "{said}");
    daemon.stop().await;
}

/// R-ENV-2: the KEKs that the database knows, and what its keys need of backends beside what the configuration says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_needs_and_nobody_has_is_a_failure() {
    let daemon = Setup::new(Engine::Sqlite).start().await;
    signing_key(&daemon, "orders", Algorithm::Es256).await;
    signing_key(&daemon, "moved", Algorithm::Eddsa).await;
    let away = "UPDATE keys SET standby = 1, standby_backend = 'elsewhere' WHERE name = 'moved'; \
                UPDATE keks SET probe_digest = x'00'; \
                INSERT INTO keks (reference, backend, state, probe, probe_digest, created_at, deactivated_at) \
                VALUES ('pkcs11:object=old', 'vanished', 'DEACTIVATED', x'00', x'00', 1, 1)";
    daemon.execute(away).await;
    let (said, code) = doctor(&daemon, &["--no-measure"]).await;
    assert_eq!(code, Some(1), "{said}");
    let needs = line(&said, "FAIL  needs:");
    assert!(
        needs.contains("elsewhere, which is not configured"),
        "{said}"
    );
    assert!(!said.contains("ok    needs"), "{said}");
    // It wraps and unwraps, and is not the key that data keys are under.
    line(&said, "ok    key-encryption key:");
    let old = line(&said, "FAIL  KEK pkcs11:object=old:");
    assert!(old.contains("backend vanished is not configured"), "{said}");
    let kek = said.lines().filter(|l| l.starts_with("FAIL  KEK pkcs11:"));
    assert_eq!(kek.count(), 2, "{said}");
    daemon.stop().await;
}

/// A pair that is on its way out is no fault of the device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destruction_under_way_is_a_note() {
    let daemon = Setup::new(Engine::Sqlite).start().await;
    let going = signing_key(&daemon, "going", Algorithm::Es256).await;
    signing_key(&daemon, "staying", Algorithm::Es256).await;
    let nowhere = format!(
        "UPDATE key_versions SET backend_ref = 'pkcs11:token={TOKEN};id=%77;type=private' WHERE kid = '{going}'"
    );
    daemon.execute(&nowhere).await;
    let (said, code) = doctor(&daemon, &["--no-measure"]).await;
    assert_eq!(code, Some(1), "{said}");
    line(
        &said,
        &format!("FAIL  managed key: acme/going version {going}"),
    );
    let intent = format!(
        "INSERT INTO backend_intents (id, backend, tenant, label, state, created_at, kind, kid) \
         VALUES ('0190a000-0000-7000-8000-000000000001', 'hsm', 'acme', 'x', 'PENDING', 1, 'DESTROY', '{going}')"
    );
    daemon.execute(&intent).await;
    let (said, code) = doctor(&daemon, &["--no-measure"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(line(&said, "note  managed keys:").contains("1 key pairs are being destroyed"));
    assert!(line(&said, "ok    managed keys:").contains("1 key pairs; each"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_soon_is_a_warning() {
    let daemon = Setup::new(Engine::Sqlite).start().await;
    let end = Zoned::now().with_time_zone(TimeZone::UTC) + 5.days();
    let mut params = named("localhost", [dns("localhost")]);
    params.not_after = date_time_ymd(i32::from(end.year()), end.month() as u8, end.day() as u8);
    let leaf = daemon.ca.issue(params);
    std::fs::write(daemon.path("certs/server.crt"), &leaf.pem).expect("a certificate");
    let key = leaf.key.serialize_pem();
    std::fs::write(daemon.path("certs/server.key"), key).expect("a key");
    let (said, code) = doctor(&daemon, &["--no-measure"]).await;
    assert_eq!(code, Some(0), "{said}");
    let warning = line(&said, "WARN  expiry of certificate:");
    assert!(warning.contains("renew it"), "{said}");
    daemon.stop().await;
}
