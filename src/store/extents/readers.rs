//! The progress of readers, and read-ahead for sequential ones: twice as many extents at each
//! step, up to [`MAX_AHEAD`].

use std::ops::Range;

use parking_lot::Mutex;

use crate::castore::{Digest, extent_size};
use crate::store::bounded::Bounded;

/// Extents fetched ahead of a sequential reader: 8 MiB, a 10 Gbit/s link's 7 ms.
const MAX_AHEAD: u64 = 32;
/// Readers whose progress is watched.
const READERS: usize = 4096;

/// The readers of blobs, of each blob one.
#[derive(Debug)]
pub(super) struct Readers(Mutex<Bounded<Digest, ReaderProgress>>);

/// The progress of a blob's reader.
#[derive(Clone, Copy, Debug)]
struct ReaderProgress {
    /// The next extent of a sequential reader.
    next: u64,
    /// The number of extents to have ahead.
    ahead: u64,
    /// The first extent that was not requested yet.
    fetched: u64,
}

impl Readers {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Bounded::new(READERS)))
    }

    /// Notes that `length` bytes at `offset` are read of a blob of `size` bytes; returns the
    /// extents that its reader should have ahead and that were not requested yet.
    pub(super) fn advance(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: u64,
    ) -> Range<u64> {
        let extent = extent_size(size);
        let extents = size.div_ceil(extent);
        if extents < 2 {
            return 0..0;
        }
        let first = offset / extent;
        let next = (offset + length).div_ceil(extent);
        let mut readers = self.0.lock();
        let progress = match readers.get(digest) {
            // The same extent, or the one after.
            Some(before) if first + 1 == before.next || first == before.next => ReaderProgress {
                next,
                ahead: match next > before.next {
                    true => (before.ahead * 2).clamp(1, MAX_AHEAD),
                    false => before.ahead,
                },
                fetched: before.fetched.max(next),
            },
            _ => ReaderProgress {
                next,
                ahead: u64::from(offset == 0),
                fetched: next,
            },
        };
        let until = (next + progress.ahead).min(extents);
        let ahead = progress.fetched..until;
        let fetched = progress.fetched.max(until);
        let progress = ReaderProgress {
            fetched,
            ..progress
        };
        readers.insert(*digest, progress, 1);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_twice_as_much_ahead_at_each_step_and_nothing_twice() {
        let readers = Readers::new();
        let (digest, size) = (Digest::of(b"large"), 1 << 30);
        let extent = extent_size(size);
        let read = |index: u64| readers.advance(&digest, size, index * extent, extent);
        assert_eq!(read(0), 1..2);
        assert_eq!(read(1), 2..4);
        assert_eq!(read(2), 4..7);
        for index in 3..20 {
            read(index);
        }
        assert_eq!(read(20), 20 + MAX_AHEAD..21 + MAX_AHEAD);
        // Elsewhere nothing is ahead; from the front again, as at first.
        assert!(read(1000).is_empty());
        assert_eq!(read(0), 1..2);
        // Up to the end, and nothing for one extent.
        let last = size.div_ceil(extent) - 1;
        assert!(read(last - 1).is_empty());
        assert!(read(last).is_empty());
        assert!(readers.advance(&digest, 10, 0, 10).is_empty());
    }
}
