//! Stores made of stores, each of which fails, hangs, delays, corrupts or truncates. Time is the
//! runtime's paused clock: nothing here sleeps.

mod cached;
mod joined;
mod mirrored;
mod planned;

use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::Directory;
use castore_fs::store::{Answer, MemoryStore, Store};

use kit::double::Double;
use kit::model::{directory, file};

/// An empty upstream.
fn empty(url: &'static str) -> Arc<Double> {
    holding(url, &MemoryStore::new())
}

/// An upstream with the content of `store`.
fn holding(url: &'static str, store: &MemoryStore) -> Arc<Double> {
    Arc::new(Double::upstream(url, store.clone()))
}

/// Adds a root `name`: a directory with one file with `contents`. Returns the directory.
fn put(store: &dyn Store, name: &str, contents: &str) -> Directory {
    let node = directory([("file", file(contents))]).put_root(store, name);
    let digest = node.digest().expect("a directory has a digest");
    match store.directory_now(&digest).unwrap() {
        Answer::Found(directory) => directory,
        other => panic!("{other:?}"),
    }
}

/// Fails unless a waiter for the roots of `whole` is woken when those of one of `members` change.
fn assert_changes_are_noticed(whole: &dyn Store, members: [&Arc<Double>; 2]) {
    for member in members {
        let seen = whole.roots_version().unwrap();
        std::thread::scope(|scope| {
            let patience = Duration::from_secs(20);
            let waiter = scope.spawn(move || whole.wait_for_roots(seen, patience).unwrap());
            put(&*member.inner(), "new", "1");
            assert_ne!(waiter.join().unwrap(), seen);
        });
    }
}
