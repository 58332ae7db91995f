//! The persisted inode table: what the next process needs to take a mount over.
//!
//! **Problem.** A mount outlives the process that serves it if another process (systemd) holds its
//! descriptors. The kernel continues to use the node ids, inode numbers and lookup counts that it was
//! given, and the next process must know them.
//!
//! **Mechanism.** The part of the table that cannot be recomputed lives in a memory file (memfd),
//! which the holder of the descriptors has too. For each slot: its parent, the index there, the
//! inode number, the number that its entries claim, digest and size, and the lookup counts, which
//! are counted in the file itself. Besides, the list of roots, by which entries of the mount root
//! have their index and inode number, and the ranges of inode numbers that were given out
//! ([`numbering`](super::numbering)). Directories are read again.
//!
//! **Invariant: the process may die at any moment.** A record is written before its state marks it,
//! and its state is cleared before it is overwritten; a lookup is counted before the kernel gets
//! the reply; a slot goes after its children; a root is appended before the length counts it. So a
//! process killed between two instructions leaves at most a count that is too high: a slot that
//! lives until the mount ends, never one that is freed while the kernel knows it.
//!
//! **Layout**, native byte order: a header ([`StateHeader`]), opaque caller data (`about`, from
//! [`ABOUT_AT`]), roots and ranges from [`NUMBERED_AT`] (each: u32 length, then what
//! [`AssignedNumber::encode`] writes), the slots from [`SLOTS_AT`] ([`SlotRecord`], one a slot). That is
//! layout [`NODES`], of mounts that get no OPEN. Layout [`OPEN_FILES`] adds what is open and what
//! backs it (`open_files`); a mount with passthrough needs that. Layouts 1 and 2, in which files of
//! equal content had one inode, are refused: their mounts start again. The file has its full length
//! from the start, which costs nothing while it is not written, and is sealed against resizing.

mod mapping;
mod numbered;
mod open_files;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use thiserror::Error;

use self::mapping::{MappedRecord, Mapping};
use self::numbered::take_entry;
pub(in crate::fs) use self::numbered::{AssignedNumber, NameRange};
pub(in crate::fs) use self::open_files::{OpenFile, PreviousOpenFiles, Registration};
use super::MOUNT_ROOT;
use crate::castore::{Digest, Name, Node, Root};
use crate::image::ImageRoot;

/// What every such file starts with.
const MAGIC: u64 = u64::from_le_bytes(*b"castore\x01");
/// The layout without open files.
const NODES: u32 = 3;
/// The layout with them.
const OPEN_FILES: u32 = 4;
const ABOUT_AT: u64 = 4096;
/// Room for `about`, in bytes.
const ABOUT_BYTES: usize = 60 << 10;
const NUMBERED_AT: u64 = 64 << 10;
const SLOTS_AT: u64 = 1 << 36;
/// Bytes of a record of any kind.
const RECORD_BYTES: usize = 88;
/// A slot has a number of 32 bits.
const NODES_END: u64 = SLOTS_AT + (RECORD_BYTES as u64) * (1 << 32);
/// Records that are mapped in one go. They fill whole pages.
const BLOCK_RECORDS: usize = 4096;
const BLOCK_BYTES: usize = BLOCK_RECORDS * RECORD_BYTES;

/// Why the hand-over state of the previous process cannot be used.
#[derive(Debug, Error)]
pub enum InodeTableError {
    /// The system call failed.
    #[error("the handed-over node table: {0}")]
    System(#[from] io::Error),
    /// Written by another version of this program.
    #[error(
        "the handed-over node table has layout {found}, and this version knows {NODES} to {OPEN_FILES}"
    )]
    Version {
        /// The version in its header.
        found: u32,
    },
    /// The contents are inconsistent.
    #[error("the handed-over node table is damaged: {0}")]
    Damaged(&'static str),
}

#[repr(C)]
struct StateHeader {
    magic: AtomicU64,
    version: AtomicU32,
    /// 1 once a write has failed: the next process would not know everything that the kernel knows.
    incomplete: AtomicU32,
    /// Bytes of `about`.
    about: AtomicU64,
    /// Bytes of roots and ranges.
    numbered: AtomicU64,
    /// Slots below this were used at some time.
    slots: AtomicU64,
    open_files: open_files::OpenFilesHeader,
}

/// A slot of the table.
#[repr(C)]
pub(super) struct SlotRecord {
    /// 1 if the slot is used.
    state: AtomicU32,
    parent: AtomicU32,
    index: AtomicU32,
    reserved: AtomicU32,
    ino: AtomicU64,
    claim: AtomicU64,
    size: AtomicU64,
    digest: [AtomicU64; 4],
    lookups: AtomicU64,
    held: AtomicU64,
}

