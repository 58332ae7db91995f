//! Trees out of a store, compared with the plain trees that went in.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::copy;
use super::export::{ExportProgress, to_directory};
use super::nar::write_nar;
use super::tar::write_tar;
use super::verify;
use super::{KindPreference, NarListing, NarStream, Target, TreeError, TreePath, TreeWalk};
use crate::castore::{Digest, Directory, Name, Node, Root, SymlinkTarget};
use crate::fixtures::{Tree, any_tree};
use crate::store::{Blocking, Ingest, MemoryStore, Store};

/// A store with `tree` as its root `tree`, and the runtime that it waits on.
struct StoredTree {
    _runtime: Runtime,
    memory: MemoryStore,
    store: Blocking,
    node: Node,
}

impl StoredTree {
    fn new(tree: &Tree) -> Self {
        let memory = MemoryStore::new();
        let ingest = memory.ingest().unwrap();
        let node = put(&*ingest, tree);
        let root = Root {
            name: name("tree"),
            node: node.clone(),
        };
        ingest.put_root(&root, None).unwrap();
        ingest.commit().unwrap();
        let runtime = Runtime::new().unwrap();
        let store = Blocking::new(Arc::new(memory.clone()), runtime.handle().clone());
        Self {
            _runtime: runtime,
            memory,
            store,
            node,
        }
    }

    fn resolve(&self, target: &str) -> Result<Node, TreeError> {
        let target = Target::parse(target.as_bytes())?;
        let found = target.resolve(&self.store, KindPreference::Directory)?;
        Ok(found.node)
    }

    fn export(&self, to: &Path) -> Result<(), TreeError> {
        let path = TreePath::new(b"tree");
        to_directory(
            &self.store,
            &path,
            &self.node,
            to,
            &ExportProgress::default(),
        )
    }

    fn tar(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let path = TreePath::new(b"tree");
        let progress = ExportProgress::default();
        write_tar(&self.store, &path, &self.node, b"tree", &mut out, &progress).unwrap();
        out
    }
}

fn put(ingest: &dyn Ingest, tree: &Tree) -> Node {
    let node = tree.node();
    match tree {
        Tree::Directory(entries) => {
            let children = entries
                .iter()
                .map(|(name, tree)| (name.clone(), put(ingest, tree)));
            let directory = Directory::from_entries(children.collect()).unwrap();
            ingest.put_directory(&directory).unwrap();
        }
        Tree::File { bytes, .. } => {
            ingest.put_blobs(&[(Digest::of(bytes), bytes)]).unwrap();
        }
        Tree::Symlink(_) => {}
    }
    node
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn file(bytes: &[u8]) -> Tree {
    Tree::File {
        executable: false,
        bytes: bytes.to_vec(),
    }
}

fn program(bytes: &[u8]) -> Tree {
    Tree::File {
        executable: true,
        bytes: bytes.to_vec(),
    }
}

fn link(target: &str) -> Tree {
    Tree::Symlink(SymlinkTarget::new(target.as_bytes()).unwrap())
}

fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    let entries = entries.into_iter().map(|(key, tree)| (name(key), tree));
    Tree::Directory(entries.collect())
}

/// What is at `path`, with modes and times checked on the way.
fn read(path: &Path) -> Tree {
    let found = path.symlink_metadata().unwrap();
    assert_eq!(found.mtime(), 1, "{}", path.display());
    if found.is_symlink() {
        let target = fs::read_link(path).unwrap();
        return Tree::Symlink(SymlinkTarget::new(target.as_os_str().as_bytes()).unwrap());
    }
    let mode = found.permissions().mode() & 0o7777;
    if found.is_dir() {
        assert_eq!(mode, 0o755, "{}", path.display());
        let entries = fs::read_dir(path).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = Name::new(entry.file_name().as_bytes()).unwrap();
            (name, read(&entry.path()))
        });
        return Tree::Directory(entries.collect());
    }
    assert!([0o755, 0o644].contains(&mode), "{}", path.display());
    Tree::File {
        executable: mode == 0o755,
        bytes: fs::read(path).unwrap(),
    }
}

