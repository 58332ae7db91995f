//! How many calls of a kind are made at once, found by their latency.
//!
//! **Problem.** Small blobs that come one in a call need `bandwidth × delay ÷ size` calls at once to
//! keep a link busy: a few on a local network, hundreds over 100 ms. More than that only queue, at the
//! server or in the link, and delay the calls of readers.
//!
//! **Mechanism.** A call that does not queue takes about as long as the fastest one. Once as many calls
//! as the limit have ended, their mean latency is compared with the fastest: below twice that the limit
//! grows by half, above four times it shrinks by a quarter. Now and then the limit is the least again
//! for a round, in which calls do not queue, and the fastest is measured anew: routes change.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Calls at once, at least (and at first) and at most.
const LEAST: usize = 64;
const MOST: usize = 512;
/// After how many rounds the fastest call is measured anew.
const MEASURED_ANEW: u32 = 64;

/// A limit for calls at once.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    permits: Semaphore,
    state: Mutex<LimitState>,
}

#[derive(Debug)]
struct LimitState {
    limit: usize,
    /// Permits that exist, in use or not: more than the limit after it has shrunk.
    permits: usize,
    fastest: Duration,
    /// Of the calls of this round.
    ended: u32,
    sum: Duration,
    rounds: u32,
}

/// A call under way.
pub(super) struct LimitedCall<'l> {
    limit: &'l ConcurrencyLimit,
    permit: Option<SemaphorePermit<'l>>,
    began: Instant,
}

impl ConcurrencyLimit {
    pub(super) fn new() -> Self {
        Self {
            permits: Semaphore::new(LEAST),
            state: Mutex::new(LimitState {
                limit: LEAST,
                permits: LEAST,
                fastest: Duration::MAX,
                ended: 0,
                sum: Duration::ZERO,
                rounds: 0,
            }),
        }
    }

    /// Waits until another call may be made. The call counts until the returned value is dropped. A call with an
    /// answer ends with [`LimitedCall::answered`], which measures it: one that fails at once says nothing about
    /// how long an answer takes.
    pub(super) async fn begin(&self) -> LimitedCall<'_> {
        // It is never closed.
        let permit = self.permits.acquire().await.ok();
        LimitedCall {
            limit: self,
            permit,
            began: Instant::now(),
        }
    }

    /// Notes how long a call took; returns whether its permit may be used again.
    fn note(&self, latency: Duration) -> bool {
        let mut state = self.state.lock();
        state.fastest = state.fastest.min(latency);
        state.sum += latency;
        state.ended += 1;
        if state.ended as usize >= state.limit {
            let mean = state.sum / state.ended;
            if mean < state.fastest * 2 {
                state.limit = (state.limit + state.limit / 2).min(MOST);
            } else if mean > state.fastest * 4 {
                state.limit = (state.limit - state.limit / 4).max(LEAST);
            }
            state.ended = 0;
            state.sum = Duration::ZERO;
            state.rounds += 1;
            if state.rounds.is_multiple_of(MEASURED_ANEW) {
                state.fastest = Duration::MAX;
                state.limit = LEAST;
            }
            if let Some(more @ 1..) = state.limit.checked_sub(state.permits) {
                state.permits += more;
                self.permits.add_permits(more);
            }
        }
        let stays = state.permits <= state.limit;
        state.permits -= usize::from(!stays);
        stays
    }
}

impl LimitedCall<'_> {
    /// Ends it with an answer.
    pub(super) fn answered(self) {
        if let Some(permit) = self.permit
            && !self.limit.note(self.began.elapsed())
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_after(latencies: impl IntoIterator<Item = u64>) -> usize {
        let limit = ConcurrencyLimit::new();
        for latency in latencies {
            limit.note(Duration::from_millis(latency));
        }
        let state = limit.state.lock();
        assert!(state.permits >= LEAST && state.limit <= MOST);
        state.limit
    }

    #[test]
    fn calls_that_do_not_queue_become_more_and_those_that_do_become_fewer() {
        assert_eq!(limit_after([100; 64]), 96);
        assert_eq!(limit_after([100; 2000]), MOST);
        let queued = std::iter::repeat_n(100, 2000).chain([1000; 3000]);
        assert_eq!(limit_after(queued), LEAST);
        // In the round that measures anew.
        let anew = std::iter::repeat_n(100, 1330 + 58 * MOST);
        assert_eq!(limit_after(anew), LEAST);
        // Something between leaves it.
        let busy = std::iter::repeat_n(100, 64).chain([300; 1000]);
        assert_eq!(limit_after(busy), 96);
    }

    #[tokio::test]
    async fn a_call_that_fails_is_no_measure() {
        let limit = ConcurrencyLimit::new();
        drop(limit.begin().await);
        assert_eq!(limit.state.lock().ended, 0);
        limit.begin().await.answered();
        assert_eq!(limit.state.lock().ended, 1);
        assert_eq!(limit.permits.available_permits(), LEAST);
    }

    #[tokio::test]
    async fn a_limit_that_shrinks_takes_permits_away() {
        let limit = ConcurrencyLimit::new();
        for _ in 0..2000 {
            limit.note(Duration::from_millis(1));
        }
        assert_eq!(limit.permits.available_permits(), MOST);
        let mut calls = Vec::new();
        for _ in 0..MOST {
            calls.push(limit.begin().await);
        }
        {
            let mut state = limit.state.lock();
            state.limit = LEAST;
            // All calls have queued.
            state.fastest = Duration::ZERO;
        }
        calls.drain(..MOST - LEAST).for_each(LimitedCall::answered);
        assert_eq!(limit.permits.available_permits(), 0);
        calls.clear();
        assert_eq!(limit.permits.available_permits(), LEAST);
    }
}
