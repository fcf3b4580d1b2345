//! R2: may they? Cedar policies, and a cache of what they decided (R-ACL-1).
//!
//! Called by `gate`, and by the command line to explain. It never asks who somebody is, never reads the
//! database, and knows no tenant rule that a policy could forget: a principal stands before the policies with
//! the roles it holds in the resource's tenant, and no others (R-ACL-3).

mod cache;
mod entities;
mod load;
mod policies;

use cedar_policy::{Authorizer, Decision as Verdict, Response};
use tracing::error;

use self::{
    cache::Cache,
    entities::{Question, Unanswerable},
};
pub use self::{
    load::PolicyError,
    policies::{Policies, PolicySource},
};
use crate::model::{Action, Principal, Resource};

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A policy permits it and none forbids it.
    Allow,
    /// Everything else.
    Deny,
}

/// Why the answer is what it is.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The answer.
    pub decision: Decision,
    /// The policies that decided; none for a denial by default.
    pub policies: Vec<PolicySource>,
    /// What went wrong on the way. Any of it denies.
    pub errors: Vec<String>,
}

/// Decides.
pub struct Authz {
    policies: Policies,
    cache: Cache,
}

impl Authz {
    /// Decides by these policies.
    pub fn new(policies: Policies) -> Self {
        Self {
            policies,
            cache: Cache::new(),
        }
    }

    /// May `principal` do `action` on `resource`? Denies when no policy permits it and when one cannot be
    /// evaluated.
    pub fn decide(&self, principal: &Principal, action: Action, resource: &Resource) -> Decision {
        let question = Question::new(principal, action, resource);
        self.cache.decision(&question, || {
            metrics::counter!("claviger_policy_evaluations_total").increment(1);
            let (decision, errors) = match self.evaluate(&question) {
                Ok(response) => (verdict(&response), errors(&response)),
                Err(error) => (Decision::Deny, vec![error.to_string()]),
            };
            for error in &errors {
                error!(
                    principal = %principal.id,
                    action = action.name(),
                    resource = resource.kind(),
                    error,
                    "policy evaluation failed, denied"
                );
            }
            decision
        })
    }

    /// As `decide`, with the policies that decided. Never cached.
    pub fn explain(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource,
    ) -> Explanation {
        match self.evaluate(&Question::new(principal, action, resource)) {
            Ok(response) => {
                let ids = response.diagnostics().reason();
                let mut policies: Vec<_> = ids.filter_map(|id| self.policies.find(id)).collect();
                policies.sort_by(|a, b| a.id.cmp(&b.id));
                Explanation {
                    decision: verdict(&response),
                    policies: policies.into_iter().cloned().collect(),
                    errors: errors(&response),
                }
            }
            Err(error) => Explanation {
                decision: Decision::Deny,
                policies: Vec::new(),
                errors: vec![error.to_string()],
            },
        }
    }

    /// Drops every cached decision. Call it after any change of policies, principals, roles or resources;
    /// what is being decided meanwhile is not kept either.
    pub fn forget(&self) {
        self.cache.forget();
    }

    /// How many decisions are cached; bounded, whatever is asked.
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// The policies it decides by.
    pub const fn policies(&self) -> &Policies {
        &self.policies
    }

    fn evaluate(&self, question: &Question<'_>) -> Result<Response, Unanswerable> {
        let Policies {
            set, schema, words, ..
        } = &self.policies;
        let request = question.request(words, schema)?;
        let entities = question.entities(words)?;
        Ok(Authorizer::new().is_authorized(&request, set, &entities))
    }
}

impl Decision {
    /// True for `Allow`.
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// Cedar leaves a policy out that it cannot evaluate; if that was a forbid, leaving it out would permit.
fn verdict(response: &Response) -> Decision {
    let failed = response.diagnostics().errors().next().is_some();
    match response.decision() {
        Verdict::Allow if !failed => Decision::Allow,
        Verdict::Allow | Verdict::Deny => Decision::Deny,
    }
}

fn errors(response: &Response) -> Vec<String> {
    let errors = response.diagnostics().errors();
    errors.map(ToString::to_string).collect()
}
