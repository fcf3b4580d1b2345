//! Separation of duties (R-LIFE-7): who asked, who approved and who deploys are pairwise different principals. The one
//! place that decides it, for rotations of keys and of the KEK; no policy can soften it.

use std::fmt::Write;

use aws_lc_rs::digest;

use super::{Approval, PrincipalId};
use crate::error::{Error, Reason, Result};

/// Who has had a part in a rotation so far.
#[derive(Clone, Copy, Debug)]
pub struct Duties<'a> {
    /// Who asked.
    pub requester: PrincipalId,
    /// Who approved.
    pub approvals: &'a [Approval],
}

impl Duties<'_> {
    /// Errors: SEPARATION_OF_DUTIES for the requester, or a second approval by the same principal.
    pub fn may_approve(&self, who: PrincipalId) -> Result<()> {
        if who == self.requester {
            return Err(duties("the requester of a rotation cannot approve it"));
        }
        if self.has_approved(who) {
            return Err(duties("this principal has approved this rotation already"));
        }
        Ok(())
    }

    /// Errors: SEPARATION_OF_DUTIES for the requester or an approver.
    pub fn may_deploy(&self, who: PrincipalId) -> Result<()> {
        if who == self.requester {
            return Err(duties("the requester of a rotation cannot deploy it"));
        }
        if self.has_approved(who) {
            return Err(duties("an approver of a rotation cannot deploy it"));
        }
        Ok(())
    }

    /// Errors: SEPARATION_OF_DUTIES for the requester, who takes it back instead: `cancel` names the RPC.
    pub fn may_reject(&self, who: PrincipalId, cancel: &str) -> Result<()> {
        if who == self.requester {
            return Err(duties(format!(
                "the requester of a rotation cannot reject it; {cancel} takes it back"
            )));
        }
        Ok(())
    }

    fn has_approved(&self, who: PrincipalId) -> bool {
        self.approvals.iter().any(|a| a.approver == who)
    }
}

/// Errors: PLAN_CHANGED unless `digest` is that of the plan.
pub fn expect_digest(plan: &str, digest: &str) -> Result<()> {
    if digest == plan_digest(plan) {
        return Ok(());
    }
    Err(Error::new(
        Reason::PlanChanged,
        "the digest is not that of the rotation's plan; read the plan again before approving",
    ))
}

/// SHA-256 of a canonical plan, in hex.
pub fn plan_digest(plan: &str) -> String {
    let digest = digest::digest(&digest::SHA256, plan.as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn duties(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::SeparationOfDuties, message)
}
