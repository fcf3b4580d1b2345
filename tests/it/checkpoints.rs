//! Checkpoints of the audit log: written by the scheduler, readable by others, and what only they can prove
//! (R-ACL-2, design of the audit log).

use std::{fs, time::Duration};

use aws_lc_rs::{
    digest::{self, digest},
    signature::{self, UnparsedPublicKey},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use claviger::grpc::proto::*;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::daemon::{Daemon, Engine, PATIENCE, Setup, reason};

const KEY: &str = "audit-checkpoints";

/// A daemon that writes checkpoints every second to `checkpoints` in its directory.
async fn daemon(engine: Engine) -> Daemon {
    let mut daemon = Setup::new(engine).provision().await;
    let file = daemon.path("checkpoints");
    daemon.edit_config(|text| {
        format!(
            "{text}\n[audit.checkpoint]\nkey = \"{KEY}\"\nfile = \"{}\"\ninterval_seconds = 1\n",
            file.display()
        )
    });
    daemon.up().await.expect("the daemon starts");
    daemon
}

/// With the key, whose public half is in `checkpoints.pem`.
pub async fn with_key(engine: Engine, algorithm: Algorithm) -> (Daemon, KeyVersion) {
    let daemon = daemon(engine).await;
    let key = daemon
        .key("system", KEY, KeyPurpose::Signing, algorithm)
        .await;
    let version = key.versions[0].clone();
    fs::write(daemon.path("checkpoints.pem"), &version.public_pem).expect("a PEM file");
    (daemon, version)
}

fn file(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.path("checkpoints")).unwrap_or_default()
}

fn count(daemon: &Daemon) -> usize {
    file(daemon)
        .matches("claviger audit https://issuer.test\n")
        .count()
}

/// Waits for a checkpoint that covers row `seq` of the admin stream.
pub async fn covered(daemon: &Daemon, seq: i64) {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = file(daemon);
        let seqs = text.lines().filter_map(|line| line.strip_prefix("admin "));
        let mut seqs = seqs.filter_map(|line| line.split(' ').next()?.parse::<i64>().ok());
        if seqs.any(|covered| covered >= seq) && text.ends_with('\n') {
            return;
        }
        assert!(
            Instant::now() < until,
            "no checkpoint of {seq}: {}",
            daemon.log()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

pub async fn changed(daemon: &Daemon, owner: &str) -> i64 {
    let request = UpdateKeyRequest {
        tenant: "system".into(),
        key: KEY.into(),
        owner: Some(owner.into()),
        ..Default::default()
    };
    let answer = daemon.actor("issuer").keys().update_key(request).await;
    let receipt = answer.expect("UpdateKey").into_inner().receipt;
    receipt.expect("a receipt").seq
}

/// `claviger audit verify`, with the checkpoints or without: exit code and what it said.
pub async fn verify(daemon: &Daemon, with_checkpoints: bool) -> (i32, String) {
    let (file, key) = (daemon.path("checkpoints"), daemon.path("checkpoints.pem"));
    let (file, key) = (file.to_str().expect("UTF-8"), key.to_str().expect("UTF-8"));
    let mut args = vec!["--as", "auditor", "audit", "verify"];
    if with_checkpoints {
        args.extend(["--checkpoints", file, "--checkpoint-key", key]);
    }
    let output = daemon.cli(&args).await;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(said).expect("UTF-8"))
}

/// One note, judged by the specification alone: text, key name, key id, signature.
pub fn judged(note: &str, version: &KeyVersion, algorithm: Algorithm) -> bool {
    let (text, line) = note.rsplit_once("\n\n").expect("text and signatures");
    let text = format!("{text}\n");
    let line = line
        .trim_end()
        .strip_prefix("\u{2014} ")
        .expect("an em dash");
    let (name, encoded) = line.split_once(' ').expect("a name");
    assert_eq!(name, "issuer.test/audit");
    let bytes = BASE64_STANDARD.decode(encoded).expect("base64");
    let (id, signature) = bytes.split_at(4);
    let pem: String = version
        .public_pem
        .lines()
        .filter(|l| !l.starts_with('-'))
        .collect();
    let der = BASE64_STANDARD.decode(pem).expect("base64");
    match algorithm {
        Algorithm::Eddsa => {
            let raw = &der[der.len() - 32..];
            let hashed = [name.as_bytes(), b"\n\x01", raw].concat();
            assert_eq!(id, &digest(&digest::SHA256, &hashed).as_ref()[..4]);
            let key = UnparsedPublicKey::new(&signature::ED25519, raw);
            key.verify(text.as_bytes(), signature).is_ok()
        }
        _ => {
            assert_eq!(id, &digest(&digest::SHA256, &der).as_ref()[..4]);
            let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &der[26..]);
            key.verify(text.as_bytes(), signature).is_ok()
        }
    }
}

