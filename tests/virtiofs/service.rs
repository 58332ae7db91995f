//! The service dies under a guest, and the next process takes over: systemd keeps what it needs.

use super::front_end::FrontEnd;
use super::{ROOT, fuse, pattern};
use kit::manager::Manager;

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
    assert!(guest.is_broken_off(1));
    assert!(manager.kept().is_empty());
}
