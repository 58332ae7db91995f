//! A store in a directory: `local:PATH`.
//!
//! Two goals: reading small files about as fast as the underlying file system can, and never losing
//! or showing half of anything, whichever process dies at whatever moment. `docs/store-format.md`
//! has every byte.
//!
//! ```text
//! format            which version this is, and whether it is only a cache
//! index.redb        what there is, and where
//! journal           names of roots, PathInfos, pins, valid paths, from which a lost index is rebuilt
//! sequence          notifies readers that the index changed
//! packs/N.pack      small blobs one after the other, in the order they came; Directories, in
//!                   packs of their own, in the order a walk meets them
//! blobs/xx/…        each larger blob as a plain file
//! parts/            what a cache has of large blobs that it does not have whole
//! additions         locked by every addition, and by a garbage collection
//! leases/           what mounts have in use
//! tmp/              what is being written
//! ```
//!
//! **Order of durability.** Blobs reach the disk first, then Directories, then the index, whose
//! commit is the one moment at which everything becomes visible. A file without an index entry was
//! left by a process that died, unless a process holds a lock on it, and is removed when the store
//! is next opened for writing.
//!
//! **Many processes.** Any number read while any number add. An addition writes to packs that it
//! has locked exclusively, and waits for others only in the commit of the index, which is short.
//! Processes that only read need no permission to write and leave no trace.

mod cache_store;
mod damage;
mod dir;
mod format;
mod gc;
mod index;
mod ingest;
mod journal;
mod large;
mod leases;
mod location;
mod owner;
mod pack;
mod parts;
mod read;
mod rebuild;
pub(crate) mod url;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use self::damage::FoundDamage;
pub(crate) use self::dir::OUR_NAMES;
use self::dir::StoreDirectory;
pub(super) use self::gc::CacheRetention;
pub use self::gc::{GcOptions, GcProgress, GcReport, GcResult, SparedObjects};
pub(crate) use self::index::CachedRoot;
pub use self::index::{ChunkPlace, RootRecord, StoredChunk, ValidPath, WaitingNar};
use self::index::{CommitError, Index, Snapshot};
use self::ingest::ClosureCheck;
pub(super) use self::ingest::LocalIngest;
use self::ingest::LocalStaged;
use self::journal::JournalPosition;
pub use self::leases::InUseLease;
use self::location::{ObjectLocation, StorageKind};
use self::parts::PartialBlobs;
use self::read::PackFiles;
pub use self::rebuild::{RebuiltIndex, RepairOutcome};
use super::{Answer, BackingFile, Error, Health, Ingest, Object, Store, StoreUsage, in_place};
use crate::castore::{BlobHasher, Digest, Directory, GroupTable, Node, NodeRef, Root};
use crate::nix::PathInfo;

/// A store in a directory. Clones are the same store.
#[derive(Clone)]
pub struct LocalStore(Arc<LocalInner>);

/// A state of the roots, pins and valid paths of a local store: how far its journal was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamesVersion(JournalPosition);

struct LocalInner {
    dir: Arc<StoreDirectory>,
    index: Index,
    files: PackFiles,
    parts: PartialBlobs,
    /// The removal counter at the last check.
    removals: AtomicU64,
    /// Whether the leftovers of dead processes were removed.
    reclaimed: Mutex<bool>,
    /// The objects that reads have found damaged.
    found: FoundDamage,
}

impl LocalStore {
    /// Whether there is a store in the directory `path`, complete or not.
    pub(crate) fn may_be_in(path: &Path) -> bool {
        !matches!(path.join("format").try_exists(), Ok(false)) || format::holds_data(path)
    }

