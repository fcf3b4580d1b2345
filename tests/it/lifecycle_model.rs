//! One key under random events: people with every role, a scheduler, incidents, and a clock that jumps. What follows from
//! the pure transitions is checked after every event, and after none may there be two ACTIVE versions, a signature by
//! another version, a token that outlives the publication of its key, one principal in two steps of a rotation, or a time
//! that decreases. R-LIFE-5, R-LIFE-7, R-JWT-4.

use std::{num::NonZeroU32, time::Duration};

use claviger::{
    error::Error,
    model::{
        Algorithm, Job, KeyId, KeyVersion, Kid, PrincipalId, Rotation, RotationId, RotationState,
        TenantName, Timestamp, VersionState,
        key::{BackendRef, Material, VersionEvent},
        rotation::Plan,
    },
};
use proptest::{collection::vec, prelude::*};

const SOAK: Duration = Duration::from_secs(360);
const SKEW: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(7200);
const PEOPLE: usize = 4;

#[derive(Clone, Debug)]
enum Event {
    Request(usize),
    Approve(usize, bool),
    Deploy(usize),
    Reject(usize),
    Cancel(usize),
    Expire,
    Complete,
    Issue(u64),
    KeepStandby,
    WithdrawStandby,
    Compromise(usize),
    Switch,
    Revoke(usize),
    Destroy(usize),
    Shred(u32),
    RetireOrphans,
    Forward(u64),
    Back(u64),
}

fn event() -> impl Strategy<Value = Event> {
    // The last two are the scheduler and the deployer.
    let who = || 0..PEOPLE + 2;
    prop_oneof![
        4 => who().prop_map(Event::Request),
        8 => (who(), prop::bool::weighted(0.9)).prop_map(|(who, right)| Event::Approve(who, right)),
        8 => who().prop_map(Event::Deploy),
        1 => who().prop_map(Event::Reject),
        1 => who().prop_map(Event::Cancel),
        1 => Just(Event::Expire),
        5 => Just(Event::Complete),
        6 => (1_u64..3600).prop_map(Event::Issue),
        2 => Just(Event::KeepStandby),
        1 => Just(Event::WithdrawStandby),
        1 => (0_usize..12).prop_map(Event::Compromise),
        3 => Just(Event::Switch),
        1 => (0_usize..12).prop_map(Event::Revoke),
        1 => (0_usize..12).prop_map(Event::Destroy),
        1 => (0_u32..12).prop_map(Event::Shred),
        3 => Just(Event::RetireOrphans),
        8 => (1_u64..4000).prop_map(Event::Forward),
        2 => (1_u64..120).prop_map(Event::Back),
    ]
}

/// What the rows hold.
#[derive(Clone, Debug)]
struct World {
    now: Timestamp,
    key: KeyId,
    people: Vec<PrincipalId>,
    needed: NonZeroU32,
    grace: Duration,
    versions: Vec<KeyVersion>,
    rotations: Vec<Rotation>,
    /// kid and exp.
    tokens: Vec<(Kid, Timestamp)>,
    /// The keys of the tenant are destroyed: nothing is created any more.
    erased: bool,
}

impl World {
    fn new(needed: NonZeroU32, grace: Duration) -> Self {
        let mut people: Vec<_> = (0..PEOPLE).map(|_| PrincipalId::random()).collect();
        people.extend(Job::ALL.map(|job| job.principal().id));
        let mut world = Self {
            now: Timestamp::from_seconds(1_800_000_000),
            key: KeyId::random(),
            people,
            needed,
            grace,
            versions: Vec::new(),
            rotations: Vec::new(),
            tokens: Vec::new(),
            erased: false,
        };
        let mut first = world.version();
        first.announced_at = Some(world.now);
        first.advance(VersionEvent::Deploy, world.now).expect("new");
        world.versions.push(first);
        world
    }

    fn version(&self) -> KeyVersion {
        let number = u32::try_from(self.versions.len() + 1).expect("few");
        let material = Material::DataKey {
            sealed_secret: None,
            kek: BackendRef("kek".into()),
            wrapped: vec![1],
        };
        KeyVersion::pre_active(self.key, number, Kid::random(), material, self.now)
    }

    fn active(&self) -> Option<usize> {
        self.versions.iter().position(|v| v.state.makes())
    }

