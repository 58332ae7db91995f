//! A container of objects: a bucket of a cloud, a WebDAV server, or a local directory.
//!
//! A request that finds no connection or a busy service is repeated, a few times, with growing
//! pauses of random length. After the last attempt the circuit breaker may open
//! ([`crate::store::circuit_breaker`]). The crate `object_store` would repeat requests itself; its
//! retries are turned off.

mod conditional;
mod listing;

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::path::Path;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme,
    PutPayload, RetryConfig,
};
use tokio::runtime::Handle;
use url::Url;

pub(super) use self::conditional::{ObjectVersion, ReadVersion};
pub(super) use self::listing::ListedObject;
use super::http::{BoundedConnector, ServiceClock};
use crate::castore::Digest;
use crate::quantity::Size;
use crate::store::authorities::explain;
use crate::store::call_meter::CallMeter;
use crate::store::circuit_breaker::CircuitBreaker;
use crate::store::credential;
use crate::store::extents::ChunkVerification;
use crate::store::failure::{CallFailure, FailureKind, found};
use crate::store::pace::{AnswerPace, LEAST_RATE};
use crate::store::shown_url::shown_parameter;
use crate::store::{Damage, EndpointHealth, Error, Object};

/// The deadlines for a connection, then for the beginning of an answer, and the time for which an
/// object may bring less than [`LEAST_RATE`].
const CONNECT: Duration = Duration::from_secs(5);
const FIRST_BYTE: Duration = Duration::from_secs(15);
const STALL: Duration = Duration::from_secs(15);
/// The deadline of an operation that reads no object.
const DEADLINE: Duration = Duration::from_secs(40);
/// Attempts at a request that finds no connection or a busy service.
const ATTEMPTS: u32 = 3;
/// The mean pause before the second attempt; it triples.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Bytes in the temporary directory, unless the URL has another limit.
const DOWNLOAD_BUFFER_BYTES: usize = 4 << 30;
/// Environment variables with the options and credentials of a cloud.
const ENVIRONMENT: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];
/// Words in the names of secret parameters.
const SECRETS: [&str; 12] = [
    "secret",
    "token",
    "password",
    "passwd",
    "encryption_key",
    "master_key",
    "access_key",
    "accesskey",
    "account_key",
    "accountkey",
    "sas",
    "signature",
];

/// Objects by path.
pub(super) struct Bucket {
    pub(super) url: String,
    pub(super) runtime: Handle,
    /// The verification that bytes need before they are returned.
    pub(super) verify: ChunkVerification,
    /// Bytes of the temporary directory that may be used.
    pub(super) download_buffer: usize,
    store: Box<dyn ObjectStore>,
    /// The clock of the service; nothing if the bucket is on this machine.
    clock: Option<Arc<ServiceClock>>,
    circuit_breaker: CircuitBreaker,
    meter: CallMeter,
    calls: AtomicU64,
    /// For an operation that reads no object; one that writes an object may take longer, by the
    /// object's bytes.
    deadline: Duration,
    /// The prefix of every path, with a slash at its end unless it is empty.
    base: String,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// A parsed URL.
struct BucketAddress {
    /// Without the query.
    place: Url,
    verify: ChunkVerification,
    /// Bytes.
    download_buffer: usize,
    credentials_file: Option<PathBuf>,
    /// Options of the object store, by their names in the crate `object_store`.
    options: Vec<(String, String)>,
}

impl BucketAddress {
    /// Parses `url`; returns what is wrong otherwise, without secrets.
    fn parse(url: &str) -> Result<Self, String> {
        let place = url
            .strip_prefix("objectstore+")
            .ok_or("it does not start with objectstore+")?;
        let mut place = Url::parse(place).map_err(|error| error.to_string())?;
        // A container of Azure is written as a user.
        let names_container = matches!(place.scheme(), "az" | "adl" | "azure" | "abfs" | "abfss");
        if place.password().is_some() || !place.username().is_empty() && !names_container {
            return Err(in_the_environment("a user or password"));
        }
        if place.fragment().is_some() {
            return Err("nothing can follow a # in it".to_owned());
        }
        let mut address = Self {
            place: place.clone(),
            verify: ChunkVerification::default(),
            download_buffer: DOWNLOAD_BUFFER_BYTES,
            credentials_file: None,
            options: Vec::new(),
        };
        if place.scheme() == "http" {
            let allow = ("allow_http".to_owned(), "true".to_owned());
            address.options.push(allow);
        }
        for (name, value) in place.query_pairs() {
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                "verify" => address.verify = ChunkVerification::parse(&value)?,
                "spool" => {
                    let Size(bytes) =
                        Size::or_mebibytes(&value).map_err(|why| format!("spool: {why}"))?;
                    address.download_buffer = bytes as usize;
                }
                // By how much snix cuts what it writes.
                "avg_chunk_size" => {}
                "credentials-file" => {
                    address.credentials_file = Some(PathBuf::from(value.as_ref()));
                }
                _ if !name.ends_with("skip_signature")
                    && SECRETS.iter().any(|secret| name.contains(secret)) =>
                {
                    return Err(in_the_environment(&shown_parameter(&name, &value)));
                }
                _ => {
                    // An explicit http:// is allowed.
                    let in_clear = name.ends_with("endpoint") && value.starts_with("http://");
                    address.options.push((name, value.into_owned()));
                    if in_clear {
                        let allow = ("allow_http".to_owned(), "true".to_owned());
                        address.options.push(allow);
                    }
                }
            }
        }
        place.set_query(None);
        let (scheme, _) = ObjectStoreScheme::parse(&place).map_err(|error| explain(&error))?;
        if let Some((name, value)) = address
            .options
            .iter()
            .find(|(name, _)| !knows(&scheme, name))
        {
            let name = shown_parameter(name, value);
            return Err(format!(
                "there is no parameter {name} for {}; there are {}",
                place.scheme(),
                parameters(&scheme)
            ));
        }
        address.place = place;
        Ok(address)
    }
}

