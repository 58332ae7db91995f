//! A socket and the front ends that are connected to it.
//!
//! Every connection is a guest of its own, with a node table of its own; only the store is shared.
//! So a front end that reconnects, or replaces one that was killed, never finds state of the one
//! before, nor has to wait for its removal.
//!
//! With a [`DescriptorHolder`] a guest outlives the process; see `record`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::runtime::Handle;
use vhost::vhost_user::Error as ProtocolError;

use super::connection::{ConnectionError, FrontEndConnection};
use super::device::{DeviceTag, VirtiofsDevice};
use super::record::{DescriptorHolder, GuestRecord, PreviousGuest};
use super::ring::Ring;
use super::session::{Guest, GuestView};
use super::socket::Socket;
use super::{MOST_DIRECTORIES, ROOT_TIMEOUT};
use crate::fs::{FsOptions, NodeCount, WarmUpCount, WarmUpOptions};
use crate::store::Store;
use crate::transport::requests::RequestCounters;
use crate::transport::traffic::{ReplyCounters, Traffic};

/// Request queues, at most: a bit for each in the protocol, and one is for FORGET.
pub const MOST_QUEUES: usize = 63;
/// Front ends that are served at once on one socket. One is the rule; there are more if a front end
/// reconnects before its old connection has ended.
const MOST_CONNECTIONS: usize = 16;
/// How long to wait before the next connection when the system has no descriptors or threads left.
const EXHAUSTED: Duration = Duration::from_millis(500);
/// Processes that may die one after the other without having answered a guest, until the guest is
/// taken to be the cause: one guest must not take the service away from all others.
const MOST_ATTEMPTS: u64 = 4;

/// The configuration of the device.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// For front ends that ask the device for it (crosvm does); QEMU and cloud-hypervisor have it
    /// on their command line.
    pub tag: Option<DeviceTag>,
    /// Request queues, 1 to [`MOST_QUEUES`], each with a worker. A front end can use fewer.
    pub request_queues: usize,
    /// What the configuration names as shown: the next process continues with a directory that has
    /// no name any more only if it is configured to show the same ([`PreviousGuest::mount_root`]).
    pub shows: String,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            tag: None,
            request_queues: 8,
            shows: String::new(),
        }
    }
}

/// A socket that is being served, until it is dropped.
pub struct VirtiofsEndpoint {
    shared: Arc<EndpointInner>,
}

struct EndpointInner {
    shown: Arc<GuestView>,
    device: DeviceOptions,
    /// Readable when no more connections are accepted.
    end: OwnedFd,
    holder: Option<Arc<dyn DescriptorHolder>>,
    /// The guests belong to the next process from here on.
    handed_over: AtomicBool,
    guests: Mutex<Vec<ConnectedGuest>>,
    /// Notified when a connection ends.
    gone: Condvar,
    connections: AtomicU64,
}

/// A guest whose front end is connected.
struct ConnectedGuest {
    number: u64,
    guest: Arc<Guest>,
    rings: Vec<Ring>,
    record: Arc<GuestRecord>,
}

/// The state of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Front ends that connected so far.
    pub connections: u64,
    /// What the requests of all of them amount to.
    pub traffic: Traffic,
    /// The connected guests.
    pub guests: Vec<GuestStatus>,
    /// The results of warm-up, if the device has that.
    pub warm_up: Option<WarmUpCount>,
}

/// The state of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStatus {
    /// Nodes that the guest knows.
    pub nodes: NodeCount,
}

impl VirtiofsEndpoint {
    /// Serves `store` to the front ends that connect to `socket`, with `options`. Requests that
    /// have to wait do so on `runtime`.
    pub fn serve(
        store: Arc<dyn Store>,
        socket: Socket,
        options: FsOptions,
        device: DeviceOptions,
        runtime: Handle,
    ) -> io::Result<Self> {
        Self::serve_on(store, socket, options, device, runtime, None, Vec::new())
    }

