//! CredentialService: the vault.
//!
//! Answers that the gate keeps for repeated calls never hold a secret: that of RevealCredential is put in afterwards, and
//! only into the answer of the very call that was recorded.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{
    call::{self, Parts},
    convert,
    proto::{self, credential_service_server::CredentialService},
};
use crate::{
    audit::Receipt,
    error::{Error, Result},
    gate::not_found,
    model::{
        Action, Caller, CredentialEnvironment, KeyName, PrincipalId, ProbeResult, Probed, Provider,
        Resource, Secret, SecretFields, ValueLabel,
    },
    vault::{
        CredentialFilter, CredentialsOf, FullCredential, ImportItem, ImportOutcome, ImportRequest,
        ImportResult, Imported, ItemOwner, ListedCredential, ListedValue, Place, ProviderCounts,
        Put, PutCredential, Revealed, Validated,
    },
};

/// CredentialService over these parts.
pub struct CredentialApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "credentials";
/// Characters of an organisation.
const MAX_ORGANISATION: usize = 200;
/// Characters of a reason.
const MAX_REASON: usize = 500;
/// Items of one import.
const MAX_ITEMS: usize = 1000;

impl CredentialApi {
    async fn put(
        &self,
        caller: Caller,
        r: proto::PutCredentialRequest,
    ) -> Result<proto::PutCredentialResponse> {
        let fields = fields(r.fields);
        let owner = owner(&r.owner_id, &caller)?.unwrap_or(caller.principal.id);
        let place = place(&r.provider, r.environment, r.name)?;
        let request = PutCredential {
            fields: fields?,
            organisation: organisation(r.organisation)?,
            replace: r.replace,
            rotation_period: convert::duration("rotation_period", r.rotation_period)?,
        };
        let (resource, owner) = self.0.directory.find(owner).await?;
        let found = match &owner {
            Some(owner) => Some(self.0.vault.find_place(owner, place).await?),
            None => None,
        };
        let unknown = not_found(&resource);
        // To somebody of another tenant an owner with such a credential, one without and nobody are the same.
        let sees = caller.principal.sees(&resource.tenant);
        let found_resource = found.as_ref().filter(|_| sees).map(|f| f.resource.clone());
        let resource = found_resource.unwrap_or(resource);
        let request = Arc::new(request);
        let (asked, is_first) = (Arc::clone(&request), Arc::new(AtomicBool::new(false)));
        let answered = Arc::clone(&is_first);
        let answer = move |put: &Put, receipt: &Receipt| {
            answered.store(true, Ordering::Relaxed);
            proto::PutCredentialResponse {
                credential: Some(message(&put.credential)),
                warnings: put.warnings.clone(),
                created: put.is_new,
                receipt: convert::receipt(receipt),
            }
        };
        let (vault, gate) = (Arc::clone(&self.0.vault), Arc::clone(&self.0.gate));
        let tenant = resource.tenant.clone();
        let act = async move |permit| {
            let found = found.ok_or(unknown)?;
            vault.make_key(&gate, &tenant).await?;
            vault.put(permit, found, &asked).await
        };
        let gate = &self.0.gate;
        let put = gate.mutate(&caller, Action::PutCredential, resource, answer, act);
        let put = put.await?;
        if !is_first.load(Ordering::Relaxed) {
            self.expect_same(&put, &request.fields).await?;
        }
        Ok(put)
    }

