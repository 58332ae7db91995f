//! Reading requests from a connection and sending answers, within bounds.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use crate::nix::daemon_protocol::{
    Encoder, ExpectedInput, Field, MAX_MESSAGE, MessageReader, Value, WireError,
};
use crate::server::budget::TakenShare;
use crate::server::capacity::ConnectionState;
use crate::server::connections::ClosableConnection;

/// Bytes of a request that need no room.
const SMALL: u64 = 64 << 10;
/// Bytes of an answer that are sent at once.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes that are skipped after an operation that is refused: its client stops once it has read the error.
const SKIPPED: u64 = 64 << 20;

/// Why a conversation ends.
#[derive(Debug, Error)]
pub(super) enum ConversationEnd {
    /// The client has gone, or the connection was closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client sends what makes no sense.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The client does not end its request in time.
    #[error("a request did not come in whole within {0:?}")]
    Incomplete(Duration),
    /// The client takes too long.
    #[error("{0}")]
    Late(&'static str),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A connection with its bounds.
pub(super) struct Wire {
    io: ClosableConnection<UnixStream>,
    state: Arc<ConnectionState>,
    /// How long a request, or the sending of a piece of an answer, may take.
    patience: Duration,
}

impl Wire {
    pub(super) fn new(io: ClosableConnection<UnixStream>, patience: Duration) -> Self {
        let state = io.connect_info();
        Self {
            io,
            state,
            patience,
        }
    }

    /// Waits until a request begins, or the connection ends.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.io.socket()
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// The word that a request begins with, however late; nothing if the client has ended the connection.
    pub(super) async fn first_word(&mut self) -> Result<Option<u64>, ConversationEnd> {
        let mut word = [0; 8];
        let length = self.io.read(&mut word).await?;
        if length == 0 {
            return Ok(None);
        }
        let rest = self.io.read_exact(&mut word[length..]);
        let read = tokio::time::timeout(self.patience, rest).await;
        read.map_err(|_| ConversationEnd::Incomplete(self.patience))??;
        Ok(Some(u64::from_le_bytes(word)))
    }

    /// The values of `fields`, and the room that they take.
    pub(super) async fn values(
        &mut self,
        fields: &'static [Field],
    ) -> Result<(Vec<Value>, Option<TakenShare>), ConversationEnd> {
        let read = tokio::time::timeout(self.patience, async {
            let mut reader = MessageReader::new(fields);
            let mut buffer = Vec::new();
            let mut room = None;
            loop {
                match reader.wanted() {
                    ExpectedInput::Done(values) => return Ok((values, room)),
                    ExpectedInput::Bytes(length) => {
                        if room.is_none() && reader.taken() + length as u64 > SMALL {
                            let share = self.state.requests.clone();
                            room = Some(share.hold(MAX_MESSAGE as usize).await);
                        }
                        buffer.resize(length, 0);
                        self.io.read_exact(&mut buffer).await?;
                        reader.take(&buffer)?;
                    }
                }
            }
        });
        read.await
            .map_err(|_| ConversationEnd::Incomplete(self.patience))?
    }

    /// Ends what is sent, and skips what still comes, within bounds.
    ///
    /// A client reads the error only after it has sent its request. If the connection were closed before, the client would
    /// fail at writing the rest.
    pub(super) async fn finish(&mut self) {
        let finish = async {
            self.io.shutdown().await?;
            let mut remaining = SKIPPED;
            let mut buffer = vec![0; BUFFER_BYTES];
            while remaining > 0 {
                match self.io.read(&mut buffer).await? {
                    0 => break,
                    length => remaining = remaining.saturating_sub(length as u64),
                }
            }
            Ok::<_, io::Error>(())
        };
        // However it ends, the connection is closed next.
        let _ = tokio::time::timeout(self.patience, finish).await;
    }

    /// Skips data in frames up to their end.
    pub(super) async fn skip_frames(&mut self) -> Result<(), ConversationEnd> {
        let skip = async {
            let mut remaining = SKIPPED;
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let mut length = self.io.read_u64_le().await?;
                if length == 0 {
                    return Ok(());
                }
                remaining = remaining
                    .checked_sub(length)
                    .ok_or(ConversationEnd::Late("data that are refused do not end"))?;
                while length > 0 {
                    let part = length.min(BUFFER_BYTES as u64) as usize;
                    self.io.read_exact(&mut buffer[..part]).await?;
                    length -= part as u64;
                }
            }
        };
        let skipped = tokio::time::timeout(self.patience, skip).await;
        skipped.map_err(|_| ConversationEnd::Late("data that are refused do not end"))?
    }

    /// Sends what is in `out`.
    pub(super) async fn send(&mut self, out: &mut Encoder) -> Result<(), ConversationEnd> {
        self.send_bytes(&out.take()).await
    }

    /// Sends `bytes`, piece by piece.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), ConversationEnd> {
        for buffer in bytes.chunks(BUFFER_BYTES) {
            let sent = tokio::time::timeout(self.patience, self.io.write_all(buffer)).await;
            sent.map_err(|_| ConversationEnd::Late("the client does not take its answer"))??;
            self.state.is_active();
        }
        let flushed = tokio::time::timeout(self.patience, self.io.flush()).await;
        flushed.map_err(|_| ConversationEnd::Late("the client does not take its answer"))??;
        Ok(())
    }
}
