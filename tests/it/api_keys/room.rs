//! API keys without a port: the rooms themselves over a real database, a clock that stands, and a device that only wraps.
//!
//! What a key is worth is asked of `admit`, which is what every way in asks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use claviger::{
    audit::{AccessConfig, AccessLog, AccessMode, Receipt},
    authz::{Authz, Policies},
    backends::{Backend, BackendError, Call, Capabilities, Created, Destroyed, VerifyAfterSign},
    clients::{ApiKeys, ApiKeysConfig, CreateApiKey, Rejection, RotateApiKey, Rotated},
    clock::Clock,
    directory::{Directory, StateChange, UpdatePrincipal},
    error::{Error, Result},
    gate::{Freshness, Gate},
    grpc::proto::ListApiKeysResponse,
    keys::{Backends, Keks, KeySnapshot, Keys, KeysConfig, Reserved},
    model::{
        Action, Algorithm, ApiKey, ApiKeyId, ApiKeyText, Caller, Credential, Grant, IntentId,
        KeyRef, KeySpec, Principal, PrincipalId, PrincipalKind, PrincipalState, PublicKey,
        Resource, Role, Rotation, Scope, Scopes, Secret, TenantName, Timestamp, key::BackendRef,
        public_key::SignInput, secret::DataKey,
    },
    rotation::{RotationConfig, Rotations},
    store::{DatabaseConfig, Db},
};

/// When the clock begins.
pub const BEGIN: i64 = 1_800_000_000;
pub const HOUR: Duration = Duration::from_secs(60 * 60);

/// The rooms.
pub struct Room {
    dir: PathBuf,
    pub db: Db,
    pub clock: Clock,
    pub gate: Gate,
    pub keys: Arc<Keys>,
    pub directory: Arc<Directory>,
    pub rotations: Arc<Rotations>,
    pub api_keys: Arc<ApiKeys>,
    pub admin: Caller,
}

impl Room {
    pub async fn new() -> Self {
        Self::with(ApiKeysConfig::default()).await
    }

    pub async fn with(config: ApiKeysConfig) -> Self {
        let name = PrincipalId::random().to_string();
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let url = format!("sqlite://{}", dir.join("claviger.db").display());
        let db = Db::open(&DatabaseConfig::of(Secret::new(url))).await;
        let db = db.expect("a database");
        db.migrate().await.expect("migrated");
        let access = AccessConfig {
            access: AccessMode::Required,
            replica: "one".into(),
            checkpoint: None,
            retention: Default::default(),
        };
        let (log, writer) = AccessLog::new(db.clone(), &access);
        tokio::spawn(writer.run());
        let authz = Arc::new(Authz::new(Policies::built_in().expect("policies")));
        let fresh = Arc::new(Freshness::new(Duration::from_secs(3600)));
        fresh.observe(tokio::time::Instant::now());
        let clock = Clock::manual(Timestamp::from_seconds(BEGIN));
        let gate = Gate::new(authz, db.clone(), log, fresh);
        let directory = Arc::new(Directory::new(db.clone(), clock.clone()));
        directory
            .bootstrap(&Default::default())
            .await
            .expect("the first people");
        let mut backends = Backends::new();
        backends.insert("safe".to_owned(), Arc::new(Safe::default()));
        let now = clock.now();
        let named = ("safe", "the one");
        let keks = Keks::open(db.clone(), backends.clone(), named, now, HOUR);
        let keks = Arc::new(keks.await.expect("a KEK"));
        let (safe, defaults) = ("safe".to_owned(), KeysConfig::default());
        let reserved = Reserved {
            platform: vec![config.pepper().expect("a name")],
            ..Reserved::default()
        };
        let keys = Keys::new(
            db.clone(),
            backends,
            safe,
            reserved,
            keks,
            clock.clone(),
            defaults,
        );
        let keys = Arc::new(keys);
        let (soak, rotation) = (Duration::ZERO, RotationConfig::default());
        let rotations = Rotations::new(db.clone(), keys.clone(), clock.clone(), soak, rotation);
        let (keys_too, people) = (Arc::clone(&keys), Arc::clone(&directory));
        let api_keys = ApiKeys::new(db.clone(), keys_too, people, clock.clone(), config);
        let api_keys = Arc::new(api_keys.expect("API keys"));
        api_keys.make_pepper(&gate).await.expect("a pepper");
        let room = Self {
            admin: caller(somebody("admin", &[Role::PrincipalAdmin])),
            rotations: Arc::new(rotations),
            dir,
            db,
            clock,
            gate,
            keys,
            directory,
            api_keys,
        };
        room.add(&room.admin.principal).await;
        room
    }

