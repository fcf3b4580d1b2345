//! The account's quota is kept by us, before AWS has to.
//!
//! How the turns are divided is shown with a clock that stands still, in `governor.rs`. Here it is that every request
//! asks for its turn; nothing depends on how fast this machine is.

use std::time::Instant as Clock;

use claviger::{
    backends::{Backend, BackendError, Priority, with_priority},
    error::{Error, Kind},
    model::{KeySpec, Secret},
};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::layer::{Kms, alone};
use crate::{conformance::create, softhsm::soon};

/// AWS allows 100 requests per second and 100 at once; ours take a fifth of that. What is too much is refused here, with
/// a delay after which to retry, and AWS never throttles.
#[test]
fn aws_never_has_to_throttle() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.symmetric_per_second = 100;
        config.quotas.share_percent = 20;
        let began = Clock::now();
        let backend = kms.open(&config).await.expect("KMS opens");
        let kek = create(&backend, KeySpec::Kek).await.reference;
        kms.faults(json!({"rate": {"Encrypt": 100}})).await;

        let key = Secret::new([7; 32]);
        let outcomes = join_all((0..200).map(|_| backend.wrap(&kek, &key, b"a", soon()))).await;
        let took = began.elapsed().as_secs_f64();
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(kms.refused("ThrottlingException").await, 0);
        assert_eq!(
            kms.asked("Encrypt").await,
            done as u64,
            "refused ones were not sent"
        );
        // A bucket of 20, of which `create` took two and two stay for rotations; and what flowed in since.
        assert!(done >= 15, "{done} of 200");
        let most = 20.0 + 20.0 * (took + 0.1);
        assert!((done as f64) <= most, "{done} of 200, at most {most}");
        assert!(done < 200 || took > 5.0, "nobody was refused");
        for refused in outcomes.into_iter().filter_map(Result::err) {
            assert!(matches!(refused, BackendError::Overloaded), "{refused:?}");
            let public = Error::from(refused);
            assert_eq!(public.reason().kind(), Kind::ResourceExhausted);
            assert!(public.retry_delay().is_some());
        }
        println!("200 at once: {done} done, the others refused, in {took} s");
    });
}

/// Background work leaves half of the quota to those who wait for an answer, and gets done all the same.
#[test]
fn batches_do_not_starve_callers() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.symmetric_per_second = 40;
        let backend = kms.open(&config).await.expect("KMS opens");
        let kek = create(&backend, KeySpec::Kek).await.reference;
        kms.faults(json!({})).await;
        let key = Secret::new([7; 32]);
        let work = join_all((0..100).map(|_| backend.wrap(&kek, &key, b"a", soon())));
        let work = with_priority(Priority::Batch, work);
        let callers = async {
            // The batch has taken what it gets, and waits.
            while kms.asked("Encrypt").await < 15 {
                tokio::task::yield_now().await;
            }
            for _ in 0..10 {
                let call = backend.wrap(&kek, &key, b"a", soon()).await;
                call.expect("a caller is served");
            }
        };
        let (work, ()) = tokio::join!(work, callers);
        let done = work.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(done, 100, "each has its turn in the end");
    });
}

/// What comes too late because it had to wait for its turn was one too many, and no sign of trouble in AWS: answers take
/// longer here than what is left after the wait.
#[test]
fn a_batch_that_runs_out_of_time_is_no_trouble_of_aws() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.symmetric_per_second = 4;
        let backend = kms.open(&config).await.expect("KMS opens");
        let kek = create(&backend, KeySpec::Kek).await.reference;
        kms.faults(json!({"latency_ms": 2000})).await;
        let key = Secret::new([7; 32]);
        let deadline = Instant::now() + std::time::Duration::from_secs(3);
        let work = join_all((0..40).map(|_| backend.wrap(&kek, &key, b"a", deadline)));
        let outcomes = with_priority(Priority::Batch, work).await;
        let late = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let late: Vec<_> = late.collect();
        assert!(late.len() > 10, "{late:?}");
        // Two have their turn at once; whatever becomes of those is not because of a wait.
        let counted = late
            .iter()
            .filter(|e| !matches!(e, BackendError::Overloaded));
        assert!(counted.count() <= 2, "{late:?}");
    });
}

/// Others in the account may use it up all the same. Then we try again later, and more slowly.
#[test]
fn throttling_by_aws_is_survived() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let kek = create(&backend, KeySpec::Kek).await.reference;
        let key = Secret::new([7; 32]);
        kms.faults(json!({"throttle": {"Encrypt": 2}})).await;
        let patient = backend.wrap(&kek, &key, b"a", soon()).await;
        patient.expect("the third attempt");
        assert_eq!(kms.asked("Encrypt").await, 3);

        kms.faults(json!({"throttle": {"Encrypt": 1000}})).await;
        let outcome = backend.wrap(&kek, &key, b"a", soon()).await;
        assert!(
            matches!(outcome, Err(BackendError::Overloaded)),
            "{outcome:?}"
        );
        assert!(kms.asked("Encrypt").await <= 4, "retries are bounded");
    });
}