    /// Errors: IDEMPOTENCY_KEY_REUSED when an answer that was given before is about another secret.
    async fn expect_same(
        &self,
        put: &proto::PutCredentialResponse,
        fields: &SecretFields,
    ) -> Result<()> {
        let Some(credential) = &put.credential else {
            return Ok(());
        };
        let mut values = credential.values.iter();
        let current = proto::CredentialLabel::Current;
        let value = values.find(|value| value.label() == current);
        match (credential.id.parse(), value.map(|value| value.id.parse())) {
            (Ok(credential), Some(Ok(value))) => {
                let vault = &self.0.vault;
                vault.expect_same(credential, value, fields).await
            }
            _ => Ok(()),
        }
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetCredentialRequest,
    ) -> Result<proto::GetCredentialResponse> {
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let vault = &self.0.vault;
        let act = async |permit| {
            let found = vault.show(&permit, found).await?;
            let answer = proto::GetCredentialResponse {
                credential: Some(message(&found)),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetCredential, resource, act)
            .await
    }

    async fn reveal(
        &self,
        caller: Caller,
        r: proto::RevealCredentialRequest,
    ) -> Result<proto::RevealCredentialResponse> {
        let reason = convert::text("reason", r.reason, MAX_REASON)?;
        let label = label(r.label)?;
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let handed_over = Arc::new(Mutex::new(None));
        let hand_over = Arc::clone(&handed_over);
        let answer = move |revealed: &Revealed, receipt: &Receipt| {
            let mut slot = hand_over.lock().unwrap_or_else(PoisonError::into_inner);
            *slot = Some((receipt.seq, shown(&revealed.fields)));
            proto::RevealCredentialResponse {
                credential: Some(message(&revealed.credential)),
                label: label_number(revealed.label),
                fields: Vec::new(),
                receipt: convert::receipt(receipt),
            }
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.reveal(permit, found, label, reason).await;
        let gate = &self.0.gate;
        let revealed = gate.mutate(&caller, Action::RevealCredential, resource, answer, act);
        let mut answer = revealed.await?;
        let mut slot = handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = answer.receipt.as_ref().map(|receipt| receipt.seq);
        if let Some((seq, fields)) = slot.take()
            && recorded == Some(seq)
        {
            answer.fields = fields;
        }
        Ok(answer)
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListCredentialsRequest,
    ) -> Result<proto::ListCredentialsResponse> {
        let (resource, of, unknown) = self.whose(&caller, &r.owner_id, &r.tenant).await?;
        let provider = match r.provider.as_str() {
            "" => None,
            name => Some(name.parse()?),
        };
        let filter = CredentialFilter {
            of,
            provider,
            environment: environment(r.environment)?,
        };
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(LISTING, &r.page_token)?;
        let vault = &self.0.vault;
        let act = async |permit| {
            if let Some(unknown) = unknown {
                return Err(unknown);
            }
            let page = vault.list(&permit, &filter, &after, size).await?;
            let next = convert::next_page(LISTING, &page, size, |c| c.head.id.to_string());
            let answer = proto::ListCredentialsResponse {
                credentials: page.iter().map(listed).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListCredentials, resource, act)
            .await
    }

    async fn delete(
        &self,
        caller: Caller,
        r: proto::DeleteCredentialRequest,
    ) -> Result<proto::DeleteCredentialResponse> {
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let resource = self.0.vault.to_delete(&self.0.gate, &caller, resource);
        let answer = |(): &(), receipt: &Receipt| proto::DeleteCredentialResponse {
            receipt: convert::receipt(receipt),
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.delete(permit, found).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::DeleteCredential, resource, answer, act)
            .await
    }

    async fn validate(
        &self,
        caller: Caller,
        r: proto::ValidateCredentialRequest,
    ) -> Result<proto::ValidateCredentialResponse> {
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let answer = |v: &Validated, receipt: &Receipt| proto::ValidateCredentialResponse {
            credential: Some(message(&v.credential)),
            warnings: v.warnings.clone(),
            probe: Some(probe(&v.probed)),
            receipt: convert::receipt(receipt),
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.validate(permit, found).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::ValidateCredential, resource, answer, act)
            .await
    }

    async fn import(
        &self,
        caller: Caller,
        r: proto::ImportCredentialsRequest,
    ) -> Result<proto::ImportCredentialsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        if !(1..=MAX_ITEMS).contains(&r.items.len()) {
            return Err(convert::invalid("items must be 1 to 1000"));
        }
        let request = ImportRequest {
            tenant: tenant.clone(),
            items: r.items.into_iter().map(item).collect(),
            replace: r.replace,
            dry_run: r.dry_run,
        };
        let answer = |imported: &Imported, receipt: &Receipt| proto::ImportCredentialsResponse {
            outcomes: imported.iter().map(outcome).collect(),
            receipt: convert::receipt(receipt),
        };
        let (vault, gate) = (Arc::clone(&self.0.vault), Arc::clone(&self.0.gate));
        let act = async move |permit| vault.import(permit, &gate, request).await;
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant));
        gate.mutate(&caller, Action::ImportCredentials, resource, answer, act)
            .await
    }

