//! What is used, what it costs, and how much it may come to. Plain sums and pure rules; `store` keeps the rows.

use std::{fmt, str::FromStr, time::Duration};

use jiff::tz::TimeZone;

use super::{TenantName, Timestamp};
use crate::error::{Error, Reason};

/// Providers whose names begin so are the daemon's own: nobody else records anything for them.
pub const OWN_PREFIX: &str = "claviger";
/// The provider of the daemon's own data-plane calls.
pub const OWN_CALLS: &str = "claviger";
/// The provider under which failed authentications are counted, by the address that they came from.
pub const FAILED_LOGINS: &str = "claviger-authn";

/// An exact amount of money: a whole number of billionths, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost(i64);

impl Cost {
    const UNIT: i64 = 1_000_000_000;
    const PLACES: usize = 9;
    /// The most that a text may say, in whole units.
    const MOST: i64 = 1_000_000_000;

    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many whole units.
    pub const fn units(units: i64) -> Self {
        Self(units.saturating_mul(Self::UNIT))
    }

    /// From billionths.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// In billionths.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Digits, at most one point, at most nine places behind it. No sign, no exponent, no blank, no NaN.
impl FromStr for Cost {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(
                Reason::InvalidField,
                "an amount must be a decimal such as 12.5: digits, a point, at most 9 places behind it, at most 1000000000",
            )
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |digits: &str, most: usize| {
            (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        };
        if !is_number(whole, 10) || !is_number(fraction, Self::PLACES) {
            return Err(wrong());
        }
        let whole: i64 = whole.parse().map_err(|_| wrong())?;
        let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
        let cost = Self::units(whole).plus(Self(fraction));
        match cost <= Self::units(Self::MOST) {
            true => Ok(cost),
            false => Err(wrong()),
        }
    }
}

/// Without zeros at the end: `0`, `12.5`.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / Self::UNIT, self.0 % Self::UNIT);
        match fraction {
            0 => write!(f, "{whole}"),
            _ => f.write_str(format!("{whole}.{fraction:09}").trim_end_matches('0')),
        }
    }
}

/// Whose use it is. What was not given is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageKey {
    /// Provider.
    pub provider: String,
    /// Id of the credential.
    pub credential: String,
    /// Id of the principal.
    pub principal: String,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests.
    pub requests: i64,
    /// Those of them that failed.
    pub errors: i64,
    /// Tokens sent.
    pub tokens_in: i64,
    /// Tokens received.
    pub tokens_out: i64,
    /// Cost.
    pub cost: Cost,
    /// The last use; None where there was none.
    pub last: Option<Timestamp>,
}

impl Used {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
        self.cost = self.cost.plus(other.cost);
        self.last = self.last.max(other.last);
    }
}

/// One thing that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    /// The recorder's id of it, unique in the tenant.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub key: UsageKey,
    /// How much; `last` is `at`.
    pub used: Used,
}

/// Length of the time that one row sums up, by UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Span {
    /// Every span, the shortest first.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "MINUTE",
            Self::Hour => "HOUR",
            Self::Day => "DAY",
        }
    }

    /// How long it is.
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        })
    }

    /// Begin of the span in which `at` lies.
    pub fn begin(self, at: Timestamp) -> Timestamp {
        aligned(at, self.length())
    }
}

/// The last multiple of `length` that is not after `at`.
pub fn aligned(at: Timestamp, length: Duration) -> Timestamp {
    let length = super::time::micros(length).max(1);
    Timestamp::from_micros(at.micros().div_euclid(length) * length)
}

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

/// Length of the sliding window, in seconds.
const WINDOW: i64 = 60;

/// The requests that were admitted lately, by second.
///
/// A second counts for as long as any part of it lies within the last 60 seconds, so no 60 seconds, wherever they begin,
/// hold more than the limit; in return a request counts for up to a second longer than it would have to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Seconds since the epoch, ascending, and how many were admitted in each.
    slots: Vec<(i64, i64)>,
}

impl Window {
    /// Admits `requests` at `now`, all or none; how many more could be.
    ///
    /// Errors: how long to wait until they could be admitted; None when they are more than the limit.
    pub fn admit(
        &mut self,
        now: Timestamp,
        requests: i64,
        limit: i64,
    ) -> Result<i64, Option<Duration>> {
        let second = now.seconds();
        self.slots.retain(|(at, _)| *at >= second - WINDOW);
        let used: i64 = self.slots.iter().map(|(_, count)| count).sum();
        if requests > limit {
            return Err(None);
        }
        let left = limit.saturating_sub(used).saturating_sub(requests);
        if left < 0 {
            return Err(Some(self.wait(now, -left)));
        }
        match self.slots.last_mut() {
            // A clock that was set back adds to the last second there is, which counts for longer.
            Some((at, count)) if *at >= second => *count += requests,
            Some(_) | None => self.slots.push((second, requests)),
        }
        Ok(left)
    }

