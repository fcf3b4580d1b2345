//! What requests about credentials say: strict JSON and a strict query. No error quotes a value.

use std::collections::BTreeMap;

use axum::body::Body;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    error::{Error, Reason, Result},
    model::{CredentialEnvironment, ProviderName, Secret, SecretFields, ValueLabel},
    tokens::is_plain_object,
    vault::{Place, PutCredential},
};

/// Characters of an organisation.
const MAX_ORGANISATION: usize = 200;
/// Characters of a reason.
const MAX_REASON: usize = 500;

/// Body of POST …/broker-credentials.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutBody {
    provider: String,
    environment: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    organisation: Option<String>,
    fields: BTreeMap<String, Secret<String>>,
    #[serde(default)]
    replace: bool,
}

impl PutBody {
    pub async fn read(headers: &HeaderMap, body: Body) -> Result<Self> {
        let json = read(headers, body).await?;
        parse(&json)
    }

    /// What is hashed for an idempotency key: all of it but the secret.
    pub fn shown(&self) -> Value {
        let fields: Vec<_> = self.fields.keys().collect();
        json!([
            self.provider,
            self.environment,
            self.name,
            self.organisation,
            fields,
            self.replace
        ])
    }

    pub fn into_request(self) -> Result<(Place, PutCredential)> {
        let place = Place {
            provider: self.provider.parse()?,
            environment: self.environment.parse()?,
            name: self.name.unwrap_or_else(|| "default".to_owned()),
        };
        let organisation = self.organisation.unwrap_or_default();
        let request = PutCredential {
            fields: SecretFields::new(self.fields)?,
            organisation: match organisation.as_str() {
                "" => organisation,
                _ => text("organisation", organisation, MAX_ORGANISATION)?,
            },
            replace: self.replace,
            rotation_period: None,
        };
        Ok((place, request))
    }
}

/// Body of POST …/reveal.
pub struct RevealBody {
    /// Why.
    pub reason: String,
    /// Which value.
    pub label: ValueLabel,
}

impl RevealBody {
    pub async fn read(headers: &HeaderMap, body: Body) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Given {
            reason: String,
            #[serde(default)]
            label: Option<String>,
        }
        let json = read(headers, body).await?;
        let Given { reason, label } = parse(&json)?;
        Ok(Self {
            reason: text("reason", reason, MAX_REASON)?,
            label: label.map_or(Ok(ValueLabel::Current), |label| label.parse())?,
        })
    }
}

/// The query of a listing.
pub struct Query {
    pub provider: Option<ProviderName>,
    pub environment: Option<CredentialEnvironment>,
    pub size: i64,
    pub after: String,
}

/// Errors: INVALID_FIELD for what is unknown, given twice or no value; PAGE_TOKEN_INVALID.
pub fn query(text: &str) -> Result<Query> {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
        let known = ["provider", "environment", "page_size", "page_token"];
        let is_new = given.insert(name.to_string(), value.to_string()).is_none();
        if !known.contains(&&*name) || !is_new {
            return Err(invalid(
                "the query may have provider, environment, page_size and page_token, each once",
            ));
        }
    }
    let take = |name: &str| given.get(name).filter(|value| !value.is_empty());
    let size = match take("page_size").map(|size| size.parse::<i64>()) {
        None => 100,
        Some(Ok(size @ 1..=1000)) => size,
        Some(_) => return Err(invalid("page_size must be 1 to 1000")),
    };
    Ok(Query {
        provider: take("provider").map(|p| p.parse()).transpose()?,
        environment: take("environment").map(|e| e.parse()).transpose()?,
        size,
        after: take("page_token").map_or(Ok(String::new()), |token| position(token))?,
    })
}

/// The token for the page after one that ended at this credential.
pub fn page_token(last: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(last)
}

fn position(token: &str) -> Result<String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let id = text.filter(|id| id.parse::<crate::model::CredentialId>().is_ok());
    id.ok_or_else(|| {
        Error::new(
            Reason::PageTokenInvalid,
            "page_token is not from an answer of this call; begin again without it",
        )
    })
}

