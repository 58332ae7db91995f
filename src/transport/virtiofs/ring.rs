//! A virtqueue, and its requests in flight.
//!
//! The crate's queue is accompanied by a list of the requests in flight, for three reasons. A queue
//! can be stopped at any moment (the guest resets, the VM is paused), and from then on its memory
//! is no longer the device's: a late reply must not be written. A paused VM continues with the ring
//! where it stopped: a request that was taken and never answered would hang its program for ever.
//! So stopping a queue first lets the requests in flight finish; those that take too long are
//! answered with EIO while the queue still runs, and their own replies, when they come at last,
//! find an obsolete ticket. And the process can die: the list is kept where the next process finds
//! it (`inflight`), which serves its requests first.
//!
//! The lock is held only for taking or returning one request. Requests are served without it, and
//! replies are copied into the guest without it; a stop waits for such copies.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::Opcode;
use parking_lot::{Condvar, Mutex, MutexGuard};
use thiserror::Error;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic,
    GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use super::chain::{MalformedChain, ReplyBuffers, RequestChain};
use super::inflight::{MOST_TRIES, QueueInflight, RecoveredRequest, SLOTS};
use super::queue_events::QueueEvents;
use super::session::failure;

/// The memory of a guest, which its front end may exchange.
pub(super) type MappedGuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// How long the stop of a queue waits for the requests in flight. The whole VM may stand still for
/// so long, since QEMU waits with its big lock held.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the process waits for them.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Where `struct fuse_in_header` has the opcode.
const OPCODE: std::ops::Range<usize> = 4..8;

/// The queue's places in memory are not aligned as the protocol wants.
#[derive(Debug, Error)]
#[error("the queue cannot be there: {0}")]
pub(super) struct MisalignedQueue(String);

/// A virtqueue. Clones are the same queue.
#[derive(Clone)]
pub(super) struct Ring(Arc<VringInner>);

struct VringInner {
    memory: MappedGuestMemory,
    inflight: QueueInflight,
    state: Mutex<VringState>,
    /// Notified when the last request is returned, and the last reply copied.
    settled: Condvar,
    queue_events: QueueEvents,
}

struct VringState {
    queue: Queue,
    enabled: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    taken: HashMap<RequestTicket, OutstandingReply>,
    /// How many requests were ever taken.
    last: u64,
    /// Free slots of the record.
    free: Vec<u16>,
    /// Requests that the previous process had taken, not served again yet.
    again: VecDeque<RecoveredRequest>,
    /// Replies that are being copied to the guest.
    copying: usize,
    /// No request is to be taken for now.
    stopping: bool,
    /// No request is ever to be taken again.
    abandoned: bool,
}

/// Identifies a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestTicket(u64);

/// Where the reply to a request goes.
struct OutstandingReply {
    head: u16,
    slot: u16,
    room: ReplyBuffers,
    /// From the header, once it was read.
    unique: u64,
}

/// The result of taking a request.
pub(super) enum TakenRequest {
    /// A request: its bytes are in the buffer.
    Request {
        /// Needed to return it.
        ticket: RequestTicket,
        /// Bytes that the guest leaves for the reply.
        room: usize,
    },
    /// A chain of descriptors that is no request. It was returned already.
    Malformed(MalformedChain),
    /// Nothing, for now.
    Nothing,
    /// The queue does not run.
    Stopped,
    /// The indices of the ring are inconsistent: there is nothing more to take until the guest sets
    /// the queue up again.
    Broken,
}

impl Ring {
    /// A queue of up to `entries` in `memory` that does not run yet; what is taken from it is
    /// recorded in `inflight`.
    pub(super) fn new(
        memory: MappedGuestMemory,
        entries: u16,
        inflight: QueueInflight,
        queue_events: QueueEvents,
    ) -> Result<Self, QueueError> {
        Ok(Self(Arc::new(VringInner {
            state: Mutex::new(VringState {
                queue: Queue::new(entries)?,
                enabled: false,
                kick: None,
                call: None,
                taken: HashMap::new(),
                last: 0,
                free: (0..SLOTS as u16).collect(),
                again: VecDeque::new(),
                copying: 0,
                stopping: false,
                abandoned: false,
            }),
            memory,
            inflight,
            settled: Condvar::new(),
            queue_events,
        })))
    }

    fn memory(&self) -> Arc<GuestMemoryMmap> {
        self.0.memory.memory().into_inner()
    }

    /// Takes the next request into `request`.
    pub(super) fn take(&self, request: &mut Vec<u8>) -> TakenRequest {
        let mut state = self.0.state.lock();
        let stopping = state.stopping && state.again.is_empty();
        if stopping || state.abandoned || !state.enabled || !state.queue.ready() {
            return TakenRequest::Stopped;
        }
        let inflight = &self.0.inflight;
        inflight.touch(|| self.next(&mut state, request))
    }

