//! Single requests, on both engines: what a text means may differ between them.

use std::collections::BTreeMap;

use claviger::grpc::proto::*;
use prost_types::{Duration, Timestamp};
use tonic::Code;

use super::{bytes, hostile, hostile_refused, invalid, numbered, refused, state};
use crate::daemon::{Actor, Daemon, Engine};

const MIB: usize = 1 << 20;

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Engine::Sqlite).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Engine::Postgres).await; })*
        }
    };
}

on_both!(
    what_may_not_be_seen_is_not_there,
    keys_are_used_for_their_purpose_only,
    new_keys_are_what_the_policy_allows,
    payloads_have_bounds,
    hostile_texts_are_refused_and_not_repeated,
    listings_take_their_own_page_tokens_only,
    principals_and_roles_have_rules,
    batches_have_bounds_and_items_stand_alone,
);

fn sign(tenant: &str, key: &str) -> SignRequest {
    SignRequest {
        tenant: tenant.into(),
        key: key.into(),
        payload: Some(sign_request::Payload::Message("message".into())),
    }
}

fn digest(key: &str, len: usize) -> SignRequest {
    SignRequest {
        payload: Some(sign_request::Payload::Digest(vec![1; len].into())),
        ..sign("", key)
    }
}

fn encrypt(tenant: &str, key: &str) -> EncryptRequest {
    EncryptRequest {
        tenant: tenant.into(),
        key: key.into(),
        plaintext: "plaintext".into(),
        aad: BTreeMap::new(),
    }
}

fn decrypt(key: &str, ciphertext: impl Into<bytes::Bytes>) -> DecryptRequest {
    DecryptRequest {
        key: key.into(),
        ciphertext: ciphertext.into(),
        ..Default::default()
    }
}

fn create(name: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "payments".into(),
        ..Default::default()
    }
}

fn issue(tenant: &str, key: &str) -> IssueTokenRequest {
    IssueTokenRequest {
        tenant: tenant.into(),
        key: key.into(),
        audience: vec!["api".into()],
        ..Default::default()
    }
}

async fn signer(daemon: &Daemon, tenant: &str, name: &str) -> Key {
    daemon
        .key(tenant, name, KeyPurpose::Signing, Algorithm::Es256)
        .await
}

async fn vault(daemon: &Daemon, tenant: &str, name: &str) -> Key {
    daemon
        .key(tenant, name, KeyPurpose::Encryption, Algorithm::A256gcm)
        .await
}

/// Every RPC that names a key, with the same request id each time.
async fn by_key(who: &Actor, tenant: &str, key: &str) -> Vec<(Code, String, Vec<u8>, String)> {
    let (tenant, key) = (tenant.to_owned(), key.to_owned());
    let mut answers = vec![
        bytes(who.crypto().sign(numbered(sign(&tenant, &key))).await),
        bytes(who.crypto().encrypt(numbered(encrypt(&tenant, &key))).await),
        bytes(
            who.tokens()
                .issue_token(numbered(issue(&tenant, &key)))
                .await,
        ),
    ];
    let verify = VerifyRequest {
        tenant: tenant.clone(),
        key: key.clone(),
        signature: vec![1; 64].into(),
        payload: Some(verify_request::Payload::Message("m".into())),
        ..Default::default()
    };
    answers.push(bytes(who.crypto().verify(numbered(verify)).await));
    let decrypt = DecryptRequest {
        tenant: tenant.clone(),
        ..decrypt(&key, "ciphertext")
    };
    answers.push(bytes(who.crypto().decrypt(numbered(decrypt)).await));
    let rewrap = RewrapRequest {
        tenant: tenant.clone(),
        key: key.clone(),
        ciphertext: "ciphertext".into(),
        ..Default::default()
    };
    answers.push(bytes(who.crypto().rewrap(numbered(rewrap)).await));
    let get = GetKeyRequest {
        tenant: tenant.clone(),
        key: key.clone(),
    };
    answers.push(bytes(who.keys().get_key(numbered(get)).await));
    let update = UpdateKeyRequest {
        tenant: tenant.clone(),
        key: key.clone(),
        owner: Some("thief".into()),
        ..Default::default()
    };
    answers.push(bytes(who.keys().update_key(numbered(update)).await));
    let rotate = RotateKeyRequest {
        tenant: tenant.clone(),
        key: key.clone(),
        justification: "because".into(),
        ..RotateKeyRequest::default()
    };
    answers.push(bytes(who.rotations().rotate_key(numbered(rotate)).await));
    let list = ListRotationsRequest {
        tenant,
        key,
        ..Default::default()
    };
    answers.push(bytes(who.rotations().list_rotations(numbered(list)).await));
    answers
}

