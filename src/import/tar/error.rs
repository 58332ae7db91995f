//! What can be wrong with a tar archive.

use std::io;

use thiserror::Error;

use crate::castore::{Name, NameError, Printable};

/// Input that is no tar archive, or holds what cannot be imported. Offsets are bytes from the start
/// of the archive.
#[derive(Debug, Error)]
pub enum TarError {
    /// The input could not be read.
    #[error("cannot read the tar archive at byte {offset}: {source}")]
    Io {
        /// Bytes read before.
        offset: u64,
        /// The error of the system.
        source: io::Error,
    },
    /// The input ends before the archive's end marker.
    #[error(
        "the tar archive ends at byte {offset}, without an end marker: it was cut short, or continues in another volume"
    )]
    Truncated {
        /// Where the input ends.
        offset: u64,
    },
    /// Something that the format does not have.
    #[error("not a tar archive that can be read, at byte {offset}: {what}")]
    Format {
        /// Where the header or the data starts.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// More than zeros follows the end marker.
    #[error(
        "more bytes follow the end of the tar archive; if several were joined, import them one by one"
    )]
    Trailing,
    /// A path that leads out of the tree.
    #[error(
        "the tar entry \"{}\" leads out of the tree by \"{}\": names with .. are refused",
        Printable(path),
        Printable(names)
    )]
    Outside {
        /// The entry's path.
        path: Vec<u8>,
        /// The path, or the target of its hard link, that leads out.
        names: Vec<u8>,
    },
    /// A path with more than [`MAX_DEPTH`] components.
    #[error(
        "the tar entry \"{}\" has more than {MAX_DEPTH} components",
        shortened(path)
    )]
    TooDeep {
        /// The entry's path.
        path: Vec<u8>,
    },
    /// A name or symlink target that breaks the castore's rules.
    #[error("the tar entry \"{}\": {source}", shortened(path))]
    Name {
        /// The entry's path.
        path: Vec<u8>,
        /// The rule.
        source: NameError,
    },
    /// A path through something that is no directory.
    #[error(
        "the tar entry \"{}\" is inside \"{parent}\", which is no directory",
        Printable(path)
    )]
    NotDirectory {
        /// The entry's path.
        path: Vec<u8>,
        /// The component.
        parent: Name,
    },
    /// The archive's root is something else than a directory.
    #[error(
        "the tar entry \"{}\" names the root and is no directory",
        Printable(path)
    )]
    Root {
        /// The entry's path.
        path: Vec<u8>,
    },
    /// A hard link to nothing that came before it.
    #[error(
        "the tar entry \"{}\" is a hard link to \"{}\", and no file of that name comes before it",
        Printable(path),
        Printable(target)
    )]
    Dangling {
        /// The entry's path.
        path: Vec<u8>,
        /// What it links to.
        target: Vec<u8>,
    },
    /// The rest of a file that begins in another archive.
    #[error(
        "the tar archive begins with the rest of \"{}\", of which the start is in another volume: \
         unpack all volumes with tar --multi-volume, and import the directory",
        shortened(path)
    )]
    Continued {
        /// The file's path.
        path: Vec<u8>,
    },
    /// Holes of sparse files beyond what may be.
    #[error(
        "the sparse tar entry \"{}\" has holes, which make more than {limit} bytes of zeros in this archive",
        shortened(path)
    )]
    TooSparse {
        /// The entry's path.
        path: Vec<u8>,
        /// Bytes allowed.
        limit: u64,
    },
    /// A device or named pipe.
    #[error(
        "the tar entry \"{}\" is a {kind}, which a castore cannot hold; leave it out, or all such files with --skip-special",
        Printable(path)
    )]
    Special {
        /// The entry's path.
        path: Vec<u8>,
        /// What it is.
        kind: &'static str,
    },
}

use crate::nar::MAX_DEPTH;

/// The start of a path, which may be a megabyte long.
fn shortened(path: &[u8]) -> String {
    match path.get(..300) {
        Some(start) => format!("{}...", Printable(start)),
        None => Printable(path).to_string(),
    }
}
