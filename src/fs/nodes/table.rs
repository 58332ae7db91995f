//! The table behind the lock of [`Nodes`](super::Nodes): slots, what finds them, and what ends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashTable;

use super::inode_table::{InodeTable, NameRange, SlotContent, SlotCounts};
use super::numbering::InodeNumbering;
use super::{DirectoryNode, MOUNT_ROOT};
use crate::castore::{Digest, Directory, NodeRef};
use crate::fs::node_id::{NodeId, NodePlace};

pub(super) struct NodeTable {
    pub(super) slots: Vec<Option<Box<NodeSlot>>>,
    pub(super) free: Vec<u32>,
    /// Slots by (parent slot, index in the parent).
    pub(super) children: HashTable<u32>,
    /// Bytes of the Directories in the slots.
    pub(super) resident: usize,
    /// Where the search for a Directory to drop continues.
    pub(super) hand: usize,
    /// Where the next process finds this table, if there can be one.
    pub(super) inode_table: Option<Arc<InodeTable>>,
    pub(super) numbering: Arc<InodeNumbering>,
}

/// A directory that the kernel knows.
pub(super) struct NodeSlot {
    pub(super) parent: u32,
    pub(super) index: u32,
    pub(super) ino: u64,
    /// The first inode number of what is in it; until its Directory was read, the number that its
    /// parent's range has for it.
    pub(super) numbers: ChildNumbers,
    pub(super) digest: Digest,
    /// The size that the parent's entry states: advisory, shown by stat.
    pub(super) size: u64,
    pub(super) counts: SlotCounts,
    /// Slots whose parent this is. Not part of what the peer can take back: a guest that forgets
    /// more than it looked up must not free a slot that still has children.
    pub(super) children: u32,
    pub(super) directory: Option<Directory>,
    /// Whether the Directory was used since the hand last passed.
    pub(super) used: AtomicBool,
    /// Whether its last listing omitted attributes.
    pub(super) is_without_attributes: AtomicBool,
}

/// The inode numbers of what is in a directory.
#[derive(Clone, Copy)]
pub(super) enum ChildNumbers {
    /// Its Directory was not read yet. The first number that the parent's range has for it, or 0.
    Claimed(u64),
    /// They do not change any more.
    Assigned(NameRange),
}

impl NodeSlot {
    pub(super) fn new(content: SlotContent, counts: SlotCounts) -> Self {
        Self {
            parent: content.parent,
            index: content.index,
            ino: content.ino,
            numbers: ChildNumbers::Claimed(content.claim),
            digest: content.digest,
            size: content.size,
            counts,
            children: 0,
            directory: None,
            used: AtomicBool::new(false),
            is_without_attributes: AtomicBool::new(false),
        }
    }

    pub(super) fn known_as(&self, slot: u32) -> DirectoryNode {
        DirectoryNode {
            slot,
            ino: self.ino,
            names: match self.numbers {
                ChildNumbers::Assigned(names) => Some(names),
                ChildNumbers::Claimed(_) => None,
            },
            digest: self.digest,
            size: self.size,
            directory: self.directory.clone(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let is_zero = |count: &AtomicU64| count.load(Ordering::Relaxed) == 0;
        self.children == 0 && is_zero(self.counts.lookups()) && is_zero(self.counts.held())
    }
}

impl NodeTable {
    pub(super) fn new(
        inode_table: Option<Arc<InodeTable>>,
        numbering: Arc<InodeNumbering>,
    ) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            children: HashTable::new(),
            resident: 0,
            hand: 0,
            inode_table,
            numbering,
        }
    }

    /// The counts of a slot that is about to be used.
    pub(super) fn claim(&self, slot: u32, content: &SlotContent) -> SlotCounts {
        match &self.inode_table {
            Some(inode_table) => inode_table.claim(slot, content),
            None => SlotCounts::own(),
        }
    }

