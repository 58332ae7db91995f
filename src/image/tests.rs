use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::castore::{Name, Node, Root, SymlinkTarget};
use crate::fixtures::{Tree, any_tree};

/// Directories and blobs by their digests.
#[derive(Default)]
struct TestObjects {
    directories: HashMap<Digest, Directory>,
    blobs: HashMap<Digest, Vec<u8>>,
    asked: RefCell<usize>,
}

impl DirectorySource for TestObjects {
    type Error = Infallible;

    fn directory(&self, digest: &Digest) -> Result<Directory, Infallible> {
        *self.asked.borrow_mut() += 1;
        Ok(self.directories[digest].clone())
    }

    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, Infallible> {
        digests
            .iter()
            .map(|digest| self.directory(digest))
            .collect()
    }
}

impl TestObjects {
    fn of(tree: &Tree) -> Self {
        let mut objects = Self::default();
        objects.add(tree);
        objects
    }

    fn add(&mut self, tree: &Tree) {
        match tree {
            Tree::Directory(entries) => {
                for tree in entries.values() {
                    self.add(tree);
                }
                let entries = entries
                    .iter()
                    .map(|(name, tree)| (name.clone(), tree.node()));
                self.directory_of(entries.collect());
            }
            Tree::File { bytes, .. } => {
                self.blobs.insert(Digest::of(bytes), bytes.clone());
            }
            Tree::Symlink(_) => {}
        }
    }

    /// Adds the Directory of `entries`; gives its node.
    fn directory_of(&mut self, entries: Vec<(Name, Node)>) -> Node {
        let directory = Directory::from_entries(entries).unwrap();
        let node = directory.node();
        self.directories.insert(directory.digest(), directory);
        node
    }

    fn layout(&self, node: &Node) -> Result<ImageLayout, ImageError<Infallible>> {
        let image_root = ImageRoot::Directory(node.digest().unwrap());
        ImageLayout::new(image_root, ImageVersion::V1, self)
    }

    /// `length` bytes of the image at `offset`.
    fn bytes(&self, layout: &ImageLayout, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            let extent = layout.extent_at(at, self).unwrap().expect("the image ends");
            let rest = (length - bytes.len()) as u64;
            let part = extent.length().min(rest) as usize;
            let done = bytes.len();
            bytes.resize(done + part, 0);
            match extent {
                ImageExtent::Metadata(_) => {
                    layout.read_metadata(at, &mut bytes[done..], self).unwrap();
                }
                ImageExtent::Zeros(_) => {}
                ImageExtent::Blob { digest, offset, .. } => {
                    let blob = &self.blobs[&digest][offset as usize..][..part];
                    bytes[done..].copy_from_slice(blob);
                }
            }
        }
        bytes
    }

    fn whole(&self, layout: &ImageLayout) -> Vec<u8> {
        self.bytes(layout, 0, layout.size() as usize)
    }

    /// Reads the image piece by piece.
    fn reader<'a>(
        &'a self,
        layout: &'a ImageLayout,
    ) -> ErofsReader<impl Fn(u64, &mut [u8]) -> Result<(), String> + 'a> {
        ErofsReader::new(move |at, buffer: &mut [u8]| {
            if at + buffer.len() as u64 > layout.size() {
                return Err("beyond the end".to_owned());
            }
            buffer.copy_from_slice(&self.bytes(layout, at, buffer.len()));
            Ok(())
        })
        .unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn file(bytes: &[u8]) -> Node {
    Node::File {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        executable: false,
    }
}

fn symlink(length: usize) -> Node {
    Node::Symlink {
        target: SymlinkTarget::new(&vec![b't'; length]).unwrap(),
    }
}

fn slice_reader(image: &[u8]) -> ErofsReader<impl Fn(u64, &mut [u8]) -> Result<(), String> + '_> {
    ErofsReader::new(move |at, buffer: &mut [u8]| {
        let bytes = usize::try_from(at)
            .ok()
            .and_then(|at| image.get(at..at.checked_add(buffer.len())?));
        buffer.copy_from_slice(bytes.ok_or("beyond the end")?);
        Ok(())
    })
    .unwrap()
}

