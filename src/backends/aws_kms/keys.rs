//! The life of a key in KMS: create, adopt, delete.
//!
//! CreateKey has no idempotency token, and an answer may be lost. So the tag with the intent is part of the
//! creation, CreateKey is not repeated when nobody knows whether it happened, and the alias
//! `alias/claviger/INTENT`, of which there can be only one, keeps an intent from getting a second key.

use std::time::Duration;

use aws_sdk_kms::{primitives::DateTime, types::Tag};
use tokio::time::{Instant, sleep};

use super::{
    AwsKmsBackend, Class, Named,
    calls::{Plan, Repeat, pause_after},
    errors::Fault,
    find::{alias, description},
    lookup::{fitness, is_gone},
    specs, unfit,
};
use crate::{
    backends::{BackendError, Created, Destroyed},
    clock::Clock,
    model::{IntentId, KeySpec, PublicKey, Timestamp, key::BackendRef},
};

/// Tag of every key that we make; its value is the intent.
pub(super) const TAG: &str = "claviger:intent";
/// The shortest that AWS allows.
const WINDOW_DAYS: i32 = 7;
/// How long KMS may take until every part of it knows of a new key.
const SETTLING: Duration = Duration::from_secs(20);

impl AwsKmsBackend {
    pub(super) async fn create_key(
        &self,
        spec: KeySpec,
        intent: IntentId,
        label: &str,
        deadline: Instant,
    ) -> Result<Created, BackendError> {
        if !self.shared.capabilities.specs.contains(&spec) {
            return Err(BackendError::Unsupported(format!("{spec:?} keys")));
        }
        let alias = alias(intent);
        match self.describe(&alias, deadline).await {
            Err(BackendError::Missing(_)) => {}
            Ok(_) => return Err(second_key()),
            Err(error) => return Err(error),
        }
        let arn = self.request_key(spec, intent, label, deadline).await?;
        self.name_key(&arn, alias, deadline).await?;
        let mut settling = Settling::new(deadline);
        let public_key = loop {
            let examined = self.examine(&arn, spec, deadline).await;
            if !settling.goes_on(&examined).await {
                break examined?;
            }
        };
        Ok(Created {
            public_key,
            reference: BackendRef(arn),
            tag: Some(intent),
        })
    }

    async fn examine(
        &self,
        arn: &str,
        spec: KeySpec,
        deadline: Instant,
    ) -> Result<Option<PublicKey>, BackendError> {
        let key = self.describe(arn, deadline).await?;
        let spec = fitness(&key, spec)?;
        self.prove(arn, spec, deadline).await
    }

    async fn request_key(
        &self,
        spec: KeySpec,
        intent: IntentId,
        label: &str,
        deadline: Instant,
    ) -> Result<String, BackendError> {
        let unsupported = || BackendError::Unsupported(format!("{spec:?} keys"));
        let (key_spec, usage) = specs::to_aws(spec).ok_or_else(unsupported)?;
        let tag = Tag::builder().tag_key(TAG).tag_value(intent.to_string());
        let tag = tag
            .build()
            .map_err(|e| BackendError::Rejected(e.to_string()))?;
        let description = description(intent, label);
        let plan = Plan {
            repeat: Repeat::Refused,
            ..self.plan("kms:CreateKey", Class::Control, deadline)
        };
        let created = self.shared.calls.run(plan, |client| {
            client
                .create_key()
                .key_spec(key_spec.clone())
                .key_usage(usage.clone())
                .description(&description)
                .tags(tag.clone())
                .send()
        });
        let created = created.await.map_err(|fault| match fault {
            // An endpoint that does not know the key spec finds the request malformed.
            Fault::Invalid(why) => {
                tracing::warn!(why, ?spec, "CreateKey was refused");
                unsupported()
            }
            Fault::Throttled
            | Fault::Trouble(_)
            | Fault::State(_)
            | Fault::KeyTrouble(_)
            | Fault::Final(_) => fault.into_error(),
        })?;
        let arn = created.key_metadata.and_then(|key| key.arn);
        arn.ok_or_else(|| BackendError::Unavailable("kms:CreateKey answered no ARN".into()))
    }

    /// Gives the key the one alias of its intent. Done again, it finds the alias and looks where it points.
    async fn name_key(
        &self,
        arn: &str,
        alias: String,
        deadline: Instant,
    ) -> Result<(), BackendError> {
        let plan = self.plan("kms:CreateAlias", Class::Control, deadline);
        let mut settling = Settling::new(deadline);
        let error = loop {
            let named = self.shared.calls.run(plan, |client| {
                let named = client.create_alias().alias_name(&alias);
                named.target_key_id(arn).send()
            });
            let named = named.await.map(drop).map_err(Fault::into_error);
            if settling.goes_on(&named).await {
                continue;
            }
            match named {
                Ok(()) => return Ok(()),
                Err(error) => break error,
            }
        };
        match self.describe(&alias, deadline).await {
            Ok(key) if key.arn() == Some(arn) => Ok(()),
            Ok(_) => Err(second_key()),
            Err(_) => Err(error),
        }
    }

