//! What can go wrong with a tree, and at which path.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{ImageFileError, TreePath};
use crate::castore::{Digest, Printable};
use crate::store::{self, Object};

/// Why something could not be done with a tree.
#[derive(Debug, Error)]
pub enum Error {
    /// The text can be neither a root node's name and path nor a digest.
    #[error("{text} is no NAME[/PATH] and no digest: {why}")]
    Target {
        /// The text, printable.
        text: String,
        /// The rule it breaks.
        why: String,
    },
    /// There is no root node of that name.
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
        /// The path that was looked for.
        path: TreePath,
    },
    /// The path goes on below something that is no directory.
    #[error("{path} is a {kind}, nothing is below it{hint}")]
    NotADirectory {
        /// The path of that something.
        path: TreePath,
        /// What it is.
        kind: &'static str,
        /// What to do, for a symbolic link: where it points.
        hint: String,
    },
    /// What a node refers to is not in the store.
    #[error("{path}: {store} does not have the {object} {digest}")]
    Absent {
        /// Where the node stands.
        path: TreePath,
        /// The store's URL.
        store: String,
        /// What kind of object.
        object: Object,
        /// Its digest.
        digest: Digest,
    },
    /// The store failed, or has the object damaged.
    #[error("{path}: {source}")]
    Object {
        /// Where the node stands.
        path: TreePath,
        /// What the store said.
        source: store::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// There is no image, or it cannot be read.
    #[error(transparent)]
    Image(#[from] ImageFileError),
    /// The place to export to is taken.
    #[error("{} exists already; export writes only to a path where there is nothing", Printable::path(.0))]
    Exists(PathBuf),
    /// The directory to export to is not there.
    #[error("the directory {} does not exist; make it first", Printable::path(.0))]
    NoFolder(PathBuf),
    /// An operation on a file outside failed.
    #[error("cannot {action} {}: {source}", Printable::path(path))]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is written to does not take it.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What to know of a store that was asked for a digest in vain.
fn how_found(store: &str) -> &'static str {
    // Its layout keeps whole closures, each under the digest of its root.
    match store.contains("objectstore+") {
        true => "; in an object store a directory inside a tree is found as NAME/PATH only",
        false => "",
    }
}

impl Error {
    /// Puts the path to what a store said of the object there.
    pub(super) fn at(path: &TreePath) -> impl FnOnce(store::Error) -> Error + '_ {
        move |source| Error::Object {
            path: path.clone(),
            source,
        }
    }
}
