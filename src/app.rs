//! R6: the composition root. From a configuration to a running daemon, top to bottom; it names every concrete type.
//!
//! Order of the start: policies, database, backends, KEK, directory, listeners. Whatever is wrong stops the start with
//! one sentence. Order of the end: not ready, listeners drain, mutations finish, the audit writer empties, the
//! database closes. The first task that fails ends the others the same way.

use std::{collections::BTreeMap, fmt, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    alerts::{Alerts, Channels},
    audit::{ADMIN_STREAM, AccessLog, Reader},
    authn::{self, Authn, ClientCertificate, Issuers, Manner, ReloadableTls},
    authz::{Authz, Policies},
    backends::{
        Awaited, Backend, BackendError, Guarded,
        aws_kms::AwsKmsBackend,
        pkcs11::{Modules, Pkcs11Backend, Pkcs11Config},
    },
    clients::{ApiKeys, Clients},
    clock::Clock,
    config::{BackendConfig, Config, Environment, KekConfig},
    destruction::Destructions,
    directory::Directory,
    egress::Egress,
    erasure::{Erasures, Notary},
    gate::{Freshness, Gate},
    grpc::{self, Parts, listener},
    health::Health,
    http::{BrokerCredentials, JwksSource, Metadata, Oauth, ops, public},
    incidents::Incidents,
    jobs::{
        Checkpoints, Feed, Patience, Pruning, Rewrapping, Sampler, Work, deliver_alerts,
        flush_api_key_uses, flush_usage, flush_uses, run_credential_rotations, run_scheduler,
        sample_data_keys, sweep_data_keys, watch_backends,
    },
    keys::{
        Backends, Keks, Keys, Reserved,
        keks::{self, Kek},
    },
    model::{Action, Entity, Job, Resource, TenantName},
    restore,
    rotation::{KekRotations, Rotations},
    store::Db,
    telemetry::{self, Export},
    tokens::Tokens,
    usage::Usage,
    vault::Vault,
};

/// Why the daemon does not start, or stopped.
#[derive(Debug)]
pub struct AppError(String);

