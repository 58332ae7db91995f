//! Every file of a store in states that a restore, a full disk or a wrong command leaves: no byte is
//! wrong, nothing that was whole is overwritten, and repair and an import bring all back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use castore_fs::store::LocalStore;

use crate::dir::files;
use crate::tree::*;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Missing,
    Empty,
    Half,
    /// Its first bytes, its last ones, and some in the middle have one bit flipped.
    FlippedStart,
    FlippedEnd,
    FlippedMiddle,
    Noise,
    /// Zeros of its length, as after a crash of the machine.
    Zeros,
    /// Longer by a page of zeros.
    Longer,
    Directory,
    /// A symlink to a file elsewhere, which is not to be written to.
    Link,
    /// A symlink to itself.
    Loop,
    /// A symlink to nothing.
    Nowhere,
}

const FATES: [Fate; 13] = [
    Fate::Missing,
    Fate::Empty,
    Fate::Half,
    Fate::FlippedStart,
    Fate::FlippedEnd,
    Fate::FlippedMiddle,
    Fate::Noise,
    Fate::Zeros,
    Fate::Longer,
    Fate::Directory,
    Fate::Link,
    Fate::Loop,
    Fate::Nowhere,
];

const ELSEWHERE: &[u8] = b"what is elsewhere stays as it is";

fn befall(path: &Path, fate: Fate, elsewhere: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let length = bytes.len();
    fs::remove_file(path).unwrap();
    let link = |to: &Path| std::os::unix::fs::symlink(to, path).unwrap();
    match fate {
        Fate::Missing => return,
        Fate::Directory => return fs::create_dir(path).unwrap(),
        Fate::Link => {
            fs::write(elsewhere, ELSEWHERE).unwrap();
            return link(elsewhere);
        }
        Fate::Loop => return link(path),
        Fate::Nowhere => return link(Path::new("/nowhere/at/all")),
        Fate::Empty => bytes.clear(),
        Fate::Half => bytes.truncate(length / 2),
        Fate::FlippedStart if length > 0 => bytes[0] ^= 4,
        Fate::FlippedEnd if length > 0 => bytes[length - 1] ^= 4,
        Fate::FlippedMiddle if length > 0 => bytes[length / 2] ^= 4,
        Fate::FlippedStart | Fate::FlippedEnd | Fate::FlippedMiddle => {}
        Fate::Noise => bytes = noise(7, length),
        Fate::Zeros => bytes = vec![0; length],
        Fate::Longer => bytes.resize(length + 4096, 0),
    }
    fs::write(path, bytes).unwrap();
}

/// What was whole is as before, or was added to.
fn assert_unchanged(kept: &[(PathBuf, Vec<u8>)], what: &str) {
    for (path, before) in kept {
        let Ok(file) = fs::File::open(path) else {
            panic!("{what}: {} is gone", path.display());
        };
        let mut now = vec![0; before.len()];
        let read = file.read_exact_at(&mut now, 0);
        assert!(
            read.is_ok() && now == *before,
            "{what}: {} was overwritten",
            path.display()
        );
    }
}

/// Reads whatever can be read, which compares it with its digests, and adds a tree.
fn use_store(path: &Path) -> Result<(), String> {
    let store = LocalStore::open(path).map_err(|error| error.to_string())?;
    let (_, reached) = verify(&store);
    let added = add_tree(&store, "other", 5).map_err(|error| error.to_string());
    match reached.errors.first() {
        Some(error) => Err(error.to_string()),
        None => added.map(drop),
    }
}

/// What `fate` does to a store of which it befalls the file `name`.
fn try_one(sample: &Path, name: &Path, fate: Fate) {
    let what = format!("{} is {fate:?}", name.display());
    let dir = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (dir.path().join("store"), dir.path().join("elsewhere"));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([sample, &path])
        .status();
    assert!(copied.unwrap().success());
    befall(&path.join(name), fate, &elsewhere);
    let content = |file: &PathBuf| {
        let below = file.strip_prefix(&path).unwrap();
        below.starts_with("packs") || below.starts_with("blobs")
    };
    let kept: Vec<_> = files(&path)
        .into_iter()
        .filter(|file| content(file) && !file.ends_with(name))
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect();
    let used = catch_unwind(AssertUnwindSafe(|| use_store(&path)));
    let used = used.unwrap_or_else(|_| panic!("{what}: it panics"));
    assert_unchanged(&kept, &what);
    let repaired = catch_unwind(AssertUnwindSafe(|| LocalStore::repair(&path)));
    let repaired = repaired.unwrap_or_else(|_| panic!("{what}: the repair panics"));
    assert_unchanged(&kept, &what);
    let (store, _) = repaired.unwrap_or_else(|error| panic!("{what}: {used:?}: {error}"));
    for _ in 0..3 {
        add_tree(&store, "tree", 3).unwrap_or_else(|error| panic!("{what}: {error}"));
        verify(&store);
    }
    let (names, reached) = verify(&store);
    assert!(reached.errors.is_empty(), "{what}: {:?}", reached.errors);
    assert!(names.contains(&"tree".to_owned()), "{what}: {names:?}");
    drop(store);
    verify(&open(&path));
    if let Ok(bytes) = fs::read(&elsewhere) {
        assert!(bytes == ELSEWHERE, "{what}: it was followed");
    }
}

#[test]
fn a_file_in_any_state_costs_no_other_and_comes_again() {
    let sample = tempfile::tempdir().unwrap();
    add_tree(&open(sample.path()), "tree", 3).unwrap();
    let names = files(sample.path());
    let (mut tried, mut failures) = (0, Vec::new());
    for name in &names {
        let name = name.strip_prefix(sample.path()).unwrap();
        for fate in FATES {
            tried += 1;
            let tried = catch_unwind(AssertUnwindSafe(|| try_one(sample.path(), name, fate)));
            if tried.is_err() {
                failures.push((name.to_owned(), fate));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
    assert!(tried >= 6 * FATES.len(), "{tried}");
}
