//! Files of any length through EncryptStream and DecryptStream.
//!
//! An output file appears under its name only when the daemon has said that all of it is there: it is written beside and
//! renamed. To stdout, bytes go as they come, each of them authentic; that there are no more of them is known at the end,
//! so a failure ends with another status than 0 and says that what was written is not all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Cursor, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tonic::{Response, Status, Streaming};

use super::{
    exit::{Exit, Failure, Result},
    options::Session,
    output::Secrecy,
};
use crate::grpc::proto::{
    DecryptStreamRequest, DecryptStreamResponse, EncryptStreamRequest, EncryptStreamResponse,
    decrypt_stream_request as decrypting, encrypt_stream_request as encrypting,
};

/// Longest input that goes in one request, in bytes: the daemon's own limit unless its configuration says otherwise.
pub const WHOLE: u64 = 4 << 20;

/// Bytes of one message.
const PIECE: usize = 256 << 10;
/// Messages that are read ahead.
const AHEAD: usize = 4;

/// Where bytes come from.
pub struct Source {
    name: String,
    reader: Box<dyn Read + Send>,
}

impl Source {
    /// `beginning`, which was read already, and the rest of what `name` holds.
    pub fn new(name: String, beginning: Vec<u8>, rest: Box<dyn Read + Send>) -> Self {
        let reader = Box::new(Cursor::new(beginning).chain(rest));
        Self { name, reader }
    }

    /// The pieces, read in a thread of their own, and why they end too early if they do. They then do not end at all:
    /// to the daemon, an end would say that this was everything.
    fn pieces(self) -> (impl Stream<Item = Bytes>, oneshot::Receiver<Failure>) {
        let (send, mut read) = mpsc::channel(AHEAD);
        let (fail, failed) = oneshot::channel();
        // Not one of the runtime's: a read of a terminal that never returns must not keep the command from ending.
        thread::spawn(move || self.read_all(&send, fail));
        let pieces = stream::poll_fn(move |cx| match read.poll_recv(cx) {
            std::task::Poll::Ready(Some(piece)) => std::task::Poll::Ready(piece),
            std::task::Poll::Ready(None) | std::task::Poll::Pending => std::task::Poll::Pending,
        });
        (pieces, failed)
    }

    /// Sends every piece, and None after the last.
    fn read_all(mut self, send: &mpsc::Sender<Option<Bytes>>, fail: oneshot::Sender<Failure>) {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = (&mut self.reader)
                .take(PIECE as u64)
                .read_to_end(&mut piece);
            if let Err(e) = read {
                // Nobody hears it when the command has ended.
                let _ = fail.send(Failure::usage(format!("cannot read {}: {e}", self.name)));
                return;
            }
            let piece = (!piece.is_empty()).then(|| Bytes::from(piece));
            let is_last = piece.is_none();
            if send.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    }
}

/// Encrypts `source` into the file `to`, or to stdout.
pub async fn encrypt(
    session: &Session,
    start: encrypting::Start,
    source: Source,
    to: Option<&Path>,
) -> Result<Exit> {
    let (pieces, failed) = source.pieces();
    let parts =
        stream::iter([encrypting::Part::Start(start)]).chain(pieces.map(encrypting::Part::Data));
    let asked = parts.map(|part| EncryptStreamRequest { part: Some(part) });
    let mut client = session.connection().streams();
    let answered = client.encrypt_stream(asked).await;
    let data = |answer: EncryptStreamResponse| answer.data;
    copy(answered, data, failed, Sink::open(to, Secrecy::Open)?).await
}

/// Decrypts `source` into the file `to`, or to stdout.
pub async fn decrypt(
    session: &Session,
    start: decrypting::Start,
    source: Source,
    to: Option<&Path>,
) -> Result<Exit> {
    let (pieces, failed) = source.pieces();
    let parts =
        stream::iter([decrypting::Part::Start(start)]).chain(pieces.map(decrypting::Part::Data));
    let asked = parts.map(|part| DecryptStreamRequest { part: Some(part) });
    let mut client = session.connection().streams();
    let answered = client.decrypt_stream(asked).await;
    let data = |answer: DecryptStreamResponse| answer.data;
    copy(answered, data, failed, Sink::open(to, Secrecy::Private)?).await
}