    /// As [`serve`](Self::serve), with guests whose state `holder` holds, so that they outlive the
    /// process; and first of all with the guests that the previous process handed over there.
    pub fn serve_on(
        store: Arc<dyn Store>,
        socket: Socket,
        options: FsOptions,
        device: DeviceOptions,
        runtime: Handle,
        holder: Option<Arc<dyn DescriptorHolder>>,
        previous: Vec<PreviousGuest>,
    ) -> io::Result<Self> {
        let shown = GuestView {
            store,
            options: options.without_notifications(ROOT_TIMEOUT, MOST_DIRECTORIES),
            runtime,
            shows: device.shows.clone(),
            span: tracing::Span::current(),
            counters: RequestCounters::default(),
            replies: ReplyCounters::default(),
        };
        let device = DeviceOptions {
            request_queues: device.request_queues.clamp(1, MOST_QUEUES),
            ..device
        };
        let shared = Arc::new(EndpointInner {
            shown: Arc::new(shown),
            device,
            end: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            holder,
            handed_over: AtomicBool::new(false),
            guests: Mutex::default(),
            gone: Condvar::new(),
            connections: AtomicU64::new(0),
        });
        // One after the other, and last those that may have caused the death of the previous
        // process: if that happens again, no other guest is suspected.
        let mut previous = previous;
        previous.sort_by_key(|previous| previous.inflight.was_busy());
        for previous in previous {
            if let Err(error) = shared.clone().take_over(previous) {
                tracing::error!(error, "cannot take over a guest of the previous process");
            }
        }
        let accepting = shared.clone();
        let listener = socket.try_clone()?;
        std::thread::Builder::new()
            .name("virtiofs-accept".into())
            .spawn(move || accepting.accept(&socket, &listener))?;
        Ok(Self { shared })
    }

    /// Hands the guests over to the next process; this process has to end soon, as otherwise both
    /// serve them.
    pub fn hand_over(&self) {
        self.remember();
        self.shared.handed_over.store(true, Ordering::Relaxed);
        self.shared.stop_accepting();
    }

    /// Writes what was recorded so far, if the device has warm-up ([`FsOptions::warm_up`]).
    pub fn remember(&self) {
        let guests = self.shared.guests.lock();
        let guests: Vec<_> = guests.iter().map(|one| one.guest.clone()).collect();
        guests.iter().for_each(|guest| guest.remember());
    }

    /// Whether any guest is connected.
    pub fn has_guests(&self) -> bool {
        !self.shared.guests.lock().is_empty()
    }

    /// Ends for good, as the process is about to: the guests' pending and all later requests get
    /// EIO, until the guests are restarted.
    pub fn poison(&self) {
        self.shared.stop_accepting();
        self.remember();
        for connected in self.shared.guests.lock().iter() {
            connected.guest.dismiss();
            connected.rings.iter().for_each(Ring::poison);
            connected.record.end();
        }
    }

    /// The current state.
    pub fn status(&self) -> EndpointStatus {
        let guests = self.shared.guests.lock();
        EndpointStatus {
            connections: self.shared.connections.load(Ordering::Relaxed),
            traffic: Traffic::of(&self.shared.shown.counters, &self.shared.shown.replies),
            guests: guests
                .iter()
                .map(|ConnectedGuest { guest, .. }| GuestStatus {
                    nodes: guest.nodes(),
                })
                .collect(),
            warm_up: self
                .shared
                .shown
                .options
                .warm_up
                .as_ref()
                .map(WarmUpOptions::count),
        }
    }
}

impl Drop for VirtiofsEndpoint {
    /// Accepts no more connections. Connected guests get EIO from now on, until their front ends
    /// disconnect.
    fn drop(&mut self) {
        self.shared.stop_accepting();
        if self.shared.handed_over.load(Ordering::Relaxed) {
            return;
        }
        for connected in self.shared.guests.lock().iter() {
            connected.guest.dismiss();
            connected.record.end();
        }
    }
}

