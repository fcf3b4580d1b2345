//! R6: logs, metrics and traces of the process: set up once, before anything else starts.
//!
//! Logs are JSON on stderr, one event a line. Metrics go to a Prometheus recorder whose text the ops
//! listener serves. Traces go to a collector, if there is one. All are global to the process, because `tracing` and
//! `metrics` are: what was installed first stays. Nothing here sees a secret; secret types cannot be printed.

mod config;
mod traces;

use std::{panic, sync::OnceLock, time::Duration};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, fmt, prelude::*, util::SubscriberInitExt,
};

pub use self::{
    config::TelemetryConfig,
    traces::{Export, Identity, Tracer},
};
use crate::trace;

/// Upper bounds of every histogram of seconds: from a cached decision to a KMS call that times out.
const SECONDS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
/// Histograms collect raw samples until they are folded into buckets; somebody has to do it when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Section `log`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, also per module: `info,claviger::rotation=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Several coloured lines, for people who develop.
    Pretty,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level does not parse.
    #[error("log.level {level:?} is not a level ({source}); use error, warn, info, debug or trace")]
    Level {
        /// The setting.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Traces cannot be exported as configured.
    #[error("{0}")]
    Traces(String),
    /// The metrics recorder cannot be built.
    #[error("metrics cannot start: {0}")]
    Metrics(#[from] BuildError),
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Json,
        }
    }
}

/// Keeps the metrics' memory bounded until `shutdown` ends; one of `app`'s tasks.
pub async fn upkeep(metrics: PrometheusHandle, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => metrics.run_upkeep(),
        }
    }
}

/// Prepares traces, if the configuration names a collector: what `logs` needs, and the task that sends them away.
pub fn traces(
    config: &TelemetryConfig,
    identity: Identity,
) -> Result<Option<(Tracer, Export)>, TelemetryError> {
    traces::begin(config, identity).map_err(TelemetryError::Traces)
}

/// Starts logging, of panics too, and tracing with a `tracer`. A second call only checks the configuration.
pub fn logs(config: &LogConfig, tracer: Option<Tracer>) -> Result<(), TelemetryError> {
    let mut filter = EnvFilter::try_new(&config.level).map_err(|source| TelemetryError::Level {
        level: config.level.clone(),
        source,
    })?;
    let off = [
        // It reports every vendor mechanism that it does not know as an error, at each start.
        "cryptoki::mechanism".to_owned(),
        trace::ROOT.to_owned(),
        trace::STEP.to_owned(),
    ];
    for target in off {
        if let Ok(quiet) = format!("{target}=off").parse() {
            filter = filter.add_directive(quiet);
        }
    }
    let layer = fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Pretty => layer.pretty().boxed(),
    };
    let installed = match tracer {
        // One filter for everything is the cheapest: what is off then costs an atomic load.
        None => tracing_subscriber::registry()
            .with(lines)
            .with(filter)
            .try_init(),
        Some(tracer) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(tracer.0)
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_level(false)
                .with_target(false)
                .with_context_activation(false)
                .with_filter(traces::Traced);
            let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> =
                vec![lines.with_filter(filter).boxed(), spans.boxed()];
            tracing_subscriber::registry().with(layers).try_init()
        }
    };
    // An error means that another daemon of this process was first.
    if installed.is_ok() {
        log_panics();
    }
    Ok(())
}

/// A panic is a log event like others, or the log pipeline would choke on its plain text.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            location = location.as_deref().unwrap_or("unknown"),
            thread = thread.name().unwrap_or("unnamed"),
            backtrace = %std::backtrace::Backtrace::capture(),
            "panic: {message}"
        );
    }));
}

