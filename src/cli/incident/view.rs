//! Incidents for people who have just been woken up.

use std::time::Duration;

use crate::{
    cli::{audit, output, people::People},
    grpc::proto::{
        AuditEvent, GetIncidentResponse, Incident, IncidentAlert, IncidentNote, IncidentState,
    },
};

/// What is known right after a declaration.
pub struct Declared<'a> {
    /// Has every replica stopped?
    pub frozen_everywhere: bool,
    /// How long that took, or the bound.
    pub freeze_duration: Option<prost_types::Duration>,
    /// kid that the key uses now, empty for none; None when unknown.
    pub active_kid: Option<String>,
    /// How long verifiers may cache the JWKS; None when unknown.
    pub cached_for: Option<Duration>,
    /// How a command line of the caller begins.
    pub again: &'a str,
    /// How the command line of somebody else begins.
    pub somebody: &'a str,
}

/// What happened, in order, and what is to be done.
pub fn declared(incident: &Incident, declared: &Declared<'_>) -> String {
    let Declared {
        again, somebody, ..
    } = declared;
    let Incident { id, key_name, .. } = incident;
    let what_happened = output::details([
        ("incident", id.clone()),
        (
            "frozen",
            format!(
                "{}  kid {} of key {key_name} is COMPROMISED",
                output::clock_time(&incident.declare_time),
                incident.kid
            ),
        ),
        ("everywhere", everywhere(declared)),
        ("successor", successor(incident, declared)),
        ("tokens", tokens(declared)),
    ]);
    format!(
        "{what_happened}\n\nNext:\n\n\
         \x20 {again} incident get {id}\n\
         \x20 {again} incident note {id} --text 'what was found, what was done'\n\n\
         With a postmortem, two people close it, and one of them did not declare it:\n\n\
         \x20 {again} incident close {id} --postmortem REFERENCE\n\
         \x20 {somebody} incident close {id} --postmortem REFERENCE"
    )
}

fn everywhere(declared: &Declared<'_>) -> String {
    let time = output::duration(&declared.freeze_duration);
    match (declared.frozen_everywhere, time.as_str()) {
        (true, "") => "no replica uses it any more".to_owned(),
        (true, time) => format!("after {time}: no replica uses it any more"),
        (false, "") => "NOT YET: a replica has not confirmed".to_owned(),
        (false, time) => format!(
            "NOT YET: a replica has not confirmed; it stops by itself within {time} of the freeze"
        ),
    }
}

fn successor(incident: &Incident, declared: &Declared<'_>) -> String {
    if !incident.successor_kid.is_empty() {
        return format!(
            "{}  the key uses kid {} now",
            output::clock_time(&incident.switch_time),
            incident.successor_kid
        );
    }
    match declared.active_kid.as_deref() {
        Some("") => "NONE YET: the key cannot be used until there is one; the daemon keeps trying"
            .to_owned(),
        Some(kid) => format!("not needed: the key uses kid {kid}"),
        None => format!(
            "not known; `key get {} --tenant {}` says which version the key uses",
            incident.key_name, incident.tenant
        ),
    }
}

fn tokens(declared: &Declared<'_>) -> String {
    let cached = declared.cached_for.and_then(|age| {
        let seconds = i64::try_from(age.as_secs()).ok()?;
        Some(output::duration(&Some(prost_types::Duration {
            seconds,
            nanos: 0,
        })))
    });
    let bound = match cached {
        Some(age) => format!("for up to {age}"),
        None => "until it fetches the JWKS again".to_owned(),
    };
    format!(
        "VerifyToken rejects those under this kid (COMPROMISED_KID).\n\
         A verifier with the JWKS alone goes on accepting them {bound}: that is its cache"
    )
}

