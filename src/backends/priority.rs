//! Who goes first when a backend is short of something: of the request quota of AWS, for example.
//!
//! Callers of any floor say it once around their work, without knowing which backend it meets; backends that have
//! nothing to divide do not ask.
//!
//! Rotation goes before interactive calls: it is a handful of requests, an incident may wait for it, and it takes at
//! most a tenth from callers. Interactive calls go before batches, because somebody waits for them; a batch waits.

use tokio::task_local;

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Making, checking and destroying keys.
    Rotation,
    /// Somebody waits for the answer. What is said nowhere else.
    Interactive,
    /// Rewrapping, trial decryption, searches: work that can wait.
    Batch,
}

task_local! {
    static PRIORITY: Priority;
}

/// Runs `work`; the backend calls that it makes itself have this priority. Tasks that it spawns start anew.
pub async fn with_priority<F: Future>(priority: Priority, work: F) -> F::Output {
    PRIORITY.scope(priority, work).await
}

/// The priority of the call that is being made.
pub(super) fn current() -> Priority {
    PRIORITY
        .try_with(|priority| *priority)
        .unwrap_or(Priority::Interactive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_priority_holds_for_the_work_and_no_longer() {
        assert_eq!(current(), Priority::Interactive);
        with_priority(Priority::Batch, async {
            assert_eq!(current(), Priority::Batch);
            let inner = with_priority(Priority::Rotation, async { current() }).await;
            assert_eq!(inner, Priority::Rotation);
            assert_eq!(current(), Priority::Batch);
        })
        .await;
        assert_eq!(current(), Priority::Interactive);
    }
}