/// Fails unless `inode` shows `tree`, whose parent is `parent`. Collects the slots of inodes.
fn assert_shows<R: Fn(u64, &mut [u8]) -> Result<(), String>>(
    reader: &ErofsReader<R>,
    inode: &ErofsInode,
    parent: u64,
    tree: &Tree,
    nids: &mut Vec<u64>,
) {
    nids.push(inode.nid);
    assert_eq!(inode.mtime, 1);
    assert_eq!(u64::from(inode.ino), inode.nid);
    match tree {
        Tree::File { bytes, executable } => {
            let permissions = if *executable { 0o555 } else { 0o444 };
            assert_eq!(
                (inode.kind, inode.permissions, inode.links),
                (ErofsKind::File, permissions, 1)
            );
            let mut content = vec![0; bytes.len() + 1];
            let length = reader.read(inode, 0, &mut content).unwrap();
            assert_eq!(
                (&content[..length], inode.size),
                (&bytes[..], bytes.len() as u64)
            );
        }
        Tree::Symlink(target) => {
            assert_eq!((inode.kind, inode.permissions), (ErofsKind::Symlink, 0o777));
            let mut content = vec![0; 5000];
            let length = reader.read(inode, 0, &mut content).unwrap();
            assert_eq!(content[..length], **target);
        }
        Tree::Directory(entries) => {
            assert_eq!(
                (inode.kind, inode.permissions),
                (ErofsKind::Directory, 0o555)
            );
            let is_directory = |tree: &&Tree| matches!(tree, Tree::Directory(_));
            let subdirectories = entries.values().filter(is_directory).count() as u32;
            assert_eq!(inode.links, 2 + subdirectories);
            let listed = reader.list(inode).unwrap();
            assert_eq!(listed.len(), entries.len() + 2);
            let mut expected = entries.iter();
            for entry in listed {
                let found = reader.find(inode, &entry.name).unwrap();
                assert_eq!(found.as_ref(), Some(&entry));
                match entry.name.as_slice() {
                    b"." => assert_eq!(entry.nid, inode.nid),
                    b".." => assert_eq!(entry.nid, parent),
                    name => {
                        let (expected, tree) = expected.next().unwrap();
                        assert_eq!(name, &expected[..]);
                        let child = reader.inode(entry.nid).unwrap();
                        assert_eq!(child.kind, entry.kind);
                        assert_shows(reader, &child, inode.nid, tree, nids);
                    }
                }
            }
            assert_eq!(reader.find(inode, b"no such name").unwrap(), None);
        }
    }
}

proptest! {
    #[test]
    fn an_image_shows_the_tree_that_it_is_made_of(trees in prop::collection::btree_map(
        "[a-c.!]{1,3}".prop_filter_map("a name", |text| Name::new(text.as_bytes()).ok()),
        any_tree(),
        0..4,
    )) {
        let tree = Tree::Directory(trees);
        let objects = TestObjects::of(&tree);
        let layout = objects.layout(&tree.node()).unwrap();
        let image = objects.whole(&layout);
        let reader = slice_reader(&image);
        let root = reader.root().unwrap();
        let mut nids = Vec::new();
        assert_shows(&reader, &root, root.nid, &tree, &mut nids);
        prop_assert_eq!(nids.len() as u64, reader.inodes());
        nids.sort_unstable();
        nids.dedup();
        prop_assert_eq!(nids.len() as u64, layout.paths(), "two paths share an inode");
        prop_assert_eq!(layout.size() % IMAGE_ALIGNMENT, 0);
    }

    #[test]
    fn a_range_is_the_same_however_it_is_read(
        tree in any_tree(),
        ranges in prop::collection::vec((0usize..40_000, 1usize..9000), 8),
    ) {
        let tree = Tree::Directory(BTreeMap::from([(name("top"), tree.clone()), (name("x"), tree)]));
        let objects = TestObjects::of(&tree);
        let layout = objects.layout(&tree.node()).unwrap();
        let image = objects.whole(&layout);
        for (at, length) in ranges {
            let at = at % image.len();
            let length = length.min(image.len() - at);
            prop_assert_eq!(&objects.bytes(&layout, at as u64, length), &image[at..at + length]);
        }
    }
}

