//! The wrapper over a fake device that answers, fails or hangs as told. The proof on real parts is in `tests/it`.

use super::*;
use crate::model::Secret;

const STALL: Duration = Duration::from_millis(800);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Works,
    Fails,
    Rejects,
    IsFull,
    IsLate,
    Hangs,
    RefusesPin,
}

/// Moods of uses of keys, of management and of `ready`.
struct Fake {
    capabilities: Capabilities,
    moods: Mutex<[Mood; 3]>,
    mended: Notify,
    asked: AtomicU32,
    /// A key that fails always.
    bad: Mutex<Option<BackendRef>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        Self::that_does(false)
    }

    fn that_does(one_at_a_time: bool) -> Arc<Self> {
        Arc::new(Self {
            capabilities: Capabilities {
                name: "fake".into(),
                device: "fake".into(),
                specs: Vec::new(),
                one_at_a_time,
                longest_message: None,
                algorithms: Vec::new(),
                verify_after_sign: crate::backends::VerifyAfterSign::Off,
            },
            moods: Mutex::new([Mood::Works; 3]),
            mended: Notify::new(),
            asked: AtomicU32::new(0),
            bad: Mutex::default(),
        })
    }

    fn set(&self, moods: [Mood; 3]) {
        *lock(&self.moods) = moods;
        self.mended.notify_waiters();
    }

    fn act<'a, T: Send + 'a>(&'a self, kind: usize, value: T) -> Call<'a, T> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            loop {
                let mended = self.mended.notified();
                let mood = lock(&self.moods)[kind];
                match mood {
                    Mood::Works => return Ok(value),
                    Mood::Fails => return Err(BackendError::Unavailable("gone".into())),
                    Mood::Rejects => return Err(BackendError::Rejected("tampered".into())),
                    Mood::IsFull => return Err(BackendError::Overloaded),
                    Mood::IsLate => return Err(BackendError::DeadlineExceeded),
                    Mood::RefusesPin => return Err(BackendError::WrongPin),
                    Mood::Hangs => mended.await,
                }
            }
        })
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Backend for Fake {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn create<'a>(
        &'a self,
        _: KeySpec,
        intent: IntentId,
        _: &'a str,
        _: Instant,
    ) -> Call<'a, Created> {
        let created = Created {
            reference: BackendRef("fake:1".into()),
            public_key: None,
            tag: Some(intent),
        };
        self.act(1, created)
    }
    fn adopt<'a>(&'a self, uri: &'a str, _: KeySpec, _: Instant) -> Call<'a, Created> {
        let created = Created {
            reference: BackendRef(uri.into()),
            public_key: None,
            tag: None,
        };
        self.act(1, created)
    }
    fn public_key<'a>(&'a self, _: &'a BackendRef, _: Instant) -> Call<'a, PublicKey> {
        Box::pin(async { Err(BackendError::Unsupported("none".into())) })
    }
    fn sign<'a>(
        &'a self,
        key: &'a BackendRef,
        _: Algorithm,
        _: SignInput<'a>,
        _: Instant,
    ) -> Call<'a, Vec<u8>> {
        if lock(&self.bad).as_ref() == Some(key) {
            let bad = || Err(BackendError::Unavailable("CKR_FUNCTION_FAILED".into()));
            return Box::pin(async move { bad() });
        }
        self.act(0, Vec::new())
    }
    fn wrap<'a>(
        &'a self,
        _: &'a BackendRef,
        _: &'a DataKey,
        _: &'a [u8],
        _: Instant,
    ) -> Call<'a, Vec<u8>> {
        self.act(0, Vec::new())
    }
    fn unwrap<'a>(
        &'a self,
        _: &'a BackendRef,
        _: &'a [u8],
        _: &'a [u8],
        _: Instant,
    ) -> Call<'a, DataKey> {
        self.act(0, Secret::new([0; 32]))
    }
    fn destroy<'a>(&'a self, _: &'a BackendRef, _: Instant) -> Call<'a, Destroyed> {
        self.act(1, Destroyed::Now)
    }
    fn find(&self, _: IntentId, _: Instant) -> Call<'_, Vec<String>> {
        self.act(1, Vec::new())
    }
    fn ready(&self, _: Instant) -> Call<'_, ()> {
        self.act(2, ())
    }
}

