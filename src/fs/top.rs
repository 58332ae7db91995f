//! The top of a mount: one fixed directory, or the store's root nodes by name.
//!
//! Root nodes come and go while the mount is up. Each (name, node) that was ever seen keeps its
//! index for the life of the mount, so an index names one thing for ever, a listing that was
//! begun can be continued, and ids that the kernel holds stay true: a name that now stands for
//! another node gets another index.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::nodes::Ledger;
use crate::castore::{Digest, Name, Node, Root};

/// What a mount shows at its top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Top {
    /// The store's root nodes, by name.
    Roots {
        /// Whether they can be listed; looked up they can always be.
        list: bool,
    },
    /// One directory.
    Directory {
        /// Its digest.
        digest: Digest,
        /// Its size as a node says it.
        size: u64,
    },
}

/// How the root nodes differ from what the kernel may know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootChanges {
    /// Names that are gone, or stand for something else now.
    pub stale: Vec<Name>,
    /// Whether the listing is another.
    pub listing: bool,
}

/// The root nodes that the mount has seen.
#[derive(Default)]
pub struct Roots(RwLock<Seen>);

#[derive(Default)]
struct Seen {
    /// Every (name, node) ever seen, and whether it is still so.
    all: Vec<(Root, bool)>,
    /// The index of each name that there is.
    current: HashMap<Name, u32>,
    /// What the kernel was not told of yet.
    changes: RootChanges,
    /// Whether the kernel may have a listing. To drop one that it has not would do harm: to the
    /// attributes of the top that are just on their way, without which nobody but root gets in.
    listed: bool,
    /// Where a successor finds them, if there can be one.
    ledger: Option<Arc<Ledger>>,
}

impl Roots {
    /// None yet; a successor finds them in `ledger`.
    pub fn new(ledger: Option<Arc<Ledger>>) -> Self {
        Self(RwLock::new(Seen {
            ledger,
            ..Seen::default()
        }))
    }

    /// Those that a predecessor had seen, `all` of them, and kept in `ledger`. What it may have
    /// failed to tell the kernel counts as changed.
    pub fn adopt(all: Vec<Root>, ledger: Arc<Ledger>) -> Self {
        let mut seen = Seen {
            ledger: Some(ledger),
            ..Seen::default()
        };
        for root in all {
            let before = seen.current.get(&root.name).copied();
            if before.is_some() {
                seen.changes.stale.push(root.name.clone());
            }
            seen.push(root, before);
        }
        seen.changes.listing = true;
        seen.listed = true;
        Self(RwLock::new(seen))
    }

    /// The index of `root`, which the store has just named.
    pub fn index(&self, root: &Root) -> u32 {
        if let Some(index) = self.0.read().find(root) {
            return index;
        }
        let mut seen = self.0.write();
        seen.find(root).unwrap_or_else(|| {
            let before = seen.current.get(&root.name).copied();
            // A listing that the kernel keeps lacks it, and no update will tell: it is known now.
            seen.changes.listing = true;
            seen.add(root.clone(), before)
        })
    }

    /// The root node with this index, as it was when it was seen.
    pub fn get(&self, index: u32) -> Option<Root> {
        let seen = self.0.read();
        seen.all.get(index as usize).map(|(root, _)| root.clone())
    }

    /// Takes over what the store has now.
    pub fn update(&self, now: Vec<Root>) {
        let mut seen = self.0.write();
        let mut gone = std::mem::take(&mut seen.current);
        for root in now {
            match gone.remove(&root.name) {
                Some(index) if seen.all[index as usize].0.node == root.node => {
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

    /// What has changed since this was last asked.
    pub fn take_changes(&self) -> RootChanges {
        let mut seen = self.0.write();
        let mut changes = std::mem::take(&mut seen.changes);
        changes.listing &= seen.listed;
        changes
    }

    /// Notes that the kernel gets a listing.
    pub fn list(&self) {
        if !self.0.read().listed {
            self.0.write().listed = true;
        }
    }

    /// The first root node that there is at `index` or after it, and where.
    pub fn next(&self, index: u32) -> Option<(u32, Root)> {
        let seen = self.0.read();
        let mut rest = seen.all.iter().enumerate().skip(index as usize);
        rest.find(|(_, (_, current))| *current)
            .map(|(index, (root, _))| (index as u32, root.clone()))
    }

    /// The number of root nodes that are directories.
    pub fn subdirectories(&self) -> u32 {
        let seen = self.0.read();
        let is_directory = |(root, current): &&(Root, bool)| {
            *current && matches!(root.node, Node::Directory { .. })
        };
        seen.all.iter().filter(is_directory).count() as u32
    }
}

impl Seen {
    fn find(&self, root: &Root) -> Option<u32> {
        let index = *self.current.get(&root.name)?;
        (self.all[index as usize].0.node == root.node).then_some(index)
    }

    /// Adds `root` in the place of what its name stood for `before`.
    fn add(&mut self, root: Root, before: Option<u32>) -> u32 {
        if let Some(ledger) = &self.ledger {
            ledger.append_root(&root);
        }
        self.push(root, before)
    }

    fn push(&mut self, root: Root, before: Option<u32>) -> u32 {
        if let Some(before) = before {
            self.all[before as usize].1 = false;
            self.changes.stale.push(root.name.clone());
        }
        self.changes.listing = true;
        let index = self.all.len() as u32;
        self.current.insert(root.name.clone(), index);
        self.all.push((root, true));
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

    fn listed(roots: &Roots) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        while let Some((index, root)) = roots.next(all.last().map_or(0, |(last, _)| last + 1)) {
            all.push((index, root.name.to_string()));
        }
        all
    }

    #[test]
    fn a_listing_that_the_kernel_has_not_is_not_dropped() {
        let roots = Roots::default();
        roots.update(vec![root("a", "1")]);
        assert_eq!(roots.take_changes(), RootChanges::default());
        roots.list();
        roots.update(vec![root("a", "1"), root("b", "1")]);
        assert!(roots.take_changes().listing);
    }

    #[test]
    fn an_index_stays_with_what_it_was_given_to() {
        let roots = Roots::default();
        let came = RootChanges {
            stale: Vec::new(),
            listing: true,
        };
        roots.list();
        roots.update(vec![root("a", "1"), root("b", "1")]);
        assert_eq!(roots.take_changes(), came);
        assert_eq!(roots.index(&root("b", "1")), 1);
        // b now stands for something else, a is gone, c is new.
        roots.update(vec![root("b", "2"), root("c", "1")]);
        let mut changes = roots.take_changes();
        changes.stale.sort();
        let stale: String = changes.stale.iter().map(Name::to_string).collect();
        assert_eq!((stale.as_str(), changes.listing), ("ab", true));
        assert_eq!(listed(&roots), [(2, "b".into()), (3, "c".into())]);
        assert_eq!(roots.get(1), Some(root("b", "1")));
        assert_eq!(roots.index(&root("b", "2")), 2);
        roots.update(vec![root("b", "2"), root("c", "1")]);
        assert_eq!(roots.take_changes(), RootChanges::default());
        // Looked up before it is listed.
        assert_eq!(roots.index(&root("d", "1")), 4);
        assert_eq!(roots.take_changes(), came);
        assert_eq!(roots.index(&root("d", "2")), 5);
        let mut changes = roots.take_changes();
        assert_eq!(changes.stale.pop(), Name::new(b"d").ok());
        assert!(changes.listing, "a listing from before does not have it");
        assert_eq!(listed(&roots).last(), Some(&(5, "d".into())));
    }
}
