//! Credentials of many tenants: more data keys than the daemon may hold. R-CRED-1, R-CARD-6.
//!
//! What holds is asserted at every size; how long it took and how much memory is printed. As one of the tests it is small;
//! `make size` runs it optimised and large.

use std::{
    fs,
    time::{Duration, Instant},
};

use claviger::{clock::Clock, grpc::proto::*};
use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::{Request, Status};

use crate::daemon::{Actor, Daemon, Engine, Setup};

/// Administrative calls at a time; one principal may have eight in flight.
const AT_ONCE: usize = 6;

/// How large.
struct Scale {
    tenants: usize,
    /// Credentials of each tenant.
    each: usize,
}

impl Scale {
    /// As the environment says.
    fn asked() -> Self {
        let number = |name: &str, default: usize| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}: {e}")),
            Err(_) => default,
        };
        Self {
            tenants: number("CLAVIGER_TEST_TENANTS", 40),
            each: number("CLAVIGER_TEST_CREDENTIALS", 3),
        }
    }

    /// Data keys that the daemon may hold: far fewer than there are tenants.
    const fn bound(&self) -> usize {
        self.tenants / 5
    }
}

/// One tenant's user, who may keep and reveal what is their own.
struct User {
    tenant: String,
    id: String,
    key: String,
    credential: String,
}

impl User {
    fn asks<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let value = format!("Bearer {}", self.key).parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
        request
    }
}

/// The secret of a credential; no two are the same.
fn secret(tenant: &str, name: &str) -> String {
    format!("the secret of {name} in {tenant}")
}

fn fields(tenant: &str, name: &str) -> Vec<CredentialField> {
    let field = |name: &str, value: String| CredentialField {
        name: name.into(),
        value: value.into_bytes().into(),
    };
    vec![
        field("api_key", "k".repeat(64)),
        field("api_secret", secret(tenant, name)),
    ]
}

async fn user(daemon: &Daemon, number: usize) -> Result<User, Status> {
    let admin = daemon.actor("admin");
    let tenant = format!("t{number:05}");
    let made = CreateTenantRequest {
        name: tenant.clone(),
    };
    admin.principals().create_tenant(made).await?;
    let scopes = vec!["can.use_users".to_owned()];
    let made = CreatePrincipalRequest {
        tenant: tenant.clone(),
        name: "owner".into(),
        r#type: PrincipalType::User.into(),
        scopes: scopes.clone(),
        ..Default::default()
    };
    let made = admin
        .principals()
        .create_principal(made)
        .await?
        .into_inner();
    let id = made.principal.expect("a principal").id;
    let made = CreateApiKeyRequest {
        owner_id: id.clone(),
        name: "a key".into(),
        scopes,
        expire_time: Some(prost_types::Timestamp {
            seconds: Clock::System.now().seconds() + 24 * 60 * 60,
            nanos: 0,
        }),
        ..Default::default()
    };
    let key = admin.api_keys().create_api_key(made).await?.into_inner();
    Ok(User {
        tenant,
        id,
        key: key.secret,
        credential: String::new(),
    })
}

/// Fills a tenant as an import does.
async fn fill(daemon: &Daemon, mut user: User, each: usize) -> Result<User, Status> {
    let item = |n: usize| {
        let name = format!("c{n:04}");
        ImportCredential {
            owner_id: user.id.clone(),
            provider: "binance".into(),
            environment: CredentialEnvironment::Production.into(),
            fields: fields(&user.tenant, &name),
            name,
            ..Default::default()
        }
    };
    let request = ImportCredentialsRequest {
        tenant: user.tenant.clone(),
        items: (0..each).map(item).collect(),
        ..Default::default()
    };
    let admin = daemon.actor("admin");
    let outcomes = admin.credentials().import_credentials(request).await?;
    let outcomes = outcomes.into_inner().outcomes;
    let is_created = |o: &ImportOutcome| o.result() == ImportResult::Created;
    assert!(outcomes.len() == each && outcomes.iter().all(is_created));
    user.credential.clone_from(&outcomes[0].credential_id);
    Ok(user)
}

/// A number of the daemon's metrics.
async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.ops_get("/metrics").await.text();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name}: {text}"));
    value.trim().parse().expect("a number")
}

const LOADS: &str = r#"claviger_cache_loads_total{cache="data_keys"}"#;

/// `VmRSS` or `VmHWM` of the daemon, in MiB.
fn memory(daemon: &Daemon, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()));
    let status = status.expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib = line.and_then(|line| line.trim_matches([':', ' ', '\t']).strip_suffix(" kB"));
    kib.expect("kB").trim().parse::<u64>().expect("a number") >> 10
}

/// Median and 99th percentile.
fn line(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<28} p50 {:>8.2} ms   p99 {:>8.2} ms",
        at(0.5),
        at(0.99)
    );
}

async fn timed<T>(times: &mut Vec<Duration>, call: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let answer = call.await;
    times.push(began.elapsed());
    answer
}

