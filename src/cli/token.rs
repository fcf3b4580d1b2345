//! `claviger token`: issue, verify, and the JWKS. Tokens go through stdin and stdout, never through arguments.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::grpc::proto::{
    GetJwksRequest, IssueTokenRequest, PrincipalType, RevokeTokenRequest, RevokeTokenResponse,
    TokenClaims, VerifyTokenRequest, VerifyTokenResponse,
};

/// Issue and verify access tokens
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Issue a token and print it
    Issue(Issue),
    /// Verify a token from stdin; exit code 0 when it is valid, 1 when it is not
    Verify(Verify),
    /// Make one token invalid before it expires
    Revoke(Revoke),
    /// Print the JWK Set that verifiers use
    Jwks,
}

#[derive(Args, Debug)]
pub struct Issue {
    /// Name or id of a TOKEN_SIGNING key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Who the token is for: `aud`; repeatable
    #[arg(long, required = true)]
    audience: Vec<String>,
    /// A scope; repeatable
    #[arg(long)]
    scope: Vec<String>,
    /// `sub`; yourself when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    subject: String,
    /// What the subject is; what you are when left out
    #[arg(long, value_parser = input::principal_type(), ignore_case = true)]
    principal_type: Option<PrincipalType>,
    /// `client_id`; yourself when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    client_id: String,
    /// Lifetime, such as 5min [default: what the daemon is configured with]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    ttl: Option<Duration>,
    /// File to write, readable by you only; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Verify {
    /// File that holds the token; `-` or nothing for stdin
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Tenant whose token is expected; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Audience that the token must be for
    #[arg(long)]
    audience: String,
    /// Scope that must be present; repeatable
    #[arg(long)]
    scope: Vec<String>,
    /// x5t#S256 of the client certificate that the token came with: base64url of its SHA-256
    #[arg(long, default_value = "", hide_default_value = true)]
    certificate_thumbprint: String,
}

#[derive(Args, Debug)]
pub struct Revoke {
    /// `jti` of the token
    #[arg(long)]
    jti: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
    /// `exp` of the token, so that its revocation is not kept for longer: RFC 3339, or a duration from now such as 15min
    #[arg(long, value_name = "TIME", value_parser = input::future)]
    expires: Option<jiff::Timestamp>,
    /// Tenant of the token; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

/// Runs `claviger token …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Issue(args) => issue(args, session).await,
        Command::Verify(args) => verify(args, session).await,
        Command::Revoke(args) => revoke(args, session).await,
        Command::Jwks => {
            let answer = session
                .tokens()
                .get_jwks(GetJwksRequest {})
                .await?
                .into_inner();
            session.show(&answer, |answer| pretty(&answer.jwks))?;
            Ok(Exit::Ok)
        }
    }
}

async fn issue(args: Issue, session: &Session) -> Result<Exit> {
    let request = IssueTokenRequest {
        tenant: args.tenant,
        key: args.key,
        subject: args.subject,
        principal_type: args.principal_type.unwrap_or_default().into(),
        audience: args.audience,
        scope: args.scope,
        ttl: args.ttl.map(input::proto_duration),
        client_id: args.client_id,
    };
    let answer = session.tokens().issue_token(request).await?.into_inner();
    let text = match session.format() {
        Format::Json => output::json(&answer)?,
        Format::Table => answer.token,
    };
    output::write(
        args.out.as_deref(),
        format!("{text}\n").as_bytes(),
        Secrecy::Private,
    )?;
    Ok(Exit::Ok)
}

async fn verify(args: Verify, session: &Session) -> Result<Exit> {
    let token = String::from_utf8(input::read(args.input.as_deref())?)
        .map_err(|_| Failure::usage("the input is not a token: it is not text"))?;
    let request = VerifyTokenRequest {
        tenant: args.tenant,
        token: token.trim().to_owned(),
        audience: args.audience,
        required_scopes: args.scope,
        certificate_thumbprint: args.certificate_thumbprint,
    };
    let answer = session.tokens().verify_token(request).await?.into_inner();
    session.show(&answer, verdict)?;
    Ok(match answer.valid {
        true => Exit::Ok,
        false => Exit::No,
    })
}

async fn revoke(args: Revoke, session: &Session) -> Result<Exit> {
    let request = RevokeTokenRequest {
        tenant: args.tenant,
        jti: args.jti.clone(),
        expire_time: args.expires.map(input::proto_time),
        reason: args.reason,
    };
    let call = async |r| session.tokens().revoke_token(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| revoked(&args.jti, answer))?;
    Ok(Exit::Ok)
}

/// A revocation does not reach everybody, and whoever revokes must know.
fn revoked(jti: &str, answer: &RevokeTokenResponse) -> String {
    output::details([
        ("revoked", jti.to_owned()),
        ("until", output::time(&answer.keep_until_time)),
        (
            "reaches",
            "VerifyToken, on every replica within feed.max_staleness_seconds".to_owned(),
        ),
        (
            "not",
            "verifiers with the JWKS alone: they accept the token until its `exp`".to_owned(),
        ),
    ])
}

fn verdict(answer: &VerifyTokenResponse) -> String {
    if !answer.valid {
        let reason = output::short(answer.rejection().as_str_name(), "TOKEN_REJECTION_");
        return format!("not valid  {reason}");
    }
    let claims: TokenClaims = answer.claims.clone().unwrap_or_default();
    output::details([
        ("valid", "yes".to_owned()),
        ("iss", claims.issuer.clone()),
        ("sub", claims.subject.clone()),
        ("aud", claims.audience.join(" ")),
        ("exp", output::time(&claims.expire_time)),
        ("iat", output::time(&claims.issue_time)),
        ("jti", claims.jti.clone()),
        ("client_id", claims.client_id.clone()),
        ("scope", claims.scope.join(" ")),
        (
            "principal_type",
            output::short(claims.principal_type().as_str_name(), "PRINCIPAL_TYPE_"),
        ),
        ("tenant", claims.tenant.clone()),
        ("kid", claims.kid.clone()),
    ])
}

fn pretty(json: &str) -> String {
    let value: std::result::Result<serde_json::Value, _> = serde_json::from_str(json);
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value));
    pretty.unwrap_or_else(|_| json.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_says_whom_it_does_not_reach() {
        let said = revoked("j-1", &RevokeTokenResponse::default());
        assert!(said.contains("revoked  j-1"), "{said}");
        assert!(said.contains("JWKS alone"), "{said}");
    }
}
