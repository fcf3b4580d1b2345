//! When a freeze holds everywhere (R-EMER-3): each other replica has confirmed that it has seen the change, or its lease
//! has ended and it uses no key at all.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Incidents;

/// Between two looks at the other replicas.
const LOOK: Duration = Duration::from_millis(50);
/// Longer than any replica may go on without the change feed; the configuration allows no longer lease.
const LONGEST: Duration = Duration::from_secs(61);

/// Does a freeze hold everywhere?
#[derive(Clone, Copy, Debug)]
pub struct Freeze {
    /// Every replica has confirmed it, or has stopped.
    pub everywhere: bool,
    /// How long that took; while it is not true, the time from the commit by which it will be.
    pub after: Duration,
}

impl Incidents {
    /// Waits until no other replica uses what row `seq` of the admin stream has changed, or until `patience` ends.
    pub async fn freeze(&self, seq: i64, patience: Instant) -> Freeze {
        let began = Instant::now();
        let patience = patience.min(began + LONGEST);
        let mut bound = LONGEST;
        loop {
            let behind = self.db.replicas_behind(&self.replica, seq);
            match timeout_at(patience, behind).await {
                Ok(Ok(None)) => {
                    return Freeze {
                        everywhere: true,
                        after: began.elapsed(),
                    };
                }
                Ok(Ok(Some(left))) => bound = began.elapsed() + left,
                Ok(Err(error)) => tracing::warn!(%error, "replicas not looked at"),
                Err(_) => {}
            }
            if Instant::now() + LOOK >= patience {
                return Freeze {
                    everywhere: false,
                    after: bound,
                };
            }
            sleep(LOOK).await;
        }
    }
}
