//! MacService.

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, unfinished},
    proto::{self, mac_service_server::MacService},
};
use crate::model::Action;

/// MacService over these parts.
pub struct MacApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl MacService for MacApi {
    async fn compute_mac(
        &self,
        r: Request<proto::ComputeMacRequest>,
    ) -> Answer<proto::ComputeMacResponse> {
        self.0.call(r, Action::ComputeMac, unfinished).await
    }

    async fn verify_mac(
        &self,
        r: Request<proto::VerifyMacRequest>,
    ) -> Answer<proto::VerifyMacResponse> {
        self.0.call(r, Action::VerifyMac, unfinished).await
    }

    async fn verify_webhook(
        &self,
        r: Request<proto::VerifyWebhookRequest>,
    ) -> Answer<proto::VerifyWebhookResponse> {
        self.0.call(r, Action::VerifyWebhook, unfinished).await
    }
}