    fn next(&self, state: &mut VringState, request: &mut Vec<u8>) -> TakenRequest {
        let memory = self.memory();
        while let Some(again) = state.again.pop_front() {
            let chain = chain_at(&state.queue, &memory, again.head);
            let Some(chain) = chain.filter(|_| !again.forgets) else {
                self.give_back(state, again.slot, again.head, 0);
                continue;
            };
            let begun = self.begin(
                state,
                again.slot,
                again.tries,
                chain,
                request,
                memory.clone(),
            );
            match begun {
                TakenRequest::Request { ticket, .. } if again.tries >= MOST_TRIES => {
                    tracing::error!(
                        "a request crashed {MOST_TRIES} processes in a row; it gets EIO"
                    );
                    if let Some(outstanding) = state.taken.remove(&ticket) {
                        self.fail(state, &outstanding);
                    }
                }
                begun => return begun,
            }
        }
        if state.stopping {
            return TakenRequest::Stopped;
        }
        // There is one for each descriptor of the ring.
        let Some(slot) = state.free.last().copied() else {
            return TakenRequest::Nothing;
        };
        let chain = match state.queue.iter(memory.clone()) {
            Ok(mut chains) => chains.next(),
            Err(_) => return TakenRequest::Broken,
        };
        let Some(chain) = chain else {
            return TakenRequest::Nothing;
        };
        state.free.pop();
        self.begin(state, slot, 0, chain, request, memory)
    }

    /// Begins a request that `tries` processes have begun before.
    fn begin(
        &self,
        state: &mut VringState,
        slot: u16,
        tries: u8,
        chain: DescriptorChain<Arc<GuestMemoryMmap>>,
        request: &mut Vec<u8>,
        memory: Arc<GuestMemoryMmap>,
    ) -> TakenRequest {
        let head = chain.head_index();
        state.last += 1;
        match RequestChain::read(chain, request, memory) {
            Ok(RequestChain { room, unique }) => {
                let ticket = RequestTicket(state.last);
                let inflight = &self.0.inflight;
                inflight.take(slot, head, is_forget(request), tries + 1, state.last);
                let bytes = room.len();
                let outstanding = OutstandingReply {
                    head,
                    slot,
                    room,
                    unique,
                };
                state.taken.insert(ticket, outstanding);
                TakenRequest::Request {
                    ticket,
                    room: bytes,
                }
            }
            Err(malformed) => {
                self.0
                    .inflight
                    .take(slot, head, false, tries + 1, state.last);
                self.give_back(state, slot, head, 0);
                TakenRequest::Malformed(malformed)
            }
        }
    }

    /// Returns a request with its reply; FORGET has none. Does nothing if the queue was stopped
    /// meanwhile.
    pub(super) fn reply(&self, ticket: RequestTicket, reply: &[u8]) {
        let mut state = self.0.state.lock();
        let Some(outstanding) = state.taken.remove(&ticket) else {
            return;
        };
        state.copying += 1;
        drop(state);
        // There is no reply in memory that the guest named and does not have.
        let written = outstanding.room.write(reply).unwrap_or(0);
        let mut state = self.0.state.lock();
        state.copying -= 1;
        self.give_back(&mut state, outstanding.slot, outstanding.head, written);
        if state.is_settled() {
            self.0.settled.notify_all();
        }
    }

    /// Puts a chain into the used ring, and notifies the guest if it wants notifications.
    fn give_back(&self, state: &mut VringState, slot: u16, head: u16, written: u32) {
        if state.abandoned {
            return;
        }
        let memory = self.memory();
        self.0.inflight.settling(slot, state.queue.next_used());
        let added = state.queue.add_used(&*memory, head, written);
        self.0.inflight.settled(slot);
        state.free.push(slot);
        if added.is_ok() && state.queue.needs_notification(&*memory).unwrap_or(true) {
            state.call();
        }
    }

    /// Waits until all requests in flight are returned, up to a limit, and lets no more be taken;
    /// those that remain are answered with EIO.
    fn settle(&self, patience: Duration) -> MutexGuard<'_, VringState> {
        let mut state = self.0.state.lock();
        state.stopping = true;
        let deadline = Instant::now() + patience;
        while !state.is_settled() {
            if self.0.settled.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        // A copy takes a moment, and never waits.
        while state.copying > 0 {
            self.0
                .settled
                .wait_for(&mut state, Duration::from_millis(10));
        }
        let late = std::mem::take(&mut state.taken);
        for outstanding in late.into_values() {
            self.fail(&mut state, &outstanding);
        }
        if !state.again.is_empty() {
            self.fail_all(&mut state);
        }
        state
    }

