//! Tables `incidents` and `incident_notes`, and the rows of the admin stream that make an incident's timeline.

use super::{
    AuditRow, Db, Result, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{
    Incident, IncidentId, IncidentNote, IncidentState, KeyId, Kid, TenantName, Timestamp,
};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT i.id, i.tenant, i.key_id, k.name AS key_name, i.kid, i.state, i.reason, i.declared_by, i.declared_at, \
             i.needs_successor, i.successor_kid, i.switched_at, i.postmortem, i.close_requested_by, \
             i.close_requested_at, i.closed_by, i.closed_at FROM incidents i JOIN keys k ON k.id = i.key_id ",
            $rest
        )
    };
}

const INSERT: &str = "INSERT INTO incidents (id, tenant, key_id, kid, state, reason, declared_by, declared_at, \
     needs_successor, successor_kid, switched_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
const BY_ID: &str = select!("WHERE i.id = $1");
const BY_KID: &str = select!("WHERE i.kid = $1");
const OPEN_BY_SUCCESSOR: &str = select!("WHERE i.successor_kid = $1 AND i.state <> 'CLOSED'");
const PAGE: &str = select!(
    "WHERE i.tenant = $1 AND i.id < $2 AND ($3 = '' OR i.state = $3) ORDER BY i.id DESC LIMIT $4"
);
const UNSWITCHED: &str = select!(
    "WHERE i.needs_successor = 1 AND i.successor_kid IS NULL AND i.declared_at < $1 \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = i.tenant AND t.erased_at IS NOT NULL) ORDER BY i.id"
);
const SWITCH: &str = "UPDATE incidents SET successor_kid = $2, switched_at = $3 \
     WHERE id = $1 AND needs_successor = 1 AND successor_kid IS NULL";
const CLOSE: &str = "UPDATE incidents SET state = $4, postmortem = $5, close_requested_by = $6, \
     close_requested_at = $7, closed_by = $8, closed_at = $9 WHERE id = $1 AND state = $2 AND postmortem = $3";
const HOLD_OPEN: &str = "UPDATE incidents SET state = state WHERE id = $1 AND state <> 'CLOSED'";
const INSERT_NOTE: &str =
    "INSERT INTO incident_notes (id, incident_id, author, at, text) VALUES ($1, $2, $3, $4, $5)";
const NOTES: &str =
    "SELECT id, author, at, text FROM incident_notes WHERE incident_id = $1 ORDER BY id";
// Who has no role for it can knock as often as they like, and must not fill the timeline by that.
const TIMELINE: &str = "SELECT stream, seq, at, tenant, actor, actor_type, action, entity, entity_id, outcome, \
     request_id, data, prev_hash, hash FROM audit_events WHERE stream = 'admin' AND tenant = $1 AND at >= $2 \
     AND (outcome <> 'refused' OR data NOT LIKE '%PERMISSION_DENIED%') \
     AND entity_id IN (SELECT id FROM incidents WHERE id = $3 UNION ALL SELECT id FROM keys WHERE id = $4 \
     UNION ALL SELECT id FROM rotations WHERE key_id = $4 \
     UNION ALL SELECT id FROM key_destructions WHERE key_id = $4) ORDER BY seq LIMIT $5";

/// Greater than every UUID in canonical text.
const AFTER_EVERY_ID: &str = "g";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    key_id: String,
    key_name: String,
    kid: String,
    state: String,
    reason: String,
    declared_by: String,
    declared_at: i64,
    needs_successor: i64,
    successor_kid: Option<String>,
    switched_at: Option<i64>,
    postmortem: String,
    close_requested_by: Option<String>,
    close_requested_at: Option<i64>,
    closed_by: Option<String>,
    closed_at: Option<i64>,
}

impl Tx {
    /// The incident about this version, as this transaction sees it.
    pub async fn incident_about(&mut self, kid: &Kid) -> Result<Option<Incident>> {
        let row = fetch_in!(self, Row, BY_KID, kid.as_str())?;
        row.map(Incident::try_from).transpose()
    }

    /// Opens an incident. Errors: `Exists` when there is one about this version.
    pub async fn insert_incident(&mut self, i: &Incident) -> Result<()> {
        execute!(
            self,
            INSERT,
            i.id.to_string(),
            i.tenant.as_str(),
            i.key_id.to_string(),
            i.kid.as_str(),
            i.state.as_str(),
            &i.reason,
            i.declared_by.to_string(),
            i.declared_at.micros(),
            i64::from(i.needs_successor),
            i.successor_kid.as_ref().map(Kid::as_str),
            i.switched_at.map(Timestamp::micros),
        )
        .map(|_| ())
    }

    /// Records the successor of an incident that needs one and has none; false when it has.
    pub async fn switch_incident(&mut self, i: &Incident) -> Result<bool> {
        let rows = execute!(
            self,
            SWITCH,
            i.id.to_string(),
            i.successor_kid.as_ref().map(Kid::as_str),
            i.switched_at.map(Timestamp::micros),
        )?;
        Ok(rows == 1)
    }

