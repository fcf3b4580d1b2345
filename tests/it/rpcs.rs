//! One valid request for every RPC, and one that fails, as bytes: for tests that walk the table of all RPCs.
//!
//! An RPC without a case here fails every such test, so that a new one cannot be forgotten.

mod accounts;
mod clients;
mod credential_rotations;
mod credentials;
mod leases;
mod usage;

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use claviger::grpc::proto::{
    AddIncidentNoteRequest, AdoptKeyRequest, Algorithm, ApproveKekRotationRequest,
    ApproveKeyDestructionRequest, ApproveRotationPolicyRequest, ApproveRotationRequest,
    ApproveTenantDestructionRequest, BatchDecryptRequest, BatchEncryptRequest, BatchRewrapRequest,
    BatchSignRequest, BatchVerifyRequest, CancelKekRotationRequest, CancelKeyDestructionRequest,
    CancelRotationRequest, CancelTenantDestructionRequest, CloseIncidentRequest, ComputeMacRequest,
    CreateKeyRequest, CreatePrincipalRequest, CreateTenantRequest, DeclareCompromiseRequest,
    DecryptDataKeyRequest, DecryptRequest, DecryptStreamRequest, DeployKekRotationRequest,
    DeployRotationRequest, DestroyKeyVersionRequest, DestroyTenantKeysRequest, EncryptRequest,
    EncryptStreamRequest, GenerateDataKeyRequest, GenerateDataKeyWithoutPlaintextRequest,
    GenerateRandomRequest, GetIncidentRequest, GetJwksRequest, GetKekRotationRequest,
    GetKeyRequest, GetKeyVersionUsageRequest, GetRotationRequest, GetTenantDestructionRequest,
    GrantRoleRequest, ImportKeyRequest, IssueTokenRequest, Key, KeyPurpose, ListAuditEventsRequest,
    ListIncidentsRequest, ListKekRotationsRequest, ListKeksRequest, ListKeyDestructionsRequest,
    ListKeysRequest, ListPrincipalsRequest, ListRotationsRequest, ListTenantDestructionsRequest,
    ListTenantsRequest, PrincipalType, RejectKekRotationRequest, RejectRotationRequest,
    RevokeKeyVersionRequest, RevokeRoleRequest, RevokeTokenRequest, RewrapRequest,
    RotateKekRequest, RotateKeyRequest, Rotation, SignRequest, UpdateKeyRequest,
    VerifyAuditRequest, VerifyMacRequest, VerifyRequest, VerifyTokenRequest, VerifyWebhookRequest,
    WebhookScheme, batch_decrypt_request, batch_encrypt_request, batch_rewrap_request,
    batch_sign_request, batch_verify_request, decrypt_stream_request, encrypt_stream_request,
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
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, TOKEN},
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
    /// The bytes are those of several messages, each preceded by its length.
    pub is_stream: bool,
}

fn case(valid: &impl Message) -> Case {
    Case {
        valid: valid.encode_to_vec().into(),
        failing: None,
        items: 1,
        is_stream: false,
    }
}

