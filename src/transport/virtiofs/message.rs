//! vhost-user messages, and the list of those that a front end's setup consists of.
//!
//! The next process has no other way to know the setup. So every message with a lasting effect is
//! kept with its descriptors, as it was: of several with the same effect the last one, and none
//! that a later one cancels. The list stays as short as the setup, whatever a front end does.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Bytes of a message's header: request, flags, size of the body.
pub(super) const HEADER_BYTES: usize = 12;
/// Bytes of a body, at most.
pub(super) const BODY_BYTES: usize = 4096;
/// Descriptors of one message, at most: one for each region of memory that the protocol can share,
/// and the kernel's own limit.
pub(super) const MOST_FILES: usize = 253;

/// Beside a queue's number: there is no kick or call descriptor.
const NO_FILE: u32 = 1 << 8;

/// Requests of the front end, by their names in the protocol.
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const RESET_OWNER: u32 = 4;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const RESET_DEVICE: u32 = 34;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
}

/// A message of a front end. Clones share its descriptors.
#[derive(Clone, Debug)]
pub(super) struct FrontEndMessage {
    /// Header and body.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it.
    pub files: Arc<[OwnedFd]>,
}

impl FrontEndMessage {
    /// The message `bytes`, with those of `files` that are its own: with MSG_PEEK, the kernel may
    /// also return the next message's.
    pub(super) fn new(bytes: Vec<u8>, files: Vec<OwnedFd>) -> Self {
        let mut message = Self {
            bytes,
            files: Arc::new([]),
        };
        if message.has_files() {
            message.files = files.into();
        }
        message
    }

