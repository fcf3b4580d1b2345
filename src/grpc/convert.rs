//! Messages to model types and back. After this no function takes a raw string.

use std::{ops::RangeInclusive, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::proto;
use crate::{
    audit::{self, AuditRow, Outcome},
    erasure::Progress,
    error::{Error, Reason, Result},
    keys::{KeySnapshot, VersionUsage},
    model::{
        Algorithm, ApiKey, ApiKeyId, ApiKeyState, Approval, Caller, DestructionState, Incident,
        IncidentNote, IncidentState, KekRotation, KekRow, KekState, Key, KeyDestruction,
        KeyVersion, Kid, Principal, PrincipalId, PrincipalKind, PrincipalState, Purpose, Rotation,
        RotationMode, RotationPolicy, RotationState, TenantDestructionState, TenantName, Timestamp,
        VersionState, key::Material,
    },
};

/// An INVALID_FIELD error.
pub fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

/// The tenant a request names; empty means the caller's own.
pub fn tenant(name: &str, caller: &Caller) -> Result<TenantName> {
    match name {
        "" => Ok(caller.principal.tenant.clone()),
        name => name.parse(),
    }
}

/// Free text for people: 1 to `max` characters without control characters.
pub fn text(field: &str, value: String, max: usize) -> Result<String> {
    let fits = (1..=max).contains(&value.chars().count());
    if fits && !value.chars().any(|c| c.is_control() || reorders(c)) {
        return Ok(value);
    }
    Err(invalid(format!(
        "{field} must be 1 to {max} characters without control characters, those of text direction included"
    )))
}

/// Does the character change the order in which others are shown (Unicode UAX 9)? What is approved must read as it is.
const fn reorders(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Free text for people that may have several lines: as `text`, with line feeds and tabs.
pub fn lines(field: &str, value: String, max: usize) -> Result<String> {
    let fits = (1..=max).contains(&value.chars().count());
    let allowed = |c: char| !(c.is_control() || reorders(c)) || matches!(c, '\n' | '\t');
    if fits && value.chars().all(allowed) {
        return Ok(value);
    }
    Err(invalid(format!(
        "{field} must be 1 to {max} characters without control characters other than line feed and tab"
    )))
}

/// An algorithm; UNSPECIFIED and unknown numbers are refused.
pub fn algorithm(number: i32) -> Result<Algorithm> {
    use proto::Algorithm as P;
    match P::try_from(number) {
        Ok(P::Es256) => Ok(Algorithm::Es256),
        Ok(P::Es384) => Ok(Algorithm::Es384),
        Ok(P::Es512) => Ok(Algorithm::Es512),
        Ok(P::Eddsa) => Ok(Algorithm::EdDsa),
        Ok(P::Ps256) => Ok(Algorithm::Ps256),
        Ok(P::Ps384) => Ok(Algorithm::Ps384),
        Ok(P::Ps512) => Ok(Algorithm::Ps512),
        Ok(P::Rs256) => Ok(Algorithm::Rs256),
        Ok(P::Rs384) => Ok(Algorithm::Rs384),
        Ok(P::Rs512) => Ok(Algorithm::Rs512),
        Ok(P::A256gcm) => Ok(Algorithm::A256Gcm),
        Ok(P::Hs256) => Ok(Algorithm::Hs256),
        Ok(P::Hs512) => Ok(Algorithm::Hs512),
        Ok(P::Unspecified) | Err(_) => Err(invalid("algorithm is required")),
    }
}

/// The number of an algorithm.
pub const fn algorithm_number(algorithm: Algorithm) -> i32 {
    use proto::Algorithm as P;
    let number = match algorithm {
        Algorithm::Es256 => P::Es256,
        Algorithm::Es384 => P::Es384,
        Algorithm::Es512 => P::Es512,
        Algorithm::EdDsa => P::Eddsa,
        Algorithm::Ps256 => P::Ps256,
        Algorithm::Ps384 => P::Ps384,
        Algorithm::Ps512 => P::Ps512,
        Algorithm::Rs256 => P::Rs256,
        Algorithm::Rs384 => P::Rs384,
        Algorithm::Rs512 => P::Rs512,
        Algorithm::A256Gcm => P::A256gcm,
        Algorithm::Hs256 => P::Hs256,
        Algorithm::Hs512 => P::Hs512,
    };
    number as i32
}

/// A purpose; UNSPECIFIED and unknown numbers are refused.
pub fn purpose(number: i32) -> Result<Purpose> {
    use proto::KeyPurpose as P;
    match P::try_from(number) {
        Ok(P::Signing) => Ok(Purpose::Signing),
        Ok(P::TokenSigning) => Ok(Purpose::TokenSigning),
        Ok(P::Encryption) => Ok(Purpose::Encryption),
        Ok(P::Mac) => Ok(Purpose::Mac),
        Ok(P::Unspecified) | Err(_) => Err(invalid("purpose is required")),
    }
}

const fn purpose_number(purpose: Purpose) -> i32 {
    use proto::KeyPurpose as P;
    let number = match purpose {
        Purpose::Signing => P::Signing,
        Purpose::TokenSigning => P::TokenSigning,
        Purpose::Encryption => P::Encryption,
        Purpose::Mac => P::Mac,
    };
    number as i32
}

const fn state_number(state: VersionState) -> i32 {
    use proto::KeyVersionState as P;
    let number = match state {
        VersionState::PreActive => P::PreActive,
        VersionState::Active => P::Active,
        VersionState::VerifyOnly => P::VerifyOnly,
        VersionState::Retired => P::Retired,
        VersionState::Compromised => P::Compromised,
        VersionState::Destroyed => P::Destroyed,
    };
    number as i32
}

/// A kind of principal; None when unspecified.
pub fn principal_kind(number: i32) -> Result<Option<PrincipalKind>> {
    use proto::PrincipalType as P;
    match P::try_from(number) {
        Ok(P::User) => Ok(Some(PrincipalKind::User)),
        Ok(P::Service) => Ok(Some(PrincipalKind::Service)),
        Ok(P::Unspecified) => Ok(None),
        Err(_) => Err(invalid("type must be user or service")),
    }
}

/// The number of a kind of principal.
pub const fn principal_kind_number(kind: PrincipalKind) -> i32 {
    use proto::PrincipalType as P;
    let number = match kind {
        PrincipalKind::User => P::User,
        PrincipalKind::Service => P::Service,
        PrincipalKind::Job => P::Unspecified,
    };
    number as i32
}

/// A rotation mode; None when unspecified.
pub fn rotation_mode(number: i32) -> Result<Option<RotationMode>> {
    match proto::RotationMode::try_from(number) {
        Ok(proto::RotationMode::Unspecified) => Ok(None),
        Ok(proto::RotationMode::Manual) => Ok(Some(RotationMode::Manual)),
        Ok(proto::RotationMode::Automatic) => Ok(Some(RotationMode::Automatic)),
        Err(_) => Err(invalid("unknown rotation_mode")),
    }
}

fn rotation_policy(policy: &RotationPolicy) -> proto::RotationPolicy {
    let mode = match policy.mode {
        RotationMode::Manual => proto::RotationMode::Manual,
        RotationMode::Automatic => proto::RotationMode::Automatic,
    };
    let standing = policy.standing_approval.as_ref();
    proto::RotationPolicy {
        mode: mode.into(),
        approvals_needed: policy.approvals_needed.get(),
        standby: policy.standby,
        standby_backend: policy.standby_backend.clone().unwrap_or_default(),
        grace: length(policy.grace),
        set_by: policy.set_by.map(|id| id.to_string()).unwrap_or_default(),
        approved_by: standing.map(|a| a.approver.to_string()).unwrap_or_default(),
        approve_time: standing.and_then(|a| time(a.at)),
    }
}

/// A rotation state for a filter; None when unspecified.
pub fn rotation_state(number: i32) -> Result<Option<RotationState>> {
    use proto::RotationState as P;
    match P::try_from(number) {
        Ok(P::Requested) => Ok(Some(RotationState::Requested)),
        Ok(P::Approved) => Ok(Some(RotationState::Approved)),
        Ok(P::Deployed) => Ok(Some(RotationState::Deployed)),
        Ok(P::Completed) => Ok(Some(RotationState::Completed)),
        Ok(P::Rejected) => Ok(Some(RotationState::Rejected)),
        Ok(P::Cancelled) => Ok(Some(RotationState::Cancelled)),
        Ok(P::Expired) => Ok(Some(RotationState::Expired)),
        Ok(P::Unspecified) => Ok(None),
        Err(_) => Err(invalid("state is unknown")),
    }
}

/// A destruction state for a filter; None when unspecified.
pub fn destruction_state(number: i32) -> Result<Option<DestructionState>> {
    use proto::KeyDestructionState as P;
    match P::try_from(number) {
        Ok(P::Requested) => Ok(Some(DestructionState::Requested)),
        Ok(P::Scheduled) => Ok(Some(DestructionState::Scheduled)),
        Ok(P::Destroyed) => Ok(Some(DestructionState::Destroyed)),
        Ok(P::Cancelled) => Ok(Some(DestructionState::Cancelled)),
        Ok(P::Unspecified) => Ok(None),
        Err(_) => Err(invalid("state is unknown")),
    }
}

/// An incident state for a filter; None when unspecified.
pub fn incident_state(number: i32) -> Result<Option<IncidentState>> {
    use proto::IncidentState as P;
    match P::try_from(number) {
        Ok(P::Open) => Ok(Some(IncidentState::Open)),
        Ok(P::Closing) => Ok(Some(IncidentState::Closing)),
        Ok(P::Closed) => Ok(Some(IncidentState::Closed)),
        Ok(P::Unspecified) => Ok(None),
        Err(_) => Err(invalid("state is unknown")),
    }
}

/// An outcome for a filter; empty when unspecified.
pub fn outcome(number: i32) -> Result<&'static str> {
    use proto::AuditOutcome as P;
    match P::try_from(number) {
        Ok(P::Success) => Ok(Outcome::Success.as_str()),
        Ok(P::Refused) => Ok(Outcome::Refused.as_str()),
        Ok(P::Failed) => Ok(Outcome::Failed.as_str()),
        Ok(P::Unspecified) => Ok(""),
        Err(_) => Err(invalid("outcome is unknown")),
    }
}

/// Longest duration of the protobuf specification: 10,000 years.
const MAX_SECONDS: u64 = 315_576_000_000;
/// The points in time of the protobuf specification: years 1 to 9999.
const TIMES: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A length of time; negative or malformed ones are refused. By hand: prost's own conversion normalises, and overflows
/// on the way.
pub fn duration(field: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    let Some(d) = value else { return Ok(None) };
    match (u64::try_from(d.seconds), u32::try_from(d.nanos)) {
        (Ok(seconds @ 0..=MAX_SECONDS), Ok(nanos @ 0..1_000_000_000)) => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(invalid(format!("{field} must be a positive duration"))),
    }
}

/// A point in time; malformed ones are refused.
pub fn timestamp(field: &str, value: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>> {
    let Some(t) = value else { return Ok(None) };
    if TIMES.contains(&t.seconds) && (0..1_000_000_000).contains(&t.nanos) {
        let micros = t.seconds * 1_000_000 + i64::from(t.nanos) / 1000;
        return Ok(Some(Timestamp::from_micros(micros)));
    }
    Err(invalid(format!(
        "{field} is not a time between the years 1 and 9999"
    )))
}

/// A text to look for: up to 255 characters without control characters, or empty.
pub fn filter(field: &str, value: String) -> Result<String> {
    match value.is_empty() {
        true => Ok(value),
        false => text(field, value, 255),
    }
}

/// A point in time on the wire.
pub const fn time(t: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds: t.seconds(),
        nanos: (t.micros().rem_euclid(1_000_000) * 1000) as i32,
    })
}

