//! Step 3: the service encrypts and decrypts; nobody else can, and no bit can be changed.

use std::collections::BTreeMap;

use aws_lc_rs::rand;
use bytes::Bytes;
use claviger::grpc::proto::{
    Algorithm, BatchDecryptRequest, DecryptRequest, EncryptRequest, KeyPurpose,
    batch_decrypt_request::Item, batch_decrypt_response::result::Outcome,
};
use tonic::Code;

use super::{Story, refused};

const TEXT: &[u8] = b"IBAN DE75 5121 0800 1245 1261 99";
const FILE: usize = 1 << 20;
/// Items in one batch.
const BATCH: usize = 100;

fn aad(document: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("document".to_owned(), document.to_owned())])
}

fn decrypt_request(ciphertext: Bytes) -> DecryptRequest {
    DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext,
        aad: aad("invoice 4711"),
    }
}

pub async fn encrypt(story: &mut Story) {
    let key = story
        .daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    story.did("issuer", "CreateKey", &key.id);
    let text = there_and_back(story, TEXT).await;
    let mut file = vec![0; FILE];
    rand::fill(&mut file).expect("random");
    let file = there_and_back(story, &file).await;
    story.did("service", "Encrypt", &key.id);
    story.did("service", "Decrypt", &key.id);

    // The key of acme by its name, then one of that name at home: one and the same answer.
    let home = DecryptRequest {
        tenant: String::new(),
        ..decrypt_request(text.clone())
    };
    for request in [decrypt_request(text.clone()), home] {
        let result = story.actor("other").crypto().decrypt(request).await;
        refused(result, Code::NotFound, "KEY_NOT_FOUND");
    }
    story.was_refused("other", "Decrypt", &key.id);
    // A key of the same name does not help globex either.
    story
        .daemon
        .key(
            "globex",
            "vault",
            KeyPurpose::Encryption,
            Algorithm::A256gcm,
        )
        .await;
    let foreign = DecryptRequest {
        tenant: "globex".into(),
        ..decrypt_request(text.clone())
    };
    let result = story.actor("other").crypto().decrypt(foreign).await;
    refused(result, Code::InvalidArgument, "CIPHERTEXT_INVALID");

    let others = [aad("invoice 4712"), BTreeMap::new()];
    let cut = (0..text.len()).map(|end| (text.slice(..end), aad("invoice 4711")));
    let others = others.into_iter().map(|aad| (text.clone(), aad));
    for (ciphertext, aad) in others.chain(cut) {
        let empty = ciphertext.is_empty();
        let request = DecryptRequest {
            aad,
            ..decrypt_request(ciphertext)
        };
        let result = story.actor("service").crypto().decrypt(request).await;
        let why = if empty {
            "PAYLOAD_EMPTY"
        } else {
            "CIPHERTEXT_INVALID"
        };
        refused(result, Code::InvalidArgument, why);
    }
    story.failed("service", "Decrypt", &key.id);
    every_bit_of_the_text(story, &text).await;
    bits_of_the_file(story, &file).await;
}

async fn there_and_back(story: &Story, plaintext: &[u8]) -> Bytes {
    let service = story.actor("service");
    let request = EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: Bytes::copy_from_slice(plaintext),
        aad: aad("invoice 4711"),
    };
    let sealed = service.crypto().encrypt(request).await.expect("Encrypt");
    let sealed = sealed.into_inner().ciphertext;
    let opened = service
        .crypto()
        .decrypt(decrypt_request(sealed.clone()))
        .await;
    let opened = opened.expect("Decrypt").into_inner().plaintext;
    assert!(opened == plaintext, "Decrypt gives something else back");
    let inside = sealed.windows(plaintext.len()).any(|w| w == plaintext);
    assert!(!inside, "the plaintext is in the ciphertext");
    sealed
}

async fn every_bit_of_the_text(story: &Story, ciphertext: &Bytes) {
    let service = story.actor("service");
    let bits: Vec<usize> = (0..ciphertext.len() * 8).collect();
    for bits in bits.chunks(BATCH) {
        let items = bits.iter().map(|&bit| Item {
            reference: bit.to_string(),
            request: Some(decrypt_request(flipped(ciphertext, bit))),
        });
        let batch = BatchDecryptRequest {
            items: items.collect(),
        };
        let answer = service.crypto().batch_decrypt(batch).await;
        let results = answer.expect("BatchDecrypt").into_inner().results;
        assert_eq!(results.len(), bits.len());
        for result in results {
            let Some(Outcome::Error(error)) = result.outcome else {
                panic!("bit {} was flipped unnoticed", result.reference);
            };
            assert_eq!(
                error.reason, "CIPHERTEXT_INVALID",
                "bit {}",
                result.reference
            );
        }
    }
}

/// First and last, and around every border between: header, chunks, tags.
async fn bits_of_the_file(story: &Story, ciphertext: &Bytes) {
    let last = ciphertext.len() - 1;
    let places = [
        0,
        1,
        16,
        64,
        (16 << 10) - 1,
        16 << 10,
        ciphertext.len() / 2,
        last - 16,
        last,
    ];
    for place in places {
        let request = decrypt_request(flipped(ciphertext, place * 8 + place % 8));
        let result = story.actor("service").crypto().decrypt(request).await;
        refused(result, Code::InvalidArgument, "CIPHERTEXT_INVALID");
    }
}

fn flipped(bytes: &Bytes, bit: usize) -> Bytes {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped.into()
}
