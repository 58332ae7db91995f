//! What goes in comes out, once, in order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use castore_fs::castore::{Digest, Directory, Node, Root};
use castore_fs::store::{AddedTotals, Answer, Damage, Error, Store, StoreUsage};

use crate::dir::{files, large, large_path, records};
use crate::tree::*;

const SIZES: [usize; 15] = [
    0,
    1,
    100,
    4096,
    16383,
    16384,
    16385,
    32768,
    100_000,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    (2 << 20) + 5,
    5 << 20,
    (5 << 20) + 12345,
];

#[test]
fn a_blob_of_any_size_comes_back_whole_and_in_parts() {
    for streamed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let ingest = store.ingest().unwrap();
        for (seed, len) in SIZES.into_iter().enumerate() {
            let bytes = noise(seed as u64, len);
            match streamed {
                true => stream(&*ingest, &bytes, 77_777).unwrap(),
                false => put(&*ingest, &bytes).unwrap(),
            };
        }
        let added = ingest.commit().unwrap();
        let bytes = SIZES.iter().sum::<usize>() as u64;
        let blobs = SIZES.len() as u64 - 1; // the empty one is always there
        assert_eq!((added.blobs, added.blob_bytes), (blobs, bytes));
        for store in [store.clone(), open(dir.path())] {
            for (seed, len) in SIZES.into_iter().enumerate() {
                let bytes = noise(seed as u64, len);
                let (digest, size) = (Digest::of(&bytes), len as u64);
                assert!(read_all(&store, &digest, size).unwrap() == bytes, "{len}");
                for (offset, length) in [
                    (0, 1),
                    (0, 4096),
                    (1, 16384),
                    (16384, 16384),
                    (4096, 131_072),
                    (16384, 1 << 20),
                    (len.saturating_sub(1), 10),
                    (len, 10),
                    (len + 1, 10),
                ] {
                    let mut buffer = vec![0xaa; length];
                    let answer = store.read_now(&digest, size, offset as u64, &mut buffer);
                    let expected = bytes.get(offset..).unwrap_or_default();
                    let expected = &expected[..expected.len().min(length)];
                    assert_eq!(answer.unwrap(), Answer::Found(expected.len()));
                    assert!(buffer[..expected.len()] == *expected, "{len} at {offset}");
                }
                let wrong = store.read_now(&digest, size + 1, 0, &mut [0; 8]);
                assert!(
                    matches!(&wrong, Err(Error::Damaged { damage, .. })
                        if matches!(**damage, Damage::WrongSize { .. })),
                    "{wrong:?}"
                );
                let backing = store.backing_file(&digest, size).unwrap();
                assert_eq!(backing.is_some(), len > 1 << 20);
            }
            let absent = store.read_now(&Digest::of(b"absent"), 6, 0, &mut [0; 8]);
            assert_eq!(absent.unwrap(), Answer::Absent);
        }
        let expected = StoreUsage {
            blobs,
            blob_bytes: bytes,
            directories: 0,
        };
        assert_eq!(store.usage().unwrap(), Some(expected));
    }
}

#[test]
fn large_blobs_are_read_only_files_of_their_own_with_holes_where_zeros_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut bytes = vec![0; 64 << 20];
    bytes[30_000_000..30_000_100].fill(7);
    let ingest = store.ingest().unwrap();
    stream(&*ingest, &bytes, 1_000_000).unwrap();
    ingest.commit().unwrap();
    let digest = Digest::of(&bytes);
    let path = large_path(dir.path(), &digest);
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.len(), bytes.len() as u64);
    assert_eq!(found.permissions().mode() & 0o7777, 0o444);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(read_all(&store, &digest, found.len()).unwrap() == bytes);
}

/// Each file with what would show that it was written to.
fn state(path: &Path) -> Vec<(std::path::PathBuf, u64, i64, i64)> {
    files(path)
        .into_iter()
        .map(|path| {
            let found = fs::metadata(&path).unwrap();
            (path, found.len(), found.mtime(), found.mtime_nsec())
        })
        .collect()
}

