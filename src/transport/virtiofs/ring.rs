//! A virtqueue, and the requests that were taken from it and are not answered yet.
//!
//! The ring itself is the crate's, behind its lock. Around it stands a list of what was taken, for
//! two reasons. A queue can be stopped at any moment (the guest resets, the VM is paused), and
//! from then on its memory belongs to somebody else: a reply that comes late must not be written.
//! And a paused VM goes on with the ring where it stopped: a request that was taken and never
//! answered would hang its program for ever. So stopping a queue first lets what was taken
//! finish; what takes too long is answered with EIO while the queue still stands, and its own
//! reply, when it comes at last, finds its ticket gone.
//!
//! Locks are taken in the order `taken`, then the crate's, and held for the moment of taking or
//! giving back one request; nobody serves a request under either.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vhost_user_backend::{VringRwLock, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::chain::{Chain, Malformed, Room};
use super::crew::Crew;
use super::session::failure;

/// The memory of a guest, which its front end may exchange.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// How long the stop of a queue waits for what was taken from it. The whole VM may stand still for
/// so long, since QEMU waits for us with its big lock held.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A virtqueue. Clones are the same queue.
#[derive(Clone)]
pub struct Ring(Arc<Inner>);

struct Inner {
    vring: VringRwLock<Memory>,
    memory: Memory,
    taken: Mutex<Taken>,
    /// Told when the last request is given back.
    settled: Condvar,
    crew: Crew,
}

/// What was taken from the ring.
#[derive(Default)]
struct Taken {
    requests: HashMap<Ticket, Outstanding>,
    last: u64,
    /// Nothing more is to be taken for now.
    stopping: bool,
    /// Nor ever again.
    abandoned: bool,
}

/// Names a request that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// Where the reply to a request goes.
struct Outstanding {
    head: u16,
    room: Room,
    /// From the header, once it was read.
    unique: u64,
}

/// What there was to take.
pub enum Took {
    /// A request: its bytes lie in the buffer that was given.
    Request {
        /// To give it back by.
        ticket: Ticket,
        /// Bytes that the guest leaves for the reply.
        room: usize,
    },
    /// A chain of descriptors that is no request. It was given back already.
    Malformed(Malformed),
    /// Nothing, for now.
    Nothing,
    /// The queue does not run.
    Stopped,
    /// The indices of the ring contradict each other: there is nothing more to take until the
    /// guest sets it up anew.
    Broken,
}

impl Ring {
    /// Takes the next request into `request`.
    pub fn take(&self, request: &mut Vec<u8>) -> Took {
        let mut taken = self.0.taken.lock();
        if taken.stopping || taken.abandoned {
            return Took::Stopped;
        }
        let memory = self.0.memory.memory().into_inner();
        let popped = {
            let mut state = self.0.vring.get_mut();
            if !state.is_enabled() || !state.get_queue().ready() {
                return Took::Stopped;
            }
            match state.get_queue_mut().iter(memory.clone()) {
                Ok(mut chains) => chains.next(),
                Err(_) => return Took::Broken,
            }
        };
        let Some(popped) = popped else {
            return Took::Nothing;
        };
        let head = popped.head_index();
        match Chain::read(popped, request, memory) {
            Ok(Chain { room, unique }) => {
                taken.last += 1;
                let ticket = Ticket(taken.last);
                let bytes = room.len();
                let outstanding = Outstanding { head, room, unique };
                taken.requests.insert(ticket, outstanding);
                Took::Request {
                    ticket,
                    room: bytes,
                }
            }
            Err(malformed) => {
                self.give_back(head, 0);
                Took::Malformed(malformed)
            }
        }
    }

    /// Gives a request back with its reply; none is what FORGET gets. Does nothing if the queue was
    /// stopped meanwhile.
    pub fn reply(&self, ticket: Ticket, reply: &[u8]) {
        let mut taken = self.0.taken.lock();
        let Some(outstanding) = taken.requests.remove(&ticket) else {
            return;
        };
        self.settle(&outstanding, reply);
        if taken.requests.is_empty() {
            self.0.settled.notify_all();
        }
    }

    fn settle(&self, outstanding: &Outstanding, reply: &[u8]) {
        // Memory that the guest named and does not have holds no reply.
        let written = outstanding.room.write(reply).unwrap_or(0);
        self.give_back(outstanding.head, written);
    }

