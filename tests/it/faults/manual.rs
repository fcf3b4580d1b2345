//! Every line of the script in docs/rehearsals.md does what the page says, as seen by whoever loads the module.

use std::{ffi::OsStr, fs, path::Path, sync::mpsc, thread, time::Duration};

use claviger::backends::pkcs11::{Module, provision};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags},
    error::{Error, RvError},
    session::{Session, SessionState, UserType},
    slot::{Limit, Slot},
    types::AuthPin,
};

use super::module;
use crate::{
    daemon::PATIENCE,
    softhsm::{PIN, SO_PIN, SoftHsm, again, alone, passed},
};

const SCRIPT: &str = "PKCS11_FAULT_SCRIPT";
/// A call that hangs is watched for so long.
const A_WHILE: Duration = Duration::from_millis(300);

/// The module in this process, and its script.
struct Stage {
    module: std::sync::Arc<Module>,
    script: std::path::PathBuf,
    slot: Slot,
}

impl Stage {
    fn new(hsm: &SoftHsm) -> Self {
        let script = std::env::var_os(SCRIPT).expect("set by the first process");
        let module = hsm.modules.load(&module::module());
        let module = module.expect("the module loads");
        let pins = [SO_PIN, PIN].map(|pin| claviger::model::Secret::new(pin.to_owned()));
        provision::init_token(&module, "faulty", &pins[0], &pins[1]).expect("a token");
        let mut stage = Self {
            slot: Slot::try_from(0_u64).expect("a number"),
            module,
            script: script.into(),
        };
        stage.slot = stage.slots()[0];
        stage
    }

    fn say(&self, script: &str) {
        let beside = self.script.with_extension("new");
        fs::write(&beside, script).expect("a script");
        fs::rename(beside, &self.script).expect("a script");
    }

    /// Slots of tokens that are initialised.
    fn slots(&self) -> Vec<Slot> {
        let context = self.module.context();
        let slots = context.get_slots_with_initialized_token();
        slots.expect("slots")
    }

    fn open(&self) -> Result<Session, Error> {
        self.module.context().open_rw_session(self.slot)
    }

    fn session(&self) -> Session {
        self.open().expect("a session")
    }

    fn serial(&self) -> String {
        let info = self.module.context().get_token_info(self.slot);
        info.expect("a token").serial_number().to_owned()
    }
}

/// The call that this test makes most: it needs a session and nothing else.
fn random(session: &Session) -> Result<(), RvError> {
    match session.generate_random_slice(&mut [0; 8]) {
        Ok(()) => Ok(()),
        Err(Error::Pkcs11(code, _)) => Err(code),
        Err(other) => panic!("{other}"),
    }
}

fn login(session: &Session) -> Result<(), Error> {
    session.login(UserType::User, Some(&AuthPin::from(PIN)))
}

fn state(session: &Session) -> SessionState {
    let info = session.get_session_info().expect("a session");
    info.session_state()
}

#[test]
fn every_line_does_what_the_manual_says() {
    alone(async |hsm: SoftHsm| {
        if std::env::var_os(SCRIPT).is_some() {
            rehearse(&mut Stage::new(&hsm));
            return;
        }
        // Environment variables are for processes that begin.
        let script = hsm.path("weather.txt");
        fs::write(&script, "").expect("a script");
        once_more(|| (), &SoftHsm::library(), script.as_os_str());
    });
}

fn once_more<F>(_here: F, real: &Path, script: &OsStr) {
    let out = again::<F>(&[("PKCS11_FAULT_MODULE", real.as_os_str()), (SCRIPT, script)]);
    passed::<F>(&out);
}

fn rehearse(stage: &mut Stage) {
    codes_and_counts(stage);
    hanging(stage);
    limits(stage);
    poison(stage);
    events(stage);
    removal(stage);
    replacement(stage);
    nonsense(stage);
}

fn codes_and_counts(stage: &Stage) {
    let session = stage.session();
    stage.say("C_GenerateRandom after=1 count=2 return=CKR_DEVICE_MEMORY");
    let memory = Err(RvError::DeviceMemory);
    let seen = [(); 4].map(|()| random(&session));
    assert_eq!(seen, [Ok(()), memory, memory, Ok(())]);
    stage.say("* return=0x30");
    assert_eq!(random(&session), Err(RvError::DeviceError));
    assert!(stage.open().is_err());
    stage.say("");
    assert_eq!(random(&session), Ok(()));
}

