//! The channel between this process and a helper: messages, each with a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The two ends of a new channel.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // As far as the system allows; its default holds one message of any length.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&pair.0, 1 << 20);
    Ok(pair)
}

/// Sends a message and a descriptor.
pub(super) fn send(
    socket: &OwnedFd,
    message: &[IoSlice<'_>],
    with: BorrowedFd<'_>,
) -> io::Result<()> {
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
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, OwnedFd)> {
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
