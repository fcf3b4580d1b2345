//! POST /oauth/introspect: what a token is (RFC 7662).
//!
//! A client learns about its own tokens, and about all of its tenant where it may VerifyToken. Everything else is not
//! active, and nothing more is said: not whether there is such a token, nor why it does not count.

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::{
    Answer, Oauth, Session,
    answer::{self, Refused},
    failed,
};
use crate::{
    error::{Kind, Result},
    model::{Action, Caller, Kid, Resource},
    tokens::{Audience, Claims, Confirmation},
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
    Ok(response(claims.as_ref()))
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
        let inactive = |why: &str| format!(r#"{{"active":false,"reason":"{why}"}}"#);
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
    // One is a hash in base64url, the other was checked to be a UUID: nothing to escape.
    format!(r#"{{"active":true,"kid":"{kid}","jti":"{}"}}"#, claims.jti)
}

/// What the client hears of a token that counts.
#[derive(Serialize)]
struct Members<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a Audience,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: &'a str,
    client_id: &'a str,
    // No scope is no member (RFC 7662 section 2.2, RFC 6749 section 3.3).
    #[serde(skip_serializing_if = "str::is_empty")]
    scope: &'a str,
    principal_type: &'a str,
    tenant: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gty: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<&'a Confirmation>,
    active: bool,
    token_type: &'static str,
}

impl<'a> Members<'a> {
    fn of(claims: &'a Claims) -> Self {
        // In parts, so that nobody adds a claim and forgets it here.
        let Claims {
            iss,
            sub,
            aud,
            exp,
            iat,
            nbf,
            jti,
            client_id,
            scope,
            principal_type,
            tenant,
            gty,
            cnf,
        } = claims;
        Self {
            iss,
            sub,
            aud,
            exp: *exp,
            iat: *iat,
            nbf: *nbf,
            jti,
            client_id,
            scope,
            principal_type,
            tenant,
            gty: gty.as_deref(),
            cnf: cnf.as_ref(),
            active: true,
            token_type: "Bearer",
        }
    }
}

fn response(claims: Option<&Claims>) -> Response {
    match claims {
        None => answer::json(StatusCode::OK, &serde_json::json!({ "active": false })),
        Some(claims) => answer::json(StatusCode::OK, &Members::of(claims)),
    }
}
