//! Injected faults x operations: what callers are told, how soon, and how soon it works again. R-LIFE-4, R-OPS-3.
//!
//! One daemon on SoftHSM behind the fault-injecting module (`tests/pkcs11-fault`) goes through all of them without a
//! restart. `docs/faults.md` is the table; after a change `UPDATE_DOCS=1 cargo test --test it faults::` writes it anew.

mod manual;
mod module;
mod operations;
mod table;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::Value;

use self::{
    module::{Weather, behind},
    operations::{Bench, Operation, Outcome, Round},
    table::{Cell, Row},
};
use crate::daemon::{Daemon, Engine, PATIENCE, Setup};

use Operation::*;

/// A call that only uses a key is answered within this, whatever the device does. What is promised is one second; the
/// rest is for a machine that is busy with other tests.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// As above for calls that make a key, which may take a device its time: the daemon's limit for any call, and slack.
const MADE_WITHIN: Duration = Duration::from_secs(12);
/// From the end of the fault until the operation works again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);
/// What may become of a call that makes a key when the device takes it and hangs: its time is over.
const LATE: &str = "DEADLINE_EXCEEDED DEADLINE_EXCEEDED";
const AGAIN: Duration = Duration::from_millis(100);

/// Every operation that asks the device.
const ALL: &[Operation] = &[
    ColdEncrypt,
    Sign,
    IssueToken,
    CreateDataKey,
    CreateSigningKey,
    RotateKey,
];
/// Those that sign; a new key pair makes a test signature.
const SIGN: &[Operation] = &[Sign, IssueToken, CreateSigningKey, RotateKey];
const GENERATE: &[Operation] = &[CreateSigningKey, RotateKey];

struct Fault {
    name: &'static str,
    script: &'static str,
    /// Does it happen at one moment, and is over then? It happens anew before each operation.
    once: bool,
    /// The operations that fail. All others go on.
    hits: &'static [Operation],
    /// Is it the device that is in trouble, and not the data?
    device: bool,
    /// A signature takes at least this long.
    slow: Duration,
}

const fn fault(name: &'static str, script: &'static str, hits: &'static [Operation]) -> Fault {
    Fault {
        name,
        script,
        once: false,
        hits,
        device: true,
        slow: Duration::ZERO,
    }
}

const fn once(name: &'static str, script: &'static str) -> Fault {
    Fault {
        once: true,
        ..fault(name, script, &[])
    }
}