fn hanging(stage: &Stage) {
    let session = stage.session();
    stage.say("C_GenerateRandom hang return=CKR_FUNCTION_CANCELED");
    let (back, answer) = mpsc::channel();
    let call = thread::spawn(move || back.send(random(&session)).expect("somebody waits"));
    assert!(answer.recv_timeout(A_WHILE).is_err(), "it came back");
    stage.say("");
    let answer = answer.recv_timeout(PATIENCE).expect("it comes back");
    assert_eq!(answer, Err(RvError::FunctionCanceled));
    call.join().expect("no panic");
    stage.say("C_GenerateRandom delay_ms=50");
    let session = stage.session();
    let began = std::time::Instant::now();
    assert_eq!(random(&session), Ok(()));
    assert!(began.elapsed() >= Duration::from_millis(50));
}

fn limits(stage: &Stage) {
    stage.say("sessions max=2");
    let _open = [stage.session(), stage.session()];
    let third = stage.open();
    let full = matches!(third, Err(Error::Pkcs11(RvError::SessionCount, _)));
    assert!(full, "{third:?}");
    let info = stage.module.context().get_token_info(stage.slot);
    let limit = info.expect("a token").max_rw_session_count();
    assert!(matches!(limit, Limit::Max(2)), "{limit:?}");
}

fn poison(stage: &Stage) {
    let (bad, good) = (stage.session(), stage.session());
    stage.say("sessions poisoned\nC_GenerateRandom count=1 return=CKR_ARGUMENTS_BAD");
    assert_eq!(random(&bad), Err(RvError::ArgumentsBad));
    assert_eq!(random(&bad), Err(RvError::OperationActive));
    assert_eq!(random(&good), Ok(()));
    stage.say("");
    assert_eq!(random(&bad), Err(RvError::OperationActive), "for ever");
}

fn events(stage: &Stage) {
    let session = stage.session();
    login(&session).expect("logged in");
    assert_eq!(state(&session), SessionState::RwUser);
    stage.say("token logout");
    assert_eq!(state(&session), SessionState::RwPublic);
    login(&session).expect("once only");
    assert_eq!(state(&session), SessionState::RwUser);
    stage.say("sessions lost");
    assert_eq!(random(&session), Err(RvError::SessionHandleInvalid));
    let session = stage.session();
    assert_eq!(random(&session), Ok(()), "once only");
    assert_eq!(
        state(&session),
        SessionState::RwPublic,
        "the login went too"
    );
}

fn removal(stage: &mut Stage) {
    for (script, comes_back) in [("token removed", true), ("token stuck", false)] {
        stage.say("");
        let session = stage.session();
        stage.say(script);
        assert!(stage.slots().is_empty());
        assert_eq!(random(&session), Err(RvError::DeviceRemoved));
        let found = session.find_objects(&[]).expect("as if it were empty");
        assert!(found.is_empty());
        assert!(stage.open().is_err());
        stage.say("");
        assert_eq!(!stage.slots().is_empty(), comes_back, "{script}");
        if comes_back {
            assert_eq!(random(&session), Err(RvError::SessionHandleInvalid));
        }
    }
    let context = stage.module.context();
    context.clone().finalize().expect("finalised");
    let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    context.initialize(args).expect("initialised");
    // Slots are numbered anew.
    let [slot] = stage.slots()[..] else {
        panic!("no token after C_Initialize");
    };
    stage.slot = slot;
}

fn replacement(stage: &Stage) {
    let serial = stage.serial();
    stage.say("token reinitialised");
    assert_ne!(stage.serial(), serial);
    let session = stage.session();
    let refused = login(&session);
    let no_pin = matches!(
        refused,
        Err(Error::Pkcs11(RvError::UserPinNotInitialized, _))
    );
    assert!(no_pin, "{refused:?}");
    stage.say("");
    assert_eq!(stage.serial(), serial);
}

fn nonsense(stage: &Stage) {
    let session = stage.session();
    stage.say("C_GenerateRandom retrun=CKR_OK");
    assert_eq!(random(&session), Err(RvError::FunctionFailed));
    stage.say("");
    assert_eq!(random(&session), Ok(()));
}
