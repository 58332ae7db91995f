//! `/dev/fuse`: reading requests and writing replies, whole messages at a time.

use std::io;
use std::os::fd::OwnedFd;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vm_memory::ByteValued;

/// The smallest buffer that the kernel accepts for a read, in bytes. With `max_write` at its
/// minimum no request is larger; data flows only the other way.
pub(super) const REQUEST_BYTES: usize = 8192;
/// Room for a reply: the largest READ and the header.
pub(super) const REPLY_BYTES: usize = (1 << 20) + 4096;

/// The result of a read.
pub(super) enum ReceivedRequest {
    /// A request of this many bytes.
    Request(usize),
    /// Nothing this time: the request was withdrawn, or a signal came.
    Nothing,
    /// The file system is no longer mounted, or its connection was aborted.
    Unmounted,
}

/// Waits for a request.
pub(super) fn receive(device: &OwnedFd, buffer: &mut [u8]) -> io::Result<ReceivedRequest> {
    match rustix::io::read(device, buffer) {
        Ok(length) => Ok(ReceivedRequest::Request(length)),
        // ENOENT: the program that sent it was killed before the request was read.
        Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Ok(ReceivedRequest::Nothing),
        Err(Errno::NODEV | Errno::CONNABORTED) => Ok(ReceivedRequest::Unmounted),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel has a request that was not read yet.
pub(super) fn has_request(device: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(device, PollFlags::IN)];
    rustix::event::poll(&mut wanted, Some(&Timespec::default())).is_ok()
        && wanted[0].revents().contains(PollFlags::IN)
}

/// Whether the descriptor belongs to a mount: one of `/dev/fuse` that was only opened is in error.
pub(super) fn is_mounted(device: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(device, PollFlags::IN)];
    rustix::event::poll(&mut wanted, Some(&Timespec::default())).is_ok()
        && !wanted[0].revents().contains(PollFlags::ERR)
}

/// Sends a reply without a body.
pub(super) fn reply_error(device: &OwnedFd, unique: u64, errno: i32) -> io::Result<()> {
    let header = OutHeader {
        len: size_of::<OutHeader>() as u32,
        error: -errno,
        unique,
    };
    send(device, header.as_slice())
}

/// Sends a reply with the body `body`.
pub(super) fn reply<T: ByteValued>(device: &OwnedFd, unique: u64, body: &T) -> io::Result<()> {
    let header = OutHeader {
        len: (size_of::<OutHeader>() + size_of::<T>()) as u32,
        error: 0,
        unique,
    };
    send(device, &[header.as_slice(), body.as_slice()].concat())
}

/// Sends a whole message.
pub(super) fn send(device: &OwnedFd, message: &[u8]) -> io::Result<()> {
    rustix::io::write(device, message)?;
    Ok(())
}

/// The header of a request.
pub(super) fn header(request: &[u8]) -> Option<InHeader> {
    let mut header = InHeader::default();
    let bytes = request.get(..size_of::<InHeader>())?;
    header.as_mut_slice().copy_from_slice(bytes);
    Some(header)
}
