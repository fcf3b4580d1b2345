//! POST /oauth/revoke: the end of one of the client's own tokens (RFC 7009).
//!
//! What is no token, or another's, is answered the same and stays as it is.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::{Answer, Oauth, Session, answer::Refused, failed};
use crate::{
    audit::Receipt,
    error::Result,
    gate::{AdminPermit, Recorded},
    model::{Action, Resource, Secret, TenantName, Timestamp},
    tokens::{RevokeToken, Tokens},
};

pub(super) async fn answer(oauth: &Oauth, session: Session) -> Answer {
    const ACTION: Action = Action::RevokeOwnToken;
    let Session {
        caller,
        client,
        mut form,
    } = session;
    let Some(token) = form.take("token") else {
        let refused = Refused::invalid_request("token is missing");
        return Err(oauth.stumbled(&caller, ACTION, refused).await);
    };
    let tenant = caller.principal.tenant.clone();
    let resource = Resource::tenant(tenant.clone());
    let (tokens, client_id) = (Arc::clone(&oauth.tokens), client.client_id);
    let act = async move |permit| end(&tokens, permit, tenant, &client_id, token).await;
    let nothing = |_: &Timestamp, _: &Receipt| ();
    let ended = oauth
        .gate
        .mutate(&caller, ACTION, resource, nothing, act)
        .await;
    ended.map_err(|error| failed(&error, &caller.request_id))?;
    Ok(done())
}

async fn end(
    tokens: &Tokens,
    permit: AdminPermit,
    tenant: TenantName,
    client_id: &str,
    token: Secret<String>,
) -> Result<Recorded<Timestamp>> {
    let found = tokens
        .inspect(permit.permit(), token.expose_secret(), &tenant)
        .await?;
    let why = match found {
        Ok((claims, _)) if claims.client_id == client_id => {
            let request = RevokeToken {
                tenant,
                jti: claims.jti.parse()?,
                expires_at: Some(Timestamp::from_seconds(claims.exp)),
                reason: "its client revoked it".to_owned(),
            };
            return tokens.revoke(permit, request).await;
        }
        Ok(_) => "FOREIGN",
        Err(rejection) => rejection.as_str(),
    };
    // Nothing happens, and the log says why.
    let mutation = permit.begin().await?;
    let details = json!({ "revoked": false, "reason": why });
    mutation.record(Timestamp::default(), details).await
}

fn done() -> Response {
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
    ];
    (StatusCode::OK, headers).into_response()
}
