//! Deliveries: each alert once to each channel, whatever happens to the channel or to the daemon.

use std::{fs, os::unix::process::ExitStatusExt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use claviger::grpc::proto::*;
use serde_json::Value;

use super::{
    deliveries,
    mail::{MailServer, PASSWORD, USERNAME},
    raise,
    receiver::{Manner, Received, Receiver},
    until,
};
use crate::{
    daemon::{Daemon, Engine, Setup, reason},
    foreign,
    usage::{event, record},
};

pub const SECRET: &[u8] = b"a secret of the receiver, 40 bytes of it";

/// Quick to try again.
const QUICK: &str = "timeout_seconds = 1\nfirst_retry_seconds = 1\n";

/// The daemon speaks to loopback, trusts its own CA, and sends alerts where `alerts` says.
fn configure(daemon: &Daemon, alerts: &str) {
    let secret = format!("whsec_{}", BASE64_STANDARD.encode(SECRET));
    fs::write(daemon.path("secrets/webhook"), secret).expect("a secret");
    fs::write(daemon.path("secrets/mail"), PASSWORD).expect("a password");
    let ca = daemon.path("certs/ca.crt");
    let egress = format!(
        "[egress]\nallow_networks = [\"127.0.0.0/8\"]\nca_file = \"{}\"",
        ca.display()
    );
    let alerts = alerts.replace("SECRETS", &daemon.path("secrets").display().to_string());
    let alerts = alerts.replace("CA_FILE", &ca.display().to_string());
    daemon.edit_config(|text| format!("{text}\n{egress}\n{alerts}\n"));
}

pub fn webhook(port: u16) -> String {
    format!(
        "[[alerts.webhooks]]\nname = \"ops\"\nurl = \"https://127.0.0.1:{port}/hook\"\nsecret_file = \"SECRETS/webhook\"\n"
    )
}

pub fn email(port: u16) -> String {
    format!(
        "[alerts.email]\nhost = \"localhost\"\nport = {port}\nca_file = \"CA_FILE\"\nusername = \"{USERNAME}\"\n\
         password_file = \"SECRETS/mail\"\nfrom = \"Claviger <claviger@example.org>\"\nto = [\"ops@example.org\", \
         \"security@example.org\"]\n"
    )
}

/// The signature is that of the bytes, by Python's hmac.
pub async fn assert_signed(received: &Received) {
    let signed = format!("{}.{}.", received.id, received.timestamp);
    let signed = [signed.as_bytes(), &received.body[..]].concat();
    let mac = foreign::hmac("sha256", SECRET, &signed).await;
    assert_eq!(
        received.signature,
        format!("v1,{}", BASE64_STANDARD.encode(mac))
    );
}

async fn dead(daemon: &Daemon) -> Vec<AlertDelivery> {
    let request = ListDeliveriesRequest {
        tenant: "acme".into(),
        state: DeliveryState::Dead.into(),
        ..Default::default()
    };
    let answer = daemon
        .actor("officer")
        .alerts()
        .list_deliveries(request)
        .await;
    answer.expect("ListDeliveries").into_inner().deliveries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_reaches_every_channel_once_on_sqlite() {
    let daemon = Setup::new(Engine::Sqlite).provision().await;
    an_alert_reaches_every_channel_once(daemon, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_reaches_every_channel_once_from_two_daemons() {
    let daemon = Setup::new(Engine::Postgres).for_two().provision().await;
    an_alert_reaches_every_channel_once(daemon, true).await;
}

// R-USE-3, R-USE-4: from usage to the mailbox and the receiver.
async fn an_alert_reaches_every_channel_once(mut daemon: Daemon, is_two: bool) {
    let receiver = Receiver::start(&daemon, &[]).await;
    let mails = MailServer::start(&daemon).await;
    let channels = format!("{}{}", email(mails.port), webhook(receiver.port));
    configure(&daemon, &channels);
    daemon.up().await.expect("the daemon starts");
    let second = match is_two {
        true => Some(daemon.second(None).await),
        false => None,
    };
    let service = daemon.actor("service");
    record(&service, vec![event("e", "dear", "11")])
        .await
        .expect("RecordUsage");
    until("all deliveries", async || {
        let all = deliveries(&daemon).await;
        all.len() == 3
            && all
                .iter()
                .all(|(_, state, _)| *state == DeliveryState::Delivered)
    })
    .await;
    // Another one afterwards: whoever would have sent the first twice has had its time.
    raise(&daemon, "TEST").await;
    until("all further deliveries", async || {
        let all = deliveries(&daemon).await;
        all.len() == 6
            && all
                .iter()
                .all(|(_, state, _)| *state == DeliveryState::Delivered)
    })
    .await;
    let received = receiver.received();
    assert_eq!(received.len(), 2, "{received:?}");
    assert_signed(&received[0]).await;
    let body: Value = serde_json::from_slice(&received[0].body).expect("JSON");
    assert_eq!(body["kind"], "COST_RATE");
    assert_eq!(body["tenant"], "acme");
    assert_eq!(body["entity_id"], "dear");
    assert_eq!(body["id"], received[0].id.as_str());
    let messages = mails.messages();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert_eq!(messages[0]["tls"], true);
    assert_eq!(messages[0]["authenticated"], true);
    assert_eq!(messages[0]["from"], "claviger@example.org");
    assert_eq!(messages[0]["to"].as_array().map(Vec::len), Some(2));
    let text = messages[0]["data"].as_str().expect("a text");
    assert!(
        text.contains("Subject: [claviger] COST_RATE in acme"),
        "{text}"
    );
    assert!(
        text.contains(&format!("<{}@claviger>", received[0].id)),
        "{text}"
    );
    let log = daemon.log();
    assert!(!log.contains(PASSWORD) && !log.contains(&BASE64_STANDARD.encode(SECRET)));
    // Either daemon may have logged it.
    let logs = second.as_ref().map(Daemon::log).unwrap_or_default() + &log;
    assert!(logs.contains("COST_RATE"), "the log is a channel too");
    if let Some(second) = second {
        second.stop().await;
    }
    daemon.stop().await;
}

// R-USE-4: what our webhooks carry is what our own VerifyWebhook checks.
#[tokio::test]
async fn our_own_verifier_takes_our_webhooks() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let receiver = Receiver::start(&daemon, &[]).await;
    configure(
        &daemon,
        &format!("[alerts]\nlog = false\n{}", webhook(receiver.port)),
    );
    daemon.up().await.expect("the daemon starts");
    let import = ImportKeyRequest {
        tenant: "acme".into(),
        name: "alerts".into(),
        algorithm: Algorithm::Hs256.into(),
        owner: "team-e2e".into(),
        secret: SECRET.into(),
        ..Default::default()
    };
    daemon
        .actor("issuer")
        .keys()
        .import_key(import)
        .await
        .expect("ImportKey");
    raise(&daemon, "TEST").await;
    until("the webhook", async || receiver.received().len() == 1).await;
    let received = receiver.received().remove(0);
    let mac = received.signature.strip_prefix("v1,").expect("version 1");
    let verify = VerifyWebhookRequest {
        tenant: "acme".into(),
        key: "alerts".into(),
        scheme: WebhookScheme::IdTimestampBody.into(),
        body: received.body,
        timestamp: received.timestamp.parse().expect("a timestamp"),
        event_id: received.id,
        macs: vec![BASE64_STANDARD.decode(mac).expect("base64").into()],
        tolerance: None,
    };
    let mut macs = daemon.actor("service").macs();
    let verdict = macs.verify_webhook(verify).await.expect("VerifyWebhook");
    assert!(verdict.into_inner().valid);
    daemon.stop().await;
}

// R-USE-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_in_trouble_is_tried_again_and_others_do_not_wait() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let trouble = [Manner::Fail, Manner::Redirect, Manner::Hang, Manner::Refuse];
    let receiver = Receiver::start(&daemon, &trouble).await;
    let mails = MailServer::start(&daemon).await;
    let channels = format!(
        "[alerts]\n{QUICK}{}{}",
        email(mails.port),
        webhook(receiver.port)
    );
    configure(&daemon, &channels);
    daemon.up().await.expect("the daemon starts");
    let id = raise(&daemon, "TEST").await;
    until("the fifth attempt", async || {
        let all = deliveries(&daemon).await;
        all.len() == 3
            && all
                .iter()
                .all(|(_, state, _)| *state == DeliveryState::Delivered)
    })
    .await;
    let received = receiver.received();
    assert_eq!(received.len(), 5);
    // Every attempt is the same event, signed anew.
    for attempt in &received {
        assert_eq!(attempt.id, id);
        assert_signed(attempt).await;
    }
    assert_eq!(mails.messages().len(), 1);
    daemon.stop().await;
}

/// Alerts that are more than one round of a channel.
const MANY: usize = 40;

// R-USE-4: a channel that hangs keeps no other waiting, however much there is to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_hangs_keeps_no_other_waiting() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let slow = Receiver::start(&daemon, &[Manner::Hang; MANY]).await;
    let quick = Receiver::start(&daemon, &[]).await;
    let channels = format!(
        "[alerts]\nlog = false\ntimeout_seconds = 30\n{}{}",
        webhook(slow.port).replace("\"ops\"", "\"slow\""),
        webhook(quick.port)
    );
    configure(&daemon, &channels);
    daemon.up().await.expect("the daemon starts");
    for _ in 0..MANY {
        raise(&daemon, "TEST").await;
    }
    until("all of the quick one", async || {
        quick.received().len() == MANY
    })
    .await;
    // The first round of the slow one is under way: none of it has ended.
    let all = deliveries(&daemon).await;
    let mut of_slow = all.iter().filter(|(channel, ..)| channel == "slow");
    let waits = |(_, state, error): &(String, DeliveryState, String)| {
        *state == DeliveryState::Pending && error.is_empty()
    };
    assert!(of_slow.all(waits), "{all:?}");
    let received = slow.received().len();
    assert!((1..MANY).contains(&received), "{received}");
    daemon.stop().await;
}

// R-USE-4: a server that does not want one of the recipients has the others get it, each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_recipient_that_is_refused_costs_the_others_nothing() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let mails = MailServer::start(&daemon).await;
    let email = email(mails.port).replace(
        "\"security@example.org\"",
        "\"refused@example.org\", \"security@example.org\"",
    );
    let channels = format!("[alerts]\n{QUICK}log = false\nmax_attempts = 3\n{email}");
    configure(&daemon, &channels);
    daemon.up().await.expect("the daemon starts");
    raise(&daemon, "TEST").await;
    until("it is given up for the one", async || {
        dead(&daemon).await.len() == 1
    })
    .await;
    let letter = dead(&daemon).await.remove(0);
    assert_eq!(
        (letter.attempts, letter.last_error.as_str()),
        (3, "SMTP_REFUSED")
    );
    let recipients = || {
        let messages = mails.messages();
        let to = messages.iter().flat_map(|m| m["to"].as_array().cloned());
        let to = to.flatten().filter_map(|to| to.as_str().map(str::to_owned));
        let mut to: Vec<_> = to.collect();
        to.sort();
        to
    };
    assert_eq!(recipients(), ["ops@example.org", "security@example.org"]);
    // Whoever has it does not get it again when it is taken up again.
    let retry = RetryDeliveryRequest {
        tenant: "acme".into(),
        delivery_id: letter.id,
    };
    let mut officer = daemon.actor("officer").alerts();
    officer.retry_delivery(retry).await.expect("RetryDelivery");
    until("it is given up again", async || {
        dead(&daemon).await.len() == 1
    })
    .await;
    assert_eq!(recipients().len(), 2);
    daemon.stop().await;
}

