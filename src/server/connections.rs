//! Connections: how many, and for how long without a call.
//!
//! When as many are open as allowed, or the process has no descriptor left, the one that has been
//! idle the longest is closed for the next: a client that opens silent connections locks no other
//! out. A client whose connection was idle does not notice; it connects again with its next call.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::budget::{Budget, Share};
use super::limits::Limits;
use super::turns::{OwnTurns, Turns};

/// How long a connection that has just been active is safe from being closed for another.
const SAFE: Duration = Duration::from_secs(1);
/// How often connections are checked.
const STEP: Duration = Duration::from_millis(500);
/// How long the system has to refuse nothing for its next refusal to be worth a message.
const CALM: Duration = Duration::from_secs(60);
/// How long nothing is accepted after the system refused to.
const PAUSE: Duration = Duration::from_millis(200);

/// The connections of one server.
pub(super) struct Connections {
    limits: Limits,
    start: Instant,
    open: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    next: AtomicU64,
    closed: Notify,
    /// When the system refused to accept for the last time.
    refused: Mutex<Option<Instant>>,
    calls: Arc<Budget>,
    uploads: Arc<Budget>,
    requests: Arc<Budget>,
    responses: Arc<Budget>,
    turns: Turns,
}

/// One connection, for its calls.
pub(super) struct ConnectionState {
    connections: Arc<Connections>,
    number: u64,
    /// Calls that have begun and not ended.
    open_calls: AtomicUsize,
    /// Calls that have ever begun.
    begun: AtomicU64,
    /// When it was active for the last time, in milliseconds since the server's start.
    active: AtomicU64,
    close: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    pub(super) calls: Arc<Share>,
    pub(super) uploads: Arc<Share>,
    pub(super) requests: Arc<Share>,
    pub(super) responses: Arc<Share>,
    pub(super) turns: OwnTurns,
}

/// A call that runs: its connection is not idle meanwhile.
pub(super) struct OpenCall(Arc<ConnectionState>);

