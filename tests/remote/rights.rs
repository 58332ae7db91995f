//! Clients' rights to change roots, and the verification of what they claim about them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::{Digest, Root};
use castore_fs::nix::{NarInfo, PathInfo};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::{BlobChunk, Entry, FileEntry, entry};
use castore_fs::proto::store::services::path_info_service_client::PathInfoServiceClient;
use castore_fs::proto::store::v1::nar_info::Signature;
use castore_fs::proto::store::v1::{
    GetPathInfoRequest, ListPathInfoRequest, get_path_info_request::ByWhat,
};
use castore_fs::server::{AcceptedTokens, ServerOptions};
use castore_fs::store::{Error, GrpcStore, LocalStore, Store};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{memory, name, noise, put_file, put_root};
use kit::server::Server;

const NIX_NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";
const CONTENT: &[u8] = b"#!/bin/sh\n";
/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

fn writable(allow_replace: bool) -> ServerOptions {
    ServerOptions {
        writable: true,
        allow_replace,
        drain: Duration::from_secs(1),
        ..ServerOptions::default()
    }
}

/// The NAR of a file, as nix(1) describes the format.
fn nar(content: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    let word = |nar: &mut Vec<u8>, bytes: &[u8]| {
        nar.extend((bytes.len() as u64).to_le_bytes());
        nar.extend(bytes);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    for text in ["nix-archive-1", "(", "type", "regular", "contents"] {
        word(&mut nar, text.as_bytes());
    }
    word(&mut nar, content);
    word(&mut nar, b")");
    nar
}

fn sha256(bytes: &[u8]) -> Bytes {
    use sha2::Digest as _;
    Bytes::copy_from_slice(&sha2::Sha256::digest(bytes))
}

fn file(content: &[u8]) -> FileEntry {
    FileEntry {
        name: Bytes::from_static(NIX_NAME.as_bytes()),
        digest: Bytes::copy_from_slice(Digest::of(content).as_bytes()),
        size: content.len() as u64,
        executable: false,
    }
}

fn path_info(content: &[u8]) -> PathInfo {
    let nar = nar(content);
    PathInfo {
        entry: Some(Entry {
            entry: Some(entry::Entry::File(file(content))),
        }),
        narinfo: Some(NarInfo {
            nar_size: nar.len() as u64,
            nar_sha256: sha256(&nar),
            ..NarInfo::default()
        }),
        ..PathInfo::default()
    }
}

struct Peer {
    channel: Channel,
}

impl Peer {
    async fn of(server: &Server) -> Self {
        let url = server.url.trim_start_matches("grpc+").to_owned();
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Self { channel }
    }

    fn path_infos(&self) -> PathInfoServiceClient<Channel> {
        PathInfoServiceClient::new(self.channel.clone())
    }

    async fn put_blob(&self, content: &'static [u8]) {
        let data = Bytes::from_static(content);
        let mut blobs = BlobServiceClient::new(self.channel.clone());
        let put = blobs.put(tokio_stream::once(BlobChunk { data })).await;
        let digest = put.unwrap().into_inner().digest;
        assert_eq!(digest[..], Digest::of(content).as_bytes()[..]);
    }

    async fn put(&self, info: &PathInfo) -> Result<(), Status> {
        self.path_infos().put(info.clone()).await.map(drop)
    }

    async fn get(&self) -> Result<PathInfo, Status> {
        let hash = castore_fs::nix::output_hash(NIX_NAME.as_bytes()).unwrap();
        let hash = Bytes::copy_from_slice(&hash);
        let by_what = Some(ByWhat::ByOutputHash(hash));
        let got = self.path_infos().get(GetPathInfoRequest { by_what }).await;
        got.map(tonic::Response::into_inner)
    }

    async fn list(&self) -> Vec<PathInfo> {
        let listed = self.path_infos().list(ListPathInfoRequest {}).await;
        let listed: Result<_, _> = listed.unwrap().into_inner().collect().await;
        listed.unwrap()
    }
}

fn put(client: &dyn Store, content: &[u8]) -> Result<Root, Error> {
    let ingest = client.ingest()?;
    let node = put_file(ingest.as_ref(), content);
    let root = Root {
        name: name("name"),
        node,
    };
    ingest.put_root(&root, None)?;
    ingest.commit()?;
    Ok(root)
}

fn remove(client: &dyn Store) -> Result<(), Error> {
    let ingest = client.ingest()?;
    ingest.remove_root(&name("name"))?;
    ingest.commit().map(drop)
}

#[test]
fn a_server_that_is_added_to_replaces_and_removes_nothing() {
    let store = memory();
    let server = Server::with(Arc::new(store.clone()), "127.0.0.1:0", writable(false));
    let client = server.client();
    let first = put(&client, b"first").unwrap();
    // The same again is well.
    put(&client, b"first").unwrap();
    let taken = put(&client, b"second").unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    let taken = taken.to_string();
    for content in [&b"first"[..], b"second"] {
        assert!(taken.contains(&Digest::of(content).to_string()), "{taken}");
    }
    assert!(taken.contains("--allow-replace"), "{taken}");
    let kept = remove(&client).unwrap_err();
    assert!(matches!(kept, Error::ReadOnly { .. }), "{kept}");
    assert!(kept.to_string().contains("--allow-replace"), "{kept}");
    assert_eq!(store.root_now(b"name").unwrap(), Some(first).into());

    let server = Server::with(Arc::new(store.clone()), "127.0.0.1:0", writable(true));
    let client = server.client();
    let second = put(&client, b"second").unwrap();
    assert_eq!(store.root_now(b"name").unwrap(), Some(second).into());
    remove(&client).unwrap();
    assert_eq!(store.root_now(b"name").unwrap(), None.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_the_rights_that_the_file_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = memory();
    let tokens = "all-may-read read\nadder read add\nowner read replace\ndrop-box add\n";
    let options = ServerOptions {
        tokens: Some(AcceptedTokens::parse(tokens.as_bytes()).unwrap()),
        ..writable(false)
    };
    let address = format!("unix:{}", dir.path().join("socket").display());
    let server = Server::with(Arc::new(store), &address, options);
    let client = |token: &str| {
        let file = dir.path().join(token);
        std::fs::write(&file, token).unwrap();
        GrpcStore::open(&format!("{}?token-file={}", server.url, file.display())).unwrap()
    };
    let (reader, adder, owner, drop_box) = (
        client("all-may-read"),
        client("adder"),
        client("owner"),
        client("drop-box"),
    );
    let reading = reader.clone();
    let refused = tokio::task::spawn_blocking(move || put(&reading, b"first"))
        .await
        .unwrap();
    assert!(
        matches!(refused, Err(Error::ReadOnly { .. })),
        "{refused:?}"
    );
    let added = tokio::task::spawn_blocking(move || {
        put(&adder, b"first").unwrap();
        (put(&adder, b"second").is_err(), remove(&adder).is_err())
    });
    assert_eq!(added.await.unwrap(), (true, true));
    assert!(reader.root(b"name").await.unwrap().is_some());
    assert!(drop_box.root(b"name").await.is_err());
    let replaced = tokio::task::spawn_blocking(move || {
        put(&owner, b"second").unwrap();
        remove(&owner).unwrap();
    });
    replaced.await.unwrap();
    assert!(reader.root(b"name").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_hash_from_a_client_is_checked_before_it_is_passed_on() {
    let server = Server::with(Arc::new(memory()), "127.0.0.1:0", writable(false));
    let peer = Peer::of(&server).await;
    peer.put_blob(CONTENT).await;
    let right = path_info(CONTENT);
    let wrong = |break_it: fn(&mut NarInfo)| {
        let mut info = right.clone();
        break_it(info.narinfo.as_mut().unwrap());
        info
    };
    for info in [
        wrong(|nar| nar.nar_sha256 = vec![0; 32].into()),
        wrong(|nar| nar.nar_size += 8),
        wrong(|nar| nar.nar_sha256 = Bytes::from_static(b"short")),
    ] {
        let refused = peer.put(&info).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let mut size = right.clone();
    let mut entry = file(CONTENT);
    entry.size = 1 << 62;
    size.entry.as_mut().unwrap().entry = Some(entry::Entry::File(entry));
    let refused = peer.put(&size).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(peer.get().await.unwrap_err().code(), Code::NotFound);

    let signed = |signer: &str| {
        let mut info = right.clone();
        info.narinfo.as_mut().unwrap().signatures = vec![Signature {
            name: signer.to_owned(),
            data: vec![7; 64].into(),
        }];
        info
    };
    peer.put(&signed("a")).await.unwrap();
    peer.put(&signed("b")).await.unwrap();
    let signatures = peer.get().await.unwrap().narinfo.unwrap().signatures;
    assert_eq!(signatures.len(), 2, "signatures are united");

    // A castore-fs client sends it in the stream of an addition.
    let client = server.client();
    let put = tokio::task::spawn_blocking(move || {
        let ingest = client.ingest().unwrap();
        let node = put_file(ingest.as_ref(), b"another");
        let root = Root {
            name: name("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x"),
            node,
        };
        ingest.put_root(&root, Some(&path_info(b"not it"))).unwrap();
        ingest.commit()
    });
    let refused = put.await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nar_of_any_node_is_computed() {
    let store = memory();
    put_root(&store, "any name", |ingest| put_file(ingest, CONTENT));
    let server = Server::read_only(Arc::new(store));
    let peer = Peer::of(&server).await;
    let mut entry = file(CONTENT);
    entry.name = Bytes::new();
    let entry = |file| Entry {
        entry: Some(entry::Entry::File(file)),
    };
    let nar = nar(CONTENT);
    let computed = peer.path_infos().calculate_nar(entry(file(CONTENT))).await;
    let computed = computed.unwrap().into_inner();
    assert_eq!(
        (computed.nar_size, computed.nar_sha256),
        (nar.len() as u64, sha256(&nar))
    );
    let missing = peer
        .path_infos()
        .calculate_nar(entry(file(b"missing")))
        .await;
    assert_eq!(missing.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_may_come_before_its_content_and_is_hidden_until_that_came() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("store")).unwrap();
    let server = Server::with(Arc::new(store.clone()), "127.0.0.1:0", writable(false));
    let peer = Peer::of(&server).await;
    let client = server.client();
    // One that never comes may be replaced.
    peer.put(&path_info(b"never comes")).await.unwrap();
    let info = path_info(CONTENT);
    peer.put(&info).await.unwrap();
    assert_eq!(peer.get().await.unwrap(), info);
    assert!(peer.list().await.is_empty());
    assert!(client.roots().await.unwrap().is_empty());
    assert_eq!(client.root(NIX_NAME.as_bytes()).await.unwrap(), None);
    assert!(store.roots().await.unwrap().is_empty());
    peer.put_blob(CONTENT).await;
    let came = async {
        while peer.list().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(HANGS, came)
        .await
        .expect("it never came");
    assert_eq!(peer.list().await, std::slice::from_ref(&info));
    assert!(store.root(NIX_NAME.as_bytes()).await.unwrap().is_some());
    assert_eq!(peer.get().await.unwrap(), info);
    // What came stays.
    let refused = peer.put(&path_info(b"never comes")).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narinfo_that_is_lacking_is_computed_and_left_out_until_then() {
    let store = memory();
    let put = |store: &dyn Store| put_root(store, NIX_NAME, |ingest| put_file(ingest, CONTENT));
    put(&store);
    let server = Server::with(Arc::new(store.clone()), "127.0.0.1:0", writable(false));
    let peer = Peer::of(&server).await;
    assert!(peer.list().await.is_empty());
    let nar = path_info(CONTENT).narinfo;
    assert_eq!(peer.get().await.unwrap().narinfo, nar);
    assert_eq!(peer.list().await.len(), 1);
    let kept = store.path_info(NIX_NAME.as_bytes()).await.unwrap();
    assert_eq!(kept.unwrap().narinfo, nar, "it is stored");

    let store = memory();
    put(&store);
    let options = ServerOptions {
        narinfos_ahead: true,
        ..writable(false)
    };
    let server = Server::with(Arc::new(store.clone()), "127.0.0.1:0", options);
    let peer = Peer::of(&server).await;
    let listed = async {
        while peer.list().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(HANGS, listed)
        .await
        .expect("never listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_narinfo_is_answered_by_the_deadline() {
    use kit::double::Double;
    let store = memory();
    let content = noise(1, 10_000);
    put_root(&store, NIX_NAME, |ingest| put_file(ingest, &content));
    let slow = Arc::new(Double::upstream("double:", store));
    let server = Server::with(slow.clone(), "127.0.0.1:0", ServerOptions::default());
    let peer = Peer::of(&server).await;
    let hash = castore_fs::nix::output_hash(NIX_NAME.as_bytes()).unwrap();
    let ask = |peer: &Peer| {
        let hash = Bytes::copy_from_slice(&hash);
        let by_what = Some(ByWhat::ByOutputHash(hash));
        let mut request = Request::new(GetPathInfoRequest { by_what });
        request.set_timeout(Duration::from_secs(2));
        let mut client = peer.path_infos();
        async move { client.get(request).await }
    };
    slow.gate.send_replace(false);
    let asked = ask(&peer).await.unwrap_err();
    assert_eq!(asked.code(), Code::Unavailable, "{asked}");
    slow.gate.send_replace(true);
    let known = peer.get().await.unwrap();
    assert!(known.narinfo.is_some());
}
