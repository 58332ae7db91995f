//! `castore-fs mount` and the service as programs that come and go: where they mount, where they refuse
//! to, and how a mount ends whatever became of its path meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kit::manager::Manager;
use kit::skip::skip;

/// The user for tests about users: the one that owns nothing.
const UNPRIVILEGED: u32 = 65534;
/// How long to wait for what should happen at once, before it counts as never.
const PATIENCE: Duration = Duration::from_secs(20);

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        skip("it needs the superuser and /dev/fuse");
    }
    can
}

/// A directory that is a mount of its own, so that mounts in it can be moved; with a store of one tree.
struct Place {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            children: Vec::new(),
        };
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                "mode=755",
                "place",
                place.text("").as_str(),
            ],
        );
        run("mount", &["--make-private", place.text("").as_str()]);
        for name in ["tree", "mnt", "other", "up/mnt"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        fs::write(place.join("tree/file"), "content").unwrap();
        fs::create_dir(place.join("tree/sub")).unwrap();
        let imported = place
            .command()
            .arg("import")
            .arg(place.join("tree"))
            .output();
        assert!(imported.unwrap().status.success());
        place
    }

    fn join(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        let text = self.join(path).display().to_string();
        text.trim_end_matches('/').to_owned()
    }

    /// `castore-fs` with the store of this place.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        let store = format!("local:{}", self.join("store").display());
        command
            .env("CASTORE_FS_STORE", store)
            .env("HOME", self.dir.path())
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Starts `castore-fs mount ARGUMENTS` in a process group of its own, and waits until it is up.
    fn mount(&mut self, arguments: &[&str]) -> u32 {
        self.mount_as(arguments, |_| {})
    }

    fn mount_as(&mut self, arguments: &[&str], set: impl FnOnce(&mut Command)) -> u32 {
        let process = self.start_as(arguments, set);
        until(
            "the mount is up",
            || self.log().contains(" is on "),
            || self.log(),
        );
        process
    }

    /// The same, without waiting.
    fn start(&mut self, arguments: &[&str]) -> u32 {
        self.start_as(arguments, |_| {})
    }

    fn start_as(&mut self, arguments: &[&str], set: impl FnOnce(&mut Command)) -> u32 {
        let log = fs::File::create(self.join("log")).unwrap();
        let mut command = self.command();
        let heed = || {
            // SAFETY: the default action of a signal is no code of this program.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
            Ok(())
        };
        // The tests themselves may have been started by nohup.
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(heed) };
        command
            .arg("mount")
            .args(arguments)
            .stderr(log)
            .process_group(0);
        set(&mut command);
        self.children.push(command.spawn().unwrap());
        self.children.last().unwrap().id()
    }

    /// Runs `castore-fs mount ARGUMENTS`, which has to refuse; returns its output.
    fn refused(&self, arguments: &[&str]) -> String {
        let mut command = self.command();
        command.arg("mount").args(arguments);
        let output = within_patience(command);
        let reported = String::from_utf8(output.1).unwrap();
        assert!(!output.0.success(), "{arguments:?}: {reported}");
        assert_eq!(reported.lines().count(), 1, "{reported}");
        reported
    }

    fn log(&self) -> String {
        fs::read_to_string(self.join("log")).unwrap()
    }

    /// Waits for the end of the mount that was started last.
    fn wait(&mut self) -> ExitStatus {
        let mut child = self.children.pop().unwrap();
        let mut status = None;
        until(
            "the process ends",
            || {
                status = child.try_wait().unwrap();
                status.is_some()
            },
            || self.log(),
        );
        status.unwrap()
    }

    fn is_running(&mut self) -> bool {
        self.children
            .last_mut()
            .unwrap()
            .try_wait()
            .unwrap()
            .is_none()
    }

    /// Lines of the mount table below this place, of castore-fs.
    fn mounts(&self) -> Vec<String> {
        mounts_below(self.dir.path(), "castore-fs")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for _ in 0..8 {
            let mut mounts = mounts_below(self.dir.path(), "");
            mounts.reverse();
            for place in mounts {
                let _ = Command::new("umount").args(["--lazy", &place]).output();
            }
        }
    }
}

