//! From a snix store to one of ours, by the program as users run it.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use castore_fs::import::{self, ImportOptions, ImportProgress, ImportSource, RootNaming};
use castore_fs::nix::{NarHash, NixHash, PathInfo, encode_base32, output_hash};
use castore_fs::store::{Blocking, LocalStore, MemoryStore, ObjectStore, Store};
use castore_fs::tree::copy;
use kit::program::WorkingDirectory;
use prost::Message;

struct Place {
    dir: WorkingDirectory,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: WorkingDirectory::new(&[]),
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    fn blocking(&self, store: impl Store + 'static) -> Blocking {
        Blocking::new(Arc::new(store), self.runtime.handle().clone())
    }
}

impl Deref for Place {
    type Target = WorkingDirectory;

    fn deref(&self) -> &WorkingDirectory {
        &self.dir
    }
}

fn make_tree(path: &Path) {
    fs::create_dir_all(path.join("empty-directory")).unwrap();
    fs::create_dir(path.join("bin")).unwrap();
    fs::write(path.join("empty"), "").unwrap();
    fs::write(path.join("bin/program"), "#!/bin/sh\n").unwrap();
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path.join("bin/program"), executable).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).flat_map(|at| at.to_le_bytes()).collect();
    fs::write(path.join("large"), large).unwrap();
    symlink("bin/program", path.join("link")).unwrap();
}

/// Imports the tree into memory under a Nix name; gives the store, the name and what is known of it.
fn imported(place: &Place) -> (Blocking, String, PathInfo) {
    make_tree(&place.path("tree"));
    let memory = place.blocking(MemoryStore::new());
    let imported = import::import(
        &memory,
        ImportSource::Path(&place.path("tree")),
        RootNaming::Nix("tree".to_owned()),
        &ImportOptions::default(),
        &ImportProgress::new(),
    );
    let root = imported.unwrap().root;
    let info = memory.path_info(&root.name).unwrap().unwrap();
    (memory, root.name.to_string(), info)
}

/// A store as snix keeps one by default: blobs in an object store, the rest in two files.
fn snix_store(place: &Place) -> (String, String, PathInfo) {
    let (memory, name, info) = imported(place);
    let blobs = format!("objectstore+file://{}", place.path("blobs").display());
    fs::create_dir(place.path("blobs")).unwrap();
    let bucket = place.blocking(ObjectStore::open(&blobs).unwrap());
    let roots = memory.roots().unwrap();
    copy::copy(&memory, &bucket, &roots, &copy::CopyProgress::default()).unwrap();
    // Only the blobs are there.
    fs::remove_dir_all(place.path("blobs/dirs")).unwrap();
    fs::remove_dir_all(place.path("blobs/castore-fs")).unwrap();

    let directories = redb3::Database::create(place.path("directories.redb")).unwrap();
    let transaction = directories.begin_write().unwrap();
    {
        let table = redb3::TableDefinition::<[u8; 32], Vec<u8>>::new("directory");
        let mut table = transaction.open_table(table).unwrap();
        let mut remaining = vec![roots[0].node.borrow().digest().unwrap()];
        while let Some(digest) = remaining.pop() {
            let directory = memory.directory(&digest).unwrap().unwrap();
            let bytes = directory.as_bytes().to_vec();
            table.insert(digest.as_bytes(), bytes).unwrap();
            remaining.extend(directory.iter().filter_map(|entry| match entry.node {
                castore_fs::castore::NodeRef::Directory { digest, .. } => Some(digest),
                _ => None,
            }));
        }
    }
    transaction.commit().unwrap();
    let path_infos = redb3::Database::create(place.path("pathinfo.redb")).unwrap();
    let transaction = path_infos.begin_write().unwrap();
    {
        let table = redb3::TableDefinition::<[u8; 20], Vec<u8>>::new("pathinfo");
        let mut table = transaction.open_table(table).unwrap();
        let hash = output_hash(name.as_bytes()).unwrap();
        table.insert(hash, info.encode_to_vec()).unwrap();
    }
    transaction.commit().unwrap();
    let redb = |file: &str| format!("redb:{}", place.path(file).display());
    let (directories, path_infos) = (redb("directories.redb"), redb("pathinfo.redb"));
    let url = format!("blobs={blobs}&directories={directories}&path-infos={path_infos}");
    (url, name, info)
}