// R-ACL-3
async fn what_may_not_be_seen_is_not_there(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let theirs = signer(&daemon, "globex", "their-secret-name").await;
    signer(&daemon, "acme", "ours").await;
    let before = state(&daemon).await;
    let service = daemon.actor("service");

    let nothing = uuid::Uuid::now_v7().to_string();
    let unknown = by_key(&service, "globex", "nothing").await;
    for (code, message, ..) in &unknown {
        assert_eq!(*code, Code::NotFound, "{message}");
        assert!(!message.contains("globex"), "{message}");
    }
    for (tenant, key) in [
        ("globex", theirs.name.as_str()),
        ("globex", theirs.id.as_str()),
        ("globex", nothing.as_str()),
        ("nowhere", "nothing"),
        ("system", "nothing"),
    ] {
        assert_eq!(
            by_key(&service, tenant, key).await,
            unknown,
            "{tenant}/{key}"
        );
    }
    // In the caller's own tenant another tenant's key is as unknown as one that does not exist.
    let unknown = by_key(&service, "", &nothing).await;
    assert_eq!(by_key(&service, "", &theirs.id).await, unknown);
    let unknown = by_key(&service, "", "nothing").await;
    assert_eq!(by_key(&service, "", &theirs.name).await, unknown);
    let said = refused(
        service.crypto().sign(sign("", &theirs.id)).await,
        Code::NotFound,
        "KEY_NOT_FOUND",
    );
    assert!(!said.contains("their-secret-name"));

    // Listings and tenants, too.
    let foreign = [
        bytes(
            service
                .keys()
                .list_keys(numbered(ListKeysRequest {
                    tenant: "globex".into(),
                    ..Default::default()
                }))
                .await,
        ),
        bytes(
            service
                .keys()
                .list_keys(numbered(ListKeysRequest {
                    tenant: "nowhere".into(),
                    ..Default::default()
                }))
                .await,
        ),
    ];
    assert_eq!(foreign[0], foreign[1]);
    let verify = |tenant: &str| {
        numbered(VerifyTokenRequest {
            tenant: tenant.into(),
            token: "a.b.c".into(),
            audience: "api".into(),
            ..Default::default()
        })
    };
    let one = bytes(service.tokens().verify_token(verify("globex")).await);
    assert_eq!(
        one,
        bytes(service.tokens().verify_token(verify("nowhere")).await)
    );
    let audit = |tenant: &str| {
        numbered(ListAuditEventsRequest {
            tenant: tenant.into(),
            ..Default::default()
        })
    };
    let one = bytes(service.audit().list_audit_events(audit("globex")).await);
    assert_eq!(
        one,
        bytes(service.audit().list_audit_events(audit("nowhere")).await)
    );
    for tenant in ["*", "system"] {
        let answer = service.audit().list_audit_events(audit(tenant)).await;
        let code = answer.expect_err("not theirs").code();
        assert!(matches!(code, Code::NotFound | Code::PermissionDenied));
    }
    // A rotation and a principal of somebody else, and ids that nobody has.
    let rotate = RotateKeyRequest {
        tenant: "globex".into(),
        key: theirs.name.clone(),
        justification: "because".into(),
        ..RotateKeyRequest::default()
    };
    let issuer = daemon.actor("issuer");
    let opened = issuer.rotations().rotate_key(rotate).await.expect("opened");
    let rotation = opened.into_inner().rotation.expect("a rotation");
    let other = daemon.id_of("other").await;
    let mut rotations = Vec::new();
    let mut principals = Vec::new();
    for (rotation_id, principal_id) in [(rotation.id, other), (nothing.clone(), nothing)] {
        let get = GetRotationRequest {
            rotation_id: rotation_id.clone(),
        };
        let deploy = DeployRotationRequest {
            rotation_id: rotation_id.clone(),
        };
        let approve = ApproveRotationRequest {
            rotation_id,
            plan_digest: rotation.plan_digest.clone(),
        };
        rotations.push([
            bytes(service.rotations().get_rotation(numbered(get)).await),
            bytes(service.rotations().deploy_rotation(numbered(deploy)).await),
            bytes(
                service
                    .rotations()
                    .approve_rotation(numbered(approve))
                    .await,
            ),
        ]);
        let grant = GrantRoleRequest {
            principal_id: principal_id.clone(),
            role: "auditor".into(),
            tenant: String::new(),
        };
        let revoke = RevokeRoleRequest {
            principal_id,
            role: "crypto-user".into(),
            tenant: String::new(),
        };
        principals.push([
            bytes(service.principals().grant_role(numbered(grant)).await),
            bytes(service.principals().revoke_role(numbered(revoke)).await),
        ]);
    }
    assert_eq!(rotations[0], rotations[1]);
    assert_eq!(principals[0], principals[1]);
    assert_eq!(rotations[0][0].0, Code::NotFound);
    assert_eq!(principals[0][0].0, Code::NotFound);
    // What it sees and may not change is refused by name of the action.
    let update = UpdateKeyRequest {
        key: "ours".into(),
        owner: Some("thief".into()),
        ..Default::default()
    };
    let answer = service.keys().update_key(update).await;
    refused(answer, Code::PermissionDenied, "PERMISSION_DENIED");
    // The rotation is all that was written.
    let mut after = state(&daemon).await;
    assert_eq!(after[2].len(), 1);
    assert_eq!(after[0], before[0]);
    assert_eq!(after.split_off(3)[..5], before[3..8]);
    let stranger = daemon
        .actor("stranger")
        .keys()
        .list_keys(ListKeysRequest::default())
        .await;
    refused(stranger, Code::Unauthenticated, "UNKNOWN_PRINCIPAL");
    daemon.stop().await;
}

