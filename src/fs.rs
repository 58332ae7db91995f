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
mod image_pages;
mod images;
mod in_use;
mod listed_roots;
mod listers;
mod listing;
mod node_id;
mod nodes;
mod numbering;
mod passthrough;
mod reading;
mod requests;
mod root_lookup;
mod scout;
mod slow;
mod top;
mod waiting;
mod walk_ahead;
mod warm_up;
mod xattr;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::Entry;

use crate::castore::{Digest, Directory, Node, NodeRef, Printable};
use crate::store::{Answer, Error, LocalStore, Store};

pub use attributes::Owner;
pub use images::{ImageClosures, ImageCount, ImageRoots, PreparedImage};
pub use node_id::NodeId;
pub use nodes::{Ledger, LedgerError, NodeCount};
pub use passthrough::{BackingDevice, Handle, OpenCount, OpenRequest, Opened, Passthrough, Reads};
pub use root_lookup::{RootListing, RootNames, WhenUnreachable};
pub use top::{RootChanges, Top};
pub use waiting::{Arrival, Parked, Paused, Waiting, parkable};
pub use walk_ahead::PageCache;
pub use warm_up::{WarmUp, WarmUpCount};

use errno::failure;
use images::Images;
use in_use::InUse;
use listed_roots::ListedRoots;
use listers::Listers;
use node_id::Place;
use nodes::{DirectoryNode, Nodes};
use numbering::{NameRange, Numbering, ROOT_INO};
use root_lookup::Pause;
use scout::Scout;
use top::{Roots, SeenRoot};
use waiting::{Brought, Stop, Wanted};
use walk_ahead::WalkAhead;
use warm_up::Learner;

/// How long the kernel may cache what cannot change: more than a hundred million years, and still
/// well inside the kernel's arithmetic of seconds.
const FOREVER: Duration = Duration::from_secs(1 << 52);
/// How long the kernel may cache the attributes of a mount root that shows roots. Its mtime shows
/// that a cached listing is stale; but every path goes through the mount root, and a permission
/// check would request its mode each time.
const TOP_TIMEOUT: Duration = Duration::from_millis(10);
/// How long the kernel may cache what can change at any moment.
const NOT_AT_ALL: Duration = Duration::ZERO;
/// Bytes of Directories that are cached unless the mount sets another limit.
pub const DEFAULT_DIRECTORY_LIMIT: usize = 512 << 20;

/// How a mount presents its store.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the mount root shows.
    pub top: Top,
    /// The owner of every node.
    pub owner: Owner,
    /// How bytes come to their readers.
    pub reads: Reads,
    /// Whether extended attributes are supported at all. The kernel does not cache them, so that
    /// `ls -l` would cost a round trip a file.
    pub xattr: bool,
    /// How long the kernel may cache the name of a root: for ever if the transport can notify the
    /// kernel of changes.
    pub root_timeout: Duration,
    /// Which names of roots the store is asked for.
    pub root_names: RootNames,
    /// What a lookup of a root returns while the store cannot be reached.
    pub when_unreachable: WhenUnreachable,
    /// Bytes of Directories to cache in memory, at most.
    pub directory_limit: usize,
    /// Directories that the kernel may know at once; the next lookup gets ENOMEM. This machine's
    /// kernel forgets when memory is short; a guest's may not.
    pub most_directories: usize,
    /// Requests that take longer are logged with a breakdown of their time; none is logged without
    /// this.
    pub slow_requests: Option<Duration>,
    /// Record what is read first, and prefetch what was recorded; neither without this.
    pub warm_up: Option<WarmUp>,
    /// Show trees as disk images in `.images`, and these images of several roots; no images without
    /// this.
    pub images: Option<Arc<ImageClosures>>,
    /// For how long a read of an image is repeated whose endpoint fails; only once if this is zero.
    pub image_patience: Duration,
    /// Whether EROFS mounts an image of `images`: the kernel then reports what it opens and closes.
    pub image_view: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            top: Top::Roots {
                list: RootListing::All,
            },
            owner: Owner::default(),
            reads: Reads::default(),
            xattr: false,
            root_timeout: FOREVER,
            root_names: RootNames::default(),
            when_unreachable: WhenUnreachable::default(),
            directory_limit: DEFAULT_DIRECTORY_LIMIT,
            most_directories: usize::MAX,
            slow_requests: None,
            warm_up: None,
            images: None,
            image_patience: Duration::ZERO,
            image_view: false,
        }
    }
}

