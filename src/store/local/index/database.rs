//! Handles on the database's file, which many processes have open, and their errors.
//!
//! After an error redb refuses all further work on a handle, so that the caller opens another. If a
//! damaged file makes redb panic, the panic is caught here.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use redb::{Builder, ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase};

use super::super::dir::StoreDirectory;
use crate::store::Error;

/// Memory for redb's pages in a handle for writing, in bytes.
const CACHE: usize = 32 << 20;
/// The same in a handle for reading: the upper pages of an index of millions of blobs. The kernel has the
/// others.
const READER_CACHE: usize = 4 << 20;

/// A handle for reading.
pub(super) enum ReadHandle {
    Shared(ReadOnlyDatabase),
    /// The file was not closed cleanly and cannot be written to: a repaired copy in memory, and
    /// the file's state when it was made.
    Copy(Database, FileState),
}

/// A file's length and the time of its last change.
pub(super) type FileState = (u64, Option<SystemTime>);

/// How the file is opened: for many processes.
pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE)
        .set_concurrency_mode(ConcurrencyMode::MultiWriter);
    builder
}

/// Runs a piece of work on redb; its errors and panics become errors that name the file.
pub(super) fn guarded<T>(
    dir: &StoreDirectory,
    work: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(redb::Error::Io(source))) if is_damage(&source) => {
            Err(damaged(dir, source.to_string()))
        }
        Ok(Err(redb::Error::Io(source))) => Err(dir.io("use", &dir.index())(source)),
        Ok(Err(source)) => Err(damaged(dir, source.to_string())),
        Err(panic) => Err(damaged(dir, panic_text(&*panic))),
    }
}

/// Whether the file is too short, invalid, or has a sector that cannot be read.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData
    ) || error.raw_os_error() == Some(libc::EIO)
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

/// The error for an invalid file.
pub(super) fn damaged(dir: &StoreDirectory, why: String) -> Error {
    Error::Index {
        store: dir.url().to_owned(),
        path: dir.index(),
        source: Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)),
    }
}

/// A handle for reading, of a file that is repaired first if a writer died.
pub(super) fn open_reader(dir: &StoreDirectory) -> Result<ReadHandle, Error> {
    let path = dir.index();
    for _ in 0..3 {
        let opened = catch_unwind(|| builder().set_cache_size(READER_CACHE).open_read_only(&path));
        match opened {
            Ok(Ok(database)) => return Ok(ReadHandle::Shared(database)),
            Ok(Err(DatabaseError::RepairAborted)) => {}
            Ok(Err(error)) => return guarded(dir, || Err(error.into())),
            Err(panic) => return Err(damaged(dir, panic_text(&*panic))),
        }
        // A writer died. Opening for writing repairs the file.
        match open_writer(dir) {
            Ok(database) => guarded(dir, || Ok(database.close()?))?,
            Err(Error::ReadOnly { .. } | Error::Format { .. }) => {
                let state = file_state(dir);
                return open_copy(dir).map(|copy| ReadHandle::Copy(copy, state));
            }
            Err(error) => return Err(error),
        }
    }
    Err(damaged(
        dir,
        "gave up after 3 repairs: a writer keeps crashing".to_owned(),
    ))
}

/// A handle for writing.
pub(super) fn open_writer(dir: &StoreDirectory) -> Result<Database, Error> {
    // redb's own error has less detail.
    dir.check_writable()?;
    guarded(dir, || Ok(builder().open(dir.index())?))
}

/// The present state of the file.
pub(super) fn file_state(dir: &StoreDirectory) -> FileState {
    std::fs::metadata(dir.index())
        .map(|found| (found.len(), found.modified().ok()))
        .unwrap_or_default()
}

/// Reads the whole file and repairs the copy.
fn open_copy(dir: &StoreDirectory) -> Result<Database, Error> {
    let path = dir.index();
    let bytes = std::fs::read(&path).map_err(dir.io("read", &path))?;
    guarded(dir, || {
        let memory = redb::backends::InMemoryBackend::new();
        redb::StorageBackend::set_len(&memory, bytes.len() as u64)?;
        redb::StorageBackend::write(&memory, 0, &bytes)?;
        drop(bytes);
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        Ok(builder.create_with_backend(memory)?)
    })
}
