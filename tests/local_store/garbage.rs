//! Garbage collection: objects that no root reaches are removed, and no others, also beside other
//! processes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use castore_fs::castore::Digest;
use castore_fs::store::{Answer, Error, GcOptions, GcResult, LocalStore, Store};

use crate::dir::{files, large, records};
use crate::processes::start;
use crate::tree::*;

/// Collects at once, sparing nothing.
pub(crate) fn now() -> GcOptions {
    GcOptions {
        grace: Duration::ZERO,
        dry_run: false,
        patience: Duration::from_secs(60),
    }
}

pub(crate) fn remove(store: &dyn Store, root: &str) {
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&name(root)).unwrap();
    ingest.commit().unwrap();
}

/// Bytes that the store's objects take on its disk.
fn on_disk(path: &Path) -> u64 {
    let objects = files(path).into_iter();
    let objects = objects.filter(|file| !file.ends_with("index.redb"));
    objects
        .map(|file| std::fs::metadata(file).unwrap().blocks() * 512)
        .sum()
}

#[test]
fn what_no_root_leads_to_goes_and_the_disk_has_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let store = open(path);
    for seed in 0..8 {
        add_tree(&store, &format!("tree{seed}"), seed).unwrap();
    }
    let before = (
        store.usage().unwrap().unwrap(),
        on_disk(path),
        records(path).len(),
    );
    assert_eq!(store.collect_garbage(&now()).unwrap(), GcResult::default());
    assert_eq!(
        (
            store.usage().unwrap().unwrap(),
            on_disk(path),
            records(path).len()
        ),
        before
    );
    for seed in [1, 2, 3, 4, 6, 7] {
        remove(&store, &format!("tree{seed}"));
    }
    let (_, reached) = verify_whole(&store);
    let dry = store.collect_garbage(&GcOptions {
        dry_run: true,
        ..now()
    });
    let dry = dry.unwrap();
    assert_eq!(
        store.usage().unwrap().unwrap(),
        before.0,
        "a dry run changes nothing"
    );
    assert_eq!(on_disk(path), before.1);
    let collected = store.collect_garbage(&now()).unwrap();
    assert_eq!(
        (collected.blobs, collected.blob_bytes),
        (dry.blobs, dry.blob_bytes)
    );
    assert_eq!(collected.directories, dry.directories);
    assert_eq!(collected.freed, before.1 - on_disk(path));
    assert!(
        collected.freed > dry.freed * 8 / 10 && collected.freed < dry.freed * 12 / 10,
        "{collected:?} {dry:?}"
    );
    let usage = store.usage().unwrap().unwrap();
    assert_eq!(usage.blobs, reached.blobs.len() as u64 - 1);
    assert_eq!(usage.directories, reached.directories.len() as u64);
    assert_eq!(before.0.blobs - usage.blobs, collected.blobs);
    assert_eq!(before.0.blob_bytes - usage.blob_bytes, collected.blob_bytes);
    // Every record is live, every large file too, and nothing is left to collect.
    let objects = usage.blobs + usage.directories;
    assert_eq!(records(path).len() as u64, objects);
    assert_eq!(large(path).len(), 3);
    assert_eq!(store.collect_garbage(&now()).unwrap(), GcResult::default());
    verify_whole(&store);
    assert_eq!(verify_whole(&open(path)).0, ["tree0", "tree5"]);
    // What was collected comes again.
    add_tree(&store, "tree3", 3).unwrap();
    remove(&store, "tree0");
    remove(&store, "tree5");
    store.collect_garbage(&now()).unwrap();
    assert_eq!(verify_whole(&store).0, ["tree3"]);
    remove(&store, "tree3");
    store.collect_garbage(&now()).unwrap();
    assert_eq!(store.usage().unwrap().unwrap(), Default::default());
    assert_eq!((records(path).len(), large(path).len()), (0, 0));
    assert!(files(&path.join("packs")).is_empty(), "packs are left");
    add_tree(&store, "tree", 9).unwrap();
    verify_whole(&open(path));
}

#[test]
fn what_is_young_or_was_a_root_a_moment_ago_is_spared_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "removed", 1).unwrap();
    // Comes without a root, as over the network.
    let ingest = store.ingest().unwrap();
    put_tree(&*ingest, 2).unwrap();
    ingest.commit().unwrap();
    remove(&store, "removed");
    let spared = store.collect_garbage(&GcOptions::default()).unwrap();
    assert_eq!(spared, GcResult::default());
    // Half of it counts as a root, the other half as young: each spares its own.
    let usage = store.usage().unwrap().unwrap();
    let collected = store.collect_garbage(&now()).unwrap();
    assert_eq!(
        (collected.blobs, collected.directories),
        (usage.blobs, usage.directories)
    );
}

