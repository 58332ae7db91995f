//! The parent process, which holds guests' connections while the workers that serve them come and go.
//!
//! A guest cannot connect to its device a second time, so another process has to hold the
//! connection when the worker dies. For the service that is systemd; here it is the parent. It
//! serves no guest, reads nothing that a guest wrote, and does three things: it holds descriptors,
//! it starts a worker (this program once more), and when that dies another one.
//!
//! They communicate over the worker's standard input, a socket pair of messages: first the parent
//! passes the sockets to serve and the hand-over state of earlier workers, then the worker sends
//! what is to be held from now on. A message arrives even if the worker dies right after sending
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

use crate::quantity::count;
use crate::transport::virtiofs::DescriptorHolder;
use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::super::failure::{CommandFailure, failure, print_error};
use super::super::interrupt::on_interrupt;
use super::descriptors::{receive, send};

/// Marks a process of this program as a worker.
const WORKER: &str = "CASTORE_FS_VIRTIOFS_WORKER";
/// How long to wait before the next worker, as in the service's unit: guests wait, too.
const PAUSE: Duration = Duration::from_millis(20);
/// As long, at most, when one after the other cannot start to serve.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a worker receives.
#[derive(Default)]
pub(super) struct ReceivedDescriptors {
    /// Sockets to serve, in the order of the command line.
    pub(super) sockets: Vec<OwnedFd>,
    /// The socket of metrics.
    pub(super) metrics: Option<OwnedFd>,
    /// The hand-over state of earlier workers, by name.
    pub(super) hand_over_state: BTreeMap<String, OwnedFd>,
}

/// Runs workers until one has ended regularly; calls `ready` with the store's URL when guests can
/// connect to the first.
pub(super) fn run(
    mut received: ReceivedDescriptors,
    ready: impl FnOnce(&str),
) -> Result<(), CommandFailure> {
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
    let mut pause = PAUSE;
    loop {
        let (mut child, link) = start(&received)?;
        *worker.lock() = Some(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?);
        if stopping.load(Ordering::Relaxed) {
            let _ = child.kill();
        }
        let mut serves = false;
        listen(&link, &mut received, |url| {
            serves = true;
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
                Some(_) => CommandFailure::Reported,
                None => failure(format!("the process that serves {}", words(ended))),
            });
        }
        print_error(&format!(
            "the worker {}; another takes over {}",
            words(ended),
            count(received.hand_over_state.len() as u64, "guest", "guests")
        ));
        pause = match serves {
            true => PAUSE,
            false => (2 * pause).min(LONGEST_PAUSE),
        };
        std::thread::sleep(pause);
    }
}

fn words(ended: ExitStatus) -> String {
    match (ended.signal(), ended.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, code) => format!("ended with status {}", code.unwrap_or_default()),
    }
}

fn start(received: &ReceivedDescriptors) -> Result<(Child, OwnedFd), CommandFailure> {
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
        for socket in &received.sockets {
            send(&link, "socket", Some(socket.as_fd()))?;
        }
        if let Some(metrics) = &received.metrics {
            send(&link, "metrics", Some(metrics.as_fd()))?;
        }
        for (name, descriptor) in &received.hand_over_state {
            send(
                &link,
                &format!("hand-over-state {name}"),
                Some(descriptor.as_fd()),
            )?;
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
fn listen(link: &OwnedFd, received: &mut ReceivedDescriptors, mut ready: impl FnMut(&str)) {
    loop {
        let (text, descriptor) = match receive(link) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return print_error(&format!("the worker process: {error}")),
        };
        match (text.split_once(' '), descriptor) {
            (Some(("hold", name)), Some(descriptor)) => {
                received.hand_over_state.insert(name.to_owned(), descriptor);
            }
            (Some(("forget", name)), _) => drop(received.hand_over_state.remove(name)),
            (Some(("ready", url)), _) => ready(url),
            _ => print_error("unexpected message from the worker process"),
        }
    }
}

/// The parent, as the worker sees it.
#[derive(Clone)]
pub(super) struct ParentChannel(Arc<OwnedFd>);

impl ParentChannel {
    /// The parent of this process, if it is a worker; and what it passed.
    pub(super) fn of_worker() -> Result<Option<(Self, ReceivedDescriptors)>, CommandFailure> {
        if std::env::var_os(WORKER).is_none() {
            return Ok(None);
        }
        let link = rustix::stdio::stdin().try_clone_to_owned()?;
        fcntl_setfd(&link, FdFlags::CLOEXEC)?;
        let mut received = ReceivedDescriptors::default();
        loop {
            let Some((text, descriptor)) = receive(&link)? else {
                return Err(failure("the process that started this one has died"));
            };
            match (text.split_once(' '), descriptor) {
                (Some(("hand-over-state", name)), Some(descriptor)) => {
                    received.hand_over_state.insert(name.to_owned(), descriptor);
                }
                (None, Some(descriptor)) if text == "socket" => received.sockets.push(descriptor),
                (None, Some(descriptor)) if text == "metrics" => {
                    received.metrics = Some(descriptor)
                }
                (None, None) if text == "all" => return Ok(Some((Self(Arc::new(link)), received))),
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

    /// The holder for guests of the `number`-th socket.
    pub(super) fn holder(&self, number: usize) -> Arc<dyn DescriptorHolder> {
        Arc::new(SocketHolder {
            parent: self.clone(),
            number,
        })
    }
}

struct SocketHolder {
    parent: ParentChannel,
    number: usize,
}

impl SocketHolder {
    fn send_request(
        &self,
        verb: &str,
        name: &str,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let text = format!("{verb} {}/{name}", self.number);
        send(&*self.parent.0, &text, descriptor)
    }
}

impl DescriptorHolder for SocketHolder {
    fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send_request("hold", name, Some(descriptor))
    }

    fn forget(&self, name: &str) {
        // A parent that has died holds nothing.
        let _ = self.send_request("forget", name, None);
    }
}

/// Takes the entries of the `number`-th socket's guests out of `hand_over_state`.
pub(super) fn of_socket(
    hand_over_state: &mut BTreeMap<String, OwnedFd>,
    number: usize,
) -> Vec<(String, OwnedFd)> {
    let prefix = format!("{number}/");
    let all = std::mem::take(hand_over_state);
    let mut of_socket = Vec::new();
    for (name, descriptor) in all {
        match name.strip_prefix(&prefix) {
            Some(name) => of_socket.push((name.to_owned(), descriptor)),
            None => drop(hand_over_state.insert(name, descriptor)),
        }
    }
    of_socket
}
