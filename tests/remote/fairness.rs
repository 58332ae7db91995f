//! One client takes all that it can, over many connections: others are served.
//!
//! Nothing here depends on a clock: what is stuck stays stuck until the end, and what is counted is how
//! many requests of the other clients were answered.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::{Digest, Node, Root, SymlinkTarget};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::{Entry, ReadBlobRequest, StatBlobRequest};
use castore_fs::proto::store::services::path_info_service_client::PathInfoServiceClient;
use castore_fs::server::{Capacity, ServerLimits, ServerOptions};
use castore_fs::store::Store;
use hyper_util::rt::TokioIo;
use tonic::transport::Channel;

use super::{memory, noise, put_file};
use kit::double::Double;
use kit::server::Server;

/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);
/// Connections of the hostile client: more than halvings of any budget.
const CONNECTIONS: usize = 40;

/// The addresses of three clients.
const HOSTILE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn address(server: &Server) -> SocketAddr {
    let address = server.url.trim_start_matches("grpc+http://");
    address.parse().unwrap()
}

/// A connection from an address of this machine.
async fn channel(server: &Server, from: Ipv4Addr) -> Channel {
    let to = address(server);
    let connect = tower::service_fn(move |_: http::Uri| async move {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
        Ok::<_, std::io::Error>(TokioIo::new(socket.connect(to).await?))
    });
    let endpoint = Channel::from_shared(format!("http://{to}")).unwrap();
    endpoint.connect_with_connector(connect).await.unwrap()
}

fn serve(store: Arc<dyn Store>, limits: ServerLimits) -> Server {
    let options = ServerOptions {
        writable: true,
        limits,
        drain: Duration::from_secs(1),
        ..ServerOptions::default()
    };
    Server::with(store, "127.0.0.1:0", options)
}

fn entry(node: Node) -> Entry {
    Entry::from(&Root {
        name: super::name("x"),
        node,
    })
}

/// Each of these requests has to be answered though nothing that is stuck continues. All have one deadline.
async fn answered<T>(requests: impl IntoIterator<Item = T>) -> usize
where
    T: Future<Output = bool>,
{
    let (mut answered, end) = (0, tokio::time::Instant::now() + HANGS);
    for request in requests {
        let answer = tokio::time::timeout_at(end, request).await;
        answered += usize::from(answer.unwrap_or(false));
    }
    answered
}

