//! DataKeyService: data keys for callers who encrypt by themselves, and random bytes.

use std::{collections::BTreeMap, ops::RangeInclusive};

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, by, wiped},
    convert,
    crypto::check_aad,
    proto::{self, data_key_service_server::DataKeyService},
};
use crate::{
    error::Result,
    keys::{DATA_KEY_LENGTHS, NewDataKey},
    model::{Action, Caller, Resource},
};

/// DataKeyService over these parts.
pub struct DataKeyApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

/// Length of a data key when the caller names none, in bytes.
const DEFAULT_LENGTH: usize = 32;
/// How many random bytes one call returns.
const RANDOM_LENGTHS: RangeInclusive<usize> = 1..=1024;

/// What both ways to generate a data key are asked for.
struct Wanted {
    tenant: String,
    key: String,
    aad: BTreeMap<String, String>,
    length: u32,
}

impl DataKeyApi {
    async fn generate(
        &self,
        caller: &Caller,
        action: Action,
        wanted: Wanted,
    ) -> Result<NewDataKey> {
        check_aad(&wanted.aad)?;
        let length = data_key_length(wanted.length)?;
        let target = self.0.target(caller, &wanted.tenant, &wanted.key).await?;
        let act = async |permit| {
            let (key, aad) = (target.snapshot()?, &wanted.aad);
            let keys = &self.0.keys;
            let made = keys.generate_data_key(&permit, action, key, length, aad);
            let made = made.await?;
            let details = by(&made.kid);
            Ok((made, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, action, target.resource(), act).await
    }

    async fn decrypt(
        &self,
        caller: &Caller,
        r: proto::DecryptDataKeyRequest,
    ) -> Result<proto::DecryptDataKeyResponse> {
        // As long as a ciphertext may be: one of Encrypt is refused like any other that is no wrapped data key.
        self.0.limits.check_ciphertext("wrapped", &r.wrapped)?;
        check_aad(&r.aad)?;
        let target = self.0.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let opened = keys.decrypt_data_key(&permit, key, &r.wrapped, &r.aad);
            let (plaintext, kid) = opened.await?;
            let details = by(&kid);
            let answer = proto::DecryptDataKeyResponse {
                plaintext: wiped(plaintext),
                kid: kid.to_string(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::DecryptDataKey, target.resource(), act)
            .await
    }

    async fn random(
        &self,
        caller: &Caller,
        r: proto::GenerateRandomRequest,
    ) -> Result<proto::GenerateRandomResponse> {
        let length = usize::try_from(r.length).unwrap_or(usize::MAX);
        if !RANDOM_LENGTHS.contains(&length) {
            return Err(convert::invalid("length must be 1 to 1024"));
        }
        let tenant = &caller.principal.tenant;
        let act = async |permit| {
            let random = wiped(self.0.keys.random(&permit, tenant, length)?);
            Ok((proto::GenerateRandomResponse { random }, String::new()))
        };
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant.clone()));
        gate.access(caller, Action::GenerateRandom, resource, act)
            .await
    }
}

/// The length to use. Errors: INVALID_FIELD.
fn data_key_length(asked: u32) -> Result<usize> {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT_LENGTH),
        length if DATA_KEY_LENGTHS.contains(&length) => Ok(length),
        _ => Err(convert::invalid(
            "length must be 16, 32 or 64 bytes, or 0 for 32",
        )),
    }
}

#[tonic::async_trait]
impl DataKeyService for DataKeyApi {
    async fn generate_data_key(
        &self,
        r: Request<proto::GenerateDataKeyRequest>,
    ) -> Answer<proto::GenerateDataKeyResponse> {
        let action = Action::GenerateDataKey;
        let act = async |caller: Caller, m: proto::GenerateDataKeyRequest| {
            let wanted = Wanted {
                tenant: m.tenant,
                key: m.key,
                aad: m.aad,
                length: m.length,
            };
            let made = self.generate(&caller, action, wanted).await?;
            Ok(proto::GenerateDataKeyResponse {
                plaintext: wiped(made.plaintext),
                wrapped: made.wrapped.into(),
                kid: made.kid.to_string(),
            })
        };
        self.0.call(r, action, act).await
    }

    async fn generate_data_key_without_plaintext(
        &self,
        r: Request<proto::GenerateDataKeyWithoutPlaintextRequest>,
    ) -> Answer<proto::GenerateDataKeyWithoutPlaintextResponse> {
        let action = Action::GenerateDataKeyWithoutPlaintext;
        let act = async |caller: Caller, m: proto::GenerateDataKeyWithoutPlaintextRequest| {
            let wanted = Wanted {
                tenant: m.tenant,
                key: m.key,
                aad: m.aad,
                length: m.length,
            };
            let made = self.generate(&caller, action, wanted).await?;
            Ok(proto::GenerateDataKeyWithoutPlaintextResponse {
                wrapped: made.wrapped.into(),
                kid: made.kid.to_string(),
            })
        };
        self.0.call(r, action, act).await
    }

    async fn decrypt_data_key(
        &self,
        r: Request<proto::DecryptDataKeyRequest>,
    ) -> Answer<proto::DecryptDataKeyResponse> {
        let act = async |caller, m| self.decrypt(&caller, m).await;
        self.0.call(r, Action::DecryptDataKey, act).await
    }

    async fn generate_random(
        &self,
        r: Request<proto::GenerateRandomRequest>,
    ) -> Answer<proto::GenerateRandomResponse> {
        let act = async |caller, m| self.random(&caller, m).await;
        self.0.call(r, Action::GenerateRandom, act).await
    }
}
