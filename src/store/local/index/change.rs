//! Writing to the index.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use parking_lot::MutexGuard;
use prost::Message;
use redb::{Database, ReadableTable, WriteTransaction};
use rustix::fs::{FlockOperation, flock};

use super::super::location::{BLOBS, DIRECTORIES, Kind, Location};
use super::super::pack::PackKind;
use super::database::guarded;
use super::removal::{note_age, note_past_root};
use super::snapshot::list_packs;
use super::{
    Index, META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES, META_ROOTS_VERSION, PACKS,
    PATH_INFOS, PackEntry, ROOTS, Snapshot,
};
use crate::castore::Digest;
use crate::proto::castore::v1::Entry;
use crate::store::root_change::RootChange;
use crate::store::{Added, Error};

/// Why a commit did not come about.
pub(in super::super) enum CommitError {
    /// Nothing of it will ever be seen.
    Undone(Error),
    /// It may have reached the disk.
    Unknown(Error),
}

impl CommitError {
    /// What went wrong.
    pub(in super::super) fn into_error(self) -> Error {
        match self {
            CommitError::Undone(error) | CommitError::Unknown(error) => error,
        }
    }
}

/// A write in progress; dropped before [`commit`](Self::commit), it never was.
pub(in super::super) struct Change<'a> {
    pub(super) index: &'a Index,
    pub(super) writer: MutexGuard<'a, Option<Database>>,
    pub(super) txn: Option<WriteTransaction>,
}

