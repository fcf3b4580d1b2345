//! Secret managers of clouds: their REST APIs behind one small trait.
//!
//! Only what is named like a variable of the catalogue is fetched, and the bundles that are named: who imports a key of a
//! provider has no business with the other secrets there. Nothing is written to a manager.

mod aws;
mod azure;
mod google;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

use super::{Bad, variables::Variables};
use crate::{
    cli::exit::{Exit, Failure, Result},
    egress::{Answer, Egress, EgressConfig, EgressError, Request},
    model::{Secret, secret::SecretString},
};

pub use aws::Aws;
pub use azure::Azure;
pub use google::{ENDPOINT as GOOGLE, Google};

/// What an import needs of a secret manager.
pub trait Manager {
    /// The names of all secrets, as `get` takes them, that begin with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Vec<String>>;
    /// The text of a secret's newest version.
    async fn get(&self, name: &str) -> Result<SecretString>;
}

/// Secrets of a manager as variables: those below `prefix` that the catalogue names, and the members of `bundles`, which
/// are JSON objects of variables.
pub async fn variables(
    manager: &impl Manager,
    prefix: &str,
    bundles: &[String],
    known: &BTreeSet<&str>,
) -> Result<Variables> {
    let mut variables = Variables::new();
    let mut add = |name: String, value| {
        let twice = || {
            Bad::new(
                "TWICE",
                format!("{name} is there twice; narrow it with --prefix"),
            )
        };
        let value = match variables.contains_key(&name) {
            true => Err(twice()),
            false => value,
        };
        variables.insert(name, value);
    };
    // The prefix is how people tell environments apart where names are flat: `prod-OPENAI-API-KEY`.
    for secret in manager.list(prefix).await? {
        let name = variable(secret.strip_prefix(prefix).unwrap_or(&secret));
        if known.contains(name.as_str()) {
            let value = manager.get(&secret).await?;
            add(name, Ok(value));
        }
    }
    for bundle in bundles {
        let text = manager.get(bundle).await?;
        let members: serde_json::Result<BTreeMap<String, SecretString>> =
            serde_json::from_str(text.expose_secret());
        // The parser's error could quote what it met.
        let members =
            members.map_err(|_| Failure::usage(format!("{bundle} is no JSON object of texts")))?;
        for (name, value) in members {
            add(name, Ok(value));
        }
    }
    Ok(variables)
}

/// `prod/llm/openai-api-key` is OPENAI_API_KEY: Azure takes no underscores.
fn variable(secret: &str) -> String {
    let last = secret.rsplit('/').next().unwrap_or_default();
    last.replace('-', "_").to_ascii_uppercase()
}

/// One manager over HTTP.
struct Rest {
    egress: Egress,
    what: &'static str,
}

impl Rest {
    /// Who runs this decides where it connects, so private endpoints are as good as public ones; plain HTTP is for this
    /// machine only.
    fn new(what: &'static str, endpoint: &url::Url) -> Result<Self> {
        let local = matches!(
            endpoint.host_str(),
            Some("127.0.0.1" | "localhost" | "[::1]")
        );
        let anywhere = ["0.0.0.0/0", "::/0"].map(str::parse);
        let config = EgressConfig {
            allow_networks: anywhere.into_iter().flatten().collect(),
            allow_http: local,
            ..EgressConfig::default()
        };
        let egress = Egress::new(&config).map_err(Failure::other)?;
        Ok(Self { egress, what })
    }

    /// The JSON of an answer. Errors say which manager and which secret, and nothing that came back but a status.
    async fn json<T: DeserializeOwned>(&self, request: Request, asked: &str) -> Result<T> {
        let answer = self.egress.send(request).await;
        let answer = answer.map_err(|e| self.unsent(e, asked))?;
        if !answer.is_success() {
            return Err(self.refused(&answer, asked));
        }
        let json = serde_json::from_slice(&answer.body);
        json.map_err(|_| Failure::other(format!("{}: {asked}: no such answer is known", self.what)))
    }

    fn unsent(&self, error: EgressError, asked: &str) -> Failure {
        Failure::unavailable(format!("{}: {asked}: {error}", self.what))
    }

