//! The PKCS#11 libraries of this process.
//!
//! A PKCS#11 library is process-wide by nature: a second `C_Initialize` fails or crashes, `C_Finalize` ends
//! everybody's sessions. So the composition root makes one `Modules`, and every backend and provisioning
//! call gets its library from it. Each library has a gate: calls go through it side by side, and
//! reinitialising waits until nobody is inside. There is nothing static here; two `Modules` for one library
//! are refused by the library itself.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error, RvError},
};

use super::config::default_stall_ms;
use crate::backends::BackendError;

/// Reinitialising ends every session of the process, so while any of its tokens works not more often than this.
const REINITIALISE_EVERY: Duration = Duration::from_secs(30);
/// While none works nobody has a session to lose, and a token that returned should not wait.
const REINITIALISE_IN_TROUBLE: Duration = Duration::from_secs(2);
/// A token works if a call was answered within this time; probes come more often.
const WORKS_FOR: Duration = Duration::from_secs(6);
/// A call that hangs inside the library must not hang the others for longer than this: it would be taken for a stall of
/// every token of the library.
const PAUSE_WITHIN: Duration = Duration::from_millis(400);
const _: () = assert!(PAUSE_WITHIN.as_millis() < default_stall_ms() as u128);

/// Every library that is loaded, by path. Cloning shares it.
#[derive(Clone, Default)]
pub struct Modules(Arc<Mutex<HashMap<PathBuf, Arc<Module>>>>);

/// One loaded and initialised library.
pub struct Module {
    path: PathBuf,
    context: Pkcs11,
    gate: Mutex<Gate>,
    turned: Condvar,
    loaded: Instant,
    /// Milliseconds from `loaded` to the last call that was answered; 0 before the first.
    worked: AtomicU64,
    refused: Mutex<HashSet<String>>,
    generating: Mutex<()>,
}

struct Gate {
    inside: usize,
    closed: bool,
    epoch: u64,
    /// Last attempt, also one that could not pause.
    reinitialised: Option<Instant>,
    /// Threads inside that their pool has given up.
    lost: usize,
}

/// Proof that the library will not be reinitialised under a call. Not re-entrant.
pub(super) struct Inside<'a> {
    module: &'a Module,
    epoch: u64,
}

/// While it lives no backend calls the library.
pub struct Paused<'a>(&'a Module);

impl Modules {
    /// No library yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The library at `path`, loaded and initialised at the first call.
    pub fn load(&self, path: &Path) -> Result<Arc<Module>, BackendError> {
        let real = path.canonicalize().map_err(|e| {
            BackendError::Misconfigured(format!(
                "cannot open PKCS#11 module {}: {}; install it or correct `module`",
                path.display(),
                e.kind()
            ))
        })?;
        let mut loaded = lock(&self.0);
        if let Some(module) = loaded.get(&real) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::load(&real)?);
        loaded.insert(real, module.clone());
        Ok(module)
    }
}

