//! Every managed key pair: is it on its device, as its row says, and can it still not leave (R-LIFE-4)?

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::Report;
use crate::{
    cli::exit::Result,
    keys::Backends,
    store::{Db, StoredPair},
};

/// Rows read at once.
const PAGE: i64 = 500;
/// Keys looked at at once: enough to hide a network, few enough to leave the device to its users.
const AT_ONCE: usize = 4;
/// Time for one key: KMS may make us wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// Failures that are printed one by one; more of them are counted.
const SHOWN: usize = 20;

/// Looks at every key pair that is not destroyed, as adoption would: attributes, type, and a signature that verifies.
pub(super) async fn check(db: &Db, devices: &Backends, report: &mut Report) -> Result<()> {
    let (mut looked_at, mut going, mut bad) = (0_usize, 0_usize, Vec::new());
    let mut after = String::new();
    loop {
        let page = match db.pairs(&after, PAGE).await {
            Ok(page) => page,
            Err(error) => return report.fail("managed keys", error),
        };
        let Some(last) = page.last() else { break };
        after = last.kid.to_string();
        looked_at += page.len();
        let looks = stream::iter(&page).map(async |pair| Some((pair, look(pair, devices).await?)));
        let found: Vec<_> = looks.buffer_unordered(AT_ONCE).collect().await;
        for (pair, text) in found.into_iter().flatten() {
            match db.is_going(&pair.kid).await {
                Ok(false) => bad.push(text),
                Ok(true) => going += 1,
                Err(error) => return report.fail("managed keys", error),
            }
        }
    }
    if going > 0 {
        report.note(
            "managed keys",
            format!("{going} key pairs are being destroyed"),
        )?;
    }
    for text in bad.iter().take(SHOWN) {
        report.fail("managed key", text)?;
    }
    match bad.len() {
        0 => report.ok(
            "managed keys",
            format!(
                "{} key pairs; each sensitive, not extractable, and signing",
                looked_at - going
            ),
        ),
        n => report.fail(
            "managed keys",
            format!("{n} of {looked_at} key pairs are not as they must be"),
        ),
    }
}

/// What is wrong with a pair, in a sentence.
async fn look(pair: &StoredPair, devices: &Backends) -> Option<String> {
    let name = format!("{}/{} version {}", pair.tenant, pair.key, pair.kid);
    let Some(device) = devices.get(&pair.backend) else {
        return Some(format!(
            "{name}: its backend {} is not configured",
            pair.backend
        ));
    };
    if !device.capabilities().algorithms.contains(&pair.algorithm) {
        return Some(format!(
            "{name}: backend {} does not sign {}",
            pair.backend, pair.algorithm
        ));
    }
    let Some(spec) = pair.algorithm.key_spec(pair.rsa_bits) else {
        return Some(format!(
            "{name}: {} is no algorithm of a key pair",
            pair.algorithm
        ));
    };
    match device
        .adopt(&pair.reference.0, spec, Instant::now() + PATIENCE)
        .await
    {
        Err(error) => Some(format!("{name}: {error}")),
        Ok(found) if found.public_key.as_ref() != Some(&pair.public_key) => Some(format!(
            "{name}: the device holds another key pair under {}",
            pair.reference
        )),
        Ok(_) => None,
    }
}