#[test]
fn a_snix_store_is_listed_verified_and_copied_as_it_lies() {
    let place = Place::new();
    let (url, name, info) = snix_store(&place);
    assert_eq!(place.good(&["ls", "--store", &url]), format!("{name}\n"));
    place.good(&["verify", "--store", &url]);
    let target = format!("local:{}", place.path("store").display());
    place.good(&["copy", "--all", "--from", &url, "--to", &target]);
    place.good(&["verify", "--store", &target]);
    place.good(&["export", "--store", &target, &name, "out"]);
    let mut compared = Command::new("diff");
    compared.args(["-r", "--no-dereference"]);
    compared.args([place.path("tree"), place.path("out")]);
    assert!(compared.status().unwrap().success());
    let store = place.blocking(LocalStore::open(&place.path("store")).unwrap());
    assert_eq!(store.path_info(name.as_bytes()).unwrap(), Some(info));
    let refused = place.bad(&["import", "--store", &url, "tree"]);
    assert!(refused.contains("only read"), "{refused}");

    // While a peer has a file open nothing is read from it.
    let peer = redb3::Database::open(place.path("pathinfo.redb")).unwrap();
    let refused = place.bad(&["ls", "--store", &url]);
    assert!(refused.contains("stop the peer first"), "{refused}");
    drop(peer);
    // One file alone has what it has.
    let path_infos = format!("redb:{}", place.path("pathinfo.redb").display());
    assert_eq!(
        place.good(&["ls", "--store", &path_infos]),
        format!("{name}\n")
    );
}

#[test]
fn an_error_about_a_scheme_of_snix_has_the_way_to_migrate() {
    let place = Place::new();
    for url in [
        "bigtable://instance",
        "cache:?near=memory:&far=memory:",
        "lru://",
    ] {
        let reported = place.bad(&["ls", "--store", url]);
        assert!(
            reported.contains("castore-fs copy --all --from"),
            "{reported}"
        );
    }
    let reported = place.bad(&["ls", "--store", "blobs=memory:&directories=memory:"]);
    assert!(reported.contains("path-infos=URL"), "{reported}");
}

/// The graph of the path `name`, which refers to another and to itself.
fn graph(name: &str, nar: &NarHash) -> String {
    let path = format!("/nix/store/{name}");
    let other = "/nix/store/ddwyrxif62r8n6xclvskjyy6szdhvj60-glibc-2.39-5";
    let hash = encode_base32(&nar.sha256);
    let size = nar.size;
    format!(
        r#"{{"name": "image", "closure": [{{"path": "{path}", "narHash": "sha256:{hash}",
        "narSize": {size}, "closureSize": {size}, "references": ["{path}", "{other}"],
        "signatures": ["key-1:cTdhK6hnpPwtMXFX43CYb7v+CbpAusVI/MORZ3v5aHvpBYNg1MfBHVVeoexMBpNtHA8uFAn0aEsJaLXYIDhJDg=="]}}]}}"#
    )
}

#[test]
fn a_closure_is_copied_with_what_its_reference_graph_knows() {
    let place = Place::new();
    let (memory, name, info) = imported(&place);
    let narinfo = info.narinfo.unwrap();
    let nar = NarHash {
        size: narinfo.nar_size,
        sha256: narinfo.nar_sha256[..].try_into().unwrap(),
    };
    fs::create_dir(place.path("paths")).unwrap();
    fs::rename(place.path("tree"), place.path("paths").join(&name)).unwrap();
    fs::write(place.path("graph.json"), graph(&name, &nar)).unwrap();
    let known = |store: &str| {
        let store = place.blocking(LocalStore::open(&place.path(store)).unwrap());
        store.path_info(name.as_bytes()).unwrap()
    };

    // From this machine, and from another store that has the path.
    let closure = [
        "copy",
        "--graph",
        "graph.json",
        "--paths-in",
        "paths",
        "--to",
        "local:one",
    ];
    assert_eq!(place.good(&closure), "1 path; 0 were there already\n");
    assert_eq!(place.good(&closure), "1 path; 1 was there already\n");
    let source = place.blocking(LocalStore::open(&place.path("source")).unwrap());
    let roots = memory.roots().unwrap();
    copy::copy(&memory, &source, &roots, &copy::CopyProgress::default()).unwrap();
    drop(source);
    place.good(&[
        "copy",
        "--graph",
        "graph.json",
        "--from",
        "local:source",
        "--to",
        "local:two",
    ]);
    for store in ["one", "two"] {
        let known = known(store).unwrap();
        assert_eq!(known.references.len(), 2);
        let narinfo = known.narinfo.unwrap();
        assert_eq!(narinfo.nar_sha256[..], nar.sha256);
        assert_eq!(narinfo.signatures.len(), 1);
        assert!(narinfo.reference_names.contains(&name));
    }
    place.good(&["verify", "--store", "local:one"]);

    // What is not the path that is described does not get its name.
    let wrong = NarHash {
        sha256: [7; 32],
        ..nar
    };
    fs::write(place.path("graph.json"), graph(&name, &wrong)).unwrap();
    let hash = NixHash::Sha256(wrong.sha256).to_string();
    for arguments in [
        ["--paths-in", "paths", "--to", "local:three"],
        ["--from", "local:source", "--to", "local:three"],
    ] {
        let refused = place.bad(&[&["copy", "--graph", "graph.json"][..], &arguments].concat());
        assert!(refused.contains(&hash), "{refused}");
        assert_eq!(known("three"), None);
    }
    fs::write(place.path("graph.json"), "[]").unwrap();
    let refused = place.bad(&["copy", "--graph", "graph.json", "--to", "local:three"]);
    assert!(
        refused.contains("graph.json") && refused.contains("no path"),
        "{refused}"
    );
}
