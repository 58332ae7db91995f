//! The parts of EROFS' on-disk format that images use.
//!
//! Source: the Linux kernel's `fs/erofs/erofs_fs.h`. All numbers are little-endian. No feature bit is
//! needed that Linux 5.4 does not have.

use crate::castore::NodeRef;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// What an image's length is a multiple of, in bytes: guests map persistent memory in units of it.
pub const IMAGE_ALIGNMENT: u64 = 2 << 20;
/// Bytes of a slot, the unit of inode numbers.
pub(super) const SLOT: u64 = 32;
/// Slots of a block.
pub(super) const BLOCK_SLOTS: u64 = BLOCK / SLOT;

/// log2 of [`BLOCK`].
pub(super) const BLOCK_BITS: u8 = 12;
/// Where the superblock starts, in bytes.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of the superblock.
pub(super) const SUPERBLOCK_LEN: usize = 128;
/// What the superblock starts with.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// `feature_compat`: the time in the superblock is an mtime.
pub(super) const COMPAT_MTIME: u32 = 0x2;

/// Bytes of a compact inode.
pub(super) const COMPACT: usize = 32;
/// Bytes of an extended inode.
pub(super) const EXTENDED: usize = 64;
/// Layout: all data in blocks.
pub(super) const FLAT_PLAIN: u16 = 0;
/// Layout: whole blocks of data in blocks, the rest right after the inode.
pub(super) const FLAT_INLINE: u16 = 2;

/// Bytes of a directory entry, without its name.
pub(super) const DIRENT: usize = 12;
/// Types in directory entries.
pub(super) const TYPE_FILE: u8 = 1;
pub(super) const TYPE_DIRECTORY: u8 = 2;
pub(super) const TYPE_SYMLINK: u8 = 7;

/// The mtime of everything: second 1, as Nix sets it.
pub(super) const SECOND_ONE: u64 = 1;

/// An inode, before it is encoded.
pub(super) struct Inode {
    pub(super) mode: u16,
    /// Bytes of content.
    pub(super) size: u64,
    /// Hard links.
    pub(super) links: u32,
    /// Whether the end of the content follows the inode.
    pub(super) is_inline: bool,
    /// The first block of the content; 0 where there is none.
    pub(super) block: u32,
}

/// Bytes of the inode of something of `size` bytes with `links` hard links.
pub(super) fn inode_len(size: u64, links: u32) -> usize {
    match size <= u64::from(u32::MAX) && links <= u32::from(u16::MAX) {
        true => COMPACT,
        false => EXTENDED,
    }
}

/// The mode of a node.
pub(super) fn mode(node: NodeRef<'_>) -> u16 {
    match node {
        NodeRef::Directory { .. } => 0o040_555,
        NodeRef::File {
            executable: true, ..
        } => 0o100_555,
        NodeRef::File { .. } => 0o100_444,
        NodeRef::Symlink { .. } => 0o120_777,
    }
}

impl Inode {
    /// The encoding, and how many of its bytes count. `nid` is the inode's number.
    pub(super) fn encode(&self, nid: u32) -> ([u8; EXTENDED], usize) {
        let length = inode_len(self.size, self.links);
        let layout = match self.is_inline {
            true => FLAT_INLINE,
            false => FLAT_PLAIN,
        };
        let version = u16::from(length == EXTENDED);
        let mut out = [0; EXTENDED];
        put(&mut out, 0, &(layout << 1 | version).to_le_bytes());
        put(&mut out, 4, &self.mode.to_le_bytes());
        if length == COMPACT {
            // Both fit: inode_len() looked.
            put(&mut out, 6, &(self.links as u16).to_le_bytes());
            put(&mut out, 8, &(self.size as u32).to_le_bytes());
            put(&mut out, 16, &self.block.to_le_bytes());
            put(&mut out, 20, &nid.to_le_bytes());
        } else {
            put(&mut out, 8, &self.size.to_le_bytes());
            put(&mut out, 16, &self.block.to_le_bytes());
            put(&mut out, 20, &nid.to_le_bytes());
            put(&mut out, 32, &SECOND_ONE.to_le_bytes());
            put(&mut out, 44, &self.links.to_le_bytes());
        }
        (out, length)
    }
}

/// The fields of the superblock that vary.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    /// Inodes.
    pub(super) inodes: u64,
    /// Blocks, without the padding at the end.
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut out = [0; SUPERBLOCK_LEN];
        put(&mut out, 0, &MAGIC.to_le_bytes());
        put(&mut out, 8, &COMPAT_MTIME.to_le_bytes());
        put(&mut out, 12, &[BLOCK_BITS]);
        put(&mut out, 14, &self.root_nid.to_le_bytes());
        put(&mut out, 16, &self.inodes.to_le_bytes());
        put(&mut out, 24, &SECOND_ONE.to_le_bytes());
        put(&mut out, 36, &self.blocks.to_le_bytes());
        put(&mut out, 48, &self.uuid);
        put(&mut out, 64, b"castore");
        out
    }
}

/// Copies `bytes` into `out` at `at`, where they have room.
fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The first slot from `cursor` on where `length` bytes, at most a block, lie within one block.
pub(super) fn fit(cursor: u64, length: usize) -> u64 {
    let used = (cursor % BLOCK_SLOTS) * SLOT;
    match used + length as u64 <= BLOCK {
        true => cursor,
        false => cursor.next_multiple_of(BLOCK_SLOTS),
    }
}

/// The slots that `length` bytes take.
pub(super) fn slots(length: usize) -> u64 {
    (length as u64).div_ceil(SLOT)
}
