//! Counts the calls that use something, by principal, and the strangers that were turned away, by address. In memory: a call
//! writes nothing for it, and what was not written before a crash is not counted.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::model::{AccessKind, Action, Principal, PrincipalId, PrincipalKind, TenantName};

/// Principals that are counted between two writes; of the rest `claviger_usage_uncounted_total` counts the calls.
const MOST_PRINCIPALS: usize = 20_000;
/// Addresses that are counted apart between two writes; the rest are counted together.
const MOST_STRANGERS: usize = 1_000;

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whose {
    /// A principal that called.
    Principal(PrincipalId),
    /// Where somebody came from who was turned away; of IPv6 the /64, which is what one subscriber has.
    Stranger(IpAddr),
    /// Strangers from more addresses than are told apart.
    Crowd,
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

/// What no row has yet. Bounded, however many call and however long nothing can be written; strangers take no place away
/// from principals.
#[derive(Default)]
pub struct Meter(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    counted: HashMap<Whose, Counted>,
    /// How many of them are addresses.
    strangers: usize,
}

impl Counts {
    /// Adds to what is counted; false when there is nothing yet to add to.
    fn adds(&mut self, whose: &Whose, calls: i64, failures: i64) -> bool {
        let Some(found) = self.counted.get_mut(whose) else {
            return false;
        };
        found.calls = found.calls.saturating_add(calls);
        found.failures = found.failures.saturating_add(failures);
        true
    }

    fn add(&mut self, whose: Whose, more: Counted) {
        if self.adds(&whose, more.calls, more.failures) {
            return;
        }
        let principals = self.counted.len().saturating_sub(self.strangers);
        match whose {
            Whose::Stranger(_) if self.strangers >= MOST_STRANGERS => {
                return self.add(Whose::Crowd, more);
            }
            Whose::Principal(_) if principals >= MOST_PRINCIPALS => {
                let lost = more.calls.unsigned_abs();
                metrics::counter!("claviger_usage_uncounted_total").increment(lost);
                return;
            }
            Whose::Stranger(_) => self.strangers += 1,
            Whose::Principal(_) | Whose::Crowd => {}
        }
        self.counted.insert(whose, more);
    }
}

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
        let mut counts = self.lock();
        if !counts.adds(&whose, 1, failures) {
            let once = Counted {
                tenant: tenant.clone(),
                calls: 1,
                failures,
            };
            counts.add(whose, once);
        }
    }

    /// Takes what was counted. What is not said to be written comes back.
    pub fn take(&self) -> Taken<'_> {
        let taken = std::mem::take(&mut *self.lock());
        Taken {
            meter: self,
            counted: taken.counted.into_iter().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts on their way to the database.
pub struct Taken<'a> {
    meter: &'a Meter,
    counted: Vec<(Whose, Counted)>,
}

impl Taken<'_> {
    /// The next that are to be written, `most` of them at most; nothing when all is.
    pub fn next(&self, most: usize) -> &[(Whose, Counted)] {
        let from = self.counted.len().saturating_sub(most);
        self.counted.get(from..).unwrap_or_default()
    }

    /// What `next` gave for so many is written.
    pub fn written(&mut self, most: usize) {
        let left = self.counted.len().saturating_sub(most);
        self.counted.truncate(left);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.counted.is_empty() {
            return;
        }
        let mut meter = self.meter.lock();
        for (whose, counted) in self.counted.drain(..) {
            meter.add(whose, counted);
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

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn taken(meter: &Meter) -> Vec<(Whose, i64, i64)> {
        let taken = meter.take();
        let all = taken.next(usize::MAX).iter();
        all.map(|(w, c)| (*w, c.calls, c.failures)).collect()
    }

    #[test]
    fn what_could_not_be_written_is_counted_at_the_next_time() {
        let meter = Meter::default();
        let here = address(1);
        meter.stranger(here);
        meter.stranger(here);
        let first = meter.take();
        meter.stranger(here);
        drop(first);
        let mut all = meter.take();
        assert_eq!(all.next(9)[0].0, Whose::Stranger(here));
        assert_eq!((all.next(9)[0].1.calls, all.next(9)[0].1.failures), (3, 3));
        all.written(9);
        drop(all);
        assert!(taken(&meter).is_empty());
    }

    #[test]
    fn what_is_written_in_pieces_does_not_come_back() {
        let meter = Meter::default();
        (0..10).for_each(|n| meter.stranger(address(n)));
        let mut all = meter.take();
        let first: Vec<_> = all.next(4).iter().map(|(whose, _)| *whose).collect();
        all.written(4);
        drop(all);
        let left = taken(&meter);
        assert_eq!((first.len(), left.len()), (4, 6));
        assert!(left.iter().all(|(whose, ..)| !first.contains(whose)));
    }

    #[test]
    fn addresses_of_one_subscriber_are_one() {
        let meter = Meter::default();
        for n in 0..100_u16 {
            let source = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, n, n, n, n);
            meter.stranger(source.into());
        }
        assert_eq!(taken(&meter).len(), 1);
    }

    #[test]
    fn strangers_are_bounded_and_none_is_forgotten() {
        let meter = Meter::default();
        // Nothing can be written for a long time.
        for round in 0..3 {
            let kept = meter.take();
            for n in 0..10_000 {
                meter.stranger(address(round * 10_000 + n));
            }
            drop(kept);
        }
        let all = taken(&meter);
        assert_eq!(all.len(), MOST_STRANGERS + 1);
        assert!(all.iter().any(|(whose, ..)| *whose == Whose::Crowd));
        assert_eq!(all.iter().map(|(_, calls, _)| calls).sum::<i64>(), 30_000);
    }

    #[test]
    fn strangers_take_no_place_away_from_principals() {
        let meter = Meter::default();
        (0..30_000).for_each(|n| meter.stranger(address(n)));
        let tenant = TenantName::system();
        let count = |_| meter.count(Whose::Principal(PrincipalId::random()), &tenant, 0);
        (0..30_000).for_each(count);
        let all = taken(&meter);
        let principals = all
            .iter()
            .filter(|(w, ..)| matches!(w, Whose::Principal(_)));
        // The crowd has a place, too.
        assert_eq!(principals.count(), MOST_PRINCIPALS - 1);
    }
}