impl Connections {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            open: Mutex::default(),
            next: AtomicU64::new(0),
            closed: Notify::new(),
            refused: Mutex::default(),
            calls: Budget::new(limits.calls),
            uploads: Budget::new(limits.uploads),
            requests: Budget::new(limits.request_memory),
            responses: Budget::new(limits.response_memory),
            turns: Turns::new(),
            limits,
        })
    }

    /// The turns of the server itself.
    pub(super) fn own_turns(&self) -> OwnTurns {
        self.turns.share()
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn add(self: &Arc<Self>) -> Arc<ConnectionState> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnectionState {
            connections: self.clone(),
            number,
            open_calls: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            active: AtomicU64::new(self.now()),
            close: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            calls: self.calls.share(),
            uploads: self.uploads.share(),
            requests: self.requests.share(),
            responses: self.responses.share(),
            turns: self.turns.share(),
        });
        self.open.lock().insert(number, state.clone());
        state
    }

    /// Closes the connection that has been idle the longest, unless all were active just now.
    fn close_one(&self) {
        let now = self.now();
        let open = self.open.lock();
        let quiet = open
            .values()
            .filter(|state| !state.close.load(Ordering::Relaxed))
            .min_by_key(|state| {
                // One without a call goes first.
                let busy = state.open_calls.load(Ordering::Relaxed) > 0;
                (busy, state.active.load(Ordering::Relaxed))
            });
        if let Some(quiet) = quiet
            && now.saturating_sub(quiet.active.load(Ordering::Relaxed)) >= SAFE.as_millis() as u64
        {
            tracing::debug!("a connection was closed for the next: all are taken");
            quiet.close();
        }
    }

    /// Closes connections that have been without a call for too long, until `stopping`.
    pub(super) async fn watch(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let over = |since: u64, limit: Duration| {
            Duration::from_millis(self.now().saturating_sub(since)) >= limit
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(STEP) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            for state in self.open.lock().values() {
                let limit = match state.begun.load(Ordering::Relaxed) {
                    0 => self.limits.first_call,
                    _ => self.limits.idle,
                };
                let idle = state.open_calls.load(Ordering::Relaxed) == 0;
                if idle && over(state.active.load(Ordering::Relaxed), limit) {
                    state.close();
                }
            }
        }
    }

    /// A connection that another process accepted.
    pub(super) fn adopt<T>(self: &Arc<Self>, io: T) -> Connection<T> {
        let state = self.add();
        Connection { io, state }
    }

    /// Accepts by `accept` until `stopping`; returns the accepted sockets.
    pub(super) fn accept<T, A>(
        self: Arc<Self>,
        listener: A,
        address: String,
        mut stopping: watch::Receiver<bool>,
    ) -> ReceiverStream<io::Result<Connection<T>>>
    where
        T: Send + 'static,
        A: Accept<T> + Send + Sync + 'static,
    {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let accepting = async {
                loop {
                    self.make_room().await;
                    match listener.accept().await {
                        Ok(io) => {
                            let state = self.add();
                            if sender.send(Ok(Connection { io, state })).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => self.cannot_accept(&address, &error).await,
                    }
                }
            };
            tokio::select! {
                () = accepting => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        });
        ReceiverStream::new(receiver)
    }

    /// Waits until there is room for one connection more.
    async fn make_room(&self) {
        loop {
            let closed = self.closed.notified();
            if self.open.lock().len() < self.limits.connections {
                return;
            }
            self.close_one();
            let _ = tokio::time::timeout(PAUSE, closed).await;
        }
    }

    /// The system refused: mostly for want of descriptors.
    async fn cannot_accept(&self, address: &str, error: &io::Error) {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        // Any other error is the client's.
        if code.is_some_and(|code| lacking.contains(&code)) {
            let before = self.refused.lock().replace(Instant::now());
            // It goes on as long as clients come: each that gets in is followed by a refusal.
            if before.is_none_or(|before| before.elapsed() >= CALM) {
                tracing::error!(
                    "cannot accept connections on {address}: {error}; idle ones are closed for new \
                     ones until this passes (LimitNOFILE= in systemd, ulimit -n in a shell)"
                );
            }
            self.close_one();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A socket that connections come from.
pub(super) trait Accept<T> {
    fn accept(&self) -> impl Future<Output = io::Result<T>> + Send;
}

impl Accept<tokio::net::TcpStream> for tokio::net::TcpListener {
    async fn accept(&self) -> io::Result<tokio::net::TcpStream> {
        let (stream, _) = tokio::net::TcpListener::accept(self).await?;
        // If this fails the connection is gone, which its first read will show.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Accept<tokio::net::UnixStream> for tokio::net::UnixListener {
    async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        Ok(tokio::net::UnixListener::accept(self).await?.0)
    }
}

impl ConnectionState {
    /// Begins a call.
    pub(super) fn begin(self: &Arc<Self>) -> OpenCall {
        self.open_calls.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.is_active();
        OpenCall(self.clone())
    }

    /// Useful data was sent or received just now.
    pub(super) fn is_active(&self) {
        let now = self.connections.now();
        self.active.store(now, Ordering::Relaxed);
    }

    /// Calls that have begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.close.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }
}

impl OpenCall {
    /// Its connection.
    pub(super) fn connection(&self) -> &Arc<ConnectionState> {
        &self.0
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.is_active();
        self.0.open_calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection as bytes: it ends when its server closes it.
pub(super) struct Connection<T> {
    io: T,
    state: Arc<ConnectionState>,
}

impl<T> Connection<T> {
    fn check(&self, waker: &AtomicWaker, context: &Context<'_>) -> io::Result<()> {
        waker.register(context.waker());
        match self.state.close.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

impl Connection<tokio::net::UnixStream> {
    /// Waits until there is something to be read, or the connection ends.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // What was ready for the last read counts as ready until a system call says otherwise.
        let peek = || Ok(recv(self.io.as_fd(), &mut [0][..], RecvFlags::PEEK)?);
        std::future::poll_fn(|context| {
            loop {
                self.check(&self.state.reader, context)?;
                ready!(self.io.poll_read_ready(context))?;
                match self.io.try_io(Interest::READABLE, peek) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    peeked => return Poll::Ready(peeked.map(drop)),
                }
            }
        })
        .await
    }

    /// Its socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T> Connected for Connection<T> {
    type ConnectInfo = Arc<ConnectionState>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.state.clone()
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        let connections = &self.state.connections;
        connections.open.lock().remove(&self.state.number);
        connections.closed.notify_one();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(&self.state.reader, context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.state.writer, context)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(&self.state.writer, context)?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.state.writer, context)?;
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }
}
