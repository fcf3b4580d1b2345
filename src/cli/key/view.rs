//! Keys for people.

use crate::{
    cli::{output, people::People},
    grpc::proto::{Key, KeyVersion, RotationMode, RotationPolicy},
};

/// One line each.
pub fn table(keys: &[Key]) -> String {
    let rows = keys.iter().map(|key| {
        [
            key.name.clone(),
            purpose(key),
            algorithm(key),
            key.owner.clone(),
            next_rotation(key),
            mode(key),
            match key.compromised {
                true => "COMPROMISED".to_owned(),
                false => String::new(),
            },
            key.active_kid.clone(),
        ]
    });
    output::table(
        [
            "NAME",
            "PURPOSE",
            "ALGORITHM",
            "OWNER",
            "NEXT ROTATION",
            "MODE",
            "ALARM",
            "ACTIVE KID",
        ],
        rows,
    )
}

/// A key with all its versions.
pub fn whole(key: Option<&Key>) -> String {
    let Some(key) = key else { return String::new() };
    let policy = key.rotation_policy.clone().unwrap_or_default();
    let head = output::details([
        ("key", key.name.clone()),
        ("id", key.id.clone()),
        ("tenant", key.tenant.clone()),
        ("purpose", purpose(key)),
        ("algorithm", algorithm(key)),
        ("backend", key.backend.clone()),
        ("owner", key.owner.clone()),
        ("created", output::time(&key.create_time)),
        ("rotation", period(key)),
        ("next rotation", next_rotation(key)),
        ("mode", standing(key, &policy)),
        ("set by", People::strangers().long(&policy.set_by)),
        ("approvals", approvals(&policy)),
        ("standby", standby(&policy)),
        ("grace", grace(&policy)),
        (
            "ALARM",
            match key.compromised {
                true => format!(
                    "a version is COMPROMISED; see `incident list --tenant {}`",
                    key.tenant
                ),
                false => String::new(),
            },
        ),
    ]);
    let rows = key.versions.iter().map(|version| {
        [
            version.number.to_string(),
            state(version),
            version.kid.clone(),
            since(version),
            output::when(&version.last_use_time),
            output::when(&version.last_token_expire_time),
            version.backend_ref.clone(),
        ]
    });
    let header = [
        "VERSION",
        "STATE",
        "KID",
        "SINCE",
        "LAST USE",
        "LAST TOKEN ENDS",
        "BACKEND REFERENCE",
    ];
    format!("{head}\n\n{}", output::table(header, rows))
}

/// What a standing approval is about.
pub fn policy(key: &Key) -> String {
    let policy = key.rotation_policy.clone().unwrap_or_default();
    output::details([
        ("key", key.name.clone()),
        ("id", key.id.clone()),
        ("tenant", key.tenant.clone()),
        ("purpose", purpose(key)),
        ("algorithm", algorithm(key)),
        ("owner", key.owner.clone()),
        ("rotation", period(key)),
        ("next rotation", next_rotation(key)),
        ("mode", standing(key, &policy)),
        ("set by", People::strangers().long(&policy.set_by)),
        ("approvals", approvals(&policy)),
        ("standby", standby(&policy)),
        ("grace", grace(&policy)),
        ("revision", key.revision.to_string()),
    ])
}

/// One version with all its times.
pub fn version(version: &KeyVersion) -> String {
    output::details([
        ("kid", version.kid.clone()),
        ("version", version.number.to_string()),
        ("state", state(version)),
        ("created", output::time(&version.create_time)),
        ("announced", output::time(&version.announce_time)),
        ("active from", output::time(&version.activate_time)),
        ("active until", output::time(&version.deactivate_time)),
        ("retired", output::time(&version.retire_time)),
        ("compromised", output::time(&version.compromise_time)),
        ("destroyed", output::time(&version.destroy_time)),
        ("last use", output::time(&version.last_use_time)),
        (
            "last token ends",
            output::time(&version.last_token_expire_time),
        ),
        ("in the backend", version.backend_ref.clone()),
    ])
}

/// When the version got to where it is, as far as the timestamps tell.
fn since(version: &KeyVersion) -> String {
    let times = [
        version.destroy_time,
        version.compromise_time,
        version.retire_time,
        version.deactivate_time,
        version.activate_time,
        version.announce_time,
        version.create_time,
    ];
    output::when(&times.into_iter().flatten().next())
}

fn state(version: &KeyVersion) -> String {
    let state = output::short(version.state().as_str_name(), "KEY_VERSION_STATE_");
    match version.standby {
        true => format!("{state} (standby)"),
        false => state,
    }
}

