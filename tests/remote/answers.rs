//! What our server answers to clients of the field, call by call: as their own servers were observed
//! to, where that is right.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, Node, NodeRef, SymlinkTarget};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::services::directory_service_client::DirectoryServiceClient;
use castore_fs::proto::castore::v1::get_directory_request::ByWhat;
use castore_fs::proto::castore::v1::*;
use castore_fs::proto::store::services::path_info_service_client::PathInfoServiceClient;
use castore_fs::proto::store::v1::{
    GetPathInfoRequest, ListPathInfoRequest, PathInfo, get_path_info_request,
};
use castore_fs::proto::{MAX_MESSAGE_BYTES, ProtocolGeneration, RawDirectory, with_generation};
use castore_fs::store::Store;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt;
use tower::util::MapRequest;

use super::{digest_and_size, memory, name, noise, put_file, put_root, put_tree};
use kit::server::Server;

const NIX_NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";

pub(crate) type Call = http::Request<tonic::body::Body>;
pub(crate) type Client = MapRequest<Channel, fn(Call) -> Call>;

fn current(call: Call) -> Call {
    call
}

fn older(mut call: Call) -> Call {
    let uri = std::mem::take(call.uri_mut());
    *call.uri_mut() = with_generation(uri, ProtocolGeneration::Older);
    assert!(call.uri().path().starts_with("/tvix."));
    call
}

/// Clients of both generations for the server at `url`.
pub(crate) async fn clients(url: &str) -> [Client; 2] {
    let url = url.trim_start_matches("grpc+").to_owned();
    let channel = tonic::transport::Endpoint::try_from(url).unwrap();
    let channel = channel.connect().await.unwrap();
    let generations: [fn(Call) -> Call; 2] = [current, older];
    generations.map(|generation| channel.clone().map_request(generation))
}

