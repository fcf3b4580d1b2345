//! R0: one call as a tree of spans: what every room uses to say where the time of a call goes.
//!
//! Spans of a trace are `tracing` spans of two targets of their own: the root of a call ([`ROOT`]) and its steps
//! ([`STEP`], made by `step!`). Logs never show them; `telemetry` exports them. A step exists only below a root, and a
//! root only when its call is sampled, so a call that is not costs one decision and a look at the task per step; without
//! a collector, nothing but an atomic load. What a span says is a name of ours or an id: no payload, no credential, no text that a
//! caller chose, except the request id.
//!
//! The sampler is global to the process because the subscriber that it belongs to is.

mod parent;
mod sample;

use std::sync::OnceLock;

use http::HeaderMap;
use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt, TraceId},
};
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use sample::Ratio;

use crate::model::{PrincipalId, TenantName};

/// Target of the spans that begin a trace.
pub const ROOT: &str = "claviger_trace_root";
/// Target of the spans below them.
pub const STEP: &str = "claviger_trace";

static SAMPLED: OnceLock<Ratio> = OnceLock::new();

/// A step of the call that is under way: a name and fields whose values are ours, or ids. Disabled outside of a trace.
macro_rules! step {
    (parent: $parent:expr, $name:expr $(, $($fields:tt)*)?) => {
        match $crate::trace::is_sampled() {
            true => ::tracing::info_span!(
                target: $crate::trace::STEP, parent: $parent, $name $(, $($fields)*)?
            ),
            false => ::tracing::Span::none(),
        }
    };
    ($name:expr $(, $($fields:tt)*)?) => {
        match $crate::trace::is_sampled() {
            true => ::tracing::info_span!(target: $crate::trace::STEP, $name $(, $($fields)*)?),
            false => ::tracing::Span::none(),
        }
    };
}
pub(crate) use step;

/// Traces begin from here on, this part of them that no caller has decided about. Called once, by `telemetry`.
pub fn start(ratio: Ratio) {
    // Another daemon of this process was first; its subscriber stays, and so does its ratio.
    let _ = SAMPLED.set(ratio);
}

/// The spans of a call: the root of its trace, and what its log lines name.
#[derive(Clone, Debug)]
pub struct Call {
    root: Span,
    log: Span,
}

/// Where a trace begins.
#[derive(Debug)]
pub struct Root {
    /// The span; disabled when the call is not sampled.
    pub span: Span,
    /// For log lines: the trace's id. None when there is no trace, here or at a caller who is believed.
    pub id: Option<TraceId>,
}

impl Root {
    const NONE: Self = Self {
        span: Span::none(),
        id: None,
    };

    /// The root of a request with these headers. A caller who is believed is the parent, and has decided whether the call
    /// is sampled. Anybody else is not: the trace is a new one, sampled as we please, that links to theirs.
    pub fn of(headers: &HeaderMap, is_believed: bool, span: impl FnOnce() -> Span) -> Self {
        let Some(ratio) = SAMPLED.get() else {
            return Self::NONE;
        };
        match parent::of(headers) {
            Some(parent) if is_believed => Self::below(parent, span),
            stranger => {
                if !ratio.takes_one() {
                    return Self::NONE;
                }
                let root = Self::begin(span());
                if let Some(stranger) = stranger {
                    root.span.add_link(stranger);
                }
                root
            }
        }
    }

    fn below(parent: SpanContext, span: impl FnOnce() -> Span) -> Self {
        let id = Some(parent.trace_id());
        if !parent.is_sampled() {
            return Self {
                span: Span::none(),
                id,
            };
        }
        let span = span();
        // It fails only for a span that is disabled, which then is no part of any trace.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        Self { span, id }
    }

    fn begin(span: Span) -> Self {
        let context = span.context();
        let id = context.span().span_context().trace_id();
        let id = (id != TraceId::INVALID).then_some(id);
        Self { span, id }
    }
}

tokio::task_local! {
    static CALL: Call;
}

impl Call {
    /// A call with this root and this span for its log lines.
    pub const fn new(root: Span, log: Span) -> Self {
        Self { root, log }
    }

    /// The one under way; one without spans outside of any.
    pub fn current() -> Self {
        CALL.try_with(Self::clone)
            .unwrap_or_else(|_| Self::new(Span::none(), Span::none()))
    }

    /// Does this as part of the call, in whatever task it runs.
    pub fn run<F: Future>(self, act: F) -> impl Future<Output = F::Output> {
        let Self { root, log } = self.clone();
        CALL.scope(self, act).instrument(log).instrument(root)
    }
}

/// Is the call under way in a trace that is exported? A subscriber takes far longer to say that nobody wants a span.
pub fn is_sampled() -> bool {
    SAMPLED.get().is_some()
        && CALL
            .try_with(|call| !call.root.is_disabled())
            .unwrap_or(false)
}

/// Says at the root of the call under way who makes it.
pub fn root_is_of(principal: &PrincipalId, tenant: &TenantName) {
    let root = Call::current().root;
    root.record("claviger.principal.id", field::display(principal));
    root.record("claviger.tenant", tenant.as_str());
}

/// Says at the root of the call under way which one it is, where that was not known when it began.
pub fn root_is_request(id: &str) {
    Call::current().root.record("claviger.request_id", id);
}

/// `act` for a task of its own that is still part of the call and of the step under way.
pub fn carry<F: Future>(act: F) -> impl Future<Output = F::Output> {
    Call::current().run(act.instrument(Span::current()))
}