    pub(super) async fn adopt_key(
        &self,
        uri: &str,
        spec: KeySpec,
        deadline: Instant,
    ) -> Result<Created, BackendError> {
        self.named(uri)?;
        let key = match self.describe(uri, deadline).await {
            Err(BackendError::Missing(what)) if spec == KeySpec::Kek => {
                return Err(BackendError::Missing(no_kek(&what)));
            }
            described => described?,
        };
        let arn = key.arn().unwrap_or_default();
        // From here on the ARN that the name stands for today.
        let Named::Key(_) = self.named(arn)? else {
            return Err(unfit("KMS shows no key ARN for it"));
        };
        let found = fitness(&key, spec)?;
        Ok(Created {
            public_key: self.prove(arn, found, deadline).await?,
            reference: BackendRef(arn.to_owned()),
            tag: self.tag(arn, deadline).await?,
        })
    }

    /// ScheduleKeyDeletion. KMS can take that back for a week; we never do.
    pub(super) async fn schedule_deletion(
        &self,
        arn: &str,
        deadline: Instant,
    ) -> Result<Destroyed, BackendError> {
        let key = self.describe(arn, deadline).await?;
        if is_gone(&key) {
            let at = time(key.deletion_date());
            let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
            return Err(BackendError::Missing(format!(
                "{arn}: its deletion is scheduled{at}"
            )));
        }
        if self.tag(arn, deadline).await?.is_none() {
            return Err(unfit(&format!(
                "{arn} has no tag {TAG}: Claviger did not create it and does not delete it; schedule \
                 its deletion in AWS"
            )));
        }
        let plan = self.plan("kms:ScheduleKeyDeletion", Class::Control, deadline);
        let scheduled = self.shared.calls.run(plan, |client| {
            let schedule = client.schedule_key_deletion().key_id(arn);
            schedule.pending_window_in_days(WINDOW_DAYS).send()
        });
        match scheduled.await {
            Ok(answer) => Ok(destroyed(answer.deletion_date())),
            // An attempt whose answer was lost has done it.
            Err(fault @ Fault::State(_)) => match self.describe(arn, deadline).await {
                Ok(key) if is_gone(&key) => Ok(destroyed(key.deletion_date())),
                _ => Err(fault.into_error()),
            },
            Err(fault) => Err(fault.into_error()),
        }
    }
}

/// KMS destroys nothing at once. A date that it does not tell is the earliest that it may be.
fn destroyed(date: Option<&DateTime>) -> Destroyed {
    let window = Duration::from_secs(WINDOW_DAYS.unsigned_abs().into()) * 24 * 60 * 60;
    let earliest = || Clock::System.now().plus(window);
    Destroyed::Scheduled(time(date).unwrap_or_else(earliest))
}

fn time(date: Option<&DateTime>) -> Option<Timestamp> {
    Some(Timestamp::from_seconds(date?.secs()))
}

/// A KEK is made in AWS, by people: the daemon's role need not be able to.
fn no_kek(what: &str) -> String {
    format!(
        "{what}; create a symmetric key there (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT) and its alias, and allow \
         kms:DescribeKey, kms:Encrypt, kms:Decrypt and kms:ListResourceTags on it to the daemon's role"
    )
}

fn second_key() -> BackendError {
    unfit("KMS holds a key of this intent already; adopt or quarantine it")
}

/// The time until every part of KMS knows a new key: it is not found at first, or not ready.
struct Settling {
    until: Instant,
    attempt: u32,
}

impl Settling {
    fn new(deadline: Instant) -> Self {
        Self {
            until: deadline.min(Instant::now() + SETTLING),
            attempt: 0,
        }
    }

    /// Pauses, when asking again may give another answer.
    async fn goes_on<T>(&mut self, answer: &Result<T, BackendError>) -> bool {
        let Err(
            BackendError::Missing(_)
            | BackendError::Unavailable(_)
            | BackendError::Suspended { .. },
        ) = answer
        else {
            return false;
        };
        self.attempt += 1;
        let pause = pause_after(self.attempt) + Duration::from_millis(20);
        if Instant::now() + pause >= self.until {
            return false;
        }
        sleep(pause).await;
        true
    }
}
