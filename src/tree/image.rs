//! The image of a tree as a file: any range of it, out of a store.
//!
//! An [`ImageFile`] stores no bytes of its own. Metadata is generated from Directories, everything
//! else is read from the blobs, through the store's verified reads. It is made when all Directories
//! of the tree are known, and fetches them level by level, those of a level at once; blobs are read
//! with the range that holds them.
//!
//! **Cached Directories are bounded** ([`DIRECTORY_BYTES`]) and fetched again: from a local store
//! that costs microseconds. The layout itself takes some bytes a name.
//!
//! **A range is complete or an error.** A kernel would take a short answer for zeros.

mod export;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Handle;

use crate::castore::{Digest, Directory, NodeRef, Root};
use crate::image::{
    DirectorySource, ImageError, ImageExtent, ImageLayout, ImageLocation, ImageRoot, ImageVersion,
};
use crate::store::{self, Answer, Bounded, Object, Store};

pub use export::{image_to_file, write_image};

/// Bytes of Directories that an image keeps in memory.
const DIRECTORY_BYTES: usize = 16 << 20;
/// Directories that are fetched at once.
const AT_ONCE: usize = 32;

/// How a thread waits for a store.
pub trait StoreWaiter {
    /// The outcome of `work`; blocks until there is one, or there is no time left for it.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T>;
}

impl StoreWaiter for Handle {
    fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        Some(self.block_on(work))
    }
}

/// Has no time at all: only what is cached can be read.
pub struct NoTime;

impl StoreWaiter for NoTime {
    fn wait<T>(&self, _: impl Future<Output = T>) -> Option<T> {
        None
    }
}

/// Why there is no image, or why a range of it cannot be read.
#[derive(Debug, Error)]
pub enum ImageFileError {
    /// The tree is too large for an image.
    #[error("no image: {0}")]
    TooLarge(String),
    /// An object that a node of the tree refers to is not in the store.
    #[error("{store} does not have the {object} {digest}")]
    Absent {
        /// The store's URL.
        store: String,
        /// What kind of object.
        object: Object,
        /// Its digest.
        digest: Digest,
    },
    /// The store failed, or the object is damaged.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What it takes did not come in the time that there was.
    #[error("{0} did not come in time")]
    TooLate(Object),
}

impl From<ImageError<ImageFileError>> for ImageFileError {
    fn from(error: ImageError<ImageFileError>) -> Self {
        match error {
            ImageError::Source(error) => error,
            other => ImageFileError::TooLarge(other.to_string()),
        }
    }
}

/// An image of a tree in a store.
pub struct ImageFile {
    store: Arc<dyn Store>,
    layout: ImageLayout,
    directories: ImageDirectories,
}

/// The cached Directories of an image.
struct ImageDirectories {
    /// The Directories of the roots: an object store finds those below only once it has read these.
    image_roots: Vec<Digest>,
    kept: Mutex<Bounded<Digest, Directory>>,
}

impl ImageFile {
    /// The image of `image_root` in `store`, in layout `version`. Waits for every Directory.
    pub fn new(
        store: Arc<dyn Store>,
        image_root: ImageRoot,
        version: ImageVersion,
        waiter: &impl StoreWaiter,
    ) -> Result<Self, ImageFileError> {
        let image_roots = match &image_root {
            ImageRoot::Directory(digest) => vec![*digest],
            ImageRoot::Roots(directory) => subdirectories(directory).collect(),
        };
        let directories = ImageDirectories {
            image_roots,
            kept: Mutex::new(Bounded::new(DIRECTORY_BYTES)),
        };
        let source = ImageFetch {
            store: &store,
            directories: &directories,
            waiter,
        };
        let layout = ImageLayout::new(image_root, version, &source)?;
        Ok(Self {
            store,
            layout,
            directories,
        })
    }

