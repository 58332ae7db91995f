//! Eviction from a store that is a cache: what stays is chosen by the order of use.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::super::index::Snapshot;
use super::super::large::ST_BLOCK;
use super::super::location::StorageKind;
use super::super::{LocalInner, LocalStore, leases};
use super::mark::MarkReason;
use super::{GcResult, MarkedObjects, space};
use crate::castore::{Digest, Node, NodeRef};
use crate::store::Error;

/// How long eviction waits for running additions of other processes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What stays in a cache.
#[derive(Debug, Default)]
pub(in crate::store) struct CacheRetention {
    /// Nodes that stay with everything below, whatever their size; the store's own roots do anyway.
    pub(in crate::store) always: Vec<Node>,
    /// Nodes that stay as far as there is room, the first of them first.
    pub(in crate::store) in_order: Vec<Node>,
    /// The limit in bytes for all of it.
    pub(in crate::store) budget: u64,
}

/// The remaining budget, as the objects that stay are counted.
struct RemainingBudget<'a> {
    remaining: u64,
    /// Something did not fit.
    full: bool,
    parts: &'a HashMap<Digest, u64>,
}

impl LocalStore {
    /// Bytes that packs, large blobs and parts of them take on the disk.
    pub(in crate::store) fn disk_usage(&self) -> u64 {
        let dir = &self.0.dir;
        let dirs = [dir.packs(), dir.blobs(), dir.parts()];
        dirs.iter().map(|path| taken(path)).sum()
    }

    /// Bytes that are free on the store's disk, for ordinary users.
    pub(in crate::store) fn disk_free(&self) -> Result<u64, Error> {
        let path = self.0.dir.path();
        let found = rustix::fs::statvfs(path).map_err(std::io::Error::from);
        let found = found.map_err(self.0.dir.io("inspect", path))?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// Fails if the disk has no room for `bytes`, or cannot be written to.
    pub(in crate::store) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        self.0.dir.check_writable()?;
        self.0.dir.check_room(bytes)
    }

    /// Removes what is not to be kept. Of the first node that does not fit, as much stays as fits,
    /// in the order of a walk; nothing stays of those after it.
    pub(in crate::store) fn evict(&self, keep: &CacheRetention) -> Result<GcResult, Error> {
        let store = &*self.0;
        let mut marks = MarkedObjects::default();
        let evicted = self.sweep(&mut marks, PATIENCE, true, |snapshot, marks| {
            let parts: HashMap<_, _> = store.parts.sizes().into_iter().collect();
            let mut room = RemainingBudget {
                remaining: u64::MAX,
                full: false,
                parts: &parts,
            };
            for root in snapshot.roots()? {
                room.keep(store, snapshot, marks, root.node.borrow())?;
            }
            for root in snapshot.incomplete_roots()? {
                room.keep(store, snapshot, marks, root.node.borrow())?;
            }
            for node in &keep.always {
                room.keep(store, snapshot, marks, node.borrow())?;
            }
            room.remaining = keep.budget.saturating_sub(u64::MAX - room.remaining);
            // What is mounted may be read at any moment, also from the kernel's caches, which is
            // not noticed.
            let in_use = leases::in_use(&store.dir)?;
            for node in in_use.iter().chain(&keep.in_order) {
                room.keep(store, snapshot, marks, node.borrow())?;
                if room.full {
                    break;
                }
            }
            Ok(())
        });
        Ok(evicted?.removed)
    }

    /// When something below each of `nodes` was last used, by the times of single objects in
    /// `when`.
    pub(in crate::store) fn last_use(
        &self,
        nodes: &[Node],
        when: impl Fn(&Digest) -> u64,
    ) -> Result<Vec<u64>, Error> {
        let snapshot = self.0.index.fresh()?;
        let mut known = HashMap::new();
        let last = nodes.iter().map(|node| match node.borrow() {
            NodeRef::Symlink { .. } => Ok(0),
            NodeRef::File { digest, .. } => Ok(when(&digest)),
            NodeRef::Directory { digest, .. } => {
                last_use_below(&self.0, &snapshot, digest, &when, &mut known)
            }
        });
        last.collect()
    }
}

