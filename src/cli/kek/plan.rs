//! What an approver must be able to judge without trusting the daemon's message: the plan's own digest, the plan against
//! the rotation, and both against the KEKs as ListKeks shows them.

use serde::Deserialize;

use crate::{
    cli::rotation::plan::plan_digest,
    grpc::proto::{Kek, KekRotation, KekState},
};

/// The canonical plan, field by field. One that this program does not know would be approved unread, so it is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    approvals_needed: u32,
    new_backend: String,
    new_kek: String,
    old_backend: String,
    old_kek: String,
    rotation: String,
}

/// Reasons not to approve: something that the daemon says contradicts something else that it says.
pub fn compare(id: &str, rotation: &KekRotation, keks: &[Kek]) -> Vec<String> {
    let mut lies = Vec::new();
    if plan_digest(&rotation.plan) != rotation.plan_digest {
        lies.push("the daemon's digest is not that of the plan it shows".to_owned());
    }
    let plan: Plan = match serde_json::from_str(&rotation.plan) {
        Ok(plan) => plan,
        Err(e) => {
            lies.push(format!(
                "the plan cannot be read ({e}); a newer command line may know more"
            ));
            return lies;
        }
    };
    let mut same = |what: &str, planned: &str, found: &str, place: &str| {
        if planned != found {
            lies.push(format!(
                "{what} is {planned} in the plan and {found} in {place}"
            ));
        }
    };
    same("the id", &plan.rotation, id, "your request");
    same("the id", &plan.rotation, &rotation.id, "the rotation");
    same(
        "the old KEK",
        &plan.old_kek,
        &rotation.old_kek,
        "the rotation",
    );
    same(
        "the new KEK",
        &plan.new_kek,
        &rotation.new_kek,
        "the rotation",
    );
    let (planned, found) = (plan.approvals_needed, rotation.approvals_needed);
    same(
        "the number of approvals",
        &planned.to_string(),
        &found.to_string(),
        "the rotation",
    );
    for (what, reference, backend, state) in [
        (
            "the old KEK",
            &plan.old_kek,
            &plan.old_backend,
            KekState::Active,
        ),
        (
            "the new KEK",
            &plan.new_kek,
            &plan.new_backend,
            KekState::PreActive,
        ),
    ] {
        match keks.iter().find(|kek| kek.reference == *reference) {
            None => lies.push(format!("{what} of the plan is not among the KEKs")),
            Some(kek) if kek.state() != state || kek.backend != *backend => lies.push(format!(
                "{what} is {} in backend {} and not as planned",
                kek.state().as_str_name(),
                kek.backend
            )),
            Some(_) => {}
        }
    }
    lies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn honest() -> (KekRotation, Vec<Kek>) {
        let plan = r#"{"approvals_needed":1,"new_backend":"hsm","new_kek":"new","old_backend":"hsm","old_kek":"old","rotation":"id"}"#;
        let rotation = KekRotation {
            id: "id".into(),
            old_kek: "old".into(),
            new_kek: "new".into(),
            approvals_needed: 1,
            plan: plan.into(),
            plan_digest: plan_digest(plan),
            ..Default::default()
        };
        let kek = |reference: &str, state: KekState| Kek {
            reference: reference.into(),
            backend: "hsm".into(),
            state: state.into(),
            ..Default::default()
        };
        let keks = vec![
            kek("old", KekState::Active),
            kek("new", KekState::PreActive),
        ];
        (rotation, keks)
    }

    #[test]
    fn an_honest_plan_can_be_approved() {
        let (rotation, keks) = honest();
        assert_eq!(compare("id", &rotation, &keks), Vec::<String>::new());
    }

    #[test]
    fn every_contradiction_is_found() {
        type Lie = fn(&mut KekRotation, &mut Vec<Kek>);
        let lies: [Lie; 7] = [
            |r, _| r.plan_digest = "0".repeat(64),
            |r, _| r.plan = r.plan.replace('}', r#","x":1}"#),
            |r, _| r.new_kek = "another".into(),
            |r, _| r.approvals_needed = 2,
            |r, _| r.id = "another".into(),
            |_, keks| keks[1].set_state(KekState::Retired),
            |_, keks| {
                keks.remove(1);
            },
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let (mut rotation, mut keks) = honest();
            lie(&mut rotation, &mut keks);
            assert!(!compare("id", &rotation, &keks).is_empty(), "{number}");
        }
        let (rotation, keks) = honest();
        assert!(!compare("another", &rotation, &keks).is_empty());
    }
}
