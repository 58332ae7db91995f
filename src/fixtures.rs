//! Random plain trees in memory: the model that importers and writers are compared with.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::castore::{Digest, Directory, Name, Node, SymlinkTarget};
use crate::nar::NarWriter;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    Directory(BTreeMap<Name, Tree>),
    File { executable: bool, bytes: Vec<u8> },
    Symlink(SymlinkTarget),
}

impl Tree {
    /// The castore node of this tree.
    pub(crate) fn node(&self) -> Node {
        match self {
            Tree::Directory(entries) => {
                let entries = entries
                    .iter()
                    .map(|(name, tree)| (name.clone(), tree.node()));
                Directory::from_entries(entries.collect()).unwrap().node()
            }
            Tree::File { executable, bytes } => Node::File {
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
                executable: *executable,
            },
            Tree::Symlink(target) => Node::Symlink {
                target: target.clone(),
            },
        }
    }

    /// This tree as a NAR.
    pub(crate) fn nar(&self) -> Vec<u8> {
        let mut writer = NarWriter::new(Vec::new());
        self.write(None, &mut writer);
        writer.finish().unwrap()
    }

    fn write(&self, name: Option<&[u8]>, writer: &mut NarWriter<Vec<u8>>) {
        match self {
            Tree::Directory(entries) => {
                writer.directory(name).unwrap();
                for (name, tree) in entries {
                    tree.write(Some(name), writer);
                }
                writer.end_directory().unwrap();
            }
            Tree::File { executable, bytes } => {
                let size = bytes.len() as u64;
                writer.file(name, *executable, size).unwrap();
                for part in bytes.chunks(7) {
                    writer.contents(part).unwrap();
                }
            }
            Tree::Symlink(target) => writer.symlink(name, target).unwrap(),
        }
    }

    /// Makes this tree on disk, at `path`.
    pub(crate) fn unpack(&self, path: &Path) {
        match self {
            Tree::Directory(entries) => {
                fs::create_dir(path).unwrap();
                for (name, tree) in entries {
                    tree.unpack(&path.join(OsStr::from_bytes(name)));
                }
            }
            Tree::File { executable, bytes } => {
                fs::write(path, bytes).unwrap();
                let mode = if *executable { 0o744 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            Tree::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        }
    }
}

fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof![
        // Few enough that names share prefixes and sort in surprising ways.
        "[ab.~ \n]{1,3}".prop_map(String::into_bytes),
        vec(any::<u8>(), 1..8),
        Just(vec![b'n'; 255]),
    ]
    .prop_filter_map("a legal name", |bytes| Name::new(&bytes).ok())
}

fn any_leaf() -> impl Strategy<Value = Tree> {
    prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..40))
            .prop_map(|(executable, bytes)| Tree::File { executable, bytes }),
        vec(1..=255u8, 1..20)
            .prop_map(|target| Tree::Symlink(SymlinkTarget::new(&target).unwrap())),
        Just(Tree::Directory(BTreeMap::new())),
    ]
}

/// Any small tree; its root may be a file or a symlink.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    any_leaf().prop_recursive(4, 24, 6, |inner| {
        btree_map(any_name(), inner, 0..6).prop_map(Tree::Directory)
    })
}
