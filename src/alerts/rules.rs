//! When usage is something to be told about: pure rules over sums of a window of time (R-USE-3).

use std::time::Duration;

use crate::{
    model::usage::{Cost, FAILED_LOGINS, OTHERS, OWN_CALLS, OWN_PREFIX, Span},
    store::{Observed, WorthALook},
};

/// From where on something is told.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// More percent of requests failed.
    pub error_percent: u32,
    /// ... of at least so many.
    pub error_min_requests: i64,
    /// More requests in a minute.
    pub requests: i64,
    /// More cost in an hour.
    pub cost: Cost,
    /// At least so many failed authentications in five minutes.
    pub failed_logins: i64,
}

/// One kind of alert about usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Too many requests failed.
    ErrorRate,
    /// Too many requests.
    RequestRate,
    /// Too much money.
    CostRate,
    /// Too many credentials that do not count.
    FailedAuthentications,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 4] = [
        Self::ErrorRate,
        Self::RequestRate,
        Self::CostRate,
        Self::FailedAuthentications,
    ];

    /// Kind of the alert.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::ErrorRate => "ERROR_RATE",
            Self::RequestRate => "REQUEST_RATE",
            Self::CostRate => "COST_RATE",
            Self::FailedAuthentications => "FAILED_AUTHENTICATIONS",
        }
    }

    /// Length of its window. Windows are those of the clock, in UTC: the alert is raised once in each.
    pub const fn window(self) -> Duration {
        Duration::from_secs(match self {
            Self::RequestRate => 60,
            Self::ErrorRate | Self::FailedAuthentications => 5 * 60,
            Self::CostRate => 60 * 60,
        })
    }

    /// The sums that make up its window.
    pub const fn span(self) -> Span {
        match self {
            Self::RequestRate | Self::ErrorRate | Self::FailedAuthentications => Span::Minute,
            Self::CostRate => Span::Hour,
        }
    }

    /// Nothing below this can be told about; for the database to leave out.
    pub const fn worth_a_look(self, t: &Thresholds) -> WorthALook {
        let (errors, requests, cost) = match self {
            Self::ErrorRate => (1, i64::MAX, Cost::from_nanos(i64::MAX)),
            Self::FailedAuthentications => (t.failed_logins, i64::MAX, Cost::from_nanos(i64::MAX)),
            Self::RequestRate => (i64::MAX, t.requests, Cost::from_nanos(i64::MAX)),
            Self::CostRate => (i64::MAX, i64::MAX, t.cost),
        };
        WorthALook {
            errors,
            requests,
            cost,
        }
    }

    /// How bad it is, beside others that the same rule tells about.
    pub const fn badness(self, o: &Observed) -> i64 {
        match self {
            Self::ErrorRate | Self::FailedAuthentications => o.errors,
            Self::RequestRate => o.requests,
            Self::CostRate => o.cost.nanos(),
        }
    }

    /// What people are to be told about the sum of a window; None for nothing.
    pub fn judge(self, o: &Observed, t: &Thresholds) -> Option<String> {
        let (_, what) = subject(o);
        let is_own = o.key.provider.starts_with(OWN_PREFIX);
        let is_login = o.key.provider == FAILED_LOGINS;
        let (requests, errors, cost) = (o.requests, o.errors, o.cost);
        match self {
            Self::ErrorRate => {
                let share = i128::from(errors) * 100;
                let over = share > i128::from(requests) * i128::from(t.error_percent);
                (over && !is_login && requests >= t.error_min_requests).then(|| {
                    format!(
                        "{errors} of {requests} requests of {what} failed within five minutes, more than {} percent",
                        t.error_percent
                    )
                })
            }
            // The daemon's own calls are many, and have bounds of their own.
            Self::RequestRate => (requests > t.requests && !is_own).then(|| {
                format!(
                    "{what} made {requests} requests in a minute, more than {}",
                    t.requests
                )
            }),
            Self::CostRate => (cost > t.cost)
                .then(|| format!("{what} cost {cost} within an hour, more than {}", t.cost)),
            Self::FailedAuthentications => (is_login && errors >= t.failed_logins).then(|| {
                format!("{errors} authentications from {what} failed within five minutes")
            }),
        }
    }
}