fn bytes(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// The messages of a stream, or how it ended.
pub(crate) async fn all<T>(
    answer: Result<tonic::Response<tonic::Streaming<T>>, Status>,
) -> Result<Vec<T>, Code> {
    let mut stream = answer.map_err(|status| status.code())?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.map_err(|status| status.code())? {
        messages.push(message);
    }
    Ok(messages)
}

/// One of everything, and what it is called.
struct There {
    server: Server,
    tree: Digest,
    blob: Vec<u8>,
}

fn there() -> There {
    let store = memory();
    let blob = noise(1, 3 << 20);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    let root = put_root(&store, NIX_NAME, |ingest| put_tree(ingest, 1, 3, 3));
    There {
        server: Server::tcp(Arc::new(store)),
        tree: digest_and_size(&root.node).0,
        blob,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_blobs() {
    let there = there();
    let missing = bytes(&Digest::of(b"missing"));
    let short = Bytes::from_static(b"short");
    let blob = bytes(&Digest::of(&there.blob));
    for client in clients(&there.server.url).await {
        let mut client = BlobServiceClient::new(client);
        for (digest, expected) in [
            (&blob, None),
            (&missing, Some(Code::NotFound)),
            (&short, Some(Code::InvalidArgument)),
            (&Bytes::new(), Some(Code::InvalidArgument)),
        ] {
            let request = StatBlobRequest {
                digest: digest.clone(),
                send_chunks: true,
                ..Default::default()
            };
            let stat = client.stat(request).await;
            assert_eq!(stat.as_ref().err().map(Status::code), expected);
            if let Ok(stat) = stat {
                // Chunks of 1 MiB, although none were requested.
                let stat = stat.into_inner();
                assert_eq!((stat.chunks.len(), stat.bao.len()), (3, 0));
            }
            let request = ReadBlobRequest {
                digest: digest.clone(),
            };
            let read = all(client.read(request).await).await;
            assert_eq!(read.as_ref().err().copied(), expected);
            if let Ok(buffers) = read {
                let sizes = buffers.iter().map(|buffer| buffer.data.len());
                assert!(sizes.clone().all(|size| size <= 1 << 20));
                assert!(sizes.rev().skip(1).all(|size| size >= 64 << 10));
                let read: Vec<u8> = buffers
                    .iter()
                    .flat_map(|buffer| &buffer.data[..])
                    .copied()
                    .collect();
                assert!(read == there.blob);
            }
        }
        let buffers = [&b"con"[..], b"", b"tent"].map(|data| BlobChunk {
            data: Bytes::from_static(data),
        });
        let put = client.put(tokio_stream::iter(buffers)).await.unwrap();
        assert_eq!(put.into_inner().digest, bytes(&Digest::of(b"content")));
    }
}

fn ask_directory(digest: &[u8], recursive: bool) -> GetDirectoryRequest {
    GetDirectoryRequest {
        by_what: Some(ByWhat::Digest(Bytes::copy_from_slice(digest))),
        recursive,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_for_directories() {
    let there = there();
    for client in clients(&there.server.url).await {
        let mut client = DirectoryServiceClient::new(client);
        let missing = Digest::of(b"missing");
        let mut get = async |digest: &[u8], recursive| {
            let answer = client.get(ask_directory(digest, recursive)).await;
            all(answer).await.map(|directories| directories.len())
        };
        assert_eq!(get(missing.as_bytes(), false).await, Err(Code::NotFound));
        // Other clients take an empty stream for "not found".
        assert_eq!(get(missing.as_bytes(), true).await, Ok(0));
        for recursive in [false, true] {
            assert_eq!(get(b"short", recursive).await, Err(Code::InvalidArgument));
        }
        assert_eq!(get(there.tree.as_bytes(), false).await, Ok(1));
        let answer = client.get(GetDirectoryRequest::default()).await;
        assert_eq!(all(answer).await.unwrap_err(), Code::InvalidArgument);

        let answer = client.get(ask_directory(there.tree.as_bytes(), true)).await;
        let directories = all(answer).await.unwrap();
        assert_eq!(directories.len(), 40);
        let mut announced = HashSet::from([there.tree]);
        let mut came = HashSet::new();
        for RawDirectory(raw) in directories {
            let directory = Directory::decode(raw.to_vec()).unwrap();
            assert!(announced.contains(&directory.digest()), "before its parent");
            assert!(came.insert(directory.digest()), "twice");
            announced.extend(directory.iter().filter_map(|entry| match entry.node {
                NodeRef::Directory { digest, .. } => Some(digest),
                _ => None,
            }));
        }
        assert_eq!(came, announced);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_put_leaves_first_connected_with_right_sizes_or_not_at_all() {
    let there = there();
    let leaf = Directory::empty();
    let link = |target: &str| Node::Symlink {
        target: SymlinkTarget::new(target.as_bytes()).unwrap(),
    };
    let over = |node: Node| Directory::from_entries(vec![(name("child"), node)]).unwrap();
    let Node::Directory { digest, size } = leaf.node() else {
        panic!("a directory's node");
    };
    let parent = over(leaf.node());
    let wrong_size = over(Node::Directory {
        digest,
        size: size + 1,
    });
    let raw = |directory: &Directory| directory.as_bytes().to_vec();
    let entry = |name: &str| SymlinkEntry {
        name: Bytes::copy_from_slice(name.as_bytes()),
        target: Bytes::from_static(b"target"),
    };
    let message = |symlinks: Vec<SymlinkEntry>| {
        use prost::Message;
        castore_fs::proto::castore::v1::Directory {
            symlinks,
            ..Default::default()
        }
        .encode_to_vec()
    };
    let large = (0..60_000).map(|index| (name(&format!("{index:05}")), link("x")));
    let large = Directory::from_entries(large.collect()).unwrap();
    let alone = over(link("alone"));
    let refused = Some(Code::InvalidArgument);
    type Case<'a> = (&'a str, Vec<Vec<u8>>, Option<Code>);
    let cases: [Case<'_>; 11] = [
        ("a leaf", vec![raw(&leaf)], None),
        ("leaves first", vec![raw(&leaf), raw(&parent)], None),
        ("a large one", vec![raw(&large)], None),
        ("nothing", vec![], refused),
        ("the root first", vec![raw(&parent), raw(&leaf)], refused),
        ("a dangling child", vec![raw(&parent)], refused),
        ("a wrong size", vec![raw(&leaf), raw(&wrong_size)], refused),
        (
            "two roots",
            vec![raw(&leaf), raw(&alone), raw(&parent)],
            refused,
        ),
        ("a bad name", vec![message(vec![entry("a/b")])], refused),
        (
            "unsorted",
            vec![message(vec![entry("b"), entry("a")])],
            refused,
        ),
        (
            "twice",
            vec![message(vec![entry("a"), entry("a")])],
            refused,
        ),
    ];
    for client in clients(&there.server.url).await {
        let mut client = DirectoryServiceClient::new(client)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        for (what, directories, expected) in &cases {
            let messages: Vec<_> = directories
                .iter()
                .map(|raw| RawDirectory(Bytes::copy_from_slice(raw)))
                .collect();
            let put = client.put(tokio_stream::iter(messages)).await;
            assert_eq!(put.as_ref().err().map(Status::code), *expected, "{what}");
            if let Ok(put) = put {
                let last = Digest::of(directories.last().unwrap());
                assert_eq!(put.into_inner().root_digest, bytes(&last), "{what}");
                let got = client.get(ask_directory(last.as_bytes(), false)).await;
                assert_eq!(all(got).await.unwrap().len(), 1, "{what}");
            }
        }
        let refused_root = client.get(ask_directory(wrong_size.digest().as_bytes(), false));
        assert_eq!(all(refused_root.await).await.unwrap_err(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_store_paths() {
    let there = there();
    let hash = castore_fs::nix::output_hash(NIX_NAME.as_bytes()).unwrap();
    for client in clients(&there.server.url).await {
        let mut client = PathInfoServiceClient::new(client);
        for (hash, expected) in [
            (&hash[..], None),
            (&[7; 20][..], Some(Code::NotFound)),
            (&[7; 19][..], Some(Code::InvalidArgument)),
        ] {
            let hash = Bytes::copy_from_slice(hash);
            let by_what = Some(get_path_info_request::ByWhat::ByOutputHash(hash));
            let got = client.get(GetPathInfoRequest { by_what }).await;
            assert_eq!(got.as_ref().err().map(Status::code), expected);
        }
        let nothing = client.get(GetPathInfoRequest { by_what: None }).await;
        assert_eq!(nothing.unwrap_err().code(), Code::InvalidArgument);
        let listed = all(client.list(ListPathInfoRequest {}).await).await;
        assert_eq!(listed.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_refuses_other_clients_additions() {
    let server = Server::read_only(Arc::new(memory()));
    for client in clients(&server.url).await {
        let mut blobs = BlobServiceClient::new(client.clone());
        let put = blobs.put(tokio_stream::empty()).await;
        assert_eq!(put.unwrap_err().code(), Code::PermissionDenied);
        let mut directories = DirectoryServiceClient::new(client.clone());
        let put = directories.put(tokio_stream::empty()).await;
        assert_eq!(put.unwrap_err().code(), Code::PermissionDenied);
        let mut path_infos = PathInfoServiceClient::new(client);
        let put = path_infos.put(PathInfo::default()).await;
        assert_eq!(put.unwrap_err().code(), Code::PermissionDenied);
    }
}
