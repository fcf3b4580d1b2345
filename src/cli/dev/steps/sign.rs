//! Step 2: the service signs. Verified by the daemon, and without it: by the public key alone.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};

use super::{Run, check, part};
use crate::{
    cli::exit::{Failure, Result},
    grpc::proto::{
        AuditOutcome, GetKeyRequest, Key, SignRequest, VerifyRequest, sign_request, verify_request,
    },
};

const MESSAGE: &[u8] = b"order 4711: 3 pallets to Rotterdam";
const FORGERY: &[u8] = b"order 4711: 9 pallets to Rotterdam";

pub async fn sign(run: &mut Run<'_>, key: &Key) -> Result<()> {
    run.story
        .step("service signs a message; everybody can verify it");
    let mut service = run.people.service.crypto();
    let request = SignRequest {
        tenant: String::new(),
        key: key.name.clone(),
        payload: Some(sign_request::Payload::Message(MESSAGE.into())),
    };
    let signed = service.sign(request).await?.into_inner();
    let size = signed.signature.len();
    run.story.fact(
        "service",
        &format!("Sign with {}: {size} bytes, kid {}", key.name, signed.kid),
    );
    run.expect_key("Sign", AuditOutcome::Success, key);

    for (message, genuine) in [(MESSAGE, true), (FORGERY, false)] {
        let request = VerifyRequest {
            tenant: String::new(),
            key: key.name.clone(),
            kid: signed.kid.clone(),
            payload: Some(verify_request::Payload::Message(message.into())),
            signature: signed.signature.clone(),
        };
        let verdict = service.verify(request).await?.into_inner();
        check(
            verdict.valid == genuine,
            "Verify is wrong about the signature",
        )?;
    }
    run.story
        .fact("service", "Verify: valid; over another message: not valid");
    run.expect_key("Verify", AuditOutcome::Success, key);

    let request = GetKeyRequest {
        tenant: String::new(),
        key: key.name.clone(),
    };
    let answer = run
        .people
        .service
        .keys()
        .get_key(request)
        .await?
        .into_inner();
    let versions = part(answer.key, "key")?.versions;
    let version = part(
        versions
            .into_iter()
            .find(|version| version.kid == signed.kid),
        "version that signed",
    )?;
    let public = public_key(&version.public_pem)?;
    check(
        public.verify_sig(MESSAGE, &signed.signature).is_ok(),
        "the public key does not verify the signature",
    )?;
    check(
        public.verify_sig(FORGERY, &signed.signature).is_err(),
        "the public key verifies a forgery",
    )?;
    run.story.fact(
        "anybody",
        "verified without the daemon, with the public key from GetKey",
    );
    run.expect_key("GetKey", AuditOutcome::Success, key);
    Ok(())
}

fn public_key(pem: &str) -> Result<ParsedPublicKey> {
    let bad = |e: &dyn std::fmt::Debug| {
        Failure::other(format!("public_pem is not a P-256 public key: {e:?}"))
    };
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(&e))?;
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &*der).map_err(|e| bad(&e))
}
