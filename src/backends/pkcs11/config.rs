//! The `[backends.<name>]` section of a PKCS#11 token.
//!
//! Read at start and never again; the PIN leaves it only towards `C_Login`. It has no `Debug`, because the
//! PIN has none.

use std::{path::PathBuf, thread};

use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    backends::{BackendError, STALL_MS, VerifyAfterSign},
    model::secret::{Secret, SecretString},
};

/// A PKCS#11 token and how to use it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Config {
    /// Path of the PKCS#11 library, for example `/usr/lib/softhsm/libsofthsm2.so`.
    pub module: PathBuf,
    /// Label of the token, as the token shows it. It must be the only token with this label.
    pub token: String,
    /// The user PIN. Prefer `pin_file`: exactly one of the two is needed.
    pub pin: Option<SecretString>,
    /// File that holds the user PIN; one trailing newline is not part of it.
    pub pin_file: Option<PathBuf>,
    /// Threads that talk to the token, one session each, 1 to 64. Default: the number of cores, and at least 2, so that
    /// one is left while another generates keys. Fewer are started when the token allows fewer sessions.
    pub threads: Option<usize>,
    /// Calls that may wait for a free thread; one more is refused at once.
    #[serde(default = "default_queue")]
    pub queue: usize,
    /// How long no call may come back while calls wait before the device counts as hanging, in milliseconds, 100 to
    /// 60,000. Default 800.
    #[serde(default = "default_stall_ms")]
    pub stall_ms: u64,
    /// Which fresh signatures are verified before they leave. Default `sampled`.
    #[serde(default = "default_verify_after_sign")]
    pub verify_after_sign: VerifyAfterSign,
}

/// What is wrong with the section.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Pkcs11ConfigError {
    /// The label cannot be one.
    #[error("token must be a label of 1 to 32 bytes without control characters")]
    Token,
    /// Both or none given.
    #[error("give exactly one of pin and pin_file")]
    PinSource,
    /// Nothing in it.
    #[error("the PIN is empty")]
    PinEmpty,
    /// Cannot be read as text.
    #[error("cannot read pin_file {0}: {1}")]
    PinFile(PathBuf, std::io::ErrorKind),
    /// Out of range.
    #[error("threads must be 1 to 64, not {0}")]
    Threads(usize),
    /// Out of range.
    #[error("queue must be 1 to 1000000, not {0}")]
    Queue(usize),
    /// Out of range.
    #[error("stall_ms must be 100 to 60000, not {0}")]
    Stall(u64),
}

const fn default_verify_after_sign() -> VerifyAfterSign {
    VerifyAfterSign::Sampled
}

/// So that callers of a token that hangs hear so within a second.
pub(super) const fn default_stall_ms() -> u64 {
    800
}

const fn default_queue() -> usize {
    1024
}

impl Pkcs11Config {
    /// Checks everything that can be checked without the token and without reading a file.
    pub fn validate(&self) -> Result<(), Pkcs11ConfigError> {
        let label = &self.token;
        if label.is_empty() || label.len() > 32 || label.chars().any(char::is_control) {
            return Err(Pkcs11ConfigError::Token);
        }
        if self.pin.is_some() == self.pin_file.is_some() {
            return Err(Pkcs11ConfigError::PinSource);
        }
        match self.threads {
            Some(n) if !(1..=64).contains(&n) => return Err(Pkcs11ConfigError::Threads(n)),
            Some(_) | None => {}
        }
        if !(1..=1_000_000).contains(&self.queue) {
            return Err(Pkcs11ConfigError::Queue(self.queue));
        }
        if !STALL_MS.contains(&self.stall_ms) {
            return Err(Pkcs11ConfigError::Stall(self.stall_ms));
        }
        Ok(())
    }

    /// A copy, also of the PIN, for a token that is opened later than at the start.
    pub fn for_later(&self) -> Self {
        let pin = self.pin.as_ref();
        Self {
            module: self.module.clone(),
            token: self.token.clone(),
            pin: pin.map(|pin| Secret::new(pin.expose_secret().clone())),
            pin_file: self.pin_file.clone(),
            threads: self.threads,
            queue: self.queue,
            stall_ms: self.stall_ms,
            verify_after_sign: self.verify_after_sign,
        }
    }

    /// As `validate`, and that the PIN can be read.
    pub fn check(&self) -> Result<(), Pkcs11ConfigError> {
        self.validate()?;
        self.read_pin().map(drop)
    }

    /// Threads to start when the token sets no limit.
    pub fn threads(&self) -> usize {
        self.threads
            .or_else(|| {
                let cores = thread::available_parallelism().ok();
                cores.map(|cores| cores.get().max(2))
            })
            .unwrap_or(2)
            .clamp(1, 64)
    }

    /// The PIN, from where the section says it is.
    pub(super) fn read_pin(&self) -> Result<SecretString, Pkcs11ConfigError> {
        let pin = match (&self.pin, &self.pin_file) {
            (Some(pin), None) => pin.expose_secret().clone(),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map(Zeroizing::new)
                    .map_err(|e| Pkcs11ConfigError::PinFile(path.clone(), e.kind()))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                line.strip_suffix('\r').unwrap_or(line).to_owned()
            }
            (Some(_), Some(_)) | (None, None) => return Err(Pkcs11ConfigError::PinSource),
        };
        if pin.is_empty() {
            return Err(Pkcs11ConfigError::PinEmpty);
        }
        Ok(Secret::new(pin))
    }
}

impl From<Pkcs11ConfigError> for BackendError {
    fn from(error: Pkcs11ConfigError) -> Self {
        Self::Misconfigured(error.to_string())
    }
}
