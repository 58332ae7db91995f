//! Trees to read through a cache, and readers of them.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use castore_fs::castore::{Digest, Name, Node};
use castore_fs::store::{Blocking, Cache, CacheOptions, Error, LocalStore, MemoryStore, Store};
use tokio::runtime::Runtime;

use kit::double::Double;
use kit::model::{Model, directory, file};
pub(crate) use kit::noise::noise;

pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Small files, files of several groups, and one of several parts: some 3 MB.
pub(crate) fn tree(seed: u64) -> Model {
    let own = |at: u64| file(noise(seed * 100 + at, 1000 + 7001 * at as usize));
    directory([
        ("empty", file("")),
        ("few", directory((0..5).map(|at| (at.to_string(), own(at))))),
        ("large", file(noise(seed * 100 + 50, (2 << 20) + 333))),
        (
            "more",
            directory((5..40).map(|at| (at.to_string(), own(at)))),
        ),
        ("small", file(noise(seed * 100 + 60, 100))),
    ])
}

/// A store that has the trees of `seeds` as `tree<seed>`.
pub(crate) fn store_with(seeds: impl IntoIterator<Item = u64>) -> MemoryStore {
    let store = MemoryStore::new();
    for seed in seeds {
        tree(seed).put_root(&store, &format!("tree{seed}"));
    }
    store
}

pub(crate) fn upstream(seeds: impl IntoIterator<Item = u64>) -> Arc<Double> {
    Arc::new(Double::upstream("far:", store_with(seeds)))
}

pub(crate) fn cache(local_store: &Path, upstream: &Arc<Double>, options: CacheOptions) -> Cache {
    Cache::new(
        LocalStore::open(local_store).unwrap(),
        upstream.clone(),
        options,
    )
    .unwrap()
}

pub(crate) fn blocking(store: impl Store + 'static) -> Blocking {
    Blocking::new(Arc::new(store), RUNTIME.handle().clone())
}

/// Reads everything below `node` in awkward pieces, and checks every byte.
pub(crate) fn read_all(store: &Blocking, model: &Model, node: &Node) -> Result<(), Error> {
    match (model, node) {
        (Model::Directory(entries), Node::Directory { digest, .. }) => {
            let found = store.directory(digest)?;
            let found = found.unwrap_or_else(|| panic!("directory {digest} is absent"));
            for entry in found.iter() {
                read_all(store, &entries[entry.name], &entry.node.to_owned().unwrap())?;
            }
            Ok(())
        }
        (Model::File { bytes, .. }, Node::File { digest, size, .. }) => {
            let mut buffer = vec![0; 300_001];
            let mut at = 0;
            while at < bytes.len() {
                let read = store.read(digest, *size, at as u64, &mut buffer)?;
                let read = read.unwrap_or_else(|| panic!("blob {digest} is absent"));
                assert!(read > 0);
                assert!(
                    buffer[..read] == bytes[at..at + read],
                    "wrong bytes at {at}"
                );
                at += read;
            }
            Ok(())
        }
        other => panic!("{other:?} do not match"),
    }
}

/// Reads the tree of `seed` through its root.
pub(crate) fn read_tree(store: &Blocking, seed: u64) -> Result<(), Error> {
    let root = store.root(format!("tree{seed}").as_bytes())?;
    read_all(store, &tree(seed), &root.expect("the root is there").node)
}

/// Whether the blob that `bytes` are is whole in a store.
pub(crate) fn has(store: &impl Store, bytes: &[u8]) -> bool {
    RUNTIME
        .block_on(store.has_blob(&Digest::of(bytes)))
        .unwrap()
}
