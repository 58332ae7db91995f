//! Which clients a server accepts, how many calls, and until when.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castore_fs::castore::Digest;
use castore_fs::proto::castore_fs::services::part_service_client::PartServiceClient;
use castore_fs::proto::castore_fs::v1::read_together_request::Wanted;
use castore_fs::proto::castore_fs::v1::{MissingRequest, ReadPartRequest, ReadTogetherRequest};
use castore_fs::server::{AcceptedTokens, Listener, ServerError, ServerOptions, TlsInput, serve};
use castore_fs::store::{GrpcStore, MemoryStore, Store};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{memory, noise, put_file};
use kit::double::{Double, Trouble};
use kit::passed_descriptors::start_with;
use kit::server::Server;

const TOKEN: &str = "c0rrect-horse-battery-staple";

fn with_blob() -> (MemoryStore, Digest) {
    let store = memory();
    let blob = noise(1, 1000);
    let ingest = store.ingest().unwrap();
    put_file(ingest.as_ref(), &blob);
    ingest.commit().unwrap();
    (store, Digest::of(&blob))
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The client's result at `url` for a read of the blob.
async fn read(url: &str, digest: &Digest) -> Result<usize, String> {
    let client = GrpcStore::open(url).map_err(|error| error.to_string())?;
    let read = client.read(digest, 1000, 0, 1000).await;
    read.map(|read| read.unwrap().len())
        .map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_requires_a_token_serves_no_client_without() {
    let (store, digest) = with_blob();
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("socket").display());
    let options = ServerOptions {
        tokens: Some(AcceptedTokens::parse(format!("older\n{TOKEN}\n").as_bytes()).unwrap()),
        ..ServerOptions::default()
    };
    let server = Server::with(Arc::new(store), &address, options);
    let right = write(dir.path(), "right", &format!("{TOKEN}\n"));
    let wrong = write(dir.path(), "wrong", "guessed");
    let with = |path: &Path| format!("{}?token-file={}", server.url, path.display());
    assert_eq!(read(&with(&right), &digest).await, Ok(1000));
    for url in [server.url.clone(), with(&wrong)] {
        let error = read(&url, &digest).await.unwrap_err();
        assert!(error.contains("requires a token"), "{error}");
        assert!(!error.contains("guessed"), "{error}");
    }
    // Probes have no token, and get the state and nothing else.
    assert_eq!(health(&dir.path().join("socket")).await, 1);
}

#[tokio::test]
async fn a_token_is_not_taken_where_it_would_travel_in_the_clear() {
    let options = ServerOptions {
        tokens: Some(AcceptedTokens::parse(TOKEN.as_bytes()).unwrap()),
        ..ServerOptions::default()
    };
    let listeners = Listener::bind("127.0.0.1:0").unwrap();
    let never = std::future::pending();
    let refused = serve(Arc::new(memory()), listeners, options, never).await;
    assert!(matches!(refused, Err(ServerError::TokenInTheClear { .. })));
}

/// The state that the health service of the server at a unix socket returns: 1 is "serving".
async fn health(socket: &Path) -> i32 {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .unwrap();
    let service = "snix.castore.v1.BlobService".to_owned();
    let mut client = HealthClient::new(channel);
    let asked = client.check(HealthCheckRequest { service });
    asked.await.unwrap().into_inner().status
}

/// An authority, and certificates that it signed for a server and a client.
struct Certificates {
    authority: PathBuf,
    server: (String, String),
    client: (PathBuf, PathBuf),
}

fn certificates(dir: &Path, prefix: &str) -> Certificates {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let signed = |purpose| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &authority).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = signed(ExtendedKeyUsagePurpose::ClientAuth);
    Certificates {
        authority: write(dir, &format!("{prefix}-authority"), &authority.pem()),
        server: signed(ExtendedKeyUsagePurpose::ServerAuth),
        client: (
            write(dir, &format!("{prefix}-certificate"), &certificate),
            write(dir, &format!("{prefix}-key"), &key),
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_demanded_and_checked_on_both_sides() {
    let (store, digest) = with_blob();
    let dir = tempfile::tempdir().unwrap();
    let ours = certificates(dir.path(), "ours");
    let strange = certificates(dir.path(), "strange");
    let options = ServerOptions {
        tls: Some(TlsInput {
            certificate: ours.server.0.clone().into(),
            key: ours.server.1.clone().into(),
            client_authority: Some(std::fs::read(&ours.authority).unwrap()),
        }),
        tokens: Some(AcceptedTokens::parse(TOKEN.as_bytes()).unwrap()),
        ..ServerOptions::default()
    };
    let server = Server::with(Arc::new(store), "127.0.0.1:0", options);
    let token = write(dir.path(), "token", TOKEN);
    let url = |authority: &Path, client: Option<&(PathBuf, PathBuf)>, token: Option<&Path>| {
        let mut url = format!("{}?tls-ca-cert-path={}", server.url, authority.display());
        if let Some((certificate, key)) = client {
            let (certificate, key) = (certificate.display(), key.display());
            url += &format!("&tls-client-cert-path={certificate}&tls-client-key-path={key}");
        }
        if let Some(token) = token {
            url += &format!("&token-file={}", token.display());
        }
        url
    };
    let right = url(&ours.authority, Some(&ours.client), Some(&token));
    assert_eq!(read(&right, &digest).await, Ok(1000));
    let without_token = url(&ours.authority, Some(&ours.client), None);
    let error = read(&without_token, &digest).await.unwrap_err();
    assert!(error.contains("requires a token"), "{error}");
    let without_certificate = url(&ours.authority, None, Some(&token));
    let error = read(&without_certificate, &digest).await.unwrap_err();
    assert!(error.contains("tls-client-cert-path=FILE"), "{error}");
    for wrong in [
        without_certificate,
        url(&ours.authority, Some(&strange.client), Some(&token)),
        url(&strange.authority, Some(&ours.client), Some(&token)),
    ] {
        let error = read(&wrong, &digest).await.unwrap_err();
        assert!(error.contains(&server.url), "{error}");
        assert!(!error.contains(TOKEN), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_run_to_their_end_when_the_server_is_stopped() {
    let (store, digest) = with_blob();
    let slow = Arc::new(Double::upstream("double:", store));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let address = format!("unix:{}", socket.display());
    let mut server = Server::with(slow.clone(), &address, ServerOptions::default());
    let client = server.client();
    assert!(client.root(b"missing").await.unwrap().is_none());
    slow.trouble(Trouble::Hangs);
    let reading = {
        let client = client.clone();
        tokio::spawn(async move { client.read(&digest, 1000, 0, 1000).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!stopping.is_finished(), "a call was cut");
    slow.trouble(Trouble::None);
    assert_eq!(reading.await.unwrap().unwrap().unwrap().len(), 1000);
    stopping.await.unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_limit_wait_for_their_turn() {
    let (store, digest) = with_blob();
    let slow = Arc::new(Double::upstream("double:", store));
    let options = ServerOptions {
        streams: NonZeroU32::new(3).unwrap(),
        ..ServerOptions::default()
    };
    let server = Server::with(slow.clone(), "127.0.0.1:0", options);
    let client = server.client();
    // One stream is the watch of the roots.
    assert!(client.root(b"missing").await.unwrap().is_none());
    slow.trouble(Trouble::Hangs);
    let calls = (0..10u64).map(|index| {
        let client = client.clone();
        let other = Digest::of(&index.to_le_bytes());
        tokio::spawn(async move { client.has_blob(&other).await })
    });
    let calls: Vec<_> = calls.collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiting = slow.waiting.load(Ordering::Relaxed);
    assert!((1..=3).contains(&waiting), "{waiting} calls at once");
    slow.trouble(Trouble::None);
    for call in calls {
        assert!(!call.await.unwrap().unwrap());
    }
    assert!(client.has_blob(&digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_too_large_are_refused() {
    let (store, digest) = with_blob();
    let server = Server::tcp(Arc::new(store));
    let url = server.url.trim_start_matches("grpc+").to_owned();
    let mut client = PartServiceClient::connect(url).await.unwrap();
    let digest = bytes::Bytes::copy_from_slice(digest.as_bytes());
    let digests = vec![digest.clone(); 4097];
    let many = client.missing(MissingRequest { digests }).await;
    assert_eq!(many.unwrap_err().code(), Code::InvalidArgument);
    let wanted = Wanted {
        digest: digest.clone(),
        size: 1000,
    };
    let blobs = vec![wanted; 4097];
    let many = client.read_together(ReadTogetherRequest { blobs }).await;
    assert_eq!(many.unwrap_err().code(), Code::InvalidArgument);
    let overflow = ReadPartRequest {
        digest: digest.clone(),
        size: 1000,
        offset: u64::MAX,
        length: 2,
    };
    let refused = client.read(overflow).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    // A message of more than there can be questions in.
    let digests = vec![bytes::Bytes::from(vec![0; 65 << 20])];
    let large = client.missing(MissingRequest { digests }).await;
    let code = large.unwrap_err().code();
    assert!(
        matches!(code, Code::OutOfRange | Code::ResourceExhausted),
        "{code:?}"
    );
}

/// A server process that is stopped on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_takes_sockets_from_systemd_and_tokens_from_its_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("local:{}", dir.path().join("store").display());
    let tree = write(dir.path(), "file", "content");
    let program = env!("CARGO_BIN_EXE_castore-fs");
    let imported = Command::new(program)
        .args(["import", "--store", &store, tree.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let socket = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let tokens = write(dir.path(), "tokens", TOKEN);
    let mut command = Command::new(program);
    command
        .args(["serve", "--store", &store])
        .args(["--listen", "systemd", "--token-file"])
        .arg(&tokens);
    let _server = Process(start_with(&command, listener));

    // The client is a unit that was given the token as its credential.
    let credentials = dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    write(&credentials, "upstream", TOKEN);
    let url = format!("grpc+unix:{}", socket.display());
    let cat = |url: &str, credentials: &Path| {
        Command::new(program)
            .args(["cat", "--store", url, "file"])
            .env("CREDENTIALS_DIRECTORY", credentials)
            .env("RUST_LOG", "trace")
            .output()
            .unwrap()
    };
    let read = cat(&format!("{url}?token-file=upstream"), &credentials);
    assert!(read.status.success(), "{read:?}");
    assert_eq!(read.stdout, b"content");
    let reported = String::from_utf8_lossy(&read.stderr);
    assert!(!reported.contains(TOKEN));
    assert!(reported.contains("every user can read it"), "{reported}");
    let refused = cat(&url, &credentials);
    let reported = String::from_utf8_lossy(&refused.stderr);
    assert!(reported.contains("requires a token"), "{reported}");
    let missing = cat(&format!("{url}?token-file=other"), &credentials);
    let reported = String::from_utf8_lossy(&missing.stderr);
    let place = credentials.join("other");
    assert!(reported.contains(place.to_str().unwrap()), "{reported}");
}
