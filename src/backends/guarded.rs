//! Any backend behind a circuit breaker: callers of a device in trouble hear so at once.
//!
//! `app` wraps every opened backend and lets `jobs::probe` watch it. Two things open the breaker: device failures in a
//! row, and a stall, when calls are with the device and none has come back for `stall`. What the device refuses
//! (a tampered ciphertext, a missing object, a full queue) never does; nor does one key that fails while others are
//! answered, or a call that waits on our side of the device.
//!
//! Uses of keys (sign, wrap, unwrap, public key) that wait when the breaker opens are answered with it, so nobody waits
//! for a hanging device until his deadline. Management (create, adopt, find, destroy) may take long without anything
//! being wrong: it is refused while the breaker is not closed, but what has begun runs to its own deadline. A creation
//! is therefore never called failed while the device may still be at it, except by that deadline; then the intent that
//! was recorded before it finds what was left.
//!
//! While all is well a call costs one atomic load before and one after, the counters of the stall watch, and a note of
//! the key that was answered.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{Instrument, field};

use super::{
    Backend, BackendError, Call, Capabilities, Created, Destroyed, Priority,
    breaker::{Admission, Breaker, ROW, State, Subject},
    priority,
};
use crate::{
    model::{
        Algorithm, IntentId, KeySpec, PublicKey, key::BackendRef, public_key::SignInput,
        secret::DataKey,
    },
    trace,
};

/// How often the stall watch looks within `stall`.
const LOOKS: u32 = 8;
/// How long one probe waits for its answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// A backend and its breaker.
pub struct Guarded {
    inner: Arc<dyn Backend>,
    breaker: Mutex<Breaker>,
    /// Of the breaker, for the hot path.
    state: AtomicU8,
    /// Of the breaker: its count of failures is not zero.
    is_troubled: AtomicBool,
    /// Wakes those who wait when the breaker opens.
    opened: Notify,
    /// Uses of keys that are with the device.
    in_flight: AtomicU32,
    /// Those of them for which the stall watch looks.
    watched: AtomicU32,
    /// Uses of keys that came back.
    returned: AtomicU32,
    /// Management that is with the device.
    managing: AtomicU32,
    answered: LastAnswered,
    watch: Mutex<Watch>,
    stall: Duration,
    meters: Meters,
}

/// What the stall watch saw last.
#[derive(Default)]
struct Watch {
    returned: u32,
    idle_looks: u32,
}

/// The key that the device answered for last, and when. Two callers may mix theirs, which errs by one call.
struct LastAnswered {
    key: AtomicU64,
    /// Milliseconds since `began`, and 1; 0 before the first.
    at: AtomicU64,
    began: Instant,
}

impl LastAnswered {
    fn new() -> Self {
        Self {
            key: AtomicU64::new(0),
            at: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn note(&self, key: Subject) {
        self.key.store(key, Ordering::Relaxed);
        self.at.store(self.now(), Ordering::Relaxed);
    }

    /// The device is not there for any key.
    fn forget(&self) {
        self.at.store(0, Ordering::Relaxed);
    }

    /// Was the device well with another key just before?
    fn is_another(&self, key: Subject) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        let age = Duration::from_millis(self.now().saturating_sub(at));
        at != 0 && age < ROW && self.key.load(Ordering::Relaxed) != key
    }
}

fn subject(key: &BackendRef) -> Subject {
    let mut hasher = DefaultHasher::new();
    key.0.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Adopt,
    PublicKey,
    Sign,
    Wrap,
    Unwrap,
    Destroy,
    Find,
    Ready,
}

impl Operation {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Create, "create"),
        (Self::Adopt, "adopt"),
        (Self::PublicKey, "public_key"),
        (Self::Sign, "sign"),
        (Self::Wrap, "wrap"),
        (Self::Unwrap, "unwrap"),
        (Self::Destroy, "destroy"),
        (Self::Find, "find"),
        (Self::Ready, "ready"),
    ];

    /// In metrics and traces.
    fn name(self) -> &'static str {
        let (_, name) = Self::ALL[self as usize];
        name
    }

    /// It takes milliseconds, and somebody waits for it.
    const fn uses_key(self) -> bool {
        match self {
            Self::PublicKey | Self::Sign | Self::Wrap | Self::Unwrap => true,
            Self::Create | Self::Adopt | Self::Destroy | Self::Find | Self::Ready => false,
        }
    }
}

struct Meters {
    state: Gauge,
    in_flight: Gauge,
    up: Gauge,
    refused: Counter,
    failed: Counter,
    seconds: [Histogram; Operation::ALL.len()],
}

