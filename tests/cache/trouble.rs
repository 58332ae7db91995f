//! Trouble at either end, and what a reader notices of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use castore_fs::store::{Cache, CacheOptions, LocalStore, MemoryStore, Store};
use castore_fs::stores::open;

use crate::tree::*;
use kit::double::{Double, Trouble};
use kit::model::file;
use kit::patience::wait_until;
use kit::small_disk::small_disk;

#[test]
fn a_full_disk_makes_the_cache_stream_and_it_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(dir.path(), 24 << 20) else {
        return;
    };
    let upstream_store = upstream(0..3);
    let cache = cache(
        &dir.path().join("near"),
        &upstream_store,
        CacheOptions::default(),
    );
    read_tree(&blocking(cache.clone()), 0).unwrap();
    cache.flush();
    let filler = dir.path().join("filler");
    let file = fs::File::create(&filler).unwrap();
    let found = rustix::fs::statvfs(dir.path()).unwrap();
    let rest = found.f_bavail * found.f_frsize;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, rest).unwrap();
    for _ in 0..2 {
        read_tree(&blocking(cache.clone()), 1).unwrap();
        cache.flush();
    }
    let why = cache.status().backoff.unwrap();
    assert!(why.contains("free some space"), "{why}");
    assert!(cache.status().not_stored > 0);
    read_tree(&blocking(cache.clone()), 0).unwrap();
    drop(file);
    fs::remove_file(&filler).unwrap();
    wait_until("it keeps again", || {
        read_tree(&blocking(cache.clone()), 2).unwrap();
        cache.flush();
        cache.status().backoff.is_none()
    });
    // An object that was not kept and has left the memory is fetched again, and kept then.
    drop(cache);
    let cache = crate::tree::cache(
        &dir.path().join("near"),
        &upstream_store,
        CacheOptions::default(),
    );
    for seed in 0..3 {
        read_tree(&blocking(cache.clone()), seed).unwrap();
    }
    cache.flush();
    upstream_store.trouble(Trouble::Unreachable);
    for seed in 0..3 {
        read_tree(&blocking(cache.clone()), seed).unwrap();
    }
}

#[test]
fn a_damaged_byte_in_the_local_store_is_detected_and_fetched_again() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1]);
    let first = cache(local_store.path(), &upstream_store, CacheOptions::default());
    read_tree(&blocking(first.clone()), 1).unwrap();
    first.flush();
    wait_until("the large blob is whole", || {
        first.local_store().usage().unwrap().unwrap().blobs == 42
    });
    drop(first);
    let mut spoilt = 0;
    for file in files(local_store.path()) {
        let text = file.to_string_lossy();
        if !text.contains("/packs/") && !text.contains("/blobs/") {
            continue;
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&file)
            .unwrap();
        let len = file.metadata().unwrap().len();
        // In every object of more than a few bytes.
        for at in (100..len).step_by(997) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt > 1000);
    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    read_tree(&blocking(again.clone()), 1).unwrap();
    again.flush();
    wait_until("everything is repaired", || {
        read_tree(&blocking(again.clone()), 1).unwrap();
        again.flush();
        again.status().repairs >= 40
    });
    drop(again);
    upstream_store.trouble(Trouble::Unreachable);
    let again = cache(local_store.path(), &upstream_store, CacheOptions::default());
    read_tree(&blocking(again.clone()), 1).unwrap();
    assert_eq!(again.status().repairs, 0);
}

#[test]
fn a_damaged_part_or_its_map_is_detected_and_fetched_again() {
    let local_store = tempfile::tempdir().unwrap();
    let bytes = noise(5, 4 << 20);
    let digest = castore_fs::castore::Digest::of(&bytes);
    let memory = MemoryStore::new();
    file(bytes.clone()).put_root(&memory, "large");
    let upstream_store = Arc::new(Double::upstream("far:", memory));
    let read = |cache: &Cache| {
        let mut buffer = vec![0; 600_000];
        let read = blocking(cache.clone()).read(&digest, 4 << 20, 1_000_000, &mut buffer);
        assert_eq!(read.unwrap(), Some(600_000));
        assert!(buffer[..] == bytes[1_000_000..1_600_000]);
    };
    drop({
        let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
        read(&cache);
        cache.flush();
        cache
    });
    let hex = digest.to_hex();
    let part = |end: &str| {
        local_store
            .path()
            .join("parts")
            .join(format!("{hex}.{end}"))
    };
    let spoil = |path: &Path, at: u64| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
    };
    for (end, at) in [("data", 1_234_567), ("map", 100), ("map", 20), ("map", 0)] {
        spoil(&part(end), at);
        let before = upstream_store.reads.load(Ordering::Relaxed);
        let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
        read(&cache);
        assert!(
            upstream_store.reads.load(Ordering::Relaxed) > before,
            "{end} at {at}"
        );
        cache.flush();
        wait_until("the part is kept", || {
            let mut buffer = [0; 10];
            drop(cache.local_store().clone());
            cache
                .read_now(&digest, 4 << 20, 1_000_000, &mut buffer)
                .is_ok()
                && part("map").exists()
        });
        drop(cache);
    }
    // Wrong bits in the map are detected by the bytes.
    let map = fs::File::options()
        .read(true)
        .write(true)
        .open(part("map"))
        .unwrap();
    let len = map.metadata().unwrap().len();
    map.write_all_at(&[0xff; 2], len - 2).unwrap();
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    let whole = RUNTIME
        .block_on(cache.read(&digest, 4 << 20, 0, 4 << 20))
        .unwrap();
    assert!(whole.unwrap()[..] == bytes[..]);
}

