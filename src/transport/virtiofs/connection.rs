//! The connection of a front end, from its first message, or from the point at which it was taken
//! over, to its end.
//!
//! The crate parses messages only from a socket. So it gets one end of a socket pair, and the front
//! end's messages are put into the other end, one at a time: recorded, passed in, handled, the
//! answer sent on, counted. A take-over replays all recorded messages in the same way and discards
//! the answers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::net::{RecvFlags, SendFlags};
use thiserror::Error;
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use super::device::VirtiofsDevice;
use super::message::{self, FrontEndMessage, HEADER_BYTES};
use super::record::{GuestRecord, PreviousGuest};

/// Bytes of an answer that are passed on at once.
const ANSWER_BYTES: usize = 8 << 10;

/// Why the connection of a front end was closed.
#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    /// The connection failed.
    #[error("the connection: {0}")]
    Connection(#[from] io::Error),
    /// A message states a length beyond the limit.
    #[error("a message is longer than the protocol allows")]
    TooLong,
    /// A message breaks the protocol.
    #[error("a message: {0}")]
    Protocol(ProtocolError),
}

/// A front end and the device that it drives.
pub(super) struct FrontEndConnection {
    front: OwnedFd,
    /// The other end of what `handler` reads.
    feed: UnixStream,
    handler: BackendReqHandler<Mutex<VirtiofsDevice>>,
    record: Arc<GuestRecord>,
}

impl FrontEndConnection {
    /// The front end at `front` drives `device`, and its messages are recorded in `record`.
    pub(super) fn new(
        front: OwnedFd,
        device: VirtiofsDevice,
        record: Arc<GuestRecord>,
    ) -> io::Result<Self> {
        let (feed, fed) = UnixStream::pair()?;
        Ok(Self {
            front,
            feed,
            handler: BackendReqHandler::from_stream(fed, Arc::new(Mutex::new(device))),
            record,
        })
    }

    /// Replays to the device all messages that the previous process handled, and finishes what that
    /// had begun.
    pub(super) fn take_over(&mut self, previous: PreviousGuest) -> Result<(), ConnectionError> {
        for message in previous.setup.messages() {
            self.handle(message)?;
        }
        let Some(pending) = previous.pending else {
            return Ok(());
        };
        // It was recorded. It may or may not have been taken from the connection.
        let mut bytes = Vec::new();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let length = pending.bytes.len();
        if message::receive(&self.front, &mut bytes, length, flags).is_ok()
            && bytes == pending.bytes
        {
            self.take(length)?;
        }
        self.finish(pending)
    }

    /// Handles the front end's messages until it disconnects.
    pub(super) fn serve(mut self) -> Result<(), ConnectionError> {
        while let Some(message) = self.next()? {
            self.finish(message)?;
        }
        Ok(())
    }

    /// The next message, recorded.
    fn next(&mut self) -> Result<Option<FrontEndMessage>, ConnectionError> {
        let mut bytes = Vec::new();
        let files = message::receive(&self.front, &mut bytes, HEADER_BYTES, RecvFlags::PEEK)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() < HEADER_BYTES {
            // The rest of the header is on its way, or will never come.
            drop(files);
            return self.next_buffer();
        }
        let length = FrontEndMessage::length(&bytes).ok_or(ConnectionError::TooLong)?;
        let files = message::receive(&self.front, &mut bytes, length, RecvFlags::PEEK)?;
        if bytes.len() < length {
            drop(files);
            return self.next_buffer();
        }
        let message = FrontEndMessage::new(bytes, files);
        self.record.arrived(&message);
        self.take(length)?;
        Ok(Some(message))
    }

    /// A message that a front end sends piece by piece, which cannot be peeked at as a whole.
    fn next_buffer(&mut self) -> Result<Option<FrontEndMessage>, ConnectionError> {
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        let mut wanted = HEADER_BYTES;
        while bytes.len() < wanted {
            let mut buffer = Vec::new();
            let most = wanted - bytes.len();
            files.extend(message::receive(
                &self.front,
                &mut buffer,
                most,
                RecvFlags::empty(),
            )?);
            if buffer.is_empty() {
                return Ok(None);
            }
            bytes.extend(buffer);
            if bytes.len() == HEADER_BYTES {
                wanted = FrontEndMessage::length(&bytes).ok_or(ConnectionError::TooLong)?;
            }
        }
        if files.len() > message::MOST_FILES {
            return Err(ConnectionError::TooLong);
        }
        let message = FrontEndMessage::new(bytes, files);
        self.record.arrived(&message);
        Ok(Some(message))
    }

    /// Takes `length` bytes that were peeked at from the connection, and their descriptors.
    fn take(&self, length: usize) -> io::Result<()> {
        let (mut bytes, mut taken) = (Vec::new(), 0);
        while taken < length {
            let most = length - taken;
            drop(message::receive(
                &self.front,
                &mut bytes,
                most,
                RecvFlags::empty(),
            )?);
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            taken += bytes.len();
        }
        Ok(())
    }

    /// Handles a message, and sends the answer.
    fn finish(&mut self, message: FrontEndMessage) -> Result<(), ConnectionError> {
        let answer = self.handle(&message);
        if let Ok(answer) = &answer
            && !answer.is_empty()
        {
            message::send(&self.front, answer, &[], SendFlags::empty())?;
        }
        answer?;
        self.record.handled(message);
        Ok(())
    }

    /// Lets the device handle the message; returns the answer.
    fn handle(&mut self, message: &FrontEndMessage) -> Result<Vec<u8>, ConnectionError> {
        let files: Vec<_> = message.files.iter().map(AsFd::as_fd).collect();
        message::send(&self.feed, &message.bytes, &files, SendFlags::empty())?;
        let handled = self.handler.handle_request();
        let mut answer = Vec::new();
        match message::receive(&self.feed, &mut answer, ANSWER_BYTES, RecvFlags::DONTWAIT) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => answer.clear(),
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = handled {
            // The answer reports the error, if the front end asked for one.
            let _ = message::send(&self.front, &answer, &[], SendFlags::DONTWAIT);
            return Err(ConnectionError::Protocol(error));
        }
        Ok(answer)
    }
}
