//! MACs over gRPC: vectors of RFC 4231, what must not verify, and the life of the versions. R-CARD-4, R-EMER-3.

mod commands;
mod imports;
mod webhooks;

use bytes::Bytes;
use claviger::grpc::proto::*;
use tonic::{Code, Response, Status};

use crate::{
    daemon::{Daemon, Engine, Setup, reason},
    foreign::hmac,
    incidents::declared,
};

/// Without a soak for anybody, so that rotations need not wait.
fn setup(engine: Engine) -> Setup {
    Setup::new(engine).replace("max_age_seconds = 1", "max_age_seconds = 0")
}

async fn mac_key(daemon: &Daemon, name: &str, algorithm: Algorithm) -> Key {
    daemon.key("acme", name, KeyPurpose::Mac, algorithm).await
}

fn import(name: &str, algorithm: Algorithm, secret: &[u8]) -> ImportKeyRequest {
    ImportKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        algorithm: algorithm.into(),
        secret: Bytes::copy_from_slice(secret),
        owner: "payments".into(),
        ..Default::default()
    }
}

async fn imported(daemon: &Daemon, name: &str, algorithm: Algorithm, secret: &[u8]) -> Key {
    let mut issuer = daemon.actor("issuer").keys();
    let made = issuer.import_key(import(name, algorithm, secret)).await;
    made.expect("ImportKey").into_inner().key.expect("a key")
}

fn compute(key: &str, message: &[u8]) -> ComputeMacRequest {
    ComputeMacRequest {
        tenant: "acme".into(),
        key: key.into(),
        message: Bytes::copy_from_slice(message),
    }
}

async fn computed(daemon: &Daemon, key: &str, message: &[u8]) -> ComputeMacResponse {
    let mut service = daemon.actor("service").macs();
    let made = service.compute_mac(compute(key, message)).await;
    made.expect("ComputeMac").into_inner()
}

fn verify(key: &str, message: &[u8], mac: &[u8]) -> VerifyMacRequest {
    VerifyMacRequest {
        tenant: "acme".into(),
        key: key.into(),
        message: Bytes::copy_from_slice(message),
        mac: Bytes::copy_from_slice(mac),
        kid: String::new(),
    }
}

/// The kid that verified; empty when none did.
async fn verified(daemon: &Daemon, request: VerifyMacRequest) -> String {
    let mut service = daemon.actor("service").macs();
    let answer = service.verify_mac(request).await;
    let answer = answer.expect("VerifyMac").into_inner();
    assert_eq!(answer.valid, !answer.kid.is_empty());
    answer.kid
}

