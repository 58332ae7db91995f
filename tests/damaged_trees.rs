//! Trees in stores that have lost or damaged parts of them: what an export, a walk and a check report.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Digest, Directory, Name, Node, NodeRef};
use castore_fs::store::{Blocking, MemoryStore, Object, Store};
use castore_fs::tree::export::{ExportProgress, to_directory};
use castore_fs::tree::verify::{self, FaultCause};
use castore_fs::tree::{TreeError, TreePath, TreeWalk};
use kit::double::Double;
use kit::model::{Model, directory, file, program};
use tokio::runtime::Runtime;

/// A store with a tree as its root `tree`, and the runtime that it waits on.
struct Sound {
    runtime: Runtime,
    memory: MemoryStore,
    store: Blocking,
    node: Node,
}

impl Sound {
    fn new(tree: &Model) -> Self {
        let memory = MemoryStore::new();
        let node = tree.put_root(&memory, "tree");
        let runtime = Runtime::new().unwrap();
        let store = Blocking::new(Arc::new(memory.clone()), runtime.handle().clone());
        Self {
            runtime,
            memory,
            store,
            node,
        }
    }
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

/// The digest of a directory.
fn digest(tree: &Model) -> Digest {
    let ingest = MemoryStore::new().ingest().unwrap();
    tree.put(&*ingest).digest().unwrap()
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let tree = directory([
        ("a", directory([("ok", file(b"fine"))])),
        ("b", directory([("gone", file(b"gone"))])),
        ("z", file(b"last")),
    ]);
    let sound = Sound::new(&tree);
    let spoiled =
        Double::local_store("spoiled:", sound.memory.clone()).without(&Digest::of(b"gone"));
    let store = Blocking::new(Arc::new(spoiled), sound.runtime.handle().clone());
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let path = TreePath::new(b"tree");
    let error = to_directory(
        &store,
        &path,
        &sound.node,
        &target,
        &ExportProgress::default(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        format!(
            "tree/b/gone: spoiled: does not have the blob {}",
            Digest::of(b"gone")
        )
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let stopped = ExportProgress::default();
    stopped
        .stop
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let error = to_directory(&sound.store, &path, &sound.node, &target, &stopped);
    assert!(matches!(error, Err(TreeError::Interrupted)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn verify_reads_each_object_once() {
    let part = directory([("x", file(b"same")), ("y", file(b"same")), ("z", file(b""))]);
    let tree = directory([("a", part.clone()), ("b", part.clone()), ("c", part)]);
    let sound = Sound::new(&tree);
    let spoiled = Arc::new(Double::local_store("spoiled:", sound.memory.clone()));
    let store = Blocking::new(spoiled.clone(), sound.runtime.handle().clone());
    let roots = [
        (TreePath::new(b"tree"), sound.node.clone()),
        (TreePath::new(b"again"), sound.node.clone()),
    ];
    let report = verify::verify(&store, &roots, &verify::VerifyProgress::default()).unwrap();
    assert_eq!(
        (report.directories, report.blobs, report.blob_bytes),
        (2, 2, 4)
    );
    assert!(report.faults.is_empty());
    assert_eq!(spoiled.objects.load(Ordering::Relaxed), 4);
}

#[test]
fn verify_names_every_path_that_damage_spoils() {
    let lost = directory([("deep", file(b"never read"))]);
    let part = directory([
        ("bad", program(b"bad")),
        ("good", file(b"good")),
        ("lost", lost.clone()),
    ]);
    let tree = directory([
        ("a", part.clone()),
        ("b", directory([("part", part), ("gone", file(b"gone"))])),
        ("good", directory([("good", file(b"good"))])),
    ]);
    let sound = Sound::new(&tree);
    let spoiled = Double::local_store("spoiled:", sound.memory.clone())
        .without(&Digest::of(b"gone"))
        .without(&digest(&lost))
        .damaging(&Digest::of(b"bad"));
    let store = Blocking::new(Arc::new(spoiled), sound.runtime.handle().clone());
    let roots = [(TreePath::new(b"tree"), sound.node.clone())];
    let report = verify::verify(&store, &roots, &verify::VerifyProgress::default()).unwrap();
    let faults: Vec<_> = report
        .faults
        .iter()
        .map(|fault| {
            let paths = fault.paths.iter().map(ToString::to_string);
            let missing = matches!(fault.why, FaultCause::Missing);
            (fault.object, missing, paths.collect::<Vec<_>>())
        })
        .collect();
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    assert_eq!(
        faults,
        [
            (
                Object::Blob,
                false,
                paths(&["tree/a/bad", "tree/b/part/bad"])
            ),
            (
                Object::Directory,
                true,
                paths(&["tree/a/lost", "tree/b/part/lost"])
            ),
            (Object::Blob, true, paths(&["tree/b/gone"])),
        ]
    );
}

/// However many sizes nodes state for a blob, and however large: it is reported once.
#[test]
fn verify_reports_a_blob_once() {
    let (missing, sound) = (Digest::of(b"missing"), Digest::of(b"12345"));
    let memory = MemoryStore::new();
    let ingest = memory.ingest().unwrap();
    ingest.put_blobs(&[(sound, b"12345")]).unwrap();
    let file = |digest, size| Node::File {
        digest,
        size,
        executable: false,
    };
    let entries = (1..1000u64).flat_map(|size| {
        [
            (
                name(&format!("missing-{size:04}")),
                file(missing, size << 52),
            ),
            (name(&format!("sound-{size:04}")), file(sound, size)),
        ]
    });
    let tree = Directory::from_entries(entries.collect()).unwrap();
    ingest.put_directory(&tree).unwrap();
    ingest.commit().unwrap();
    let store = Arc::new(Double::local_store("double:", memory));
    let runtime = Runtime::new().unwrap();
    let blocking = Blocking::new(store.clone(), runtime.handle().clone());
    let roots = [(TreePath::new(b"tree"), tree.node())];
    let report = verify::verify(&blocking, &roots, &verify::VerifyProgress::default()).unwrap();
    assert_eq!((report.directories, report.blobs), (1, 2));
    let [first, second] = &report.faults[..] else {
        panic!("{} faults", report.faults.len());
    };
    assert_eq!(first.why.to_string(), "missing");
    assert_eq!(first.paths.len() as u64 + first.more_paths, 999);
    assert_eq!(
        second.why.to_string(),
        "the node states the size 1, and the object has the size 5"
    );
    assert_eq!(second.paths.len() as u64 + second.more_paths, 998);
    // Not once for each piece of its stated size.
    let asked = store.objects.load(Ordering::Relaxed);
    assert!(asked < 100, "{asked} questions");
}

#[test]
fn a_directory_that_cannot_be_read_is_one_error_of_a_walk() {
    let lost = directory([("x", file(b"x"))]);
    let tree = directory([("lost", lost.clone()), ("next", file(b"y"))]);
    let sound = Sound::new(&tree);
    let spoiled = Double::local_store("spoiled:", sound.memory.clone()).without(&digest(&lost));
    let store = Blocking::new(Arc::new(spoiled), sound.runtime.handle().clone());
    let mut walk = TreeWalk::new(&store, TreePath::new(b"tree"), sound.node.clone());
    let mut seen = Vec::new();
    loop {
        match walk.step() {
            Ok(None) => break,
            Ok(Some(step)) => seen.push(step.path.to_string()),
            Err(error) => seen.push(error.to_string()),
        }
    }
    assert_eq!(seen[..2], ["tree", "tree/lost"]);
    assert!(seen[2].starts_with("tree/lost: spoiled: does not have the directory "));
    assert_eq!(seen[3..], ["tree/next"]);
    // What follows an unreadable directory is still where it belongs.
    let mut walk = TreeWalk::new(&store, TreePath::new(b"tree"), sound.node.clone());
    while walk.step().is_ok() {}
    let step = walk.step().unwrap().unwrap();
    assert!(matches!(step.node, NodeRef::File { size: 1, .. }));
    assert_eq!(step.depth, 1);
}
