//! What every backend must do, whatever it is made of. A new backend calls `run` and adds tests only for
//! what it alone has. Everything goes through `trait Backend`.

use aws_lc_rs::digest::digest;
use claviger::{
    backends::{Backend, BackendError, Created},
    model::{Algorithm, IntentId, KeySpec, PublicKey, Secret, SignInput, key::BackendRef},
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::softhsm::soon;

const MESSAGE: &[u8] = b"a message that every backend signs";

/// The whole suite.
pub async fn run(backend: &dyn Backend) {
    backend.ready(soon()).await.expect("ready");
    let capabilities = backend.capabilities().clone();
    assert!(!capabilities.specs.is_empty() && !capabilities.algorithms.is_empty());
    for spec in &capabilities.specs {
        match spec {
            KeySpec::Kek => kek(backend).await,
            KeySpec::P256 | KeySpec::P384 | KeySpec::P521 | KeySpec::Ed25519 | KeySpec::Rsa(_) => {
                key_pair(backend, *spec).await
            }
        }
    }
    for algorithm in &capabilities.algorithms {
        assert!(
            capabilities
                .specs
                .iter()
                .any(|spec| fits(*algorithm, *spec)),
            "{algorithm} has no key to sign with"
        );
    }
    intents_are_used_once(backend).await;
    what_an_intent_left_is_found(backend).await;
    a_key_is_missing_after_destroy(backend).await;
    deadlines_hold(backend).await;
    many_at_once(backend).await;
    backend.ready(soon()).await.expect("still ready");
}

/// R-LIFE-4, R-LIFE-1: a key pair is made inside, works, and is found again.
async fn key_pair(backend: &dyn Backend, spec: KeySpec) {
    let one = create(backend, spec).await;
    let two = create(backend, spec).await;
    assert_ne!(one.reference, two.reference, "{spec:?}");
    let public = one.public_key.clone().expect("a public half");
    assert_eq!(public.key_spec(), spec);
    assert_ne!(
        Some(public.thumbprint()),
        two.public_key.as_ref().map(PublicKey::thumbprint),
        "{spec:?}: two versions are two keys"
    );
    let shown = backend.public_key(&one.reference, soon()).await;
    assert_eq!(shown.expect("shown"), public);

    for algorithm in signing_with(backend, spec) {
        signs(backend, &one, algorithm).await;
        refuses_wrong_input(backend, &one.reference, algorithm).await;
    }
    adopts(backend, &one, spec).await;
    for created in [one, two] {
        destroy(backend, &created.reference).await;
    }
}

async fn signs(backend: &dyn Backend, key: &Created, algorithm: Algorithm) {
    let signed = Signed::of(algorithm);
    let signature = backend
        .sign(&key.reference, algorithm, signed.input(), soon())
        .await
        .expect("a signature");
    let public = key.public_key.as_ref().expect("a public half");
    let verifier = public.verifier(algorithm).expect("a verifier");
    assert!(verifier.verifies(signed.input(), &signature), "{algorithm}");
    let other = Signed::over(algorithm, b"another message");
    assert!(!verifier.verifies(other.input(), &signature), "{algorithm}");
}

async fn refuses_wrong_input(backend: &dyn Backend, key: &BackendRef, algorithm: Algorithm) {
    let right = Signed::of(algorithm);
    let long = [right.bytes.clone(), vec![0]].concat();
    let short = &right.bytes[..right.bytes.len() - 1];
    let wrong = match right.input() {
        SignInput::Message(_) => vec![SignInput::Digest(&right.bytes)],
        SignInput::Digest(_) => vec![
            SignInput::Digest(&long),
            SignInput::Digest(short),
            SignInput::Digest(&[]),
            SignInput::Message(&right.bytes),
        ],
    };
    for input in wrong {
        let outcome = backend.sign(key, algorithm, input, soon()).await;
        let refused = matches!(outcome, Err(BackendError::Rejected(_)));
        assert!(refused, "{algorithm}: {outcome:?}");
    }
    let foreign = Algorithm::ALL
        .into_iter()
        .filter(|other| other.is_rsa() != algorithm.is_rsa());
    for other in foreign.filter(|other| other.key_spec(0).is_some()) {
        let input = Signed::of(other);
        let outcome = backend.sign(key, other, input.input(), soon()).await;
        let refused = matches!(
            outcome,
            Err(BackendError::Unfit(_) | BackendError::Unsupported(_))
        );
        assert!(refused, "{other} with a key for {algorithm}: {outcome:?}");
    }
}

async fn adopts(backend: &dyn Backend, key: &Created, spec: KeySpec) {
    let adopted = backend.adopt(&key.reference.0, spec, soon()).await;
    let adopted = adopted.expect("what we made can be adopted");
    assert_eq!(adopted.public_key, key.public_key);
    let shown = backend.public_key(&adopted.reference, soon()).await.ok();
    assert_eq!(shown, key.public_key);
    let wrong = match spec {
        KeySpec::P256 => KeySpec::P384,
        _other => KeySpec::P256,
    };
    let outcome = backend.adopt(&key.reference.0, wrong, soon()).await;
    assert!(
        matches!(outcome, Err(BackendError::Unfit(_))),
        "{spec:?} adopted as {wrong:?}: {outcome:?}"
    );
    let nonsense = backend.adopt("not a reference", spec, soon()).await;
    assert!(matches!(nonsense, Err(BackendError::Unfit(_))));
}

/// A data key comes back from the KEK that wrapped it, with the context it was wrapped with, or not at all.
async fn kek(backend: &dyn Backend) {
    let kek = create(backend, KeySpec::Kek).await;
    let other = create(backend, KeySpec::Kek).await;
    assert!(kek.public_key.is_none());
    let key = Secret::new([0x42; 32]);
    let aad = b"tenant/key/1";
    let wrapped = backend.wrap(&kek.reference, &key, aad, soon()).await;
    let wrapped = wrapped.expect("wrapped");
    let back = backend.unwrap(&kek.reference, &wrapped, aad, soon()).await;
    assert_eq!(
        back.ok().as_ref().map(Secret::expose_secret),
        Some(&[0x42; 32])
    );
    let again = backend.wrap(&kek.reference, &key, aad, soon()).await;
    assert_ne!(again.expect("wrapped"), wrapped, "never the same twice");
    let empty = backend.wrap(&kek.reference, &key, b"", soon()).await;
    let empty = empty.expect("an empty context is one");
    assert!(
        backend
            .unwrap(&kek.reference, &empty, b"", soon())
            .await
            .is_ok()
    );

    let refused = async |kek: &BackendRef, wrapped: &[u8], aad: &[u8], what: &str| {
        let outcome = backend.unwrap(kek, wrapped, aad, soon()).await;
        match outcome {
            Err(BackendError::Rejected(_)) => {}
            Err(other) => panic!("{what}: {other}"),
            Ok(_) => panic!("{what}: unwrapped"),
        }
    };
    refused(&kek.reference, &wrapped, b"tenant/key/2", "other context").await;
    refused(&kek.reference, &wrapped, b"", "no context").await;
    refused(&other.reference, &wrapped, aad, "other KEK").await;
    for at in 0..wrapped.len() {
        let mut flipped = wrapped.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&kek.reference, &flipped, aad, &format!("bit in byte {at}")).await;
        refused(&kek.reference, &wrapped[..at], aad, &format!("{at} bytes")).await;
    }
    let longer = [&wrapped[..], &[0]].concat();
    refused(&kek.reference, &longer, aad, "one byte more").await;
    // Tampering is the caller's trouble, not the device's.
    backend.ready(soon()).await.expect("still ready");
    assert!(
        backend
            .unwrap(&kek.reference, &wrapped, aad, soon())
            .await
            .is_ok()
    );

    let adopted = backend.adopt(&kek.reference.0, KeySpec::Kek, soon()).await;
    let adopted = adopted.expect("what we made can be adopted");
    assert!(
        backend
            .unwrap(&adopted.reference, &wrapped, aad, soon())
            .await
            .is_ok()
    );
    let wrong = backend.adopt(&kek.reference.0, KeySpec::P256, soon()).await;
    assert!(matches!(wrong, Err(BackendError::Unfit(_))), "{wrong:?}");
    for created in [kek, other] {
        destroy(backend, &created.reference).await;
    }
}

