//! Which member led to a digest.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::castore::Digest;

/// Digests that are remembered, at most. 512 KiB.
const PLACES: usize = 1 << 16;
/// Bits of a place that identify the member; the others identify the digest.
const MEMBER: u64 = 0xff;

/// Remembers for a digest where to ask first. A guess: what falls on another's place replaces it, and
/// one digest in 2^56 is mistaken for another, which costs a question to the wrong member.
pub(super) struct MemberHints(Box<[AtomicU64]>);

impl Default for MemberHints {
    fn default() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl fmt::Debug for MemberHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hints")
    }
}

impl MemberHints {
    fn place(&self, digest: &Digest) -> (&AtomicU64, u64) {
        let [tag, place] = [0, 8].map(|at| {
            let bytes = digest.as_bytes()[at..at + 8].try_into();
            u64::from_le_bytes(bytes.expect("a digest has 32 bytes"))
        });
        (&self.0[place as usize % PLACES], tag & !MEMBER)
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<usize> {
        let (place, tag) = self.place(digest);
        let kept = place.load(Ordering::Relaxed);
        // Members count from 1: an empty place has 0.
        (kept & !MEMBER == tag)
            .then_some((kept & MEMBER) as usize)?
            .checked_sub(1)
    }

    pub(super) fn put(&self, digest: &Digest, member: usize) {
        let member = member as u64 + 1;
        if member <= MEMBER {
            let (place, tag) = self.place(digest);
            place.store(tag | member, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_there_and_nothing_else() {
        let hints = MemberHints::default();
        let digests: Vec<_> = (0..100u8).map(|n| Digest::of(&[n])).collect();
        assert_eq!(hints.get(&digests[0]), None);
        for (member, digest) in digests.iter().enumerate() {
            hints.put(digest, member % 3);
        }
        let right = (0..100).filter(|&n| hints.get(&digests[n]) == Some(n % 3));
        assert!(right.count() > 95);
        assert_eq!(hints.get(&Digest::of(b"other")), None);
        // More members than fit: no hint, and no wrong one.
        hints.put(&Digest::of(b"other"), 255);
        assert_eq!(hints.get(&Digest::of(b"other")), None);
    }
}
