//! Page-cache push: the files of a walk are stored in the kernel's page cache before they are read.
//!
//! **Problem.** The first read of a small file costs a READ request: two context switches, several
//! times what the disk's own file system needs. A program that copies, archives or searches a tree
//! reads the files of a directory in the order of their names, one directory after the other.
//!
//! **Mechanism.** A *step* is a read from the start of a small file whose neighbour before it was
//! read last. A step makes a thread push the files after it (FUSE_NOTIFY_STORE), so that their
//! readers send no request, and warms the mount up. While the mount is warm, a directory that has
//! just been listed is pushed at once, before its first file is read. Every such listing cools the
//! mount down: pushed files cause no request that could show that they are read, so now and then a
//! directory is not pushed, to find out.
//!
//! **Invariants.** The same files are not pushed twice: a reader that gets to a file before the
//! push does makes a step too. So a directory that is being pushed, or is queued, is not queued
//! again; the first step after its push counts as a straggler; and a push leaves out what its
//! reader has passed.
//!
//! The same thread serves walks over listings that the kernel has cached without attributes
//! ([`readdirplus`](super::readdirplus)): it makes the kernel drop the listings to come, so that they are
//! requested again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{CastoreFs, NodeId};
use crate::castore::{Directory, NodeRef};
use crate::store::Answer;

/// Files up to this size are pushed, in bytes. The larger ones have the kernel's own readahead.
pub(super) const SMALL: u64 = 128 << 10;
/// Bytes pushed for one reason, at most.
const MOST_BYTES: u64 = 4 << 20;
/// Files pushed for one reason, at most.
const MOST_FILES: u32 = 1024;
/// Places between a file and the one read before it that still make a step: between them may be
/// larger files, symlinks, or files that were in the page cache.
const STRIDE: u32 = 4;
/// What a step adds to the warmth.
const STEP_WARMS: u32 = 4;
/// The most warmth: so many directories are pushed on their listing alone.
const HOTTEST: u32 = 16;
/// Directories whose last read is remembered.
const TRACKS: usize = 64;
/// Listings dropped for one reason, at most.
const MOST_RELISTED: usize = 32;
/// No read yet: far in front of every place, so that none is a step away from it.
const NOWHERE: u64 = u64::MAX / 2;
/// Tasks that wait, at most; beyond that the oldest is dropped, as the reader has passed it.
const MOST_WAITING: usize = 64;

/// Where the contents of files are pushed: the kernel's page cache. Listings are kept there too.
pub trait PageCache {
    /// Stores the whole contents of a file, now or soon. Has no effect if the kernel does not know
    /// the node.
    fn store(&self, node: NodeId, contents: &[u8]);
    /// Drops the listing of a directory, so that it is requested again.
    fn drop_listing(&self, node: NodeId);
    /// Drops `length` bytes of a file at `offset`.
    fn drop_range(&self, node: NodeId, offset: u64, length: u64);
    /// Waits until everything stored is in the page cache.
    fn settle(&self);
}

/// A task ahead of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PushTask {
    /// Push the files of a directory.
    Push(PushRange),
    /// Have directories listed again, from the one in this slot on.
    Relist(u32),
}

/// Files of the directory in `slot`, from the entry at `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PushRange {
    slot: u32,
    from: u32,
}

/// What is known of walks, and the tasks that follow from it.
pub(super) struct PageCachePush {
    /// The last small file read, by directory: slot and index in one word, in the place that the
    /// slot's number gives.
    tracks: [AtomicU64; TRACKS],
    warmth: AtomicU32,
    waiting: Mutex<VecDeque<PushTask>>,
    changed: Condvar,
    /// The slot of the directory that is being pushed, or was last.
    pushed: AtomicU32,
    /// Whether it is being pushed.
    pushing: AtomicBool,
    /// Whether a thread works on the tasks: without one nothing is queued.
    served: AtomicBool,
}

impl Default for PageCachePush {
    fn default() -> Self {
        Self {
            tracks: [const { AtomicU64::new(NOWHERE) }; TRACKS],
            warmth: AtomicU32::new(0),
            waiting: Mutex::default(),
            changed: Condvar::new(),
            pushed: AtomicU32::new(u32::MAX),
            pushing: AtomicBool::new(false),
            served: AtomicBool::new(false),
        }
    }
}

