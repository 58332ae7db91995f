//! Additions over the wire.

use std::sync::Arc;

use castore_fs::castore::{Digest, NodeRef};
use castore_fs::store::{Error, MemoryStore, Store};

use super::peer::Peer;
use super::server::Server;
use super::{digest_and_size, memory, name, noise, put_directory, put_file, put_root, put_tree};

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
fn what_is_written_to_a_peer_is_there_under_nix_names_only() {
    for older in [false, true] {
        let peer = Peer::default();
        let store = peer.store.clone();
        let server = peer.serve(older);
        let client = server.client();
        let root = write_all(&client, NIX_NAME);
        all_there(&store, &root);
        assert_eq!(
            store.root_now(NIX_NAME.as_bytes()).unwrap(),
            Some(root.clone()).into()
        );
        let ingest = client.ingest().unwrap();
        let other = castore_fs::castore::Root {
            name: name("any name"),
            ..root
        };
        let refused = ingest.put_root(&other, None);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
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
