//! Watches the backends: looks for stalls, probes, and tells readiness. What follows from it is the breaker's
//! ([`crate::backends::guarded`]).

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    backends::{Backend, BackendError, Guarded, breaker::State},
    health::Component,
};

/// Watches until `shutdown` ends.
pub async fn watch_backends(
    backends: Vec<(Arc<Guarded>, Component)>,
    shutdown: impl Future<Output = ()>,
) {
    let watched = backends
        .iter()
        .map(|(backend, health)| watch(backend, health));
    tokio::select! {
        () = shutdown => {}
        _ = join_all(watched) => {}
    }
}

async fn watch(backend: &Guarded, health: &Component) {
    tokio::join!(
        backend.watch_stalls(),
        probe(backend, health),
        note_opening(backend, health)
    );
}

async fn probe(backend: &Guarded, health: &Component) {
    loop {
        backend.probe_due().await;
        match backend.probe().await {
            Ok(()) => health.up(),
            // It is there, and has more to do than it can.
            Err(BackendError::Overloaded) => {}
            Err(error) => {
                // Once, not with every probe.
                if health.is_up() {
                    let name = &backend.capabilities().name;
                    tracing::warn!(backend = name, %error, "backend is not ready");
                }
                health.down(detail(backend));
            }
        }
    }
}

async fn note_opening(backend: &Guarded, health: &Component) {
    loop {
        backend.opened().await;
        health.down(detail(backend));
    }
}

fn detail(backend: &Guarded) -> &'static str {
    match backend.state() {
        State::Shut => {
            "the token refused the PIN; it is not tried again until the daemon restarts with the right one"
        }
        State::Closed | State::HalfOpen | State::Open => "the backend does not answer",
    }
}
