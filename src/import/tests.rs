use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use serde::Deserialize;

use super::*;
use crate::castore::{Digest, Directory, NodeRef};
use kit::fixtures::{fixture, unescape};

use crate::fixtures::{Tree, any_tree};
use crate::store::{GcOptions, LocalStore, MemoryStore, Store};

/// A new store in memory, and its runtime.
pub(super) struct FreshStore {
    pub(super) store: Blocking,
    runtime: tokio::runtime::Runtime,
}

impl FreshStore {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        Self {
            store: Blocking::new(store, runtime.handle().clone()),
            runtime,
        }
    }

    /// Imports as `root` with the default options.
    pub(super) fn import(&self, source: ImportSource<'_>) -> Result<ImportResult, ImportError> {
        self.import_with(source, &ImportOptions::default())
    }

    pub(super) fn import_with(
        &self,
        source: ImportSource<'_>,
        options: &ImportOptions,
    ) -> Result<ImportResult, ImportError> {
        let naming = RootNaming::Name(Name::new(b"root").unwrap());
        import(&self.store, source, naming, options, &ImportProgress::new())
    }

    /// Nothing is here, not even in part.
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.store.roots().unwrap(), []);
        let nothing = crate::store::StoreUsage::default();
        assert_eq!(self.store.usage().unwrap(), Some(nothing));
    }

    /// The whole tree `node`, as the store has it.
    pub(super) fn nar(&self, node: &Node) -> Vec<u8> {
        let mut nar = Vec::new();
        let (path, progress) = (TreePath::default(), export::ExportProgress::default());
        write_nar(&self.store, &path, node, &mut nar, &progress).unwrap();
        nar
    }
}

#[derive(Deserialize)]
struct ExpectedTree {
    entries: BTreeMap<String, ExpectedEntry>,
    nar_sha256: String,
    nar_size: u64,
    root: ExpectedRoot,
    store_path: String,
}

