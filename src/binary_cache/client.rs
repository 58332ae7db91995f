//! Requests to one binary cache: small files whole, NARs as streams that continue where they were
//! interrupted.
//!
//! **Not found** is 404, 410 and 403 (the answer of a bucket without the right to list); 401 and
//! 407 are errors with advice. Temporary failures (no connection, 429, 5xx) are repeated as
//! [`RETRIES`] says, after the pause of a `Retry-After`. The client library makes no retries of its
//! own and decompresses nothing.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use tokio::sync::mpsc;
use url::Url;

use super::address::{CacheAddress, CacheLocation};
use super::netrc;
use crate::causes::with_causes;
use crate::store::{
    AnswerPace, Attempts, CallFailure, CallMeter, EndpointCalls, FailureKind, RetryPolicy,
    credential, in_time,
};

/// A deadline is not missed twice: it is as long as the time for all attempts.
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 5,
    first_pause: Duration::from_millis(250),
    growth: 2,
    longest_pause: Duration::from_secs(10),
    within: DEADLINE,
    timeouts: true,
};
/// A download that stopped is continued for as long as attempts make progress.
const DOWNLOAD_RETRIES: RetryPolicy = RetryPolicy {
    within: Duration::MAX,
    ..RETRIES
};
/// Redirects that one request follows.
const REDIRECTS: usize = 5;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a small file may take, or the beginning of a NAR.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long a NAR may bring less than 1 KiB/s.
const STALL: Duration = Duration::from_secs(30);
/// An attempt that brought so many bytes of a NAR counts as progress: it is not the last.
const PROGRESS: u64 = 1 << 20;
/// Bytes of a local file that are read at once.
const FILE_CHUNK: usize = 256 << 10;

/// A client of one binary cache.
#[derive(Debug)]
pub(super) struct CacheClient {
    pub(super) address: CacheAddress,
    http: reqwest::Client,
    headers: HeaderMap,
    pub(super) calls: EndpointCalls,
}

impl CacheClient {
    /// Fails where a netrc or token file cannot be read or the HTTP client cannot be made.
    /// Requests are measured by `meter`.
    pub(super) fn new(address: CacheAddress, meter: Arc<CallMeter>) -> Result<Self, String> {
        // An error means that one is installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .user_agent(concat!("castore-fs/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::custom(redirected))
            // By default it repeats what a server of HTTP/2 says that it has not begun.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| format!("cannot start an HTTP client: {error}"))?;
        Ok(Self {
            headers: headers(&address)?,
            calls: EndpointCalls::new(address.shown.clone(), RETRIES, meter),
            address,
            http,
        })
    }