fn stream<M: Message>(valid: &[M], failing: &[M]) -> Case {
    let bytes = |messages: &[M]| {
        let delimited = messages.iter().map(Message::encode_length_delimited_to_vec);
        Bytes::from(delimited.collect::<Vec<_>>().concat())
    };
    Case {
        valid: bytes(valid),
        failing: Some(bytes(failing)),
        items: 1,
        is_stream: true,
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

/// A daemon that could prove the destruction of a tenant's keys. Its one checkpoint of the audit log is written, so that
/// no row comes that nobody asked for.
async fn with_proof_key(engine: Engine) -> Daemon {
    let mut daemon = Setup::new(engine).provision().await;
    let file = daemon.path("checkpoints");
    daemon.edit_config(|text| {
        format!(
            "{text}\n[audit.checkpoint]\nkey = \"proofs\"\nfile = \"{}\"\ninterval_seconds = 86400\n\
             [vault.rotation]\nthree_roles = [{{ provider = \"oanda\" }}]\n",
            file.display()
        )
    });
    daemon.up().await.expect("the daemon starts");
    let (purpose, algorithm) = (KeyPurpose::Signing, Algorithm::Es256);
    daemon.key("system", "proofs", purpose, algorithm).await;
    let written =
        "SELECT seq FROM audit_events WHERE action = 'CheckpointAudit' AND outcome = 'success'";
    let until = Instant::now() + PATIENCE;
    while daemon.rows(written).await.is_empty() {
        assert!(Instant::now() < until, "no checkpoint is written");
        sleep(Duration::from_millis(50)).await;
    }
    daemon
}

impl World {
    pub async fn new(engine: Engine) -> Self {
        let daemon = with_proof_key(engine).await;
        let keys = [
            ("orders", KeyPurpose::Signing, Algorithm::Es256),
            ("tokens", KeyPurpose::TokenSigning, Algorithm::Es256),
            ("vault", KeyPurpose::Encryption, Algorithm::A256gcm),
            ("hooks", KeyPurpose::Mac, Algorithm::Hs256),
        ];
        for (name, purpose, algorithm) in keys {
            daemon.key("acme", name, purpose, algorithm).await;
        }
        let service = daemon.actor("service");
        let signed = service.crypto().sign(sign("orders")).await.expect("Sign");
        let sealed = service.crypto().encrypt(encrypt("vault")).await;
        let issued = service.tokens().issue_token(issue(60)).await;
        let world = Self {
            signature: signed.into_inner().signature,
            ciphertext: sealed.expect("Encrypt").into_inner().ciphertext,
            token: issued.expect("IssueToken").into_inner().token,
            daemon,
        };
        // The first one makes the pepper, which is a change of its own.
        world.api_key().await;
        // Likewise the first credential.
        world.entitle().await;
        world.credential().await;
        world
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
            "EncryptStream" => stream(&encrypt_stream("vault"), &encrypt_stream("orders")),
            "DecryptStream" => {
                // Cut within the header: it fails before it has begun.
                let all = self.ciphertext.len();
                stream(&self.decrypt_stream(all), &self.decrypt_stream(20))
            }
            "BatchSign" | "BatchVerify" | "BatchEncrypt" | "BatchDecrypt" | "BatchRewrap" => {
                self.batch(name)
            }
            "IssueToken" => case(&issue(60)).or(&issue(1_000_000)),
            "VerifyToken" => case(&VerifyTokenRequest {
                tenant: "acme".into(),
                token: self.token.clone(),
                audience: "api".into(),
                required_scopes: Vec::new(),
                ..Default::default()
            }),
            "GenerateDataKey"
            | "GenerateDataKeyWithoutPlaintext"
            | "DecryptDataKey"
            | "GenerateRandom" => self.data_key(name).await,
            "ComputeMac" | "VerifyMac" | "VerifyWebhook" => self.mac(name).await,
            "ImportKey" => case(&import(&fresh("import"))).or(&import("orders")),
            "GetJwks" => case(&GetJwksRequest {}),
            "CreateKey" | "AdoptKey" | "GetKey" | "ListKeys" | "UpdateKey" => self.key(name).await,
            "ApproveRotationPolicy" => self.policy().await,
            "RotateKey" | "ApproveRotation" | "DeployRotation" | "GetRotation"
            | "ListRotations" | "RejectRotation" | "CancelRotation" => self.rotation(name).await,
            "DestroyKeyVersion"
            | "ApproveKeyDestruction"
            | "CancelKeyDestruction"
            | "ListKeyDestructions" => self.destruction(name).await,
            "DestroyTenantKeys"
            | "ApproveTenantDestruction"
            | "CancelTenantDestruction"
            | "GetTenantDestruction"
            | "ListTenantDestructions" => self.tenant_destruction(name).await,
            "GetKeyVersionUsage" => case(&GetKeyVersionUsageRequest {
                tenant: "acme".into(),
                key: "vault".into(),
            }),
            "CreateTenant" | "ListTenants" | "CreatePrincipal" | "GrantRole" | "RevokeRole"
            | "ListPrincipals" => self.people(name).await,
            "GetPrincipal" | "UpdatePrincipal" | "SuspendPrincipal" | "ResumePrincipal" => {
                self.account_case(name).await
            }
            "CreateApiKey" | "GetApiKey" | "ListApiKeys" | "RotateApiKey" | "RevokeApiKey"
            | "ListPeppers" => self.api_key_case(name).await,
            "CreateClient" | "GetClient" | "UpdateClient" | "ListClients" => {
                self.client_case(name).await
            }
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
            "ListKeks" | "RotateKek" | "ApproveKekRotation" | "DeployKekRotation"
            | "RejectKekRotation" | "CancelKekRotation" | "GetKekRotation" | "ListKekRotations" => {
                self.kek(name).await
            }
            "RecordUsage" | "AcquireUsage" | "GetUsageReport" | "SetLimit" | "ListLimits"
            | "DeleteLimit" | "ListAlerts" | "AckAlert" | "ListDeliveries" | "RetryDelivery" => {
                self.usage_case(name).await
            }
            "VerifyAudit" => case(&VerifyAuditRequest::default()),
            "PutCredential"
            | "GetCredential"
            | "RevealCredential"
            | "ListCredentials"
            | "DeleteCredential"
            | "ValidateCredential"
            | "ImportCredentials"
            | "ListProviders"
            | "GetCredentialReport" => self.credential_case(name).await,
            "LeaseCredential" | "RenewLease" | "ReturnLease" | "RevokeLease" | "ListLeases"
            | "WatchCredentials" => self.lease_case(name).await,
            "StageCredential"
            | "ApproveCredentialRotation"
            | "PromoteCredential"
            | "CompleteCredentialRotation"
            | "RollBackCredential"
            | "SetCredentialRotation"
            | "GetCredentialRotation"
            | "ListCredentialRotations"
            | "ListDueCredentials" => self.credential_rotation_case(name).await,
            unknown => panic!("RPC {unknown} has no case in tests/it/rpcs.rs; add one"),
        }
    }

    async fn data_key(&self, name: &str) -> Case {
        let generate = |key: &str| GenerateDataKeyRequest {
            tenant: "acme".into(),
            key: key.into(),
            ..Default::default()
        };
        match name {
            "GenerateDataKey" => case(&generate("vault")).or(&generate("orders")),
            "GenerateDataKeyWithoutPlaintext" => {
                let generate = |key: &str| GenerateDataKeyWithoutPlaintextRequest {
                    tenant: "acme".into(),
                    key: key.into(),
                    ..Default::default()
                };
                case(&generate("vault")).or(&generate("orders"))
            }
            "DecryptDataKey" => {
                let mut service = self.daemon.actor("service").data_keys();
                let made = service.generate_data_key(generate("vault")).await;
                let wrapped = made.expect("GenerateDataKey").into_inner().wrapped;
                let decrypt = |cut: usize| DecryptDataKeyRequest {
                    tenant: "acme".into(),
                    key: "vault".into(),
                    wrapped: wrapped.slice(..wrapped.len() - cut),
                    aad: BTreeMap::new(),
                };
                case(&decrypt(0)).or(&decrypt(1))
            }
            _ => {
                let random = |length| GenerateRandomRequest { length };
                case(&random(32)).or(&random(0))
            }
        }
    }

    async fn mac(&self, name: &str) -> Case {
        let compute = |key: &str, message: String| ComputeMacRequest {
            tenant: "acme".into(),
            key: key.into(),
            message: message.into(),
        };
        let mac = async |message: String| {
            let mut service = self.daemon.actor("service").macs();
            let made = service.compute_mac(compute("hooks", message)).await;
            made.expect("ComputeMac").into_inner().mac
        };
        match name {
            "ComputeMac" => {
                case(&compute("hooks", "order".into())).or(&compute("vault", "order".into()))
            }
            "VerifyMac" => {
                let mac = mac("order".into()).await;
                let verify = |key: &str| VerifyMacRequest {
                    tenant: "acme".into(),
                    key: key.into(),
                    message: "order".into(),
                    mac: mac.clone(),
                    kid: String::new(),
                };
                case(&verify("hooks")).or(&verify("vault"))
            }
            _ => {
                let timestamp = claviger::clock::Clock::System.now().seconds();
                let mac = mac(format!("{timestamp}.paid")).await;
                let event_id = fresh("evt");
                let verify = |key: &str| VerifyWebhookRequest {
                    tenant: "acme".into(),
                    key: key.into(),
                    scheme: WebhookScheme::TimestampBody.into(),
                    body: "paid".into(),
                    timestamp,
                    event_id: event_id.clone(),
                    macs: vec![mac.clone()],
                    tolerance: None,
                };
                case(&verify("hooks")).or(&verify("vault"))
            }
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

    /// Nothing is destroyed: the waiting period is 30 days.
    async fn tenant_destruction(&self, name: &str) -> Case {
        let destroy = |tenant: &str| DestroyTenantKeysRequest {
            tenant: tenant.into(),
            reason: "the contract has ended".into(),
        };
        let cancel = |id: &str| CancelTenantDestructionRequest {
            destruction_id: id.into(),
            reason: "they came back".into(),
        };
        let mut issuer = self.daemon.actor("issuer").erasures();
        let open = "SELECT id FROM tenant_destructions WHERE state IN ('REQUESTED', 'SCHEDULED')";
        for row in self.daemon.rows(open).await {
            let cancelled = issuer.cancel_tenant_destruction(cancel(&row[0])).await;
            cancelled.expect("CancelTenantDestruction");
        }
        if name == "DestroyTenantKeys" {
            return case(&destroy("acme")).or(&destroy("system"));
        }
        let asked = issuer.destroy_tenant_keys(destroy("acme")).await;
        let asked = asked.expect("DestroyTenantKeys").into_inner().destruction;
        let id = asked.expect("a destruction").id;
        let approve = |tenant: &str| ApproveTenantDestructionRequest {
            destruction_id: id.clone(),
            tenant: tenant.into(),
        };
        match name {
            "ApproveTenantDestruction" => case(&approve("acme")).or(&approve("globex")),
            "CancelTenantDestruction" => {
                let cancelled = issuer.cancel_tenant_destruction(cancel(&id)).await;
                cancelled.expect("CancelTenantDestruction");
                let asked = issuer.destroy_tenant_keys(destroy("acme")).await;
                let asked = asked.expect("DestroyTenantKeys").into_inner().destruction;
                let other = asked.expect("a destruction").id;
                case(&cancel(&other)).or(&cancel(&id))
            }
            "GetTenantDestruction" => case(&GetTenantDestructionRequest { destruction_id: id }),
            _ => case(&ListTenantDestructionsRequest {
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
            ..Default::default()
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

    fn decrypt_stream(&self, len: usize) -> [DecryptStreamRequest; 2] {
        use decrypt_stream_request::{Part, Start};
        let start = Start {
            tenant: "acme".into(),
            key: "vault".into(),
            aad: BTreeMap::new(),
        };
        [Part::Start(start), Part::Data(self.ciphertext.slice(..len))]
            .map(|part| DecryptStreamRequest { part: Some(part) })
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

fn encrypt_stream(key: &str) -> [EncryptStreamRequest; 2] {
    use encrypt_stream_request::{Part, Start};
    let start = Start {
        tenant: "acme".into(),
        key: key.into(),
        aad: BTreeMap::new(),
    };
    [Part::Start(start), Part::Data("order".into())]
        .map(|part| EncryptStreamRequest { part: Some(part) })
}

pub fn issue(ttl: i64) -> IssueTokenRequest {
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

fn import(name: &str) -> ImportKeyRequest {
    ImportKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        algorithm: Algorithm::Hs256.into(),
        secret: "chosen by the payment provider".into(),
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

/// Sends a request as it is and returns the answer as it is; of a stream, all messages, one after the other.
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
    if path.path().ends_with("Stream") {
        let messages = futures_util::stream::iter(messages(request));
        let answer = grpc.streaming(Request::new(messages), path, Raw).await?;
        let mut answers = answer.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.extend_from_slice(&answer);
        }
        return Ok(all.into());
    }
    let mut request = Request::new(request.clone());
    for key in keys {
        let key = key.parse().expect("metadata");
        request.metadata_mut().append("idempotency-key", key);
    }
    let answer = grpc.unary(request, path, Raw).await?;
    Ok(answer.into_inner())
}

/// The messages of a stream.
fn messages(bytes: &Bytes) -> Vec<Bytes> {
    let mut bytes = bytes.clone();
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = prost::decode_length_delimiter(&mut bytes).expect("a length");
        messages.push(bytes.split_to(length));
    }
    messages
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
