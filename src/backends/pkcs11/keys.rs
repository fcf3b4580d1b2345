//! The life of a key on the token: create, adopt, prove, destroy.
//!
//! The order in `create` matters. The intent id is on the token before anything else is believed, so a crash
//! leaves nothing without a name. What fails the checks is destroyed, and only because this very call made
//! it: the id was unused when it began. So is what was finished when nobody waited for it any more, unless that was long
//! ago: then it stays, the reconciler names it, and an operator may have taken it into use. Nothing else is ever deleted
//! but by `destroy`.

use std::time::{Duration, Instant};

use aws_lc_rs::{digest::digest, rand};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};

use super::{
    errors::{Fault, is_template_error},
    mechanisms,
    objects::{Key, read},
    session::Live,
    templates,
    uri::{Class, KeyUri},
};
use crate::{
    backends::{BackendError, Created},
    model::{
        IntentId, KeySpec, PublicKey, algorithm::RSA_BITS, key::BackendRef, public_key::SignInput,
        secret::Secret,
    },
};

/// How long after its deadline a call removes what it made. Later the reconciler may have shown it to somebody, who may
/// have adopted it.
const REMOVE_WITHIN: Duration = Duration::from_secs(20);

impl Live {
    pub(super) fn create(
        &mut self,
        spec: KeySpec,
        intent: IntentId,
        label: &str,
        deadline: Instant,
    ) -> Result<Created, Fault> {
        let shared = self.shared.clone();
        let _turn = shared.module.generating();
        // The one before may have hung.
        if Instant::now() >= deadline {
            return Err(Fault::Refused(BackendError::DeadlineExceeded));
        }
        let everything = KeyUri {
            id: Some(intent.as_bytes().to_vec()),
            ..KeyUri::default()
        };
        if !self.find(&everything)?.is_empty() {
            return Err(unfit(
                "the token holds an object with the id of this intent already; adopt or quarantine it",
            ));
        }
        self.check_presence()?;
        self.generate(spec, intent, label)
            .and_then(|handle| {
                let key = Key { handle, spec };
                self.examine(key, &everything)
            })
            .map(|public_key| Created {
                reference: BackendRef(self.name(spec, &everything).canonical()),
                public_key,
                tag: Some(intent),
            })
            .map_err(|fault| {
                self.undo(&everything, deadline);
                fault.finally()
            })
    }

    /// Removes a key that was made for somebody who does not wait for it any more.
    pub(super) fn take_back(&mut self, created: Created, deadline: Instant) {
        let everything = KeyUri {
            id: created.tag.map(|intent| intent.as_bytes().to_vec()),
            ..KeyUri::default()
        };
        if everything.id.is_some() {
            tracing::info!(
                key = created.reference.0,
                "a key was made after nobody waited for it any more"
            );
            self.undo(&everything, deadline);
        }
    }

