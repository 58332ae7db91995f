//! What a file is, as far as sharing an inode goes.

use crate::castore::{Digest, NodeRef};

/// What makes two files one inode. The size belongs to it although the digest implies it: a
/// Directory can lie, and a lie must not spoil the file that others tell the truth about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Bytes, as the entry says.
    pub size: u64,
    /// Whether the file can be executed.
    pub executable: bool,
}

impl Content {
    /// The content of a node that is a file.
    pub fn of(node: NodeRef<'_>) -> Option<Self> {
        match node {
            NodeRef::File {
                digest,
                size,
                executable,
            } => Some(Self {
                digest,
                size,
                executable,
            }),
            _ => None,
        }
    }

    /// A digest is random enough to be its own hash.
    pub(super) fn hash(&self) -> u64 {
        let mut eight = [0; 8];
        eight.copy_from_slice(&self.digest.as_bytes()[8..16]);
        u64::from_le_bytes(eight) ^ u64::from(self.executable)
    }
}