    async fn providers(&self, caller: Caller) -> Result<proto::ListProvidersResponse> {
        let resource = Resource::tenant(caller.principal.tenant.clone());
        let catalogue = self.0.vault.catalogue();
        let act = async |_permit| {
            let answer = proto::ListProvidersResponse {
                providers: catalogue.iter().map(provider).collect(),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListProviders, resource, act)
            .await
    }

    async fn report(
        &self,
        caller: Caller,
        r: proto::GetCredentialReportRequest,
    ) -> Result<proto::GetCredentialReportResponse> {
        let (resource, of, unknown) = self.whose(&caller, &r.owner_id, &r.tenant).await?;
        let vault = &self.0.vault;
        let act = async |permit| {
            if let Some(unknown) = unknown {
                return Err(unknown);
            }
            let counts = vault.report(&permit, &of).await?;
            let without = vault.catalogue().iter().map(|p| &p.name);
            let without = without.filter(|name| counts.iter().all(|row| row.provider != **name));
            let without = without.map(|name| proto::ProviderReport {
                provider: name.to_string(),
                ..Default::default()
            });
            let mut providers: Vec<_> = counts.iter().map(report).chain(without).collect();
            providers
                .sort_by(|a, b| (&a.provider, a.environment).cmp(&(&b.provider, b.environment)));
            Ok((
                proto::GetCredentialReportResponse { providers },
                String::new(),
            ))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetCredentialReport, resource, act)
            .await
    }

    /// Whose credentials a request is about, and what the gate decides about; with what there is to say once it has, when
    /// nobody has the id.
    pub(super) async fn whose(
        &self,
        caller: &Caller,
        owner_id: &str,
        tenant: &str,
    ) -> Result<(Resource, CredentialsOf, Option<Error>)> {
        let Some(owner) = owner(owner_id, caller)? else {
            let tenant = convert::tenant(tenant, caller)?;
            let resource = Resource::tenant(tenant.clone());
            return Ok((resource, CredentialsOf::Tenant(tenant), None));
        };
        let (resource, found) = self.0.directory.find(owner).await?;
        let unknown = found.is_none().then(|| not_found(&resource));
        Ok((resource, CredentialsOf::Owner(owner), unknown))
    }
}

/// The principal that a request names: None for none, the caller for `me`.
fn owner(id: &str, caller: &Caller) -> Result<Option<PrincipalId>> {
    match id {
        "" => Ok(None),
        "me" => Ok(Some(caller.principal.id)),
        id => id.parse().map(Some),
    }
}

fn place(provider: &str, number: i32, name: String) -> Result<Place> {
    let environment = environment(number)?;
    Ok(Place {
        provider: provider.parse()?,
        environment: environment.ok_or_else(|| convert::invalid("environment is required"))?,
        name: match name.as_str() {
            "" => "default".to_owned(),
            _ => name,
        },
    })
}

fn organisation(given: String) -> Result<String> {
    match given.as_str() {
        "" => Ok(given),
        _ => convert::text("organisation", given, MAX_ORGANISATION),
    }
}

/// The secret of a request; its buffers are wiped whatever comes of it.
pub(super) fn fields(given: Vec<proto::CredentialField>) -> Result<SecretFields> {
    let values: Vec<_> = given
        .into_iter()
        .map(|field| (field.name, call::secret(field.value)))
        .collect();
    let texts = values.iter().map(|(name, value)| {
        let text = std::str::from_utf8(value.expose_secret())
            .map_err(|_| convert::invalid("the value of a field of the secret is no UTF-8"))?;
        Ok((name.clone(), Secret::new(text.to_owned())))
    });
    SecretFields::new(texts.collect::<Result<Vec<_>>>()?)
}

pub(super) fn shown(fields: &SecretFields) -> Vec<proto::CredentialField> {
    let fields = fields.iter();
    fields
        .map(|(name, value)| proto::CredentialField {
            name: name.to_owned(),
            value: wiped(value),
        })
        .collect()
}

fn wiped(value: &Secret<String>) -> Bytes {
    call::wiped(Secret::new(value.expose_secret().as_bytes().to_vec()))
}

/// What a request without its secret is hashed as.
fn hide_secret(message: &mut proto::PutCredentialRequest) {
    message.fields.iter_mut().for_each(|f| f.value.clear());
}

fn hide_secrets(message: &mut proto::ImportCredentialsRequest) {
    let fields = message.items.iter_mut().flat_map(|item| &mut item.fields);
    fields.for_each(|field| field.value.clear());
}

fn item(given: proto::ImportCredential) -> Result<ImportItem> {
    // First, so that its buffers are wiped also when something else is wrong.
    let fields = fields(given.fields);
    let owner = match (given.owner_id.as_str(), given.owner_name.as_str()) {
        ("", "") => return Err(convert::invalid("owner_id or owner_name is required")),
        (id, "") => ItemOwner::Id(id.parse()?),
        ("", name) => ItemOwner::Name(name.parse::<KeyName>()?),
        _ => {
            return Err(convert::invalid(
                "owner_id and owner_name exclude each other",
            ));
        }
    };
    Ok(ImportItem {
        owner,
        place: place(&given.provider, given.environment, given.name)?,
        fields: fields?,
        organisation: organisation(given.organisation)?,
    })
}

fn outcome(o: &ImportOutcome) -> proto::ImportOutcome {
    use proto::ImportResult as R;
    let result = match o.result {
        ImportResult::Created => R::Created,
        ImportResult::Replaced => R::Replaced,
        ImportResult::Unchanged => R::Unchanged,
        ImportResult::Conflict => R::Conflict,
        ImportResult::Rejected => R::Rejected,
    };
    let error = o.error.as_ref();
    proto::ImportOutcome {
        result: result.into(),
        credential_id: o.credential.map(|id| id.to_string()).unwrap_or_default(),
        reason: error.map_or("", |e| e.reason().as_str()).to_owned(),
        message: error.map_or("", Error::message).to_owned(),
        warnings: o.warnings.clone(),
    }
}

fn environment(number: i32) -> Result<Option<CredentialEnvironment>> {
    use proto::CredentialEnvironment as P;
    match P::try_from(number) {
        Ok(P::Unspecified) => Ok(None),
        Ok(P::Development) => Ok(Some(CredentialEnvironment::Development)),
        Ok(P::Testing) => Ok(Some(CredentialEnvironment::Testing)),
        Ok(P::Production) => Ok(Some(CredentialEnvironment::Production)),
        Err(_) => Err(convert::invalid(
            "environment must be DEVELOPMENT, TESTING or PRODUCTION",
        )),
    }
}

fn environment_number(environment: CredentialEnvironment) -> i32 {
    use proto::CredentialEnvironment as P;
    match environment {
        CredentialEnvironment::Development => P::Development,
        CredentialEnvironment::Testing => P::Testing,
        CredentialEnvironment::Production => P::Production,
    }
    .into()
}

fn label(number: i32) -> Result<ValueLabel> {
    use proto::CredentialLabel as P;
    match P::try_from(number) {
        Ok(P::Unspecified | P::Current) => Ok(ValueLabel::Current),
        Ok(P::Pending) => Ok(ValueLabel::Pending),
        Ok(P::Previous) => Ok(ValueLabel::Previous),
        Err(_) => Err(convert::invalid(
            "label must be PENDING, CURRENT or PREVIOUS",
        )),
    }
}

fn label_number(label: ValueLabel) -> i32 {
    use proto::CredentialLabel as P;
    match label {
        ValueLabel::Pending => P::Pending,
        ValueLabel::Current => P::Current,
        ValueLabel::Previous => P::Previous,
    }
    .into()
}

pub(super) fn probe(probed: &Probed) -> proto::CredentialProbe {
    use proto::ProbeResult as P;
    let result = match probed.result {
        ProbeResult::Valid => P::Valid,
        ProbeResult::Invalid => P::Invalid,
        ProbeResult::Unexpected => P::Unexpected,
        ProbeResult::Unreachable => P::Unreachable,
        ProbeResult::NoProbe => P::NoProbe,
    };
    proto::CredentialProbe {
        result: result.into(),
        detail: probed.detail.clone(),
        time: convert::time(probed.at),
    }
}

fn value(v: &ListedValue) -> proto::CredentialValue {
    proto::CredentialValue {
        id: v.id.to_string(),
        label: label_number(v.label),
        last_four: v.last_four.clone(),
        kid: v.kid.to_string(),
        create_time: convert::time(v.created_at),
        promote_time: v.promoted_at.and_then(convert::time),
        hold_until_time: v.hold_until.and_then(convert::time),
    }
}

pub(super) fn message(c: &FullCredential) -> proto::Credential {
    listed(&c.listed())
}

/// As `message`, for listings.
pub(super) fn listed(c: &ListedCredential) -> proto::Credential {
    let head = &c.head;
    proto::Credential {
        id: head.id.to_string(),
        tenant: head.key.tenant.to_string(),
        owner_id: head.key.owner.to_string(),
        provider: head.key.provider.to_string(),
        environment: environment_number(head.key.environment),
        name: head.key.name.clone(),
        organisation: head.organisation.clone(),
        masked: c.masked(),
        values: c.values.iter().map(value).collect(),
        format_ok: head.format_ok,
        last_probe: head.probe.as_ref().map(probe),
        rotation_period: convert::length(head.rotation_period),
        rotation_due_time: convert::time(head.rotation_due_at),
        rotation_driver: head.rotation_driver.as_str().to_owned(),
        create_time: convert::time(head.created_at),
        update_time: convert::time(head.updated_at),
    }
}

fn provider(p: &Provider) -> proto::Provider {
    let fields = p.fields.iter().map(|field| proto::ProviderField {
        name: field.name.clone(),
        required: !field.optional,
        formats: field.formats.iter().map(ToString::to_string).collect(),
    });
    let variables = p.fields.iter().filter_map(|field| {
        let variable = field.variable.clone()?;
        Some((field.name.clone(), variable))
    });
    let probe = p.probe.as_ref().map(|probe| {
        let url = probe.url(CredentialEnvironment::Production);
        format!("{} {url}", probe.method)
    });
    proto::Provider {
        name: p.name.to_string(),
        title: p.title.clone(),
        kind: p.kind.as_str().to_owned(),
        fields: fields.collect(),
        rotation_period: convert::length(p.rotation_period()),
        probe: probe.unwrap_or_default(),
        variables: variables.collect(),
    }
}

fn report(row: &ProviderCounts) -> proto::ProviderReport {
    proto::ProviderReport {
        provider: row.provider.to_string(),
        environment: environment_number(row.environment),
        configured: row.configured,
        format_ok: row.format_ok,
        probe_valid: row.valid,
        probe_invalid: row.invalid,
        probe_unknown: row.configured - row.valid - row.invalid,
        last_probe_time: row.last_probe.and_then(convert::time),
    }
}

#[tonic::async_trait]
impl CredentialService for CredentialApi {
    async fn put_credential(
        &self,
        r: Request<proto::PutCredentialRequest>,
    ) -> Answer<proto::PutCredentialResponse> {
        let act = async |caller, m| self.put(caller, m).await;
        self.0
            .call_hiding(r, Action::PutCredential, hide_secret, act)
            .await
    }