/// Paths of mounts at or below `path`, of types that contain `of_type`.
fn mounts_below(path: &Path, of_type: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = table.lines().filter_map(|line| {
        let mut columns = line.split(' ').skip(1);
        let (place, kind) = (columns.next()?, columns.next()?);
        let is_below = Path::new(place).starts_with(path) && kind.contains(of_type);
        is_below.then(|| place.to_owned())
    });
    mounts.collect()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// Copies the program by another process: a descriptor of this one that is open for writing could
/// be on its way through another test's fork, and the copy could not be run.
fn copy_program(to: &Path) {
    run(
        "cp",
        &[env!("CARGO_BIN_EXE_castore-fs"), to.to_str().unwrap()],
    );
}

/// Waits until `is_so`; fails with the message of `why`.
fn until(what: &str, mut is_so: impl FnMut() -> bool, why: impl Fn() -> String) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not so: {what}\n{}", why());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The status and the standard error of `command`, which is killed if it does not end.
fn within_patience(mut command: Command) -> (ExitStatus, Vec<u8>) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut reported = Vec::new();
        stderr.read_to_end(&mut reported).map(|_| reported).unwrap()
    });
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, reader.join().unwrap());
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            let _ = child.wait();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(process: u32, signal: i32) {
    // SAFETY: a signal to a child that was not waited for.
    assert_eq!(unsafe { libc::kill(process as i32, signal) }, 0);
}

/// The processes of the process group `group`.
fn group_members(group: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let mut columns = rest.split(' ');
        let (state, of_group) = (columns.next()?, columns.nth(1)?);
        (of_group == group.to_string() && state != "Z").then(|| name.to_owned())
    });
    stats.collect()
}

/// Has `command` run in a mount namespace of its own, with `prepare` done in it as shell.
fn in_namespace(command: &Command, prepare: &str) -> Command {
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    shell.arg(format!("{prepare}\nexec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell
}

// What a mount has in use.

/// Found by a user: the lease of an ended mount stayed, and where the kernel's list of FUSE connections is not
/// mounted it counted for an hour.
#[test]
fn an_ended_mount_has_nothing_in_use_and_a_killed_one_keeps_its_lease() {
    if !can_mount() {
        return;
    }
    const TREE: [&str; 2] = ["--root", "tree"];
    let leases = |place: &Place| fs::read_dir(place.join("store/leases")).unwrap().count();
    for arguments in [&[][..], &["--view", "fuse", TREE[0], TREE[1]], &TREE] {
        for by_signal in [false, true] {
            let mut place = Place::new();
            let mountpoint = place.text("mnt");
            let process = place.mount(&[arguments, &[&mountpoint]].concat());
            // As a mount of all roots does once one was looked up.
            assert!(fs::read_dir(&mountpoint).unwrap().count() > 0);
            fs::metadata(Path::new(&mountpoint).join("tree").join("file")).ok();
            assert_eq!(leases(&place), 1, "{arguments:?}");
            let removed = place.command().args(["rm", "tree"]).output().unwrap();
            assert!(removed.status.success(), "{removed:?}");
            match by_signal {
                true => signal(process, libc::SIGTERM),
                false => run("umount", &[&mountpoint]),
            }
            assert!(place.wait().success(), "{}", place.log());
            assert_eq!(leases(&place), 0, "{arguments:?}, by signal: {by_signal}");
            let collected = place.command().args(["gc", "--grace", "0s"]).output();
            let collected = String::from_utf8(collected.unwrap().stdout).unwrap();
            assert!(!collected.contains("in use"), "{collected}");
        }
    }
    let mut place = Place::new();
    let mountpoint = place.text("mnt");
    let process = place.mount(&["--root", "tree", &mountpoint]);
    signal(process, libc::SIGKILL);
    assert!(!place.wait().success());
    assert_eq!(leases(&place), 1);
}

// Where a mount is refused.

#[test]
fn a_cache_that_cannot_be_used_and_a_missing_root_to_follow_are_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mountpoint = place.text("mnt");
    fs::write(place.join("file"), "").unwrap();
    for cache in [place.text("file"), "/proc/nope".to_owned()] {
        let store = ["--store", "grpc+unix:/nonexistent", "--cache", &cache];
        let reported = place.refused(&[&store[..], &[&mountpoint]].concat());
        let expected = format!("--cache {cache} cannot be used");
        assert!(reported.contains(&expected), "{reported}");
    }
    let mut command = place.command();
    command.args(["mount", "--follow", &mountpoint]);
    let (status, reported) = within_patience(command);
    let reported = String::from_utf8(reported).unwrap();
    assert_eq!(status.code(), Some(2), "{reported}");
    assert!(reported.contains("--root"), "{reported}");
}

/// A collection by gc wrote its lock first, and so made the store whose name was mistyped.
#[test]
fn a_collection_of_an_object_store_that_is_not_there_does_not_make_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("objectstore+file://{}/none", dir.path().display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
    command.args(["gc", "--no-other-writers", "--store", &store]);
    let (status, reported) = within_patience(command);
    let reported = String::from_utf8(reported).unwrap();
    assert!(!status.success(), "{reported}");
    assert!(
        reported.contains("there is nothing to collect"),
        "{reported}"
    );
    assert!(!dir.path().join("none").exists());
}

#[test]
fn a_mount_that_would_hide_the_store_is_refused_whatever_its_path_looks_like() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir_all(place.join("var/lib/store")).unwrap();
    fs::create_dir(place.join("alias")).unwrap();
    symlink("var/lib", place.join("lib")).unwrap();
    symlink(place.join("lib/store"), place.join("link")).unwrap();
    let import = |store: &str| {
        let import = place
            .command()
            .args(["import", "--store", store])
            .arg(place.join("tree"))
            .output();
        assert!(import.unwrap().status.success());
    };
    let direct = format!("local:{}", place.text("var/lib/store"));
    let linked = format!("local:{}", place.text("link"));
    import(&direct);
    fs::create_dir_all(place.join("var/lib/store/blobs/00")).unwrap();
    run(
        "mount",
        &["--bind", &place.text("var"), &place.text("alias")],
    );
    for (store, mountpoint) in [
        (&direct, "var/lib/store"),
        (&direct, "var/lib"),
        (&direct, "var"),
        (&direct, ""),
        (&direct, "lib"),
        (&direct, "link"),
        (&direct, "var/../lib/."),
        // The same directory by its bind mount.
        (&direct, "alias"),
        (&direct, "alias/lib/store"),
        (&linked, "var"),
        (&linked, "lib"),
        // What is its own in the store's directory.
        (&direct, "var/lib/store/packs"),
        (&direct, "link/blobs"),
        (&linked, "alias/lib/store/tmp"),
        (&direct, "var/lib/store/blobs/00"),
    ] {
        let mountpoint = place.text(mountpoint);
        let reported = place.refused(&["--store", store, &mountpoint]);
        assert!(
            reported.contains("would hide the store local:/"),
            "{reported}"
        );
        assert!(reported.contains("mount elsewhere"), "{reported}");
    }
    // By a link that is below the mount point, where the store itself is not.
    fs::create_dir(place.join("links")).unwrap();
    symlink(place.join("var/lib/store"), place.join("links/store")).unwrap();
    let linked = format!("local:{}", place.text("links/store"));
    place.refused(&["--store", &linked, &place.text("links")]);
    assert!(place.mounts().is_empty());
}

