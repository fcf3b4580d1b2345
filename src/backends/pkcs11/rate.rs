//! How fast the token itself signs: the yardstick that benchmarks are held against.
//!
//! Plain `C_Sign` calls in a loop, with a key pair that exists in the session only and leaves nothing behind.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use cryptoki::{
    mechanism::Mechanism,
    object::Attribute,
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};

use super::{
    Pkcs11Config,
    module::{Module, Modules, brief},
    objects::P256_OID,
};
use crate::backends::BackendError;

/// ES256 signatures per second of the token, by so many threads with a session each, measured for `duration`.
pub fn raw_sign_rate(
    config: &Pkcs11Config,
    modules: &Modules,
    threads: usize,
    duration: Duration,
) -> Result<f64, BackendError> {
    let module = modules.load(&config.module)?;
    let _inside = module.enter();
    let slot = slot(&module, &config.token)?;
    let _keeper = logged_in(config, &module, slot)?;
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| signatures(&module, slot, &start, duration)))
            .collect();
        let mut total = 0.0;
        for worker in workers {
            total += worker
                .join()
                .map_err(|_| BackendError::Unavailable("a signing thread panicked".into()))??;
        }
        Ok(total)
    })
}

/// A session that keeps the login for as long as it is held.
pub(super) fn logged_in(
    config: &Pkcs11Config,
    module: &Module,
    slot: Slot,
) -> Result<Session, BackendError> {
    let pin = config.read_pin()?;
    let keeper = module.context().open_ro_session(slot).map_err(trouble)?;
    let auth = AuthPin::from(pin.expose_secret().as_str());
    match keeper.login(UserType::User, Some(&auth)) {
        Ok(()) => Ok(keeper),
        // Login belongs to the token, so another backend of this process may have done it.
        Err(cryptoki::error::Error::Pkcs11(cryptoki::error::RvError::UserAlreadyLoggedIn, _)) => {
            Ok(keeper)
        }
        Err(e) => Err(trouble(e)),
    }
}

fn signatures(
    module: &Module,
    slot: Slot,
    start: &Barrier,
    duration: Duration,
) -> Result<f64, BackendError> {
    let prepared = || {
        let session = module.context().open_ro_session(slot)?;
        let public = [
            Attribute::Token(false),
            Attribute::EcParams(P256_OID.to_vec()),
            Attribute::Verify(true),
        ];
        let private = [
            Attribute::Token(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        let (_, key) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
        Ok((session, key))
    };
    let prepared: Result<_, cryptoki::error::Error> = prepared();
    // Everybody reaches the barrier, or the others would wait for ever.
    start.wait();
    let (session, key) = prepared.map_err(trouble)?;
    let began = Instant::now();
    let mut count = 0u32;
    let mut digest = [0u8; 32];
    while began.elapsed() < duration {
        digest[..4].copy_from_slice(&count.to_be_bytes());
        session
            .sign(&Mechanism::Ecdsa, key, &digest)
            .map_err(trouble)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

pub(super) fn slot(module: &Module, label: &str) -> Result<Slot, BackendError> {
    let context = module.context();
    let slots = context.get_slots_with_token().map_err(trouble)?;
    slots
        .into_iter()
        .find(|slot| {
            context
                .get_token_info(*slot)
                .is_ok_and(|info| info.token_initialized() && info.label() == label)
        })
        .ok_or_else(|| BackendError::Misconfigured(format!("no token with label {label}")))
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
pub(super) fn trouble(error: cryptoki::error::Error) -> BackendError {
    BackendError::Unavailable(brief(&error))
}
