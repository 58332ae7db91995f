//! Nodes: the values of names.

use bytes::Bytes;
use thiserror::Error;

use super::{Digest, DigestError, Name, NameError, SymlinkTarget};
use crate::proto::castore::v1 as proto;

/// The value of a name: an entry of a Directory, or a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory, by the digest of its Directory message.
    Directory {
        /// Digest of the Directory's canonical encoding.
        digest: Digest,
        /// See [`Directory::size`](super::Directory::size). Advisory when read.
        size: u64,
    },
    /// A regular file, by the digest of its contents.
    File {
        /// Digest of the contents.
        digest: Digest,
        /// Bytes.
        size: u64,
        /// Whether the file can be executed.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: SymlinkTarget,
    },
}

/// A [`Node`] borrowed from the Directory that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRef<'a> {
    /// See [`Node::Directory`].
    Directory {
        /// Digest of the Directory's canonical encoding.
        digest: Digest,
        /// Advisory.
        size: u64,
    },
    /// See [`Node::File`].
    File {
        /// Digest of the contents.
        digest: Digest,
        /// Bytes.
        size: u64,
        /// Whether the file can be executed.
        executable: bool,
    },
    /// See [`Node::Symlink`].
    Symlink {
        /// Where it points.
        target: &'a [u8],
    },
}

/// A root: a named node at the top of a store, and what a mount shows in its root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The name; for Nix a store path's base name.
    pub name: Name,
    /// Its node.
    pub node: Node,
}

/// A protobuf `Entry` that is not a valid named node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// The `oneof` is not set.
    #[error("the entry holds no node")]
    Empty,
    /// The digest has the wrong length.
    #[error("the entry's digest: {0}")]
    Digest(#[from] DigestError),
    /// The name or the symlink target breaks the rules.
    #[error("the entry's name or target: {0}")]
    Name(#[from] NameError),
}

impl Node {
    /// This node, borrowed.
    pub fn borrow(&self) -> NodeRef<'_> {
        match self {
            Node::Directory { digest, size } => NodeRef::Directory {
                digest: *digest,
                size: *size,
            },
            Node::File {
                digest,
                size,
                executable,
            } => NodeRef::File {
                digest: *digest,
                size: *size,
                executable: *executable,
            },
            Node::Symlink { target } => NodeRef::Symlink { target },
        }
    }

    /// The digest of the contents; a symlink has none.
    pub fn digest(&self) -> Option<Digest> {
        self.borrow().digest()
    }

    /// How many names it and what is below it have, as it states: a claim, for the progress of work.
    pub fn stated_names(&self) -> u64 {
        match self {
            // Twice the number of names below it.
            Node::Directory { size, .. } => 1 + size / 2,
            Node::File { .. } | Node::Symlink { .. } => 1,
        }
    }
}

impl NodeRef<'_> {
    /// The digest of the contents; a symlink has none.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            NodeRef::Directory { digest, .. } | NodeRef::File { digest, .. } => Some(*digest),
            NodeRef::Symlink { .. } => None,
        }
    }

    /// An owned copy.
    pub fn to_owned(self) -> Result<Node, NameError> {
        Ok(match self {
            NodeRef::Directory { digest, size } => Node::Directory { digest, size },
            NodeRef::File {
                digest,
                size,
                executable,
            } => Node::File {
                digest,
                size,
                executable,
            },
            NodeRef::Symlink { target } => Node::Symlink {
                target: SymlinkTarget::new(target)?,
            },
        })
    }
}

impl From<&Root> for proto::Entry {
    fn from(root: &Root) -> Self {
        entry(root.name.to_vec().into(), &root.node)
    }
}

impl proto::Entry {
    /// `node` without a name, as servers of the field take it where the name does not matter.
    pub fn anonymous(node: &Node) -> Self {
        entry(Bytes::new(), node)
    }
}

fn entry(name: Bytes, node: &Node) -> proto::Entry {
    let entry = match node {
        Node::Directory { digest, size } => proto::entry::Entry::Directory(proto::DirectoryEntry {
            name,
            digest: digest.as_bytes().to_vec().into(),
            size: *size,
        }),
        Node::File {
            digest,
            size,
            executable,
        } => proto::entry::Entry::File(proto::FileEntry {
            name,
            digest: digest.as_bytes().to_vec().into(),
            size: *size,
            executable: *executable,
        }),
        Node::Symlink { target } => proto::entry::Entry::Symlink(proto::SymlinkEntry {
            name,
            target: target.to_vec().into(),
        }),
    };
    proto::Entry { entry: Some(entry) }
}

impl TryFrom<proto::Entry> for Root {
    type Error = NodeError;

    fn try_from(entry: proto::Entry) -> Result<Self, NodeError> {
        let (name, node) = match entry.entry.ok_or(NodeError::Empty)? {
            proto::entry::Entry::Directory(entry) => (
                entry.name,
                Node::Directory {
                    digest: Digest::try_from(&entry.digest[..])?,
                    size: entry.size,
                },
            ),
            proto::entry::Entry::File(entry) => (
                entry.name,
                Node::File {
                    digest: Digest::try_from(&entry.digest[..])?,
                    size: entry.size,
                    executable: entry.executable,
                },
            ),
            proto::entry::Entry::Symlink(entry) => (
                entry.name,
                Node::Symlink {
                    target: SymlinkTarget::new(&entry.target)?,
                },
            ),
        };
        Ok(Root {
            name: Name::new(&name)?,
            node,
        })
    }
}
