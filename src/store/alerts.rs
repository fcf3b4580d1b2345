//! Table `alerts`: what people should be told, once per window. Raised in the transaction of what it is about;
//! delivery works on the rows (alert_deliveries.rs). An alert about a window of time is resolved when that ends, one about a
//! thing when the thing is not as it was any more, and any other after some time.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::{
    error::Error,
    model::{AlertId, TenantName, Timestamp},
};

const RAISE: &str = "INSERT INTO alerts (id, tenant, kind, entity, entity_id, text, state, raised_at, window_key) \
     VALUES ($1, $2, $3, $4, $5, $6, 'FIRING', $7, $8) ON CONFLICT (window_key) DO NOTHING";
const OF_ENTITY: &str = "SELECT id, tenant, kind, entity, entity_id, text, raised_at, window_key FROM alerts \
     WHERE entity_id = $1 ORDER BY id";
const END: &str = "UPDATE alerts SET ends_at = $2 WHERE id = $1";
const PAGE: &str = "SELECT id, tenant, kind, entity, entity_id, text, state, raised_at, resolved_at, acked_by, acked_at, \
     ack_note, window_key FROM alerts WHERE tenant = $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR kind = $3) \
     AND ($4 = 0 OR acked_at IS NULL) AND id < $5 ORDER BY id DESC LIMIT $6";
const ONE: &str = "SELECT id, tenant, kind, entity, entity_id, text, state, raised_at, resolved_at, acked_by, acked_at, \
     ack_note, window_key FROM alerts WHERE id = $1 AND tenant = $2";
const BY_ID: &str = "SELECT id, tenant, kind, entity, entity_id, text, state, raised_at, resolved_at, acked_by, acked_at, \
     ack_note, window_key FROM alerts WHERE id = $1";
const ACK: &str = "UPDATE alerts SET acked_by = $2, acked_at = $3, ack_note = $4 WHERE id = $1 AND acked_at IS NULL";
const UNROUTED: &str =
    "SELECT id, tenant, kind FROM alerts WHERE routed_at IS NULL ORDER BY id LIMIT $1";
const ROUTED: &str = "UPDATE alerts SET routed_at = $2 WHERE id = $1 AND routed_at IS NULL";
const PRUNE: &str =
    "DELETE FROM alerts WHERE raised_at < $1 AND (state = 'RESOLVED' OR acked_at IS NOT NULL)";
/// Entity of an alert about all further findings of a window together; its id is the tenant's.
pub const SUMMARY: &str = "tenant";
const OF_WINDOW: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM alerts WHERE kind = $1 AND tenant = $2 AND ends_at = $3 \
     AND entity <> $4";

