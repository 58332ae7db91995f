//! Records of roots in the index: node, time, and whether the content has come.
//!
//! Version 1 has only the `Entry`, in a table of another name. Such an index is read as it is; its
//! first change moves the roots ([`Change`](super::IndexChange)), so that processes of the earlier
//! version fail at the missing table instead of working with half of the data.

use std::time::Duration;

use prost::Message;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableError};

use super::database::{damaged, guarded};
use super::{PATH_INFOS, Snapshot};
use crate::castore::{Printable, Root};
use crate::clock::unix_seconds;
use crate::nix::PathInfo;
use crate::proto::castore::v1::Entry;
use crate::store::Error;

/// Root's name to what `encode` makes.
pub(super) const ROOT_RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("root_records");
/// A root's name to its `Entry`: the table of version 1.
pub(super) const ROOTS_1: TableDefinition<&[u8], &[u8]> = TableDefinition::new("roots");

/// Bytes before the `Entry`: time and flags.
const HEAD: usize = 8 + 1;
const INCOMPLETE: u8 = 1;

/// How long a root may wait for its content.
const CONTENT_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The record of a root of a local store.
#[derive(Clone, Debug, PartialEq)]
pub struct RootRecord {
    /// Name and node.
    pub root: Root,
    /// When it was added, or became this node: in seconds since 1970. Nothing in stores that were
    /// made by the first version and have not been written since.
    pub added: Option<u64>,
    /// Its content has not come yet: it is hidden from lists and mounts.
    pub incomplete: bool,
    /// Its path info.
    pub path_info: Option<PathInfo>,
}

/// A value of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredRoot {
    pub(super) added: u64,
    pub(super) incomplete: bool,
    pub(super) entry: Vec<u8>,
}

impl StoredRoot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.entry.len());
        bytes.extend_from_slice(&self.added.to_le_bytes());
        bytes.push(if self.incomplete { INCOMPLETE } else { 0 });
        bytes.extend_from_slice(&self.entry);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (added, rest) = bytes.split_first_chunk()?;
        let (flags, entry) = rest.split_first()?;
        Some(Self {
            added: u64::from_le_bytes(*added),
            incomplete: flags & INCOMPLETE != 0,
            entry: entry.to_vec(),
        })
    }

    /// Whether its content did not come in time: it counts as absent.
    pub(super) fn is_expired(&self) -> bool {
        self.incomplete && self.added.saturating_add(CONTENT_WAIT.as_secs()) < unix_seconds()
    }
}

/// The roots in a snapshot, in either version.
pub(super) enum IndexedRoots {
    Current(ReadOnlyTable<&'static [u8], &'static [u8]>),
    Version1(ReadOnlyTable<&'static [u8], &'static [u8]>),
}

