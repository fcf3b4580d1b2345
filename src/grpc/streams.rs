//! EncryptStream and DecryptStream: one flow for both ways, in constant memory.
//!
//! The transport pulls: only when it can send does it ask for the next piece, and only then are messages of the client
//! read (`incoming`), so a client that does not read is not read from either. Nothing is queued in between. A piece is
//! sealed or opened in the task that asks for it: 64 KiB take some 20 µs, less than handing them to another thread and
//! back would. What a stream holds: one message of its client, one piece, one chunk that is not complete yet.
//!
//! A client that does not read does not ask either, so `watch` ends its stream from outside.

mod incoming;
mod way;

use std::{pin::Pin, sync::Arc, sync::Weak, time::Duration};

use futures_util::{Stream, stream};
use serde_json::{Map, json};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tonic::{Request, Response, Status, Streaming};

use self::{
    incoming::{Incoming, Start, idle},
    way::Way,
};
use super::{
    call::Parts,
    convert, crypto,
    layers::{RequestId, StreamBounds},
    status::status,
};
use crate::{
    authn::{ConnectedPeer, Credentials},
    error::{Error, Result},
    gate::{Ongoing, Permit, Place},
    keys::{Keys, Target},
    model::{Action, Caller, KeyRef, Resource},
    trace::Call,
};

/// Bytes that are worked on at a time: four chunks.
const PIECE: usize = 64 << 10;
/// Room for what becomes of them, with a chunk from before and a header.
const ROOM: usize = PIECE + (17 << 10);

/// The messages of an answer.
pub type Pieces<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Answers one of the two RPCs. Who may not be here at all is turned away at once; everything else is said in the stream,
/// because a client may wait for the beginning of the answer before it sends anything.
pub async fn answer<W: Way>(
    parts: &Parts,
    request: Request<Streaming<W::Ask>>,
) -> Result<Response<Pieces<W::Answer>>, Status> {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>();
    let request_id = id.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
    let peer = extensions.get::<ConnectedPeer>().cloned();
    let credentials = Arc::new(Credentials::of(peer, request.metadata().as_ref()));
    let bounds = extensions.get::<StreamBounds>().cloned();
    let admitted = async {
        let bounds = bounds.ok_or_else(|| Error::internal("a stream without bounds"))?;
        let authn = &parts.authn;
        let caller = authn.caller(&credentials, Arc::clone(&request_id), W::ACTION);
        let caller = caller.await?;
        let place = parts
            .gate
            .admit_stream(&caller, parts.limits.most_streams());
        let place = parts.recorded(&caller, W::ACTION, place).await?;
        Ok((bounds, caller, place))
    };
    let (bounds, caller, place) = admitted.await.map_err(|e: Error| status(&e, &request_id))?;
    let work = Work::<W> {
        parts: parts.clone(),
        credentials,
        caller,
        incoming: Incoming::new(request.into_inner(), bounds, parts.limits),
        stage: Stage::New(place),
    };
    let flow = Flow {
        work: Some(work),
        request_id,
        failed: None,
        waiting_since: Instant::now(),
    };
    let idle = Duration::from_secs(parts.limits.stream_idle_seconds);
    Ok(Response::new(pieces(flow, idle)))
}

/// The flow as what the transport pulls at.
fn pieces<W: Way>(flow: Flow<W>, idle: Duration) -> Pieces<W::Answer> {
    let call = Call::current();
    let flow = Arc::new(Mutex::new(flow));
    // Weak: when the transport lets go, the client has left, and the flow must end then and not later.
    tokio::spawn(call.clone().run(watch(Arc::downgrade(&flow), idle)));
    let next = move |flow: Arc<Mutex<Flow<W>>>| {
        let step = async move {
            let next = flow.lock().await.next().await?;
            Some((next, flow))
        };
        call.clone().run(step)
    };
    Box::pin(stream::unfold(flow, next))
}

/// Ends a stream whose client does not take what is there for it. While a piece is being made the flow is locked, and
/// `Incoming` keeps the same bounds.
async fn watch<W: Way>(flow: Weak<Mutex<Flow<W>>>, idle_time: Duration) {
    let tick = (idle_time / 4).min(Duration::from_millis(500));
    loop {
        sleep(tick).await;
        let Some(flow) = flow.upgrade() else {
            return;
        };
        let Ok(mut flow) = flow.try_lock() else {
            continue;
        };
        let Some(work) = &flow.work else {
            return;
        };
        let mut bounds = work.incoming.check();
        if flow.waiting_since.elapsed() >= idle_time {
            bounds = Err(idle("nothing was read", idle_time));
        }
        if let Err(error) = bounds {
            flow.fail(error).await;
            return;
        }
    }
}

/// A stream and how it ended.
struct Flow<W: Way> {
    /// None when it is over.
    work: Option<Work<W>>,
    request_id: Arc<str>,
    /// What the client is still to be told.
    failed: Option<Status>,
    /// When the last piece was handed over.
    waiting_since: Instant,
}

impl<W: Way> Flow<W> {
    /// The next message; None after the last and after an error.
    async fn next(&mut self) -> Option<Result<W::Answer, Status>> {
        if let Some(failed) = self.failed.take() {
            return Some(Err(failed));
        }
        let made = self.work.as_mut()?.next().await;
        self.waiting_since = Instant::now();
        match made {
            Ok(answer) => Some(Ok(answer?)),
            Err(error) => {
                self.fail(error).await;
                self.failed.take().map(Err)
            }
        }
    }

