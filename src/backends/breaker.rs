//! The circuit breaker of one backend, as a pure state machine: what happened and when goes in, whether the device may
//! be asked comes out. `Guarded` feeds it; nothing here waits, measures or logs.
//!
//! ```text
//!           FAILURES in a row within ROW, or a stall
//!   CLOSED --------------------------------> OPEN <----------------+
//!     ^                                       | probe answered     | the trial or the probe failed
//!     | a trial or the next probe answered    v                    |
//!     +----------------------------------- HALF-OPEN --------------+
//!
//!   any --wrong PIN--> SHUT, until a restart
//! ```
//!
//! One bad key is no bad device. Its failures count once while other keys are answered, and it is the trial once only:
//! after that another key is, or the probes decide.

use std::time::Duration;

use tokio::time::Instant;

/// Device failures in a row that open the breaker.
pub const FAILURES: u32 = 5;
/// What a row of failures spans at most: what failed before says nothing about the device now.
pub const ROW: Duration = Duration::from_secs(30);
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

/// Which key a call concerns: a digest of its reference, which tells keys apart and nothing else.
pub type Subject = u64;

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
    /// When the first of them was.
    since: Option<Instant>,
    /// The key that the last of them concerns alone.
    culprit: Option<Subject>,
    trial: bool,
    /// The key of the trial.
    tried: Option<Subject>,
    /// Keys whose trials did not end well since it opened.
    barred: Vec<Subject>,
    /// When it was probed or opened last: the device is left alone for a while after either.
    asked: Option<Instant>,
}

impl Default for Breaker {
    /// Closed, and never probed.
    fn default() -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            since: None,
            culprit: None,
            trial: false,
            tried: None,
            barred: Vec::new(),
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
    pub fn admit(&mut self, subject: Option<Subject>) -> Option<Admission> {
        let may_try = !self.trial && subject.is_none_or(|key| !self.barred.contains(&key));
        match self.state {
            State::Closed => Some(Admission::Free),
            State::HalfOpen if may_try => {
                self.trial = true;
                self.tried = subject;
                Some(Admission::Trial)
            }
            State::HalfOpen | State::Open | State::Shut => None,
        }
    }

    /// The device answered, whether it did what it was asked or refused.
    pub fn answered(&mut self, admission: Admission) {
        match (self.state, admission) {
            (State::Closed, _) => self.forgive(),
            (State::HalfOpen, Admission::Trial) => self.close(),
            // Of a call from before: the probe knows better.
            (State::HalfOpen, Admission::Free) | (State::Open | State::Shut, _) => {}
        }
    }

    /// The device is gone, in trouble, or did not answer in time. `alone`: the key that this concerns, when the device
    /// answers for other keys.
    pub fn failed(&mut self, admission: Admission, alone: Option<Subject>, now: Instant) {
        match (self.state, admission) {
            (State::Closed, _) => {
                self.age(now);
                self.since.get_or_insert(now);
                if self.failures == 0 || alone.is_none() || alone != self.culprit {
                    self.failures += 1;
                }
                self.culprit = alone;
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
    pub fn stalled(&mut self, now: Instant) {
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
    pub fn probed(&mut self, is_well: bool, now: Instant) {
        self.asked = Some(now);
        match (self.state, is_well) {
            (State::Shut, _) => {}
            (State::Closed, true) => self.age(now),
            (State::Closed, false) => self.failed(Admission::Free, None, now),
            (State::Open, true) => self.state = State::HalfOpen,
            (State::HalfOpen, true) if !self.trial => self.close(),
            (State::HalfOpen, true) | (State::Open, false) => {}
            (State::HalfOpen, false) => self.open(now),
        }
    }

    fn open(&mut self, now: Instant) {
        if self.trial {
            self.barred.extend(self.tried);
        }
        self.state = State::Open;
        self.trial = false;
        self.asked = Some(now);
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.trial = false;
        self.barred.clear();
        self.forgive();
    }

    /// Failures that are too old are forgiven.
    fn age(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now > since + ROW) {
            self.forgive();
        }
    }

    const fn forgive(&mut self) {
        self.failures = 0;
        self.since = None;
        self.culprit = None;
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
                assert_eq!(breaker.admit(None), Some(Admission::Free));
                breaker.failed(Admission::Free, None, Instant::now());
            }
            assert!(breaker.is_troubled());
            breaker.answered(Admission::Free);
            assert!(!breaker.is_troubled());
        }
        for _ in 0..FAILURES {
            assert_eq!(breaker.state(), State::Closed);
            breaker.failed(Admission::Free, None, Instant::now());
        }
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.admit(None), None);
    }