/// A tree with one of every kind.
fn golden_tree() -> Tree {
    let file = |executable, bytes: &[u8]| Tree::File {
        executable,
        bytes: bytes.to_vec(),
    };
    let link = |length| Tree::Symlink(SymlinkTarget::new(&vec![b't'; length]).unwrap());
    let large = (0..700).map(|n| {
        let tree = match n % 3 {
            0 => link(n + 1),
            1 => file(n % 2 == 0, &vec![n as u8; n * 17]),
            _ => Tree::Directory(BTreeMap::from([(name("in"), file(false, b"same"))])),
        };
        (name(&format!("entry {n}")), tree)
    });
    let entries = [
        (name("!before the dots"), file(true, b"#!/bin/sh\n")),
        (name(".-between"), link(4095)),
        (name("empty"), file(false, b"")),
        (name("large"), Tree::Directory(large.collect())),
        (name("none"), Tree::Directory(BTreeMap::new())),
        (Name::new(&[0xff; 255]).unwrap(), link(4064)),
    ];
    Tree::Directory(entries.into())
}

#[test]
fn every_released_version_keeps_its_bytes() {
    let tree = golden_tree();
    let objects = TestObjects::of(&tree);
    let layout = objects.layout(&tree.node()).unwrap();
    let image = objects.whole(&layout);
    let reader = slice_reader(&image);
    let root = reader.root().unwrap();
    assert_shows(&reader, &root, root.nid, &tree, &mut Vec::new());
    // Images of version 1 are mounted: should this differ, the layout needs a new version.
    assert_eq!(
        Digest::of(&image).to_hex(),
        "c717654c9fba47c1f58e8481f782bc035e0f1c99d19a55e6e98b0b321fe75694"
    );
    assert_eq!(ImageVersion::from_number(1), Some(ImageVersion::V1));
}

#[test]
fn an_empty_tree_has_an_image() {
    let mut objects = TestObjects::default();
    let node = objects.directory_of(Vec::new());
    let layout = objects.layout(&node).unwrap();
    assert_eq!((layout.size(), layout.paths()), (IMAGE_ALIGNMENT, 1));
    let reader = objects.reader(&layout);
    let root = reader.root().unwrap();
    assert_eq!(reader.list(&root).unwrap().len(), 2);
}

#[test]
fn named_roots_of_every_kind_are_listed_in_the_root() {
    let tree = golden_tree();
    let objects = TestObjects::of(&tree);
    let roots = [
        ("the tree", tree.node()),
        ("a file", file(b"same")),
        ("a link", symlink(3)),
    ];
    let roots = roots.map(|(text, node)| Root {
        name: name(text),
        node,
    });
    let image_root = ImageRoot::roots(&roots).unwrap();
    let mut backwards = roots.clone();
    backwards.reverse();
    assert_eq!(
        image_root.digest(),
        ImageRoot::roots(&backwards).unwrap().digest()
    );
    let layout = ImageLayout::new(image_root, ImageVersion::V1, &objects).unwrap();
    let reader = objects.reader(&layout);
    let root = reader.root().unwrap();
    let link = reader.find(&root, b"a link").unwrap().unwrap();
    assert_eq!(reader.inode(link.nid).unwrap().size, 3);
    let below = reader.find(&root, b"the tree").unwrap().unwrap();
    let below = reader.inode(below.nid).unwrap();
    assert_shows(&reader, &below, root.nid, &tree, &mut Vec::new());
    assert!(ImageRoot::roots(&[roots[0].clone(), roots[0].clone()]).is_err());
}

