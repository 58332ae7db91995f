//! The index's part in a garbage collection.
//!
//! Two small tables record what is too young to be removed: the length of each pack at each minute,
//! and when roots were removed. Both drop entries that are older than [`MEMORY`].
//!
//! Times are the machine's clock. An entry that was made while that was ahead is in the future once
//! it is right again, and would count as young until then; a collection moves it to the present
//! ([`IndexChange::correct_times`]), which is the latest that it can have happened.

use std::collections::HashMap;
use std::time::Duration;

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::database::{damaged, guarded};
use super::{
    BLOBS, DIRECTORIES, IndexChange, META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES,
    META_NEXT_PACK, META_REMOVALS, PACKS, Snapshot,
};
use super::{chunk_lists, quarantine};
use crate::castore::{Digest, Root};
use crate::clock::unix_seconds;
use crate::store::local::location::{ObjectLocation, ObjectsTable, StorageKind};
use crate::store::{Error, Object};

/// A pack's number and a minute (in seconds since 1970), to the length that the pack had before the
/// first commit of that minute.
pub(super) const AGES: TableDefinition<(u32, u64), u64> = TableDefinition::new("ages");
/// When a root was removed (in seconds since 1970) and its name, to its `Entry`.
pub(super) const PAST_ROOTS: TableDefinition<(u64, &[u8]), &[u8]> =
    TableDefinition::new("past_roots");

/// How far back the two tables go.
pub(in crate::store::local) const MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// Seconds that one entry of `AGES` stands for.
const MINUTE: u64 = 60;

/// Notes that pack `id` had `len` bytes until now.
pub(super) fn note_age(txn: &WriteTransaction, id: u32, len: u64) -> Result<(), redb::Error> {
    let mut ages = txn.open_table(AGES)?;
    let minute = unix_seconds() / MINUTE * MINUTE;
    if ages.get((id, minute))?.is_none() {
        ages.insert((id, minute), len)?;
        let forgotten = minute.saturating_sub(MEMORY.as_secs());
        ages.retain_in((id, 0)..(id, forgotten), |_, _| false)?;
    }
    Ok(())
}

/// Notes that the root `name` was `entry` until now.
pub(super) fn note_past_root(
    txn: &WriteTransaction,
    name: &[u8],
    entry: &[u8],
) -> Result<(), redb::Error> {
    let mut past = txn.open_table(PAST_ROOTS)?;
    let now = unix_seconds();
    past.insert((now, name), entry)?;
    let forgotten = now.saturating_sub(MEMORY.as_secs());
    past.retain_in((0, &[][..])..(forgotten, &[][..]), |_, _| false)?;
    Ok(())
}

/// Where in each pack the objects of each minute start, and the end of that minute in seconds since
/// 1970. Those of a pack are in the order of time.
#[derive(Debug, Default)]
pub(in crate::store::local) struct YoungObjects(HashMap<u32, Vec<(u64, u64)>>);

impl YoungObjects {
    pub(in crate::store::local) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The end of the minute in which the object at `at` was added, in seconds since 1970, if it is
    /// one of these.
    pub(in crate::store::local) fn added(&self, at: &ObjectLocation) -> Option<u64> {
        let starts = self.0.get(&at.pack)?;
        let after = starts.partition_point(|(start, _)| *start <= at.offset);
        Some(starts.get(after.checked_sub(1)?)?.1)
    }
}

impl Snapshot {
    pub(in crate::store::local) fn each_blob(
        &self,
        visit: impl FnMut(Digest, ObjectLocation),
    ) -> Result<(), Error> {
        self.each(&self.blobs, visit)
    }

    pub(in crate::store::local) fn each_directory(
        &self,
        visit: impl FnMut(Digest, ObjectLocation),
    ) -> Result<(), Error> {
        self.each(&self.directories, visit)
    }

    fn each(
        &self,
        table: &ObjectsTable,
        mut visit: impl FnMut(Digest, ObjectLocation),
    ) -> Result<(), Error> {
        let senseless = guarded(&self.dir, || {
            for found in table.iter()? {
                let (digest, location) = found?;
                let digest = Digest::from(*digest.value());
                match ObjectLocation::decode(location.value()) {
                    Some(location) => visit(digest, location),
                    None => return Ok(Some(digest)),
                }
            }
            Ok(None)
        })?;
        match senseless {
            None => Ok(()),
            Some(digest) => Err(damaged(
                &self.dir,
                format!("its entry for {digest} makes no sense"),
            )),
        }
    }

    /// The objects that were added since `cutoff` (seconds since 1970).
    pub(in crate::store::local) fn young(&self, cutoff: u64) -> Result<YoungObjects, Error> {
        guarded(&self.dir, || {
            let mut young = YoungObjects::default();
            for found in self.ages.iter()? {
                let (key, len) = found?;
                let ((pack, minute), len) = (key.value(), len.value());
                if minute + MINUTE > cutoff {
                    let starts = young.0.entry(pack).or_default();
                    starts.push((len, minute + MINUTE));
                }
            }
            Ok(young)
        })
    }