/// A watched fake. Time is tokio's and stands still but for sleepers.
fn watched(fake: &Arc<Fake>) -> Arc<Guarded> {
    let guarded = Arc::new(Guarded::new(Arc::clone(fake) as Arc<dyn Backend>, STALL));
    let looks = Arc::clone(&guarded);
    tokio::spawn(async move { looks.watch_stalls().await });
    let probes = Arc::clone(&guarded);
    tokio::spawn(async move {
        loop {
            probes.probe_due().await;
            let _ = probes.probe().await;
        }
    });
    guarded
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn sign(guarded: &Guarded) -> Result<Vec<u8>, BackendError> {
    sign_with(guarded, "fake:1").await
}

async fn sign_with(guarded: &Guarded, key: &str) -> Result<Vec<u8>, BackendError> {
    let key = BackendRef(key.into());
    let input = SignInput::Digest(&[0; 32]);
    guarded.sign(&key, Algorithm::Es256, input, later()).await
}

async fn unwrap(guarded: &Guarded) -> Result<DataKey, BackendError> {
    let kek = BackendRef("fake:kek".into());
    guarded.unwrap(&kek, &[1], &[2], later()).await
}

const WORKS: [Mood; 3] = [Mood::Works; 3];
const HANGS: [Mood; 3] = [Mood::Hangs; 3];

#[tokio::test(start_paused = true)]
async fn a_hanging_device_is_given_up_within_a_second_by_all_who_wait() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    sign(&guarded).await.expect("works");
    fake.set(HANGS);
    let began = Instant::now();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let guarded = Arc::clone(&guarded);
            tokio::spawn(async move { sign(&guarded).await })
        })
        .collect();
    for call in waiting {
        let outcome = call.await.expect("no panic");
        assert!(
            matches!(outcome, Err(BackendError::Unavailable(_))),
            "{outcome:?}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(guarded.state(), State::Open);

    // Refused at once from now on, and the device is left alone but for probes.
    let (asked, began) = (fake.asked(), Instant::now());
    for _ in 0..100 {
        let outcome = sign(&guarded).await;
        assert!(matches!(outcome, Err(BackendError::Unavailable(_))));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(fake.asked(), asked);

    // It stays open however long it takes, and works soon after the device does.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(guarded.state(), State::Open);
    fake.set(WORKS);
    let back = Instant::now();
    while sign(&guarded).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(back.elapsed() < Duration::from_secs(4));
    assert_eq!(guarded.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn calls_whose_callers_left_are_a_stall_too() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    let began = Instant::now();
    while guarded.state() == State::Closed {
        let patience = Duration::from_millis(130);
        let _ = tokio::time::timeout(patience, sign(&guarded)).await;
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test(start_paused = true)]
async fn slow_is_not_hanging() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    for _ in 0..20 {
        let call = {
            let guarded = Arc::clone(&guarded);
            tokio::spawn(async move { sign(&guarded).await })
        };
        tokio::time::sleep(Duration::from_millis(600)).await;
        // One comes back, the next one waits.
        fake.set(WORKS);
        call.await.expect("no panic").expect("signed");
        fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    }
    assert_eq!(guarded.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_the_device_refuses_never_opens_it() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    for mood in [Mood::Rejects, Mood::IsFull] {
        fake.set([mood, mood, Mood::Works]);
        for _ in 0..200 {
            assert!(unwrap(&guarded).await.is_err());
        }
        assert_eq!(guarded.state(), State::Closed, "{mood:?}");
    }
    // A refusal is an answer: it ends a row of failures.
    for _ in 0..20 {
        fake.set([Mood::Fails, Mood::Works, Mood::Works]);
        for _ in 1..super::super::breaker::FAILURES {
            assert!(sign(&guarded).await.is_err());
        }
        fake.set([Mood::Rejects, Mood::Works, Mood::Works]);
        assert!(unwrap(&guarded).await.is_err());
    }
    assert_eq!(guarded.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_answers_probes_and_nothing_else_gets_single_trials() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Fails, Mood::Works, Mood::Works]);
    for _ in 0..super::super::breaker::FAILURES {
        assert!(sign(&guarded).await.is_err());
    }
    assert_eq!(guarded.state(), State::Open);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    while guarded.state() != State::HalfOpen {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = fake.asked();
    let began = Instant::now();
    let trials = (0..10).map(|_| sign(&guarded));
    let outcomes = futures_util::future::join_all(trials).await;
    assert!(outcomes.iter().all(Result::is_err));
    assert_eq!(fake.asked(), asked + 1, "one trial");
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(guarded.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_trial_whose_caller_left_is_followed_by_another() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    assert!(sign(&guarded).await.is_err());
    while guarded.state() != State::HalfOpen {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = tokio::time::timeout(Duration::from_millis(10), sign(&guarded)).await;
    assert!(left.is_err());
    fake.set(WORKS);
    sign(&guarded).await.expect("the next trial");
    assert_eq!(guarded.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_began_is_not_cut_off() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set(HANGS);
    let creation = {
        let guarded = Arc::clone(&guarded);
        tokio::spawn(async move {
            let intent = IntentId::random();
            guarded
                .create(KeySpec::P256, intent, "label", later())
                .await
        })
    };
    assert!(sign(&guarded).await.is_err());
    assert_eq!(guarded.state(), State::Open);
    // A new one is refused at once, and leaves nothing behind.
    let (asked, began) = (fake.asked(), Instant::now());
    let refused = guarded
        .create(KeySpec::P256, IntentId::random(), "label", later())
        .await;
    assert!(matches!(refused, Err(BackendError::Unavailable(_))));
    assert_eq!((fake.asked(), began.elapsed()), (asked, Duration::ZERO));
    fake.set(WORKS);
    creation.await.expect("no panic").expect("created");
}

#[tokio::test(start_paused = true)]
async fn long_management_alone_is_no_stall() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Works, Mood::Hangs, Mood::Works]);
    let adoption = {
        let guarded = Arc::clone(&guarded);
        tokio::spawn(async move { guarded.adopt("fake:1", KeySpec::Kek, later()).await })
    };
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(guarded.state(), State::Closed);
    fake.set(WORKS);
    adoption.await.expect("no panic").expect("adopted");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_pin_is_never_tried_again() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    sign(&guarded).await.expect("works");
    fake.set([Mood::RefusesPin, Mood::Works, Mood::Works]);
    let outcome = sign(&guarded).await;
    assert!(matches!(outcome, Err(BackendError::WrongPin)));
    fake.set(WORKS);
    let asked = fake.asked();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(sign(&guarded).await, Err(BackendError::WrongPin)));
    }
    assert_eq!(fake.asked(), asked, "neither calls nor probes");
}

/// One key of which the device knows nothing any more, called all the time, and others that work.
#[tokio::test(start_paused = true)]
async fn one_bad_key_keeps_nobody_out() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    *lock(&fake.bad) = Some(BackendRef("fake:bad".into()));
    sign(&guarded).await.expect("works");
    for _ in 0..200 {
        assert!(sign_with(&guarded, "fake:bad").await.is_err());
    }
    assert_eq!(guarded.state(), State::Closed);
    sign(&guarded).await.expect("works");

    // After an outage it is the trial once, and then others are asked.
    fake.set([Mood::Fails; 3]);
    while guarded.state() != State::Open {
        assert!(sign(&guarded).await.is_err());
    }
    fake.set(WORKS);
    let back = Instant::now();
    while sign(&guarded).await.is_err() {
        let _ = sign_with(&guarded, "fake:bad").await;
        assert!(back.elapsed() < Duration::from_secs(5), "it is kept out");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let _ = sign_with(&guarded, "fake:bad").await;
    }
    assert_eq!(guarded.state(), State::Closed);

    // A device on which nothing but this key was used lately is given up.
    tokio::time::sleep(2 * ROW).await;
    for _ in 0..super::super::breaker::FAILURES {
        assert!(sign_with(&guarded, "fake:bad").await.is_err());
    }
    assert_eq!(guarded.state(), State::Open);
}

/// Callers who wait for a while and leave, hours apart.
#[tokio::test(start_paused = true)]
async fn what_those_waited_for_who_left_is_not_added_up() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    for _ in 0..20 {
        let patience = Duration::from_millis(500);
        let left = tokio::time::timeout(patience, sign(&guarded)).await;
        assert!(left.is_err());
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    assert_eq!(guarded.state(), State::Closed);
}

/// A batch may wait for its turn on our side of the device.
#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_is_no_stall() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    let batch = crate::backends::with_priority(Priority::Batch, unwrap(&guarded));
    let waited = tokio::time::timeout(Duration::from_secs(60), batch).await;
    assert!(waited.is_err());
    assert_eq!(guarded.state(), State::Closed);
}

