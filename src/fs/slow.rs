//! The story of a request that took long.
//!
//! Where its time went is added up while it is answered, by the thread that answers it: what it
//! waited for an endpoint (what came from there was verified meanwhile, by others), what it hashed
//! itself, and the rest, which is what the store at hand took: memory, disk, cache. Two looks at the
//! clock are all that a fast request pays, and nothing where no threshold is set.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::node_id::Place;
use super::{CastoreFs, NodeId};
use crate::castore::{Digest, NodeRef, effort};

thread_local! {
    /// How long the request that this thread answers has waited.
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Notes that the request which this thread answers has waited for `long`.
pub(super) fn waited(long: Duration) {
    WAITED.set(WAITED.get() + long);
}

impl CastoreFs {
    /// Does `work`, which answers a request for `node`; if it takes longer than
    /// [`Options::slow_requests`](super::Options) says, tells its story, calling it what `kind` does.
    pub fn answering<T>(
        &self,
        kind: impl FnOnce() -> &'static str,
        node: u64,
        work: impl FnOnce() -> T,
    ) -> T {
        let Some(threshold) = self.options.slow_requests else {
            return work();
        };
        WAITED.set(Duration::ZERO);
        let began = Instant::now();
        let (outcome, hashed) = effort::measure(work);
        let took = began.elapsed();
        if took >= threshold {
            self.tell_slow(kind(), node, took, WAITED.get(), hashed);
        }
        outcome
    }

    fn tell_slow(
        &self,
        request: &str,
        node: u64,
        took: Duration,
        waited: Duration,
        hashed: Duration,
    ) {
        let id = NodeId::from(node);
        let digest = match id.place() {
            Some(Place::Directory(slot)) => self.nodes.directory(slot).map(|node| node.digest),
            _ => self.file_at_hand(id),
        };
        let endpoint = (!waited.is_zero()).then(|| self.store.url());
        let at_hand = took.saturating_sub(waited).saturating_sub(hashed);
        let millis = |span: Duration| span.as_micros() as f64 / 1000.0;
        tracing::warn!(
            request,
            path = %self.path(id),
            digest = digest.map(tracing::field::display),
            endpoint,
            total_ms = millis(took),
            endpoint_ms = millis(waited),
            verify_ms = millis(hashed),
            cache_ms = millis(at_hand),
            "a slow request"
        );
    }

    /// The digest of the file `id`, as far as its Directory is in memory: telling a story must not
    /// make another one.
    fn file_at_hand(&self, id: NodeId) -> Option<Digest> {
        let Some(Place::Entry { slot, index }) = id.place() else {
            return None;
        };
        let directory = self.nodes.directory(slot)?.directory?;
        match directory.get(index as usize)?.node {
            NodeRef::File { digest, .. } => Some(digest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::field::{Field, Visit};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;
    use crate::fs::{Options, Uncounted, Waiting};
    use crate::store::MemoryStore;

    /// The fields of the last event.
    #[derive(Clone, Default)]
    struct Last(Arc<Mutex<BTreeMap<String, String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Last {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.lock().clear();
            event.record(&mut &*self);
        }
    }

    impl Visit for &Last {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let value = format!("{value:?}");
            self.0.lock().insert(field.name().to_owned(), value);
        }
    }

    #[test]
    fn a_slow_request_tells_where_its_time_went_and_a_fast_one_nothing() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiting = Waiting::new(runtime.handle().clone(), Arc::new(Uncounted));
        let options = Options {
            slow_requests: Some(Duration::from_millis(30)),
            ..Options::default()
        };
        let store = Arc::new(MemoryStore::default());
        let fs = CastoreFs::new(store, options, waiting.clone(), None);
        let last = Last::default();
        let subscriber = tracing_subscriber::registry().with(last.clone());
        let bytes = vec![1; 1 << 20];
        tracing::subscriber::with_default(subscriber, || {
            fs.answering(|| "READ", 1, || ());
            assert!(last.0.lock().is_empty());
            fs.answering(
                || "READ",
                1,
                || {
                    waiting.wait(async { tokio::time::sleep(Duration::from_millis(40)).await });
                    Digest::of(&bytes);
                    std::thread::sleep(Duration::from_millis(20));
                },
            );
        });
        let told = last.0.lock();
        let millis = |part: &str| told[part].parse::<f64>().unwrap();
        assert_eq!(
            (told["request"].as_str(), told["path"].as_str()),
            ("\"READ\"", "/")
        );
        assert_eq!(told["endpoint"], "\"memory:\"");
        assert!(
            millis("endpoint_ms") >= 40.0 && millis("cache_ms") >= 20.0,
            "{told:?}"
        );
        assert!(millis("verify_ms") > 0.0, "{told:?}");
        let parts = millis("endpoint_ms") + millis("verify_ms") + millis("cache_ms");
        assert!((parts - millis("total_ms")).abs() < 0.01, "{told:?}");
    }
}
