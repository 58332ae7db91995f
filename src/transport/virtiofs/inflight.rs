//! Requests in flight, in memory that outlives the process.
//!
//! **Problem.** A ring shows how far it was filled and how far it was emptied, but not which of the
//! requests in between a dead process had taken.
//!
//! **Mechanism.** Each request is recorded in a memory file (memfd) when it is taken and struck out
//! when it is returned. The next process serves the recorded ones again: they are reads of
//! immutable data. Only FORGET must not be repeated, because the process would drop a node that the
//! guest knows; one that was taken counts as done, which at worst keeps a node too long.
//!
//! **A request that crashes the server** would otherwise be retried forever. The record counts the
//! processes that began to serve it, and after [`MOST_TRIES`] it gets EIO.
//!
//! **Invariant: the process may die at any moment.** A request is recorded before it is served, and
//! struck out after it is in the used ring. The request on its way there is recorded before, with
//! the used ring's index, so that the guest's memory itself shows whether it arrived. The ring's
//! position follows from both: the returned requests and the others are all that were ever taken.
//!
//! **Layout**, version [`VERSION`]: words of 64 bits in native order. The header has the magic
//! number, the version, how many messages of the front end were handled, how many processes in a
//! row died over the guest without having answered it, and whether one is taking the guest over.
//! Then for each queue: whether it runs, where it begins, what is on its way back, whether it is
//! being accessed, and [`SLOTS`] requests.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::{MemfdFlags, SealFlags};
use thiserror::Error;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// What every such file starts with.
const MAGIC: u64 = u64::from_le_bytes(*b"castore\x02");
/// The version of the layout. Another one is not read.
pub(super) const VERSION: u64 = 2;
/// Requests of a queue that are in flight at once, at most: as many as its ring can hold, so that
/// requests that wait for an upstream block no other.
pub(super) const SLOTS: usize = 1024;
/// Queues that have room in the file.
const QUEUES: usize = 64;

/// Words of the header.
const VERSION_AT: usize = 1;
const HANDLED_AT: usize = 2;
const ATTEMPTS_AT: usize = 3;
const TAKING_OVER_AT: usize = 4;
const QUEUES_AT: usize = 8;
/// Words of a queue.
const RUNS_AT: usize = 0;
const BASE_AT: usize = 1;
const SETTLING_AT: usize = 2;
const PARTIAL_AT: usize = 3;
const SLOTS_AT: usize = 8;
const QUEUE_WORDS: usize = SLOTS_AT + SLOTS;
const BYTES: usize = (QUEUES_AT + QUEUES * QUEUE_WORDS) * size_of::<u64>();

/// In a slot: there is a request.
const USED: u64 = 1 << 63;
/// In a slot: the request is a FORGET.
const FORGETS: u64 = 1 << 62;
/// In a slot: how many processes began to serve it.
const TRIES_SHIFT: u32 = 60;
/// So many processes may die of a request before it is no longer served.
pub(super) const MOST_TRIES: u8 = 3;
/// Below the order of taking, the number of the request's first descriptor.
const HEAD_BITS: u32 = 16;
const ORDER: u64 = (1 << (TRIES_SHIFT - HEAD_BITS)) - 1;

/// Why the record of the previous process cannot be used.
#[derive(Debug, Error)]
pub(super) enum InflightError {
    /// A system call failed.
    #[error("the hand-over state of requests in flight: {0}")]
    System(#[from] io::Error),
    /// Written by another version of this program.
    #[error(
        "the hand-over state of requests in flight has layout {found}, and this version knows {VERSION}"
    )]
    Version {
        /// The version in the file.
        found: u64,
    },
    /// The contents are inconsistent.
    #[error("the hand-over state of requests in flight is damaged: {0}")]
    Damaged(&'static str),
}

/// The record of a guest.
pub(super) struct InflightRecord {
    memory: OwnedFd,
    words: MmapRegion,
}