/// Everything in a row that the hash covers but the chain: seq, at, and nine texts.
type Row = Vec<String>;

/// The admin stream, recomputed from `rows` as somebody with the database would do it, its head included.
async fn rewrite(daemon: &Daemon, rows: &[Row]) {
    let blob = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        match daemon.engine() {
            Engine::Sqlite => format!("x'{hex}'"),
            Engine::Postgres => format!("'\\x{hex}'::bytea"),
        }
    };
    let mut sql = vec!["DELETE FROM audit_events WHERE stream = 'admin'".to_owned()];
    let mut before = vec![0; 32];
    for (i, row) in rows.iter().enumerate() {
        let seq = i as i64 + 1;
        let at: i64 = row[0].parse().expect("a time");
        let mut encoded = b"claviger.audit.v1\0".to_vec();
        let mut put = |bytes: &[u8]| {
            encoded.extend(u32::try_from(bytes.len()).expect("short").to_be_bytes());
            encoded.extend(bytes);
        };
        put(b"admin");
        put(&seq.to_be_bytes());
        put(&at.to_be_bytes());
        row[1..].iter().for_each(|text| put(text.as_bytes()));
        put(&before);
        let hash = digest(&digest::SHA256, &encoded).as_ref().to_vec();
        let texts: Vec<_> = row[1..]
            .iter()
            .map(|t| format!("'{}'", t.replace('\'', "''")))
            .collect();
        sql.push(format!(
            "INSERT INTO audit_events (stream, seq, at, tenant, actor, actor_type, action, entity, entity_id, outcome, \
             request_id, data, prev_hash, hash) VALUES ('admin', {seq}, {at}, {}, {}, {})",
            texts.join(", "),
            blob(&before),
            blob(&hash)
        ));
        before = hash;
    }
    sql.push(format!(
        "UPDATE audit_heads SET seq = {}, hash = {} WHERE stream = 'admin'",
        rows.len(),
        blob(&before)
    ));
    daemon.execute(&sql.join("; ")).await;
}

async fn admin_rows(daemon: &Daemon) -> Vec<Row> {
    let query = "SELECT at, tenant, actor, actor_type, action, entity, entity_id, outcome, request_id, data \
                 FROM audit_events WHERE stream = 'admin' ORDER BY seq";
    daemon.rows(query).await
}