/// The tree that GNU tar unpacks from an archive. (The `tar` crate, of version 0.4.46, ends pax
/// records at the first newline.)
fn untar(archive: &[u8]) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("archive"), archive).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let run = std::process::Command::new("tar")
        .args(["-xpf", "../archive"])
        .current_dir(&out)
        .output()
        .unwrap();
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    // The entry of what is no directory.
    let alone = out.join("tree");
    match out.metadata().unwrap().mtime() {
        1 => read(&out),
        _ => read(&alone),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_goes_in_comes_out(tree in any_tree()) {
        let kept = StoredTree::new(&tree);
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        kept.export(&target).unwrap();
        prop_assert_eq!(&read(&target), &tree);
        prop_assert_eq!(&untar(&kept.tar()), &tree);
        let mut nar = Vec::new();
        let (path, progress) = (TreePath::default(), ExportProgress::default());
        write_nar(&kept.store, &path, &kept.node, &mut nar, &progress).unwrap();
        prop_assert_eq!(nar, tree.nar());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_range_of_a_nar_is_that_of_the_whole(
        tree in any_tree(),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        most in 1usize..5000,
    ) {
        let kept = StoredTree::new(&tree);
        let nar = tree.nar();
        let (from, to) = (from.index(nar.len() + 1), to.index(nar.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        let path = TreePath::new(b"tree");
        let range = from as u64..to as u64;
        let mut stream = NarStream::new(kept.store.clone(), path, kept.node.clone(), range);
        let mut read = Vec::new();
        while let Some(bytes) = stream.next(most).unwrap() {
            prop_assert!(bytes.len() <= most);
            read.extend_from_slice(&bytes);
        }
        prop_assert_eq!(stream.remaining(), 0);
        prop_assert_eq!(&read, &nar[from..to]);
    }
}

/// Whether a listing of `tree` has the offset of each file's contents in `nar`.
fn assert_listed(tree: &Tree, listed: &serde_json::Value, nar: &[u8]) {
    match tree {
        Tree::Directory(entries) => {
            assert_eq!(listed["type"], "directory");
            let listed = listed["entries"].as_object().unwrap();
            assert_eq!(listed.len(), entries.len());
            for (name, tree) in entries {
                assert_listed(tree, &listed[std::str::from_utf8(name).unwrap()], nar);
            }
        }
        Tree::File { bytes, executable } => {
            assert_eq!(listed["type"], "regular");
            assert_eq!(listed["size"], bytes.len());
            assert_eq!(listed["executable"] == true, *executable);
            let offset = listed["narOffset"].as_u64().unwrap() as usize;
            assert_eq!(nar[offset..offset + bytes.len()], bytes[..]);
        }
        Tree::Symlink(target) => {
            assert_eq!(listed["type"], "symlink");
            assert_eq!(listed["target"], std::str::from_utf8(target).unwrap());
        }
    }
}

#[test]
fn a_listing_has_the_offset_of_contents_in_the_nar() {
    let inner = [("empty", file(b"")), ("odd", program(b"123456789"))];
    let tree = directory([
        ("a \"quoted\" name", link("odd")),
        ("b", directory(inner)),
        ("c", directory([])),
        ("d", file(b"last")),
    ]);
    for tree in [tree, file(b"alone"), link("x")] {
        let kept = StoredTree::new(&tree);
        let path = TreePath::new(b"tree");
        let mut listing = NarListing::new(kept.store.clone(), path, kept.node.clone());
        let mut text = Vec::new();
        while let Some(bytes) = listing.next(50).unwrap() {
            text.extend_from_slice(&bytes);
        }
        let listed: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(listed["version"], 1);
        assert_listed(&tree, &listed["root"], &tree.nar());
    }
}

#[test]
fn a_walk_is_in_pre_order_and_skips_on_request() {
    let tree = directory([
        ("a", directory([("x", file(b"1")), ("y", link("x"))])),
        ("a.b", file(b"2")),
        ("c", directory([])),
    ]);
    let kept = StoredTree::new(&tree);
    let mut paths = Vec::new();
    let mut walk = TreeWalk::new(&kept.store, TreePath::new(b"tree"), kept.node.clone());
    while let Some(step) = walk.step().unwrap() {
        paths.push((step.path.to_string(), step.depth));
    }
    let expected = [
        ("tree", 0),
        ("tree/a", 1),
        ("tree/a/x", 2),
        ("tree/a/y", 2),
        ("tree/a.b", 1),
        ("tree/c", 1),
    ];
    assert_eq!(
        paths,
        expected.map(|(path, depth)| (path.to_owned(), depth))
    );

    let mut count = 0;
    let mut walk = TreeWalk::new(&kept.store, TreePath::new(b"tree"), kept.node.clone());
    while let Some(step) = walk.step().unwrap() {
        count += 1;
        if step.depth == 1 {
            walk.skip();
        }
    }
    assert_eq!(count, 4);
}

#[test]
fn targets_are_names_or_digests_with_paths() {
    let inner = directory([("sh", program(b"#!"))]);
    let tree = directory([("bin", inner.clone()), ("lib", link("bin"))]);
    let kept = StoredTree::new(&tree);
    let digest = inner.node().digest().unwrap();
    let sh = Node::File {
        digest: Digest::of(b"#!"),
        size: 2,
        executable: true,
    };
    for (target, node) in [
        ("tree".to_owned(), &kept.node),
        ("/tree/".to_owned(), &kept.node),
        ("/nix/store/tree/bin".to_owned(), &inner.node()),
        ("tree//bin/./sh".to_owned(), &sh),
        (digest.to_string(), &inner.node()),
        (format!("{digest}/sh"), &sh),
        (format!("b3:{}/sh", digest.to_hex()), &sh),
        (digest.to_hex(), &inner.node()),
        (tree.node().digest().unwrap().to_hex() + "/bin/sh", &sh),
    ] {
        assert_eq!(&kept.resolve(&target).unwrap(), node, "{target}");
    }
    // A blob by its digest is a file that is not executable.
    let Node::File {
        executable: false,
        size: 2,
        ..
    } = kept.resolve(&Digest::of(b"#!").to_hex()).unwrap()
    else {
        panic!("no file")
    };
}

#[test]
fn errors_about_wrong_targets_have_the_reason() {
    let tree = directory([("link", link("x")), ("file", file(b""))]);
    let kept = StoredTree::new(&tree);
    let nothing = Digest::of(b"nothing");
    for (target, message) in [
        (
            "",
            "\"\" is no NAME[/PATH] and no digest: a name or symlink target cannot be empty",
        ),
        (
            "tree/../x",
            "\"tree/../x\" is no NAME[/PATH] and no digest: \"..\" cannot be a name",
        ),
        (
            "b3:12",
            "\"b3:12\" is no NAME[/PATH] and no digest: \"b3:12\" is no digest: write \
                   blake3-<base64>, b3:<64 hex digits> or the 64 hex digits alone",
        ),
        (
            "three",
            "memory: has no root named three; `castore-fs ls` lists the names it has",
        ),
        ("tree/no", "tree/no does not exist"),
        ("tree/no/way", "tree/no does not exist"),
        ("tree/file/x", "tree/file is a file, nothing is below it"),
        (
            "tree/link/x",
            "tree/link is a symbolic link, nothing is below it and it is not \
                         followed; it points to x",
        ),
        (
            &nothing.to_hex(),
            &format!("memory: has neither a directory nor a blob {nothing}"),
        ),
    ] {
        assert_eq!(kept.resolve(target).unwrap_err().to_string(), message);
    }
}

#[test]
fn only_a_directory_can_be_a_mount_root() {
    let tree = directory([("d", directory([("file", file(b""))]))]);
    let kept = StoredTree::new(&tree);
    let mount_root = |target: &str| {
        let target = Target::parse(target.as_bytes()).unwrap();
        target.resolve_mount_root(&kept.store)
    };
    let (digest, _) = mount_root("tree/d").unwrap();
    assert_eq!(kept.resolve("tree/d").unwrap().digest(), Some(digest));
    let refused = mount_root("tree/d/file").unwrap_err().to_string();
    assert!(
        refused.starts_with("tree/d/file is not a directory"),
        "{refused}"
    );
}

#[test]
fn a_digest_of_both_kinds_is_what_is_preferred() {
    // An encoded Directory that is also in a file.
    let encoded = Directory::from_entries(vec![(name("x"), file(b"").node())]).unwrap();
    let tree = directory([
        ("d", directory([("x", file(b""))])),
        ("f", file(encoded.as_bytes())),
    ]);
    let kept = StoredTree::new(&tree);
    let target = Target::parse(encoded.digest().to_hex().as_bytes()).unwrap();
    let found = target
        .resolve(&kept.store, KindPreference::Directory)
        .unwrap();
    assert!(matches!(found.node, Node::Directory { .. }));
    let found = target.resolve(&kept.store, KindPreference::Blob).unwrap();
    assert!(matches!(found.node, Node::File { .. }));
}

#[test]
fn an_export_touches_nothing_that_is_there() {
    let kept = StoredTree::new(&directory([("a", file(b"new"))]));
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("a"), "old").unwrap();
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for target in [&full, &full.join("a"), &dangling, &empty] {
        assert!(matches!(kept.export(target), Err(TreeError::Exists(_))));
    }
    assert_eq!(fs::read(full.join("a")).unwrap(), b"old");
    assert_eq!(fs::read_link(&dangling).unwrap(), Path::new("nowhere"));
    let error = kept.export(&dir.path().join("no/where")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no does not exist; make it first"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn zeros_become_holes() {
    let mut bytes = vec![0; 4 << 20];
    bytes[2 << 20] = 1;
    let kept = StoredTree::new(&directory([
        ("sparse", file(&bytes)),
        ("zeros", file(&[0; 1 << 20])),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    kept.export(&target).unwrap();
    assert_eq!(fs::read(target.join("sparse")).unwrap(), bytes);
    let sparse = fs::metadata(target.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 <= 128 << 10, "{}", sparse.blocks());
    let zeros = fs::metadata(target.join("zeros")).unwrap();
    assert_eq!((zeros.len(), zeros.blocks()), (1 << 20, 0));
}

#[test]
fn names_of_any_bytes_and_length_survive_tar() {
    let long = "n".repeat(255);
    let odd = Name::new(b"\xff\n\x1b").unwrap();
    let mut entries = BTreeMap::new();
    entries.insert(odd, file(b"odd"));
    entries.insert(name(&long), directory([(&long, link(&"t".repeat(4095)))]));
    entries.insert(name("grün"), program(b"x"));
    entries.insert(
        name(&"m".repeat(97)),
        file(b"longer than the field with ./"),
    );
    entries.insert(name(&"m".repeat(98)), file(b"just fits"));
    let tree = Tree::Directory(entries);
    let kept = StoredTree::new(&tree);
    let archive = kept.tar();
    assert_eq!(untar(&archive), tree);
    assert_eq!(archive.len() % 512, 0);
    assert_eq!(archive, StoredTree::new(&tree).tar());

    for entry in ::tar::Archive::new(&archive[..]).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(
            (header.username(), header.groupname()),
            (Ok(Some("")), Ok(Some("")))
        );
    }
}

#[test]
fn verify_finds_nodes_with_wrong_sizes() {
    let inner = directory([("x", file(b"12345"))]);
    let Node::Directory { digest, .. } = inner.node() else {
        panic!()
    };
    let kept = StoredTree::new(&inner);
    let ingest = kept.memory.ingest().unwrap();
    let lying = Directory::from_entries(vec![
        (name("d"), Node::Directory { digest, size: 77 }),
        (
            name("f"),
            Node::File {
                digest: Digest::of(b"12345"),
                size: 4,
                executable: false,
            },
        ),
    ])
    .unwrap();
    ingest.put_directory(&lying).unwrap();
    ingest.commit().unwrap();
    let roots = [(TreePath::new(b"lying"), lying.node())];
    let report = verify::verify(&kept.store, &roots, &verify::VerifyProgress::default()).unwrap();
    let stated: Vec<_> = report
        .faults
        .iter()
        .map(|fault| format!("{}: {}", fault.paths[0], fault.why))
        .collect();
    assert_eq!(stated.len(), 2);
    assert_eq!(
        stated[0],
        "lying/d: the node states the size 77, and the object has the size 2"
    );
    assert_eq!(
        stated[1],
        "lying/f: the node states the size 4, and the object has the size 5"
    );
}

/// The paths of every level and of every waiting blob would take 20 GB.
#[test]
fn a_very_deep_tree_is_copied_in_memory_by_its_depth() {
    const DEPTH: usize = 100_000;
    let (from, to) = (MemoryStore::new(), MemoryStore::new());
    let ingest = from.ingest().unwrap();
    let blob = |level: usize| level.to_string().into_bytes();
    let mut node = put(&*ingest, &directory([("end", file(b"end"))]));
    for level in 0..DEPTH {
        let bytes = blob(level);
        let digest = Digest::of(&bytes);
        ingest.put_blobs(&[(digest, &bytes)]).unwrap();
        let size = bytes.len() as u64;
        let file = Node::File {
            digest,
            size,
            executable: false,
        };
        let entries = vec![(name("d"), node), (name("f"), file)];
        let directory = Directory::from_entries(entries).unwrap();
        ingest.put_directory(&directory).unwrap();
        node = directory.node();
    }
    let root = Root {
        name: name("deep"),
        node,
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    let runtime = Runtime::new().unwrap();
    let blocking = |store: MemoryStore| Blocking::new(Arc::new(store), runtime.handle().clone());
    let progress = copy::CopyProgress::default();
    let added = copy::copy(&blocking(from), &blocking(to), &[root], &progress).unwrap();
    assert_eq!(added.directories, DEPTH as u64 + 1);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .unwrap();
    assert!(peak < 4 << 20, "{peak} kB");
}

#[test]
fn verify_ends_though_a_tree_has_more_paths_than_there_is_time_for() {
    // 2^60 paths lead to the one missing file.
    let mut node = file(b"gone").node();
    let memory = MemoryStore::new();
    let ingest = memory.ingest().unwrap();
    for _ in 0..60 {
        let entries = [name("l"), name("r")].map(|name| (name, node.clone()));
        let directory = Directory::from_entries(entries.to_vec()).unwrap();
        ingest.put_directory(&directory).unwrap();
        node = directory.node();
    }
    ingest.commit().unwrap();
    let runtime = Runtime::new().unwrap();
    let store = Blocking::new(Arc::new(memory), runtime.handle().clone());
    let roots = [(TreePath::new(b"tree"), node)];
    let report = verify::verify(&store, &roots, &verify::VerifyProgress::default()).unwrap();
    assert_eq!((report.directories, report.blobs), (60, 1));
    let [fault] = &report.faults[..] else {
        panic!()
    };
    assert_eq!(fault.paths.len(), 100);
    assert!(fault.more_paths > 1000);
}