#[test]
fn importing_the_same_again_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let added = add_tree(&open(dir.path()), "tree", 1).unwrap();
    assert_eq!(added.directories, 5);
    let before = state(dir.path());
    let store = open(dir.path());
    let version = store.roots_version().unwrap();
    assert_eq!(add_tree(&store, "tree", 1).unwrap(), AddedTotals::default());
    drop(store);
    assert_eq!(state(dir.path()), before);
    let store = open(dir.path());
    assert_eq!(store.roots_version().unwrap(), version);
    assert_eq!(
        add_tree(&store, "other", 1).unwrap(),
        AddedTotals::default()
    );
    assert_eq!(store.roots_version().unwrap(), version + 1);
    // Blobs of a new tree that exist already are stored once.
    let more = add_tree(&store, "third", 2).unwrap();
    assert!(more.blobs < added.blobs, "{more:?}");
    let (names, reached) = verify_whole(&store);
    assert_eq!(names, ["other", "third", "tree"]);
    let usage = store.usage().unwrap().unwrap();
    assert_eq!(usage.directories, reached.directories.len() as u64);
    assert_eq!(usage.blobs, reached.blobs.len() as u64 - 1);
    assert_eq!(records(dir.path()).len(), reached.blobs.len() - 1 + 10);
}

#[test]
fn blobs_lie_in_the_order_they_came_and_directories_in_the_order_of_a_walk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ingest = store.ingest().unwrap();
    let mut blobs = Vec::new();
    let mut branch = |depth: usize, label: &str| {
        let bytes = noise(blobs.len() as u64, 50 + depth);
        blobs.push(Digest::of(&bytes));
        (label.to_owned(), put(&*ingest, &bytes).unwrap())
    };
    let leaf = |entries| put_directory(&*ingest, entries).unwrap();
    let b_x = leaf(vec![branch(2, "1")]);
    let b_y = leaf(vec![branch(2, "2")]);
    let b = leaf(vec![("y".into(), b_y.clone()), ("x".into(), b_x.clone())]);
    let a = leaf(vec![branch(1, "3")]);
    let c = leaf(vec![branch(1, "4")]);
    let tree_root = leaf(vec![
        ("c".into(), c.clone()),
        ("b".into(), b.clone()),
        ("a".into(), a.clone()),
    ]);
    let root = Root {
        name: name("top"),
        node: tree_root.clone(),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    let found = |tag: &[u8; 4]| -> Vec<_> {
        records(dir.path())
            .into_iter()
            .filter(|record| record.tag == *tag)
            .map(|record| record.digest)
            .collect()
    };
    assert_eq!(found(b"blob"), blobs);
    let walk = [tree_root, a, b, b_x, b_y, c].map(|node| node.digest().unwrap());
    assert_eq!(found(b"dir "), walk);
}

#[test]
fn a_root_is_refused_while_something_below_it_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = noise(1, 100);
    let child = Directory::from_entries(vec![(name("file"), file(&blob))]).unwrap();
    let parent = Directory::from_entries(vec![(name("child"), child.node())]).unwrap();
    let root = Root {
        name: name("root"),
        node: parent.node(),
    };
    let try_root = |with: &dyn Fn(&dyn castore_fs::store::Ingest)| {
        let ingest = store.ingest().unwrap();
        with(&*ingest);
        ingest.put_root(&root, None).unwrap();
        ingest.commit()
    };
    let refusal = |done: Result<AddedTotals, Error>, what: &Digest| match done {
        Err(Error::Refused { why, .. }) => {
            assert!(why.contains(&what.to_string()), "{why}");
        }
        other => panic!("{other:?}"),
    };
    refusal(try_root(&|_| {}), &parent.digest());
    refusal(
        try_root(&|ingest| ingest.put_directory(&parent).unwrap()),
        &child.digest(),
    );
    // Without a root, parts are taken as they come, and looked into again later.
    let ingest = store.ingest().unwrap();
    ingest.put_directory(&parent).unwrap();
    ingest.put_directory(&child).unwrap();
    ingest.commit().unwrap();
    refusal(try_root(&|_| {}), &Digest::of(&blob));
    assert_eq!(store.root_now(b"root").unwrap(), Answer::Absent);
    let added = try_root(&|ingest| drop(put(ingest, &blob).unwrap())).unwrap();
    assert_eq!((added.blobs, added.directories), (1, 0));
    assert_eq!(try_root(&|_| {}).unwrap(), AddedTotals::default());
    assert_eq!(verify_whole(&store).0, ["root"]);
    // A node with a wrong size.
    let wrong_node = Node::File {
        digest: Digest::of(&blob),
        size: 99,
        executable: false,
    };
    let ingest = store.ingest().unwrap();
    let root = Root {
        name: name("lie"),
        node: wrong_node,
    };
    ingest.put_root(&root, None).unwrap();
    refusal(ingest.commit(), &Digest::of(&blob));
}

