//! TokenService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, token_service_server::TokenService},
};
use crate::{
    audit::Receipt,
    error::{Kind, Result},
    model::{Action, Caller, KeyRef, PrincipalKind, Resource, Timestamp},
    tokens::{Claims, Expectation, IssueToken, Rejection, RevokeToken},
};

/// TokenService over these parts.
pub struct TokenApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const MAX_AUDIENCES: usize = 16;
const MAX_SCOPES: usize = 64;

impl TokenApi {
    async fn issue(
        &self,
        caller: Caller,
        r: proto::IssueTokenRequest,
    ) -> Result<proto::IssueTokenResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let own_id = || caller.principal.id.to_string();
        let or_own = |field: &str, value: String| match value.is_empty() {
            true => Ok(own_id()),
            false => convert::text(field, value, 255),
        };
        if !(1..=MAX_AUDIENCES).contains(&r.audience.len()) {
            return Err(convert::invalid("audience must have 1 to 16 values"));
        }
        // Whoever may issue tokens for others must not make one that authenticates here as somebody else.
        if r.audience.iter().any(|aud| aud == self.0.authn.audience()) {
            return Err(convert::invalid(
                "this audience is the daemon's own; tokens for it come from the token endpoint",
            ));
        }
        let audience = r.audience.into_iter();
        let request = IssueToken {
            subject: or_own("subject", r.subject)?,
            principal_type: convert::principal_kind(r.principal_type)?
                .unwrap_or(caller.principal.kind),
            audience: audience
                .map(|value| convert::text("audience", value, 255))
                .collect::<Result<_>>()?,
            scope: scopes(r.scope)?,
            ttl: convert::duration("ttl", r.ttl)?,
            client_id: or_own("client_id", r.client_id)?,
            is_own: false,
            bound_to: None,
        };
        let target = self.0.keys.find(&tenant, &key).await?;
        let act = async |permit| {
            let issued = self.0.tokens.issue(&permit, target.snapshot()?, request);
            let issued = issued.await?;
            let details = format!(r#"{{"kid":"{}","jti":"{}"}}"#, issued.kid, issued.jti);
            let answer = proto::IssueTokenResponse {
                token: issued.token,
                kid: issued.kid.to_string(),
                jti: issued.jti,
                expire_time: convert::time(issued.expires_at),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::IssueToken, target.resource(), act)
            .await
    }

    async fn verify(
        &self,
        caller: Caller,
        r: proto::VerifyTokenRequest,
    ) -> Result<proto::VerifyTokenResponse> {
        let expected = Expectation {
            tenant: convert::tenant(&r.tenant, &caller)?,
            audience: convert::text("audience", r.audience, 255)?,
            scopes: scopes(r.required_scopes)?,
            certificate: convert::filter("certificate_thumbprint", r.certificate_thumbprint)?,
        };
        if r.token.is_empty() {
            return Err(convert::invalid("token is required"));
        }
        match self.verdict(&caller, &r.token, &expected).await {
            // Overtaken by a freeze or a revocation: the second look gives the reason as a verdict.
            Err(error)
                if error.kind() == Kind::FailedPrecondition || error.kind() == Kind::Aborted =>
            {
                self.verdict(&caller, &r.token, &expected).await
            }
            verdict => verdict,
        }
    }

    async fn verdict(
        &self,
        caller: &Caller,
        token: &str,
        expected: &Expectation,
    ) -> Result<proto::VerifyTokenResponse> {
        let act = async |permit| {
            let verified = self.0.tokens.verify(&permit, token, expected).await?;
            let verified = match verified {
                Ok((claims, _)) if !self.0.clients.still_counts(&claims).await? => {
                    Err(Rejection::Revoked)
                }
                verified => verified,
            };
            Ok(match verified {
                Ok((claims, kid)) => {
                    // Signed by the key, but an adopted key may have signed anything: escape it.
                    let jti = serde_json::Value::from(claims.jti.as_str());
                    let details = format!(r#"{{"kid":"{kid}","jti":{jti}}}"#);
                    let answer = proto::VerifyTokenResponse {
                        valid: true,
                        rejection: proto::TokenRejection::Unspecified as i32,
                        claims: Some(claims_message(claims, kid.to_string())),
                    };
                    (answer, details)
                }
                Err(rejection) => {
                    let details = format!(r#"{{"rejection":"{}"}}"#, rejection.as_str());
                    let answer = proto::VerifyTokenResponse {
                        valid: false,
                        rejection: rejection_number(rejection),
                        claims: None,
                    };
                    (answer, details)
                }
            })
        };
        let resource = Resource::tenant(expected.tenant.clone());
        let gate = &self.0.gate;
        gate.access(caller, Action::VerifyToken, resource, act)
            .await
    }

    async fn revoke(
        &self,
        caller: Caller,
        r: proto::RevokeTokenRequest,
    ) -> Result<proto::RevokeTokenResponse> {
        let request = RevokeToken {
            tenant: convert::tenant(&r.tenant, &caller)?,
            jti: r.jti.parse()?,
            expires_at: convert::timestamp("expire_time", r.expire_time)?,
            reason: convert::text("reason", r.reason, 512)?,
        };
        let resource = Resource::tenant(request.tenant.clone());
        let tokens = Arc::clone(&self.0.tokens);
        let answer = |keep_until: &Timestamp, receipt: &Receipt| proto::RevokeTokenResponse {
            keep_until_time: convert::time(*keep_until),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| tokens.revoke(permit, request).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RevokeToken, resource, answer, act)
            .await
    }

    async fn jwks(
        &self,
        caller: Caller,
        _: proto::GetJwksRequest,
    ) -> Result<proto::GetJwksResponse> {
        let act = async |_permit| {
            let document = self.0.tokens.jwks().await?;
            let answer = proto::GetJwksResponse {
                jwks: String::from_utf8_lossy(&document.body).into_owned(),
                etag: document.etag.clone(),
                max_age: convert::length(document.max_age),
            };
            Ok((answer, String::new()))
        };
        let resource = Resource::tenant(caller.principal.tenant.clone());
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetJwks, resource, act).await
    }
}

/// Scope-tokens of RFC 6749 section 3.3: printable ASCII without blank, quote and backslash.
fn scopes(scopes: Vec<String>) -> Result<Vec<String>> {
    let token = |s: &String| {
        (1..=128).contains(&s.len())
            && s.bytes()
                .all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
    };
    if scopes.len() <= MAX_SCOPES && scopes.iter().all(token) {
        return Ok(scopes);
    }
    Err(convert::invalid(
        "scope must be at most 64 scope-tokens of 1 to 128 characters (RFC 6749 section 3.3)",
    ))
}

fn claims_message(claims: Claims, kid: String) -> proto::TokenClaims {
    let kind: Option<PrincipalKind> = claims.principal_type.parse().ok();
    proto::TokenClaims {
        issuer: claims.iss,
        subject: claims.sub,
        audience: claims.aud.values().to_vec(),
        expire_time: convert::time(Timestamp::from_seconds(claims.exp)),
        issue_time: convert::time(Timestamp::from_seconds(claims.iat)),
        jti: claims.jti,
        client_id: claims.client_id,
        scope: claims
            .scope
            .split(' ')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect(),
        principal_type: kind.map_or(0, convert::principal_kind_number),
        tenant: claims.tenant,
        kid,
        certificate_thumbprint: claims.cnf.map(|cnf| cnf.certificate).unwrap_or_default(),
    }
}

const fn rejection_number(rejection: Rejection) -> i32 {
    use proto::TokenRejection as P;
    let number = match rejection {
        Rejection::Malformed => P::Malformed,
        Rejection::WrongType => P::WrongType,
        Rejection::WrongAlgorithm => P::WrongAlgorithm,
        Rejection::ForbiddenHeader => P::ForbiddenHeader,
        Rejection::UnknownKid => P::UnknownKid,
        Rejection::InactiveKid => P::InactiveKid,
        Rejection::RetiredKid => P::RetiredKid,
        Rejection::CompromisedKid => P::CompromisedKid,
        Rejection::BadSignature => P::BadSignature,
        Rejection::BadClaim => P::BadClaim,
        Rejection::WrongIssuer => P::WrongIssuer,
        Rejection::WrongAudience => P::WrongAudience,
        Rejection::Expired => P::Expired,
        Rejection::NotYetValid => P::NotYetValid,
        Rejection::InsufficientScope => P::InsufficientScope,
        Rejection::Revoked => P::Revoked,
        Rejection::NotBound => P::NotBound,
    };
    number as i32
}

#[tonic::async_trait]
impl TokenService for TokenApi {
    async fn issue_token(
        &self,
        r: Request<proto::IssueTokenRequest>,
    ) -> Answer<proto::IssueTokenResponse> {
        let act = async |caller, m| self.issue(caller, m).await;
        self.0.call(r, Action::IssueToken, act).await
    }

    async fn verify_token(
        &self,
        r: Request<proto::VerifyTokenRequest>,
    ) -> Answer<proto::VerifyTokenResponse> {
        let act = async |caller, m| self.verify(caller, m).await;
        self.0.call(r, Action::VerifyToken, act).await
    }

    async fn get_jwks(&self, r: Request<proto::GetJwksRequest>) -> Answer<proto::GetJwksResponse> {
        let act = async |caller, m| self.jwks(caller, m).await;
        self.0.call(r, Action::GetJwks, act).await
    }

    async fn revoke_token(
        &self,
        r: Request<proto::RevokeTokenRequest>,
    ) -> Answer<proto::RevokeTokenResponse> {
        let act = async |caller, m| self.revoke(caller, m).await;
        self.0.call(r, Action::RevokeToken, act).await
    }
}
