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

mod fetch;
mod prefetch;
mod reach;
mod roots;
mod status;
mod touched;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub use self::prefetch::Prefetch;
use self::reach::Reach;
use self::roots::Memory;
pub use self::status::CacheStatus;
use self::writer::Writer;
use super::bounded::Bounded;
use super::flights::Flights;
use super::url::open_local;
use super::{
    Answer, BackingFile, Collected, Error, Health, Ingest, LocalStore, Store, Usage, network,
    segments,
};
use crate::castore::{Digest, Directory, GroupTable, Name, Root, group_size};
use crate::nix::PathInfo;

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
/// How late a change of the near store's own roots may be noticed.
const LATE: Duration = Duration::from_secs(1);
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
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            size: None,
            keep_free: None,
            roots_max_age: Duration::from_secs(60),
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
        let near = open_local(near)?.ok_or_else(|| Error::Url {
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

#[async_trait]
impl Store for Cache {
    fn url(&self) -> &str {
        &self.0.inner.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        let inner = &self.0.inner;
        if *digest == Digest::empty_blob() {
            return Ok(Answer::Found(Directory::empty()));
        }
        if let Some(directory) = inner.directory_at_hand(digest) {
            inner.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Answer::Found(directory));
        }
        // The far store may have it in memory; whatever it cannot say now, it says later.
        match inner.far.directory_now(digest) {
            Ok(Answer::Found(directory)) if directory.digest() == *digest => {
                inner.misses.fetch_add(1, Ordering::Relaxed);
                inner.keep_directory(digest, &directory);
                Ok(Answer::Found(directory))
            }
            Ok(Answer::Absent) => Ok(Answer::Absent),
            _ => Ok(Answer::Wait),
        }
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        let inner = &self.0.inner;
        check_empty(&inner.url, digest, size)?;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(Answer::Found(0));
        }
        match inner.at_hand(digest, size, offset, &mut buffer[..length])? {
            true => {
                inner.hits.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::Found(length))
            }
            false => Ok(Answer::Wait),
        }
    }

    /// The far store fetches what is not here; it is kept when it is read.
    fn will_need(&self, blobs: &[(Digest, u64)]) {
        let inner = &self.0.inner;
        let lacks = |(digest, _): &&(Digest, u64)| {
            inner.near.indexed_size(digest).ok().flatten().is_none()
                && inner.near.parts().about(digest).is_none()
        };
        let lacking: Vec<_> = blobs.iter().filter(lacks).copied().collect();
        if !lacking.is_empty() {
            inner.far.will_need(&lacking);
        }
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        let inner = &self.0.inner;
        if let Ok(Answer::Found(root)) = inner.near.root_now(name) {
            return Ok(Answer::Found(root));
        }
        let roots = &inner.writer.roots;
        match roots.recall(name, inner.far_version()) {
            Memory::Fresh(known) => return Ok(known.into()),
            Memory::Old(root) if inner.reach.is_resting() => return Ok(Answer::Found(root)),
            Memory::Old(_) | Memory::Nothing => {}
        }
        match inner.far.root_now(name) {
            Ok(Answer::Found(root)) => {
                roots.note(name, Some(&root), true);
                Ok(Answer::Found(root))
            }
            Ok(Answer::Absent) => {
                roots.note(name, None, true);
                Ok(Answer::Absent)
            }
            _ => Ok(Answer::Wait),
        }
    }

    /// The near store's: what it has whole.
    fn backing_file(&self, digest: &Digest, size: u64) -> Result<Option<BackingFile>, Error> {
        let inner = &self.0.inner;
        if inner.writer.is_spoiled(digest) {
            return Ok(None);
        }
        match inner.near.backing_file(digest, size) {
            Ok(file) => {
                if file.is_some() {
                    inner.writer.touched.touch(digest);
                }
                Ok(file)
            }
            Err(error) => inner.excuse(digest, size, error).map(|()| None),
        }
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        match self.directory_now(digest)? {
            Answer::Found(directory) => Ok(Some(directory)),
            Answer::Absent => Ok(None),
            Answer::Wait => self.0.inner.directory(digest).await,
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        let inner = &self.0.inner;
        check_empty(&inner.url, digest, size)?;
        let end = size.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Ok(Some(Bytes::new()));
        }
        let unit = unit_size(size);
        let parts = (offset / unit..end.div_ceil(unit)).map(|index| async move {
            let from = offset.max(index * unit);
            let to = end.min((index + 1) * unit);
            let mut buffer = vec![0; (to - from) as usize];
            if inner.at_hand(digest, size, from, &mut buffer)? {
                inner.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(Bytes::from(buffer)));
            }
            let found = inner.unit(digest, size, index).await?;
            let (from, to) = ((from - index * unit) as usize, (to - index * unit) as usize);
            Ok::<_, Error>(found.map(|bytes| bytes.slice(from..to)))
        });
        let parts = try_join_all(parts).await?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        if let [only] = &parts[..] {
            return Ok(Some(only.clone()));
        }
        let mut all = BytesMut::with_capacity((end - offset) as usize);
        parts.iter().for_each(|part| all.extend_from_slice(part));
        Ok(Some(all.freeze()))
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let inner = &self.0.inner;
        match self.root_now(name)? {
            Answer::Found(root) => return Ok(Some(root)),
            Answer::Absent => return Ok(None),
            Answer::Wait => {}
        }
        let looked = inner.look_up(name).await;
        match looked {
            Err(error) => match inner.writer.roots.recall(name, inner.far_version()) {
                Memory::Old(root) | Memory::Fresh(Some(root)) => Ok(Some(root)),
                _ => Err(error),
            },
            found => found,
        }
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let inner = &self.0.inner;
        let own = inner.near.roots().await?;
        let listed = inner.ask(inner.far.roots()).await;
        let mut roots = match listed {
            Ok(listed) => {
                inner.writer.roots.note_all(&listed);
                listed
            }
            Err(error) => {
                let known = inner.writer.roots.all();
                if known.is_empty() && own.is_empty() {
                    return Err(error.again());
                }
                known
            }
        };
        // The near store's own come first, and stay where there are two.
        roots.splice(0..0, own);
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        roots.dedup_by(|later, first| later.name == first.name);
        Ok(roots)
    }

    /// Of a root that is remembered nothing more may be known while the far store is out of reach: it
    /// is served without.
    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let inner = &self.0.inner;
        if let Some(info) = inner.near.path_info(name).await? {
            return Ok(Some(info));
        }
        match inner.ask(inner.far.path_info(name)).await {
            Ok(Some(info)) => {
                inner.writer.roots.note_path_info(name, &info);
                Ok(Some(info))
            }
            Ok(None) => Ok(None),
            Err(error) => match inner.writer.roots.path_info(name) {
                Some(info) => Ok(Some(info)),
                None if inner.writer.roots.remembers(name) => Ok(None),
                None => Err(error.again()),
            },
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let inner = &self.0.inner;
        if inner.near.has_blob(digest).await? {
            return Ok(true);
        }
        let asked = inner.ask(inner.far.has_blob(digest)).await;
        asked.map_err(|error| error.again())
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let inner = &self.0.inner;
        if let Some(size) = inner.near.blob_size(digest).await? {
            return Ok(Some(size));
        }
        if let Some((size, _)) = inner.near.parts().about(digest) {
            return Ok(Some(size));
        }
        let asked = inner.ask(inner.far.blob_size(digest)).await;
        asked.map_err(|error| error.again())
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let inner = &self.0.inner;
        if let Ok(Some(table)) = inner.near.group_table(digest, size).await {
            return Ok(Some(table));
        }
        if let Some((known, table)) = inner.near.parts().about(digest)
            && known == size
        {
            return Ok(Some(table));
        }
        let asked = inner.ask(inner.far.group_table(digest, size)).await;
        asked.map_err(|error| error.again())
    }

    /// What the near store holds.
    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.0.inner.near.usage()
    }

    /// The far store speaks for itself; how the cache fares is its [`status`](Cache::status).
    fn health(&self) -> Health {
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        let inner = &self.0.inner;
        // Each only grows: their sum changes when one of them does.
        let own = inner.near.roots_version()?;
        let noticed = inner.writer.roots.version();
        Ok(own.wrapping_add(noticed).wrapping_add(inner.far_version()))
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let inner = &self.0.inner;
        let deadline = Instant::now() + timeout;
        loop {
            let version = self.roots_version()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if version != seen || left.is_zero() {
                return Ok(version);
            }
            let (slice, begun) = (left.min(LATE), Instant::now());
            let far = inner.far_version.load(Ordering::Relaxed);
            if inner.far.wait_for_roots(far, slice).is_err() {
                std::thread::sleep(slice.saturating_sub(begun.elapsed()));
            }
        }
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.0.inner.far.ingest()
    }
}

/// Checks that the empty blob, and it alone, is said to be empty.
fn check_empty(store: &str, digest: &Digest, size: u64) -> Result<(), Error> {
    segments::check_empty(digest, size).map_err(|failure| failure.of(store, "reading"))
}
