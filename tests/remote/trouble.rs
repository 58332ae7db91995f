//! Servers that send wrong bytes, hang, fail or end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use castore_fs::castore::{Digest, Directory};
use castore_fs::store::{Answer, Error, MemoryStore, Store};

use super::peer::Peer;
use super::{digest_and_size, memory, name, noise, put_file, put_root, put_tree, walk};
use kit::double::{Double, Trouble};
use kit::server::Server;

fn with_blob(len: usize) -> (MemoryStore, Vec<u8>) {
    let store = memory();
    let blob = noise(9, len);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    (store, blob)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_server_never_gets_a_wrong_byte_through() {
    for len in [10, 300_000, 9 << 20] {
        let (store, blob) = with_blob(len);
        let (digest, size) = (Digest::of(&blob), len as u64);
        let ours = Double {
            flip_at: Some(size / 2),
            ..Double::upstream("double:", store.clone())
        };
        let peer = Peer {
            store,
            corrupt_responses: true,
            ..Peer::default()
        };
        for (server, whole) in [
            (Server::tcp(Arc::new(ours)), false),
            (peer.serve(false), true),
        ] {
            let client = server.client();
            let mut wrong = 0;
            for at in (0..size).step_by(100_000) {
                let length = 100_000.min(size - at);
                match client.read(&digest, size, at, length as usize).await {
                    Ok(bytes) => {
                        let at = at as usize;
                        assert_eq!(bytes.unwrap(), blob[at..at + length as usize]);
                    }
                    Err(Error::Damaged { digest: named, .. }) => {
                        assert_eq!(named, digest);
                        wrong += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(wrong > 0, "{len}: the wrong bytes were not noticed");
            // What can be checked by parts is lost by parts only.
            assert!(whole || len < 1 << 20 || wrong < 10, "{len}: {wrong} lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn right_chunks_of_a_wrong_list_get_no_byte_through_unless_allowed_and_then_once() {
    const LEN: usize = 3 << 20;
    let (store, blob) = with_blob(LEN);
    let other = noise(10, LEN);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &other);
    let third = noise(11, LEN);
    put_file(ingest.as_ref(), &third);
    ingest.commit().unwrap();
    let (digest, size) = (Digest::of(&blob), LEN as u64);
    let peer = Peer {
        store,
        list_of: Some((digest, Digest::of(&other))),
        ..Peer::default()
    };
    let server = peer.serve(false);
    let careful = server.client();
    for at in [0, size - 1] {
        let error = careful.read(&digest, size, at, 1).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    let trusting = server.client_with("verify=chunks");
    let read = trusting.read(&digest, size, 0, 1000).await.unwrap();
    assert_eq!(
        read.unwrap(),
        other[..1000],
        "the chunks are those of the other"
    );
    let mut at = 1000;
    let error = loop {
        match trusting.read(&digest, size, at, 100_000).await {
            Ok(read) => at += read.unwrap().len() as u64,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(at < size, "the last extent was handed out");
    // In quarantine: not even what is in memory.
    let mut buffer = [0; 10];
    let now = trusting.read_now(&digest, size, 0, &mut buffer).unwrap();
    assert_eq!(now, Answer::Wait);
    let error = trusting.read(&digest, size, 0, 10).await.unwrap_err();
    assert!(error.to_string().contains("quarantine"), "{error}");
    // And the server's lists are no longer believed, for any blob: this one is held.
    let third_digest = Digest::of(&third);
    let read = trusting.read(&third_digest, size, 0, 10).await.unwrap();
    assert_eq!(read.unwrap(), third[..10]);
    let now = trusting.read_now(&third_digest, size, size - 10, &mut buffer);
    assert_eq!(now.unwrap(), Answer::Found(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_than_the_requested_one_is_an_error() {
    let corrupt = Double {
        swap_directories: Some(Directory::empty()),
        ..Double::default()
    };
    let server = Server::tcp(Arc::new(corrupt));
    let error = server.client().directory(&Digest::of(b"asked")).await;
    assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_wrong_size_is_detected() {
    for len in [10, 300_000, 9 << 20] {
        let (store, blob) = with_blob(len);
        let digest = Digest::of(&blob);
        let peer = Peer {
            store: store.clone(),
            ..Peer::default()
        };
        for server in [Server::tcp(Arc::new(store)), peer.serve(false)] {
            let client = server.client();
            for size in [len as u64 - 1, len as u64 + 1] {
                let read = client.read(&digest, size, 0, 5).await;
                assert!(read.is_err(), "{len} as {size}: {read:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_store_is_an_error_and_not_absence() {
    let failing = Double::default();
    failing.trouble(Trouble::Fails);
    let server = Server::tcp(Arc::new(failing));
    let client = server.client();
    let digest = Digest::of(b"x");
    let error = client.read(&digest, 1, 0, 1).await.unwrap_err().to_string();
    assert!(
        error.contains("on fire") && error.contains(&server.url),
        "{error}"
    );
    assert!(client.directory(&digest).await.is_err());
    assert!(client.root(b"x").await.is_err());
    assert!(client.has_blob(&digest).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_one_deadline_and_no_second() {
    let (store, blob) = with_blob(1000);
    let hanging = Arc::new(Double::upstream("double:", store));
    let server = Server::tcp(hanging.clone());
    let client = server.client_with("first-byte-timeout=0.5&stall-timeout=0.5");
    let tree = put_root(&*hanging.inner(), "tree", |ingest| {
        put_tree(ingest, 1, 2, 2)
    });
    assert_eq!(walk(&client, &tree.node).await, 7);
    hanging.trouble(Trouble::Hangs);
    let digest = Digest::of(&blob);
    let started = Instant::now();
    let error = client.read(&digest, 1000, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    let again = Instant::now();
    assert!(client.read(&digest, 1000, 0, 10).await.is_err());
    assert!(
        again.elapsed() < Duration::from_millis(200),
        "a second wait"
    );
    // What is in memory needs no server.
    assert_eq!(walk(&client, &tree.node).await, 7);
    hanging.trouble(Trouble::None);
    let waiting = Instant::now();
    while client.read(&digest, 1000, 0, 10).await.is_err() {
        assert!(
            waiting.elapsed() < Duration::from_secs(10),
            "it never came back"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_quickly_reported_by_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("grpc+http://{address}");
    let client = castore_fs::store::GrpcStore::open(&url).unwrap();
    let started = Instant::now();
    let error = client.directory(&Digest::of(b"x")).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    let error = error.to_string();
    assert!(error.contains(&url) && error.contains("refused"), "{error}");
    let error = castore_fs::stores::open(&format!("{url}?wait-connect=1")).unwrap_err();
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_of_unavailability_is_ridden_out() {
    let peer = Peer::default();
    let tree = put_root(&peer.store, "tree", |ingest| put_tree(ingest, 1, 1, 1));
    let down = peer.unavailable.clone();
    let server = peer.serve(false);
    let client = server.client();
    down.store(true, Ordering::Relaxed);
    let up = down.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(40)).await;
        up.store(false, Ordering::Relaxed);
    });
    let (digest, _) = digest_and_size(&tree.node);
    assert!(client.directory(&digest).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_lets_its_watchers_go_and_its_return_is_noticed() {
    let store = memory();
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("socket").display());
    let mut server = Server::start(Arc::new(store.clone()), &address, false);
    let client = server.client();
    assert_eq!(client.root(b"late").await.unwrap(), None);
    let started = Instant::now();
    server.stop();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "a watcher kept the server"
    );
    put_root(&store, "late", |ingest| put_file(ingest, b"late"));
    let _server = Server::start(Arc::new(store.clone()), &address, false);
    let started = Instant::now();
    while !matches!(client.root(b"late").await, Ok(Some(_))) {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(
        client.root_now(b"late").unwrap(),
        Answer::Found(_)
    ));
    let _ = name("late");
}
