//! A cache: a local store in front of an upstream.
//!
//! The local store (`local_store`) is a [`LocalStore`]. Everything that the upstream (`upstream`) returns is
//! stored there on arrival: Directories, small blobs, parts of large ones
//! ([`parts`](super::local)), and roots with their age ([`roots`]). All of that outlives the
//! process, and is served when the upstream is unreachable.
//!
//! **Readers never wait for a write to the local disk.** Fetched objects go to their readers, and
//! through a bounded queue to a writer thread ([`writer`]). With a disk that is slow, full or
//! failing the cache keeps less, and no read fails.
//!
//! **One fetch for all readers.** A reader of an object that is being fetched waits for that fetch;
//! fetched objects stay in memory until the local store has them.
//!
//! **Damaged objects are fetched again.** The local store verifies what it reads; a damaged object
//! is read from the upstream instead, and replaced.
//!
//! **Order of eviction**: first what no root reaches; then, of the roots that are not pinned, what
//! only the least recently used reach. A root is used when its name is looked up and when something
//! below it is read.
//!
//! **Additions go to the upstream**, if that accepts any: nothing is lost with the cache. The local
//! store's own roots are served too, before the upstream's of the same name, and are never evicted.
//!
//! At most one process at a time should cache in a local store; others may read it, and add to it.

mod access_times;
mod answers;
mod circuit_breaker;
mod fetch;
mod prefetch;
mod roots;
mod shares;
mod status;
mod without_cache;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::circuit_breaker::UpstreamBreaker;
pub use self::prefetch::Prefetch;
pub use self::shares::CachedShare;
pub use self::status::CacheStatus;
pub(crate) use self::without_cache::WithoutCache;
use self::writer::CacheWriter;
use super::bounded::Bounded;
use super::local_url::open_cache_store;
use super::single_flight::SingleFlight;
use super::{Error, GcResult, LocalStore, Store, network};
use crate::castore::{Digest, Directory, GroupTable, Name, Root, group_size};

/// Blobs of up to this many bytes are fetched whole: those that the local store packs.
const WHOLE: u64 = 1 << 20;
/// The smallest part of a larger one that is fetched, in bytes.
const PART: u64 = 256 << 10;
/// Bytes of fetched blobs that stay in memory until the local store has them.
const RECENT_BLOBS: usize = 96 << 20;
/// Bytes of fetched Directories that stay in memory.
const RECENT_DIRECTORIES: usize = 16 << 20;
/// Bytes of fetched group tables that stay in memory.
const RECENT_TABLES: usize = 16 << 20;
/// Roots that are refreshed at once.
const REFRESHED: usize = 64;

/// The options of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes that the local store may take on its disk; unlimited without it.
    pub size: Option<u64>,
    /// Bytes that stay free on that disk, regardless of `size`.
    pub keep_free: Option<u64>,
    /// How long the upstream's answer for a root's name is valid.
    pub roots_max_age: Duration,
    /// Whether a lookup of a root stores its [`PathInfo`](crate::nix::PathInfo) too: useful if the
    /// upstream knows it by then.
    pub keep_path_infos: bool,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            size: None,
            keep_free: None,
            roots_max_age: Duration::from_secs(60),
            keep_path_infos: false,
        }
    }
}

/// A local store in front of an upstream. Clones are the same cache. Objects that are not on the
/// disk yet are written when the last clone is dropped.
#[derive(Clone)]
pub struct Cache(Arc<RunningCache>);

/// The cache and its thread.
struct RunningCache {
    inner: Arc<CacheInner>,
    thread: Option<JoinHandle<()>>,
}

struct CacheInner {
    local_store: LocalStore,
    upstream: Arc<dyn Store>,
    url: String,
    limit: Option<u64>,
    keep_path_infos: bool,
    runtime: Handle,
    writer: Arc<CacheWriter>,
    circuit_breaker: UpstreamBreaker,
    recent: Mutex<RecentObjects>,
    fetching: SingleFlight<(Digest, u64, u64), SharedFetch<Bytes>>,
    asking: SingleFlight<Digest, SharedFetch<Directory>>,
    looking: SingleFlight<Bytes, SharedFetch<Root>>,
    tabling: SingleFlight<(Digest, u64), Option<Arc<GroupTable>>>,
    /// The version of its roots that the upstream last reported.
    upstream_version: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// An answer for all waiting readers.
type SharedFetch<T> = Result<Option<T>, Error>;

/// Recently fetched objects.
#[derive(Debug)]
struct RecentObjects {
    /// By digest, the size in the node, and the number of the part.
    blobs: Bounded<(Digest, u64, u64), Bytes>,
    directories: Bounded<Digest, Directory>,
    tables: Bounded<(Digest, u64), Arc<GroupTable>>,
}

/// Bytes of a blob of `size` bytes that are fetched at once.
fn cached_extent_size(size: u64) -> u64 {
    match size <= WHOLE {
        true => WHOLE,
        false => PART.max(group_size(size)),
    }
}

impl Cache {
    /// Opens the cache with the local store `local_store` (`local:PATH`, which is made if it does not
    /// exist), in front of `upstream`.
    pub fn open(
        local_store: &str,
        upstream: Arc<dyn Store>,
        options: CacheOptions,
    ) -> Result<Self, Error> {
        let local_store = open_cache_store(local_store)?.ok_or_else(|| Error::Url {
            url: local_store.to_owned(),
            why: "a cache needs a directory: write local:PATH".to_owned(),
        })?;
        Self::new(local_store, upstream, options)
    }

