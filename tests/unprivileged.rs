//! Mounts of processes without privilege: through fusermount3, and on descriptors that another
//! process with more rights has opened and mounted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::manager::Manager;
use kit::skip::skip;

/// The user of these tests under the superuser: the one that owns nothing.
const UNPRIVILEGED: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that the unprivileged user can use, and the program in it: where it was built may be out
/// of that user's reach.
fn stage() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("castore-fs");
    fs::copy(env!("CARGO_BIN_EXE_castore-fs"), &program).unwrap();
    for name in ["tree", "mnt", "home"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("tree/file"), "seen by all").unwrap();
    if is_root() {
        for name in ["mnt", "home", "tree"] {
            std::os::unix::fs::chown(
                dir.path().join(name),
                Some(UNPRIVILEGED),
                Some(UNPRIVILEGED),
            )
            .unwrap();
        }
    }
    (dir, program)
}

/// `castore-fs` as the unprivileged user, with the store in its home.
fn as_unprivileged(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env(
            "CASTORE_FS_STORE",
            format!("local:{}/home/store", dir.display()),
        )
        .current_dir("/")
        .stderr(Stdio::piped());
    if is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command
}

/// Waits until the mount has reported that it is up.
fn wait_until_up(child: &mut Child) {
    let mut line = String::new();
    let mut reported = BufReader::new(child.stderr.take().unwrap());
    reported.read_line(&mut line).unwrap();
    assert!(line.contains(" is on "), "{line}");
}

fn end(mut child: Child) {
    // SAFETY: a signal to a child that was not waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(10), "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens `/dev/fuse` and mounts it on `path` for `user`, as a privileged helper does.
fn mounted_device(path: &Path, user: u32) -> OwnedFd {
    let device: OwnedFd = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap()
        .into();
    let options = format!(
        "fd={},rootmode=40000,user_id={user},group_id={user},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("given", path, "fuse.castore-fs", flags, options.as_c_str()).unwrap();
    device
}

/// Puts the tree of [`stage`] into the user's store.
fn import_tree(program: &Path, dir: &Path) {
    let imported = as_unprivileged(program, dir)
        .arg("import")
        .arg(dir.join("tree"))
        .output();
    assert!(imported.unwrap().status.success());
}

fn unmount(path: &Path) {
    let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    let helper = Command::new("fusermount3").arg("--version").output();
    if helper.is_err() {
        return skip("there is no fusermount3 (package fuse3)");
    }
    if !Path::new("/dev/fuse").exists() {
        return skip("there is no /dev/fuse");
    }
    if is_root() {
        // As udev has it everywhere; some containers' device is root's alone.
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    }
    let (dir, program) = stage();
    let dir = dir.path();
    let mut mount = as_unprivileged(&program, dir)
        .args(["mount", "--import"])
        .args([dir.join("tree"), dir.join("mnt")])
        .spawn()
        .unwrap();
    wait_until_up(&mut mount);
    let line = fs::read_to_string("/proc/self/mounts").unwrap();
    let place = dir.join("mnt").display().to_string();
    let line = line.lines().find(|line| line.contains(&place)).unwrap();
    let user = if is_root() {
        UNPRIVILEGED
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert!(line.contains("fuse.castore-fs"), "{line}");
    assert!(line.contains(&format!("user_id={user}")), "{line}");
    // Only that user can look: others need allow_other, which is the administrator's to allow.
    let mut cat = Command::new("cat");
    cat.arg(dir.join("mnt/tree/file"));
    if is_root() {
        cat.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    let read = cat.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&read.stdout),
        "seen by all",
        "{read:?}"
    );
    end(mount);
    assert!(
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(&place)
    );
}

#[test]
fn a_process_without_privilege_serves_what_others_have_mounted() {
    if !is_root() {
        return skip("only the superuser can mount for another user");
    }
    let (dir, program) = stage();
    let dir = dir.path();
    import_tree(&program, dir);
    let mnt = dir.join("mnt");
    let device = mounted_device(&mnt, UNPRIVILEGED);
    let mut command = as_unprivileged(&program, dir);
    command.args(["mount", "/dev/fd/9"]);
    let number = device.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::dup2(number, 9) {
            9 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut mount = command.spawn().unwrap();
    drop(device);
    wait_until_up(&mut mount);
    assert_eq!(
        fs::read_to_string(mnt.join("tree/file")).unwrap(),
        "seen by all"
    );
    end(mount);
    // It may not unmount; but it does not make any reader wait either.
    // (What was read is the kernel's for a moment.)
    let error = fs::metadata(mnt.join("tree/never-seen")).unwrap_err();
    let errno = error.raw_os_error();
    assert!(
        matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED)),
        "{error}"
    );
    unmount(&mnt);
}

#[test]
fn what_is_no_device_is_refused_with_reason() {
    let (dir, program) = stage();
    let dir = dir.path();
    import_tree(&program, dir);
    for (place, why) in [
        ("/dev/fd/77", "was not passed on"),
        ("/dev/fd/x", "names no descriptor"),
    ] {
        let refused = as_unprivileged(&program, dir)
            .args(["mount", place])
            .output()
            .unwrap();
        let reported = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && reported.contains(why),
            "{reported}"
        );
    }
}

