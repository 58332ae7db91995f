//! The node table: the inodes that the kernel knows.
//!
//! A slot for every directory that the kernel holds (or one of whose entries it holds); files and
//! symlinks are places in a slot ([`NodeId`]) and have no state of their own. Lookup counts are
//! kept by slot: one for the directory itself, one for all its entries together. When both are 0
//! the slot goes, and with it the directory's bytes.
//!
//! **Nodes never share an inode**, even with equal contents: software takes two names of one inode
//! for one file ([`numbering`]), and the kernel keeps one dentry per directory
//! inode, so that looking up a second directory of the same inode would move the first one away
//! from its users.
//!
//! **Memory is bounded** by a limit on the bytes of cached Directories. The kernel forgets only
//! under its own memory pressure, so a long walk would otherwise keep every Directory ever seen.
//! Beyond the limit, Directories that were not used since the hand of the clock last passed are
//! dropped from their slots; they are read again when needed.

mod inode_table;
pub(super) mod numbering;
mod table;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use super::node_id::{NodeId, NodePlace};
use crate::castore::{Digest, Directory};

use inode_table::SlotContent;
pub(super) use inode_table::{
    AssignedNumber, NameRange, OpenFile, PreviousOpenFiles, Registration,
};
pub use inode_table::{InodeTable, InodeTableError};
use numbering::{InodeNumbering, ROOT_INO};
use table::{NodeSlot, NodeTable};

/// The slot of the mount root.
const MOUNT_ROOT: u32 = 0;

/// The directories that the kernel knows.
pub(super) struct Nodes {
    table: RwLock<NodeTable>,
    /// Bytes of Directories to keep, at most.
    limit: usize,
    /// Directories to know at once, at most.
    most: usize,
}

/// What the table has about a directory.
#[derive(Clone, Debug)]
pub(super) struct DirectoryNode {
    /// Its slot.
    pub slot: u32,
    /// Its inode number.
    pub ino: u64,
    /// The inode numbers of what is in it, once its Directory was read.
    pub names: Option<NameRange>,
    /// Its digest.
    pub digest: Digest,
    /// Its size as `stat` shows it.
    pub size: u64,
    /// Its Directory, if it is in memory.
    pub directory: Option<Directory>,
}

/// How many nodes there are, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCount {
    /// Directories that the kernel knows.
    pub directories: usize,
    /// Bytes of the Directories in memory.
    pub directory_bytes: usize,
    /// Bytes of the table itself.
    pub table_bytes: usize,
}

impl Nodes {
    /// A table with only the mount root: the directory of `digest` (for a mount that shows roots,
    /// any digest: it is never read), whose inodes have the numbers that `numbering` gives. Keeps
    /// at most `limit` bytes of Directories, and the hand-over state in `inode_table`.
    pub(super) fn new(
        digest: Digest,
        size: u64,
        limit: usize,
        numbering: Arc<InodeNumbering>,
        inode_table: Option<Arc<InodeTable>>,
    ) -> Self {
        let mut table = NodeTable::new(inode_table, numbering);
        let mount_root = SlotContent {
            parent: MOUNT_ROOT,
            index: 0,
            ino: ROOT_INO,
            claim: 0,
            digest,
            size,
        };
        let counts = table.claim(MOUNT_ROOT, &mount_root);
        // The kernel never forgets the mount root.
        counts.lookups().store(1, Ordering::Relaxed);
        table
            .slots
            .push(Some(Box::new(NodeSlot::new(mount_root, counts))));
        Self {
            table: RwLock::new(table),
            limit,
            most: usize::MAX,
        }
    }

    /// The table that the previous process handed over in `inode_table`, and the `numbering` that it left
    /// there.
    pub(super) fn take_over(
        digest: Digest,
        limit: usize,
        numbering: Arc<InodeNumbering>,
        inode_table: Arc<InodeTable>,
    ) -> Result<Self, InodeTableError> {
        let content = inode_table.slots()?;
        let mut table = NodeTable::new(Some(inode_table), numbering);
        match content.first() {
            Some((MOUNT_ROOT, mount_root, _)) if mount_root.digest == digest => {}
            _ => return Err(InodeTableError::Damaged("it is another tree's")),
        }
        for (slot, content, counts) in content {
            let skipped = table.slots.len() as u32..slot;
            table.free.extend(skipped);
            table.slots.resize_with(slot as usize, || None);
            table
                .slots
                .push(Some(Box::new(NodeSlot::new(content, counts))));
        }
        for slot in 1..table.slots.len() as u32 {
            let Some(node) = table.slot(slot) else {
                continue;
            };
            let (parent, index) = (node.parent, node.index);
            match table.slot_mut(parent) {
                Some(parent) => parent.children += 1,
                None => return Err(InodeTableError::Damaged("a directory's parent is gone")),
            }
            table.index_child(slot, parent, index);
        }
        // A process that dies between reporting a node to the kernel and dropping it leaves the
        // slot idle.
        for slot in 1..table.slots.len() as u32 {
            table.drop_idle(slot);
        }
        Ok(Self {
            table: RwLock::new(table),
            limit,
            most: usize::MAX,
        })
    }

