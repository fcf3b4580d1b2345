//! The bytes of streams, without a daemon: any cuts give what `seal` and `open` give, and nothing wrong ever comes out.

use std::collections::BTreeMap;

use claviger::{
    envelope::{
        self, Beginning, Context, EnvelopeError, StreamOpener, StreamSealer,
        cobblestone::{CHUNK, SEALED_CHUNK, Salt},
    },
    model::{Secret, secret::DataKey},
};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    strategy::{Just, Strategy},
};

const SALT: Salt = [9; 24];

fn key() -> DataKey {
    Secret::new([7; 32])
}

fn context() -> Context {
    let key_id = "0199a1b2-0000-7000-8000-000000000001".parse();
    Context::new(
        &"acme".parse().expect("a tenant"),
        key_id.expect("an id"),
        &"kid-1".parse().expect("a kid"),
        &BTreeMap::from([("user".to_owned(), "42".to_owned())]),
    )
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i + i / 251) as u8).collect()
}

/// `bytes` in pieces of these sizes, over and over; a size of 0 is an empty piece.
fn pieces<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut sizes = sizes.iter().chain(&[1]).cycle();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let size = sizes.next()?;
        let (piece, others) = rest.split_at(rest.len().min(*size));
        rest = others;
        Some(piece)
    })
}

fn sealed(plaintext: &[u8], sizes: &[usize]) -> Result<Vec<u8>, EnvelopeError> {
    let mut out = Vec::new();
    let context = context();
    let mut sealer = StreamSealer::begin_with_chosen_salt(&key(), &context, SALT, &mut out)?;
    for piece in pieces(plaintext, sizes) {
        sealer.push(piece, &mut out)?;
    }
    sealer.finish(&mut out)?;
    Ok(out)
}

/// What came out, and how it ended.
fn opened(ciphertext: &[u8], sizes: &[usize]) -> (Vec<u8>, Result<(), EnvelopeError>) {
    let mut out = Vec::new();
    let end = open(ciphertext, sizes, &mut out);
    (out, end)
}

fn open(ciphertext: &[u8], sizes: &[usize], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
    let mut beginning = Beginning::default();
    let mut opener = None;
    for mut piece in pieces(ciphertext, sizes) {
        if opener.is_none() && beginning.push(&mut piece)?.is_some() {
            opener = Some(StreamOpener::begin(&key(), &context(), &beginning)?);
        }
        if let Some(opener) = &mut opener {
            opener.push(piece, out)?;
        }
    }
    opener.ok_or(EnvelopeError::Truncated)?.finish(out)
}

/// What somebody does to a ciphertext of many chunks.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Flip(usize),
    Swap(usize, usize),
    Repeat(usize),
    Drop(usize),
    Append(Vec<u8>),
}

impl Damage {
    /// None where it changes nothing.
    fn done_to(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        let head = envelope::sealed_len(&context(), 0) - 16;
        let (head, chunks) = ciphertext.split_at(head);
        let mut chunks: Vec<&[u8]> = chunks.chunks(SEALED_CHUNK).collect();
        let count = chunks.len();
        let mut flipped = ciphertext.to_vec();
        match self {
            Self::Cut(at) => return Some(ciphertext[..at % ciphertext.len()].to_vec()),
            Self::Flip(bit) => {
                let bit = bit % (ciphertext.len() * 8);
                flipped[bit / 8] ^= 1 << (bit % 8);
                return Some(flipped);
            }
            Self::Swap(one, two) => chunks.swap(one % count, two % count),
            Self::Repeat(at) => chunks.insert(at % count, chunks[at % count]),
            Self::Drop(at) => {
                chunks.remove(at % count);
            }
            Self::Append(bytes) => chunks.push(bytes),
        }
        let damaged = [&[head], &chunks[..]].concat().concat();
        (damaged != ciphertext).then_some(damaged)
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<usize>;
    prop_oneof![
        at().prop_map(Damage::Cut),
        // At the very borders of chunks.
        (0..5_usize)
            .prop_map(|n| Damage::Cut(envelope::sealed_len(&context(), 0) - 16 + n * SEALED_CHUNK)),
        at().prop_map(Damage::Flip),
        (at(), at()).prop_map(|(one, two)| Damage::Swap(one, two)),
        at().prop_map(Damage::Repeat),
        at().prop_map(Damage::Drop),
        vec(any::<u8>(), 1..40).prop_map(Damage::Append),
    ]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![
        0..40_usize,
        0..3 * SEALED_CHUNK,
        Just(CHUNK),
        Just(SEALED_CHUNK),
        Just(CHUNK - 1),
        Just(SEALED_CHUNK + 1),
    ];
    vec(size, 1..6)
}

fn length() -> impl Strategy<Value = usize> {
    let near = (0..5_usize, 0..3_usize).prop_map(|(n, by)| (n * CHUNK + by).saturating_sub(1));
    prop_oneof![0..4 * CHUNK, near]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cuts_give_the_bytes_of_the_whole(len in length(), one in sizes(), two in sizes()) {
        let plaintext = text(len);
        let whole = envelope::seal_with_chosen_salt(&key(), &context(), &plaintext, SALT);
        let streamed = sealed(&plaintext, &one);
        prop_assert!(streamed == whole, "another ciphertext");
        let (out, end) = opened(&streamed.unwrap_or_default(), &two);
        prop_assert_eq!(end, Ok(()));
        prop_assert!(out == plaintext, "another plaintext");
    }

    /// R-CARD-4
    #[test]
    fn damage_is_found_and_what_came_before_it_is_right(
        len in length(),
        damage in damage(),
        sizes in sizes(),
    ) {
        let plaintext = text(len);
        let ciphertext = sealed(&plaintext, &[CHUNK]).unwrap_or_default();
        if let Some(damaged) = damage.done_to(&ciphertext) {
            let (out, end) = opened(&damaged, &sizes);
            prop_assert!(end.is_err(), "nobody noticed");
            prop_assert!(plaintext.starts_with(&out), "wrong bytes were released");
            prop_assert!(envelope::open(&key(), &context(), &damaged).is_err());
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..400), sizes in sizes()) {
        for bytes in [bytes.clone(), [b"CLV\x01\x05kid-1", &bytes[..]].concat()] {
            let (out, end) = opened(&bytes, &sizes);
            prop_assert!(end.is_err() && out.is_empty());
        }
    }
}

#[test]
fn what_is_no_ciphertext_of_ours_is_refused_with_its_first_bytes() {
    let push = |bytes: &[u8]| Beginning::default().push(&mut &bytes[..]);
    assert_eq!(push(b"CLVX\x05"), Err(EnvelopeError::UnknownFormat(b'X')));
    assert_eq!(push(b"-----"), Err(EnvelopeError::Malformed));
    assert_eq!(push(b"CLV\x01"), Ok(None));
}