impl AppError {
    fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AppError {}

/// Time for one backend call at the start; generating nothing, checking one key.
pub const START_PATIENCE: Duration = Duration::from_secs(30);

/// Time between two readings of the keys of other issuers.
const ISSUERS_REFRESH: Duration = Duration::from_secs(300);

/// A database that was set back forgets freezes: nobody serves over one before somebody stands for it.
async fn refuse_set_back(db: &Db, config: &Config) -> Result<(), AppError> {
    let Some(checkpoint) = &config.audit.checkpoint else {
        return Ok(());
    };
    let lost = restore::lost(db, checkpoint, &config.tokens.issuer).await;
    match lost.map_err(AppError::new)? {
        None => Ok(()),
        Some(lost) => Err(AppError(lost.advice())),
    }
}

/// Runs the daemon until `shutdown` ends, then drains it. Its traces, if any, leave by `export`.
pub async fn run(
    config: Config,
    clock: Clock,
    export: Option<Export>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AppError> {
    let metrics = telemetry::metrics().map_err(AppError::new)?;
    let policies = policies(config.authz.policies.as_deref())?;
    let listener_tls = |manner| {
        ReloadableTls::new(config.tls.clone(), clock.clone(), manner).map_err(AppError::new)
    };
    let mtls = listener_tls(Manner::grpc(config.grpc.client_certificate))?;
    let https = listener_tls(Manner::public(config.public.client_certificate))?;
    let (mtls, https) = (Arc::new(mtls), Arc::new(https));

    let db = Db::open(&config.database).await.map_err(AppError::new)?;
    db.check_schema().await.map_err(AppError::new)?;
    refuse_set_back(&db, &config).await?;
    // Without the KEK nothing works (R-ENV-2); and who wants a replica out of rotation while any backend is away does not
    // want it begun either.
    let needed = |name: &str| name == config.kek.backend || config.ops.ready_requires_backends;
    let opened = open_those(&config.backends, &Modules::new(), needed).await?;
    let guarded = guard(opened, &config.backends);
    let backends: Backends = guarded
        .iter()
        .map(|(name, backend)| (name.clone(), Arc::clone(backend) as Arc<dyn Backend>))
        .collect();
    let named = (config.kek.backend.as_str(), config.kek.uri.as_str());
    let keks = Keks::open(
        db.clone(),
        backends.clone(),
        named,
        clock.now(),
        START_PATIENCE,
    )
    .await
    .map_err(AppError::new)?;

    let health = Health::default();
    let freshness = Arc::new(Freshness::new(Duration::from_secs(
        config.feed.max_staleness_seconds,
    )));
    // Caches are empty now, so everything up to here is known.
    let seen = db.audit_head(ADMIN_STREAM).await.map_err(AppError::new)?;
    // Once more: opening the devices took its time, and from here on the feed would notice.
    refuse_set_back(&db, &config).await?;
    let authz = Arc::new(Authz::new(policies));
    let jobs = expect_jobs_allowed(&authz);
    match (jobs, config.environment) {
        (Err(error), Environment::Dev) => tracing::error!("{error}"),
        (jobs, _) => jobs?,
    }
    let (log, writer) = AccessLog::new(db.clone(), &config.audit);
    let gate = Arc::new(Gate::new(
        Arc::clone(&authz),
        db.clone(),
        log,
        Arc::clone(&freshness),
    ));
    let directory = Arc::new(Directory::new(db.clone(), clock.clone()));
    directory
        .bootstrap(&config.bootstrap)
        .await
        .map_err(|e| AppError(format!("bootstrap: {e:?}")))?;
    let issuers = Issuers::new(&config.authn.issuers).map_err(AppError::new)?;
    let issuers = Arc::new(issuers);
    let keys = Arc::new(Keys::new(
        db.clone(),
        backends.clone(),
        config.default_backend().to_owned(),
        reserved_keys(&config)?,
        Arc::new(keks),
        clock.clone(),
        config.keys.clone(),
    ));
    let api_keys = ApiKeys::new(
        db.clone(),
        Arc::clone(&keys),
        Arc::clone(&directory),
        clock.clone(),
        config.api_keys.clone(),
    );
    let api_keys = Arc::new(api_keys.map_err(AppError::new)?);
    let rotations = Arc::new(Rotations::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        config.soak(),
        config.rotation.clone(),
    ));
    let kek_rotations = Arc::new(KekRotations::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        config.rotation.clone(),
    ));
    let destructions = Arc::new(Destructions::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        config.keys.destruction_wait(),
        config.rotation.clock_skew(),
    ));
    let notary = config.audit.checkpoint.as_ref().map(|checkpoint| Notary {
        key: checkpoint.key.clone(),
        issuer: config.tokens.issuer.clone(),
    });
    let erasures = Arc::new(Erasures::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        config.keys.tenant_destruction_wait(),
        config.rotation.request_ttl(),
        notary,
    ));
    let egress = Egress::new(&config.egress).map_err(|e| AppError(format!("egress: {e}")))?;
    let egress = Arc::new(egress);
    // Not the configured name alone: two daemons that share one by mistake are still two to wait for.
    let replica = format!("{}/{}", config.audit.replica, uuid::Uuid::now_v7());
    let incidents = Arc::new(Incidents::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        replica.clone(),
    ));
    let vault = Vault::new(
        db.clone(),
        (
            Arc::clone(&keys),
            Arc::clone(&directory),
            Arc::clone(&egress),
        ),
        clock.clone(),
        &config.vault,
    );
    let vault = Arc::new(vault.map_err(AppError::new)?);
    // Of no consequence for the start: who wants to know reads it.
    if let Err(error) = vault.log_report().await {
        tracing::warn!(%error, "no report about credentials");
    }
    let usage = Arc::new(Usage::new(db.clone(), clock.clone(), config.usage.clone()));
    let channels = Channels::new(&config.alerts, &egress).map_err(AppError::new)?;
    let alerts = Alerts::new(db.clone(), clock.clone(), config.alerts.clone(), channels);
    let alerts = Arc::new(alerts);
    let work = Arc::new(Work {
        gate: Arc::clone(&gate),
        db: db.clone(),
        clock: clock.clone(),
        keys: Arc::clone(&keys),
        rotations: Arc::clone(&rotations),
        kek_rotations: Arc::clone(&kek_rotations),
        rewrapping: Rewrapping::default(),
        patience: Patience::default(),
        destructions: Arc::clone(&destructions),
        erasures: Arc::clone(&erasures),
        api_keys: Arc::clone(&api_keys),
        idempotency: config.idempotency,
        incidents: Arc::clone(&incidents),
        egress: Arc::clone(&egress),
        checkpoints: config
            .audit
            .checkpoint
            .clone()
            .map(|checkpoint| Checkpoints::new(checkpoint, config.tokens.issuer.clone())),
        pruning: Pruning::new(
            config.audit.retention,
            config.audit.checkpoint.clone(),
            config.tokens.issuer.clone(),
        ),
        vault: Arc::clone(&vault),
        usage: Arc::clone(&usage),
        alerts: Arc::clone(&alerts),
    });
    let tokens = Arc::new(Tokens::new(
        db.clone(),
        Arc::clone(&keys),
        clock.clone(),
        config.tokens.clone(),
        Duration::from_secs(config.jwks.max_age_seconds),
    ));
    let clients = Arc::new(Clients::new(
        db.clone(),
        clock.clone(),
        (Arc::clone(&directory), Arc::clone(&api_keys)),
        (Arc::clone(&keys), Arc::clone(&tokens)),
        config.oauth.clone(),
    ));
    let authn = Arc::new(Authn::new(
        (
            Arc::clone(&directory),
            Arc::clone(&tokens),
            Arc::clone(&gate),
        ),
        (Arc::clone(&api_keys), Arc::clone(&clients)),
        Arc::clone(&issuers),
        clock.clone(),
        config.authn.clone(),
    ));
    let oauth = Arc::new(Oauth {
        clients: Arc::clone(&clients),
        tokens: Arc::clone(&tokens),
        gate: Arc::clone(&gate),
        throttle: Arc::clone(authn.throttle()),
        patience: config.public.patience(),
    });
    let parts = Parts {
        gate: Arc::clone(&gate),
        authn,
        keys: Arc::clone(&keys),
        rotations,
        kek_rotations: Arc::clone(&kek_rotations),
        destructions,
        erasures,
        incidents,
        tokens: Arc::clone(&tokens),
        clients: Arc::clone(&clients),
        directory: Arc::clone(&directory),
        api_keys: Arc::clone(&api_keys),
        audit: Arc::new(Reader::new(db.clone())),
        limits: config.limits,
        vault: Arc::clone(&vault),
        usage: Arc::clone(&usage),
        alerts: Arc::clone(&alerts),
    };
    let credentials = Arc::new(BrokerCredentials {
        authn: Arc::clone(&parts.authn),
        gate: Arc::clone(&gate),
        directory: Arc::clone(&directory),
        vault: Arc::clone(&vault),
        patience: config.public.patience(),
    });
    let (routes, reporter) = grpc::routes(parts, clock, &config.grpc).map_err(AppError::new)?;
    // Behind the head of the feed: what is revoked from here on comes with it.
    tokens.load_revocations().await.map_err(AppError::new)?;
    let (published, lease) = (Arc::clone(&tokens), Arc::clone(&freshness));
    let jwks: JwksSource = Arc::new(move || {
        let (tokens, lease) = (Arc::clone(&published), Arc::clone(&lease));
        Box::pin(async move {
            // A replica that is cut off would go on publishing what was frozen elsewhere (R-EMER-3).
            lease.check()?;
            tokens.jwks().await
        })
    });
    let asks_for_certificates = config.public.client_certificate != ClientCertificate::None;
    let site = public::Site {
        jwks,
        oauth,
        credentials,
        metadata: Metadata::new(&tokens, &config.oauth, asks_for_certificates),
    };
    let router = public::router(&site).map_err(AppError::new)?;
    // It holds the gate, which has to end before the audit writer does.
    drop(site);
    let uses = Arc::clone(&keys);
    let sampler = Sampler {
        keys: Arc::clone(&keys),
        rotations: kek_rotations,
        // Replicas share both, so neither takes one of them out of rotation.
        kek: health.advisory("kek"),
        data_keys: health.advisory("data keys"),
        size: config.keys.sample_size,
    };
    let mut feed = Feed {
        db: db.clone(),
        freshness,
        keys,
        directory,
        api_keys: Arc::clone(&api_keys),
        authz,
        tokens,
        clients,
        health: health.component("database"),
        replica: replica.clone(),
        seen,
        vault,
    };
    // The KEKs were read before the head of the feed was.
    uses.keks().reload().await.map_err(AppError::new)?;
    // Nobody is let in before the lease has begun.
    feed.round().await.map_err(AppError::new)?;
    let watched = guarded
        .into_iter()
        .map(|(name, backend)| {
            let name = format!("backend {name}");
            let component = match config.ops.ready_requires_backends {
                true => health.component(&name),
                false => health.advisory(&name),
            };
            (backend, component)
        })
        .collect();

    let grpc_listener = bind("grpc", config.grpc.listen).await?;
    let public_listener = bind("public", config.public.listen).await?;
    let ops_listener = bind("ops", config.ops.listen).await?;
    if let Some(path) = &config.addresses_file {
        write_addresses(path, &grpc_listener, &public_listener, &ops_listener)?;
    }

    let stop = CancellationToken::new();
    let stopped = || stop.clone().cancelled_owned();
    // The writer outlives everybody who writes to it: it ends when the gate is gone.
    let writer = tokio::spawn(writer.run());
    // What happens until the database is closed may be part of a trace.
    let traces_stop = CancellationToken::new();
    let traces_ended = traces_stop.clone().cancelled_owned();
    let export = export.map(|export| tokio::spawn(export.run(traces_ended)));
    let mut tasks = JoinSet::new();
    let incoming = authn::accept(
        grpc_listener,
        Arc::clone(&mtls),
        config.grpc.accept_limits(),
        stopped(),
    );
    let (grpc_config, grpc_stop) = (config.grpc.clone(), stopped());
    tasks.spawn(async move {
        let served = listener::run(routes, incoming, &grpc_config, grpc_stop).await;
        served.map_err(|e| AppError(format!("grpc listener: {e}")))
    });
    let (public_config, public_stop) = (config.public.clone(), stopped());
    let https_listener = Arc::clone(&https);
    tasks.spawn(async move {
        public::run(
            public_listener,
            https_listener,
            router,
            &public_config,
            public_stop,
        )
        .await;
        Ok(())
    });
    tasks.spawn(done(grpc::report_health(
        reporter,
        health.clone(),
        stopped(),
    )));
    tasks.spawn(done(feed.run(config.feed.clone(), stopped())));
    tasks.spawn(done(run_credential_rotations(
        Arc::clone(&work),
        config.audit.replica.clone(),
        config.scheduler.clone(),
        stopped(),
    )));
    tasks.spawn(done(run_scheduler(
        work,
        config.audit.replica.clone(),
        config.scheduler.clone(),
        stopped(),
    )));
    let every = Duration::from_secs(config.keys.last_used_interval_seconds);
    tasks.spawn(done(flush_uses(Arc::clone(&uses), every, stopped())));
    let every = config.api_keys.last_used_interval();
    let used = Arc::clone(&api_keys);
    tasks.spawn(done(flush_api_key_uses(used, every, stopped())));
    let (counted, metered) = (Arc::clone(&usage), Arc::clone(&gate));
    tasks.spawn(done(deliver_alerts(alerts, stopped())));
    tasks.spawn(done(flush_usage(counted, metered, stopped())));
    tasks.spawn(done(sweep_data_keys(Arc::clone(&uses), stopped())));
    let every = Duration::from_secs(config.keys.sample_interval_seconds);
    tasks.spawn(done(sample_data_keys(sampler, every, stopped())));
    tasks.spawn(done(issuers.refresh(ISSUERS_REFRESH, stopped())));
    tasks.spawn(done(watch_backends(watched, stopped())));
    tasks.spawn(done(telemetry::upkeep(metrics.clone(), stopped())));
    let renewal = authn::keep_current(config.tls.clone(), [mtls, https], stopped());
    tasks.spawn(done(renewal));
    // Kubelets ask until the very end, so the ops listener goes last.
    let ops_stop = CancellationToken::new();
    let ops_router = ops::router(health.clone(), metrics);
    let (ops_config, ops_ended) = (config.ops.clone(), ops_stop.clone());
    let ops_task = tokio::spawn(async move {
        ops::run(ops_listener, ops_router, &ops_config, ops_ended.cancelled()).await;
    });
    tracing::info!(
        environment = ?config.environment,
        database = db.engine(),
        "claviger is up"
    );

    let ended_early = tokio::select! {
        () = shutdown => None,
        Some(task) = tasks.join_next() => Some(task),
    };
    tracing::info!("claviger is going down: draining");
    health.drain();
    stop.cancel();
    let mut outcome = Ok(());
    let mut take = |task: Result<Result<(), AppError>, tokio::task::JoinError>| {
        let result = task.unwrap_or_else(|e| Err(AppError(format!("a task panicked: {e}"))));
        if let (Ok(()), Err(e)) = (&outcome, result) {
            outcome = Err(e);
        }
    };
    if let Some(task) = ended_early {
        take(task);
    }
    while let Some(task) = tasks.join_next().await {
        take(task);
    }
    gate.drain().await;
    if let Err(error) = uses.flush_uses().await {
        tracing::warn!(%error, "last uses of key versions not written");
    }
    if let Err(error) = api_keys.flush_uses().await {
        tracing::warn!(%error, "last uses of API keys not written");
    }
    if let Err(error) = usage.flush(&gate).await {
        tracing::warn!(%error, "usage by the daemon's own calls not written");
    }
    drop(gate);
    // Open calls that were cut may still hold the gate for a moment; do not wait for them for ever.
    if tokio::time::timeout(Duration::from_secs(5), writer)
        .await
        .is_err()
    {
        tracing::warn!("the audit writer did not end in time");
    }
    // Nothing answers any more, so nobody need wait for this replica.
    if let Err(error) = db.remove_replica(&replica).await {
        tracing::warn!(%error, "replica not taken off the list; others wait for the end of its lease");
    }
    db.close().await;
    traces_stop.cancel();
    if let Some(export) = export {
        let _ = export.await;
    }
    ops_stop.cancel();
    let _ = ops_task.await;
    tracing::info!("claviger is down");
    outcome
}

