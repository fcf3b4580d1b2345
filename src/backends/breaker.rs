//! The circuit breaker of one backend, as a pure state machine: what happened and when goes in, whether the device may
//! be asked comes out. `Guarded` feeds it; nothing here waits, measures or logs.
//!
//! ```text
//!           FAILURES in a row, or a stall
//!   CLOSED --------------------------------> OPEN <----------------+
//!     ^                                       | probe answered     | the trial or the probe failed
//!     | a trial or the next probe answered    v                    |
//!     +----------------------------------- HALF-OPEN --------------+
//!
//!   any --wrong PIN--> SHUT, until a restart
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Device failures in a row that open the breaker.
pub const FAILURES: u32 = 5;
/// Between two probes while all is well.
const CALM: Duration = Duration::from_secs(5);
/// Between two probes while something is wrong.
const ALERT: Duration = Duration::from_secs(1);

/// May the device be asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Yes.
    Closed = 0,
    /// By one call at a time, to see whether the trouble is over.
    HalfOpen = 1,
    /// No; probes only.
    Open = 2,
    /// Not before a restart: the PIN is wrong, and tokens lock.
    Shut = 3,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Closed, Self::HalfOpen, Self::Open, Self::Shut];

    /// For logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
            Self::Shut => "shut",
        }
    }
}

/// What a call that was let in is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// One of many.
    Free,
    /// The one whose outcome decides; report it, or that it left, exactly once.
    Trial,
}

/// The state, and what it depends on.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
    trial: bool,
    /// When it was probed or opened last: the device is left alone for a while after either.
    asked: Option<Instant>,
}

impl Default for Breaker {
    /// Closed, and never probed.
    fn default() -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            trial: false,
            asked: None,
        }
    }
}

impl Breaker {
    /// The state.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Did the last call fail?
    pub const fn is_troubled(&self) -> bool {
        self.failures > 0
    }

    /// Lets a call in, or not.
    pub const fn admit(&mut self) -> Option<Admission> {
        match self.state {
            State::Closed => Some(Admission::Free),
            State::HalfOpen if !self.trial => {
                self.trial = true;
                Some(Admission::Trial)
            }
            State::HalfOpen | State::Open | State::Shut => None,
        }
    }

    /// The device answered, whether it did what it was asked or refused.
    pub const fn answered(&mut self, admission: Admission) {
        match (self.state, admission) {
            (State::Closed, _) => self.failures = 0,
            (State::HalfOpen, Admission::Trial) => self.close(),
            // Of a call from before: the probe knows better.
            (State::HalfOpen, Admission::Free) | (State::Open | State::Shut, _) => {}
        }
    }