const FAULTS: &[Fault] = &[
    once("all sessions lost", "sessions lost"),
    once("logged out by another application", "token logout"),
    Fault {
        // A generation that met an error is not tried twice; everything else is, on another session.
        hits: GENERATE,
        ..once(
            "one error, and the session is poisoned",
            "sessions poisoned\n\
             C_SignInit count=1 return=CKR_GENERAL_ERROR\n\
             C_DecryptInit count=1 return=CKR_DEVICE_ERROR",
        )
    },
    fault("no free session", "sessions max=1\nsessions lost", ALL),
    fault("token removed and returned", "token removed", ALL),
    fault(
        "token removed; seen again only by a new C_Initialize",
        "token stuck",
        ALL,
    ),
    fault("token re-initialised", "token reinitialised", ALL),
    fault(
        "signing: device error",
        "C_Sign return=CKR_DEVICE_ERROR",
        SIGN,
    ),
    fault(
        "signing: out of memory",
        "C_Sign return=CKR_DEVICE_MEMORY",
        SIGN,
    ),
    fault(
        "signing: a code of the vendor's own",
        "C_SignInit return=0x80000123",
        SIGN,
    ),
    fault(
        "signing: key handles invalid",
        "C_SignInit return=CKR_KEY_HANDLE_INVALID",
        SIGN,
    ),
    Fault {
        slow: Duration::from_millis(300),
        ..fault("signing takes 0.3 s", "C_SignInit delay_ms=300", &[])
    },
    // New keys make their test signature all the same: nobody gives up on what may take long.
    fault(
        "signing takes 2 s",
        "C_SignInit delay_ms=2000",
        &[Sign, IssueToken],
    ),
    fault("signing hangs", "C_Sign hang", SIGN),
    fault(
        "unwrapping: device error",
        "C_Decrypt return=CKR_DEVICE_ERROR",
        &[ColdEncrypt],
    ),
    Fault {
        device: false,
        ..fault(
            "unwrapping: the wrapped data key is called tampered",
            "C_Decrypt return=CKR_GENERAL_ERROR",
            &[ColdEncrypt],
        )
    },
    fault("unwrapping hangs", "C_DecryptInit hang", &[ColdEncrypt]),
    fault(
        "wrapping: device error",
        "C_Encrypt return=CKR_DEVICE_ERROR",
        &[CreateDataKey],
    ),
    fault(
        "generating: device error",
        "C_GenerateKeyPair return=CKR_DEVICE_ERROR",
        GENERATE,
    ),
    fault(
        "generating: token full",
        "C_GenerateKeyPair return=CKR_DEVICE_MEMORY",
        GENERATE,
    ),
    fault("generating hangs", "C_GenerateKeyPair hang", GENERATE),
    fault("every call: device error", "* return=CKR_DEVICE_ERROR", ALL),
    fault("every call hangs", "* hang", ALL),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_class_and_passes() {
    let setup =
        Setup::new(Engine::Sqlite).replace("type = \"pkcs11\"", "type = \"pkcs11\"\nthreads = 4");
    let (mut daemon, weather) = behind(setup, "").await;
    let bench = Bench::new(&daemon).await;
    let mut rows = Vec::new();
    for (number, fault) in FAULTS.iter().enumerate() {
        let round = bench.round(&daemon, number).await;
        let row = endure(&bench, &daemon, &weather, fault, &round).await;
        println!("{}", row.lines());
        rows.push(row);
    }
    let logins = weather.logged("C_Login");
    assert!(logins.iter().all(|answer| answer == "CKR_OK"), "{logins:?}");
    let round = bench.round(&daemon, FAULTS.len()).await;
    rows.push(wrong_pin(&bench, &mut daemon, &weather, &round).await);

    table::compare(&rows);
    let complaints: Vec<_> = rows.iter().flat_map(|row| &row.complaints).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    daemon.stop().await;
}

/// One row: the fault begins, every operation is tried, the fault ends, every operation works again.
async fn endure(
    bench: &Bench,
    daemon: &Daemon,
    weather: &Weather,
    fault: &Fault,
    round: &Round,
) -> Row {
    let logins = weather.logged("C_Login").len();
    weather.set(fault.script);
    let mut row = suffer(bench, daemon, weather, fault, round).await;
    weather.set("");
    let withdrawn = Instant::now();
    let hit = row.cells.iter_mut().filter(|cell| !cell.worked());
    join_all(hit.map(async |cell| {
        let again = recovers(bench, daemon, cell.operation, round, withdrawn).await;
        cell.again = Some(again);
    }))
    .await;
    has_successor(bench, daemon, round).await;
    // Faults that nobody notices must have happened all the same.
    let ends_login = ["sessions lost", "logout"].map(|event| fault.script.contains(event));
    if ends_login.contains(&true) && weather.logged("C_Login").len() == logins {
        row.complaints
            .push(format!("{} did not happen", fault.name));
    }
    if !readiness_is(daemon, false).await {
        let name = fault.name;
        row.complaints
            .push(format!("{name}: readiness is not told that it is over"));
    }
    for cell in &row.cells {
        let again = cell.again.unwrap_or_default();
        if again > RECOVERS_WITHIN {
            let what = format!("{}: {}", fault.name, cell.operation.name());
            row.complaints
                .push(format!("{what} works again after {again:?}"));
        }
    }
    row
}

/// What every operation comes to while the fault lasts.
async fn suffer(
    bench: &Bench,
    daemon: &Daemon,
    weather: &Weather,
    fault: &Fault,
    round: &Round,
) -> Row {
    let (mut cells, mut complaints) = (Vec::new(), Vec::new());
    let free = Operation::ALL.into_iter().filter(|o| o.needs_no_device());
    // What needs no device is tried once more when everything else has failed.
    for operation in order(fault).into_iter().chain(free) {
        if fault.once {
            weather.set(fault.script);
        }
        let outcome = bench.run(daemon, operation, round).await;
        complaints.extend(complaint(fault, operation, &outcome));
        cells.push(Cell {
            operation,
            outcome,
            hangs: fault.script.contains("hang"),
            again: None,
        });
    }
    // A device of which only some calls fail may or may not be called away.
    let is_away = fault.hits == ALL;
    if is_away && !readiness_is(daemon, true).await {
        complaints.push(format!("{}: readiness does not tell", fault.name));
    }
    Row {
        fault: fault.name,
        cells,
        is_away,
        until: "",
        complaints,
    }
}

/// What goes on comes first, so that it is not a breaker, opened by what fails, that answers. Declaring a compromise
/// uses the device for what follows it, and comes last.
fn order(fault: &Fault) -> Vec<Operation> {
    let mut order = Operation::ALL.to_vec();
    order.sort_by_key(|o| (*o == DeclareCompromise, fault.hits.contains(o)));
    order
}

/// What is wrong with an outcome, if anything.
fn complaint(fault: &Fault, operation: Operation, outcome: &Outcome) -> Option<String> {
    let Outcome {
        class,
        hinted,
        after,
        message,
    } = outcome;
    let bound = if operation.makes_a_key() {
        MADE_WITHIN
    } else {
        ANSWERED_WITHIN
    };
    let is_right = if !fault.hits.contains(&operation) {
        class == "OK"
    } else if !fault.device {
        class == "INTERNAL INTERNAL"
    } else if class == LATE {
        operation.makes_a_key()
    } else {
        class == "UNAVAILABLE BACKEND_UNAVAILABLE" && *hinted
    };
    let is_slow = operation != Sign || *after >= fault.slow;
    let (fault, operation) = (fault.name, operation.name());
    (!is_right || !is_slow || *after > bound)
        .then(|| format!("{fault}: {operation}: {class} after {after:?}: {message}"))
}

/// How long after `since` the operation works.
async fn recovers(
    bench: &Bench,
    daemon: &Daemon,
    operation: Operation,
    round: &Round,
    since: Instant,
) -> Duration {
    loop {
        let outcome = bench.run(daemon, operation, round).await;
        if outcome.class == "OK" {
            return since.elapsed();
        }
        let lasts = since.elapsed();
        let (name, message) = (operation.name(), outcome.message);
        assert!(lasts < PATIENCE, "{name}: {message}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// The key that was declared compromised during the fault signs again, under another kid. A job would see to that; who
/// declares once more need not wait for it.
async fn has_successor(bench: &Bench, daemon: &Daemon, round: &Round) {
    let began = Instant::now();
    recovers(bench, daemon, DeclareCompromise, round, began).await;
    recovers(bench, daemon, IssueAfterCompromise, round, began).await;
}

/// Waits until `/readyz`, which stays 200, says that the backend is away, or that it is not. False when it does not.
async fn readiness_is(daemon: &Daemon, degraded: bool) -> bool {
    let until = Instant::now() + RECOVERS_WITHIN;
    loop {
        let answer = daemon.ops_get("/readyz").await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(answer.status, 200, "{body}");
        let checks = body["checks"].as_array().expect("checks");
        let hsm = checks.iter().find(|check| check["name"] == "backend hsm");
        let names_it = hsm.expect("a check of the backend")["ok"] == !degraded;
        if body["degraded"] == degraded && names_it {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Somebody changed the PIN. It is tried once; only a restart tries it again.
async fn wrong_pin(bench: &Bench, daemon: &mut Daemon, weather: &Weather, round: &Round) -> Row {
    let fault = fault(
        "the PIN was changed",
        "C_Login return=CKR_PIN_INCORRECT\nsessions lost",
        ALL,
    );
    weather.set(fault.script);
    let mut row = suffer(bench, daemon, weather, &fault, round).await;
    weather.set("");
    for operation in ALL {
        let outcome = bench.run(daemon, *operation, round).await;
        row.complaints
            .extend(complaint(&fault, *operation, &outcome));
    }
    let mut logins = weather.logged("C_Login");
    logins.retain(|answer| answer != "CKR_OK");
    assert_eq!(logins, ["CKR_PIN_INCORRECT"], "a wrong PIN is tried once");
    daemon.restart().await;
    for operation in ALL {
        recovers(bench, daemon, *operation, round, Instant::now()).await;
    }
    row.until = "a restart with the right PIN";
    row
}

/// Many small HSMs have 16 sessions for everybody. The daemon takes what there is, however many threads it was given,
/// and callers wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_sessions_are_enough() {
    let setup =
        Setup::new(Engine::Sqlite).replace("type = \"pkcs11\"", "type = \"pkcs11\"\nthreads = 32");
    let (daemon, weather) = behind(setup, "sessions max=16\nC_SignInit delay_ms=20").await;
    let bench = Bench::new(&daemon).await;
    let round = bench.round(&daemon, 0).await;
    for script in ["", "sessions lost\n"] {
        weather.set(&format!("{script}sessions max=16\nC_SignInit delay_ms=20"));
        let calls = (0..64).map(|_| bench.run(&daemon, Sign, &round));
        for outcome in join_all(calls).await {
            assert_eq!(outcome.class, "OK", "{}", outcome.message);
        }
    }
    daemon.stop().await;
}

/// A creation hangs until nobody waits for it and its intent has FAILED. What the device then makes after all is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_made_when_nobody_waits_for_it_is_removed() {
    let setup = Setup::new(Engine::Sqlite)
        .replace("type = \"pkcs11\"", "type = \"pkcs11\"\nthreads = 4")
        .append(
            "\n[keys]\nreconcile_after_seconds = 1\nbackend_timeout_ms = 900\ngenerate_timeout_ms = 900\n\n\
             [scheduler]\ninterval_ms = 50\n",
        );
    let (daemon, weather) = behind(setup, "").await;
    let before = daemon.private_keys().await.len();
    weather.set("C_GenerateKeyPair hang");
    let request = claviger::grpc::proto::CreateKeyRequest {
        tenant: "acme".into(),
        name: "late".into(),
        purpose: claviger::grpc::proto::KeyPurpose::Signing.into(),
        algorithm: claviger::grpc::proto::Algorithm::Es256.into(),
        owner: "team".into(),
        ..Default::default()
    };
    let late = daemon.actor("issuer").keys().create_key(request).await;
    assert_eq!(
        late.expect_err("hangs").code(),
        tonic::Code::DeadlineExceeded
    );
    let until = Instant::now() + PATIENCE;
    let states = "SELECT state FROM backend_intents WHERE label = 'acme/late/1'";
    while daemon.rows(states).await != [["FAILED"]] {
        assert!(Instant::now() < until, "{}", daemon.log());
        tokio::time::sleep(AGAIN).await;
    }
    weather.set("");
    let until = Instant::now() + PATIENCE;
    while !daemon.log().contains("nobody waited for it any more") {
        assert!(Instant::now() < until, "{}", daemon.log());
        tokio::time::sleep(AGAIN).await;
    }
    while daemon.private_keys().await.len() != before {
        assert!(Instant::now() < until, "it stays: {}", daemon.log());
        tokio::time::sleep(AGAIN).await;
    }
    daemon.stop().await;
}

/// A process that ends while one of its threads is inside the library dies in the library's destructors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_is_finalised_before_the_process_ends() {
    let (mut daemon, weather) = behind(Setup::new(Engine::Sqlite), "").await;
    weather.set("C_Finalize delay_ms=1000");
    let status = daemon.terminate().await;
    assert!(status.success(), "{status}");
    assert_eq!(weather.logged("C_Finalize"), ["CKR_OK"]);
    daemon.stop().await;
}

/// The module is for tests and rehearsals: the daemon does not contain it, and only tests depend on it.
#[test]
fn the_daemon_does_not_contain_the_module() {
    let holds = |path: &Path| {
        let bytes = fs::read(path).expect("a file");
        bytes
            .windows(b"PKCS11_FAULT_SCRIPT".len())
            .any(|window| window == b"PKCS11_FAULT_SCRIPT")
    };
    assert!(holds(&module::module()), "its name is found where it is");
    assert!(!holds(Path::new(env!("CARGO_BIN_EXE_claviger"))));

    let manifest = include_str!("../../Cargo.toml");
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        if line.starts_with("pkcs11-fault") {
            assert_eq!(section, "[dev-dependencies]");
        }
    }
}