#[derive(Deserialize)]
struct ExpectedRoot {
    digest: HexDigest,
    name: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ExpectedEntry {
    Directory {
        digest: HexDigest,
        size: u64,
    },
    File {
        digest: HexDigest,
        size: u64,
        executable: bool,
    },
    Symlink {
        target: String,
    },
}

/// A digest as 64 hex digits.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct HexDigest(Digest);

impl TryFrom<String> for HexDigest {
    type Error = crate::castore::DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

fn expected() -> ExpectedTree {
    serde_json::from_slice(&fs::read(fixture("snix/expected.json").unwrap()).unwrap()).unwrap()
}

/// The fixture tree as an uncompressed tar archive.
fn fixture_tar() -> Vec<u8> {
    let compressed = fs::read(fixture("snix/tree.tar.zst").unwrap()).unwrap();
    zstd::decode_all(&compressed[..]).unwrap()
}

/// The fixture tree on disk.
fn fixture_on_disk(dir: &tempfile::TempDir) -> PathBuf {
    let mut archive = ::tar::Archive::new(Cursor::new(fixture_tar()));
    archive.unpack(dir.path()).unwrap();
    dir.path().join("tree")
}

fn resolve(store: &Blocking, root: &Node, path: &[u8]) -> Node {
    let mut node = root.clone();
    for name in path.split(|&byte| byte == b'/') {
        let digest = node.digest().unwrap();
        let directory = store.directory(&digest).unwrap().unwrap();
        node = directory.lookup(name).unwrap().to_owned().unwrap();
    }
    node
}

/// Imports the fixture tree and compares everything with what another implementation made of it.
fn import_fixture(source: ImportSource<'_>, options: &ImportOptions) -> FreshStore {
    let expected = expected();
    let fresh = FreshStore::new();
    let progress = ImportProgress::new();
    let naming = RootNaming::Nix("tree".to_owned());
    let imported = import(&fresh.store, source, naming, options, &progress).unwrap();

    assert_eq!(imported.root.name.as_bytes(), expected.root.name.as_bytes());
    assert_eq!(
        imported.root.node,
        Node::Directory {
            digest: expected.root.digest.0,
            size: expected.root.size
        }
    );
    let (path, nar) = imported.nix.unwrap();
    assert_eq!(path.absolute(), expected.store_path);
    assert_eq!(nar.size, expected.nar_size);
    assert_eq!(
        data_encoding::HEXLOWER.encode(&nar.sha256),
        expected.nar_sha256
    );
    let path_info = fresh.store.path_info(&imported.root.name).unwrap().unwrap();
    assert_eq!(
        path_info.encode_to_vec(),
        fs::read(fixture("snix/pathinfo.binpb").unwrap()).unwrap()
    );

    let mut totals = ImportTotals {
        directories: 1,
        ..ImportTotals::default()
    };
    for (name, entry) in &expected.entries {
        let node = resolve(&fresh.store, &imported.root.node, &unescape(name));
        match entry {
            ExpectedEntry::Directory { digest, size } => {
                totals.directories += 1;
                let expected = NodeRef::Directory {
                    digest: digest.0,
                    size: *size,
                };
                assert_eq!(node.borrow(), expected, "{name}");
            }
            ExpectedEntry::File {
                digest,
                size,
                executable,
            } => {
                totals.files += 1;
                totals.bytes += size;
                let expected = NodeRef::File {
                    digest: digest.0,
                    size: *size,
                    executable: *executable,
                };
                assert_eq!(node.borrow(), expected, "{name}");
            }
            ExpectedEntry::Symlink { target } => {
                totals.symlinks += 1;
                let target = target.as_bytes();
                assert_eq!(node.borrow(), NodeRef::Symlink { target }, "{name}");
            }
        }
    }
    assert_eq!(imported.totals, totals);
    assert_eq!(progress.files_found(), totals.files);

    let mut directories = 0;
    for file in fs::read_dir(fixture("snix/directories").unwrap()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        let digest = Digest::of(&bytes);
        let directory = fresh.store.directory(&digest).unwrap().unwrap();
        assert_eq!(directory.as_bytes(), bytes);
        directories += 1;
    }
    assert_eq!(directories, 17);
    assert_eq!(
        fresh.store.usage().unwrap().unwrap().directories,
        directories
    );
    fresh
}

#[test]
fn the_fixture_tree_imports_from_disk_to_what_the_peer_made() {
    if fixture("snix").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = fixture_on_disk(&dir);
    let fresh = import_fixture(ImportSource::Path(&path), &ImportOptions::default());

    let again = fresh.import(ImportSource::Path(&path)).unwrap();
    assert_eq!(again.added, AddedTotals::default(), "nothing is new");
}

#[test]
fn the_fixture_tree_imports_from_tar_to_what_the_peer_made() {
    if fixture("snix").is_none() {
        return;
    }
    let options = ImportOptions {
        strip_components: 1,
        ..ImportOptions::default()
    };
    import_fixture(ImportSource::Tar(&mut &fixture_tar()[..]), &options);
}

#[test]
fn the_fixture_tree_imports_from_its_own_nar_to_what_the_peer_made() {
    if fixture("snix").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = fixture_on_disk(&dir);
    let fresh = FreshStore::new();
    let node = fresh.import(ImportSource::Path(&path)).unwrap().root.node;
    import_fixture(
        ImportSource::Nar(&mut &fresh.nar(&node)[..]),
        &ImportOptions::default(),
    );
}

/// `tree` as a tar archive: GNU headers, directories before what is in them.
fn tar_of(tree: &Tree) -> Vec<u8> {
    fn append(builder: &mut ::tar::Builder<Vec<u8>>, path: Vec<u8>, tree: &Tree) {
        use std::os::unix::ffi::OsStrExt;
        let as_path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let mut header = ::tar::Header::new_gnu();
        header.set_size(0);
        match tree {
            Tree::Directory(entries) => {
                header.set_entry_type(::tar::EntryType::Directory);
                header.set_mode(0o755);
                builder
                    .append_data(&mut header, as_path(&path), &[][..])
                    .unwrap();
                for (name, tree) in entries {
                    append(builder, [&path[..], b"/", name].concat(), tree);
                }
            }
            Tree::File { executable, bytes } => {
                header.set_size(bytes.len() as u64);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                builder
                    .append_data(&mut header, as_path(&path), &bytes[..])
                    .unwrap();
            }
            Tree::Symlink(target) => {
                header.set_entry_type(::tar::EntryType::Symlink);
                header.set_mode(0o777);
                // As it stands, where it fits: the crate makes "/" another target.
                match header.set_link_name_literal(&target[..]) {
                    Ok(()) => builder.append_data(&mut header, as_path(&path), &[][..]),
                    Err(_) => builder.append_link(&mut header, as_path(&path), as_path(target)),
                }
                .unwrap();
            }
        }
    }
    let mut builder = ::tar::Builder::new(Vec::new());
    append(&mut builder, b".".to_vec(), tree);
    builder.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever source a tree comes from, the result is the same nodes and the same NAR.
    #[test]
    fn every_source_gives_the_same_tree(tree in any_tree()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        tree.unpack(&path);
        let fresh = FreshStore::new();
        let from_disk = fresh.import(ImportSource::Path(&path)).unwrap();
        prop_assert_eq!(&from_disk.root.node, &tree.node());
        let nar = fresh.nar(&from_disk.root.node);
        prop_assert_eq!(&nar, &tree.nar());

        let from_nar = FreshStore::new();
        let imported = from_nar.import(ImportSource::Nar(&mut &nar[..])).unwrap();
        prop_assert_eq!(&imported.root.node, &tree.node());
        prop_assert_eq!(&from_nar.nar(&imported.root.node), &nar);
        prop_assert_eq!(imported.totals, from_disk.totals);

        if let Tree::Directory(_) = tree {
            let from_tar = FreshStore::new();
            let tar = tar_of(&tree);
            let imported = from_tar.import(ImportSource::Tar(&mut &tar[..])).unwrap();
            prop_assert_eq!(&imported.root.node, &tree.node());
            prop_assert_eq!(&from_tar.nar(&imported.root.node), &nar);
            prop_assert_eq!(imported.totals, from_disk.totals);
        }
    }
}

/// A file in each size that is handled in a way of its own.
fn sizes() -> Tree {
    let sizes = [0, 1, SMALL, SMALL + 1, 3 * SMALL + 7];
    let entries = sizes.iter().enumerate().map(|(index, size)| {
        let name = Name::new(format!("{index}").as_bytes()).unwrap();
        let bytes = (0..*size).map(|at| ((at * 31) >> 3) as u8 ^ index as u8);
        let file = Tree::File {
            executable: index % 2 == 0,
            bytes: bytes.collect(),
        };
        (name, file)
    });
    Tree::Directory(entries.collect())
}

/// Does `with` each source that there is of `tree`: files, a NAR, an archive.
fn from_everywhere(tree: &Tree, with: impl Fn(ImportSource)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    tree.unpack(&path);
    with(ImportSource::Path(&path));
    with(ImportSource::Nar(&mut &tree.nar()[..]));
    with(ImportSource::Tar(&mut &tar_of(tree)[..]));
}

#[test]
fn small_and_large_files_come_out_as_they_went_in() {
    let tree = sizes();
    from_everywhere(&tree, |source| {
        let fresh = FreshStore::new();
        let node = fresh.import(source).unwrap().root.node;
        assert_eq!(node, tree.node());
        assert!(fresh.nar(&node) == tree.nar());
    });
}

#[test]
fn a_stream_cut_short_leaves_nothing() {
    let tree = Tree::Directory(
        [
            (Name::new(b"a").unwrap(), sizes()),
            (
                Name::new(b"b").unwrap(),
                Tree::File {
                    executable: false,
                    bytes: vec![7; 100],
                },
            ),
        ]
        .into(),
    );
    let (nar, tar) = (tree.nar(), tar_of(&tree));
    let fresh = FreshStore::new();
    for part in 0..64 {
        let cut = &nar[..nar.len() * part / 64];
        fresh.import(ImportSource::Nar(&mut &cut[..])).unwrap_err();
        // One block of zeros ends an archive, and there are two.
        let cut = &tar[..(tar.len() - 1024) * part / 64];
        fresh.import(ImportSource::Tar(&mut &cut[..])).unwrap_err();
    }
    fresh.assert_empty();
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let fresh = FreshStore::new();
    from_everywhere(&sizes(), |source| {
        let progress = ImportProgress::new();
        progress.cancel();
        let naming = RootNaming::Nix("tree".to_owned());
        let error = import(
            &fresh.store,
            source,
            naming,
            &ImportOptions::default(),
            &progress,
        )
        .unwrap_err();
        assert!(matches!(error, ImportError::Cancelled), "{error}");
    });
    fresh.assert_empty();
}

#[test]
fn a_name_that_nix_does_not_take_fails_before_anything_is_read() {
    let fresh = FreshStore::new();
    let naming = RootNaming::Nix("a b".to_owned());
    let missing = ImportSource::Path(Path::new("/nonexistent"));
    let error = import(
        &fresh.store,
        missing,
        naming,
        &ImportOptions::default(),
        &ImportProgress::new(),
    )
    .unwrap_err();
    assert!(matches!(error, ImportError::StorePath(_)), "{error}");
}

#[test]
fn rendering_names_what_the_store_lacks() {
    let fresh = FreshStore::new();
    let file = |content: &[u8]| Node::File {
        digest: Digest::of(content),
        size: content.len() as u64,
        executable: false,
    };
    let name = |name: &[u8]| Name::new(name).unwrap();
    let inner = Directory::from_entries(vec![(name(b"gone\n"), file(b"gone"))]).unwrap();
    let outer = Directory::from_entries(vec![(name(b"inner"), inner.node())]).unwrap();
    let ingest = fresh.store.ingest().unwrap();
    ingest.put_directory(&inner).unwrap();
    ingest.put_directory(&outer).unwrap();
    ingest.commit().unwrap();
    let error = {
        let (path, progress) = (TreePath::new(b"outer"), export::ExportProgress::default());
        write_nar(&fresh.store, &path, &outer.node(), io::sink(), &progress).unwrap_err()
    };
    assert_eq!(
        error.to_string(),
        format!(
            "outer/inner/gone\\n: memory: does not have the blob {}",
            Digest::of(b"gone")
        )
    );
    drop(fresh.runtime);
}

#[test]
fn a_collection_between_the_two_commits_of_a_store_path_removes_nothing() {
    const IMPORTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStore::open(&dir.path().join("store")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Blocking::new(Arc::new(local.clone()), runtime.handle().clone());
    let ended = AtomicBool::new(false);
    let import_tree = |number: usize| {
        let path = dir.path().join(format!("tree-{number}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), format!("contents of {number}")).unwrap();
        let (options, progress) = (ImportOptions::default(), ImportProgress::new());
        let naming = RootNaming::Nix(format!("tree-{number}"));
        import(
            &store,
            ImportSource::Path(&path),
            naming,
            &options,
            &progress,
        )
    };
    let roots: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = GcOptions {
                grace: Duration::ZERO,
                ..GcOptions::default()
            };
            while !ended.load(Ordering::Relaxed) {
                local.collect_garbage(&options).unwrap();
            }
        });
        let imported = (0..IMPORTS).map(import_tree).collect();
        ended.store(true, Ordering::Relaxed);
        imported
    });
    for imported in roots {
        let root = imported.unwrap().root;
        let digest = root.node.borrow().digest().unwrap();
        assert!(store.has_tree(&digest).unwrap(), "{root:?}");
    }
}
