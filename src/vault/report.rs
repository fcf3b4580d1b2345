//! What is configured, whether it looks right, and what the last probes said (R-CRED-6). Never a key.

use super::{CredentialsOf, ProviderCounts, Vault};
use crate::{error::Result, gate::Permit};

impl Vault {
    /// What there is for each provider and environment, by provider.
    pub async fn report(
        &self,
        _permit: &Permit,
        of: &CredentialsOf,
    ) -> Result<Vec<ProviderCounts>> {
        Ok(self.db.credential_report(Some(of)).await?)
    }

    /// Writes to the log what there is in all tenants together, as it was last looked at. Asks no provider and opens no
    /// value.
    ///
    /// Errors: the database does not answer.
    pub async fn log_report(&self) -> Result<()> {
        for row in self.db.credential_report(None).await? {
            let is_known = self.catalogue.provider(&row.provider).is_ok();
            tracing::info!(
                provider = %row.provider,
                environment = row.environment.as_str(),
                configured = row.configured,
                format_ok = row.format_ok,
                probe_valid = row.valid,
                probe_invalid = row.invalid,
                is_known,
                "credentials of a provider"
            );
        }
        Ok(())
    }
}
