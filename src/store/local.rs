//! A store in a folder: `local:PATH`.
//!
//! Built for two things: to read small files about as fast as the file system below can, and never
//! to lose or show half of anything, whatever dies when. `docs/store-format.md` has every byte.
//!
//! ```text
//! format            which format this is
//! index.redb        what there is, and where
//! sequence          tells readers that the index changed
//! packs/N.pack      small blobs one behind the other, in the order they came; Directories, in
//!                   packs of their own, in the order a walk meets them
//! blobs/xx/…        each larger blob as a plain file
//! tmp/              what is being written
//! ```
//!
//! **Order of durability.** Blobs reach the disk first, then Directories, then the index, whose
//! commit is the one moment at which everything becomes visible. Whatever lies about without an
//! index entry was left by a process that died, unless somebody holds a lock on it, and is taken
//! back when the store is next opened for writing.
//!
//! **Many processes.** Any number read while any number add. An addition writes to packs that it
//! alone has locked, and waits for others only in the commit of the index, which is short.
//! Processes that only read need no permission to write and leave no trace.

mod cache;
mod closure;
mod folder;
mod index;
mod ingest;
mod large;
mod location;
mod pack;
mod read;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use self::folder::Folder;
use self::index::Index;
use self::ingest::LocalIngest;
use self::location::{Kind, Location};
use self::read::Files;
use super::{Answer, BackingFile, Error, Ingest, Store, Usage};
use crate::castore::{BlobHasher, Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// A store in a folder. Clones are the same store.
#[derive(Clone)]
pub struct LocalStore(Arc<Inner>);

struct Inner {
    folder: Arc<Folder>,
    index: Index,
    files: Files,
    /// Whether what dead processes left was taken back.
    reclaimed: Mutex<bool>,
}

impl LocalStore {
    /// Opens the store in the folder `path`; makes it if there is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let folder = Arc::new(Folder::new(path));
        folder.prepare(|path| index::create(&folder, path))?;
        Ok(Self(Arc::new(Inner {
            index: Index::open(folder.clone())?,
            files: Files::new(folder.clone()),
            folder,
            reclaimed: Mutex::new(false),
        })))
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Location>, Error> {
        self.0.index.look_up(|snapshot| snapshot.blob(digest))
    }

    /// The place of a blob that somebody says is `size` bytes long.
    fn blob_of_size(&self, digest: &Digest, size: u64) -> Result<Option<Location>, Error> {
        match self.blob(digest)? {
            Some(at) if at.len != size => Err(self.0.files.wrong_size(digest, size, at.len)),
            found => Ok(found),
        }
    }
}

impl Inner {
    /// Checks that we may write, and takes back what dead processes left.
    fn prepare_to_write(&self) -> Result<(), Error> {
        let mut reclaimed = self.reclaimed.lock();
        if *reclaimed {
            return Ok(());
        }
        self.folder.check_writable()?;
        // The index is not even opened for writing as long as nothing is to be written.
        let packs = self.index.fresh()?.packs()?;
        if large::has_leftovers(&self.folder)? || pack::has_leftovers(&self.folder, &packs)? {
            large::reclaim(&self.folder, &self.index)?;
            pack::reclaim(&self.folder, &self.index)?;
        }
        *reclaimed = true;
        Ok(())
    }

    /// Takes back what an addition that failed could not: now, or when the next one starts.
    fn reclaim_again(&self) {
        *self.reclaimed.lock() = false;
        let _ = self.prepare_to_write();
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({})", self.0.folder.url())
    }
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> &str {
        self.0.folder.url()
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        let at = self
            .0
            .index
            .look_up(|snapshot| snapshot.directory(digest))?;
        let directory = at
            .map(|at| self.0.files.directory(digest, at))
            .transpose()?;
        Ok(directory.into())
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        match self.blob_of_size(digest, size)? {
            Some(at) => {
                let read = self.0.files.read(digest, at, offset, buffer)?;
                Ok(Answer::Found(read))
            }
            None if *digest != Digest::empty_blob() => Ok(Answer::Absent),
            None if size == 0 => Ok(Answer::Found(0)),
            None => Err(self.0.files.wrong_size(digest, size, 0)),
        }
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.0.index.fresh()?.root(name)?.into())
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        match self.blob_of_size(digest, size)? {
            Some(at) if at.kind == Kind::Large => {
                let file = self.0.files.large_file(digest, size)?;
                Ok(Some(BackingFile { file }))
            }
            _ => Ok(None),
        }
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.0.index.fresh()?.roots()
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.0.index.fresh()?.path_info(name)
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(*digest == Digest::empty_blob() || self.blob(digest)?.is_some())
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let size = self.blob(digest)?.map(|at| at.len);
        Ok(size.or((*digest == Digest::empty_blob()).then_some(0)))
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        match self.blob_of_size(digest, size)? {
            Some(at) => self.0.files.group_table(digest, at).map(Some),
            None if *digest == Digest::empty_blob() && size == 0 => {
                Ok(Some(BlobHasher::new().finish().1))
            }
            None => Ok(None),
        }
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.0.index.fresh()?.usage().map(Some)
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.0.index.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.0.index.wait_for_roots(seen, timeout)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.0.prepare_to_write()?;
        // What was committed before this begins is not stored again.
        self.0.index.fresh()?;
        Ok(Box::new(LocalIngest::new(self.0.clone())))
    }
}
