//! How a request waits for a store: parking.
//!
//! **Problem.** A worker that blocks on the network is lost for requests that memory or the local
//! disk could answer. A thread for each waiting request would make the number of reads in flight a
//! number of threads.
//!
//! **Mechanism.** Nearly every request is answered in place. A request that needs something remote
//! is **parked**: the transport frees its thread, waits for the missing object
//! ([`ParkedWait::arrival`]) among any number of others on an async runtime, and then answers the
//! request again from the start. What it has waited for is kept in its [`ParkedState`], and this
//! time found there.
//!
//! **Invariants.** An answer that parks has no effect besides what it stores in `ParkedState`, so it can
//! be repeated. A caller that is no request has a thread of its own and blocks. So does work that
//! needs many objects one after the other (an image's layout): requests for it have a thread each
//! while they wait ([`CastoreFs::may_block`](super::CastoreFs::may_block)).

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tracing::Instrument;

use super::slow::{self, RequestStory};
use crate::castore::{Digest, Directory, Root};
use crate::store::{Error, Store};

/// The pause before a failed fetch is repeated for the first time; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AwaitedObject {
    /// Some time, before what failed is fetched again: the number of the pause.
    Pause(u32),
    Directory(Digest),
    Root {
        name: Vec<u8>,
        /// How long it may take, if that is less than the store's own deadline.
        patience: Option<Duration>,
    },
    Roots,
    Bytes {
        digest: Digest,
        size: u64,
        offset: u64,
        length: usize,
    },
}

/// The outcome.
#[derive(Clone, Debug)]
pub(super) enum FetchedObject {
    /// The time has passed; the first fetch failed at this moment.
    Pause(Instant),
    Directory(Option<Directory>),
    Root(Option<Root>),
    Roots(Arc<[Root]>),
    Bytes(Option<Bytes>),
}

/// Why there is no answer in place.
#[derive(Debug)]
pub(super) enum NotInPlace {
    /// The request is parked.
    Parked,
    /// The store failed.
    Failed(Error),
}

impl From<Error> for NotInPlace {
    fn from(error: Error) -> Self {
        NotInPlace::Failed(error)
    }
}

type WaitOutcome = Result<FetchedObject, Error>;
type WaitFuture = Pin<Box<dyn Future<Output = WaitOutcome> + Send>>;

/// A request that waits.
pub struct ParkedWait {
    wanted: AwaitedObject,
    /// The store's URL.
    store: String,
    work: WaitFuture,
    began: Instant,
    _counted: WaiterCount,
}

impl fmt::Debug for ParkedWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parked").field(&self.wanted).finish()
    }
}

/// The outcome of a wait.
#[derive(Debug)]
pub struct ObjectArrival {
    wanted: AwaitedObject,
    outcome: WaitOutcome,
    began: Instant,
}

impl ParkedWait {
    /// Waits for what the request needs. A panic of the store counts as its failure.
    pub async fn arrival(self) -> ObjectArrival {
        let outcome = AssertUnwindSafe(self.work).catch_unwind().await;
        ObjectArrival {
            outcome: outcome.unwrap_or_else(|_| {
                Err(Error::Remote {
                    store: self.store,
                    request: "what a request waits for".to_owned(),
                    why: "a panic; this is a bug".to_owned(),
                })
            }),
            wanted: self.wanted,
            began: self.began,
        }
    }
}

/// What a request remembers while it is parked.
#[derive(Debug, Default)]
pub struct ParkedState {
    known: Vec<(AwaitedObject, WaitOutcome)>,
    pub(super) story: RequestStory,
}

impl ParkedState {
    /// Records what arrived.
    pub fn arrived(&mut self, arrival: ObjectArrival) {
        self.story.waited(arrival.began.elapsed());
        self.known.push((arrival.wanted, arrival.outcome));
    }
}

thread_local! {
    /// The request that this thread answers, if it can be parked.
    static CURRENT: RefCell<Option<CurrentRequest>> = const { RefCell::new(None) };
}

