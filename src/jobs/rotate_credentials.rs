//! Rotations of credentials, as far as no person is needed: drivers mint and revoke, new values are tried, old ones looked at
//! until they are dead. And people are told what is due (R-CRED-7).
//!
//! Providers and drivers take their time, so this is a task of its own with a lease of its own: a few rotations at once, each
//! bounded in time, and no tenant has all of the places. What is to be tried again is moved on in the database before it is
//! tried, later and later: what fails, hangs or loses the lease keeps no other from its turn.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::{Id, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    leader::{CREDENTIAL_ROTATIONS, Leader},
    scheduler::{SchedulerConfig, Work},
};
use crate::{
    error::{Error, Reason, Result},
    model::{
        Action, CredentialId, CredentialRotation, CredentialRotationId, CredentialRotationState,
        Job, Probed, Resource, RotationDriver, TenantName, credential_rotation::OfHeld,
    },
    store::Term,
    vault::{Demand, FoundRotation, Look, RollBack, Withdrawal},
};

/// In logs and metrics.
const NAME: &str = "rotate_credentials";
/// Rotations that are brought on at the same time.
const PLACES: usize = 8;
/// Of one tenant.
const PLACES_OF_ONE: usize = 2;
/// Rows looked at at a time: more than there are places, as those of a tenant that has its places are passed over.
const PAGE: i64 = 64;
/// For what is asked of one driver or provider in one go.
const ASKING: Duration = Duration::from_secs(25);
/// Reminders in one round.
const REMINDERS: i64 = 100;

/// Something that is due.
enum Due {
    /// A rotation by a driver is to begin.
    Begin(Resource, CredentialId),
    /// A rotation is to be brought on.
    Go(Box<CredentialRotation>),
}

impl Due {
    fn name(&self) -> String {
        match self {
            Self::Begin(_, id) => id.to_string(),
            Self::Go(rotation) => rotation.id.to_string(),
        }
    }

    fn tenant(&self) -> &TenantName {
        match self {
            Self::Begin(resource, _) => &resource.tenant,
            Self::Go(rotation) => &rotation.tenant,
        }
    }
}

/// Brings rotations of credentials on until `shutdown` ends.
pub async fn run_credential_rotations(
    work: Arc<Work>,
    replica: String,
    config: SchedulerConfig,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let ttl = Duration::from_secs(config.lease_seconds);
    let (db, clock) = (work.db.clone(), work.clock.clone());
    let mut leader = Leader::new(CREDENTIAL_ROTATIONS, db, clock, &replica, ttl);
    let mut tick = interval(Duration::from_millis(config.interval_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut places = Places::new(work);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = tick.tick() => {}
            () = places.one_is_free() => {}
        }
        match leader.term().await {
            Ok(Some(term)) => {
                if let Err(error) = places.fill(&term).await {
                    tracing::warn!(%error, "due rotations of credentials not read");
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "lease not taken; no rotation of credentials for now")
            }
        }
    }
    places.end().await;
    leader.resign().await;
}

/// What is being brought on, and whose it is.
struct Places {
    work: Arc<Work>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    taken: HashMap<Id, (String, TenantName)>,
}

impl Places {
    fn new(work: Arc<Work>) -> Self {
        Self {
            work,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            taken: HashMap::new(),
        }
    }

    /// Ends when something was brought on; never while there is nothing.
    async fn one_is_free(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(failed)) => failed.id(),
            None => return std::future::pending().await,
        };
        self.taken.remove(&id);
    }

    fn takes(&self, due: &Due) -> bool {
        let (name, tenant) = (due.name(), due.tenant());
        let of_tenant = self.taken.values().filter(|(_, whose)| whose == tenant);
        self.taken.len() < PLACES
            && of_tenant.count() < PLACES_OF_ONE
            && !self.taken.values().any(|(taken, _)| *taken == name)
    }

    async fn fill(&mut self, term: &Term) -> Result<()> {
        if self.taken.len() >= PLACES {
            return Ok(());
        }
        // What is under way comes before what is to begin.
        let going = self.work.vault.rotations_to_check(PAGE).await?;
        let going = going
            .into_iter()
            .map(|rotation| Due::Go(Box::new(rotation)));
        let begin = self.work.vault.due_for_drivers(PAGE).await?;
        let begin = begin
            .into_iter()
            .map(|(resource, id)| Due::Begin(resource, id));
        for due in going.chain(begin) {
            if self.takes(&due) {
                let place = (due.name(), due.tenant().clone());
                let (work, term, stop) = (Arc::clone(&self.work), term.clone(), self.stop.clone());
                let task = self.tasks.spawn(async move {
                    let one = One { work, term, stop };
                    one.take_on(due).await;
                });
                self.taken.insert(task.id(), place);
            }
        }
        Ok(())
    }

    /// Nobody is asked anything more; what is being written is written.
    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// One of those that are brought on.
