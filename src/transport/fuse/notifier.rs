//! The notifier: notifications to the kernel, sent by a process of their own.
//!
//! **Problem.** The kernel handles a notification in the write(2) that brings it, and may have to
//! wait there: for a page or a directory that a program has locked while it waits for the answer to
//! its own request. That wait cannot be killed. A process that dies in it ends only once the
//! request is answered, which no process does any more: its descriptors stay open, systemd starts
//! no next process, and readers hang for ever. So a process with requests to answer must never
//! write a notification.
//!
//! **Mechanism.** A helper of the [`ForkServer`](super::ForkServer) writes the messages of its channel
//! to the device. It may be stuck; the request it waits for is answered by this process, or by the next
//! one if this process died, and then it ends.
//!
//! **Invariant.** Without a helper (a program that embeds this library and has threads already)
//! notifications are written here, with the danger described above. No other place writes one, except
//! [`resend`], which does not wait.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::OutHeader;
use vm_memory::ByteValued;

use super::helper_channel::{receive, send};
use crate::fs::{NodeId, PageCache, RootChanges};

/// `enum fuse_notify_code` of the kernel's `fuse.h`.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const STORE: i32 = 4;
const RESEND: i32 = 7;
/// `FUSE_EXPIRE_ONLY`: the name is looked up again, and dropped if it is another node then (Linux 6.2).
const EXPIRE_ONLY: u32 = 1;
/// The longest message: a small file's contents and what goes before them.
const LONGEST: usize = (128 << 10) + 4096;
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

/// The notifications of a mount.
pub(super) struct Notifier {
    device: Arc<OwnedFd>,
    /// A helper's channel; without one they are written here.
    channel: Option<OwnedFd>,
    complained: AtomicBool,
}

impl Notifier {
    /// For `device`, by the helper at the other end of `channel`.
    pub(super) fn new(device: Arc<OwnedFd>, channel: Option<OwnedFd>) -> Self {
        Self {
            channel,
            device,
            complained: AtomicBool::new(false),
        }
    }

    /// Makes the kernel drop what is stale of the mount root after `changes`.
    pub(super) fn inval_changes(&self, changes: &RootChanges) {
        for name in &changes.stale {
            self.inval_entry(NodeId::ROOT, name.as_bytes());
        }
        if changes.listing {
            self.inval_inode(NodeId::ROOT);
        }
    }

    /// Makes the kernel drop `name` in the directory `parent`.
    pub(super) fn inval_entry(&self, parent: NodeId, name: &[u8]) {
        self.drop_entry(parent, name, 0);
    }

    /// Makes the kernel look `name` in the directory `parent` up again before it uses what it has.
    pub(super) fn expire_entry(&self, parent: NodeId, name: &[u8]) {
        self.drop_entry(parent, name, EXPIRE_ONLY);
    }

    fn drop_entry(&self, parent: NodeId, name: &[u8], flags: u32) {
        let body = InvalEntryOut {
            parent: parent.into(),
            length: name.len() as u32,
            flags,
        };
        self.send_request(INVAL_ENTRY, body.as_slice(), &[name, b"\0"].concat());
    }

    /// Makes the kernel drop the cached pages of `node`: of a directory, its listing.
    pub(super) fn inval_inode(&self, node: NodeId) {
        let body = InvalInodeOut {
            node: node.into(),
            ..InvalInodeOut::default()
        };
        self.send_request(INVAL_INODE, body.as_slice(), &[]);
    }

    /// Sends a notification. It is no failure if the kernel has nothing to drop.
    fn send_request(&self, code: i32, body: &[u8], rest: &[u8]) {
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

impl PageCache for Notifier {
    fn store(&self, node: NodeId, contents: &[u8]) {
        let body = StoreOut {
            node: node.into(),
            size: contents.len() as u32,
            ..StoreOut::default()
        };
        self.send_request(STORE, body.as_slice(), contents);
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
        self.send_request(INVAL_INODE, body.as_slice(), &[]);
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

/// The work of a helper: writes the messages of the channel to the devices, until it is closed.
pub(super) fn write_notifications(channel: &OwnedFd) {
    let mut message = vec![0; LONGEST];
    while let Some((length, device)) = receive(channel, &mut message) {
        match message.get(..length) {
            Some([]) => drop(rustix::io::write(channel, &[0])),
            // A failure only means that the kernel does not know the node any more.
            Some(message) => drop(rustix::io::write(&device, message)),
            None => {}
        }
    }
}
