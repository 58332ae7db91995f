//! How a cache frees space, and what it keeps.

use std::fs;
use std::path::Path;
use std::time::Duration;

use castore_fs::store::{Cache, CacheOptions, GcOptions, LocalStore, Store};

use crate::tree::*;
use kit::patience::wait_until;
use kit::small_disk::small_disk;

/// About what a tree takes on the disk.
const TREE: u64 = 8 << 20;

/// Whether the large file of the tree of `seed` is cached: eviction removes it first.
fn is_cached(cache: &Cache, seed: u64) -> bool {
    has(
        cache.local_store(),
        &noise(seed * 100 + 50, (2 << 20) + 333),
    )
}

fn sized(size: u64) -> CacheOptions {
    CacheOptions {
        size: Some(size),
        ..CacheOptions::default()
    }
}

fn read_and_flush(cache: &Cache, seed: u64) {
    read_tree(&blocking(cache.clone()), seed).unwrap();
    cache.flush();
    // Roots are ordered by the millisecond of their use.
    std::thread::sleep(Duration::from_millis(3));
}

#[test]
fn what_was_used_longest_ago_goes_first_and_pins_stay() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream(0..6);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    assert!(cache.pin(&name("tree0")).unwrap());
    assert_eq!(cache.pins(), [name("tree0")]);
    for seed in 0..5 {
        read_and_flush(&cache, seed);
    }
    // Looked at by its digest, so that no root leads there.
    let node = tree(5).put_root(&castore_fs::store::MemoryStore::new(), "x");
    read_all(&blocking(cache.clone()), &tree(5), &node).unwrap();
    cache.flush();
    let size = cache.local_store().disk();
    assert!(is_cached(&cache, 5));
    cache.evict(size - 1).unwrap();
    assert!(
        !is_cached(&cache, 5),
        "what no root reaches is evicted first"
    );
    assert!((0..5).all(|seed| is_cached(&cache, seed)));
    // Used again, by a read and not by a lookup of its root.
    std::thread::sleep(Duration::from_millis(1100));
    let bytes = noise(160, 100);
    let mut buffer = [0; 100];
    let digest = castore_fs::castore::Digest::of(&bytes);
    wait_until("the clock advances", || {
        cache
            .read_now(&digest, 100, 0, &mut buffer.clone())
            .unwrap();
        true
    });
    std::thread::sleep(Duration::from_millis(1100));
    cache.read_now(&digest, 100, 0, &mut buffer).unwrap();
    let size = cache.local_store().disk();
    cache.evict(size / 5 * 3).unwrap();
    let kept: Vec<u64> = (0..5).filter(|seed| is_cached(&cache, *seed)).collect();
    assert_eq!(
        kept,
        [0, 1, 4],
        "0 is pinned, 1 was just read, 4 was used last"
    );
    let status = cache.status();
    assert!(
        status.evictions > 100 && status.size <= size / 5 * 3,
        "{status:?}"
    );
    // What is gone is fetched again, and what stays is whole.
    for seed in 0..5 {
        read_and_flush(&cache, seed);
    }
    cache.drop_cache().unwrap();
    let kept: Vec<u64> = (0..5).filter(|seed| is_cached(&cache, *seed)).collect();
    assert_eq!(kept, [0]);
    assert!(cache.unpin(&name("tree0")).unwrap());
    assert!(!cache.unpin(&name("tree0")).unwrap());
    cache.drop_cache().unwrap();
    assert_eq!(
        cache.local_store().usage().unwrap().unwrap(),
        Default::default()
    );
    read_and_flush(&cache, 0);
}

