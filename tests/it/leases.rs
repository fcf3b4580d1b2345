//! Leases of credentials, and news for who holds them.

use claviger::grpc::proto::*;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

const SECRET: &str = "sk-aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3";
const OTHER: &str = "sk-zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9zZ9";

/// A daemon with a credential of `ann` in acme, which `service` may lease and `officer` manages.
struct Realm {
    daemon: Daemon,
    ann: String,
    credential: String,
}

impl Realm {
    async fn new(setup: Setup) -> Self {
        let setup = setup.append("[vault]\nmax_lease_seconds = 120");
        let daemon = setup.start().await;
        let mut admin = daemon.actor("admin").principals();
        let ann = CreatePrincipalRequest {
            tenant: "acme".into(),
            name: "ann".into(),
            r#type: PrincipalType::User.into(),
            ..CreatePrincipalRequest::default()
        };
        let made = admin.create_principal(ann).await.expect("CreatePrincipal");
        let ann = made.into_inner().principal.expect("ann").id;
        let grant = GrantRoleRequest {
            principal_id: daemon.id_of("officer").await,
            role: "credential-manager".into(),
            tenant: "acme".into(),
        };
        admin.grant_role(grant).await.expect("GrantRole");
        let mut realm = Self {
            daemon,
            ann,
            credential: String::new(),
        };
        realm.entitle(true).await;
        realm.credential = realm.put(SECRET).await.0;
        realm
    }

    /// Gives `service` its entitlement, or takes it away.
    async fn entitle(&self, may: bool) {
        let scopes = vec!["can.lease_credentials".to_owned()];
        let (add_scopes, remove_scopes) = match may {
            true => (scopes, Vec::new()),
            false => (Vec::new(), scopes),
        };
        let change = UpdatePrincipalRequest {
            principal_id: self.daemon.id_of("service").await,
            add_scopes,
            remove_scopes,
            ..UpdatePrincipalRequest::default()
        };
        let mut admin = self.daemon.actor("admin").principals();
        admin
            .update_principal(change)
            .await
            .expect("UpdatePrincipal");
    }

    /// Stores a value for ann; the ids of the credential and of the value.
    async fn put(&self, secret: &str) -> (String, String) {
        let request = PutCredentialRequest {
            owner_id: self.ann.clone(),
            provider: "openai".into(),
            environment: CredentialEnvironment::Production.into(),
            fields: vec![CredentialField {
                name: "api_key".into(),
                value: secret.to_owned().into(),
            }],
            replace: true,
            ..PutCredentialRequest::default()
        };
        let mut credentials = self.daemon.actor("officer").credentials();
        let put = credentials.put_credential(request).await;
        let put = put.expect("PutCredential").into_inner();
        let credential = put.credential.expect("a credential");
        let current = credential.values.iter();
        let current = current.filter(|v| v.label() == CredentialLabel::Current);
        let value = current.map(|value| value.id.clone()).next();
        (credential.id, value.expect("a CURRENT value"))
    }

    async fn lease(&self, actor: &str) -> Result<LeaseCredentialResponse, Status> {
        self.lease_for(actor, None).await
    }

    async fn lease_for(
        &self,
        actor: &str,
        seconds: Option<i64>,
    ) -> Result<LeaseCredentialResponse, Status> {
        let request = LeaseCredentialRequest {
            credential_id: self.credential.clone(),
            ttl: seconds.map(duration),
        };
        let mut leases = self.daemon.actor(actor).leases();
        Ok(leases.lease_credential(request).await?.into_inner())
    }

    async fn renew(&self, actor: &str, lease: &str) -> Result<Lease, Status> {
        let request = RenewLeaseRequest {
            lease_id: lease.to_owned(),
            ttl: Some(duration(120)),
        };
        let mut leases = self.daemon.actor(actor).leases();
        let renewed = leases.renew_lease(request).await?.into_inner();
        Ok(renewed.lease.expect("a lease"))
    }

