//! Attributes: what `stat` returns for a node.
//!
//! Contents are immutable and have no owner, so most of it is fixed: mtime 1 (the second that
//! build tools agreed on), modes 0444 and 0555, one owner for all. Inode numbers are
//! [`numbering`](super::nodes::numbering)'s.

use fuse_backend_rs::abi::fuse_abi::stat64;

use crate::castore::NodeRef;

/// Bytes of a block in `st_blocks`.
const STAT_BLOCK: u64 = 512;
/// Links of a directory that are counted, at most: beyond, `st_nlink` is 1, as on ext4. 32-bit
/// programs have 16 bits for it, and `find` knows what 1 means.
const MOST_LINKS: u64 = 65_000;

/// The owner of every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeOwner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The number that the kernel takes for "no id" (chown(2), `INVALID_UID` of its user namespaces).
const NO_ID: u32 = u32::MAX;

impl NodeOwner {
    /// `id`, if it can be a user or group id.
    pub fn check_id(id: u32) -> Result<u32, String> {
        match id {
            NO_ID => Err(format!(
                "{NO_ID} is no user or group id, but the kernel's mark for none: give 0 to {}",
                NO_ID - 1
            )),
            id => Ok(id),
        }
    }
}

/// The `d_type` of a node in a listing.
pub(super) fn file_type(node: NodeRef<'_>) -> u8 {
    match node {
        NodeRef::Directory { .. } => libc::DT_DIR,
        NodeRef::File { .. } => libc::DT_REG,
        NodeRef::Symlink { .. } => libc::DT_LNK,
    }
}

/// The attributes of a file or symlink, or of a directory with `subdirectories`.
pub(super) fn attributes(
    node: NodeRef<'_>,
    ino: u64,
    subdirectories: u32,
    owner: NodeOwner,
) -> stat64 {
    let (mode, size, nlink) = match node {
        NodeRef::Directory { size, .. } => {
            let links = 2 + u64::from(subdirectories);
            let links = if links > MOST_LINKS { 1 } else { links };
            (libc::S_IFDIR | 0o555, size, links)
        }
        NodeRef::File {
            size,
            executable: true,
            ..
        } => (libc::S_IFREG | 0o555, size, 1),
        NodeRef::File { size, .. } => (libc::S_IFREG | 0o444, size, 1),
        NodeRef::Symlink { target } => (libc::S_IFLNK | 0o777, target.len() as u64, 1),
    };
    // SAFETY: stat64 is plain integers, for which all zeros is a value.
    let mut stat: stat64 = unsafe { std::mem::zeroed() };
    stat.st_ino = ino;
    stat.st_mode = mode;
    // The field's type differs between architectures.
    stat.st_nlink = nlink as _;
    stat.st_uid = owner.uid;
    stat.st_gid = owner.gid;
    // A Directory may claim a size beyond i64; show the largest possible one.
    stat.st_size = size.min(i64::MAX as u64) as i64;
    stat.st_blocks = size.div_ceil(STAT_BLOCK).min(i64::MAX as u64) as i64;
    stat.st_blksize = 4096;
    stat.st_atime = 1;
    stat.st_mtime = 1;
    stat.st_ctime = 1;
    stat
}
