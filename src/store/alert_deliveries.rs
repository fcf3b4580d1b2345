//! Table `alert_deliveries`: one alert on its way to one channel.
//!
//! Whoever delivers claims the row first, for longer than an attempt lasts: nobody else tries meanwhile, and if they die the
//! claim runs out and the next one tries again. So an alert is delivered at least once.

use std::{str::FromStr, time::Duration};

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_in},
    parse,
};
use crate::{
    error::Error,
    model::{AlertId, DeliveryId, TenantName, Timestamp},
};

const ADD: &str = "INSERT INTO alert_deliveries (id, alert_id, tenant, channel, state, attempts, next_at, created_at) \
     VALUES ($1, $2, $3, $4, 'PENDING', 0, $5, $5) ON CONFLICT (alert_id, channel) DO NOTHING";
const DUE_CHANNELS: &str =
    "SELECT DISTINCT channel FROM alert_deliveries WHERE state = 'PENDING' AND next_at <= $1";
const DUE: &str = "SELECT id, alert_id, tenant, channel, state, attempts, next_at, last_error, created_at, ended_at, taken \
     FROM alert_deliveries WHERE state = 'PENDING' AND next_at <= $1 AND channel = $3 ORDER BY next_at, id LIMIT $2";
const CLAIM: &str = "UPDATE alert_deliveries SET attempts = attempts + 1, next_at = $3 \
     WHERE id = $1 AND state = 'PENDING' AND attempts = $2 AND next_at <= $4";
const END: &str = "UPDATE alert_deliveries SET state = $3, last_error = $4, ended_at = $5, taken = $6 \
     WHERE id = $1 AND state = 'PENDING' AND attempts = $2";
const LATER: &str = "UPDATE alert_deliveries SET next_at = $3, last_error = $4, taken = $5 \
     WHERE id = $1 AND state = 'PENDING' AND attempts = $2";
const AGAIN: &str = "UPDATE alert_deliveries SET state = 'PENDING', attempts = 0, next_at = $2, ended_at = NULL \
     WHERE id = $1 AND state = 'DEAD'";
const ONE: &str = "SELECT id, alert_id, tenant, channel, state, attempts, next_at, last_error, created_at, ended_at, taken \
     FROM alert_deliveries WHERE id = $1 AND tenant = $2";
const PAGE: &str = "SELECT id, alert_id, tenant, channel, state, attempts, next_at, last_error, created_at, ended_at, taken \
     FROM alert_deliveries WHERE tenant = $1 AND ($2 = '' OR state = $2) AND ($3 = '' OR alert_id = $3) AND id < $4 \
     ORDER BY id DESC LIMIT $5";
const PRUNE: &str = "DELETE FROM alert_deliveries WHERE created_at < $1 AND state <> 'PENDING'";

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// On its way, or waiting for its next attempt.
    Pending,
    /// The channel took it.
    Delivered,
    /// Given up.
    Dead,
}

impl DeliveryState {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Delivered => "DELIVERED",
            Self::Dead => "DEAD",
        }
    }
}

impl FromStr for DeliveryState {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let all = [Self::Pending, Self::Delivered, Self::Dead];
        let found = all.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| Error::internal(format!("delivery state {text:?}")))
    }
}

/// One alert on its way to one channel.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The alert.
    pub alert: AlertId,
    /// Tenant of the alert.
    pub tenant: TenantName,
    /// Name of the channel.
    pub channel: String,
    /// Its state.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: i64,
    /// Not tried before.
    pub next_at: Timestamp,
    /// Why the last attempt failed, UPPER_SNAKE_CASE.
    pub last_error: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was delivered or given up.
    pub ended_at: Option<Timestamp>,
    /// Recipients that have it; the channel's others do not yet.
    pub taken: Vec<String>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    alert_id: String,
    tenant: String,
    channel: String,
    state: String,
    attempts: i64,
    next_at: i64,
    last_error: String,
    created_at: i64,
    ended_at: Option<i64>,
    taken: String,
}

impl Tx {
    /// Has an alert delivered to a channel, unless it is already.
    pub async fn add_delivery(
        &mut self,
        alert: AlertId,
        tenant: &TenantName,
        channel: &str,
        now: Timestamp,
    ) -> Result<()> {
        let (id, alert) = (DeliveryId::random().to_string(), alert.to_string());
        let now = now.micros();
        execute!(self, ADD, id, alert, tenant.as_str(), channel, now).map(|_| ())
    }

