//! Stock OAuth libraries that share no code with the daemon: authlib and requests-oauthlib of Python (client.py).

use claviger::grpc::proto::*;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::realm::Realm;
use crate::foreign::script;

// R-OAUTH-1
#[tokio::test]
async fn stock_libraries_get_introspect_and_revoke_tokens() {
    let realm = Realm::new().await;
    let (web, secret) = realm.secret("web").await;
    let pair = KeyPair::generate().expect("a P-256 key");
    let raw = pair.public_key_raw();
    let b64 = |bytes: &[u8]| {
        use base64::Engine as _;
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
    };
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "one", "x": b64(&raw[1..33]), "y": b64(&raw[33..]) });
    let mut request = realm.request("batch", ClientAuthMethod::PrivateKeyJwt);
    request.jwks = json!({ "keys": [jwk] }).to_string();
    let batch = realm.client(request).await;
    let (key_id, key) = realm.api_key("", &["can.use_users"]).await;
    let input = json!({
        "url": format!("https://{}", realm.daemon.addresses().public),
        "ca": realm.daemon.path("certs/ca.crt"),
        "issuer": "https://issuer.test",
        "secret": { "id": web.id, "secret": secret },
        "api_key": { "id": key_id, "secret": key },
        "assertion": { "id": batch.id, "pem": pair.serialize_pem() },
    });
    let seen = script("oauth/client.py", &[], &input).await;
    for (library, client) in [
        ("authlib_basic", &web.id),
        ("authlib_post", &web.id),
        ("authlib_private_key_jwt", &batch.id),
        ("authlib_api_key", &key_id),
        ("requests_oauthlib", &web.id),
    ] {
        let token = seen[library]["access_token"].as_str();
        let token = token.unwrap_or_else(|| panic!("{library}: {seen}"));
        assert_eq!(seen[library]["token_type"], "Bearer", "{library}");
        let claims = realm.verified(token, "api").await;
        assert_eq!(claims.client_id, *client, "{library}");
        assert_eq!(claims.subject, realm.partner, "{library}");
    }
    assert_eq!(seen["introspected"]["active"], true, "{seen}");
    assert_eq!(seen["introspected"]["client_id"], web.id.as_str());
    assert_eq!(seen["revoked"], 200);
    assert_eq!(seen["introspected_again"], json!({ "active": false }));
    // The library's own exception, with our code in it.
    assert_eq!(seen["wrong_secret"], "invalid_client", "{seen}");
    assert_eq!(seen["wrong_scope"], "invalid_scope", "{seen}");
    let metadata: &Value = &seen["metadata"];
    assert_eq!(metadata["issuer"], "https://issuer.test");
    realm.daemon.stop().await;
}
