//! Root nodes as bytes of the ledger.

use crate::castore::{Digest, Name, Node, Root, SymlinkTarget};

/// Name, kind, and what the kind has: digest and size, and a target for symlinks.
pub(super) fn encode_root(root: &Root) -> Vec<u8> {
    let mut bytes = vec![root.name.as_bytes().len() as u8];
    bytes.extend_from_slice(root.name.as_bytes());
    let (kind, digest, size) = match &root.node {
        Node::Directory { digest, size } => (0, digest, size),
        Node::File {
            digest,
            size,
            executable,
        } => (1 + u8::from(*executable), digest, size),
        Node::Symlink { target } => {
            bytes.push(3);
            bytes.extend_from_slice(target);
            return bytes;
        }
    };
    bytes.push(kind);
    bytes.extend_from_slice(digest.as_bytes());
    bytes.extend_from_slice(&size.to_ne_bytes());
    bytes
}

/// The first entry of `bytes`, which starts with its length.
pub(super) fn take_entry<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (entry, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
    *bytes = rest;
    Some(entry)
}

/// What [`encode_root`] wrote; nothing if it was not that.
pub(super) fn decode_root(entry: &[u8]) -> Option<Root> {
    let (length, rest) = entry.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let (kind, rest) = rest.split_first()?;
    let name = Name::new(name).ok()?;
    if *kind == 3 {
        let target = SymlinkTarget::new(rest).ok()?;
        return Some(Root {
            name,
            node: Node::Symlink { target },
        });
    }
    let (digest, size) = rest.split_first_chunk::<32>()?;
    let (digest, size) = (
        Digest::from(*digest),
        u64::from_ne_bytes(size.try_into().ok()?),
    );
    let node = match kind {
        0 => Node::Directory { digest, size },
        1 | 2 => Node::File {
            digest,
            size,
            executable: *kind == 2,
        },
        _ => return None,
    };
    Some(Root { name, node })
}
