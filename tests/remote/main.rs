//! Stores over gRPC: the client against castore-fs servers, and against other ones, old, slow,
//! broken or corrupt.

mod access;
mod answers;
mod bounds;
mod chunks;
mod confined;
mod copying;
mod distance;
mod fairness;
mod image;
mod in_order;
mod listing;
mod metered;
mod numbers;
mod peer;
mod reading;
mod rights;
mod trouble;
mod writing;

use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::store::{Ingest, MemoryStore, Store};

pub(crate) use kit::noise::noise;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(crate) fn put_file(ingest: &dyn Ingest, bytes: &[u8]) -> Node {
    let digest = Digest::of(bytes);
    ingest.put_blobs(&[(digest, bytes)]).unwrap();
    Node::File {
        digest,
        size: bytes.len() as u64,
        executable: false,
    }
}

pub(crate) fn put_directory(ingest: &dyn Ingest, entries: Vec<(Name, Node)>) -> Node {
    let directory = Directory::from_entries(entries).unwrap();
    ingest.put_directory(&directory).unwrap();
    directory.node()
}

/// A tree of directories, `width` in each down to `depth`, with a file in each.
pub(crate) fn put_tree(ingest: &dyn Ingest, seed: u64, width: u64, depth: u64) -> Node {
    let mut entries = vec![(name("file"), put_file(ingest, &noise(seed, 100)))];
    if depth > 0 {
        for index in 0..width {
            let child = put_tree(ingest, seed * width + index + 1, width, depth - 1);
            entries.push((name(&format!("dir{index}")), child));
        }
    }
    put_directory(ingest, entries)
}

pub(crate) fn put_root(
    store: &dyn Store,
    root_name: &str,
    put: impl FnOnce(&dyn Ingest) -> Node,
) -> Root {
    let ingest = store.ingest().unwrap();
    let root = Root {
        name: name(root_name),
        node: put(ingest.as_ref()),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    root
}

pub(crate) fn digest_and_size(node: &Node) -> (Digest, u64) {
    match node {
        Node::Directory { digest, size } | Node::File { digest, size, .. } => (*digest, *size),
        Node::Symlink { .. } => panic!("a symlink has no digest"),
    }
}

/// Every directory below `node`, breadth first; gives their number.
pub(crate) async fn walk(store: &dyn Store, node: &Node) -> usize {
    let mut queue = std::collections::VecDeque::from([digest_and_size(node).0]);
    let mut count = 0;
    while let Some(digest) = queue.pop_front() {
        let directory = store.directory(&digest).await.unwrap().unwrap();
        assert_eq!(directory.digest(), digest);
        count += 1;
        queue.extend(directory.iter().filter_map(|entry| match entry.node {
            castore_fs::castore::NodeRef::Directory { digest, .. } => Some(digest),
            _ => None,
        }));
    }
    count
}

pub(crate) fn memory() -> MemoryStore {
    MemoryStore::new()
}