impl Meters {
    fn new(backend: &str) -> Self {
        let name = || backend.to_owned();
        Self {
            state: metrics::gauge!("claviger_backend_breaker_state", "backend" => name()),
            in_flight: metrics::gauge!("claviger_backend_calls_in_flight", "backend" => name()),
            up: metrics::gauge!("claviger_backend_up", "backend" => name()),
            refused: metrics::counter!("claviger_backend_refused_total", "backend" => name()),
            failed: metrics::counter!("claviger_backend_failures_total", "backend" => name()),
            seconds: Operation::ALL.map(|(_, operation)| {
                metrics::histogram!(
                    "claviger_backend_call_seconds", "backend" => name(), "operation" => operation
                )
            }),
        }
    }
}

/// What an outcome says about the device.
enum Verdict {
    Answered,
    Failed,
    WrongPin,
    /// Nothing: the device was not asked, or it is a matter of rights.
    Silent,
}

fn judge<T>(outcome: &Result<T, BackendError>) -> Verdict {
    match outcome {
        Ok(_)
        | Err(
            BackendError::Missing(_)
            | BackendError::Rejected(_)
            | BackendError::Suspended { .. }
            | BackendError::Denied { .. }
            | BackendError::Unfit(_)
            | BackendError::Unsupported(_),
        ) => Verdict::Answered,
        Err(BackendError::Unavailable(_) | BackendError::DeadlineExceeded) => Verdict::Failed,
        Err(BackendError::WrongPin) => Verdict::WrongPin,
        Err(BackendError::Overloaded | BackendError::Misconfigured(_)) => Verdict::Silent,
    }
}

/// As `judge`, of one operation: a search takes as long as there are keys to look at, so its deadline says nothing.
fn judge_of<T>(operation: Operation, outcome: &Result<T, BackendError>) -> Verdict {
    match (operation, outcome) {
        (Operation::Find, Err(BackendError::DeadlineExceeded)) => Verdict::Silent,
        _ => judge(outcome),
    }
}

impl Guarded {
    /// Guards `inner`, which must be watched: see [`Guarded::watch_stalls`] and [`Guarded::probe`].
    pub fn new(inner: Arc<dyn Backend>, stall: Duration) -> Self {
        let meters = Meters::new(&inner.capabilities().name);
        meters.state.set(f64::from(State::Closed as u8));
        Self {
            inner,
            breaker: Mutex::default(),
            state: AtomicU8::new(State::Closed as u8),
            is_troubled: AtomicBool::new(false),
            opened: Notify::new(),
            in_flight: AtomicU32::new(0),
            watched: AtomicU32::new(0),
            returned: AtomicU32::new(0),
            managing: AtomicU32::new(0),
            answered: LastAnswered::new(),
            watch: Mutex::default(),
            stall,
            meters,
        }
    }

    /// May the device be asked?
    pub fn state(&self) -> State {
        let state = self.state.load(Ordering::Acquire);
        // The only writer stores what a State is.
        let known = State::ALL.into_iter().find(|known| *known as u8 == state);
        known.unwrap_or(State::Open)
    }

    /// Looks for stalls, for ever. A process that was not running itself (an overloaded or suspended machine) counts
    /// only the looks that it really took, and blames nobody.
    pub async fn watch_stalls(&self) {
        let every = self.stall / LOOKS;
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let in_flight = self.in_flight.load(Ordering::Acquire);
        let is_waited_for = self.watched.load(Ordering::Acquire) > 0;
        let returned = self.returned.load(Ordering::Acquire);
        self.meters.in_flight.set(f64::from(in_flight));
        let mut watch = lock(&self.watch);
        // What another call waited for, who has left since, is not added to what the next one waits for.
        if watch.returned != returned || !is_waited_for || self.is_taken() {
            *watch = Watch {
                returned,
                idle_looks: 0,
            };
        } else {
            watch.idle_looks += 1;
        }
        if watch.idle_looks >= LOOKS {
            watch.idle_looks = 0;
            drop(watch);
            let now = Instant::now();
            self.tell("calls do not come back", |breaker| breaker.stalled(now));
        }
    }

    /// Is the one thing that the device does at a time management, which may take long?
    fn is_taken(&self) -> bool {
        self.capabilities().one_at_a_time && self.managing.load(Ordering::Acquire) > 0
    }

    /// Waits until the breaker opens.
    pub async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Waits until a probe is due; for ever when none will be.
    pub async fn probe_due(&self) {
        loop {
            let opened = self.opened.notified();
            let due = lock(&self.breaker).next_probe(Instant::now());
            let Some(due) = due else {
                return std::future::pending().await;
            };
            tokio::select! {
                () = sleep_until(due) => return,
                () = opened => {}
            }
        }
    }

