//! Blobs as chunks.
//!
//! `blobs/…` holds a StatBlobResponse: the chunks in order, or nothing for a blob that is one
//! chunk, itself. What we write there also has the group table in its `bao` field, which others
//! ignore: with it parts of a blob can be checked, without it only the whole
//! ([`crate::store::segments`]).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::runtime::Handle;
use tonic::Code;

use super::bucket::Bucket;
use crate::castore::bao_field::{self, BaoFieldError};
use crate::castore::{Digest, GroupTable};
use crate::proto::castore::v1::StatBlobResponse;
use crate::store::bounded::Bounded;
use crate::store::failure::Failure;
use crate::store::flights::Flights;
use crate::store::segments::{Part, Sink, Source};
use crate::store::{Damage, Object};

/// The largest chunk, uncompressed, in bytes. Writers of the field make them of 512 KiB at most.
const MAX_CHUNK: u64 = 64 << 20;
/// Chunks fetched at once of one blob.
const AT_ONCE: usize = 8;
/// Bytes of chunks and of chunk lists that are kept: the neighbours of a segment share chunks.
const KEPT_CHUNKS: usize = 32 << 20;
const KEPT_LISTS: usize = 16 << 20;

/// The blobs of a bucket, without any cache of note.
#[derive(Debug)]
pub(super) struct ChunkedBlobs {
    bucket: Arc<Bucket>,
    chunks: Mutex<Bounded<Digest, Bytes>>,
    lists: Mutex<Bounded<Digest, Arc<ChunkList>>>,
    listing: Flights<Digest, Result<Option<Arc<ChunkList>>, Failure>>,
    fetching: Flights<Digest, Result<Option<Bytes>, Failure>>,
}

/// What is known of a blob.
#[derive(Debug)]
struct ChunkList {
    /// Digests and sizes; empty: the blob is one chunk, itself.
    chunks: Vec<(Digest, u64)>,
    bao: Bytes,
}

impl ChunkedBlobs {
    pub(super) fn new(bucket: Arc<Bucket>) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            chunks: Mutex::new(Bounded::new(KEPT_CHUNKS)),
            lists: Mutex::new(Bounded::new(KEPT_LISTS)),
            listing: Flights::default(),
            fetching: Flights::default(),
        })
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, Failure> {
        self.bucket.has(&self.bucket.path("blobs", digest)).await
    }

    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        let Some(list) = self.list(digest).await? else {
            return Ok(None);
        };
        if list.chunks.is_empty() {
            let chunk = self.chunk(digest, MAX_CHUNK).await?;
            return Ok(Some(chunk.len() as u64));
        }
        let sizes = list.chunks.iter().map(|(_, size)| size);
        Ok(Some(sizes.fold(0, |sum, size| sum.saturating_add(*size))))
    }

    async fn list(&self, digest: &Digest) -> Result<Option<Arc<ChunkList>>, Failure> {
        if let Some(list) = self.lists.lock().get(digest) {
            return Ok(Some(list));
        }
        let (bucket, wanted) = (self.bucket.clone(), *digest);
        let landed = self
            .listing
            .join(*digest, &self.bucket.runtime, || async move {
                let path = bucket.path("blobs", &wanted);
                let Some(bytes) = bucket.get(&path).await? else {
                    return Ok(None);
                };
                let wrong = |why: String| Failure::Status(Code::DataLoss, format!("{path}: {why}"));
                let stat =
                    StatBlobResponse::decode(bytes).map_err(|error| wrong(error.to_string()))?;
                let chunks = stat.chunks.iter().map(|chunk| {
                    let digest = Digest::try_from(&chunk.digest[..]);
                    match digest {
                        Ok(_) if chunk.size > MAX_CHUNK => {
                            Err(wrong("a chunk is too large".into()))
                        }
                        Ok(digest) => Ok((digest, chunk.size)),
                        Err(error) => Err(wrong(error.to_string())),
                    }
                });
                let chunks = chunks.collect::<Result<Vec<_>, Failure>>()?;
                let bao = stat.bao;
                Ok(Some(Arc::new(ChunkList { chunks, bao })))
            });
        let list = landed.await.unwrap_or_else(|| Err(Failure::crashed()))?;
        if let Some(list) = &list {
            let bytes = list.chunks.len() * size_of::<(Digest, u64)>() + list.bao.len() + 128;
            self.lists.lock().insert(*digest, list.clone(), bytes);
        }
        Ok(list)
    }

    /// The chunk `digest` of at most `limit` bytes, checked.
    async fn chunk(&self, digest: &Digest, limit: u64) -> Result<Bytes, Failure> {
        if let Some(chunk) = self.chunks.lock().get(digest) {
            return Ok(chunk);
        }
        let (bucket, wanted) = (self.bucket.clone(), *digest);
        let landed = self
            .fetching
            .join(*digest, &self.bucket.runtime, || async move {
                let path = bucket.path("chunks", &wanted);
                let Some(packed) = bucket.get(&path).await? else {
                    return Ok(None);
                };
                let wrong = |why: String| Failure::Status(Code::DataLoss, format!("{path}: {why}"));
                let bytes = unpacked(&packed, limit).map_err(|error| wrong(error.to_string()))?;
                if Digest::of(&bytes) != wanted {
                    let damage = Damage::WrongBytes { offset: 0 };
                    return Err(lied(&bucket, Object::Blob, &wanted, damage));
                }
                Ok(Some(Bytes::from(bytes)))
            });
        let chunk = landed.await.unwrap_or_else(|| Err(Failure::crashed()))?;
        let chunk = chunk.ok_or_else(|| {
            let path = self.bucket.path("chunks", digest);
            Failure::Status(
                Code::DataLoss,
                format!("{path} is not there, but is referred to"),
            )
        })?;
        let bytes = chunk.len() + 128;
        self.chunks.lock().insert(*digest, chunk.clone(), bytes);
        Ok(chunk)
    }

    /// The chunk `digest`, which has to have `size` bytes.
    async fn chunk_of(&self, digest: Digest, size: u64) -> Result<Bytes, Failure> {
        let chunk = self.chunk(&digest, size).await?;
        if chunk.len() as u64 != size {
            let damage = Damage::WrongSize {
                expected: size,
                actual: chunk.len() as u64,
            };
            return Err(self.lied(Object::Blob, &digest, damage));
        }
        Ok(chunk)
    }
}

