//! R-ACL-1, R-ACL-3: who may do what, by the default policies; and what happens to policies that are wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    fs,
    path::PathBuf,
};

use claviger::{
    authz::{Authz, Decision, Policies, PolicyError},
    model::{
        Action, ApiKeyId, ClientId, CredentialId, DestructionId, Entity, Grant, IncidentId,
        KekRotationId, KeyId, Principal, PrincipalId, PrincipalKind, PrincipalState, Purpose,
        Resource, Role, RotationId, Scope, Scopes, TenantDestructionId, TenantName, Timestamp,
    },
};

type TestResult = Result<(), Box<dyn StdError>>;

/// What each role may do, written by hand. Everybody may also GetJwks.
const EXPECTED: [(Role, &str); 9] = [
    (
        Role::KeyIssuer,
        "CreateKey AdoptKey ImportKey UpdateKey RotateKey CancelRotation RotateKek CancelKekRotation DestroyKeyVersion \
         CancelKeyDestruction DestroyTenantKeys CancelTenantDestruction GetKey ListKeys GetKeyVersionUsage GetRotation \
         ListRotations ListKeyDestructions GetTenantDestruction ListTenantDestructions ListKeks GetKekRotation \
         ListKekRotations GetIncident ListIncidents",
    ),
    (
        Role::KeyApprover,
        "ApproveRotation RejectRotation ApproveRotationPolicy ApproveKekRotation RejectKekRotation ApproveKeyDestruction \
         CancelKeyDestruction ApproveTenantDestruction CancelTenantDestruction GetKey ListKeys GetKeyVersionUsage \
         GetRotation ListRotations ListKeyDestructions GetTenantDestruction ListTenantDestructions ListKeks \
         GetKekRotation ListKekRotations GetIncident ListIncidents",
    ),
    (
        Role::KeyDeployer,
        "DeployRotation DeployKekRotation GetKey ListKeys GetKeyVersionUsage GetRotation ListRotations \
         ListKeyDestructions GetTenantDestruction ListTenantDestructions ListKeks GetKekRotation ListKekRotations \
         GetIncident ListIncidents",
    ),
    (
        Role::SecurityOfficer,
        "DeclareCompromise AddIncidentNote CloseIncident RevokeToken RevokeKeyVersion RejectRotation RejectKekRotation \
         CancelKeyDestruction CancelTenantDestruction GetKey ListKeys GetKeyVersionUsage GetRotation ListRotations \
         ListKeyDestructions GetTenantDestruction ListTenantDestructions ListKeks GetKekRotation ListKekRotations \
         GetIncident ListIncidents ListAuditEvents VerifyAudit SuspendPrincipal RevokeApiKey GetPrincipal \
         ListPrincipals GetApiKey ListApiKeys",
    ),
    (
        Role::PrincipalAdmin,
        "CreateTenant CreatePrincipal UpdatePrincipal SuspendPrincipal ResumePrincipal GrantRole RevokeRole GetPrincipal \
         ListPrincipals ListTenants CreateApiKey RotateApiKey RevokeApiKey GetApiKey ListApiKeys ListPeppers \
         CreateClient UpdateClient GetClient ListClients",
    ),
    (
        Role::Auditor,
        "GetKey ListKeys GetKeyVersionUsage GetRotation ListRotations ListKeyDestructions GetTenantDestruction \
         ListTenantDestructions ListKeks GetKekRotation ListKekRotations GetIncident ListIncidents ListAuditEvents \
         VerifyAudit GetPrincipal ListPrincipals ListTenants GetApiKey ListApiKeys ListPeppers GetClient ListClients \
         GetCredential ListCredentials GetCredentialReport ListProviders ListLeases WatchCredentials \
         GetCredentialRotation ListCredentialRotations ListDueCredentials",
    ),
    (
        Role::CredentialManager,
        "PutCredential GetCredential ListCredentials DeleteCredential ValidateCredential ImportCredentials \
         GetCredentialReport ListProviders RevokeLease ListLeases StageCredential PromoteCredential \
         CompleteCredentialRotation RollBackCredential SetCredentialRotation GetCredentialRotation \
         ListCredentialRotations ListDueCredentials",
    ),
    (Role::TokenIssuer, "IssueToken VerifyToken GetKey"),
    (
        Role::CryptoUser,
        "Sign Verify Encrypt Decrypt Rewrap GenerateDataKey GenerateDataKeyWithoutPlaintext DecryptDataKey ComputeMac \
         VerifyMac VerifyWebhook GenerateRandom VerifyToken GetKey ListKeys GetKeyVersionUsage",
    ),
];
/// As EXPECTED: usage, limits and alerts.
const USAGE: [(Role, &str); 9] = [
    (Role::KeyIssuer, ""),
    (Role::KeyApprover, ""),
    (Role::KeyDeployer, ""),
    (
        Role::SecurityOfficer,
        "ListAlerts AckAlert ListDeliveries RetryDelivery",
    ),
    (
        Role::PrincipalAdmin,
        "GetUsageReport SetLimit ListLimits DeleteLimit",
    ),
    (
        Role::Auditor,
        "GetUsageReport ListLimits ListAlerts ListDeliveries",
    ),
    (
        Role::CredentialManager,
        "GetUsageReport SetLimit ListLimits DeleteLimit ListAlerts AckAlert ListDeliveries RetryDelivery",
    ),
    (Role::TokenIssuer, ""),
    (Role::CryptoUser, "RecordUsage AcquireUsage"),
];
const EVERYBODY: &str = "GetJwks GetMetadata";
/// What everybody may do in the tenant that is their home, without any role.
const AT_HOME: &str = "IssueClientToken IntrospectToken RevokeOwnToken ListProviders";
/// What `can.use_users` gives for what is one's own.
const OWN_CREDENTIALS: &str = "PutCredential GetCredential RevealCredential ListCredentials DeleteCredential \
     ValidateCredential GetCredentialReport LeaseCredential RenewLease ReturnLease RevokeLease ListLeases \
     WatchCredentials StageCredential PromoteCredential CompleteCredentialRotation RollBackCredential \
     GetCredentialRotation ListCredentialRotations ListDueCredentials";
