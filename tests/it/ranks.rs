//! The house has floors: a module imports only from lower ones. Reads the code of `src/`, comments and
//! strings left out, and fails on any arrow that goes up, sideways or past a wall.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Floors, from the bottom. A new top-level module takes its place here.
const RANKS: [&[&str]; 8] = [
    &["model", "error", "clock", "health", "fault", "trace"],
    &["backends", "envelope", "store", "egress"],
    &["gate", "authz", "audit"],
    &[
        "rotation",
        "destruction",
        "erasure",
        "incidents",
        "restore",
        "tokens",
        "vault",
        "clients",
        "usage",
        "alerts",
        "keys",
        "directory",
    ],
    &["authn"],
    &["grpc", "http", "jobs"],
    &["app", "config", "telemetry"],
    &["cli"],
];
/// Arrows allowed on one floor. On the lowest all are.
const SIDEWAYS: [(&str, &str); 16] = [
    // config composes the sections that modules declare, telemetry's among them.
    ("config", "telemetry"),
    ("app", "config"),
    ("app", "telemetry"),
    ("rotation", "keys"),
    ("destruction", "keys"),
    ("erasure", "keys"),
    ("incidents", "keys"),
    ("restore", "incidents"),
    ("tokens", "keys"),
    ("vault", "keys"),
    ("clients", "keys"),
    ("clients", "tokens"),
    ("clients", "directory"),
    ("gate", "authz"),
    ("gate", "audit"),
    ("vault", "directory"),
];
/// Arrows refused although they go down: the edges reach data and devices through what the product does.
const WALLS: [(&str, &str); 4] = [
    ("grpc", "store"),
    ("grpc", "backends"),
    ("http", "store"),
    ("http", "backends"),
];
const MAIN_LINES: usize = 20;

#[test]
fn every_import_goes_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for file in rust_files(&src) {
        let code = fs::read_to_string(&file).expect("source file");
        let path = file.strip_prefix(&src).expect("under src");
        faults.extend(check(path, &code));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// What is wrong with one file; `path` is relative to `src/`.
fn check(path: &Path, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |text: String| faults.push(format!("src/{}: {text}", path.display()));
    let module = module_of(path);
    let from = module.first().map_or("", String::as_str);
    let tokens = tokens(code);
    if module.is_empty() {
        // The crate root and main only name modules.
        if path == Path::new("main.rs") && code.lines().count() > MAIN_LINES {
            fault(format!("more than {MAIN_LINES} lines; hand over to cli"));
        }
        for pair in tokens.windows(2) {
            if pair[0] == "mod" && rank(&pair[1]).is_none() {
                fault(format!(
                    "module {} has no rank; give it one in tests/it/ranks.rs",
                    pair[1]
                ));
            }
        }
        return faults;
    }
    if rank(from).is_none() {
        fault(format!(
            "module {from} has no rank; give it one in tests/it/ranks.rs"
        ));
        return faults;
    }
    if from != "store" && tokens.iter().any(|token| token == "sqlx") {
        fault("SQL outside store/".to_owned());
    }
    let mut targets = imports(&module, &tokens);
    targets.sort();
    targets.dedup();
    for to in targets {
        if let Some(why) = refusal(from, &to) {
            fault(format!("{from} -> {to}: {why}"));
        }
    }
    faults
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|floor| floor.contains(&module))
}

fn refusal(from: &str, to: &str) -> Option<String> {
    if from == to {
        return None;
    }
    let (Some(here), Some(there)) = (rank(from), rank(to)) else {
        return Some(format!(
            "{to} has no rank; give it one in tests/it/ranks.rs"
        ));
    };
    if WALLS.contains(&(from, to)) {
        return Some("there is a wall between them".to_owned());
    }
    if there < here || here == 0 && there == 0 || SIDEWAYS.contains(&(from, to)) {
        return None;
    }
    Some(format!("R{here} may not import from R{there}"))
}

/// `keys/mod.rs` is `keys`, `keys/create.rs` is `keys::create`; `lib.rs` and `main.rs` are the root.
fn module_of(path: &Path) -> Vec<String> {
    let without = path.with_extension("");
    let parts = without
        .iter()
        .map(|part| part.to_string_lossy().into_owned());
    let mut parts: Vec<_> = parts.collect();
    if parts
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        parts.pop();
    }
    parts
}

/// The top-level modules that a file names, by `crate::`, `super::` or its own crate's name.
fn imports(module: &[String], tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    // Inline modules around the current token: the brace depth they opened at, and their name.
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth: usize = 0;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(opened, _)| *opened < depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => {
                inline.push((depth, tokens[at + 1].clone()));
            }
            "crate" | "claviger" if next_is_path(tokens, at) => {
                names_after(tokens, at + 2, &mut found);
            }
            "super" if next_is_path(tokens, at) => {
                let names = inline.iter().map(|(_, name)| name);
                let mut place: Vec<&String> = module.iter().chain(names).collect();
                place.pop();
                let mut next = at + 2;
                while tokens.get(next).is_some_and(|token| token == "super")
                    && next_is_path(tokens, next)
                {
                    place.pop();
                    next += 2;
                }
                // Below the top of a module it stays inside.
                if place.is_empty() {
                    names_after(tokens, next, &mut found);
                }
                at = next - 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

fn next_is_path(tokens: &[String], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(|token| token == "::")
}

/// The first segments after `crate::`: one name, or every name of the outermost `{…}`.
fn names_after(tokens: &[String], start: usize, found: &mut Vec<String>) {
    let Some(first) = tokens.get(start) else {
        return;
    };
    if first != "{" {
        found.push(first.clone());
        return;
    }
    let mut depth = 0;
    let mut expect_name = false;
    for token in &tokens[start..] {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if expect_name && depth == 1 => found.push(name.to_owned()),
            _ => {}
        }
        if depth == 0 {
            return;
        }
        expect_name = depth == 1 && (token == "," || token == "{");
    }
}

/// Identifiers, `::` and single punctuation, without comments, strings and characters.
fn tokens(code: &str) -> Vec<String> {
    let chars: Vec<char> = code.chars().collect();
    let mut tokens: Vec<String> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['r', '"' | '#', ..] | ['b' | 'c', 'r', '"' | '#', ..]
                if raw_string(rest).is_some() =>
            {
                raw_string(rest).unwrap_or(1)
            }
            ['"', ..] => string(rest, '"'),
            ['\'', '\\', ..] => string(rest, '\''),
            ['\'', _, '\'', ..] => 3,
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            [c, ..] if c.is_alphanumeric() || *c == '_' => {
                let word = rest
                    .iter()
                    .take_while(|c| c.is_alphanumeric() || **c == '_');
                let word: String = word.collect();
                let len = word.chars().count();
                tokens.push(word);
                len
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                1
            }
            [] => 1,
        };
    }
    tokens
}

