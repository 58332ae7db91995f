//! `.images`: a mount's trees as disk images.
//!
//! A mount that has them shows a directory `.images` beside its roots. It is found by name and not
//! listed in the mount root, so that programs that walk the mount do not read every tree twice. In
//! it are
//! - `NAME.erofs` for every root, and for every closure that the configuration names,
//! - `HEX.erofs` for the digest (64 hex digits) of a directory that is a root.
//!
//! **A name is resolved when it is looked up**, and the resulting file stays the image of the same
//! tree, whatever the name stands for later. So names are never cached by the kernel, and the next
//! process finds the files again: the hand-over state lists the tree of each image.
//!
//! **Every path is a file of its own**, as everywhere in a mount, with its own node id and inode number
//! ([`numbering`](super::nodes::numbering)). Images of one tree share the layout.
//!
//! **A failed fetch is repeated** for [`image_patience`](super::FsOptions::image_patience) if an endpoint
//! is the reason: a virtual machine that maps an image dies of a page that cannot be read. In between, no
//! thread waits.
//!
//! **Layouts are computed, not stored.** Of the images that were read last, layouts are kept within
//! [`LAYOUT_BYTES`]; another is made again when it is read.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::errno::{self, failure};
use super::image_pages::ImagePages;
use super::mount_root::{MountRoot, SeenRoot};
use super::node_id::{NodeId, NodePlace};
use super::nodes::numbering::{IMAGES_INO, InodeNumbering, ROOT_INO};
use super::nodes::{AssignedNumber, InodeTable};
use super::root_lookup::RootListing;
use super::waiting::{RepeatedRead, WaitingRequests};
use super::{CastoreFs, FOREVER, NOT_AT_ALL, PageCache, attributes, slow};
use crate::castore::{Digest, Name, NodeRef, Printable, Root};
use crate::image::{BLOCK, ImageLocation, ImageRoot, ImageVersion};
use crate::store::{Bounded, names_in};
use crate::tree::{ImageFile, ImageFileError, NoTime, StoreWaiter, image_root};

/// The name of the directory.
pub(super) const DIRECTORY: &[u8] = b".images";
/// What the name of an image ends with.
const SUFFIX: &[u8] = b".erofs";
/// The slot of the directory: no node table reaches it.
const SLOT: u32 = u32::MAX;
/// Bytes of layouts that are kept.
const LAYOUT_BYTES: usize = 64 << 20;
/// Images that are listed in the mount's status.
const MOST_COUNTED: usize = 100;
/// The cookie of the first closure in a listing; roots have theirs below.
const FIRST_CLOSURE: u64 = 1 << 40;

/// Images of several roots, by name. The service changes them when its configuration changes.
#[derive(Debug, Default)]
pub struct ImageClosures(RwLock<Closures>);

/// The roots of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRoots {
    /// These.
    Named(Vec<Name>),
    /// Those whose names are in this file, one a line, when the image is looked up.
    Listed(PathBuf),
}

impl From<Vec<Name>> for ImageRoots {
    fn from(names: Vec<Name>) -> Self {
        Self::Named(names)
    }
}

impl ImageRoots {
    /// Bytes that differ where the roots do.
    fn bytes(&self) -> Vec<&[u8]> {
        match self {
            Self::Named(names) => names.iter().map(|name| &**name).collect(),
            Self::Listed(file) => vec![b"", file.as_os_str().as_bytes()],
        }
    }

    /// Their names, each once.
    fn names(&self) -> io::Result<Vec<Name>> {
        match self {
            Self::Named(names) => Ok(names.clone()),
            Self::Listed(file) => {
                let names: BTreeSet<Name> = names_in(file)?.into_iter().collect();
                Ok(names.into_iter().collect())
            }
        }
    }
}

#[derive(Debug, Default)]
struct Closures {
    roots: BTreeMap<Name, ImageRoots>,
    /// Another number for other closures.
    version: u64,
}

