//! The mount root: one fixed directory, or the store's roots by name.
//!
//! Roots come and go while the mount is up. Each (name, node) pair that was ever seen keeps its
//! index for the life of the mount. So an index means one thing for ever, a listing can be
//! continued, and ids that the kernel holds stay valid. A name that now stands for another node
//! gets another index.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::nodes::InodeTable;
use super::nodes::numbering::InodeNumbering;
use super::root_lookup::RootListing;
use crate::castore::{Digest, Name, Node, Root};

/// What a mount shows at its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountRoot {
    /// The store's roots, by name.
    Roots {
        /// What listing them gives; lookups find them in any case.
        list: RootListing,
    },
    /// One directory.
    Directory {
        /// Its digest.
        digest: Digest,
        /// Its size as the node states it.
        size: u64,
    },
}

/// How the roots differ from what the kernel may have cached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootChanges {
    /// Names that are gone, or stand for something else now.
    pub stale: Vec<Name>,
    /// Whether the listing has changed.
    pub listing: bool,
}

/// A root that the mount has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenRoot {
    /// Its index among all that the mount has seen.
    pub index: u32,
    /// Its inode number.
    pub ino: u64,
    /// The root as it was when it was seen.
    pub root: Root,
}

/// The roots that the mount has seen.
pub(super) struct MountedRoots(RwLock<SeenRoots>);

struct SeenRoots {
    /// Every (name, node) ever seen, and whether it is still current.
    all: Vec<(SeenRoot, bool)>,
    /// The index of each current name.
    current: HashMap<Name, u32>,
    /// Changes of which the kernel has not been notified.
    changes: RootChanges,
    /// Whether the kernel may have a cached listing. To invalidate one that it does not have would
    /// do harm: it would also drop the mount root's attributes while they are on their way, and
    /// without them only the superuser has access.
    listed: bool,
    numbering: Arc<InodeNumbering>,
    /// Where the next process finds them, if there can be one.
    inode_table: Option<Arc<InodeTable>>,
}

impl MountedRoots {
    /// None yet. Their inode numbers come from `numbering`; the next process finds them in
    /// `inode_table`.
    pub(super) fn new(
        numbering: Arc<InodeNumbering>,
        inode_table: Option<Arc<InodeTable>>,
    ) -> Self {
        Self(RwLock::new(SeenRoots::new(numbering, inode_table)))
    }

    /// The roots that the previous process had seen, `all` of them with their inode numbers, and
    /// kept in `inode_table`. A change whose notification may have been lost counts as new.
    pub(super) fn take_over(
        all: Vec<(Root, u64)>,
        numbering: Arc<InodeNumbering>,
        inode_table: Arc<InodeTable>,
    ) -> Self {
        let mut seen = SeenRoots::new(numbering, Some(inode_table));
        for (root, ino) in all {
            let before = seen.current.get(&root.name).copied();
            if before.is_some() {
                seen.changes.stale.push(root.name.clone());
            }
            seen.push(root, ino, before);
        }
        seen.changes.listing = true;
        seen.listed = true;
        Self(RwLock::new(seen))
    }

    /// The index and inode number of `root`, which the store has just returned.
    pub(super) fn index(&self, root: &Root) -> (u32, u64) {
        let number = |seen: &SeenRoot| (seen.index, seen.ino);
        if let Some(seen) = self.0.read().find(root) {
            return number(seen);
        }
        let mut seen = self.0.write();
        if let Some(found) = seen.find(root) {
            return number(found);
        }
        let before = seen.current.get(&root.name).copied();
        // A listing that the kernel keeps lacks it, and no update will report it, since it is known
        // now.
        seen.changes.listing = true;
        seen.add(root.clone(), before)
    }

    /// Whether a root `name` has been seen and is current.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        Name::new(name).is_ok_and(|name| self.0.read().current.contains_key(&name))
    }

    /// The root with this index, as it was when it was seen.
    pub(super) fn get(&self, index: u32) -> Option<SeenRoot> {
        let seen = self.0.read();
        seen.all.get(index as usize).map(|(root, _)| root.clone())
    }

    /// Every root that was ever seen, in the order of the indices.
    pub(super) fn all(&self) -> Vec<Root> {
        let seen = self.0.read();
        seen.all.iter().map(|(seen, _)| seen.root.clone()).collect()
    }

    /// Whether the store has the root with this index, as far as is known.
    pub(super) fn is_current(&self, index: u32) -> bool {
        let seen = self.0.read();
        seen.all
            .get(index as usize)
            .is_some_and(|(_, current)| *current)
    }

    /// Takes over the store's present list.
    pub(super) fn update(&self, now: Vec<Root>) {
        let mut seen = self.0.write();
        let mut gone = std::mem::take(&mut seen.current);
        for root in now {
            match gone.remove(&root.name) {
                Some(index) if seen.all[index as usize].0.root.node == root.node => {
                    seen.current.insert(root.name, index);
                }
                before => {
                    seen.add(root, before);
                }
            }
        }
        for (name, index) in gone {
            seen.all[index as usize].1 = false;
            seen.changes.listing = true;
            seen.changes.stale.push(name);
        }
    }

    /// What has changed since the last call.
    pub(super) fn take_changes(&self) -> RootChanges {
        let mut seen = self.0.write();
        let mut changes = std::mem::take(&mut seen.changes);
        changes.listing &= seen.listed;
        changes
    }

    /// Notes that the kernel gets a listing.
    pub(super) fn list(&self) {
        if !self.0.read().listed {
            self.0.write().listed = true;
        }
    }

    /// The first current root at `index` or after it.
    pub(super) fn next(&self, index: u32) -> Option<SeenRoot> {
        let seen = self.0.read();
        let mut rest = seen.all.iter().skip(index as usize);
        rest.find(|(_, current)| *current)
            .map(|(root, _)| root.clone())
    }

    /// The number of roots that are directories.
    pub(super) fn subdirectories(&self) -> u32 {
        let seen = self.0.read();
        let is_directory = |(seen, current): &&(SeenRoot, bool)| {
            *current && matches!(seen.root.node, Node::Directory { .. })
        };
        seen.all.iter().filter(is_directory).count() as u32
    }
}