/// Both clients that are not the hostile one: another host, and another process of the same host.
async fn others(server: &Server) -> [Channel; 2] {
    [channel(server, OTHER).await, channel(server, HOSTILE).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nars_that_are_stuck_upstream_keep_no_other_client_from_its_own() {
    let store = memory();
    let ingest = store.ingest().unwrap();
    let each = 3;
    let stuck: Vec<_> = (0..CONNECTIONS * each)
        .map(|number| put_file(ingest.as_ref(), &noise(number as u64, 1000)))
        .collect();
    ingest.commit().unwrap();
    let upstream = Arc::new(Double::upstream("double:", store));
    let server = serve(upstream.clone(), ServerLimits::default());
    upstream.close();
    let mut calls = Vec::new();
    for nodes in stuck.chunks(each) {
        let client = PathInfoServiceClient::new(channel(&server, HOSTILE).await);
        for node in nodes {
            let (mut client, entry) = (client.clone(), entry(node.clone()));
            calls.push(tokio::spawn(
                async move { client.calculate_nar(entry).await },
            ));
        }
    }
    // As many as get a turn; each connection has one at least.
    let all = async {
        while *upstream.at_gate.borrow() < CONNECTIONS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let all = tokio::time::timeout(HANGS, all).await;
    all.expect("a connection has no turn");
    for other in others(&server).await {
        let requests = (0..5).map(|number| {
            let target = SymlinkTarget::new(format!("{number}").as_bytes()).unwrap();
            let (mut client, entry) = (
                PathInfoServiceClient::new(other.clone()),
                entry(Node::Symlink { target }),
            );
            async move { client.calculate_nar(entry).await.is_ok() }
        });
        assert_eq!(answered(requests).await, 5);
    }
    assert!(calls.iter().all(|call| !call.is_finished()));
    upstream.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_one_client_does_not_take_keep_no_other_from_its_own() {
    let store = memory();
    let ingest = store.ingest().unwrap();
    let blob = noise(1, 4 << 20);
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let limits = ServerLimits {
        response_memory: 4 << 20,
        ..ServerLimits::default()
    };
    let server = serve(Arc::new(store), limits);
    let digest = Digest::of(&blob);
    let wanted = Bytes::copy_from_slice(digest.as_bytes());
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = BlobServiceClient::new(channel(&server, HOSTILE).await);
        for _ in 0..20 {
            let digest = wanted.clone();
            // Answered, and no message is taken.
            let answer = client.read(ReadBlobRequest { digest });
            let answer = tokio::time::timeout(HANGS, answer).await;
            open.push(answer.expect("a connection has no room").unwrap());
        }
    }
    for other in others(&server).await {
        let requests = (0..3).map(|_| {
            let mut client = BlobServiceClient::new(other.clone());
            let (digest, length) = (wanted.clone(), blob.len());
            async move {
                let Ok(answer) = client.read(ReadBlobRequest { digest }).await else {
                    return false;
                };
                let (mut answer, mut read) = (answer.into_inner(), 0);
                while let Ok(Some(message)) = answer.message().await {
                    read += message.data.len();
                }
                read == length
            }
        });
        assert_eq!(answered(requests).await, 3);
    }
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_connections_are_all_busy_locks_no_other_out() {
    let limits = ServerLimits {
        connections: 8,
        ..ServerLimits::default()
    };
    let server = serve(Arc::new(memory()), limits);
    let (stop, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let stat = |channel: Channel| async move {
        let digest = Bytes::copy_from_slice(Digest::of(b"missing").as_bytes());
        let request = StatBlobRequest {
            digest,
            ..StatBlobRequest::default()
        };
        let answer = BlobServiceClient::new(channel).stat(request).await;
        answer.is_err_and(|status| status.code() == tonic::Code::NotFound)
    };
    let mut busy = Vec::new();
    for _ in 0..8 {
        let channel = channel(&server, HOSTILE).await;
        let (stop, calls) = (stop.clone(), calls.clone());
        busy.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                stat(channel.clone()).await;
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let requests = (0..5).map(|_| async { stat(channel(&server, OTHER).await).await });
    assert_eq!(answered(requests).await, 5);
    assert!(calls.load(Ordering::Relaxed) > 0);
    stop.store(true, Ordering::Relaxed);
    for one in busy {
        one.await.unwrap();
    }
}

/// Two servers of a process have one budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_servers_of_a_process_share_what_it_has() {
    let limits = ServerLimits {
        connections: 8,
        first_call: Duration::from_secs(3600),
        ..ServerLimits::default()
    };
    let capacity = Capacity::new(&limits);
    let start = || {
        let options = ServerOptions {
            writable: true,
            limits: limits.clone(),
            capacity: Some(capacity.clone()),
            drain: Duration::from_secs(1),
            ..ServerOptions::default()
        };
        Server::with(Arc::new(memory()), "127.0.0.1:0", options)
    };
    let (first, second) = (start(), start());
    // As many silent ones as there may be, all with the other server.
    let silent: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(address(&second)).unwrap())
        .collect();
    for socket in &silent {
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // A server's settings, which it sends once it has accepted.
        let first = socket.peek(&mut [0]).unwrap();
        assert_eq!(first, 1, "a connection within the limit was closed");
    }
    let other = channel(&first, OTHER).await;
    let digest = Bytes::copy_from_slice(Digest::of(b"missing").as_bytes());
    let request = StatBlobRequest {
        digest,
        ..StatBlobRequest::default()
    };
    let answer = BlobServiceClient::new(other).stat(request).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
    let closed = silent.iter().filter(|socket| {
        let mut reads: &TcpStream = socket;
        let patience = Duration::from_secs(2);
        socket.set_read_timeout(Some(patience)).unwrap();
        // What a server sends first, and the end.
        let ended = reads.read_to_end(&mut Vec::new());
        !ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert!(closed.count() > 0, "each server has as many of its own");
}

/// What headers take is bounded, in one piece or many, and whatever they are made of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_headers_are_refused() {
    let server = serve(Arc::new(memory()), ServerLimits::default());
    let channel = channel(&server, HOSTILE).await;
    let digest = Bytes::copy_from_slice(Digest::of(b"missing").as_bytes());
    let ask = |headers: Vec<(String, usize)>| {
        let mut request = tonic::Request::new(StatBlobRequest {
            digest: digest.clone(),
            ..StatBlobRequest::default()
        });
        for (name, length) in headers {
            let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes()).unwrap();
            let value = "v".repeat(length).parse().unwrap();
            request.metadata_mut().insert(name, value);
        }
        let mut client = BlobServiceClient::new(channel.clone());
        async move { client.stat(request).await.unwrap_err().code() }
    };
    let many = |count: usize| {
        (0..count)
            .map(|number| (format!("x-{number}"), 10))
            .collect()
    };
    assert_eq!(ask(vec![("x".into(), 12_000)]).await, tonic::Code::NotFound);
    assert_eq!(ask(many(200)).await, tonic::Code::NotFound);
    for long in [
        vec![("x".into(), 17_000)],
        vec![("x".into(), 20_480)],
        many(500),
    ] {
        let code = ask(long).await;
        assert_ne!(code, tonic::Code::NotFound, "it was answered");
    }
    // The connection is as good as before.
    assert_eq!(ask(Vec::new()).await, tonic::Code::NotFound);
    // And what is no HTTP at all.
    let mut socket = TcpStream::connect(address(&server)).unwrap();
    socket.set_read_timeout(Some(HANGS)).unwrap();
    let _ = socket.write_all(&[b'x'; 20_000]);
    let mut rest = Vec::new();
    let ended = socket.read_to_end(&mut rest);
    assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}
