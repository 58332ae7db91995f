//! How much of each root a cache reports to have.

use castore_fs::store::{CacheOptions, CachedShare, Store};

use super::tree::{RUNTIME, blocking, cache, name, read_tree, tree, upstream};
use kit::model::Model;

fn bytes(model: &Model) -> u64 {
    match model {
        Model::Directory(entries) => entries.values().map(bytes).sum(),
        Model::File { bytes, .. } => bytes.len() as u64,
        _ => 0,
    }
}

#[test]
fn the_cached_share_of_a_root_grows_with_what_is_read_and_asks_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = upstream([1]);
    let cache = cache(dir.path(), &upstream, CacheOptions::default());
    let share = || {
        cache.flush();
        upstream.asked();
        let (shares, omitted) = cache.shares().unwrap();
        assert_eq!((upstream.asked(), omitted), (0, 0));
        shares
    };
    assert_eq!(share(), []);
    let root = RUNTIME.block_on(cache.root(b"tree1")).unwrap().unwrap();
    let known: Vec<CachedShare> = share();
    assert_eq!(
        (known[0].name.as_str(), known[0].missing_directories),
        ("tree1", 1)
    );
    assert_eq!(known[0].share(), None, "what is below is not known");

    // A part of the large file.
    let castore_fs::castore::Node::Directory { digest, .. } = root.node else {
        panic!("a tree");
    };
    let directory = blocking(cache.clone()).directory(&digest).unwrap().unwrap();
    let large = directory
        .iter()
        .find(|entry| entry.name == b"large")
        .unwrap();
    let castore_fs::castore::NodeRef::File { digest, size, .. } = large.node else {
        panic!("a file");
    };
    let mut buffer = vec![0; 1000];
    blocking(cache.clone())
        .read(&digest, size, 0, &mut buffer)
        .unwrap();
    kit::patience::wait_until("the part is on the disk", || share()[0].cached_bytes > 0);
    let part = &share()[0];
    assert!(
        part.cached_bytes < size && part.known_bytes > size,
        "{part:?}"
    );
    assert_eq!(part.missing_directories, 2);

    read_tree(&blocking(cache.clone()), 1).unwrap();
    cache.pin(&name("tree1")).unwrap();
    cache.pin(&name("later")).unwrap();
    kit::patience::wait_until("all of it is on the disk", || {
        share()[0].share() == Some(1.0)
    });
    let whole = share();
    let [tree1, later] = &whole[..] else {
        panic!("{whole:?}");
    };
    assert_eq!(
        (tree1.known_bytes, tree1.cached_bytes),
        (bytes(&tree(1)), bytes(&tree(1)))
    );
    assert!(tree1.pinned && later.pinned);
    assert_eq!((later.name.as_str(), later.share()), ("later", None));
    assert_eq!(cache.status().pins, ["later", "tree1"]);
}