    /// Puts a principal into the database.
    pub async fn add(&self, principal: &Principal) {
        let mut tx = self.db.begin().await.expect("a transaction");
        tx.insert_principal(principal).await.expect("inserted");
        for grant in &principal.grants {
            tx.insert_grant(principal.id, grant).await.expect("granted");
        }
        tx.commit().await.expect("committed");
        self.directory.forget();
    }

    /// A new principal with these roles and entitlements.
    pub async fn person(&self, name: &str, roles: &[Role], scopes: &str) -> Arc<Principal> {
        let mut principal = somebody(name, roles);
        principal.scopes = scopes.parse().expect("scopes");
        self.add(&principal).await;
        Arc::new(principal)
    }

    /// A key of `owner`, made by `caller`, that lasts ten hours.
    pub async fn make(
        &self,
        caller: &Caller,
        owner: PrincipalId,
        scopes: &str,
    ) -> Result<ApiKeyText> {
        let request = CreateApiKey {
            name: "test".to_owned(),
            scopes: scopes.parse().expect("scopes"),
            expires_at: self.clock.now().plus(10 * HOUR),
            client: None,
        };
        let text = Arc::new(ApiKeyText::generate(ApiKeyId::random())?);
        let (resource, found) = self.directory.find(owner).await?;
        let (api_keys, new) = (Arc::clone(&self.api_keys), Arc::clone(&text));
        let act = async move |permit| api_keys.create(permit, found, request, &new).await;
        let action = Action::CreateApiKey;
        let made = self.gate.mutate(caller, action, resource, answer, act);
        made.await?;
        Ok(shown(&text))
    }

    pub async fn rotate(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        overlap: Option<Duration>,
    ) -> Result<ApiKeyText> {
        let request = RotateApiKey {
            overlap,
            expires_at: None,
        };
        let text = Arc::new(ApiKeyText::generate(ApiKeyId::random())?);
        let (resource, found) = self.api_keys.find(id).await?;
        let (api_keys, new) = (Arc::clone(&self.api_keys), Arc::clone(&text));
        let act = async move |permit| api_keys.rotate(permit, found, request, &new).await;
        let answer = |_: &Rotated, _: &Receipt| ListApiKeysResponse::default();
        let action = Action::RotateApiKey;
        let made = self.gate.mutate(caller, action, resource, answer, act);
        made.await?;
        Ok(shown(&text))
    }

    pub async fn revoke(&self, caller: &Caller, id: ApiKeyId) -> Result<()> {
        let (resource, found) = self.api_keys.find(id).await?;
        let api_keys = Arc::clone(&self.api_keys);
        let act = async move |permit| api_keys.revoke(permit, found, "test".into()).await;
        let action = Action::RevokeApiKey;
        let ended = self.gate.mutate(caller, action, resource, answer, act);
        ended.await.map(|_| ())
    }

    /// Suspends or resumes, by the admin.
    pub async fn change_state(&self, id: PrincipalId, change: StateChange) {
        let (resource, found) = self.directory.find(id).await.expect("found");
        let directory = Arc::clone(&self.directory);
        let act = async move |permit| {
            directory
                .change_state(permit, found, change, "test".into())
                .await
        };
        let action = match change {
            StateChange::Suspend => Action::SuspendPrincipal,
            StateChange::Resume => Action::ResumePrincipal,
        };
        let answer = |_: &Principal, _: &Receipt| ListApiKeysResponse::default();
        let changed = self.gate.mutate(&self.admin, action, resource, answer, act);
        changed.await.expect("changed");
    }

    /// Takes entitlements away, by the admin.
    pub async fn take_scopes(&self, id: PrincipalId, scopes: &str) {
        let update = UpdatePrincipal {
            remove_scopes: scopes.parse().expect("scopes"),
            ..Default::default()
        };
        let (resource, found) = self.directory.find(id).await.expect("found");
        let directory = Arc::clone(&self.directory);
        let act = async move |permit| directory.update_principal(permit, found, update).await;
        let answer = |_: &Principal, _: &Receipt| ListApiKeysResponse::default();
        let action = Action::UpdatePrincipal;
        let changed = self.gate.mutate(&self.admin, action, resource, answer, act);
        changed.await.expect("changed");
    }

