//! The catalogue of providers: built in, extended by `[[vault.providers]]`.

use std::collections::BTreeMap;

use figment::{
    Figment,
    providers::{Format as _, Toml},
};
use serde::Deserialize;

use crate::{
    error::{Error, Reason, Result},
    model::{Provider, ProviderName, SecretFields},
};

const BUILT_IN: &str = include_str!("providers.toml");

/// Every known provider.
pub struct Catalogue {
    by_name: BTreeMap<ProviderName, Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    providers: Vec<Provider>,
}

/// What is unusual about a secret, for people. It tells names of fields and no value.
pub type Warnings = Vec<String>;

impl Catalogue {
    /// The built-in providers and these, which replace those of the same name. `base_urls` says where providers are asked
    /// instead of where the catalogue says.
    ///
    /// Errors: a sentence that says what is wrong.
    pub fn new(
        more: &[Provider],
        base_urls: &BTreeMap<ProviderName, String>,
    ) -> std::result::Result<Self, String> {
        let file: File = Figment::from(Toml::string(BUILT_IN))
            .extract()
            .map_err(|e| format!("the built-in catalogue of providers: {e}"))?;
        let all = file.providers.into_iter().chain(more.iter().cloned());
        let mut by_name: BTreeMap<_, _> = all.map(|p| (p.name.clone(), p)).collect();
        for (name, url) in base_urls {
            let provider = by_name.get_mut(name);
            let probe = provider.and_then(|provider| provider.probe.as_mut());
            let probe = probe.ok_or_else(|| format!("base_urls: {name} has no probe"))?;
            probe.base_url.clone_from(url);
            probe.environment_urls.clear();
        }
        by_name.values().try_for_each(Provider::check)?;
        Ok(Self { by_name })
    }

    /// Every provider, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.by_name.values()
    }

    /// The provider with this name. Errors: INVALID_FIELD with those that there are.
    pub fn provider(&self, name: &ProviderName) -> Result<&Provider> {
        self.by_name.get(name).ok_or_else(|| {
            let known: Vec<_> = self.by_name.keys().map(ProviderName::as_str).collect();
            Error::new(
                Reason::InvalidField,
                format!(
                    "no provider {name} is known; there is {}, and [[vault.providers]] of the configuration adds more",
                    known.join(", ")
                ),
            )
        })
    }
}

/// Does the provider know every field, and is every one there that it needs? What looks unusual is told.
///
/// Errors: INVALID_FIELD, which names a field and no value.
pub fn look_at(provider: &Provider, fields: &SecretFields) -> Result<Warnings> {
    let invalid = |text: String| Err(Error::new(Reason::InvalidField, text));
    let name = &provider.name;
    for (field, _) in fields.iter() {
        if provider.field(field).is_none() {
            let known: Vec<_> = provider.fields.iter().map(|f| f.name.as_str()).collect();
            return invalid(format!(
                "{name} has no field {field}; its fields are {}",
                known.join(", ")
            ));
        }
    }
    let mut warnings = Warnings::new();
    for spec in &provider.fields {
        let Some(value) = fields.get(&spec.name) else {
            if spec.optional {
                continue;
            }
            return invalid(format!("{name} needs field {}", spec.name));
        };
        let looks_right = spec.formats.is_empty()
            || spec
                .formats
                .iter()
                .any(|format| format.matches(value.expose_secret()));
        if !looks_right {
            let forms: Vec<_> = spec.formats.iter().map(ToString::to_string).collect();
            warnings.push(format!(
                "field {} does not look like one of {name}: {}",
                spec.name,
                forms.join(", or ")
            ));
        }
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CredentialEnvironment, Secret};

    fn catalogue() -> Catalogue {
        Catalogue::new(&[], &BTreeMap::new()).expect("the built-in catalogue")
    }

    fn secret(fields: &[(&str, &str)]) -> SecretFields {
        let fields = fields
            .iter()
            .map(|(n, v)| ((*n).to_owned(), Secret::new((*v).to_owned())));
        SecretFields::new(fields).expect("a secret")
    }

    fn warnings(provider: &str, key: &str) -> usize {
        let catalogue = catalogue();
        let provider = catalogue.provider(&provider.parse().expect("a name"));
        let seen = look_at(provider.expect("a provider"), &secret(&[("api_key", key)]));
        seen.expect("the right fields").len()
    }

    // R-CRED-4
    #[test]
    fn the_eight_llm_providers_are_known_by_their_documented_formats() {
        let of = |n: usize| "aB3x".repeat(n.div_ceil(4)).split_at(n).0.to_owned();
        for (provider, prefix, length) in [
            ("openai", "sk-", 48),
            ("openai", "sk-proj-", 48),
            ("anthropic", "sk-ant-api03-", 95),
            ("gemini", "AIzaSy", 33),
            ("mistral", "", 32),
            ("grok", "xai-", 40),
            ("qwen", "sk-", 48),
            ("deepseek", "sk-", 48),
            ("kimi-k2", "sk-", 48),
        ] {
            let good = format!("{prefix}{}", of(length));
            assert_eq!(warnings(provider, &good), 0, "{provider}");
            let longer = format!("{good}{}", of(40));
            assert_eq!(warnings(provider, &longer), 0, "{provider}, newer");
            assert_eq!(warnings(provider, &good[..20]), 1, "{provider}, cut");
            let foreign = format!("zz!{}", of(length));
            assert_eq!(warnings(provider, &foreign), 1, "{provider}, foreign");
        }
        let llms = catalogue();
        let llms = llms
            .iter()
            .filter(|p| p.kind == crate::model::ProviderKind::Llm);
        assert_eq!(llms.count(), 8);
    }

    #[test]
    fn fields_are_those_of_the_provider() {
        let catalogue = catalogue();
        let alpaca = catalogue.provider(&"alpaca".parse().expect("a name"));
        let alpaca = alpaca.expect("a provider");
        let refused = |fields: &[(&str, &str)]| {
            let error = look_at(alpaca, &secret(fields)).expect_err("refused");
            assert_eq!(error.reason(), Reason::InvalidField);
            error.message().to_owned()
        };
        let one = refused(&[("api_key", "planted")]);
        assert_eq!(one, "alpaca needs field api_secret");
        let other = [
            ("api_key", "planted"),
            ("api_secret", "planted"),
            ("pin", "planted"),
        ];
        let other = refused(&other);
        assert!(
            other.contains("no field pin") && !other.contains("planted"),
            "{other}"
        );
    }

    #[test]
    fn the_configuration_adds_and_replaces_and_redirects() {
        let mut own = catalogue()
            .provider(&"oanda".parse().expect("a name"))
            .expect("a provider")
            .clone();
        own.name = "mine".parse().expect("a name");
        let urls = [(
            "alpaca".parse().expect("a name"),
            "https://proxy.test/".to_owned(),
        )];
        let catalogue = Catalogue::new(&[own], &urls.into()).expect("a catalogue");
        assert!(catalogue.provider(&"mine".parse().expect("a name")).is_ok());
        let alpaca = catalogue.provider(&"alpaca".parse().expect("a name"));
        let probe = alpaca.expect("a provider").probe.clone().expect("a probe");
        let url = probe.url(CredentialEnvironment::Testing);
        assert_eq!(url, "https://proxy.test/v2/account");
        let unknown = catalogue.provider(&"nobody".parse().expect("a name"));
        assert!(unknown.expect_err("unknown").message().contains("openai"));
        let urls = [(
            "binance".parse().expect("a name"),
            "https://x.test".to_owned(),
        )];
        assert!(Catalogue::new(&[], &urls.into()).is_err());
    }
}
