//! What a source gives: rows, each a credential or a reason why it is none.

use serde::{Deserialize, Serialize};

use crate::{
    grpc::proto::{CredentialEnvironment, CredentialField, ImportCredential},
    model::secret::SecretString,
};

/// One row of a source.
pub struct Row {
    /// What names it at its source, and in the state file: no secret.
    pub id: String,
    /// The credential.
    pub item: Result<Item, Bad>,
}

/// A credential to import.
pub struct Item {
    /// Whose.
    pub owner: Owner,
    /// Name of the provider.
    pub provider: String,
    /// Environment at the provider.
    pub environment: CredentialEnvironment,
    /// Name of the credential; empty for the default.
    pub name: String,
    /// Organisation at the provider; empty for none.
    pub organisation: String,
    /// The secret.
    pub fields: Vec<(String, SecretString)>,
}

/// Whose a credential is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// By id.
    Id(String),
    /// By name in the tenant.
    Name(String),
}

/// Why a row cannot be imported. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// For programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Bad {
    /// From a reason and a sentence.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// How a row was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// For the first time.
    Created,
    /// In the place of another value.
    Replaced,
    /// The same value was there.
    Unchanged,
}

impl Item {
    /// As the daemon takes it.
    pub fn message(&self) -> ImportCredential {
        let (owner_id, owner_name) = match &self.owner {
            Owner::Id(id) => (id.clone(), String::new()),
            Owner::Name(name) => (String::new(), name.clone()),
        };
        let field = |(name, value): &(String, SecretString)| CredentialField {
            name: name.clone(),
            value: value.expose_secret().as_bytes().to_vec().into(),
        };
        ImportCredential {
            owner_id,
            owner_name,
            provider: self.provider.clone(),
            environment: self.environment.into(),
            name: self.name.clone(),
            fields: self.fields.iter().map(field).collect(),
            organisation: self.organisation.clone(),
        }
    }

    /// Where it belongs: two with one place are one credential.
    pub fn place(&self) -> (Owner, String, i32, String) {
        let name = match self.name.as_str() {
            "" => "default",
            name => name,
        };
        (
            self.owner.clone(),
            self.provider.clone(),
            self.environment.into(),
            name.to_owned(),
        )
    }

    /// Bytes that its message has at least.
    pub fn size(&self) -> usize {
        let fields = self.fields.iter();
        200 + fields
            .map(|(name, value)| name.len() + value.expose_secret().len())
            .sum::<usize>()
    }
}

/// An environment by the words that people and other programs use for it.
pub fn environment(text: &str) -> Result<CredentialEnvironment, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "development" | "dev" => Ok(CredentialEnvironment::Development),
        "testing" | "test" | "paper" | "sandbox" => Ok(CredentialEnvironment::Testing),
        "production" | "prod" | "live" => Ok(CredentialEnvironment::Production),
        _ => Err("expected development, testing or production".to_owned()),
    }
}
