//! Prefetching everything below a root.
//!
//! Directories first, a level at a time, then blobs; several at once, and never more than the local
//! store can write: nothing of it is dropped because the disk is slow. Cached objects are skipped,
//! so an interrupted prefetch continues where it stopped.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::task::JoinHandle;

use super::{Cache, CacheInner};
use crate::castore::{Digest, Name, NodeRef};
use crate::quantity::count;
use crate::store::{Error, ReadAhead, Store};

/// Directories and blobs that are fetched at once.
const AT_ONCE: usize = 32;
/// Parts of one blob that are fetched at once.
const PARTS_AT_ONCE: usize = 8;
/// How often it is checked whether everything was stored: the disk may have refused some.
const PASSES: usize = 3;
/// The pause while the local store has enough to write.
const PAUSE: Duration = Duration::from_millis(5);

/// The progress of a prefetch. Other threads may read it, and stop the prefetch.
#[derive(Debug, Default)]
pub struct Prefetch {
    /// Directories below the roots that were found so far.
    pub directories: AtomicU64,
    /// Blobs that are in the local store now, or queued for its disk.
    pub blobs: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Blobs that were found below the roots so far.
    pub total_blobs: AtomicU64,
    /// Their bytes.
    pub total_bytes: AtomicU64,
    /// Set by another thread to end the prefetch early; what was fetched stays.
    pub stop: AtomicBool,
}

/// Ends a task when its waiter is dropped.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cache {
    /// Fetches everything below the roots `names` into the local store.
    ///
    /// Fails if one of them is not a root, if the upstream fails, and if the local store does not
    /// store everything, for want of space for example. A later prefetch continues where this one
    /// stopped.
    pub async fn prefetch(&self, names: &[Name], progress: &Arc<Prefetch>) -> Result<(), Error> {
        let mut nodes = Vec::new();
        for name in names {
            let root = self.root(name).await?;
            let root = root.ok_or_else(|| Error::Refused {
                store: self.url().to_owned(),
                what: format!("to fetch \"{name}\""),
                why: "there is no root of that name".to_owned(),
            })?;
            // It stays with the root.
            self.path_info(name).await?;
            nodes.push(root.node);
        }
        let (inner, progress) = (self.0.inner.clone(), progress.clone());
        let work = async move {
            let mut top = Vec::new();
            let mut blobs = HashSet::new();
            for node in &nodes {
                match node.borrow() {
                    NodeRef::Directory { digest, .. } => top.push(digest),
                    NodeRef::File { digest, size, .. } => drop(blobs.insert((digest, size))),
                    NodeRef::Symlink { .. } => {}
                }
            }
            inner.prefetch(top, blobs, &progress).await
        };
        let mut task = AbortOnDrop(self.0.inner.runtime.spawn(work.boxed()));
        (&mut task.0).await.unwrap_or_else(|_| {
            Err(Error::Remote {
                store: self.url().to_owned(),
                request: "the prefetch".to_owned(),
                why: "it was interrupted".to_owned(),
            })
        })
    }
}

impl CacheInner {
    async fn prefetch(
        self: &Arc<Self>,
        top: Vec<Digest>,
        mut blobs: HashSet<(Digest, u64)>,
        progress: &Prefetch,
    ) -> Result<(), Error> {
        let directories = self.all_directories(top, &mut blobs, progress).await?;
        let bytes = blobs.iter().map(|(_, size)| size).sum();
        progress
            .total_blobs
            .store(blobs.len() as u64, Ordering::Relaxed);
        progress.total_bytes.store(bytes, Ordering::Relaxed);
        let mut wanted: Vec<_> = blobs.into_iter().collect();
        for _ in 0..PASSES {
            let mut ahead = ReadAhead::new(wanted.iter().copied());
            stream::iter(wanted.iter().copied())
                .map(|(digest, size)| {
                    // Small ones come together.
                    ahead.pass(|blobs| self.announce(blobs));
                    self.fetch_blob(digest, size, progress)
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            if progress.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let inner = self.clone();
            let flushed = self.runtime.spawn_blocking(move || inner.writer.flush());
            // If the writer has crashed, the next check finds out.
            let _ = flushed.await;
            let mut missing = Vec::new();
            for (digest, size) in wanted {
                if !self.local_store.has_blob(&digest).await? {
                    missing.push((digest, size));
                }
            }
            for digest in &directories {
                if self.local_store.directory(digest).await?.is_none() {
                    // It may still be in memory only: from there it is put again.
                    self.recent.lock().directories.remove(digest);
                    self.directory(digest).await?;
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            for (digest, size) in &missing {
                self.forget_recent(digest, *size);
                progress.blobs.fetch_sub(1, Ordering::Relaxed);
                progress.bytes.fetch_sub(*size, Ordering::Relaxed);
            }
            wanted = missing;
        }
        let why = self.writer.why_backing_off();
        Err(Error::Refused {
            store: self.url.clone(),
            what: "to keep everything that is to be fetched".to_owned(),
            why: why.unwrap_or_else(|| {
                format!(
                    "{} did not stay",
                    count(wanted.len() as u64, "blob", "blobs")
                )
            }),
        })
    }

    /// Fetches every Directory from `level` down, and notes the blobs that they name.
    async fn all_directories(
        self: &Arc<Self>,
        mut level: Vec<Digest>,
        blobs: &mut HashSet<(Digest, u64)>,
        progress: &Prefetch,
    ) -> Result<HashSet<Digest>, Error> {
        let mut seen: HashSet<Digest> = level.iter().copied().collect();
        while !level.is_empty() && !progress.stop.load(Ordering::Relaxed) {
            let fetched: Vec<_> = stream::iter(std::mem::take(&mut level))
                .map(|digest| async move {
                    self.until_room().await;
                    let found = self.directory(&digest).await?;
                    found.ok_or_else(|| self.lacks(format!("directory {digest}")))
                })
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            for directory in fetched {
                progress.directories.fetch_add(1, Ordering::Relaxed);
                for entry in directory.iter() {
                    match entry.node {
                        NodeRef::Symlink { .. } => {}
                        NodeRef::File { digest, size, .. } => drop(blobs.insert((digest, size))),
                        NodeRef::Directory { digest, .. } => {
                            if seen.insert(digest) {
                                level.push(digest);
                            }
                        }
                    }
                }
            }
        }
        Ok(seen)
    }

    async fn fetch_blob(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        progress: &Prefetch,
    ) -> Result<(), Error> {
        if progress.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.local_store.has_blob(&digest).await? && size > 0 {
            let extent = super::cached_extent_size(size);
            let parts = (0..size.div_ceil(extent)).map(|index| async move {
                if progress.stop.load(Ordering::Relaxed)
                    || self.local_store.parts().has(&digest, index)
                {
                    return Ok(());
                }
                self.until_room().await;
                let found = self.extent(&digest, size, index).await?;
                found
                    .map(drop)
                    .ok_or_else(|| self.lacks(format!("blob {digest}")))
            });
            let parts = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE);
            parts.try_collect::<Vec<()>>().await?;
        }
        progress.blobs.fetch_add(1, Ordering::Relaxed);
        progress.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    async fn until_room(&self) {
        while !self.writer.has_room() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn lacks(&self, what: String) -> Error {
        Error::Refused {
            store: self.upstream.url().to_owned(),
            what: "to be whole".to_owned(),
            why: format!("it lacks {what}, which a root leads to"),
        }
    }
}
