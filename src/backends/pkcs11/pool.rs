//! The threads that talk to the token, and what they do when it does not answer.
//!
//! One thread, one session: sessions are not shared and never cross an `.await`. Work whose deadline has
//! passed, or whose caller has left, never reaches the device. After any error the session is discarded.
//! The recovery ladder is: new session, login, reinitialise the module; a caller waits on it for no longer
//! than its deadline.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    errors::Fault,
    module::lock,
    queue::{PushError, Queue},
    session::{Live, Shared},
};
use crate::backends::BackendError;

/// Calls in trouble, one after the other and each on a new session, after which the library is to blame and
/// not one key.
const TROUBLES: u32 = 5;
/// How long the end of the backend waits for calls inside the library.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    queue: Arc<Queue<Box<dyn Job>>>,
    shared: Arc<Shared>,
    ended: Mutex<mpsc::Receiver<()>>,
}

/// A call on its way through the queue.
trait Job: Send {
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    fn deadline(&self) -> Instant;
    /// Runs the work and delivers its result, if there is one.
    fn attempt(&mut self, live: &mut Live) -> Result<(), Fault>;
    fn fail(&mut self, error: BackendError);
}

struct Call<T, F> {
    work: F,
    deadline: Instant,
    reply: Option<oneshot::Sender<Result<T, BackendError>>>,
}

struct Worker {
    shared: Arc<Shared>,
    troubles: Arc<AtomicU32>,
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
        let pool = Self {
            queue: Arc::new(Queue::new(queue)),
            shared,
            ended: Mutex::new(ended),
        };
        let troubles = Arc::new(AtomicU32::new(0));
        for number in 0..threads {
            let mut worker = Worker {
                shared: pool.shared.clone(),
                troubles: troubles.clone(),
                live: None,
            };
            let (queue, alive) = (pool.queue.clone(), alive.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || {
                    while let Some(mut job) = queue.pop() {
                        worker.serve(job.as_mut());
                    }
                    worker.finish();
                    drop(worker);
                    drop(alive);
                })
                .map_err(|e| BackendError::Unavailable(format!("cannot start a thread: {e}")))?;
        }
        Ok(pool)
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
        if deadline <= tokio::time::Instant::now() {
            return Err(BackendError::DeadlineExceeded);
        }
        let (reply, answer) = oneshot::channel();
        let call = Call {
            work,
            deadline: deadline.into_std(),
            reply: Some(reply),
        };
        let ended = || BackendError::Unavailable("the backend is shutting down".into());
        self.queue.push(Box::new(call)).map_err(|e| match e {
            PushError::Full => BackendError::Overloaded,
            PushError::Closed => ended(),
        })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_dropped)) => Err(ended()),
            Err(_elapsed) => Err(BackendError::DeadlineExceeded),
        }
    }
}

/// Waits, for a while, so that no thread is inside the library when the process unloads it.
impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
        // Never anything to receive: it ends when the last thread drops its sender.
        let _ = lock(&self.ended).recv_timeout(DRAIN_WITHIN);
        let keeper = lock(&self.shared.keeper).take();
        if let Some(keeper) = keeper {
            keeper.close(self.shared.module.enter().epoch());
        }
    }
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Live) -> Result<T, Fault> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn attempt(&mut self, live: &mut Live) -> Result<(), Fault> {
        let value = (self.work)(live)?;
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(Ok(value));
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
    fn serve(&mut self, job: &mut dyn Job) {
        let mut reinitialised = false;
        loop {
            if job.is_abandoned() {
                return;
            }
            let shared = self.shared.clone();
            let inside = shared.module.enter();
            let epoch = inside.epoch();
            // Looked at inside: the way in may have been closed for a while.
            if job.deadline() <= Instant::now() {
                return job.fail(BackendError::DeadlineExceeded);
            }
            let (outcome, was_fresh) = self.attempt(job, epoch);
            let Err(fault) = outcome else {
                if self.troubles.load(Ordering::Relaxed) != 0 {
                    self.troubles.store(0, Ordering::Relaxed);
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
                        Fresh::Yes => self.troubles.fetch_add(1, Ordering::Relaxed) + 1,
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
                    self.troubles.store(0, Ordering::Relaxed);
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
        let outcome =
            Live::open(&self.shared, epoch).and_then(|live| job.attempt(self.live.insert(live)));
        (outcome, Fresh::Yes)
    }

    fn finish(&mut self) {
        if let Some(live) = self.live.take() {
            let shared = self.shared.clone();
            let inside = shared.module.enter();
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
