//! The chunks of large blobs, for clients that read by the chunk: without a list they hold the
//! whole of an open blob in memory.
//!
//! A chunk is a part of a blob that can be requested by a digest of its own, the BLAKE3 of its
//! bytes alone. That does not follow from the blob's digest, so the blob is read once for it; the
//! computed list is stored with a local store's blob, and the last lists in memory. For a blob that
//! only an upstream has, the list is the upstream's. Either way the bytes of a chunk are read as a
//! part of their blob.

use std::collections::HashMap;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tonic::Status;

use super::respond::{ask, status};
use super::turns::{ConnectionTurns, WorkSlice};
use crate::castore::Digest;
use crate::store::{Answer, Error, LocalStore, Store, StoredChunk};

/// Bytes of a chunk, at least: what a client holds in memory of a blob that it reads.
const SMALLEST: u64 = 1 << 20;
/// Chunks of a blob, at most: a list of them stays below 2 MiB, half of what a client accepts in a
/// message.
const MOST: u64 = 32 << 10;
/// Chunks that another server may list: 40 bytes each stay below 2 MiB too.
const MOST_LISTED: usize = 50_000;
/// Chunks that are cached, about 150 bytes each.
const REMEMBERED: usize = 256 << 10;
/// Bytes that are read and hashed at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The chunks of a blob, in order: digests and sizes in bytes.
pub(super) type BlobChunks = Arc<Vec<(Digest, u64)>>;

/// The place of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkLocation {
    pub(super) blob: Digest,
    /// Bytes of the blob.
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Bytes of the chunk.
    pub(super) length: u64,
}

/// The lists that were requested last.
#[derive(Clone)]
pub(super) struct ServedChunks(Arc<ServedChunksShared>);

struct ServedChunksShared {
    store: Arc<dyn Store>,
    /// The same, if it is one that keeps lists.
    local: Option<LocalStore>,
    /// Whether computed lists can be stored.
    writable: bool,
    known: Mutex<KnownChunks>,
}

struct KnownChunks {
    lists: LruCache<(Digest, u64), SharedChunkList>,
    places: HashMap<Digest, ChunkLocation>,
}

/// Computed once for all requests; none if the blob is not cut.
type SharedChunkList = Arc<OnceCell<Option<BlobChunks>>>;

impl ServedChunks {
    pub(super) fn new(store: Arc<dyn Store>, local: Option<LocalStore>, writable: bool) -> Self {
        Self(Arc::new(ServedChunksShared {
            store,
            local,
            writable,
            known: Mutex::new(KnownChunks {
                lists: LruCache::unbounded(),
                places: HashMap::new(),
            }),
        }))
    }

    /// The chunks of the blob `digest` of `size` bytes; none if it is to be read as a whole.
    pub(super) async fn of(
        &self,
        digest: Digest,
        size: u64,
        turns: &ConnectionTurns,
    ) -> Result<Option<BlobChunks>, Status> {
        if size <= SMALLEST {
            return Ok(None);
        }
        let listed = {
            let lists = &mut self.0.known.lock().lists;
            lists
                .get_or_insert((digest, size), SharedChunkList::default)
                .clone()
        };
        let list = listed
            .get_or_try_init(|| self.find(digest, size, turns))
            .await?;
        Ok(list.clone())
    }

    /// The list of the blob, if it was requested before.
    pub(super) fn known(&self, digest: Digest, size: u64) -> Option<BlobChunks> {
        let lists = &mut self.0.known.lock().lists;
        lists.get(&(digest, size))?.get()?.clone()
    }

    /// The place of the chunk `digest`, if it is in a list that was returned, and its blob exists.
    pub(super) async fn place(&self, digest: Digest) -> Result<Option<ChunkLocation>, Status> {
        let known = self.0.known.lock().places.get(&digest).copied();
        let shared = self.0.clone();
        ask(async move {
            let (place, size) = match (known, &shared.local) {
                (Some(place), _) => (place, Some(place.size)),
                (None, None) => return Ok(None),
                (None, Some(local)) => match local.chunk(&digest)? {
                    None => return Ok(None),
                    Some(kept) => {
                        let place = ChunkLocation {
                            blob: kept.blob,
                            size: 0,
                            offset: kept.offset,
                            length: kept.len,
                        };
                        (place, None)
                    }
                },
            };
            // It is removed with its blob.
            let found = shared.store.blob_size(&place.blob).await?;
            let found = found.filter(|found| size.is_none_or(|size| *found == size));
            Ok(found.map(|size| ChunkLocation { size, ..place }))
        })
        .await
    }

    async fn find(
        &self,
        digest: Digest,
        size: u64,
        turns: &ConnectionTurns,
    ) -> Result<Option<BlobChunks>, Status> {
        let store = self.0.store.clone();
        let listed = ask(async move { store.chunks(&digest).await }).await?;
        let list = match listed.filter(|list| is_of(list, size)) {
            Some(list) => Some(list),
            None => self.cut(digest, size, turns).await?,
        };
        let list = list.map(Arc::new);
        if let Some(list) = &list {
            self.0.known.lock().remember(digest, size, list);
        }
        Ok(list)
    }

