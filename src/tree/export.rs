//! Writing a tree out as files.
//!
//! The tree is built in a directory of its own beside the target and renamed when it is complete:
//! the target is complete from its first moment, and an existing target is refused and never
//! touched. A failed export removes what it made, and the next export to a target what a killed one
//! has left.
//!
//! Every file is made relative to a descriptor of its directory, with `O_EXCL` and `O_NOFOLLOW`: no
//! symbolic link, neither of the tree nor made meanwhile, leads a write elsewhere.
//!
//! A castore has one mode bit, so modes are fixed, whatever the umask: 0755 for directories and
//! executable files, 0644 for others. The time of everything is second 1, as in a mount and as Nix
//! sets it, so that programs that compare times (make, tar, rsync) see equal trees as equal. Zeros
//! that fill 64 KiB become holes.
//!
//! One thread walks and makes the directories; the others write files. A directory's descriptor
//! lives as long as a thread writes into it; the last one sets the directory's time. Of the
//! directories that the walk is inside of, those far up are closed and opened again on the way back
//! ([`Descent`]).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens,
    mkdirat, openat, renameat, renameat_with, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::unfinished::UnfinishedTarget;
use super::walk::files;
use super::{TreeError, TreePath, TreeWalk, copy_blob};
use crate::castore::{Digest, Node, NodeRef};
use crate::descent::{Descent, DescentError, open_files_limit};
use crate::store::{Blocking, ReadAhead};

/// The modification time of everything, in seconds.
pub(super) const MTIME: i64 = 1;
/// Runs of zeros of this many bytes, at multiples of it, are not written.
const HOLE: usize = 64 << 10;
/// Files that wait to be written, at most. Each may hold a descriptor of its directory.
const QUEUE: usize = 64;
/// The most directories to keep open of those that the walk is inside of.
const MAX_WINDOW: usize = 256;

/// The progress of an export; other threads may read it, and may stop the export.
#[derive(Debug, Default)]
pub struct ExportProgress {
    /// Files, directories and symbolic links made.
    pub nodes: AtomicU64,
    /// Bytes of files.
    pub bytes: AtomicU64,
    /// Set it to end the export with [`TreeError::Interrupted`].
    pub stop: AtomicBool,
}

impl ExportProgress {
    /// Counts bytes that were read, unless the export is stopped.
    pub(super) fn take(&self, bytes: usize) -> Result<(), TreeError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(TreeError::Interrupted);
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Writes `node`, which is at `path` in `store`, to `target`, which must not exist.
pub fn to_directory(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    target: &Path,
    progress: &ExportProgress,
) -> Result<(), TreeError> {
    let name = match (target.file_name(), target.symlink_metadata()) {
        (Some(name), Err(error)) if error.kind() == io::ErrorKind::NotFound => name,
        (Some(_), Err(error)) => return Err(failed("look at", target)(error)),
        _ => return Err(TreeError::Exists(target.to_owned())),
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (_unfinished, dir) = make_unfinished(parent, name)?;
    let export = TreeExport {
        store,
        target,
        inside: path.as_bytes().len(),
        progress,
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
    };
    export.run(dir.as_fd(), name.as_bytes(), path, node)?;
    place(&dir, name, target)
}

/// A directory that files are written into.
struct OutputDirectory<'e> {
    fd: OwnedFd,
    export: &'e TreeExport<'e>,
    path: TreePath,
}

impl AsFd for OutputDirectory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for OutputDirectory<'_> {
    /// The last writer is done, so the time stays as it is set.
    fn drop(&mut self) {
        if let Err(error) = futimens(&self.fd, &times()) {
            self.export
                .fail(self.export.io("set the time of", &self.path)(error));
        }
    }
}

/// A file that is to be written.
struct ExportJob<'e> {
    /// Nothing if the export is of this one file.
    dir: Option<Arc<OutputDirectory<'e>>>,
    name: Vec<u8>,
    path: TreePath,
    digest: Digest,
    size: u64,
    executable: bool,
}

struct TreeExport<'e> {
    store: &'e Blocking,
    target: &'e Path,
    /// Bytes of the path, in the store, of the node that is exported.
    inside: usize,
    progress: &'e ExportProgress,
    failure: Mutex<Option<TreeError>>,
    failed: AtomicBool,
}

