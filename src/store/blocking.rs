//! A store for plain threads: every call blocks until there is an answer.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Handle;

use super::{Answer, Error, Ingest, Store, StoreUsage};
use crate::castore::{Digest, Directory, Root};
use crate::nix::PathInfo;

/// Blobs that are read at once in a bulk read: enough to fill the time of a round trip.
const AT_ONCE: usize = 64;

/// A [`Store`] for threads that may block: import, export, verification, the command line.
///
/// Answers in place are returned directly, and only calls that have to wait go through the async
/// runtime. Clones are cheap and use the same store. Methods panic when called from inside an async
/// task, as [`Handle::block_on`] does: use `spawn_blocking` there.
#[derive(Clone)]
pub struct Blocking {
    store: Arc<dyn Store>,
    runtime: Handle,
    before_waiting: Option<Arc<dyn Fn() + Send + Sync>>,
    /// A Directory that is not in the store, with its digest.
    listing: Option<(Digest, Directory)>,
}

impl Blocking {
    /// Uses `store`, and waits on `runtime` where that is needed.
    pub fn new(store: Arc<dyn Store>, runtime: Handle) -> Self {
        Self {
            store,
            runtime,
            before_waiting: None,
            listing: None,
        }
    }

    /// Finds `directory` too, which need not be in the store: one that lists roots, for a walk over them.
    pub fn with_directory(self, directory: Directory) -> Self {
        Self {
            listing: Some((directory.digest(), directory)),
            ..self
        }
    }

    /// Calls `before_waiting` before each wait for a Directory or the bytes of a blob.
    pub fn before_waiting(self, before_waiting: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            before_waiting: Some(before_waiting),
            ..self
        }
    }

    fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        if let Some(before_waiting) = &self.before_waiting {
            before_waiting();
        }
        self.runtime.block_on(answer)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The runtime that is waited on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// See [`Store::url`].
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// See [`Store::directory`].
    pub fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if let Some((listing, directory)) = &self.listing
            && listing == digest
        {
            return Ok(Some(directory.clone()));
        }
        match self.store.directory_now(digest)? {
            Answer::Found(directory) => Ok(Some(directory)),
            Answer::Absent => Ok(None),
            Answer::Wait => self.wait(self.store.directory(digest)),
        }
    }

    /// See [`Store::read_now`]: fills `buffer` unless the blob ends first.
    pub fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Error> {
        match self.store.read_now(digest, size, offset, buffer)? {
            Answer::Found(length) => return Ok(Some(length)),
            Answer::Absent => return Ok(None),
            Answer::Wait => {}
        }
        let read = self.store.read(digest, size, offset, buffer.len());
        let bytes = self.wait(read)?;
        Ok(bytes.map(|bytes| {
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            length
        }))
    }

    /// Reads whole blobs, by digest and size, several at once.
    pub fn read_whole(&self, blobs: &[(Digest, u64)]) -> Vec<Result<Option<Bytes>, Error>> {
        let reads = blobs.iter().map(|(digest, size)| {
            let length = usize::try_from(*size).unwrap_or(usize::MAX);
            self.store.read(digest, *size, 0, length)
        });
        let reads = futures_util::stream::iter(reads).buffered(AT_ONCE);
        self.wait(reads.collect())
    }

    /// See [`Store::root`].
    pub fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        match self.store.root_now(name)? {
            Answer::Found(root) => Ok(Some(root)),
            Answer::Absent => Ok(None),
            Answer::Wait => self.runtime.block_on(self.store.root(name)),
        }
    }

    /// See [`Store::roots`].
    pub fn roots(&self) -> Result<Vec<Root>, Error> {
        self.runtime.block_on(self.store.roots())
    }

    /// See [`Store::path_info`].
    pub fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.runtime.block_on(self.store.path_info(name))
    }

    /// See [`Store::has_tree`].
    pub fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.runtime.block_on(self.store.has_tree(digest))
    }

    /// See [`Store::has_blob`].
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.runtime.block_on(self.store.has_blob(digest))
    }

    /// See [`Store::blob_size`].
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.runtime.block_on(self.store.blob_size(digest))
    }

    /// See [`Store::usage`].
    pub fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.store.usage()
    }

    /// See [`Store::ingest`].
    pub fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.store.ingest()
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocking").field(&self.store).finish()
    }
}
