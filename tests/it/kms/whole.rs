//! A daemon whose keys and KEK are in KMS: through the public API, and through an outage.

use std::time::Duration;

use claviger::grpc::proto::{
    AdoptKeyRequest, Algorithm, CreateKeyRequest, DecryptRequest, EncryptRequest, KeyPurpose,
    SignRequest, SignResponse, sign_request::Payload,
};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::{adopt::foreign_key, layer::Kms, proxy::Mode};
use crate::{
    daemon::{Daemon, Engine, PATIENCE, Setup, TOKEN, reason},
    main_job::{Pairs, main_job},
};

/// A daemon to be whose KEK and key pairs are in KMS.
fn in_kms(kms: &Kms) -> Setup {
    beside_kms(kms).edit(kek_in_kms)
}

/// A daemon to be that has KMS beside its token, and uses it for nothing yet.
fn beside_kms(kms: &Kms) -> Setup {
    let section = format!(
        "[backends.kms]\ntype = \"aws_kms\"\nregion = \"{}\"\naccount = \"123456789012\"\n\
         endpoint = \"http://{}\"\ned25519 = true\nquotas.control_per_second = 100\n",
        kms.region, kms.proxy.address
    );
    // Nothing of whoever runs the tests.
    Setup::new(Engine::Sqlite)
        .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_SESSION_TOKEN", "")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .append(section)
}

fn kek_in_kms(text: String) -> String {
    let token = format!(
        "[kek]\nbackend = \"hsm\"\nuri = \"pkcs11:token={TOKEN};object=claviger-kek;type=secret-key\"\n"
    );
    assert!(text.contains(&token));
    text.replace(&token, "[kek]\nbackend = \"kms\"\nuri = \"alias/kek\"\n")
}

async fn sign_with(daemon: &Daemon, key: &str, message: Vec<u8>) -> Result<SignResponse, Status> {
    let request = SignRequest {
        tenant: "acme".into(),
        key: key.into(),
        payload: Some(Payload::Message(message.into())),
    };
    let signed = daemon.actor("service").crypto().sign(request).await;
    signed.map(Response::into_inner)
}

async fn sign(daemon: &Daemon) -> Result<SignResponse, Status> {
    sign_with(daemon, "orders", "order 4711".into()).await
}

/// KMS is back, and nobody restarts the daemon.
async fn signs_again(daemon: &Daemon) {
    let until = Instant::now() + PATIENCE;
    while let Err(status) = sign(daemon).await {
        assert!(Instant::now() < until, "{status}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn signing_key(daemon: &Daemon, name: &str, algorithm: Algorithm) -> String {
    let key = daemon
        .key("acme", name, KeyPurpose::Signing, algorithm)
        .await;
    key.versions[0].backend_ref.clone()
}

fn encrypt_request() -> EncryptRequest {
    EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: "IBAN".into(),
        ..Default::default()
    }
}

/// R-CARD-1, R-CARD-4, R-LIFE-4: the six steps, with the KEK and the key pairs in KMS.
#[tokio::test]
async fn main_job_in_kms() {
    let kms = Kms::here().await;
    kms.kek().await;
    kms.faults(json!({"ed25519": true})).await;
    let daemon = in_kms(&kms).start().await;
    main_job(daemon, Pairs::InKms(kms)).await;
}

/// The same, mixed: the KEK in KMS, key pairs in the token.
#[tokio::test]
async fn main_job_with_the_kek_in_kms() {
    let kms = Kms::here().await;
    kms.kek().await;
    let setup = in_kms(&kms).append("[keys]\ndefault_backend = \"hsm\"");
    kms.faults(json!({})).await;
    main_job(setup.start().await, Pairs::OnToken).await;
    assert!(
        kms.asked("Encrypt").await > 0,
        "data keys are wrapped in KMS"
    );
    assert_eq!(kms.asked("Sign").await, 0);
    assert!(kms.pairs().await.is_empty());
}

/// The other way round: key pairs in KMS, the KEK in the token.
#[tokio::test]
async fn main_job_with_key_pairs_in_kms() {
    let kms = Kms::here().await;
    kms.faults(json!({"ed25519": true})).await;
    let setup = beside_kms(&kms).append("[keys]\ndefault_backend = \"kms\"");
    main_job(setup.start().await, Pairs::InKms(kms)).await;
}

/// Each key names its backend: two of them sign side by side, and the one goes on while the other is away.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_two_backends_sign_side_by_side() {
    let kms = Kms::here().await;
    kms.kek().await;
    let daemon = in_kms(&kms).start().await;
    for (name, backend) in [("orders", "kms"), ("other", "hsm")] {
        let request = CreateKeyRequest {
            tenant: "acme".into(),
            name: name.into(),
            purpose: KeyPurpose::Signing.into(),
            algorithm: Algorithm::Es256.into(),
            owner: "team-e2e".into(),
            backend: backend.into(),
            ..Default::default()
        };
        let made = daemon.actor("issuer").keys().create_key(request).await;
        let key = made.expect("CreateKey").into_inner().key.expect("a key");
        let is_in_kms = key.versions[0].backend_ref.starts_with("arn:");
        assert_eq!(is_in_kms, backend == "kms", "{key:?}");
    }
    kms.proxy.set(Mode::Reset);
    let away = sign(&daemon).await.expect_err("KMS is away");
    assert_eq!(away.code(), Code::Unavailable, "{away}");
    let signed = sign_with(&daemon, "other", b"m".to_vec()).await;
    signed.expect("the token is not");
    kms.proxy.set(Mode::Pass);
    signs_again(&daemon).await;
    daemon.stop().await;
}