// R-USE-4: nobody is there, or may be spoken to; and then somebody is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_delivered_is_on_the_dead_letter_list_and_can_be_tried_again() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let receiver = Receiver::start(&daemon, &[]).await;
    let link_local = "[[alerts.webhooks]]\nname = \"metadata\"\nurl = \"https://169.254.169.254/latest\"\n\
                      secret_file = \"SECRETS/webhook\"\n";
    // Nobody listens on port 1.
    let channels = format!(
        "[alerts]\n{QUICK}log = false\nmax_attempts = 2\n{}{}{link_local}",
        email(1),
        webhook(1)
    );
    configure(&daemon, &channels);
    daemon.up().await.expect("the daemon starts");
    raise(&daemon, "TEST").await;
    until("three dead letters", async || {
        dead(&daemon).await.len() == 3
    })
    .await;
    let mut why: Vec<_> = dead(&daemon)
        .await
        .into_iter()
        .map(|d| (d.channel, d.last_error))
        .collect();
    why.sort();
    let expected = [
        ("email", "SMTP_UNREACHABLE"),
        ("metadata", "REFUSED_ADDRESS"),
        ("ops", "UNREACHABLE"),
    ];
    assert_eq!(
        why,
        expected.map(|(channel, why)| (channel.to_owned(), why.to_owned()))
    );
    assert!(dead(&daemon).await.iter().all(|d| d.attempts == 2));
    // Somebody mends the channel, and has the letter delivered.
    let port = receiver.port;
    daemon.edit_config(|text| text.replace("127.0.0.1:1/", &format!("127.0.0.1:{port}/")));
    daemon.restart().await;
    let letter = dead(&daemon)
        .await
        .into_iter()
        .find(|d| d.channel == "ops")
        .expect("a letter");
    let retry = RetryDeliveryRequest {
        tenant: "acme".into(),
        delivery_id: letter.id,
    };
    let mut officer = daemon.actor("officer").alerts();
    officer
        .retry_delivery(retry.clone())
        .await
        .expect("RetryDelivery");
    until("the letter", async || {
        dead(&daemon).await.len() == 2 && receiver.received().len() == 1
    })
    .await;
    until("it is delivered", async || {
        let all = deliveries(&daemon).await;
        all.iter()
            .any(|(channel, state, _)| channel == "ops" && *state == DeliveryState::Delivered)
    })
    .await;
    let twice = officer.retry_delivery(retry).await.expect_err("delivered");
    assert_eq!(reason(&twice), "DELIVERY_STATE");
    let list = [
        "--as",
        "officer",
        "alerts",
        "deliveries",
        "--tenant",
        "acme",
        "--state",
        "dead",
    ];
    let listed = daemon.cli_ok(&list).await;
    assert!(
        listed.contains("SMTP_UNREACHABLE") && listed.contains("REFUSED_ADDRESS"),
        "{listed} {port}"
    );
    daemon.stop().await;
}

