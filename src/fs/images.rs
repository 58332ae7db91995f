//! `.images`: a mount's trees as disk images.
//!
//! A mount that has them shows a directory `.images` beside its roots. It is found by name and not
//! listed at the top, so that programs that walk the mount do not read every tree twice. In it are
//!
//! - `NAME.erofs` for every root, and for every closure that the configuration names,
//! - `HEX.erofs` for the digest (64 hex digits) of a directory that is a root.
//!
//! **A name is resolved when it is looked up**, and the file that it gave stays the image of the same
//! tree, whatever the name stands for later. So names are never kept by the kernel, and files are found
//! again by the next process: the hand-over state lists what each image shows.
//!
//! **Layouts are computed, not stored.** Of the images that were read last, layouts are kept within
//! [`LAYOUT_BYTES`]; another is made again when it is read.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::errno::{self, failure};
use super::node_id::{NodeId, Place};
use super::nodes::Ledger;
use super::root_lookup::RootListing;
use super::top::{SeenRoot, Top};
use super::waiting::Waiting;
use super::{CastoreFs, FOREVER, NOT_AT_ALL, attributes, slow};
use crate::castore::{Digest, Name, NodeRef, Root};
use crate::image::{ImageLocation, ImageTop, ImageVersion};
use crate::store::Bounded;
use crate::tree::{ImageFile, ImageFileError, Waits, image_top};

/// The name of the directory.
pub(super) const DIRECTORY: &[u8] = b".images";
/// What the name of an image ends with.
const SUFFIX: &[u8] = b".erofs";
/// The slot of the directory: no node table reaches it.
const SLOT: u32 = u32::MAX;
/// The inode number of the directory; those of images follow. Paths have numbers below.
const DIRECTORY_INO: u64 = 1 << 63;
/// Bytes of layouts that are kept.
const LAYOUT_BYTES: usize = 64 << 20;
/// Images that are listed by who asks for the mount's state.
const MOST_COUNTED: usize = 100;
/// The cookie of the first closure in a listing; roots have theirs below.
const FIRST_CLOSURE: u64 = 1 << 40;

/// Images of several roots, by name. The service changes them when its configuration changes.
#[derive(Debug, Default)]
pub struct ImageClosures(RwLock<BTreeMap<Name, Vec<Name>>>);

impl ImageClosures {
    /// From now on there are the closures `now`: for each name the names of roots.
    pub fn set(&self, now: BTreeMap<Name, Vec<Name>>) {
        *self.0.write() = now;
    }

    fn get(&self, name: &[u8]) -> Option<Vec<Name>> {
        let name = Name::new(name).ok()?;
        self.0.read().get(&name).cloned()
    }

    fn nth(&self, index: usize) -> Option<Name> {
        self.0.read().keys().nth(index).cloned()
    }
}

/// The images of a mount.
pub(super) struct Images {
    closures: Arc<ImageClosures>,
    seen: RwLock<Seen>,
    files: Mutex<Bounded<u32, Arc<ImageFile>>>,
    ledger: Option<Arc<Ledger>>,
}

/// The images that were looked up, for the life of the mount: an index names one tree.
#[derive(Default)]
struct Seen {
    all: Vec<Arc<SeenImage>>,
    by_digest: HashMap<Digest, u32>,
}

struct SeenImage {
    index: u32,
    top: ImageTop,
    /// Bytes that were read of it.
    read: AtomicU64,
    /// Held while its layout is made.
    making: tokio::sync::Mutex<()>,
}

/// An image of a mount, and what was read of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCount {
    /// The digest of the Directory at its top, in hex digits.
    pub digest: String,
    /// The version of its layout.
    pub layout_version: u8,
    /// Bytes of the image; nothing while its layout is not in memory.
    pub size: Option<u64>,
    /// Bytes of memory that its layout takes.
    pub layout_bytes: u64,
    /// Bytes that the kernel read of it since this process serves the mount.
    pub read_bytes: u64,
}

