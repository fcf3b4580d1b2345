//! The key-encryption key: proved at the start (R-ENV-2), rotated by three people (R-LIFE-7) while callers go on,
//! rewrapped through crashes, and watched.

mod bulk;
mod duties;
mod lost;
mod replicas;
mod start;

use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Status};

use crate::daemon::{Daemon, Engine, PATIENCE, Setup, TOKEN, reason};

/// The KEK of the configuration.
pub const FIRST: &str = "claviger-kek";

/// Looks often; terms are short, so that a daemon that was killed is followed soon.
const QUICK: &str = "
[keys]
sample_interval_seconds = 1

[scheduler]
interval_ms = 100
lease_seconds = 2
";

pub fn uri(label: &str) -> String {
    format!("pkcs11:token={TOKEN};object={label};type=secret-key")
}

/// Makes a KEK on the daemon's token.
pub async fn create(daemon: &Daemon, label: &str) -> String {
    let (config, uri) = (daemon.config_path(), uri(label));
    let config = config.to_str().expect("UTF-8");
    daemon
        .cli_ok(&["kek", "create", "--config", config, "--uri", &uri])
        .await;
    uri
}

pub fn rotate(uri: &str) -> RotateKekRequest {
    RotateKekRequest {
        backend: "hsm".into(),
        uri: uri.into(),
        justification: "it is time".into(),
        approvals_needed: 0,
    }
}

pub async fn request(daemon: &Daemon, uri: &str) -> Result<KekRotation, Status> {
    let issuer = daemon.actor("issuer");
    let answer = issuer.keks().rotate_kek(rotate(uri)).await?.into_inner();
    Ok(answer.rotation.expect("a rotation"))
}

pub async fn approve(
    daemon: &Daemon,
    who: &str,
    rotation: &KekRotation,
) -> Result<KekRotation, Status> {
    let request = ApproveKekRotationRequest {
        rotation_id: rotation.id.clone(),
        plan_digest: rotation.plan_digest.clone(),
    };
    let mut client = daemon.actor(who).keks();
    let answer = client.approve_kek_rotation(request);
    Ok(answer.await?.into_inner().rotation.expect("a rotation"))
}

pub async fn deploy(daemon: &Daemon, who: &str, id: &str) -> Result<KekRotation, Status> {
    let request = DeployKekRotationRequest {
        rotation_id: id.to_owned(),
    };
    let mut client = daemon.actor(who).keks();
    let answer = client.deploy_kek_rotation(request);
    Ok(answer.await?.into_inner().rotation.expect("a rotation"))
}

async fn cancel(daemon: &Daemon, id: &str) -> KekRotation {
    let request = CancelKekRotationRequest {
        rotation_id: id.to_owned(),
        reason: "not today".into(),
    };
    let mut client = daemon.actor("issuer").keks();
    let answer = client.cancel_kek_rotation(request);
    let answer = answer.await.expect("CancelKekRotation").into_inner();
    answer.rotation.expect("a rotation")
}

/// Requested, approved and deployed by three people.
pub async fn deployed(daemon: &Daemon, uri: &str) -> KekRotation {
    let rotation = request(daemon, uri).await.expect("RotateKek");
    let approved = approve(daemon, "approver", &rotation).await;
    assert_eq!(
        approved.expect("ApproveKekRotation").state(),
        RotationState::Approved
    );
    let deployed = deploy(daemon, "deployer", &rotation.id).await;
    deployed.expect("DeployKekRotation")
}

pub async fn get(daemon: &Daemon, id: &str) -> KekRotation {
    let request = GetKekRotationRequest {
        rotation_id: id.to_owned(),
    };
    let mut client = daemon.actor("auditor").keks();
    let answer = client.get_kek_rotation(request);
    let answer = answer.await.expect("GetKekRotation").into_inner();
    answer.rotation.expect("a rotation")
}

