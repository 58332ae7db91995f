//! A process that dies at any moment leaves a store that is whole.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::Duration;

use castore_fs::store::Store;

use crate::dir::{large, records};
use crate::processes::start;
use crate::tree::*;

/// Checks that there is no file that the index does not know.
fn assert_tidy(path: &Path, store: &dyn Store) {
    let remaining: Vec<_> = std::fs::read_dir(path.join("tmp")).unwrap().collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    for digest in large(path) {
        assert!(
            block_on(store.has_blob(&digest)).unwrap(),
            "{digest} is left over"
        );
    }
    // Reads every pack to its last byte: what a dead writer left would be a record too many or
    // no record at all.
    let mut seen = HashSet::new();
    for record in records(path) {
        let known = match &record.tag {
            b"dir " => {
                store.directory_now(&record.digest).unwrap() != castore_fs::store::Answer::Absent
            }
            _ => block_on(store.has_blob(&record.digest)).unwrap(),
        };
        assert!(known, "{record:?} is left over");
        assert!(
            seen.insert((record.tag, record.digest)),
            "{record:?} is there twice"
        );
    }
}

#[test]
fn killed_at_any_moment_an_import_leaves_whole_roots_and_no_litter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    drop(open(path));
    let mut seed = 1;
    let mut through = 0;
    for round in 0..30u64 {
        let mut child = start(&format!("add-for-ever {seed}"), path);
        // Let it finish a few, then some part of one.
        let mut reported = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = Vec::new();
        while lines.len() < round as usize % 3 {
            lines.extend(
                reported
                    .next()
                    .unwrap()
                    .ok()
                    .filter(|line| line.starts_with("done ")),
            );
        }
        thread::sleep(Duration::from_millis((round * 37) % 90));
        child.kill().unwrap();
        child.wait().unwrap();
        lines.extend(reported.map(Result::unwrap));

        let store = open(path);
        let (names, _) = verify_whole(&store);
        for line in &lines {
            if let Some(done) = line.strip_prefix("done ") {
                assert!(names.iter().any(|name| name == done), "{done} was lost");
                through += 1;
            }
        }
        drop(store.ingest().unwrap());
        assert_tidy(path, &store);
        let usage = store.usage().unwrap().unwrap();
        let (_, reached) = verify_whole(&store);
        assert_eq!(usage.blobs, (reached.blobs.len() as u64).saturating_sub(1));
        assert_eq!(usage.directories, reached.directories.len() as u64);
        seed = names.len() as u64 + 1;
    }
    assert!(
        through >= 5,
        "only {through} imports came through: no crash between two was tried"
    );
    // And what was cut short can be finished.
    add_tree(&open(path), "last", 10_000).unwrap();
    verify_whole(&open(path));
}

#[test]
fn what_another_process_is_writing_is_not_litter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let store = open(path);
    let ingest = store.ingest().unwrap();
    let node = put_tree(&*ingest, 1).unwrap();
    // A second opening, as by another process, and a dead process's files beside those of this one.
    std::fs::create_dir(path.join("tmp/1-0")).unwrap();
    std::fs::write(path.join("tmp/1-0/0.part"), b"left").unwrap();
    std::fs::write(path.join("packs/00000077.pack"), b"").unwrap();
    let mut child = start("add 50", path);
    assert!(child.wait().unwrap().success());
    let name = name("ours");
    ingest
        .put_root(&castore_fs::castore::Root { name, node }, None)
        .unwrap();
    ingest.commit().unwrap();
    assert_eq!(verify_whole(&store).0.len(), 21);
    let remaining: Vec<_> = std::fs::read_dir(path.join("tmp")).unwrap().collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    assert!(!path.join("packs/00000077.pack").exists());
}