    /// Ends it, and records that.
    async fn fail(&mut self, error: Error) {
        let Some(work) = self.work.take() else {
            return;
        };
        let error = work.fail(error).await;
        self.failed = Some(status(&error, &self.request_id));
    }
}

/// An open stream.
struct Work<W: Way> {
    parts: Parts,
    credentials: Arc<Credentials>,
    caller: Caller,
    incoming: Incoming<W>,
    stage: Stage<W>,
}

enum Stage<W> {
    /// Nothing was asked for yet.
    New(Place),
    /// Authorised, recorded, and under way.
    Running(Box<Running<W>>),
    /// Complete, and recorded.
    Done,
}

struct Running<W> {
    /// None when its last bytes were made.
    way: Option<W>,
    ongoing: Ongoing,
    /// For the first message.
    kid: String,
    /// What leaves next.
    out: Vec<u8>,
}

impl<W: Way> Work<W> {
    async fn next(&mut self) -> Result<Option<W::Answer>> {
        if matches!(self.stage, Stage::New(_)) {
            self.begin().await?;
        }
        let Stage::Running(running) = &mut self.stage else {
            return Ok(None);
        };
        running.make(&mut self.incoming).await?;
        let answer = running.answer();
        if running.way.is_none()
            && let Stage::Running(done) = std::mem::replace(&mut self.stage, Stage::Done)
        {
            done.ongoing.end(Ok(())).await?;
        }
        Ok(Some(answer))
    }

    /// From the first message to the row that says it has begun.
    async fn begin(&mut self) -> Result<()> {
        let start = self.incoming.start().await?;
        crypto::check_aad(&start.aad)?;
        let target = target(&self.parts.keys, &self.caller, &start).await?;
        let Stage::New(place) = std::mem::replace(&mut self.stage, Stage::Done) else {
            return Err(Error::internal("a stream began twice"));
        };
        let again = Arc::new(Again {
            parts: self.parts.clone(),
            credentials: Arc::clone(&self.credentials),
            request_id: Arc::clone(&self.caller.request_id),
            action: W::ACTION,
            resource: target.resource(),
        });
        let mut out = Vec::with_capacity(ROOM);
        let (keys, incoming, first) = (&self.parts.keys, &mut self.incoming, &mut out);
        let act = async |permit: Permit| {
            let key = target.snapshot()?;
            permit.release_if(move || Arc::clone(&again).holds());
            let (way, kid) = W::begin(keys, &permit, key, &start, incoming, first).await?;
            let mut details = Map::new();
            details.insert("kid".into(), json!(kid.to_string()));
            Ok(((way, kid), details))
        };
        let gate = &self.parts.gate;
        let opened = gate.open(place, &self.caller, W::ACTION, target.resource(), act);
        let ((way, kid), ongoing) = opened.await?;
        self.stage = Stage::Running(Box::new(Running {
            way: Some(way),
            ongoing,
            kid: kid.to_string(),
            out,
        }));
        Ok(())
    }

    /// Records the failure; returns the error with the note that it is recorded.
    async fn fail(self, error: Error) -> Error {
        let recorded: Result<()> = match self.stage {
            Stage::Running(running) => running.ongoing.end(Err(error)).await,
            Stage::New(_) | Stage::Done => {
                let failed = Err(error);
                self.parts.recorded(&self.caller, W::ACTION, failed).await
            }
        };
        let lost = || Error::internal("a failed stream did not fail");
        recorded.err().unwrap_or_else(lost)
    }
}

async fn target(keys: &Keys, caller: &Caller, start: &Start) -> Result<Target> {
    let tenant = convert::tenant(&start.tenant, caller)?;
    let key: KeyRef = start.key.parse()?;
    keys.find(&tenant, &key).await
}

impl<W: Way> Running<W> {
    /// Reads and works until something may leave, at the latest until the end.
    async fn make(&mut self, incoming: &mut Incoming<W>) -> Result<()> {
        let at_end = loop {
            if !incoming.fill().await? {
                break true;
            }
            let piece = incoming.take(PIECE);
            let way = self.way.as_mut();
            let way = way.ok_or_else(|| Error::internal("a stream went on after its end"))?;
            way.push(&piece, &mut self.out)?;
            if !self.out.is_empty() {
                break false;
            }
        };
        if at_end && let Some(way) = self.way.take() {
            way.finish(&mut self.out)?;
        }
        self.ongoing.release(self.out.len()).await
    }

    fn answer(&mut self) -> W::Answer {
        let data = std::mem::replace(&mut self.out, Vec::with_capacity(ROOM));
        W::answer(data.into(), std::mem::take(&mut self.kid))
    }
}

/// Who may encrypt now may not for ever: certificates end, principals lose their roles, and a stream goes on.
struct Again {
    parts: Parts,
    credentials: Arc<Credentials>,
    request_id: Arc<str>,
    action: Action,
    resource: Resource,
}

impl Again {
    async fn holds(self: Arc<Self>) -> Result<()> {
        let request_id = Arc::clone(&self.request_id);
        let authn = &self.parts.authn;
        let caller = authn
            .again(&self.credentials, request_id, self.action)
            .await?;
        let gate = &self.parts.gate;
        gate.recheck(&caller, self.action, &self.resource)
    }
}
