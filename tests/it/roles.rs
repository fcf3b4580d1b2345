//! Who may call what: every RPC as everybody, against a table written by hand. R-ACL-1, R-ACL-3, R-LIFE-7.

use std::collections::BTreeSet;

use claviger::model::{AccessKind, METHODS};
use tonic::Code;

use crate::{
    daemon::Engine,
    rpcs::{World, send},
};

const PEOPLE: [&str; 9] = [
    "admin", "issuer", "approver", "deployer", "officer", "auditor", "service", "other", "stranger",
];

/// One letter for each of PEOPLE: Yes, Denied, Hidden (as if it did not exist), Unauthenticated. The RPCs act on tenant
/// acme, or on the whole installation.
#[rustfmt::skip]
const TABLE: [(&str, &str); 117] = [
    //                           admin issuer approver deployer officer auditor service other stranger
    ("Sign",                    "D     D      D        D        D       D       Y       H     U"),
    ("Verify",                  "D     D      D        D        D       D       Y       H     U"),
    ("Encrypt",                 "D     D      D        D        D       D       Y       H     U"),
    ("Decrypt",                 "D     D      D        D        D       D       Y       H     U"),
    ("Rewrap",                  "D     D      D        D        D       D       Y       H     U"),
    ("BatchSign",               "D     D      D        D        D       D       Y       H     U"),
    ("BatchVerify",             "D     D      D        D        D       D       Y       H     U"),
    ("BatchEncrypt",            "D     D      D        D        D       D       Y       H     U"),
    ("BatchDecrypt",            "D     D      D        D        D       D       Y       H     U"),
    ("BatchRewrap",             "D     D      D        D        D       D       Y       H     U"),
    ("IssueToken",              "D     D      D        D        D       D       Y       H     U"),
    ("VerifyToken",             "D     D      D        D        D       D       Y       H     U"),
    ("GetJwks",                 "Y     Y      Y        Y        Y       Y       Y       Y     U"),
    ("CreateKey",               "D     Y      D        D        D       D       D       H     U"),
    ("AdoptKey",                "D     Y      D        D        D       D       D       H     U"),
    ("GetKey",                  "D     Y      Y        Y        Y       Y       Y       H     U"),
    ("ListKeys",                "D     Y      Y        Y        Y       Y       Y       H     U"),
    ("UpdateKey",               "D     Y      D        D        D       D       D       H     U"),
    ("RotateKey",               "D     Y      D        D        D       D       D       H     U"),
    ("ApproveRotation",         "D     D      Y        D        D       D       D       H     U"),
    ("DeployRotation",          "D     D      D        Y        D       D       D       H     U"),
    ("GetRotation",             "D     Y      Y        Y        Y       Y       D       H     U"),
    ("ListRotations",           "D     Y      Y        Y        Y       Y       D       H     U"),
    ("ApproveRotationPolicy",   "D     D      Y        D        D       D       D       H     U"),
    ("RevokeKeyVersion",        "D     D      D        D        Y       D       D       H     U"),
    ("DestroyKeyVersion",       "D     Y      D        D        D       D       D       H     U"),
    ("ApproveKeyDestruction",   "D     D      Y        D        D       D       D       H     U"),
    ("CancelKeyDestruction",    "D     Y      Y        D        Y       D       D       H     U"),
    ("ListKeyDestructions",     "D     Y      Y        Y        Y       Y       D       H     U"),
    ("RejectRotation",          "D     D      Y        D        Y       D       D       H     U"),
    ("CancelRotation",          "D     Y      D        D        D       D       D       H     U"),
    ("RevokeToken",             "D     D      D        D        Y       D       D       H     U"),
    ("DeclareCompromise",       "D     D      D        D        Y       D       D       H     U"),
    ("GetIncident",             "D     Y      Y        Y        Y       Y       D       H     U"),
    ("ListIncidents",           "D     Y      Y        Y        Y       Y       D       H     U"),
    ("AddIncidentNote",         "D     D      D        D        Y       D       D       H     U"),
    ("CloseIncident",           "D     D      D        D        Y       D       D       H     U"),
    ("EncryptStream",           "D     D      D        D        D       D       Y       H     U"),
    ("DecryptStream",           "D     D      D        D        D       D       Y       H     U"),
    ("GenerateDataKey",         "D     D      D        D        D       D       Y       H     U"),
    ("GenerateDataKeyWithoutPlaintext", "D D    D        D        D       D       Y       H     U"),
    ("DecryptDataKey",          "D     D      D        D        D       D       Y       H     U"),
    ("GenerateRandom",          "D     D      D        D        D       D       Y       Y     U"),
    ("ComputeMac",              "D     D      D        D        D       D       Y       H     U"),
    ("VerifyMac",               "D     D      D        D        D       D       Y       H     U"),
    ("VerifyWebhook",           "D     D      D        D        D       D       Y       H     U"),
    ("ImportKey",               "D     Y      D        D        D       D       D       H     U"),
    ("GetKeyVersionUsage",      "D     Y      Y        Y        Y       Y       Y       H     U"),
    ("ListKeks",                "D     Y      Y        Y        Y       Y       H       H     U"),
    ("RotateKek",               "D     Y      D        D        D       D       H       H     U"),
    ("ApproveKekRotation",      "D     D      Y        D        D       D       H       H     U"),
    ("DeployKekRotation",       "D     D      D        Y        D       D       H       H     U"),
    ("RejectKekRotation",       "D     D      Y        D        Y       D       H       H     U"),
    ("CancelKekRotation",       "D     Y      D        D        D       D       H       H     U"),
    ("GetKekRotation",          "D     Y      Y        Y        Y       Y       H       H     U"),
    ("ListKekRotations",        "D     Y      Y        Y        Y       Y       H       H     U"),
    ("DestroyTenantKeys",       "D     Y      D        D        D       D       D       H     U"),
    ("ApproveTenantDestruction","D     D      Y        D        D       D       D       H     U"),
    ("CancelTenantDestruction", "D     Y      Y        D        Y       D       D       H     U"),
    ("GetTenantDestruction",    "D     Y      Y        Y        Y       Y       D       H     U"),
    ("ListTenantDestructions",  "D     Y      Y        Y        Y       Y       D       H     U"),
    ("CreateTenant",            "Y     D      D        D        D       D       H       H     U"),
    ("ListTenants",             "Y     D      D        D        D       Y       H       H     U"),
    ("CreatePrincipal",         "Y     D      D        D        D       D       D       H     U"),
    ("GrantRole",               "Y     D      D        D        D       D       D       H     U"),
    ("RevokeRole",              "Y     D      D        D        D       D       D       H     U"),
    ("GetPrincipal",            "Y     D      D        D        Y       Y       D       H     U"),
    ("UpdatePrincipal",         "Y     D      D        D        D       D       D       H     U"),
    ("SuspendPrincipal",        "Y     D      D        D        Y       D       D       H     U"),
    ("ResumePrincipal",         "Y     D      D        D        D       D       D       H     U"),
    ("ListPrincipals",          "Y     D      D        D        Y       Y       D       H     U"),
    ("CreateApiKey",            "Y     D      D        D        D       D       D       H     U"),
    ("GetApiKey",               "Y     D      D        D        Y       Y       D       H     U"),
    ("ListApiKeys",             "Y     D      D        D        Y       Y       D       H     U"),
    ("RotateApiKey",            "Y     D      D        D        D       D       D       H     U"),
    ("RevokeApiKey",            "Y     D      D        D        Y       D       D       H     U"),
    ("ListPeppers",             "Y     D      D        D        D       Y       H       H     U"),
    ("CreateClient",            "Y     D      D        D        D       D       D       H     U"),
    ("GetClient",               "Y     D      D        D        D       Y       D       H     U"),
    ("ListClients",             "Y     D      D        D        D       Y       D       H     U"),
    ("UpdateClient",            "Y     D      D        D        D       D       D       H     U"),
    ("ListAuditEvents",         "D     D      D        D        Y       Y       D       H     U"),
    ("VerifyAudit",             "D     D      D        D        Y       Y       H       H     U"),
    ("PutCredential",           "D     D      D        D        D       D       Y       H     U"),
    ("GetCredential",           "D     D      D        D        D       Y       Y       H     U"),
    ("RevealCredential",        "D     D      D        D        D       D       Y       H     U"),
    ("ListCredentials",         "D     D      D        D        D       Y       Y       H     U"),
    ("DeleteCredential",        "D     D      D        D        D       D       Y       H     U"),
    ("ValidateCredential",      "D     D      D        D        D       D       Y       H     U"),
    ("ImportCredentials",       "D     D      D        D        D       D       Y       H     U"),
    ("ListProviders",           "Y     Y      Y        Y        Y       Y       Y       Y     U"),
    ("GetCredentialReport",     "D     D      D        D        D       Y       Y       H     U"),
    ("RecordUsage",             "D     D      D        D        D       D       Y       H     U"),
    ("AcquireUsage",            "D     D      D        D        D       D       Y       H     U"),
    ("GetUsageReport",          "Y     D      D        D        D       Y       D       H     U"),
    ("SetLimit",                "Y     D      D        D        D       D       D       H     U"),
    ("ListLimits",              "Y     D      D        D        D       Y       D       H     U"),
    ("DeleteLimit",             "Y     D      D        D        D       D       D       H     U"),
    ("ListAlerts",              "D     D      D        D        Y       Y       D       H     U"),
    ("AckAlert",                "D     D      D        D        Y       D       D       H     U"),
    ("ListDeliveries",          "D     D      D        D        Y       Y       D       H     U"),
    ("RetryDelivery",           "D     D      D        D        Y       D       D       H     U"),
    ("LeaseCredential",         "D     D      D        D        D       D       Y       H     U"),
    ("RenewLease",              "D     D      D        D        D       D       Y       H     U"),
    ("ReturnLease",             "D     D      D        D        D       D       Y       H     U"),
    ("RevokeLease",             "D     D      D        D        D       D       Y       H     U"),
    ("ListLeases",              "D     D      D        D        D       Y       Y       H     U"),
    ("WatchCredentials",        "D     D      D        D        D       Y       Y       H     U"),
    ("StageCredential",         "D     D      D        D        D       D       Y       H     U"),
    ("ApproveCredentialRotation", "D   D      Y        D        D       D       Y       H     U"),
    ("PromoteCredential",       "D     D      D        Y        D       D       Y       H     U"),
    ("CompleteCredentialRotation", "D  D      D        D        D       D       Y       H     U"),
    ("RollBackCredential",      "D     D      D        D        D       D       Y       H     U"),
    ("SetCredentialRotation",   "D     D      D        D        D       D       Y       H     U"),
    ("GetCredentialRotation",   "D     D      Y        Y        D       Y       Y       H     U"),
    ("ListCredentialRotations", "D     D      Y        Y        D       Y       Y       H     U"),
    ("ListDueCredentials",      "D     D      D        D        D       Y       Y       H     U"),
];