/// The kernel answers for what is mounted from its own caches, and reports no use.
#[test]
fn what_is_mounted_goes_last_also_when_its_process_has_died() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream(0..4);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    for seed in 0..4 {
        read_and_flush(&cache, seed);
    }
    let root = blocking(cache.clone()).root(b"tree0").unwrap().unwrap();
    let lease = cache.local_store().lease(None).unwrap();
    lease.hold(&root.node);
    let size = cache.local_store().disk();
    let kept = || {
        (0..4)
            .filter(|seed| is_cached(&cache, *seed))
            .collect::<Vec<u64>>()
    };
    cache.evict(size / 4 * 2 + (1 << 20)).unwrap();
    assert_eq!(kept(), [0, 3], "0 is mounted, 3 was used last");
    // As a process leaves it that is killed.
    drop(lease);
    cache.evict(size / 4 + (1 << 20)).unwrap();
    assert_eq!(kept(), [0]);
}

#[test]
fn the_order_of_use_and_the_pins_outlive_the_process() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream(0..4);
    let first = cache(local_store.path(), &upstream_store, CacheOptions::default());
    for seed in [3, 1, 0, 2] {
        read_and_flush(&first, seed);
    }
    first.pin(&name("tree3")).unwrap();
    drop(first);
    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    assert_eq!(again.pins(), [name("tree3")]);
    let size = again.local_store().disk();
    again.evict(size / 100 * 55).unwrap();
    let kept: Vec<u64> = (0..4).filter(|seed| is_cached(&again, *seed)).collect();
    assert_eq!(kept, [2, 3]);
    // A plain collection keeps objects that are reachable from a cached root.
    drop(again);
    let now = GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    };
    LocalStore::open(local_store.path())
        .unwrap()
        .collect_garbage(&now)
        .unwrap();
    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    assert!(is_cached(&again, 2) && is_cached(&again, 3));
}

#[test]
fn a_cache_stays_within_its_size_while_it_is_read() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream(0..8);
    let size = 2 * TREE;
    let cache = cache(local_store.path(), &upstream_store, sized(size));
    for seed in 0..8 {
        read_and_flush(&cache, seed);
        assert!(cache.local_store().disk() <= size + TREE, "tree{seed}");
    }
    wait_until("it is within its size", || {
        cache.local_store().disk() <= size && cache.status().size <= size
    });
    assert!(is_cached(&cache, 7), "the last one stays");
    assert!(!is_cached(&cache, 0));
    assert!(cache.status().evictions > 0);
    for seed in 0..8 {
        read_tree(&blocking(cache.clone()), seed).unwrap();
    }
    // A root that is larger than the cache is kept in part.
    cache.evict(TREE / 4).unwrap();
    assert!(cache.local_store().usage().unwrap().unwrap().blobs > 0);
    read_and_flush(&cache, 0);
}

#[test]
fn the_disk_keeps_its_free_space() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(dir.path(), 64 << 20) else {
        return;
    };
    let upstream_store = upstream(0..12);
    let options = CacheOptions {
        keep_free: Some(40 << 20),
        ..CacheOptions::default()
    };
    let cache = cache(&dir.path().join("near"), &upstream_store, options);
    for seed in 0..12 {
        read_and_flush(&cache, seed);
        assert!(
            free(dir.path()) > 30 << 20,
            "tree{seed}: {}",
            free(dir.path())
        );
    }
    assert!(cache.status().evictions > 0);
    // Another program fills the disk: the cache frees its own space.
    let other = fs::File::create(dir.path().join("other")).unwrap();
    rustix::fs::fallocate(&other, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).unwrap();
    read_and_flush(&cache, 0);
    read_and_flush(&cache, 1);
    wait_until("there is room", || {
        let _ = read_tree(&blocking(cache.clone()), 2);
        cache.flush();
        free(dir.path()) > 36 << 20
    });
}

fn free(path: &Path) -> u64 {
    let found = rustix::fs::statvfs(path).unwrap();
    found.f_bavail * found.f_frsize
}

trait Disk {
    /// Bytes that the store's objects take on the disk.
    fn disk(&self) -> u64;
}

impl Disk for LocalStore {
    fn disk(&self) -> u64 {
        let dir = self.url().trim_start_matches("local:").to_owned();
        ["packs", "blobs", "parts"]
            .iter()
            .map(|name| taken(&Path::new(&dir).join(name)))
            .sum()
    }
}

fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => taken(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
