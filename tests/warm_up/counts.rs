//! The warm-up counters of a mount.

use std::fs;
use std::sync::Arc;

use castore_fs::fs::WarmUpCount;

use super::mounts::{Scene, learn};
use super::{STARTS_WITH, start, tree};
use kit::double::Double;
use kit::mounted::{Mounted, can_mount, top_of};
use kit::patience::wait_until;

fn count(mount: &Mounted) -> WarmUpCount {
    mount.session.warm_up_count().unwrap()
}

#[test]
fn what_was_learned_fetched_and_touched_is_counted() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = tree(1).put_root(&scene.memory, "app-1");
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.learning(top_of(&node), Some("app-1")));
    start(mount.path(), 1);
    mount.session.remember();
    let learned = count(&mount);
    assert!((1..=2).contains(&learned.saves), "{learned:?}");
    let expected = WarmUpCount {
        learning: 1,
        none: 1,
        learned: 6,
        saves: learned.saves,
        ..WarmUpCount::default()
    };
    assert_eq!(learned, expected);
    drop(mount);

    // Another version of it.
    let node = tree(2).put_root(&scene.memory, "app-2");
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.learning(top_of(&node), Some("app-2")));
    wait_until("all is fetched", || count(&mount).fetches == 1);
    let fetched = count(&mount);
    assert!(fetched.fetch_micros > 0);
    let bytes = STARTS_WITH.map(|folder| super::contents(2, folder).len() as u64);
    let expected = WarmUpCount {
        learning: 1,
        similar: 1,
        fetches: 1,
        fetch_micros: fetched.fetch_micros,
        stretches: 6,
        bytes: bytes.iter().sum(),
        ..WarmUpCount::default()
    };
    assert_eq!(fetched, expected);
    // What was not fetched ahead is no hit, nor is what is touched twice.
    fs::read(mount.join("folder-5/file")).unwrap();
    for _ in 0..2 {
        fs::read(mount.join("folder-7/file")).unwrap();
        fs::read(mount.join("folder-3/file")).unwrap();
    }
    mount.session.remember();
    assert_eq!((count(&mount).learned, count(&mount).hits), (3, 2));
    start(mount.path(), 2);
    mount.session.remember();
    assert_eq!((count(&mount).learned, count(&mount).hits), (7, 6));
    assert_eq!(count(&mount).stretches, 6);
    drop(mount);

    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.learning(top_of(&node), Some("app-2")));
    wait_until("all is fetched", || count(&mount).fetches == 1);
    assert_eq!((count(&mount).own, count(&mount).similar), (1, 0));
}

#[test]
fn who_has_to_wait_for_what_is_being_fetched_found_it_too_late() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = learn(&scene, "tree", 1);
    let far = Arc::new(Double::far("double:", scene.memory.clone()));
    far.close();
    let mount = Mounted::new(far.clone(), scene.learning(top_of(&node), Some("tree")));
    far.until_waiting(STARTS_WITH.len());
    std::thread::scope(|scope| {
        scope.spawn(|| fs::read(mount.join("folder-7/file")).unwrap());
        far.until_waiting(STARTS_WITH.len() + 1);
        far.open();
    });
    wait_until("all is fetched", || count(&mount).stretches == 6);
    start(mount.path(), 1);
    mount.session.remember();
    assert_eq!((count(&mount).learned, count(&mount).hits), (6, 5));
}

#[test]
fn what_fails_is_counted() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = tree(1).put_root(&scene.memory, "tree");
    let folder = scene.profiles().folder().to_owned();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("tree.profile"), "something else").unwrap();
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.learning(top_of(&node), Some("tree")));
    wait_until("it was looked for", || count(&mount).failed_finds == 1);
    assert_eq!(count(&mount).none, 1);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "no folder").unwrap();
    start(mount.path(), 1);
    mount.session.remember();
    wait_until("it was not written", || count(&mount).failed_saves > 0);
    assert_eq!(count(&mount).saves, 0);
}
