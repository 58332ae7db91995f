//! From a URL to a connection.
//!
//! The spellings are those of other implementations. The query has parameters:
//!
//! | parameter | meaning |
//! |---|---|
//! | `wait-connect=1` | opening the store waits for the connection, and fails without |
//! | `tls-ca-cert-path=PATH` | trust these authorities (PEM) instead of the system's |
//! | `tls-client-cert-path`, `tls-client-key-path` | show this certificate (PEM) |
//! | `token-file=PATH` | send this file's contents as bearer token |
//! | `connect-timeout`, `first-byte-timeout`, `stall-timeout` | deadlines: `5s`; a number alone is seconds |
//! | `verify=root`, `verify=chunks` | what is checked before bytes are returned |
//! | `cache`, `spool` | bounds of the cache in memory and of the temporary directory: `64MiB`; a number alone is MiB |
//!
//! Files without a slash in their path may be systemd credentials ([`crate::store::credential`]).
//! No secret is ever part of a URL: one that holds a user or password is refused.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Transport, Identity};
use tower::service_fn;
use url::Url;

use super::endpoint::CallDeadlines;
use crate::quantity::{Size, TimeSpan};
use crate::store::authorities::explain;
use crate::store::credential::{read, read_secret};
use crate::store::extents::ChunkVerification;
use crate::store::shown_url::shown_parameter;

/// The parameters of a URL, in the order of the table above.
const PARAMETERS: [&str; 11] = [
    "wait-connect",
    "tls-ca-cert-path",
    "tls-client-cert-path",
    "tls-client-key-path",
    "token-file",
    "connect-timeout",
    "first-byte-timeout",
    "stall-timeout",
    "verify",
    "cache",
    "spool",
];

/// A longer deadline is a mistake.
const LONGEST_DEADLINE: Duration = Duration::from_secs(10 * 24 * 60 * 60);

/// HTTP/2 windows, in bytes: how much may be in flight. 16 MiB fill 10 Gbit/s at 13 ms.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes of the headers or trailers of an answer, at most, counted as in RFC 9113: a status with its
/// message and details.
const HEADERS: u32 = 64 << 10;

/// A parsed URL.
#[derive(Debug)]
pub(super) struct GrpcAddress {
    /// The URL for logs.
    pub(super) shown: String,
    target: ConnectTarget,
    pub(super) wait: bool,
    authority: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    token: Option<PathBuf>,
    pub(super) deadlines: CallDeadlines,
    pub(super) verify: ChunkVerification,
    /// Bytes.
    pub(super) cache: usize,
    /// Bytes.
    pub(super) download_buffer: usize,
}

#[derive(Debug)]
enum ConnectTarget {
    Unix(PathBuf),
    /// `http` or `https`, host and port.
    Tcp(String),
}

