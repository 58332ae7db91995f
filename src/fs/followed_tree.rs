//! A mount root that follows the name of a root.
//!
//! **Problem.** The kernel knows the mount root as node 1 for as long as the mount lives, and a name can stand
//! for another tree at any moment. What programs have open of the tree before must stay what it is.
//!
//! **Mechanism.** Each tree that the name has stood for is a *version*. A version is a root that the mount has
//! seen ([`MountedRoots`](super::mount_root)), so it has an index, an inode number and with that a range of
//! inode numbers of its own, and is in the hand-over state. Its directory is a child of slot 0, as that of a
//! root is where roots are shown; the last version is what node 1 means. So node ids of an earlier version
//! stay valid until the kernel forgets them, and no number is given twice.
//!
//! **Invariant.** The slot of the present version is never free, and neither is that of a version for which a
//! request is answered ([`EnteredDirectory`]): an id of a slot that another directory gets would lead to
//! another file.
//!
//! After [`CastoreFs::show`] the kernel has to drop the names of both trees: those that it has of the
//! earlier one, and those that did not exist in it. It locks the directory for that, so that a look-up
//! that was answered from the earlier version is over by then. So only a transport that notifies its kernel
//! shows another version.

use std::io;

use parking_lot::RwLock;
use thiserror::Error;

use super::CastoreFs;
use super::errno::failure;
use super::mount_root::{MountRoot, RootChanges};
use super::node_id::NodeId;
use super::nodes::Nodes;
use super::nodes::numbering::ROOT_INO;
use crate::castore::{Digest, Directory, Name, Node, Root};
use crate::store::{self, Blocking};
use crate::tree::Target;

/// The version that is shown.
pub(super) struct FollowedTree(RwLock<TreeVersion>);

/// A tree that the name has stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TreeVersion {
    /// Its index among the roots that the mount has seen.
    pub index: u32,
    /// Its inode number there; programs see [`ROOT_INO`].
    pub ino: u64,
    /// The digest of its Directory.
    pub digest: Digest,
    /// The size that its node states.
    pub size: u64,
}

/// Why another tree cannot be shown.
#[derive(Debug, Error)]
pub enum ShowError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A Directory is not in the store.
    #[error("the store does not have the directory {0}")]
    Absent(Digest),
    /// The node table has no room for another directory.
    #[error("the node table is full: the kernel holds as many directories as it has room for")]
    Full,
}

/// A directory in which a request looks, whose slot is not freed meanwhile.
pub(super) struct EnteredDirectory<'a> {
    pub slot: u32,
    /// The version, if it is the mount root of a mount that follows a name.
    pub version: Option<TreeVersion>,
    nodes: &'a Nodes,
}

impl Drop for EnteredDirectory<'_> {
    fn drop(&mut self) {
        if self.version.is_some() {
            self.nodes.forget(NodeId::directory(self.slot), 1);
        }
    }
}

impl FollowedTree {
    pub(super) fn new(version: TreeVersion) -> Self {
        Self(RwLock::new(version))
    }

    pub(super) fn version(&self) -> TreeVersion {
        *self.0.read()
    }
}

impl Nodes {
    /// The slot of `version`, counting one lookup; nothing if the kernel knows as many directories as it may.
    fn version(&self, version: &TreeVersion) -> Option<u32> {
        let TreeVersion {
            index,
            ino,
            digest,
            size,
        } = version;
        let found = self.child((0, *index), *ino, || 0, digest, *size)?;
        Some(found.slot)
    }
}

impl CastoreFs {
    /// What the mount root follows, if it is one of a directory after the other.
    pub fn followed_target(&self) -> Option<&Target> {
        self.options.follow.as_ref().filter(|_| self.follows())
    }

    /// Whether the mount root has followed the name of a root, in this process or an earlier one.
    pub fn follows(&self) -> bool {
        self.followed.is_some()
    }