struct CurrentRequest {
    known: Vec<(AwaitedObject, WaitOutcome)>,
    parked: Option<ParkedWait>,
}

/// Takes the current request off the thread, also when its answer panics.
struct CurrentRequestGuard<'a>(&'a mut ParkedState);

impl CurrentRequestGuard<'_> {
    fn end(&mut self) -> Option<ParkedWait> {
        let current = CURRENT.take()?;
        self.0.known = current.known;
        current.parked
    }
}

impl Drop for CurrentRequestGuard<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `answer`, which answers a request of which `paused` is the state; returns also what it
/// waits for if it could not be answered yet. The answer is then to be discarded.
pub fn parkable<T>(
    paused: &mut ParkedState,
    answer: impl FnOnce() -> T,
) -> (T, Option<ParkedWait>) {
    let known = std::mem::take(&mut paused.known);
    CURRENT.set(Some(CurrentRequest {
        known,
        parked: None,
    }));
    let mut answering = CurrentRequestGuard(paused);
    let answer = answer();
    (answer, answering.end())
}

/// Whether the request that this thread answers has waited for `wanted`.
pub(super) fn knows(wanted: &AwaitedObject) -> bool {
    CURRENT.with_borrow(|current| {
        current
            .as_ref()
            .is_some_and(|current| current.known.iter().any(|(known, _)| known == wanted))
    })
}

/// Whether the request that this thread answers was parked for bytes before.
pub(super) fn has_waited_for_bytes() -> bool {
    CURRENT.with_borrow(|current| {
        current.as_ref().is_some_and(|current| {
            let mut known = current.known.iter();
            known.any(|(wanted, _)| matches!(wanted, AwaitedObject::Bytes { .. }))
        })
    })
}

/// Which pause a request is to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RepeatedRead {
    /// The first one.
    First,
    /// One of the others.
    Another,
    /// None: it has tried for long enough, or cannot be parked.
    No,
}

/// Where requests wait.
#[derive(Clone)]
pub struct WaitingRequests {
    runtime: Handle,
    /// Requests that wait at this moment.
    count: Arc<AtomicUsize>,
}

/// One of those that wait.
struct WaiterCount(Arc<AtomicUsize>);

impl WaiterCount {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for WaiterCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WaitingRequests {
    /// Waits on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            count: Arc::default(),
        }
    }

    /// What requests wait on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How many requests wait at this moment.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The outcome of `work`; blocks until there is one.
    pub(super) fn block<T>(&self, work: impl Future<Output = T>) -> T {
        let _counted = WaiterCount::new(&self.count);
        tokio::task::block_in_place(|| self.runtime.block_on(work))
    }

    /// Parks the request that this thread answers for a moment, after which it is answered again, unless
    /// it has been repeated for `patience`. For one whose fetch from `store` has failed.
    pub(super) fn repeat(&self, store: &Arc<dyn Store>, patience: Duration) -> RepeatedRead {
        let made = CURRENT.with_borrow(|current| {
            let known = &current.as_ref()?.known;
            let made = known.iter().filter_map(|(_, outcome)| match outcome {
                Ok(FetchedObject::Pause(since)) => Some(*since),
                _ => None,
            });
            Some(made.collect::<Vec<_>>())
        });
        let Some(made) = made else {
            return RepeatedRead::No;
        };
        let tried = made.first().map_or(Duration::ZERO, Instant::elapsed);
        if tried >= patience {
            return RepeatedRead::No;
        }
        match self.wait(store, AwaitedObject::Pause(made.len() as u32)) {
            Err(NotInPlace::Parked) if made.is_empty() => RepeatedRead::First,
            Err(NotInPlace::Parked) => RepeatedRead::Another,
            _ => RepeatedRead::No,
        }
    }

    /// What `store` has of what is `wanted`: at once if it is known or ready. Otherwise the request
    /// that this thread answers is parked; a thread that answers none blocks.
    pub(super) fn wait(
        &self,
        store: &Arc<dyn Store>,
        wanted: AwaitedObject,
    ) -> Result<FetchedObject, NotInPlace> {
        let answered = CURRENT.with_borrow(|current| {
            let Some(current) = current else {
                return Ok(None);
            };
            if current.parked.is_some() {
                return Err(NotInPlace::Parked);
            }
            let mut known = current.known.iter();
            let known = known.find_map(|(about, outcome)| (*about == wanted).then_some(outcome));
            Ok(known.map(|outcome| match outcome {
                Ok(brought) => Ok(brought.clone()),
                Err(error) => Err(error.clone()),
            }))
        })?;
        if let Some(outcome) = answered {
            return Ok(outcome?);
        }
        let span = slow::span();
        let mut work: WaitFuture = Box::pin(bring(store.clone(), wanted.clone()).instrument(span));
        // Work that needs the runtime's timers or sockets must be polled inside it.
        let inside = self.runtime.enter();
        let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(inside);
        if let Poll::Ready(outcome) = first {
            return Ok(outcome?);
        }
        let parked = ParkedWait {
            wanted,
            store: store.url().to_owned(),
            work,
            began: Instant::now(),
            _counted: WaiterCount::new(&self.count),
        };
        let blocks = CURRENT.with_borrow_mut(|current| match current {
            Some(current) => {
                current.parked = Some(parked);
                None
            }
            None => Some(parked),
        });
        match blocks {
            None => Err(NotInPlace::Parked),
            Some(parked) => Ok(self.runtime.block_on(parked.arrival()).outcome?),
        }
    }
}