/// A request that the previous process had taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecoveredRequest {
    /// Its slot in the record.
    pub slot: u16,
    /// Its first descriptor.
    pub head: u16,
    /// Whether it is a FORGET.
    pub forgets: bool,
    /// How many processes began to serve it and died.
    pub tries: u8,
    order: u64,
}

impl InflightRecord {
    /// An empty one.
    pub(super) fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let create = |flags| rustix::fs::memfd_create(c"castore-fs-inflight", flags);
        // Kernels before 6.3 do not know NOEXEC_SEAL.
        let memory = create(flags).or_else(|_| create(flags & !MemfdFlags::NOEXEC_SEAL))?;
        rustix::fs::ftruncate(&memory, BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
        let inflight = Self::map(memory)?;
        inflight.store(VERSION_AT, VERSION);
        inflight.store(0, MAGIC);
        Ok(inflight)
    }

    /// The one of the previous process.
    pub(super) fn open(memory: OwnedFd) -> Result<Self, InflightError> {
        let length = rustix::fs::fstat(&memory).map_err(io::Error::from)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(&memory).map_err(io::Error::from)?;
        // A file that can shrink below its mapping can kill this process.
        if !seals.contains(SealFlags::SHRINK) || length != BYTES as i64 {
            return Err(InflightError::Damaged("it is no sealed file of its length"));
        }
        let inflight = Self::map(memory)?;
        if inflight.load(0) != MAGIC {
            return Err(InflightError::Damaged("it starts with other bytes"));
        }
        match inflight.load(VERSION_AT) {
            VERSION => Ok(inflight),
            found => Err(InflightError::Version { found }),
        }
    }

    /// An empty one for a guest whose record is unreadable. Its queues run, and continue where the
    /// used ring is: right for all requests that were served in order.
    pub(super) fn take_over_blindly() -> io::Result<Self> {
        let inflight = Self::create()?;
        for queue in 0..QUEUES {
            inflight.store(QUEUES_AT + queue * QUEUE_WORDS + RUNS_AT, 1);
        }
        Ok(inflight)
    }

    fn map(memory: OwnedFd) -> io::Result<Self> {
        let file = FileOffset::new(File::from(memory.try_clone()?), 0);
        Ok(Self {
            words: MmapRegion::from_file(file, BYTES).map_err(io::Error::other)?,
            memory,
        })
    }

    /// The memory file, for the holder.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// How many messages of the front end were handled.
    pub(super) fn handled(&self) -> u64 {
        self.load(HANDLED_AT)
    }

    /// Sets the count: one more, or as many as a new list begins with.
    pub(super) fn set_handled(&self, count: u64) {
        self.store(HANDLED_AT, count);
    }

    /// How many processes in a row have died over this guest without having answered it; to be
    /// called when a process begins to serve it.
    pub(super) fn attempts(&self) -> u64 {
        // An idle guest did not cause the death.
        if !self.was_busy() {
            self.store(ATTEMPTS_AT, 0);
        }
        self.load(ATTEMPTS_AT)
    }

    /// Whether the previous process was working for this guest when it died.
    pub(super) fn was_busy(&self) -> bool {
        let queues = (0..QUEUES).map(|queue| QUEUES_AT + queue * QUEUE_WORDS);
        let mut busy = queues.flat_map(|start| {
            let slots = start + SLOTS_AT..start + SLOTS_AT + SLOTS;
            slots.chain([start + PARTIAL_AT])
        });
        self.load(TAKING_OVER_AT) != 0 || busy.any(|word| self.load(word) != 0)
    }

    /// Another process begins to take the guest over.
    pub(super) fn begins(&self) {
        self.store(TAKING_OVER_AT, 1);
        self.store(ATTEMPTS_AT, self.load(ATTEMPTS_AT) + 1);
    }

    /// The take-over is complete.
    pub(super) fn taken_over(&self) {
        self.store(TAKING_OVER_AT, 0);
    }