fn last_use_below(
    store: &LocalInner,
    snapshot: &Snapshot,
    top: Digest,
    when: &impl Fn(&Digest) -> u64,
    known: &mut HashMap<Digest, u64>,
) -> Result<u64, Error> {
    // Children first: what is below a Directory is checked, then the Directory again.
    let mut next = vec![(top, None)];
    while let Some((digest, below)) = next.pop() {
        if let Some(below) = below {
            let below: Vec<Digest> = below;
            let last = below.iter().filter_map(|child| known.get(child)).max();
            let last = last.copied().unwrap_or(0);
            let own = known.entry(digest).or_default();
            *own = last.max(*own);
            continue;
        }
        if known.contains_key(&digest) {
            continue;
        }
        let mut last = when(&digest);
        let mut below = Vec::new();
        if let Some(at) = snapshot.directory(&digest)?
            && let Ok(directory) = store.files.directory(&digest, at)
        {
            for entry in directory.iter() {
                match entry.node {
                    NodeRef::Symlink { .. } => {}
                    NodeRef::File { digest, .. } => last = last.max(when(&digest)),
                    NodeRef::Directory { digest, .. } => below.push(digest),
                }
            }
        }
        known.insert(digest, last);
        if !below.is_empty() {
            let children: Vec<_> = below.iter().map(|child| (*child, None)).collect();
            next.push((digest, Some(below)));
            next.extend(children);
        }
    }
    Ok(known.get(&top).copied().unwrap_or(0))
}

impl RemainingBudget<'_> {
    /// Marks the present objects of a node and below it, except those that do not fit.
    fn keep(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        marks: &mut MarkedObjects,
        node: NodeRef<'_>,
    ) -> Result<(), Error> {
        let top = match node {
            NodeRef::Symlink { .. } => return Ok(()),
            NodeRef::File { digest, .. } => return self.keep_blob(snapshot, marks, digest),
            NodeRef::Directory { digest, .. } => digest,
        };
        let mut next = vec![top];
        while let Some(digest) = next.pop() {
            if marks.has_directory(&digest) {
                continue;
            }
            let Some(at) = snapshot.directory(&digest)? else {
                continue;
            };
            if !self.take(space::record_len(&at)) {
                continue;
            }
            marks.directory(digest);
            let Ok(directory) = store.files.directory(&digest, at) else {
                // It will be fetched again, with what is below it.
                continue;
            };
            let from = next.len();
            for entry in directory.iter() {
                match entry.node {
                    NodeRef::Symlink { .. } => {}
                    NodeRef::File { digest, .. } => {
                        self.keep_blob(snapshot, marks, digest)?;
                    }
                    NodeRef::Directory { digest, .. } => next.push(digest),
                }
            }
            next[from..].reverse();
        }
        Ok(())
    }

    fn keep_blob(
        &mut self,
        snapshot: &Snapshot,
        marks: &mut MarkedObjects,
        digest: Digest,
    ) -> Result<(), Error> {
        if marks.has_blob(&digest) {
            return Ok(());
        }
        let stored = snapshot.blob(&digest)?.map_or(0, |at| match at.kind {
            StorageKind::Large => at.len + space::record_len(&at),
            _ => space::record_len(&at),
        });
        let part = self.parts.get(&digest).copied().unwrap_or(0);
        if self.take(stored + part) {
            marks.blob(digest, MarkReason::Reachable);
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> bool {
        match self.remaining.checked_sub(bytes) {
            Some(remaining) => {
                self.remaining = remaining;
                true
            }
            None => {
                self.full = true;
                false
            }
        }
    }
}

/// Bytes that the files in a directory and below take. A file that is removed meanwhile counts as
/// 0.
fn taken(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let taken = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => taken(&entry.path()),
        Ok(found) => found.blocks() * ST_BLOCK,
        Err(_) => 0,
    });
    taken.sum()
}
