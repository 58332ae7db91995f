//! Walking a tree in pre-order.

use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::store::{Blocking, Object};

/// A walk through a tree: a directory comes before what it holds, names in byte order.
///
/// Not an [`Iterator`], since each [`WalkStep`] borrows from the walk: `while let Some(step) =
/// walk.step()? { … }`. A directory that cannot be read is an error once, at its path, after its
/// own step; the walk then continues after it.
#[derive(Debug)]
pub struct TreeWalk<'a> {
    store: &'a Blocking,
    path: TreePath,
    root: Node,
    /// Whether the root was shown.
    started: bool,
    stack: Vec<WalkLevel>,
    /// The directory that was shown last and is not opened yet.
    pending: Option<Digest>,
}

/// A Directory on the way down.
#[derive(Debug)]
struct WalkLevel {
    directory: Directory,
    next: usize,
    /// Bytes of the path of this directory.
    path_length: usize,
}

/// One node of a [`TreeWalk`].
#[derive(Debug)]
pub struct WalkStep<'w> {
    /// Its path.
    pub path: &'w TreePath,
    /// Its own name; empty for the walk's root.
    pub name: &'w [u8],
    /// How many directories it is below the walk's root.
    pub depth: usize,
    /// The node.
    pub node: NodeRef<'w>,
}

impl<'a> TreeWalk<'a> {
    /// A walk over `node`, which is at `path`, and everything below it.
    pub fn new(store: &'a Blocking, path: TreePath, node: Node) -> Self {
        Self {
            store,
            path,
            root: node,
            started: false,
            stack: Vec::new(),
            pending: None,
        }
    }

    /// The next node.
    pub fn step(&mut self) -> Result<Option<WalkStep<'_>>, TreeError> {
        if !self.started {
            self.started = true;
            let node = self.root.borrow();
            if let NodeRef::Directory { digest, .. } = node {
                self.pending = Some(digest);
            }
            return Ok(Some(WalkStep {
                path: &self.path,
                name: b"",
                depth: 0,
                node,
            }));
        }
        if let Some(digest) = self.pending.take() {
            let directory = open(self.store, &self.path, &digest)?;
            self.stack.push(WalkLevel {
                directory,
                next: 0,
                path_length: self.path.as_bytes().len(),
            });
        }
        while self
            .stack
            .last()
            .is_some_and(|level| level.next >= level.directory.len())
        {
            self.stack.pop();
        }
        let depth = self.stack.len();
        let Some(level) = self.stack.last_mut() else {
            return Ok(None);
        };
        let index = level.next;
        level.next += 1;
        let Some(entry) = level.directory.get(index) else {
            return Ok(None);
        };
        self.path.truncate(level.path_length);
        self.path.push(entry.name);
        if let NodeRef::Directory { digest, .. } = entry.node {
            self.pending = Some(digest);
        }
        Ok(Some(WalkStep {
            path: &self.path,
            name: entry.name,
            depth,
            node: entry.node,
        }))
    }

    /// Does not descend into the directory of the last step.
    pub fn skip(&mut self) {
        self.pending = None;
    }
}

/// Digests and sizes of the files of `node`, in the order of a [`TreeWalk`]; ends where a Directory
/// cannot be read.
pub(super) fn files<'a>(
    store: &'a Blocking,
    node: &Node,
) -> impl Iterator<Item = (Digest, u64)> + 'a {
    let mut walk = TreeWalk::new(store, TreePath::new(b""), node.clone());
    std::iter::from_fn(move || {
        loop {
            match walk.step().ok()??.node {
                NodeRef::File { digest, size, .. } => return Some((digest, size)),
                NodeRef::Directory { .. } | NodeRef::Symlink { .. } => {}
            }
        }
    })
}

/// The Directory `digest`, which stands at `path`.
pub(super) fn open(
    store: &Blocking,
    path: &TreePath,
    digest: &Digest,
) -> Result<Directory, TreeError> {
    store
        .directory(digest)
        .map_err(TreeError::at(path))?
        .ok_or_else(|| TreeError::Absent {
            path: path.clone(),
            store: store.url().to_owned(),
            object: Object::Directory,
            digest: *digest,
        })
}