    /// The record of a queue; there are 64.
    pub(super) fn queue(self: &Arc<Self>, number: usize) -> QueueInflight {
        assert!(number < QUEUES, "a device has no more queues");
        QueueInflight {
            inflight: self.clone(),
            start: QUEUES_AT + number * QUEUE_WORDS,
        }
    }

    fn load(&self, word: usize) -> u64 {
        let words = self.words.as_volatile_slice();
        words
            .load(word * size_of::<u64>(), Ordering::Acquire)
            .expect("the word is in the mapping")
    }

    fn store(&self, word: usize, value: u64) {
        let words = self.words.as_volatile_slice();
        words
            .store(value, word * size_of::<u64>(), Ordering::Release)
            .expect("the word is in the mapping");
        // Only the order of the writes counts, for a death between two instructions; there is no
        // other reader while this process lives.
        compiler_fence(Ordering::SeqCst);
    }
}

/// The record of one queue.
#[derive(Clone)]
pub(super) struct QueueInflight {
    inflight: Arc<InflightRecord>,
    start: usize,
}

impl QueueInflight {
    fn load(&self, word: usize) -> u64 {
        self.inflight.load(self.start + word)
    }

    fn store(&self, word: usize, value: u64) {
        self.inflight.store(self.start + word, value);
    }

    /// Whether the queue ran when this was last written.
    pub(super) fn runs(&self) -> bool {
        self.load(RUNS_AT) != 0
    }

    /// Notes that the queue runs from here on, with nothing taken.
    pub(super) fn starts(&self) {
        self.store(SETTLING_AT, 0);
        self.store(PARTIAL_AT, 0);
        for slot in 0..SLOTS {
            self.store(SLOTS_AT + slot, 0);
        }
        self.store(RUNS_AT, 1);
    }

    /// Notes that the queue is stopped, and where it is to continue.
    pub(super) fn stops(&self, base: u16) {
        self.set_base(base);
        self.store(RUNS_AT, 0);
    }

    /// Runs `work`, which accesses the guest's memory. The front end may have removed that.
    pub(super) fn touch<T>(&self, work: impl FnOnce() -> T) -> T {
        self.store(PARTIAL_AT, 1);
        let outcome = work();
        self.store(PARTIAL_AT, 0);
        outcome
    }

    /// Where the queue is to begin when it starts.
    pub(super) fn base(&self) -> u16 {
        self.load(BASE_AT) as u16
    }

    /// The front end sets where to begin.
    pub(super) fn set_base(&self, base: u16) {
        self.store(BASE_AT, u64::from(base));
    }

    /// Records a request, the `order`-th that was taken, which `tries` processes have begun to
    /// serve, this one included.
    pub(super) fn take(&self, slot: u16, head: u16, forgets: bool, tries: u8, order: u64) {
        let forgets = if forgets { FORGETS } else { 0 };
        let tries = u64::from(tries.min(MOST_TRIES)) << TRIES_SHIFT;
        let order = (order & ORDER) << HEAD_BITS;
        self.store(
            SLOTS_AT + usize::from(slot),
            USED | forgets | tries | order | u64::from(head),
        );
    }

    /// A request is about to be put into the used ring, whose index is `used` so far.
    pub(super) fn settling(&self, slot: u16, used: u16) {
        self.store(
            SETTLING_AT,
            USED | u64::from(slot) << HEAD_BITS | u64::from(used),
        );
    }

    /// The request is in the used ring: the guest can be served.
    pub(super) fn settled(&self, slot: u16) {
        if self.inflight.load(ATTEMPTS_AT) != 0 {
            self.inflight.store(ATTEMPTS_AT, 0);
        }
        self.store(SLOTS_AT + usize::from(slot), 0);
        self.store(SETTLING_AT, 0);
    }

