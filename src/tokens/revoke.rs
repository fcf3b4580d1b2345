//! Single tokens that are invalid before they expire: rows in the database, and all of them in memory on every replica,
//! so that verifying asks nobody.

use std::{
    collections::HashMap,
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use serde_json::json;

use super::{Rejection, Tokens};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    model::{TenantName, Timestamp, TokenId},
    store::TokenRevocation,
};

/// Revocations that have not been forgotten, by tenant and `jti`.
#[derive(Default)]
pub struct Revocations(RwLock<Held>);

#[derive(Default)]
struct Held {
    tenants: HashMap<TenantName, HashMap<String, Timestamp>>,
    count: usize,
    /// How many there may be before those that are over are looked for.
    room: usize,
}

/// Below this many, nobody looks for revocations that are over.
const ROOM: usize = 1024;

impl Revocations {
    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.0.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.0.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Is the token revoked?
    fn holds(&self, tenant: &TenantName, jti: &str) -> bool {
        let held = self.read();
        held.tenants
            .get(tenant)
            .is_some_and(|tokens| tokens.contains_key(jti))
    }

    fn add(&self, revocation: TokenRevocation, now: Timestamp) {
        let mut held = self.write();
        let tokens = held.tenants.entry(revocation.tenant).or_default();
        let jti = revocation.jti.to_string();
        let end = tokens.entry(jti).or_default();
        *end = revocation.keep_until.max(*end);
        held.count += 1;
        if held.count > held.room.max(ROOM) {
            held.forget(now);
        }
    }
}

impl Held {
    fn forget(&mut self, now: Timestamp) {
        self.tenants.retain(|_, tokens| {
            tokens.retain(|_, keep_until| *keep_until > now);
            !tokens.is_empty()
        });
        self.count = self.tenants.values().map(HashMap::len).sum();
        self.room = self.count * 2;
    }
}

/// What RevokeToken is asked for.
#[derive(Debug)]
pub struct RevokeToken {
    /// Tenant whose token it is.
    pub tenant: TenantName,
    /// Its `jti`.
    pub jti: TokenId,
    /// Its `exp`, if that is known.
    pub expires_at: Option<Timestamp>,
    /// Why.
    pub reason: String,
}

impl Tokens {
    /// Revokes one token; revoking it again changes nothing but perhaps how long that is kept.
    ///
    /// Errors: TENANT_NOT_FOUND.
    pub async fn revoke(
        &self,
        permit: AdminPermit,
        request: RevokeToken,
    ) -> Result<Recorded<Timestamp>> {
        if !self.db.tenant_exists(&request.tenant).await? {
            return Err(Error::new(
                Reason::TenantNotFound,
                "no such tenant, or none that you may see",
            ));
        }
        let now = self.clock.now();
        // What the caller says may be wrong; a token issued this moment expires no later than this.
        let longest = now.plus(Duration::from_secs(self.config.max_ttl_seconds));
        let leeway = Duration::from_secs(self.config.leeway_seconds);
        let keep_until = request.expires_at.unwrap_or(longest).max(longest);
        let revocation = TokenRevocation {
            tenant: request.tenant,
            jti: request.jti,
            keep_until: keep_until.plus(leeway),
        };
        let mut mutation = permit.begin().await?;
        mutation.on("token", revocation.jti);
        mutation.tx().revoke_token(&revocation, now).await?;
        let details = json!({
            "keep_until": revocation.keep_until.micros(),
            "reason": request.reason,
        });
        let keep_until = revocation.keep_until;
        let revocations = std::sync::Arc::clone(&self.revocations);
        mutation.then(move || revocations.add(revocation, now));
        mutation.record(keep_until, details).await
    }

    /// Takes over a revocation that another replica recorded.
    pub fn revoked_elsewhere(&self, revocation: TokenRevocation) {
        self.revocations.add(revocation, self.clock.now());
    }

    /// Reads every revocation. Until then, and when one could not be taken over, tokens must not be verified.
    pub async fn load_revocations(&self) -> Result<()> {
        let now = self.clock.now();
        for revocation in self.db.revocations(now).await? {
            self.revocations.add(revocation, now);
        }
        Ok(())
    }

    pub(super) fn check_revoked(
        &self,
        tenant: &TenantName,
        jti: &str,
    ) -> std::result::Result<(), Rejection> {
        match self.revocations.holds(tenant, jti) {
            true => Err(Rejection::Revoked),
            false => Ok(()),
        }
    }

    /// Keeps the answer that a token is valid back if the token is revoked before the answer leaves (R-EMER-3).
    pub(super) fn release_unless_revoked(&self, permit: &Permit, tenant: &TenantName, jti: &str) {
        let revocations = std::sync::Arc::clone(&self.revocations);
        let (tenant, jti) = (tenant.clone(), jti.to_owned());
        permit.release_if(move || {
            let answer = match revocations.holds(&tenant, &jti) {
                true => Err(Error::new(
                    Reason::Conflict,
                    "the token was revoked while this call was under way; verify it again",
                )),
                false => Ok(()),
            };
            std::future::ready(answer)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocations_that_are_over_are_forgotten_when_there_are_many() {
        let revocations = Revocations::default();
        let tenant: TenantName = "acme".parse().expect("a name");
        let time = Timestamp::from_seconds;
        let add = |keep_until, now| {
            let jti = TokenId::random();
            let tenant = tenant.clone();
            let keep_until = time(keep_until);
            revocations.add(
                TokenRevocation {
                    tenant,
                    jti,
                    keep_until,
                },
                time(now),
            );
            jti.to_string()
        };
        let (short, long) = (add(10, 0), add(100, 0));
        assert!(revocations.holds(&tenant, &short) && revocations.holds(&tenant, &long));
        assert!(!revocations.holds(&"globex".parse().expect("a name"), &long));
        // The last of them is one too many.
        for _ in 1..ROOM {
            add(20, 50);
        }
        assert!(!revocations.holds(&tenant, &short));
        assert!(revocations.holds(&tenant, &long));
        assert_eq!(revocations.read().count, 1);
    }
}
