//! The index: the objects of the store and their places, in one redb database.
//!
//! **Many processes.** redb lets any number of processes read, each from its own snapshot, and one
//! at a time write ([`MultiWriter`](redb::ConcurrencyMode::MultiWriter)). Reads use a handle that
//! is opened read-only, and one for writing is opened only when something is written: a process
//! that only reads leaves no trace, and needs no permission to write.
//!
//! **Snapshots.** Beginning a read costs several microseconds, a lookup in a snapshot well under
//! one. The entries of a snapshot stay true, as objects never change, unless a garbage collection
//! removed them; and what is *not* in it may have come since. So one snapshot is kept, and renewed
//! when something is missing from it, or is no longer at its place, and the `sequence` file shows
//! that there was a commit.
//!
//! **`sequence`** is a little-endian u64: odd while a commit is in progress (or was, when its
//! process died), even otherwise, larger with every commit. A reader that sees the even number of
//! its snapshot knows, for one `pread`, that nothing is new; one that sees an odd number takes a
//! new snapshot each time, which is right and a little slower.
//!
//! **Later tables.** A table that is absent is empty, so that a new kind of entry needs no new version
//! of the format.
//!
//! **A handle that failed is dropped.** After an error redb refuses all further work on a handle;
//! the next use opens another ([`database`]).

mod cached_roots;
mod change;
mod chunk_lists;
mod contents;
mod database;
mod quarantine;
mod references;
mod removal;
mod root_records;
mod snapshot;
mod valid_paths;
mod waiting_nars;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase, TableDefinition};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use self::cached_roots::CACHED_ROOTS;
pub(crate) use self::cached_roots::CachedRoot;
pub(super) use self::change::{CommitError, IndexChange};
pub use self::chunk_lists::{ChunkPlace, StoredChunk};
pub(super) use self::contents::{IndexContents, create_with};
use self::database::{ReadHandle, builder, file_state, guarded, open_reader, open_writer};
use self::quarantine::QUARANTINE;
pub(super) use self::removal::MEMORY;
use self::removal::{AGES, PAST_ROOTS};
use self::root_records::ROOT_RECORDS;
pub use self::root_records::RootRecord;
pub(super) use self::snapshot::{PackEntry, Snapshot};
pub use self::valid_paths::ValidPath;
pub use self::waiting_nars::WaitingNar;
use super::dir::{StoreDirectory, wait_until};
use super::format::FORMAT;
use super::location::{BLOBS, DIRECTORIES};
use crate::store::Error;

/// A root's name to its `PathInfo`.
const PATH_INFOS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("path_infos");
/// Pack's number to its [`PackKind`](super::location::PackKind) and the length up to which it is committed.
const PACKS: TableDefinition<u32, (u8, u64)> = TableDefinition::new("packs");
/// The numbers below.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const META_BLOBS: &str = "blobs";
const META_BLOB_BYTES: &str = "blob_bytes";
const META_DIRECTORIES: &str = "directories";
const META_ROOTS_VERSION: &str = "roots_version";
const META_REMOVALS: &str = "removals";
const META_NEXT_PACK: &str = "next_pack";
/// The format's version; none in version 1.
const META_FORMAT: &str = "format";
/// Which journal belongs to the index, and how much of it.
const META_JOURNAL: &str = "journal";
const META_JOURNAL_LENGTH: &str = "journal_length";
/// Roots that wait for their content.
const META_INCOMPLETE: &str = "incomplete_roots";

/// The index of one store.
pub(super) struct Index {
    dir: Arc<StoreDirectory>,
    reader: RwLock<IndexReader>,
    /// Open from the first write on; one write at a time.
    writer: Mutex<Option<IndexWriter>>,
    sequence: Option<File>,
}

struct IndexReader {
    snapshot: Arc<Snapshot>,
    handle: ReadHandle,
    /// Which file the handle is on: another is put in its place when the index is rebuilt.
    file: Option<(u64, u64)>,
}