    fn find(&self, kid: &Kid) -> usize {
        let found = self.versions.iter().position(|v| v.kid == *kid);
        found.expect("versions are never removed")
    }

    fn open(&self) -> Option<usize> {
        self.rotations.iter().position(|r| r.state.is_open())
    }

    fn standby(&self) -> Option<usize> {
        let is = |v: &KeyVersion| v.is_standby && v.state == VersionState::PreActive;
        self.versions.iter().position(is)
    }

    /// One transaction: all of it, or nothing. What is not there to be acted on is no error here.
    fn apply(&mut self, event: &Event) {
        let mut after = self.clone();
        if after.step(event).is_ok() {
            *self = after;
        }
    }

    fn step(&mut self, event: &Event) -> Result<(), Error> {
        let now = self.now;
        let open = self.open();
        match *event {
            Event::Forward(by) => self.now = now.plus(Duration::from_secs(by)),
            Event::Back(by) => self.now = now.minus(Duration::from_secs(by)),
            Event::Request(who) => {
                if let (Some(active), None) = (self.active(), open) {
                    self.request(active, self.people[who]);
                }
            }
            Event::Approve(who, right) => {
                if let Some(i) = open {
                    let rotation = self.rotations[i].clone();
                    let digest = match right {
                        true => rotation.plan_digest(),
                        false => "0".repeat(64),
                    };
                    let approved = rotation.approve(self.people[who], &digest, now)?;
                    let new = self.find(&approved.new_kid);
                    if approved.announced_at.is_some() {
                        self.versions[new].announced_at = approved.announced_at;
                    }
                    self.rotations[i] = approved;
                }
            }
            Event::Deploy(who) => {
                if let (Some(i), Some(active)) = (open, self.active()) {
                    self.deploy(i, active, self.people[who])?;
                }
            }
            Event::Reject(who) => {
                if let Some(i) = open {
                    let ended = self.rotations[i].clone();
                    self.withdrawn(i, ended.reject(self.people[who], "no".into(), now)?)?;
                }
            }
            Event::Cancel(who) => {
                if let Some(i) = open {
                    let ended = self.rotations[i].clone();
                    self.withdrawn(i, ended.cancel(self.people[who], "no".into(), now)?)?;
                }
            }
            Event::Expire => {
                if let Some(i) = open {
                    let ended = self.rotations[i].clone().expire(now)?;
                    self.withdrawn(i, ended)?;
                }
            }
            Event::Complete => self.complete()?,
            Event::RetireOrphans => self.retire_orphans()?,
            Event::Issue(ttl) => {
                if let Some(active) = self.active() {
                    let exp = now.plus(Duration::from_secs(ttl));
                    let version = &mut self.versions[active];
                    version.last_token_exp = version.last_token_exp.max(Some(exp));
                    self.tokens.push((version.kid.clone(), exp));
                }
            }
            Event::KeepStandby => {
                if self.active().is_some() && self.standby().is_none() {
                    let mut standby = self.version();
                    standby.announced_at = Some(now);
                    standby.is_standby = true;
                    self.versions.push(standby);
                }
            }
            Event::WithdrawStandby => {
                if let Some(i) = self.standby() {
                    self.versions[i].advance(VersionEvent::Withdraw, now)?;
                }
            }
            Event::Compromise(n) => {
                let i = n % self.versions.len();
                let was_active = self.versions[i].state.makes();
                self.versions[i].advance(VersionEvent::Compromise, now)?;
                let concerns = |r: &Rotation, v: &KeyVersion| r.new_kid == v.kid || was_active;
                if let Some(open) =
                    open.filter(|o| concerns(&self.rotations[*o], &self.versions[i]))
                {
                    let ended = self.rotations[open].clone();
                    let by = self.people[0];
                    self.withdrawn(open, ended.cancel(by, "compromised".into(), now)?)?;
                }
            }
            // The key was left without an ACTIVE version: the standby takes over, or a new one.
            Event::Switch => {
                if self.active().is_none() && !self.erased {
                    let next = self.standby().unwrap_or_else(|| {
                        self.versions.push(self.version());
                        self.versions.len() - 1
                    });
                    self.versions[next].advance(VersionEvent::Deploy, now)?;
                }
            }
            Event::Revoke(n) => {
                let i = n % self.versions.len();
                self.versions[i].advance(VersionEvent::Revoke, now)?;
            }
            Event::Destroy(n) => {
                let i = n % self.versions.len();
                self.versions[i].advance(VersionEvent::Destroy, now)?;
            }
            // Rare, because nothing happens after it: the tenant goes, whatever the state and whatever the clock says.
            Event::Shred(0) if !self.erased => {
                self.erased = true;
                if let Some(open) = open {
                    let ended = self.rotations[open].clone();
                    self.withdrawn(open, ended.cancel(self.people[0], "gone".into(), now)?)?;
                }
                for version in &mut self.versions {
                    if version.state != VersionState::Destroyed {
                        let shredded = version.advance(VersionEvent::Shred, now);
                        shredded.expect("nothing keeps a version from it");
                    }
                }
            }
            Event::Shred(_) => {}
        }
        Ok(())
    }

