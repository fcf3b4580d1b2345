use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_800_000_000;

fn config() -> TokensConfig {
    TokensConfig {
        issuer: "https://issuer.test".into(),
        default_ttl_seconds: 900,
        max_ttl_seconds: 3600,
        leeway_seconds: 5,
    }
}

fn expected(scopes: &[&str]) -> Expectation {
    Expectation {
        tenant: "acme".parse().expect("a tenant"),
        audience: "api".into(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        certificate: String::new(),
    }
}

/// As `Tokens::verify` looks at claims.
fn check_claims(
    json: &[u8],
    expected: &Expectation,
    config: &TokensConfig,
    now: i64,
) -> Result<Claims, Rejection> {
    let claims = check_own(json, &expected.tenant, config, now)?;
    expected.meets(&claims).map(|()| claims)
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.test",
        "sub": "somebody",
        "aud": "api",
        "exp": NOW + 60,
        "iat": NOW,
        "nbf": NOW,
        "jti": "0199f000-0000-7000-8000-000000000000",
        "client_id": "client",
        "scope": "read write",
        "principal_type": "service",
        "tenant": "acme",
    })
}

fn verdict(claims: &Value, scopes: &[&str]) -> Option<Rejection> {
    let json = claims.to_string();
    check_claims(json.as_bytes(), &expected(scopes), &config(), NOW).err()
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

// R-JWT-2
#[test]
fn good_claims_pass() {
    assert_eq!(verdict(&claims(), &["read"]), None);
    for (name, value) in [
        ("aud", json!(["other", "api"])),
        ("exp", json!(NOW - 4)),
        ("iat", json!(NOW + 5)),
        ("exp", json!(NOW + 86_400)),
        ("scope", json!("")),
        ("principal_type", json!("user")),
        ("sub", json!("né \"quoted\" \u{1F511}")),
        ("unknown", json!({ "a": [1, 2.5] })),
    ] {
        // A token that is about to expire was issued before.
        let mut claims = with(name, value);
        if claims["exp"].as_i64() < Some(NOW) {
            claims["iat"] = json!(NOW - 60);
        }
        assert_eq!(verdict(&claims, &[]), None, "{claims}");
    }
}

// R-JWT-2
#[test]
fn bad_claims_are_rejected_for_what_is_wrong() {
    use Rejection as R;
    for (name, value, why) in [
        ("exp", json!(NOW - 5), R::Expired),
        ("exp", json!(i64::MIN), R::Expired),
        ("exp", json!(i64::MAX), R::BadClaim),
        ("exp", json!(NOW + 86_401), R::BadClaim),
        ("exp", json!(NOW as f64 + 60.0), R::BadClaim),
        ("iat", json!(NOW + 6), R::NotYetValid),
        ("iat", json!(0), R::BadClaim),
        ("iat", json!(i64::MIN), R::BadClaim),
        ("nbf", json!(NOW + 6), R::NotYetValid),
        ("jti", json!("1"), R::BadClaim),
        (
            "jti",
            json!("0199F000-0000-7000-8000-000000000000"),
            R::BadClaim,
        ),
        ("jti", json!("0199f00000007000800000000000000"), R::BadClaim),
        ("sub", json!(""), R::BadClaim),
        ("sub", json!("a\nb"), R::BadClaim),
        ("sub", json!("x".repeat(256)), R::BadClaim),
        ("client_id", json!(""), R::BadClaim),
        ("scope", json!("read  write"), R::BadClaim),
        ("scope", json!(" read"), R::BadClaim),
        ("scope", json!("read\twrite"), R::BadClaim),
        ("principal_type", json!("job"), R::BadClaim),
        ("principal_type", json!("USER"), R::BadClaim),
        ("tenant", json!("globex"), R::BadClaim),
        ("iss", json!("https://issuer.test/"), R::WrongIssuer),
        ("aud", json!([]), R::WrongAudience),
    ] {
        assert_eq!(
            verdict(&with(name, value.clone()), &[]),
            Some(why),
            "{name} {value}"
        );
    }
    assert_eq!(verdict(&claims(), &["rea"]), Some(R::InsufficientScope));
    let twice = claims().to_string().replacen('{', r#"{"x":1,"x":1,"#, 1);
    let escaped = claims().to_string().replacen("sub", r"\u0073ub", 1);
    // The values in the order of the struct.
    let list = Value::from(
        claims()
            .as_object()
            .expect("claims")
            .values()
            .cloned()
            .collect::<Vec<_>>(),
    );
    for json in [twice, escaped, list.to_string()] {
        let found = check_claims(json.as_bytes(), &expected(&[]), &config(), NOW);
        assert_eq!(found.err(), Some(R::BadClaim), "{json}");
    }
}

fn token(header: &str) -> String {
    format!("{}.e30.AA", BASE64_URL_SAFE_NO_PAD.encode(header))
}

// R-JWT-3
#[test]
fn headers_say_alg_kid_and_typ_plainly_and_nothing_else() {
    use Rejection as R;
    let good = r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#;
    assert!(parse(&token(good)).is_ok());
    for (header, why) in [
        (
            r#"{"\u0061lg":"ES256","kid":"k","typ":"at+jwt"}"#,
            R::Malformed,
        ),
        (
            r#"{"alg":"\u0045S256","kid":"k","typ":"at+jwt"}"#,
            R::Malformed,
        ),
        (
            r#"{"alg":"ES256","kid":"\u006b","typ":"at+jwt"}"#,
            R::UnknownKid,
        ),
        (
            r#"{"alg":"ES256","kid":"k","typ":"at\u002bjwt"}"#,
            R::Malformed,
        ),
        (
            r#"{"alg":"ES256","alg":"ES256","kid":"k","typ":"at+jwt"}"#,
            R::Malformed,
        ),
        (
            r#"{"alg":"ES256","kid":"k","typ":"at+jwt","x":1,"x":1}"#,
            R::Malformed,
        ),
        (
            r#"{"alg":"ES256","kid":"k","typ":"at+jwt","x":1}"#,
            R::ForbiddenHeader,
        ),
        (r#"{"alg":"ES256","kid":"k"}"#, R::Malformed),
        (r#"{"alg":"ES256","kid":"k","typ":"AT+JWT"}"#, R::WrongType),
        (r#"["ES256","k","at+jwt"]"#, R::Malformed),
    ] {
        assert_eq!(parse(&token(header)).err(), Some(why), "{header}");
    }
    let encrypted = format!(
        "{}.a.b.c.d",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"dir","enc":"A256GCM"}"#)
    );
    assert_eq!(parse(&encrypted).err(), Some(R::Malformed));
}

proptest! {
    /// One token, one spelling: whatever parses is exactly what its parts encode to.
    #[test]
    fn what_parses_is_canonical(
        text in "[A-Za-z0-9_=+/. \\-]{0,40}",
        claims in "[A-Za-z0-9_-]{0,12}",
    ) {
        let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#);
        let token = format!("{header}.{claims}.{text}");
        if let Ok(parsed) = parse(&token) {
            let again = format!(
                "{header}.{}.{}",
                BASE64_URL_SAFE_NO_PAD.encode(&parsed.claims),
                BASE64_URL_SAFE_NO_PAD.encode(&parsed.signature)
            );
            prop_assert_eq!(again, token);
        }
    }

    #[test]
    fn nothing_makes_it_panic(text in ".{0,200}") {
        let _ = parse(&text);
        let _ = parse(&token(&text));
        let _ = check_claims(text.as_bytes(), &expected(&[]), &config(), NOW);
    }
}
