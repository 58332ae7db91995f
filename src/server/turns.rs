//! Work of the server that takes a thread or a processor for long, and whose turn it is.
//!
//! How many of each kind may be under way is limited, and each connection may have as many as it leaves
//! free ([`super::budget`]). What takes a processor for seconds or hours gives up its turn after every
//! [`SLICE`], so that the next in line waits for no more than that: a client that asks for the NAR of
//! an enormous tree delays the others by a fraction, and keeps none waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::budget::{Budget, Share};

/// Additions that are worked on at once. While a garbage collection keeps them waiting, as many
/// threads wait, and the others serve readers.
const ADDITIONS: usize = 32;
/// Trees whose NAR is computed and blobs that are cut: each has a thread.
const LONG: usize = 32;
/// Those of them that have a processor.
const PROCESSORS: usize = 2;
/// How long before the next one has it.
const SLICE: Duration = Duration::from_millis(50);

/// The turns of one server.
pub(super) struct Turns {
    additions: Arc<Budget>,
    long: Arc<Budget>,
    processors: Arc<Semaphore>,
}

/// The turns that one connection may have.
#[derive(Clone)]
pub(super) struct OwnTurns {
    additions: Arc<Share>,
    long: Arc<Share>,
    processors: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            additions: Budget::new(ADDITIONS),
            long: Budget::new(LONG),
            processors: Arc::new(Semaphore::new(PROCESSORS)),
        }
    }

    /// For a new connection, or the server itself.
    pub(super) fn share(&self) -> OwnTurns {
        OwnTurns {
            additions: self.additions.share(),
            long: self.long.share(),
            processors: self.processors.clone(),
        }
    }
}

impl OwnTurns {
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

    /// Does `work` that takes long, on a thread of its own. It is to end early once the [`Slice`] says so.
    pub(super) async fn take_long<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Slice) -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let turn = self.long.clone().hold(1).await;
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let mut slice = Slice {
            processors: self.processors.clone(),
            turn: None,
            wanted: wanted.0.clone(),
            runtime: Handle::current(),
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
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The processor of one piece of long work.
pub(super) struct Slice {
    processors: Arc<Semaphore>,
    turn: Option<(OwnedSemaphorePermit, Instant)>,
    wanted: Arc<AtomicBool>,
    runtime: Handle,
}

impl Slice {
    /// To be called before each megabyte or less: waits for a turn. Returns whether to go on.
    pub(super) fn go_on(&mut self) -> bool {
        let is_over = |(_, began): &(_, Instant)| began.elapsed() >= SLICE;
        if self.turn.as_ref().is_none_or(is_over) {
            self.turn = None;
            let turn = self.processors.clone().acquire_owned();
            let turn = self.runtime.block_on(turn);
            self.turn = turn.ok().map(|turn| (turn, Instant::now()));
        }
        self.wanted.load(Ordering::Relaxed)
    }
}

async fn on_thread<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Status> + Send + 'static,
) -> Result<R, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|stopped| Err(Status::internal(format!("the call broke off: {stopped}"))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_takes_long_leaves_the_processor_to_the_next() {
        let turns = Turns::new();
        let hostile = turns.share();
        let steps = Arc::new(AtomicU64::new(0));
        let endless: Vec<_> = (0..LONG)
            .map(|_| {
                let (own, steps) = (hostile.clone(), steps.clone());
                tokio::spawn(async move {
                    let work = move |slice: &mut Slice| {
                        while slice.go_on() {
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
        let other = turns.share();
        let good = other.take_long(|slice| Ok(slice.go_on()));
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
}
