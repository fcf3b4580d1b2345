//! Compiles `proto/` without a system protoc, generates the gRPC code, and turns the `access` option
//! of every RPC into `enum Action`. An RPC that does not declare its access stops the build (R-ACL-1).

use std::{collections::BTreeMap, env, fmt::Write, fs, path::Path};

use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ReflectMessage, Value};

const PROTOS: [&str; 18] = [
    "claviger/v1/crypto.proto",
    "claviger/v1/keys.proto",
    "claviger/v1/rotation.proto",
    "claviger/v1/tokens.proto",
    "claviger/v1/audit.proto",
    "claviger/v1/principals.proto",
    "claviger/v1/incidents.proto",
    "claviger/v1/data_keys.proto",
    "claviger/v1/macs.proto",
    "claviger/v1/keks.proto",
    "claviger/v1/erasure.proto",
    "claviger/v1/api_keys.proto",
    "claviger/v1/clients.proto",
    "claviger/v1/credentials.proto",
    "claviger/v1/usage.proto",
    "claviger/v1/alerts.proto",
    "claviger/v1/leases.proto",
    "claviger/v1/credential_rotations.proto",
];

/// What the daemon does by itself, under an action that no RPC has. All of it changes something.
const JOB_ACTIONS: [&str; 17] = [
    "CompleteRotation",
    "ExpireRotation",
    "RetireKeyVersion",
    "KeepStandby",
    "SwitchKey",
    "DestroyMaterial",
    "SettleIntent",
    "CheckpointAudit",
    "RewrapDataKeys",
    "CompleteKekRotation",
    "ExpireKekRotation",
    "DestroyTenantMaterial",
    "CreatePepper",
    "ExpireApiKey",
    "CreateCredentialKey",
    "RewrapCredentials",
    "PruneAudit",
];

