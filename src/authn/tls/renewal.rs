//! Certificates that are renewed while the daemon runs: cert-manager and its like replace the files, and nobody sends a signal.
//!
//! The files are read every so often and hashed; when they have changed, both listeners read them again. A half-written pair
//! or a bad file leaves what there was in use, and is tried again at each look until it fits.

use std::{path::Path, sync::Arc, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{ReloadableTls, TlsConfig, TlsError};

/// Keeps the listeners' certificates as their files are, until `shutdown` ends. SIGHUP makes it look at once, and reload
/// whatever it finds.
pub async fn keep_current(
    config: TlsConfig,
    listeners: [Arc<ReloadableTls>; 2],
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be received; certificates are read again when they change");
            None
        }
    };
    let mut look = interval(config.reload());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    seen.reloaded(contents(&config).await);
    loop {
        let asked = tokio::select! {
            () = &mut shutdown => return,
            _ = look.tick() => false,
            () = next(&mut hangup) => true,
        };
        let now = contents(&config).await;
        if !asked && !seen.is_new(&now) {
            continue;
        }
        match reload(&listeners) {
            Ok(()) => {
                tracing::info!("certificates reloaded");
                seen.reloaded(now);
            }
            // A file that stays bad is said once.
            Err(error) if asked || seen.is_news(&now) => {
                tracing::error!(%error, "certificates not reloaded; the old ones stay in use");
                seen.refused(now);
            }
            Err(_) => {}
        }
    }
}

/// What the files held when they were put to use, and when they were refused last.
#[derive(Default)]
struct Seen {
    used: Option<Contents>,
    refused: Option<Contents>,
}

/// SHA-256 of all files, one after the other; of what could be read of them.
type Contents = Vec<u8>;

impl Seen {
    fn is_new(&self, now: &Contents) -> bool {
        self.used.as_ref() != Some(now)
    }

    fn is_news(&self, now: &Contents) -> bool {
        self.refused.as_ref() != Some(now)
    }

    fn reloaded(&mut self, now: Contents) {
        *self = Self {
            used: Some(now),
            refused: None,
        };
    }

    fn refused(&mut self, now: Contents) {
        self.refused = Some(now);
    }
}

/// The next SIGHUP; never, where none can be received.
async fn next(hangup: &mut Option<Signal>) {
    if let Some(hangup) = hangup
        && hangup.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Both or neither: each reads the same files.
fn reload(listeners: &[Arc<ReloadableTls>; 2]) -> Result<(), TlsError> {
    let fresh = [listeners[0].read()?, listeners[1].read()?];
    for (listener, fresh) in listeners.iter().zip(fresh) {
        listener.renew(fresh);
    }
    Ok(())
}

async fn contents(config: &TlsConfig) -> Contents {
    let mut context = Context::new(&SHA256);
    let paths = [
        Some(&config.certificate),
        Some(&config.key),
        config.client_ca.as_ref(),
        config.crl.as_ref(),
    ];
    for path in paths.into_iter().flatten() {
        let bytes = read(path).await;
        context.update(&bytes.len().to_be_bytes());
        context.update(&bytes);
    }
    context.finish().as_ref().to_vec()
}

/// Nothing for a file that cannot be read: the reload says why.
async fn read(path: &Path) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(tokio::fs::read(path).await.unwrap_or_default())
}

impl TlsConfig {
    /// Time between two looks at the files.
    const fn reload(&self) -> Duration {
        Duration::from_secs(self.reload_seconds)
    }
}
