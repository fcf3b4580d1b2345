//! R5: the gRPC listener: transport, one thin file per service, conversions, status mapping.
//!
//! A service converts the message, goes through the gate, and converts the answer. It sees neither the database nor
//! a backend, and decides nothing.

mod alerts;
mod api_keys;
mod audit;
mod call;
mod clients;
mod convert;
mod crypto;
mod data_keys;
mod destructions;
mod erasure;
mod incidents;
mod keks;
mod keys;
pub mod layers;
pub mod listener;
mod macs;
mod principals;
pub mod proto;
mod rotation;
mod status;
mod streams;
mod tokens;
mod usage;

pub use call::{LimitsConfig, Parts};
use std::time::Duration;

use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use self::listener::GrpcConfig;
use crate::{clock::Clock, health::Health};

/// Every service over these parts; health always, reflection when the configuration says so. What the reporter is
/// told is what health checks answer: see [`report_health`].
pub fn routes(
    parts: Parts,
    clock: Clock,
    config: &GrpcConfig,
) -> Result<(Routes, HealthReporter), tonic_reflection::server::Error> {
    use proto::{
        alert_service_server::AlertServiceServer, api_key_service_server::ApiKeyServiceServer,
        audit_service_server::AuditServiceServer, client_service_server::ClientServiceServer,
        crypto_service_server::CryptoServiceServer, data_key_service_server::DataKeyServiceServer,
        erasure_service_server::ErasureServiceServer,
        incident_service_server::IncidentServiceServer, kek_service_server::KekServiceServer,
        key_service_server::KeyServiceServer, mac_service_server::MacServiceServer,
        principal_service_server::PrincipalServiceServer,
        rotation_service_server::RotationServiceServer, token_service_server::TokenServiceServer,
        usage_service_server::UsageServiceServer,
    };
    let limit = config.max_request_bytes;
    let (reporter, health) = tonic_health::server::health_reporter();
    let keys = keys::KeyApi {
        parts: parts.clone(),
        clock,
    };
    let crypto = CryptoServiceServer::new(crypto::Crypto(parts.clone()));
    let rotation = RotationServiceServer::new(rotation::RotationApi(parts.clone()));
    let tokens = TokenServiceServer::new(tokens::TokenApi(parts.clone()));
    let audit = AuditServiceServer::new(audit::AuditApi(parts.clone()));
    let data_keys = DataKeyServiceServer::new(data_keys::DataKeyApi(parts.clone()));
    let macs = MacServiceServer::new(macs::MacApi(parts.clone()));
    let keks = KekServiceServer::new(keks::KekApi(parts.clone()));
    let erasure = ErasureServiceServer::new(erasure::ErasureApi(parts.clone()));
    let incidents = IncidentServiceServer::new(incidents::IncidentApi(parts.clone()));
    let api_keys = ApiKeyServiceServer::new(api_keys::ApiKeyApi(parts.clone()));
    let clients = ClientServiceServer::new(clients::ClientApi(parts.clone()));
    let usage = UsageServiceServer::new(usage::UsageApi(parts.clone()));
    let alerts = AlertServiceServer::new(alerts::AlertApi(parts.clone()));
    let principals = PrincipalServiceServer::new(principals::PrincipalApi(parts));
    let mut routes = Routes::new(crypto.max_decoding_message_size(limit))
        .add_service(KeyServiceServer::new(keys).max_decoding_message_size(limit))
        .add_service(data_keys.max_decoding_message_size(limit))
        .add_service(macs.max_decoding_message_size(limit))
        .add_service(keks.max_decoding_message_size(limit))
        .add_service(erasure.max_decoding_message_size(limit))
        .add_service(rotation.max_decoding_message_size(limit))
        .add_service(tokens.max_decoding_message_size(limit))
        .add_service(incidents.max_decoding_message_size(limit))
        .add_service(audit.max_decoding_message_size(limit))
        .add_service(principals.max_decoding_message_size(limit))
        .add_service(api_keys.max_decoding_message_size(limit))
        .add_service(clients.max_decoding_message_size(limit))
        .add_service(usage.max_decoding_message_size(limit))
        .add_service(alerts.max_decoding_message_size(limit))
        .add_service(health);
    if config.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        routes = routes.add_service(reflection);
    }
    Ok((routes.prepare(), reporter))
}

/// Tells gRPC health checks what `/readyz` tells the kubelet, until `shutdown` ends.
pub async fn report_health(
    reporter: HealthReporter,
    health: Health,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = None;
    loop {
        tokio::select! {
            () = &mut shutdown => {
                let status = ServingStatus::NotServing;
                return reporter.set_service_status("", status).await;
            }
            _ = tick.tick() => {}
        }
        let ready = health.snapshot().ready;
        if last != Some(ready) {
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            last = Some(ready);
        }
    }
}