// R-USE-4: killed between the sending and its record, it sends again under the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_delivers_twice_and_never_not_at_all() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    let receiver = Receiver::start(&daemon, &[]).await;
    configure(
        &daemon,
        &format!("[alerts]\n{QUICK}log = false\n{}", webhook(receiver.port)),
    );
    daemon.set_env("CLAVIGER_TEST_KILL_AT", "alert_sent");
    daemon.up().await.expect("the daemon starts");
    raise(&daemon, "TEST").await;
    let status = daemon.ended().await;
    assert_eq!(status.signal(), Some(9), "{status}");
    assert_eq!(receiver.received().len(), 1);
    daemon.unset_env("CLAVIGER_TEST_KILL_AT");
    daemon.restart().await;
    until("the second time", async || {
        let all = deliveries(&daemon).await;
        matches!(&all[..], [(_, DeliveryState::Delivered, _)])
    })
    .await;
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].id, received[1].id);
    daemon.stop().await;
}

// R-ENV-3: a setting that is wrong stops the start and shows no secret.
#[tokio::test]
async fn wrong_channels_stop_the_start() {
    let mut daemon = Setup::new(Engine::Sqlite).provision().await;
    fs::write(daemon.path("secrets/short"), "too short").expect("a secret");
    let webhook = webhook(1);
    for (alerts, said) in [
        (
            webhook.replace("SECRETS/webhook", "/nowhere"),
            "secret_file /nowhere",
        ),
        (
            webhook.replace("SECRETS/webhook", "SECRETS/short"),
            "at least 24",
        ),
        (webhook.replace("https://", "ftp://"), "https://"),
        (webhook.replace("\"ops\"", "\"email\""), "taken"),
        (email(1).replace("ops@example.org", "nobody"), "no address"),
        (email(1).replace("CA_FILE", "/nowhere"), "ca_file /nowhere"),
        (email(1).replace("password_file", "#"), "password_file"),
        (
            "[alerts]\ncost_per_hour = \"-1\"".to_owned(),
            "cost_per_hour",
        ),
        ("[alerts]\nmax_attempts = 0".to_owned(), "max_attempts"),
        (
            "[usage]\ndefault_requests_per_minute = 0".to_owned(),
            "default_requests_per_minute",
        ),
    ] {
        let whole = fs::read_to_string(daemon.config_path()).expect("claviger.toml");
        configure(&daemon, &alerts);
        let failed = daemon.up().await.expect_err(&alerts);
        let last = failed.lines().next_back().unwrap_or_default();
        assert!(last.contains(said), "{alerts}: {last}");
        assert!(!failed.contains("too short") && !failed.contains(PASSWORD));
        fs::write(daemon.config_path(), whole).expect("claviger.toml");
    }
    daemon.stop().await;
}