impl Options {
    /// The digest and size of the directory in the mount root.
    fn top_directory(&self) -> (Digest, u64) {
        match &self.top {
            Top::Directory { digest, size } => (*digest, *size),
            // Never read: lookups and listings of this mount root ask the store for its roots.
            Top::Roots { .. } => (Digest::of(b""), 0),
        }
    }
}

/// A castore as a file system.
pub struct CastoreFs {
    store: Arc<dyn Store>,
    options: Options,
    nodes: Nodes,
    roots: Roots,
    passthrough: Option<Passthrough>,
    walk_ahead: WalkAhead,
    scout: Scout,
    listers: Listers,
    learner: Option<Learner>,
    in_use: InUse,
    waiting: Waiting,
    images: Option<Images>,
    pause: Pause,
    listed: ListedRoots,
    /// The stores on this machine's disks that `store` reads from.
    embedded: Vec<LocalStore>,
}

/// A node with what its attributes need.
struct Found {
    node: Node,
    ino: u64,
}

impl CastoreFs {
    /// A file system that shows `store` with `options`; requests that have to wait do so in
    /// `waiting`. Backing files are registered in `passthrough`, if the transport has it.
    pub fn new(
        store: Arc<dyn Store>,
        options: Options,
        waiting: Waiting,
        passthrough: Option<Passthrough>,
    ) -> Self {
        Self::with_ledger(store, options, waiting, passthrough, None)
    }

    /// As [`new`](Self::new), writing the hand-over state to `ledger`.
    pub fn with_ledger(
        store: Arc<dyn Store>,
        options: Options,
        waiting: Waiting,
        passthrough: Option<Passthrough>,
        ledger: Option<Arc<Ledger>>,
    ) -> Self {
        let (digest, size) = options.top_directory();
        let closures = options.images.clone();
        let numbering = Arc::new(Numbering::new(closures.is_some(), ledger.clone()));
        let images = closures.map(|closures| {
            Images::new(closures, Vec::new(), numbering.clone(), ledger.clone())
                .mounted(options.image_view)
        });
        let limit = options.directory_limit;
        Self {
            nodes: Nodes::new(digest, size, limit, numbering.clone(), ledger.clone())
                .bounded(options.most_directories),
            learner: options
                .warm_up
                .clone()
                .map(|warm_up| Learner::new(warm_up, 0)),
            embedded: store.embedded(),
            store,
            options,
            roots: Roots::new(numbering, ledger),
            passthrough,
            walk_ahead: WalkAhead::default(),
            scout: Scout::default(),
            listers: Listers::default(),
            in_use: InUse::default(),
            waiting,
            images,
            pause: Pause::default(),
            listed: ListedRoots::default(),
        }
    }