    /// The device is gone, in trouble, or did not answer in time.
    pub const fn failed(&mut self, admission: Admission, now: Instant) {
        match (self.state, admission) {
            (State::Closed, _) => {
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.open(now);
                }
            }
            (State::HalfOpen, Admission::Trial) => self.open(now),
            (State::HalfOpen, Admission::Free) | (State::Open | State::Shut, _) => {}
        }
    }

    /// The trial left before it was decided.
    pub const fn left(&mut self, admission: Admission) {
        match admission {
            Admission::Trial => self.trial = false,
            Admission::Free => {}
        }
    }

    /// Calls are with the device and none comes back.
    pub const fn stalled(&mut self, now: Instant) {
        match self.state {
            State::Closed | State::HalfOpen => self.open(now),
            State::Open | State::Shut => {}
        }
    }

    /// The device refused the PIN.
    pub const fn wrong_pin(&mut self) {
        self.state = State::Shut;
        self.trial = false;
    }

    /// When to probe next; None when never again.
    pub fn next_probe(&self, now: Instant) -> Option<Instant> {
        let interval = match self.state {
            State::Shut => return None,
            State::Closed if self.failures == 0 => CALM,
            State::Closed | State::HalfOpen | State::Open => ALERT,
        };
        Some(self.asked.map_or(now, |at| at + interval))
    }

    /// A probe ended, well or not. In HALF-OPEN a second good one closes the breaker, because there may be nobody who
    /// would be the trial; unless there is one, which then decides.
    pub const fn probed(&mut self, is_well: bool, now: Instant) {
        self.asked = Some(now);
        match (self.state, is_well) {
            (State::Closed, true) | (State::Shut, _) => {}
            (State::Closed, false) => self.failed(Admission::Free, now),
            (State::Open, true) => self.state = State::HalfOpen,
            (State::HalfOpen, true) if !self.trial => self.close(),
            (State::HalfOpen, true) | (State::Open, false) => {}
            (State::HalfOpen, false) => self.open(now),
        }
    }

    const fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.trial = false;
        self.asked = Some(now);
    }

    const fn close(&mut self) {
        self.state = State::Closed;
        self.failures = 0;
        self.trial = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        breaker.stalled(Instant::now());
        assert_eq!(breaker.state(), State::Open);
        breaker
    }

    fn half_open() -> Breaker {
        let mut breaker = opened();
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker
    }

    #[test]
    fn failures_open_it_only_in_a_row() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                assert_eq!(breaker.admit(), Some(Admission::Free));
                breaker.failed(Admission::Free, Instant::now());
            }
            assert!(breaker.is_troubled());
            breaker.answered(Admission::Free);
            assert!(!breaker.is_troubled());
        }
        for _ in 0..FAILURES {
            assert_eq!(breaker.state(), State::Closed);
            breaker.failed(Admission::Free, Instant::now());
        }
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.admit(), None);
    }

    #[test]
    fn an_open_breaker_listens_to_probes_alone() {
        let mut breaker = opened();
        breaker.answered(Admission::Free);
        breaker.answered(Admission::Trial);
        breaker.probed(false, Instant::now());
        assert_eq!(breaker.state(), State::Open);
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::HalfOpen);
    }

    #[test]
    fn one_trial_at_a_time_decides() {
        let mut breaker = half_open();
        assert_eq!(breaker.admit(), Some(Admission::Trial));
        assert_eq!(breaker.admit(), None);
        // What calls from before the trouble say does not count.
        breaker.answered(Admission::Free);
        breaker.failed(Admission::Free, Instant::now());
        // The probe does not overrule a trial that is still out.
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.left(Admission::Trial);
        assert_eq!(breaker.admit(), Some(Admission::Trial));
        breaker.answered(Admission::Trial);
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(breaker.admit(), Some(Admission::Free));

        let mut breaker = half_open();
        assert_eq!(breaker.admit(), Some(Admission::Trial));
        breaker.failed(Admission::Trial, Instant::now());
        assert_eq!(breaker.state(), State::Open);

        let mut breaker = half_open();
        assert_eq!(breaker.admit(), Some(Admission::Trial));
        breaker.stalled(Instant::now());
        assert_eq!(breaker.state(), State::Open);
        breaker.probed(true, Instant::now());
        assert_eq!(
            breaker.admit(),
            Some(Admission::Trial),
            "the hung one is forgotten"
        );
    }

    #[test]
    fn a_second_good_probe_closes_it_when_nobody_calls() {
        let mut breaker = half_open();
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::Closed);
        let mut breaker = half_open();
        breaker.probed(false, Instant::now());
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn failed_probes_open_it_without_any_call() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES {
            breaker.probed(false, now);
        }
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn probes_come_faster_in_trouble_and_never_after_a_wrong_pin() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.next_probe(now), Some(now), "at once at the start");
        breaker.probed(true, now);
        assert_eq!(breaker.next_probe(now), Some(now + CALM));
        breaker.failed(Admission::Free, now);
        assert_eq!(breaker.next_probe(now), Some(now + ALERT));
        breaker.stalled(now);
        assert_eq!(breaker.next_probe(now), Some(now + ALERT));

        breaker.wrong_pin();
        assert_eq!(breaker.next_probe(now), None);
        breaker.probed(true, now);
        breaker.answered(Admission::Trial);
        breaker.stalled(now);
        assert_eq!(breaker.state(), State::Shut);
        assert_eq!(breaker.admit(), None);
    }
}