impl ImageClosures {
    /// Sets the closures: for each name the roots.
    pub fn set<R: Into<ImageRoots>>(&self, now: BTreeMap<Name, R>) {
        let now = now.into_iter().map(|(name, roots)| (name, roots.into()));
        let now: BTreeMap<Name, ImageRoots> = now.collect();
        let mut hasher = blake3::Hasher::new();
        for (name, roots) in &now {
            for part in std::iter::once(&**name).chain(roots.bytes()) {
                // No name has a slash.
                hasher.update(part).update(b"/");
            }
            hasher.update(b"/");
        }
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        *self.0.write() = Closures {
            roots: now,
            version: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        };
    }

    fn version(&self) -> u64 {
        self.0.read().version
    }

    fn get(&self, name: &[u8]) -> Option<ImageRoots> {
        let name = Name::new(name).ok()?;
        self.0.read().roots.get(&name).cloned()
    }

    fn nth(&self, index: usize) -> Option<Name> {
        self.0.read().roots.keys().nth(index).cloned()
    }
}

/// The images of a mount.
pub(super) struct MountImages {
    closures: Arc<ImageClosures>,
    seen: RwLock<LookedUpImages>,
    /// By the digest of what they show.
    files: Mutex<Bounded<Digest, Arc<ImageFile>>>,
    numbering: Arc<InodeNumbering>,
    inode_table: Option<Arc<InodeTable>>,
    /// What was read of the image that is mounted, if one is.
    pages: Option<ImagePages>,
}

/// The image that is mounted.
struct MountedImage<'a> {
    node: NodeId,
    pages: &'a ImagePages,
}

/// The images that were looked up, for the life of the mount: an index names one tree.
#[derive(Default)]
struct LookedUpImages {
    all: Vec<SeenImage>,
    by_path: HashMap<ImagePath, u32>,
    trees: Vec<Arc<SeenTree>>,
    by_digest: HashMap<Digest, Arc<SeenTree>>,
}

/// Which image it is among those that a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ImagePath {
    /// That of the root node whose image has this inode number.
    OfRoot(u64),
    /// The one of this name, as long as it shows the tree of this digest.
    Named(Name, Digest),
}

#[derive(Clone)]
struct SeenImage {
    index: u32,
    ino: u64,
    tree: Arc<SeenTree>,
}

/// What one or more images show.
struct SeenTree {
    mount_root: ImageRoot,
    /// Bytes that were read of its images.
    read: AtomicU64,
    /// Held while its layout is made.
    making: tokio::sync::Mutex<()>,
}

/// The images of a tree in a mount, and what was read of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCount {
    /// The digest of the Directory in its root, in hex digits.
    pub digest: String,
    /// The version of its layout.
    pub layout_version: u8,
    /// Bytes of the image; nothing while its layout is not in memory.
    pub size: Option<u64>,
    /// Bytes of memory that its layout takes.
    pub layout_bytes: u64,
    /// Bytes that the kernel read of them since this process serves the mount.
    pub read_bytes: u64,
    /// The inode numbers of its files in `.images`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inode_numbers: Vec<u64>,
    /// Processes that have one of them open or mapped, or use files of the mount that it is; nothing if
    /// that was not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<u64>,
}

impl LookedUpImages {
    fn push(&mut self, path: ImagePath, ino: u64, mount_root: ImageRoot) -> SeenImage {
        let digest = mount_root.digest();
        let tree = match self.by_digest.get(&digest) {
            Some(tree) => tree.clone(),
            None => {
                let tree = Arc::new(SeenTree {
                    mount_root,
                    read: AtomicU64::new(0),
                    making: tokio::sync::Mutex::default(),
                });
                self.by_digest.insert(digest, tree.clone());
                self.trees.push(tree.clone());
                tree
            }
        };
        let index = self.all.len() as u32;
        self.by_path.insert(path, index);
        let image = SeenImage { index, ino, tree };
        self.all.push(image.clone());
        image
    }

