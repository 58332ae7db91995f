//! A part of a blob with what binds it to the blob's digest, and nothing else.
//!
//! An aligned part whose size is a power of two is a subtree of BLAKE3's tree. The chaining values
//! of the subtrees beside the path from it up to the root, 32 bytes a level, are its **proof**:
//! with them and the part, a reader computes the root. A part of 256 KiB of a blob of 1 GiB is
//! proven by 12 values, 384 bytes, where that blob's [`GroupTable`] has 2 MiB: so the first byte of
//! a blob does not wait for a table, and a reader keeps none.
//!
//! A proof binds the part's bytes and their place. The blob's length is bound by its last part
//! alone, as in every reader of BLAKE3 trees: if the blob is shorter or longer than a node states,
//! its other parts are still those of the blob that the digest names.

use blake3::hazmat::{
    ChainingValue, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use super::{GroupTable, chaining_value, group_size};
use crate::castore::Digest;

/// The smallest part, in bytes. A random read of a few bytes transfers all of it, so it should be small; a
/// message and its bookkeeping take as long as a fast link needs for 64 KiB, so it should be several times
/// that.
const MIN_EXTENT: u64 = 256 << 10;

/// The size of the parts of a blob of `len` bytes that are proven, in bytes: a power of two, and a
/// multiple of the group size.
pub fn extent_size(len: u64) -> u64 {
    MIN_EXTENT.max(group_size(len))
}

/// A step from a part towards the root.
struct ProofStep {
    /// Where the subtree beside is, in bytes.
    beside: (u64, u64),
    /// Whether that one is the left of the two.
    is_left: bool,
}

/// The path from the part at `start` of a blob of `len` bytes up to the root, and the part's
/// length; nothing if no part starts there.
fn way_up(len: u64, start: u64) -> Option<(Vec<ProofStep>, u64)> {
    let part = extent_size(len);
    if !start.is_multiple_of(part) || start >= len.max(1) {
        return None;
    }
    let (mut at, mut rest) = (0, len);
    let mut steps = Vec::new();
    while rest > part {
        // The largest power of two of chunks that leaves something: never less than a part.
        let left = left_subtree_len(rest);
        let is_left = start >= at + left;
        steps.push(match is_left {
            true => ProofStep {
                beside: (at, left),
                is_left,
            },
            false => ProofStep {
                beside: (at + left, rest - left),
                is_left,
            },
        });
        (at, rest) = match is_left {
            true => (at + left, rest - left),
            false => (at, left),
        };
    }
    steps.reverse();
    Some((steps, rest))
}

/// Whether `bytes` are the part at `start` of the blob `digest` of `len` bytes, as `proof` shows.
pub fn verify_extent(digest: &Digest, len: u64, start: u64, bytes: &[u8], proof: &[u8]) -> bool {
    let Some((steps, length)) = way_up(len, start) else {
        return false;
    };
    let (values, rest) = proof.as_chunks::<32>();
    if bytes.len() as u64 != length || values.len() != steps.len() || !rest.is_empty() {
        return false;
    }
    let Some(((last, below), (last_value, values))) = steps.split_last().zip(values.split_last())
    else {
        return Digest::of(bytes) == *digest;
    };
    let mut value = chaining_value(bytes, start);
    for (step, beside) in below.iter().zip(values) {
        value = match step.is_left {
            true => merge_subtrees_non_root(beside, &value, Mode::Hash),
            false => merge_subtrees_non_root(&value, beside, Mode::Hash),
        };
    }
    let root = match last.is_left {
        true => merge_subtrees_root(last_value, &value, Mode::Hash),
        false => merge_subtrees_root(&value, last_value, Mode::Hash),
    };
    Digest::from(root) == *digest
}

/// The proofs of all parts of one blob: twice 32 bytes a part.
#[derive(Debug)]
pub struct ExtentProofs {
    len: u64,
    /// At each level the values of the whole subtrees of that many parts: 1, 2, 4, …; the last,
    /// incomplete part of the blob stands at the end of the first level.
    levels: Vec<Vec<ChainingValue>>,
}

impl ExtentProofs {
    /// The proofs that a blob's table gives.
    pub fn new(table: &GroupTable) -> Self {
        let len = table.len;
        let part = extent_size(len);
        let mut rest = len;
        let per_extent = (part / group_size(len)) as usize;
        let mut level: Vec<_> = match table.values.len() {
            0 => Vec::new(),
            _ => table
                .values
                .chunks(per_extent)
                .map(|groups| {
                    let bytes = part.min(rest);
                    rest -= bytes;
                    super::fold(groups, bytes)
                })
                .collect(),
        };
        let mut whole = (len / part) as usize;
        let mut levels = Vec::new();
        while !level.is_empty() {
            let (pairs, _) = level.get(..whole).unwrap_or_default().as_chunks::<2>();
            let next = pairs
                .iter()
                .map(|[left, right]| merge_subtrees_non_root(left, right, Mode::Hash))
                .collect();
            levels.push(std::mem::replace(&mut level, next));
            whole /= 2;
        }
        Self { len, levels }
    }

    /// Bytes of memory that this takes.
    pub fn resident_bytes(&self) -> usize {
        let values: usize = self.levels.iter().map(Vec::len).sum();
        values * 32 + size_of::<Self>()
    }

    /// The proof of the part at `start`: the values beside its way up, the lowest first. Nothing if
    /// no part starts there.
    pub fn proof(&self, start: u64) -> Option<Vec<u8>> {
        let (steps, _) = way_up(self.len, start)?;
        let mut proof = Vec::with_capacity(steps.len() * 32);
        for step in steps {
            let (at, len) = step.beside;
            proof.extend_from_slice(&self.value(at, len)?);
        }
        Some(proof)
    }

    /// The value of the subtree of `len` bytes at `at`, which is not the root.
    fn value(&self, at: u64, len: u64) -> Option<ChainingValue> {
        let part = extent_size(self.len);
        if len <= part || len.is_power_of_two() {
            let level = (len.max(part) / part).ilog2() as usize;
            let index = (at / part) >> level;
            return self.levels.get(level)?.get(index as usize).copied();
        }
        // The blob's end: what is left of it is whole.
        let left = left_subtree_len(len);
        let (left, right) = (self.value(at, left)?, self.value(at + left, len - left)?);
        Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

/// The chaining values of those parts of a blob that have been seen.
#[derive(Debug)]
pub struct ExtentValues {
    len: u64,
    values: Vec<Option<ChainingValue>>,
    lacking: usize,
}

impl ExtentValues {
    /// No part of a blob of `len` bytes, which has several.
    pub fn new(len: u64) -> Self {
        let parts = len.div_ceil(extent_size(len)) as usize;
        Self {
            len,
            values: vec![None; parts],
            lacking: parts,
        }
    }

    /// Bytes of memory that this takes.
    pub fn resident_bytes(&self) -> usize {
        self.values.len() * size_of::<Option<ChainingValue>>() + size_of::<Self>()
    }

    /// Takes the part that starts at `start`; false if it is not one, or another than was taken
    /// for that place before.
    pub fn put(&mut self, start: u64, bytes: &[u8]) -> bool {
        let part = extent_size(self.len);
        let place = self.values.get_mut((start / part) as usize);
        let length = part.min(self.len.saturating_sub(start));
        let Some(place) = place.filter(|_| start.is_multiple_of(part)) else {
            return false;
        };
        if bytes.len() as u64 != length {
            return false;
        }
        let value = chaining_value(bytes, start);
        match place {
            Some(before) => *before == value,
            None => {
                *place = Some(value);
                self.lacking -= 1;
                true
            }
        }
    }

    /// The digest that all parts make up; nothing until all have been seen.
    pub fn root(&self) -> Option<Digest> {
        if self.lacking > 0 || self.values.len() < 2 {
            return None;
        }
        let values: Vec<ChainingValue> = self.values.iter().copied().collect::<Option<_>>()?;
        let left_len = left_subtree_len(self.len);
        let (left, right) = values.split_at((left_len / extent_size(self.len)) as usize);
        let (left, right) = (
            super::fold(left, left_len),
            super::fold(right, self.len - left_len),
        );
        Some(merge_subtrees_root(&left, &right, Mode::Hash).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::BlobHasher;

    const EXTENT: usize = MIN_EXTENT as usize;

    #[test]
    fn every_part_is_proven_and_no_other_bytes_are() {
        let lengths = [
            0,
            1,
            EXTENT,
            EXTENT + 1,
            2 * EXTENT,
            2 * EXTENT + 5,
            3 * EXTENT,
            4 * EXTENT,
            5 * EXTENT - 1,
            7 * EXTENT + 100_000,
            8 * EXTENT,
            8 * EXTENT + 1,
            13 * EXTENT + 17,
        ];
        for len in lengths {
            let blob: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
            let mut hasher = BlobHasher::new();
            hasher.update(&blob);
            let (digest, table) = hasher.finish();
            let proofs = ExtentProofs::new(&table);
            let len = len as u64;
            for start in (0..len.max(1)).step_by(EXTENT) {
                let end = (start + MIN_EXTENT).min(len);
                let part = &blob[start as usize..end as usize];
                let proof = proofs.proof(start).unwrap();
                assert!(proof.len() <= 32 * 5, "{len} at {start}");
                assert!(
                    verify_extent(&digest, len, start, part, &proof),
                    "{len} at {start}"
                );
                let mut wrong = part.to_vec();
                if let Some(byte) = wrong.last_mut() {
                    *byte ^= 1;
                    assert!(!verify_extent(&digest, len, start, &wrong, &proof));
                    assert!(!verify_extent(&digest, len, start, &part[1..], &proof));
                    let is_last = end == len;
                    assert!(!is_last || !verify_extent(&digest, len + 1, start, part, &proof));
                }
                assert!(!verify_extent(&digest, len, start + 1, part, &proof));
                assert!(!verify_extent(
                    &digest,
                    len,
                    start + MIN_EXTENT,
                    part,
                    &proof
                ));
                assert!(!verify_extent(
                    &digest,
                    len,
                    start,
                    part,
                    &[&proof[..], &[0; 32]].concat()
                ));
                if !proof.is_empty() {
                    let mut wrong = proof.clone();
                    wrong[0] ^= 1;
                    assert!(!verify_extent(&digest, len, start, part, &wrong));
                    assert!(!verify_extent(&digest, len, start, part, &proof[32..]));
                }
            }
            assert_eq!(
                proofs.proof(len.next_multiple_of(MIN_EXTENT).max(MIN_EXTENT)),
                None
            );
            assert_eq!(proofs.proof(1), None);
        }
    }

    #[test]
    fn all_parts_make_up_the_digest_in_whatever_order_they_come() {
        for len in [2 * EXTENT, 2 * EXTENT + 5, 5 * EXTENT - 1, 8 * EXTENT + 1] {
            let blob: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
            let mut values = ExtentValues::new(len as u64);
            for start in (0..len).step_by(EXTENT).rev() {
                assert_eq!(values.root(), None);
                let part = &blob[start..(start + EXTENT).min(len)];
                assert!(!values.put(start as u64, &part[1..]));
                assert!(!values.put(start as u64 + 1, part));
                assert!(values.put(start as u64, part));
                assert!(values.put(start as u64, part));
                let mut other = part.to_vec();
                other[0] ^= 1;
                assert!(!values.put(start as u64, &other));
            }
            assert_eq!(values.root(), Some(Digest::of(&blob)));
        }
    }
}
