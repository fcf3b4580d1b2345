//! Section `[telemetry]`.

use std::{fs, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::trace::Ratio;

/// Section `[telemetry]`: where traces go. Without `otlp_endpoint` there are none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The collector, `https://host:4317`: OTLP over gRPC. Default none.
    pub otlp_endpoint: Option<String>,
    /// CAs, in PEM, of the collector's certificate, in place of those of the system. Default none.
    pub otlp_ca_file: Option<PathBuf>,
    /// File of headers for the collector, `name: value` on each line; may hold its token. Default none.
    pub otlp_headers_file: Option<PathBuf>,
    /// Seconds that one export may take, and the last one at the end of the daemon. Default 5.
    pub otlp_timeout_seconds: u64,
    /// Whether a collector elsewhere may be spoken to over `http://`: whoever is on the way reads the traces. Default false.
    pub otlp_allow_http: bool,
    /// Part of the traces that no caller has decided about that are kept, 0 to 1. Default 0.1.
    pub trace_sample_ratio: f64,
    /// `service.name` of the traces. Default `claviger`.
    pub service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_ca_file: None,
            otlp_headers_file: None,
            otlp_timeout_seconds: 5,
            otlp_allow_http: false,
            trace_sample_ratio: 0.1,
            service_name: "claviger".to_owned(),
        }
    }
}

impl TelemetryConfig {
    /// Errors: a sentence that names the setting. `is_dev` is whether the daemon runs in environment `dev`.
    pub fn check(&self, is_dev: bool) -> Result<(), String> {
        if !(1..=60).contains(&self.otlp_timeout_seconds) {
            return Err("telemetry.otlp_timeout_seconds must be 1 to 60".into());
        }
        if Ratio::new(self.trace_sample_ratio).is_none() {
            return Err("telemetry.trace_sample_ratio must be 0 to 1".into());
        }
        if !(1..=255).contains(&self.service_name.len()) {
            return Err("telemetry.service_name must be 1 to 255 characters".into());
        }
        let Some(endpoint) = &self.otlp_endpoint else {
            return match (&self.otlp_ca_file, &self.otlp_headers_file) {
                (None, None) => Ok(()),
                _ => Err("telemetry.otlp_endpoint is missing".into()),
            };
        };
        let url = target(endpoint)?;
        let is_plain_elsewhere = url.scheme() == "http" && !is_loopback(&url);
        if is_plain_elsewhere && !is_dev && !self.otlp_allow_http {
            return Err(
                "telemetry.otlp_endpoint is http:// and not on this machine: use https://, or say \
                 telemetry.otlp_allow_http = true"
                    .into(),
            );
        }
        if is_plain_elsewhere && self.otlp_headers_file.is_some() {
            return Err(
                "telemetry.otlp_headers_file: what it holds does not go over http:// to another machine; use https://"
                    .into(),
            );
        }
        if url.scheme() == "http" && self.otlp_ca_file.is_some() {
            return Err("telemetry.otlp_ca_file has no use with http://".into());
        }
        Ok(())
    }

    pub(super) const fn patience(&self) -> Duration {
        Duration::from_secs(self.otlp_timeout_seconds)
    }

    /// The headers of every export. Errors name the file and the line, and never what is on it.
    pub(super) fn headers(&self) -> Result<MetadataMap, String> {
        let mut headers = MetadataMap::new();
        let Some(path) = &self.otlp_headers_file else {
            return Ok(headers);
        };
        let named = |what: &str| format!("telemetry.otlp_headers_file {}: {what}", path.display());
        let text = fs::read_to_string(path).map_err(|e| named(&e.kind().to_string()))?;
        let text = Zeroizing::new(text);
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let (name, value) = header(line)
                .ok_or_else(|| named(&format!("line {} is not `name: value`", index + 1)))?;
            headers.append(name, value);
        }
        Ok(headers)
    }
}

fn header(
    line: &str,
) -> Option<(
    MetadataKey<tonic::metadata::Ascii>,
    MetadataValue<tonic::metadata::Ascii>,
)> {
    let (name, value) = line.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let name = MetadataKey::from_bytes(name.as_str().as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    let mut value = MetadataValue::try_from(value.as_bytes()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// The collector's URL, if it is one.
fn target(text: &str) -> Result<Url, String> {
    let wrong = || {
        "telemetry.otlp_endpoint must be https://HOST:PORT of an OTLP receiver for gRPC".to_owned()
    };
    let url = Url::parse(text).map_err(|_| wrong())?;
    let is_bare = url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    match matches!(url.scheme(), "http" | "https") && url.host().is_some() && is_bare {
        true => Ok(url),
        false => Err(wrong()),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoint: &str) -> TelemetryConfig {
        TelemetryConfig {
            otlp_endpoint: Some(endpoint.to_owned()),
            ..TelemetryConfig::default()
        }
    }

    // R-OPS-3, R-ENV-1
    #[test]
    fn plain_http_to_another_machine_is_said_deliberately() {
        let elsewhere = of("http://collector.example:4317");
        assert!(elsewhere.check(true).is_ok());
        let why = elsewhere.check(false).expect_err("refused");
        assert!(why.contains("otlp_allow_http"), "{why}");
        let meant = TelemetryConfig {
            otlp_allow_http: true,
            ..elsewhere
        };
        assert!(meant.check(false).is_ok());
        let with_token = TelemetryConfig {
            otlp_headers_file: Some("/run/secrets/headers".into()),
            ..meant
        };
        assert!(with_token.check(true).is_err());
        for fine in [
            "https://collector.example:4317",
            "http://127.0.0.1:4317",
            "http://[::1]:4317",
            "http://localhost:4317/",
        ] {
            assert_eq!(of(fine).check(false), Ok(()), "{fine}");
        }
    }

    #[test]
    fn what_is_no_collector_is_refused() {
        for bad in [
            "",
            "collector:4317",
            "grpc://collector:4317",
            "https://user:password@collector:4317",
            "https://collector:4317/v1/traces",
            "https://collector:4317/?token=1",
            "unix:///run/otlp",
        ] {
            assert!(of(bad).check(true).is_err(), "{bad}");
        }
        for ratio in [-1.0, 1.5, f64::NAN] {
            let config = TelemetryConfig {
                trace_sample_ratio: ratio,
                ..TelemetryConfig::default()
            };
            assert!(config.check(true).is_err(), "{ratio}");
        }
    }

    // R-ENV-3
    #[test]
    fn an_unreadable_header_is_not_quoted() {
        let name = format!("claviger-headers-{}", uuid::Uuid::now_v7());
        let path = std::env::temp_dir().join(name);
        let config = TelemetryConfig {
            otlp_headers_file: Some(path.clone()),
            ..of("https://collector:4317")
        };
        fs::write(&path, "\nauthorization: Bearer t0ken\nx-scope: a\n").expect("a file");
        let read = config.headers().expect("headers");
        assert_eq!(read.get("authorization").expect("one"), "Bearer t0ken");
        assert!(!format!("{read:?}").contains("t0ken"));
        fs::write(&path, "authorization Bearer t0ken\n").expect("a file");
        let why = config.headers().expect_err("refused");
        assert!(why.contains("line 1") && !why.contains("t0ken"), "{why}");
        fs::remove_file(&path).expect("the file");
        assert!(config.headers().is_err());
    }
}
