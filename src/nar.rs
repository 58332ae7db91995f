//! NAR, the archive format of Nix: one tree of files, written in exactly one way.
//!
//! An archive is a sequence of strings, each a 64-bit little-endian length, the bytes, and zeros up
//! to a multiple of eight:
//!
//! ```text
//! archive = "nix-archive-1" node
//! node    = "(" "type" what ")"
//! what    = "regular" ["executable" ""] "contents" BYTES
//!         | "symlink" "target" BYTES
//!         | "directory" { "entry" "(" "name" BYTES "node" node ")" }
//! ```
//!
//! Entries are sorted by the bytes of their names. A store path's hash is taken over the archive, so
//! the [`NarReader`] refuses whatever the [`NarWriter`] would have written otherwise: what it accepts,
//! written again, gives the same bytes. A hash of the input is therefore the hash of the tree.
//!
//! Both work in bounded memory, and neither recurses: how deep a tree is costs no stack.

pub(crate) mod framing;
mod reader;
mod writer;

pub use reader::{NarContents, NarError, NarEvent, NarReader};
pub use writer::NarWriter;

/// What an archive starts with.
const MAGIC: &[u8] = b"nix-archive-1";

/// The most directories inside one another that the [`NarReader`] follows: far more than any tree has
/// that is meant to be used (the longest path that Linux takes has 4096 bytes), and little memory.
pub const MAX_DEPTH: usize = 1 << 16;

/// The zeros that follow a string of `length` bytes.
fn padding(length: u64) -> usize {
    // At most 7, so it fits.
    (length.wrapping_neg() % 8) as usize
}

#[cfg(test)]
mod tests;
