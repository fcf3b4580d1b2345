//! Count and duration of every call, by method, exposure and code (R-ACL-4).
//!
//! Labels come from the table of RPCs and never from the request: a path that is not in it counts as
//! `unknown`, or a scanner could fill the memory of Prometheus. Handles are resolved once, so that a call formats
//! nothing and takes no lock.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use metrics::{Counter, Histogram, counter, histogram};
use tonic::Code;
use tracing::{Span, field};

use super::RequestId;
use crate::{
    model::{Exposure, METHODS},
    trace,
};

/// RPCs of the ecosystem, which `proto/` does not declare.
const COMPANIONS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The handles of every method.
pub(super) struct Methods {
    by_path: HashMap<&'static str, usize>,
    /// The last one is `unknown`.
    handles: Vec<Handles>,
}

struct Handles {
    method: &'static str,
    exposure: &'static str,
    seconds: Histogram,
    /// By code, and only those that occurred: most methods never answer most codes.
    totals: [OnceLock<Counter>; CODES.len()],
}

/// One call under way. Dropped before its end, it counts as CANCELLED: the client has left.
pub(super) struct Observation {
    methods: Arc<Methods>,
    index: usize,
    started: Instant,
    finished: bool,
    /// The root of the call's trace, if there is one.
    span: Span,
}

impl Methods {
    pub(super) fn new() -> Self {
        let declared = METHODS.iter().map(|m| (m.path, m.exposure));
        let companions = COMPANIONS.map(|path| (path, Exposure::Internal));
        let mut by_path = HashMap::new();
        let mut handles = Vec::new();
        for (path, exposure) in declared.chain(companions) {
            by_path.insert(path, handles.len());
            let method = path.strip_prefix('/').unwrap_or(path);
            handles.push(Handles::new(method, exposure.label()));
        }
        handles.push(Handles::new("unknown", "unknown"));
        Self { by_path, handles }
    }
}

impl Handles {
    fn new(method: &'static str, exposure: &'static str) -> Self {
        Self {
            method,
            exposure,
            seconds: histogram!("claviger_rpc_seconds", "method" => method, "exposure" => exposure),
            totals: [const { OnceLock::new() }; CODES.len()],
        }
    }

    fn total(&self, code: Code) -> Option<&Counter> {
        let index = code as usize;
        let label = CODES.get(index)?;
        let total = self.totals.get(index)?;
        Some(total.get_or_init(|| {
            counter!(
                "claviger_rpc_total",
                "method" => self.method, "exposure" => self.exposure, "code" => *label
            )
        }))
    }
}

impl Observation {
    pub(super) fn start(methods: &Arc<Methods>, path: &str) -> Self {
        let unknown = methods.handles.len() - 1;
        Self {
            index: methods.by_path.get(path).copied().unwrap_or(unknown),
            methods: Arc::clone(methods),
            started: Instant::now(),
            finished: false,
            span: Span::none(),
        }
    }

    /// A root for the call's trace. A method that is not in the table has no name here either.
    pub(super) fn root_span(&self, id: &RequestId) -> Span {
        let method = self.method();
        let (service, name) = method.split_once('/').unwrap_or(("", method));
        tracing::info_span!(
            target: trace::ROOT,
            "rpc",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = field::Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = name,
            rpc.grpc.status_code = field::Empty,
            claviger.request_id = %id,
            claviger.tenant = field::Empty,
            claviger.principal.id = field::Empty,
        )
    }

    /// How the call ends is said on this span too.
    pub(super) fn traced(&mut self, span: Span) {
        self.span = span;
    }

    /// The method's name, or `unknown`.
    pub(super) fn method(&self) -> &'static str {
        self.handles().method
    }

    pub(super) fn finish(&mut self, code: Code) {
        self.finished = true;
        end(&std::mem::replace(&mut self.span, Span::none()), code);
        let handles = self.handles();
        handles.seconds.record(self.started.elapsed().as_secs_f64());
        if let Some(total) = handles.total(code) {
            total.increment(1);
        }
    }

    fn handles(&self) -> &Handles {
        &self.methods.handles[self.index]
    }
}

/// A server's span is in error only when the server is to blame (semantic conventions for gRPC).
fn end(span: &Span, code: Code) {
    if span.is_disabled() {
        return;
    }
    span.record("rpc.grpc.status_code", code as i64);
    let is_ours = match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    };
    if is_ours {
        span.record("otel.status_code", "ERROR");
    }
    // The end of the span is when it was left last, so this is when.
    span.in_scope(|| {});
}

impl Drop for Observation {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(Code::Cancelled);
        }
    }
}
