//! The program: its sockets, its supervisor and its sandbox.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use castore_fs::store::LocalStore;

use super::front_end::FrontEnd;
use super::{ROOT, fuse, pattern};
use kit::model::{Model, directory, file};
use kit::passed_descriptors::start_with;

/// More than a store puts into packs.
const LARGE: usize = 3 << 20;

/// A store on disk, and the program that serves it.
pub(crate) struct Program {
    dir: tempfile::TempDir,
}

/// The parent process, which keeps the guests.
pub(crate) struct Running(pub Child);

impl Running {
    /// The process that serves them.
    pub(crate) fn worker(&self) -> u32 {
        self.has_worker().expect("a worker")
    }

    fn has_worker(&self) -> Option<u32> {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Its output, if it has ended.
    fn assert_runs(&mut self) {
        if let Some(status) = self.0.try_wait().unwrap() {
            let mut reported = String::new();
            let _ = self.0.stderr.take().unwrap().read_to_string(&mut reported);
            panic!("{status}: {reported}");
        }
    }

    /// Kills the process that serves them, at whatever it does.
    pub(crate) fn kill_worker(&self) {
        let worker = rustix::process::Pid::from_raw(self.worker() as i32).unwrap();
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let worker = self.has_worker();
        let _ = self.0.kill();
        let _ = self.0.wait();
        // The worker follows its parent a moment later; until then the socket is in use.
        let Some(worker) = worker else { return };
        let lives = || {
            let status = fs::read_to_string(format!("/proc/{worker}/stat"));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while lives() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Program {
    fn new() -> Self {
        Self::of(&directory([
            ("large", file(pattern(LARGE))),
            ("small", file("small")),
        ]))
    }

    /// With `tree` in its store.
    pub(crate) fn of(tree: &Model) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&dir.path().join("store")).unwrap();
        tree.put_root(&store, "tree");
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        command
            .args(["virtiofs", "--root", "tree", "--store"])
            .arg(format!("local:{}", self.path("store").display()))
            .args(arguments)
            .stderr(Stdio::piped())
            .env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts it on a socket, and waits until it is ready.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, |_| ())
    }

    /// As [`start`](Self::start), `changed`.
    pub(crate) fn start_with(
        &self,
        arguments: &[&str],
        changed: impl FnOnce(&mut Command),
    ) -> Running {
        let notify = UnixDatagram::bind(self.path("notify")).unwrap();
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(self.path("notify"), everybody).unwrap();
        notify
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let mut command = self.command(arguments);
        command.arg("--socket").arg(self.path("socket"));
        changed(&mut command);
        let mut running = Running(
            command
                .env("NOTIFY_SOCKET", self.path("notify"))
                .spawn()
                .unwrap(),
        );
        let mut message = [0; 100];
        let length = loop {
            match notify.recv(&mut message) {
                Ok(length) => break length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => running.assert_runs(),
                Err(error) => panic!("READY=1: {error}"),
            }
        };
        assert_eq!(&message[..length], b"READY=1");
        fs::remove_file(self.path("notify")).unwrap();
        running
    }

    pub(crate) fn guest(&self) -> FrontEnd {
        let mut guest = FrontEnd::connect(&self.path("socket"), 2, 0);
        guest.init();
        guest
    }
}

fn status(running: &Running, field: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{}/status", running.worker())).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn the_process_serves_its_store_and_can_do_nothing_else() {
    let program = Program::new();
    let running = program.start(&["--socket-mode", "660", "--queues", "2"]);
    let mode = fs::metadata(program.path("socket")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o660);
    assert_eq!(status(&running, "CapEff"), "0".repeat(16));
    assert_eq!(status(&running, "NoNewPrivs"), "1");
    assert_eq!(status(&running, "Seccomp"), "2");
    // Nor has the parent any privilege.
    let parent = fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    assert!(parent.contains(&format!("CapEff:\t{}", "0".repeat(16))));
    assert!(parent.contains("NoNewPrivs:\t1"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.worker())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard: u64 = files
        .unwrap()
        .split_whitespace()
        .nth(4)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        hard < 4096,
        "{hard} descriptors are more than two queues need"
    );
    let mut guest = program.guest();
    let large = guest.look_up(ROOT, "large");
    assert!(guest.content(large.node, large.size) == pattern(LARGE));
}

/// The store's large blobs, moved to another directory that a symlink leads to: Landlock sees the
/// difference.
#[test]
fn files_outside_of_the_store_are_out_of_reach() {
    if !has_landlock() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI's kernel must have Landlock"
        );
        eprintln!("skipped: this kernel has no Landlock");
        return;
    }
    let program = Program::new();
    let blobs = program.path("store/blobs");
    fs::rename(&blobs, program.path("elsewhere")).unwrap();
    symlink(program.path("elsewhere"), &blobs).unwrap();
    let read = |arguments: &[&str]| {
        let _running = program.start(arguments);
        let mut guest = program.guest();
        let large = guest.look_up(ROOT, "large");
        let reply = guest.request(1, &fuse::read(large.node, 0, 100), 4096);
        fuse::body(&reply).map(<[u8]>::to_vec)
    };
    assert_eq!(read(&["--no-sandbox"]), Ok(pattern(100)));
    assert_eq!(read(&[]), Err(libc::EIO));
}

