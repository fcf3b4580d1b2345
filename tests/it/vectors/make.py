#!/usr/bin/env python3
"""Makes the envelope's test vectors, independently of the Rust code.

    python3 -m venv v && v/bin/pip install 'cryptography==50.0.2'
    v/bin/python make.py

cobblestone-256.json  C2SP chunked encryption without our header. The vectors published with
                      pyca/cryptography 50 cannot be used: they derive with SHA-256, an earlier draft. So
                      messages are made here from the specification, broken in the same ways as those, and
                      pyca's Cobblestone-256 is the judge: whether each opens, and how much of it a
                      streaming reader may release. Full chunks encrypt to zeros, to keep the file small;
                      [hex, count] is a run.
envelope.json         our own format, from docs/envelope.md: header, context encoding, then the message by
                      HMAC (standard library) and AES-GCM (cryptography). Each is also opened with
                      cryptography's own Cobblestone-256 before it is written.
kinds.json            the same for what is not a caller's data: wrapped data keys, imported MAC secrets, credentials.
mac-keys.json         HMAC keys that are derived from data keys, from docs/envelope.md.
"""

import base64, hashlib, hmac, itertools, json, pathlib, struct, uuid

from cryptography.exceptions import InvalidTag
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = pathlib.Path(__file__).parent
CHUNK = 16 * 1024


def runs(data):
    """[[hex, count], ...]: long runs of one byte are folded, the rest is literal."""
    out, literal = [], b""
    for byte, group in itertools.groupby(data):
        n = len(list(group))
        if n < 32:
            literal += bytes([byte]) * n
            continue
        if literal:
            out.append([literal.hex(), 1])
            literal = b""
        out.append([f"{byte:02x}", n])
    return out + ([[literal.hex(), 1]] if literal else [])


def expand(prk, info, length):
    okm, block = b"", b""
    for i in itertools.count(1):
        if len(okm) >= length:
            return okm[:length]
        block = hmac.digest(prk, block + info + bytes([i]), "sha512")
        okm += block


def derive(key, context, salt):
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    okm = expand(key, info, 32 + 12 + 32)
    return AESGCM(okm[:32]), int.from_bytes(okm[32:44], "big"), okm[44:]


