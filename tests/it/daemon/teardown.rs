//! What must hold after every test.

use claviger::grpc::proto::VerifyAuditRequest;

use super::{Daemon, Engine};

impl Daemon {
    /// Ends the daemon with SIGTERM and checks: the audit chains are whole, no key has two ACTIVE versions, the daemon
    /// ended with status 0, and no secret is in its log. A daemon that is down already is checked as far as it can be.
    pub async fn stop(mut self) {
        if self.child.is_some() {
            if !self.tampered {
                self.assert_intact().await;
            }
            let status = self.terminate().await;
            assert!(status.success(), "{status} after SIGTERM");
        }
        let twice = "SELECT key_id FROM key_versions WHERE state = 'ACTIVE' GROUP BY key_id HAVING COUNT(*) > 1";
        let twice = self.rows(twice).await;
        assert!(twice.is_empty(), "two ACTIVE versions: {twice:?}");
        self.assert_log_is_clean();
        self.finished = true;
    }

    async fn assert_intact(&self) {
        let request = VerifyAuditRequest::default();
        let report = self.actor("auditor").audit().verify_audit(request).await;
        let report = report.expect("VerifyAudit").into_inner();
        assert!(report.intact, "{report:#?}");
    }

    /// Also of keys and tokens that nobody registered: they are known by their form.
    fn assert_log_is_clean(&self) {
        let log = self.log();
        for secret in &self.secrets {
            // The secret itself is not shown either.
            assert!(!log.contains(secret.as_str()), "a secret is in the log");
        }
        assert!(!shows_a_credential(&log), "a key or token is in the log");
        if self.engine == Engine::Sqlite
            && let Ok(database) = std::fs::read(self.path("claviger.db"))
        {
            let database = String::from_utf8_lossy(&database);
            let shown = shows_a_credential(&database);
            assert!(!shown, "a key or token is in the database");
        }
    }
}

/// Is there the text of an API key (`cvk_`, 32 digits of an id, 43 characters of a secret) or of a signed token?
fn shows_a_credential(text: &str) -> bool {
    let run = |text: &str, is_part: fn(&u8) -> bool| text.bytes().take_while(is_part).count();
    let is_key = |rest: &str| {
        let id = run(rest, u8::is_ascii_hexdigit);
        let secret = rest.get(id..).and_then(|rest| rest.strip_prefix('_'));
        id == 32 && secret.is_some_and(|secret| run(secret, u8::is_ascii_alphanumeric) >= 43)
    };
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_token = |rest: &str| {
        // Header and claims begin with `{"`; a signature of 64 bytes has 86 characters.
        let parts: Vec<_> = rest.splitn(3, '.').collect();
        matches!(parts[..], [header, claims, signature]
            if run(header, is_base64) == header.len()
                && claims.starts_with("eyJ")
                && run(claims, is_base64) == claims.len()
                && run(signature, is_base64) >= 86)
    };
    let after = |begin: &'static str| {
        text.match_indices(begin)
            .map(|(at, begin)| &text[at + begin.len()..])
    };
    after("cvk_").any(is_key) || after("eyJ").any(is_token)
}

#[test]
fn keys_and_tokens_are_known_by_their_form() {
    let key = format!(
        "cvk_{}_{}_0aB1cD",
        "0123456789abcdef".repeat(2),
        "x".repeat(43)
    );
    let token = format!("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.{}", "x".repeat(86));
    for secret in [&key, &token] {
        let line = format!(r#"{{"message":"called with {secret}"}}"#);
        assert!(shows_a_credential(&line), "{line}");
    }
    // What may be shown of them, and what only looks like one.
    for harmless in [
        &key[..16],
        &key[..36],
        "cvk_…9xYz",
        &token[..40],
        "eyJ.eyJ.",
    ] {
        assert!(!shows_a_credential(harmless), "{harmless}");
    }
}
