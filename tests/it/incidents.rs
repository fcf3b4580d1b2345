//! A key is compromised: frozen, switched, its tokens invalid; two people close the record. R-EMER-1, R-EMER-2, R-JWT-5.

use std::fs;

use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Request, Response, Status};

use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

pub const AUDIENCE: &str = "orders-api";

/// A second officer, and one of another tenant.
const OFFICERS: &str = r#"
[[bootstrap.principals]]
name = "second"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/second"]
roles = [{ role = "security-officer", tenant = "*" }]

[[bootstrap.principals]]
name = "foreign"
tenant = "globex"
type = "user"
identities = ["spiffe://claviger.test/foreign"]
roles = [{ role = "security-officer", tenant = "globex" }]
"#;

fn person(daemon: &Daemon, name: &str) -> Actor {
    let leaf = daemon.ca.client(&format!("spiffe://claviger.test/{name}"));
    daemon.actor_with(Some(&leaf))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(
    answer: Result<Response<T>, Status>,
    code: Code,
    why: &str,
) -> String {
    let status = answer.expect_err(why);
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, why),
        "{status}"
    );
    status.message().to_owned()
}

const PRECONDITION: Code = Code::FailedPrecondition;

pub async fn token_key(daemon: &Daemon, name: &str) -> Key {
    daemon
        .key("acme", name, KeyPurpose::TokenSigning, Algorithm::Es256)
        .await
}

pub fn declare(key: &str, kid: &str) -> DeclareCompromiseRequest {
    DeclareCompromiseRequest {
        tenant: "acme".into(),
        key: key.into(),
        kid: kid.into(),
        reason: "it was in a log".into(),
    }
}

pub async fn declared(daemon: &Daemon, key: &str, kid: &str) -> DeclareCompromiseResponse {
    let officer = daemon.actor("officer");
    let answer = officer
        .incidents()
        .declare_compromise(declare(key, kid))
        .await;
    answer.expect("DeclareCompromise").into_inner()
}

pub fn issue(key: &str) -> IssueTokenRequest {
    IssueTokenRequest {
        tenant: "acme".into(),
        key: key.into(),
        audience: vec![AUDIENCE.into()],
        ..Default::default()
    }
}

pub async fn issued(daemon: &Daemon, key: &str) -> IssueTokenResponse {
    let answer = daemon
        .actor("service")
        .tokens()
        .issue_token(issue(key))
        .await;
    answer.expect("IssueToken").into_inner()
}

pub fn verify(token: &str) -> VerifyTokenRequest {
    VerifyTokenRequest {
        tenant: "acme".into(),
        token: token.into(),
        audience: AUDIENCE.into(),
        ..Default::default()
    }
}

pub async fn verdict(daemon: &Daemon, token: &str) -> VerifyTokenResponse {
    let answer = daemon
        .actor("service")
        .tokens()
        .verify_token(verify(token))
        .await;
    answer.expect("VerifyToken").into_inner()
}

async fn key_of(daemon: &Daemon, key: &str) -> Key {
    let request = GetKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
    };
    let answer = daemon.actor("auditor").keys().get_key(request).await;
    answer.expect("GetKey").into_inner().key.expect("a key")
}

fn state_of(key: &Key, kid: &str) -> KeyVersionState {
    let version = key.versions.iter().find(|v| v.kid == kid);
    version.expect("a version").state()
}

async fn published(daemon: &Daemon) -> String {
    daemon.public_get("/.well-known/jwks.json").await.text()
}

async fn rotation_of(daemon: &Daemon, key: &str) -> Rotation {
    let request = RotateKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        justification: "quarterly".into(),
        ..RotateKeyRequest::default()
    };
    let answer = daemon.actor("issuer").rotations().rotate_key(request).await;
    answer
        .expect("RotateKey")
        .into_inner()
        .rotation
        .expect("set")
}

