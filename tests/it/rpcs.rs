//! One valid request for every RPC, and one that fails, as bytes: for tests that walk the table of all RPCs.
//!
//! An RPC without a case here fails every such test, so that a new one cannot be forgotten.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use claviger::grpc::proto::{
    AddIncidentNoteRequest, AdoptKeyRequest, Algorithm, ApproveKekRotationRequest,
    ApproveKeyDestructionRequest, ApproveRotationPolicyRequest, ApproveRotationRequest,
    BatchDecryptRequest, BatchEncryptRequest, BatchRewrapRequest, BatchSignRequest,
    BatchVerifyRequest, CancelKekRotationRequest, CancelKeyDestructionRequest,
    CancelRotationRequest, CloseIncidentRequest, CreateKeyRequest, CreatePrincipalRequest,
    CreateTenantRequest, DeclareCompromiseRequest, DecryptRequest, DeployKekRotationRequest,
    DeployRotationRequest, DestroyKeyVersionRequest, EncryptRequest, GetIncidentRequest,
    GetJwksRequest, GetKekRotationRequest, GetKeyRequest, GetRotationRequest, GrantRoleRequest,
    IssueTokenRequest, Key, KeyPurpose, ListAuditEventsRequest, ListIncidentsRequest,
    ListKekRotationsRequest, ListKeksRequest, ListKeyDestructionsRequest, ListKeysRequest,
    ListPrincipalsRequest, ListRotationsRequest, ListTenantsRequest, PrincipalType,
    RejectKekRotationRequest, RejectRotationRequest, RevokeKeyVersionRequest, RevokeRoleRequest,
    RevokeTokenRequest, RewrapRequest, RotateKekRequest, RotateKeyRequest, Rotation, SignRequest,
    UpdateKeyRequest, VerifyAuditRequest, VerifyRequest, VerifyTokenRequest, batch_decrypt_request,
    batch_encrypt_request, batch_rewrap_request, batch_sign_request, batch_verify_request,
    sign_request, verify_request,
};
use prost::Message;
use tokio::time::{Duration, Instant, sleep};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{
    daemon::{Actor, Daemon, Engine, PATIENCE, TOKEN},
    keks,
};

/// A daemon with a key of each purpose and something made with each.
pub struct World {
    pub daemon: Daemon,
    signature: Bytes,
    ciphertext: Bytes,
    token: String,
}

/// Requests for one RPC.
pub struct Case {
    /// Permitted and successful, once.
    pub valid: Bytes,
    /// Permitted and well-formed, and still impossible; None where that does not exist.
    pub failing: Option<Bytes>,
    /// Items that each leave a row of their own; 1 for everything that is not a batch.
    pub items: usize,
}

fn case(valid: &impl Message) -> Case {
    Case {
        valid: valid.encode_to_vec().into(),
        failing: None,
        items: 1,
    }
}

impl Case {
    fn or(mut self, failing: &impl Message) -> Self {
        self.failing = Some(failing.encode_to_vec().into());
        self
    }

    /// With as many items as the batches here have.
    const fn batch(mut self) -> Self {
        self.items = 2;
        self
    }
}

impl World {
    pub async fn new(engine: Engine) -> Self {
        let daemon = Daemon::start(engine).await;
        let keys = [
            ("orders", KeyPurpose::Signing, Algorithm::Es256),
            ("tokens", KeyPurpose::TokenSigning, Algorithm::Es256),
            ("vault", KeyPurpose::Encryption, Algorithm::A256gcm),
        ];
        for (name, purpose, algorithm) in keys {
            daemon.key("acme", name, purpose, algorithm).await;
        }
        let service = daemon.actor("service");
        let signed = service.crypto().sign(sign("orders")).await.expect("Sign");
        let sealed = service.crypto().encrypt(encrypt("vault")).await;
        let issued = service.tokens().issue_token(issue(60)).await;
        Self {
            signature: signed.into_inner().signature,
            ciphertext: sealed.expect("Encrypt").into_inner().ciphertext,
            token: issued.expect("IssueToken").into_inner().token,
            daemon,
        }
    }

