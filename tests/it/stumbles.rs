//! R-ACL-2: a call that is malformed leaves a row too, although no gate has seen it.

use claviger::grpc::proto::{
    AuditOutcome, BatchSignRequest, CreateKeyRequest, ListAuditEventsRequest, SignRequest,
    batch_sign_request, sign_request::Payload,
};

use crate::daemon::{Daemon, Engine, reason};

/// Outcomes and details of one action's rows in a tenant, newest first.
async fn rows(daemon: &Daemon, tenant: &str, action: &str) -> Vec<(AuditOutcome, String)> {
    let request = ListAuditEventsRequest {
        tenant: tenant.into(),
        action: action.into(),
        ..ListAuditEventsRequest::default()
    };
    let listed = daemon
        .actor("auditor")
        .audit()
        .list_audit_events(request)
        .await
        .expect("lists");
    let events = listed.into_inner().events.into_iter();
    events.map(|e| (e.outcome(), e.data)).collect()
}

#[tokio::test]
async fn malformed_calls_leave_a_row() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let create = CreateKeyRequest {
        tenant: "acme".into(),
        name: "bad\u{7}name".into(),
        ..CreateKeyRequest::default()
    };
    let refused = daemon.actor("issuer").keys().create_key(create).await;
    assert_eq!(reason(&refused.expect_err("refused")), "INVALID_FIELD");
    let invalid = r#"{"reason":"INVALID_FIELD"}"#.to_owned();
    assert_eq!(
        rows(&daemon, "system", "CreateKey").await,
        [(AuditOutcome::Failed, invalid)]
    );

    let empty = SignRequest {
        key: "any".into(),
        payload: Some(Payload::Message("".into())),
        ..SignRequest::default()
    };
    let service = daemon.actor("service");
    let refused = service.crypto().sign(empty.clone()).await;
    assert_eq!(reason(&refused.expect_err("refused")), "PAYLOAD_EMPTY");
    let batch = BatchSignRequest {
        items: vec![batch_sign_request::Item {
            reference: "one".into(),
            request: Some(empty),
        }],
    };
    service.crypto().batch_sign(batch).await.expect("answers");
    let nothing = r#"{"reason":"PAYLOAD_EMPTY"}"#.to_owned();
    assert_eq!(
        rows(&daemon, "acme", "Sign").await,
        [
            (AuditOutcome::Failed, nothing.clone()),
            (AuditOutcome::Failed, nothing)
        ]
    );
    daemon.stop().await;
}
