//! Mounts of one tree that follow the name of its root.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use kit::patience::wait_until;
use kit::program::program;
use rustix::fs::{Mode, OFlags};

use super::*;

/// Bytes of the file that is read in parts.
const LARGE: usize = 3 << 20;

/// A program in a directory of a tree: what it finds there, above and below, and whether getcwd(3) works there.
const WORKER: &str = "read line; cat version ../version deep/version
    python3 -c 'import os; os.getcwd()' || echo gone";

/// A service whose mount shows the root `tree`, first version, as `view`; nothing if this machine cannot mount
/// that.
fn service_of(view: &str, more: &str) -> Option<Manager> {
    if !can_mount() {
        return None;
    }
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = rustix::process::geteuid().is_root() && file_systems.contains("\terofs\n");
    if view == "image" && !can {
        kit::skip::skip("it needs root and EROFS on files (Linux 6.12)");
        return None;
    }
    let manager = Manager::new(&config(view, more));
    show(&manager, 1);
    Some(manager)
}

fn config(view: &str, more: &str) -> String {
    format!("{ONE_MOUNT}root = 'tree'\nview = '{view}'\n{more}")
}

/// What the large file of a version has at `offset`.
fn large(version: u32, offset: usize) -> u8 {
    ((offset >> 4) as u32 * 31 + version) as u8
}

/// Makes the name `tree` stand for a version of it.
fn show(manager: &Manager, version: u32) {
    let tree = manager.join("source");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(tree.join("dir/deep")).unwrap();
    let text = version.to_string();
    fs::write(tree.join("version"), &text).unwrap();
    fs::write(tree.join("dir/version"), &text).unwrap();
    fs::write(tree.join("dir/deep/version"), &text).unwrap();
    fs::write(tree.join(format!("only-{version}")), &text).unwrap();
    for more in 0..version {
        fs::write(tree.join(format!("a-{more}")), "same").unwrap();
    }
    let bytes: Vec<u8> = (0..LARGE).map(|at| large(version, at)).collect();
    fs::write(tree.join("large"), bytes).unwrap();
    manager.import(&tree, "tree");
}

fn shown(manager: &Manager) -> String {
    fs::read_to_string(manager.join("mnt/version")).unwrap()
}

/// Waits until the mount shows a version.
fn wait_for(manager: &Manager, version: u32) {
    let what = format!("version {version} is shown\n{}", manager.log());
    wait_until(&what, || shown(manager) == version.to_string());
}

/// Waits until only one tree is served.
fn wait_for_release(manager: &Manager) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while manager.kept().len() != 2 {
        let kept = manager.kept();
        assert!(Instant::now() < deadline, "{kept:?} {}", manager.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn names_of(version: u32) -> BTreeSet<String> {
    let names = ["version", "dir", "large"].map(str::to_owned).into_iter();
    let more = (0..version).map(|more| format!("a-{more}"));
    names
        .chain(more)
        .chain([format!("only-{version}")])
        .collect()
}

/// Types of the mounts on the mount point.
fn types(manager: &Manager) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = manager.join("mnt").display().to_string();
    let columns = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let ours = columns.filter(|columns| columns[1] == path);
    ours.map(|columns| columns[2].to_owned()).collect()
}

fn type_of(view: &str) -> Vec<String> {
    vec![match view {
        "image" => "erofs".to_owned(),
        _ => "fuse.castore-fs".to_owned(),
    }]
}

fn digest(manager: &Manager) -> String {
    let status = manager.status();
    status["mounts"]["tree"]["tree"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// What a program holds of a version: a file of which it has read the start, and a working directory.
struct User {
    version: u32,
    large: File,
    dir: OwnedFd,
}

impl User {
    fn of(manager: &Manager, version: u32) -> Self {
        let mnt = manager.join("mnt");
        let mut large = File::open(mnt.join("large")).unwrap();
        large.read_exact(&mut [0; 100]).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(mnt.join("dir"), flags, Mode::empty()).unwrap();
        Self {
            version,
            large,
            dir,
        }
    }

    /// Its file has the bytes of its version, and its directory the files.
    fn check(&mut self) {
        self.check_with(String::new);
    }

    /// The same; an error has the log.
    fn check_with(&mut self, log: impl Fn() -> String) {
        drop_caches();
        let mut bytes = Vec::new();
        self.large.seek(SeekFrom::Start(0)).unwrap();
        let read = self.large.read_to_end(&mut bytes);
        read.unwrap_or_else(|error| panic!("version {}: {error}\n{}", self.version, log()));
        assert_eq!(bytes.len(), LARGE);
        let version = self.version;
        assert!((0..LARGE).all(|at| bytes[at] == large(version, at)));
        for path in ["version", "deep/version"] {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.dir, path, flags, Mode::empty()).unwrap();
            let mut text = String::new();
            File::from(file).read_to_string(&mut text).unwrap();
            assert_eq!(text, version.to_string(), "{path}");
        }
    }
}

/// The inode numbers of all paths, each of which is there once, in listings as in `stat`.
fn inode_numbers(dir: &Path, all: &mut HashSet<u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let found = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), found.ino(), "{:?}", entry.path());
        assert!(all.insert(found.ino()), "{:?}", entry.path());
        if found.is_dir() {
            inode_numbers(&entry.path(), all);
        }
    }
}

