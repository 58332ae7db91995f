//! Answers that an upstream takes its time for: how they are waited for, by threads and by requests.

use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::fs::{CastoreFs, FsOptions, ParkedState, WaitingRequests};
use castore_fs::store::{Blocking, MemoryStore, Store};
use fuse_backend_rs::abi::fuse_abi::Opcode;
use kit::double::{Double, Trouble};
use kit::model::{directory, file};
use kit::mounted::mount_root_of;
use kit::requests::{Requests, read_in};
use tokio::runtime::Runtime;

#[test]
fn a_request_that_waits_gives_its_thread_back_and_is_answered_when_asked_again() {
    let memory = MemoryStore::new();
    let node = directory([("file", file("contents"))]).put_root(&memory, "tree");
    let upstream = Double::upstream("upstream:", memory);
    upstream.trouble(Trouble::Slow(Duration::from_millis(5)));
    let runtime = Runtime::new().unwrap();
    let waiting = WaitingRequests::new(runtime.handle().clone());
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        ..FsOptions::default()
    };
    let fs = CastoreFs::new(Arc::new(upstream), options, waiting, None);
    let mut requests = Requests::to(fs);

    let mut answered = |opcode, node, body: &[u8]| {
        let mut paused = ParkedState::default();
        let mut waits = 0;
        while let Some(parked) = requests.ask(&mut paused, opcode, node, body) {
            assert!(requests.answer().is_empty(), "an answer beside a wait");
            paused.arrived(runtime.block_on(parked.arrival()));
            waits += 1;
            assert!(waits < 10, "it waits for what has arrived");
        }
        (waits, requests.answer().to_vec())
    };
    let (waits, entry) = answered(Opcode::Lookup, 1, b"file\0");
    assert!(waits > 0);
    let file = u64::from_ne_bytes(entry[16..24].try_into().unwrap());
    let (waits, read) = answered(Opcode::Read, file, &read_in(3, 5));
    assert!(waits > 0);
    assert_eq!(&read[16..], b"tents");
}

#[test]
fn an_upstreams_answer_is_waited_for() {
    let memory = MemoryStore::new();
    let digest = Digest::of(b"contents");
    let node = Node::File {
        digest,
        size: 8,
        executable: false,
    };
    let name = Name::new(b"name").unwrap();
    let directory = Directory::from_entries(vec![(name.clone(), node.clone())]).unwrap();
    let root = Root { name, node };
    let ingest = memory.ingest().unwrap();
    ingest.put_blobs(&[(digest, b"contents")]).unwrap();
    ingest.put_directory(&directory).unwrap();
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();

    let runtime = Runtime::new().unwrap();
    let local_store: Arc<dyn Store> = Arc::new(memory.clone());
    let upstream: Arc<dyn Store> = Arc::new(Double::upstream("far:", memory));
    for store in [local_store, upstream] {
        let store = Blocking::new(store, runtime.handle().clone());
        assert_eq!(
            store.directory(&directory.digest()).unwrap(),
            Some(directory.clone())
        );
        assert_eq!(store.directory(&digest).unwrap(), None);
        let mut buffer = [0; 8];
        assert_eq!(store.read(&digest, 8, 3, &mut buffer).unwrap(), Some(5));
        assert_eq!(&buffer[..5], b"tents");
        assert_eq!(
            store.read(&Digest::of(b"x"), 1, 0, &mut buffer).unwrap(),
            None
        );
        assert_eq!(store.root(b"name").unwrap(), Some(root.clone()));
        assert_eq!(store.root(b"other").unwrap(), None);
        assert_eq!(store.roots().unwrap(), std::slice::from_ref(&root));
        assert!(store.has_blob(&digest).unwrap());
    }
}