/// R-CARD-4, R-ENV-2: the configuration of a whole daemon; what it signs and wraps comes from KMS. While KMS is
/// away, signing says so and decryption with cached data keys goes on; afterwards all works without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lives_on_kms() {
    let kms = Kms::here().await;
    kms.kek().await;
    let mut daemon = in_kms(&kms).start().await;
    signing_key(&daemon, "orders", Algorithm::Es256).await;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    kms.faults(serde_json::json!({})).await;
    let signed = sign(&daemon).await.expect("signed");
    assert_eq!(signed.signature.len(), 64);
    assert_eq!(kms.asked("Sign").await, 1);
    let service = daemon.actor("service");
    let sealed = service
        .crypto()
        .encrypt(encrypt_request())
        .await
        .expect("encrypted");
    let decrypt = DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: sealed.into_inner().ciphertext,
        ..Default::default()
    };

    for mode in [Mode::Reset, Mode::Hang] {
        kms.proxy.set(mode);
        let began = Instant::now();
        let away = sign(&daemon).await.expect_err("KMS is away");
        println!(
            "{mode:?}: answered after {} ms",
            began.elapsed().as_millis()
        );
        // Before `keys.backend_timeout_ms`; a second is promised, and these machines are slow.
        assert!(began.elapsed() < Duration::from_secs(4), "{mode:?}");
        assert_eq!(away.code(), Code::Unavailable, "{mode:?} {away}");
        assert_eq!(reason(&away), "BACKEND_UNAVAILABLE");
        let opened = service.crypto().decrypt(decrypt.clone()).await;
        assert_eq!(opened.expect("cached").into_inner().plaintext, "IBAN");
        let ready = daemon.ops_get("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        kms.proxy.set(Mode::Pass);
        let began = Instant::now();
        while let Err(status) = sign(&daemon).await {
            assert_eq!(status.code(), Code::Unavailable, "{mode:?} {status}");
            assert!(began.elapsed() < Duration::from_secs(10), "KMS is back");
            sleep(Duration::from_millis(50)).await;
        }
        println!("{mode:?}: again after {} ms", began.elapsed().as_millis());
    }

    // A new process has nothing cached: KMS unwraps.
    daemon.restart().await;
    kms.faults(serde_json::json!({})).await;
    let opened = daemon.actor("service").crypto().decrypt(decrypt).await;
    assert_eq!(opened.expect("unwrapped").into_inner().plaintext, "IBAN");
    // Beside what the daemon looks at by itself: the KEK's probe and a sample of the data keys.
    assert!(kms.asked("Decrypt").await > 0, "KMS unwraps");
    daemon.stop().await;
}

