//! Google Secret Manager, REST API v1.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Manager, Rest, at, bearer, endpoint};
use crate::{
    cli::exit::{Failure, Result},
    egress::Request,
    model::{Secret, secret::SecretString},
};

/// Where it is, unless somebody says otherwise.
pub const ENDPOINT: &str = "https://secretmanager.googleapis.com";
/// Pages of a listing at most.
const MAX_PAGES: usize = 1000;

/// The secrets of one project.
pub struct Google {
    rest: Rest,
    endpoint: url::Url,
    project: String,
    token: SecretString,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    secrets: Vec<Listed>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
}

#[derive(Deserialize)]
struct Found {
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    data: SecretString,
}

impl Google {
    /// The token is one with the scope `cloud-platform`.
    pub fn new(at: &str, project: &str, token_file: &Path) -> Result<Self> {
        let endpoint = endpoint(at)?;
        Ok(Self {
            rest: Rest::new("Google Secret Manager", &endpoint)?,
            endpoint,
            project: project.to_owned(),
            token: bearer(token_file)?,
        })
    }

    fn ask(&self, path: &[&str], query: &[(&str, &str)]) -> Request {
        let own = ["v1", "projects", &self.project, "secrets"];
        let path: Vec<&str> = own.into_iter().chain(path.iter().copied()).collect();
        let token = format!("Bearer {}", self.token.expose_secret());
        Request::new(Method::GET, at(&self.endpoint, &path, query)).header("authorization", token)
    }
}

impl Manager for Google {
    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let query = [("pageSize", "250"), ("pageToken", token.as_str())];
            let asked = self.ask(&[], &query);
            let page: Page = self.rest.json(asked, "the list of secrets").await?;
            let found = page
                .secrets
                .iter()
                .filter_map(|s| s.name.rsplit('/').next());
            names.extend(
                found
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(names);
            }
        }
        Err(Failure::other(
            "Google Secret Manager: the list of secrets has no end",
        ))
    }

    async fn get(&self, name: &str) -> Result<SecretString> {
        let asked = self.ask(&[name, "versions", "latest:access"], &[]);
        let found: Found = self.rest.json(asked, name).await?;
        let no_text = || Failure::other(format!("Google Secret Manager: {name} is no text"));
        let data = BASE64_STANDARD.decode(found.payload.data.expose_secret());
        let data = Zeroizing::new(data.map_err(|_| no_text())?);
        let text = std::str::from_utf8(&data).map_err(|_| no_text())?;
        Ok(Secret::new(text.to_owned()))
    }
}
