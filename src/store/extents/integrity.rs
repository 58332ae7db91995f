//! The integrity tracker for bytes that were returned on the basis of chunk lists alone.
//!
//! Every such extent leaves its chaining value here, 32 bytes. When all extents of a blob have
//! been seen their values must fold up to the blob's digest. If they do not, the list was wrong:
//! the digest is quarantined, and nothing of that blob is served again from this source. A
//! sequential reader of such a blob gets the error at its last extent at the latest. An extent
//! that differs when it comes a second time reveals the fault at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::BlobClaim;
use crate::castore::{Digest, ExtentValues};
use crate::store::bounded::Bounded;

/// Bytes of values that are kept: 64 GiB of blobs under way.
const KEPT: usize = 8 << 20;

/// The extents seen of each blob.
#[derive(Debug)]
pub(super) struct IntegrityTrackers {
    seen: Mutex<Bounded<BlobClaim, std::sync::Arc<Mutex<ExtentValues>>>>,
    quarantined: Mutex<HashSet<Digest>>,
    /// Whether anything is: spares readers the lock.
    any: AtomicBool,
}

impl IntegrityTrackers {
    pub(super) fn new() -> Self {
        Self {
            seen: Mutex::new(Bounded::new(KEPT)),
            quarantined: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    /// Whether the blob is known not to match its digest.
    pub(super) fn is_quarantined(&self, digest: &Digest) -> bool {
        self.any.load(Ordering::Acquire) && self.quarantined.lock().contains(digest)
    }

    /// Records the extent at `start`; returns false if it reveals a fault.
    pub(super) fn saw(&self, digest: &Digest, size: u64, start: u64, bytes: &[u8]) -> bool {
        let values = {
            let mut seen = self.seen.lock();
            seen.get(&(*digest, size)).unwrap_or_else(|| {
                let values = ExtentValues::new(size);
                let bytes = values.resident_bytes();
                let values = std::sync::Arc::new(Mutex::new(values));
                seen.insert((*digest, size), values.clone(), bytes);
                values
            })
        };
        let mut values = values.lock();
        let right = values.put(start, bytes) && values.root().is_none_or(|root| root == *digest);
        if !right {
            tracing::error!("blob {digest} is quarantined: its chunks combine to another blob");
            self.quarantined.lock().insert(*digest);
            self.any.store(true, Ordering::Release);
        }
        right
    }
}