#[test]
fn a_mount_beside_or_below_the_store_is_made() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    fs::create_dir_all(place.join("store/mnt")).unwrap();
    fs::create_dir_all(place.join("sto")).unwrap();
    for mountpoint in ["store/mnt", "sto", "mnt"] {
        let mountpoint = place.text(mountpoint);
        let process = place.mount(&[&mountpoint]);
        assert_eq!(place.mounts(), [mountpoint]);
        signal(process, libc::SIGTERM);
        assert!(place.wait().success());
    }
}

#[test]
fn a_mount_that_would_hide_profiles_credentials_or_sockets_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let up = place.text("up");
    let profiles = place.text("up/profiles");
    let reported = place.refused(&["--warmup=learn", "--profiles", &profiles, &up]);
    assert!(reported.contains("its profiles"), "{reported}");
    fs::write(place.join("up/secret"), "word").unwrap();
    fs::set_permissions(place.join("up/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let peer = format!(
        "grpc+https://127.0.0.1:1?token-file={}",
        place.text("up/secret")
    );
    let reported = place.refused(&["--store", &peer, &up]);
    assert!(reported.contains("the token-file"), "{reported}");
    let socket = format!("grpc+unix:{}", place.text("up/peer.sock"));
    let reported = place.refused(&["--store", &socket, &up]);
    assert!(reported.contains("the store grpc+unix:"), "{reported}");
    fs::write(
        place.join("up/config.toml"),
        format!("[stores.s]\nurl = 'local:{}'\n", place.text("store")),
    )
    .unwrap();
    let reported = place.refused(&[
        "--store",
        "store:s",
        "--config",
        &place.text("up/config.toml"),
        &up,
    ]);
    assert!(reported.contains("its configuration file"), "{reported}");
}