fn another_tree_is_shown_as(view: &str) {
    let Some(mut manager) = service_of(view, "") else {
        return;
    };
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    assert_eq!(types(&manager), type_of(view));
    assert_eq!(names(&mnt), names_of(1));
    // The kernel keeps that there is none.
    assert!(!mnt.join("only-2").exists());
    let (before, root) = (digest(&manager), fs::metadata(&mnt).unwrap());
    let mut users = vec![User::of(&manager, 1)];
    let worker = Command::new("sh")
        .args(["-c", WORKER])
        .current_dir(mnt.join("dir"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for version in [2, 1, 3] {
        show(&manager, version);
        wait_for(&manager, version);
        // Before a listing, which also replaces what the kernel has.
        assert!(mnt.join(format!("only-{version}")).exists());
        assert_eq!(names(&mnt), names_of(version));
        assert_eq!(names(&mnt), names_of(version), "as it is cached");
        let mut inos = HashSet::new();
        inode_numbers(&mnt, &mut inos);
        assert_eq!(inos.len(), names_of(version).len() + 3);
        for user in &users {
            let found = user.large.metadata().unwrap();
            let has_same_device = found.dev() == fs::metadata(&mnt).unwrap().dev();
            assert!(!has_same_device || !inos.contains(&found.ino()));
        }
        assert_eq!(types(&manager), type_of(view));
        users.iter_mut().for_each(User::check);
        users.push(User::of(&manager, version));
        assert_eq!(digest(&manager) == before, version == 1);
    }
    let output = worker.wait_with_output().unwrap();
    let above = if view == "fuse" { 3 } else { 1 };
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("1{above}1gone\n"));
    assert!(!mnt.join("only-2").exists());
    let status = manager.status();
    let requests = &status["mounts"]["tree"]["requests"]["READ"];
    assert!(requests.as_u64().unwrap() > 0);
    if view == "fuse" {
        let now = fs::metadata(&mnt).unwrap();
        assert_eq!((now.ino(), now.dev()), (root.ino(), root.dev()));
    }
    users.iter_mut().for_each(User::check);
    drop(users);
    // With the last user everything of the former trees is gone.
    wait_for_release(&manager);
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert!(types(&manager).is_empty() && manager.kept().is_empty());
}

#[test]
fn a_fuse_mount_shows_what_its_root_stands_for_and_what_is_open_stays() {
    another_tree_is_shown_as("fuse");
}

#[test]
fn an_image_shows_what_its_root_stands_for_and_what_is_open_stays() {
    another_tree_is_shown_as("image");
}

#[test]
fn a_mount_that_follows_nothing_stays() {
    for view in ["fuse", "image"] {
        let other = format!("[mounts.other]\npath = '@/other'\nroot = 'tree'\nview = '{view}'\n");
        let Some(mut manager) = service_of(view, &format!("follow = false\n{other}")) else {
            return;
        };
        manager.start_and_wait();
        show(&manager, 2);
        let other = manager.join("other/version");
        wait_until("the other mount follows", || {
            fs::read_to_string(&other).unwrap() == "2"
        });
        assert_eq!(shown(&manager), "1");
        assert_eq!(names(&manager.join("mnt")), names_of(1));
    }
}

fn remove_root(manager: &Manager) {
    let store = format!("local:{}", manager.join("store").display());
    let removed = Command::new(program())
        .args(["rm", "--store", &store, "tree"])
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
}

#[test]
fn a_name_that_is_gone_changes_nothing() {
    const WORDS: &str = "keeps the tree that it shows";
    for view in ["fuse", "image"] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        manager.start_and_wait();
        let mut user = User::of(&manager, 1);
        remove_root(&manager);
        wait_until("that is logged", || manager.log().contains(WORDS));
        let store = format!("local:{}", manager.join("store").display());
        let collected = Command::new(program())
            .args(["gc", "--store", &store])
            .output();
        assert!(collected.unwrap().status.success());
        drop_caches();
        assert_eq!(names(&manager.join("mnt")), names_of(1));
        user.check();
        show(&manager, 2);
        wait_for(&manager, 2);
        assert_eq!(manager.log().matches(WORDS).count(), 1, "{}", manager.log());
        user.check();
    }
}

