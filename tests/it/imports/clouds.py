"""Secret managers for tests: AWS Secrets Manager (moto, behind a check of every signature by botocore), and stand-ins that
speak as much of Azure Key Vault and Google Secret Manager as their REST documentation says an import needs.

Prints its port. Ends when its standard input does. `GET /asked` lists the secrets that were fetched. Azure is below
/azure, Google below /google, AWS is everything else.
"""

import base64
import io
import json
import os
import re
import sys
import threading
import urllib.parse

os.environ["AWS_ACCESS_KEY_ID"] = "AKIDTEST"
os.environ["AWS_SECRET_ACCESS_KEY"] = "secret"

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.secretsmanager.models import secretsmanager_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REGION = "eu-central-1"
TOKEN = "Bearer planted-token"
SECRETS = {
    "prod-OPENAI-API-KEY": "sk-" + "a" * 48,
    "prod-ANTHROPIC-API-KEY": "sk-ant-api03-" + "b" * 95,
    "prod-database-password": "planted-other-secret",
}
asked = []


def name_of(secret):
    """Azure and Google have flat names, and take the last part."""
    return secret.removeprefix("prod-")


def aws_names():
    return {f"prod/{name_of(secret).replace('-', '_')}": value for secret, value in SECRETS.items()}


def fill_moto():
    backend = secretsmanager_backends["123456789012"][REGION]
    bundle = json.dumps({"MISTRAL_API_KEY": "m" * 32})
    for name, value in {**aws_names(), "prod/bundle": bundle}.items():
        backend.create_secret(
            name=name,
            secret_string=value,
            secret_binary=None,
            description=None,
            tags=[],
            kms_key_id=None,
            client_request_token=None,
            replica_regions=[],
            force_overwrite=False,
        )


def is_signed(environ, body):
    """The signature, computed again by botocore."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=AKIDTEST/\d{8}/([^/]+)/secretsmanager/aws4_request, "
        r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
        header,
    )
    if not found or found[1] != REGION:
        return False
    headers = {}
    for name in found[2].split(";"):
        key = {"content-type": "CONTENT_TYPE"}.get(name, "HTTP_" + name.upper().replace("-", "_"))
        headers[name] = environ[key]
    request = AWSRequest("POST", f"http://{environ['HTTP_HOST']}/", headers=headers, data=body)
    request.context["timestamp"] = headers["x-amz-date"]
    signer = SigV4Auth(Credentials("AKIDTEST", "secret"), "secretsmanager", REGION)
    canonical = signer.canonical_request(request)
    return signer.signature(signer.string_to_sign(request, canonical), request) == found[3]


class Clouds:
    def __init__(self, moto):
        self.moto = moto

    def __call__(self, environ, start_response):
        path, query = environ["PATH_INFO"], urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
        base = f"http://{environ['HTTP_HOST']}"
        if path == "/asked":
            return reply(start_response, 200, asked)
        if path.startswith(("/azure", "/google")) and environ.get("HTTP_AUTHORIZATION") != TOKEN:
            return reply(start_response, 401, {"error": "planted-error-text"})
        if path.startswith("/azure"):
            return reply(start_response, *azure(base, path, query))
        if path.startswith("/google"):
            return reply(start_response, *google(path, query))
        return self.aws(environ, start_response)

    def aws(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if not is_signed(environ, body):
            return reply(start_response, 403, {"__type": "InvalidSignatureException"})
        if environ["HTTP_X_AMZ_TARGET"].endswith("GetSecretValue"):
            asked.append(json.loads(body)["SecretId"])
        return self.moto(environ | {"wsgi.input": io.BytesIO(body)}, start_response)


def azure(base, path, query):
    """Two names a page; one vault, /azure/elsewhere, sends readers on to another host."""
    if query.get("api-version") != ["7.4"]:
        return 400, {}
    vault, _, rest = path.removeprefix("/azure/").partition("/secrets")
    names = sorted(SECRETS)
    if vault == "elsewhere":
        return 200, {"value": [], "nextLink": "http://localhost:1/azure/next?api-version=7.4"}
    if not rest:
        at = int(query.get("$skiptoken", ["0"])[0])
        item = lambda name: {"id": f"https://v.vault.azure.net/secrets/{name_of(name)}", "attributes": {"enabled": True}}
        page = {"value": [item(name) for name in names[at : at + 2]], "nextLink": None}
        if at + 2 < len(names):
            page["nextLink"] = f"{base}/azure/{vault}/secrets?api-version=7.4&$skiptoken={at + 2}"
        else:
            off = {"id": "https://v.vault.azure.net/secrets/MISTRAL-API-KEY", "attributes": {"enabled": False}}
            page["value"].append(off)
        return 200, page
    name = rest.removeprefix("/")
    value = SECRETS.get(f"prod-{name}")
    asked.append(name)
    return (200, {"value": value, "id": "x"}) if value else (404, {})


def google(path, query):
    rest = path.removeprefix("/google/v1/projects/p1/secrets")
    names = sorted(SECRETS)
    if not rest:
        at = int(query.get("pageToken", ["0"])[0] or 0)
        page = {"secrets": [{"name": f"projects/1/secrets/{name}"} for name in names[at : at + 1]]}
        if at + 1 < len(names):
            page["nextPageToken"] = str(at + 1)
        return 200, page
    found = re.fullmatch(r"/([^/]+)/versions/latest:access", rest)
    if not found or found[1] not in SECRETS:
        return 404, {}
    asked.append(found[1])
    data = base64.b64encode(SECRETS[found[1]].encode()).decode()
    return 200, {"name": "x", "payload": {"data": data}}


def reply(start_response, status, answer):
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
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
    fill_moto()
    clouds = Clouds(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, clouds, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()


main()
