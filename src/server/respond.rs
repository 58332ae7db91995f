//! From a store's answers to a client's: statuses, streams, and the thread that may block.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::castore::Digest;
use crate::store::{Error, Object};

/// Messages that a stream may be ahead of its client.
const AHEAD: usize = 4;

/// What a streaming method answers with.
pub(super) type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Where a stream's messages go.
pub(super) struct Sender<T>(mpsc::Sender<Result<T, Status>>);

/// The client has gone away: nothing more need be done.
#[derive(Debug)]
pub(super) struct Gone;

/// Why a stream ends early.
pub(super) enum Ended {
    /// The client has gone away.
    Gone,
    /// It is told this.
    Status(Status),
}

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Ended::Gone
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Ended::Status(status)
    }
}

impl<T> Sender<T> {
    /// Sends, waiting while the client is behind.
    pub(super) async fn send(&self, message: T) -> Result<(), Gone> {
        self.0.send(Ok(message)).await.map_err(|_| Gone)
    }

    /// Ready when the client has gone away.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }
}

/// Asks a store on a thread that may block.
pub(super) async fn ask<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Status> {
    answer(async move { work.await.map_err(|error| status(&error)) }).await
}

/// Does `work` on a thread that may block.
pub(super) async fn answer<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || handle.block_on(work))
        .await
        .unwrap_or_else(|stopped| Err(Status::internal(format!("the call broke off: {stopped}"))))
}

/// Lets `work` fill a stream. It must not block: what may is asked by [`answer`].
pub(super) fn stream<T, W, F>(work: W) -> Stream<T>
where
    T: Send + 'static,
    W: FnOnce(Sender<T>) -> F + Send + 'static,
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = work(Sender(sender.clone()));
    tokio::spawn(async move {
        if let Err(Ended::Status(status)) = work.await {
            // If this fails the client has gone away and need not know.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// What a client is told of a store's error.
pub(super) fn status(error: &Error) -> Status {
    let message = error.to_string();
    match error {
        Error::Damaged { .. } => Status::data_loss(message),
        Error::ReadOnly { .. } => Status::permission_denied(message),
        Error::Refused { .. } => Status::invalid_argument(message),
        Error::Timeout { .. } => Status::deadline_exceeded(message),
        Error::Remote { .. } => Status::unavailable(message),
        // Not "unavailable": this server is well, and has what others can be asked for.
        Error::Undecided { .. } => Status::internal(message),
        Error::Url { .. } | Error::Io { .. } | Error::Index { .. } | Error::Format { .. } => {
            Status::internal(message)
        }
    }
}

pub(super) fn not_found(object: Object, digest: &Digest) -> Status {
    Status::not_found(format!("{object} {digest} is not here"))
}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}
