//! Many small files that are read in order come together, whatever reads them: a program through a
//! mount of a cache, an export, a prefetch.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Digest, Node};
use castore_fs::store::{
    Answer, Blocking, Cache, CacheOptions, GrpcStore, LocalStore, Prefetch, Store,
};
use castore_fs::tree::TreePath;
use castore_fs::tree::export::{ExportProgress, to_directory};
use castore_fs::tree::tar::write_tar;
use kit::model::{Model, directory, file};
use kit::mounted::{Mounted, can_mount};
use kit::server::Server;

use super::{memory, name, noise};

const DIRECTORIES: u64 = 20;
const FILES: u64 = 50;
/// Calls for 1,000 files of 8 KB, some for each MB and each time that the reader is found: with one a
/// file there would be a thousand.
const CALLS: u64 = 40;

/// A tree in a server, and a client of that.
fn served() -> (Model, Node, Server, GrpcStore) {
    let files = |at: u64| {
        let files = (0..FILES).map(|file_at| {
            let content = noise(at * FILES + file_at, 8000);
            (format!("file{file_at:02}"), file(content))
        });
        directory(files)
    };
    let model = directory((0..DIRECTORIES).map(|at| (format!("directory{at:02}"), files(at))));
    let store = memory();
    let node = model.put_root(&store, "tree");
    let server = Server::tcp(Arc::new(store));
    let client = server.client();
    (model, node, server, client)
}

fn cache(dir: &std::path::Path, upstream: &GrpcStore) -> Cache {
    let local_store = LocalStore::open(dir).unwrap();
    Cache::new(
        local_store,
        Arc::new(upstream.clone()),
        CacheOptions::default(),
    )
    .unwrap()
}

fn assert_few(client: &GrpcStore) {
    assert!(client.calls() <= CALLS, "{} calls", client.calls());
}

#[test]
fn a_walk_through_a_cache_makes_few_calls_and_all_stays() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (model, node, _server, client) = served();
    let cache = cache(dir.path(), &client);
    let mount = Mounted::mount_root(Arc::new(cache.clone()), &node);
    let tar = Command::new("tar")
        .args(["--sort=name", "-cf", "/dev/zero", "-C"])
        .arg(mount.path())
        .arg(".")
        .status()
        .unwrap();
    assert!(tar.success());
    assert_few(&client);
    model.assert_is_at(mount.path());
    drop(mount);
    cache.flush();
    let usage = cache.local_store().usage().unwrap().unwrap();
    assert_eq!(usage.blobs, DIRECTORIES * FILES);
    assert_few(&client);
    // The cache has them: a copy in the client's memory would have no reader.
    for seed in 0..DIRECTORIES * FILES {
        let content = noise(seed, 8000);
        let digest = Digest::of(&content);
        let answer = client.read_now(&digest, 8000, 0, &mut [0; 8000]).unwrap();
        assert_eq!(answer, Answer::Wait);
    }
}

#[test]
fn an_export_makes_few_calls() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, node, _server, client) = served();
    let store = Blocking::new(Arc::new(client.clone()), runtime.handle().clone());
    let target = dir.path().join("tree");
    let path = TreePath::new(b"tree");
    to_directory(&store, &path, &node, &target, &ExportProgress::default()).unwrap();
    let read = std::fs::read(target.join("directory07/file09")).unwrap();
    assert_eq!(read, noise(7 * FILES + 9, 8000));
    assert_few(&client);
}

#[test]
fn an_archive_makes_few_calls() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, node, _server, client) = served();
    let store = Blocking::new(Arc::new(client.clone()), runtime.handle().clone());
    let path = TreePath::new(b"tree");
    let mut archive = Vec::new();
    let progress = ExportProgress::default();
    write_tar(&store, &path, &node, b"tree", &mut archive, &progress).unwrap();
    assert!(archive.len() as u64 > DIRECTORIES * FILES * 8000);
    assert_few(&client);
}

#[test]
fn a_prefetch_makes_few_calls_and_none_for_what_is_cached() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, _, _server, client) = served();
    let cache = cache(dir.path(), &client);
    let progress = Arc::new(Prefetch::default());
    let names = [name("tree")];
    runtime.block_on(cache.prefetch(&names, &progress)).unwrap();
    let blobs = progress.blobs.load(Ordering::Relaxed);
    assert_eq!(blobs, DIRECTORIES * FILES);
    assert_few(&client);
    let before = client.calls();
    let again = Arc::new(Prefetch::default());
    runtime.block_on(cache.prefetch(&names, &again)).unwrap();
    assert!(client.calls() <= before + 2, "{}", client.calls() - before);
}

#[test]
fn what_the_upstream_has_in_memory_is_read_in_place_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, _, _server, client) = served();
    let cache = cache(dir.path(), &client);
    let content = noise(0, 8000);
    let digest = Digest::of(&content);
    let mut buffer = vec![0; 100];
    let mut read = |offset| cache.read_now(&digest, 8000, offset, &mut buffer).unwrap();
    assert_eq!(read(4000), Answer::Wait);
    runtime.block_on(client.read(&digest, 8000, 0, 1)).unwrap();
    assert_eq!(read(4000), Answer::Found(100));
    assert_eq!(buffer, content[4000..4100]);
    // A claim of another size is no shortcut to it.
    let claimed = cache.read_now(&digest, 7999, 0, &mut buffer).unwrap();
    assert_eq!(claimed, Answer::Wait);
    cache.flush();
    let mut whole = vec![0; 8000];
    let kept = cache.local_store().read_now(&digest, 8000, 0, &mut whole);
    assert_eq!(kept.unwrap(), Answer::Found(8000));
    assert_eq!(whole, content);
}
