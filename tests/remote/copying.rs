//! Trees from store to store.

use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use castore_fs::castore::NodeRef;
use castore_fs::store::{Blocking, LocalStore, Store};
use castore_fs::tree::copy::{CopyProgress, copy};
use tokio::runtime::Runtime;

use super::peer::Peer;
use super::{digest_and_size, memory, name, noise, put_directory, put_file, put_root, put_tree};
use kit::server::Server;

const NIX_NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";

#[test]
fn a_copy_sends_what_is_missing_and_nothing_else() {
    let runtime = Runtime::new().unwrap();
    let blocking = |store: Arc<dyn Store>| Blocking::new(store, runtime.handle().clone());
    let source = memory();
    let root = put_root(&source, NIX_NAME, |ingest| {
        let mut entries = vec![(name("sub"), put_tree(ingest, 1, 3, 4))];
        for len in [0, 1, 100_000, 3 << 20] {
            let file = put_file(ingest, &noise(len as u64, len));
            entries.push((name(&len.to_string()), file));
        }
        put_directory(ingest, entries)
    });
    let upstream = Server::read_only(Arc::new(source.clone()));
    let peer = Peer::default();
    let ours = memory();
    let targets = [
        (peer.store.clone(), peer.serve(false), 0),
        // Here the empty blob is there without being sent.
        (ours.clone(), Server::tcp(Arc::new(ours)), 1),
    ];
    for (target, server, not_sent) in targets {
        let from = blocking(Arc::new(upstream.client()));
        let to = blocking(Arc::new(server.client()));
        let progress = CopyProgress::default();
        copy(&from, &to, std::slice::from_ref(&root), &progress).unwrap();
        let mut expected = source.usage().unwrap().unwrap();
        expected.blobs -= not_sent;
        assert_eq!(target.usage().unwrap(), Some(expected));
        assert_eq!(
            target.root_now(NIX_NAME.as_bytes()).unwrap(),
            Some(root.clone()).into()
        );
        assert_eq!(progress.blobs.load(Ordering::Relaxed), expected.blobs);
        let client = server.client();
        let to = blocking(Arc::new(client.clone()));
        let again = CopyProgress::default();
        let added = copy(&from, &to, std::slice::from_ref(&root), &again).unwrap();
        assert_eq!(added, Default::default());
        assert_eq!(again.blobs.load(Ordering::Relaxed), 0);
        assert_eq!(again.directories.load(Ordering::Relaxed), 0);
        assert!(client.calls() < 15, "{} calls", client.calls());
    }
}

/// A Directory alone does not stand for what is below it: it may have come without.
#[test]
fn a_copy_completes_a_tree_of_which_the_server_has_the_directories_only() {
    let runtime = Runtime::new().unwrap();
    let blocking = |store: Arc<dyn Store>| Blocking::new(store, runtime.handle().clone());
    let source = memory();
    let root = put_root(&source, "tree", |ingest| put_tree(ingest, 1, 3, 4));
    let dir = tempfile::tempdir().unwrap();
    let target = LocalStore::open(&dir.path().join("store")).unwrap();
    let ingest = target.ingest().unwrap();
    let mut directories = vec![digest_and_size(&root.node).0];
    while let Some(digest) = directories.pop() {
        let directory = runtime
            .block_on(source.directory(&digest))
            .unwrap()
            .unwrap();
        directories.extend(directory.iter().filter_map(|entry| match entry.node {
            NodeRef::Directory { digest, .. } => Some(digest),
            _ => None,
        }));
        ingest.put_directory(&directory).unwrap();
    }
    ingest.commit().unwrap();
    let server = Server::tcp(Arc::new(target.clone()));
    let from = blocking(Arc::new(source.clone()));
    let to = blocking(Arc::new(server.client()));
    let progress = CopyProgress::default();
    copy(&from, &to, std::slice::from_ref(&root), &progress).unwrap();
    let (there, wanted) = (target.usage().unwrap(), source.usage().unwrap());
    assert_eq!(there, wanted);
    assert_eq!(runtime.block_on(target.root(b"tree")).unwrap(), Some(root));
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(run.status.success(), "{arguments:?}: {run:?}");
    run
}

#[test]
fn users_serve_copy_list_and_read_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    std::fs::write(dir.path().join("tree/file"), noise(5, 3 << 20)).unwrap();
    let (local_store, upstream) = (
        format!("local:{}", path("near")),
        format!("local:{}", path("far")),
    );
    let socket = format!("unix:{}", path("socket"));
    run(&["import", "--store", &local_store, &path("tree")]);
    let serve = [
        "serve",
        "--store",
        &upstream,
        "--listen",
        &socket,
        "--writable",
    ];
    let child = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(serve)
        .spawn()
        .unwrap();
    let mut daemon = Daemon(child);
    let started = Instant::now();
    while !dir.path().join("socket").exists() {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    let remote = format!("grpc+{socket}?wait-connect=1");
    let copied = run(&["copy", "--from", &local_store, "--to", &remote, "tree"]);
    let reported = String::from_utf8(copied.stdout).unwrap();
    assert!(
        reported.contains("1 directory, 1 blob, 3.00 MiB"),
        "{reported}"
    );
    let again = run(&["copy", "--from", &local_store, "--to", &remote, "--all"]);
    let reported = String::from_utf8(again.stdout).unwrap();
    assert!(reported.contains(" 0 blobs, 0 B"), "{reported}");
    let read = run(&["cat", "--store", &remote, "tree/file"]);
    assert_eq!(read.stdout, noise(5, 3 << 20));
    let listed = run(&["ls", "--store", &remote]);
    assert!(String::from_utf8(listed.stdout).unwrap().contains("tree"));
    run(&["verify", "--store", &remote]);
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    run(&["verify", "--store", &upstream]);
}