impl IndexedRoots {
    pub(super) fn open(txn: &ReadTransaction) -> Result<Self, redb::Error> {
        match txn.open_table(ROOT_RECORDS) {
            Ok(table) => Ok(IndexedRoots::Current(table)),
            Err(TableError::TableDoesNotExist(_)) => {
                Ok(IndexedRoots::Version1(txn.open_table(ROOTS_1)?))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn decode(&self, value: &[u8]) -> Option<StoredRoot> {
        match self {
            IndexedRoots::Current(_) => StoredRoot::decode(value),
            IndexedRoots::Version1(_) => Some(StoredRoot {
                added: 0,
                incomplete: false,
                entry: value.to_vec(),
            }),
        }
    }

    fn table(&self) -> &ReadOnlyTable<&'static [u8], &'static [u8]> {
        match self {
            IndexedRoots::Current(table) | IndexedRoots::Version1(table) => table,
        }
    }
}

impl Snapshot {
    /// The record of `name`, expired or not.
    pub(super) fn stored_root(&self, name: &[u8]) -> Result<Option<StoredRoot>, Error> {
        let found = guarded(&self.dir, || {
            let found = self.roots.table().get(name)?;
            Ok(found.map(|value| self.roots.decode(value.value())))
        })?;
        found
            .map(|stored| stored.ok_or_else(|| self.senseless_root(name)))
            .transpose()
    }

    fn senseless_root(&self, name: &[u8]) -> Error {
        let name = Printable(name);
        damaged(&self.dir, format!("its root \"{name}\" makes no sense"))
    }

    /// Every root in the order of the names, including those that wait for their content.
    pub(in crate::store::local) fn each_root(
        &self,
        mut visit: impl FnMut(&[u8], u64, bool, Root) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stored = guarded(&self.dir, || {
            let mut all = Vec::new();
            for found in self.roots.table().iter()? {
                let (name, value) = found?;
                all.push((name.value().to_vec(), self.roots.decode(value.value())));
            }
            Ok(all)
        })?;
        for (name, stored) in stored {
            let stored = stored.ok_or_else(|| self.senseless_root(&name))?;
            if !stored.is_expired() {
                let root = self.decode_root(&name, &stored.entry)?;
                visit(&name, stored.added, stored.incomplete, root)?;
            }
        }
        Ok(())
    }

    /// The root `name`, if its content is stored.
    pub(in crate::store::local) fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        match self.stored_root(name)? {
            Some(stored) if !stored.incomplete => self.decode_root(name, &stored.entry).map(Some),
            _ => Ok(None),
        }
    }

    /// The root `name`, whether its content is stored or not.
    pub(in crate::store::local) fn root_record(
        &self,
        name: &[u8],
    ) -> Result<Option<RootRecord>, Error> {
        match self.stored_root(name)? {
            Some(stored) if !stored.is_expired() => {
                let root = self.decode_root(name, &stored.entry)?;
                self.record(name, stored.added, stored.incomplete, root)
                    .map(Some)
            }
            _ => Ok(None),
        }
    }

    fn record(
        &self,
        name: &[u8],
        added: u64,
        incomplete: bool,
        root: Root,
    ) -> Result<RootRecord, Error> {
        Ok(RootRecord {
            root,
            added: (added > 0).then_some(added),
            incomplete,
            path_info: self.path_info_of(name)?,
        })
    }

    /// Every root whose content is stored.
    pub(in crate::store::local) fn roots(&self) -> Result<Vec<Root>, Error> {
        let mut roots = Vec::new();
        self.each_root(|_, _, incomplete, root| {
            if !incomplete {
                roots.push(root);
            }
            Ok(())
        })?;
        Ok(roots)
    }

    /// Every root, whether its content is stored or not.
    pub(in crate::store::local) fn root_records(&self) -> Result<Vec<RootRecord>, Error> {
        let mut records = Vec::new();
        self.each_root(|name, added, incomplete, root| {
            records.push(self.record(name, added, incomplete, root)?);
            Ok(())
        })?;
        Ok(records)
    }

    /// The roots that wait for their content.
    pub(in crate::store::local) fn incomplete_roots(&self) -> Result<Vec<Root>, Error> {
        let mut roots = Vec::new();
        if self.incomplete == 0 {
            return Ok(roots);
        }
        self.each_root(|_, _, incomplete, root| {
            if incomplete {
                roots.push(root);
            }
            Ok(())
        })?;
        Ok(roots)
    }

    pub(super) fn decode_root(&self, name: &[u8], entry: &[u8]) -> Result<Root, Error> {
        let root = Entry::decode(entry)
            .map_err(|error| error.to_string())
            .and_then(|entry| Root::try_from(entry).map_err(|error| error.to_string()));
        root.map_err(|error| {
            let name = Printable(name);
            damaged(&self.dir, format!("its root node \"{name}\": {error}"))
        })
    }

    /// The PathInfo of the root `name`, if its content is stored.
    pub(in crate::store::local) fn path_info(
        &self,
        name: &[u8],
    ) -> Result<Option<PathInfo>, Error> {
        if self.incomplete > 0
            && self
                .stored_root(name)?
                .is_some_and(|stored| stored.incomplete)
        {
            return Ok(None);
        }
        self.path_info_of(name)
    }

    fn path_info_of(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let found = guarded(&self.dir, || {
            let found = self.path_infos.get(name)?;
            Ok(found.map(|found| found.value().to_vec()))
        })?;
        found
            .map(|bytes| {
                PathInfo::decode(&*bytes).map_err(|error| {
                    let name = Printable(name);
                    damaged(&self.dir, format!("its path info \"{name}\": {error}"))
                })
            })
            .transpose()
    }
}

/// Converts the roots of version 1.
pub(super) fn convert(txn: &redb::WriteTransaction) -> Result<(), redb::Error> {
    let mut entries = Vec::new();
    {
        let old = txn.open_table(ROOTS_1)?;
        for found in old.iter()? {
            let (name, entry) = found?;
            entries.push((name.value().to_vec(), entry.value().to_vec()));
        }
    }
    let mut table = txn.open_table(ROOT_RECORDS)?;
    for (name, entry) in entries {
        let stored = StoredRoot {
            added: 0,
            incomplete: false,
            entry,
        };
        table.insert(&name[..], &stored.encode()[..])?;
    }
    drop(table);
    txn.open_table(PATH_INFOS)?;
    txn.delete_table(ROOTS_1)?;
    Ok(())
}

/// A root's stored `Entry`.
pub(super) fn encode(root: &Root) -> Vec<u8> {
    Entry::from(root).encode_to_vec()
}
