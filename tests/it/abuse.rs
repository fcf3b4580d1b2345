//! What callers with a role, or with many bytes, must not achieve.

use claviger::grpc::proto::{
    Algorithm, CreatePrincipalRequest, EncryptRequest, GrantRoleRequest, KeyPurpose, PrincipalType,
    RevokeRoleRequest,
};
use futures_util::future::join_all;

use crate::daemon::{Daemon, Engine, Setup, reason};

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
    let service = daemon.actor("service");
    let request = || EncryptRequest {
        key: "vault".into(),
        plaintext: vec![7; 4 * MIB].into(),
        ..EncryptRequest::default()
    };
    let calls = (0..8).map(|_| {
        let mut client = service.crypto();
        let request = request();
        async move { client.encrypt(request).await }
    });
    for answer in join_all(calls).await {
        if let Err(refused) = answer {
            assert_eq!(reason(&refused), "OVERLOADED", "{refused:?}");
        }
    }
    for _ in 0..4 {
        let alone = service.crypto().encrypt(request()).await;
        assert!(alone.is_ok(), "what was held has been given back");
    }
    daemon.stop().await;
}
