//! A daemon whose keys and KEK are in KMS: through the public API, and through an outage.

use std::time::{Duration, Instant as Clock};

use claviger::grpc::proto::{
    Algorithm, DecryptRequest, EncryptRequest, KeyPurpose, SignRequest, SignResponse,
    sign_request::Payload,
};
use tonic::{Code, Response, Status};

use super::{layer::Kms, proxy::Mode};
use crate::daemon::{Daemon, Engine, TOKEN, reason};

async fn sign(daemon: &Daemon) -> Result<Response<SignResponse>, Status> {
    let request = SignRequest {
        tenant: "acme".into(),
        key: "orders".into(),
        payload: Some(Payload::Message("order 4711".into())),
    };
    daemon.actor("service").crypto().sign(request).await
}

/// R-CARD-4, R-ENV-2: the configuration of a whole daemon; what it signs and wraps comes from KMS. While KMS is
/// away, signing says so and decryption with cached data keys goes on; afterwards all works without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lives_on_kms() {
    let kms = Kms::here().await;
    let operator = kms.operator();
    let made = operator.create_key().send().await.expect("a KEK");
    let arn = made.key_metadata.and_then(|key| key.arn).expect("an ARN");
    let named = operator.create_alias().alias_name("alias/kek");
    named.target_key_id(&arn).send().await.expect("an alias");

    let mut daemon = Daemon::start(Engine::Sqlite).await;
    daemon.set_env("AWS_ACCESS_KEY_ID", "AKIDTEST");
    daemon.set_env("AWS_SECRET_ACCESS_KEY", "secret");
    let section = format!(
        "[backends.kms]\ntype = \"aws_kms\"\nregion = \"{}\"\naccount = \"123456789012\"\n\
         endpoint = \"http://{}\"\nquotas.control_per_second = 100\n\n[kek]\nbackend = \"kms\"\n\
         uri = \"alias/kek\"\n",
        kms.region, kms.proxy.address
    );
    daemon.edit_config(|text| {
        let old = format!(
            "[kek]\nbackend = \"hsm\"\nuri = \"pkcs11:token={TOKEN};object=claviger-kek;type=secret-key\"\n"
        );
        assert!(text.contains(&old));
        text.replace(&old, &section)
    });
    daemon.restart().await;

    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    kms.faults(serde_json::json!({})).await;
    let signed = sign(&daemon).await.expect("signed").into_inner();
    assert_eq!(signed.signature.len(), 64);
    assert_eq!(kms.asked("Sign").await, 1);
    let service = daemon.actor("service");
    let encrypt = EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: "IBAN".into(),
        ..Default::default()
    };
    let sealed = service.crypto().encrypt(encrypt).await.expect("encrypted");
    let decrypt = DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: sealed.into_inner().ciphertext,
        ..Default::default()
    };

    for mode in [Mode::Reset, Mode::Hang] {
        kms.proxy.set(mode);
        let began = Clock::now();
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
        let began = Clock::now();
        while let Err(status) = sign(&daemon).await {
            assert_eq!(status.code(), Code::Unavailable, "{mode:?} {status}");
            assert!(began.elapsed() < Duration::from_secs(10), "KMS is back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("{mode:?}: again after {} ms", began.elapsed().as_millis());
    }

    // A new process has nothing cached: KMS unwraps.
    daemon.restart().await;
    kms.faults(serde_json::json!({})).await;
    let opened = daemon.actor("service").crypto().decrypt(decrypt).await;
    assert_eq!(opened.expect("unwrapped").into_inner().plaintext, "IBAN");
    assert_eq!(kms.asked("Decrypt").await, 1);
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
