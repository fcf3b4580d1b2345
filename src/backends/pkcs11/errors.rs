//! What a PKCS#11 error means. The same code means different things in different functions, so it is
//! judged together with the function that returned it, here and nowhere else.

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};

use crate::backends::BackendError;

/// CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0, which the crate has no name for.
const AEAD_DECRYPT_FAILED: u64 = 0x35;

/// Why an attempt failed, and what that says about the session.
pub(super) enum Fault {
    /// We say no; the device was not asked or answered well. The session stays.
    Refused(BackendError),
    /// The device says no. The session goes, because it may be left inside an operation.
    Failed(BackendError),
    /// The device is in trouble over this call; a new session may help, a new library only when nothing
    /// works any more.
    Trouble(BackendError),
    /// The session, the login, the handle or the token is gone: climb the recovery ladder.
    Gone(BackendError),
}

impl Fault {
    /// For work that must not run twice.
    pub(super) fn finally(self) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(error),
            Self::Failed(error) | Self::Trouble(error) | Self::Gone(error) => Self::Failed(error),
        }
    }

    pub(super) fn into_error(self) -> BackendError {
        match self {
            Self::Refused(e) | Self::Failed(e) | Self::Trouble(e) | Self::Gone(e) => e,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let (rv, function) = match error {
            Error::Pkcs11(rv, function) => (rv, function),
            Error::NullFunctionPointer | Error::MissingSymbol(_) | Error::NotSupported => {
                return Self::Failed(BackendError::Unsupported(error.to_string()));
            }
            other => return Self::Failed(BackendError::Unavailable(other.to_string())),
        };
        // The code's name: its Display is a paragraph of the specification.
        let what = format!("C_{function:?} returned {rv:?}");
        // A wildcard, because vendors add codes and the list in the crate is open.
        match rv {
            RvError::SessionClosed
            | RvError::SessionHandleInvalid
            | RvError::UserNotLoggedIn
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::DeviceRemoved
            | RvError::SlotIdInvalid
            | RvError::CryptokiNotInitialized
            | RvError::KeyHandleInvalid
            | RvError::ObjectHandleInvalid => Self::Gone(BackendError::Unavailable(what)),

            // What SoftHSM and others say about a GCM tag that does not match.
            RvError::GeneralError
            | RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::SignatureInvalid
            | RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED)
                if matches!(function, Function::Decrypt) =>
            {
                Self::Failed(BackendError::Rejected(
                    "the ciphertext, the KEK or the context is another one".into(),
                ))
            }
            RvError::DataInvalid | RvError::DataLenRange => {
                Self::Failed(BackendError::Rejected(what))
            }

            // A code that nobody knows may be the vendor's word for any trouble, also for one that only a new library mends.
            RvError::VendorDefined(_)
            | RvError::UnknownErrorCode(_)
            | RvError::GeneralError
            | RvError::FunctionFailed
            | RvError::DeviceError
            | RvError::OperationActive
            | RvError::OperationNotInitialized => Self::Trouble(BackendError::Unavailable(what)),

            RvError::KeyTypeInconsistent
            | RvError::KeyFunctionNotPermitted
            | RvError::KeySizeRange
            | RvError::ActionProhibited => Self::Failed(BackendError::Unfit(what)),

            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::FunctionNotSupported
            | RvError::CurveNotSupported
            | RvError::DomainParamsInvalid => Self::Failed(BackendError::Unsupported(what)),

            RvError::PinLocked => Self::Failed(BackendError::Misconfigured(
                "the token's user PIN is locked; unlock it with the SO PIN, then restart".into(),
            )),
            RvError::PinExpired => Self::Failed(BackendError::Misconfigured(
                "the token's user PIN has expired; set a new one, then restart".into(),
            )),
            RvError::UserPinNotInitialized => Self::Failed(pin_not_initialised()),
            _ => Self::Failed(BackendError::Unavailable(what)),
        }
    }
}

pub(super) fn pin_not_initialised() -> BackendError {
    BackendError::Misconfigured(
        "the token has no user PIN; set one with the SO PIN (pkcs11-tool --init-pin)".into(),
    )
}

/// True for codes that say "this template is not for me", after which another one may do.
pub(super) const fn is_template_error(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::AttributeReadOnly
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::TemplateInconsistent
                | RvError::CurveNotSupported
                | RvError::DomainParamsInvalid,
            _
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_the_vendors_own_climbs_the_ladder() {
        for code in [
            RvError::VendorDefined(0x8000_0123),
            RvError::UnknownErrorCode(0x1234),
        ] {
            let fault = Fault::from(Error::Pkcs11(code, Function::SignInit));
            assert!(matches!(
                fault,
                Fault::Trouble(BackendError::Unavailable(_))
            ));
        }
        // But for the one that says in 3.0 that a ciphertext was tampered with.
        let tampered = RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED);
        let fault = Fault::from(Error::Pkcs11(tampered, Function::Decrypt));
        assert!(matches!(fault, Fault::Failed(BackendError::Rejected(_))));
    }
}