    /// The requests that were taken and not returned, oldest first; the used ring's index is
    /// `used`.
    pub(super) fn recover(&self, used: u16) -> Vec<RecoveredRequest> {
        let settling = self.load(SETTLING_AT);
        if settling & USED != 0 {
            let slot = (settling >> HEAD_BITS) as u16;
            // The guest got the reply; only striking it out is missing.
            if used != settling as u16 && usize::from(slot) < SLOTS {
                self.store(SLOTS_AT + usize::from(slot), 0);
            }
            self.store(SETTLING_AT, 0);
        }
        let slots = (0..SLOTS).filter_map(|slot| {
            let word = self.load(SLOTS_AT + slot);
            (word & USED != 0).then_some(RecoveredRequest {
                slot: slot as u16,
                head: word as u16,
                forgets: word & FORGETS != 0,
                tries: (word >> TRIES_SHIFT) as u8 & MOST_TRIES,
                order: word >> HEAD_BITS & ORDER,
            })
        });
        let mut again: Vec<RecoveredRequest> = slots.collect();
        again.sort_by_key(|again| again.order);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_process(inflight: &InflightRecord) -> Result<Arc<InflightRecord>, InflightError> {
        InflightRecord::open(inflight.memory().try_clone_to_owned().unwrap()).map(Arc::new)
    }

    fn heads(queue: &QueueInflight, used: u16) -> Vec<u16> {
        queue.recover(used).iter().map(|again| again.head).collect()
    }

    #[test]
    fn what_was_not_given_back_is_found_again_in_its_order() {
        let inflight = Arc::new(InflightRecord::create().unwrap());
        let queue = inflight.queue(63);
        queue.starts();
        queue.take(7, 100, false, 1, 1);
        queue.take(3, 101, true, 3, 2);
        queue.take(5, 102, false, 1, 3);
        queue.settling(7, 0);
        queue.settled(7);
        let after = next_process(&inflight).unwrap().queue(63);
        assert!(after.runs());
        let again = after.recover(1);
        assert_eq!(heads(&after, 1), [101, 102]);
        assert!(again[0].forgets && !again[1].forgets);
        assert_eq!([again[0].tries, again[1].tries], [3, 1]);
        assert!(heads(&next_process(&inflight).unwrap().queue(0), 0).is_empty());
        queue.stops(9);
        assert!(!after.runs());
        assert_eq!(after.base(), 9);
    }

    #[test]
    fn an_idle_guest_is_not_blamed_for_a_death() {
        let inflight = Arc::new(InflightRecord::create().unwrap());
        let queue = inflight.queue(1);
        for begun in 1..4 {
            inflight.begins();
            inflight.taken_over();
            queue.take(0, 1, false, 1, 1);
            assert_eq!(next_process(&inflight).unwrap().attempts(), begun);
        }
        queue.settled(0);
        assert_eq!(next_process(&inflight).unwrap().attempts(), 0);
        inflight.begins();
        assert_eq!(next_process(&inflight).unwrap().attempts(), 1);
        inflight.taken_over();
        queue.touch(|| assert_eq!(next_process(&inflight).unwrap().attempts(), 1));
        assert_eq!(next_process(&inflight).unwrap().attempts(), 0);
    }

    /// A death between the used ring and striking out: the ring's index decides.
    #[test]
    fn what_was_on_its_way_is_given_back_once() {
        for (used, expected) in [(41, vec![8]), (42, vec![])] {
            let inflight = Arc::new(InflightRecord::create().unwrap());
            let queue = inflight.queue(0);
            queue.starts();
            queue.take(0, 8, false, 1, 1);
            queue.settling(0, 41);
            assert_eq!(
                heads(&next_process(&inflight).unwrap().queue(0), used),
                expected
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let inflight = InflightRecord::create().unwrap();
        inflight.store(VERSION_AT, VERSION + 1);
        let error = next_process(&inflight).err().unwrap();
        assert!(matches!(error, InflightError::Version { found } if found == VERSION + 1));
        inflight.store(0, 0);
        assert!(matches!(
            next_process(&inflight),
            Err(InflightError::Damaged(_))
        ));
        let unsealed = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&unsealed, BYTES as u64).unwrap();
        assert!(matches!(
            InflightRecord::open(unsealed),
            Err(InflightError::Damaged(_))
        ));
    }
}
