"""A partner's program: finds the endpoints, gets tokens with authlib, and verifies them with joserfc and the JWK Set.

JSON on standard input, JSON on standard output:
  {url, ca, issuer, key: {id, secret}, wanted: [{audience, scope}, ...]}
  -> [{token, expires_in, header, claims}, ...]
"""

import json
import sys
import warnings

import requests
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.jwk import KeySet

warnings.simplefilter("ignore")


def main():
    given = json.load(sys.stdin)
    url, ca, issuer = given["url"], given["ca"], given["issuer"]

    def get(address):
        # A test reaches the issuer under another address.
        found = requests.get(address.replace(issuer, url), verify=ca, timeout=60)
        found.raise_for_status()
        return found.json()

    metadata = get(issuer + "/.well-known/oauth-authorization-server")
    assert metadata["issuer"] == issuer, metadata
    assert "client_secret_basic" in metadata["token_endpoint_auth_methods_supported"], metadata
    keys = KeySet.import_key_set(get(metadata["jwks_uri"]))
    endpoint = metadata["token_endpoint"].replace(issuer, url)
    session = OAuth2Session(
        given["key"]["id"], given["key"]["secret"], token_endpoint_auth_method="client_secret_basic"
    )
    session.verify = ca
    # A bundle that the environment names would count for more.
    session.trust_env = False

    def token(wanted):
        answer = session.fetch_token(endpoint, grant_type="client_credentials", **wanted)
        text = answer["access_token"]
        decoded = jwt.decode(text, keys, algorithms=["ES256"])
        rules = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": wanted["audience"]},
            exp={"essential": True},
            sub={"essential": True},
            jti={"essential": True},
        )
        rules.validate(decoded.claims)
        return {
            "token": text,
            "expires_in": answer["expires_in"],
            "header": decoded.header,
            "claims": decoded.claims,
        }

    json.dump([token(wanted) for wanted in given["wanted"]], sys.stdout)


main()