    /// The layout.
    pub fn layout(&self) -> &ImageLayout {
        &self.layout
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// Fills `buffer` with the image at `offset`, unless the image ends first; returns the number
    /// of bytes. Blobs that the range needs are fetched at once.
    ///
    /// Fails as a whole if any part of it cannot be read.
    pub fn read_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        waiter: &impl StoreWaiter,
    ) -> Result<usize, ImageFileError> {
        let length = self.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..length];
        let source = self.source(waiter);
        let extents = self.extents(offset, length as u64, &source)?;
        if extents.len() > 1 {
            self.announce(&extents);
        }
        let mut done = 0;
        for extent in extents {
            let part = &mut buffer[done..done + extent.length() as usize];
            match extent {
                ImageExtent::Metadata(_) => {
                    let at = offset + done as u64;
                    self.layout.read_metadata(at, part, &source)?;
                }
                ImageExtent::Zeros(_) => part.fill(0),
                ImageExtent::Blob {
                    digest,
                    size,
                    offset,
                    ..
                } => self.read_blob(&digest, size, offset, part, waiter)?,
            }
            done += extent.length() as usize;
        }
        Ok(length)
    }

    /// Makes the store fetch the blobs of `length` bytes at `offset`, and returns at once
    /// unless a Directory has to be waited for.
    pub fn will_need(
        &self,
        offset: u64,
        length: u64,
        waiter: &impl StoreWaiter,
    ) -> Result<(), ImageFileError> {
        let length = self.size().saturating_sub(offset).min(length);
        let extents = self.extents(offset, length, &self.source(waiter))?;
        self.announce(&extents);
        Ok(())
    }

    /// What is at `offset`, if that is known without waiting. For logs.
    pub fn location(&self, offset: u64) -> Option<ImageLocation> {
        let source = CachedDirectorySource {
            store: &self.store,
            directories: &self.directories,
        };
        self.layout.location(offset, &source).ok()
    }

    fn source<'a, W>(&'a self, waiter: &'a W) -> ImageFetch<'a, W> {
        ImageFetch {
            store: &self.store,
            directories: &self.directories,
            waiter,
        }
    }

    /// The extents of `length` bytes at `offset`, which are within the image.
    fn extents<W: StoreWaiter>(
        &self,
        offset: u64,
        length: u64,
        source: &ImageFetch<'_, W>,
    ) -> Result<Vec<ImageExtent>, ImageFileError> {
        let mut extents = Vec::new();
        let mut done = 0;
        while done < length
            && let Some(extent) = self.layout.extent_at(offset + done, source)?
        {
            let extent = extent.first(length - done);
            done += extent.length();
            extents.push(extent);
        }
        Ok(extents)
    }

    fn announce(&self, extents: &[ImageExtent]) {
        let blob = |extent: &ImageExtent| match extent {
            ImageExtent::Blob { digest, size, .. } => Some((*digest, *size)),
            _ => None,
        };
        let blobs: Vec<_> = extents.iter().filter_map(blob).collect();
        if !blobs.is_empty() {
            self.store.will_need(&blobs);
        }
    }

    fn read_blob(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
        waiter: &impl StoreWaiter,
    ) -> Result<(), ImageFileError> {
        let read = match self.store.read_now(digest, size, offset, buffer)? {
            Answer::Found(length) => Some(length),
            Answer::Absent => None,
            Answer::Wait => {
                let read = self.store.read(digest, size, offset, buffer.len());
                let read = waiter.wait(read);
                read.ok_or(ImageFileError::TooLate(Object::Blob))??
                    .map(|bytes| {
                        let length = bytes.len().min(buffer.len());
                        buffer[..length].copy_from_slice(&bytes[..length]);
                        length
                    })
            }
        };
        match read {
            Some(length) if length == buffer.len() => Ok(()),
            _ => Err(ImageFileError::Absent {
                store: self.store.url().to_owned(),
                object: Object::Blob,
                digest: *digest,
            }),
        }
    }
}

