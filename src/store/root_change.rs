//! The changes of roots in an addition, applied at its commit.

use crate::castore::{Name, Root};
use crate::nix::PathInfo;
use crate::store::Error;

/// A change of a root.
#[derive(Clone, Debug)]
pub(super) enum RootChange {
    /// Its new value.
    Put(Root, Option<Box<PathInfo>>),
    /// It is removed, if it exists.
    Remove(Name),
}

impl RootChange {
    /// As [`Ingest::put_root`](super::Ingest::put_root).
    pub(super) fn put(root: &Root, path_info: Option<&PathInfo>) -> Self {
        Self::Put(root.clone(), path_info.cloned().map(Box::new))
    }

    /// As [`Ingest::remove_root`](super::Ingest::remove_root).
    pub(super) fn remove(name: &Name) -> Self {
        Self::Remove(name.clone())
    }

    /// Why the store `url` does not accept `root` before its content.
    pub(super) fn needs_content(url: &str, root: &Root) -> Error {
        Error::Refused {
            store: url.to_owned(),
            what: format!("root node \"{}\" before its content", root.name),
            why: "only embedded stores (local:) wait for the content of a root".to_owned(),
        }
    }
}