/// The service: a helper mounts and passes the descriptor on (`OpenFile=`), the service has no
/// privilege at all, and takes the mount over when it is started again.
#[test]
fn the_service_serves_a_mount_that_was_passed_on_and_keeps_it_over_a_restart() {
    if !is_root() {
        return skip("only the superuser can mount for another user");
    }
    let config = "[stores.disk]\nurl = 'local:@/store'\n[mounts.tree]\npath = '@/mnt'\n\
                  device = 'fd:outside'\n";
    let mut manager = Manager::new(config);
    fs::set_permissions(manager.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tree = manager.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::create_dir(manager.join("mnt")).unwrap();
    fs::write(tree.join("file"), "passed on").unwrap();
    manager.import(&tree, "tree");
    manager.become_user(UNPRIVILEGED);
    let mnt = manager.join("mnt");
    manager.give("outside", mounted_device(&mnt, UNPRIVILEGED));
    manager.start_and_wait();
    let process = fs::metadata(format!("/proc/{}", manager.pid())).unwrap();
    assert_eq!(process.uid(), UNPRIVILEGED);
    assert_eq!(
        fs::read_to_string(mnt.join("tree/file")).unwrap(),
        "passed on"
    );
    assert_eq!(manager.kept(), ["mount.tree", "nodes.tree"]);
    let open = fs::File::open(mnt.join("tree/file")).unwrap();
    manager.kill();
    manager.start_and_wait();
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
    assert_eq!(text, "passed on");
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    drop(open);
    unmount(&mnt);
}

#[test]
fn a_missing_device_is_reported_by_its_name() {
    let config = "[stores.disk]\nurl = 'local:@/store'\n[mounts.tree]\npath = '@/mnt'\n\
                  device = 'fd:outside'\n";
    let mut manager = Manager::new(config);
    manager.start();
    assert!(!manager.wait());
    let log = manager.log();
    assert!(log.contains("named \"outside\" was passed on"), "{log}");
}

/// The paths below `dir` that are not the unprivileged user's.
fn others_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let about = path.symlink_metadata().unwrap();
        if (about.uid(), about.gid()) != (UNPRIVILEGED, UNPRIVILEGED) {
            found.push(path.clone());
        }
        if about.is_dir() {
            found.extend(others_below(&path));
        }
    }
    found
}

#[test]
fn what_the_superuser_imports_belongs_to_the_owner_of_the_store() {
    if !is_root() {
        return skip("only the superuser can write to the stores of others");
    }
    let (dir, program) = stage();
    let dir = dir.path();
    let store = dir.join("home/store");
    // The superuser's import makes the store, in a directory that the user has made.
    fs::create_dir(&store).unwrap();
    std::os::unix::fs::chown(&store, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    fs::write(dir.join("large"), vec![7; 3 << 20]).unwrap();
    let url = format!("local:{}", store.display());
    let as_root = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("CASTORE_FS_STORE", &url).args(arguments);
        command.current_dir(dir).output().unwrap()
    };
    let done = |output: std::process::Output| {
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{reported}");
    };
    done(as_root(&["import", "tree", "large"]));
    assert_eq!(others_below(&store), Vec::<PathBuf>::new());
    // A process that reads and leases as the superuser, and one that replaces the index.
    done(as_root(&["verify", "--repair"]));
    assert_eq!(others_below(&store), Vec::<PathBuf>::new());
    // Its owner adds to it, and collects in it.
    import_tree(&program, dir);
    let as_user = |arguments: &[&str]| {
        as_unprivileged(&program, dir)
            .args(arguments)
            .output()
            .unwrap()
    };
    done(as_user(&["rm", "large", "tree"]));
    done(as_user(&["gc", "--grace", "0s"]));
    let dirs = fs::read_dir(store.join("blobs")).unwrap();
    let large = dirs.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    assert_eq!(large.count(), 0, "the large blob is still there");
}
