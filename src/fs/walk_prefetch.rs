//! Read-ahead across files, for a walk over a tree in a store that is slow to reach.
//!
//! **Problem.** A program that copies, archives or searches a tree reads one file after the other.
//! With an upstream, each file costs a round trip, and the walk's time is the sum of them.
//!
//! **Mechanism.** A walk is recognized by its waits: two reads in a row had to wait for the store,
//! and the second file follows the first in a walk over the tree, depth first and by name. From
//! there a cursor moves ahead of the walk, across directories, and announces the blobs
//! of the files that it passes to the store ([`Store::will_need`]). The window of announced files
//! is counted in bytes, and is twice what the walk has read of them. Listings and reads show where the walk
//! is.
//!
//! **A program that starts is no walk.** It reads a few files of a directory, in the order of their names by
//! chance. Once more was passed over than read, by [`FIRST_WINDOW`], the prefetch ends, and the next one takes more
//! waits in a row to begin. So at most three times what was read is fetched in vain, and two first windows.
//!
//! **Invariants.** The cursor never waits: at a Directory that is not cached it stops, and continues
//! with the next request of the walk. It has no thread: it works within a request that was
//! recognized, and does nothing while another request is doing it. A store that has everything
//! locally makes no reader wait, so it needs no cursor.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::page_cache_push::SMALL;
use super::{CastoreFs, NodeId};
use crate::castore::{Digest, Directory, NodeRef};
use crate::store::{ANNOUNCED_HEAD, Answer, Store};

/// Files that may lie between two reads of a walk: some are in the page cache already.
const STRIDE: u32 = 4;
/// Bytes of files ahead of the walk, at first and at most: 16 MiB are what 1 Gbit/s brings in
/// 130 ms.
const FIRST_WINDOW: u64 = 256 << 10;
const MAX_WINDOW: u64 = 16 << 20;
/// Bytes that a walk has read when there is no doubt any more that it is one.
const CERTAIN: u64 = 1 << 20;
/// Waits in a row after which a walk begins in any case.
const MOST_WAITS: u32 = 8;
/// Files ahead of the walk, at most.
const MAX_FILES: usize = 4096;
/// Files within which the walk's position is searched.
const SEARCHED: usize = 512;
/// Entries looked at for one file: a tree may have few files.
const MAX_STEPS: u32 = 10_000;

/// A place in the tree: the Directories on the way to it, each with the index of the next entry.
type Trail = Vec<(Directory, u32)>;

/// The prefetch of a mount.
#[derive(Default)]
pub(super) struct WalkPrefetch {
    /// Whether a walk was recognized that has not ended: spares all other requests the lock.
    active: AtomicBool,
    state: Mutex<PrefetchCursor>,
}

#[derive(Default)]
struct PrefetchCursor {
    /// After the last file whose reader had to wait.
    last: Trail,
    /// Where the cursor is.
    at: Trail,
    /// Files between the walk and the cursor.
    ahead: VecDeque<AnnouncedFile>,
    /// Their bytes.
    bytes: u64,
    /// Bytes that were announced and that the walk has read.
    read: u64,
    /// Bytes that were announced and that it has passed over.
    passed_over: u64,
    /// Waits so far, each for a file that follows the one before.
    waits_in_a_row: u32,
    /// How many more than one of them begin a walk.
    doubt: u32,
}

/// A file that was announced to the store.
struct AnnouncedFile {
    directory: Digest,
    index: u32,
    bytes: u64,
    /// Whether it was read, or may have been without a request, out of what the page-cache push has stored.
    is_read: bool,
}

impl CastoreFs {
    /// Notes that the reader of the file `id` has to wait for its first bytes.
    pub(super) fn walk_waits(&self, id: NodeId) {
        let Some(mut state) = self.walk_prefetch.state.try_lock() else {
            return;
        };
        let mut trail: Trail = self
            .nodes
            .trail(id)
            .into_iter()
            .filter_map(|(directory, index)| Some((directory?, index)))
            .collect();
        let Some((directory, index)) = trail.last().map(|(at, index)| (at.digest(), *index)) else {
            return;
        };
        for (_, index) in &mut trail {
            *index += 1;
        }
        let store = self.store.as_ref();
        let is_walk = state.waits(&directory, index, &trail, store);
        if is_walk || self.walk_prefetch.active.load(Ordering::Relaxed) {
            let is_active = state.advance(store, self.page_cache_push.is_served());
            self.walk_prefetch
                .active
                .store(is_active, Ordering::Relaxed);
        }
    }