/// A pool of one thread makes a key, which takes long; whoever uses one waits.
#[tokio::test(start_paused = true)]
async fn a_device_of_one_thread_that_makes_a_key_does_not_hang() {
    let fake = Fake::that_does(true);
    let guarded = watched(&fake);
    fake.set([Mood::Hangs, Mood::Hangs, Mood::Works]);
    let creation = {
        let guarded = Arc::clone(&guarded);
        tokio::spawn(async move { guarded.adopt("fake:1", KeySpec::Kek, later()).await })
    };
    let waiting = {
        let guarded = Arc::clone(&guarded);
        tokio::spawn(async move { sign(&guarded).await })
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(guarded.state(), State::Closed);
    fake.set([Mood::Hangs, Mood::Works, Mood::Works]);
    creation.await.expect("no panic").expect("adopted");
    // Now the thread is theirs, and nothing comes back.
    let outcome = waiting.await.expect("no panic");
    assert!(matches!(outcome, Err(BackendError::Unavailable(_))));
    assert_eq!(guarded.state(), State::Open);
}

/// It takes as long as there are keys to look at.
#[tokio::test(start_paused = true)]
async fn searches_that_run_out_of_time_never_open_it() {
    let fake = Fake::new();
    let guarded = watched(&fake);
    fake.set([Mood::Works, Mood::IsLate, Mood::Works]);
    for _ in 0..20 {
        let found = guarded.find(IntentId::random(), later()).await;
        assert!(matches!(found, Err(BackendError::DeadlineExceeded)));
    }
    assert_eq!(guarded.state(), State::Closed);
}
