//! The source of blobs: the interface to an upstream.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::castore::{Digest, GroupTable};
use crate::store::failure::CallFailure;
use crate::store::{Damage, Object};

/// A blob, and the size in a node. Either may be wrong, so nothing is cached under the digest
/// alone.
pub(in crate::store) type BlobClaim = (Digest, u64);

/// Receives a whole blob, from front to back.
pub(in crate::store) type BlobSink<'a> =
    &'a mut (dyn FnMut(Bytes) -> Result<(), CallFailure> + Send);

/// Receives whole small blobs, each with its index among the requested ones.
pub(in crate::store) type SmallBlobSink<'a> = &'a mut (dyn FnMut(usize, Bytes) + Send);

/// The result of a request for a part of a blob.
#[derive(Debug)]
pub(in crate::store) enum ExtentAnswer {
    /// The bytes, and their proof ([`verify_extent`](crate::castore::verify_extent)).
    Proven(Bytes, Bytes),
    /// From chunks, each of which matches its digest. The blob's table may verify more.
    Chunks(Bytes),
    Absent,
    /// The source does not do this, or not for this blob.
    Unavailable,
}

/// The source of blobs. Nothing that it returns is trusted.
#[async_trait]
pub(in crate::store) trait BlobSource: Debug + Send + Sync + 'static {
    /// On which fetches run.
    fn runtime(&self) -> &Handle;

    /// Records that the bytes for `digest` do not match it.
    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure;

    /// Whether the source ever sent wrong bytes.
    fn has_sent_corrupt(&self) -> bool;

    /// The whole blob, as it comes; false if there is none. A node states that it has `size` bytes.
    async fn whole(
        &self,
        digest: &Digest,
        size: u64,
        sink: BlobSink<'_>,
    ) -> Result<bool, CallFailure>;

    /// The blob's table, if there is one for it, checked against the digest.
    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, CallFailure>;

    /// `length` bytes at `start`: an extent. If `chunks_suffice`, chunks alone are accepted.
    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
        chunks_suffice: bool,
    ) -> Result<ExtentAnswer, CallFailure>;

    /// Many blobs in one answer, each passed to `sink` with its index in `wanted` as it comes.
    /// Those that are left out have to be requested one by one.
    async fn together(
        &self,
        wanted: &[BlobClaim],
        sink: SmallBlobSink<'_>,
    ) -> Result<(), CallFailure> {
        let _ = (wanted, sink);
        Ok(())
    }
}
