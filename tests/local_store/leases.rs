//! Objects in use are not collected, by any process.

use std::fs;
use std::path::Path;

use castore_fs::castore::Node;
use castore_fs::store::{GcOptions, GcResult, LocalStore, SparedObjects, Store};

use crate::garbage::{now, remove};
use crate::processes::command;
use crate::tree::*;

/// A store with a tree; and its node.
fn sample() -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "tree", 3).unwrap();
    let root = block_on(store.root(b"tree")).unwrap().unwrap();
    (dir, root.node)
}

fn collect(path: &Path) -> GcResult {
    open(path).collect_garbage(&now()).unwrap()
}

fn assert_readable(store: &LocalStore, node: &Node) {
    let mut reached = Reached::default();
    walk(store, node.borrow(), &mut reached);
    assert!(reached.errors.is_empty(), "{:?}", reached.errors);
}

fn leases(path: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(path.join("leases")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

#[test]
fn what_is_in_use_stays_after_its_root_was_removed_until_it_is_released() {
    let (dir, node) = sample();
    let path = dir.path();
    let store = open(path);
    let lease = store.lease(None).unwrap();
    assert!(lease.hold(&node));
    assert!(!lease.hold(&node), "it is held already");
    remove(&store, "tree");
    let usage = store.usage().unwrap();
    let report = store.collect_and_report(&now()).unwrap();
    assert_eq!(report.removed, GcResult::default());
    // All of it is in use, whatever else would spare it.
    let usage = usage.unwrap();
    let in_use = SparedObjects {
        blobs: usage.blobs,
        blob_bytes: usage.blob_bytes,
        directories: usage.directories,
    };
    assert_eq!(report.in_use, in_use);
    let young = store.collect_and_report(&GcOptions::default()).unwrap();
    assert_eq!(
        (young.in_use, young.grace),
        (in_use, SparedObjects::default())
    );
    assert_eq!(store.usage().unwrap(), Some(usage));
    assert_readable(&store, &node);
    lease.release(&node);
    assert!(collect(path).blobs > 0);
    lease.end();
    assert_eq!(leases(path).len(), 0);
}

#[test]
fn a_lease_stays_small_however_much_was_held_in_its_time() {
    let (dir, node) = sample();
    let path = dir.path();
    let store = open(path);
    let lease = store.lease(None).unwrap();
    lease.hold(&node);
    for seed in 0..5000_u64 {
        let other = file(&seed.to_le_bytes());
        lease.hold(&other);
        lease.release(&other);
    }
    let files = leases(path);
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(fs::metadata(&files[0]).unwrap().len() < 300_000);
    remove(&store, "tree");
    assert_eq!(collect(path), GcResult::default());
}

/// A process that died may be followed by another, which takes over its guest.
#[test]
fn what_a_dead_process_had_in_use_stays_for_a_while_and_not_over_a_boot() {
    use std::io::{BufRead, BufReader};
    let (dir, node) = sample();
    let path = dir.path();
    let mut child = command("lease", path).spawn().unwrap();
    let mut reported = BufReader::new(child.stdout.take().unwrap()).lines();
    reported
        .find(|line| line.as_ref().unwrap() == "held")
        .unwrap()
        .unwrap();
    let store = open(path);
    remove(&store, "tree");
    assert_eq!(collect(path), GcResult::default());
    child.kill().unwrap();
    child.wait().unwrap();
    for _ in 0..2 {
        assert_eq!(collect(path), GcResult::default());
    }
    assert_readable(&store, &node);
    let files = leases(path);
    assert_eq!(files.len(), 1);
    let text = fs::read_to_string(&files[0]).unwrap();
    assert_eq!(text.matches("dead ").count(), 1, "{text}");
    // An hour later, or after a reboot, the lease has expired.
    let (long_ago, other_boot) = (
        text.replace("dead ", "dead 1\ndead "),
        text.replace("boot ", "boot 0"),
    );
    for over in [long_ago, other_boot] {
        add_tree(&store, "tree", 3).unwrap();
        remove(&store, "tree");
        fs::write(&files[0], over).unwrap();
        assert!(collect(path).blobs > 0);
        assert_eq!(leases(path).len(), 0);
    }
}
