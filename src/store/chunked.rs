//! Blobs as lists of chunks: the common format in object stores and in other implementations'
//! servers.
//!
//! A chunk is named by its digest, so it can be checked alone; it is fetched once for all readers,
//! and cached for a while, since neighbouring extents share chunks. A list, however, is not bound
//! to the blob's digest: [`extents`](super::extents) has to verify the blob.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::bounded::Bounded;
use super::extents::{BlobSink, ExtentAnswer};
use super::failure::{CallFailure, FailureKind};
use super::in_flight::InFlight;
use super::single_flight::SingleFlight;
use super::{Damage, Object};
use crate::castore::Digest;
use crate::proto::castore::v1::StatBlobResponse;

/// The largest chunk, uncompressed, in bytes. Other writers make them of 512 KiB at most.
pub(super) const MAX_CHUNK: u64 = 64 << 20;
/// Chunks of one blob that are fetched at once: with chunks of 256 KiB on average, 4 MiB are in
/// flight, what 40 MB/s move in 100 ms.
const AT_ONCE: usize = 16;
/// Bytes of chunks of one blob that wait at once for those before them.
const MOST_WAITING: u64 = 64 << 20;
/// Bytes of chunks and of chunk lists that are cached.
const KEPT_CHUNKS: usize = 32 << 20;
const KEPT_LISTS: usize = 16 << 20;

/// The source of chunks. Nothing that it returns is trusted.
#[async_trait]
pub(super) trait ChunkSource: Debug + Send + Sync + 'static {
    /// On which fetches run.
    fn runtime(&self) -> &Handle;

    /// Records that the bytes for `digest` do not match it.
    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure;

    /// What there is to know of the blob `digest`.
    async fn stat(&self, digest: &Digest) -> Result<Option<StatBlobResponse>, CallFailure>;

    /// The chunk `digest` of at most `limit` bytes.
    async fn chunk(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, CallFailure>;
}

/// The chunk list of a blob.
#[derive(Debug)]
pub(super) struct ChunkList {
    /// Digests and sizes; empty: the blob is one chunk, itself.
    pub(super) chunks: Vec<(Digest, u64)>,
    /// The field with the table that verifies parts.
    pub(super) bao: Bytes,
}

impl ChunkList {
    /// Bytes of the blob, by the list; nothing if the blob is one chunk.
    pub(super) fn size(&self) -> Option<u64> {
        let sizes = self.chunks.iter().map(|(_, size)| *size);
        sizes.reduce(u64::saturating_add)
    }

    /// Chunks that are fetched at once: fewer if they are large.
    fn at_once(&self) -> usize {
        let largest = self.chunks.iter().map(|(_, size)| *size).max();
        let most = MOST_WAITING / largest.unwrap_or_default().max(1);
        (most.max(1) as usize).min(AT_ONCE)
    }
}

/// Lists and chunks, each with one fetch for all readers.
#[derive(Debug)]
pub(super) struct ChunkFetches<C> {
    source: Arc<C>,
    chunks: Arc<Mutex<Bounded<Digest, Bytes>>>,
    lists: Arc<Mutex<Bounded<Digest, Arc<ChunkList>>>>,
    listing: SingleFlight<Digest, Result<Option<Arc<ChunkList>>, CallFailure>>,
    /// The key has the size limit too: the limit from one node must not spoil another's read.
    fetching: SingleFlight<(Digest, u64), Result<Option<Bytes>, CallFailure>>,
    in_flight: Arc<InFlight>,
}

impl<C: ChunkSource> ChunkFetches<C> {
    pub(super) fn new(source: Arc<C>) -> Self {
        Self {
            source,
            chunks: Arc::new(Mutex::new(Bounded::new(KEPT_CHUNKS))),
            lists: Arc::new(Mutex::new(Bounded::new(KEPT_LISTS))),
            listing: SingleFlight::default(),
            fetching: SingleFlight::default(),
            in_flight: Arc::new(InFlight::new()),
        }
    }

    /// The list of the blob `digest`, if there is such a blob.
    pub(super) async fn list(
        &self,
        digest: &Digest,
    ) -> Result<Option<Arc<ChunkList>>, CallFailure> {
        if let Some(list) = self.lists.lock().get(digest) {
            return Ok(Some(list));
        }
        let (source, wanted) = (self.source.clone(), *digest);
        let lists = self.lists.clone();
        let received = self
            .listing
            .join(*digest, self.source.runtime(), || async move {
                // It may have arrived between the check and the start of the fetch.
                if let Some(list) = lists.lock().get(&wanted) {
                    return Ok(Some(list));
                }
                let Some(stat) = source.stat(&wanted).await? else {
                    return Ok(None);
                };
                let list = read_list(stat).map_err(|why| {
                    CallFailure::Failed(
                        FailureKind::Corrupt,
                        format!("the chunks of blob {wanted}: {why}"),
                    )
                })?;
                let bytes = list.chunks.len() * size_of::<(Digest, u64)>() + list.bao.len() + 128;
                let list = Arc::new(list);
                lists.lock().insert(wanted, list.clone(), bytes);
                Ok(Some(list))
            });
        received
            .await
            .unwrap_or_else(|| Err(CallFailure::crashed()))
    }

