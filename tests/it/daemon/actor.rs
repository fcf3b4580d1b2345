//! The people of a test: one gRPC client per certificate.

use std::{sync::Arc, time::Duration};

use claviger::grpc::proto::{
    alert_service_client::AlertServiceClient, api_key_service_client::ApiKeyServiceClient,
    audit_service_client::AuditServiceClient, client_service_client::ClientServiceClient,
    crypto_service_client::CryptoServiceClient, data_key_service_client::DataKeyServiceClient,
    erasure_service_client::ErasureServiceClient, incident_service_client::IncidentServiceClient,
    kek_service_client::KekServiceClient, key_service_client::KeyServiceClient,
    mac_service_client::MacServiceClient, principal_service_client::PrincipalServiceClient,
    rotation_service_client::RotationServiceClient, token_service_client::TokenServiceClient,
    usage_service_client::UsageServiceClient,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt;

use super::Daemon;
use crate::pki::Leaf;

const MAX_MESSAGE: usize = (8 << 20) + (64 << 10);

/// Somebody with a certificate, or without. Cloning is cheap and shares the connection.
#[derive(Clone)]
pub struct Actor {
    pub channel: Channel,
}

macro_rules! clients {
    ($($name:ident: $client:ident,)*) => {
        impl Actor {
            $(pub fn $name(&self) -> $client<Channel> {
                $client::new(self.channel.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })*
        }
    };
}

clients! {
    crypto: CryptoServiceClient,
    data_keys: DataKeyServiceClient,
    macs: MacServiceClient,
    keys: KeyServiceClient,
    rotations: RotationServiceClient,
    tokens: TokenServiceClient,
    principals: PrincipalServiceClient,
    clients: ClientServiceClient,
    api_keys: ApiKeyServiceClient,
    audit: AuditServiceClient,
    incidents: IncidentServiceClient,
    erasures: ErasureServiceClient,
    keks: KekServiceClient,
    usage: UsageServiceClient,
    alerts: AlertServiceClient,
}

impl Daemon {
    /// One of the principals of `Setup`, or `stranger`.
    pub fn actor(&self, name: &str) -> Actor {
        let mut channels = self.channels.lock().expect("no panic");
        let actor = channels
            .entry(name.to_owned())
            .or_insert_with(|| self.actor_with(Some(self.leaf(name))));
        actor.clone()
    }

    /// Somebody with this certificate, over a connection of their own.
    pub fn actor_with(&self, leaf: Option<&Leaf>) -> Actor {
        self.actor_over(self.ca.client_config(leaf))
    }

    /// Somebody with these TLS settings.
    pub fn actor_over(&self, config: ClientConfig) -> Actor {
        Self::actor_at(&self.addresses.grpc, config)
    }

    /// One of the principals of `Setup`, over a connection to another daemon.
    pub fn actor_of(&self, name: &str, twin: &super::Twin) -> Actor {
        let config = self.ca.client_config(Some(self.leaf(name)));
        Self::actor_at(&twin.addresses.grpc, config)
    }

    fn actor_at(address: &str, mut config: ClientConfig) -> Actor {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let address = address.to_owned();
        let origin = format!("https://{address}").parse().expect("a URI");
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("an address")
            .origin(origin)
            .timeout(Duration::from_secs(60));
        let connector = tower::service_fn(move |_: Uri| {
            let (config, address) = (Arc::clone(&config), address.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").expect("a name");
                let tls = TlsConnector::from(config).connect(name, tcp).await?;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        Actor { channel }
    }

    /// The certificate of a principal.
    pub fn leaf(&self, name: &str) -> &Leaf {
        let leaf = self.leaves.get(name);
        leaf.unwrap_or_else(|| panic!("nobody is called {name}"))
    }

    /// Id of one of the principals of `Setup`.
    pub async fn id_of(&self, name: &str) -> String {
        let rows = self
            .rows(&format!("SELECT id FROM principals WHERE name = '{name}'"))
            .await;
        let [row] = &rows[..] else {
            panic!("{} principals are called {name}", rows.len());
        };
        row[0].clone()
    }
}

/// `ErrorInfo.reason` of a refused or failed call.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}
