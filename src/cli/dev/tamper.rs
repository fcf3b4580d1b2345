//! A row of the audit log changed behind the daemon's back, on a copy, and found.

use std::path::Path;

use crate::cli::exit::{Failure, Result};

/// Copies the database that `config` names, changes one audit row of the copy below `dir`, verifies the copy,
/// and returns what was found, in a sentence. Errors: the change was not found, or the copy cannot be made.
pub async fn tampered_copy_is_found(config: &Path, dir: &Path) -> Result<String> {
    let (config, dir) = (config.display(), dir.display());
    Err(Failure::other(format!(
        "not built yet: a changed copy of {config}'s database below {dir}"
    )))
}
