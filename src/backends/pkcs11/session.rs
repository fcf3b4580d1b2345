//! A logged-in session of one pool thread, and everything about the token that the threads share.
//!
//! The login belongs to the token, so one keeper session holds it while pool sessions come and go; nobody
//! ever logs out. A session remembers in which epoch of the module it was opened: after a reinitialisation
//! its number may belong to somebody else, so it is forgotten, not closed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use cryptoki::{
    error::{Error, RvError},
    session::{Session, SessionState, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};

use super::{
    errors::{Fault, pin_not_initialised},
    module::{Module, lock},
    objects::Key,
};
use crate::{
    backends::BackendError,
    model::{Algorithm, key::BackendRef, secret::SecretString},
};

/// One token of one module, as the pool's threads see it.
pub(super) struct Shared {
    pub(super) module: Arc<Module>,
    pub(super) token: TokenInfo,
    pub(super) pin: SecretString,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) keeper: Mutex<Option<Keeper>>,
}

/// Holds the login. It ends with the backend only: with the last session of a token goes the login.
pub(super) struct Keeper {
    session: Session,
    epoch: u64,
}

/// A session, logged in, with the handles that were found through it.
pub(super) struct Live {
    pub(super) session: Session,
    pub(super) shared: Arc<Shared>,
    pub(super) keys: HashMap<BackendRef, Key>,
    slot: Slot,
    epoch: u64,
}

impl Shared {
    /// The slot that holds our token now; it moves when the module is reinitialised.
    pub(super) fn slot(&self) -> Result<Slot, Fault> {
        let context = self.module.context();
        let gone = || {
            Fault::Gone(BackendError::Unavailable(format!(
                "token {} is not in any slot of the PKCS#11 module",
                self.token.label()
            )))
        };
        context
            .get_slots_with_token()?
            .into_iter()
            .find(|slot| {
                context
                    .get_token_info(*slot)
                    .is_ok_and(|info| self.is_ours(&info))
            })
            .ok_or_else(gone)
    }

    fn is_ours(&self, info: &TokenInfo) -> bool {
        info.token_initialized()
            && info.label() == self.token.label()
            && info.serial_number() == self.token.serial_number()
    }

    /// Logs the token in through the keeper; one try with the PIN in the life of the process.
    pub(super) fn login(&self, slot: Slot, epoch: u64) -> Result<(), Fault> {
        let mut keeper = lock(&self.keeper);
        let serial = self.token.serial_number();
        if self.module.has_refused(serial) {
            return Err(Fault::Failed(BackendError::WrongPin));
        }
        let known = keeper.as_ref().filter(|keeper| keeper.epoch == epoch);
        let state = known.and_then(|keeper| is_logged_in(&keeper.session).ok());
        let context = self.module.context();
        match state {
            Some(true) => return Ok(()),
            Some(false) => {}
            None => {
                *keeper = Some(Keeper {
                    session: context.open_rw_session_no_drop(slot)?,
                    epoch,
                });
            }
        }
        let Some(keeper) = keeper.as_ref() else {
            return Ok(());
        };
        if is_logged_in(&keeper.session)? {
            return Ok(());
        }
        let token = context.get_token_info(slot)?;
        if !token.user_pin_initialized() {
            return Err(Fault::Failed(pin_not_initialised()));
        }
        if token.user_pin_final_try() && !token.user_pin_locked() {
            // A restart loop with a wrong PIN must not be what locks the token.
            return Err(Fault::Failed(BackendError::Misconfigured(
                "the token has one PIN try left; check the PIN with another tool, which resets the \
                 count, then restart"
                    .into(),
            )));
        }
        let pin = AuthPin::from(self.pin.expose_secret().as_str());
        match keeper.session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                self.module.refuse(serial);
                Err(Fault::Failed(BackendError::WrongPin))
            }
            Err(other) => Err(other.into()),
        }
    }
}

impl Keeper {
    /// For the end of the backend.
    pub(super) fn close(self, epoch: u64) {
        if self.epoch == epoch {
            let _ = self.session.close();
        }
    }
}

impl Live {
    /// A new session, logged in. The caller is inside the module, in `epoch`.
    pub(super) fn open(shared: &Arc<Shared>, epoch: u64) -> Result<Self, Fault> {
        let slot = shared.slot()?;
        let live = Self {
            session: shared.module.context().open_rw_session_no_drop(slot)?,
            shared: shared.clone(),
            keys: HashMap::new(),
            slot,
            epoch,
        };
        let ready = match is_logged_in(&live.session) {
            Ok(true) => Ok(()),
            Ok(false) => shared.login(slot, epoch),
            Err(error) => Err(error),
        };
        match ready {
            Ok(()) => Ok(live),
            Err(fault) => {
                live.close(epoch);
                Err(fault)
            }
        }
    }

    /// Gives the session back, if it still exists in `epoch`. The caller is inside the module.
    pub(super) fn close(self, epoch: u64) {
        if self.epoch == epoch {
            // It may be closed already, by a removal of the token for instance.
            let _ = self.session.close();
        }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Replaces the session by a new one, after an error that the work can go on from.
    pub(super) fn renew(&mut self) -> Result<(), Fault> {
        let new = Self::open(&self.shared, self.epoch)?;
        std::mem::replace(self, new).close(self.epoch);
        Ok(())
    }

    /// Is the token there, is it ours, are we logged in? A vanished token and a session that lost its login
    /// look like an empty token, so this is asked before "not found" is believed.
    pub(super) fn check_presence(&self) -> Result<(), Fault> {
        let info = self.shared.module.context().get_token_info(self.slot);
        if !info.is_ok_and(|info| self.shared.is_ours(&info)) {
            return Err(Fault::Gone(BackendError::Unavailable(format!(
                "token {} vanished",
                self.shared.token.label()
            ))));
        }
        if !is_logged_in(&self.session)? {
            return Err(Fault::Gone(BackendError::Unavailable(
                "the session lost its login".into(),
            )));
        }
        Ok(())
    }
}

fn is_logged_in(session: &Session) -> Result<bool, Fault> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RwUser | SessionState::RoUser))
}