#[test]
fn what_is_dropped_before_its_commit_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for round in 0..2 {
        let names = |path: &Path| -> Vec<_> {
            let held = state(path).into_iter();
            held.map(|(path, len, ..)| (path, len)).collect()
        };
        let before = names(dir.path());
        let ingest = store.ingest().unwrap();
        put_tree(&*ingest, 9).unwrap();
        let mut unfinished = ingest.blob_writer().unwrap();
        unfinished.write(&noise(3, 3 << 20)).unwrap();
        assert_ne!(names(dir.path()), before);
        drop(ingest);
        drop(unfinished);
        assert_eq!(names(dir.path()), before, "round {round}");
        add_tree(&store, "tree", 1).unwrap();
    }
    assert_eq!(verify_whole(&store).0, ["tree"]);
}

#[test]
fn a_change_of_the_roots_is_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = (open(dir.path()), open(dir.path()));
    let version = reader.roots_version().unwrap();
    let same = reader.wait_for_roots(version, Duration::from_millis(50));
    assert_eq!(same.unwrap(), version);
    // Not noticed, the change would let this wait for a day.
    let day = Duration::from_secs(86_400);
    let wait = std::thread::spawn({
        let reader = reader.clone();
        move || reader.wait_for_roots(version, day).unwrap()
    });
    std::thread::sleep(Duration::from_millis(100));
    add_tree(&writer, "tree", 1).unwrap();
    let now = wait.join().unwrap();
    assert_ne!(now, version);
    assert!(matches!(reader.root_now(b"tree"), Ok(Answer::Found(_))));
    let ingest = writer.ingest().unwrap();
    ingest.remove_root(&name("tree")).unwrap();
    ingest.commit().unwrap();
    assert_ne!(reader.roots_version().unwrap(), now);
    assert_eq!(reader.root_now(b"tree").unwrap(), Answer::Absent);
}

#[test]
fn path_infos_are_kept_with_their_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let info = castore_fs::nix::PathInfo {
        references: vec![vec![1; 20].into()],
        ..Default::default()
    };
    let ingest = store.ingest().unwrap();
    let node = put(&*ingest, b"content").unwrap();
    let name = name("0123-name");
    let root = Root { name, node };
    ingest.put_root(&root, Some(&info)).unwrap();
    ingest.commit().unwrap();
    let store = open(dir.path());
    let found = block_on(store.path_info(b"0123-name")).unwrap();
    assert_eq!(found, Some(info));
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&root.name).unwrap();
    ingest.commit().unwrap();
    assert_eq!(block_on(store.path_info(b"0123-name")).unwrap(), None);
}

#[test]
fn many_threads_put_into_one_addition() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ingest = store.ingest().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ingest = &*ingest;
            scope.spawn(move || {
                for at in 0..200 {
                    // Each blob comes twice, from two threads.
                    let bytes = noise(thread / 2 * 1000 + at, 10_000 + at as usize);
                    put(ingest, &bytes).unwrap();
                }
                stream(ingest, &noise(7, 3 << 20), 1 << 18).unwrap();
            });
        }
    });
    assert_eq!(ingest.commit().unwrap().blobs, 401);
    let found = records(dir.path());
    assert_eq!(found.len(), 401);
    for record in found {
        read_all(&store, &record.digest, record.len as u64).unwrap();
    }
    assert_eq!(large(dir.path()).len(), 1);
}