    /// The chunk `digest` of at most `limit` bytes, if there is one, checked against its digest.
    pub(super) async fn find(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Bytes>, CallFailure> {
        if let Some(chunk) = self.chunks.lock().get(digest) {
            return Ok(Some(chunk));
        }
        let (source, wanted) = (self.source.clone(), *digest);
        let (in_flight, chunks) = (self.in_flight.clone(), self.chunks.clone());
        let received = self
            .fetching
            .join((*digest, limit), self.source.runtime(), || async move {
                let _permit = in_flight.begin(limit).await;
                if let Some(chunk) = chunks.lock().get(&wanted) {
                    return Ok(Some(chunk));
                }
                let Some(bytes) = source.chunk(&wanted, limit).await? else {
                    return Ok(None);
                };
                if Digest::of(&bytes) != wanted {
                    let damage = Damage::WrongBytes { offset: 0 };
                    return Err(source.sent_corrupt(Object::Blob, &wanted, damage));
                }
                let cost = bytes.len() + 128;
                chunks.lock().insert(wanted, bytes.clone(), cost);
                Ok(Some(bytes))
            });
        received
            .await
            .unwrap_or_else(|| Err(CallFailure::crashed()))
    }

    /// The chunk `digest` of at most `limit` bytes, which must exist.
    pub(super) async fn chunk(&self, digest: &Digest, limit: u64) -> Result<Bytes, CallFailure> {
        let chunk = self.find(digest, limit).await?;
        chunk.ok_or_else(|| {
            let why = format!("chunk {digest} is missing, but is referred to");
            CallFailure::Failed(FailureKind::Corrupt, why)
        })
    }

    /// The chunk `digest` at `offset` of `blob`, which has to have `size` bytes.
    async fn chunk_of(
        &self,
        blob: Digest,
        offset: u64,
        (digest, size): (Digest, u64),
    ) -> Result<Bytes, CallFailure> {
        let chunk = match self.chunk(&digest, size).await {
            // Readers know the blob, not its chunks.
            Err(CallFailure::Damaged(object, ..)) => {
                let damage = Damage::WrongBytes { offset };
                return Err(CallFailure::Damaged(object, blob, damage));
            }
            chunk => chunk?,
        };
        if chunk.len() as u64 != size {
            let damage = Damage::WrongSize {
                expected: size,
                actual: chunk.len() as u64,
            };
            return Err(self.source.sent_corrupt(Object::Blob, &blob, damage));
        }
        Ok(chunk)
    }

    /// All chunks of a list, from front to back, several in flight at once.
    pub(super) async fn whole(
        &self,
        digest: &Digest,
        list: &ChunkList,
        sink: BlobSink<'_>,
    ) -> Result<(), CallFailure> {
        let mut next = 0u64;
        let chunks = list.chunks.clone().into_iter().map(|chunk| {
            let at = next;
            next = next.saturating_add(chunk.1);
            self.chunk_of(*digest, at, chunk)
        });
        let mut chunks = stream::iter(chunks).buffered(list.at_once());
        while let Some(chunk) = chunks.next().await {
            sink(chunk?)?;
        }
        Ok(())
    }

    /// `length` bytes at `start` of a blob of `size` bytes, from only the chunks that hold them.
    pub(super) async fn part(
        &self,
        digest: &Digest,
        list: &ChunkList,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<ExtentAnswer, CallFailure> {
        if list.size() != Some(size) {
            let damage = Damage::WrongSize {
                expected: size,
                actual: list.size().unwrap_or_default(),
            };
            return Err(self.source.sent_corrupt(Object::Blob, digest, damage));
        }
        let end = start + length;
        let mut at = 0u64;
        let mut wanted = Vec::new();
        let mut skip = 0;
        for &(chunk, size) in &list.chunks {
            let next = at.saturating_add(size);
            if next > start && at < end {
                if wanted.is_empty() {
                    skip = start - at;
                }
                wanted.push((at, (chunk, size)));
            }
            at = next;
        }
        let chunks = wanted
            .into_iter()
            .map(|(at, chunk)| self.chunk_of(*digest, at, chunk));
        let chunks: Vec<Bytes> = stream::iter(chunks)
            .buffered(list.at_once())
            .try_collect()
            .await?;
        let mut bytes = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
        for chunk in &chunks {
            bytes.extend_from_slice(chunk);
        }
        // The sizes add up, so this takes nothing away.
        let from = bytes.len().min(skip as usize);
        let to = bytes.len().min(from + length as usize);
        Ok(ExtentAnswer::Chunks(bytes.freeze().slice(from..to)))
    }
}

fn read_list(stat: StatBlobResponse) -> Result<ChunkList, String> {
    let chunks = stat.chunks.iter().map(|chunk| {
        let digest = Digest::try_from(&chunk.digest[..]).map_err(|error| error.to_string())?;
        match chunk.size {
            ..=MAX_CHUNK => Ok((digest, chunk.size)),
            size => Err(format!("{digest} has {size} bytes, more than {MAX_CHUNK}")),
        }
    });
    let chunks = chunks.collect::<Result<Vec<_>, String>>()?;
    Ok(ChunkList {
        chunks,
        bao: stat.bao,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_chunks_come_one_at_a_time() {
        let at_once = |sizes: &[u64]| {
            let digest = Digest::of(b"");
            let list = ChunkList {
                chunks: sizes.iter().map(|size| (digest, *size)).collect(),
                bao: Bytes::new(),
            };
            list.at_once()
        };
        assert_eq!(at_once(&[]), AT_ONCE);
        assert_eq!(at_once(&[1000; 100]), AT_ONCE);
        assert_eq!(at_once(&[1000, 32 << 20]), 2);
        assert_eq!(at_once(&[MAX_CHUNK, 1]), 1);
        assert_eq!(at_once(&[u64::MAX]), 1);
    }
}
