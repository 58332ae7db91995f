//! Adding to the store.
//!
//! Blobs go to their packs as they come; a thread reserves space under the lock, in the order of
//! the calls, and writes without it. Directories and roots are kept in memory until the commit,
//! which
//!
//! 1. checks that everything below the new roots is present,
//! 2. lays the Directories out in the order in which a walk visits them,
//! 3. syncs packs and large files,
//! 4. and in one short write of the index links the large files to their places, enters
//!    everything and changes the roots.
//!
//! An addition with nothing new does none of that.

mod closure;
mod commit;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) use self::closure::ClosureCheck;
use super::LocalInner;
use super::large::{LargeFile, LargeWriter, TmpDir};
use super::location::{ObjectLocation, PackKind, StorageKind};
use super::pack::{PackRecord, PackWriter, RECORD_HEADER, RecordWriter, ReservedSpace};
use crate::castore::{BlobHasher, Digest, Directory, GroupTable, Name, Root, group_size};
use crate::nix::PathInfo;
use crate::store::root_change::{RootChange, RootCondition};
use crate::store::{AddedTotals, BlobWriter, Error, Ingest, Object, in_place};

/// The longest blob that goes to a pack: the largest READ of the kernel.
pub(super) const SMALL: usize = 1 << 20;
/// Large files that are synced one by one; if there are more, the whole disk is synced.
const FEW_LARGE: usize = 8;

/// An addition to a local store.
pub(in crate::store) struct LocalIngest(Arc<AdditionState>);

/// What writers of large blobs share with their addition.
struct AdditionState {
    store: Arc<LocalInner>,
    /// Locks garbage collections out; released between messages of a client that may be slow.
    under_way: RwLock<Option<File>>,
    staged: Mutex<LocalStaged>,
    /// Some write failed: it is unknown what is missing.
    failed: AtomicBool,
}

/// Objects that are not committed.
#[derive(Default)]
pub(super) struct LocalStaged {
    pub(super) blobs: HashMap<Digest, ObjectLocation>,
    pub(super) directories: HashMap<Digest, Directory>,
    /// The order in which they came.
    order: Vec<Digest>,
    pub(super) roots: Vec<RootChange>,
    pub(super) conditions: Vec<RootCondition>,
    /// Roots whose content may come later.
    expected: Vec<(Root, Option<PathInfo>)>,
    large: Vec<LargeFile>,
    /// Damaged objects of the store, which are replaced.
    replaced: HashSet<Digest>,
    /// The last is the one that is written to.
    packs: Vec<PackWriter>,
    tmp: Option<Arc<TmpDir>>,
    ended: bool,
}

/// A blob on its way into a pack.
struct SmallBlob<'a> {
    digest: Digest,
    bytes: &'a [u8],
    table: Option<GroupTable>,
}

impl SmallBlob<'_> {
    fn record_len(&self) -> u64 {
        let table = self
            .table
            .as_ref()
            .map_or(0, |table| table.as_bytes().len());
        RECORD_HEADER + self.bytes.len() as u64 + table as u64
    }
}

impl LocalIngest {
    /// An addition that has begun: `under_way` locks garbage collections out.
    pub(super) fn new(store: Arc<LocalInner>, under_way: File) -> Self {
        Self(Arc::new(AdditionState {
            store,
            under_way: RwLock::new(Some(under_way)),
            staged: Mutex::default(),
            failed: AtomicBool::new(false),
        }))
    }

    /// The store's object `digest` is damaged: it is replaced.
    pub(in crate::store) fn replace(&self, digest: &Digest) {
        self.0.staged.lock().replaced.insert(*digest);
    }

    /// Takes over a file that holds the blob `digest` and nothing else, and whose bytes were
    /// verified. It keeps its name.
    pub(super) fn take_over(
        &self,
        from: &Path,
        digest: &Digest,
        table: GroupTable,
        len: u64,
    ) -> Result<(), Error> {
        let session = &self.0;
        let tmp = session.noting(session.tmp())?;
        let dir = &session.store.dir;
        let file = LargeFile::take_over(dir, &tmp, from, digest, table, len);
        session.noting(session.put_large(session.noting(file)?))
    }
}

