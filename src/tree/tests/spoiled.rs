//! A store that lost or damaged some of what it had, and counts what it is asked.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::castore::{Digest, Directory, Root};
use crate::nix::PathInfo;
use crate::store::{Answer, Damage, Error, Ingest, MemoryStore, Object, Store, Usage};

#[derive(Debug)]
pub(super) struct Spoiled {
    inner: MemoryStore,
    missing: HashSet<Digest>,
    damaged: HashSet<Digest>,
    asked: AtomicU64,
}

impl Spoiled {
    pub(super) fn new(inner: MemoryStore) -> Self {
        Self {
            inner,
            missing: HashSet::new(),
            damaged: HashSet::new(),
            asked: AtomicU64::new(0),
        }
    }

    pub(super) fn without(mut self, digest: &Digest) -> Self {
        self.missing.insert(*digest);
        self
    }

    pub(super) fn damaging(mut self, digest: &Digest) -> Self {
        self.damaged.insert(*digest);
        self
    }

    /// Directories and blobs that were asked for.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn ask(&self, object: Object, digest: &Digest) -> Result<bool, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.damaged.contains(digest) {
            return Err(Error::Damaged {
                store: self.url().to_owned(),
                object,
                digest: *digest,
                damage: Box::new(Damage::WrongBytes { offset: 0 }),
            });
        }
        Ok(!self.missing.contains(digest))
    }
}

#[async_trait]
impl Store for Spoiled {
    fn url(&self) -> &str {
        "spoiled:"
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        match self.ask(Object::Directory, digest)? {
            true => self.inner.directory_now(digest),
            false => Ok(Answer::Absent),
        }
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        match self.ask(Object::Blob, digest)? {
            true => self.inner.read_now(digest, size, offset, buffer),
            false => Ok(Answer::Absent),
        }
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
