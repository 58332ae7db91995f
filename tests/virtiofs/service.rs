//! The service dies under a guest, and the next process takes over: systemd keeps what it needs.

use super::front_end::FrontEnd;
use super::{ROOT, fuse, pattern};
use castore_fs::castore::Name;
use castore_fs::store::{GcOptions, LocalStore, Store};
use kit::manager::Manager;
use std::path::Path;
use std::time::Duration;

const CONFIG: &str = r#"
[stores.disk]
url = "local:@/store"
[virtiofs.guest]
socket = "@/guest.sock"
root = "tree"
"#;

fn service() -> Manager {
    let manager = Manager::new(CONFIG);
    let tree = manager.join("tree");
    std::fs::create_dir_all(tree.join("inside")).unwrap();
    std::fs::write(tree.join("inside/file"), pattern(100_000)).unwrap();
    manager.import(&tree, "tree");
    manager
}

#[test]
fn a_guest_of_the_service_outlives_it() {
    let mut manager = service();
    manager.start_and_wait();
    let mut guest = FrontEnd::connect(&manager.join("guest.sock"), 2, 0);
    guest.init();
    let inside = guest.look_up(ROOT, "inside").node;
    for _ in 0..5 {
        let file = guest.look_up(inside, "file");
        let asked = guest.send(1, &fuse::read(file.node, 0, 30 << 10), 31 << 10);
        manager.kill();
        // Requested while no process serves.
        let asked_later = guest.send(2, &fuse::lookup(inside, b"file"), 4096);
        manager.start_and_wait();
        let (head, length) = guest.receive(1);
        assert_eq!(head, asked);
        let reply = guest.reply(1, head, length);
        assert!(fuse::body(&reply).unwrap() == pattern(30 << 10));
        assert_eq!(guest.receive(2).0, asked_later);
    }
    let kept = manager.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].starts_with("guest.guest."), "{kept:?}");
    // A disconnected guest is dropped.
    drop(guest);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !manager.kept().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", manager.kept());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // A stop without another process is an error for the guest and no hang.
    let mut guest = FrontEnd::connect(&manager.join("guest.sock"), 2, 0);
    guest.init();
    guest.look_up(ROOT, "inside");
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert!(guest.is_poisoned(1));
    assert!(manager.kept().is_empty());
}

/// Removes the root and collects everything that nothing holds, as another process does.
pub(crate) fn remove_and_collect(store: &Path, root: &str) -> u64 {
    let store = LocalStore::open(store).unwrap();
    let ingest = store.ingest().unwrap();
    ingest
        .remove_root(&Name::new(root.as_bytes()).unwrap())
        .unwrap();
    ingest.commit().unwrap();
    let options = GcOptions {
        grace: Duration::ZERO,
        patience: Duration::from_secs(30),
        ..GcOptions::default()
    };
    store.collect_garbage(&options).unwrap().blobs
}

fn reads(guest: &mut FrontEnd) -> bool {
    let inside = guest.look_up(ROOT, "inside").node;
    let file = guest.look_up(inside, "file");
    guest.content(file.node, file.size) == pattern(100_000)
}

/// Names are one thing and use another: as a mount, a device continues with a root that was removed, as
/// long as a guest uses it, and whichever process serves it.
#[test]
fn a_guest_keeps_its_root_though_it_is_removed_and_the_service_restarts() {
    let mut manager = service();
    manager.start_and_wait();
    let mut guest = FrontEnd::connect(&manager.join("guest.sock"), 2, 0);
    guest.init();
    assert!(reads(&mut guest));
    assert_eq!(remove_and_collect(&manager.join("store"), "tree"), 0);
    for _ in 0..3 {
        manager.kill();
        assert_eq!(remove_and_collect(&manager.join("store"), "tree"), 0);
        manager.start_and_wait();
        assert_eq!(remove_and_collect(&manager.join("store"), "tree"), 0);
        assert!(reads(&mut guest));
    }
    let reported = "the device stays as it is: what its guests use has no name now";
    assert!(manager.log().contains(reported), "{}", manager.log());
    // A guest that mounts again gets the same.
    guest.init();
    assert!(reads(&mut guest));
    // Another root that does not exist is not what the guest uses.
    manager.kill();
    manager.configure(&CONFIG.replace("\"tree\"", "\"other\""));
    manager.start();
    assert!(!manager.wait());
    assert!(
        manager.log().contains("cannot show \"other\""),
        "{}",
        manager.log()
    );
    // Nor has a device without guests anything to continue with.
    manager.configure(CONFIG);
    manager.start_and_wait();
    assert!(reads(&mut guest));
    drop(guest);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !manager.kept().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", manager.kept());
        std::thread::sleep(Duration::from_millis(10));
    }
    manager.kill();
    manager.start();
    assert!(!manager.wait());
    assert!(
        manager.log().contains("cannot show \"tree\""),
        "{}",
        manager.log()
    );
}
