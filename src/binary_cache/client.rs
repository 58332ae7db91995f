//! Requests to one binary cache: small files whole, NARs as streams that continue where they were
//! interrupted.
//!
//! **Not found** is 404, 410 and 403 (the answer of a bucket without the right to list); 401 and
//! 407 are errors with advice. Temporary failures (no connection, 429, 5xx) are retried [`TRIES`]
//! times; a `Retry-After` of up to [`LONGEST_WAIT`] is honoured. The client library makes no
//! retries of its own and decompresses nothing.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use tokio::sync::mpsc;
use url::Url;

use super::address::{CacheAddress, CacheLocation};
use super::failure::CacheFailure;
use super::netrc;
use super::rate::{SlowestRate, WINDOW};
use crate::causes::with_causes;
use crate::store::{CallMeter, credential};

/// How often a request is made at the most, unless it made progress meanwhile.
const TRIES: u32 = 5;
/// Redirects that one request follows.
const REDIRECTS: usize = 5;
/// The first pause between two of them; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a small file may take, in one try; after that no other try begins.
const SMALL_DEADLINE: Duration = Duration::from_secs(15);
/// A try that brought so many bytes of a NAR counts as progress: it is not the last.
const PROGRESS: u64 = 1 << 20;
/// Bytes of a local file that are read at once.
const FILE_CHUNK: usize = 256 << 10;