    #[test]
    fn failures_age() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        // One a day.
        for day in 0..10 {
            let at = now + Duration::from_secs(day * 24 * 3600);
            breaker.failed(Admission::Free, None, at);
            assert_eq!(breaker.state(), State::Closed);
        }
        // A good probe says when it is over: nobody need call.
        let at = now + Duration::from_secs(10 * 24 * 3600);
        assert!(breaker.is_troubled());
        breaker.probed(true, at);
        assert!(!breaker.is_troubled());
        assert_eq!(breaker.next_probe(at), Some(at + CALM));
        // A probe between failures that belong together is no excuse.
        for second in 0..FAILURES {
            let at = at + Duration::from_secs(second.into());
            breaker.probed(true, at);
            breaker.failed(Admission::Free, None, at);
        }
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn one_bad_key_among_good_ones_counts_once() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            breaker.failed(Admission::Free, Some(1), now);
        }
        assert_eq!(breaker.state(), State::Closed);
        for _ in 2..FAILURES {
            breaker.failed(Admission::Free, None, now);
            assert_eq!(breaker.state(), State::Closed);
        }
        breaker.failed(Admission::Free, Some(2), now);
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn a_key_that_failed_as_the_trial_is_no_second_one() {
        let mut breaker = half_open();
        assert_eq!(breaker.admit(Some(1)), Some(Admission::Trial));
        breaker.failed(Admission::Trial, None, Instant::now());
        assert_eq!(breaker.state(), State::Open);
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.admit(Some(1)), None);
        assert_eq!(breaker.admit(Some(2)), Some(Admission::Trial));
        breaker.answered(Admission::Trial);
        assert_eq!(breaker.state(), State::Closed);

        // Where it is the only one that calls, the probes decide; and a trial that hangs has had its turn too.
        let mut breaker = half_open();
        assert_eq!(breaker.admit(Some(1)), Some(Admission::Trial));
        breaker.stalled(Instant::now());
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.admit(Some(1)), None);
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(breaker.admit(Some(1)), Some(Admission::Free));
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
        assert_eq!(breaker.admit(None), Some(Admission::Trial));
        assert_eq!(breaker.admit(None), None);
        // What calls from before the trouble say does not count.
        breaker.answered(Admission::Free);
        breaker.failed(Admission::Free, None, Instant::now());
        // The probe does not overrule a trial that is still out.
        breaker.probed(true, Instant::now());
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.left(Admission::Trial);
        assert_eq!(breaker.admit(None), Some(Admission::Trial));
        breaker.answered(Admission::Trial);
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(breaker.admit(None), Some(Admission::Free));

        let mut breaker = half_open();
        assert_eq!(breaker.admit(None), Some(Admission::Trial));
        breaker.failed(Admission::Trial, None, Instant::now());
        assert_eq!(breaker.state(), State::Open);

        let mut breaker = half_open();
        assert_eq!(breaker.admit(None), Some(Admission::Trial));
        breaker.stalled(Instant::now());
        assert_eq!(breaker.state(), State::Open);
        breaker.probed(true, Instant::now());
        assert_eq!(
            breaker.admit(None),
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
        breaker.failed(Admission::Free, None, now);
        assert_eq!(breaker.next_probe(now), Some(now + ALERT));
        breaker.stalled(now);
        assert_eq!(breaker.next_probe(now), Some(now + ALERT));

        breaker.wrong_pin();
        assert_eq!(breaker.next_probe(now), None);
        breaker.probed(true, now);
        breaker.answered(Admission::Trial);
        breaker.stalled(now);
        assert_eq!(breaker.state(), State::Shut);
        assert_eq!(breaker.admit(None), None);
    }
}
