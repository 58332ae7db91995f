//! Writing to the index.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use parking_lot::MutexGuard;
use prost::Message;
use redb::{ReadableTable, WriteTransaction};
use rustix::fs::{FlockOperation, flock};

use super::super::dir::newer;
use super::super::format::{self, FORMAT};
use super::super::journal::{self, JournalChange, JournalPosition, JournalRelation};
use super::super::location::{BLOBS, DIRECTORIES, ObjectLocation, PackKind, StorageKind};
use super::database::guarded;
use super::removal::{note_age, note_past_root};
use super::root_records::{self, ROOT_RECORDS, StoredRoot};
use super::snapshot::list_packs;
use super::{
    Index, IndexWriter, META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES, META_FORMAT,
    META_INCOMPLETE, META_JOURNAL, META_JOURNAL_LENGTH, META_ROOTS_VERSION, PACKS, PATH_INFOS,
    PackEntry, Snapshot, cached_roots, quarantine, valid_paths,
};
use crate::castore::{Digest, Root};
use crate::clock::unix_seconds;
use crate::nix::{PathInfo, renew};
use crate::proto::castore::v1::Entry;
use crate::store::root_change::{RootChange, StorePathNames, admit};
use crate::store::{AddedTotals, Error, Object};

/// Why a commit failed.
pub(in super::super) enum CommitError {
    /// Nothing of it will ever be visible.
    Undone(Error),
    /// It may have reached the disk.
    Unknown(Error),
}

impl CommitError {
    /// The error.
    pub(in super::super) fn into_error(self) -> Error {
        match self {
            CommitError::Undone(error) | CommitError::Unknown(error) => error,
        }
    }
}

/// A write in progress; dropped before [`commit`](Self::commit), it never was.
pub(in super::super) struct IndexChange<'a> {
    pub(super) index: &'a Index,
    pub(super) writer: MutexGuard<'a, Option<IndexWriter>>,
    pub(super) txn: Option<WriteTransaction>,
    /// Where the journal is, and its generation if it differs from the index's.
    position: JournalPosition,
    other_journal: Option<u64>,
    /// The entries for the journal.
    pub(super) entered: Vec<JournalChange>,
}

impl<'a> IndexChange<'a> {
    /// Checks that index and journal belong together, and converts an index of version 1.
    pub(super) fn begin(
        index: &'a Index,
        writer: MutexGuard<'a, Option<IndexWriter>>,
        txn: WriteTransaction,
    ) -> Result<Self, Error> {
        let mut change = Self {
            index,
            writer,
            txn: Some(txn),
            position: JournalPosition::default(),
            other_journal: None,
            entered: Vec::new(),
        };
        let (version, position) = change.run(|txn| {
            let meta = txn.open_table(META)?;
            let get = |key| -> Result<u64, redb::Error> {
                Ok(meta.get(key)?.map_or(0, |found| found.value()))
            };
            let position = JournalPosition {
                generation: get(META_JOURNAL)?,
                length: get(META_JOURNAL_LENGTH)?,
            };
            Ok((get(META_FORMAT)?, position))
        })?;
        let dir = &index.dir;
        if version > u64::from(FORMAT) {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            return Err(newer(dir, version));
        }
        if version < u64::from(FORMAT) {
            dir.convert_format()?;
            change.run(|txn| {
                root_records::convert(txn)?;
                let mut meta = txn.open_table(META)?;
                meta.insert(META_FORMAT, u64::from(FORMAT))?;
                Ok(())
            })?;
        }
        change.position = position;
        match journal::relate(dir, position)? {
            (JournalRelation::Same, _) => {}
            (JournalRelation::Other, generation) => {
                change.other_journal = Some(generation.max(position.generation));
            }
            (JournalRelation::Ahead, _) => {
                return Err(dir.format(format!(
                    "the index {} is older than the journal beside it, as after a partial restore, so \
                     nothing is written: finish restoring, or run `{}`, which makes a new index of \
                     what is there",
                    dir.index().display(),
                    format::repair_command(dir.url())
                )));
            }
        }
        Ok(change)
    }
}

