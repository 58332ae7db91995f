//! A cache's local store with a damaged index.

use std::fs;
use std::path::Path;

use castore_fs::store::{Cache, CacheOptions, LocalStore, Store};
use castore_fs::stores::{Named, OpenStores, Plan, open_all};

use crate::tree::*;
use kit::model::file;

fn damage(near: &Path) {
    let mut options = fs::File::options();
    let index = options.write(true).open(near.join("index.redb")).unwrap();
    index.set_len(20_000).unwrap();
}

fn format(near: &Path) -> String {
    fs::read_to_string(near.join("format")).unwrap()
}

#[test]
fn a_local_store_that_is_only_a_cache_is_moved_aside_and_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    let near = folder.path().join("near");
    let far_store = far([1]);
    let url = format!("local:{}", near.display());
    let open = || Cache::open(&url, far_store.clone(), CacheOptions::default()).unwrap();
    let first = open();
    read_tree(&blocking(first.clone()), 1).unwrap();
    drop(first);
    assert!(format(&near).contains("\nuse = cache\n"));
    for _ in 0..2 {
        damage(&near);
        let again = open();
        assert_eq!(again.usage().unwrap().unwrap(), Default::default());
        read_tree(&blocking(again.clone()), 1).unwrap();
        again.flush();
        assert!(again.usage().unwrap().unwrap().blobs > 0);
        drop(again);
        assert!(near.join("damaged/index.redb").exists());
        assert!(format(&near).contains("\nuse = cache\n"));
    }
}

#[test]
fn a_local_store_that_may_hold_imports_is_not_touched_and_the_upstream_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let near = folder.path().join("near");
    let far_path = folder.path().join("far");
    file("far").put_root(&LocalStore::open(&far_path).unwrap(), "of far");
    let local = |name: &str, path: &Path| Named {
        name: name.to_owned(),
        plan: Plan::Url(format!("local:{}", path.display())),
    };
    let plan = Named {
        name: "main".to_owned(),
        plan: Plan::Cache {
            near: Box::new(local("near", &near)),
            far: Box::new(local("far", &far_path)),
            options: CacheOptions::default(),
        },
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let stores = open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap();
    assert!(format(&near).contains("\nuse = cache\n"));
    drop(stores);
    // With its first root of its own it is no mere cache any more, in any later opening.
    file("near").put_root(&LocalStore::open(&near).unwrap(), "of near");
    assert!(!format(&near).contains("cache\n"));
    drop(open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap());
    assert!(!format(&near).contains("cache\n"));
    let whole = fs::read(near.join("index.redb")).unwrap();
    damage(&near);
    let stores = open_all(std::slice::from_ref(&plan), &OpenStores::new()).unwrap();
    let main = &stores["main"];
    assert!(main.without_near && main.cache.is_none());
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
    assert_eq!(fs::metadata(near.join("index.redb")).unwrap().len(), 20_000);
    assert!(!near.join("damaged").exists());
    // Once it is repaired, it is opened again.
    fs::write(near.join("index.redb"), whole).unwrap();
    let stores = open_all(std::slice::from_ref(&plan), &stores).unwrap();
    let root = runtime.block_on(stores["main"].store.root(b"of near"));
    assert!(root.unwrap().is_some() && stores["main"].cache.is_some());
}