impl Bucket {
    /// Returns what is wrong with `url`, without reading a file or connecting.
    pub(super) fn check_url(url: &str) -> Result<(), String> {
        BucketAddress::parse(url).map(drop)
    }

    /// Opens `objectstore+SCHEME://…`.
    pub(super) fn open(url: &str, runtime: Handle) -> Result<Self, Error> {
        let address = BucketAddress::parse(url).map_err(|why| Error::Url {
            url: url.to_owned(),
            why,
        })?;
        Self::open_address(address, runtime).map_err(|why| Error::NotOpened {
            url: url.to_owned(),
            why,
        })
    }

    /// Opens the bucket at `address`; returns why it cannot be opened otherwise.
    fn open_address(address: BucketAddress, runtime: Handle) -> Result<Self, String> {
        let BucketAddress {
            place: inner,
            verify,
            download_buffer,
            credentials_file,
            options: given,
        } = address;
        let mut options: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| ENVIRONMENT.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        if let Some(path) = credentials_file {
            options.extend(credentials(&path)?);
        }
        options.extend(given);
        // An error means that a default is installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, base, clock) = open(&inner, options).map_err(|error| {
            let why = explain(&error);
            match why.contains("Account must be specified") {
                true => "it does not name the storage account: add account_name=NAME to the URL, or set \
                         AZURE_STORAGE_ACCOUNT_NAME"
                    .to_owned(),
                false => why,
            }
        })?;
        let base = match base.is_root() {
            true => String::new(),
            false => format!("{base}/"),
        };
        Ok(Self {
            url: format!("objectstore+{inner}"),
            runtime,
            verify,
            download_buffer,
            store,
            clock,
            circuit_breaker: CircuitBreaker::default(),
            meter: CallMeter::default(),
            calls: AtomicU64::new(0),
            deadline: DEADLINE,
            base,
        })
    }

    /// The endpoint as the calls show it, each with its attempts.
    pub(super) fn health(&self) -> EndpointHealth {
        self.meter.health(self.circuit_breaker.is_open())
    }

    /// Requests made so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Marks the bucket: it holds bytes that do not match their digest.
    pub(super) fn mark_corrupt(
        &self,
        object: Object,
        digest: &Digest,
        damage: Damage,
    ) -> CallFailure {
        tracing::error!(
            "{} holds {object} {digest} and {damage}: the bytes were discarded",
            self.url
        );
        self.circuit_breaker.sent_corrupt();
        let failure = CallFailure::Damaged(object, *digest, damage);
        self.meter
            .failed(failure.clone().of(&self.url, "a call").to_string());
        failure
    }

    /// Whether it was ever found to hold such bytes.
    pub(super) fn has_sent_corrupt(&self) -> bool {
        self.circuit_breaker.has_sent_corrupt()
    }

    /// The path of the object of `kind` and `digest`.
    pub(super) fn path(&self, kind: &str, digest: &Digest) -> String {
        let hex = digest.to_hex();
        let (shard, _) = hex.split_at(4);
        format!("{kind}/b3/{shard}/{hex}")
    }

    fn at(&self, path: &str) -> Result<Path, CallFailure> {
        Path::parse(format!("{}{path}", self.base))
            .map_err(|error| CallFailure::Failed(FailureKind::Refused, error.to_string()))
    }

    /// The object at `path`, if there is one. More than `limit` bytes are not accepted, whatever
    /// size the service reports.
    pub(super) async fn get(&self, path: &str, limit: u64) -> Result<Option<Bytes>, CallFailure> {
        let collected = self.get_version(path, limit, None).await;
        Ok(found(collected)?.map(|(bytes, _)| bytes))
    }

    /// As [`get`](Self::get), with the version of the object; as [`fetch_version`](Self::fetch_version)
    /// if it is the `known` one.
    async fn get_version(
        &self,
        path: &str,
        limit: u64,
        known: Option<&str>,
    ) -> Result<(Bytes, ObjectVersion), CallFailure> {
        let start = || ReceivedObject {
            first: Bytes::new(),
            all: BytesMut::new(),
            remaining: limit,
        };
        let collected = self.fetch_version(path, known, start, |collected, buffer| {
            if collected.push(buffer) {
                return Ok(true);
            }
            let why = format!("{path} has more than the {limit} bytes that it may have");
            Err(CallFailure::Failed(FailureKind::Corrupt, why))
        });
        let (collected, version) = collected.await?;
        Ok((collected.into_bytes(), version))
    }

    /// Passes the object at `path`, if there is one, to `take` piece by piece, as long as that
    /// returns true. Each attempt begins again with the value of `start`.
    pub(super) async fn fetch<T>(
        &self,
        path: &str,
        start: impl Fn() -> T,
        take: impl Fn(&mut T, Bytes) -> Result<bool, CallFailure>,
    ) -> Result<Option<T>, CallFailure> {
        let fetched = self.fetch_version(path, None, start, take).await;
        Ok(found(fetched)?.map(|(taken, _)| taken))
    }

    /// As [`fetch`](Self::fetch), with the version of the object. With the ETag of a `known` version, that
    /// one is not sent again: the failure is then [`FailureKind::Exists`].
    async fn fetch_version<T>(
        &self,
        path: &str,
        known: Option<&str>,
        start: impl Fn() -> T,
        take: impl Fn(&mut T, Bytes) -> Result<bool, CallFailure>,
    ) -> Result<(T, ObjectVersion), CallFailure> {
        let at = self.at(path)?;
        self.attempt(|| async {
            let options = GetOptions {
                if_none_match: known.map(str::to_owned),
                ..GetOptions::default()
            };
            let head = in_time(FIRST_BYTE, self.store.get_opts(&at, options)).await?;
            let version = ObjectVersion::of(&head.meta);
            let mut body = head.into_stream();
            let mut pace = AnswerPace::new(STALL);
            let mut taken = start();
            loop {
                let next = pace.wait(body.next(), |buffer| match buffer {
                    Some(Ok(buffer)) => buffer.len() as u64,
                    Some(Err(_)) | None => 1,
                });
                let Some(buffer) = next.await?.transpose().map_err(failure)? else {
                    return Ok((taken, version));
                };
                self.meter.received(buffer.len() as u64);
                if !take(&mut taken, buffer)? {
                    return Ok((taken, version));
                }
            }
        })
        .await
    }

    /// Whether there is an object at `path`.
    pub(super) async fn has(&self, path: &str) -> Result<bool, CallFailure> {
        let at = self.at(path)?;
        let head = self.attempt(|| in_time(self.deadline, self.store.head(&at)));
        Ok(found(head.await)?.is_some())
    }

    pub(super) async fn put(&self, path: &str, bytes: Bytes) -> Result<(), CallFailure> {
        let at = self.at(path)?;
        let deadline = self.deadline + Duration::from_secs(bytes.len() as u64 / LEAST_RATE);
        let put = || {
            let payload = PutPayload::from_bytes(bytes.clone());
            in_time(deadline, self.store.put(&at, payload))
        };
        self.attempt(put).await?;
        Ok(())
    }

    /// Removes the object at `path`, if there is one.
    pub(super) async fn delete(&self, path: &str) -> Result<(), CallFailure> {
        let at = self.at(path)?;
        let deleted = self.attempt(|| in_time(self.deadline, self.store.delete(&at)));
        found(deleted.await)?;
        Ok(())
    }

    /// Runs `work`, unless the breaker is open. A request that finds no connection, or a busy
    /// service, is repeated.
    async fn attempt<T, F>(&self, work: impl Fn() -> F) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        let began = self.circuit_breaker.begin(self.deadline)?;
        let metered = self.meter.begin();
        let outcome = self.attempts(began, work).await;
        match &outcome {
            Err(failure) if !failure.is_answer() => {
                metered.failed(failure.clone().of(&self.url, "a call").to_string());
            }
            _ => metered.answered(),
        }
        outcome
    }

    async fn attempts<T, F>(&self, began: Instant, work: impl Fn() -> F) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let failure = match work().await {
                Ok(done) => {
                    self.circuit_breaker.succeeded();
                    return Ok(done);
                }
                Err(failure) => failure,
            };
            match &failure {
                CallFailure::Failed(FailureKind::Unreachable, _) if attempt < ATTEMPTS => {
                    let jitter = 0.5 + fastrand::f64();
                    tokio::time::sleep(pause.mul_f64(jitter)).await;
                    pause *= 3;
                    continue;
                }
                CallFailure::Timeout(_) | CallFailure::Failed(FailureKind::Unreachable, _) => {
                    self.circuit_breaker.failed(&self.url, began, &failure);
                }
                // There is an answer, even if it is an error.
                _ => self.circuit_breaker.succeeded(),
            }
            return Err(failure);
        }
        unreachable!("the loop ends by returning")
    }
}