    /// Puts a chain into the used ring, and tells the guest if it wants to be told.
    fn give_back(&self, head: u16, written: u32) {
        let notify = {
            let mut state = self.0.vring.get_mut();
            if state.add_used(head, written).is_err() {
                return;
            }
            state.needs_notification().unwrap_or(true)
        };
        if notify && let Err(error) = self.0.vring.signal_used_queue() {
            tracing::debug!(%error, "cannot notify the guest");
        }
    }

    /// Waits until everything that was taken is given back, but not for ever, and keeps more from
    /// being taken; then does `stop`.
    fn stop(&self, stop: impl FnOnce(&VringRwLock<Memory>)) {
        let mut taken = self.0.taken.lock();
        taken.stopping = true;
        let deadline = Instant::now() + STOP_PATIENCE;
        while !taken.requests.is_empty() {
            if self.0.settled.wait_until(&mut taken, deadline).timed_out() {
                break;
            }
        }
        for (_, outstanding) in taken.requests.drain() {
            self.settle(&outstanding, &failure(outstanding.unique, libc::EIO));
        }
        stop(&self.0.vring);
        taken.stopping = false;
    }

    /// Lets what was taken fall: its guest is gone.
    pub fn abandon(&self) {
        let mut taken = self.0.taken.lock();
        taken.abandoned = true;
        taken.requests.clear();
        self.0.settled.notify_all();
        drop(taken);
        self.0.crew.dismiss();
    }

    /// Tells the guest whether to kick. Gives whether there is something to take that it may not
    /// have kicked for.
    pub fn want_kicks(&self, wanted: bool) -> bool {
        let outcome = match wanted {
            true => self.0.vring.enable_notification(),
            false => self.0.vring.disable_notification().map(|()| false),
        };
        // Rings that are not in memory hold nothing.
        outcome.unwrap_or(false)
    }

    /// The threads that serve this queue.
    pub fn crew(&self) -> &Crew {
        &self.0.crew
    }

    /// Kicks the queue, if it runs: what lay in it when it was stopped has no kick any more.
    fn kick(&self) {
        let state = self.0.vring.get_ref();
        if let Some(kick) = state.get_kick()
            && state.is_enabled()
            && state.get_queue().ready()
        {
            // SAFETY: the descriptor is open as long as the vring has it, and we hold its lock.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            // One that cannot be written to is no eventfd, and its other end has to kick.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = RwLockReadGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = RwLockWriteGuard<'a, VringState<Memory>>;
}

/// What the crate does to a queue as the front end asks it to. All of it is the crate's own, except
/// that a stop waits, and that the crew hears of a new kick.
impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let crew = Crew::new().map_err(|error| {
            tracing::error!(%error, "cannot make a queue");
            QueueError::QueueNotReady
        })?;
        Ok(Self(Arc::new(Inner {
            vring: VringRwLock::new(memory.clone(), max_queue_size)?,
            memory,
            taken: Mutex::default(),
            settled: Condvar::new(),
            crew,
        })))
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.vring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.vring.get_mut()
    }

    fn add_used(&self, head: u16, written: u32) -> Result<(), QueueError> {
        self.0.vring.add_used(head, written)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.vring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.0.vring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.0.vring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.0.vring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        if enabled {
            self.0.vring.set_enabled(true);
            self.kick();
        } else {
            self.stop(|vring| vring.set_enabled(false));
        }
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.0.vring.set_queue_info(table, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.vring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.vring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.vring.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.0.vring.queue_used_idx()
    }

    fn set_queue_size(&self, entries: u16) {
        self.0.vring.set_queue_size(entries);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.vring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        if ready {
            self.0.vring.set_queue_ready(true);
            self.kick();
        } else {
            self.stop(|vring| vring.set_queue_ready(false));
        }
    }

    fn set_kick(&self, file: Option<File>) {
        {
            let state = self.0.vring.get_ref();
            let old = state.get_kick().as_ref().map(AsRawFd::as_raw_fd);
            // SAFETY: the descriptor is open as long as the vring has it, and we hold its lock.
            let old = old.map(|old| unsafe { BorrowedFd::borrow_raw(old) });
            self.0
                .crew
                .kick_changes(old, file.as_ref().map(AsFd::as_fd));
        }
        self.0.vring.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.vring.read_kick() {
            // Somebody else's epoll was told of a kick that is no longer there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.0.vring.get_ref().is_enabled())
            }
            outcome => outcome,
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.0.vring.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.vring.set_err(file);
    }
}