#[tokio::test]
async fn everybody_may_do_what_the_table_says_and_nothing_else() {
    let world = World::new(Engine::Sqlite).await;
    let mut wrong = Vec::new();
    for method in METHODS {
        let name = method.path.rsplit('/').next().expect("a name");
        let row = TABLE.iter().find(|(rpc, _)| *rpc == name);
        let (_, row) =
            row.unwrap_or_else(|| panic!("{name} is not in the table of tests/it/roles.rs"));
        let letters: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(letters.len(), PEOPLE.len(), "{name}");
        let mut case = world.case(method.path).await;
        let mut is_used_up = false;
        for (person, letter) in PEOPLE.iter().zip(letters) {
            // What one person did, the next one cannot do again.
            if is_used_up {
                case = world.case(method.path).await;
                is_used_up = false;
            }
            let result = send(&world.daemon.actor(person), method.path, &case.valid).await;
            let got = match &result {
                Ok(answer) if case.items > 1 => of_items(answer),
                Ok(_) => {
                    is_used_up = method.action.kind() == AccessKind::Admin;
                    "Y"
                }
                Err(status) => match status.code() {
                    Code::PermissionDenied => "D",
                    Code::NotFound => "H",
                    Code::Unauthenticated => "U",
                    _ => "?",
                },
            };
            if got != letter {
                wrong.push(format!(
                    "{name} as {person}: {got}, not {letter}: {result:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let known: BTreeSet<_> = METHODS
        .iter()
        .filter_map(|m| m.path.rsplit('/').next())
        .collect();
    let gone: Vec<_> = TABLE
        .iter()
        .filter(|(rpc, _)| !known.contains(rpc))
        .collect();
    assert!(gone.is_empty(), "no such RPC: {gone:?}");
    world.daemon.stop().await;
}

/// What became of the items of a batch. All batch answers have one shape, and none but these errors may name these
/// reasons.
fn of_items(answer: &[u8]) -> &'static str {
    let says = |text: &str| answer.windows(text.len()).any(|w| w == text.as_bytes());
    match (says("PERMISSION_DENIED"), says("KEY_NOT_FOUND")) {
        (true, false) => "D",
        (false, true) => "H",
        (false, false) => "Y",
        (true, true) => "?",
    }
}