/// Writing, reading, and what plain verification cannot find.
async fn only_checkpoints_show_a_new_history(engine: Engine, algorithm: Algorithm) {
    let (mut daemon, version) = with_key(engine, algorithm).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    let seq = changed(&daemon, "team-two").await;
    covered(&daemon, seq).await;
    let (code, said) = verify(&daemon, true).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("checkpoints, the last of 20"), "{said}");
    daemon.terminate().await;

    // Others can read them, by the specification.
    let text = file(&daemon);
    let notes: Vec<&str> = text.split("\n\n\n").collect();
    assert!(notes.len() >= 2, "{text}");
    for note in &notes {
        assert!(judged(note, &version, algorithm), "{note}");
        assert!(
            note.contains("\nadmin ") && note.contains("\ntime 20"),
            "{note}"
        );
        let changed = note.replacen("admin 1", "admin 2", 1);
        assert!(changed == *note || !judged(&changed, &version, algorithm));
    }
    let recorded = "SELECT entity, entity_id, actor_type, data FROM audit_events WHERE action = 'CheckpointAudit' \
                    AND outcome = 'success' ORDER BY seq";
    let recorded = daemon.rows(recorded).await;
    assert_eq!(recorded.len(), notes.len());
    for (row, note) in recorded.iter().zip(&notes) {
        assert_eq!(row[..3], ["audit", "checkpoint", "job"]);
        let text = format!("{}\n", note.rsplit_once("\n\n").expect("text").0);
        let digest = digest(&digest::SHA256, text.as_bytes());
        let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert!(
            row[3].contains(&digest) && row[3].contains(&version.kid),
            "{row:?}"
        );
    }

    // Who owns the database writes another history: somebody else changed the owner, or nobody did.
    daemon.tampered();
    daemon.edit_config(|text| {
        let before = text.split("[audit.checkpoint]").next();
        before.expect("a text").to_owned()
    });
    let truth = admin_rows(&daemon).await;
    let mut lie = truth.clone();
    let row = lie.iter_mut().find(|row| row[4] == "UpdateKey");
    row.expect("a change")[2] = daemon.id_of("admin").await;
    let short = truth[..truth.len() - 2].to_vec();
    for (what, history, found) in [
        ("the same again", &truth, 0),
        ("rewritten", &lie, 1),
        ("cut off", &short, 1),
    ] {
        rewrite(&daemon, history).await;
        daemon.up().await.expect("up");
        let (code, said) = verify(&daemon, false).await;
        assert_eq!(code, 0, "{what} is intact by itself: {said}");
        let (code, said) = verify(&daemon, true).await;
        assert_eq!(code, found, "{what}: {said}");
        let shown = said.contains("AGAINST THE CHECKPOINT");
        assert_eq!(shown, found == 1, "{what}: {said}");
        daemon.terminate().await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_checkpoints_show_a_new_history_on_sqlite() {
    only_checkpoints_show_a_new_history(Engine::Sqlite, Algorithm::Es256).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_checkpoints_show_a_new_history_on_postgres() {
    only_checkpoints_show_a_new_history(Engine::Postgres, Algorithm::Eddsa).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_checkpoint_file_is_no_proof() {
    let (daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    let good = file(&daemon);
    let path = daemon.path("checkpoints.copy");
    let copy = path.to_str().expect("UTF-8");
    let key = daemon.path("checkpoints.pem");
    let key = key.to_str().expect("UTF-8");
    let line = good
        .lines()
        .find(|line| line.starts_with("admin "))
        .expect("a head");
    let (rest, hash) = line.rsplit_once(' ').expect("a hash");
    let flipped = format!("{rest} {}", hash.chars().rev().collect::<String>());
    for (what, text, code) in [
        ("as it is", good.clone(), 0),
        (
            "cut off by a crash",
            format!("{good}\n\n{}", &good[..40]),
            0,
        ),
        ("another hash", good.replace(line, &flipped), 1),
        (
            "no signature",
            good.lines()
                .filter(|l| !l.starts_with('\u{2014}'))
                .collect(),
            1,
        ),
        ("nothing", String::new(), 1),
    ] {
        fs::write(&path, text).expect("a file");
        let args = [
            "--as",
            "auditor",
            "audit",
            "verify",
            "--checkpoints",
            copy,
            "--checkpoint-key",
            key,
        ];
        let output = daemon.cli(&args).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    }
    daemon.stop().await;
}

/// Where nothing happens, nothing is written; not even about checkpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_log_has_no_further_checkpoints() {
    let (daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    // One more may be due for what happened while the last was written; then three looks find nothing to do.
    let until = Instant::now() + PATIENCE;
    let before = loop {
        let before = count(&daemon);
        sleep(Duration::from_millis(3500)).await;
        if count(&daemon) == before {
            break before;
        }
        assert!(Instant::now() < until, "it never comes to rest");
    };
    let seq = changed(&daemon, "team-two").await;
    covered(&daemon, seq).await;
    assert!(count(&daemon) > before);
    daemon.stop().await;
}

/// A missing key, a key of the wrong kind, and a file that cannot be written: people are told, and all else goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_fails_is_an_alert_and_blocks_nothing() {
    let mut daemon = daemon(Engine::Sqlite).await;
    until_failing(&daemon, "KEY_NOT_FOUND").await;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    // Once an hour, however often it fails.
    sleep(Duration::from_millis(2500)).await;
    let alerts = "SELECT id FROM alerts WHERE kind = 'CHECKPOINT_FAILED'";
    assert_eq!(daemon.rows(alerts).await.len(), 1);
    assert_eq!(count(&daemon), 0);

    daemon
        .key("system", KEY, KeyPurpose::Signing, Algorithm::Ps256)
        .await;
    until_failing(&daemon, "ALGORITHM_MISMATCH").await;
    daemon
        .key("system", "other", KeyPurpose::Signing, Algorithm::Eddsa)
        .await;
    daemon.edit_config(|text| {
        let text = text.replace(&format!("key = \"{KEY}\""), "key = \"other\"");
        text.replace("/checkpoints\"", "/no/such/directory/checkpoints\"")
    });
    daemon.restart().await;
    until_failing(&daemon, "INTERNAL").await;
    assert!(daemon.log().contains("no/such/directory"));
    daemon
        .key("acme", "more", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon.stop().await;
}

/// Waits for the alert with this reason. One hour has one alert, so those of other reasons are taken out of its way.
async fn until_failing(daemon: &Daemon, reason: &str) {
    let until = Instant::now() + PATIENCE;
    let others = format!(
        "DELETE FROM alerts WHERE kind = 'CHECKPOINT_FAILED' AND text NOT LIKE '%({reason})%'"
    );
    let alerts = format!(
        "SELECT id FROM alerts WHERE kind = 'CHECKPOINT_FAILED' AND text LIKE '%({reason})%'"
    );
    loop {
        daemon.execute(&others).await;
        if !daemon.rows(&alerts).await.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "no alert: {}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    let metrics = daemon.ops_get("/metrics").await.text();
    assert!(metrics.contains("claviger_audit_checkpoint_failures_total"));
}

/// Who could sign what they like with the key of the checkpoints could make false ones (R-ACL-2): no role permits it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_cannot_sign_with_the_key_of_the_checkpoints() {
    let (daemon, version) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let plain = daemon
        .key("system", "plain", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let grant = GrantRoleRequest {
        principal_id: daemon.id_of("officer").await,
        role: "crypto-user".into(),
        tenant: "*".into(),
    };
    let granted = daemon.actor("admin").principals().grant_role(grant).await;
    granted.expect("GrantRole");
    let sign = |key: &str, payload: sign_request::Payload| SignRequest {
        tenant: "system".into(),
        key: key.into(),
        payload: Some(payload),
    };
    let message = || sign_request::Payload::Message("claviger audit x\n".into());
    let id = "SELECT id FROM keys WHERE name = 'audit-checkpoints'";
    let id = daemon.rows(id).await.remove(0);
    let officer = daemon.actor("officer");
    let payloads = [
        (KEY, message()),
        (&*id[0], message()),
        (KEY, sign_request::Payload::Digest(vec![7; 32].into())),
    ];
    for (key, payload) in payloads {
        let refused = officer.crypto().sign(sign(key, payload)).await;
        let refused = refused.expect_err("reserved");
        let why = (refused.code(), reason(&refused));
        assert_eq!(why, (Code::PermissionDenied, "KEY_RESERVED".into()));
    }
    let batch = BatchSignRequest {
        items: vec![batch_sign_request::Item {
            reference: "one".into(),
            request: Some(sign(KEY, message())),
        }],
    };
    let batch = officer.crypto().batch_sign(batch).await.expect("a batch");
    let outcome = batch.into_inner().results.remove(0).outcome;
    let Some(batch_sign_response::result::Outcome::Error(error)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(error.reason, "KEY_RESERVED");
    let rows =
        "SELECT outcome FROM audit_events WHERE action = 'Sign' AND data LIKE '%KEY_RESERVED%'";
    assert_eq!(daemon.rows(rows).await.concat(), ["refused"; 4]);

    // It is this key that is reserved, and the daemon's own way stays.
    let signed = officer.crypto().sign(sign("plain", message())).await;
    assert_eq!(
        signed.expect("Sign").into_inner().kid,
        plain.versions[0].kid
    );
    let seq = changed(&daemon, "somebody").await;
    covered(&daemon, seq).await;
    let text = file(&daemon);
    let last = text.rfind("claviger audit https").expect("a note");
    assert!(judged(&text[last..], &version, Algorithm::Es256));
    daemon.stop().await;
}

async fn part(daemon: &Daemon, request: VerifyAuditRequest) -> VerifyAuditResponse {
    let answer = daemon.actor("auditor").audit().verify_audit(request).await;
    answer.expect("VerifyAudit").into_inner()
}

/// A log of any length can be verified in parts, each proving that it goes on where the last one ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_verified_in_parts() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    for i in 0..5 {
        let name = format!("key-{i}");
        daemon
            .key("acme", &name, KeyPurpose::Signing, Algorithm::Es256)
            .await;
    }
    let whole = VerifyAuditRequest {
        stream: "admin".into(),
        ..Default::default()
    };
    let whole = part(&daemon, whole).await.streams[0].clone();
    let (mut rows, mut from, mut expect) = (0, 0, Vec::new());
    let last = loop {
        let request = VerifyAuditRequest {
            stream: "admin".into(),
            from_seq: from,
            max_rows: 3,
            expect,
        };
        let answer = part(&daemon, request).await;
        assert!(answer.intact, "{answer:?}");
        let report = answer.streams[0].clone();
        assert!(report.rows <= 3);
        rows += report.rows;
        from = report.next_seq;
        expect = vec![AuditHead {
            stream: "admin".into(),
            seq: report.head_seq,
            hash: report.head_hash.clone(),
        }];
        if from == 0 {
            break report;
        }
    };
    assert_eq!((rows, &last.head_hash), (whole.rows, &whole.head_hash));

    for (expected, problem) in [
        (
            AuditHead {
                seq: 2,
                ..expect[0].clone()
            },
            "another hash",
        ),
        (
            AuditHead {
                seq: 9999,
                ..expect[0].clone()
            },
            "not there",
        ),
        (
            AuditHead {
                stream: "access/nobody".into(),
                ..expect[0].clone()
            },
            "not there",
        ),
    ] {
        let request = VerifyAuditRequest {
            stream: "admin".into(),
            expect: vec![expected],
            ..Default::default()
        };
        let answer = part(&daemon, request).await;
        assert!(!answer.intact && answer.streams[0].intact);
        assert!(answer.mismatches[0].problem.contains(problem), "{answer:?}");
    }
    let bad = |change: fn(&mut VerifyAuditRequest)| {
        let mut request = VerifyAuditRequest {
            stream: "admin".into(),
            ..Default::default()
        };
        change(&mut request);
        request
    };
    for request in [
        bad(|r| r.from_seq = -1),
        bad(|r| r.max_rows = -1),
        bad(|r| (r.from_seq, r.stream) = (2, String::new())),
        bad(|r| r.expect = vec![AuditHead::default()]),
        bad(|r| {
            r.expect = vec![AuditHead {
                stream: "admin".into(),
                seq: 1,
                hash: "0".repeat(63),
            }]
        }),
        bad(|r| {
            r.expect = vec![AuditHead {
                stream: "admin".into(),
                seq: 1,
                hash: "G".repeat(64),
            }]
        }),
        bad(|r| {
            r.expect = vec![
                AuditHead {
                    stream: "admin".into(),
                    seq: 1,
                    hash: "0".repeat(64)
                };
                5001
            ]
        }),
    ] {
        let answer = daemon.actor("auditor").audit().verify_audit(request).await;
        let status = answer.expect_err("a bad request");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_FIELD")
        );
    }
    // A change in a later part is found there.
    daemon.tampered();
    daemon
        .execute("UPDATE audit_events SET actor = 'nobody' WHERE stream = 'admin' AND seq = 5")
        .await;
    for (from_seq, intact) in [(0, true), (4, false), (6, true)] {
        let request = VerifyAuditRequest {
            stream: "admin".into(),
            from_seq,
            max_rows: 3,
            ..Default::default()
        };
        assert_eq!(
            part(&daemon, request).await.intact,
            intact,
            "from {from_seq}"
        );
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_section_is_checked_at_the_start() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let config = fs::read_to_string(daemon.config_path()).expect("claviger.toml");
    for (section, says) in [
        ("file = \"/tmp/x\"", "key"),
        ("key = \"k\"", "file"),
        ("key = \"\"\nfile = \"/tmp/x\"", "audit.checkpoint.key"),
        ("key = \"k\"\nfile = \"relative\"", "audit.checkpoint.file"),
        (
            "key = \"k\"\nfile = \"/tmp/x\"\ninterval_seconds = 0",
            "audit.checkpoint.interval_seconds",
        ),
        (
            "key = \"k\"\nfile = \"/tmp/x\"\ninterval_seconds = 86401",
            "audit.checkpoint.interval_seconds",
        ),
        ("key = \"k\"\nfile = \"/tmp/x\"\nwebhook = \"x\"", "webhook"),
    ] {
        daemon.edit_config(|_| format!("{config}\n[audit.checkpoint]\n{section}\n"));
        let why = daemon.up().await.expect_err("it does not start");
        assert!(why.contains(says), "{section}: {why}");
    }
    daemon.stop().await;
}

/// Who owns the database thaws a version: the row says nothing, the next checkpoint does not name it any more. R-EMER-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_not_frozen_any_more_is_seen() {
    let (mut daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let key = crate::incidents::token_key(&daemon, "jwt").await;
    let kid = key.versions[0].kid.clone();
    crate::incidents::declared(&daemon, "jwt", &kid).await;
    let line = format!("\nfrozen {kid}\n");
    daemon
        .until(async || file(&daemon).contains(&line) && file(&daemon).ends_with('\n'))
        .await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    let (code, said) = verify(&daemon, true).await;
    assert_eq!(code, 0, "{said}");
    daemon.tampered();
    let thaw = format!(
        "UPDATE key_versions SET state = 'RETIRED', compromised_at = NULL WHERE kid = '{kid}'"
    );
    daemon.execute(&thaw).await;
    let seq = changed(&daemon, "team-two").await;
    covered(&daemon, seq).await;
    let (code, said) = verify(&daemon, true).await;
    let shown = format!("does not say any more that version {kid} was compromised");
    assert_eq!((code, said.contains(&shown)), (1, true), "{said}");
    daemon.stop().await;
}
