//! `castore-fs serve` has given up all but its store by the time it serves.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use castore_fs::castore::Digest;
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::v1::{BlobChunk, ReadBlobRequest};

use super::answers::{all, clients};
use super::noise;
use kit::skip::skip;

const UNPRIVILEGED: u32 = 65_534;

/// A directory that every user can use, with a tree that holds a large file.
fn dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), all).unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    fs::write(dir.path().join("tree/large"), noise(7, 3 << 20)).unwrap();
    fs::write(dir.path().join("tree/small"), "small").unwrap();
    dir
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_castore-fs"))
}

fn succeeds(arguments: &[&str]) -> Output {
    let run = program().args(arguments).output().unwrap();
    assert!(run.status.success(), "{arguments:?}: {run:?}");
    run
}

/// `castore-fs serve` with a unix socket and a port.
struct Serving {
    child: Child,
    socket: PathBuf,
    port: u16,
}

impl Serving {
    fn start(dir: &Path, store: &str, arguments: &[&str]) -> Self {
        Self::start_by(program(), dir, store, arguments)
    }

    fn start_by(mut command: Command, dir: &Path, store: &str, arguments: &[&str]) -> Self {
        let port = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let socket = dir.join(format!("socket-{port}"));
        command
            .args(["serve", "--store", store])
            .args(["--listen", &format!("unix:{}", socket.display())])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(arguments)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        // The port is bound last.
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(ended) = child.try_wait().unwrap() {
                let mut reported = String::new();
                child.stderr.unwrap().read_to_string(&mut reported).unwrap();
                panic!("{ended}: {reported}");
            }
            assert!(began.elapsed() < Duration::from_secs(20), "no server");
            std::thread::sleep(Duration::from_millis(10));
        }
        UnixStream::connect(&socket).unwrap();
        Self {
            child,
            socket,
            port,
        }
    }

    fn url(&self) -> String {
        format!("grpc+unix:{}?wait-connect=1", self.socket.display())
    }

    /// The kernel's status of every one of its threads.
    fn statuses(&self) -> Vec<String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status"));
        threads
            .map(|thread| status(thread.unwrap()).unwrap())
            .collect()
    }

    fn assert_confined(&self) {
        // Answers, so that all its threads are there.
        succeeds(&["ls", "--store", &self.url()]);
        let statuses = self.statuses();
        assert!(statuses.len() > 2, "{} threads", statuses.len());
        for status in statuses {
            let none = format!("CapEff:\t{}\n", "0".repeat(16));
            for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n", &none] {
                assert!(status.contains(line), "{line} in {status}");
            }
        }
    }

    /// Reads and, where it may, adds a blob, in both generations of the protocol.
    async fn speak(&self, there: &[u8], writable: bool) {
        let clients = clients(&format!("http://127.0.0.1:{}", self.port)).await;
        for (number, client) in clients.into_iter().enumerate() {
            let mut client = BlobServiceClient::new(client);
            let mut expected = vec![there.to_vec()];
            if writable {
                let blob = noise(100 + number as u64, 1 << 20);
                let data = Bytes::from(blob.clone());
                let chunk = futures_util::stream::iter([BlobChunk { data }]);
                let put = client.put(chunk).await.unwrap().into_inner();
                assert_eq!(put.digest, Digest::of(&blob).as_bytes()[..]);
                expected.push(blob);
            }
            for blob in expected {
                let digest = Bytes::copy_from_slice(Digest::of(&blob).as_bytes());
                let buffers = all(client.read(ReadBlobRequest { digest }).await).await;
                let read: Vec<u8> = buffers
                    .unwrap()
                    .iter()
                    .flat_map(|buffer| &buffer.data[..])
                    .copied()
                    .collect();
                assert!(read == blob);
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn local(dir: &Path, name: &str) -> String {
    format!("local:{}", dir.join(name).display())
}

fn imported(dir: &Path, name: &str) -> String {
    let (store, tree) = (local(dir, name), dir.join("tree"));
    succeeds(&["import", "--store", &store, tree.to_str().unwrap()]);
    store
}

fn cat(url: &str, file: &str) -> Output {
    program()
        .args(["cat", "--store", url, file])
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_read_is_served_without_privileges() {
    let dir = dir();
    let store = imported(dir.path(), "store");
    let serving = Serving::start(dir.path(), &store, &[]);
    serving.assert_confined();
    serving.speak(&noise(7, 3 << 20), false).await;
    assert_eq!(cat(&serving.url(), "tree/small").stdout, b"small");
    // What is added beside it is seen, as without.
    let other = dir.path().join("tree/small");
    succeeds(&["import", "--store", &store, other.to_str().unwrap()]);
    assert_eq!(cat(&serving.url(), "small").stdout, b"small");
    serving.assert_confined();
}

/// Into a store that there was none of, by an ordinary user where these tests run as the superuser.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_added_to_without_privileges() {
    let dir = dir();
    // Many large files in one commit, which syncs the disk as a whole.
    for number in 0..12 {
        let large = dir.path().join(format!("tree/large-{number}"));
        fs::write(large, noise(200 + number, (1 << 20) + 1)).unwrap();
    }
    let from = imported(dir.path(), "from");
    let is_root = rustix::process::geteuid().is_root();
    // Another user cannot run a program in a directory of the superuser.
    let staged = dir.path().join("castore-fs");
    fs::copy(env!("CARGO_BIN_EXE_castore-fs"), &staged).unwrap();
    for (name, user) in [
        ("to", None),
        ("of-another-user", is_root.then_some(UNPRIVILEGED)),
    ] {
        let store = local(dir.path(), name);
        let mut command = Command::new(&staged);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let serving = Serving::start_by(command, dir.path(), &store, &["--writable"]);
        let copied = ["copy", "--from", &from, "--to", &serving.url(), "tree"];
        succeeds(&copied);
        serving.assert_confined();
        serving.speak(&noise(7, 3 << 20), true).await;
        assert_eq!(cat(&serving.url(), "tree/large").stdout, noise(7, 3 << 20));
        succeeds(&["verify", "--store", &serving.url()]);
        drop(serving);
        succeeds(&["verify", "--store", &store]);
    }
}

/// Which it reaches with a token from a file elsewhere.
#[test]
fn an_upstream_is_served_without_privileges() {
    let (dir, elsewhere) = (dir(), tempfile::tempdir().unwrap());
    let token = elsewhere.path().join("token");
    fs::write(&token, "not-to-be-guessed").unwrap();
    let store = imported(dir.path(), "store");
    let upstream = dir.path().join("far");
    let mut server = program()
        .args(["serve", "--store", &store, "--token-file"])
        .arg(&token)
        .args(["--listen", &format!("unix:{}", upstream.display())])
        .spawn()
        .unwrap();
    let url = format!(
        "grpc+unix:{}?wait-connect=1&token-file={}",
        upstream.display(),
        token.display()
    );
    let serving = Serving::start(dir.path(), &url, &[]);
    serving.assert_confined();
    assert_eq!(cat(&serving.url(), "tree/large").stdout, noise(7, 3 << 20));
    let _ = server.kill();
    let _ = server.wait();
}

/// The store's large blobs, moved to another directory that a symlink leads to: Landlock sees the
/// difference.
#[test]
fn files_outside_of_the_store_are_out_of_reach() {
    let dir = dir();
    let store = imported(dir.path(), "store");
    let blobs = dir.path().join("store/blobs");
    fs::rename(&blobs, dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &blobs).unwrap();
    let open = Serving::start(dir.path(), &store, &["--no-sandbox"]);
    assert_eq!(cat(&open.url(), "tree/large").stdout, noise(7, 3 << 20));
    assert!(open.statuses()[0].contains("Seccomp:\t0\n"));
    drop(open);
    for arguments in [&[][..], &["--writable"]] {
        let mut serving = Serving::start(dir.path(), &store, arguments);
        let read = cat(&serving.url(), "tree/large");
        let small = cat(&serving.url(), "tree/small");
        let _ = serving.child.kill();
        let mut reported = String::new();
        let mut log = serving.child.stderr.take().unwrap();
        log.read_to_string(&mut reported).unwrap();
        if reported.contains("no Landlock in this kernel") {
            skip("this kernel no Landlock in this kernel");
            return;
        }
        assert!(!read.status.success(), "{arguments:?}");
        assert_eq!(small.stdout, b"small");
    }
}
