//! Step 1: the issuer creates an ES256 signing key; it is in the token and cannot leave it.

use aws_sdk_kms::types::{KeyManagerType, OriginType};
use claviger::grpc::proto::{Algorithm, CreateKeyRequest, GetKeyRequest, Key, KeyPurpose};
use tonic::Code;

use super::{Pairs, Story, active, refused};
use crate::kms::layer::Kms;

pub async fn create(story: &mut Story) -> Key {
    let before = pairs(story).await;
    let request = CreateKeyRequest {
        tenant: "acme".into(),
        name: "orders".into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-orders".into(),
        ..Default::default()
    };
    let denied = story
        .actor("service")
        .keys()
        .create_key(request.clone())
        .await;
    refused(denied, Code::PermissionDenied, "PERMISSION_DENIED");
    story.was_refused("service", "CreateKey", "orders");
    let hidden = story
        .actor("other")
        .keys()
        .create_key(request.clone())
        .await;
    refused(hidden, Code::NotFound, "KEY_NOT_FOUND");
    let stranger = story
        .actor("stranger")
        .keys()
        .create_key(request.clone())
        .await;
    refused(stranger, Code::Unauthenticated, "UNKNOWN_PRINCIPAL");
    assert_eq!(pairs(story).await, before);

    let made = story
        .actor("issuer")
        .keys()
        .create_key(request.clone())
        .await;
    let key = made.expect("CreateKey").into_inner().key;
    let key = key.expect("a key");
    story.did("issuer", "CreateKey", &key.id);
    let again = story
        .actor("issuer")
        .keys()
        .create_key(request.clone())
        .await;
    refused(again, Code::AlreadyExists, "ALREADY_EXISTS");
    story.failed("issuer", "CreateKey", "orders");
    let misfit = CreateKeyRequest {
        name: "misfit".into(),
        algorithm: Algorithm::A256gcm.into(),
        ..request
    };
    let misfit = story.actor("issuer").keys().create_key(misfit).await;
    refused(misfit, Code::InvalidArgument, "ALGORITHM_MISMATCH");

    let get = GetKeyRequest {
        tenant: "acme".into(),
        key: "orders".into(),
    };
    let hidden = story.actor("other").keys().get_key(get).await;
    refused(hidden, Code::NotFound, "KEY_NOT_FOUND");
    story.was_refused("other", "GetKey", &key.id);

    assert_eq!(pairs(story).await, before + 1);
    assert!(!active(&key).public_pem.contains("PRIVATE"));
    match &story.pairs {
        Pairs::OnToken => in_the_token(story, &key).await,
        Pairs::InKms(kms) => in_kms(kms, &key).await,
    }
    key
}

/// How many key pairs the device holds.
async fn pairs(story: &Story) -> usize {
    match &story.pairs {
        Pairs::OnToken => story.daemon.private_keys().await.len(),
        Pairs::InKms(kms) => kms.pairs().await.len(),
    }
}

// R-LIFE-4: seen by a client that is not ours. No API of KMS shows a private half.
async fn in_kms(kms: &Kms, key: &Key) {
    let seen = kms.pairs().await;
    let reference = &active(key).backend_ref;
    let ours = seen.iter().find(|k| k.arn() == Some(reference));
    let ours = ours.unwrap_or_else(|| panic!("{reference}: {seen:?}"));
    assert_eq!(ours.origin(), Some(&OriginType::AwsKms));
    assert_eq!(ours.key_manager(), Some(&KeyManagerType::Customer));
    assert_ne!(ours.multi_region(), Some(true));
}

// R-LIFE-4: seen by a tool that is not ours.
async fn in_the_token(story: &Story, key: &Key) {
    let seen = story.daemon.private_keys().await;
    let reference = active(key).backend_ref.to_ascii_lowercase();
    let reference = reference.replace('%', "");
    let ours: Vec<_> = seen.iter().filter(|k| reference.contains(&k.id)).collect();
    let [ours] = &ours[..] else {
        panic!("{reference}: {seen:?}");
    };
    for access in [
        "sensitive",
        "always sensitive",
        "never extractable",
        "local",
    ] {
        assert!(ours.access.iter().any(|a| a == access), "{ours:?}");
    }
}