#[test]
fn paths_are_counted_before_anything_is_allocated() {
    let mut objects = TestObjects::default();
    let mut node = objects.directory_of(vec![(name("leaf"), file(b"x"))]);
    let twice = |objects: &mut TestObjects, node: &Node| {
        // Nodes may state any size; true ones do not fit into 64 bits here.
        let node = Node::Directory {
            digest: node.digest().unwrap(),
            size: 0,
        };
        objects.directory_of(vec![(name("a"), node.clone()), (name("b"), node)])
    };
    for _ in 0..40 {
        node = twice(&mut objects, &node);
    }
    let refused = objects.layout(&node).unwrap_err();
    assert!(matches!(refused, ImageError::TooManyNames(names) if names > MOST_NAMES));
    assert!(
        *objects.asked.borrow() <= 41,
        "each Directory is asked for once"
    );
    // So many of them that the sum of paths does not fit into 64 bits.
    for _ in 0..100 {
        node = twice(&mut objects, &node);
    }
    assert!(objects.layout(&node).is_err());
}

#[test]
fn a_deep_tree_is_no_deep_recursion() {
    let mut objects = TestObjects::default();
    let mut node = objects.directory_of(Vec::new());
    for _ in 0..100_000 {
        node = objects.directory_of(vec![(name("d"), node)]);
    }
    let layout = objects.layout(&node).unwrap();
    assert_eq!(layout.paths(), 100_001);
}

#[test]
fn more_blocks_than_32_bits_number_are_refused() {
    let mut objects = TestObjects::default();
    for sizes in [vec![u64::MAX], vec![1 << 43, 1 << 43], vec![u64::MAX; 3]] {
        let entries = sizes.iter().enumerate().map(|(n, size)| {
            let node = Node::File {
                digest: Digest::of(&[n as u8]),
                size: *size,
                executable: false,
            };
            (name(&format!("{n}")), node)
        });
        let node = objects.directory_of(entries.collect());
        let refused = objects.layout(&node).unwrap_err();
        assert!(matches!(refused, ImageError::TooManyBlocks), "{refused}");
    }
}

#[test]
fn equal_files_share_an_extent_and_those_of_another_size_do_not() {
    let mut objects = TestObjects::default();
    let digest = Digest::of(b"x");
    let node = |size, executable| Node::File {
        digest,
        size,
        executable,
    };
    let image_root = objects.directory_of(vec![
        (name("a"), node(1, false)),
        (name("b"), node(1, true)),
        (name("c"), node(2, false)),
        (name("d"), node((5 << 30) + 1, false)),
    ]);
    let layout = objects.layout(&image_root).unwrap();
    let reader = objects.reader(&layout);
    let root = reader.root().unwrap();
    let inode = |name: &str| {
        let entry = reader.find(&root, name.as_bytes()).unwrap().unwrap();
        reader.inode(entry.nid).unwrap()
    };
    assert_eq!(inode("a").block, inode("b").block);
    assert_eq!(inode("a").permissions, 0o444);
    assert_eq!(inode("b").permissions, 0o555);
    assert_eq!(inode("c").block, inode("a").block + 1);
    let large = inode("d");
    assert_eq!(
        (large.size, large.block),
        ((5 << 30) + 1, inode("c").block + 1)
    );
    let last = u64::from(large.block) * BLOCK + (5 << 30);
    let extent = |at| layout.extent_at(at, &objects).unwrap();
    let blob = ImageExtent::Blob {
        digest,
        size: (5 << 30) + 1,
        offset: 5 << 30,
        length: 1,
    };
    assert_eq!(extent(last), Some(blob));
    assert!(matches!(extent(last + 1), Some(ImageExtent::Zeros(4095))));
    assert!(matches!(
        extent(last + 4096),
        Some(ImageExtent::Zeros(_)) | None
    ));
    assert_eq!(extent(layout.size()), None);
}

