//! Weak keys cannot come to be: not by CreateKey, not by AdoptKey, not by name (R-JWT-3).

use claviger::{grpc::proto::*, model};
use tonic::{Code, Response, Status};

use crate::daemon::{Daemon, Engine, TOKEN, reason};

#[track_caller]
fn refused<T>(answer: Result<Response<T>, Status>, code: Code, why: &str) {
    let Err(status) = answer else {
        panic!("accepted, not {why}");
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, why),
        "{status}"
    );
}

fn create(algorithm: i32, rsa_bits: u32) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "acme".into(),
        name: "weak".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm,
        rsa_bits,
        owner: "team-e2e".into(),
        ..Default::default()
    }
}

async fn kept(daemon: &Daemon) -> Vec<Vec<String>> {
    daemon
        .rows("SELECT kid FROM key_versions UNION ALL SELECT id FROM backend_intents")
        .await
}

// R-JWT-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weak_keys_are_neither_created_nor_adopted() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let issuer = daemon.actor("issuer");
    for bits in [1, 512, 1024, 1536, 2047, 2049, 16_384, u32::MAX] {
        for algorithm in [Algorithm::Rs256, Algorithm::Ps512] {
            let answer = issuer
                .keys()
                .create_key(create(algorithm.into(), bits))
                .await;
            refused(answer, Code::InvalidArgument, "INVALID_FIELD");
        }
    }
    let known = (0..).map_while(|n| Algorithm::try_from(n).ok()).count();
    for number in [0, -1, i32::try_from(known).expect("few"), 100, i32::MAX] {
        let answer = issuer.keys().create_key(create(number, 0)).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    let aes = create(Algorithm::A256gcm.into(), 0);
    refused(
        issuer.keys().create_key(aes).await,
        Code::InvalidArgument,
        "ALGORITHM_MISMATCH",
    );

    // What another program put on the token.
    daemon
        .pkcs11_tool(&[
            "--keypairgen",
            "--key-type",
            "rsa:1024",
            "--id",
            "a1",
            "--label",
            "short",
            "--sensitive",
        ])
        .await;
    daemon
        .pkcs11_tool(&[
            "--keygen",
            "--key-type",
            "GENERIC:32",
            "--id",
            "a2",
            "--label",
            "secret",
            "--sensitive",
        ])
        .await;
    daemon
        .pkcs11_tool(&[
            "--keypairgen",
            "--key-type",
            "EC:secp256k1",
            "--id",
            "a3",
            "--label",
            "koblitz",
            "--sensitive",
        ])
        .await;
    for object in ["short", "secret", "koblitz"] {
        for algorithm in [
            Algorithm::Rs256,
            Algorithm::Ps256,
            Algorithm::Es256,
            Algorithm::Eddsa,
        ] {
            let request = AdoptKeyRequest {
                tenant: "acme".into(),
                name: "weak".into(),
                purpose: KeyPurpose::TokenSigning.into(),
                algorithm: algorithm.into(),
                uri: format!("pkcs11:token={TOKEN};object={object}"),
                owner: "team-e2e".into(),
                ..Default::default()
            };
            let answer = issuer.keys().adopt_key(request).await;
            refused(answer, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");
        }
    }
    assert_eq!(kept(&daemon).await, Vec::<Vec<String>>::new());
    daemon.stop().await;
}

// R-JWT-3
#[test]
fn no_weak_algorithm_has_a_name() {
    let names = (0..).map_while(|n| Algorithm::try_from(n).ok());
    let names: Vec<_> = names
        .map(|a| a.as_str_name().replace("ALGORITHM_", ""))
        .collect();
    let known = [
        "UNSPECIFIED",
        "ES256",
        "ES384",
        "ES512",
        "EDDSA",
        "PS256",
        "PS384",
        "PS512",
        "RS256",
        "RS384",
        "RS512",
        "A256GCM",
        "HS256",
        "HS512",
    ];
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let mut expected = known.to_vec();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    // For MAC keys and for nothing that verifies a token.
    for symmetric in [model::Algorithm::Hs256, model::Algorithm::Hs512] {
        for purpose in model::Purpose::ALL {
            assert_eq!(symmetric.fits(purpose), purpose == model::Purpose::Mac);
        }
        assert!(symmetric.verification().is_none());
        assert!(symmetric.key_spec(0).is_none());
    }
    for weak in ["none", "HS384", "RS1", "ES256K", "RSA1_5", "DSA"] {
        assert!(weak.parse::<model::Algorithm>().is_err(), "{weak}");
    }
}
