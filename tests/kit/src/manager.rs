//! The part of systemd that these tests need: reads notifications, keeps
//! descriptors, and starts the service again with them.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::program::program;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// The first descriptor that is passed on.
const FIRST: i32 = 3;
/// Where descriptors are between fork and exec, out of the way of their final numbers.
const ASIDE: i32 = 200;

#[derive(Default)]
struct Received {
    /// Every assignment, in order.
    messages: Vec<String>,
    kept: BTreeMap<String, OwnedFd>,
}

/// A service manager with one service.
pub struct Manager {
    dir: tempfile::TempDir,
    received: Arc<(Mutex<Received>, Condvar)>,
    config: PathBuf,
    child: Option<Child>,
    watchdog: Option<Duration>,
    /// Passed on at the first start, beside what is kept.
    passed_descriptors: Vec<(String, OwnedFd)>,
    user: Option<u32>,
}

impl Manager {
    /// The service with this configuration; `@` stands for the test's directory.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let received = Arc::new((Mutex::default(), Condvar::new()));
        let sender = received.clone();
        std::thread::spawn(move || listen(&socket, &sender));
        let manager = Self {
            config: dir.path().join("config.toml"),
            dir,
            received,
            child: None,
            watchdog: None,
            passed_descriptors: Vec::new(),
            user: None,
        };
        manager.configure(config);
        manager
    }

    pub fn with_watchdog(mut self, every: Duration) -> Self {
        self.watchdog = Some(every);
        self
    }

    /// Passes `descriptor` on as `name`, at the next start only.
    pub fn give(&mut self, name: &str, descriptor: OwnedFd) {
        self.passed_descriptors.push((name.to_owned(), descriptor));
    }

    /// Runs the service as this user, which becomes the owner of the directory.
    pub fn become_user(&mut self, user: u32) {
        let dir = self.dir.path();
        let owned = Command::new("chown")
            .args(["-R", &format!("{user}:{user}")])
            .arg(dir)
            .status();
        assert!(owned.unwrap().success());
        self.user = Some(user);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn configure(&self, config: &str) {
        let dir = self.dir.path().to_str().unwrap();
        let control = format!("[control]\nsocket = '{dir}/control'\n");
        std::fs::write(&self.config, config.replace('@', dir) + &control).unwrap();
    }

    /// Puts `dir` into the store at `store`, by another process, as `name`.
    pub fn import(&self, dir: &Path, name: &str) {
        let store = format!("local:{}", self.join("store").display());
        let imported = Command::new(program())
            .args(["import", "--store", &store, "--name", name])
            .arg(dir)
            .output()
            .unwrap();
        assert!(imported.status.success(), "{imported:?}");
    }

    /// Starts the service, with the kept descriptors.
    pub fn start(&mut self) {
        let mut command = Command::new("sh");
        command
            .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
            .arg(program())
            .args(["daemon", "--config"])
            .arg(&self.config)
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env("RUNTIME_DIRECTORY", self.dir.path())
            .env("STATE_DIRECTORY", self.dir.path().join("state"))
            .stdout(Stdio::null());
        if let Ok(log) = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.join("log"))
        {
            command.stderr(log);
        }
        if let Some(every) = self.watchdog {
            command.env("WATCHDOG_USEC", every.as_micros().to_string());
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let received = self.received.0.lock().unwrap();
        let passed_descriptors = std::mem::take(&mut self.passed_descriptors);
        let kept = received.kept.iter().chain(
            passed_descriptors
                .iter()
                .map(|(name, passed_descriptors)| (name, passed_descriptors)),
        );
        let (names, numbers): (Vec<&str>, Vec<i32>) = kept
            .map(|(name, kept)| (name.as_str(), kept.as_raw_fd()))
            .unzip();
        if !names.is_empty() {
            command
                .env("LISTEN_FDS", names.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let place = move || {
            // First out of the way, since the numbers may overlap.
            for (at, number) in numbers.iter().enumerate() {
                // SAFETY: dup2 is async-signal-safe, and the descriptors are open.
                unsafe { libc::dup2(*number, ASIDE + at as i32) };
            }
            for at in 0..numbers.len() as i32 {
                // SAFETY: as above.
                unsafe {
                    libc::dup2(ASIDE + at, FIRST + at);
                    libc::close(ASIDE + at);
                }
            }
            Ok(())
        };
        // SAFETY: the closure calls nothing but dup2 and close, and allocates nothing.
        unsafe { command.pre_exec(place) };
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the service and waits until it is ready.
    pub fn start_and_wait(&mut self) {
        let before = self.count("READY=1");
        self.start();
        self.wait_for("READY=1", before + 1);
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Waits for the service's end; whether it ended well.
    pub fn wait(&mut self) -> bool {
        self.child.take().unwrap().wait().unwrap().success()
    }

    /// Ends it as suddenly as can be.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    pub fn count(&self, message: &str) -> usize {
        let received = self.received.0.lock().unwrap();
        received
            .messages
            .iter()
            .filter(|received| *received == message)
            .count()
    }

    pub fn messages(&self) -> Vec<String> {
        self.received.0.lock().unwrap().messages.clone()
    }

    pub fn kept(&self) -> Vec<String> {
        self.received
            .0
            .lock()
            .unwrap()
            .kept
            .keys()
            .cloned()
            .collect()
    }

    /// Closes every kept descriptor.
    pub fn forget_everything(&self) {
        self.received.0.lock().unwrap().kept.clear();
    }

    /// A duplicate of a kept descriptor.
    pub fn held_descriptor(&self, name: &str) -> OwnedFd {
        let received = self.received.0.lock().unwrap();
        received.kept[name].try_clone().unwrap()
    }

    /// Waits until `message` was received `times` times.
    pub fn wait_for(&mut self, message: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.count(message) < times {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("the service ended: {status}\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "no {message}: {}", self.log());
            let received = self.received.0.lock().unwrap();
            drop(
                self.received
                    .1
                    .wait_timeout(received, Duration::from_millis(5)),
            );
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.join("log")).unwrap_or_default()
    }

    /// The output of `castore-fs status --json`.
    pub fn status(&self) -> serde_json::Value {
        let output = Command::new(program())
            .args(["status", "--json", "--socket"])
            .arg(self.join("control"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.log());
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Without its descriptors a mount is dead, and access to it fails instead of hanging.
        self.received.0.lock().unwrap().kept.clear();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let dir = self.dir.path().to_str().unwrap();
        for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if place.starts_with(dir) {
                let _ = Command::new("umount").args(["--lazy", place]).status();
            }
        }
    }
}

fn listen(socket: &UnixDatagram, received: &(Mutex<Received>, Condvar)) {
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let Ok(message) = message else { return };
        let descriptor = ancillary.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = String::from_utf8_lossy(&bytes[..message.bytes]).into_owned();
        let assignments: Vec<String> = text.lines().map(str::to_owned).collect();
        let name = assignments
            .iter()
            .find_map(|line| line.strip_prefix("FDNAME="));
        let mut guard = received.0.lock().unwrap();
        let has = |wanted: &str| assignments.iter().any(|line| line == wanted);
        match (name, descriptor) {
            (Some(name), Some(descriptor)) if has("FDSTORE=1") => {
                guard.kept.insert(name.to_owned(), descriptor);
            }
            (Some(name), _) if has("FDSTOREREMOVE=1") => {
                guard.kept.remove(name);
            }
            // A barrier's descriptor is closed here, which is its answer.
            _ => {}
        }
        guard.messages.extend(assignments);
        received.1.notify_all();
    }
}
