//! Data keys for callers and random bytes: what opens a wrapped key, and everything that does not. R-CARD-2, R-CARD-4.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use claviger::{
    envelope::{self, Kind},
    grpc::proto::*,
};
use tonic::{Code, Response, Status};

use crate::daemon::{Daemon, Engine, Setup, reason};

fn aad(document: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("document".to_owned(), document.to_owned())])
}

fn generate(key: &str, length: u32) -> GenerateDataKeyRequest {
    GenerateDataKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        aad: aad("invoice 4711"),
        length,
    }
}

async fn generated(daemon: &Daemon, key: &str, length: u32) -> GenerateDataKeyResponse {
    let mut service = daemon.actor("service").data_keys();
    let made = service.generate_data_key(generate(key, length)).await;
    made.expect("GenerateDataKey").into_inner()
}

fn decrypt(key: &str, wrapped: &[u8]) -> DecryptDataKeyRequest {
    DecryptDataKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        wrapped: Bytes::copy_from_slice(wrapped),
        aad: aad("invoice 4711"),
    }
}

async fn decrypted(daemon: &Daemon, request: DecryptDataKeyRequest) -> DecryptDataKeyResponse {
    let mut service = daemon.actor("service").data_keys();
    let answer = service.decrypt_data_key(request).await;
    answer.expect("DecryptDataKey").into_inner()
}

#[track_caller]
fn refused<T>(result: Result<Response<T>, Status>, code: Code, why: &str) -> String {
    let Err(status) = result else {
        panic!("not refused: {why}");
    };
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    status.message().to_owned()
}

async fn vault(engine: Engine) -> Daemon {
    let daemon = Setup::new(engine)
        .replace("max_age_seconds = 1", "max_age_seconds = 0")
        .start()
        .await;
    for key in ["vault", "other"] {
        daemon
            .key("acme", key, KeyPurpose::Encryption, Algorithm::A256gcm)
            .await;
    }
    daemon
}

#[tokio::test]
async fn a_data_key_comes_back_from_its_wrapped_form() {
    let daemon = vault(Engine::Sqlite).await;
    let mut seen = BTreeSet::new();
    for (asked, length) in [(0, 32), (16, 16), (32, 32), (64, 64), (32, 32)] {
        let made = generated(&daemon, "vault", asked).await;
        assert_eq!(made.plaintext.len(), length);
        assert!(made.wrapped.len() <= 512);
        let window = |w: &[u8]| w == &made.plaintext[..16];
        assert!(!made.wrapped.windows(16).any(window));
        let again = decrypted(&daemon, decrypt("vault", &made.wrapped)).await;
        assert_eq!(
            (again.plaintext, again.kid),
            (made.plaintext.clone(), made.kid)
        );
        assert!(seen.insert(made.plaintext), "each is new");
    }
    let mut service = daemon.actor("service").data_keys();
    let request = GenerateDataKeyWithoutPlaintextRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        aad: aad("invoice 4711"),
        length: 64,
    };
    let made = service.generate_data_key_without_plaintext(request).await;
    let made = made.expect("GenerateDataKeyWithoutPlaintext").into_inner();
    let opened = decrypted(&daemon, decrypt("vault", &made.wrapped)).await;
    assert_eq!((opened.plaintext.len(), opened.kid), (64, made.kid));
    for length in [1, 15, 17, 24, 33, 65, u32::MAX] {
        let answer = service.generate_data_key(generate("vault", length)).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    daemon.stop().await;
}

