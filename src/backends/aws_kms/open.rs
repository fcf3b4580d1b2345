//! Opening: credentials, endpoint, what it offers.
//!
//! KMS has no call that lists key specs. The region's endpoint has all of ours; of another endpoint only the
//! configuration knows whether it has Ed25519, the newest. Where the answer was wrong, CreateKey says so.

use std::sync::Arc;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::{
    Client,
    config::{Builder, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig},
};
use tokio::time::Instant;

use super::{
    AwsKmsBackend, AwsKmsConfig, Shared, calls::Calls, find::Surveyed, governor::Governor, specs,
};
use crate::backends::{Backend, BackendError, Capabilities};

impl AwsKmsBackend {
    /// Finds credentials and asks KMS once. A KMS that does not answer now may answer later, so only what an
    /// operator must put right is an error: `Misconfigured` and `Denied`.
    pub async fn open(
        name: &str,
        config: &AwsKmsConfig,
        deadline: Instant,
    ) -> Result<Self, BackendError> {
        config.validate()?;
        let (specs, algorithms) = specs::supported(config.has_ed25519());
        let backend = Self {
            shared: Arc::new(Shared {
                calls: Calls {
                    client: client(config).await,
                    governor: Arc::new(Governor::new(&config.quotas, Instant::now())),
                    attempt: config.attempt_timeout(),
                    operation: config.operation_timeout(),
                },
                config: config.clone(),
                capabilities: Capabilities {
                    name: name.to_owned(),
                    device: format!("AWS KMS {}", config.region),
                    specs,
                    algorithms,
                    verify_after_sign: config.verify_after_sign,
                    one_at_a_time: false,
                    longest_message: Some(specs::MAX_RAW),
                },
                surveyed: Surveyed::default(),
            }),
        };
        match backend.ready(deadline).await {
            Ok(()) => Ok(backend),
            Err(error @ (BackendError::Misconfigured(_) | BackendError::Denied { .. })) => {
                Err(error)
            }
            Err(error) => {
                tracing::warn!(backend = name, %error, "AWS KMS does not answer yet");
                Ok(backend)
            }
        }
    }
}

/// Retries, attempt timeouts and the endpoint are ours; what the SDK would read about them from variables and
/// profiles is not used, so that the configuration says it all.
async fn client(config: &AwsKmsConfig) -> Client {
    let region = Region::new(config.region.clone());
    let chain = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .load()
        .await;
    let mut builder = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(region)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(config.attempt_timeout())
                .build(),
        )
        // Answers are small, and every request has an end of its own.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .use_fips(config.fips);
    builder.set_credentials_provider(chain.credentials_provider());
    if let Some(cache) = chain.identity_cache() {
        builder.set_identity_cache(cache);
    }
    builder.set_http_client(chain.http_client());
    builder.set_sleep_impl(chain.sleep_impl());
    builder.set_time_source(chain.time_source());
    builder.set_endpoint_url(config.endpoint.clone());
    Client::from_conf(builder.build())
}
