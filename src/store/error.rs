//! The errors of stores.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::shown_url::shown_url;
use crate::castore::{Digest, DirectoryError, GroupTableError};

/// The kinds of object that a digest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// The contents of a file.
    Blob,
    /// A Directory message.
    Directory,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Object::Blob => "blob",
            Object::Directory => "directory",
        })
    }
}

/// How an object differs from what its digest promises.
#[derive(Clone, Debug, Error)]
pub enum Damage {
    /// The bytes, or those of the group at `offset`, hash to something else.
    #[error("its bytes at {offset} do not match the digest")]
    WrongBytes {
        /// Where the bytes that were checked start.
        offset: u64,
    },
    /// Fewer bytes than expected.
    #[error("it has {actual} bytes instead of {expected}")]
    WrongSize {
        /// Bytes that the node, or the store's index, states.
        expected: u64,
        /// Bytes found.
        actual: u64,
    },
    /// The hashes of the groups are not the blob's.
    #[error("its group hashes: {0}")]
    Groups(#[from] GroupTableError),
    /// Not a Directory.
    #[error("{0}")]
    Directory(#[from] DirectoryError),
    /// Its chunks, each of which was right, combined to another blob.
    #[error("its chunks combined to another blob before, so it is in quarantine")]
    Quarantined,
    /// A file that the store's index refers to is missing.
    #[error("its file {} is gone", .0.display())]
    Gone(PathBuf),
}

/// Why a store could not answer, or did not accept an addition.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The text is not a store URL, or names an unknown kind of store. Shown without secrets.
    #[error("{:?} is no store URL: {why}", shown_url(url))]
    Url {
        /// The text.
        url: String,
        /// What is wrong, and a correct form.
        why: String,
    },
    /// The URL is right, and what it names cannot be used: a file of a certificate, say. Shown without secrets.
    #[error("cannot open {}: {why}", shown_url(url))]
    NotOpened {
        /// The URL.
        url: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// An object is present but does not match its digest.
    #[error(
        "{store}: {object} {digest} is damaged: {damage}{}",
        repair_hint(store, " --from URL")
    )]
    Damaged {
        /// The store's URL.
        store: String,
        /// What kind of object.
        object: Object,
        /// Its digest.
        digest: Digest,
        /// The difference.
        damage: Box<Damage>,
    },
    /// An operation on a file failed.
    #[error("{store}: cannot {action} {}: {source}", path.display())]
    Io {
        /// The store's URL.
        store: String,
        /// The action: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The store's database failed.
    #[error("{store}: the index {}: {source}{}", path.display(), repair_hint(store, ""))]
    Index {
        /// The store's URL.
        store: String,
        /// The database file.
        path: PathBuf,
        /// The error of the database.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The data were written by an unsupported version of this program.
    #[error("{store}: {why}")]
    Format {
        /// The store's URL.
        store: String,
        /// What was found, and what to do.
        why: String,
    },
    /// The store cannot be written to.
    #[error("{store} cannot be written to: {why}")]
    ReadOnly {
        /// The store's URL.
        store: String,
        /// Why.
        why: String,
    },
    /// The store holds as much as it may.
    #[error("{store} is full: {why}")]
    Full {
        /// The store's URL.
        store: String,
        /// How much that is, and what to do.
        why: String,
    },
    /// The input of an addition is wrong or incomplete.
    #[error("{store} refuses {what}: {why}")]
    Refused {
        /// The store's URL.
        store: String,
        /// The object.
        what: String,
        /// Why.
        why: String,
    },
    /// The store answers questions for roots by name, and cannot list them.
    #[error(
        "{store} does not list its roots ({why}); name those that you want, it answers for them"
    )]
    Unlisted {
        /// The store's URL.
        store: String,
        /// Its message about that.
        why: String,
    },
    /// A root node that was to be added has a name that another has.
    #[error("{store}: {why}")]
    NameTaken {
        /// The store's URL.
        store: String,
        /// Which nodes these are.
        why: String,
    },
    /// No answer in time.
    #[error("{store} did not answer within {after:?}")]
    Timeout {
        /// The store's URL.
        store: String,
        /// The deadline.
        after: Duration,
    },
    /// Some of several stores do not have it, and others, which might, failed.
    #[error("{store}: {request} failed, since some members did not answer: {why}")]
    Undecided {
        /// The URL of the composed store.
        store: String,
        /// The request.
        request: String,
        /// Why the others failed.
        why: String,
        /// Whether they all failed by a missed deadline.
        late: bool,
    },
    /// An endpoint could not be reached, or answered with an error.
    #[error("{store}: {request} failed: {why}")]
    Remote {
        /// The store's URL.
        store: String,
        /// The request.
        request: String,
        /// The error that came back.
        why: String,
    },
}

/// The command that repairs a damaged store; nothing for stores that it cannot repair.
fn repair_hint(store: &str, options: &str) -> String {
    match store.starts_with("local:") {
        true => format!("; `castore-fs verify --repair{options} --store {store}` repairs it"),
        false => String::new(),
    }
}

impl Error {
    /// The missed deadline, if that is the error.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Error::Timeout { after, .. } => Some(*after),
            _ => None,
        }
    }
}
