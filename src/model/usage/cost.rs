//! Amounts of money.

use std::{fmt, str::FromStr};

use crate::error::{Error, Reason};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn an_amount_reads_as_it_is_written(nanos in 0..=1_000_000_000_000_000_000_i64) {
            let cost = Cost::from_nanos(nanos);
            prop_assert_eq!(cost.to_string().parse::<Cost>().ok(), Some(cost));
        }
    }
}