    /// How long until `wanted` of what was admitted does not count any more.
    fn wait(&self, now: Timestamp, wanted: i64) -> Duration {
        let mut freed = 0;
        for (at, count) in &self.slots {
            freed += count;
            if freed >= wanted {
                return Timestamp::from_seconds(at + WINDOW + 1).since(now);
            }
        }
        Duration::from_secs(WINDOW.unsigned_abs())
    }
}

/// `second:count` of each second, separated by commas.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (second, count)) in self.slots.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{second}:{count}")?;
        }
        Ok(())
    }
}

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let slot = |slot: &str| {
            let (second, count) = slot.split_once(':')?;
            Some((second.parse().ok()?, count.parse().ok()?))
        };
        let slots = text.split(',').filter(|slot| !slot.is_empty()).map(slot);
        let slots: Option<_> = slots.collect();
        let slots = slots.ok_or_else(|| Error::internal("slots of a window"))?;
        Ok(Self { slots })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    // R-USE-1
    #[test]
    fn amounts_are_exact_or_refused() {
        for (text, nanos) in [
            ("0", 0),
            ("10", 10_000_000_000),
            ("0.000000001", 1),
            ("12.5", 12_500_000_000),
            ("12.50", 12_500_000_000),
            ("00.1", 100_000_000),
            ("1000000000", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(
                text.parse::<Cost>().map(Cost::nanos).ok(),
                Some(nanos),
                "{text}"
            );
        }
        for text in [
            "",
            " ",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "-0",
            "NaN",
            "nan",
            "inf",
            "1e3",
            "0x1",
            "1,5",
            "1 ",
            "1_0",
            "0.0000000001",
            "1000000000.000000001",
            "99999999999",
            "1.2.3",
            "１",
        ] {
            assert!(text.parse::<Cost>().is_err(), "{text:?}");
        }
        assert_eq!(Cost::from_nanos(12_500_000_000).to_string(), "12.5");
        assert_eq!(Cost::from_nanos(1).to_string(), "0.000000001");
        assert_eq!(Cost::ZERO.to_string(), "0");
    }

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

    #[test]
    fn a_window_says_when_there_is_room_again() {
        let mut window = Window::default();
        assert_eq!(window.admit(at(100), 3, 5), Ok(2));
        assert_eq!(window.admit(at(110), 2, 5), Ok(0));
        // The requests of second 100 count until second 161.
        assert_eq!(
            window.admit(at(120), 1, 5),
            Err(Some(Duration::from_secs(41)))
        );
        assert_eq!(
            window.admit(at(120), 4, 5),
            Err(Some(Duration::from_secs(51)))
        );
        assert_eq!(window.admit(at(120), 6, 5), Err(None));
        assert_eq!(
            window.admit(at(160), 1, 5),
            Err(Some(Duration::from_secs(1)))
        );
        assert_eq!(window.admit(at(161), 1, 5), Ok(2));
        assert_eq!(window.to_string().parse::<Window>().ok(), Some(window));
    }

    proptest! {
        // R-USE-2: whatever comes when, no 60 seconds admit more than the limit; and who waits as told gets in.
        #[test]
        fn no_sixty_seconds_admit_more_than_the_limit(
            limit in 1_i64..50,
            calls in prop::collection::vec((0_i64..20_000_000, 1_i64..8), 1..200),
        ) {
            let (mut window, mut now) = (Window::default(), 1_700_000_000_000_000_i64);
            let mut admitted: Vec<(i64, i64)> = Vec::new();
            for (pause, requests) in calls {
                now += pause;
                // As it is kept between two calls.
                window = window.to_string().parse().expect("slots");
                match window.admit(Timestamp::from_micros(now), requests, limit) {
                    Ok(left) => {
                        admitted.push((now, requests));
                        let within = admitted.iter().filter(|(at, _)| *at > now - 60_000_000);
                        let sum: i64 = within.map(|(_, n)| n).sum();
                        prop_assert!(sum + left <= limit, "{sum} admitted and {left} left of {limit}");
                    }
                    Err(Some(wait)) => {
                        let then = Timestamp::from_micros(now).plus(wait);
                        prop_assert!(window.clone().admit(then, requests, limit).is_ok());
                        prop_assert!(wait <= Duration::from_secs(61));
                    }
                    Err(None) => prop_assert!(requests > limit),
                }
            }
        }

        #[test]
        fn a_clock_that_is_set_back_admits_no_more(
            limit in 1_i64..20,
            steps in prop::collection::vec(-30_i64..30, 1..100),
        ) {
            let (mut window, mut now) = (Window::default(), 1_700_000_000_i64);
            // Time that really passed: setting the clock back takes none.
            let (mut passed, mut admitted) = (0, Vec::new());
            for step in steps {
                now += step;
                passed += step.max(0);
                if window.admit(at(now), 1, limit).is_ok() {
                    admitted.push(passed);
                }
                let recent = admitted.iter().filter(|at| **at > passed - 60).count();
                prop_assert!(recent as i64 <= limit);
            }
        }

        #[test]
        fn an_amount_reads_as_it_is_written(nanos in 0..=1_000_000_000_000_000_000_i64) {
            let cost = Cost::from_nanos(nanos);
            prop_assert_eq!(cost.to_string().parse::<Cost>().ok(), Some(cost));
        }
    }
}
