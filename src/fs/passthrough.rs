//! Passthrough: the kernel reads files of the local store itself.
//!
//! **Problem.** A large blob is a plain file in the local store. Where kernel (6.9 and later) and
//! privilege allow, OPEN hands that file to the kernel. Reads, maps and readahead of the mount's
//! file then go to it directly: as fast as the disk's own file system, sharing its page cache, and
//! without a request. The price is an OPEN and a RELEASE for every open file of the mount, large or
//! small, because a mount that answers OPEN cannot switch it off; and the bytes were verified when
//! they were stored and are not verified again when they are read. So it is the mount's choice.
//!
//! **The kernel's rules.** All opens of an inode at a time are of one kind: backed by one and the
//! same registered file, or all read through the page cache; another open fails with EIO. A
//! registration has a number, which counts up, and lasts until it is ended or the mount is. Ending
//! it takes nothing from files that are open by it, but registering the file again makes another
//! one, which those rules forbid while they are open.
//!
//! **Mechanism.** A blob that is open by a registration keeps it, and every further open uses it.
//! An inode that is open through the page cache is opened so again, even if its blob has meanwhile
//! got a file (a cache has fetched it). Registrations are kept by digest, counted while open, and
//! up to [`MOST_IDLE`] of them beyond their last close, since registering costs as much as
//! everything else in an OPEN.
//!
//! **Invariant: the next process knows all of it**, since the kernel keeps open files and
//! registrations over the death of a process as long as the mount lives. Every step is written to
//! the mount's hand-over state as it happens, under the lock that makes it happen. So a death
//! leaves at most one step half done:
//!
//! | opening, step by step | what the next process makes of a death after it |
//! |---|---|
//! | the file is registered | its number is beyond the last that is known of: ended |
//! | the registration is written down | idle: kept for the next OPEN |
//! | its number is noted as known | the same |
//! | the open file is written down, with the number of its request | if the kernel repeats the
//! OPEN, it was not answered and gets the same answer; otherwise it was answered |
//! | OPEN is answered | open |
//!
//! | closing | |
//! |---|---|
//! | the open file is struck out | the RELEASE is repeated: its handle is not known, and nothing happens |
//! | RELEASE is answered | closed |
//!
//! | ending a registration that is not in use | |
//! |---|---|
//! | it is marked as ending | ended (again, which the kernel does not mind: numbers do not come back) |
//! | the kernel ends it | the same |
//! | it is struck out | gone |
//!
//! One case is ambiguous: an OPEN that was written down and not answered, and whose program
//! is killed before the kernel repeats it, looks like one that was answered. It counts as open, and
//! keeps a registration, until the kernel forgets the directory that it is in (noticed by the next
//! take-over) or the mount ends. So too many may be held, and never one too few.

#[cfg(test)]
pub(in crate::fs) mod death;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use self::table::PassthroughTable;
use super::node_id::NodeId;
use super::nodes::{InodeTable, InodeTableError, OpenFile, PreviousOpenFiles};
use crate::castore::Digest;

/// Registrations that are kept although no program has the file open.
const MOST_IDLE: usize = 512;
/// Registrations that a death can have left without a record: one, and what is tried before it is
/// decided whether a mount has passthrough. A wider gap in the numbers has another cause.
const MOST_LOST: u32 = 64;

/// How the bytes of files come to their readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPath {
    /// READ requests fill the mount's page cache; every byte is verified on its way there.
    #[default]
    PageCache,
    /// The kernel reads the store's plain files itself, where there are such.
    Passthrough,
}

/// Where backing files are registered: the kernel's side of a mount.
pub trait BackingDevice: Send + Sync {
    /// Registers a file; gives its number, for OPEN's answer.
    fn register(&self, file: &OwnedFd) -> io::Result<u32>;
    /// Ends a registration. `NotFound` if there is none of that number.
    fn end(&self, id: u32) -> io::Result<()>;
    /// Registers any file and ends the registration; returns its number.
    fn probe(&self) -> io::Result<u32>;
}

