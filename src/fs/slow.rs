//! Where the time of a slow request went.
//!
//! The thread that answers a request adds its times up: the wait for an endpoint (what comes from
//! there is verified meanwhile, by other threads), its own hashing, and the rest, which is the
//! local store: memory, disk, cache. A fast request pays for two readings of the clock, and for
//! none where no threshold is set.
//!
//! The same times go into tracing spans ([`spans`]) of every request that has waited or was slow.
//! Its span is made when the request first waits, so that fetches on its behalf lie within.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use tracing::Span;
use tracing::field::{Empty, display};

use super::node_id::NodePlace;
use super::{CastoreFs, NodeId, ParkedState, ParkedWait, parkable};
use crate::castore::{Digest, NodeRef, effort};
use crate::spans;

thread_local! {
    /// From which offset of an image it reads.
    static READS_AT: Cell<Option<u64>> = const { Cell::new(None) };
    /// When that request began, if spans are exported, and its span, once it has one.
    static FOLLOWED: RefCell<Option<(Instant, Option<Span>)>> = const { RefCell::new(None) };
}

/// The span of the request that this thread answers; none if spans are not exported.
pub(super) fn span() -> Span {
    if !spans::wanted() {
        return Span::none();
    }
    FOLLOWED.with_borrow_mut(|followed| match followed {
        Some((began, span)) => span.get_or_insert_with(|| request_span(*began)).clone(),
        None => Span::none(),
    })
}

/// A span for a request that began at `began`; its other fields are recorded when it is over.
fn request_span(began: Instant) -> Span {
    tracing::trace_span!(
        target: spans::TARGET,
        "request",
        otel.kind = "server",
        otel.ago = began.elapsed().as_micros() as u64,
        otel.name = Empty,
        path = Empty,
        digest = Empty,
        endpoint = Empty,
        total_ms = Empty,
        endpoint_ms = Empty,
        verify_ms = Empty,
        cache_ms = Empty,
    )
}

/// Where the time of a request went.
struct TimeSpent {
    total: Duration,
    waited: Duration,
    hashed: Duration,
}

/// What to report about a request, until it is answered.
#[derive(Debug, Default)]
pub(super) struct RequestStory {
    /// When its answer began, if times are wanted.
    began: Option<Instant>,
    waited: Duration,
    hashed: Duration,
    span: Option<Span>,
}

impl RequestStory {
    /// Notes that the request has waited for `long`.
    pub(super) fn waited(&mut self, long: Duration) {
        self.waited += long;
    }
}

/// Notes that the request which this thread answers reads an image at `offset`.
pub(super) fn reads_at(offset: u64) {
    READS_AT.set(Some(offset));
}

impl CastoreFs {
    /// Does `work`, which answers a request for `node` of which `paused` is the state; returns also
    /// what it waits for if it was [parked](parkable). If it takes longer than
    /// [`FsOptions::slow_requests`](super::FsOptions), its times are logged, and `kind` names the
    /// request.
    pub fn answering<T>(
        &self,
        paused: &mut ParkedState,
        kind: impl FnOnce() -> &'static str,
        node: u64,
        work: impl FnOnce() -> T,
    ) -> (T, Option<ParkedWait>) {
        let threshold = self.options.slow_requests;
        if threshold.is_none() && !spans::wanted() {
            return parkable(paused, work);
        }
        READS_AT.set(None);
        let began = *paused.story.began.get_or_insert_with(Instant::now);
        if spans::wanted() {
            FOLLOWED.set(Some((began, paused.story.span.take())));
        }
        let ((outcome, parked), hashed) = effort::measure(|| parkable(paused, work));
        let story = &mut paused.story;
        story.hashed += hashed;
        let made = FOLLOWED.take().and_then(|(_, span)| span);
        if parked.is_some() {
            story.span = made;
            return (outcome, parked);
        }
        let total = began.elapsed();
        let slow = threshold.is_some_and(|threshold| total >= threshold);
        let span = match made {
            None if slow && spans::wanted() => request_span(began),
            made => made.unwrap_or_else(Span::none),
        };
        if slow || !span.is_none() {
            let parts = TimeSpent {
                total,
                waited: story.waited,
                hashed: story.hashed,
            };
            self.report(kind(), node, &parts, slow, &span);
        }
        (outcome, None)
    }

    fn report(&self, request: &str, node: u64, parts: &TimeSpent, slow: bool, span: &Span) {
        let TimeSpent {
            total,
            waited,
            hashed,
        } = *parts;
        let id = NodeId::from(node);
        let digest = match id.place() {
            Some(NodePlace::Directory(slot)) => self.nodes.directory(slot).map(|node| node.digest),
            _ => self.cached_file(id),
        };
        let endpoint = (!waited.is_zero()).then(|| self.store.url());
        let cached = total.saturating_sub(waited).saturating_sub(hashed);
        let millis = |span: Duration| span.as_micros() as f64 / 1000.0;
        let mut path = self.path(id);
        let location = READS_AT.get().and_then(|at| self.image_location(id, at));
        if let Some(location) = &location {
            path = format!("{path}: {}", location.path);
        }
        let digest = digest.or(location.map(|location| location.digest));
        if !span.is_none() {
            span.record("otel.name", request)
                .record("path", display(&path))
                .record("digest", digest.map(display))
                .record("endpoint", endpoint)
                .record("total_ms", millis(total))
                .record("endpoint_ms", millis(waited))
                .record("verify_ms", millis(hashed))
                .record("cache_ms", millis(cached));
        }
        if !slow {
            return;
        }
        let _in_span = span.enter();
        tracing::warn!(
            request,
            %path,
            digest = digest.map(display),
            endpoint,
            total_ms = millis(total),
            endpoint_ms = millis(waited),
            verify_ms = millis(hashed),
            cache_ms = millis(cached),
            "a slow request"
        );
    }