#[test]
fn what_was_shown_and_what_is_shown_survive_the_service() {
    for view in ["fuse", "image"] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        manager.start_and_wait();
        let mut users = vec![User::of(&manager, 1)];
        show(&manager, 2);
        wait_for(&manager, 2);
        users.push(User::of(&manager, 2));
        for round in 0..3 {
            manager.kill();
            // The name stands for another tree while no process serves.
            let version = 2 + round % 2;
            if round > 0 {
                show(&manager, version);
            }
            manager.start_and_wait();
            let status = manager.status();
            assert_eq!(status["mounts"]["tree"]["taken_over"], true);
            wait_for(&manager, version);
            assert_eq!(names(&manager.join("mnt")), names_of(version));
            users.iter_mut().for_each(User::check);
            assert_eq!(types(&manager), type_of(view));
        }
        let log = manager.log();
        assert!(!log.contains("mounting again"), "{log}");
        drop(users);
        wait_for_release(&manager);
        manager.signal(libc::SIGTERM);
        assert!(manager.wait(), "{}", manager.log());
        assert!(types(&manager).is_empty() && manager.kept().is_empty());
    }
}

#[test]
fn a_mount_is_taken_over_whether_it_followed_its_root_or_not() {
    for view in ["fuse", "image"] {
        let Some(mut manager) = service_of(view, "follow = false\n") else {
            return;
        };
        manager.start_and_wait();
        // The kernel learns that it need not report what is closed: nothing does while no process serves.
        assert_eq!(shown(&manager), "1");
        let mut user = User::of(&manager, 1);
        let taken_over =
            |manager: &Manager| manager.status()["mounts"]["tree"]["taken_over"] == true;
        manager.kill();
        manager.configure(&config(view, ""));
        manager.start_and_wait();
        assert!(taken_over(&manager), "{}", manager.log());
        show(&manager, 2);
        if view == "fuse" {
            assert!(manager.log().contains("was made without `follow`"));
            manager.signal(libc::SIGTERM);
            user.check();
            drop(user);
            assert!(manager.wait());
            manager.start_and_wait();
            user = User::of(&manager, 2);
        }
        wait_for(&manager, 2);
        user.check();
        manager.kill();
        manager.configure(&config(view, "follow = false\n"));
        manager.start_and_wait();
        assert!(taken_over(&manager), "{}", manager.log());
        assert_eq!(names(&manager.join("mnt")), names_of(2));
        user.check();
    }
}

#[test]
fn a_death_at_any_moment_leaves_one_tree_or_the_other() {
    for view in ["fuse", "image"] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        manager.start_and_wait();
        assert_eq!(shown(&manager), "1");
        let mut users = vec![User::of(&manager, 1)];
        for round in 0..10_u32 {
            let version = 2 + round % 3;
            show(&manager, version);
            std::thread::sleep(Duration::from_millis(u64::from(round * 10)));
            manager.kill();
            manager.start_and_wait();
            wait_for(&manager, version);
            assert_eq!(names(&manager.join("mnt")), names_of(version));
            assert_eq!(types(&manager), type_of(view), "{}", manager.log());
            users
                .iter_mut()
                .for_each(|user| user.check_with(|| manager.log()));
            if round % 4 == 0 {
                users.push(User::of(&manager, version));
            }
        }
        let log = manager.log();
        assert!(!log.contains("mounting again"), "{log}");
        assert!(!log.contains("cannot take over"), "{log}");
        drop(users);
        wait_for_release(&manager);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

#[test]
fn a_mount_below_it_is_not_lost() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for view in ["fuse", "image"] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        manager.start_and_wait();
        let below = manager.join("mnt/dir").display().to_string();
        run("mount", &["-t", "tmpfs", "below", &below]);
        fs::write(manager.join("mnt/dir/mine"), "mine").unwrap();
        show(&manager, 2);
        wait_until("the mount is named", || {
            manager.log().contains("would be lost")
        });
        assert_eq!(shown(&manager), "1");
        assert!(manager.join("mnt/dir/mine").exists());
        assert_eq!(manager.log().matches("would be lost").count(), 1);
        run("umount", &[&below]);
        wait_for(&manager, 2);
    }
}