    async fn get_credential(
        &self,
        r: Request<proto::GetCredentialRequest>,
    ) -> Answer<proto::GetCredentialResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetCredential, act).await
    }

    async fn reveal_credential(
        &self,
        r: Request<proto::RevealCredentialRequest>,
    ) -> Answer<proto::RevealCredentialResponse> {
        let act = async |caller, m| self.reveal(caller, m).await;
        self.0.call(r, Action::RevealCredential, act).await
    }

    async fn list_credentials(
        &self,
        r: Request<proto::ListCredentialsRequest>,
    ) -> Answer<proto::ListCredentialsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListCredentials, act).await
    }

    async fn delete_credential(
        &self,
        r: Request<proto::DeleteCredentialRequest>,
    ) -> Answer<proto::DeleteCredentialResponse> {
        let act = async |caller, m| self.delete(caller, m).await;
        self.0.call(r, Action::DeleteCredential, act).await
    }

    async fn validate_credential(
        &self,
        r: Request<proto::ValidateCredentialRequest>,
    ) -> Answer<proto::ValidateCredentialResponse> {
        let act = async |caller, m| self.validate(caller, m).await;
        self.0.call(r, Action::ValidateCredential, act).await
    }

    async fn import_credentials(
        &self,
        r: Request<proto::ImportCredentialsRequest>,
    ) -> Answer<proto::ImportCredentialsResponse> {
        let act = async |caller, m| self.import(caller, m).await;
        self.0
            .call_hiding(r, Action::ImportCredentials, hide_secrets, act)
            .await
    }

    async fn list_providers(
        &self,
        r: Request<proto::ListProvidersRequest>,
    ) -> Answer<proto::ListProvidersResponse> {
        let act = async |caller, _| self.providers(caller).await;
        self.0.call(r, Action::ListProviders, act).await
    }

    async fn get_credential_report(
        &self,
        r: Request<proto::GetCredentialReportRequest>,
    ) -> Answer<proto::GetCredentialReportResponse> {
        let act = async |caller, m| self.report(caller, m).await;
        self.0.call(r, Action::GetCredentialReport, act).await
    }
}
