//! What callers with a role, or with many bytes, must not achieve.

use claviger::grpc::proto::{
    Algorithm, CreatePrincipalRequest, EncryptRequest, EncryptResponse, GrantRoleRequest,
    KeyPurpose, PrincipalType, RevokeRoleRequest,
};
use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use http::uri::PathAndQuery;
use tonic::{Request, client::Grpc};
use tonic_prost::ProstCodec;

use crate::daemon::{Daemon, Engine, PATIENCE, Setup, reason};

/// R-ACL-3: a principal-admin of one tenant does not become one of another, nor of all.
#[tokio::test]
async fn roles_are_granted_only_where_the_caller_administers() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let (officer, auditor) = (daemon.id_of("officer").await, daemon.id_of("auditor").await);
    let grant = |id: &str, role: &str, tenant: &str| GrantRoleRequest {
        principal_id: id.into(),
        role: role.into(),
        tenant: tenant.into(),
    };
    let admin = daemon.actor("admin").principals().clone();
    admin
        .clone()
        .grant_role(grant(&officer, "principal-admin", "system"))
        .await
        .expect("admin holds the role everywhere");

    let clerk = daemon.actor("officer");
    for (role, tenant) in [("crypto-user", "acme"), ("principal-admin", "*")] {
        let refused = clerk
            .principals()
            .grant_role(grant(&auditor, role, tenant))
            .await
            .expect_err("outside of what the clerk administers");
        assert_eq!(reason(&refused), "PERMISSION_DENIED", "{role} in {tenant}");
    }
    let revoke = RevokeRoleRequest {
        principal_id: auditor.clone(),
        role: "auditor".into(),
        tenant: "*".into(),
    };
    let refused = clerk.principals().revoke_role(revoke).await;
    assert_eq!(reason(&refused.expect_err("refused")), "PERMISSION_DENIED");
    clerk
        .principals()
        .grant_role(grant(&auditor, "key-issuer", "system"))
        .await
        .expect("inside of it");

    // An identity authenticates for all tenants, so it takes an administrator of all to bind one.
    let create = CreatePrincipalRequest {
        tenant: "system".into(),
        name: "impostor".into(),
        r#type: PrincipalType::Service as i32,
        identities: vec!["spiffe://elsewhere/service".into()],
        ..Default::default()
    };
    let refused = clerk.principals().create_principal(create.clone()).await;
    assert_eq!(reason(&refused.expect_err("refused")), "PERMISSION_DENIED");
    admin
        .clone()
        .create_principal(create)
        .await
        .expect("the administrator of all may");
    daemon.stop().await;
}

/// Calls that together bring more bytes than the daemon holds are refused one by one, and leave nothing behind.
#[tokio::test]
async fn request_bytes_in_flight_are_bounded() {
    const MIB: usize = 1 << 20;
    let daemon = Setup::new(Engine::Sqlite)
        .replace(
            "[grpc]",
            format!("[grpc]\nmax_in_flight_bytes = {}", 8 * MIB),
        )
        .start()
        .await;
    daemon
        .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    let request = || EncryptRequest {
        key: "vault".into(),
        plaintext: vec![7; 4 * MIB].into(),
        ..EncryptRequest::default()
    };
    // Four calls that send 4 MiB each and never end their request: the daemon has to hold what it has read, and
    // none of them can be answered, except by being refused.
    let service = daemon.actor("service");
    let mut held: FuturesUnordered<_> = (0..4)
        .map(|_| {
            let mut client = Grpc::new(service.channel.clone());
            let messages = stream::once(async move { request() }).chain(stream::pending());
            async move {
                client.ready().await.expect("connected");
                let path = PathAndQuery::from_static("/claviger.v1.CryptoService/Encrypt");
                let codec = ProstCodec::<EncryptRequest, EncryptResponse>::default();
                client
                    .client_streaming(Request::new(messages), path, codec)
                    .await
            }
        })
        .collect();
    let refused = held.next().await.expect("an answer").expect_err("refused");
    assert_eq!(reason(&refused), "OVERLOADED", "{refused:?}");

    // They leave; what they held is given back as soon as the daemon has noticed.
    drop(held);
    let given_back = async {
        while let Err(refused) = service.crypto().encrypt(request()).await {
            assert_eq!(reason(&refused), "OVERLOADED", "{refused:?}");
        }
    };
    tokio::time::timeout(PATIENCE, given_back)
        .await
        .expect("what was held is given back");
    daemon.stop().await;
}
