//! A token in trouble behind a running daemon: gone, hanging, its PIN changed. What needs it
//! says so at once and can be asked again; what does not goes on; and all is well again soon after the token is.
//!
//! SoftHSM waits inside the library for the locks of its files, so a process that holds them is a device that hangs.

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use claviger::{
    backends::{Backend, BackendError, Guarded, breaker::State},
    grpc::proto::{
        Algorithm, DecryptRequest, EncryptRequest, KeyPurpose, SignRequest, SignResponse,
        VerifyRequest, sign_request, verify_request,
    },
    model::{KeySpec, Secret},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::sleep,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    conformance::create,
    daemon::{Daemon, Engine, PATIENCE, Setup, reason},
    softhsm::{PIN, SoftHsm, alone, soon},
};

/// The promise: so long after the device is back, everything works.
const RECOVERY: Duration = Duration::from_secs(10);
/// Longer than the second that is promised, because these machines are slow; shorter than `keys.backend_timeout_ms`,
/// after which a caller would hear anyway.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A process that holds the locks of files.
struct Held(Child);

impl Held {
    async fn these(files: &[PathBuf]) -> Self {
        let script = "import fcntl,sys\n\
                      files=[open(name,'r+b') for name in sys.argv[1:]]\n\
                      for file in files: fcntl.lockf(file,fcntl.LOCK_EX)\n\
                      print('held',flush=True)\n\
                      sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3");
        let mut said = String::new();
        let stdout = child.stdout.take().expect("piped");
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut said).await.expect("a line");
        assert_eq!(said, "held\n");
        Self(child)
    }

    async fn release(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().await.expect("it ends");
    }
}

/// A daemon with a key for everything, each of them used once.
struct Site {
    daemon: Daemon,
    signature: SignResponse,
    sealed: bytes::Bytes,
}

impl Site {
    async fn new() -> Self {
        Self::over(Setup::new(Engine::Sqlite)).await
    }

