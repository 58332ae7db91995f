//! What all servers of a process may take together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::Budget;
use super::client::Client;
use super::connections::ConnectionState;
use super::guard::FRAME;
use super::limits::Limits;
use super::turns::{OwnTurns, Turns};

/// Calls that a connection may have in any case.
const CALLS: usize = 4;
/// Connections that wait for a place, of all clients.
const WAITING: usize = 64;

/// The memory, calls, threads and connections of the servers of a process: one budget for all listeners,
/// of which no client takes so much that another is not served. Clones are the same.
#[derive(Clone)]
pub struct Capacity(pub(super) Arc<Parts>);

pub(super) struct Parts {
    pub(super) start: Instant,
    /// The most connections that one of the servers takes.
    pub(super) connections: AtomicUsize,
    pub(super) open: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    pub(super) next: AtomicU64,
    pub(super) closed: Notify,
    /// Places to wait for a connection to be closed.
    pub(super) waiting: Arc<Budget>,
    pub(super) calls: Arc<Budget>,
    pub(super) uploads: Arc<Budget>,
    pub(super) requests: Arc<Budget>,
    pub(super) responses: Arc<Budget>,
    pub(super) turns: Turns,
}

impl Capacity {
    /// As much as `limits` say.
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(Parts {
            start: Instant::now(),
            connections: AtomicUsize::new(limits.connections),
            open: Mutex::default(),
            next: AtomicU64::new(0),
            closed: Notify::new(),
            waiting: Budget::new(WAITING, 0),
            calls: Budget::new(limits.calls, CALLS),
            uploads: Budget::new(limits.uploads, 1),
            requests: Budget::new(limits.request_memory, FRAME),
            responses: Budget::new(limits.response_memory, FRAME),
            turns: Turns::new(),
        }))
    }

    /// Takes part in it with a server of these limits.
    pub(super) fn join(&self, limits: &Limits) {
        let connections = &self.0.connections;
        connections.fetch_max(limits.connections, Ordering::Relaxed);
    }

    /// The turns of the servers themselves.
    pub(super) fn own_turns(&self) -> OwnTurns {
        self.0.turns.share(Client::Server)
    }
}

impl std::fmt::Debug for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Capacity")
    }
}