    fn generate(
        &mut self,
        spec: KeySpec,
        intent: IntentId,
        label: &str,
    ) -> Result<ObjectHandle, Fault> {
        let mut refused = None;
        for template in templates::variants(spec, intent.as_bytes(), label) {
            if refused.is_some() {
                self.renew()?;
            }
            let (mechanism, private) = (&template.mechanism, &template.private);
            let outcome = if template.public.is_empty() {
                self.session.generate_key(mechanism, private)
            } else {
                self.session
                    .generate_key_pair(mechanism, &template.public, private)
                    .map(|(_, private)| private)
            };
            match outcome {
                Ok(handle) => return Ok(handle),
                Err(error) if is_template_error(&error) => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(refused.map_or_else(|| unfit("no template"), Fault::from))
    }

    /// Deletes what this call generated. Best effort: what stays has the intent's id and is found by it.
    fn undo(&mut self, everything: &KeyUri, deadline: Instant) {
        if Instant::now() > deadline + REMOVE_WITHIN {
            tracing::warn!(
                key = everything.canonical(),
                "a creation ended long after its time; what it made stays, the reconciler sets it aside"
            );
            return;
        }
        let outcome = self.renew().and_then(|()| {
            for object in self.find(everything)? {
                self.session.destroy_object(object)?;
            }
            Ok(())
        });
        if let Err(fault) = outcome {
            tracing::warn!(
                key = everything.canonical(),
                error = %fault.into_error(),
                "a key that failed its checks or came too late could not be removed; quarantine it"
            );
        }
    }

    pub(super) fn adopt(&mut self, uri: &str, spec: KeySpec) -> Result<Created, Fault> {
        let uri = KeyUri::parse(uri).map_err(|e| unfit(&e.to_string()))?;
        let token = &self.shared.token;
        let elsewhere = [
            (&uri.token, token.label()),
            (&uri.manufacturer, token.manufacturer_id()),
            (&uri.serial, token.serial_number()),
            (&uri.model, token.model()),
        ];
        if elsewhere
            .into_iter()
            .any(|(said, is)| said.as_deref().is_some_and(|said| said != is))
        {
            return Err(unfit("the URI names another token"));
        }
        let wanted = self.name(spec, &uri);
        if uri.class.is_some() && uri.class != wanted.class {
            return Err(unfit("the URI's type is not that of the key to adopt"));
        }
        let handle = self
            .exactly_one(&wanted)
            .map_err(|fault| how_to_begin(fault, spec))?;
        let found = self.spec_of(handle)?;
        // `Rsa(0)` leaves the length to the pair, within R-JWT-3.
        if matches!(found, KeySpec::Rsa(bits) if bits < RSA_BITS[0]) {
            return Err(unfit("its RSA modulus is shorter than 2048 bits"));
        }
        let spec = match (spec, found) {
            (KeySpec::Rsa(0), KeySpec::Rsa(_)) => found,
            (spec, _) => spec,
        };
        if found != spec {
            return Err(unfit(&format!("it is {found:?}, not {spec:?}")));
        }
        let reference = self.shortest(&wanted, handle)?;
        let public_key = self.examine(Key { handle, spec }, &reference)?;
        Ok(Created {
            tag: reference.id.as_deref().and_then(IntentId::from_bytes),
            reference: BackendRef(reference.canonical()),
            public_key,
        })
    }

    /// Every object with the id of the intent, for people.
    pub(super) fn describe(&mut self, intent: IntentId) -> Result<Vec<String>, Fault> {
        let everything = KeyUri {
            id: Some(intent.as_bytes().to_vec()),
            ..KeyUri::default()
        };
        let objects = self.find(&everything)?;
        if objects.is_empty() {
            self.check_presence()?;
        }
        objects
            .into_iter()
            .map(|object| self.describe_one(object))
            .collect()
    }

    /// Class and kind of an object. What a crash left may lack any of its attributes.
    fn describe_one(&mut self, object: ObjectHandle) -> Result<String, Fault> {
        let shown = self
            .session
            .get_attributes(object, &[AttributeType::Class])?;
        let class = match shown[..] {
            [Attribute::Class(ObjectClass::PRIVATE_KEY)] => "private key",
            [Attribute::Class(ObjectClass::PUBLIC_KEY)] => "public key",
            [Attribute::Class(ObjectClass::SECRET_KEY)] => "secret key",
            _ => "object of another class",
        };
        let whole = match self.spec_of(object) {
            Ok(spec) => format!("{spec:?}"),
            Err(Fault::Refused(_)) => "incomplete or of another kind".into(),
            Err(fault) => return Err(fault),
        };
        Ok(format!("{class} ({whole})"))
    }

    /// The reference for an object that `wanted` finds: by its id if that is enough, else with its label.
    fn shortest(&self, wanted: &KeyUri, handle: ObjectHandle) -> Result<KeyUri, Fault> {
        let by_id = KeyUri {
            id: read(&self.session, handle, AttributeType::Id)?,
            object: None,
            ..wanted.clone()
        };
        if by_id.id.is_some() && self.find(&by_id)?.len() == 1 {
            return Ok(by_id);
        }
        let label = read(&self.session, handle, AttributeType::Label)?;
        let by_both = KeyUri {
            object: label.and_then(|label| String::from_utf8(label).ok()),
            ..by_id
        };
        self.exactly_one(&by_both)?;
        Ok(by_both)
    }

    /// The private or secret key with the id and label of `of`, on our token.
    fn name(&self, spec: KeySpec, of: &KeyUri) -> KeyUri {
        KeyUri {
            token: Some(self.shared.token.label().to_owned()),
            object: of.object.clone(),
            id: of.id.clone(),
            class: Some(match spec {
                KeySpec::Kek => Class::Secret,
                _key_pair => Class::Private,
            }),
            ..KeyUri::default()
        }
    }

    /// Everything that must hold before a key is used: it cannot leave, and it works.
    fn examine(&mut self, key: Key, uri: &KeyUri) -> Result<Option<PublicKey>, Fault> {
        self.check_guarded(key.handle)?;
        match key.spec {
            KeySpec::Kek => {
                let probe = Secret::new([0x5a; 32]);
                let wrapped = self.encrypt(key, probe.expose_secret(), b"probe")?;
                let back = self.decrypt(key, &wrapped, b"probe")?;
                if back.expose_secret() != probe.expose_secret() {
                    return Err(unfit("what it wraps does not unwrap"));
                }
                Ok(None)
            }
            _key_pair => {
                let public = self.public_half(key, uri)?;
                self.prove(key, &public)?;
                Ok(Some(public))
            }
        }
    }

    /// R-LIFE-4: reads back from the token that the key never was and never will be outside.
    fn check_guarded(&self, handle: ObjectHandle) -> Result<(), Fault> {
        let must = [
            (AttributeType::Token, Attribute::Token(true)),
            (AttributeType::Private, Attribute::Private(true)),
            (AttributeType::Sensitive, Attribute::Sensitive(true)),
            (AttributeType::Extractable, Attribute::Extractable(false)),
            (
                AttributeType::AlwaysSensitive,
                Attribute::AlwaysSensitive(true),
            ),
            (
                AttributeType::NeverExtractable,
                Attribute::NeverExtractable(true),
            ),
        ];
        for (name, wanted) in must {
            let shown = self.session.get_attributes(handle, &[name])?;
            if shown != [wanted] {
                return Err(unfit(&format!("the token does not guarantee it: {name}")));
            }
        }
        let attended = [AttributeType::AlwaysAuthenticate];
        let attended = self.session.get_attributes(handle, &attended)?;
        if attended == [Attribute::AlwaysAuthenticate(true)] {
            return Err(unfit("it wants the PIN for every single use"));
        }
        Ok(())
    }

    /// Signs something nobody could prepare, and verifies it with the public key that callers will get.
    fn prove(&mut self, key: Key, public: &PublicKey) -> Result<(), Fault> {
        let algorithm = self
            .shared
            .algorithms
            .iter()
            .copied()
            .find(|algorithm| mechanisms::fits(*algorithm, key.spec))
            .ok_or_else(|| {
                Fault::Refused(BackendError::Unsupported(format!(
                    "signing with {:?}",
                    key.spec
                )))
            })?;
        let mut challenge = [0; 32];
        rand::fill(&mut challenge).map_err(|_| unfit("no randomness"))?;
        let hashed = algorithm
            .hash()
            .map(|hash| digest(hash.algorithm(), &challenge));
        let input = hashed.as_ref().map_or_else(
            || SignInput::Message(&challenge),
            |hashed| SignInput::Digest(hashed.as_ref()),
        );
        let data = mechanisms::signing_input(algorithm, input).map_err(Fault::Refused)?;
        let signature = self.sign_with(key, algorithm, &data)?;
        let verifier = public
            .verifier(algorithm)
            .map_err(|_| unfit("its public key is not valid"))?;
        verifier
            .verifies(input, &signature)
            .then_some(())
            .ok_or_else(|| unfit("its test signature does not verify"))
    }

    /// `begun` outlives an attempt: once the private half is gone, a repeat finishes the work.
    pub(super) fn destroy(
        &mut self,
        reference: &BackendRef,
        begun: &mut bool,
    ) -> Result<(), Fault> {
        let uri = self.own_reference(reference)?;
        let half = KeyUri {
            class: Some(Class::Public),
            ..uri.clone()
        };
        self.keys.remove(reference);
        match self.exactly_one(&uri) {
            // First the half that can do harm.
            Ok(private) => {
                *begun = true;
                self.session.destroy_object(private)?;
            }
            Err(Fault::Refused(missing)) => {
                let left = uri.class == Some(Class::Private) && self.find(&half)?.len() == 1;
                // Several private keys: never guess. None, and a public half: an earlier destroy was cut
                // short.
                if !self.find(&uri)?.is_empty() || !(*begun || left) {
                    return Err(Fault::Refused(missing));
                }
            }
            Err(fault) => return Err(fault),
        }
        if uri.class == Some(Class::Private)
            && let [public] = self.find(&half)?[..]
        {
            self.session.destroy_object(public)?;
        }
        Ok(())
    }
}

/// A new installation has no KEK yet, and a person makes it.
fn how_to_begin(fault: Fault, spec: KeySpec) -> Fault {
    match (fault, spec) {
        (Fault::Refused(BackendError::Missing(what)), KeySpec::Kek) => {
            let hint = format!("{what}; on a new installation, `claviger kek create` makes it");
            Fault::Refused(BackendError::Missing(hint))
        }
        (fault, _) => fault,
    }
}

pub(super) fn unfit(why: &str) -> Fault {
    Fault::Refused(BackendError::Unfit(why.into()))
}
