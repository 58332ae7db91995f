//! Mounts of the service whose view is an image.

use super::upstream::{Server, config_of};
use super::*;
use kit::patience::wait_until;

fn config(view: &str) -> String {
    format!("{ONE_MOUNT}root = 'tree'\nview = '{view}'\n")
}

/// A service with a tree, if this machine can mount images; it is skipped if not.
fn service_of(view: &str, dirs: usize) -> Option<Manager> {
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = rustix::process::geteuid().is_root() && file_systems.contains("\terofs\n");
    if !can {
        kit::skip::skip("it needs root and EROFS on files (Linux 6.12)");
        return None;
    }
    if !can_mount() {
        return None;
    }
    let manager = Manager::new(&config(view));
    let tree = manager.join("tree");
    make_tree(&tree, dirs);
    manager.import(&tree, "tree");
    Some(manager)
}

/// Types of the mounts on the mount point.
fn types(manager: &Manager) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = manager.join("mnt").display().to_string();
    let lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let lines = lines.filter(|columns| columns[1] == path);
    lines.map(|columns| columns[2].to_owned()).collect()
}

fn reload(manager: &mut Manager) {
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
}

fn status(manager: &Manager) -> serde_json::Value {
    manager.status()["mounts"]["tree"].clone()
}

#[test]
fn nothing_fails_on_an_image_while_the_service_is_killed_again_and_again() {
    const DIRS: usize = 30;
    let Some(mut manager) = service_of("image", DIRS) else {
        return;
    };
    let times = match std::env::var("CASTORE_FS_KILLS") {
        Ok(times) => times.parse().unwrap(),
        Err(_) => 12,
    };
    manager.start_and_wait();
    assert_eq!(types(&manager), ["erofs"]);
    assert_eq!(manager.kept(), ["mount.tree", "nodes.tree"]);
    let mnt = manager.join("mnt");
    let mut open = fs::File::open(mnt.join("dir-1/file-19")).unwrap();
    let inode = fs::metadata(mnt.join("dir-1")).unwrap().ino();
    let load = Load::start(&mnt, DIRS, 4);
    for round in 0..times {
        std::thread::sleep(Duration::from_millis(40 + 17 * (round % 5)));
        drop_caches();
        let before = load.operations();
        manager.kill();
        // Every other time the readers meet a mount that no process serves.
        drop_caches_in_background(round % 2 == 0);
        manager.start_and_wait();
        let deadline = Instant::now() + Duration::from_secs(20);
        while load.operations() < before + 20 {
            assert!(Instant::now() < deadline, "readers stand in round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut bytes = Vec::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(Path::new("dir-1"), 19));
    }
    let (operations, longest) = (load.operations(), load.longest.load(Ordering::Relaxed));
    let failures = load.stop();
    println!("{times} kills, {operations} operations; the longest took {longest} ms");
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(fs::metadata(mnt.join("dir-1")).unwrap().ino(), inode);
    let found = status(&manager);
    assert_eq!(
        (&found["taken_over"], &found["view"]),
        (&true.into(), &"image".into())
    );
    assert_eq!(found["opened_images"].as_array().unwrap().len(), 1);
    assert_eq!(types(&manager), ["erofs"]);
    assert!(
        !manager.log().contains("mounting anew"),
        "{}",
        manager.log()
    );
    drop(open);
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert!(types(&manager).is_empty() && manager.kept().is_empty());
}

/// Drops caches if `now`, which waits for pages that are being read.
fn drop_caches_in_background(now: bool) {
    if now {
        std::thread::spawn(drop_caches);
    }
}

#[test]
fn a_root_that_is_not_followed_is_shown_after_a_restart_and_nothing_of_the_old_mount_stays() {
    let Some(mut manager) = service_of("image", 2) else {
        return;
    };
    manager.configure(&format!("{}follow = false\n", config("image")));
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 2);
    let other = manager.join("other");
    make_tree(&other, 3);
    manager.import(&other, "tree");
    reload(&mut manager);
    assert_eq!(
        fs::read_dir(&mnt).unwrap().count(),
        2,
        "a mount stays what it is"
    );
    manager.kill();
    manager.start_and_wait();
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 3);
    assert_eq!(types(&manager), ["erofs"]);
    assert_eq!(status(&manager)["taken_over"], false);
}

