//! Rotations for people: where one is, what comes next, and who can do it.

use super::plan::{self, Findings, Plan};
use crate::{
    cli::{output, people::People},
    grpc::proto::{Key, KeyPurpose, Rotation, RotationState},
};

/// What comes next, and who does it.
pub struct Next {
    /// `waits for 1 approval`, `deployable in 3 min`, `grace until 2026-11-21 …`; empty when it is over.
    pub what: String,
    /// A role, `you`, or the daemon; empty when it is over.
    pub who: &'static str,
}

/// What comes next; `yours` when the daemon says that it waits for who asks.
pub fn next(rotation: &Rotation, yours: bool) -> Next {
    let person = |role| if yours { "you" } else { role };
    let over = is_past(&rotation.expire_time);
    match rotation.state() {
        RotationState::Requested | RotationState::Approved if over => Next {
            what: "its time is over; request a new one".to_owned(),
            who: "key-issuer",
        },
        RotationState::Requested => Next {
            what: format!("waits for {}", approvals(missing(rotation))),
            who: person("key-approver"),
        },
        RotationState::Approved => Next {
            what: deployable(rotation),
            who: person("key-deployer"),
        },
        RotationState::Deployed => Next {
            what: grace(rotation),
            who: "the daemon",
        },
        RotationState::Unspecified
        | RotationState::Completed
        | RotationState::Rejected
        | RotationState::Cancelled
        | RotationState::Expired => Next {
            what: String::new(),
            who: "",
        },
    }
}

/// One line each.
pub fn table<'a>(rotations: impl IntoIterator<Item = (&'a Rotation, bool)>) -> String {
    let rows = rotations.into_iter().map(|(rotation, yours)| {
        let next = next(rotation, yours);
        [
            rotation.id.clone(),
            rotation.key_name.clone(),
            state(rotation),
            next.what,
            next.who.to_owned(),
            output::when(&rotation.request_time),
            People::strangers().short(&rotation.requester),
            rotation.justification.clone(),
        ]
    });
    let header = ["ID", "KEY", "STATE", "NEXT", "WHO", "ASKED", "BY", "WHY"];
    output::table(header, rows)
}

