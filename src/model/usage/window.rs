//! The sliding window of requests.

use std::{fmt, str::FromStr, time::Duration};

use crate::{error::Error, model::Timestamp};

/// Length of the sliding window, in seconds.
const WINDOW: i64 = 60;

/// The requests that were admitted lately, by second.
///
/// A second counts for as long as any part of it lies within the last 60 seconds, so no 60 seconds, wherever they begin,
/// hold more than the limit; in return a request counts for up to a second longer than it would have to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Seconds since the epoch, ascending, and how many were admitted in each.
    slots: Vec<(i64, i64)>,
}

impl Window {
    /// Admits `requests` at `now`, all or none; how many more could be.
    ///
    /// Errors: how long to wait until they could be admitted; None when they are more than the limit.
    pub fn admit(
        &mut self,
        now: Timestamp,
        requests: i64,
        limit: i64,
    ) -> Result<i64, Option<Duration>> {
        self.set_back(now);
        let second = now.seconds();
        self.slots.retain(|(at, _)| *at >= second - WINDOW);
        let used: i64 = self.slots.iter().map(|(_, count)| count).sum();
        if requests > limit {
            return Err(None);
        }
        let left = limit.saturating_sub(used).saturating_sub(requests);
        if left < 0 {
            return Err(Some(self.wait(now, -left)));
        }
        match self.slots.last_mut() {
            Some((at, count)) if *at == second => *count = count.saturating_add(requests),
            Some(_) | None => self.slots.push((second, requests)),
        }
        Ok(left)
    }

    /// When the clock was set back, what was admitted in seconds that are to come counts as of now: for as long as any other
    /// request, and not until the clock has caught up. False when there is no such second.
    pub fn set_back(&mut self, now: Timestamp) -> bool {
        let second = now.seconds();
        let ahead = self.slots.partition_point(|(at, _)| *at <= second);
        let count: i64 = self.slots.drain(ahead..).map(|(_, count)| count).sum();
        if count == 0 {
            return false;
        }
        match self.slots.last_mut() {
            Some((at, now)) if *at == second => *now = now.saturating_add(count),
            Some(_) | None => self.slots.push((second, count)),
        }
        true
    }

    /// How long until `wanted` of what was admitted does not count any more.
    fn wait(&self, now: Timestamp, wanted: i64) -> Duration {
        let mut freed = 0;
        for (at, count) in &self.slots {
            freed += count;
            if freed >= wanted {
                return Timestamp::from_seconds(at + WINDOW + 1).since(now);
            }
        }
        Duration::from_secs(WINDOW.unsigned_abs())
    }
}

/// `second:count` of each second, separated by commas.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (second, count)) in self.slots.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{second}:{count}")?;
        }
        Ok(())
    }
}

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let slot = |slot: &str| {
            let (second, count) = slot.split_once(':')?;
            Some((second.parse().ok()?, count.parse().ok()?))
        };
        let slots = text.split(',').filter(|slot| !slot.is_empty()).map(slot);
        let slots: Option<_> = slots.collect();
        let slots = slots.ok_or_else(|| Error::internal("slots of a window"))?;
        Ok(Self { slots })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_window_says_when_there_is_room_again() {
        let mut window = Window::default();
        assert_eq!(window.admit(at(100), 3, 5), Ok(2));
        assert_eq!(window.admit(at(110), 2, 5), Ok(0));
        // The requests of second 100 count until second 161.
        assert_eq!(
            window.admit(at(120), 1, 5),
            Err(Some(Duration::from_secs(41)))
        );
        assert_eq!(
            window.admit(at(120), 4, 5),
            Err(Some(Duration::from_secs(51)))
        );
        assert_eq!(window.admit(at(120), 6, 5), Err(None));
        assert_eq!(
            window.admit(at(160), 1, 5),
            Err(Some(Duration::from_secs(1)))
        );
        assert_eq!(window.admit(at(161), 1, 5), Ok(2));
        assert_eq!(window.to_string().parse::<Window>().ok(), Some(window));
    }

    // The clock of the database was an hour ahead for a moment.
    #[test]
    fn a_clock_that_comes_back_locks_nobody_out() {
        let mut window = Window::default();
        assert_eq!(window.admit(at(1000), 2, 5), Ok(3));
        assert_eq!(window.admit(at(4600), 5, 5), Ok(0));
        let wait = window.admit(at(1001), 1, 5);
        assert_eq!(wait, Err(Some(Duration::from_secs(61))));
        assert_eq!(window.admit(at(1062), 5, 5), Ok(0));
    }

    proptest! {
        // R-USE-2: whatever comes when, no 60 seconds admit more than the limit; and who waits as told gets in.
        #[test]
        fn no_sixty_seconds_admit_more_than_the_limit(
            limit in 1_i64..50,
            calls in prop::collection::vec((0_i64..20_000_000, 1_i64..8), 1..200),
        ) {
            let (mut window, mut now) = (Window::default(), 1_700_000_000_000_000_i64);
            let mut admitted: Vec<(i64, i64)> = Vec::new();
            for (pause, requests) in calls {
                now += pause;
                // As it is kept between two calls.
                window = window.to_string().parse().expect("slots");
                match window.admit(Timestamp::from_micros(now), requests, limit) {
                    Ok(left) => {
                        admitted.push((now, requests));
                        let within = admitted.iter().filter(|(at, _)| *at > now - 60_000_000);
                        let sum: i64 = within.map(|(_, n)| n).sum();
                        prop_assert!(sum + left <= limit, "{sum} admitted and {left} left of {limit}");
                    }
                    Err(Some(wait)) => {
                        let then = Timestamp::from_micros(now).plus(wait);
                        prop_assert!(window.clone().admit(then, requests, limit).is_ok());
                        prop_assert!(wait <= Duration::from_secs(61));
                    }
                    Err(None) => prop_assert!(requests > limit),
                }
            }
        }

        #[test]
        fn a_clock_that_is_set_back_admits_no_more(
            limit in 1_i64..20,
            steps in prop::collection::vec(-30_i64..30, 1..100),
        ) {
            let (mut window, mut now) = (Window::default(), 1_700_000_000_i64);
            // Time that really passed: setting the clock back takes none.
            let (mut passed, mut admitted) = (0, Vec::new());
            for step in steps {
                now += step;
                passed += step.max(0);
                if window.admit(at(now), 1, limit).is_ok() {
                    admitted.push(passed);
                }
                let recent = admitted.iter().filter(|at| **at > passed - 60).count();
                prop_assert!(recent as i64 <= limit);
            }
        }
    }
}
