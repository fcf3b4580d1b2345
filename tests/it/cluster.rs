//! Three replicas on one PostgreSQL, under load, while everything around them fails in turn: a rolling restart, a leader that
//! is killed, a replica that is cut off from the database, the database itself. R-OPS-1, R-EMER-3, R-CARD-6.
//!
//! Callers do what services do: they have a list of replicas, and go to the next one when a call fails with UNAVAILABLE. What
//! was acknowledged once must be there at the end, and every answer must be right. `CLAVIGER_SOAK_SECONDS` makes it last; one
//! round of each trouble otherwise.

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use claviger::grpc::proto::*;
use tokio::{
    sync::RwLock,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

use crate::{
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup},
    postgres,
    proxy::Proxy,
};

const REPLICAS: usize = 3;
const AUDIENCE: &str = "https://api.test";
/// Pause between two calls of one caller: two cores carry three daemons, the token, the database and the callers.
const PACE: Duration = Duration::from_millis(15);

/// What callers know: how to reach each replica, and whether it is time to stop.
struct World {
    replicas: [RwLock<Daemon>; REPLICAS],
    over: AtomicBool,
    calls: AtomicU64,
    retries: AtomicU64,
}

/// What a caller was told that it has done.
#[derive(Debug)]
enum Made {
    /// Calls of this action.
    Uses(&'static str, u64),
    /// Ciphertexts, each with its plaintext.
    Ciphertexts(Vec<(Vec<u8>, Vec<u8>)>),
    /// Changes: seq and hash of the row, and the owner that was set.
    Changes(Vec<(i64, String, String)>),
    /// Requests that were recorded.
    Usage(i64),
}

/// Somebody who calls, with a connection to each replica.
struct Caller {
    world: Arc<World>,
    name: &'static str,
    actors: [Option<Actor>; REPLICAS],
    turn: usize,
}

impl Caller {
    fn new(world: &Arc<World>, name: &'static str, turn: usize) -> Self {
        Self {
            world: Arc::clone(world),
            name,
            actors: Default::default(),
            turn,
        }
    }

    fn goes_on(&self) -> bool {
        !self.world.over.load(Ordering::Relaxed)
    }

    /// The next replica in turn that can be reached; one that is being restarted has no address.
    async fn next(&mut self) -> (usize, Actor) {
        loop {
            self.turn = (self.turn + 1) % REPLICAS;
            if let Some(actor) = &self.actors[self.turn] {
                return (self.turn, actor.clone());
            }
            if let Ok(daemon) = self.world.replicas[self.turn].try_read() {
                let actor = daemon.actor(self.name);
                self.actors[self.turn] = Some(actor.clone());
                return (self.turn, actor);
            }
            sleep(PACE).await;
        }
    }

