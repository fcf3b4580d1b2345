//! Requests about usage, limits and alerts of tenant acme.

use claviger::grpc::proto::*;

use super::{Case, World, case, fresh};

impl World {
    pub(super) async fn usage_case(&self, name: &str) -> Case {
        let tenant = "acme".to_owned();
        match name {
            "RecordUsage" => {
                let record = |events| RecordUsageRequest {
                    tenant: tenant.clone(),
                    events,
                };
                let event = UsageEvent {
                    event_id: fresh("event"),
                    provider: "openai".into(),
                    principal_id: self.daemon.id_of("service").await,
                    ..Default::default()
                };
                case(&record(vec![event])).or(&record(Vec::new()))
            }
            "AcquireUsage" => {
                let principal = self.daemon.id_of("service").await;
                let acquire = |requests| AcquireUsageRequest {
                    tenant: tenant.clone(),
                    provider: "openai".into(),
                    credential_id: fresh("credential"),
                    principal_id: principal.clone(),
                    requests,
                    ..Default::default()
                };
                case(&acquire(1)).or(&acquire(101))
            }
            "GetUsageReport" => {
                let report = |span| GetUsageReportRequest {
                    tenant: tenant.clone(),
                    begin_time: Some(prost_types::Timestamp::default()),
                    span,
                    ..Default::default()
                };
                case(&report(0)).or(&report(9))
            }
            "SetLimit" => case(&set("CREDENTIAL", Some(5))).or(&set("CREDENTIAL", None)),
            "ListLimits" => case(&ListLimitsRequest {
                tenant,
                ..Default::default()
            }),
            "DeleteLimit" => {
                let subject = fresh("credential");
                let set = set(&subject, Some(5));
                let made = self.daemon.actor("admin").usage().set_limit(set).await;
                made.expect("SetLimit");
                let delete = |subject_type| DeleteLimitRequest {
                    tenant: tenant.clone(),
                    subject_type,
                    subject: subject.clone(),
                };
                case(&delete(LimitSubject::Credential.into())).or(&delete(0))
            }
            "ListAlerts" => case(&ListAlertsRequest {
                tenant,
                ..Default::default()
            }),
            "AckAlert" => {
                let ack = |alert_id| AckAlertRequest {
                    tenant: tenant.clone(),
                    alert_id,
                    note: "on it".into(),
                };
                let (new, seen) = (self.alert().await, self.alert().await);
                let mut officer = self.daemon.actor("officer").alerts();
                officer
                    .ack_alert(ack(seen.clone()))
                    .await
                    .expect("AckAlert");
                case(&ack(new)).or(&ack(seen))
            }
            "ListDeliveries" => case(&ListDeliveriesRequest {
                tenant,
                ..Default::default()
            }),
            _ => {
                let retry = |delivery_id| RetryDeliveryRequest {
                    tenant: tenant.clone(),
                    delivery_id,
                };
                let (dead, done) = (
                    self.delivery("DEAD").await,
                    self.delivery("DELIVERED").await,
                );
                case(&retry(dead)).or(&retry(done))
            }
        }
    }

    /// An alert that was raised behind the daemon's back, and that it need not deliver any more.
    async fn alert(&self) -> String {
        let id = uuid::Uuid::now_v7().to_string();
        self.daemon
            .execute(&format!(
                "INSERT INTO alerts (id, tenant, kind, entity, entity_id, text, state, raised_at, window_key, routed_at) \
                 VALUES ('{id}', 'acme', 'TEST', 'test', 'test', 'a test', 'FIRING', 1, '{id}', 1)"
            ))
            .await;
        id
    }

    async fn delivery(&self, state: &str) -> String {
        let (id, alert) = (uuid::Uuid::now_v7(), self.alert().await);
        self.daemon
            .execute(&format!(
                "INSERT INTO alert_deliveries (id, alert_id, tenant, channel, state, attempts, next_at, created_at) \
                 VALUES ('{id}', '{alert}', 'acme', 'elsewhere', '{state}', 12, 1, 1)"
            ))
            .await;
        id.to_string()
    }
}

fn set(subject: &str, requests_per_minute: Option<i64>) -> SetLimitRequest {
    SetLimitRequest {
        tenant: "acme".into(),
        limit: Some(UsageLimit {
            subject_type: LimitSubject::Credential.into(),
            subject: subject.into(),
            requests_per_minute,
            ..Default::default()
        }),
    }
}
