//! Bodies of `application/x-www-form-urlencoded`, read strictly.
//!
//! A parameter that is there twice means two things to two readers, so it is refused (RFC 6749 section 3.2); one without
//! a value counts as absent. Values may be secrets and are wiped.

use std::collections::BTreeMap;

use http::{HeaderMap, header};

use super::answer::Refused;
use crate::model::Secret;

/// Parameters of one request at most.
const MAX_PARAMETERS: usize = 32;

/// The parameters of a request, by name.
pub struct Form(BTreeMap<String, Secret<String>>);

impl Form {
    /// Reads a body. Errors: invalid_request.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let malformed = || Refused::invalid_request("the body is no well-formed form in UTF-8");
        let mut parameters = BTreeMap::new();
        let parts = body.split(|byte| *byte == b'&');
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = match part.iter().position(|byte| *byte == b'=') {
                Some(at) => (&part[..at], &part[at + 1..]),
                None => (part, &[][..]),
            };
            let name = decode(name).ok_or_else(malformed)?;
            let value = Secret::new(decode(value).ok_or_else(malformed)?);
            if parameters.insert(name, value).is_some() {
                return Err(Refused::invalid_request("a parameter is there twice"));
            }
            if parameters.len() > MAX_PARAMETERS {
                return Err(Refused::invalid_request("there are too many parameters"));
            }
        }
        parameters.retain(|_, value: &mut Secret<String>| !value.expose_secret().is_empty());
        Ok(Self(parameters))
    }

    /// A parameter that has a value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.expose_secret().as_str())
    }

    /// The same, taken out.
    pub fn take(&mut self, name: &str) -> Option<Secret<String>> {
        self.0.remove(name)
    }
}

/// Errors: invalid_request unless the headers announce a form, once, and nothing that would have to be unpacked.
pub fn check_headers(headers: &HeaderMap) -> Result<(), Refused> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let given = match (types.next(), types.next()) {
        (Some(only), None) => only.to_str().unwrap_or_default(),
        _ => "",
    };
    let (media, parameters) = given.split_once(';').unwrap_or((given, ""));
    let parameters = parameters.trim();
    let is_form = media
        .trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded");
    let is_utf8 = parameters.is_empty()
        || parameters.eq_ignore_ascii_case("charset=utf-8")
        || parameters.eq_ignore_ascii_case("charset=\"utf-8\"");
    if !is_form || !is_utf8 {
        return Err(Refused::invalid_request(
            "send parameters as application/x-www-form-urlencoded in UTF-8",
        ));
    }
    match headers.contains_key(header::CONTENT_ENCODING) {
        true => Err(Refused::invalid_request("the body must not be compressed")),
        false => Ok(()),
    }
}

/// Undoes form encoding. None for what is not encoded properly, no UTF-8, or holds control characters.
pub fn decode(encoded: &[u8]) -> Option<String> {
    // Most values are ids and tokens, which are sent as they are.
    if encoded
        .iter()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'+' | b'%'))
    {
        return String::from_utf8(encoded.to_vec()).ok();
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.iter();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => hex(*bytes.next()?)? << 4 | hex(*bytes.next()?)?,
            other => *other,
        });
    }
    let text = String::from_utf8(decoded).ok()?;
    (!text.contains(char::is_control)).then_some(text)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn parameters_are_decoded_and_empty_ones_are_absent() {
        let body = b"grant_type=client_credentials&scope=a+b%20c&empty=&bare&%C3%A9=%e2%82%ac&=x";
        let form = Form::parse(body).expect("a form");
        assert_eq!(form.get("grant_type"), Some("client_credentials"));
        assert_eq!(form.get("scope"), Some("a b c"));
        assert_eq!(form.get("\u{e9}"), Some("\u{20ac}"));
        assert_eq!(form.get("empty"), None);
        assert_eq!(form.get("bare"), None);
        assert_eq!(Form::parse(b"").expect("a form").get("scope"), None);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            &b"a=1&a=1"[..],
            b"a=1&a=",
            b"a=1&%61=2",
            b"a=%",
            b"a=%2",
            b"a=%zz",
            b"a=%+1",
            b"a=%ff",
            b"a=\xff",
            b"a=%C3",
            b"a=%00",
            b"a=%0d%0a",
            b"a=\x01",
        ] {
            assert!(
                Form::parse(bad).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
        let many: Vec<_> = (0..=MAX_PARAMETERS).map(|i| format!("p{i}=1")).collect();
        assert!(Form::parse(many.join("&").as_bytes()).is_err());
        assert!(Form::parse(many[1..].join("&").as_bytes()).is_ok());
    }

    #[test]
    fn only_plain_forms_are_read() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_str(value).expect("a value");
                headers.append(header::CONTENT_TYPE, value);
            }
            headers
        };
        for good in [
            "application/x-www-form-urlencoded",
            "Application/X-WWW-Form-URLEncoded; charset=UTF-8",
            "application/x-www-form-urlencoded;charset=\"utf-8\"",
        ] {
            assert!(check_headers(&headers(&[good])).is_ok(), "{good}");
        }
        let form = "application/x-www-form-urlencoded";
        for bad in [
            &[][..],
            &["application/json"],
            &["text/plain"],
            &["multipart/form-data; boundary=x"],
            &["application/x-www-form-urlencoded; charset=utf-16"],
            &[form, form],
        ] {
            assert!(check_headers(&headers(bad)).is_err(), "{bad:?}");
        }
        let mut packed = headers(&[form]);
        packed.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_headers(&packed).is_err());
    }
}
