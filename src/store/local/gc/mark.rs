//! The marks of a collection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::LocalInner;
use super::super::index::Snapshot;
use super::GcProgress;
use crate::castore::{Digest, NodeRef};
use crate::store::Error;

/// Why an object stays. Of several reasons the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MarkReason {
    /// The grace, up to this time in seconds since 1970.
    Grace(u64),
    /// It belongs to a path whose content has not come completely.
    Incomplete,
    /// A mount or guest shows it.
    InUse,
    /// A root reaches it.
    Reachable,
}

/// Blobs and Directories that stay.
#[derive(Debug, Default)]
pub(super) struct MarkedObjects {
    blobs: HashMap<Digest, MarkReason>,
    /// Directories below which everything was marked, for the same reason or a greater one.
    directories: HashMap<Digest, MarkReason>,
    /// Directories that are referred to and were missing.
    absent: HashMap<Digest, MarkReason>,
    progress: Arc<GcProgress>,
}

/// Marks `digest` in `marks`; returns false if it was marked for as great a reason.
fn mark(marks: &mut HashMap<Digest, MarkReason>, digest: Digest, reason: MarkReason) -> bool {
    let known = marks.entry(digest).or_insert(MarkReason::Grace(0));
    let is_greater = reason > *known;
    *known = reason.max(*known);
    is_greater
}

impl MarkedObjects {
    /// None yet, and `progress` counts.
    pub(super) fn with_progress(progress: Arc<GcProgress>) -> Self {
        Self {
            progress,
            ..Self::default()
        }
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    pub(super) fn has_directory(&self, digest: &Digest) -> bool {
        self.directories.contains_key(digest)
    }

    /// Why a blob stays, if it does.
    pub(super) fn blob_reason(&self, digest: &Digest) -> Option<MarkReason> {
        self.blobs.get(digest).copied()
    }

    /// Why a Directory stays, if it does.
    pub(super) fn directory_reason(&self, digest: &Digest) -> Option<MarkReason> {
        self.directories.get(digest).copied()
    }

    /// Marks a blob.
    pub(super) fn blob(&mut self, digest: Digest, reason: MarkReason) {
        mark(&mut self.blobs, digest, reason);
    }

    /// Marks a Directory alone.
    pub(super) fn directory(&mut self, digest: Digest) {
        mark(&mut self.directories, digest, MarkReason::Reachable);
    }

    /// Looks again for missing objects: they may have come since.
    pub(super) fn look_again(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        for (digest, reason) in std::mem::take(&mut self.absent) {
            self.below_directory(store, snapshot, digest, reason, true)?;
        }
        Ok(())
    }

    /// Marks a node and everything below it. Fails if a Directory cannot be read.
    pub(super) fn below(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        node: NodeRef<'_>,
    ) -> Result<(), Error> {
        self.node(store, snapshot, node, MarkReason::Reachable, false)
    }

    /// As [`below`](Self::below), for optional objects: what is below a Directory that cannot be
    /// read is lost anyway.
    pub(super) fn below_past(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        node: NodeRef<'_>,
        reason: MarkReason,
    ) -> Result<(), Error> {
        self.node(store, snapshot, node, reason, true)
    }

    fn node(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        node: NodeRef<'_>,
        reason: MarkReason,
        lenient: bool,
    ) -> Result<(), Error> {
        match node {
            NodeRef::Symlink { .. } => Ok(()),
            NodeRef::File { digest, .. } => {
                self.blob(digest, reason);
                Ok(())
            }
            NodeRef::Directory { digest, .. } => {
                self.below_directory(store, snapshot, digest, reason, lenient)
            }
        }
    }

    /// Marks a Directory and everything below it.
    pub(super) fn below_directory(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        digest: Digest,
        reason: MarkReason,
        lenient: bool,
    ) -> Result<(), Error> {
        let MarkedObjects {
            blobs,
            directories,
            absent,
            progress,
        } = self;
        let mut next = vec![digest];
        while let Some(digest) = next.pop() {
            if directories
                .get(&digest)
                .is_some_and(|known| *known >= reason)
            {
                continue;
            }
            let Some(at) = snapshot.directory(&digest)? else {
                mark(absent, digest, reason);
                continue;
            };
            mark(directories, digest, reason);
            progress.directories.fetch_add(1, Ordering::Relaxed);
            let directory = match store.files.directory(&digest, at) {
                Ok(directory) => directory,
                Err(error) if lenient => {
                    tracing::warn!("what is below it may be collected: {error}");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in directory.iter() {
                match entry.node {
                    NodeRef::Symlink { .. } => {}
                    NodeRef::File { digest, .. } => drop(mark(blobs, digest, reason)),
                    NodeRef::Directory { digest, .. } => next.push(digest),
                }
            }
        }
        Ok(())
    }
}