/// The rotation as soon as it is as `wanted`.
pub async fn until(
    daemon: &Daemon,
    id: &str,
    wanted: impl Fn(&KekRotation) -> bool,
) -> KekRotation {
    until_within(daemon, id, PATIENCE, wanted).await
}

async fn until_within(
    daemon: &Daemon,
    id: &str,
    patience: Duration,
    wanted: impl Fn(&KekRotation) -> bool,
) -> KekRotation {
    let deadline = Instant::now() + patience;
    loop {
        let rotation = get(daemon, id).await;
        if wanted(&rotation) {
            return rotation;
        }
        assert!(Instant::now() < deadline, "it stays {rotation:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn completed(rotation: &KekRotation) -> bool {
    rotation.state() == RotationState::Completed
}

/// Ends whatever rotation is open, and waits for one that is deployed.
pub async fn settle(daemon: &Daemon) {
    let list = ListKekRotationsRequest::default();
    let mut client = daemon.actor("auditor").keks();
    let page = client.list_kek_rotations(list);
    for rotation in page.await.expect("ListKekRotations").into_inner().rotations {
        match rotation.state() {
            RotationState::Requested | RotationState::Approved => {
                cancel(daemon, &rotation.id).await;
            }
            RotationState::Deployed => {
                until(daemon, &rotation.id, completed).await;
            }
            _ => {}
        }
    }
}

async fn keks(daemon: &Daemon) -> Vec<Kek> {
    let mut client = daemon.actor("auditor").keks();
    let answer = client.list_keks(ListKeksRequest {});
    answer.await.expect("ListKeks").into_inner().keks
}

async fn vault(daemon: &Daemon, name: &str) -> bytes::Bytes {
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    daemon.key("acme", name, purpose, algorithm).await;
    encrypt(daemon, name).await
}

async fn encrypt(daemon: &Daemon, name: &str) -> bytes::Bytes {
    let request = EncryptRequest {
        key: name.into(),
        plaintext: name.as_bytes().to_vec().into(),
        ..Default::default()
    };
    let answer = daemon.actor("service").crypto().encrypt(request).await;
    answer.expect("Encrypt").into_inner().ciphertext
}

async fn decrypts(daemon: &Daemon, name: &str, ciphertext: &bytes::Bytes) {
    let request = DecryptRequest {
        key: name.into(),
        ciphertext: ciphertext.clone(),
        ..Default::default()
    };
    let answer = daemon.actor("service").crypto().decrypt(request).await;
    let plaintext = answer.expect("Decrypt").into_inner().plaintext;
    assert_eq!(plaintext, name.as_bytes());
}

#[track_caller]
fn fails<T>(result: Result<T, Status>, code: Code, why: &str) {
    let status = result.err().expect("it must fail");
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
}

async fn remove(daemon: &Daemon, label: &str) {
    let args = ["--delete-object", "--type", "secrkey", "--label", label];
    daemon.pkcs11_tool(&args).await;
}

/// Starting fails, and says all of `says`.
async fn refuses_to_start(daemon: &mut Daemon, says: &[&str]) {
    let why = daemon.up().await.expect_err("it must not start");
    let last = why.lines().last().expect("a line");
    for word in says {
        assert!(last.contains(word), "{last} lacks {word}");
    }
}

const MISCONFIGURED: &str = "broker credentials encryption key misconfigured: ";

/// The old KEK may go from the token once the rotation is COMPLETED, and not before; nothing needs it then.
async fn a_rotation(engine: Engine) {
    let mut daemon = Setup::new(engine).append(QUICK).start().await;
    let mut sealed = Vec::new();
    for name in ["one", "two", "three"] {
        sealed.push((name, vault(&daemon, name).await));
    }
    let next = create(&daemon, "kek-2").await;
    let rotation = deployed(&daemon, &next).await;
    assert_eq!((rotation.total, rotation.rewrapped), (3, 0));
    // Callers go on meanwhile, and what is made wraps under the new KEK.
    sealed.push(("four", vault(&daemon, "four").await));
    for (name, ciphertext) in &sealed {
        decrypts(&daemon, name, ciphertext).await;
    }
    let done = until(&daemon, &rotation.id, completed).await;
    assert_eq!((done.total, done.rewrapped), (3, 3));
    assert_eq!((done.remaining, done.undecryptable), (0, 0));
    let all = keks(&daemon).await;
    let states: Vec<_> = all.iter().map(|k| (k.state(), k.data_keys)).collect();
    assert_eq!(states, [(KekState::Active, 4), (KekState::Retired, 0)]);
    let under = "SELECT DISTINCT kek_ref FROM key_versions WHERE wrapped_key IS NOT NULL";
    assert_eq!(daemon.rows(under).await, [[all[0].reference.clone()]]);

    remove(&daemon, FIRST).await;
    for (name, ciphertext) in &sealed {
        decrypts(&daemon, name, ciphertext).await;
    }
    // The configuration names a key that is gone: it says which one to name.
    daemon.terminate().await;
    refuses_to_start(
        &mut daemon,
        &[MISCONFIGURED, "kek.uri", "claviger kek list"],
    )
    .await;
    daemon.edit_config(|text| text.replace(FIRST, "kek-2"));
    daemon.restart().await;
    for (name, ciphertext) in &sealed {
        decrypts(&daemon, name, ciphertext).await;
        encrypt(&daemon, name).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_nothing_needs_the_old_kek_on_sqlite() {
    a_rotation(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_nothing_needs_the_old_kek_on_postgres() {
    a_rotation(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_new_kek_is_refused_and_changes_nothing() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let pair = [
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "pair",
        "--id",
        "77",
    ];
    daemon.pkcs11_tool(&pair).await;
    let extractable = [
        "--keygen",
        "--key-type",
        "AES:32",
        "--extractable",
        "--label",
        "loose",
        "--id",
        "78",
    ];
    daemon.pkcs11_tool(&extractable).await;
    for bad in [
        uri("pair"),
        format!("pkcs11:token={TOKEN};object=pair;type=private"),
        uri("loose"),
        uri("missing"),
        uri(FIRST),
        "nonsense".into(),
        format!("{}?pin-value=1234", uri(FIRST)),
        format!("pkcs11:token=another;object={FIRST};type=secret-key"),
    ] {
        let result = request(&daemon, &bad).await;
        fails(result, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");
    }
    let next = create(&daemon, "kek-2").await;
    let issuer = daemon.actor("issuer");
    for wrong in [
        RotateKekRequest {
            backend: "nowhere".into(),
            ..rotate(&next)
        },
        RotateKekRequest {
            approvals_needed: 9,
            ..rotate(&next)
        },
        RotateKekRequest {
            justification: String::new(),
            ..rotate(&next)
        },
    ] {
        let result = issuer.keks().rotate_kek(wrong).await;
        fails(result, Code::InvalidArgument, "INVALID_FIELD");
    }
    assert_eq!(keks(&daemon).await.len(), 1);

    // One at a time; one that came to nothing may be asked for again, one that was used may not.
    let open = request(&daemon, &next).await.expect("RotateKek");
    let again = request(&daemon, &next).await;
    fails(again, Code::FailedPrecondition, "ROTATION_OPEN");
    cancel(&daemon, &open.id).await;
    let states: Vec<_> = keks(&daemon).await.iter().map(Kek::state).collect();
    assert_eq!(states, [KekState::Retired, KekState::Active]);
    let rotation = deployed(&daemon, &next).await;
    until(&daemon, &rotation.id, completed).await;
    let back = request(&daemon, &uri(FIRST)).await;
    fails(back, Code::FailedPrecondition, "KEY_NOT_ADOPTABLE");

    let nobody = uuid::Uuid::now_v7().to_string();
    let missing = deploy(&daemon, "deployer", &nobody).await;
    fails(missing, Code::NotFound, "KEK_ROTATION_NOT_FOUND");
    daemon.stop().await;
}

/// A KEK that is replaced between its request and its deployment is not the one that was proved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_was_exchanged_before_its_deployment_is_refused() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let next = create(&daemon, "kek-2").await;
    let rotation = request(&daemon, &next).await.expect("RotateKek");
    let approved = approve(&daemon, "approver", &rotation).await;
    approved.expect("ApproveKekRotation");
    remove(&daemon, "kek-2").await;
    let gone = deploy(&daemon, "deployer", &rotation.id).await;
    assert!(gone.is_err(), "{gone:?}");
    create(&daemon, "kek-2").await;
    let other = deploy(&daemon, "deployer", &rotation.id).await;
    assert!(other.is_err(), "{other:?}");
    assert_eq!(
        get(&daemon, &rotation.id).await.state(),
        RotationState::Approved
    );
    let states: Vec<_> = keks(&daemon).await.iter().map(Kek::state).collect();
    assert_eq!(states, [KekState::PreActive, KekState::Active]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_deploys_expires() {
    let daemon = Setup::new(Engine::Sqlite)
        .append(QUICK)
        .replace("[rotation]", "[rotation]\nrequest_ttl_seconds = 2")
        .start()
        .await;
    let next = create(&daemon, "kek-2").await;
    let rotation = request(&daemon, &next).await.expect("RotateKek");
    let over = |r: &KekRotation| r.state() == RotationState::Expired;
    until(&daemon, &rotation.id, over).await;
    let late = approve(&daemon, "approver", &rotation).await;
    fails(late, Code::FailedPrecondition, "ROTATION_STATE");
    assert_eq!(keks(&daemon).await[0].state(), KekState::Retired);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_people_rotate_the_kek_from_the_command_line() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let sealed = vault(&daemon, "one").await;
    let next = create(&daemon, "kek-2").await;
    let said = async |who: &str, args: &[&str]| {
        let output = daemon.cli(&[&["--as", who, "kek"], args].concat()).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let ask = [
        "rotate",
        "--backend",
        "hsm",
        "--uri",
        &next,
        "--justification",
        "yearly",
    ];
    let (code, shown, said_so) = said("issuer", &ask).await;
    assert_eq!(code, Some(0), "{said_so}");
    assert!(shown.contains("REQUESTED") && shown.contains("yearly"));
    let id = request_id(&daemon).await;

    // Looking approves nothing, and prints the command that does.
    let (code, shown, _) = said("approver", &["approve", &id]).await;
    assert_eq!(code, Some(2));
    assert!(shown.contains("Nothing is approved yet"), "{shown}");
    let digest = shown.split("--digest ").nth(1).expect(&shown).trim();
    let wrong = "0".repeat(64);
    let (code, ..) = said("approver", &["approve", &id, "--digest", &wrong]).await;
    assert_eq!(code, Some(5));
    let (code, shown, _) = said("approver", &["approve", &id, "--digest", digest]).await;
    assert!(code == Some(0) && shown.contains("APPROVED"), "{shown}");
    let (code, shown, _) = said("deployer", &["deploy", &id]).await;
    assert!(code == Some(0) && shown.contains("DEPLOYED"), "{shown}");
    // Without a terminal the progress is lines on stderr; the end is on stdout.
    let (code, shown, progress) = said("auditor", &["rotation", &id, "--watch"]).await;
    assert_eq!(code, Some(0), "{progress}");
    assert!(shown.contains("COMPLETED"), "{shown}");
    assert!(
        progress.contains("100 %  1 of 1 data keys") && !progress.contains('\r'),
        "{progress}"
    );
    let (_, shown, _) = said("auditor", &["list"]).await;
    assert!(shown.contains("ACTIVE") && shown.contains("RETIRED"));
    let (_, shown, _) = said("auditor", &["rotations"]).await;
    assert!(shown.contains(&id), "{shown}");
    decrypts(&daemon, "one", &sealed).await;
    daemon.stop().await;
}

async fn request_id(daemon: &Daemon) -> String {
    let rows = daemon.rows("SELECT id FROM kek_rotations").await;
    rows[0][0].clone()
}
