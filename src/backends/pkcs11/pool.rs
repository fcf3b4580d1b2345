//! The threads that talk to the token, and what they do when it does not answer.
//!
//! One thread, one session: sessions are not shared and never cross an `.await`. Work whose deadline has
//! passed, or whose caller has left, never reaches the device. After any error the session is discarded.
//! The recovery ladder is: new session, login, reinitialise the module; a caller waits on it for no longer
//! than its deadline.
//!
//! A thread that hangs inside the library cannot be killed. When nobody waits for it any more it is given up: another
//! one takes its place (`crew.rs`), and it ends by itself when the library lets it go.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::Span;

use super::{
    crew::{Crew, Terms, Watch},
    errors::Fault,
    module::lock,
    queue::PushError,
    session::{Live, Shared},
};
use crate::{backends::BackendError, trace};

/// Calls in trouble, one after the other and each on a new session, after which the library is to blame and
/// not one key.
const TROUBLES: u32 = 5;
/// How long the end of the backend waits for calls inside the library.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    crew: Arc<Crew>,
    /// Management may take long: it leaves one thread to those who use keys.
    managing: Arc<Semaphore>,
    ended: Mutex<mpsc::Receiver<()>>,
    _watch: Watch,
}

/// Given the deadline of the call that nobody waits for.
pub(super) type Unclaimed<T> = fn(&mut Live, T, Instant);

/// A call on its way through the queue.
pub(super) trait Job: Send {
    /// What the watch must know about it.
    fn terms(&mut self) -> Terms;
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    fn deadline(&self) -> Instant;
    /// The device is about to be asked.
    fn begin(&self);
    /// Runs the work and delivers its result, if there is one.
    fn attempt(&mut self, live: &mut Live) -> Result<(), Fault>;
    fn fail(&mut self, error: BackendError);
}

/// Alive while somebody waits for a call.
#[derive(Default)]
pub(super) struct Waits(AtomicBool);

impl Waits {
    /// Has the device been asked?
    fn is_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Call<T, F> {
    work: F,
    /// What becomes of a result that came when nobody waited for it any more.
    unclaimed: Unclaimed<T>,
    deadline: Instant,
    reply: Option<oneshot::Sender<Result<T, BackendError>>>,
    caller: Weak<Waits>,
    /// Of management.
    permit: Option<OwnedSemaphorePermit>,
    /// The step of waiting in the queue; over when a thread takes the call.
    queued: Span,
}

pub(super) struct Worker {
    crew: Arc<Crew>,
    live: Option<Live>,
}

impl Pool {
    pub(super) fn start(
        shared: Arc<Shared>,
        threads: usize,
        queue: usize,
        name: &str,
    ) -> Result<Self, BackendError> {
        let (alive, ended) = mpsc::channel();
        let crew = Crew::start(name, shared, threads, queue, alive)?;
        Ok(Self {
            managing: Arc::new(Semaphore::new(threads.saturating_sub(1).max(1))),
            ended: Mutex::new(ended),
            _watch: crew.watch()?,
            crew,
        })
    }

    /// Runs `work` on a logged-in session. It runs again, on another session, when the first was gone.
    pub(super) async fn run<T, F>(
        &self,
        deadline: tokio::time::Instant,
        work: F,
    ) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnMut(&mut Live) -> Result<T, Fault> + Send + 'static,
    {
        self.send(deadline, None, work, |_, _, _| {}).await
    }

    /// The same for management, which never takes the last thread of several.
    pub(super) async fn manage<T, F>(
        &self,
        deadline: tokio::time::Instant,
        work: F,
    ) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnMut(&mut Live) -> Result<T, Fault> + Send + 'static,
    {
        self.make(deadline, work, |_, _, _| {}).await
    }

    /// The same for what leaves something behind: `unclaimed` is given what nobody waits for any more.
    pub(super) async fn make<T, F>(
        &self,
        deadline: tokio::time::Instant,
        work: F,
        unclaimed: Unclaimed<T>,
    ) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnMut(&mut Live) -> Result<T, Fault> + Send + 'static,
    {
        let turn = Arc::clone(&self.managing).acquire_owned();
        match tokio::time::timeout_at(deadline, turn).await {
            Ok(Ok(permit)) => self.send(deadline, Some(permit), work, unclaimed).await,
            // Closed, which it never is, or out of time.
            Ok(Err(_)) | Err(_) => Err(BackendError::Overloaded),
        }
    }

    async fn send<T, F>(
        &self,
        deadline: tokio::time::Instant,
        permit: Option<OwnedSemaphorePermit>,
        work: F,
        unclaimed: Unclaimed<T>,
    ) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnMut(&mut Live) -> Result<T, Fault> + Send + 'static,
    {
        if deadline <= tokio::time::Instant::now() {
            return Err(BackendError::DeadlineExceeded);
        }
        let (reply, answer) = oneshot::channel();
        let waits = Arc::new(Waits::default());
        let served = self.crew.served.load(Ordering::Relaxed);
        let call = Call {
            work,
            unclaimed,
            deadline: deadline.into_std(),
            reply: Some(reply),
            caller: Arc::downgrade(&waits),
            permit,
            queued: trace::step!("queue"),
        };
        let ended = || BackendError::Unavailable("the backend is shutting down".into());
        self.crew.queue.push(Box::new(call)).map_err(|e| match e {
            PushError::Full => BackendError::Overloaded,
            PushError::Closed => ended(),
        })?;
        let outcome = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_dropped)) => Err(ended()),
            Err(_elapsed) => Err(BackendError::DeadlineExceeded),
        };
        match outcome {
            Err(BackendError::DeadlineExceeded) if !waits.is_begun() && self.is_busy(served) => {
                Err(BackendError::Overloaded)
            }
            outcome => outcome,
        }
    }

    /// Has the device answered calls since `served` were counted, or does its only thread make a key? Then a call that was
    /// not begun was one too many; else the device may hang.
    fn is_busy(&self, served: u64) -> bool {
        self.crew.served.load(Ordering::Relaxed) != served
            || (self.crew.size == 1 && self.managing.available_permits() == 0)
    }
}

