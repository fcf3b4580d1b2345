//! Networks and services in trouble: every call ends in time, says what is wrong, and works again afterwards.

use std::time::{Duration, Instant as Clock};

use aws_lc_rs::digest::{SHA256, digest};
use claviger::{
    backends::{Backend, BackendError, Destroyed, aws_kms::AwsKmsBackend},
    model::{Algorithm, KeySpec, Secret, SignInput, key::BackendRef},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    layer::{Kms, alone},
    proxy::Mode,
};
use crate::conformance::create;

/// Time that callers give in this test: enough for four attempts that fail at once, on any machine.
const PATIENCE: Duration = Duration::from_secs(4);
/// How much later than their deadline callers may notice it on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(5);
const OPERATIONS: [(&str, &str); 5] = [
    ("sign", "Sign"),
    ("wrap", "Encrypt"),
    ("unwrap", "Decrypt"),
    ("public_key", "GetPublicKey"),
    ("ready", "ListKeys"),
];

/// A fault of the network or of the service.
struct Fault {
    name: &'static str,
    mode: Mode,
    /// Given every operation of the service that the test uses.
    faults: fn([&str; 5]) -> Value,
    class: &'static str,
}

const FAULTS: [Fault; 6] = [
    Fault {
        name: "connection reset",
        mode: Mode::Reset,
        faults: |_| json!({}),
        class: "Unavailable",
    },
    Fault {
        name: "no answer",
        mode: Mode::Hang,
        faults: |_| json!({}),
        class: "DeadlineExceeded",
    },
    Fault {
        name: "late answers",
        mode: Mode::Pass,
        faults: |_| json!({"latency_ms": 8000}),
        class: "DeadlineExceeded",
    },
    Fault {
        name: "internal error",
        mode: Mode::Pass,
        faults: |operations| json!({"internal": each(operations, 1000)}),
        class: "Unavailable",
    },
    Fault {
        name: "throttling",
        mode: Mode::Pass,
        faults: |operations| json!({"throttle": each(operations, 1000)}),
        class: "Overloaded",
    },
    Fault {
        name: "access denied",
        mode: Mode::Pass,
        faults: |operations| json!({"deny": operations}),
        class: "Denied",
    },
];

fn each(operations: [&str; 5], count: u32) -> Value {
    let each = operations.map(|operation| (operation.to_owned(), count.into()));
    Value::Object(each.into_iter().collect())
}

struct Keys {
    pair: BackendRef,
    kek: BackendRef,
    wrapped: Vec<u8>,
}

/// R-OPS-3: injected faults x operations, with the observed class and the time until it works again.
#[test]
fn every_fault_has_its_class_and_passes() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        // Four of them are longer than callers wait.
        config.attempt_timeout_ms = 1500;
        let backend = kms.open(&config).await.expect("KMS opens");
        let pair = create(&backend, KeySpec::P256).await.reference;
        let kek = create(&backend, KeySpec::Kek).await.reference;
        let key = Secret::new([7; 32]);
        let wrapped = backend.wrap(&kek, &key, b"a", soon()).await;
        let wrapped = wrapped.expect("wrapped");
        let keys = Keys { pair, kek, wrapped };

        println!("| fault | operation | class | after | works again after |");
        println!("|---|---|---|---|---|");
        for fault in &FAULTS {
            kms.faults((fault.faults)(OPERATIONS.map(|(_, operation)| operation)))
                .await;
            kms.proxy.set(fault.mode);
            let calls = OPERATIONS.map(async |(name, _)| {
                let began = Clock::now();
                let deadline = Instant::now() + PATIENCE;
                let outcome = call(&backend, name, &keys, deadline).await;
                (name, outcome, began.elapsed())
            });
            let outcomes = join_all(calls).await;
            kms.proxy.set(Mode::Pass);
            kms.faults(json!({})).await;
            for (name, outcome, after) in outcomes {
                let began = Clock::now();
                let back = call(&backend, name, &keys, soon()).await;
                back.expect("it works again at once");
                let again = began.elapsed();

                let class = outcome.as_ref().err().map_or("Ok", class);
                println!(
                    "| {} | {name} | {class} | {} ms | {} ms |",
                    fault.name,
                    after.as_millis(),
                    again.as_millis()
                );
                assert_eq!(class, fault.class, "{} {name}: {outcome:?}", fault.name);
                assert!(after < PATIENCE + SLACK, "{after:?}");
            }
        }
    });
}