fn next_rotation(key: &Key) -> String {
    let when = output::when(&key.next_rotation_time);
    match key.overdue {
        true => format!("OVERDUE ({when})"),
        false => when,
    }
}

fn mode(key: &Key) -> String {
    let policy = key.rotation_policy.clone().unwrap_or_default();
    match (policy.mode(), policy.approved_by.as_str()) {
        (RotationMode::Unspecified, _) => String::new(),
        (RotationMode::Manual, _) => "manual".to_owned(),
        (RotationMode::Automatic, "") => "automatic, NOT APPROVED".to_owned(),
        (RotationMode::Automatic, _) => "automatic".to_owned(),
    }
}

/// The mode, and whether the standing approval is there.
fn standing(key: &Key, policy: &RotationPolicy) -> String {
    match (policy.mode(), policy.approved_by.as_str()) {
        (RotationMode::Unspecified, _) => String::new(),
        (RotationMode::Manual, _) => "manual: people approve and deploy each rotation".to_owned(),
        (RotationMode::Automatic, "") => format!(
            "automatic, but as manual until an approver runs `key approve-policy {} --tenant {}`",
            key.name, key.tenant
        ),
        (RotationMode::Automatic, approver) => format!(
            "automatic, approved {} by {}",
            output::time(&policy.approve_time),
            People::strangers().long(approver)
        ),
    }
}

fn period(key: &Key) -> String {
    format!("every {}", output::duration(&key.rotation_period))
}

fn approvals(policy: &RotationPolicy) -> String {
    match policy.approvals_needed {
        0 => String::new(),
        needed => format!("{needed} for each rotation"),
    }
}

fn standby(policy: &RotationPolicy) -> String {
    match policy.standby {
        true => "kept, so that a compromise needs no soak".to_owned(),
        false => String::new(),
    }
}

fn grace(policy: &RotationPolicy) -> String {
    match policy.grace.as_ref().map(|grace| grace.seconds) {
        None => String::new(),
        Some(0) => "until the last token issued has expired".to_owned(),
        Some(_) => format!(
            "{}, and until the last token issued has expired",
            output::duration(&policy.grace)
        ),
    }
}

fn purpose(key: &Key) -> String {
    output::short(key.purpose().as_str_name(), "KEY_PURPOSE_")
}

fn algorithm(key: &Key) -> String {
    let name = output::short(key.algorithm().as_str_name(), "ALGORITHM_");
    match key.rsa_bits {
        0 => name,
        bits => format!("{name} ({bits} bit)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::KeyVersionState;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn key() -> Key {
        Key {
            name: "orders".into(),
            owner: "team-orders".into(),
            overdue: true,
            compromised: true,
            rotation_policy: Some(RotationPolicy {
                mode: RotationMode::Automatic.into(),
                approvals_needed: 1,
                standby: true,
                ..Default::default()
            }),
            versions: vec![KeyVersion {
                kid: "ready".into(),
                state: KeyVersionState::PreActive.into(),
                standby: true,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_listing_shows_what_is_wrong() {
        let said = table(&[key()]);
        for part in ["OVERDUE", "COMPROMISED", "automatic, NOT APPROVED"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn a_key_shows_its_policy_and_its_standby_version() {
        let mut key = key();
        let said = whole(Some(&key));
        for part in [
            "key approve-policy",
            "1 for each rotation",
            "needs no soak",
            "PRE_ACTIVE (standby)",
            "ALARM",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let policy = key.rotation_policy.as_mut().unwrap();
        policy.approved_by = "somebody".into();
        policy.approve_time = at(1_800_000_000);
        policy.grace = Some(prost_types::Duration::default());
        let said = whole(Some(&key));
        assert!(said.contains("approved 2027-01-15"), "{said}");
        assert!(said.contains("until the last token issued"), "{said}");
    }

    #[test]
    fn a_version_shows_every_time_it_has() {
        let all = KeyVersion {
            kid: "k".into(),
            state: KeyVersionState::Destroyed.into(),
            create_time: at(1),
            announce_time: at(2),
            activate_time: at(3),
            deactivate_time: at(4),
            retire_time: at(5),
            compromise_time: at(6),
            destroy_time: at(7),
            last_use_time: at(8),
            last_token_expire_time: at(9),
            ..Default::default()
        };
        let said = version(&all);
        for second in 1..=9 {
            let time = format!("1970-01-01 00:00:0{second}Z");
            assert_eq!(said.matches(&time).count(), 1, "{second}: {said}");
        }
        let fresh = KeyVersion {
            create_time: at(1),
            ..Default::default()
        };
        assert!(!version(&fresh).contains("destroyed"));
    }
}
