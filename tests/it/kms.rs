//! AWS KMS: the conformance suite, and what only a service across a network can do wrong.
//!
//! The service is moto behind `kms/layer.py`, which adds what AWS does and moto does not, and a TCP proxy that
//! resets and hangs. With CLAVIGER_TEST_AWS_KMS=REGION at build time (and credentials of the standard chain) the
//! conformance suite runs against AWS too; without it that test does not exist. It makes about twenty keys, which
//! AWS deletes after a week; docs/backends.md says what it needs and costs.

mod adopt;
mod find;
pub mod layer;
mod proxy;
mod quota;
mod states;
mod trouble;
mod whole;

use claviger::{
    backends::{Backend, BackendError},
    model::{Algorithm, IntentId, KeySpec},
};
use serde_json::json;

use crate::{conformance, softhsm::soon};
use layer::{Credentials, Kms, alone, alone_with};

/// R-CARD-2, R-LIFE-4
#[test]
fn the_suite_passes_on_kms() {
    alone(async |kms: Kms| {
        kms.faults(json!({"ed25519": true})).await;
        let mut config = kms.config();
        config.ed25519 = Some(true);
        let backend = kms.open(&config).await.expect("KMS opens");
        assert!(
            backend
                .capabilities()
                .algorithms
                .contains(&Algorithm::EdDsa)
        );
        conformance::run(&backend).await;
    });
}

#[cfg(claviger_test_aws_kms)]
#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_on_aws() {
    use claviger::backends::aws_kms::{AwsKmsBackend, QuotaConfig};
    let mut config = layer::config(env!("CLAVIGER_TEST_AWS_KMS"), None);
    config.quotas = QuotaConfig::default();
    let backend = AwsKmsBackend::open("aws", &config, soon()).await;
    conformance::run(&backend.expect("AWS KMS opens")).await;
}

/// Ed25519 may be missing: where nobody says that it is there, it is not offered, and where that was wrong,
/// the answer names it.
#[test]
fn what_an_endpoint_lacks_is_said() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let capabilities = backend.capabilities();
        assert!(!capabilities.algorithms.contains(&Algorithm::EdDsa));
        assert!(!capabilities.specs.contains(&KeySpec::Ed25519));
        let mut config = kms.config();
        config.ed25519 = Some(true);
        let hopeful = kms.open(&config).await.expect("KMS opens");
        for backend in [backend, hopeful] {
            let intent = IntentId::random();
            let outcome = backend
                .create(KeySpec::Ed25519, intent, "test", soon())
                .await;
            let said = matches!(outcome, Err(BackendError::Unsupported(_)));
            assert!(said, "{outcome:?}");
        }
    });
}

/// R-ENV-2: what an operator must put right stops the opening and says so.
#[test]
fn missing_credentials_are_named() {
    alone_with(Credentials::None, async |kms: Kms| {
        let error = kms.open(&kms.config()).await.err().expect("refused");
        assert!(matches!(error, BackendError::Misconfigured(_)), "{error:?}");
        assert!(error.to_string().contains("no AWS credentials"), "{error}");
    });
}

/// Pods get their role by a token in a file (IRSA).
#[test]
fn a_web_identity_token_is_enough() {
    alone_with(Credentials::WebIdentity, async |kms: Kms| {
        let backend = kms.backend().await;
        conformance::create(&backend, KeySpec::P256).await;
    });
}

/// A KMS that is away when the daemon starts does not stop it; one that refuses does.
#[test]
fn only_what_an_operator_must_change_stops_the_opening() {
    alone(async |kms: Kms| {
        kms.proxy.set(proxy::Mode::Reset);
        let backend = kms.backend().await;
        assert!(backend.ready(soon()).await.is_err());
        kms.proxy.set(proxy::Mode::Pass);
        backend.ready(soon()).await.expect("ready again");

        kms.faults(json!({"deny": ["ListKeys"]})).await;
        let error = kms.open(&kms.config()).await.err().expect("refused");
        assert!(error.to_string().contains("kms:ListKeys"), "{error}");
        let mut config = kms.config();
        config.region = "Ireland".into();
        let error = kms.open(&config).await.err().expect("refused");
        assert!(error.to_string().contains("region must be"), "{error}");
    });
}
