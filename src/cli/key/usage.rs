//! `claviger key usage`: how each version was used, and how much of its data has been moved to its successors.

use clap::Args;

use crate::{
    cli::{exit::Result, options::Session, output},
    grpc::proto::{GetKeyVersionUsageRequest, KeyVersionState, KeyVersionUsage},
};

#[derive(Args, Debug)]
pub struct Usage {
    /// Name or id
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

pub async fn run(args: Usage, session: &Session) -> Result<()> {
    let request = GetKeyVersionUsageRequest {
        tenant: args.tenant,
        key: args.key,
    };
    let answer = session.keys().get_key_version_usage(request).await?;
    session.show(&answer.into_inner(), |answer| table(&answer.versions))
}

fn table(versions: &[KeyVersionUsage]) -> String {
    let rows = versions.iter().map(|version| {
        [
            version.number.to_string(),
            version.kid.clone(),
            output::short(version.state().as_str_name(), "KEY_VERSION_STATE_"),
            version.made.to_string(),
            version.opened.to_string(),
            version.rewrapped.to_string(),
            moved(version),
            output::when(&version.last_use_time),
        ]
    });
    let header = [
        "VERSION",
        "KID",
        "STATE",
        "MADE",
        "OPENED",
        "REWRAPPED",
        "MOVED",
        "LAST USE",
    ];
    output::table(header, rows)
}

/// Width of the bar.
const BAR: i64 = 20;

/// How far the data of an old version has been moved. Pairs make nothing that could be moved, and the ACTIVE version is
/// where things are moved to.
fn moved(version: &KeyVersionUsage) -> String {
    let is_old = !matches!(
        version.state(),
        KeyVersionState::Active | KeyVersionState::PreActive
    );
    if !is_old || version.kek.is_empty() || version.made == 0 {
        return String::new();
    }
    let done = version.made - version.remaining;
    // A bar is full when nothing remains, and not before.
    let full = (done.saturating_mul(BAR) / version.made).clamp(0, BAR);
    let bar: String = (0..BAR).map(|i| if i < full { '#' } else { '.' }).collect();
    format!("[{bar}] {} remaining", version.remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(state: KeyVersionState, made: i64, rewrapped: i64) -> KeyVersionUsage {
        KeyVersionUsage {
            state: state.into(),
            made,
            rewrapped,
            remaining: (made - rewrapped).max(0),
            kek: "kek".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_bar_is_full_when_nothing_remains_and_not_before() {
        let old = |made, rewrapped| moved(&version(KeyVersionState::VerifyOnly, made, rewrapped));
        assert_eq!(old(4, 1), "[#####...............] 3 remaining");
        assert_eq!(old(1000, 999), "[###################.] 1 remaining");
        assert_eq!(old(3, 3), "[####################] 0 remaining");
        // Somebody rewrapped copies.
        assert_eq!(old(3, 9), "[####################] 0 remaining");
        assert_eq!(old(0, 0), "");
        assert_eq!(moved(&version(KeyVersionState::Active, 4, 0)), "");
    }
}
