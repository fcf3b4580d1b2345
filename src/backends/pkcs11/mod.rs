//! PKCS#11: keys in an HSM, or in SoftHSM for one machine.
//!
//! `Pkcs11Backend` is opened by the composition root and used through `trait Backend`. A call becomes a job
//! on a bounded queue, run by one of a fixed number of threads with one session each (`pool.rs`). Keys are
//! named by RFC 7512 URIs (`uri.rs`). The PIN is tried once per process; nothing here logs out, exports a
//! key, or creates one because another was not found.

mod config;
mod crew;
mod errors;
mod facts;
mod keys;
mod mechanisms;
mod module;
mod objects;
mod open;
mod pool;
pub mod provision;
mod queue;
mod rate;
mod session;
mod templates;
pub mod uri;
mod usage;
mod verify_cost;

pub use config::{Pkcs11Config, Pkcs11ConfigError};
pub use facts::{Facts, facts};
pub use module::{Module, Modules, Paused};
pub use rate::raw_sign_rate;
pub use verify_cost::{VerifyCost, verify_costs};

use pool::Pool;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::{
    backends::{Backend, BackendError, Call, Capabilities, Created, Destroyed},
    model::{
        Algorithm, IntentId, KeySpec, PublicKey, key::BackendRef, public_key::SignInput,
        secret::DataKey,
    },
};

/// One token.
pub struct Pkcs11Backend {
    pool: Pool,
    capabilities: Capabilities,
}

impl Backend for Pkcs11Backend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create<'a>(
        &'a self,
        spec: KeySpec,
        intent: IntentId,
        label: &'a str,
        deadline: Instant,
    ) -> Call<'a, Created> {
        Box::pin(async move {
            if !self.capabilities.specs.contains(&spec) {
                return Err(BackendError::Unsupported(format!("{spec:?} keys")));
            }
            let label = label.to_owned();
            let until = deadline.into_std();
            let work = move |live: &mut session::Live| live.create(spec, intent, &label, until);
            self.pool
                .make(deadline, work, session::Live::take_back)
                .await
        })
    }

    fn adopt<'a>(&'a self, uri: &'a str, spec: KeySpec, deadline: Instant) -> Call<'a, Created> {
        Box::pin(async move {
            let uri = uri.to_owned();
            let work = move |live: &mut session::Live| live.adopt(&uri, spec);
            self.pool.manage(deadline, work).await
        })
    }

    fn public_key<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, PublicKey> {
        Box::pin(async move {
            let reference = key.clone();
            let work = move |live: &mut session::Live| {
                let key = live.key(&reference)?;
                let uri = live.own_reference(&reference)?;
                live.public_half(key, &uri)
            };
            self.pool.run(deadline, work).await
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
            let data = mechanisms::signing_input(algorithm, input)?;
            let key = key.clone();
            let work = move |live: &mut session::Live| live.sign(&key, algorithm, &data);
            self.pool.run(deadline, work).await
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
            let (kek, aad) = (kek.clone(), aad.to_vec());
            // On the heap, so that moving the work leaves no copies behind.
            let key = Zeroizing::new(key.expose_secret().to_vec());
            let work = move |live: &mut session::Live| live.wrap(&kek, &key, &aad);
            self.pool.run(deadline, work).await
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
            let (kek, wrapped, aad) = (kek.clone(), wrapped.to_vec(), aad.to_vec());
            let work = move |live: &mut session::Live| live.unwrap(&kek, &wrapped, &aad);
            self.pool.run(deadline, work).await
        })
    }

    fn destroy<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, Destroyed> {
        Box::pin(async move {
            let key = key.clone();
            let mut begun = false;
            let work = move |live: &mut session::Live| live.destroy(&key, &mut begun);
            self.pool.manage(deadline, work).await?;
            Ok(Destroyed::Now)
        })
    }

    fn find(&self, intent: IntentId, deadline: Instant) -> Call<'_, Vec<String>> {
        Box::pin(async move {
            let work = move |live: &mut session::Live| live.describe(intent);
            self.pool.manage(deadline, work).await
        })
    }

    fn ready(&self, deadline: Instant) -> Call<'_, ()> {
        Box::pin(async move {
            let work = |live: &mut session::Live| live.check_presence();
            self.pool.run(deadline, work).await
        })
    }
}
