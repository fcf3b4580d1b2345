//! The signals that end a long-running command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Failure, Result};

/// Waits for Ctrl-C or SIGTERM.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Listens from now on.
    pub fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::other(format!("cannot listen for signals: {e}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Returns when one of them has come.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