/// A length of time on the wire.
pub fn length(d: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(d).ok()
}

/// Page size, 0 meaning 100.
pub fn page_size(asked: u32) -> Result<i64> {
    match asked {
        0 => Ok(100),
        1..=1000 => Ok(i64::from(asked)),
        _ => Err(invalid("page_size must be 1 to 1000")),
    }
}

/// What a page token says: where the page before ended. Empty for the first page.
///
/// Errors: PAGE_TOKEN_INVALID unless it was made for this listing.
pub fn page_token(listing: &str, token: &str) -> Result<String> {
    if token.is_empty() {
        return Ok(String::new());
    }
    BASE64_URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| {
            let (made_for, position) = text.split_once('\n')?;
            let one_line = !position.is_empty() && !position.contains(char::is_control);
            (made_for == listing && one_line).then(|| position.to_owned())
        })
        .ok_or_else(|| {
            Error::new(
                Reason::PageTokenInvalid,
                "page_token is not from an answer of this call; begin again without it",
            )
        })
}

/// The token for the page after one that ended at `last`; empty when the page was not full.
pub fn next_page<T>(
    listing: &str,
    page: &[T],
    size: i64,
    position: impl FnOnce(&T) -> String,
) -> String {
    match page.last() {
        Some(last) if page.len() as i64 == size => {
            BASE64_URL_SAFE_NO_PAD.encode(format!("{listing}\n{}", position(last)))
        }
        _ => String::new(),
    }
}

