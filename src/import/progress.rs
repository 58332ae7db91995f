//! The progress of an import, and its cancellation.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::ImportError;

/// Counters of one import, which another thread may read at any time, and may use to cancel it.
#[derive(Debug, Default)]
pub struct ImportProgress {
    found: AtomicU64,
    files: AtomicU64,
    directories: AtomicU64,
    symlinks: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    nar_bytes: AtomicU64,
    stage: AtomicU8,
    cancelled: AtomicBool,
}

/// What an import has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ImportTotals {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Files left out because they are devices, sockets or named pipes.
    pub skipped: u64,
}

/// The present stage of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ImportStage {
    /// Reads the tree.
    Reading,
    /// Makes what was added durable.
    Committing,
    /// Hashes the tree as a NAR, for its Nix name.
    HashingNar,
}

impl ImportProgress {
    /// An import that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the import stop as soon as possible: it then fails with [`ImportError::Cancelled`] and
    /// leaves nothing. An import that waits for its input notices once some arrives.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// What has been read so far.
    pub fn totals(&self) -> ImportTotals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ImportTotals {
            files: get(&self.files),
            directories: get(&self.directories),
            symlinks: get(&self.symlinks),
            bytes: get(&self.bytes),
            skipped: get(&self.skipped),
        }
    }

    /// Regular files found so far, read or not. For a local directory, more than were read; for a
    /// stream, as many.
    pub fn files_found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Bytes of the NAR hashed so far; in the end a little more than [`ImportTotals::bytes`].
    pub fn nar_bytes(&self) -> u64 {
        self.nar_bytes.load(Ordering::Relaxed)
    }

    /// The present stage.
    pub fn stage(&self) -> ImportStage {
        match self.stage.load(Ordering::Relaxed) {
            0 => ImportStage::Reading,
            1 => ImportStage::Committing,
            _ => ImportStage::HashingNar,
        }
    }

    /// Fails if the import was cancelled.
    pub(super) fn check(&self) -> Result<(), ImportError> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(ImportError::Cancelled),
            false => Ok(()),
        }
    }

    pub(super) fn enter(&self, stage: ImportStage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(super) fn found_file(&self) {
        add(&self.found, 1);
    }

    pub(super) fn add_file(&self) {
        add(&self.files, 1);
    }

    pub(super) fn add_directory(&self) {
        add(&self.directories, 1);
    }

    pub(super) fn add_symlink(&self) {
        add(&self.symlinks, 1);
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    pub(super) fn add_skipped(&self) {
        add(&self.skipped, 1);
    }

    pub(super) fn add_nar_bytes(&self, bytes: u64) {
        add(&self.nar_bytes, bytes);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