async fn keys_are_used_for_their_purpose_only(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    signer(&daemon, "acme", "signer").await;
    vault(&daemon, "acme", "vault").await;
    daemon
        .key("acme", "jwt", KeyPurpose::TokenSigning, Algorithm::Es256)
        .await;
    daemon
        .key("acme", "ed", KeyPurpose::Signing, Algorithm::Eddsa)
        .await;
    let before = state(&daemon).await;
    let service = daemon.actor("service");
    let mismatch =
        |answer| refused::<SignResponse>(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    // Whoever could sign bytes with a key of the JWKS could forge any token.
    for key in ["jwt", "vault"] {
        mismatch(service.crypto().sign(sign("", key)).await);
        mismatch(service.crypto().sign(digest(key, 32)).await);
        let verify = VerifyRequest {
            key: key.into(),
            signature: vec![1; 64].into(),
            payload: Some(verify_request::Payload::Message("m".into())),
            ..Default::default()
        };
        let answer = service.crypto().verify(verify).await;
        refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    }
    for key in ["signer", "jwt"] {
        let answer = service.crypto().encrypt(encrypt("", key)).await;
        refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
        let answer = service.crypto().decrypt(decrypt(key, "x")).await;
        refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
        let rewrap = RewrapRequest {
            key: key.into(),
            ciphertext: "x".into(),
            ..Default::default()
        };
        let answer = service.crypto().rewrap(rewrap).await;
        refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    }
    for key in ["signer", "vault"] {
        let answer = service.tokens().issue_token(issue("", key)).await;
        refused(answer, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    }
    for (key, len) in [
        ("signer", 0),
        ("signer", 31),
        ("signer", 33),
        ("signer", 48),
        ("signer", 64),
        ("ed", 32),
        ("ed", 64),
    ] {
        let answer = service.crypto().sign(digest(key, len)).await;
        refused(answer, Code::InvalidArgument, "DIGEST_LENGTH");
    }
    service
        .crypto()
        .sign(digest("signer", 32))
        .await
        .expect("signed");
    let nothing = SignRequest {
        payload: None,
        ..sign("", "signer")
    };
    invalid(service.crypto().sign(nothing).await);
    let verify = |len: usize, kid: &str| VerifyRequest {
        key: "signer".into(),
        kid: kid.into(),
        signature: vec![1; len].into(),
        payload: Some(verify_request::Payload::Message("m".into())),
        ..Default::default()
    };
    invalid(service.crypto().verify(verify(0, "")).await);
    invalid(service.crypto().verify(verify(1025, "")).await);
    invalid(service.crypto().verify(verify(64, "no/kid")).await);
    for len in [1, 63, 64, 65, 72, 1024] {
        let answer = service.crypto().verify(verify(len, "")).await;
        assert!(!answer.expect("an answer").into_inner().valid, "{len}");
    }
    assert_eq!(state(&daemon).await, before);
    daemon.stop().await;
}

async fn new_keys_are_what_the_policy_allows(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    signer(&daemon, "acme", "taken").await;
    let before = state(&daemon).await;
    let issuer = daemon.actor("issuer");
    let day = |days: i64, seconds: i64| {
        Some(Duration {
            seconds: days * 86_400 + seconds,
            nanos: 0,
        })
    };
    let of = |change: &dyn Fn(&mut CreateKeyRequest)| {
        let mut request = create("new");
        change(&mut request);
        request
    };
    let wrong: Vec<CreateKeyRequest> = vec![
        of(&|r| r.purpose = 0),
        of(&|r| r.purpose = 99),
        of(&|r| r.purpose = -1),
        of(&|r| r.algorithm = 0),
        of(&|r| r.algorithm = 99),
        of(&|r| (r.algorithm, r.rsa_bits) = (Algorithm::Ps256.into(), 1024)),
        of(&|r| (r.algorithm, r.rsa_bits) = (Algorithm::Rs256.into(), 2047)),
        of(&|r| (r.algorithm, r.rsa_bits) = (Algorithm::Rs256.into(), u32::MAX)),
        of(&|r| r.rsa_bits = 2048),
        of(&|r| r.owner = String::new()),
        of(&|r| r.owner = "a\nb".into()),
        of(&|r| r.owner = "a".repeat(129)),
        of(&|r| r.name = String::new()),
        of(&|r| r.name = uuid::Uuid::now_v7().to_string()),
        of(&|r| r.rotation_period = day(90, 1)),
        of(&|r| r.rotation_period = day(0, 3599)),
        of(&|r| r.rotation_period = day(0, 0)),
        of(&|r| r.rotation_period = day(-1, 0)),
        of(&|r| {
            r.rotation_period = Some(Duration {
                seconds: i64::MAX,
                nanos: i32::MAX,
            })
        }),
        of(&|r| {
            r.rotation_period = Some(Duration {
                seconds: i64::MIN,
                nanos: i32::MIN,
            })
        }),
        of(&|r| {
            (r.purpose, r.algorithm) = (KeyPurpose::Encryption.into(), Algorithm::A256gcm.into());
            r.rotation_period = day(180, 1);
        }),
    ];
    for request in wrong {
        let shown = format!("{request:?}");
        let answer = issuer.keys().create_key(request).await;
        let status = answer.expect_err(&shown);
        assert_eq!(crate::daemon::reason(&status), "INVALID_FIELD", "{shown}");
        super::assert_sentence(status.message());
    }
    for (purpose, algorithm) in [
        (KeyPurpose::Signing, Algorithm::A256gcm),
        (KeyPurpose::TokenSigning, Algorithm::A256gcm),
        (KeyPurpose::Encryption, Algorithm::Es256),
        (KeyPurpose::Encryption, Algorithm::Rs512),
    ] {
        let request = of(&|r| (r.purpose, r.algorithm) = (purpose.into(), algorithm.into()));
        let answer = issuer.keys().create_key(request).await;
        refused(answer, Code::InvalidArgument, "ALGORITHM_MISMATCH");
    }
    let answer = issuer.keys().create_key(create("taken")).await;
    refused(answer, Code::AlreadyExists, "ALREADY_EXISTS");
    let nowhere = of(&|r| r.tenant = "nowhere".into());
    let answer = issuer.keys().create_key(nowhere).await;
    refused(answer, Code::NotFound, "TENANT_NOT_FOUND");

    let adopt = |uri: &str, algorithm: Algorithm| AdoptKeyRequest {
        tenant: "acme".into(),
        name: "adopted".into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: algorithm.into(),
        uri: uri.into(),
        owner: "payments".into(),
        ..Default::default()
    };
    for uri in [
        "",
        "pkcs11:",
        "http://x",
        "pkcs11:object=x?pin-value=1234",
        "pkcs11:object=x;pin-value=1234",
        "pkcs11:object=x?pin-source=file:/etc/passwd",
        "pkcs11:object=a%00b",
        "pkcs11:object=%1b",
        "pkcs11:object=a;object=b",
        "pkcs11:object=x;x-vendor=1",
        "pkcs11:token=other;object=x",
    ] {
        let answer = issuer.keys().adopt_key(adopt(uri, Algorithm::Es256)).await;
        let said = refused(answer, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");
        assert!(!said.contains("1234") && !said.contains("passwd"), "{said}");
    }
    let long = format!("pkcs11:object={}", "a".repeat(2000));
    invalid(
        issuer
            .keys()
            .adopt_key(adopt(&long, Algorithm::Es256))
            .await,
    );
    let missing = adopt("pkcs11:object=nothing", Algorithm::Es256);
    let answer = issuer.keys().adopt_key(missing).await;
    refused(answer, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");
    // A pair that is there, as what it is not, and the key-encryption key as a signer.
    let pin = std::fs::read_to_string(daemon.path("secrets/pin")).expect("a PIN");
    let mut tool = daemon.foreign("pkcs11-tool");
    let made = tool
        .arg("--module")
        .arg(crate::softhsm::SoftHsm::library())
        .args(["--token-label", "claviger-e2e", "--login", "--pin", &pin])
        .args([
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--id",
            "07",
            "--label",
            "theirs",
        ])
        .output()
        .await
        .expect("pkcs11-tool of OpenSC is installed");
    assert!(made.status.success(), "{made:?}");
    for (uri, algorithm) in [
        ("pkcs11:object=theirs", Algorithm::Es384),
        ("pkcs11:object=theirs", Algorithm::Eddsa),
        ("pkcs11:object=theirs", Algorithm::Ps256),
        ("pkcs11:object=claviger-kek", Algorithm::Es256),
    ] {
        let answer = issuer.keys().adopt_key(adopt(uri, algorithm)).await;
        refused(answer, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");
    }
    let aes = adopt("pkcs11:object=theirs", Algorithm::A256gcm);
    let answer = issuer.keys().adopt_key(aes).await;
    refused(answer, Code::InvalidArgument, "ALGORITHM_MISMATCH");

    let update = |change: &dyn Fn(&mut UpdateKeyRequest)| {
        let mut request = UpdateKeyRequest {
            tenant: "acme".into(),
            key: "taken".into(),
            ..Default::default()
        };
        change(&mut request);
        request
    };
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    for request in [
        update(&|r| r.owner = Some(String::new())),
        update(&|r| r.rotation_period = day(91, 0)),
        update(&|r| r.rotation_period = day(-91, 0)),
        update(&|r| r.next_rotation_time = time(i64::MAX, 0)),
        update(&|r| r.next_rotation_time = time(i64::MIN, 0)),
        update(&|r| r.next_rotation_time = time(0, -1)),
        update(&|r| r.next_rotation_time = time(0, i32::MAX)),
        // Beyond what a protobuf Timestamp can say: years 1 to 9999.
        update(&|r| r.next_rotation_time = time(-62_135_596_801, 0)),
        update(&|r| r.next_rotation_time = time(253_402_300_800, 0)),
    ] {
        let shown = format!("{request:?}");
        let status = issuer.keys().update_key(request).await.expect_err(&shown);
        assert_eq!(crate::daemon::reason(&status), "INVALID_FIELD", "{shown}");
    }
    let mut after = state(&daemon).await;
    let mut expected = before;
    // The intent of a pair that was never asked for is not there either.
    assert_eq!(after.pop(), expected.pop());
    assert_eq!(after, expected);
    daemon.stop().await;
}

async fn payloads_have_bounds(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    signer(&daemon, "acme", "signer").await;
    vault(&daemon, "acme", "vault").await;
    vault(&daemon, "acme", "second").await;
    vault(&daemon, "globex", "vault").await;
    let (service, other) = (daemon.actor("service"), daemon.actor("other"));
    let message = |len: usize| SignRequest {
        payload: Some(sign_request::Payload::Message(vec![7; len].into())),
        ..sign("", "signer")
    };
    let plain = |len: usize| EncryptRequest {
        plaintext: vec![7; len].into(),
        ..encrypt("", "vault")
    };
    service
        .crypto()
        .sign(message(4 * MIB))
        .await
        .expect("4 MiB");
    let sealed = service
        .crypto()
        .encrypt(plain(4 * MIB))
        .await
        .expect("4 MiB");
    let whole = decrypt("vault", sealed.into_inner().ciphertext);
    let opened = service.crypto().decrypt(whole).await.expect("4 MiB");
    assert_eq!(opened.into_inner().plaintext, vec![7; 4 * MIB]);
    let too_large = "PAYLOAD_TOO_LARGE";
    refused(
        service.crypto().sign(message(4 * MIB + 1)).await,
        Code::InvalidArgument,
        too_large,
    );
    refused(
        service.crypto().encrypt(plain(4 * MIB + 1)).await,
        Code::InvalidArgument,
        too_large,
    );
    let answer = service
        .crypto()
        .decrypt(decrypt("vault", vec![1; 5 * MIB]))
        .await;
    refused(answer, Code::InvalidArgument, too_large);
    // More than any message may be; the client is willing to send it.
    let mut client = service.crypto().max_encoding_message_size(32 * MIB);
    refused(
        client.sign(message(20 * MIB)).await,
        Code::InvalidArgument,
        too_large,
    );
    let empty = service.crypto().encrypt(plain(0)).await;
    refused(empty, Code::InvalidArgument, "PAYLOAD_EMPTY");
    refused(
        service.crypto().sign(message(0)).await,
        Code::InvalidArgument,
        "PAYLOAD_EMPTY",
    );
    let empty = service.crypto().decrypt(decrypt("vault", "")).await;
    refused(empty, Code::InvalidArgument, "PAYLOAD_EMPTY");

    // Ciphertexts: every truncation, one byte more, foreign ones. One answer for all of them.
    let sealed = service.crypto().encrypt(plain(20)).await.expect("sealed");
    let sealed = sealed.into_inner().ciphertext;
    let mut said = Vec::new();
    let mut broken: Vec<Vec<u8>> = (1..sealed.len()).map(|n| sealed[..n].to_vec()).collect();
    broken.push([&sealed[..], &[0]].concat());
    broken.push(vec![0; 64]);
    broken.push(vec![0xff; 4096]);
    broken.push(b"not a ciphertext".to_vec());
    for i in [0, 1, 5, sealed.len() / 2, sealed.len() - 1] {
        let mut flipped = sealed.to_vec();
        flipped[i] ^= 1;
        broken.push(flipped);
    }
    for ciphertext in broken {
        let answer = service.crypto().decrypt(decrypt("vault", ciphertext)).await;
        said.push(refused(answer, Code::InvalidArgument, "CIPHERTEXT_INVALID"));
    }
    let answer = service
        .crypto()
        .decrypt(decrypt("second", sealed.clone()))
        .await;
    said.push(refused(answer, Code::InvalidArgument, "CIPHERTEXT_INVALID"));
    let answer = other
        .crypto()
        .decrypt(decrypt("vault", sealed.clone()))
        .await;
    said.push(refused(answer, Code::InvalidArgument, "CIPHERTEXT_INVALID"));
    let rewrap = RewrapRequest {
        key: "second".into(),
        ciphertext: sealed.clone(),
        ..Default::default()
    };
    said.push(refused(
        service.crypto().rewrap(rewrap).await,
        Code::InvalidArgument,
        "CIPHERTEXT_INVALID",
    ));
    said.dedup();
    assert_eq!(said.len(), 1, "the answer tells what was wrong: {said:?}");

    let pairs = |count: usize, name: usize, value: usize| EncryptRequest {
        aad: (0..count)
            .map(|i| (format!("{i:0>name$}"), "v".repeat(value)))
            .collect(),
        ..encrypt("", "vault")
    };
    service
        .crypto()
        .encrypt(pairs(16, 128, 1024))
        .await
        .expect("the most");
    for wrong in [pairs(17, 2, 1), pairs(1, 129, 1), pairs(1, 2, 1025)] {
        invalid(service.crypto().encrypt(wrong).await);
    }
    let nameless = EncryptRequest {
        aad: BTreeMap::from([(String::new(), "v".into())]),
        ..encrypt("", "vault")
    };
    invalid(service.crypto().encrypt(nameless).await);
    // The pairs are bound as pairs: what moves between them is another context.
    let bound = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let request = EncryptRequest {
        aad: bound("ab", "c"),
        ..encrypt("", "vault")
    };
    let sealed = service
        .crypto()
        .encrypt(request)
        .await
        .expect("sealed")
        .into_inner()
        .ciphertext;
    for aad in [
        BTreeMap::new(),
        bound("a", "bc"),
        bound("ab", "C"),
        bound("ab", "c\0"),
    ] {
        let request = DecryptRequest {
            aad,
            ..decrypt("vault", sealed.clone())
        };
        let answer = service.crypto().decrypt(request).await;
        refused(answer, Code::InvalidArgument, "CIPHERTEXT_INVALID");
    }
    daemon.stop().await;
}

async fn hostile_texts_are_refused_and_not_repeated(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let before = state(&daemon).await;
    let (service, issuer) = (daemon.actor("service"), daemon.actor("issuer"));
    let (admin, approver, auditor) = (
        daemon.actor("admin"),
        daemon.actor("approver"),
        daemon.actor("auditor"),
    );
    let id = daemon.id_of("service").await;
    for text in hostile() {
        let t = || text.clone();
        hostile_refused(service.crypto().sign(sign(&text, "signer")).await, &text);
        // One character that is a name is a name.
        hostile_refused(service.crypto().sign(sign("", &text)).await, &text);
        hostile_refused(service.crypto().encrypt(encrypt(&text, "k")).await, &text);
        hostile_refused(service.tokens().issue_token(issue("", &text)).await, &text);
        hostile_refused(issuer.keys().create_key(create(&text)).await, &text);
        let request = CreateKeyRequest {
            tenant: t(),
            ..create("new")
        };
        hostile_refused(issuer.keys().create_key(request).await, &text);
        let request = GetKeyRequest {
            tenant: String::new(),
            key: t(),
        };
        hostile_refused(service.keys().get_key(request).await, &text);
        let request = ListKeysRequest {
            tenant: t(),
            ..Default::default()
        };
        hostile_refused(service.keys().list_keys(request).await, &text);
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key: t(),
            justification: "x".into(),
            ..RotateKeyRequest::default()
        };
        hostile_refused(issuer.rotations().rotate_key(request).await, &text);
        let request = ApproveRotationRequest {
            rotation_id: t(),
            plan_digest: "0".repeat(64),
        };
        hostile_refused(approver.rotations().approve_rotation(request).await, &text);
        let request = GetRotationRequest { rotation_id: t() };
        hostile_refused(approver.rotations().get_rotation(request).await, &text);
        hostile_refused(
            admin
                .principals()
                .create_tenant(CreateTenantRequest { name: t() })
                .await,
            &text,
        );
        let principal = CreatePrincipalRequest {
            tenant: "acme".into(),
            name: "new".into(),
            r#type: PrincipalType::User.into(),
            identities: vec!["dns:new".into()],
            ..Default::default()
        };
        let request = CreatePrincipalRequest {
            name: t(),
            ..principal.clone()
        };
        hostile_refused(admin.principals().create_principal(request).await, &text);
        let request = CreatePrincipalRequest {
            identities: vec![t()],
            ..principal
        };
        hostile_refused(admin.principals().create_principal(request).await, &text);
        let grant = GrantRoleRequest {
            principal_id: id.clone(),
            role: "auditor".into(),
            tenant: String::new(),
        };
        let request = GrantRoleRequest {
            principal_id: t(),
            ..grant.clone()
        };
        hostile_refused(admin.principals().grant_role(request).await, &text);
        let request = GrantRoleRequest {
            role: t(),
            ..grant.clone()
        };
        hostile_refused(admin.principals().grant_role(request).await, &text);
        let request = GrantRoleRequest {
            tenant: t(),
            ..grant
        };
        hostile_refused(admin.principals().grant_role(request).await, &text);
        // A filter finds nothing or is refused; it never breaks the database, and is not repeated.
        for field in 0..4 {
            let mut request = ListAuditEventsRequest {
                tenant: "*".into(),
                ..Default::default()
            };
            let fields = [
                &mut request.stream,
                &mut request.actor,
                &mut request.action,
                &mut request.entity_id,
            ];
            for (i, slot) in fields.into_iter().enumerate() {
                if i == field {
                    slot.clone_from(&text);
                }
            }
            match auditor.audit().list_audit_events(request).await {
                Ok(page) => assert!(page.into_inner().events.is_empty(), "{text:?}"),
                refusal => hostile_refused(refusal, &text),
            }
        }
        match auditor
            .audit()
            .verify_audit(VerifyAuditRequest {
                stream: t(),
                ..Default::default()
            })
            .await
        {
            Ok(report) => panic!("{text:?} is a stream? {report:?}"),
            refusal => hostile_refused(refusal, &text),
        }
    }
    // A stream that nobody writes is not an intact one.
    let unknown = VerifyAuditRequest {
        stream: "admni".into(),
        ..Default::default()
    };
    assert!(auditor.audit().verify_audit(unknown).await.is_err());
    // A subject is free text, but one line of it; an audience too.
    for text in ["\0", "a\nb", "\u{1b}[31m", &"a".repeat(256)] {
        let request = IssueTokenRequest {
            subject: text.into(),
            ..issue("", "k")
        };
        invalid(service.tokens().issue_token(request).await);
        let request = IssueTokenRequest {
            client_id: text.into(),
            ..issue("", "k")
        };
        invalid(service.tokens().issue_token(request).await);
        let request = IssueTokenRequest {
            audience: vec![text.into()],
            ..issue("", "k")
        };
        invalid(service.tokens().issue_token(request).await);
        let request = IssueTokenRequest {
            scope: vec![text.into()],
            ..issue("", "k")
        };
        invalid(service.tokens().issue_token(request).await);
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key: "k".into(),
            justification: text.repeat(3),
            ..RotateKeyRequest::default()
        };
        invalid(issuer.rotations().rotate_key(request).await);
    }
    for digest in ["", "0", &"g".repeat(64), &"A".repeat(64), &"0".repeat(65)] {
        let request = ApproveRotationRequest {
            rotation_id: uuid::Uuid::now_v7().to_string(),
            plan_digest: digest.into(),
        };
        invalid(approver.rotations().approve_rotation(request).await);
    }
    assert_eq!(state(&daemon).await, before);
    // A hostile request id is replaced, and does not reach the log.
    let mut request = tonic::Request::new(ListKeysRequest::default());
    let evil = "two words \"quoted\"".parse().expect("metadata");
    request.metadata_mut().insert("x-request-id", evil);
    let answer = service.keys().list_keys(request).await.expect("an answer");
    let echoed = answer.metadata().get("x-request-id").expect("an id");
    assert!(!echoed.to_str().expect("ASCII").contains("quoted"));
    daemon.stop().await;
}

async fn listings_take_their_own_page_tokens_only(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    for name in ["one", "two"] {
        signer(&daemon, "acme", name).await;
    }
    let auditor = daemon.actor("auditor");
    let admin = daemon.actor("admin");
    let keys = |page_size, token: &str| ListKeysRequest {
        tenant: "acme".into(),
        page_size,
        page_token: token.into(),
        ..Default::default()
    };
    let first = daemon
        .actor("service")
        .keys()
        .list_keys(keys(1, ""))
        .await
        .expect("a page")
        .into_inner();
    assert_eq!(first.keys[0].name, "one");
    let token = first.next_page_token;
    let second = daemon
        .actor("service")
        .keys()
        .list_keys(keys(1, &token))
        .await
        .expect("a page");
    assert_eq!(second.into_inner().keys[0].name, "two");
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
    let forged = [
        "garbage!".to_owned(),
        "AAAA".to_owned(),
        B64.encode("keys\n"),
        B64.encode("keys"),
        B64.encode(b"keys\n\xff\xfe"),
        format!("{token}="),
        token[1..].to_owned(),
        "A".repeat(100_000),
    ];
    let invalid_token = "PAGE_TOKEN_INVALID";
    for forged in &forged {
        let answer = daemon
            .actor("service")
            .keys()
            .list_keys(keys(1, forged))
            .await;
        refused(answer, Code::InvalidArgument, invalid_token);
    }
    // Well-formed, with a position that is none: never an error of the database.
    for position in ["\0", "a\0b", "' OR '1'='1", "\u{1b}[0m", "9999 x", "1 2"] {
        for listing in ["keys", "rotations", "tenants", "principals", "audit"] {
            let page_token = B64.encode(format!("{listing}\n{position}"));
            let tenant = || "acme".to_owned();
            let status = match listing {
                "keys" => daemon
                    .actor("service")
                    .keys()
                    .list_keys(keys(1, &page_token))
                    .await
                    .err(),
                "rotations" => {
                    let request = ListRotationsRequest {
                        tenant: tenant(),
                        page_token,
                        ..Default::default()
                    };
                    daemon
                        .actor("issuer")
                        .rotations()
                        .list_rotations(request)
                        .await
                        .err()
                }
                "tenants" => {
                    let request = ListTenantsRequest {
                        page_token,
                        ..Default::default()
                    };
                    admin.principals().list_tenants(request).await.err()
                }
                "principals" => {
                    let request = ListPrincipalsRequest {
                        tenant: tenant(),
                        page_token,
                        ..Default::default()
                    };
                    admin.principals().list_principals(request).await.err()
                }
                _ => {
                    let request = ListAuditEventsRequest {
                        tenant: "*".into(),
                        page_token,
                        ..Default::default()
                    };
                    auditor.audit().list_audit_events(request).await.err()
                }
            };
            if let Some(status) = status {
                assert_eq!(
                    crate::daemon::reason(&status),
                    invalid_token,
                    "{listing} {position:?}: {status}"
                );
            }
        }
    }
    // A token of another listing.
    let request = ListPrincipalsRequest {
        tenant: "acme".into(),
        page_token: token.clone(),
        ..Default::default()
    };
    refused(
        admin.principals().list_principals(request).await,
        Code::InvalidArgument,
        invalid_token,
    );
    let request = ListAuditEventsRequest {
        tenant: "*".into(),
        page_token: token,
        ..Default::default()
    };
    refused(
        auditor.audit().list_audit_events(request).await,
        Code::InvalidArgument,
        invalid_token,
    );
    for size in [1001, u32::MAX] {
        invalid(
            daemon
                .actor("service")
                .keys()
                .list_keys(keys(size, ""))
                .await,
        );
        let request = ListTenantsRequest {
            page_size: size,
            ..Default::default()
        };
        invalid(admin.principals().list_tenants(request).await);
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            page_size: size,
            ..Default::default()
        };
        invalid(auditor.audit().list_audit_events(request).await);
        let request = ListRotationsRequest {
            tenant: "acme".into(),
            page_size: size,
            ..Default::default()
        };
        invalid(
            daemon
                .actor("issuer")
                .rotations()
                .list_rotations(request)
                .await,
        );
    }
    for number in [99, -1] {
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            outcome: number,
            ..Default::default()
        };
        invalid(auditor.audit().list_audit_events(request).await);
        let request = ListRotationsRequest {
            tenant: "acme".into(),
            state: number,
            ..Default::default()
        };
        invalid(
            daemon
                .actor("issuer")
                .rotations()
                .list_rotations(request)
                .await,
        );
        let request = IssueTokenRequest {
            principal_type: number,
            ..issue("", "k")
        };
        invalid(daemon.actor("service").tokens().issue_token(request).await);
    }
    for seconds in [i64::MIN, i64::MAX, -62_135_596_801, 253_402_300_800] {
        let time = Some(Timestamp { seconds, nanos: 0 });
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            since: time,
            ..Default::default()
        };
        invalid(auditor.audit().list_audit_events(request).await);
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            until: time,
            ..Default::default()
        };
        invalid(auditor.audit().list_audit_events(request).await);
    }
    daemon.stop().await;
}

