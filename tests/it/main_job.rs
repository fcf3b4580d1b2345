//! The main job, end to end, on real parts: the six steps with every refusal that belongs to them.
//!
//! R-CARD-1, R-LIFE-1, R-LIFE-4, R-LIFE-5, R-LIFE-7, R-JWT-1, R-JWT-4, R-ACL-2, R-ACL-3. Each step leaves its keys to
//! the next ones and notes which audit rows it must have left; the last step looks for every one of them.

mod audit;
mod encrypt;
mod keys;
mod rotation;
mod sign;
mod token;

use claviger::grpc::proto::{AuditOutcome, Key};
use tonic::{Code, Response, Status};

use crate::{
    daemon::{Actor, Daemon, Engine, reason},
    kms::layer::Kms,
};

#[tokio::test]
async fn main_job_on_sqlite() {
    main_job(Daemon::start(Engine::Sqlite).await, Pairs::OnToken).await;
}

#[tokio::test]
async fn main_job_on_postgres() {
    main_job(Daemon::start(Engine::Postgres).await, Pairs::OnToken).await;
}

/// The whole job on a daemon that has just been made. `kms/whole.rs` runs it with keys in AWS KMS.
pub async fn main_job(daemon: Daemon, pairs: Pairs) {
    let mut story = Story {
        daemon,
        pairs,
        expected: Vec::new(),
    };
    let orders = keys::create(&mut story).await;
    sign::sign(&mut story, &orders).await;
    sign::every_algorithm(&mut story).await;
    encrypt::encrypt(&mut story).await;
    let (tokens, old) = token::issue(&mut story).await;
    rotation::rotate(&mut story, &tokens, &old).await;
    rotation::one_person_with_every_role(&mut story, &orders).await;
    audit::everything_is_recorded(&story).await;
    audit::every_change_is_found(&story).await;
    story.daemon.stop().await;
}

/// Where the daemon makes key pairs, for those who look there with tools that are not ours.
pub enum Pairs {
    OnToken,
    InKms(Kms),
}

/// What the steps share.
struct Story {
    daemon: Daemon,
    pairs: Pairs,
    expected: Vec<Expected>,
}

/// An audit row that must be there.
struct Expected {
    actor: &'static str,
    action: &'static str,
    outcome: AuditOutcome,
    entity_id: String,
}

impl Story {
    fn actor(&self, name: &str) -> Actor {
        self.daemon.actor(name)
    }

    fn did(&mut self, actor: &'static str, action: &'static str, entity_id: &str) {
        self.note(actor, action, AuditOutcome::Success, entity_id);
    }

    fn was_refused(&mut self, actor: &'static str, action: &'static str, entity_id: &str) {
        self.note(actor, action, AuditOutcome::Refused, entity_id);
    }

    fn failed(&mut self, actor: &'static str, action: &'static str, entity_id: &str) {
        self.note(actor, action, AuditOutcome::Failed, entity_id);
    }

    fn note(
        &mut self,
        actor: &'static str,
        action: &'static str,
        outcome: AuditOutcome,
        entity_id: &str,
    ) {
        self.expected.push(Expected {
            actor,
            action,
            outcome,
            entity_id: entity_id.to_owned(),
        });
    }
}

/// The call must end with exactly this; the sentence must be one.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<Response<T>, Status>, code: Code, why: &str) {
    let status = result.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    assert!(status.message().contains(' '), "{status}");
}

/// The version that signs.
fn active(key: &Key) -> &claviger::grpc::proto::KeyVersion {
    let version = key.versions.iter().find(|v| v.kid == key.active_kid);
    version.expect("an ACTIVE version")
}
