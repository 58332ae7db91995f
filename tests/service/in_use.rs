//! What a mount shows stays readable after its root was removed, whoever collects, and over hand-overs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use castore_fs::store::{LocalStore, Store, Usage};

use super::manager::Manager;
use super::mounted::can_mount;
use super::{content, drop_caches, service};

fn castore_fs(manager: &Manager, arguments: &[&str]) {
    let store = format!("local:{}", manager.join("store").display());
    let run = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(arguments)
        .args(["--store", &store])
        .output()
        .unwrap();
    assert!(run.status.success(), "{arguments:?}: {run:?}");
}

fn collect(manager: &Manager) {
    castore_fs(manager, &["gc", "--grace", "0s"]);
}

/// The tree as it is below an open directory, whatever has become of its name.
fn assert_whole(top: &File, folders: usize) {
    drop_caches();
    let top = PathBuf::from(format!("/proc/self/fd/{}", top.as_raw_fd()));
    for folder in 0..folders {
        let folder = top.join(format!("folder-{folder}"));
        for file in 0..20 {
            let name = Path::new(folder.file_name().unwrap());
            let read = fs::read(folder.join(format!("file-{file}"))).unwrap();
            assert!(read == content(name, file), "{}", folder.display());
        }
    }
}

#[test]
fn a_mounted_tree_stays_readable_after_rm_and_gc_and_over_hand_overs() {
    if !can_mount() {
        return;
    }
    let mut manager = service(3);
    manager.start_and_wait();
    let top = File::open(manager.join("mnt/tree")).unwrap();
    castore_fs(&manager, &["rm", "tree"]);
    collect(&manager);
    assert_whole(&top, 3);
    // Killed, and collected while nobody serves.
    manager.kill();
    collect(&manager);
    manager.start_and_wait();
    assert_whole(&top, 3);
    collect(&manager);
    // And once more, by one that took it over.
    manager.kill();
    collect(&manager);
    manager.start_and_wait();
    collect(&manager);
    assert_whole(&top, 3);
    // Once nobody has it open and the kernel has forgotten it, it is garbage.
    drop(top);
    let usage = || {
        LocalStore::open(&manager.join("store"))
            .unwrap()
            .usage()
            .unwrap()
    };
    let mut tries = 0;
    while usage() != Some(Usage::default()) {
        tries += 1;
        assert!(tries < 100, "it is held for ever: {:?}", usage());
        drop_caches();
        std::thread::sleep(std::time::Duration::from_millis(100));
        collect(&manager);
    }
}