/// The incident, what happened, what people wrote, what was raised.
pub fn whole(answer: &GetIncidentResponse) -> String {
    let incident = answer.incident.clone().unwrap_or_default();
    let mut parts = vec![details(&incident, People::strangers())];
    if !answer.timeline.is_empty() {
        parts.push(timeline(&answer.timeline));
    }
    if !answer.notes.is_empty() {
        parts.push(notes(&answer.notes));
    }
    if !answer.alerts.is_empty() {
        parts.push(alerts(&answer.alerts));
    }
    parts.join("\n\n")
}

/// One line each.
pub fn table(incidents: &[Incident]) -> String {
    let rows = incidents.iter().map(|incident| {
        [
            incident.id.clone(),
            incident.key_name.clone(),
            state(incident),
            next(incident).to_owned(),
            output::when(&incident.declare_time),
            People::strangers().short(&incident.declared_by),
            incident.reason.clone(),
        ]
    });
    let header = ["ID", "KEY", "STATE", "NEXT", "DECLARED", "BY", "WHAT"];
    output::table(header, rows)
}

/// After CloseIncident: who must do what now.
pub fn closing(incident: &Incident, people: People<'_>, somebody: &str) -> String {
    let details = details(incident, people);
    match incident.state() {
        IncidentState::Closing => format!(
            "{details}\n\nNot closed yet: a second person must confirm, with exactly this:\n\n  \
             {somebody} incident close {} --postmortem {}",
            incident.id,
            output::shell_word(&incident.postmortem)
        ),
        IncidentState::Unspecified | IncidentState::Open | IncidentState::Closed => details,
    }
}

/// Notes, oldest first.
pub fn notes(notes: &[IncidentNote]) -> String {
    let rows = notes.iter().map(|note| {
        [
            output::clock_time(&note.time),
            People::strangers().short(&note.author),
            note.text.clone(),
        ]
    });
    output::table(["NOTED", "BY", "NOTE"], rows)
}

fn alerts(alerts: &[IncidentAlert]) -> String {
    let rows = alerts.iter().map(|alert| {
        [
            output::clock_time(&alert.raise_time),
            alert.kind.clone(),
            alert.text.clone(),
        ]
    });
    output::table(["RAISED", "ALERT", "TEXT"], rows)
}

fn timeline(events: &[AuditEvent]) -> String {
    let rows = events.iter().map(|event| {
        [
            output::clock_time(&event.time),
            People::strangers().short(&event.actor),
            event.action.clone(),
            audit::outcome(event),
            format!("{} {}", event.entity, event.entity_id),
            format!("{} {}", event.stream, event.seq),
        ]
    });
    output::table(["TIME", "WHO", "DID", "OUTCOME", "TO", "ROW"], rows)
}

fn details(incident: &Incident, people: People<'_>) -> String {
    let by = |time: &Option<prost_types::Timestamp>, id: &str| match id {
        "" => output::time(time),
        id => format!("{} by {}", output::time(time), people.long(id)),
    };
    let successor = match incident.successor_kid.as_str() {
        "" => String::new(),
        kid => format!("{kid}, {}", output::time(&incident.switch_time)),
    };
    output::details([
        ("incident", incident.id.clone()),
        (
            "key",
            format!("{} ({})", incident.key_name, incident.key_id),
        ),
        ("tenant", incident.tenant.clone()),
        ("compromised", incident.kid.clone()),
        ("what", incident.reason.clone()),
        ("state", state(incident)),
        ("next", next(incident).to_owned()),
        (
            "declared",
            by(&incident.declare_time, &incident.declared_by),
        ),
        ("successor", successor),
        ("postmortem", incident.postmortem.clone()),
        (
            "proposed",
            by(&incident.close_request_time, &incident.close_requested_by),
        ),
        ("closed", by(&incident.close_time, &incident.closed_by)),
    ])
}

fn next(incident: &Incident) -> &'static str {
    match incident.state() {
        IncidentState::Open => "write the postmortem, then close",
        IncidentState::Closing => "waits for a second person to confirm",
        IncidentState::Unspecified | IncidentState::Closed => "",
    }
}

