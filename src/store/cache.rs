//! A store near, in front of one far away: what was read stays.
//!
//! The near store is a [`LocalStore`], and whatever a far one gives is kept there as it comes:
//! Directories, small blobs, parts of large ones ([`parts`](super::local)), and root nodes with
//! their age ([`roots`]). All of that outlives the process, and goes on being served when the far
//! store cannot be reached.
//!
//! **Readers never wait for the near disk to take something.** What was fetched goes to whoever
//! asked, and by a bounded queue to a thread that writes ([`writer`]). A disk that is slow, full or
//! failing makes the cache keep less, and nobody's read fail.
//!
//! **One fetch for all.** Whoever wants an object that is being fetched waits for that fetch; what
//! has come stays in memory a while, until the near store has it.
//!
//! **What does not check out is fetched anew.** The near store verifies what it reads; a damaged
//! object is read from the far store instead, and put in its place.
//!
//! **What goes first** when room is short: what no root leads to; then, of the roots that are not
//! pinned, what only those lead to that were used longest ago. A root is used when its name is
//! looked up and when something below it is read.
//!
//! **Additions go through** to the far store, if that takes any: the cache holds nothing that would
//! be lost with it. The near store's own roots are served too, before the far store's of the same
//! name, and are never let go of.
//!
//! One process at a time should cache in a near store; others may read it, and add to it.

mod answers;
mod fetch;
mod prefetch;
mod reach;
mod roots;
mod status;
mod touched;
mod without_near;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub use self::prefetch::Prefetch;
use self::reach::Reach;
pub use self::status::CacheStatus;
pub(crate) use self::without_near::WithoutNear;
use self::writer::Writer;
use super::bounded::Bounded;
use super::flights::Flights;
use super::local_url::open_near;
use super::{Collected, Error, LocalStore, Store, network};
use crate::castore::{Digest, Directory, GroupTable, Name, Root, group_size};

/// Blobs of up to this many bytes are fetched whole: those that the near store packs.
const WHOLE: u64 = 1 << 20;
/// The smallest part of a larger one that is fetched, in bytes.
const PART: u64 = 256 << 10;
/// Bytes of blobs that stay in memory after they have come, until the near store has them.
const RECENT_BLOBS: usize = 96 << 20;
/// The same of Directories.
const RECENT_DIRECTORIES: usize = 16 << 20;
/// The same of group tables.
const RECENT_TABLES: usize = 16 << 20;
/// Roots that are asked for anew at once.
const REFRESHED: usize = 64;

/// How a cache is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes that the near store may take on its disk; without it as many as there are.
    pub size: Option<u64>,
    /// Bytes that stay free on that disk whatever `size` says.
    pub keep_free: Option<u64>,
    /// How long the far store's answer for a root's name holds.
    pub roots_max_age: Duration,
    /// Whether a look-up of a root keeps its [`PathInfo`](crate::nix::PathInfo) too: right where
    /// the far store knows it by then.
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

/// A local store in front of a far one. Clones are the same cache. What was read and is not on the
/// disk yet is written when the last of them is dropped.
#[derive(Clone)]
pub struct Cache(Arc<Running>);

/// The cache and its thread.
struct Running {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    near: LocalStore,
    far: Arc<dyn Store>,
    url: String,
    limit: Option<u64>,
    keep_path_infos: bool,
    runtime: Handle,
    writer: Arc<Writer>,
    reach: Reach,
    recent: Mutex<Recent>,
    fetching: Flights<(Digest, u64, u64), Shared<Bytes>>,
    asking: Flights<Digest, Shared<Directory>>,
    looking: Flights<Bytes, Shared<Root>>,
    tabling: Flights<(Digest, u64), Option<Arc<GroupTable>>>,
    /// What the far store last said of its roots' version.
    far_version: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// An answer for all who waited.
type Shared<T> = Result<Option<T>, Arc<Error>>;

/// What has come a moment ago.
#[derive(Debug)]
struct Recent {
    /// By digest, the size that a node says, and the number of the part.
    blobs: Bounded<(Digest, u64, u64), Bytes>,
    directories: Bounded<Digest, Directory>,
    tables: Bounded<(Digest, u64), Arc<GroupTable>>,
}

/// Bytes of a blob of `size` bytes that are fetched at once.
fn unit_size(size: u64) -> u64 {
    match size <= WHOLE {
        true => WHOLE,
        false => PART.max(group_size(size)),
    }
}

impl Cache {
    /// Opens the cache that is kept in the local store `near` (`local:PATH`, which is made if it is
    /// not there), in front of `far`.
    pub fn open(near: &str, far: Arc<dyn Store>, options: CacheOptions) -> Result<Self, Error> {
        let near = open_near(near)?.ok_or_else(|| Error::Url {
            url: near.to_owned(),
            why: "a cache is kept in a folder: write local:PATH".to_owned(),
        })?;
        Self::new(near, far, options)
    }

