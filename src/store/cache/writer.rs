//! The thread that writes to the local store.
//!
//! Fetched objects are put into a queue of bounded size. When that is full, or the disk is full or
//! failing, objects are not kept, and readers do not notice: their bytes came from the upstream.
//! After a failure nothing is accepted for a while, then a little is tried.
//!
//! The same thread limits the size: when the cache is over its limit, or the disk has less free
//! space than required, it evicts the least recently used.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::CacheOptions;
use super::access_times::AccessTimes;
use super::roots::CachedUpstreamRoots;
use crate::castore::{Digest, Directory, GroupTable, Node};
use crate::clock::unix_seconds;
use crate::heap;
use crate::store::local::CacheRetention;
use crate::store::{Error, GcResult, Ingest, LocalStore, Store};

/// Bytes in the queue, at most. One more object may exceed it.
const QUEUE: usize = 64 << 20;
/// Bytes written in one commit, about.
const BATCH: usize = 16 << 20;
/// How long the first object waits for others to be committed with it.
const LINGER: Duration = Duration::from_millis(100);
/// Bytes that have been written, and so freed, before an idle thread gives free memory back.
const WORTH_GIVING_BACK: usize = 4 << 20;
/// How often the idle thread wakes up.
const TICK: Duration = Duration::from_secs(1);
/// How often the uses of roots are written.
const REMEMBER: Duration = Duration::from_secs(10);
/// The cost of an object in the queue besides its bytes.
const OVERHEAD: usize = 256;
/// How long nothing is kept after a failure, at first and at most; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Space that the disk must have before objects are kept again after a failure, in bytes.
const TRIED: u64 = 8 << 20;
/// How long the end of a cache waits for announced objects.
const LAST_CALL: Duration = Duration::from_secs(2);
/// Eviction continues until so many hundredths of the size are left.
const AFTER_EVICTION: u64 = 90;
/// Passes over the roots to reach a size: the space of a small object is not known exactly.
const PASSES: u64 = 4;

/// An object that is queued for the local store.
#[derive(Debug)]
pub(super) enum Write {
    Blob(Digest, Bytes),
    Directory(Directory),
    Part {
        digest: Digest,
        size: u64,
        extent: u64,
        index: u64,
        bytes: Bytes,
        table: Arc<GroupTable>,
    },
}

impl Write {
    fn weight(&self) -> usize {
        OVERHEAD
            + match self {
                Write::Blob(_, bytes) | Write::Part { bytes, .. } => bytes.len(),
                Write::Directory(directory) => directory.as_bytes().len(),
            }
    }
}

/// The state that the writer shares with readers.
pub(super) struct CacheWriter {
    local_store: LocalStore,
    options: CacheOptions,
    pub(super) roots: CachedUpstreamRoots,
    pub(super) access_times: AccessTimes,
    queue: Mutex<WriteQueue>,
    filled: Condvar,
    drained: Condvar,
    /// Damaged objects of the local store.
    spoiled: Mutex<HashSet<Digest>>,
    /// Bytes that the local store takes on its disk, approximately.
    size: AtomicU64,
    evictions: AtomicU64,
    not_stored: AtomicU64,
    repairs: AtomicU64,
    backoff: Mutex<Option<WriteBackoff>>,
    remembering: Mutex<()>,
}

#[derive(Debug, Default)]
struct WriteQueue {
    writes: Vec<Write>,
    bytes: usize,
    /// Some objects are being written.
    writing: bool,
    /// Objects that have arrived, and need something else before they can be queued.
    expected: usize,
    expected_bytes: usize,
    /// A flush is waiting, so the writer must not linger.
    hurry: bool,
    closed: bool,
}

#[derive(Debug)]
struct WriteBackoff {
    why: String,
    until: Instant,
    pause: Duration,
}