/// The data keys that are held, which is never more than the bound.
async fn held(daemon: &Daemon, bound: usize) -> usize {
    let held = metric(daemon, "claviger_data_keys_held").await as usize;
    assert!(
        held <= bound,
        "{held} data keys are held; the bound is {bound}"
    );
    held
}

async fn reveal(who: &Actor, user: &User) -> String {
    let request = RevealCredentialRequest {
        credential_id: user.credential.clone(),
        reason: "a measurement".into(),
        ..Default::default()
    };
    let answer = who
        .credentials()
        .reveal_credential(user.asks(request))
        .await;
    let fields = answer.expect("RevealCredential").into_inner().fields;
    let secret = fields.into_iter().find(|field| field.name == "api_secret");
    String::from_utf8(secret.expect("api_secret").value.to_vec()).expect("UTF-8")
}

async fn put(who: &Actor, user: &User, name: &str) {
    let request = PutCredentialRequest {
        provider: "binance".into(),
        environment: CredentialEnvironment::Testing.into(),
        name: name.into(),
        fields: fields(&user.tenant, name),
        ..Default::default()
    };
    let answer = who.credentials().put_credential(user.asks(request)).await;
    answer.expect("PutCredential");
}

async fn list(who: &Actor, user: &User) -> usize {
    let request = ListCredentialsRequest {
        owner_id: user.id.clone(),
        page_size: 100,
        ..Default::default()
    };
    let answer = who.credentials().list_credentials(user.asks(request)).await;
    let listed = answer.expect("ListCredentials").into_inner().credentials;
    listed.len()
}

async fn credentials_of_many_tenants(engine: Engine) {
    let scale = Scale::asked();
    let bound = scale.bound();
    let mut daemon = Setup::new(engine)
        .replace(
            r#"roles = [{ role = "principal-admin", tenant = "*" }]"#,
            r#"roles = [{ role = "principal-admin", tenant = "*" }, { role = "credential-manager", tenant = "*" }]"#,
        )
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(format!(
            "[keys]\ndata_key_cache_size = {bound}\n[authn.accept]\nadmin = [\"certificate\", \"api_key\"]"
        ))
        .start()
        .await;
    let began = Instant::now();
    let users = stream::iter(0..scale.tenants).map(|n| user(&daemon, n));
    let users: Vec<_> = users.buffered(AT_ONCE).try_collect().await.expect("users");
    let (made, began) = (began.elapsed(), Instant::now());
    let users = stream::iter(users).map(|user| fill(&daemon, user, scale.each));
    let users: Vec<_> = users.buffered(AT_ONCE).try_collect().await.expect("filled");
    let all = scale.tenants * scale.each;
    println!(
        "{engine:?}: {} tenants with a user and an API key in {:.1} s; {all} credentials by import in {:.1} s",
        scale.tenants,
        made.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    held(&daemon, bound).await;
    println!(
        "resident after the import: {} MiB",
        memory(&daemon, "VmRSS")
    );

    // Nothing is in memory any more: the first call of a tenant is a cold one, and the next one is not.
    daemon.restart().await;
    println!("resident after a restart: {} MiB", memory(&daemon, "VmRSS"));
    let who = daemon.actor_with(None);
    let [mut lists, mut colds, mut warms] = [(); 3].map(|()| Vec::new());
    for user in &users {
        let listed = timed(&mut lists, list(&who, user)).await;
        assert_eq!(listed, scale.each.min(100));
        for times in [&mut colds, &mut warms] {
            let revealed = timed(times, reveal(&who, user)).await;
            assert_eq!(revealed, secret(&user.tenant, "c0000"));
        }
        held(&daemon, bound).await;
    }
    line("ListCredentials, of 100", lists);
    line("RevealCredential, cold", colds);
    line("RevealCredential, warm", warms);
    let loads = metric(&daemon, LOADS).await as usize;
    assert!(
        loads >= users.len(),
        "every tenant has a data key of its own: {loads}"
    );

    daemon.restart().await;
    let who = daemon.actor_with(None);
    let [mut colds, mut warms] = [(); 2].map(|()| Vec::new());
    for user in &users {
        timed(&mut colds, put(&who, user, "cold")).await;
        timed(&mut warms, put(&who, user, "warm")).await;
        held(&daemon, bound).await;
    }
    line("PutCredential, cold", colds);
    line("PutCredential, warm", warms);

    // Those that had to make room are unwrapped again.
    let before = metric(&daemon, LOADS).await as usize;
    for user in &users {
        assert_eq!(reveal(&who, user).await, secret(&user.tenant, "c0000"));
    }
    let again = metric(&daemon, LOADS).await as usize - before;
    assert!(
        again >= users.len() - bound,
        "only {again} were unwrapped again"
    );
    println!(
        "data keys held: {} of at most {bound}, for {} tenants; resident: {} MiB, at most {} MiB\n",
        held(&daemon, bound).await,
        users.len(),
        memory(&daemon, "VmRSS"),
        memory(&daemon, "VmHWM")
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_more_tenants_than_data_keys_are_held_on_sqlite() {
    credentials_of_many_tenants(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_more_tenants_than_data_keys_are_held_on_postgresql() {
    credentials_of_many_tenants(Engine::Postgres).await;
}
