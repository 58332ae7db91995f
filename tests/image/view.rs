//! `castore-fs mount --view image`: the image as the mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::skip::skip;

/// How long to wait for what should happen at once, before it counts as never.
const PATIENCE: Duration = Duration::from_secs(20);
/// `EROFS_SUPER_MAGIC_V1` of the kernel's `magic.h`.
const EROFS: u64 = 0xE0F5_E1E2;

/// Whether this machine can mount images.
fn can_mount_images() -> bool {
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = rustix::process::geteuid().is_root()
        && Path::new("/dev/fuse").exists()
        && file_systems.contains("\terofs\n");
    if !can {
        skip("it needs root, /dev/fuse and EROFS on files (Linux 6.12)");
    }
    can
}

/// A store with one tree, and places to mount it on.
struct Place {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Place {
    fn new(make: impl FnOnce(&Path)) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            children: Vec::new(),
        };
        for name in ["tree", "plain", "image"] {
            fs::create_dir(place.join(name)).unwrap();
        }
        make(&place.join("tree"));
        let imported = place.command("import").arg(place.join("tree")).output();
        assert!(imported.unwrap().status.success());
        place
    }

    fn join(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        command
            .arg(verb)
            .env(
                "CASTORE_FS_STORE",
                format!("local:{}", self.join("store").display()),
            )
            .env("HOME", self.dir.path())
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Mounts the tree on `name` and waits until that is up; gives its process, and what it printed.
    fn mount(&mut self, name: &str, arguments: &[&str]) -> (usize, String) {
        let log = self.join("log");
        let mut command = self.command("mount");
        command
            .args(arguments)
            .arg(self.join(name))
            .stderr(fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let reported = || fs::read_to_string(&log).unwrap();
        until("the mount is up", || {
            assert!(child.try_wait().unwrap().is_none(), "{}", reported());
            reported().contains(" is on ")
        });
        self.children.push(child);
        (self.children.len() - 1, reported())
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let mut command = self.command("mount");
        let output = command.args(arguments).arg(self.join("image")).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{output:?}");
        assert!(self.mounts_on("image").is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    fn reported(&self) -> String {
        fs::read_to_string(self.join("log")).unwrap()
    }

    fn signal(&self, child: usize, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.children[child]);
        rustix::process::kill_process(id, signal).unwrap();
    }

    fn wait_for_end(&mut self, child: usize) {
        let child = &mut self.children[child];
        until("the process ends", || child.try_wait().unwrap().is_some());
    }

    /// Types and sources of the mounts on `name`.
    fn mounts_on(&self, name: &str) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = self.join(name).display().to_string();
        let lines = table
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(&path));
        lines
            .map(|line| line.split_once(" - ").unwrap().1.to_owned())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in ["image", "plain"] {
            while !self.mounts_on(name).is_empty() {
                let flags = rustix::mount::UnmountFlags::DETACH;
                rustix::mount::unmount(self.join(name), flags).unwrap();
            }
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// A tree in which all entries differ.
fn make_tree(at: &Path) {
    for size in [0, 1, 4095, 4096, 4097, 70_000, 1_300_000] {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + at / 255) as u8).collect();
        fs::write(at.join(format!("of-{size}")), &bytes).unwrap();
        fs::write(at.join(format!("again-of-{size}")), &bytes).unwrap();
    }
    fs::set_permissions(at.join("of-4096"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("of-1", at.join("link")).unwrap();
    symlink("x".repeat(4095), at.join("long")).unwrap();
    symlink("missing/\u{e9}", at.join("dangling")).unwrap();
    fs::create_dir_all(at.join("empty/er/est")).unwrap();
    fs::create_dir(at.join("many")).unwrap();
    for entry in 0..700 {
        fs::write(at.join(format!("many/entry-{entry}")), [entry as u8; 3]).unwrap();
    }
    let names: [&[u8]; 3] = [&[b'n'; 255], b"\xff\xfe not UTF-8", b"a \n b"];
    for name in names {
        fs::write(at.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

/// What is seen of a file: mode, owner and group, size, and its bytes, target or names.
type Seen = (u32, (u32, u32), u64, Vec<u8>);

fn see(image_root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut remaining = vec![image_root.to_owned()];
    while let Some(path) = remaining.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let mut size = found.size();
        let content = if kind.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if kind.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            remaining.extend(entries.map(|entry| entry.unwrap().path()));
            // How long a directory is, is the file system's own affair.
            size = 0;
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        let mut names = [0; 64];
        let attributes = rustix::fs::llistxattr(&path, &mut names);
        assert!(matches!(
            attributes,
            Ok(0) | Err(rustix::io::Errno::OPNOTSUPP)
        ));
        let below = path.strip_prefix(image_root).unwrap().to_owned();
        seen.insert(
            below,
            (found.mode(), (found.uid(), found.gid()), size, content),
        );
    }
    seen
}

#[test]
fn the_image_shows_what_the_fuse_mount_shows_and_goes_without_a_trace() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let (plain, _) = place.mount("plain", &["--root", "tree"]);
    let (image, _) = place.mount("image", &["--root", "tree", "--view", "image"]);
    let found = rustix::fs::statfs(place.join("image")).unwrap();
    assert_eq!(found.f_type as u64, EROFS);
    let mounts = place.mounts_on("image");
    let source = format!(":local:{} ro", place.join("store").display());
    assert!(
        mounts.len() == 1 && mounts[0].starts_with("erofs castore-fs:"),
        "{mounts:?}"
    );
    assert!(mounts[0].contains(&source), "{mounts:?}");
    let wanted = see(&place.join("plain"));
    assert!(wanted.len() > 700);
    for round in 0..2 {
        let seen = see(&place.join("image"));
        for (path, wanted) in &wanted {
            assert!(seen.get(path) == Some(wanted), "round {round}: {path:?}");
        }
        assert_eq!(seen.len(), wanted.len());
        drop_caches();
    }
    let missing = fs::read(place.join("image/many/no-entry")).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    let written = fs::write(place.join("image/new"), "").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EROFS));

    place.signal(image, rustix::process::Signal::TERM);
    place.wait_for_end(image);
    assert!(place.mounts_on("image").is_empty());
    assert!(place.children[image].wait().unwrap().success());
    place.signal(plain, rustix::process::Signal::TERM);
    place.wait_for_end(plain);
}

#[test]
fn another_program_can_unmount_it() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let (image, _) = place.mount("image", &["--root", "tree", "--view", "auto"]);
    assert!(place.mounts_on("image")[0].starts_with("erofs "));
    see(&place.join("image"));
    rustix::mount::unmount(place.join("image"), rustix::mount::UnmountFlags::empty()).unwrap();
    place.wait_for_end(image);
    assert!(place.children[image].wait().unwrap().success());
}

#[test]
fn what_is_open_is_served_after_the_mount_is_out_of_the_tree() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let (image, _) = place.mount("image", &["--root", "tree", "--view", "image"]);
    let wanted = fs::read(place.join("tree/of-1300000")).unwrap();
    let mut file = fs::File::open(place.join("image/of-1300000")).unwrap();
    place.signal(image, rustix::process::Signal::TERM);
    until("it is out of the tree", || {
        place.mounts_on("image").is_empty()
    });
    until("it names its user", || {
        place
            .reported()
            .contains("served for as long as it is used")
    });
    drop_caches();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == wanted);
    assert!(place.children[image].try_wait().unwrap().is_none());
    drop(file);
    place.wait_for_end(image);
}

