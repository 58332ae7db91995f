//! Single-flight: a thousand readers of one cold object cause one fetch.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::spans;

type Landing<V> = watch::Receiver<Option<V>>;

/// Fetches in flight, by key.
#[derive(Debug)]
pub(crate) struct Flights<K, V>(Arc<Mutex<HashMap<K, Landing<V>>>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
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
        let mut landing = self.depart(key, runtime, fetch);
        let landed = landing.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }

    /// Starts the fetch for `key` if none is in flight.
    pub(super) fn depart<F>(
        &self,
        key: K,
        runtime: &Handle,
        fetch: impl FnOnce() -> F,
    ) -> Landing<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (landing, new) = self.board(key);
        if let Some(flight) = new {
            let fetch = fetch();
            runtime.spawn(spans::follow(async move { flight.land(fetch.await) }));
        }
        landing
    }

    /// Announces a fetch for `key` that the caller completes; nothing if one is in flight.
    pub(super) fn announce(&self, key: K) -> Option<Flight<K, V>> {
        self.board(key).1
    }

    /// A receiver for the result of the fetch for `key`; and the fetch itself, if it is a new one.
    fn board(&self, key: K) -> (Landing<V>, Option<Flight<K, V>>) {
        let mut flights = self.0.lock();
        if let Some(landing) = flights.get(&key) {
            return (landing.clone(), None);
        }
        let (arrived, landing) = watch::channel(None);
        flights.insert(key.clone(), landing.clone());
        let ended = Ended {
            flights: self.0.clone(),
            key,
        };
        (landing, Some(Flight { arrived, ended }))
    }
}

/// A fetch in flight. One that is dropped has crashed.
pub(super) struct Flight<K: Eq + Hash, V> {
    arrived: watch::Sender<Option<V>>,
    ended: Ended<K, V>,
}

impl<K: Eq + Hash, V> Flight<K, V> {
    /// Passes `value` to all waiters.
    pub(super) fn land(self, value: V) {
        self.arrived.send_replace(Some(value));
        drop(self.ended);
    }
}

/// Removes a completed or crashed fetch.
struct Ended<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, Landing<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Ended<K, V> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_waiters_share_one_fetch_and_learn_of_a_crash() {
        let flights = Flights::<u8, u32>::default();
        let runtime = Handle::current();
        let started = Arc::new(AtomicU32::new(0));
        let join = || {
            let started = started.clone();
            flights.join(1, &runtime, move || async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                started.fetch_add(1, Ordering::Relaxed)
            })
        };
        let (a, b, c) = tokio::join!(join(), join(), join());
        assert_eq!((a, b, c), (Some(0), Some(0), Some(0)));
        assert_eq!(join().await, Some(1));
        let crashed = flights.join(2, &runtime, || async { panic!("a crash") });
        assert_eq!(crashed.await, None);
        let flight = flights.announce(3).unwrap();
        assert!(flights.announce(3).is_none());
        let joined = flights.join(3, &runtime, || async { 0 });
        let (joined, ()) = tokio::join!(joined, async { flight.land(7) });
        assert_eq!(joined, Some(7));
        assert!(flights.0.lock().is_empty());
    }
}