/// The parameters of a store of this kind, for an error.
fn parameters(scheme: &ObjectStoreScheme) -> &'static str {
    match scheme {
        ObjectStoreScheme::Local | ObjectStoreScheme::Memory => "only verify and spool",
        ObjectStoreScheme::GoogleCloudStorage => {
            "verify, spool, credentials-file, and options such as google_service_account and skip_signature"
        }
        ObjectStoreScheme::MicrosoftAzure => {
            "verify, spool, credentials-file, and options such as account_name, endpoint and skip_signature"
        }
        ObjectStoreScheme::Http => "verify, spool, and options such as allow_http and proxy_url",
        _ => {
            "verify, spool, credentials-file, and options such as endpoint, region and skip_signature"
        }
    }
}

/// Whether `name` is an option of a store of this kind. Future kinds are not known here.
fn knows(scheme: &ObjectStoreScheme, name: &str) -> bool {
    match scheme {
        ObjectStoreScheme::Local | ObjectStoreScheme::Memory => false,
        ObjectStoreScheme::AmazonS3 => name.parse::<AmazonS3ConfigKey>().is_ok(),
        ObjectStoreScheme::GoogleCloudStorage => name.parse::<GoogleConfigKey>().is_ok(),
        ObjectStoreScheme::MicrosoftAzure => name.parse::<AzureConfigKey>().is_ok(),
        ObjectStoreScheme::Http => name.parse::<ClientConfigKey>().is_ok(),
        _ => true,
    }
}