    /// What is known of the directory in `slot`.
    pub(super) fn directory(&self, slot: u32) -> Option<DirectoryNode> {
        let table = self.table.read();
        let node = table.slot(slot)?;
        node.used.store(true, Ordering::Relaxed);
        Some(node.known_as(slot))
    }

    /// Notes whether the cached listing of the directory in `slot` omits attributes.
    pub(super) fn set_without_attributes(&self, slot: u32, is_without_attributes: bool) {
        if let Some(node) = self.table.read().slot(slot) {
            node.is_without_attributes
                .store(is_without_attributes, Ordering::Relaxed);
        }
    }

    /// Whether the cached listing of the directory in `slot` omits attributes.
    pub(super) fn is_without_attributes(&self, slot: u32) -> bool {
        let table = self.table.read();
        let node = table.slot(slot);
        node.is_some_and(|node| node.is_without_attributes.load(Ordering::Relaxed))
    }

    /// The directories whose cached listings omit attributes, among that in `slot`, those in it and
    /// those after it in its parent: `most` at most. They count as listed in full from now on.
    pub(super) fn take_without_attributes(&self, slot: u32, most: usize) -> Vec<u32> {
        let table = self.table.read();
        let Some(node) = table.slot(slot) else {
            return Vec::new();
        };
        let inside = table.known_below(slot, 0);
        let following = table.known_below(node.parent, node.index + 1);
        let is_without_attributes = |slot: &u32| {
            let node = table.slot(*slot);
            node.is_some_and(|node| node.is_without_attributes.swap(false, Ordering::Relaxed))
        };
        let all = std::iter::once(slot).chain(inside).chain(following);
        all.filter(is_without_attributes).take(most).collect()
    }

    /// Whether the kernel can know `id`: its slot is in use.
    pub(super) fn may_be_known(&self, id: NodeId) -> bool {
        let Some(NodePlace::Directory(slot) | NodePlace::Entry { slot, .. }) = id.place() else {
            return false;
        };
        self.table.read().slot(slot).is_some()
    }

    /// As [`directory`](Self::directory), and the slot stays that directory's until an entry of it
    /// is forgotten once. For callers that answer no request: during a request, the kernel holds
    /// the node.
    pub(super) fn hold(&self, slot: u32) -> Option<DirectoryNode> {
        let table = self.table.read();
        let node = table.slot(slot)?;
        node.counts.held().fetch_add(1, Ordering::Relaxed);
        Some(node.known_as(slot))
    }

    /// Caches `directory` in `slot`; returns what is then known of it, including its entries'
    /// numbers. Nothing if there is no such slot.
    pub(super) fn keep(&self, slot: u32, directory: Directory) -> Option<DirectoryNode> {
        let mut table = self.table.write();
        let known = table.keep(slot, directory);
        table.shrink(self.limit, slot);
        known
    }

    /// The slot and inode number of the directory that the one in `slot` is in; the mount root is in itself.
    pub(super) fn slot_above(&self, slot: u32) -> Option<(u32, u64)> {
        let table = self.table.read();
        let above = table.slot(slot)?.parent;
        Some((above, table.slot(above)?.ino))
    }

    /// Whether the directory in `slot` is in the mount root.
    pub(super) fn is_below_mount_root(&self, slot: u32) -> bool {
        let table = self.table.read();
        let parent = table.slot(slot).map(|node| node.parent);
        slot != MOUNT_ROOT && parent == Some(MOUNT_ROOT)
    }

    /// The slot of the root node at `index`, if that is a directory that the kernel knows.
    pub(super) fn root_slot(&self, index: u32) -> Option<u32> {
        let table = self.table.read();
        Some(table.find_child(MOUNT_ROOT, index)?.0)
    }

    /// The id of the file or symlink at `index` in the directory in `slot`, counting one lookup.
    pub(super) fn leaf(&self, slot: u32, index: u32) -> NodeId {
        let id = NodeId::entry(slot, index);
        self.table.read().hold(id);
        id
    }

