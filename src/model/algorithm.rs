//! Algorithms, what they are used for, and the kind of key each needs.

use std::{fmt, str::FromStr};

use aws_lc_rs::{digest, signature};

use crate::error::{Error, Reason};

/// What a key may be used for; one per key, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Signs bytes that callers choose.
    Signing,
    /// Signs only tokens that `tokens/` composed. Apart from `Signing`, because whoever may sign bytes of
    /// their choice with a key of the JWKS can forge any token.
    TokenSigning,
    /// Encrypts bytes under data keys.
    Encryption,
    /// Computes and verifies message authentication codes.
    Mac,
}

/// JOSE algorithms (RFC 7518, RFC 8037); one per key, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA P-256, SHA-256.
    Es256,
    /// ECDSA P-384, SHA-384.
    Es384,
    /// ECDSA P-521, SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
    /// RSASSA-PSS, SHA-256.
    Ps256,
    /// RSASSA-PSS, SHA-384.
    Ps384,
    /// RSASSA-PSS, SHA-512.
    Ps512,
    /// RSASSA-PKCS1-v1_5, SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5, SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5, SHA-512.
    Rs512,
    /// The envelope of `envelope/`, AES-256-GCM.
    A256Gcm,
    /// HMAC, SHA-256 (FIPS 198-1).
    Hs256,
    /// HMAC, SHA-512.
    Hs512,
}

/// What a backend generates for an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
    /// Edwards25519.
    Ed25519,
    /// RSA with this many bits of modulus.
    Rsa(u32),
    /// AES-256 that wraps data keys.
    Kek,
}

/// Hash that a signature algorithm signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hash {
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl Hash {
    /// The implementation.
    pub fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// Length of a digest in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// RSA modulus lengths that may be created, in bits. Below 2048 is forbidden (R-JWT-3).
pub const RSA_BITS: [u32; 3] = [2048, 3072, 4096];
/// RSA modulus length when the caller names none, in bits.
pub const RSA_BITS_DEFAULT: u32 = 3072;

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 13] = [
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::A256Gcm,
        Self::Hs256,
        Self::Hs512,
    ];

    /// `alg` in JOSE, and the text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::A256Gcm => "A256GCM",
            Self::Hs256 => "HS256",
            Self::Hs512 => "HS512",
        }
    }

    /// The hash that is signed. None for EdDSA, which signs messages, for encryption and for MACs.
    pub const fn hash(self) -> Option<Hash> {
        match self {
            Self::Es256 | Self::Ps256 | Self::Rs256 => Some(Hash::Sha256),
            Self::Es384 | Self::Ps384 | Self::Rs384 => Some(Hash::Sha384),
            Self::Es512 | Self::Ps512 | Self::Rs512 => Some(Hash::Sha512),
            Self::EdDsa | Self::A256Gcm | Self::Hs256 | Self::Hs512 => None,
        }
    }

    /// True for the RSA algorithms.
    pub const fn is_rsa(self) -> bool {
        matches!(
            self,
            Self::Ps256 | Self::Ps384 | Self::Ps512 | Self::Rs256 | Self::Rs384 | Self::Rs512
        )
    }

    /// True where the purpose and the algorithm go together.
    pub const fn fits(self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Signing | Purpose::TokenSigning => {
                !matches!(self, Self::A256Gcm | Self::Hs256 | Self::Hs512)
            }
            Purpose::Encryption => matches!(self, Self::A256Gcm),
            Purpose::Mac => matches!(self, Self::Hs256 | Self::Hs512),
        }
    }

    /// The key pair this signs with; `rsa_bits` is read for RSA only. None for encryption and MACs.
    pub const fn key_spec(self, rsa_bits: u32) -> Option<KeySpec> {
        match self {
            Self::Es256 => Some(KeySpec::P256),
            Self::Es384 => Some(KeySpec::P384),
            Self::Es512 => Some(KeySpec::P521),
            Self::EdDsa => Some(KeySpec::Ed25519),
            Self::Ps256 | Self::Ps384 | Self::Ps512 | Self::Rs256 | Self::Rs384 | Self::Rs512 => {
                Some(KeySpec::Rsa(rsa_bits))
            }
            Self::A256Gcm | Self::Hs256 | Self::Hs512 => None,
        }
    }

    /// How signatures are verified, in their JOSE form. None for encryption and MACs.
    pub fn verification(self) -> Option<&'static dyn signature::VerificationAlgorithm> {
        Some(match self {
            Self::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &signature::ECDSA_P521_SHA512_FIXED,
            Self::EdDsa => &signature::ED25519,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::A256Gcm | Self::Hs256 | Self::Hs512 => return None,
        })
    }
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 4] = [
        Self::Signing,
        Self::TokenSigning,
        Self::Encryption,
        Self::Mac,
    ];

    /// Does a key of this purpose have key pairs in a backend? The others have data keys under the KEK.
    pub const fn has_pairs(self) -> bool {
        matches!(self, Self::Signing | Self::TokenSigning)
    }

    /// The text in the database, in Cedar and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signing => "SIGNING",
            Self::TokenSigning => "TOKEN_SIGNING",
            Self::Encryption => "ENCRYPTION",
            Self::Mac => "MAC",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|a| a.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown algorithm"))
    }
}

impl FromStr for Purpose {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown key purpose"))
    }
}