/// What identifies an OPEN.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    /// Its number, which no other request of the mount ever has.
    pub unique: u64,
    /// Whether the kernel has sent it before, to a process that did not answer.
    pub repeated: bool,
}

/// How the kernel names an open file in RELEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHandle(u64);

impl FileHandle {
    fn new(place: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(place))
    }

    fn place(self) -> u32 {
        self.0 as u32
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl From<u64> for FileHandle {
    fn from(handle: u64) -> Self {
        Self(handle)
    }
}

impl From<FileHandle> for u64 {
    fn from(handle: FileHandle) -> Self {
        handle.0
    }
}

/// The answer to an OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// The open file.
    pub handle: FileHandle,
    /// The number of the file that backs it; without one the kernel asks with READ.
    pub backing: Option<u32>,
}

/// How much is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenCount {
    /// Open files.
    pub files: usize,
    /// Open files that the kernel reads itself.
    pub backed: usize,
    /// Registered files, idle ones included.
    pub registered: usize,
}

/// What is open on a mount, and what backs it.
pub struct Passthrough {
    device: Box<dyn BackingDevice>,
    /// Whether there is passthrough; unset until it is negotiated with the kernel.
    enabled: OnceLock<bool>,
    /// Where the next process finds it, if there can be one.
    inode_table: Option<Arc<InodeTable>>,
    table: Mutex<PassthroughTable>,
    complained: AtomicBool,
}

impl Passthrough {
    /// With nothing open on `device`; the next process finds the state in `inode_table`.
    pub fn new(device: Box<dyn BackingDevice>, inode_table: Option<Arc<InodeTable>>) -> Self {
        Self::new_with(device, inode_table, MOST_IDLE)
    }

    fn new_with(
        device: Box<dyn BackingDevice>,
        inode_table: Option<Arc<InodeTable>>,
        most_idle: usize,
    ) -> Self {
        Self {
            device,
            enabled: OnceLock::new(),
            table: Mutex::new(PassthroughTable::new(inode_table.clone(), most_idle)),
            inode_table,
            complained: AtomicBool::new(false),
        }
    }

    /// Takes over what the previous process handed over in `inode_table`. The kernel knows no nodes but those
    /// for which `is_known` is true.
    pub fn take_over(
        device: Box<dyn BackingDevice>,
        inode_table: Arc<InodeTable>,
        is_known: impl Fn(NodeId) -> bool,
    ) -> Result<Self, InodeTableError> {
        Self::take_over_with(device, inode_table, MOST_IDLE, is_known)
    }

    fn take_over_with(
        device: Box<dyn BackingDevice>,
        inode_table: Arc<InodeTable>,
        most_idle: usize,
        is_known: impl Fn(NodeId) -> bool,
    ) -> Result<Self, InodeTableError> {
        let previous = inode_table.previous_open_files()?;
        if previous.passthrough {
            end_lost(&*device, &inode_table, &previous);
        }
        let table =
            PassthroughTable::take_over(inode_table.clone(), most_idle, &previous, is_known)?;
        let passthrough = Self {
            device,
            enabled: OnceLock::from(previous.passthrough),
            table: Mutex::new(table),
            inode_table: Some(inode_table),
            complained: AtomicBool::new(false),
        };
        passthrough.end_idle(&mut passthrough.table.lock());
        Ok(passthrough)
    }

    /// Tries whether files can be registered, and enables passthrough if so; returns the reason if
    /// not.
    pub fn enable(&self) -> io::Result<()> {
        let id = self.device.probe()?;
        if let Some(inode_table) = &self.inode_table {
            inode_table.settle(id);
            inode_table.settle_passthrough(true);
        }
        let _ = self.enabled.set(true);
        Ok(())
    }

