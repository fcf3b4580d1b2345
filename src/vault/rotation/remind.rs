//! Reminders: people are told of credentials that are to be rotated soon, and of those that should have been.

use super::step::alert;
use crate::{
    error::Result,
    model::{AlertId, CredentialRotation, StoredCredential, Timestamp},
    store::{Alert, Term},
    vault::Vault,
};

/// Somebody to be told of.
pub struct Reminder {
    kind: &'static str,
    /// The credential.
    pub credential: StoredCredential,
}

impl Vault {
    /// Up to `limit` credentials that nobody was told of and that are overdue, and as many that will be soon.
    pub async fn reminders(&self, limit: i64) -> Result<Vec<Reminder>> {
        let now = self.clock.now();
        let mut reminders = Vec::new();
        let soon = now.plus(self.rotation.remind);
        for (kind, window) in [
            ("CREDENTIAL_OVERDUE", (Timestamp::default(), now)),
            ("CREDENTIAL_DUE", (now, soon)),
        ] {
            let untold = self.db.credentials_untold(kind, window, limit).await?;
            let untold = untold.into_iter();
            reminders.extend(untold.map(|credential| Reminder { kind, credential }));
        }
        Ok(reminders)
    }

    /// Up to `limit` rotations of which nothing comes, and that nobody was told of.
    pub async fn stuck(&self, limit: i64) -> Result<Vec<CredentialRotation>> {
        let since = self.clock.now().minus(self.rotation.stuck);
        Ok(self.db.stuck_credential_rotations(since, limit).await?)
    }

    /// Tells people, once for each state in which it stands still. Errors: LEASE_LOST.
    pub async fn tell_stuck(&self, term: &Term, rotation: &CredentialRotation) -> Result<()> {
        let kind = "CREDENTIAL_ROTATION_STUCK";
        let (state, id) = (rotation.state.as_str(), rotation.id);
        let text = format!(
            "rotation {id} of credential {} of tenant {} stays {state}; `claviger credential rotation get {id}` says what \
             the provider said",
            rotation.credential, rotation.tenant
        );
        let mut alert = alert(rotation, kind, text, self.clock.now());
        alert.window_key = format!("{}/{state}", alert.window_key);
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        if tx.raise_alert(&alert).await? {
            tracing::warn!(kind, entity_id = alert.entity_id, "{}", alert.text);
        }
        Ok(tx.commit().await?)
    }

    /// Tells people, once for each time that a credential is due. Errors: LEASE_LOST.
    pub async fn remind(&self, term: &Term, reminder: &Reminder) -> Result<()> {
        let (kind, head) = (reminder.kind, &reminder.credential);
        let (key, due) = (&head.key, head.rotation_due_at);
        let alert = Alert {
            id: AlertId::random(),
            tenant: key.tenant.clone(),
            kind: kind.to_owned(),
            entity: "credential".to_owned(),
            entity_id: head.id.to_string(),
            text: format!(
                "credential {key} of tenant {} is to be rotated by {due}; `claviger credential rotation stage {}` begins",
                key.tenant, head.id
            ),
            raised_at: self.clock.now(),
            window_key: format!("{kind}/{}/{}", head.id, due.micros()),
        };
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        if tx.raise_alert(&alert).await? {
            tracing::warn!(kind, entity_id = alert.entity_id, "{}", alert.text);
        }
        Ok(tx.commit().await?)
    }
}