impl Module {
    fn load(path: &Path) -> Result<Self, BackendError> {
        let context = Pkcs11::new(path).map_err(|e| {
            BackendError::Misconfigured(format!(
                "{} does not load as a PKCS#11 module: {e}",
                path.display()
            ))
        })?;
        // Vendor libraries keep threads and thread-local destructors: they must stay mapped.
        std::mem::forget(context.clone());
        initialise(&context).map_err(|e| {
            BackendError::Misconfigured(match e {
                Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _) => format!(
                    "PKCS#11 module {} is in use elsewhere in this process; share one `Modules`",
                    path.display()
                ),
                other => format!(
                    "PKCS#11 module {} does not initialise: {}; check its own configuration",
                    path.display(),
                    brief(&other)
                ),
            })
        })?;
        Ok(Self {
            path: path.to_owned(),
            context,
            gate: Mutex::new(Gate {
                inside: 0,
                closed: false,
                epoch: 0,
                reinitialised: None,
                lost: 0,
            }),
            turned: Condvar::new(),
            loaded: Instant::now(),
            worked: AtomicU64::new(0),
            refused: Mutex::default(),
            generating: Mutex::new(()),
        })
    }

    /// Where the library is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The context itself, for tools and tests that look at the token beside the backends.
    pub const fn context(&self) -> &Pkcs11 {
        &self.context
    }

    /// Goes in; waits while the library is paused. For the start and for tools, which have nothing else to do.
    pub(super) fn enter(&self) -> Inside<'_> {
        let gate = lock(&self.gate);
        let gate = self.turned.wait_while(gate, |gate| gate.closed);
        self.inside(gate.unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes in; None when the library is paused until `deadline`: its `C_Finalize` may hang like anything else.
    pub(super) fn enter_by(&self, deadline: Instant) -> Option<Inside<'_>> {
        let within = deadline.saturating_duration_since(Instant::now());
        let (gate, _) = self
            .turned
            .wait_timeout_while(lock(&self.gate), within, |gate| gate.closed)
            .unwrap_or_else(PoisonError::into_inner);
        (!gate.closed).then(|| self.inside(gate))
    }

    fn inside(&self, mut gate: MutexGuard<'_, Gate>) -> Inside<'_> {
        gate.inside += 1;
        Inside {
            module: self,
            epoch: gate.epoch,
        }
    }

    /// A call was answered, so somebody has a session that works.
    pub(super) fn works(&self) {
        let now = u64::try_from(self.loaded.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.worked.store(now.max(1), Ordering::Relaxed);
    }

    /// A thread has not come out for so long that its pool goes on without it. Until it does, nobody finalises the
    /// library under it.
    pub(super) fn lose(&self) {
        lock(&self.gate).lost += 1;
    }

    /// A lost thread came back.
    pub(super) fn find_again(&self) {
        lock(&self.gate).lost -= 1;
    }

    /// Waits until no call is inside and keeps new ones out; None when that takes longer than `within`.
    pub fn pause(&self, within: Duration) -> Option<Paused<'_>> {
        let (mut gate, waited) = self
            .turned
            .wait_timeout_while(lock(&self.gate), within, |gate| gate.closed)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        gate.closed = true;
        let (mut gate, waited) = self
            .turned
            .wait_timeout_while(gate, within, |gate| gate.inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            gate.closed = false;
            drop(gate);
            self.turned.notify_all();
            return None;
        }
        drop(gate);
        Some(Paused(self))
    }

    /// Finalises and initialises the library, unless that happened since `seen`. The last rung of the
    /// recovery ladder: it is the only thing that brings back a token that vanished and returned.
    pub(super) fn reinitialise(&self, seen: u64) -> Result<(), BackendError> {
        if self.reinitialised_since(seen)? {
            return Ok(());
        }
        let stuck =
            || BackendError::Unavailable("calls into the PKCS#11 module do not return".into());
        if lock(&self.gate).lost > 0 {
            return Err(stuck());
        }
        let Some(paused) = self.pause(PAUSE_WITHIN) else {
            // It kept everybody out for a while, so not again at once.
            lock(&self.gate).reinitialised = Some(Instant::now());
            return Err(stuck());
        };
        if self.reinitialised_since(seen)? {
            return Ok(());
        }
        {
            let mut gate = lock(&self.gate);
            gate.epoch += 1;
            gate.reinitialised = Some(Instant::now());
        }
        tracing::warn!(module = %self.path.display(), "reinitialising the PKCS#11 module");
        // A failure here means that there was nothing to finalise; what counts is the next call.
        if let Err(error) = self.context.clone().finalize() {
            tracing::warn!(error = brief(&error), "the PKCS#11 module did not finalise");
        }
        let outcome = initialise(&self.context).map_err(|e| {
            BackendError::Unavailable(format!("PKCS#11 module does not come back: {}", brief(&e)))
        });
        drop(paused);
        outcome
    }

    fn reinitialised_since(&self, seen: u64) -> Result<bool, BackendError> {
        let gate = lock(&self.gate);
        if gate.epoch != seen {
            return Ok(true);
        }
        // Who worked before the last time has lost that session already.
        let hold = match self.is_working_since(gate.reinitialised) {
            true => REINITIALISE_EVERY,
            false => REINITIALISE_IN_TROUBLE,
        };
        match gate.reinitialised {
            Some(at) if at.elapsed() < hold => Err(BackendError::Unavailable(
                "the PKCS#11 module was reinitialised moments ago".into(),
            )),
            Some(_) | None => Ok(false),
        }
    }

    fn is_working_since(&self, reinitialised: Option<Instant>) -> bool {
        let worked = match self.worked.load(Ordering::Relaxed) {
            0 => return false,
            at => self.loaded + Duration::from_millis(at),
        };
        worked.elapsed() < WORKS_FOR && reinitialised.is_none_or(|at| worked >= at)
    }

    /// Remembers that the token with this serial number refused the PIN: no second try in this process,
    /// however often a backend is opened, because tokens lock.
    pub(super) fn refuse(&self, serial: &str) {
        lock(&self.refused).insert(serial.to_owned());
    }

    pub(super) fn has_refused(&self, serial: &str) -> bool {
        lock(&self.refused).contains(serial)
    }

    /// One key generation at a time: tokens do it badly in parallel.
    pub(super) fn generating(&self) -> MutexGuard<'_, ()> {
        lock(&self.generating)
    }
}

impl Inside<'_> {
    /// Counts reinitialisations; sessions of another epoch do not exist any more.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut gate = lock(&self.module.gate);
        gate.inside -= 1;
        let waited_for = gate.closed && gate.inside == 0;
        drop(gate);
        if waited_for {
            self.module.turned.notify_all();
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        lock(&self.0.gate).closed = false;
        self.0.turned.notify_all();
    }
}

/// The last user is gone: backends hold the module for as long as their threads live.
impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.clone().finalize();
    }
}

fn initialise(context: &Pkcs11) -> Result<(), Error> {
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
}

/// Name of the code and of the function, without the paragraph.
pub(super) fn brief(error: &Error) -> String {
    match error {
        Error::Pkcs11(rv, Function::Initialize | Function::Finalize) => format!("{rv:?}"),
        Error::Pkcs11(rv, function) => format!("C_{function:?} returned {rv:?}"),
        other => other.to_string(),
    }
}

/// A panic elsewhere does not make these maps and counters wrong.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
