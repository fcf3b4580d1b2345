//! What only a PKCS#11 backend has: attributes, PINs, URIs, sessions and tokens that go away.

use std::{fs, sync::Arc, time::Duration};

use claviger::{
    backends::{
        Backend, BackendError, Guarded,
        breaker::State,
        pkcs11::{
            Modules, Pkcs11Backend, Pkcs11Config, Pkcs11ConfigError, provision,
            uri::{Class, KeyUri, UriError},
            verify_costs,
        },
    },
    model::{Algorithm, IntentId, KeySpec, Secret, SignInput, key::BackendRef},
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags},
    types::AuthPin,
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    conformance::{self, Signed, create},
    softhsm::{PIN, SO_PIN, SoftHsm, alone, soon},
};

const ES256: Algorithm = Algorithm::Es256;

async fn sign(backend: &Pkcs11Backend, key: &BackendRef) -> Result<Vec<u8>, BackendError> {
    let signed = Signed::of(ES256);
    backend.sign(key, ES256, signed.input(), soon()).await
}

fn misconfigured(outcome: Result<Pkcs11Backend, BackendError>) -> String {
    match outcome {
        Err(BackendError::Misconfigured(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

// R-LIFE-4
#[test]
fn conforms() {
    alone(async |softhsm| conformance::run(&softhsm.backend("conforms")).await);
}

// R-LIFE-4
#[test]
fn another_tool_sees_keys_that_cannot_leave() {
    alone(async |softhsm| {
        let backend = softhsm.backend("guarded");
        let specs = backend.capabilities().specs.clone();
        let kinds: [fn(&KeySpec) -> bool; 4] = [
            |s| *s == KeySpec::P256,
            |s| *s == KeySpec::Ed25519,
            |s| *s == KeySpec::Rsa(2048),
            |s| *s == KeySpec::Kek,
        ];
        for kind in kinds {
            let spec = *specs.iter().find(|s| kind(s)).expect("SoftHSM has it");
            let key = create(&backend, spec).await;
            let class = if spec == KeySpec::Kek {
                "secrkey"
            } else {
                "privkey"
            };
            let seen = softhsm.tool("guarded", &["--list-objects", "--type", class]);
            let access = "sensitive, always sensitive, never extractable, local";
            assert!(seen.contains(access), "{spec:?}: {seen}");
            let usage = if spec == KeySpec::Kek {
                "encrypt, decrypt"
            } else {
                "sign"
            };
            let usage = format!("Usage:      {usage}\n");
            assert!(seen.contains(&usage), "{spec:?}: {seen}");
            backend.destroy(&key.reference, soon()).await.expect("gone");
            let left = softhsm.tool("guarded", &["--list-objects"]);
            assert!(!left.contains("Key Object"), "{spec:?}: {left}");
        }
    });
}

// R-LIFE-4
#[test]
fn a_key_that_could_leave_is_not_adopted() {
    alone(async |softhsm| {
        let backend = softhsm.backend("adopts");
        let make = |id: &str, extra: &[&str]| {
            let args = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", id];
            softhsm.tool(
                "adopts",
                &[&args[..], &["--label", "old key"], extra].concat(),
            );
        };
        make("01", &["--extractable"]);
        make("02", &[]);
        let uri = |id: &str| format!("pkcs11:token=adopts;id=%{id};object=old%20key;type=private");
        let open = backend.adopt(&uri("01"), KeySpec::P256, soon()).await;
        assert!(matches!(open, Err(BackendError::Unfit(_))), "{open:?}");

        let adopted = backend.adopt(&uri("02"), KeySpec::P256, soon()).await;
        let adopted = adopted.expect("a guarded key is adopted");
        assert_eq!(
            adopted.reference.0,
            "pkcs11:token=adopts;id=%02;type=private"
        );
        let signature = sign(&backend, &adopted.reference).await.expect("signs");
        let public = adopted.public_key.expect("a public half");
        let verifier = public.verifier(ES256).expect("a verifier");
        assert!(verifier.verifies(Signed::of(ES256).input(), &signature));

        for (uri, why) in [
            ("pkcs11:token=other;id=%02;type=private", "other token"),
            ("pkcs11:token=adopts;id=%02;type=public", "other class"),
            ("pkcs11:id=%02;type=private?pin-value=1234", "with a PIN"),
        ] {
            let outcome = backend.adopt(uri, KeySpec::P256, soon()).await;
            let text = match outcome {
                Err(BackendError::Unfit(text)) => text,
                other => panic!("{why}: {other:?}"),
            };
            assert!(!text.contains("1234"), "{text}");
        }
    });
}

#[test]
fn two_objects_with_one_id_are_none() {
    alone(async |softhsm| {
        let backend = softhsm.backend("twins");
        for label in ["a", "b"] {
            let args = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", "07"];
            softhsm.tool("twins", &[&args[..], &["--label", label]].concat());
        }
        let uri = "pkcs11:token=twins;id=%07;type=private";
        let both = backend.adopt(uri, KeySpec::P256, soon()).await;
        assert!(matches!(both, Err(BackendError::Missing(_))), "{both:?}");
        let both = BackendRef(uri.into());
        let signed = sign(&backend, &both).await;
        assert!(
            matches!(signed, Err(BackendError::Missing(_))),
            "{signed:?}"
        );
        let gone = backend.destroy(&both, soon()).await;
        assert!(matches!(gone, Err(BackendError::Missing(_))), "{gone:?}");

        let one = "pkcs11:token=twins;object=b;id=%07;type=private";
        let one = backend.adopt(one, KeySpec::P256, soon()).await;
        let one = one.expect("the label tells them apart").reference;
        assert_eq!(one.0, "pkcs11:token=twins;object=b;id=%07;type=private");
        backend.destroy(&one, soon()).await.expect("b goes");
        backend
            .adopt(uri, KeySpec::P256, soon())
            .await
            .expect("a is untouched, and alone now");
    });
}

#[test]
fn half_a_key_pair_is_found_and_finished_off() {
    alone(async |softhsm| {
        let backend = softhsm.backend("halves");
        let key = create(&backend, KeySpec::P256).await;
        let uri = KeyUri::parse(&key.reference.0).expect("our own reference");
        let id: String = uri
            .id
            .expect("an id")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        softhsm.tool(
            "halves",
            &["--delete-object", "--type", "privkey", "--id", &id],
        );
        let missing = sign(&backend, &key.reference).await;
        assert!(
            matches!(missing, Err(BackendError::Missing(_))),
            "{missing:?}"
        );
        backend
            .destroy(&key.reference, soon())
            .await
            .expect("the other half goes");
        let again = backend.destroy(&key.reference, soon()).await;
        assert!(matches!(again, Err(BackendError::Missing(_))), "{again:?}");
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    alone(async |softhsm| {
        softhsm.init("locks");
        let wrong = Pkcs11Config {
            pin: Some(Secret::new("not the pin".into())),
            ..softhsm.config("locks")
        };
        for _ in 0..20 {
            let outcome = softhsm.open(&wrong).err();
            assert!(
                matches!(outcome, Some(BackendError::WrongPin)),
                "{outcome:?}"
            );
        }
        // The right PIN would be accepted, if anybody asked the token again.
        let outcome = softhsm.open(&softhsm.config("locks")).err();
        assert!(
            matches!(outcome, Some(BackendError::WrongPin)),
            "{outcome:?}"
        );
        // Another token of the same module has its own count.
        softhsm.backend("other").ready(soon()).await.expect("ready");
    });
}

#[test]
fn what_is_not_there_is_named() {
    alone(async |softhsm| {
        let no_module = Pkcs11Config {
            module: softhsm.path("absent.so"),
            ..softhsm.config("here")
        };
        let why = misconfigured(softhsm.open(&no_module));
        assert!(
            why.contains("absent.so") && why.contains("cannot open"),
            "{why}"
        );

        fs::write(softhsm.path("text.so"), "no library").expect("a file");
        let no_library = Pkcs11Config {
            module: softhsm.path("text.so"),
            ..softhsm.config("here")
        };
        let why = misconfigured(softhsm.open(&no_library));
        assert!(why.contains("does not load"), "{why}");

        let why = misconfigured(softhsm.open(&softhsm.config("here")));
        assert!(why.contains("no token has the label here"), "{why}");

        let module = softhsm.module();
        let free = || {
            let slots = module.context().get_slots_with_token().expect("slots");
            let mut slots = slots.into_iter();
            slots.find(|slot| {
                let info = module.context().get_token_info(*slot).expect("a token");
                !info.token_initialized()
            })
        };
        let so_pin = AuthPin::from(SO_PIN);
        let init = |label| {
            let slot = free().expect("a free slot");
            module
                .context()
                .init_token(slot, &so_pin, label)
                .expect("a token");
        };
        init("here");
        let why = misconfigured(softhsm.open(&softhsm.config("here")));
        assert!(why.contains("no user PIN"), "{why}");
        init("here");
        let why = misconfigured(softhsm.open(&softhsm.config("here")));
        assert!(why.contains("more than one token"), "{why}");

        let second = Modules::new().load(&SoftHsm::library());
        assert!(matches!(second.err(), Some(BackendError::Misconfigured(_))));
    });
}

#[test]
fn tokens_are_made_once() {
    alone(async |softhsm| {
        let module = softhsm.module();
        assert!(!provision::token_exists(&module, "dev").expect("asked"));
        softhsm.init("dev");
        assert!(provision::token_exists(&module, "dev").expect("asked"));
        let (so_pin, pin) = (Secret::new(SO_PIN.into()), Secret::new(PIN.into()));
        let again = provision::init_token(&module, "dev", &so_pin, &pin);
        assert!(
            matches!(again, Err(BackendError::Misconfigured(_))),
            "{again:?}"
        );

        let pin_file = softhsm.path("pin");
        fs::write(&pin_file, format!("{PIN}\n")).expect("a file");
        let from_file = Pkcs11Config {
            pin: None,
            pin_file: Some(pin_file),
            ..softhsm.config("dev")
        };
        let backend = softhsm.open(&from_file).expect("opens");
        backend.ready(soon()).await.expect("ready");
    });
}

#[test]
fn a_full_queue_answers_at_once() {
    alone(async |softhsm| {
        let key = create(&softhsm.backend("busy"), KeySpec::P256)
            .await
            .reference;
        let small = Pkcs11Config {
            threads: Some(1),
            queue: 2,
            ..softhsm.config("busy")
        };
        let backend = softhsm.open(&small).expect("opens");
        let module = softhsm.module();
        let paused = module
            .pause(Duration::from_secs(60))
            .expect("nobody inside");
        // One may be with the thread, two fit into the queue; the rest hears at once, while nothing moves.
        let mut calls: Vec<_> = (0..10).map(|_| Box::pin(sign(&backend, &key))).collect();
        let mut overloaded = 0;
        calls.retain_mut(|call| match futures_util::FutureExt::now_or_never(call) {
            Some(Err(BackendError::Overloaded)) => {
                overloaded += 1;
                false
            }
            Some(other) => panic!("{other:?}"),
            None => true,
        });
        assert!((7..=8).contains(&overloaded), "{overloaded}");
        let soon = Instant::now() + Duration::from_millis(1);
        let late = backend.ready(soon).await;
        assert!(
            matches!(
                late,
                Err(BackendError::DeadlineExceeded | BackendError::Overloaded)
            ),
            "{late:?}"
        );
        drop(paused);
        for outcome in join_all(calls).await {
            outcome.expect("those that waited are served");
        }
    });
}

/// More than the token can do in the time: what it was never asked is OVERLOADED, and no failure of its own.
#[test]
fn what_waited_in_vain_behind_others_is_overload() {
    alone(async |softhsm| {
        let one = Pkcs11Config {
            threads: Some(1),
            ..softhsm.config("slow")
        };
        softhsm.init("slow");
        let backend = softhsm.open(&one).expect("opens");
        assert!(backend.capabilities().one_at_a_time);
        let guarded = Guarded::new(Arc::new(backend), Duration::from_millis(800));
        let key = create(&guarded, KeySpec::Rsa(4096)).await.reference;
        let digest = [7; 32];
        let input = || SignInput::Digest(&digest);
        let deadline = Instant::now() + Duration::from_secs(1);
        let calls = (0..1000).map(|_| guarded.sign(&key, Algorithm::Ps256, input(), deadline));
        let outcomes = join_all(calls).await;
        let errors = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let of = |wanted: fn(&BackendError) -> bool| errors().filter(|e| wanted(e)).count();
        let overloaded = of(|e| matches!(e, BackendError::Overloaded));
        let late = of(|e| matches!(e, BackendError::DeadlineExceeded));
        assert!(
            overloaded > 0,
            "a faster token than any: {overloaded}, {late}"
        );
        assert!(
            late <= 1,
            "{late} others than the one that was with the token"
        );
        assert_eq!(overloaded + late, errors().count());
        assert_eq!(guarded.state(), State::Closed);
    });
}

#[test]
fn a_call_that_hangs_ends_by_its_deadline() {
    alone(async |softhsm| {
        let backend = softhsm.backend("hangs");
        let module = softhsm.module();
        let paused = module
            .pause(Duration::from_secs(60))
            .expect("nobody inside");
        let late = backend
            .ready(Instant::now() + Duration::from_millis(1))
            .await;
        assert!(
            matches!(late, Err(BackendError::DeadlineExceeded)),
            "{late:?}"
        );
        drop(paused);
        backend
            .ready(soon())
            .await
            .expect("and then it works again");
    });
}

#[test]
fn sessions_that_are_gone_are_replaced() {
    alone(async |softhsm| {
        let backend = softhsm.backend("blips");
        let other = softhsm.backend("other");
        let created = create(&backend, KeySpec::P256).await;
        let key = created.reference;
        let public = created.public_key.expect("a public half");
        let verifier = public.verifier(ES256).expect("a verifier");
        let module = softhsm.module();

        // Every session of the process ends behind our back. Sessions opened and closed at once use up the
        // numbers that ours had, so that none of ours is somebody else's now.
        let slot = || {
            let slots = module.context().get_slots_with_token().expect("slots");
            let named = slots.into_iter().find(|slot| {
                let info = module.context().get_token_info(*slot).expect("a token");
                info.label() == "blips"
            });
            named.expect("our slot")
        };
        let restart = || {
            let context = module.context();
            context.clone().finalize().expect("finalised");
            let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
            context.initialize(args).expect("initialised");
            for _ in 0..64 {
                drop(context.open_rw_session(slot()).expect("a session"));
            }
        };
        for _ in 0..3 {
            restart();
            for outcome in join_all((0..16).map(|_| sign(&backend, &key))).await {
                let signature = outcome.expect("signs again, without a restart");
                assert!(verifier.verifies(Signed::of(ES256).input(), &signature));
            }
            other.ready(soon()).await.expect("the other token too");
        }

        // Somebody logs the token out.
        let session = module.context().open_rw_session(slot()).expect("a session");
        for _ in 0..3 {
            session.logout().expect("logged out");
            sign(&backend, &key).await.expect("logged in again");
        }
        // A key that does not exist is looked for while logged out: not found, and truly so.
        session.logout().expect("logged out");
        let absent = BackendRef("pkcs11:token=blips;id=%FF;type=private".into());
        let absent = sign(&backend, &absent).await;
        assert!(
            matches!(absent, Err(BackendError::Missing(_))),
            "{absent:?}"
        );
    });
}

#[test]
fn an_uninitialised_library_is_initialised_again() {
    alone(async |softhsm| {
        let backend = softhsm.backend("ends");
        let key = create(&backend, KeySpec::P256).await.reference;
        let module = softhsm.module();
        module.context().clone().finalize().expect("finalised");
        sign(&backend, &key)
            .await
            .expect("the last rung of the ladder");
        // Not again within half a minute: that would end the sessions of everybody over and over.
        module.context().clone().finalize().expect("finalised");
        let held = sign(&backend, &key).await;
        assert!(
            matches!(held, Err(BackendError::Unavailable(_))),
            "{held:?}"
        );
    });
}

// R-LIFE-4: a token that vanished is not an empty one, and nothing is created on what is left of it.
#[test]
fn a_vanished_token_is_not_an_empty_one() {
    alone(async |softhsm| {
        let backend = softhsm.backend("leaves");
        let key = create(&backend, KeySpec::P256).await.reference;
        let (here, away) = (softhsm.token_files(), softhsm.path("away"));
        fs::rename(&here, &away).expect("the volume is unmounted");
        fs::create_dir(&here).expect("an empty mount point");
        let absent = BackendRef("pkcs11:token=leaves;id=%FF;type=private".into());
        for _ in 0..4 {
            let gone = sign(&backend, &absent).await;
            assert!(
                matches!(gone, Err(BackendError::Unavailable(_))),
                "{gone:?}"
            );
            let gone = backend.ready(soon()).await;
            assert!(
                matches!(gone, Err(BackendError::Unavailable(_))),
                "{gone:?}"
            );
            let intent = IntentId::random();
            let gone = backend.create(KeySpec::P256, intent, "none", soon()).await;
            assert!(
                matches!(gone, Err(BackendError::Unavailable(_))),
                "{gone:?}"
            );
        }
        assert_eq!(fs::read_dir(&here).expect("readable").count(), 0);
        drop(key);
    });
}

#[test]
fn a_token_that_comes_back_is_used_again() {
    alone(async |softhsm| {
        let backend = softhsm.backend("returns");
        let key = create(&backend, KeySpec::P256).await.reference;
        let (here, away) = (softhsm.token_files(), softhsm.path("away"));
        let module = softhsm.module();
        fs::rename(&here, &away).expect("the volume is unmounted");
        fs::create_dir(&here).expect("an empty mount point");
        // The library has seen the token go, as after a cut of the line to an HSM.
        module.context().clone().finalize().expect("finalised");
        let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        module.context().initialize(args).expect("initialised");
        fs::remove_dir(&here).expect("an empty mount point");
        fs::rename(&away, &here).expect("the volume is back");
        sign(&backend, &key)
            .await
            .expect("signs again, without a restart");
        backend.ready(soon()).await.expect("ready");
    });
}

#[test]
fn backends_share_a_module_and_end_apart() {
    alone(async |softhsm| {
        let one = softhsm.backend("one");
        let two = softhsm.backend("two");
        let again = softhsm
            .open(&softhsm.config("one"))
            .expect("already logged in");
        let key = create(&again, KeySpec::P256).await.reference;
        drop(two);
        drop(again);
        sign(&one, &key).await.expect("the login is still there");
        let elsewhere = BackendRef(key.0.replace("token=one", "token=two"));
        let elsewhere = sign(&one, &elsewhere).await;
        assert!(
            matches!(elsewhere, Err(BackendError::Missing(_))),
            "{elsewhere:?}"
        );
    });
}

#[test]
fn the_section_is_strict() {
    let section = |more: &str| {
        let text = format!(r#"{{"module":"/m.so","token":"t"{more}}}"#);
        serde_json::from_str::<Pkcs11Config>(&text)
    };
    let checked = |more: &str| section(more).map(|config| config.validate()).ok();
    assert_eq!(checked(r#","pin":"1""#), Some(Ok(())));
    assert_eq!(checked(r#","pin_file":"/p","threads":64"#), Some(Ok(())));
    assert_eq!(checked(""), Some(Err(Pkcs11ConfigError::PinSource)));
    let both = r#","pin":"1","pin_file":"/p""#;
    assert_eq!(checked(both), Some(Err(Pkcs11ConfigError::PinSource)));
    for threads in [0, 65] {
        let more = format!(r#","pin":"1","threads":{threads}"#);
        assert_eq!(
            checked(&more),
            Some(Err(Pkcs11ConfigError::Threads(threads)))
        );
    }
    let none = r#","pin":"1","queue":0"#;
    assert_eq!(checked(none), Some(Err(Pkcs11ConfigError::Queue(0))));
    assert!(section(r#","pin":"1","pins":"2""#).is_err());
}

#[test]
fn uris_are_parsed_strictly() {
    let uri = "pkcs11:token=My%20HSM;object=a%3bb;id=%00%01%fF;type=private";
    let parsed = KeyUri::parse(uri).expect("a good URI");
    assert_eq!(parsed.token.as_deref(), Some("My HSM"));
    assert_eq!(parsed.object.as_deref(), Some("a;b"));
    assert_eq!(parsed.id.as_deref(), Some(&[0, 1, 255][..]));
    assert_eq!(parsed.class, Some(Class::Private));
    let canonical = parsed.canonical();
    let wanted = "pkcs11:token=My%20HSM;object=a%3Bb;id=%00%01%FF;type=private";
    assert_eq!(canonical, wanted);
    assert_eq!(KeyUri::parse(&canonical), Ok(parsed));
    // As other tools print them.
    let long = "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=8ab1;token=t;id=%01;\
                object=k;type=secret-key";
    assert!(KeyUri::parse(long).is_ok());

    use UriError as E;
    for (bad, error) in [
        ("", E::Scheme),
        ("pkcs11", E::Scheme),
        ("https://example.org/?id=1", E::Scheme),
        ("pkcs11:", E::Malformed),
        ("pkcs11:id", E::Malformed),
        ("pkcs11:id=%01;", E::Malformed),
        ("pkcs11:token=t;type=private", E::Unspecific),
        ("pkcs11:id=", E::Unspecific),
        ("pkcs11:id=%01;id=%02", E::Duplicate("id")),
        ("pkcs11:object=a;object=a", E::Duplicate("object")),
        ("pkcs11:id=%0", E::Encoding("id")),
        ("pkcs11:id=%zz", E::Encoding("id")),
        ("pkcs11:id=%+1", E::Encoding("id")),
        ("pkcs11:object=a b", E::Encoding("object")),
        ("pkcs11:object=\u{e4}", E::Encoding("object")),
        ("pkcs11:object=a\nb", E::Encoding("object")),
        ("pkcs11:object=", E::Text("object")),
        ("pkcs11:object=a%0Ab", E::Text("object")),
        ("pkcs11:object=a%00", E::Text("object")),
        ("pkcs11:object=%7F", E::Text("object")),
        ("pkcs11:object=%C2%85", E::Text("object")),
        ("pkcs11:object=%FF", E::Text("object")),
        ("pkcs11:id=%01;type=cert", E::Type),
        ("pkcs11:id=%01;slot-id=1", E::Unknown(2)),
        ("pkcs11:x-vendor=1;id=%01", E::Unknown(1)),
        ("pkcs11:id=%01?module-path=/m.so", E::Query),
        ("pkcs11:id=%01?pin-value=1234", E::Pin("pin-value")),
        ("pkcs11:id=%01?PIN-source=file:/p", E::Pin("pin-source")),
        ("pkcs11:id=%01;pin-value=1234", E::Pin("pin-value")),
    ] {
        assert_eq!(KeyUri::parse(bad), Err(error), "{bad:?}");
    }
}

/// What `claviger bench` measures for `verify_after_sign`: signatures that verify, of keys that do not stay.
#[test]
fn the_cost_of_verifying_is_measured_and_leaves_no_key() {
    alone(async |softhsm| {
        softhsm.init("cost");
        let config = softhsm.config("cost");
        let round = Duration::from_millis(14);
        let costs = tokio::task::block_in_place(|| verify_costs(&config, &softhsm.modules, round));
        let costs = costs.expect("measured");
        let measured: Vec<_> = costs.iter().map(|c| (c.algorithm, c.rsa_bits)).collect();
        for usual in [(ES256, 0), (Algorithm::EdDsa, 0), (Algorithm::Rs256, 2048)] {
            assert!(measured.contains(&usual), "{measured:?}");
        }
        let positive = |time: Duration| time > Duration::ZERO && time < Duration::from_secs(60);
        assert!(
            costs.iter().all(|c| positive(c.sign) && positive(c.verify)),
            "{costs:?}"
        );
        let left = softhsm.tool("cost", &["--list-objects"]);
        assert!(!left.contains("Key Object"), "{left}");
    });
}