/// An object as it comes.
struct ReceivedObject {
    /// Its only piece, so far.
    first: Bytes,
    /// Its pieces, once there are several.
    all: BytesMut,
    /// How many bytes may still come.
    remaining: u64,
}

impl ReceivedObject {
    /// Adds another piece; returns false if that is too much.
    fn push(&mut self, buffer: Bytes) -> bool {
        let Some(remaining) = self.remaining.checked_sub(buffer.len() as u64) else {
            return false;
        };
        self.remaining = remaining;
        if self.first.is_empty() && self.all.is_empty() {
            self.first = buffer;
        } else {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
            self.all.extend_from_slice(&buffer);
        }
        true
    }

    fn into_bytes(self) -> Bytes {
        match self.all.is_empty() {
            true => self.first,
            false => self.all.freeze(),
        }
    }
}

/// The outcome of `work` within `deadline`.
async fn in_time<T>(
    deadline: Duration,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, CallFailure> {
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done.map_err(failure),
        Err(_) => Err(CallFailure::Timeout(deadline)),
    }
}

fn failure(error: object_store::Error) -> CallFailure {
    let code = match error {
        object_store::Error::NotFound { .. } => FailureKind::NotFound,
        object_store::Error::PermissionDenied { .. } => FailureKind::Denied,
        object_store::Error::Unauthenticated { .. } => FailureKind::Unauthenticated,
        object_store::Error::NotModified { .. } => FailureKind::Exists,
        _ => FailureKind::Unreachable,
    };
    let why = explain(&error);
    // One of many objects that were to be deleted with a request: the request itself succeeded.
    let denied = code == FailureKind::Unreachable && why.contains("(code: AccessDenied)");
    CallFailure::Failed(if denied { FailureKind::Denied } else { code }, why)
}

/// A store, a path in it, and the clock of its service.
type OpenedPath = (Box<dyn ObjectStore>, Path, Option<Arc<ServiceClock>>);

