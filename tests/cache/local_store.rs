//! A cache's local store with a damaged index.

use std::fs;
use std::path::Path;

use castore_fs::store::{Cache, CacheOptions, LocalStore, Store};
use castore_fs::stores::{NamedStore, OpenStores, StorePlan, open_all};

use crate::tree::*;
use kit::model::file;

fn damage(local_store: &Path) {
    let mut options = fs::File::options();
    let index = options
        .write(true)
        .open(local_store.join("index.redb"))
        .unwrap();
    index.set_len(20_000).unwrap();
}

fn format(local_store: &Path) -> String {
    fs::read_to_string(local_store.join("format")).unwrap()
}

#[test]
fn a_local_store_that_is_only_a_cache_is_moved_aside_and_starts_empty() {
    let dir = tempfile::tempdir().unwrap();
    let local_store = dir.path().join("near");
    let upstream_store = upstream([1]);
    let url = format!("local:{}", local_store.display());
    let open = || Cache::open(&url, upstream_store.clone(), CacheOptions::default()).unwrap();
    let first = open();
    read_tree(&blocking(first.clone()), 1).unwrap();
    drop(first);
    assert!(format(&local_store).contains("\nuse = cache\n"));
    for _ in 0..2 {
        damage(&local_store);
        let again = open();
        assert_eq!(again.usage().unwrap().unwrap(), Default::default());
        read_tree(&blocking(again.clone()), 1).unwrap();
        again.flush();
        assert!(again.usage().unwrap().unwrap().blobs > 0);
        drop(again);
        assert!(local_store.join("damaged/index.redb").exists());
        assert!(format(&local_store).contains("\nuse = cache\n"));
    }
}

#[test]
fn a_local_store_that_may_hold_imports_is_not_touched_and_the_upstream_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let local_store = dir.path().join("near");
    let upstream_path = dir.path().join("far");
    file("far").put_root(&LocalStore::open(&upstream_path).unwrap(), "of far");
    let local = |name: &str, path: &Path| NamedStore {
        name: name.to_owned(),
        plan: StorePlan::Url(format!("local:{}", path.display())),
    };
    let plan = NamedStore {
        name: "main".to_owned(),
        plan: StorePlan::Cache {
            local_store: Box::new(local("near", &local_store)),
            upstream: Box::new(local("far", &upstream_path)),
            options: CacheOptions::default(),
        },
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let stores = open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap();
    assert!(format(&local_store).contains("\nuse = cache\n"));
    drop(stores);
    // With its first root of its own it is no mere cache any more, in any later opening.
    file("near").put_root(&LocalStore::open(&local_store).unwrap(), "of near");
    assert!(!format(&local_store).contains("cache\n"));
    drop(open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap());
    assert!(!format(&local_store).contains("cache\n"));
    let whole = fs::read(local_store.join("index.redb")).unwrap();
    damage(&local_store);
    let stores = open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap();
    let main = &stores["main"];
    assert!(main.without_cache && main.cache.is_none());
    let root = runtime
        .block_on(main.store.root(b"of far"))
        .unwrap()
        .unwrap();
    assert_eq!(root.name.as_bytes(), b"of far");
    // It is not known to be absent.
    let error = runtime.block_on(main.store.root(b"of near")).unwrap_err();
    assert!(
        error.to_string().contains("castore-fs verify --repair"),
        "{error}"
    );
    assert_eq!(
        fs::metadata(local_store.join("index.redb")).unwrap().len(),
        20_000
    );
    assert!(!local_store.join("damaged").exists());
    // Once it is repaired, it is opened again.
    fs::write(local_store.join("index.redb"), whole).unwrap();
    let stores = open_all(std::slice::from_ref(&plan), &stores).unwrap();
    let root = runtime.block_on(stores["main"].store.root(b"of near"));
    assert!(root.unwrap().is_some() && stores["main"].cache.is_some());
}