fn files(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn a_corrupt_upstream_gets_no_wrong_byte_into_the_local_store() {
    let local_store = tempfile::tempdir().unwrap();
    let corrupt = Arc::new(Double {
        flip_at: Some(50),
        ..Double::upstream("corrupt:", store_with([1]))
    });
    let corrupted = cache(local_store.path(), &corrupt, CacheOptions::default());
    let error = read_tree(&blocking(corrupted.clone()), 1).unwrap_err();
    assert!(error.to_string().contains("corrupt:"), "{error}");
    drop(corrupted);
    let short = Arc::new(Double {
        cut_short: true,
        ..Double::upstream("far:", store_with([1]))
    });
    let cut = cache(local_store.path(), &short, CacheOptions::default());
    let error = read_tree(&blocking(cut.clone()), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("bytes instead of"), "{error}");
    drop(cut);
    let honest = upstream([1]);
    read_tree(
        &blocking(cache(local_store.path(), &honest, CacheOptions::default())),
        1,
    )
    .unwrap();
}

#[test]
fn a_slow_local_disk_delays_no_reader() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1]);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    // A long garbage collection holds the lock, so that nothing can be written.
    let lock = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(local_store.path().join("additions"))
        .unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let begun = std::time::Instant::now();
    read_tree(&blocking(cache.clone()), 1).unwrap();
    read_tree(&blocking(cache.clone()), 1).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(cache.local_store().usage().unwrap().unwrap().blobs, 0);
    drop(lock);
    cache.flush();
    assert!(cache.local_store().usage().unwrap().unwrap().blobs >= 41);
}

const LOCAL_STORE: &str = "CASTORE_FS_TEST_NEAR";
const UPSTREAM: &str = "CASTORE_FS_TEST_FAR";

/// What a child process runs; as a test it has nothing to show.
#[test]
fn child() {
    let (Ok(local_store), Ok(upstream_store)) =
        (std::env::var(LOCAL_STORE), std::env::var(UPSTREAM))
    else {
        return;
    };
    let upstream_store = open(&upstream_store).unwrap();
    let local_store = LocalStore::open(local_store.as_ref()).unwrap();
    let options = CacheOptions {
        size: Some(12 << 20),
        ..CacheOptions::default()
    };
    let cache = Cache::new(local_store, upstream_store, options).unwrap();
    println!("\nreading");
    for round in 0.. {
        read_tree(&blocking(cache.clone()), round % 4).unwrap();
        if round % 3 == 0 {
            cache.drop_cache().unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment_a_cache_serves_no_wrong_byte_and_works_afterwards() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_dir = tempfile::tempdir().unwrap();
    let upstream_store = LocalStore::open(upstream_dir.path()).unwrap();
    for seed in 0..4 {
        tree(seed).put_root(&upstream_store, &format!("tree{seed}"));
    }
    let upstream_store: Arc<dyn Store> = Arc::new(upstream_store);
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "trouble::child", "--nocapture"])
            .env(LOCAL_STORE, local_store.path())
            .env(UPSTREAM, format!("local:{}", upstream_dir.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reported = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(reported.map_while(Result::ok).any(|line| line == "reading"));
        thread::sleep(Duration::from_millis(20 + (round * 53) % 300));
        child.kill().unwrap();
        child.wait().unwrap();
        let local_store = LocalStore::open(local_store.path()).unwrap();
        let cache =
            Cache::new(local_store, upstream_store.clone(), CacheOptions::default()).unwrap();
        for seed in 0..4 {
            read_tree(&blocking(cache.clone()), seed).unwrap();
        }
        assert_eq!(cache.status().backoff, None);
        cache.flush();
    }
}
