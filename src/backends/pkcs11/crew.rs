//! Who works at the pool: its threads, their replacements, and the watch that decides when one is needed.
//!
//! A thread is lost when it is busy with one call long after anybody waited for it. Its place is filled, its permit
//! given back, and nobody reinitialises the library under it (`Module::lose`). Libraries that hang for ever must not
//! make threads without end: at most twice the configured number are lost at a time, beyond that the pool waits.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    module::lock,
    pool::{Job, Waits, Worker},
    queue::Queue,
    session::Shared,
};
use crate::backends::BackendError;

/// How long a call may go on without anybody who waits for it. With the time to open the breaker and to probe, less
/// than the ten seconds within which a device that is back must be used again.
const ALONE: Duration = Duration::from_secs(5);
/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(500);
/// Lost threads for each configured one.
const LOST: usize = 2;

pub(super) struct Crew {
    pub(super) queue: Queue<Box<dyn Job>>,
    pub(super) shared: Arc<Shared>,
    pub(super) troubles: AtomicU32,
    /// Calls that came back from the library, well or not.
    pub(super) served: AtomicU64,
    name: String,
    pub(super) size: usize,
    hired: AtomicUsize,
    posts: Mutex<Vec<Arc<Post>>>,
    /// The last look could not fill every place.
    is_short: AtomicBool,
    /// Each thread has a clone; None when the pool ends.
    alive: Mutex<Option<mpsc::Sender<()>>>,
}

/// What the watch must know about a call.
pub(super) struct Terms {
    pub(super) deadline: Instant,
    /// Alive while somebody waits for the call.
    pub(super) caller: Weak<Waits>,
    /// Held while the call runs.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// One thread.
#[derive(Default)]
struct Post(Mutex<Duty>);

#[derive(Default)]
struct Duty {
    busy: Option<(Instant, Terms)>,
    is_lost: bool,
}

impl Crew {
    pub(super) fn start(
        name: &str,
        shared: Arc<Shared>,
        size: usize,
        queue: usize,
        alive: mpsc::Sender<()>,
    ) -> Result<Arc<Self>, BackendError> {
        let crew = Arc::new(Self {
            queue: Queue::new(queue),
            shared,
            troubles: AtomicU32::new(0),
            served: AtomicU64::new(0),
            name: name.to_owned(),
            size,
            hired: AtomicUsize::new(0),
            posts: Mutex::default(),
            is_short: AtomicBool::new(false),
            alive: Mutex::new(Some(alive)),
        });
        for _ in 0..size {
            crew.hire()?;
        }
        Ok(crew)
    }

    /// Starts the watch, which ends with what this returns.
    pub(super) fn watch(self: &Arc<Self>) -> Result<Watch, BackendError> {
        let (stop, stopped) = mpsc::channel();
        let crew = Arc::clone(self);
        let watch = move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                crew.look(Instant::now());
            }
        };
        let thread = thread::Builder::new()
            .name(format!("{}-watch", self.name))
            .spawn(watch)
            .map_err(|e| no_thread(&e))?;
        Ok(Watch {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Nothing is begun any more; threads end with what they are at.
    pub(super) fn close(&self) {
        self.queue.close();
        lock(&self.alive).take();
    }

    /// No thread is inside the library.
    pub(super) fn is_home(&self) -> bool {
        lock(&self.posts).is_empty()
    }

    fn hire(self: &Arc<Self>) -> Result<(), BackendError> {
        let Some(alive) = lock(&self.alive).clone() else {
            return Ok(());
        };
        let post = Arc::new(Post::default());
        lock(&self.posts).push(Arc::clone(&post));
        let (crew, theirs) = (Arc::clone(self), Arc::clone(&post));
        let number = self.hired.fetch_add(1, Ordering::Relaxed);
        let spawned = thread::Builder::new()
            .name(format!("{}-{number}", self.name))
            .spawn(move || {
                let leave = Leave {
                    crew: &crew,
                    post: &theirs,
                };
                crew.work(&theirs);
                drop(leave);
                // Whoever lets go of the library last finalises it. That must not be this thread once it is no longer
                // waited for: the process may be ending.
                drop(crew);
                drop(alive);
            });
        spawned.map(drop).map_err(|e| {
            self.leave(&post);
            no_thread(&e)
        })
    }

    fn work(self: &Arc<Self>, post: &Post) {
        let mut worker = Worker::new(Arc::clone(self));
        while let Some(mut job) = self.queue.pop() {
            post.begin(job.terms());
            worker.serve(job.as_mut());
            if post.end() {
                break;
            }
        }
        worker.finish();
    }

    fn leave(&self, post: &Arc<Post>) {
        let mut posts = lock(&self.posts);
        posts.retain(|other| !Arc::ptr_eq(other, post));
        if post.is_lost() {
            self.shared.module.find_again();
            self.count(&posts);
            tracing::info!(backend = self.name, "a thread came back from the library");
        }
    }

    /// Gives up threads that are lost, and fills empty places: theirs, and those of threads that panicked or that the
    /// system did not let begin.
    fn look(self: &Arc<Self>, now: Instant) {
        let mut given_up = 0;
        let empty;
        {
            let posts = lock(&self.posts);
            let lost = posts.iter().filter(|post| post.is_lost()).count();
            let room = (LOST * self.size).saturating_sub(lost);
            for post in posts.iter() {
                if given_up < room && post.give_up(now) {
                    self.shared.module.lose();
                    given_up += 1;
                }
            }
            if given_up > 0 {
                self.count(&posts);
            }
            empty = self.size.saturating_sub(at_work(&posts));
        }
        for _ in 0..given_up {
            tracing::warn!(
                backend = self.name,
                "a call into the library does not return; its thread is replaced"
            );
            metrics::counter!("claviger_pkcs11_threads_replaced_total", "backend" => self.name.clone())
                .increment(1);
        }
        let hired = (0..empty).try_for_each(|_| self.hire());
        // Once, not with every look.
        let was_short = self.is_short.swap(hired.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (hired, was_short) {
            tracing::error!(backend = self.name, %error, "a thread is not replaced; it is tried again");
        }
    }

    fn count(&self, posts: &[Arc<Post>]) {
        let lost = posts.iter().filter(|post| post.is_lost()).count();
        let lost = u32::try_from(lost).unwrap_or(u32::MAX);
        metrics::gauge!("claviger_pkcs11_threads_lost", "backend" => self.name.clone()).set(lost);
    }
}

/// The watch while it runs. It never calls the library, so its end is waited for: it must not be the one that lets go of
/// the library last, beside a process that ends.
pub(super) struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A watch that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// A thread leaves its post however it ends.
struct Leave<'a> {
    crew: &'a Crew,
    post: &'a Arc<Post>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.crew.leave(self.post);
    }
}

impl Post {
    fn begin(&self, terms: Terms) {
        lock(&self.0).busy = Some((Instant::now(), terms));
    }