#[test]
fn a_bind_mount_follows_with_fuse_and_stays_with_an_image() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (view, follows) in [("fuse", true), ("image", false)] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        manager.start_and_wait();
        let bound = manager.join("bound");
        fs::create_dir(&bound).unwrap();
        let (mnt, to) = (manager.join("mnt"), bound.display().to_string());
        run("mount", &["--bind", &mnt.display().to_string(), &to]);
        let place = mnt.display().to_string();
        run("mount", &["-i", "-o", "remount,bind,noexec", &place]);
        show(&manager, 2);
        wait_for(&manager, 2);
        let version = if follows { "2" } else { "1" };
        assert_eq!(fs::read_to_string(bound.join("version")).unwrap(), version);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = format!(" {} ", mnt.display());
        let line = table.lines().find(|line| line.contains(&mnt)).unwrap();
        assert!(line.contains("noexec"), "flags stay: {line}");
        run("umount", &[&to]);
        wait_for_release(&manager);
    }
}

#[test]
fn an_overlay_on_an_image_stays_in_the_tree_that_it_was_mounted_on() {
    let Some(mut manager) = service_of("image", "") else {
        return;
    };
    manager.start_and_wait();
    let overlay = manager.join("overlay");
    fs::create_dir_all(&overlay).unwrap();
    fs::create_dir(manager.join("lowest")).unwrap();
    let (mnt, lowest) = (manager.join("mnt"), manager.join("lowest"));
    let options = format!("lowerdir={}:{}", mnt.display(), lowest.display());
    let place = overlay.display().to_string();
    run("mount", &["-t", "overlay", "-o", &options, "over", &place]);
    show(&manager, 2);
    wait_for(&manager, 2);
    drop_caches();
    assert_eq!(names(&overlay), names_of(1));
    let bytes = fs::read(overlay.join("large")).unwrap();
    assert!((0..LARGE).all(|at| bytes[at] == large(1, at)));
    run("umount", &[&place]);
    wait_for_release(&manager);
}

/// A process in a mount namespace of its own, which ends with this value.
struct Namespace(std::process::Child);

impl Namespace {
    fn new(propagation: &str) -> Self {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", propagation, "sh", "-c"])
            .arg("echo; read line")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut line).unwrap();
        Self(child)
    }

    fn read(&self, path: &Path) -> String {
        let root = format!("/proc/{}/root", self.0.id());
        let path = path.strip_prefix("/").unwrap();
        fs::read_to_string(Path::new(&root).join(path)).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_namespace_gets_the_new_tree_if_mounts_propagate_to_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (view, apart) in [("fuse", "2"), ("image", "1")] {
        let Some(mut manager) = service_of(view, "") else {
            return;
        };
        let place = manager.path().display().to_string();
        run("mount", &["--bind", &place, &place]);
        run("mount", &["--make-shared", &place]);
        manager.start_and_wait();
        let (receives, private) = (Namespace::new("slave"), Namespace::new("private"));
        show(&manager, 2);
        wait_for(&manager, 2);
        let version = manager.join("mnt/version");
        assert_eq!(receives.read(&version), "2");
        assert_eq!(private.read(&version), apart);
        drop(private);
        wait_for_release(&manager);
        manager.signal(libc::SIGTERM);
        drop(receives);
        assert!(manager.wait(), "{}", manager.log());
        assert!(types(&manager).is_empty());
        run("umount", &[&place]);
    }
}

#[test]
fn so_many_former_trees_of_an_image_are_served() {
    const MOST: u32 = 16;
    let Some(mut manager) = service_of("image", "") else {
        return;
    };
    manager.start_and_wait();
    let mut users = Vec::new();
    for version in 1..=MOST {
        users.push(User::of(&manager, version));
        show(&manager, version + 1);
        wait_for(&manager, version + 1);
    }
    show(&manager, MOST + 2);
    wait_until("that is logged", || {
        manager.log().contains("16 trees that it showed before")
    });
    assert_eq!(shown(&manager), (MOST + 1).to_string());
    users.remove(3);
    wait_for(&manager, MOST + 2);
    users.iter_mut().for_each(User::check);
}
