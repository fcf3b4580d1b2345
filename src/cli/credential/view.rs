//! How credentials and providers are shown. Nothing here has a secret to show.

use std::io::{self, Write};

use super::super::{output, people::People};
use crate::grpc::proto::{
    Credential, CredentialEnvironment, CredentialProbe, Provider, ProviderReport,
};

/// Beside the answer. Nobody is left to tell when stderr is closed.
pub fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// Credentials, one in a line.
pub fn table(credentials: &[Credential]) -> String {
    let rows = credentials.iter().map(|c| {
        [
            c.id.clone(),
            c.provider.clone(),
            environment(c.environment()),
            c.name.clone(),
            People::strangers().short(&c.owner_id),
            c.masked.clone(),
            format_of(c.format_ok),
            probe(c.last_probe.as_ref()),
            output::when(&c.rotation_due_time),
        ]
    });
    output::table(
        [
            "ID",
            "PROVIDER",
            "ENVIRONMENT",
            "NAME",
            "OWNER",
            "KEY",
            "FORMAT",
            "PROBE",
            "DUE",
        ],
        rows,
    )
}

/// All that is known of one.
pub fn details(credential: Option<&Credential>) -> String {
    let c = credential.cloned().unwrap_or_default();
    let values = c.values.iter().map(|value| {
        let label = output::short(value.label().as_str_name(), "CREDENTIAL_LABEL_");
        format!(
            "{label} …{} since {}",
            value.last_four,
            output::time(&value.create_time)
        )
    });
    output::details([
        ("id", c.id.clone()),
        ("provider", c.provider.clone()),
        ("environment", environment(c.environment())),
        ("name", c.name.clone()),
        ("tenant", c.tenant.clone()),
        ("owner", People::strangers().long(&c.owner_id)),
        ("organisation", c.organisation.clone()),
        ("key", c.masked.clone()),
        ("values", values.collect::<Vec<_>>().join(", ")),
        ("format", format_of(c.format_ok)),
        ("last probe", probe(c.last_probe.as_ref())),
        ("to be replaced", output::time(&c.rotation_due_time)),
        ("by", c.rotation_driver.clone()),
        ("created", output::time(&c.create_time)),
        ("changed", output::time(&c.update_time)),
    ])
}

/// What is configured, one provider and environment in a line.
pub fn report(rows: &[ProviderReport]) -> String {
    let rows = rows.iter().map(|row| {
        [
            row.provider.clone(),
            environment(row.environment()),
            row.configured.to_string(),
            row.format_ok.to_string(),
            row.probe_valid.to_string(),
            row.probe_invalid.to_string(),
            row.probe_unknown.to_string(),
            output::when(&row.last_probe_time),
        ]
    });
    output::table(
        [
            "PROVIDER",
            "ENVIRONMENT",
            "CONFIGURED",
            "FORMAT OK",
            "VALID",
            "INVALID",
            "UNKNOWN",
            "PROBED",
        ],
        rows,
    )
}

/// The catalogue, one provider in a line.
pub fn providers(providers: &[Provider]) -> String {
    let rows = providers.iter().map(|p| {
        let fields = p.fields.iter().map(|field| match field.formats.as_slice() {
            [] => field.name.clone(),
            formats => format!("{}: {}", field.name, formats.join("; or ")),
        });
        [
            p.name.clone(),
            p.title.clone(),
            p.kind.clone(),
            fields.collect::<Vec<_>>().join("\n"),
            output::duration(&p.rotation_period),
            p.probe.clone(),
        ]
    });
    output::table(
        ["NAME", "TITLE", "KIND", "FIELDS", "ROTATES", "PROBE"],
        rows,
    )
}

fn environment(environment: CredentialEnvironment) -> String {
    match environment {
        CredentialEnvironment::Unspecified => String::new(),
        named => output::short(named.as_str_name(), "CREDENTIAL_ENVIRONMENT_").to_lowercase(),
    }
}

fn format_of(ok: bool) -> String {
    if ok { "ok" } else { "unusual" }.to_owned()
}

pub fn probe(probe: Option<&CredentialProbe>) -> String {
    let Some(probe) = probe else {
        return String::new();
    };
    let result = output::short(probe.result().as_str_name(), "PROBE_RESULT_");
    format!("{result} ({}), {}", probe.detail, output::when(&probe.time))
}