/// Device and number of the index's file.
fn file_id(dir: &StoreDirectory) -> Option<(u64, u64)> {
    let found = std::fs::metadata(dir.index()).ok()?;
    Some((found.dev(), found.ino()))
}

/// The handle for writing, and its file.
type IndexWriter = (Database, Option<(u64, u64)>);

/// Makes an empty index.
pub(super) fn create(dir: &StoreDirectory, path: &Path) -> Result<(), Error> {
    guarded(dir, || {
        let database = builder().create(path)?;
        let txn = database.begin_write()?;
        txn.open_table(BLOBS)?;
        txn.open_table(DIRECTORIES)?;
        txn.open_table(ROOT_RECORDS)?;
        txn.open_table(PATH_INFOS)?;
        txn.open_table(PACKS)?;
        txn.open_table(AGES)?;
        txn.open_table(PAST_ROOTS)?;
        txn.open_table(CACHED_ROOTS)?;
        txn.open_table(QUARANTINE)?;
        txn.open_table(META)?
            .insert(META_FORMAT, u64::from(FORMAT))?;
        txn.commit()?;
        database.close()?;
        Ok(())
    })
}

impl Index {
    pub(super) fn open(dir: Arc<StoreDirectory>) -> Result<Self, Error> {
        let sequence = File::open(dir.sequence()).ok();
        let reader = open(&dir, sequence.as_ref())?;
        Ok(Self {
            reader: RwLock::new(reader),
            dir,
            writer: Mutex::default(),
            sequence,
        })
    }

    /// A snapshot of some moment: its entries are true.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.read().snapshot.clone()
    }

    /// A snapshot of now: what is not in it is not in the store.
    pub(super) fn fresh(&self) -> Result<Arc<Snapshot>, Error> {
        let snapshot = self.snapshot();
        let now = read_sequence(self.sequence.as_ref());
        if now.is_some() && now == snapshot.sequence {
            return Ok(snapshot);
        }
        let mut reader = self.reader.write();
        if now.is_some() && now == reader.snapshot.sequence {
            return Ok(reader.snapshot.clone());
        }
        let taken = match &reader.handle {
            ReadHandle::Shared(_) if reader.file != file_id(&self.dir) => None,
            ReadHandle::Shared(_) => {
                take_snapshot(&self.dir, &reader.handle, self.sequence.as_ref()).ok()
            }
            ReadHandle::Copy(_, made) if *made == file_state(&self.dir) => {
                return Ok(reader.snapshot.clone());
            }
            ReadHandle::Copy(..) => None,
        };
        match taken {
            Some(taken) => reader.snapshot = Arc::new(taken),
            // The handle has failed, or a writer died and left the file to be repaired.
            None => self.reopen(&mut reader)?,
        }
        Ok(reader.snapshot.clone())
    }

    fn reopen(&self, reader: &mut IndexReader) -> Result<(), Error> {
        *reader = open(&self.dir, self.sequence.as_ref())?;
        Ok(())
    }

    /// Looks something up: in the present snapshot, and if it is not there, in a fresh one.
    pub(super) fn look_up<T>(
        &self,
        get: impl Fn(&Snapshot) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let snapshot = self.snapshot();
        match get(&snapshot) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(_) => {
                // The handle latches an error; another may work.
                let mut reader = self.reader.write();
                if Arc::ptr_eq(&reader.snapshot, &snapshot) {
                    self.reopen(&mut reader)?;
                }
            }
        }
        let fresh = self.fresh()?;
        if Arc::ptr_eq(&fresh, &snapshot) {
            return Ok(None);
        }
        get(&fresh)
    }

    pub(super) fn roots_version(&self) -> Result<u64, Error> {
        Ok(self.fresh()?.roots_version)
    }

    /// See [`Store::wait_for_roots`](crate::store::Store::wait_for_roots).
    pub(super) fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        // Without a watch (their number is limited) the wait polls.
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .and_then(|watch| {
                let path = self.dir.sequence();
                inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
                Ok(watch)
            });
        let mut version = seen;
        wait_until(
            timeout,
            |remaining| {
                let watch = watch.as_ref().map_err(|error| *error)?;
                // An odd number may be a dead writer's, of which there is no event: look again.
                let remaining = remaining.min(Duration::from_secs(1));
                let remaining = Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::from(remaining.as_nanos().min(999_999_999) as u32),
                };
                poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&remaining))?;
                let mut events = [0; 4096];
                while rustix::io::read(watch, &mut events).is_ok_and(|read| read > 0) {}
                Ok(())
            },
            || {
                version = self.roots_version()?;
                Ok(version != seen)
            },
        )?;
        Ok(version)
    }

    /// Every pack, by number. Waits for commits in progress, and determines the outcome of one
    /// whose process died: what this does not list can be removed.
    pub(super) fn packs(&self) -> Result<Vec<PackEntry>, Error> {
        self.change()?.packs()
    }

    /// The first number that no pack ever had, as far as packs that were removed go.
    pub(super) fn next_pack(&self) -> Result<u32, Error> {
        let next = self.fresh()?.meta(META_NEXT_PACK)?;
        Ok(u32::try_from(next).unwrap_or(u32::MAX))
    }

    /// Starts to write. Waits while another process does.
    pub(super) fn change(&self) -> Result<IndexChange<'_>, Error> {
        let mut writer = self.writer.lock();
        let file = file_id(&self.dir);
        if writer.as_ref().is_none_or(|(_, opened)| *opened != file) {
            *writer = Some((open_writer(&self.dir)?, file));
        }
        let begun = guarded(&self.dir, || {
            let (database, _) = writer.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            database.begin_write().map_err(Into::into)
        });
        match begun {
            Ok(txn) => IndexChange::begin(self, writer, txn),
            Err(error) => {
                *writer = None;
                Err(error)
            }
        }
    }
}