    async fn over(setup: Setup) -> Self {
        let daemon = setup.start().await;
        daemon
            .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
            .await;
        daemon
            .key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
            .await;
        daemon
            .key("acme", "tokens", KeyPurpose::TokenSigning, Algorithm::Es256)
            .await;
        let signature = sign(&daemon, "orders").await.expect("signed");
        let request = EncryptRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            plaintext: "IBAN".into(),
            ..Default::default()
        };
        let sealed = daemon.actor("service").crypto().encrypt(request).await;
        let sealed = sealed.expect("encrypted").into_inner().ciphertext;
        Self {
            daemon,
            signature,
            sealed,
        }
    }

    fn tokens(&self) -> PathBuf {
        self.daemon.path("tokens")
    }

    /// The files of the token.
    fn files(&self) -> Vec<PathBuf> {
        let tokens = fs::read_dir(self.tokens()).expect("tokens");
        let tokens = tokens.map(|entry| entry.expect("a token").path());
        tokens
            .flat_map(|token| fs::read_dir(token).expect("a token"))
            .map(|entry| entry.expect("a file").path())
            .filter(|path| path.extension().is_none_or(|end| end != "lock"))
            .collect()
    }

    /// What needs no token: Verify, Decrypt with a cached data key, the JWKS, liveness.
    async fn the_rest_goes_on(&self) {
        let crypto = || self.daemon.actor("service").crypto();
        let request = VerifyRequest {
            tenant: "acme".into(),
            key: "orders".into(),
            payload: Some(verify_request::Payload::Message("order 4711".into())),
            signature: self.signature.signature.clone(),
            ..Default::default()
        };
        let verified = crypto().verify(request).await.expect("Verify goes on");
        assert!(verified.into_inner().valid);
        let request = DecryptRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            ciphertext: self.sealed.clone(),
            ..Default::default()
        };
        let opened = crypto().decrypt(request).await.expect("Decrypt goes on");
        assert_eq!(opened.into_inner().plaintext, "IBAN");
        let jwks = self.daemon.public_get("/.well-known/jwks.json").await;
        assert_eq!(jwks.status, 200);
        assert!(jwks.text().contains("\"kid\""), "{}", jwks.text());
        assert_eq!(self.daemon.ops_get("/livez").await.status, 200);
    }

    async fn readiness(&self) -> (u16, Value) {
        let answer = self.daemon.ops_get("/readyz").await;
        let body = serde_json::from_slice(&answer.body).expect("JSON");
        (answer.status, body)
    }

    /// Waits until readiness names the backend: ready all the same, because every other replica has the same token.
    async fn readiness_names_it(&self) -> String {
        let until = Clock::now() + PATIENCE;
        loop {
            let (status, body) = self.readiness().await;
            assert_eq!(
                (status, &body["ready"]),
                (200, &Value::from(true)),
                "{body}"
            );
            let checks = body["checks"].as_array().expect("checks");
            let hsm = checks.iter().find(|check| check["name"] == "backend hsm");
            let hsm = hsm.expect("the backend");
            assert_eq!(body["degraded"], !hsm["ok"].as_bool().expect("a bool"));
            if hsm["ok"] == false {
                return hsm["detail"].as_str().expect("text").to_owned();
            }
            assert!(Clock::now() < until, "{body}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Calls until `key` signs again; how long that took.
    async fn signs_again(&self, key: &str) -> Duration {
        let began = Clock::now();
        loop {
            match sign(&self.daemon, key).await {
                Ok(_) => return began.elapsed(),
                Err(status) => assert_away(&status),
            }
            assert!(began.elapsed() < PATIENCE, "{}", self.daemon.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.daemon.ops_get("/metrics").await.text();
        let line = text
            .lines()
            .find(|line| line.starts_with(name) && line.contains("backend=\"hsm\""));
        let value = line.and_then(|line| line.rsplit_once(' '));
        value.map_or(0.0, |(_, value)| value.parse().expect("a number"))
    }
}

async fn sign(daemon: &Daemon, key: &str) -> Result<SignResponse, Status> {
    let request = SignRequest {
        tenant: "acme".into(),
        key: key.into(),
        payload: Some(sign_request::Payload::Message("order 4711".into())),
    };
    let signed = daemon.actor("service").crypto().sign(request).await;
    signed.map(tonic::Response::into_inner)
}

/// UNAVAILABLE, and when to ask again.
fn assert_away(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(reason(status), "BACKEND_UNAVAILABLE");
    let retry = status.get_details_retry_info();
    let delay = retry.and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(Duration::from_secs(1)), "{status:?}");
}

/// R-OPS-3; field notes: after an HSM blip every signature failed until a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_gone_says_so_and_returns_without_a_restart() {
    let site = Site::new().await;
    for away_for in [Duration::ZERO, Duration::from_secs(3)] {
        let away = site.daemon.path("away");
        fs::rename(site.tokens(), &away).expect("the volume is unmounted");
        fs::create_dir(site.tokens()).expect("an empty mount point");
        let began = Clock::now();
        let failed = loop {
            match sign(&site.daemon, "orders").await {
                // A session may go on for a while with what it has in memory.
                Ok(_) => sleep(Duration::from_millis(20)).await,
                Err(status) => break status,
            }
            assert!(began.elapsed() < PATIENCE, "it signs without a token");
        };
        assert_away(&failed);
        for _ in 0..10 {
            let began = Clock::now();
            assert_away(&sign(&site.daemon, "orders").await.expect_err("gone"));
            assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        }
        assert_eq!(
            site.readiness_names_it().await,
            "the backend does not answer"
        );
        site.the_rest_goes_on().await;
        // The outage itself is what is waited for, not a condition.
        let until = began + away_for;
        while Clock::now() < until {
            let _ = sign(&site.daemon, "orders").await;
            sleep(Duration::from_millis(100)).await;
        }
        fs::remove_dir(site.tokens()).expect("an empty mount point");
        fs::rename(&away, site.tokens()).expect("the volume is back");
        let took = site.signs_again("orders").await;
        println!("token back, signs again after {} ms", took.as_millis());
        assert!(took < RECOVERY, "{took:?}: {}", site.daemon.log());
    }
    site.daemon.stop().await;
}

/// R-OPS-3: callers of a device that hangs hear within a second, all of them, and those after them at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hangs_is_given_up_at_once_and_used_again_when_it_answers() {
    let site = Arc::new(Site::new().await);
    let held = Held::these(&site.files()).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let site = Arc::clone(&site);
            tokio::spawn(async move {
                let began = Clock::now();
                (sign(&site.daemon, "orders").await, began.elapsed())
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for call in calls {
        let (outcome, took) = call.await.expect("no panic");
        assert_away(&outcome.expect_err("the token hangs"));
        slowest = slowest.max(took);
    }
    println!(
        "token hangs, slowest answer after {} ms",
        slowest.as_millis()
    );
    assert!(slowest < AT_ONCE, "{slowest:?}");
    let began = Clock::now();
    for _ in 0..20 {
        assert_away(&sign(&site.daemon, "orders").await.expect_err("open"));
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(site.metric("claviger_backend_breaker_state").await >= 1.0);
    site.readiness_names_it().await;
    site.the_rest_goes_on().await;
    // Administration is told the same, and leaves no key behind.
    let asked = claviger::grpc::proto::CreateKeyRequest {
        tenant: "acme".into(),
        name: "late".into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team".into(),
        ..Default::default()
    };
    let refused = site.daemon.actor("issuer").keys().create_key(asked).await;
    assert_away(&refused.expect_err("the token hangs"));

    held.release().await;
    let took = site.signs_again("orders").await;
    println!("token answers, signs again after {} ms", took.as_millis());
    assert!(took < RECOVERY, "{took:?}: {}", site.daemon.log());
    let site = Arc::into_inner(site).expect("nobody else");
    let opened = site.daemon.log().matches("circuit breaker opened").count();
    assert!(opened >= 1, "{}", site.daemon.log());
    site.daemon.stop().await;
}

/// A hanging object of SoftHSM hangs every search for objects, and nothing else. Threads that do not come back are
/// replaced, so that the rest of the token answers again; never more of them than twice the pool.
#[tokio::test(flavor = "multi_thread")]
async fn threads_that_never_come_back_are_replaced_within_bounds() {
    const THREADS: usize = 2;
    let section = "[backends.hsm]\n";
    let setup = Setup::new(Engine::Sqlite);
    let setup = setup.replace(section, format!("{section}threads = {THREADS}\n"));
    let site = Site::over(setup).await;
    let before = site.files();
    site.daemon
        .key("acme", "stuck", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let mut files = site.files();
    files.retain(|file| !before.contains(file));
    assert!(!files.is_empty(), "objects of the new key");
    let held = Held::these(&files).await;
    let replaced = async || site.metric("claviger_pkcs11_threads_replaced_total").await;
    let lost = async || site.metric("claviger_pkcs11_threads_lost").await;

    let bound = f64::from(u32::try_from(2 * THREADS).expect("small"));
    let began = Clock::now();
    while replaced().await < bound {
        if let Err(status) = sign(&site.daemon, "stuck").await {
            assert_away(&status);
        }
        assert!(began.elapsed() < PATIENCE, "{}", site.daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    println!(
        "{bound} threads replaced after {} ms",
        began.elapsed().as_millis()
    );
    // Replacements answered: the token is there, so one call at a time was tried again.
    let log = site.daemon.log();
    assert!(log.contains("circuit breaker half-open"), "{log}");
    site.the_rest_goes_on().await;
    // Twice as long as a thread has before it is given up: the next ones are not.
    let began = Clock::now();
    while began.elapsed() < Duration::from_secs(12) {
        assert_away(&sign(&site.daemon, "stuck").await.expect_err("it hangs"));
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((replaced().await, lost().await), (bound, bound));

    held.release().await;
    let took = site.signs_again("stuck").await;
    println!("library lets go, signs again after {} ms", took.as_millis());
    assert!(took < RECOVERY, "{took:?}: {}", site.daemon.log());
    let until = Clock::now() + PATIENCE;
    while lost().await > 0.0 {
        assert!(Clock::now() < until, "lost threads come back and end");
        sleep(Duration::from_millis(50)).await;
    }
    site.daemon.stop().await;
}

/// R-ENV-2 wants the KEK's token at the start; another one may come later.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_away_at_the_start_is_used_when_it_comes() {
    let spare = format!(
        "[backends.spare]\ntype = \"pkcs11\"\nmodule = {:?}\ntoken = \"spare\"\npin = \"{PIN}\"\n\n[kek]\n",
        SoftHsm::library()
    );
    let setup = Setup::new(Engine::Sqlite).replace("[kek]\n", spare);
    let site = Site::over(setup).await;
    let create = async || {
        let request = claviger::grpc::proto::CreateKeyRequest {
            tenant: "acme".into(),
            name: "there".into(),
            purpose: KeyPurpose::Signing.into(),
            algorithm: Algorithm::Es256.into(),
            owner: "team".into(),
            backend: "spare".into(),
            ..Default::default()
        };
        let keys = || site.daemon.actor("issuer").keys();
        keys().create_key(request).await
    };
    assert_away(&create().await.expect_err("it is not there"));
    let until = Clock::now() + PATIENCE;
    loop {
        let (status, body) = site.readiness().await;
        assert_eq!(
            (status, &body["ready"]),
            (200, &Value::from(true)),
            "{body}"
        );
        let checks = body["checks"].as_array().expect("checks");
        let of = |name| checks.iter().find(|check| check["name"] == name);
        if of("backend spare").expect("a check")["ok"] == false
            && of("backend hsm").expect("a check")["ok"] == true
        {
            break;
        }
        assert!(Clock::now() < until, "{body}");
        sleep(Duration::from_millis(20)).await;
    }
    sign(&site.daemon, "orders")
        .await
        .expect("the other token works");

    let made = site
        .daemon
        .foreign("softhsm2-util")
        .args(["--init-token", "--free", "--label", "spare"])
        .args(["--so-pin", PIN, "--pin", PIN])
        .output()
        .await
        .expect("softhsm2-util");
    assert!(made.status.success(), "{made:?}");
    // A library with a token that works is initialised anew every 30 seconds at most.
    let until = Clock::now() + Duration::from_secs(30) + PATIENCE;
    while let Err(status) = create().await {
        assert_away(&status);
        assert!(Clock::now() < until, "{}", site.daemon.log());
        sleep(Duration::from_millis(200)).await;
    }
    sign(&site.daemon, "there").await.expect("signed");
    sign(&site.daemon, "orders").await.expect("signed");
    site.daemon.stop().await;
}

/// Who wants a replica out of rotation while its backend is away says so.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_requires_backends_when_told() {
    let ops = "[ops]\nlisten = \"127.0.0.1:0\"\n";
    let strict = format!("{ops}ready_requires_backends = true\n");
    let daemon = Setup::new(Engine::Sqlite)
        .replace(ops, &strict)
        .start()
        .await;
    let (tokens, away) = (daemon.path("tokens"), daemon.path("away"));
    fs::rename(&tokens, &away).expect("the volume is unmounted");
    fs::create_dir(&tokens).expect("an empty mount point");
    let status = async |wanted: u16| {
        let until = Clock::now() + PATIENCE;
        loop {
            let answer = daemon.ops_get("/readyz").await;
            if answer.status == wanted {
                return serde_json::from_slice::<Value>(&answer.body).expect("JSON");
            }
            assert!(Clock::now() < until, "{}", answer.text());
            sleep(Duration::from_millis(20)).await;
        }
    };
    let body = status(503).await;
    assert_eq!(body["ready"], false);
    let checks = body["checks"].as_array().expect("checks");
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] == false).collect();
    assert_eq!(failed.len(), 1, "{body}");
    assert_eq!(failed[0]["name"], "backend hsm");
    assert_eq!(daemon.ops_get("/livez").await.status, 200);
    fs::remove_dir(&tokens).expect("an empty mount point");
    fs::rename(&away, &tokens).expect("the volume is back");
    status(200).await;
    daemon.stop().await;
}

/// Tokens lock after a few wrong PINs: it is tried once, whoever calls and however often.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_became_wrong_is_tried_once() {
    let mut site = Site::new().await;
    let pin = fs::read_to_string(site.daemon.path("secrets/pin")).expect("the PIN");
    site.daemon
        .pkcs11_tool(&["--change-pin", "--new-pin", "1234-other"])
        .await;
    // The login ends with the library's sessions.
    let away = site.daemon.path("away");
    fs::rename(site.tokens(), &away).expect("the volume is unmounted");
    fs::create_dir(site.tokens()).expect("an empty mount point");
    let until = Clock::now() + PATIENCE;
    while sign(&site.daemon, "orders").await.is_ok() {
        assert!(Clock::now() < until, "it signs without a token");
        sleep(Duration::from_millis(20)).await;
    }
    fs::remove_dir(site.tokens()).expect("an empty mount point");
    fs::rename(&away, site.tokens()).expect("the volume is back");
    while site.metric("claviger_backend_breaker_state").await < 3.0 {
        assert_away(&sign(&site.daemon, "orders").await.expect_err("wrong PIN"));
        assert!(Clock::now() < until, "{}", site.daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    let detail = site.readiness_names_it().await;
    assert!(detail.contains("PIN"), "{detail}");
    site.the_rest_goes_on().await;

    // The right PIN again. Whoever tried it would succeed; nobody does.
    let back = ["--pin", "1234-other", "--change-pin", "--new-pin", &pin];
    site.daemon.pkcs11_tool(&back).await;
    let began = Clock::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert_away(&sign(&site.daemon, "orders").await.expect_err("not tried"));
        sleep(Duration::from_millis(50)).await;
    }
    let log = site.daemon.log();
    assert_eq!(log.matches("circuit breaker opened: the PIN").count(), 1);
    site.daemon.restart().await;
    sign(&site.daemon, "orders").await.expect("after a restart");
    site.daemon.stop().await;
}

/// Field notes: GENERAL_ERROR on decrypt is a tampered ciphertext, and no reason to refuse everybody.
#[test]
fn tampered_ciphertexts_never_open_the_breaker() {
    alone(async |softhsm| {
        let backend: Arc<dyn Backend> = Arc::new(softhsm.backend("tampered"));
        let guarded = Guarded::new(backend, Duration::from_millis(800));
        let kek = create(&guarded, KeySpec::Kek).await.reference;
        let key = Secret::new([7; 32]);
        let wrapped = guarded.wrap(&kek, &key, b"a", soon()).await;
        let wrapped = wrapped.expect("wrapped");
        for number in 0..200 {
            let mut tampered = wrapped.clone();
            let at = 1 + number % (wrapped.len() - 1);
            tampered[at] ^= 1 << (number % 8);
            let outcome = guarded.unwrap(&kek, &tampered, b"a", soon()).await;
            assert!(
                matches!(outcome, Err(BackendError::Rejected(_))),
                "{number}: {:?}",
                outcome.err()
            );
            assert_eq!(guarded.state(), State::Closed, "{number}");
        }
        let back = guarded.unwrap(&kek, &wrapped, b"a", soon()).await;
        assert!(back.expect("unwrapped").expose_secret() == key.expose_secret());
    });
}
