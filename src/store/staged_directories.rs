//! Directories of an addition, for a store that takes them by the closure.

use std::collections::{HashMap, HashSet};

use crate::castore::{Digest, Directory, Node, NodeRef};

/// Directories that were added and are not sent yet.
#[derive(Debug, Default)]
pub(super) struct StagedDirectories {
    directories: HashMap<Digest, Directory>,
    /// The Directories that one of these refers to.
    children: HashSet<Digest>,
}

impl StagedDirectories {
    /// Adds `directory`; returns false if it is staged already.
    pub(super) fn add(&mut self, directory: &Directory) -> bool {
        let digest = directory.digest();
        if self.directories.insert(digest, directory.clone()).is_some() {
            return false;
        }
        let children = directory.iter().filter_map(|entry| match entry.node {
            NodeRef::Directory { digest, .. } => Some(digest),
            _ => None,
        });
        self.children.extend(children);
        true
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Directory> {
        self.directories.get(digest).cloned()
    }

    /// Those that no other refers to, and those of `roots`, though another refers to them: each is the
    /// root of a closure.
    pub(super) fn tops_and<'a>(&self, roots: impl Iterator<Item = &'a Node>) -> Vec<Directory> {
        let mut tops = self.tops();
        let parts: HashSet<Digest> = roots.filter_map(Node::digest).collect();
        let parts = parts.intersection(&self.children);
        tops.extend(parts.filter_map(|digest| self.get(digest)));
        tops
    }

    /// Those that no other refers to: each is the root of a closure.
    pub(super) fn tops(&self) -> Vec<Directory> {
        let all = self.directories.values();
        all.filter(|one| !self.children.contains(&one.digest()))
            .cloned()
            .collect()
    }
}

/// `root` and every Directory below it, each once, each after those that it refers to; `get` finds
/// them.
pub(super) fn leaves_first<E>(
    root: &Directory,
    mut get: impl FnMut(&Digest) -> Result<Directory, E>,
) -> Result<Vec<Directory>, E> {
    let mut order = Vec::new();
    let mut seen = HashSet::from([root.digest()]);
    let mut stack = vec![(root.clone(), 0)];
    while let Some((directory, next)) = stack.pop() {
        let Some(entry) = directory.get(next) else {
            order.push(directory);
            continue;
        };
        let child = match entry.node {
            NodeRef::Directory { digest, .. } if seen.insert(digest) => Some(digest),
            _ => None,
        };
        stack.push((directory, next + 1));
        if let Some(digest) = child {
            stack.push((get(&digest)?, 0));
        }
    }
    Ok(order)
}
