//! Verifying any part of a blob against the blob's digest.
//!
//! BLAKE3 is a tree over 1 KiB chunks. Cut a blob into aligned groups of a power of two of chunks:
//! the list of the groups' chaining values (32 bytes a group) folds up to the digest, so once the
//! list is checked, each group can be checked alone. That list is a [`GroupTable`]; it is a Bao
//! outboard without its inner nodes, which are cheap to recompute (a 2 MiB table folds in a few
//! milliseconds).
//!
//! Groups are 16 KiB: the widest SIMD of today hashes sixteen chunks at once, so smaller groups
//! cost speed and larger ones cost random reads. Blobs over 1 GiB get coarser groups, which
//! bounds a table at 2 MiB ([`group_size`]).

mod proof;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use thiserror::Error;

use super::Digest;
use super::effort::hashing;

pub use proof::{ExtentProofs, ExtentValues, extent_size, verify_extent};

/// The smallest group, in bytes.
const MIN_GROUP: u64 = 16 << 10;
/// The most groups of a blob: bounds a table at 2 MiB.
const MAX_GROUPS: u64 = 64 << 10;

/// The size of the groups of a blob of `len` bytes, in bytes: a power of two, at least 16 KiB.
pub fn group_size(len: u64) -> u64 {
    len.div_ceil(MAX_GROUPS).next_power_of_two().max(MIN_GROUP)
}

/// The chaining values of a blob's groups, known to fold up to the blob's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTable {
    len: u64,
    values: Box<[ChainingValue]>,
}

/// A table or a group that does not belong to the digest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GroupTableError {
    /// The bytes are not 32 a group.
    #[error("a blob of {len} bytes has {expected} bytes of group hashes, not {actual}")]
    Length {
        /// Bytes of the blob.
        len: u64,
        /// Bytes that its table has.
        expected: u64,
        /// Bytes given.
        actual: usize,
    },
    /// The values fold up to something else.
    #[error("the group hashes are not those of {0}")]
    WrongDigest(Digest),
}

impl GroupTable {
    /// Bytes of the table of a blob of `len` bytes; 0 for a blob of one group, which its digest
    /// verifies.
    pub fn byte_len(len: u64) -> u64 {
        match len.div_ceil(group_size(len)) {
            0 | 1 => 0,
            groups => groups * 32,
        }
    }

    /// Reads the table of the blob `digest` of `len` bytes, and checks that it is that blob's.
    pub fn decode(bytes: &[u8], digest: &Digest, len: u64) -> Result<Self, GroupTableError> {
        if bytes.len() as u64 != Self::byte_len(len) {
            return Err(GroupTableError::Length {
                len,
                expected: Self::byte_len(len),
                actual: bytes.len(),
            });
        }
        let (values, _) = bytes.as_chunks::<32>();
        let table = Self {
            len,
            values: values.into(),
        };
        match table.root() {
            Some(root) if root != *digest => Err(GroupTableError::WrongDigest(*digest)),
            _ => Ok(table),
        }
    }

    /// The table as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.values.as_flattened()
    }

    /// Whether `bytes` are the group that starts at `offset`, of the blob `digest`.
    ///
    /// `offset` is a multiple of the group size and `bytes` a whole group (or the blob's tail).
    pub fn verify(&self, digest: &Digest, offset: u64, bytes: &[u8]) -> bool {
        if self.values.is_empty() {
            return offset == 0 && bytes.len() as u64 == self.len && Digest::of(bytes) == *digest;
        }
        let size = group_size(self.len);
        let whole = size.min(self.len.saturating_sub(offset));
        let value = self.values.get((offset / size) as usize);
        offset.is_multiple_of(size)
            && bytes.len() as u64 == whole
            && value == Some(&hashing(|| chaining_value(bytes, offset)))
    }

    /// What the values fold up to; nothing if there are none.
    fn root(&self) -> Option<Digest> {
        let half = self.split()?;
        let (left, right) = self.values.split_at(half);
        let left_len = left_subtree_len(self.len);
        let left = fold(left, left_len);
        let right = fold(right, self.len - left_len);
        Some(merge_subtrees_root(&left, &right, Mode::Hash).into())
    }

    fn split(&self) -> Option<usize> {
        (self.values.len() > 1)
            .then(|| (left_subtree_len(self.len) / group_size(self.len)) as usize)
    }
}

/// The chaining value of a subtree of `len` bytes whose groups have `values`.
fn fold(values: &[ChainingValue], len: u64) -> ChainingValue {
    match values {
        [only] => *only,
        _ => {
            // A subtree of several groups is split where BLAKE3 splits its bytes: at the largest
            // power of two below, which is a multiple of the group size.
            let half = values.len().next_power_of_two() / 2;
            let left_len = left_subtree_len(len);
            let (left, right) = values.split_at(half);
            merge_subtrees_non_root(
                &fold(left, left_len),
                &fold(right, len - left_len),
                Mode::Hash,
            )
        }
    }
}

fn chaining_value(bytes: &[u8], offset: u64) -> ChainingValue {
    blake3::Hasher::new()
        .set_input_offset(offset)
        .update(bytes)
        .finalize_non_root()
}

