//! Which call meets what. The script is read with every call, so a change holds from the next call on.
//!
//! Things that happen once (`sessions lost`, `token logout`, sessions that end with their token) happen when a changed
//! script is read, and they happen in the real module: what follows is what it really says.

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    io::Write,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKR_BUFFER_TOO_SMALL,
    CKR_DEVICE_REMOVED, CKR_FUNCTION_FAILED, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK,
    CKR_OPERATION_ACTIVE, CKR_TOKEN_NOT_PRESENT, CKR_USER_PIN_NOT_INITIALIZED,
};

use crate::{
    LOG, SCRIPT, codes, real,
    script::{Rule, Script, Token},
};

/// How often a call that hangs looks whether it still has to.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Calls that are written down also when nothing was done to them.
const NOTED: [&str; 4] = ["C_Initialize", "C_Finalize", "C_Login", "C_Logout"];

static WEATHER: LazyLock<Mutex<Weather>> = LazyLock::new(Mutex::default);

/// What a call is about.
#[derive(Clone, Copy)]
pub enum Place {
    /// The library, or all slots.
    Library,
    /// One slot.
    Slot,
    /// A session.
    Session(CK_SESSION_HANDLE),
}

/// What the module remembers.
#[derive(Default)]
pub struct Weather {
    text: Option<String>,
    script: Script,
    /// How often each rule fitted.
    fitted: Vec<u64>,
    /// Why the script cannot be followed.
    broken: bool,
    /// Sessions that are open, and where.
    open: HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>,
    poisoned: HashSet<CK_SESSION_HANDLE>,
    /// The token was `Stuck`, and the library has not been initialised since.
    stuck: bool,
}

/// Forwards a call, unless something happens to it. `forward` is None when the real module has no such function.
pub fn through(
    function: &'static str,
    place: Place,
    forward: impl FnOnce(&'static CK_FUNCTION_LIST) -> Option<CK_RV>,
) -> CK_RV {
    let met = meet(function, place);
    let answer = met.unwrap_or_else(|| {
        real::list()
            .and_then(forward)
            .unwrap_or(CKR_FUNCTION_NOT_SUPPORTED)
    });
    if met.is_some() || NOTED.contains(&function) {
        log(function, answer);
    }
    weather().after(place, answer);
    answer
}

/// The present weather, of which the caller may change what it knows about sessions.
pub fn weather() -> MutexGuard<'static, Weather> {
    let mut weather = WEATHER.lock().unwrap_or_else(PoisonError::into_inner);
    weather.refresh();
    weather
}

/// Waits as long as the script says; Some is what to answer instead of asking the real module.
fn meet(function: &'static str, place: Place) -> Option<CK_RV> {
    let rule = weather().rule(function);
    if let Some(rule) = &rule {
        thread::sleep(rule.delay);
        while rule.hangs && weather().hangs(function) {
            thread::sleep(LOOK_AGAIN);
        }
    }
    let answer = rule.and_then(|rule| rule.answer);
    answer.or_else(|| weather().state_of(function, place))
}

impl Weather {
    fn refresh(&mut self) {
        let path = env::var_os(SCRIPT).unwrap_or_default();
        let text = fs::read_to_string(&path).ok();
        if text.is_some() && text == self.text {
            return;
        }
        let parsed = match &text {
            Some(text) => Script::parse(text),
            None => Err(format!("cannot read it; {SCRIPT} must name a file")),
        };
        // Said once, and not with every call.
        if let (Err(why), false) = (&parsed, self.broken && self.text == text) {
            eprintln!("pkcs11-fault: script {}: {why}", path.display());
        }
        self.text = text;
        self.broken = parsed.is_err();
        let was = self.script.token;
        self.script = parsed.unwrap_or_default();
        self.fitted = vec![0; self.script.rules.len()];
        self.happen(was);
    }

    /// What happens once, when a script is read.
    fn happen(&mut self, was: Token) {
        let now = self.script.token;
        if self.script.logout {
            self.log_out();
        }
        if self.script.sessions_lost || (now != was && now != Token::There) {
            self.end_sessions();
        }
        self.stuck |= now == Token::Stuck;
    }

