//! AWS Secrets Manager: its JSON protocol, signed with Signature Version 4 by the credentials that the AWS tools use.

use aws_config::BehaviorVersion;
use aws_credential_types::{Credentials, provider::ProvideCredentials};
use aws_lc_rs::{digest, hmac};
use http::Method;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{Manager, Rest, endpoint};
use crate::{
    cli::{
        exit::{Exit, Failure, Result},
        input, output,
    },
    egress::Request,
    model::secret::SecretString,
};

const SERVICE: &str = "secretsmanager";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Pages of a listing at most.
const MAX_PAGES: usize = 1000;

/// The secrets of one account in one region.
pub struct Aws {
    rest: Rest,
    endpoint: url::Url,
    region: String,
    credentials: Credentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    secret_list: Vec<Listed>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    secret_string: Option<SecretString>,
}

impl Aws {
    /// Region and credentials come from where the AWS tools look: variables, profiles, the instance. Errors: there are
    /// none.
    pub async fn new(region: Option<String>, at: Option<&str>) -> Result<Self> {
        let region = region.map(aws_config::Region::new);
        let loader = aws_config::defaults(BehaviorVersion::latest());
        let loader = match region {
            Some(region) => loader.region(region),
            None => loader,
        };
        let config = loader.load().await;
        let region = config
            .region()
            .map(ToString::to_string)
            .ok_or_else(|| Failure::usage("which AWS region? Give --region, or set AWS_REGION"))?;
        let denied = |why: &str| Failure::new(Exit::Denied, format!("AWS credentials: {why}"));
        let provider = config.credentials_provider();
        let provider = provider.ok_or_else(|| denied("there are none"))?;
        let credentials = provider.provide_credentials().await;
        let credentials =
            credentials.map_err(|_| denied("there are none, or they cannot be fetched"))?;
        let own = format!("https://{SERVICE}.{region}.amazonaws.com");
        let endpoint = endpoint(at.unwrap_or(&own))?;
        Ok(Self {
            rest: Rest::new("AWS Secrets Manager", &endpoint)?,
            endpoint,
            region,
            credentials,
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        action: &str,
        body: serde_json::Value,
        asked: &str,
    ) -> Result<T> {
        let target = format!("{SERVICE}.{action}");
        let body = body.to_string();
        let (date, authorization) = self.sign(&target, body.as_bytes());
        let mut request = Request::new(Method::POST, self.endpoint.clone())
            .header("content-type", CONTENT_TYPE)
            .header("x-amz-date", date)
            .header("x-amz-target", target)
            .header("authorization", authorization)
            .body(body);
        if let Some(token) = self.credentials.session_token() {
            request = request.header("x-amz-security-token", token);
        }
        self.rest.json(request, asked).await
    }

    /// `x-amz-date` and `Authorization` of a request.
    fn sign(&self, target: &str, body: &[u8]) -> (String, String) {
        let host = match (self.endpoint.host_str(), self.endpoint.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let token = self.credentials.session_token();
        let date = output::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut headers = vec![
            ("content-type", CONTENT_TYPE),
            ("host", &host),
            ("x-amz-date", &date),
        ];
        headers.extend(token.map(|token| ("x-amz-security-token", token)));
        headers.push(("x-amz-target", target));
        let authorization = Signature {
            key_id: self.credentials.access_key_id(),
            key: self.credentials.secret_access_key(),
            region: &self.region,
            service: SERVICE,
            date: &date,
        }
        .of(self.endpoint.path(), &headers, body);
        (date, authorization)
    }
}

impl Manager for Aws {
    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut body = json!({ "MaxResults": 100 });
        for _ in 0..MAX_PAGES {
            let page: Page = self.ask("ListSecrets", body, "the list of secrets").await?;
            let found = page.secret_list.into_iter().map(|listed| listed.name);
            names.extend(found.filter(|name| name.starts_with(prefix)));
            match page.next_token {
                Some(token) => body = json!({ "MaxResults": 100, "NextToken": token }),
                None => return Ok(names),
            }
        }
        Err(Failure::other(
            "AWS Secrets Manager: the list of secrets has no end",
        ))
    }

    async fn get(&self, name: &str) -> Result<SecretString> {
        let body = json!({ "SecretId": name });
        let found: Found = self.ask("GetSecretValue", body, name).await?;
        found
            .secret_string
            .ok_or_else(|| Failure::other(format!("AWS Secrets Manager: {name} is no text")))
    }
}

/// AWS Signature Version 4 of a POST without a query.
struct Signature<'a> {
    key_id: &'a str,
    key: &'a str,
    region: &'a str,
    service: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    date: &'a str,
}

impl Signature<'_> {
    /// `headers` are lower case, sorted, and all of those that are signed.
    fn of(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"));
        let lines: String = lines.collect();
        let canonical = format!("POST\n{path}\n\n{lines}\n{names}\n{}", sha256(body));
        let day = self.date.split('T').next().unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.date,
            sha256(canonical.as_bytes())
        );
        let first = zeroize::Zeroizing::new(format!("AWS4{}", self.key));
        let key = mac(first.as_bytes(), day);
        let key = mac(key.as_ref(), self.region);
        let key = mac(key.as_ref(), self.service);
        let key = mac(key.as_ref(), "aws4_request");
        let signature = input::hex(mac(key.as_ref(), &text).as_ref());
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.key_id
        )
    }
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    input::hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `post-vanilla` of AWS's own test suite for Signature Version 4.
    #[test]
    fn a_known_request_has_its_known_signature() {
        let signature = Signature {
            key_id: "AKIDEXAMPLE",
            key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            service: "service",
            date: "20150830T123600Z",
        };
        let headers = [
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        assert_eq!(
            signature.of("/", &headers, b""),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }
}