    /// Disables passthrough for good.
    pub fn disable(&self) {
        if let Some(inode_table) = &self.inode_table {
            inode_table.settle_passthrough(false);
        }
        let _ = self.enabled.set(false);
    }

    /// Whether files are registered at all. An OPEN that comes before that is decided waits: the
    /// kernel would take "not implemented" for the answer to every later OPEN.
    pub fn is_enabled(&self) -> bool {
        *self.enabled.wait()
    }

    /// Opens the inode `node`, whose blob is `digest`. `find` finds the blob's file if it is not
    /// registered.
    pub fn open<E>(
        &self,
        request: OpenRequest,
        node: NodeId,
        digest: &Digest,
        find: impl FnOnce() -> Result<Option<Arc<OwnedFd>>, E>,
    ) -> Result<OpenReply, E> {
        let unique = request.unique;
        {
            let mut table = self.table.lock();
            if request.repeated
                && let Some(opened) = table.opened_by(unique, node)
            {
                return Ok(opened);
            }
            if let Some(opened) = table.open_as_others(unique, node, digest) {
                return Ok(opened);
            }
        }
        let file = find()?;
        let mut table = self.table.lock();
        // Others may have opened it meanwhile.
        if let Some(opened) = table.open_as_others(unique, node, digest) {
            return Ok(opened);
        }
        let backing = file.and_then(|file| self.register(&mut table, &file, digest));
        Ok(table.open(OpenFile {
            node,
            request: unique,
            digest: *digest,
            backing,
        }))
    }

    /// Registers `file`, which has the blob `digest`. The table stays locked, so that the owner of
    /// every registration but the last is always known.
    fn register(
        &self,
        table: &mut PassthroughTable,
        file: &OwnedFd,
        digest: &Digest,
    ) -> Option<u32> {
        match self.device.register(file) {
            Ok(id) => {
                table.register(id, digest);
                Some(id)
            }
            Err(error) => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %digest, %error,
                        "a file cannot be handed to the kernel; it is read through the page cache"
                    );
                }
                None
            }
        }
    }

    /// Closes a file. Has no effect if it is not open: a RELEASE comes twice if the process that
    /// got the first one died before it answered.
    pub fn close(&self, handle: FileHandle) {
        let mut table = self.table.lock();
        if table.close(handle) {
            self.end_idle(&mut table);
        }
    }

    /// Ends the registrations that were unused the longest, while there are too many.
    fn end_idle(&self, table: &mut PassthroughTable) {
        while let Some(registration) = table.next_idle() {
            if let Some(inode_table) = &self.inode_table {
                inode_table.note_ending(registration.place);
            }
            // Under the lock too: a number is given up before another is written down.
            if let Err(error) = self.device.end(registration.id) {
                tracing::warn!(id = registration.id, %error, "cannot release a backing file");
            }
            table.ended(&registration);
        }
    }

    /// How much is open.
    pub fn count(&self) -> OpenCount {
        self.table.lock().count()
    }
}

/// Ends the registrations that have no owner: those that were being ended, and those that were made
/// and not written down.
fn end_lost(device: &dyn BackingDevice, inode_table: &InodeTable, previous: &PreviousOpenFiles) {
    for registration in &previous.ending {
        end_if_there(device, registration.id);
        inode_table.note_ended(registration.place);
    }
    let next = match device.probe() {
        Ok(next) => next,
        Err(error) => {
            tracing::warn!(%error, "no more files can be handed to the kernel");
            return;
        }
    };
    let lost = previous.settled.saturating_add(1)..next;
    if lost.len() <= MOST_LOST as usize {
        for id in lost {
            if previous.registered.iter().all(|known| known.id != id) {
                end_if_there(device, id);
            }
        }
    }
    inode_table.settle(next);
}

fn end_if_there(device: &dyn BackingDevice, id: u32) {
    match device.end(id) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(id, %error, "cannot release a backing file");
        }
        _ => {}
    }
}