/// An alert that fires is RESOLVED when this holds; $1 is now.
macro_rules! resolved_when {
    ($condition:literal) => {
        concat!(
            "UPDATE alerts SET state = 'RESOLVED', resolved_at = $1 WHERE state = 'FIRING' AND ",
            $condition
        )
    };
}
/// What ends an alert: its window, the thing that it is about, or time. None fires for ever, also none of a kind that is not
/// named here.
const RESOLVE: [&str; 16] = [
    resolved_when!("ends_at IS NOT NULL AND ends_at <= $1"),
    resolved_when!(
        "kind = 'KEY_OVERDUE' AND NOT EXISTS \
         (SELECT 1 FROM keys k WHERE k.id = alerts.entity_id AND k.next_rotation_at <= $1)"
    ),
    resolved_when!(
        "kind = 'ROTATION_WAITING' AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.id = alerts.entity_id \
         AND alerts.window_key = 'ROTATION_WAITING/' || r.id || '/' || r.state)"
    ),
    resolved_when!(
        "kind = 'KEY_COMPROMISED' AND EXISTS \
         (SELECT 1 FROM incidents i WHERE i.id = alerts.entity_id AND i.closed_at IS NOT NULL)"
    ),
    resolved_when!(
        "kind = 'API_KEY_EXPIRING' AND NOT EXISTS \
         (SELECT 1 FROM api_keys a WHERE a.id = alerts.entity_id AND a.state = 'ACTIVE' AND a.replaced_by IS NULL)"
    ),
    resolved_when!(
        "kind = 'CREDENTIAL_OVERDUE' AND NOT EXISTS (SELECT 1 FROM credentials c WHERE c.id = alerts.entity_id \
         AND alerts.window_key = 'CREDENTIAL_OVERDUE/' || c.id || '/' || CAST(c.rotation_due_at AS TEXT))"
    ),
    // Then it is overdue.
    resolved_when!(
        "kind = 'CREDENTIAL_DUE' AND NOT EXISTS (SELECT 1 FROM credentials c WHERE c.id = alerts.entity_id \
         AND c.rotation_due_at > $1 \
         AND alerts.window_key = 'CREDENTIAL_DUE/' || c.id || '/' || CAST(c.rotation_due_at AS TEXT))"
    ),
    resolved_when!(
        "kind = 'CREDENTIAL_OLD_VALUE_ALIVE' AND NOT EXISTS (SELECT 1 FROM credential_rotations r \
         WHERE r.credential_id = alerts.entity_id AND r.state = 'HOLDING' \
         AND alerts.window_key = 'CREDENTIAL_OLD_VALUE_ALIVE/' || r.id)"
    ),
    resolved_when!(
        "kind IN ('CREDENTIAL_ROTATION_WAITING', 'CREDENTIAL_ROTATION_STUCK', 'CREDENTIAL_REFUSED', \
         'CREDENTIAL_OLD_VALUE_UNKNOWN') AND NOT EXISTS (SELECT 1 FROM credential_rotations r \
         WHERE r.credential_id = alerts.entity_id AND r.state IN ('MINTING', 'STAGED', 'HOLDING'))"
    ),
    resolved_when!(
        "kind = 'CREDENTIAL_MINTED_VALUE_LEFT' AND NOT EXISTS (SELECT 1 FROM credential_rotations r \
         WHERE r.credential_id = alerts.entity_id AND r.withdraw IS NOT NULL)"
    ),
    resolved_when!(
        "kind = 'DESTRUCTION_SCHEDULED' AND NOT EXISTS \
         (SELECT 1 FROM key_destructions d WHERE d.id = alerts.entity_id AND d.state = 'SCHEDULED')"
    ),
    resolved_when!(
        "kind = 'TENANT_DESTRUCTION_SCHEDULED' AND NOT EXISTS \
         (SELECT 1 FROM tenant_destructions d WHERE d.id = alerts.entity_id AND d.state = 'SCHEDULED')"
    ),
    resolved_when!(
        "kind = 'LEFTOVER_QUARANTINED' AND NOT EXISTS \
         (SELECT 1 FROM backend_intents i WHERE i.id = alerts.entity_id AND i.state = 'QUARANTINED')"
    ),
    // Raised anew every hour, while it lasts.
    resolved_when!(
        "kind IN ('KEK_LOST', 'CHECKPOINT_FAILED', 'TENANT_DESTRUCTION_STUCK') AND raised_at <= $1 - 7200000000"
    ),
    // Every day.
    resolved_when!("kind = 'DATA_KEY_UNDECRYPTABLE' AND raised_at <= $1 - 172800000000"),
    // Something that has happened, and is old news after a week.
    resolved_when!(
        "ends_at IS NULL AND raised_at <= $1 - 604800000000 AND kind NOT IN ('KEY_OVERDUE', 'ROTATION_WAITING', \
         'KEY_COMPROMISED', 'API_KEY_EXPIRING', 'CREDENTIAL_OVERDUE', 'CREDENTIAL_DUE', 'CREDENTIAL_OLD_VALUE_ALIVE', \
         'CREDENTIAL_ROTATION_WAITING', 'CREDENTIAL_ROTATION_STUCK', 'CREDENTIAL_REFUSED', 'CREDENTIAL_OLD_VALUE_UNKNOWN', \
         'CREDENTIAL_MINTED_VALUE_LEFT', 'DESTRUCTION_SCHEDULED', 'TENANT_DESTRUCTION_SCHEDULED', 'LEFTOVER_QUARANTINED')"
    ),
];

