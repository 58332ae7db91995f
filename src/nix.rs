//! Nix's own formats: hashes as text, store paths, and what is known of one.
//!
//! A Nix store path is named by a hash that Nix computes from how the path came to be, not from its
//! bytes alone. The one kind made here is that of a source tree added to the store
//! ([`content_addressed`]): its name follows from the SHA-256 of its NAR, so that anybody can check
//! it, and importing a tree gives the path that `nix-store --add` would.

mod base32;
mod path_info;
mod store_path;

pub use base32::{decode as decode_base32, encode as encode_base32};
pub use path_info::{NarHash, content_addressed};
pub use store_path::{STORE_DIR, StorePath, StorePathError, StorePathHash};

pub use crate::proto::store::v1::{NarInfo, PathInfo};
