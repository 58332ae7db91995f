//! The `bao` field of a StatBlobResponse: a [`GroupTable`] on the wire.
//!
//! 8 bytes `cfs-grp1`, the blob's length in bytes as 8 bytes little-endian, then the table: 32
//! bytes a group, nothing for a blob of one group. The field's protocol reserves it for data that
//! verifies parts of a blob, without a format; the magic distinguishes this format from any other.

use thiserror::Error;

use super::{Digest, GroupTable, GroupTableError};

const MAGIC: &[u8; 8] = b"cfs-grp1";
const HEADER: usize = 16;

/// A field that does not verify the blob it came with.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BaoFieldError {
    /// The stated length is not the blob's.
    #[error("it is for a blob of {actual} bytes, not {expected}")]
    Size {
        /// The blob's bytes, as its node states.
        expected: u64,
        /// As the field states.
        actual: u64,
    },
    /// The table is wrong.
    #[error(transparent)]
    Groups(#[from] GroupTableError),
}

/// The field for a blob of `size` bytes.
pub fn encode(size: u64, groups: &GroupTable) -> Vec<u8> {
    let table = groups.as_bytes();
    let mut field = Vec::with_capacity(HEADER + table.len());
    field.extend_from_slice(MAGIC);
    field.extend_from_slice(&size.to_le_bytes());
    field.extend_from_slice(table);
    field
}

/// The blob's length, as stated in `field`; nothing if it is empty or in another format.
pub fn size(field: &[u8]) -> Option<u64> {
    let (length, _) = field.strip_prefix(MAGIC)?.split_first_chunk()?;
    Some(u64::from_le_bytes(*length))
}

/// The table in `field`, checked; nothing if the field is empty or in another format.
pub fn decode(
    field: &[u8],
    digest: &Digest,
    size: u64,
) -> Result<Option<GroupTable>, BaoFieldError> {
    let Some((length, table)) = field
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split_first_chunk())
    else {
        return Ok(None);
    };
    let actual = u64::from_le_bytes(*length);
    if actual != size {
        return Err(BaoFieldError::Size {
            expected: size,
            actual,
        });
    }
    Ok(Some(GroupTable::decode(table, digest, size)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::BlobHasher;

    #[test]
    fn a_field_reads_back_and_a_strange_one_is_nothing() {
        for size in [0, 5, 16_384, 100_000] {
            let blob = vec![7; size];
            let mut hasher = BlobHasher::new();
            hasher.update(&blob);
            let (digest, groups) = hasher.finish();
            let size = size as u64;
            let field = encode(size, &groups);
            assert_eq!(decode(&field, &digest, size), Ok(Some(groups)));
            assert_eq!(decode(b"", &digest, size), Ok(None));
            assert_eq!(decode(b"another format", &digest, size), Ok(None));
            assert!(decode(&field, &digest, size + 1).is_err());
            if size > 16_384 {
                assert!(decode(&field, &Digest::of(b"another"), size).is_err());
            }
        }
    }
}
