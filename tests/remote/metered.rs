//! The calls to an endpoint are counted and timed; what memory answers is not.

use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::Digest;
use castore_fs::store::{EndpointHealth, EndpointState, GrpcStore, Store};

use super::{digest_and_size, memory, noise, put_file, put_root, put_tree};
use kit::server::Server;

fn health(client: &GrpcStore) -> EndpointHealth {
    client.health().endpoint.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_memory_are_neither_requests_nor_times() {
    let store = memory();
    let tree = put_root(&store, "tree", |ingest| put_tree(ingest, 1, 2, 1)).node;
    let blob = noise(7, 1000);
    put_root(&store, "blob", |ingest| put_file(ingest, &blob));
    let server = Server::tcp(Arc::new(store));
    let client = server.client();
    let (directory, _) = digest_and_size(&tree);
    let digest = Digest::of(&blob);
    assert_eq!(health(&client).state, EndpointState::Unknown);
    for round in 0..100 {
        client.directory(&directory).await.unwrap().unwrap();
        let read = client.read(&digest, blob.len() as u64, 0, blob.len());
        assert_eq!(read.await.unwrap().unwrap(), blob);
        client.root(b"tree").await.unwrap().unwrap();
        let now = health(&client);
        // A Directory, a blob and a root; the first round asked for all of them.
        assert_eq!(now.requests, 3, "round {round}");
        assert_eq!(now.times.buckets.iter().sum::<u64>(), 3);
    }
    let now = health(&client);
    assert_eq!(
        (now.state, now.failures, now.in_flight),
        (EndpointState::Up, 0, 0)
    );
    assert!(now.bytes_in >= blob.len() as u64, "{now:?}");
    // Not found is an answer, and a round trip.
    assert_eq!(client.directory(&Digest::of(b"none")).await.unwrap(), None);
    let now = health(&client);
    assert_eq!((now.requests, now.failures), (4, 0));
    assert!(now.times.total_micros > 0 && now.times.median_micros.is_some());
}

/// Found by a user: a background call found the server gone and opened the circuit breaker, so that reads
/// failed without a call; for minutes the endpoint was shown as up, without a failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_away_while_nothing_was_read_is_not_up() {
    let store = memory();
    let blob = noise(7, 1000);
    put_root(&store, "blob", |ingest| put_file(ingest, &blob));
    let mut server = Server::tcp(Arc::new(store));
    let client = server.client();
    client.root(b"blob").await.unwrap().unwrap();
    assert_eq!(health(&client).state, EndpointState::Up);
    let before = health(&client);
    server.stop();
    let noticed = async {
        while health(&client).state == EndpointState::Up {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let noticed = tokio::time::timeout(Duration::from_secs(30), noticed).await;
    noticed.expect("nothing shows that the server has gone");
    let down = health(&client);
    assert_eq!(down.state, EndpointState::Failing);
    assert!(
        down.failures > 0 && down.requests > before.requests,
        "{down:?}"
    );
    assert!(down.requests - before.requests >= down.failures, "{down:?}");
    assert!(down.last_failure.is_some());
    assert_eq!(down.times, before.times);
}
