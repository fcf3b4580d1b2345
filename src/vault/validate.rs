//! Does a value look right, and does the provider take it (R-CRED-6)?
//!
//! The probe is one request without effect, through the egress, before the transaction that notes what came of it. What the
//! provider says besides its status is never read: it could quote the key.

use std::{sync::Arc, time::Duration};

use http::Method;

use super::{Vault, Warnings, catalogue::look_at, conflict, details};
use crate::{
    egress::{Egress, Request},
    error::Result,
    gate::{AdminPermit, Recorded, not_found},
    model::{
        CredentialEnvironment, ProbeResult, ProbeSpec, Probed, Provider, SecretFields, Timestamp,
        ValueLabel,
    },
    store::FullCredential,
};

/// Time for a provider to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a validation.
pub struct Validated {
    /// The credential as it is now.
    pub credential: FullCredential,
    /// What is unusual about the format.
    pub warnings: Warnings,
    /// What the provider said.
    pub probed: Probed,
}

impl Vault {
    /// Looks at the CURRENT value and asks the provider about it.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND; CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE; INVALID_FIELD for a provider that
    /// the catalogue does not have any more; CONFLICT when the credential was changed meanwhile.
    pub async fn validate(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
    ) -> Result<Recorded<Validated>> {
        let found = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let value = found.value(ValueLabel::Current);
        let value = value.ok_or_else(|| not_found(permit.permit().resource()))?;
        let provider = self.catalogue.provider(&found.head.key.provider)?;
        let fields = self.open(&found.head, value).await?;
        let warnings = look_at(provider, &fields)?;
        let organisation = &found.head.organisation;
        let environment = found.head.key.environment;
        let probed = self.ask(provider, environment, &fields, organisation).await;
        let mut head = found.head.clone();
        head.format_ok = warnings.is_empty();
        head.probe = Some(probed.clone());
        head.updated_at = self.clock.now();
        let mut details = details(&head.key);
        details["format_ok"] = head.format_ok.into();
        details["probe"] = probed.result.as_str().into();
        details["detail"] = probed.detail.as_str().into();
        let mut mutation = permit.begin().await?;
        if !mutation.tx().update_credential(&head).await? {
            return Err(conflict());
        }
        head.revision += 1;
        let validated = Validated {
            credential: FullCredential {
                head,
                values: found.values,
            },
            warnings,
            probed,
        };
        mutation.record(validated, details).await
    }

    /// Asks a provider about a secret. Nothing is stored, and no failure is an error: it is the answer.
    pub(super) async fn ask(
        &self,
        provider: &Provider,
        environment: CredentialEnvironment,
        fields: &SecretFields,
        organisation: &str,
    ) -> Probed {
        let at = self.clock.now();
        let Some(spec) = &provider.probe else {
            return probed(ProbeResult::NoProbe, "NO_PROBE", at);
        };
        let Some(request) = request(spec, environment, fields, organisation) else {
            return probed(ProbeResult::Unreachable, "BAD_REQUEST", at);
        };
        let egress: &Arc<Egress> = &self.egress;
        let outcome = match egress.send(request).await {
            Ok(answer) => {
                let detail = format!("HTTP_{}", answer.status);
                probed(verdict(spec, answer.status), &detail, at)
            }
            Err(error) => probed(ProbeResult::Unreachable, error.as_str(), at),
        };
        metrics::counter!(
            "claviger_credential_probes_total",
            "provider" => provider.name.to_string(), "result" => outcome.result.as_str()
        )
        .increment(1);
        outcome
    }
}

fn probed(result: ProbeResult, detail: &str, at: Timestamp) -> Probed {
    Probed {
        result,
        detail: detail.to_owned(),
        at,
    }
}

fn verdict(spec: &ProbeSpec, status: u16) -> ProbeResult {
    match status {
        status if status == spec.expect => ProbeResult::Valid,
        status if spec.refuse.contains(&status) => ProbeResult::Invalid,
        _ => ProbeResult::Unexpected,
    }
}

/// The request that asks. None when the catalogue's method is none.
fn request(
    spec: &ProbeSpec,
    environment: CredentialEnvironment,
    fields: &SecretFields,
    organisation: &str,
) -> Option<Request> {
    let method = Method::from_bytes(spec.method.as_bytes()).ok()?;
    let mut request = Request::new(method, spec.url(environment)).patience(PATIENCE);
    for (name, template) in &spec.headers {
        // A header about something that is not there is left out.
        if let Some(value) = filled(template, fields, organisation) {
            request = request.header(name.clone(), value);
        }
    }
    Some(request)
}

/// The template with its `{names}` replaced.
fn filled(template: &str, fields: &SecretFields, organisation: &str) -> Option<String> {
    let mut out = zeroize::Zeroizing::new(String::with_capacity(16 << 10));
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        out.push_str(before);
        out.push_str(match name {
            "organisation" if organisation.is_empty() => return None,
            "organisation" => organisation,
            name => fields.get(name)?.expose_secret(),
        });
        rest = after;
    }
    out.push_str(rest);
    Some(std::mem::take(&mut *out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;

    #[test]
    fn headers_are_filled_and_left_out_where_something_is_missing() {
        let secret = [(
            "api_key".to_owned(),
            Secret::new("k{organisation}".to_owned()),
        )];
        let fields = SecretFields::new(secret).expect("a secret");
        let of = |template, organisation| filled(template, &fields, organisation);
        assert_eq!(
            of("Bearer {api_key}", ""),
            Some("Bearer k{organisation}".to_owned())
        );
        assert_eq!(of("plain", ""), Some("plain".to_owned()));
        assert_eq!(of("{organisation}", ""), None);
        assert_eq!(of("{organisation}", "org-1"), Some("org-1".to_owned()));
        assert_eq!(of("{api_secret}", "org-1"), None);
        assert_eq!(of("{api_key", "org-1"), None);
    }
}
