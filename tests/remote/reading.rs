//! What is there is read, whole and right, in few round trips.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Digest, Node};
use castore_fs::store::{Answer, GrpcStore, Store};

use super::peer::{CHUNK, Peer};
use super::{digest_and_size, memory, noise, put_file, put_root, put_tree, walk};
use kit::server::Server;

const NIX_NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";

/// Lengths around every boundary: empty, one group, one extent, several, in memory, in a file.
const LENGTHS: [usize; 9] = [
    0,
    1,
    16_384,
    262_144,
    262_145,
    1_000_000,
    4 << 20,
    (8 << 20) + 1,
    10_000_000,
];

async fn reads_right(client: &GrpcStore, blob: &[u8]) {
    let (digest, size) = (Digest::of(blob), blob.len() as u64);
    for (offset, length) in [
        (0, 1),
        (0, blob.len()),
        (blob.len() / 2, 5000),
        (blob.len().saturating_sub(10), 100),
        (blob.len() / 3, 1 << 20),
        (blob.len() + 5, 10),
    ] {
        let read = client.read(&digest, size, offset as u64, length).await;
        let expected = &blob[offset.min(blob.len())..(offset + length).min(blob.len())];
        assert_eq!(read.unwrap().unwrap(), expected, "{size} at {offset}");
        let mut buffer = vec![0; length];
        match client.read_now(&digest, size, offset as u64, &mut buffer) {
            Ok(Answer::Found(found)) => assert_eq!(&buffer[..found], expected),
            other => panic!("{size} at {offset}: it was just read, yet {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_all_sizes_read_right_from_every_kind_of_server() {
    let store = memory();
    let ingest = store.ingest().unwrap();
    let blobs: Vec<_> = LENGTHS.iter().map(|&len| noise(len as u64, len)).collect();
    for blob in &blobs {
        put_file(ingest.as_ref(), blob);
    }
    ingest.commit().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("socket").display());
    let peer = || Peer {
        store: store.clone(),
        ..Peer::default()
    };
    for server in [
        Server::tcp(Arc::new(store.clone())),
        Server::start(Arc::new(store.clone()), &socket, false),
        peer().serve(false),
        peer().serve(true),
    ] {
        let client = server.client();
        for blob in &blobs {
            reads_right(&client, blob).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_absent_and_no_error() {
    let store = memory();
    let peer = Peer {
        store: store.clone(),
        ..Peer::default()
    };
    let missing = Digest::of(b"missing");
    for (server, has_empty) in [
        (Server::tcp(Arc::new(store.clone())), true),
        (peer.serve(true), false),
    ] {
        let client = server.client();
        assert_eq!(client.directory(&missing).await.unwrap(), None);
        for size in [7, 1 << 20, 20 << 20] {
            assert_eq!(client.read(&missing, size, 0, 7).await.unwrap(), None);
        }
        assert_eq!(client.root(b"missing").await.unwrap(), None);
        assert_eq!(client.root(NIX_NAME.as_bytes()).await.unwrap(), None);
        assert_eq!(client.path_info(b"missing").await.unwrap(), None);
        assert!(!client.has_blob(&missing).await.unwrap());
        let empty = Digest::empty_blob();
        assert_eq!(client.has_blob(&empty).await.unwrap(), has_empty);
        assert_eq!(client.blob_size(&empty).await.unwrap(), Some(0));
        assert_eq!(client.blob_size(&missing).await.unwrap(), None);
        assert_eq!(client.roots().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_and_wide_tree_costs_a_few_round_trips() {
    let store = memory();
    let tree = put_root(&store, NIX_NAME, |ingest| put_tree(ingest, 1, 4, 6));
    let peer = Peer {
        store: store.clone(),
        ..Peer::default()
    };
    for server in [Server::tcp(Arc::new(store.clone())), peer.serve(false)] {
        let client = server.client();
        let root = client.root(NIX_NAME.as_bytes()).await.unwrap().unwrap();
        assert_eq!(root, tree);
        let before = client.calls();
        assert_eq!(walk(&client, &root.node).await, 5461);
        let calls = client.calls() - before;
        // The rest of a tree may come slower than a walk wants it: patience has an end.
        assert!(calls <= 5, "{calls} calls");
        let before = client.calls();
        assert_eq!(walk(&client, &root.node).await, 5461);
        assert_eq!(client.calls(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_of_one_cold_blob_cause_one_download() {
    // Of each chunk.
    const CHUNKS: u64 = (9u64 << 20).div_ceil(CHUNK as u64);
    let peer = Peer::default();
    let ingest = peer.store.ingest().unwrap();
    let blob = noise(1, 9 << 20);
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let reads = peer.blob_reads.clone();
    let server = peer.serve(false);
    let client = server.client();
    let digest = Digest::of(&blob);
    let readers = (0..1000).map(|reader| {
        let client = client.clone();
        let size = blob.len() as u64;
        tokio::spawn(async move { client.read(&digest, size, reader * 9000, 10).await })
    });
    for (reader, read) in futures_util::future::join_all(readers)
        .await
        .into_iter()
        .enumerate()
    {
        let at = reader * 9000;
        assert_eq!(read.unwrap().unwrap().unwrap(), blob[at..at + 10]);
    }
    assert_eq!(reads.load(Ordering::Relaxed), CHUNKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_read_of_a_large_blob_moves_one_extent_in_one_call() {
    let store = memory();
    let blob = noise(3, 64 << 20);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let server = Server::tcp(Arc::new(store));
    let client = server.client();
    let digest = Digest::of(&blob);
    let before = client.calls();
    let at = 33_333_333;
    let read = client
        .read(&digest, blob.len() as u64, at as u64, 4096)
        .await;
    assert_eq!(read.unwrap().unwrap(), blob[at..at + 4096]);
    // The extent, with what proves it.
    assert_eq!(client.calls() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_walk_will_read_comes_together() {
    let store = memory();
    let small: Vec<_> = (0..500)
        .map(|seed| noise(seed, 1000 + seed as usize))
        .collect();
    let large = noise(1000, 3 << 20);
    let ingest = store.ingest().unwrap();
    for blob in small.iter().chain([&large]) {
        put_file(ingest.as_ref(), blob);
    }
    ingest.commit().unwrap();
    let claim = |blob: &Vec<u8>| (Digest::of(blob), blob.len() as u64);
    let mut wanted: Vec<_> = small.iter().map(claim).collect();
    wanted.push(claim(&large));
    let missing = noise(2000, 5000);
    wanted.insert(7, claim(&missing));
    let peer = Peer {
        store: store.clone(),
        ..Peer::default()
    };
    for (server, calls) in [
        // One for all small ones, two for the one that was not among them, and four for the first
        // MiB of the large one.
        (Server::tcp(Arc::new(store.clone())), 1 + 2 + 4),
        // One for each small one, two for the one that is not there, and for the large one its list
        // and its chunks.
        (
            peer.serve(false),
            500 + 2 + 1 + large.len().div_ceil(CHUNK) as u64,
        ),
    ] {
        let client = server.client();
        assert_eq!(client.root(b"missing").await.unwrap(), None);
        let before = client.calls();
        client.will_need(&wanted);
        // Requested twice, fetched once.
        client.will_need(&wanted);
        let mut reads = Vec::new();
        for blob in small.iter() {
            let (digest, size) = claim(blob);
            let read = client.read(&digest, size, 0, blob.len()).await;
            let read = read.unwrap().unwrap();
            assert_eq!(read, *blob);
            reads.push(read);
        }
        let (digest, size) = claim(&missing);
        assert_eq!(client.read(&digest, size, 0, 1).await.unwrap(), None);
        let (digest, size) = claim(&large);
        let at = 900_000;
        let read = client.read(&digest, size, at as u64, 1000).await;
        assert_eq!(read.unwrap().unwrap(), large[at..at + 1000]);
        let made = client.calls() - before;
        assert!(made <= calls, "{made} calls instead of {calls}");
        for blob in small.iter() {
            let (digest, size) = claim(blob);
            let mut buffer = vec![0; blob.len()];
            let now = client.read_now(&digest, size, 0, &mut buffer).unwrap();
            assert_eq!(now, Answer::Found(blob.len()));
        }
        // None holds the message that it came in with others.
        drop(client);
        for mut read in reads {
            let (length, mut tries) = (read.len(), 0);
            let alone = loop {
                match read.try_into_mut() {
                    Ok(alone) => break alone,
                    Err(shared) => read = shared,
                }
                tries += 1;
                assert!(tries < 10_000, "another has a part of the same message");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            };
            assert!(alone.capacity() <= 2 * length, "{}", alone.capacity());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_peer_are_read_alone_where_they_suffice() {
    let peer = Peer::default();
    let blob = noise(4, 20 << 20);
    let ingest = peer.store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let reads = peer.blob_reads.clone();
    let server = peer.serve(false);
    let client = server.client_with("verify=chunks");
    // What the server is not, it is found out to be.
    assert_eq!(client.root(b"missing").await.unwrap(), None);
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    let at = 11_111_111;
    let read = client.read(&digest, size, at as u64, 4096).await;
    assert_eq!(read.unwrap().unwrap(), blob[at..at + 4096]);
    // An extent of 256 KiB is in two chunks at most.
    assert!(reads.load(Ordering::Relaxed) <= 2);
    reads_right(&client, &blob).await;
    // All of it was read, and belongs to the digest: no byte came twice.
    let all = client.read(&digest, size, 0, blob.len()).await.unwrap();
    assert_eq!(all.unwrap(), blob);
    let chunks = size.div_ceil(CHUNK as u64);
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads <= chunks, "{reads} reads of {chunks} chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_answer_for_another_name_is_not_taken() {
    let peer = Peer::default();
    let root = put_root(&peer.store, NIX_NAME, |ingest| put_tree(ingest, 1, 1, 1));
    let server = peer.serve(false);
    let client = server.client();
    let other = NIX_NAME.replace("tree", "other");
    assert_eq!(client.root(other.as_bytes()).await.unwrap(), None);
    assert_eq!(
        client.root(NIX_NAME.as_bytes()).await.unwrap(),
        Some(root.clone())
    );
    assert_eq!(client.roots().await.unwrap(), [root]);
    assert!(
        client
            .path_info(NIX_NAME.as_bytes())
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_roots_is_heard_of() {
    let store = memory();
    let server = Server::tcp(Arc::new(store.clone()));
    let client = server.client();
    // The watch is on once an answer is believed without asking.
    let started = std::time::Instant::now();
    while !matches!(client.root_now(b"new").unwrap(), Answer::Absent) || client.calls() < 2 {
        assert_eq!(client.root(b"new").await.unwrap(), None);
        assert!(started.elapsed().as_secs() < 10);
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let version = client.roots_version().unwrap();
    let root = put_root(&store, "new", |ingest| put_file(ingest, b"content"));
    let waiter = client.clone();
    let timeout = std::time::Duration::from_secs(10);
    let now = tokio::task::spawn_blocking(move || waiter.wait_for_roots(version, timeout).unwrap());
    assert_ne!(now.await.unwrap(), version);
    assert_eq!(client.root(b"new").await.unwrap(), Some(root));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_store_is_a_client_of_another_serves_the_same() {
    let store = memory();
    let root = put_root(&store, NIX_NAME, |ingest| put_tree(ingest, 1, 3, 3));
    let upstream = Server::tcp(Arc::new(store.clone()));
    let local_store = Server::tcp(Arc::new(upstream.client()));
    let client = local_store.client();
    assert_eq!(
        client.root(NIX_NAME.as_bytes()).await.unwrap(),
        Some(root.clone())
    );
    assert_eq!(walk(&client, &root.node).await, 40);
    let Node::Directory { .. } = root.node else {
        panic!("a tree");
    };
    let directory = client.directory(&digest_and_size(&root.node).0).await;
    let directory = directory.unwrap().unwrap();
    let file = directory.lookup(b"file").unwrap().to_owned().unwrap();
    let (digest, size) = digest_and_size(&file);
    let read = client.read(&digest, size, 0, 100).await.unwrap().unwrap();
    assert_eq!(read, noise(1, 100));
}
