//! The chart, through the real `helm`: what it renders, what it refuses and why, and that the daemon takes the
//! configuration that comes out of it (R-CARD-6).
//!
//! `scripts/install-test-deps` puts both tools below `target/tools`. Nothing here needs a cluster.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/claviger");
const HELM: &str = "helm-v3.12.3/helm";
/// Decodes manifests strictly into the types of Kubernetes.
const KUBETYPES: &str = "kubetypes";
/// Built from source, Helm takes the cluster for a very old one unless it is told.
const CLUSTER: &str = "--kube-version=1.31.0";

/// Values files that go together; none is the chart's own `values.yaml`.
const EXAMPLES: [&[&str]; 7] = [
    &[],
    &["values-production.yaml"],
    &["values-hsm.yaml"],
    &["values-kms.yaml"],
    &["values-production.yaml", "values-hsm.yaml"],
    &["values-production.yaml", "values-kms.yaml"],
    &["values-trial.yaml"],
];
const SQLITE: &str = "database.engine=sqlite";

fn tool(name: &str) -> Command {
    let path = Path::new(ROOT).join("target/tools").join(name);
    assert!(
        path.exists(),
        "{} is missing; scripts/install-test-deps installs it",
        path.display()
    );
    Command::new(path)
}

fn helm(command: &[&str], files: &[&str], values: &[&str]) -> Output {
    let mut helm = tool(HELM);
    helm.args(command);
    for file in files {
        helm.arg("--values").arg(Path::new(CHART).join(file));
    }
    for value in values {
        helm.arg("--set").arg(value);
    }
    helm.output().expect("helm runs")
}

fn template(files: &[&str], values: &[&str]) -> Output {
    helm(&["template", "claviger", CHART, CLUSTER], files, values)
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", complaint(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The file that the daemon would find.
fn configuration(files: &[&str], values: &[&str]) -> String {
    let only = "--show-only=templates/configmap.yaml";
    let command = ["template", "claviger", CHART, CLUSTER, only];
    let manifest = text(helm(&command, files, values));
    let (_, block) = manifest
        .split_once("claviger.toml: |\n")
        .expect("a ConfigMap with claviger.toml");
    let lines = block
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// What `claviger doctor --config-only` says about a configuration.
fn doctor(toml: &str) -> Output {
    let file = env::temp_dir().join(format!("claviger-helm-{}.toml", uuid::Uuid::now_v7()));
    fs::write(&file, toml).expect("a configuration");
    let mut claviger = Command::new(env!("CARGO_BIN_EXE_claviger"));
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CLAVIGER_") {
            claviger.env_remove(name);
        }
    }
    let doctor = claviger
        .args(["doctor", "--config-only", "--config"])
        .arg(&file);
    let output = doctor.output().expect("claviger runs");
    fs::remove_file(file).expect("the configuration");
    output
}