/// Everything about one.
pub fn details(rotation: &Rotation, yours: bool, people: People<'_>) -> String {
    let next = next(rotation, yours);
    let at = |time: String, id: &str| match id {
        "" => time,
        id => format!("{time} by {}", people.long(id)),
    };
    let approvals = rotation
        .approvals
        .iter()
        .map(|approval| at(output::time(&approval.time), &approval.approver));
    let approvals: Vec<_> = approvals.collect();
    let asked = match rotation.scheduled {
        true => "scheduled: the key was due".to_owned(),
        false => rotation.justification.clone(),
    };
    let next = match next.who {
        "" => next.what,
        who => format!("{} ({who})", next.what),
    };
    output::details([
        ("rotation", rotation.id.clone()),
        (
            "key",
            format!("{} ({})", rotation.key_name, rotation.key_id),
        ),
        ("tenant", rotation.tenant.clone()),
        ("state", state(rotation)),
        ("next", next),
        (
            "requested",
            at(output::time(&rotation.request_time), &rotation.requester),
        ),
        ("why", asked),
        ("old kid", rotation.old_kid.clone()),
        ("new kid", rotation.new_kid.clone()),
        (
            "approvals",
            format!("{} of {}", approvals.len(), rotation.approvals_needed),
        ),
        ("approved", approvals.join("\n")),
        ("announced", output::time(&rotation.announce_time)),
        ("deployable", output::time(&rotation.deployable_time)),
        (
            "deployed",
            at(output::time(&rotation.deploy_time), &rotation.deployer),
        ),
        ("grace until", output::time(&rotation.grace_end_time)),
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

/// What an approver must judge, beside the rotation itself: the key, and what happens when.
pub fn judgement(rotation: &Rotation, key: &Key, findings: &Findings) -> String {
    let bits = match key.rsa_bits {
        0 => String::new(),
        bits => format!(" ({bits} bit)"),
    };
    let algorithm = output::short(key.algorithm().as_str_name(), "ALGORITHM_");
    let purpose = output::short(key.purpose().as_str_name(), "KEY_PURPOSE_");
    let facts = output::details([
        (
            "key",
            format!("{purpose} {algorithm}{bits} in {}", key.backend),
        ),
        ("owner", key.owner.clone()),
        ("next rotation", output::time(&key.next_rotation_time)),
        ("compromised", compromised(key)),
    ]);
    let notes = findings.notes.iter().map(|note| format!("note: {note}\n"));
    let notes: String = notes.collect();
    format!("{facts}\n{notes}\n{}", timetable(rotation, key))
}

/// What happens when, in the plan's own times.
fn timetable(rotation: &Rotation, key: &Key) -> String {
    let Ok(plan) = plan::read(&rotation.plan) else {
        return String::new();
    };
    let Plan {
        new_kid, old_kid, ..
    } = &plan;
    let last = match missing(rotation) {
        0 | 1 => "your approval".to_owned(),
        n => format!("your approval and {} more", n - 1),
    };
    let (announced, made, checked) = uses(key.purpose());
    let grace = match plan.grace_seconds {
        0 => String::new(),
        time => format!("{} of grace are over and ", seconds(time)),
    };
    output::details([
        ("with", format!("{last}: kid {new_kid} {announced}")),
        ("then", format!("{} of soak", seconds(plan.soak_seconds))),
        (
            "then",
            format!(
                "a key-deployer deploys: {new_kid} {made} from then on, {old_kid} only {checked}"
            ),
        ),
        (
            "then",
            format!("when {grace}the last token that it issued has expired, {old_kid} retires"),
        ),
        (
            "unless",
            format!(
                "it is not deployed: then it ends {}",
                output::time(&rotation.expire_time)
            ),
        ),
    ])
}

/// What an approved version is, what an ACTIVE one does, and what one in its grace still does.
const fn uses(purpose: KeyPurpose) -> (&'static str, &'static str, &'static str) {
    match purpose {
        KeyPurpose::TokenSigning => (
            "appears in the JWKS, so that every verifier fetches it; nothing signs with it",
            "signs",
            "verifies",
        ),
        KeyPurpose::Signing | KeyPurpose::Unspecified => {
            ("is approved; nothing signs with it", "signs", "verifies")
        }
        KeyPurpose::Encryption => (
            "is approved; nothing is encrypted with it",
            "encrypts",
            "decrypts",
        ),
        KeyPurpose::Mac => (
            "is approved; nothing is authenticated with it",
            "computes",
            "verifies",
        ),
    }
}

fn seconds(seconds: u64) -> String {
    output::duration(&Some(prost_types::Duration {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: 0,
    }))
}

fn compromised(key: &Key) -> String {
    match key.compromised {
        true => "YES, a version of this key is COMPROMISED".to_owned(),
        false => String::new(),
    }
}

fn missing(rotation: &Rotation) -> usize {
    (rotation.approvals_needed as usize).saturating_sub(rotation.approvals.len())
}

fn approvals(count: usize) -> String {
    match count {
        1 => "1 approval".to_owned(),
        count => format!("{count} approvals"),
    }
}

fn deployable(rotation: &Rotation) -> String {
    match is_past(&rotation.deployable_time) {
        true => "deployable now".to_owned(),
        false => format!("deployable {}", output::when(&rotation.deployable_time)),
    }
}

fn grace(rotation: &Rotation) -> String {
    match is_past(&rotation.grace_end_time) {
        true => "grace is over; the old version retires".to_owned(),
        false => format!("grace until {}", output::time(&rotation.grace_end_time)),
    }
}

/// The end of an open rotation; afterwards it means nothing.
fn expires(rotation: &Rotation) -> String {
    match rotation.state() {
        RotationState::Requested | RotationState::Approved => output::time(&rotation.expire_time),
        RotationState::Unspecified
        | RotationState::Deployed
        | RotationState::Completed
        | RotationState::Rejected
        | RotationState::Cancelled
        | RotationState::Expired => String::new(),
    }
}

fn is_past(time: &Option<prost_types::Timestamp>) -> bool {
    output::instant(time).is_some_and(|time| time <= output::now())
}

/// `APPROVED`.
pub fn state(rotation: &Rotation) -> String {
    output::short(rotation.state().as_str_name(), "ROTATION_STATE_")
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::{
        cli::{input::proto_time, rotation::plan::tests::honest},
        grpc::proto::Approval,
    };

    fn in_minutes(minutes: i64) -> Option<prost_types::Timestamp> {
        let time = output::now().checked_add(minutes.minutes().seconds(30));
        Some(proto_time(time.unwrap()))
    }

    fn rotation(state: RotationState) -> Rotation {
        let (mut rotation, _) = honest();
        rotation.set_state(state);
        rotation.request_time = in_minutes(-5);
        rotation.expire_time = in_minutes(60);
        rotation
    }

    fn says(rotation: &Rotation, yours: bool) -> (String, &'static str) {
        let next = next(rotation, yours);
        (next.what, next.who)
    }

    #[test]
    fn every_state_says_what_is_next_and_by_whom() {
        let mut requested = rotation(RotationState::Requested);
        let two = ("waits for 2 approvals".to_owned(), "key-approver");
        assert_eq!(says(&requested, false), two);
        requested.approvals.push(Approval::default());
        let one = ("waits for 1 approval".to_owned(), "you");
        assert_eq!(says(&requested, true), one);

        let mut approved = rotation(RotationState::Approved);
        approved.deployable_time = in_minutes(3);
        let soaking = ("deployable in 3 min".to_owned(), "key-deployer");
        assert_eq!(says(&approved, false), soaking);
        approved.deployable_time = in_minutes(-3);
        let now = ("deployable now".to_owned(), "you");
        assert_eq!(says(&approved, true), now);
        approved.expire_time = in_minutes(-1);
        assert!(says(&approved, false).0.contains("request a new one"));

        let mut deployed = rotation(RotationState::Deployed);
        deployed.grace_end_time = in_minutes(10);
        let (what, who) = says(&deployed, false);
        assert!(what.starts_with("grace until 2") && what.ends_with("(in 10 min)"));
        assert_eq!(who, "the daemon");

        for state in [
            RotationState::Completed,
            RotationState::Rejected,
            RotationState::Cancelled,
            RotationState::Expired,
        ] {
            assert_eq!(says(&rotation(state), false), (String::new(), ""));
        }
    }

    #[test]
    fn a_listing_shows_who_asked_and_what_waits_for_you() {
        let requested = rotation(RotationState::Requested);
        let shown = table([(&requested, true)]);
        assert!(shown.contains("waits for 2 approvals  you"), "{shown}");
        assert!(shown.contains("…e600636b"), "{shown}");
    }

    #[test]
    fn details_name_the_end_and_leave_out_what_is_not() {
        let mut rejected = rotation(RotationState::Rejected);
        rejected.end_time = in_minutes(-1);
        rejected.ended_by = rejected.requester.clone();
        rejected.end_reason = "wrong key".into();
        let me = rejected.requester.clone();
        let shown = details(&rejected, false, People::you(&me));
        assert!(shown.contains("because      wrong key"), "{shown}");
        assert!(shown.contains("(you)"), "{shown}");
        assert!(!shown.contains("expires") && !shown.contains("deployed"));
    }

    #[test]
    fn an_approver_reads_what_happens_when() {
        let (mut rotation, mut key) = honest();
        rotation.expire_time = in_minutes(60);
        key.compromised = true;
        let findings = Findings {
            notes: vec!["beware".into()],
            ..Default::default()
        };
        let shown = judgement(&rotation, &key, &findings);
        for part in [
            "RS256 in hsm",
            "team-orders",
            "your approval and 1 more",
            "6 min of soak",
            "60 min of grace are over and the last token",
            "not deployed",
            "COMPROMISED",
            "note: beware",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
