//! The progress of a rewrapping, on stderr: a bar on a terminal, elsewhere a line for every tenth of the way.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tonic::Code;

use super::progress;
use crate::{
    cli::{
        exit::{Exit, Failure, Result},
        options::Session,
    },
    grpc::proto::{GetKekRotationRequest, KekRotation, RotationState},
};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a daemon may be away: it is restarted, and goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Characters of the bar.
const WIDTH: usize = 30;
/// Looks without a change after which what is left counts as undecryptable.
const STUCK: u32 = 3;

/// Watches until the rotation is not DEPLOYED any more; exit code 1 when only undecryptable data keys are left.
pub async fn until_done(id: &str, session: &Session) -> Result<Exit> {
    let mut shown = Shown::new();
    let mut answered = Instant::now();
    let (mut left, mut stuck) = (i64::MAX, 0);
    loop {
        let request = GetKekRotationRequest {
            rotation_id: id.to_owned(),
        };
        let rotation = match session.keks().get_kek_rotation(request).await {
            Ok(answer) => answer.into_inner().rotation.unwrap_or_default(),
            Err(status) if status.code() == Code::Unavailable && answered.elapsed() < PATIENCE => {
                sleep(PAUSE).await;
                continue;
            }
            Err(status) => {
                shown.end();
                return Err(Failure::from(status));
            }
        };
        answered = Instant::now();
        let running = rotation.state() == RotationState::Deployed;
        if running || rotation.state() == RotationState::Completed {
            shown.show(&rotation);
        }
        if !running {
            shown.end();
            return Ok(Exit::Ok);
        }
        stuck = match rotation.remaining == left {
            true => stuck + 1,
            false => 0,
        };
        left = rotation.remaining;
        if left > 0 && left == rotation.undecryptable && stuck >= STUCK {
            shown.end();
            return Ok(Exit::No);
        }
        sleep(PAUSE).await;
    }
}

/// What is on the screen.
struct Shown {
    terminal: bool,
    began: Option<(Instant, u64)>,
    tenths: Option<u64>,
}

impl Shown {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            began: None,
            tenths: None,
        }
    }

    fn show(&mut self, rotation: &KekRotation) {
        let (done, all) = progress(rotation);
        let (began, before) = *self.began.get_or_insert((Instant::now(), done));
        let line = line(done, all, done - before.min(done), began.elapsed());
        // Nobody is left to tell when stderr is closed.
        if self.terminal {
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
            return;
        }
        let tenths = done * 10 / all.max(1);
        if self.tenths != Some(tenths) {
            self.tenths = Some(tenths);
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    fn end(&self) {
        if self.terminal && self.began.is_some() {
            let _ = writeln!(io::stderr());
        }
    }
}

/// `[#####…]  43 %  43000 of 100000 data keys, 1234/s, 46 s left`.
fn line(done: u64, all: u64, lately: u64, elapsed: Duration) -> String {
    let percent = done * 100 / all.max(1);
    let filled = usize::try_from(percent).unwrap_or(0) * WIDTH / 100;
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
    let rate = lately as f64 / elapsed.as_secs_f64().max(0.001);
    let speed = match all - done {
        0 => String::new(),
        left if rate >= 1.0 => format!(", {rate:.0}/s, {:.0} s left", left as f64 / rate),
        _ => String::new(),
    };
    format!("[{bar}] {percent:>3} %  {done} of {all} data keys{speed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_the_way() {
        let at = |done, lately| line(done, 1000, lately, Duration::from_secs(1));
        assert!(at(0, 0).starts_with(&format!("[{}]   0 %  0 of 1000", ".".repeat(WIDTH))));
        assert!(at(500, 100).ends_with("500 of 1000 data keys, 100/s, 5 s left"));
        assert!(at(1000, 100).starts_with(&format!("[{}] 100 %", "#".repeat(WIDTH))));
        assert!(line(0, 0, 0, Duration::ZERO).contains("0 of 0"));
    }
}