    /// Whether there is an entry after `now` (seconds since 1970): the clock was ahead.
    pub(in crate::store::local) fn is_ahead_of(&self, now: u64) -> Result<bool, Error> {
        guarded(&self.dir, || {
            for found in self.ages.iter()? {
                if found?.0.value().1 > now {
                    return Ok(true);
                }
            }
            match self.past_roots.last()? {
                Some((key, _)) => Ok(key.value().0 > now),
                None => Ok(false),
            }
        })
    }

    /// The roots that were removed since `cutoff` (seconds since 1970), which are spared for a
    /// while, each with the time when it was.
    pub(in crate::store::local) fn past_roots(
        &self,
        cutoff: u64,
    ) -> Result<Vec<(u64, Root)>, Error> {
        let entries = guarded(&self.dir, || {
            let mut entries = Vec::new();
            for found in self.past_roots.range((cutoff, &[][..])..)? {
                let (key, entry) = found?;
                let (time, name) = key.value();
                entries.push((time, name.to_vec(), entry.value().to_vec()));
            }
            Ok(entries)
        })?;
        entries
            .iter()
            .map(|(time, name, entry)| Ok((*time, self.decode_root(name, entry)?)))
            .collect()
    }
}

impl IndexChange<'_> {
    /// Moves entries after `now` (seconds since 1970) to `now`.
    pub(in crate::store::local) fn correct_times(&mut self, now: u64) -> Result<(), Error> {
        self.run(|txn| {
            let mut table = txn.open_table(AGES)?;
            let mut ahead = Vec::new();
            for found in table.iter()? {
                let (key, len) = found?;
                let ((pack, minute), len) = (key.value(), len.value());
                if minute > now {
                    ahead.push((pack, minute, len));
                }
            }
            for (pack, minute, len) in ahead {
                table.remove((pack, minute))?;
                let present = (pack, now / MINUTE * MINUTE);
                let known = table.get(present)?.map(|known| known.value());
                // The length before the first of the commits.
                table.insert(present, known.map_or(len, |known| known.min(len)))?;
            }
            let mut table = txn.open_table(PAST_ROOTS)?;
            let mut ahead = Vec::new();
            for found in table.range((now + 1, &[][..])..)? {
                let (key, entry) = found?;
                let (when, name) = key.value();
                ahead.push((when, name.to_vec(), entry.value().to_vec()));
            }
            for (when, name, entry) in ahead {
                table.remove((when, &name[..]))?;
                // A root may have been several things: each keeps an entry.
                let mut present = now;
                while table.get((present, &name[..]))?.is_some() {
                    present -= 1;
                }
                table.insert((present, &name[..]), &entry[..])?;
            }
            Ok(())
        })
    }

    /// Removes objects, which exist, and packs that have nothing else.
    pub(in crate::store::local) fn remove(
        &mut self,
        blobs: &[Digest],
        directories: &[Digest],
        packs: &[u32],
    ) -> Result<(), Error> {
        self.run(|txn| {
            quarantine::release(txn, Object::Blob, blobs.iter())?;
            quarantine::release(txn, Object::Directory, directories.iter())?;
            chunk_lists::remove(txn, blobs)?;
            let mut removed = [(META_BLOBS, 0), (META_BLOB_BYTES, 0), (META_DIRECTORIES, 0)];
            let mut table = txn.open_table(BLOBS)?;
            for digest in blobs {
                if let Some(old) = table.remove(digest.as_bytes())? {
                    removed[0].1 += 1;
                    removed[1].1 += ObjectLocation::decode(old.value()).map_or(0, |old| old.len);
                }
            }
            let mut table = txn.open_table(DIRECTORIES)?;
            for digest in directories {
                removed[2].1 += u64::from(table.remove(digest.as_bytes())?.is_some());
            }
            let mut meta = txn.open_table(META)?;
            for (key, less) in removed {
                let before = meta.get(key)?.map_or(0, |found| found.value());
                meta.insert(key, before.saturating_sub(less))?;
            }
            let before = meta.get(META_REMOVALS)?.map_or(0, |found| found.value());
            meta.insert(META_REMOVALS, before + 1)?;
            let mut table = txn.open_table(PACKS)?;
            let mut ages = txn.open_table(AGES)?;
            for pack in packs {
                table.remove(pack)?;
                ages.retain_in((*pack, 0)..=(*pack, u64::MAX), |_, _| false)?;
                let next = meta.get(META_NEXT_PACK)?.map_or(0, |found| found.value());
                meta.insert(META_NEXT_PACK, next.max(u64::from(*pack) + 1))?;
            }
            Ok(())
        })
    }

    /// Clears the marks of complete trees: something below may be gone.
    pub(in crate::store::local) fn doubt(&mut self, directories: &[Digest]) -> Result<(), Error> {
        self.run(|txn| {
            let mut table = txn.open_table(DIRECTORIES)?;
            for digest in directories {
                let old = table
                    .get(digest.as_bytes())?
                    .and_then(|old| ObjectLocation::decode(old.value()));
                if let Some(old) = old.filter(|old| old.kind == StorageKind::Whole) {
                    let kind = StorageKind::Partial;
                    table.insert(digest.as_bytes(), &ObjectLocation { kind, ..old }.encode())?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::castore::Digest;
    use crate::store::Store;
    use crate::store::local::LocalStore;
    use crate::store::local::gc::GcOptions;

    /// Moves all entries by `by` seconds: as if the clock had been ahead.
    fn shift(store: &LocalStore, by: u64) {
        let mut change = store.0.index.change().unwrap();
        let shifted = change.run(|txn| {
            let mut ages = txn.open_table(AGES)?;
            let mut all = Vec::new();
            for found in ages.iter()? {
                let (key, len) = found?;
                all.push((key.value(), len.value()));
            }
            for ((pack, minute), len) in all {
                ages.remove((pack, minute))?;
                ages.insert((pack, minute + by), len)?;
            }
            let mut past = txn.open_table(PAST_ROOTS)?;
            let mut all = Vec::new();
            for found in past.iter()? {
                let (key, entry) = found?;
                let (when, name) = key.value();
                all.push((when, name.to_vec(), entry.value().to_vec()));
            }
            for (when, name, entry) in all {
                past.remove((when, &name[..]))?;
                past.insert((when + by, &name[..]), &entry[..])?;
            }
            Ok(())
        });
        shifted.unwrap();
        assert!(change.commit().is_ok());
    }

    fn put(store: &LocalStore, bytes: &[u8]) {
        let ingest = store.ingest().unwrap();
        ingest.put_blobs(&[(Digest::of(bytes), bytes)]).unwrap();
        ingest.commit().unwrap();
    }

    fn collect(store: &LocalStore, grace: u64) -> u64 {
        let options = GcOptions {
            grace: Duration::from_secs(grace),
            ..GcOptions::default()
        };
        store.collect_garbage(&options).unwrap().blobs
    }

    #[test]
    fn what_was_added_while_the_clock_was_ahead_can_be_collected() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        put(&store, b"added in the future");
        shift(&store, 2 * MEMORY.as_secs());
        // Its age is unknown, and counts as 0.
        assert_eq!(collect(&store, 3600), 0);
        assert!(
            !store
                .0
                .index
                .fresh()
                .unwrap()
                .is_ahead_of(unix_seconds())
                .unwrap()
        );
        assert_eq!(collect(&store, 0), 1);

        // A grace that includes the future sees it when it has become the past.
        put(&store, b"again");
        shift(&store, 2 * MEMORY.as_secs());
        assert_eq!(collect(&store, 3600), 0);
        let mut change = store.0.index.change().unwrap();
        change.correct_times(unix_seconds() - 7200).unwrap();
        assert!(change.commit().is_ok());
        assert_eq!(collect(&store, 3600), 1);

        put(&store, b"without a grace, nothing needs to be known");
        shift(&store, 2 * MEMORY.as_secs());
        assert_eq!(collect(&store, 0), 1);
    }

    #[test]
    fn a_root_that_went_away_while_the_clock_was_ahead_is_not_held_for_ever() {
        use crate::castore::{Name, Node, Root};
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let name = Name::new(b"root").unwrap();
        for bytes in [&b"one"[..], b"two"] {
            let ingest = store.ingest().unwrap();
            ingest.put_blobs(&[(Digest::of(bytes), bytes)]).unwrap();
            let node = Node::File {
                digest: Digest::of(bytes),
                size: 3,
                executable: false,
            };
            let name = name.clone();
            ingest.put_root(&Root { name, node }, None).unwrap();
            ingest.commit().unwrap();
            // Its earlier node was removed two days from now.
            shift(&store, 2 * MEMORY.as_secs());
        }
        let ingest = store.ingest().unwrap();
        ingest.remove_root(&name).unwrap();
        ingest.commit().unwrap();
        shift(&store, 100);
        assert_eq!(collect(&store, 3600), 0);
        let snapshot = store.0.index.fresh().unwrap();
        assert_eq!(snapshot.past_roots(unix_seconds() - 10).unwrap().len(), 2);
        assert_eq!(snapshot.past_roots(unix_seconds() + 1).unwrap().len(), 0);
        assert_eq!(collect(&store, 0), 2);
    }
}