async fn copy<A>(
    answered: std::result::Result<Response<Streaming<A>>, Status>,
    data: impl Fn(A) -> Bytes,
    failed: oneshot::Receiver<Failure>,
    mut sink: Sink,
) -> Result<Exit> {
    let mut answers = answered?.into_inner();
    let mut failed = failed.fuse();
    loop {
        let answer = tokio::select! {
            biased;
            Ok(failure) = &mut failed => return Err(sink.incomplete(failure)),
            answer = answers.message() => answer,
        };
        match answer {
            Ok(Some(answer)) => sink.write(&data(answer))?,
            Ok(None) => return sink.commit(),
            Err(status) => return Err(sink.incomplete(status.into())),
        }
    }
}

/// Where bytes go to.
enum Sink {
    /// Stdout, a pipe or a device: what is written cannot be taken back.
    Open {
        name: String,
        to: Box<dyn Write + Send>,
        written: u64,
    },
    /// A file beside the one that it becomes.
    Beside(Beside),
}

struct Beside {
    file: File,
    path: PathBuf,
    target: PathBuf,
    is_done: bool,
}

impl Sink {
    fn open(to: Option<&Path>, secrecy: Secrecy) -> Result<Self> {
        let Some(path) = to.filter(|path| *path != Path::new("-")) else {
            return Ok(Self::unretractable(
                "stdout".to_owned(),
                Box::new(io::stdout()),
            ));
        };
        let failed = |e: io::Error| Failure::other(format!("cannot write {}: {e}", path.display()));
        // Behind a link is the file that is meant.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let device = OpenOptions::new().write(true).open(&target);
            let device = device.map_err(failed)?;
            return Ok(Self::unretractable(
                path.display().to_string(),
                Box::new(device),
            ));
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", uuid::Uuid::now_v7().simple()));
        let beside = target.with_file_name(name);
        let mode = match secrecy {
            Secrecy::Open => 0o666,
            Secrecy::Private => 0o600,
        };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        Ok(Self::Beside(Beside {
            file: options.open(&beside).map_err(failed)?,
            path: beside,
            target,
            is_done: false,
        }))
    }

    fn unretractable(name: String, to: Box<dyn Write + Send>) -> Self {
        Self::Open {
            name,
            to,
            written: 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Open { name, to, written } => {
                *written += bytes.len() as u64;
                to.write_all(bytes).map_err(|e| match e.kind() {
                    io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
                    _ => Failure::other(format!("cannot write to {name}: {e}")),
                })
            }
            Self::Beside(beside) => beside.file.write_all(bytes).map_err(|e| beside.failed(&e)),
        }
    }

    /// The daemon has said that this is all of it.
    fn commit(self) -> Result<Exit> {
        match self {
            Self::Open { name, mut to, .. } => {
                let flushed = to.flush();
                flushed.map_err(|e| Failure::other(format!("cannot write to {name}: {e}")))?;
            }
            Self::Beside(mut beside) => {
                let renamed = beside.file.sync_all();
                let renamed = renamed.and_then(|()| fs::rename(&beside.path, &beside.target));
                renamed.map_err(|e| beside.failed(&e))?;
                beside.is_done = true;
            }
        }
        Ok(Exit::Ok)
    }

    fn incomplete(&self, failure: Failure) -> Failure {
        match self {
            Self::Open {
                name, written: 1.., ..
            } => failure.and(&format!(
                "what was written to {name} is not all of it: discard it"
            )),
            Self::Open { .. } | Self::Beside(_) => failure,
        }
    }
}

impl Beside {
    fn failed(&self, error: &io::Error) -> Failure {
        Failure::other(format!("cannot write {}: {error}", self.target.display()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.is_done {
            // There is nothing to be done about one that cannot be removed; its name tells what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}
