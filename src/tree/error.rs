//! Errors of operations on trees, with their paths.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{ImageFileError, TreePath};
use crate::castore::{Digest, Printable};
use crate::nix::NarMismatch;
use crate::store::{self, Object};

/// Why an operation on a tree failed.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The text can be neither a root's name and path nor a digest.
    #[error("{text} is no NAME[/PATH] and no digest: {why}")]
    Target {
        /// The text, printable.
        text: String,
        /// The broken rule.
        why: String,
    },
    /// There is no root of that name.
    #[error("{store} has no root named {name}; `castore-fs ls` lists the names it has")]
    NoRoot {
        /// The store's URL.
        store: String,
        /// The name, printable.
        name: String,
    },
    /// Neither a Directory nor a blob has that digest.
    #[error("{store} has neither a directory nor a blob {digest}{}", how_found(.store))]
    NoObject {
        /// The store's URL.
        store: String,
        /// The digest.
        digest: Digest,
    },
    /// A directory has no entry of that name.
    #[error("{path} does not exist")]
    NoEntry {
        /// The requested path.
        path: TreePath,
    },
    /// The path continues below something that is not a directory.
    #[error("{path} is a {kind}, nothing is below it{hint}")]
    NotADirectory {
        /// The path of that something.
        path: TreePath,
        /// Its kind.
        kind: &'static str,
        /// A hint, for a symbolic link: its target.
        hint: String,
    },
    /// What is to be a mount root is no directory.
    #[error(
        "{path} is not a directory, and only a directory can be a mount root; a mount of all roots shows it by \
         its name"
    )]
    NoMountRoot {
        /// Its path.
        path: TreePath,
    },
    /// An object that a node refers to is not in the store.
    #[error("{path}: {store} does not have the {object} {digest}")]
    Absent {
        /// The path of the node.
        path: TreePath,
        /// The store's URL.
        store: String,
        /// What kind of object.
        object: Object,
        /// Its digest.
        digest: Digest,
    },
    /// The store failed, or the object is damaged.
    #[error("{path}: {source}")]
    Object {
        /// The path of the node.
        path: TreePath,
        /// The store's error.
        source: store::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The path is not the one that a reference graph describes.
    #[error(transparent)]
    NarMismatch(#[from] NarMismatch),
    /// There is no image, or it cannot be read.
    #[error(transparent)]
    Image(#[from] ImageFileError),
    /// The export's target exists.
    #[error("{} exists already; export writes only to a path where there is nothing", Printable::path(.0))]
    Exists(PathBuf),
    /// The export's parent directory does not exist.
    #[error("the directory {} does not exist; make it first", Printable::path(.0))]
    NoDirectory(PathBuf),
    /// An operation on a local file failed.
    #[error("cannot {action} {}: {source}", Printable::path(path))]
    Io {
        /// The action: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Writing the output failed.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// The operation was stopped.
    #[error("interrupted")]
    Interrupted,
}

/// A hint for a digest that the store did not find.
fn how_found(store: &str) -> &'static str {
    // Its layout stores whole closures, each under the digest of its root.
    match store.contains("objectstore+") {
        true => "; in an object store a directory inside a tree is found as NAME/PATH only",
        false => "",
    }
}

impl TreeError {
    /// Adds the path to a store's error.
    pub(super) fn at(path: &TreePath) -> impl FnOnce(store::Error) -> TreeError + '_ {
        move |source| TreeError::Object {
            path: path.clone(),
            source,
        }
    }
}
