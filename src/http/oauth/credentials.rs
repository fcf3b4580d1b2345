//! What a request shows to prove which client makes it (RFC 6749 section 2.3): one method, once.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use zeroize::Zeroizing;

use super::{
    answer::Refused,
    form::{self, Form},
};
use crate::{
    authn::Peer,
    clients::{ClientMethod, Proof, ShownCertificate},
    model::Secret,
};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What was shown.
pub struct Shown {
    /// How.
    pub method: ClientMethod,
    client_id: Option<String>,
    /// The client_secret or the client_assertion.
    secret: Secret<String>,
}

impl Shown {
    /// Reads the headers and takes the credential out of the form. `peer` is the other end of the connection.
    ///
    /// Errors: invalid_request for more than one method or what cannot be read; invalid_client for none.
    pub fn read(headers: &HeaderMap, form: &mut Form, peer: &Peer) -> Result<Self, Refused> {
        let mut authorizations = headers.get_all(header::AUTHORIZATION).iter();
        let authorization = authorizations.next();
        if authorizations.next().is_some() {
            return Err(Refused::invalid_request(
                "the Authorization header is there twice",
            ));
        }
        let secret = form.take("client_secret");
        let assertion = form.take("client_assertion");
        let assertion_type = form.take("client_assertion_type");
        let client_id = form.get("client_id").map(str::to_owned);
        let asserts = assertion.is_some() || assertion_type.is_some();
        match (authorization, secret, asserts) {
            (Some(value), None, false) => basic(value.as_bytes(), client_id),
            (None, Some(secret), false) => Ok(Self {
                method: ClientMethod::ClientSecretPost,
                client_id: Some(client_id.ok_or_else(|| {
                    Refused::invalid_request("client_id is missing beside client_secret")
                })?),
                secret,
            }),
            (None, None, true) => {
                let kind = assertion_type.as_ref().map(|t| t.expose_secret().as_str());
                match (assertion, kind) {
                    (Some(assertion), Some(ASSERTION_TYPE)) => Ok(Self {
                        method: ClientMethod::PrivateKeyJwt,
                        client_id,
                        secret: assertion,
                    }),
                    (Some(_), Some(_)) => Err(Refused::invalid_client()),
                    _ => Err(Refused::invalid_request(
                        "client_assertion and client_assertion_type come together",
                    )),
                }
            }
            (None, None, false) if !peer.fingerprint.is_empty() && client_id.is_some() => {
                Ok(Self {
                    method: ClientMethod::TlsClientAuth,
                    client_id,
                    secret: Secret::new(String::new()),
                })
            }
            (None, None, false) => Err(Refused::invalid_client()),
            _ => Err(Refused::invalid_request(
                "the request authenticates in more than one way",
            )),
        }
    }

    /// The client_id that it names, if it names one.
    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    /// The proof.
    pub fn proof<'a>(&'a self, peer: &'a Peer) -> Proof<'a> {
        let client_id = self.client_id.as_deref();
        match self.method {
            ClientMethod::ClientSecretBasic | ClientMethod::ClientSecretPost => Proof::Secret {
                client_id: client_id.unwrap_or_default(),
                secret: Secret::new(self.secret.expose_secret().clone()),
            },
            ClientMethod::PrivateKeyJwt => Proof::Assertion {
                client_id,
                assertion: self.secret.expose_secret(),
            },
            ClientMethod::TlsClientAuth => Proof::Certificate {
                client_id: client_id.unwrap_or_default(),
                certificate: ShownCertificate {
                    identities: &peer.identities,
                    thumbprint: peer.thumbprint().unwrap_or_default(),
                    not_after: peer.not_after,
                },
            },
        }
    }
}