/// The routes of the public listener: method, path, action, kind, exposure. A route that is not here cannot be added to
/// the router (R-ACL-1, R-ACL-4).
const HTTP_ROUTES: [(&str, &str, &str, &str, &str); 11] = [
    ("GET", "/.well-known/jwks.json", "GetJwks", "Data", "Public"),
    (
        "GET",
        "/.well-known/oauth-authorization-server",
        "GetMetadata",
        "Data",
        "Public",
    ),
    (
        "GET",
        "/.well-known/openid-configuration",
        "GetMetadata",
        "Data",
        "Public",
    ),
    ("POST", "/oauth/token", "IssueClientToken", "Data", "Public"),
    (
        "POST",
        "/oauth/introspect",
        "IntrospectToken",
        "Data",
        "Public",
    ),
    ("POST", "/oauth/revoke", "RevokeOwnToken", "Admin", "Public"),
    (
        "GET",
        "/users/{user}/broker-credentials",
        "ListCredentials",
        "Read",
        "Public",
    ),
    (
        "POST",
        "/users/{user}/broker-credentials",
        "PutCredential",
        "Admin",
        "Public",
    ),
    (
        "GET",
        "/users/{user}/broker-credentials/{id}",
        "GetCredential",
        "Read",
        "Public",
    ),
    (
        "DELETE",
        "/users/{user}/broker-credentials/{id}",
        "DeleteCredential",
        "Admin",
        "Public",
    ),
    (
        "POST",
        "/users/{user}/broker-credentials/{id}/reveal",
        "RevealCredential",
        "Admin",
        "Public",
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=policies");
    // The tests against AWS exist only where somebody names the region to run them in.
    println!("cargo::rustc-check-cfg=cfg(claviger_test_aws_kms)");
    println!("cargo::rerun-if-env-changed=CLAVIGER_TEST_AWS_KMS");
    if env::var_os("CLAVIGER_TEST_AWS_KMS").is_some() {
        println!("cargo::rustc-cfg=claviger_test_aws_kms");
    }
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    for proto in PROTOS {
        compiler.open_file(proto)?;
    }
    let descriptor = compiler.encode_file_descriptor_set();
    let methods = access_table(&descriptor)?;
    fs::write(out.join("actions.rs"), actions_source(&methods))?;
    fs::write(out.join("claviger.bin"), &descriptor)?;

    let mut config = tonic_prost_build::Config::new();
    config
        .enable_type_names()
        .bytes([".claviger.v1"])
        .btree_map([".claviger.v1"]);
    tonic_prost_build::configure()
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// What one RPC declares.
pub struct MethodAccess {
    /// HTTP/2 path, `/package.Service/Method`.
    pub path: String,
    /// Cedar action.
    pub action: String,
    /// Variant of `AccessKind`, without its prefix.
    pub kind: String,
    /// Variant of `Exposure`, without its prefix.
    pub exposure: String,
}

/// Reads the access option of every RPC in an encoded `FileDescriptorSet`.
///
/// Errors name the RPC: no option, an empty action, an unspecified kind or exposure, or one action
/// declared with two kinds.
pub fn access_table(descriptor_set: &[u8]) -> Result<Vec<MethodAccess>, String> {
    let pool = DescriptorPool::decode(descriptor_set).map_err(|e| e.to_string())?;
    let option = pool
        .get_extension_by_name("claviger.v1.access")
        .ok_or("options.proto does not define claviger.v1.access")?;
    let mut table = Vec::new();
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    for service in pool
        .services()
        .filter(|s| s.package_name() == "claviger.v1")
    {
        for method in service.methods() {
            let name = method.full_name().to_owned();
            let options = method.options();
            if !options.has_extension(&option) {
                return Err(format!("{name} has no (claviger.v1.access) option"));
            }
            let value = options.get_extension(&option);
            let access = value.as_message().ok_or("access is not a message")?;
            let row = method_access(&method, access)?;
            let known = kinds
                .entry(row.action.clone())
                .or_insert_with(|| row.kind.clone());
            if *known != row.kind {
                return Err(format!("{name}: action {} has two kinds", row.action));
            }
            table.push(row);
        }
    }
    Ok(table)
}

fn method_access(
    method: &MethodDescriptor,
    access: &DynamicMessage,
) -> Result<MethodAccess, String> {
    let name = method.full_name();
    let action = match access.get_field_by_name("action").as_deref() {
        Some(Value::String(action)) if !action.is_empty() => action.clone(),
        _ => return Err(format!("{name}: access.action is empty")),
    };
    Ok(MethodAccess {
        path: format!("/{}/{}", method.parent_service().full_name(), method.name()),
        action,
        kind: variant(name, access, "kind", "ACCESS_KIND_")?,
        exposure: variant(name, access, "exposure", "EXPOSURE_")?,
    })
}

/// The variant of an enum field in UpperCamelCase; UNSPECIFIED is an error.
fn variant(
    name: &str,
    access: &DynamicMessage,
    field: &str,
    prefix: &str,
) -> Result<String, String> {
    let number = access
        .get_field_by_name(field)
        .and_then(|v| v.as_enum_number())
        .unwrap_or(0);
    let descriptor = access
        .descriptor()
        .get_field_by_name(field)
        .and_then(|f| f.kind().as_enum().cloned())
        .ok_or_else(|| format!("access.{field} is not an enum"))?;
    match descriptor.get_value(number) {
        Some(value) if number != 0 => {
            let bare = value.name().trim_start_matches(prefix).to_owned();
            Ok(bare[..1].to_owned() + &bare[1..].to_lowercase())
        }
        _ => Err(format!("{name}: access.{field} is unspecified")),
    }
}

fn actions_source(methods: &[MethodAccess]) -> String {
    let mut actions: BTreeMap<&str, &str> = JOB_ACTIONS.map(|action| (action, "Admin")).into();
    for method in methods {
        actions.insert(&method.action, &method.kind);
    }
    for (_, _, action, kind, _) in HTTP_ROUTES {
        actions.insert(action, kind);
    }
    let mut s = String::new();
    let _ = writeln!(
        s,
        "/// What a caller wants to do; one per `action` of the proto files, and those of jobs.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\npub enum Action {{"
    );
    for action in actions.keys() {
        let _ = writeln!(s, "    /// `{action}`.\n    {action},");
    }
    let _ = writeln!(s, "}}\n\nimpl Action {{");
    let _ = writeln!(
        s,
        "    /// Every action, by name.\n    pub const ALL: &[Self] = &["
    );
    for action in actions.keys() {
        let _ = writeln!(s, "        Self::{action},");
    }
    let _ = writeln!(
        s,
        "    ];\n\n    /// Its name in Cedar, in the audit log and in the proto files."
    );
    let _ = writeln!(
        s,
        "    pub const fn name(self) -> &'static str {{\n        match self {{"
    );
    for action in actions.keys() {
        let _ = writeln!(s, "            Self::{action} => {action:?},");
    }
    let _ = writeln!(s, "        }}\n    }}\n\n    /// What kind of work it is.");
    let _ = writeln!(
        s,
        "    pub const fn kind(self) -> AccessKind {{\n        match self {{"
    );
    for (action, kind) in &actions {
        let _ = writeln!(s, "            Self::{action} => AccessKind::{kind},");
    }
    let _ = writeln!(s, "        }}\n    }}\n}}\n");
    let _ = writeln!(
        s,
        "/// Every RPC, in the order of the proto files.\npub const METHODS: &[Method] = &["
    );
    for m in methods {
        let _ = writeln!(
            s,
            "    Method {{ path: {:?}, action: Action::{}, exposure: Exposure::{} }},",
            m.path, m.action, m.exposure
        );
    }
    let _ = writeln!(s, "];");
    let _ = writeln!(
        s,
        "/// Every route of the public listener.\npub const ROUTES: &[Route] = &["
    );
    for (method, path, action, _, exposure) in HTTP_ROUTES {
        let _ = writeln!(
            s,
            "    Route {{ method: {method:?}, path: {path:?}, action: Action::{action}, exposure: Exposure::{exposure} }},"
        );
    }
    let _ = writeln!(s, "];");
    s
}
