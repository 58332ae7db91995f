//! The queues between the walk and the readers: batches of files one way, digests the other.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::ReadJob;
use crate::import::ImportError;
use crate::import::assembly::{FileId, ReadFile, ReadFiles};

/// Files that are read together, in the order of the walk.
///
/// A batch ends after enough files that its overhead is negligible, and after so few directories
/// that all those that are open at once are at most half of the files that the process may have
/// open: each reader has a batch in hand and large files of another set aside, and 4 batches wait.
#[derive(Debug)]
pub(super) struct FileBatch {
    /// Batches are put into the store in the order of their numbers.
    pub(super) number: u64,
    pub(super) jobs: Vec<ReadJob>,
    dirs: usize,
    max_dirs: usize,
}

/// Files in a batch.
const MAX_JOBS: usize = 256;
/// Directories in a batch, at most.
const MAX_DIRS: usize = 16;
/// Batches that wait for a reader.
const MAX_WAITING: usize = 4;

impl FileBatch {
    /// The first batch, for `readers` in a process that may have `open_files`.
    pub(super) fn first(readers: usize, open_files: usize) -> Self {
        let batches = MAX_WAITING + 2 * readers;
        Self {
            number: 0,
            jobs: Vec::new(),
            dirs: 0,
            max_dirs: (open_files / 2 / batches).clamp(1, MAX_DIRS),
        }
    }

    /// An empty batch that comes after this one.
    pub(super) fn next(&self) -> Self {
        Self {
            number: self.number + 1,
            jobs: Vec::new(),
            dirs: 0,
            max_dirs: self.max_dirs,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= MAX_JOBS || self.dirs >= self.max_dirs
    }

    pub(super) fn push(&mut self, job: ReadJob) {
        let same = |last: &ReadJob| Arc::ptr_eq(&last.dir, &job.dir);
        if !self.jobs.last().is_some_and(same) {
            self.dirs += 1;
        }
        self.jobs.push(job);
    }
}

/// The next task of a reader.
#[derive(Debug)]
pub(super) enum ReaderTask {
    /// Read these, in order.
    Batch(FileBatch),
    /// Stream this.
    Large(ReadJob),
}

/// The walk or a reader failed; a thread that finds out ends quietly.
#[derive(Debug)]
pub(super) struct ImportAbandoned;

/// Distributes batches and large files, and the turns to put.
#[derive(Debug, Default)]
pub(super) struct ImportQueue {
    state: Mutex<ImportQueueState>,
    /// Notified when there may be work.
    work: Condvar,
    /// Notified when it may be another reader's turn.
    turns: Condvar,
    /// Notified when there is room for a batch.
    room: Condvar,
}

#[derive(Debug, Default)]
struct ImportQueueState {
    batches: VecDeque<FileBatch>,
    large: VecDeque<ReadJob>,
    /// Readers that have work, and may add to `large`.
    busy: usize,
    /// The walk is over.
    closed: bool,
    /// The number of the batch whose turn it is.
    turn: u64,
    abandoned: bool,
    /// The first failure.
    error: Option<ImportError>,
    files: ReadFiles,
}

impl ImportQueue {
    /// Passes a batch to the readers, once there is room.
    pub(super) fn push(&self, batch: FileBatch) -> Result<(), ImportAbandoned> {
        let mut state = self.state.lock();
        while state.batches.len() >= MAX_WAITING && !state.abandoned {
            self.room.wait(&mut state);
        }
        if state.abandoned {
            return Err(ImportAbandoned);
        }
        state.batches.push_back(batch);
        self.work.notify_one();
        Ok(())
    }

    /// No batch will follow.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
    }

    /// All threads end.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.abandoned = true;
        self.notify_all(state);
    }

    /// All threads end, for this reason unless there was one before.
    pub(super) fn fail(&self, error: ImportError) {
        let mut state = self.state.lock();
        state.abandoned = true;
        state.error.get_or_insert(error);
        self.notify_all(state);
    }

    /// The next work for a reader; nothing when all is done. Large files come first: those that are
    /// set aside hold their directories open.
    pub(super) fn take(&self) -> Option<ReaderTask> {
        let mut state = self.state.lock();
        loop {
            if state.abandoned {
                return None;
            }
            let work = match state.large.pop_front() {
                Some(job) => Some(ReaderTask::Large(job)),
                None => state.batches.pop_front().map(ReaderTask::Batch),
            };
            if let Some(work) = work {
                state.busy += 1;
                self.room.notify_one();
                return Some(work);
            }
            if state.closed && state.busy == 0 {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// A reader is done with what it took.
    pub(super) fn done(&self) {
        let mut state = self.state.lock();
        state.busy -= 1;
        if state.busy == 0 && state.closed {
            self.work.notify_all();
        }
    }

    /// Sets a large file aside.
    pub(super) fn set_aside(&self, job: ReadJob) {
        self.state.lock().large.push_back(job);
        self.work.notify_one();
    }

    /// Waits until it is the turn of the batch `number`.
    pub(super) fn wait_for_turn(&self, number: u64) -> Result<(), ImportAbandoned> {
        let mut state = self.state.lock();
        while state.turn != number && !state.abandoned {
            self.turns.wait(&mut state);
        }
        match state.abandoned {
            true => Err(ImportAbandoned),
            false => Ok(()),
        }
    }

    /// Ends the turn of the batch `number`, which has it.
    pub(super) fn end_turn(&self, number: u64) {
        self.state.lock().turn = number + 1;
        self.turns.notify_all();
    }

    /// Files that have been read and put.
    pub(super) fn add_files(&self, files: impl Iterator<Item = (FileId, ReadFile)>) {
        let mut state = self.state.lock();
        for (id, file) in files {
            state.files.set(id, file);
        }
    }

    /// All files, once the readers have ended; or the first failure.
    pub(super) fn into_files(self) -> Result<ReadFiles, ImportError> {
        let state = self.state.into_inner();
        match state.error {
            Some(error) => Err(error),
            None => Ok(state.files),
        }
    }

    fn notify_all(&self, state: MutexGuard<'_, ImportQueueState>) {
        drop(state);
        for changed in [&self.work, &self.turns, &self.room] {
            changed.notify_all();
        }
    }
}

/// Ends the other threads when one panics, so that the panic propagates and no thread waits for
/// ever.
pub(super) struct AbandonOnPanic<'a>(pub(super) &'a ImportQueue);

impl Drop for AbandonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}
