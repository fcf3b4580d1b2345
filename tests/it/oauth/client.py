"""Uses the OAuth endpoints as partners do: with authlib and requests-oauthlib, which share no code with the daemon.

JSON on standard input, JSON on standard output:
  {url, ca, issuer, secret: {id, secret}, api_key: {id, secret}, assertion: {id, pem}}
  -> one token response per way to authenticate, and what introspection, revocation and discovery answered
"""

import json
import sys
import time
import warnings

import requests
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from joserfc.jwk import ECKey
from oauthlib.oauth2 import BackendApplicationClient
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session as OauthlibSession

warnings.simplefilter("ignore")


def main():
    given = json.load(sys.stdin)
    url, ca = given["url"], given["ca"]
    token_url = url + "/oauth/token"
    seen = {}

    def trusting(made):
        made.verify = ca
        # A bundle that the environment names would come first.
        made.trust_env = False
        return made

    def session(client, method, **more):
        made = OAuth2Session(client["id"], client.get("secret"), token_endpoint_auth_method=method, **more)
        return trusting(made)

    basic = session(given["secret"], "client_secret_basic", scope="orders.read")
    seen["authlib_basic"] = dict(basic.fetch_token(token_url, grant_type="client_credentials"))
    post = session(given["secret"], "client_secret_post")
    seen["authlib_post"] = dict(post.fetch_token(token_url, grant_type="client_credentials"))
    key = session(given["api_key"], "client_secret_basic")
    seen["authlib_api_key"] = dict(key.fetch_token(token_url, grant_type="client_credentials"))

    # The daemon's name for itself is not the address that a test reaches it by. The library's own hour is too long.
    signer = PrivateKeyJWT(
        given["issuer"] + "/oauth/token",
        claims={"exp": int(time.time()) + 60},
        headers={"kid": "one"},
        alg="ES256",
    )
    pair = ECKey.import_key(given["assertion"]["pem"])
    asserting = OAuth2Session(given["assertion"]["id"], pair, token_endpoint_auth_method=signer)
    trusting(asserting)
    seen["authlib_private_key_jwt"] = dict(asserting.fetch_token(token_url, grant_type="client_credentials"))

    client = BackendApplicationClient(client_id=given["secret"]["id"])
    oauthlib = OauthlibSession(client=client)
    auth = HTTPBasicAuth(given["secret"]["id"], given["secret"]["secret"])
    seen["requests_oauthlib"] = dict(oauthlib.fetch_token(token_url, auth=auth, verify=ca))

    token = basic.fetch_token(token_url, grant_type="client_credentials")["access_token"]
    seen["introspected"] = basic.introspect_token(url + "/oauth/introspect", token=token).json()
    seen["revoked"] = basic.revoke_token(url + "/oauth/revoke", token=token).status_code
    seen["introspected_again"] = basic.introspect_token(url + "/oauth/introspect", token=token).json()

    def failure(made, **parameters):
        try:
            made.fetch_token(token_url, grant_type="client_credentials", **parameters)
        except OAuthError as error:
            return error.error
        return "no error"

    wrong = {"id": given["secret"]["id"], "secret": given["api_key"]["secret"]}
    seen["wrong_secret"] = failure(session(wrong, "client_secret_basic"))
    seen["wrong_scope"] = failure(session(given["secret"], "client_secret_basic"), scope="orders.delete")

    found = requests.get(url + "/.well-known/oauth-authorization-server", verify=ca, timeout=30).json()
    AuthorizationServerMetadata(found).validate_issuer()
    seen["metadata"] = found
    json.dump(seen, sys.stdout)


main()
