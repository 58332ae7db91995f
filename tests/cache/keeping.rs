//! What was read stays.

use kit::patience::wait_until;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castore_fs::castore::{Digest, Node};
use castore_fs::fs::{FsOptions, MountRoot, RootListing};
use castore_fs::store::{Answer, CacheOptions, MemoryStore, Prefetch, Store};

use crate::tree::*;
use kit::double::{Double, Trouble};
use kit::model::{directory, file};
use kit::mounted::{Mounted, can_mount};

#[test]
fn what_was_read_outlives_the_process_and_the_upstream() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1, 2]);
    let first = cache(local_store.path(), &upstream_store, CacheOptions::default());
    read_tree(&blocking(first.clone()), 1).unwrap();
    let asked = upstream_store.objects.load(Ordering::Relaxed);
    read_tree(&blocking(first.clone()), 1).unwrap();
    assert_eq!(
        upstream_store.objects.load(Ordering::Relaxed),
        asked,
        "the second read makes no request"
    );
    assert!(first.status().hits > 40 && first.status().misses > 40);
    drop(first);

    upstream_store.trouble(Trouble::Unreachable);
    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    let node = tree(1).put_root(&MemoryStore::new(), "x");
    let Node::Directory { digest, .. } = &node else {
        panic!("a tree is a directory");
    };
    assert!(matches!(
        again.directory_now(digest).unwrap(),
        Answer::Found(_)
    ));
    read_tree(&blocking(again.clone()), 1).unwrap();
    assert_eq!(upstream_store.objects.load(Ordering::Relaxed), asked);
    assert_eq!(again.status().misses, 0);
    let usage = again.usage().unwrap().unwrap();
    assert_eq!((usage.blobs, usage.directories), (42, 3));
    // A read of anything else fails with the upstream's error, at once.
    let error = read_tree(&blocking(again), 2).unwrap_err();
    assert!(
        error.to_string().contains("the endpoint is down"),
        "{error}"
    );
}

#[test]
fn parts_of_a_large_blob_stay_and_become_a_plain_file_when_they_are_all_there() {
    let local_store = tempfile::tempdir().unwrap();
    let bytes = noise(5, (3 << 20) + 12_345);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let memory = MemoryStore::new();
    file(bytes.clone()).put_root(&memory, "large");
    let upstream_store = Arc::new(Double::upstream("far:", memory));
    let read = |cache: &castore_fs::store::Cache, at: u64, len: usize| {
        let mut buffer = vec![0; len];
        let found = blocking(cache.clone()).read(&digest, size, at, &mut buffer);
        let found = found.unwrap().unwrap();
        assert!(buffer[..found] == bytes[at as usize..at as usize + found]);
    };
    let first = cache(local_store.path(), &upstream_store, CacheOptions::default());
    read(&first, 1_000_000, 10);
    assert_eq!(
        upstream_store.bytes.load(Ordering::Relaxed),
        256 << 10,
        "no more than a part"
    );
    read(&first, 3 << 20, 100_000);
    drop(first);
    assert_eq!(
        fs::read_dir(local_store.path().join("parts"))
            .unwrap()
            .count(),
        2
    );

    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    upstream_store.trouble(Trouble::Unreachable);
    let mut buffer = [0; 4096];
    let found = again
        .read_now(&digest, size, 1_000_001, &mut buffer)
        .unwrap();
    assert_eq!(found, Answer::Found(4096));
    assert_eq!(buffer[..], bytes[1_000_001..1_000_001 + 4096]);
    read(&again, size - 5, 5);
    assert_eq!(again.blob_size(&digest).now(), Some(size));
    let lacking = again.read_now(&digest, size, 0, &mut buffer).unwrap();
    assert_eq!(lacking, Answer::Wait);
    assert!(again.backing_file(&digest, size).unwrap().is_none());
    upstream_store.trouble(Trouble::None);
    std::thread::sleep(Duration::from_millis(800));
    let whole = RUNTIME.block_on(again.read(&digest, size, 0, size as usize));
    assert!(whole.unwrap().unwrap()[..] == bytes[..]);
    again.flush();
    wait_until("the blob is whole", || has(again.local_store(), &bytes));
    assert_eq!(
        upstream_store.bytes.load(Ordering::Relaxed),
        size,
        "each part came once"
    );
    assert!(again.backing_file(&digest, size).unwrap().is_some());
    wait_until("its parts are gone", || {
        fs::read_dir(local_store.path().join("parts"))
            .unwrap()
            .count()
            == 0
    });
    upstream_store.trouble(Trouble::Unreachable);
    read(&again, 12_345, 1 << 20);
}

