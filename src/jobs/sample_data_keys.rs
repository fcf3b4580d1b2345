//! Looks at the KEKs and unwraps a random sample of data keys past the cache, on every replica: what was damaged, or
//! wrapped by another KEK, or lost with its KEK, is known before somebody needs it (R-ENV-2).

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    backends::{BackendError, Priority, with_priority},
    health::Component,
    keys::Keys,
    rotation::KekRotations,
};

/// What is looked at, and who is told.
pub struct Sampler {
    /// Knows the KEKs and unwraps.
    pub keys: Arc<Keys>,
    /// Raises alerts.
    pub rotations: Arc<KekRotations>,
    /// Says whether every KEK is what it was.
    pub kek: Component,
    /// Says how many data keys do not unwrap.
    pub data_keys: Component,
    /// Data keys in a sample.
    pub size: usize,
}

/// Looks now and every `every`, until `shutdown` ends.
pub async fn sample_data_keys(
    sampler: Sampler,
    every: Duration,
    shutdown: impl Future<Output = ()>,
) {
    // The start has proved them just now.
    sampler.kek.up();
    sampler.data_keys.up();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = with_priority(Priority::Batch, sampler.look()) => {}
        }
    }
}

impl Sampler {
    async fn look(&self) {
        if let Err(error) = self.look_at_keks().await {
            tracing::warn!(%error, "key-encryption keys not looked at; they are at the next look");
        }
        if let Err(error) = self.look_at_data_keys().await {
            tracing::warn!(%error, "data keys not tried; they are at the next look");
        }
    }

    async fn look_at_keks(&self) -> crate::error::Result<()> {
        let mut lost = Vec::new();
        for seen in self.keys.keks().look().await? {
            let up = match &seen.trouble {
                None => 1.0,
                // It is there and has more to do than it can.
                Some(BackendError::Overloaded | BackendError::DeadlineExceeded) => continue,
                Some(error) => {
                    let (kek, state) = (&seen.row.reference, seen.row.state.as_str());
                    self.rotations
                        .alert_lost(&seen.row, &error.to_string())
                        .await?;
                    lost.push(format!("{state} {kek}"));
                    0.0
                }
            };
            let state = seen.row.state.as_str();
            metrics::gauge!("claviger_kek_up", "state" => state).set(up);
        }
        match lost.is_empty() {
            true => self.kek.up(),
            false => self
                .kek
                .down(format!("does not unwrap its probe: {}", lost.join(", "))),
        }
        Ok(())
    }

    async fn look_at_data_keys(&self) -> crate::error::Result<()> {
        let trial = self.keys.try_data_keys(self.size).await?;
        let failed = trial.undecryptable.len();
        metrics::gauge!("claviger_data_keys_undecryptable").set(failed as f64);
        if failed == 0 {
            self.data_keys.up();
            return Ok(());
        }
        self.data_keys.down(format!(
            "{failed} of {} data keys tried do not unwrap",
            trial.tried
        ));
        self.rotations
            .alert_undecryptable(&trial.undecryptable)
            .await
    }
}
