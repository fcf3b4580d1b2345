//! Keys that are not as they should be, and names that do not stay.

use aws_sdk_kms::types::{KeySpec as AwsSpec, KeyUsageType, OriginType};
use claviger::{
    backends::{Backend, BackendError},
    model::{KeySpec, Secret, key::BackendRef},
};
use serde_json::json;

use super::layer::{ACCOUNT, Kms, alone};
use crate::{conformance::create, softhsm::soon};

/// Makes a key as somebody else would; its ARN.
pub async fn foreign_key(kms: &Kms, spec: AwsSpec, usage: KeyUsageType) -> String {
    let made = kms.operator().create_key().key_spec(spec).key_usage(usage);
    let made = made.send().await.expect("created").key_metadata;
    made.and_then(|key| key.arn).expect("an ARN")
}

pub async fn foreign_kek(kms: &Kms) -> String {
    let usage = KeyUsageType::EncryptDecrypt;
    foreign_key(kms, AwsSpec::SymmetricDefault, usage).await
}

/// R-LIFE-4: nothing on the device changes, and each answer says why.
#[test]
fn unfit_keys_are_not_adopted() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let operator = kms.operator();
        let refused = async |name: &str, spec: KeySpec, why: &str| match backend
            .adopt(name, spec, soon())
            .await
        {
            Err(BackendError::Unfit(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{name} as {spec:?}: {other:?}"),
        };
        let kek = foreign_kek(&kms).await;
        refused(&kek, KeySpec::P256, "not P256").await;
        let rsa = foreign_key(&kms, AwsSpec::Rsa2048, KeyUsageType::EncryptDecrypt).await;
        refused(&rsa, KeySpec::Rsa(2048), "KeyUsage").await;
        refused(&rsa, KeySpec::Kek, "KeyUsage").await;
        let coin = foreign_key(&kms, AwsSpec::EccSecgP256K1, KeyUsageType::SignVerify).await;
        refused(&coin, KeySpec::P256, "KeySpec").await;
        let pair = foreign_key(&kms, AwsSpec::Rsa3072, KeyUsageType::SignVerify).await;
        refused(&pair, KeySpec::Rsa(2048), "Rsa(3072)").await;
        let any = backend.adopt(&pair, KeySpec::Rsa(0), soon()).await;
        let any = any.expect("any length");
        assert_eq!((&any.reference.0, any.tag), (&pair, None));

        // Material that was outside once may still be there.
        let imported = operator.create_key().origin(OriginType::External).send();
        let imported = imported.await.expect("created").key_metadata;
        let imported = imported.and_then(|key| key.arn).expect("an ARN");
        refused(&imported, KeySpec::Kek, "EXTERNAL").await;

        // What is destroyed here lives on elsewhere.
        let everywhere = operator.create_key().multi_region(true);
        let everywhere = everywhere.key_spec(AwsSpec::EccNistP256);
        let made = everywhere.key_usage(KeyUsageType::SignVerify).send().await;
        let made = made.expect("created").key_metadata;
        let pair = made.and_then(|key| key.arn).expect("an ARN");
        refused(&pair, KeySpec::P256, "multi-region").await;

        let disabled = foreign_kek(&kms).await;
        let done = operator.disable_key().key_id(&disabled).send().await;
        done.expect("disabled");
        let outcome = backend.adopt(&disabled, KeySpec::Kek, soon()).await;
        let Err(BackendError::Suspended { key, why }) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(key == disabled && why.contains("kms:EnableKey"), "{why}");
        let doomed = foreign_kek(&kms).await;
        let done = operator.schedule_key_deletion().key_id(&doomed);
        done.pending_window_in_days(7).send().await.expect("doomed");
        let missing =
            async |name: &str, why: &str| match backend.adopt(name, KeySpec::Kek, soon()).await {
                Err(BackendError::Missing(text)) => assert!(text.contains(why), "{text}"),
                other => panic!("{name}: {other:?}"),
            };
        missing(&doomed, "kms:CancelKeyDeletion").await;
        missing("alias/nobody", &kms.region).await;
        missing("alias/nobody", "create a symmetric key").await;
        missing("alias/nobody", "kms:Decrypt").await;
    });
}