fn state(incident: &Incident) -> String {
    output::short(incident.state().as_str_name(), "INCIDENT_STATE_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(state: IncidentState) -> Incident {
        Incident {
            id: "i-1".into(),
            tenant: "acme".into(),
            key_name: "orders".into(),
            kid: "bad".into(),
            state: state.into(),
            declared_by: "01a1fbfa-24c4-768b-9e3e-dbbce600636b".into(),
            declare_time: Some(prost_types::Timestamp {
                seconds: 1_800_000_000,
                nanos: 250_000_000,
            }),
            ..Default::default()
        }
    }

    fn facts() -> Declared<'static> {
        Declared {
            frozen_everywhere: true,
            freeze_duration: Some(prost_types::Duration {
                seconds: 0,
                nanos: 400_000_000,
            }),
            active_kid: Some("good".into()),
            cached_for: Some(Duration::from_mins(5)),
            again: "claviger --as officer",
            somebody: "claviger --as THEM",
        }
    }

    /// The parts appear in this order.
    #[track_caller]
    fn in_order(text: &str, parts: &[&str]) {
        let mut rest = text;
        for part in parts {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
            rest = &rest[at + part.len()..];
        }
    }

    // R-EMER-1, R-EMER-3
    #[test]
    fn a_declaration_tells_what_happened_in_order() {
        let mut incident = incident(IncidentState::Open);
        incident.successor_kid = "good".into();
        incident.switch_time = incident.declare_time;
        in_order(
            &declared(&incident, &facts()),
            &[
                "incident",
                "i-1",
                "2027-01-15 08:00:00.250Z  kid bad of key orders is COMPROMISED",
                "after 400 ms: no replica",
                "the key uses kid good now",
                "COMPROMISED_KID",
                "for up to 5 min",
                "claviger --as officer incident note i-1",
                "claviger --as officer incident close i-1 --postmortem",
                "claviger --as THEM incident close i-1 --postmortem",
            ],
        );
    }

    #[test]
    fn what_is_not_so_yet_is_said() {
        let incident = incident(IncidentState::Open);
        let mut facts = facts();
        facts.frozen_everywhere = false;
        facts.active_kid = Some(String::new());
        facts.cached_for = None;
        let said = declared(&incident, &facts);
        in_order(&said, &["NOT YET", "within 400 ms", "NONE YET", "again"]);
        facts.active_kid = Some("other".into());
        let said = declared(&incident, &facts);
        assert!(said.contains("not needed: the key uses kid other"));
    }

    // R-EMER-2
    #[test]
    fn who_proposes_to_close_is_told_how_the_second_person_confirms() {
        let mut closing_one = incident(IncidentState::Closing);
        closing_one.postmortem = "PM 17".into();
        closing_one.close_requested_by = "me".into();
        let said = closing(&closing_one, People::you("me"), "claviger --as THEM");
        let command = "claviger --as THEM incident close i-1 --postmortem 'PM 17'";
        in_order(&said, &["me (you)", "second person", command]);
        let closed = incident(IncidentState::Closed);
        let said = closing(&closed, People::strangers(), "claviger");
        assert!(!said.contains("second person"), "{said}");
    }

    #[test]
    fn an_incident_is_shown_with_all_that_belongs_to_it() {
        let answer = GetIncidentResponse {
            incident: Some(incident(IncidentState::Open)),
            timeline: vec![AuditEvent {
                action: "DeclareCompromise".into(),
                stream: "admin".into(),
                seq: 12,
                ..Default::default()
            }],
            notes: vec![IncidentNote {
                text: "laptop stolen\non a train".into(),
                ..Default::default()
            }],
            alerts: vec![IncidentAlert {
                kind: "KEY_COMPROMISED".into(),
                ..Default::default()
            }],
        };
        let said = whole(&answer);
        let parts = ["DeclareCompromise", "admin 12", "laptop", "KEY_COMPROMISED"];
        in_order(&said, &parts);
        assert!(table(answer.incident.as_slice()).contains("write the postmortem"));
    }
}
