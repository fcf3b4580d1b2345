//! Count and duration of every request of the public listener, by route, exposure and status (R-ACL-4).
//!
//! Labels come from the table of routes and never from the request: a path that is not in it counts as `unknown`. A
//! client that leaves before its answer counts as `cancelled`.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::Method;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::{Span, field};

use crate::{
    authn::ConnectedPeer,
    model::ROUTES,
    trace::{self, Call, Root},
};

/// Statuses that have a label of their own.
const CODES: [(u16, &str); 15] = [
    (200, "200"),
    (304, "304"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (409, "409"),
    (413, "413"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (504, "504"),
    (0, "other"),
    (1, "cancelled"),
];
const CANCELLED: u16 = 1;

/// The handles of every route.
pub(super) struct Routes {
    by_path: HashMap<&'static str, usize>,
    /// The last one is `unknown`.
    handles: Vec<Handles>,
}

struct Handles {
    route: &'static str,
    exposure: &'static str,
    seconds: Histogram,
    /// By code, and only those that occurred.
    totals: [OnceLock<Counter>; CODES.len()],
}

/// One request under way.
struct Observation {
    routes: Arc<Routes>,
    index: usize,
    started: Instant,
    code: u16,
    /// The root of the request's trace, if there is one.
    span: Span,
}

/// Counts a request when its answer is there, or nobody waits for it any more.
pub(super) async fn measured(
    State(routes): State<Arc<Routes>>,
    request: Request,
    next: Next,
) -> Response {
    let mut observation = Observation::start(routes, request.uri().path());
    let peer = request.extensions().get::<ConnectedPeer>();
    // Who has proved a certificate is believed about the trace too. Anybody else is a stranger.
    let is_believed = peer.is_some_and(|peer| peer.shows_certificate());
    let method = name_of(request.method());
    let root = Root::of(request.headers(), is_believed, || {
        observation.root_span(method)
    });
    observation.span = root.span.clone();
    let log = match root.id {
        Some(id) => tracing::info_span!("http", route = observation.route(), trace_id = %id),
        None => Span::none(),
    };
    let response = Call::new(root.span, log).run(next.run(request)).await;
    observation.code = response.status().as_u16();
    response
}

impl Routes {
    pub(super) fn new() -> Self {
        let mut by_path = HashMap::new();
        let mut handles = Vec::new();
        for route in ROUTES {
            // Methods of one path share its label.
            if by_path.contains_key(route.path) {
                continue;
            }
            by_path.insert(route.path, handles.len());
            handles.push(Handles::new(route.path, route.exposure.label()));
        }
        handles.push(Handles::new("unknown", "unknown"));
        Self { by_path, handles }
    }

    /// The route that a path is one of: its own words, or anything where the route has a parameter.
    fn index_of(&self, path: &str) -> Option<usize> {
        let known = self.by_path.get(path).copied();
        known.or_else(|| {
            let mut routes = self.by_path.iter();
            routes.find_map(|(route, index)| is_of(path, route).then_some(*index))
        })
    }
}

/// The methods that HTTP names; anything else may be any text.
fn name_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}

fn is_of(path: &str, route: &str) -> bool {
    let (mut words, mut names) = (path.split('/'), route.split('/'));
    loop {
        match (words.next(), names.next()) {
            (None, None) => return true,
            (Some(word), Some(name)) if name.starts_with('{') => {
                if word.is_empty() {
                    return false;
                }
            }
            (Some(word), Some(name)) if word == name => {}
            _ => return false,
        }
    }
}

impl Handles {
    fn new(route: &'static str, exposure: &'static str) -> Self {
        Self {
            route,
            exposure,
            seconds: histogram!("claviger_http_request_seconds", "route" => route, "exposure" => exposure),
            totals: [const { OnceLock::new() }; CODES.len()],
        }
    }

    fn total(&self, code: u16) -> Option<&Counter> {
        let at = |code| CODES.iter().position(|(known, _)| *known == code);
        let index = at(code).or_else(|| at(0))?;
        let (_, label) = CODES.get(index)?;
        Some(self.totals.get(index)?.get_or_init(|| {
            counter!(
                "claviger_http_requests_total",
                "route" => self.route, "exposure" => self.exposure, "code" => *label
            )
        }))
    }
}

impl Observation {
    fn start(routes: Arc<Routes>, path: &str) -> Self {
        let unknown = routes.handles.len() - 1;
        Self {
            index: routes.index_of(path).unwrap_or(unknown),
            routes,
            started: Instant::now(),
            code: CANCELLED,
            span: Span::none(),
        }
    }

    fn route(&self) -> &'static str {
        self.routes.handles[self.index].route
    }

    /// A root for the request's trace. A path that is not in the table is not named.
    fn root_span(&self, method: &'static str) -> Span {
        let route = self.route();
        tracing::info_span!(
            target: trace::ROOT,
            "http",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            otel.status_code = field::Empty,
            http.request.method = method,
            http.route = route,
            http.response.status_code = field::Empty,
            url.scheme = "https",
            claviger.request_id = field::Empty,
            claviger.tenant = field::Empty,
            claviger.principal.id = field::Empty,
        )
    }

    fn end_span(&self) {
        if self.span.is_disabled() {
            return;
        }
        if self.code != CANCELLED {
            self.span.record("http.response.status_code", self.code);
        }
        if self.code >= 500 {
            self.span.record("otel.status_code", "ERROR");
        }
        // The end of the span is when it was left last, so this is when.
        self.span.in_scope(|| {});
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.end_span();
        let handles = &self.routes.handles[self.index];
        handles.seconds.record(self.started.elapsed().as_secs_f64());
        if let Some(total) = handles.total(self.code) {
            total.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R-ACL-4
    #[test]
    fn ids_in_paths_make_no_labels() {
        let route = "/users/{user}/broker-credentials/{id}";
        assert!(is_of("/users/me/broker-credentials/1", route));
        for other in [
            "/users/me/broker-credentials",
            "/users/me/broker-credentials/",
            "/users//broker-credentials/1",
            "/users/me/broker-credentials/1/reveal",
            "/user/me/broker-credentials/1",
        ] {
            assert!(!is_of(other, route), "{other}");
        }
    }
}