    /// A delivery of this tenant.
    pub async fn delivery(
        &mut self,
        id: DeliveryId,
        tenant: &TenantName,
    ) -> Result<Option<Delivery>> {
        let row = fetch_in!(self, Row, ONE, id.to_string(), tenant.as_str())?;
        row.map(Row::delivery).transpose()
    }

    /// Takes a DEAD delivery up again; false when it is not DEAD.
    pub async fn revive_delivery(&mut self, id: DeliveryId, now: Timestamp) -> Result<bool> {
        Ok(execute!(self, AGAIN, id.to_string(), now.micros())? == 1)
    }

    /// Forgets deliveries that ended and were made before `before`; how many.
    pub async fn prune_deliveries(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, before.micros())
    }
}

impl Db {
    /// The channels that have deliveries that are due.
    pub async fn due_channels(&self, now: Timestamp) -> Result<Vec<String>> {
        let rows = fetch_all!(self, (String,), DUE_CHANNELS, now.micros())?;
        Ok(rows.into_iter().map(|(channel,)| channel).collect())
    }

    /// Up to `limit` deliveries of a channel that are due.
    pub async fn due_deliveries(
        &self,
        channel: &str,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<Delivery>> {
        let rows = fetch_all!(self, Row, DUE, now.micros(), limit, channel)?;
        rows.into_iter().map(Row::delivery).collect()
    }

    /// Claims a delivery as it was read, by database time, so that nobody else tries it for `claim`. False when somebody else
    /// did first. It counts as tried from here on, whatever becomes of it.
    pub async fn claim_delivery(&self, d: &Delivery, claim: Duration) -> Result<bool> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let until = now.plus(claim).micros();
        let rows = execute!(
            &mut tx,
            CLAIM,
            d.id.to_string(),
            d.attempts,
            until,
            now.micros()
        )?;
        tx.commit().await?;
        Ok(rows == 1)
    }

    /// Ends a delivery that was claimed for attempt number `attempt`. `taken`: who has it, of those that were named.
    pub async fn end_delivery(
        &self,
        id: DeliveryId,
        attempt: i64,
        state: DeliveryState,
        (error, taken): (&str, &[String]),
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?.micros();
        execute!(
            &mut tx,
            END,
            id.to_string(),
            attempt,
            state.as_str(),
            error,
            now,
            taken.join("\n")
        )?;
        tx.commit().await
    }

    /// Has a delivery that was claimed for attempt number `attempt` tried again after `pause`, with those who have not `taken`
    /// it.
    pub async fn postpone_delivery(
        &self,
        id: DeliveryId,
        attempt: i64,
        pause: Duration,
        (error, taken): (&str, &[String]),
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let next = tx.now().await?.plus(pause).micros();
        let (id, taken) = (id.to_string(), taken.join("\n"));
        execute!(&mut tx, LATER, id, attempt, next, error, taken)?;
        tx.commit().await
    }

    /// Up to `limit` deliveries of a tenant before the one with the id `before`, newest first. What is empty is not asked
    /// for.
    pub async fn deliveries(
        &self,
        tenant: &TenantName,
        (state, alert): (Option<DeliveryState>, &str),
        before: &str,
        limit: i64,
    ) -> Result<Vec<Delivery>> {
        let state = state.map_or("", DeliveryState::as_str);
        let rows = fetch_all!(
            self,
            Row,
            PAGE,
            tenant.as_str(),
            state,
            alert,
            before,
            limit
        )?;
        rows.into_iter().map(Row::delivery).collect()
    }
}

impl Row {
    fn delivery(self) -> Result<Delivery> {
        Ok(Delivery {
            id: parse("delivery id", &self.id)?,
            alert: parse("alert id", &self.alert_id)?,
            tenant: parse("tenant", &self.tenant)?,
            channel: self.channel,
            state: parse("delivery state", &self.state)?,
            attempts: self.attempts,
            next_at: Timestamp::from_micros(self.next_at),
            last_error: self.last_error,
            created_at: Timestamp::from_micros(self.created_at),
            ended_at: self.ended_at.map(Timestamp::from_micros),
            taken: self.taken.lines().map(str::to_owned).collect(),
        })
    }
}