/// Kind and id of the thing that was observed, and what a sentence calls it.
pub fn subject(o: &Observed) -> ((&'static str, &str), String) {
    let (key, principal) = (&o.key, o.key.principal.as_str());
    match (key.provider.as_str(), key.credential.as_str()) {
        (FAILED_LOGINS, _) if principal == OTHERS => {
            let what = "addresses that were too many to be counted apart";
            (("source", principal), what.to_owned())
        }
        (FAILED_LOGINS, _) => (("source", principal), principal.to_owned()),
        (OWN_CALLS, _) => {
            let what = format!("principal {principal} to this service");
            (("principal", principal), what)
        }
        (provider, "") => (("provider", provider), format!("provider {provider}")),
        (provider, credential) => {
            let what = format!("credential {credential} of {provider}");
            (("credential", credential), what)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{TenantName, usage::UsageKey};

    const DEFAULTS: Thresholds = Thresholds {
        error_percent: 5,
        error_min_requests: 20,
        requests: 100,
        cost: Cost::units(10),
        failed_logins: 5,
    };

    fn seen(provider: &str, requests: i64, errors: i64, cost: Cost) -> Observed {
        Observed {
            tenant: TenantName::system(),
            key: UsageKey {
                provider: provider.into(),
                credential: String::new(),
                principal: "p".into(),
            },
            requests,
            errors,
            cost,
        }
    }

    // R-USE-3: above, not at, the threshold; five failures are five.
    #[test]
    fn each_rule_tells_at_its_threshold() {
        let told = |rule: Rule, o: &Observed| rule.judge(o, &DEFAULTS).is_some();
        let openai = |requests, errors| seen("openai", requests, errors, Cost::ZERO);
        assert!(!told(Rule::ErrorRate, &openai(100, 5)));
        assert!(told(Rule::ErrorRate, &openai(100, 6)));
        assert!(!told(Rule::ErrorRate, &openai(19, 19)));
        assert!(told(Rule::ErrorRate, &openai(20, 2)));
        assert!(!told(Rule::RequestRate, &openai(100, 0)));
        assert!(told(Rule::RequestRate, &openai(101, 0)));
        assert!(!told(
            Rule::RequestRate,
            &seen(OWN_CALLS, 9999, 0, Cost::ZERO)
        ));
        assert!(told(
            Rule::ErrorRate,
            &seen(OWN_CALLS, 100, 100, Cost::ZERO)
        ));
        let cost = |nanos| seen("openai", 1, 0, Cost::from_nanos(nanos));
        assert!(!told(Rule::CostRate, &cost(10_000_000_000)));
        assert!(told(Rule::CostRate, &cost(10_000_000_001)));
        let logins = |n| seen(FAILED_LOGINS, n, n, Cost::ZERO);
        assert!(!told(Rule::FailedAuthentications, &logins(4)));
        assert!(told(Rule::FailedAuthentications, &logins(5)));
        assert!(!told(Rule::FailedAuthentications, &openai(50, 50)));
        assert!(!told(Rule::ErrorRate, &logins(500)));
    }

    proptest! {
        // What the database leaves out is nothing that a rule would have told.
        #[test]
        fn nothing_that_is_left_out_would_be_told(
            requests in 0..400_i64, errors in 0..400_i64, nanos in 0..20_000_000_000_i64, login: bool,
        ) {
            let provider = if login { FAILED_LOGINS } else { "openai" };
            let o = seen(provider, requests, errors.min(requests), Cost::from_nanos(nanos));
            for rule in Rule::ALL {
                let worth = rule.worth_a_look(&DEFAULTS);
                let shown = o.errors >= worth.errors || o.requests > worth.requests || o.cost > worth.cost;
                prop_assert!(shown || rule.judge(&o, &DEFAULTS).is_none(), "{rule:?}");
            }
        }
    }
}
