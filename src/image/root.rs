//! What an image shows.

use crate::castore::{Digest, Directory, DirectoryError, Name, Node, Root};

/// What the root of an image shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRoot {
    /// The Directory of this digest.
    Directory(Digest),
    /// Named roots: their Directory, as [`ImageRoot::roots`] makes it.
    Roots(Directory),
}

impl ImageRoot {
    /// A root that lists `roots` by name, in any order.
    ///
    /// Fails if two have the same name.
    pub fn roots(roots: &[Root]) -> Result<Self, DirectoryError> {
        let entry = |root: &Root| -> (Name, Node) {
            let node = match &root.node {
                // The size of a directory is not shown, and is not part of a root's identity here.
                Node::Directory { digest, .. } => Node::Directory {
                    digest: *digest,
                    size: 0,
                },
                other => other.clone(),
            };
            (root.name.clone(), node)
        };
        Directory::from_entries(roots.iter().map(entry).collect()).map(Self::Roots)
    }

    /// The digest of the Directory at the root. Images of equal digest and version are equal.
    pub fn digest(&self) -> Digest {
        match self {
            ImageRoot::Directory(digest) => *digest,
            ImageRoot::Roots(directory) => directory.digest(),
        }
    }
}
