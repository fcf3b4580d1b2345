//! Many credentials at once, each with an outcome of its own, all of them in one transaction.
//!
//! Made to be sent again: a value that is there already is left alone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{
    Place, PutCredential, Vault, Warnings, conflict,
    put::{Draft, hold, write},
};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Gate, Recorded},
    model::{
        Action, CredentialId, CredentialKey, KeyName, Principal, PrincipalId, SecretFields,
        TenantName, ValueLabel,
    },
};

/// One credential to import, or why it cannot be read.
pub struct ImportItem {
    /// Whose.
    pub owner: ItemOwner,
    /// Where it belongs.
    pub place: Place,
    /// The secret.
    pub fields: SecretFields,
    /// Organisation or account at the provider.
    pub organisation: String,
}

/// How an item names its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemOwner {
    /// By id.
    Id(PrincipalId),
    /// By name.
    Name(KeyName),
}

/// What ImportCredentials is asked for.
pub struct ImportRequest {
    /// Tenant of all of them.
    pub tenant: TenantName,
    /// The credentials, in order.
    pub items: Vec<Result<ImportItem>>,
    /// Replaces values that differ.
    pub replace: bool,
    /// Stores nothing.
    pub dry_run: bool,
}

/// What became of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportResult {
    /// Stored.
    Created,
    /// Stored in the place of another value.
    Replaced,
    /// The same value is there already.
    Unchanged,
    /// Another value is there.
    Conflict,
    /// It cannot be stored.
    Rejected,
}

/// What became of one item.
pub struct ImportOutcome {
    /// What.
    pub result: ImportResult,
    /// The credential, when there is one.
    pub credential: Option<CredentialId>,
    /// Why, for CONFLICT and REJECTED.
    pub error: Option<Error>,
    /// What is unusual about the value.
    pub warnings: Warnings,
}

/// What became of all items, in the order of the request.
pub type Imported = Vec<ImportOutcome>;