/// Hashes a blob as it comes, giving its digest and its table.
///
/// The group size depends on the length, which is known only at the end of a stream: the hasher
/// works in the smallest groups and folds them to the coarser size when it finishes.
#[derive(Debug, Default)]
pub struct BlobHasher {
    len: u64,
    /// Bytes of the last group, while it is incomplete.
    pending: Vec<u8>,
    values: Vec<ChainingValue>,
}

impl BlobHasher {
    /// A hasher of no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let group = MIN_GROUP as usize;
        while !bytes.is_empty() {
            if self.pending.is_empty() && bytes.len() > group {
                // A whole group with more after it, so it is not the root: hash it in place.
                let (head, tail) = bytes.split_at(group);
                self.push(head);
                bytes = tail;
                continue;
            }
            if self.pending.len() == group {
                let full = std::mem::take(&mut self.pending);
                self.push(&full);
                self.pending = full;
                self.pending.clear();
            }
            let take = bytes.len().min(group - self.pending.len());
            self.pending.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
    }

    fn push(&mut self, group: &[u8]) {
        self.values.push(chaining_value(group, self.len));
        self.len += group.len() as u64;
    }

    /// The blob's digest and table.
    pub fn finish(mut self) -> (Digest, GroupTable) {
        if self.values.is_empty() {
            let len = self.pending.len() as u64;
            let table = GroupTable {
                len,
                values: Box::default(),
            };
            return (Digest::of(&self.pending), table);
        }
        let pending = std::mem::take(&mut self.pending);
        self.push(&pending);
        let per_group = (group_size(self.len) / MIN_GROUP) as usize;
        let mut left = self.len;
        let values = self
            .values
            .chunks(per_group)
            .map(|groups| {
                let len = group_size(self.len).min(left);
                left -= len;
                fold(groups, len)
            })
            .collect();
        let table = GroupTable {
            len: self.len,
            values,
        };
        let root = table
            .root()
            .expect("more than one smallest group, and never folded to a single group");
        (root, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    const LENGTHS: [usize; 13] = [
        0,
        1,
        1023,
        1024,
        16383,
        16384,
        16385,
        32768,
        32769,
        49153,
        100_000,
        1 << 20,
        1_048_577,
    ];

    #[test]
    fn gives_the_digest_that_hashing_at_once_gives_however_the_bytes_come() {
        for len in LENGTHS {
            let blob = blob(len);
            for step in [1000, 16384, 40_000, 1 << 20] {
                let mut hasher = BlobHasher::new();
                blob.chunks(step).for_each(|part| hasher.update(part));
                let (digest, table) = hasher.finish();
                assert_eq!(digest, Digest::of(&blob), "{len} by {step}");
                let bytes = table.as_bytes();
                assert_eq!(bytes.len() as u64, GroupTable::byte_len(len as u64));
                assert_eq!(GroupTable::decode(bytes, &digest, len as u64), Ok(table));
            }
        }
    }

    #[test]
    fn each_group_verifies_alone_and_no_other_bytes_do() {
        for len in LENGTHS {
            let blob = blob(len);
            let mut hasher = BlobHasher::new();
            hasher.update(&blob);
            let (digest, table) = hasher.finish();
            let size = group_size(len as u64) as usize;
            for (index, group) in blob.chunks(size).enumerate() {
                let offset = (index * size) as u64;
                assert!(table.verify(&digest, offset, group), "{len} at {offset}");
                let mut wrong = group.to_vec();
                wrong[group.len() / 2] ^= 1;
                assert!(!table.verify(&digest, offset, &wrong));
                assert!(!table.verify(&digest, offset, &group[1..]));
                assert!(!table.verify(&digest, offset + size as u64, group));
            }
        }
    }

    #[test]
    fn a_table_of_another_blob_is_refused() {
        let mut hasher = BlobHasher::new();
        hasher.update(&blob(100_000));
        let (digest, table) = hasher.finish();
        let mut bytes = table.as_bytes().to_vec();
        bytes[40] ^= 1;
        assert_eq!(
            GroupTable::decode(&bytes, &digest, 100_000),
            Err(GroupTableError::WrongDigest(digest))
        );
        assert!(matches!(
            GroupTable::decode(&bytes[1..], &digest, 100_000),
            Err(GroupTableError::Length { .. })
        ));
    }

    #[test]
    fn large_blobs_get_coarser_groups() {
        assert_eq!(group_size(0), 16 << 10);
        assert_eq!(group_size(1 << 30), 16 << 10);
        assert_eq!(group_size((1 << 30) + 1), 32 << 10);
        assert_eq!(GroupTable::byte_len(u64::MAX / 4), 2 << 20);
        // What a stream of that length does at its end: fold fine groups to coarse ones.
        let blob = blob(100_000);
        let fine: Vec<_> = blob
            .chunks(16 << 10)
            .enumerate()
            .map(|(index, group)| chaining_value(group, index as u64 * (16 << 10)))
            .collect();
        assert_eq!(
            fold(&fine[..4], 64 << 10),
            chaining_value(&blob[..64 << 10], 0)
        );
        assert_eq!(
            fold(&fine[4..], 100_000 - (64 << 10)),
            chaining_value(&blob[64 << 10..], 64 << 10)
        );
    }
}