    /// Notes that the file `id` is being read from its start, or that the directory `id` was
    /// listed.
    pub(super) fn walk_passes(&self, id: NodeId) {
        if !self.walk_prefetch.active.load(Ordering::Relaxed) {
            return;
        }
        let Some(mut state) = self.walk_prefetch.state.try_lock() else {
            return;
        };
        let trail = self.nodes.trail(id);
        let passed = match id.place() {
            Some(super::NodePlace::Directory(slot)) => {
                let node = self.nodes.directory(slot);
                node.map(|node| (node.digest, 0))
            }
            _ => match trail.last() {
                Some((Some(directory), index)) => Some((directory.digest(), *index)),
                _ => None,
            },
        };
        if let Some((directory, index)) = passed
            && state.passes(&directory, index)
        {
            let is_active = state.advance(self.store.as_ref(), self.page_cache_push.is_served());
            self.walk_prefetch
                .active
                .store(is_active, Ordering::Relaxed);
        }
    }
}

impl PrefetchCursor {
    /// Whether the file at `index` of `directory` is among the first after the last file whose
    /// reader had to wait.
    fn last_leads_to(&self, directory: &Digest, index: u32, store: &dyn Store) -> bool {
        let mut trail = self.last.clone();
        (0..=STRIDE).any(|_| {
            next_file(&mut trail, store).is_some_and(|(announced, _)| {
                announced.directory == *directory && announced.index == index
            })
        })
    }

    /// Notes that the reader of the file at `index` of `directory` has to wait, to which `trail` leads; returns
    /// whether a walk begins there.
    fn waits(&mut self, directory: &Digest, index: u32, trail: &Trail, store: &dyn Store) -> bool {
        let follows = self.last_leads_to(directory, index, store);
        self.last.clone_from(trail);
        self.waits_in_a_row = if follows { self.waits_in_a_row + 1 } else { 0 };
        if self.passes(directory, index) || self.waits_in_a_row <= self.doubt {
            return false;
        }
        self.end();
        self.at.clone_from(trail);
        true
    }

    /// Forgets the walk, if there is one. If little of it was read, the next one is doubted more.
    fn end(&mut self) {
        if self.read >= CERTAIN {
            self.doubt = 0;
        } else if self.passed_over + self.bytes > self.read {
            self.doubt = (2 * self.doubt + 1).min(MOST_WAITS - 1);
        }
        *self = Self {
            last: std::mem::take(&mut self.last),
            doubt: self.doubt,
            ..Self::default()
        };
    }

    /// Notes where the walk is; returns false if the cursor has not passed there.
    fn passes(&mut self, directory: &Digest, index: u32) -> bool {
        let place =
            self.ahead.iter().take(SEARCHED).position(|announced| {
                announced.directory == *directory && announced.index >= index
            });
        let Some(place) = place else { return false };
        for passed in self.ahead.drain(..place) {
            self.bytes -= passed.bytes;
            match passed.is_read {
                true => self.read += passed.bytes,
                false => self.passed_over += passed.bytes,
            }
        }
        if let Some(next) = self.ahead.front_mut().filter(|next| next.index == index) {
            next.is_read = true;
        }
        true
    }

    /// Moves ahead until the window is full; returns whether the walk goes on. If `pushes`, small files may be
    /// read without a request.
    fn advance(&mut self, store: &dyn Store, pushes: bool) -> bool {
        if self.passed_over > self.read + FIRST_WINDOW {
            self.end();
            return false;
        }
        let window = (2 * self.read).clamp(FIRST_WINDOW, MAX_WINDOW);
        if self.bytes <= window / 4 * 3 && self.ahead.len() <= MAX_FILES / 4 * 3 {
            let mut blobs = Vec::new();
            while self.bytes < window && self.ahead.len() < MAX_FILES {
                let Some((mut announced, blob)) = next_file(&mut self.at, store) else {
                    break;
                };
                announced.is_read = pushes && blob.1 <= SMALL;
                self.bytes += announced.bytes;
                self.ahead.push_back(announced);
                blobs.push(blob);
            }
            if !blobs.is_empty() {
                store.will_need(&blobs);
            }
        }
        !self.ahead.is_empty() || !self.at.is_empty()
    }
}