fn has_landlock() -> bool {
    let modules = fs::read_to_string("/sys/kernel/security/lsm");
    modules.is_ok_and(|modules| modules.contains("landlock")) || {
        // SAFETY: reads the version, with no attribute to read.
        let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
        version > 0
    }
}

#[test]
fn sockets_are_taken_over_from_systemd() {
    let program = Program::new();
    let listener = UnixListener::bind(program.path("socket")).unwrap();
    let _running = Running(start_with(&program.command(&[]), listener));
    let mut guest = program.guest();
    assert_eq!(guest.look_up(ROOT, "small").size, 5);
}

#[test]
fn wrong_arguments_are_reported() {
    let program = Program::new();
    let reported = |arguments: &[&str]| {
        let output = program.command(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(reported(&[]).contains("--socket PATH"));
    let taken = program.path("file");
    fs::write(&taken, "").unwrap();
    let text = reported(&["--socket", taken.to_str().unwrap()]);
    assert!(text.contains("is no socket"), "{text}");
    let socket = program.path("socket");
    let text = reported(&[
        "--socket",
        socket.to_str().unwrap(),
        "--socket-group",
        "no-such-group",
    ]);
    assert!(text.contains("no group no-such-group"), "{text}");
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_signal_ends_it_while_a_guest_is_connected() {
    let program = Program::new();
    let mut running = program.start(&[]);
    let mut guest = program.guest();
    guest.look_up(ROOT, "small");
    let id = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let ended = loop {
        match running.0.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => panic!("it does not end"),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut log = String::new();
    running
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert!(ended.success(), "{ended}: {log}");
}

/// Descriptors of the process that serves.
fn descriptors(running: &Running) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", running.worker()));
    all.unwrap().count()
}

/// As an ordinary user, which owns nothing but may read the store; and without a descriptor for
/// what a guest knows.
#[test]
fn an_ordinary_user_serves_and_holds_no_descriptor_for_a_file() {
    let dirs = (0..40).map(|n| {
        let files = (0..25).map(|n| (format!("{n}"), file(format!("{n}"))));
        (format!("dir-{n}"), directory(files))
    });
    let program = Program::of(&directory(dirs));
    let ordinary = |command: &mut Command| {
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
    };
    open_to_all(program.dir.path());
    let running = program.start_with(&[], ordinary);
    let user: u32 = status(&running, "Uid")
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert_ne!(user, 0);
    let mut guest = program.guest();
    let before = descriptors(&running);
    for dir in 0..40 {
        let dir = guest.look_up(ROOT, &format!("dir-{dir}"));
        for name in 0..25 {
            let found = guest.look_up(dir.node, &name.to_string());
            assert_eq!(
                guest.content(found.node, found.size),
                name.to_string().as_bytes()
            );
        }
    }
    let after = descriptors(&running);
    assert!(after <= before + 4, "{before} descriptors became {after}");
}

fn open_to_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = if path.is_dir() { 0o777 } else { 0o666 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if path.is_dir() {
            open_to_all(&path);
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn metrics_are_served_like_those_of_the_service() {
    use std::io::Write;
    let program = Program::new();
    let socket = program.path("metrics");
    let address = format!("unix:{}", socket.display());
    let running = program.start(&["--metrics", &address]);
    let mut guest = program.guest();
    guest.look_up(ROOT, "small");
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let text = ask();
    for line in [
        "castore_fs_virtiofs_guests{name=\"0\"} 1\n",
        "castore_fs_requests_total{transport=\"virtiofs\",name=\"0\",kind=\"LOOKUP\"} 1\n",
        "castore_fs_store_blobs{store=\"store\"} 2\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    // Timed once the reply is out, which the guest may see first.
    let timed =
        "castore_fs_request_seconds_count{transport=\"virtiofs\",name=\"0\",kind=\"LOOKUP\"} 1\n";
    let until = Instant::now() + Duration::from_secs(10);
    while !ask().contains(timed) {
        assert!(Instant::now() < until, "{timed} in {}", ask());
    }
    // The next process serves them as well.
    running.kill_worker();
    guest.look_up(ROOT, "small");
    assert!(ask().contains("castore_fs_virtiofs_guests{name=\"0\"} 1\n"));
}
