//! A castore in an object store: S3 and compatible services, Google's, Azure's, WebDAV, or a local
//! directory.
//!
//! The layout is the one of other implementations, byte by byte (`docs/protocol.md`), so that a
//! bucket can be shared with them; roots, which that layout does not have, are beside it. Nothing
//! read from a bucket is trusted: chunks are checked against their digests, and blobs, whole or by
//! part, against theirs ([`super::extents`]).
//!
//! Credentials come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`), never from the URL.

mod address;
mod blobs;
mod bucket;
mod bucket_time;
mod directories;
mod gc;
mod http;
mod ingest;
mod relied;
mod roots;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;

use self::blobs::BucketBlobs;
use self::bucket::Bucket;
use self::directories::ClosureDirectories;
pub use self::gc::{BucketGcOptions, BucketGcReport, BucketObjects};
use self::ingest::ObjectIngest;
use self::relied::ReliedObjects;
use self::roots::BucketRoots;
use super::extents::Extents;
use super::failure::CallFailure;
use super::upstream::{UpstreamCalls, UpstreamStore};
use super::{EndpointHealth, Error, Ingest, network};
use crate::castore::{Digest, Directory, Root};
use crate::nix::PathInfo;

/// Bytes of blobs and of Directories cached in memory.
const BLOB_CACHE: usize = 32 << 20;
const DIRECTORY_CACHE: usize = 32 << 20;
/// How often a waiting caller checks whether the roots have changed.
const LOOK: Duration = Duration::from_secs(1);

/// A store in an object store. Clones share everything.
pub type ObjectStore = UpstreamStore<ObjectStoreCalls>;

/// A bucket, and cached answers.
#[derive(Debug)]
pub struct ObjectStoreCalls {
    bucket: Arc<Bucket>,
    blobs: Arc<BucketBlobs>,
    extents: Arc<Extents<BucketBlobs>>,
    directories: Arc<ClosureDirectories>,
    roots: Arc<BucketRoots>,
    relied: Arc<ReliedObjects>,
}

impl ObjectStore {
    /// Opens the store at `url`: `objectstore+s3://BUCKET/PATH`, likewise with `gs`, `az`, `http`,
    /// `https`, and `objectstore+file:///PATH`. The query holds what `docs/protocol.md` lists, and
    /// options of the crate `object_store`, such as `region` or `endpoint`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let runtime = network::handle().map_err(|error| Error::NotOpened {
            url: url.to_owned(),
            why: format!("cannot start threads: {error}"),
        })?;
        let bucket = Arc::new(Bucket::open(url, runtime.clone())?);
        let blobs = BucketBlobs::new(bucket.clone());
        Ok(Self::new(ObjectStoreCalls {
            extents: Extents::new(
                blobs.clone(),
                bucket.verify,
                BLOB_CACHE,
                bucket.download_buffer,
            ),
            blobs,
            directories: ClosureDirectories::new(bucket.clone(), DIRECTORY_CACHE),
            roots: BucketRoots::new(bucket.clone()),
            relied: ReliedObjects::new(bucket.clone()),
            bucket,
        }))
    }

    /// Returns what is wrong with `url`, without reading a file or connecting.
    pub(crate) fn check_url(url: &str) -> Result<(), String> {
        Bucket::check_url(url)
    }

    /// Requests made to the object store so far.
    pub fn calls(&self) -> u64 {
        self.upstream_calls().bucket.calls.attempts()
    }
}

#[async_trait]
impl UpstreamCalls for ObjectStoreCalls {
    type Blobs = BucketBlobs;

    fn url(&self) -> &str {
        &self.bucket.url
    }

    fn endpoint_health(&self) -> EndpointHealth {
        self.bucket.calls.health()
    }

    fn runtime(&self) -> &Handle {
        &self.bucket.runtime
    }

    fn extents(&self) -> &Arc<Extents<BucketBlobs>> {
        &self.extents
    }

    fn cached_directory(&self, digest: &Digest) -> Option<Directory> {
        self.directories.cached(digest)
    }

    fn known_root(&self, name: &[u8]) -> Option<Option<Root>> {
        self.roots.known(name)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, CallFailure> {
        self.directories.get(digest).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, CallFailure> {
        self.roots.get(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, CallFailure> {
        self.roots.list().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, CallFailure> {
        Ok(self
            .roots
            .ask(name)
            .await?
            .and_then(|(_, path_info)| path_info))
    }

    /// Writers put what is below a Directory before it, and nothing else is known.
    async fn has_tree(&self, digest: &Digest) -> Result<bool, CallFailure> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, CallFailure> {
        self.blobs.has(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, CallFailure> {
        self.blobs.size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, CallFailure> {
        self.blobs.chunks(digest).await
    }

    fn roots_version(&self) -> u64 {
        self.roots.version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout;
        loop {
            let version = self.roots.version();
            let remaining = deadline.saturating_duration_since(Instant::now());
            if version != seen || remaining.is_zero() {
                return version;
            }
            std::thread::sleep(remaining.min(LOOK));
        }
    }

    /// Nothing does: a listing reads an object for each root.
    fn keep_listings_fresh(&self, _: Duration) {}

    fn ingest(self: Arc<Self>) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(ObjectIngest::new(self)))
    }
}
