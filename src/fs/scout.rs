//! Telling a store far away what a walk will read next.
//!
//! A program that copies, archives or searches a tree reads one file after the other, and with each
//! of them at the end of a round trip that is what it spends its time on. Such a program is seen by
//! its waits: two reads in a row that had to wait for the store, of files of which the second
//! follows the first in a walk over the tree, depth first and by name. From there the scout goes
//! ahead of it, across directories, and tells the store the blobs of the files it meets
//! ([`Store::will_need`]): a window of them, counted in bytes, that
//! doubles while the walk goes on. Where the walk has got to is seen by what is listed and read.
//!
//! The scout never waits: where a Directory is not at hand it stops, and goes on when the walk next
//! gives it occasion to. It needs no thread: what it does it does within a request that was seen,
//! and leaves to the next one what another request is just doing. A store that has everything at
//! hand makes nobody wait, and wakes no scout.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{CastoreFs, NodeId};
use crate::castore::{Digest, Directory, NodeRef};
use crate::store::{Answer, Store};

/// Files that may lie between two reads of a walk: some are in the page cache already.
const STRIDE: u32 = 4;
/// Bytes of files ahead of the walk, at first and at most: 16 MiB are what 1 Gbit/s brings in
/// 130 ms.
const FIRST_WINDOW: u64 = 1 << 20;
const MAX_WINDOW: u64 = 16 << 20;
/// Files ahead of the walk, at most.
const MAX_FILES: usize = 4096;
/// Bytes of a large file that a store fetches when it is told of it.
const HEAD: u64 = 1 << 20;
/// Files among which the place of the walk is looked for.
const SEARCHED: usize = 512;
/// Entries looked at for one file: a tree may have few.
const MAX_STEPS: u32 = 10_000;

/// A place in the tree: the Directories on the way to it, each with the index of the next entry.
type Trail = Vec<(Directory, u32)>;

/// The scout of a mount.
#[derive(Default)]
pub(super) struct Scout {
    /// Whether a walk was seen that has not ended: spares everybody else the lock.
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Behind the last file whose reader had to wait.
    last: Trail,
    /// Where the scout is.
    at: Trail,
    /// Files between the walk and the scout.
    ahead: VecDeque<Told>,
    /// Their bytes.
    bytes: u64,
    window: u64,
}

/// A file that the store was told of.
struct Told {
    directory: Digest,
    index: u32,
    bytes: u64,
}

impl CastoreFs {
    /// Notes that the reader of the file `id` has to wait for its first bytes.
    pub(super) fn walk_waits(&self, id: NodeId) {
        let Some(mut state) = self.scout.state.try_lock() else {
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
            self.scout.active.store(true, Ordering::Relaxed);
        }
        if self.scout.active.load(Ordering::Relaxed) {
            state.go_on(store);
        }
    }

    /// Notes that the file `id` is being read from its start, or the directory `id` was listed.
    pub(super) fn walk_passes(&self, id: NodeId) {
        if !self.scout.active.load(Ordering::Relaxed) {
            return;
        }
        let Some(mut state) = self.scout.state.try_lock() else {
            return;
        };
        let trail = self.nodes.trail(id);
        let passed = match id.place() {
            Some(super::Place::Directory(slot)) => {
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
            state.go_on(self.store.as_ref());
        }
        if state.ahead.is_empty() && state.at.is_empty() {
            self.scout.active.store(false, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Whether the file at `index` of `directory` is among the first behind the one whose reader
    /// waited last.
    fn last_leads_to(&self, directory: &Digest, index: u32, store: &dyn Store) -> bool {
        let mut trail = self.last.clone();
        (0..=STRIDE).any(|_| {
            next_file(&mut trail, store)
                .is_some_and(|(told, _)| told.directory == *directory && told.index == index)
        })
    }

    /// Starts anew at `trail`.
    fn set_out(&mut self, trail: Trail) {
        *self = Self {
            last: trail.clone(),
            at: trail,
            window: FIRST_WINDOW,
            ..Self::default()
        };
    }

    /// Takes note of where the walk is; false if the scout has not been there.
    fn passes(&mut self, directory: &Digest, index: u32) -> bool {
        let place = self
            .ahead
            .iter()
            .take(SEARCHED)
            .position(|told| told.directory == *directory && told.index >= index);
        let Some(place) = place else { return false };
        let passed: u64 = self.ahead.drain(..place).map(|told| told.bytes).sum();
        self.bytes -= passed;
        true
    }

    /// Goes ahead until the window is full.
    fn go_on(&mut self, store: &dyn Store) {
        if self.bytes > self.window / 4 * 3 || self.ahead.len() > MAX_FILES / 4 * 3 {
            return;
        }
        let mut blobs = Vec::new();
        while self.bytes < self.window && self.ahead.len() < MAX_FILES {
            let Some((told, blob)) = next_file(&mut self.at, store) else {
                break;
            };
            self.bytes += told.bytes;
            self.ahead.push_back(told);
            blobs.push(blob);
        }
        if !blobs.is_empty() {
            self.window = (self.window * 2).min(MAX_WINDOW);
            store.will_need(&blobs);
        }
    }
}

/// Goes to behind the next file that has contents, and gives its digest and size; nothing at the end, or where a Directory is not
/// at hand, in front of which `trail` then is.
fn next_file(trail: &mut Trail, store: &dyn Store) -> Option<(Told, (Digest, u64))> {
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
            let told = Told {
                directory: directory.digest(),
                index,
                bytes: size.min(HEAD),
            };
            return Some((told, (digest, size)));
        }
    }
    None
}
