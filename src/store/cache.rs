//! A store near, in front of one far away: what was read stays.

mod prefetch;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::prefetch::Prefetch;
pub use self::status::CacheStatus;
use super::url::local_path;
use super::{Answer, BackingFile, Error, Ingest, LocalStore, Store, Usage};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// How a cache is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes that the near store may take on its disk; without it as many as there are.
    pub size: Option<u64>,
    /// Bytes that stay free on that disk whatever `size` says.
    pub keep_free: Option<u64>,
    /// How long the far store's answer for a root's name holds.
    pub roots_max_age: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            size: None,
            keep_free: None,
            roots_max_age: Duration::from_secs(60),
        }
    }
}

/// A local store in front of a far one. Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    near: LocalStore,
    far: Arc<dyn Store>,
    options: CacheOptions,
    url: String,
}

impl Cache {
    /// Opens the cache that is kept in the local store `near` (`local:PATH`, which is made if it is
    /// not there), in front of `far`.
    pub fn open(near: &str, far: Arc<dyn Store>, options: CacheOptions) -> Result<Self, Error> {
        let path = near.strip_prefix("local:").and_then(local_path);
        let path = path.filter(|path| !path.is_empty() && !path.contains('\0'));
        let path = path.ok_or_else(|| Error::Url {
            url: near.to_owned(),
            why: "a cache is kept in a folder: write local:PATH".to_owned(),
        })?;
        Self::new(LocalStore::open(path.as_ref())?, far, options)
    }

    /// Opens the cache that is kept in `near`, in front of `far`.
    pub fn new(
        near: LocalStore,
        far: Arc<dyn Store>,
        options: CacheOptions,
    ) -> Result<Self, Error> {
        let url = far.url().to_owned();
        Ok(Self(Arc::new(Inner {
            near,
            far,
            options,
            url,
        })))
    }

    /// The store near.
    pub fn near(&self) -> &LocalStore {
        &self.0.near
    }

    /// How it fares.
    pub fn status(&self) -> CacheStatus {
        CacheStatus {
            limit: self.0.options.size,
            ..CacheStatus::default()
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({:?} of {:?})", self.0.near, self.0.far)
    }
}

#[async_trait]
impl Store for Cache {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        self.0.far.directory_now(digest)
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.0.far.read_now(digest, size, offset, buffer)
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        self.0.far.root_now(name)
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        self.0.near.backing_file(digest, size)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        self.0.far.directory(digest).await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.0.far.read(digest, size, offset, length).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.0.far.root(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.0.far.roots().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.0.far.path_info(name).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.far.has_blob(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.0.far.blob_size(digest).await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.0.far.group_table(digest, size).await
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.0.near.usage()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.0.far.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.0.far.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.0.far.ingest()
    }
}
