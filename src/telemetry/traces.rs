//! From spans that are over to a collector: a layer of the subscriber, a bounded queue, and the task that empties it.
//!
//! A call puts its spans into the queue and never waits: when the queue is full they are dropped and counted. A collector
//! that is down, slow or hanging holds up this task and nobody else; what it did not take is sent again with pauses while
//! the queue fills, and at the end of the daemon for one more `otlp_timeout_seconds`.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_proto::{
    tonic::{
        collector::trace::v1::{
            ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
        },
        trace::v1::ResourceSpans,
    },
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tonic::{
    Code,
    metadata::MetadataMap,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tracing::{Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::layer::{Context as LayerContext, Filter};

use super::TelemetryConfig;
use crate::trace::{self, Ratio};

/// Spans that wait for the collector at most.
const QUEUE: usize = 8192;
/// Spans of one export at most.
const BATCH: usize = 512;
/// How long a span waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// The pause after an export that did not work, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What every span says about this daemon.
pub struct Identity {
    /// `deployment.environment.name`.
    pub environment: &'static str,
    /// `service.instance.id`.
    pub replica: String,
}

/// Where the layer gets its spans.
pub struct Tracer(pub(super) SdkTracer);

/// The task that sends spans away. It must be run, or they are dropped.
pub struct Export {
    spans: mpsc::Receiver<SpanData>,
    many: Arc<Notify>,
    client: TraceServiceClient<Channel>,
    headers: MetadataMap,
    resource: ResourceAttributesWithSchema,
    patience: Duration,
    /// What the collector has not taken yet, and how many spans that is.
    held: Option<(Vec<ResourceSpans>, u64)>,
    pause: Duration,
    not_before: Instant,
    works: Option<bool>,
    _provider: SdkTracerProvider,
}

/// What became of an export.
enum Outcome {
    Taken,
    /// Later it may work.
    Failed(&'static str),
    /// It never will.
    Refused(&'static str),
}

/// Begins tracing, if the configuration names a collector. It is not asked yet.
///
/// Errors: a sentence that names the setting.
pub(super) fn begin(
    config: &TelemetryConfig,
    identity: Identity,
) -> Result<Option<(Tracer, Export)>, String> {
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(None);
    };
    let ratio = Ratio::new(config.trace_sample_ratio)
        .ok_or_else(|| "telemetry.trace_sample_ratio must be 0 to 1".to_owned())?;
    let resource = Resource::builder_empty()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", identity.replica))
        .with_attribute(KeyValue::new(
            "deployment.environment.name",
            identity.environment,
        ))
        .build();
    let (queue, spans) = mpsc::channel(QUEUE);
    let many = Arc::new(Notify::new());
    let processor = Queue {
        spans: queue,
        many: Arc::clone(&many),
    };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        // Whoever begins a trace has decided already: see `trace::Root`.
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource.clone())
        .build();
    let tracer = Tracer(provider.tracer("claviger"));
    let export = Export {
        spans,
        many,
        client: TraceServiceClient::new(channel(config, endpoint)?),
        headers: config.headers()?,
        resource: (&resource).into(),
        patience: config.patience(),
        held: None,
        pause: PAUSES.0,
        not_before: Instant::now(),
        works: None,
        _provider: provider,
    };
    trace::start(ratio);
    Ok(Some((tracer, export)))
}

/// Connects when it is used, and again when it broke.
fn channel(config: &TelemetryConfig, endpoint: &str) -> Result<Channel, String> {
    let wrong = |e: tonic::transport::Error| format!("telemetry.otlp_endpoint: {e}");
    let mut endpoint = Endpoint::from_shared(endpoint.to_owned())
        .map_err(wrong)?
        .connect_timeout(config.patience())
        .timeout(config.patience());
    if endpoint.uri().scheme_str() == Some("https") {
        let tls = ClientTlsConfig::new().trust_anchors(roots(config)?.roots);
        endpoint = endpoint.tls_config(tls).map_err(wrong)?;
    }
    Ok(endpoint.connect_lazy())
}

/// The CAs of the file, or those of the system.
fn roots(config: &TelemetryConfig) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(file) = &config.otlp_ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let unusable =
        |e: &dyn std::fmt::Display| format!("telemetry.otlp_ca_file {}: {e}", file.display());
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unusable(&e))? {
        let certificate = certificate.map_err(|e| unusable(&e))?;
        roots.add(certificate).map_err(|e| unusable(&e))?;
    }
    match roots.is_empty() {
        true => Err(unusable(&"no certificate in PEM")),
        false => Ok(roots),
    }
}

/// The way of a span into the queue.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    many: Arc<Notify>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            dropped("queue_full", 1);
        }
        if self.spans.capacity() == self.spans.max_capacity() / 2 {
            self.many.notify_one();
        }
    }

    /// Nobody calls it: the queue is emptied by [`Export`].
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn dropped(reason: &'static str, spans: u64) {
    counter!("claviger_trace_spans_dropped_total", "reason" => reason).increment(spans);
}

