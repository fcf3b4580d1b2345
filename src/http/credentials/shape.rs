//! Credentials as JSON: docs/vault.md.

use serde_json::{Value, json};

use super::body::page_token;
use crate::{
    error::Result,
    model::{Secret, Timestamp},
    vault::{FullCredential, ListedCredential, ListedValue, Revealed},
};

/// `{"credentials": […]}`, and where the next page begins if there may be one.
pub fn page(page: &[ListedCredential], size: i64) -> Value {
    let all: Vec<_> = page.iter().map(listed).collect();
    let mut json = json!({ "credentials": all });
    if let Some(last) = page.last()
        && page.len() as i64 == size
    {
        json["next_page_token"] = page_token(&last.head.id.to_string()).into();
    }
    json
}

/// One credential, masked.
pub fn credential(c: &FullCredential) -> Value {
    listed(&c.listed())
}

fn listed(c: &ListedCredential) -> Value {
    let head = &c.head;
    let probe = head.probe.as_ref().map(|probe| {
        json!({
            "result": probe.result.as_str(),
            "detail": probe.detail,
            "time": probe.at.to_string(),
        })
    });
    json!({
        "id": head.id.to_string(),
        "owner_id": head.key.owner.to_string(),
        "provider": head.key.provider.as_str(),
        "environment": head.key.environment.as_str(),
        "name": head.key.name,
        "organisation": head.organisation,
        "masked": c.masked(),
        "values": c.values.iter().map(value).collect::<Vec<_>>(),
        "format_ok": head.format_ok,
        "last_probe": probe,
        "rotation_due_time": head.rotation_due_at.to_string(),
        "create_time": head.created_at.to_string(),
        "update_time": head.updated_at.to_string(),
    })
}

/// What is kept of an answer with a secret.
pub fn unrevealed(revealed: &Revealed) -> Value {
    json!({
        "id": revealed.credential.head.id.to_string(),
        "label": revealed.label.as_str(),
    })
}

/// The secret, as JSON that is wiped. It is for the caller and nobody else. Errors: INTERNAL.
pub fn revealed(revealed: &Revealed) -> Result<Secret<Vec<u8>>> {
    // Ids and labels need no escaping.
    let head = format!(
        r#"{{"id":"{}","label":"{}","fields":"#,
        revealed.credential.head.id,
        revealed.label.as_str()
    );
    let fields = revealed.fields.to_json()?;
    let fields = fields.expose_secret();
    let mut json = Vec::with_capacity(head.len() + fields.len() + 1);
    json.extend_from_slice(head.as_bytes());
    json.extend_from_slice(fields);
    json.push(b'}');
    Ok(Secret::new(json))
}

fn value(v: &ListedValue) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "label": v.label.as_str(),
        "last_four": v.last_four,
        "create_time": v.created_at.to_string(),
        "promote_time": time(v.promoted_at),
        "hold_until_time": time(v.hold_until),
    })
}