/// `Basic base64(id:secret)`, both form-encoded before (RFC 6749 section 2.3.1). A client_id in the body must be the same.
fn basic(value: &[u8], in_body: Option<String>) -> Result<Shown, Refused> {
    let unreadable = || Refused::invalid_request("the Authorization header cannot be read");
    let (scheme, rest) = value
        .iter()
        .position(|byte| *byte == b' ')
        .map(|at| value.split_at(at))
        .ok_or_else(unreadable)?;
    if !scheme.eq_ignore_ascii_case(b"basic") {
        // A client that shows something else has not authenticated.
        return Err(Refused::invalid_client());
    }
    let decoded = BASE64_STANDARD.decode(rest.trim_ascii());
    let decoded = Zeroizing::new(decoded.map_err(|_| unreadable())?);
    let colon = decoded.iter().position(|byte| *byte == b':');
    let (id, secret) = decoded.split_at(colon.ok_or_else(unreadable)?);
    let id = form::decode(id).ok_or_else(unreadable)?;
    let secret = Secret::new(form::decode(&secret[1..]).ok_or_else(unreadable)?);
    if in_body.is_some_and(|other| other != id) {
        return Err(Refused::invalid_request(
            "client_id in the body is not the one in the Authorization header",
        ));
    }
    Ok(Shown {
        method: ClientMethod::ClientSecretBasic,
        client_id: Some(id),
        secret,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use http::HeaderValue;

    use super::*;

    fn read(authorization: &[&str], body: &str, with_certificate: bool) -> Result<Shown, Refused> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            let value = HeaderValue::from_str(value).expect("a value");
            headers.append(header::AUTHORIZATION, value);
        }
        let mut form = Form::parse(body.as_bytes()).expect("a form");
        let mut peer = Peer::anonymous(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        if with_certificate {
            peer.fingerprint = "00ff".into();
        }
        Shown::read(&headers, &mut form, &peer)
    }

    fn basic_of(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    #[test]
    fn each_method_is_told_by_what_it_shows() {
        let assertion = format!("client_assertion=a.b.c&client_assertion_type={ASSERTION_TYPE}");
        for (header, body, method, id, secret) in [
            (
                Some("me%2F1:s%3Ac+d"),
                "",
                ClientMethod::ClientSecretBasic,
                Some("me/1"),
                "s:c d",
            ),
            (
                Some("me:a:b"),
                "client_id=me",
                ClientMethod::ClientSecretBasic,
                Some("me"),
                "a:b",
            ),
            (
                None,
                "client_id=me&client_secret=s",
                ClientMethod::ClientSecretPost,
                Some("me"),
                "s",
            ),
            (None, &assertion, ClientMethod::PrivateKeyJwt, None, "a.b.c"),
        ] {
            let header: Vec<_> = header.map(basic_of).into_iter().collect();
            let header: Vec<_> = header.iter().map(String::as_str).collect();
            // A certificate that is there beside it means nothing.
            let shown = read(&header, body, true).expect("a credential");
            assert_eq!(shown.method, method);
            assert_eq!(shown.client_id(), id);
            assert_eq!(shown.secret.expose_secret(), secret);
        }
        let shown = read(&[], "client_id=me", true).expect("a certificate");
        assert_eq!(shown.method, ClientMethod::TlsClientAuth);
    }

    #[test]
    fn two_methods_or_none_are_refused() {
        let both = "client_id=me&client_secret=s&client_assertion=a";
        let basic = basic_of("me:s");
        for (header, body, code) in [
            (&[basic.as_str()][..], "client_secret=s", "invalid_request"),
            (&[&basic], "client_assertion=a", "invalid_request"),
            (&[&basic, &basic], "", "invalid_request"),
            (&[&basic], "client_id=other", "invalid_request"),
            (&[], both, "invalid_request"),
            (&[], "client_secret=s", "invalid_request"),
            (&[], "client_assertion=a", "invalid_request"),
            (&[], "client_assertion_type=a", "invalid_request"),
            (
                &[],
                "client_assertion=a&client_assertion_type=b",
                "invalid_client",
            ),
            (&[], "client_id=me", "invalid_client"),
            (&[], "", "invalid_client"),
            (&["Bearer abc"], "client_id=me", "invalid_client"),
            (&["Basic"], "", "invalid_request"),
            (&["Basic !"], "", "invalid_request"),
            (&["Basic bWU="], "", "invalid_request"),
            (&["Basic bWU6cw"], "", "invalid_request"),
            (&[&basic_of("me:%")], "", "invalid_request"),
        ] {
            let refused = read(header, body, false).err().map(|r| r.code());
            assert_eq!(refused, Some(code), "{header:?} {body}");
        }
    }
}
