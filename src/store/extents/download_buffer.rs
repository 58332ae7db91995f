//! Whole blobs, held back until they are hashed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::{BlobSource, Extents, of_its_own};
use crate::castore::{BlobHasher, Digest, GroupTable, extent_size};
use crate::store::failure::{CallFailure, FailureKind, found};

/// Blobs up to this many bytes are held in memory until they are bound to their digest.
pub(super) const MAX_BUFFERED: u64 = 8 << 20;

/// A whole blob, bound to its digest.
#[derive(Clone, Debug)]
pub(super) enum WholeBlob {
    InMemory(Bytes),
    Buffered(Arc<DownloadBuffer>),
}

/// A whole blob in a file without a name, which is freed with the process.
#[derive(Debug)]
pub(super) struct DownloadBuffer {
    file: File,
    pub(super) table: GroupTable,
    _room: BufferShare,
}

/// The bytes in the temporary directory, of all blobs that are there or in flight.
#[derive(Debug)]
pub(super) struct DownloadBufferSpace {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// The share of one blob; returned when it is dropped.
#[derive(Debug)]
struct BufferShare {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl DownloadBufferSpace {
    /// At most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            used: Arc::default(),
            limit,
        }
    }

    fn room(&self) -> BufferShare {
        BufferShare {
            used: self.used.clone(),
            bytes: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}

impl BufferShare {
    fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for BufferShare {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<S: BlobSource> Extents<S> {
    /// The whole blob, held until it is bound to its digest.
    pub(super) async fn whole(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Option<WholeBlob>, CallFailure> {
        let runtime = self.source.runtime();
        let fetched = self.buffering.join((digest, size), runtime, || {
            let blobs = self.clone();
            async move {
                if let Some(whole) = blobs.cached_whole(&digest, size) {
                    return Ok(Some(whole));
                }
                if size <= MAX_BUFFERED {
                    let download_buffer = blobs.whole_in_memory(&digest, size).await?;
                    if let Some((bytes, _)) = &download_buffer {
                        blobs.keep_all(&digest, size, bytes);
                    }
                    return Ok(download_buffer.map(|(bytes, _)| WholeBlob::InMemory(bytes)));
                }
                Ok(blobs
                    .download_buffer(&digest, size)
                    .await?
                    .map(WholeBlob::Buffered))
            }
        });
        fetched.await.unwrap_or_else(|| Err(CallFailure::crashed()))
    }

    /// The whole blob, if an earlier fetch has brought it: one that completed between a check and
    /// the start of a fetch.
    fn cached_whole(&self, digest: &Digest, size: u64) -> Option<WholeBlob> {
        if size > MAX_BUFFERED {
            return self
                .download_buffers
                .lock()
                .get(&(*digest, size))
                .map(WholeBlob::Buffered);
        }
        let mut extents = self.extents.lock();
        let indices = 0..size.div_ceil(extent_size(size));
        let mut all = BytesMut::new();
        for index in indices {
            all.extend_from_slice(&extents.get(&((*digest, size), index))?);
        }
        Some(WholeBlob::InMemory(all.freeze()))
    }

    fn keep_all(&self, digest: &Digest, size: u64, bytes: &Bytes) {
        let extent = extent_size(size);
        for (index, start) in (0..size).step_by(extent as usize).enumerate() {
            let part = start as usize..(start + extent).min(size) as usize;
            self.keep(digest, size, index as u64, &of_its_own(&bytes[part]));
        }
    }

    pub(super) async fn whole_in_memory(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<(Bytes, GroupTable)>, CallFailure> {
        let _permit = self.in_flight.begin(size).await;
        // Cap the allocation: the stated size is not trusted.
        let mut all = BytesMut::new();
        let mut only = None;
        let mut came = 0;
        let mut sink = |bytes: Bytes| {
            came += bytes.len() as u64;
            if came > size {
                return Err(self.wrong_size(digest, size, came));
            }
            if only.is_none() && all.is_empty() {
                only = Some(bytes);
                return Ok(());
            }
            if let Some(first) = only.take() {
                all.reserve(size.min(MAX_BUFFERED) as usize);
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&bytes);
            Ok(())
        };
        if !found(self.source.whole(digest, size, &mut sink).await)?.unwrap_or(false) {
            return Ok(None);
        }
        let bytes = only.unwrap_or_else(|| all.freeze());
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes);
        let table = self.bind(digest, size, bytes.len() as u64, hasher)?;
        Ok(Some((bytes, table)))
    }

    pub(super) async fn download_buffer(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<Arc<DownloadBuffer>>, CallFailure> {
        let failed =
            |error: std::io::Error| CallFailure::BufferFile(std::env::temp_dir(), error.kind());
        if size > self.space.limit {
            return Err(self.no_room(size));
        }
        let mut file = tempfile::tempfile().map_err(failed)?;
        let mut room = self.space.room();
        let mut hasher = BlobHasher::new();
        let mut came = 0;
        let mut sink = |bytes: Bytes| {
            came += bytes.len() as u64;
            if came > size {
                return Err(self.wrong_size(digest, size, came));
            }
            room.grow(bytes.len() as u64);
            // Blobs that no reader uses any more make room. A read in progress keeps its own.
            while self.space.is_over() {
                if !self.download_buffers.lock().pop_oldest() {
                    return Err(self.no_room(size));
                }
            }
            hasher.update(&bytes);
            file.write_all(&bytes).map_err(failed)
        };
        if !found(self.source.whole(digest, size, &mut sink).await)?.unwrap_or(false) {
            return Ok(None);
        }
        let table = self.bind(digest, size, came, hasher)?;
        let download_buffer = Arc::new(DownloadBuffer {
            file,
            table,
            _room: room,
        });
        let cost = usize::try_from(size).unwrap_or(usize::MAX);
        self.download_buffers
            .lock()
            .insert((*digest, size), download_buffer.clone(), cost);
        Ok(Some(download_buffer))
    }

    fn no_room(&self, size: u64) -> CallFailure {
        let limit = self.space.limit >> 20;
        let why = format!(
            "a blob with a stated size of {size} bytes can only be verified as a whole, and there is \
             no room for it in the {limit} MiB of the temporary directory that may be used (spool=MIB)"
        );
        CallFailure::Failed(FailureKind::Exhausted, why)
    }

    pub(super) fn read_download_buffer(
        &self,
        download_buffer: &DownloadBuffer,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Bytes, CallFailure> {
        let mut bytes = vec![0; length as usize];
        download_buffer
            .file
            .read_exact_at(&mut bytes, start)
            .map_err(|error| CallFailure::BufferFile(std::env::temp_dir(), error.kind()))?;
        self.check(&download_buffer.table, digest, size, start, &bytes)?;
        Ok(bytes.into())
    }

    /// Checks the hashed bytes against the stated digest and size.
    fn bind(
        &self,
        digest: &Digest,
        expected: u64,
        actual: u64,
        hasher: BlobHasher,
    ) -> Result<GroupTable, CallFailure> {
        if actual != expected {
            return Err(self.wrong_size(digest, expected, actual));
        }
        let (hashed, table) = hasher.finish();
        if hashed != *digest {
            return Err(self.wrong_bytes(digest, 0));
        }
        Ok(table)
    }
}
