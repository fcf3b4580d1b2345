//! What must hold after every test.

use claviger::grpc::proto::VerifyAuditRequest;

use super::Daemon;

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

    fn assert_log_is_clean(&self) {
        let log = self.log();
        for secret in &self.secrets {
            // The secret itself is not shown either.
            assert!(!log.contains(secret.as_str()), "a secret is in the log");
        }
    }
}
