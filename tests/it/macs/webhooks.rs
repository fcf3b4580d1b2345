//! Webhook deliveries, signed by another implementation: authentic, recent and new, or not.

use super::*;
use claviger::clock::Clock;
use futures_util::future::join_all;
use tokio::time::{Duration, Instant, sleep};

use crate::daemon::PATIENCE;

const SECRET: &[u8] = b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const MINUTE: i64 = 60;

fn now() -> i64 {
    Clock::System.now().seconds()
}

/// A delivery as a payment provider sends it: `t=…,v1=…` over timestamp and body.
async fn stripe_like(secret: &[u8], timestamp: i64, id: &str, body: &str) -> VerifyWebhookRequest {
    let signed = format!("{timestamp}.{body}");
    let mac = hmac("sha256", secret, signed.as_bytes()).await;
    delivery(WebhookScheme::TimestampBody, timestamp, id, body, mac)
}

/// A delivery of the Standard Webhooks specification: over id, timestamp and body.
async fn standard(secret: &[u8], timestamp: i64, id: &str, body: &str) -> VerifyWebhookRequest {
    let signed = format!("{id}.{timestamp}.{body}");
    let mac = hmac("sha256", secret, signed.as_bytes()).await;
    delivery(WebhookScheme::IdTimestampBody, timestamp, id, body, mac)
}

fn delivery(
    scheme: WebhookScheme,
    timestamp: i64,
    id: &str,
    body: &str,
    mac: Vec<u8>,
) -> VerifyWebhookRequest {
    VerifyWebhookRequest {
        tenant: "acme".into(),
        key: "hooks".into(),
        scheme: scheme.into(),
        body: body.to_owned().into(),
        timestamp,
        event_id: id.into(),
        macs: vec![mac.into()],
        tolerance: None,
    }
}

async fn judged(daemon: &Daemon, request: &VerifyWebhookRequest) -> VerifyWebhookResponse {
    let mut service = daemon.actor("service").macs();
    let answer = service.verify_webhook(request.clone()).await;
    let answer = answer.expect("VerifyWebhook").into_inner();
    let verdict = answer.verdict();
    assert_eq!(answer.valid, verdict == WebhookVerdict::Valid);
    assert_eq!(answer.kid.is_empty(), verdict == WebhookVerdict::MacInvalid);
    let seen = verdict == WebhookVerdict::Replayed;
    assert_eq!(answer.first_seen_time.is_some(), seen);
    answer
}

async fn verdict(daemon: &Daemon, request: &VerifyWebhookRequest) -> WebhookVerdict {
    judged(daemon, request).await.verdict()
}

async fn marks(daemon: &Daemon) -> String {
    daemon.rows("SELECT COUNT(*) FROM webhook_events").await[0][0].clone()
}

async fn hooks(engine: Engine) -> Daemon {
    let daemon = setup(engine).start().await;
    imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    daemon
}