impl PageCachePush {
    /// Notes a read from the start of the small file at `index` in the directory in `slot`.
    pub(super) fn read(&self, slot: u32, index: u32) {
        if !self.is_served() {
            return;
        }
        let track = &self.tracks[slot as usize % TRACKS];
        let now = u64::from(slot) << 32 | u64::from(index);
        let before = track.swap(now, Ordering::Relaxed);
        if (1..=u64::from(STRIDE)).contains(&now.wrapping_sub(before)) {
            let warmer = |warmth: u32| Some((warmth + STEP_WARMS).min(HOTTEST));
            let _ = self
                .warmth
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, warmer);
            if !self.is_cached(slot) {
                self.push(PushRange {
                    slot,
                    from: index + 1,
                });
            }
        }
    }

    /// Whether the directory in `slot` is being pushed, or was just now, as far as is known. The
    /// second call after the end of a push returns false.
    fn is_cached(&self, slot: u32) -> bool {
        if self.pushing.load(Ordering::Relaxed) {
            return self.pushed.load(Ordering::Relaxed) == slot;
        }
        let forgotten =
            self.pushed
                .compare_exchange(slot, u32::MAX, Ordering::Relaxed, Ordering::Relaxed);
        forgotten.is_ok()
    }

    /// Whether the reader of the directory in `slot` has read the file at `index` or one after it.
    fn has_passed(&self, slot: u32, index: u32) -> bool {
        let last = self.tracks[slot as usize % TRACKS].load(Ordering::Relaxed);
        last >> 32 == u64::from(slot) && last as u32 >= index
    }

    /// Notes that the directory in `slot` was listed to its end, its files looked up.
    pub(super) fn listed(&self, slot: u32) {
        let cooler = |warmth: u32| warmth.checked_sub(1);
        if self
            .warmth
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, cooler)
            .is_ok()
        {
            self.push(PushRange { slot, from: 0 });
        }
    }

    fn push(&self, ahead: PushRange) {
        let is_same =
            |other: &PushTask| matches!(other, PushTask::Push(other) if other.slot == ahead.slot);
        self.queue(PushTask::Push(ahead), is_same);
    }

    /// Notes that a walk in the directory in `slot` needs the attributes that its listing omitted.
    pub(super) fn relist(&self, slot: u32) {
        self.queue(PushTask::Relist(slot), |other| {
            *other == PushTask::Relist(slot)
        });
    }

    /// Whether a thread works on the tasks.
    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    fn queue(&self, task: PushTask, is_same: impl Fn(&PushTask) -> bool) {
        let mut waiting = self.waiting.lock();
        if waiting.iter().any(is_same) {
            return;
        }
        if waiting.len() >= MOST_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(task);
        self.changed.notify_one();
    }

    fn next(&self, patience: Duration) -> Option<PushTask> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            self.changed.wait_for(&mut waiting, patience);
        }
        waiting.pop_front()
    }
}

impl CastoreFs {
    /// Works on the tasks, with `cache`, until `ended` returns true. For a thread of its own: the
    /// kernel may hold a page, for which a push waits, while it waits for the answer to a READ.
    pub fn page_cache_push(&self, cache: &dyn PageCache, ended: impl Fn() -> bool) {
        const PATIENCE: Duration = Duration::from_millis(500);
        self.page_cache_push.served.store(true, Ordering::Relaxed);
        let mut contents = Vec::new();
        while !ended() {
            match self.page_cache_push.next(PATIENCE) {
                Some(PushTask::Push(ahead)) => {
                    let walk = &self.page_cache_push;
                    walk.pushed.store(ahead.slot, Ordering::Relaxed);
                    walk.pushing.store(true, Ordering::Relaxed);
                    self.push(ahead, cache, &mut contents);
                    walk.pushing.store(false, Ordering::Relaxed);
                }
                Some(PushTask::Relist(slot)) => {
                    for without_attributes in
                        self.nodes.take_without_attributes(slot, MOST_RELISTED)
                    {
                        cache.drop_listing(self.kernel_id(without_attributes));
                    }
                }
                None => {}
            }
        }
    }

    fn push(&self, ahead: PushRange, cache: &dyn PageCache, contents: &mut Vec<u8>) {
        // Held meanwhile: if the kernel forgot the slot now and another directory got it, the
        // contents of these files would be pushed into that directory's files.
        let Some(held) = self.nodes.hold(ahead.slot) else {
            return;
        };
        let mut pushed = vec![(NodeId::entry(ahead.slot, 0), 1)];
        if let Some(directory) = held.directory {
            self.push_files(ahead, &directory, cache, contents, &mut pushed);
        }
        // Held until then, no id can come to mean another file.
        cache.settle();
        self.nodes.forget_all(pushed);
    }

