//! The index at one moment, and reading it.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::super::dir::StoreDirectory;
use super::super::dir::newer;
use super::super::format::FORMAT;
use super::super::journal::JournalPosition;
use super::super::location::{BLOBS, DIRECTORIES, ObjectLocation, ObjectsTable};
use super::cached_roots::CACHED_ROOTS;
use super::database::{ReadHandle, damaged, guarded};
use super::quarantine::{self, Quarantine};
use super::removal::{AGES, PAST_ROOTS};
use super::root_records::IndexedRoots;
use super::{
    META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES, META_FORMAT, META_INCOMPLETE,
    META_JOURNAL, META_JOURNAL_LENGTH, META_REMOVALS, META_ROOTS_VERSION, PACKS, PATH_INFOS,
};
use crate::castore::Digest;
use crate::store::{Error, StoreUsage};

type NamesTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The index at one moment.
pub(in super::super) struct Snapshot {
    pub(super) dir: Arc<StoreDirectory>,
    /// The even number in `sequence` when it was taken.
    pub(super) sequence: Option<u64>,
    pub(super) roots_version: u64,
    /// The removal counter.
    pub(in super::super) removals: u64,
    pub(super) blobs: ObjectsTable,
    pub(super) directories: ObjectsTable,
    /// How many roots wait for their content.
    pub(in super::super) incomplete: u64,
    /// For tables that are seldom read.
    pub(super) txn: ReadTransaction,
    /// Which objects are damaged, if any are.
    pub(super) quarantine: Option<Quarantine>,
    pub(super) roots: IndexedRoots,
    pub(super) path_infos: NamesTable,
    pub(super) packs: ReadOnlyTable<u32, (u8, u64)>,
    pub(super) ages: ReadOnlyTable<(u32, u64), u64>,
    pub(super) past_roots: ReadOnlyTable<(u64, &'static [u8]), &'static [u8]>,
    pub(super) cached_roots: NamesTable,
    pub(super) meta: ReadOnlyTable<&'static str, u64>,
}

/// A pack as the index knows it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PackEntry {
    pub(in super::super) id: u32,
    /// As in [`PackKind`](super::super::location::PackKind).
    pub(in super::super) kind: u8,
    /// Bytes, from the start, that are committed.
    pub(in super::super) len: u64,
}

impl Snapshot {
    /// A snapshot of what `handle` reads now; `sequence` is the number that was read before.
    pub(super) fn take(
        dir: &Arc<StoreDirectory>,
        handle: &ReadHandle,
        sequence: Option<u64>,
    ) -> Result<Self, Error> {
        let mut version = 0;
        let taken = guarded(dir, || {
            let txn = match handle {
                ReadHandle::Shared(database) => database.begin_read()?,
                ReadHandle::Copy(database, _) => database.begin_read()?,
            };
            let meta = txn.open_table(META)?;
            version = meta.get(META_FORMAT)?.map_or(1, |found| found.value());
            if version > u64::from(FORMAT) {
                return Ok(None);
            }
            Ok(Some(Self {
                dir: dir.clone(),
                sequence,
                roots_version: meta
                    .get(META_ROOTS_VERSION)?
                    .map_or(0, |found| found.value()),
                removals: meta.get(META_REMOVALS)?.map_or(0, |found| found.value()),
                blobs: txn.open_table(BLOBS)?,
                directories: txn.open_table(DIRECTORIES)?,
                incomplete: meta.get(META_INCOMPLETE)?.map_or(0, |found| found.value()),
                quarantine: quarantine::open(&txn)?,
                roots: IndexedRoots::open(&txn)?,
                path_infos: txn.open_table(PATH_INFOS)?,
                packs: txn.open_table(PACKS)?,
                ages: txn.open_table(AGES)?,
                past_roots: txn.open_table(PAST_ROOTS)?,
                cached_roots: txn.open_table(CACHED_ROOTS)?,
                meta,
                txn,
            }))
        })?;
        taken.ok_or_else(|| {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            newer(dir, version)
        })
    }

    /// Which journal belongs to it.
    pub(in super::super) fn journal(&self) -> Result<JournalPosition, Error> {
        Ok(JournalPosition {
            generation: self.meta(META_JOURNAL)?,
            length: self.meta(META_JOURNAL_LENGTH)?,
        })
    }

    pub(in super::super) fn blob(&self, digest: &Digest) -> Result<Option<ObjectLocation>, Error> {
        self.object(&self.blobs, digest)
    }

    pub(in super::super) fn directory(
        &self,
        digest: &Digest,
    ) -> Result<Option<ObjectLocation>, Error> {
        self.object(&self.directories, digest)
    }

    fn object(
        &self,
        table: &ObjectsTable,
        digest: &Digest,
    ) -> Result<Option<ObjectLocation>, Error> {
        let found = guarded(&self.dir, || {
            let found = table.get(digest.as_bytes())?;
            Ok(found.map(|found| ObjectLocation::decode(found.value())))
        })?;
        found
            .map(|location| {
                location.ok_or_else(|| {
                    damaged(&self.dir, format!("its entry for {digest} makes no sense"))
                })
            })
            .transpose()
    }

    /// Every pack, by number.
    pub(in super::super) fn packs(&self) -> Result<Vec<PackEntry>, Error> {
        guarded(&self.dir, || list_packs(&self.packs))
    }

    pub(super) fn meta(&self, key: &str) -> Result<u64, Error> {
        guarded(&self.dir, || {
            Ok(self.meta.get(key)?.map_or(0, |found| found.value()))
        })
    }

    pub(in super::super) fn usage(&self) -> Result<StoreUsage, Error> {
        guarded(&self.dir, || {
            let get = |key| -> Result<u64, redb::Error> {
                Ok(self.meta.get(key)?.map_or(0, |found| found.value()))
            };
            Ok(StoreUsage {
                blobs: get(META_BLOBS)?,
                blob_bytes: get(META_BLOB_BYTES)?,
                directories: get(META_DIRECTORIES)?,
            })
        })
    }
}

pub(super) fn list_packs(
    table: &impl ReadableTable<u32, (u8, u64)>,
) -> Result<Vec<PackEntry>, redb::Error> {
    let mut packs = Vec::new();
    for found in table.iter()? {
        let (id, entry) = found?;
        let (kind, len) = entry.value();
        let id = id.value();
        packs.push(PackEntry { id, kind, len });
    }
    Ok(packs)
}