/// Bad input at run time: what is wrong with one key is said, with what to do, and stops no other key; it
/// works again without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_key_stops_alone_and_comes_back() {
    let kms = Kms::here().await;
    let kek = kms.kek().await;
    let mut daemon = in_kms(&kms).start().await;
    let arn = signing_key(&daemon, "orders", Algorithm::Es256).await;
    signing_key(&daemon, "other", Algorithm::Es256).await;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    let operator = kms.operator();

    let others_sign = async || {
        let signed = sign_with(&daemon, "other", b"m".to_vec()).await;
        signed.expect("another key signs");
        assert_eq!(daemon.ops_get("/readyz").await.status, 200);
    };
    let refused = async |why: &str, says: &str| {
        // More often than any breaker would look on.
        for _ in 0..20 {
            let status = sign(&daemon).await.expect_err(why);
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert_eq!(reason(&status), why);
            assert!(status.message().contains(says), "{status}");
            assert!(!status.message().contains("arn:"), "{status}");
        }
        others_sign().await;
    };
    let disabled = operator.disable_key().key_id(&arn).send().await;
    disabled.expect("disabled");
    refused("KEY_SUSPENDED", "kms:EnableKey").await;
    let enabled = operator.enable_key().key_id(&arn).send().await;
    enabled.expect("enabled");
    sign(&daemon).await.expect("signed again");

    kms.faults(json!({"deny_key": {&arn: ["Sign"]}})).await;
    refused("BACKEND_DENIED", "kms:Sign").await;
    kms.faults(json!({})).await;
    sign(&daemon).await.expect("signed again");

    let doomed = operator.schedule_key_deletion().key_id(&arn).send().await;
    doomed.expect("scheduled");
    let status = sign(&daemon).await.expect_err("it is gone for us");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("about to be"), "{status}");
    others_sign().await;
    let kept = operator.cancel_key_deletion().key_id(&arn).send().await;
    kept.expect("kept");
    let enabled = operator.enable_key().key_id(&arn).send().await;
    enabled.expect("enabled");
    sign(&daemon).await.expect("signed again");

    // R-ENV-2: the KEK. New data keys are refused; what is cached goes on; a start says what is wrong.
    let disabled = operator.disable_key().key_id(&kek).send().await;
    disabled.expect("disabled");
    let service = daemon.actor("service");
    let sealed = service.crypto().encrypt(encrypt_request()).await;
    let sealed = sealed.expect_err("not unwrapped yet");
    assert_eq!(reason(&sealed), "KEY_SUSPENDED", "{sealed}");
    others_sign().await;
    assert!(daemon.terminate().await.success());
    let said = daemon.up().await.expect_err("no start without a KEK");
    assert!(said.contains("encryption key misconfigured"), "{said}");
    assert!(said.contains("kms:EnableKey"), "{said}");
    let enabled = operator.enable_key().key_id(&kek).send().await;
    enabled.expect("enabled");
    daemon.restart().await;
    let service = daemon.actor("service");
    let sealed = service.crypto().encrypt(encrypt_request()).await;
    sealed.expect("encrypted");
    daemon.stop().await;
}

/// Bad input on adopt: each refusal has its reason and says what to do; nothing is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_adopted_says_why() {
    use aws_sdk_kms::types::{KeySpec as AwsSpec, KeyUsageType};
    let kms = Kms::here().await;
    kms.kek().await;
    let daemon = in_kms(&kms).start().await;
    let operator = kms.operator();
    let adopt = async |uri: &str, algorithm: Algorithm| {
        let request = AdoptKeyRequest {
            tenant: "acme".into(),
            name: "adopted".into(),
            purpose: KeyPurpose::Signing.into(),
            algorithm: algorithm.into(),
            uri: uri.into(),
            owner: "payments".into(),
            ..Default::default()
        };
        daemon.actor("issuer").keys().adopt_key(request).await
    };
    let refused = async |uri: &str, algorithm: Algorithm, why: &str, says: &str| {
        let status = adopt(uri, algorithm).await.expect_err(says);
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert_eq!(reason(&status), why, "{status}");
        assert!(status.message().contains(says), "{status}");
    };
    let pair = async |spec| foreign_key(&kms, spec, KeyUsageType::SignVerify).await;
    let unfit = "KEY_NOT_ADOPTABLE";
    let good = pair(AwsSpec::EccNistP256).await;

    refused(&good, Algorithm::Es384, unfit, "it is P256, not P384").await;
    refused("alias/kek", Algorithm::Es256, unfit, "it is Kek").await;
    let elsewhere = good.replace(&kms.region, "eu-west-9");
    refused(&elsewhere, Algorithm::Es256, unfit, "region eu-west-9").await;
    refused("alias/nobody", Algorithm::Es256, unfit, "names no key pair").await;
    let disabled = operator.disable_key().key_id(&good).send().await;
    disabled.expect("disabled");
    refused(&good, Algorithm::Es256, unfit, "kms:EnableKey").await;
    let enabled = operator.enable_key().key_id(&good).send().await;
    enabled.expect("enabled");
    for needed in ["DescribeKey", "GetPublicKey", "Sign", "ListResourceTags"] {
        kms.faults(json!({"deny": [needed]})).await;
        let says = format!("kms:{needed}");
        refused(&good, Algorithm::Es256, "BACKEND_DENIED", &says).await;
    }
    kms.faults(json!({})).await;
    let none = daemon.rows("SELECT name FROM keys").await;
    assert!(none.is_empty(), "{none:?}");
    let adopted = adopt(&good, Algorithm::Es256).await.expect("adopted");
    let key = adopted.into_inner().key.expect("a key");
    assert_eq!(key.versions[0].backend_ref, good);
    let signed = sign_with(&daemon, "adopted", b"message".to_vec()).await;
    signed.expect("signed");
    daemon.stop().await;
}

