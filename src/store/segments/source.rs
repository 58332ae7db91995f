//! What blobs are fetched from: how one is asked, and for what.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::castore::{Digest, GroupTable};
use crate::store::failure::Failure;
use crate::store::{Damage, Object};

/// A blob, and the bytes that a node says it has: what is known of the one may be a lie of the
/// other, so nothing is kept under the digest alone.
pub(in crate::store) type Claim = (Digest, u64);

/// What a whole blob is given to, from front to back.
pub(in crate::store) type Sink<'a> = &'a mut (dyn FnMut(Bytes) -> Result<(), Failure> + Send);

/// What whole small blobs are given to, each with its place among those wanted.
pub(in crate::store) type Many<'a> = &'a mut (dyn FnMut(usize, Bytes) + Send);

/// What a question for a part of a blob came to.
#[derive(Debug)]
pub(in crate::store) enum Part {
    /// The bytes, and what proves them ([`verify_part`](crate::castore::verify_part)).
    Proven(Bytes, Bytes),
    /// Of chunks, each of which matches its digest. The blob's table may say more of them.
    Chunks(Bytes),
    Absent,
    /// The source does not do this, or not for this blob.
    Unavailable,
}

/// Where blobs come from. Nothing that it gives is believed.
#[async_trait]
pub(in crate::store) trait Source: Debug + Send + Sync + 'static {
    /// On which fetches run.
    fn runtime(&self) -> &Handle;

    /// Notes that what came for `digest` is not what it promises.
    fn lied(&self, object: Object, digest: &Digest, damage: Damage) -> Failure;

    /// Whether the source ever lied.
    fn is_liar(&self) -> bool;

    /// The whole blob, as it comes; false if there is none. A node says that it has `size` bytes.
    async fn whole(&self, digest: &Digest, size: u64, sink: Sink<'_>) -> Result<bool, Failure>;

    /// The blob's table, if there is one for it, checked against the digest.
    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Failure>;

    /// `length` bytes at `start`: a segment. If `chunks_suffice`, chunks may be all that there is.
    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
        chunks_suffice: bool,
    ) -> Result<Part, Failure>;

    /// Many blobs in one answer, each given to `sink` with its place in `wanted` as it comes. What
    /// is left out has to be asked for by itself.
    async fn together(&self, wanted: &[Claim], sink: Many<'_>) -> Result<(), Failure> {
        let _ = (wanted, sink);
        Ok(())
    }
}