    fn find(&self, path: &ImagePath) -> Option<SeenImage> {
        let index = *self.by_path.get(path)?;
        self.all.get(index as usize).cloned()
    }
}

impl MountImages {
    /// No image was looked up yet, but for those among `numbered`, in that order, which the previous
    /// process has left in `inode_table`.
    pub(super) fn new(
        closures: Arc<ImageClosures>,
        numbered: Vec<AssignedNumber>,
        numbering: Arc<InodeNumbering>,
        inode_table: Option<Arc<InodeTable>>,
    ) -> Self {
        let mut seen = LookedUpImages::default();
        for numbered in numbered {
            if let AssignedNumber::Image {
                ino,
                name,
                mount_root,
            } = numbered
            {
                let path = match name {
                    Some(name) => ImagePath::Named(name, mount_root.digest()),
                    None => ImagePath::OfRoot(ino),
                };
                seen.push(path, ino, mount_root);
            }
        }
        Self {
            closures,
            seen: RwLock::new(seen),
            files: Mutex::new(Bounded::new(LAYOUT_BYTES)),
            numbering,
            inode_table,
            pages: None,
        }
    }

    /// The same, where EROFS mounts an image of them if `is_mounted`.
    pub(super) fn mounted(mut self, is_mounted: bool) -> Self {
        self.pages = is_mounted.then(ImagePages::default);
        self
    }

    /// Notes that `length` bytes at `offset` of `file` were read.
    fn record_read(&self, tree: &SeenTree, file: &ImageFile, offset: u64, length: u64) {
        tree.read.fetch_add(length, Ordering::Relaxed);
        if let Some(pages) = &self.pages {
            let data = file.layout().metadata_size().next_multiple_of(BLOCK);
            let range = offset.max(data)..offset + length;
            if !range.is_empty() {
                pages.read(range);
            }
        }
    }

    /// The image at `path`, which shows `mount_root`.
    fn image(&self, path: ImagePath, mount_root: ImageRoot) -> SeenImage {
        if let Some(image) = self.seen.read().find(&path) {
            return image;
        }
        let mut seen = self.seen.write();
        if let Some(image) = seen.find(&path) {
            return image;
        }
        let (ino, name) = match &path {
            ImagePath::OfRoot(ino) => (*ino, None),
            ImagePath::Named(name, _) => (self.numbering.image(), Some(name)),
        };
        if let Some(inode_table) = &self.inode_table {
            inode_table.append_image(ino, name, &mount_root);
        }
        seen.push(path, ino, mount_root)
    }

    fn get(&self, index: u32) -> Option<SeenImage> {
        self.seen.read().all.get(index as usize).cloned()
    }

    fn count(&self, tree: &Arc<SeenTree>) -> ImageCount {
        let digest = tree.mount_root.digest();
        let seen = self.seen.read();
        let of_tree = seen
            .all
            .iter()
            .filter(|image| Arc::ptr_eq(&image.tree, tree));
        let inode_numbers = of_tree.map(|image| image.ino).take(MOST_COUNTED).collect();
        drop(seen);
        let file = self.files.lock().get(&digest);
        let layout = file.as_ref().map(|file| file.layout());
        ImageCount {
            digest: digest.to_hex(),
            layout_version: ImageVersion::default().number(),
            size: layout.map(|layout| layout.size()),
            layout_bytes: layout.map_or(0, |layout| layout.resident_bytes() as u64),
            read_bytes: tree.read.load(Ordering::Relaxed),
            inode_numbers,
            users: None,
        }
    }
}

impl StoreWaiter for WaitingRequests {
    fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        Some(self.block(work))
    }
}

/// Waits for no longer than there is time left, in all.
struct WithinTime<'a> {
    waiting: &'a WaitingRequests,
    remaining: Cell<Duration>,
}

impl StoreWaiter for WithinTime<'_> {
    fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (began, remaining) = (Instant::now(), self.remaining.get());
        // Its timer is of the runtime that polls it.
        let waited = async { tokio::time::timeout(remaining, work).await.ok() };
        let outcome = self.waiting.block(waited);
        self.remaining
            .set(remaining.saturating_sub(began.elapsed()));
        outcome
    }
}