    pub(super) fn slot(&self, slot: u32) -> Option<&NodeSlot> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> Option<&mut NodeSlot> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Counts one lookup of an entry.
    pub(super) fn hold(&self, id: NodeId) {
        if let Some(NodePlace::Entry { slot, .. }) = id.place()
            && let Some(node) = self.slot(slot)
        {
            node.counts.held().fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn find_child(&self, parent: u32, index: u32) -> Option<(u32, &NodeSlot)> {
        let slot = *self.children.find(child_hash(parent, index), |&slot| {
            self.slot(slot)
                .is_some_and(|node| node.parent == parent && node.index == index)
        })?;
        Some((slot, self.slot(slot)?))
    }

    /// The known directories in the one in `slot`, from the entry at `first` on. None if its
    /// Directory is not in memory.
    pub(super) fn known_below(&self, slot: u32, first: u32) -> impl Iterator<Item = u32> {
        let directory = self.slot(slot).and_then(|node| node.directory.as_ref());
        let entries = directory.into_iter().flat_map(move |directory| {
            (first..directory.len() as u32)
                .filter_map(|index| Some((index, directory.get(index as usize)?)))
        });
        let is_directory = |node: NodeRef<'_>| matches!(node, NodeRef::Directory { .. });
        entries
            .filter(move |(_, entry)| is_directory(entry.node))
            .filter_map(move |(index, _)| Some(self.find_child(slot, index)?.0))
    }

    pub(super) fn add_child(&mut self, content: SlotContent) -> u32 {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        let (parent, index) = (content.parent, content.index);
        if let Some(parent) = self.slot_mut(parent) {
            parent.children += 1;
        }
        let counts = self.claim(slot, &content);
        let node = Some(Box::new(NodeSlot::new(content, counts)));
        match self.slots.get_mut(slot as usize) {
            Some(place) => *place = node,
            None => self.slots.push(node),
        }
        self.index_child(slot, parent, index);
        slot
    }

    pub(super) fn index_child(&mut self, slot: u32, parent: u32, index: u32) {
        let slots = &self.slots;
        self.children
            .insert_unique(child_hash(parent, index), slot, |&slot| {
                slots[slot as usize]
                    .as_ref()
                    .map_or(0, |node| child_hash(node.parent, node.index))
            });
    }

    /// Removes the slot if the kernel does not know it, then its ancestors likewise.
    pub(super) fn drop_idle(&mut self, mut slot: u32) {
        while slot != MOUNT_ROOT && self.slot(slot).is_some_and(NodeSlot::is_idle) {
            self.drop_directory(slot);
            let Some(node) = self.slots[slot as usize].take() else {
                return;
            };
            if let Ok(entry) = self
                .children
                .find_entry(child_hash(node.parent, node.index), |&child| child == slot)
            {
                entry.remove();
            }
            self.free.push(slot);
            if let Some(inode_table) = &self.inode_table {
                inode_table.release(slot);
            }
            if let Some(parent) = self.slot_mut(node.parent) {
                parent.children -= 1;
            }
            slot = node.parent;
        }
        self.give_back();
    }

    /// Returns memory after many nodes have gone.
    pub(super) fn give_back(&mut self) {
        const KEEP: usize = 1024;
        if self.slots.len() > KEEP && self.free.len() > self.slots.len() / 4 * 3 {
            let used = self.slots.iter().rposition(Option::is_some).unwrap_or(0) + 1;
            if used <= self.slots.len() / 2 {
                self.slots.truncate(used);
                self.slots.shrink_to_fit();
                self.free.retain(|&slot| (slot as usize) < used);
                self.free.shrink_to_fit();
                if let Some(inode_table) = &self.inode_table {
                    inode_table.trim(used);
                }
            }
        }
        let Self {
            slots, children, ..
        } = self;
        if children.capacity() > KEEP && children.len() < children.capacity() / 4 {
            children.shrink_to(children.len() * 2, |&slot| {
                slots[slot as usize]
                    .as_ref()
                    .map_or(0, |node| child_hash(node.parent, node.index))
            });
        }
    }

    /// Caches `directory` in `slot`, and fixes the numbers of its entries.
    pub(super) fn keep(&mut self, slot: u32, directory: Directory) -> Option<DirectoryNode> {
        let Self {
            slots,
            numbering,
            resident,
            ..
        } = self;
        let node = slots.get_mut(slot as usize)?.as_deref_mut()?;
        if let ChildNumbers::Claimed(first) = node.numbers {
            let names = numbering.range(node.ino, first, node.size / 2, &directory);
            node.numbers = ChildNumbers::Assigned(names);
        }
        // Not marked as used before its second use: a walk must not drive out what is in use.
        if node.directory.is_none() {
            *resident += directory.resident_bytes();
            node.directory = Some(directory);
        }
        Some(node.known_as(slot))
    }

    /// Drops Directories until the limit is kept, but not the one in `keep`.
    pub(super) fn shrink(&mut self, limit: usize, keep: u32) {
        // Twice around the clock has passed every slot once with its mark cleared.
        let mut steps = 2 * self.slots.len();
        while self.resident > limit && steps > 0 {
            steps -= 1;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = self.hand as u32;
            if slot == keep {
                continue;
            }
            if let Some(node) = self.slot_mut(slot)
                && node.directory.is_some()
                && !std::mem::take(node.used.get_mut())
            {
                self.drop_directory(slot);
            }
        }
    }

    /// Takes the Directory out of a slot.
    pub(super) fn drop_directory(&mut self, slot: u32) {
        let Some(directory) = self.slot_mut(slot).and_then(|node| node.directory.take()) else {
            return;
        };
        self.resident -= directory.resident_bytes();
    }
}

fn child_hash(parent: u32, index: u32) -> u64 {
    // Multiplying by an odd constant carries both upwards; folding brings them back down.
    let spread = (u64::from(parent) << 32 | u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ spread >> 32
}
