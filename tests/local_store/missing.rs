//! What happens when a file of a store is missing, damaged or older than the others: the rows of the
//! table in `docs/store-format.md`.

use std::fs;
use std::path::{Path, PathBuf};

use castore_fs::castore::Root;
use castore_fs::nix::PathInfo;
use castore_fs::store::{
    AddedTotals, Cache, CacheOptions, Error, LocalStore, MemoryStore, RepairOutcome, Store,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::dir::{large, records};
use crate::tree::*;

/// A store with two trees, one of which has a PathInfo.
fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add_tree(&store, "tree", 3).unwrap();
    add_named(&store, NAME, 4);
    drop(store);
    dir
}

const NAME: &str = "00000000000000000000000000000000-name";

fn info() -> PathInfo {
    PathInfo {
        references: vec![],
        ..PathInfo::default()
    }
}

/// Adds a tree with a PathInfo.
fn add_named(store: &LocalStore, root: &str, seed: u64) {
    let ingest = store.ingest().unwrap();
    let node = put_tree(&*ingest, seed).unwrap();
    let name = name(root);
    ingest
        .put_root(&Root { name, node }, Some(&info()))
        .unwrap();
    ingest.commit().unwrap();
}

/// Both trees of [`sample`] can be read, and what is known of them.
fn assert_whole(store: &LocalStore) {
    assert_eq!(verify_whole(store).0, [NAME, "tree"]);
    assert_eq!(
        block_on(store.path_info(NAME.as_bytes())).unwrap(),
        Some(info())
    );
    assert_eq!(block_on(store.path_info(b"tree")).unwrap(), None);
}

/// Every file with its contents, but for directories that are made again.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = crate::dir::files(path).into_iter();
    files
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect()
}

fn assert_names_repair(error: &Error, path: &Path) {
    let command = format!(
        "castore-fs verify --repair --store local:{}",
        path.display()
    );
    assert!(error.to_string().contains(&command), "{error}");
}

fn repair(path: &Path) -> (LocalStore, RepairOutcome) {
    let (store, repaired) = LocalStore::repair(path).unwrap();
    assert_eq!(store.check_index().unwrap(), [] as [String; 0]);
    (store, repaired)
}

#[test]
fn without_its_format_file_a_store_is_read_and_never_written() {
    for damage in [None, Some(&b""[..]), Some(b"\0\0\0\0"), Some(b"# only\n")] {
        let dir = sample();
        let format = dir.path().join("format");
        fs::remove_file(&format).unwrap();
        if let Some(bytes) = damage {
            fs::write(&format, bytes).unwrap();
        }
        let before = contents(dir.path());
        let store = open(dir.path());
        assert_whole(&store);
        let error = add_tree(&store, "other", 5).unwrap_err();
        assert_names_repair(&error, dir.path());
        drop(store);
        assert_eq!(contents(dir.path()), before);
        let (store, repaired) = repair(dir.path());
        assert_eq!((repaired.format, repaired.index), (true, None));
        assert_whole(&store);
        add_tree(&store, "other", 5).unwrap();
    }
}

const ROOTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("roots");
const ROOT_RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("root_records");
const QUARANTINE: TableDefinition<(u8, &[u8; 32]), u64> = TableDefinition::new("quarantine");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Makes a store what version 1 would have made.
fn make_version_1(path: &Path) {
    let database = Database::open(path.join("index.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let records = txn.open_table(ROOT_RECORDS).unwrap();
        let mut roots = txn.open_table(ROOTS).unwrap();
        for found in records.iter().unwrap() {
            let (name, record) = found.unwrap();
            roots.insert(name.value(), &record.value()[9..]).unwrap();
        }
        let mut meta = txn.open_table(META).unwrap();
        for key in ["format", "journal", "journal_length", "incomplete_roots"] {
            meta.remove(key).unwrap();
        }
    }
    txn.delete_table(ROOT_RECORDS).unwrap();
    txn.delete_table(QUARANTINE).unwrap();
    txn.commit().unwrap();
    drop(database);
    fs::write(path.join("format"), "# A store.\nformat = 1\n").unwrap();
    fs::remove_file(path.join("journal")).unwrap();
}

#[test]
fn a_store_of_version_1_is_read_and_converted_by_its_first_change() {
    let dir = sample();
    make_version_1(dir.path());
    let before = contents(dir.path());
    let store = open(dir.path());
    assert_whole(&store);
    let record = store.root_record(b"tree").unwrap().unwrap();
    assert_eq!((record.added, record.incomplete), (None, false));
    assert_eq!(contents(dir.path()), before, "reading converts nothing");
    // One of version 1 that has the store open.
    let old = Database::open(dir.path().join("index.redb"));
    drop(old);
    add_tree(&store, "third", 5).unwrap();
    let format = fs::read_to_string(dir.path().join("format")).unwrap();
    assert!(format.contains("format = 2\n"), "{format}");
    for store in [store, open(dir.path())] {
        assert_eq!(verify_whole(&store).0, [NAME, "third", "tree"]);
        assert_eq!(store.root_record(b"tree").unwrap().unwrap().added, None);
        let third = store.root_record(b"third").unwrap().unwrap();
        assert!(third.added.unwrap() > 1_700_000_000);
    }
    let database = Database::open(dir.path().join("index.redb")).unwrap();
    let view = database.begin_read().unwrap();
    let error = view.open_table(ROOTS).map(drop).unwrap_err();
    assert!(
        error.to_string().contains("'roots' does not exist"),
        "{error}"
    );
    drop((view, database));
    // All of it is in the journal now, from which the index can be rebuilt.
    fs::remove_file(dir.path().join("index.redb")).unwrap();
    let (store, _) = repair(dir.path());
    assert_eq!(verify_whole(&store).0, [NAME, "third", "tree"]);
}

/// As after a partial restore: the `format` file is older than the index, or is missing.
#[test]
fn an_index_of_a_newer_version_is_read_by_none_and_not_rebuilt() {
    for format in [
        Some("format = 2\n"),
        Some("format = 2\nuse = cache\n"),
        None,
    ] {
        let dir = sample();
        let path = dir.path();
        let database = Database::open(path.join("index.redb")).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(META).unwrap().insert("format", 7).unwrap();
        txn.commit().unwrap();
        drop(database);
        match format {
            Some(text) => fs::write(path.join("format"), text).unwrap(),
            None => fs::remove_file(path.join("format")).unwrap(),
        }
        let before = contents(path);
        let cache = format!("local:{}", path.display());
        let as_cache = || {
            let upstream: std::sync::Arc<dyn Store> = std::sync::Arc::new(MemoryStore::new());
            Cache::open(&cache, upstream, CacheOptions::default()).map(drop)
        };
        for refused in [
            LocalStore::open(path).map(drop),
            LocalStore::repair(path).map(drop),
            as_cache(),
        ] {
            let error = refused.unwrap_err().to_string();
            let words = "newer castore-fs (format 7), this one understands up to 2";
            assert!(error.contains(words), "{format:?}: {error}");
        }
        assert!(contents(path) == before, "{format:?}: it was changed");
    }
}

#[test]
fn a_lost_index_is_rebuilt_from_packs_and_journal() {
    for damage in 0..4 {
        let dir = sample();
        let path = dir.path();
        let index = path.join("index.redb");
        let usage = open(path).usage().unwrap().unwrap();
        let length = fs::metadata(&index).unwrap().len();
        let file = fs::File::options().write(true).open(&index).unwrap();
        match damage {
            0 => fs::remove_file(&index).unwrap(),
            1 => file.set_len(20_000).unwrap(),
            2 => fs::write(&index, noise(1, 100_000)).unwrap(),
            _ => file.set_len(length - 4096).unwrap(),
        }
        let before = contents(path);
        let failed = LocalStore::open(path).and_then(|store| add_tree(&store, "other", 5));
        assert_names_repair(&failed.unwrap_err(), path);
        assert_eq!(contents(path).len(), before.len());
        // A large blob whose group table was lost as well.
        let mut tables = records(path).into_iter();
        let table = tables.find(|record| record.tag == *b"tabl").unwrap();
        let pack = fs::File::options().write(true).open(&table.pack).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&pack, b"XXXX", table.offset as u64 - 44).unwrap();
        let (store, repaired) = repair(path);
        let rebuilt = repaired.index.unwrap();
        assert_eq!(
            (rebuilt.roots, rebuilt.damaged, rebuilt.names_lost),
            (2, 1, false)
        );
        assert_eq!(rebuilt.aside.is_some(), damage > 0);
        for store in [store, open(path)] {
            assert_whole(&store);
            assert_eq!(store.usage().unwrap().unwrap(), usage);
            // Nothing that is there is sent again.
            assert_eq!(add_tree(&store, "tree", 3).unwrap(), AddedTotals::default());
        }
    }
}

#[test]
fn an_index_that_is_older_than_the_rest_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    add_tree(&open(path), "tree", 3).unwrap();
    let old = fs::read(path.join("index.redb")).unwrap();
    add_named(&open(path), NAME, 4);
    fs::write(path.join("index.redb"), old).unwrap();
    let store = open(path);
    assert_eq!(verify_whole(&store).0, ["tree"]);
    let error = add_tree(&store, "other", 5).unwrap_err();
    assert_names_repair(&error, path);
    assert!(error.to_string().contains("older"), "{error}");
    drop(store);
    let (store, repaired) = repair(path);
    assert!(repaired.index.unwrap().why.contains("older"));
    assert_whole(&store);
    add_tree(&store, "other", 5).unwrap();
}