/// An image that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedImage {
    /// Its path from the top of the mount.
    pub path: String,
    /// Bytes of metadata, which are the first of it.
    pub metadata_bytes: u64,
}

/// What a node id names in `.images`.
enum ImageNode {
    Directory,
    Image(u32),
}

/// Whether `id` is in `.images`, or that itself.
pub(super) fn is_image(id: NodeId) -> bool {
    shown(id).is_some()
}

fn shown(id: NodeId) -> Option<ImageNode> {
    match id.place()? {
        NodePlace::Directory(SLOT) => Some(ImageNode::Directory),
        NodePlace::Entry { slot: SLOT, index } => Some(ImageNode::Image(index)),
        _ => None,
    }
}

impl CastoreFs {
    /// The trees whose images were looked up, if this mount shows any: the last `MOST_COUNTED` of them.
    pub fn image_counts(&self) -> Vec<ImageCount> {
        let Some(images) = &self.images else {
            return Vec::new();
        };
        let counted: Vec<Arc<SeenTree>> = {
            let seen = images.seen.read();
            seen.trees
                .iter()
                .rev()
                .take(MOST_COUNTED)
                .cloned()
                .collect()
        };
        counted.iter().map(|tree| images.count(tree)).collect()
    }

    /// What is at `offset` of the image `id`, if it is known without waiting.
    pub(super) fn image_location(&self, id: NodeId, offset: u64) -> Option<ImageLocation> {
        let (images, ImageNode::Image(index)) = self.shown_image(id)? else {
            return None;
        };
        let digest = images.get(index)?.tree.mount_root.digest();
        let file = images.files.lock().get(&digest)?;
        file.location(offset)
    }

    /// What is in `.images`, if `id` is of there and this mount has it.
    fn shown_image(&self, id: NodeId) -> Option<(&MountImages, ImageNode)> {
        Some((self.images.as_ref()?, shown(id)?))
    }

    /// The directory `.images`, for a lookup of `name` in the mount root that found nothing else.
    pub(super) fn look_up_images(&self, name: &[u8]) -> io::Result<Option<Entry>> {
        if self.images.is_none() || name != DIRECTORY {
            return Ok(None);
        }
        // A root of that name can appear at any moment.
        let id = NodeId::directory(SLOT);
        Ok(Some(entry(id, self.stat_images_directory()?, NOT_AT_ALL)))
    }

    /// Looks up `name` in `.images`, if that is what `parent` is.
    pub(super) fn look_up_image(&self, parent: NodeId, name: &[u8]) -> io::Result<Option<Entry>> {
        let Some((images, shown)) = self.shown_image(parent) else {
            return Ok(None);
        };
        let ImageNode::Directory = shown else {
            return Err(failure(libc::ENOTDIR));
        };
        let name = name.strip_suffix(SUFFIX).ok_or(failure(libc::ENOENT))?;
        let (path, mount_root) = self
            .resolve_image(images, name)?
            .ok_or(failure(libc::ENOENT))?;
        let image = images.image(path, mount_root);
        let stat = self.stat_image(images, &image)?;
        let id = NodeId::entry(SLOT, image.index);
        Ok(Some(entry(id, stat, NOT_AT_ALL)))
    }