/// Opens every backend of the configuration. `modules` is the one of the process: a PKCS#11 library is loaded once.
pub async fn open_backends(
    configs: &BTreeMap<String, BackendConfig>,
    modules: &Modules,
) -> Result<Backends, AppError> {
    open_those(configs, modules, |_| true).await
}

/// As `open_backends`; a token that is away and not `needed` is opened later. A KMS that is away is open without.
async fn open_those(
    configs: &BTreeMap<String, BackendConfig>,
    modules: &Modules,
    needed: impl Fn(&str) -> bool,
) -> Result<Backends, AppError> {
    let mut backends = Backends::new();
    for (name, config) in configs {
        let backend: Arc<dyn Backend> = match config {
            BackendConfig::Pkcs11(pkcs11) => open_token(name, pkcs11, modules, needed(name))
                .map_err(|e| AppError(format!("backend {name}: {e}")))?,
            BackendConfig::AwsKms(kms) => {
                let deadline = Instant::now() + START_PATIENCE;
                let opened = AwsKmsBackend::open(name, kms, deadline).await;
                opened
                    .map(Arc::new)
                    .map_err(|e| AppError(format!("backend {name}: {e}")))?
            }
        };
        tracing::info!(
            backend = name,
            device = backend.capabilities().device,
            "backend is open"
        );
        backends.insert(name.clone(), backend);
    }
    Ok(backends)
}

