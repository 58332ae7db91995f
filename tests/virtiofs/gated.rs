//! A store whose blobs can be made far away, and one of which makes it panic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, Node, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{Answer, Error, Ingest, MemoryStore, Store, Usage};
use tokio::sync::watch;

use super::model::Model;

/// The store.
#[derive(Debug)]
pub struct Gated {
    inner: MemoryStore,
    gate: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gated {
    /// A store with the tree `model`.
    pub fn store(model: &Model) -> (Arc<Self>, Node) {
        let inner = MemoryStore::new();
        let node = model.put_root(&inner, "root");
        let store = Self {
            inner,
            gate: watch::Sender::new(true),
            waiting: watch::Sender::new(0),
        };
        (Arc::new(store), node)
    }

    /// Reads wait from now on.
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Those that wait go on.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Waits until so many reads wait.
    #[track_caller]
    pub fn until_waiting(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while *self.waiting.borrow() != count {
            let now = *self.waiting.borrow();
            assert!(
                Instant::now() < deadline,
                "{now} reads wait instead of {count}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[async_trait]
impl Store for Gated {
    fn url(&self) -> &str {
        "gated:"
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
        assert_ne!(*digest, Digest::of(b"panics"), "as this test wants it");
        match *self.gate.borrow() {
            true => self.inner.read_now(digest, size, offset, buffer),
            false => Ok(Answer::Wait),
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        self.waiting.send_modify(|waiting| *waiting -= 1);
        self.inner.read(digest, size, offset, length).await
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        self.inner.root_now(name)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.inner.roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.inner.path_info(name).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.inner.blob_size(digest).await
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.inner.usage()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.inner.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.inner.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.inner.ingest()
    }
}
