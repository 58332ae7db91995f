//! Floods of frames, calls and requests: each costs its own connection, and the server answers others.
//!
//! What is counted is how many requests of another client were answered, and the most memory that the
//! server has had.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::Digest;
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::StatBlobRequest;
use castore_fs::store::Store;
use http_body::Frame;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::clients::{Serving, channel, store_in};

/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);
/// Frames or requests of a flood.
const MANY: usize = 100_000;
/// What the server may have had in memory.
const MOST_MEMORY: u64 = 256 << 20;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113, 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// Headers, none of which is kept in a table (RFC 7541, 6.2.2).
pub(super) fn literals(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127);
        [&[text.len() as u8][..], text.as_bytes()].concat()
    };
    let literal = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    headers.iter().map(literal).collect::<Vec<_>>().concat()
}

fn call(path: &str) -> Vec<u8> {
    literals(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// Sends `frames` until they end, the server ends the connection, or it reads no more.
fn flood(port: u16, frames: impl Iterator<Item = Vec<u8>>) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let start = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ]
    .concat();
    stream.write_all(&start).unwrap();
    let mut together = Vec::new();
    for frame in frames {
        together.extend_from_slice(&frame);
        if together.len() > 32 << 10 {
            if stream.write_all(&together).is_err() {
                return stream;
            }
            together.clear();
        }
    }
    let _ = stream.write_all(&together);
    stream
}

/// Whether the server has ended this connection, or announces that it does (GOAWAY).
fn is_ended(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(HANGS)).unwrap();
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    !ended.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// The most that the server has had in memory, in bytes.
fn most_memory(server: &Serving) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() << 10
}

