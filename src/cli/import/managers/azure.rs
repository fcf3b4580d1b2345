//! Azure Key Vault, REST API version 7.4.

use std::path::Path;

use http::Method;
use serde::Deserialize;

use super::{Manager, Rest, at, bearer, endpoint};
use crate::{
    cli::exit::{Failure, Result},
    egress::Request,
    model::secret::SecretString,
};

const VERSION: (&str, &str) = ("api-version", "7.4");
/// Pages of a listing at most: no vault has so many, a server that loops has.
const MAX_PAGES: usize = 1000;

/// One vault.
pub struct Azure {
    rest: Rest,
    vault: url::Url,
    token: SecretString,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    value: Vec<Listed>,
    next_link: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    attributes: Option<Attributes>,
}

#[derive(Deserialize)]
struct Attributes {
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct Found {
    value: SecretString,
}

impl Azure {
    /// `vault` is `https://NAME.vault.azure.net`; the token is one for `https://vault.azure.net`.
    pub fn new(vault: &str, token_file: &Path) -> Result<Self> {
        let vault = endpoint(vault)?;
        Ok(Self {
            rest: Rest::new("Azure Key Vault", &vault)?,
            vault,
            token: bearer(token_file)?,
        })
    }

    fn ask(&self, url: String) -> Request {
        let token = format!("Bearer {}", self.token.expose_secret());
        Request::new(Method::GET, url).header("authorization", token)
    }
}

impl Manager for Azure {
    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut next = Some(at(&self.vault, &["secrets"], &[VERSION]));
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else {
                return Ok(names);
            };
            let page: Page = self.rest.json(self.ask(url), "the list of secrets").await?;
            let enabled = |listed: &&Listed| {
                let attributes = listed.attributes.as_ref();
                attributes.and_then(|a| a.enabled).unwrap_or(true)
            };
            let listed = page.value.iter().filter(enabled);
            let found = listed.filter_map(|listed| listed.id.rsplit('/').next());
            names.extend(
                found
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
            next = page.next_link.filter(|link| !link.is_empty());
            if let Some(link) = &next {
                self.is_own(link)?;
            }
        }
        Err(Failure::other(
            "Azure Key Vault: the list of secrets has no end",
        ))
    }

    async fn get(&self, name: &str) -> Result<SecretString> {
        let url = at(&self.vault, &["secrets", name], &[VERSION]);
        let found: Found = self.rest.json(self.ask(url), name).await?;
        Ok(found.value)
    }
}

impl Azure {
    /// The token goes to the vault and to nobody whom an answer names.
    fn is_own(&self, link: &str) -> Result<()> {
        let link = url::Url::parse(link).ok();
        match link.is_some_and(|link| link.origin() == self.vault.origin()) {
            true => Ok(()),
            false => Err(Failure::other(
                "Azure Key Vault: the list of secrets goes on at another host",
            )),
        }
    }
}