#[test]
fn symlink_targets_of_every_length_are_kept() {
    let mut objects = TestObjects::default();
    let lengths = [1, 31, 32, 33, 2000, 4063, 4064, 4065, 4094, 4095];
    let entries = lengths.map(|length| (name(&format!("{length:04}")), symlink(length)));
    let image_root = objects.directory_of(entries.to_vec());
    let layout = objects.layout(&image_root).unwrap();
    let reader = objects.reader(&layout);
    let root = reader.root().unwrap();
    for length in lengths {
        let entry = reader
            .find(&root, format!("{length:04}").as_bytes())
            .unwrap();
        let inode = reader.inode(entry.unwrap().nid).unwrap();
        let mut target = vec![0; 5000];
        assert_eq!(reader.read(&inode, 0, &mut target).unwrap(), length);
        assert!(target[..length].iter().all(|byte| *byte == b't'));
    }
}

#[test]
fn seventy_thousand_subdirectories_have_that_many_links() {
    let mut objects = TestObjects::default();
    let empty = objects.directory_of(Vec::new());
    let entries = (0..70_000).map(|n| (name(&format!("{n}")), empty.clone()));
    let image_root = objects.directory_of(entries.collect());
    let layout = objects.layout(&image_root).unwrap();
    let reader = objects.reader(&layout);
    let root = reader.root().unwrap();
    assert_eq!(root.links, 70_002);
    let entry = reader.find(&root, b"69999").unwrap().unwrap();
    let inode = reader.inode(entry.nid).unwrap();
    assert_eq!(reader.list(&inode).unwrap()[1].nid, root.nid);
}

#[test]
fn a_directory_of_200_000_long_names_is_listed_and_searched() {
    let mut objects = TestObjects::default();
    let long = |n: usize| {
        let mut bytes = format!("{n:06}").into_bytes();
        bytes.resize(255, 0xfe);
        Name::new(&bytes).unwrap()
    };
    let entries = (0..200_000).map(|n| {
        let node = match n % 1000 {
            0 => symlink(n % 300 + 1),
            _ => file(&n.to_le_bytes()),
        };
        (long(n), node)
    });
    let image_root = objects.directory_of(entries.collect());
    let layout = objects.layout(&image_root).unwrap();
    let mut metadata = vec![0; layout.metadata_size() as usize];
    layout.read_metadata(0, &mut metadata, &objects).unwrap();
    // In parts, as in practice.
    let mut parts = vec![0; metadata.len()];
    for (n, part) in parts.chunks_mut(1 << 20).enumerate() {
        layout
            .read_metadata((n as u64) << 20, part, &objects)
            .unwrap();
    }
    assert!(metadata == parts);
    metadata.resize(layout.size() as usize, 0);
    let reader = slice_reader(&metadata);
    let root = reader.root().unwrap();
    let listed = reader.list(&root).unwrap();
    assert_eq!(listed.len(), 200_002);
    for n in (0..200_000).step_by(999) {
        let entry = reader.find(&root, &long(n)).unwrap().unwrap();
        let inode = reader.inode(entry.nid).unwrap();
        assert_eq!(inode.kind == ErofsKind::Symlink, n % 1000 == 0);
    }
}

#[test]
fn a_million_names_take_few_bytes_and_little_memory() {
    let mut objects = TestObjects::default();
    let directories = (0..20_000u32).map(|d| {
        let files = (0..50u32).map(|f| {
            let node = Node::File {
                digest: Digest::of(&(d * 50 + f).to_le_bytes()),
                size: 4,
                executable: false,
            };
            (name(&format!("some file {f}")), node)
        });
        (name(&format!("directory {d}")), files.collect::<Vec<_>>())
    });
    let directories: Vec<_> = directories.collect();
    let entries = directories
        .into_iter()
        .map(|(name, files)| (name, objects.directory_of(files)));
    let entries = entries.collect();
    let image_root = objects.directory_of(entries);
    let layout = objects.layout(&image_root).unwrap();
    assert_eq!(layout.paths(), 1_020_001);
    let a_name = layout.metadata_size() as f64 / layout.paths() as f64;
    assert!(a_name < 70.0, "{a_name} bytes a name");
    let memory = layout.resident_bytes();
    assert!(memory < 12 << 20, "{memory} bytes");
}