/// Something that people should be told.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its id.
    pub id: AlertId,
    /// Tenant it is about.
    pub tenant: TenantName,
    /// Kind, UPPER_SNAKE_CASE.
    pub kind: String,
    /// Kind of entity, as in the audit log.
    pub entity: String,
    /// Its id.
    pub entity_id: String,
    /// A sentence for people; no secret.
    pub text: String,
    /// When.
    pub raised_at: Timestamp,
    /// What it is about and in which window: the same alert is not raised twice.
    pub window_key: String,
}

/// State of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertState {
    /// What it says holds, or its window is not over yet.
    Firing,
    /// Its window is over, or what it was about was mended.
    Resolved,
}

impl AlertState {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "FIRING",
            Self::Resolved => "RESOLVED",
        }
    }
}

impl std::str::FromStr for AlertState {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        match text {
            "FIRING" => Ok(Self::Firing),
            "RESOLVED" => Ok(Self::Resolved),
            _ => Err(Error::internal(format!("alert state {text:?}"))),
        }
    }
}

/// An alert and what became of it.
#[derive(Clone, Debug)]
pub struct ToldAlert {
    /// What was raised.
    pub alert: Alert,
    /// Its state.
    pub state: AlertState,
    /// When it was resolved.
    pub resolved_at: Option<Timestamp>,
    /// Id of the principal that acknowledged it.
    pub acked_by: Option<String>,
    /// When.
    pub acked_at: Option<Timestamp>,
    /// What they said.
    pub ack_note: String,
}

/// Which alerts a listing shows.
#[derive(Clone, Debug)]
pub struct AlertFilter {
    /// Tenant.
    pub tenant: TenantName,
    /// In this state only.
    pub state: Option<AlertState>,
    /// Of this kind only; empty for every kind.
    pub kind: String,
    /// Only those that nobody has acknowledged.
    pub unacknowledged: bool,
}

/// An alert of which no delivery was made yet.
#[derive(Clone, Debug)]
pub struct UnroutedAlert {
    /// Its id.
    pub id: AlertId,
    /// Its tenant.
    pub tenant: TenantName,
    /// Its kind.
    pub kind: String,
}

#[derive(sqlx::FromRow)]
struct ToldRow {
    id: String,
    tenant: String,
    kind: String,
    entity: String,
    entity_id: String,
    text: String,
    state: String,
    raised_at: i64,
    resolved_at: Option<i64>,
    acked_by: Option<String>,
    acked_at: Option<i64>,
    ack_note: String,
    window_key: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    kind: String,
    entity: String,
    entity_id: String,
    text: String,
    raised_at: i64,
    window_key: String,
}

impl Tx {
    /// Raises an alert; false when this window has it already.
    pub async fn raise_alert(&mut self, a: &Alert) -> Result<bool> {
        let rows = execute!(
            self,
            RAISE,
            a.id.to_string(),
            a.tenant.as_str(),
            &a.kind,
            &a.entity,
            &a.entity_id,
            &a.text,
            a.raised_at.micros(),
            &a.window_key,
        )?;
        Ok(rows == 1)
    }

    /// As `raise_alert`, for one about a window of time: it is resolved at `ends_at`.
    pub async fn raise_alert_until(&mut self, a: &Alert, ends_at: Timestamp) -> Result<bool> {
        let is_new = self.raise_alert(a).await?;
        if is_new {
            execute!(self, END, a.id.to_string(), ends_at.micros())?;
        }
        Ok(is_new)
    }

