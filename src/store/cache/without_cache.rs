//! A cache whose local store cannot be opened: everything comes from the upstream, nothing is kept.
//!
//! The cache also shows the roots of its local store, which cannot be read now. So a name that the upstream
//! does not have is an error, and not absent: the local store may have it. Listings have the upstream's
//! roots only.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;
use crate::store::{Answer, BackingFile, Error, Health, Ingest, LocalStore, Store, StoreUsage};

/// An upstream, and why there is no local store.
#[derive(Debug)]
pub(crate) struct WithoutCache {
    upstream: Arc<dyn Store>,
    url: String,
    why: Error,
}

impl WithoutCache {
    /// `url` names the cache in logs and errors; `why` is the error of its local store.
    pub(crate) fn new(url: String, upstream: Arc<dyn Store>, why: Error) -> Self {
        Self { upstream, url, why }
    }

    /// What the upstream found; an error if that is nothing, because the local store may have it.
    fn or_unknown<T>(&self, found: Option<T>) -> Result<Option<T>, Error> {
        match found {
            Some(found) => Ok(Some(found)),
            None => Err(self.why.clone()),
        }
    }
}

#[async_trait]
impl Store for WithoutCache {
    fn url(&self) -> &str {
        &self.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.upstream.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.upstream.read_now(digest, size, offset, buffer)
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.upstream.will_need(blobs);
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        self.upstream.forget(digest, size, offset, length);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.upstream.root_now(name)? {
            Answer::Absent => Err(self.why.clone()),
            answer => Ok(answer),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.upstream.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.upstream.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.upstream.read(digest, size, offset, length).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.or_unknown(self.upstream.root(name).await?)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.upstream.roots().await
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        self.upstream.complete_roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.upstream.path_info(name).await
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.upstream.incomplete_root(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.upstream.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.upstream.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.upstream.blob_size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.upstream.chunks(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.upstream.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.upstream.usage()
    }

    fn health(&self) -> Health {
        self.upstream.health()
    }

    fn embedded(&self) -> Vec<LocalStore> {
        self.upstream.embedded()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.upstream.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.upstream.wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.upstream.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.upstream.ingest()
    }
}
