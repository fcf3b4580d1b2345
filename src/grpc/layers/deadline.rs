//! When a call must be over: the shorter of the caller's `grpc-timeout` and our own limit.
//!
//! tonic enforces `grpc-timeout` too, but from outside every layer and with CANCELLED. Our timer is started
//! first and polled first, so the typed answer wins.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// When the call must be over; handlers pass it on to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(pub Instant);

impl Deadline {
    pub(super) fn of(headers: &HeaderMap, limit: Duration) -> Self {
        Self(Instant::now() + asked(headers).map_or(limit, |asked| asked.min(limit)))
    }
}

/// The caller's own `grpc-timeout`: the deadline of a stream, which our limit for one answer does not fit. Times beyond
/// every connection's life are none.
pub(super) fn asked(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    parse(value).filter(|asked| *asked < Duration::from_hours(24 * 365))
}

/// `grpc-timeout` of the gRPC protocol: at most eight digits and a unit. What does not parse is ignored, as
/// every gRPC server does.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed_as_the_protocol_says() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("42S"), Some(Duration::from_secs(42)));
        assert_eq!(parse("13m"), Some(Duration::from_millis(13)));
        assert_eq!(parse("2u"), Some(Duration::from_micros(2)));
        assert_eq!(parse("82n"), Some(Duration::from_nanos(82)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for bad in ["", "S", "10", "-1S", "+1S", "1.5S", "123456789S", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_shorter_time_wins() {
        let limit = Duration::from_secs(10);
        let left = |timeout: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(timeout) = timeout {
                headers.insert("grpc-timeout", http::HeaderValue::from_static(timeout));
            }
            let now = Instant::now();
            Deadline::of(&headers, limit).0 - now
        };
        assert!(left(None) >= limit);
        assert!(left(Some("1H")) >= limit && left(Some("1H")) < limit * 2);
        assert!(left(Some("1S")) < limit);
        assert!(left(Some("nonsense")) >= limit);
    }
}
