//! A cache in front of several stores, of which one is in trouble.

use std::sync::Arc;

use castore_fs::castore::Digest;
use castore_fs::store::{Cache, CacheOptions, Error, JoinedStore, MemberOrder, Mirrors, Store};

use super::{empty, put};
use kit::double::{Double, Trouble};

fn cache(upstream: Arc<dyn Store>) -> (Cache, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let local_store = format!("local:{}", dir.path().join("near").display());
    (
        Cache::open(&local_store, upstream, CacheOptions::default()).unwrap(),
        dir,
    )
}

fn members(doubles: [&Arc<Double>; 2]) -> Vec<(String, Arc<dyn Store>)> {
    let members = doubles.map(|double| {
        let store: Arc<dyn Store> = Arc::<Double>::clone(double);
        (double.url().to_owned(), store)
    });
    members.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_members_failure_does_not_make_the_others_unreachable() {
    let (a, b) = (empty("a"), empty("b"));
    for number in 0..20 {
        put(
            &*b.inner(),
            &format!("tree-{number}"),
            &format!("file {number}"),
        );
    }
    a.trouble(Trouble::Unreachable);
    let mirrors = Mirrors::new("store:m".to_owned(), members([&a, &b]), MemberOrder::Listed);
    let joined = JoinedStore::new("store:j".to_owned(), members([&b, &a]));
    let stores: [Arc<dyn Store>; 2] = [Arc::new(mirrors), Arc::new(joined)];
    for upstream in stores {
        let (cache, _dir) = cache(upstream);
        for number in 0..20 {
            let contents = format!("file {number}");
            let digest = Digest::of(contents.as_bytes());
            let size = contents.len() as u64;
            // In between, something that only the other might have.
            let missing = cache.read(&Digest::of(&[number]), 1, 0, 1).await;
            let error = missing.unwrap_err();
            assert!(matches!(error, Error::Undecided { .. }), "{error}");
            let read = cache.read(&digest, size, 0, 100).await.unwrap();
            assert_eq!(read.unwrap(), contents);
        }
        assert_eq!(cache.status().upstream_down, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_there_when_every_member_is_gone() {
    let (a, b) = (empty("a"), empty("b"));
    let tree = put(&*a.inner(), "tree", "contents");
    let mirrors = Mirrors::new("store:m".to_owned(), members([&a, &b]), MemberOrder::Listed);
    let (cache, _dir) = cache(Arc::new(mirrors));
    let (blob, size) = (Digest::of(b"contents"), 8);
    assert!(cache.root(b"tree").await.unwrap().is_some());
    assert!(cache.directory(&tree.digest()).await.unwrap().is_some());
    assert!(cache.read(&blob, size, 0, 8).await.unwrap().is_some());
    for trouble in [Trouble::Unreachable, Trouble::SendsCorruptBytes] {
        a.trouble(trouble);
        b.trouble(trouble);
        assert!(cache.root(b"tree").await.unwrap().is_some());
        assert!(cache.directory(&tree.digest()).await.unwrap().is_some());
        let read = cache.read(&blob, size, 0, 8).await.unwrap();
        assert_eq!(read.unwrap(), "contents");
        assert!(cache.directory(&Digest::of(b"other")).await.is_err());
    }
}