    /// Which image `name` is at this moment, and what it shows.
    fn resolve_image(
        &self,
        images: &MountImages,
        name: &[u8],
    ) -> io::Result<Option<(ImagePath, ImageRoot)>> {
        // What is longer cannot be found.
        let Ok(known_as) = Name::new(name) else {
            return Ok(None);
        };
        let named = |mount_root: ImageRoot| {
            (
                ImagePath::Named(known_as.clone(), mount_root.digest()),
                mount_root,
            )
        };
        if let Some((digest, _)) = self.shown_directory() {
            let is_it = name == digest.to_hex().as_bytes();
            return Ok(is_it.then_some(named(ImageRoot::Directory(digest))));
        }
        if let Some(roots) = images.closures.get(name) {
            return Ok(self.resolve_closure(name, &roots)?.map(named));
        }
        if let Some(root) = self.find_root(name)? {
            let (_, ino) = self.roots.index(&root);
            let mount_root = image_root(&[root]).map_err(|_| failure(libc::EINVAL))?;
            let path = ImagePath::OfRoot(InodeNumbering::root_image(ino));
            return Ok(Some((path, mount_root)));
        }
        let Some(digest) = hex_digest(name) else {
            return Ok(None);
        };
        let roots = self.waiting.block(self.store.roots());
        let roots = roots.map_err(|error| self.failed(NodeId::ROOT, Some(&digest), &error))?;
        let is_it = |root: &Root| match root.node.borrow() {
            NodeRef::Directory { digest: of, .. } => of == digest,
            _ => false,
        };
        let found = roots.iter().any(is_it);
        Ok(found.then_some(named(ImageRoot::Directory(digest))))
    }

    /// What the closure `name` of the roots `of` shows; nothing while one of them does not exist.
    fn resolve_closure(&self, name: &[u8], of: &ImageRoots) -> io::Result<Option<ImageRoot>> {
        let names = match of.names() {
            Ok(names) if !names.is_empty() => names,
            Ok(_) => {
                tracing::warn!(image = %Printable(name), roots = ?of, "an image has no roots");
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!(
                    image = %Printable(name), roots = ?of, %error,
                    "the names of an image's roots cannot be read"
                );
                return Ok(None);
            }
        };
        let mut roots = Vec::with_capacity(names.len());
        for root in &names {
            let Some(found) = self.find_root(root)? else {
                tracing::warn!(
                    image = %Printable(name), root = %root,
                    "an image names a root that does not exist: import it, or take it out of the \
                     image's roots"
                );
                return Ok(None);
            };
            roots.push(found);
        }
        let mount_root = ImageRoot::roots(&roots).map_err(|_| failure(libc::EINVAL))?;
        Ok(Some(mount_root))
    }

    /// The attributes of `id`, if it is in `.images`, and how long the kernel may cache them.
    pub(super) fn stat_shown_image(&self, id: NodeId) -> io::Result<Option<(stat64, Duration)>> {
        let Some((images, shown)) = self.shown_image(id) else {
            return Ok(None);
        };
        Ok(Some(match shown {
            ImageNode::Directory => (self.stat_images_directory()?, NOT_AT_ALL),
            ImageNode::Image(index) => {
                let image = images.get(index).ok_or(failure(libc::ESTALE))?;
                (self.stat_image(images, &image)?, FOREVER)
            }
        }))
    }

    /// As those of the mount root: by the mtime a kernel recognizes a stale listing, of other roots or of
    /// other closures.
    fn stat_images_directory(&self) -> io::Result<stat64> {
        let mut stat = self.stat_roots()?;
        let version = self
            .images
            .as_ref()
            .map_or(0, |images| images.closures.version());
        let nanoseconds = version.wrapping_add(stat.st_mtime_nsec as u64) % 1_000_000_000;
        stat.st_mtime_nsec = nanoseconds as i64;
        stat.st_ino = IMAGES_INO;
        stat.st_nlink = 2;
        Ok(stat)
    }

    fn stat_image(&self, images: &MountImages, image: &SeenImage) -> io::Result<stat64> {
        let size = self.image_file(images, &image.tree)?.size();
        let node = NodeRef::File {
            digest: image.tree.mount_root.digest(),
            size,
            executable: false,
        };
        Ok(attributes::attributes(
            node,
            image.ino,
            0,
            self.options.owner,
        ))
    }

