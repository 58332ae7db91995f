//! The index: what the store holds, and where, in one redb database.
//!
//! **Many processes.** redb lets any number of processes read, each from its own snapshot, and
//! one at a time write ([`ConcurrencyMode::MultiWriter`]). We read through a handle that is opened
//! read-only, and open one for writing only when something is written: a process that only reads
//! leaves no trace, and needs no permission to write.
//!
//! **Snapshots.** Beginning a read costs several microseconds, a look-up in a snapshot well under
//! one. What is in a snapshot stays true, as objects never change, unless a garbage collection took
//! it back; and what is *not* in it may have come since. So one snapshot is kept, and renewed when
//! something is missing from it, or is no longer where it says, and the `sequence` file says that
//! there was a commit.
//!
//! **`sequence`** is a little-endian u64: odd while a commit is in progress (or was, when its
//! process died), even otherwise, larger with every commit. A reader that sees the even number that
//! its snapshot was taken at knows, for one `pread`, that nothing is new; one that sees an odd
//! number takes a new snapshot each time, which is right and a little slower.
//!
//! **A handle that failed is dropped.** After an error redb refuses all further work on a handle;
//! the next use opens another. Should a damaged file make redb panic, the panic ends here.

mod cached_roots;
mod change;
mod removal;

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use prost::Message;
use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase, ReadOnlyTable,
    ReadableDatabase, ReadableTable, TableDefinition,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use self::cached_roots::CACHED_ROOTS;
pub(in crate::store) use self::cached_roots::CachedRoot;
pub(super) use self::change::{Change, CommitError, RootChange};
use self::removal::{AGES, PAST_ROOTS};
pub(super) use self::removal::{MEMORY, now};
use super::folder::{Folder, wait_until};
use super::location::{BLOBS, DIRECTORIES, Location};
use crate::castore::{Digest, Root};
use crate::nix::PathInfo;
use crate::proto::castore::v1::Entry;
use crate::store::{Error, Usage};

/// Root node's name to its `Entry`.
const ROOTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("roots");
/// Root node's name to its `PathInfo`.
const PATH_INFOS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("path_infos");
/// Pack's number to its [`PackKind`](super::pack::PackKind) and the length up to which it is committed.
const PACKS: TableDefinition<u32, (u8, u64)> = TableDefinition::new("packs");
/// The numbers below.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const META_BLOBS: &str = "blobs";
const META_BLOB_BYTES: &str = "blob_bytes";
const META_DIRECTORIES: &str = "directories";
const META_ROOTS_VERSION: &str = "roots_version";
const META_REMOVALS: &str = "removals";
const META_NEXT_PACK: &str = "next_pack";

/// Memory for redb's pages, in bytes, per handle.
const CACHE: usize = 32 << 20;

type Objects = ReadOnlyTable<&'static [u8; Digest::LEN], &'static [u8; 21]>;
type Names = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The index of one store.
pub(super) struct Index {
    folder: Arc<Folder>,
    reader: RwLock<Reader>,
    /// Open from the first write on; one write at a time.
    writer: Mutex<Option<Database>>,
    sequence: Option<File>,
}

struct Reader {
    snapshot: Arc<Snapshot>,
    handle: Handle,
}

enum Handle {
    Shared(ReadOnlyDatabase),
    /// The file was not closed cleanly and cannot be written to: a repaired copy in memory, and
    /// the file's state when it was made.
    Copy(Database, FileState),
}

/// A file's length and the time of its last change.
type FileState = (u64, Option<SystemTime>);

