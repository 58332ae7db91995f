//! When objects were last used, approximately: for the choice of what to evict.
//!
//! A read names a digest and not the root that it belongs to, and must not pay for bookkeeping. So
//! each writes a mark of its digest into a table of fixed size, with one store to memory; a later
//! one may overwrite it. Eviction walks the roots anyway, and recognizes by these marks which of
//! them are in use.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::castore::Digest;

/// Marks in the table: half a megabyte of them.
const MARKS: usize = 1 << 16;

/// The table.
pub(super) struct AccessTimes {
    /// The upper half of each mark is a part of the digest, the lower half the time.
    marks: Box<[AtomicU64]>,
    /// Seconds, updated by [`tick`](Self::tick).
    clock: AtomicU32,
}

impl AccessTimes {
    pub(super) fn new(now: u64) -> Self {
        Self {
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
            clock: AtomicU32::new(now as u32),
        }
    }

    pub(super) fn tick(&self, now: u64) {
        self.clock.store(now as u32, Ordering::Relaxed);
    }

    fn place(&self, digest: &Digest) -> (&AtomicU64, u64) {
        let [a, b, c, d, e, f, ..] = *digest.as_bytes();
        let index = usize::from(u16::from_le_bytes([a, b]));
        let buffer = u64::from(u32::from_le_bytes([c, d, e, f]));
        (&self.marks[index % MARKS], buffer << 32)
    }

    /// Notes that an object was used.
    pub(super) fn touch(&self, digest: &Digest) {
        let (mark, buffer) = self.place(digest);
        let now = u64::from(self.clock.load(Ordering::Relaxed));
        mark.store(buffer | now, Ordering::Relaxed);
    }

    /// When an object was last used, in seconds since 1970; 0 if its mark was overwritten.
    pub(super) fn when(&self, digest: &Digest) -> u64 {
        let (mark, buffer) = self.place(digest);
        let mark = mark.load(Ordering::Relaxed);
        match mark >> 32 == buffer >> 32 {
            true => mark & u64::from(u32::MAX),
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_lasts_until_another_overwrites_it() {
        let access_times = AccessTimes::new(100);
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        assert_eq!(access_times.when(&one), 0);
        access_times.touch(&one);
        access_times.tick(200);
        access_times.touch(&other);
        assert_eq!(
            (access_times.when(&one), access_times.when(&other)),
            (100, 200)
        );
        let mut same_place = *one.as_bytes();
        same_place[5] ^= 1;
        access_times.touch(&Digest::from(same_place));
        assert_eq!(access_times.when(&one), 0);
    }
}
