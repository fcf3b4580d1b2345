//! What is wrong with one key is no trouble of KMS: other keys go on, and a circuit breaker has nothing to count.

use aws_lc_rs::digest::{SHA256, digest};
use claviger::{
    backends::{Backend, BackendError, aws_kms::AwsKmsBackend},
    model::{Algorithm, KeySpec, Secret, SignInput, key::BackendRef},
};
use serde_json::{Value, json};

use super::{
    layer::{Kms, alone},
    trouble::class,
};
use crate::{conformance::create, softhsm::soon};

const WRONGS: [Wrong; 5] = [
    Wrong {
        name: "disabled",
        class: "Suspended",
        says: "kms:EnableKey",
    },
    Wrong {
        name: "scheduled for deletion",
        class: "Missing",
        says: "kms:CancelKeyDeletion",
    },
    Wrong {
        name: "custom key store disconnected",
        class: "Suspended",
        says: "kms:ConnectCustomKeyStore",
    },
    Wrong {
        name: "material out of reach",
        class: "Suspended",
        says: "key material",
    },
    Wrong {
        name: "denied by its policy",
        class: "Denied",
        says: "kms:",
    },
];

/// Something that can be wrong with one key.
struct Wrong {
    name: &'static str,
    class: &'static str,
    /// The error tells an operator.
    says: &'static str,
}

impl Wrong {
    async fn begin(&self, kms: &Kms, keys: [&BackendRef; 2]) {
        let arns = keys.map(|key| key.0.as_str());
        let denied = || {
            let denied = ["Sign", "Encrypt", "Decrypt", "GetPublicKey"];
            let each = arns.map(|arn| (arn.to_owned(), json!(denied)));
            Value::Object(each.into_iter().collect())
        };
        let faults = match self.name {
            "custom key store disconnected" => json!({"store_away": arns}),
            "material out of reach" => json!({"material_away": arns}),
            "denied by its policy" => json!({"deny_key": denied()}),
            _ => json!({}),
        };
        kms.faults(faults).await;
        let operator = kms.operator();
        for arn in arns {
            match self.name {
                "disabled" => drop(
                    operator
                        .disable_key()
                        .key_id(arn)
                        .send()
                        .await
                        .expect("done"),
                ),
                "scheduled for deletion" => {
                    let doomed = operator.schedule_key_deletion().key_id(arn).send();
                    doomed.await.expect("done");
                }
                _ => {}
            }
        }
    }

    /// What the text of the error tells an operator to do.
    async fn end(&self, kms: &Kms, keys: [&BackendRef; 2]) {
        kms.faults(json!({})).await;
        let operator = kms.operator();
        for arn in keys.map(|key| key.0.as_str()) {
            if self.name == "scheduled for deletion" {
                let kept = operator.cancel_key_deletion().key_id(arn).send().await;
                kept.expect("done");
            }
            if ["disabled", "scheduled for deletion"].contains(&self.name) {
                operator
                    .enable_key()
                    .key_id(arn)
                    .send()
                    .await
                    .expect("done");
            }
        }
    }
}

/// Bad input: each wrong x operations, at run time and on adopt. Nothing is lost: afterwards the same key
/// signs, and the same ciphertext unwraps.
#[test]
fn one_bad_key_is_not_a_bad_backend() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let pair = create(&backend, KeySpec::P256).await.reference;
        let other = create(&backend, KeySpec::P256).await.reference;
        let kek = create(&backend, KeySpec::Kek).await.reference;
        let wrapped = backend
            .wrap(&kek, &Secret::new([7; 32]), b"a", soon())
            .await;
        let wrapped = wrapped.expect("wrapped");
        println!("| a key that is | operation | class |");
        println!("|---|---|---|");
        for wrong in &WRONGS {
            wrong.begin(&kms, [&pair, &kek]).await;
            for (name, outcome) in uses(&backend, &pair, &kek, &wrapped).await {
                let error = outcome.expect_err(name);
                println!("| {} | {name} | {} |", wrong.name, class(&error));
                assert_eq!(class(&error), wrong.class, "{name} {}: {error}", wrong.name);
                assert!(error.to_string().contains(wrong.says), "{name}: {error}");
            }
            sign(&backend, &other).await.expect("another key signs");
            backend.ready(soon()).await.expect("ready");

            wrong.end(&kms, [&pair, &kek]).await;
            for (name, outcome) in uses(&backend, &pair, &kek, &wrapped).await {
                outcome.unwrap_or_else(|error| panic!("{name} after {}: {error}", wrong.name));
            }
        }
    });
}

/// Every operation that needs the key.
async fn uses(
    backend: &AwsKmsBackend,
    pair: &BackendRef,
    kek: &BackendRef,
    wrapped: &[u8],
) -> [(&'static str, Result<(), BackendError>); 6] {
    let key = Secret::new([7; 32]);
    let adopt = async |key: &BackendRef, spec| backend.adopt(&key.0, spec, soon()).await.map(drop);
    let opened = backend.unwrap(kek, wrapped, b"a", soon()).await;
    if let Ok(opened) = &opened {
        assert_eq!(opened.expose_secret(), &[7; 32]);
    }
    [
        ("sign", sign(backend, pair).await),
        (
            "public_key",
            backend.public_key(pair, soon()).await.map(drop),
        ),
        (
            "wrap",
            backend.wrap(kek, &key, b"a", soon()).await.map(drop),
        ),
        ("unwrap", opened.map(drop)),
        ("adopt a pair", adopt(pair, KeySpec::P256).await),
        ("adopt a KEK", adopt(kek, KeySpec::Kek).await),
    ]
}

async fn sign(backend: &AwsKmsBackend, pair: &BackendRef) -> Result<(), BackendError> {
    let hash = digest(&SHA256, b"message");
    let input = SignInput::Digest(hash.as_ref());
    let signed = backend.sign(pair, Algorithm::Es256, input, soon()).await;
    signed.map(drop)
}