    fn request(&mut self, active: usize, requester: PrincipalId) {
        let (id, new, tenant) = (RotationId::random(), self.version(), TenantName::system());
        let old_kid = self.versions[active].kid.clone();
        let plan = Plan {
            rotation: id,
            tenant: &tenant,
            key: self.key,
            algorithm: Algorithm::Es256,
            backend: "hsm",
            old_kid: &old_kid,
            new_kid: &new.kid,
            soak: SOAK,
            grace: self.grace,
            approvals_needed: self.needed,
        }
        .canonical();
        self.rotations.push(Rotation {
            id,
            tenant,
            key_id: self.key,
            key_name: "jwt".parse().expect("a name"),
            state: RotationState::Requested,
            old_kid,
            new_kid: new.kid.clone(),
            justification: "model".into(),
            plan,
            soak: SOAK,
            grace: self.grace,
            scheduled: false,
            requester,
            approvals: Vec::new(),
            approvals_needed: self.needed,
            deployer: None,
            requested_at: self.now,
            announced_at: None,
            deployed_at: None,
            expires_at: self.now.plus(TTL),
            grace_ends_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
        });
        self.versions.push(new);
    }

    fn deploy(&mut self, i: usize, active: usize, who: PrincipalId) -> Result<(), Error> {
        let mut deployed = self.rotations[i].clone().deploy(who, self.now)?;
        assert_eq!(self.versions[active].kid, deployed.old_kid);
        let (at, new) = (deployed.last_step(), self.find(&deployed.new_kid));
        self.versions[active].advance(VersionEvent::Supersede, at)?;
        self.versions[new].advance(VersionEvent::Deploy, at)?;
        deployed.grace_ends_at = self.versions[active].grace_ends_at(deployed.grace, SKEW);
        self.rotations[i] = deployed;
        Ok(())
    }

