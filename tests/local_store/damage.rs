//! Damage is told for what it hit and for nothing else.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use castore_fs::castore::Digest;
use castore_fs::store::{Answer, Damage, Error, Object, Store};

use crate::folder::{Record, large_path, records};
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
    let folder = tempfile::tempdir().unwrap();
    add_tree(&open(folder.path()), "tree", 3).unwrap();
    let found = records(folder.path());
    (folder, found)
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
    let (folder, found) = sample();
    let longest = found
        .iter()
        .filter(|record| record.tag == *b"blob")
        .max_by_key(|record| record.len)
        .unwrap();
    assert!(longest.len > 40_000);
    for at in [0, 20_000, longest.len - 1] {
        flip(&longest.pack, longest.offset + at);
        let (object, digest, damage) = only_damaged(folder.path());
        assert_eq!((object, digest), (Object::Blob, longest.digest));
        assert!(matches!(damage, Damage::WrongBytes { .. }), "{damage}");
        // The groups that are whole can still be read.
        let store = open(folder.path());
        let mut group = [0; 4096];
        let other = if at < 16384 { 20_480 } else { 0 };
        let answer = store.read_now(&digest, longest.len as u64, other, &mut group);
        assert_eq!(answer.unwrap(), Answer::Found(4096));
        flip(&longest.pack, longest.offset + at);
    }
    verify_whole(&open(folder.path()));
}

#[test]
fn a_flipped_byte_in_the_group_hashes_damages_their_blob() {
    let (folder, found) = sample();
    let tables = found.iter().filter_map(|record| match &record.tag {
        b"blob" if record.len > 16384 => Some((record, record.offset + record.len + 40)),
        b"tabl" => Some((record, record.offset + 33)),
        _ => None,
    });
    let mut tried = 0;
    for (record, at) in tables {
        flip(&record.pack, at);
        let (_, digest, damage) = only_damaged(folder.path());
        assert_eq!(digest, record.digest);
        assert!(matches!(damage, Damage::Groups(_)), "{damage}");
        flip(&record.pack, at);
        tried += 1;
    }
    assert!(tried > 5);
}

#[test]
fn a_flipped_byte_in_a_directory_damages_that_directory() {
    let (folder, found) = sample();
    let directories = found.iter().filter(|record| record.tag == *b"dir ");
    for record in directories {
        flip(&record.pack, record.offset + 20);
        let (object, digest, _) = only_damaged(folder.path());
        assert_eq!((object, digest), (Object::Directory, record.digest));
        flip(&record.pack, record.offset + 20);
    }
}

#[test]
fn a_large_file_that_is_changed_cut_or_gone_is_damaged_until_it_comes_again() {
    let (folder, found) = sample();
    let table = found.iter().find(|record| record.tag == *b"tabl").unwrap();
    let (digest, size) = (table.digest, table.len as u64);
    let path = large_path(folder.path(), &digest);
    // It is read-only, to all but root.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    flip(&path, 500_000);
    let (_, hit, damage) = only_damaged(folder.path());
    assert_eq!(hit, digest);
    assert!(matches!(damage, Damage::WrongBytes { .. }), "{damage}");
    flip(&path, 500_000);

    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size - 1).unwrap();
    drop(file);
    let (_, hit, damage) = only_damaged(folder.path());
    assert_eq!(hit, digest);
    assert!(
        matches!(damage, Damage::WrongSize { expected, actual }
            if expected == size && actual == size - 1),
        "{damage}"
    );
    let store = open(folder.path());
    assert!(store.backing_file(&digest, size).is_err());
    add_tree(&store, "tree", 3).unwrap();
    verify_whole(&store);
    verify_whole(&open(folder.path()));

    fs::remove_file(&path).unwrap();
    let (_, hit, damage) = only_damaged(folder.path());
    assert_eq!(hit, digest);
    assert!(
        matches!(&damage, Damage::Gone(gone) if *gone == path),
        "{damage}"
    );
    let usage = store.usage().unwrap();
    add_tree(&open(folder.path()), "tree", 3).unwrap();
    verify_whole(&open(folder.path()));
    assert_eq!(store.usage().unwrap(), usage);
}

#[test]
fn a_pack_that_is_cut_or_gone_damages_what_was_in_it() {
    let (folder, found) = sample();
    let blobs: Vec<_> = found.iter().filter(|found| found.tag == *b"blob").collect();
    let last = blobs.last().unwrap();
    let file = OpenOptions::new().write(true).open(&last.pack).unwrap();
    file.set_len(last.offset as u64 + 1).unwrap();
    let (_, reached) = verify(&open(folder.path()));
    assert!(!reached.errors.is_empty());
    for error in &reached.errors {
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    // What lies before the cut is untouched, and nobody adds to a pack like that.
    let store = open(folder.path());
    for blob in &blobs[..blobs.len() - 1] {
        read_all(&store, &blob.digest, blob.len as u64).unwrap();
    }
    add_tree(&store, "other", 4).unwrap();
    let (_, other) = verify(&store);
    assert_eq!(other.errors.len(), reached.errors.len());

    fs::remove_file(&last.pack).unwrap();
    let store = open(folder.path());
    match read_all(&store, &last.digest, last.len as u64) {
        Err(Error::Damaged { damage, .. }) => {
            assert!(matches!(&*damage, Damage::Gone(gone) if *gone == last.pack));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_index_that_is_none_is_an_error_that_names_it() {
    let (folder, _) = sample();
    let path = folder.path().join("index.redb");
    fs::write(&path, noise(1, 100_000)).unwrap();
    match castore_fs::store::LocalStore::open(folder.path()) {
        Err(error) => assert!(error.to_string().contains("index.redb"), "{error}"),
        Ok(store) => panic!("{store:?} was opened"),
    }
}
