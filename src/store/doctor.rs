//! What `claviger doctor` reads: settings that durability rests on, and where every key pair is.

use super::{
    Db, Result, StoreError,
    engine::{fetch_all, fetch_optional},
    parse, unsigned,
};
use crate::model::{Algorithm, KeyName, Kid, PublicKey, TenantName, key::BackendRef};

// Each of them is what makes a committed transaction survive a crash, or says that this is no place to write to.
const POSTGRES_SETTINGS: &str = "SELECT current_setting('server_version'), current_setting('fsync'), \
     current_setting('full_page_writes'), current_setting('synchronous_commit'), \
     CAST(pg_is_in_recovery() AS TEXT)";
const JOURNAL: &str = "SELECT journal_mode FROM pragma_journal_mode";
const SYNCHRONOUS: &str = "SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous";
const FOREIGN_KEYS: &str = "SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys";
const PAIRS: &str = "SELECT v.kid, k.tenant, k.name, k.algorithm, k.rsa_bits, COALESCE(v.backend, k.backend) AS backend, \
     v.backend_ref, v.public_jwk FROM key_versions v JOIN keys k ON k.id = v.key_id \
     WHERE v.backend_ref IS NOT NULL AND v.public_jwk IS NOT NULL AND v.state <> 'DESTROYED' AND v.kid > $1 \
     ORDER BY v.kid LIMIT $2";

// A destruction that the device may have been told of, or one that has ended since the version was read.
const IS_GOING: &str = "SELECT v.kid FROM key_versions v WHERE v.kid = $1 AND (v.state = 'DESTROYED' OR EXISTS \
     (SELECT 1 FROM backend_intents i WHERE i.kind = 'DESTROY' AND i.kid = v.kid AND i.state = 'PENDING'))";
const NEEDED: &str = "SELECT DISTINCT k.backend, CASE k.standby WHEN 1 THEN k.standby_backend ELSE '' END, k.algorithm, \
     k.rsa_bits FROM keys k WHERE k.purpose IN ('SIGNING', 'TOKEN_SIGNING') \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = k.tenant AND t.erased_at IS NOT NULL)";

/// Key pairs that a backend is to make: the next versions of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Name of the backend.
    pub backend: String,
    /// Their algorithm.
    pub algorithm: Algorithm,
    /// RSA modulus bits; 0 for other types.
    pub rsa_bits: u32,
}

/// A setting of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to do; None when it is right.
    pub trouble: Option<&'static str>,
}

/// Where a key pair is said to be.
#[derive(Clone, Debug)]
pub struct StoredPair {
    /// Its version.
    pub kid: Kid,
    /// Tenant of the key.
    pub tenant: TenantName,
    /// The key.
    pub key: KeyName,
    /// The key's algorithm.
    pub algorithm: Algorithm,
    /// RSA modulus bits; 0 for other types.
    pub rsa_bits: u32,
    /// Name of its backend.
    pub backend: String,
    /// Where it is there.
    pub reference: BackendRef,
    /// Its public half.
    pub public_key: PublicKey,
}

#[derive(sqlx::FromRow)]
struct PairRow {
    kid: String,
    tenant: String,
    name: String,
    algorithm: String,
    rsa_bits: i64,
    backend: String,
    backend_ref: String,
    public_jwk: String,
}

impl Db {
    /// The settings that durability rests on, as they are for this connection.
    pub async fn settings(&self) -> Result<Vec<Setting>> {
        match self {
            Self::Sqlite { .. } => self.sqlite_settings().await,
            Self::Postgres(_) => self.postgres_settings().await,
        }
    }

    async fn sqlite_settings(&self) -> Result<Vec<Setting>> {
        let wanted = [
            (
                "journal_mode",
                JOURNAL,
                "wal",
                "readers and the writer block each other; run `claviger migrate` on a file of a local disk",
            ),
            (
                "synchronous",
                SYNCHRONOUS,
                "2",
                "committed changes may be lost with the power",
            ),
            (
                "foreign_keys",
                FOREIGN_KEYS,
                "1",
                "rows may refer to nothing",
            ),
        ];
        let mut settings = Vec::new();
        for (name, sql, right, why) in wanted {
            let (value,) = fetch_optional!(self, (String,), sql)?.unwrap_or_default();
            settings.push(Setting {
                name,
                trouble: (value != right).then_some(why),
                value,
            });
        }
        Ok(settings)
    }

    async fn postgres_settings(&self) -> Result<Vec<Setting>> {
        type Row = (String, String, String, String, String);
        let row = fetch_optional!(self, Row, POSTGRES_SETTINGS)?;
        let (version, fsync, pages, commit, standby) = row.unwrap_or_default();
        let lost = "committed changes may be lost in a crash of the server; set it to on";
        let setting = |name, value: String, is_right: bool, why| Setting {
            name,
            trouble: (!is_right).then_some(why),
            value,
        };
        let is_durable = !matches!(commit.as_str(), "off");
        let is_primary = standby == "false";
        Ok(vec![
            setting("server_version", version, true, ""),
            setting("fsync", fsync.clone(), fsync == "on", lost),
            setting("full_page_writes", pages.clone(), pages == "on", lost),
            setting("synchronous_commit", commit, is_durable, lost),
            setting(
                "pg_is_in_recovery",
                standby,
                is_primary,
                "this server only reads: let database.url name the primary",
            ),
        ])
    }

    /// What the keys need of backends for their next versions and their standby versions.
    pub async fn needed(&self) -> Result<Vec<Needed>> {
        let mut needed = Vec::new();
        for (backend, standby, algorithm, rsa_bits) in
            fetch_all!(self, (String, String, String, i64), NEEDED)?
        {
            let algorithm = parse("algorithm", &algorithm)?;
            let rsa_bits = unsigned("rsa_bits", rsa_bits)?;
            for backend in [backend, standby] {
                let need = Needed {
                    backend,
                    algorithm,
                    rsa_bits,
                };
                if !need.backend.is_empty() && !needed.contains(&need) {
                    needed.push(need);
                }
            }
        }
        Ok(needed)
    }

    /// Is the pair of this version being destroyed, or destroyed?
    pub async fn is_going(&self, kid: &Kid) -> Result<bool> {
        Ok(fetch_optional!(self, (String,), IS_GOING, kid.as_str())?.is_some())
    }

    /// Up to `limit` key pairs that are not destroyed, in the order of their kid, after `after`.
    pub async fn pairs(&self, after: &str, limit: i64) -> Result<Vec<StoredPair>> {
        let rows = fetch_all!(self, PairRow, PAIRS, after, limit)?;
        rows.into_iter().map(StoredPair::try_from).collect()
    }
}

impl TryFrom<PairRow> for StoredPair {
    type Error = StoreError;

    fn try_from(row: PairRow) -> Result<Self> {
        let public_key = PublicKey::from_canonical_jwk(&row.public_jwk)
            .map_err(|e| StoreError::Corrupt(format!("{e:?}")))?;
        Ok(Self {
            kid: parse("kid", &row.kid)?,
            tenant: parse("tenant", &row.tenant)?,
            key: parse("key name", &row.name)?,
            algorithm: parse("algorithm", &row.algorithm)?,
            rsa_bits: unsigned("rsa_bits", row.rsa_bits)?,
            backend: row.backend,
            reference: BackendRef(row.backend_ref),
            public_key,
        })
    }
}