async fn principals_and_roles_have_rules(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let admin = daemon.actor("admin");
    let before = state(&daemon).await;
    let principal = CreatePrincipalRequest {
        tenant: "acme".into(),
        name: "new".into(),
        r#type: PrincipalType::User.into(),
        identities: vec!["dns:new".into()],
        ..Default::default()
    };
    let of = |change: &dyn Fn(&mut CreatePrincipalRequest)| {
        let mut request = principal.clone();
        change(&mut request);
        request
    };
    for wrong in [
        of(&|r| r.r#type = 0),
        of(&|r| r.r#type = 99),
        of(&|r| r.owner = "x".repeat(256)),
        of(&|r| r.scopes = vec!["two words".into()]),
        of(&|r| r.scopes = vec!["claviger:auditor".into()]),
        of(&|r| r.identities = (0..9).map(|i| format!("dns:{i}")).collect()),
        of(&|r| r.identities = vec!["dns:".into()]),
        of(&|r| r.identities = vec!["dns:a b".into()]),
        of(&|r| r.identities = vec!["http://x".into()]),
        of(&|r| r.identities = vec![format!("dns:{}", "a".repeat(252))]),
    ] {
        invalid(admin.principals().create_principal(wrong).await);
    }
    let taken = "ALREADY_EXISTS";
    let answer = admin
        .principals()
        .create_principal(of(&|r| r.name = "service".into()))
        .await;
    refused(answer, Code::AlreadyExists, taken);
    let theirs = "spiffe://claviger.test/other";
    let stolen = of(&|r| r.identities = vec!["dns:fine".into(), theirs.into()]);
    let said = refused(
        admin.principals().create_principal(stolen).await,
        Code::AlreadyExists,
        taken,
    );
    assert!(
        !said.contains("other") && !said.contains("globex"),
        "{said}"
    );
    let twice = of(&|r| r.identities = vec!["dns:x".into(), "dns:x".into()]);
    refused(
        admin.principals().create_principal(twice).await,
        Code::AlreadyExists,
        taken,
    );
    let answer = admin
        .principals()
        .create_principal(of(&|r| r.tenant = "nowhere".into()))
        .await;
    refused(answer, Code::NotFound, "TENANT_NOT_FOUND");
    for name in ["acme", "system"] {
        let answer = admin
            .principals()
            .create_tenant(CreateTenantRequest { name: name.into() })
            .await;
        refused(answer, Code::AlreadyExists, taken);
    }
    let service = daemon.id_of("service").await;
    let grant = |id: &str, role: &str, tenant: &str| GrantRoleRequest {
        principal_id: id.into(),
        role: role.into(),
        tenant: tenant.into(),
    };
    invalid(
        admin
            .principals()
            .grant_role(grant(&service, "root", ""))
            .await,
    );
    invalid(admin.principals().grant_role(grant(&service, "", "")).await);
    // A tenant's principal is that tenant's alone.
    for tenant in ["*", "globex", "system", "nowhere"] {
        invalid(
            admin
                .principals()
                .grant_role(grant(&service, "crypto-user", tenant))
                .await,
        );
    }
    let own = daemon.id_of("admin").await;
    let answer = admin
        .principals()
        .grant_role(grant(&own, "key-issuer", "*"))
        .await;
    refused(answer, Code::PermissionDenied, "SEPARATION_OF_DUTIES");
    let revoke = RevokeRoleRequest {
        principal_id: own,
        role: "principal-admin".into(),
        tenant: "*".into(),
    };
    let answer = admin.principals().revoke_role(revoke).await;
    refused(answer, Code::PermissionDenied, "SEPARATION_OF_DUTIES");
    let answer = admin
        .principals()
        .grant_role(grant(&service, "crypto-user", ""))
        .await;
    refused(answer, Code::AlreadyExists, taken);
    let never = RevokeRoleRequest {
        principal_id: service,
        role: "auditor".into(),
        tenant: String::new(),
    };
    assert!(admin.principals().revoke_role(never).await.is_err());
    let issuer = daemon.id_of("issuer").await;
    let answer = admin
        .principals()
        .grant_role(grant(&issuer, "auditor", "nowhere"))
        .await;
    refused(answer, Code::NotFound, "TENANT_NOT_FOUND");
    let nobody = uuid::Uuid::now_v7().to_string();
    let answer = admin
        .principals()
        .grant_role(grant(&nobody, "auditor", ""))
        .await;
    refused(answer, Code::NotFound, "PRINCIPAL_NOT_FOUND");
    assert_eq!(state(&daemon).await, before);
    // Every one of them left a row of its own (R-ACL-2).
    let rows = daemon
        .rows("SELECT outcome FROM audit_events WHERE stream = 'admin' AND outcome <> 'success'")
        .await;
    assert!(rows.len() >= 15, "{}", rows.len());
    daemon.stop().await;
}

async fn batches_have_bounds_and_items_stand_alone(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    signer(&daemon, "acme", "signer").await;
    signer(&daemon, "globex", "theirs").await;
    let service = daemon.actor("service");
    let item = |reference: &str, key: &str| batch_sign_request::Item {
        reference: reference.into(),
        request: Some(sign("", key)),
    };
    let of = |items| BatchSignRequest { items };
    invalid(service.crypto().batch_sign(of(vec![])).await);
    invalid(
        service
            .crypto()
            .batch_sign(of(vec![item("r", "signer"); 101]))
            .await,
    );
    let long = "r".repeat(257);
    invalid(
        service
            .crypto()
            .batch_sign(of(vec![item("a", "signer"), item(&long, "signer")]))
            .await,
    );
    let most = service
        .crypto()
        .batch_sign(of(vec![item(&"r".repeat(256), "signer"); 100]))
        .await;
    assert_eq!(most.expect("the most").into_inner().results.len(), 100);
    let mut foreign = item("foreign", "theirs");
    foreign.request.as_mut().expect("set").tenant = "globex".into();
    let empty = batch_sign_request::Item {
        reference: "empty".into(),
        request: None,
    };
    let items = vec![
        item("good", "signer"),
        item("bad", "\0\u{1b}"),
        foreign,
        empty,
        item("unknown", "nothing"),
        item("good", "signer"),
    ];
    let results = service
        .crypto()
        .batch_sign(of(items))
        .await
        .expect("results")
        .into_inner()
        .results;
    let outcomes: Vec<_> = results
        .iter()
        .map(
            |result| match result.outcome.as_ref().expect("an outcome") {
                batch_sign_response::result::Outcome::Response(_) => "",
                batch_sign_response::result::Outcome::Error(error) => {
                    super::assert_sentence(&error.message);
                    error.reason.as_str()
                }
            },
        )
        .collect();
    assert_eq!(
        outcomes,
        [
            "",
            "INVALID_FIELD",
            "KEY_NOT_FOUND",
            "INVALID_FIELD",
            "KEY_NOT_FOUND",
            ""
        ]
    );
    let references: Vec<_> = results.iter().map(|r| r.reference.as_str()).collect();
    assert_eq!(
        references,
        ["good", "bad", "foreign", "empty", "unknown", "good"]
    );
    daemon.stop().await;
}
