//! Scope-tokens (RFC 6749 section 3.3): the entitlements of principals, API keys, clients and tokens.
//!
//! What a credential may is never more than what its owner holds at the moment of use, so scopes are sets that are
//! intersected, each time. A role `R` of the owner is the scope `claviger:R`: without it a credential that has scopes does
//! not bring the role along.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::Role;
use crate::error::{Error, Reason};

/// Scope-tokens of one principal, API key, client or token.
pub const MAX_SCOPES: usize = 64;
/// Longest scope-token, in characters.
const MAX_LENGTH: usize = 100;
/// What the scope of a role begins with. Nobody is given such a scope but through the role.
const ROLE_PREFIX: &str = "claviger:";

/// A set of scope-tokens, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scopes(BTreeSet<String>);

impl Scopes {
    /// From a list. Errors: INVALID_FIELD for a malformed one and for too many.
    pub fn from_list<S: AsRef<str>>(list: &[S]) -> Result<Self, Error> {
        if list.len() > MAX_SCOPES {
            return Err(Error::new(
                Reason::InvalidField,
                "scopes must be at most 64 scope-tokens",
            ));
        }
        let tokens = list.iter().map(|token| checked(token.as_ref()));
        Ok(Self(tokens.collect::<Result<_, _>>()?))
    }

    /// As `from_list`, for what is given to somebody by name. Errors: INVALID_FIELD also for the scope of a role.
    pub fn entitlements<S: AsRef<str>>(list: &[S]) -> Result<Self, Error> {
        let scopes = Self::from_list(list)?;
        match scopes.allows_a_role() {
            true => Err(Error::new(
                Reason::InvalidField,
                "scopes that begin with claviger: come with a role; grant the role instead",
            )),
            false => Ok(scopes),
        }
    }

    /// The scopes that the roles of a principal stand for.
    pub fn of_roles(roles: impl Iterator<Item = Role>) -> Self {
        Self(roles.map(scope_of).collect())
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Is this one of them?
    pub fn contains(&self, token: &str) -> bool {
        self.0.contains(token)
    }

    /// Does it bring any role along?
    pub fn allows_a_role(&self) -> bool {
        self.iter().any(|token| token.starts_with(ROLE_PREFIX))
    }

    /// Does it bring this role along?
    pub fn allows(&self, role: Role) -> bool {
        self.0.contains(&scope_of(role))
    }

    /// Is each of these also one of `others`?
    pub fn is_subset(&self, others: &Self) -> bool {
        self.0.is_subset(&others.0)
    }

    /// Those that both hold.
    pub fn intersection(&self, others: &Self) -> Self {
        Self(self.0.intersection(&others.0).cloned().collect())
    }

    /// Those that either holds.
    pub fn union(&self, others: &Self) -> Self {
        Self(self.0.union(&others.0).cloned().collect())
    }

    /// Those that `others` does not hold.
    pub fn difference(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).cloned().collect())
    }
}

/// The form of the `scope` parameter and claim: tokens separated by one blank each; empty for none.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, token) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(token)?;
        }
        Ok(())
    }
}

impl FromStr for Scopes {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "" => Ok(Self::default()),
            s => Self::from_list(&s.split(' ').collect::<Vec<_>>()),
        }
    }
}

fn scope_of(role: Role) -> String {
    format!("{ROLE_PREFIX}{role}")
}

fn checked(token: &str) -> Result<String, Error> {
    let is_nqchar = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let ok = (1..=MAX_LENGTH).contains(&token.len()) && token.bytes().all(is_nqchar);
    ok.then(|| token.to_owned()).ok_or_else(|| {
        Error::new(
            Reason::InvalidField,
            "a scope-token must be 1 to 100 visible ASCII characters without quotes and backslashes",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_sets_in_order() {
        let scopes: Scopes = "b a b".parse().expect("scopes");
        assert_eq!(scopes.to_string(), "a b");
        assert_eq!("".parse::<Scopes>().expect("none").to_string(), "");
    }

    #[test]
    fn what_is_no_scope_token_is_refused() {
        for bad in [" ", "a  b", "a ", " a", "a\"b", "a\\b", "a\tb", "é"] {
            assert!(bad.parse::<Scopes>().is_err(), "{bad:?}");
        }
        let many: Vec<_> = (0..=MAX_SCOPES).map(|i| format!("s{i}")).collect();
        assert!(Scopes::from_list(&many).is_err());
        assert!(Scopes::from_list(&["x".repeat(MAX_LENGTH + 1)]).is_err());
    }

    // R-OAUTH-2
    #[test]
    fn a_role_comes_along_only_by_its_own_scope() {
        let scopes: Scopes = "claviger:crypto-user can.use_users"
            .parse()
            .expect("scopes");
        assert!(scopes.allows(Role::CryptoUser));
        assert!(!scopes.allows(Role::PrincipalAdmin));
        assert!(Scopes::entitlements(&["claviger:crypto-user"]).is_err());
        assert_eq!(
            Scopes::of_roles([Role::CryptoUser].into_iter()).to_string(),
            "claviger:crypto-user"
        );
    }
}