    /// Opens the cache with the local store `local_store`, in front of `upstream`.
    pub fn new(
        local_store: LocalStore,
        upstream: Arc<dyn Store>,
        options: CacheOptions,
    ) -> Result<Self, Error> {
        let url = format!("cache({}, {})", local_store.url(), upstream.url());
        let failed = |source| Error::Io {
            store: url.clone(),
            action: "start threads for the cache in",
            path: local_store.url().trim_start_matches("local:").into(),
            source: Arc::new(source),
        };
        upstream.keep_listings_fresh(options.roots_max_age);
        let inner = Arc::new(CacheInner {
            runtime: network::handle().map_err(failed)?.clone(),
            limit: options.size,
            keep_path_infos: options.keep_path_infos,
            writer: Arc::new(CacheWriter::new(local_store.clone(), options)?),
            circuit_breaker: UpstreamBreaker::default(),
            recent: Mutex::new(RecentObjects {
                blobs: Bounded::new(RECENT_BLOBS),
                directories: Bounded::new(RECENT_DIRECTORIES),
                tables: Bounded::new(RECENT_TABLES),
            }),
            fetching: SingleFlight::default(),
            asking: SingleFlight::default(),
            looking: SingleFlight::default(),
            tabling: SingleFlight::default(),
            upstream_version: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            url: url.clone(),
            local_store: local_store.clone(),
            upstream,
        });
        let running = inner.clone();
        let thread = std::thread::Builder::new().name("castore-cache".to_owned());
        let thread = thread.spawn(move || {
            let written = |writes: &[writer::Write]| running.written(writes);
            running.writer.run(written, || running.refresh());
        });
        Ok(Self(Arc::new(RunningCache {
            thread: Some(thread.map_err(failed)?),
            inner,
        })))
    }

    /// The local store.
    pub fn local_store(&self) -> &LocalStore {
        &self.0.inner.local_store
    }

    /// The state and counters.
    pub fn status(&self) -> CacheStatus {
        let inner = &self.0.inner;
        let (evictions, not_stored, repairs) = inner.writer.counts();
        CacheStatus {
            size: inner.writer.size(),
            limit: inner.limit,
            hits: inner.hits.load(Ordering::Relaxed),
            misses: inner.misses.load(Ordering::Relaxed),
            evictions,
            not_stored,
            repairs,
            backoff: inner.writer.why_backing_off(),
            upstream_down: inner.circuit_breaker.why(),
            pins: self.pins().iter().map(Name::to_string).collect(),
        }
    }

    /// Directories and parts of blobs that were read from the cache, and those that were requested from its
    /// upstream.
    pub fn reads(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.0.inner.hits), load(&self.0.inner.misses))
    }

    /// Pins what is below the root `name`: once read, it is kept whatever the cache's size. Returns
    /// whether it was not pinned before. The root need not exist yet.
    pub fn pin(&self, name: &Name) -> Result<bool, Error> {
        self.set_pin(name, true)
    }

    /// Undoes [`pin`](Self::pin); returns whether it was pinned.
    pub fn unpin(&self, name: &Name) -> Result<bool, Error> {
        self.set_pin(name, false)
    }

    fn set_pin(&self, name: &Name, pinned: bool) -> Result<bool, Error> {
        let writer = &self.0.inner.writer;
        let changed = writer.roots.pin(name, pinned);
        writer.remember()?;
        Ok(changed)
    }

    /// The pinned names, in order.
    pub fn pins(&self) -> Vec<Name> {
        self.0.inner.writer.roots.pins()
    }

    /// Removes everything but what is pinned, and the local store's own roots.
    pub fn drop_cache(&self) -> Result<GcResult, Error> {
        self.flush();
        self.0.inner.recent.lock().forget();
        self.0.inner.writer.come_down_to(0)
    }

    /// Evicts the least recently used until the local store takes no more than `size` bytes on its
    /// disk. This happens by itself when the cache is over its limit.
    pub fn evict(&self, size: u64) -> Result<GcResult, Error> {
        self.flush();
        self.0.inner.writer.come_down_to(size)
    }

    /// Waits until everything that was read so far is on the disk, or was dropped.
    pub fn flush(&self) {
        self.0.inner.writer.flush();
    }
}

impl Drop for RunningCache {
    fn drop(&mut self) {
        self.inner.writer.close();
        if let Some(thread) = self.thread.take() {
            // If the writer has crashed, nothing is kept any more; reading still works.
            let _ = thread.join();
        }
    }
}

impl RecentObjects {
    fn forget(&mut self) {
        self.blobs.clear();
        self.directories.clear();
        self.tables.clear();
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}
