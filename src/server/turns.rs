//! Work of the server that takes a thread or a processor for long, and whose turn it is.
//!
//! How many of each kind may be under way is limited, for each client and connection too
//! ([`super::budget`]). What takes a processor for seconds or hours gives up its turn after every
//! [`SLICE`], and while it waits for an upstream; the next turn goes to the client that had the
//! fewest. So a client that asks for the NAR of an enormous tree, or for many that are stuck upstream,
//! delays the others by a fraction, and keeps none waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;

use super::budget::{BudgetShare, ConnectionBudget, TakenShare};
use super::client::ClientId;

/// Additions that are worked on at once. While a garbage collection keeps them waiting, as many
/// threads wait, and the others serve readers.
const ADDITIONS: usize = 32;
/// Trees whose NAR is computed and blobs that are cut: each has a thread.
const LONG: usize = 32;
/// What each connection has of them in any case.
const LEAST: usize = 1;
/// Those of them that have a processor.
const PROCESSORS: usize = 2;
/// How long before the next one has it.
const SLICE: Duration = Duration::from_millis(50);
/// NARs that are unpacked at once: each takes a processor, and up to 128 MiB to decompress.
const UNPACKED: usize = 4;

/// Threads that may block, for the runtime of a process that serves: what each connection may have in
/// any case, of additions that a garbage collection keeps waiting and of long work, leaves as many for
/// readers.
pub const BLOCKING_THREADS: usize = 2048;

/// The turns of the servers of a process.
pub(super) struct ServerTurns {
    additions: Arc<ConnectionBudget>,
    long: Arc<ConnectionBudget>,
    unpacked: Arc<ConnectionBudget>,
    processors: ProcessorTurns,
}

/// The turns that one connection may have.
#[derive(Clone)]
pub(super) struct ConnectionTurns {
    client: ClientId,
    additions: Arc<BudgetShare>,
    long: Arc<BudgetShare>,
    unpacked: Arc<BudgetShare>,
    processors: ProcessorTurns,
}

impl ServerTurns {
    pub(super) fn new() -> Self {
        Self {
            additions: ConnectionBudget::new(ADDITIONS, LEAST),
            long: ConnectionBudget::new(LONG, LEAST),
            unpacked: ConnectionBudget::new(UNPACKED, 0),
            processors: ProcessorTurns::new(PROCESSORS),
        }
    }

    /// For a new connection of `client`.
    pub(super) fn share(&self, client: ClientId) -> ConnectionTurns {
        ConnectionTurns {
            client,
            additions: self.additions.share(client),
            long: self.long.share(client),
            unpacked: self.unpacked.share(client),
            processors: self.processors.clone(),
        }
    }
}

impl ConnectionTurns {
    /// Does `work` for an addition, on a thread that may block.
    pub(super) async fn work<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let turn = self.additions.clone().hold(1).await;
        // The thread has the turn, even if the client goes away.
        on_thread(move || {
            let _turn = turn;
            work()
        })
        .await
    }

    /// The turn to unpack a NAR.
    pub(super) async fn to_unpack(&self) -> TakenShare {
        self.unpacked.clone().hold(1).await
    }

    /// Does `work` that takes long, on a thread of its own. It is to end early once
    /// [`WorkSlice::may_continue`] returns false.
    pub(super) async fn take_long<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WorkSlice) -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let turn = self.long.clone().hold(1).await;
        let wanted = LongWork(Arc::new(AtomicBool::new(true)));
        let mut slice = WorkSlice {
            client: self.client,
            processors: self.processors.clone(),
            processor: Arc::default(),
            wanted: wanted.0.clone(),
        };
        let done = on_thread(move || {
            let _turn = turn;
            work(&mut slice)
        });
        let done = done.await;
        drop(wanted);
        done
    }
}

/// Whether a request waits for long work: no longer once this is dropped.
struct LongWork(Arc<AtomicBool>);

impl Drop for LongWork {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The processor of one piece of long work.
pub(super) struct WorkSlice {
    client: ClientId,
    processors: ProcessorTurns,
    /// The processor that it has, and since when.
    processor: Arc<Mutex<Option<(ProcessorTurn, Instant)>>>,
    wanted: Arc<AtomicBool>,
}

impl WorkSlice {
    /// To be called before each megabyte or less: waits for a turn. Returns whether to continue.
    pub(super) fn may_continue(&mut self) -> bool {
        let mut processor = self.processor.lock();
        let is_over = |(_, began): &(_, Instant)| began.elapsed() >= SLICE;
        if processor.as_ref().is_none_or(is_over) {
            *processor = None;
            *processor = Some((self.processors.wait(self.client), Instant::now()));
        }
        self.wanted.load(Ordering::Relaxed)
    }