/// The store and path that `url` names.
fn open(url: &Url, options: Vec<(String, String)>) -> object_store::Result<OpenedPath> {
    let clock = Arc::new(ServiceClock::default());
    // Retries and deadlines are in [`Bucket::attempt`].
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_timeout_disabled();
    let (scheme, path) = ObjectStoreScheme::parse(url)?;
    // As object_store::parse_url_opts, which has no parameter for retries.
    macro_rules! built {
        ($builder:ty, $url:expr) => {{
            let builder = <$builder>::new()
                .with_url($url)
                .with_retry(retry)
                .with_client_options(client)
                .with_http_connector(BoundedConnector(clock.clone()));
            let builder = options.into_iter().fold(builder, |builder, (name, value)| {
                match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    // An option of another cloud, or of castore-fs.
                    Err(_) => builder,
                }
            });
            Box::new(builder.build()?) as Box<dyn ObjectStore>
        }};
    }
    let store = match scheme {
        ObjectStoreScheme::AmazonS3 => built!(object_store::aws::AmazonS3Builder, url.as_str()),
        ObjectStoreScheme::GoogleCloudStorage => {
            built!(object_store::gcp::GoogleCloudStorageBuilder, url.as_str())
        }
        ObjectStoreScheme::MicrosoftAzure => {
            built!(object_store::azure::MicrosoftAzureBuilder, url.as_str())
        }
        ObjectStoreScheme::Http => {
            let host = &url[..url::Position::BeforePath];
            built!(object_store::http::HttpBuilder, host)
        }
        _ => {
            let (store, path) = object_store::parse_url_opts(url, options)?;
            return Ok((store, path, None));
        }
    };
    Ok((store, path, Some(clock)))
}

/// The options in a file of lines `name = value`: an AWS credentials file of one profile, or an
/// environment file.
fn credentials(path: &FilePath) -> Result<Vec<(String, String)>, String> {
    let shown = path.display();
    let text = String::from_utf8(credential::read_secret("credentials-file", path)?)
        .map_err(|_| format!("{shown} holds no credentials: it is not text"))?;
    let mut options = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';', '[']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| {
            // The line may hold a secret.
            format!("{shown}: line {} is not NAME=VALUE", number + 1)
        })?;
        let value = value.trim().trim_matches('"');
        options.push((name.trim().to_ascii_lowercase(), value.to_owned()));
    }
    if options.is_empty() {
        return Err(format!(
            "{shown} holds no credentials: write NAME=VALUE lines"
        ));
    }
    Ok(options)
}

fn in_the_environment(what: &str) -> String {
    format!(
        "{what} is a secret and belongs into the environment or a credentials-file, not into a URL"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// Accepts requests, and answers nothing or begins an answer that does not end.
    fn silent_server(begins: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let _ = connection.write_all(begins.as_bytes());
                open.push(connection);
            }
        });
        format!("objectstore+http://{address}/")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_operation_that_brings_no_object_has_a_deadline() {
        const BEGUN: &str = "HTTP/1.1 207 Multi-Status\r\nContent-Length: 1000\r\n\r\n<";
        let patience = Duration::from_secs(20);
        for begins in ["", BEGUN] {
            let url = silent_server(begins);
            // A breaker that opens would answer in the place of the deadline.
            let open = || {
                let runtime = Handle::current();
                let mut bucket = Bucket::open(&url, runtime).unwrap();
                assert_eq!(bucket.deadline, Duration::from_secs(40));
                bucket.deadline = Duration::from_millis(200);
                bucket
            };
            let timed_out = |outcome: Result<(), CallFailure>, what: &str| {
                assert!(
                    matches!(outcome, Err(CallFailure::Timeout(_))),
                    "{what}: {outcome:?}"
                );
            };
            let list = async { open().list("a", 10).await.map(drop) };
            let list = tokio::time::timeout(patience, list).await;
            timed_out(list.expect("a listing continues"), "list");
            if begins.is_empty() {
                let has = async { open().has("a").await.map(drop) };
                let has = tokio::time::timeout(patience, has).await;
                timed_out(has.expect("a question continues"), "has");
                let put = async { open().put("a", Bytes::from_static(b"x")).await };
                let put = tokio::time::timeout(patience, put).await;
                timed_out(put.expect("an addition continues"), "put");
                let create = async { open().create("a", Bytes::new()).await.map(drop) };
                let create = tokio::time::timeout(patience, create).await;
                timed_out(create.expect("a creation continues"), "create");
                let delete = async { open().delete("a").await };
                let delete = tokio::time::timeout(patience, delete).await;
                timed_out(delete.expect("a removal continues"), "delete");
            }
        }
    }
}