/// Proof of a recorded change.
pub fn receipt(receipt: &audit::Receipt) -> Option<proto::Receipt> {
    Some(proto::Receipt {
        stream: audit::ADMIN_STREAM.to_owned(),
        seq: receipt.seq,
        hash: audit::hex(&receipt.hash),
    })
}

/// A key with all its versions.
pub fn key(snapshot: &KeySnapshot, now: Timestamp) -> proto::Key {
    let active = snapshot.active().ok().map(|v| v.version.kid.clone());
    let mut states = snapshot.versions().iter().map(|v| v.version.state);
    let compromised = states.any(|state| state == VersionState::Compromised);
    let mut message = key_row(&snapshot.key, active.as_ref(), compromised, now);
    message.versions = snapshot
        .versions()
        .iter()
        .map(|v| version(&snapshot.key, &v.version))
        .collect();
    message
}

/// A key without versions.
pub fn key_row(key: &Key, active: Option<&Kid>, compromised: bool, now: Timestamp) -> proto::Key {
    proto::Key {
        id: key.id.to_string(),
        tenant: key.tenant.to_string(),
        name: key.name.to_string(),
        purpose: purpose_number(key.purpose),
        algorithm: algorithm_number(key.algorithm),
        rsa_bits: key.rsa_bits,
        backend: key.backend.clone(),
        owner: key.owner.clone(),
        create_time: time(key.created_at),
        rotation_period: length(key.rotation_period),
        next_rotation_time: time(key.next_rotation_at),
        overdue: key.next_rotation_at < now,
        versions: Vec::new(),
        active_kid: active.map(ToString::to_string).unwrap_or_default(),
        rotation_policy: Some(rotation_policy(&key.policy)),
        compromised,
        revision: key.revision,
    }
}

