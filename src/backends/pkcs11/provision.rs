//! Makes tokens: for `claviger dev`, and for tests. Production tokens are made by the people who own the
//! HSM, with their tools; the daemon never initialises one.

use cryptoki::{session::UserType, slot::Slot, types::AuthPin};

use super::module::{Module, brief};
use crate::{backends::BackendError, model::secret::SecretString};

/// Is there an initialised token with this label?
pub fn token_exists(module: &Module, label: &str) -> Result<bool, BackendError> {
    let _inside = module.enter();
    let mut slots = slots(module)?.into_iter();
    Ok(slots.any(|(_, info)| info.token_initialized() && info.label() == label))
}

/// Initialises a free slot as a token with this label and these PINs. `Misconfigured` when the label is
/// taken or no slot is free; an initialised token is never touched.
pub fn init_token(
    module: &Module,
    label: &str,
    so_pin: &SecretString,
    pin: &SecretString,
) -> Result<(), BackendError> {
    if token_exists(module, label)? {
        return Err(BackendError::Misconfigured(format!(
            "a token with label {label} exists already"
        )));
    }
    let _inside = module.enter();
    let context = module.context();
    let (slot, _) = slots(module)?
        .into_iter()
        .find(|(_, info)| !info.token_initialized())
        .ok_or_else(|| {
            BackendError::Misconfigured("the PKCS#11 module has no free slot for a token".into())
        })?;
    let so_pin = AuthPin::from(so_pin.expose_secret().as_str());
    let pin = AuthPin::from(pin.expose_secret().as_str());
    let made = || -> Result<(), cryptoki::error::Error> {
        context.init_token(slot, &so_pin, label)?;
        let session = context.open_rw_session(slot)?;
        session.login(UserType::So, Some(&so_pin))?;
        session.init_pin(&pin)?;
        // The one logout there is: of the security officer, from a token nobody else uses yet.
        session.logout()
    };
    made().map_err(|e| BackendError::Unavailable(format!("cannot make a token: {}", brief(&e))))
}

fn slots(module: &Module) -> Result<Vec<(Slot, cryptoki::slot::TokenInfo)>, BackendError> {
    let context = module.context();
    let slots = context
        .get_slots_with_token()
        .map_err(|e| BackendError::Unavailable(brief(&e)))?;
    Ok(slots
        .into_iter()
        .filter_map(|slot| Some((slot, context.get_token_info(slot).ok()?)))
        .collect())
}
