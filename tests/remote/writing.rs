//! Additions over the wire.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Digest, NodeRef};
use castore_fs::import;
use castore_fs::store::{Blocking, Error, Ingest, MemoryStore, Store};
use castore_fs::tree::{TreePath, copy, verify};

use super::peer::Peer;
use super::{digest_and_size, memory, name, noise, put_directory, put_file, put_root, put_tree};
use kit::server::Server;

const NIX_NAME: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";

fn write_all(client: &dyn Store, root_name: &str) -> castore_fs::castore::Root {
    put_root(client, root_name, |ingest| {
        let mut entries = vec![(name("sub"), put_tree(ingest, 1, 3, 3))];
        for len in [0, 5, 70_000, 2 << 20] {
            let file = put_file(ingest, &noise(len as u64, len));
            entries.push((name(&len.to_string()), file));
        }
        let large = noise(77, 5 << 20);
        let mut writer = ingest.blob_writer().unwrap();
        // Given up: leaves nothing.
        let mut given_up = ingest.blob_writer().unwrap();
        given_up.write(b"never ended").unwrap();
        drop(given_up);
        for part in large.chunks(1_000_000) {
            writer.write(part).unwrap();
        }
        let (digest, size) = writer.finish().unwrap();
        assert_eq!((digest, size), (Digest::of(&large), large.len() as u64));
        let executable = true;
        let file = castore_fs::castore::Node::File {
            digest,
            size,
            executable,
        };
        entries.push((name("large"), file));
        put_directory(ingest, entries)
    })
}

fn all_there(store: &MemoryStore, root: &castore_fs::castore::Root) {
    let mut stack = vec![digest_and_size(&root.node).0];
    while let Some(digest) = stack.pop() {
        let found = store.directory_now(&digest).unwrap();
        let castore_fs::store::Answer::Found(directory) = found else {
            panic!("directory {digest} is lacking");
        };
        for entry in directory.iter() {
            match entry.node {
                NodeRef::Directory { digest, .. } => stack.push(digest),
                NodeRef::File { digest, size, .. } => {
                    let mut buffer = vec![0; size as usize];
                    let read = store.read_now(&digest, size, 0, &mut buffer).unwrap();
                    assert_eq!(read, castore_fs::store::Answer::Found(size as usize));
                    assert_eq!(Digest::of(&buffer), digest);
                }
                NodeRef::Symlink { .. } => {}
            }
        }
    }
}

#[test]
fn what_is_written_to_our_server_is_there_and_sent_once() {
    let store = memory();
    let server = Server::tcp(Arc::new(store.clone()));
    let client = server.client();
    let root = write_all(&client, "any name");
    all_there(&store, &root);
    let expected = store.usage().unwrap();
    assert_eq!(store.root_now(b"any name").unwrap(), Some(root).into());
    let again = write_all(&server.client(), "another");
    assert_eq!(store.usage().unwrap(), expected);
    let ingest = client.ingest().unwrap();
    ingest.remove_root(&again.name).unwrap();
    ingest.commit().unwrap();
    assert_eq!(store.root_now(b"another").unwrap(), None.into());
}

#[test]
fn what_is_written_to_a_peer_is_whole_there() {
    for older in [false, true] {
        let peer = Peer::default();
        let (store, has_empty) = (peer.store.clone(), peer.has_empty.clone());
        let server = peer.serve(older);
        let client = server.client();
        let root = write_all(&client, NIX_NAME);
        all_there(&store, &root);
        assert!(has_empty.load(Ordering::Relaxed), "it has files of 0 bytes");
        assert_eq!(
            store.root_now(NIX_NAME.as_bytes()).unwrap(),
            Some(root.clone()).into()
        );
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let known = runtime.block_on(store.path_info(NIX_NAME.as_bytes()));
        let narinfo = known.unwrap().unwrap().narinfo.unwrap();
        assert!(narinfo.nar_size > 7 << 20, "the peer has rendered it");
    }
}

#[test]
fn a_name_that_a_peer_refuses_is_refused_before_anything_is_sent() {
    let source = memory();
    let plain = ["any name", "tree", NIX_NAME]
        .map(|root_name| put_root(&source, root_name, |ingest| put_file(ingest, b"content")));
    let peer = Peer::default();
    let puts = peer.puts.clone();
    let server = peer.serve(false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let blocking = |store: Arc<dyn Store>| Blocking::new(store, runtime.handle().clone());
    let (from, to) = (
        blocking(Arc::new(source)),
        blocking(Arc::new(server.client())),
    );
    let refused = copy::copy(&from, &to, &plain, &copy::CopyProgress::default());
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("root \"any name\" and 1 more") && refused.contains("<hash>-<name>"),
        "{refused}"
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "content").unwrap();
    let source = import::ImportSource::Path(dir.path());
    let naming = import::RootNaming::Name(name("tree"));
    let options = import::ImportOptions::default();
    let refused = import::import(
        &to,
        source,
        naming,
        &options,
        &import::ImportProgress::new(),
    );
    assert!(refused.unwrap_err().to_string().contains("<hash>-<name>"));
    assert_eq!(puts.load(Ordering::Relaxed), 0);
    copy::copy(&from, &to, &plain[2..], &copy::CopyProgress::default()).unwrap();
    assert_ne!(puts.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_without_the_empty_blob_is_seen_and_mended_by_the_next_copy() {
    let tree = |ingest: &dyn Ingest| {
        let many = (0..100).map(|number| (name(&number.to_string()), put_file(ingest, b"")));
        put_directory(ingest, many.collect())
    };
    let source = memory();
    let root = put_root(&source, NIX_NAME, tree);
    let peer = Peer::default();
    put_root(&peer.store, NIX_NAME, tree);
    let has_empty = peer.has_empty.clone();
    let server = peer.serve(false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let blocking = |store: Arc<dyn Store>| Blocking::new(store, runtime.handle().clone());
    let (from, to) = (
        blocking(Arc::new(source)),
        blocking(Arc::new(server.client())),
    );
    let verify = || {
        let trees = [(TreePath::new(NIX_NAME.as_bytes()), root.node.clone())];
        verify::verify(&to, &trees, &verify::VerifyProgress::default()).unwrap()
    };
    let report = verify();
    assert!(
        matches!(&report.faults[..], [fault] if matches!(fault.why, verify::FaultCause::Missing)),
        "{report:?}"
    );
    // The Directory vouches for what is below it, so that nothing else is sent.
    copy::copy(
        &from,
        &to,
        std::slice::from_ref(&root),
        &copy::CopyProgress::default(),
    )
    .unwrap();
    assert!(has_empty.load(Ordering::Relaxed));
    assert!(verify().faults.is_empty());
}

#[test]
fn an_addition_that_is_dropped_or_broken_leaves_nothing() {
    let store = memory();
    let mut server = Server::tcp(Arc::new(store.clone()));
    let client = server.client();
    let ingest = client.ingest().unwrap();
    let file = put_file(ingest.as_ref(), b"dropped");
    put_directory(ingest.as_ref(), vec![(name("file"), file)]);
    drop(ingest);
    let ingest = client.ingest().unwrap();
    put_file(ingest.as_ref(), b"broken");
    server.stop();
    assert!(ingest.commit().is_err());
    assert_eq!(store.usage().unwrap(), Some(Default::default()));
}

#[test]
fn a_read_only_server_refuses_additions() {
    let server = Server::read_only(Arc::new(memory()));
    let refused = server.client().ingest().err().unwrap();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");
    assert!(refused.to_string().contains("--writable"), "{refused}");
}