impl Export {
    /// Sends spans until `shutdown` ends, then what is left, for a while.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let many = Arc::clone(&self.many);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = tick.tick() => {}
                () = many.notified() => {}
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = self.send_all() => {}
            }
        }
        self.finish().await;
    }

    /// Until nothing is left or the collector does not take it.
    async fn send_all(&mut self) {
        while Instant::now() >= self.not_before && self.send_one().await {}
    }

    /// The same at the end: every pause counts, but the time is bounded.
    async fn finish(&mut self) {
        let until = Instant::now() + self.patience;
        let sent = timeout_at(until, async { while self.send_one().await {} });
        // Without an answer in time, what was being sent counts as lost.
        let _ = sent.await;
        self.spans.close();
        let held = self.held.take().map_or(0, |(_, count)| count);
        let lost = held + self.spans.len() as u64;
        if lost > 0 {
            dropped("shutdown", lost);
            tracing::warn!(
                spans = lost,
                "spans of traces are lost: the collector did not take them in time"
            );
        }
    }

    /// One export. False when there is nothing to send, or it has to be tried again later.
    async fn send_one(&mut self) -> bool {
        if self.held.is_none() {
            self.held = self.batch();
        }
        let Some((spans, count)) = &self.held else {
            return false;
        };
        let (spans, count) = (spans.clone(), *count);
        match self.export(spans).await {
            Outcome::Taken => {
                self.held = None;
                self.pause = PAUSES.0;
                counter!("claviger_trace_spans_exported_total").increment(count);
                self.tell(true, "");
                true
            }
            Outcome::Refused(why) => {
                self.held = None;
                dropped("refused", count);
                self.tell(false, why);
                true
            }
            Outcome::Failed(why) => {
                self.not_before = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSES.1);
                self.tell(false, why);
                false
            }
        }
    }

    fn batch(&mut self) -> Option<(Vec<ResourceSpans>, u64)> {
        let mut spans = Vec::new();
        while spans.len() < BATCH
            && let Ok(span) = self.spans.try_recv()
        {
            spans.push(span);
        }
        let count = spans.len() as u64;
        (count > 0).then(|| {
            (
                group_spans_by_resource_and_scope(spans, &self.resource),
                count,
            )
        })
    }

    async fn export(&mut self, resource_spans: Vec<ResourceSpans>) -> Outcome {
        let message = ExportTraceServiceRequest { resource_spans };
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        let answer = timeout_at(Instant::now() + self.patience, self.client.export(request)).await;
        let Ok(answer) = answer else {
            return Outcome::Failed("no answer in time");
        };
        let Err(status) = answer else {
            return Outcome::Taken;
        };
        let code = status.code();
        // As OTLP says which failures pass (specification, "Failures").
        match code {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Outcome::Failed(code.description()),
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Internal
            | Code::Unauthenticated => Outcome::Refused(code.description()),
        }
    }

    /// Says when it begins to work, and when it stops. What the collector answers is not repeated: it may quote a header.
    fn tell(&mut self, works: bool, why: &str) {
        let before = self.works.replace(works);
        gauge!("claviger_trace_collector_up").set(if works { 1.0 } else { 0.0 });
        match (before, works) {
            (Some(true), true) | (Some(false), false) => {}
            (_, true) => tracing::info!("traces are exported"),
            (_, false) => tracing::warn!(
                error = why,
                "traces are not exported: the collector at telemetry.otlp_endpoint does not take them; spans wait \
                 within bounds and are dropped beyond"
            ),
        }
    }
}

/// Which spans are exported: those of traces. Who makes them knows whether anybody wants them.
pub(super) struct Traced;

impl<S: Subscriber> Filter<S> for Traced {
    fn enabled(&self, metadata: &Metadata<'_>, _context: &LayerContext<'_, S>) -> bool {
        matches!(metadata.target(), trace::ROOT | trace::STEP)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target() {
            trace::ROOT | trace::STEP => Interest::always(),
            _ => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use opentelemetry::trace::Tracer as _;

    use super::*;

    // R-OPS-3
    #[test]
    fn spans_beyond_the_queue_are_dropped_and_counted() {
        let (queue, mut waiting) = mpsc::channel(4);
        let processor = Queue {
            spans: queue,
            many: Arc::default(),
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::AlwaysOn)
            .build();
        let tracer = provider.tracer("test");
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            for number in 0..10 {
                drop(tracer.start(number.to_string()));
            }
        });
        let names: Vec<_> = std::iter::from_fn(|| waiting.try_recv().ok())
            .map(|span| span.name)
            .collect();
        assert_eq!(names, ["0", "1", "2", "3"]);
        let counted = recorder.handle().render();
        let line = "claviger_trace_spans_dropped_total{reason=\"queue_full\"} 6";
        assert!(counted.contains(line), "{counted}");
    }
}
