//! The index entry of an object: its place.

use redb::{ReadOnlyTable, TableDefinition};

use crate::castore::Digest;

/// Bytes of a [`ObjectLocation`] in the index.
const ENCODED: usize = 21;

/// Digest to [`ObjectLocation`], for blobs.
pub(super) const BLOBS: TableDefinition<&[u8; Digest::LEN], &[u8; ENCODED]> =
    TableDefinition::new("blobs");
/// Digest to [`ObjectLocation`], for Directories.
pub(super) const DIRECTORIES: TableDefinition<&[u8; Digest::LEN], &[u8; ENCODED]> =
    TableDefinition::new("directories");

/// One of these tables, opened.
pub(super) type ObjectsTable = ReadOnlyTable<&'static [u8; Digest::LEN], &'static [u8; ENCODED]>;

/// The place of an object, as 21 bytes: kind, pack (u32), offset (u64), length (u64),
/// little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectLocation {
    pub(super) kind: StorageKind,
    /// The pack that holds the object's bytes, or a large blob's group table.
    pub(super) pack: u32,
    /// Where they start in the pack: after the record's header.
    pub(super) offset: u64,
    /// Bytes of the object itself.
    pub(super) len: u64,
}

/// The content of a pack. Directories are separate, so that a walk that reads no file reads
/// sequentially.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PackKind {
    Blobs = 0,
    Directories = 1,
}

/// The ways to store an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StorageKind {
    /// A blob in a pack, its group table (if it has one) right after it.
    Packed = 0,
    /// A blob in a file of its own, its group table in a pack.
    Large = 1,
    /// A Directory below which something was missing when it came.
    Partial = 2,
    /// A Directory below which nothing is missing.
    Whole = 3,
}

impl ObjectLocation {
    pub(super) fn encode(&self) -> [u8; ENCODED] {
        let mut bytes = [0; ENCODED];
        bytes[0] = self.kind as u8;
        bytes[1..5].copy_from_slice(&self.pack.to_le_bytes());
        bytes[5..13].copy_from_slice(&self.offset.to_le_bytes());
        bytes[13..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Nothing if the kind is unknown: the index is damaged.
    pub(super) fn decode(bytes: &[u8; ENCODED]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (pack, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Self {
            kind: match kind {
                0 => StorageKind::Packed,
                1 => StorageKind::Large,
                2 => StorageKind::Partial,
                3 => StorageKind::Whole,
                _ => return None,
            },
            pack: u32::from_le_bytes(*pack),
            offset: u64::from_le_bytes(*offset),
            len: u64::from_le_bytes(*rest.first_chunk()?),
        })
    }
}