/// A client of one binary cache.
#[derive(Debug)]
pub(super) struct CacheClient {
    pub(super) address: CacheAddress,
    http: reqwest::Client,
    headers: HeaderMap,
    requests: AtomicU64,
    meter: Arc<CallMeter>,
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
            address,
            http,
            requests: AtomicU64::new(0),
            meter,
        })
    }

    /// Requests made so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The file at `path`, of at most `limit` bytes; nothing if the cache has none.
    pub(super) async fn small(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Option<Bytes>, CacheFailure> {
        let mut pauses = RetryPauses::default();
        let began = Instant::now();
        loop {
            let tried = self.try_small(path, limit);
            let tried = match tokio::time::timeout(SMALL_DEADLINE, tried).await {
                Ok(tried) => tried,
                Err(_) => Err((self.timed_out(SMALL_DEADLINE), None)),
            };
            match tried {
                Ok(found) => return Ok(found),
                Err((failure, _)) if began.elapsed() > SMALL_DEADLINE => return Err(failure),
                Err((failure, after)) => pauses.pause(failure, after).await?,
            }
        }
    }

    async fn try_small(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Option<Bytes>, (CacheFailure, Option<Duration>)> {
        let too_long = || CacheFailure::Refused(format!("{path} is longer than {limit} bytes"));
        let url = match self.locate(path).map_err(|failure| (failure, None))? {
            FileLocation::Url(url) => url,
            FileLocation::File(file) => {
                self.requests.fetch_add(1, Ordering::Relaxed);
                let metered = self.meter.begin();
                let directory = self.address.directory().map(std::path::Path::to_owned);
                let read = tokio::task::spawn_blocking(move || {
                    let is_there = || directory.is_none_or(|directory| directory.is_dir());
                    match File::open(file) {
                        // A disk that is not mounted lacks everything for a while.
                        Err(error) if error.kind() == ErrorKind::NotFound && is_there() => Ok(None),
                        opened => {
                            let mut bytes = Vec::new();
                            opened?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
                            Ok::<_, std::io::Error>(Some(bytes))
                        }
                    }
                });
                let read = read.await.map_err(std::io::Error::other).flatten();
                match &read {
                    Ok(bytes) => {
                        let bytes = bytes.as_ref().map_or(0, Vec::len);
                        self.meter.received(bytes as u64);
                        metered.answered();
                    }
                    Err(error) => metered.failed(self.describe(error)),
                }
                return match read {
                    Ok(Some(bytes)) if bytes.len() > limit => Err((too_long(), None)),
                    Ok(bytes) => Ok(bytes.map(Bytes::from)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        let why = "its directory does not exist: is a disk not mounted?";
                        Err((CacheFailure::Refused(why.to_owned()), None))
                    }
                    Err(error) => Err((CacheFailure::Unreachable(error.to_string()), None)),
                };
            }
        };
        let Some(mut response) = self.get(url, 0).await? else {
            return Ok(None);
        };
        let mut bytes = BytesMut::new();
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| (unreachable(error), None))? else {
                return Ok(Some(bytes.freeze()));
            };
            if bytes.len() + chunk.len() > limit {
                return Err((too_long(), None));
            }
            self.meter.received(chunk.len() as u64);
            bytes.extend_from_slice(&chunk);
        }
    }

    /// Sends the file at `path`, of at most `limit` bytes, to `out`, and at its end nothing more; a
    /// failure is the last thing sent. Ends when `out` is closed.
    pub(super) async fn stream(
        &self,
        path: &str,
        limit: u64,
        out: mpsc::Sender<Result<Bytes, CacheFailure>>,
    ) {
        if let Err(failure) = self.try_stream(path, limit, &out).await {
            // Fails if the reader has gone, which is no error.
            let _ = out.send(Err(failure)).await;
        }
    }

    async fn try_stream(
        &self,
        path: &str,
        limit: u64,
        out: &mpsc::Sender<Result<Bytes, CacheFailure>>,
    ) -> Result<(), CacheFailure> {
        let url = match self.locate(path)? {
            FileLocation::Url(url) => url,
            FileLocation::File(file) => {
                self.requests.fetch_add(1, Ordering::Relaxed);
                let (out, meter) = (out.clone(), self.meter.clone());
                let send = move || send_file(&file, limit, &out, &meter);
                let sent = tokio::task::spawn_blocking(send).await;
                return sent
                    .unwrap_or_else(|error| Err(CacheFailure::Unreachable(error.to_string())));
            }
        };
        let mut pauses = RetryPauses::default();
        let mut sent = 0;
        loop {
            let before = sent;
            let tried = self.try_part(url.clone(), limit, &mut sent, out).await;
            if sent - before >= PROGRESS {
                pauses = RetryPauses::default();
            }
            match tried {
                Ok(()) => return Ok(()),
                Err((failure, after)) => pauses.pause(failure, after).await?,
            }
        }
    }

    /// Sends the bytes of `url` after the first `sent`, which it updates.
    async fn try_part(
        &self,
        url: Url,
        limit: u64,
        sent: &mut u64,
        out: &mpsc::Sender<Result<Bytes, CacheFailure>>,
    ) -> Result<(), (CacheFailure, Option<Duration>)> {
        let asked = tokio::time::timeout(SMALL_DEADLINE, self.get(url, *sent)).await;
        let asked = asked.unwrap_or_else(|_| Err((self.timed_out(SMALL_DEADLINE), None)))?;
        let absent = || CacheFailure::Refused("the NAR that its narinfo names is not there".into());
        let mut response = asked.ok_or_else(|| (absent(), None))?;
        // A server without ranges sends everything again.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = range_start(response.headers());
                if start != Some(*sent) {
                    let why = "the server sent another range than requested";
                    return Err((CacheFailure::Refused(why.to_owned()), None));
                }
                0
            }
            _ => *sent,
        };
        let mut rate = SlowestRate::new();
        loop {
            let since = Instant::now();
            let chunk = tokio::time::timeout(rate.patience(), response.chunk()).await;
            let chunk = chunk.map_err(|_| (self.timed_out(WINDOW), None))?;
            let Some(mut chunk) = chunk.map_err(|error| (unreachable(error), None))? else {
                return Ok(());
            };
            self.meter.received(chunk.len() as u64);
            rate.took(chunk.len() as u64, since)
                .map_err(|_| (self.timed_out(WINDOW), None))?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            *sent += chunk.len() as u64;
            if *sent > limit {
                let why = format!("the NAR's file is longer than {limit} bytes");
                return Err((CacheFailure::Refused(why), None));
            }
            if !chunk.is_empty() && out.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The answer for `url` from byte `from` on; nothing if the cache has no such file.
    async fn get(
        &self,
        url: Url,
        from: u64,
    ) -> Result<Option<reqwest::Response>, (CacheFailure, Option<Duration>)> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let is_own = self.owns(&url);
        let mut request = self.http.get(url);
        if is_own {
            request = request.headers(self.headers.clone());
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let metered = self.meter.begin();
        let outcome = match request.send().await {
            Err(error) => Err((unreachable(error), None)),
            Ok(response) => match response.status().as_u16() {
                200 | 206 => Ok(Some(response)),
                403 | 404 | 410 => Ok(None),
                status @ (401 | 407) => Err((CacheFailure::Unauthorized(status), None)),
                status => Err((
                    CacheFailure::Status(status),
                    retry_after(response.headers()),
                )),
            },
        };
        match &outcome {
            Ok(_) => metered.answered(),
            Err((failure, _)) => metered.failed(self.describe(failure)),
        }
        outcome
    }

    /// The text of a failed request.
    fn describe(&self, failure: &dyn std::fmt::Display) -> String {
        format!("{}: a request failed: {failure}", self.address.shown)
    }

    /// The failure of a request that took longer than `limit`, which is counted.
    fn timed_out(&self, limit: Duration) -> CacheFailure {
        let failure = CacheFailure::TimedOut(limit);
        self.meter.failed(self.describe(&failure));
        failure
    }

    /// Whether `url` is on this cache's server, which alone gets the login.
    fn owns(&self, url: &Url) -> bool {
        match &self.address.location {
            CacheLocation::Http(base) => base.origin() == url.origin(),
            CacheLocation::Directory(_) => false,
        }
    }

    /// The location of the file that a narinfo calls `path`: below the cache, or anywhere by a URL.
    fn locate(&self, path: &str) -> Result<FileLocation, CacheFailure> {
        let refused = |why: &str| CacheFailure::Refused(format!("the URL in its narinfo {why}"));
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
    File(std::path::PathBuf),
}

/// Pauses between the tries of one request.
#[derive(Default)]
struct RetryPauses {
    tries: u32,
}

impl RetryPauses {
    /// Waits before the next try, or fails with `failure` if there is none.
    async fn pause(
        &mut self,
        failure: CacheFailure,
        after: Option<Duration>,
    ) -> Result<(), CacheFailure> {
        self.tries += 1;
        if self.tries >= TRIES || !failure.is_transient() {
            return Err(failure);
        }
        let doubled = FIRST_WAIT.saturating_mul(1 << (self.tries - 1));
        let wait = after.unwrap_or(doubled).min(LONGEST_WAIT);
        tokio::time::sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        Ok(())
    }
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

fn send_file(
    path: &std::path::Path,
    limit: u64,
    out: &mpsc::Sender<Result<Bytes, CacheFailure>>,
    meter: &CallMeter,
) -> Result<(), CacheFailure> {
    let metered = meter.begin();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            CacheFailure::Refused("the NAR that its narinfo names is not there".to_owned())
        }
        _ => CacheFailure::Unreachable(error.to_string()),
    };
    let mut file = File::open(path).map_err(failed)?;
    metered.answered();
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if length > limit {
        let why = format!("the NAR's file is longer than {limit} bytes");
        return Err(CacheFailure::Refused(why));
    }
    file.rewind().map_err(failed)?;
    loop {
        let mut chunk = vec![0; FILE_CHUNK];
        let read = file.read(&mut chunk).map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        chunk.truncate(read);
        meter.received(read as u64);
        if out.blocking_send(Ok(chunk.into())).is_err() {
            return Ok(());
        }
    }
}

/// The headers of every request to the cache's own server.
fn headers(address: &CacheAddress) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let text = |parameter, path: &std::path::Path| {
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

fn unreachable(error: reqwest::Error) -> CacheFailure {
    // A redirect may have led to an address that is itself a secret.
    let error = error.without_url();
    let why = with_causes(error.to_string(), &error);
    // The next try would be redirected as well.
    match error.is_redirect() {
        true => CacheFailure::Refused(why),
        false => CacheFailure::Unreachable(why),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_tried_five_times() {
        let failure = || CacheFailure::Status(503);
        let began = tokio::time::Instant::now();
        let mut pauses = RetryPauses::default();
        // As long as a server may demand.
        for after in [None, Some(Duration::from_secs(3600)), None, None] {
            pauses.pause(failure(), after).await.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        pauses.pause(failure(), None).await.unwrap_err();
        let lasting = CacheFailure::Refused("wrong".to_owned());
        RetryPauses::default()
            .pause(lasting, None)
            .await
            .unwrap_err();
    }
}
