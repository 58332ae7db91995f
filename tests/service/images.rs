//! Images of a mount of the service.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{ONE_MOUNT, drop_caches, make_tree};
use kit::manager::Manager;
use kit::mounted::can_mount;

fn with_images(more: &str) -> String {
    format!("{ONE_MOUNT}images = true\n{more}")
}

fn image(manager: &Manager, arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["image", "--socket"])
        .arg(manager.join("control"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Reads all of `file`, which has `length` bytes.
fn read(file: &fs::File, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn an_open_image_stays_the_same_over_kills_and_when_its_root_moves_on() {
    if !can_mount() {
        return;
    }
    let closure = "[images.both]\nroots = ['tree', 'other']\n";
    let mut manager = Manager::new(&with_images(closure));
    for (name, folders) in [("tree", 2), ("other", 3)] {
        let tree = manager.join(name);
        make_tree(&tree, folders);
        manager.import(&tree, name);
    }
    manager.start_and_wait();
    let directory = manager.join("mnt/.images");
    let names = fs::read_dir(&directory).unwrap();
    let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        names,
        ["tree.erofs", "other.erofs", "both.erofs"]
            .map(Into::into)
            .into()
    );
    let mut numbers = Vec::new();
    let open: Vec<_> = ["tree", "both"]
        .map(|name| {
            let path = directory.join(format!("{name}.erofs"));
            // The kernel learns from a first close that nothing is flushed here. Without it, the process
            // that is to take over would wait in its exec, which closes the files of this one, for a
            // server that is not there yet.
            drop(fs::File::open(&path).unwrap());
            let file = fs::File::open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            let bytes = read(&file, length);
            numbers.push(fs::metadata(path).unwrap().ino());
            (file, bytes)
        })
        .into();
    assert!(open[0].1 != open[1].1);
    for round in 0..3 {
        manager.kill();
        if round == 1 {
            manager.import(&manager.join("other"), "tree");
        }
        manager.start_and_wait();
        assert_eq!(manager.status()["mounts"]["tree"]["adopted"], true);
        drop_caches();
        let both = fs::metadata(directory.join("both.erofs")).unwrap();
        assert_eq!(
            both.ino() == numbers[1],
            round < 1,
            "the tree in it is another"
        );
        for ((file, bytes), number) in open.iter().zip(&numbers) {
            assert_eq!(file.metadata().unwrap().ino(), *number, "round {round}");
            assert!(read(file, bytes.len() as u64) == *bytes, "round {round}");
        }
    }
    // The name stands for the new tree, and what is open for the old one.
    let moved = fs::read(directory.join("tree.erofs")).unwrap();
    assert!(moved != open[0].1);
    assert!(moved == fs::read(directory.join("other.erofs")).unwrap());
}

#[test]
fn a_closure_changes_with_the_configuration_and_the_mount_stays() {
    if !can_mount() {
        return;
    }
    let mut manager = Manager::new(&with_images(""));
    for name in ["one", "two"] {
        let tree = manager.join(name);
        make_tree(&tree, 1);
        manager.import(&tree, name);
    }
    manager.start_and_wait();
    let path = manager.join("mnt/.images/all.erofs");
    assert!(!path.exists());
    let refused = image(&manager, &["all"]);
    assert!(!refused.status.success(), "{refused:?}");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        why.contains("no image") && why.contains("No such file"),
        "{why}"
    );

    manager.configure(&with_images("[images.all]\nroots = ['one', 'two']\n"));
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < deadline, "no image");
        std::thread::sleep(Duration::from_millis(20));
    }
    let size = fs::metadata(&path).unwrap().len();
    let printed = image(&manager, &["all"]);
    let expected = format!("{} {size}\n", path.display());
    assert_eq!(String::from_utf8_lossy(&printed.stdout), expected);

    // One with an unknown root is not made, and the log names it.
    manager.configure(&with_images("[images.all]\nroots = ['one', 'three']\n"));
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
    assert!(!path.exists());
    assert!(manager.log().contains("three"), "{}", manager.log());
    assert_eq!(manager.status()["mounts"]["tree"]["adopted"], false);
}