    /// Asks the device whether it is there, past the breaker, and lets the breaker know. Errors: the device's.
    pub async fn probe(&self) -> Result<(), BackendError> {
        let deadline = Instant::now() + PROBE_PATIENCE;
        let began = Instant::now();
        // Cut here too: a backend that does not keep deadlines must not end the probing.
        let probe = tokio::time::timeout_at(deadline, self.inner.ready(deadline)).await;
        let outcome = probe.unwrap_or(Err(BackendError::DeadlineExceeded));
        self.meter(Operation::Ready, began);
        let is_well = match judge(&outcome) {
            Verdict::Answered => true,
            Verdict::Failed => false,
            Verdict::WrongPin => {
                self.tell("the PIN was refused", Breaker::wrong_pin);
                false
            }
            // Readiness says what is wrong; calls that get through are not in the way.
            Verdict::Silent => self.state() == State::Closed,
        };
        if !is_well {
            self.answered.forget();
        }
        let now = Instant::now();
        let why = match is_well {
            true => "the device answers",
            false => "the device does not answer",
        };
        self.tell(why, |breaker| breaker.probed(is_well, now));
        self.meters.up.set(if outcome.is_ok() { 1.0 } else { 0.0 });
        outcome
    }

    /// Changes the breaker, and lets everybody know who must.
    fn tell(&self, why: &str, change: impl FnOnce(&mut Breaker)) {
        let mut breaker = lock(&self.breaker);
        let before = breaker.state();
        change(&mut breaker);
        let after = breaker.state();
        self.is_troubled
            .store(breaker.is_troubled(), Ordering::Release);
        if before == after {
            return;
        }
        self.state.store(after as u8, Ordering::Release);
        drop(breaker);
        let backend = &self.capabilities().name;
        self.meters.state.set(f64::from(after as u8));
        match after {
            State::Open | State::Shut => {
                tracing::warn!(
                    backend,
                    state = after.as_str(),
                    "circuit breaker opened: {why}"
                );
                self.opened.notify_waiters();
            }
            State::HalfOpen => tracing::info!(backend, "circuit breaker half-open: {why}"),
            State::Closed => tracing::info!(backend, "circuit breaker closed: {why}"),
        }
    }

    fn admit(&self, key: Option<Subject>) -> Result<Admission, BackendError> {
        if self.state.load(Ordering::Acquire) == State::Closed as u8 {
            return Ok(Admission::Free);
        }
        let admitted = lock(&self.breaker).admit(key);
        admitted.ok_or_else(|| self.refusal())
    }

    fn refusal(&self) -> BackendError {
        self.meters.refused.increment(1);
        match self.state() {
            State::Shut => BackendError::WrongPin,
            State::Closed | State::HalfOpen | State::Open => BackendError::Unavailable(
                "its circuit breaker is open; the device is probed every second".into(),
            ),
        }
    }

    fn learn(&self, admission: Admission, key: Option<Subject>, verdict: &Verdict) {
        if let (Verdict::Answered, Some(key)) = (verdict, key) {
            self.answered.note(key);
        }
        match verdict {
            Verdict::Answered if admission == Admission::Free => {
                if self.is_troubled.load(Ordering::Acquire) {
                    self.tell("", |breaker| breaker.answered(admission));
                }
            }
            Verdict::Answered => self.tell("a call was answered", |b| b.answered(admission)),
            Verdict::Failed => {
                self.meters.failed.increment(1);
                let now = Instant::now();
                let alone = key.filter(|key| self.answered.is_another(*key));
                self.tell("calls fail", |b| b.failed(admission, alone, now));
            }
            Verdict::WrongPin => self.tell("the PIN was refused", Breaker::wrong_pin),
            Verdict::Silent => self.tell("", |breaker| breaker.left(admission)),
        }
    }

    fn meter(&self, operation: Operation, began: Instant) {
        if let Some(seconds) = self.meters.seconds.get(operation as usize) {
            seconds.record(began.elapsed());
        }
    }