    /// To be called before a wait: gives up the turn, until the next [`may_continue`](Self::may_continue).
    pub(super) fn give_up(&self) -> Arc<dyn Fn() + Send + Sync> {
        let processor = self.processor.clone();
        Arc::new(move || drop(processor.lock().take()))
    }
}

/// The processors for long work. A free one goes to the client that had the fewest turns since it
/// began to wait, as in start-time fair queueing.
#[derive(Clone)]
struct ProcessorTurns(Arc<Mutex<TurnQueue>>);

struct TurnQueue {
    free: usize,
    /// By turn and arrival.
    waiting: std::collections::BTreeMap<(u64, u64), oneshot::Sender<ProcessorTurn>>,
    arrived: u64,
    /// The turn that was given last.
    now: u64,
    /// The next turn of each client, where that is to come.
    next: HashMap<ClientId, u64>,
}

/// A processor for long work; the next in line has it when this is dropped.
struct ProcessorTurn(Option<ProcessorTurns>);

impl ProcessorTurns {
    fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(TurnQueue {
            free,
            waiting: Default::default(),
            arrived: 0,
            now: 0,
            next: HashMap::new(),
        })))
    }

    /// Blocks until there is one.
    fn wait(&self, client: ClientId) -> ProcessorTurn {
        let receiver = {
            let mut queue = self.0.lock();
            let now = queue.now;
            queue.next.retain(|_, next| *next > now);
            let turn = queue.next.get(&client).copied().unwrap_or(now);
            queue.next.insert(client, turn + 1);
            if queue.free > 0 {
                queue.free -= 1;
                return ProcessorTurn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            queue.arrived += 1;
            let arrived = queue.arrived;
            queue.waiting.insert((turn, arrived), sender);
            receiver
        };
        receiver
            .blocking_recv()
            .expect("a place in the queue is left with a processor")
    }

    fn pass_on(self) {
        let mut queue = self.0.lock();
        match queue.waiting.pop_first() {
            Some(((turn, _), sender)) => {
                queue.now = queue.now.max(turn);
                drop(queue);
                // Its thread waits for it.
                let _ = sender.send(ProcessorTurn(Some(self)));
            }
            None => queue.free += 1,
        }
    }
}

impl Drop for ProcessorTurn {
    fn drop(&mut self) {
        if let Some(processors) = self.0.take() {
            processors.pass_on();
        }
    }
}

async fn on_thread<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Status> + Send + 'static,
) -> Result<R, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|stopped| {
            Err(Status::internal(format!(
                "the call was interrupted: {stopped}"
            )))
        })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_takes_long_leaves_the_processor_to_the_next() {
        let turns = ServerTurns::new();
        let hostile = turns.share(ClientId::User(1));
        let steps = Arc::new(AtomicU64::new(0));
        let endless: Vec<_> = (0..LONG)
            .map(|_| {
                let (own, steps) = (hostile.clone(), steps.clone());
                tokio::spawn(async move {
                    let work = move |slice: &mut WorkSlice| {
                        while slice.may_continue() {
                            steps.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                        }
                        Ok(())
                    };
                    own.take_long(work).await
                })
            })
            .collect();
        while steps.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let other = turns.share(ClientId::User(2));
        let good = other.take_long(|slice| Ok(slice.may_continue()));
        assert!(good.await.unwrap());
        // Once no request waits for them, they end.
        endless.iter().for_each(tokio::task::JoinHandle::abort);
        for one in endless {
            assert!(one.await.is_err());
        }
        let all: Vec<_> = (0..LONG / 2)
            .map(|_| hostile.long.clone().hold(1))
            .collect();
        futures_util::future::join_all(all).await;
    }

    /// A hundred pieces of one client and one of another: the other's is next, not the last.
    #[test]
    fn a_free_processor_goes_to_the_client_that_had_fewer_turns() {
        let processors = ProcessorTurns::new(1);
        let first = processors.wait(ClientId::User(1));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        for user in [1; 100].into_iter().chain([2]) {
            let (own, noted) = (processors.clone(), order.clone());
            threads.push(std::thread::spawn(move || {
                let _processor = own.wait(ClientId::User(user));
                noted.lock().push(user);
            }));
            while processors.0.lock().waiting.len() < threads.len() {
                std::thread::yield_now();
            }
        }
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        let place = order.lock().iter().position(|user| *user == 2);
        assert!(place.unwrap() <= 1, "{place:?}");
        assert_eq!(processors.0.lock().free, 1);
    }

    #[tokio::test]
    async fn four_nars_are_unpacked_at_once_and_three_of_one_client() {
        let turns = ServerTurns::new();
        let (hostile, other) = (
            turns.share(ClientId::User(1)),
            turns.share(ClientId::User(2)),
        );
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(turns.share(ClientId::User(1)).to_unpack().await);
        }
        assert!(hostile.unpacked.try_hold(1).is_none());
        held.push(other.to_unpack().await);
        assert!(other.unpacked.try_hold(1).is_none());
        held.clear();
        drop(hostile.to_unpack().await);
    }

    /// What waits for an upstream keeps no processor from others.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_has_no_processor() {
        let turns = ServerTurns::new();
        let (go, stuck) = std::sync::mpsc::channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        let waiting = Arc::new(AtomicU64::new(0));
        let hostile: Vec<_> = (0..PROCESSORS + 2)
            .map(|_| {
                let own = turns.share(ClientId::User(1));
                let (stuck, waiting) = (stuck.clone(), waiting.clone());
                tokio::spawn(async move {
                    let work = move |slice: &mut WorkSlice| {
                        slice.may_continue();
                        slice.give_up()();
                        waiting.fetch_add(1, Ordering::Relaxed);
                        let _ = stuck.lock().recv();
                        Ok(())
                    };
                    own.take_long(work).await
                })
            })
            .collect();
        while waiting.load(Ordering::Relaxed) < hostile.len() as u64 {
            tokio::task::yield_now().await;
        }
        let other = turns.share(ClientId::User(1));
        assert!(
            other
                .take_long(|slice| Ok(slice.may_continue()))
                .await
                .unwrap()
        );
        drop(go);
        for one in hostile {
            one.await.unwrap().unwrap();
        }
    }
}