    /// The file at `path`, of at most `limit` bytes; nothing if the cache has none.
    pub(super) async fn small(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Option<Bytes>, CallFailure> {
        let location = self.locate(path)?;
        let bytes = self.calls.make(DEADLINE, || {
            in_time(DEADLINE, async {
                match &location {
                    FileLocation::Url(url) => self.small_url(url, limit).await,
                    FileLocation::File(file) => self.small_file(file, limit).await,
                }
            })
        });
        match bytes.await? {
            Some(bytes) if bytes.len() > limit => {
                let why = format!("{path} is longer than {limit} bytes");
                Err(CallFailure::refused(why))
            }
            bytes => Ok(bytes),
        }
    }

    /// The file `file`, or its beginning, which is longer than `limit`.
    async fn small_file(&self, file: &Path, limit: usize) -> Result<Option<Bytes>, CallFailure> {
        let file = file.to_owned();
        let read = in_background(move || {
            let mut bytes = Vec::new();
            let file = File::open(file)?;
            file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let is_there = || self.address.directory().is_none_or(Path::is_dir);
        match read.await {
            Ok(bytes) => {
                self.calls.received(bytes.len() as u64);
                Ok(Some(bytes.into()))
            }
            Err(error) if error.kind() != ErrorKind::NotFound => Err(unreadable(error)),
            Err(_) if is_there() => Ok(None),
            // A disk that is not mounted lacks everything for a while.
            Err(_) => {
                let why = "its directory does not exist: is a disk not mounted?";
                Err(CallFailure::Failed(FailureKind::Other, why.to_owned()))
            }
        }
    }

    /// The file at `url`, or its beginning, which is longer than `limit`.
    async fn small_url(&self, url: &Url, limit: usize) -> Result<Option<Bytes>, CallFailure> {
        let Some(mut response) = self.get(url, 0).await? else {
            return Ok(None);
        };
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            self.calls.received(chunk.len() as u64);
            bytes.extend_from_slice(&chunk);
            if bytes.len() > limit {
                break;
            }
        }
        Ok(Some(bytes.freeze()))
    }

    /// Sends the file at `path`, of at most `limit` bytes, to `out`, and at its end nothing more; a
    /// failure is the last thing sent. Ends when `out` is closed.
    pub(super) async fn stream(
        &self,
        path: &str,
        limit: u64,
        out: mpsc::Sender<Result<Bytes, CallFailure>>,
    ) {
        let mut download = Download {
            out: out.clone(),
            limit,
            sent: 0,
            moved: Instant::now(),
        };
        let sent = match self.locate(path) {
            Ok(FileLocation::Url(url)) => self.stream_url(&url, &mut download).await,
            Ok(FileLocation::File(file)) => self.stream_file(&file, download).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            // Fails if the reader has gone, which is no error.
            let _ = out.send(Err(failure)).await;
        }
    }

    async fn stream_file(&self, file: &Path, mut download: Download) -> Result<(), CallFailure> {
        let open = || async {
            let file = file.to_owned();
            let opened = in_background(move || File::open(file)).await;
            opened.map_err(|error| match error.kind() {
                ErrorKind::NotFound => no_nar(),
                _ => unreadable(error),
            })
        };
        let mut file = self.calls.make(DEADLINE, open).await?;
        let send = move || {
            let length = file.seek(SeekFrom::End(0))?;
            if length > download.limit {
                return Ok(Err(download.too_long()));
            }
            file.rewind()?;
            loop {
                let mut chunk = vec![0; FILE_CHUNK];
                let read = file.read(&mut chunk)?;
                chunk.truncate(read);
                download.sent += read as u64;
                if read == 0 || download.out.blocking_send(Ok(chunk.into())).is_err() {
                    return Ok(Ok(download.sent));
                }
            }
        };
        let sent = in_background(send).await.map_err(unreadable)??;
        self.calls.received(sent);
        Ok(())
    }

    async fn stream_url(&self, url: &Url, download: &mut Download) -> Result<(), CallFailure> {
        let mut attempts = Attempts::new(DOWNLOAD_RETRIES);
        loop {
            let before = download.sent;
            let head = || in_time(DEADLINE, self.get(url, before));
            let head = self.calls.make_with(&mut attempts, DEADLINE, head).await;
            let response = head?.ok_or_else(no_nar)?;
            download.moved = Instant::now();
            let Err(failure) = self.receive(response, download).await else {
                return Ok(());
            };
            if download.sent - before >= PROGRESS {
                attempts = Attempts::new(DOWNLOAD_RETRIES);
            }
            if let Err(failure) = attempts.pause(failure).await {
                self.calls.interrupted(download.moved, &failure);
                return Err(failure);
            }
        }
    }

    /// Sends the bytes of `response`, the answer for those that have not been sent.
    async fn receive(
        &self,
        mut response: reqwest::Response,
        download: &mut Download,
    ) -> Result<(), CallFailure> {
        let from = download.sent;
        // A server without ranges sends everything again.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                if range_start(response.headers()) != Some(from) {
                    let why = "the server sent another range than requested";
                    return Err(CallFailure::refused(why));
                }
                0
            }
            _ => from,
        };
        let mut pace = AnswerPace::new(STALL);
        loop {
            let next = pace.wait(response.chunk(), |chunk| match chunk {
                Ok(Some(chunk)) => chunk.len() as u64,
                Ok(None) | Err(_) => 1,
            });
            let Some(mut chunk) = next.await?.map_err(unreachable)? else {
                return Ok(());
            };
            download.moved = Instant::now();
            self.calls.received(chunk.len() as u64);
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            download.sent += chunk.len() as u64;
            if download.sent > download.limit {
                return Err(download.too_long());
            }
            if !chunk.is_empty() && download.out.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The answer for `url` from byte `from` on; nothing if the cache has no such file.
    async fn get(&self, url: &Url, from: u64) -> Result<Option<reqwest::Response>, CallFailure> {
        let mut request = self.http.get(url.clone());
        if self.owns(url) {
            request = request.headers(self.headers.clone());
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let why = format!("HTTP status {status}");
        Err(match (status, retry_after(response.headers())) {
            (200 | 206, _) => return Ok(Some(response)),
            (403 | 404 | 410, _) => return Ok(None),
            (401 | 407, _) => CallFailure::Failed(
                FailureKind::Unauthenticated,
                format!(
                    "{why}: the login was refused; name a netrc file (netrc-file) or a token file (token-file)"
                ),
            ),
            (429 | 500.., Some(pause)) => CallFailure::Busy(pause, why),
            (429 | 500.., None) => CallFailure::Failed(FailureKind::Unreachable, why),
            _ => CallFailure::Failed(FailureKind::Other, why),
        })
    }

    /// Whether `url` is on this cache's server, which alone gets the login.
    fn owns(&self, url: &Url) -> bool {
        match &self.address.location {
            CacheLocation::Http(base) => base.origin() == url.origin(),
            CacheLocation::Directory(_) => false,
        }
    }

    /// The location of the file that a narinfo calls `path`: below the cache, or anywhere by a URL.
    fn locate(&self, path: &str) -> Result<FileLocation, CallFailure> {
        let refused = |why: &str| CallFailure::refused(format!("the URL in its narinfo {why}"));
        match &self.address.location {
            CacheLocation::Http(base) => {
                let url = base.join(path).map_err(|_| refused("is not a URL"))?;
                let is_weaker = base.scheme() == "https" && url.scheme() != "https";
                match url.scheme() {
                    _ if is_weaker => Err(refused("leaves https")),
                    "http" | "https" => Ok(FileLocation::Url(url)),
                    _ => Err(refused("is neither http nor https")),
                }
            }
            CacheLocation::Directory(base) => {
                let is_below = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
                match is_below && !path.contains('\0') {
                    true => Ok(FileLocation::File(base.join(path))),
                    false => Err(refused("leads out of the cache's directory")),
                }
            }
        }
    }
}

enum FileLocation {
    Url(Url),
    File(PathBuf),
}

/// A NAR that is passed on while it comes.
struct Download {
    out: mpsc::Sender<Result<Bytes, CallFailure>>,
    /// Bytes that it may have.
    limit: u64,
    /// Bytes that were passed on.
    sent: u64,
    /// When something came for the last time.
    moved: Instant,
}

impl Download {
    fn too_long(&self) -> CallFailure {
        CallFailure::refused(format!(
            "the NAR's file is longer than {} bytes",
            self.limit
        ))
    }
}

fn no_nar() -> CallFailure {
    CallFailure::refused("the NAR that its narinfo names is not there")
}

/// A file of the cache's directory cannot be read: another may be.
fn unreadable(error: io::Error) -> CallFailure {
    CallFailure::Failed(FailureKind::Other, error.to_string())
}

/// Runs `work`, which may block, on a thread of its own.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).flatten()
}

/// Follows a few redirects, and none that leaves https.
fn redirected(attempt: reqwest::redirect::Attempt) -> reqwest::redirect::Action {
    let is_https = |url: &Url| url.scheme() == "https";
    let is_weaker = attempt.previous().iter().any(is_https) && !is_https(attempt.url());
    match attempt.previous().len() > REDIRECTS {
        _ if is_weaker => attempt.error("a redirect leaves https"),
        true => attempt.error("too many redirects"),
        false => attempt.follow(),
    }
}

/// The headers of every request to the cache's own server.
fn headers(address: &CacheAddress) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let text = |parameter, path: &Path| {
        let text = credential::read(parameter, path)?;
        let wrong = |_| format!("{} is not text", path.display());
        String::from_utf8(text).map_err(wrong)
    };
    let value = if let Some(path) = &address.token_file {
        Some(format!("Bearer {}", text("token-file", path)?.trim()))
    } else if let (Some(path), Some(host)) = (&address.netrc_file, address.host()) {
        netrc::login(&text("netrc-file", path)?, host).map(|login| {
            let both = format!("{}:{}", login.user, login.password);
            format!("Basic {}", data_encoding::BASE64.encode(both.as_bytes()))
        })
    } else {
        None
    };
    if let Some(value) = value {
        let value = HeaderValue::from_str(&value);
        let mut value = value.map_err(|_| "the login has control characters".to_owned())?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn unreachable(error: reqwest::Error) -> CallFailure {
    // A redirect may have led to an address that is itself a secret.
    let error = error.without_url();
    let why = with_causes(error.to_string(), &error);
    // The next attempt would be redirected as well.
    let kind = match error.is_redirect() {
        true => FailureKind::Refused,
        false => FailureKind::Unreachable,
    };
    CallFailure::Failed(kind, why)
}

/// Seconds of a `Retry-After` header.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The first byte of a `Content-Range` header, `bytes FIRST-LAST/SIZE`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes ")?;
    range.split('-').next()?.parse().ok()
}