def seal(key, context, salt, plaintext):
    aead, base, commitment = derive(key, context, salt)
    out = salt + commitment
    for i in range(len(plaintext) // CHUNK + 1):
        nonce = (base ^ i).to_bytes(12, "big")
        out += aead.encrypt(nonce, plaintext[i * CHUNK : (i + 1) * CHUNK], None)
    return out


def zeros(key, context, salt, length):
    """The plaintext of which every full chunk encrypts to zeros; the rest is text."""
    aead, base, _ = derive(key, context, salt)
    full = [aead.encrypt((base ^ i).to_bytes(12, "big"), bytes(CHUNK), None)[:CHUNK] for i in range(length // CHUNK)]
    return b"".join(full) + (b"claviger" * CHUNK)[: length % CHUNK]


def message_vectors():
    sealed = CHUNK + 16
    at = lambda i: 56 + i * sealed
    flip = lambda m, i: m[:i] + bytes([m[i] ^ 1]) + m[i + 1 :]
    keep = lambda m: m
    # name, context, plaintext length, what is done to the message
    cases = [
        ("empty", b"", 0, keep),
        ("short", b"", 7, keep),
        ("last_chunk_empty", b"", CHUNK, keep),
        ("two_chunks", b"", CHUNK + 1, keep),
        ("two_chunks_full", b"", 2 * CHUNK, keep),
        ("three_chunks", b"", 2 * CHUNK + 1, keep),
        ("257_chunks", b"", 256 * CHUNK + 1, keep),
        ("context", b"test context", 7, keep),
        ("context_with_null", b"test\0context", 7, keep),
        ("bad_ciphertext", b"", 7, lambda m: flip(m, 56)),
        ("bad_tag", b"", 7, lambda m: flip(m, len(m) - 1)),
        ("bad_first_chunk", b"", CHUNK + 7, lambda m: flip(m, at(0))),
        ("bad_second_chunk", b"", CHUNK + 7, lambda m: flip(m, at(1))),
        ("bad_second_chunk_full", b"", 2 * CHUNK, lambda m: flip(m, at(1))),
        ("bad_empty_final_chunk", b"", CHUNK, lambda m: flip(m, at(1))),
        ("missing_tag", b"", 7, lambda m: m[:-16]),
        ("shorter_than_tag", b"", 7, lambda m: m[: 56 + 15]),
        ("no_chunks", b"", 7, lambda m: m[:56]),
        ("trailing_long", b"", CHUNK, lambda m: m[: at(1)] + bytes(20)),
        ("trailing_short", b"", CHUNK, lambda m: m[: at(1)] + bytes(12)),
        ("wrong_commitment", b"", 7, lambda m: flip(m, 24)),
        ("wrong_salt", b"", 7, lambda m: flip(m, 0)),
        ("no_bytes", b"", 7, lambda m: b""),
        ("part_of_salt", b"", 7, lambda m: m[:10]),
        ("salt_only", b"", 7, lambda m: m[:24]),
        ("part_of_commitment", b"", 7, lambda m: m[:40]),
        ("cut_at_chunk_boundary", b"", CHUNK + 7, lambda m: m[: at(1)]),
        ("cut_in_chunk", b"", 2 * CHUNK, lambda m: m[: at(1) + 100]),
        ("swapped_chunks", b"", 2 * CHUNK + 7, lambda m: m[:56] + m[at(1) : at(2)] + m[at(0) : at(1)] + m[at(2) :]),
        ("repeated_chunk", b"", 2 * CHUNK + 7, lambda m: m[: at(1)] + m[at(0) : at(1)] + m[at(2) :]),
        ("extended_after_final", b"", CHUNK + 7, lambda m: m + bytes(sealed)),
    ]
    for name, context, length, change in cases:
        seed = hashlib.sha512(b"message " + name.encode()).digest()
        key, salt = seed[:32], seed[32:56]
        plaintext = zeros(key, context, salt, length)
        yield judged(name, key, context, change(seal(key, context, salt, plaintext)))
    key, salt = bytes(range(32)), bytes(24)
    message = seal(key, b"a", salt, b"message")
    yield judged("wrong_context", key, b"b", message)
    yield judged("wrong_key", bytes(32), b"a", message)


def judged(name, key, context, message):
    """What pyca's implementation says about a message, fed chunk by chunk."""
    d, released, opens = Cobblestone256Decryptor(key, context), b"", True
    pieces = [message[:56]] + [message[i : i + CHUNK + 16] for i in range(56, len(message), CHUNK + 16)]
    try:
        for piece in pieces:
            released += d.update(piece)
        released += d.finalize()
    except InvalidTag:
        opens = False
    return {
        "name": name,
        "opens": opens,
        "key": key.hex(),
        "context": context.hex(),
        "ciphertext": runs(message),
        "released": len(released),
        "released_sha256": hashlib.sha256(released).hexdigest(),
    }


def fields(*items):
    return b"".join(struct.pack(">Q", len(item)) + item for item in items)


DATA, WRAPPED_KEY, MAC_SECRET = (1, b"claviger envelope"), (2, b"claviger wrapped data key"), (3, b"claviger imported mac secret")
CREDENTIAL = (4, b"claviger credential")


def data_vectors():
    cases = [
        ("empty", "acme", {}, 0),
        ("one-byte", "acme", {}, 1),
        ("aad", "system", {"user": "42", "broker": "ibkr", "": "", "ünï": "cødé"}, 64),
        ("chunk-less-one", "acme", {"a": "b"}, CHUNK - 1),
        ("one-chunk", "acme", {"a": "b"}, CHUNK),
        ("chunk-and-one", "acme", {"a": "b"}, CHUNK + 1),
        ("257-chunks", "acme", {}, 256 * CHUNK + 7),
    ]
    for case in cases:
        yield our_vector(DATA, *case)


def kind_vectors():
    for kind, name, tenant, aad, length in [
        (WRAPPED_KEY, "wrapped-16", "acme", {}, 16),
        (WRAPPED_KEY, "wrapped-32", "acme", {"document": "invoice 4711"}, 32),
        (WRAPPED_KEY, "wrapped-64", "system", {"b": "2", "a": "1"}, 64),
        (MAC_SECRET, "secret-16", "acme", {}, 16),
        (MAC_SECRET, "secret-512", "acme", {}, 512),
        (CREDENTIAL, "credential", "acme", {"value": "1", "credential": "2", "tenant": "acme", "owner": "3",
                                            "provider": "alpaca", "environment": "testing"}, 90),
    ]:
        yield {"version": kind[0], **our_vector(kind, name, tenant, aad, length)}


def our_vector(kind, name, tenant, aad, length):
    version, domain = kind
    seed = hashlib.sha512(name.encode()).digest()
    key, salt = hashlib.sha256(seed).digest(), seed[32:56]
    key_id = uuid.UUID(bytes=seed[:16], version=4)
    kid = base64.urlsafe_b64encode(hashlib.sha256(seed + b"kid").digest()).rstrip(b"=")
    # Byte i of the plaintext is i * i + i // 256, so that no chunk is like another.
    plaintext = bytes((i * i + i // 256) % 256 for i in range(length))
    pairs = [part.encode() for pair in sorted(aad.items(), key=lambda p: p[0].encode()) for part in pair]
    context = fields(domain, bytes([version]), tenant.encode(), key_id.bytes, kid, *pairs)
    message = seal(key, context, salt, plaintext)
    d = Cobblestone256Decryptor(key, context)
    assert d.update(message) + d.finalize() == plaintext
    ciphertext = b"CLV" + bytes([version]) + bytes([len(kid)]) + kid + message
    vector = {
        "name": name,
        "tenant": tenant,
        "key_id": str(key_id),
        "kid": kid.decode(),
        "aad": aad,
        "key": key.hex(),
        "salt": salt.hex(),
        "context": context.hex(),
        "length": length,
        "ciphertext_sha256": hashlib.sha256(ciphertext).hexdigest(),
    }
    if length <= 64:
        vector["ciphertext"] = ciphertext.hex()
    return vector


def mac_key_vectors():
    for algorithm, length in [("HS256", 32), ("HS512", 64)]:
        seed = hashlib.sha512(algorithm.encode()).digest()
        key_id, kid = uuid.UUID(bytes=seed[:16], version=4), "kid-1"
        info = fields(b"claviger mac key", algorithm.encode(), b"acme", key_id.bytes, kid.encode())
        yield {
            "algorithm": algorithm,
            "tenant": "acme",
            "key_id": str(key_id),
            "kid": kid,
            "key": seed[32:].hex(),
            "mac_key": expand(seed[32:], info, length).hex(),
        }


def write(name, vectors):
    rows = ",\n".join(json.dumps(v, ensure_ascii=False) for v in vectors)
    (HERE / name).write_text(f"[\n{rows}\n]\n")


write("cobblestone-256.json", message_vectors())
write("envelope.json", data_vectors())
write("kinds.json", kind_vectors())
write("mac-keys.json", mac_key_vectors())
