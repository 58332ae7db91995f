//! Open files and what backs them: the part of the hand-over state that mounts with passthrough
//! need.
//!
//! There is a record for every open file, whose number and generation make the handle that the
//! kernel returns in RELEASE, and a record for every file that is registered with the kernel.
//! `fs::passthrough` explains why the next process needs exactly this, and why in this order; this
//! module writes it.
//!
//! A record's state is written after all its other fields, and cleared before any of them is
//! written again. A generation is never cleared: it outlives the file, so that a repeated RELEASE
//! is recognized.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{
    BLOCK_RECORDS, InodeTable, InodeTableError, MappedRecord, NODES_END, OPEN_FILES, RECORD_BYTES,
    RecordArea, load_digest, store_digest,
};
use crate::castore::Digest;
use crate::fs::node_id::NodeId;

/// Records of each kind, at most: far more than a kernel opens files.
const MOST: u32 = 1 << 28;
pub(super) const FILES_AT: u64 = NODES_END;
pub(super) const REGISTRATIONS_AT: u64 = FILES_AT + (RECORD_BYTES as u64) * MOST as u64;
pub(super) const END: u64 = REGISTRATIONS_AT + (RECORD_BYTES as u64) * MOST as u64;

const FREE: u32 = 0;
const USED: u32 = 1;
/// A registration that is being ended.
const ENDING: u32 = 2;

/// The part of the file's header for open files.
#[repr(C)]
pub(super) struct OpenFilesHeader {
    /// Whether there is passthrough: 0 while that is undecided, 1 if so, 2 if not.
    passthrough: AtomicU32,
    /// The last number whose owner is known.
    settled: AtomicU32,
    /// Open files below this were there at some time.
    files: AtomicU64,
    /// Registrations likewise.
    registrations: AtomicU64,
}

#[repr(C)]
struct FileRecord {
    state: AtomicU32,
    generation: AtomicU32,
    node: AtomicU64,
    request: AtomicU64,
    /// 0 for none.
    backing: AtomicU32,
    reserved: AtomicU32,
    digest: [AtomicU64; 4],
    reserved_too: [AtomicU64; 3],
}

#[repr(C)]
struct RegistrationRecord {
    state: AtomicU32,
    id: AtomicU32,
    digest: [AtomicU64; 4],
    reserved: [AtomicU64; 6],
}

const _: () = assert!(size_of::<FileRecord>() == RECORD_BYTES);
const _: () = assert!(size_of::<RegistrationRecord>() == RECORD_BYTES);

// SAFETY: atomics only, without padding.
unsafe impl MappedRecord for FileRecord {}
// SAFETY: as above.
unsafe impl MappedRecord for RegistrationRecord {}

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::fs) struct OpenFile {
    /// The inode.
    pub(in crate::fs) node: NodeId,
    /// The number of the OPEN that it was opened by. No two requests of a mount have the same.
    pub(in crate::fs) request: u64,
    /// What is in it.
    pub(in crate::fs) digest: Digest,
    /// The kernel's number of the file that backs it; without one it is read by READ.
    pub(in crate::fs) backing: Option<u32>,
}

/// A file that is registered with the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Registration {
    /// Its record.
    pub(in crate::fs) place: u32,
    /// The kernel's number of it.
    pub(in crate::fs) id: u32,
    /// What is in it.
    pub(in crate::fs) digest: Digest,
}

/// What the previous process handed over open.
#[derive(Debug, Default)]
pub(in crate::fs) struct PreviousOpenFiles {
    /// Whether there is passthrough.
    pub(in crate::fs) passthrough: bool,
    /// Every handle that was ever given out: its generation, and the file that is open by it.
    pub(in crate::fs) files: Vec<(u32, Option<OpenFile>)>,
    /// What is registered.
    pub(in crate::fs) registered: Vec<Registration>,
    /// What was registered, and may be still.
    pub(in crate::fs) ending: Vec<Registration>,
    /// How many records of registrations there are.
    pub(in crate::fs) places: u32,
    /// Up to here, numbers that are not in the lists have no owner.
    pub(in crate::fs) settled: u32,
}

impl InodeTable {
    /// Whether this has room for open files.
    pub(in crate::fs) fn keeps_open_files(&self) -> bool {
        self.header.header().version.load(Ordering::Relaxed) == OPEN_FILES
    }

    fn open_files(&self) -> &OpenFilesHeader {
        &self.header.header().open_files
    }

    /// Notes whether there is passthrough.
    pub(in crate::fs) fn settle_passthrough(&self, enabled: bool) {
        let reported = if enabled { 1 } else { 2 };
        let header = self.open_files();
        header.passthrough.store(reported, Ordering::Release);
    }

