//! MacService: MACs, and webhooks that carry one.

use std::ops::RangeInclusive;

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, by},
    convert,
    proto::{self, mac_service_server::MacService},
};
use crate::{
    error::Result,
    keys::{DEFAULT_TOLERANCE, Delivery, Scheme, TOLERANCES, Verdict},
    model::{Action, Caller, Kid},
};

/// MacService over these parts.
pub struct MacApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

/// Lengths of a MAC that are looked at, in bytes: HMAC-SHA-512 has 64.
const MAC_LENGTHS: RangeInclusive<usize> = 1..=64;
/// MACs of one delivery.
const MACS: RangeInclusive<usize> = 1..=8;
/// Lengths of an event id, in bytes.
const EVENT_ID_LENGTHS: RangeInclusive<usize> = 1..=256;

impl MacApi {
    async fn compute(
        &self,
        caller: &Caller,
        r: proto::ComputeMacRequest,
    ) -> Result<proto::ComputeMacResponse> {
        self.0.limits.check("message", &r.message)?;
        let target = self.0.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let (mac, kid) = self.0.keys.compute_mac(&permit, key, &r.message).await?;
            let details = by(&kid);
            let answer = proto::ComputeMacResponse {
                mac: mac.into(),
                kid: kid.to_string(),
                algorithm: convert::algorithm_number(key.key.algorithm),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::ComputeMac, target.resource(), act)
            .await
    }

    async fn verify(
        &self,
        caller: &Caller,
        r: proto::VerifyMacRequest,
    ) -> Result<proto::VerifyMacResponse> {
        self.0.limits.check("message", &r.message)?;
        if !MAC_LENGTHS.contains(&r.mac.len()) {
            return Err(convert::invalid("mac must be 1 to 64 bytes"));
        }
        let kid = match r.kid.as_str() {
            "" => None,
            kid => Some(kid.parse::<Kid>()?),
        };
        let target = self.0.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let verified = keys.verify_mac(&permit, key, kid.as_ref(), &r.message, &r.mac);
            let verified = verified.await?;
            let details = match &verified {
                Some(kid) => by(kid),
                None => r#"{"valid":false}"#.to_owned(),
            };
            let answer = proto::VerifyMacResponse {
                valid: verified.is_some(),
                kid: verified.map(|kid| kid.to_string()).unwrap_or_default(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::VerifyMac, target.resource(), act)
            .await
    }

    async fn webhook(
        &self,
        caller: &Caller,
        r: proto::VerifyWebhookRequest,
    ) -> Result<proto::VerifyWebhookResponse> {
        self.0.limits.check("body", &r.body)?;
        let macs: Vec<&[u8]> = r.macs.iter().map(AsRef::as_ref).collect();
        let delivery = delivery(&r, &macs)?;
        let target = self.0.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let judged = self.0.keys.verify_webhook(&permit, key, &delivery);
            Ok(said(judged.await?))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::VerifyWebhook, target.resource(), act)
            .await
    }
}

/// The delivery that a request describes. Errors: INVALID_FIELD.
fn delivery<'a>(r: &'a proto::VerifyWebhookRequest, macs: &'a [&'a [u8]]) -> Result<Delivery<'a>> {
    use proto::WebhookScheme as P;
    let scheme = match P::try_from(r.scheme) {
        Ok(P::TimestampBody) => Scheme::TimestampBody,
        Ok(P::IdTimestampBody) => Scheme::IdTimestampBody,
        Ok(P::Unspecified) | Err(_) => return Err(convert::invalid("scheme is required")),
    };
    let id = r.event_id.as_str();
    if !EVENT_ID_LENGTHS.contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(convert::invalid(
            "event_id must be 1 to 256 visible ASCII characters",
        ));
    }
    // With it, one signed text could be cut into id, timestamp and body in two ways.
    if scheme == Scheme::IdTimestampBody && id.contains('.') {
        return Err(convert::invalid(
            "event_id must have no \".\" where that separates it from the timestamp",
        ));
    }
    if r.timestamp < 1 {
        return Err(convert::invalid(
            "timestamp is required: Unix seconds, as in the delivery",
        ));
    }
    if !MACS.contains(&macs.len()) || macs.iter().any(|mac| !MAC_LENGTHS.contains(&mac.len())) {
        return Err(convert::invalid("macs must be 1 to 8, each 1 to 64 bytes"));
    }
    let tolerance = convert::duration("tolerance", r.tolerance)?.unwrap_or(DEFAULT_TOLERANCE);
    if !TOLERANCES.contains(&tolerance) {
        return Err(convert::invalid("tolerance must be 1 second to 1 hour"));
    }
    Ok(Delivery {
        scheme,
        timestamp: r.timestamp,
        event_id: id,
        body: &r.body,
        macs,
        tolerance,
    })
}

/// The answer, and what the audit row says of it.
fn said(verdict: Verdict) -> (proto::VerifyWebhookResponse, String) {
    use proto::WebhookVerdict as P;
    let (word, kid, first_seen) = match verdict {
        Verdict::Valid(kid) => (P::Valid, Some(kid), None),
        Verdict::MacInvalid => (P::MacInvalid, None, None),
        Verdict::OutsideTolerance(kid) => (P::OutsideTolerance, Some(kid), None),
        Verdict::Replayed(kid, at) => (P::Replayed, Some(kid), Some(at)),
    };
    let name = word.as_str_name().trim_start_matches("WEBHOOK_VERDICT_");
    let details = match &kid {
        Some(kid) => format!(r#"{{"kid":"{kid}","verdict":"{name}"}}"#),
        None => format!(r#"{{"verdict":"{name}"}}"#),
    };
    let answer = proto::VerifyWebhookResponse {
        valid: word == P::Valid,
        verdict: word.into(),
        kid: kid.map(|kid| kid.to_string()).unwrap_or_default(),
        first_seen_time: first_seen.and_then(convert::time),
    };
    (answer, details)
}

#[tonic::async_trait]
impl MacService for MacApi {
    async fn compute_mac(
        &self,
        r: Request<proto::ComputeMacRequest>,
    ) -> Answer<proto::ComputeMacResponse> {
        let act = async |caller, m| self.compute(&caller, m).await;
        self.0.call(r, Action::ComputeMac, act).await
    }

    async fn verify_mac(
        &self,
        r: Request<proto::VerifyMacRequest>,
    ) -> Answer<proto::VerifyMacResponse> {
        let act = async |caller, m| self.verify(&caller, m).await;
        self.0.call(r, Action::VerifyMac, act).await
    }

    async fn verify_webhook(
        &self,
        r: Request<proto::VerifyWebhookRequest>,
    ) -> Answer<proto::VerifyWebhookResponse> {
        let act = async |caller, m| self.webhook(&caller, m).await;
        self.0.call(r, Action::VerifyWebhook, act).await
    }
}
