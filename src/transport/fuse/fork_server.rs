//! The fork server: makes the helper processes of a mount.
//!
//! **Problem.** Some system calls on a mount wait for the process that serves it, and cannot be killed
//! meanwhile: writing a notification ([`notifier`]), mounting and unmounting an image ([`mounter`]). The
//! server must not make them; and a process with threads cannot fork a copy of itself that is whole.
//!
//! **Mechanism.** The fork server is forked from this process while that has one thread, and does nothing
//! but fork: a helper for each channel that it is sent. If there will be no next process, it has the
//! device too. If this process dies then and a helper does not end, the fork server fails the remaining
//! requests, so that the connection can end with the last of them.
//!
//! **Invariant.** Helpers hold no descriptor but their channel's and those that come with a message, and
//! end when their channel is closed. They may outlive this process; so a unit file must not make systemd
//! wait for them (`KillMode=process`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::helper_channel::{pair, receive, send};
use super::mount_table::name_missing_proc;
use super::{device, mounter, notifier};

/// How long helpers have to end by themselves before the remaining requests are failed.
const GRACE: Duration = Duration::from_millis(300);
/// Messages to the fork server: the channel of a notifier or mounter, and a device that no next process
/// takes over.
const NOTIFIER: u8 = b'c';
const MOUNTER: u8 = b'm';
const NO_NEXT_PROCESS: u8 = b'u';
/// The names of the processes that the fork server makes, its own included.
pub(super) const HELPERS: [&str; 2] = ["notifier", "mounter"];

/// The process that forks helpers.
#[derive(Debug)]
pub struct ForkServer(OwnedFd);

impl ForkServer {
    /// Forks it. Refused (`Unsupported`) unless this process has one thread: a copy of one with
    /// more could find locks held for ever.
    pub fn start() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task");
        if threads.map_err(name_missing_proc)?.count() != 1 {
            let why = "this process has several threads already";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let (ours, theirs) = pair()?;
        // SAFETY: there is one thread, so that the child is whole.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                become_helper(&theirs, c"notifier");
                fork_helpers(theirs)
            }
            _ => Ok(Self(ours)),
        }
    }

    /// A new channel, with a helper at its other end that writes notifications ([`notifier`]).
    pub(super) fn notifier(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        send(&self.0, &[IoSlice::new(&[NOTIFIER])], theirs.as_fd())?;
        Ok(ours)
    }

    /// A new channel, with a helper at its other end that mounts or unmounts ([`mounter`]).
    pub(super) fn mounter(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        send(&self.0, &[IoSlice::new(&[MOUNTER])], theirs.as_fd())?;
        Ok(ours)
    }

    /// Makes requests on `device` fail, if need be, when this process dies, because no other takes over.
    /// That the fork server has died itself is logged.
    pub(super) fn expect_no_next_process(&self, device: &OwnedFd) {
        if let Err(error) = send(&self.0, &[IoSlice::new(&[NO_NEXT_PROCESS])], device.as_fd()) {
            tracing::error!(%error, "the process that makes helpers is gone");
        }
    }
}

// The rest runs in processes of their own, each with one thread.

/// Closes everything but `socket`, and ignores the signals that are meant for the parent.
fn become_helper(socket: &OwnedFd, name: &std::ffi::CStr) {
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    close_all_but(socket.as_raw_fd());
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(name);
}

fn close_all_but(open: RawFd) {
    let open = open as libc::c_uint;
    let close = |from: libc::c_uint, to: libc::c_uint| {
        if from <= to {
            // SAFETY: the owners of these descriptors in this process are never used again.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    close(3, open.saturating_sub(1));
    close(open.max(2) + 1, libc::c_uint::MAX);
}

fn end() -> ! {
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Forks a helper for each channel, until the parent is gone.
fn fork_helpers(socket: OwnedFd) -> ! {
    let mut devices = Vec::new();
    let mut word = [0];
    while let Some((_, descriptor)) = receive(&socket, &mut word) {
        match word[0] {
            // SAFETY: this process has one thread.
            NOTIFIER => match unsafe { libc::fork() } {
                0 => {
                    become_helper(&descriptor, c"notifier");
                    notifier::write_notifications(&descriptor);
                    end()
                }
                // The channel closes, and its user reports that.
                _ => drop(descriptor),
            },
            // SAFETY: as above.
            MOUNTER => match unsafe { libc::fork() } {
                0 => {
                    become_helper(&descriptor, c"mounter");
                    mounter::work(&descriptor);
                    end()
                }
                _ => drop(descriptor),
            },
            NO_NEXT_PROCESS => {
                devices.retain(device::is_mounted);
                devices.push(descriptor);
            }
            _ => {}
        }
        reap();
    }
    if !devices.is_empty() {
        fail_remaining_requests(&devices);
    }
    end()
}

/// Reaps helpers that have ended; returns whether there are others.
fn reap() -> bool {
    loop {
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => return true,
            -1 => return false,
            _ => {}
        }
    }
}

/// Answers EIO to every request on `devices` for as long as a helper is stuck behind one.
fn fail_remaining_requests(devices: &[OwnedFd]) {
    let died = Instant::now();
    let mut request = vec![0; device::REQUEST_BYTES];
    let mut asked = false;
    while reap() {
        std::thread::sleep(Duration::from_millis(10));
        if died.elapsed() < GRACE {
            continue;
        }
        for device in devices {
            if !asked {
                let _ = notifier::resend(device);
            }
            let mut polled = [PollFd::new(device, PollFlags::IN)];
            while rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|n| n > 0)
                && polled[0].revents().contains(PollFlags::IN)
            {
                let Ok(device::ReceivedRequest::Request(length)) =
                    device::receive(device, &mut request)
                else {
                    break;
                };
                if let Some(header) = device::header(&request[..length]) {
                    let _ = device::reply_error(device, header.unique, libc::EIO);
                }
            }
        }
        asked = true;
    }
}
