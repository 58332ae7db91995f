//! Garbage collection of an object store.

mod additions;
mod failures;
mod phases;

use std::collections::BTreeSet;
use std::time::Duration;

use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::store::{BucketGcOptions, BucketGcReport, Error, Ingest, ObjectStore, Store};
use kit::bucket::S3Bucket;
use kit::noise::noise;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Another process's view of the bucket.
fn open(bucket: &S3Bucket) -> ObjectStore {
    ObjectStore::open(&bucket.url()).unwrap()
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

/// Small blobs, one of several chunks, and one that is in every tree.
fn blobs(seed: u64) -> Vec<Vec<u8>> {
    let small = (0..5).map(|index| noise(seed * 10 + index, 100));
    let mut blobs: Vec<_> = small.collect();
    blobs.push(noise(seed * 10 + 5, 2 << 20));
    blobs.push(b"common".to_vec());
    blobs
}

fn file(blob: &[u8]) -> Node {
    Node::File {
        digest: Digest::of(blob),
        size: blob.len() as u64,
        executable: false,
    }
}

/// A Directory of these blobs, and one above it.
fn directories(blobs: &[Vec<u8>]) -> [Directory; 2] {
    let entries = blobs.iter().enumerate();
    let entries = entries.map(|(index, blob)| (name(&index.to_string()), file(blob)));
    let below = Directory::from_entries(entries.collect()).unwrap();
    let above = Directory::from_entries(vec![(name("below"), below.node())]).unwrap();
    [below, above]
}

fn put_blobs(ingest: &dyn Ingest, blobs: &[Vec<u8>]) {
    for blob in blobs {
        ingest.put_blobs(&[(Digest::of(blob), blob)]).unwrap();
    }
}

/// Adds the Directories of blobs that are there, and a root.
fn commit_tree(ingest: Box<dyn Ingest>, root: &str, blobs: &[Vec<u8>]) -> Result<(), Error> {
    let directories = directories(blobs);
    for directory in &directories {
        ingest.put_directory(directory)?;
    }
    let node = directories[1].node();
    let name = name(root);
    ingest.put_root(&Root { name, node }, None)?;
    ingest.commit().map(drop)
}

fn add(store: &ObjectStore, root: &str, seed: u64) {
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(seed));
    put_blobs(&*ingest, &blobs);
    commit_tree(ingest, root, &blobs).unwrap();
}

fn remove(store: &ObjectStore, root: &str) {
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&name(root)).unwrap();
    ingest.commit().unwrap();
}

fn collect(bucket: &S3Bucket, grace: Duration) -> Result<BucketGcReport, Error> {
    open(bucket).collect_garbage(&BucketGcOptions {
        grace,
        dry_run: false,
    })
}

/// The node of a root.
fn read_root(bucket: &S3Bucket, name: &str) -> Node {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = runtime.block_on(open(bucket).root(name.as_bytes()));
    root.unwrap().unwrap().node
}

/// The names of the roots, after everything below them was read.
fn read_all(bucket: &S3Bucket) -> Vec<String> {
    let store = open(bucket);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut names = Vec::new();
        for root in store.roots().await.unwrap() {
            names.push(String::from_utf8(root.name.as_bytes().to_vec()).unwrap());
            let mut next = vec![root.node];
            while let Some(node) = next.pop() {
                match node {
                    Node::Symlink { .. } => {}
                    Node::File { digest, size, .. } => {
                        let read = store.read(&digest, size, 0, size as usize).await;
                        assert_eq!(Digest::of(&read.unwrap().unwrap()), digest);
                    }
                    Node::Directory { digest, .. } => {
                        let directory = store.directory(&digest).await.unwrap().unwrap();
                        next.extend(directory.iter().map(|entry| entry.node.to_owned().unwrap()));
                    }
                }
            }
        }
        names
    })
}

/// What a bucket with only the tree of `seed` has.
fn objects_of(seed: u64) -> BTreeSet<String> {
    let bucket = S3Bucket::start();
    add(&open(&bucket), "tree", seed);
    bucket.collected().into_iter().collect()
}

/// A bucket with the trees 1 and 2, as old as the grace, and the root of 2 removed.
fn with_garbage() -> S3Bucket {
    let bucket = S3Bucket::start();
    add(&open(&bucket), "one", 1);
    add(&open(&bucket), "two", 2);
    remove(&open(&bucket), "two");
    bucket.advance(HOUR);
    bucket
}