async fn a_delivery_is_valid_once(engine: Engine) {
    use WebhookVerdict::{MacInvalid, OutsideTolerance, Replayed, Valid};
    let daemon = hooks(engine).await;
    let at = now();
    let paid = stripe_like(SECRET, at, "evt_1", r#"{"paid":1}"#).await;
    assert_eq!(verdict(&daemon, &paid).await, Valid);
    let again = judged(&daemon, &paid).await;
    assert_eq!(again.verdict(), Replayed);
    let seen = again.first_seen_time.expect("a time").seconds;
    assert!((at - 1..=now()).contains(&seen));

    // The same event signed anew, with another body or at another time; the same delivery under another event id.
    let other = stripe_like(SECRET, at, "evt_1", r#"{"paid":2}"#).await;
    assert_eq!(verdict(&daemon, &other).await, Replayed);
    let later = stripe_like(SECRET, at + 1, "evt_1", r#"{"paid":1}"#).await;
    assert_eq!(verdict(&daemon, &later).await, Replayed);
    let renamed = VerifyWebhookRequest {
        event_id: "evt_2".into(),
        ..paid.clone()
    };
    assert_eq!(verdict(&daemon, &renamed).await, Replayed);
    // What was refused has taken nothing: the real evt_2 is new.
    let second = stripe_like(SECRET, at, "evt_2", r#"{"paid":1}"#).await;
    // It is byte for byte the first delivery, so it is the replay that it looks like.
    assert_eq!(verdict(&daemon, &second).await, Replayed);
    let second = stripe_like(SECRET, at, "evt_2", r#"{"paid":3}"#).await;
    assert_eq!(verdict(&daemon, &second).await, Valid);

    // Nobody without the secret reaches the table, nor does what is too old or too new.
    let before = marks(&daemon).await;
    assert_eq!(before, "4");
    let forged = stripe_like(b"another secret of theirs", at, "evt_3", "{}").await;
    assert_eq!(verdict(&daemon, &forged).await, MacInvalid);
    let mut shifted = stripe_like(SECRET, at, "evt_3", "{}").await;
    shifted.timestamp += 1;
    assert_eq!(verdict(&daemon, &shifted).await, MacInvalid);
    let mut cut = stripe_like(SECRET, at, "evt_3", "{}").await;
    cut.macs[0].truncate(16);
    assert_eq!(verdict(&daemon, &cut).await, MacInvalid);
    let mut as_other = stripe_like(SECRET, at, "evt_3", "{}").await;
    as_other.scheme = WebhookScheme::IdTimestampBody.into();
    assert_eq!(verdict(&daemon, &as_other).await, MacInvalid);
    for timestamp in [at - 10 * MINUTE, at + 10 * MINUTE, 1, i64::MAX] {
        let far = stripe_like(SECRET, timestamp, "evt_3", "{}").await;
        assert_eq!(verdict(&daemon, &far).await, OutsideTolerance);
        // Who does not know the secret does not learn that it is old.
        let forged = stripe_like(b"another secret of theirs", timestamp, "evt_3", "{}").await;
        assert_eq!(verdict(&daemon, &forged).await, MacInvalid);
    }
    assert_eq!(marks(&daemon).await, before);

    // A tolerance that lets an old delivery pass; one that was seen stays seen under every tolerance.
    let mut old = stripe_like(SECRET, at - 10 * MINUTE, "evt_3", "{}").await;
    old.tolerance = Some(prost_types::Duration {
        seconds: 15 * MINUTE,
        nanos: 0,
    });
    assert_eq!(verdict(&daemon, &old).await, Valid);
    old.tolerance = Some(prost_types::Duration {
        seconds: 60 * MINUTE,
        nanos: 0,
    });
    assert_eq!(verdict(&daemon, &old).await, Replayed);
    let kept = "SELECT MIN(keep_until) FROM webhook_events";
    let kept: i64 = daemon.rows(kept).await[0][0].parse().expect("micros");
    assert!(
        kept / 1_000_000 >= at + 60 * MINUTE,
        "as long as any tolerance lets it pass"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_delivery_is_valid_once_on_sqlite() {
    a_delivery_is_valid_once(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_delivery_is_valid_once_on_postgres() {
    a_delivery_is_valid_once(Engine::Postgres).await;
}

#[tokio::test]
async fn standard_webhooks_bind_the_event_id() {
    use WebhookVerdict::{MacInvalid, Replayed, Valid};
    let daemon = hooks(Engine::Sqlite).await;
    let at = now();
    let paid = standard(SECRET, at, "msg_1", r#"{"type":"paid"}"#).await;
    // Before it is seen, so that the id alone decides.
    let renamed = VerifyWebhookRequest {
        event_id: "msg_2".into(),
        ..paid.clone()
    };
    assert_eq!(verdict(&daemon, &renamed).await, MacInvalid);
    assert_eq!(verdict(&daemon, &paid).await, Valid);
    assert_eq!(verdict(&daemon, &paid).await, Replayed);
    daemon.stop().await;
}

/// A sender who rotates sends a MAC by each of its secrets. Either alone is the same delivery.
#[tokio::test]
async fn every_mac_of_a_delivery_is_a_mac_of_the_same_delivery() {
    use WebhookVerdict::{MacInvalid, Replayed, Valid};
    let daemon = hooks(Engine::Sqlite).await;
    let next = b"the next secret of the provider";
    let at = now();
    let body = r#"{"paid":1}"#;
    let mut both = stripe_like(next, at, "evt_1", body).await;
    let old = stripe_like(SECRET, at, "evt_1", body).await;
    // Only the old secret is known here yet, and its MAC is the last of several.
    assert_eq!(verdict(&daemon, &both).await, MacInvalid);
    both.macs.push(vec![1; 20].into());
    both.macs.extend(old.macs.clone());
    assert_eq!(verdict(&daemon, &both).await, Valid);
    super::imports::rotated_to(&daemon, "hooks", next).await;
    for secret in [SECRET, next] {
        // Under TIMESTAMP_BODY whoever replays can name any event.
        let replayed = stripe_like(secret, at, "evt_2", body).await;
        assert_eq!(verdict(&daemon, &replayed).await, Replayed);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_compromised_secret_makes_no_delivery_valid() {
    let daemon = hooks(Engine::Sqlite).await;
    let request = stripe_like(SECRET, now(), "evt_1", "{}").await;
    let kid = daemon.rows("SELECT kid FROM key_versions").await[0][0].clone();
    declared(&daemon, "hooks", &kid).await;
    assert_eq!(verdict(&daemon, &request).await, WebhookVerdict::MacInvalid);
    assert_eq!(marks(&daemon).await, "0");
    daemon.stop().await;
}

type Change = Box<dyn Fn(&mut VerifyWebhookRequest)>;

#[tokio::test]
async fn a_malformed_delivery_is_refused() {
    let daemon = hooks(Engine::Sqlite).await;
    let good = standard(SECRET, now(), "msg_1", "{}").await;
    let mac = good.macs[0].clone();
    let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut changes: Vec<Change> = vec![
        Box::new(|r| r.scheme = 0),
        Box::new(|r| r.scheme = 9),
        Box::new(|r| r.timestamp = 0),
        Box::new(|r| r.timestamp = -5),
        Box::new(|r| r.event_id.clear()),
        Box::new(|r| r.event_id = "x".repeat(257)),
        Box::new(|r| r.event_id = "with blank".into()),
        Box::new(|r| r.event_id = "ümlaut".into()),
        // The separator: the same bytes could be signed for another id and another timestamp.
        Box::new(|r| r.event_id = "msg.1".into()),
        Box::new(|r| r.macs.clear()),
        Box::new(|r| r.macs.push(Bytes::new())),
        Box::new(|r| r.macs.push(vec![0; 65].into())),
    ];
    changes.push(Box::new(move |r| r.macs = vec![mac.clone(); 9]));
    for seconds in [0, 3601, -1] {
        changes.push(Box::new(move |r| r.tolerance = duration(seconds)));
    }
    let mut service = daemon.actor("service").macs();
    for change in changes {
        let mut request = good.clone();
        change(&mut request);
        let answer = service.verify_webhook(request).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    let empty = VerifyWebhookRequest {
        body: Bytes::new(),
        ..good.clone()
    };
    let answer = service.verify_webhook(empty).await;
    refused(answer, Code::InvalidArgument, "PAYLOAD_EMPTY");
    assert_eq!(verdict(&daemon, &good).await, WebhookVerdict::Valid);
    daemon.stop().await;
}

/// Tells whether exactly one of many calls for each of several deliveries was told VALID.
async fn one_is_told(daemons: &[&Daemon]) {
    for round in 0..5 {
        let id = format!("evt_{round}");
        let request = stripe_like(SECRET, now(), &id, &format!("body {round}")).await;
        let calls = (0..16).map(|n| judged(daemons[n % daemons.len()], &request));
        let verdicts = join_all(calls).await;
        let count = |wanted| verdicts.iter().filter(|v| v.verdict() == wanted).count();
        assert_eq!(count(WebhookVerdict::Valid), 1, "{verdicts:?}");
        assert_eq!(count(WebhookVerdict::Replayed), 15, "{verdicts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_calls_at_once_one_is_told_that_a_delivery_is_valid() {
    let daemon = hooks(Engine::Sqlite).await;
    one_is_told(&[&daemon]).await;
    daemon.stop().await;
}

// R-OPS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_daemons_one_says_that_a_delivery_is_valid() {
    let first = setup(Engine::Postgres).for_two().start().await;
    imported(&first, "hooks", Algorithm::Hs256, SECRET).await;
    let second = first.second(None).await;
    one_is_told(&[&first, &second]).await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn what_cannot_come_again_is_forgotten_and_nothing_else() {
    let daemon = setup(Engine::Sqlite)
        .append("\n[scheduler]\ninterval_ms = 50\n")
        .start()
        .await;
    imported(&daemon, "hooks", Algorithm::Hs256, SECRET).await;
    let (old, new) = (
        stripe_like(SECRET, now(), "evt_1", "one").await,
        stripe_like(SECRET, now(), "evt_2", "two").await,
    );
    for request in [&old, &new] {
        assert_eq!(verdict(&daemon, request).await, WebhookVerdict::Valid);
    }
    let over = Clock::System.now().minus(Duration::from_secs(1)).micros();
    daemon
        .execute(&format!(
            "UPDATE webhook_events SET keep_until = {over} WHERE mark = 'id:evt_1'"
        ))
        .await;
    let end = Instant::now() + PATIENCE;
    while marks(&daemon).await != "3" {
        assert!(Instant::now() < end, "nothing is forgotten");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(verdict(&daemon, &old).await, WebhookVerdict::Replayed);
    assert_eq!(verdict(&daemon, &new).await, WebhookVerdict::Replayed);
    daemon.stop().await;
}

/// Its table is away: the call fails, and nothing is taken.
#[tokio::test]
async fn without_the_database_no_delivery_is_valid() {
    let daemon = hooks(Engine::Sqlite).await;
    let request = stripe_like(SECRET, now(), "evt_1", "{}").await;
    let rename = |from, to| format!("ALTER TABLE {from} RENAME TO {to}");
    daemon.execute(&rename("webhook_events", "away")).await;
    let mut service = daemon.actor("service").macs();
    let answer = service.verify_webhook(request.clone()).await;
    refused(answer, Code::Unavailable, "DATABASE_UNAVAILABLE");
    daemon.execute(&rename("away", "webhook_events")).await;
    assert_eq!(verdict(&daemon, &request).await, WebhookVerdict::Valid);
    daemon.stop().await;
}
