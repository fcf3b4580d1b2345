//! Counts the calls that use something, by principal, and the strangers that were turned away, by address. In memory: a call
//! writes nothing for it, and what was not written before a crash is not counted.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::model::{AccessKind, Action, Principal, PrincipalId, PrincipalKind, TenantName};

/// Principals and addresses that are counted between two writes; of the rest `claviger_usage_uncounted_total` counts the
/// calls.
const MOST: usize = 20_000;

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whose {
    /// A principal that called.
    Principal(PrincipalId),
    /// Where somebody came from who was turned away; of IPv6 the /64, which is what one subscriber has.
    Stranger(IpAddr),
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Home tenant of the principal; of strangers, the platform's.
    pub tenant: TenantName,
    /// Calls.
    pub calls: i64,
    /// Those of them that failed or were refused.
    pub failures: i64,
}

/// What no row has yet.
#[derive(Default)]
pub struct Meter(Mutex<HashMap<Whose, Counted>>);

impl Meter {
    /// Counts a call, if it is one that uses something. Telling what was used elsewhere is no use of anything.
    pub(super) fn call(&self, principal: &Principal, action: Action, succeeded: bool) {
        let counts = action.kind() == AccessKind::Data
            && !matches!(action, Action::RecordUsage | Action::AcquireUsage)
            && principal.kind != PrincipalKind::Job;
        if counts {
            let failures = i64::from(!succeeded);
            self.count(Whose::Principal(principal.id), &principal.tenant, failures);
        }
    }

    /// Counts somebody who was turned away.
    pub(super) fn stranger(&self, source: IpAddr) {
        self.count(Whose::Stranger(prefix(source)), &TenantName::system(), 1);
    }

    fn count(&self, whose: Whose, tenant: &TenantName, failures: i64) {
        let mut counted = self.lock();
        if let Some(found) = counted.get_mut(&whose) {
            found.calls += 1;
            found.failures += failures;
        } else if counted.len() < MOST {
            let first = Counted {
                tenant: tenant.clone(),
                calls: 1,
                failures,
            };
            counted.insert(whose, first);
        } else {
            metrics::counter!("claviger_usage_uncounted_total").increment(1);
        }
    }

    /// Takes what was counted. It comes back unless it is said to be written.
    pub fn take(&self) -> Taken<'_> {
        Taken {
            meter: self,
            counted: std::mem::take(&mut *self.lock()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts on their way to the database.
pub struct Taken<'a> {
    meter: &'a Meter,
    counted: HashMap<Whose, Counted>,
}

impl Taken<'_> {
    /// Is there nothing to write?
    pub fn is_empty(&self) -> bool {
        self.counted.is_empty()
    }

    /// What is to be written.
    pub fn iter(&self) -> impl Iterator<Item = (&Whose, &Counted)> {
        self.counted.iter()
    }

    /// It is written.
    pub fn written(mut self) {
        self.counted.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.counted.is_empty() {
            return;
        }
        let mut meter = self.meter.lock();
        for (whose, counted) in self.counted.drain() {
            match meter.get_mut(&whose) {
                Some(found) => {
                    found.calls += counted.calls;
                    found.failures += counted.failures;
                }
                None => {
                    meter.insert(whose, counted);
                }
            }
        }
    }
}

fn prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits() >> 64 << 64;
            IpAddr::V6(bits.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_counted_at_the_next_time() {
        let meter = Meter::default();
        let here: IpAddr = "192.0.2.1".parse().expect("an address");
        meter.stranger(here);
        meter.stranger(here);
        let taken = meter.take();
        meter.stranger(here);
        drop(taken);
        let taken = meter.take();
        let counts: Vec<_> = taken
            .iter()
            .map(|(w, c)| (*w, c.calls, c.failures))
            .collect();
        assert_eq!(counts, [(Whose::Stranger(here), 3, 3)]);
        taken.written();
        assert!(meter.take().is_empty());
    }

    #[test]
    fn addresses_of_one_subscriber_are_one() {
        let meter = Meter::default();
        for n in 0..100_u16 {
            let source = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, n, n, n, n);
            meter.stranger(source.into());
        }
        assert_eq!(meter.take().iter().count(), 1);
    }

    #[test]
    fn the_number_of_those_who_are_counted_is_bounded() {
        let meter = Meter::default();
        for n in 0..30_000_u32 {
            meter.stranger(std::net::Ipv4Addr::from(n).into());
        }
        assert_eq!(meter.take().iter().count(), MOST);
    }
}