    /// What a key is worth: the roles and entitlements it brings along.
    pub async fn worth(&self, text: &ApiKeyText) -> Result<Scopes, Rejection> {
        let admitted = self.api_keys.admit(text, true).await.expect("an answer");
        admitted.map(|admitted| {
            assert_eq!(admitted.key.id, text.id());
            assert_eq!(admitted.principal.held(), admitted.scopes);
            admitted.scopes
        })
    }

    /// The row.
    pub async fn row(&self, id: ApiKeyId) -> ApiKey {
        let stored = self.db.api_key(id).await.expect("a read");
        stored.expect("a row").key
    }

    pub async fn pepper(&self) -> Arc<KeySnapshot> {
        let name: KeyRef = "api-key-pepper".parse().expect("a name");
        let system = TenantName::system();
        let found = self.keys.find(&system, &name).await.expect("a read");
        let id = found.snapshot().expect("the pepper").key.id;
        self.keys.fresh(&system, id).await.expect("the pepper")
    }

    /// Versions of the pepper, newest first, as state and number of keys.
    pub async fn peppers(&self) -> Vec<(String, u64)> {
        let resource = Resource::tenant(TenantName::system());
        let act = async |permit| {
            let peppers = self.api_keys.peppers(&permit).await?;
            let peppers = peppers.iter();
            let peppers = peppers.map(|p| (p.state.as_str().to_owned(), p.api_keys));
            Ok((peppers.collect(), String::new()))
        };
        let action = Action::ListPeppers;
        let listed = self.gate.access(&self.admin, action, resource, act);
        listed.await.expect("listed")
    }