impl EndpointInner {
    fn stop_accepting(&self) {
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    fn accept(self: Arc<Self>, socket: &Socket, listener: &UnixListener) {
        while self.wait_for_connection(socket) {
            let connected = listener.accept().map_err(|error| error.to_string());
            if let Err(error) = connected.and_then(|(front, _)| self.clone().connect(front.into()))
            {
                tracing::error!(error, "cannot serve a front end");
                std::thread::sleep(EXHAUSTED);
            }
        }
    }

    /// Waits for another connection; returns false once the endpoint ends.
    fn wait_for_connection(&self, socket: &Socket) -> bool {
        loop {
            let mut guests = self.guests.lock();
            while guests.len() >= MOST_CONNECTIONS {
                self.gone.wait(&mut guests);
            }
            drop(guests);
            let mut waiting = [
                PollFd::new(socket, PollFlags::IN),
                PollFd::new(&self.end, PollFlags::IN),
            ];
            match poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for front ends");
                    return false;
                }
            }
            let [connection, end] = waiting.map(|waiting| !waiting.revents().is_empty());
            if end || connection {
                return !end;
            }
        }
    }

    /// Serves a new connection in a thread of its own.
    fn connect(self: Arc<Self>, front: OwnedFd) -> Result<(), String> {
        let reported = |error: io::Error| error.to_string();
        let record = match &self.holder {
            Some(holder) => GuestRecord::new(holder.clone(), front.as_fd()).map_err(reported)?,
            None => GuestRecord::own().map_err(reported)?,
        };
        let (connection, connected) = self.device(front, record).map_err(reported)?;
        let number = connected.number;
        self.guests.lock().push(connected);
        tracing::info!(number, "a front end has connected");
        self.start(number, connection)
    }

    /// Takes over a guest of the previous process, and serves it in a thread of its own.
    fn take_over(self: Arc<Self>, mut previous: PreviousGuest) -> Result<(), String> {
        let reported = |error: io::Error| error.to_string();
        let Some(holder) = &self.holder else {
            return Err("no other process holds its state".to_owned());
        };
        if previous.inflight.attempts() >= MOST_ATTEMPTS {
            previous.forget(&**holder);
            return Err(format!(
                "{MOST_ATTEMPTS} processes in a row died before they answered any of its requests"
            ));
        }
        previous.inflight.begins();
        let record = GuestRecord::take_over(holder.clone(), &previous).map_err(reported)?;
        let front = previous.front.try_clone().map_err(reported)?;
        let (mut connection, connected) = self.device(front, record).map_err(reported)?;
        if let Some(session) = previous.session.take() {
            connected.guest.take_over(session);
        }
        let (number, inflight) = (connected.number, previous.inflight.clone());
        self.guests.lock().push(connected);
        if let Err(error) = connection.take_over(previous) {
            self.disconnected(number);
            return Err(error.to_string());
        }
        inflight.taken_over();
        tracing::info!(number, "took over a guest of the previous process");
        self.start(number, connection)
    }

    fn device(
        &self,
        front: OwnedFd,
        record: Arc<GuestRecord>,
    ) -> io::Result<(FrontEndConnection, ConnectedGuest)> {
        let guest = Arc::new(Guest::new(self.shown.clone(), record.clone()));
        let DeviceOptions {
            tag,
            request_queues,
            ..
        } = self.device.clone();
        let device = VirtiofsDevice::new(guest.clone(), tag, request_queues, record.inflight())?;
        let connected = ConnectedGuest {
            number: self.connections.fetch_add(1, Ordering::Relaxed),
            guest,
            rings: device.rings().to_vec(),
            record: record.clone(),
        };
        Ok((FrontEndConnection::new(front, device, record)?, connected))
    }

    fn start(self: Arc<Self>, number: u64, connection: FrontEndConnection) -> Result<(), String> {
        let shared = self.clone();
        let serve = move || {
            match connection.serve() {
                Ok(()) => tracing::info!(number, "a front end has disconnected"),
                Err(ConnectionError::Protocol(ProtocolError::Disconnected)) => {
                    tracing::info!(number, "a front end has disconnected");
                }
                Err(error) => {
                    tracing::warn!(number, %error, "the connection of a front end was closed")
                }
            }
            shared.disconnected(number);
        };
        std::thread::Builder::new()
            .name("virtiofs-guest".into())
            .spawn(serve)
            .map(drop)
            .map_err(|error| {
                self.disconnected(number);
                error.to_string()
            })
    }

    /// Drops all pending requests of the guest: its front end has disconnected.
    fn disconnected(&self, number: u64) {
        let mut guests = self.guests.lock();
        let place = guests.iter().position(|other| other.number == number);
        if let Some(place) = place {
            let connected = guests.swap_remove(place);
            connected.guest.dismiss();
            connected.rings.iter().for_each(Ring::abandon);
            connected.record.end();
        }
        drop(guests);
        self.gone.notify_all();
    }
}