impl TreeExport<'_> {
    fn run(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &TreePath,
        node: &Node,
    ) -> Result<(), TreeError> {
        let open_files = open_files_limit();
        let (sender, receiver) = sync_channel((open_files / 8).clamp(1, QUEUE));
        let receiver = Mutex::new(receiver);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let writers = cores.min(open_files / 16).max(1);
        let window = (open_files / 8).min(MAX_WINDOW);
        std::thread::scope(|scope| {
            for _ in 0..writers {
                scope.spawn(|| self.write_files(parent, &receiver));
            }
            if let Err(error) = self.walk(parent, name, path, node, window, sender) {
                self.fail(error);
            }
        });
        match self.failure.lock().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Makes directories and symbolic links, and hands the files on.
    fn walk<'e>(
        &'e self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &TreePath,
        node: &Node,
        window: usize,
        jobs: SyncSender<ExportJob<'e>>,
    ) -> Result<(), TreeError> {
        let mut dirs: Descent<Arc<OutputDirectory<'e>>> = Descent::new(window);
        let mut walk = TreeWalk::new(self.store, path.clone(), node.clone());
        let mut ahead = ReadAhead::new(files(self.store, node));
        while let Some(step) = walk.step()? {
            self.proceed()?;
            while dirs.depth() > step.depth {
                self.leave(&mut dirs)?;
            }
            let dir = dirs.innermost();
            let fd = dir.map_or(parent, |dir| dir.fd.as_fd());
            let name = if dir.is_some() { step.name } else { name };
            match step.node {
                NodeRef::Directory { .. } => {
                    let dir = Arc::new(OutputDirectory {
                        fd: self.make_dir(fd, name, step.path)?,
                        export: self,
                        path: step.path.clone(),
                    });
                    let entered = dirs.enter(dir);
                    entered.map_err(self.io("look at the directory", step.path))?;
                    self.progress.nodes.fetch_add(1, Ordering::Relaxed);
                }
                NodeRef::Symlink { target } => {
                    symlinkat(OsStr::from_bytes(target), fd, OsStr::from_bytes(name))
                        .map_err(self.io("make the symbolic link", step.path))?;
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    utimensat(fd, OsStr::from_bytes(name), &times(), flags)
                        .map_err(self.io("set the time of", step.path))?;
                    self.progress.nodes.fetch_add(1, Ordering::Relaxed);
                }
                NodeRef::File {
                    digest,
                    size,
                    executable,
                } => {
                    ahead.pass(|blobs| self.store.store().will_need(blobs));
                    let job = ExportJob {
                        dir: dir.cloned(),
                        name: name.to_vec(),
                        path: step.path.clone(),
                        digest,
                        size,
                        executable,
                    };
                    if jobs.send(job).is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes back up from the directory that the walk is in.
    fn leave<'e>(&'e self, dirs: &mut Descent<Arc<OutputDirectory<'e>>>) -> Result<(), TreeError> {
        let remaining = dirs.leave(|fd, below| {
            let path = below.path.parent();
            Arc::new(OutputDirectory {
                fd,
                export: self,
                path,
            })
        });
        remaining.map(drop).map_err(|error| TreeError::Io {
            action: "go back up in",
            path: self.target.to_owned(),
            source: match error {
                DescentError::Io(error) => error,
                DescentError::Moved => io::Error::other(error),
            },
        })
    }

    fn make_dir(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &TreePath,
    ) -> Result<OwnedFd, TreeError> {
        let name = OsStr::from_bytes(name);
        mkdirat(parent, name, Mode::from_raw_mode(0o700))
            .map_err(self.io("make the directory", path))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())
            .map_err(self.io("open the directory", path))?;
        fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(self.io("set the mode of", path))?;
        Ok(fd)
    }

    /// Writes files until there are no more. After a failure it only empties the queue, so that
    /// the walk never waits for it.
    fn write_files(&self, parent: BorrowedFd<'_>, jobs: &Mutex<Receiver<ExportJob<'_>>>) {
        loop {
            let Ok(job) = jobs.lock().recv() else { return };
            if self.failed.load(Ordering::Relaxed) {
                continue;
            }
            let fd = job.dir.as_ref();
            let fd = fd.map_or(parent, |dir| dir.fd.as_fd());
            if let Err(error) = self.write_file(fd, &job) {
                self.fail(error);
            }
        }
    }

    fn write_file(&self, dir: BorrowedFd<'_>, job: &ExportJob<'_>) -> Result<(), TreeError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = OsStr::from_bytes(&job.name);
        let fd = openat(dir, name, flags, Mode::from_raw_mode(0o600))
            .map_err(self.io("make the file", &job.path))?;
        let file = std::fs::File::from(fd);
        let mut written = 0;
        copy_blob(
            self.store,
            &job.digest,
            job.size,
            &job.path,
            |offset, bytes| {
                self.proceed()?;
                self.progress.take(bytes.len())?;
                for (index, part) in bytes.chunks(HOLE).enumerate() {
                    if part.len() == HOLE && part.iter().all(|&byte| byte == 0) {
                        continue;
                    }
                    let offset = offset + (index * HOLE) as u64;
                    file.write_all_at(part, offset)
                        .map_err(self.io("write", &job.path))?;
                    written = offset + part.len() as u64;
                }
                Ok(())
            },
        )?;
        if written < job.size {
            file.set_len(job.size)
                .map_err(self.io("write", &job.path))?;
        }
        let mode = if job.executable { 0o755 } else { 0o644 };
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(self.io("set the mode of", &job.path))?;
        futimens(&file, &times()).map_err(self.io("set the time of", &job.path))?;
        self.progress.nodes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn proceed(&self) -> Result<(), TreeError> {
        if self.progress.stop.load(Ordering::Relaxed) {
            return Err(TreeError::Interrupted);
        }
        if self.failed.load(Ordering::Relaxed) {
            // The failure is recorded already.
            return Err(TreeError::Interrupted);
        }
        Ok(())
    }

    /// Records the first failure and ends the export.
    fn fail(&self, error: TreeError) {
        self.failure.lock().get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// An error of the system for the copy of the node at `path`, under the name that it gets when
    /// the export is complete.
    fn io<E: Into<io::Error>>(
        &self,
        action: &'static str,
        path: &TreePath,
    ) -> impl FnOnce(E) -> TreeError {
        let below = path.as_bytes().get(self.inside..).unwrap_or_default();
        let path = match below.strip_prefix(b"/") {
            Some(below) => self.target.join(OsStr::from_bytes(below)),
            None => self.target.to_owned(),
        };
        move |source| TreeError::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

/// Makes the directory to build the tree in, beside the target `name`.
fn make_unfinished(parent: &Path, name: &OsStr) -> Result<(UnfinishedTarget, OwnedFd), TreeError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let make = |path: &Path| {
        mkdirat(CWD, path, Mode::from_raw_mode(0o700))?;
        openat(CWD, path, flags, Mode::empty()).inspect_err(|_| {
            // It is empty, and its own error is what matters.
            let _ = std::fs::remove_dir(path);
        })
    };
    UnfinishedTarget::make(parent, name, make).map_err(|(path, error)| match error {
        Errno::NOENT => TreeError::NoDirectory(parent.to_owned()),
        error => failed("make the directory", &path)(error),
    })
}

/// Gives the tree that was built in `dir` its place.
fn place(dir: &OwnedFd, name: &OsStr, target: &Path) -> Result<(), TreeError> {
    match renameat_with(dir, name, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(TreeError::Exists(target.to_owned())),
        // File systems without that flag (NFS, some FUSE): what is left is to look first.
        Err(Errno::INVAL) if target.symlink_metadata().is_err() => {
            renameat(dir, name, CWD, target).map_err(failed("rename to", target))
        }
        Err(Errno::INVAL) => Err(TreeError::Exists(target.to_owned())),
        Err(error) => Err(failed("rename to", target)(error)),
    }
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> TreeError {
    move |source| TreeError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// The access time stays; the modification time is [`MTIME`].
fn times() -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: MTIME,
            tv_nsec: 0,
        },
    }
}