    /// A new version of the pepper, by three people.
    pub async fn rotate_pepper(&self) -> Rotation {
        let system = TenantName::system();
        let people = [Role::KeyIssuer, Role::KeyApprover, Role::KeyDeployer];
        let mut callers = Vec::new();
        for role in people {
            let name = format!("{role}-{}", self.pepper().await.next_number());
            let person = somebody(&name, &[role]);
            self.add(&person).await;
            callers.push(caller(person));
        }
        let key = self.pepper().await;
        let resource = Resource {
            tenant: system,
            entity: claviger::model::Entity::Key {
                id: key.key.id,
                purpose: key.key.purpose,
            },
        };
        let rotations = Arc::clone(&self.rotations);
        let act = async move |permit| rotations.request(permit, key, "test".into(), None).await;
        let answer = |r: &Rotation, _: &Receipt| named(r);
        let asked = self
            .gate
            .mutate(&callers[0], Action::RotateKey, resource, answer, act);
        let id = asked.await.expect("requested").next_page_token;
        let id = id.parse().expect("an id");

        let (resource, found) = self.rotations.find(id).await.expect("found");
        let digest = found.as_ref().expect("a rotation").plan_digest();
        let rotations = Arc::clone(&self.rotations);
        let act = async move |permit| rotations.approve(permit, found, &digest).await;
        let answer = |r: &Rotation, _: &Receipt| named(r);
        let action = Action::ApproveRotation;
        let approved = self.gate.mutate(&callers[1], action, resource, answer, act);
        approved.await.expect("approved");

        let (resource, found) = self.rotations.find(id).await.expect("found");
        let rotations = Arc::clone(&self.rotations);
        let act = async move |permit| rotations.deploy(permit, found).await;
        let answer = |r: &Rotation, _: &Receipt| named(r);
        let action = Action::DeployRotation;
        let deployed = self.gate.mutate(&callers[2], action, resource, answer, act);
        deployed.await.expect("deployed");
        let (_, found) = self.rotations.find(id).await.expect("found");
        found.expect("a rotation")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn named(rotation: &Rotation) -> ListApiKeysResponse {
    ListApiKeysResponse {
        next_page_token: rotation.id.to_string(),
        ..Default::default()
    }
}

fn answer(_: &ApiKey, _: &Receipt) -> ListApiKeysResponse {
    ListApiKeysResponse::default()
}

/// Somebody of the platform with these roles everywhere.
pub fn somebody(name: &str, roles: &[Role]) -> Principal {
    let grants = roles.iter().map(|role| Grant {
        role: *role,
        scope: Scope::All,
    });
    Principal {
        id: PrincipalId::random(),
        tenant: TenantName::system(),
        name: name.parse().expect("a name"),
        kind: PrincipalKind::User,
        owner: name.to_owned(),
        state: PrincipalState::Active,
        scopes: Scopes::default(),
        identities: Vec::new(),
        grants: grants.collect(),
        created_at: Timestamp::from_seconds(BEGIN),
    }
}

/// It, calling with a certificate.
pub fn caller(principal: impl Into<Arc<Principal>>) -> Caller {
    Caller {
        principal: principal.into(),
        credential: Credential::Certificate,
        request_id: uuid::Uuid::now_v7().to_string().into(),
        idempotency: None,
    }
}

/// The same text once more: whoever has it can show it again.
pub fn shown(text: &ApiKeyText) -> ApiKeyText {
    let again = Secret::new(text.expose_secret().clone());
    ApiKeyText::parse(again).expect("a key")
}

/// A device that wraps and does nothing else. What it wraps is masked by a digest of the binding; it protects nothing.
struct Safe(Capabilities);

impl Default for Safe {
    fn default() -> Self {
        Self(Capabilities {
            name: "safe".to_owned(),
            device: "test".to_owned(),
            specs: vec![KeySpec::Kek],
            algorithms: Vec::new(),
            verify_after_sign: VerifyAfterSign::Off,
            longest_message: None,
            one_at_a_time: false,
        })
    }
}

fn mask(key: &[u8], aad: &[u8]) -> Vec<u8> {
    let pad = digest::digest(&digest::SHA256, aad);
    key.iter().zip(pad.as_ref()).map(|(k, p)| k ^ p).collect()
}

fn never<T: 'static>() -> Call<'static, T> {
    Box::pin(async { Err(BackendError::Unsupported("anything but wrapping".into())) })
}

impl Backend for Safe {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }

    fn create<'a>(
        &'a self,
        _: KeySpec,
        _: IntentId,
        _: &'a str,
        _: tokio::time::Instant,
    ) -> Call<'a, Created> {
        never()
    }

    fn adopt<'a>(&'a self, uri: &'a str, _: KeySpec, _: tokio::time::Instant) -> Call<'a, Created> {
        Box::pin(async move {
            Ok(Created {
                reference: BackendRef(uri.to_owned()),
                public_key: None,
                tag: None,
            })
        })
    }

    fn public_key<'a>(&'a self, _: &'a BackendRef, _: tokio::time::Instant) -> Call<'a, PublicKey> {
        never()
    }

    fn sign<'a>(
        &'a self,
        _: &'a BackendRef,
        _: Algorithm,
        _: SignInput<'a>,
        _: tokio::time::Instant,
    ) -> Call<'a, Vec<u8>> {
        never()
    }

    fn wrap<'a>(
        &'a self,
        _: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        _: tokio::time::Instant,
    ) -> Call<'a, Vec<u8>> {
        Box::pin(async move {
            let mut wrapped = mask(key.expose_secret(), aad);
            let digest = digest::digest(&digest::SHA256, key.expose_secret());
            wrapped.extend(digest.as_ref());
            Ok(wrapped)
        })
    }

    fn unwrap<'a>(
        &'a self,
        _: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        _: tokio::time::Instant,
    ) -> Call<'a, DataKey> {
        Box::pin(async move {
            let (masked, proof) = wrapped.split_at(32.min(wrapped.len()));
            let key = mask(masked, aad);
            if digest::digest(&digest::SHA256, &key).as_ref() != proof {
                return Err(BackendError::Rejected("another binding".into()));
            }
            let key = key.try_into();
            let key = key.map_err(|_| BackendError::Rejected("another length".into()))?;
            Ok(Secret::new(key))
        })
    }

    fn destroy<'a>(&'a self, _: &'a BackendRef, _: tokio::time::Instant) -> Call<'a, Destroyed> {
        never()
    }

    fn find(&self, _: IntentId, _: tokio::time::Instant) -> Call<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn ready(&self, _: tokio::time::Instant) -> Call<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// The reason of a failure.
pub fn why<T>(result: Result<T, Error>) -> &'static str {
    result.map_or_else(|error| error.reason().as_str(), |_| "none")
}
