//! A collector: the OTLP receiver for traces over gRPC, which keeps what it gets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::{daemon::PATIENCE, pki::Leaf};

/// How it takes what it is sent.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    Takes,
    /// Never answers.
    Hangs,
    Refuses(Code),
}

#[derive(Default)]
struct Got {
    spans: Vec<Span>,
    resources: Vec<HashMap<String, String>>,
    /// As they came.
    bytes: Vec<u8>,
    headers: Vec<String>,
    asked: usize,
}

/// A running collector; it ends with the test.
#[derive(Clone)]
pub struct Collector {
    pub endpoint: String,
    manner: Arc<Mutex<Manner>>,
    got: Arc<Mutex<Got>>,
}

impl Collector {
    pub async fn start(manner: Manner) -> Self {
        Self::serve(manner, None).await
    }

    /// With this certificate.
    pub async fn start_tls(leaf: &Leaf) -> Self {
        Self::serve(Manner::Takes, Some(leaf)).await
    }

    async fn serve(manner: Manner, leaf: Option<&Leaf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let collector = Self {
            endpoint: match leaf {
                Some(_) => format!("https://localhost:{port}"),
                None => format!("http://127.0.0.1:{port}"),
            },
            manner: Arc::new(Mutex::new(manner)),
            got: Arc::default(),
        };
        let mut server = Server::builder();
        if let Some(leaf) = leaf {
            let identity = Identity::from_pem(&leaf.pem, leaf.key.serialize_pem());
            let tls = ServerTlsConfig::new().identity(identity);
            server = server.tls_config(tls).expect("TLS");
        }
        let service = TraceServiceServer::new(collector.clone());
        let served = server
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(served);
        collector
    }

    /// Section `[telemetry]` of a daemon that sends its traces here.
    pub fn section(&self, ratio: f64) -> String {
        format!(
            "[telemetry]\notlp_endpoint = \"{}\"\ntrace_sample_ratio = {ratio:?}\n",
            self.endpoint
        )
    }

    pub fn becomes(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }

    fn got(&self) -> MutexGuard<'_, Got> {
        self.got.lock().expect("no panic")
    }

    /// Everything so far.
    pub fn spans(&self) -> Vec<Span> {
        self.got().spans.clone()
    }

    /// Every message so far, as it came.
    pub fn bytes(&self) -> Vec<u8> {
        self.got().bytes.clone()
    }

    /// The attributes of the daemons that sent something.
    pub fn resources(&self) -> Vec<HashMap<String, String>> {
        self.got().resources.clone()
    }

    /// What came in the header `x-token`.
    pub fn tokens(&self) -> Vec<String> {
        self.got().headers.clone()
    }

    /// Waits until it was asked so often.
    pub async fn asked(&self, times: usize) {
        self.until("it is not asked", |got| (got.asked >= times).then_some(()))
            .await;
    }

    /// The spans of a trace, once its root is there: a root is over when everything below it is.
    pub async fn trace(&self, id: &str) -> Vec<Span> {
        let of = |got: &Got| -> Vec<Span> {
            let spans = got.spans.iter().filter(|span| hex(&span.trace_id) == id);
            spans.cloned().collect()
        };
        self.until("no root of this trace", |got| {
            let spans = of(got);
            spans.iter().any(is_root).then_some(spans)
        })
        .await
    }

    /// The first root of this name, once it is there.
    pub async fn root(&self, name: &str) -> Span {
        self.until("no such root", |got| {
            let mut roots = got.spans.iter().filter(|span| is_root(span));
            roots.find(|span| span.name == name).cloned()
        })
        .await
    }

    async fn until<T>(&self, otherwise: &str, found: impl Fn(&Got) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(&self.got()) {
                return found;
            }
            assert!(Instant::now() < until, "{otherwise}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Server spans begin what the daemon adds to a trace.
fn is_root(span: &Span) -> bool {
    span.kind == 2
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an attribute, as text.
pub fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|one| one.key == name);
    found.map(|one| text(one.value.as_ref()))
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("an attribute that nobody expects: {other:?}"),
    }
}

fn texts(attributes: &[KeyValue]) -> HashMap<String, String> {
    let pairs = attributes.iter();
    pairs
        .map(|one| (one.key.clone(), text(one.value.as_ref())))
        .collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.got().asked += 1;
        let manner = *self.manner.lock().expect("no panic");
        match manner {
            Manner::Takes => {}
            Manner::Hangs => std::future::pending().await,
            // A collector that repeats what it was sent.
            Manner::Refuses(code) => {
                let token = request.metadata().get("x-token");
                return Err(Status::new(code, format!("refused: {token:?}")));
            }
        }
        let mut got = self.got();
        let token = request.metadata().get("x-token");
        let token = token.and_then(|value| value.to_str().ok());
        got.headers.extend(token.map(str::to_owned));
        let message = request.into_inner();
        got.bytes.extend(message.encode_to_vec());
        for of in message.resource_spans {
            let resource = of.resource.expect("a resource");
            got.resources.push(texts(&resource.attributes));
            let scopes = of.scope_spans.into_iter();
            got.spans.extend(scopes.flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
