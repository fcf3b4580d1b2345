//! Tokens that somebody made up. The key signs what a test wants, through another PKCS#11 client on the same token.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use claviger::grpc::proto::*;
use serde_json::{Value, json};

use super::state;
use crate::{
    daemon::{Daemon, Engine, Setup, TOKEN},
    softhsm::SoftHsm,
};

const DAY: i64 = 86_400;

/// A key of the daemon that a test can sign with.
struct Forger {
    daemon: Daemon,
    kid: String,
    id: String,
}

impl Forger {
    async fn new() -> Self {
        let daemon = Setup::new(Engine::Sqlite).start().await;
        let purpose = KeyPurpose::TokenSigning;
        let key = daemon.key("acme", "jwt", purpose, Algorithm::Es256).await;
        let version = &key.versions[0];
        let id = object_id(&version.backend_ref);
        Self {
            kid: version.kid.clone(),
            id,
            daemon,
        }
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "typ": "at+jwt" })
    }

    /// Raw r || s over SHA-256.
    async fn sign(&self, id: &str, input: &str) -> Vec<u8> {
        let (hash, signature) = (
            self.daemon.path("forged.hash"),
            self.daemon.path("forged.sig"),
        );
        std::fs::write(&hash, digest(&SHA256, input.as_bytes())).expect("a digest");
        let pin = std::fs::read_to_string(self.daemon.path("secrets/pin")).expect("a PIN");
        let output = self
            .daemon
            .foreign("pkcs11-tool")
            .arg("--module")
            .arg(SoftHsm::library())
            .args(["--token-label", TOKEN, "--login", "--pin", &pin])
            .args(["--sign", "--mechanism", "ECDSA", "--id", id])
            .arg("--input-file")
            .arg(&hash)
            .arg("--output-file")
            .arg(&signature)
            .output()
            .await
            .expect("pkcs11-tool of OpenSC is installed");
        assert!(output.status.success(), "{output:?}");
        let signature = std::fs::read(signature).expect("a signature");
        assert_eq!(signature.len(), 64);
        signature
    }

    /// A token with these parts and a right signature.
    async fn forge(&self, header: &Value, claims: &Value) -> String {
        self.forge_by(&self.id, header, claims).await
    }

    async fn forge_by(&self, id: &str, header: &Value, claims: &Value) -> String {
        let input = format!(
            "{}.{}",
            B64.encode(header.to_string()),
            B64.encode(claims.to_string())
        );
        let signature = self.sign(id, &input).await;
        format!("{input}.{}", B64.encode(signature))
    }

    async fn verify(&self, token: &str, scopes: &[&str]) -> VerifyTokenResponse {
        let request = VerifyTokenRequest {
            token: token.into(),
            audience: "api".into(),
            required_scopes: scopes.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let answer = self
            .daemon
            .actor("service")
            .tokens()
            .verify_token(request)
            .await;
        answer.expect("an answer").into_inner()
    }

    async fn rejected(&self, token: &str, why: TokenRejection) {
        let answer = self.verify(token, &[]).await;
        assert_eq!(
            (answer.valid, answer.rejection()),
            (false, why),
            "{token:.300}"
        );
        assert!(answer.claims.is_none());
    }
}

/// `id` of an RFC 7512 URI as pkcs11-tool wants it.
fn object_id(uri: &str) -> String {
    let attributes = uri.strip_prefix("pkcs11:").expect("a URI").split(';');
    let id = attributes.filter_map(|a| a.strip_prefix("id=")).next();
    let text = id.expect("an id");
    let mut hex = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => hex.extend(chars.by_ref().take(2)),
            c => hex.push_str(&format!("{:02x}", c as u32)),
        }
    }
    hex
}

/// Now, as the daemon's own tokens say it.
async fn now(daemon: &Daemon) -> (String, Value) {
    let request = IssueTokenRequest {
        key: "jwt".into(),
        audience: vec!["api".into()],
        scope: vec!["read".into()],
        ..Default::default()
    };
    let issued = daemon.actor("service").tokens().issue_token(request).await;
    let token = issued.expect("a token").into_inner().token;
    let claims = B64.decode(token.split('.').nth(1).expect("claims"));
    let claims = serde_json::from_slice(&claims.expect("base64url")).expect("JSON");
    (token, claims)
}

fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |half: &[u8]| {
        let mut bytes = half.to_vec();
        if bytes[0] & 0x80 != 0 {
            bytes.insert(0, 0);
        }
        [&[2, bytes.len() as u8], &bytes[..]].concat()
    };
    let both = [integer(&signature[..32]), integer(&signature[32..])].concat();
    [&[0x30, both.len() as u8], &both[..]].concat()
}

// R-JWT-2, R-JWT-3, R-JWT-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_has_its_rejection() {
    use TokenRejection as R;
    let forger = Forger::new().await;
    let (good, claims) = now(&forger.daemon).await;
    let before = state(&forger.daemon).await;
    assert!(forger.verify(&good, &["read"]).await.valid);
    // What the forger signs is right in every respect, so what follows is rejected for its own reason.
    let again = forger.forge(&forger.header(), &claims).await;
    assert!(forger.verify(&again, &[]).await.valid);

    let parts: Vec<&str> = good.split('.').collect();
    let [header, body, signature] = parts[..] else {
        panic!("three parts")
    };
    for malformed in [
        "x",
        "..",
        "a.b.c",
        "....",
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}.{signature}"),
        &format!("{header}.{body}"),
        &format!("{good}="),
        &format!("{header}=.{body}.{signature}"),
        &format!("{header}.{body}.{signature}\n"),
        &format!(" {good}"),
        &format!(
            "{header}.{body}.{}",
            signature.replace(['A', 'Q', 'g', 'w'], "+")
        ),
        &format!("{}.{body}.{signature}", B64.encode("[]")),
        &format!("{}.{body}.{signature}", B64.encode(r#"{"alg":"ES256"}"#)),
        &format!(
            "{}.{body}.{signature}",
            B64.encode(r#"{"alg":"ES256","alg":"none","kid":"x","typ":"at+jwt"}"#)
        ),
        &"A".repeat(16 * 1024 + 1),
    ] {
        // Replacing may have found nothing to replace; then it is the good token.
        if malformed != good {
            forger.rejected(malformed, R::Malformed).await;
        }
    }
    // A last character with other unused bits decodes to the same bytes, and is another text.
    let last = signature.chars().last().expect("a character");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = alphabet.find(last).expect("in the alphabet");
    let twin = alphabet.chars().nth(index ^ 1).expect("in the alphabet");
    forger
        .rejected(
            &format!(
                "{header}.{body}.{}{twin}",
                &signature[..signature.len() - 1]
            ),
            R::Malformed,
        )
        .await;

    let with = |name: &str, value: Value| {
        let mut header = forger.header();
        header[name] = value;
        header
    };
    for (header, why) in [
        (with("alg", json!("none")), R::WrongAlgorithm),
        (with("alg", json!("None")), R::WrongAlgorithm),
        (with("alg", json!("HS256")), R::WrongAlgorithm),
        (with("alg", json!("ES384")), R::WrongAlgorithm),
        (with("alg", json!("RS256")), R::WrongAlgorithm),
        (with("alg", json!("es256")), R::WrongAlgorithm),
        (with("alg", json!(7)), R::Malformed),
        (with("typ", json!("JWT")), R::WrongType),
        (with("typ", json!("AT+JWT")), R::WrongType),
        (with("typ", json!("application/at+jwt")), R::WrongType),
        (with("typ", json!("")), R::WrongType),
        (with("kid", json!("unknown")), R::UnknownKid),
        (with("kid", json!("../../../../dev/null")), R::UnknownKid),
        (with("kid", json!("x' UNION SELECT 'key")), R::UnknownKid),
        (with("kid", json!("\u{0}")), R::UnknownKid),
        (with("kid", json!("a".repeat(5000))), R::UnknownKid),
        (with("kid", json!("")), R::UnknownKid),
        (with("kid", json!(null)), R::Malformed),
        (with("crit", json!(["exp"])), R::ForbiddenHeader),
        (with("b64", json!(false)), R::ForbiddenHeader),
        (with("jwk", json!({ "kty": "EC" })), R::ForbiddenHeader),
        (
            with("jku", json!("https://evil.test/jwks")),
            R::ForbiddenHeader,
        ),
        (
            with("x5u", json!("https://evil.test/x")),
            R::ForbiddenHeader,
        ),
        (with("x5c", json!([])), R::ForbiddenHeader),
        (with("cty", json!("JWT")), R::ForbiddenHeader),
        (with("zip", json!("DEF")), R::ForbiddenHeader),
        (with("exp", json!(1)), R::ForbiddenHeader),
    ] {
        // A right signature does not help.
        forger
            .rejected(&forger.forge(&header, &claims).await, why)
            .await;
        if header["alg"] == "none" {
            let text = format!("{}.{body}.", B64.encode(header.to_string()));
            forger.rejected(&text, R::WrongAlgorithm).await;
        }
    }

    let raw = B64.decode(signature).expect("base64url");
    let mut wrong = vec![
        der(&raw),
        vec![],
        vec![0; 64],
        raw[..63].to_vec(),
        [&raw[..], &[0]].concat(),
    ];
    for i in [0, 31, 32, 63] {
        let mut flipped = raw.clone();
        flipped[i] ^= 0x10;
        wrong.push(flipped);
    }
    wrong.push([&raw[32..], &raw[..32]].concat());
    for signature in wrong {
        let token = format!("{header}.{body}.{}", B64.encode(signature));
        forger.rejected(&token, R::BadSignature).await;
    }
    let mut other = claims.clone();
    other["sub"] = json!("admin");
    let token = format!("{header}.{}.{signature}", B64.encode(other.to_string()));
    forger.rejected(&token, R::BadSignature).await;

    let iat = claims["iat"].as_i64().expect("iat");
    let claim = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = claims.clone();
        claims.as_object_mut().expect("claims").remove(name);
        claims
    };
    let mut cases = vec![
        (claim("exp", json!(iat - DAY)), R::Expired),
        (claim("exp", json!(0)), R::Expired),
        (claim("exp", json!(i64::MIN)), R::Expired),
        (claim("nbf", json!(iat + DAY)), R::NotYetValid),
        (claim("iat", json!(iat + DAY)), R::NotYetValid),
        (claim("nbf", json!(i64::MAX)), R::NotYetValid),
        (claim("aud", json!("other")), R::WrongAudience),
        (claim("aud", json!([])), R::WrongAudience),
        (claim("aud", json!(["API", "api "])), R::WrongAudience),
        (claim("iss", json!("https://evil.test")), R::WrongIssuer),
        (claim("iss", json!("https://issuer.test/")), R::WrongIssuer),
        (claim("tenant", json!("globex")), R::BadClaim),
        (claim("exp", json!("1e99")), R::BadClaim),
        (claim("exp", json!(1e300)), R::BadClaim),
        (claim("exp", json!(u64::MAX)), R::BadClaim),
        (claim("aud", json!({ "api": true })), R::BadClaim),
        (claim("jti", json!(7)), R::BadClaim),
        (claim("scope", json!(["read"])), R::BadClaim),
        (json!([]), R::BadClaim),
        (json!("claims"), R::BadClaim),
    ];
    for name in [
        "iss",
        "sub",
        "aud",
        "exp",
        "iat",
        "nbf",
        "jti",
        "client_id",
        "scope",
        "principal_type",
        "tenant",
    ] {
        cases.push((without(name), R::BadClaim));
    }
    for (claims, why) in cases {
        let token = forger.forge(&forger.header(), &claims).await;
        forger.rejected(&token, why).await;
    }
    for scope in ["write", "rea", "read write"] {
        let request = forger.verify(&good, &["read"]).await;
        assert!(request.valid);
        if !scope.contains(' ') {
            let answer = forger.verify(&good, &["read", scope]).await;
            assert_eq!(answer.rejection(), R::InsufficientScope, "{scope}");
        }
    }
    assert_eq!(state(&forger.daemon).await, before);
    forger.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_out_of_use_and_of_others_have_their_rejection() {
    use TokenRejection as R;
    let mut forger = Forger::new().await;
    let (good, claims) = now(&forger.daemon).await;
    // Another tenant's token, to each other.
    let purpose = KeyPurpose::TokenSigning;
    forger
        .daemon
        .key("globex", "jwt", purpose, Algorithm::Es256)
        .await;
    let request = IssueTokenRequest {
        key: "jwt".into(),
        audience: vec!["api".into()],
        ..Default::default()
    };
    let theirs = forger
        .daemon
        .actor("other")
        .tokens()
        .issue_token(request)
        .await;
    let theirs = theirs.expect("a token").into_inner().token;
    forger.rejected(&theirs, R::UnknownKid).await;
    // A SIGNING key signs what callers choose, so nothing it signed is a token.
    let signer = forger
        .daemon
        .key("acme", "signer", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let mut header = forger.header();
    header["kid"] = json!(signer.versions[0].kid);
    let input = format!(
        "{}.{}",
        B64.encode(header.to_string()),
        B64.encode(claims.to_string())
    );
    let sign = SignRequest {
        key: "signer".into(),
        payload: Some(sign_request::Payload::Message(input.clone().into())),
        ..Default::default()
    };
    let signed = forger.daemon.actor("service").crypto().sign(sign).await;
    let signature = signed.expect("signed").into_inner().signature;
    forger
        .rejected(&format!("{input}.{}", B64.encode(signature)), R::UnknownKid)
        .await;
    // A version that waits for its deployment.
    let rotate = RotateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        justification: "test".into(),
        ..RotateKeyRequest::default()
    };
    let opened = forger
        .daemon
        .actor("issuer")
        .rotations()
        .rotate_key(rotate)
        .await;
    let rotation = opened.expect("opened").into_inner().rotation.expect("set");
    let get = GetKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
    };
    let key = forger.daemon.actor("issuer").keys().get_key(get).await;
    let key = key.expect("a key").into_inner().key.expect("set");
    let next = key
        .versions
        .iter()
        .find(|v| v.kid == rotation.new_kid)
        .expect("a successor");
    header["kid"] = json!(next.kid);
    let early = forger
        .forge_by(&object_id(&next.backend_ref), &header, &claims)
        .await;
    forger.rejected(&early, R::InactiveKid).await;
    // A version whose time is over.
    for (stored, why) in [
        ("RETIRED", R::RetiredKid),
        ("DESTROYED", R::RetiredKid),
        ("COMPROMISED", R::CompromisedKid),
    ] {
        let set = format!(
            "UPDATE key_versions SET state = '{stored}' WHERE kid = '{}'",
            forger.kid
        );
        forger.daemon.execute(&set).await;
        forger.daemon.restart().await;
        forger.rejected(&good, why).await;
        let jwks = forger.daemon.public_get("/.well-known/jwks.json").await;
        assert!(!jwks.text().contains(&forger.kid), "{stored}");
    }
    forger.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifetimes_have_bounds() {
    let forger = Forger::new().await;
    for (seconds, nanos) in [
        (0, 0),
        (0, 999_999_999),
        (-1, 0),
        (3601, 0),
        (3600, 1),
        (i64::MAX, 0),
        (i64::MIN, i32::MIN),
        (1, -1),
    ] {
        let request = IssueTokenRequest {
            key: "jwt".into(),
            audience: vec!["api".into()],
            ttl: Some(prost_types::Duration { seconds, nanos }),
            ..Default::default()
        };
        let answer = forger
            .daemon
            .actor("service")
            .tokens()
            .issue_token(request)
            .await;
        super::invalid(answer);
    }
    for audience in [vec![], vec!["x".to_owned(); 17]] {
        let request = IssueTokenRequest {
            key: "jwt".into(),
            audience,
            ..Default::default()
        };
        super::invalid(
            forger
                .daemon
                .actor("service")
                .tokens()
                .issue_token(request)
                .await,
        );
    }
    let request = VerifyTokenRequest {
        audience: "api".into(),
        ..Default::default()
    };
    super::invalid(
        forger
            .daemon
            .actor("service")
            .tokens()
            .verify_token(request)
            .await,
    );
    let request = VerifyTokenRequest {
        token: "a.b.c".into(),
        ..Default::default()
    };
    super::invalid(
        forger
            .daemon
            .actor("service")
            .tokens()
            .verify_token(request)
            .await,
    );
    forger.daemon.stop().await;
}