/// Without a deadline worth the name, our own timeouts hold, and say whose fault it was.
#[test]
fn a_silent_service_is_unavailable() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        (config.attempt_timeout_ms, config.operation_timeout_ms) = (200, 700);
        let backend = kms.open(&config).await.expect("KMS opens");
        kms.proxy.set(Mode::Hang);
        let began = Clock::now();
        let outcome = backend.ready(soon()).await;
        assert!(
            matches!(outcome, Err(BackendError::Unavailable(_))),
            "{outcome:?}"
        );
        assert!(began.elapsed() < SLACK);
    });
}

/// Two answers that get lost are asked for again, and nobody notices.
#[test]
fn short_trouble_is_not_seen() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let pair = create(&backend, KeySpec::P256).await.reference;
        kms.faults(json!({"internal": {"Sign": 2}, "latency_ms": 50}))
            .await;
        let hash = digest(&SHA256, b"message");
        let input = SignInput::Digest(hash.as_ref());
        let signed = backend.sign(&pair, Algorithm::Es256, input, soon()).await;
        assert_eq!(signed.expect("the third attempt").len(), 64);
    });
}

/// A deletion whose answer got lost is done, and is not an error the second time within the same call.
#[test]
fn a_deletion_whose_answer_is_lost_is_done() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.attempt_timeout_ms = 400;
        let backend = kms.open(&config).await.expect("KMS opens");
        let pair = create(&backend, KeySpec::P256).await.reference;
        kms.faults(json!({"lose": {"ScheduleKeyDeletion": 1}}))
            .await;
        let destroyed = backend.destroy(&pair, soon()).await;
        // Never at once: until then people may take it back.
        let Destroyed::Scheduled(at) = destroyed.expect("destroyed") else {
            panic!("destroyed at once");
        };
        let days = at.since(claviger::clock::Clock::System.now()).as_secs() / 86_400;
        assert!((6..=7).contains(&days), "{at}");
        assert_eq!(kms.asked("ScheduleKeyDeletion").await, 2);
        let again = backend.destroy(&pair, soon()).await;
        let Err(BackendError::Missing(words)) = again else {
            panic!("{again:?}");
        };
        assert!(words.contains(&format!("scheduled at {at}")), "{words}");
    });
}

async fn call(
    backend: &AwsKmsBackend,
    name: &str,
    keys: &Keys,
    deadline: Instant,
) -> Result<(), BackendError> {
    let hash = digest(&SHA256, b"message");
    match name {
        "sign" => {
            let input = SignInput::Digest(hash.as_ref());
            let signed = backend.sign(&keys.pair, Algorithm::Es256, input, deadline);
            signed.await.map(drop)
        }
        "wrap" => {
            let key = Secret::new([7; 32]);
            let wrapped = backend.wrap(&keys.kek, &key, b"a", deadline);
            wrapped.await.map(drop)
        }
        "unwrap" => {
            let key = backend.unwrap(&keys.kek, &keys.wrapped, b"a", deadline);
            key.await.map(drop)
        }
        "public_key" => backend.public_key(&keys.pair, deadline).await.map(drop),
        "ready" => backend.ready(deadline).await,
        other => panic!("no operation {other}"),
    }
}

pub const fn class(error: &BackendError) -> &'static str {
    match error {
        BackendError::Unavailable(_) => "Unavailable",
        BackendError::Overloaded => "Overloaded",
        BackendError::DeadlineExceeded => "DeadlineExceeded",
        BackendError::Missing(_) => "Missing",
        BackendError::Rejected(_) => "Rejected",
        BackendError::Suspended { .. } => "Suspended",
        BackendError::Denied { .. } => "Denied",
        BackendError::Unfit(_) => "Unfit",
        BackendError::Unsupported(_) => "Unsupported",
        BackendError::WrongPin => "WrongPin",
        BackendError::Misconfigured(_) => "Misconfigured",
    }
}

fn soon() -> Instant {
    crate::softhsm::soon()
}
