//! A day of an orchestrator that has keys of eight LLM providers: from a `.env` file into the vault, looked at, one of them
//! rotated under the feet of whoever uses it, one that could not be; used by many at once, and people told what they should
//! be. R-CRED-5, R-CRED-6, R-CRED-7, R-USE-1, R-USE-3, R-USE-4.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use claviger::model::usage::Cost;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use super::*;
use crate::{
    alerts::{
        channels::{SECRET, assert_signed, email, webhook},
        mail::{MailServer, PASSWORD},
        receiver::Receiver,
    },
    daemon::{Actor, Engine, PATIENCE, Setup},
    usage::{ago, record, report},
};

/// Provider, variable, beginning of a key, characters after it.
const LLMS: [(&str, &str, &str, usize); 8] = [
    ("openai", "OPENAI_API_KEY", "sk-", 48),
    ("anthropic", "ANTHROPIC_API_KEY", "sk-ant-api03-", 95),
    ("gemini", "GEMINI_API_KEY", "AIzaSy", 33),
    ("mistral", "MISTRAL_API_KEY", "", 32),
    ("grok", "XAI_API_KEY", "xai-", 40),
    ("qwen", "QWEN_API_KEY", "sk-", 48),
    ("deepseek", "DEEPSEEK_API_KEY", "sk-", 48),
    ("kimi-k2", "KIMI_API_KEY", "sk-", 48),
];

/// A key of the provider with this number in the list.
fn key(number: usize, generation: &str) -> String {
    let (name, _, prefix, length) = LLMS[number];
    let text: String = format!("{generation}{}", name.replace('-', ""))
        .chars()
        .cycle()
        .take(length)
        .collect();
    format!("{prefix}{text}")
}

/// Stands in for all eight: takes the keys that are issued and not revoked, in whatever header they come.
struct Providers {
    port: u16,
    live: Arc<Mutex<BTreeSet<String>>>,
}

impl Providers {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let live: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::clone(&live);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let live = Arc::clone(&shared);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match socket.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => return,
                        }
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    let given = request.lines().filter_map(|line| line.split_once(": "));
                    let given: Vec<_> = given
                        .map(|(_, value)| value.strip_prefix("Bearer ").unwrap_or(value))
                        .collect();
                    let is_live = {
                        let live = live.lock().expect("no panic");
                        given.iter().any(|key| live.contains(*key))
                    };
                    let status = if is_live {
                        "200 OK"
                    } else {
                        "401 Unauthorized"
                    };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    let _ = socket.write_all(answer.as_bytes()).await;
                    let _ = socket.shutdown().await;
                });
            }
        });
        Self { port, live }
    }

    fn issues(&self, key: &str) {
        self.live.lock().expect("no panic").insert(key.to_owned());
    }

    fn revokes(&self, key: &str) {
        assert!(self.live.lock().expect("no panic").remove(key));
    }
}