#[async_trait]
impl Source for ChunkedBlobs {
    fn runtime(&self) -> &Handle {
        &self.bucket.runtime
    }

    fn lied(&self, object: Object, digest: &Digest, damage: Damage) -> Failure {
        lied(&self.bucket, object, digest, damage)
    }

    async fn whole(&self, digest: &Digest, sink: Sink<'_>) -> Result<bool, Failure> {
        let Some(list) = self.list(digest).await? else {
            return Ok(false);
        };
        if list.chunks.is_empty() {
            sink(self.chunk(digest, MAX_CHUNK).await?)?;
            return Ok(true);
        }
        let chunks = list.chunks.clone().into_iter();
        let chunks = chunks.map(|(digest, size)| self.chunk_of(digest, size));
        let mut chunks = stream::iter(chunks).buffered(AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            sink(chunk?)?;
        }
        Ok(true)
    }

    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Failure> {
        let Some(list) = self.list(digest).await? else {
            return Ok(None);
        };
        bao_field::decode(&list.bao, digest, size).map_err(|error| {
            let damage = match error {
                BaoFieldError::Size { expected, actual } => Damage::WrongSize { expected, actual },
                BaoFieldError::Groups(error) => Damage::Groups(error),
            };
            self.lied(Object::Blob, digest, damage)
        })
    }

    async fn part(
        &self,
        digest: &Digest,
        _size: u64,
        start: u64,
        length: u64,
    ) -> Result<Part, Failure> {
        let Some(list) = self.list(digest).await? else {
            return Ok(Part::Absent);
        };
        if list.bao.is_empty() || list.chunks.is_empty() {
            return Ok(Part::Unavailable);
        }
        let end = start + length;
        let mut at = 0u64;
        let mut wanted = Vec::new();
        let mut skip = 0;
        for &(digest, size) in &list.chunks {
            let next = at.saturating_add(size);
            if next > start && at < end {
                if wanted.is_empty() {
                    skip = start - at;
                }
                wanted.push((digest, size));
            }
            at = next;
        }
        let chunks = wanted
            .into_iter()
            .map(|(digest, size)| self.chunk_of(digest, size));
        let chunks: Vec<Bytes> = stream::iter(chunks).buffered(AT_ONCE).try_collect().await?;
        let mut bytes = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
        for chunk in &chunks {
            bytes.extend_from_slice(chunk);
        }
        // A list that does not reach so far gives less, which the check for the length sees.
        let from = bytes.len().min(skip as usize);
        let to = bytes.len().min(from + length as usize);
        Ok(Part::Found(bytes.freeze().slice(from..to)))
    }
}

fn lied(bucket: &Bucket, object: Object, digest: &Digest, damage: Damage) -> Failure {
    tracing::error!("{bucket:?} holds {object} {digest} and {damage}: the bytes were thrown away");
    Failure::Damaged(object, *digest, damage)
}

/// What `packed` holds, if that is no more than `limit` bytes.
pub(super) fn unpacked(packed: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(packed)?;
    decoder
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let why = format!("it unpacks to more than {limit} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}
