//! The marks of a collection.

use std::collections::HashSet;

use super::super::LocalInner;
use super::super::index::Snapshot;
use crate::castore::{Digest, NodeRef};
use crate::store::Error;

/// Blobs and Directories that stay.
#[derive(Debug, Default)]
pub(super) struct MarkedObjects {
    blobs: HashSet<Digest>,
    /// Directories below which everything was marked.
    directories: HashSet<Digest>,
    /// Directories that are referred to and were missing.
    absent: HashSet<Digest>,
}

impl MarkedObjects {
    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    pub(super) fn has_directory(&self, digest: &Digest) -> bool {
        self.directories.contains(digest)
    }

    /// Marks a blob; returns false if it was marked.
    pub(super) fn blob(&mut self, digest: Digest) -> bool {
        self.blobs.insert(digest)
    }

    /// Marks a Directory alone.
    pub(super) fn directory(&mut self, digest: Digest) {
        self.directories.insert(digest);
    }

    /// Looks again for missing objects: they may have come since.
    pub(super) fn look_again(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        for digest in std::mem::take(&mut self.absent) {
            self.below_directory(store, snapshot, digest, true)?;
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
        self.node(store, snapshot, node, false)
    }

    /// As [`below`](Self::below), for optional objects: what is below a Directory that cannot be
    /// read is lost anyway.
    pub(super) fn below_past(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        node: NodeRef<'_>,
    ) -> Result<(), Error> {
        self.node(store, snapshot, node, true)
    }

    fn node(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        node: NodeRef<'_>,
        lenient: bool,
    ) -> Result<(), Error> {
        match node {
            NodeRef::Symlink { .. } => Ok(()),
            NodeRef::File { digest, .. } => {
                self.blobs.insert(digest);
                Ok(())
            }
            NodeRef::Directory { digest, .. } => {
                self.below_directory(store, snapshot, digest, lenient)
            }
        }
    }

    /// Marks a Directory and everything below it.
    pub(super) fn below_directory(
        &mut self,
        store: &LocalInner,
        snapshot: &Snapshot,
        digest: Digest,
        lenient: bool,
    ) -> Result<(), Error> {
        let MarkedObjects {
            blobs,
            directories,
            absent,
        } = self;
        let mut next = vec![digest];
        while let Some(digest) = next.pop() {
            if directories.contains(&digest) {
                continue;
            }
            let Some(at) = snapshot.directory(&digest)? else {
                absent.insert(digest);
                continue;
            };
            directories.insert(digest);
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
                    NodeRef::File { digest, .. } => drop(blobs.insert(digest)),
                    NodeRef::Directory { digest, .. } => next.push(digest),
                }
            }
        }
        Ok(())
    }
}
