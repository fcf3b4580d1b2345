//! Step 6: the auditor finds all of it, refusals included; the log is whole, and any change behind the daemon's back is
//! found where it was made.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use claviger::grpc::proto::{
    AuditEvent, AuditStreamReport, ListAuditEventsRequest, VerifyAuditRequest,
};
use tonic::Code;

use super::{Story, refused};
use crate::daemon::{Daemon, Engine};

pub async fn everything_is_recorded(story: &Story) {
    let request = ListAuditEventsRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    for actor in ["issuer", "service", "admin"] {
        let denied = story
            .actor(actor)
            .audit()
            .list_audit_events(request.clone())
            .await;
        refused(denied, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    let events = events(story).await;
    let mut ids = BTreeMap::new();
    for expected in &story.expected {
        if !ids.contains_key(expected.actor) {
            ids.insert(expected.actor, story.daemon.id_of(expected.actor).await);
        }
        let found = events.iter().any(|event| {
            event.actor == ids[expected.actor]
                && event.action == expected.action
                && event.outcome() == expected.outcome
                && event.entity_id == expected.entity_id
        });
        assert!(
            found,
            "no row: {} {} {:?} {}",
            expected.actor, expected.action, expected.outcome, expected.entity_id
        );
    }
    let stranger = |action: &str| {
        events.iter().any(|event| {
            event.actor == "spiffe://claviger.test/stranger"
                && event.actor_type == "unknown"
                && event.action == action
                && event.stream == "access/one"
        })
    };
    assert!(stranger("CreateKey") && stranger("Sign") && stranger("IssueToken"));
}

/// Every event of every tenant, page by page.
async fn events(story: &Story) -> Vec<AuditEvent> {
    let mut events = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            page_size: 500,
            page_token,
            ..Default::default()
        };
        let page = story
            .actor("auditor")
            .audit()
            .list_audit_events(request)
            .await;
        let page = page.expect("ListAuditEvents").into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

/// Something done to the log with access to the database, and how it is undone.
struct Tampering {
    what: &'static str,
    sql: String,
    undo: String,
    /// seq of the first row that no longer fits.
    at: i64,
}

pub async fn every_change_is_found(story: &Story) {
    let daemon = &story.daemon;
    let whole = verify(daemon).await;
    assert!(whole.intact, "{whole:?}");
    assert!(audit_verify_succeeds(daemon).await);
    let refusal = daemon.rows(
        "SELECT MIN(seq) FROM audit_events WHERE stream = 'admin' AND outcome = 'refused' AND seq > 2",
    );
    let row: i64 = refusal.await[0][0].parse().expect("a seq");
    let head = whole.head_seq;
    assert!(head > row + 3);
    let mut changes = edits(row);
    changes.extend([
        deletion(row),
        swap(row),
        insertion(row),
        appendix(head),
        forgery(daemon, &whole),
        cut(head),
    ]);
    for change in changes {
        daemon.execute(&change.sql).await;
        let found = verify(daemon).await;
        assert!(!found.intact, "{} was not found", change.what);
        assert_eq!(found.broken_at, change.at, "{}: {found:?}", change.what);
        assert!(!found.problem.is_empty());
        assert!(!audit_verify_succeeds(daemon).await, "{}", change.what);
        daemon.execute(&change.undo).await;
        let again = verify(daemon).await;
        assert_eq!(again, whole, "{} was not undone", change.what);
    }
}

/// Every column of a row that says something.
fn edits(row: i64) -> Vec<Tampering> {
    let columns = [
        ("tenant", "'globex'"),
        ("actor", "'somebody-else'"),
        ("actor_type", "'job'"),
        ("action", "'GetJwks'"),
        ("entity", "'tenant'"),
        ("entity_id", "'another'"),
        ("outcome", "'success'"),
        ("request_id", "'another'"),
        ("data", "'{\"a\":1}'"),
        ("at", "at + 1"),
    ];
    let place = format!("WHERE stream = 'admin' AND seq = {row}");
    let edit = |(column, value): (&'static str, &str)| Tampering {
        what: column,
        sql: format!(
            "{}; UPDATE audit_events SET {column} = {value} {place}",
            keep(row)
        ),
        undo: format!("DELETE FROM audit_events {place}; {RETURN}"),
        at: row,
    };
    columns.into_iter().map(edit).collect()
}

fn keep(row: i64) -> String {
    format!(
        "CREATE TABLE kept AS SELECT * FROM audit_events WHERE stream = 'admin' AND seq >= {row} AND seq <= {row}"
    )
}

const RETURN: &str = "INSERT INTO audit_events SELECT * FROM kept; DROP TABLE kept";

fn deletion(row: i64) -> Tampering {
    Tampering {
        what: "a deleted row",
        sql: format!(
            "{}; DELETE FROM audit_events WHERE stream = 'admin' AND seq = {row}",
            keep(row)
        ),
        undo: RETURN.into(),
        at: row + 1,
    }
}

fn swap(row: i64) -> Tampering {
    let next = row + 1;
    let from_to = |from: i64, to: i64| {
        format!("UPDATE audit_events SET seq = {to} WHERE stream = 'admin' AND seq = {from}")
    };
    let sql = [from_to(row, -1), from_to(next, row), from_to(-1, next)].join("; ");
    Tampering {
        what: "two swapped rows",
        undo: sql.clone(),
        sql,
        at: row,
    }
}

/// A row in the middle, the later ones moved up.
fn insertion(row: i64) -> Tampering {
    let moved = |by: &str, from: i64| {
        format!(
            "UPDATE audit_events SET seq = -(seq {by}) WHERE stream = 'admin' AND seq >= {from}; \
             UPDATE audit_events SET seq = -seq WHERE stream = 'admin' AND seq < 0"
        )
    };
    let copy = copied(row + 1, row);
    let place = format!("WHERE stream = 'admin' AND seq = {row}");
    Tampering {
        what: "an inserted row",
        sql: format!("{}; {copy}", moved("+ 1", row)),
        undo: format!("DELETE FROM audit_events {place}; {}", moved("- 1", row)),
        at: row,
    }
}

/// A row behind the last one.
fn appendix(head: i64) -> Tampering {
    let next = head + 1;
    Tampering {
        what: "an added row",
        sql: copied(head, next),
        undo: format!("DELETE FROM audit_events WHERE stream = 'admin' AND seq = {next}"),
        at: next,
    }
}

/// A row behind the last one whose hashes are right: the encoding is no secret.
fn forgery(daemon: &Daemon, whole: &AuditStreamReport) -> Tampering {
    let seq = whole.head_seq + 1;
    let fields = [
        "system", "nobody", "user", "GetJwks", "tenant", "system", "success", "forged", "{}",
    ];
    let mut encoded = b"claviger.audit.v1\0".to_vec();
    let mut put = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("short");
        encoded.extend(length.to_be_bytes());
        encoded.extend(bytes);
    };
    put(b"admin");
    put(&seq.to_be_bytes());
    put(&1_i64.to_be_bytes());
    fields.iter().for_each(|field| put(field.as_bytes()));
    let prev_hash: Vec<u8> = (0..64)
        .step_by(2)
        .map(|i| u8::from_str_radix(&whole.head_hash[i..i + 2], 16).expect("hex"))
        .collect();
    put(&prev_hash);
    let hash = digest::digest(&digest::SHA256, &encoded);
    let blob = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        match daemon.engine() {
            Engine::Sqlite => format!("x'{hex}'"),
            Engine::Postgres => format!("'\\x{hex}'::bytea"),
        }
    };
    Tampering {
        what: "a forged row at the end",
        sql: format!(
            "INSERT INTO audit_events VALUES ('admin', {seq}, 1, '{}', {}, {})",
            fields.join("', '"),
            blob(&prev_hash),
            blob(hash.as_ref())
        ),
        undo: format!("DELETE FROM audit_events WHERE stream = 'admin' AND seq = {seq}"),
        at: seq,
    }
}

