//! The main job: seven steps, each in its file, each with the calls and the refusals that belong to it.
//!
//! Steps note which audit rows they must have left; the sixth looks for every one of them.

mod audit;
mod compromise;
mod encrypt;
mod keys;
mod rotation;
mod sign;
mod token;

use std::time::Duration;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::{certs, provision::Environment, story::Story};
use crate::{
    cli::{
        client::{self, Connection, Target},
        exit::{Failure, Result},
        options::Addresses,
    },
    error::Reason,
    grpc::proto::{AuditOutcome, Key},
};

/// Tenant whose keys the story is about.
const TENANT: &str = "acme";

/// Names of the keys that the story made, for those who want to go on.
pub struct Keys {
    /// A SIGNING key.
    pub orders: String,
    /// A TOKEN_SIGNING key.
    pub tokens: String,
    /// An ENCRYPTION key.
    pub vault: String,
}

/// Everything a step needs.
struct Run<'a> {
    environment: &'a Environment,
    addresses: &'a Addresses,
    story: &'a mut Story,
    people: People,
    expected: Vec<Expected>,
}

/// One connection per identity, each with its own certificate.
struct People {
    admin: Connection,
    issuer: Connection,
    approver: Connection,
    deployer: Connection,
    officer: Connection,
    deputy: Connection,
    auditor: Connection,
    service: Connection,
    other: Connection,
    stranger: Connection,
}

/// An audit row that must be there.
struct Expected {
    action: &'static str,
    outcome: AuditOutcome,
    /// Id or name of the entity: a refused caller's row carries what the caller wrote.
    entity: [String; 2],
}

/// Performs the main job.
pub async fn main_job(
    environment: &Environment,
    addresses: &Addresses,
    story: &mut Story,
) -> Result<Keys> {
    let people = People::connect(environment, addresses).await?;
    let mut run = Run {
        environment,
        addresses,
        story,
        people,
        expected: Vec::new(),
    };
    let made = keys::create(&mut run).await?;
    sign::sign(&mut run, &made.orders).await?;
    encrypt::encrypt(&mut run, &made.vault).await?;
    let token = token::issue(&mut run, &made.tokens).await?;
    rotation::rotate(&mut run, &made.tokens, &token).await?;
    audit::audit(&mut run, &made.orders).await?;
    compromise::compromise(&mut run, &made.tokens).await?;
    Ok(Keys {
        orders: made.orders.name,
        tokens: made.tokens.name,
        vault: made.vault.name,
    })
}

impl People {
    async fn connect(environment: &Environment, addresses: &Addresses) -> Result<Self> {
        let connect = async |name: &str| {
            client::connect(&Target {
                address: format!("https://{}", addresses.grpc),
                ca: environment.path("certs/ca.crt"),
                identity: Some(certs::pair(&environment.dir, name)),
                server_name: None,
                timeout: Duration::from_secs(30),
            })
            .await
        };
        Ok(Self {
            admin: connect("admin").await?,
            issuer: connect("issuer").await?,
            approver: connect("approver").await?,
            deployer: connect("deployer").await?,
            officer: connect("officer").await?,
            deputy: connect("deputy").await?,
            auditor: connect("auditor").await?,
            service: connect("service").await?,
            other: connect("other").await?,
            stranger: connect("stranger").await?,
        })
    }
}

impl Run<'_> {
    /// Notes an audit row that this step must have left.
    fn expect(&mut self, action: &'static str, outcome: AuditOutcome, id: &str, name: &str) {
        let entity = [id.to_owned(), name.to_owned()];
        self.expected.push(Expected {
            action,
            outcome,
            entity,
        });
    }

    fn expect_key(&mut self, action: &'static str, outcome: AuditOutcome, key: &Key) {
        self.expect(action, outcome, &key.id, &key.name);
    }
}

/// The refusal that must come. Errors: the call succeeded, or failed in another way.
fn refusal<T>(
    result: std::result::Result<Response<T>, Status>,
    code: Code,
    reason: Reason,
) -> Result<String> {
    let Err(status) = result else {
        return Err(Failure::other(format!(
            "this should have been refused with {}",
            reason.as_str()
        )));
    };
    let given = status.get_details_error_info().map(|info| info.reason);
    match given.as_deref() == Some(reason.as_str()) && status.code() == code {
        true => Ok(format!("{}: {}", reason.as_str(), status.message())),
        false => {
            let (given, expected) = (Failure::from(status), reason.as_str());
            Err(Failure::other(format!(
                "expected {code:?} {expected}, got: {given}"
            )))
        }
    }
}

/// Fails with `otherwise` unless `is`.
fn check(is: bool, otherwise: &str) -> Result<()> {
    match is {
        true => Ok(()),
        false => Err(Failure::other(otherwise)),
    }
}

/// The message inside an answer. The contract promises it; a daemon that breaks the promise is named as such.
fn part<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Failure::other(format!("the answer has no {name}")))
}
