//! Nix's own formats: hashes as text, and what is known of a store path.

mod base32;

pub use base32::{decode as decode_base32, encode as encode_base32};

pub use crate::proto::store::v1::{NarInfo, PathInfo};

/// The 20 bytes at the start of `base_name`, if it is the base name of a store path:
/// 32 digits of nixbase32, a dash, and a name.
pub fn output_hash(base_name: &[u8]) -> Option<[u8; 20]> {
    let (digits, rest) = base_name.split_at_checked(32)?;
    (rest.len() > 1 && rest.starts_with(b"-")).then(|| decode_base32(digits))?
}
