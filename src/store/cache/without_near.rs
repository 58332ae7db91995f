//! A cache whose local store cannot be opened: everything comes from the upstream, nothing is kept.
//!
//! The local store may have roots of its own, which are part of what the cache shows. So a name
//! that the upstream does not have is an error, not absent. Lists have the upstream's roots.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;
use crate::store::{Answer, BackingFile, Error, Health, Ingest, LocalStore, Store, Usage};

/// An upstream, and why there is no local store.
#[derive(Debug)]
pub(crate) struct WithoutNear {
    far: Arc<dyn Store>,
    url: String,
    why: Error,
}

impl WithoutNear {
    /// `url` names it in logs and errors.
    pub(crate) fn new(url: String, far: Arc<dyn Store>, why: Error) -> Self {
        Self { far, url, why }
    }

    fn unless_near<T>(&self, found: Option<T>) -> Result<Option<T>, Error> {
        match found {
            Some(found) => Ok(Some(found)),
            None => Err(self.why.again()),
        }
    }
}

#[async_trait]
impl Store for WithoutNear {
    fn url(&self) -> &str {
        &self.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.far.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.far.read_now(digest, size, offset, buffer)
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        self.far.will_need(blobs);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        match self.far.root_now(name)? {
            Answer::Absent => Err(self.why.again()),
            answer => Ok(answer),
        }
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.far.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.far.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.far.read(digest, size, offset, length).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.unless_near(self.far.root(name).await?)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.far.roots().await
    }

    async fn complete_roots(&self) -> Result<Vec<Root>, Error> {
        self.far.complete_roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.far.path_info(name).await
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        self.far.incomplete_root(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.far.has_tree(digest).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.far.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.far.blob_size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        self.far.chunks(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.far.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.far.usage()
    }

    fn health(&self) -> Health {
        self.far.health()
    }

    fn embedded(&self) -> Vec<LocalStore> {
        self.far.embedded()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.far.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.far.wait_for_roots(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.far.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.far.ingest()
    }
}
