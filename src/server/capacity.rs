//! What all servers of a process may take together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::{BudgetShare, ConnectionBudget};
use super::client::ClientId;
use super::limits::{FRAME, ServerLimits};
use super::turns::{ConnectionTurns, ServerTurns};

/// Calls that a connection may have in any case.
const CALLS: usize = 4;
/// Connections that wait for a place, of all clients.
const WAITING: usize = 64;

/// The memory, calls, threads and connections of the servers of a process: one budget for all listeners,
/// of which no client takes so much that another is not served. Clones are the same.
#[derive(Clone)]
pub struct Capacity(pub(super) Arc<CapacityParts>);

pub(super) struct CapacityParts {
    pub(super) start: Instant,
    /// The most connections that one of the servers takes.
    pub(super) connections: AtomicUsize,
    pub(super) open: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    pub(super) next: AtomicU64,
    pub(super) closed: Notify,
    /// Places to wait for a connection to be closed.
    pub(super) waiting: Arc<ConnectionBudget>,
    pub(super) calls: Arc<ConnectionBudget>,
    pub(super) uploads: Arc<ConnectionBudget>,
    pub(super) requests: Arc<ConnectionBudget>,
    pub(super) responses: Arc<ConnectionBudget>,
    pub(super) turns: ServerTurns,
}

/// One connection, for its calls.
pub(super) struct ConnectionState {
    pub(super) capacity: Capacity,
    /// The limits of its server, which has no other.
    pub(super) limits: Arc<ServerLimits>,
    pub(super) number: u64,
    pub(super) client: ClientId,
    /// Calls that have begun and not ended.
    pub(super) open_calls: AtomicUsize,
    /// Calls that have ever begun.
    pub(super) begun: AtomicU64,
    /// When it was active for the last time, in milliseconds since the server's start.
    pub(super) active: AtomicU64,
    pub(super) close: AtomicBool,
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
    pub(super) calls: Arc<BudgetShare>,
    pub(super) uploads: Arc<BudgetShare>,
    pub(super) requests: Arc<BudgetShare>,
    pub(super) responses: Arc<BudgetShare>,
    pub(super) turns: ConnectionTurns,
}

/// A call that runs: its connection is not idle meanwhile.
pub(super) struct OpenCall(Arc<ConnectionState>);

impl Capacity {
    /// As much as `limits` allow.
    pub fn new(limits: &ServerLimits) -> Self {
        Self(Arc::new(CapacityParts {
            start: Instant::now(),
            connections: AtomicUsize::new(limits.connections),
            open: Mutex::default(),
            next: AtomicU64::new(0),
            closed: Notify::new(),
            waiting: ConnectionBudget::new(WAITING, 0),
            calls: ConnectionBudget::new(limits.calls, CALLS),
            uploads: ConnectionBudget::new(limits.uploads, 1),
            requests: ConnectionBudget::new(limits.request_memory, FRAME),
            responses: ConnectionBudget::new(limits.response_memory, FRAME),
            turns: ServerTurns::new(),
        }))
    }

    /// Takes part in it with a server of these limits.
    pub(super) fn join(&self, limits: &ServerLimits) {
        let connections = &self.0.connections;
        connections.fetch_max(limits.connections, Ordering::Relaxed);
    }

    /// Milliseconds since the start.
    pub(super) fn now(&self) -> u64 {
        self.0.start.elapsed().as_millis() as u64
    }

    /// The turns of the servers themselves.
    pub(super) fn own_turns(&self) -> ConnectionTurns {
        self.0.turns.share(ClientId::Server)
    }
}

impl std::fmt::Debug for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Capacity")
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
        let now = self.capacity.now();
        self.active.store(now, Ordering::Relaxed);
    }

    /// Calls that have begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether it is being closed.
    pub(super) fn closes(&self) -> bool {
        self.close.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
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
