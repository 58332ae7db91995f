//! Trees to put into stores, and checks that what comes out is what went in.

use std::collections::BTreeSet;
use std::path::Path;

use castore_fs::castore::{Digest, Directory, Name, Node, NodeRef, Root};
use castore_fs::store::{AddedTotals, Answer, BlobWriter, Error, Ingest, LocalStore, Store};

pub(crate) use kit::noise::noise;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(crate) fn open(path: &Path) -> LocalStore {
    LocalStore::open(path).unwrap()
}

/// Runs what is async in a store, which is nothing that ever waits.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

pub(crate) fn file(bytes: &[u8]) -> Node {
    Node::File {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        executable: false,
    }
}

pub(crate) fn put(ingest: &dyn Ingest, bytes: &[u8]) -> Result<Node, Error> {
    ingest.put_blobs(&[(Digest::of(bytes), bytes)])?;
    Ok(file(bytes))
}

/// Puts a blob by its writer, in pieces of `step` bytes.
pub(crate) fn stream(ingest: &dyn Ingest, bytes: &[u8], step: usize) -> Result<Node, Error> {
    let mut writer: Box<dyn BlobWriter> = ingest.blob_writer()?;
    for buffer in bytes.chunks(step) {
        writer.write(buffer)?;
    }
    let (digest, size) = writer.finish()?;
    assert_eq!((digest, size), (Digest::of(bytes), bytes.len() as u64));
    Ok(file(bytes))
}

pub(crate) fn put_directory(
    ingest: &dyn Ingest,
    entries: Vec<(String, Node)>,
) -> Result<Node, Error> {
    let entries = entries
        .into_iter()
        .map(|(text, node)| (name(&text), node))
        .collect();
    let directory = Directory::from_entries(entries).unwrap();
    ingest.put_directory(&directory)?;
    Ok(directory.node())
}

/// Puts a tree of `seed`'s own with some files that all trees have, small and large.
pub(crate) fn put_tree(ingest: &dyn Ingest, seed: u64) -> Result<Node, Error> {
    let mut tree_root = Vec::new();
    for dir in 0..4 {
        let mut entries = vec![("shared".to_owned(), put(ingest, &noise(dir, 3000))?)];
        for at in 0..6 {
            let own = seed * 100 + dir * 10 + at;
            let len = (own as usize * 7919) % 60_000;
            entries.push((format!("file{at}"), put(ingest, &noise(own + 1000, len))?));
        }
        let node = put_directory(ingest, entries)?;
        tree_root.push((format!("dir{dir}"), node));
    }
    tree_root.push(("empty".to_owned(), put(ingest, b"")?));
    let large = noise(seed + 1, (1 << 20) + 77 * (seed as usize + 1));
    tree_root.push(("large".to_owned(), stream(ingest, &large, 300_000)?));
    let shared = noise(0, (2 << 20) + 5);
    tree_root.push(("shared large".to_owned(), stream(ingest, &shared, 1 << 20)?));
    put_directory(ingest, tree_root)
}

/// Puts a tree and a root node for it.
pub(crate) fn add_tree(store: &dyn Store, root: &str, seed: u64) -> Result<AddedTotals, Error> {
    let ingest = store.ingest()?;
    let node = put_tree(&*ingest, seed)?;
    let name = name(root);
    ingest.put_root(&Root { name, node }, None)?;
    ingest.commit()
}

pub(crate) fn read_all(store: &dyn Store, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; size as usize];
    match store.read_now(digest, size, 0, &mut bytes)? {
        Answer::Found(read) => assert_eq!(read, bytes.len()),
        other => panic!("{digest} is {other:?}"),
    }
    Ok(bytes)
}

/// What a tree is made of.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    pub blobs: BTreeSet<Digest>,
    pub directories: BTreeSet<Digest>,
    pub errors: Vec<Error>,
}

/// Reads everything below `node`, once in whole and once in awkward pieces.
pub(crate) fn walk(store: &dyn Store, node: NodeRef<'_>, reached: &mut Reached) {
    match node {
        NodeRef::Symlink { .. } => {}
        NodeRef::File { digest, size, .. } => {
            if !reached.blobs.insert(digest) {
                return;
            }
            let whole = match read_all(store, &digest, size) {
                Ok(whole) => whole,
                Err(error) => return reached.errors.push(error),
            };
            assert_eq!(Digest::of(&whole), digest, "a wrong byte was given out");
            let mut buffer = vec![0; 10_001];
            let mut offset = 0;
            while offset < size {
                match store.read_now(&digest, size, offset, &mut buffer) {
                    Ok(Answer::Found(read)) => {
                        let at = offset as usize;
                        assert!(
                            buffer[..read] == whole[at..at + read],
                            "wrong bytes at {at}"
                        );
                        offset += read as u64;
                    }
                    Ok(other) => panic!("{digest} is {other:?}"),
                    Err(error) => return reached.errors.push(error),
                }
            }
        }
        NodeRef::Directory { digest, .. } => {
            if !reached.directories.insert(digest) {
                return;
            }
            match store.directory_now(&digest) {
                Ok(Answer::Found(directory)) => directory
                    .iter()
                    .for_each(|entry| walk(store, entry.node, reached)),
                Ok(other) => panic!("{digest} is {other:?}"),
                Err(error) => reached.errors.push(error),
            }
        }
    }
}

/// Reads everything that the store's roots promise; gives their names.
pub(crate) fn verify(store: &dyn Store) -> (Vec<String>, Reached) {
    let roots = block_on(store.roots()).unwrap();
    let mut reached = Reached::default();
    for root in &roots {
        walk(store, root.node.borrow(), &mut reached);
    }
    let names = roots.iter().map(|root| root.name.to_string()).collect();
    (names, reached)
}

/// As [`verify`], where nothing may be wrong.
pub(crate) fn verify_whole(store: &dyn Store) -> (Vec<String>, Reached) {
    let (names, reached) = verify(store);
    assert!(reached.errors.is_empty(), "{:?}", reached.errors);
    (names, reached)
}
