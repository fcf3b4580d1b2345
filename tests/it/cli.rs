//! The command line as scripts see it: exit codes, one line on stderr, nothing on stdout when it failed.

use std::process::{Command, Output};

fn claviger(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLAVIGER_") {
            command.env_remove(name);
        }
    }
    let output = command
        .args(args)
        .stdin(std::process::Stdio::null())
        .output();
    output.expect("the binary runs")
}

#[track_caller]
fn fails(args: &[&str], code: i32, says: &str) {
    let output = claviger(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(says), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn help_documents_the_exit_codes() {
    let output = claviger(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("Exit codes:") && help.contains("3  not authenticated"));
}

#[test]
fn wrong_usage_is_2() {
    fails(&["sing"], 2, "sing");
    fails(&["sign"], 2, "--key");
    fails(&["sign", "--key", "k"], 2, "--ca FILE");
    fails(
        &["--ca", "/nowhere/ca.crt", "token", "jwks"],
        2,
        "/nowhere/ca.crt",
    );
    fails(
        &[
            "--address",
            "http://localhost:1",
            "--ca",
            "x",
            "token",
            "jwks",
        ],
        2,
        "https://",
    );
    fails(
        &["--ca", "x", "--cert", "x", "token", "jwks"],
        2,
        "--cert-key",
    );
    fails(&["--timeout", "soon", "token", "jwks"], 2, "duration");
    fails(&["key", "update", "k"], 2, "--owner");
}

#[test]
fn a_daemon_that_is_not_there_is_6() {
    fails(
        &["--dir", "/nowhere", "--as", "service", "token", "jwks"],
        6,
        "claviger dev",
    );
}

#[test]
fn dev_says_how_to_install_what_it_needs() {
    let output = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(["dev", "--once", "--dir", "/nowhere"])
        .env("CLAVIGER_DEV_MODULE", "/nowhere/libsofthsm2.so")
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CLAVIGER_DEV_MODULE"));
}