/// What the index said at one moment.
pub(super) struct Snapshot {
    folder: Arc<Folder>,
    /// The even number in `sequence` when it was taken.
    sequence: Option<u64>,
    roots_version: u64,
    /// How often something was removed.
    pub(super) removals: u64,
    blobs: Objects,
    directories: Objects,
    roots: Names,
    path_infos: Names,
    packs: ReadOnlyTable<u32, (u8, u64)>,
    ages: ReadOnlyTable<(u32, u64), u64>,
    past_roots: ReadOnlyTable<(u64, &'static [u8]), &'static [u8]>,
    cached_roots: Names,
    meta: ReadOnlyTable<&'static str, u64>,
}

/// A pack as the index knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackEntry {
    pub(super) id: u32,
    /// As in [`PackKind`](super::pack::PackKind).
    pub(super) kind: u8,
    /// Bytes, from the start, that commits have told of.
    pub(super) len: u64,
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE)
        .set_concurrency_mode(ConcurrencyMode::MultiWriter);
    builder
}

/// Makes an empty index.
pub(super) fn create(folder: &Folder, path: &Path) -> Result<(), Error> {
    guarded(folder, || {
        let database = builder().create(path)?;
        let txn = database.begin_write()?;
        txn.open_table(BLOBS)?;
        txn.open_table(DIRECTORIES)?;
        txn.open_table(ROOTS)?;
        txn.open_table(PATH_INFOS)?;
        txn.open_table(PACKS)?;
        txn.open_table(AGES)?;
        txn.open_table(PAST_ROOTS)?;
        txn.open_table(CACHED_ROOTS)?;
        txn.open_table(META)?;
        txn.commit()?;
        database.close()?;
        Ok(())
    })
}

/// Runs a piece of work on redb; what it cannot do, and a panic, become errors that name the file.
fn guarded<T>(folder: &Folder, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(redb::Error::Io(source))) => Err(folder.io("use", &folder.index())(source)),
        Ok(Err(source)) => Err(damaged(folder, source.to_string())),
        Err(panic) => Err(damaged(folder, panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "the database gave up: {}",
        text.unwrap_or("no reason given")
    )
}

fn damaged(folder: &Folder, why: String) -> Error {
    Error::Index {
        store: folder.url().to_owned(),
        path: folder.index(),
        source: why.into(),
    }
}

impl Index {
    pub(super) fn open(folder: Arc<Folder>) -> Result<Self, Error> {
        let sequence = File::open(folder.sequence()).ok();
        let handle = open_reader(&folder)?;
        let snapshot = take_snapshot(&folder, &handle, sequence.as_ref())?;
        Ok(Self {
            reader: RwLock::new(Reader {
                snapshot: Arc::new(snapshot),
                handle,
            }),
            folder,
            writer: Mutex::default(),
            sequence,
        })
    }