/// What `can.manage_users` gives in the home tenant.
const USERS_CREDENTIALS: &str = "PutCredential GetCredential ListCredentials DeleteCredential ValidateCredential \
     ImportCredentials GetCredentialReport RevokeLease ListLeases StageCredential PromoteCredential \
     CompleteCredentialRotation RollBackCredential SetCredentialRotation GetCredentialRotation \
         ListCredentialRotations ListDueCredentials";
/// What `can.lease_credentials` gives in the home tenant.
const LEASES: &str = "LeaseCredential RenewLease ReturnLease WatchCredentials";
/// What jobs of the daemon may do in every tenant, whatever their roles.
const JOBS: &str = "RotateKey ApproveRotation DeployRotation CompleteRotation ExpireRotation RetireKeyVersion KeepStandby \
     SwitchKey DestroyMaterial SettleIntent CheckpointAudit PruneAudit RewrapDataKeys CompleteKekRotation ExpireKekRotation \
     DestroyTenantMaterial CreatePepper ExpireApiKey CreateCredentialKey RewrapCredentials StageCredential PromoteCredential \
     CompleteCredentialRotation RollBackCredential";
/// Asked of the system tenant only.
const WHOLE_INSTALLATION: [&str; 7] = [
    "CreateTenant",
    "ListTenants",
    "VerifyAudit",
    "RotateKek",
    "ListKeks",
    "ListKekRotations",
    "ListPeppers",
];

fn tenant(name: &str) -> TenantName {
    name.parse().expect("tenant")
}

fn principal(kind: PrincipalKind, grants: &[(Role, &str)]) -> Principal {
    let grants = grants.iter().map(|(role, scope)| Grant {
        role: *role,
        scope: scope.parse::<Scope>().expect("scope"),
    });
    Principal {
        id: PrincipalId::random(),
        tenant: tenant("acme"),
        name: "somebody".parse().expect("name"),
        kind,
        owner: String::new(),
        state: PrincipalState::Active,
        scopes: Scopes::default(),
        identities: Vec::new(),
        grants: grants.collect(),
        created_at: Timestamp::default(),
    }
}

fn user(grants: &[(Role, &str)]) -> Principal {
    principal(PrincipalKind::User, grants)
}

fn key(tenant_name: &str) -> Resource {
    Resource {
        tenant: tenant(tenant_name),
        entity: Entity::Key {
            id: KeyId::random(),
            purpose: Purpose::Signing,
        },
    }
}

fn credential(owner: PrincipalId) -> Entity {
    Entity::Credential {
        id: CredentialId::random(),
        owner,
        provider: "openai".parse().expect("a provider"),
    }
}

