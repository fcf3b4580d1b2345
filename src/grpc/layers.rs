//! What happens around every RPC: request id, deadline, metrics, and typed errors for what no handler saw.
//!
//! One layer and one boxed future instead of a stack of four: this runs on the hot path of signing. The
//! parts live in the modules below. Handlers find [`RequestId`] and [`Deadline`] in the
//! request's extensions, those of streams [`StreamBounds`]. Nothing
//! here knows who calls.

mod budget;
mod deadline;
mod metrics;
mod normalise;
mod request_id;
mod stream;

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;
use tonic::{Code, body::Body};
use tower::{Layer, Service};
use tracing::field;

use self::{
    budget::{Budget, Held, metered},
    metrics::{Methods, Observation},
    normalise::{Normaliser, Place},
};
pub use self::{deadline::Deadline, request_id::RequestId, stream::StreamBounds};
use super::listener::GrpcConfig;
use crate::{
    authn::ConnectedPeer,
    error::Reason,
    trace::{Call, Root},
};

/// Wraps the gRPC routes; see the module.
#[derive(Clone)]
pub struct RpcLayer {
    methods: Arc<Methods>,
    timeout: Duration,
    max_request_bytes: usize,
    budget: Arc<Budget>,
    last_call: Arc<CancellationToken>,
}

/// The service that [`RpcLayer`] makes.
#[derive(Clone)]
pub struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl RpcLayer {
    /// With the limits of `config`. Streams end when `last_call` is cancelled.
    pub fn new(config: &GrpcConfig, last_call: CancellationToken) -> Self {
        Self {
            methods: Arc::new(Methods::new()),
            timeout: Duration::from_secs(config.request_timeout_seconds),
            max_request_bytes: config.max_request_bytes,
            budget: Arc::new(Budget::new(config.max_in_flight_bytes)),
            last_call: Arc::new(last_call),
        }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, B> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    type Response = Response<RpcBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut observation = Observation::start(&self.layer.methods, request.uri().path());
        let id = RequestId::of(request.headers());
        let peer = request.extensions().get::<ConnectedPeer>();
        // Who has proved a certificate is believed about the trace too.
        let is_believed = peer.is_some_and(|peer| peer.shows_certificate());
        let root = Root::of(request.headers(), is_believed, || {
            observation.root_span(&id)
        });
        let deadline = Deadline::of(request.headers(), self.layer.timeout);
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(deadline);
        let most = self.layer.max_request_bytes.saturating_mul(2);
        let held = Arc::new(Held::new(Arc::clone(&self.layer.budget), most));
        let last_call = Arc::clone(&self.layer.last_call);
        let bounds = StreamBounds::new(request.headers(), Arc::clone(&held), last_call);
        request.extensions_mut().insert(bounds);
        let request = request.map(|body| metered(body, Arc::clone(&held)));

        let log = tracing::info_span!(
            "rpc",
            method = observation.method(),
            request_id = %id,
            trace_id = root.id.map(field::display),
        );
        observation.traced(root.span.clone());
        let normaliser = Normaliser {
            request_id: id.clone(),
            max_request_bytes: self.layer.max_request_bytes,
        };
        let answer = AssertUnwindSafe(tokio::time::timeout_at(
            deadline.0,
            self.inner.call(request),
        ))
        .catch_unwind();
        let call = async move {
            let response = match answer.await {
                Ok(Ok(answered)) => finish(answered?, normaliser, observation),
                Ok(Err(_)) => refuse(
                    &normaliser,
                    observation,
                    Code::DeadlineExceeded,
                    Reason::DeadlineExceeded,
                    "the call's time is over; retry with a longer deadline",
                ),
                // The panic hook has logged it, inside this span.
                Err(_) => refuse(
                    &normaliser,
                    observation,
                    Code::Internal,
                    Reason::Internal,
                    normalise::INTERNAL,
                ),
            };
            drop(held);
            Ok(with_request_id(response, &id))
        };
        Box::pin(Call::new(root.span, log).run(call))
    }
}

/// An answer of the inner service: over already when it is an error, else with trailers to come.
fn finish<B>(
    response: Response<B>,
    normaliser: Normaliser,
    mut observation: Observation,
) -> Response<RpcBody<B>> {
    let (mut parts, body) = response.into_parts();
    let rest = match normaliser.check(&mut parts.headers, Place::Headers) {
        Some(code) => {
            observation.finish(code);
            None
        }
        None => Some((normaliser, observation)),
    };
    let inner = Some(body);
    Response::from_parts(parts, RpcBody { inner, rest })
}

/// Our own answer in place of the inner service's.
fn refuse<B>(
    normaliser: &Normaliser,
    mut observation: Observation,
    code: Code,
    reason: Reason,
    message: &str,
) -> Response<RpcBody<B>> {
    observation.finish(code);
    let status = normaliser.status(code, reason, message);
    let (parts, ()) = status.into_http::<()>().into_parts();
    let body = RpcBody {
        inner: None,
        rest: None,
    };
    Response::from_parts(parts, body)
}

fn with_request_id<B>(mut response: Response<B>, id: &RequestId) -> Response<B> {
    // An id holds nothing that a header may not.
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(request_id::HEADER, value);
    }
    response
}

/// A response body whose trailers are looked at: they hold the status of calls that sent a message.
pub struct RpcBody<B> {
    inner: Option<B>,
    rest: Option<(Normaliser, Observation)>,
}

impl<B> http_body::Body for RpcBody<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(inner) = self.inner.as_mut() else {
            return Poll::Ready(None);
        };
        let mut frame = ready!(Pin::new(inner).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some((normaliser, mut observation)) = self.rest.take()
        {
            let code = normaliser.check(trailers, Place::Trailers);
            observation.finish(code.unwrap_or(Code::Unknown));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), B::size_hint)
    }
}
