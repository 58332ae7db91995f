//! From a store's answers to a client's: statuses, streams, and threads that may block.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::Status;

use crate::castore::Digest;
use crate::store::{Error, Object};

/// The answer of a streaming method: each message is made when it is requested, so that nothing is
/// made for a client that does not read.
pub(super) struct MessageStream<T> {
    messages: mpsc::Receiver<Result<T, Status>>,
    demand: Arc<Semaphore>,
    /// Whether a message was requested that has not been made yet.
    asked: bool,
}

impl<T> tokio_stream::Stream for MessageStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.asked {
            self.asked = true;
            self.demand.add_permits(1);
        }
        let message = ready!(self.messages.poll_recv(context));
        self.asked = false;
        Poll::Ready(message)
    }
}

/// The sender of a stream's messages.
pub(super) struct ResponseSender<T> {
    messages: mpsc::Sender<Result<T, Status>>,
    demand: Arc<Semaphore>,
    /// Whether a message is requested that was not sent yet.
    wanted: AtomicBool,
}

/// The client has disconnected: nothing more need be done.
#[derive(Debug)]
pub(super) struct ClientGone;

/// Why a stream ends early.
pub(super) enum StreamEnd {
    /// The client has disconnected.
    Gone,
    /// With this status.
    Status(Status),
}

impl From<ClientGone> for StreamEnd {
    fn from(_: ClientGone) -> Self {
        StreamEnd::Gone
    }
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        StreamEnd::Status(status)
    }
}

impl<T> ResponseSender<T> {
    /// Waits until the client is ready for the next message: to be called before anything large is
    /// read.
    pub(super) async fn wanted(&self) -> Result<(), ClientGone> {
        if self.wanted.load(Ordering::Relaxed) {
            return Ok(());
        }
        tokio::select! {
            permit = self.demand.acquire() => permit.map_err(|_| ClientGone)?.forget(),
            () = self.gone() => return Err(ClientGone),
        }
        self.wanted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Sends, waiting until the client is ready.
    pub(super) async fn send(&self, message: T) -> Result<(), ClientGone> {
        self.wanted().await?;
        self.wanted.store(false, Ordering::Relaxed);
        self.messages
            .send(Ok(message))
            .await
            .map_err(|_| ClientGone)
    }

    /// Ready when the client has disconnected.
    pub(super) async fn gone(&self) {
        self.messages.closed().await;
    }
}

/// Calls a store on a thread that may block.
pub(super) async fn ask<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Status> {
    answer(async move { work.await.map_err(|error| status(&error)) }).await
}

/// Does `work` on threads that may block. It holds one only as long as it does something: while it
/// waits, for an upstream or whatever else is asynchronous, thousands of others can.
pub(super) async fn answer<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let mut work = Box::pin(work);
    loop {
        let woken = Arc::new(WakeNotice::default());
        let waker = Waker::from(woken.clone());
        let step = tokio::task::spawn_blocking(move || {
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            (work, polled)
        });
        match step.await {
            Ok((_, Poll::Ready(done))) => return done,
            Ok((waits, Poll::Pending)) => work = waits,
            Err(stopped) => {
                let why = format!("the call was interrupted: {stopped}");
                return Err(Status::internal(why));
            }
        }
        woken.0.notified().await;
    }
}

/// Whether work that waits can continue.
#[derive(Default)]
struct WakeNotice(Notify);

impl Wake for WakeNotice {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Makes `work` fill a stream. It must not block: blocking calls go through [`answer`].
pub(super) fn stream<T, W, F>(work: W) -> MessageStream<T>
where
    T: Send + 'static,
    W: FnOnce(ResponseSender<T>) -> F + Send + 'static,
    F: Future<Output = Result<(), StreamEnd>> + Send + 'static,
{
    let (messages, receiver) = mpsc::channel(1);
    let demand = Arc::new(Semaphore::new(0));
    let work = work(ResponseSender {
        messages: messages.clone(),
        demand: demand.clone(),
        wanted: AtomicBool::new(false),
    });
    tokio::spawn(
        async move {
            if let Err(StreamEnd::Status(status)) = work.await {
                // If this fails the client has disconnected.
                let _ = messages.send(Err(status)).await;
            }
        }
        .boxed(),
    );
    MessageStream {
        messages: receiver,
        demand,
        asked: false,
    }
}

/// The status for a store's error.
pub(super) fn status(error: &Error) -> Status {
    let message = error.to_string();
    match error {
        Error::Damaged { .. } => Status::data_loss(message),
        Error::ReadOnly { .. } => Status::permission_denied(message),
        Error::Full { .. } => Status::resource_exhausted(message),
        Error::Refused { .. } => Status::invalid_argument(message),
        Error::Unlisted { .. } => Status::unimplemented(message),
        Error::NameTaken { .. } => Status::already_exists(format!(
            "{message}: replacing takes `castore-fs serve --allow-replace`, or the right `replace` in \
             the server's token file"
        )),
        Error::Timeout { .. } => Status::deadline_exceeded(message),
        Error::Remote { .. } => Status::unavailable(message),
        // Not "unavailable": this server works, and has other objects.
        Error::Undecided { .. } => Status::internal(message),
        Error::Io { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            Status::resource_exhausted(message)
        }
        Error::Url { .. }
        | Error::NotOpened { .. }
        | Error::Io { .. }
        | Error::Index { .. }
        | Error::Format { .. } => Status::internal(message),
    }
}

pub(super) fn not_found(object: Object, digest: &Digest) -> Status {
    Status::not_found(format!("{object} {digest} is not in this store"))
}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}
