//! The command line as a security team uses it: what is waiting for whom, what exactly is approved, what happens when.

use std::process::Output;

use claviger::grpc::proto::{Algorithm, KeyPurpose};
use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};

use crate::daemon::{Daemon, Engine, PATIENCE};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `claviger --as WHO ARGS`, whatever comes of it.
async fn run(daemon: &Daemon, who: &str, args: &[&str]) -> Output {
    daemon.cli(&[&["--as", who], args].concat()).await
}

/// What it prints when it succeeds.
async fn says(daemon: &Daemon, who: &str, args: &[&str]) -> String {
    daemon.cli_ok(&[&["--as", who], args].concat()).await
}

/// The same as JSON.
async fn json(daemon: &Daemon, who: &str, args: &[&str]) -> Value {
    let printed = says(daemon, who, &[args, &["--output", "json"]].concat()).await;
    serde_json::from_str(&printed).expect(&printed)
}

/// It fails with this code, and says so on one line of stderr.
async fn fails(daemon: &Daemon, who: &str, code: i32, args: &[&str], why: &str) {
    let output = run(daemon, who, args).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(why), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

async fn with_key(purpose: KeyPurpose) -> Daemon {
    let daemon = Daemon::start(Engine::Sqlite).await;
    daemon
        .key("acme", "orders", purpose, Algorithm::Es256)
        .await;
    daemon
}

/// Id of a new rotation of `orders`.
async fn requested(daemon: &Daemon) -> String {
    let request = [
        "rotation",
        "request",
        "--tenant",
        "acme",
        "--key",
        "orders",
        "--justification",
        "quarterly",
    ];
    let rotation = json(daemon, "issuer", &request).await;
    string(&rotation["rotation"]["id"])
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// Approved over the digest that looking at it shows.
async fn approved(daemon: &Daemon, id: &str) -> String {
    let looked = run(daemon, "approver", &["rotation", "approve", id]).await;
    let shown = text(&looked.stdout);
    assert_eq!(looked.status.code(), Some(2), "{}", text(&looked.stderr));
    let digest = shown.split("--digest ").nth(1).expect(&shown).trim();
    let approve = ["rotation", "approve", id, "--digest", digest];
    says(daemon, "approver", &approve).await
}

/// Deployed as soon as the soak is over.
async fn deployed(daemon: &Daemon, id: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let output = run(daemon, "deployer", &["rotation", "deploy", id]).await;
        if output.status.success() {
            return text(&output.stdout);
        }
        contains(&text(&output.stderr), &["ROTATION_SOAKING"]);
        assert!(Instant::now() < until, "it soaks for ever");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn rotated(daemon: &Daemon) -> String {
    let id = requested(daemon).await;
    approved(daemon, &id).await;
    deployed(daemon, &id).await;
    id
}

// R-LIFE-5, R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_a_rotation_says_what_is_next() {
    let daemon = with_key(KeyPurpose::TokenSigning).await;
    let id = requested(&daemon).await;
    let list = ["rotation", "list", "--tenant", "acme"];
    let waiting = says(&daemon, "auditor", &list).await;
    contains(&waiting, &[&id, "REQUESTED", "waits for 1 approval"]);

    // Looking approves nothing, and shows all there is to judge.
    let looked = run(&daemon, "approver", &["rotation", "approve", &id]).await;
    assert_eq!(looked.status.code(), Some(2));
    contains(
        &text(&looked.stdout),
        &[
            "team-e2e",
            "TOKEN_SIGNING ES256 in hsm",
            "quarterly",
            "0 of 1",
            "expires",
            "of soak",
            "the plan agrees with the key",
            "Nothing is approved yet",
        ],
    );
    let wrong = "0".repeat(64);
    let approve = ["rotation", "approve", &id, "--digest", &wrong];
    fails(&daemon, "approver", 5, &approve, "PLAN_CHANGED").await;

    let after = approved(&daemon, &id).await;
    contains(&after, &["APPROVED", "1 of 1", "(you)", "deployable"]);
    let again = ["rotation", "approve", &id];
    fails(&daemon, "approver", 5, &again, "nothing to approve").await;

    let after = deployed(&daemon, &id).await;
    contains(&after, &["DEPLOYED", "(you)"]);
    let versions = says(
        &daemon,
        "issuer",
        &["key", "get", "orders", "--tenant", "acme"],
    )
    .await;
    contains(&versions, &["VERIFY_ONLY", "ACTIVE", "LAST TOKEN ENDS"]);
    daemon.stop().await;
}

// R-LIFE-5: the grace window is in the listing of a deployed rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployed_rotation_shows_its_grace() {
    let daemon = with_key(KeyPurpose::TokenSigning).await;
    let issue = ["token", "issue", "--key", "orders", "--audience", "a"];
    says(&daemon, "service", &issue).await;
    rotated(&daemon).await;
    let list = [
        "rotation", "list", "--tenant", "acme", "--state", "deployed",
    ];
    let shown = says(&daemon, "deployer", &list).await;
    contains(&shown, &["DEPLOYED", "grace until 2", "the daemon"]);
    daemon.stop().await;
}

// R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_sees_what_waits_for_them() {
    let daemon = with_key(KeyPurpose::Signing).await;
    let id = requested(&daemon).await;
    let mine = [
        "rotation",
        "list",
        "--tenant",
        "acme",
        "--waiting-for",
        "me",
    ];
    let waits = async |who, expected: bool| {
        let shown = says(&daemon, who, &mine).await;
        assert_eq!(shown.contains(&id), expected, "{who}: {shown}");
    };
    waits("approver", true).await;
    waits("deployer", false).await;
    waits("issuer", false).await;
    let list = ["rotation", "list", "--tenant", "acme"];
    let shown = says(&daemon, "approver", &list).await;
    contains(&shown, &["waits for 1 approval  you"]);
    let shown = says(&daemon, "issuer", &list).await;
    contains(&shown, &["waits for 1 approval  key-approver"]);
    approved(&daemon, &id).await;
    waits("approver", false).await;
    waits("deployer", true).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_turned_down_or_taken_back() {
    let daemon = with_key(KeyPurpose::Signing).await;
    let id = requested(&daemon).await;
    let reject = ["rotation", "reject", &id, "--reason", "not on a friday"];
    let shown = says(&daemon, "approver", &reject).await;
    contains(&shown, &["REJECTED", "not on a friday", "(you)"]);
    fails(&daemon, "approver", 5, &reject, "ROTATION_STATE").await;
    let id = requested(&daemon).await;
    let cancel = ["rotation", "cancel", &id, "--reason", "a mistake"];
    fails(&daemon, "approver", 3, &cancel, "PERMISSION_DENIED").await;
    let shown = says(&daemon, "issuer", &cancel).await;
    contains(&shown, &["CANCELLED", "a mistake", "(you)"]);
    daemon.stop().await;
}

// R-EMER-1, R-EMER-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromise_from_declaration_to_closure() {
    let daemon = with_key(KeyPurpose::TokenSigning).await;
    let issue = ["token", "issue", "--key", "orders", "--audience", "a"];
    let token = says(&daemon, "service", &issue).await;
    let file = daemon.path("token");
    std::fs::write(&file, token).expect("written");
    let file = file.to_str().expect("UTF-8");

    let declare = [
        "incident",
        "declare",
        "--tenant",
        "acme",
        "--key",
        "orders",
        "--reason",
        "laptop stolen",
    ];
    fails(&daemon, "issuer", 3, &declare, "PERMISSION_DENIED").await;
    let declared = says(&daemon, "officer", &declare).await;
    contains(
        &declared,
        &[
            "is COMPROMISED",
            "no replica uses it any more",
            "the key uses kid",
            "goes on accepting them for up to",
        ],
    );
    let again = "incident close ";
    let rest = declared.split(again).nth(1).expect(&declared);
    let id = rest.split_whitespace().next().expect("an id").to_owned();

    let verify = ["token", "verify", "--audience", "a", "--in", file];
    let rejected = run(&daemon, "service", &verify).await;
    assert_eq!(rejected.status.code(), Some(1));
    contains(&text(&rejected.stdout), &["COMPROMISED_KID"]);
    let alarmed = ["key", "list", "--tenant", "acme", "--compromised"];
    let shown = says(&daemon, "officer", &alarmed).await;
    contains(&shown, &["orders", "COMPROMISED"]);

    let note = ["incident", "note", &id, "--text", "disk was encrypted"];
    says(&daemon, "officer", &note).await;
    let shown = says(&daemon, "auditor", &["incident", "get", &id]).await;
    contains(
        &shown,
        &["OPEN", "DeclareCompromise", "disk was encrypted", "ALERT"],
    );

    // A second officer, for this test.
    let auditor = daemon.id_of("auditor").await;
    let grant = ["principal", "grant", &auditor, "--role"];
    let grant = [&grant[..], &["security-officer", "--tenant", "*"]].concat();
    says(&daemon, "admin", &grant).await;
    let close = ["incident", "close", &id, "--postmortem", "PM 17"];
    let proposed = says(&daemon, "officer", &close).await;
    let command = format!("--as THEM incident close {id} --postmortem 'PM 17'");
    contains(&proposed, &["CLOSING", "second person", &command]);
    fails(&daemon, "officer", 3, &close, "SEPARATION_OF_DUTIES").await;
    let list = ["incident", "list", "--tenant", "acme", "--state", "closing"];
    let shown = says(&daemon, "officer", &list).await;
    contains(&shown, &["waits for a second person"]);
    let closed = says(&daemon, "auditor", &close).await;
    contains(&closed, &["CLOSED", "(you)"]);
    fails(&daemon, "officer", 5, &note, "INCIDENT_STATE").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_revoked_and_its_destruction_takes_two_people() {
    let daemon = with_key(KeyPurpose::Signing).await;
    let get = ["key", "get", "orders", "--tenant", "acme"];
    let key = json(&daemon, "issuer", &get).await;
    let kid = string(&key["key"]["activeKid"]);
    rotated(&daemon).await;
    let tenant = ["--tenant", "acme", "--kid", &kid, "--reason", "unused"];
    let revoke = [&["key", "revoke-version", "orders"], &tenant[..]].concat();
    let shown = says(&daemon, "officer", &revoke).await;
    contains(&shown, &["RETIRED"]);
    let one = [&get[..], &["--kid", &kid]].concat();
    let shown = says(&daemon, "officer", &one).await;
    contains(&shown, &["retired", "active until"]);

    let destroy = [&["key", "destroy", "request", "orders"], &tenant[..]].concat();
    let asked = says(&daemon, "issuer", &destroy).await;
    contains(&asked, &["REQUESTED", "second person approves"]);
    let list = ["key", "destroy", "list", "--tenant", "acme"];
    let listed = json(&daemon, "approver", &list).await;
    let id = string(&listed["destructions"][0]["id"]);
    let approve = ["key", "destroy", "approve", &id, "--kid"];
    let wrong = [&approve[..], &["another"]].concat();
    assert!(!run(&daemon, "approver", &wrong).await.status.success());
    let approve = [&approve[..], &[&kid]].concat();
    let shown = says(&daemon, "approver", &approve).await;
    contains(&shown, &["SCHEDULED", "unless it is cancelled", "(you)"]);
    let cancel = ["key", "destroy", "cancel", &id, "--reason", "still needed"];
    let shown = says(&daemon, "officer", &cancel).await;
    contains(&shown, &["CANCELLED", "still needed", "(you)"]);
    daemon.stop().await;
}

// R-EMER-1: single tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_token_is_revoked() {
    let daemon = with_key(KeyPurpose::TokenSigning).await;
    let issue = ["token", "issue", "--key", "orders", "--audience", "a"];
    let token = json(&daemon, "service", &issue).await;
    let file = daemon.path("token");
    std::fs::write(&file, string(&token["token"])).expect("written");
    let file = file.to_str().expect("UTF-8");
    let jti = string(&token["jti"]);
    let revoke = ["token", "revoke", "--tenant", "acme", "--jti", &jti];
    let revoke = [&revoke[..], &["--reason", "leaked"]].concat();
    fails(&daemon, "service", 3, &revoke, "PERMISSION_DENIED").await;
    let shown = says(&daemon, "officer", &revoke).await;
    contains(&shown, &[&jti, "until", "JWKS alone"]);
    let verify = ["token", "verify", "--audience", "a", "--in", file];
    let rejected = run(&daemon, "service", &verify).await;
    assert_eq!(rejected.status.code(), Some(1));
    contains(&text(&rejected.stdout), &["REVOKED"]);
    daemon.stop().await;
}