/// Blocks while the library logs in; nothing else runs yet. A section that can be seen to be wrong without the token, and
/// a wrong PIN, are errors also where the token may come later.
fn open_token(
    name: &str,
    config: &Pkcs11Config,
    modules: &Modules,
    is_needed: bool,
) -> Result<Arc<dyn Backend>, BackendError> {
    let opened = tokio::task::block_in_place(|| Pkcs11Backend::open(name, config, modules));
    let error = match opened {
        Ok(backend) => return Ok(Arc::new(backend)),
        Err(error) if is_needed || matches!(error, BackendError::WrongPin) => return Err(error),
        Err(error) => error,
    };
    config.check()?;
    modules.load(&config.module)?;
    tracing::warn!(backend = name, %error, "backend is away; it is opened when it is there");
    let verified = config.verify_after_sign;
    let (owned, config, modules) = (name.to_owned(), config.for_later(), modules.clone());
    let open = move || {
        let backend = Pkcs11Backend::open_again(&owned, &config, &modules)?;
        Ok(Arc::new(backend) as Arc<dyn Backend>)
    };
    Ok(Arc::new(Awaited::new(name, verified, Box::new(open))))
}

/// The keys that the daemon uses itself and callers may not.
fn reserved_keys(config: &Config) -> Result<Reserved, AppError> {
    let mut platform = vec![config.api_keys.pepper().map_err(AppError::new)?];
    if let Some(checkpoint) = &config.audit.checkpoint {
        let notary = checkpoint.key.parse();
        platform.push(notary.map_err(|e| AppError(format!("audit.checkpoint.key: {e}")))?);
    }
    let everywhere = vec![config.vault.key().map_err(AppError::new)?];
    Ok(Reserved {
        platform,
        everywhere,
    })
}

