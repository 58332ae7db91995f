//! Roots: how long an answer is valid, and what works without the upstream.

use std::time::{Duration, Instant};

use castore_fs::store::{Answer, CacheOptions, LocalStore, Store};

use crate::tree::*;
use kit::double::Trouble;
use kit::patience::wait_until;

#[test]
fn a_change_in_the_upstream_is_seen_at_once_if_it_is_reported() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1]);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    let store = blocking(cache.clone());
    let before = store.root(b"tree1").unwrap().unwrap();
    assert_eq!(store.root(b"other").unwrap(), None);
    assert_eq!(
        cache.root_now(b"tree1").unwrap(),
        Answer::Found(before.clone())
    );
    assert_eq!(cache.root_now(b"other").unwrap(), Answer::Absent);
    let version = cache.roots_version().unwrap();
    let (seen, waited) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begun = Instant::now();
            let seen = cache.wait_for_roots(version, Duration::from_secs(20));
            (seen.unwrap(), begun.elapsed())
        });
        tree(2).put_root(&*upstream_store.inner(), "tree1");
        tree(2).put_root(&*upstream_store.inner(), "other");
        waiting.join().unwrap()
    });
    assert_ne!(seen, version);
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert_ne!(store.root(b"tree1").unwrap().unwrap().node, before.node);
    assert!(store.root(b"other").unwrap().is_some());
    assert_eq!(store.roots().unwrap().len(), 2);
}

#[test]
fn without_the_upstream_old_answers_are_served_and_misses_fail_at_once() {
    let local_store = tempfile::tempdir().unwrap();
    let upstream_store = upstream([1]);
    let options = CacheOptions {
        roots_max_age: Duration::ZERO,
        ..CacheOptions::default()
    };
    drop({
        let cache = cache(local_store.path(), &upstream_store, options.clone());
        blocking(cache.clone()).root(b"tree1").unwrap();
        cache
    });
    upstream_store.trouble(Trouble::UnreachableAfter(Duration::from_millis(400)));
    let cache = cache(local_store.path(), &upstream_store, options);
    let store = blocking(cache.clone());
    assert!(
        store.root(b"tree1").unwrap().is_some(),
        "the upstream answers that it is absent"
    );
    // No reader waits a second time, neither for a cached name nor for an unknown one.
    let begun = Instant::now();
    assert!(store.root(b"tree1").unwrap().is_some());
    let error = store.root(b"unknown").unwrap_err().to_string();
    assert!(error.contains("the endpoint is down"), "{error}");
    assert_eq!(store.roots().unwrap().len(), 1);
    // What it remembers is not reported as complete.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(cache.complete_roots()).is_err());
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    assert!(cache.status().upstream_down.is_some());
    // Reachable again, with another node: mounts that hold the old one are notified.
    let version = cache.roots_version().unwrap();
    upstream_store.trouble(Trouble::None);
    tree(2).put_root(&*upstream_store.inner(), "tree1");
    wait_until("the change is noticed", || {
        cache.roots_version().unwrap() > version + 1
    });
    wait_until("the upstream is up", || {
        cache.status().upstream_down.is_none()
    });
}

#[test]
fn the_local_stores_own_roots_are_served_first_and_a_listing_has_both() {
    let local_store = tempfile::tempdir().unwrap();
    let local = LocalStore::open(local_store.path()).unwrap();
    let own = tree(9).put_root(&local, "tree1");
    tree(8).put_root(&local, "own");
    let upstream_store = upstream([1, 2]);
    let cache = cache(local_store.path(), &upstream_store, CacheOptions::default());
    let store = blocking(cache.clone());
    assert_eq!(store.root(b"tree1").unwrap().unwrap().node, own);
    let names: Vec<_> = store
        .roots()
        .unwrap()
        .into_iter()
        .map(|root| root.name.to_string())
        .collect();
    assert_eq!(names, ["own", "tree1", "tree2"]);
    let listed = store.roots().unwrap();
    assert_eq!(listed[1].node, own);
    cache.drop_cache().unwrap();
    read_all(&blocking(local), &tree(9), &own).unwrap();
}
