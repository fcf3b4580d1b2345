//! Uses of keys whose answer leaves in pieces.
//!
//! `access` lets one answer go and is done. A stream goes on: it is recorded when it begins, before its first piece
//! leaves, and again when it ends, however it ends. In between every single piece asks what an answer asks once: is the
//! replica fresh, and does every condition of `Permit::release_if` hold? As long as nothing has changed that is a few
//! look-ups in memory, far less than a piece costs otherwise, so there is no window in which a frozen key goes on.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Freshness, Gate, Permit,
    crowd::{Crowd, Seat},
    outcome_of, record,
    release::Conditions,
};
use crate::{
    audit::{AccessLog, Outcome, Record},
    error::{Error, Reason, Result},
    model::{Action, Caller, Resource, TenantName},
};

/// Streams that may be open on this replica at the same time.
#[derive(Clone, Copy, Debug)]
pub struct MostStreams {
    /// Of one principal.
    pub per_principal: usize,
    /// Of all principals of one tenant.
    pub per_tenant: usize,
    /// Of everybody.
    pub in_all: usize,
}

/// Who has how many streams open.
#[derive(Default)]
pub struct Streams {
    principals: Crowd,
    tenants: Crowd<TenantName>,
    all: Crowd<()>,
}

impl Streams {
    /// Errors: which bound was reached.
    fn enter(&self, caller: &Caller, most: MostStreams) -> std::result::Result<Seats, String> {
        let principal = &caller.principal;
        let full = |whose: &str, most: usize| {
            format!("{whose} has {most} streams open, the most it may; end one, or retry later")
        };
        let of_principal = self.principals.take(principal.id, most.per_principal);
        let of_principal =
            of_principal.ok_or_else(|| full("this principal", most.per_principal))?;
        let of_tenant = self.tenants.take(principal.tenant.clone(), most.per_tenant);
        let of_tenant = of_tenant.ok_or_else(|| full("your tenant", most.per_tenant))?;
        let of_all = self.all.take((), most.in_all);
        let of_all = of_all.ok_or_else(|| full("this replica", most.in_all))?;
        Ok((of_principal, of_tenant, of_all))
    }
}

type Seats = (Seat, Seat<TenantName>, Seat<()>);

/// One of the streams that may be open; given back when dropped. `claviger_streams_open` counts them.
pub struct Place {
    _seats: Seats,
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("claviger_streams_open").decrement(1.0);
    }
}

/// A use of a key that goes on. Dropped before `end`, its caller has left, and the record says so.
pub struct Ongoing {
    freshness: Arc<Freshness>,
    conditions: Conditions,
    ending: Ending,
    _place: Place,
}

impl Gate {
    /// A place for one more stream of this caller.
    ///
    /// Errors: OVERLOADED.
    pub fn admit_stream(&self, caller: &Caller, most: MostStreams) -> Result<Place> {
        let seats = self.streams.enter(caller, most).map_err(|full| {
            metrics::counter!("claviger_streams_shed_total").increment(1);
            Error::new(Reason::Overloaded, full).retry_after(Duration::from_secs(1))
        })?;
        metrics::gauge!("claviger_streams_open").increment(1.0);
        Ok(Place { _seats: seats })
    }

    /// As `access`, for an answer that leaves in pieces: `act` returns what makes them, and details for both rows. When
    /// this returns, the row that the stream has begun is durable; the other one is `Ongoing::end`'s. `stream` in the
    /// details of both is the same.
    ///
    /// Errors: as `access`; then nothing has begun, and there is one row.
    pub async fn open<T, F, Fut>(
        &self,
        place: Place,
        caller: &Caller,
        action: Action,
        resource: Resource,
        act: F,
    ) -> Result<(T, Ongoing)>
    where
        F: FnOnce(Permit) -> Fut,
        Fut: Future<Output = Result<(T, Map<String, Value>)>>,
    {
        let mut ending = Ending {
            log: self.log.clone(),
            record: None,
            details: Map::new(),
            released: 0,
        };
        let last = record(caller, action, &resource);
        let begun = async |permit: Permit| {
            let conditions = permit.conditions();
            let (value, details) = act(permit).await?;
            let begun = ending.arm(last, details);
            Ok(((value, conditions), begun))
        };
        let opened = self.access(caller, action, resource, begun).await;
        match opened {
            Ok((value, conditions)) => {
                let freshness = Arc::clone(&self.freshness);
                let ongoing = Ongoing {
                    freshness,
                    conditions,
                    ending,
                    _place: place,
                };
                Ok((value, ongoing))
            }
            Err(error) => {
                // It has its row, or gets one where every error does.
                ending.record = None;
                Err(error)
            }
        }
    }
}