/// The bytes of a JSON body, in a buffer that is wiped. What the connection has copied is out of reach.
async fn read(headers: &HeaderMap, body: Body) -> Result<Zeroizing<Vec<u8>>> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = match (types.next().map(|value| value.to_str()), types.next()) {
        (Some(Ok(value)), None) => {
            let essence = value.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        }
        _ => false,
    };
    if !is_json || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Error::new(
            Reason::MalformedRequest,
            "the body must be application/json, and not compressed",
        ));
    }
    let body = body.collect().await.map_err(|_| {
        Error::new(
            Reason::PayloadTooLarge,
            "the body cannot be read, or is longer than the limit",
        )
    })?;
    let bytes = body.to_bytes();
    let copy = Zeroizing::new(bytes.to_vec());
    if let Ok(mut buffer) = bytes.try_into_mut() {
        buffer.zeroize();
    }
    Ok(copy)
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    let parsed = match is_plain_object(json) {
        true => serde_json::from_slice(json).ok(),
        false => None,
    };
    // What serde says could quote a value.
    parsed.ok_or_else(|| {
        Error::new(
            Reason::MalformedRequest,
            "the body must be one JSON object with the members that the documentation names, each once",
        )
    })
}

fn text(field: &str, value: String, max: usize) -> Result<String> {
    let fits = (1..=max).contains(&value.chars().count());
    let is_plain = !value
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    (fits && is_plain).then_some(value).ok_or_else(|| {
        invalid(format!(
            "{field} must be 1 to {max} characters without control characters"
        ))
    })
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(json: &str) -> Result<(Place, PutCredential)> {
        parse::<PutBody>(json.as_bytes()).and_then(PutBody::into_request)
    }

    #[test]
    fn a_body_is_read_in_one_way_or_refused() {
        let good = r#"{"provider":"alpaca","environment":"testing","fields":{"api_key":"k","api_secret":"s"}}"#;
        let (place, request) = put(good).expect("a request");
        assert_eq!(place.name, "default");
        assert!(request.fields.get("api_key").is_some());
        for bad in [
            "",
            "[]",
            "null",
            r#"{"provider":"a"}"#,
            r#"{"provider":"alpaca","environment":"testing","fields":{}}"#,
            r#"{"provider":"alpaca","environment":"testing","fields":{"api_key":1}}"#,
            r#"{"provider":"alpaca","environment":"testing","fields":{"api_key":"a\nb"}}"#,
            r#"{"provider":"alpaca","environment":"testing","fields":{"a":"1","a":"2"}}"#,
            r#"{"provider":"alpaca","provider":"b","environment":"testing","fields":{"a":"1"}}"#,
            r#"{"provider":"alpaca","environment":"live","fields":{"a":"1"}}"#,
            r#"{"provider":"alpaca","environment":"testing","fields":{"a":"planted"},"more":1}"#,
        ] {
            let error = put(bad).err().expect(bad);
            assert!(!error.message().contains("planted"), "{error}");
        }
    }

    #[test]
    fn the_hash_of_a_request_knows_nothing_of_the_secret() {
        let of = |secret: &str| {
            let json = format!(
                r#"{{"provider":"a","environment":"testing","fields":{{"api_key":"{secret}"}}}}"#
            );
            parse::<PutBody>(json.as_bytes()).expect("a body").shown()
        };
        assert_eq!(of("one"), of("two"));
        assert!(!of("planted").to_string().contains("planted"));
    }

    #[test]
    fn a_query_is_strict() {
        let all = query("provider=alpaca&environment=testing&page_size=7").expect("a query");
        assert_eq!(all.size, 7);
        assert!(all.provider.is_some() && all.environment.is_some());
        for bad in [
            "x=1",
            "page_size=0",
            "page_size=1001",
            "page_size=a",
            "page_size=1&page_size=2",
            "page_token=!",
            "environment=live",
        ] {
            assert!(query(bad).is_err(), "{bad}");
        }
        let id = crate::model::CredentialId::random().to_string();
        let after = query(&format!("page_token={}", page_token(&id)))
            .expect("a query")
            .after;
        assert_eq!(after, id);
    }
}