impl SeenRoots {
    fn new(numbering: Arc<InodeNumbering>, inode_table: Option<Arc<InodeTable>>) -> Self {
        Self {
            all: Vec::new(),
            current: HashMap::new(),
            changes: RootChanges::default(),
            listed: false,
            numbering,
            inode_table,
        }
    }

    fn find(&self, root: &Root) -> Option<&SeenRoot> {
        let index = *self.current.get(&root.name)?;
        let (seen, _) = self.all.get(index as usize)?;
        (seen.root.node == root.node).then_some(seen)
    }

    /// Adds `root` in the place of what its name stood for `before`; returns its index and inode
    /// number.
    fn add(&mut self, root: Root, before: Option<u32>) -> (u32, u64) {
        let ino = self.numbering.root();
        if let Some(inode_table) = &self.inode_table {
            inode_table.append_root(&root, ino);
        }
        (self.push(root, ino, before), ino)
    }

    fn push(&mut self, root: Root, ino: u64, before: Option<u32>) -> u32 {
        if let Some(before) = before {
            self.all[before as usize].1 = false;
            self.changes.stale.push(root.name.clone());
        }
        self.changes.listing = true;
        let index = self.all.len() as u32;
        self.current.insert(root.name.clone(), index);
        self.all.push((SeenRoot { index, ino, root }, true));
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str, content: &str) -> Root {
        Root {
            name: Name::new(name.as_bytes()).unwrap(),
            node: Node::File {
                digest: Digest::of(content.as_bytes()),
                size: content.len() as u64,
                executable: false,
            },
        }
    }

    fn listed(roots: &MountedRoots) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        while let Some(seen) = roots.next(all.last().map_or(0, |(last, _)| last + 1)) {
            all.push((seen.index, seen.root.name.to_string()));
        }
        all
    }

    #[test]
    fn a_listing_that_the_kernel_has_not_is_not_dropped() {
        let roots = MountedRoots::new(Arc::new(InodeNumbering::new(false, None)), None);
        roots.update(vec![root("a", "1")]);
        assert_eq!(roots.take_changes(), RootChanges::default());
        roots.list();
        roots.update(vec![root("a", "1"), root("b", "1")]);
        assert!(roots.take_changes().listing);
    }

    #[test]
    fn an_index_stays_with_what_it_was_given_to() {
        let roots = MountedRoots::new(Arc::new(InodeNumbering::new(false, None)), None);
        let came = RootChanges {
            stale: Vec::new(),
            listing: true,
        };
        roots.list();
        roots.update(vec![root("a", "1"), root("b", "1")]);
        assert_eq!(roots.take_changes(), came);
        assert_eq!(roots.index(&root("b", "1")), (1, 3));
        // b now stands for something else, a is gone, c is new.
        roots.update(vec![root("b", "2"), root("c", "1")]);
        let mut changes = roots.take_changes();
        changes.stale.sort();
        let stale: String = changes.stale.iter().map(Name::to_string).collect();
        assert_eq!((stale.as_str(), changes.listing), ("ab", true));
        assert_eq!(listed(&roots), [(2, "b".into()), (3, "c".into())]);
        assert_eq!(roots.get(1).map(|seen| seen.root), Some(root("b", "1")));
        assert_eq!(roots.index(&root("b", "2")), (2, 4));
        roots.update(vec![root("b", "2"), root("c", "1")]);
        assert_eq!(roots.take_changes(), RootChanges::default());
        // Looked up before it is listed.
        assert_eq!(roots.index(&root("d", "1")), (4, 6));
        assert_eq!(roots.take_changes(), came);
        assert_eq!(roots.index(&root("d", "2")), (5, 7));
        let mut changes = roots.take_changes();
        assert_eq!(changes.stale.pop(), Name::new(b"d").ok());
        assert!(changes.listing, "a listing from before does not have it");
        assert_eq!(listed(&roots).last(), Some(&(5, "d".into())));
    }
}
