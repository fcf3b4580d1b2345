//! How much may be used, by whom, in which time.

use std::{fmt, str::FromStr};

use jiff::tz::TimeZone;

use super::{Cost, Span, UsageKey};
use crate::{
    error::Error,
    model::{TenantName, Timestamp},
};

/// Time for which a budget is given, by UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A month.
    Month,
}

impl Period {
    /// Every period, the shortest first.
    pub const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Month];

    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The rows that add up to it.
    pub const fn span(self) -> Span {
        match self {
            Self::Hour => Span::Hour,
            Self::Day | Self::Month => Span::Day,
        }
    }

    /// Begin and end of the period in which `at` lies.
    pub fn around(self, at: Timestamp) -> (Timestamp, Timestamp) {
        let fixed = |span: Span| {
            let begin = span.begin(at);
            (begin, begin.plus(span.length()))
        };
        match self {
            Self::Hour => fixed(Span::Hour),
            Self::Day => fixed(Span::Day),
            // Out of the calendar's range there is no month; a day is the stricter reading of none.
            Self::Month => month(at).unwrap_or_else(|| fixed(Span::Day)),
        }
    }
}

fn month(at: Timestamp) -> Option<(Timestamp, Timestamp)> {
    let now = jiff::Timestamp::from_microsecond(at.micros()).ok()?;
    let today = now.to_zoned(TimeZone::UTC).date();
    let micros = |date: jiff::civil::Date| {
        let begin = date.to_zoned(TimeZone::UTC).ok()?;
        Some(Timestamp::from_micros(begin.timestamp().as_microsecond()))
    };
    let next = today.last_of_month().tomorrow().ok()?;
    Some((micros(today.first_of_month())?, micros(next)?))
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// A credential.
    Credential,
    /// A provider.
    Provider,
    /// A principal.
    Principal,
    /// The whole tenant.
    Tenant,
}

impl SubjectKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Credential,
        Self::Provider,
        Self::Principal,
        Self::Tenant,
    ];

    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "CREDENTIAL",
            Self::Provider => "PROVIDER",
            Self::Principal => "PRINCIPAL",
            Self::Tenant => "TENANT",
        }
    }

    /// Kind of the entity, in alerts.
    pub const fn entity(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Provider => "provider",
            Self::Principal => "principal",
            Self::Tenant => "tenant",
        }
    }
}

impl FromStr for SubjectKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| Error::internal(format!("subject kind {text:?}")))
    }
}

/// One subject of a limit. Ordered, so that whoever locks several locks them in the same order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its id or name; empty for the tenant.
    pub id: String,
}

impl Subject {
    /// The subjects that a use is part of.
    pub fn of(key: &UsageKey) -> Vec<Self> {
        let subjects = [
            (SubjectKind::Credential, &key.credential),
            (SubjectKind::Provider, &key.provider),
            (SubjectKind::Principal, &key.principal),
        ];
        let named = subjects.into_iter().filter(|(_, id)| !id.is_empty());
        let named = named.map(|(kind, id)| Self {
            kind,
            id: id.clone(),
        });
        let tenant = Self {
            kind: SubjectKind::Tenant,
            id: String::new(),
        };
        named.chain([tenant]).collect()
    }

    /// Whose rows add up to it: what is empty is not asked for.
    pub fn filter(&self) -> UsageKey {
        let mut key = UsageKey::default();
        match self.kind {
            SubjectKind::Credential => key.credential.clone_from(&self.id),
            SubjectKind::Provider => key.provider.clone_from(&self.id),
            SubjectKind::Principal => key.principal.clone_from(&self.id),
            SubjectKind::Tenant => {}
        }
        key
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            SubjectKind::Credential => write!(f, "credential {}", self.id),
            SubjectKind::Provider => write!(f, "provider {}", self.id),
            SubjectKind::Principal => write!(f, "principal {}", self.id),
            SubjectKind::Tenant => f.write_str("the tenant"),
        }
    }
}

/// Money that may be spent in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Warn from here on.
    pub soft: Option<Cost>,
    /// Refuse from here on.
    pub hard: Option<Cost>,
}

/// How much a subject may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tenant.
    pub tenant: TenantName,
    /// What it is about.
    pub subject: Subject,
    /// Requests in any 60 seconds; None for the daemon's default where that holds.
    pub requests_per_minute: Option<i64>,
    /// One for each of `Period::ALL`, in that order.
    pub budgets: [Budget; 3],
    /// Id of the principal who set it.
    pub set_by: String,
    /// When.
    pub set_at: Timestamp,
}

impl Limit {
    /// The budgets that say anything.
    pub fn budgets(&self) -> impl Iterator<Item = (Period, Budget)> {
        let all = Period::ALL.into_iter().zip(self.budgets);
        all.filter(|(_, budget)| *budget != Budget::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let day = |text: &str| {
            let at: jiff::Timestamp = text.parse().unwrap();
            Timestamp::from_micros(at.as_microsecond())
        };
        let (begin, end) = Period::Month.around(day("2028-02-29T23:59:59.999999Z"));
        assert_eq!(
            (begin, end),
            (day("2028-02-01T00:00:00Z"), day("2028-03-01T00:00:00Z"))
        );
        assert_eq!(Period::Month.around(end).0, end);
        let (begin, end) = Period::Month.around(day("2026-12-31T00:00:00Z"));
        assert_eq!(
            (begin, end),
            (day("2026-12-01T00:00:00Z"), day("2027-01-01T00:00:00Z"))
        );
        let (begin, end) = Period::Hour.around(day("2026-01-01T10:59:59Z"));
        assert_eq!(
            (begin, end),
            (day("2026-01-01T10:00:00Z"), day("2026-01-01T11:00:00Z"))
        );
    }
}
