//! Requests that two HTTP parsers would cut in two different places, over a raw TLS connection: none of them makes the
//! daemon answer a request that a proxy in front of it did not see.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::realm::{Realm, body};
use crate::daemon::PATIENCE;

/// Sends bytes and reads until the daemon closes, or has been silent for a while after an answer.
async fn raw(realm: &Realm, bytes: &[u8]) -> String {
    let mut tls = realm.connect(None).await;
    tls.write_all(bytes).await.expect("sent");
    tls.flush().await.expect("sent");
    let mut read = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let wait = match read.is_empty() {
            true => PATIENCE,
            false => Duration::from_secs(2),
        };
        match timeout(wait, tls.read(&mut buffer)).await {
            Ok(Ok(0)) | Ok(Err(_)) | Err(_) => break,
            Ok(Ok(n)) => read.extend_from_slice(&buffer[..n]),
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn statuses(answers: &str) -> Vec<&str> {
    let lines = answers.split("HTTP/1.1 ").skip(1);
    lines.filter_map(|rest| rest.get(..3)).collect()
}

#[tokio::test]
async fn a_request_with_two_lengths_is_refused_and_its_rest_is_not_read_as_another() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let form = body(&[
        ("grant_type", "client_credentials"),
        ("client_id", &client.id),
        ("client_secret", &secret),
    ]);
    let head = "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let length = form.len();
    // What a smuggler hopes for: a second request that only we see.
    let hidden = format!("{head}Content-Length: {length}\r\n\r\n{form}");
    let shapes = [
        (
            "both lengths",
            format!(
                "{head}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
            ),
        ),
        (
            "both, the other way",
            format!(
                "{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"
            ),
        ),
        (
            "two lengths",
            format!("{head}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        ),
        (
            "a list of lengths",
            format!("{head}Content-Length: 0, {length}\r\n\r\n{hidden}"),
        ),
        (
            "a sign",
            format!("{head}Content-Length: +{length}\r\n\r\n{hidden}"),
        ),
        (
            "no number",
            format!("{head}Content-Length: 0x10\r\n\r\n{hidden}"),
        ),
        (
            "negative",
            format!("{head}Content-Length: -1\r\n\r\n{hidden}"),
        ),
        (
            "overflow",
            format!("{head}Content-Length: 99999999999999999999999\r\n\r\n{hidden}"),
        ),
        (
            "chunk size of no hex",
            format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n{hidden}"),
        ),
        (
            "chunk size too large",
            format!("{head}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{hidden}"),
        ),
        (
            "negative chunk",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n-1\r\n{hidden}"),
        ),
        (
            "chunk without end",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "unknown coding",
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "chunked not last",
            format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "blank before the colon",
            format!("{head}Content-Length : {length}\r\n\r\n{hidden}"),
        ),
        (
            "folded header",
            format!("{head}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "bare CR",
            format!("{head}X: a\rContent-Length: 0\r\n\r\n{hidden}"),
        ),
        (
            "NUL in a header",
            format!("{head}X: a\0b\r\nContent-Length: 0\r\n\r\n{hidden}"),
        ),
        (
            "HTTP/1.0 chunked",
            format!(
                "{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
                head.replace("1.1", "1.0")
            ),
        ),
        (
            "no such version",
            format!(
                "{}Content-Length: 0\r\n\r\n{hidden}",
                head.replace("1.1", "9.9")
            ),
        ),
        (
            "no method",
            format!(" /oauth/token HTTP/1.1\r\nHost: a\r\n\r\n{hidden}"),
        ),
    ];
    let mut smuggled = Vec::new();
    for (shape, bytes) in &shapes {
        let answers = raw(&realm, bytes.as_bytes()).await;
        if statuses(&answers).contains(&"200") {
            smuggled.push(format!("{shape}: {answers}"));
        }
    }
    assert!(smuggled.is_empty(), "{}", smuggled.join("\n---\n"));
    assert_eq!(realm.rows("IssueClientToken", "success", "").await, 0);

    // The very same second request is served when the first one ends where everybody sees it.
    let honest = format!("{head}Content-Length: 0\r\n\r\n{hidden}");
    assert_eq!(
        statuses(&raw(&realm, honest.as_bytes()).await),
        ["401", "200"]
    );
    let chunked =
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{form}\r\n0\r\n\r\n");
    assert_eq!(statuses(&raw(&realm, chunked.as_bytes()).await), ["200"]);
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_off_at_the_limit() {
    let realm = Realm::new().await;
    let head = "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let chunk = format!("1000\r\n{}\r\n", "a".repeat(0x1000));
    let endless = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{}",
        chunk.repeat(20)
    );
    let answers = raw(&realm, endless.as_bytes()).await;
    assert_eq!(statuses(&answers), ["400"], "{answers}");
    realm.daemon.stop().await;
}