const _: () = assert!(size_of::<SlotRecord>() == RECORD_BYTES);

// SAFETY: atomics only, without padding.
unsafe impl MappedRecord for SlotRecord {}

/// What a slot records about its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotContent {
    pub(super) parent: u32,
    pub(super) index: u32,
    pub(super) ino: u64,
    /// The first inode number that its parent's range has for what is in it; 0 for none.
    pub(super) claim: u64,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// The counts of a slot, in this process's memory or in the memory file.
pub(super) enum SlotCounts {
    /// Lost with the process.
    Own { lookups: AtomicU64, held: AtomicU64 },
    /// In the record at this place of the segment.
    Mapped { block: Arc<Mapping>, at: u32 },
}

impl SlotCounts {
    pub(super) fn own() -> Self {
        Self::Own {
            lookups: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Lookups of the directory itself that the kernel has not forgotten.
    pub(super) fn lookups(&self) -> &AtomicU64 {
        match self {
            Self::Own { lookups, .. } => lookups,
            Self::Mapped { block, at } => &block.record::<SlotRecord>(*at).lookups,
        }
    }

    /// Lookups of its files and symlinks that the kernel has not forgotten.
    pub(super) fn held(&self) -> &AtomicU64 {
        match self {
            Self::Own { held, .. } => held,
            Self::Mapped { block, at } => &block.record::<SlotRecord>(*at).held,
        }
    }
}

/// Records of one kind: where they start, and those that are mapped already.
struct RecordArea {
    from: u64,
    blocks: Mutex<Vec<Option<Arc<Mapping>>>>,
}

impl RecordArea {
    fn new(from: u64) -> Self {
        Self {
            from,
            blocks: Mutex::default(),
        }
    }

    /// The segment of `memory` that has the record `number`, and the record's place in it.
    fn place(&self, memory: &OwnedFd, number: u32) -> io::Result<(Arc<Mapping>, u32)> {
        let (of, at) = (
            number as usize / BLOCK_RECORDS,
            number as usize % BLOCK_RECORDS,
        );
        let mut blocks = self.blocks.lock();
        if blocks.len() <= of {
            blocks.resize(of + 1, None);
        }
        let block = match &blocks[of] {
            Some(block) => block.clone(),
            None => {
                let from = self.from + (of * BLOCK_BYTES) as u64;
                let block = Arc::new(Mapping::new(memory, from, BLOCK_BYTES)?);
                blocks[of] = Some(block.clone());
                block
            }
        };
        Ok((block, at as u32))
    }
}

/// A node table that can be handed over.
pub struct InodeTable {
    memory: OwnedFd,
    header: Mapping,
    slots: RecordArea,
    files: RecordArea,
    registrations: RecordArea,
    appending: Mutex<()>,
    complained: AtomicBool,
}

impl InodeTable {
    /// An empty one, for a mount that is asked for no OPEN.
    pub fn create() -> io::Result<Self> {
        Self::create_as(NODES)
    }

    /// An empty one with records for open files and what backs them.
    pub fn create_with_open_files() -> io::Result<Self> {
        Self::create_as(OPEN_FILES)
    }

    fn create_as(layout: u32) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let memory = rustix::fs::memfd_create(c"castore-fs-nodes", flags)
            // Kernels before 6.3 do not know NOEXEC_SEAL.
            .or_else(|_| {
                rustix::fs::memfd_create(c"castore-fs-nodes", flags & !MemfdFlags::NOEXEC_SEAL)
            })?;
        rustix::fs::ftruncate(&memory, bytes_of(layout).unwrap_or(NODES_END))?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
        let inode_table = Self::map(memory)?;
        let header = inode_table.header.header();
        header.version.store(layout, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(inode_table)
    }

    /// The one of the previous process.
    pub fn open(memory: OwnedFd) -> Result<Self, InodeTableError> {
        let length = rustix::fs::fstat(&memory).map_err(io::Error::from)?.st_size as u64;
        let seals = rustix::fs::fcntl_get_seals(&memory).map_err(io::Error::from)?;
        // A file that can shrink below its mapping can kill this process.
        if !seals.contains(SealFlags::SHRINK) || length < ABOUT_AT {
            return Err(InodeTableError::Damaged("it is no sealed memory file"));
        }
        let inode_table = Self::map(memory)?;
        let header = inode_table.header.header();
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(InodeTableError::Damaged("it starts with other bytes"));
        }
        let found = header.version.load(Ordering::Relaxed);
        let bytes = bytes_of(found).ok_or(InodeTableError::Version { found })?;
        if length != bytes {
            return Err(InodeTableError::Damaged("its length is another"));
        }
        if header.incomplete.load(Ordering::Relaxed) != 0 {
            return Err(InodeTableError::Damaged(
                "the previous process could not write all of it",
            ));
        }
        Ok(inode_table)
    }

    fn map(memory: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            header: Mapping::new(&memory, 0, 4096)?,
            memory,
            slots: RecordArea::new(SLOTS_AT),
            files: RecordArea::new(open_files::FILES_AT),
            registrations: RecordArea::new(open_files::REGISTRATIONS_AT),
            appending: Mutex::default(),
            complained: AtomicBool::new(false),
        })
    }

    /// The memory file, for the process that holds the mount's descriptors.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Digest and size of the directory at the top: the last version of one that follows a name.
    pub fn mount_root(&self) -> Result<Option<(Digest, u64)>, InodeTableError> {
        if let Some((root, _)) = self.roots()?.pop() {
            return Ok(match root.node {
                Node::Directory { digest, size } => Some((digest, size)),
                Node::File { .. } | Node::Symlink { .. } => None,
            });
        }
        let mount_root = self.slots()?.into_iter().next();
        let mount_root = mount_root.filter(|(slot, ..)| *slot == MOUNT_ROOT);
        Ok(mount_root.map(|(_, content, _)| (content.digest, content.size)))
    }

    /// Stores opaque data about the mount for the next process.
    pub fn set_about(&self, about: &[u8]) -> io::Result<()> {
        if about.len() > ABOUT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let header = self.header.header();
        header.about.store(0, Ordering::Release);
        write_all(&self.memory, about, ABOUT_AT)?;
        header.about.store(about.len() as u64, Ordering::Release);
        Ok(())
    }

    /// The data that the previous process stored.
    pub fn about(&self) -> io::Result<Vec<u8>> {
        let length = self.header.header().about.load(Ordering::Acquire);
        read_exact(
            &self.memory,
            ABOUT_AT,
            length.min(ABOUT_BYTES as u64) as usize,
        )
    }

    /// Notes that `slot` is used, with no counts yet.
    pub(super) fn claim(&self, slot: u32, content: &SlotContent) -> SlotCounts {
        match self.try_claim(slot, content) {
            Ok(counts) => counts,
            Err(error) => {
                self.give_up(&error);
                SlotCounts::own()
            }
        }
    }

    fn try_claim(&self, slot: u32, content: &SlotContent) -> io::Result<SlotCounts> {
        let (block, at) = self.slots.place(&self.memory, slot)?;
        let record = block.record::<SlotRecord>(at);
        record.state.store(0, Ordering::Release);
        record.parent.store(content.parent, Ordering::Relaxed);
        record.index.store(content.index, Ordering::Relaxed);
        record.ino.store(content.ino, Ordering::Relaxed);
        record.claim.store(content.claim, Ordering::Relaxed);
        record.size.store(content.size, Ordering::Relaxed);
        store_digest(&record.digest, &content.digest);
        record.lookups.store(0, Ordering::Relaxed);
        record.held.store(0, Ordering::Relaxed);
        let header = self.header.header();
        header
            .slots
            .fetch_max(u64::from(slot) + 1, Ordering::Relaxed);
        record.state.store(1, Ordering::Release);
        Ok(SlotCounts::Mapped { block, at })
    }

    /// Notes that `slot` is free.
    pub(super) fn release(&self, slot: u32) {
        if let Ok((block, at)) = self.slots.place(&self.memory, slot) {
            block
                .record::<SlotRecord>(at)
                .state
                .store(0, Ordering::Release);
        }
    }

    /// Frees the memory of the slots from `used` on; all of them are free.
    pub(super) fn trim(&self, used: usize) {
        let first = used.next_multiple_of(BLOCK_RECORDS);
        let mut blocks = self.slots.blocks.lock();
        if blocks.len() * BLOCK_RECORDS <= first {
            return;
        }
        blocks.truncate(first / BLOCK_RECORDS);
        self.header
            .header()
            .slots
            .store(first as u64, Ordering::Relaxed);
        let from = SLOTS_AT + (first * RECORD_BYTES) as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // If this fails only memory is lost; the records themselves are marked free.
        let _ = rustix::fs::fallocate(&self.memory, flags, from, NODES_END - from);
    }

    /// Every slot that is used, in order.
    pub(super) fn slots(&self) -> Result<Vec<(u32, SlotContent, SlotCounts)>, InodeTableError> {
        let slots = self.header.header().slots.load(Ordering::Relaxed);
        let slots = u32::try_from(slots).map_err(|_| InodeTableError::Damaged("too many slots"))?;
        let mut found = Vec::new();
        for slot in 0..slots {
            let (block, at) = self.slots.place(&self.memory, slot)?;
            let record = block.record::<SlotRecord>(at);
            if record.state.load(Ordering::Acquire) != 1 {
                continue;
            }
            let content = SlotContent {
                parent: record.parent.load(Ordering::Relaxed),
                index: record.index.load(Ordering::Relaxed),
                ino: record.ino.load(Ordering::Relaxed),
                claim: record.claim.load(Ordering::Relaxed),
                digest: load_digest(&record.digest),
                size: record.size.load(Ordering::Relaxed),
            };
            found.push((slot, content, SlotCounts::Mapped { block, at }));
        }
        Ok(found)
    }

    /// Appends a root, whose index is the number of those before it, and its inode number.
    pub(in crate::fs) fn append_root(&self, root: &Root, ino: u64) {
        self.append(&AssignedNumber::Root {
            ino,
            root: root.clone(),
        });
    }

    /// Appends the range of the directory numbered `ino`, in which there are `length` numbers.
    pub(in crate::fs) fn append_range(&self, ino: u64, range: NameRange, length: u64) {
        self.append(&AssignedNumber::Range { ino, range, length });
    }

    fn append(&self, numbered: &AssignedNumber) {
        let _one = self.appending.lock();
        let header = self.header.header();
        let length = header.numbered.load(Ordering::Relaxed);
        let body = numbered.encode();
        let mut entry = (body.len() as u32).to_ne_bytes().to_vec();
        entry.extend_from_slice(&body);
        let outcome = match NUMBERED_AT + length + entry.len() as u64 > SLOTS_AT {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => write_all(&self.memory, &entry, NUMBERED_AT + length),
        };
        match outcome {
            Ok(()) => {
                let after = length + entry.len() as u64;
                header.numbered.store(after, Ordering::Release);
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Every root and range that was appended, in order.
    pub(in crate::fs) fn numbered(&self) -> Result<Vec<AssignedNumber>, InodeTableError> {
        let length = self.header.header().numbered.load(Ordering::Acquire);
        if NUMBERED_AT.saturating_add(length) > SLOTS_AT {
            return Err(InodeTableError::Damaged("its root nodes have no end"));
        }
        let bytes = read_exact(&self.memory, NUMBERED_AT, length as usize)?;
        let mut rest = bytes.as_slice();
        let mut all = Vec::new();
        while !rest.is_empty() {
            let numbered = take_entry(&mut rest).and_then(AssignedNumber::decode);
            all.push(numbered.ok_or(InodeTableError::Damaged("a root node cannot be read"))?);
        }
        Ok(all)
    }

    /// Every root that was appended, in order, and its inode number.
    pub(in crate::fs) fn roots(&self) -> Result<Vec<(Root, u64)>, InodeTableError> {
        let all = self.numbered()?.into_iter();
        Ok(all
            .filter_map(|numbered| match numbered {
                AssignedNumber::Root { ino, root } => Some((root, ino)),
                AssignedNumber::Range { .. } | AssignedNumber::Image { .. } => None,
            })
            .collect())
    }

    /// Appends an image, whose index is the number of those before it, with what [`AssignedNumber::Image`] has
    /// of it.
    pub(in crate::fs) fn append_image(
        &self,
        ino: u64,
        name: Option<&Name>,
        mount_root: &ImageRoot,
    ) {
        self.append(&AssignedNumber::Image {
            ino,
            name: name.cloned(),
            mount_root: mount_root.clone(),
        });
    }

    /// From here on the next process has to start again.
    fn give_up(&self, error: &io::Error) {
        self.header.header().incomplete.store(1, Ordering::Release);
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %error,
                "cannot record the node table for the next process; the next restart will end the mount"
            );
        }
    }
}

/// The length of a file of this layout; nothing if it is not known.
fn bytes_of(layout: u32) -> Option<u64> {
    match layout {
        NODES => Some(NODES_END),
        OPEN_FILES => Some(open_files::END),
        _ => None,
    }
}

fn store_digest(words: &[AtomicU64; 4], digest: &Digest) {
    for (word, bytes) in words.iter().zip(digest.as_bytes().chunks_exact(8)) {
        let bytes = bytes.try_into().expect("chunks of 8 bytes");
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
}

fn load_digest(words: &[AtomicU64; 4]) -> Digest {
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    Digest::from(digest)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::pwrite(file, bytes, offset)?;
        bytes = bytes.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

fn read_exact(file: &OwnedFd, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match rustix::io::pread(file, &mut bytes[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(bytes)
}