#[test]
fn a_mount_that_would_hide_the_program_its_libraries_or_everything_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.join("bin")).unwrap();
    copy_program(&place.join("bin/castore-fs"));
    let mut copied = Command::new(place.join("bin/castore-fs"));
    copied.env("CASTORE_FS_STORE", format!("local:{}", place.text("store")));
    copied.arg("mount").arg(place.join("bin"));
    let (status, reported) = within_patience(copied);
    let reported = String::from_utf8(reported).unwrap();
    assert!(
        !status.success() && reported.contains("its program"),
        "{reported}"
    );
    // Of the libraries one is as good as the other; in a namespace, in case it is mounted after all.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps.lines().find(|line| line.contains("libc.so")).unwrap();
    let library = Path::new(&library[library.find('/').unwrap()..]);
    let mut mount = place.command();
    mount.arg("mount").arg(library.parent().unwrap());
    let (status, reported) = within_patience(in_namespace(&mount, ""));
    let reported = String::from_utf8(reported).unwrap();
    assert!(
        !status.success() && reported.contains("a library of its program"),
        "{reported}"
    );
    let mut mount = place.command();
    mount.args(["mount", "/"]);
    let (status, reported) = within_patience(in_namespace(&mount, ""));
    let reported = String::from_utf8(reported).unwrap();
    assert!(
        !status.success() && reported.contains("cannot mount on /:"),
        "{reported}"
    );
}

#[test]
fn a_regular_file_is_no_mount_point_for_root_and_for_others() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let file = place.text("file");
    fs::write(&file, "").unwrap();
    assert!(place.refused(&[&file]).contains("is not a directory"));
    if Command::new("fusermount3")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip("there is no fusermount3 (package fuse3)");
    }
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    std::os::unix::fs::chown(&file, Some(UNPRIVILEGED), None).unwrap();
    run("chmod", &["-R", "a+rwX", &place.text("store")]);
    let program = place.join("castore-fs");
    copy_program(&program);
    let mut mount = Command::new(program);
    mount.env("CASTORE_FS_STORE", format!("local:{}", place.text("store")));
    mount
        .args(["mount", &file])
        .uid(UNPRIVILEGED)
        .gid(UNPRIVILEGED);
    let (status, reported) = within_patience(mount);
    let reported = String::from_utf8(reported).unwrap();
    assert!(
        !status.success() && reported.contains("is not a directory"),
        "{reported}"
    );
    assert!(place.mounts().is_empty());
}

#[test]
fn the_number_that_is_no_id_owns_nothing() {
    let place = Place::new();
    for option in ["--uid=4294967295", "--gid=4294967295"] {
        let reported = place.refused(&[option, &place.text("mnt")]);
        assert!(reported.contains("is no user or group id"), "{reported}");
        let mut device = place.command();
        device.args(["virtiofs", option, "--socket", &place.text("socket")]);
        let output = device.output().unwrap();
        let reported = String::from_utf8(output.stderr).unwrap();
        assert!(reported.contains("is no user or group id"), "{reported}");
    }
}

#[test]
fn without_proc_the_error_names_what_is_missing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut mount = place.command();
    mount.args(["mount", &place.text("mnt")]);
    let (status, reported) = within_patience(in_namespace(&mount, "umount --lazy /proc"));
    let reported = String::from_utf8(reported).unwrap();
    assert!(!status.success());
    assert!(reported.contains("/proc is not mounted"), "{reported}");
}

#[test]
fn a_second_mount_on_the_same_place_is_refused_unless_the_first_is_dead() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    let process = place.mount(&[&mnt]);
    symlink("mnt", place.join("link")).unwrap();
    for path in ["mnt", "link", "other/../mnt"] {
        let reported = place.refused(&[&place.text(path)]);
        assert!(reported.contains("is mounted on"), "{reported}");
    }
    assert_eq!(
        fs::read_to_string(place.join("mnt/tree/file")).unwrap(),
        "content"
    );
    // One whose server is gone is taken away.
    signal(process, libc::SIGKILL);
    place.wait();
    let process = place.mount(&[&mnt]);
    assert_eq!(place.mounts(), [mnt]);
    assert_eq!(
        fs::read_to_string(place.join("mnt/tree/file")).unwrap(),
        "content"
    );
    signal(process, libc::SIGTERM);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
}

