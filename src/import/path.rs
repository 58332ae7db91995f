//! Importing from the local file system.
//!
//! One thread walks: it lists directories, sorts the names by their bytes and descends depth first,
//! so it meets files in the order in which a walk over the mount meets them later. It opens no
//! file. Files go to the readers in batches; a reader opens, stats, reads and hashes each (four
//! system calls for a small file), and puts the batch into the store when all earlier batches have
//! been put. So all cores read and hash, and the store still gets the blobs in the walk's order.
//!
//! Files over a mebibyte are set aside, since their bytes do not go into the packs: a batch does
//! not wait for them, and any idle reader streams one.
//!
//! **Memory** is one buffer a reader, for any tree. When it is full before the batch ends, the
//! reader waits for its turn, puts what it has, and continues: the reader whose turn it is never
//! waits, so all of them progress. Only names and digests grow with the tree, about 150 bytes a
//! file.
//!
//! **Depth.** The walk keeps the directories that it is inside of open, but no more than an eighth of
//! the files that the process may have open; the others are opened again on the way back
//! ([`Descent`]).
//!
//! **No symlink is followed.** Every file and directory is opened relative to its parent's
//! descriptor and never through a symlink, so a tree that is being changed cannot lead outside. A
//! file that was replaced after it was listed is an error.

mod queue;
mod read;
mod walk;

use std::ffi::CString;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::fs::{FileType, Mode, OFlags};

use super::assembly::{AssembledValue, FileId, TreeAssembly};
use super::{ImportError, ImportOptions, ImportProgress, SpecialFiles};
use crate::castore::Node;
#[cfg(doc)]
use crate::descent::Descent;
use crate::descent::open_files_limit;
use crate::store::Ingest;
use queue::{AbandonOnPanic, FileBatch, ImportQueue};
use walk::ImportWalk;

/// More readers than this gain nothing, since blobs are put one batch at a time, and they would hold
/// too many directories open (see [`queue::FileBatch`]).
const MAX_READERS: usize = 16;

/// A directory that files are opened in.
#[derive(Debug)]
struct InputDirectory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A file that is to be read.
#[derive(Debug)]
struct ReadJob {
    dir: Arc<InputDirectory>,
    name: CString,
    file: FileId,
    /// The file does not state its length.
    sizeless: bool,
}

impl AsFd for InputDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl InputDirectory {
    /// The path of the entry `name`.
    fn path_of(&self, name: &CString) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.path.join(std::ffi::OsStr::from_bytes(name.as_bytes()))
    }
}

impl ReadJob {
    fn path(&self) -> PathBuf {
        self.dir.path_of(&self.name)
    }
}

/// See [`super::add`].
pub(super) fn add(
    ingest: &dyn Ingest,
    path: &Path,
    options: &ImportOptions,
    progress: &ImportProgress,
) -> Result<Node, ImportError> {
    let open_files = open_files_limit();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let readers = cores.min(MAX_READERS).min(open_files / 16).max(1);
    let queue = ImportQueue::default();
    let walked = thread::scope(|scope| {
        let _guard = AbandonOnPanic(&queue);
        for number in 0..readers {
            let queue = &queue;
            thread::Builder::new()
                .name(format!("import-{number}"))
                .spawn_scoped(scope, move || read::serve(queue, ingest, progress))
                .map_err(|source| {
                    ImportError::io("start a thread to read", path.to_owned(), source)
                })
                .inspect_err(|_| queue.abandon())?;
        }
        let walk = ImportWalk::new(
            &queue,
            options.special_files,
            progress,
            FileBatch::first(readers, open_files),
            open_files,
        );
        let walked = walk_all(walk, path, &queue);
        // However the walk ended, the readers must end too.
        queue.close();
        walked
    });
    // A reader's failure comes first: the walk only sees that there was one.
    let files = queue.into_files()?;
    let (assembly, root) = walked?;
    assembly.finish(root, &files, ingest)
}

/// Walks the tree at `path`, and passes its files to the readers.
fn walk_all(
    mut walk: ImportWalk<'_>,
    path: &Path,
    queue: &ImportQueue,
) -> Result<(TreeAssembly, AssembledValue), ImportError> {
    let root = walk.root(path).inspect_err(|_| queue.abandon())?;
    Ok((walk.finish()?, root))
}

/// The name of a kind of file that a castore cannot hold.
fn special(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "file of an unknown kind",
    }
}

/// How files and directories are opened: a name that has become a symlink or a named pipe causes an
/// error, and neither leads elsewhere nor blocks.
fn open_flags() -> OFlags {
    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// Opens `name` in `dir`.
fn open(dir: &InputDirectory, name: &CString, more: OFlags) -> Result<OwnedFd, ImportError> {
    rustix::fs::openat(&dir.fd, name, open_flags() | more, Mode::empty())
        .map_err(|error| failed("open", dir.path_of(name), error))
}

/// The error for a file that was listed before: it may have been replaced.
fn failed(action: &'static str, path: PathBuf, error: rustix::io::Errno) -> ImportError {
    use rustix::io::Errno;
    match error {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR => ImportError::Changed { path },
        _ => ImportError::io(action, path, error),
    }
}

#[cfg(test)]
mod tests;