    /// The directory at `index` in the directory in `slot`, counting one lookup. Its inode number
    /// is `ino`, and that of the first name in it `claim`, if its parent's range has numbers for
    /// it. Nothing if there are as many directories as allowed.
    pub(super) fn child(
        &self,
        (slot, index): (u32, u32),
        ino: u64,
        claim: impl FnOnce() -> u64,
        digest: &Digest,
        size: u64,
    ) -> Option<DirectoryNode> {
        {
            let table = self.table.read();
            if let Some((child, node)) = table.find_child(slot, index) {
                node.counts.lookups().fetch_add(1, Ordering::Relaxed);
                return Some(node.known_as(child));
            }
        }
        let mut table = self.table.write();
        let child = match table.find_child(slot, index) {
            Some((child, _)) => child,
            None if table.slots.len() - table.free.len() >= self.most => return None,
            None => table.add_child(SlotContent {
                parent: slot,
                index,
                ino,
                claim: claim(),
                digest: *digest,
                size,
            }),
        };
        let node = table.slot(child).expect("found or added just now");
        node.counts.lookups().fetch_add(1, Ordering::Relaxed);
        Some(node.known_as(child))
    }

    /// Whether the kernel knows the root node at `index`, if that is a directory.
    pub(super) fn knows_root(&self, index: u32) -> bool {
        self.root_slot(index).is_some()
    }

    /// With at most `most` directories known at once.
    pub(super) fn bounded(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Takes back `count` lookups of `id`.
    pub(super) fn forget(&self, id: NodeId, count: u64) {
        self.forget_all([(id, count)]);
    }

    /// Takes back lookups of many nodes.
    pub(super) fn forget_all(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        let mut idle = Vec::new();
        {
            let table = self.table.read();
            for (id, count) in forgotten {
                let Some(place) = id.place() else { continue };
                let (NodePlace::Directory(slot) | NodePlace::Entry { slot, .. }) = place;
                let Some(node) = table.slot(slot) else {
                    continue;
                };
                let counter = match place {
                    NodePlace::Directory(_) => node.counts.lookups(),
                    NodePlace::Entry { .. } => node.counts.held(),
                };
                // The kernel forgets no more than it looked up; a peer that does (a hostile guest)
                // must not wrap the counter.
                let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                    Some(now.saturating_sub(count))
                });
                if node.is_idle() && slot != MOUNT_ROOT {
                    idle.push(slot);
                }
            }
        }
        if !idle.is_empty() {
            let mut table = self.table.write();
            idle.into_iter().for_each(|slot| table.drop_idle(slot));
        }
    }

    /// The names that lead to `id`, from the mount root: indices of the entries, with the Directory
    /// that each is in if that is in memory. For log lines.
    pub(super) fn trail(&self, id: NodeId) -> Vec<(Option<Directory>, u32)> {
        let table = self.table.read();
        let mut trail = Vec::new();
        let mut step = match id.place() {
            Some(NodePlace::Directory(slot)) => table.slot(slot).map(|node| (slot, node)),
            Some(NodePlace::Entry { slot, index }) => table.slot(slot).map(|node| {
                trail.push((node.directory.clone(), index));
                (slot, node)
            }),
            None => None,
        };
        while let Some((slot, node)) = step {
            if slot == MOUNT_ROOT {
                break;
            }
            let parent = table.slot(node.parent);
            trail.push((
                parent.and_then(|parent| parent.directory.clone()),
                node.index,
            ));
            step = parent.map(|parent| (node.parent, parent));
        }
        trail.reverse();
        trail
    }

    /// The digests of the directories that contain the one in `slot`, from the mount root.
    pub(super) fn ancestors(&self, slot: u32) -> Vec<Digest> {
        let table = self.table.read();
        let mut ancestors = Vec::new();
        let mut child = slot;
        while child != MOUNT_ROOT
            && let Some(node) = table.slot(child)
            && let Some(parent) = table.slot(node.parent)
        {
            ancestors.push(parent.digest);
            child = node.parent;
        }
        ancestors.reverse();
        ancestors
    }

    /// How many nodes there are.
    pub(super) fn count(&self) -> NodeCount {
        let table = self.table.read();
        let directories = table.slots.len() - table.free.len();
        NodeCount {
            directories,
            directory_bytes: table.resident,
            table_bytes: directories * size_of::<NodeSlot>()
                + table.slots.capacity() * size_of::<Option<Box<NodeSlot>>>()
                + table.free.capacity() * size_of::<u32>()
                + table.children.allocation_size(),
        }
    }
}

#[cfg(test)]
mod tests;
