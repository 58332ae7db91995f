//! A container of objects: a bucket of a cloud, a WebDAV server, or a local directory.
//!
//! Its calls are made by [`EndpointCalls`]. The crate `object_store` would repeat requests itself; its
//! retries are turned off.

mod conditional;
mod listing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;

pub(super) use self::conditional::{ObjectVersion, ReadVersion};
pub(super) use self::listing::ListedObject;
use super::address::BucketAddress;
use super::http::ServiceClock;
use crate::castore::Digest;
use crate::store::Error;
use crate::store::authorities::explain;
use crate::store::endpoint_calls::{EndpointCalls, RetryPolicy, in_time};
use crate::store::extents::ChunkVerification;
use crate::store::failure::{CallFailure, FailureKind, found};
use crate::store::pace::{AnswerPace, LEAST_RATE};

/// The deadline for the beginning of an answer, and the time for which an object may bring less than
/// [`LEAST_RATE`].
const FIRST_BYTE: Duration = Duration::from_secs(15);
const STALL: Duration = Duration::from_secs(15);
/// The deadline of an operation that reads no object.
const DEADLINE: Duration = Duration::from_secs(40);
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_pause: Duration::from_millis(100),
    growth: 3,
    longest_pause: Duration::from_secs(1),
    within: Duration::MAX,
    timeouts: false,
};

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
    pub(super) calls: EndpointCalls,
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
        let (verify, download_buffer) = (address.verify, address.download_buffer);
        let shown = format!("objectstore+{}", address.place);
        let (store, base, clock) = address.open().map_err(|why| Error::NotOpened {
            url: url.to_owned(),
            why,
        })?;
        let base = match base.is_root() {
            true => String::new(),
            false => format!("{base}/"),
        };
        Ok(Self {
            calls: EndpointCalls::new(shown.clone(), RETRIES, Arc::default()),
            url: shown,
            runtime,
            verify,
            download_buffer,
            store,
            clock,
            deadline: DEADLINE,
            base,
        })
    }

    /// The path of the object of `kind` and `digest`.
    pub(super) fn path(&self, kind: &str, digest: &Digest) -> String {
        let hex = digest.to_hex();
        let (shard, _) = hex.split_at(4);
        format!("{kind}/b3/{shard}/{hex}")
    }

    fn at(&self, path: &str) -> Result<Path, CallFailure> {
        Path::parse(format!("{}{path}", self.base))
            .map_err(|error| CallFailure::refused(error.to_string()))
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
        self.call(|| async {
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
                let Some(buffer) = next.await?.transpose()? else {
                    return Ok((taken, version));
                };
                self.calls.received(buffer.len() as u64);
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
        let head = self.call(|| in_time(self.deadline, self.store.head(&at)));
        Ok(found(head.await)?.is_some())
    }

    pub(super) async fn put(&self, path: &str, bytes: Bytes) -> Result<(), CallFailure> {
        let at = self.at(path)?;
        let deadline = self.deadline + Duration::from_secs(bytes.len() as u64 / LEAST_RATE);
        let put = || {
            let payload = PutPayload::from_bytes(bytes.clone());
            in_time(deadline, self.store.put(&at, payload))
        };
        self.call(put).await?;
        Ok(())
    }

    /// Removes the object at `path`, if there is one.
    pub(super) async fn delete(&self, path: &str) -> Result<(), CallFailure> {
        let at = self.at(path)?;
        let deleted = self.call(|| in_time(self.deadline, self.store.delete(&at)));
        found(deleted.await)?;
        Ok(())
    }

    /// Makes a call; its attempts have deadlines of their own.
    async fn call<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        self.calls.make(self.deadline, attempt).await
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

impl From<object_store::Error> for CallFailure {
    fn from(error: object_store::Error) -> Self {
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