    async fn give_back(&self, actor: &str, lease: &str) -> Result<Lease, Status> {
        let lease_id = lease.to_owned();
        let mut leases = self.daemon.actor(actor).leases();
        let returned = leases.return_lease(ReturnLeaseRequest { lease_id }).await?;
        Ok(returned.into_inner().lease.expect("a lease"))
    }

    async fn revoke(&self, actor: &str, lease: &str) -> Result<Lease, Status> {
        let request = RevokeLeaseRequest {
            lease_id: lease.to_owned(),
            reason: "left the team".into(),
        };
        let mut leases = self.daemon.actor(actor).leases();
        let revoked = leases.revoke_lease(request).await?.into_inner();
        Ok(revoked.lease.expect("a lease"))
    }

    /// Ids of the leases that are held, by credential and by tenant.
    async fn held(&self) -> Vec<String> {
        let mut lists = Vec::new();
        for request in [
            ListLeasesRequest {
                credential_id: self.credential.clone(),
                ..ListLeasesRequest::default()
            },
            ListLeasesRequest {
                tenant: "acme".into(),
                ..ListLeasesRequest::default()
            },
        ] {
            let mut leases = self.daemon.actor("officer").leases();
            let listed = leases.list_leases(request).await.expect("ListLeases");
            let listed = listed.into_inner().leases.into_iter();
            lists.push(listed.map(|lease| lease.id).collect::<Vec<_>>());
        }
        assert_eq!(lists[0], lists[1]);
        lists.swap_remove(0)
    }
}

fn duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn why<T>(answer: Result<T, Status>) -> String {
    reason(&answer.err().expect("a refusal"))
}

async fn who_holds_what(engine: Engine) {
    let realm = Realm::new(Setup::new(engine)).await;
    let leased = realm.lease("service").await.expect("LeaseCredential");
    assert_eq!(leased.fields.len(), 1);
    assert_eq!(leased.fields[0].value, SECRET.as_bytes());
    let lease = leased.lease.expect("a lease");
    assert_eq!(lease.state(), LeaseState::Active);
    assert_eq!(lease.holder_id, realm.daemon.id_of("service").await);
    assert_eq!(realm.held().await, std::slice::from_ref(&lease.id));

    // Nobody else's: not that of another tenant, not of who manages it.
    for (actor, code, said) in [
        ("other", Code::NotFound, "CREDENTIAL_NOT_FOUND"),
        ("officer", Code::PermissionDenied, "PERMISSION_DENIED"),
    ] {
        for refused in [
            realm.lease(actor).await.map(drop),
            realm.renew(actor, &lease.id).await.map(drop),
            realm.give_back(actor, &lease.id).await.map(drop),
        ] {
            let refused = refused.expect_err(actor);
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (code, said),
                "{actor}"
            );
        }
    }
    for seconds in [0, 59, 121, -1] {
        let refused = realm.lease_for("service", Some(seconds)).await;
        assert_eq!(why(refused), "INVALID_FIELD", "{seconds}");
    }

    // It lasts as long as it may and no longer.
    let renewed = realm.renew("service", &lease.id).await.expect("RenewLease");
    assert_eq!(renewed.max_expire_time, lease.max_expire_time);
    assert_eq!(renewed.expire_time, lease.max_expire_time);

    // A holder of an old value is told to fetch the new one.
    let (_, value) = realm.put(OTHER).await;
    assert_eq!(why(realm.renew("service", &lease.id).await), "LEASE_STATE");
    let leased = realm.lease("service").await.expect("LeaseCredential");
    assert_eq!(leased.fields[0].value, OTHER.as_bytes());
    let second = leased.lease.expect("a lease");
    assert_eq!(second.value_id, value);
    assert_eq!(realm.held().await, [lease.id.clone(), second.id.clone()]);

    let returned = realm.give_back("service", &lease.id).await;
    assert_eq!(returned.expect("ReturnLease").state(), LeaseState::Returned);
    assert_eq!(
        why(realm.give_back("service", &lease.id).await),
        "LEASE_STATE"
    );
    // A service ends its own leases and nobody's otherwise.
    let refused = realm.revoke("service", &second.id).await;
    assert_eq!(why(refused), "PERMISSION_DENIED");
    let revoked = realm.revoke("officer", &second.id).await;
    assert_eq!(revoked.expect("RevokeLease").state(), LeaseState::Revoked);
    assert_eq!(why(realm.renew("service", &second.id).await), "LEASE_STATE");
    assert_eq!(realm.held().await, [""; 0]);

    // Time ends one too.
    let third = realm.lease("service").await.expect("LeaseCredential");
    let third = third.lease.expect("a lease").id;
    realm
        .daemon
        .execute(&format!(
            "UPDATE credential_leases SET expires_at = 1 WHERE id = '{third}'"
        ))
        .await;
    assert_eq!(why(realm.renew("service", &third).await), "LEASE_STATE");
    assert_eq!(realm.held().await, [""; 0]);

    // Everything that happened is recorded, with who and which value and without the secret.
    let rows = realm
        .daemon
        .rows("SELECT action, data FROM audit_events WHERE action LIKE '%Lease%' AND outcome = 'success' ORDER BY seq")
        .await;
    let admin = rows.iter().filter(|row| row[0] != "ListLeases");
    let actions: Vec<_> = admin.clone().map(|row| row[0].as_str()).collect();
    let expected = [
        "LeaseCredential",
        "RenewLease",
        "LeaseCredential",
        "ReturnLease",
        "RevokeLease",
        "LeaseCredential",
    ];
    assert_eq!(actions, expected);
    for row in admin {
        assert!(
            row[1].contains("value_id") && row[1].contains("lease_id"),
            "{row:?}"
        );
        assert!(!row[1].contains("sk-"), "{row:?}");
    }
    realm.daemon.stop().await;
}

