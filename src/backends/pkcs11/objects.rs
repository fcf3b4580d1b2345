//! Objects on the token: finding exactly one, and reading what it is.
//!
//! A reference is class + CKA_ID (+ CKA_LABEL), because labels and even ids are not unique on a token. More
//! than one match is as bad as none. Not finding an object never leads to creating or deleting one.

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    errors::Fault,
    session::Live,
    uri::{Class, KeyUri},
};
use crate::{
    backends::BackendError,
    model::{KeySpec, PublicKey, key::BackendRef, public_key::Curve},
};

/// Handles that one session remembers; more than that and it starts again.
const CACHED_KEYS: usize = 4096;

/// A private or secret key that was found, and what it is.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) handle: ObjectHandle,
    pub(super) spec: KeySpec,
}

impl Live {
    /// The key of a reference; the token is searched once per session.
    pub(super) fn key(&mut self, reference: &BackendRef) -> Result<Key, Fault> {
        if let Some(key) = self.keys.get(reference) {
            return Ok(*key);
        }
        let uri = self.own_reference(reference)?;
        let handle = self.exactly_one(&uri)?;
        let key = Key {
            handle,
            spec: self.spec_of(handle)?,
        };
        if self.keys.len() >= CACHED_KEYS {
            self.keys.clear();
        }
        self.keys.insert(reference.clone(), key);
        Ok(key)
    }

    /// Parses one of our references.
    pub(super) fn own_reference(&self, reference: &BackendRef) -> Result<KeyUri, Fault> {
        let missing = |why: String| Fault::Refused(BackendError::Missing(why));
        let uri = KeyUri::parse(&reference.0).map_err(|e| missing(format!("reference: {e}")))?;
        if uri.token.as_deref() != Some(self.shared.token.label()) {
            return Err(missing(format!("{reference}, which is on another token")));
        }
        Ok(uri)
    }

    /// The one object of the URI's class, id and label.
    pub(super) fn exactly_one(&self, uri: &KeyUri) -> Result<ObjectHandle, Fault> {
        let missing = |what: String| Fault::Refused(BackendError::Missing(what));
        match self.find(uri)?[..] {
            [one] => Ok(one),
            [] => {
                self.check_presence()?;
                Err(missing(uri.canonical()))
            }
            [_, _, ..] => Err(missing(format!(
                "{}: several objects match",
                uri.canonical()
            ))),
        }
    }

    /// Every object of the URI's class, id and label.
    pub(super) fn find(&self, uri: &KeyUri) -> Result<Vec<ObjectHandle>, Fault> {
        let mut template = vec![Attribute::Token(true)];
        if let Some(class) = uri.class {
            template.push(Attribute::Class(match class {
                Class::Private => ObjectClass::PRIVATE_KEY,
                Class::Public => ObjectClass::PUBLIC_KEY,
                Class::Secret => ObjectClass::SECRET_KEY,
            }));
        }
        template.extend(uri.id.clone().map(Attribute::Id));
        template.extend(uri.object.clone().map(|s| Attribute::Label(s.into_bytes())));
        Ok(self.session.find_objects(&template)?)
    }

    /// What a private or secret key is. `Unfit` for what we do not use.
    pub(super) fn spec_of(&self, key: ObjectHandle) -> Result<KeySpec, Fault> {
        let unfit = |why: &str| Fault::Refused(BackendError::Unfit(why.into()));
        let mut spec = None;
        for attribute in self
            .session
            .get_attributes(key, &[AttributeType::KeyType])?
        {
            let Attribute::KeyType(kind) = attribute else {
                continue;
            };
            spec = match kind {
                KeyType::EC | KeyType::EC_EDWARDS => {
                    let params = read(&self.session, key, AttributeType::EcParams)?;
                    curve_spec(&params.unwrap_or_default())
                }
                KeyType::RSA => {
                    let n = read(&self.session, key, AttributeType::Modulus)?;
                    let n = trimmed(n.unwrap_or_default());
                    let n = PublicKey::Rsa { n, e: Vec::new() };
                    Some(n.key_spec())
                }
                KeyType::AES => {
                    let lengths = self
                        .session
                        .get_attributes(key, &[AttributeType::ValueLen])?;
                    matches!(lengths[..], [Attribute::ValueLen(n)] if *n == 32)
                        .then_some(KeySpec::Kek)
                }
                _other_types => None,
            };
        }
        spec.ok_or_else(|| unfit("its type, curve or length is none that we use"))
    }

    /// The public half of the private key: from the public object with its id and label, or from the
    /// private object where that says it.
    pub(super) fn public_half(&self, key: Key, uri: &KeyUri) -> Result<PublicKey, Fault> {
        let half = KeyUri {
            class: Some(Class::Public),
            ..uri.clone()
        };
        let candidates = self.find(&half)?;
        for handle in candidates.iter().chain([&key.handle]) {
            if let Some(public) = self.read_public(*handle, key.spec)? {
                return Ok(public);
            }
        }
        Err(Fault::Refused(BackendError::Unfit(
            "the token does not show its public key; put the public key object beside it".into(),
        )))
    }

