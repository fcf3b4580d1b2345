//! Asks each backend whether it is there, for readiness and metrics.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{backends::Backend, health::Component};

const INTERVAL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

/// Probes until `shutdown` ends.
pub async fn probe_backends(
    backends: Vec<(Arc<dyn Backend>, Component)>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        for (backend, health) in &backends {
            let name = backend.capabilities().name.clone();
            let up = match backend.ready(Instant::now() + PATIENCE).await {
                Ok(()) => {
                    health.up();
                    1.0
                }
                Err(error) => {
                    tracing::warn!(backend = name, %error, "backend is not ready");
                    health.down("the backend does not answer");
                    0.0
                }
            };
            metrics::gauge!("claviger_backend_up", "backend" => name).set(up);
        }
    }
}
