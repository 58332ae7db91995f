//! Which stretches of which files were touched for the first time.
//!
//! Requests come here. A table of bits, of fixed size, tells what was touched before; two things that
//! share a bit are taken for one, so that of very many a few are missed. What is new goes into a list
//! that was made as large as it gets: who notes something waits for nobody, but for another who does,
//! and allocates nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::castore::Digest;
use crate::fs::NodeId;
use crate::profile::STRETCH;

/// Words of bits: 256 KiB of memory. Of the 60,000th thing that is touched, a chance of 3 % to be
/// missed.
const WORDS: usize = 1 << 15;
/// Touches that wait to be looked at, at most: as many as come in a tenth of a second.
const MOST_NOTES: usize = 8 << 10;
/// Touches of a mount, at most: beyond that the table is too full to tell.
pub(super) const MOST_NEWS: usize = 256 << 10;
/// In place of a stretch: a root node was looked up.
const LOOKED_UP: u32 = u32::MAX;

/// A first touch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) id: NodeId,
    /// Of the file's digest: tells whether the id still means that file.
    pub(super) piece: u64,
    stretch: u32,
}

impl Note {
    /// What of the file was touched; nothing if a root node was looked up.
    pub(super) fn stretch(&self) -> Option<u32> {
        (self.stretch != LOOKED_UP).then_some(self.stretch)
    }
}

/// A list for as many touches as can wait.
pub(super) fn list() -> Vec<Note> {
    Vec::with_capacity(MOST_NOTES)
}

/// A piece of `digest`, which is random enough to tell it from others.
pub(super) fn piece(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The stretch `stretch` of the file of `piece`, told from others as `piece` is.
pub(super) fn key(piece: u64, stretch: u32) -> u64 {
    // Fibonacci hashing: the product's upper bits depend on every bit of what is multiplied.
    (piece ^ u64::from(stretch).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What was touched.
pub(super) struct Touched {
    open: AtomicBool,
    seen: Box<[AtomicU64]>,
    news: AtomicUsize,
    notes: Mutex<Vec<Note>>,
    /// Somebody noted something where nothing was.
    noted: Notify,
    /// Somebody looked up a root node for the first time, or there is no time to wait for more.
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
    /// Notes that bytes of a file are wanted.
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

    /// Notes that the root node at `index` was looked up.
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

    /// Ends the waiting for more.
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

    /// Puts what was noted in the place of what is in `notes`, which is an empty [`list`].
    pub(super) fn take(&self, notes: &mut Vec<Note>) {
        std::mem::swap(&mut *self.notes.lock(), notes);
    }

    /// Waits until something was noted, `patience` at most, and then `pause` for more; not so long if
    /// a root node is looked up, or somebody [stirs](Self::stir).
    pub(super) async fn stirred(&self, patience: Duration, pause: Duration) {
        let rest = async {
            // Whether it was this or the time: there is a look at the list.
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
    fn a_stretch_is_noted_when_it_is_touched_first() {
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
        // No stretch is where no file reaches.
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
