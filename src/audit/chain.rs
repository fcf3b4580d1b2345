//! The hash of a row: SHA-256 over a domain-separated, length-prefixed encoding of the row and its predecessor.
//!
//! Encoding: `claviger.audit.v1` NUL, then each field in the order of the table. Integers are 8 bytes big-endian;
//! texts and byte strings are preceded by their length in 4 bytes big-endian, so no two rows share an encoding.

use aws_lc_rs::digest::{Context, SHA256};

use super::Record;
use crate::store::{AuditRow, Head};

/// `prev_hash` of the first row of a stream.
pub const GENESIS: [u8; 32] = [0; 32];

const DOMAIN: &[u8] = b"claviger.audit.v1\0";

/// The hash that a row must have.
pub fn row_hash(row: &AuditRow) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(DOMAIN);
    let mut bytes = |b: &[u8]| {
        context.update(&u32::try_from(b.len()).unwrap_or(u32::MAX).to_be_bytes());
        context.update(b);
    };
    bytes(row.stream.as_bytes());
    bytes(&row.seq.to_be_bytes());
    bytes(&row.at.to_be_bytes());
    for text in [
        &row.tenant,
        &row.actor,
        &row.actor_type,
        &row.action,
        &row.entity,
        &row.entity_id,
        &row.outcome,
        &row.request_id,
        &row.data,
    ] {
        bytes(text.as_bytes());
    }
    bytes(&row.prev_hash);
    context.finish().as_ref().to_vec()
}

/// Chains records behind `head`, all at the same database time `at`, in microseconds.
pub fn link(stream: &str, head: &Head, at: i64, records: Vec<Record>) -> Vec<AuditRow> {
    let mut seq = head.seq;
    let mut prev_hash = head.hash.clone();
    records
        .into_iter()
        .map(|record| {
            seq += 1;
            let mut row = AuditRow {
                stream: stream.to_owned(),
                seq,
                at,
                tenant: record.tenant,
                actor: record.actor,
                actor_type: record.actor_type.to_owned(),
                action: record.action.to_owned(),
                entity: record.entity.to_owned(),
                entity_id: record.entity_id,
                outcome: record.outcome.as_str().to_owned(),
                request_id: record.request_id,
                data: with_credential(record.data, record.credential),
                prev_hash: std::mem::take(&mut prev_hash),
                hash: Vec::new(),
            };
            row.hash = row_hash(&row);
            prev_hash.clone_from(&row.hash);
            row
        })
        .collect()
}

/// The data with member `credential`, as the last one: which API key or token somebody came with. Readers of the log know
/// some rows by how their data begins.
fn with_credential(data: String, credential: Option<String>) -> String {
    match (credential, data.strip_suffix('}')) {
        (Some(credential), Some("{")) => format!(r#"{{"credential":"{credential}"}}"#),
        (Some(credential), Some(rest)) => format!(r#"{rest},"credential":"{credential}"}}"#),
        (_, _) => data,
    }
}

/// The head of a stream that has no rows.
pub fn empty_head() -> Head {
    Head {
        seq: 0,
        hash: GENESIS.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The change feed knows the row of a repeated call by its beginning.
    #[test]
    fn the_credential_comes_last_in_the_data() {
        let with = |data: &str, credential: Option<&str>| {
            with_credential(data.to_owned(), credential.map(str::to_owned))
        };
        let key = Some("api_key:1");
        assert_eq!(with("{}", key), r#"{"credential":"api_key:1"}"#);
        assert_eq!(
            with(r#"{"repeats":7}"#, key),
            r#"{"repeats":7,"credential":"api_key:1"}"#
        );
        assert_eq!(with(r#"{"repeats":7}"#, None), r#"{"repeats":7}"#);
    }
}
