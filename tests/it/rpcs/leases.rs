//! Requests about leases of the service of tenant acme, which holds what is its own.

use claviger::grpc::proto::{
    LeaseCredentialRequest, ListLeasesRequest, RenewLeaseRequest, ReturnLeaseRequest,
    RevokeLeaseRequest, WatchCredentialsRequest,
};

use super::{Case, World, case};

impl World {
    /// A lease of a new credential.
    async fn lease(&self) -> String {
        let request = LeaseCredentialRequest {
            credential_id: self.credential().await,
            ttl: None,
        };
        let service = self.daemon.actor("service");
        let leased = service.leases().lease_credential(request).await;
        let lease = leased.expect("LeaseCredential").into_inner().lease;
        lease.expect("a lease").id
    }

    pub(super) async fn lease_case(&self, name: &str) -> Case {
        match name {
            "LeaseCredential" => {
                let good = LeaseCredentialRequest {
                    credential_id: self.credential().await,
                    ttl: None,
                };
                let mut bad = good.clone();
                bad.ttl = Some(prost_types::Duration::default());
                case(&good).or(&bad)
            }
            "RenewLease" => {
                let renew = |lease_id| RenewLeaseRequest {
                    lease_id,
                    ttl: None,
                };
                case(&renew(self.lease().await)).or(&renew("none".into()))
            }
            "ReturnLease" => {
                let give_back = |lease_id| ReturnLeaseRequest { lease_id };
                case(&give_back(self.lease().await)).or(&give_back("none".into()))
            }
            "RevokeLease" => {
                let revoke = |lease_id| RevokeLeaseRequest {
                    lease_id,
                    reason: "a test".into(),
                };
                case(&revoke(self.lease().await)).or(&revoke("none".into()))
            }
            "ListLeases" => case(&ListLeasesRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            _ => case(&WatchCredentialsRequest {
                credential_ids: vec![self.credential().await],
                once: true,
            }),
        }
    }
}