    /// Makes the image of the directory at the top ready to be mounted: its layout is made. What has to be
    /// waited for takes no longer than `patience` in all.
    ///
    /// Fails also if the mount shows no images, or no directory at its top.
    pub fn prepare_image(
        &self,
        patience: Option<Duration>,
    ) -> Result<PreparedImage, ImageFileError> {
        let (Some(images), Some((digest, _))) = (&self.images, self.shown_directory()) else {
            let why = "no directory is at the top of the mount";
            return Err(ImageFileError::TooLarge(why.to_owned()));
        };
        let name = digest.to_hex();
        let Ok(Some((path, mount_root))) = self.resolve_image(images, name.as_bytes()) else {
            let why = "its name is not found";
            return Err(ImageFileError::TooLarge(why.to_owned()));
        };
        let tree = images.image(path, mount_root).tree;
        let file = match patience {
            None => self.make_image_file(images, &tree, &self.waiting),
            Some(patience) => {
                let waiter = WithinTime {
                    waiting: &self.waiting,
                    remaining: Cell::new(patience),
                };
                self.make_image_file(images, &tree, &waiter)
            }
        }?;
        let directory = DIRECTORY.escape_ascii();
        Ok(PreparedImage {
            path: format!("{directory}/{}.erofs", digest.to_hex()),
            metadata_bytes: file.layout().metadata_size(),
        })
    }

    /// The image of `tree` with its layout, which is made if it is not in memory.
    fn image_file(&self, images: &MountImages, tree: &SeenTree) -> io::Result<Arc<ImageFile>> {
        self.make_image_file(images, tree, &self.waiting)
            .map_err(|error| self.image_failed(&tree.mount_root, None, &error))
    }

    fn make_image_file(
        &self,
        images: &MountImages,
        tree: &SeenTree,
        waiter: &impl StoreWaiter,
    ) -> Result<Arc<ImageFile>, ImageFileError> {
        let digest = tree.mount_root.digest();
        if let Some(file) = images.files.lock().get(&digest) {
            return Ok(file);
        }
        let _one = self.waiting.block(tree.making.lock());
        if let Some(file) = images.files.lock().get(&digest) {
            return Ok(file);
        }
        let (store, version) = (self.store.clone(), ImageVersion::default());
        let file = ImageFile::new(store, tree.mount_root.clone(), version, waiter)?;
        let file = Arc::new(file);
        let bytes = file.layout().resident_bytes();
        images.files.lock().insert(digest, file.clone(), bytes);
        Ok(file)
    }

    /// Fills `buffer` from the image `id` at `offset` if all of that is cached; returns the number of bytes.
    pub fn read_cached_image(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let (images, ImageNode::Image(index)) = self.shown_image(id)? else {
            return None;
        };
        let tree = images.get(index)?.tree;
        let file = images.files.lock().get(&tree.mount_root.digest())?;
        // What fails is read again by a thread that can wait, which reports why.
        let length = file.read_at(offset, buffer, &NoTime).ok()?;
        images.record_read(&tree, &file, offset, length as u64);
        Some(length)
    }

    /// Drops from `pages` what was read of the data of the mounted image, until `has_ended`.
    pub fn drop_image_pages(&self, pages: &dyn PageCache, has_ended: impl Fn() -> bool) {
        if let Some(MountedImage { node, pages: read }) = self.mounted_image() {
            read.drop_old(node, pages, has_ended);
        }
    }

