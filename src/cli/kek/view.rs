//! KEKs and their rotations for people.

use super::progress;
use crate::{
    cli::{output, people::People},
    grpc::proto::{Kek, KekRotation, RotationState},
};

/// One line each.
pub fn keks(keks: &[Kek]) -> String {
    let rows = keks.iter().map(|kek| {
        [
            kek.reference.clone(),
            kek.backend.clone(),
            output::short(kek.state().as_str_name(), "KEK_STATE_"),
            kek.data_keys.to_string(),
            output::when(&kek.activate_time),
            output::when(&kek.retire_time),
        ]
    });
    let header = [
        "KEK",
        "BACKEND",
        "STATE",
        "DATA KEYS",
        "ACTIVATED",
        "RETIRED",
    ];
    output::table(header, rows)
}

/// One line each.
pub fn rotations(rotations: &[KekRotation]) -> String {
    let rows = rotations.iter().map(|rotation| {
        [
            rotation.id.clone(),
            state(rotation),
            next(rotation),
            output::when(&rotation.request_time),
            People::strangers().short(&rotation.requester),
            rotation.justification.clone(),
        ]
    });
    output::table(["ID", "STATE", "NEXT", "ASKED", "BY", "WHY"], rows)
}

/// Everything about one.
pub fn details(rotation: &KekRotation, people: People<'_>) -> String {
    let at = |time: String, id: &str| match id {
        "" => time,
        id => format!("{time} by {}", people.long(id)),
    };
    let approvals = rotation.approvals.iter();
    let approvals: Vec<_> = approvals
        .map(|approval| at(output::time(&approval.time), &approval.approver))
        .collect();
    let undecryptable = match rotation.undecryptable {
        0 => String::new(),
        n if rotation.state() == RotationState::Deployed => {
            format!("{n}; they keep the rotation open, see docs/runbook.md")
        }
        n => format!("{n}; the old KEK is kept for them, see docs/runbook.md"),
    };
    output::details([
        ("rotation", rotation.id.clone()),
        ("state", state(rotation)),
        ("next", next(rotation)),
        (
            "requested",
            at(output::time(&rotation.request_time), &rotation.requester),
        ),
        ("why", rotation.justification.clone()),
        ("old KEK", rotation.old_kek.clone()),
        ("new KEK", rotation.new_kek.clone()),
        ("in backend", rotation.new_backend.clone()),
        (
            "approvals",
            format!("{} of {}", approvals.len(), rotation.approvals_needed),
        ),
        ("approved", approvals.join("\n")),
        (
            "deployed",
            at(output::time(&rotation.deploy_time), &rotation.deployer),
        ),
        ("rewrapped", rewrapped(rotation)),
        ("undecryptable", undecryptable),
        ("expires", expires(rotation)),
        (
            "ended",
            at(output::time(&rotation.end_time), &rotation.ended_by),
        ),
        ("because", rotation.end_reason.clone()),
        ("plan", rotation.plan.clone()),
        ("plan digest", rotation.plan_digest.clone()),
    ])
}

/// What happens when, for who approves.
pub fn judgement(rotation: &KekRotation) -> String {
    format!(
        "\nThe digest was computed here, and the plan agrees with the KEKs that there are.\n\
         When a key-deployer deploys it, the new KEK wraps every new data key, and the {} that are under the old one are \
         rewrapped. There is no way back to the old KEK; keep it until the rotation is COMPLETED.",
        rotation.remaining
    )
}

/// `APPROVED`.
pub fn state(rotation: &KekRotation) -> String {
    output::short(rotation.state().as_str_name(), "ROTATION_STATE_")
}

fn next(rotation: &KekRotation) -> String {
    match rotation.state() {
        RotationState::Requested => "waits for approval (key-approver)".to_owned(),
        RotationState::Approved => "deployable now (key-deployer)".to_owned(),
        RotationState::Deployed if rotation.remaining == 0 => {
            "unwraps every data key under the new KEK (the daemon)".to_owned()
        }
        RotationState::Deployed => format!("rewraps {} more (the daemon)", rotation.remaining),
        RotationState::Unspecified
        | RotationState::Completed
        | RotationState::Rejected
        | RotationState::Cancelled
        | RotationState::Expired => String::new(),
    }
}

fn rewrapped(rotation: &KekRotation) -> String {
    let (done, all) = progress(rotation);
    match rotation.state() {
        RotationState::Deployed | RotationState::Completed => format!("{done} of {all}"),
        _ => String::new(),
    }
}

fn expires(rotation: &KekRotation) -> String {
    match rotation.state() {
        RotationState::Requested | RotationState::Approved => output::time(&rotation.expire_time),
        _ => String::new(),
    }
}
