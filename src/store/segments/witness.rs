//! What has been handed out on the word of chunk lists alone.
//!
//! Every segment that is served so leaves its chaining value here, 32 bytes. When all segments of
//! a blob have been seen their values fold up to the blob's digest, or the list lied: then the
//! digest is quarantined, and nothing of that blob is served again from this source. A reader who
//! goes through such a blob is told at its last segment at the latest. A segment that comes a
//! second time and is another one gives the lie away at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Claim;
use crate::castore::{Digest, PartValues};
use crate::store::bounded::Bounded;

/// Bytes of values that are kept: 64 GiB of blobs under way.
const KEPT: usize = 8 << 20;

/// The segments seen of each blob.
#[derive(Debug)]
pub(super) struct Witnesses {
    seen: Mutex<Bounded<Claim, std::sync::Arc<Mutex<PartValues>>>>,
    quarantined: Mutex<HashSet<Digest>>,
    /// Whether anything is: spares readers the lock.
    any: AtomicBool,
}

impl Witnesses {
    pub(super) fn new() -> Self {
        Self {
            seen: Mutex::new(Bounded::new(KEPT)),
            quarantined: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    /// Whether the blob is known to be another one than its digest says.
    pub(super) fn is_quarantined(&self, digest: &Digest) -> bool {
        self.any.load(Ordering::Acquire) && self.quarantined.lock().contains(digest)
    }

    /// Takes note of the segment at `start`; false if it gives a lie away.
    pub(super) fn saw(&self, digest: &Digest, size: u64, start: u64, bytes: &[u8]) -> bool {
        let values = {
            let mut seen = self.seen.lock();
            seen.get(&(*digest, size)).unwrap_or_else(|| {
                let values = PartValues::new(size);
                let bytes = values.resident_bytes();
                let values = std::sync::Arc::new(Mutex::new(values));
                seen.insert((*digest, size), values.clone(), bytes);
                values
            })
        };
        let mut values = values.lock();
        let right = values.put(start, bytes) && values.root().is_none_or(|root| root == *digest);
        if !right {
            tracing::error!("blob {digest} is quarantined: its chunks make up another one");
            self.quarantined.lock().insert(*digest);
            self.any.store(true, Ordering::Release);
        }
        right
    }
}
