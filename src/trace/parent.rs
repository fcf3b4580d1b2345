//! What a caller says about the trace that it is part of: `traceparent` and `tracestate` of W3C Trace Context, level 1.
//!
//! What is malformed is as if it were not there: it must not decide whether a key is frozen in an incident.

use std::str::FromStr;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Bytes of a tracestate that are passed on (section 3.3.1.5).
const MAX_STATE: usize = 512;

/// The caller's span. None without one, with several, or with one that says nothing.
pub(super) fn of(headers: &HeaderMap) -> Option<SpanContext> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(text), None) = (given.next(), given.next()) else {
        return None;
    };
    let (trace, span, flags) = parse(text.to_str().ok()?)?;
    Some(SpanContext::new(trace, span, flags, true, state(headers)))
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may go on behind another `-` (section 2.2).
fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (known, more) = text.split_at_checked(55)?;
    let mut parts = known.split('-');
    let (version, trace) = (hex(parts.next()?, 2)?, hex(parts.next()?, 32)?);
    let (span, flags) = (hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
    let may_go_on = version != "00" && more.starts_with('-');
    if parts.next().is_some() || version == "ff" || !(more.is_empty() || may_go_on) {
        return None;
    }
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

fn hex(text: &str, length: usize) -> Option<&str> {
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == length && text.bytes().all(is_hex)).then_some(text)
}

/// The headers in their order, joined; nothing when they are too long or malformed.
fn state(headers: &HeaderMap) -> TraceState {
    let mut joined = String::new();
    for part in headers.get_all(TRACESTATE) {
        let Ok(part) = part.to_str() else {
            return TraceState::NONE;
        };
        if joined.len() + part.len() > MAX_STATE {
            return TraceState::NONE;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(part);
    }
    if joined.is_empty() {
        return TraceState::NONE;
    }
    TraceState::from_str(&joined).unwrap_or(TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(parents: &[&str], states: &[&str]) -> Option<SpanContext> {
        let mut headers = HeaderMap::new();
        let value = |text: &str| HeaderValue::from_str(text).expect("a header value");
        for parent in parents {
            headers.append(TRACEPARENT, value(parent));
        }
        for state in states {
            headers.append(TRACESTATE, value(state));
        }
        of(&headers)
    }

    // R-OPS-3
    #[test]
    fn a_callers_span_is_read() {
        let span = read(&[GOOD], &["a=1", "b=2"]).expect("a span");
        assert_eq!(
            span.trace_id().to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(span.span_id().to_string(), "00f067aa0ba902b7");
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().header(), "a=1,b=2");
        let quiet = GOOD.replace("-01", "-00");
        assert!(!read(&[&quiet], &[]).expect("a span").is_sampled());
        let later = format!("{}-what comes then", GOOD.replacen("00-", "01-", 1));
        assert!(read(&[&later], &[]).is_some());
    }

    // R-OPS-3
    #[test]
    fn what_is_malformed_says_nothing() {
        assert_eq!(read(&[], &["a=1"]), None);
        assert_eq!(read(&[GOOD, GOOD], &[]), None);
        let later = GOOD.replacen("00-", "01-", 1);
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{later}more"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace('4', "g"),
            &GOOD.replace("-00f067aa0ba902b7-", "--0f067aa0ba902b7-"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b\u{e9}-01",
        ] {
            assert_eq!(read(&[bad], &[]), None, "{bad}");
        }
        let long = format!("a={}", "x".repeat(MAX_STATE));
        for bad in ["no equals sign", &long] {
            let span = read(&[GOOD], &[bad]).expect("a span");
            assert_eq!(span.trace_state().header(), "", "{bad}");
        }
    }
}