fn as_kubernetes_reads(manifests: &str) -> Output {
    let mut reader = tool(KUBETYPES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubetypes runs");
    let mut stdin = reader.stdin.take().expect("a pipe");
    // It ends early over a fault, which is then what matters.
    let _ = stdin.write_all(manifests.as_bytes());
    drop(stdin);
    reader.wait_with_output().expect("kubetypes ends")
}

#[test]
fn every_example_is_sound_and_its_configuration_is_taken() {
    for files in EXAMPLES {
        let lint = helm(&["lint", "--strict", CHART], files, &[]);
        let found = String::from_utf8_lossy(&lint.stdout).into_owned();
        assert!(
            lint.status.success(),
            "{files:?}: {found}{}",
            complaint(&lint)
        );

        let manifests = text(template(files, &[]));
        let read = as_kubernetes_reads(&manifests);
        assert!(read.status.success(), "{files:?}: {}", complaint(&read));

        let checked = doctor(&configuration(files, &[]));
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{files:?}: {said}");
        assert!(said.contains("ok    configuration"), "{files:?}: {said}");
    }
}

/// A checker that never finds anything would pass the test above.
#[test]
fn a_misspelt_field_is_found() {
    let manifests = text(template(&[], &[]));
    let misspelt = manifests.replace("readOnlyRootFilesystem", "readonlyRootFilesystem");
    assert_ne!(manifests, misspelt);
    let read = as_kubernetes_reads(&misspelt);
    assert!(!read.status.success());
    assert!(complaint(&read).contains("readonlyRootFilesystem"));
}

/// Every container, whatever it is there for.
#[test]
fn no_container_may_write_or_rise() {
    for files in EXAMPLES {
        let manifests = text(template(files, &[]));
        let count = |what: &str| manifests.lines().filter(|l| l.trim() == what).count();
        let images = manifests
            .lines()
            .filter(|line| line.trim_start().starts_with("image: "));
        let containers = images.count();
        assert!(containers > 3, "{files:?}");
        for held in [
            "readOnlyRootFilesystem: true",
            "allowPrivilegeEscalation: false",
        ] {
            assert_eq!(count(held), containers, "{files:?}: {held}");
        }
        let pods = count("containers:");
        // Service links would be settings that the daemon does not know.
        for held in [
            "runAsNonRoot: true",
            "type: RuntimeDefault",
            "automountServiceAccountToken: false",
            "enableServiceLinks: false",
        ] {
            assert!(count(held) >= pods, "{files:?}: {held}");
        }
    }
}

#[test]
fn the_default_is_two_replicas_that_stop_without_haste() {
    let manifests = text(template(&[], &[]));
    for line in [
        "  replicas: 2",
        "kind: PodDisruptionBudget",
        "kind: NetworkPolicy",
        // preStop 5, drain 30, a key pair 25, audit queue 10.
        "      terminationGracePeriodSeconds: 70",
        "    helm.sh/hook: pre-install,pre-upgrade",
        "    helm.sh/hook: test",
    ] {
        assert!(manifests.lines().any(|l| l == line), "{line}");
    }
    // The image's tag, when values name none.
    let release = concat!("image: claviger:", env!("CARGO_PKG_VERSION"));
    assert!(manifests.contains(release));

    let patient = [
        "config.grpc.drain_seconds=120",
        "config.keys.generate_timeout_ms=60500",
    ];
    let manifests = text(template(&[], &patient));
    assert!(manifests.contains("terminationGracePeriodSeconds: 196"));
}

/// Replicas draw on one account's quotas, and one more is there during a rollout.
#[test]
fn replicas_share_the_quotas_of_kms() {
    let three = ["replicas=3"];
    let shared = configuration(&["values-kms.yaml"], &three);
    assert!(shared.contains("share_percent = 20"), "{shared}");
}

/// R-LIFE-7: the security team comes from values, by identity.
#[test]
fn people_are_bootstrapped_by_identity() {
    let toml = configuration(&["values-production.yaml"], &[]);
    for (name, role) in [
        ("alice", "principal-admin"),
        ("ivy", "key-issuer"),
        ("aaron", "key-approver"),
        ("dora", "key-deployer"),
        ("otto", "security-officer"),
        ("audrey", "auditor"),
    ] {
        let sections = toml.split("[[bootstrap.principals]]");
        let mine: Vec<_> = sections
            .filter(|section| section.contains(&format!("name = \"{name}\"")))
            .collect();
        assert_eq!(mine.len(), 1, "{name}");
        assert!(mine[0].contains(&format!("spiffe://example.com/{name}")));
        assert!(mine[0].contains(&format!("role = \"{role}\"")), "{name}");
    }
}

/// R-ENV-3: a typing error and a secret in the values stop at the schema, and the secret is not repeated.
#[test]
fn the_schema_names_what_it_refuses() {
    for (value, named) in [
        ("config.backends.hsm.pin=48151623", "pin"),
        ("config.database.url=postgres://a:48151623@b/c", "url"),
        ("config.grpc.listen=0.0.0.0:1", "listen"),
        ("config.grpc.drain_second=1", "drain_second"),
        ("replcas=3", "replcas"),
        ("replicas=two", "replicas"),
        ("environment=prod", "environment"),
        ("config.tokens.issuer=http://keys.example.com", "issuer"),
        ("config.kek=null", "kek"),
        ("config.backends.kms.type=aws_kms", "region"),
        ("config.log.format=xml", "format"),
    ] {
        let refused = template(&[], &[value]);
        let why = complaint(&refused);
        assert!(!refused.status.success(), "{value}");
        assert!(why.contains("schema"), "{value}: {why}");
        assert!(why.contains(named), "{value}: {why}");
        assert!(!why.contains("48151623"), "{value}: {why}");
    }
}

#[test]
fn sqlite_is_for_one_replica() {
    let why = complaint(&template(&[], &[SQLITE]));
    assert!(why.contains("the file serves one daemon"), "{why}");
    assert!(why.contains("use PostgreSQL"), "{why}");
    let growing = ["replicas=1", "autoscaling.enabled=true", SQLITE];
    assert!(!template(&[], &growing).status.success());

    let one = text(template(&[], &["replicas=1", SQLITE]));
    assert!(one.contains("type: Recreate"));
    assert!(one.contains("kind: PersistentVolumeClaim"));
    let checked = doctor(&configuration(&[], &["replicas=1", SQLITE]));
    assert!(checked.status.success());
}

/// What only together is wrong. Each reason is explained in docs/kubernetes.md.
#[test]
fn what_does_not_go_together_is_refused_with_a_reason() {
    let docs = fs::read_to_string(Path::new(ROOT).join("docs/kubernetes.md")).expect("docs");
    let exposed = "ingress.enabled=true,ingress.host=a.example.com,ingress.tlsSecret=a";
    let mtls = format!(
        "{exposed},config.tokens.issuer=https://a.example.com,config.public.client_certificate=optional"
    );
    let person = |team: &str| {
        format!("securityTeam.{team}[0].name={team},securityTeam.{team}[0].identities[0]=cn:ivy")
    };
    let twice = format!("{},{}", person("issuers"), person("approvers"));
    for (value, begins) in [
        (
            SQLITE,
            "database.engine is sqlite with more than one replica",
        ),
        (
            "postgresql.enabled=true",
            "postgresql.enabled is for trials",
        ),
        (
            "config.kek.backend=nowhere",
            "is not one of config.backends",
        ),
        (
            exposed,
            "the public listener is exposed, and config.tokens.issuer is empty",
        ),
        (mtls.as_str(), "client certificates end where TLS ends"),
        ("certManager.enabled=true", "certManager.issuerRef.name"),
        ("secrets.provider=csi", "secrets.csi.secretProviderClass"),
        ("secrets.provider=external", "secrets.external.pins has no"),
        (
            "config.audit.checkpoint.key=k,config.audit.checkpoint.file=/elsewhere/notes",
            "no writable volume is there",
        ),
        (
            "extraEnv[0].name=CLAVIGER_DATABASE__URL,extraEnv[0].value=x",
            "extraEnv has CLAVIGER_",
        ),
        (twice.as_str(), "securityTeam: "),
    ] {
        let refused = template(&[], &[value]);
        let why = complaint(&refused);
        assert!(!refused.status.success(), "{value}");
        assert!(why.contains(begins), "{value}: {why}");
        assert!(docs.contains(begins), "docs/kubernetes.md: {begins}");
    }
}

/// R-OPS-3: a rule about a metric that nobody writes never fires.
#[test]
fn rules_and_dashboard_ask_for_metrics_that_exist() {
    let mut written = BTreeSet::new();
    collect_metrics(&Path::new(ROOT).join("src"), &mut written);
    assert!(written.contains("claviger_rpc_seconds"));
    for file in ["rules.yaml", "dashboard.json"] {
        let text = fs::read_to_string(Path::new(CHART).join("files").join(file)).expect(file);
        let asked = names(&text);
        assert!(asked.len() > 15, "{file}: {asked:?}");
        for name in asked {
            let base = name.strip_suffix("_bucket").unwrap_or(&name);
            assert!(written.contains(base), "{file}: {name}");
        }
    }
    let dashboard = fs::read(Path::new(CHART).join("files/dashboard.json")).expect("a dashboard");
    serde_json::from_slice::<Value>(&dashboard).expect("JSON");
}

/// The names in string literals of the code.
fn collect_metrics(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect_metrics(&path, found);
        } else {
            let code = fs::read_to_string(&path).expect("UTF-8");
            let literals = code.split("\"claviger_").skip(1);
            let names = literals.filter_map(|rest| Some(rest.split_once('"')?.0));
            found.extend(names.map(|name| format!("claviger_{name}")));
        }
    }
}

fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("claviger_"));
    ours.map(str::to_owned).collect()
}

/// Settings that the chart decides, so no value may.
const DECIDED: [(&str, &[&str]); 7] = [
    ("", &["environment", "addresses_file", "tls"]),
    ("[grpc]", &["listen"]),
    ("[public]", &["listen"]),
    ("[ops]", &["listen", "expose"]),
    ("[database]", &["url", "url_file"]),
    ("[audit]", &["replica"]),
    ("[backends.a]\ntype = \"pkcs11\"", &["pin", "pin_file"]),
];

/// R-OPS-3: traces have a way out, and only then.
#[test]
fn a_collector_is_configured_and_let_out_to() {
    let set = |value: &str| -> Vec<String> {
        let command = ["template", "claviger", CHART, CLUSTER, "--set-json", value];
        let manifests = text(helm(&command, &[], &[]));
        manifests.split("\n---\n").map(str::to_owned).collect()
    };
    let policy = |manifests: &[String]| -> String {
        let is_it = |m: &&String| m.contains("kind: NetworkPolicy") && m.contains("kek-create");
        manifests.iter().find(is_it).expect("a policy").clone()
    };
    for (endpoint, port) in [
        ("https://otel.test:4317", 4317),
        ("https://otel.test", 443),
        ("http://[fd00::1]", 80),
    ] {
        let telemetry = format!(
            r#"config.telemetry={{"otlp_endpoint":"{endpoint}","otlp_allow_http":true,"trace_sample_ratio":0.25}}"#
        );
        let manifests = set(&telemetry);
        let rule = format!("- ports: [{{port: {port}, protocol: TCP}}]");
        let policy = policy(&manifests);
        assert!(policy.contains(&rule), "{endpoint}: {policy}");
        let toml = manifests
            .iter()
            .find_map(|m| m.split_once("claviger.toml: |\n"));
        let toml = toml.expect("a ConfigMap").1;
        assert!(toml.contains("trace_sample_ratio = 0.25\n"), "{toml}");
        let lines = toml.lines().map(str::trim_start).collect::<Vec<_>>();
        let checked = doctor(&lines.join("\n"));
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{said}");
    }
    let whole = set(r#"config.telemetry={"trace_sample_ratio":1}"#).concat();
    assert!(whole.contains("trace_sample_ratio = 1\n"));
    let without = policy(&set(r#"config.telemetry={}"#));
    assert!(!without.contains("4317"), "{without}");
}

/// The daemon lists its settings when it meets one that it does not know; the schema has them all, and no others.
#[test]
fn the_schema_knows_every_setting_of_the_daemon() {
    let schema = fs::read(Path::new(CHART).join("values.schema.json")).expect("a schema");
    let schema: Value = serde_json::from_slice(&schema).expect("JSON");
    let mut sections = Vec::new();
    collect_sections(&schema["properties"]["config"], "", "", &mut sections);
    for (definition, kind) in [("pkcs11", "pkcs11"), ("awsKms", "aws_kms")] {
        let head = format!("[backends.a]\ntype = \"{kind}\"");
        let section = &schema["definitions"][definition];
        collect_sections(section, "backends.a", &head, &mut sections);
    }
    assert!(sections.len() > 25);
    for (head, mut has) in sections {
        let decided = DECIDED.iter().find(|(section, _)| *section == head);
        let decided = decided.map(|(_, fields)| *fields).unwrap_or_default();
        has.extend(decided.iter().map(|field| (*field).to_owned()));
        // The tag of a backend is no field of what it tags.
        has.retain(|field| !(field == "type" && head.starts_with("[backends.")));
        let toml = format!("environment = \"production\"\n{head}\nnonsense = 1\n");
        assert_eq!(
            has,
            known(&toml),
            "{head}: values.schema.json has the left one"
        );
    }
}

/// The tables of a part of the schema: how each begins in TOML, and its fields.
fn collect_sections(
    schema: &Value,
    path: &str,
    head: &str,
    found: &mut Vec<(String, BTreeSet<String>)>,
) {
    let Some(fields) = schema["properties"].as_object() else {
        return;
    };
    found.push((head.to_owned(), fields.keys().cloned().collect()));
    for (name, field) in fields {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        // A table in a table of an array needs the one that it is in.
        let outer = if head.starts_with("[[") || head.starts_with("[backends") {
            format!("{head}\n")
        } else {
            String::new()
        };
        collect_sections(field, &path, &format!("{outer}[{path}]"), found);
        collect_sections(&field["items"], &path, &format!("{outer}[[{path}]]"), found);
    }
}

/// The fields that the daemon offers in place of `nonsense`.
fn known(toml: &str) -> BTreeSet<String> {
    let said = String::from_utf8(doctor(toml).stdout).expect("UTF-8");
    let offered = said
        .split_once("found `nonsense`, expected ")
        .and_then(|(_, rest)| rest.split_once(" for key"));
    let (offered, _) = offered.unwrap_or_else(|| panic!("{toml}\n{said}"));
    let words = offered.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let fields = words.filter(|word| !["", "one", "of", "or"].contains(word));
    fields.map(str::to_owned).collect()
}