    /// Answers EIO to the requests that the previous process had taken, and, unless the queue is
    /// being stopped, to those in the ring.
    fn fail_all(&self, state: &mut VringState) {
        let mut request = Vec::new();
        loop {
            match self.next(state, &mut request) {
                TakenRequest::Request { ticket, .. } => {
                    if let Some(outstanding) = state.taken.remove(&ticket) {
                        self.fail(state, &outstanding);
                    }
                }
                TakenRequest::Malformed(_) => {}
                TakenRequest::Nothing | TakenRequest::Stopped | TakenRequest::Broken => return,
            }
        }
    }

    fn fail(&self, state: &mut VringState, outstanding: &OutstandingReply) {
        let reply = failure(outstanding.unique, libc::EIO);
        let written = outstanding.room.write(&reply).unwrap_or(0);
        self.give_back(state, outstanding.slot, outstanding.head, written);
    }

    /// Drops the requests in flight: their guest is gone.
    pub(super) fn abandon(&self) {
        let mut state = self.0.state.lock();
        state.abandoned = true;
        state.taken.clear();
        self.0.settled.notify_all();
        drop(state);
        self.0.queue_events.dismiss();
    }

    /// Ends the queue for a guest that lives on, because the process ends and no other takes over:
    /// the requests in flight get EIO, and so do all later ones, from the guest's own driver.
    ///
    /// For that the used ring gets an invalid entry. A driver that finds one considers the device
    /// broken until it is reset, and fails all requests (Linux: `BAD_RING` in virtio_ring.c).
    /// Otherwise requests would wait for ever, since no front end notifies its guest that the
    /// process of the device has ended.
    pub(super) fn poison(&self) {
        let mut state = self.settle(END_PATIENCE);
        let memory = self.memory();
        if state.abandoned || !state.queue.ready() {
            return;
        }
        state.stopping = false;
        self.fail_all(&mut state);
        state.abandoned = true;
        let entries = u64::from(state.queue.size().max(1));
        let used = state.queue.next_used();
        let slot = 4 + u64::from(used) % entries * 8;
        let address = GuestAddress(state.queue.used_ring());
        let broken = [u32::MAX.to_le(), 0];
        if let (Some(slot), Some(index)) = (address.checked_add(slot), address.checked_add(2))
            && memory.write_obj(broken, slot).is_ok()
        {
            let next = used.wrapping_add(1).to_le();
            let _ = memory.store(next, index, std::sync::atomic::Ordering::SeqCst);
            state.call();
        }
    }

    /// Notifies the guest whether to kick. Returns whether there is a request that may have had no
    /// kick.
    pub(super) fn want_kicks(&self, wanted: bool) -> bool {
        let memory = self.memory();
        let queue = &mut self.0.state.lock().queue;
        let outcome = self.0.inflight.touch(|| match wanted {
            true => queue.enable_notification(&*memory),
            false => queue.disable_notification(&*memory).map(|()| false),
        });
        // Rings outside of memory are empty.
        outcome.unwrap_or(false)
    }

    /// The threads that serve this queue.
    pub(super) fn queue_events(&self) -> &QueueEvents {
        &self.0.queue_events
    }

    /// How many entries the queue has.
    pub(super) fn set_entries(&self, entries: u16) {
        self.0.state.lock().queue.set_size(entries);
    }

    /// Where the queue lies in the guest's memory. The number of returned requests is read there.
    pub(super) fn set_places(
        &self,
        table: u64,
        available: u64,
        used: u64,
    ) -> Result<(), MisalignedQueue> {
        let memory = self.memory();
        let queue = &mut self.0.state.lock().queue;
        let place = |error: QueueError| MisalignedQueue(error.to_string());
        queue
            .try_set_desc_table_address(GuestAddress(table))
            .map_err(place)?;
        queue
            .try_set_avail_ring_address(GuestAddress(available))
            .map_err(place)?;
        queue
            .try_set_used_ring_address(GuestAddress(used))
            .map_err(place)?;
        let used = queue
            .used_idx(&*memory, std::sync::atomic::Ordering::Relaxed)
            .map_err(place)?;
        queue.set_next_used(used.0);
        Ok(())
    }

    /// Whether the guest states at which index it wants kicks and notifications.
    pub(super) fn set_event_idx(&self, agreed: bool) {
        self.0.state.lock().queue.set_event_idx(agreed);
    }

    /// Where the queue begins when it is started.
    pub(super) fn set_base(&self, base: u16) {
        self.0.inflight.set_base(base);
        self.0.state.lock().queue.set_next_avail(base);
    }