// R-CRED-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_credential_is_known_on_sqlite() {
    who_holds_what(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_credential_is_known_on_postgresql() {
    who_holds_what(Engine::Postgres).await;
}

// R-OPS-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_lease_is_another_lease_and_no_secret_is_kept_for_it() {
    let realm = Realm::new(Setup::new(Engine::Sqlite)).await;
    let before = answers(&realm.daemon).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut request = Request::new(LeaseCredentialRequest {
            credential_id: realm.credential.clone(),
            ttl: None,
        });
        let key = "the-same".parse().expect("a key");
        request.metadata_mut().insert("idempotency-key", key);
        let mut leases = realm.daemon.actor("service").leases();
        let leased = leases
            .lease_credential(request)
            .await
            .expect("LeaseCredential");
        ids.push(leased.into_inner().lease.expect("a lease").id);
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(realm.held().await, ids);
    assert_eq!(answers(&realm.daemon).await, before);
    realm.daemon.stop().await;
}

async fn answers(daemon: &Daemon) -> String {
    let rows = daemon
        .rows("SELECT CAST(COUNT(*) AS BIGINT) FROM idempotency_keys")
        .await;
    rows[0][0].clone()
}

async fn watch(
    actor: &Actor,
    ids: Vec<String>,
    once: bool,
) -> Result<Streaming<WatchCredentialsResponse>, Status> {
    let request = WatchCredentialsRequest {
        credential_ids: ids,
        once,
    };
    Ok(actor
        .leases()
        .watch_credentials(request)
        .await?
        .into_inner())
}