    /// Opens the cache that is kept in `near`, in front of `far`.
    pub fn new(
        near: LocalStore,
        far: Arc<dyn Store>,
        options: CacheOptions,
    ) -> Result<Self, Error> {
        let url = format!("cache({}, {})", near.url(), far.url());
        let failed = |source| Error::Io {
            store: url.clone(),
            action: "start threads for the cache in",
            path: near.url().trim_start_matches("local:").into(),
            source,
        };
        let inner = Arc::new(Inner {
            runtime: network::handle().map_err(failed)?.clone(),
            limit: options.size,
            keep_path_infos: options.keep_path_infos,
            writer: Arc::new(Writer::new(near.clone(), options)?),
            reach: Reach::default(),
            recent: Mutex::new(Recent {
                blobs: Bounded::new(RECENT_BLOBS),
                directories: Bounded::new(RECENT_DIRECTORIES),
                tables: Bounded::new(RECENT_TABLES),
            }),
            fetching: Flights::default(),
            asking: Flights::default(),
            looking: Flights::default(),
            tabling: Flights::default(),
            far_version: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            url: url.clone(),
            near: near.clone(),
            far,
        });
        let running = inner.clone();
        let thread = std::thread::Builder::new().name("castore-cache".to_owned());
        let thread = thread.spawn(move || running.writer.run(|| running.refresh()));
        Ok(Self(Arc::new(Running {
            thread: Some(thread.map_err(failed)?),
            inner,
        })))
    }

    /// The store near.
    pub fn near(&self) -> &LocalStore {
        &self.0.inner.near
    }

    /// How it fares.
    pub fn status(&self) -> CacheStatus {
        let inner = &self.0.inner;
        let (evictions, not_kept, repairs) = inner.writer.counts();
        CacheStatus {
            size: inner.writer.size(),
            limit: inner.limit,
            hits: inner.hits.load(Ordering::Relaxed),
            misses: inner.misses.load(Ordering::Relaxed),
            evictions,
            not_kept,
            repairs,
            degraded: inner.writer.why_degraded(),
            far_down: inner.reach.why(),
        }
    }

    /// Keeps what is below the root `name`, once it was read, whatever the cache's size; says
    /// whether it was not pinned before. The root need not be there yet.
    pub fn pin(&self, name: &Name) -> Result<bool, Error> {
        self.set_pin(name, true)
    }

    /// Takes back [`pin`](Self::pin); says whether it was pinned.
    pub fn unpin(&self, name: &Name) -> Result<bool, Error> {
        self.set_pin(name, false)
    }

    fn set_pin(&self, name: &Name, pinned: bool) -> Result<bool, Error> {
        let writer = &self.0.inner.writer;
        let changed = writer.roots.pin(name, pinned);
        writer.remember()?;
        Ok(changed)
    }

    /// The names that are pinned, in their order.
    pub fn pins(&self) -> Vec<Name> {
        self.0.inner.writer.roots.pins()
    }

    /// Lets go of everything but what is pinned, and the near store's own roots.
    pub fn drop_cache(&self) -> Result<Collected, Error> {
        self.flush();
        self.0.inner.recent.lock().forget();
        self.0.inner.writer.come_down_to(0)
    }

    /// Lets go of what was used longest ago until the near store takes no more than `size` bytes on
    /// its disk; by itself this happens when it is over its limit.
    pub fn evict(&self, size: u64) -> Result<Collected, Error> {
        self.flush();
        self.0.inner.writer.come_down_to(size)
    }

    /// Waits until everything that was read so far is on the disk, or was given up.
    pub fn flush(&self) {
        self.0.inner.writer.flush();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.writer.close();
        if let Some(thread) = self.thread.take() {
            // Should it have crashed, nothing is kept any more; reading goes on without.
            let _ = thread.join();
        }
    }
}

impl Recent {
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