/// R-LIFE-1: an intent that has a key never gets a second one, and the first is not harmed.
async fn intents_are_used_once(backend: &dyn Backend) {
    let (spec, algorithm) = cheapest(backend);
    let intent = IntentId::random();
    let first = backend.create(spec, intent, "first", soon()).await;
    let first = first.expect("created");
    let second = backend.create(spec, intent, "second", soon()).await;
    assert!(matches!(second, Err(BackendError::Unfit(_))), "{second:?}");
    signs(backend, &first, algorithm).await;
    destroy(backend, &first.reference).await;
}

/// R-OPS-1: a reconciler sees what is there under an intent and what is not, and changes nothing by looking.
async fn what_an_intent_left_is_found(backend: &dyn Backend) {
    let (spec, algorithm) = cheapest(backend);
    let intent = IntentId::random();
    let nothing = backend.find(intent, soon()).await.expect("an answer");
    assert!(nothing.is_empty(), "{nothing:?}");
    let created = backend.create(spec, intent, "left", soon()).await;
    let created = created.expect("created");
    assert_eq!(created.tag, Some(intent));
    for _ in 0..2 {
        let found = backend.find(intent, soon()).await.expect("found");
        assert!(!found.is_empty());
        assert!(found.iter().all(|object| !object.is_empty()), "{found:?}");
    }
    let other = backend.find(IntentId::random(), soon()).await;
    assert!(other.expect("an answer").is_empty());
    signs(backend, &created, algorithm).await;
    let adopted = backend.adopt(&created.reference.0, spec, soon()).await;
    assert_eq!(adopted.expect("adopted").tag, Some(intent));
    let late = backend.find(intent, Instant::now()).await;
    assert!(
        matches!(late, Err(BackendError::DeadlineExceeded)),
        "{late:?}"
    );
    destroy(backend, &created.reference).await;
    let gone = backend.find(intent, soon()).await.expect("an answer");
    assert!(gone.is_empty(), "{gone:?}");
}