#[test]
fn the_service_and_its_check_refuse_what_the_command_line_refuses() {
    if !can_mount() {
        return;
    }
    let cases = [
        ("@/var", "", "the store local:"),
        ("@/state", "", "its state directory"),
        ("@", "", "its configuration file"),
        (
            "@/run/x/..",
            "[metrics]\naddress = 'unix:@/run/metrics'\n",
            "its socket for metrics",
        ),
        (
            "@/run",
            "[virtiofs.guest]\nsocket = '@/run/guest'\n",
            "the socket of the device \"guest\"",
        ),
        (
            "@/run",
            "[listen.peers]\naddress = 'unix:@/run/peers'\n",
            "the socket of the listener \"peers\"",
        ),
        (
            "@/certs",
            "[listen.tcp]\naddress = '127.0.0.1:0'\ntls-cert-path = '@/certs/c'\n\
             tls-key-path = '@/certs/k'\n",
            "the tls-cert-path of the listener \"tcp\"",
        ),
        ("@/file", "", "is not a directory"),
    ];
    let mut manager = Manager::new("");
    for name in ["var", "state", "run/x", "certs"] {
        fs::create_dir_all(manager.join(name)).unwrap();
    }
    fs::write(manager.join("file"), "").unwrap();
    for (path, more, why) in cases {
        manager.configure(&format!(
            "state-dir = '@/state'\n[stores.disk]\nurl = 'local:@/var/lib/store'\n\
             [mounts.tree]\npath = '{path}'\n{more}"
        ));
        let config = manager.join("config.toml");
        let checked = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .arg("check-config")
            .arg(&config)
            .output()
            .unwrap();
        let reported = String::from_utf8(checked.stderr).unwrap();
        assert!(!checked.status.success(), "{path}");
        assert!(
            reported.contains("mounts.tree.path: ") && reported.contains(why),
            "{reported}"
        );
        manager.start();
        assert!(!manager.wait(), "{path}");
        let log = manager.log();
        assert!(
            log.contains("the mount \"tree\"") && log.contains(why),
            "{path}: {log}"
        );
        fs::write(manager.join("log"), "").unwrap();
    }
    assert!(mounts_below(manager.path(), "castore").is_empty());
}

// How a mount ends.

#[test]
fn a_closed_terminal_ends_a_mount_unless_it_was_started_by_nohup() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    let process = place.mount(&[&mnt]);
    signal(process, libc::SIGHUP);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
    let process = place.mount_as(&[&mnt], |command| {
        let ignore = || {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(ignore) };
    });
    signal(process, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(place.mounts(), [mnt.as_str()], "it continues");
    signal(process, libc::SIGTERM);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
}

/// systemd sends both with `SendSIGHUP=`.
#[test]
fn a_termination_and_a_hang_up_together_are_one_interrupt() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    for _ in 0..5 {
        let process = place.mount(&[&mnt]);
        signal(process, libc::SIGTERM);
        signal(process, libc::SIGHUP);
        let status = place.wait();
        assert!(status.success(), "{status:?}");
        assert!(place.mounts().is_empty());
    }
}

#[test]
fn an_interrupt_during_the_start_leaves_no_mount() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    for (view, number) in [("fuse", libc::SIGTERM), ("auto", libc::SIGHUP)] {
        // From before the program has read its arguments to after the mount is up.
        for pause in (0..300).step_by(15) {
            let process = place.start(&["--root", "tree", "--view", view, &mnt]);
            std::thread::sleep(Duration::from_millis(pause));
            signal(process, number);
            place.wait();
            let remaining = mounts_below(Path::new(&mnt), "");
            assert!(
                remaining.is_empty(),
                "{view} after {pause} ms: {remaining:?}"
            );
        }
    }
}

#[test]
fn a_mount_is_unmounted_where_it_is_now() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let (up, mnt, other) = (place.text("up/mnt"), place.text("mnt"), place.text("other"));
    // Moved, with another file system where it was.
    let process = place.mount(&[&mnt]);
    run("mount", &["--move", &mnt, &other]);
    run("mount", &["-t", "tmpfs", "in-its-place", &mnt]);
    signal(process, libc::SIGTERM);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
    run("umount", &[&mnt]);
    // Its parent was renamed.
    let process = place.mount(&[&up]);
    fs::rename(place.join("up"), place.join("renamed")).unwrap();
    fs::create_dir_all(&up).unwrap();
    signal(process, libc::SIGTERM);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
    // Its path is a symbolic link, which leads elsewhere by now.
    symlink("mnt", place.join("link")).unwrap();
    let process = place.mount(&[&place.text("link")]);
    assert_eq!(place.mounts(), [mnt]);
    fs::remove_file(place.join("link")).unwrap();
    symlink("other", place.join("link")).unwrap();
    signal(process, libc::SIGTERM);
    assert!(place.wait().success());
    assert!(place.mounts().is_empty());
    assert!(!place.log().contains("panicked"), "{}", place.log());
}

