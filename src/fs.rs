//! The file system: a castore in the form that the kernel needs.
//!
//! [`CastoreFs`] answers FUSE requests, from any transport. It knows stores only by their trait,
//! and holds no state for an open file: a read names the node, the node's place in its Directory
//! names the blob, and the store reads and verifies. OPEN and OPENDIR are answered "not
//! implemented", which makes the kernel stop sending them: its own page cache and directory cache
//! then serve everything that was read or listed once, without any request.
//!
//! All content is immutable, so every answer below a root may be cached for ever, names that do not
//! exist included. Only the set of roots can change: names in the root of a mount that shows roots
//! are looked up again when they were missing, and the transport notifies the kernel when the
//! store's roots change ([`CastoreFs::changed_roots`]).
//!
//! A failed request affects no other: the log names path, digest and reason, and the program gets
//! the errno that `errno` chooses.

mod attributes;
mod errno;
mod followed_tree;
mod image_pages;
mod images;
mod in_use;
mod listed_roots;
mod listing;
mod mount_root;
mod node_id;
mod nodes;
mod options;
mod page_cache_push;
mod passthrough;
mod readdirplus;
mod reading;
mod requests;
mod root_lookup;
mod slow;
mod waiting;
mod walk_prefetch;
mod warm_up;
mod xattr;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::Entry;

use crate::castore::{Digest, Directory, Node, NodeRef, Printable, Root};
use crate::store::{Answer, Error, LocalStore, Store};

pub use attributes::NodeOwner;
pub use followed_tree::ShowError;
pub use images::{ImageClosures, ImageCount, ImageRoots, PreparedImage};
pub use mount_root::{MountRoot, RootChanges};
pub use node_id::NodeId;
pub use nodes::{InodeTable, InodeTableError, NodeCount};
pub use options::{DEFAULT_DIRECTORY_LIMIT, FsOptions};
pub use page_cache_push::PageCache;
pub use passthrough::{
    BackingDevice, FileHandle, OpenCount, OpenReply, OpenRequest, Passthrough, ReadPath,
};
pub use root_lookup::{RootListing, RootNames, UnreachableLookup};
pub use waiting::{ObjectArrival, ParkedState, ParkedWait, WaitingRequests, parkable};
pub use warm_up::{WarmUpCount, WarmUpOptions};

use errno::failure;
use followed_tree::{FollowedTree, TreeVersion};
use images::MountImages;
use in_use::ObjectsInUse;
use listed_roots::ListedRoots;
use mount_root::{MountedRoots, SeenRoot};
use node_id::NodePlace;
use nodes::NameRange;
use nodes::numbering::{InodeNumbering, ROOT_INO};
use nodes::{DirectoryNode, Nodes};
use page_cache_push::PageCachePush;
use readdirplus::ReaddirplusHeuristic;
use root_lookup::RootLookupPause;
use waiting::{AwaitedObject, FetchedObject, NotInPlace};
use walk_prefetch::WalkPrefetch;
use warm_up::AccessRecorder;

/// How long the kernel may cache what cannot change: more than a hundred million years, and still
/// well inside the kernel's arithmetic of seconds.
const FOREVER: Duration = Duration::from_secs(1 << 52);
/// How long the kernel may cache the attributes of a mount root that shows roots. Its mtime shows
/// that a cached listing is stale; but every path goes through the mount root, and a permission
/// check would request its mode each time.
const MOUNT_ROOT_TIMEOUT: Duration = Duration::from_millis(10);
/// How long the kernel may cache what can change at any moment.
const NOT_AT_ALL: Duration = Duration::ZERO;

/// A castore as a file system.
pub struct CastoreFs {
    store: Arc<dyn Store>,
    options: FsOptions,
    nodes: Nodes,
    roots: MountedRoots,
    followed: Option<FollowedTree>,
    passthrough: Option<Passthrough>,
    page_cache_push: PageCachePush,
    walk_prefetch: WalkPrefetch,
    readdirplus: ReaddirplusHeuristic,
    access_recorder: Option<AccessRecorder>,
    in_use: ObjectsInUse,
    waiting: WaitingRequests,
    images: Option<MountImages>,
    pause: RootLookupPause,
    listed: ListedRoots,
    /// The stores on this machine's disks that `store` reads from.
    embedded: Vec<LocalStore>,
}

/// A node with what its attributes need.
struct FoundNode {
    node: Node,
    ino: u64,
}