impl IndexChange<'_> {
    pub(super) fn run<T>(
        &mut self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let txn = self.txn.as_ref();
        let done = guarded(&self.index.dir, || {
            work(txn.ok_or(redb::Error::DatabaseClosed)?)
        });
        if done.is_err() {
            self.txn = None;
            *self.writer = None;
        }
        done
    }

    pub(in super::super) fn blob(
        &mut self,
        digest: &Digest,
    ) -> Result<Option<ObjectLocation>, Error> {
        self.run(|txn| {
            let table = txn.open_table(BLOBS)?;
            let found = table.get(digest.as_bytes())?;
            Ok(found.and_then(|found| ObjectLocation::decode(found.value())))
        })
    }

    /// Adds objects that are missing; those that are `replaced` overwrite existing ones.
    pub(in super::super) fn add(
        &mut self,
        blobs: &[(Digest, ObjectLocation)],
        directories: &[(Digest, ObjectLocation)],
        replaced: &HashSet<Digest>,
    ) -> Result<AddedTotals, Error> {
        self.run(|txn| {
            let mut added = AddedTotals::default();
            quarantine::release(txn, Object::Blob, blobs.iter().map(|(digest, _)| digest))?;
            let came = directories.iter().map(|(digest, _)| digest);
            quarantine::release(txn, Object::Directory, came)?;
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
                    .and_then(|old| ObjectLocation::decode(old.value()));
                match old {
                    None => {
                        table.insert(digest.as_bytes(), &location.encode())?;
                        added.directories += 1;
                    }
                    // What is below it was not checked again: its earlier state stays.
                    Some(old) if replaced.contains(digest) => {
                        let kind = match (old.kind, location.kind) {
                            (StorageKind::Whole, _) | (_, StorageKind::Whole) => StorageKind::Whole,
                            _ => StorageKind::Partial,
                        };
                        let location = ObjectLocation { kind, ..*location };
                        table.insert(digest.as_bytes(), &location.encode())?;
                    }
                    Some(old)
                        if old.kind == StorageKind::Partial
                            && location.kind == StorageKind::Whole =>
                    {
                        let kind = StorageKind::Whole;
                        table
                            .insert(digest.as_bytes(), &ObjectLocation { kind, ..old }.encode())?;
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

    /// Sets how far a pack is written.
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

    /// Applies the changes of roots whose content is stored.
    pub(in super::super) fn set_roots(&mut self, changes: &[RootChange]) -> Result<(), Error> {
        let mut replaced = StorePathNames::default();
        for change in changes {
            match change {
                RootChange::Put(root, info) => {
                    let before = self.root(&root.name)?;
                    let is_there = before.is_some();
                    let same = before.filter(|(before, _)| before.node == root.node);
                    if same.is_none() {
                        self.check_reported_as(root, info.as_deref())?;
                    }
                    let described = info.as_ref().is_some_and(|info| info.narinfo.is_some());
                    if is_there && same.is_none() && !described {
                        replaced.insert(&root.name);
                    }
                    let known = same.and_then(|(_, known)| known);
                    let info = renew(known, info.as_deref().cloned());
                    self.set_root(root, info.as_ref(), false)?;
                }
                RootChange::Add(root, info) => {
                    let before = self.root(&root.name)?;
                    let before = before.map(|(root, info)| (root.node, info));
                    let info = info.as_deref().cloned();
                    if before.is_none() {
                        self.check_reported_as(root, info.as_ref())?;
                    }
                    let info = admit(self.index.dir.url(), before, root, info)?;
                    self.set_root(root, info.as_ref(), false)?;
                }
                RootChange::Remove(name) => {
                    self.check_not_reported(name)?;
                    self.remove_root(name)?;
                }
            }
        }
        self.check_unreferred(
            &replaced,
            |name| format!("another tree as \"{name}\""),
            "remove that first, or import the path as Nix knows it",
        )
    }

    /// The root `name` whose content is stored, and what is known of it as a store path.
    pub(in super::super) fn root(
        &mut self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        let found = self.run(|txn| {
            let roots = txn.open_table(ROOT_RECORDS)?;
            let stored = roots
                .get(name)?
                .and_then(|old| StoredRoot::decode(old.value()));
            let Some(stored) = stored.filter(|stored| !stored.incomplete) else {
                return Ok(None);
            };
            let infos = txn.open_table(PATH_INFOS)?;
            let info = infos.get(name)?.map(|info| info.value().to_vec());
            Ok(Some((stored.entry, info)))
        })?;
        Ok(found.and_then(|(entry, info)| {
            // What cannot be read is as good as absent.
            let root = Root::try_from(Entry::decode(&*entry).ok()?).ok()?;
            Some((root, info.and_then(|info| PathInfo::decode(&*info).ok())))
        }))
    }

    /// Sets a root, whose content is stored or is to come.
    pub(in super::super) fn set_root(
        &mut self,
        root: &Root,
        info: Option<&PathInfo>,
        incomplete: bool,
    ) -> Result<(), Error> {
        let entry = Entry::from(root).encode_to_vec();
        let encoded = info.map(Message::encode_to_vec);
        let name = &root.name[..];
        let added = self.run(|txn| {
            let mut roots = txn.open_table(ROOT_RECORDS)?;
            let old = roots
                .get(name)?
                .and_then(|old| StoredRoot::decode(old.value()));
            let same_entry = old.as_ref().is_some_and(|old| old.entry == entry);
            let same_info = set(&mut txn.open_table(PATH_INFOS)?, name, encoded.as_deref())?;
            let was_incomplete = old.as_ref().is_some_and(|old| old.incomplete);
            if same_entry && same_info && was_incomplete == incomplete {
                return Ok(None);
            }
            let added = match &old {
                Some(old) if same_entry && !was_incomplete => old.added,
                _ => unix_seconds(),
            };
            if let Some(old) = old.filter(|old| !same_entry && !old.incomplete) {
                note_past_root(txn, name, &old.entry)?;
            }
            let stored = StoredRoot {
                added,
                incomplete,
                entry,
            };
            roots.insert(name, &stored.encode()[..])?;
            count_incomplete(txn, was_incomplete, incomplete)?;
            grow_roots_version(txn)?;
            Ok(Some(added))
        })?;
        if let Some(added) = added {
            self.entered.push(JournalChange::Root {
                added,
                incomplete,
                root: root.clone(),
                path_info: info.cloned().map(Box::new),
            });
        }
        Ok(())
    }

    fn remove_root(&mut self, name: &[u8]) -> Result<(), Error> {
        let removed = self.run(|txn| {
            let mut roots = txn.open_table(ROOT_RECORDS)?;
            let old = roots.remove(name)?;
            let old = old.map(|old| StoredRoot::decode(old.value()));
            let same_info = set(&mut txn.open_table(PATH_INFOS)?, name, None)?;
            let Some(old) = old else {
                return Ok(!same_info);
            };
            let was_incomplete = old.as_ref().is_some_and(|old| old.incomplete);
            if let Some(old) = old.filter(|old| !old.incomplete) {
                note_past_root(txn, name, &old.entry)?;
            }
            count_incomplete(txn, was_incomplete, false)?;
            grow_roots_version(txn)?;
            Ok(true)
        })?;
        if removed {
            self.entered.push(JournalChange::Removed(name.to_vec()));
        }
        Ok(())
    }

    /// The content of these roots has come; one that was changed meanwhile stays as it is.
    pub(in super::super) fn complete_roots(&mut self, complete: &[Root]) -> Result<(), Error> {
        for root in complete {
            let entry = Entry::from(root).encode_to_vec();
            let name = &root.name[..];
            let waits = self.run(|txn| {
                let roots = txn.open_table(ROOT_RECORDS)?;
                let stored = roots
                    .get(name)?
                    .and_then(|old| StoredRoot::decode(old.value()));
                let waits = stored.is_some_and(|old| old.incomplete && old.entry == entry);
                if !waits {
                    return Ok(None);
                }
                let infos = txn.open_table(PATH_INFOS)?;
                let info = infos.get(name)?.map(|info| info.value().to_vec());
                Ok(Some(info))
            })?;
            if let Some(info) = waits {
                let info = info.and_then(|info| PathInfo::decode(&*info).ok());
                self.set_root(root, info.as_ref(), false)?;
            }
        }
        Ok(())
    }

    /// Removes the roots whose content did not come in time.
    pub(in super::super) fn remove_expired(&mut self) -> Result<(), Error> {
        let expired = self.run(|txn| {
            let meta = txn.open_table(META)?;
            let waiting = meta.get(META_INCOMPLETE)?.map_or(0, |found| found.value());
            let mut expired = Vec::new();
            if waiting == 0 {
                return Ok(expired);
            }
            for found in txn.open_table(ROOT_RECORDS)?.iter()? {
                let (name, stored) = found?;
                if StoredRoot::decode(stored.value()).is_some_and(|stored| stored.is_expired()) {
                    expired.push(name.value().to_vec());
                }
            }
            Ok(expired)
        })?;
        expired.iter().try_for_each(|name| self.remove_root(name))
    }

    /// Writes this change to the journal, or all of it again.
    fn write_journal(&mut self) -> Result<bool, Error> {
        if self.entered.is_empty() && self.other_journal.is_none() {
            return Ok(false);
        }
        let dir = &self.index.dir;
        let mut records = Vec::new();
        let long = self.position.length > journal::WORTH_REWRITING;
        let mut replaces = self.other_journal.map(|generation| generation + 1);
        if replaces.is_some() || long {
            let all = self.run(dump)?;
            all.iter().for_each(|entered| entered.encode(&mut records));
            if replaces.is_none() && self.position.length / 4 > records.len() as u64 {
                replaces = Some(self.position.generation + 1);
            }
        }
        let position = match replaces {
            Some(generation) => journal::replace(dir, generation, &records)?,
            None => {
                records.clear();
                let entered = self.entered.iter();
                entered.for_each(|entered| entered.encode(&mut records));
                journal::append(dir, self.position, &records)?
            }
        };
        self.position = position;
        self.run(|txn| {
            let mut meta = txn.open_table(META)?;
            meta.insert(META_JOURNAL, position.generation)?;
            meta.insert(META_JOURNAL_LENGTH, position.length)?;
            Ok(())
        })?;
        Ok(true)
    }

    /// Makes it durable and visible.
    pub(in super::super) fn commit(mut self) -> Result<(), CommitError> {
        let journaled = self.write_journal().map_err(CommitError::Undone)?;
        let txn = self.txn.take();
        let dir = &self.index.dir;
        let path = dir.sequence();
        let number = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| {
                dir.give_to_owner(&file, &path);
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
            .map_err(dir.io("write", &path))
            .map_err(CommitError::Undone)?;
        let done = guarded(dir, || {
            Ok(txn.ok_or(redb::Error::DatabaseClosed)?.commit()?)
        });
        if let Err(error) = done {
            *self.writer = None;
            return Err(CommitError::Unknown(error));
        }
        // If this fails, the number stays odd: readers look for themselves.
        let _ = file.write_all_at(&odd.wrapping_add(1).to_le_bytes(), 0);
        if journaled {
            journal::note_done(dir, self.position);
        }
        Ok(())
    }
}

/// Sets or removes the value of `name`; returns whether it was that already.
fn set(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<bool, redb::Error> {
    let old = table.get(name)?.map(|old| old.value().to_vec());
    if old.as_deref() == value {
        return Ok(true);
    }
    match value {
        Some(value) => drop(table.insert(name, value)?),
        None => drop(table.remove(name)?),
    }
    Ok(false)
}

fn grow_roots_version(txn: &WriteTransaction) -> Result<(), redb::Error> {
    let mut meta = txn.open_table(META)?;
    let before = meta.get(META_ROOTS_VERSION)?;
    let before = before.map_or(0, |found| found.value());
    meta.insert(META_ROOTS_VERSION, before + 1)?;
    Ok(())
}

fn count_incomplete(txn: &WriteTransaction, was: bool, is: bool) -> Result<(), redb::Error> {
    if was == is {
        return Ok(());
    }
    let mut meta = txn.open_table(META)?;
    let before = meta.get(META_INCOMPLETE)?.map_or(0, |found| found.value());
    let now = before.saturating_sub(u64::from(was)) + u64::from(is);
    meta.insert(META_INCOMPLETE, now)?;
    Ok(())
}

/// All entries of a journal.
fn dump(txn: &WriteTransaction) -> Result<Vec<JournalChange>, redb::Error> {
    let mut all = Vec::new();
    let infos = txn.open_table(PATH_INFOS)?;
    for found in txn.open_table(ROOT_RECORDS)?.iter()? {
        let (name, stored) = found?;
        let info = infos.get(name.value())?;
        let info = info.and_then(|info| PathInfo::decode(info.value()).ok());
        // Invalid entries are damage, which reading them reports.
        let Some(stored) = StoredRoot::decode(stored.value()) else {
            continue;
        };
        let root = Entry::decode(&stored.entry[..]).ok();
        let Some(root) = root.and_then(|entry| Root::try_from(entry).ok()) else {
            continue;
        };
        all.push(JournalChange::Root {
            added: stored.added,
            incomplete: stored.incomplete,
            root,
            path_info: info.map(Box::new),
        });
    }
    all.extend(cached_roots::pins(txn)?);
    all.extend(valid_paths::all(txn)?);
    Ok(all)
}

impl Snapshot {
    /// Whether `change` has no effect.
    pub(in super::super) fn has(&self, change: &RootChange) -> Result<bool, Error> {
        let (name, wanted) = match change {
            RootChange::Put(root, info) | RootChange::Add(root, info) => {
                (&root.name[..], Some((root, info.as_deref())))
            }
            RootChange::Remove(name) => (&name[..], None),
        };
        let Some(stored) = self.stored_root(name)? else {
            return Ok(wanted.is_none());
        };
        let Some((root, info)) = wanted else {
            return Ok(false);
        };
        Ok(!stored.incomplete
            && stored.entry == Entry::from(root).encode_to_vec()
            && self.path_info(name)?.as_ref() == info)
    }
}
