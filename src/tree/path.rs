//! Paths below a root, as bytes.

use std::fmt;

use crate::castore::Printable;

/// A path in a tree: a root's name or a digest, then names, joined by `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The path of `start` itself; empty for paths that begin below it.
    pub fn new(start: &[u8]) -> Self {
        Self(start.to_vec())
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Goes down to `name`.
    pub fn push(&mut self, name: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name);
    }

    /// This path and `name` below it.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut path = self.clone();
        path.push(name);
        path
    }

    /// The path of the directory that this is in; empty at the start.
    pub(super) fn parent(&self) -> Self {
        let slash = self.0.iter().rposition(|&byte| byte == b'/');
        Self(
            self.0
                .get(..slash.unwrap_or(0))
                .unwrap_or_default()
                .to_vec(),
        )
    }

    /// Goes back up to where the path had `length` bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}
