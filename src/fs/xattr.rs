//! Extended attributes: the digest of a node, under our name and the peers'.

use std::io;

use super::CastoreFs;
use super::errno::failure;
use super::node_id::{NodeId, NodePlace};
use crate::castore::{Digest, Node};

/// The attributes of a file.
const OF_BLOB: [&str; 3] = [
    "user.castore.digest",
    "user.snix.castore.blob.digest",
    "user.tvix.castore.blob.digest",
];
/// The attributes of a directory.
const OF_DIRECTORY: [&str; 3] = [
    "user.castore.digest",
    "user.snix.castore.directory.digest",
    "user.tvix.castore.directory.digest",
];

impl CastoreFs {
    /// The names of the attributes of `id`, each ended by NUL.
    pub(super) fn xattr_names(&self, id: NodeId) -> io::Result<Vec<u8>> {
        let names = match self.xattrs(id)? {
            Some((names, _)) => names.as_slice(),
            None => &[],
        };
        Ok(names
            .iter()
            .flat_map(|name| name.bytes().chain([0]))
            .collect())
    }

    /// The value of the attribute `name` of `id`.
    pub(super) fn xattr(&self, id: NodeId, name: &[u8]) -> io::Result<Vec<u8>> {
        match self.xattrs(id)? {
            Some((names, digest)) if names.iter().any(|known| known.as_bytes() == name) => {
                Ok(digest.to_string().into_bytes())
            }
            _ => Err(failure(libc::ENODATA)),
        }
    }

    fn xattrs(&self, id: NodeId) -> io::Result<Option<(&'static [&'static str; 3], Digest)>> {
        if !self.options.xattr {
            // ENOSYS: the kernel never asks again.
            return Err(failure(libc::ENOSYS));
        }
        if self.image_path(id).is_some() {
            return Ok(None);
        }
        match id.place().ok_or(failure(libc::ESTALE))? {
            NodePlace::Directory(0) if self.shows_roots() => Ok(None),
            NodePlace::Directory(slot) => {
                let slot = self.enter(slot)?.slot;
                let node = self.nodes.directory(slot).ok_or(failure(libc::ESTALE))?;
                Ok(Some((&OF_DIRECTORY, node.digest)))
            }
            NodePlace::Entry { slot, index } => Ok(match self.entry(slot, index)?.node {
                Node::File { digest, .. } => Some((&OF_BLOB, digest)),
                Node::Directory { .. } | Node::Symlink { .. } => None,
            }),
        }
    }
}