    /// A snapshot of some moment: what is in it is true.
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
            Handle::Shared(_) => {
                take_snapshot(&self.folder, &reader.handle, self.sequence.as_ref()).ok()
            }
            Handle::Copy(_, made) if *made == file_state(&self.folder) => {
                return Ok(reader.snapshot.clone());
            }
            Handle::Copy(..) => None,
        };
        match taken {
            Some(taken) => reader.snapshot = Arc::new(taken),
            // The handle has failed, or a writer died and left the file to be repaired.
            None => self.reopen(&mut reader)?,
        }
        Ok(reader.snapshot.clone())
    }

    fn reopen(&self, reader: &mut Reader) -> Result<(), Error> {
        let handle = open_reader(&self.folder)?;
        let snapshot = take_snapshot(&self.folder, &handle, self.sequence.as_ref())?;
        *reader = Reader {
            snapshot: Arc::new(snapshot),
            handle,
        };
        Ok(())
    }

    /// Looks something up: in the snapshot that is at hand, and if it is not there, in a fresh one.
    pub(super) fn look_up<T>(
        &self,
        get: impl Fn(&Snapshot) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let snapshot = self.snapshot();
        match get(&snapshot) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(_) => {
                // The handle latches an error; another may do.
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
                let path = self.folder.sequence();
                inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
                Ok(watch)
            });
        let mut version = seen;
        wait_until(
            timeout,
            |left| {
                let watch = watch.as_ref().map_err(|error| *error)?;
                // An odd number may be a dead writer's, of which no event tells: look again.
                let left = left.min(Duration::from_secs(1));
                let left = Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::from(left.as_nanos().min(999_999_999) as u32),
                };
                poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&left))?;
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

    /// Every pack, by number. Waits for commits in progress, and settles what became of one whose
    /// process died: what this does not tell of can be taken back.
    pub(super) fn packs(&self) -> Result<Vec<PackEntry>, Error> {
        self.change()?.packs()
    }

    /// The first number that no pack ever had, as far as packs that were removed go.
    pub(super) fn next_pack(&self) -> Result<u32, Error> {
        let next = self.fresh()?.meta(META_NEXT_PACK)?;
        Ok(u32::try_from(next).unwrap_or(u32::MAX))
    }

    /// Starts to write. Waits while another process does.
    pub(super) fn change(&self) -> Result<Change<'_>, Error> {
        let mut writer = self.writer.lock();
        if writer.is_none() {
            *writer = Some(open_writer(&self.folder)?);
        }
        let begun = guarded(&self.folder, || {
            writer
                .as_ref()
                .ok_or(redb::Error::DatabaseClosed)?
                .begin_write()
                .map_err(Into::into)
        });
        match begun {
            Ok(txn) => Ok(Change {
                index: self,
                writer,
                txn: Some(txn),
            }),
            Err(error) => {
                *writer = None;
                Err(error)
            }
        }
    }
}

fn open_reader(folder: &Folder) -> Result<Handle, Error> {
    let path = folder.index();
    for _ in 0..3 {
        let opened = catch_unwind(|| builder().open_read_only(&path));
        match opened {
            Ok(Ok(database)) => return Ok(Handle::Shared(database)),
            Ok(Err(DatabaseError::RepairAborted)) => {}
            Ok(Err(error)) => return guarded(folder, || Err(error.into())),
            Err(panic) => return Err(damaged(folder, panic_text(&*panic))),
        }
        // A writer died. Opening for writing repairs the file.
        match open_writer(folder) {
            Ok(database) => guarded(folder, || Ok(database.close()?))?,
            Err(Error::ReadOnly { .. }) => {
                let state = file_state(folder);
                return open_copy(folder).map(|copy| Handle::Copy(copy, state));
            }
            Err(error) => return Err(error),
        }
    }
    Err(damaged(
        folder,
        "its writers die as fast as it is repaired".to_owned(),
    ))
}

fn open_writer(folder: &Folder) -> Result<Database, Error> {
    // redb would say less of what it may not do.
    folder.check_writable()?;
    guarded(folder, || Ok(builder().open(folder.index())?))
}

fn file_state(folder: &Folder) -> FileState {
    std::fs::metadata(folder.index())
        .map(|found| (found.len(), found.modified().ok()))
        .unwrap_or_default()
}

/// Reads the whole file and repairs the copy.
fn open_copy(folder: &Folder) -> Result<Database, Error> {
    let path = folder.index();
    let bytes = std::fs::read(&path).map_err(folder.io("read", &path))?;
    guarded(folder, || {
        let memory = redb::backends::InMemoryBackend::new();
        redb::StorageBackend::set_len(&memory, bytes.len() as u64)?;
        redb::StorageBackend::write(&memory, 0, &bytes)?;
        drop(bytes);
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        Ok(builder.create_with_backend(memory)?)
    })
}

/// The number in `sequence` if it is even; nothing if it is odd or cannot be read.
fn read_sequence(file: Option<&File>) -> Option<u64> {
    let mut bytes = [0; 8];
    file?.read_exact_at(&mut bytes, 0).ok()?;
    let number = u64::from_le_bytes(bytes);
    number.is_multiple_of(2).then_some(number)
}