impl Change<'_> {
    pub(super) fn run<T>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let txn = self.txn.as_ref();
        let done = guarded(&self.index.folder, || {
            work(txn.ok_or(redb::Error::DatabaseClosed)?)
        });
        if done.is_err() {
            self.txn = None;
            *self.writer = None;
        }
        done
    }

    pub(in super::super) fn blob(&mut self, digest: &Digest) -> Result<Option<Location>, Error> {
        self.run(|txn| {
            let table = txn.open_table(BLOBS)?;
            let found = table.get(digest.as_bytes())?;
            Ok(found.and_then(|found| Location::decode(found.value())))
        })
    }

    /// Adds objects that are not there yet; those that are `replaced` are put over what is there.
    pub(in super::super) fn add(
        &mut self,
        blobs: &[(Digest, Location)],
        directories: &[(Digest, Location)],
        replaced: &HashSet<Digest>,
    ) -> Result<Added, Error> {
        self.run(|txn| {
            let mut added = Added::default();
            let mut table = txn.open_table(BLOBS)?;
            for (digest, location) in blobs {
                if table.get(digest.as_bytes())?.is_none() {
                    table.insert(digest.as_bytes(), &location.encode())?;
                    added.blobs += 1;
                    added.blob_bytes += location.len;
                } else if replaced.contains(digest) {
                    table.insert(digest.as_bytes(), &location.encode())?;
                }
            }
            let mut table = txn.open_table(DIRECTORIES)?;
            for (digest, location) in directories {
                let old = table
                    .get(digest.as_bytes())?
                    .and_then(|old| Location::decode(old.value()));
                match old {
                    None => {
                        table.insert(digest.as_bytes(), &location.encode())?;
                        added.directories += 1;
                    }
                    // What is below it was not looked at anew: what was said of that goes on.
                    Some(old) if replaced.contains(digest) => {
                        let kind = match (old.kind, location.kind) {
                            (Kind::Whole, _) | (_, Kind::Whole) => Kind::Whole,
                            _ => Kind::Partial,
                        };
                        let location = Location { kind, ..*location };
                        table.insert(digest.as_bytes(), &location.encode())?;
                    }
                    Some(old) if old.kind == Kind::Partial && location.kind == Kind::Whole => {
                        let kind = Kind::Whole;
                        table.insert(digest.as_bytes(), &Location { kind, ..old }.encode())?;
                    }
                    Some(_) => {}
                }
            }
            let mut meta = txn.open_table(META)?;
            for (key, more) in [
                (META_BLOBS, added.blobs),
                (META_BLOB_BYTES, added.blob_bytes),
                (META_DIRECTORIES, added.directories),
            ] {
                let before = meta.get(key)?.map_or(0, |found| found.value());
                meta.insert(key, before + more)?;
            }
            Ok(added)
        })
    }

    pub(super) fn packs(&mut self) -> Result<Vec<PackEntry>, Error> {
        self.run(|txn| list_packs(&txn.open_table(PACKS)?))
    }

    /// Says how far a pack is written.
    pub(in super::super) fn set_pack(
        &mut self,
        id: u32,
        kind: PackKind,
        len: u64,
    ) -> Result<(), Error> {
        self.run(|txn| {
            let mut packs = txn.open_table(PACKS)?;
            let before = packs.insert(id, (kind as u8, len))?;
            let before = before.map_or(0, |before| before.value().1);
            note_age(txn, id, before)
        })
    }

    pub(in super::super) fn set_roots(&mut self, changes: &[RootChange]) -> Result<(), Error> {
        self.run(|txn| {
            let mut roots = txn.open_table(ROOTS)?;
            let mut infos = txn.open_table(PATH_INFOS)?;
            let mut changed = false;
            for change in changes {
                let (name, entry, info) = encode(change);
                let (root_changed, old) = set(&mut roots, name, entry.as_deref())?;
                changed |= root_changed | set(&mut infos, name, info.as_deref())?.0;
                if let (true, Some(old)) = (root_changed, old) {
                    note_past_root(txn, name, &old)?;
                }
            }
            if changed {
                let mut meta = txn.open_table(META)?;
                let before = meta
                    .get(META_ROOTS_VERSION)?
                    .map_or(0, |found| found.value());
                meta.insert(META_ROOTS_VERSION, before + 1)?;
            }
            Ok(())
        })
    }

    /// Makes it durable and visible.
    pub(in super::super) fn commit(mut self) -> Result<(), CommitError> {
        let txn = self.txn.take();
        let folder = &self.index.folder;
        let path = folder.sequence();
        let number = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .read(true)
            .open(&path)
            .and_then(|file| {
                // Until both numbers are written: the next writer may begin as soon as redb has
                // committed, and numbers out of order could repeat.
                flock(&file, FlockOperation::LockExclusive)?;
                let mut bytes = [0; 8];
                // A file that is too short counts from 0.
                let _ = file.read_exact_at(&mut bytes, 0);
                let odd = u64::from_le_bytes(bytes).wrapping_add(1) | 1;
                file.write_all_at(&odd.to_le_bytes(), 0)?;
                Ok((file, odd))
            });
        let (file, odd) = number
            .map_err(folder.io("write", &path))
            .map_err(CommitError::Undone)?;
        let done = guarded(folder, || {
            Ok(txn.ok_or(redb::Error::DatabaseClosed)?.commit()?)
        });
        if let Err(error) = done {
            *self.writer = None;
            return Err(CommitError::Unknown(error));
        }
        // Should this fail, the number stays odd: readers look for themselves.
        let _ = file.write_all_at(&odd.wrapping_add(1).to_le_bytes(), 0);
        Ok(())
    }
}

/// Sets or removes the value of `name`; says whether that changed anything, and what was there.
fn set(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<(bool, Option<Vec<u8>>), redb::Error> {
    let old = table.get(name)?.map(|old| old.value().to_vec());
    if old.as_deref() == value {
        return Ok((false, old));
    }
    match value {
        Some(value) => drop(table.insert(name, value)?),
        None => drop(table.remove(name)?),
    }
    Ok((true, old))
}

/// A root's name, and what the index has of it after `change`: its `Entry` and `PathInfo`.
fn encode(change: &RootChange) -> (&[u8], Option<Vec<u8>>, Option<Vec<u8>>) {
    match change {
        RootChange::Put(root, info) => (
            &root.name,
            Some(Entry::from(root).encode_to_vec()),
            info.as_ref().map(|info| info.encode_to_vec()),
        ),
        RootChange::Remove(name) => (name, None, None),
    }
}

impl Snapshot {
    /// Whether it is as after `change` already.
    pub(in super::super) fn has(&self, change: &RootChange) -> Result<bool, Error> {
        let (name, entry, info) = encode(change);
        guarded(&self.folder, || {
            let old_entry = self.roots.get(name)?;
            let old_info = self.path_infos.get(name)?;
            Ok(
                old_entry.as_ref().map(|old| old.value()) == entry.as_deref()
                    && old_info.as_ref().map(|old| old.value()) == info.as_deref(),
            )
        })
    }
}