impl CacheWriter {
    pub(super) fn new(local_store: LocalStore, options: CacheOptions) -> Result<Self, Error> {
        let kept = local_store.cached_roots()?;
        Ok(Self {
            roots: CachedUpstreamRoots::new(options.roots_max_age, kept),
            access_times: AccessTimes::new(unix_seconds()),
            local_store,
            options,
            queue: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            spoiled: Mutex::default(),
            size: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            not_stored: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            backoff: Mutex::default(),
            remembering: Mutex::default(),
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (
            get(&self.evictions),
            get(&self.not_stored),
            get(&self.repairs),
        )
    }

    /// Why nothing is kept at present.
    pub(super) fn why_backing_off(&self) -> Option<String> {
        let backoff = self.backoff.lock();
        backoff.as_ref().map(|backoff| backoff.why.clone())
    }

    /// Records that the local store failed to return this object. A damaged object is replaced by
    /// the next fetched one; after a failure of the disk nothing is kept for a while.
    pub(super) fn note_spoiled(&self, digest: &Digest, error: &Error) {
        if !matches!(error, Error::Damaged { .. }) {
            return self.degrade(error.to_string());
        }
        if self.spoiled.lock().insert(*digest) {
            tracing::warn!("refetching a damaged cached object: {error}");
        }
    }

    pub(super) fn is_spoiled(&self, digest: &Digest) -> bool {
        self.spoiled.lock().contains(digest)
    }

    /// Queues an object, if there is room; never waits.
    pub(super) fn push(&self, write: Write) {
        let Some(mut queue) = self.queue_with_room() else {
            return;
        };
        queue.bytes += write.weight();
        queue.writes.push(write);
        drop(queue);
        self.filled.notify_one();
    }

    /// Announces an object of `bytes` that will be put into the queue while the result lives; nothing
    /// if there is no room for it.
    pub(super) fn expect(self: &Arc<Self>, bytes: usize) -> Option<ExpectedWrite> {
        let mut queue = self.queue_with_room()?;
        queue.expected += 1;
        queue.expected_bytes += bytes;
        Some(ExpectedWrite {
            writer: self.clone(),
            bytes,
        })
    }

    /// The queue, if it takes another object now.
    fn queue_with_room(&self) -> Option<MutexGuard<'_, WriteQueue>> {
        let paused = {
            let backoff = self.backoff.lock();
            backoff
                .as_ref()
                .is_some_and(|backoff| backoff.until > Instant::now())
        };
        let queue = self.queue.lock();
        if paused || queue.closed || queue.bytes + queue.expected_bytes >= QUEUE {
            drop(queue);
            self.not_stored.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(queue)
    }

    /// Whether there is plenty of room in the queue.
    pub(super) fn has_room(&self) -> bool {
        self.queue.lock().bytes < QUEUE / 2
    }

    /// Waits until everything in the queue is written, or dropped.
    pub(super) fn flush(&self) {
        let mut queue = self.queue.lock();
        self.await_expected(&mut queue);
        while !queue.writes.is_empty() || queue.writing {
            queue.hurry = true;
            self.filled.notify_one();
            self.drained.wait(&mut queue);
        }
        drop(queue);
        if let Err(error) = self.remember() {
            self.degrade(error.to_string());
        }
    }

    /// Ends the thread when it has written what is in the queue.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        self.await_expected(&mut queue);
        queue.closed = true;
        drop(queue);
        self.filled.notify_one();
    }

    fn await_expected(&self, queue: &mut MutexGuard<'_, WriteQueue>) {
        let deadline = Instant::now() + LAST_CALL;
        while queue.expected > 0 && !self.drained.wait_until(queue, deadline).timed_out() {}
    }

    /// The thread's loop. `written` is called with what the local store has now, `tick` now and then.
    pub(super) fn run(&self, written: impl Fn(&[Write]), tick: impl Fn()) {
        let _ended = WriterEnd(self);
        self.size
            .store(self.local_store.disk_usage(), Ordering::Relaxed);
        let mut remembered = Instant::now();
        let mut freed = 0;
        loop {
            let (writes, closed) = self.next();
            self.access_times.tick(unix_seconds());
            self.look_after_room();
            match writes.is_empty() {
                true => {
                    self.try_again();
                    if freed >= WORTH_GIVING_BACK {
                        heap::give_back();
                        freed = 0;
                    }
                }
                false => {
                    freed += writes.iter().map(Write::weight).sum::<usize>();
                    if self.write(&writes) {
                        written(&writes);
                    }
                }
            }
            let mut queue = self.queue.lock();
            queue.writing = false;
            queue.hurry &= !queue.writes.is_empty();
            drop(queue);
            self.drained.notify_all();
            // Changes at once, so that a crash loses no root; mere uses now and then.
            if remembered.elapsed() >= REMEMBER || closed || self.roots.has_news() {
                if let Err(error) = self.remember() {
                    self.degrade(error.to_string());
                }
                remembered = Instant::now();
            }
            if closed && self.queue.lock().writes.is_empty() {
                return;
            }
            tick();
        }
    }

    /// The next objects, if there are any soon; and whether there will be no more.
    fn next(&self) -> (Vec<Write>, bool) {
        let mut queue = self.queue.lock();
        if queue.writes.is_empty() && !queue.closed {
            self.filled.wait_for(&mut queue, TICK);
        }
        let deadline = Instant::now() + LINGER;
        while !queue.writes.is_empty() && queue.bytes < BATCH && !queue.closed && !queue.hurry {
            if self.filled.wait_until(&mut queue, deadline).timed_out() {
                break;
            }
        }
        let writes = std::mem::take(&mut queue.writes);
        queue.bytes = 0;
        queue.writing = !writes.is_empty();
        (writes, queue.closed)
    }

    /// Whether the local store has them now.
    fn write(&self, writes: &[Write]) -> bool {
        match self.try_write(writes) {
            Ok(added) => {
                self.size.fetch_add(added, Ordering::Relaxed);
                self.recovered();
                true
            }
            Err(error) => {
                self.not_stored
                    .fetch_add(writes.len() as u64, Ordering::Relaxed);
                self.degrade(error.to_string());
                false
            }
        }
    }

    fn recovered(&self) {
        if let Some(backoff) = self.backoff.lock().take() {
            let store = self.local_store.url();
            tracing::info!(
                "{store} keeps fetched objects again, after: {}",
                backoff.why
            );
        }
    }

    /// After a failure: checks whether keeping is worth another attempt.
    fn try_again(&self) {
        let over = {
            let backoff = self.backoff.lock();
            backoff
                .as_ref()
                .is_some_and(|backoff| backoff.until <= Instant::now())
        };
        if over {
            let tried = self
                .check_room()
                .and_then(|()| self.local_store.check_room(TRIED));
            match tried {
                Ok(()) => self.recovered(),
                Err(error) => self.degrade(error.to_string()),
            }
        }
    }

    /// Fails if the cache cannot take more.
    fn check_room(&self) -> Result<(), Error> {
        if let Some(keep_free) = self.options.keep_free
            && self.local_store.disk_free()? < keep_free
        {
            return Err(self.short_of_room(format!("{keep_free} bytes must stay free")));
        }
        if self.options.size.is_some_and(|size| self.size() > size) {
            return Err(self.short_of_room("pinned objects take all of its size".to_owned()));
        }
        Ok(())
    }

    fn degrade(&self, why: String) {
        let mut backoff = self.backoff.lock();
        let pause = match &*backoff {
            Some(before) => (before.pause * 2).min(LONGEST_PAUSE),
            None => {
                tracing::warn!("fetched objects are not kept for the moment: {why}");
                FIRST_PAUSE
            }
        };
        *backoff = Some(WriteBackoff {
            why,
            until: Instant::now() + pause,
            pause,
        });
    }

    /// Returns the bytes that were added.
    fn try_write(&self, writes: &[Write]) -> Result<u64, Error> {
        self.check_room()?;
        let spoiled = self.spoiled.lock().clone();
        let ingest = self.local_store.addition()?;
        spoiled.iter().for_each(|digest| ingest.replace(digest));
        let mut blobs = Vec::new();
        for write in writes {
            match write {
                Write::Blob(digest, bytes) => blobs.push((*digest, &bytes[..])),
                Write::Directory(directory) => ingest.put_directory(directory)?,
                Write::Part { .. } => {}
            }
        }
        ingest.put_blobs(&blobs)?;
        let mut bytes = Box::new(ingest).commit()?.blob_bytes;
        let came = writes.iter().filter_map(|write| match write {
            Write::Blob(digest, _) => Some(*digest),
            Write::Directory(directory) => Some(directory.digest()),
            Write::Part { .. } => None,
        });
        if !spoiled.is_empty() {
            let mut spoiled = self.spoiled.lock();
            let repaired = came.filter(|digest| spoiled.remove(digest)).count();
            self.repairs.fetch_add(repaired as u64, Ordering::Relaxed);
        }
        let mut whole = HashSet::new();
        for write in writes {
            if let Write::Part {
                digest,
                size,
                extent,
                index,
                bytes: part,
                table,
            } = write
            {
                let start = index * extent;
                let group = crate::castore::group_size(*size);
                let groups = part.chunks(group as usize).enumerate();
                let mut groups = groups.map(|(at, bytes)| (start + at as u64 * group, bytes));
                if !groups.all(|(offset, bytes)| table.verify(digest, offset, bytes)) {
                    // The upstream returned it unverified, or its table is of another blob.
                    tracing::warn!(%digest, "a part that does not match its blob is not kept");
                    continue;
                }
                let shape = (*size, *extent);
                let (new, done) = self
                    .local_store
                    .parts()
                    .put(digest, shape, table, *index, part)?;
                bytes += new;
                if done {
                    whole.insert(*digest);
                }
            }
        }
        for digest in whole {
            let replaces = spoiled.contains(&digest);
            if self.local_store.promote_partial(&digest, replaces)? && replaces {
                self.spoiled.lock().remove(&digest);
                self.repairs.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes)
    }

    fn short_of_room(&self, why: String) -> Error {
        Error::Refused {
            store: self.local_store.url().to_owned(),
            what: "to keep more".to_owned(),
            why,
        }
    }

    /// Writes the cached data of roots.
    pub(super) fn remember(&self) -> Result<(), Error> {
        // A write that another thread has begun is complete when this returns.
        let _one_at_a_time = self.remembering.lock();
        let changes = self.roots.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let written = self.local_store.set_cached_roots(&changes);
        if written.is_err() {
            self.roots.not_written(changes);
        }
        written
    }

    /// The size in bytes that the cache has to be reduced to, if it has to.
    fn target(&self) -> Result<Option<u64>, Error> {
        let size = self.size();
        let over = self.options.size.filter(|limit| size > *limit);
        let mut target = over.map(|limit| limit / 100 * AFTER_EVICTION);
        if let Some(keep_free) = self.options.keep_free {
            let free = self.local_store.disk_free()?;
            if free < keep_free {
                // A little more than is missing, so that the next object has room.
                let lacking = (keep_free - free).saturating_add(keep_free / 20);
                let remaining = size.saturating_sub(lacking);
                target = Some(target.map_or(remaining, |target| target.min(remaining)));
            }
        }
        Ok(target)
    }

    fn look_after_room(&self) {
        let made = self.target().and_then(|target| match target {
            // There may be nothing left to evict.
            Some(target) if self.size() > 0 => self.come_down_to(target).map(drop),
            _ => Ok(()),
        });
        if let Err(error) = made {
            self.degrade(error.to_string());
        }
    }

    /// Evicts the least recently used until the cache takes no more than `target` bytes.
    pub(super) fn come_down_to(&self, target: u64) -> Result<GcResult, Error> {
        let mut all = GcResult::default();
        let mut keep = self.keep(target)?;
        for _ in 0..PASSES {
            let collected = self.local_store.evict(&keep)?;
            all.blobs += collected.blobs;
            all.blob_bytes += collected.blob_bytes;
            all.directories += collected.directories;
            all.parts += collected.parts;
            all.freed += collected.freed;
            let size = self.local_store.disk_usage();
            self.size.store(size, Ordering::Relaxed);
            if size <= target || keep.budget == 0 {
                break;
            }
            // Dead space between live objects is not freed.
            keep.budget = keep.budget.saturating_sub(2 * (size - target));
        }
        let evicted = all.blobs + all.directories + all.parts;
        self.evictions.fetch_add(evicted, Ordering::Relaxed);
        if evicted > 0 {
            tracing::debug!(evicted, freed = all.freed, "made room in the cache");
        }
        Ok(all)
    }

    fn keep(&self, budget: u64) -> Result<CacheRetention, Error> {
        let kept = self.roots.kept().into_iter();
        let kept = kept.filter_map(|kept| Some((kept.pinned, kept.used, kept.root?.node)));
        let (pinned, others): (Vec<_>, Vec<_>) = kept.partition(|(pinned, ..)| *pinned);
        let nodes: Vec<Node> = others.iter().map(|(.., node)| node.clone()).collect();
        let last = self
            .local_store
            .last_use(&nodes, |digest| self.access_times.when(digest))?;
        let used = others.iter().map(|(_, used, _)| *used);
        let used = used.zip(last).map(|(used, last)| used.max(last * 1000));
        let mut in_order: Vec<_> = used.zip(nodes).collect();
        in_order.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        Ok(CacheRetention {
            always: pinned.into_iter().map(|(.., node)| node).collect(),
            in_order: in_order.into_iter().map(|(_, node)| node).collect(),
            budget,
        })
    }
}

/// The announcement of an object that may be queued before this is dropped.
pub(super) struct ExpectedWrite {
    writer: Arc<CacheWriter>,
    bytes: usize,
}

impl ExpectedWrite {
    /// Puts the object into the queue.
    pub(super) fn arrived(mut self, write: Write) {
        let mut queue = self.writer.queue.lock();
        queue.expected_bytes = queue.expected_bytes.saturating_sub(self.bytes);
        self.bytes = 0;
        if queue.closed {
            self.writer.not_stored.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes += write.weight();
        queue.writes.push(write);
        drop(queue);
        self.writer.filled.notify_one();
    }
}

impl Drop for ExpectedWrite {
    fn drop(&mut self) {
        let mut queue = self.writer.queue.lock();
        queue.expected = queue.expected.saturating_sub(1);
        queue.expected_bytes = queue.expected_bytes.saturating_sub(self.bytes);
        drop(queue);
        self.writer.drained.notify_all();
    }
}

/// Releases the waiting threads if the writer crashes.
struct WriterEnd<'a>(&'a CacheWriter);

impl Drop for WriterEnd<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        *queue = WriteQueue {
            closed: true,
            ..WriteQueue::default()
        };
        drop(queue);
        self.0.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_takes_room_in_the_queue_until_it_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let local_store = LocalStore::open(&dir.path().join("near")).unwrap();
        let writer = Arc::new(CacheWriter::new(local_store, CacheOptions::default()).unwrap());
        let blob = || Write::Blob(Digest::of(b"x"), Bytes::from_static(b"x"));
        let first = writer.expect(QUEUE / 2).unwrap();
        let second = writer.expect(QUEUE / 2).unwrap();
        assert!(writer.expect(1).is_none());
        writer.push(blob());
        assert_eq!(writer.counts().1, 2);
        drop(first);
        second.arrived(blob());
        let queue = writer.queue.lock();
        assert_eq!((queue.expected, queue.expected_bytes), (0, 0));
        assert_eq!((queue.writes.len(), queue.bytes), (1, blob().weight()));
    }
}
