//! A rotation by the three people that it takes, step by step, as tests need it.

use std::time::Duration;

use claviger::grpc::proto::*;
use tokio::time::{Instant, sleep};

use super::{Daemon, PATIENCE, reason};

impl Daemon {
    /// Requested by the issuer, approved by the approver, deployed by the deployer as soon as the soak is over.
    pub async fn rotated(&self, tenant: &str, key: &str) -> Rotation {
        let request = RotateKeyRequest {
            tenant: tenant.into(),
            key: key.into(),
            justification: "every 90 days".into(),
            ..RotateKeyRequest::default()
        };
        let opened = self.actor("issuer").rotations().rotate_key(request).await;
        let opened = opened.expect("RotateKey").into_inner().rotation;
        let opened = opened.expect("a rotation");
        let request = ApproveRotationRequest {
            rotation_id: opened.id.clone(),
            plan_digest: opened.plan_digest,
        };
        let mut approver = self.actor("approver").rotations();
        approver
            .approve_rotation(request)
            .await
            .expect("ApproveRotation");
        let request = DeployRotationRequest {
            rotation_id: opened.id,
        };
        let mut deployer = self.actor("deployer").rotations();
        let until = Instant::now() + PATIENCE;
        loop {
            match deployer.deploy_rotation(request.clone()).await {
                Ok(answer) => return answer.into_inner().rotation.expect("a rotation"),
                Err(status) => assert_eq!(reason(&status), "ROTATION_SOAKING", "{status}"),
            }
            assert!(Instant::now() < until, "it soaks for ever");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the scheduler has ended the grace window of a rotation.
    pub async fn completed(&self, rotation: &Rotation) -> Rotation {
        let request = GetRotationRequest {
            rotation_id: rotation.id.clone(),
        };
        let mut issuer = self.actor("issuer").rotations();
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = issuer.get_rotation(request.clone()).await;
            let found = answer.expect("GetRotation").into_inner().rotation;
            let found = found.expect("a rotation");
            match found.state() {
                RotationState::Completed => return found,
                RotationState::Deployed => {}
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < until, "its grace does not end");
            sleep(Duration::from_millis(50)).await;
        }
    }
}
