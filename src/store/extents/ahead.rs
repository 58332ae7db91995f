//! Prefetching announced blobs together.
//!
//! One round trip for each small file is what makes a walk over an upstream's tree slow. The
//! read-ahead of a walk announces what it will read ([`Extents::will_need`]); small blobs then
//! come many in one answer, and from a source without such answers many at once. Of a larger blob
//! its first extents are fetched, after which its reader counts as sequential.
//!
//! An announced blob is in flight for all readers: one that comes early waits for the answer that
//! brings its blob, and causes no second fetch.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::{BlobClaim, BlobSource, Extents, LARGEST_BLOB, of_its_own};
use crate::castore::{Digest, extent_size};
use crate::spans;
use crate::store::ANNOUNCED_HEAD;
use crate::store::failure::CallFailure;
use crate::store::single_flight::PendingFetch;

/// Blobs in one request, and their bytes, at most: an answer should not be so long that the first
/// blobs of the next wait for it.
const MOST_TOGETHER: usize = 1024;
const MOST_BYTES: u64 = 1 << 20;

/// A blob that readers may be waiting for already.
type AnnouncedBlob = (
    BlobClaim,
    Option<PendingFetch<(BlobClaim, u64), Result<Option<Bytes>, CallFailure>>>,
);

impl<S: BlobSource> Extents<S> {
    /// Prefetches `blobs`, in this order.
    pub(in crate::store) fn will_need(self: &Arc<Self>, blobs: &[BlobClaim]) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for &(digest, size) in blobs {
            if size == 0 || size > LARGEST_BLOB || self.integrity_trackers.is_quarantined(&digest) {
                continue;
            }
            let part = extent_size(size);
            if size > part {
                for index in 0..size.min(ANNOUNCED_HEAD).div_ceil(part) {
                    if !self.extents.lock().contains(&((digest, size), index)) {
                        self.start_fetch(digest, size, index);
                    }
                }
                continue;
            }
            let key = ((digest, size), 0);
            let Some(pending) = self.fetching.announce(key) else {
                continue;
            };
            if let Some(bytes) = self.extents.lock().get(&key) {
                pending.complete(Ok(Some(bytes)));
                continue;
            }
            if batch.len() >= MOST_TOGETHER || bytes + size > MOST_BYTES {
                self.fly_together(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size;
            batch.push((key.0, Some(pending)));
        }
        self.fly_together(batch);
    }

    fn fly_together(self: &Arc<Self>, batch: Vec<AnnouncedBlob>) {
        if !batch.is_empty() {
            let extents = self.clone();
            let runtime = self.source.runtime();
            runtime
                .spawn(spans::follow(async move { extents.fetch_together(batch).await }).boxed());
        }
    }

    async fn fetch_together(self: Arc<Self>, mut batch: Vec<AnnouncedBlob>) {
        let claims: Vec<BlobClaim> = batch.iter().map(|(claim, _)| *claim).collect();
        let came = match &claims[..] {
            [_only] => Ok(()),
            claims => {
                let mut sink = |index: usize, bytes: Bytes| {
                    let awaited = batch.get_mut(index);
                    if let Some((claim, pending)) = awaited
                        && let Some(pending) = pending.take()
                    {
                        pending.complete(self.whole_came(claim, bytes).map(Some));
                    }
                };
                self.source.together(claims, &mut sink).await
            }
        };
        let remaining = batch
            .into_iter()
            .filter_map(|(claim, pending)| Some((claim, pending?)));
        if let Err(failure) = came {
            remaining.for_each(|(_, pending)| pending.complete(Err(failure.clone())));
            return;
        }
        let alone = remaining.map(|((digest, size), pending)| {
            let extents = self.clone();
            async move {
                let call = extents.alone.begin().await;
                let fetched = extents.clone().fetch(digest, size, 0).await;
                if fetched.is_ok() {
                    call.answered();
                }
                pending.complete(fetched);
            }
        });
        join_all(alone).await;
    }

    /// A small blob that came with others.
    fn whole_came(&self, claim: &BlobClaim, bytes: Bytes) -> Result<Bytes, CallFailure> {
        let (digest, size) = claim;
        if bytes.len() as u64 != *size {
            return Err(self.wrong_size(digest, *size, bytes.len() as u64));
        }
        if Digest::of(&bytes) != *digest {
            return Err(self.wrong_bytes(digest, 0));
        }
        let bytes = of_its_own(&bytes);
        self.keep(digest, *size, 0, &bytes);
        Ok(bytes)
    }
}