    /// Sends `call` to the device, if the breaker lets it. Backends do nothing before they are polled.
    fn guard<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        key: Option<&BackendRef>,
        call: Call<'a, T>,
    ) -> Call<'a, T> {
        let key = key.map(subject);
        let step = trace::step!(
            "backend",
            otel.name = operation.name(),
            claviger.backend = self.capabilities().name.as_str(),
            otel.status_code = field::Empty,
        );
        let said = step.clone();
        let guarded = async move {
            // Before the state is looked at: an opening in between is not missed.
            let opened = self.opened.notified();
            let visit = Visit::begin(self, operation, key)?;
            let began = Instant::now();
            let outcome = if operation.uses_key() {
                tokio::select! {
                    biased;
                    outcome = call => outcome,
                    () = opened => return Err(self.refusal()),
                }
            } else {
                call.await
            };
            self.meter(operation, began);
            visit.end(&outcome);
            if !matches!(judge(&outcome), Verdict::Answered) {
                said.record("otel.status_code", "ERROR");
            }
            outcome
        };
        Box::pin(guarded.instrument(step))
    }
}

/// A call that was let in; dropped without an end, its caller has left.
struct Visit<'a> {
    guarded: &'a Guarded,
    operation: Operation,
    key: Option<Subject>,
    is_watched: bool,
    admission: Option<Admission>,
}

impl<'a> Visit<'a> {
    fn begin(
        guarded: &'a Guarded,
        operation: Operation,
        key: Option<Subject>,
    ) -> Result<Self, BackendError> {
        let uses_key = operation.uses_key();
        let admission = guarded.admit(key)?;
        if !uses_key && admission == Admission::Trial {
            // It may take long, and everybody else would wait for what it proves.
            lock(&guarded.breaker).left(admission);
            return Err(guarded.refusal());
        }
        // Other work may wait for its turn before the device is asked.
        let is_watched = uses_key && priority::current() == Priority::Interactive;
        let visit = Self {
            guarded,
            operation,
            key,
            is_watched,
            admission: Some(admission),
        };
        for counter in visit.counters().into_iter().flatten() {
            counter.fetch_add(1, Ordering::AcqRel);
        }
        Ok(visit)
    }

    /// Where it counts for as long as it lasts.
    fn counters(&self) -> [Option<&'a AtomicU32>; 2] {
        let guarded = self.guarded;
        match self.operation {
            Operation::Ready => [None, None],
            operation if operation.uses_key() => [
                Some(&guarded.in_flight),
                self.is_watched.then_some(&guarded.watched),
            ],
            _management => [Some(&guarded.managing), None],
        }
    }

    fn end<T>(mut self, outcome: &Result<T, BackendError>) {
        if self.operation.uses_key() {
            self.guarded.returned.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(admission) = self.admission.take() {
            let verdict = judge_of(self.operation, outcome);
            self.guarded.learn(admission, self.key, &verdict);
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        for counter in self.counters().into_iter().flatten() {
            counter.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(admission @ Admission::Trial) = self.admission {
            lock(&self.guarded.breaker).left(admission);
        }
    }
}

impl Backend for Guarded {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn create<'a>(
        &'a self,
        spec: KeySpec,
        intent: IntentId,
        label: &'a str,
        deadline: Instant,
    ) -> Call<'a, Created> {
        let call = self.inner.create(spec, intent, label, deadline);
        self.guard(Operation::Create, None, call)
    }

    fn adopt<'a>(&'a self, uri: &'a str, spec: KeySpec, deadline: Instant) -> Call<'a, Created> {
        self.guard(
            Operation::Adopt,
            None,
            self.inner.adopt(uri, spec, deadline),
        )
    }

    fn public_key<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, PublicKey> {
        self.guard(
            Operation::PublicKey,
            Some(key),
            self.inner.public_key(key, deadline),
        )
    }

    fn sign<'a>(
        &'a self,
        key: &'a BackendRef,
        algorithm: Algorithm,
        input: SignInput<'a>,
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        let call = self.inner.sign(key, algorithm, input, deadline);
        self.guard(Operation::Sign, Some(key), call)
    }

    fn wrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, Vec<u8>> {
        self.guard(
            Operation::Wrap,
            Some(kek),
            self.inner.wrap(kek, key, aad, deadline),
        )
    }

    fn unwrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, DataKey> {
        let call = self.inner.unwrap(kek, wrapped, aad, deadline);
        self.guard(Operation::Unwrap, Some(kek), call)
    }

    fn destroy<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, Destroyed> {
        self.guard(Operation::Destroy, None, self.inner.destroy(key, deadline))
    }

    fn find(&self, intent: IntentId, deadline: Instant) -> Call<'_, Vec<String>> {
        self.guard(Operation::Find, None, self.inner.find(intent, deadline))
    }

    /// Answered by the device, or by the breaker while it is not closed.
    fn ready(&self, deadline: Instant) -> Call<'_, ()> {
        self.guard(Operation::Ready, None, self.inner.ready(deadline))
    }
}

/// A panic elsewhere does not make these counters wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
