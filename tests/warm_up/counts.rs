//! The warm-up counters of a mount.

use std::fs;
use std::sync::Arc;

use castore_fs::fs::WarmUpCount;

use super::mounts::{Scene, record};
use super::{STARTS_WITH, start, tree};
use kit::double::Double;
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::patience::wait_until;

fn count(mount: &Mounted) -> WarmUpCount {
    mount.session.warm_up_count().unwrap()
}

#[test]
fn what_was_recorded_prefetched_and_used_is_counted() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = tree(1).put_root(&scene.memory, "app-1");
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("app-1")));
    start(mount.path(), 1);
    mount.session.remember();
    let recorded = count(&mount);
    assert!((1..=2).contains(&recorded.saves), "{recorded:?}");
    let expected = WarmUpCount {
        recording: 1,
        none: 1,
        recorded: 6,
        saves: recorded.saves,
        ..WarmUpCount::default()
    };
    assert_eq!(recorded, expected);
    drop(mount);

    // Another version of it.
    let node = tree(2).put_root(&scene.memory, "app-2");
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("app-2")));
    wait_until("all is fetched", || count(&mount).fetches == 1);
    let fetched = count(&mount);
    assert!(fetched.fetch_micros > 0);
    let bytes = STARTS_WITH.map(|dir| super::contents(2, dir).len() as u64);
    let expected = WarmUpCount {
        recording: 1,
        similar: 1,
        fetches: 1,
        fetch_micros: fetched.fetch_micros,
        extents: 6,
        bytes: bytes.iter().sum(),
        ..WarmUpCount::default()
    };
    assert_eq!(fetched, expected);
    // What was not fetched ahead is no hit, nor is what is read twice.
    fs::read(mount.join("dir-5/file")).unwrap();
    for _ in 0..2 {
        fs::read(mount.join("dir-7/file")).unwrap();
        fs::read(mount.join("dir-3/file")).unwrap();
    }
    mount.session.remember();
    assert_eq!((count(&mount).recorded, count(&mount).hits), (3, 2));
    start(mount.path(), 2);
    mount.session.remember();
    assert_eq!((count(&mount).recorded, count(&mount).hits), (7, 6));
    assert_eq!(count(&mount).extents, 6);
    drop(mount);

    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("app-2")));
    wait_until("all is fetched", || count(&mount).fetches == 1);
    assert_eq!((count(&mount).own, count(&mount).similar), (1, 0));
}

#[test]
fn a_read_that_waits_for_a_prefetch_is_no_hit() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = record(&scene, "tree", 1);
    let upstream = Arc::new(Double::upstream("double:", scene.memory.clone()));
    upstream.close();
    let mount = Mounted::new(
        upstream.clone(),
        scene.recording(mount_root_of(&node), Some("tree")),
    );
    upstream.until_waiting(STARTS_WITH.len());
    std::thread::scope(|scope| {
        scope.spawn(|| fs::read(mount.join("dir-7/file")).unwrap());
        upstream.until_waiting(STARTS_WITH.len() + 1);
        upstream.open();
    });
    wait_until("all is fetched", || count(&mount).extents == 6);
    start(mount.path(), 1);
    mount.session.remember();
    assert_eq!((count(&mount).recorded, count(&mount).hits), (6, 5));
}

#[test]
fn what_fails_is_counted() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = tree(1).put_root(&scene.memory, "tree");
    let dir = scene.profiles().dir().to_owned();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("tree.profile"), "something else").unwrap();
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    wait_until("it was looked for", || count(&mount).failed_finds == 1);
    assert_eq!(count(&mount).none, 1);
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "no directory").unwrap();
    start(mount.path(), 1);
    mount.session.remember();
    wait_until("it was not written", || count(&mount).failed_saves > 0);
    assert_eq!(count(&mount).saves, 0);
}
