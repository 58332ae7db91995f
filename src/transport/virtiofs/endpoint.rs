//! A socket and the front ends that are connected to it.
//!
//! Every connection is a guest of its own, with a node table of its own; nothing is shared but the
//! store. So a front end that connects again, or another that takes the place of one that was
//! killed, never meets what the one before left, nor has to wait for it to be cleared away.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use thiserror::Error;
use tokio::runtime::Handle;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DeviceError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::device::{Device, TAG_BYTES};
use super::session::{Guest, Shown};
use super::socket::Socket;
use crate::fs::{NodeCount, Options};
use crate::store::Store;
use crate::transport::requests::RequestCounts;

/// Request queues, at most: the crate has 64 queues, and one is for FORGET.
pub const MOST_QUEUES: usize = 63;
/// Front ends that are served at once on one socket. One is the rule; more is what a front end
/// looks like that reconnects faster than its old connection ends.
const MOST_CONNECTIONS: usize = 16;
/// How long to wait before the next connection when the system has no descriptors or threads left.
const EXHAUSTED: Duration = Duration::from_millis(500);

/// The name by which a guest mounts: 1 to 36 bytes, none of them NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

/// A tag that cannot be one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a tag has 1 to {TAG_BYTES} bytes, none of them NUL")]
pub struct TagError;

impl Tag {
    /// Checks `tag`.
    pub fn new(tag: &str) -> Result<Self, TagError> {
        match (1..=TAG_BYTES).contains(&tag.len()) && !tag.contains('\0') {
            true => Ok(Self(tag.to_owned())),
            false => Err(TagError),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What the device is like.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// For front ends that ask the device for it (crosvm does); QEMU and cloud-hypervisor have it
    /// on their command line.
    pub tag: Option<Tag>,
    /// Request queues, 1 to [`MOST_QUEUES`], each with a worker. A front end can use fewer.
    pub request_queues: usize,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            tag: None,
            request_queues: 8,
        }
    }
}

/// A socket that is being served, until it is dropped.
pub struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    shown: Arc<Shown>,
    device: DeviceOptions,
    /// Readable when no more connections are to be taken.
    end: OwnedFd,
    guests: Mutex<Vec<(u64, Arc<Guest>)>>,
    /// Told when a connection ends.
    left: Condvar,
    connections: AtomicU64,
}

/// What goes on at an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Front ends that connected so far.
    pub connections: u64,
    /// Those that are connected.
    pub guests: Vec<GuestStatus>,
}

/// What one guest does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStatus {
    /// Requests so far.
    pub requests: RequestCounts,
    /// Nodes that it knows.
    pub nodes: NodeCount,
}

impl Endpoint {
    /// Serves `store` to the front ends that connect to `socket`, as `options` say. Requests that
    /// have to wait do so on `runtime`.
    pub fn serve(
        store: Arc<dyn Store>,
        socket: Socket,
        options: Options,
        device: DeviceOptions,
        runtime: Handle,
    ) -> io::Result<Self> {
        let shown = Shown {
            store,
            options,
            runtime,
        };
        let device = DeviceOptions {
            request_queues: device.request_queues.clamp(1, MOST_QUEUES),
            ..device
        };
        let shared = Arc::new(Shared {
            shown: Arc::new(shown),
            device,
            end: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            guests: Mutex::default(),
            left: Condvar::new(),
            connections: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        let listener = Listener::from(socket.try_clone()?);
        std::thread::Builder::new()
            .name("virtiofs-accept".into())
            .spawn(move || accepting.accept(&socket, listener))?;
        Ok(Self { shared })
    }

    /// What goes on.
    pub fn status(&self) -> EndpointStatus {
        let guests = self.shared.guests.lock();
        EndpointStatus {
            connections: self.shared.connections.load(Ordering::Relaxed),
            guests: guests
                .iter()
                .map(|(_, guest)| GuestStatus {
                    requests: guest.requests(),
                    nodes: guest.nodes(),
                })
                .collect(),
        }
    }
}

impl Drop for Endpoint {
    /// Takes no more connections. Whoever is connected is answered EIO from now on, and leaves when
    /// it likes.
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes());
        for (_, guest) in self.shared.guests.lock().iter() {
            guest.dismiss();
        }
    }
}

impl Shared {
    fn accept(self: Arc<Self>, socket: &Socket, mut listener: Listener) {
        while self.wait_for_connection(socket) {
            if let Err(error) = self.clone().connect(&mut listener) {
                tracing::error!(%error, "cannot serve a front end");
                std::thread::sleep(EXHAUSTED);
            }
        }
    }

    /// Whether there is another connection to take; not, once the endpoint ends.
    fn wait_for_connection(&self, socket: &Socket) -> bool {
        loop {
            let mut guests = self.guests.lock();
            while guests.len() >= MOST_CONNECTIONS {
                self.left.wait(&mut guests);
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

    /// Takes a connection and serves it in a thread of its own.
    fn connect(self: Arc<Self>, listener: &mut Listener) -> Result<(), String> {
        let guest = Arc::new(Guest::new(self.shown.clone()));
        let device = Device::new(
            guest.clone(),
            self.device.tag.clone(),
            self.device.request_queues,
        );
        let device = Arc::new(device.map_err(|error| error.to_string())?);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), device.clone(), memory)
            .map_err(|error| error.to_string())?;
        daemon.start(listener).map_err(|error| error.to_string())?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        self.guests.lock().push((number, guest));
        tracing::info!(number, "a front end has connected");
        let wait = move || {
            match daemon.wait() {
                Ok(())
                | Err(DeviceError::HandleRequest(
                    ProtocolError::Disconnected | ProtocolError::PartialMessage,
                )) => tracing::info!(number, "a front end has left"),
                Err(error) => tracing::warn!(number, %error, "a front end was cut off"),
            }
            device.disconnected();
            self.guests.lock().retain(|(other, _)| *other != number);
            self.left.notify_all();
            // Ends the queues' threads, which may still wait for a store.
            drop(daemon);
        };
        std::thread::Builder::new()
            .name("virtiofs-guest".into())
            .spawn(wait)
            .map_err(|error| error.to_string())?;
        Ok(())
    }
}
