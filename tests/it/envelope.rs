//! R-CARD-4: the ciphertext format. Vectors of an independent implementation (`vectors/make.py`), and every way to
//! break a ciphertext that we could think of.

use std::{collections::BTreeMap, error::Error as StdError};

use aws_lc_rs::digest;
use claviger::{
    envelope::{
        self, Context, EnvelopeError, Kind,
        cobblestone::{CHUNK, Opener, PREFIX, SEALED_CHUNK, Salt, Sealer},
    },
    error::{Error, Reason},
    model::{KeyId, Kid, Secret, TenantName, secret::DataKey},
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use serde::Deserialize;

type TestResult = Result<(), Box<dyn StdError>>;

const SIZES: [usize; 8] = [
    0,
    1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK,
    1 << 20,
    (4 << 20) - 64,
];

fn key(byte: u8) -> DataKey {
    Secret::new([byte; 32])
}

fn aad(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const KEY_ID: &str = "0199a1b2-0000-7000-8000-000000000001";

fn context() -> Context {
    context_of("acme", KEY_ID, "kid-1", &[("user", "42")])
}

fn context_of(tenant: &str, key: &str, kid: &str, pairs: &[(&str, &str)]) -> Context {
    let tenant: TenantName = tenant.parse().expect("tenant");
    let key: KeyId = key.parse().expect("key id");
    let kid: Kid = kid.parse().expect("kid");
    Context::new(&tenant, key, &kid, &aad(pairs))
}

fn of_kind(kind: Kind, kid: &str) -> Context {
    let tenant: TenantName = "acme".parse().expect("tenant");
    let (key, kid): (KeyId, Kid) = (KEY_ID.parse().expect("key id"), kid.parse().expect("kid"));
    Context::of(kind, &tenant, key, &kid, &aad(&[("user", "42")]))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(i) + i / 256) as u8)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

#[test]
fn round_trips_at_every_chunk_boundary() -> TestResult {
    for size in SIZES {
        let plaintext = pattern(size);
        let ciphertext = envelope::seal(&key(1), &context(), &plaintext)?;
        assert_eq!(ciphertext.len(), envelope::sealed_len(&context(), size));
        assert_eq!(ciphertext.capacity(), ciphertext.len(), "one allocation");
        assert_eq!(envelope::header(&ciphertext)?.kid.as_str(), "kid-1");
        let opened = envelope::open(&key(1), &context(), &ciphertext)?;
        assert!(opened == plaintext && opened.capacity() == size);
    }
    Ok(())
}

#[test]
fn equal_plaintexts_have_different_ciphertexts() -> TestResult {
    let one = envelope::seal(&key(1), &context(), b"same")?;
    let two = envelope::seal(&key(1), &context(), b"same")?;
    assert_ne!(one, two);
    Ok(())
}

/// Independent implementation of docs/envelope.md.
#[derive(Deserialize)]
struct OurVector {
    name: String,
    tenant: String,
    key_id: String,
    kid: String,
    aad: BTreeMap<String, String>,
    key: String,
    salt: String,
    context: String,
    length: usize,
    ciphertext_sha256: String,
    ciphertext: Option<String>,
}

#[test]
fn our_format_agrees_with_an_independent_implementation() -> TestResult {
    let vectors: Vec<OurVector> = serde_json::from_str(include_str!("vectors/envelope.json"))?;
    assert!(vectors.len() >= 7);
    for v in vectors {
        let context = Context::new(
            &v.tenant.parse()?,
            v.key_id.parse()?,
            &v.kid.parse()?,
            &v.aad,
        );
        assert_eq!(hex(context.encoded()), v.context, "{}", v.name);
        let data_key = Secret::new(<[u8; 32]>::try_from(unhex(&v.key).as_slice())?);
        let salt = Salt::try_from(unhex(&v.salt).as_slice())?;
        let plaintext = pattern(v.length);
        let ciphertext = envelope::seal_with_chosen_salt(&data_key, &context, &plaintext, salt)?;
        assert_eq!(sha256(&ciphertext), v.ciphertext_sha256, "{}", v.name);
        if let Some(expected) = v.ciphertext {
            assert_eq!(hex(&ciphertext), expected, "{}", v.name);
        }
        assert!(envelope::open(&data_key, &context, &ciphertext)? == plaintext);
    }
    Ok(())
}

/// The kinds that are no caller's data.
#[derive(Deserialize)]
struct KindVector {
    version: u8,
    #[serde(flatten)]
    vector: OurVector,
}

#[test]
fn other_kinds_agree_with_an_independent_implementation() -> TestResult {
    let vectors: Vec<KindVector> = serde_json::from_str(include_str!("vectors/kinds.json"))?;
    assert_eq!(vectors.len(), 6);
    for KindVector { version, vector: v } in vectors {
        let kind = match version {
            2 => Kind::WrappedKey,
            3 => Kind::MacSecret,
            4 => Kind::Credential,
            other => panic!("format version {other}"),
        };
        let (key_id, kid) = (v.key_id.parse()?, v.kid.parse()?);
        let context = Context::of(kind, &v.tenant.parse()?, key_id, &kid, &v.aad);
        assert_eq!(hex(context.encoded()), v.context, "{}", v.name);
        let data_key = Secret::new(<[u8; 32]>::try_from(unhex(&v.key).as_slice())?);
        let salt = Salt::try_from(unhex(&v.salt).as_slice())?;
        let plaintext = pattern(v.length);
        let sealed = envelope::seal_with_chosen_salt(&data_key, &context, &plaintext, salt)?;
        assert_eq!(sha256(&sealed), v.ciphertext_sha256, "{}", v.name);
        assert_eq!(envelope::header(&sealed)?.kind, kind);
        assert!(envelope::open(&data_key, &context, &sealed)? == plaintext);
    }
    Ok(())
}

/// Each kind opens as itself; the others refuse it as it is, and also when its header says that it is one of theirs.
#[test]
fn a_ciphertext_opens_as_its_own_kind_only() -> TestResult {
    const KINDS: [Kind; 4] = [
        Kind::Data,
        Kind::WrappedKey,
        Kind::MacSecret,
        Kind::Credential,
    ];
    for one in KINDS {
        let sealed = envelope::seal(&key(1), &of_kind(one, "kid-1"), b"text")?;
        assert_eq!(
            envelope::open(&key(1), &of_kind(one, "kid-1"), &sealed)?,
            b"text"
        );
        for (version, other) in (1..).zip(KINDS).filter(|(_, other)| *other != one) {
            let context = of_kind(other, "kid-1");
            let opened = envelope::open(&key(1), &context, &sealed);
            assert_eq!(opened, Err(EnvelopeError::OtherKind));
            let mut renamed = sealed.clone();
            renamed[3] = version;
            assert_eq!(envelope::header(&renamed)?.kind, other);
            let opened = envelope::open(&key(1), &context, &renamed);
            assert_eq!(opened, Err(EnvelopeError::Commitment));
        }
    }
    Ok(())
}

/// C2SP chunked encryption, judged by another implementation.
#[derive(Deserialize)]
struct MessageVector {
    name: String,
    opens: bool,
    key: String,
    context: String,
    ciphertext: Vec<(String, usize)>,
    released: usize,
    released_sha256: String,
}

#[test]
fn the_message_agrees_with_another_implementation_of_the_specification() -> TestResult {
    let vectors: Vec<MessageVector> =
        serde_json::from_str(include_str!("vectors/cobblestone-256.json"))?;
    assert_eq!(vectors.len(), 33);
    for v in vectors {
        let name = &v.name;
        let data_key = Secret::new(<[u8; 32]>::try_from(unhex(&v.key).as_slice())?);
        let context = &unhex(&v.context);
        let runs = v.ciphertext.iter();
        let message: Vec<u8> = runs.flat_map(|(run, n)| unhex(run).repeat(*n)).collect();

        let opened = Opener::open(&data_key, context, &message);
        assert_eq!(
            opened.as_ref().err().copied(),
            expected_failure(name),
            "{name}"
        );
        assert_eq!(opened.is_ok(), v.opens, "{name}");

        // A streaming reader gets exactly the chunks before the first that fails.
        let (released, _) = stream_open(&data_key, context, &message);
        assert_eq!(released.len(), v.released, "{name}");
        assert_eq!(sha256(&released), v.released_sha256, "{name}");

        if let Ok(plaintext) = opened {
            assert!(plaintext == released, "{name}");
            let salt = Salt::try_from(&message[..24])?;
            let mut again = Vec::new();
            Sealer::begin(&data_key, context, salt, &mut again)?.finish(&plaintext, &mut again)?;
            assert!(again == message, "{name}");
        }
    }
    Ok(())
}

/// What each way to break a message must be called; None for those that open.
fn expected_failure(name: &str) -> Option<EnvelopeError> {
    match name {
        "wrong_commitment" | "wrong_key" | "wrong_context" | "wrong_salt" => {
            Some(EnvelopeError::Commitment)
        }
        "bad_ciphertext"
        | "bad_tag"
        | "bad_first_chunk"
        | "bad_second_chunk"
        | "bad_second_chunk_full"
        | "bad_empty_final_chunk"
        | "trailing_long"
        | "cut_in_chunk"
        | "swapped_chunks"
        | "repeated_chunk"
        | "extended_after_final" => Some(EnvelopeError::Authentication),
        "missing_tag"
        | "shorter_than_tag"
        | "trailing_short"
        | "no_chunks"
        | "no_bytes"
        | "part_of_salt"
        | "salt_only"
        | "part_of_commitment"
        | "cut_at_chunk_boundary" => Some(EnvelopeError::Truncated),
        _ => None,
    }
}

/// Opens chunk by chunk; what was released, and how it ended.
fn stream_open(
    data_key: &DataKey,
    context: &[u8],
    message: &[u8],
) -> (Vec<u8>, Result<(), EnvelopeError>) {
    let mut out = Vec::new();
    let Some((prefix, body)) = message.split_first_chunk::<PREFIX>() else {
        return (out, Err(EnvelopeError::Truncated));
    };
    let (chunks, last) = body.as_chunks::<SEALED_CHUNK>();
    let result = Opener::begin(data_key, context, prefix).and_then(|mut opener| {
        for chunk in chunks {
            opener.push(chunk, &mut out)?;
        }
        opener.finish(last, &mut out)
    });
    (out, result)
}

#[test]
fn every_flipped_bit_is_found() -> TestResult {
    let ciphertext = envelope::seal(&key(1), &context(), b"attack at dawn")?;
    for bit in 0..ciphertext.len() * 8 {
        let mut changed = ciphertext.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let opened = envelope::open(&key(1), &context(), &changed);
        assert!(opened.is_err(), "bit {bit} is not bound");
        let opened_as_named = envelope::header(&changed).map(|header| {
            let context = of_kind(header.kind, header.kid.as_str());
            envelope::open(&key(1), &context, &changed)
        });
        assert!(
            !matches!(opened_as_named, Ok(Ok(_))),
            "bit {bit} is not bound when the header is believed"
        );
    }
    Ok(())
}

#[test]
fn every_truncation_and_extension_is_found() -> TestResult {
    for size in [0, 14, CHUNK + 3] {
        let ciphertext = envelope::seal(&key(1), &context(), &pattern(size))?;
        let end = ciphertext.len();
        // Every length near an end, and a prime stride through the middle.
        for len in (0..end).filter(|len| *len < 200 || end - len < 200 || len % 61 == 0) {
            let opened = envelope::open(&key(1), &context(), &ciphertext[..len]);
            assert!(opened.is_err(), "cut from {end} to {len}");
        }
        for extra in [1, 15, 16, 17, CHUNK, SEALED_CHUNK] {
            let mut longer = ciphertext.clone();
            longer.resize(ciphertext.len() + extra, 0);
            let opened = envelope::open(&key(1), &context(), &longer);
            assert!(opened.is_err(), "{extra} bytes appended");
        }
    }
    Ok(())
}

#[test]
fn chunks_cannot_be_swapped_repeated_or_dropped() -> TestResult {
    let plaintext = vec![7; 3 * CHUNK];
    let sealed = envelope::seal(&key(1), &context(), &plaintext)?;
    let start = sealed.len() - (3 * SEALED_CHUNK + 16);
    let chunk = |i: usize| start + i * SEALED_CHUNK..start + (i + 1) * SEALED_CHUNK;
    let swapped = [
        &sealed[..start],
        &sealed[chunk(1)],
        &sealed[chunk(0)],
        &sealed[chunk(2).start..],
    ]
    .concat();
    let repeated = [&sealed[..chunk(1).end], &sealed[chunk(1).start..]].concat();
    let dropped = [&sealed[..chunk(1).start], &sealed[chunk(2).start..]].concat();
    for changed in [swapped, repeated, dropped] {
        assert_eq!(
            envelope::open(&key(1), &context(), &changed),
            Err(EnvelopeError::Authentication)
        );
    }
    Ok(())
}

// R-ACL-3: a ciphertext of one tenant means nothing in another, even under the same data key.
#[test]
fn another_key_or_context_is_refused_before_decryption() -> TestResult {
    let ciphertext = envelope::seal(&key(1), &context(), b"secret")?;
    let other_key = "0199a1b2-0000-7000-8000-000000000002";
    for other in [
        context_of("acmf", KEY_ID, "kid-1", &[("user", "42")]),
        context_of("acme", other_key, "kid-1", &[("user", "42")]),
        context_of("acme", KEY_ID, "kid-1", &[]),
        context_of("acme", KEY_ID, "kid-1", &[("user", "43")]),
        context_of("acme", KEY_ID, "kid-1", &[("use", "r42")]),
        context_of("acme", KEY_ID, "kid-1", &[("user", "42"), ("", "")]),
    ] {
        assert_eq!(
            envelope::open(&key(1), &other, &ciphertext),
            Err(EnvelopeError::Commitment)
        );
    }
    assert_eq!(
        envelope::open(&key(2), &context(), &ciphertext),
        Err(EnvelopeError::Commitment)
    );
    let other_kid = context_of("acme", KEY_ID, "kid-2", &[("user", "42")]);
    assert_eq!(
        envelope::open(&key(1), &other_kid, &ciphertext),
        Err(EnvelopeError::OtherVersion)
    );
    // The same with a header that was changed to match.
    let renamed = String::from_utf8_lossy(&ciphertext[5..10]).replace('1', "2");
    let forged = [&ciphertext[..5], renamed.as_bytes(), &ciphertext[10..]].concat();
    assert_eq!(envelope::header(&forged)?.kid.as_str(), "kid-2");
    assert_eq!(
        envelope::open(&key(1), &other_kid, &forged),
        Err(EnvelopeError::Commitment)
    );
    Ok(())
}

#[test]
fn foreign_headers_are_told_apart() -> TestResult {
    let good = envelope::seal(&key(1), &context(), b"x")?;
    let with = |at: usize, byte: u8| {
        let mut changed = good.clone();
        changed[at] = byte;
        envelope::header(&changed)
    };
    assert_eq!(with(0, b'X'), Err(EnvelopeError::Malformed));
    assert_eq!(with(3, 0), Err(EnvelopeError::UnknownFormat(0)));
    assert_eq!(with(3, 5), Err(EnvelopeError::UnknownFormat(5)));
    assert_eq!(with(3, 4)?.kind, Kind::Credential);
    assert_eq!(with(3, 2)?.kind, Kind::WrappedKey);
    assert_eq!(with(4, 0), Err(EnvelopeError::Malformed));
    assert_eq!(with(4, 255), Err(EnvelopeError::Truncated));
    assert_eq!(with(6, b'/'), Err(EnvelopeError::Malformed));
    assert_eq!(with(6, 0xff), Err(EnvelopeError::Malformed));
    assert_eq!(envelope::header(b"CLV"), Err(EnvelopeError::Truncated));
    Ok(())
}

/// A caller must not learn from the answer which check failed.
#[test]
fn callers_get_one_sentence_for_every_bad_ciphertext() {
    let bad = [
        EnvelopeError::Truncated,
        EnvelopeError::Malformed,
        EnvelopeError::UnknownFormat(9),
        EnvelopeError::OtherVersion,
        EnvelopeError::Commitment,
        EnvelopeError::Authentication,
    ];
    let answers: Vec<Error> = bad.into_iter().map(Error::from).collect();
    for answer in &answers {
        assert_eq!(answer.reason(), Reason::CiphertextInvalid);
        assert_eq!(answer.message(), answers[0].message());
    }
    assert_eq!(
        Error::from(EnvelopeError::Provider).reason(),
        Reason::Internal
    );
}

proptest! {
    #[test]
    fn any_message_round_trips_and_opens_with_one_key_only(
        plaintext in proptest::collection::vec(any::<u8>(), 0..2048),
        one in any::<[u8; 32]>(),
        two in any::<[u8; 32]>(),
        name in ".{0,20}",
        value in ".{0,20}",
    ) {
        let context = context_of("acme", KEY_ID, "kid-1", &[(&name, &value)]);
        let ciphertext = envelope::seal(&Secret::new(one), &context, &plaintext)
            .map_err(Error::from)?;
        let opened = envelope::open(&Secret::new(one), &context, &ciphertext);
        prop_assert_eq!(opened.as_deref(), Ok(plaintext.as_slice()));
        if one != two {
            prop_assert!(envelope::open(&Secret::new(two), &context, &ciphertext).is_err());
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kid_len in 0_u8..70,
    ) {
        let framed = [b"CLV\x01".as_slice(), &[kid_len], &bytes].concat();
        for input in [&bytes, &framed] {
            let _ = envelope::header(input);
            prop_assert!(envelope::open(&key(1), &context(), input).is_err());
        }
    }
}
