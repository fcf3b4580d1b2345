//! Which traces are kept that nobody has decided about.

use aws_lc_rs::rand;

/// A part of all traces, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Ratio {
    /// None unless it is 0 to 1.
    pub fn new(part: f64) -> Option<Self> {
        (0.0..=1.0).contains(&part).then_some(Self(part))
    }

    /// Is the next trace one of them? At random, so that nobody can choose to be.
    pub(super) fn takes_one(self) -> bool {
        if self.0 >= 1.0 {
            return true;
        }
        let mut drawn = [0; 4];
        // Without randomness there is no trace; the call goes on.
        self.0 > 0.0
            && rand::fill(&mut drawn).is_ok()
            && f64::from(u32::from_le_bytes(drawn)) < self.0 * (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R-OPS-3
    #[test]
    fn a_ratio_is_a_part_and_its_ends_are_certain() {
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Ratio::new(bad), None, "{bad}");
        }
        let taken = |part: f64| {
            let ratio = Ratio::new(part).expect("a ratio");
            (0..4000).filter(|_| ratio.takes_one()).count()
        };
        assert_eq!((taken(0.0), taken(1.0)), (0, 4000));
        // 2000 in the middle; 500 from it are 16 standard deviations.
        assert!((1500..2500).contains(&taken(0.5)));
    }
}