#[test]
fn a_covered_mount_is_reported_and_unmounted_once_it_is_uncovered() {
    if !can_mount() {
        return;
    }
    // Another mount on it, in it, or on a directory above it.
    for cover in ["up/mnt", "up/mnt/tree/sub", "up"] {
        let mut place = Place::new();
        let (mnt, cover) = (place.text("up/mnt"), place.text(cover));
        let process = place.mount(&[&mnt]);
        run("mount", &["-t", "tmpfs", "cover", &cover]);
        fs::write(format!("{cover}/precious"), "kept").unwrap();
        signal(process, libc::SIGTERM);
        until(
            "the reason is printed",
            || place.log().contains("cannot be unmounted before"),
            || place.log(),
        );
        let log = place.log();
        assert!(
            log.contains(&format!("the mount of type tmpfs on {cover}")),
            "{log}"
        );
        assert!(place.is_running());
        assert_eq!(
            fs::read_to_string(format!("{cover}/precious")).unwrap(),
            "kept"
        );
        assert_eq!(place.mounts(), [mnt.as_str()]);
        run("umount", &[&cover]);
        assert!(place.wait().success());
        assert!(place.mounts().is_empty());
        assert_eq!(
            place.log().matches("cannot be unmounted").count(),
            1,
            "{}",
            place.log()
        );
    }
}

#[test]
fn a_mount_that_is_used_otherwise_is_reported_and_served_until_it_is_free() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let (mnt, other) = (place.text("mnt"), place.text("other"));
    let reported = |place: &Place, user: &str| {
        until(
            "the user of the mount is printed",
            || place.log().contains("is unmounted, and served"),
            || place.log(),
        );
        let log = place.log();
        assert!(log.contains(user), "{user}: {log}");
    };
    // A bind mount.
    let process = place.mount(&[&mnt]);
    run("mount", &["--bind", &mnt, &other]);
    signal(process, libc::SIGTERM);
    reported(&place, &format!("the bind mount on {other}"));
    assert_eq!(place.mounts(), [other.as_str()]);
    assert_eq!(
        fs::read_to_string(place.join("other/tree/file")).unwrap(),
        "content"
    );
    assert!(place.is_running());
    run("umount", &[&other]);
    assert!(place.wait().success());
    // An open file, and a working directory.
    for user in ["exec sleep 1000 <tree/file", "cd tree && exec sleep 1000"] {
        let process = place.mount(&[&mnt]);
        let mut sleeper = Command::new("sh")
            .args(["-c", user])
            .current_dir(&mnt)
            .spawn()
            .unwrap();
        let comm = format!("/proc/{}/comm", sleeper.id());
        let sleeps = || fs::read_to_string(&comm).unwrap().trim() == "sleep";
        until("it sleeps", sleeps, String::new);
        signal(process, libc::SIGTERM);
        reported(&place, &format!("process {} (\"sleep\")", sleeper.id()));
        assert!(place.mounts().is_empty());
        assert!(place.is_running());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(place.wait().success());
    }
    // Another mount namespace.
    let process = place.mount(&[&mnt]);
    let mut sleeper = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("echo; exec sleep 1000")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    sleeper
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    signal(process, libc::SIGTERM);
    reported(&place, "the mount namespace of process");
    assert!(place.is_running());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(place.wait().success());
}

