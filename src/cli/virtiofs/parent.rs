//! The parent process, which keeps guests while the workers that serve them come and go.
//!
//! A guest cannot connect to its device a second time, so another process has to hold the
//! connection when the worker dies. For the service that is systemd; here it is the parent. It
//! serves no guest, reads nothing that a guest wrote, and does three things: it holds descriptors,
//! it starts a worker (this program once more), and when that dies another one.
//!
//! They communicate over the worker's standard input, a socket pair of messages: first the parent
//! passes the sockets to serve and the hand-over state of earlier workers, then the worker sends
//! what is to be kept from now on. A message arrives even if the worker dies right after sending
//! it.
//!
//! If the parent dies, the worker continues with its guests, accepts no more, and ends with the
//! last of them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use castore_fs::transport::virtiofs::Keeper;
use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::super::failure::{Failure, failure, say};
use super::super::interrupt::on_interrupt;
use super::passing::{receive, send};

/// Marks a process of this program as a worker.
const WORKER: &str = "CASTORE_FS_VIRTIOFS_WORKER";
/// How long to wait before the next worker, as in the service's unit: guests wait, too.
const PAUSE: Duration = Duration::from_millis(20);

/// What a worker receives.
#[derive(Default)]
pub(super) struct Given {
    /// Sockets to serve, in the order of the command line.
    pub(super) sockets: Vec<OwnedFd>,
    /// The socket of metrics.
    pub(super) metrics: Option<OwnedFd>,
    /// The hand-over state of earlier workers, by name.
    pub(super) kept: BTreeMap<String, OwnedFd>,
}

/// Runs workers until one has ended regularly; calls `ready` with the store's URL when guests can
/// connect to the first.
pub(super) fn run(mut given: Given, ready: impl FnOnce(&str)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let stopping = Arc::new(AtomicBool::new(false));
    let worker: Arc<Mutex<Option<OwnedFd>>> = Arc::default();
    let (stop, current) = (stopping.clone(), worker.clone());
    on_interrupt(&runtime, move || {
        stop.store(true, Ordering::Relaxed);
        if let Some(worker) = current.lock().as_ref() {
            // One that has just ended needs no signal.
            let _ = pidfd_send_signal(worker, Signal::TERM);
        }
    })?;
    let mut ready = Some(ready);
    loop {
        let (mut child, link) = start(&given)?;
        *worker.lock() = Some(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?);
        if stopping.load(Ordering::Relaxed) {
            let _ = child.kill();
        }
        listen(&link, &mut given, |url| {
            if let Some(ready) = ready.take() {
                ready(url);
            }
        });
        let ended = child.wait()?;
        *worker.lock() = None;
        if stopping.load(Ordering::Relaxed) || ended.success() {
            return Ok(());
        }
        if ready.is_some() {
            return Err(match ended.code() {
                // It has printed the reason.
                Some(_) => Failure::Reported,
                None => failure(format!("the process that serves {}", words(ended))),
            });
        }
        say(&format!(
            "the worker {}; another takes over {} guests",
            words(ended),
            given.kept.len()
        ));
        std::thread::sleep(PAUSE);
    }
}

fn words(ended: ExitStatus) -> String {
    match (ended.signal(), ended.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, code) => format!("ended with status {}", code.unwrap_or_default()),
    }
}

fn start(given: &Given) -> Result<(Child, OwnedFd), Failure> {
    let (link, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(WORKER, "1")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .stdin(theirs)
        // The terminal's signals are for the parent, which passes them on.
        .process_group(0)
        .spawn()
        .map_err(|error| failure(format!("cannot start a process to serve: {error}")))?;
    let hand_over = || -> io::Result<()> {
        for socket in &given.sockets {
            send(&link, "socket", Some(socket.as_fd()))?;
        }
        if let Some(metrics) = &given.metrics {
            send(&link, "metrics", Some(metrics.as_fd()))?;
        }
        for (name, descriptor) in &given.kept {
            send(&link, &format!("kept {name}"), Some(descriptor.as_fd()))?;
        }
        send(&link, "all", None)
    };
    match hand_over() {
        // It has died already, which is noticed soon.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok((child, link)),
    }
}

/// Handles the worker's messages until it has died.
fn listen(link: &OwnedFd, given: &mut Given, mut ready: impl FnMut(&str)) {
    loop {
        let (text, descriptor) = match receive(link) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return say(&format!("the worker process: {error}")),
        };
        match (text.split_once(' '), descriptor) {
            (Some(("keep", name)), Some(descriptor)) => {
                given.kept.insert(name.to_owned(), descriptor);
            }
            (Some(("forget", name)), _) => drop(given.kept.remove(name)),
            (Some(("ready", url)), _) => ready(url),
            _ => say("unexpected message from the worker process"),
        }
    }
}

/// The parent, as the worker sees it.
#[derive(Clone)]
pub(super) struct Parent(Arc<OwnedFd>);

impl Parent {
    /// The parent of this process, if it is a worker; and what it passed.
    pub(super) fn of_worker() -> Result<Option<(Self, Given)>, Failure> {
        if std::env::var_os(WORKER).is_none() {
            return Ok(None);
        }
        let link = rustix::stdio::stdin().try_clone_to_owned()?;
        fcntl_setfd(&link, FdFlags::CLOEXEC)?;
        let mut given = Given::default();
        loop {
            let Some((text, descriptor)) = receive(&link)? else {
                return Err(failure("the process that started this one has died"));
            };
            match (text.split_once(' '), descriptor) {
                (Some(("kept", name)), Some(descriptor)) => {
                    given.kept.insert(name.to_owned(), descriptor);
                }
                (None, Some(descriptor)) if text == "socket" => given.sockets.push(descriptor),
                (None, Some(descriptor)) if text == "metrics" => given.metrics = Some(descriptor),
                (None, None) if text == "all" => return Ok(Some((Self(Arc::new(link)), given))),
                _ => return Err(failure("this variable is for castore-fs itself")),
            }
        }
    }

    /// Reports that guests can connect, and the URL of their store.
    pub(super) fn ready(&self, url: &str) {
        // Its death is noticed elsewhere.
        let _ = send(&*self.0, &format!("ready {url}"), None);
    }

    /// Returns when it has died.
    pub(super) fn wait_for_death(&self) {
        while let Ok(Some(_)) = receive(&*self.0) {}
    }

    /// The keeper for guests of the `number`-th socket.
    pub(super) fn keeper(&self, number: usize) -> Arc<dyn Keeper> {
        Arc::new(ForSocket {
            parent: self.clone(),
            number,
        })
    }
}

struct ForSocket {
    parent: Parent,
    number: usize,
}

impl ForSocket {
    fn tell(&self, verb: &str, name: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = format!("{verb} {}/{name}", self.number);
        send(&*self.parent.0, &text, descriptor)
    }
}

impl Keeper for ForSocket {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.tell("keep", name, Some(descriptor))
    }

    fn forget(&self, name: &str) {
        // A parent that has died keeps nothing.
        let _ = self.tell("forget", name, None);
    }
}

/// Takes the entries of the `number`-th socket's guests out of `kept`.
pub(super) fn of_socket(
    kept: &mut BTreeMap<String, OwnedFd>,
    number: usize,
) -> Vec<(String, OwnedFd)> {
    let prefix = format!("{number}/");
    let all = std::mem::take(kept);
    let mut of_socket = Vec::new();
    for (name, descriptor) in all {
        match name.strip_prefix(&prefix) {
            Some(name) => of_socket.push((name.to_owned(), descriptor)),
            None => drop(kept.insert(name, descriptor)),
        }
    }
    of_socket
}
