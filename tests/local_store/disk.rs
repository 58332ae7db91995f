//! Full disks, disks and directories that cannot be written to, and directories that are no store.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use castore_fs::store::{Error, LocalStore, Store};
use castore_fs::stores::open as open_url;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::dir::{large, records};
use crate::processes::{command, start};
use crate::tree::*;
use kit::skip::skip;
use kit::small_disk::{Disk, small_disk};

/// Makes a file that takes all of its disk but `spare` bytes.
fn fill(path: &Path, spare: u64) -> fs::File {
    let file = fs::File::create(path).unwrap();
    // The space in statvfs is not always available at once.
    for _ in 0..100 {
        let found = rustix::fs::statvfs(path).unwrap();
        let free = (found.f_bavail * found.f_bsize).saturating_sub(spare);
        let flags = rustix::fs::FallocateFlags::empty();
        if rustix::fs::fallocate(&file, flags, 0, free).is_ok() {
            return file;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} does not fill up", path.display());
}

/// Shows `from` read-only at `at`; reports why and returns nothing where that is not allowed.
fn read_only(from: &Path, at: &Path) -> Option<Disk> {
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    let mounted = mount_bind(from, at).and_then(|()| {
        let guard = Disk(at.to_owned());
        mount_remount(at, flags, "").map(|()| guard)
    });
    mounted
        .inspect_err(|error| {
            skip(&format!(
                "no bind mount here ({error}); run as the superuser"
            ))
        })
        .ok()
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(dir.path(), 48 << 20) else {
        return;
    };
    let path = dir.path().join("store");
    let store = open(&path);
    add_tree(&store, "first", 1).unwrap();
    let held = files_in(&path);
    let filler = dir.path().join("filler");
    let mut failures = 0;
    // Ever more room, so that it runs out in ever later steps.
    for spare in (0..).map(|step| step * (160 << 10)) {
        let file = fill(&filler, spare);
        let done = add_tree(&store, "second", 2);
        if let Err(error) = &done {
            failures += 1;
            let text = error.to_string();
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(text.contains("free some space"), "{text}");
        }
        // Even with no byte to spare, what was there can be read, by new handles too.
        let names = verify_whole(&store).0;
        assert_eq!(verify_whole(&open(&path)).0, names);
        drop(file);
        fs::remove_file(&filler).unwrap();
        if done.is_ok() {
            assert_eq!(names, ["first", "second"]);
            break;
        }
        assert_eq!(names, ["first"], "with {spare} bytes to spare");
        assert_eq!(files_in(&path), held, "with {spare} bytes to spare");
        assert!(spare < 40 << 20, "never enough room");
    }
    assert!(failures > 10, "only {failures} failures");
    records(&path);
    assert_eq!(large(&path).len(), 3);
}

/// The files with the lengths that they must keep; the index may grow.
fn files_in(path: &Path) -> Vec<(PathBuf, u64)> {
    crate::dir::files(path)
        .into_iter()
        .filter(|path| !path.ends_with("index.redb"))
        .map(|path| {
            let len = fs::metadata(&path).unwrap().len();
            (path, len)
        })
        .collect()
}

#[test]
fn a_store_on_a_read_only_disk_can_be_read_and_refuses_additions() {
    let dir = tempfile::tempdir().unwrap();
    let (path, view) = (dir.path().join("store"), dir.path().join("view"));
    fs::create_dir(&view).unwrap();
    add_tree(&open(&path), "tree", 1).unwrap();
    let Some(_mount) = read_only(&path, &view) else {
        return;
    };
    let store = open(&view);
    assert_eq!(verify_whole(&store).0, ["tree"]);
    let error = store.ingest().err().unwrap();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");
    assert!(
        error.to_string().contains("mount it for writing"),
        "{error}"
    );
    // A process that can write does, and the reader sees it.
    add_tree(&open(&path), "second", 2).unwrap();
    assert_eq!(verify_whole(&store).0, ["second", "tree"]);

    let nothing = LocalStore::open(&view.join("none")).unwrap_err();
    assert!(
        nothing.to_string().contains("mount it for writing"),
        "{nothing}"
    );
}

#[test]
fn a_store_whose_writer_was_killed_opens_even_on_a_read_only_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (path, view) = (dir.path().join("store"), dir.path().join("view"));
    fs::create_dir(&view).unwrap();
    add_tree(&open(&path), "tree", 1).unwrap();
    let mut child = start("hold 5", &path);
    let reported = BufReader::new(child.stdout.take().unwrap());
    assert!(reported.lines().any(|line| line.unwrap() == "holding"));
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(_mount) = read_only(&path, &view) else {
        return;
    };
    let store = open(&view);
    assert_eq!(verify_whole(&store).0, ["held", "tree"]);
    assert!(matches!(store.ingest(), Err(Error::ReadOnly { .. })));
    // A writer repairs the index, and the reader finds its way to it.
    add_tree(&open(&path), "later", 2).unwrap();
    assert_eq!(verify_whole(&store).0, ["held", "later", "tree"]);
}

