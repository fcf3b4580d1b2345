//! Mutating calls: each carries an idempotency key, so that it can be sent again when nobody knows what became of it.
//!
//! One invocation makes at most one such call, so one key per invocation is enough (R-OPS-2).

use std::{error::Error as _, time::Duration};

use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status, metadata::AsciiMetadataValue};
use tonic_types::StatusExt;

use super::exit::{Exit, Failure, Result};

/// Metadata of a mutating call.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Pause before the second attempt, unless the daemon names one.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 4;

/// How mutating calls are sent.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Of every attempt.
    pub key: IdempotencyKey,
    /// No attempt begins later than this after the first one.
    pub patience: Duration,
    /// Before the second attempt; each further pause is four times as long.
    pub pause: Duration,
}

/// What makes a repetition recognisable: 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(AsciiMetadataValue);

impl IdempotencyKey {
    /// A new one, that nobody has used.
    pub fn random() -> Result<Self> {
        idempotency_key(&uuid::Uuid::now_v7().to_string()).map_err(Failure::other)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// `--idempotency-key`.
pub fn idempotency_key(argument: &str) -> std::result::Result<IdempotencyKey, String> {
    let wrong = || "expected 1 to 128 visible ASCII characters without blanks".to_owned();
    let fits = (1..=128).contains(&argument.len());
    if !fits || !argument.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong());
    }
    AsciiMetadataValue::try_from(argument)
        .map(IdempotencyKey)
        .map_err(|_| wrong())
}

impl Retry {
    /// Sends `message` until there is an answer, as long as the daemon says that it is UNAVAILABLE or the connection
    /// breaks. Errors: the last one; when it may have happened all the same, the text says how to ask again safely.
    pub async fn call<M: Clone, A>(
        &self,
        message: M,
        call: impl AsyncFn(Request<M>) -> std::result::Result<Response<A>, Status>,
    ) -> Result<A> {
        let until = Instant::now() + self.patience;
        let mut pause = self.pause;
        for attempt in 1.. {
            let status = match call(self.request(message.clone())).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let wait = told(&status).unwrap_or(pause);
            if attempt == ATTEMPTS || !may_pass(&status) || Instant::now() + wait >= until {
                return Err(self.failure(status));
            }
            sleep(wait).await;
            pause *= 4;
        }
        Err(Failure::other("no attempt was made"))
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(IDEMPOTENCY_KEY, self.key.0.clone());
        request
    }

    /// A refusal is final. After anything else the change may be there or not.
    fn failure(&self, status: Status) -> Failure {
        let unknown_rpc = status.code() == Code::Unimplemented;
        let failure = Failure::from(status);
        if unknown_rpc {
            return failure;
        }
        match failure.exit() {
            Exit::Unavailable | Exit::Other => failure.and(&format!(
                "to repeat it safely: the same command with --idempotency-key {}",
                self.key.as_str()
            )),
            Exit::Ok | Exit::No | Exit::Usage | Exit::Denied | Exit::NotFound | Exit::Conflict => {
                failure
            }
        }
    }
}

/// How long the daemon asks to wait.
fn told(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// UNAVAILABLE, or a connection that broke while the call was under way. What our own connector or the server's TLS
/// refused does not pass by waiting.
fn may_pass(status: &Status) -> bool {
    let broken = status.code() == Code::Unknown && status.source().is_some();
    let refused = Failure::from(status.clone()).exit() == Exit::Denied;
    (status.code() == Code::Unavailable || broken) && !refused
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn retry(patience: Duration) -> Retry {
        Retry {
            key: idempotency_key("k-1").unwrap(),
            patience,
            pause: Duration::from_millis(1),
        }
    }

    /// Answers with these statuses in turn, then with success; and the keys that arrived.
    async fn calls(
        statuses: Vec<Status>,
        patience: Duration,
    ) -> (Result<&'static str>, Vec<String>) {
        let seen = Mutex::new(Vec::new());
        let statuses = Mutex::new(statuses.into_iter());
        let answer = retry(patience)
            .call("message", async |request: Request<&'static str>| {
                let key = request.metadata().get(IDEMPOTENCY_KEY).unwrap();
                seen.lock().unwrap().push(key.to_str().unwrap().to_owned());
                let next = statuses.lock().unwrap().next();
                next.map_or(Ok(Response::new("done")), Err)
            })
            .await;
        (answer, seen.into_inner().unwrap())
    }

    // R-OPS-2
    #[tokio::test]
    async fn an_unavailable_daemon_is_asked_again_under_the_same_key() {
        let down = Status::unavailable("one moment");
        let (answer, keys) = calls(vec![down.clone(), down], Duration::from_secs(10)).await;
        assert_eq!(answer.unwrap(), "done");
        assert_eq!(keys, ["k-1", "k-1", "k-1"]);
    }

    #[tokio::test]
    async fn whoever_gives_up_says_how_to_ask_again() {
        let down = Status::unavailable("one moment");
        let (answer, keys) = calls(vec![down; 9], Duration::from_secs(10)).await;
        let failure = answer.unwrap_err();
        assert_eq!((failure.exit(), keys.len()), (Exit::Unavailable, 4));
        let said = failure.to_string();
        assert!(said.contains("--idempotency-key k-1"), "{said}");
    }

    #[tokio::test]
    async fn no_attempt_begins_after_the_callers_time() {
        let down = Status::unavailable("one moment");
        let (answer, keys) = calls(vec![down; 9], Duration::ZERO).await;
        assert_eq!(
            (answer.unwrap_err().exit(), keys.len()),
            (Exit::Unavailable, 1)
        );
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_needs_no_key() {
        let refused = Status::permission_denied("no");
        let (answer, keys) = calls(vec![refused], Duration::from_secs(10)).await;
        let failure = answer.unwrap_err();
        assert_eq!((failure.exit(), keys.len()), (Exit::Denied, 1));
        assert!(!failure.to_string().contains("idempotency"), "{failure}");
    }

    #[tokio::test]
    async fn a_call_out_of_time_is_not_repeated_but_can_be() {
        let late = Status::deadline_exceeded("too late");
        let (answer, keys) = calls(vec![late], Duration::from_secs(10)).await;
        let failure = answer.unwrap_err();
        assert_eq!((failure.exit(), keys.len()), (Exit::Unavailable, 1));
        assert!(failure.to_string().contains("k-1"), "{failure}");
    }

    #[test]
    fn keys_are_visible_ascii() {
        assert!(idempotency_key("incident-4711/declare").is_ok());
        for wrong in ["", "with blank", "tab\t", "schlüssel", &"x".repeat(129)] {
            assert!(idempotency_key(wrong).is_err(), "{wrong}");
        }
        let random = IdempotencyKey::random().unwrap();
        assert_eq!(random.as_str().len(), 36);
        assert_ne!(random, IdempotencyKey::random().unwrap());
    }
}