fn version(key: &Key, v: &KeyVersion) -> proto::KeyVersion {
    let public = v.public_key();
    let (backend, reference) = match &v.material {
        Material::KeyPair {
            backend, reference, ..
        } => (backend.clone(), reference.to_string()),
        Material::DataKey { .. } | Material::Shredded { .. } => (String::new(), String::new()),
    };
    let imported = matches!(
        &v.material,
        Material::DataKey {
            sealed_secret: Some(_),
            ..
        }
    );
    proto::KeyVersion {
        kid: v.kid.to_string(),
        number: v.number,
        state: state_number(v.state),
        create_time: time(v.created_at),
        announce_time: v.announced_at.and_then(time),
        activate_time: v.activated_at.and_then(time),
        deactivate_time: v.deactivated_at.and_then(time),
        public_jwk: public
            .map(|p| p.jwk(&v.kid, key.algorithm).to_string())
            .unwrap_or_default(),
        public_pem: public.map(|p| p.spki_pem()).unwrap_or_default(),
        backend_ref: reference,
        retire_time: v.retired_at.and_then(time),
        compromise_time: v.compromised_at.and_then(time),
        destroy_time: v.destroyed_at.and_then(time),
        last_token_expire_time: v.last_token_exp.and_then(time),
        standby: v.is_standby,
        last_use_time: v.last_used_at.and_then(time),
        backend,
        imported,
    }
}

