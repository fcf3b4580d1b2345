//! AWS KMS: keys in Amazon's HSMs, in one account and region.
//!
//! `AwsKmsBackend` is opened by the composition root and used through `trait Backend`. A reference is a key
//! ARN, pinned in every request and compared in every answer. Keys are tagged with their intent when they
//! are made, and only keys with such a tag are ever deleted. Nothing here creates a key because another was
//! not found, or undoes a creation: what a cut-off attempt left is found by its intent.
//!
//! Priorities: making and destroying keys are `Rotation`, adopting them and the probe too unless their caller says that
//! they are `Batch`, `find` is `Batch`, and the uses of keys are what their caller says by `with_priority`.

mod arn;
mod calls;
mod config;
mod errors;
mod find;
mod governor;
mod keys;
mod lookup;
mod open;
mod specs;
mod usage;

use std::sync::Arc;

use tokio::time::Instant;

pub use config::{AwsKmsConfig, AwsKmsConfigError, QuotaConfig};

use crate::{
    backends::{
        Backend, BackendError, Call, Capabilities, Created, Destroyed, Priority, priority,
        with_priority,
    },
    model::{
        Algorithm, IntentId, KeySpec, PublicKey, key::BackendRef, public_key::SignInput,
        secret::DataKey,
    },
};
use arn::Named;
use calls::{Calls, Plan, Repeat};
use governor::Class;

/// One account and region. Cloning is cheap; clones share the quota.
#[derive(Clone)]
pub struct AwsKmsBackend {
    shared: Arc<Shared>,
}

struct Shared {
    calls: Calls,
    config: AwsKmsConfig,
    capabilities: Capabilities,
    surveyed: find::Surveyed,
}

impl AwsKmsBackend {
    fn plan(&self, name: &'static str, class: Class, deadline: Instant) -> Plan {
        Plan {
            name,
            class,
            priority: priority::current(),
            deadline,
            repeat: Repeat::Always,
        }
    }

    /// What `text` names, if that can be a key of this account and region.
    fn named(&self, text: &str) -> Result<Named, BackendError> {
        let named = Named::parse(text).map_err(unfit)?;
        let config = &self.shared.config;
        let Some(arn) = named.arn() else {
            return Ok(named);
        };
        if arn.region != config.region {
            return Err(unfit(&format!(
                "its ARN says region {}, and this backend is in {}",
                arn.region, config.region
            )));
        }
        match &config.account {
            Some(account) if *account != arn.account => Err(unfit(&format!(
                "its ARN says account {}, and this backend uses {account}",
                arn.account
            ))),
            Some(_) | None => Ok(named),
        }
    }

    /// The ARN of a reference that we gave.
    fn pinned<'a>(&self, key: &'a BackendRef) -> Result<&'a str, BackendError> {
        match self.named(&key.0)? {
            Named::Key(_) => Ok(&key.0),
            Named::AliasArn(_) | Named::Alias(_) => Err(unfit("a reference is a key ARN")),
        }
    }
}

/// `usual`, unless the caller has said that this can wait.
fn unless_batch(usual: Priority) -> Priority {
    match priority::current() {
        Priority::Batch => Priority::Batch,
        Priority::Rotation | Priority::Interactive => usual,
    }
}

fn unfit(why: &str) -> BackendError {
    BackendError::Unfit(why.into())
}

impl Backend for AwsKmsBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn create<'a>(
        &'a self,
        spec: KeySpec,
        intent: IntentId,
        label: &'a str,
        deadline: Instant,
    ) -> Call<'a, Created> {
        let created = self.create_key(spec, intent, label, deadline);
        Box::pin(with_priority(Priority::Rotation, created))
    }

    fn adopt<'a>(&'a self, uri: &'a str, spec: KeySpec, deadline: Instant) -> Call<'a, Created> {
        let adopted = self.adopt_key(uri, spec, deadline);
        Box::pin(with_priority(unless_batch(Priority::Rotation), adopted))
    }

    fn public_key<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, PublicKey> {
        Box::pin(async move {
            let arn = self.pinned(key)?;
            self.public_half(arn, deadline).await
        })
    }

    fn sign<'a>(
        &'a self,
        key: &'a BackendRef,
        algorithm: Algorithm,
        input: SignInput<'a>,
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        Box::pin(async move {
            let arn = self.pinned(key)?;
            self.sign_with(arn, algorithm, input, deadline).await
        })
    }

    fn wrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        Box::pin(async move {
            let arn = self.pinned(kek)?;
            self.encrypt(arn, key, aad, deadline).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, DataKey> {
        Box::pin(async move {
            let arn = self.pinned(kek)?;
            self.decrypt(arn, wrapped, aad, deadline).await
        })
    }

    fn destroy<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, Destroyed> {
        Box::pin(async move {
            let arn = self.pinned(key)?;
            let scheduled = self.schedule_deletion(arn, deadline);
            with_priority(Priority::Rotation, scheduled).await
        })
    }

    fn find(&self, intent: IntentId, deadline: Instant) -> Call<'_, Vec<String>> {
        let found = self.left_by(intent, deadline);
        Box::pin(with_priority(Priority::Batch, found))
    }

    fn ready(&self, deadline: Instant) -> Call<'_, ()> {
        let answered = self.answers(deadline);
        Box::pin(with_priority(unless_batch(Priority::Rotation), answered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_can_wait_waits_whatever_is_asked() {
        let usual = async { unless_batch(Priority::Rotation) };
        assert_eq!(usual.await, Priority::Rotation);
        let waits = async { unless_batch(Priority::Rotation) };
        let waits = with_priority(Priority::Batch, waits).await;
        assert_eq!(waits, Priority::Batch);
    }
}