#[test]
fn what_only_fuse_can_do_is_refused_or_done_by_fuse_with_the_reason() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let cases: [(&[&str], &str); 6] = [
        (&[], "no root is set"),
        (&["--root", "tree", "--xattr"], "xattr = true"),
        (&["--root", "tree", "--uid", "7"], "not 0:0"),
        (&["--root", "tree", "--images"], "images = true"),
        (
            &["--root", "tree", "--no-allow-other"],
            "allow-other = false",
        ),
        (&["--root", "tree", "--reads", "passthrough"], "passthrough"),
    ];
    for (arguments, reason) in cases {
        let forced = [arguments, &["--view", "image"]].concat();
        let reported = place.refused(&forced);
        assert!(reported.contains(reason), "{reported}");
        let auto = [arguments, &["--view", "auto"]].concat();
        let (mount, reported) = place.mount("plain", &auto);
        let line = reported
            .lines()
            .find(|line| line.contains("no image, because"));
        match arguments {
            // The store's roots are no tree, and lack nothing.
            [] => assert_eq!(line, None),
            _ => assert!(line.is_some_and(|line| line.contains(reason)), "{reported}"),
        }
        assert!(place.mounts_on("plain")[0].starts_with("fuse.castore-fs "));
        place.signal(mount, rustix::process::Signal::TERM);
        place.wait_for_end(mount);
    }
}

#[test]
fn an_image_is_unmounted_without_its_helper_process_too() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let (mount, _) = place.mount("image", &["--root", "tree", "--view", "image"]);
    let process = place.children[mount].id();
    let children = format!("/proc/{process}/task/{process}/children");
    let children = fs::read_to_string(children).unwrap();
    let children: Vec<i32> = children
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect();
    assert!(!children.is_empty());
    for child in children {
        let child = rustix::process::Pid::from_raw(child).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    }
    assert_eq!(fs::read(place.join("image/of-1")).unwrap().len(), 1);
    place.signal(mount, rustix::process::Signal::TERM);
    place.wait_for_end(mount);
    assert!(place.mounts_on("image").is_empty());
}

#[test]
fn an_image_whose_server_was_killed_makes_way_for_the_next_mount() {
    if !can_mount_images() {
        return;
    }
    let mut place = Place::new(make_tree);
    let (first, _) = place.mount("image", &["--root", "tree", "--view", "image"]);
    let reported = place
        .command("mount")
        .args(["--root", "tree"])
        .arg(place.join("image"))
        .output();
    let reported = String::from_utf8(reported.unwrap().stderr).unwrap();
    assert!(
        reported.contains("mounted on") && reported.contains("already"),
        "{reported}"
    );
    let file = fs::File::open(place.join("image/of-70000")).unwrap();
    place.signal(first, rustix::process::Signal::KILL);
    place.wait_for_end(first);
    drop_caches();
    let read = file.read_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!(read.raw_os_error(), Some(libc::EIO));
    drop(file);
    for view in ["image", "fuse"] {
        let (next, _) = place.mount("image", &["--root", "tree", "--view", view]);
        assert_eq!(place.mounts_on("image").len(), 1);
        assert_eq!(fs::read(place.join("image/of-1")).unwrap().len(), 1);
        place.signal(next, rustix::process::Signal::KILL);
        place.wait_for_end(next);
    }
}
