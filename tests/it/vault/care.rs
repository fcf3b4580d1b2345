//! What becomes of rotations that stand still, and of promotions that do harm. R-CRED-7.

use tokio::time::{Duration, Instant, sleep};

use super::{
    rotation::{HOUR, NEW, OLD, Provider, Realm, some},
    *,
};
use crate::{
    daemon::{Engine, PATIENCE},
    usage::{ago, event, record},
};

impl Realm {
    async fn is_told(&self, kind: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.alerts().await.iter().any(|told| told == kind) {
            assert!(Instant::now() < until, "nobody is told {kind}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Alerts of this kind that fire.
    async fn fires(&self, kind: &str) -> usize {
        let firing = format!("SELECT id FROM alerts WHERE kind = '{kind}' AND state = 'FIRING'");
        self.d.rows(&firing).await.len()
    }

    async fn attention(&self, id: &str) -> String {
        self.get(id).await.attention
    }
}

async fn what_stands_still(engine: Engine) {
    let realm = Realm::with(engine, Provider::new().await, "stuck_hours = 1").await;
    let stuck = "CREDENTIAL_ROTATION_STUCK";
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, 0).await;
    assert_eq!(realm.attention(&id).await, "");
    let long_ago = "UPDATE credential_rotations SET updated_at = 1";
    realm.d.execute(long_ago).await;
    realm.is_told(stuck).await;
    assert_eq!(realm.attention(&id).await, "STUCK");

    // It goes on, and so that is over.
    realm.promote(&id).await;
    let until = Instant::now() + PATIENCE;
    while realm.fires(stuck).await > 0 {
        assert!(Instant::now() < until, "it fires for ever");
        sleep(Duration::from_millis(50)).await;
    }

    // The old value: nobody says whether it is dead.
    realm.provider.is_down(true);
    let over = "UPDATE credential_rotations SET hold_until = 1";
    realm.d.execute(over).await;
    realm.is_told("CREDENTIAL_OLD_VALUE_UNKNOWN").await;
    assert_eq!(realm.attention(&id).await, "OLD_VALUE_UNKNOWN");
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    realm.provider.is_down(false);
    realm.provider.revokes(OLD);
    realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(realm.attention(&id).await, "");
    while realm.fires("CREDENTIAL_OLD_VALUE_UNKNOWN").await > 0 {
        assert!(Instant::now() < until + PATIENCE, "it fires for ever");
        sleep(Duration::from_millis(50)).await;
    }
    let told = realm.alerts().await;
    let unknown = told
        .iter()
        .filter(|kind| *kind == "CREDENTIAL_OLD_VALUE_UNKNOWN");
    assert_eq!(unknown.count(), 1, "once: {told:?}");
    let list = [
        "--as",
        "auditor",
        "credential",
        "rotation",
        "list",
        "--tenant",
        "acme",
    ];
    assert!(realm.d.cli_ok(&list).await.contains("LOOK AFTER"));
    realm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_still_is_seen_on_sqlite() {
    what_stands_still(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_still_is_seen_on_postgresql() {
    what_stands_still(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_takes_neither_value_is_told_of() {
    let realm = Realm::with(Engine::Sqlite, Provider::new().await, "").await;
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    realm.provider.revokes(OLD);
    realm.provider.revokes(NEW);
    realm.is_told("CREDENTIAL_REFUSED").await;
    let held = realm.get(&id).await;
    assert_eq!(held.state(), CredentialRotationState::Holding);
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    realm.end().await;
}

/// Tells how requests with the credential went, so many minutes ago.
async fn went(realm: &Realm, minutes: i64, requests: i64, errors: i64) {
    let service = realm.d.actor("service");
    let told = UsageEvent {
        time: Some(ago(60 * minutes)),
        provider: "alpaca".into(),
        requests: Some(requests),
        errors,
        ..event(format!("e-{minutes}-{requests}-{errors}"), &realm.id, "")
    };
    let results = record(&service, vec![told]).await.expect("RecordUsage");
    assert!(results.iter().all(|r| r.error.is_none()), "{results:?}");
}

/// Lets the promotion of the CURRENT value be ten minutes ago.
async fn was_promoted_ten_minutes_ago(realm: &Realm) {
    let then = ago(600).seconds * 1_000_000;
    let since =
        format!("UPDATE user_broker_credentials SET promoted_at = {then} WHERE label = 'CURRENT'");
    realm.d.execute(&since).await;
}

async fn errors_take_a_value_back(engine: Engine) {
    let realm = Realm::with(engine, Provider::new().await, "").await;
    realm.provider.issues(NEW);
    // It was not good before, and gets no worse: that is no reason.
    went(&realm, 30, 100, 40).await;
    went(&realm, 5, 100, 50).await;
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    was_promoted_ten_minutes_ago(&realm).await;
    let looked = format!(
        "SELECT id FROM credential_rotations WHERE id = '{id}' AND new_probed_at > {}",
        claviger::clock::Clock::System.now().micros()
    );
    let until = Instant::now() + PATIENCE;
    while realm.d.rows(&looked).await.is_empty() {
        assert!(Instant::now() < until, "nobody looks");
        sleep(Duration::from_millis(50)).await;
    }
    let held = realm.get(&id).await;
    assert_eq!(held.state(), CredentialRotationState::Holding);

    // Much worse: the provider takes both values, and the old one is back.
    went(&realm, 4, 100, 100).await;
    let rolled = realm
        .gets_to(&id, CredentialRotationState::RolledBack)
        .await;
    assert_eq!(rolled.why, "ERROR_RATE");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    let probes = [rolled.new_probe, rolled.old_probe];
    let said = probes.map(|probe| probe.expect("a probe").result());
    assert_eq!(said, [ProbeResult::Valid; 2]);
    let recorded =
        "SELECT data FROM audit_events WHERE action = 'RollBackCredential' AND outcome = 'success'";
    let recorded = realm.d.rows(recorded).await.concat();
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    assert!(
        recorded[0].contains("150 of 200 requests failed, and 40 of 100 before"),
        "{recorded:?}"
    );
    let told = "SELECT text FROM alerts WHERE kind = 'CREDENTIAL_ROLLED_BACK'";
    let told = realm.d.rows(told).await.concat();
    assert!(
        told.len() == 1 && told[0].contains("more requests failed"),
        "{told:?}"
    );
    realm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_after_a_promotion_take_the_value_back_on_sqlite() {
    errors_take_a_value_back(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_after_a_promotion_take_the_value_back_on_postgresql() {
    errors_take_a_value_back(Engine::Postgres).await;
}

// With nothing better to go back to, errors change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_bring_no_value_back_that_is_dead() {
    let realm = Realm::with(Engine::Sqlite, Provider::new().await, "").await;
    realm.provider.issues(NEW);
    went(&realm, 30, 100, 0).await;
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    realm.provider.revokes(OLD);
    was_promoted_ten_minutes_ago(&realm).await;
    went(&realm, 5, 100, 100).await;
    let until = Instant::now() + PATIENCE;
    while realm.get(&id).await.old_probe.is_none() {
        assert!(Instant::now() < until, "nobody asks about the old one");
        sleep(Duration::from_millis(50)).await;
    }
    let held = realm.get(&id).await;
    assert_eq!(held.state(), CredentialRotationState::Holding);
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    realm.end().await;
}
