//! What a server bounds: requests by method, connections, uploads, memory and the disk.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::{Digest, Node, Root};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::{BlobChunk, Entry, ReadBlobRequest, StatBlobRequest};
use castore_fs::proto::castore_fs::services::ingest_service_client::IngestServiceClient;
use castore_fs::proto::castore_fs::v1::IngestRequest;
use castore_fs::proto::castore_fs::v1::MissingRequest;
use castore_fs::proto::castore_fs::v1::ingest_request::{Part, What};
use castore_fs::proto::store::services::path_info_service_client::PathInfoServiceClient;
use castore_fs::server::{ServerLimits, ServerOptions};
use castore_fs::store::{GcOptions, LocalStore, Store};
use futures_util::FutureExt;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{memory, noise, put_file};
use kit::double::{Double, Trouble};
use kit::server::Server;

/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

async fn channel(server: &Server) -> Channel {
    let url = server.url.trim_start_matches("grpc+").to_owned();
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

/// The server's response to a unary request of about `length` bytes at `path`.
async fn ask(channel: &Channel, path: &'static str, length: usize) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let request = MissingRequest {
        digests: vec![vec![0; length].into()],
    };
    let codec = ProstCodec::<MissingRequest, MissingRequest>::default();
    let path = PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(request), path, codec).await;
    match answer {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    }
}

fn with_limits(limits: ServerLimits) -> ServerOptions {
    ServerOptions {
        writable: true,
        limits,
        drain: Duration::from_secs(1),
        ..ServerOptions::default()
    }
}

fn local() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_unary_request_has_a_limit_by_its_method() {
    let server = Server::tcp(Arc::new(memory()));
    let channel = channel(&server).await;
    for path in [
        "/snix.castore.v1.BlobService/Stat",
        "/tvix.castore.v1.BlobService/Read",
        "/snix.castore.v1.DirectoryService/Get",
        "/snix.store.v1.PathInfoService/Get",
        "/snix.store.v1.PathInfoService/List",
        "/castore_fs.v1.RootService/Get",
        "/castore_fs.v1.RootService/List",
        "/castore_fs.v1.PartService/Read",
        "/grpc.health.v1.Health/Check",
    ] {
        let status = ask(&channel, path, 4096).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status}");
        let status = ask(&channel, path, 3000).await;
        assert_ne!(status.code(), Code::ResourceExhausted, "{path}: {status}");
    }
    // Its stream of answers ends without one.
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(ask(&channel, path, 4096).await.code(), Code::Internal);
    for (path, limit) in [
        ("/snix.store.v1.PathInfoService/Put", 1 << 20),
        ("/snix.store.v1.PathInfoService/CalculateNAR", 8 << 10),
        ("/castore_fs.v1.PartService/Missing", 256 << 10),
        ("/castore_fs.v1.PartService/ReadTogether", 256 << 10),
    ] {
        let status = ask(&channel, path, limit).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status}");
        let status = ask(&channel, path, limit - 100).await;
        assert_ne!(status.code(), Code::ResourceExhausted, "{path}: {status}");
    }
}

/// A silent upload: both ways to send, of which one is used, and the call.
type Silent = (
    mpsc::Sender<BlobChunk>,
    mpsc::Sender<IngestRequest>,
    JoinHandle<Result<(), Status>>,
);