/// What to show in the root of an image of `roots`: the directory itself if there is one root, and
/// that is a directory, otherwise a list of their names.
///
/// Fails if two roots have the same name.
pub fn image_root(roots: &[Root]) -> Result<ImageRoot, ImageFileError> {
    if let [root] = roots
        && let NodeRef::Directory { digest, .. } = root.node.borrow()
    {
        return Ok(ImageRoot::Directory(digest));
    }
    ImageRoot::roots(roots).map_err(|error| ImageFileError::TooLarge(error.to_string()))
}

/// Directories from the cache or from a store.
struct ImageFetch<'a, W> {
    store: &'a Arc<dyn Store>,
    directories: &'a ImageDirectories,
    waiter: &'a W,
}

impl<W: StoreWaiter> ImageFetch<'_, W> {
    fn find(&self, digest: &Digest) -> Result<Option<Directory>, ImageFileError> {
        if let Some(directory) = self.directories.kept.lock().get(digest) {
            return Ok(Some(directory));
        }
        let found = match self.store.directory_now(digest)? {
            Answer::Found(directory) => Some(directory),
            Answer::Absent => None,
            Answer::Wait => self.wait(self.store.directory(digest))??,
        };
        if let Some(directory) = &found {
            self.keep(directory);
        }
        Ok(found)
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, ImageFileError> {
        let late = ImageFileError::TooLate(Object::Directory);
        self.waiter.wait(work).ok_or(late)
    }

    fn keep(&self, directory: &Directory) {
        let (digest, bytes) = (directory.digest(), directory.resident_bytes());
        let mut kept = self.directories.kept.lock();
        kept.insert(digest, directory.clone(), bytes);
    }
}

impl<W: StoreWaiter> DirectorySource for ImageFetch<'_, W> {
    type Error = ImageFileError;

    fn directory(&self, digest: &Digest) -> Result<Directory, ImageFileError> {
        if let Some(directory) = self.find(digest)? {
            return Ok(directory);
        }
        for image_root in &self.directories.image_roots {
            self.wait(self.store.directory(image_root))??;
            if let Some(directory) = self.find(digest)? {
                return Ok(directory);
            }
        }
        Err(ImageFileError::Absent {
            store: self.store.url().to_owned(),
            object: Object::Directory,
            digest: *digest,
        })
    }

    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, ImageFileError> {
        let mut upstream = Vec::new();
        let mut found = HashMap::new();
        for digest in digests {
            match self.store.directory_now(digest)? {
                Answer::Found(directory) => drop(found.insert(*digest, directory)),
                Answer::Wait => upstream.push(*digest),
                Answer::Absent => {}
            }
        }
        let asked = upstream.iter().map(|digest| self.store.directory(digest));
        let asked = stream::iter(asked).buffered(AT_ONCE).collect::<Vec<_>>();
        if !upstream.is_empty() {
            for directory in self.wait(asked)? {
                found.extend(directory?.map(|directory| (directory.digest(), directory)));
            }
        }
        let directory = |digest| match found.remove(digest) {
            Some(directory) => Ok(directory),
            None => self.directory(digest),
        };
        digests.iter().map(directory).collect()
    }
}

/// Directories from the cache only.
struct CachedDirectorySource<'a> {
    store: &'a Arc<dyn Store>,
    directories: &'a ImageDirectories,
}

impl DirectorySource for CachedDirectorySource<'_> {
    type Error = ();

    fn directory(&self, digest: &Digest) -> Result<Directory, ()> {
        if let Some(directory) = self.directories.kept.lock().get(digest) {
            return Ok(directory);
        }
        match self.store.directory_now(digest) {
            Ok(Answer::Found(directory)) => Ok(directory),
            _ => Err(()),
        }
    }

    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, ()> {
        digests
            .iter()
            .map(|digest| self.directory(digest))
            .collect()
    }
}

fn subdirectories(directory: &Directory) -> impl Iterator<Item = Digest> + '_ {
    directory.iter().filter_map(|entry| match entry.node {
        NodeRef::Directory { digest, .. } => Some(digest),
        _ => None,
    })
}