    fn has_files(&self) -> bool {
        match self.request() {
            request::SET_MEM_TABLE | request::ADD_MEM_REG => true,
            request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
                self.queue() & NO_FILE == 0
            }
            _ => false,
        }
    }

    /// Bytes of the whole message, by its header.
    pub(super) fn length(header: &[u8]) -> Option<usize> {
        let size = word(header, 8)? as usize;
        (size <= BODY_BYTES).then_some(HEADER_BYTES + size)
    }

    fn request(&self) -> u32 {
        word(&self.bytes, 0).unwrap_or_default()
    }

    /// The queue that the message is about.
    fn queue(&self) -> u32 {
        word(&self.bytes, HEADER_BYTES).unwrap_or_default()
    }

    /// Where in the guest's memory a region of ADD_MEM_REG or REM_MEM_REG begins.
    fn region(&self) -> Option<&[u8]> {
        self.bytes.get(HEADER_BYTES + 8..HEADER_BYTES + 16)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The setup of a front end.
#[derive(Clone, Debug, Default)]
pub(super) struct FrontEndSetup {
    /// In the order of a replay, and by queue.
    reported: BTreeMap<(SetupStage, u32), FrontEndMessage>,
    /// The table of memory, and what was added and removed since.
    memory: Vec<FrontEndMessage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SetupStage {
    Owner,
    OfferedFeatures,
    OfferedProtocol,
    Protocol,
    Features,
    /// The memory comes here.
    Entries,
    Places,
    Call,
    Kick,
    Enable,
}

impl FrontEndSetup {
    /// Adds a handled message.
    pub(super) fn note(&mut self, message: FrontEndMessage) {
        let queue = message.queue();
        // Of KICK and CALL the upper bits show whether a descriptor comes with it.
        let of_file = queue & 0xff;
        let (stage, queue) = match message.request() {
            request::SET_OWNER => (SetupStage::Owner, 0),
            request::GET_FEATURES => (SetupStage::OfferedFeatures, 0),
            request::GET_PROTOCOL_FEATURES => (SetupStage::OfferedProtocol, 0),
            request::SET_PROTOCOL_FEATURES => (SetupStage::Protocol, 0),
            request::SET_FEATURES => (SetupStage::Features, 0),
            request::SET_VRING_NUM => (SetupStage::Entries, queue),
            request::SET_VRING_ADDR => (SetupStage::Places, queue),
            request::SET_VRING_CALL => (SetupStage::Call, of_file),
            request::SET_VRING_KICK => (SetupStage::Kick, of_file),
            request::SET_VRING_ENABLE => (SetupStage::Enable, queue),
            request::SET_MEM_TABLE => {
                self.memory = vec![message];
                return;
            }
            request::ADD_MEM_REG => return self.memory.push(message),
            request::REM_MEM_REG => return self.remove_memory(message),
            request::GET_VRING_BASE => {
                self.reported.remove(&(SetupStage::Call, queue));
                self.reported.remove(&(SetupStage::Kick, queue));
                return;
            }
            request::RESET_DEVICE => {
                return self.reported.retain(|(stage, _), _| {
                    !matches!(stage, SetupStage::Features | SetupStage::Enable)
                });
            }
            request::RESET_OWNER => {
                let taken_back = [
                    SetupStage::Owner,
                    SetupStage::Features,
                    SetupStage::Protocol,
                ];
                return self
                    .reported
                    .retain(|(stage, _), _| !taken_back.contains(stage));
            }
            // No lasting effect, or (SET_VRING_BASE) kept elsewhere.
            _ => return,
        };
        self.reported.insert((stage, queue), message);
    }

    fn remove_memory(&mut self, message: FrontEndMessage) {
        let added = self.memory.iter().position(|other| {
            other.request() == request::ADD_MEM_REG && other.region() == message.region()
        });
        match added {
            Some(added) => drop(self.memory.remove(added)),
            None => self.memory.push(message),
        }
    }

    /// The messages whose replay restores the setup.
    pub(super) fn messages(&self) -> impl Iterator<Item = &FrontEndMessage> {
        let before = self.reported.range(..(SetupStage::Entries, 0));
        let after = self.reported.range((SetupStage::Entries, 0)..);
        let before = before.map(|(_, message)| message);
        before
            .chain(&self.memory)
            .chain(after.map(|(_, message)| message))
    }
}

/// Sends `bytes` with `files`, all at once.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = flags | SendFlags::NOSIGNAL;
    let mut sent = sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    while sent < bytes.len() {
        let rest = bytes.get(sent..).unwrap_or_default();
        sent += rustix::net::send(&socket, rest, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives up to `most` bytes into `bytes`, and the descriptors that came with the first of them.
/// Receives nothing at the end of the connection.
pub(super) fn receive(
    socket: impl AsFd,
    bytes: &mut Vec<u8>,
    most: usize,
    flags: RecvFlags,
) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    bytes.resize(most, 0);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let into = &mut [IoSliceMut::new(bytes)];
        match recvmsg(&socket, into, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let lost = ReturnFlags::CTRUNC | ReturnFlags::TRUNC;
    if received.flags.intersects(lost) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(received.bytes);
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: u32, body: &[u32]) -> FrontEndMessage {
        let words = [request, 1, body.len() as u32 * 4];
        let words = words.iter().chain(body);
        FrontEndMessage {
            bytes: words.flat_map(|word| word.to_ne_bytes()).collect(),
            files: Arc::new([]),
        }
    }

    fn reported(setup: &FrontEndSetup) -> Vec<u32> {
        setup.messages().map(FrontEndMessage::request).collect()
    }

    #[test]
    fn a_setup_is_replayed_in_an_order_that_works() {
        let mut setup = FrontEndSetup::default();
        for (request, body) in [
            (request::SET_VRING_KICK, vec![0, 0]),
            (request::SET_VRING_ENABLE, vec![0, 1]),
            (request::SET_VRING_NUM, vec![0, 64]),
            (request::SET_MEM_TABLE, vec![1]),
            (request::SET_FEATURES, vec![0, 0]),
            (request::SET_VRING_NUM, vec![0, 128]),
        ] {
            setup.note(message(request, &body));
        }
        assert_eq!(reported(&setup), [2, 5, 8, 12, 18]);
        let entries = setup.messages().nth(2).unwrap();
        assert_eq!(word(&entries.bytes, HEADER_BYTES + 4), Some(128));
        setup.note(message(request::GET_VRING_BASE, &[0, 0]));
        assert_eq!(reported(&setup), [2, 5, 8, 18]);
        setup.note(message(request::RESET_DEVICE, &[]));
        assert_eq!(reported(&setup), [5, 8]);
    }

    #[test]
    fn memory_that_comes_and_goes_leaves_nothing() {
        let mut setup = FrontEndSetup::default();
        setup.note(message(request::SET_MEM_TABLE, &[1]));
        for _ in 0..100 {
            setup.note(message(request::ADD_MEM_REG, &[0, 0, 7, 0, 0, 0]));
            setup.note(message(request::REM_MEM_REG, &[0, 0, 7, 0, 0, 0]));
        }
        setup.note(message(request::ADD_MEM_REG, &[0, 0, 8, 0, 0, 0]));
        assert_eq!(reported(&setup), [5, 37]);
    }
}
