//! The notifier: notifications to the kernel, sent by a process of their own.
//!
//! **Problem.** The kernel handles a notification in the write(2) that brings it, and may have to
//! wait there: for a page or a directory that a program has locked while it waits for the answer to
//! its own request. That wait cannot be killed. A process that dies in it ends only once the
//! request is answered, which no process does any more: its descriptors stay open, systemd starts
//! no next process, and readers hang for ever. So a process with requests to answer must never
//! write a notification.
//!
//! **Mechanism.** A helper process does:
//!
//! - The *nursery* (a fork server) is forked from this process while that has one thread, and does
//!   nothing but fork: a helper for each channel.
//! - A *helper* writes the messages of its channel to the device. It may be stuck; the request it
//!   waits for is answered by this process, or by the next one if this process died, and then it
//!   ends.
//! - If there will be no next process, the nursery has the device too. If this process dies and a
//!   helper does not end, the nursery fails the remaining requests, so that the connection can end
//!   with the last of them.
//!
//! **Invariants.** Helpers hold no descriptor but their channel's and the one that comes with a
//! message. They end when their channel is closed; so a unit file must not make systemd wait for
//! them (`KillMode=process`).
//!
//! Without a nursery (a program that embeds this library and has threads already) notifications are
//! written here, with the danger described above.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::OutHeader;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use vm_memory::ByteValued;

use super::{device, mounter};
use crate::fs::{NodeId, PageCache};

/// `enum fuse_notify_code` of the kernel's `fuse.h`.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const STORE: i32 = 4;
const RESEND: i32 = 7;
/// The longest message: a small file's contents and what goes before them.
const LONGEST: usize = (128 << 10) + 4096;
/// How long helpers have to end by themselves before the remaining requests are failed.
const GRACE: Duration = Duration::from_millis(300);
/// Messages to the nursery: a channel to serve, a device without a next process.
const CHANNEL: u8 = b'c';
const UNKEPT: u8 = b'u';
/// And a channel of one that mounts and unmounts.
const MOUNTER: u8 = b'm';
/// What the processes are called that this file makes.
pub(super) const HELPERS: [&str; 2] = ["notices", "mounter"];

/// `struct fuse_notify_store_out` of the kernel's `fuse.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct StoreOut {
    node: u64,
    offset: u64,
    size: u32,
    padding: u32,
}

/// `struct fuse_notify_inval_inode_out`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct InvalInodeOut {
    node: u64,
    offset: i64,
    length: i64,
}

/// `struct fuse_notify_inval_entry_out`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct InvalEntryOut {
    parent: u64,
    length: u32,
    flags: u32,
}

// SAFETY: plain integers without padding between them.
unsafe impl ByteValued for StoreOut {}
// SAFETY: as above.
unsafe impl ByteValued for InvalInodeOut {}
// SAFETY: as above.
unsafe impl ByteValued for InvalEntryOut {}

/// The fork server of helpers.
#[derive(Debug)]
pub struct Nursery(OwnedFd);

impl Nursery {
    /// Forks it. Refused (`Unsupported`) unless this process has one thread: a copy of one with
    /// more could find locks held for ever.
    pub fn start() -> io::Result<Self> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            let why = "this process has several threads already";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let (ours, theirs) = pair()?;
        // SAFETY: there is one thread, so that the child is whole.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                become_helper(&theirs, c"notices");
                nurse(theirs)
            }
            _ => Ok(Self(ours)),
        }
    }

    /// A new channel, with a helper at its other end.
    fn channel(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        send(&self.0, &[IoSlice::new(&[CHANNEL])], theirs.as_fd())?;
        Ok(ours)
    }

    /// A new channel, with a helper at its other end that mounts or unmounts ([`mounter`]).
    pub(super) fn mounter(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        send(&self.0, &[IoSlice::new(&[MOUNTER])], theirs.as_fd())?;
        Ok(ours)
    }

    /// Makes requests on `device` fail, if need be, when this process dies: no other takes over.
    fn leave_unkept(&self, device: &OwnedFd) -> io::Result<()> {
        send(&self.0, &[IoSlice::new(&[UNKEPT])], device.as_fd())
    }
}

/// The notifications of a mount.
pub(super) struct Notices {
    device: Arc<OwnedFd>,
    /// A helper's channel; without one they are written here.
    channel: Option<OwnedFd>,
    complained: AtomicBool,
}

impl Notices {
    /// For `device`, by a helper from `nursery`.
    pub(super) fn new(device: Arc<OwnedFd>, nursery: Option<&Nursery>) -> io::Result<Self> {
        Ok(Self {
            channel: nursery.map(Nursery::channel).transpose()?,
            device,
            complained: AtomicBool::new(false),
        })
    }

    /// Makes the kernel drop `name` in the directory `parent`.
    pub(super) fn inval_entry(&self, parent: NodeId, name: &[u8]) {
        let body = InvalEntryOut {
            parent: parent.into(),
            length: name.len() as u32,
            flags: 0,
        };
        self.tell(INVAL_ENTRY, body.as_slice(), &[name, b"\0"].concat());
    }

    /// Makes the kernel drop the cached pages of `node`: of a directory, its listing.
    pub(super) fn inval_inode(&self, node: NodeId) {
        let body = InvalInodeOut {
            node: node.into(),
            ..InvalInodeOut::default()
        };
        self.tell(INVAL_INODE, body.as_slice(), &[]);
    }