    /// Opens the store in the directory `path`; makes it if it does not exist.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_as(path, false)
    }

    /// With `cache_only`, a new store is marked as one that can be fetched again.
    fn open_as(path: &Path, cache_only: bool) -> Result<Self, Error> {
        let dir = Arc::new(StoreDirectory::new(path));
        dir.prepare(cache_only, |path| index::create(&dir, path))?;
        Ok(Self(Arc::new(LocalInner {
            index: Index::open(dir.clone())?,
            files: PackFiles::new(dir.clone()),
            parts: PartialBlobs::new(dir.clone()),
            removals: AtomicU64::new(0),
            dir,
            reclaimed: Mutex::new(false),
            found: FoundDamage::default(),
        })))
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    fn blob(&self, digest: &Digest) -> Result<Option<ObjectLocation>, Error> {
        self.0.index.look_up(|snapshot| snapshot.blob(digest))
    }

    /// Runs `read` on the blob `digest`, which a node states to be `size` bytes long.
    fn with_blob<T>(
        &self,
        digest: &Digest,
        size: u64,
        mut work: impl FnMut(ObjectLocation) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let find = |snapshot: &Snapshot| snapshot.blob(digest);
        let done = self.0.with_object(find, |at| match at.len == size {
            true => work(at).map(Ok),
            false => Ok(Err(self.0.files.wrong_size(digest, size, at.len))),
        });
        // A wrong size in a node is no damage of the blob.
        self.0.note_damage(Object::Blob, digest, done)?.transpose()
    }

    /// The length of a blob in the index.
    pub(super) fn indexed_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        Ok(self.blob(digest)?.map(|at| at.len))
    }

    /// Whether the blob `digest` is stored.
    pub(crate) fn has_blob_now(&self, digest: &Digest) -> Result<bool, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(true);
        }
        let there = self.blob(digest)?.is_some();
        let is_found = || self.0.found.has(Object::Blob, digest);
        Ok(there && !is_found() && !self.0.index.fresh()?.is_quarantined(Object::Blob, digest)?)
    }

    /// Whether `node` and everything below it is stored, by the index.
    pub(crate) fn is_whole(&self, node: &Node) -> Result<bool, Error> {
        match node.borrow() {
            NodeRef::Symlink { .. } => Ok(true),
            NodeRef::File { digest, .. } => self.has_blob_now(&digest),
            NodeRef::Directory { digest, .. } => {
                let at = (self.0.index).look_up(|snapshot| snapshot.directory(&digest))?;
                Ok(at.is_some_and(|at| at.kind == StorageKind::Whole))
            }
        }
    }

    /// The root `name`, if a cache in this store has it.
    pub(crate) fn cached_root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let found = self.0.index.fresh()?.cached_root(name)?;
        Ok(found.and_then(|found| found.root))
    }

    /// The path that the cached root `name` is, if what Nix has to know of it is cached too.
    pub(crate) fn cached_path(&self, name: &[u8]) -> Result<Option<ValidPath>, Error> {
        let found = self.0.index.fresh()?.cached_root(name)?;
        Ok(found.and_then(|found| ValidPath::of_root(*found.path_info?, found.root?)))
    }

    /// The cached roots of a cache in this store.
    pub(crate) fn cached_roots(&self) -> Result<HashMap<Bytes, CachedRoot>, Error> {
        self.0.index.fresh()?.cached_roots()
    }

    /// Stores cached roots for a cache, or removes them.
    pub(crate) fn set_cached_roots(
        &self,
        roots: &[(Bytes, Option<CachedRoot>)],
    ) -> Result<(), Error> {
        self.0.dir.check_writable()?;
        let mut change = self.0.index.change()?;
        change.set_cached_roots(roots)?;
        change.commit().map_err(CommitError::into_error)
    }

    /// Every root with its record, including those that wait for their content.
    pub fn root_records(&self) -> Result<Vec<RootRecord>, Error> {
        self.0.index.fresh()?.root_records()
    }

    /// The root `name` with its record, whether its content is stored or not.
    pub fn root_record(&self, name: &[u8]) -> Result<Option<RootRecord>, Error> {
        self.0.index.fresh()?.root_record(name)
    }

    /// The chunks of the blob `blob`, in order, if they were entered with
    /// [`set_chunk_list`](Self::set_chunk_list).
    pub fn chunk_list(&self, blob: &Digest) -> Result<Option<Vec<StoredChunk>>, Error> {
        self.0.index.fresh()?.chunk_list(blob)
    }

    /// Stores how a blob of this store is cut into chunks. The list is removed with the blob;
    /// nothing happens if the blob is not stored.
    pub fn set_chunk_list(&self, blob: &Digest, chunks: &[StoredChunk]) -> Result<(), Error> {
        self.0.dir.check_writable()?;
        let mut change = self.0.index.change()?;
        if change.blob(blob)?.is_none() {
            return Ok(());
        }
        change.set_chunk_list(blob, chunks)?;
        change.commit().map_err(CommitError::into_error)
    }

    /// Where the bytes of the chunk `digest` are, if it is in the list of a blob that is stored.
    pub fn chunk(&self, digest: &Digest) -> Result<Option<ChunkPlace>, Error> {
        self.0.index.fresh()?.chunk(digest)
    }

    /// The NAR that was uploaded as a file with the SHA-256 `file`, if it still waits for its narinfo.
    pub fn waiting_nar(&self, file: &[u8; 32]) -> Result<Option<WaitingNar>, Error> {
        self.0.index.fresh()?.waiting_nar(file)
    }

    /// Has a NAR wait whose contents are in this store. For a day, they stay without a root.
    pub fn put_waiting_nar(&self, file: &[u8; 32], waiting: &WaitingNar) -> Result<(), Error> {
        self.0.dir.check_writable()?;
        let mut change = self.0.index.change()?;
        if !change.put_waiting_nar(file, waiting)? {
            return Err(Error::Refused {
                store: self.0.dir.url().to_owned(),
                what: "a NAR without a narinfo".to_owned(),
                why: "too many wait already: send their narinfos, or wait for a day".to_owned(),
            });
        }
        change.commit().map_err(CommitError::into_error)
    }

    /// The path `name`, if it was reported to Nix as valid.
    pub fn valid_path(&self, name: &[u8]) -> Result<Option<ValidPath>, Error> {
        // One that was forgotten since the snapshot was taken is not valid.
        self.0.index.fresh()?;
        self.0.index.look_up(|snapshot| snapshot.valid_path(name))
    }

    /// The root that the path `name` was reported to Nix with; nothing if its contents were not known by then.
    pub(crate) fn reported_root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        self.0
            .index
            .look_up(|snapshot| snapshot.reported_root(name))
    }

    /// The paths that were reported to Nix as valid: all, or those whose name begins with `start`.
    pub fn valid_paths(&self, start: &[u8]) -> Result<Vec<ValidPath>, Error> {
        self.0.index.fresh()?.valid_paths(start)
    }

    /// The names of all paths that were reported to Nix as valid.
    pub fn valid_path_names(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.0.index.fresh()?.valid_path_names()
    }

    /// The version of the names: it changes with every commit of a root, a pin or a valid path.
    pub(crate) fn names_version(&self) -> Result<NamesVersion, Error> {
        self.0.index.fresh()?.journal().map(NamesVersion)
    }

    /// Enters, durably and in one commit, paths that are about to be reported to Nix as valid: `of_roots`, which
    /// are roots of this store, and `paths`. From now on their roots are neither removed nor replaced.
    ///
    /// Enters nothing and returns false if something has changed since they were looked at: a root is not what
    /// `of_roots` has of it, or what a path refers to is neither among them nor entered.
    pub fn add_valid_paths(
        &self,
        paths: &[ValidPath],
        of_roots: &[ValidPath],
    ) -> Result<bool, Error> {
        self.0.dir.check_writable()?;
        let mut change = self.0.index.change()?;
        if !change.add_valid_paths(paths, of_roots)? {
            return Ok(false);
        }
        change.commit().map_err(CommitError::into_error)?;
        Ok(true)
    }

    /// Forgets that the paths `names` were reported to Nix as valid: their roots can be removed again. Fails
    /// with [`Error::Refused`] if another reported path refers to one of them.
    pub fn forget_valid_paths(&self, names: &[&[u8]]) -> Result<(), Error> {
        self.0.dir.check_writable()?;
        let mut change = self.0.index.change()?;
        change.forget_valid_paths(names)?;
        change.commit().map_err(CommitError::into_error)
    }

    /// Fails as the removal of the roots `names` would for what was reported to Nix: with `forgets`, as
    /// [`forget_valid_paths`](Self::forget_valid_paths). Changes nothing.
    pub fn check_removal(&self, names: &[&[u8]], forgets: bool) -> Result<(), Error> {
        // Dropped without a commit.
        let mut change = self.0.index.change()?;
        match forgets {
            true => change.forget_valid_paths(names),
            false => names
                .iter()
                .try_for_each(|name| change.check_not_reported(name)),
        }
    }

    /// Begins an addition. Waits for a running garbage collection.
    pub(super) fn addition(&self) -> Result<LocalIngest, Error> {
        let store = &self.0;
        // First, so that a process without the right to write gets that error.
        store.dir.check_writable()?;
        let under_way = store.dir.begin_addition()?;
        store.prepare_to_write()?;
        // Damaged objects do not count as present.
        store.write_found_damage();
        // Objects that were committed before this begins are not stored again; those that were
        // collected are.
        store.index.fresh()?;
        Ok(LocalIngest::new(store.clone(), under_way))
    }
}