/// Waits, for a while, so that no thread is inside the library when the process unloads it.
impl Drop for Pool {
    fn drop(&mut self) {
        self.crew.close();
        // Never anything to receive: it ends when the last thread drops its sender.
        let _ = lock(&self.ended).recv_timeout(DRAIN_WITHIN);
        // A library that hangs would hang this thread too; then the login ends with the process.
        let shared = &self.crew.shared;
        let keeper = shared.keeper.try_lock().ok().and_then(|mut k| k.take());
        let inside = shared.module.enter_by(Instant::now() + DRAIN_WITHIN);
        if let (Some(keeper), Some(inside), true) = (keeper, inside, self.crew.is_home()) {
            keeper.close(inside.epoch());
        }
    }
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Live) -> Result<T, Fault> + Send,
{
    fn terms(&mut self) -> Terms {
        self.queued = Span::none();
        Terms {
            deadline: self.deadline,
            caller: self.caller.clone(),
            permit: self.permit.take(),
        }
    }

    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn begin(&self) {
        if let Some(waits) = self.caller.upgrade() {
            waits.0.store(true, Ordering::Relaxed);
        }
    }

    fn attempt(&mut self, live: &mut Live) -> Result<(), Fault> {
        let value = (self.work)(live)?;
        if let Some(reply) = self.reply.take()
            && let Err(Ok(value)) = reply.send(Ok(value))
        {
            (self.unclaimed)(live, value, self.deadline);
        }
        Ok(())
    }

    fn fail(&mut self, error: BackendError) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(Err(error));
        }
    }
}

impl Worker {
    pub(super) const fn new(crew: Arc<Crew>) -> Self {
        Self { crew, live: None }
    }

    pub(super) fn serve(&mut self, job: &mut dyn Job) {
        let mut reinitialised = false;
        loop {
            if job.is_abandoned() {
                return;
            }
            let shared = self.crew.shared.clone();
            let inside = shared.module.enter_by(job.deadline());
            // Looked at inside: the way in may have been closed for a while.
            let Some(inside) = inside.filter(|_| job.deadline() > Instant::now()) else {
                return job.fail(BackendError::DeadlineExceeded);
            };
            let epoch = inside.epoch();
            job.begin();
            let (outcome, was_fresh) = self.attempt(job, epoch);
            self.crew.served.fetch_add(1, Ordering::Relaxed);
            let troubles = &self.crew.troubles;
            let Err(fault) = outcome else {
                shared.module.works();
                if troubles.load(Ordering::Relaxed) != 0 {
                    troubles.store(0, Ordering::Relaxed);
                }
                return;
            };
            if !matches!(fault, Fault::Refused(_))
                && let Some(live) = self.live.take()
            {
                live.close(epoch);
            }
            drop(inside);
            let (error, climbs) = match fault {
                Fault::Refused(error) | Fault::Failed(error) => return job.fail(error),
                Fault::Gone(error) => (error, true),
                Fault::Trouble(error) => {
                    let count = match was_fresh {
                        Fresh::Yes => troubles.fetch_add(1, Ordering::Relaxed) + 1,
                        Fresh::No => 0,
                    };
                    (error, count >= TROUBLES)
                }
            };
            match was_fresh {
                Fresh::No => {}
                Fresh::Yes if climbs && !reinitialised => {
                    if let Err(held) = shared.module.reinitialise(epoch) {
                        tracing::warn!(error = %error, held = %held, "the token does not answer");
                        return job.fail(error);
                    }
                    troubles.store(0, Ordering::Relaxed);
                    reinitialised = true;
                }
                Fresh::Yes => {
                    tracing::warn!(error = %error, "the token does not answer");
                    return job.fail(error);
                }
            }
        }
    }

    /// One try, on the session at hand or on a new one.
    fn attempt(&mut self, job: &mut dyn Job, epoch: u64) -> (Result<(), Fault>, Fresh) {
        if let Some(live) = self.live.as_mut().filter(|live| live.epoch() == epoch) {
            return (job.attempt(live), Fresh::No);
        }
        let outcome = Live::open(&self.crew.shared, epoch)
            .and_then(|live| job.attempt(self.live.insert(live)));
        (outcome, Fresh::Yes)
    }

    pub(super) fn finish(&mut self) {
        let inside = Instant::now() + DRAIN_WITHIN;
        let inside = self.crew.shared.module.enter_by(inside);
        if let (Some(live), Some(inside)) = (self.live.take(), inside) {
            live.close(inside.epoch());
        }
    }
}

/// Was the session opened for this very attempt?
#[derive(Clone, Copy)]
enum Fresh {
    Yes,
    No,
}