    /// Fresh requests for the RPC at `path`, with everything they need.
    pub async fn case(&self, path: &str) -> Case {
        let name = path.rsplit('/').next().expect("a name");
        match name {
            "Sign" => case(&sign("orders")).or(&sign("tokens")),
            "Verify" => case(&self.verify("orders")).or(&self.verify("vault")),
            "Encrypt" => case(&encrypt("vault")).or(&encrypt("orders")),
            "Decrypt" => case(&self.decrypt(0)).or(&self.decrypt(1)),
            "Rewrap" => case(&self.rewrap(0)).or(&self.rewrap(1)),
            "BatchSign" | "BatchVerify" | "BatchEncrypt" | "BatchDecrypt" | "BatchRewrap" => {
                self.batch(name)
            }
            "IssueToken" => case(&issue(60)).or(&issue(1_000_000)),
            "VerifyToken" => case(&VerifyTokenRequest {
                tenant: "acme".into(),
                token: self.token.clone(),
                audience: "api".into(),
                required_scopes: Vec::new(),
            }),
            "GetJwks" => case(&GetJwksRequest {}),
            "CreateKey" | "AdoptKey" | "GetKey" | "ListKeys" | "UpdateKey" => self.key(name).await,
            "ApproveRotationPolicy" => self.policy().await,
            "RotateKey" | "ApproveRotation" | "DeployRotation" | "GetRotation"
            | "ListRotations" | "RejectRotation" | "CancelRotation" => self.rotation(name).await,
            "DestroyKeyVersion"
            | "ApproveKeyDestruction"
            | "CancelKeyDestruction"
            | "ListKeyDestructions" => self.destruction(name).await,
            "CreateTenant" | "ListTenants" | "CreatePrincipal" | "GrantRole" | "RevokeRole"
            | "ListPrincipals" => self.people(name).await,
            "DeclareCompromise" | "GetIncident" | "ListIncidents" | "AddIncidentNote"
            | "CloseIncident" => self.incident(name).await,
            "RevokeToken" => {
                let revoke = |jti: String| RevokeTokenRequest {
                    tenant: "acme".into(),
                    jti,
                    reason: "it was in a log".into(),
                    ..Default::default()
                };
                // Whatever is well-formed can be revoked.
                case(&revoke(uuid::Uuid::now_v7().to_string())).or(&revoke("all".into()))
            }
            "RevokeKeyVersion" => self.revocation().await,
            "ListAuditEvents" => case(&ListAuditEventsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            "VerifyAudit" => case(&VerifyAuditRequest::default()),
            "ListKeks" | "RotateKek" | "ApproveKekRotation" | "DeployKekRotation"
            | "RejectKekRotation" | "CancelKekRotation" | "GetKekRotation" | "ListKekRotations" => {
                self.kek(name).await
            }
            unknown => panic!("RPC {unknown} has no case in tests/it/rpcs.rs; add one"),
        }
    }

    /// There is one KEK, so whatever rotation is open ends first.
    async fn kek(&self, name: &str) -> Case {
        let daemon = &self.daemon;
        keks::settle(daemon).await;
        let uri = keks::create(daemon, &fresh("kek")).await;
        if name == "RotateKek" {
            let elsewhere = RotateKekRequest {
                backend: "nowhere".into(),
                ..keks::rotate(&uri)
            };
            return case(&keks::rotate(&uri)).or(&elsewhere);
        }
        let over = keks::request(daemon, &uri).await.expect("RotateKek").id;
        keks::settle(daemon).await;
        let rotation = keks::request(daemon, &uri).await.expect("RotateKek");
        let id = rotation.id.clone();
        match name {
            "ListKeks" => case(&ListKeksRequest {}),
            "ListKekRotations" => case(&ListKekRotationsRequest::default()),
            "GetKekRotation" => case(&GetKekRotationRequest { rotation_id: id }),
            "ApproveKekRotation" => {
                let approve = |plan_digest: String| ApproveKekRotationRequest {
                    rotation_id: id.clone(),
                    plan_digest,
                };
                case(&approve(rotation.plan_digest)).or(&approve("0".repeat(64)))
            }
            "DeployKekRotation" => {
                let approved = keks::approve(daemon, "approver", &rotation).await;
                approved.expect("ApproveKekRotation");
                let deploy = |rotation_id| DeployKekRotationRequest { rotation_id };
                case(&deploy(id)).or(&deploy(over))
            }
            "RejectKekRotation" => {
                let reject = |rotation_id| RejectKekRotationRequest {
                    rotation_id,
                    reason: "not today".into(),
                };
                case(&reject(id)).or(&reject(over))
            }
            _ => {
                let cancel = |rotation_id| CancelKekRotationRequest {
                    rotation_id,
                    reason: "not today".into(),
                };
                case(&cancel(id)).or(&cancel(over))
            }
        }
    }

    /// One good and one bad item.
    fn batch(&self, name: &str) -> Case {
        macro_rules! batch {
            ($batch:ident, $module:ident, $good:expr, $bad:expr) => {{
                let item = |(i, request)| $module::Item {
                    reference: format!("item {i}"),
                    request: Some(request),
                };
                let items = [$good, $bad].into_iter().enumerate().map(item).collect();
                case(&$batch { items }).batch()
            }};
        }
        match name {
            "BatchSign" => batch!(
                BatchSignRequest,
                batch_sign_request,
                sign("orders"),
                sign("tokens")
            ),
            "BatchVerify" => batch!(
                BatchVerifyRequest,
                batch_verify_request,
                self.verify("orders"),
                self.verify("vault")
            ),
            "BatchEncrypt" => batch!(
                BatchEncryptRequest,
                batch_encrypt_request,
                encrypt("vault"),
                encrypt("orders")
            ),
            "BatchDecrypt" => batch!(
                BatchDecryptRequest,
                batch_decrypt_request,
                self.decrypt(0),
                self.decrypt(1)
            ),
            _ => batch!(
                BatchRewrapRequest,
                batch_rewrap_request,
                self.rewrap(0),
                self.rewrap(1)
            ),
        }
    }

    async fn key(&self, name: &str) -> Case {
        let fresh = fresh("key");
        match name {
            "CreateKey" => case(&create(&fresh)).or(&create("orders")),
            "AdoptKey" => {
                // pkcs11-tool takes hex digits, the URI wants them escaped.
                let id = uuid::Uuid::now_v7().simple().to_string();
                let generate = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", &id];
                self.daemon.pkcs11_tool(&generate).await;
                let escaped: Vec<_> = (0..16).map(|i| &id[2 * i..2 * i + 2]).collect();
                let there = format!("%{}", escaped.join("%"));
                case(&adopt(&fresh, &there)).or(&adopt(&fresh, "%00%01"))
            }
            "GetKey" => case(&GetKeyRequest {
                tenant: "acme".into(),
                key: "orders".into(),
            }),
            "ListKeys" => case(&ListKeysRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            _ => {
                let update = |days: i64| UpdateKeyRequest {
                    tenant: "acme".into(),
                    key: "orders".into(),
                    rotation_period: Some(seconds(days * 86_400)),
                    ..Default::default()
                };
                case(&update(30)).or(&update(365))
            }
        }
    }

    async fn rotation(&self, name: &str) -> Case {
        let key = fresh("turn");
        let made = self
            .daemon
            .key("acme", &key, KeyPurpose::Signing, Algorithm::Es256);
        made.await;
        let rotate = |key: &str| RotateKeyRequest {
            tenant: "acme".into(),
            key: key.into(),
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        };
        if name == "RotateKey" {
            let other = fresh("open");
            let made = self
                .daemon
                .key("acme", &other, KeyPurpose::Signing, Algorithm::Es256);
            made.await;
            self.open(rotate(&other)).await;
            return case(&rotate(&key)).or(&rotate(&other));
        }
        let rotation = self.open(rotate(&key)).await;
        let id = rotation.id.clone();
        let approve = |plan_digest: String| ApproveRotationRequest {
            rotation_id: id.clone(),
            plan_digest,
        };
        let deploy = |id: &str| DeployRotationRequest {
            rotation_id: id.into(),
        };
        match name {
            "ApproveRotation" => case(&approve(rotation.plan_digest)).or(&approve("0".repeat(64))),
            "DeployRotation" => {
                self.soak(approve(rotation.plan_digest)).await;
                let other = fresh("early");
                let made = self
                    .daemon
                    .key("acme", &other, KeyPurpose::Signing, Algorithm::Es256);
                made.await;
                let early = self.open(rotate(&other)).await;
                case(&deploy(&id)).or(&deploy(&early.id))
            }
            "GetRotation" => case(&GetRotationRequest { rotation_id: id }),
            "RejectRotation" => {
                let reject = |rotation_id: &str| RejectRotationRequest {
                    rotation_id: rotation_id.into(),
                    reason: "not today".into(),
                };
                case(&reject(&id)).or(&reject(&self.cancelled().await))
            }
            "CancelRotation" => {
                let cancelled = self.cancelled().await;
                case(&cancel(&id)).or(&cancel(&cancelled))
            }
            _ => case(&ListRotationsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
        }
    }

    /// A new key with an open rotation.
    async fn rotating(&self) -> Rotation {
        let name = fresh("turn");
        let made = self
            .daemon
            .key("acme", &name, KeyPurpose::Signing, Algorithm::Es256);
        made.await;
        self.open(RotateKeyRequest {
            tenant: "acme".into(),
            key: name,
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        })
        .await
    }

    /// About the successor in a rotation: that is not in use, so nothing needs to be switched.
    async fn incident(&self, name: &str) -> Case {
        let declare = |rotation: &Rotation| DeclareCompromiseRequest {
            tenant: "acme".into(),
            key: rotation.key_id.clone(),
            kid: rotation.new_kid.clone(),
            reason: "it was in a log".into(),
        };
        let officer = self.daemon.actor("officer");
        let declared = async || {
            let request = declare(&self.rotating().await);
            let mut incidents = officer.incidents();
            let answer = incidents.declare_compromise(request.clone()).await;
            let incident = answer.expect("DeclareCompromise").into_inner();
            (request, incident.incident.expect("an incident").id)
        };
        let (again, id) = declared().await;
        match name {
            "DeclareCompromise" => case(&declare(&self.rotating().await)).or(&again),
            "GetIncident" => case(&GetIncidentRequest { incident_id: id }),
            "ListIncidents" => case(&ListIncidentsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            "AddIncidentNote" => {
                let (_, closed) = declared().await;
                let close = format!("UPDATE incidents SET state = 'CLOSED' WHERE id = '{closed}'");
                self.daemon.execute(&close).await;
                let note = |incident_id| AddIncidentNoteRequest {
                    incident_id,
                    text: "found it".into(),
                };
                case(&note(id)).or(&note(closed))
            }
            _ => {
                let close = |postmortem: &str| CloseIncidentRequest {
                    incident_id: id.clone(),
                    postmortem: postmortem.into(),
                };
                case(&close("PM-1")).or(&close(""))
            }
        }
    }

    async fn revocation(&self) -> Case {
        let rotation = self.rotating().await;
        let approve = ApproveRotationRequest {
            rotation_id: rotation.id.clone(),
            plan_digest: rotation.plan_digest.clone(),
        };
        self.soak(approve).await;
        let deploy = DeployRotationRequest {
            rotation_id: rotation.id.clone(),
        };
        let deployer = self.daemon.actor("deployer");
        let deployed = deployer.rotations().deploy_rotation(deploy).await;
        deployed.expect("DeployRotation");
        let revoke = |kid: &str| RevokeKeyVersionRequest {
            tenant: "acme".into(),
            key: rotation.key_id.clone(),
            kid: kid.into(),
            reason: "nobody needs it".into(),
        };
        case(&revoke(&rotation.old_kid)).or(&revoke(&rotation.new_kid))
    }

    /// A rotation that is over.
    async fn cancelled(&self) -> String {
        let key = fresh("over");
        let made = self
            .daemon
            .key("acme", &key, KeyPurpose::Signing, Algorithm::Es256);
        made.await;
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key,
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        };
        let id = self.open(request).await.id;
        let issuer = self.daemon.actor("issuer");
        let over = issuer.rotations().cancel_rotation(cancel(&id)).await;
        over.expect("CancelRotation");
        id
    }

    async fn policy(&self) -> Case {
        let approve = |key: &str, revision| ApproveRotationPolicyRequest {
            tenant: "acme".into(),
            key: key.into(),
            revision,
        };
        let key = fresh("automatic");
        let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
        let made = self.daemon.key("acme", &key, purpose, algorithm).await;
        // "orders" rotates MANUAL.
        case(&approve(&key, made.revision)).or(&approve("orders", 1))
    }

    async fn destruction(&self, name: &str) -> Case {
        let (key, kid) = self.retired().await;
        let destroy = |kid: &str| DestroyKeyVersionRequest {
            tenant: "acme".into(),
            key: key.name.clone(),
            kid: kid.into(),
            reason: "nobody needs it".into(),
        };
        if name == "DestroyKeyVersion" {
            return case(&destroy(&kid)).or(&destroy(&key.active_kid));
        }
        let issuer = self.daemon.actor("issuer");
        let asked = issuer.keys().destroy_key_version(destroy(&kid)).await;
        let asked = asked.expect("DestroyKeyVersion").into_inner().destruction;
        let id = asked.expect("a destruction").id;
        let cancel = |id: &str| CancelKeyDestructionRequest {
            destruction_id: id.into(),
            reason: "it is needed after all".into(),
        };
        match name {
            "ApproveKeyDestruction" => {
                let approve = |kid: &str| ApproveKeyDestructionRequest {
                    destruction_id: id.clone(),
                    kid: kid.into(),
                };
                case(&approve(&kid)).or(&approve(&key.active_kid))
            }
            "CancelKeyDestruction" => {
                let other = self.another(destroy, &kid, &id).await;
                case(&cancel(&other)).or(&cancel(&id))
            }
            _ => case(&ListKeyDestructionsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
        }
    }

    /// Cancels the destruction `id` and opens another one of the same version.
    async fn another(
        &self,
        destroy: impl Fn(&str) -> DestroyKeyVersionRequest,
        kid: &str,
        id: &str,
    ) -> String {
        let issuer = self.daemon.actor("issuer");
        let cancel = CancelKeyDestructionRequest {
            destruction_id: id.into(),
            reason: "a mistake".into(),
        };
        let cancelled = issuer.keys().cancel_key_destruction(cancel).await;
        cancelled.expect("CancelKeyDestruction");
        let asked = issuer.keys().destroy_key_version(destroy(kid)).await;
        let asked = asked.expect("DestroyKeyVersion").into_inner().destruction;
        asked.expect("a destruction").id
    }

    /// A key with an ACTIVE version and a RETIRED one that was never used; the kid of the RETIRED one.
    async fn retired(&self) -> (Key, String) {
        let name = fresh("old");
        let made = self
            .daemon
            .key("acme", &name, KeyPurpose::Signing, Algorithm::Es256);
        let key = made.await;
        let rotate = RotateKeyRequest {
            tenant: "acme".into(),
            key: name,
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        };
        let rotation = self.open(rotate).await;
        self.daemon.withdraw(&rotation).await;
        (key, rotation.new_kid)
    }

    async fn open(&self, request: RotateKeyRequest) -> Rotation {
        let issuer = self.daemon.actor("issuer");
        let opened = issuer.rotations().rotate_key(request).await;
        let rotation = opened.expect("RotateKey").into_inner().rotation;
        rotation.expect("a rotation")
    }

    /// Approves, and waits until it may be deployed.
    async fn soak(&self, request: ApproveRotationRequest) {
        let approver = self.daemon.actor("approver");
        let approved = approver.rotations().approve_rotation(request).await;
        let rotation = approved.expect("ApproveRotation").into_inner().rotation;
        let due = rotation.and_then(|r| r.deployable_time).expect("a time");
        let until = Instant::now() + PATIENCE;
        let now = || claviger::clock::Clock::System.now().micros();
        while now() < due.seconds * 1_000_000 + i64::from(due.nanos) / 1000 {
            assert!(Instant::now() < until, "it soaks for ever");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn people(&self, name: &str) -> Case {
        let fresh = fresh("new");
        let tenant = |name: &str| CreateTenantRequest { name: name.into() };
        let principal = |name: &str| CreatePrincipalRequest {
            tenant: "acme".into(),
            name: name.into(),
            r#type: PrincipalType::Service.into(),
            identities: vec![format!("spiffe://claviger.test/{fresh}")],
        };
        match name {
            "CreateTenant" => case(&tenant(&fresh)).or(&tenant("acme")),
            "ListTenants" => case(&ListTenantsRequest::default()),
            "CreatePrincipal" => case(&principal(&fresh)).or(&principal("service")),
            "GrantRole" | "RevokeRole" => {
                let admin = self.daemon.actor("admin");
                let made = admin.principals().create_principal(principal(&fresh)).await;
                let made = made.expect("CreatePrincipal").into_inner().principal;
                let id = made.expect("a principal").id;
                let grant = |role: &str| GrantRoleRequest {
                    principal_id: id.clone(),
                    role: role.into(),
                    tenant: "acme".into(),
                };
                let revoke = |role: &str| RevokeRoleRequest {
                    principal_id: id.clone(),
                    role: role.into(),
                    tenant: "acme".into(),
                };
                let held = admin.principals().grant_role(grant("auditor")).await;
                held.expect("GrantRole");
                match name {
                    "GrantRole" => case(&grant("crypto-user")).or(&grant("auditor")),
                    _ => case(&revoke("auditor")).or(&revoke("crypto-user")),
                }
            }
            _ => case(&ListPrincipalsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
        }
    }

    fn verify(&self, key: &str) -> VerifyRequest {
        VerifyRequest {
            tenant: "acme".into(),
            key: key.into(),
            kid: String::new(),
            payload: Some(verify_request::Payload::Message("order".into())),
            signature: self.signature.clone(),
        }
    }

    fn decrypt(&self, cut: usize) -> DecryptRequest {
        DecryptRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            ciphertext: self.ciphertext.slice(..self.ciphertext.len() - cut),
            aad: BTreeMap::new(),
        }
    }

    fn rewrap(&self, cut: usize) -> RewrapRequest {
        RewrapRequest {
            tenant: "acme".into(),
            key: "vault".into(),
            ciphertext: self.ciphertext.slice(..self.ciphertext.len() - cut),
            aad: BTreeMap::new(),
        }
    }
}

fn cancel(rotation_id: &str) -> CancelRotationRequest {
    CancelRotationRequest {
        rotation_id: rotation_id.into(),
        reason: "asked for by mistake".into(),
    }
}

/// A name that is nobody's yet.
fn fresh(what: &str) -> String {
    format!("{what}-{}", uuid::Uuid::now_v7().simple())
}

const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn sign(key: &str) -> SignRequest {
    SignRequest {
        tenant: "acme".into(),
        key: key.into(),
        payload: Some(sign_request::Payload::Message("order".into())),
    }
}

fn encrypt(key: &str) -> EncryptRequest {
    EncryptRequest {
        tenant: "acme".into(),
        key: key.into(),
        plaintext: "order".into(),
        aad: BTreeMap::new(),
    }
}

fn issue(ttl: i64) -> IssueTokenRequest {
    IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        audience: vec!["api".into()],
        ttl: Some(seconds(ttl)),
        ..Default::default()
    }
}

fn create(name: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        ..Default::default()
    }
}

fn adopt(name: &str, id: &str) -> AdoptKeyRequest {
    AdoptKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        uri: format!("pkcs11:token={TOKEN};id={id};type=private"),
        owner: "team-e2e".into(),
        ..Default::default()
    }
}

/// Sends a request as it is and returns the answer as it is.
pub async fn send(actor: &Actor, path: &'static str, request: &Bytes) -> Result<Bytes, Status> {
    send_with(actor, path, request, &[]).await
}

/// As `send`, with these idempotency keys.
pub async fn send_with(
    actor: &Actor,
    path: &'static str,
    request: &Bytes,
    keys: &[&str],
) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(actor.channel.clone());
    grpc.ready().await.expect("a connection");
    let path = http::uri::PathAndQuery::from_static(path);
    let mut request = Request::new(request.clone());
    for key in keys {
        let key = key.parse().expect("metadata");
        request.metadata_mut().append("idempotency-key", key);
    }
    let answer = grpc.unary(request, path, Raw).await?;
    Ok(answer.into_inner())
}

/// A codec that leaves bytes alone.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
