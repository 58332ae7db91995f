//! The reference: a plain tree in memory, what a mount of it must look like.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use castore_fs::castore::{Digest, Directory, Name, Node, Root, SymlinkTarget};
use castore_fs::store::{Ingest, Store};

/// A tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    File { bytes: Vec<u8>, executable: bool },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Model>),
}

pub fn file(bytes: impl Into<Vec<u8>>) -> Model {
    Model::File {
        bytes: bytes.into(),
        executable: false,
    }
}

pub fn program(bytes: impl Into<Vec<u8>>) -> Model {
    Model::File {
        bytes: bytes.into(),
        executable: true,
    }
}

pub fn symlink(target: &str) -> Model {
    Model::Symlink(target.as_bytes().to_vec())
}

pub fn directory<N: AsRef<[u8]>>(entries: impl IntoIterator<Item = (N, Model)>) -> Model {
    let entries = entries.into_iter();
    Model::Directory(
        entries
            .map(|(name, model)| (name.as_ref().to_vec(), model))
            .collect(),
    )
}

impl Model {
    /// Puts the tree into `ingest`, leaves first.
    pub fn put(&self, ingest: &dyn Ingest) -> Node {
        match self {
            Model::File { bytes, executable } => {
                let digest = Digest::of(bytes);
                ingest.put_blobs(&[(digest, bytes)]).unwrap();
                Node::File {
                    digest,
                    size: bytes.len() as u64,
                    executable: *executable,
                }
            }
            Model::Symlink(target) => Node::Symlink {
                target: SymlinkTarget::new(target).unwrap(),
            },
            Model::Directory(entries) => {
                let entries = entries
                    .iter()
                    .map(|(name, model)| (Name::new(name).unwrap(), model.put(ingest)));
                let directory = Directory::from_entries(entries.collect()).unwrap();
                ingest.put_directory(&directory).unwrap();
                directory.node()
            }
        }
    }

    /// Puts the tree into `store` as the root node `name`.
    pub fn put_root(&self, store: &dyn Store, name: &str) -> Node {
        let ingest = store.ingest().unwrap();
        let node = self.put(&*ingest);
        let root = Root {
            name: Name::new(name.as_bytes()).unwrap(),
            node: node.clone(),
        };
        ingest.put_root(&root, None).unwrap();
        ingest.commit().unwrap();
        node
    }

    /// Fails unless what is at `path` is this tree in every byte, mode, size and link.
    pub fn assert_is_at(&self, path: &Path) {
        let stat = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert_eq!(stat.mtime(), 1, "{path:?}");
        match self {
            Model::File { bytes, executable } => {
                assert!(stat.is_file(), "{path:?}");
                let mode = if *executable { 0o555 } else { 0o444 };
                assert_eq!(stat.permissions().mode() & 0o7777, mode, "{path:?}");
                assert_eq!(stat.len(), bytes.len() as u64, "{path:?}");
                assert_eq!(stat.blocks(), bytes.len().div_ceil(512) as u64, "{path:?}");
                assert_eq!(stat.nlink(), 1, "{path:?}");
                assert!(fs::read(path).unwrap() == *bytes, "{path:?}: other bytes");
            }
            Model::Symlink(target) => {
                assert!(stat.is_symlink(), "{path:?}");
                assert_eq!(stat.len(), target.len() as u64);
                let actual = fs::read_link(path).unwrap().into_os_string().into_vec();
                assert_eq!(actual, *target, "{path:?}");
            }
            Model::Directory(entries) => {
                assert!(stat.is_dir(), "{path:?}");
                assert_eq!(stat.permissions().mode() & 0o7777, 0o555, "{path:?}");
                let is_directory = |model: &&Model| matches!(model, Model::Directory(_));
                let subdirectories = entries.values().filter(is_directory).count() as u64;
                assert_eq!(stat.nlink(), 2 + subdirectories, "{path:?}");
                let mut listed: Vec<_> = fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_vec())
                    .collect();
                listed.sort();
                let expected: Vec<_> = entries.keys().cloned().collect();
                assert!(listed == expected, "{path:?}: the listing is another");
                for (name, model) in entries {
                    model.assert_is_at(&path.join(OsStr::from_bytes(name)));
                }
            }
        }
    }
}
