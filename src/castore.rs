//! The data model: what a castore is made of, without any I/O.
//!
//! A **blob** is the bytes of a file, named by their BLAKE3 digest. A **Directory** is a sorted
//! list of named **nodes**, named by the digest of its canonical encoding. A **root** is a named
//! node at the top of a store. The rest of this crate stores and moves these.

pub mod bao_field;
mod digest;
mod directory;
pub mod effort;
mod groups;
mod name;
mod node;
mod printable;

pub use digest::{Digest, DigestError};
pub use directory::{Directory, DirectoryEntry, DirectoryError, MAX_DIRECTORY_BYTES};
pub use groups::{
    BlobHasher, ExtentProofs, ExtentValues, GroupTable, GroupTableError, extent_size, group_size,
    verify_extent,
};
pub use name::{Name, NameError, SymlinkTarget, check_name, check_symlink_target};
pub use node::{Node, NodeError, NodeRef, Root};
pub use printable::{Printable, printable_json};
