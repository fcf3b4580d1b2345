//! Issuers of OpenID Connect tokens that are taken: a Kubernetes cluster, an identity provider.
//!
//! A token of issuer NAME whose subject is SUB is the identity `oidc:NAME/SUB`, which a principal-admin binds to a
//! principal. A token must name one of the issuer's keys, be meant for the configured audience, and have its times right;
//! header members that would name other keys or other rules are refused unseen. The keys come from a file, read again when
//! it changes, or from a URL, read again now and then and when a token names a key that is not known. They are kept while
//! the source does not answer. Nothing here follows a URL that a token names.

mod fetch;
mod keys;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use self::keys::{Jwk, Keys};
use crate::{
    error::{Error, Reason},
    model::{Algorithm, Identity, SignInput, Timestamp},
    tokens::is_plain_object,
};

/// One entry of `[[authn.issuers]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// What identities and logs call it: 1 to 63 characters of a-z, 0-9, '-' and '_'.
    pub name: String,
    /// Its `iss`, character for character.
    pub issuer: String,
    /// `aud` that its tokens must contain.
    pub audience: String,
    /// File with its JWK Set. This or `jwks_url`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// https URL of its JWK Set, such as `https://kubernetes.default.svc/openid/v1/jwks`.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// CA certificates in PEM for `jwks_url`; the system's own when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// File with a bearer token to show to `jwks_url`, read each time: a pod's own service-account token.
    #[serde(default)]
    pub bearer_token_file: Option<PathBuf>,
    /// Longest time from `iat` to `exp` that is believed, in seconds. Default 86,400.
    #[serde(default = "longest")]
    pub max_lifetime_seconds: u64,
}

const fn longest() -> u64 {
    86_400
}

/// How far clocks may differ.
const LEEWAY: i64 = 30;

/// Why a token of another issuer does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFromIssuer {
    /// No issuer of this name is configured.
    UnknownIssuer,
    /// The header is malformed, is of another kind of token, or names other keys or rules.
    BadHeader,
    /// The issuer has no such key.
    UnknownKey,
    /// The signature does not verify under the key that the token names.
    BadSignature,
    /// A claim is missing or malformed.
    BadClaim,
    /// `aud` is another.
    WrongAudience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// It lives longer than is believed.
    LivesTooLong,
}

impl NotFromIssuer {
    /// The text in audit rows and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "UNKNOWN_ISSUER",
            Self::BadHeader => "BAD_HEADER",
            Self::UnknownKey => "UNKNOWN_KEY",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::BadClaim => "BAD_CLAIM",
            Self::WrongAudience => "WRONG_AUDIENCE",
            Self::Expired => "EXPIRED",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::LivesTooLong => "LIVES_TOO_LONG",
        }
    }
}

/// What a token proved.
pub struct Proven {
    /// Who its subject is to us.
    pub identity: Identity,
    /// The issuer's configured name.
    pub issuer: Arc<str>,
    /// Its `jti`; empty when it has none.
    pub jti: String,
}

/// The configured issuers.
pub struct Issuers(HashMap<String, Issuer>);

struct Issuer {
    name: Arc<str>,
    config: IssuerConfig,
    keys: Keys,
}

/// A token in its parts.
struct Parsed<'a> {
    kid: String,
    algorithm: Algorithm,
    signing_input: &'a str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default)]
    typ: Option<String>,
    /// Thumbprints of a certificate, which some issuers add: never read.
    #[serde(default, rename = "x5t")]
    _x5t: Option<String>,
    #[serde(default, rename = "x5t#S256")]
    _x5t_s256: Option<String>,
}

/// Kinds of tokens that are meant to be shown to a service. A `logout+jwt`, say, is not.
const TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: OneOrMany,
    exp: i64,
    #[serde(default)]
    iat: Option<i64>,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    jti: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn contains(&self, value: &str) -> bool {
        match self {
            Self::One(one) => one == value,
            Self::Many(many) => many.iter().any(|one| one == value),
        }
    }
}

/// Errors: a sentence that names the setting.
pub(super) fn check(configs: &[IssuerConfig], own: &str) -> Result<(), String> {
    let mut seen = HashMap::new();
    for config in configs {
        let (name, issuer) = (&config.name, &config.issuer);
        let is_name = (1..=63).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
        let wrong = |what: &str| Err(format!("authn.issuers {name:?}: {what}"));
        if !is_name {
            return wrong("name must be 1 to 63 characters of a-z, 0-9, '-' and '_'");
        }
        if issuer.is_empty() || issuer == own {
            return wrong("issuer must be given, and not be tokens.issuer");
        }
        if config.audience.is_empty() {
            return wrong("audience must be given: a token for anybody is a token for nobody");
        }
        match (&config.jwks_file, &config.jwks_url) {
            (Some(_), None) => {}
            (None, Some(url)) if url.starts_with("https://") => {}
            (None, Some(_)) => return wrong("jwks_url must be an https:// URL"),
            (None, None) | (Some(_), Some(_)) => {
                return wrong("exactly one of jwks_file and jwks_url must be given");
            }
        }
        if seen.insert(name.clone(), ()).is_some()
            || seen.insert(format!("iss {issuer}"), ()).is_some()
        {
            return wrong("name and issuer must each be given once");
        }
    }
    Ok(())
}