#[test]
fn a_process_that_waits_for_a_dead_server_keeps_no_mount_from_being_unmounted() {
    if !can_mount() {
        return;
    }
    // A server that has stopped, and a process that waits for it in execve(2): there the kernel closes
    // files, and whatever looks at the process's memory waits as well.
    let mut stopped = Place::new();
    let server = stopped.mount(&[&stopped.text("mnt")]);
    let program = "import os, sys\n\
        kept = os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC)\n\
        os.write(1, b'x'); os.read(0, 1)\n\
        os.execv('/bin/sleep', ['sleep', '1000'])";
    let mut waits = Command::new("python3")
        .args(["-c", program, &stopped.text("mnt/tree/file")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    waits.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    signal(server, libc::SIGSTOP);
    // A thread that runs on could answer.
    let is_stopped = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, state)| state.starts_with('T'))
    };
    until(
        "all threads are stopped",
        || {
            let mut tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap();
            tasks.all(|task| is_stopped(task.unwrap()))
        },
        String::new,
    );
    waits.stdin.take().unwrap().write_all(b"x").unwrap();
    // Threads that look may stay until the server continues.
    let maps = format!("/proc/{}/maps", waits.id());
    until(
        "a look at its memory waits",
        || {
            let (sender, receiver) = std::sync::mpsc::channel();
            let maps = maps.clone();
            std::thread::spawn(move || sender.send(fs::read(maps).is_ok()));
            receiver.recv_timeout(Duration::from_secs(1)).is_err()
        },
        String::new,
    );

    let mut place = Place::new();
    let mnt = place.text("mnt");
    let process = place.mount(&[&mnt]);
    let user = fs::File::open(place.join("mnt/tree/file")).unwrap();
    // Started after the one that waits, and so looked at after it.
    let mut sleeper = Command::new("sleep")
        .arg("1000")
        .stdin(user.try_clone().unwrap())
        .spawn()
        .unwrap();
    signal(process, libc::SIGTERM);
    until(
        "it lists the users",
        || place.log().contains("is unmounted, and served"),
        || place.log(),
    );
    for user in [std::process::id(), sleeper.id()] {
        let user = format!("process {user} (");
        assert!(place.log().contains(&user), "{}", place.log());
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    drop(user);
    assert!(place.wait().success());

    signal(server, libc::SIGCONT);
    waits.kill().unwrap();
    waits.wait().unwrap();
}

#[test]
fn an_unmount_by_hand_ends_the_process_and_its_helpers() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    let process = place.mount(&["--warmup=learn", &mnt]);
    assert_eq!(
        fs::read_to_string(place.join("mnt/tree/file")).unwrap(),
        "content"
    );
    assert!(group_members(process).len() > 1, "there are helpers");
    run("umount", &[&mnt]);
    assert!(place.wait().success());
    until(
        "its helpers have ended",
        || group_members(process).is_empty(),
        || group_members(process).join(", "),
    );
}

#[test]
fn nothing_panics_at_the_end_of_a_mount_that_records() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    let mnt = place.text("mnt");
    let profiles = place.text("profiles");
    for round in 0..12 {
        let process = place.mount(&["--warmup=learn", "--profiles", &profiles, &mnt]);
        assert_eq!(
            fs::read_to_string(place.join("mnt/tree/file")).unwrap(),
            "content"
        );
        match round % 2 {
            0 => signal(process, libc::SIGTERM),
            _ => run("umount", &[&mnt]),
        }
        assert!(place.wait().success());
        let log = place.log();
        assert!(!log.contains("panicked"), "round {round}: {log}");
        assert!(
            place.join("profiles/tree.profile").exists(),
            "round {round}"
        );
        fs::remove_dir_all(&profiles).unwrap();
    }
}

// The service.

fn service() -> Manager {
    let manager = Manager::new(
        "state-dir = '@/state'\ndrain = '10s'\n[stores.disk]\nurl = 'local:@/store'\n\
         [mounts.tree]\npath = '@/mnt'\nwarmup = 'learn'\n",
    );
    let tree = manager.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::create_dir(manager.join("mnt")).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    manager.import(&tree, "tree");
    manager
}

#[test]
fn a_second_service_is_refused_before_it_mounts_anything() {
    if !can_mount() {
        return;
    }
    let mut first = service();
    first.start_and_wait();
    let dir = first.path().display().to_string();
    let second = |state: &str, socket: &str| {
        let config = first.join("second.toml");
        let text = format!(
            "state-dir = '{dir}/{state}'\n[control]\nsocket = '{dir}/{socket}'\n\
             [stores.disk]\nurl = 'local:{dir}/store'\n[mounts.other]\npath = '{dir}/other'\n"
        );
        fs::write(&config, text).unwrap();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        daemon.arg("daemon").arg("--config").arg(&config);
        let (status, reported) = within_patience(daemon);
        assert!(!status.success());
        // Not even the directory was made.
        assert!(!first.join("other").exists());
        String::from_utf8(reported).unwrap()
    };
    let reported = second("state", "another");
    assert!(
        reported.contains("another castore-fs daemon uses the state directory"),
        "{reported}"
    );
    let reported = second("other-state", "control");
    assert!(
        reported.contains("another process listens there"),
        "{reported}"
    );
    // The first has not noticed.
    assert_eq!(first.status()["mounts"]["tree"]["mounted"], true);
    first.signal(libc::SIGTERM);
    assert!(first.wait());
}