impl CastoreFs {
    /// A file system that shows `store` with `options`; requests that have to wait do so in
    /// `waiting`. Backing files are registered in `passthrough`, if the transport has it.
    pub fn new(
        store: Arc<dyn Store>,
        options: FsOptions,
        waiting: WaitingRequests,
        passthrough: Option<Passthrough>,
    ) -> Self {
        Self::with_inode_table(store, options, waiting, passthrough, None)
    }

    /// As [`new`](Self::new), writing the hand-over state to `inode_table`.
    pub fn with_inode_table(
        store: Arc<dyn Store>,
        options: FsOptions,
        waiting: WaitingRequests,
        passthrough: Option<Passthrough>,
        inode_table: Option<Arc<InodeTable>>,
    ) -> Self {
        let (digest, size) = options.mount_root_directory();
        let closures = options.images.clone();
        let numbering = Arc::new(InodeNumbering::new(closures.is_some(), inode_table.clone()));
        let images = closures.map(|closures| {
            MountImages::new(closures, Vec::new(), numbering.clone(), inode_table.clone())
                .mounted(options.image_view)
        });
        let limit = options.directory_limit;
        let mut fs = Self {
            nodes: Nodes::new(digest, size, limit, numbering.clone(), inode_table.clone())
                .bounded(options.most_directories),
            access_recorder: options
                .warm_up
                .clone()
                .map(|warm_up| AccessRecorder::new(warm_up, 0)),
            embedded: store.embedded(),
            store,
            options,
            roots: MountedRoots::new(numbering, inode_table),
            followed: None,
            passthrough,
            page_cache_push: PageCachePush::default(),
            walk_prefetch: WalkPrefetch::default(),
            readdirplus: ReaddirplusHeuristic::default(),
            in_use: ObjectsInUse::default(),
            waiting,
            images,
            pause: RootLookupPause::default(),
            listed: ListedRoots::default(),
        };
        if let MountRoot::Directory { digest, size } = fs.options.mount_root
            && fs.options.follows_in_place()
        {
            fs.followed = Some(FollowedTree::new(fs.next_version(digest, size)));
        }
        fs.begin_following()
    }

    /// Takes over from the process that wrote `inode_table`, with the same store and options. Backing
    /// files are registered with the same `device`, if there were any.
    pub fn take_over(
        store: Arc<dyn Store>,
        mut options: FsOptions,
        waiting: WaitingRequests,
        device: Option<Box<dyn BackingDevice>>,
        inode_table: Arc<InodeTable>,
    ) -> Result<Self, InodeTableError> {
        let roots = inode_table.roots()?;
        let followed = take_over_followed(&mut options, &roots)?;
        if followed.is_none() {
            // The process that made the mount has given ids of slot 0.
            options.follow = None;
        }
        let (digest, _) = match &followed {
            Some(_) => (Digest::of(b""), 0),
            None => options.mount_root_directory(),
        };
        let numbering = Arc::new(InodeNumbering::take_over(
            options.images.is_some(),
            inode_table.clone(),
        )?);
        let limit = options.directory_limit;
        let nodes = Nodes::take_over(digest, limit, numbering.clone(), inode_table.clone())?
            .bounded(options.most_directories);
        let passthrough = match device {
            Some(device) if inode_table.keeps_open_files() => {
                let is_known = |id| images::is_image(id) || nodes.may_be_known(id);
                Some(Passthrough::take_over(
                    device,
                    inode_table.clone(),
                    is_known,
                )?)
            }
            _ => None,
        };
        let images = match options.images.clone() {
            Some(closures) => {
                let numbered = inode_table.numbered()?;
                let images = MountImages::new(
                    closures,
                    numbered,
                    numbering.clone(),
                    Some(inode_table.clone()),
                );
                Some(images.mounted(options.image_view))
            }
            None => None,
        };
        // For roots that were used before, the kernel has cached the files that would be recorded.
        let warm_up = options.warm_up.clone();
        let warm_up = warm_up.filter(|_| matches!(options.mount_root, MountRoot::Roots { .. }));
        let fs = Self {
            access_recorder: warm_up
                .map(|warm_up| AccessRecorder::new(warm_up, roots.len() as u32)),
            nodes,
            embedded: store.embedded(),
            store,
            options,
            roots: MountedRoots::take_over(roots, numbering, inode_table),
            followed,
            passthrough,
            page_cache_push: PageCachePush::default(),
            walk_prefetch: WalkPrefetch::default(),
            readdirplus: ReaddirplusHeuristic::default(),
            in_use: ObjectsInUse::default(),
            waiting,
            images,
            pause: RootLookupPause::default(),
            listed: ListedRoots::default(),
        };
        Ok(fs.begin_following())
    }

