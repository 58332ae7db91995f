//! A reader of EROFS images, written from the format alone: the reference for tests and fuzzing.
//!
//! It shares no code with the layout. It reads the features that images of this crate use (flat
//! layouts, blocks of 4 KiB, no feature bits) and is strict where the kernel is, and where the
//! kernel trusts: names must be sorted over all blocks, and nothing may lie outside of the image.

use std::cmp::Ordering;

use thiserror::Error;

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Where the superblock starts, in bytes.
const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of an entry of a directory block.
const DIRENT: usize = 12;

/// An image that breaks the EROFS format.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ErofsError {
    /// The bytes cannot be read.
    #[error("cannot read the image at byte {at}: {why}")]
    Read {
        /// Where, in bytes from the image's start.
        at: u64,
        /// The reason.
        why: String,
    },
    /// Bytes that break the format.
    #[error("not a valid image, at byte {at}: {what}")]
    Invalid {
        /// Where, in bytes from the image's start.
        at: u64,
        /// The error.
        what: &'static str,
    },
}

fn invalid<T>(at: u64, what: &'static str) -> Result<T, ErofsError> {
    Err(ErofsError::Invalid { at, what })
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErofsKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErofsInode {
    /// Its number: the slot it is in.
    pub nid: u64,
    /// What it is.
    pub kind: ErofsKind,
    /// Its mode, without the type.
    pub permissions: u16,
    /// Bytes of its content.
    pub size: u64,
    /// Hard links.
    pub links: u32,
    /// The number that `stat` shows on 32-bit machines.
    pub ino: u32,
    /// The second of its mtime.
    pub mtime: u64,
    /// The first block of its content.
    pub block: u32,
    /// Where the end of its content is, if that follows the inode, in bytes from the image's start.
    inline: Option<u64>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErofsEntry {
    /// The name, `.` and `..` among them.
    pub name: Vec<u8>,
    /// The inode.
    pub nid: u64,
    /// What the inode is.
    pub kind: ErofsKind,
}

/// An image, whose bytes `R` reads: it fills a buffer from an offset on.
pub struct ErofsReader<R> {
    read: R,
    root: u64,
    inodes: u64,
    blocks: u32,
    meta: u64,
    build_time: u64,
}

impl<R: Fn(u64, &mut [u8]) -> Result<(), String>> ErofsReader<R> {
    /// Reads the superblock.
    pub fn new(read: R) -> Result<Self, ErofsError> {
        let mut raw = [0; 128];
        fill(&read, SUPERBLOCK_AT, &mut raw)?;
        let raw = RecordFields(&raw);
        if raw.u32(0) != 0xE0F5_E1E2 {
            return invalid(SUPERBLOCK_AT, "no superblock");
        }
        if raw.u8(12) != 12 {
            return invalid(SUPERBLOCK_AT + 12, "blocks are not of 4 KiB");
        }
        if raw.u32(80) != 0 {
            return invalid(
                SUPERBLOCK_AT + 80,
                "features that this reader does not know",
            );
        }
        Ok(Self {
            root: u64::from(raw.u16(14)),
            inodes: raw.u64(16),
            build_time: raw.u64(24),
            blocks: raw.u32(36),
            meta: u64::from(raw.u32(40)) * BLOCK,
            read,
        })
    }

    /// Inodes, as the superblock states.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Blocks, as the superblock states.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The root directory.
    pub fn root(&self) -> Result<ErofsInode, ErofsError> {
        self.inode(self.root)
    }

    /// The inode in slot `nid`.
    pub fn inode(&self, nid: u64) -> Result<ErofsInode, ErofsError> {
        let at = nid
            .checked_mul(32)
            .and_then(|at| at.checked_add(self.meta))
            .filter(|at| *at < u64::from(self.blocks) * BLOCK);
        let Some(at) = at else {
            return invalid(u64::MAX, "an inode outside of the image");
        };
        let mut raw = [0; 64];
        fill(&self.read, at, &mut raw[..32])?;
        let format = RecordFields(&raw).u16(0);
        let is_extended = format & 1 == 1;
        if is_extended {
            fill(&self.read, at, &mut raw)?;
        }
        let raw = RecordFields(&raw);
        if raw.u16(2) != 0 {
            return invalid(
                at + 2,
                "extended attributes, which this reader does not know",
            );
        }
        let mode = raw.u16(4);
        let kind = match mode & 0o170_000 {
            0o100_000 => ErofsKind::File,
            0o040_000 => ErofsKind::Directory,
            0o120_000 => ErofsKind::Symlink,
            _ => return invalid(at + 4, "a type that is not file, directory or symlink"),
        };
        let (size, links, mtime) = match is_extended {
            true => (raw.u64(8), raw.u32(44), raw.u64(32)),
            false => (
                u64::from(raw.u32(8)),
                u32::from(raw.u16(6)),
                self.build_time,
            ),
        };
        let after = at + if is_extended { 64 } else { 32 };
        let inline = match format >> 1 {
            0 => None,
            2 if after % BLOCK + size % BLOCK > BLOCK => {
                return invalid(after, "inline data that crosses a block");
            }
            2 => Some(after),
            _ => return invalid(at, "a layout that is not flat"),
        };
        Ok(ErofsInode {
            nid,
            kind,
            permissions: mode & 0o7777,
            size,
            links,
            ino: raw.u32(20),
            mtime,
            block: raw.u32(16),
            inline,
        })
    }

    /// Fills `buffer` with the content of `inode` at `offset`, unless that ends first; gives the number
    /// of bytes.
    pub fn read(
        &self,
        inode: &ErofsInode,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ErofsError> {
        let length = inode.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..length];
        let inline_from = match inode.inline {
            Some(_) => inode.size - inode.size % BLOCK,
            None => inode.size,
        };
        let in_blocks = inline_from.saturating_sub(offset).min(length as u64) as usize;
        let (blocks, inline) = buffer.split_at_mut(in_blocks);
        if !blocks.is_empty() {
            let at = (u64::from(inode.block) * BLOCK).checked_add(offset);
            let end = u64::from(self.blocks) * BLOCK;
            let fits = |at: &u64| {
                at.checked_add(blocks.len() as u64)
                    .is_some_and(|to| to <= end)
            };
            match at.filter(fits) {
                Some(at) => fill(&self.read, at, blocks)?,
                None => return invalid(inode.nid, "content outside of the image"),
            }
        }
        if let Some(after) = inode.inline
            && !inline.is_empty()
        {
            let skipped = offset.saturating_sub(inline_from);
            fill(&self.read, after + skipped, inline)?;
        }
        Ok(length)
    }

    /// The entries in the block `index` of the directory `inode`; none after the last.
    pub fn entries(&self, inode: &ErofsInode, index: u64) -> Result<Vec<ErofsEntry>, ErofsError> {
        let at = inode.nid;
        if inode.kind != ErofsKind::Directory {
            return invalid(at, "entries of what is no directory");
        }
        let Some(offset) = index.checked_mul(BLOCK) else {
            return Ok(Vec::new());
        };
        let mut block = vec![0; BLOCK as usize];
        let length = self.read(inode, offset, &mut block)?;
        let block = &block[..length];
        if block.is_empty() {
            return Ok(Vec::new());
        }
        if block.len() < DIRENT {
            return invalid(at, "a directory block without an entry");
        }
        let names_at = usize::from(RecordFields(block).u16(8));
        if names_at < DIRENT || names_at % DIRENT != 0 || names_at >= block.len() {
            return invalid(at, "a directory block whose names are in the wrong place");
        }
        let count = names_at / DIRENT;
        let mut entries: Vec<ErofsEntry> = Vec::with_capacity(count);
        for entry in 0..count {
            let raw = RecordFields(&block[entry * DIRENT..][..DIRENT]);
            let from = usize::from(raw.u16(8));
            let name = match entry + 1 < count {
                true => {
                    let to =
                        usize::from(RecordFields(&block[(entry + 1) * DIRENT..][..DIRENT]).u16(8));
                    block.get(from..to)
                }
                // The last name ends with the block, or at a NUL.
                false => block.get(from..).map(|rest| {
                    let end = rest.iter().position(|byte| *byte == 0);
                    &rest[..end.unwrap_or(rest.len())]
                }),
            };
            let name = match name {
                Some(name) if !name.is_empty() && name.len() <= 255 => name,
                _ => return invalid(at, "a name of no bytes, or of too many"),
            };
            if name.contains(&0) || name.contains(&b'/') {
                return invalid(at, "a name with a NUL or a slash");
            }
            if entries.last().is_some_and(|before| *before.name >= *name) {
                return invalid(at, "names that are not sorted");
            }
            let kind = match raw.u8(10) {
                1 => ErofsKind::File,
                2 => ErofsKind::Directory,
                7 => ErofsKind::Symlink,
                _ => return invalid(at, "an entry of another type"),
            };
            entries.push(ErofsEntry {
                name: name.to_vec(),
                nid: raw.u64(0),
                kind,
            });
        }
        Ok(entries)
    }

    /// All entries of the directory `inode`, whose names must be sorted.
    pub fn list(&self, inode: &ErofsInode) -> Result<Vec<ErofsEntry>, ErofsError> {
        let mut all: Vec<ErofsEntry> = Vec::new();
        for index in 0..inode.size.div_ceil(BLOCK) {
            let entries = self.entries(inode, index)?;
            if let (Some(before), Some(first)) = (all.last(), entries.first())
                && before.name >= first.name
            {
                return invalid(inode.nid, "blocks that are not sorted");
            }
            all.extend(entries);
        }
        Ok(all)
    }

    /// The entry `name` of the directory `inode`, found by bisection, as in the kernel.
    pub fn find(&self, inode: &ErofsInode, name: &[u8]) -> Result<Option<ErofsEntry>, ErofsError> {
        let (mut low, mut high) = (0, inode.size.div_ceil(BLOCK));
        while low < high {
            let middle = low + (high - low) / 2;
            let entries = self.entries(inode, middle)?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                return invalid(inode.nid, "a directory block without an entry");
            };
            if name < first.name.as_slice() {
                high = middle;
            } else if name > last.name.as_slice() {
                low = middle + 1;
            } else {
                let compare = |entry: &ErofsEntry| -> Ordering { entry.name.as_slice().cmp(name) };
                let found = entries.binary_search_by(compare).ok();
                return Ok(found.and_then(|found| entries.into_iter().nth(found)));
            }
        }
        Ok(None)
    }
}

fn fill<R: Fn(u64, &mut [u8]) -> Result<(), String>>(
    read: &R,
    at: u64,
    buffer: &mut [u8],
) -> Result<(), ErofsError> {
    read(at, buffer).map_err(|why| ErofsError::Read { at, why })
}

/// Little-endian numbers in a record of known length.
struct RecordFields<'a>(&'a [u8]);

impl RecordFields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}