    /// Makes the call until it succeeds. The one failure that may be is UNAVAILABLE, and the next replica takes it.
    async fn call<M, T, F>(&mut self, what: &str, message: M, call: fn(Actor, M) -> F) -> T
    where
        M: Clone,
        F: Future<Output = Result<T, Status>>,
    {
        let until = Instant::now() + PATIENCE;
        loop {
            let (place, actor) = self.next().await;
            match call(actor, message.clone()).await {
                Ok(answer) => {
                    self.world.calls.fetch_add(1, Ordering::Relaxed);
                    sleep(PACE).await;
                    return answer;
                }
                Err(status) => {
                    assert!(is_retried(&status), "{what}: {status:?}");
                    assert!(
                        Instant::now() < until,
                        "{what} is never answered: {status:?}"
                    );
                    self.world.retries.fetch_add(1, Ordering::Relaxed);
                    self.actors[place] = None;
                    sleep(PACE).await;
                }
            }
        }
    }
}

/// A connection that broke is not an answer; every other failure is one of the daemon's.
fn is_retried(status: &Status) -> bool {
    let is_broken = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || is_broken
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    let key = key.parse().expect("a header");
    request.metadata_mut().insert("idempotency-key", key);
    request
}

/// Signs, and has another replica verify.
async fn signs(world: Arc<World>) -> Made {
    let mut caller = Caller::new(&world, "service", 0);
    let mut made = 0;
    while caller.goes_on() {
        let message = format!("order {made}").into_bytes();
        let request = SignRequest {
            key: "orders".into(),
            payload: Some(sign_request::Payload::Message(message.clone().into())),
            ..Default::default()
        };
        let signed = caller
            .call(
                "Sign",
                request,
                |a, r| async move { a.crypto().sign(r).await },
            )
            .await
            .into_inner();
        let request = VerifyRequest {
            key: "orders".into(),
            payload: Some(verify_request::Payload::Message(message.into())),
            signature: signed.signature,
            ..Default::default()
        };
        let verified = caller
            .call("Verify", request, |a, r| async move {
                a.crypto().verify(r).await
            })
            .await
            .into_inner();
        assert!(verified.valid && verified.kid == signed.kid, "{verified:?}");
        made += 1;
    }
    Made::Uses("Sign", made)
}

/// Encrypts, and has another replica decrypt; keeps some for the end.
async fn encrypts(world: Arc<World>) -> Made {
    let mut caller = Caller::new(&world, "service", 1);
    let mut kept = Vec::new();
    let mut made: u64 = 0;
    while caller.goes_on() {
        let plaintext = format!("card {made}").repeat(20).into_bytes();
        let request = EncryptRequest {
            key: "vault".into(),
            plaintext: plaintext.clone().into(),
            ..Default::default()
        };
        let sealed = caller
            .call("Encrypt", request, |a, r| async move {
                a.crypto().encrypt(r).await
            })
            .await
            .into_inner();
        let opened = decrypted(&mut caller, &sealed.ciphertext).await;
        assert_eq!(opened, plaintext);
        if made.is_multiple_of(20) {
            kept.push((sealed.ciphertext.to_vec(), plaintext));
        }
        made += 1;
    }
    Made::Ciphertexts(kept)
}

async fn decrypted(caller: &mut Caller, ciphertext: &[u8]) -> Vec<u8> {
    let request = DecryptRequest {
        key: "vault".into(),
        ciphertext: ciphertext.to_vec().into(),
        ..Default::default()
    };
    let opened = caller
        .call("Decrypt", request, |a, r| async move {
            a.crypto().decrypt(r).await
        })
        .await;
    opened.into_inner().plaintext.to_vec()
}

/// Gets tokens, and has another replica verify them; a token that another tenant's verifier takes would be a wrong answer.
async fn issues(world: Arc<World>) -> Made {
    let mut caller = Caller::new(&world, "service", 2);
    let mut made = 0;
    while caller.goes_on() {
        let request = IssueTokenRequest {
            key: "tokens".into(),
            audience: vec![AUDIENCE.into()],
            ..Default::default()
        };
        let token = caller
            .call("IssueToken", request, |a, r| async move {
                a.tokens().issue_token(r).await
            })
            .await
            .into_inner()
            .token;
        for (audience, valid) in [(AUDIENCE, true), ("https://other.test", false)] {
            let request = VerifyTokenRequest {
                token: token.clone(),
                audience: audience.into(),
                ..Default::default()
            };
            let verdict = caller
                .call("VerifyToken", request, |a, r| async move {
                    a.tokens().verify_token(r).await
                })
                .await
                .into_inner();
            assert_eq!(verdict.valid, valid, "{verdict:?}");
        }
        made += 1;
    }
    Made::Uses("IssueToken", made)
}

/// Changes the owner of a key again and again. Keeps what was acknowledged: seq, hash, owner.
async fn changes(world: Arc<World>) -> Made {
    let mut caller = Caller::new(&world, "issuer", 0);
    let mut acknowledged = Vec::new();
    while caller.goes_on() {
        let owner = format!("team-{}", acknowledged.len());
        let request = UpdateKeyRequest {
            tenant: "acme".into(),
            key: "changing".into(),
            owner: Some(owner.clone()),
            ..Default::default()
        };
        // A retry of a change whose answer was lost must not be a second change.
        let once = uuid::Uuid::now_v7().to_string();
        let receipt = caller
            .call("UpdateKey", (request, once), |a, (r, key)| async move {
                a.keys().update_key(with_key(r, &key)).await
            })
            .await
            .into_inner()
            .receipt
            .expect("a receipt");
        acknowledged.push((receipt.seq, receipt.hash, owner));
    }
    Made::Changes(acknowledged)
}

/// Records usage, each event once, whoever takes it; how many requests were acknowledged.
async fn records(world: Arc<World>, principal: String) -> Made {
    let mut caller = Caller::new(&world, "service", 1);
    let mut acknowledged = 0;
    while caller.goes_on() {
        let event = UsageEvent {
            event_id: uuid::Uuid::now_v7().to_string(),
            provider: "openai".into(),
            principal_id: principal.clone(),
            requests: Some(3),
            ..Default::default()
        };
        let request = RecordUsageRequest {
            tenant: "acme".into(),
            events: vec![event],
        };
        caller
            .call("RecordUsage", request, |a, r| async move {
                a.usage().record_usage(r).await
            })
            .await;
        acknowledged += 3;
    }
    Made::Usage(acknowledged)
}

/// Place of the replica that does the scheduled work, once one of the living does.
async fn leader(world: &World, names: &[&str], besides: Option<usize>) -> usize {
    let until = Instant::now() + PATIENCE;
    loop {
        let place = {
            let any = world.replicas[0].read().await;
            let lease = "SELECT holder FROM leases WHERE name = 'scheduler'";
            let holder = any.rows(lease).await.concat().concat();
            names
                .iter()
                .position(|name| holder.starts_with(&format!("{name}/")))
        };
        match place {
            Some(place) if Some(place) != besides => return place,
            _ => assert!(Instant::now() < until, "nobody does the scheduled work"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the replica at `place` is ready, or is not.
async fn readiness(world: &World, place: usize, is_ready: bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        let daemon = world.replicas[place].read().await;
        let answer = daemon.ops_get("/readyz").await;
        if (answer.status == 200) == is_ready {
            return;
        }
        assert!(Instant::now() < until, "{place}: {}", answer.text());
        drop(daemon);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_lose_nothing_whatever_fails() {
    let mut server = postgres::own().await;
    let url = server.database().await;
    let mut proxies = Vec::new();
    for _ in 0..REPLICAS {
        proxies.push(Proxy::before_postgres(&url).await);
    }
    let names = ["one", "two", "three"];
    let first = Setup::new(Engine::Postgres)
        .on(url)
        .by_way_of(&proxies[0].1)
        .append("[feed]\nmax_staleness_seconds = 3")
        .for_two()
        .start()
        .await;
    let second = first.beside(names[1], Some(&proxies[1].1)).await;
    let third = first.beside(names[2], Some(&proxies[2].1)).await;
    for (name, purpose, algorithm) in [
        ("orders", KeyPurpose::Signing, Algorithm::Es256),
        ("tokens", KeyPurpose::TokenSigning, Algorithm::Es256),
        ("vault", KeyPurpose::Encryption, Algorithm::A256gcm),
        ("changing", KeyPurpose::Signing, Algorithm::Eddsa),
    ] {
        first.key("acme", name, purpose, algorithm).await;
    }
    let principal = first.id_of("service").await;
    let world = Arc::new(World {
        replicas: [first, second, third].map(RwLock::new),
        over: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        retries: AtomicU64::new(0),
    });

    let mut callers = JoinSet::new();
    let of = || Arc::clone(&world);
    callers.spawn(signs(of()));
    callers.spawn(encrypts(of()));
    callers.spawn(issues(of()));
    callers.spawn(changes(of()));
    callers.spawn(records(of(), principal));

    let soak = env::var("CLAVIGER_SOAK_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(soak.unwrap_or(0));
    let mut failovers = Vec::new();
    loop {
        // A rolling restart, as a deployment does it.
        for replica in &world.replicas {
            let mut daemon = replica.write().await;
            daemon.restart().await;
        }
        // The leader dies without a word.
        let place = leader(&world, &names, None).await;
        let died = Instant::now();
        world.replicas[place].write().await.kill().await;
        leader(&world, &names, Some(place)).await;
        failovers.push(died.elapsed());
        let up = world.replicas[place].write().await.up().await;
        up.unwrap_or_else(|why| panic!("the killed one does not come back: {why}"));
        // One is cut off from the database: it says so, and is itself again afterwards.
        proxies[1].0.stop_forwarding();
        readiness(&world, 1, false).await;
        proxies[1].0.forward_again();
        readiness(&world, 1, true).await;
        // The database crashes.
        server.restart().await;
        for place in 0..REPLICAS {
            readiness(&world, place, true).await;
        }
        callers_are_fine(&mut callers).await;
        if Instant::now() >= until {
            break;
        }
    }
    // After the last trouble everybody is served once more.
    let before = world.calls.load(Ordering::Relaxed);
    let patience = Instant::now() + PATIENCE;
    while world.calls.load(Ordering::Relaxed) < before + 50 {
        callers_are_fine(&mut callers).await;
        assert!(Instant::now() < patience, "the callers stand still");
        sleep(Duration::from_millis(50)).await;
    }
    world.over.store(true, Ordering::Relaxed);
    let mut made = Vec::new();
    while let Some(ended) = callers.join_next().await {
        made.push(ended.expect("a caller"));
    }
    let (calls, retries) = (
        world.calls.load(Ordering::Relaxed),
        world.retries.load(Ordering::Relaxed),
    );
    println!("{calls} calls, {retries} retries, failover of scheduled work after {failovers:?}");
    // The bound is 10 s; a machine that is busy with other tests adds to it.
    assert!(
        failovers
            .iter()
            .all(|after| *after < Duration::from_secs(30)),
        "{failovers:?}"
    );

    let mut caller = Caller::new(&world, "service", 0);
    for made in &made {
        if let Made::Ciphertexts(kept) = made {
            assert!(!kept.is_empty());
            for (ciphertext, plaintext) in kept {
                assert_eq!(decrypted(&mut caller, ciphertext).await, *plaintext);
            }
        }
    }
    drop(caller);
    let world = Arc::try_unwrap(world).ok().expect("nobody calls");
    let [first, second, third] = world.replicas.map(RwLock::into_inner);
    for made in made {
        match made {
            Made::Ciphertexts(_) => {}
            Made::Changes(changed) => no_change_is_lost(&first, &changed).await,
            Made::Uses(action, made) => every_use_is_recorded(&first, action, made).await,
            Made::Usage(recorded) => {
                let sum = "SELECT CAST(SUM(requests) AS BIGINT) FROM usage_aggregates \
                     WHERE span = 'DAY' AND provider = 'openai'";
                assert_eq!(first.rows(sum).await.concat(), [recorded.to_string()]);
            }
        }
    }
    third.stop().await;
    second.stop().await;
    first.stop().await;
}

/// A caller that met a wrong answer has panicked.
async fn callers_are_fine(callers: &mut JoinSet<Made>) {
    if let Some(ended) = callers.try_join_next() {
        panic!("a caller ended: {ended:?}");
    }
}

/// Every acknowledged change is a row of the log, with the hash that was given for it, once; and the last one holds.
async fn no_change_is_lost(daemon: &Daemon, changed: &[(i64, String, String)]) {
    let rows = "SELECT seq, encode(hash, 'hex') FROM audit_events WHERE stream = 'admin' AND action = 'UpdateKey' \
         AND outcome = 'success' AND data NOT LIKE '%\"repeats\"%'";
    let rows = daemon.rows(rows).await;
    let rows: BTreeMap<i64, String> = rows
        .into_iter()
        .map(|row| (row[0].parse().expect("a seq"), row[1].clone()))
        .collect();
    for (seq, hash, _) in changed {
        assert_eq!(rows.get(seq), Some(hash), "row {seq}");
    }
    assert_eq!(rows.len(), changed.len(), "a change was made twice");
    let owner = daemon
        .rows("SELECT owner FROM keys WHERE name = 'changing'")
        .await
        .concat();
    assert_eq!(Some(&owner[0]), changed.last().map(|(.., owner)| owner));
}

/// There is a row for every call that was answered; calls whose answer was lost may have one too.
async fn every_use_is_recorded(daemon: &Daemon, action: &str, made: u64) {
    let rows = format!(
        "SELECT COUNT(*) FROM audit_events WHERE action = '{action}' AND outcome = 'success'"
    );
    let rows: u64 = daemon.rows(&rows).await[0][0].parse().expect("a number");
    assert!(
        made > 0 && rows >= made,
        "{action}: {rows} rows of {made} calls"
    );
}
