//! Single-flight: concurrent requests for one object share one fetch.
//!
//! **Problem.** A cold object is often requested several times at once: by the threads of a program, by the
//! kernel's read-ahead, by clients of a server. With a fetch for each, the upstream would send the same bytes
//! as often, exactly when it is the bottleneck.
//!
//! **Mechanism.** The first request for a key enters it into a map, with a channel, and starts the fetch as a
//! task of the runtime. Requests for the same key wait on the channel. The fetch belongs to none of them: it
//! continues when a waiter is dropped, and even when all are, since its result goes to a cache.
//!
//! **Invariant.** A key is in the map exactly while its fetch runs. The entry is removed when the fetch is
//! dropped, whether it completed or panicked, and waiters are then woken with a result or with none: no
//! request waits for a fetch that does not run.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::spans;

type FetchResult<V> = watch::Receiver<Option<V>>;

/// Fetches in flight, by key.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V>(Arc<Mutex<HashMap<K, FetchResult<V>>>>);

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the fetch for `key`; starts `fetch` if none is in flight. The fetch continues
    /// when its waiters are dropped. Nothing if it crashed.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        runtime: &Handle,
        fetch: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = self.start_fetch(key, runtime, fetch);
        let received = result.wait_for(Option::is_some).await.ok()?;
        received.clone()
    }

    /// Starts the fetch for `key` if none is in flight.
    pub(super) fn start_fetch<F>(
        &self,
        key: K,
        runtime: &Handle,
        fetch: impl FnOnce() -> F,
    ) -> FetchResult<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (result, new) = self.join_or_begin(key);
        if let Some(pending) = new {
            let fetch = fetch();
            runtime.spawn(spans::follow(async move { pending.complete(fetch.await) }).boxed());
        }
        result
    }

    /// Announces a fetch for `key` that the caller completes; nothing if one is in flight.
    pub(super) fn announce(&self, key: K) -> Option<PendingFetch<K, V>> {
        self.join_or_begin(key).1
    }

    /// A receiver for the result of the fetch for `key`; and the fetch itself, if it is a new one.
    fn join_or_begin(&self, key: K) -> (FetchResult<V>, Option<PendingFetch<K, V>>) {
        let mut single_flight = self.0.lock();
        if let Some(result) = single_flight.get(&key) {
            return (result.clone(), None);
        }
        let (arrived, result) = watch::channel(None);
        single_flight.insert(key.clone(), result.clone());
        let ended = FetchEnd {
            single_flight: self.0.clone(),
            key,
        };
        (result, Some(PendingFetch { arrived, ended }))
    }
}

/// A fetch in flight. One that is dropped has crashed.
pub(super) struct PendingFetch<K: Eq + Hash, V> {
    arrived: watch::Sender<Option<V>>,
    ended: FetchEnd<K, V>,
}

impl<K: Eq + Hash, V> PendingFetch<K, V> {
    /// Passes `value` to all waiters.
    pub(super) fn complete(self, value: V) {
        self.arrived.send_replace(Some(value));
        drop(self.ended);
    }
}

/// Removes a completed or crashed fetch.
struct FetchEnd<K: Eq + Hash, V> {
    single_flight: Arc<Mutex<HashMap<K, FetchResult<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for FetchEnd<K, V> {
    fn drop(&mut self) {
        self.single_flight.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_waiters_share_one_fetch_and_are_notified_of_a_crash() {
        let single_flight = SingleFlight::<u8, u32>::default();
        let runtime = Handle::current();
        let started = Arc::new(AtomicU32::new(0));
        let join = || {
            let started = started.clone();
            single_flight.join(1, &runtime, move || async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                started.fetch_add(1, Ordering::Relaxed)
            })
        };
        let (a, b, c) = tokio::join!(join(), join(), join());
        assert_eq!((a, b, c), (Some(0), Some(0), Some(0)));
        assert_eq!(join().await, Some(1));
        let crashed = single_flight.join(2, &runtime, || async { panic!("a crash") });
        assert_eq!(crashed.await, None);
        let pending = single_flight.announce(3).unwrap();
        assert!(single_flight.announce(3).is_none());
        let joined = single_flight.join(3, &runtime, || async { 0 });
        let (joined, ()) = tokio::join!(joined, async { pending.complete(7) });
        assert_eq!(joined, Some(7));
        assert!(single_flight.0.lock().is_empty());
    }
}
