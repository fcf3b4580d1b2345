//! POST /oauth/introspect: what a token is (RFC 7662).
//!
//! A client learns about its own tokens, and about all of its tenant where it may VerifyToken. Everything else is not
//! active, and nothing more is said: not whether there is such a token, nor why it does not count.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Answer, Oauth, Session,
    answer::{self, Refused},
    failed,
};
use crate::{
    error::{Kind, Result},
    model::{Action, Caller, Kid, Resource},
    tokens::Claims,
};

const ACTION: Action = Action::IntrospectToken;

pub(super) async fn answer(oauth: &Oauth, session: Session) -> Answer {
    let Session { caller, form, .. } = &session;
    let Some(token) = form.get("token") else {
        let refused = Refused::invalid_request("token is missing");
        return Err(oauth.stumbled(caller, ACTION, refused).await);
    };
    let client_id = session.client.client_id.as_str();
    let verdict = match verdict(oauth, caller, client_id, token).await {
        // Overtaken by a freeze or a revocation: the second look sees it.
        Err(error) if matches!(error.kind(), Kind::FailedPrecondition | Kind::Aborted) => {
            verdict(oauth, caller, client_id, token).await
        }
        verdict => verdict,
    };
    let claims = verdict.map_err(|error| failed(&error, &caller.request_id))?;
    Ok(response(claims))
}

/// The claims of a token that counts and that the client may know about.
async fn verdict(
    oauth: &Oauth,
    caller: &Caller,
    client_id: &str,
    token: &str,
) -> Result<Option<Claims>> {
    let tenant = &caller.principal.tenant;
    let resource = Resource::tenant(tenant.clone());
    let sees_all = oauth.gate.may(caller, Action::VerifyToken, &resource);
    let act = async |permit| {
        let inactive = |why: &str| json!({ "active": false, "reason": why }).to_string();
        Ok(match oauth.tokens.inspect(&permit, token, tenant).await? {
            Ok((claims, _)) if !oauth.clients.still_counts(&claims).await? => {
                (None, inactive("SUSPENDED"))
            }
            Ok((claims, kid)) if sees_all || claims.client_id == client_id => {
                let details = active(&claims, &kid);
                (Some(claims), details)
            }
            Ok(_) => (None, inactive("FOREIGN")),
            Err(rejection) => (None, inactive(rejection.as_str())),
        })
    };
    oauth.gate.access(caller, ACTION, resource, act).await
}

fn active(claims: &Claims, kid: &Kid) -> String {
    json!({ "active": true, "kid": kid.as_str(), "jti": claims.jti }).to_string()
}

fn response(claims: Option<Claims>) -> Response {
    let body = match claims {
        None => json!({ "active": false }),
        Some(claims) => members(claims),
    };
    answer::json(StatusCode::OK, &body)
}

fn members(claims: Claims) -> Value {
    let mut members = serde_json::to_value(claims).unwrap_or_default();
    members["active"] = true.into();
    members["token_type"] = "Bearer".into();
    // No scope is no member (RFC 7662 section 2.2, RFC 6749 section 3.3).
    if let Some(object) = members.as_object_mut()
        && object.get("scope").is_some_and(|scope| scope == "")
    {
        object.remove("scope");
    }
    members
}
