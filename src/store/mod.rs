//! R1: SQL, one file per table group; nobody else writes any.
//!
//! Two engines, one text per statement: each statement is a `const` with `$1` binds that SQLite and PostgreSQL
//! both understand, run through the macros of `engine`. Rows come back as model types; a row that cannot be
//! one is `StoreError::Corrupt`, never a default. Nothing here decides anything.

mod alert_deliveries;
mod alerts;
mod api_keys;
mod audit;
mod audit_pruned;
mod clients;
mod copy;
mod credential_leases;
mod credential_rotations;
mod credentials;
mod destructions;
mod doctor;
mod engine;
mod foreign;
mod idempotency;
mod incidents;
mod intents;
mod keks;
mod keys;
mod leases;
mod notify;
mod principals;
mod replicas;
mod restores;
mod revocations;
mod rotations;
mod tenant_destructions;
mod tenants;
mod usage;
mod usage_limits;
mod webhooks;

use std::fmt;

pub use alert_deliveries::{Delivery, DeliveryState};
pub use alerts::{Alert, AlertFilter, AlertState, ToldAlert, UnroutedAlert};
pub use api_keys::{ExpiringApiKey, OverdueApiKey, OverduePage, StoredApiKey};
pub use audit::{AuditFilter, AuditRow, Head};
pub use audit_pruned::Pruned;
pub use copy::{copy, copy_name, load};
pub use credential_leases::LeasesOf;
pub use credential_rotations::CredentialRotationsOf;
pub use credentials::{
    CredentialFilter, CredentialsOf, FullCredential, OutdatedValues, ProviderCounts,
};
pub use doctor::{Needed, Setting, StoredPair};
pub use engine::{DatabaseConfig, Db, Tx};
pub use foreign::{ForeignRow, read_foreign};
pub use idempotency::StoredAnswer;
pub use intents::{Intent, IntentState};
pub use keks::{ListedKek, Rewrapped, WrappedKey};
pub use keys::{Counts, KeyFilter, ListedKey, VersionUsage};
pub use leases::Term;
pub use revocations::TokenRevocation;
pub use tenant_destructions::NamedVersion;
pub use usage::{EventMark, Observed, UsageQuery, UsageRow, WorthALook};
pub use webhooks::WebhookMark;

use crate::error::{Error, Reason};

/// Why a statement had no effect.
#[derive(Debug)]
pub enum StoreError {
    /// A row with this unique value exists already.
    Exists(String),
    /// The database does not answer, or the connection broke.
    Unavailable(sqlx::Error),
    /// A stored value is not what we wrote.
    Corrupt(String),
    /// The configuration or the schema does not fit; the text says what to do.
    Setup(String),
    /// The term under which this is done is over.
    LeaseLost,
    /// The tenant is erased: nothing is created in it any more.
    TenantErased,
    /// The KEK that wrapped the data key is RETIRED, or was never one of ours.
    KekGone,
}

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(what) => write!(f, "exists already: {what}"),
            Self::Unavailable(cause) => write!(f, "database: {cause}"),
            Self::Corrupt(what) => write!(f, "stored value is corrupt: {what}"),
            Self::Setup(what) => f.write_str(what),
            Self::LeaseLost => f.write_str("another replica does the scheduled work now"),
            Self::TenantErased => f.write_str("the tenant is erased"),
            Self::KekGone => f.write_str("the KEK of this data key is not in use any more"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(db) if db.is_unique_violation() => {
                Self::Exists(db.message().to_owned())
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Unavailable(error),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Exists(_) => Self::new(
                Reason::AlreadyExists,
                "there is one already; choose another name",
            )
            .because(error),
            StoreError::Unavailable(_) | StoreError::Setup(_) => Self::new(
                Reason::DatabaseUnavailable,
                "the database does not answer; nothing was changed; retry later",
            )
            .retry_after(std::time::Duration::from_secs(1))
            .because(error),
            StoreError::Corrupt(_) => Self::internal(error),
            StoreError::LeaseLost => Self::new(
                Reason::LeaseLost,
                "another replica does the scheduled work now; nothing was changed here",
            ),
            StoreError::TenantErased => Self::new(
                Reason::TenantErased,
                "the keys of this tenant were destroyed or are being destroyed; nothing is created in it any more",
            ),
            StoreError::KekGone => Self::new(
                Reason::Conflict,
                "the key-encryption key was rotated at this very moment; nothing was changed; retry",
            )
            .retry_after(std::time::Duration::from_secs(1)),
        }
    }
}

/// Reads a stored text as a model type.
fn parse<T: std::str::FromStr>(column: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("{column} {text:?}")))
}

/// Reads a stored number as an unsigned one.
fn unsigned<T: TryFrom<i64>>(column: &str, number: i64) -> Result<T> {
    T::try_from(number).map_err(|_| StoreError::Corrupt(format!("{column} {number}")))
}
