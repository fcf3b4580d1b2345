//! Every bound of a stream, reached.

use std::time::Duration;

use ::bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::{Live, cut, ended, expect_open, open, plain, rows, seal, text, vault};
use crate::daemon::{Daemon, Engine, PATIENCE, Setup, reason};

const MAX: usize = 200_000;

async fn narrow(limits: &str) -> Daemon {
    let setup = Setup::new(Engine::Sqlite).append(limits);
    let daemon = setup
        .replace("[grpc]", "[grpc]\ndrain_seconds = 4")
        .start()
        .await;
    vault(&daemon).await;
    daemon
}

#[tokio::test]
async fn a_stream_has_a_longest_length() {
    let daemon = narrow("[limits]\nmax_stream_bytes = 200000").await;
    let service = daemon.actor("service");
    let longest = text(MAX);
    let sealed = seal(&service, cut(&longest, &[64 << 10])).await.whole();
    let sealed = Bytes::from(sealed);
    let opened = open(&service, "4711", cut(&sealed, &[64 << 10])).await;
    assert!(opened.whole() == longest);
    let longer = seal(&service, cut(&text(MAX + 1), &[64 << 10])).await;
    longer.failed(Code::InvalidArgument, "PAYLOAD_TOO_LARGE");
    let endless = cut(&text(MAX + 1000), &[64 << 10]);
    let endless = [vec![sealed.slice(..100)], endless].concat();
    let came = open(&service, "4711", endless).await;
    assert!(came.end.is_err());
    let (outcome, last) = rows(&daemon, "Encrypt").await.pop().expect("a row");
    assert_eq!(
        (outcome.as_str(), &last["reason"]),
        ("failed", &"PAYLOAD_TOO_LARGE".into())
    );
    daemon.stop().await;
}

#[tokio::test]
async fn one_principal_has_so_many_streams_and_no_more() {
    let daemon = narrow("").await;
    let service = daemon.actor("service");
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(Live::start(&service, None).await.expect("begins"));
    }
    expect_open(&daemon, 16).await;
    let refused = Live::start(&service, None)
        .await
        .err()
        .expect("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "OVERLOADED");
    // Nobody else is kept from it: what is refused here is another tenant's key.
    let mut other = Live::start(&daemon.actor("other"), None)
        .await
        .expect("begins");
    assert_eq!(reason(&other.failure().await), "KEY_NOT_FOUND");
    open.pop();
    expect_open(&daemon, 15).await;
    let mut again = Live::start(&service, None).await.expect("begins");
    again.exchange().await;
    drop((open, again));
    expect_open(&daemon, 0).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_stops_sending_or_says_how_long_it_waits_is_taken_at_its_word() {
    let daemon = narrow("[limits]\nstream_idle_seconds = 2").await;
    let service = daemon.actor("service");
    let mut silent = Live::start(&service, None).await.expect("begins");
    silent.exchange().await;
    let status = silent.failure().await;
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert!(status.message().contains("nothing was sent"), "{status}");
    // It never said anything at all, so there is one row, of a call that stumbled.
    drop(silent);
    let mut hurried = Live::start(&service, Some(Duration::from_secs(1)))
        .await
        .expect("begins");
    let began = Instant::now();
    hurried.exchange().await;
    let late = loop {
        // Not idle, and not over either.
        if let Some(say) = &hurried.say
            && say.try_send(plain(text(10))).is_err()
        {
            sleep(Duration::from_millis(20)).await;
        }
        match timeout(Duration::from_millis(20), hurried.answers.message()).await {
            Ok(Err(status)) => break status,
            Ok(Ok(None)) => panic!("it ended well"),
            Ok(Ok(Some(_))) | Err(_) => {}
        }
        assert!(began.elapsed() < PATIENCE, "its time is not over");
    };
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let (outcome, _) = ended(&daemon).await;
    assert_eq!(outcome, "failed");
    expect_open(&daemon, 0).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_being_read_from_and_is_ended() {
    let daemon = narrow("[limits]\nstream_idle_seconds = 3").await;
    let service = daemon.actor("service");
    let mut live = Live::start(&service, None).await.expect("begins");
    live.exchange().await;
    let piece = text(256 << 10);
    let say = live.say.take().expect("not ended");
    let mut sent = 0;
    // More than every window and buffer on the way together, and far from everything.
    while let Ok(Ok(())) = timeout(Duration::from_secs(1), say.send(plain(piece.clone()))).await {
        sent += piece.len();
        assert!(sent < 64 << 20, "the daemon takes everything");
    }
    let (outcome, details) = ended(&daemon).await;
    assert_eq!(
        (outcome.as_str(), &details["reason"]),
        ("failed", &"DEADLINE_EXCEEDED".into())
    );
    // What it holds is given back although the client is still there.
    expect_open(&daemon, 0).await;
    let status = live.failure().await;
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED", "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_gives_back_the_budget_of_what_it_is_done_with() {
    // A stream of 24 MiB under a budget of 9 MiB.
    let setup = Setup::new(Engine::Sqlite);
    let setup = setup.replace("[grpc]", "[grpc]\nmax_in_flight_bytes = 9437184");
    let daemon = setup.start().await;
    vault(&daemon).await;
    let service = daemon.actor("service");
    let plaintext = text(24 << 20);
    let sealed = seal(&service, cut(&plaintext, &[1 << 20])).await.whole();
    assert!(sealed.len() > plaintext.len());
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_goes_down_tells_its_streams_and_records_it() {
    let mut daemon = narrow("").await;
    let mut live = Live::start(&daemon.actor("service"), None)
        .await
        .expect("begins");
    live.exchange().await;
    let told = async {
        let status = live.failure().await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(reason(&status), "SHUTTING_DOWN", "{status}");
    };
    let (status, ()) = tokio::join!(daemon.terminate(), told);
    assert!(status.success(), "{status}");
    let (outcome, details) = ended(&daemon).await;
    assert_eq!(
        (outcome.as_str(), &details["reason"]),
        ("failed", &"SHUTTING_DOWN".into())
    );
    daemon.stop().await;
}