#[track_caller]
fn refused<T>(result: Result<Response<T>, Status>, code: Code, why: &str) {
    let Err(status) = result else {
        panic!("not refused: {why}");
    };
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

struct Vector {
    name: &'static str,
    secret: Vec<u8>,
    message: Vec<u8>,
    hs256: &'static str,
    hs512: &'static str,
}

/// Test cases 1, 3 and 4; the secrets of the others are shorter than may be imported, or one byte over and over. So are
/// those of 1 and 3: a zero after them makes the same HMAC key, which is padded with zeros (FIPS 198-1).
fn vectors() -> Vec<Vector> {
    vec![
        Vector {
            name: "RFC 4231, 4.2",
            secret: [&[0x0b; 20][..], &[0]].concat(),
            message: b"Hi There".to_vec(),
            hs256: "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            hs512: "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde\
                    daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        },
        Vector {
            name: "RFC 4231, 4.4",
            secret: [&[0xaa; 20][..], &[0]].concat(),
            message: vec![0xdd; 50],
            hs256: "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            hs512: "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39\
                    bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb",
        },
        Vector {
            name: "RFC 4231, 4.5",
            secret: (1..=25).collect(),
            message: vec![0xcd; 50],
            hs256: "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            hs512: "b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3db\
                    a91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd",
        },
    ]
}

#[tokio::test]
async fn imported_keys_compute_what_the_rfc_and_another_implementation_compute() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    for (n, v) in vectors().iter().enumerate() {
        for (algorithm, expected) in [(Algorithm::Hs256, v.hs256), (Algorithm::Hs512, v.hs512)] {
            let name = format!("rfc-{n}-{}", algorithm.as_str_name().to_lowercase());
            let key = imported(&daemon, &name, algorithm, &v.secret).await;
            let made = computed(&daemon, &name, &v.message).await;
            assert_eq!(made.mac, unhex(expected), "{}", v.name);
            assert_eq!((made.algorithm(), &made.kid), (algorithm, &key.active_kid));
            let kid = verified(&daemon, verify(&name, &v.message, &unhex(expected))).await;
            assert_eq!(kid, key.active_kid);
        }
    }
    // Shorter and longer than a block of either hash, and the shortest and the longest that may be imported.
    for length in [16, 63, 64, 65, 127, 128, 129, 512] {
        let secret: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
        let message = format!("a message for {length}");
        for (algorithm, hash) in [(Algorithm::Hs256, "sha256"), (Algorithm::Hs512, "sha512")] {
            let name = format!("python-{length}-{hash}");
            imported(&daemon, &name, algorithm, &secret).await;
            let made = computed(&daemon, &name, message.as_bytes()).await;
            assert_eq!(made.mac, hmac(hash, &secret, message.as_bytes()).await);
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn only_the_whole_mac_of_the_very_message_by_the_very_key_verifies() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    for (name, algorithm, length) in [
        ("short", Algorithm::Hs256, 32),
        ("long", Algorithm::Hs512, 64),
    ] {
        let key = mac_key(&daemon, name, algorithm).await;
        assert_eq!(
            key.rotation_policy.expect("a policy").mode(),
            RotationMode::Automatic
        );
        let made = computed(&daemon, name, b"order 4711").await;
        assert_eq!(made.mac.len(), length);
        assert_eq!(made.mac, computed(&daemon, name, b"order 4711").await.mac);
        let kid = verified(&daemon, verify(name, b"order 4711", &made.mac)).await;
        assert_eq!(kid, key.active_kid);
        let not = async |request: VerifyMacRequest| {
            assert_eq!(verified(&daemon, request).await, "", "{name}");
        };
        not(verify(name, b"order 4712", &made.mac)).await;
        for cut in 1..length {
            not(verify(name, b"order 4711", &made.mac[..cut])).await;
        }
        for bit in 0..length * 8 {
            let mut changed = made.mac.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            not(verify(name, b"order 4711", &changed)).await;
        }
        let mut other = verify(name, b"order 4711", &made.mac);
        other.kid = "another".into();
        not(other).await;
        let mut same = verify(name, b"order 4711", &made.mac);
        same.kid = key.active_kid.clone();
        assert_eq!(verified(&daemon, same).await, key.active_kid);
    }
    // Two keys of one tenant, and of one name in two tenants, are different keys.
    mac_key(&daemon, "second", Algorithm::Hs256).await;
    let one = computed(&daemon, "short", b"m").await.mac;
    assert_ne!(one, computed(&daemon, "second", b"m").await.mac);
    assert_eq!(verified(&daemon, verify("second", b"m", &one)).await, "");
    daemon
        .key("globex", "short", KeyPurpose::Mac, Algorithm::Hs256)
        .await;
    let mut other = daemon.actor("other").macs();
    let home = VerifyMacRequest {
        tenant: String::new(),
        ..verify("short", b"m", &one)
    };
    let answer = other
        .verify_mac(home)
        .await
        .expect("VerifyMac")
        .into_inner();
    assert!(!answer.valid);
    let foreign = other.verify_mac(verify("short", b"m", &one)).await;
    refused(foreign, Code::NotFound, "KEY_NOT_FOUND");
    refused(
        other.compute_mac(compute("short", b"m")).await,
        Code::NotFound,
        "KEY_NOT_FOUND",
    );
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_malformed_or_of_another_purpose_is_refused() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    mac_key(&daemon, "macs", Algorithm::Hs256).await;
    for (name, purpose, algorithm) in [
        ("orders", KeyPurpose::Signing, Algorithm::Es256),
        ("vault", KeyPurpose::Encryption, Algorithm::A256gcm),
    ] {
        daemon.key("acme", name, purpose, algorithm).await;
        let mut service = daemon.actor("service").macs();
        let (code, why) = (Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
        refused(service.compute_mac(compute(name, b"m")).await, code, why);
        refused(
            service.verify_mac(verify(name, b"m", &[0; 32])).await,
            code,
            why,
        );
    }
    let service = daemon.actor("service");
    let mut crypto = service.crypto();
    let encrypted = crypto.encrypt(EncryptRequest {
        tenant: "acme".into(),
        key: "macs".into(),
        plaintext: "text".into(),
        ..Default::default()
    });
    refused(
        encrypted.await,
        Code::FailedPrecondition,
        "KEY_PURPOSE_MISMATCH",
    );
    let mut macs = service.macs();
    let bad = Code::InvalidArgument;
    refused(
        macs.compute_mac(compute("macs", b"")).await,
        bad,
        "PAYLOAD_EMPTY",
    );
    let long = vec![0; (4 << 20) + 1];
    refused(
        macs.compute_mac(compute("macs", &long)).await,
        bad,
        "PAYLOAD_TOO_LARGE",
    );
    refused(
        macs.verify_mac(verify("macs", b"m", b"")).await,
        bad,
        "INVALID_FIELD",
    );
    refused(
        macs.verify_mac(verify("macs", b"m", &[0; 65])).await,
        bad,
        "INVALID_FIELD",
    );
    for (purpose, algorithm) in [
        (KeyPurpose::Mac, Algorithm::Es256),
        (KeyPurpose::Mac, Algorithm::A256gcm),
        (KeyPurpose::Signing, Algorithm::Hs256),
        (KeyPurpose::TokenSigning, Algorithm::Hs512),
        (KeyPurpose::Encryption, Algorithm::Hs256),
    ] {
        let request = CreateKeyRequest {
            tenant: "acme".into(),
            name: "mixed".into(),
            purpose: purpose.into(),
            algorithm: algorithm.into(),
            owner: "team-e2e".into(),
            ..Default::default()
        };
        let made = daemon.actor("issuer").keys().create_key(request).await;
        refused(made, bad, "ALGORITHM_MISMATCH");
    }
    daemon.stop().await;
}

// R-LIFE-5, R-EMER-3
#[tokio::test]
async fn an_old_version_verifies_in_its_grace_and_a_compromised_one_never() {
    let daemon = setup(Engine::Sqlite).start().await;
    let first = mac_key(&daemon, "macs", Algorithm::Hs256).await.active_kid;
    let old = computed(&daemon, "macs", b"m").await.mac;
    let rotation = daemon.rotated("acme", "macs").await;
    assert_eq!(rotation.old_kid, first);
    let new = computed(&daemon, "macs", b"m").await;
    assert_eq!(new.kid, rotation.new_kid);
    assert_ne!(new.mac, old);
    // Only by the version that made it, whether it is named or looked for.
    assert_eq!(verified(&daemon, verify("macs", b"m", &old)).await, first);
    assert_eq!(
        verified(&daemon, verify("macs", b"m", &new.mac)).await,
        new.kid
    );
    let by_other = VerifyMacRequest {
        kid: new.kid.clone(),
        ..verify("macs", b"m", &old)
    };
    assert_eq!(verified(&daemon, by_other).await, "");
    declared(&daemon, "macs", &first).await;
    assert_eq!(verified(&daemon, verify("macs", b"m", &old)).await, "");
    assert_eq!(
        verified(&daemon, verify("macs", b"m", &new.mac)).await,
        new.kid
    );
    // The ACTIVE one: it is replaced at once, and nothing by it verifies.
    declared(&daemon, "macs", &new.kid).await;
    assert_eq!(verified(&daemon, verify("macs", b"m", &new.mac)).await, "");
    let after = computed(&daemon, "macs", b"m").await;
    assert!(after.kid != new.kid && after.mac != new.mac);
    daemon.stop().await;
}

// R-OPS-5
#[tokio::test]
async fn a_warm_mac_needs_no_device() {
    let daemon = setup(Engine::Sqlite).start().await;
    mac_key(&daemon, "macs", Algorithm::Hs256).await;
    imported(
        &daemon,
        "hooks",
        Algorithm::Hs256,
        b"chosen by the provider",
    )
    .await;
    let macs = async || {
        let mut made = Vec::new();
        for key in ["macs", "hooks"] {
            made.push(computed(&daemon, key, b"m").await.mac);
        }
        made
    };
    let before = macs().await;
    let (here, away) = (daemon.path("tokens"), daemon.path("tokens.away"));
    std::fs::rename(&here, &away).expect("renamed");
    let unwrapped = async || {
        let metrics = daemon.ops_get("/metrics").await.text();
        let mut lines = metrics.lines();
        let line = lines.find(|l| l.contains("loads_total") && l.contains("data_keys"));
        line.expect("counted").to_owned()
    };
    let loads = unwrapped().await;
    for _ in 0..20 {
        assert_eq!(macs().await, before);
    }
    for (key, mac) in ["macs", "hooks"].iter().zip(&before) {
        assert_ne!(verified(&daemon, verify(key, b"m", mac)).await, "");
    }
    assert_eq!(unwrapped().await, loads);
    // A key whose data key is nowhere needs the device, and says so.
    let request = CreateKeyRequest {
        tenant: "acme".into(),
        name: "cold".into(),
        purpose: KeyPurpose::Mac.into(),
        algorithm: Algorithm::Hs256.into(),
        owner: "team-e2e".into(),
        ..Default::default()
    };
    let made = daemon.actor("issuer").keys().create_key(request).await;
    refused(made, Code::Unavailable, "BACKEND_UNAVAILABLE");
    std::fs::rename(&away, &here).expect("renamed");
    daemon.stop().await;
}
