//! What is mounted, open or mapped stays in the store while one process ends and the next takes over,
//! whatever is removed and collected meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt;

use castore_fs::castore::Name;
use castore_fs::store::{GcOptions, GcResult, LocalStore, Store};

use super::passthrough::Map;
use super::*;

const MOUNTS: &str = "drain = '60s'\n[stores.disk]\nurl = 'local:@/store'\n\
    [mounts.one]\npath = '@/one'\nroot = 'tree'\n[mounts.all]\npath = '@/all'\n";
const FILES: usize = 6;

/// Small ones, and those that are files of their own in the store.
fn bytes(file: usize) -> Vec<u8> {
    let length = match file % 2 {
        0 => 3_000,
        _ => 1_500_000,
    };
    (0..length)
        .map(|at| (at * 7 + file * 101 + (at >> 12)) as u8)
        .collect()
}

/// Removes roots and collects everything that nothing holds, as another process does.
fn collect(manager: &Manager, remove: &[&str]) -> GcResult {
    let store = LocalStore::open(&manager.join("store")).unwrap();
    let ingest = store.ingest().unwrap();
    for name in remove {
        ingest
            .remove_root(&Name::new(name.as_bytes()).unwrap())
            .unwrap();
    }
    ingest.commit().unwrap();
    let options = GcOptions {
        grace: Duration::ZERO,
        patience: Duration::from_secs(30),
        ..GcOptions::default()
    };
    store.collect_garbage(&options).unwrap()
}

fn assert_reads(file: &File, number: usize) {
    let wanted = bytes(number);
    let mut read = vec![0; wanted.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == wanted, "file {number} has other bytes");
}

#[test]
fn what_is_mounted_open_or_mapped_stays_over_restarts_and_collections() {
    if !can_mount() {
        return;
    }
    let mut manager = Manager::new(MOUNTS);
    let (tree, other) = (manager.join("tree"), manager.join("other"));
    fs::create_dir_all(tree.join("below")).unwrap();
    for file in 0..FILES {
        fs::write(tree.join(format!("below/{file}")), bytes(file)).unwrap();
    }
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "unused").unwrap();
    manager.import(&tree, "tree");
    manager.import(&other, "other");
    manager.start_and_wait();
    // By a mount of every root: a directory's place, an open file and a mapped one.
    let open = |path: &str| File::open(manager.join(path)).unwrap();
    let (held, mapped) = (open("all/tree/below/0"), open("all/tree/below/1"));
    let map = Map::new(&mapped, bytes(1).len()).unwrap();
    drop(mapped);
    let collected = collect(&manager, &["tree", "other"]);
    assert_eq!(collected.blobs, 1, "only what is not in use");
    for round in 0..4 {
        // While no process serves, and while one does.
        manager.kill();
        assert_eq!(collect(&manager, &[]), GcResult::default(), "{round}");
        manager.start_and_wait();
        assert_eq!(collect(&manager, &[]), GcResult::default(), "{round}");
        drop_caches();
        for file in 0..FILES {
            let path = manager.join(&format!("one/below/{file}"));
            assert_reads(&File::open(path).unwrap(), file);
        }
        assert_reads(&held, 0);
        let at = 4096 * (round + 1);
        assert!(map.page(at) == &bytes(1)[at..][..4096], "the mapped file");
    }
    assert_eq!(manager.status()["mounts"]["one"]["taken_over"], true);
    // A stop leaves a mount to those that still use it.
    manager.signal(libc::SIGTERM);
    manager.wait_for("EXTEND_TIMEOUT_USEC=10000000", 1);
    let meanwhile = collect(&manager, &[]).blobs as usize;
    drop_caches();
    assert_reads(&held, 0);
    assert!(map.page(300 * 4096) == &bytes(1)[300 * 4096..][..4096]);
    drop((held, map));
    assert!(manager.wait(), "{}", manager.log());
    let afterwards = collect(&manager, &[]).blobs as usize;
    assert_eq!((meanwhile, afterwards), (0, FILES));
}
