//! R3: credentials that act as somebody else: API keys, and the OAuth clients of the token endpoint.
//!
//! Both belong to a principal and act as it, with no more than it holds at the moment of use (R-OAUTH-2). `registry` keeps
//! the registered clients, `authenticate` says which client makes a request, `exchange` gives it a token, `coalesce` the
//! same one again where the client asked for that. Who may do what is not decided here.

mod api_keys;
mod assertion;
mod authenticate;
mod coalesce;
mod config;
mod exchange;
mod jwks;
mod registry;

use crate::{
    error::{Error, Reason, Result},
    model::{Caller, Principal, PrincipalKind, Role, Scopes},
};

pub use api_keys::{
    Admitted, ApiKeys, ApiKeysConfig, CreateApiKey, Pepper, Progress, Rejection, RotateApiKey,
    Rotated,
};
pub use authenticate::{Authenticated, Proof, Refusal, ShownCertificate};
pub use config::{ClientMethod, OauthConfig};
pub use exchange::{Denial, Granted, Wanted};
pub use jwks::assertion_algorithms;
pub use registry::{ClientChange, Clients, CreateClient};

/// A person's roles come along with credentials only that the person has made. Whoever could make one for them would hold
/// two of the duties of a rotation (R-LIFE-7). Entitlements, and the roles of services, anybody may pass on who may make
/// credentials at all.
///
/// Errors: SEPARATION_OF_DUTIES; PERMISSION_DENIED for a role in a tenant where the caller is not principal-admin.
fn expect_own_roles(caller: &Caller, owner: &Principal, scopes: &Scopes) -> Result<()> {
    let me = &caller.principal;
    if me.id == owner.id {
        return Ok(());
    }
    let mut brought = owner.grants.iter().filter(|g| scopes.allows(g.role));
    if !brought.all(|grant| me.holds(Role::PrincipalAdmin, &grant.scope)) {
        return Err(Error::new(
            Reason::PermissionDenied,
            "the owner holds a role in a tenant where you are not principal-admin; the owner or an admin of that tenant \
             must do this",
        ));
    }
    let is_somebody_elses = owner.kind == PrincipalKind::User;
    match is_somebody_elses && scopes.allows_a_role() {
        true => Err(Error::new(
            Reason::SeparationOfDuties,
            "a credential that brings along the roles of a person is made by that person alone; leave out the scopes \
             that begin with claviger:",
        )),
        false => Ok(()),
    }
}
