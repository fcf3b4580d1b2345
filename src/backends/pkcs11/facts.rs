//! What a token tells about itself beside its mechanisms, for people who set it up.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType},
    session::UserType,
    slot::{Limit, Slot},
    types::AuthPin,
};

use super::{
    Pkcs11Config,
    module::{Module, Modules},
    objects::P256_OID,
    rate::{slot, trouble},
};
use crate::backends::BackendError;

/// What a token tells.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Maker, description and version of the library, and the version of PKCS#11 it speaks.
    pub library: String,
    /// Most sessions at once; None when the token states no limit.
    pub max_sessions: Option<u64>,
    /// How CKA_EC_POINT is encoded; None when the token shows none.
    pub ec_point: Option<String>,
}

/// Asks a token. A key pair on P-256 is made for it, in a session of its own, and vanishes with it.
pub fn facts(config: &Pkcs11Config, modules: &Modules) -> Result<Facts, BackendError> {
    let pin = config.read_pin()?;
    let module = modules.load(&config.module)?;
    let _inside = module.enter();
    let slot = slot(&module, &config.token)?;
    let info = module.context().get_library_info().map_err(trouble)?;
    let token = module.context().get_token_info(slot).map_err(trouble)?;
    let most = [token.max_session_count(), token.max_rw_session_count()];
    Ok(Facts {
        library: format!(
            "{} {} {}, PKCS#11 {}",
            info.manufacturer_id(),
            info.library_description(),
            info.library_version(),
            info.cryptoki_version(),
        ),
        max_sessions: most.into_iter().filter_map(bound).min(),
        ec_point: ec_point(&module, slot, pin.expose_secret()),
    })
}

const fn bound(limit: Limit) -> Option<u64> {
    match limit {
        Limit::Max(most) => Some(most),
        Limit::Infinite | Limit::Unavailable => None,
    }
}

/// Only for people, so whatever fails is None.
fn ec_point(module: &Module, slot: Slot, pin: &str) -> Option<String> {
    let session = module.context().open_ro_session(slot).ok()?;
    let auth = AuthPin::from(pin);
    // The backend has logged in with this PIN before; a token that says so is the usual answer.
    if let Err(error) = session.login(UserType::User, Some(&auth)) {
        use cryptoki::error::{Error, RvError};
        if !matches!(error, Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) {
            return None;
        }
    }
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
    let pair = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    let (public, _) = pair.ok()?;
    let shown = session.get_attributes(public, &[AttributeType::EcPoint]);
    match shown.ok()?.pop()? {
        Attribute::EcPoint(point) => Some(encoding(&point)),
        _ => None,
    }
}

fn encoding(point: &[u8]) -> String {
    match point {
        [0x04, ..] if point.len() == 65 => "raw, 65 bytes".into(),
        [0x04, 65, 0x04, ..] if point.len() == 67 => "in a DER OCTET STRING, 67 bytes".into(),
        [0x03, 66, 0, 0x04, ..] if point.len() == 68 => "in a DER BIT STRING, 68 bytes".into(),
        _ => format!(
            "unknown, {} bytes: the daemon may not be able to read public keys",
            point.len()
        ),
    }
}
