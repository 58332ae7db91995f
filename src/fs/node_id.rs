//! Node ids: how FUSE messages name an inode.
//!
//! An id is a place: the slot of a directory node in the upper half, and in the lower half 1 for
//! that directory itself or 2 + n for its n-th entry. Only directories have state; a file or
//! symlink is a place in its directory's bytes and needs no memory. Slot 0 is the mount root, which
//! makes its id 1, as FUSE demands.

use std::fmt;

/// An inode as the kernel names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u64);

/// What a [`NodeId`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePlace {
    /// The directory in a slot.
    Directory(u32),
    /// The entry of the directory in `slot` that stands at `index`.
    Entry {
        /// The directory's slot.
        slot: u32,
        /// The entry's place in the order of names.
        index: u32,
    },
}

impl NodeId {
    /// The mount root.
    pub const ROOT: Self = Self(1);

    /// The directory in `slot`.
    pub fn directory(slot: u32) -> Self {
        Self(u64::from(slot) << 32 | 1)
    }

    /// The `index`-th entry of the directory in `slot`. A Directory is bounded so that its index
    /// fits.
    pub fn entry(slot: u32, index: u32) -> Self {
        Self(u64::from(slot) << 32 | (u64::from(index) + 2))
    }

    /// What this id names; nothing if it was never given out.
    pub fn place(self) -> Option<NodePlace> {
        let slot = (self.0 >> 32) as u32;
        match self.0 as u32 {
            0 => None,
            1 => Some(NodePlace::Directory(slot)),
            rest => Some(NodePlace::Entry {
                slot,
                index: rest - 2,
            }),
        }
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl From<NodeId> for u64 {
    fn from(id: NodeId) -> u64 {
        id.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            Some(NodePlace::Directory(slot)) => write!(f, "node {slot}"),
            Some(NodePlace::Entry { slot, index }) => write!(f, "node {slot}.{index}"),
            None => write!(f, "node id {:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_the_place_they_were_made_of() {
        assert_eq!(NodeId::directory(0), NodeId::ROOT);
        for slot in [0, 1, 77, u32::MAX] {
            assert_eq!(
                NodeId::directory(slot).place(),
                Some(NodePlace::Directory(slot))
            );
            for index in [0, 1, u32::MAX - 2] {
                assert_eq!(
                    NodeId::entry(slot, index).place(),
                    Some(NodePlace::Entry { slot, index })
                );
            }
        }
        assert_eq!(NodeId::from(7 << 32).place(), None);
    }
}