impl LocalInner {
    /// Checks that the store is writable, and removes leftovers of dead processes.
    fn prepare_to_write(&self) -> Result<(), Error> {
        let mut reclaimed = self.reclaimed.lock();
        if *reclaimed {
            return Ok(());
        }
        self.dir.check_writable()?;
        // The index is not even opened for writing as long as nothing is to be written.
        let packs = self.index.fresh()?.packs()?;
        if large::has_leftovers(&self.dir)? || pack::has_leftovers(&self.dir, &packs)? {
            large::reclaim(&self.dir, &self.index)?;
            pack::reclaim(&self.dir, &self.index)?;
        }
        *reclaimed = true;
        Ok(())
    }

    /// Reads an object. An object in an old snapshot may have been collected since, and added
    /// again: if it is not where it was, it is looked up again.
    fn with_object<T>(
        &self,
        find: impl Fn(&Snapshot) -> Result<Option<ObjectLocation>, Error>,
        mut work: impl FnMut(ObjectLocation) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(mut at) = self.index.look_up(&find)? else {
            return Ok(None);
        };
        loop {
            let error = match work(at) {
                Ok(done) => return Ok(Some(done)),
                Err(error) => error,
            };
            let place = |at: ObjectLocation| (at.pack, at.offset, at.len);
            match find(&*self.index.fresh()?)? {
                None => return Ok(None),
                Some(now) if place(now) == place(at) => return Err(error),
                Some(now) => at = now,
            }
        }
    }