async fn a_key_is_missing_after_destroy(backend: &dyn Backend) {
    let (spec, algorithm) = cheapest(backend);
    let created = create(backend, spec).await;
    let reference = &created.reference;
    destroy(backend, reference).await;
    let signed = Signed::of(algorithm);
    let sign = backend
        .sign(reference, algorithm, signed.input(), soon())
        .await;
    assert!(matches!(sign, Err(BackendError::Missing(_))), "{sign:?}");
    let public = backend.public_key(reference, soon()).await;
    assert!(
        matches!(public, Err(BackendError::Missing(_))),
        "{public:?}"
    );
    let adopt = backend.adopt(&reference.0, spec, soon()).await;
    assert!(matches!(adopt, Err(BackendError::Missing(_))), "{adopt:?}");
    let again = backend.destroy(reference, soon()).await;
    assert!(matches!(again, Err(BackendError::Missing(_))), "{again:?}");
}

async fn deadlines_hold(backend: &dyn Backend) {
    let (spec, algorithm) = cheapest(backend);
    let created = create(backend, spec).await;
    let past = Instant::now();
    let signed = Signed::of(algorithm);
    let late = backend.sign(&created.reference, algorithm, signed.input(), past);
    let late = late.await;
    assert!(
        matches!(late, Err(BackendError::DeadlineExceeded)),
        "{late:?}"
    );
    let late = backend.ready(past).await;
    assert!(
        matches!(late, Err(BackendError::DeadlineExceeded)),
        "{late:?}"
    );
    // What came too late was not done.
    let late = backend.destroy(&created.reference, past).await;
    assert!(
        matches!(late, Err(BackendError::DeadlineExceeded)),
        "{late:?}"
    );
    signs(backend, &created, algorithm).await;
    destroy(backend, &created.reference).await;
}

async fn many_at_once(backend: &dyn Backend) {
    let (spec, algorithm) = cheapest(backend);
    let created = create(backend, spec).await;
    join_all((0..64).map(|_| signs(backend, &created, algorithm))).await;
    destroy(backend, &created.reference).await;
}

/// What an algorithm signs: the message, or its digest.
pub struct Signed {
    bytes: Vec<u8>,
    algorithm: Algorithm,
}

impl Signed {
    pub fn of(algorithm: Algorithm) -> Self {
        Self::over(algorithm, MESSAGE)
    }

    fn over(algorithm: Algorithm, message: &[u8]) -> Self {
        let bytes = algorithm.hash().map_or_else(
            || message.to_vec(),
            |hash| digest(hash.algorithm(), message).as_ref().to_vec(),
        );
        Self { bytes, algorithm }
    }

    pub fn input(&self) -> SignInput<'_> {
        match self.algorithm.hash() {
            Some(_) => SignInput::Digest(&self.bytes),
            None => SignInput::Message(&self.bytes),
        }
    }
}

pub async fn create(backend: &dyn Backend, spec: KeySpec) -> Created {
    backend
        .create(spec, IntentId::random(), "conformance", soon())
        .await
        .unwrap_or_else(|e| panic!("create {spec:?}: {e}"))
}

async fn destroy(backend: &dyn Backend, reference: &BackendRef) {
    let outcome = backend.destroy(reference, soon()).await;
    outcome.unwrap_or_else(|e| panic!("destroy {reference}: {e}"));
}

fn fits(algorithm: Algorithm, spec: KeySpec) -> bool {
    match spec {
        KeySpec::Rsa(_) => algorithm.is_rsa(),
        other => algorithm.key_spec(0) == Some(other),
    }
}

fn signing_with(backend: &dyn Backend, spec: KeySpec) -> Vec<Algorithm> {
    let all = &backend.capabilities().algorithms;
    all.iter().copied().filter(|a| fits(*a, spec)).collect()
}

/// A key pair that is made quickly on any device.
fn cheapest(backend: &dyn Backend) -> (KeySpec, Algorithm) {
    backend
        .capabilities()
        .specs
        .iter()
        .find_map(|spec| Some((*spec, *signing_with(backend, *spec).first()?)))
        .expect("a spec to sign with")
}
