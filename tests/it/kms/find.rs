//! What a creation that was cut short left, among everything else that is in the account.

use claviger::{
    backends::{Backend, BackendError},
    model::{IntentId, KeySpec},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    adopt::foreign_kek,
    layer::{Kms, alone},
};
use crate::{conformance::create, softhsm::soon};

/// R-OPS-1: it is found by its intent, and nothing makes a second key.
#[test]
fn what_a_cut_creation_left_is_found() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        kms.faults(json!({"deny": ["CreateAlias"]})).await;
        let intent = IntentId::random();
        let cut = backend.create(KeySpec::P256, intent, "cut", soon()).await;
        assert!(matches!(cut, Err(BackendError::Denied { .. })), "{cut:?}");
        for _ in 0..2 {
            let found = backend.find(intent, soon()).await.expect("an answer");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("ECC_NIST_P256"), "{found:?}");
        }

        // Nobody knows whether AWS did it: it is not asked twice.
        kms.faults(json!({"internal": {"CreateKey": 1}})).await;
        let intent = IntentId::random();
        let unknown = backend.create(KeySpec::P256, intent, "lost", soon()).await;
        assert!(
            matches!(unknown, Err(BackendError::Unavailable(_))),
            "{unknown:?}"
        );
        assert_eq!(kms.asked("CreateKey").await, 1);
        // AWS says that it did nothing: it is asked again.
        kms.faults(json!({"throttle": {"CreateKey": 1}})).await;
        create(&backend, KeySpec::P256).await;
        assert_eq!(kms.asked("CreateKey").await, 2);
    });
}

/// However many keys there are: a finished creation is found by one request, and the others cost one request each,
/// once, on whatever page they are.
#[test]
fn an_account_of_many_keys_is_searched_once() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        kms.faults(json!({"deny": ["CreateAlias"]})).await;
        let cut = IntentId::random();
        let outcome = backend.create(KeySpec::Kek, cut, "cut", soon()).await;
        outcome.expect_err("no alias");
        for _ in 0..24 {
            foreign_kek(&kms).await;
        }
        kms.faults(json!({"page": 7})).await;
        let whole = IntentId::random();
        let made = backend.create(KeySpec::Kek, whole, "whole", soon()).await;
        made.expect("created");

        kms.faults(json!({"page": 7})).await;
        let found = backend.find(whole, soon()).await.expect("an answer");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(kms.asked("ListKeys").await, 0);

        let found = backend.find(cut, soon()).await.expect("an answer");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(kms.asked("ListKeys").await, 4, "26 keys in pages of 7");
        kms.faults(json!({"page": 7})).await;
        let nothing = backend.find(IntentId::random(), soon()).await;
        assert!(nothing.expect("an answer").is_empty());
        let found = backend.find(cut, soon()).await.expect("an answer");
        assert_eq!(found.len(), 1, "{found:?}");
        // Two for the aliases that are not there, and one for the state of what was found before.
        assert_eq!(kms.asked("DescribeKey").await, 3);
    });
}

/// A search that is cut by its deadline says so, not "nothing", and goes on where it was.
#[test]
fn a_search_goes_on_where_it_was_cut() {
    alone(async |kms: Kms| {
        let mut config = kms.config();
        config.quotas.read_per_second = 10;
        let backend = kms.open(&config).await.expect("KMS opens");
        for _ in 0..40 {
            foreign_kek(&kms).await;
        }
        let intent = IntentId::random();
        let mut cuts = 0;
        let found = loop {
            let little = Instant::now() + std::time::Duration::from_secs(2);
            match backend.find(intent, little).await {
                Ok(found) => break found,
                Err(BackendError::Overloaded | BackendError::DeadlineExceeded) => cuts += 1,
                Err(other) => panic!("{other:?}"),
            }
            assert!(cuts < 60, "it begins again each time");
        };
        assert!(found.is_empty() && cuts > 0, "{cuts} cuts, {found:?}");
    });
}

/// Who may look at no key has not seen that there is none.
#[test]
fn an_account_that_cannot_be_seen_is_not_empty() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let (one, two) = (foreign_kek(&kms).await, foreign_kek(&kms).await);
        let deny = |keys: &[&String]| {
            let keys = keys
                .iter()
                .map(|key| ((*key).clone(), json!(["DescribeKey"])));
            json!({"deny_key": keys.collect::<serde_json::Map<_, _>>()})
        };
        kms.faults(deny(&[&one, &two])).await;
        let unseen = backend.find(IntentId::random(), soon()).await;
        assert!(
            matches!(unseen, Err(BackendError::Denied { .. })),
            "{unseen:?}"
        );
        // A key of somebody else's among those that we see.
        kms.faults(deny(&[&one])).await;
        // The second time the other key is remembered, and has been seen all the same.
        for _ in 0..2 {
            let nothing = backend.find(IntentId::random(), soon()).await;
            assert!(nothing.expect("an answer").is_empty());
        }
    });
}