/// The value that the next message says is CURRENT.
async fn told(news: &mut Streaming<WatchCredentialsResponse>) -> Result<Option<String>, Status> {
    let next = timeout(PATIENCE, news.message()).await;
    let next = next.expect("news come in time")?;
    Ok(next.map(|seen| seen.value_id))
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_on_another_replica_are_told_of_a_new_value() {
    let realm = Realm::new(Setup::new(Engine::Postgres).for_two()).await;
    let second = realm.daemon.second(None).await;
    let ids = vec![realm.credential.clone()];
    let mut news = watch(&second.actor("service"), ids.clone(), false)
        .await
        .expect("WatchCredentials");
    let first = told(&mut news).await.expect("news").expect("a message");
    let (_, value) = realm.put(OTHER).await;
    assert_ne!(first, value);
    assert_eq!(told(&mut news).await.expect("news"), Some(value.clone()));

    // What changes no value is no news: the next message is that there is none any more.
    realm.lease("service").await.expect("LeaseCredential");
    let mut now = watch(&second.actor("service"), ids, true)
        .await
        .expect("WatchCredentials");
    assert_eq!(told(&mut now).await.expect("news"), Some(value));
    assert_eq!(told(&mut now).await.expect("an end"), None);
    let delete = DeleteCredentialRequest {
        credential_id: realm.credential.clone(),
    };
    let mut credentials = realm.daemon.actor("officer").credentials();
    credentials
        .delete_credential(delete)
        .await
        .expect("DeleteCredential");
    assert_eq!(told(&mut news).await.expect("news"), Some(String::new()));
    second.stop().await;
    realm.daemon.stop().await;
}

// R-ACL-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_lease_may_not_watch_and_learns_nothing_more_when_that_changes() {
    let realm = Realm::new(Setup::new(Engine::Sqlite)).await;
    let ids = vec![realm.credential.clone()];
    for (actor, said) in [
        ("other", "CREDENTIAL_NOT_FOUND"),
        ("officer", "PERMISSION_DENIED"),
        ("stranger", "UNKNOWN_PRINCIPAL"),
    ] {
        let refused = watch(&realm.daemon.actor(actor), ids.clone(), true).await;
        assert_eq!(why(refused), said, "{actor}");
    }
    let service = realm.daemon.actor("service");
    let unknown = "019a3f5b-2c11-7000-8000-000000000000".to_owned();
    let Err(refused) = watch(&service, vec![unknown], true).await else {
        panic!("a refusal");
    };
    assert_eq!(refused.code(), Code::NotFound);
    for count in [0, 101] {
        let refused = watch(&service, vec![realm.credential.clone(); count], true).await;
        assert_eq!(why(refused), "INVALID_FIELD", "{count}");
    }

    let mut news = watch(&service, ids, false).await.expect("WatchCredentials");
    assert!(told(&mut news).await.expect("news").is_some());
    realm.entitle(false).await;
    realm.put(OTHER).await;
    let ended = told(&mut news).await.expect_err("the end of the watch");
    assert_eq!(reason(&ended), "PERMISSION_DENIED", "{ended}");
    assert_eq!(why(realm.lease("service").await), "PERMISSION_DENIED");
    realm.daemon.stop().await;
}

async fn leases_end_with_their_credential(engine: Engine) {
    let realm = Realm::new(Setup::new(engine)).await;
    let leased = realm.lease("service").await.expect("LeaseCredential");
    let lease = leased.lease.expect("a lease").id;
    assert_eq!(realm.held().await, std::slice::from_ref(&lease));
    let delete = DeleteCredentialRequest {
        credential_id: realm.credential.clone(),
    };
    let mut credentials = realm.daemon.actor("officer").credentials();
    let deleted = credentials.delete_credential(delete).await;
    deleted.expect("DeleteCredential");
    let list = ListLeasesRequest {
        tenant: "acme".into(),
        ..ListLeasesRequest::default()
    };
    let listed = realm
        .daemon
        .actor("officer")
        .leases()
        .list_leases(list)
        .await;
    assert_eq!(listed.expect("ListLeases").into_inner().leases, []);
    let row = format!("SELECT ended_how FROM credential_leases WHERE id = '{lease}'");
    assert_eq!(realm.daemon.rows(&row).await, [["REVOKED"]]);
    let gone = realm.renew("service", &lease).await.expect_err("gone");
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(
        realm.lease("service").await.expect_err("gone").code(),
        Code::NotFound
    );
    realm.daemon.stop().await;
}

// R-CRED-1: what is held of a credential that is deleted is not held any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_with_their_credential_on_sqlite() {
    leases_end_with_their_credential(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_with_their_credential_on_postgresql() {
    leases_end_with_their_credential(Engine::Postgres).await;
}
