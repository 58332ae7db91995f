//! Damage is reported for the damaged objects only.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use castore_fs::castore::{Digest, Root};
use castore_fs::store::{Answer, Damage, Error, Object, Store};

use crate::dir::{Record, large_path, records};
use crate::tree::*;

fn flip(path: &Path, offset: usize) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset as u64).unwrap();
}

fn sample() -> (tempfile::TempDir, Vec<Record>) {
    let dir = tempfile::tempdir().unwrap();
    add_tree(&open(dir.path()), "tree", 3).unwrap();
    let found = records(dir.path());
    (dir, found)
}

/// The one object that is damaged, once everything was read.
fn only_damaged(path: &Path) -> (Object, Digest, Damage) {
    let (_, mut reached) = verify(&open(path));
    assert_eq!(reached.errors.len(), 1, "{:?}", reached.errors);
    match reached.errors.remove(0) {
        Error::Damaged {
            object,
            digest,
            damage,
            ..
        } => (object, digest, *damage),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flipped_byte_anywhere_in_a_blob_damages_that_blob() {
    let (dir, found) = sample();
    let longest = found
        .iter()
        .filter(|record| record.tag == *b"blob")
        .max_by_key(|record| record.len)
        .unwrap();
    assert!(longest.len > 40_000);
    for at in [0, 20_000, longest.len - 1] {
        flip(&longest.pack, longest.offset + at);
        let (object, digest, damage) = only_damaged(dir.path());
        assert_eq!((object, digest), (Object::Blob, longest.digest));
        assert!(matches!(damage, Damage::WrongBytes { .. }), "{damage}");
        // The groups that are whole can still be read.
        let store = open(dir.path());
        let mut group = [0; 4096];
        let other = if at < 16384 { 20_480 } else { 0 };
        let answer = store.read_now(&digest, longest.len as u64, other, &mut group);
        assert_eq!(answer.unwrap(), Answer::Found(4096));
        flip(&longest.pack, longest.offset + at);
    }
    verify_whole(&open(dir.path()));
}

#[test]
fn a_flipped_byte_in_the_group_hashes_damages_their_blob() {
    let (dir, found) = sample();
    let tables = found.iter().filter_map(|record| match &record.tag {
        b"blob" if record.len > 16384 => Some((record, record.offset + record.len + 40)),
        b"tabl" => Some((record, record.offset + 33)),
        _ => None,
    });
    let mut tried = 0;
    for (record, at) in tables {
        flip(&record.pack, at);
        let (_, digest, damage) = only_damaged(dir.path());
        assert_eq!(digest, record.digest);
        assert!(matches!(damage, Damage::Groups(_)), "{damage}");
        flip(&record.pack, at);
        tried += 1;
    }
    assert!(tried > 5);
}

#[test]
fn a_flipped_byte_in_a_directory_damages_that_directory() {
    let (dir, found) = sample();
    let directories = found.iter().filter(|record| record.tag == *b"dir ");
    for record in directories {
        flip(&record.pack, record.offset + 20);
        let (object, digest, _) = only_damaged(dir.path());
        assert_eq!((object, digest), (Object::Directory, record.digest));
        flip(&record.pack, record.offset + 20);
    }
}

#[test]
fn a_large_file_that_is_changed_cut_or_gone_is_damaged_until_it_comes_again() {
    let (dir, found) = sample();
    let table = found.iter().find(|record| record.tag == *b"tabl").unwrap();
    let (digest, size) = (table.digest, table.len as u64);
    let path = large_path(dir.path(), &digest);
    // It is read-only, to all but root.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    flip(&path, 500_000);
    let (_, hit, damage) = only_damaged(dir.path());
    assert_eq!(hit, digest);
    assert!(matches!(damage, Damage::WrongBytes { .. }), "{damage}");
    flip(&path, 500_000);

    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size - 1).unwrap();
    drop(file);
    let (_, hit, damage) = only_damaged(dir.path());
    assert_eq!(hit, digest);
    assert!(
        matches!(damage, Damage::WrongSize { expected, actual }
            if expected == size && actual == size - 1),
        "{damage}"
    );
    let store = open(dir.path());
    assert!(store.backing_file(&digest, size).is_err());
    add_tree(&store, "tree", 3).unwrap();
    verify_whole(&store);
    verify_whole(&open(dir.path()));

    fs::remove_file(&path).unwrap();
    let (_, hit, damage) = only_damaged(dir.path());
    assert_eq!(hit, digest);
    assert!(
        matches!(&damage, Damage::Gone(gone) if *gone == path),
        "{damage}"
    );
    let usage = store.usage().unwrap();
    add_tree(&open(dir.path()), "tree", 3).unwrap();
    verify_whole(&open(dir.path()));
    assert_eq!(store.usage().unwrap(), usage);
}

#[test]
fn a_pack_that_is_cut_or_gone_damages_what_was_in_it() {
    let (dir, found) = sample();
    let blobs: Vec<_> = found.iter().filter(|found| found.tag == *b"blob").collect();
    let last = blobs.last().unwrap();
    let file = OpenOptions::new().write(true).open(&last.pack).unwrap();
    file.set_len(last.offset as u64 + 1).unwrap();
    let (_, reached) = verify(&open(dir.path()));
    assert!(!reached.errors.is_empty());
    for error in &reached.errors {
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    // What is before the cut is untouched, and such a pack is not appended to.
    let store = open(dir.path());
    for blob in &blobs[..blobs.len() - 1] {
        read_all(&store, &blob.digest, blob.len as u64).unwrap();
    }
    add_tree(&store, "other", 4).unwrap();
    // What the other tree has in common with this one is replaced.
    let (_, other) = verify(&store);
    assert!(other.errors.len() < reached.errors.len());

    fs::remove_file(&last.pack).unwrap();
    let store = open(dir.path());
    match read_all(&store, &last.digest, last.len as u64) {
        Err(Error::Damaged { damage, .. }) => {
            assert!(matches!(&*damage, Damage::Gone(gone) if *gone == last.pack));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_index_that_is_none_is_an_error_that_names_it() {
    let (dir, _) = sample();
    let path = dir.path().join("index.redb");
    fs::write(&path, noise(1, 100_000)).unwrap();
    match castore_fs::store::LocalStore::open(dir.path()) {
        Err(error) => assert!(error.to_string().contains("index.redb"), "{error}"),
        Ok(store) => panic!("{store:?} was opened"),
    }
}

/// Flips a byte of the shortest blob and of the first Directory; gives their digests.
pub(crate) fn damage_two(path: &Path) -> (Digest, Digest) {
    let found = records(path);
    let blobs = found.iter().filter(|record| record.tag == *b"blob");
    let blob = blobs.min_by_key(|record| record.len).unwrap();
    let directory = found.iter().rfind(|record| record.tag == *b"dir ").unwrap();
    for record in [blob, directory] {
        flip(&record.pack, record.offset + record.len / 2);
    }
    (blob.digest, directory.digest)
}

#[test]
fn what_was_found_damaged_is_absent_for_additions_and_replaced_by_them() {
    let (dir, _) = sample();
    let path = dir.path();
    let (blob, directory) = damage_two(path);
    let usage = open(path).usage().unwrap();
    // Nothing is known of it before it was read.
    assert!(block_on(open(path).has_blob(&blob)).unwrap());
    assert_eq!(
        add_tree(&open(path), "tree", 3).unwrap(),
        Default::default()
    );
    let store = open(path);
    let (_, reached) = verify(&store);
    assert_eq!(reached.errors.len(), 2, "{:?}", reached.errors);
    for error in &reached.errors {
        let error = error.to_string();
        assert!(
            error.contains("castore-fs verify --repair --from URL --store"),
            "{error}"
        );
    }
    drop(store);
    // Another process reads the list in the index.
    let store = open(path);
    assert!(!block_on(store.has_blob(&blob)).unwrap());
    assert!(!block_on(store.has_tree(&directory)).unwrap());
    let Answer::Found(root) = store.root_now(b"tree").unwrap() else {
        panic!("it is there");
    };
    let tree_root = root.node.digest().unwrap();
    assert!(!block_on(store.has_tree(&tree_root)).unwrap());
    // What leads to it is no root any more until it has come.
    let ingest = store.ingest().unwrap();
    assert!(!ingest.has_blob(&blob).unwrap());
    let other = Root {
        name: name("other"),
        node: root.node.clone(),
    };
    ingest.put_root(&other, None).unwrap();
    let error = ingest.commit().unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    add_tree(&store, "tree", 3).unwrap();
    for store in [store, open(path)] {
        verify_whole(&store);
        assert!(block_on(store.has_tree(&tree_root)).unwrap());
        assert_eq!(store.usage().unwrap(), usage);
        assert_eq!(add_tree(&store, "tree", 3).unwrap(), Default::default());
    }
}

#[test]
fn a_copy_replaces_what_was_found_damaged_although_all_above_is_there() {
    let (dir, _) = sample();
    let (good, _) = sample();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let blocking = |path: &Path| {
        castore_fs::store::Blocking::new(std::sync::Arc::new(open(path)), runtime.handle().clone())
    };
    damage_two(dir.path());
    assert_eq!(verify(&open(dir.path())).1.errors.len(), 2);
    let (from, to) = (blocking(good.path()), blocking(dir.path()));
    let roots = from.roots().unwrap();
    castore_fs::tree::copy::copy(&from, &to, &roots, &Default::default()).unwrap();
    verify_whole(&open(dir.path()));
}

#[test]
fn what_is_sound_after_all_leaves_the_list() {
    let (dir, _) = sample();
    let path = dir.path();
    let found = records(path);
    let blob = found.iter().find(|record| record.tag == *b"blob").unwrap();
    flip(&blob.pack, blob.offset + 3);
    verify(&open(path));
    let store = open(path);
    assert_eq!(store.release_sound().unwrap(), 1);
    flip(&blob.pack, blob.offset + 3);
    assert!(!block_on(store.has_blob(&blob.digest)).unwrap());
    assert_eq!(store.release_sound().unwrap(), 0);
    assert!(block_on(store.has_blob(&blob.digest)).unwrap());
}

#[test]
fn a_node_that_is_wrong_about_a_size_is_no_damage_of_the_blob() {
    let (dir, found) = sample();
    let blob = found.iter().find(|record| record.tag == *b"blob").unwrap();
    let store = open(dir.path());
    let size = blob.len as u64 + 1;
    store
        .read_now(&blob.digest, size, 0, &mut [0; 8])
        .unwrap_err();
    drop(store);
    assert!(block_on(open(dir.path()).has_blob(&blob.digest)).unwrap());
}