    /// Takes over from the process that wrote `ledger`, with the same store and options. Backing
    /// files are registered with the same `device`, if there were any.
    pub fn adopt(
        store: Arc<dyn Store>,
        options: Options,
        waiting: Waiting,
        device: Option<Box<dyn BackingDevice>>,
        ledger: Arc<Ledger>,
    ) -> Result<Self, LedgerError> {
        let (digest, _) = options.top_directory();
        let roots = ledger.roots()?;
        let numbering = Arc::new(Numbering::adopt(options.images.is_some(), ledger.clone())?);
        let limit = options.directory_limit;
        let nodes = Nodes::adopt(digest, limit, numbering.clone(), ledger.clone())?
            .bounded(options.most_directories);
        let passthrough = match device {
            Some(device) if ledger.keeps_open_files() => {
                let is_known = |id| images::is_image(id) || nodes.may_be_known(id);
                Some(Passthrough::adopt(device, ledger.clone(), is_known)?)
            }
            _ => None,
        };
        let images = match options.images.clone() {
            Some(closures) => {
                let numbered = ledger.numbered()?;
                let images =
                    Images::new(closures, numbered, numbering.clone(), Some(ledger.clone()));
                Some(images.mounted(options.image_view))
            }
            None => None,
        };
        // For roots that were used before, the kernel has cached the files that would be recorded.
        let warm_up = options.warm_up.clone();
        let warm_up = warm_up.filter(|_| matches!(options.top, Top::Roots { .. }));
        Ok(Self {
            learner: warm_up.map(|warm_up| Learner::new(warm_up, roots.len() as u32)),
            nodes,
            embedded: store.embedded(),
            store,
            options,
            roots: Roots::adopt(roots, numbering, ledger),
            passthrough,
            walk_ahead: WalkAhead::default(),
            scout: Scout::default(),
            listers: Listers::default(),
            in_use: InUse::default(),
            waiting,
            images,
            pause: Pause::default(),
            listed: ListedRoots::default(),
        })
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
        match self.options.top {
            Top::Directory { digest, size } => self.in_use.hold(&Node::Directory { digest, size }),
            Top::Roots { .. } => {
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
        matches!(self.options.top, Top::Roots { .. })
    }

    /// Asks the store for its roots.
    fn refresh_roots(&self) -> Result<(), Stop> {
        if let Brought::Roots(now) = self.waiting.wait(&self.store, Wanted::Roots)? {
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
            Ok(()) | Err(Stop::Parked) => Ok(self.roots.take_changes()),
            // Without listings no change is noticed; store paths do not change.
            Err(Stop::Failed(Error::Unlisted { .. })) => Ok(self.roots.take_changes()),
            Err(Stop::Failed(error)) => Err(error),
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
        let id = NodeId::directory(slot);
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

    fn find(&self, digest: &Digest) -> Result<Option<Directory>, Stop> {
        match self.store.directory_now(digest)? {
            Answer::Found(directory) => Ok(Some(directory)),
            Answer::Absent => Ok(None),
            Answer::Wait => match self.waiting.wait(&self.store, Wanted::Directory(*digest))? {
                Brought::Directory(directory) => Ok(directory),
                _ => Ok(None),
            },
        }
    }

    /// The Directory `digest` of the directory in `slot`, from a store that did not find it by its
    /// digest. An object store keeps closures, and finds a Directory once it has read the root of a
    /// closure that contains it. It no longer has that in memory after a restart or many other
    /// requests.
    fn find_below_ancestors(&self, slot: u32, digest: &Digest) -> Result<Option<Directory>, Stop> {
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
    fn entry(&self, slot: u32, index: u32) -> io::Result<Found> {
        if slot == 0 && self.shows_roots() {
            let SeenRoot { root, ino, .. } = self.roots.get(index).ok_or(failure(libc::ESTALE))?;
            return Ok(Found {
                node: root.node,
                ino,
            });
        }
        let (_, directory, names) = self.directory(slot)?;
        let entry = directory.get(index as usize).ok_or(failure(libc::ESTALE))?;
        Ok(Found {
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
            Place::Directory(0) if self.shows_roots() => Ok((self.stat_roots()?, TOP_TIMEOUT)),
            Place::Directory(slot) => {
                let (node, directory, _) = self.directory(slot)?;
                Ok((self.stat_directory(&node, &directory), FOREVER))
            }
            Place::Entry { slot, index } => {
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
    fn stopped(&self, id: NodeId, digest: Option<&Digest>, stop: Stop) -> io::Error {
        match stop {
            Stop::Parked => errno::parked(),
            Stop::Failed(error) => self.failed(id, digest, &error),
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
