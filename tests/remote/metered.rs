//! The calls to an endpoint are counted and timed; what memory answers is not.

use std::sync::Arc;

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
