//! The store's directory: the place of each file, and how a directory becomes a store.
//!
//! `format` is written first and the index last, so a crash meanwhile leaves a directory without
//! index, packs and blobs, which is made again. One that holds any of these is never initialised
//! again: without a sound `format` it is read, if the index can be opened, and written to only
//! after a repair.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::format::{self, FORMAT, FormatFile};
use crate::castore::Digest;
use crate::store::Error;

/// What a store's directory holds; and a directory that a crash left half made may hold nothing else.
pub(crate) const OUR_NAMES: [&str; 18] = [
    "damaged",
    "format",
    "format.new",
    "journal",
    "journal.new",
    "leases",
    "layouts",
    "index.redb",
    "index.redb.new",
    "sequence",
    "packs",
    "blobs",
    "tmp",
    "additions",
    "parts",
    // The service's default store shares its directory with the service's other files.
    "profiles",
    // And with the store that the NixOS option `nixStore` keeps there.
    "nix-store",
    // A separate file system may contain it.
    "lost+found",
];

/// The paths in a store, and its name in errors.
#[derive(Debug)]
pub(super) struct StoreDirectory {
    url: String,
    path: PathBuf,
}

impl StoreDirectory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            url: format!("local:{}", path.display()),
            path: path.to_owned(),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn index(&self) -> PathBuf {
        self.path.join("index.redb")
    }

    /// The version of the store (see [`mod@format`]).
    pub(super) fn format_file(&self) -> PathBuf {
        self.path.join("format")
    }

    /// Names of roots, PathInfos, pins and valid paths (see [`journal`](super::journal)).
    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The objects in use by processes (see [`leases`](super::leases)).
    pub(super) fn leases(&self) -> PathBuf {
        self.path.join("leases")
    }

    pub(super) fn sequence(&self) -> PathBuf {
        self.path.join("sequence")
    }

    pub(super) fn packs(&self) -> PathBuf {
        self.path.join("packs")
    }

    pub(super) fn pack(&self, id: u32) -> PathBuf {
        self.packs().join(format!("{id:08}.pack"))
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// The directory of the large blobs whose digests start like `digest`.
    pub(super) fn blob_dir(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(&digest.to_hex()[..2])
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_dir(digest).join(&digest.to_hex()[2..])
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    /// Locked, shared, by every addition; and exclusively by a garbage collection.
    fn additions(&self) -> PathBuf {
        self.path.join("additions")
    }

    /// The parts of large blobs (see [`parts`](super::parts)).
    pub(super) fn parts(&self) -> PathBuf {
        self.path.join("parts")
    }

    /// Locks garbage collections out for as long as the result lives. Waits for a running one.
    pub(super) fn begin_addition(&self) -> Result<File, Error> {
        let path = self.additions();
        let file = self.open_additions(&path)?;
        flock(&file, FlockOperation::LockShared)
            .map_err(io::Error::from)
            .map_err(self.io("lock", &path))?;
        Ok(file)
    }

    /// Locks additions out for as long as the result lives. Waits for running ones, but not longer
    /// than `patience`: then returns nothing.
    pub(super) fn be_alone(&self, patience: Duration) -> Result<Option<File>, Error> {
        let path = self.additions();
        let file = self.open_additions(&path)?;
        let start = Instant::now();
        while !try_lock(&file).map_err(self.io("lock", &path))? {
            if start.elapsed() >= patience {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(file))
    }

    fn open_additions(&self, path: &Path) -> Result<File, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(self.io("open", path))?;
        self.give_to_owner(&file, path);
        Ok(file)
    }

    /// Adds to an error the file of the operation, and advice where there is some.
    pub(super) fn io(
        &self,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Error + use<> {
        let (store, path) = (self.url.clone(), path.to_owned());
        move |source| Error::Io {
            source: Arc::new(advise(source, &store)),
            store,
            action,
            path,
        }
    }

    /// Makes the directory a store if it is none yet, and checks that its format is supported. With
    /// `cache_only` a new store is marked as one that can be fetched again.
    ///
    /// `make_index` makes an empty index at the given path. A directory with data and without a
    /// sound `format` is left as it is: it may be read, and
    /// [`check_writable`](Self::check_writable) fails.
    pub(super) fn prepare(
        &self,
        cache_only: bool,
        make_index: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.is_store()? {
            return Ok(());
        }
        fs::create_dir_all(&self.path).map_err(self.io("create the directory", &self.path))?;
        let _lock = self.lock()?;
        // Another process may have made the store meanwhile.
        if self.is_store()? {
            return Ok(());
        }
        self.refuse_foreign()?;
        self.make_dirs()?;
        self.write(&self.sequence(), &0u64.to_le_bytes())?;
        self.write(&self.additions(), &[])?;
        self.write_format(cache_only)?;
        self.install_index(make_index)?;
        // The directory's own name; if its parent cannot be opened, the name may be lost.
        let parent = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let _ = self.sync(parent.unwrap_or(Path::new(".")));
        Ok(())
    }

    /// Locks other processes out of making or repairing the store as long as the result lives.
    pub(super) fn lock(&self) -> Result<OwnedFd, Error> {
        let lock = open_dir(&self.path).map_err(self.io("open", &self.path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(self.io("lock", &self.path))?;
        Ok(lock)
    }

    /// Creates missing directories of the store.
    pub(super) fn make_dirs(&self) -> Result<(), Error> {
        for dir in [self.packs(), self.blobs(), self.tmp()] {
            self.make_dir(&dir)
                .map_err(self.io("create the directory", &dir))?;
        }
        Ok(())
    }

    /// Puts aside what has the name of a file of the store and is none (a directory, a symlink, a
    /// socket), and what has that of a directory and is none; both are made again. A symlink to a
    /// directory stays one, and an index may be elsewhere too.
    pub(super) fn put_aside_strangers(&self) -> Result<(), Error> {
        let files = [
            self.format_file(),
            self.journal(),
            self.sequence(),
            self.additions(),
        ];
        let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
        let strange_files = files.into_iter().filter(|path| !is_file(path));
        let index = Some(self.index()).filter(|path| !path.is_file());
        let names = ["packs", "blobs", "tmp", "parts", "leases", "layouts"];
        let dirs = names.map(|name| self.path.join(name));
        let strange_dirs = dirs.into_iter().filter(|path| !path.is_dir());
        let objects = self.strange_objects();
        for path in strange_files
            .chain(index)
            .chain(strange_dirs)
            .chain(objects)
        {
            if path.symlink_metadata().is_ok() {
                keep_aside(self, &path, false)?;
            }
        }
        Ok(())
    }

    /// What has the name of a pack or of a large blob, and is no file.
    fn strange_objects(&self) -> Vec<PathBuf> {
        let entries = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.collect::<Vec<_>>()
        };
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        let blobs = entries(&self.blobs());
        let blobs = blobs.iter().filter(|entry| is_directory(entry));
        let blobs = blobs.flat_map(|entry| entries(&entry.path()));
        let objects = entries(&self.packs()).into_iter().chain(blobs);
        let strange = objects.filter(|entry| !is_file(entry));
        strange.map(|entry| entry.path()).collect()
    }

    /// Makes an index beside its place, and puts it there.
    pub(super) fn install_index(
        &self,
        make_index: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let made = self.path.join("index.redb.new");
        match fs::remove_file(&made) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(self.io("remove", &made)(error));
            }
            _ => {}
        }
        make_index(&made)?;
        self.give_path_to_owner(&made)
            .map_err(self.io("open", &made))?;
        let index = self.index();
        fs::rename(&made, &index).map_err(self.io("create", &index))?;
        self.sync(&self.path)
    }

    /// Writes `format`, replacing an existing file.
    pub(super) fn write_format(&self, cache_only: bool) -> Result<(), Error> {
        let made = self.path.join("format.new");
        self.write(&made, FormatFile::text(cache_only).as_bytes())?;
        let path = self.format_file();
        fs::rename(&made, &path).map_err(self.io("create", &path))?;
        self.sync(&self.path)
    }

    /// Whether the directory is a store, with a sound `format` or without; an error if its format
    /// is not supported.
    fn is_store(&self) -> Result<bool, Error> {
        let has_index = !matches!(self.index().try_exists(), Ok(false));
        match FormatFile::read(self)? {
            FormatFile::Newer(found) => Err(newer(self, found)),
            FormatFile::Known { .. } if has_index => Ok(true),
            _ if !has_index && format::holds_data(&self.path) => Err(self.format(format!(
                "the index {} is missing: if the store was restored from a copy, finish that first; \
                 then `{}` makes a new index of what is there",
                self.index().display(),
                format::repair_command(&self.url)
            ))),
            FormatFile::Known { .. } => Ok(false),
            FormatFile::Missing | FormatFile::Damaged if has_index => {
                tracing::warn!("{}; it is read meanwhile", self.no_format());
                Ok(true)
            }
            FormatFile::Damaged => Err(self.no_format()),
            FormatFile::Missing => Ok(false),
        }
    }

    /// The error for a store whose `format` is missing or damaged.
    fn no_format(&self) -> Error {
        let repair = format::repair_command(&self.url);
        self.format(format!(
            "the file {} is missing or damaged, so nothing is written to this store: if it was \
             restored from a copy, finish that first; then `{repair}` writes the file again and \
             checks what is there",
            self.format_file().display()
        ))
    }

    fn refuse_foreign(&self) -> Result<(), Error> {
        let entries = fs::read_dir(&self.path).map_err(self.io("list", &self.path))?;
        for entry in entries {
            let name = entry.map_err(self.io("list", &self.path))?.file_name();
            if !OUR_NAMES.iter().any(|ours| *ours == name) {
                return Err(self.format(format!(
                    "the directory is not empty and is no castore-fs store (it holds {}): give a \
                     directory that is empty or does not exist",
                    name.display()
                )));
            }
        }
        Ok(())
    }

    /// An error about the version or the kind of the store.
    pub(super) fn format(&self, why: String) -> Error {
        Error::Format {
            store: self.url.clone(),
            why,
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        File::create(path)
            .and_then(|mut file| {
                self.give_to_owner(&file, path);
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(self.io("write", path))
    }

    /// Makes durable what was created, renamed or removed in the directory `path`.
    pub(super) fn sync(&self, path: &Path) -> Result<(), Error> {
        open_dir(path)
            .and_then(|dir| Ok(rustix::fs::fsync(dir)?))
            .map_err(self.io("sync", path))
    }

    /// Fails with [`Error::ReadOnly`] if the store is not writable, and with [`Error::Format`] if
    /// its `format` is missing, damaged or that of a newer version.
    pub(super) fn check_writable(&self) -> Result<(), Error> {
        match FormatFile::read(self)? {
            FormatFile::Known { .. } => {}
            FormatFile::Newer(found) => return Err(newer(self, found)),
            FormatFile::Missing | FormatFile::Damaged => return Err(self.no_format()),
        }
        let places = [
            (self.index(), Access::WRITE_OK),
            (self.packs(), Access::WRITE_OK | Access::EXEC_OK),
            (self.blobs(), Access::WRITE_OK | Access::EXEC_OK),
            (self.tmp(), Access::WRITE_OK | Access::EXEC_OK),
        ];
        for (path, access) in places {
            match rustix::fs::accessat(CWD, &path, access, AtFlags::EACCESS) {
                Ok(()) => {}
                Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
                    let error = advise(error.into(), &self.url);
                    return Err(Error::ReadOnly {
                        store: self.url.clone(),
                        why: format!("{}: {error}", path.display()),
                    });
                }
                // A directory that a copy omitted because it was empty, or that was lost with its
                // contents.
                Err(Errno::NOENT) if path != self.index() => self.make_dirs()?,
                Err(error) => return Err(self.io("open for writing", &path)(error.into())),
            }
        }
        Ok(())
    }

    /// Writes [`FORMAT`] into the file `format`; keeps its other line.
    pub(super) fn convert_format(&self) -> Result<(), Error> {
        match FormatFile::read(self)? {
            FormatFile::Known {
                version: FORMAT, ..
            } => Ok(()),
            FormatFile::Known { cache_only, .. } => self.write_format(cache_only),
            FormatFile::Newer(found) => Err(newer(self, found)),
            FormatFile::Missing | FormatFile::Damaged => Err(self.no_format()),
        }
    }

    /// Removes the mark that everything in the store can be fetched again.
    pub(super) fn unmark_cache(&self) -> Result<(), Error> {
        match FormatFile::read(self)? {
            FormatFile::Known {
                cache_only: true, ..
            } => self.write_format(false),
            _ => Ok(()),
        }
    }

    /// Fails now if the disk has no room for `bytes`, before anything depends on it.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("room-{}-{number}", std::process::id());
        let path = self.tmp().join(name);
        let reserved = File::create(&path).and_then(|file| {
            match fs::remove_file(&path) {
                // Another process removed it first.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
                // A file system that cannot reserve: the index will report it.
                Err(Errno::OPNOTSUPP) => Ok(()),
                other => Ok(other?),
            }
        });
        reserved.map_err(self.io("grow", &self.index()))
    }
}

/// Opens a directory, to lock or sync it.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Renames, or copies, a file to an unused name; returns that name, or nothing if there is no such
/// file.
pub(super) fn keep_aside(
    dir: &StoreDirectory,
    path: &Path,
    copy: bool,
) -> Result<Option<PathBuf>, Error> {
    for number in 1.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        let aside = PathBuf::from(name);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        let kept = match copy {
            true => fs::copy(path, &aside).and_then(|_| dir.give_path_to_owner(&aside)),
            false => fs::rename(path, &aside),
        };
        return match kept {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(dir.io("rename", path)(error)),
        };
    }
    Ok(None)
}

/// Locks a file or directory for as long as `file` is open, unless another process (or another open
/// file of this one) has it locked: then returns false.
pub(super) fn try_lock(file: &impl std::os::fd::AsFd) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether `path` still leads to `file`: a process that waited for a lock may get it on a file that
/// its last owner removed.
pub(super) fn is_at(file: &impl std::os::fd::AsFd, path: &Path) -> io::Result<bool> {
    let open = rustix::fs::fstat(file)?;
    match rustix::fs::lstat(path) {
        Ok(found) => Ok(found.st_ino == open.st_ino && found.st_dev == open.st_dev),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Adds advice to errors that a user can resolve.
fn advise(error: io::Error, url: &str) -> io::Error {
    let of_another_type = format!(
        "it is not of the type that it has in a store; `{}` puts it aside",
        format::repair_command(url)
    );
    let advice = match error.kind() {
        ErrorKind::IsADirectory | ErrorKind::NotADirectory => &of_another_type,
        _ if error.raw_os_error() == Some(libc::ELOOP) => &of_another_type,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space and try again; what the store held before is untouched"
        }
        ErrorKind::PermissionDenied => {
            "run as the store's owner, or use a store of your own with --store local:PATH"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "mount it for writing, or use another store with --store local:PATH"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {advice}"))
}

/// Waits in steps of at most `step` until `ready` returns true or `timeout` has passed.
pub(super) fn wait_until(
    timeout: Duration,
    mut step: impl FnMut(Duration) -> io::Result<()>,
    mut ready: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    let start = Instant::now();
    while !ready()? {
        let Some(remaining) = timeout
            .checked_sub(start.elapsed())
            .filter(|remaining| !remaining.is_zero())
        else {
            break;
        };
        if step(remaining).is_err() {
            std::thread::sleep(remaining.min(Duration::from_millis(100)));
        }
    }
    Ok(())
}

impl FormatFile {
    /// Reads the file of the store in `dir`.
    pub(super) fn read(dir: &StoreDirectory) -> Result<Self, Error> {
        let path = dir.format_file();
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Missing),
            // A directory, or a symlink to itself.
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(Self::Damaged),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(Self::Damaged),
            Err(error) => Err(dir.io("read", &path)(error)),
        }
    }
}

/// The error for a store of a newer version.
pub(super) fn newer(dir: &StoreDirectory, found: u32) -> Error {
    dir.format(format!(
        "made or converted by a newer castore-fs (format {found}), this one understands up to \
         {FORMAT}: use the newer one (restart this process if it is a service), or another \
         directory"
    ))
}
