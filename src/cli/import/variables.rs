//! Variables such as `OPENAI_API_KEY`, wherever they come from, and the credentials that they are by the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bad, Item, Owner, Row};
use crate::{
    grpc::proto::{CredentialEnvironment, Provider},
    model::{Secret, secret::SecretString},
};

/// Variables by name: a value, or why there is none.
pub type Variables = BTreeMap<String, Result<SecretString, Bad>>;

/// What the variables do not say about their credentials.
pub struct Common {
    /// Whose they are.
    pub owner: Owner,
    /// Environment at the providers.
    pub environment: CredentialEnvironment,
    /// Their name; empty for the default.
    pub name: String,
}

/// Names of the variables that the catalogue knows.
pub fn known(providers: &[Provider]) -> BTreeSet<&str> {
    let names = providers
        .iter()
        .flat_map(|provider| provider.variables.values());
    names.map(String::as_str).collect()
}

/// A credential for every provider of which some variable is set. Its row is named after the provider.
pub fn rows(providers: &[Provider], variables: &Variables, common: &Common) -> Vec<Row> {
    let set = |provider: &&Provider| {
        let mut names = provider.variables.values();
        names.any(|name| variables.get(name).is_some_and(is_set))
    };
    let row = |provider: &Provider| Row {
        id: provider.name.clone(),
        item: item(provider, variables, common),
    };
    providers.iter().filter(set).map(row).collect()
}

/// What is empty is how people write that they have none.
fn is_set(value: &Result<SecretString, Bad>) -> bool {
    match value {
        Ok(value) => !value.expose_secret().is_empty(),
        Err(_) => true,
    }
}

fn item(provider: &Provider, variables: &Variables, common: &Common) -> Result<Item, Bad> {
    let mut fields = Vec::new();
    for field in &provider.fields {
        let name = provider.variables.get(&field.name);
        let value = name.and_then(|name| variables.get(name));
        match value.filter(|value| is_set(value)) {
            Some(Ok(value)) => {
                let value = Secret::new(value.expose_secret().clone());
                fields.push((field.name.clone(), value));
            }
            Some(Err(bad)) => return Err(bad.clone()),
            None if field.required => {
                let name = name.map_or(field.name.as_str(), String::as_str);
                return Err(Bad::new("MISSING", format!("{name} is not set")));
            }
            None => {}
        }
    }
    Ok(Item {
        owner: common.owner.clone(),
        provider: provider.name.clone(),
        environment: common.environment,
        name: common.name.clone(),
        organisation: String::new(),
        fields,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::ProviderField;

    fn provider(name: &str, fields: &[(&str, &str, bool)]) -> Provider {
        let field = |(name, _, required): &(&str, &str, bool)| ProviderField {
            name: (*name).to_owned(),
            required: *required,
            formats: Vec::new(),
        };
        let variable =
            |(name, variable, _): &(&str, &str, bool)| ((*name).to_owned(), (*variable).to_owned());
        Provider {
            name: name.to_owned(),
            fields: fields.iter().map(field).collect(),
            variables: fields.iter().map(variable).collect(),
            ..Provider::default()
        }
    }

    #[test]
    fn variables_become_the_credentials_of_the_catalogue() {
        let providers = [
            provider("openai", &[("api_key", "OPENAI_API_KEY", true)]),
            provider("mistral", &[("api_key", "MISTRAL_API_KEY", true)]),
            provider("unused", &[("api_key", "UNUSED_API_KEY", true)]),
            provider("broken", &[("api_key", "BROKEN_API_KEY", true)]),
            provider(
                "broker",
                &[
                    ("api_key", "BROKER_KEY", true),
                    ("api_secret", "BROKER_SECRET", true),
                    ("passphrase", "BROKER_PASSPHRASE", false),
                ],
            ),
        ];
        let ok = |text: &str| Ok(Secret::new(text.to_owned()));
        let mut variables: Variables = [
            ("OPENAI_API_KEY".to_owned(), ok("sk-1")),
            ("MISTRAL_API_KEY".to_owned(), ok("")),
            ("BROKEN_API_KEY".to_owned(), Err(Bad::new("X", "y"))),
            ("BROKER_KEY".to_owned(), ok("k")),
            ("PATH".to_owned(), ok("/bin")),
        ]
        .into();
        let common = Common {
            owner: Owner::Name("ann".to_owned()),
            environment: CredentialEnvironment::Testing,
            name: String::new(),
        };
        let said = |variables: &Variables| -> Vec<String> {
            let rows = rows(&providers, variables, &common).into_iter();
            rows.map(|row| match row.item {
                Ok(item) => format!("{}: {} fields", row.id, item.fields.len()),
                Err(bad) => format!("{}: {} {}", row.id, bad.reason, bad.message),
            })
            .collect()
        };
        assert_eq!(
            said(&variables),
            [
                "openai: 1 fields",
                "broken: X y",
                "broker: MISSING BROKER_SECRET is not set"
            ]
        );
        variables.insert("BROKER_SECRET".to_owned(), ok("s"));
        assert_eq!(said(&variables)[2], "broker: 2 fields");
        assert_eq!(known(&providers).len(), 7);
    }
}
