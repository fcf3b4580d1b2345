"""AWS KMS for tests: moto, behind a thin layer that does what AWS does and moto does not.

moto signs with disabled and deletion-pending keys, hashes again what was hashed already, knows no throttling and
forgives ARNs of other accounts. The layer enforces key state, key usage and ARNs, signs digests as they are, shows new
keys late, lists in pages, and throttles, delays and refuses on demand. Faults belong to a region, so that tests share
one server, and spare AKIDOPERATOR, who is the person at the AWS console.

Prints its port. Ends when its standard input does. `POST /faults/REGION` sets the faults, `GET` shows what was asked.
"""

import base64
import collections
import json
import math
import os
import re
import sys
import threading
import time

# Each test has a region of its own, of any name. moto reads this when it is imported.
os.environ["MOTO_ALLOW_NONEXISTENT_REGION"] = "true"

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, utils
from moto.kms.models import kms_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT = "123456789012"
ED25519 = "ECC_NIST_EDWARDS25519"
HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
CURVES = {
    "ECC_NIST_P256": ["ECDSA_SHA_256"],
    "ECC_NIST_P384": ["ECDSA_SHA_384"],
    "ECC_NIST_P521": ["ECDSA_SHA_512"],
    ED25519: ["ED25519_SHA_512", "ED25519_PH_SHA_512"],
}
# What the key's state forbids; the other operations work in every state.
USES = {"Sign", "Verify", "GetPublicKey", "Encrypt", "Decrypt", "GenerateDataKey", "ReEncrypt"}
CHANGES = {"CreateAlias", "ScheduleKeyDeletion", "DisableKey", "EnableKey", "TagResource"}


class Refusal(Exception):
    def __init__(self, code, text="", status=400):
        self.code, self.text, self.status = code, text, status