fn take_snapshot(
    folder: &Arc<Folder>,
    handle: &Handle,
    sequence: Option<&File>,
) -> Result<Snapshot, Error> {
    // Before the read begins: a commit in between only makes the snapshot newer than it claims.
    let sequence = match handle {
        Handle::Shared(_) => read_sequence(sequence),
        Handle::Copy(..) => None,
    };
    guarded(folder, || {
        let txn = match handle {
            Handle::Shared(database) => database.begin_read()?,
            Handle::Copy(database, _) => database.begin_read()?,
        };
        let meta = txn.open_table(META)?;
        Ok(Snapshot {
            folder: folder.clone(),
            sequence,
            roots_version: meta
                .get(META_ROOTS_VERSION)?
                .map_or(0, |found| found.value()),
            removals: meta.get(META_REMOVALS)?.map_or(0, |found| found.value()),
            blobs: txn.open_table(BLOBS)?,
            directories: txn.open_table(DIRECTORIES)?,
            roots: txn.open_table(ROOTS)?,
            path_infos: txn.open_table(PATH_INFOS)?,
            packs: txn.open_table(PACKS)?,
            ages: txn.open_table(AGES)?,
            past_roots: txn.open_table(PAST_ROOTS)?,
            cached_roots: txn.open_table(CACHED_ROOTS)?,
            meta,
        })
    })
}

impl Snapshot {
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<Location>, Error> {
        self.object(&self.blobs, digest)
    }

    pub(super) fn directory(&self, digest: &Digest) -> Result<Option<Location>, Error> {
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

    pub(super) fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let entry = guarded(&self.folder, || {
            Ok(self.roots.get(name)?.map(|entry| entry.value().to_vec()))
        })?;
        entry
            .map(|entry| self.decode_root(name, &entry))
            .transpose()
    }

    pub(super) fn roots(&self) -> Result<Vec<Root>, Error> {
        let entries = guarded(&self.folder, || {
            let mut entries = Vec::new();
            for found in self.roots.iter()? {
                let (name, entry) = found?;
                entries.push((name.value().to_vec(), entry.value().to_vec()));
            }
            Ok(entries)
        })?;
        entries
            .iter()
            .map(|(name, entry)| self.decode_root(name, entry))
            .collect()
    }

    fn decode_root(&self, name: &[u8], entry: &[u8]) -> Result<Root, Error> {
        let root = Entry::decode(entry)
            .map_err(|error| error.to_string())
            .and_then(|entry| Root::try_from(entry).map_err(|error| error.to_string()));
        root.map_err(|error| {
            let name = name.escape_ascii();
            damaged(&self.folder, format!("its root node \"{name}\": {error}"))
        })
    }

    pub(super) fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let found = guarded(&self.folder, || {
            Ok(self
                .path_infos
                .get(name)?
                .map(|found| found.value().to_vec()))
        })?;
        found
            .map(|bytes| {
                PathInfo::decode(&*bytes).map_err(|error| {
                    let name = name.escape_ascii();
                    damaged(&self.folder, format!("its path info \"{name}\": {error}"))
                })
            })
            .transpose()
    }

    /// Every pack, by number.
    pub(super) fn packs(&self) -> Result<Vec<PackEntry>, Error> {
        guarded(&self.folder, || list_packs(&self.packs))
    }

    fn meta(&self, key: &str) -> Result<u64, Error> {
        guarded(&self.folder, || {
            Ok(self.meta.get(key)?.map_or(0, |found| found.value()))
        })
    }

    pub(super) fn usage(&self) -> Result<Usage, Error> {
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

fn list_packs(table: &impl ReadableTable<u32, (u8, u64)>) -> Result<Vec<PackEntry>, redb::Error> {
    let mut packs = Vec::new();
    for found in table.iter()? {
        let (id, entry) = found?;
        let (kind, len) = entry.value();
        let id = id.value();
        packs.push(PackEntry { id, kind, len });
    }
    Ok(packs)
}