impl AdditionState {
    /// Locks garbage collections out until the result is dropped, and until the next release.
    /// Objects that were collected since the last one do not count as present.
    fn at_work(&self) -> Result<RwLockReadGuard<'_, Option<File>>, Error> {
        let under_way = self.under_way.read();
        if under_way.is_some() {
            return Ok(under_way);
        }
        drop(under_way);
        let mut under_way = self.under_way.write();
        if under_way.is_none() {
            let begun = self.store.dir.begin_addition()?;
            self.store.index.fresh()?;
            *under_way = Some(begun);
        }
        Ok(RwLockWriteGuard::downgrade(under_way))
    }

    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(true);
        }
        let (staged, replaced) = {
            let staged = self.staged.lock();
            (
                staged.blobs.contains_key(digest),
                staged.replaced.contains(digest),
            )
        };
        if staged || replaced {
            return Ok(staged);
        }
        let snapshot = self.store.index.snapshot();
        Ok(snapshot.blob(digest)?.is_some() && !snapshot.is_quarantined(Object::Blob, digest)?)
    }

    /// Whether an object replaces the store's one, which is damaged.
    fn replaces(&self, object: Object, digest: &Digest) -> Result<bool, Error> {
        if self.staged.lock().replaced.contains(digest) {
            return Ok(true);
        }
        let snapshot = self.store.index.snapshot();
        let mut damaged = snapshot.is_quarantined(object, digest)?;
        // A damaged Directory hides the state of what is below it.
        if !damaged
            && object == Object::Directory
            && snapshot.has_quarantine()
            && let Some(at) = snapshot.directory(digest)?
        {
            damaged = self.store.files.directory(digest, at).is_err();
        }
        if damaged {
            self.staged.lock().replaced.insert(*digest);
        }
        Ok(damaged)
    }

    /// Notes a failed write: the commit will fail.
    fn noting<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        if done.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        done
    }

    fn refuse(&self, what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Refused {
            store: self.store.dir.url().to_owned(),
            what: what.into(),
            why: why.into(),
        }
    }

    fn put_small(&self, blobs: &mut Vec<SmallBlob<'_>>) -> Result<(), Error> {
        let snapshot = self.store.index.snapshot();
        let mut failed = None;
        blobs.retain(|blob| {
            let found = snapshot.blob(&blob.digest);
            let wanted = found.and_then(|found| {
                Ok(found.is_none() || self.replaces(Object::Blob, &blob.digest)?)
            });
            wanted.unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
        });
        drop(snapshot);
        if let Some(error) = failed {
            return Err(error);
        }
        let (space, total) = {
            let staged = &mut *self.staged.lock();
            self.check_open(staged)?;
            let mut fresh = HashSet::new();
            blobs.retain(|blob| {
                !staged.blobs.contains_key(&blob.digest) && fresh.insert(blob.digest)
            });
            let total = blobs.iter().map(SmallBlob::record_len).sum();
            if total == 0 {
                return Ok(());
            }
            let space = self.reserve(staged, PackKind::Blobs, total)?;
            let mut offset = space.offset;
            for blob in &*blobs {
                let location = ObjectLocation {
                    kind: StorageKind::Packed,
                    pack: space.pack,
                    offset: offset + RECORD_HEADER,
                    len: blob.bytes.len() as u64,
                };
                staged.blobs.insert(blob.digest, location);
                offset += blob.record_len();
            }
            (space, total)
        };
        let mut records = RecordWriter::new(&self.store.dir, space, total);
        for blob in &*blobs {
            let table = blob.table.as_ref().map_or(&[][..], GroupTable::as_bytes);
            records.put(PackRecord::Blob, &blob.digest, &[blob.bytes, table])?;
        }
        records.finish()
    }

    fn reserve(
        &self,
        staged: &mut LocalStaged,
        kind: PackKind,
        len: u64,
    ) -> Result<ReservedSpace, Error> {
        let last = staged.packs.last();
        if last.is_none_or(|pack| pack.kind != kind || pack.is_full()) {
            let store = &self.store;
            let pack = PackWriter::claim(&store.dir, &store.index, kind)?;
            staged.packs.push(pack);
        }
        match staged.packs.last_mut() {
            Some(pack) => Ok(pack.reserve(len)),
            None => Err(self.refuse("the write", "no pack could be had")),
        }
    }

    fn check_open(&self, staged: &LocalStaged) -> Result<(), Error> {
        match staged.ended {
            true => Err(self.refuse("the write", "its import has ended")),
            false => Ok(()),
        }
    }

    /// The addition's own directory.
    fn tmp(&self) -> Result<Arc<TmpDir>, Error> {
        let staged = &mut *self.staged.lock();
        self.check_open(staged)?;
        Ok(match &staged.tmp {
            Some(tmp) => tmp.clone(),
            None => {
                let tmp = Arc::new(TmpDir::make(&self.store.dir)?);
                staged.tmp.insert(tmp).clone()
            }
        })
    }

    fn large_writer(&self) -> Result<LargeWriter, Error> {
        LargeWriter::start(&self.store.dir, self.tmp()?)
    }

    fn put_large(&self, mut file: LargeFile) -> Result<(), Error> {
        let digest = file.digest;
        let old = self.store.index.snapshot().blob(&digest)?;
        let reported = self.replaces(Object::Blob, &digest)?;
        let replaces = match old {
            Some(_) if reported => true,
            // A large blob whose file is missing or cut is stored again.
            Some(old) if old.kind == StorageKind::Large => {
                self.store.files.large_file(&digest, old.len).is_err()
            }
            Some(_) => false,
            None => false,
        };
        if old.is_some() && !replaces {
            return Ok(());
        }
        let staged = &mut *self.staged.lock();
        self.check_open(staged)?;
        if staged.blobs.contains_key(&digest) {
            return Ok(());
        }
        let table = file.table.as_bytes();
        let len = RECORD_HEADER + table.len() as u64;
        let space = self.reserve(staged, PackKind::Blobs, len)?;
        let location = ObjectLocation {
            kind: StorageKind::Large,
            pack: space.pack,
            offset: space.offset + RECORD_HEADER,
            len: file.len,
        };
        let mut records = RecordWriter::new(&self.store.dir, space, len);
        records.put_with_len(PackRecord::Table, &digest, file.len, &[table])?;
        records.finish()?;
        staged.blobs.insert(digest, location);
        if replaces {
            staged.replaced.insert(digest);
        }
        if staged.large.len() >= FEW_LARGE {
            file.file = None;
        }
        staged.large.push(file);
        Ok(())
    }
}

