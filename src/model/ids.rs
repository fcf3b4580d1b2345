//! Ids and names, parsed once at the edge; after that nobody handles a raw string.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use crate::error::{Error, Reason};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $noun:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: UUIDv7 (RFC 9562), ordered by creation.
            pub fn random() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id with these bytes, if they are those of a UUIDv7.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let id = Uuid::from_slice(bytes).ok()?;
                (id.get_version_num() == 7).then_some(Self(id))
            }

            /// The 16 bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(s: &str) -> Result<Self, Error> {
                parse_uuid(s).map(Self).ok_or_else(|| {
                    Error::new(Reason::InvalidField, concat!($noun, " id must be a UUID"))
                })
            }
        }
    };
}

/// A UUID in its canonical, lower-case, hyphenated form only: one id, one spelling.
fn parse_uuid(s: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(s).ok()?;
    (id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == s).then_some(id)
}

uuid_id!(
    /// Identifies a key for ever.
    KeyId, "key"
);
uuid_id!(
    /// Identifies a rotation.
    RotationId, "rotation"
);
uuid_id!(
    /// Identifies a principal for ever; separation of duties compares it.
    PrincipalId, "principal"
);
uuid_id!(
    /// Identifies an incident.
    IncidentId, "incident"
);
uuid_id!(
    /// Identifies the destruction of one key version.
    DestructionId, "destruction"
);
uuid_id!(
    /// Identifies a rotation of the key-encryption key.
    KekRotationId, "KEK rotation"
);
uuid_id!(
    /// Identifies the destruction of a tenant's keys.
    TenantDestructionId, "tenant destruction"
);
uuid_id!(
    /// Identifies an alert.
    AlertId, "alert"
);
uuid_id!(
    /// Identifies a delivery of an alert.
    DeliveryId, "delivery"
);
uuid_id!(
    /// Identifies a note in an incident.
    NoteId, "note"
);
uuid_id!(
    /// Identifies an API key; its visible part.
    ApiKeyId, "API key"
);
uuid_id!(
    /// Identifies an OAuth client: its `client_id`.
    ClientId, "client"
);
uuid_id!(
    /// Identifies a token: its `jti`.
    TokenId, "token"
);
uuid_id!(
    /// Names something we are about to create in a backend: its `CKA_ID` or KMS tag.
    IntentId, "intent"
);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A tenant: 1 to 63 characters of `a-z`, `0-9` and `-`, beginning with a letter.
    TenantName
);
name!(
    /// Name of a key or principal, unique in its tenant: 1 to 63 characters of `a-z`, `0-9`, `-`, `_`
    /// and `.`, beginning with a letter or digit, and not in the form of a UUID.
    KeyName
);
name!(
    /// Identifies one key version for ever (R-LIFE-1): 1 to 64 characters of the base64url alphabet.
    Kid
);

impl PrincipalId {
    /// An id that is written in the source.
    pub(super) fn constant(id: &'static str) -> Self {
        Self(parse_uuid(id).unwrap_or_default())
    }
}

impl ApiKeyId {
    /// The same bytes: a `client_id` is a client's id, or that of an API key without one.
    pub const fn of(client: ClientId) -> Self {
        Self(client.0)
    }

    /// 32 lower-case hex digits, without hyphens.
    pub fn simple(&self) -> String {
        self.0.simple().to_string()
    }

    /// From that form, and no other.
    pub fn from_simple(digits: &str) -> Option<Self> {
        let id = Uuid::try_parse(digits).ok()?;
        (id.simple().encode_lower(&mut Uuid::encode_buffer()) == digits).then_some(Self(id))
    }
}

impl KeyName {
    /// A name that is written in the source.
    pub(super) fn constant(name: &'static str) -> Self {
        Self(name.into())
    }
}

impl TenantName {
    /// The platform itself: home of operators and the security team.
    pub const SYSTEM: &'static str = "system";

    /// The platform's own tenant.
    pub fn system() -> Self {
        Self(Self::SYSTEM.into())
    }

    /// True for the platform's own tenant.
    pub fn is_system(&self) -> bool {
        self.as_str() == Self::SYSTEM
    }
}

impl FromStr for TenantName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let ok = s.len() <= 63
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        ok.then(|| Self(s.into())).ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "tenant must be 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter",
            )
        })
    }
}

impl FromStr for KeyName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let ok = s.len() <= 63
            && s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && s.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
            })
            && Uuid::try_parse(s).is_err();
        ok.then(|| Self(s.into())).ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "name must be 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning with \
                 a letter or digit, and not a UUID",
            )
        })
    }
}

impl FromStr for Kid {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let ok = (1..=64).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        ok.then(|| Self(s.into())).ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "kid must be 1 to 64 characters of the base64url alphabet",
            )
        })
    }
}

impl Kid {
    /// A fresh kid for a data key, which has no public key to take a thumbprint of.
    pub fn random() -> Self {
        Self(Uuid::now_v7().hyphenated().to_string().into())
    }
}

/// How a caller names a key: by id, or by its name in the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRef {
    /// By id.
    Id(KeyId),
    /// By name.
    Name(KeyName),
}

impl KeyRef {
    /// Does it name the key with this id and name?
    pub fn names(&self, id: KeyId, name: &KeyName) -> bool {
        match self {
            Self::Id(of) => *of == id,
            Self::Name(of) => of == name,
        }
    }
}

impl FromStr for KeyRef {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        if s.is_empty() {
            return Err(Error::new(
                Reason::InvalidField,
                "key is required: an id or a name",
            ));
        }
        match KeyId::from_str(s) {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => KeyName::from_str(s).map(Self::Name).map_err(|_| {
                Error::new(Reason::InvalidField, "key must be a key id or a key name")
            }),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}