// R-LIFE-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_by_what_is_due_and_whose_they_are() {
    let daemon = with_key(KeyPurpose::Signing).await;
    daemon
        .key("acme", "late", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon
        .execute("UPDATE keys SET next_rotation_at = 1 WHERE name = 'late'")
        .await;
    daemon
        .execute("UPDATE keys SET owner = 'team-late' WHERE name = 'late'")
        .await;
    for filter in [
        &["--overdue"][..],
        &["--due-within", "7d"],
        &["--owner", "team-late"],
    ] {
        let list = [&["key", "list", "--tenant", "acme"], filter].concat();
        let shown = says(&daemon, "issuer", &list).await;
        contains(&shown, &["late", "OVERDUE"]);
        assert!(!shown.contains("orders"), "{filter:?}: {shown}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_automatic_policy_is_approved_by_somebody_else() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let create = [
        "key",
        "create",
        "vault",
        "--tenant",
        "acme",
        "--purpose",
        "encryption",
        "--algorithm",
        "a256gcm",
        "--owner",
        "me",
        "--rotation-mode",
        "automatic",
        "--grace",
        "2d",
    ];
    let made = says(&daemon, "issuer", &create).await;
    contains(
        &made,
        &[
            "until an approver runs `key approve-policy vault --tenant acme`",
            "2 d",
        ],
    );
    // Without a revision there is only something to read, and the command to type.
    let approve = ["key", "approve-policy", "vault", "--tenant", "acme"];
    let read = run(&daemon, "approver", &approve).await;
    assert_eq!(read.status.code(), Some(2), "{}", text(&read.stderr));
    let command = "key approve-policy vault --tenant acme --revision 1";
    let judged = [
        "every 180 d",
        "next rotation",
        "2 d, and until",
        "Nothing is approved yet",
        command,
    ];
    contains(&text(&read.stdout), &judged);
    let update = ["key", "update", "vault", "--tenant", "acme", "--grace"];
    says(&daemon, "issuer", &[&update[..], &["3d"]].concat()).await;
    let command: Vec<_> = command.split(' ').collect();
    fails(&daemon, "approver", 5, &command, "PLAN_CHANGED").await;
    let command = [&approve[..], &["--revision", "2"]].concat();
    let shown = says(&daemon, "approver", &command).await;
    contains(&shown, &["automatic, approved"]);
    let update = ["key", "update", "vault", "--tenant", "acme", "--approvals"];
    let one = [&update[..], &["2"]].concat();
    fails(&daemon, "issuer", 5, &one, "ROTATION_POLICY").await;
    daemon.stop().await;
}

/// People of the platform live in another tenant than the keys: an empty listing of theirs is no all-clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_listing_says_where_it_has_looked() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    for listing in [
        &["key", "list", "--compromised"][..],
        &["key", "destroy", "list"],
        &["rotation", "list"],
        &["incident", "list"],
    ] {
        let said = run(&daemon, "officer", listing).await;
        assert!(said.status.success(), "{listing:?}");
        let hint = "nothing in your own tenant; name another with --tenant";
        contains(&text(&said.stderr), &[hint]);
        for silent in [["--tenant", "acme"], ["--output", "json"]] {
            let said = run(&daemon, "officer", &[listing, &silent].concat()).await;
            assert!(said.status.success(), "{listing:?}");
            assert_eq!(text(&said.stderr), "", "{listing:?} {silent:?}");
        }
    }
    daemon.stop().await;
}

// R-OPS-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_repeated_with_its_key_is_done_once() {
    let daemon = with_key(KeyPurpose::Signing).await;
    let key = ["--idempotency-key", "ticket-4711"];
    let create = [&["tenant", "create", "initech"], &key[..]].concat();
    let first = json(&daemon, "admin", &create).await;
    let second = json(&daemon, "admin", &create).await;
    assert_eq!(first, second);
    let other = [&["tenant", "create", "hooli"], &key[..]].concat();
    fails(&daemon, "admin", 5, &other, "IDEMPOTENCY_KEY_REUSED").await;
    // Without one, each command is a call of its own.
    let again = ["tenant", "create", "initech"];
    fails(&daemon, "admin", 5, &again, "ALREADY_EXISTS").await;
    daemon.stop().await;
}