    /// Sends a notification. It is no failure if the kernel has nothing to drop.
    fn tell(&self, code: i32, body: &[u8], rest: &[u8]) {
        let header = OutHeader {
            len: (size_of::<OutHeader>() + body.len() + rest.len()) as u32,
            error: code,
            unique: 0,
        };
        let message = [
            IoSlice::new(header.as_slice()),
            IoSlice::new(body),
            IoSlice::new(rest),
        ];
        let Some(channel) = &self.channel else {
            let _ = rustix::io::writev(&*self.device, &message);
            return;
        };
        if let Err(error) = send(channel, &message, self.device.as_fd())
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "the helper that notifies the kernel has died");
        }
    }

    /// Waits until the kernel has handled every notification.
    pub(super) fn settle(&self) {
        let Some(channel) = &self.channel else {
            return;
        };
        // An empty message is answered by one byte, after all before it.
        if send(channel, &[IoSlice::new(&[])], self.device.as_fd()).is_ok() {
            let mut byte = [0];
            while matches!(
                rustix::io::read(channel, &mut byte),
                Err(rustix::io::Errno::INTR)
            ) {}
        }
    }
}

impl PageCache for Notices {
    fn store(&self, node: NodeId, contents: &[u8]) {
        let body = StoreOut {
            node: node.into(),
            size: contents.len() as u32,
            ..StoreOut::default()
        };
        self.tell(STORE, body.as_slice(), contents);
    }

    fn drop_listing(&self, node: NodeId) {
        self.inval_inode(node);
    }

    fn drop_range(&self, node: NodeId, offset: u64, length: u64) {
        let body = InvalInodeOut {
            node: node.into(),
            offset: offset.cast_signed(),
            length: length.cast_signed(),
        };
        self.tell(INVAL_INODE, body.as_slice(), &[]);
    }

    fn settle(&self) {
        self.settle();
    }
}

/// Makes the kernel send again the requests that were read from `device` and not answered. This
/// notification does not wait.
pub(super) fn resend(device: &OwnedFd) -> io::Result<()> {
    let header = OutHeader {
        len: size_of::<OutHeader>() as u32,
        error: RESEND,
        unique: 0,
    };
    rustix::io::write(device, header.as_slice())?;
    Ok(())
}

/// Tells `nursery` that no process takes over the mount of `device` when this process dies.
pub(super) fn leave_unkept(nursery: Option<&Nursery>, device: &OwnedFd) {
    if let Some(nursery) = nursery
        && let Err(error) = nursery.leave_unkept(device)
    {
        tracing::error!(%error, "the process that makes helpers is gone");
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // As far as the system allows; its default holds one message of any length.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&pair.0, 1 << 20);
    Ok(pair)
}

/// Sends a message and a descriptor.
fn send(socket: &OwnedFd, message: &[IoSlice<'_>], with: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let with = [with];
    ancillary.push(SendAncillaryMessage::ScmRights(&with));
    loop {
        match rustix::net::sendmsg(socket, message, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome.map(drop).map_err(io::Error::from),
        }
    }
}

/// A message and its descriptor; nothing when the other end is closed.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, OwnedFd)> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags);
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        };
        // Every message has a descriptor, the empty one too; the end has none.
        return ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => {
                descriptors.next().map(|descriptor| (length, descriptor))
            }
            _ => None,
        });
    }
}

// The rest runs in processes of their own, each with one thread.

/// Closes everything but `socket`, and ignores the signals that are meant for the parent.
fn become_helper(socket: &OwnedFd, name: &std::ffi::CStr) {
    let keep = socket.as_raw_fd();
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    close_all_but(keep);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(name);
}

fn close_all_but(keep: RawFd) {
    let keep = keep as libc::c_uint;
    let close = |from: libc::c_uint, to: libc::c_uint| {
        if from <= to {
            // SAFETY: the owners of these descriptors in this process are never used again.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    close(3, keep.saturating_sub(1));
    close(keep.max(2) + 1, libc::c_uint::MAX);
}

fn end() -> ! {
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Forks a helper for each channel, until the parent is gone.
fn nurse(socket: OwnedFd) -> ! {
    let mut unkept = Vec::new();
    let mut word = [0];
    while let Some((_, descriptor)) = receive(&socket, &mut word) {
        match word[0] {
            // SAFETY: this process has one thread.
            CHANNEL => match unsafe { libc::fork() } {
                0 => {
                    become_helper(&descriptor, c"notices");
                    help(&descriptor)
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
            UNKEPT => unkept.push(descriptor),
            _ => {}
        }
        reap();
    }
    if !unkept.is_empty() {
        fail_what_is_left(&unkept);
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

/// Writes the messages of the channel to the devices, until it is closed.
fn help(channel: &OwnedFd) -> ! {
    let mut message = vec![0; LONGEST];
    while let Some((length, device)) = receive(channel, &mut message) {
        match message.get(..length) {
            Some([]) => drop(rustix::io::write(channel, &[0])),
            // A failure only means that the kernel does not know the node any more.
            Some(message) => drop(rustix::io::write(&device, message)),
            None => {}
        }
    }
    end()
}

/// Answers EIO to every request on `devices` for as long as a helper is stuck behind one.
fn fail_what_is_left(devices: &[OwnedFd]) {
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
                let _ = resend(device);
            }
            let mut polled = [PollFd::new(device, PollFlags::IN)];
            while rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|n| n > 0)
                && polled[0].revents().contains(PollFlags::IN)
            {
                let Ok(device::Received::Request(length)) = device::receive(device, &mut request)
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
