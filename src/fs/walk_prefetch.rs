//! Read-ahead across files, for a walk over a tree in a store that is slow to reach.
//!
//! **Problem.** A program that copies, archives or searches a tree reads one file after the other.
//! With an upstream, each file costs a round trip, and the walk's time is the sum of them.
//!
//! **Mechanism.** A walk is recognized by its waits: two reads in a row had to wait for the store,
//! and the second file follows the first in a walk over the tree, depth first and by name. From
//! there a cursor moves ahead of the walk, across directories, and announces the blobs
//! of the files that it passes to the store ([`Store::will_need`]). The window of announced files
//! is counted in bytes and doubles while the walk continues. Listings and reads show where the walk
//! is.
//!
//! **Invariants.** The cursor never waits: at a Directory that is not cached it stops, and continues
//! with the next request of the walk. It has no thread: it works within a request that was
//! recognized, and does nothing while another request is doing it. A store that has everything
//! locally makes no reader wait, so it needs no cursor.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{CastoreFs, NodeId};
use crate::castore::{Digest, Directory, NodeRef};
use crate::store::{ANNOUNCED_HEAD, Answer, Store};

/// Files that may lie between two reads of a walk: some are in the page cache already.
const STRIDE: u32 = 4;
/// Bytes of files ahead of the walk, at first and at most: 16 MiB are what 1 Gbit/s brings in
/// 130 ms.
const FIRST_WINDOW: u64 = 1 << 20;
const MAX_WINDOW: u64 = 16 << 20;
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
    window: u64,
}

/// A file that was announced to the store.
struct AnnouncedFile {
    directory: Digest,
    index: u32,
    bytes: u64,
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
        let follows = state.last_leads_to(&directory, index, store);
        state.last.clone_from(&trail);
        if !state.passes(&directory, index) && follows {
            state.set_out(trail);
            self.walk_prefetch.active.store(true, Ordering::Relaxed);
        }
        if self.walk_prefetch.active.load(Ordering::Relaxed) {
            state.advance(store);
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
            state.advance(self.store.as_ref());
        }
        if state.ahead.is_empty() && state.at.is_empty() {
            self.walk_prefetch.active.store(false, Ordering::Relaxed);
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

    /// Starts again at `trail`.
    fn set_out(&mut self, trail: Trail) {
        *self = Self {
            last: trail.clone(),
            at: trail,
            window: FIRST_WINDOW,
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
        let passed: u64 = self
            .ahead
            .drain(..place)
            .map(|announced| announced.bytes)
            .sum();
        self.bytes -= passed;
        true
    }

    /// Moves ahead until the window is full.
    fn advance(&mut self, store: &dyn Store) {
        if self.bytes > self.window / 4 * 3 || self.ahead.len() > MAX_FILES / 4 * 3 {
            return;
        }
        let mut blobs = Vec::new();
        while self.bytes < self.window && self.ahead.len() < MAX_FILES {
            let Some((announced, blob)) = next_file(&mut self.at, store) else {
                break;
            };
            self.bytes += announced.bytes;
            self.ahead.push_back(announced);
            blobs.push(blob);
        }
        if !blobs.is_empty() {
            self.window = (self.window * 2).min(MAX_WINDOW);
            store.will_need(&blobs);
        }
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
            };
            return Some((announced, (digest, size)));
        }
    }
    None
}