/// Puts each backend behind its circuit breaker.
fn guard(
    backends: Backends,
    configs: &BTreeMap<String, BackendConfig>,
) -> BTreeMap<String, Arc<Guarded>> {
    let guarded = backends.into_iter().filter_map(|(name, backend)| {
        let stall = configs.get(&name)?.stall();
        Some((name, Arc::new(Guarded::new(backend, stall))))
    });
    guarded.collect()
}

/// Finds the configured KEK and proves it by wrapping and unwrapping (R-ENV-2).
pub async fn find_kek(backends: &Backends, config: &KekConfig) -> Result<Kek, AppError> {
    let found = keks::find(backends, &config.backend, &config.uri, START_PATIENCE).await;
    Ok(found.map_err(AppError::new)?.kek)
}

/// The policies of a directory, or the built-in ones.
pub fn policies(directory: Option<&Path>) -> Result<Policies, AppError> {
    match directory {
        Some(directory) => Policies::load(directory),
        None => Policies::built_in(),
    }
    .map_err(AppError::new)
}

/// Policies of one's own may be older than the daemon's jobs. Without these, keys neither rotate nor retire on time, and
/// every attempt leaves a refusal in the log.
fn expect_jobs_allowed(authz: &Authz) -> Result<(), AppError> {
    let key = Resource {
        tenant: TenantName::system(),
        entity: Entity::UnknownKey("any".to_owned()),
    };
    let scheduler = Job::Scheduler.principal();
    let decision = authz.decide(&scheduler, Action::RotateKey, &key);
    decision.is_allowed().then_some(()).ok_or_else(|| {
        AppError::new(
            "authz.policies deny the daemon's own jobs: keys would not rotate, retire or be destroyed on time; take the \
             policy `jobs` over from keys.cedar of this release",
        )
    })
}

async fn bind(name: &str, address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|e| AppError(format!("{name}.listen {address}: {e}")))
}

/// Written beside and renamed, so that a reader never sees half of it.
fn write_addresses(
    path: &Path,
    grpc: &TcpListener,
    public: &TcpListener,
    ops: &TcpListener,
) -> Result<(), AppError> {
    let failed = |e: std::io::Error| AppError(format!("addresses_file {}: {e}", path.display()));
    let text = serde_json::json!({
        "grpc": grpc.local_addr().map_err(failed)?.to_string(),
        "public": public.local_addr().map_err(failed)?.to_string(),
        "ops": ops.local_addr().map_err(failed)?.to_string(),
    });
    let beside = path.with_extension("tmp");
    fs::write(&beside, format!("{text}\n")).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

async fn done(task: impl Future<Output = ()>) -> Result<(), AppError> {
    task.await;
    Ok(())
}