/// Length of a block comment; they nest.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => {
                depth += 1;
                at += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a string or character with escapes.
fn string(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Length of a raw string, if that is what begins here.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().position(|c| *c == 'r')? + 1;
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let start = prefix + hashes;
    if rest.get(start) != Some(&'"') {
        return None;
    }
    let end = |window: &[char]| window[0] == '"' && window[1..].iter().all(|c| *c == '#');
    let body = &rest[start + 1..];
    let close = body.windows(hashes + 1).position(end).unwrap_or(body.len());
    Some(start + 1 + close + hashes + 1)
}

#[test]
fn arrows_that_do_not_go_down_are_found() {
    for (path, code, expected) in [
        ("model/key.rs", "use crate::store::Store;", "model -> store"),
        (
            "keys/mod.rs",
            "use crate::{error::Error, grpc::proto};",
            "keys -> grpc",
        ),
        (
            "keys/mod.rs",
            "use crate::{model::{Key, app::X}, authn};",
            "keys -> authn",
        ),
        (
            "keys/mod.rs",
            "fn f() { crate::rotation::open(); }",
            "keys -> rotation",
        ),
        ("keys/mod.rs", "use super::rotation;", "keys -> rotation"),
        (
            "keys/create.rs",
            "use super::super::jobs::Job;",
            "keys -> jobs",
        ),
        (
            "keys/create.rs",
            "use super::super::{model, jobs::Job};",
            "keys -> jobs",
        ),
        (
            "keys/create.rs",
            "mod tests { use super::super::super::grpc::X; }",
            "keys -> grpc",
        ),
        ("audit/mod.rs", "use crate::authz::Authz;", "audit -> authz"),
        ("grpc/crypto.rs", "use crate::store::Store;", "wall"),
        ("http/jwks.rs", "use crate::{backends::Backend};", "wall"),
        (
            "jobs/mod.rs",
            "use crate::telemetry::x;",
            "jobs -> telemetry",
        ),
        ("app.rs", "use crate::cli::x;", "app -> cli"),
        (
            "telemetry.rs",
            "use crate::config::x;",
            "telemetry -> config",
        ),
        (
            "keys/mod.rs",
            "use crate::helpers::x;",
            "helpers has no rank",
        ),
        ("helpers/mod.rs", "", "helpers has no rank"),
        (
            "lib.rs",
            "pub mod model; pub mod helpers;",
            "helpers has no rank",
        ),
        ("keys/mod.rs", "sqlx::query(TEXT)", "SQL outside store/"),
        (
            "keys/mod.rs",
            "let a = '\"'; use crate::app::x; let b = '\"';",
            "keys -> app",
        ),
        (
            "keys/mod.rs",
            "fn f<'a>(x: &'a str) { crate::app::x() }",
            "keys -> app",
        ),
        (
            "keys/mod.rs",
            "let r = r#\"quote \" inside\"#; use crate::app::x;",
            "keys -> app",
        ),
        ("main.rs", &"fn f() {}\n".repeat(21), "more than 20 lines"),
    ] {
        let faults = check(Path::new(path), code);
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{path}: {code:?} gave {faults:?}, not {expected:?}"
        );
    }
}

#[test]
fn arrows_that_go_down_are_left_alone() {
    for (path, code) in [
        (
            "cli/mod.rs",
            "use crate::{app, config::Config, telemetry}; use super::model;",
        ),
        (
            "app.rs",
            "use crate::{config, telemetry, store::Store, backends::pkcs11};",
        ),
        (
            "gate.rs",
            "use crate::{audit, authz::{Authz, Decision}, model};",
        ),
        ("rotation/mod.rs", "use crate::keys;"),
        (
            "keys/mod.rs",
            "mod create; use self::create::Create; use crate::store;",
        ),
        (
            "keys/mod.rs",
            "// use crate::app;\n/* crate::cli::x /* nested */ */ \"crate::app::x\"",
        ),
        (
            "keys/mod.rs",
            "let s = \"\\\" crate::app::x\"; let r = r#\"\" crate::app::x \"#; b\"crate::cli\"",
        ),
        (
            "keys/create.rs",
            "use super::Keys; mod tests { use super::*; use super::super::Keys; }",
        ),
        ("error.rs", "mod tests { use super::*; }"),
        ("error.rs", "use crate::model::Kid;"),
        ("store/mod.rs", "use sqlx::Pool;"),
        ("main.rs", "fn main() { claviger::cli::main() }"),
    ] {
        assert_eq!(check(Path::new(path), code), [""; 0], "{path}: {code:?}");
    }
}