    /// The digest and size of the directory in the mount root, if it is one.
    pub fn shown_directory(&self) -> Option<(Digest, u64)> {
        match (&self.followed, &self.options.mount_root) {
            (Some(followed), _) => {
                let version = followed.version();
                Some((version.digest, version.size))
            }
            (None, MountRoot::Directory { digest, size }) => Some((*digest, *size)),
            (None, MountRoot::Roots { .. }) => None,
        }
    }

    /// The index of the version that is shown; 0 if the mount root follows nothing.
    pub(super) fn shown_version(&self) -> u32 {
        let followed = self.followed.as_ref();
        followed.map_or(0, |followed| followed.version().index)
    }

    /// Makes the present version's slot, which is there from now on. To be called once.
    pub(super) fn begin_following(self) -> Self {
        if let Some(followed) = &self.followed {
            let version = followed.version();
            let knows = self.nodes.knows_root(version.index);
            // The count of the previous process is in the hand-over state.
            if !knows {
                self.nodes.version(&version);
            }
        }
        self
    }

    /// The directory that a request names by `slot`.
    pub(super) fn enter(&self, slot: u32) -> io::Result<EnteredDirectory<'_>> {
        let nodes = &self.nodes;
        let Some(followed) = self.followed.as_ref().filter(|_| slot == 0) else {
            return Ok(EnteredDirectory {
                slot,
                version: None,
                nodes,
            });
        };
        let version = followed.version();
        let slot = nodes.version(&version).ok_or(failure(libc::ENOMEM))?;
        Ok(EnteredDirectory {
            slot,
            version: Some(version),
            nodes,
        })
    }

    /// The id by which the kernel knows the directory in `slot`.
    pub(super) fn kernel_id(&self, slot: u32) -> NodeId {
        match self.is_version(slot) {
            true => NodeId::ROOT,
            false => NodeId::directory(slot),
        }
    }

    /// Whether the directory in `slot` is a version of the followed tree.
    fn is_version(&self, slot: u32) -> bool {
        self.followed.is_some() && self.nodes.is_below_mount_root(slot)
    }

    /// The inode numbers of the directory in `slot` and of the one above it, as programs see them.
    pub(super) fn inos(&self, slot: u32, ino: u64) -> [u64; 2] {
        if self.is_version(slot) {
            return [ROOT_INO; 2];
        }
        let above = self.nodes.slot_above(slot);
        let above = match above {
            Some((above, _)) if self.is_version(above) => Some(ROOT_INO),
            above => above.map(|(_, ino)| ino),
        };
        [ino, above.unwrap_or(ino)]
    }

    /// Holds the directory `digest` of `size` in the stores: it may be shown next.
    pub fn hold_next(&self, digest: Digest, size: u64) {
        self.in_use.hold_next(&Node::Directory { digest, size });
    }

    /// Makes the directory `digest` of `size` the last version, also for the next process: to be shown at once.
    pub(super) fn next_version(&self, digest: Digest, size: u64) -> TreeVersion {
        let node = Node::Directory { digest, size };
        let name = self.options.follow.as_ref().and_then(Target::root_name);
        let root = Root {
            name: name.cloned().unwrap_or_else(any_name),
            node: node.clone(),
        };
        let (index, ino) = self.roots.index(&root);
        self.in_use.hold_root(index, &node);
        TreeVersion {
            index,
            ino,
            digest,
            size,
        }
    }

    /// Shows the directory `digest` of `size` in the mount root from now on, if the mount follows a name.
    /// Returns what the kernel has to drop then. Blocks.
    pub fn show(&self, digest: Digest, size: u64) -> Result<RootChanges, ShowError> {
        let Some(followed) = &self.followed else {
            return Ok(RootChanges::default());
        };
        let before = followed.version();
        if before.digest == digest {
            return Ok(RootChanges::default());
        }
        let directories = [
            self.version_directory(before.index, &before.digest)?,
            self.store_directory(&digest)?,
        ];
        // Nothing is left that can fail: only guests know a bounded number of directories.
        let next = self.next_version(digest, size);
        let slot = self.nodes.version(&next).ok_or(ShowError::Full)?;
        self.nodes.keep(slot, directories[1].clone());
        *followed.0.write() = next;
        if let Some(slot) = self.nodes.root_slot(before.index) {
            self.nodes.forget(NodeId::directory(slot), 1);
        }
        Ok(changes(&directories))
    }

    /// What the kernel may have to drop that the previous process has shown, whose notifications may be lost.
    pub fn changes_before_take_over(&self) -> Result<RootChanges, ShowError> {
        let Some(followed) = &self.followed else {
            return Ok(RootChanges::default());
        };
        let version = followed.version();
        let before = version.index.checked_sub(1);
        let before = before.and_then(|before| self.roots.get(before));
        let before = before.and_then(|before| Some((before.index, before.root.node.digest()?)));
        let Some((index, digest)) = before else {
            return Ok(RootChanges::default());
        };
        Ok(changes(&[
            self.version_directory(index, &digest)?,
            self.version_directory(version.index, &version.digest)?,
        ]))
    }

    /// The Directory `digest` of the version at `index`.
    fn version_directory(&self, index: u32, digest: &Digest) -> Result<Directory, ShowError> {
        let slot = self.nodes.root_slot(index);
        let known = slot.and_then(|slot| self.nodes.directory(slot)?.directory);
        if let Some(directory) = known {
            return Ok(directory);
        }
        self.store_directory(digest)
    }

    fn store_directory(&self, digest: &Digest) -> Result<Directory, ShowError> {
        let store = Blocking::new(self.store.clone(), self.waiting.runtime().clone());
        let found = store.directory(digest)?;
        found.ok_or(ShowError::Absent(*digest))
    }
}