impl Seen {
    fn push(&mut self, top: ImageTop) -> Arc<SeenImage> {
        let index = self.all.len() as u32;
        self.by_digest.insert(top.digest(), index);
        let image = Arc::new(SeenImage {
            index,
            top,
            read: AtomicU64::new(0),
            making: tokio::sync::Mutex::default(),
        });
        self.all.push(image.clone());
        image
    }
}

impl Images {
    /// No image was looked up yet, but for those of `tops`, in that order, which a previous process
    /// has left in `ledger`.
    pub(super) fn new(
        closures: Arc<ImageClosures>,
        tops: Vec<ImageTop>,
        ledger: Option<Arc<Ledger>>,
    ) -> Self {
        let mut seen = Seen::default();
        for top in tops {
            seen.push(top);
        }
        Self {
            closures,
            seen: RwLock::new(seen),
            files: Mutex::new(Bounded::new(LAYOUT_BYTES)),
            ledger,
        }
    }

    /// The image of `top`, with an index of its own.
    fn image(&self, top: ImageTop) -> Arc<SeenImage> {
        let find = |seen: &Seen| {
            let index = *seen.by_digest.get(&top.digest())?;
            seen.all.get(index as usize).cloned()
        };
        if let Some(image) = find(&self.seen.read()) {
            return image;
        }
        let mut seen = self.seen.write();
        if let Some(image) = find(&seen) {
            return image;
        }
        if let Some(ledger) = &self.ledger {
            ledger.append_image(&top);
        }
        seen.push(top)
    }

    fn get(&self, index: u32) -> Option<Arc<SeenImage>> {
        self.seen.read().all.get(index as usize).cloned()
    }

    fn count(&self, image: &SeenImage) -> ImageCount {
        let file = self.files.lock().get(&image.index);
        let layout = file.as_ref().map(|file| file.layout());
        ImageCount {
            digest: image.top.digest().to_hex(),
            layout_version: ImageVersion::default().number(),
            size: layout.map(|layout| layout.size()),
            layout_bytes: layout.map_or(0, |layout| layout.resident_bytes() as u64),
            read_bytes: image.read.load(Ordering::Relaxed),
        }
    }
}

impl Waits for Waiting {
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.block(work)
    }
}

/// What a node id names in `.images`.
enum Shown {
    Directory,
    Image(u32),
}

/// Whether `id` is in `.images`, or that itself.
pub(super) fn is_image(id: NodeId) -> bool {
    shown(id).is_some()
}

fn shown(id: NodeId) -> Option<Shown> {
    match id.place()? {
        Place::Directory(SLOT) => Some(Shown::Directory),
        Place::Entry { slot: SLOT, index } => Some(Shown::Image(index)),
        _ => None,
    }
}

impl CastoreFs {
    /// The images that were looked up, if this mount shows any: the last `MOST_COUNTED` of them.
    pub fn image_counts(&self) -> Vec<ImageCount> {
        let Some(images) = &self.images else {
            return Vec::new();
        };
        let all = images.seen.read().all.clone();
        let counted = all.iter().rev().take(MOST_COUNTED);
        counted.map(|image| images.count(image)).collect()
    }

    /// What is at `offset` of the image `id`, as far as it is known without waiting.
    pub(super) fn image_location(&self, id: NodeId, offset: u64) -> Option<ImageLocation> {
        let (images, Shown::Image(index)) = self.shown_image(id)? else {
            return None;
        };
        let file = images.files.lock().get(&index)?;
        file.location(offset)
    }

    /// What is in `.images`, if `id` is of there and this mount has it.
    fn shown_image(&self, id: NodeId) -> Option<(&Images, Shown)> {
        Some((self.images.as_ref()?, shown(id)?))
    }

    /// The directory `.images`, for a lookup of `name` at the top that found nothing else.
    pub(super) fn look_up_images(&self, name: &[u8]) -> io::Result<Option<Entry>> {
        if self.images.is_none() || name != DIRECTORY {
            return Ok(None);
        }
        // A root of that name can come at any moment.
        let id = NodeId::directory(SLOT);
        Ok(Some(entry(id, self.stat_images_directory()?, NOT_AT_ALL)))
    }