#[test]
fn a_reader_with_an_old_view_gets_no_wrong_byte_and_finds_what_came_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let writer = open(path);
    for seed in 0..4 {
        add_tree(&writer, &format!("tree{seed}"), seed).unwrap();
    }
    let reader = open(path);
    let (_, all) = verify_whole(&reader);
    let sizes: Vec<(Digest, u64)> = all
        .blobs
        .iter()
        .map(|digest| {
            (
                *digest,
                block_on(reader.blob_size(digest)).unwrap().unwrap(),
            )
        })
        .collect();
    remove(&writer, "tree1");
    remove(&writer, "tree3");
    writer.collect_garbage(&now()).unwrap();
    let (_, kept) = verify_whole(&writer);
    // A second, whose files were never open.
    for (digest, size) in &sizes {
        let mut bytes = vec![0; *size as usize];
        match reader.read_now(digest, *size, 0, &mut bytes).unwrap() {
            Answer::Found(_) => assert_eq!(Digest::of(&bytes), *digest),
            Answer::Absent => assert!(
                !kept.blobs.contains(digest),
                "{digest} is reported as absent"
            ),
            Answer::Wait => panic!("nothing to wait for"),
        }
        assert!(reader.backing_file(digest, *size).is_ok());
    }
    for digest in &all.directories {
        let found = reader.directory_now(digest).unwrap();
        assert!(found != Answer::Absent || !kept.directories.contains(digest));
    }
    add_tree(&writer, "tree1", 1).unwrap();
    add_tree(&writer, "tree3", 3).unwrap();
    assert_eq!(verify_whole(&reader).1.blobs.len(), sizes.len());
    // A reader that checks the roots now and then keeps no removed file open.
    remove(&writer, "tree3");
    writer.collect_garbage(&now()).unwrap();
    reader.roots_version().unwrap();
    let open: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|file| file.starts_with(path) && file.to_string_lossy().ends_with("(deleted)"))
        .filter(|file| file.starts_with(path.join("packs")) || file.starts_with(path.join("blobs")))
        .collect();
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn an_addition_keeps_what_it_counts_on_and_a_collection_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "tree", 1).unwrap();
    let Answer::Found(root) = store.root_now(b"tree").unwrap() else {
        panic!("it was just added");
    };
    remove(&store, "tree");
    let ingest = store.ingest().unwrap();
    assert!(ingest.has_blob(&Digest::of(&noise(0, 3000))).unwrap());
    let impatient = GcOptions {
        patience: Duration::from_millis(50),
        ..now()
    };
    let error = open(dir.path()).collect_garbage(&impatient).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(
        error.to_string().contains("additions were under way"),
        "{error}"
    );
    thread::scope(|scope| {
        let waiting = scope.spawn(|| open(dir.path()).collect_garbage(&now()));
        thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        // Nothing of it is sent again: the addition counts on all of it.
        ingest.put_root(&root, None).unwrap();
        ingest.commit().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), GcResult::default());
    });
    assert_eq!(verify_whole(&store).0, ["tree"]);
}

#[test]
fn imports_and_readers_work_beside_collections() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let store = open(path);
    add_tree(&store, "stays", 500).unwrap();
    let mut children = [
        start("churn 0", path),
        start("churn 1000", path),
        start("collect 12", path),
    ];
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut passes = 0;
    while !children
        .iter_mut()
        .all(|child| child.try_wait().unwrap().is_some())
    {
        let Answer::Found(root) = store.root_now(b"stays").unwrap() else {
            panic!("a root went away");
        };
        let mut reached = Reached::default();
        walk(&store, root.node.borrow(), &mut reached);
        assert!(reached.errors.is_empty(), "{:?}", reached.errors);
        passes += 1;
        assert!(Instant::now() < deadline, "it never ends");
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(passes > 1);
    store.collect_garbage(&now()).unwrap();
    let (names, reached) = verify_whole(&store);
    assert_eq!(names.len(), 1 + 2 * 4, "{names:?}");
    let usage = store.usage().unwrap().unwrap();
    assert_eq!(usage.blobs, reached.blobs.len() as u64 - 1);
    assert_eq!(usage.directories, reached.directories.len() as u64);
}

#[test]
fn killed_at_any_moment_a_collection_loses_nothing_and_the_next_one_finishes_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let store = open(path);
    add_tree(&store, "stays", 500).unwrap();
    for round in 0..25u64 {
        let mut child = start(&format!("churn-for-ever {}", round * 100), path);
        thread::sleep(Duration::from_millis(30 + (round * 41) % 160));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(path);
        let (names, _) = verify_whole(&store);
        assert!(names.iter().any(|name| name == "stays"), "{names:?}");
        if round % 5 == 4 {
            store.collect_garbage(&now()).unwrap();
            let (_, reached) = verify_whole(&store);
            let usage = store.usage().unwrap().unwrap();
            assert_eq!(usage.blobs, reached.blobs.len() as u64 - 1);
            assert_eq!(
                records(path).len() as u64,
                usage.blobs + usage.directories,
                "records are left over"
            );
            assert!(
                large(path)
                    .iter()
                    .all(|digest| reached.blobs.contains(digest))
            );
        }
    }
    let _: &LocalStore = &store;
}