/// How long the pause of this number is.
fn pause(number: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << number.min(16))
        .min(LONGEST_PAUSE)
}

async fn bring(store: Arc<dyn Store>, wanted: AwaitedObject) -> WaitOutcome {
    Ok(match wanted {
        AwaitedObject::Pause(number) => {
            let first_failed = Instant::now();
            tokio::time::sleep(pause(number)).await;
            FetchedObject::Pause(first_failed)
        }
        AwaitedObject::Directory(digest) => {
            FetchedObject::Directory(store.directory(&digest).await?)
        }
        AwaitedObject::Root { name, patience } => {
            let root = store.root(&name);
            FetchedObject::Root(match patience {
                None => root.await?,
                Some(after) => match tokio::time::timeout(after, root).await {
                    Ok(root) => root?,
                    Err(_) => {
                        return Err(Error::Timeout {
                            store: store.url().to_owned(),
                            after,
                        });
                    }
                },
            })
        }
        AwaitedObject::Roots => FetchedObject::Roots(store.roots().await?.into()),
        AwaitedObject::Bytes {
            digest,
            size,
            offset,
            length,
        } => FetchedObject::Bytes(store.read(&digest, size, offset, length).await?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn a_failed_fetch_is_repeated_in_pauses_until_patience_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let waiting = WaitingRequests::new(runtime.handle().clone());
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let patience = Duration::from_secs(3600);
        // A thread that answers no request is not parked.
        assert_eq!(waiting.repeat(&store, patience), RepeatedRead::No);
        let mut paused = ParkedState::default();
        let mut log_rate_limiter = Vec::new();
        for _ in 0..8 {
            let (repeat, parked) = parkable(&mut paused, || waiting.repeat(&store, patience));
            log_rate_limiter.push(repeat);
            paused.arrived(runtime.block_on(parked.unwrap().arrival()));
        }
        assert_eq!(log_rate_limiter[0], RepeatedRead::First);
        assert!(
            log_rate_limiter[1..]
                .iter()
                .all(|repeat| *repeat == RepeatedRead::Another)
        );
        let pauses: Duration = (0..8).map(pause).sum();
        assert_eq!(
            pauses,
            Duration::from_millis(250 + 500 + 1000 + 2000 + 4 * 4000)
        );
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
        let ends = || waiting.repeat(&store, Duration::from_nanos(1));
        let (repeat, parked) = parkable(&mut paused, ends);
        assert!(repeat == RepeatedRead::No && parked.is_none());
    }
}