    /// The public key that this object, public or private, shows. None if it shows none of this spec.
    pub(super) fn read_public(
        &self,
        object: ObjectHandle,
        spec: KeySpec,
    ) -> Result<Option<PublicKey>, Fault> {
        read_public(&self.session, object, spec)
    }
}

/// The public key that this object, public or private, shows. None if it shows none of this spec.
pub(super) fn read_public(
    session: &Session,
    object: ObjectHandle,
    spec: KeySpec,
) -> Result<Option<PublicKey>, Fault> {
    let curve = match spec {
        KeySpec::P256 => Curve::P256,
        KeySpec::P384 => Curve::P384,
        KeySpec::P521 => Curve::P521,
        KeySpec::Ed25519 => {
            let point = read(session, object, AttributeType::EcPoint)?;
            let key = point.and_then(|point| unwrapped(&point, 32).try_into().ok());
            return Ok(key.map(PublicKey::Ed25519));
        }
        KeySpec::Rsa(_) => {
            let n = read(session, object, AttributeType::Modulus)?;
            let e = read(session, object, AttributeType::PublicExponent)?;
            let key = n.zip(e).map(|(n, e)| PublicKey::Rsa {
                n: trimmed(n),
                e: trimmed(e),
            });
            return Ok(key.filter(|key| key.key_spec() == spec));
        }
        KeySpec::Kek => return Ok(None),
    };
    let point = read(session, object, AttributeType::EcPoint)?.unwrap_or_default();
    let width = curve.width();
    Ok(match unwrapped(&point, 1 + 2 * width) {
        [0x04, coordinates @ ..] if coordinates.len() == 2 * width => {
            let (x, y) = coordinates.split_at(width);
            let (x, y) = (x.to_vec(), y.to_vec());
            Some(PublicKey::Ec { curve, x, y })
        }
        _compressed_or_absent => None,
    })
}

/// The bytes of an attribute; None when the object does not have or show it.
pub(super) fn read(
    session: &Session,
    object: ObjectHandle,
    attribute: AttributeType,
) -> Result<Option<Vec<u8>>, Fault> {
    let value = session.get_attributes(object, &[attribute])?.pop();
    Ok(match value {
        Some(
            Attribute::EcParams(bytes)
            | Attribute::EcPoint(bytes)
            | Attribute::Modulus(bytes)
            | Attribute::PublicExponent(bytes)
            | Attribute::Id(bytes)
            | Attribute::Label(bytes),
        ) if !bytes.is_empty() => Some(bytes),
        Some(_) | None => None,
    })
}

/// CKA_EC_PARAMS of the curves we use: named by OID, or (Edwards) by PrintableString.
pub(super) const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const P384_OID: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
pub(super) const P521_OID: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];
pub(super) const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
pub(super) const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";

fn curve_spec(params: &[u8]) -> Option<KeySpec> {
    [
        (P256_OID, KeySpec::P256),
        (P384_OID, KeySpec::P384),
        (P521_OID, KeySpec::P521),
        (ED25519_OID, KeySpec::Ed25519),
        (ED25519_NAME, KeySpec::Ed25519),
    ]
    .into_iter()
    .find_map(|(known, spec)| (known == params).then_some(spec))
}

/// A point of `len` bytes, which tokens give raw or inside a DER OCTET STRING (or BIT STRING).
fn unwrapped(point: &[u8], len: usize) -> &[u8] {
    if point.len() == len {
        return point;
    }
    let content = match point {
        [0x04 | 0x03, 0x81, n, rest @ ..] | [0x04 | 0x03, n, rest @ ..]
            if usize::from(*n) == rest.len() =>
        {
            rest
        }
        _not_der => &[],
    };
    // A BIT STRING begins with the number of unused bits.
    match content {
        [0, rest @ ..] if point.first() == Some(&0x03) && rest.len() == len => rest,
        other => other,
    }
}

fn trimmed(mut number: Vec<u8>) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.drain(..zeros);
    number
}

#[cfg(test)]
mod tests {
    use super::unwrapped;

    #[test]
    fn points_come_raw_and_wrapped() {
        let raw = [0x04; 65];
        let octets = [&[0x04, 65], &raw[..]].concat();
        let bits = [&[0x03, 66, 0], &raw[..]].concat();
        let long_raw = [0x04; 133];
        let long = [&[0x04, 0x81, 133], &long_raw[..]].concat();
        assert_eq!(unwrapped(&raw, 65), raw);
        assert_eq!(unwrapped(&octets, 65), raw);
        assert_eq!(unwrapped(&bits, 65), raw);
        assert_eq!(unwrapped(&long, 133), long_raw);
        assert_eq!(unwrapped(&octets[..60], 65), [0u8; 0]);
        assert_eq!(unwrapped(&[], 65), [0u8; 0]);
    }
}