    /// Looks up `name` in `.images`, if that is what `parent` is.
    pub(super) fn look_up_image(&self, parent: NodeId, name: &[u8]) -> io::Result<Option<Entry>> {
        let Some((images, shown)) = self.shown_image(parent) else {
            return Ok(None);
        };
        let Shown::Directory = shown else {
            return Err(failure(libc::ENOTDIR));
        };
        let name = name.strip_suffix(SUFFIX).ok_or(failure(libc::ENOENT))?;
        let top = self.resolve_image(images, name)?;
        let image = images.image(top.ok_or(failure(libc::ENOENT))?);
        let stat = self.stat_image(images, &image)?;
        let id = NodeId::entry(SLOT, image.index);
        Ok(Some(entry(id, stat, NOT_AT_ALL)))
    }

    /// What the image `name` shows at this moment.
    fn resolve_image(&self, images: &Images, name: &[u8]) -> io::Result<Option<ImageTop>> {
        if let Top::Directory { digest, .. } = &self.options.top {
            let is_it = name == digest.to_hex().as_bytes();
            return Ok(is_it.then_some(ImageTop::Directory(*digest)));
        }
        if let Some(names) = images.closures.get(name) {
            let mut roots = Vec::with_capacity(names.len());
            for root in &names {
                let Some(found) = self.find_root(root)? else {
                    tracing::warn!(
                        image = %name.escape_ascii(), root = %root,
                        "an image names a root that does not exist: import it, or take it out of \
                         the image's roots"
                    );
                    return Ok(None);
                };
                roots.push(found);
            }
            let top = ImageTop::roots(&roots).map_err(|_| failure(libc::EINVAL))?;
            return Ok(Some(top));
        }
        if let Some(root) = self.find_root(name)? {
            let top = image_top(&[root]).map_err(|_| failure(libc::EINVAL))?;
            return Ok(Some(top));
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
        Ok(found.then_some(ImageTop::Directory(digest)))
    }

    /// The attributes of `id`, if it is in `.images`, and how long they hold.
    pub(super) fn stat_shown_image(&self, id: NodeId) -> io::Result<Option<(stat64, Duration)>> {
        let Some((images, shown)) = self.shown_image(id) else {
            return Ok(None);
        };
        Ok(Some(match shown {
            Shown::Directory => (self.stat_images_directory()?, NOT_AT_ALL),
            Shown::Image(index) => {
                let image = images.get(index).ok_or(failure(libc::ESTALE))?;
                (self.stat_image(images, &image)?, FOREVER)
            }
        }))
    }

    /// As the top's, whose mtime tells the kernel that a listing is stale.
    fn stat_images_directory(&self) -> io::Result<stat64> {
        let mut stat = self.stat_roots()?;
        stat.st_ino = DIRECTORY_INO;
        stat.st_nlink = 2;
        Ok(stat)
    }

    fn stat_image(&self, images: &Images, image: &Arc<SeenImage>) -> io::Result<stat64> {
        let size = self.image_file(images, image)?.size();
        let node = NodeRef::File {
            digest: image.top.digest(),
            size,
            executable: false,
        };
        let ino = DIRECTORY_INO + 1 + u64::from(image.index);
        Ok(attributes::attributes(node, ino, 0, self.options.owner))
    }

    /// The image with its layout, which is made if it is not at hand.
    fn image_file(&self, images: &Images, image: &SeenImage) -> io::Result<Arc<ImageFile>> {
        if let Some(file) = images.files.lock().get(&image.index) {
            return Ok(file);
        }
        let _one = self.waiting.block(image.making.lock());
        if let Some(file) = images.files.lock().get(&image.index) {
            return Ok(file);
        }
        let (store, version) = (self.store.clone(), ImageVersion::default());
        let file = ImageFile::new(store, image.top.clone(), version, &self.waiting)
            .map_err(|error| self.image_failed(&image.top, None, &error))?;
        let file = Arc::new(file);
        let bytes = file.layout().resident_bytes();
        images.files.lock().insert(image.index, file.clone(), bytes);
        Ok(file)
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
        let Shown::Image(index) = shown else {
            return Some(Err(failure(libc::EISDIR)));
        };
        slow::reads_at(offset);
        let image = images.get(index).ok_or(failure(libc::ESTALE));
        Some(image.and_then(|image| {
            let file = self.image_file(images, &image)?;
            let read = file.read_at(offset, buffer, &self.waiting);
            let read = read.inspect(|length| {
                image.read.fetch_add(*length as u64, Ordering::Relaxed);
            });
            read.map_err(|error| self.image_failed(&image.top, Some((&file, offset)), &error))
        }))
    }

    /// Whether a request for `node` may block: those in `.images`. It needs a thread of its own.
    pub fn may_block(&self, node: u64) -> bool {
        self.images.is_some() && is_image(NodeId::from(node))
    }

    /// What the image `id` shows, if it is one.
    pub(super) fn image_digest(&self, id: NodeId) -> Option<Digest> {
        let (images, Shown::Image(index)) = self.shown_image(id)? else {
            return None;
        };
        Some(images.get(index)?.top.digest())
    }

    /// Lists `.images`, if that is what `id` is, from the cookie `offset` on; whether it was.
    pub(super) fn list_images(
        &self,
        id: NodeId,
        offset: u64,
        take: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let Some((images, shown)) = self.shown_image(id) else {
            return Ok(false);
        };
        let Shown::Directory = shown else {
            return Err(failure(libc::ENOTDIR));
        };
        let mut give = |offset: u64, name: &[u8], kind: u8| {
            let listed = DirEntry {
                ino: DIRECTORY_INO,
                offset,
                type_: u32::from(kind),
                name,
            };
            take(listed).map(|taken| taken > 0)
        };
        for (cookie, name) in [(1, b"." as &[u8]), (2, b"..")] {
            if offset < cookie && !give(cookie, name, libc::DT_DIR)? {
                return Ok(true);
            }
        }
        let image_name = |name: &[u8]| [name, SUFFIX].concat();
        match &self.options.top {
            Top::Directory { digest, .. } => {
                if offset < 3 {
                    give(3, &image_name(digest.to_hex().as_bytes()), libc::DT_REG)?;
                }
                return Ok(true);
            }
            Top::Roots {
                list: RootListing::Nothing | RootListing::Refused,
            } => {}
            Top::Roots {
                list: RootListing::All,
            } => {
                if offset < 3 {
                    self.refresh_roots()
                        .map_err(|stop| self.stopped(NodeId::ROOT, None, stop))?;
                }
                let mut next = offset.saturating_sub(2);
                while let Ok(index) = u32::try_from(next)
                    && let Some(SeenRoot { index, root, .. }) = self.roots.next(index)
                {
                    next = u64::from(index) + 1;
                    let name = image_name(&root.name);
                    let has_closure = images.closures.get(&root.name).is_some();
                    if Name::new(&name).is_ok()
                        && !has_closure
                        && !give(next + 2, &name, libc::DT_REG)?
                    {
                        return Ok(true);
                    }
                }
            }
        }
        let mut next = offset.saturating_sub(FIRST_CLOSURE) as usize;
        while let Some(name) = images.closures.nth(next) {
            next += 1;
            let name = image_name(&name);
            if Name::new(&name).is_ok() && !give(FIRST_CLOSURE + next as u64, &name, libc::DT_REG)?
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
            Shown::Directory => format!("/{directory}"),
            Shown::Image(index) => match images.get(index) {
                Some(image) => format!("/{directory}/{}.erofs", image.top.digest().to_hex()),
                None => format!("/{directory}/?"),
            },
        })
    }

    /// Logs that the image of `top` cannot be made, or read at an offset, and gives the errno.
    fn image_failed(
        &self,
        top: &ImageTop,
        read: Option<(&ImageFile, u64)>,
        error: &ImageFileError,
    ) -> io::Error {
        let errno = match error {
            ImageFileError::TooLarge(_) => libc::EFBIG,
            ImageFileError::Absent { .. } => libc::EIO,
            ImageFileError::Store(error) => errno::errno(error),
        };
        let endpoint = match error {
            ImageFileError::Store(error) => errno::endpoint(error),
            _ => None,
        };
        let offset = read.map(|(_, offset)| offset);
        let location = read.and_then(|(file, offset)| file.location(offset));
        tracing::error!(
            image = %top.digest(),
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