    fn withdrawn(&mut self, i: usize, ended: Rotation) -> Result<(), Error> {
        let new = self.find(&ended.new_kid);
        if self.versions[new].state == VersionState::PreActive {
            self.versions[new].advance(VersionEvent::Withdraw, ended.last_step())?;
        }
        self.rotations[i] = ended;
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Error> {
        let now = self.now;
        let due = |r: &Rotation| {
            r.state == RotationState::Deployed && r.grace_ends_at.is_some_and(|end| end <= now)
        };
        if let Some(i) = self.rotations.iter().position(due) {
            let completed = self.rotations[i].clone().complete(now)?;
            let old = self.find(&completed.old_kid);
            if self.versions[old].state == VersionState::VerifyOnly {
                self.versions[old].advance(VersionEvent::GraceOver, now)?;
            }
            self.rotations[i] = completed;
        }
        Ok(())
    }

    fn retire_orphans(&mut self) -> Result<(), Error> {
        for version in &mut self.versions {
            let over = version.grace_ends_at(self.grace, SKEW);
            let in_grace = version.state == VersionState::VerifyOnly;
            if in_grace && over.is_some_and(|over| over <= self.now) {
                version.advance(VersionEvent::GraceOver, self.now)?;
            }
        }
        Ok(())
    }

    fn check(&self, before: &Self, event: &Event) {
        let active = self.versions.iter().filter(|v| v.state.makes());
        assert!(active.count() <= 1, "two ACTIVE versions");
        if let Some((kid, _)) = self.tokens.get(before.tokens.len()) {
            let signer = &before.versions[before.find(kid)];
            assert!(
                signer.state.makes(),
                "a token by a version that is {}",
                signer.state
            );
        }
        let left = |v: &KeyVersion| v.state != VersionState::Destroyed;
        assert!(!self.erased || !self.versions.iter().any(left), "not gone");
        self.check_tokens(before, event);
        self.rotations.iter().for_each(check_people);
        self.rotations.iter().for_each(check_rotation_times);
        for (i, version) in self.versions.iter().enumerate() {
            check_version_times(version);
            if let Some(was) = before.versions.get(i) {
                assert!(version.last_step() >= was.last_step(), "time ran backwards");
                assert!(version.last_token_exp >= was.last_token_exp, "a mark sank");
            }
        }
    }

    /// Only an incident, a revocation or the end of the tenant takes a key away from tokens that have not expired.
    fn check_tokens(&self, before: &Self, event: &Event) {
        if matches!(
            event,
            Event::Compromise(_) | Event::Revoke(_) | Event::Shred(_)
        ) {
            return;
        }
        for (kid, exp) in &self.tokens {
            let version = &self.versions[self.find(kid)];
            let was = before.tokens.iter().any(|(k, _)| k == kid);
            let was = was && before.versions[before.find(kid)].is_published();
            if was && !version.is_published() {
                let retired = version.retired_at.expect("retired");
                assert!(*exp <= retired, "a token outlives its key: {event:?}");
            }
            assert!(
                version.last_token_exp >= Some(*exp),
                "a token over the mark"
            );
        }
    }
}

fn check_people(rotation: &Rotation) {
    let mut people = vec![rotation.requester];
    people.extend(rotation.approvals.iter().map(|a| a.approver));
    people.extend(rotation.deployer);
    let count = people.len();
    people.sort_unstable_by_key(ToString::to_string);
    people.dedup();
    assert_eq!(people.len(), count, "one principal twice: {rotation:?}");
    if rotation.deployed_at.is_some() {
        let needed = rotation.approvals_needed.get() as usize;
        assert!(rotation.approvals.len() >= needed, "deployed unapproved");
    }
}

fn check_rotation_times(rotation: &Rotation) {
    let approvals = rotation.approvals.iter().map(|a| a.at);
    let times = std::iter::once(rotation.requested_at)
        .chain(approvals)
        .chain(rotation.announced_at)
        .chain(rotation.deployed_at)
        .chain(rotation.ended_at);
    assert!(times.is_sorted(), "{rotation:?}");
    if let (Some(announced), Some(deployed)) = (rotation.announced_at, rotation.deployed_at) {
        assert!(deployed >= announced.plus(rotation.soak), "not soaked");
    }
}

fn check_version_times(version: &KeyVersion) {
    let times = [
        Some(version.created_at),
        version.announced_at,
        version.activated_at,
        version.deactivated_at,
        version.retired_at,
        version.compromised_at,
        version.destroyed_at,
    ];
    assert!(times.into_iter().flatten().is_sorted(), "{version:?}");
    let gone = matches!(version.material, Material::Shredded { .. });
    assert_eq!(gone, version.state == VersionState::Destroyed);
}

/// How often each end was reached, so that a model that does nothing does not pass for one that does no harm.
#[test]
fn no_sequence_of_events_breaks_the_life_of_a_key() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let reached = std::cell::Cell::new([0_u32; 5]);
    let events = (1_u32..=2, 0_u64..2, vec(event(), 1..120));
    let outcome = runner.run(&events, |(needed, hours, events)| {
        let needed = NonZeroU32::new(needed).expect("at least one");
        let mut world = World::new(needed, Duration::from_secs(hours * 3600));
        for event in &events {
            let before = world.clone();
            world.apply(event);
            world.check(&before, event);
        }
        let has = |state| world.rotations.iter().any(|r| r.state == state);
        let mut counts = reached.get();
        counts[0] += u32::from(has(RotationState::Completed));
        counts[1] += u32::from(has(RotationState::Deployed));
        counts[2] += u32::from(has(RotationState::Expired));
        counts[3] += u32::from(world.versions.iter().any(|v| v.compromised_at.is_some()));
        counts[4] += u32::from(world.erased);
        reached.set(counts);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    let reached = reached.get();
    assert!(reached.iter().all(|count| *count >= 5), "{reached:?}");
}
