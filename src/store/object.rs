//! A castore in an object store: S3 and its like, Google's, Azure's, WebDAV, or a folder.
//!
//! The layout is the field's, byte by byte (`docs/protocol.md` tells it), so that a bucket can be
//! shared with its programs; root nodes, which that layout has none of, lie beside it. What differs
//! is what a reader believes: nothing. Chunks are checked against their digests, and blobs, whole or
//! by part, against theirs ([`super::segments`]).
//!
//! Credentials come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`), never from the URL.

mod blobs;
mod bucket;
mod directories;
mod ingest;
mod roots;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use self::blobs::ChunkedBlobs;
use self::bucket::Bucket;
use self::directories::ClosureDirectories;
use self::ingest::ObjectIngest;
use self::roots::BucketRoots;
use super::failure::Failure;
use super::segments::{self, Segments};
use super::{Answer, Error, Ingest, Store, Usage, network};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// Bytes kept in memory of blobs, of Directories, and in the temporary folder of large blobs whose
/// parts cannot be checked alone.
const BLOB_CACHE: usize = 128 << 20;
const DIRECTORY_CACHE: usize = 64 << 20;
const SPOOL: usize = 4 << 30;
/// How often a waiter looks whether the roots have changed.
const LOOK: Duration = Duration::from_secs(1);

/// A store in an object store. Clones share everything.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    bucket: Arc<Bucket>,
    blobs: Arc<ChunkedBlobs>,
    segments: Arc<Segments<ChunkedBlobs>>,
    directories: Arc<ClosureDirectories>,
    roots: Arc<BucketRoots>,
}

impl ObjectStore {
    /// Opens the store at `url`: `objectstore+s3://BUCKET/PATH`, likewise with `gs`, `az`, `http`,
    /// `https`, and `objectstore+file:///PATH`. The query holds options of the crate
    /// `object_store`, such as `region` or `endpoint`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Url {
            url: shown(url),
            why,
        };
        let runtime = network::handle()
            .map_err(|error| wrong(format!("cannot start threads: {error}")))?
            .clone();
        let bucket = Arc::new(Bucket::open(url, runtime).map_err(wrong)?);
        let blobs = ChunkedBlobs::new(bucket.clone());
        Ok(Self {
            segments: Segments::new(blobs.clone(), BLOB_CACHE, SPOOL),
            blobs,
            directories: ClosureDirectories::new(bucket.clone(), DIRECTORY_CACHE),
            roots: BucketRoots::new(bucket.clone()),
            bucket,
        })
    }

    /// Runs `work` on the network's runtime, whose clock the deadlines need.
    async fn spawn<T: Send + 'static>(
        &self,
        request: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Error> {
        let task = self.bucket.runtime.spawn(work);
        let done = task.await.unwrap_or_else(|_| Err(Failure::crashed()));
        done.map_err(|failure| failure.of(&self.bucket.url, request()))
    }

    fn check_empty(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        segments::check_empty(digest, size).map_err(|failure| failure.of(self.url(), "reading"))
    }
}

/// A URL that may be wrong, less what may be secret in it.
fn shown(url: &str) -> String {
    let (url, _) = url.split_once('?').unwrap_or((url, ""));
    match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{host}"),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    }
}

#[async_trait]
impl Store for ObjectStore {
    fn url(&self) -> &str {
        &self.bucket.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        if *digest == Digest::empty_blob() {
            let empty = Directory::decode(Vec::new()).expect("nothing is the empty Directory");
            return Ok(Answer::Found(empty));
        }
        let here = self.directories.here(digest);
        Ok(here.map_or(Answer::Wait, Answer::Found))
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.check_empty(digest, size)?;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(Answer::Found(0));
        }
        let buffer = &mut buffer[..length];
        Ok(match self.segments.read_now(digest, size, offset, buffer) {
            true => Answer::Found(length),
            false => Answer::Wait,
        })
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.roots.known(name).map_or(Answer::Wait, Answer::from))
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if let Answer::Found(directory) = self.directory_now(digest)? {
            return Ok(Some(directory));
        }
        let (directories, wanted) = (self.directories.clone(), *digest);
        let request = || format!("reading directory {digest}");
        self.spawn(request, async move { directories.get(&wanted).await })
            .await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.check_empty(digest, size)?;
        let length = size.saturating_sub(offset).min(length as u64);
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        let (segments, wanted) = (self.segments.clone(), *digest);
        let read = async move { segments.read(&wanted, size, offset, length).await };
        self.spawn(|| format!("reading blob {digest}"), read).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let (roots, wanted) = (self.roots.clone(), name.to_vec());
        let request = || format!("looking up root \"{}\"", name.escape_ascii());
        self.spawn(request, async move { roots.get(&wanted).await })
            .await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let roots = self.roots.clone();
        let request = || "listing the roots".to_owned();
        self.spawn(request, async move { roots.list().await }).await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let (roots, wanted) = (self.roots.clone(), name.to_vec());
        let request = || format!("asking about \"{}\"", name.escape_ascii());
        let asked = self.spawn(request, async move { roots.ask(&wanted).await });
        Ok(asked.await?.and_then(|(_, path_info)| path_info))
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(true);
        }
        let (blobs, wanted) = (self.blobs.clone(), *digest);
        let asked = async move { blobs.has(&wanted).await };
        self.spawn(|| format!("asking for blob {digest}"), asked)
            .await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(Some(0));
        }
        let (blobs, wanted) = (self.blobs.clone(), *digest);
        let asked = async move { blobs.size(&wanted).await };
        self.spawn(|| format!("asking for blob {digest}"), asked)
            .await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let (segments, wanted) = (self.segments.clone(), *digest);
        let asked = async move { segments.group_table(&wanted, size).await };
        self.spawn(|| format!("reading blob {digest}"), asked).await
    }

    /// To count the objects of a bucket takes as many requests as it has thousands of them: nobody
    /// does.
    fn usage(&self) -> Result<Option<Usage>, Error> {
        Ok(None)
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(self.roots.version())
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let version = self.roots.version();
            let left = deadline.saturating_duration_since(Instant::now());
            if version != seen || left.is_zero() {
                return Ok(version);
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(ObjectIngest::new(self)))
    }
}