    /// True when somebody else has taken the place.
    fn end(&self) -> bool {
        let mut duty = lock(&self.0);
        duty.busy = None;
        duty.is_lost
    }

    fn is_lost(&self) -> bool {
        lock(&self.0).is_lost
    }

    /// True when it is lost from now on.
    fn give_up(&self, now: Instant) -> bool {
        let mut duty = lock(&self.0);
        let Duty {
            busy: Some((since, terms)),
            is_lost: false,
        } = &mut *duty
        else {
            return false;
        };
        let is_alone = terms.caller.strong_count() == 0 && now >= *since + ALONE;
        if !is_alone && now < terms.deadline + ALONE {
            return false;
        }
        terms.permit = None;
        duty.is_lost = true;
        true
    }
}

/// Threads that take calls.
fn at_work(posts: &[Arc<Post>]) -> usize {
    posts.iter().filter(|post| !post.is_lost()).count()
}

fn no_thread(error: &std::io::Error) -> BackendError {
    BackendError::Unavailable(format!("cannot start a thread: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_lost_when_nobody_waits_for_it_any_more() {
        let (now, waits) = (Instant::now(), Arc::new(Waits::default()));
        let terms = || Terms {
            deadline: now + Duration::from_secs(30),
            caller: Arc::downgrade(&waits),
            permit: None,
        };
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        let post = Post::default();
        assert!(!post.give_up(after(1000)), "it is idle");
        post.begin(terms());
        assert!(!post.give_up(after(29)), "somebody waits");
        assert!(post.give_up(after(36)), "not even its caller");
        assert!(!post.give_up(after(37)), "once");
        assert!(post.end(), "its place is taken");

        let post = Post::default();
        post.begin(terms());
        drop(waits);
        assert!(!post.give_up(after(1)));
        assert!(post.give_up(after(6)), "its caller left");
        let post = Post::default();
        post.begin(Terms {
            deadline: now,
            caller: Weak::new(),
            permit: None,
        });
        assert!(!post.end(), "it came back in time");
        assert!(!post.give_up(after(1000)));
    }

    #[test]
    fn places_of_the_lost_and_of_those_who_left_are_empty() {
        let mut posts: Vec<_> = (0..4).map(|_| Arc::new(Post::default())).collect();
        assert_eq!(at_work(&posts), 4);
        posts[0].begin(Terms {
            deadline: Instant::now(),
            caller: Weak::new(),
            permit: None,
        });
        assert!(posts[0].give_up(Instant::now() + 2 * ALONE));
        assert_eq!(at_work(&posts), 3, "one hangs");
        posts.remove(3);
        assert_eq!(at_work(&posts), 2, "one panicked");
    }
}