impl Issuers {
    /// The issuers of the configuration. Their keys are read when they are first needed, or by `refresh`.
    ///
    /// Errors: a file that cannot be read or used now, named; a URL may be out of reach at the start.
    pub fn new(configs: &[IssuerConfig]) -> Result<Self, String> {
        let mut issuers = HashMap::new();
        for config in configs {
            let wrong = |e: String| format!("authn.issuers {:?}: {e}", config.name);
            let issuer = Issuer {
                name: config.name.as_str().into(),
                keys: Keys::of(config).map_err(wrong)?,
                config: config.clone(),
            };
            issuers.insert(config.issuer.clone(), issuer);
        }
        Ok(Self(issuers))
    }

    /// Reads keys again, each `every`, until `shutdown` ends.
    pub async fn refresh(self: Arc<Self>, every: Duration, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut tick = tokio::time::interval(every);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                _ = tick.tick() => {}
            }
            for issuer in self.0.values() {
                if let Err(error) = issuer.keys.read().await {
                    tracing::warn!(issuer = %issuer.name, error, "keys of an issuer not read again; the known ones stay");
                }
            }
        }
    }

    /// What a token that says it is from `iss` proves at `now`.
    ///
    /// Errors: BACKEND_UNAVAILABLE when the issuer's keys cannot be read, so that nobody can tell.
    pub async fn prove(
        &self,
        iss: &str,
        token: &str,
        now: Timestamp,
    ) -> Result<Result<Proven, NotFromIssuer>, Error> {
        let Some(issuer) = self.0.get(iss) else {
            return Ok(Err(NotFromIssuer::UnknownIssuer));
        };
        let Some(parsed) = parse(token) else {
            return Ok(Err(NotFromIssuer::BadHeader));
        };
        let key = issuer.keys.find(&parsed.kid).await.map_err(|why| {
            Error::new(
                Reason::BackendUnavailable,
                format!(
                    "the keys of issuer {} cannot be read; retry later",
                    issuer.name
                ),
            )
            .retry_after(Duration::from_secs(1))
            .because(why)
        })?;
        let proven = key
            .ok_or(NotFromIssuer::UnknownKey)
            .and_then(|key| issuer.verify(&parsed, &key, now));
        Ok(proven)
    }
}

impl Issuer {
    fn verify(
        &self,
        parsed: &Parsed<'_>,
        key: &Jwk,
        now: Timestamp,
    ) -> Result<Proven, NotFromIssuer> {
        let verifier = key
            .verifier(parsed.algorithm)
            .ok_or(NotFromIssuer::BadHeader)?;
        let input = SignInput::Message(parsed.signing_input.as_bytes());
        if !verifier.verifies(input, &parsed.signature) {
            return Err(NotFromIssuer::BadSignature);
        }
        if !is_plain_object(&parsed.claims) {
            return Err(NotFromIssuer::BadClaim);
        }
        let claims: Claims =
            serde_json::from_slice(&parsed.claims).map_err(|_| NotFromIssuer::BadClaim)?;
        self.judge(claims, now.seconds())
    }

    /// `iss` need not be looked at again: it chose this issuer, and the signature covers it.
    fn judge(&self, claims: Claims, now: i64) -> Result<Proven, NotFromIssuer> {
        if now >= claims.exp.saturating_add(LEEWAY) {
            return Err(NotFromIssuer::Expired);
        }
        let latest = now.saturating_add(LEEWAY);
        if [claims.nbf, claims.iat]
            .into_iter()
            .flatten()
            .any(|at| at > latest)
        {
            return Err(NotFromIssuer::NotYetValid);
        }
        let from = claims.iat.unwrap_or(now);
        let longest = i64::try_from(self.config.max_lifetime_seconds).unwrap_or(i64::MAX);
        if claims.exp.saturating_sub(from) > longest {
            return Err(NotFromIssuer::LivesTooLong);
        }
        if !claims.aud.contains(&self.config.audience) {
            return Err(NotFromIssuer::WrongAudience);
        }
        let identity = format!("oidc:{}/{}", self.name, claims.sub).parse();
        let is_jti = claims.jti.len() <= 255 && claims.jti.bytes().all(|b| b.is_ascii_graphic());
        match identity {
            Ok(identity) if !claims.sub.is_empty() && is_jti => Ok(Proven {
                identity,
                issuer: Arc::clone(&self.name),
                jti: claims.jti,
            }),
            Ok(_) | Err(_) => Err(NotFromIssuer::BadClaim),
        }
    }
}

/// None for what is no compact JWS (RFC 7515 section 7.1) with a kid and one of our algorithms, and for a header that says
/// more than that and `typ`.
fn parse(token: &str) -> Option<Parsed<'_>> {
    let (signing_input, signature) = token.rsplit_once('.')?;
    let (header, claims) = signing_input.split_once('.')?;
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
    let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    let header: Header = match is_plain_object(&header) {
        true => serde_json::from_slice(&header).ok()?,
        false => return None,
    };
    let typ = header.typ.unwrap_or_else(|| "JWT".to_owned());
    if !TYPES.contains(&typ.to_ascii_lowercase().as_str()) {
        return None;
    }
    let algorithm: Algorithm = header.alg.parse().ok()?;
    Some(Parsed {
        kid: header.kid,
        algorithm,
        signing_input,
        claims,
        signature,
    })
}