/// A rotation.
pub fn rotation(r: &Rotation) -> proto::Rotation {
    proto::Rotation {
        id: r.id.to_string(),
        tenant: r.tenant.to_string(),
        key_id: r.key_id.to_string(),
        key_name: r.key_name.to_string(),
        state: state_of(r.state) as i32,
        old_kid: r.old_kid.to_string(),
        new_kid: r.new_kid.to_string(),
        justification: r.justification.clone(),
        plan: r.plan.clone(),
        plan_digest: r.plan_digest(),
        requester: r.requester.to_string(),
        approvals: approvals(&r.approvals),
        approvals_needed: r.approvals_needed.get(),
        deployer: r.deployer.map(|id| id.to_string()).unwrap_or_default(),
        request_time: time(r.requested_at),
        announce_time: r.announced_at.and_then(time),
        deployable_time: r.deployable_at().and_then(time),
        deploy_time: r.deployed_at.and_then(time),
        expire_time: time(r.expires_at),
        end_time: r.ended_at.and_then(time),
        ended_by: r.ended_by.map(|id| id.to_string()).unwrap_or_default(),
        end_reason: r.end_reason.clone(),
        grace_end_time: r.grace_ends_at.and_then(time),
        scheduled: r.scheduled,
    }
}

const fn state_of(state: RotationState) -> proto::RotationState {
    use proto::RotationState as P;
    match state {
        RotationState::Requested => P::Requested,
        RotationState::Approved => P::Approved,
        RotationState::Deployed => P::Deployed,
        RotationState::Completed => P::Completed,
        RotationState::Rejected => P::Rejected,
        RotationState::Cancelled => P::Cancelled,
        RotationState::Expired => P::Expired,
    }
}

fn approvals(approvals: &[Approval]) -> Vec<proto::Approval> {
    let convert = |a: &Approval| proto::Approval {
        approver: a.approver.to_string(),
        time: time(a.at),
    };
    approvals.iter().map(convert).collect()
}

/// A rotation of the KEK.
pub fn kek_rotation(r: &KekRotation) -> proto::KekRotation {
    proto::KekRotation {
        id: r.id.to_string(),
        state: state_of(r.state) as i32,
        old_kek: r.old_kek.0.clone(),
        new_kek: r.new_kek.0.clone(),
        new_backend: r.new_backend.clone(),
        justification: r.justification.clone(),
        plan: r.plan.clone(),
        plan_digest: r.plan_digest(),
        requester: r.requester.to_string(),
        approvals: approvals(&r.approvals),
        approvals_needed: r.approvals_needed.get(),
        deployer: r.deployer.map(|id| id.to_string()).unwrap_or_default(),
        request_time: time(r.requested_at),
        approve_time: r.approved_at.and_then(time),
        deploy_time: r.deployed_at.and_then(time),
        expire_time: time(r.expires_at),
        end_time: r.ended_at.and_then(time),
        ended_by: r.ended_by.map(|id| id.to_string()).unwrap_or_default(),
        end_reason: r.end_reason.clone(),
        total: r.progress.total,
        rewrapped: r.progress.rewrapped,
        remaining: r.progress.remaining,
        undecryptable: r.progress.failed,
    }
}

/// A KEK and the number of data keys under it.
pub fn kek(kek: &KekRow, data_keys: i64) -> proto::Kek {
    use proto::KekState as P;
    let state = match kek.state {
        KekState::PreActive => P::PreActive,
        KekState::Active => P::Active,
        KekState::Deactivated => P::Deactivated,
        KekState::Retired => P::Retired,
    };
    proto::Kek {
        reference: kek.reference.0.clone(),
        backend: kek.backend.clone(),
        state: state as i32,
        data_keys,
        create_time: time(kek.created_at),
        activate_time: kek.activated_at.and_then(time),
        deactivate_time: kek.deactivated_at.and_then(time),
        retire_time: kek.retired_at.and_then(time),
    }
}

