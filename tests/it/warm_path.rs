//! A warm data-plane call reads no database, evaluates no policy and unwraps no data key: the daemon counts
//! each of these, and the counts must stand still while calls go on.

use claviger::grpc::proto::{
    Algorithm, DecryptRequest, EncryptRequest, IssueTokenRequest, KeyPurpose, SignRequest,
    VerifyTokenRequest, sign_request::Payload,
};

use crate::daemon::{Actor, Daemon, Engine};

const COLD_WORK: [&str; 3] = [
    "claviger_cache_loads_total",
    "claviger_token_marks_total",
    "claviger_policy_evaluations_total",
];

/// Everything that only a cold call does, as the daemon counts it.
async fn cold_work(daemon: &Daemon) -> Vec<String> {
    let metrics = daemon.ops_get("/metrics").await.text();
    let mut lines: Vec<_> = metrics
        .lines()
        .filter(|line| COLD_WORK.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

async fn one_of_each(service: &Actor) {
    let sign = SignRequest {
        key: "signing".into(),
        payload: Some(Payload::Message("message".into())),
        ..SignRequest::default()
    };
    service.crypto().sign(sign).await.expect("signs");
    let encrypt = EncryptRequest {
        key: "vault".into(),
        plaintext: "text".into(),
        ..EncryptRequest::default()
    };
    let encrypted = service.crypto().encrypt(encrypt).await.expect("encrypts");
    let decrypt = DecryptRequest {
        key: "vault".into(),
        ciphertext: encrypted.into_inner().ciphertext,
        ..DecryptRequest::default()
    };
    service.crypto().decrypt(decrypt).await.expect("decrypts");
    let issue = IssueTokenRequest {
        key: "tokens".into(),
        audience: vec!["orders".into()],
        ..IssueTokenRequest::default()
    };
    let issued = service.tokens().issue_token(issue).await.expect("issues");
    let verify = VerifyTokenRequest {
        token: issued.into_inner().token,
        audience: "orders".into(),
        ..VerifyTokenRequest::default()
    };
    let verified = service.tokens().verify_token(verify).await.expect("checks");
    assert!(verified.into_inner().valid);
}

#[tokio::test]
async fn warm_calls_read_no_database_and_evaluate_no_policy() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    for (name, purpose, algorithm) in [
        ("signing", KeyPurpose::Signing, Algorithm::Es256),
        ("tokens", KeyPurpose::TokenSigning, Algorithm::Es256),
        ("vault", KeyPurpose::Encryption, Algorithm::A256gcm),
    ] {
        daemon.key("acme", name, purpose, algorithm).await;
    }
    // A daemon that starts has seen the whole change feed, so nothing makes it forget from here on.
    daemon.restart().await;
    let service = daemon.actor("service");
    one_of_each(&service).await;
    let before = cold_work(&daemon).await;
    assert!(!before.is_empty(), "the daemon counts its cold work");
    for _ in 0..20 {
        one_of_each(&service).await;
    }
    assert_eq!(before, cold_work(&daemon).await);
    daemon.stop().await;
}
