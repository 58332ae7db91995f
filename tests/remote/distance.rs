//! A server far away: 10 ms there and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::castore::Digest;
use castore_fs::store::{GrpcStore, Store};
use castore_fs::tree::copy::{Progress, copy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::server::Server;
use super::{memory, name, noise, put_directory, put_file, put_root, put_tree, walk};

/// One way.
const DELAY: Duration = Duration::from_millis(5);
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// A way to the server at `url` that takes [`DELAY`], of any bandwidth; gives the URL of its start.
async fn long_way_to(url: &str) -> String {
    let target: SocketAddr = url.trim_start_matches("grpc+http://").parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let start = format!("grpc+http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(target).await.unwrap();
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let (near_reads, near_writes) = near.into_split();
            let (far_reads, far_writes) = far.into_split();
            carry(near_reads, far_writes);
            carry(far_reads, near_writes);
        }
    });
    start
}

fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let part = (Instant::now() + DELAY, buffer[..length].to_vec());
            if sender.send(part).is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, part)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
    });
}

async fn connected(url: &str) -> GrpcStore {
    let url = long_way_to(url).await;
    let client = GrpcStore::open(&url).unwrap();
    // Connecting is no part of what is measured.
    assert!(client.root(b"missing").await.unwrap().is_none());
    client
}

/// Prints what a thing took, and fails if it took longer than so many round trips and `work`.
fn within(what: &str, started: Instant, round_trips: u32, work: Duration) {
    let took = started.elapsed();
    println!("{what}: {took:?} at {ROUND_TRIP:?} a round trip");
    assert!(
        took < ROUND_TRIP * round_trips + work,
        "{what} took {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_far_away_costs_few_round_trips() {
    let store = memory();
    let large = noise(1, 64 << 20);
    let root = put_root(&store, "far", |ingest| {
        let large = put_file(ingest, &large);
        let tree = put_tree(ingest, 1, 17, 3);
        put_directory(ingest, vec![(name("large"), large), (name("tree"), tree)])
    });
    let server = Server::tcp(Arc::new(store));
    let slack = Duration::from_secs(2);

    let client = connected(&server.url).await;
    let (calls, started) = (client.calls(), Instant::now());
    assert_eq!(walk(&client, &root.node).await, 5221);
    within("find over 5,221 directories", started, 20, slack);
    assert!(
        client.calls() - calls <= 10,
        "{} calls",
        client.calls() - calls
    );

    let (digest, size) = (Digest::of(&large), large.len() as u64);
    let client = connected(&server.url).await;
    let started = Instant::now();
    let read = client.read(&digest, size, 0, 1).await.unwrap().unwrap();
    within("the first byte of a cold 64 MiB blob", started, 3, slack);
    assert_eq!(read, large[..1]);

    let client = connected(&server.url).await;
    let started = Instant::now();
    let mut at = 0;
    while at < size {
        let read = client
            .read(&digest, size, at, 128 << 10)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read, large[at as usize..at as usize + read.len()]);
        at += read.len() as u64;
    }
    // 512 reads of 128 KiB one after the other, each a round trip, would take 5 s.
    within("64 MiB from front to back", started, 100, slack);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_to_far_away_waits_by_the_batch() {
    let source = memory();
    let root = put_root(&source, "tree", |ingest| put_tree(ingest, 1, 9, 3));
    let target = memory();
    let server = Server::tcp(Arc::new(target.clone()));
    let client = connected(&server.url).await;
    let started = Instant::now();
    let runtime = tokio::runtime::Handle::current();
    let copied = tokio::task::spawn_blocking(move || {
        use castore_fs::store::Blocking;
        let from = Blocking::new(Arc::new(source), runtime.clone());
        let to = Blocking::new(Arc::new(client), runtime);
        copy(&from, &to, &[root], &Progress::default()).unwrap()
    });
    let copied = copied.await.unwrap();
    assert_eq!((copied.directories, copied.blobs), (820, 820));
    // One after the other, as many puts as objects would take 16 s.
    within(
        "a copy of 820 directories with a file each",
        started,
        40,
        Duration::from_secs(2),
    );
    assert_eq!(target.roots().await.unwrap().len(), 1);
}