/// A digest as callers give it. Errors: INVALID_FIELD unless 64 lower-case hex digits.
pub fn plan_digest(digest: String) -> Result<String> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digest.len() != 64 || !digest.bytes().all(hex) {
        return Err(invalid(
            "plan_digest must be 64 lower-case hex digits: the SHA-256 of the plan you approve",
        ));
    }
    Ok(digest)
}

/// A destruction.
pub fn destruction(d: &KeyDestruction) -> proto::KeyDestruction {
    use proto::KeyDestructionState as P;
    let state = match d.state {
        DestructionState::Requested => P::Requested,
        DestructionState::Scheduled => P::Scheduled,
        DestructionState::Destroyed => P::Destroyed,
        DestructionState::Cancelled => P::Cancelled,
    };
    let person = |id: Option<PrincipalId>| id.map(|id| id.to_string()).unwrap_or_default();
    proto::KeyDestruction {
        id: d.id.to_string(),
        tenant: d.tenant.to_string(),
        key_id: d.key_id.to_string(),
        key_name: d.key_name.to_string(),
        kid: d.kid.to_string(),
        state: state as i32,
        reason: d.reason.clone(),
        requester: d.requester.to_string(),
        request_time: time(d.requested_at),
        approver: person(d.approver),
        approve_time: d.approved_at.and_then(time),
        destroy_time: d.destroy_at.and_then(time),
        end_time: d.ended_at.and_then(time),
        cancelled_by: person(d.cancelled_by),
        cancel_reason: d.cancel_reason.clone(),
    }
}

/// A destruction of a tenant's keys.
pub fn tenant_destruction(progress: &Progress) -> proto::TenantDestruction {
    use proto::TenantDestructionState as P;
    let d = &progress.destruction;
    let state = match d.state {
        TenantDestructionState::Requested => P::Requested,
        TenantDestructionState::Scheduled => P::Scheduled,
        TenantDestructionState::Destroying => P::Destroying,
        TenantDestructionState::Destroyed => P::Destroyed,
        TenantDestructionState::Cancelled => P::Cancelled,
    };
    let person = |id: Option<PrincipalId>| id.map(|id| id.to_string()).unwrap_or_default();
    proto::TenantDestruction {
        id: d.id.to_string(),
        tenant: d.tenant.to_string(),
        state: state as i32,
        reason: d.reason.clone(),
        requester: d.requester.to_string(),
        request_time: time(d.requested_at),
        approver: person(d.approver),
        approve_time: d.approved_at.and_then(time),
        destroy_time: d.destroy_at.and_then(time),
        end_time: d.ended_at.and_then(time),
        cancelled_by: person(d.cancelled_by),
        cancel_reason: d.cancel_reason.clone(),
        remaining_versions: progress.remaining,
        destroyed_versions: progress.destroyed,
    }
}

