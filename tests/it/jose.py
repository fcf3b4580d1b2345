"""Verifies what Claviger made with libraries that share no code with it: joserfc and cryptography.

One command, JSON on standard input, JSON on standard output:
  signatures  [{alg, pem, jwk, message, signature}, ...] with base64url bytes
              -> [{pem, jwk, forged}, ...]: accepted with either form of the key; accepted after a change
  token       {url, ca, token, issuer, audience}: fetches the JWK Set, verifies the token and changed copies of it
              -> {header, claims, forged: [accepted?, ...]}
"""

import base64
import json
import ssl
import sys
import urllib.request
import warnings

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet

warnings.simplefilter("ignore")

HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


def unbase64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def pem_accepts(pem, alg, message, signature):
    key = serialization.load_pem_public_key(pem.encode())
    try:
        if alg == "EdDSA":
            key.verify(signature, message)
            return True
        hash = HASHES[alg[2:]]()
        if alg.startswith("ES"):
            half = len(signature) // 2
            r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
            if half != (key.curve.key_size + 7) // 8:
                return False
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hash))
        elif alg.startswith("RS"):
            key.verify(signature, message, padding.PKCS1v15(), hash)
        else:
            pss = padding.PSS(mgf=padding.MGF1(hash), salt_length=hash.digest_size)
            key.verify(signature, message, pss, hash)
        return True
    except InvalidSignature:
        return False


def jwk_accepts(jwk, alg, message, signature):
    """The message is the signing input of a JWS, so that a JOSE library can judge the signature."""
    try:
        key = JWKRegistry.import_key(jwk)
        jws.deserialize_compact(message + b"." + base64url(signature).encode(), key, algorithms=[alg])
        return True
    except JoseError:
        return False


def signatures(items):
    def judge(item):
        jwk = json.loads(item["jwk"])
        message, signature = unbase64(item["message"]), unbase64(item["signature"])
        alg = item["alg"]
        forged = [
            pem_accepts(item["pem"], alg, message, flipped(signature)),
            pem_accepts(item["pem"], alg, flipped(message), signature),
            jwk_accepts(jwk, alg, message, flipped(signature)),
        ]
        return {
            "pem": pem_accepts(item["pem"], alg, message, signature),
            "jwk": jwk_accepts(jwk, alg, message, signature),
            "forged": any(forged),
        }

    return [judge(item) for item in items]


def fetch(url, ca):
    trust = ssl.create_default_context(cafile=ca)
    with urllib.request.urlopen(url, context=trust, timeout=60) as answer:
        return json.load(answer)


def token(job):
    keys = KeySet.import_key_set(fetch(job["url"], job["ca"]))
    rules = jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": job["issuer"]},
        aud={"essential": True, "value": job["audience"]},
        exp={"essential": True},
        sub={"essential": True},
        jti={"essential": True},
    )

    def verified(text):
        decoded = jwt.decode(text, keys, algorithms=["ES256", "EdDSA", "RS256"])
        rules.validate(decoded.claims)
        return decoded

    def accepted(text):
        try:
            verified(text)
            return True
        except (JoseError, ValueError):
            return False

    header, claims, signature = job["token"].split(".")

    def changed(part, **values):
        return base64url(json.dumps({**json.loads(unbase64(part)), **values}).encode())

    forged = [
        f"{header}.{claims}.{base64url(flipped(unbase64(signature)))}",
        f"{header}.{changed(claims, sub='somebody-else')}.{signature}",
        f"{header}.{changed(claims, exp=4102444800)}.{signature}",
        f"{changed(header, kid='unknown')}.{claims}.{signature}",
        f"{changed(header, alg='none')}.{claims}.",
        f"{changed(header, alg='HS256')}.{claims}.{signature}",
    ]
    good = verified(job["token"])
    return {"header": good.header, "claims": good.claims, "forged": [accepted(text) for text in forged]}


if __name__ == "__main__":
    command = {"signatures": signatures, "token": token}[sys.argv[1]]
    json.dump(command(json.load(sys.stdin)), sys.stdout)
