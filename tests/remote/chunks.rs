//! Chunk lists for peers, which read by the chunk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::{Digest, Node};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::stat_blob_response::ChunkMeta;
use castore_fs::proto::castore::v1::{ReadBlobRequest, StatBlobRequest};
use castore_fs::server::ServerOptions;
use castore_fs::store::{GcOptions, LocalStore, Store};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::peer::{CHUNK, Peer};
use super::{noise, put_file, put_root};
use kit::server::Server;

/// A peer that opens blobs of a server as the field's do: it holds what it reads of one chunk.
struct Reader {
    channel: Channel,
    calls: AtomicUsize,
}

impl Reader {
    async fn of(server: &Server) -> Self {
        let url = server.url.trim_start_matches("grpc+").to_owned();
        Self {
            channel: Channel::from_shared(url).unwrap().connect().await.unwrap(),
            calls: AtomicUsize::new(0),
        }
    }

    fn client(&self) -> BlobServiceClient<Channel> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        BlobServiceClient::new(self.channel.clone())
    }

    async fn stat(&self, digest: &[u8]) -> Result<Vec<ChunkMeta>, Status> {
        let request = StatBlobRequest {
            digest: Bytes::copy_from_slice(digest),
            send_chunks: true,
            send_bao: false,
        };
        let stat = self.client().stat(request).await?;
        Ok(stat.into_inner().chunks)
    }

    async fn read(&self, digest: &Bytes) -> Result<Vec<u8>, Status> {
        let digest = digest.clone();
        let mut stream = self
            .client()
            .read(ReadBlobRequest { digest })
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?.data);
        }
        Ok(bytes)
    }

    /// Reads the blob by its chunks; gives it and the size of the largest.
    async fn read_by_chunks(&self, digest: &Digest) -> (Vec<u8>, usize) {
        let (mut blob, mut largest) = (Vec::new(), 0);
        for chunk in self.stat(digest.as_bytes()).await.unwrap() {
            assert!(self.stat(&chunk.digest).await.unwrap().is_empty());
            let bytes = self.read(&chunk.digest).await.unwrap();
            assert_eq!(bytes.len() as u64, chunk.size);
            assert_eq!(chunk.digest[..], Digest::of(&bytes).as_bytes()[..]);
            largest = largest.max(bytes.len());
            blob.extend_from_slice(&bytes);
        }
        (blob, largest)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_is_read_by_chunks_that_are_blobs_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("store")).unwrap();
    let blob = noise(1, (10 << 20) + 5);
    let small = noise(2, 1 << 20);
    let root = put_root(&store, "root", |ingest| {
        put_file(ingest, &small);
        put_file(ingest, &blob)
    });
    let start = || {
        let options = ServerOptions {
            writable: true,
            local: Some(store.clone()),
            ..ServerOptions::default()
        };
        Server::with(Arc::new(store.clone()), "127.0.0.1:0", options)
    };
    let mut server = start();
    let reader = Reader::of(&server).await;
    let digest = Digest::of(&blob);
    let listed = reader.stat(digest.as_bytes()).await.unwrap();
    assert_eq!(reader.calls.load(Ordering::Relaxed), 1, "to open a blob");
    assert_eq!(listed.len(), 11);
    let (read, largest) = reader.read_by_chunks(&digest).await;
    assert!(read == blob);
    assert_eq!(largest, 1 << 20, "what a peer holds of it");
    assert!(
        reader
            .stat(Digest::of(&small).as_bytes())
            .await
            .unwrap()
            .is_empty()
    );
    // A castore-fs client, which requests the size, causes no cutting.
    assert_eq!(
        server.client().blob_size(&digest).await.unwrap(),
        Some(blob.len() as u64)
    );

    // Lists are stored: another server knows the chunk, and cuts nothing.
    tokio::task::block_in_place(|| server.stop());
    let server = start();
    let reader = Reader::of(&server).await;
    assert_eq!(
        reader.read(&listed[10].digest).await.unwrap(),
        blob[10 << 20..]
    );

    // The chunks go with the blob.
    assert!(matches!(root.node, Node::File { .. }));
    let store = store.clone();
    let removed = tokio::task::spawn_blocking(move || {
        let ingest = store.ingest().unwrap();
        ingest.remove_root(&root.name).unwrap();
        ingest.commit().unwrap();
        store.collect_garbage(&GcOptions {
            grace: Duration::ZERO,
            ..GcOptions::default()
        })
    });
    removed.await.unwrap().unwrap();
    let gone = reader.read(&listed[0].digest).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let gone = reader.stat(&listed[0].digest).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_a_blob_that_is_only_upstream_is_the_upstreams() {
    let peer = Peer::default();
    let blob = noise(3, 5 * CHUNK + 7);
    put_root(&peer.store, "root", |ingest| put_file(ingest, &blob));
    let upstream = peer.serve(false);
    let server = Server::read_only(Arc::new(upstream.client()));
    let reader = Reader::of(&server).await;
    let digest = Digest::of(&blob);
    let listed = reader.stat(digest.as_bytes()).await.unwrap();
    let sizes: Vec<_> = listed.iter().map(|chunk| chunk.size).collect();
    assert_eq!(sizes, [[CHUNK as u64; 5].as_slice(), &[7]].concat());
    let (read, _) = reader.read_by_chunks(&digest).await;
    assert!(read == blob);
}