impl LocalStaged {
    /// Removes what was written.
    fn discard(&mut self) {
        for pack in self.packs.drain(..) {
            pack.discard();
        }
        self.tmp = None;
    }
}

impl Drop for AdditionState {
    fn drop(&mut self) {
        self.staged.get_mut().discard();
    }
}

impl Ingest for LocalIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let _work = self.0.at_work()?;
        self.0.has_blob(digest)
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        in_place::missing_blobs(self, digests)
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        let session = &*self.0;
        let _work = session.at_work()?;
        let mut small = Vec::with_capacity(blobs.len());
        for &(digest, bytes) in blobs {
            let single_group = bytes.len() as u64 <= group_size(bytes.len() as u64);
            if bytes.len() > SMALL {
                if session.has_blob(&digest)? {
                    continue;
                }
                let mut writer = session.noting(session.large_writer())?;
                session.noting(writer.write(bytes))?;
                let file = session.noting(writer.finish())?;
                check_digest(session, &digest, &file.digest)?;
                session.noting(session.put_large(file))?;
            } else if single_group {
                // Not hashed again: wrong bytes would be detected by readers of the blob.
                debug_assert_eq!(digest, Digest::of(bytes));
                if !bytes.is_empty() {
                    let table = None;
                    small.push(SmallBlob {
                        digest,
                        bytes,
                        table,
                    });
                }
            } else if !session.has_blob(&digest)? {
                let mut hasher = BlobHasher::new();
                hasher.update(bytes);
                let (actual, table) = hasher.finish();
                check_digest(session, &digest, &actual)?;
                let table = Some(table);
                small.push(SmallBlob {
                    digest,
                    bytes,
                    table,
                });
            }
        }
        session.noting(session.put_small(&mut small))
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(LocalWriter {
            session: self.0.clone(),
            head: Vec::new(),
            large: None,
        }))
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        let _work = self.0.at_work()?;
        let digest = directory.digest();
        let there = self.0.store.index.snapshot().directory(&digest)?.is_some();
        if there && !self.0.replaces(Object::Directory, &digest)? {
            return Ok(());
        }
        let staged = &mut *self.0.staged.lock();
        self.0.check_open(staged)?;
        if let Entry::Vacant(vacant) = staged.directories.entry(digest) {
            vacant.insert(directory.clone());
            staged.order.push(digest);
        }
        Ok(())
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        self.0.staged.lock().roots.push(RootChange::remove(name));
        Ok(())
    }

    fn check_root_name(&self, _: &Name) -> Result<(), Error> {
        Ok(())
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let change = RootChange::put(root, path_info);
        self.0.staged.lock().roots.push(change);
        Ok(())
    }

    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let change = RootChange::add(root, path_info);
        self.0.staged.lock().roots.push(change);
        Ok(())
    }

    fn put_incomplete_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let expected = (root.clone(), path_info.cloned());
        self.0.staged.lock().expected.push(expected);
        Ok(())
    }

    fn only_if(&self, condition: RootCondition) {
        self.0.staged.lock().conditions.push(condition);
    }

    fn release(&self) {
        *self.0.under_way.write() = None;
    }

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        let _work = self.0.at_work()?;
        self.0.commit()
    }
}