#[test]
fn keys_of_other_regions_and_accounts_are_refused() {
    alone(async |kms: Kms| {
        let kek = foreign_kek(&kms).await;
        let elsewhere = kek.replace(&kms.region, "us-gov-west-1");
        let others = kek.replace(ACCOUNT, "999999999999");
        let mut config = kms.config();
        let anywhere = kms.open(&config).await.expect("KMS opens");
        config.account = Some(ACCOUNT.into());
        let here = kms.open(&config).await.expect("KMS opens");

        for (name, says) in [(&elsewhere, "region us-gov-west-1"), (&others, "account 9")] {
            let outcome = here.adopt(name, KeySpec::Kek, soon()).await;
            let error = outcome.expect_err("refused");
            assert!(matches!(error, BackendError::Unfit(_)), "{error:?}");
            assert!(error.to_string().contains(says), "{error}");
            // A row that was written under another configuration is refused as well.
            let reference = BackendRef(name.clone());
            let outcome = here.unwrap(&reference, &[1, 2, 3], b"", soon()).await;
            assert!(matches!(outcome, Err(BackendError::Unfit(_))));
        }
        // Without `account`, AWS refuses.
        let outcome = anywhere.adopt(&others, KeySpec::Kek, soon()).await;
        let error = outcome.expect_err("refused");
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains("kms:DescribeKey"), "{error}");
        here.adopt(&kek, KeySpec::Kek, soon())
            .await
            .expect("our own");
    });
}

/// An alias names a key once; whoever moves it later does not move us.
#[test]
fn an_alias_that_moves_does_not_move_the_key() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let (first, second) = (foreign_kek(&kms).await, foreign_kek(&kms).await);
        let operator = kms.operator();
        let named = operator.create_alias().alias_name("alias/kek");
        named.target_key_id(&first).send().await.expect("named");
        let adopted = backend.adopt("alias/kek", KeySpec::Kek, soon()).await;
        let kek = adopted.expect("adopted").reference;
        assert_eq!(kek.0, first);
        let by_arn = first.replace(first.rsplit_once(':').expect("an ARN").1, "alias/kek");
        let adopted = backend.adopt(&by_arn, KeySpec::Kek, soon()).await;
        assert_eq!(adopted.expect("adopted").reference, kek);

        let key = Secret::new([7; 32]);
        let wrapped = backend.wrap(&kek, &key, b"a", soon()).await;
        let wrapped = wrapped.expect("wrapped");
        let moved = operator.update_alias().alias_name("alias/kek");
        moved.target_key_id(&second).send().await.expect("moved");
        let back = backend.unwrap(&kek, &wrapped, b"a", soon()).await;
        assert_eq!(back.ok().map(|key| *key.expose_secret()), Some([7; 32]));
        let alias = backend
            .unwrap(&BackendRef("alias/kek".into()), &wrapped, b"a", soon())
            .await;
        assert!(
            matches!(alias, Err(BackendError::Unfit(_))),
            "an alias is no reference"
        );
    });
}

/// R-ENV-2: a KEK that is switched off is named as such, and works again when it is on, without a restart.
#[test]
fn a_disabled_kek_is_named_and_comes_back() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let operator = kms.operator();
        let kek = create(&backend, KeySpec::Kek).await.reference;
        let key = Secret::new([7; 32]);
        let wrapped = backend.wrap(&kek, &key, b"a", soon()).await;
        let wrapped = wrapped.expect("wrapped");
        let unwrap = async || backend.unwrap(&kek, &wrapped, b"a", soon()).await;

        let done = operator.disable_key().key_id(&kek.0).send().await;
        done.expect("disabled");
        let error = unwrap().await.err().expect("refused");
        let is_named = matches!(&error, BackendError::Suspended { key, .. } if *key == kek.0);
        assert!(is_named, "{error:?}");
        assert!(error.to_string().contains("kms:EnableKey"), "{error}");
        // It is the key's trouble, not the backend's.
        backend.ready(soon()).await.expect("ready");
        let done = operator.enable_key().key_id(&kek.0).send().await;
        done.expect("enabled");
        assert!(unwrap().await.is_ok());

        let done = operator.schedule_key_deletion().key_id(&kek.0);
        done.send().await.expect("doomed");
        let error = unwrap().await.err().expect("refused");
        assert!(matches!(error, BackendError::Missing(_)), "{error:?}");
    });
}

/// Only what carries our tag is deleted, whatever a row says.
#[test]
fn keys_of_others_are_never_deleted() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        let key = foreign_kek(&kms).await;
        let outcome = backend.destroy(&BackendRef(key.clone()), soon()).await;
        let error = outcome.expect_err("refused");
        assert!(error.to_string().contains("claviger:intent"), "{error}");
        assert_eq!(kms.asked("ScheduleKeyDeletion").await, 0);
        backend
            .adopt(&key, KeySpec::Kek, soon())
            .await
            .expect("there");
    });
}

/// KMS is eventually consistent: a new key is not found for a while.
#[test]
fn a_new_key_that_shows_late_is_waited_for() {
    alone(async |kms: Kms| {
        let backend = kms.backend().await;
        kms.faults(json!({"consistency_ms": 700})).await;
        for spec in [KeySpec::P256, KeySpec::Kek] {
            create(&backend, spec).await;
        }
        assert_eq!(kms.asked("CreateKey").await, 2);
        assert!(
            kms.asked("CreateAlias").await > 2,
            "the first was too early"
        );
    });
}