#[test]
fn another_user_reads_a_store_and_gets_an_error_when_adding() {
    if !rustix::process::geteuid().is_root() {
        skip("only the superuser can start a process as another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("store");
    let store = open(&path);
    add_tree(&store, "tree", 1).unwrap();
    // The test binary may be in a directory that other users cannot enter.
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut stranger = std::process::Command::new(&program);
    let like = command("look", &path);
    stranger.args(like.get_args());
    for (key, value) in like.get_envs() {
        stranger.env(key, value.unwrap());
    }
    let output = stranger.uid(65534).gid(65534).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("found tree"), "{output:?}");
    assert!(text.contains("cannot be written to"), "{text}");
    assert!(text.contains("store's owner"), "{text}");
}

#[test]
fn a_store_made_by_a_newer_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let format = dir.path().join("format");
    let text = fs::read_to_string(&format).unwrap();
    fs::write(&format, text.replace("format = 2", "format = 7")).unwrap();
    let error = LocalStore::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("newer castore-fs (format 7), this one understands up to 2"),
        "{error}"
    );
    // One that has it open notices before it writes.
    fs::write(&format, text).unwrap();
    let store = open(dir.path());
    fs::write(&format, "format = 7").unwrap();
    let error = store.ingest().map(drop).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
}

#[test]
fn a_directory_that_is_no_store_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("precious"), b"").unwrap();
    let error = LocalStore::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("precious"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let file = dir.path().join("precious");
    let error = LocalStore::open(&file).unwrap_err().to_string();
    assert!(error.contains("precious"), "{error}");
    // One that a crash left half made is made again.
    let half = dir.path().join("half");
    fs::create_dir_all(half.join("packs")).unwrap();
    fs::write(half.join("index.redb.new"), b"half").unwrap();
    add_tree(&open(&half), "tree", 1).unwrap();
    verify_whole(&open(&half));
}

#[test]
fn urls_name_local_stores() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for url in [format!("local:{path}"), format!("local://{path}")] {
        let store = open_url(&url).unwrap();
        assert_eq!(store.url(), format!("local:{path}"));
    }
    for url in ["local:", "local://host/path", "local:a\0b"] {
        let error = open_url(url).unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{error}");
    }
}

#[test]
fn a_disk_that_fills_up_in_the_commit_is_a_clear_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(dir.path(), 24 << 20) else {
        return;
    };
    let path = dir.path().join("store");
    let store = open(&path);
    add_tree(&store, "first", 1).unwrap();
    let node = store.root_now(b"first").unwrap();
    let castore_fs::store::Answer::Found(first) = node else {
        panic!("{node:?}");
    };
    let many = |count: usize| {
        let ingest = store.ingest().unwrap();
        for at in 0..count {
            let name = name(&format!("{at:0200}"));
            let node = first.node.clone();
            let root = castore_fs::castore::Root { name, node };
            ingest.put_root(&root, None).unwrap();
        }
        ingest.commit()
    };
    let filler = dir.path().join("filler");
    let file = fill(&filler, 0);
    for _ in 0..3 {
        let error = many(5000).unwrap_err().to_string();
        assert!(
            error.contains("index.redb") && error.contains("free some space"),
            "{error}"
        );
        assert_eq!(verify_whole(&store).0, ["first"]);
        assert_eq!(verify_whole(&open(&path)).0, ["first"]);
    }
    drop(file);
    fs::remove_file(&filler).unwrap();
    many(5000).unwrap();
    assert_eq!(verify_whole(&open(&path)).0.len(), 5001);
}

/// What is found damaged while the disk is full is damaged for that process and found again by the next;
/// a repair that has no room loses nothing.
#[test]
fn on_a_full_disk_damage_is_found_and_repaired_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(dir.path(), 48 << 20) else {
        return;
    };
    let path = dir.path().join("store");
    add_tree(&open(&path), "tree", 3).unwrap();
    let (blob, _) = crate::damage::damage_two(&path);
    let filler = dir.path().join("filler");
    let file = fill(&filler, 0);
    let damaged = |store: &LocalStore| {
        let (_, reached) = verify(store);
        let mut errors = reached.errors.iter();
        assert!(errors.all(|error| matches!(error, Error::Damaged { .. })));
        reached.errors.len()
    };
    for _ in 0..3 {
        let store = open(&path);
        assert_eq!(damaged(&store), 2);
        assert!(!block_on(store.has_blob(&blob)).unwrap());
        add_tree(&store, "tree", 3).unwrap_err();
        drop(store);
        // Whether there was room for the list or not.
        assert_eq!(damaged(&open(&path)), 2);
    }
    let index = path.join("index.redb");
    fs::remove_file(&index).unwrap();
    // What the index had is free now.
    let rest = fill(&dir.path().join("rest"), 0);
    let error = LocalStore::repair(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("free some space"), "{error}");
    drop((file, rest));
    fs::remove_file(&filler).unwrap();
    fs::remove_file(dir.path().join("rest")).unwrap();
    let (store, repaired) = LocalStore::repair(&path).unwrap();
    assert_eq!(repaired.index.unwrap().damaged, 2);
    add_tree(&store, "tree", 3).unwrap();
    assert_eq!(verify_whole(&open(&path)).0, ["tree"]);
}
