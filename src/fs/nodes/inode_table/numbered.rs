//! Inode numbers that cannot be recomputed, as bytes of the persisted inode table.

use crate::castore::{Digest, Directory, Name, Node, Root, SymlinkTarget};
use crate::image::ImageRoot;

/// The numbers of a directory's entries and of what is below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameRange {
    /// The number of the first entry.
    pub first: u64,
    /// Whether the numbers after the entries belong to what is below the subdirectories.
    pub nested: bool,
}

impl NameRange {
    /// The number of the entry at `index`.
    pub(crate) fn ino(&self, index: u32) -> u64 {
        self.first + u64::from(index)
    }

    /// The first number for the names below the entry at `index` of `directory`, whose range this is; 0
    /// if none was set aside.
    pub(crate) fn claim(&self, directory: &Directory, index: u32) -> u64 {
        match self.nested {
            true => {
                let before = directory.names_below_those_before(index as usize);
                self.first + directory.len() as u64 + before
            }
            false => 0,
        }
    }
}

/// Kinds of entries: their first byte.
const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const PROGRAM: u8 = 2;
const SYMLINK: u8 = 3;
const RANGE: u8 = 4;
const IMAGE: u8 = 5;
const IMAGE_OF_ROOTS: u8 = 6;

/// An inode number that cannot be recomputed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::fs) enum AssignedNumber {
    /// A root.
    Root {
        /// Its number.
        ino: u64,
        /// The node.
        root: Root,
    },
    /// What is in a directory.
    Range {
        /// The directory's number.
        ino: u64,
        /// The numbers of its entries.
        range: NameRange,
        /// How many numbers the range has.
        length: u64,
    },
    /// An image, whose index is the number of those before it.
    Image {
        /// Its number.
        ino: u64,
        /// The name under which it was found, without the ending; none for that of a root node, whose
        /// number follows from the root's.
        name: Option<Name>,
        /// What it shows.
        mount_root: ImageRoot,
    },
}

impl AssignedNumber {
    /// Kind and number; then an image's name and what it shows, a range's first number, length and
    /// whether it is nested, or a root's
    /// name and what its kind has: digest and size, or a target.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (ino, root) = match self {
            Self::Image {
                ino,
                name,
                mount_root,
            } => {
                let (kind, shown) = match mount_root {
                    ImageRoot::Directory(digest) => (IMAGE, digest.as_bytes().as_slice()),
                    ImageRoot::Roots(directory) => (IMAGE_OF_ROOTS, directory.as_bytes()),
                };
                let mut bytes = vec![kind];
                bytes.extend_from_slice(&ino.to_ne_bytes());
                let name = name.as_ref().map_or(&[] as &[u8], |name| name.as_bytes());
                bytes.push(name.len() as u8);
                bytes.extend_from_slice(name);
                bytes.extend_from_slice(shown);
                return bytes;
            }
            Self::Range { ino, range, length } => {
                let mut bytes = vec![RANGE];
                for number in [*ino, range.first, *length] {
                    bytes.extend_from_slice(&number.to_ne_bytes());
                }
                bytes.push(u8::from(range.nested));
                return bytes;
            }
            Self::Root { ino, root } => (ino, root),
        };
        let (kind, digest, size) = match &root.node {
            Node::Directory { digest, size } => (DIRECTORY, Some(digest), size),
            Node::File {
                digest,
                size,
                executable: false,
            } => (FILE, Some(digest), size),
            Node::File { digest, size, .. } => (PROGRAM, Some(digest), size),
            Node::Symlink { .. } => (SYMLINK, None, &0),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&ino.to_ne_bytes());
        bytes.push(root.name.as_bytes().len() as u8);
        bytes.extend_from_slice(root.name.as_bytes());
        if let Node::Symlink { target } = &root.node {
            bytes.extend_from_slice(target);
        }
        if let Some(digest) = digest {
            bytes.extend_from_slice(digest.as_bytes());
            bytes.extend_from_slice(&size.to_ne_bytes());
        }
        bytes
    }

    /// Decodes what [`encode`](Self::encode) wrote; nothing for other bytes.
    pub(super) fn decode(entry: &[u8]) -> Option<Self> {
        let (kind, mut rest) = entry.split_first()?;
        let ino = take_number(&mut rest)?;
        if *kind == RANGE {
            let (first, length) = (take_number(&mut rest)?, take_number(&mut rest)?);
            let nested = match rest {
                [0] => false,
                [1] => true,
                _ => return None,
            };
            let range = NameRange { first, nested };
            return Some(Self::Range { ino, range, length });
        }
        let (length, rest) = rest.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        if let IMAGE | IMAGE_OF_ROOTS = *kind {
            let name = match name {
                b"" => None,
                name => Some(Name::new(name).ok()?),
            };
            let mount_root = match *kind {
                IMAGE => ImageRoot::Directory(Digest::try_from(rest).ok()?),
                _ => ImageRoot::Roots(Directory::decode(rest).ok()?),
            };
            return Some(Self::Image {
                ino,
                name,
                mount_root,
            });
        }
        let name = Name::new(name).ok()?;
        let node = match *kind {
            SYMLINK => Node::Symlink {
                target: SymlinkTarget::new(rest).ok()?,
            },
            kind => {
                let (digest, mut rest) = rest.split_first_chunk::<32>()?;
                let (digest, size) = (Digest::from(*digest), take_number(&mut rest)?);
                match (kind, rest) {
                    (DIRECTORY, []) => Node::Directory { digest, size },
                    (FILE | PROGRAM, []) => Node::File {
                        digest,
                        size,
                        executable: kind == PROGRAM,
                    },
                    _ => return None,
                }
            }
        };
        let root = Root { name, node };
        Some(Self::Root { ino, root })
    }
}

/// The first entry of `bytes`, which starts with its length.
pub(super) fn take_entry<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (entry, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
    *bytes = rest;
    Some(entry)
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_ne_bytes(*number))
}