#[test]
fn the_service_unmounts_what_was_moved_and_waits_for_what_is_covered() {
    if !can_mount() {
        return;
    }
    let mut manager = service();
    let dir = manager.path().display().to_string();
    run("mount", &["-t", "tmpfs", "place", &format!("{dir}/mnt")]);
    run("mount", &["--make-private", &format!("{dir}/mnt")]);
    for name in ["a", "b"] {
        fs::create_dir(manager.join("mnt").join(name)).unwrap();
    }
    manager.configure(
        "state-dir = '@/state'\n[stores.disk]\nurl = 'local:@/store'\n\
         [mounts.tree]\npath = '@/mnt/a'\nwarmup = 'learn'\n",
    );
    manager.start_and_wait();
    let (a, b) = (format!("{dir}/mnt/a"), format!("{dir}/mnt/b"));
    run("mount", &["--move", &a, &b]);
    assert_eq!(
        fs::read_to_string(format!("{b}/tree/file")).unwrap(),
        "content"
    );
    run("mount", &["-t", "tmpfs", "cover", &b]);
    assert_eq!(manager.status()["mounts"]["tree"]["mounted"], true);
    manager.signal(libc::SIGTERM);
    until(
        "it is reported",
        || {
            manager
                .log()
                .contains("cannot be unmounted before the mount of type tmpfs")
        },
        || manager.log(),
    );
    assert_eq!(mounts_below(Path::new(&b), "tmpfs").len(), 1);
    run("umount", &[&b]);
    assert!(manager.wait(), "{}", manager.log());
    assert!(mounts_below(manager.path(), "castore").is_empty());
    assert!(!manager.log().contains("panicked"), "{}", manager.log());
    run("umount", &[&format!("{dir}/mnt")]);
}

#[test]
fn a_mount_of_the_service_has_the_options_of_mount_that_it_is_given() {
    if !can_mount() {
        return;
    }
    let with = |options: &str| {
        format!(
            "[stores.disk]\nurl = 'local:@/store'\n[mounts.tree]\npath = '@/mnt'\n\
             mount-options = {options}\n"
        )
    };
    let mut manager = Manager::new(&with("['noexec', 'nosymfollow', 'private', 'x-remark']"));
    let options = |manager: &Manager| {
        let mnt = manager.join("mnt").display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(&mnt));
        let options = line.expect("it is mounted").split(' ').nth(5).unwrap();
        options.to_owned()
    };
    manager.start_and_wait();
    assert_eq!(
        options(&manager),
        "ro,nosuid,nodev,noexec,noatime,nosymfollow"
    );
    manager.kill();
    manager.start_and_wait();
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);
    // With other options it is another mount.
    manager.kill();
    manager.configure(&with("['relatime']"));
    manager.start_and_wait();
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], false);
    assert_eq!(options(&manager), "ro,nosuid,nodev,relatime");
}

// A mount that follows the name of its root.

#[test]
fn a_mount_of_a_root_follows_it_until_it_is_unmounted_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for (view, kind) in [("fuse", "fuse.castore-fs"), ("image", "erofs")] {
        if view == "image" && !file_systems.contains("\terofs\n") {
            continue;
        }
        let mut place = Place::new();
        let (mnt, other) = (place.text("mnt"), place.text("other"));
        place.mount(&["--root", "tree", "--view", view, "--no-follow", &other]);
        let process = place.mount(&["--root", "tree", "--view", view, &mnt]);
        let read = |path: &str| fs::read_to_string(place.join(path)).unwrap_or_default();
        assert_eq!(read("mnt/file"), "content");
        let mut open = fs::File::open(place.join("mnt/file")).unwrap();
        let import = |content: &str| {
            fs::write(place.join("tree/file"), content).unwrap();
            let imported = place
                .command()
                .arg("import")
                .arg(place.join("tree"))
                .output();
            assert!(imported.unwrap().status.success());
            until(
                "the mount follows",
                || read("mnt/file") == content,
                || place.log(),
            );
        };
        import("second");
        import("third");
        assert_eq!(read("other/file"), "content");
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(mounts_below(&place.join("mnt"), kind), [mnt.as_str()]);
        // In use by a tree that was shown before.
        signal(process, libc::SIGINT);
        until(
            "it is out of the tree",
            || mounts_below(&place.join("mnt"), "").is_empty(),
            || place.log(),
        );
        assert!(place.is_running());
        drop(open);
        assert!(place.wait().success());
        until(
            "the helpers have ended",
            || group_members(process).is_empty(),
            || format!("{:?}", group_members(process)),
        );
    }
}