async fn approved(daemon: &Daemon, rotation: &Rotation) -> Rotation {
    let request = ApproveRotationRequest {
        rotation_id: rotation.id.clone(),
        plan_digest: rotation.plan_digest.clone(),
    };
    let answer = daemon
        .actor("approver")
        .rotations()
        .approve_rotation(request)
        .await;
    answer
        .expect("approved")
        .into_inner()
        .rotation
        .expect("set")
}

async fn deployed(daemon: &Daemon, rotation: &Rotation) {
    approved(daemon, rotation).await;
    let deployer = daemon.actor("deployer");
    let request = DeployRotationRequest {
        rotation_id: rotation.id.clone(),
    };
    let until = Instant::now() + PATIENCE;
    while let Err(status) = deployer.rotations().deploy_rotation(request.clone()).await {
        assert_eq!(reason(&status), "ROTATION_SOAKING", "{status}");
        assert!(Instant::now() < until, "it soaks for ever");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn rotation_now(daemon: &Daemon, id: &str) -> Rotation {
    let request = GetRotationRequest {
        rotation_id: id.into(),
    };
    let answer = daemon
        .actor("auditor")
        .rotations()
        .get_rotation(request)
        .await;
    answer
        .expect("GetRotation")
        .into_inner()
        .rotation
        .expect("set")
}

async fn story(actor: &Actor, id: &str) -> GetIncidentResponse {
    let request = GetIncidentRequest {
        incident_id: id.into(),
    };
    let answer = actor.incidents().get_incident(request).await;
    answer.expect("GetIncident").into_inner()
}

/// What must hold after every compromise of the ACTIVE version.
async fn is_switched(daemon: &Daemon, old: &IssueTokenResponse, name: &str) -> Incident {
    assert!(verdict(daemon, &old.token).await.valid);
    let answer = declared(daemon, name, "").await;
    assert!(answer.frozen_everywhere && answer.freeze_duration.is_some());
    let incident = answer.incident.expect("an incident");
    assert_eq!(
        (incident.kid.as_str(), incident.state()),
        (old.kid.as_str(), IncidentState::Open)
    );
    assert!(!incident.successor_kid.is_empty() && incident.switch_time.is_some());

    let rejected = verdict(daemon, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
    let new = issued(daemon, name).await;
    assert_eq!(new.kid, incident.successor_kid);
    assert!(verdict(daemon, &new.token).await.valid);
    let set = published(daemon).await;
    assert!(!set.contains(&old.kid) && set.contains(&new.kid));

    let key = key_of(daemon, name).await;
    assert!(key.compromised);
    assert_eq!(key.active_kid, incident.successor_kid);
    assert_eq!(state_of(&key, &old.kid), KeyVersionState::Compromised);
    let told = story(&daemon.actor("auditor"), &incident.id).await;
    assert_eq!(told.alerts[0].kind, "KEY_COMPROMISED");
    assert!(told.alerts[0].text.contains(&incident.kid));
    incident
}

// R-JWT-5, R-EMER-1
async fn emergency_rotation_invalidates_tokens(engine: Engine) {
    let daemon = Daemon::start(engine).await;

    // Nothing is ready: a successor is generated.
    token_key(&daemon, "bare").await;
    let old = issued(&daemon, "bare").await;
    let incident = is_switched(&daemon, &old, "bare").await;
    let again = daemon
        .actor("officer")
        .incidents()
        .declare_compromise(declare("bare", &old.kid))
        .await;
    let said = refused(again, PRECONDITION, "INCIDENT_STATE");
    assert!(said.contains(&incident.id), "{said}");

    // A successor that verifiers do not know yet is taken back.
    token_key(&daemon, "asked").await;
    let rotation = rotation_of(&daemon, "asked").await;
    let old = issued(&daemon, "asked").await;
    let incident = is_switched(&daemon, &old, "asked").await;
    assert_ne!(incident.successor_kid, rotation.new_kid);
    let key = key_of(&daemon, "asked").await;
    assert_eq!(state_of(&key, &rotation.new_kid), KeyVersionState::Retired);
    let ended = rotation_now(&daemon, &rotation.id).await;
    assert_eq!(ended.state(), RotationState::Cancelled);
    assert_eq!(
        ended.end_reason,
        format!("overtaken by incident {}", incident.id)
    );
    assert_eq!(ended.ended_by, incident.declared_by);

    // One that they know takes over, soaked or not.
    token_key(&daemon, "soaking").await;
    let rotation = rotation_of(&daemon, "soaking").await;
    approved(&daemon, &rotation).await;
    let old = issued(&daemon, "soaking").await;
    let incident = is_switched(&daemon, &old, "soaking").await;
    assert_eq!(incident.successor_kid, rotation.new_kid);
    let ended = rotation_now(&daemon, &rotation.id).await;
    assert_eq!(ended.state(), RotationState::Cancelled);

    // The standby version goes before everything.
    let request = CreateKeyRequest {
        tenant: "acme".into(),
        name: "careful".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        standby: true,
        ..Default::default()
    };
    let made = daemon.actor("issuer").keys().create_key(request).await;
    made.expect("CreateKey");
    let rotation = rotation_of(&daemon, "careful").await;
    let (id, kid) = (&rotation.id, &rotation.new_kid);
    daemon
        .execute(&format!(
            "UPDATE rotations SET state = 'CANCELLED', ended_at = requested_at WHERE id = '{id}'; \
             UPDATE key_versions SET is_standby = 1, announced_at = created_at WHERE kid = '{kid}'"
        ))
        .await;
    let open = rotation_of(&daemon, "careful").await;
    approved(&daemon, &open).await;
    let old = issued(&daemon, "careful").await;
    let before = key_of(&daemon, "careful").await;
    let incident = is_switched(&daemon, &old, "careful").await;
    let standby = before.versions.iter().filter(|v| v.standby);
    assert!(
        standby
            .map(|v| &v.kid)
            .any(|kid| *kid == incident.successor_kid)
    );
    let key = key_of(&daemon, "careful").await;
    assert_eq!(state_of(&key, &open.new_kid), KeyVersionState::Retired);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emergency_rotation_invalidates_tokens_on_sqlite() {
    emergency_rotation_invalidates_tokens(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emergency_rotation_invalidates_tokens_on_postgres() {
    emergency_rotation_invalidates_tokens(Engine::Postgres).await;
}

/// Versions that are not ACTIVE are frozen too, and nothing is switched.
// R-EMER-1
async fn a_version_of_any_state_is_frozen(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    token_key(&daemon, "jwt").await;
    token_key(&daemon, "other").await;
    let old = issued(&daemon, "jwt").await;
    let first = rotation_of(&daemon, "jwt").await;
    deployed(&daemon, &first).await;
    assert!(verdict(&daemon, &old.token).await.valid);

    // The successor in an open rotation: the rotation ends with it.
    let open = rotation_of(&daemon, "jwt").await;
    let answer = declared(&daemon, "jwt", &open.new_kid).await;
    let incident = answer.incident.expect("an incident");
    assert!(incident.successor_kid.is_empty() && incident.switch_time.is_none());
    assert_eq!(
        rotation_now(&daemon, &open.id).await.state(),
        RotationState::Cancelled
    );

    // One in its grace window; another rotation goes on.
    let open = rotation_of(&daemon, "jwt").await;
    declared(&daemon, "jwt", &old.kid).await;
    assert_eq!(
        rotation_now(&daemon, &open.id).await.state(),
        RotationState::Requested
    );
    assert_eq!(
        rotation_now(&daemon, &first.id).await.state(),
        RotationState::Completed
    );
    let rejected = verdict(&daemon, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
    assert_eq!(issued(&daemon, "jwt").await.kid, first.new_kid);

    let officer = daemon.actor("officer");
    let rows = "SELECT id FROM incidents ORDER BY id";
    let before = daemon.rows(rows).await;
    let other = key_of(&daemon, "other").await.active_kid;
    for (key, kid) in [("jwt", other.as_str()), ("jwt", "nobodys"), ("nothing", "")] {
        let answer = officer
            .incidents()
            .declare_compromise(declare(key, kid))
            .await;
        refused(answer, Code::NotFound, "KEY_NOT_FOUND");
    }
    assert_eq!(daemon.rows(rows).await, before);
    assert!(
        verdict(&daemon, &issued(&daemon, "other").await.token)
            .await
            .valid
    );

    // Data: it can be moved away, and nothing else.
    let vault = KeyPurpose::Encryption;
    daemon.key("acme", "vault", vault, Algorithm::A256gcm).await;
    let service = daemon.actor("service");
    let encrypt = EncryptRequest {
        key: "vault".into(),
        plaintext: "text".into(),
        ..Default::default()
    };
    let sealed = service
        .crypto()
        .encrypt(encrypt.clone())
        .await
        .expect("Encrypt")
        .into_inner();
    let incident = declared(&daemon, "vault", "").await.incident.expect("set");
    let decrypt = |ciphertext| DecryptRequest {
        key: "vault".into(),
        ciphertext,
        ..Default::default()
    };
    let answer = service
        .crypto()
        .decrypt(decrypt(sealed.ciphertext.clone()))
        .await;
    refused(answer, PRECONDITION, "NO_USABLE_VERSION");
    let rewrap = RewrapRequest {
        key: "vault".into(),
        ciphertext: sealed.ciphertext,
        ..Default::default()
    };
    let moved = service
        .crypto()
        .rewrap(rewrap)
        .await
        .expect("Rewrap")
        .into_inner();
    let plain = service.crypto().decrypt(decrypt(moved.ciphertext)).await;
    assert_eq!(plain.expect("Decrypt").into_inner().plaintext, "text");
    let sealed = service
        .crypto()
        .encrypt(encrypt)
        .await
        .expect("Encrypt")
        .into_inner();
    assert_eq!(sealed.kid, incident.successor_kid);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_any_state_is_frozen_on_sqlite() {
    a_version_of_any_state_is_frozen(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_any_state_is_frozen_on_postgres() {
    a_version_of_any_state_is_frozen(Engine::Postgres).await;
}

/// The freeze needs the database only; the successor comes when the token does.
// R-EMER-1
async fn a_freeze_needs_no_token(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    token_key(&daemon, "jwt").await;
    let old = issued(&daemon, "jwt").await;
    let (here, away) = (daemon.path("tokens"), daemon.path("tokens-away"));
    fs::rename(&here, &away).expect("the token goes");
    let answer = declared(&daemon, "jwt", "").await;
    assert!(answer.frozen_everywhere);
    let incident = answer.incident.expect("an incident");
    assert_eq!(incident.successor_kid, "");
    let rejected = verdict(&daemon, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
    let service = daemon.actor("service");
    let answer = service.tokens().issue_token(issue("jwt")).await;
    refused(answer, PRECONDITION, "KEY_COMPROMISED");
    let rotate = RotateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        justification: "quick".into(),
        ..RotateKeyRequest::default()
    };
    let answer = daemon.actor("issuer").rotations().rotate_key(rotate).await;
    refused(answer, PRECONDITION, "KEY_COMPROMISED");

    fs::rename(&away, &here).expect("the token comes back");
    let until = Instant::now() + PATIENCE;
    let switched = loop {
        let now = story(&daemon.actor("auditor"), &incident.id).await;
        let now = now.incident.expect("an incident");
        if !now.successor_kid.is_empty() {
            break now;
        }
        assert!(Instant::now() < until, "never switched: {}", daemon.log());
        sleep(Duration::from_millis(200)).await;
    };
    let new = issued(&daemon, "jwt").await;
    assert_eq!(new.kid, switched.successor_kid);
    assert!(verdict(&daemon, &new.token).await.valid);
    let told = story(&daemon.actor("auditor"), &incident.id).await;
    let switches = told
        .timeline
        .iter()
        .filter(|row| row.action == "SwitchKey" && row.outcome() == AuditOutcome::Success);
    assert_eq!(switches.count(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_needs_no_token_on_sqlite() {
    a_freeze_needs_no_token(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_needs_no_token_on_postgres() {
    a_freeze_needs_no_token(Engine::Postgres).await;
}

/// The same call with the same idempotency key gives the incident as it is by now.
// R-OPS-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_declaration_tells_how_things_are_now() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    token_key(&daemon, "jwt").await;
    let officer = daemon.actor("officer");
    let again = || {
        let mut request = Request::new(declare("jwt", ""));
        let key = "incident-1".parse().expect("metadata");
        request.metadata_mut().insert("idempotency-key", key);
        request
    };
    let first = officer.incidents().declare_compromise(again()).await;
    let first = first.expect("DeclareCompromise").into_inner();
    let second = officer.incidents().declare_compromise(again()).await;
    let second = second.expect("DeclareCompromise").into_inner();
    assert_eq!(first.incident, second.incident);
    assert_eq!(first.receipt, second.receipt);
    assert!(second.frozen_everywhere);
    assert!(!second.incident.expect("set").successor_kid.is_empty());
    let incidents = daemon.rows("SELECT id FROM incidents").await;
    assert_eq!(incidents.len(), 1);
    daemon.stop().await;
}

fn close(id: &str, postmortem: &str) -> CloseIncidentRequest {
    CloseIncidentRequest {
        incident_id: id.into(),
        postmortem: postmortem.into(),
    }
}

/// Open until a postmortem is named and a second person confirms it.
// R-EMER-2
async fn two_people_close_an_incident(engine: Engine) {
    let daemon = Setup::new(engine).append(OFFICERS).start().await;
    let key = token_key(&daemon, "jwt").await;
    let rotation = rotation_of(&daemon, "jwt").await;
    approved(&daemon, &rotation).await;
    let (officer, second) = (daemon.actor("officer"), person(&daemon, "second"));
    let id = declared(&daemon, "jwt", "").await.incident.expect("set").id;
    let note = |text: &str| AddIncidentNoteRequest {
        incident_id: id.clone(),
        text: text.into(),
    };
    let noted = officer
        .incidents()
        .add_incident_note(note("found in\na log"))
        .await;
    let noted = noted.expect("AddIncidentNote").into_inner();
    assert_eq!(noted.note.expect("set").text, "found in\na log");
    for text in ["", "\0", &"x".repeat(4097)] {
        let answer = officer.incidents().add_incident_note(note(text)).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }

    let without = officer.incidents().close_incident(close(&id, "")).await;
    refused(without, PRECONDITION, "POSTMORTEM_REQUIRED");
    let proposed = officer.incidents().close_incident(close(&id, "PM-7")).await;
    let proposed = proposed
        .expect("CloseIncident")
        .into_inner()
        .incident
        .expect("set");
    assert_eq!(proposed.state(), IncidentState::Closing);
    let alone = officer.incidents().close_incident(close(&id, "PM-7")).await;
    refused(alone, Code::PermissionDenied, "SEPARATION_OF_DUTIES");
    let other = second.incidents().close_incident(close(&id, "PM-8")).await;
    refused(other, PRECONDITION, "POSTMORTEM_MISMATCH");
    second
        .incidents()
        .add_incident_note(note("agreed"))
        .await
        .expect("noted");
    let closed = second.incidents().close_incident(close(&id, "PM-7")).await;
    let closed = closed
        .expect("CloseIncident")
        .into_inner()
        .incident
        .expect("set");
    assert_eq!(closed.state(), IncidentState::Closed);
    assert_ne!(closed.closed_by, closed.close_requested_by);
    assert!(closed.close_time.is_some());
    for actor in [&officer, &second] {
        let again = actor.incidents().close_incident(close(&id, "PM-7")).await;
        refused(again, PRECONDITION, "INCIDENT_STATE");
        let late = actor.incidents().add_incident_note(note("late")).await;
        refused(late, PRECONDITION, "INCIDENT_STATE");
    }

    let told = story(&daemon.actor("auditor"), &id).await;
    assert_eq!(told.incident.as_ref(), Some(&closed));
    let notes: Vec<_> = told.notes.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(notes, ["found in\na log", "agreed"]);
    assert_eq!(told.alerts.len(), 1);
    let (ok, refused, failed) = (
        AuditOutcome::Success,
        AuditOutcome::Refused,
        AuditOutcome::Failed,
    );
    let happened: Vec<_> = told
        .timeline
        .iter()
        // What a job of the daemon does beside it is not the matter here.
        .filter(|row| row.actor_type != "job")
        .map(|row| (row.action.as_str(), row.outcome()))
        .collect();
    assert_eq!(
        happened,
        [
            ("CreateKey", ok),
            ("RotateKey", ok),
            ("ApproveRotation", ok),
            ("DeclareCompromise", ok),
            ("AddIncidentNote", ok),
            ("CloseIncident", failed),
            ("CloseIncident", ok),
            ("CloseIncident", refused),
            ("CloseIncident", failed),
            ("AddIncidentNote", ok),
            ("CloseIncident", ok),
        ]
    );
    assert!(
        told.timeline
            .windows(2)
            .all(|pair| pair[0].seq < pair[1].seq)
    );
    assert!(
        told.timeline
            .iter()
            .all(|row| row.stream == "admin" && row.tenant == "acme")
    );

    // R-ACL-3: to somebody elsewhere it is like one that does not exist.
    let foreign = person(&daemon, "foreign");
    let mut said = Vec::new();
    for id in [id.clone(), uuid::Uuid::now_v7().to_string()] {
        let get = GetIncidentRequest {
            incident_id: id.clone(),
        };
        let answer = foreign.incidents().get_incident(get).await;
        let got = refused_like(answer);
        let answer = foreign.incidents().close_incident(close(&id, "PM-7")).await;
        said.push((got, refused_like(answer)));
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0.1, "INCIDENT_NOT_FOUND");
    let answer = foreign
        .incidents()
        .declare_compromise(declare(&key.id, ""))
        .await;
    assert_eq!(refused_like(answer).1, "KEY_NOT_FOUND");
    let list = |tenant: &str, state: IncidentState| ListIncidentsRequest {
        tenant: tenant.into(),
        state: state.into(),
        ..Default::default()
    };
    let own = foreign
        .incidents()
        .list_incidents(list("globex", IncidentState::Unspecified))
        .await;
    assert!(
        own.expect("ListIncidents")
            .into_inner()
            .incidents
            .is_empty()
    );
    for (state, count) in [
        (IncidentState::Unspecified, 1),
        (IncidentState::Closed, 1),
        (IncidentState::Open, 0),
    ] {
        let listed = officer
            .incidents()
            .list_incidents(list("acme", state))
            .await;
        let listed = listed.expect("ListIncidents").into_inner().incidents;
        assert_eq!(listed.len(), count);
    }
    daemon.stop().await;
}

#[track_caller]
fn refused_like<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> (Code, String, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), reason(&status), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_close_an_incident_on_sqlite() {
    two_people_close_an_incident(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_close_an_incident_on_postgres() {
    two_people_close_an_incident(Engine::Postgres).await;
}

fn revoke(jti: &str) -> RevokeTokenRequest {
    RevokeTokenRequest {
        tenant: "acme".into(),
        jti: jti.into(),
        reason: "laptop stolen".into(),
        ..Default::default()
    }
}

/// One token is invalid from now on, also after a restart; every other stays valid.
// R-EMER-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_rejected() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    token_key(&daemon, "jwt").await;
    let (stolen, kept) = (issued(&daemon, "jwt").await, issued(&daemon, "jwt").await);
    let officer = daemon.actor("officer");
    let answer = officer.tokens().revoke_token(revoke(&stolen.jti)).await;
    let kept_until = answer.expect("RevokeToken").into_inner().keep_until_time;
    let expires = stolen.expire_time.expect("a time").seconds;
    assert!(kept_until.expect("a time").seconds >= expires);
    for _ in 0..2 {
        let rejected = verdict(&daemon, &stolen.token).await;
        assert_eq!(rejected.rejection(), TokenRejection::Revoked);
        assert!(rejected.claims.is_none());
        assert!(verdict(&daemon, &kept.token).await.valid);
        daemon.restart().await;
    }
    let officer = daemon.actor("officer");
    // Revoking again, and revoking what nobody knows, is no mistake.
    for jti in [stolen.jti.clone(), uuid::Uuid::now_v7().to_string()] {
        officer
            .tokens()
            .revoke_token(revoke(&jti))
            .await
            .expect("RevokeToken");
    }
    let nowhere = RevokeTokenRequest {
        tenant: "nowhere".into(),
        ..revoke(&stolen.jti)
    };
    refused(
        officer.tokens().revoke_token(nowhere).await,
        Code::NotFound,
        "TENANT_NOT_FOUND",
    );
    for jti in ["", "x", "' OR '1'='1", &stolen.jti.to_uppercase()] {
        let answer = officer.tokens().revoke_token(revoke(jti)).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    let rows = "SELECT action, entity_id FROM audit_events WHERE entity = 'token'";
    assert_eq!(daemon.rows(rows).await.len(), 3);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_rejected_by_every_daemon() {
    let daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let second = daemon.second(None).await;
    token_key(&daemon, "jwt").await;
    let stolen = issued(&daemon, "jwt").await;
    assert!(verdict(&second, &stolen.token).await.valid);
    let officer = daemon.actor("officer");
    officer
        .tokens()
        .revoke_token(revoke(&stolen.jti))
        .await
        .expect("RevokeToken");
    let until = Instant::now() + PATIENCE;
    while verdict(&second, &stolen.token).await.valid {
        assert!(Instant::now() < until, "the second daemon never learns");
        sleep(Duration::from_millis(20)).await;
    }
    let rejected = verdict(&second, &stolen.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::Revoked);
    second.stop().await;
    daemon.stop().await;
}

// R-LIFE-5, R-LIFE-6
async fn a_version_is_revoked_before_its_time(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    token_key(&daemon, "jwt").await;
    let old = issued(&daemon, "jwt").await;
    let rotation = rotation_of(&daemon, "jwt").await;
    let officer = daemon.actor("officer");
    let revoke = |kid: &str| RevokeKeyVersionRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        kid: kid.into(),
        reason: "no verifier needs it".into(),
    };
    let answer = officer
        .keys()
        .revoke_key_version(revoke(&rotation.new_kid))
        .await;
    let said = refused(answer, PRECONDITION, "VERSION_IN_USE");
    assert!(said.contains(&rotation.id), "{said}");
    let answer = officer.keys().revoke_key_version(revoke(&old.kid)).await;
    let said = refused(answer, PRECONDITION, "VERSION_STATE");
    assert!(
        said.contains("RotateKey") && said.contains("DeclareCompromise"),
        "{said}"
    );
    deployed(&daemon, &rotation).await;
    assert!(verdict(&daemon, &old.token).await.valid);

    let answer = officer.keys().revoke_key_version(revoke(&old.kid)).await;
    let key = answer
        .expect("RevokeKeyVersion")
        .into_inner()
        .key
        .expect("set");
    assert_eq!(state_of(&key, &old.kid), KeyVersionState::Retired);
    let rejected = verdict(&daemon, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::RetiredKid);
    assert!(!published(&daemon).await.contains(&old.kid));
    assert_eq!(
        rotation_now(&daemon, &rotation.id).await.state(),
        RotationState::Completed
    );
    let answer = officer.keys().revoke_key_version(revoke(&old.kid)).await;
    refused(answer, PRECONDITION, "VERSION_STATE");
    let answer = officer.keys().revoke_key_version(revoke("nobodys")).await;
    refused(answer, Code::NotFound, "KEY_NOT_FOUND");

    // One that nobody waits for is withdrawn.
    let rotation = rotation_of(&daemon, "jwt").await;
    let (id, kid) = (&rotation.id, &rotation.new_kid);
    let cancel = format!(
        "UPDATE rotations SET state = 'CANCELLED', ended_at = requested_at WHERE id = '{id}'"
    );
    daemon.execute(&cancel).await;
    let answer = officer.keys().revoke_key_version(revoke(kid)).await;
    let key = answer
        .expect("RevokeKeyVersion")
        .into_inner()
        .key
        .expect("set");
    assert_eq!(state_of(&key, kid), KeyVersionState::Retired);
    let rows = "SELECT outcome FROM audit_events WHERE action = 'RevokeKeyVersion' ORDER BY seq";
    let outcomes = daemon.rows(rows).await.concat();
    assert_eq!(
        outcomes,
        [
            "failed", "failed", "success", "failed", "refused", "success"
        ]
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_revoked_before_its_time_on_sqlite() {
    a_version_is_revoked_before_its_time(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_revoked_before_its_time_on_postgres() {
    a_version_is_revoked_before_its_time(Engine::Postgres).await;
}

/// A replica whose clock was two hours ahead has deployed; whose clock is right freezes all the same.
async fn a_clock_that_was_ahead_stops_no_freeze(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    token_key(&daemon, "jwt").await;
    let old = issued(&daemon, "jwt").await;
    let ahead = claviger::clock::Clock::System.now().micros() + 7_200_000_000;
    let skew = format!(
        "UPDATE key_versions SET activated_at = {ahead}, announced_at = {ahead} WHERE kid = '{}'",
        old.kid
    );
    daemon.execute(&skew).await;
    let answer = declared(&daemon, "jwt", "").await;
    assert!(answer.frozen_everywhere);
    let rejected = verdict(&daemon, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
    let new = issued(&daemon, "jwt").await;
    assert_ne!(new.kid, old.kid);
    daemon.stop().await;
}

// R-EMER-1
#[tokio::test]
async fn a_clock_that_was_ahead_stops_no_freeze_on_sqlite() {
    a_clock_that_was_ahead_stops_no_freeze(Engine::Sqlite).await;
}

// R-EMER-1
#[tokio::test]
async fn a_clock_that_was_ahead_stops_no_freeze_on_postgres() {
    a_clock_that_was_ahead_stops_no_freeze(Engine::Postgres).await;
}

// R-EMER-1: two officers with one line of the runbook burn one version, not two.
#[tokio::test]
async fn a_declaration_without_a_kid_spares_the_successor_of_the_last_one() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    token_key(&daemon, "jwt").await;
    let first = declared(&daemon, "jwt", "").await.incident.expect("one");
    let mut officer = daemon.actor("officer").incidents();
    let again = officer.declare_compromise(declare("jwt", "")).await;
    let status = again.expect_err("the successor is healthy");
    assert_eq!(reason(&status), "INCIDENT_STATE");
    assert!(status.message().contains(&first.id), "{}", status.message());
    assert_eq!(issued(&daemon, "jwt").await.kid, first.successor_kid);
    // By name it is what somebody means.
    let second = declared(&daemon, "jwt", &first.successor_kid).await;
    assert_ne!(second.incident.expect("another").id, first.id);
    daemon.stop().await;
}