class Ed25519Key:
    """In the shape of moto's keys."""

    def __init__(self):
        self.private_key = ed25519.Ed25519PrivateKey.generate()

    def public_key(self):
        return self.private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class Region:
    def __init__(self, name):
        self.name = name
        self.keys = kms_backends[ACCOUNT][name]
        self.lock = threading.Lock()
        self.asked = collections.Counter()
        self.refused = collections.Counter()
        self.born = {}
        self.faults = {}
        self.tokens, self.filled = math.inf, time.monotonic()

    def fault(self, name, default=None):
        return self.faults.get(name, default)

    def misbehave(self, operation):
        time.sleep(self.fault("latency_ms", 0) / 1000)
        if operation in self.fault("deny", []):
            raise Refusal("AccessDeniedException", f"not authorized to perform: kms:{operation}")
        with self.lock:
            self.asked[operation] += 1
            for name, code, status in [
                ("throttle", "ThrottlingException", 400),
                ("internal", "KMSInternalException", 500),
            ]:
                left = self.fault(name, {}).get(operation, 0)
                if left:
                    self.faults[name][operation] = left - 1
                    self.refused[code] += 1
                    raise Refusal(code, "on demand", status)
            self.limit(operation)

    def limit(self, operation):
        """A request quota as AWS has it: so many per second, and as many at once."""
        rate = self.fault("rate", {}).get(operation)
        if rate is None:
            return
        now = time.monotonic()
        self.tokens = min(rate, self.tokens + (now - self.filled) * rate)
        self.filled = now
        if self.tokens < 1:
            self.refused["ThrottlingException"] += 1
            raise Refusal("ThrottlingException", "You have exceeded the rate at which you may call KMS.")
        self.tokens -= 1

    def key(self, name):
        """The key that an id, ARN or alias names, as the caller's account and region see it."""
        missing = Refusal("NotFoundException", f"{name} is not found.")
        if name.startswith("arn:"):
            _, _, _, region, account, name = name.split(":", 5)
            if region != self.name:
                raise Refusal("NotFoundException", f"Invalid arn {region}")
            if account != ACCOUNT:
                raise Refusal("AccessDeniedException", "not authorized: no resource-based policy allows it")
            name = name.removeprefix("key/")
        if name.startswith("alias/"):
            name = next((key.id for key in list(self.keys.keys.values()) if name in key.aliases), None)
        key = self.keys.keys.get(name)
        age = (time.monotonic() - self.born.get(name, 0)) * 1000
        if key is None or age < self.fault("consistency_ms", 0):
            raise missing
        return key

    def check_state(self, operation, key):
        if operation in self.fault("deny_key", {}).get(key.arn, []):
            raise Refusal("AccessDeniedException", f"not authorized to perform: kms:{operation} on {key.arn}")
        if key.arn in self.fault("store_away", []) and operation in USES:
            raise Refusal("KMSInvalidStateException", f"{key.arn} is unavailable.")
        if key.arn in self.fault("material_away", []) and operation in USES:
            raise Refusal("KeyUnavailableException", "", 500)
        if key.key_state == "PendingDeletion" and operation in USES | CHANGES:
            raise Refusal("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        if key.key_state == "Disabled" and operation in USES:
            raise Refusal("DisabledException", f"{key.arn} is disabled.")
        wanted = {"Sign": "SIGN_VERIFY", "Encrypt": "ENCRYPT_DECRYPT", "Decrypt": "ENCRYPT_DECRYPT"}.get(operation)
        if wanted not in (None, key.key_usage):
            raise Refusal("InvalidKeyUsageException", f"{key.arn} key usage is {key.key_usage}")
        if operation == "GetPublicKey" and key.key_spec == "SYMMETRIC_DEFAULT":
            raise Refusal("UnsupportedOperationException", f"{key.arn} is symmetric")

    def list_keys(self, asked):
        ids = sorted(list(self.keys.keys))
        size = min(asked.get("Limit", 100), self.fault("page", 1000))
        begin = int(asked.get("Marker") or 0)
        page = [{"KeyId": id, "KeyArn": self.keys.keys[id].arn} for id in ids[begin : begin + size]]
        end = begin + size
        more = {"Truncated": True, "NextMarker": str(end)} if end < len(ids) else {"Truncated": False}
        return {"Keys": page} | more

    def sign(self, key, asked):
        message = base64.b64decode(asked["Message"])
        algorithm = asked["SigningAlgorithm"]
        allowed = CURVES.get(key.key_spec) or [
            f"RSASSA_{scheme}_SHA_{bits}" for scheme in ("PSS", "PKCS1_V1_5") for bits in HASHES
        ]
        if algorithm not in allowed:
            raise Refusal("InvalidKeyUsageException", f"{algorithm} is incompatible with key spec {key.key_spec}.")
        kind = asked.get("MessageType", "RAW")
        if not 1 <= len(message) <= 4096:
            raise Refusal("ValidationException", "Message must have 1 to 4096 bytes")
        private = key.private_key.private_key
        if algorithm == "ED25519_SHA_512":
            if kind != "RAW":
                raise Refusal("ValidationException", "ED25519_SHA_512 requires RAW")
            return private.sign(message)
        hash = HASHES[algorithm[-3:]]()
        if kind == "DIGEST":
            if len(message) != hash.digest_size:
                raise Refusal("ValidationException", f"Digest is invalid length for algorithm {algorithm}.")
            hash = utils.Prehashed(hash)
        if algorithm.startswith("ECDSA"):
            return private.sign(message, ec.ECDSA(hash))
        inner = HASHES[algorithm[-3:]]()
        pss = padding.PSS(padding.MGF1(inner), inner.digest_size)
        return private.sign(message, pss if "PSS" in algorithm else padding.PKCS1v15(), hash)


class Layer:
    def __init__(self, moto):
        self.moto, self.regions, self.lock = moto, {}, threading.Lock()

    def region(self, name):
        with self.lock:
            return self.regions.setdefault(name, Region(name))

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        if path.startswith("/faults/"):
            answer = self.control(path.removeprefix("/faults/"), body)
            return reply(start_response, 200, answer)
        operation = environ.get("HTTP_X_AMZ_TARGET", "").removeprefix("TrentService.")
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/kms/", environ.get("HTTP_AUTHORIZATION", ""))
        if not operation or not scope:
            # Another service, for example STS.
            environ["wsgi.input"] = Body(body)
            return self.moto(environ, start_response)
        try:
            answer = self.kms(self.region(scope[1]), operation, json.loads(body), environ)
            return reply(start_response, 200, answer)
        except Refusal as refusal:
            problem = {"__type": refusal.code, "message": refusal.text}
            return reply(start_response, refusal.status, problem)

    def control(self, name, body):
        region = self.region(name)
        with region.lock:
            if body:
                region.faults = json.loads(body)
                region.asked.clear()
                region.refused.clear()
                region.tokens, region.filled = math.inf, time.monotonic()
            return {"asked": region.asked, "refused": region.refused}

    def kms(self, region, operation, asked, environ):
        if "Credential=AKIDOPERATOR/" not in environ.get("HTTP_AUTHORIZATION", ""):
            region.misbehave(operation)
        answer = self.obey(region, operation, asked, environ)
        with region.lock:
            left = region.fault("lose", {}).get(operation, 0)
            if left:
                region.faults["lose"][operation] = left - 1
        if left:
            time.sleep(2)
            raise Refusal("KMSInternalException", "the answer was lost", 500)
        return answer

    def obey(self, region, operation, asked, environ):
        key = None
        for name in ("KeyId", "TargetKeyId"):
            if name in asked:
                key = region.key(asked[name])
                # moto finds keys by their bare id only, in some operations.
                asked[name] = key.id
        if key is not None:
            region.check_state(operation, key)
        if operation == "Sign":
            signature = base64.b64encode(region.sign(key, asked)).decode()
            return {"KeyId": key.arn, "Signature": signature, "SigningAlgorithm": asked["SigningAlgorithm"]}
        if operation == "ListKeys":
            return region.list_keys(asked)
        if operation == "CreateKey":
            asked.setdefault("KeyUsage", "ENCRYPT_DECRYPT")
        is_ed25519 = operation == "CreateKey" and asked.get("KeySpec") == ED25519
        if is_ed25519:
            if not region.fault("ed25519", False):
                raise Refusal("ValidationException", "Value at 'keySpec' failed to satisfy constraint: enum value set")
            asked["KeySpec"] = "ECC_NIST_P256"
        answer = self.ask_moto(operation, asked, environ)
        if operation == "CreateKey":
            key = region.keys.keys[answer["KeyMetadata"]["KeyId"]]
            region.born[key.id] = time.monotonic()
            if is_ed25519:
                key.key_spec, key.private_key = ED25519, Ed25519Key()
                answer["KeyMetadata"]["KeySpec"] = ED25519
        elif operation == "DescribeKey" and key.arn in region.fault("store_away", []):
            answer["KeyMetadata"] |= {"KeyState": "Unavailable", "Enabled": False}
        elif operation == "GetPublicKey":
            answer |= {"KeyId": key.arn, "KeySpec": key.key_spec}
        elif operation == "ScheduleKeyDeletion":
            answer |= {"KeyId": key.arn, "KeyState": key.key_state}
        return answer

    def ask_moto(self, operation, asked, environ):
        body = json.dumps(asked).encode()
        environ = environ | {"wsgi.input": Body(body), "CONTENT_LENGTH": str(len(body))}
        status = []
        parts = self.moto(environ, lambda line, headers, exc=None: status.append(int(line.split()[0])))
        answer = json.loads(b"".join(parts) or b"null") or {}
        if status[0] == 200:
            return answer
        code = answer.get("__type", "KMSInternalException").rpartition("#")[2]
        if operation == "Decrypt" and code == "AccessDeniedException":
            # The request names its key, so AWS says that it is the wrong one.
            code = "IncorrectKeyException"
        raise Refusal(code, answer.get("message") or answer.get("Message") or "", status[0])


class Body:
    def __init__(self, body):
        self.body = body

    def read(self, size=-1):
        size = len(self.body) if size is None or size < 0 else size
        part, self.body = self.body[:size], self.body[size:]
        return part

    def readline(self, *_):
        return self.read()


def reply(start_response, status, answer):
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {'OK' if status == 200 else 'Refused'}", headers)
    return [body]


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


def main():
    threading.Thread(target=end_with_parent, daemon=True).start()
    layer = Layer(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, layer, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()


main()