    /// The descriptor for the guest's kicks. The queue starts with it.
    pub(super) fn set_kick(&self, kick: Option<File>) {
        let mut state = self.0.state.lock();
        let new = kick.map(OwnedFd::from);
        self.0.queue_events.kick_changes(
            state.kick.as_ref().map(AsFd::as_fd),
            new.as_ref().map(AsFd::as_fd),
        );
        state.kick = new;
        if state.kick.is_some() && !state.queue.ready() {
            self.start(&mut state);
        }
        state.kick();
    }

    /// Starts the queue where it is to begin; or, if the previous process ran it, where that stood.
    fn start(&self, state: &mut VringState) {
        let inflight = &self.0.inflight;
        if inflight.runs() {
            let used = state.queue.next_used();
            let again = inflight.recover(used);
            state
                .free
                .retain(|slot| again.iter().all(|again| again.slot != *slot));
            state
                .queue
                .set_next_avail(used.wrapping_add(again.len() as u16));
            state.again = again.into();
            // A reply may have been given without a notification.
            state.call();
        } else {
            state.queue.set_next_avail(inflight.base());
            inflight.starts();
        }
        state.queue.set_ready(true);
    }

    /// The descriptor for notifications of the guest.
    pub(super) fn set_call(&self, call: Option<File>) {
        self.0.state.lock().call = call.map(OwnedFd::from);
    }

    /// Whether the queue is to be served.
    pub(super) fn set_enabled(&self, enabled: bool) {
        if enabled {
            let mut state = self.0.state.lock();
            state.enabled = true;
            state.kick();
        } else {
            let mut state = self.settle(STOP_PATIENCE);
            state.enabled = false;
            state.stopping = false;
        }
    }

    /// Stops the queue; returns where it is to continue.
    pub(super) fn stop(&self) -> u16 {
        let mut state = self.settle(STOP_PATIENCE);
        let base = state.queue.next_avail();
        self.0.inflight.stops(base);
        state.queue.set_ready(false);
        self.0
            .queue_events
            .kick_changes(state.kick.as_ref().map(AsFd::as_fd), None);
        (state.kick, state.call) = (None, None);
        state.stopping = false;
        base
    }
}

impl VringState {
    /// Whether all requests in flight are returned. Those of the previous process count as long as
    /// the queue can be served.
    fn is_settled(&self) -> bool {
        let is_served = self.enabled && self.queue.ready();
        self.taken.is_empty() && self.copying == 0 && (self.again.is_empty() || !is_served)
    }

    /// Kicks the queue, if it runs: requests that were in it when it was stopped have had their
    /// kick.
    fn kick(&self) {
        if let Some(kick) = &self.kick
            && self.enabled
            && self.queue.ready()
        {
            // A descriptor that cannot be written to is no eventfd, and its other end has to kick.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }

    /// Notifies the guest of a reply.
    fn call(&self) {
        if let Some(call) = &self.call
            && let Err(error) = rustix::io::write(call, &1u64.to_ne_bytes())
        {
            tracing::debug!(%error, "cannot notify the guest");
        }
    }
}

fn is_forget(request: &[u8]) -> bool {
    let opcode = request.get(OPCODE).and_then(|word| word.try_into().ok());
    let opcode = opcode.map(u32::from_ne_bytes);
    [Opcode::Forget, Opcode::BatchForget]
        .iter()
        .any(|forget| opcode == Some(*forget as u32))
}

/// The chain that begins at `head`, wherever the available ring stands.
///
/// The crate makes chains only from rings, so this one gets a ring of its own, with that head in
/// it, beyond the end of the guest's memory.
fn chain_at(
    queue: &Queue,
    memory: &GuestMemoryMmap,
    head: u16,
) -> Option<DescriptorChain<Arc<GuestMemoryMmap>>> {
    const RING: usize = 4096;
    let end = memory.last_addr().checked_add(1)?;
    let start = end.checked_align_up(RING as u64)?;
    let region = GuestRegionMmap::new(MmapRegion::<()>::new(RING).ok()?, start)?;
    let memory = memory.insert_region(Arc::new(region)).ok()?;
    // Flags, the index, and the first entry.
    memory
        .write_obj([0u16, 1u16.to_le(), head.to_le()], start)
        .ok()?;
    let mut single = Queue::new(queue.max_size()).ok()?;
    single.set_size(queue.size());
    single
        .try_set_desc_table_address(GuestAddress(queue.desc_table()))
        .ok()?;
    single.try_set_avail_ring_address(start).ok()?;
    single.set_ready(true);
    single.iter(Arc::new(memory)).ok()?.next()
}