/// Uploads that sent one byte and nothing more; as long as the returned value lives.
async fn silent_uploads(server: &Server, connections: usize, each: usize) -> Vec<Silent> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let channel = channel(server).await;
        for number in 0..each {
            let (sender, receiver) = mpsc::channel(1);
            let (ingest_sender, ingest_receiver) = mpsc::channel(1);
            let call = match number % 2 {
                0 => {
                    let data = Bytes::from_static(b"x");
                    sender.send(BlobChunk { data }).await.unwrap();
                    let mut client = BlobServiceClient::new(channel.clone());
                    tokio::spawn(async move {
                        client.put(ReceiverStream::new(receiver)).await.map(drop)
                    })
                }
                _ => {
                    let data = Bytes::from_static(b"x");
                    let what = Some(What::Part(Part { blob: 1, data }));
                    ingest_sender.send(IngestRequest { what }).await.unwrap();
                    let mut client = IngestServiceClient::new(channel.clone());
                    tokio::spawn(async move {
                        let messages = ReceiverStream::new(ingest_receiver);
                        client.ingest(messages).await.map(drop)
                    })
                }
            };
            open.push((sender, ingest_sender, call));
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_silent_uploads_keep_neither_readers_nor_collections() {
    let (_dir, store) = local();
    let blob = noise(1, 100_000);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let server = Server::with(
        Arc::new(store.clone()),
        "127.0.0.1:0",
        with_limits(ServerLimits::default()),
    );
    let open = silent_uploads(&server, 3, 200).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let open = still_open(open);
    let client = server.client();
    let digest = Digest::of(&blob);
    let read = client.read(&digest, blob.len() as u64, 0, blob.len());
    let read = tokio::time::timeout(HANGS, read)
        .await
        .expect("a reader waits");
    assert_eq!(read.unwrap().unwrap(), blob);
    let options = GcOptions {
        patience: Duration::from_secs(5),
        ..GcOptions::default()
    };
    let collected = tokio::task::spawn_blocking(move || store.collect_garbage(&options)).await;
    collected.unwrap().unwrap();
    still_open(open);
}

fn still_open(uploads: Vec<Silent>) -> Vec<Silent> {
    let ended = |upload: Silent| match upload.2.is_finished() {
        true => panic!("an upload ended: {:?}", upload.2.now_or_never()),
        false => upload,
    };
    uploads.into_iter().map(ended).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_continues_after_a_collection_that_ran_meanwhile() {
    let (_dir, store) = local();
    let old = noise(5, 300_000);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &old);
    ingest.commit().unwrap();
    let server = Server::with(
        Arc::new(store.clone()),
        "127.0.0.1:0",
        with_limits(ServerLimits::default()),
    );
    // What goes into a pack, beside the old blob's, and what gets a file of its own.
    let (small, large) = (noise(6, 700_000), noise(7, 3 << 20));
    let (sender, receiver) = mpsc::channel(1);
    let mut client = IngestServiceClient::new(channel(&server).await);
    let call = tokio::spawn(async move { client.ingest(ReceiverStream::new(receiver)).await });
    let send = |what| sender.send(IngestRequest { what: Some(what) });
    let part = |blob, bytes: &[u8]| {
        What::Part(Part {
            blob,
            data: Bytes::copy_from_slice(bytes),
        })
    };
    let end = |blob, bytes: &[u8]| {
        What::End(castore_fs::proto::castore_fs::v1::ingest_request::End {
            blob,
            digest: Bytes::copy_from_slice(Digest::of(bytes).as_bytes()),
        })
    };
    send(part(1, &small)).await.unwrap();
    send(end(1, &small)).await.unwrap();
    send(part(2, &large[..2 << 20])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let collecting = store.clone();
    let options = GcOptions {
        grace: Duration::ZERO,
        patience: Duration::from_secs(5),
        ..GcOptions::default()
    };
    let collected = tokio::task::spawn_blocking(move || collecting.collect_garbage(&options));
    assert_eq!(collected.await.unwrap().unwrap().blobs, 1);
    send(part(2, &large[2 << 20..])).await.unwrap();
    send(end(2, &large)).await.unwrap();
    let commit = castore_fs::proto::castore_fs::v1::ingest_request::Commit {};
    send(What::Commit(commit)).await.unwrap();
    let added = call.await.unwrap().unwrap().into_inner();
    assert_eq!(added.blobs, 2);
    for blob in [&small, &large] {
        let size = blob.len() as u64;
        let read = store.read(&Digest::of(blob), size, 0, blob.len()).await;
        assert!(read.unwrap().unwrap() == *blob);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upload_ends_by_a_deadline_and_one_with_progress_does_not() {
    let limits = ServerLimits {
        silence: Duration::from_millis(600),
        ..ServerLimits::default()
    };
    let server = Server::with(Arc::new(memory()), "127.0.0.1:0", with_limits(limits));
    for (_, _, call) in silent_uploads(&server, 1, 2).await {
        let ended = tokio::time::timeout(HANGS, call).await.expect("it hangs");
        assert_eq!(ended.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    }
    let chunks = tokio_stream::iter(0..20u8).then(|number| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let data = vec![number; 100_000].into();
        BlobChunk { data }
    });
    let mut client = BlobServiceClient::new(channel(&server).await);
    client.put(Box::pin(chunks)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_closed_and_lock_no_client_out() {
    let limits = ServerLimits {
        connections: 8,
        first_call: Duration::from_secs(3600),
        ..ServerLimits::default()
    };
    let server = Server::with(Arc::new(memory()), "127.0.0.1:0", with_limits(limits));
    let address = server.url.trim_start_matches("grpc+http://").to_owned();
    let mut silent: Vec<_> = (0..30)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    let client = server.client();
    let asked = tokio::time::timeout(HANGS, client.root(b"missing")).await;
    assert_eq!(asked.expect("locked out").unwrap(), None);
    // And after a while, even if no other connection needs its place.
    silent.clear();
    let limits = ServerLimits {
        first_call: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        ..ServerLimits::default()
    };
    let server = Server::with(Arc::new(memory()), "127.0.0.1:0", with_limits(limits));
    let address = server.url.trim_start_matches("grpc+http://").to_owned();
    let ended = tokio::task::spawn_blocking(move || {
        let mut silent = TcpStream::connect(&address).unwrap();
        silent.set_read_timeout(Some(HANGS)).unwrap();
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).map_err(|error| error.kind())
    });
    let ended = ended.await.unwrap();
    assert_ne!(
        ended,
        Err(std::io::ErrorKind::WouldBlock),
        "it is still open"
    );
    // A client whose connection was closed connects again, and notices nothing.
    let channel = channel(&server).await;
    let digest = Bytes::copy_from_slice(Digest::empty_blob().as_bytes());
    for _ in 0..2 {
        let mut client = BlobServiceClient::new(channel.clone());
        let digest = digest.clone();
        client.read(ReadBlobRequest { digest }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_leave_the_disk_what_is_to_stay_free_and_have_an_end() {
    let put = |server: Server, size: usize| async move {
        let mut client = BlobServiceClient::new(channel(&server).await);
        let chunk = BlobChunk {
            data: noise(3, size).into(),
        };
        let put = client.put(tokio_stream::once(chunk)).await;
        put.map(drop).map_err(|status| status.code())
    };
    let (dir, store) = local();
    let limits = |keep_free| ServerLimits {
        disk: Some(dir.path().to_owned()),
        keep_free,
        upload: 1_000_000,
        ..ServerLimits::default()
    };
    let start = |keep_free| {
        let options = with_limits(limits(keep_free));
        Server::with(Arc::new(store.clone()), "127.0.0.1:0", options)
    };
    assert_eq!(put(start(u64::MAX), 10).await, Err(Code::ResourceExhausted));
    assert_eq!(put(start(1), 900_000).await, Ok(()));
    assert_eq!(put(start(1), 1_100_000).await, Err(Code::ResourceExhausted));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_take_bounded_memory_and_starve_no_client() {
    let (_dir, store) = local();
    let blob = noise(1, 8 << 20);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let limits = ServerLimits {
        response_memory: 4 << 20,
        ..ServerLimits::default()
    };
    let server = Server::with(Arc::new(store), "127.0.0.1:0", with_limits(limits));
    let digest = Bytes::copy_from_slice(Digest::of(&blob).as_bytes());
    let mut open = Vec::new();
    for _ in 0..4 {
        let channel = channel(&server).await;
        for _ in 0..50 {
            let mut client = BlobServiceClient::new(channel.clone());
            let digest = digest.clone();
            // Its messages are never read.
            open.push(tokio::spawn(async move {
                let answer = client.read(ReadBlobRequest { digest }).await;
                std::future::pending::<()>().await;
                drop(answer);
            }));
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let read = server
        .client()
        .read(&Digest::of(&blob), blob.len() as u64, 0, blob.len())
        .await;
    assert!(read.unwrap().unwrap() == blob);
}

/// Calls that wait for an upstream hold no thread, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_an_upstream_hold_no_thread() {
    // The runtime has 512 threads that may block.
    const CALLS: usize = 600;
    let slow = Arc::new(Double::upstream("double:", memory()));
    slow.trouble(Trouble::Hangs);
    let server = Server::with(
        slow.clone(),
        "127.0.0.1:0",
        with_limits(ServerLimits::default()),
    );
    let digest = Bytes::copy_from_slice(Digest::of(b"missing").as_bytes());
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let channel = channel(&server).await;
        for _ in 0..CALLS / 3 {
            let mut client = BlobServiceClient::new(channel.clone());
            let request = StatBlobRequest {
                digest: digest.clone(),
                ..StatBlobRequest::default()
            };
            waiting.push(tokio::spawn(async move { client.stat(request).await }));
        }
    }
    let all = async {
        while slow.waiting.load(Ordering::Relaxed) < CALLS as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let all = tokio::time::timeout(HANGS, all).await;
    all.expect("calls hold the threads that others need");
    slow.trouble(Trouble::None);
    for answer in waiting {
        assert!(answer.await.unwrap().is_err(), "it is not there");
    }
}

/// A tree whose NAR has no end, made of a few Directories, each twice below the next.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_nar_keeps_no_other_from_being_computed() {
    let store = memory();
    let ingest = store.ingest().unwrap();
    let mut nodes = vec![put_file(ingest.as_ref(), b"leaf")];
    for _ in 0..60 {
        let below = &nodes[nodes.len() - 1];
        let entries = ["a", "b"].map(|entry| (super::name(entry), below.clone()));
        nodes.push(super::put_directory(ingest.as_ref(), entries.to_vec()));
    }
    let small = put_file(ingest.as_ref(), b"small");
    ingest.commit().unwrap();
    let server = Server::with(
        Arc::new(store),
        "127.0.0.1:0",
        with_limits(ServerLimits::default()),
    );
    let entry = |node: Node| {
        Entry::from(&Root {
            name: super::name("x"),
            node,
        })
    };
    let hostile = PathInfoServiceClient::new(channel(&server).await);
    let endless: Vec<_> = nodes[40..]
        .iter()
        .map(|node| {
            let (mut client, entry) = (hostile.clone(), entry(node.clone()));
            tokio::spawn(async move { client.calculate_nar(entry).await.map(drop) })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut client = PathInfoServiceClient::new(channel(&server).await);
    let computed = tokio::time::timeout(HANGS, client.calculate_nar(entry(small))).await;
    assert!(computed.expect("it waits for an endless one").is_ok());
    assert!(endless.iter().all(|one| !one.is_finished()));
}
