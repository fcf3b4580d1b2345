//! Table `token_revocations`: tokens that are invalid before they expire. No row per issued token.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all},
    parse,
};
use crate::model::{TenantName, Timestamp, TokenId};

const REVOKE: &str = "INSERT INTO token_revocations (tenant, jti, keep_until, revoked_at) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (tenant, jti) DO UPDATE SET keep_until = CASE WHEN token_revocations.keep_until > excluded.keep_until \
     THEN token_revocations.keep_until ELSE excluded.keep_until END";
const CURRENT: &str = "SELECT tenant, jti, keep_until FROM token_revocations WHERE keep_until > $1";
const PRUNE: &str = "DELETE FROM token_revocations WHERE keep_until <= $1";

/// A token that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRevocation {
    /// Tenant whose token it is.
    pub tenant: TenantName,
    /// Its `jti`.
    pub jti: TokenId,
    /// When it has expired anyway, with room for clocks.
    pub keep_until: Timestamp,
}

impl Tx {
    /// Revokes a token; of two revocations of one token the later end holds.
    pub async fn revoke_token(&mut self, r: &TokenRevocation, now: Timestamp) -> Result<()> {
        execute!(
            self,
            REVOKE,
            r.tenant.as_str(),
            r.jti.to_string(),
            r.keep_until.micros(),
            now.micros(),
        )
        .map(|_| ())
    }

    /// Forgets revocations of tokens that have expired by `now`; how many.
    pub async fn prune_revocations(&mut self, now: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, now.micros())
    }
}

impl Db {
    /// Every revocation that still matters at `now`.
    pub async fn revocations(&self, now: Timestamp) -> Result<Vec<TokenRevocation>> {
        fetch_all!(self, (String, String, i64), CURRENT, now.micros())?
            .into_iter()
            .map(|(tenant, jti, keep_until)| {
                Ok(TokenRevocation {
                    tenant: parse("tenant", &tenant)?,
                    jti: parse("jti", &jti)?,
                    keep_until: Timestamp::from_micros(keep_until),
                })
            })
            .collect()
    }
}