    /// The digest of the file `id`, if its Directory is in memory: a report must not cause a fetch.
    fn cached_file(&self, id: NodeId) -> Option<Digest> {
        let Some(NodePlace::Entry { slot, index }) = id.place() else {
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

    use fuse_backend_rs::api::filesystem::{Context as FuseContext, FileSystem};

    use super::*;
    use crate::castore::{Directory, Name, Node, Root};
    use crate::fs::{FsOptions, WaitingRequests};
    use crate::store::{MemoryStore, Store};

    /// The fields of the last event.
    #[derive(Clone, Default)]
    struct LastEvent(Arc<Mutex<BTreeMap<String, String>>>);

    impl<S: tracing::Subscriber> Layer<S> for LastEvent {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.lock().clear();
            event.record(&mut &*self);
        }
    }

    impl Visit for &LastEvent {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let value = format!("{value:?}");
            self.0.lock().insert(field.name().to_owned(), value);
        }
    }

    #[test]
    fn a_slow_read_of_an_image_names_the_file_at_the_offset() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiting = WaitingRequests::new(runtime.handle().clone());
        let options = FsOptions {
            slow_requests: Some(Duration::from_millis(30)),
            images: Some(Arc::default()),
            ..FsOptions::default()
        };
        let store = MemoryStore::default();
        let node = Node::File {
            digest: Digest::of(b"content"),
            size: 7,
            executable: false,
        };
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let below = Directory::from_entries(vec![(name("file"), node)]).unwrap();
        let mount_root = Directory::from_entries(vec![(name("below"), below.node())]).unwrap();
        let ingest = store.ingest().unwrap();
        ingest
            .put_blobs(&[(Digest::of(b"content"), b"content")])
            .unwrap();
        ingest.put_directory(&below).unwrap();
        ingest.put_directory(&mount_root).unwrap();
        let root = Root {
            name: name("tree"),
            node: mount_root.node(),
        };
        ingest.put_root(&root, None).unwrap();
        ingest.commit().unwrap();
        let fs = CastoreFs::new(Arc::new(store), options, waiting, None);
        let context = FuseContext::default();
        let images = fs.lookup(&context, NodeId::ROOT, c".images").unwrap();
        let image = fs.lookup(&context, images.inode.into(), c"tree.erofs");
        let image = image.unwrap().inode;
        let last = LastEvent::default();
        let subscriber = tracing_subscriber::registry().with(last.clone());
        tracing::subscriber::with_default(subscriber, || {
            let mut buffer = [0; 7];
            fs.answering(
                &mut ParkedState::default(),
                || "READ",
                image,
                || {
                    // After a block of metadata.
                    fs.read_into(image.into(), 4096, &mut buffer).unwrap();
                    std::thread::sleep(Duration::from_millis(40));
                },
            );
            assert_eq!(&buffer, b"content");
        });
        let logged = last.0.lock();
        let hex = mount_root.digest().to_hex();
        assert_eq!(logged["path"], format!("/.images/{hex}.erofs: /below/file"));
        assert_eq!(logged["digest"], Digest::of(b"content").to_string());
        let counted = &fs.image_counts()[0];
        assert_eq!(
            (counted.digest.as_str(), counted.read_bytes),
            (hex.as_str(), 7)
        );
        assert_eq!((counted.layout_version, counted.size), (1, Some(2 << 20)));
    }

    #[test]
    fn a_slow_request_logs_where_its_time_went_and_a_fast_one_nothing() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiting = WaitingRequests::new(runtime.handle().clone());
        let options = FsOptions {
            slow_requests: Some(Duration::from_millis(30)),
            ..FsOptions::default()
        };
        let store = Arc::new(MemoryStore::default());
        let fs = CastoreFs::new(store, options, waiting, None);
        let last = LastEvent::default();
        let subscriber = tracing_subscriber::registry().with(last.clone());
        let bytes = vec![1; 1 << 20];
        tracing::subscriber::with_default(subscriber, || {
            fs.answering(&mut ParkedState::default(), || "READ", 1, || ());
            assert!(last.0.lock().is_empty());
            let mut paused = ParkedState::default();
            paused.story.began = Some(Instant::now());
            std::thread::sleep(Duration::from_millis(40));
            paused.story.waited(Duration::from_millis(40));
            fs.answering(
                &mut paused,
                || "READ",
                1,
                || {
                    Digest::of(&bytes);
                    std::thread::sleep(Duration::from_millis(20));
                },
            );
        });
        let logged = last.0.lock();
        let millis = |part: &str| logged[part].parse::<f64>().unwrap();
        assert_eq!(
            (logged["request"].as_str(), logged["path"].as_str()),
            ("\"READ\"", "/")
        );
        assert_eq!(logged["endpoint"], "\"memory:\"");
        assert!(
            millis("endpoint_ms") >= 40.0 && millis("cache_ms") >= 20.0,
            "{logged:?}"
        );
        assert!(millis("verify_ms") > 0.0, "{logged:?}");
        let parts = millis("endpoint_ms") + millis("verify_ms") + millis("cache_ms");
        assert!((parts - millis("total_ms")).abs() < 0.01, "{logged:?}");
    }
}
