//! A store's records of its roots: when they came, and whether their content has.

use castore_fs::castore::{Digest, Root};
use castore_fs::nix::PathInfo;
use castore_fs::store::{ChunkPlace, Error, Store, StoredChunk};

use crate::garbage::{now, remove};
use crate::tree::*;

/// A tree's node, without the tree.
fn node_of(seed: u64) -> castore_fs::castore::Node {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "tree", seed).unwrap();
    let root = block_on(store.root(b"tree")).unwrap().unwrap();
    root.node
}

#[test]
fn a_root_that_came_before_its_content_is_hidden_until_that_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let root = Root {
        name: name("early"),
        node: node_of(1),
    };
    let info = PathInfo {
        references: vec![],
        ..PathInfo::default()
    };
    let announce = |root: &Root| {
        let ingest = store.ingest().unwrap();
        ingest.put_incomplete_root(root, Some(&info)).unwrap();
        ingest.commit()
    };
    announce(&root).unwrap();
    for store in [store.clone(), open(dir.path())] {
        assert_eq!(block_on(store.root(b"early")).unwrap(), None);
        assert_eq!(block_on(store.roots()).unwrap(), []);
        assert_eq!(block_on(store.path_info(b"early")).unwrap(), None);
        let waiting = block_on(store.incomplete_root(b"early")).unwrap();
        assert_eq!(waiting, Some((root.clone(), Some(info.clone()))));
        assert!(store.root_record(b"early").unwrap().unwrap().incomplete);
    }
    // It may become another as long as its content has not come, and back.
    let other = Root {
        name: name("early"),
        node: node_of(2),
    };
    announce(&other).unwrap();
    announce(&root).unwrap();
    // A part of the content, which no collection removes; then the rest.
    let ingest = store.ingest().unwrap();
    put(&*ingest, &noise(0, 3000)).unwrap();
    ingest.commit().unwrap();
    let version = store.roots_version().unwrap();
    let ingest = store.ingest().unwrap();
    put_tree(&*ingest, 1).unwrap();
    ingest.commit().unwrap();
    assert!(store.roots_version().unwrap() > version);
    store.collect_garbage(&now()).unwrap();
    for store in [store.clone(), open(dir.path())] {
        assert_eq!(verify_whole(&store).0, ["early"]);
        assert_eq!(
            block_on(store.path_info(b"early")).unwrap(),
            Some(info.clone())
        );
        assert_eq!(block_on(store.incomplete_root(b"early")).unwrap(), None);
    }
    // A root whose content is stored is not replaced by a promise.
    let error = announce(&other).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(verify_whole(&store).0, ["early"]);
}

#[test]
fn a_root_keeps_the_time_when_it_became_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "tree", 1).unwrap();
    let added = |store: &castore_fs::store::LocalStore| {
        store.root_record(b"tree").unwrap().unwrap().added.unwrap()
    };
    let first = added(&store);
    let since = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    assert!(first <= since && since - first < 60, "{first} {since}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    add_tree(&store, "tree", 1).unwrap();
    assert_eq!(added(&store), first);
    add_tree(&store, "tree", 2).unwrap();
    assert!(added(&store) > first);
    assert_eq!(store.root_records().unwrap().len(), 1);
}

#[test]
fn a_blobs_chunks_go_with_it_and_are_found_in_another_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (one, two) = (noise(1, 3 << 20), noise(1, 2 << 20));
    let blobs = [&one, &two].map(|bytes| Digest::of(bytes));
    let chunks = |bytes: &[u8]| -> Vec<StoredChunk> {
        let chunks = bytes.chunks(1 << 20).map(|chunk| StoredChunk {
            digest: Digest::of(chunk),
            len: chunk.len() as u64,
        });
        chunks.collect()
    };
    store.set_chunk_list(&blobs[0], &chunks(&one)).unwrap();
    assert_eq!(store.chunk_list(&blobs[0]).unwrap(), None, "it is not here");
    for (root, bytes) in [("one", &one), ("two", &two)] {
        let ingest = store.ingest().unwrap();
        let node = stream(&*ingest, bytes, 1 << 20).unwrap();
        let name = name(root);
        ingest.put_root(&Root { name, node }, None).unwrap();
        ingest.commit().unwrap();
    }
    store.set_chunk_list(&blobs[0], &chunks(&one)).unwrap();
    store.set_chunk_list(&blobs[1], &chunks(&two)).unwrap();
    assert_eq!(
        open(dir.path()).chunk_list(&blobs[0]).unwrap(),
        Some(chunks(&one))
    );
    let second = chunks(&one)[1];
    let place = |blob| ChunkPlace {
        blob,
        offset: 1 << 20,
        len: 1 << 20,
    };
    assert_eq!(store.chunk(&second.digest).unwrap(), Some(place(blobs[0])));
    remove(&store, "one");
    store.collect_garbage(&now()).unwrap();
    assert_eq!(store.chunk_list(&blobs[0]).unwrap(), None);
    // Equal noise starts equally: the second has the first two chunks as well.
    assert_eq!(store.chunk(&second.digest).unwrap(), Some(place(blobs[1])));
    assert_eq!(store.chunk(&chunks(&one)[2].digest).unwrap(), None);
    remove(&store, "two");
    store.collect_garbage(&now()).unwrap();
    assert_eq!(store.chunk(&second.digest).unwrap(), None);
}