    fn refused(&self, answer: &Answer, asked: &str) -> Failure {
        let text = format!("{}: {asked}: HTTP status {}", self.what, answer.status);
        match answer.status {
            401 | 403 => Failure::new(Exit::Denied, text),
            404 => Failure::new(Exit::NotFound, text),
            429 | 500..=599 => Failure::unavailable(text),
            _ => Failure::other(text),
        }
    }
}

/// An endpoint that a person named.
fn endpoint(text: &str) -> Result<url::Url> {
    let url = url::Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "https" | "http") && url.host().is_some() && url.query().is_none()
    });
    url.ok_or_else(|| Failure::usage(format!("{text:?} is not an https:// URL")))
}

/// The URL of `endpoint` with these path segments and this query, whatever characters they have.
fn at(endpoint: &url::Url, path: &[&str], query: &[(&str, &str)]) -> String {
    let mut url = endpoint.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url.into()
}

/// A bearer token from a file.
fn bearer(file: &std::path::Path) -> Result<SecretString> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::usage(format!("--token-file {}: {e}", file.display())))?;
    let token = Secret::new(text);
    Ok(Secret::new(token.expose_secret().trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager with these secrets, which remembers what it was asked for.
    struct Fake {
        secrets: BTreeMap<&'static str, &'static str>,
        asked: std::sync::Mutex<Vec<String>>,
    }

    impl Manager for Fake {
        async fn list(&self, prefix: &str) -> Result<Vec<String>> {
            let names = self.secrets.keys().filter(|name| name.starts_with(prefix));
            Ok(names.map(|name| (*name).to_owned()).collect())
        }

        async fn get(&self, name: &str) -> Result<SecretString> {
            self.asked.lock().unwrap().push(name.to_owned());
            Ok(Secret::new(self.secrets[name].to_owned()))
        }
    }

    async fn read(prefix: &str, bundles: &[&str]) -> (Result<Variables>, Vec<String>) {
        let fake = Fake {
            secrets: [
                ("prod/openai-api-key", "sk-1"),
                ("prod/MISTRAL_API_KEY", "m"),
                ("test/OPENAI_API_KEY", "sk-2"),
                ("prod/database", "password"),
                ("prod/llm", "{\"XAI_API_KEY\":\"x\"}"),
                ("prod/bad", "[\"planted\"]"),
            ]
            .into(),
            asked: std::sync::Mutex::default(),
        };
        let known = ["OPENAI_API_KEY", "MISTRAL_API_KEY", "XAI_API_KEY"].into();
        let bundles: Vec<_> = bundles.iter().map(|b| (*b).to_owned()).collect();
        let read = variables(&fake, prefix, &bundles, &known).await;
        (read, fake.asked.into_inner().unwrap())
    }

    #[tokio::test]
    async fn only_what_the_catalogue_names_is_fetched() {
        let (found, asked) = read("prod/", &["prod/llm"]).await;
        let found = found.unwrap();
        assert_eq!(
            asked,
            ["prod/MISTRAL_API_KEY", "prod/openai-api-key", "prod/llm"]
        );
        let names: Vec<_> = found.keys().collect();
        assert_eq!(names, ["MISTRAL_API_KEY", "OPENAI_API_KEY", "XAI_API_KEY"]);
        let value = found["OPENAI_API_KEY"].as_ref().unwrap();
        assert_eq!(value.expose_secret(), "sk-1");
    }

    #[tokio::test]
    async fn two_secrets_for_one_variable_are_told_apart_by_a_person() {
        let (found, _) = read("", &[]).await;
        let bad = found.unwrap()["OPENAI_API_KEY"].as_ref().err().cloned();
        assert_eq!(bad.unwrap().reason, "TWICE");
    }

    #[tokio::test]
    async fn a_bundle_that_is_none_is_not_quoted() {
        let (found, _) = read("prod/", &["prod/bad"]).await;
        let said = found.err().unwrap().to_string();
        assert!(
            said.contains("prod/bad") && !said.contains("planted"),
            "{said}"
        );
    }

    #[test]
    fn parts_of_urls_cannot_leave_their_place() {
        let base = endpoint("https://v.example/").unwrap();
        assert_eq!(
            at(&base, &["secrets", "a/../b?c"], &[("d", "e&f")]),
            "https://v.example/secrets/a%2F..%2Fb%3Fc?d=e%26f"
        );
        for text in ["", "v.example", "ftp://v.example", "https://v.example/?a=b"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
