//! Verified extents in memory.
//!
//! An extent is kept for readers to come: those for which it was fetched ahead, and the next reads of the same
//! extent. Once one read has taken it whole, the kernel's page cache has it, or the disk of a cache in front.
//! It is then kept among few others, for equal files that follow.

use bytes::Bytes;

use super::BlobClaim;
use crate::store::bounded::Bounded;

/// The memory for extents that were taken is so small a part of that for the others.
const TAKEN_PART: usize = 8;

/// A blob, and the number of an extent in it.
type ExtentKey = (BlobClaim, u64);

/// Extents, within limits of memory.
#[derive(Debug)]
pub(super) struct ExtentMemory {
    awaiting: Bounded<ExtentKey, Bytes>,
    taken: Bounded<ExtentKey, Bytes>,
}

impl ExtentMemory {
    /// With a limit in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            awaiting: Bounded::new(limit),
            taken: Bounded::new(limit / TAKEN_PART),
        }
    }

    pub(super) fn get(&mut self, key: &ExtentKey) -> Option<Bytes> {
        self.awaiting.get(key).or_else(|| self.taken.get(key))
    }

    pub(super) fn contains(&self, key: &ExtentKey) -> bool {
        self.awaiting.contains(key) || self.taken.contains(key)
    }

    pub(super) fn insert(&mut self, key: ExtentKey, bytes: Bytes) {
        let cost = bytes.len() + 128;
        self.awaiting.insert(key, bytes, cost);
    }

    /// A read has taken all of the extent.
    pub(super) fn took(&mut self, key: ExtentKey) {
        if let Some((bytes, cost)) = self.awaiting.take(&key) {
            self.taken.insert(key, bytes, cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Digest;

    #[test]
    fn extents_that_were_taken_leave_the_memory_to_those_that_were_not() {
        let mut memory = ExtentMemory::new(80 << 10);
        let key = |index| ((Digest::empty_blob(), 1 << 20), index);
        let bytes = Bytes::from(vec![0; 4 << 10]);
        memory.insert(key(0), bytes.clone());
        for index in 1..100 {
            memory.insert(key(index), bytes.clone());
            memory.took(key(index));
        }
        assert!(memory.contains(&key(0)), "nothing has taken it");
        assert_eq!(memory.get(&key(99)), Some(bytes));
        assert_eq!(memory.get(&key(50)), None);
    }
}