/// What a future gives that has nothing to wait for.
trait Now<T> {
    fn now(self) -> T;
}

impl<T, F: Future<Output = Result<T, castore_fs::store::Error>>> Now<T> for F {
    fn now(self) -> T {
        RUNTIME.block_on(self).unwrap()
    }
}

#[test]
fn a_thousand_readers_of_a_cold_blob_cause_one_download() {
    let local_store = tempfile::tempdir().unwrap();
    let bytes = noise(6, 900_000);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let memory = MemoryStore::new();
    file(bytes.clone()).put_root(&memory, "blob");
    let upstream_store = Arc::new(Double::upstream("far:", memory));
    upstream_store.trouble(Trouble::Slow(Duration::from_millis(50)));
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    RUNTIME.block_on(async {
        let mut readers = tokio::task::JoinSet::new();
        for at in 0..1000u64 {
            let cache = cache.clone();
            readers.spawn(async move { (at, cache.read(&digest, size, at * 800, 64).await) });
        }
        while let Some(read) = readers.join_next().await {
            let (at, read) = read.unwrap();
            let at = at as usize * 800;
            assert_eq!(read.unwrap().unwrap()[..], bytes[at..at + 64]);
        }
    });
    assert_eq!(upstream_store.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_prefetch_brings_everything_and_continues_where_it_stopped() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1, 2]);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    let progress = Arc::new(Prefetch::default());
    let none = RUNTIME.block_on(cache.prefetch(&[name("none")], &progress));
    let error = none.unwrap_err().to_string();
    assert!(error.contains("no root of that name"), "{error}");
    let names = [name("tree1"), name("tree2")];
    RUNTIME
        .block_on(cache.prefetch(&names[..1], &progress))
        .unwrap();
    let get = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!(get(&progress.bytes), get(&progress.total_bytes));
    assert_eq!((get(&progress.directories), get(&progress.blobs)), (3, 43));
    let bytes = upstream_store.bytes.load(Ordering::Relaxed);
    let progress = Arc::new(Prefetch::default());
    RUNTIME.block_on(cache.prefetch(&names, &progress)).unwrap();
    assert_eq!(
        upstream_store.bytes.load(Ordering::Relaxed),
        2 * bytes,
        "one tree more"
    );
    upstream_store.trouble(Trouble::Unreachable);
    for seed in [1, 2] {
        read_tree(&blocking(cache.clone()), seed).unwrap();
    }
    assert_eq!(cache.local_store().usage().unwrap().unwrap().blobs, 84);
}

#[test]
fn additions_go_to_the_upstream() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([]);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    assert!(blocking(cache.clone()).root(b"tree3").unwrap().is_none());
    let before = cache.roots_version().unwrap();
    tree(3).put_root(&cache, "tree3");
    assert_ne!(cache.roots_version().unwrap(), before);
    read_tree(&blocking(cache.clone()), 3).unwrap();
    assert!(
        RUNTIME
            .block_on(upstream_store.inner().root(b"tree3"))
            .unwrap()
            .is_some()
    );
    drop(cache);
    assert!(
        RUNTIME
            .block_on(
                castore_fs::store::LocalStore::open(local_store.path())
                    .unwrap()
                    .root(b"tree3")
            )
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_mount_works_and_starts_without_the_upstream() {
    if !can_mount() {
        return;
    }
    let local_store = tempfile::tempdir().unwrap();
    let memory = MemoryStore::new();
    let model = directory([("tree", tree(7)), ("huge", file(noise(70, (5 << 20) + 7)))]);
    model.put_root(&memory, "root");
    let upstream_store = Arc::new(Double::upstream("far:", memory));
    let options = || FsOptions {
        mount_root: MountRoot::Roots {
            list: RootListing::All,
        },
        ..FsOptions::default()
    };
    let old = CacheOptions {
        roots_max_age: Duration::ZERO,
        ..CacheOptions::default()
    };
    for round in 0..3 {
        let cache = cache(local_store.path(), &upstream_store, old.clone());
        let mount = Mounted::new(Arc::new(cache.clone()), options());
        model.assert_is_at(&mount.join("root"));
        assert_eq!(
            fs::read_dir(mount.path()).unwrap().count(),
            1,
            "round {round}"
        );
        upstream_store.trouble(Trouble::Unreachable);
        model.assert_is_at(&mount.join("root"));
        cache.flush();
    }
}