fn check_digest(session: &AdditionState, reported: &Digest, actual: &Digest) -> Result<(), Error> {
    match reported == actual {
        true => Ok(()),
        false => Err(session.refuse(
            format!("blob {reported}"),
            format!("its bytes are {actual}"),
        )),
    }
}

/// A blob of unknown length: in memory while it is small.
struct LocalWriter {
    session: Arc<AdditionState>,
    head: Vec<u8>,
    large: Option<LargeWriter>,
}

impl BlobWriter for LocalWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.large.is_none() && self.head.len() + bytes.len() <= SMALL {
            self.head.extend_from_slice(bytes);
            return Ok(());
        }
        let session = self.session.clone();
        let _work = session.at_work()?;
        let large = match &mut self.large {
            Some(large) => large,
            None => {
                let mut large = session.noting(session.large_writer())?;
                session.noting(large.write(&std::mem::take(&mut self.head)))?;
                self.large.insert(large)
            }
        };
        session.noting(large.write(bytes))
    }

    fn finish(self: Box<Self>) -> Result<(Digest, u64), Error> {
        let session = &self.session;
        let _work = session.at_work()?;
        if let Some(large) = self.large {
            let file = session.noting(large.finish())?;
            let named = (file.digest, file.len);
            session.noting(session.put_large(file))?;
            return Ok(named);
        }
        let mut hasher = BlobHasher::new();
        hasher.update(&self.head);
        let (digest, table) = hasher.finish();
        if !self.head.is_empty() {
            let blob = SmallBlob {
                digest,
                bytes: &self.head,
                table: Some(table),
            };
            session.noting(session.put_small(&mut vec![blob]))?;
        }
        Ok((digest, self.head.len() as u64))
    }
}
