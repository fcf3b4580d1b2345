//! Opening a token: find it, log in, learn what it can do, start the threads. Every way in which the
//! configuration can be wrong gets its own sentence, which says what to do.

use std::sync::{Arc, Mutex};

use cryptoki::slot::{Limit, Slot, TokenInfo};

use super::{
    Pkcs11Backend, Pkcs11Config,
    errors::Fault,
    mechanisms,
    module::{Module, Modules},
    pool::Pool,
    session::{Live, Shared},
};
use crate::backends::{BackendError, Capabilities};

impl Pkcs11Backend {
    /// Opens the token of `config`. Blocks while the library works; for the start of the process.
    pub fn open(
        name: &str,
        config: &Pkcs11Config,
        modules: &Modules,
    ) -> Result<Self, BackendError> {
        config.validate()?;
        let pin = config.read_pin()?;
        let module = modules.load(&config.module)?;
        let inside = module.enter();
        let (slot, token) = locate(&module, &config.token)?;
        if token.user_pin_locked() {
            return Err(BackendError::Misconfigured(
                "the token's user PIN is locked; unlock it with the SO PIN, then restart".into(),
            ));
        }
        let threads = threads(config.threads(), &token)?;
        let (specs, algorithms) = mechanisms::supported(module.context(), slot)
            .map_err(|e| Fault::from(e).into_error())?;
        let capabilities = Capabilities {
            name: name.to_owned(),
            device: format!("{} {}", token.manufacturer_id(), token.model()),
            specs,
            algorithms: algorithms.clone(),
            verify_after_sign: config.verify_after_sign,
            one_at_a_time: threads == 1,
            longest_message: None,
        };
        let shared = Arc::new(Shared {
            module: module.clone(),
            token,
            pin,
            algorithms,
            keeper: Mutex::new(None),
        });
        let epoch = inside.epoch();
        shared
            .login(slot, epoch)
            .and_then(|()| Live::open(&shared, epoch))
            .map(|live| live.close(epoch))
            .map_err(Fault::into_error)?;
        drop(inside);
        Ok(Self {
            pool: Pool::start(shared, threads, config.queue, name)?,
            capabilities,
        })
    }
}

impl Pkcs11Backend {
    /// As `open`, for a token that was away: many libraries see one that returned only when they are initialised anew,
    /// which costs other tokens of the library their sessions and happens as seldom as for a token that vanished.
    pub fn open_again(
        name: &str,
        config: &Pkcs11Config,
        modules: &Modules,
    ) -> Result<Self, BackendError> {
        let module = modules.load(&config.module)?;
        let epoch = module.enter().epoch();
        match Self::open(name, config, modules) {
            Ok(backend) => Ok(backend),
            Err(BackendError::WrongPin) => Err(BackendError::WrongPin),
            Err(error) if module.reinitialise(epoch).is_err() => Err(error),
            Err(_) => Self::open(name, config, modules),
        }
    }
}

/// The one token with this label.
fn locate(module: &Module, label: &str) -> Result<(Slot, TokenInfo), BackendError> {
    let context = module.context();
    let misconfigured = |why: String| Err(BackendError::Misconfigured(why));
    let slots = context
        .get_slots_with_token()
        .map_err(|e| Fault::from(e).into_error())?;
    let tokens: Vec<_> = slots
        .into_iter()
        .filter_map(|slot| Some((slot, context.get_token_info(slot).ok()?)))
        .collect();
    let mut named = tokens.iter().filter(|(_, info)| info.label() == label);
    match (named.next(), named.next()) {
        (Some((slot, info)), None) if info.token_initialized() => Ok((*slot, info.clone())),
        (Some(_), None) => misconfigured(format!(
            "token {label} is not initialised; initialise it with the tools of its maker"
        )),
        (Some(_), Some(_)) => misconfigured(format!(
            "more than one token has the label {label}; give each its own"
        )),
        (None, _) => {
            let present: Vec<_> = tokens
                .iter()
                .filter(|(_, info)| info.token_initialized())
                .map(|(_, info)| info.label())
                .collect();
            misconfigured(format!(
                "no token has the label {label}; PKCS#11 module {} shows {} ({present:?}) and {} \
                 uninitialised; correct `token`, or initialise a token with this label",
                module.path().display(),
                present.len(),
                tokens.len() - present.len(),
            ))
        }
    }
}

/// Threads that fit into the token's session limits, beside the keeper and what others have open.
fn threads(wanted: usize, token: &TokenInfo) -> Result<usize, BackendError> {
    let room = |limit: Limit| match limit {
        Limit::Infinite | Limit::Unavailable => usize::MAX,
        Limit::Max(n) => usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1),
    };
    let room = room(token.max_session_count()).min(room(token.max_rw_session_count()));
    if room == 0 {
        return Err(BackendError::Misconfigured(
            "the token allows one session only; two are the least: one keeps the login".into(),
        ));
    }
    Ok(wanted.min(room))
}
