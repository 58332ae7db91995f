//! Images of a mount of the service.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::upstream::{Server, config_of};
use crate::{ONE_MOUNT, drop_caches, make_tree};
use kit::link::{Link, Terms};
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
    for (name, dirs) in [("tree", 2), ("other", 3)] {
        let tree = manager.join(name);
        make_tree(&tree, dirs);
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
            // The kernel finds out from a first close that nothing is flushed here. Without it, the process
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
        assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);
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
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], false);
}

/// An image in a mount of an upstream, and what its bytes are.
struct UpstreamImage {
    manager: Manager,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    link: Link,
    _server: Server,
}

impl UpstreamImage {
    fn new(patience: &str) -> Self {
        let mut manager = Manager::new("");
        let tree = manager.join("tree");
        make_tree(&tree, 2);
        manager.import(&tree, "tree");
        let exported = manager.join("exported");
        let export = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(["export", "--format", "erofs", "--store"])
            .arg(format!("local:{}", manager.join("store").display()))
            .arg("tree")
            .arg(&exported)
            .status();
        assert!(export.unwrap().success());
        let server = Server::start(&manager);
        let terms = Terms {
            round_trip: Duration::from_millis(1),
            bytes_per_second: None,
        };
        let link = Link::to(server.address, terms);
        let more = format!("images = true\nimage-patience = '{patience}'");
        manager.configure(&config_of(link.address(), &more));
        manager.start_and_wait();
        Self {
            path: manager.join("mnt/.images/tree.erofs"),
            bytes: fs::read(exported).unwrap(),
            manager,
            link,
            _server: server,
        }
    }

    /// Where the data of the last file are.
    fn last_data(&self) -> u64 {
        let last = self.bytes.iter().rposition(|byte| *byte != 0).unwrap();
        last as u64 & !0xfff
    }

    fn wait_for_log(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.manager.log().contains(what) {
            assert!(Instant::now() < deadline, "{}", self.manager.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_failed_fetch_of_a_page_is_repeated_until_the_server_is_back() {
    if !can_mount() {
        return;
    }
    let upstream = UpstreamImage::new("10m");
    let image = fs::File::open(&upstream.path).unwrap();
    let (at, mut page) = (upstream.last_data(), vec![0; 4096]);
    image.read_exact_at(&mut page, 0).unwrap();
    upstream.link.cut();
    let reader = std::thread::spawn(move || image.read_exact_at(&mut page, at).map(|()| page));
    upstream.wait_for_log("the fetch is repeated");
    // One that is to die does not wait.
    let mut killed = Command::new("cat").arg(&upstream.path).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success());
    assert!(!reader.is_finished());
    upstream.link.mend();
    let page = reader.join().unwrap().unwrap();
    assert!(page == upstream.bytes[at as usize..][..4096]);
    let log = upstream.manager.log();
    assert!(!log.contains("an image cannot be read\""), "{log}");
    // The line names what is there.
    let line = log
        .lines()
        .find(|line| line.contains("the fetch is repeated"));
    assert!(line.unwrap().contains("/dir-"), "{log}");
}

#[test]
fn a_failed_fetch_of_a_page_is_an_error_once_patience_ends() {
    if !can_mount() {
        return;
    }
    let upstream = UpstreamImage::new("0s");
    let image = fs::File::open(&upstream.path).unwrap();
    upstream.link.cut();
    let read = image.read_exact_at(&mut [0; 4096], upstream.last_data());
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
    upstream.link.mend();
    let mut page = vec![0; 4096];
    let deadline = Instant::now() + Duration::from_secs(60);
    while image
        .read_exact_at(&mut page, upstream.last_data())
        .is_err()
    {
        assert!(Instant::now() < deadline, "{}", upstream.manager.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(page == upstream.bytes[upstream.last_data() as usize..][..4096]);
}

#[test]
fn a_closure_comes_from_a_file_and_the_status_counts_the_processes_that_use_it() {
    if !can_mount() {
        return;
    }
    let listed = "[images.all]\nroots-from = '@/names'\n";
    let mut manager = Manager::new(&with_images(listed));
    for name in ["one", "two"] {
        let tree = manager.join(name);
        make_tree(&tree, 1);
        manager.import(&tree, name);
    }
    manager.start_and_wait();
    let path = manager.join("mnt/.images/all.erofs");
    assert!(!path.exists(), "the file is missing");
    fs::write(manager.join("names"), "/some/store/two\none\none\n").unwrap();
    let from_file = fs::read(&path).unwrap();
    let users = |manager: &Manager| {
        let images = manager.status()["mounts"]["tree"]["opened_images"].clone();
        images[0]["users"].as_u64()
    };
    assert_eq!(users(&manager), Some(0));
    let mut user = Command::new("sleep")
        .arg("1000")
        .stdin(fs::File::open(&path).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(users(&manager), Some(1));
    user.kill().unwrap();
    user.wait().unwrap();
    assert_eq!(users(&manager), Some(0));
    // The same as with the names in the configuration.
    manager.configure(&with_images("[images.all]\nroots = ['one', 'two']\n"));
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
    assert!(fs::read(&path).unwrap() == from_file);
}
