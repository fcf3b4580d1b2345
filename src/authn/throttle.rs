//! Failed authentications, bounded per source and per id.
//!
//! Only failures are counted and only failures are throttled: a credential that counts is never refused here, so nobody
//! can lock its owner out by failing in its name or from its network. Over the bound a failure is answered with
//! TOO_MANY_FAILURES, is counted and not recorded on its own, and the database is asked about few of them at a time. The state is this
//! replica's own, and bounded. 256-bit secrets need no throttle against guessing; it keeps the log readable and the
//! database free.

use std::{net::IpAddr, time::Duration};

use quick_cache::sync::Cache;
use tokio::time::Instant;

/// Sources and ids that are remembered; the rest begins anew.
const REMEMBERED: usize = 20_000;

/// Buckets of failures.
pub struct Throttle {
    per_minute: u32,
    buckets: Cache<Whose, Bucket>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Whose {
    /// An address; of IPv6 the /64, which is what one subscriber has.
    Source(IpAddr),
    /// An id that was claimed, whether it exists or not.
    Id([u8; 16]),
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Throttle {
    /// `per_minute` failures per source and per id.
    pub fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            buckets: Cache::new(REMEMBERED),
        }
    }

    /// May a credential from here, that is not known in memory, be looked up? Takes nothing away.
    pub fn may_look(&self, source: IpAddr) -> bool {
        self.left(&Whose::Source(prefix(source))) >= 1.0
    }

    /// Notes a failure. False when the source or the id it claimed is over its bound.
    pub fn failed(&self, source: IpAddr, id: Option<[u8; 16]>) -> bool {
        // Both, whatever the first says.
        let of_source = self.take(Whose::Source(prefix(source)));
        let of_id = id.is_none_or(|id| self.take(Whose::Id(id)));
        of_source && of_id
    }

    fn left(&self, whose: &Whose) -> f64 {
        let full = f64::from(self.per_minute);
        self.buckets.get(whose).map_or(full, |bucket| {
            let refilled = bucket.at.elapsed().as_secs_f64() * full / 60.0;
            (bucket.left + refilled).min(full)
        })
    }

    fn take(&self, whose: Whose) -> bool {
        let left = self.left(&whose);
        let bucket = Bucket {
            left: (left - 1.0).max(0.0),
            at: Instant::now(),
        };
        self.buckets.insert(whose, bucket);
        left >= 1.0
    }
}

/// When to try again after TOO_MANY_FAILURES.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);

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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_source_is_over_its_bound_until_a_minute_has_passed() {
        let throttle = Throttle::new(3);
        for _ in 0..3 {
            assert!(throttle.may_look(HERE));
            assert!(throttle.failed(HERE, None));
        }
        assert!(!throttle.may_look(HERE));
        assert!(!throttle.failed(HERE, None));
        let elsewhere = "192.0.2.1".parse().expect("an address");
        assert!(throttle.failed(elsewhere, None));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(throttle.failed(HERE, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_bounded_over_all_sources() {
        let throttle = Throttle::new(3);
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        for n in 0..3 {
            assert!(throttle.failed(from(n), Some([7; 16])));
        }
        assert!(!throttle.failed(from(9), Some([7; 16])));
        assert!(throttle.failed(from(9), Some([8; 16])));
    }

    #[tokio::test(start_paused = true)]
    async fn one_subscriber_has_one_bucket_whatever_its_address() {
        let throttle = Throttle::new(1);
        let one = "2001:db8:1:2::1".parse().expect("an address");
        let other = "2001:db8:1:2:ffff::9".parse().expect("an address");
        let neighbour = "2001:db8:1:3::1".parse().expect("an address");
        assert!(throttle.failed(one, None));
        assert!(!throttle.failed(other, None));
        assert!(throttle.failed(neighbour, None));
        let mapped = "::ffff:192.0.2.1".parse().expect("an address");
        assert!(throttle.failed(mapped, None));
        assert!(!throttle.may_look("192.0.2.1".parse().expect("an address")));
    }
}
