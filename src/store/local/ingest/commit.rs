//! The commit of an addition: its objects go to the disk, in order, and then into the index.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::{AdditionState, ClosureCheck, FEW_LARGE, LocalStaged};
use crate::castore::{Digest, Directory, NodeRef, Root};
use crate::nix::PathInfo;
use crate::store::local::index::{CommitError, IndexChange};
use crate::store::local::large;
use crate::store::local::location::{ObjectLocation, PackKind, StorageKind};
use crate::store::local::pack::{PackRecord, PackWriter, RECORD_HEADER, RecordWriter};
use crate::store::root_change::RootChange;
use crate::store::{AddedTotals, Error};

/// Space that a commit needs in the index, in bytes: for itself, and for each entry. Generous: redb
/// copies every page on the way to a changed one.
const INDEX_ROOM: u64 = 4 << 20;
const ENTRY_ROOM: u64 = 256;

/// The index entries, besides the blobs and the changes of roots.
struct PreparedEntries {
    directories: Vec<(Digest, ObjectLocation)>,
    /// Roots that came before their content, and whether that is still missing.
    incomplete: Vec<(Root, Option<PathInfo>, bool)>,
    /// Roots that waited, whose content has come.
    complete: Vec<Root>,
}

impl AdditionState {
    pub(super) fn commit(&self) -> Result<AddedTotals, Error> {
        let mut staged = {
            let staged = &mut *self.staged.lock();
            std::mem::replace(
                staged,
                LocalStaged {
                    ended: true,
                    ..LocalStaged::default()
                },
            )
        };
        let error = match self.commit_staged(&mut staged) {
            Ok(added) => return Ok(added),
            Err(CommitError::Undone(error)) => {
                staged.discard();
                error
            }
            // Whether it reached the disk, the index will show.
            Err(CommitError::Unknown(error)) => error,
        };
        drop(staged);
        self.store.reclaim_again();
        Err(error)
    }

    fn commit_staged(&self, staged: &mut LocalStaged) -> Result<AddedTotals, CommitError> {
        let prepared = self.prepare(staged).map_err(CommitError::Undone)?;
        let Some(prepared) = prepared else {
            return Ok(AddedTotals::default());
        };
        let store = &*self.store;
        let mut change = store.index.change().map_err(CommitError::Undone)?;
        if let Some(tmp) = &staged.tmp {
            // From here on, until the commit is complete, its files show what was linked.
            tmp.abandon(true);
        }
        let added = self
            .enter(&mut change, staged, &prepared)
            .map_err(CommitError::Undone)?;
        change.commit()?;
        if let Some(tmp) = &staged.tmp {
            tmp.abandon(false);
        }
        for digest in &staged.replaced {
            store.files.forget(digest);
        }
        Ok(added)
    }

