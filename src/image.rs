//! EROFS images: a tree as a disk image that is computed and never stored.
//!
//! An [`ImageLayout`] assigns every path of a tree a place in an EROFS image. It is made from
//! Directories alone; no blob is read. After that any range of the image can be read: metadata (the
//! superblock, inodes, directory entries, symlink targets) is generated on the way, and the rest of
//! the image maps to ranges of blobs, or to zeros.
//!
//! **The bytes depend on the contents and the layout version only**: not on the machine, the store,
//! the order of fetches or the time. Another process can therefore serve a mounted image, and two
//! hosts the same image. A change to the bytes is a new [`ImageVersion`]; the old one stays,
//! because kernels and guests may hold pages of it.
//!
//! **Counted before allocated.** A tree can have far more paths than Directories: forty
//! Directories, each naming the next twice, make 2^40 paths. They are counted over distinct digests
//! first, and above [`MOST_NAMES`] the image is refused.
//!
//! **Memory is a few words a directory**, and four bytes for each entry of each distinct Directory.
//! The Directories themselves are fetched again, from a [`DirectorySource`], when a range is
//! generated.
//!
//! `docs/image-format.md` describes every byte.

mod count;
mod error;
mod extents;
mod format;
mod layout;
mod location;
mod metadata;
mod names;
mod reader;
mod root;
#[cfg(test)]
mod tests;

pub use error::{ImageError, MOST_NAMES};
pub use extents::ImageExtent;
pub use format::{BLOCK, IMAGE_ALIGNMENT};
pub use layout::{ImageLayout, ImageVersion};
pub use location::ImageLocation;
pub use reader::{ErofsEntry, ErofsError, ErofsInode, ErofsKind, ErofsReader};
pub use root::ImageRoot;

use crate::castore::{Digest, Directory};

/// Where an image's Directories come from.
pub trait DirectorySource {
    /// Why a Directory cannot be read.
    type Error;

    /// The Directory `digest`. May block.
    fn directory(&self, digest: &Digest) -> Result<Directory, Self::Error>;

    /// The Directories `digests`, in that order; an upstream fetches them at once.
    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, Self::Error>;
}