/// The number in `sequence` if it is even; nothing if it is odd or cannot be read.
fn read_sequence(file: Option<&File>) -> Option<u64> {
    let mut bytes = [0; 8];
    file?.read_exact_at(&mut bytes, 0).ok()?;
    let number = u64::from_le_bytes(bytes);
    number.is_multiple_of(2).then_some(number)
}

/// The version of the index, if a newer castore-fs made or converted it.
pub(super) fn newer_version(dir: &StoreDirectory) -> Option<u32> {
    let handle = open_reader(dir).ok()?;
    let version = guarded(dir, || {
        let txn = match &handle {
            ReadHandle::Shared(database) => database.begin_read()?,
            ReadHandle::Copy(database, _) => database.begin_read()?,
        };
        let found = txn.open_table(META)?.get(META_FORMAT)?;
        Ok(found.map_or(1, |found| found.value()))
    });
    let version = u32::try_from(version.ok()?).unwrap_or(u32::MAX);
    (version > FORMAT).then_some(version)
}

fn open(dir: &Arc<StoreDirectory>, sequence: Option<&File>) -> Result<IndexReader, Error> {
    let file = file_id(dir);
    let handle = open_reader(dir)?;
    let snapshot = Arc::new(take_snapshot(dir, &handle, sequence)?);
    Ok(IndexReader {
        snapshot,
        handle,
        file,
    })
}

fn take_snapshot(
    dir: &Arc<StoreDirectory>,
    handle: &ReadHandle,
    sequence: Option<&File>,
) -> Result<Snapshot, Error> {
    // Before the read begins: a commit in between only makes the snapshot newer than it claims.
    let sequence = match handle {
        ReadHandle::Shared(_) => read_sequence(sequence),
        ReadHandle::Copy(..) => None,
    };
    Snapshot::take(dir, handle, sequence)
}
