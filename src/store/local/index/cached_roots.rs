//! A cache's records of the roots of its upstream.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::super::journal::JournalChange;
use super::database::guarded;
use super::root_records::encode;
use super::{IndexChange, Snapshot};
use crate::castore::Root;
use crate::nix::PathInfo;
use crate::store::Error;

/// A root's name to what [`CachedRoot::encode`] makes.
pub(super) const CACHED_ROOTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("cached_roots");

/// Bytes before the `Entry`: two times, the flags, the length of the `Entry`.
const HEAD: usize = 8 + 8 + 1 + 4;
/// Where the flags are.
const FLAGS: usize = 16;
const PINNED: u8 = 1;

/// A root of a cache's upstream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CachedRoot {
    /// When the upstream last returned it, in milliseconds since 1970.
    pub(crate) asked: u64,
    /// When it was last used, in milliseconds since 1970.
    pub(crate) used: u64,
    /// Whether it is pinned.
    pub(crate) pinned: bool,
    /// Nothing if only the pin is known.
    pub(crate) root: Option<Root>,
    pub(crate) path_info: Option<Box<PathInfo>>,
}

impl CachedRoot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let entry = self.root.as_ref().map(encode).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEAD + entry.len());
        bytes.extend_from_slice(&self.asked.to_le_bytes());
        bytes.extend_from_slice(&self.used.to_le_bytes());
        bytes.push(if self.pinned { PINNED } else { 0 });
        bytes.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entry);
        if let Some(info) = &self.path_info {
            bytes.extend_from_slice(&info.encode_to_vec());
        }
        bytes
    }
}

impl Snapshot {
    /// The root `name`, if it is cached. An invalid record counts as absent.
    pub(in crate::store) fn cached_root(&self, name: &[u8]) -> Result<Option<CachedRoot>, Error> {
        let value = guarded(&self.dir, || {
            let found = redb::ReadableTable::get(&self.cached_roots, name)?;
            Ok(found.map(|value| value.value().to_vec()))
        })?;
        Ok(value.and_then(|value| self.decode_cached(name, &value)))
    }

    /// Every cached root. Invalid records are skipped: they are only a cache.
    pub(in crate::store) fn cached_roots(&self) -> Result<HashMap<Bytes, CachedRoot>, Error> {
        let entries = guarded(&self.dir, || {
            let mut entries = Vec::new();
            for found in self.cached_roots.iter()? {
                let (name, value) = found?;
                let name = Bytes::copy_from_slice(name.value());
                entries.push((name, value.value().to_vec()));
            }
            Ok(entries)
        })?;
        let decoded = entries.into_iter().filter_map(|(name, value)| {
            let found = self.decode_cached(&name, &value)?;
            Some((name, found))
        });
        Ok(decoded.collect())
    }

    fn decode_cached(&self, name: &[u8], bytes: &[u8]) -> Option<CachedRoot> {
        let (asked, rest) = bytes.split_first_chunk()?;
        let (used, rest) = rest.split_first_chunk()?;
        let (flags, rest) = rest.split_first()?;
        let (entry, rest) = rest.split_first_chunk()?;
        let (entry, info) = rest.split_at_checked(u32::from_le_bytes(*entry) as usize)?;
        let root = match entry {
            [] => None,
            entry => Some(self.decode_root(name, entry).ok()?),
        };
        let path_info = match info {
            [] => None,
            info => Some(Box::new(PathInfo::decode(info).ok()?)),
        };
        Some(CachedRoot {
            asked: u64::from_le_bytes(*asked),
            used: u64::from_le_bytes(*used),
            pinned: flags & PINNED != 0,
            root,
            path_info,
        })
    }
}

impl IndexChange<'_> {
    /// Stores a cached root; or removes it.
    pub(in crate::store) fn set_cached_roots(
        &mut self,
        roots: &[(Bytes, Option<CachedRoot>)],
    ) -> Result<(), Error> {
        let pins = self.run(|txn| {
            let mut pins = Vec::new();
            let mut table = txn.open_table(CACHED_ROOTS)?;
            for (name, root) in roots {
                let old = match root {
                    Some(root) => table.insert(&name[..], &root.encode()[..])?,
                    None => table.remove(&name[..])?,
                };
                let pinned = root.as_ref().is_some_and(|root| root.pinned);
                if old.is_some_and(|old| is_pinned(old.value())) != pinned {
                    pins.push(JournalChange::Pin(name.to_vec(), pinned));
                }
            }
            Ok(pins)
        })?;
        self.entered.extend(pins);
        Ok(())
    }
}

fn is_pinned(value: &[u8]) -> bool {
    value.get(FLAGS).is_some_and(|flags| flags & PINNED != 0)
}

/// The pinned names, for the journal.
pub(super) fn pins(txn: &WriteTransaction) -> Result<Vec<JournalChange>, redb::Error> {
    let mut pins = Vec::new();
    for found in txn.open_table(CACHED_ROOTS)?.iter()? {
        let (name, value) = found?;
        if is_pinned(value.value()) {
            pins.push(JournalChange::Pin(name.value().to_vec(), true));
        }
    }
    Ok(pins)
}