/// Starts metrics and returns what renders them. A second call returns the handle of the first: the tests run many
/// daemons in one process.
pub fn metrics() -> Result<PrometheusHandle, TelemetryError> {
    // `metrics` has one recorder per process, and gives no way back to its handle.
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .build_recorder();
    Ok(HANDLE
        .get_or_init(move || {
            let handle = recorder.handle();
            // Fails only when somebody else's recorder is installed; ours then renders nothing.
            if ::metrics::set_global_recorder(recorder).is_err() {
                tracing::error!("another metrics recorder is installed; /metrics will be empty");
            }
            describe();
            gauge!("claviger_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            handle
        })
        .clone())
}

fn describe() {
    describe_gauge!("claviger_build_info", "Always 1; the label is the version.");
    describe_counter!(
        "claviger_rpc_total",
        "Calls by method, exposure and gRPC code."
    );
    describe_histogram!(
        "claviger_rpc_seconds",
        Unit::Seconds,
        "Time from the request's headers to the end of its answer."
    );
    describe_counter!(
        "claviger_http_requests_total",
        "Requests of the public listener by route, exposure and status."
    );
    describe_histogram!(
        "claviger_http_request_seconds",
        Unit::Seconds,
        "Time from the headers of a request of the public listener to those of its answer."
    );
    describe_counter!(
        "claviger_authentication_failures_total",
        "Credentials that did not count, by reason."
    );
    describe_gauge!(
        "claviger_connections_open",
        "TLS connections that are open, handshakes included."
    );
    describe_counter!(
        "claviger_connections_refused_total",
        "Connections closed at once because too many were open."
    );
    describe_counter!(
        "claviger_tls_handshake_failures_total",
        "TLS handshakes that failed, by reason."
    );
    describe_counter!(
        "claviger_cache_loads_total",
        "Reads of the database or the KEK because a cache did not hold what a call needed, by cache."
    );
    describe_counter!(
        "claviger_audit_checkpoints_total",
        "Checkpoints of the audit log that were written."
    );
    describe_counter!(
        "claviger_audit_checkpoint_failures_total",
        "Checkpoints of the audit log that could not be written."
    );
    describe_gauge!(
        "claviger_data_keys_held",
        "Unwrapped data keys in memory; at most keys.data_key_cache_size."
    );
    describe_gauge!(
        "claviger_data_keys_undecryptable",
        "Data keys that this replica knows not to unwrap under their KEK."
    );
    describe_gauge!(
        "claviger_kek_up",
        "1 while the KEK in this state unwraps its probe."
    );
    describe_counter!(
        "claviger_data_keys_rewrapped_total",
        "Data keys that this replica moved to another KEK."
    );
    describe_counter!(
        "claviger_requests_shed_total",
        "Calls refused because too many request bytes were in flight."
    );
    describe_counter!(
        "claviger_admin_calls_shed_total",
        "Administrative calls refused because their principal had too many in flight."
    );
    describe_gauge!(
        "claviger_streams_open",
        "EncryptStream and DecryptStream calls that are open."
    );
    describe_counter!(
        "claviger_streams_shed_total",
        "Streams refused because their principal had too many open."
    );
    describe_counter!(
        "claviger_policy_evaluations_total",
        "Decisions that were not cached."
    );
    describe_histogram!(
        "claviger_audit_batch_rows",
        "Rows of one transaction of the access stream."
    );
    describe_counter!(
        "claviger_audit_dropped_total",
        "Access rows that nobody waited for and that were lost because the queue was full."
    );
    describe_counter!(
        "claviger_wrong_signature_total",
        "Signatures by a backend that did not verify, and did not leave."
    );
    describe_counter!(
        "claviger_data_key_undecryptable_total",
        "Data keys that did not unwrap under their KEK."
    );
    describe_gauge!(
        "claviger_scheduler_leader",
        "1 on the replica that does the scheduled work."
    );
    describe_gauge!(
        "claviger_credential_rotations_leader",
        "1 on the replica that brings rotations of credentials on."
    );
    describe_counter!(
        "claviger_job_runs_total",
        "Runs of scheduled jobs, by job and outcome."
    );
    describe_counter!(
        "claviger_job_item_failures_total",
        "Single items that a scheduled job failed with, by job; each is tried again."
    );
    describe_gauge!(
        "claviger_keys_overdue",
        "Keys of all tenants whose next rotation is in the past, as the replica that does the scheduled work saw it last."
    );
    describe_counter!(
        "claviger_token_marks_total",
        "Times the high-water mark of issued tokens was raised in the database."
    );
    describe_gauge!(
        "claviger_leftovers_quarantined",
        "Leftovers of interrupted key generation on the devices, as the replica that does the scheduled work saw it last."
    );
    describe_gauge!(
        "claviger_backend_up",
        "1 while the key backend answers, by backend."
    );
    describe_gauge!(
        "claviger_backend_breaker_state",
        "Circuit breaker by backend: 0 closed, 1 half-open, 2 open, 3 shut because the PIN is wrong."
    );
    describe_gauge!(
        "claviger_backend_calls_in_flight",
        "Uses of keys that are with the backend, as seen a moment ago."
    );
    describe_counter!(
        "claviger_backend_refused_total",
        "Calls answered by the circuit breaker in place of the backend."
    );
    describe_counter!(
        "claviger_backend_failures_total",
        "Calls that the backend failed or did not answer in time; what it refuses is no failure."
    );
    describe_histogram!(
        "claviger_backend_call_seconds",
        Unit::Seconds,
        "Time of calls to the backend, by backend and operation, queue included."
    );
    describe_counter!(
        "claviger_pkcs11_threads_replaced_total",
        "Threads that did not come back from the PKCS#11 library and were replaced."
    );
    describe_gauge!(
        "claviger_pkcs11_threads_lost",
        "Replaced threads that are still inside the PKCS#11 library."
    );
    describe_counter!(
        "claviger_trace_spans_exported_total",
        "Spans of traces that the collector took."
    );
    describe_counter!(
        "claviger_trace_spans_dropped_total",
        "Spans of traces that were lost, by reason."
    );
    describe_gauge!(
        "claviger_trace_collector_up",
        "1 while the collector takes traces."
    );
    describe_histogram!(
        "claviger_kms_call_seconds",
        Unit::Seconds,
        "Time of calls to AWS KMS by call and outcome, retries and the wait for a turn included."
    );
    describe_counter!(
        "claviger_kms_refused_total",
        "Calls to AWS KMS that were not sent because their class has no room under its quota."
    );
    describe_counter!(
        "claviger_kms_throttled_total",
        "Answers of AWS KMS that too many calls of a class were sent."
    );
    describe_counter!(
        "claviger_credential_probes_total",
        "Probes of credentials at their provider."
    );
    describe_counter!(
        "claviger_credential_rotation_steps_total",
        "Rotations of credentials that came into a state, by state."
    );
    describe_counter!(
        "claviger_credential_unreadable_total",
        "Credentials that did not open under their data key."
    );
    describe_counter!(
        "claviger_credentials_rewrapped_total",
        "Values of credentials that this replica moved to another data key."
    );
    describe_counter!(
        "claviger_alerts_total",
        "Alerts whose deliveries this replica made, by kind."
    );
    describe_counter!(
        "claviger_alert_deliveries_total",
        "Attempts to deliver alerts, by channel and outcome."
    );
    describe_counter!(
        "claviger_usage_uncounted_total",
        "Calls that count for nobody because too many principals and addresses called between two writes of their usage."
    );
}