    /// The image of the directory at the top, if that is mounted.
    fn mounted_image(&self) -> Option<MountedImage<'_>> {
        let images = self.images.as_ref()?;
        let pages = images.pages.as_ref()?;
        let (digest, _) = self.shown_directory()?;
        let name = digest.to_hex();
        let (path, mount_root) = self.resolve_image(images, name.as_bytes()).ok()??;
        let image = images.image(path, mount_root);
        let node = NodeId::entry(SLOT, image.index);
        Some(MountedImage { node, pages })
    }

    /// Fills `buffer` from the image `id` at `offset`, unless it ends first; nothing if `id` is not in
    /// `.images`.
    pub(super) fn read_image(
        &self,
        id: NodeId,
        offset: u64,
        buffer: &mut [u8],
    ) -> Option<io::Result<usize>> {
        let (images, shown) = self.shown_image(id)?;
        let ImageNode::Image(index) = shown else {
            return Some(Err(failure(libc::EISDIR)));
        };
        slow::reads_at(offset);
        let image = images.get(index).ok_or(failure(libc::ESTALE));
        Some(image.and_then(|SeenImage { tree, .. }| {
            let read = self
                .make_image_file(images, &tree, &self.waiting)
                .and_then(|file| {
                    let length = file.read_at(offset, buffer, &self.waiting)?;
                    images.record_read(&tree, &file, offset, length as u64);
                    Ok(length)
                });
            read.map_err(|error| {
                let file = images.files.lock().get(&tree.mount_root.digest());
                self.image_read_failed(&tree.mount_root, file.as_deref(), offset, &error)
            })
        }))
    }

    /// What the reader at `offset` of the image of `mount_root` gets for `error`. What failed because of an
    /// endpoint is fetched again a moment later, for [`Options::image_patience`](super::FsOptions).
    fn image_read_failed(
        &self,
        mount_root: &ImageRoot,
        file: Option<&ImageFile>,
        offset: u64,
        error: &ImageFileError,
    ) -> io::Error {
        let patience = self.options.image_patience;
        let may_pass =
            matches!(error, ImageFileError::Store(error) if errno::is_unreachable(error));
        let repeat = match may_pass {
            true => self.waiting.repeat(&self.store, patience),
            false => RepeatedRead::No,
        };
        match repeat {
            RepeatedRead::No => {
                return self.image_failed(mount_root, file.map(|file| (file, offset)), error);
            }
            RepeatedRead::Another => {}
            RepeatedRead::First => {
                let location = file.and_then(|file| file.location(offset));
                tracing::warn!(
                    image = %mount_root.digest(),
                    offset,
                    path = location.as_ref().map(|location| location.path.as_str()),
                    digest = location.as_ref().map(|location| tracing::field::display(location.digest)),
                    patience_s = patience.as_secs(),
                    %error,
                    "an image cannot be read at the moment: its reader waits, and the fetch is repeated"
                );
            }
        }
        errno::parked()
    }

    /// Whether a request for `node` may block: those in `.images`. It needs a thread of its own.
    pub fn may_block(&self, node: u64) -> bool {
        self.images.is_some() && is_image(NodeId::from(node))
    }

    /// What the image `id` shows, if it is one.
    pub(super) fn image_digest(&self, id: NodeId) -> Option<Digest> {
        let (images, ImageNode::Image(index)) = self.shown_image(id)? else {
            return None;
        };
        Some(images.get(index)?.tree.mount_root.digest())
    }

    /// Lists `.images`, if `id` is that, from the cookie `offset` on; returns whether it was.
    pub(super) fn list_images(
        &self,
        id: NodeId,
        offset: u64,
        take: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let Some((images, shown)) = self.shown_image(id) else {
            return Ok(false);
        };
        let ImageNode::Directory = shown else {
            return Err(failure(libc::ENOTDIR));
        };
        let mut give = |offset: u64, name: &[u8], ino: u64, kind: u8| {
            let listed = DirEntry {
                ino,
                offset,
                type_: u32::from(kind),
                name,
            };
            take(listed).map(|taken| taken > 0)
        };
        for (cookie, name, ino) in [(1, b"." as &[u8], IMAGES_INO), (2, b"..", ROOT_INO)] {
            if offset < cookie && !give(cookie, name, ino, libc::DT_DIR)? {
                return Ok(true);
            }
        }
        let image_name = |name: &[u8]| [name, SUFFIX].concat();
        // What is not a root's has its number from the image that it is now.
        let named = |name: &[u8]| -> io::Result<Option<u64>> {
            let found = self.resolve_image(images, name)?;
            Ok(found.map(|(path, mount_root)| images.image(path, mount_root).ino))
        };
        match &self.options.mount_root {
            MountRoot::Directory { .. } => {
                let shown = self.shown_directory();
                let name = shown.map_or(String::new(), |(digest, _)| digest.to_hex());
                if offset < 3
                    && let Some(ino) = named(name.as_bytes())?
                {
                    give(3, &image_name(name.as_bytes()), ino, libc::DT_REG)?;
                }
                return Ok(true);
            }
            MountRoot::Roots {
                list: RootListing::Nothing | RootListing::Refused,
            } => {}
            MountRoot::Roots {
                list: RootListing::All,
            } => {
                if offset < 3 {
                    self.refresh_roots()
                        .map_err(|stop| self.stopped(NodeId::ROOT, None, stop))?;
                }
                let mut next = offset.saturating_sub(2);
                while let Ok(index) = u32::try_from(next)
                    && let Some(SeenRoot { index, ino, root }) = self.roots.next(index)
                {
                    next = u64::from(index) + 1;
                    let name = image_name(&root.name);
                    let has_closure = images.closures.get(&root.name).is_some();
                    let ino = InodeNumbering::root_image(ino);
                    if Name::new(&name).is_ok()
                        && !has_closure
                        && !give(next + 2, &name, ino, libc::DT_REG)?
                    {
                        return Ok(true);
                    }
                }
            }
        }
        let mut next = offset.saturating_sub(FIRST_CLOSURE) as usize;
        while let Some(closure) = images.closures.nth(next) {
            next += 1;
            let name = image_name(&closure);
            if Name::new(&name).is_ok()
                && let Some(ino) = named(&closure)?
                && !give(FIRST_CLOSURE + next as u64, &name, ino, libc::DT_REG)?
            {
                break;
            }
        }
        Ok(true)
    }

    /// The path of `id` if it is in `.images`, for logs.
    pub(super) fn image_path(&self, id: NodeId) -> Option<String> {
        let (images, shown) = self.shown_image(id)?;
        let directory = DIRECTORY.escape_ascii();
        Some(match shown {
            ImageNode::Directory => format!("/{directory}"),
            ImageNode::Image(index) => match images.get(index) {
                Some(image) => format!(
                    "/{directory}/{}.erofs",
                    image.tree.mount_root.digest().to_hex()
                ),
                None => format!("/{directory}/?"),
            },
        })
    }

    /// Logs that the image of `mount_root` cannot be made, or read at an offset, and returns the errno.
    fn image_failed(
        &self,
        mount_root: &ImageRoot,
        read: Option<(&ImageFile, u64)>,
        error: &ImageFileError,
    ) -> io::Error {
        let errno = match error {
            ImageFileError::TooLarge(_) => libc::EFBIG,
            ImageFileError::Absent { .. } => libc::EIO,
            ImageFileError::TooLate(_) => libc::ETIMEDOUT,
            ImageFileError::Store(error) => errno::errno(error),
        };
        let endpoint = match error {
            ImageFileError::Store(error) => errno::endpoint(error),
            _ => None,
        };
        let offset = read.map(|(_, offset)| offset);
        let location = read.and_then(|(file, offset)| file.location(offset));
        tracing::error!(
            image = %mount_root.digest(),
            offset,
            path = location.as_ref().map(|location| location.path.as_str()),
            digest = location.as_ref().map(|location| tracing::field::display(location.digest)),
            endpoint,
            errno,
            %error,
            "an image cannot be read"
        );
        failure(errno)
    }
}

/// The digest that 64 lower-case hex digits mean.
fn hex_digest(name: &[u8]) -> Option<Digest> {
    let text = std::str::from_utf8(name).ok()?;
    let digest: Digest = text.parse().ok()?;
    (digest.to_hex() == text).then_some(digest)
}

fn entry(id: NodeId, attr: stat64, timeout: Duration) -> Entry {
    Entry {
        inode: id.into(),
        generation: 0,
        attr,
        attr_flags: 0,
        attr_timeout: timeout,
        entry_timeout: timeout,
    }
}
