//! Reading a listing page by page up to the number of rows that was asked for.

use clap::Args;

/// `--limit`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Limit {
    /// At most so many rows; 0 for all of them
    #[arg(long, value_name = "N", default_value_t = DEFAULT)]
    limit: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { limit: DEFAULT }
    }
}

/// Rows that are shown when nobody asks for more.
const DEFAULT: usize = 100;
/// The most rows a page can have, in every listing of the contract.
const MAX_PAGE: usize = 1000;

/// How many rows are still wanted.
pub struct Pages {
    left: usize,
    more: bool,
}

impl Limit {
    /// The pages to ask for.
    pub fn pages(self) -> Pages {
        let left = match self.limit {
            0 => usize::MAX,
            limit => limit,
        };
        Pages { left, more: true }
    }
}

impl Pages {
    /// Size of the next page to ask for; None when there is nothing more to ask.
    pub fn next(&self) -> Option<u32> {
        let size = self.left.min(MAX_PAGE);
        (self.more && size > 0).then_some(size as u32)
    }

    /// Records what came.
    pub fn got(&mut self, rows: usize, next_page_token: &str) {
        self.left = self.left.saturating_sub(rows);
        self.more = !next_page_token.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_ends_the_pages() {
        let mut pages = Limit { limit: 1500 }.pages();
        assert_eq!(pages.next(), Some(1000));
        pages.got(1000, "x");
        assert_eq!(pages.next(), Some(500));
        pages.got(500, "y");
        assert_eq!(pages.next(), None);
    }

    #[test]
    fn the_last_page_ends_them_too() {
        let mut pages = Limit { limit: 0 }.pages();
        assert_eq!(pages.next(), Some(1000));
        pages.got(7, "");
        assert_eq!(pages.next(), None);
    }
}
