//! Discovery (RFC 8414), and what the listener counts.

use claviger::model::{ROUTES, Route};
use serde_json::{Value, json};

use super::realm::Realm;
use crate::daemon::Daemon;

async fn document(daemon: &Daemon, path: &str) -> Value {
    let answer = daemon.public_get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    let cache = answer
        .headers
        .get("cache-control")
        .and_then(|v| v.to_str().ok());
    assert!(cache.is_some_and(|value| value.starts_with("public, max-age=")));
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[tokio::test]
async fn discovery_lists_what_is_enabled_and_nothing_else() {
    let mut realm = Realm::new().await;
    let found = document(&realm.daemon, "/.well-known/oauth-authorization-server").await;
    assert_eq!(found["issuer"], "https://issuer.test");
    assert_eq!(found["token_endpoint"], "https://issuer.test/oauth/token");
    assert_eq!(
        found["introspection_endpoint"],
        "https://issuer.test/oauth/introspect"
    );
    assert_eq!(
        found["revocation_endpoint"],
        "https://issuer.test/oauth/revoke"
    );
    assert_eq!(
        found["jwks_uri"],
        "https://issuer.test/.well-known/jwks.json"
    );
    assert_eq!(
        found["grant_types_supported"],
        json!(["client_credentials"])
    );
    assert_eq!(found["tls_client_certificate_bound_access_tokens"], true);
    let methods = [
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt",
        "tls_client_auth",
    ];
    assert_eq!(
        found["token_endpoint_auth_methods_supported"],
        json!(methods)
    );
    let openid = document(&realm.daemon, "/.well-known/openid-configuration").await;
    assert_eq!(openid, found);

    // A listener that asks for no certificates takes none.
    realm.daemon.edit_config(|text| {
        let text = text.replace("client_certificate = \"optional\"\n", "");
        text.replace(
            "[oauth]\n",
            "[oauth]\nmethods = [\"client_secret_post\", \"tls_client_auth\"]\n",
        )
    });
    realm.daemon.restart().await;
    let found = document(&realm.daemon, "/.well-known/openid-configuration").await;
    assert_eq!(
        found["token_endpoint_auth_methods_supported"],
        json!(["client_secret_post"])
    );
    assert!(
        found
            .get("token_endpoint_auth_signing_alg_values_supported")
            .is_none()
    );
    assert!(
        found
            .get("tls_client_certificate_bound_access_tokens")
            .is_none()
    );
    realm.daemon.stop().await;
}

async fn asked(realm: &Realm, method: &str, path: &str) -> u16 {
    match method {
        "GET" => realm.daemon.public_get(path).await.status,
        "POST" => realm.post(path, &[]).await.status,
        other => {
            let request = http::Request::builder()
                .method(other)
                .uri(path)
                .header("host", "localhost");
            let request = request.body(Default::default()).expect("a request");
            realm.exchange(None, request).await.status
        }
    }
}

// R-ACL-4
#[tokio::test]
async fn every_route_answers_and_is_counted_with_its_exposure() {
    let realm = Realm::new().await;
    for route in ROUTES {
        let status = asked(&realm, route.method, route.path).await;
        assert!(matches!(status, 200 | 401), "{}: {status}", route.path);
        for other in ["GET", "POST", "DELETE", "PUT"] {
            let is_route = |r: &&Route| (r.method, r.path) == (other, route.path);
            if !ROUTES.iter().any(|r| is_route(&r)) {
                let status = asked(&realm, other, route.path).await;
                assert_eq!(status, 405, "{other} {}", route.path);
            }
        }
    }
    assert_eq!(
        realm.daemon.public_get("/oauth/authorize").await.status,
        404
    );
    let metrics = realm.daemon.ops_get("/metrics").await.text();
    for route in ROUTES {
        let label = route.exposure.label();
        let counted = format!(
            "claviger_http_requests_total{{route=\"{}\",exposure=\"{label}\"",
            route.path
        );
        assert!(metrics.contains(&counted), "{counted} is not in\n{metrics}");
    }
    assert!(metrics.contains(
        "claviger_http_requests_total{route=\"unknown\",exposure=\"unknown\",code=\"404\"} 1"
    ));
    assert!(metrics.contains("claviger_http_request_seconds_bucket{route=\"/oauth/token\""));
    realm.daemon.stop().await;
}