    /// How many things have an alert of this kind about the window of the tenant that ends then.
    pub async fn alerts_of_window(
        &mut self,
        kind: &str,
        tenant: &TenantName,
        ends_at: Timestamp,
    ) -> Result<i64> {
        let (tenant, ends_at) = (tenant.as_str(), ends_at.micros());
        let row = fetch_in!(self, (i64,), OF_WINDOW, kind, tenant, ends_at, SUMMARY)?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Resolves what is over or mended at `now`; how many.
    pub async fn resolve_alerts(&mut self, now: Timestamp) -> Result<u64> {
        let mut resolved = 0;
        for sql in RESOLVE {
            resolved += execute!(self, sql, now.micros())?;
        }
        Ok(resolved)
    }

    /// An alert of this tenant.
    pub async fn alert(&mut self, id: AlertId, tenant: &TenantName) -> Result<Option<ToldAlert>> {
        let row = fetch_in!(self, ToldRow, ONE, id.to_string(), tenant.as_str())?;
        row.map(ToldRow::told).transpose()
    }

    /// Notes who has seen an alert; false when somebody has already.
    pub async fn ack_alert(
        &mut self,
        id: AlertId,
        by: &str,
        at: Timestamp,
        note: &str,
    ) -> Result<bool> {
        Ok(execute!(self, ACK, id.to_string(), by, at.micros(), note)? == 1)
    }

    /// Notes that the deliveries of an alert are made.
    pub async fn note_routed(&mut self, id: AlertId, now: Timestamp) -> Result<()> {
        execute!(self, ROUTED, id.to_string(), now.micros()).map(|_| ())
    }

    /// Forgets resolved alerts that were raised before `before`; how many.
    pub async fn prune_alerts(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, before.micros())
    }
}

impl Db {
    /// Up to `limit` alerts before the one with the id `before`, newest first.
    pub async fn alerts(
        &self,
        filter: &AlertFilter,
        before: &str,
        limit: i64,
    ) -> Result<Vec<ToldAlert>> {
        let rows = fetch_all!(
            self,
            ToldRow,
            PAGE,
            filter.tenant.as_str(),
            filter.state.map_or("", AlertState::as_str),
            &filter.kind,
            i64::from(filter.unacknowledged),
            before,
            limit,
        )?;
        rows.into_iter().map(ToldRow::told).collect()
    }

    /// Up to `limit` alerts of which no deliveries were made yet, oldest first.
    pub async fn unrouted_alerts(&self, limit: i64) -> Result<Vec<UnroutedAlert>> {
        let rows = fetch_all!(self, (String, String, String), UNROUTED, limit)?;
        let unrouted = rows.into_iter().map(|(id, tenant, kind)| {
            Ok(UnroutedAlert {
                id: parse("alert id", &id)?,
                tenant: parse("tenant", &tenant)?,
                kind,
            })
        });
        unrouted.collect()
    }

    /// One alert, of whatever tenant.
    pub async fn alert_to_deliver(&self, id: AlertId) -> Result<Option<ToldAlert>> {
        let row = fetch_optional!(self, ToldRow, BY_ID, id.to_string())?;
        row.map(ToldRow::told).transpose()
    }

    /// The alerts about an entity, oldest first.
    pub async fn alerts_about(&self, entity_id: &str) -> Result<Vec<Alert>> {
        fetch_all!(self, Row, OF_ENTITY, entity_id)?
            .into_iter()
            .map(|row| {
                Ok(Alert {
                    id: parse("alert id", &row.id)?,
                    tenant: parse("tenant", &row.tenant)?,
                    kind: row.kind,
                    entity: row.entity,
                    entity_id: row.entity_id,
                    text: row.text,
                    raised_at: Timestamp::from_micros(row.raised_at),
                    window_key: row.window_key,
                })
            })
            .collect()
    }
}

impl ToldRow {
    fn told(self) -> Result<ToldAlert> {
        Ok(ToldAlert {
            state: parse("alert state", &self.state)?,
            resolved_at: self.resolved_at.map(Timestamp::from_micros),
            acked_by: self.acked_by,
            acked_at: self.acked_at.map(Timestamp::from_micros),
            ack_note: self.ack_note,
            alert: Alert {
                id: parse("alert id", &self.id)?,
                tenant: parse("tenant", &self.tenant)?,
                kind: self.kind,
                entity: self.entity,
                entity_id: self.entity_id,
                text: self.text,
                raised_at: Timestamp::from_micros(self.raised_at),
                window_key: self.window_key,
            },
        })
    }
}