/// Moves past the next file that has contents, and returns its digest and size. Returns nothing
/// at the end, or at a Directory that is not cached; `trail` is then in front of it.
fn next_file(trail: &mut Trail, store: &dyn Store) -> Option<(AnnouncedFile, (Digest, u64))> {
    for _ in 0..MAX_STEPS {
        let (directory, next) = trail.last_mut()?;
        let index = *next;
        let Some(entry) = directory.get(index as usize) else {
            trail.pop();
            continue;
        };
        if let NodeRef::Directory { digest, .. } = entry.node {
            let Ok(Answer::Found(child)) = store.directory_now(&digest) else {
                return None;
            };
            *next += 1;
            trail.push((child, 0));
            continue;
        }
        *next += 1;
        if let NodeRef::File { digest, size, .. } = entry.node
            && size > 0
        {
            let announced = AnnouncedFile {
                directory: directory.digest(),
                index,
                bytes: size.min(ANNOUNCED_HEAD),
                is_read: false,
            };
            return Some((announced, (digest, size)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, Node};
    use crate::store::MemoryStore;

    const SIZE: u64 = 10_000;

    /// A directory of 4,000 files, which are not read.
    fn tree() -> Directory {
        let file = |index: u32| {
            let node = Node::File {
                digest: Digest::of(&index.to_le_bytes()),
                size: SIZE,
                executable: false,
            };
            (Name::new(format!("{index:04}").as_bytes()).unwrap(), node)
        };
        Directory::from_entries((0..4000).map(file).collect()).unwrap()
    }

    struct Walk {
        store: MemoryStore,
        directory: Directory,
        cursor: PrefetchCursor,
        announced: u64,
    }

    impl Walk {
        fn new() -> Self {
            Self {
                directory: tree(),
                store: MemoryStore::new(),
                cursor: PrefetchCursor::default(),
                announced: 0,
            }
        }

        /// Reads the file at `index`, which makes its reader wait unless it was announced.
        fn read(&mut self, index: u32) {
            let digest = self.directory.digest();
            let before = self.cursor.bytes;
            let cursor = &mut self.cursor;
            let is_ahead = cursor.ahead.iter().any(|file| file.index == index);
            let passed = match is_ahead {
                true => cursor.passes(&digest, index),
                false => {
                    let trail = vec![(self.directory.clone(), index + 1)];
                    cursor.waits(&digest, index, &trail, &self.store)
                }
            };
            let left = cursor.bytes;
            if passed {
                cursor.advance(&self.store, false);
            }
            self.announced += cursor.bytes.saturating_sub(left.min(before));
        }
    }

    #[test]
    fn the_window_of_a_walk_grows_to_its_limit() {
        let mut walk = Walk::new();
        walk.read(0);
        walk.read(1);
        assert!(walk.cursor.bytes <= FIRST_WINDOW + SIZE);
        (2..3000).for_each(|index| walk.read(index));
        // To the end of the directory.
        assert_eq!(walk.cursor.bytes, 1000 * SIZE + SIZE);
        assert_eq!(walk.cursor.passed_over, 0);
        assert!(2 * walk.cursor.read > MAX_WINDOW);
    }

    #[test]
    fn files_read_here_and_there_are_no_walk() {
        let mut walk = Walk::new();
        // Two neighbours in each 20 files, as a program may read that starts.
        for index in (0..4000).step_by(20) {
            walk.read(index);
            walk.read(index + 1);
        }
        let read = 400 * SIZE;
        assert!(walk.announced < read, "{} of {read}", walk.announced);
        assert_eq!(walk.cursor.doubt, 1);
        // A walk is recognized still, and trusted again.
        (0..400).for_each(|index| walk.read(index));
        assert!(walk.cursor.read > CERTAIN);
        walk.cursor.end();
        assert_eq!(walk.cursor.doubt, 0);
    }
}