/// One thing of every kind in a tenant.
fn things(name: &str) -> Vec<Resource> {
    let entities = [
        Entity::UnknownKey("jwt".into()),
        Entity::Rotation(RotationId::random()),
        Entity::Incident(IncidentId::random()),
        Entity::Destruction(DestructionId::random()),
        Entity::KekRotation(KekRotationId::random()),
        Entity::TenantDestruction(TenantDestructionId::random()),
        Entity::Principal(PrincipalId::random()),
        Entity::ApiKey {
            id: ApiKeyId::random(),
            owner: PrincipalId::random(),
        },
        Entity::Client {
            id: ClientId::random(),
            owner: PrincipalId::random(),
        },
        Entity::Tenant,
        credential(PrincipalId::random()),
    ];
    let others = entities.into_iter().map(|entity| Resource {
        tenant: tenant(name),
        entity,
    });
    others.chain([key(name)]).collect()
}

/// The actions that are allowed on anything at all in a tenant.
fn allowed(authz: &Authz, who: &Principal, tenant: &str) -> BTreeSet<&'static str> {
    let things = things(tenant);
    let may = |action: Action| {
        let mut decisions = things.iter().map(|thing| authz.decide(who, action, thing));
        decisions.any(Decision::is_allowed)
    };
    let actions = Action::ALL.iter().filter(|action| may(**action));
    actions.map(|action| action.name()).collect()
}

