//! R2: what happened. Rows are chained by hash, per stream, and never changed.
//!
//! Stream `admin` is written inside the mutation's own transaction (`admin::append`), stream `access/<replica>` by
//! one group-committing writer per replica (`access::AccessLog`). `verify` recomputes chains; it needs nothing but
//! the rows. `checkpoint` writes down elsewhere where they ended, as `note`s that are signed. Only `gate` writes; nothing here decides who may do
//! what.

pub mod access;
pub mod admin;
mod chain;
pub mod checkpoint;
pub mod checkpoint_file;
pub mod note;
pub mod pruning;
mod reader;
pub mod verify;

pub use access::{AccessConfig, AccessLog, AccessMode};
pub use chain::GENESIS;
pub use checkpoint::{Checkpoint, CheckpointConfig, StreamHead};
pub use pruning::RetentionConfig;
pub use reader::{AuditFilter, AuditRow, Head, Reader};
pub use verify::{Mismatch, Range, Restore, StreamReport};

/// The stream of every administrative change.
pub const ADMIN_STREAM: &str = "admin";

/// How the log calls an acknowledgement of a restore. No RPC has this name: a daemon that runs has nothing to acknowledge.
pub const ACKNOWLEDGE_RESTORE: &str = "AcknowledgeRestore";

/// How a recorded call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It took effect.
    Success,
    /// It was not permitted, or the thing is not one the caller may see.
    Refused,
    /// It was permitted and did not succeed.
    Failed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Success, Self::Refused, Self::Failed];

    /// The text in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What is recorded about a call; seq, time and hashes are given when it is written.
#[derive(Clone, Debug)]
pub struct Record {
    /// Tenant of the entity.
    pub tenant: String,
    /// Principal id, or certificate identity of an unknown caller.
    pub actor: String,
    /// `user`, `service`, `job` or `unknown`.
    pub actor_type: &'static str,
    /// Name of the action.
    pub action: &'static str,
    /// Kind of entity.
    pub entity: &'static str,
    /// Its id.
    pub entity_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Id of the request.
    pub request_id: String,
    /// JSON object; never a secret.
    pub data: String,
    /// What the actor showed, where that was no certificate: member `credential` of the row's data.
    pub credential: Option<String>,
}

/// Proof that a mutation was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its seq in stream `admin`.
    pub seq: i64,
    /// Its hash, 32 bytes.
    pub hash: Vec<u8>,
}

/// Bytes as lower-case hex, the form of hashes in answers.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
}
