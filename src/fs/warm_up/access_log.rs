//! First accesses: which extents of which files were read for the first time.
//!
//! Requests call this. A bitmap of fixed size knows the earlier accesses; two extents that share a
//! bit count as one, so that of very many a few are missed. A first access goes into a list of
//! fixed capacity: a request that notes one allocates nothing, and waits only for another that
//! notes one.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::castore::Digest;
use crate::fs::NodeId;
use crate::profile::EXTENT;

/// Words of bits: 256 KiB of memory. The 60,000th extent has a chance of 3 % to be missed.
const WORDS: usize = 1 << 15;
/// Accesses that wait to be processed, at most: as many as come in a tenth of a second.
const MOST_NOTES: usize = 8 << 10;
/// First accesses of a mount, at most: beyond that the bitmap is too full.
pub(super) const MOST_NEWS: usize = 256 << 10;
/// In place of an extent number: a root was looked up.
const LOOKED_UP: u32 = u32::MAX;

/// A first access.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstAccess {
    pub(super) id: NodeId,
    /// Part of the file's digest: shows whether the id still means that file.
    pub(super) blob_key: u64,
    extent: u32,
}

impl FirstAccess {
    /// The extent that was read; nothing if a root was looked up.
    pub(super) fn extent(&self) -> Option<u32> {
        (self.extent != LOOKED_UP).then_some(self.extent)
    }
}

/// A list with room for as many accesses as can wait.
pub(super) fn list() -> Vec<FirstAccess> {
    Vec::with_capacity(MOST_NOTES)
}

/// Part of `digest`, which is random enough to distinguish it from others.
pub(super) fn blob_key(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The extent `extent` of the file of `blob_key`, in the same quality.
pub(super) fn key(blob_key: u64, extent: u32) -> u64 {
    // Fibonacci hashing: the product's upper bits depend on every bit of what is multiplied.
    (blob_key ^ u64::from(extent).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The accesses of a mount.
pub(super) struct AccessLog {
    open: AtomicBool,
    seen: Box<[AtomicU64]>,
    news: AtomicUsize,
    notes: Mutex<Vec<FirstAccess>>,
    /// Notified when the list is no longer empty.
    noted: Notify,
    /// Notified when a root is looked up for the first time, or when waiting for more accesses must
    /// end.
    stirred: Notify,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(true),
            seen: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            news: AtomicUsize::new(0),
            notes: Mutex::new(list()),
            noted: Notify::new(),
            stirred: Notify::new(),
        }
    }
}

impl AccessLog {
    /// Notes a request for bytes of a file.
    pub(super) fn note(&self, id: NodeId, digest: &Digest, offset: u64, length: u64) {
        if length == 0 || !self.open.load(Ordering::Relaxed) {
            return;
        }
        let blob_key = blob_key(digest);
        let last = offset.saturating_add(length - 1) / EXTENT;
        for extent in offset / EXTENT..=last {
            if let Some(extent) = u32::try_from(extent).ok()
                && extent < LOOKED_UP
                && self.is_news(blob_key, extent)
                && self.push(FirstAccess {
                    id,
                    blob_key,
                    extent,
                })
            {
                self.noted.notify_one();
            }
        }
    }

    /// Notes that the root at `index` was looked up.
    pub(super) fn record_root(&self, index: u32) {
        if self.open.load(Ordering::Relaxed) && self.is_news(u64::from(index), LOOKED_UP) {
            self.push(FirstAccess {
                id: NodeId::entry(0, index),
                blob_key: 0,
                extent: LOOKED_UP,
            });
            self.stir();
        }
    }

    /// Ends the wait for more.
    pub(super) fn stir(&self) {
        self.stirred.notify_one();
    }

    fn is_news(&self, blob_key: u64, extent: u32) -> bool {
        let at = (key(blob_key, extent) >> 40) as usize;
        let (word, bit) = (&self.seen[at / 64 % WORDS], 1 << (at % 64));
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Whether it is the first in the list.
    fn push(&self, note: FirstAccess) -> bool {
        if self.news.fetch_add(1, Ordering::Relaxed) >= MOST_NEWS {
            self.open.store(false, Ordering::Relaxed);
        }
        let mut notes = self.notes.lock();
        if notes.len() < MOST_NOTES {
            notes.push(note);
        }
        notes.len() == 1
    }

    /// Swaps the noted accesses with `notes`, which is an empty [`list`].
    pub(super) fn take(&self, notes: &mut Vec<FirstAccess>) {
        std::mem::swap(&mut *self.notes.lock(), notes);
    }

    /// Waits up to `patience` for an access, and then `pause` for more; the pause ends when a root
    /// is looked up, or by [`stir`](Self::stir).
    pub(super) async fn stirred(&self, patience: Duration, pause: Duration) {
        let rest = async {
            // Either way the caller reads the list.
            let _ = tokio::time::timeout(patience, self.noted.notified()).await;
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            () = rest => {}
            () = self.stirred.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(access_log: &AccessLog) -> Vec<(u64, Option<u32>)> {
        let mut notes = list();
        access_log.take(&mut notes);
        let id = |note: &FirstAccess| (u64::from(note.id), note.extent());
        notes.iter().map(id).collect()
    }

    #[test]
    fn an_extent_is_noted_at_its_first_access() {
        let access_log = AccessLog::default();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let (a, b) = (NodeId::from(10), NodeId::from(11));
        access_log.note(a, &one, 0, 4096);
        access_log.note(a, &one, 4096, EXTENT - 4096);
        access_log.note(b, &other, EXTENT - 1, 2);
        access_log.note(a, &one, 0, 0);
        access_log.record_root(7);
        access_log.record_root(7);
        let root = u64::from(NodeId::entry(0, 7));
        let expected = [(10, Some(0)), (11, Some(0)), (11, Some(1)), (root, None)];
        assert_eq!(taken(&access_log), expected);
        access_log.note(a, &one, 0, 2 * EXTENT);
        assert_eq!(taken(&access_log), [(10, Some(1))]);
        // No file is long enough for this extent.
        access_log.note(a, &one, u64::MAX - 10, 11);
        access_log.note(a, &one, u64::MAX, 5);
        assert_eq!(taken(&access_log), []);
    }

    #[test]
    fn few_are_missed_and_no_list_grows() {
        let access_log = AccessLog::default();
        let mut noted = 0;
        for number in 0..60_000u32 {
            let digest = Digest::of(&number.to_le_bytes());
            access_log.note(NodeId::from(2), &digest, 0, 1);
            if number % 4096 == 0 {
                noted += taken(&access_log).len();
            }
        }
        noted += taken(&access_log).len();
        assert!((58_500..60_000).contains(&noted), "{noted}");
        for number in 60_000..400_000u32 {
            let digest = Digest::of(&number.to_le_bytes());
            access_log.note(NodeId::from(2), &digest, 0, 1);
        }
        let notes = access_log.notes.lock();
        assert_eq!((notes.len(), notes.capacity()), (MOST_NOTES, MOST_NOTES));
        assert!(!access_log.open.load(Ordering::Relaxed));
    }
}