#[test]
fn a_journal_of_another_index_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    add_tree(&open(path), "tree", 3).unwrap();
    let journal = path.join("journal");
    let old = fs::read(&journal).unwrap();
    add_named(&open(path), NAME, 4);
    for damage in [
        None,
        Some(old),
        Some(b"castore".to_vec()),
        Some(noise(1, 5000)),
    ] {
        match damage {
            None => fs::remove_file(&journal).unwrap(),
            Some(bytes) => fs::write(&journal, bytes).unwrap(),
        }
        let store = open(path);
        assert_whole(&store);
        add_tree(&store, "other", 5).unwrap();
        let ingest = store.ingest().unwrap();
        ingest.remove_root(&name("other")).unwrap();
        ingest.commit().unwrap();
        drop(store);
        fs::remove_file(path.join("index.redb")).unwrap();
        let (store, _) = repair(path);
        assert_whole(&store);
    }
}

#[test]
fn without_index_and_journal_the_objects_are_found() {
    let dir = sample();
    let path = dir.path();
    let usage = open(path).usage().unwrap();
    fs::remove_file(path.join("index.redb")).unwrap();
    fs::remove_file(path.join("journal")).unwrap();
    fs::remove_file(path.join("format")).unwrap();
    assert_names_repair(&LocalStore::open(path).unwrap_err(), path);
    let (store, repaired) = repair(path);
    assert!(repaired.format && repaired.index.unwrap().names_lost);
    assert_eq!(store.usage().unwrap(), usage);
    assert_eq!(verify_whole(&store).0, [] as [String; 0]);
    // They count as young, so that there is time.
    assert_eq!(
        store.collect_garbage(&Default::default()).unwrap(),
        Default::default()
    );
    assert_eq!(add_tree(&store, "tree", 3).unwrap(), AddedTotals::default());
    add_named(&store, NAME, 4);
    assert_whole(&store);
}

#[test]
fn what_a_lost_pack_held_comes_again() {
    for all in [false, true] {
        let dir = sample();
        let path = dir.path();
        match all {
            false => fs::remove_file(&records(path)[0].pack).unwrap(),
            true => {
                fs::remove_dir_all(path.join("packs")).unwrap();
                fs::remove_dir_all(path.join("tmp")).unwrap();
            }
        }
        let store = open(path);
        let (_, reached) = verify(&store);
        assert!(!reached.errors.is_empty());
        for error in &reached.errors {
            assert!(
                error.to_string().contains("verify --repair --from URL"),
                "{error}"
            );
        }
        // An import brings what was found to be lost, and what that leads to.
        for _ in 0..3 {
            add_tree(&store, "tree", 3).unwrap();
            add_named(&store, NAME, 4);
            verify(&store);
        }
        assert_whole(&store);
        drop(store);
        assert_whole(&open(path));
    }
}

#[test]
fn what_is_not_needed_is_made_again() {
    let dir = sample();
    let path = dir.path();
    fs::remove_file(path.join("sequence")).unwrap();
    fs::remove_file(path.join("additions")).unwrap();
    fs::remove_dir_all(path.join("tmp")).unwrap();
    let reader = open(path);
    assert_whole(&reader);
    let version = reader.roots_version().unwrap();
    let store = open(path);
    add_tree(&store, "other", 5).unwrap();
    assert!(reader.roots_version().unwrap() > version);
    assert_eq!(verify_whole(&reader).0, [NAME, "other", "tree"]);
    assert_eq!(large(path).len(), 4);
}

#[test]
fn a_record_that_is_damaged_costs_itself_and_no_other() {
    let dir = sample();
    let path = dir.path();
    let before = open(path).usage().unwrap().unwrap();
    let mut hit = 0;
    for record in records(path).iter().step_by(7) {
        let file = fs::File::options().write(true).open(&record.pack).unwrap();
        // In the length, in the digest, in the bytes.
        let at = record.offset - 44 + [5, 20, 44][hit % 3];
        std::os::unix::fs::FileExt::write_all_at(&file, b"\x55\xaa", at as u64).unwrap();
        hit += 1;
    }
    fs::remove_file(path.join("index.redb")).unwrap();
    let (store, repaired) = repair(path);
    let rebuilt = repaired.index.unwrap();
    assert_eq!(rebuilt.damaged, hit as u64);
    let lost = before.blobs + before.directories - rebuilt.blobs - rebuilt.directories;
    assert!(lost <= hit as u64, "{lost} of {hit}");
    for _ in 0..3 {
        add_tree(&store, "tree", 3).unwrap();
        add_named(&store, NAME, 4);
    }
    assert_whole(&store);
}
