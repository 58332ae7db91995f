//! Blobs in a bucket.
//!
//! `blobs/…` holds a StatBlobResponse: the chunks in order, or nothing for a blob that is one
//! chunk, itself. castore-fs also writes the group table in its `bao` field, which other programs
//! ignore: with it parts of a blob can be checked, without it only the whole
//! ([`crate::store::extents`]).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use tokio::runtime::Handle;

use super::bucket::Bucket;
use crate::castore::bao_field::{self, BaoFieldError};
use crate::castore::{Digest, GroupTable};
use crate::proto::castore::v1::StatBlobResponse;
use crate::store::chunked::{ChunkFetches, ChunkSource, MAX_CHUNK};
use crate::store::extents::{BlobSink, BlobSource, ExtentAnswer};
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::{Damage, Object};

/// The least chunk of other writers, in bytes: a smaller blob is one.
const MIN_CHUNK: u64 = 128 << 10;
/// The largest list of chunks, in bytes: half a million chunks, with the table of as large a blob.
const MAX_LIST: u64 = 32 << 20;
/// The largest list, and the largest chunk as it is stored, in bytes.
pub(super) const MAX_STORED_LIST: u64 = MAX_LIST;
pub(super) const MAX_STORED_CHUNK: u64 = most_packed(MAX_CHUNK);
/// The most that has to be kept to unpack, as a power of two of bytes: 8 MiB, which RFC 8878 asks
/// every decoder to support, and more than any level of zstd below 20 needs.
pub(super) const MAX_WINDOW: u32 = 23;

/// The blobs of a bucket, with a small cache only.
#[derive(Debug)]
pub(in crate::store) struct BucketBlobs {
    bucket: Arc<Bucket>,
    chunked: ChunkFetches<Bucket>,
}

impl BucketBlobs {
    pub(super) fn new(bucket: Arc<Bucket>) -> Arc<Self> {
        let chunked = ChunkFetches::new(bucket.clone());
        Arc::new(Self { bucket, chunked })
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, CallFailure> {
        self.bucket.has(&self.bucket.path("blobs", digest)).await
    }

    /// The chunks of the blob.
    pub(super) async fn chunks(
        &self,
        digest: &Digest,
    ) -> Result<Option<Vec<(Digest, u64)>>, CallFailure> {
        let list = self.chunked.list(digest).await?;
        let list = list.filter(|list| !list.chunks.is_empty());
        Ok(list.map(|list| list.chunks.clone()))
    }

    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, CallFailure> {
        let Some(list) = self.chunked.list(digest).await? else {
            return Ok(None);
        };
        if let Some(size) = list.size() {
            return Ok(Some(size));
        }
        let chunk = self.chunked.chunk(digest, MAX_CHUNK).await?;
        Ok(Some(chunk.len() as u64))
    }
}

#[async_trait]
impl ChunkSource for Bucket {
    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure {
        self.calls.sent_corrupt(object, digest, damage)
    }

    async fn stat(&self, digest: &Digest) -> Result<Option<StatBlobResponse>, CallFailure> {
        let path = self.path("blobs", digest);
        let Some(bytes) = self.get(&path, MAX_LIST).await? else {
            return Ok(None);
        };
        let stat = StatBlobResponse::decode(bytes).map_err(|error| {
            CallFailure::Failed(FailureKind::Corrupt, format!("{path}: {error}"))
        })?;
        Ok(Some(stat))
    }

    async fn chunk(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, CallFailure> {
        let path = self.path("chunks", digest);
        let Some(packed) = self.get(&path, most_packed(limit)).await? else {
            return Ok(None);
        };
        let bytes = unpacked(&packed, limit).map_err(|error| {
            CallFailure::Failed(FailureKind::Corrupt, format!("{path}: {error}"))
        })?;
        Ok(Some(bytes.into()))
    }
}

#[async_trait]
impl BlobSource for BucketBlobs {
    fn runtime(&self) -> &Handle {
        &self.bucket.runtime
    }

    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure {
        self.bucket.calls.sent_corrupt(object, digest, damage)
    }

    fn has_sent_corrupt(&self) -> bool {
        self.bucket.calls.has_sent_corrupt()
    }

    async fn whole(
        &self,
        digest: &Digest,
        size: u64,
        sink: BlobSink<'_>,
    ) -> Result<bool, CallFailure> {
        // A blob below the least chunk has no list.
        if size <= MIN_CHUNK
            && let Some(blob) = self.chunked.find(digest, size).await?
        {
            sink(blob)?;
            return Ok(true);
        }
        let Some(list) = self.chunked.list(digest).await? else {
            return Ok(false);
        };
        if list.chunks.is_empty() {
            sink(self.chunked.chunk(digest, size.min(MAX_CHUNK)).await?)?;
            return Ok(true);
        }
        self.chunked.whole(digest, &list, sink).await?;
        Ok(true)
    }

    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, CallFailure> {
        let Some(list) = self.chunked.list(digest).await? else {
            return Ok(None);
        };
        bao_field::decode(&list.bao, digest, size).map_err(|error| {
            let damage = match error {
                BaoFieldError::Size { expected, actual } => Damage::WrongSize { expected, actual },
                BaoFieldError::Groups(error) => Damage::Groups(error),
            };
            self.sent_corrupt(Object::Blob, digest, damage)
        })
    }

    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
        chunks_suffice: bool,
    ) -> Result<ExtentAnswer, CallFailure> {
        let Some(list) = self.chunked.list(digest).await? else {
            return Ok(ExtentAnswer::Absent);
        };
        if list.chunks.is_empty() || list.bao.is_empty() && !chunks_suffice {
            return Ok(ExtentAnswer::Unavailable);
        }
        self.chunked.part(digest, &list, size, start, length).await
    }
}

/// The largest packed size of `limit` bytes: zstd adds less than a 256th and its header to
/// incompressible data.
const fn most_packed(limit: u64) -> u64 {
    limit.saturating_add(limit >> 8).saturating_add(64 << 10)
}

/// The unpacked bytes of `packed`, if they are no more than `limit`.
fn unpacked(packed: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(packed)?;
    decoder.window_log_max(MAX_WINDOW)?;
    decoder
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let why = format!("it unpacks to more than {limit} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}