    /// Writes what closing changes, if state and postmortem are still those of `before`; false when they are not.
    pub async fn close_incident(&mut self, i: &Incident, before: &Incident) -> Result<bool> {
        let rows = execute!(
            self,
            CLOSE,
            i.id.to_string(),
            before.state.as_str(),
            &before.postmortem,
            i.state.as_str(),
            &i.postmortem,
            i.close_requested_by.map(|id| id.to_string()),
            i.close_requested_at.map(Timestamp::micros),
            i.closed_by.map(|id| id.to_string()),
            i.closed_at.map(Timestamp::micros),
        )?;
        Ok(rows == 1)
    }

    /// Adds a note to an incident that is not closed, and cannot be before this transaction ends; false when it is.
    pub async fn insert_note(&mut self, id: IncidentId, note: &IncidentNote) -> Result<bool> {
        if execute!(self, HOLD_OPEN, id.to_string())? == 0 {
            return Ok(false);
        }
        execute!(
            self,
            INSERT_NOTE,
            note.id.to_string(),
            id.to_string(),
            note.author.to_string(),
            note.at.micros(),
            &note.text,
        )?;
        Ok(true)
    }
}

impl Db {
    /// The incident with this id.
    pub async fn incident(&self, id: IncidentId) -> Result<Option<Incident>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(Incident::try_from).transpose()
    }

    /// The incident about this version.
    pub async fn incident_about(&self, kid: &Kid) -> Result<Option<Incident>> {
        let row = fetch_optional!(self, Row, BY_KID, kid.as_str())?;
        row.map(Incident::try_from).transpose()
    }

    /// The incident that made this version ACTIVE and is not closed yet.
    pub async fn open_incident_with_successor(&self, kid: &Kid) -> Result<Option<Incident>> {
        let row = fetch_optional!(self, Row, OPEN_BY_SUCCESSOR, kid.as_str())?;
        row.map(Incident::try_from).transpose()
    }

    /// Up to `limit` incidents of a tenant before `before` (empty: from the newest), newest first.
    pub async fn incidents(
        &self,
        tenant: &TenantName,
        state: Option<IncidentState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Incident>> {
        let before = match before {
            "" => AFTER_EVERY_ID,
            id => id,
        };
        let state = state.map_or("", IncidentState::as_str);
        fetch_all!(self, Row, PAGE, tenant.as_str(), before, state, limit)?
            .into_iter()
            .map(Incident::try_from)
            .collect()
    }

    /// Incidents declared before `before` whose key has no successor yet, oldest first.
    pub async fn incidents_without_successor(&self, before: Timestamp) -> Result<Vec<Incident>> {
        fetch_all!(self, Row, UNSWITCHED, before.micros())?
            .into_iter()
            .map(Incident::try_from)
            .collect()
    }

    /// The notes of an incident, oldest first.
    pub async fn incident_notes(&self, id: IncidentId) -> Result<Vec<IncidentNote>> {
        fetch_all!(self, (String, String, i64, String), NOTES, id.to_string())?
            .into_iter()
            .map(|(id, author, at, text)| {
                Ok(IncidentNote {
                    id: parse("note id", &id)?,
                    author: parse("author", &author)?,
                    at: Timestamp::from_micros(at),
                    text,
                })
            })
            .collect()
    }

    /// Up to `limit` rows of the admin stream since `since` about an incident, its key, and the key's rotations and
    /// destructions, oldest first.
    pub async fn incident_timeline(
        &self,
        tenant: &TenantName,
        id: IncidentId,
        key: KeyId,
        since: Timestamp,
        limit: i64,
    ) -> Result<Vec<AuditRow>> {
        fetch_all!(
            self,
            AuditRow,
            TIMELINE,
            tenant.as_str(),
            since.micros(),
            id.to_string(),
            key.to_string(),
            limit,
        )
    }
}

impl TryFrom<Row> for Incident {
    type Error = super::StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let person = |column, id: Option<String>| id.map(|id| parse(column, &id)).transpose();
        let time = |at: Option<i64>| at.map(Timestamp::from_micros);
        Ok(Self {
            id: parse("incident id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            key_id: parse("key id", &row.key_id)?,
            key_name: parse("key name", &row.key_name)?,
            kid: parse("kid", &row.kid)?,
            state: parse("incident state", &row.state)?,
            reason: row.reason,
            declared_by: parse("declared_by", &row.declared_by)?,
            declared_at: Timestamp::from_micros(row.declared_at),
            needs_successor: row.needs_successor != 0,
            successor_kid: row
                .successor_kid
                .map(|kid| parse("successor kid", &kid))
                .transpose()?,
            switched_at: time(row.switched_at),
            postmortem: row.postmortem,
            close_requested_by: person("close_requested_by", row.close_requested_by)?,
            close_requested_at: time(row.close_requested_at),
            closed_by: person("closed_by", row.closed_by)?,
            closed_at: time(row.closed_at),
        })
    }
}