/// Asks the stand-in a question with this key; does it take it?
async fn completes(port: u16, key: &str) -> bool {
    let mut socket = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connected");
    let request =
        format!("POST /v1/chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("an answer");
    answer.starts_with(b"HTTP/1.1 200 ")
}

/// Somebody who leases a credential, uses it and gives it back, all the time.
struct Client {
    stop: Arc<AtomicBool>,
    uses: Arc<Mutex<BTreeMap<String, usize>>>,
    failures: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Client {
    fn of(actor: Actor, credential: String, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let uses: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let failures = Arc::new(AtomicUsize::new(0));
        let (stopped, counted, failed) = (stop.clone(), uses.clone(), failures.clone());
        let task = tokio::spawn(async move {
            let mut leases = actor.leases();
            while !stopped.load(Ordering::SeqCst) {
                let request = LeaseCredentialRequest {
                    credential_id: credential.clone(),
                    ttl: None,
                };
                let leased = leases.lease_credential(request).await;
                let leased = leased.expect("LeaseCredential").into_inner();
                let key = String::from_utf8(leased.fields[0].value.to_vec()).expect("UTF-8");
                if !completes(port, &key).await {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                *counted.lock().expect("no panic").entry(key).or_default() += 1;
                let lease_id = leased.lease.expect("a lease").id;
                let returned = leases.return_lease(ReturnLeaseRequest { lease_id }).await;
                returned.expect("ReturnLease");
            }
        });
        Self {
            stop,
            uses,
            failures,
            task,
        }
    }

    /// How often it has used this key.
    fn uses(&self, key: &str) -> usize {
        let uses = self.uses.lock().expect("no panic");
        uses.get(key).copied().unwrap_or_default()
    }

    /// Waits until it has used a key more often than now.
    async fn goes_on(&self, key: &str) {
        let before = self.uses(key);
        let until = Instant::now() + PATIENCE;
        while self.uses(key) < before + 3 {
            assert!(!self.task.is_finished(), "the client has ended");
            assert!(Instant::now() < until, "the client does not use the key");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// All of its uses. None of them failed.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("the client never fails");
        assert_eq!(self.failures.load(Ordering::SeqCst), 0);
        self.uses.lock().expect("no panic").values().sum()
    }
}

struct Day {
    d: Daemon,
    /// Other daemons on the same database.
    others: Vec<Daemon>,
    providers: Providers,
    receiver: Receiver,
    mails: MailServer,
    /// Ids of the credentials, in the order of the providers.
    ids: Vec<String>,
}

impl Day {
    async fn new(engine: Engine) -> Self {
        let setup = match engine {
            Engine::Sqlite => Setup::new(engine),
            Engine::Postgres => Setup::new(engine).for_two(),
        };
        let mut d = setup.provision().await;
        let providers = Providers::new().await;
        let receiver = Receiver::start(&d, &[]).await;
        let mails = MailServer::start(&d).await;
        let secret = format!("whsec_{}", BASE64_STANDARD.encode(SECRET));
        fs::write(d.path("secrets/webhook"), secret).expect("a secret");
        fs::write(d.path("secrets/mail"), PASSWORD).expect("a password");
        let ca = d.path("certs/ca.crt").display().to_string();
        let mut more = format!(
            "[egress]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\nca_file = \"{ca}\"\n{}{}\
             [vault.rotation]\ncheck_seconds = 1\n[vault.base_urls]\n",
            email(mails.port),
            webhook(receiver.port)
        );
        more = more.replace("SECRETS", &d.path("secrets").display().to_string());
        more = more.replace("CA_FILE", &ca);
        for (name, ..) in LLMS {
            more += &format!("{name} = \"http://127.0.0.1:{}\"\n", providers.port);
        }
        d.edit_config(|text| format!("{text}\n{more}"));
        d.up().await.expect("the daemon starts");
        let mut admin = d.actor("admin").principals();
        let service = d.id_of("service").await;
        let grant = GrantRoleRequest {
            principal_id: service.clone(),
            role: "credential-manager".into(),
            tenant: "acme".into(),
        };
        admin.grant_role(grant).await.expect("GrantRole");
        let change = UpdatePrincipalRequest {
            principal_id: service,
            add_scopes: vec!["can.lease_credentials".into()],
            ..Default::default()
        };
        admin
            .update_principal(change)
            .await
            .expect("UpdatePrincipal");
        let mut others = Vec::new();
        if engine == Engine::Postgres {
            let mut third = d.second(None).await;
            third.edit_config(|text| text.replace("replica = \"two\"", "replica = \"three\""));
            third.restart().await;
            others.push(third);
            others.push(d.second(None).await);
        }
        Self {
            d,
            others,
            providers,
            receiver,
            mails,
            ids: Vec::new(),
        }
    }

    /// Somebody with the certificate of `service` at each daemon; three of them in any case.
    fn clients(&self) -> Vec<Actor> {
        let all: Vec<_> = [&self.d].into_iter().chain(&self.others).collect();
        (0..3)
            .map(|n| all[n % all.len()].actor("service"))
            .collect()
    }

    /// In the morning the keys come in from a `.env` file.
    async fn import(&mut self) {
        let mut env = "# the orchestrator\nLOG_LEVEL=info\n".to_owned();
        for (number, (_, variable, ..)) in LLMS.iter().enumerate() {
            let key = key(number, "One");
            self.providers.issues(&key);
            env += &format!("{variable}={key}\n");
        }
        let path = self.d.path("llm.env");
        fs::write(&path, env).expect("a file");
        let path = path.display().to_string();
        let args = [
            "--as",
            "service",
            "--output",
            "json",
            "credential",
            "import",
            "env",
            "--file",
            &path,
            "--owner-name",
            "service",
            "--environment",
            "production",
        ];
        let said: Value = serde_json::from_str(&self.d.cli_ok(&args).await).expect("JSON");
        assert_eq!(
            (&said["created"], &said["warnings"]),
            (&json!(8), &json!([])),
            "{said}"
        );
        for (name, ..) in LLMS {
            let id = format!("SELECT id FROM credentials WHERE provider = '{name}'");
            self.ids.push(self.d.rows(&id).await[0][0].clone());
        }
    }

    /// Are they what they should be? Each provider says so.
    async fn validate(&self) {
        for id in &self.ids {
            let args = ["--as", "service", "credential", "validate", id];
            self.d.cli_ok(&args).await;
        }
        let request = GetCredentialReportRequest {
            owner_id: "me".into(),
            ..Default::default()
        };
        let service = self.d.actor("service");
        let answer = service.credentials().get_credential_report(request).await;
        let rows = answer.expect("GetCredentialReport").into_inner().providers;
        let mut seen = BTreeMap::new();
        for row in rows.iter().filter(|row| row.configured > 0) {
            seen.insert(
                row.provider.clone(),
                (row.configured, row.format_ok, row.probe_valid),
            );
        }
        let wanted = LLMS.map(|(name, ..)| (name.to_owned(), (1, 1, 1)));
        assert_eq!(seen, BTreeMap::from(wanted));
    }

    /// Stages a key and promotes it, on the command line; what that said and with which exit code.
    async fn rotate(&self, number: usize, new: &str) -> (String, Option<i32>) {
        let file = self.d.path("new.key");
        fs::write(&file, format!("{new}\n")).expect("a file");
        let field = format!("api_key=file:{}", file.display());
        let id = &self.ids[number];
        let common = ["--as", "service", "credential", "rotation"];
        let stage = ["stage", id, "--field", &field, "--hold", "1h"];
        self.d.cli_ok(&[&common[..], &stage].concat()).await;
        fs::remove_file(file).expect("removed");
        let open = format!(
            "SELECT id FROM credential_rotations WHERE credential_id = '{id}' AND state = 'STAGED'"
        );
        let rotation = self.d.rows(&open).await[0][0].clone();
        let promote = [&common[..], &["promote", &rotation]].concat();
        let promoted = self.d.cli(&promote).await;
        (rotation, promoted.status.code())
    }

    /// One key is rotated while somebody uses it, and the old one dies at the provider.
    async fn one_is_rotated(&self) -> usize {
        let (old, new) = (key(0, "One"), key(0, "Two"));
        let user = self.clients().remove(2);
        let client = Client::of(user, self.ids[0].clone(), self.providers.port);
        client.goes_on(&old).await;
        self.providers.issues(&new);
        let (rotation, code) = self.rotate(0, &new).await;
        assert_eq!(code, Some(0));
        client.goes_on(&new).await;
        // Nobody holds the old one any more, so it may go.
        let held = format!(
            "SELECT l.id FROM credential_leases l JOIN credential_rotations r ON r.old_value = l.value_id \
             WHERE r.id = '{rotation}' AND l.ended_at IS NULL"
        );
        let until = Instant::now() + PATIENCE;
        while !self.d.rows(&held).await.is_empty() {
            assert!(Instant::now() < until, "the old value is held");
            sleep(Duration::from_millis(20)).await;
        }
        self.providers.revokes(&old);
        let complete = [
            "--as",
            "service",
            "credential",
            "rotation",
            "complete",
            &rotation,
        ];
        let said = self.d.cli_ok(&complete).await;
        assert!(said.contains("dead"), "{said}");
        assert!(!completes(self.providers.port, &old).await, "it really is");
        client.goes_on(&new).await;
        client.end().await
    }

    /// Another one cannot be: the provider does not take the new key, and who uses the old one notices nothing.
    async fn one_is_rolled_back(&self) -> usize {
        let (old, bad) = (key(1, "One"), key(1, "Bad"));
        let user = self.clients().remove(1);
        let client = Client::of(user, self.ids[1].clone(), self.providers.port);
        client.goes_on(&old).await;
        let (rotation, code) = self.rotate(1, &bad).await;
        assert_eq!(code, Some(1));
        let state = format!("SELECT state, why FROM credential_rotations WHERE id = '{rotation}'");
        let state = self.d.rows(&state).await;
        assert_eq!(state, [["ROLLED_BACK", "NEW_VALUE_REFUSED"]]);
        client.goes_on(&old).await;
        assert_eq!(client.uses(&bad), 0);
        client.end().await
    }

    /// What clients of every daemon tell at once adds up to the last billionth; each event comes to two of them.
    async fn used(&self, at: prost_types::Timestamp, leased: [usize; 2]) -> Sums {
        const BATCHES: usize = 16;
        let events = |batch: usize| -> Vec<UsageEvent> {
            let one = |n: usize| {
                let number = (batch + n) % LLMS.len();
                UsageEvent {
                    event_id: format!("day-{batch}-{n}"),
                    time: Some(at),
                    provider: LLMS[number].0.into(),
                    credential_id: self.ids[number].clone(),
                    requests: Some(1 + (n % 2) as i64),
                    // Those of one provider fail now and then.
                    errors: i64::from(number == 2 && n.is_multiple_of(2)),
                    tokens_in: 1000 + n as i64,
                    tokens_out: (batch * n) as i64,
                    cost: if number == 3 { "0.3" } else { "0.000000007" }.into(),
                    ..Default::default()
                }
            };
            (0..40).map(one).collect()
        };
        let mut all: Vec<_> = (0..BATCHES).map(events).collect();
        let leased = leased.iter().enumerate().map(|(number, uses)| UsageEvent {
            event_id: format!("leased-{number}"),
            time: Some(at),
            provider: LLMS[number].0.into(),
            credential_id: self.ids[number].clone(),
            requests: Some(*uses as i64),
            ..Default::default()
        });
        all.push(leased.collect());
        let clients = self.clients();
        let told = clients.iter().enumerate().map(|(who, client)| {
            let all = &all;
            async move {
                let mut new = 0;
                for n in 0..all.len() {
                    let number = (n + who * 5) % all.len();
                    // Each batch is told by two of the three.
                    if number % 3 == who {
                        continue;
                    }
                    let results = record(client, all[number].clone()).await;
                    let results = results.expect("RecordUsage");
                    assert!(results.iter().all(|r| r.error.is_none()), "{results:?}");
                    let recorded = |r: &&UsageResult| r.outcome() == UsageOutcome::Recorded;
                    new += results.iter().filter(recorded).count();
                }
                new
            }
        });
        let new: usize = futures_util::future::join_all(told).await.into_iter().sum();
        assert_eq!(new, BATCHES * 40 + 2, "each counts once");
        let mut sums = Sums::new();
        for e in all.into_iter().flatten() {
            let cost = match e.cost.as_str() {
                "" => Cost::ZERO,
                cost => cost.parse().expect("a cost"),
            };
            let sum = sums.entry(e.credential_id).or_insert([0; 5]);
            let more = [
                e.requests.unwrap_or(1),
                e.errors,
                e.tokens_in,
                e.tokens_out,
                cost.nanos(),
            ];
            sum.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
        }
        sums
    }

    /// The report of the day, from whichever daemon.
    async fn reported(&self) -> Vec<Sums> {
        let mut reports = Vec::new();
        for daemon in [&self.d].into_iter().chain(&self.others) {
            let request = GetUsageReportRequest {
                tenant: "acme".into(),
                begin_time: Some(ago(24 * 60 * 60)),
                span: UsageSpan::Day.into(),
                group_by: vec![UsageGroup::Credential.into()],
                page_size: 1000,
                ..Default::default()
            };
            let mut sums = Sums::new();
            for row in report(daemon, request).await.rows {
                let t = row.totals.expect("totals");
                let cost = t.cost.parse::<Cost>().expect("a cost").nanos();
                if !row.credential_id.is_empty() {
                    let sum = sums.entry(row.credential_id).or_insert([0; 5]);
                    let more = [t.requests, t.errors, t.tokens_in, t.tokens_out, cost];
                    sum.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
                }
            }
            reports.push(sums);
        }
        reports
    }

    /// Kind and entity of every alert, by id.
    async fn raised(&self) -> BTreeMap<String, (String, String)> {
        let rows = self.d.rows("SELECT id, kind, entity_id FROM alerts").await;
        let rows = rows
            .into_iter()
            .map(|row| (row[0].clone(), (row[1].clone(), row[2].clone())));
        rows.collect()
    }

    /// Everybody is told of everything, once: by mail and by webhook.
    async fn told(&self, sums: &Sums) {
        let mut wanted = BTreeSet::new();
        for (id, [requests, errors, _, _, cost]) in sums {
            let mut wants = |kind: &str, is_so: bool| {
                if is_so {
                    wanted.insert((kind.to_owned(), id.clone()));
                }
            };
            wants("REQUEST_RATE", *requests > 100);
            wants("ERROR_RATE", errors * 100 > requests * 5);
            wants("COST_RATE", *cost > Cost::units(10).nanos());
        }
        let kinds: BTreeSet<_> = wanted.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(
            kinds.len(),
            3,
            "the day has something of everything: {sums:?}"
        );
        wanted.insert(("CREDENTIAL_ROLLED_BACK".into(), self.ids[1].clone()));
        let until = Instant::now() + PATIENCE;
        let undelivered = "SELECT id FROM alert_deliveries WHERE state <> 'DELIVERED' UNION ALL \
                           SELECT id FROM alerts WHERE routed_at IS NULL";
        let raised = loop {
            let raised = self.raised().await;
            let seen: BTreeSet<_> = raised.values().cloned().collect();
            if wanted.is_subset(&seen) && self.d.rows(undelivered).await.is_empty() {
                break raised;
            }
            assert!(Instant::now() < until, "{wanted:?} and {seen:?}");
            sleep(Duration::from_millis(50)).await;
        };
        let once = raised.values().filter(|alert| wanted.contains(alert));
        assert_eq!(once.count(), wanted.len(), "once in its window: {raised:?}");
        // The mail server tells us of its mails a moment later.
        while self.mails.messages().len() < raised.len() {
            assert!(Instant::now() < until, "mails are missing");
            sleep(Duration::from_millis(50)).await;
        }
        let ids: Vec<_> = raised.keys().cloned().collect();
        let received = self.receiver.received();
        let mut by_webhook: Vec<_> = received.iter().map(|r| r.id.clone()).collect();
        by_webhook.sort();
        assert_eq!(by_webhook, ids);
        assert_signed(&received[0]).await;
        let messages = self.mails.messages();
        let id_of = |message: &Value| {
            let text = message["data"].as_str().expect("a text");
            let found = ids
                .iter()
                .find(|id| text.contains(&format!("<{id}@claviger>")));
            found
                .cloned()
                .unwrap_or_else(|| panic!("of no alert: {text}"))
        };
        let mut by_mail: Vec<_> = messages.iter().map(id_of).collect();
        by_mail.sort();
        assert_eq!(by_mail, ids);
    }

    /// None of the keys is anywhere, in whatever was kept, logged or sent.
    async fn end(self) {
        let mut everything = crate::canaries::dump(&self.d).await + &self.d.log();
        for received in self.receiver.received() {
            everything += &String::from_utf8_lossy(&received.body);
        }
        for message in self.mails.messages() {
            everything += &message.to_string();
        }
        everything.extend(self.others.iter().map(Daemon::log));
        for number in 0..LLMS.len() {
            for generation in ["One", "Two", "Bad"] {
                assert!(!everything.contains(&key(number, generation)));
            }
        }
        for other in self.others {
            other.stop().await;
        }
        self.d.stop().await;
    }
}

/// Requests, errors, tokens sent and received, cost: by credential.
type Sums = BTreeMap<String, [i64; 5]>;

async fn a_day(engine: Engine) {
    let mut day = Day::new(engine).await;
    day.import().await;
    day.validate().await;
    let leased = [day.one_is_rotated().await, day.one_is_rolled_back().await];
    // All of it in one minute: what is told of it is told once.
    let at = ago(0);
    let sums = day.used(at, leased).await;
    for reported in day.reported().await {
        assert_eq!(reported, sums);
    }
    day.told(&sums).await;
    day.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_the_llm_system_on_sqlite() {
    a_day(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_the_llm_system_with_three_daemons_on_postgresql() {
    a_day(Engine::Postgres).await;
}