/// The quota of the account: what is too much is RESOURCE_EXHAUSTED with a delay, after which it is served.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_signatures_are_put_off() {
    let kms = Kms::here().await;
    kms.kek().await;
    let quota = "quotas.control_per_second = 100\nquotas.asymmetric_per_second = 10\nquotas.share_percent = 100\n";
    let daemon = in_kms(&kms)
        .replace("quotas.control_per_second = 100\n", quota)
        .start()
        .await;
    signing_key(&daemon, "orders", Algorithm::Es256).await;
    kms.faults(json!({})).await;
    let began = Instant::now();
    let outcomes = join_all((0..100).map(|_| sign(&daemon))).await;
    let most = 10.0 + 10.0 * (began.elapsed().as_secs_f64() + 0.1);
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(done > 0 && (done as f64) <= most, "{done} of 100, {most}");
    assert_eq!(kms.asked("Sign").await, done as u64);
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    for status in &refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(reason(status), "OVERLOADED");
        let retry = status.get_details_retry_info();
        let delay = retry.and_then(|retry| retry.retry_delay);
        assert!(delay.is_some_and(|delay| delay <= Duration::from_secs(1)));
    }
    // Who does as told gets it, and readiness has seen nothing.
    let until = Instant::now() + PATIENCE;
    while let Err(status) = sign(&daemon).await {
        let retry = status.get_details_retry_info().and_then(|r| r.retry_delay);
        assert!(Instant::now() < until, "{status}");
        sleep(retry.expect("a delay")).await;
    }
    assert_eq!(daemon.ops_get("/readyz").await.status, 200);
    daemon.stop().await;
}

/// KMS signs EdDSA messages of 4,096 bytes at most; digests make every other algorithm free of that.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_are_hashed_or_refused() {
    let kms = Kms::here().await;
    kms.kek().await;
    kms.faults(json!({"ed25519": true})).await;
    let daemon = in_kms(&kms).start().await;
    signing_key(&daemon, "edwards", Algorithm::Eddsa).await;
    signing_key(&daemon, "orders", Algorithm::Es256).await;
    let signed = sign_with(&daemon, "edwards", vec![7; 4096]).await;
    assert_eq!(signed.expect("4,096 bytes").signature.len(), 64);
    let status = sign_with(&daemon, "edwards", vec![7; 4097]).await;
    let status = status.expect_err("one byte more");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(reason(&status), "PAYLOAD_TOO_LARGE");
    assert!(status.message().contains("4096"), "{status}");
    let signed = sign_with(&daemon, "orders", vec![7; 100_000]).await;
    assert_eq!(signed.expect("any length").signature.len(), 64);
    daemon.stop().await;
}

/// R-ENV-1: requests in clear are for tests.
#[tokio::test]
async fn clear_text_to_kms_is_for_dev_only() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let section = |endpoint: &str| {
        format!(
            "[backends.kms]\ntype = \"aws_kms\"\nregion = \"eu-west-1\"\nendpoint = \"{endpoint}\"\n\n[kek]\n"
        )
    };
    let checked = async |path: &std::path::Path| {
        let path = path.to_str().expect("UTF-8");
        let args = ["doctor", "--config-only", "--config", path];
        let output = daemon.cli(&args).await;
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let text = std::fs::read_to_string(daemon.config_path()).expect("claviger.toml");
    let text = text.replace("max_age_seconds = 1\n", "max_age_seconds = 60\n");
    let text = text.replace("clock_skew_seconds = 0\n", "clock_skew_seconds = 60\n");
    let other = daemon.path("staging.toml");
    for (environment, endpoint, is_fine) in [
        ("dev", "http://127.0.0.1:1", true),
        ("staging", "https://kms.internal", true),
        ("staging", "http://127.0.0.1:1", false),
        ("staging", "HTTP://127.0.0.1:1", false),
    ] {
        let text = text.replace(
            "environment = \"dev\"",
            &format!("environment = \"{environment}\""),
        );
        let text = text.replace("[kek]\n", &section(endpoint));
        std::fs::write(&other, text).expect("staging.toml");
        let (success, said) = checked(&other).await;
        assert_eq!(success, is_fine, "{environment} {endpoint}: {said}");
        assert!(success || said.contains("http:// endpoint"), "{said}");
    }
    let text = text.replace("[kek]\n", &section("https://a").replace("region", "regoin"));
    std::fs::write(&other, text).expect("staging.toml");
    let (success, said) = checked(&other).await;
    assert!(!success && said.contains("regoin"), "{said}");
    daemon.stop().await;
}
