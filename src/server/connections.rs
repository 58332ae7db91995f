//! Connections: how many, and for how long without a call.
//!
//! When as many are open as allowed, or the process has no descriptor left, one of the client with the
//! most is closed for the next, the one that has been idle the longest: a client that opens connections
//! locks no other out, whether they are silent or not. A client whose connection was idle does not
//! notice; it connects again with its next call.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::capacity::{Capacity, ConnectionState};
use super::client::ClientId;
use super::limits::ServerLimits;

/// How long a connection that has just been active is safe from being closed for another of a client with
/// no fewer.
const SAFE: Duration = Duration::from_secs(1);
/// How often connections are checked.
const STEP: Duration = Duration::from_millis(500);
/// How long the system has to refuse nothing for its next refusal to be worth a message.
const CALM: Duration = Duration::from_secs(60);
/// How long nothing is accepted after the system refused to; and how often a connection that waits for a
/// place looks for one.
const PAUSE: Duration = Duration::from_millis(200);

/// The connections of one server.
pub(super) struct Connections {
    limits: Arc<ServerLimits>,
    capacity: Capacity,
    /// When the system refused to accept for the last time.
    refused: Mutex<Option<Instant>>,
}

impl Connections {
    /// Of a server that takes part in `capacity`.
    pub(super) fn new(limits: ServerLimits, capacity: Capacity) -> Arc<Self> {
        capacity.join(&limits);
        Arc::new(Self {
            refused: Mutex::default(),
            limits: Arc::new(limits),
            capacity,
        })
    }

    fn is_own(&self, state: &ConnectionState) -> bool {
        Arc::ptr_eq(&state.limits, &self.limits)
    }

    /// A place for a new connection of `client`, if there is one or one is made.
    fn admit(self: &Arc<Self>, client: ClientId) -> Option<Arc<ConnectionState>> {
        let parts = &self.capacity.0;
        let mut open = parts.open.lock();
        let is_own = |state: &ConnectionState| self.is_own(state);
        let open_ones = open.values().filter(|state| !state.closes());
        let (all, own) = open_ones.fold((0, 0), |(all, own), state| {
            (all + 1, own + usize::from(is_own(state)))
        });
        let most = parts.connections.load(Ordering::Relaxed);
        if own >= self.limits.connections {
            self.close_one(&open, Some(client), is_own).then_some(())?;
        } else if all >= most {
            self.close_one(&open, Some(client), |_| true)
                .then_some(())?;
        }
        // Those that are being closed have not gone yet.
        if open.len() >= most.saturating_mul(2) {
            return None;
        }
        Some(self.add(&mut open, client))
    }