    /// Notes that a file is open by the handle of `place` and `generation`.
    pub(in crate::fs) fn note_open(&self, place: u32, generation: u32, file: &OpenFile) {
        let written = self.with_file(place, |record| {
            record.generation.store(generation, Ordering::Relaxed);
            step();
            record.node.store(file.node.into(), Ordering::Relaxed);
            record.request.store(file.request, Ordering::Relaxed);
            let backing = file.backing.unwrap_or(0);
            record.backing.store(backing, Ordering::Relaxed);
            store_digest(&record.digest, &file.digest);
            let files = &self.open_files().files;
            files.fetch_max(u64::from(place) + 1, Ordering::Relaxed);
            step();
            record.state.store(USED, Ordering::Release);
            step();
        });
        self.unless_written(written);
    }

    /// Notes that nothing is open by the handle of `place`.
    pub(in crate::fs) fn note_closed(&self, place: u32) {
        let written = self.with_file(place, |record| {
            record.state.store(FREE, Ordering::Release);
            step();
        });
        self.unless_written(written);
    }

    /// Notes that a file has just been registered, and that the owners of all numbers up to its own
    /// are known.
    pub(in crate::fs) fn note_registered(&self, registration: &Registration) {
        let written = self.with_registration(registration.place, |record| {
            step();
            record.id.store(registration.id, Ordering::Relaxed);
            store_digest(&record.digest, &registration.digest);
            let registrations = &self.open_files().registrations;
            registrations.fetch_max(u64::from(registration.place) + 1, Ordering::Relaxed);
            step();
            record.state.store(USED, Ordering::Release);
            step();
        });
        self.unless_written(written);
        self.settle(registration.id);
    }

    /// Notes that the owners of all numbers up to `id` are known.
    pub(in crate::fs) fn settle(&self, id: u32) {
        self.open_files().settled.store(id, Ordering::Release);
        step();
    }

    /// Notes that a registration is about to end.
    pub(in crate::fs) fn note_ending(&self, place: u32) {
        let written = self.with_registration(place, |record| {
            record.state.store(ENDING, Ordering::Release);
            step();
        });
        self.unless_written(written);
    }

    /// Notes that a registration has ended.
    pub(in crate::fs) fn note_ended(&self, place: u32) {
        let written = self.with_registration(place, |record| {
            record.state.store(FREE, Ordering::Release);
            step();
        });
        self.unless_written(written);
    }

    /// What the previous process handed over open.
    pub(in crate::fs) fn previous_open_files(&self) -> Result<PreviousOpenFiles, InodeTableError> {
        let header = self.open_files();
        let passthrough = match header.passthrough.load(Ordering::Acquire) {
            1 => true,
            2 => false,
            _ => {
                return Err(InodeTableError::Damaged(
                    "it does not record how files are read",
                ));
            }
        };
        let within = |count: &AtomicU64| {
            let count = u32::try_from(count.load(Ordering::Relaxed)).ok();
            count
                .filter(|count| *count <= MOST)
                .ok_or(InodeTableError::Damaged("too many open files"))
        };
        let mut previous = PreviousOpenFiles {
            passthrough,
            settled: header.settled.load(Ordering::Acquire),
            places: within(&header.registrations)?,
            ..PreviousOpenFiles::default()
        };
        for place in 0..within(&header.files)? {
            previous.files.push(self.with_file(place, |record| {
                let file = (record.state.load(Ordering::Acquire) == USED).then(|| OpenFile {
                    node: record.node.load(Ordering::Relaxed).into(),
                    request: record.request.load(Ordering::Relaxed),
                    digest: load_digest(&record.digest),
                    backing: match record.backing.load(Ordering::Relaxed) {
                        0 => None,
                        backing => Some(backing),
                    },
                });
                (record.generation.load(Ordering::Relaxed), file)
            })?);
        }
        for place in 0..previous.places {
            let (state, registration) = self.with_registration(place, |record| {
                let registration = Registration {
                    place,
                    id: record.id.load(Ordering::Relaxed),
                    digest: load_digest(&record.digest),
                };
                (record.state.load(Ordering::Acquire), registration)
            })?;
            match state {
                USED => previous.registered.push(registration),
                ENDING => previous.ending.push(registration),
                _ => {}
            }
        }
        Ok(previous)
    }

    fn with_file<T>(&self, place: u32, work: impl FnOnce(&FileRecord) -> T) -> io::Result<T> {
        with_record(&self.files, &self.memory, place, work)
    }

    fn with_registration<T>(
        &self,
        place: u32,
        work: impl FnOnce(&RegistrationRecord) -> T,
    ) -> io::Result<T> {
        with_record(&self.registrations, &self.memory, place, work)
    }

    fn unless_written(&self, written: io::Result<()>) {
        if let Err(error) = written {
            self.give_up(&error);
        }
    }
}

fn with_record<R: MappedRecord, T>(
    area: &RecordArea,
    memory: &OwnedFd,
    place: u32,
    work: impl FnOnce(&R) -> T,
) -> io::Result<T> {
    const { assert!((MOST as usize).is_multiple_of(BLOCK_RECORDS)) };
    if place >= MOST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (block, at) = area.place(memory, place)?;
    Ok(work(block.record(at)))
}

/// Between two writes, where the process may die.
#[cfg(not(test))]
fn step() {}

#[cfg(test)]
use crate::fs::passthrough::death::step;
