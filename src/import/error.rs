//! Why an import failed.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::tar;
use crate::castore::{DirectoryError, NameError, Printable};
use crate::nix::{NarMismatch, StorePathError};
use crate::{nar, store, tree};

/// Why an import failed. A failed import leaves nothing in the store.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A system call on a file that was to be imported failed.
    #[error("cannot {action} {}: {source}", Printable::path(path))]
    Io {
        /// The action: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file was replaced while it was read.
    #[error(
        "{} changed while it was read; import again once nothing writes to it",
        Printable::path(path)
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that a castore cannot hold.
    #[error(
        "{} is a {kind}, which a castore cannot hold; leave it out, or all such files with --skip-special",
        Printable::path(path)
    )]
    Special {
        /// The file.
        path: PathBuf,
        /// Its kind.
        kind: &'static str,
    },
    /// A file that gives what happens in the system, or more than can ever be there.
    #[error(
        "{} has no end: it is no file with contents that could be kept; leave it out",
        Printable::path(path)
    )]
    Endless {
        /// The file.
        path: PathBuf,
    },
    /// A name or symlink target that breaks the castore's rules.
    #[error("{}: {source}", Printable::path(path))]
    Name {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        source: NameError,
    },
    /// The entries of a directory make no valid Directory.
    #[error("one of the directories cannot be kept: {0}")]
    Directory(#[from] DirectoryError),
    /// The input is not a NAR.
    #[error(transparent)]
    Nar(#[from] nar::NarError),
    /// The input is not a tar archive, or holds something that cannot be imported.
    #[error(transparent)]
    Tar(#[from] tar::TarError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The NAR of what was imported could not be rendered.
    #[error("cannot hash the imported tree as a NAR: {0}")]
    NarHash(#[from] tree::TreeError),
    /// The path is not the one that a reference graph describes.
    #[error(transparent)]
    NarMismatch(#[from] NarMismatch),
    /// The name cannot be that of a Nix store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// [`Progress::cancel`](super::ImportProgress::cancel) was called.
    #[error("the import was cancelled")]
    Cancelled,
}

impl ImportError {
    /// A failure of `action` on `path`.
    pub(super) fn io(action: &'static str, path: PathBuf, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}