    /// Closes files that were removed: they take space as long as they are open.
    fn notice_removals(&self) -> Result<(), Error> {
        let removals = self.index.fresh()?.removals;
        if self.removals.swap(removals, Ordering::AcqRel) != removals {
            self.files.forget_all();
        }
        Ok(())
    }

    /// Removes what a failed addition could not: now, or when the next one starts.
    fn reclaim_again(&self) {
        *self.reclaimed.lock() = false;
        let _ = self.prepare_to_write();
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({})", self.0.dir.url())
    }
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> &str {
        self.0.dir.url()
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        let find = |snapshot: &Snapshot| snapshot.directory(digest);
        let read = |at| self.0.files.directory(digest, at);
        let directory = self.0.with_object(find, read);
        let directory = self.0.note_damage(Object::Directory, digest, directory)?;
        Ok(directory.into())
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        let files = &self.0.files;
        match self.with_blob(digest, size, |at| files.read(digest, at, offset, buffer))? {
            Some(read) => Ok(Answer::Found(read)),
            None if *digest != Digest::empty_blob() => Ok(Answer::Absent),
            None if size == 0 => Ok(Answer::Found(0)),
            None => Err(self.0.files.wrong_size(digest, size, 0)),
        }
    }

    /// Everything is stored already.
    fn will_need(&self, _: &[(Digest, u64)]) {}

    fn forget(&self, _: &Digest, _: u64, _: u64, _: u64) {}

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.0.index.fresh()?.root(name)?.into())
    }

    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        let file = self.with_blob(digest, size, |at| match at.kind {
            StorageKind::Large => self.0.files.large_file(digest, size).map(Some),
            _ => Ok(None),
        })?;
        Ok(file.flatten().map(|file| BackingFile { file }))
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        in_place::directory(self, digest)
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        in_place::read(self, digest, size, offset, length)
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        in_place::root(self, name)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        self.0.index.fresh()?.roots()
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        self.0.index.fresh()?.path_info(name)
    }

    async fn incomplete_root(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        let record = self.root_record(name)?;
        let record = record.filter(|record| record.incomplete);
        Ok(record.map(|record| (record.root, record.path_info)))
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        self.0.write_found_damage();
        let snapshot = self.0.index.fresh()?;
        ClosureCheck::new(&self.0, &snapshot, &LocalStaged::default()).has(digest)
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.has_blob_now(digest)
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let size = self.blob(digest)?.map(|at| at.len);
        Ok(size.or((*digest == Digest::empty_blob()).then_some(0)))
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        let list = self.chunk_list(digest)?;
        Ok(list.map(|list| list.iter().map(|chunk| (chunk.digest, chunk.len)).collect()))
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let files = &self.0.files;
        match self.with_blob(digest, size, |at| files.group_table(digest, at))? {
            Some(table) => Ok(Some(table)),
            None if *digest == Digest::empty_blob() && size == 0 => {
                Ok(Some(BlobHasher::new().finish().1))
            }
            None => Ok(None),
        }
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        self.0.index.fresh()?.usage().map(Some)
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn embedded(&self) -> Vec<LocalStore> {
        vec![self.clone()]
    }

    fn roots_version(&self) -> Result<u64, Error> {
        self.0.notice_removals()?;
        self.0.index.roots_version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        self.0.index.wait_for_roots(seen, timeout)
    }

    /// Every change is seen as it is made.
    fn keep_listings_fresh(&self, _: Duration) {}

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(self.addition()?))
    }
}