    fn add(
        self: &Arc<Self>,
        open: &mut HashMap<u64, Arc<ConnectionState>>,
        client: ClientId,
    ) -> Arc<ConnectionState> {
        let parts = &self.capacity.0;
        let number = parts.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnectionState {
            capacity: self.capacity.clone(),
            limits: self.limits.clone(),
            number,
            client,
            open_calls: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            active: AtomicU64::new(self.capacity.now()),
            close: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            calls: parts.calls.share(client),
            uploads: parts.uploads.share(client),
            requests: parts.requests.share(client),
            responses: parts.responses.share(client),
            turns: parts.turns.share(client),
        });
        open.insert(number, state.clone());
        state
    }

    /// Closes a connection of the client with the most of those that `may` be closed, for one of `next`:
    /// the one that has been idle the longest, unless all were active just now and the client has no
    /// more than the next one will have. Returns whether one was closed.
    fn close_one(
        &self,
        open: &HashMap<u64, Arc<ConnectionState>>,
        next: Option<ClientId>,
        may: impl Fn(&ConnectionState) -> bool,
    ) -> bool {
        let now = self.capacity.now();
        let closable = || open.values().filter(|state| !state.closes() && may(state));
        let mut of_clients: HashMap<ClientId, usize> = HashMap::new();
        for state in closable() {
            *of_clients.entry(state.client).or_default() += 1;
        }
        let of = |client: &ClientId| of_clients.get(client).copied().unwrap_or(0);
        let most = of_clients.values().copied().max().unwrap_or(0);
        let quiet = closable()
            .filter(|state| of(&state.client) == most)
            .min_by_key(|state| {
                // One without a call goes first.
                let busy = state.open_calls.load(Ordering::Relaxed) > 0;
                (busy, state.active.load(Ordering::Relaxed))
            });
        let Some(quiet) = quiet else { return false };
        let idle = now.saturating_sub(quiet.active.load(Ordering::Relaxed));
        let has_more = next.is_some_and(|next| most > of(&next) + 1);
        if !has_more && idle < SAFE.as_millis() as u64 {
            return false;
        }
        tracing::debug!("a connection was closed for the next: all are taken");
        quiet.close();
        true
    }

    /// Closes connections that have been without a call for too long, until `stopping`.
    pub(super) async fn watch(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let over = |since: u64, limit: Duration| {
            Duration::from_millis(self.capacity.now().saturating_sub(since)) >= limit
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(STEP) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            for state in self.capacity.0.open.lock().values() {
                let limit = match state.begun.load(Ordering::Relaxed) {
                    0 => self.limits.first_call,
                    _ => self.limits.idle,
                };
                let is_own = self.is_own(state);
                let idle = state.open_calls.load(Ordering::Relaxed) == 0;
                if is_own && idle && over(state.active.load(Ordering::Relaxed), limit) {
                    state.close();
                }
            }
        }
    }

    /// A connection that another process accepted.
    pub(super) fn take_over<T>(self: &Arc<Self>, io: T, client: ClientId) -> ClosableConnection<T> {
        let state = self.add(&mut self.capacity.0.open.lock(), client);
        ClosableConnection { io, state }
    }

    /// Accepts by `accept` until `stopping`; returns the accepted sockets.
    pub(super) fn accept<T, A>(
        self: Arc<Self>,
        listener: A,
        address: String,
        mut stopping: watch::Receiver<bool>,
    ) -> ReceiverStream<io::Result<ClosableConnection<T>>>
    where
        T: Send + 'static,
        A: AcceptConnections<T> + Send + Sync + 'static,
    {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(
            async move {
                let accepting = async {
                    while !sender.is_closed() {
                        match listener.accept().await {
                            Ok((io, client)) => match self.admit(client) {
                                Some(state) => {
                                    if sender
                                        .send(Ok(ClosableConnection { io, state }))
                                        .await
                                        .is_err()
                                    {
                                        return;
                                    }
                                }
                                None => self.clone().let_wait(io, client, sender.clone()),
                            },
                            Err(error) => self.cannot_accept(&address, &error).await,
                        }
                    }
                };
                tokio::select! {
                    () = accepting => {}
                    _ = stopping.wait_for(|stop| *stop) => {}
                }
            }
            .boxed(),
        );
        ReceiverStream::new(receiver)
    }

    /// Has a connection wait until there is a place for it, if not too many wait; others are accepted
    /// meanwhile.
    fn let_wait<T: Send + 'static>(
        self: Arc<Self>,
        io: T,
        client: ClientId,
        sender: mpsc::Sender<io::Result<ClosableConnection<T>>>,
    ) {
        let Some(place) = self.capacity.0.waiting.share(client).try_hold(1) else {
            return;
        };
        let admitted = async move {
            loop {
                let closed = self.capacity.0.closed.notified();
                if let Some(state) = self.admit(client) {
                    return state;
                }
                let _ = tokio::time::timeout(PAUSE, closed).await;
            }
        };
        tokio::spawn(
            async move {
                let _place = place;
                tokio::select! {
                    state = admitted => {
                        // An error means that the server has stopped.
                        let _ = sender.send(Ok(ClosableConnection { io, state })).await;
                    }
                    () = sender.closed() => {}
                }
            }
            .boxed(),
        );
    }

    /// The system refused: mostly for want of descriptors.
    async fn cannot_accept(&self, address: &str, error: &io::Error) {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        // Any other error is the client's.
        if code.is_some_and(|code| lacking.contains(&code)) {
            let before = self.refused.lock().replace(Instant::now());
            // It continues as long as clients come: each that gets in is followed by a refusal.
            if before.is_none_or(|before| before.elapsed() >= CALM) {
                tracing::error!(
                    "cannot accept connections on {address}: {error}; idle ones are closed for new \
                     ones until this passes (LimitNOFILE= in systemd, ulimit -n in a shell)"
                );
            }
            self.close_one(&self.capacity.0.open.lock(), None, |_| true);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A socket that connections come from.
pub(super) trait AcceptConnections<T> {
    fn accept(&self) -> impl Future<Output = io::Result<(T, ClientId)>> + Send;
}

impl AcceptConnections<tokio::net::TcpStream> for tokio::net::TcpListener {
    async fn accept(&self) -> io::Result<(tokio::net::TcpStream, ClientId)> {
        let (stream, address) = tokio::net::TcpListener::accept(self).await?;
        // If this fails the connection is gone, which its first read will show.
        let _ = stream.set_nodelay(true);
        Ok((stream, ClientId::of_address(address.ip())))
    }
}

impl AcceptConnections<tokio::net::UnixStream> for tokio::net::UnixListener {
    async fn accept(&self) -> io::Result<(tokio::net::UnixStream, ClientId)> {
        let (stream, _) = tokio::net::UnixListener::accept(self).await?;
        let client = ClientId::of_socket(&stream);
        Ok((stream, client))
    }
}

/// A connection as bytes: it ends when its server closes it.
pub(super) struct ClosableConnection<T> {
    io: T,
    state: Arc<ConnectionState>,
}

impl<T> ClosableConnection<T> {
    fn check(&self, waker: &AtomicWaker, context: &Context<'_>) -> io::Result<()> {
        waker.register(context.waker());
        match self.state.close.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

impl ClosableConnection<tokio::net::UnixStream> {
    /// Waits until there is something to be read, or the connection ends.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // What was ready for the last read counts as ready until a system call reports otherwise.
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

impl<T> Connected for ClosableConnection<T> {
    type ConnectInfo = Arc<ConnectionState>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.state.clone()
    }
}

impl<T> Drop for ClosableConnection<T> {
    fn drop(&mut self) {
        let parts = &self.state.capacity.0;
        parts.open.lock().remove(&self.state.number);
        parts.closed.notify_waiters();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ClosableConnection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(&self.state.reader, context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ClosableConnection<T> {
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