impl Vault {
    /// Stores what can be stored. `gate` makes the tenant's key when it is the first time.
    ///
    /// Errors: those that are no item's fault: CREDENTIAL_KEY_UNAVAILABLE, TENANT_ERASED, CONFLICT. Nothing is stored then.
    pub async fn import(
        &self,
        permit: AdminPermit,
        gate: &Gate,
        request: ImportRequest,
    ) -> Result<Recorded<Imported>> {
        let ImportRequest {
            tenant,
            items,
            replace,
            dry_run,
        } = request;
        permit
            .permit()
            .covers_tenant(Action::ImportCredentials, &tenant)?;
        self.make_key(gate, &tenant).await?;
        let mut owners = Owners::default();
        let (mut outcomes, mut drafts, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for item in items {
            let prepared = self.prepare(&tenant, &mut owners, item, replace).await?;
            let prepared = match prepared {
                Ok(prepared) if !seen.insert(prepared.key.clone()) => Err(Error::new(
                    Reason::InvalidField,
                    "the batch has this credential twice; the first one counts",
                )),
                other => other,
            };
            outcomes.push(match prepared {
                Ok(Prepared {
                    id, result, draft, ..
                }) => {
                    let warnings = draft.as_ref().map(|draft| draft.warnings.clone());
                    drafts.extend(draft);
                    ImportOutcome {
                        result,
                        credential: Some(id),
                        error: None,
                        warnings: warnings.unwrap_or_default(),
                    }
                }
                Err(error) => failed(error),
            });
        }
        if dry_run {
            drafts.clear();
        }
        record(permit, outcomes, &drafts, dry_run).await
    }

    /// What is to be done with an item. The inner error is its own fault.
    async fn prepare(
        &self,
        tenant: &TenantName,
        owners: &mut Owners,
        item: Result<ImportItem>,
        replace: bool,
    ) -> Result<Result<Prepared>> {
        let item = match item {
            Ok(item) => item,
            Err(error) => return Ok(Err(error)),
        };
        let Some(owner) = self.owner(tenant, owners, &item.owner).await? else {
            return Ok(Err(Error::new(
                Reason::PrincipalNotFound,
                "the tenant has no such principal",
            )));
        };
        let found = self.find_place(&owner, item.place).await?;
        let request = PutCredential {
            fields: item.fields,
            organisation: item.organisation,
            replace: true,
            rotation_period: None,
        };
        let current = found.existing.as_ref();
        let current = current.and_then(|full| Some((&full.head, full.value(ValueLabel::Current)?)));
        let result = match current {
            None if found.existing.is_none() => ImportResult::Created,
            None => ImportResult::Replaced,
            Some((head, value)) => match self.open(head, value).await {
                Ok(stored) if stored.is_same(&request.fields)? => {
                    return Ok(Ok(Prepared {
                        id: found.id,
                        key: found.key.clone(),
                        result: ImportResult::Unchanged,
                        draft: None,
                    }));
                }
                Ok(_) if replace => ImportResult::Replaced,
                Ok(_) => {
                    return Ok(Err(Error::new(
                        Reason::AlreadyExists,
                        "another value is there already; import with replace to put this one in its place",
                    )));
                }
                Err(error) if error.reason() == Reason::CredentialUnreadable && replace => {
                    ImportResult::Replaced
                }
                Err(error) if error.reason() == Reason::CredentialUnreadable => {
                    return Ok(Err(error));
                }
                Err(error) => return Err(error),
            },
        };
        match self.draft(&found, &request).await {
            Ok(draft) => Ok(Ok(Prepared {
                id: found.id,
                key: found.key,
                result,
                draft: Some(draft),
            })),
            Err(error) if error.reason() == Reason::InvalidField => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    async fn owner(
        &self,
        tenant: &TenantName,
        owners: &mut Owners,
        named: &ItemOwner,
    ) -> Result<Option<Principal>> {
        if let Some(known) = owners.0.get(named) {
            return Ok(known.clone());
        }
        let found = match named {
            ItemOwner::Id(id) => self.directory.find(*id).await?.1,
            ItemOwner::Name(name) => self.db.principal_by_name(tenant, name.as_str()).await?,
        };
        // Of another tenant is as if it did not exist (R-ACL-3).
        let found = found.filter(|principal| principal.tenant == *tenant);
        owners.0.insert(named.clone(), found.clone());
        Ok(found)
    }
}

async fn record(
    permit: AdminPermit,
    outcomes: Imported,
    drafts: &[Draft],
    dry_run: bool,
) -> Result<Recorded<Imported>> {
    let count = |result| outcomes.iter().filter(|o| o.result == result).count();
    let stored: Vec<_> = drafts
        .iter()
        .map(|draft| draft.head.id.to_string())
        .collect();
    let details = json!({
        "created": count(ImportResult::Created),
        "replaced": count(ImportResult::Replaced),
        "unchanged": count(ImportResult::Unchanged),
        "conflicts": count(ImportResult::Conflict),
        "rejected": count(ImportResult::Rejected),
        "dry_run": dry_run,
        "credentials": stored,
    });
    let mut mutation = permit.begin().await?;
    // One key has sealed them all; rotated in the middle, the older version is not ACTIVE and the batch comes again.
    let kids: BTreeMap<_, _> = drafts.iter().map(|d| (&d.value.kid, &d.value)).collect();
    for value in kids.into_values() {
        hold(&mut mutation, value).await?;
    }
    for draft in drafts {
        let written = write(mutation.tx(), draft).await;
        written.map_err(|error| match error.reason() {
            Reason::AlreadyExists => conflict(),
            _ => error,
        })?;
    }
    mutation.record(outcomes, details).await
}

/// Those who were looked up for this batch.
#[derive(Default)]
struct Owners(BTreeMap<ItemOwner, Option<Principal>>);

struct Prepared {
    id: CredentialId,
    key: CredentialKey,
    result: ImportResult,
    draft: Option<Draft>,
}

fn failed(error: Error) -> ImportOutcome {
    let result = match error.reason() {
        Reason::AlreadyExists => ImportResult::Conflict,
        _ => ImportResult::Rejected,
    };
    ImportOutcome {
        result,
        credential: None,
        error: Some(error),
        warnings: Warnings::new(),
    }
}
