//! The policies the daemon decides by: the built-in ones, or a directory's.

use std::{fs, path::Path};

use cedar_policy::{PolicyId, PolicySet, Schema};

use super::{
    entities::Words,
    load::{self, PolicyError},
};

/// Name of the schema in `policies/` and in every directory of policies.
pub(super) const SCHEMA_FILE: &str = "claviger.cedarschema";
pub(super) const SCHEMA: &str = include_str!("../../policies/claviger.cedarschema");
const BUILT_IN: [(&str, &str); 6] = [
    (
        "policies/administration.cedar",
        include_str!("../../policies/administration.cedar"),
    ),
    (
        "policies/keys.cedar",
        include_str!("../../policies/keys.cedar"),
    ),
    (
        "policies/use.cedar",
        include_str!("../../policies/use.cedar"),
    ),
    (
        "policies/vault.cedar",
        include_str!("../../policies/vault.cedar"),
    ),
    (
        "policies/leases.cedar",
        include_str!("../../policies/leases.cedar"),
    ),
    (
        "policies/credential_rotations.cedar",
        include_str!("../../policies/credential_rotations.cedar"),
    ),
];

/// Policies that were checked against the schema in Cedar's strict mode.
pub struct Policies {
    pub(super) set: PolicySet,
    pub(super) schema: Schema,
    pub(super) words: Words,
    pub(super) sources: Vec<PolicySource>,
}

/// One policy, as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// Its `@id`.
    pub id: String,
    /// The file it is in.
    pub file: String,
    /// The line it begins on.
    pub line: usize,
    /// Its text.
    pub text: String,
}

impl Policies {
    /// The policies that come with the daemon.
    pub fn built_in() -> Result<Self, PolicyError> {
        let files = BUILT_IN.map(|(file, text)| (file.to_owned(), text.to_owned()));
        load::check(&files)
    }

    /// Every `*.cedar` file of a directory, which must also hold the schema of this release.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let unreadable = |path: &Path| {
            let path = path.display().to_string();
            move |cause| PolicyError::Unreadable { path, cause }
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
            let path = entry.map_err(unreadable(dir))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "cedar")
            {
                let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
                files.push((path.display().to_string(), text));
            }
        }
        if files.is_empty() {
            let dir = dir.display().to_string();
            return Err(PolicyError::NoPolicies { dir });
        }
        files.sort();
        let path = dir.join(SCHEMA_FILE);
        let schema = fs::read_to_string(&path).map_err(unreadable(&path))?;
        load::same_schema(&path.display().to_string(), &schema)?;
        load::check(&files)
    }

    /// Every policy, in the order of the files.
    pub fn sources(&self) -> &[PolicySource] {
        &self.sources
    }

    pub(super) fn find(&self, id: &PolicyId) -> Option<&PolicySource> {
        let id: &str = id.as_ref();
        self.sources.iter().find(|source| source.id == id)
    }
}
