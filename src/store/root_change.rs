//! What an addition does to root nodes once it is committed.

use crate::castore::{Name, Root};
use crate::nix::PathInfo;
use crate::store::Error;

/// What becomes of a root node.
#[derive(Clone, Debug)]
pub(super) enum RootChange {
    /// It is this from now on.
    Put(Root, Option<Box<PathInfo>>),
    /// It goes, if it is there.
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

    /// Why the store `url` does not take `root` before its content.
    pub(super) fn needs_content(url: &str, root: &Root) -> Error {
        Error::Refused {
            store: url.to_owned(),
            what: format!("root node \"{}\" before its content", root.name),
            why: "only embedded stores (local:) wait for the content of a root".to_owned(),
        }
    }
}