/// All names of both Directories.
fn changes(directories: &[Directory; 2]) -> RootChanges {
    let entries = directories.iter().flat_map(Directory::iter);
    let names = entries.filter_map(|entry| Name::new(entry.name).ok());
    let mut stale: Vec<Name> = names.collect();
    stale.sort();
    stale.dedup();
    RootChanges {
        stale,
        listing: true,
    }
}

/// The name of a version where none is configured.
fn any_name() -> Name {
    Name::new(b"root").expect("four letters are a name")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::castore::SymlinkTarget;
    use crate::fs::{FsOptions, InodeTable, WaitingRequests};
    use crate::store::{MemoryStore, Store};

    #[test]
    fn what_was_held_and_not_shown_is_not_shown_by_the_next_process() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiting = || WaitingRequests::new(runtime.handle().clone());
        let store = Arc::new(MemoryStore::default());
        let ingest = store.ingest().unwrap();
        let versions = ["first", "second", "third"].map(|name| {
            let target = SymlinkTarget::new(b"target").unwrap();
            let name = Name::new(name.as_bytes()).unwrap();
            let entries = vec![(name, Node::Symlink { target })];
            let directory = Directory::from_entries(entries).unwrap();
            ingest.put_directory(&directory).unwrap();
            (directory.digest(), 1)
        });
        ingest.commit().unwrap();
        let options = |(digest, size)| FsOptions {
            mount_root: MountRoot::Directory { digest, size },
            follow: Some(Target::parse(b"name").unwrap()),
            ..FsOptions::default()
        };
        let inode_table = Arc::new(InodeTable::create().unwrap());
        let [first, second, third] = versions;
        let table = Some(inode_table.clone());
        let fs = CastoreFs::with_inode_table(store.clone(), options(first), waiting(), None, table);
        fs.hold_next(second.0, second.1);
        let take_over = || {
            let table = inode_table.clone();
            CastoreFs::take_over(store.clone(), options(first), waiting(), None, table).unwrap()
        };
        assert_eq!(take_over().shown_directory(), Some(first));
        fs.show(third.0, third.1).unwrap();
        let next = take_over();
        assert_eq!(next.shown_directory(), Some(third));
        let changes = next.changes_before_take_over().unwrap();
        assert_eq!(
            changes.stale,
            [Name::new(b"first").unwrap(), Name::new(b"third").unwrap()]
        );
    }
}
