//! An index made of the findings of a repair.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use prost::Message;
use rustix::fs::{FlockOperation, flock};

use super::super::dir::StoreDirectory;
use super::super::journal::{JournalChange, JournalPosition};
use super::super::location::{BLOBS, DIRECTORIES, ObjectLocation, PackKind};
use super::cached_roots::{CACHED_ROOTS, CachedRoot};
use super::database::{builder, guarded};
use super::removal::note_age;
use super::root_records::{ROOT_RECORDS, StoredRoot};
use super::valid_paths::VALID_PATHS;
use super::{
    Index, META, META_BLOB_BYTES, META_BLOBS, META_DIRECTORIES, META_INCOMPLETE, META_JOURNAL,
    META_JOURNAL_LENGTH, META_NEXT_PACK, META_ROOTS_VERSION, PACKS, PATH_INFOS, Snapshot, create,
};
use crate::castore::Digest;
use crate::clock::unix_seconds;
use crate::proto::castore::v1::Entry;
use crate::store::Error;

/// The contents of an index.
#[derive(Debug, Default)]
pub(in super::super) struct IndexContents {
    /// Each blob once.
    pub(in super::super) blobs: Vec<(Digest, ObjectLocation)>,
    /// Each Directory once.
    pub(in super::super) directories: Vec<(Digest, ObjectLocation)>,
    /// Numbers, kinds and lengths of packs.
    pub(in super::super) packs: Vec<(u32, PackKind, u64)>,
    /// Roots, pins and valid paths.
    pub(in super::super) names: Vec<JournalChange>,
    /// The journal with the same entries.
    pub(in super::super) journal: JournalPosition,
}

/// Makes an index of `contents` at `path`. All objects count as added now, so that a garbage
/// collection spares them for a while.
pub(in super::super) fn create_with(
    dir: &StoreDirectory,
    path: &Path,
    contents: &IndexContents,
) -> Result<(), Error> {
    create(dir, path)?;
    guarded(dir, || {
        let database = builder().open(path)?;
        let txn = database.begin_write()?;
        let mut blob_bytes = 0;
        {
            let mut table = txn.open_table(BLOBS)?;
            for (digest, at) in &contents.blobs {
                table.insert(digest.as_bytes(), &at.encode())?;
                blob_bytes += at.len;
            }
            let mut table = txn.open_table(DIRECTORIES)?;
            for (digest, at) in &contents.directories {
                table.insert(digest.as_bytes(), &at.encode())?;
            }
            let mut packs = txn.open_table(PACKS)?;
            let mut next_pack = 0;
            for (id, kind, len) in &contents.packs {
                packs.insert(id, (*kind as u8, *len))?;
                note_age(&txn, *id, 0)?;
                next_pack = next_pack.max(u64::from(*id) + 1);
            }
            let incomplete = enter_names(&txn, &contents.names)?;
            let mut meta = txn.open_table(META)?;
            for (key, value) in [
                (META_BLOBS, contents.blobs.len() as u64),
                (META_BLOB_BYTES, blob_bytes),
                (META_DIRECTORIES, contents.directories.len() as u64),
                (META_NEXT_PACK, next_pack),
                (META_INCOMPLETE, incomplete),
                (META_JOURNAL, contents.journal.generation),
                (META_JOURNAL_LENGTH, contents.journal.length),
                // Larger than the lost index's number.
                (META_ROOTS_VERSION, unix_seconds()),
            ] {
                meta.insert(key, value)?;
            }
        }
        txn.commit()?;
        database.close()?;
        Ok(())
    })
}

/// Enters roots, pins and valid paths; returns how many roots wait for their content.
fn enter_names(txn: &redb::WriteTransaction, names: &[JournalChange]) -> Result<u64, redb::Error> {
    let mut roots = txn.open_table(ROOT_RECORDS)?;
    let mut infos = txn.open_table(PATH_INFOS)?;
    let mut cached = txn.open_table(CACHED_ROOTS)?;
    let mut waiting = 0;
    for entered in names {
        match entered {
            JournalChange::Root {
                added,
                incomplete,
                root,
                path_info,
            } => {
                let stored = StoredRoot {
                    added: *added,
                    incomplete: *incomplete,
                    entry: Entry::from(root).encode_to_vec(),
                };
                roots.insert(&root.name[..], &stored.encode()[..])?;
                if let Some(info) = path_info {
                    infos.insert(&root.name[..], &info.encode_to_vec()[..])?;
                }
                waiting += u64::from(*incomplete);
            }
            JournalChange::Pin(name, true) => {
                let pinned = CachedRoot {
                    pinned: true,
                    ..CachedRoot::default()
                };
                cached.insert(&name[..], &pinned.encode()[..])?;
            }
            JournalChange::ValidPath(name, Some(value)) => {
                let mut valid = txn.open_table(VALID_PATHS)?;
                valid.insert(&name[..], &value[..])?;
            }
            JournalChange::Pin(_, false)
            | JournalChange::Removed(_)
            | JournalChange::ValidPath(_, None) => {}
        }
    }
    Ok(waiting)
}

impl Snapshot {
    /// All entries for a journal.
    pub(in super::super) fn entered(&self) -> Result<Vec<JournalChange>, Error> {
        let mut all = Vec::new();
        for record in self.root_records()? {
            all.push(JournalChange::Root {
                added: record.added.unwrap_or(0),
                incomplete: record.incomplete,
                root: record.root,
                path_info: record.path_info.map(Box::new),
            });
        }
        let cached = self.cached_roots()?.into_iter();
        let pinned = cached.filter(|(_, cached)| cached.pinned);
        all.extend(pinned.map(|(name, _)| JournalChange::Pin(name.to_vec(), true)));
        all.extend(self.valid_paths_entered()?);
        Ok(all)
    }
}

impl Index {
    /// Makes readers open the index again: another file was put in its place.
    pub(in super::super) fn announce(dir: &StoreDirectory) -> Result<(), Error> {
        let path = dir.sequence();
        let announced = || -> std::io::Result<()> {
            let mut options = std::fs::File::options();
            let file = options.read(true).write(true).create(true).truncate(false);
            let file = file.custom_flags(libc::O_NOFOLLOW).open(&path)?;
            dir.give_to_owner(&file, &path);
            flock(&file, FlockOperation::LockExclusive)?;
            let mut bytes = [0; 8];
            // A file that is too short counts from 0.
            let _ = file.read_exact_at(&mut bytes, 0);
            let next = (u64::from_le_bytes(bytes).wrapping_add(1) | 1).wrapping_add(1);
            file.write_all_at(&next.to_le_bytes(), 0)
        };
        announced().map_err(dir.io("write", &path))
    }
}