impl GrpcAddress {
    /// Parses `url`; returns what is wrong otherwise.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|error| error.to_string())?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err("secrets do not belong into a URL: use token-file=PATH".to_owned());
        }
        if parsed.fragment().is_some() {
            return Err("nothing can follow a # in it".to_owned());
        }
        let mut shown = parsed.clone();
        shown.set_query(None);
        let target = match parsed.scheme() {
            "grpc+unix" => {
                if parsed
                    .host()
                    .is_some_and(|host| !host.to_string().is_empty())
                {
                    return Err("write grpc+unix:/absolute/path".to_owned());
                }
                let path = percent_decoded(parsed.path());
                if !path.is_absolute() {
                    return Err("write grpc+unix:/absolute/path".to_owned());
                }
                ConnectTarget::Unix(path)
            }
            scheme @ ("grpc+http" | "grpc+https") => {
                let host = parsed.host_str().filter(|host| !host.is_empty());
                let host = host.ok_or_else(|| format!("write {scheme}://HOST:PORT"))?;
                if !matches!(parsed.path(), "" | "/") {
                    return Err("a path cannot follow the host of a gRPC server".to_owned());
                }
                let port = parsed.port().map(|port| format!(":{port}"));
                let scheme = scheme.trim_start_matches("grpc+");
                ConnectTarget::Tcp(format!("{scheme}://{host}{}", port.unwrap_or_default()))
            }
            _ => return Err("the schemes are grpc+http, grpc+https and grpc+unix".to_owned()),
        };
        let mut address = Self {
            shown: shown.to_string(),
            target,
            wait: false,
            authority: None,
            certificate: None,
            token: None,
            deadlines: CallDeadlines::default(),
            verify: ChunkVerification::default(),
            cache: 64 << 20,
            download_buffer: 4 << 30,
        };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in parsed.query_pairs() {
            let path = || Some(PathBuf::from(value.as_ref()));
            let wrong = |what: &str| format!("{name}: {what}");
            let deadline = || match TimeSpan::or_seconds(&value).map_err(wrong)?.0 {
                deadline if deadline.is_zero() => Err(wrong("write more than 0s")),
                deadline if deadline > LONGEST_DEADLINE => Err(wrong("write 10d or less")),
                deadline => Ok(deadline),
            };
            let bound = || Size::or_mebibytes(&value).map(|Size(bytes)| bytes as usize);
            match name.as_ref() {
                "wait-connect" => {
                    address.wait = match value.as_ref() {
                        "" | "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(wrong("write 1 or 0")),
                    }
                }
                "tls-ca-cert-path" => address.authority = path(),
                "tls-client-cert-path" => certificate = path(),
                "tls-client-key-path" => key = path(),
                "token-file" => address.token = path(),
                "connect-timeout" => address.deadlines.connect = deadline()?,
                "first-byte-timeout" => address.deadlines.first_byte = deadline()?,
                "stall-timeout" => address.deadlines.stall = deadline()?,
                "verify" => address.verify = ChunkVerification::parse(&value)?,
                "cache" => address.cache = bound().map_err(wrong)?,
                "spool" => address.download_buffer = bound().map_err(wrong)?,
                _ => {
                    let name = shown_parameter(&name, &value);
                    let known = PARAMETERS.join(", ");
                    return Err(format!("there is no parameter {name}; there are {known}"));
                }
            }
        }
        address.certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err("tls-client-cert-path and tls-client-key-path go together".to_owned());
            }
        };
        let tls = matches!(&address.target, ConnectTarget::Tcp(uri) if uri.starts_with("https:"));
        if !tls && (address.authority.is_some() || address.certificate.is_some()) {
            return Err("TLS parameters need grpc+https".to_owned());
        }
        let in_clear = matches!(&address.target, ConnectTarget::Tcp(_)) && !tls;
        if in_clear && address.token.is_some() {
            let why = "a token would be sent unencrypted: use grpc+https or grpc+unix";
            return Err(why.to_owned());
        }
        Ok(address)
    }

    /// The bearer token's header.
    pub(super) fn token(&self) -> Result<Option<HeaderValue>, String> {
        let Some(path) = &self.token else {
            return Ok(None);
        };
        let text = String::from_utf8(read_secret("token-file", path)?)
            .map_err(|_| format!("{} holds no token: it is not text", path.display()))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
            .map_err(|_| format!("{} holds no token", path.display()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// How to connect: nothing is sent before the first call. Call it within a runtime.
    pub(super) fn channel(&self) -> Result<Channel, String> {
        let failed = |error: tonic::transport::Error| explain(&error);
        let uri = match &self.target {
            ConnectTarget::Unix(_) => "http://localhost",
            ConnectTarget::Tcp(uri) => uri,
        };
        let uri = Uri::try_from(uri).map_err(|error| error.to_string())?;
        let mut transport = Transport::from(uri)
            .user_agent(concat!("castore-fs/", env!("CARGO_PKG_VERSION")))
            .map_err(failed)?
            .connect_timeout(self.deadlines.connect)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(HEADERS);
        let path = match &self.target {
            ConnectTarget::Unix(path) => path.clone(),
            ConnectTarget::Tcp(uri) => {
                if uri.starts_with("https:") {
                    transport = transport.tls_config(self.tls()?).map_err(failed)?;
                }
                return Ok(transport.connect_lazy());
            }
        };
        Ok(
            transport.connect_with_connector_lazy(service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })),
        )
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let mut tls = match &self.authority {
            Some(path) => {
                let authorities = read("tls-ca-cert-path", path)?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.certificate {
            let certificate = read("tls-client-cert-path", certificate)?;
            let key = read_secret("tls-client-key-path", key)?;
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Ok(tls)
    }
}

/// The path in a URL, as bytes.
fn percent_decoded(path: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = (byte == b'%')
            .then(|| path.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(hex.unwrap_or(byte));
        at += if hex.is_some() { 3 } else { 1 };
    }
    std::ffi::OsString::from_vec(decoded).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_common_spellings_are_understood() {
        let address = GrpcAddress::parse(
            "grpc+https://host:8000?wait-connect=1&tls-ca-cert-path=/ca&tls-client-cert-path=/c\
             &tls-client-key-path=/k&token-file=/t&stall-timeout=0.5",
        )
        .unwrap();
        assert!(matches!(&address.target, ConnectTarget::Tcp(uri) if uri == "https://host:8000"));
        assert!(address.wait);
        assert_eq!(address.deadlines.stall, Duration::from_millis(500));
        assert_eq!(address.shown, "grpc+https://host:8000");
        let address = GrpcAddress::parse("grpc+unix:/run/a%20b/socket?cache=1").unwrap();
        let units = "grpc+http://h?connect-timeout=500ms&stall-timeout=2min&cache=64MiB&spool=1GiB";
        let units = GrpcAddress::parse(units).unwrap();
        assert_eq!(units.deadlines.connect, Duration::from_millis(500));
        assert_eq!(units.deadlines.stall, Duration::from_secs(120));
        assert_eq!((units.cache, units.download_buffer), (64 << 20, 1 << 30));
        let path = Path::new("/run/a b/socket");
        assert!(matches!(&address.target, ConnectTarget::Unix(unix) if unix == path));
        assert_eq!(address.cache, 1 << 20);
        let address = GrpcAddress::parse("grpc+http://[::1]:8000").unwrap();
        assert!(matches!(&address.target, ConnectTarget::Tcp(uri) if uri == "http://[::1]:8000"));
    }

    #[test]
    fn every_parameter_that_errors_list_is_one() {
        for name in PARAMETERS {
            let url = format!("grpc+https://host?{name}=?");
            let unknown = GrpcAddress::parse(&url).is_err_and(|why| why.contains("no parameter"));
            assert!(!unknown, "{name}");
        }
        let error = GrpcAddress::parse("grpc+https://host?tls-cacert=x").unwrap_err();
        assert!(error.ends_with(&PARAMETERS.join(", ")), "{error}");
    }

    #[test]
    fn an_invalid_url_is_refused() {
        for (url, why) in [
            ("grpc+http://user:secret@host", "secrets"),
            ("grpc+http://host?token-file=/t", "unencrypted"),
            ("grpc+http://host?tls-ca-cert-path=/t", "https"),
            ("grpc+https://host?tls-client-key-path=/t", "together"),
            ("grpc+http://host?nonsense=1", "nonsense"),
            (
                "grpc+http://host?stall-timeout=never",
                "as in 500ms, 20s or 1min",
            ),
            ("grpc+http://host?stall-timeout=0", "more than 0s"),
            ("grpc+http://host?stall-timeout=20d", "10d or less"),
            ("grpc+http://host?cache=0", "1MiB or more"),
            ("grpc+http://host?spool=much", "as in 512MiB or 4GiB"),
            ("grpc+http://host?verify=nothing", "root or chunks"),
            ("grpc+http://host/path", "path"),
            ("grpc+unix:relative", "absolute"),
            ("grpc+unix://host/path", "absolute"),
        ] {
            let error = GrpcAddress::parse(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }
}