struct One {
    work: Arc<Work>,
    term: Term,
    stop: CancellationToken,
}

impl One {
    async fn take_on(&self, due: Due) {
        let item = due.name();
        let done = match due {
            Due::Begin(resource, id) => self.begin(resource, id).await,
            Due::Go(rotation) => self.bring_on(*rotation).await,
        };
        match done {
            Ok(()) => {}
            Err(error) if error.reason() == Reason::ShuttingDown => {}
            Err(error) => {
                tracing::warn!(job = NAME, %item, ?error, "scheduled work failed; tried again later");
                metrics::counter!("claviger_job_item_failures_total", "job" => NAME).increment(1);
            }
        }
    }

    /// What somebody outside has to say to it, if that comes in time.
    async fn ask<T>(&self, asked: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            () = self.stop.cancelled() => {
                Err(Error::new(Reason::ShuttingDown, "the daemon is going down"))
            }
            answer = timeout(ASKING, asked) => answer.unwrap_or_else(|_| {
                Err(Error::new(Reason::DeadlineExceeded, "a provider or driver took too long"))
            }),
        }
    }

    async fn begin(&self, resource: Resource, id: CredentialId) -> Result<()> {
        self.work.vault.claim_due(&self.term, id).await?;
        let (_, found) = self.work.vault.find(id).await?;
        let Some(found) = found else { return Ok(()) };
        let asked = self.ask(self.work.vault.ask_before_minting(&found)).await?;
        let (vault, term) = (Arc::clone(&self.work.vault), self.term.clone());
        let act = async move |permit| vault.begin_minting(permit, term, id, asked).await;
        let (gate, action) = (&self.work.gate, Action::StageCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn bring_on(&self, rotation: CredentialRotation) -> Result<()> {
        if !self
            .work
            .vault
            .claim_rotation(&self.term, &rotation)
            .await?
        {
            return Ok(());
        }
        if rotation.state == CredentialRotationState::RolledBack {
            return self.withdraw(rotation).await;
        }
        let (resource, found) = self.find(rotation.id).await?;
        // Its credential was deleted at this very moment, and the rotation with it.
        let Some(found) = found else { return Ok(()) };
        if self.work.vault.is_erased(&rotation.tenant).await? {
            return self.close(found.rotation, resource).await;
        }
        match found.rotation.state {
            CredentialRotationState::Minting | CredentialRotationState::Staged
                if found.is_overtaken() =>
            {
                self.roll_back(found, RollBack::Replaced, resource).await
            }
            CredentialRotationState::Minting => self.mint(found, resource).await,
            CredentialRotationState::Staged => self.promote(found, resource).await,
            CredentialRotationState::Holding => self.check(found, resource).await,
            CredentialRotationState::Completed | CredentialRotationState::RolledBack => Ok(()),
        }
    }

    async fn find(&self, id: CredentialRotationId) -> Result<(Resource, Option<FoundRotation>)> {
        self.work.vault.find_rotation(id).await
    }

    async fn mint(&self, found: FoundRotation, resource: Resource) -> Result<()> {
        if self.work.vault.gives_up(&found.rotation) {
            return self.roll_back(found, RollBack::NotMinted, resource).await;
        }
        let Some(fields) = self.ask(self.work.vault.mint(&found)).await? else {
            return self.wait(&found, Look::nothing()).await;
        };
        let (vault, term) = (Arc::clone(&self.work.vault), self.term.clone());
        let act = async move |permit| vault.stage_minted(permit, term, found, fields).await;
        let (gate, action) = (&self.work.gate, Action::StageCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn promote(&self, found: FoundRotation, resource: Resource) -> Result<()> {
        let asked = self.work.vault.ask_pending(&found, Demand::Needed);
        let asked = match self.ask(asked).await?.stays(&found.rotation) {
            Ok(said) => return self.wait(&found, Look::of_new(said)).await,
            Err(asked) => asked,
        };
        let (vault, term) = (Arc::clone(&self.work.vault), self.term.clone());
        let act = async move |permit| vault.promote_asked(permit, Some(term), found, asked).await;
        let (gate, action) = (&self.work.gate, Action::PromoteCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn check(&self, found: FoundRotation, resource: Resource) -> Result<()> {
        let mut look = self.ask(self.work.vault.look(&found)).await?;
        let by_driver = found.rotation.driver != RotationDriver::Manual;
        // Not before the new one is known to work: the old one may be the only one that does.
        if by_driver && look.next == OfHeld::Alive && look.new_works() {
            if let Err(error) = self.ask(self.work.vault.revoke_old(&found)).await {
                tracing::warn!(rotation = %found.rotation.id, %error, "an old value is not revoked");
            }
            // What counts is what the provider says then.
            look = self.ask(self.work.vault.look(&found)).await?;
        }
        match look {
            Look {
                next: OfHeld::RollBack,
                new: Some(new),
                old: Some(old),
                errors,
            } => {
                let why = match errors {
                    Some(rates) => RollBack::Errors { rates, new, old },
                    None => RollBack::Refused { new, old },
                };
                self.roll_back(found, why, resource).await
            }
            Look {
                next: OfHeld::Complete,
                old: Some(old),
                ..
            } => self.complete(found, old, resource).await,
            look => self.wait(&found, look).await,
        }
    }

    async fn wait(&self, found: &FoundRotation, look: Look) -> Result<()> {
        self.work.vault.wait(&self.term, found, look).await
    }

    async fn roll_back(
        &self,
        found: FoundRotation,
        why: RollBack,
        resource: Resource,
    ) -> Result<()> {
        let (vault, term) = (Arc::clone(&self.work.vault), Some(self.term.clone()));
        let act = async move |permit| vault.roll_back(permit, term, Some(found), why).await;
        let (gate, action) = (&self.work.gate, Action::RollBackCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn complete(&self, found: FoundRotation, said: Probed, resource: Resource) -> Result<()> {
        let (vault, term) = (Arc::clone(&self.work.vault), self.term.clone());
        let act = async move |permit| vault.complete_held(permit, term, found, said).await;
        let (gate, action) = (&self.work.gate, Action::CompleteCredentialRotation);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn close(&self, rotation: CredentialRotation, resource: Resource) -> Result<()> {
        let (vault, term) = (Arc::clone(&self.work.vault), self.term.clone());
        let act = async move |permit| vault.close_erased(permit, term, rotation).await;
        let (gate, action) = (&self.work.gate, Action::RollBackCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }

    async fn withdraw(&self, rotation: CredentialRotation) -> Result<()> {
        let Some(withdrawal) = Withdrawal::of(rotation)? else {
            return Ok(());
        };
        let vault = &self.work.vault;
        let done = self.ask(vault.withdraw(&withdrawal)).await;
        if !matches!(done, Ok(true)) {
            vault.tell_left(&self.term, &withdrawal).await?;
            return done.map(drop);
        }
        let (vault, term) = (Arc::clone(vault), self.term.clone());
        let resource = withdrawal.resource();
        let act = async move |permit| vault.note_withdrawn(permit, term, withdrawal).await;
        let (gate, action) = (&self.work.gate, Action::RollBackCredential);
        gate.work(Job::Scheduler, action, resource, act).await?;
        Ok(())
    }
}

/// Tells people what is due, and of what nothing comes.
pub async fn remind(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("remind_credentials");
    for reminder in work.vault.reminders(REMINDERS).await? {
        let id = reminder.credential.id;
        if round.takes(&id) {
            round.note(&id, work.vault.remind(term, &reminder).await)?;
        }
    }
    for rotation in work.vault.stuck(REMINDERS).await? {
        if round.takes(&rotation.id) {
            let told = work.vault.tell_stuck(term, &rotation).await;
            round.note(&rotation.id, told)?;
        }
    }
    Ok(())
}
