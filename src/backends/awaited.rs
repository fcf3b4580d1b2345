//! A device that was away when the daemon started: it is opened as soon as it is there.
//!
//! `app` puts one in the place of a token that it could not open and that the start can do without. `ready`, which the
//! probe of its circuit breaker asks every second, tries again; until it succeeds every call is `Unavailable`. Afterwards
//! it hands everything to the backend that was opened.

use std::sync::{Arc, Mutex, OnceLock, TryLockError};

use tokio::time::{Instant, timeout_at};

use super::{Backend, BackendError, Call, Capabilities, Created, Destroyed, VerifyAfterSign};
use crate::model::{
    Algorithm, IntentId, KeySpec, PublicKey, key::BackendRef, public_key::SignInput,
    secret::DataKey,
};

/// Opens the device. It may block, and is never run twice at the same time.
pub type Open = dyn FnMut() -> Result<Arc<dyn Backend>, BackendError> + Send;

/// A backend that is not open yet, or was not when the daemon started.
pub struct Awaited {
    /// What is known of a device that nobody has seen.
    unknown: Capabilities,
    open: Arc<Mutex<Box<Open>>>,
    opened: Arc<OnceLock<Arc<dyn Backend>>>,
}

impl Awaited {
    /// The device that `open` opens, of this name in the configuration.
    pub fn new(name: &str, verify_after_sign: VerifyAfterSign, open: Box<Open>) -> Self {
        Self {
            unknown: Capabilities {
                name: name.to_owned(),
                device: "not seen yet".to_owned(),
                specs: Vec::new(),
                algorithms: Vec::new(),
                verify_after_sign,
                one_at_a_time: false,
                longest_message: None,
            },
            open: Arc::new(Mutex::new(open)),
            opened: Arc::default(),
        }
    }

    fn backend(&self) -> Result<&dyn Backend, BackendError> {
        let opened = self.opened.get().map(AsRef::as_ref);
        opened.ok_or_else(|| away("it has not been there since the daemon started"))
    }

    /// Tries to open it, on a thread of its own. A try that hangs goes on beyond the deadline, and none is begun beside it.
    async fn try_open(&self, deadline: Instant) -> Result<(), BackendError> {
        let (open, opened) = (Arc::clone(&self.open), Arc::clone(&self.opened));
        let attempt = tokio::task::spawn_blocking(move || {
            let mut open = match open.try_lock() {
                Ok(open) => open,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Err(away("it is being opened")),
            };
            if opened.get().is_none() {
                let backend = open()?;
                tracing::info!(
                    backend = backend.capabilities().name,
                    device = backend.capabilities().device,
                    "backend is open"
                );
                let _ = opened.set(backend);
            }
            Ok(())
        });
        match timeout_at(deadline, attempt).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(BackendError::WrongPin))) => Err(BackendError::WrongPin),
            Ok(Ok(Err(error))) => Err(away(&error.to_string())),
            Ok(Err(_panicked)) => Err(away("opening it failed")),
            Err(_elapsed) => Err(BackendError::DeadlineExceeded),
        }
    }
}

fn away(why: &str) -> BackendError {
    BackendError::Unavailable(why.to_owned())
}

impl Backend for Awaited {
    fn capabilities(&self) -> &Capabilities {
        self.opened
            .get()
            .map_or(&self.unknown, |backend| backend.capabilities())
    }

    fn create<'a>(
        &'a self,
        spec: KeySpec,
        intent: IntentId,
        label: &'a str,
        deadline: Instant,
    ) -> Call<'a, Created> {
        match self.backend() {
            Ok(backend) => backend.create(spec, intent, label, deadline),
            Err(error) => refused(error),
        }
    }

    fn adopt<'a>(&'a self, uri: &'a str, spec: KeySpec, deadline: Instant) -> Call<'a, Created> {
        match self.backend() {
            Ok(backend) => backend.adopt(uri, spec, deadline),
            Err(error) => refused(error),
        }
    }

    fn public_key<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, PublicKey> {
        match self.backend() {
            Ok(backend) => backend.public_key(key, deadline),
            Err(error) => refused(error),
        }
    }

    fn sign<'a>(
        &'a self,
        key: &'a BackendRef,
        algorithm: Algorithm,
        input: SignInput<'a>,
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        match self.backend() {
            Ok(backend) => backend.sign(key, algorithm, input, deadline),
            Err(error) => refused(error),
        }
    }

    fn wrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        match self.backend() {
            Ok(backend) => backend.wrap(kek, key, aad, deadline),
            Err(error) => refused(error),
        }
    }

    fn unwrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, DataKey> {
        match self.backend() {
            Ok(backend) => backend.unwrap(kek, wrapped, aad, deadline),
            Err(error) => refused(error),
        }
    }

    fn destroy<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, Destroyed> {
        match self.backend() {
            Ok(backend) => backend.destroy(key, deadline),
            Err(error) => refused(error),
        }
    }

    fn find(&self, intent: IntentId, deadline: Instant) -> Call<'_, Vec<String>> {
        match self.backend() {
            Ok(backend) => backend.find(intent, deadline),
            Err(error) => refused(error),
        }
    }

    fn ready(&self, deadline: Instant) -> Call<'_, ()> {
        Box::pin(async move {
            if self.opened.get().is_none() {
                self.try_open(deadline).await?;
            }
            self.backend()?.ready(deadline).await
        })
    }
}

fn refused<'a, T: Send + 'a>(error: BackendError) -> Call<'a, T> {
    Box::pin(std::future::ready(Err(error)))
}