    /// Everything before the index: checks, lays out and syncs. Nothing if nothing is new.
    fn prepare(&self, staged: &mut LocalStaged) -> Result<Option<PreparedEntries>, Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(self.refuse("the import", "a part of it could not be written"));
        }
        let store = &*self.store;
        let snapshot = store.index.fresh()?;
        let expected = std::mem::take(&mut staged.expected);
        let mut closure = ClosureCheck::new(store, &snapshot, staged);
        for change in &staged.roots {
            if let Some(root) = change.root() {
                closure
                    .check(root)?
                    .map_err(|why| self.refuse(format!("root node \"{}\"", root.name), why))?;
            }
        }
        let mut incomplete = Vec::new();
        let mut complete = Vec::new();
        for (root, info) in expected {
            let is_complete = closure.check(&root)?.is_ok();
            let before = snapshot.root(&root.name)?;
            self.check_free(before.as_ref(), &root)?;
            incomplete.push((root, info, !is_complete));
        }
        for root in snapshot.incomplete_roots()? {
            if closure.check(&root)?.is_ok() {
                complete.push(root);
            }
        }
        let partial = closure.finish()?;
        let (layout, completed) = (lay_out(staged), partial.completed);
        let mut unchanged = completed.is_empty() && staged.blobs.is_empty() && layout.is_empty();
        unchanged &= incomplete.is_empty() && complete.is_empty();
        for change in &staged.roots {
            unchanged = unchanged && snapshot.has(change)?;
        }
        if unchanged {
            return Ok(None);
        }
        let mut directories = self.write_directories(staged, &layout, &partial.missing)?;
        directories.extend(completed);
        self.sync(staged)?;
        if !staged.roots.is_empty() || !incomplete.is_empty() {
            // From here on the store holds roots of its own.
            store.dir.unmark_cache()?;
        }
        let entries = staged.blobs.len() + directories.len() + staged.roots.len();
        store
            .dir
            .check_room(INDEX_ROOM + ENTRY_ROOM * entries as u64)?;
        Ok(Some(PreparedEntries {
            directories,
            incomplete,
            complete,
        }))
    }

    /// Fails if a root of that name is there whose content is stored and another.
    fn check_free(&self, before: Option<&Root>, root: &Root) -> Result<(), Error> {
        match before {
            Some(there) if there.node != root.node => Err(self.refuse(
                format!("root node \"{}\" before its content", root.name),
                "there is another root of that name, whose content is stored",
            )),
            _ => Ok(()),
        }
    }

    fn write_directories(
        &self,
        staged: &mut LocalStaged,
        layout: &[Digest],
        partial: &HashSet<Digest>,
    ) -> Result<Vec<(Digest, ObjectLocation)>, Error> {
        let mut at = Vec::with_capacity(layout.len());
        let directories: Vec<_> = layout
            .iter()
            .filter_map(|digest| staged.directories.get(digest).cloned())
            .collect();
        let length = |directory: &Directory| directory.as_bytes().len() as u64;
        let total = directories
            .iter()
            .map(|directory| RECORD_HEADER + length(directory))
            .sum();
        if total == 0 {
            return Ok(at);
        }
        let space = self.reserve(staged, PackKind::Directories, total)?;
        let (pack, mut offset) = (space.pack, space.offset);
        let mut records = RecordWriter::new(&self.store.dir, space, total);
        for directory in &directories {
            let digest = directory.digest();
            records.put(PackRecord::Directory, &digest, &[directory.as_bytes()])?;
            offset += RECORD_HEADER;
            let kind = match partial.contains(&digest) {
                true => StorageKind::Partial,
                false => StorageKind::Whole,
            };
            let len = length(directory);
            at.push((
                digest,
                ObjectLocation {
                    kind,
                    pack,
                    offset,
                    len,
                },
            ));
            offset += len;
        }
        records.finish()?;
        Ok(at)
    }

    /// Makes blobs and Directories durable.
    fn sync(&self, staged: &LocalStaged) -> Result<(), Error> {
        let dir = &self.store.dir;
        if let (Some(tmp), true) = (&staged.tmp, staged.large.len() > FEW_LARGE) {
            return tmp.sync_disk(dir);
        }
        for pack in &staged.packs {
            pack.sync(dir)?;
        }
        if staged.packs.iter().any(PackWriter::is_new) {
            dir.sync(&dir.packs())?;
        }
        for large in &staged.large {
            if let Some(file) = &large.file {
                file.sync_all().map_err(dir.io("sync", &large.path))?;
            }
        }
        if let Some(tmp) = &staged.tmp {
            dir.sync(tmp.path())?;
            dir.sync(&dir.tmp())?;
        }
        Ok(())
    }

    /// Enters everything into the index, large files first.
    fn enter(
        &self,
        change: &mut IndexChange<'_>,
        staged: &LocalStaged,
        prepared: &PreparedEntries,
    ) -> Result<AddedTotals, Error> {
        let mut missing = Vec::new();
        for file in &staged.large {
            // Another process may have added it since.
            if staged.replaced.contains(&file.digest) || change.blob(&file.digest)?.is_none() {
                missing.push(file);
            }
        }
        if let (Some(tmp), false) = (&staged.tmp, missing.is_empty()) {
            large::place(&self.store.dir, tmp, missing.into_iter())?;
        }
        // In the order of their keys, the index changes each of its pages once.
        let mut blobs: Vec<_> = staged.blobs.iter().map(|(key, at)| (*key, *at)).collect();
        blobs.sort_unstable_by_key(|(digest, _)| *digest);
        let mut directories = prepared.directories.clone();
        directories.sort_unstable_by_key(|(digest, _)| *digest);
        let added = change.add(&blobs, &directories, &staged.replaced)?;
        for pack in &staged.packs {
            change.set_pack(pack.id, pack.kind, pack.end())?;
        }
        change.complete_roots(&prepared.complete)?;
        for (root, info, incomplete) in &prepared.incomplete {
            // Another process may have brought it since.
            let before = change.root(&root.name)?;
            self.check_free(before.as_ref().map(|(root, _)| root), root)?;
            change.set_root(root, info.as_ref(), *incomplete)?;
        }
        change.set_roots(&staged.roots)?;
        change.check_conditions(&staged.conditions)?;
        Ok(added)
    }
}

/// The order in which a walk from the roots meets the Directories; then those that no root reaches,
/// as they came.
fn lay_out(staged: &LocalStaged) -> Vec<Digest> {
    let mut seen = HashSet::with_capacity(staged.directories.len());
    let mut order = Vec::with_capacity(staged.directories.len());
    let roots = staged.roots.iter().filter_map(RootChange::root);
    let roots = roots.filter_map(|root| root.node.digest());
    // They came children first.
    for start in roots.chain(staged.order.iter().rev().copied()) {
        let mut stack = vec![start];
        while let Some(digest) = stack.pop() {
            let Some(directory) = staged.directories.get(&digest) else {
                continue;
            };
            if !seen.insert(digest) {
                continue;
            }
            order.push(digest);
            let from = stack.len();
            stack.extend(directory.iter().filter_map(|entry| match entry.node {
                NodeRef::Directory { digest, .. } => Some(digest),
                _ => None,
            }));
            stack[from..].reverse();
        }
    }
    order
}