#[test]
fn a_reload_and_a_restart_change_the_view() {
    let Some(mut manager) = service_of("fuse", 2) else {
        return;
    };
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    let check = |manager: &Manager, wanted: &str| {
        assert_eq!(types(manager), [wanted]);
        let read = fs::read(mnt.join("dir-1/file-3")).unwrap();
        assert!(read == content(Path::new("dir-1"), 3));
    };
    check(&manager, "fuse.castore-fs");
    manager.configure(&config("image"));
    reload(&mut manager);
    check(&manager, "erofs");
    manager.kill();
    manager.configure(&config("fuse"));
    manager.start_and_wait();
    check(&manager, "fuse.castore-fs");
    manager.kill();
    manager.configure(&config("image"));
    manager.start_and_wait();
    check(&manager, "erofs");
    // A mount that is configured no more is gone.
    manager.configure("[stores.disk]\nurl = 'local:@/store'\n");
    manager.kill();
    manager.start_and_wait();
    assert!(types(&manager).is_empty());
}

#[test]
fn what_no_image_can_be_is_a_fuse_mount_and_the_reason_is_logged() {
    let Some(mut manager) = service_of("auto", 2) else {
        return;
    };
    manager.start_and_wait();
    assert_eq!(types(&manager), ["erofs"]);
    assert!(status(&manager)["why_no_image"].is_null());
    manager.configure(&format!("{}xattr = true\n", config("auto")));
    reload(&mut manager);
    assert_eq!(types(&manager), ["fuse.castore-fs"]);
    let why = "it has extended attributes (xattr = true)";
    assert_eq!(status(&manager)["why_no_image"], why);
    let log = manager.log();
    let lines = log.lines().filter(|line| line.contains(why));
    assert_eq!(lines.count(), 1, "{log}");
}

#[test]
fn a_stop_waits_for_the_users_of_an_image() {
    let Some(mut manager) = service_of("image", 2) else {
        return;
    };
    manager.start_and_wait();
    let path = manager.join("mnt/dir-1/file-3");
    let mut open = fs::File::open(path).unwrap();
    manager.signal(libc::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !manager.log().contains("served for as long as it is used") {
        assert!(Instant::now() < deadline, "{}", manager.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(types(&manager).is_empty());
    drop_caches();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content(Path::new("dir-1"), 3));
    drop(open);
    assert!(manager.wait(), "{}", manager.log());
}

fn upstream_config(address: std::net::SocketAddr, view: &str) -> String {
    config_of(address, &format!("root = 'tree'\nview = '{view}'"))
}

/// Names and sizes below a directory.
fn walk(dir: &Path, all: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            walk(&path, all);
        }
        all.insert(path, found.len());
    }
}

#[test]
fn a_walk_over_an_upstreams_tree_sends_no_request() {
    let Some(mut manager) = service_of("auto", 2) else {
        return;
    };
    let tree = manager.join("tree");
    for part in ["a", "b/c", "b/d/e/f"] {
        make_tree(&tree.join(part), 20);
    }
    manager.import(&tree, "tree");
    let server = Server::start(&manager);
    manager.configure(&upstream_config(server.address, "auto"));
    manager.start_and_wait();
    assert_eq!(types(&manager), ["erofs"], "{}", manager.log());
    let questions = |manager: &Manager| {
        let health = manager.status()["stores"]["far"]["endpoint"].clone();
        health["requests"].as_u64().unwrap()
    };
    let (before, mut all) = (questions(&manager), BTreeMap::new());
    walk(&manager.join("mnt"), &mut all);
    assert_eq!(all.len(), 62 * 21 + 6);
    assert_eq!(questions(&manager), before);
    let read = fs::read(manager.join("mnt/b/d/e/f/dir-7/file-3")).unwrap();
    assert!(read == content(Path::new("dir-7"), 3));
    wait_until("the request is counted", || questions(&manager) > before);
}

#[test]
fn directories_that_take_long_make_a_fuse_mount() {
    let Some(mut manager) = service_of("auto", 2) else {
        return;
    };
    let server = Server::start(&manager);
    let terms = kit::link::Terms {
        round_trip: Duration::from_millis(1500),
        bytes_per_second: None,
    };
    let link = kit::link::Link::to(server.address, terms);
    manager.configure(&upstream_config(link.address(), "auto"));
    manager.start_and_wait();
    assert_eq!(types(&manager), ["fuse.castore-fs"]);
    let why = status(&manager)["why_no_image"].clone();
    assert!(why.as_str().unwrap().contains("not come in time"), "{why}");
    let read = fs::read(manager.join("mnt/dir-1/file-3")).unwrap();
    assert!(read == content(Path::new("dir-1"), 3));
    // One that is wanted in any case is waited for.
    manager.configure(&upstream_config(link.address(), "image"));
    reload(&mut manager);
    assert_eq!(types(&manager), ["erofs"], "{}", manager.log());
}