/// Another client has each of its requests answered.
async fn assert_serves(server: &Serving, what: &str) {
    for number in 0..10 {
        let client = server.client();
        let root = tokio::time::timeout(HANGS, client.root(b"tree")).await;
        let root = root.unwrap_or_else(|_| panic!("{what}: request {number} waits"));
        assert!(root.unwrap().is_some(), "{what}");
    }
    let memory = most_memory(server);
    assert!(memory < MOST_MEMORY, "{what}: {} MiB", memory >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_or_wait_and_delay_no_other_client() {
    let dir = tempfile::tempdir().unwrap();
    let _store = store_in(dir.path());
    let server = Serving::start(dir.path(), || Ok(()));
    let port = server.port;
    let streams = || (0..MANY as u32).map(|number| 2 * number + 1);
    let get = call("/castore_fs.v1.RootService/Get");
    let put = call("/snix.castore.v1.BlobService/Put");
    let junk = literals(&[("x-junk", "0123456789012345678901234567890123456789")]);

    // Answers to these are not read.
    let pings = std::iter::repeat_n(frame(PING, 0, 0, &[7; 8]), MANY);
    let open = flood(port, pings);
    assert_serves(&server, "PING").await;
    drop(open);
    let settings = std::iter::repeat_n(frame(SETTINGS, 0, 0, &[]), MANY);
    let open = flood(port, settings);
    assert_serves(&server, "SETTINGS").await;
    drop(open);
    let updates = std::iter::repeat_n(frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), MANY);
    let open = flood(port, updates);
    assert_serves(&server, "WINDOW_UPDATE").await;
    drop(open);

    // CVE-2023-44487.
    let resets = streams().map(|stream| {
        let begin = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
        [begin, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
    let open = flood(port, resets);
    assert_serves(&server, "RST_STREAM").await;
    assert!(is_ended(open), "resets continue");
    // Headers without an end.
    let first = frame(HEADERS, 0, 1, &get);
    let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &junk.repeat(100)), MANY / 100);
    let open = flood(port, std::iter::once(first).chain(more));
    assert_serves(&server, "CONTINUATION").await;
    assert!(is_ended(open), "headers continue");
    // More calls than there may be on a connection.
    let calls = streams().map(|stream| frame(HEADERS, END_HEADERS, stream, &put));
    let open = flood(port, calls);
    assert_serves(&server, "HEADERS").await;
    assert!(is_ended(open), "calls continue");
    // Messages of nothing.
    let first = frame(HEADERS, END_HEADERS, 1, &put);
    let nothing = std::iter::repeat_n(frame(DATA, 0, 1, &[]), MANY);
    let open = flood(port, std::iter::once(first).chain(nothing));
    assert_serves(&server, "DATA").await;
    drop(open);
    // One header of 4,000 bytes, kept in the table and named ten thousand times (RFC 7541, 6.1).
    let large = "v".repeat(4000);
    let length = [
        127,
        (4000 - 127) as u8 & 127 | 128,
        ((4000 - 127) >> 7) as u8,
    ];
    let kept = [&[0x40, 1, b'x'][..], &length, large.as_bytes()].concat();
    let bombs = streams().take(1000).map(|stream| {
        let block = [&get[..], &kept, &[0x80 | 62; 10_000]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    });
    let open = flood(port, bombs);
    assert_serves(&server, "HPACK").await;
    drop(open);
}

/// Health checks and questions for what services there are, as many as come.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_health_checks_delays_no_other_client() {
    let dir = tempfile::tempdir().unwrap();
    let _store = store_in(dir.path());
    let server = Serving::start(dir.path(), || Ok(()));
    let port = server.port;
    let reflect = call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    // `file_containing_symbol`, whose answer is a hundred times as long, in one message.
    let symbol = b"grpc.health.v1.Health";
    let question = [&[0x22, symbol.len() as u8][..], symbol].concat();
    let message = [&[0, 0, 0, 0, question.len() as u8][..], &question].concat();
    let mut open = Vec::new();
    for _ in 0..8 {
        let streams = (0..200).map(|number| 2 * number + 1);
        let questions = streams.flat_map(|stream| {
            let begin = frame(HEADERS, END_HEADERS, stream, &reflect);
            let question = frame(DATA, 0, stream, &message.repeat(20));
            [begin, question]
        });
        open.push(flood(port, questions));
    }
    let check = call("/grpc.health.v1.Health/Check");
    let watch = call("/grpc.health.v1.Health/Watch");
    for path in [&check, &watch] {
        for _ in 0..4 {
            let checks = (0..2000u32).flat_map(|number| {
                let stream = 2 * number + 1;
                let begin = frame(HEADERS, END_HEADERS, stream, path);
                [begin, frame(DATA, END_STREAM, stream, &[0; 5])]
            });
            open.push(flood(port, checks));
        }
    }
    assert_serves(&server, "health and reflection").await;
    drop(open);
}

/// A body in one piece.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A message that is marked as compressed is refused before anything is unpacked.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_messages_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = store_in(dir.path());
    let server = Serving::start(dir.path(), || Ok(()));
    let mut channel: Channel = channel(server.port).await;
    let zeros = vec![0; 64 << 20];
    for (encoding, packed) in [
        ("gzip", flate(&zeros)),
        ("zstd", zstd::encode_all(&zeros[..], 3).unwrap()),
        ("deflate", flate(&zeros)),
    ] {
        let head = [&[1][..], &(packed.len() as u32).to_be_bytes()].concat();
        for path in [
            "BlobService/Put",
            "BlobService/Stat",
            "DirectoryService/Put",
        ] {
            let body = Bytes::from([&head[..], &packed].concat());
            let request = http::Request::post(format!("http://x/snix.castore.v1.{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-encoding", encoding)
                .body(tonic::body::Body::new(Whole(Some(body))))
                .unwrap();
            let answer = channel.ready().await.unwrap().call(request).await.unwrap();
            let status = tonic::Status::from_header_map(answer.headers());
            let code = status.unwrap().code();
            let refusals = [tonic::Code::Unimplemented, tonic::Code::ResourceExhausted];
            assert!(refusals.contains(&code), "{encoding} {path}: {code:?}");
        }
    }
    // Small enough, and no other encoding named: a message cannot be compressed then.
    let mut client = BlobServiceClient::new(channel);
    let digest = Bytes::copy_from_slice(Digest::of(b"missing").as_bytes());
    let request = StatBlobRequest {
        digest,
        ..StatBlobRequest::default()
    };
    let status = client.stat(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert!(most_memory(&server) < MOST_MEMORY);
}

pub(super) fn flate(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// Requests of HTTP/1.1 one after the other without end, whose answers are not read; and heads and
/// bodies that come byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_binary_cache_answers_others_while_requests_flood_it() {
    let dir = tempfile::tempdir().unwrap();
    let _store = store_in(dir.path());
    let server = Serving::binary_cache(dir.path());
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect();
        stream
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let requests = "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        for _ in 0..MANY / 1000 {
            if stream.write_all(requests.as_bytes()).is_err() {
                break;
            }
        }
        open.push(stream);
    }
    for _ in 0..20 {
        for begun in [
            "GET /nix-cache-info HTTP/1.1\r\nHos",
            "PUT /00000000000000000000000000000000.narinfo HTTP/1.1\r\nHost: x\r\n\
             Content-Length: 1000\r\n\r\nStorePath:",
        ] {
            let mut stream = server.connect();
            stream.write_all(begun.as_bytes()).unwrap();
            open.push(stream);
        }
    }
    let ranges: Vec<_> = (0..1000).map(|at| format!("{at}-{at}")).collect();
    for number in 0..10 {
        let mut stream = server.connect();
        stream.set_read_timeout(Some(HANGS)).unwrap();
        let ranges = ranges.join(",");
        let head = "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        write!(stream, "{head}Range: bytes={ranges}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{number}: {answer}");
    }
    assert!(most_memory(&server) < MOST_MEMORY);
    drop(open);
}
