//! docs/metrics.md is the whole list: every metric of the code is in it, every one in it is written by the code, and what
//! a daemon answers has the names, types and labels that it says. R-OPS-3.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use claviger::grpc::proto::{
    Algorithm, IssueTokenRequest, KeyPurpose, SignRequest, sign_request::Payload,
};

use crate::daemon::{Daemon, Engine};

/// What a row of the document says.
#[derive(Debug)]
struct Row {
    kind: String,
    labels: BTreeSet<String>,
}

fn documented() -> BTreeMap<String, Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(path).expect("docs/metrics.md");
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `claviger_")) {
        let cells: Vec<_> = line
            .trim_matches('|')
            .splitn(3, '|')
            .map(str::trim)
            .collect();
        let [name, kind, meaning] = cells[..] else {
            panic!("three cells: {line}");
        };
        let (kind, labels) = kind.split_once(';').unwrap_or((kind, ""));
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let row = Row {
            kind: kind.to_owned(),
            labels: labels
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect(),
        };
        assert!(!meaning.is_empty(), "{line}");
        let before = rows.insert(name.trim_matches('`').to_owned(), row);
        assert!(before.is_none(), "twice: {line}");
    }
    rows
}

fn source() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                let code = fs::read_to_string(&path).expect("UTF-8");
                found.push((path, code));
            }
        }
    }
    let mut found = Vec::new();
    walk(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    found
}

/// The names that follow a macro which writes metrics, or, `described`, one that explains them; and their labels.
fn in_code(described: bool) -> BTreeMap<String, BTreeSet<String>> {
    let mut names = BTreeMap::<_, BTreeSet<_>>::new();
    for (path, code) in source() {
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            for (at, _) in code.match_indices(kind) {
                if code[..at].ends_with("describe_") != described {
                    continue;
                }
                let rest = &code[at + kind.len()..];
                let named = rest.trim_start().strip_prefix('"');
                let Some((name, rest)) = named.and_then(|rest| rest.split_once('"')) else {
                    // The name comes from a field or a constant: it is one of those that the file spells out.
                    let spelled = spelled_out(&code);
                    assert!(
                        !spelled.is_empty(),
                        "{}: {kind} without a name",
                        path.display()
                    );
                    for name in spelled {
                        names.entry(name).or_default().extend(labels_of(rest));
                    }
                    continue;
                };
                let labels = names.entry(name.to_owned()).or_default();
                labels.extend(labels_of(rest));
            }
        }
    }
    names
}

/// The names of metrics in quotes.
fn spelled_out(code: &str) -> Vec<String> {
    let words = code.split('"').skip(1).step_by(2);
    let ours = words.filter(|word| word.starts_with("claviger_") && !word.contains(' '));
    ours.map(str::to_owned).collect()
}

/// The words before `=>` up to the end of the macro.
fn labels_of(code: &str) -> Vec<String> {
    let mut open = 1;
    let end = code.find(|c| {
        open += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        open == 0
    });
    let pairs = code[..end.expect("its end")].split("=>");
    let mut words: Vec<_> = pairs
        .map(|before| before.trim_end().rsplit('"').nth(1))
        .collect();
    // Behind the last one is a value.
    words.pop();
    let words = words.into_iter();
    words
        .map(|word| word.expect("a label in quotes").to_owned())
        .collect()
}

// R-OPS-3
#[test]
fn every_metric_of_the_code_is_explained_and_documented() {
    let (rows, labelled) = (documented(), in_code(false));
    assert!(labelled.len() > 40, "{labelled:?}");
    for (name, row) in &rows {
        let labels = labelled.get(name);
        assert!(
            labels.is_none_or(|labels| *labels == row.labels),
            "{name}: {labels:?}"
        );
    }
    let documented: BTreeSet<_> = rows.into_keys().collect();
    let written: BTreeSet<_> = labelled.into_keys().collect();
    let missing: Vec<_> = written.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
    let gone: Vec<_> = documented.difference(&written).collect();
    assert!(
        gone.is_empty(),
        "docs/metrics.md has {gone:?}, which nobody writes"
    );
    let described = in_code(true).into_keys().collect();
    let mute: Vec<_> = written.difference(&described).collect();
    assert!(mute.is_empty(), "telemetry.rs describes no {mute:?}");
}

/// Name and labels of a sample: `name{label="value",…} 1`.
fn sample(line: &str) -> (&str, BTreeSet<String>) {
    let Some((name, rest)) = line.split_once('{') else {
        return (line.split(' ').next().unwrap_or_default(), BTreeSet::new());
    };
    let (labels, _) = rest.rsplit_once('}').expect("its end");
    let labels = labels.split("\",").map(|pair| pair.split('=').next());
    (name, labels.flatten().map(str::to_owned).collect())
}

// R-OPS-3, R-ACL-4
#[tokio::test]
async fn what_a_daemon_answers_is_what_is_documented() {
    let d = Daemon::start(Engine::Sqlite).await;
    for (name, purpose) in [
        ("signing", KeyPurpose::Signing),
        ("tokens", KeyPurpose::TokenSigning),
    ] {
        d.key("acme", name, purpose, Algorithm::Es256).await;
    }
    let service = d.actor("service");
    let sign = SignRequest {
        key: "signing".into(),
        payload: Some(Payload::Message("message".into())),
        ..SignRequest::default()
    };
    service.crypto().sign(sign).await.expect("a signature");
    let issue = IssueTokenRequest {
        key: "tokens".into(),
        audience: vec!["orders".into()],
        ..IssueTokenRequest::default()
    };
    service.tokens().issue_token(issue).await.expect("a token");
    d.public_get("/.well-known/jwks.json").await;
    d.public_get("/nowhere").await;

    let documented = documented();
    let text = d.ops_get("/metrics").await.text();
    let mut seen = BTreeSet::new();
    let mut explained = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            explained.insert(help.split(' ').next().unwrap_or_default().to_owned());
            continue;
        }
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').expect("a type");
            let row = documented.get(name);
            let row = row.unwrap_or_else(|| panic!("docs/metrics.md lacks {name}"));
            assert_eq!(row.kind, kind, "{name}");
            assert!(explained.contains(name), "no HELP for {name}");
            seen.insert(name.to_owned());
            continue;
        }
        let (name, mut labels) = sample(line);
        let parts = ["_bucket", "_sum", "_count"];
        let base = parts.iter().find_map(|part| name.strip_suffix(part));
        let base = base.filter(|base| documented.contains_key(*base));
        labels.remove("le");
        labels.remove("quantile");
        let row = &documented[base.unwrap_or(name)];
        assert_eq!(row.labels, labels, "{line}");
    }
    assert!(seen.len() > 15, "{seen:?}");
    d.stop().await;
}