fn words(text: &'static str) -> BTreeSet<&'static str> {
    text.split_whitespace().collect()
}

fn built_in() -> Result<Authz, PolicyError> {
    Ok(Authz::new(Policies::built_in()?))
}

#[test]
fn every_role_may_do_what_the_table_says_and_nothing_else() -> TestResult {
    let authz = built_in()?;
    let table: BTreeMap<Role, &str> = EXPECTED.into_iter().collect();
    let mut permitted_to_somebody = words(OWN_CREDENTIALS);
    let usage: BTreeMap<Role, &str> = USAGE.into_iter().collect();
    for kind in [
        PrincipalKind::User,
        PrincipalKind::Service,
        PrincipalKind::Job,
    ] {
        for role in Role::ALL {
            let mut expected = words(table[&role]);
            expected.extend(words(usage[&role]));
            expected.extend(words(EVERYBODY));
            if kind == PrincipalKind::Job {
                expected.extend(words(JOBS));
            }
            permitted_to_somebody.extend(expected.clone());

            let operator = principal(kind, &[(role, "system")]);
            assert_eq!(
                allowed(&authz, &operator, "system"),
                expected,
                "{role} in system"
            );

            // R-ACL-3: the same role in a tenant does not reach the whole installation.
            expected.retain(|action| !WHOLE_INSTALLATION.contains(action));
            expected.extend(words(AT_HOME));
            permitted_to_somebody.extend(expected.clone());
            let tenants_own = principal(kind, &[(role, "acme")]);
            assert_eq!(
                allowed(&authz, &tenants_own, "acme"),
                expected,
                "{role} in acme"
            );
        }
    }
    let all: BTreeSet<_> = Action::ALL.iter().map(|action| action.name()).collect();
    assert_eq!(
        permitted_to_somebody, all,
        "an action that nobody may do is dead"
    );
    Ok(())
}

// R-ACL-3
#[test]
fn roles_of_one_tenant_give_nothing_in_another() -> TestResult {
    let authz = built_in()?;
    let everything: Vec<_> = Role::ALL.iter().map(|role| (*role, "acme")).collect();
    for other in ["globex", "system", "acme2"] {
        assert_eq!(allowed(&authz, &user(&everything), other), words(EVERYBODY));
    }
    Ok(())
}

#[test]
fn without_a_role_only_public_keys_are_given() -> TestResult {
    // Being at home in a tenant is no role in it.
    let expected = &words(EVERYBODY) | &words(AT_HOME);
    assert_eq!(allowed(&built_in()?, &user(&[]), "acme"), expected);
    Ok(())
}

// R-OAUTH-2
#[test]
fn everybody_manages_the_api_keys_that_act_as_themselves_and_no_others() -> TestResult {
    let authz = built_in()?;
    let somebody = user(&[]);
    let of = |owner| {
        let key = Entity::ApiKey {
            id: ApiKeyId::random(),
            owner,
        };
        let account = Entity::Principal(owner);
        let things = [key, account].map(|entity| Resource {
            tenant: tenant("acme"),
            entity,
        });
        let may = |action: &&Action| {
            let mut decisions = things.iter().map(|t| authz.decide(&somebody, **action, t));
            decisions.any(Decision::is_allowed)
        };
        let names = Action::ALL.iter().filter(may).map(|action| action.name());
        names.collect::<BTreeSet<_>>()
    };
    let own = "CreateApiKey RotateApiKey RevokeApiKey GetApiKey ListApiKeys GetPrincipal";
    let own_usage = "GetUsageReport";
    assert_eq!(of(somebody.id), &words(own) | &words(own_usage));
    assert_eq!(of(PrincipalId::random()), BTreeSet::new());
    Ok(())
}

// R-CRED-2, R-ACL-3
#[test]
fn entitlements_count_at_home_and_nowhere_else() -> TestResult {
    let authz = built_in()?;
    let with = |scopes: &str| Principal {
        scopes: scopes.parse().expect("scopes"),
        ..user(&[])
    };
    let on = |who: &Principal, owner: PrincipalId, name: &str| {
        let things = [credential(owner), Entity::Principal(owner), Entity::Tenant];
        let things = things.map(|entity| Resource {
            tenant: tenant(name),
            entity,
        });
        let may = |action: &&Action| {
            let mut decisions = things.iter().map(|t| authz.decide(who, **action, t));
            let about = ["Credential", "Lease"].map(|word| action.name().contains(word));
            about.contains(&true) && decisions.any(Decision::is_allowed)
        };
        let names = Action::ALL.iter().filter(may).map(|action| action.name());
        names.collect::<BTreeSet<_>>()
    };
    let (own, none) = (words(OWN_CREDENTIALS), BTreeSet::new());
    let somebody = PrincipalId::random();

    let uses = with("can.use_users");
    assert_eq!(on(&uses, uses.id, "acme"), own);
    assert_eq!(on(&uses, somebody, "acme"), none);
    assert_eq!(on(&uses, uses.id, "globex"), none);

    let manages = with("can.manage_users");
    assert_eq!(on(&manages, somebody, "acme"), words(USERS_CREDENTIALS));
    assert_eq!(on(&manages, manages.id, "acme"), words(USERS_CREDENTIALS));
    assert_eq!(on(&manages, somebody, "globex"), none);

    let leases = with("can.lease_credentials");
    assert_eq!(on(&leases, somebody, "acme"), words(LEASES));
    assert_eq!(on(&leases, leases.id, "acme"), words(LEASES));
    assert_eq!(on(&leases, somebody, "globex"), none);

    assert_eq!(on(&with("orders.read"), somebody, "acme"), none);
    let nothing = with("");
    assert_eq!(on(&nothing, nothing.id, "acme"), none);
    // A role reveals nothing either.
    let manager = user(&[(Role::CredentialManager, "*")]);
    for name in ["acme", "globex"] {
        assert!(!on(&manager, manager.id, name).contains("RevealCredential"));
    }
    Ok(())
}

#[test]
fn a_role_in_every_tenant_holds_in_every_tenant() -> TestResult {
    let authz = built_in()?;
    let operator = user(&[(Role::Auditor, "*")]);
    for tenant in ["acme", "globex"] {
        assert!(allowed(&authz, &operator, tenant).contains("ListAuditEvents"));
    }
    Ok(())
}

#[test]
fn explanations_name_the_policies() -> TestResult {
    let authz = built_in()?;
    let ids = |who: &Principal, action, resource: &Resource| {
        let explanation = authz.explain(who, action, resource);
        assert!(explanation.errors.is_empty(), "{:?}", explanation.errors);
        assert_eq!(explanation.decision, authz.decide(who, action, resource));
        let policies = explanation.policies.into_iter();
        policies.map(|policy| policy.id).collect::<Vec<_>>()
    };
    let acme = Resource::tenant(tenant("acme"));
    let auditor = user(&[(Role::Auditor, "acme"), (Role::KeyIssuer, "acme")]);
    assert_eq!(
        ids(&auditor, Action::GetKey, &key("acme")),
        ["auditor", "key-issuer"]
    );
    assert_eq!(
        ids(&auditor, Action::VerifyAudit, &acme),
        ["whole-installation"]
    );
    assert_eq!(ids(&auditor, Action::Sign, &key("acme")), [""; 0]);

    let explanation = authz.explain(&auditor, Action::GetKey, &key("acme"));
    let source = &explanation.policies[0];
    assert_eq!(source.file, "policies/administration.cedar");
    let text = fs::read_to_string(&source.file)?;
    assert!(
        text.lines()
            .nth(source.line - 1)
            .is_some_and(|l| l.contains("@id(\"auditor\")"))
    );
    assert!(source.text.contains("Role::\"auditor\""));
    Ok(())
}

#[test]
fn a_question_that_does_not_fit_the_schema_is_denied() -> TestResult {
    let authz = built_in()?;
    let user = user(&[(Role::CryptoUser, "acme")]);
    let acme = Resource::tenant(tenant("acme"));
    assert_eq!(authz.decide(&user, Action::Sign, &acme), Decision::Deny);
    assert_eq!(authz.explain(&user, Action::Sign, &acme).errors.len(), 1);
    Ok(())
}

#[test]
fn revoked_roles_end_at_once_whatever_is_cached() -> TestResult {
    let authz = built_in()?;
    let mut service = user(&[(Role::CryptoUser, "acme")]);
    let key = key("acme");
    assert_eq!(authz.decide(&service, Action::Sign, &key), Decision::Allow);
    let before = service.clone();
    service.grants.clear();
    assert_eq!(authz.decide(&service, Action::Sign, &key), Decision::Deny);
    authz.forget();
    assert_eq!(authz.cached(), 0);
    // A request that was authenticated before the revocation ends after it; its answer serves nobody else.
    assert_eq!(authz.decide(&before, Action::Sign, &key), Decision::Allow);
    assert_eq!(authz.decide(&service, Action::Sign, &key), Decision::Deny);
    Ok(())
}

#[test]
fn names_of_nothing_do_not_fill_the_cache() -> TestResult {
    let authz = built_in()?;
    let service = user(&[(Role::CryptoUser, "acme")]);
    for name in 0..50 {
        let resource = Resource {
            tenant: tenant("acme"),
            entity: Entity::UnknownKey(format!("k{name}")),
        };
        authz.decide(&service, Action::GetKey, &resource);
    }
    assert_eq!(authz.cached(), 0);
    authz.decide(&service, Action::Sign, &key("acme"));
    assert_eq!(authz.cached(), 1);
    Ok(())
}

// Cedar leaves out a policy that fails; a forbid left out would permit.
#[test]
fn a_policy_that_cannot_be_evaluated_denies() -> TestResult {
    let overflow = "@id(\"broken\") forbid (principal, action, resource) \
                    when { 9223372036854775807 + 1 == 0 };";
    let dir = Dir::new(
        "broken",
        Some(SCHEMA),
        &[("a.cedar", GOOD), ("b.cedar", overflow)],
    )?;
    let authz = Authz::new(Policies::load(&dir.0)?);
    let (user, key) = (user(&[]), key("acme"));
    assert_eq!(authz.decide(&user, Action::Sign, &key), Decision::Deny);
    let explanation = authz.explain(&user, Action::Sign, &key);
    assert_eq!(explanation.decision, Decision::Deny);
    assert!(
        explanation.errors[0].contains("broken"),
        "{:?}",
        explanation.errors
    );
    Ok(())
}

/// A directory of policies that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str, schema: Option<&str>, policies: &[(&str, &str)]) -> std::io::Result<Self> {
        let id = format!("claviger-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(id);
        fs::create_dir_all(&dir)?;
        for (file, text) in policies {
            fs::write(dir.join(file), text)?;
        }
        if let Some(schema) = schema {
            fs::write(dir.join("claviger.cedarschema"), schema)?;
        }
        Ok(Self(dir))
    }

    fn failure(&self) -> String {
        let result = Policies::load(&self.0);
        result
            .err()
            .map_or(String::new(), |error| error.to_string())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SCHEMA: &str = include_str!("../../policies/claviger.cedarschema");
const GOOD: &str = "@id(\"all\") permit (principal, action, resource);";

#[test]
fn a_directory_replaces_the_built_in_policies() -> TestResult {
    let dir = Dir::new(
        "good",
        Some(&format!("// ours\n{SCHEMA}")),
        &[
            (
                "a.cedar",
                "@id(\"sign\")\npermit (principal, action == Action::\"Sign\", resource) when { resource.purpose == \"SIGNING\" };",
            ),
            ("b.cedar", "// nothing yet\n"),
            ("notes.txt", "not a policy"),
        ],
    );
    // `purpose` may be absent, and strict mode knows.
    assert!(dir?.failure().contains("purpose"));

    let policy = "@id(\"sign\")\npermit (principal, action == Action::\"Sign\", resource)\n\
                  when { resource has purpose && resource.purpose == \"SIGNING\" && resource in principal.tenant };";
    let dir = Dir::new("guarded", Some(SCHEMA), &[("a.cedar", policy)])?;
    let authz = Authz::new(Policies::load(&dir.0)?);
    assert_eq!(authz.policies().sources().len(), 1);
    assert_eq!(
        authz.decide(&user(&[]), Action::Sign, &key("acme")),
        Decision::Allow
    );
    assert_eq!(
        authz.decide(&user(&[]), Action::Sign, &key("globex")),
        Decision::Deny
    );
    Ok(())
}

#[test]
fn the_default_policies_load_from_their_directory_too() -> TestResult {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("policies");
    let (loaded, built_in) = (Policies::load(&dir)?, Policies::built_in()?);
    let ids = |p: &Policies| {
        let ids = p.sources().iter().map(|source| source.id.clone());
        ids.collect::<BTreeSet<_>>()
    };
    // A file that include_str! forgot would be missing here.
    assert_eq!(ids(&loaded), ids(&built_in));
    Ok(())
}

#[test]
fn policies_that_are_wrong_say_where_and_what() -> TestResult {
    let role = "@id(\"x\")\npermit (principal in Role::\"key-isuer\", action, resource);";
    let action = "\n\n@id(\"x\")\npermit (principal, action == Action::\"Sing\", resource);";
    for (name, policy, expected) in [
        (
            "syntax",
            "// one\npermit (principal, action resource);",
            vec!["p.cedar:2:"],
        ),
        (
            "nameless",
            "\npermit (principal, action, resource);",
            vec!["p.cedar:2:", "@id"],
        ),
        ("action", action, vec!["p.cedar:3:", "Sing", "Sign"]),
        ("role", role, vec!["p.cedar:1:", "key-isuer"]),
        ("twice", &[GOOD, GOOD].join("\n"), vec!["p.cedar:2:", "all"]),
        (
            "template",
            "@id(\"t\") permit (principal == ?principal, action, resource);",
            vec!["p.cedar:1:", "template"],
        ),
        (
            "never",
            "@id(\"n\") permit (principal, action == Action::\"Sign\", resource is Rotation);",
            vec!["p.cedar:1:"],
        ),
    ] {
        let message = Dir::new(name, Some(SCHEMA), &[("p.cedar", policy)])?.failure();
        for part in expected {
            assert!(
                message.contains(part),
                "{name}: {part:?} is not in {message:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn directories_that_are_wrong_say_so() -> TestResult {
    let missing = Policies::load(&PathBuf::from("/nonexistent/policies"));
    assert!(
        matches!(missing, Err(PolicyError::Unreadable { path, .. }) if path.starts_with("/nonexistent"))
    );

    let empty = Dir::new("empty", Some(SCHEMA), &[])?.failure();
    assert!(empty.contains("no *.cedar file"), "{empty}");

    let no_schema = Dir::new("no-schema", None, &[("a.cedar", GOOD)])?.failure();
    assert!(no_schema.contains("claviger.cedarschema"), "{no_schema}");

    let without = SCHEMA.replace("Sign, Verify, ", "Verify, Sing, ");
    let older = Dir::new("older", Some(&without), &[("a.cedar", GOOD)])?.failure();
    assert!(
        older.contains("action Sign is missing, action Sing is unknown"),
        "{older}"
    );

    let role = SCHEMA.replace("\"crypto-user\"", "\"cryptographer\"");
    let role = Dir::new("role-enum", Some(&role), &[("a.cedar", GOOD)])?.failure();
    assert!(role.contains("role crypto-user is missing"), "{role}");

    let shape = SCHEMA.replace("purpose?: String", "purpose?: Long");
    let shape = Dir::new("shape", Some(&shape), &[("a.cedar", GOOD)])?.failure();
    assert!(shape.contains("not the schema of this release"), "{shape}");
    Ok(())
}

#[test]
fn kinds_of_actions_are_those_of_the_proto_files() -> TestResult {
    let policy = |kind: &str| {
        format!("@id(\"k\") permit (principal, action in Action::\"{kind}\", resource);")
    };
    for kind in ["admin", "read", "data"] {
        let dir = Dir::new(kind, Some(SCHEMA), &[("a.cedar", &policy(kind))])?;
        let authz = Authz::new(Policies::load(&dir.0)?);
        let expected = Action::ALL
            .iter()
            .filter(|action| format!("{:?}", action.kind()).to_lowercase() == kind);
        assert_eq!(
            allowed(&authz, &principal(PrincipalKind::Job, &[]), "system"),
            expected.map(|action| action.name()).collect()
        );
    }
    Ok(())
}
