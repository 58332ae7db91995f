//! The index at one moment, and reading it.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::super::folder::Folder;
use super::super::format::{self, FORMAT};
use super::super::journal::Position;
use super::super::location::{BLOBS, DIRECTORIES, Location};
use super::cached_roots::CACHED_ROOTS;
use super::database::{Handle, damaged, guarded};
use super::quarantine::{self, Quarantine};
use super::removal::{AGES, PAST_ROOTS};
use super::root_records::Roots;
use super::{
    META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES, META_FORMAT, META_INCOMPLETE,
    META_JOURNAL, META_JOURNAL_LENGTH, META_REMOVALS, META_ROOTS_VERSION, PACKS, PATH_INFOS,
};
use crate::castore::Digest;
use crate::store::{Error, Usage};

pub(super) type Objects = ReadOnlyTable<&'static [u8; Digest::LEN], &'static [u8; 21]>;
type Names = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The index at one moment.
pub(in super::super) struct Snapshot {
    pub(super) folder: Arc<Folder>,
    /// The even number in `sequence` when it was taken.
    pub(super) sequence: Option<u64>,
    pub(super) roots_version: u64,
    /// The removal counter.
    pub(in super::super) removals: u64,
    pub(super) blobs: Objects,
    pub(super) directories: Objects,
    /// How many roots wait for their content.
    pub(in super::super) incomplete: u64,
    /// For tables that are seldom read.
    pub(super) txn: ReadTransaction,
    /// Which objects are damaged, if any are.
    pub(super) quarantine: Option<Quarantine>,
    pub(super) roots: Roots,
    pub(super) path_infos: Names,
    pub(super) packs: ReadOnlyTable<u32, (u8, u64)>,
    pub(super) ages: ReadOnlyTable<(u32, u64), u64>,
    pub(super) past_roots: ReadOnlyTable<(u64, &'static [u8]), &'static [u8]>,
    pub(super) cached_roots: Names,
    pub(super) meta: ReadOnlyTable<&'static str, u64>,
}

/// A pack as the index knows it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PackEntry {
    pub(in super::super) id: u32,
    /// As in [`PackKind`](super::super::pack::PackKind).
    pub(in super::super) kind: u8,
    /// Bytes, from the start, that are committed.
    pub(in super::super) len: u64,
}

impl Snapshot {
    /// A snapshot of what `handle` reads now; `sequence` is the number that was read before.
    pub(super) fn take(
        folder: &Arc<Folder>,
        handle: &Handle,
        sequence: Option<u64>,
    ) -> Result<Self, Error> {
        let mut version = 0;
        let taken = guarded(folder, || {
            let txn = match handle {
                Handle::Shared(database) => database.begin_read()?,
                Handle::Copy(database, _) => database.begin_read()?,
            };
            let meta = txn.open_table(META)?;
            version = meta.get(META_FORMAT)?.map_or(1, |found| found.value());
            if version > u64::from(FORMAT) {
                return Ok(None);
            }
            Ok(Some(Self {
                folder: folder.clone(),
                sequence,
                roots_version: meta
                    .get(META_ROOTS_VERSION)?
                    .map_or(0, |found| found.value()),
                removals: meta.get(META_REMOVALS)?.map_or(0, |found| found.value()),
                blobs: txn.open_table(BLOBS)?,
                directories: txn.open_table(DIRECTORIES)?,
                incomplete: meta.get(META_INCOMPLETE)?.map_or(0, |found| found.value()),
                quarantine: quarantine::open(&txn)?,
                roots: Roots::open(&txn)?,
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
            format::newer(folder, version)
        })
    }

    /// Which journal belongs to it.
    pub(in super::super) fn journal(&self) -> Result<Position, Error> {
        Ok(Position {
            generation: self.meta(META_JOURNAL)?,
            length: self.meta(META_JOURNAL_LENGTH)?,
        })
    }

    pub(in super::super) fn blob(&self, digest: &Digest) -> Result<Option<Location>, Error> {
        self.object(&self.blobs, digest)
    }

    pub(in super::super) fn directory(&self, digest: &Digest) -> Result<Option<Location>, Error> {
        self.object(&self.directories, digest)
    }

    fn object(&self, table: &Objects, digest: &Digest) -> Result<Option<Location>, Error> {
        let found = guarded(&self.folder, || {
            let found = table.get(digest.as_bytes())?;
            Ok(found.map(|found| Location::decode(found.value())))
        })?;
        found
            .map(|location| {
                location.ok_or_else(|| {
                    damaged(
                        &self.folder,
                        format!("its entry for {digest} makes no sense"),
                    )
                })
            })
            .transpose()
    }

    /// Every pack, by number.
    pub(in super::super) fn packs(&self) -> Result<Vec<PackEntry>, Error> {
        guarded(&self.folder, || list_packs(&self.packs))
    }

    pub(super) fn meta(&self, key: &str) -> Result<u64, Error> {
        guarded(&self.folder, || {
            Ok(self.meta.get(key)?.map_or(0, |found| found.value()))
        })
    }

    pub(in super::super) fn usage(&self) -> Result<Usage, Error> {
        guarded(&self.folder, || {
            let get = |key| -> Result<u64, redb::Error> {
                Ok(self.meta.get(key)?.map_or(0, |found| found.value()))
            };
            Ok(Usage {
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