    fn push_files(
        &self,
        ahead: PushRange,
        directory: &Directory,
        cache: &dyn PageCache,
        contents: &mut Vec<u8>,
        pushed: &mut Vec<(NodeId, u64)>,
    ) {
        let (mut bytes, mut files) = (0, 0);
        for index in ahead.from..directory.len() as u32 {
            let entry = directory.get(index as usize);
            let Some(NodeRef::File { digest, size, .. }) = entry.map(|entry| entry.node) else {
                continue;
            };
            if size == 0 || size > SMALL {
                continue;
            }
            if self.page_cache_push.has_passed(ahead.slot, index) {
                continue;
            }
            bytes += size;
            files += 1;
            if bytes > MOST_BYTES || files > MOST_FILES {
                break;
            }
            contents.resize(size as usize, 0);
            let read = self.store.read_now(&digest, size, 0, contents);
            if !matches!(read, Ok(Answer::Found(length)) if length == contents.len()) {
                // What is not cached is fetched by `walk_prefetch`. The reader of the file gets an error.
                continue;
            }
            let node = self.nodes.leaf(ahead.slot, index);
            cache.store(node, contents);
            // The reader has passed it.
            self.touch(node, &digest, 0, size);
            pushed.push((node, 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> PageCachePush {
        let walk = PageCachePush::default();
        walk.served.store(true, Ordering::Relaxed);
        walk
    }

    fn queued(walk: &PageCachePush) -> Vec<(u32, u32)> {
        let mut waiting = walk.waiting.lock();
        waiting
            .drain(..)
            .map(|task| match task {
                PushTask::Push(ahead) => (ahead.slot, ahead.from),
                PushTask::Relist(slot) => panic!("{slot} is to be listed anew"),
            })
            .collect()
    }

    #[test]
    fn a_step_pushes_the_files_after_it() {
        let walk = served();
        walk.read(7, 3);
        assert_eq!(queued(&walk), []);
        walk.read(7, 4);
        assert_eq!(queued(&walk), [(7, 5)]);
        walk.read(7, 8);
        assert_eq!(queued(&walk), [(7, 9)]);
    }

    /// Otherwise every step would push the rest of the directory again: three times, for a walk
    /// over ten thousand files.
    #[test]
    fn nothing_is_pushed_twice_because_its_reader_was_quicker() {
        let walk = served();
        for index in 0..10 {
            walk.read(7, index);
        }
        assert_eq!(queued(&walk), [(7, 2)]);
        walk.pushed.store(7, Ordering::Relaxed);
        walk.pushing.store(true, Ordering::Relaxed);
        walk.read(7, 10);
        assert!(walk.has_passed(7, 10) && !walk.has_passed(7, 11) && !walk.has_passed(8, 3));
        walk.pushing.store(false, Ordering::Relaxed);
        walk.read(7, 11);
        assert_eq!(queued(&walk), []);
        // Two more: the kernel must have dropped what was pushed.
        walk.read(7, 12);
        assert_eq!(queued(&walk), [(7, 13)]);
    }

    #[test]
    fn reads_here_and_there_push_nothing() {
        let walk = served();
        walk.read(0, 0);
        assert_eq!(queued(&walk), []);
        for (slot, index) in [(7, 3), (7, 30), (7, 29), (8, 30), (7, 30), (7, 30)] {
            walk.read(slot, index);
        }
        walk.listed(9);
        // (7, 29) and then (7, 30) is a step.
        assert_eq!(queued(&walk), [(7, 31), (9, 0)]);
    }

    #[test]
    fn listings_alone_push_nothing_for_long() {
        let walk = served();
        for slot in 0..100 {
            walk.listed(slot);
        }
        assert_eq!(queued(&walk), []);
        for index in 0..10 {
            walk.read(0, index);
        }
        queued(&walk);
        for slot in 0..100 {
            walk.listed(slot);
        }
        assert_eq!(queued(&walk).len(), HOTTEST as usize);
    }

    #[test]
    fn nothing_is_queued_where_no_thread_pushes() {
        let walk = PageCachePush::default();
        walk.read(7, 3);
        walk.read(7, 4);
        walk.listed(7);
        assert_eq!(queued(&walk), []);
    }
}
