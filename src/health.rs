//! What works right now: named components, each up or down, and whether the daemon is draining.
//!
//! Every part reports through its own [`Component`] handle; `/readyz` and the gRPC health service read the
//! [`Snapshot`]. Reporting is one atomic load while nothing changes, so it may sit on a hot path.
//! Liveness never looks here: an HSM that is away must not restart the daemon.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// The health of the daemon. Cloning shares it.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

/// Reports for one component. Cloning shares it.
#[derive(Clone)]
pub struct Component(Arc<Entry>);

/// What is wrong with the daemon, if anything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// True when every check that is not advisory is fine.
    pub ready: bool,
    /// True when an advisory check is not fine: some calls fail here, and would fail on every other replica too.
    pub degraded: bool,
    /// One per component, in the order they were registered, and `draining` at the end.
    pub checks: Vec<Check>,
}

/// The state of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name of the component.
    pub name: String,
    /// Does it work?
    pub ok: bool,
    /// True when the daemon stays ready without it.
    pub advisory: bool,
    /// What is wrong; empty when it works.
    pub detail: String,
}

#[derive(Default)]
struct Inner {
    components: Mutex<Vec<Arc<Entry>>>,
    draining: AtomicBool,
}

struct Entry {
    name: String,
    advisory: bool,
    ok: AtomicBool,
    detail: Mutex<String>,
}

impl Health {
    /// The component of that name; one that is new is down until it reports.
    pub fn component(&self, name: &str) -> Component {
        self.register(name, false)
    }

    /// The same for something that replicas share: when it is away, taking this replica out of rotation would take out
    /// all of them, and with them everything that works without it.
    pub fn advisory(&self, name: &str) -> Component {
        self.register(name, true)
    }

    fn register(&self, name: &str, advisory: bool) -> Component {
        let mut components = lock(&self.0.components);
        if let Some(known) = components.iter().find(|entry| entry.name == name) {
            return Component(Arc::clone(known));
        }
        let entry = Arc::new(Entry {
            name: name.to_owned(),
            advisory,
            ok: AtomicBool::new(false),
            detail: Mutex::new("starting".to_owned()),
        });
        components.push(Arc::clone(&entry));
        Component(entry)
    }

    /// Takes the daemon out of rotation, for good: the first step of a shutdown.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// True after [`Health::drain`].
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// The state of everything.
    pub fn snapshot(&self) -> Snapshot {
        let mut checks: Vec<Check> = lock(&self.0.components)
            .iter()
            .map(|entry| {
                let ok = entry.ok.load(Ordering::Acquire);
                let detail = lock(&entry.detail).clone();
                Check {
                    name: entry.name.clone(),
                    ok,
                    advisory: entry.advisory,
                    detail: if ok { String::new() } else { detail },
                }
            })
            .collect();
        let draining = self.is_draining();
        checks.push(Check {
            name: "draining".to_owned(),
            ok: !draining,
            advisory: false,
            detail: if draining { "shutting down" } else { "" }.to_owned(),
        });
        Snapshot {
            ready: checks.iter().all(|check| check.ok || check.advisory),
            degraded: checks.iter().any(|check| !check.ok && check.advisory),
            checks,
        }
    }
}

impl Component {
    /// It works.
    pub fn up(&self) {
        if !self.is_up() {
            self.0.ok.store(true, Ordering::Release);
        }
    }

    /// It does not work; `detail` is for operators and holds no secret.
    pub fn down(&self, detail: impl Into<String>) {
        let mut text = lock(&self.0.detail);
        *text = detail.into();
        self.0.ok.store(false, Ordering::Release);
    }

    /// What it last reported.
    pub fn is_up(&self) -> bool {
        self.0.ok.load(Ordering::Acquire)
    }
}

/// A holder that panicked left a whole value behind, so its poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_down_until_it_reports() {
        let health = Health::default();
        let database = health.component("database");
        assert!(!health.snapshot().ready);
        assert_eq!(health.snapshot().checks[0].detail, "starting");

        database.up();
        assert!(health.snapshot().ready);
        assert_eq!(health.snapshot().checks[0].detail, "");

        database.down("connection refused");
        let snapshot = health.snapshot();
        assert!(!snapshot.ready);
        assert_eq!(snapshot.checks[0].detail, "connection refused");
    }

    #[test]
    fn what_replicas_share_degrades_and_does_not_take_out() {
        let health = Health::default();
        let hsm = health.advisory("backend hsm");
        health.component("database").up();
        hsm.down("gone");
        let snapshot = health.snapshot();
        assert!(snapshot.ready && snapshot.degraded);
        assert_eq!(snapshot.checks[0].detail, "gone");
        hsm.up();
        assert!(!health.snapshot().degraded);
        health.component("database").down("gone");
        assert!(!health.snapshot().ready && !health.snapshot().degraded);
    }

    #[test]
    fn one_name_is_one_component() {
        let health = Health::default();
        health.component("kek").up();
        assert!(health.component("kek").is_up());
        assert_eq!(health.snapshot().checks.len(), 2);
    }

    #[test]
    fn a_draining_daemon_is_not_ready() {
        let health = Health::default();
        health.component("kek").up();
        health.clone().drain();
        assert!(!health.snapshot().ready);
    }
}
