//! An upstream with counters and times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::health::{EndpointHealth, EndpointState, Health};
use super::latency::RecentLatencies;
use super::{Answer, BackingFile, Error, Ingest, Store, StoreUsage};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// `inner`, measured. Answers from memory are not counted: only requests that leave this process.
#[derive(Debug)]
pub(crate) struct MeasuredStore {
    inner: Arc<dyn Store>,
    requests: AtomicU64,
    failures: AtomicU64,
    in_flight: AtomicU64,
    bytes_in: AtomicU64,
    latest: Mutex<LatestCalls>,
}

#[derive(Debug, Default)]
struct LatestCalls {
    latencies: RecentLatencies,
    state: EndpointState,
    failure: Option<String>,
}

impl MeasuredStore {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            latest: Mutex::default(),
        }
    }

    async fn measure<T>(
        &self,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let pending = CallInFlight::begin(&self.in_flight);
        let began = Instant::now();
        let outcome = question.await;
        drop(pending);
        let mut latest = self.latest.lock();
        match &outcome {
            Ok(_) => {
                latest.latencies.add(began.elapsed());
                latest.state = EndpointState::Up;
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                latest.state = EndpointState::Failing;
                latest.failure = Some(error.to_string());
            }
        }
        outcome
    }

    fn came(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A request in flight; its caller may be dropped.
struct CallInFlight<'a>(&'a AtomicU64);

impl<'a> CallInFlight<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for MeasuredStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.inner.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.inner.read_now(digest, size, offset, buffer)
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.inner.will_need(blobs);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        self.inner.root_now(name)
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.inner.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        let found = self.measure(self.inner.directory(digest)).await?;
        if let Some(directory) = &found {
            self.came(directory.as_bytes().len());
        }
        Ok(found)
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let read = self.inner.read(digest, size, offset, length);
        let found = self.measure(read).await?;
        self.came(found.as_ref().map_or(0, Bytes::len));
        Ok(found)
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.measure(self.inner.root(name)).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.measure(self.inner.roots()).await
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        self.measure(self.inner.complete_roots()).await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.measure(self.inner.path_info(name)).await
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.inner.incomplete_root(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.measure(self.inner.has_blob(digest)).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.measure(self.inner.blob_size(digest)).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.measure(self.inner.chunks(digest)).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.measure(self.inner.group_table(digest, size)).await
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.inner.usage()
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        self.inner.embedded()
    }

    fn health(&self) -> Health {
        let latest = self.latest.lock();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Health {
            endpoint: Some(EndpointHealth {
                state: latest.state,
                requests: load(&self.requests),
                failures: load(&self.failures),
                in_flight: load(&self.in_flight),
                bytes_in: load(&self.bytes_in),
                median_micros: latest.latencies.median_micros(),
                p95_micros: latest.latencies.p95_micros(),
                last_failure: latest.failure.clone(),
            }),
            ..self.inner.health()
        }
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.inner.wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.inner.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.inner.ingest()
    }
}
