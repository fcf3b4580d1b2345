//! The account's quota is kept by us, before AWS has to.

use std::time::{Duration, Instant as Clock};

use claviger::{
    backends::{Backend, BackendError, aws_kms::Priority},
    error::{Error, Kind},
    model::{KeySpec, Secret},
};
use futures_util::future::join_all;
use serde_json::json;

use super::layer::{Kms, alone};
use crate::{conformance::create, softhsm::soon};

/// AWS allows 50 requests per second; ours take 30 of them, in bursts of 30. What is too much is refused here,
/// at once, with a delay after which to retry, and AWS never throttles.
#[test]
fn aws_never_has_to_throttle() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.symmetric_per_second = 50;
        config.quotas.share_percent = 60;
        let backend = kms.open(&config).await.expect("KMS opens");
        let kek = create(&backend, KeySpec::Kek).await.reference;
        kms.faults(json!({"rate": {"Encrypt": 50}})).await;
        tokio::time::sleep(Duration::from_millis(1000)).await;

        let key = Secret::new([7; 32]);
        let began = Clock::now();
        let outcomes = join_all((0..200).map(|_| backend.wrap(&kek, &key, b"a", soon()))).await;
        let took = began.elapsed();
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(kms.refused("ThrottlingException").await, 0);
        assert!((25..=40).contains(&done), "{done} of 200 in {took:?}");
        for refused in outcomes.into_iter().filter_map(Result::err) {
            assert!(matches!(refused, BackendError::Overloaded), "{refused:?}");
            let public = Error::from(refused);
            assert_eq!(public.reason().kind(), Kind::ResourceExhausted);
        }
        println!("200 at once: {done} done, the others refused, in {took:?}");
    });
}

/// Background work leaves half of the quota to those who wait for an answer.
#[test]
fn batches_do_not_starve_callers() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.symmetric_per_second = 40;
        let backend = kms.open(&config).await.expect("KMS opens");
        let kek = create(&backend, KeySpec::Kek).await.reference;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        let batch = backend.with_priority(Priority::Batch);
        let key = Secret::new([7; 32]);
        let work = join_all((0..100).map(|_| batch.wrap(&kek, &key, b"a", soon()))).await;
        let done = work.iter().filter(|outcome| outcome.is_ok()).count();
        assert!((15..=30).contains(&done), "{done} of 100");
        for _ in 0..10 {
            let call = backend.wrap(&kek, &key, b"a", soon()).await;
            call.expect("a caller is served");
        }
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
        let began = Clock::now();
        let outcome = backend.wrap(&kek, &key, b"a", soon()).await;
        assert!(
            matches!(outcome, Err(BackendError::Overloaded)),
            "{outcome:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(kms.asked("Encrypt").await <= 4, "retries are bounded");
    });
}