    fn log_out(&self) {
        let logout = real::list().and_then(|real| real.C_Logout);
        if let (Some(logout), Some(session)) = (logout, self.open.keys().next()) {
            // SAFETY: C_Logout takes any number for a session. The answer does not matter.
            unsafe { logout(*session) };
        }
    }

    fn end_sessions(&mut self) {
        let end = real::list().and_then(|real| real.C_CloseAllSessions);
        let slots: HashSet<_> = self.open.drain().map(|(_, slot)| slot).collect();
        self.poisoned.clear();
        for slot in slots {
            if let Some(end) = end {
                // SAFETY: C_CloseAllSessions takes any number for a slot. The answer does not matter.
                unsafe { end(slot) };
            }
        }
    }

    /// The rule for this call, which is counted.
    fn rule(&mut self, function: &str) -> Option<Rule> {
        let rules = self.script.rules.iter().zip(&mut self.fitted);
        for (rule, fitted) in rules.filter(|(rule, _)| rule.names(function)) {
            *fitted += 1;
            if *fitted > rule.after && *fitted - rule.after <= rule.count {
                return Some(rule.clone());
            }
        }
        None
    }

    fn hangs(&self, function: &str) -> bool {
        let mut rules = self.script.rules.iter();
        rules.any(|rule| rule.hangs && rule.names(function))
    }

    /// What the state of script, token and session answers.
    fn state_of(&self, function: &str, place: Place) -> Option<CK_RV> {
        if self.broken {
            return Some(CKR_FUNCTION_FAILED);
        }
        match place {
            Place::Library => None,
            Place::Slot if self.is_gone() => Some(CKR_TOKEN_NOT_PRESENT),
            Place::Session(_) if self.is_gone() => Some(CKR_DEVICE_REMOVED),
            Place::Session(_) if self.is_replaced() && function == "C_Login" => {
                Some(CKR_USER_PIN_NOT_INITIALIZED)
            }
            Place::Session(session) if self.poisoned.contains(&session) => {
                // These two take no part in operations.
                let aside = matches!(function, "C_CloseSession" | "C_GetSessionInfo");
                (!aside).then_some(CKR_OPERATION_ACTIVE)
            }
            Place::Slot | Place::Session(_) => None,
        }
    }

    fn after(&mut self, place: Place, answer: CK_RV) {
        if let Place::Session(session) = place
            && self.script.poisoned
            && !matches!(answer, CKR_OK | CKR_BUFFER_TOO_SMALL)
        {
            self.poisoned.insert(session);
        }
    }

    /// Is the token out of its slot?
    pub fn is_gone(&self) -> bool {
        self.stuck || matches!(self.script.token, Token::Removed | Token::Stuck)
    }

    /// Is another token in its place?
    pub fn is_replaced(&self) -> bool {
        self.script.token == Token::Reinitialised
    }

    /// The limit of the script, if it sets one.
    pub fn max_sessions(&self) -> Option<u64> {
        self.script.max_sessions
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> u64 {
        self.open.len() as u64
    }

    /// A session was opened.
    pub fn opened(&mut self, session: CK_SESSION_HANDLE, slot: CK_SLOT_ID) {
        self.open.insert(session, slot);
        self.poisoned.remove(&session);
    }

    /// A session was closed.
    pub fn closed(&mut self, session: CK_SESSION_HANDLE) {
        self.open.remove(&session);
        self.poisoned.remove(&session);
    }

    /// Every session in a slot was closed.
    pub fn closed_all(&mut self, slot: CK_SLOT_ID) {
        self.open.retain(|_, at| *at != slot);
        let open = &self.open;
        self.poisoned.retain(|session| open.contains_key(session));
    }

    /// The library was initialised or finalised.
    pub fn began_anew(&mut self) {
        self.open.clear();
        self.poisoned.clear();
        self.stuck = self.script.token == Token::Stuck;
    }
}

fn log(function: &str, answer: CK_RV) {
    let Some(path) = env::var_os(LOG) else {
        return;
    };
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    // A log that cannot be written is no reason to disturb a rehearsal.
    let _ = file.and_then(|mut file| writeln!(file, "{function} {}", codes::name(answer)));
}
