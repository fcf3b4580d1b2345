//! ClientService: OAuth clients.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, client_service_server::ClientService},
};
use crate::{
    audit::Receipt,
    clients::{ClientChange, CreateClient},
    error::Result,
    gate::not_found,
    model::{
        Action, Caller, Client, ClientId, ClientProof, ClientState, Identity, PrincipalId,
        Resource, Scopes,
    },
};

/// ClientService over these parts.
pub struct ClientApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "clients";
/// Characters of a name.
const MAX_NAME: usize = 100;

impl ClientApi {
    async fn create(
        &self,
        caller: Caller,
        r: proto::CreateClientRequest,
    ) -> Result<proto::CreateClientResponse> {
        let owner: PrincipalId = r.owner_id.parse()?;
        let request = CreateClient {
            name: convert::text("name", r.name, MAX_NAME)?,
            proof: proof(r.auth_method, r.jwks, &r.certificate_identity)?,
            scopes: Scopes::from_list(&r.scopes)?,
            audiences: r.audiences,
            ttl: convert::duration("token_ttl", r.token_ttl)?,
            coalesces: r.coalesce,
        };
        let (resource, owner) = self.0.directory.find(owner).await?;
        let clients = Arc::clone(&self.0.clients);
        let unknown = not_found(&resource);
        let answer = |client: &Client, receipt: &Receipt| proto::CreateClientResponse {
            client: Some(message(client)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| match owner {
            Some(owner) => clients.create(permit, owner, request).await,
            None => Err(unknown),
        };
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CreateClient, resource, answer, act)
            .await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetClientRequest,
    ) -> Result<proto::GetClientResponse> {
        let id: ClientId = r.client_id.parse()?;
        let (resource, found) = self.0.clients.find(id).await?;
        let unknown = not_found(&resource);
        let act = async |_permit| {
            let client = found.ok_or(unknown)?;
            let answer = proto::GetClientResponse {
                client: Some(message(&client)),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetClient, resource, act).await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListClientsRequest,
    ) -> Result<proto::ListClientsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(LISTING, &r.page_token)?;
        let clients = &self.0.clients;
        let resource = Resource::tenant(tenant.clone());
        let act = async |permit| {
            let page = clients.list(&permit, &tenant, &after, size).await?;
            let next = convert::next_page(LISTING, &page, size, |c| c.id.to_string());
            let answer = proto::ListClientsResponse {
                clients: page.iter().map(message).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListClients, resource, act)
            .await
    }

    async fn update(
        &self,
        caller: Caller,
        r: proto::UpdateClientRequest,
    ) -> Result<proto::UpdateClientResponse> {
        let id: ClientId = r.client_id.parse()?;
        if !r.scopes.is_empty() && !r.replace_scopes {
            return Err(convert::invalid(
                "scopes are taken over only with replace_scopes = true",
            ));
        }
        let scopes = r.replace_scopes.then(|| Scopes::from_list(&r.scopes));
        let identity = r.certificate_identity.as_deref();
        let change = ClientChange {
            jwks: r.jwks,
            identity: identity.map(str::parse::<Identity>).transpose()?,
            scopes: scopes.transpose()?,
            audiences: (!r.audiences.is_empty()).then_some(r.audiences),
            ttl: convert::duration("token_ttl", r.token_ttl)?,
            coalesces: r.coalesce,
            state: state(r.state)?,
        };
        let (resource, found) = self.0.clients.find(id).await?;
        let clients = Arc::clone(&self.0.clients);
        let unknown = not_found(&resource);
        let answer = |client: &Client, receipt: &Receipt| proto::UpdateClientResponse {
            client: Some(message(client)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| match found {
            Some(client) => clients.update(permit, client, change).await,
            None => Err(unknown),
        };
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::UpdateClient, resource, answer, act)
            .await
    }
}

/// How a client is to prove itself; what belongs to another way must be empty.
fn proof(method: i32, jwks: String, identity: &str) -> Result<ClientProof> {
    use proto::ClientAuthMethod as P;
    match (P::try_from(method), jwks.is_empty(), identity.is_empty()) {
        (Ok(P::ClientSecret), true, true) => Ok(ClientProof::Secret),
        (Ok(P::PrivateKeyJwt), false, true) => Ok(ClientProof::Assertion { jwks }),
        (Ok(P::TlsClientAuth), true, false) => Ok(ClientProof::Certificate {
            identity: identity.parse()?,
        }),
        (Ok(P::Unspecified) | Err(_), _, _) => Err(convert::invalid("auth_method is required")),
        (Ok(P::ClientSecret | P::PrivateKeyJwt | P::TlsClientAuth), _, _) => Err(convert::invalid(
            "jwks belongs to PRIVATE_KEY_JWT, certificate_identity to TLS_CLIENT_AUTH, and neither to CLIENT_SECRET",
        )),
    }
}

fn state(number: i32) -> Result<Option<ClientState>> {
    use proto::ClientState as P;
    match P::try_from(number) {
        Ok(P::Unspecified) => Ok(None),
        Ok(P::Active) => Ok(Some(ClientState::Active)),
        Ok(P::Suspended) => Ok(Some(ClientState::Suspended)),
        Err(_) => Err(convert::invalid("state must be ACTIVE or SUSPENDED")),
    }
}

fn message(c: &Client) -> proto::Client {
    use proto::{ClientAuthMethod as M, ClientState as S};
    let (method, jwks, identity) = match &c.proof {
        ClientProof::Secret => (M::ClientSecret, "", ""),
        ClientProof::Assertion { jwks } => (M::PrivateKeyJwt, jwks.as_str(), ""),
        ClientProof::Certificate { identity } => (M::TlsClientAuth, "", identity.as_str()),
    };
    let state = match c.state {
        ClientState::Active => S::Active,
        ClientState::Suspended => S::Suspended,
    };
    proto::Client {
        id: c.id.to_string(),
        tenant: c.tenant.to_string(),
        owner_id: c.owner.to_string(),
        name: c.name.clone(),
        auth_method: method.into(),
        jwks: jwks.to_owned(),
        certificate_identity: identity.to_owned(),
        scopes: c.scopes.iter().map(str::to_owned).collect(),
        audiences: c.audiences.clone(),
        token_ttl: c.ttl.and_then(convert::length),
        coalesce: c.coalesces,
        state: state.into(),
        create_time: convert::time(c.created_at),
    }
}

#[tonic::async_trait]
impl ClientService for ClientApi {
    async fn create_client(
        &self,
        r: Request<proto::CreateClientRequest>,
    ) -> Answer<proto::CreateClientResponse> {
        let act = async |caller, m| self.create(caller, m).await;
        self.0.call(r, Action::CreateClient, act).await
    }

    async fn get_client(
        &self,
        r: Request<proto::GetClientRequest>,
    ) -> Answer<proto::GetClientResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetClient, act).await
    }

    async fn list_clients(
        &self,
        r: Request<proto::ListClientsRequest>,
    ) -> Answer<proto::ListClientsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListClients, act).await
    }

    async fn update_client(
        &self,
        r: Request<proto::UpdateClientRequest>,
    ) -> Answer<proto::UpdateClientResponse> {
        let act = async |caller, m| self.update(caller, m).await;
        self.0.call(r, Action::UpdateClient, act).await
    }
}
