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
use crate::profile::STRETCH;

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
pub(super) struct Note {
    pub(super) id: NodeId,
    /// Part of the file's digest: shows whether the id still means that file.
    pub(super) piece: u64,
    stretch: u32,
}

impl Note {
    /// The extent that was read; nothing if a root was looked up.
    pub(super) fn stretch(&self) -> Option<u32> {
        (self.stretch != LOOKED_UP).then_some(self.stretch)
    }
}

/// A list with room for as many accesses as can wait.
pub(super) fn list() -> Vec<Note> {
    Vec::with_capacity(MOST_NOTES)
}

/// Part of `digest`, which is random enough to tell it from others.
pub(super) fn piece(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The extent `stretch` of the file of `piece`, in the same quality.
pub(super) fn key(piece: u64, stretch: u32) -> u64 {
    // Fibonacci hashing: the product's upper bits depend on every bit of what is multiplied.
    (piece ^ u64::from(stretch).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The accesses of a mount.
pub(super) struct Touched {
    open: AtomicBool,
    seen: Box<[AtomicU64]>,
    news: AtomicUsize,
    notes: Mutex<Vec<Note>>,
    /// Notified when the list is no longer empty.
    noted: Notify,
    /// Notified when a root is looked up for the first time, or when waiting for more accesses must
    /// end.
    stirred: Notify,
}

impl Default for Touched {
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

impl Touched {
    /// Notes a request for bytes of a file.
    pub(super) fn note(&self, id: NodeId, digest: &Digest, offset: u64, length: u64) {
        if length == 0 || !self.open.load(Ordering::Relaxed) {
            return;
        }
        let piece = piece(digest);
        let last = offset.saturating_add(length - 1) / STRETCH;
        for stretch in offset / STRETCH..=last {
            if let Some(stretch) = u32::try_from(stretch).ok()
                && stretch < LOOKED_UP
                && self.is_news(piece, stretch)
                && self.push(Note { id, piece, stretch })
            {
                self.noted.notify_one();
            }
        }
    }

    /// Notes that the root at `index` was looked up.
    pub(super) fn note_root(&self, index: u32) {
        if self.open.load(Ordering::Relaxed) && self.is_news(u64::from(index), LOOKED_UP) {
            self.push(Note {
                id: NodeId::entry(0, index),
                piece: 0,
                stretch: LOOKED_UP,
            });
            self.stir();
        }
    }

    /// Ends the wait for more.
    pub(super) fn stir(&self) {
        self.stirred.notify_one();
    }

    fn is_news(&self, piece: u64, stretch: u32) -> bool {
        let at = (key(piece, stretch) >> 40) as usize;
        let (word, bit) = (&self.seen[at / 64 % WORDS], 1 << (at % 64));
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Whether it is the first in the list.
    fn push(&self, note: Note) -> bool {
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
    pub(super) fn take(&self, notes: &mut Vec<Note>) {
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

    fn taken(touched: &Touched) -> Vec<(u64, Option<u32>)> {
        let mut notes = list();
        touched.take(&mut notes);
        let id = |note: &Note| (u64::from(note.id), note.stretch());
        notes.iter().map(id).collect()
    }

    #[test]
    fn an_extent_is_noted_at_its_first_access() {
        let touched = Touched::default();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let (a, b) = (NodeId::from(10), NodeId::from(11));
        touched.note(a, &one, 0, 4096);
        touched.note(a, &one, 4096, STRETCH - 4096);
        touched.note(b, &other, STRETCH - 1, 2);
        touched.note(a, &one, 0, 0);
        touched.note_root(7);
        touched.note_root(7);
        let root = u64::from(NodeId::entry(0, 7));
        let expected = [(10, Some(0)), (11, Some(0)), (11, Some(1)), (root, None)];
        assert_eq!(taken(&touched), expected);
        touched.note(a, &one, 0, 2 * STRETCH);
        assert_eq!(taken(&touched), [(10, Some(1))]);
        // No file is long enough for this extent.
        touched.note(a, &one, u64::MAX - 10, 11);
        touched.note(a, &one, u64::MAX, 5);
        assert_eq!(taken(&touched), []);
    }

    #[test]
    fn few_are_missed_and_no_list_grows() {
        let touched = Touched::default();
        let mut noted = 0;
        for number in 0..60_000u32 {
            let digest = Digest::of(&number.to_le_bytes());
            touched.note(NodeId::from(2), &digest, 0, 1);
            if number % 4096 == 0 {
                noted += taken(&touched).len();
            }
        }
        noted += taken(&touched).len();
        assert!((58_500..60_000).contains(&noted), "{noted}");
        for number in 60_000..400_000u32 {
            let digest = Digest::of(&number.to_le_bytes());
            touched.note(NodeId::from(2), &digest, 0, 1);
        }
        let notes = touched.notes.lock();
        assert_eq!((notes.len(), notes.capacity()), (MOST_NOTES, MOST_NOTES));
        assert!(!touched.open.load(Ordering::Relaxed));
    }
}