fn copied(from: i64, to: i64) -> String {
    format!(
        "INSERT INTO audit_events SELECT stream, {to}, at, tenant, actor, actor_type, action, entity, entity_id, \
         outcome, 'forged', data, prev_hash, hash FROM audit_events WHERE stream = 'admin' AND seq = {from}"
    )
}

fn cut(head: i64) -> Tampering {
    let first = head - 1;
    let tail = format!("WHERE stream = 'admin' AND seq >= {first}");
    Tampering {
        what: "a cut tail",
        sql: format!(
            "CREATE TABLE kept AS SELECT * FROM audit_events {tail}; DELETE FROM audit_events {tail}"
        ),
        undo: RETURN.into(),
        at: first,
    }
}

async fn verify(daemon: &Daemon) -> AuditStreamReport {
    let request = VerifyAuditRequest {
        stream: "admin".into(),
        ..Default::default()
    };
    let answer = daemon.actor("auditor").audit().verify_audit(request).await;
    let answer = answer.expect("VerifyAudit").into_inner();
    let [report] = &answer.streams[..] else {
        panic!("{answer:?}");
    };
    assert_eq!(answer.intact, report.intact);
    report.clone()
}

/// What a script sees.
async fn audit_verify_succeeds(daemon: &Daemon) -> bool {
    let output = daemon.cli(&["--as", "auditor", "audit", "verify"]).await;
    output.status.success()
}