// R-ACL-1: who may decrypt data may not thereby unwrap keys, and the other way round.
#[tokio::test]
async fn a_wrapped_key_opens_as_a_wrapped_key_of_the_same_place_only() {
    let daemon = vault(Engine::Sqlite).await;
    let made = generated(&daemon, "vault", 32).await;
    assert_eq!(
        envelope::header(&made.wrapped).expect("a header").kind,
        Kind::WrappedKey
    );
    let service = daemon.actor("service");
    let mut sentences = BTreeSet::new();
    let bad = (Code::InvalidArgument, "CIPHERTEXT_INVALID");

    let as_data = DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: made.wrapped.clone(),
        aad: aad("invoice 4711"),
    };
    let answer = service.crypto().decrypt(as_data).await;
    sentences.insert(refused(answer, bad.0, bad.1));
    let data = EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: made.plaintext.clone(),
        aad: aad("invoice 4711"),
    };
    let data = service
        .crypto()
        .encrypt(data)
        .await
        .expect("Encrypt")
        .into_inner();
    let mut keys = service.data_keys();
    let answer = keys
        .decrypt_data_key(decrypt("vault", &data.ciphertext))
        .await;
    sentences.insert(refused(answer, bad.0, bad.1));
    // Nor does it help to say that it is one.
    for (ciphertext, kind) in [
        (&data.ciphertext, 2),
        (&data.ciphertext, 3),
        (&made.wrapped, 3),
    ] {
        let mut renamed = ciphertext.to_vec();
        renamed[3] = kind;
        let answer = keys.decrypt_data_key(decrypt("vault", &renamed)).await;
        sentences.insert(refused(answer, bad.0, bad.1));
    }

    let mut elsewhere = decrypt("vault", &made.wrapped);
    elsewhere.aad = aad("invoice 4712");
    let mut without = decrypt("vault", &made.wrapped);
    without.aad.clear();
    for request in [elsewhere, without, decrypt("other", &made.wrapped)] {
        let answer = keys.decrypt_data_key(request).await;
        sentences.insert(refused(answer, bad.0, bad.1));
    }
    for bit in 0..made.wrapped.len() * 8 {
        let mut changed = made.wrapped.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let answer = keys.decrypt_data_key(decrypt("vault", &changed)).await;
        sentences.insert(refused(answer, bad.0, bad.1));
    }
    for len in 1..made.wrapped.len() {
        let answer = keys
            .decrypt_data_key(decrypt("vault", &made.wrapped[..len]))
            .await;
        sentences.insert(refused(answer, bad.0, bad.1));
    }
    assert_eq!(sentences.len(), 1, "{sentences:?}");

    // A tenant with a key of the same name, by its own key and by ours.
    daemon
        .key(
            "globex",
            "vault",
            KeyPurpose::Encryption,
            Algorithm::A256gcm,
        )
        .await;
    let mut other = daemon.actor("other").data_keys();
    let mut home = decrypt("vault", &made.wrapped);
    home.tenant.clear();
    refused(other.decrypt_data_key(home).await, bad.0, bad.1);
    let foreign = other
        .decrypt_data_key(decrypt("vault", &made.wrapped))
        .await;
    refused(foreign, Code::NotFound, "KEY_NOT_FOUND");
    let answer = keys.decrypt_data_key(decrypt("vault", b"")).await;
    refused(answer, Code::InvalidArgument, "PAYLOAD_EMPTY");
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let answer = keys.generate_data_key(generate("orders", 32)).await;
    refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    daemon.stop().await;
}

// R-LIFE-5: wrapped keys move to the new version like any ciphertext, and stay wrapped keys.
#[tokio::test]
async fn rewrap_moves_wrapped_keys_and_leaves_them_wrapped_keys() {
    let daemon = vault(Engine::Sqlite).await;
    let made = generated(&daemon, "vault", 32).await;
    let rotation = daemon.rotated("acme", "vault").await;
    let rewrap = |aad| RewrapRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: made.wrapped.clone(),
        aad,
    };
    let mut crypto = daemon.actor("service").crypto();
    let wrong = crypto.rewrap(rewrap(aad("invoice 4712"))).await;
    refused(wrong, Code::InvalidArgument, "CIPHERTEXT_INVALID");
    let moved = crypto.rewrap(rewrap(aad("invoice 4711"))).await;
    let moved = moved.expect("Rewrap").into_inner();
    assert_eq!(
        (&moved.previous_kid, &moved.kid),
        (&made.kid, &rotation.new_kid)
    );
    for wrapped in [&made.wrapped, &moved.ciphertext] {
        let opened = decrypted(&daemon, decrypt("vault", wrapped)).await;
        assert_eq!(opened.plaintext, made.plaintext);
        let as_data = DecryptRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            ciphertext: wrapped.clone(),
            aad: aad("invoice 4711"),
        };
        let answer = crypto.decrypt(as_data).await;
        refused(answer, Code::InvalidArgument, "CIPHERTEXT_INVALID");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn random_bytes_are_as_many_as_asked_for_and_never_the_same() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let mut service = daemon.actor("service").data_keys();
    for length in [1, 32, 1024] {
        let request = GenerateRandomRequest { length };
        let answer = service.generate_random(request).await;
        let random = answer.expect("GenerateRandom").into_inner().random;
        assert_eq!(random.len(), length as usize);
    }
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        let request = GenerateRandomRequest { length: 16 };
        let answer = service.generate_random(request).await;
        assert!(seen.insert(answer.expect("GenerateRandom").into_inner().random));
    }
    for length in [0, 1025, u32::MAX] {
        let answer = service
            .generate_random(GenerateRandomRequest { length })
            .await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    daemon.stop().await;
}