    /// The runtime that its requests wait on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.waiting.runtime()
    }

    /// Holds in the store what the kernel may still use, from here on and before any request is
    /// answered. `connection` is the FUSE connection of a mount. Takes over what the previous
    /// process held for it.
    pub fn hold_in_use(&self, connection: Option<u64>) {
        self.in_use.begin(self.store.as_ref(), connection);
        match self.options.mount_root {
            MountRoot::Directory { digest, size } if self.followed.is_none() => {
                self.in_use.hold(&Node::Directory { digest, size })
            }
            MountRoot::Directory { .. } | MountRoot::Roots { .. } => {
                for (index, root) in (0..).zip(self.roots.all()) {
                    if self.may_know_root(index) {
                        self.in_use.hold_root(index, &root.node);
                    }
                }
            }
        }
        self.in_use.succeed(self.store.as_ref(), connection);
    }

    /// Releases the roots that the store no longer has and the kernel has forgotten. `changed`:
    /// whether the store's roots have changed since the last call.
    pub fn release_unused(&self, changed: bool) {
        let gone = |index| !self.roots.is_current(index);
        let forgotten = |index| !self.may_know_root(index);
        self.in_use.release_roots(changed, gone, forgotten);
    }

    /// Whether the kernel may know this root.
    fn may_know_root(&self, index: u32) -> bool {
        let seen = self.roots.get(index);
        let is_directory = seen.is_none_or(|seen| matches!(seen.root.node, Node::Directory { .. }));
        // There is no count of its own for each file that the kernel knows.
        !is_directory || self.nodes.knows_root(index)
    }

    /// Releases everything: no other process takes this file system over.
    pub fn end_use(&self) {
        self.in_use.end();
    }

    /// The store that is shown.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How many nodes the kernel knows, and what they cost.
    pub fn count(&self) -> NodeCount {
        self.nodes.count()
    }

    /// Takes back lookups of many nodes.
    pub fn forget_all(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        self.nodes.forget_all(forgotten);
    }

    /// The registrations of backing files, if this mount has any.
    pub fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.as_ref()
    }

    /// Whether the kernel is to report what it opens and closes of the mount's images.
    pub fn reports_open_images(&self) -> bool {
        self.options.image_view
    }

    /// Whether the mount root shows roots, which can change.
    pub fn shows_roots(&self) -> bool {
        matches!(self.options.mount_root, MountRoot::Roots { .. })
    }

    /// Asks the store for its roots.
    fn refresh_roots(&self) -> Result<(), NotInPlace> {
        if let FetchedObject::Roots(now) = self.waiting.wait(&self.store, AwaitedObject::Roots)? {
            self.roots.update(now.to_vec());
        }
        Ok(())
    }

    /// Asks the store for its roots; returns the changes since the last call, of which the kernel
    /// has to be notified.
    pub fn changed_roots(&self) -> Result<RootChanges, Error> {
        let listed = match self.options.root_names {
            RootNames::StorePaths => self.take_list(),
            RootNames::Any | RootNames::ValidPaths => self.refresh_roots(),
        };
        match listed {
            // No request runs here, so none is parked.
            Ok(()) | Err(NotInPlace::Parked) => Ok(self.roots.take_changes()),
            // Without listings no change is noticed; store paths do not change.
            Err(NotInPlace::Failed(Error::Unlisted { .. })) => Ok(self.roots.take_changes()),
            Err(NotInPlace::Failed(error)) => Err(error),
        }
    }

    /// The directory in `slot`, its Directory and its entries' inode numbers.
    fn directory(&self, slot: u32) -> io::Result<(DirectoryNode, Directory, NameRange)> {
        // The kernel names only ids that it was given; a guest may name any.
        let node = self.nodes.directory(slot).ok_or(failure(libc::ESTALE))?;
        if let (Some(directory), Some(names)) = (&node.directory, node.names) {
            let directory = directory.clone();
            return Ok((node, directory, names));
        }
        let id = self.kernel_id(slot);
        let mut directory = self.find(&node.digest);
        if matches!(directory, Ok(None)) {
            directory = self.find_below_ancestors(slot, &node.digest);
        }
        let directory = directory
            .map_err(|stop| self.stopped(id, Some(&node.digest), stop))?
            .ok_or_else(|| self.missing(id, "directory", &node.digest))?;
        let node = self.nodes.keep(slot, directory.clone());
        let node = node.ok_or(failure(libc::ESTALE))?;
        let names = node.names.ok_or(failure(libc::ESTALE))?;
        Ok((node, directory, names))
    }

    fn find(&self, digest: &Digest) -> Result<Option<Directory>, NotInPlace> {
        match self.store.directory_now(digest)? {
            Answer::Found(directory) => Ok(Some(directory)),
            Answer::Absent => Ok(None),
            Answer::Wait => match self
                .waiting
                .wait(&self.store, AwaitedObject::Directory(*digest))?
            {
                FetchedObject::Directory(directory) => Ok(directory),
                _ => Ok(None),
            },
        }
    }

    /// The Directory `digest` of the directory in `slot`, from a store that did not find it by its
    /// digest. An object store keeps closures, and finds a Directory once it has read the root of a
    /// closure that contains it. It no longer has that in memory after a restart or many other
    /// requests.
    fn find_below_ancestors(
        &self,
        slot: u32,
        digest: &Digest,
    ) -> Result<Option<Directory>, NotInPlace> {
        for ancestor in self.nodes.ancestors(slot) {
            if self.find(&ancestor)?.is_some()
                && let Some(directory) = self.find(digest)?
            {
                return Ok(Some(directory));
            }
        }
        Ok(None)
    }

    /// The file or symlink at `index` in the directory in `slot`.
    fn entry(&self, slot: u32, index: u32) -> io::Result<FoundNode> {
        if slot == 0 && self.shows_roots() {
            let SeenRoot { root, ino, .. } = self.roots.get(index).ok_or(failure(libc::ESTALE))?;
            return Ok(FoundNode {
                node: root.node,
                ino,
            });
        }
        let (_, directory, names) = self.directory(slot)?;
        let entry = directory.get(index as usize).ok_or(failure(libc::ESTALE))?;
        Ok(FoundNode {
            ino: names.ino(index),
            node: entry.node.to_owned().map_err(|_| failure(libc::EIO))?,
        })
    }

    /// The attributes of a node that the kernel knows, and how long it may cache them.
    fn stat(&self, id: NodeId) -> io::Result<(stat64, Duration)> {
        if let Some(stat) = self.stat_shown_image(id)? {
            return Ok(stat);
        }
        match id.place().ok_or(failure(libc::ESTALE))? {
            NodePlace::Directory(0) if self.shows_roots() => {
                Ok((self.stat_roots()?, MOUNT_ROOT_TIMEOUT))
            }
            NodePlace::Directory(slot) => {
                let entered = self.enter(slot)?;
                let (node, directory, _) = self.directory(entered.slot)?;
                let mut stat = self.stat_directory(&node, &directory);
                let Some(version) = entered.version else {
                    return Ok((stat, FOREVER));
                };
                stat.st_ino = ROOT_INO;
                // By the mtime a kernel recognizes a stale listing.
                stat.st_mtime_nsec = i64::from(version.index % 1_000_000_000);
                Ok((stat, FOREVER))
            }
            NodePlace::Entry { slot, index } => {
                let found = self.entry(slot, index)?;
                let stat = self.stat_leaf(found.node.borrow(), found.ino);
                Ok((stat, FOREVER))
            }
        }
    }

    /// The attributes of a mount root that shows roots. By the mtime a kernel recognizes a stale
    /// listing, if its notification has not arrived yet or its transport has none.
    fn stat_roots(&self) -> io::Result<stat64> {
        let node = NodeRef::Directory {
            digest: Digest::of(b""),
            size: 0,
        };
        let subdirectories = self.roots.subdirectories();
        let owner = self.options.owner;
        let mut stat = attributes::attributes(node, ROOT_INO, subdirectories, owner);
        let version = self.store.roots_version();
        let version = version.map_err(|error| self.failed(NodeId::ROOT, None, &error))?;
        stat.st_mtime_nsec = (version % 1_000_000_000) as i64;
        Ok(stat)
    }

    fn stat_directory(&self, node: &DirectoryNode, directory: &Directory) -> stat64 {
        let shown = NodeRef::Directory {
            digest: node.digest,
            size: node.size,
        };
        let subdirectories = directory.subdirectories();
        attributes::attributes(shown, node.ino, subdirectories, self.options.owner)
    }

    fn stat_leaf(&self, node: NodeRef<'_>, ino: u64) -> stat64 {
        attributes::attributes(node, ino, 0, self.options.owner)
    }

    /// Looks up one node, counting the lookup. `ino` and `index` are its own, `slot` its parent's. If it
    /// is a directory, `claim` gives the first inode number that its parent's range has for what is in it.
    ///
    /// The number of links of a directory is the number of its subdirectories, which is known only
    /// from its Directory. If that is not cached, the attributes have no time to live: the kernel
    /// requests them again when a program needs them.
    fn look_up(
        &self,
        (slot, index): (u32, u32),
        ino: u64,
        claim: impl FnOnce() -> u64,
        node: NodeRef<'_>,
        timeout: Duration,
    ) -> io::Result<Entry> {
        let (inode, attr, attr_timeout) = match node {
            NodeRef::Directory { digest, size } => {
                let child = self.nodes.child((slot, index), ino, claim, &digest, size);
                let child = child.ok_or_else(|| failure(libc::ENOMEM))?;
                let directory = child.directory.clone().or_else(|| {
                    match self.store.directory_now(&digest) {
                        Ok(Answer::Found(directory)) => {
                            self.nodes.keep(child.slot, directory.clone());
                            Some(directory)
                        }
                        // The program that opens it gets the error.
                        Ok(Answer::Absent | Answer::Wait) | Err(_) => None,
                    }
                });
                let (attr, timeout) = match directory {
                    Some(directory) => (self.stat_directory(&child, &directory), FOREVER),
                    None => (self.stat_leaf(node, ino), NOT_AT_ALL),
                };
                (NodeId::directory(child.slot), attr, timeout)
            }
            NodeRef::File { .. } | NodeRef::Symlink { .. } => (
                self.nodes.leaf(slot, index),
                self.stat_leaf(node, ino),
                FOREVER,
            ),
        };
        Ok(Entry {
            inode: inode.into(),
            generation: 0,
            attr,
            attr_flags: 0,
            attr_timeout,
            entry_timeout: timeout,
        })
    }

    /// Logs that a request for `id` failed because of `digest`, and returns the errno for it.
    fn failed(&self, id: NodeId, digest: Option<&Digest>, error: &Error) -> io::Error {
        let errno = errno::errno(error);
        let digest = digest.or(errno::damaged(error));
        tracing::error!(
            path = %self.path(id),
            digest = digest.map(tracing::field::display),
            endpoint = errno::endpoint(error),
            errno,
            %error,
            "a request failed"
        );
        failure(errno)
    }

    /// As [`failed`](Self::failed), unless the request is only parked.
    fn stopped(&self, id: NodeId, digest: Option<&Digest>, stop: NotInPlace) -> io::Error {
        match stop {
            NotInPlace::Parked => errno::parked(),
            NotInPlace::Failed(error) => self.failed(id, digest, &error),
        }
    }

    /// Logs that the object of `id` is not in the store: EIO, for the name does exist.
    fn missing(&self, id: NodeId, object: &str, digest: &Digest) -> io::Error {
        tracing::error!(
            path = %self.path(id), %digest, url = self.store.url(), errno = libc::EIO,
            "the {object} is missing from the store"
        );
        failure(libc::EIO)
    }

    /// The path of `id` below the mount, for log lines: unknown parts are `?`.
    fn path(&self, id: NodeId) -> String {
        if let Some(path) = self.image_path(id) {
            return path;
        }
        let mut path = String::new();
        for (depth, (directory, index)) in self.nodes.trail(id).into_iter().enumerate() {
            if depth == 0 && self.follows() {
                continue;
            }
            path.push('/');
            let root = (depth == 0 && self.shows_roots())
                .then(|| self.roots.get(index))
                .flatten();
            match (&root, &directory) {
                (Some(seen), _) => path.push_str(&seen.root.name.to_string()),
                (None, Some(directory)) => match directory.get(index as usize) {
                    Some(entry) => path.push_str(&Printable(entry.name).to_string()),
                    None => path.push('?'),
                },
                (None, None) => path.push('?'),
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        path
    }
}

/// The followed tree that the previous process showed, whose `roots` are its versions: the last of them. Then
/// `options` are to show that; nothing if that process followed none.
fn take_over_followed(
    options: &mut FsOptions,
    roots: &[(Root, u64)],
) -> Result<Option<FollowedTree>, InodeTableError> {
    let (MountRoot::Directory { digest: wanted, .. }, Some((root, ino))) =
        (&mut options.mount_root, roots.last())
    else {
        return Ok(None);
    };
    let Node::Directory { digest, size } = root.node else {
        return Err(InodeTableError::Damaged("a tree is no directory"));
    };
    if options.follow.is_none() && *wanted != digest {
        return Err(InodeTableError::Damaged("it is another tree's"));
    }
    options.mount_root = MountRoot::Directory { digest, size };
    Ok(Some(FollowedTree::new(TreeVersion {
        index: roots.len() as u32 - 1,
        ino: *ino,
        digest,
        size,
    })))
}