    /// Cuts the blob, if all of it is cached, and keeps the list with it.
    async fn cut(
        &self,
        digest: Digest,
        size: u64,
        turns: &ConnectionTurns,
    ) -> Result<Option<Vec<(Digest, u64)>>, Status> {
        let shared = self.0.clone();
        let cut = turns.take_long(move |slice| {
            let list = cut(shared.store.as_ref(), &digest, size, slice)?;
            if let Some(list) = &list
                && let Some(local) = shared.local.as_ref().filter(|_| shared.writable)
                && let Err(error) = keep(local, &digest, list)
            {
                tracing::debug!("cannot keep the chunks of {digest}: {error}");
            }
            Ok(list)
        });
        cut.await
    }
}

impl KnownChunks {
    fn remember(&mut self, blob: Digest, size: u64, list: &BlobChunks) {
        let mut offset = 0;
        for &(digest, length) in list.iter() {
            let place = ChunkLocation {
                blob,
                size,
                offset,
                length,
            };
            self.places.entry(digest).or_insert(place);
            offset += length;
        }
        // Not the one that was just requested.
        while self.places.len() > REMEMBERED
            && self.lists.len() > 1
            && let Some((_, oldest)) = self.lists.pop_lru()
        {
            let oldest = oldest.get().and_then(Option::as_ref);
            for (digest, _) in oldest.iter().flat_map(|list| list.iter()) {
                self.places.remove(digest);
            }
        }
    }
}

/// Stores the chunks of a blob with it.
fn keep(store: &LocalStore, blob: &Digest, list: &[(Digest, u64)]) -> Result<(), Error> {
    let chunk = |&(digest, len): &(Digest, u64)| StoredChunk { digest, len };
    let chunks: Vec<_> = list.iter().map(chunk).collect();
    store.set_chunk_list(blob, &chunks)
}

/// Whether `list` can be the chunks of a blob of `size` bytes.
fn is_of(list: &[(Digest, u64)], size: u64) -> bool {
    let sum = list
        .iter()
        .try_fold(0u64, |sum, (_, size)| sum.checked_add(*size));
    (1..=MOST_LISTED).contains(&list.len()) && sum == Some(size)
}

/// Bytes of each chunk but the last of a blob of `size` bytes.
fn chunk_size(size: u64) -> u64 {
    let mut chunk = SMALLEST;
    while size.div_ceil(chunk) > MOST {
        chunk *= 2;
    }
    chunk
}

/// The chunks of a blob that is completely local.
fn cut(
    store: &dyn Store,
    digest: &Digest,
    size: u64,
    slice: &mut WorkSlice,
) -> Result<Option<Vec<(Digest, u64)>>, Status> {
    let chunk = chunk_size(size);
    let mut list = Vec::with_capacity(size.div_ceil(chunk) as usize);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < size {
        let end = size.min(at + chunk);
        let start = at;
        let mut hasher = blake3::Hasher::new();
        while at < end {
            let length = buffer.len().min((end - at) as usize);
            if !slice.may_continue() {
                return Ok(None);
            }
            let read = store.read_now(digest, size, at, &mut buffer[..length]);
            match read.map_err(|error| status(&error))? {
                Answer::Found(0) | Answer::Absent | Answer::Wait => return Ok(None),
                Answer::Found(read) => {
                    hasher.update(&buffer[..read]);
                    at += read as u64;
                }
            }
        }
        list.push((Digest::from(*hasher.finalize().as_bytes()), end - start));
    }
    Ok(Some(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_so_that_a_list_stays_short() {
        for (size, chunk) in [
            ((1 << 20) + 1, 1 << 20),
            (32 << 30, 1 << 20),
            ((32 << 30) + 1, 2 << 20),
            (1 << 50, 32 << 30),
        ] {
            assert_eq!(chunk_size(size), chunk, "{size}");
            assert!(size.div_ceil(chunk) * 44 < 2 << 20, "{size}");
        }
    }

    #[test]
    fn the_oldest_lists_are_forgotten_beyond_the_limit() {
        let mut known = KnownChunks {
            lists: LruCache::unbounded(),
            places: HashMap::new(),
        };
        let digest = |blob: u64, chunk: u64| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&blob.to_le_bytes());
            bytes[8..16].copy_from_slice(&chunk.to_le_bytes());
            Digest::from(bytes)
        };
        let blobs = 2 * REMEMBERED as u64 / MOST;
        for blob in 0..blobs {
            let list: BlobChunks = Arc::new((0..MOST).map(|at| (digest(blob, at), 1)).collect());
            let (blob, size) = (digest(blob, u64::MAX), MOST);
            let listed = SharedChunkList::from(OnceCell::from(Some(list.clone())));
            known.lists.put((blob, size), listed);
            known.remember(blob, size, &list);
            assert!(known.places.len() <= REMEMBERED);
        }
        assert!(known.places.contains_key(&digest(blobs - 1, 0)));
        assert!(!known.places.contains_key(&digest(0, 0)));
        assert!(known.lists.len() as u64 <= blobs / 2);
    }

    #[test]
    fn a_list_of_another_server_has_to_fit() {
        let digest = Digest::of(b"");
        assert!(is_of(&[(digest, 5), (digest, 7)], 12));
        assert!(!is_of(&[(digest, 5), (digest, 7)], 13));
        assert!(!is_of(&[(digest, u64::MAX), (digest, 2)], 1));
        assert!(!is_of(&[], 0));
        assert!(!is_of(
            &vec![(digest, 1); MOST_LISTED + 1],
            MOST_LISTED as u64 + 1
        ));
    }
}