/// How a version was used.
pub fn usage(u: &VersionUsage) -> proto::KeyVersionUsage {
    let counts = u.counts;
    proto::KeyVersionUsage {
        kid: u.kid.to_string(),
        number: u.number,
        state: state_number(u.state),
        made: counts.made,
        opened: counts.opened,
        rewrapped: counts.rewrapped,
        remaining: counts.made.saturating_sub(counts.rewrapped).max(0),
        last_use_time: u.last_used_at.and_then(time),
        kek: u.kek.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// An incident.
pub fn incident(i: &Incident) -> proto::Incident {
    use proto::IncidentState as P;
    let state = match i.state {
        IncidentState::Open => P::Open,
        IncidentState::Closing => P::Closing,
        IncidentState::Closed => P::Closed,
    };
    let person = |id: Option<PrincipalId>| id.map(|id| id.to_string()).unwrap_or_default();
    proto::Incident {
        id: i.id.to_string(),
        tenant: i.tenant.to_string(),
        key_id: i.key_id.to_string(),
        key_name: i.key_name.to_string(),
        kid: i.kid.to_string(),
        state: state as i32,
        reason: i.reason.clone(),
        declared_by: i.declared_by.to_string(),
        declare_time: time(i.declared_at),
        successor_kid: i
            .successor_kid
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        switch_time: i.switched_at.and_then(time),
        postmortem: i.postmortem.clone(),
        close_requested_by: person(i.close_requested_by),
        close_request_time: i.close_requested_at.and_then(time),
        closed_by: person(i.closed_by),
        close_time: i.closed_at.and_then(time),
    }
}

/// A note in an incident.
pub fn incident_note(note: &IncidentNote) -> proto::IncidentNote {
    proto::IncidentNote {
        id: note.id.to_string(),
        author: note.author.to_string(),
        time: time(note.at),
        text: note.text.clone(),
    }
}

/// A principal.
pub fn principal(p: &Principal) -> proto::Principal {
    proto::Principal {
        id: p.id.to_string(),
        tenant: p.tenant.to_string(),
        name: p.name.to_string(),
        r#type: principal_kind_number(p.kind),
        identities: p.identities.iter().map(ToString::to_string).collect(),
        grants: p
            .grants
            .iter()
            .map(|g| proto::RoleGrant {
                role: g.role.to_string(),
                tenant: g.scope.as_str().to_owned(),
            })
            .collect(),
        create_time: time(p.created_at),
        owner: p.owner.clone(),
        scopes: p.scopes.iter().map(ToOwned::to_owned).collect(),
        state: principal_state_number(p.state),
    }
}

/// An API key, without its secret, which nobody has.
pub fn api_key(k: &ApiKey) -> proto::ApiKey {
    let id = |id: Option<ApiKeyId>| id.map(|id| id.to_string()).unwrap_or_default();
    proto::ApiKey {
        id: k.id.to_string(),
        tenant: k.tenant.to_string(),
        owner_id: k.owner.to_string(),
        name: k.name.clone(),
        client_id: k.client.map(|c| c.to_string()).unwrap_or_default(),
        scopes: k.scopes.iter().map(ToOwned::to_owned).collect(),
        state: api_key_state_number(k.state),
        prefix: k.prefix(),
        last_four: k.last_four.clone(),
        create_time: time(k.created_at),
        expire_time: time(k.expires_at),
        last_use_time: k.last_used_at.and_then(time),
        end_time: k.ended_at.and_then(time),
        end_reason: k.end_reason.clone(),
        replaces_id: id(k.replaces),
        replaced_by_id: id(k.replaced_by),
    }
}

fn api_key_state_number(state: ApiKeyState) -> i32 {
    use proto::ApiKeyState as P;
    let state = match state {
        ApiKeyState::Active => P::Active,
        ApiKeyState::Expired => P::Expired,
        ApiKeyState::Revoked => P::Revoked,
    };
    state.into()
}

fn principal_state_number(state: PrincipalState) -> i32 {
    use proto::PrincipalState as P;
    let state = match state {
        PrincipalState::Active => P::Active,
        PrincipalState::Suspended => P::Suspended,
    };
    state.into()
}

/// An audit row.
pub fn audit_event(row: AuditRow) -> proto::AuditEvent {
    use proto::AuditOutcome as P;
    let outcome = Outcome::ALL
        .into_iter()
        .find(|o| o.as_str() == row.outcome)
        .map_or(P::Unspecified, |o| match o {
            Outcome::Success => P::Success,
            Outcome::Refused => P::Refused,
            Outcome::Failed => P::Failed,
        });
    proto::AuditEvent {
        stream: row.stream,
        seq: row.seq,
        time: time(Timestamp::from_micros(row.at)),
        tenant: row.tenant,
        actor: row.actor,
        actor_type: row.actor_type,
        action: row.action,
        entity: row.entity,
        entity_id: row.entity_id,
        outcome: outcome as i32,
        request_id: row.request_id,
        data: row.data,
        prev_hash: audit::hex(&row.prev_hash),
        hash: audit::hex(&row.hash),
    }
}
