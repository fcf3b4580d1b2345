//! Step 3: the service encrypts and decrypts. Another tenant, other AAD or one flipped bit gets nothing.

use std::collections::BTreeMap;

use aws_lc_rs::rand;
use bytes::Bytes;
use tonic::Code;

use super::{Run, TENANT, check, part, refusal};
use crate::{
    cli::{
        dev::files,
        exit::{Failure, Result},
    },
    error::Reason,
    grpc::proto::{
        AuditOutcome, BatchDecryptRequest, DecryptRequest, EncryptRequest, Key,
        batch_decrypt_request, batch_decrypt_response::result::Outcome,
    },
};

const TEXT: &[u8] = b"IBAN DE75 5121 0800 1245 1261 99";
const FILE_SIZE: usize = 1 << 20;
/// Items in one batch: proto/claviger/v1/crypto.proto.
const BATCH: usize = 100;

pub async fn encrypt(run: &mut Run<'_>, key: &Key) -> Result<()> {
    run.story
        .step("service encrypts and decrypts; nobody else can, and nothing can be changed");
    let text = seal(run, key, TEXT).await?;
    check(
        open(run, key, &text).await? == TEXT,
        "Decrypt did not give the text back",
    )?;
    let sizes = format!(
        "{} bytes of text became {} and came back",
        TEXT.len(),
        text.len()
    );
    run.story.fact("service", &sizes);

    let file = file(run, key).await?;

    // `other` names the key of acme, then asks for one of that name at home: one and the same answer.
    for tenant in [TENANT, ""] {
        let request = DecryptRequest {
            tenant: tenant.to_owned(),
            ..decrypt_request(key, &text)
        };
        let result = run.people.other.crypto().decrypt(request).await;
        let refused = refusal(result, Code::NotFound, Reason::KeyNotFound)?;
        if tenant == TENANT {
            run.story
                .refused("other", "tenant globex decrypts it", &refused);
            run.expect_key("Decrypt", AuditOutcome::Refused, key);
        }
    }
    let mut request = decrypt_request(key, &text);
    request.aad = aad("invoice 4712");
    let result = run.people.service.crypto().decrypt(request).await;
    let refused = refusal(result, Code::InvalidArgument, Reason::CiphertextInvalid)?;
    run.story
        .refused("service", "decrypt with other AAD", &refused);
    run.expect_key("Decrypt", AuditOutcome::Failed, key);

    every_flipped_byte(run, key, &text).await?;
    flipped_bits(run, key, &file).await
}

/// The 1 MiB file, there and back.
async fn file(run: &mut Run<'_>, key: &Key) -> Result<Bytes> {
    let mut plain = vec![0; FILE_SIZE];
    rand::fill(&mut plain).map_err(|_| Failure::other("the system's random generator failed"))?;
    let path = |name: &str| run.environment.path("files").join(name);
    let (plain_path, sealed_path, opened_path) =
        (path("sample.bin"), path("sample.enc"), path("sample.out"));
    files::private(&plain_path, &plain)?;
    let sealed = seal(run, key, &plain).await?;
    files::private(&sealed_path, &sealed)?;
    let opened = open(run, key, &files::bytes(&sealed_path)?).await?;
    files::private(&opened_path, &opened)?;
    check(
        files::bytes(&opened_path)? == plain,
        "Decrypt did not give the file back",
    )?;
    let text = format!(
        "a 1 MiB file became {} bytes and came back: {}",
        sealed.len(),
        sealed_path.display()
    );
    run.story.fact("service", &text);
    Ok(sealed)
}

/// One bit in every byte of the short ciphertext, one at a time.
async fn every_flipped_byte(run: &mut Run<'_>, key: &Key, ciphertext: &[u8]) -> Result<()> {
    let positions: Vec<usize> = (0..ciphertext.len()).collect();
    for positions in positions.chunks(BATCH) {
        let items = positions
            .iter()
            .map(|&position| batch_decrypt_request::Item {
                reference: position.to_string(),
                request: Some(decrypt_request(key, &flipped(ciphertext, position))),
            });
        let request = BatchDecryptRequest {
            items: items.collect(),
        };
        let answer = run
            .people
            .service
            .crypto()
            .batch_decrypt(request)
            .await?
            .into_inner();
        check(
            answer.results.len() == positions.len(),
            "the batch did not answer every item",
        )?;
        for result in answer.results {
            let position = result.reference;
            match part(result.outcome, "outcome")? {
                Outcome::Error(error) if error.reason == Reason::CiphertextInvalid.as_str() => {}
                Outcome::Error(error) => {
                    let text = format!(
                        "a flipped bit in byte {position}: {} {}",
                        error.reason, error.message
                    );
                    return Err(Failure::other(text));
                }
                Outcome::Response(_) => {
                    return Err(Failure::other(format!(
                        "a flipped bit in byte {position} was not noticed"
                    )));
                }
            }
        }
    }
    let text = format!(
        "one flipped bit, in each of the {} bytes of the text's ciphertext",
        ciphertext.len()
    );
    run.story
        .refused("service", &text, Reason::CiphertextInvalid.as_str());
    Ok(())
}

/// One bit at telling places of the large ciphertext: first and last byte, and around every border between.
async fn flipped_bits(run: &mut Run<'_>, key: &Key, ciphertext: &[u8]) -> Result<()> {
    let last = ciphertext.len() - 1;
    let positions = [
        0,
        1,
        16,
        64,
        16 << 10,
        ciphertext.len() / 2,
        last - 16,
        last,
    ];
    for position in positions {
        let request = decrypt_request(key, &flipped(ciphertext, position));
        let result = run.people.service.crypto().decrypt(request).await;
        refusal(result, Code::InvalidArgument, Reason::CiphertextInvalid).map_err(|failure| {
            Failure::other(format!("a flipped bit in byte {position}: {failure}"))
        })?;
    }
    let text = format!(
        "one flipped bit, at {} places of the file's, first and last byte too",
        positions.len()
    );
    run.story
        .refused("service", &text, Reason::CiphertextInvalid.as_str());
    Ok(())
}

async fn seal(run: &mut Run<'_>, key: &Key, plaintext: &[u8]) -> Result<Bytes> {
    let request = EncryptRequest {
        tenant: String::new(),
        key: key.name.clone(),
        plaintext: Bytes::copy_from_slice(plaintext),
        aad: aad("invoice 4711"),
    };
    let answer = run
        .people
        .service
        .crypto()
        .encrypt(request)
        .await?
        .into_inner();
    run.expect_key("Encrypt", AuditOutcome::Success, key);
    Ok(answer.ciphertext)
}

async fn open(run: &mut Run<'_>, key: &Key, ciphertext: &[u8]) -> Result<Bytes> {
    let request = decrypt_request(key, ciphertext);
    let answer = run
        .people
        .service
        .crypto()
        .decrypt(request)
        .await?
        .into_inner();
    run.expect_key("Decrypt", AuditOutcome::Success, key);
    Ok(answer.plaintext)
}

fn decrypt_request(key: &Key, ciphertext: &[u8]) -> DecryptRequest {
    DecryptRequest {
        tenant: String::new(),
        key: key.name.clone(),
        ciphertext: Bytes::copy_from_slice(ciphertext),
        aad: aad("invoice 4711"),
    }
}

fn aad(document: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("document".to_owned(), document.to_owned())])
}

fn flipped(bytes: &[u8], position: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    if let Some(byte) = flipped.get_mut(position) {
        *byte ^= 1 << (position % 8);
    }
    flipped
}
