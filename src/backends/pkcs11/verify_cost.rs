//! What `verify_after_sign` costs: a signature of the token beside its verification in this process.
//!
//! As in `rate`, with key pairs that exist in the session only. docs/backends.md draws its defaults from this.

use std::time::{Duration, Instant};

use cryptoki::{
    object::{Attribute, ObjectHandle},
    session::Session,
};

use super::{
    Pkcs11Config,
    errors::is_template_error,
    mechanisms::{signing, signing_input},
    module::Modules,
    objects::read_public,
    rate::{logged_in, slot, trouble},
    templates,
};
use crate::{
    backends::BackendError,
    model::{Algorithm, KeySpec, PublicKey, SignInput},
};

/// Rounds of each algorithm; the best counts, because whatever else the machine does only adds.
const ROUNDS: u32 = 7;

/// Mean times of one thread, in the best of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct VerifyCost {
    /// Of what.
    pub algorithm: Algorithm,
    /// RSA modulus bits; 0 for other types.
    pub rsa_bits: u32,
    /// A signature of the token.
    pub sign: Duration,
    /// Its verification with the public key.
    pub verify: Duration,
}

/// Measures every algorithm that is usual and that the token has, about `duration` each.
///
/// Errors: the token's.
pub fn verify_costs(
    config: &Pkcs11Config,
    modules: &Modules,
    duration: Duration,
) -> Result<Vec<VerifyCost>, BackendError> {
    let module = modules.load(&config.module)?;
    let _inside = module.enter();
    let slot = slot(&module, &config.token)?;
    let session = logged_in(config, &module, slot)?;
    let usual = [
        (Algorithm::Es256, 0),
        (Algorithm::Es384, 0),
        (Algorithm::EdDsa, 0),
        (Algorithm::Rs256, 2048),
        (Algorithm::Ps256, 3072),
        (Algorithm::Rs256, 4096),
    ];
    let mut costs = Vec::new();
    for (algorithm, rsa_bits) in usual {
        let Some(spec) = algorithm.key_spec(rsa_bits) else {
            continue;
        };
        if let Some((key, public)) = pair(&session, spec)? {
            let (sign, verify) = measured(&session, key, &public, algorithm, duration)?;
            costs.push(VerifyCost {
                algorithm,
                rsa_bits,
                sign,
                verify,
            });
        }
    }
    Ok(costs)
}

/// A key pair of the session; None when the token cannot make it, or does not show its public half.
fn pair(
    session: &Session,
    spec: KeySpec,
) -> Result<Option<(ObjectHandle, PublicKey)>, BackendError> {
    let of_session = |attributes: Vec<Attribute>| -> Vec<Attribute> {
        let attributes = attributes.into_iter().map(|attribute| match attribute {
            Attribute::Token(_) => Attribute::Token(false),
            other => other,
        });
        attributes.collect()
    };
    for template in templates::variants(spec, b"claviger-bench", "claviger-bench") {
        let (public, private) = (of_session(template.public), of_session(template.private));
        match session.generate_key_pair(&template.mechanism, &public, &private) {
            Ok((public, private)) => {
                let shown = read_public(session, public, spec);
                let shown = shown.map_err(super::errors::Fault::into_error)?;
                return Ok(shown.map(|public| (private, public)));
            }
            Err(error) if is_template_error(&error) => {}
            Err(error) => {
                tracing::debug!(%error, ?spec, "the token makes no such pair");
                return Ok(None);
            }
        }
    }
    Ok(None)
}

fn measured(
    session: &Session,
    key: ObjectHandle,
    public: &PublicKey,
    algorithm: Algorithm,
    duration: Duration,
) -> Result<(Duration, Duration), BackendError> {
    let unfit = |why: &str| BackendError::Unfit(format!("{algorithm}: {why}"));
    let mechanism = signing(algorithm).ok_or_else(|| unfit("it does not sign"))?;
    let bytes = vec![0x5a; algorithm.hash().map_or(32, |hash| hash.digest_len())];
    let input = match algorithm.hash() {
        Some(_) => SignInput::Digest(&bytes),
        None => SignInput::Message(&bytes),
    };
    let data = signing_input(algorithm, input)?;
    let verifier = public.verifier(algorithm);
    let verifier = verifier.map_err(|error| unfit(error.message()))?;
    let sign = || session.sign(&mechanism, key, &data).map_err(trouble);
    let signature = sign()?;
    let verify = || match verifier.verifies(input, &signature) {
        true => Ok(()),
        false => Err(unfit("the token's signature does not verify")),
    };
    verify()?;
    let round = duration / (2 * ROUNDS);
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        best.0 = best.0.min(mean(round, || sign().map(drop))?);
        best.1 = best.1.min(mean(round, verify)?);
    }
    Ok(best)
}

/// The mean time of `act`, which is done for `duration` and at least once.
fn mean(
    duration: Duration,
    act: impl Fn() -> Result<(), BackendError>,
) -> Result<Duration, BackendError> {
    let (began, mut count) = (Instant::now(), 0_u32);
    loop {
        act()?;
        count += 1;
        if began.elapsed() >= duration {
            return Ok(began.elapsed() / count);
        }
    }
}