impl Gate {
    /// May the caller still do this? For conditions of a stream that outlives the decision it began with.
    ///
    /// Errors: as `access`, of its decision.
    pub fn recheck(&self, caller: &Caller, action: Action, resource: &Resource) -> Result<()> {
        self.authorize(caller, action, resource)
    }
}

impl Ongoing {
    /// Lets a piece of `bytes` bytes leave, now. Ask when it is made and about to go, not before it waits for anything.
    ///
    /// Errors: REPLICA_STALE; of the first condition that does not hold any more. Then no further piece may leave.
    pub async fn release(&mut self, bytes: usize) -> Result<()> {
        self.conditions.hold().await?;
        // Last: a condition may have waited for a database that this replica has lost sight of.
        self.freshness.check()?;
        self.ending.released += bytes as u64;
        Ok(())
    }

    /// Bytes that have left.
    pub const fn released(&self) -> u64 {
        self.ending.released
    }

    /// Records how the stream ended. A caller may be told that it is complete only after this.
    ///
    /// Errors: the error it failed with, as recorded; AUDIT_UNAVAILABLE.
    pub async fn end(mut self, outcome: Result<()>) -> Result<()> {
        let reason = outcome.as_ref().err().map(Error::reason);
        let Some(mut record) = self.ending.take(reason.map(Reason::as_str)) else {
            return Err(Error::internal("the end of a stream was recorded twice"));
        };
        let log = &self.ending.log;
        match outcome {
            Ok(()) if log.records_success() => log.append(record).await,
            Ok(()) => Ok(()),
            Err(error) => {
                record.outcome = outcome_of(&error);
                log.append(record).await?;
                Err(error.recorded())
            }
        }
    }
}

/// The row that a stream will have ended.
struct Ending {
    log: AccessLog,
    record: Option<Record>,
    details: Map<String, Value>,
    released: u64,
}

impl Ending {
    /// From now on the end is recorded. Returns the details of the row that says it has begun.
    fn arm(&mut self, record: Record, mut details: Map<String, Value>) -> String {
        details.insert("stream".into(), json!(Uuid::now_v7().to_string()));
        let mut begun = details.clone();
        begun.insert("part".into(), json!("begun"));
        self.details = details;
        self.record = Some(record);
        Value::Object(begun).to_string()
    }

    /// The row, once.
    fn take(&mut self, reason: Option<&'static str>) -> Option<Record> {
        let mut record = self.record.take()?;
        let mut details = std::mem::take(&mut self.details);
        details.insert("part".into(), json!("ended"));
        details.insert("bytes".into(), json!(self.released));
        if let Some(reason) = reason {
            details.insert("reason".into(), json!(reason));
        }
        record.data = Value::Object(details).to_string();
        Some(record)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(mut record) = self.take(Some("ABANDONED")) {
            record.outcome = Outcome::Failed;
            self.log.append_unawaited(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Job, PrincipalId};

    fn caller(tenant: &str) -> Caller {
        let mut caller = Job::Scheduler.caller();
        let mut principal = (*caller.principal).clone();
        principal.id = PrincipalId::random();
        principal.tenant = tenant.parse().unwrap();
        caller.principal = principal.into();
        caller
    }

    #[test]
    fn one_tenant_cannot_take_the_streams_of_all() {
        let streams = Streams::default();
        let most = MostStreams {
            per_principal: 2,
            per_tenant: 3,
            in_all: 5,
        };
        let loud = [caller("acme"), caller("acme")];
        let enter = |who: &Caller| streams.enter(who, most).expect("a place");
        let full = |who: &Caller| streams.enter(who, most).err().expect("full");
        let mut seats: Vec<_> = (0..2).map(|_| enter(&loud[0])).collect();
        assert!(full(&loud[0]).contains("this principal"));
        seats.push(enter(&loud[1]));
        assert!(full(&loud[1]).contains("your tenant"));
        // What was refused has kept nothing.
        let quiet = [caller("globex"), caller("initech")];
        seats.push(enter(&quiet[0]));
        seats.push(enter(&quiet[0]));
        assert!(full(&quiet[1]).contains("this replica"));
        seats.remove(0);
        seats.push(enter(&quiet[1]));
        assert!(full(&loud[1]).contains("this replica"));
    }
}
