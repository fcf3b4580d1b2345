//! POST /oauth/token: a token for the client itself (RFC 6749 section 4.4).

use http::StatusCode;
use serde::Serialize;

use super::{
    Answer, Oauth, Session,
    answer::{Refused, json},
    failed,
};
use crate::model::{Action, Resource};

#[derive(Serialize)]
struct Body<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    scope: &'a str,
}

pub(super) async fn answer(oauth: &Oauth, session: Session) -> Answer {
    const ACTION: Action = Action::IssueClientToken;
    let Session {
        caller,
        client,
        form,
    } = session;
    let wanted = match form.get("grant_type") {
        Some("client_credentials") => target(&form).and_then(|audience| {
            let narrowed = oauth.clients.narrow(&client, form.get("scope"), audience);
            narrowed.map_err(Refused::from)
        }),
        Some(_) => Err(Refused::unsupported_grant_type()),
        None => Err(Refused::invalid_request("grant_type is missing")),
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(refused) => return Err(oauth.stumbled(&caller, ACTION, refused).await),
    };
    let act = async |permit| {
        let granted = oauth.clients.exchange(&permit, &client, &wanted).await?;
        let details = serde_json::json!({
            "client_id": client.client_id,
            "kid": granted.kid.as_str(),
            "jti": granted.jti,
            "scope": wanted.scopes.to_string(),
            "audience": wanted.audience,
            "shared": granted.is_shared,
        });
        Ok((granted, details.to_string()))
    };
    let resource = Resource::tenant(caller.principal.tenant.clone());
    let granted = oauth.gate.access(&caller, ACTION, resource, act).await;
    let granted = granted.map_err(|error| failed(&error, &caller.request_id))?;
    let body = Body {
        access_token: granted.token.expose_secret(),
        token_type: "Bearer",
        expires_in: granted.expires_in.as_secs(),
        scope: &wanted.scopes.to_string(),
    };
    Ok(json(StatusCode::OK, &body))
}

/// What the token is to be for: `resource` (RFC 8707) or `audience`, which many clients know instead.
fn target(form: &super::Form) -> Result<Option<&str>, Refused> {
    match (form.get("resource"), form.get("audience")) {
        (Some(resource), Some(audience)) if resource != audience => Err(Refused::invalid_request(
            "resource and audience name two audiences; ask for one",
        )),
        (resource, audience) => Ok(resource.or(audience)),
    }
}
