//! Step 1: the issuer creates the keys. They come to be in the token, and only there.

use super::{Run, TENANT, check, part};
use crate::{
    cli::exit::Result,
    grpc::proto::{Algorithm, AuditOutcome, CreateKeyRequest, Key, KeyPurpose, ListKeysRequest},
};

/// The keys of the story.
pub struct Made {
    pub orders: Key,
    pub tokens: Key,
    pub vault: Key,
}

pub async fn create(run: &mut Run<'_>) -> Result<Made> {
    run.story
        .step("issuer creates an ES256 signing key; it is in the token and cannot leave it");
    let suffix = free_suffix(run).await?;
    let orders = one(
        run,
        &format!("orders-signing{suffix}"),
        KeyPurpose::Signing,
        Algorithm::Es256,
    )
    .await?;
    let backend_ref = orders
        .versions
        .first()
        .map(|version| version.backend_ref.as_str());
    let backend_ref = backend_ref.unwrap_or_default();
    check(
        backend_ref.starts_with("pkcs11:"),
        "the new signing key has no reference in the token",
    )?;
    run.story.fact("", &format!("in the token: {backend_ref}"));
    run.story.fact(
        "",
        "sensitive and not extractable: the daemon read that back from the token",
    );
    let tokens = one(
        run,
        &format!("orders-tokens{suffix}"),
        KeyPurpose::TokenSigning,
        Algorithm::Es256,
    )
    .await?;
    let vault = one(
        run,
        &format!("orders-vault{suffix}"),
        KeyPurpose::Encryption,
        Algorithm::A256gcm,
    )
    .await?;
    Ok(Made {
        orders,
        tokens,
        vault,
    })
}

async fn one(
    run: &mut Run<'_>,
    name: &str,
    purpose: KeyPurpose,
    algorithm: Algorithm,
) -> Result<Key> {
    let request = CreateKeyRequest {
        tenant: TENANT.to_owned(),
        name: name.to_owned(),
        purpose: purpose.into(),
        algorithm: algorithm.into(),
        rsa_bits: 0,
        owner: "orders-team".to_owned(),
        rotation_period: None,
        ..Default::default()
    };
    let answer = run
        .people
        .issuer
        .keys()
        .create_key(request)
        .await?
        .into_inner();
    let key = part(answer.key, "key")?;
    let receipt = part(answer.receipt, "receipt")?;
    let purpose = purpose.as_str_name().trim_start_matches("KEY_PURPOSE_");
    let text = format!(
        "{purpose} key {name} in tenant {TENANT}: kid {}, audit row {}",
        key.active_kid, receipt.seq
    );
    run.story.fact("issuer", &text);
    run.expect_key("CreateKey", AuditOutcome::Success, &key);
    Ok(key)
}

/// Names are for ever, so every run on the same directory takes new ones: nothing, then -2, -3 and so on.
async fn free_suffix(run: &Run<'_>) -> Result<String> {
    let mut runs = 0;
    let mut page_token = String::new();
    loop {
        let request = ListKeysRequest {
            tenant: TENANT.to_owned(),
            page_size: 1000,
            page_token,
            overdue_only: false,
            ..Default::default()
        };
        let page = run
            .people
            .issuer
            .keys()
            .list_keys(request)
            .await?
            .into_inner();
        runs = page
            .keys
            .iter()
            .filter_map(|key| run_of(&key.name))
            .fold(runs, u32::max);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    Ok(match runs {
        0 => String::new(),
        runs => format!("-{}", runs.saturating_add(1)),
    })
}

/// Which run made the key of this name; None when it is not ours.
fn run_of(name: &str) -> Option<u32> {
    let ours = ["orders-signing", "orders-tokens", "orders-vault"];
    let rest = ours.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    match rest {
        "" => Some(1),
        suffix => suffix.strip_prefix('-')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn names_carry_their_run() {
        assert_eq!(run_of("orders-signing"), Some(1));
        assert_eq!(run_of("orders-vault-12"), Some(12));
        assert_eq!(run_of("orders-vault-x"), None);
        assert_eq!(run_of("payments"), None);
    }
}
