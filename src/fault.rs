//! R0: places where a test may kill the daemon, to prove that a crash between any two steps does no harm.
//!
//! A build with debug assertions sends itself SIGKILL at the place that `CLAVIGER_TEST_KILL_AT` names: `NAME`, or
//! `NAME:N` for the Nth time it is passed. In any other build nothing of this exists.

/// A place between two steps.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    armed::pass(name, "");
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// The place `step` of the administrative action `action`: `RotateKey.before_commit`.
pub fn point_of(action: &str, step: &str) {
    #[cfg(debug_assertions)]
    armed::pass(action, step);
    #[cfg(not(debug_assertions))]
    let _ = (action, step);
}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        env,
        sync::{
            OnceLock,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    /// One place, and how often it may still be passed.
    struct Armed {
        name: String,
        left: AtomicUsize,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn armed() -> Option<Armed> {
        let text = env::var("CLAVIGER_TEST_KILL_AT").ok()?;
        let (name, times) = match text.rsplit_once(':') {
            Some((name, times)) => (name, times.parse().ok()?),
            None => (text.as_str(), 1),
        };
        Some(Armed {
            name: name.to_owned(),
            left: AtomicUsize::new(times),
        })
    }

    pub(super) fn pass(name: &str, step: &str) {
        let Some(armed) = ARMED.get_or_init(armed) else {
            return;
        };
        let is_here = match step {
            "" => armed.name == name,
            step => armed
                .name
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| rest == step),
        };
        if !is_here || armed.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        let _ = kill_process(getpid(), Signal::KILL);
        // Nothing behind the place may happen while the signal is on its way.
        loop {
            std::thread::park();
        }
    }
}
