//! How much space trees take: as files, in the store, and alone.
//!
//! A Directory or blob takes its space once, however many places refer to it, so three numbers describe
//! a tree: the bytes of its files as `du --apparent-size` counts them, the bytes of the distinct objects
//! that hold them, and the part of those that no other tree of the same question refers to. Memory is
//! linear in the number of distinct objects, never in the number of paths.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use super::walk::open;
use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::store::Blocking;

/// The space of one tree, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TreeUsage {
    /// Bytes of its files, each path counted. At most `u64::MAX`: a small tree of Directories can claim
    /// more.
    pub size: u64,
    /// Bytes of the distinct blobs and Directories that it is made of.
    pub stored: u64,
    /// The part of `stored` that no other tree refers to: what removing only this tree would free.
    pub unshared: u64,
}

/// The progress of a measurement; other threads may read it.
#[derive(Debug, Default)]
pub struct UsageProgress {
    /// Names that were counted, those below Directories that were known already included: of all trees as many
    /// as they state ([`Node::stated_names`]).
    pub names: AtomicU64,
}

impl UsageProgress {
    fn counted(&self, names: u64) {
        self.names.fetch_add(names, Ordering::Relaxed);
    }
}

/// The space of several trees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeUsages {
    /// Of each tree, in the order of the question.
    pub trees: Vec<TreeUsage>,
    /// Bytes of the distinct objects of all of them.
    pub stored: u64,
}

/// Which trees refer to an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ObjectUsers {
    One(usize),
    Several,
}

/// A Directory on the way down.
struct UsageLevel {
    digest: Digest,
    directory: Directory,
    next: usize,
    path_length: usize,
    /// Bytes of the files below, as far as they were counted.
    size: u64,
}

/// Measures each of `trees`: where it stands, and its node. Objects that several of them refer to are
/// unshared in none.
pub fn usage(
    store: &Blocking,
    trees: &[(TreePath, Node)],
    progress: &UsageProgress,
) -> Result<TreeUsages, TreeError> {
    let mut measured = MeasuredTrees {
        progress,
        objects: HashMap::new(),
        sizes: HashMap::new(),
    };
    let mut usages = TreeUsages::default();
    for (index, (path, node)) in trees.iter().enumerate() {
        let mut seen = HashSet::new();
        let mut usage = TreeUsage::default();
        usage.size = measured.tree(
            store,
            path,
            node.borrow(),
            index,
            &mut seen,
            &mut usage.stored,
        )?;
        usages.trees.push(usage);
    }
    for (bytes, users) in measured.objects.values() {
        usages.stored += bytes;
        if let ObjectUsers::One(index) = users {
            usages.trees[*index].unshared += bytes;
        }
    }
    Ok(usages)
}

struct MeasuredTrees<'a> {
    progress: &'a UsageProgress,
    /// Bytes and users of each object. A Directory and a blob of the same bytes are two objects.
    objects: HashMap<(bool, Digest), (u64, ObjectUsers)>,
    /// Bytes of the files below each Directory that was walked to its end.
    sizes: HashMap<Digest, u64>,
}

impl MeasuredTrees<'_> {
    /// Counts an object of the tree `index`; whether it is the tree's first sight of it.
    fn count(
        &mut self,
        object: (bool, Digest),
        bytes: u64,
        index: usize,
        seen: &mut HashSet<(bool, Digest)>,
        stored: &mut u64,
    ) -> bool {
        if !seen.insert(object) {
            return false;
        }
        *stored += bytes;
        let (_, users) = self
            .objects
            .entry(object)
            .or_insert((bytes, ObjectUsers::One(index)));
        if *users != ObjectUsers::One(index) {
            *users = ObjectUsers::Several;
        }
        true
    }

    /// Walks a tree, each distinct Directory once; gives the bytes of its files.
    fn tree(
        &mut self,
        store: &Blocking,
        path: &TreePath,
        node: NodeRef<'_>,
        index: usize,
        seen: &mut HashSet<(bool, Digest)>,
        stored: &mut u64,
    ) -> Result<u64, TreeError> {
        self.progress.counted(1);
        let top = match node {
            NodeRef::Directory { digest, .. } => digest,
            NodeRef::File { digest, size, .. } => {
                self.count((false, digest), size, index, seen, stored);
                return Ok(size);
            }
            NodeRef::Symlink { .. } => return Ok(0),
        };
        let mut path = path.clone();
        let mut enter = Some(top);
        let mut stack: Vec<UsageLevel> = Vec::new();
        loop {
            if let Some(digest) = enter.take() {
                let directory = open(store, &path, &digest)?;
                let bytes = directory.as_bytes().len() as u64;
                self.count((true, digest), bytes, index, seen, stored);
                stack.push(UsageLevel {
                    digest,
                    directory,
                    next: 0,
                    path_length: path.as_bytes().len(),
                    size: 0,
                });
            }
            let Some(level) = stack.last_mut() else {
                return Ok(self.sizes[&top]);
            };
            let Some(entry) = level.directory.get(level.next) else {
                let (digest, size) = (level.digest, level.size);
                self.sizes.insert(digest, size);
                stack.pop();
                if let Some(above) = stack.last_mut() {
                    above.size = above.size.saturating_add(size);
                }
                continue;
            };
            level.next += 1;
            self.progress.counted(1);
            match entry.node {
                NodeRef::Symlink { .. } => {}
                NodeRef::File { digest, size, .. } => {
                    level.size = level.size.saturating_add(size);
                    self.count((false, digest), size, index, seen, stored);
                }
                NodeRef::Directory {
                    digest,
                    size: twice_names,
                } => match self.sizes.get(&digest) {
                    Some(size) if seen.contains(&(true, digest)) => {
                        level.size = level.size.saturating_add(*size);
                        self.progress.counted(twice_names / 2);
                    }
                    _ => {
                        path.truncate(level.path_length);
                        path.push(entry.name);
                        enter = Some(digest);
                    }
                },
            }
        }
    }
}
