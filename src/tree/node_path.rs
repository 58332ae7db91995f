//! A place on a walk down a tree.
//!
//! A path needs as much memory as it is long, and a walk that keeps one for each level of a tree of
//! 100,000 levels needs gigabytes. A place is one step from the place above it, which is shared;
//! the path is composed only for output.

use std::sync::Arc;

use super::TreePath;

/// A place in a tree. Clones share everything.
#[derive(Clone, Debug)]
pub(super) struct NodePath(Arc<PathStep>);

#[derive(Debug)]
struct PathStep {
    above: Option<NodePath>,
    name: Box<[u8]>,
}

impl NodePath {
    /// The place of a root of this name.
    pub(super) fn root(name: &[u8]) -> Self {
        Self(Arc::new(PathStep {
            above: None,
            name: name.into(),
        }))
    }

    /// The place of `name` below this one.
    pub(super) fn join(&self, name: &[u8]) -> Self {
        Self(Arc::new(PathStep {
            above: Some(self.clone()),
            name: name.into(),
        }))
    }

    /// The path to it.
    pub(super) fn path(&self) -> TreePath {
        let mut names = Vec::new();
        let mut place = Some(self);
        while let Some(NodePath(step)) = place {
            names.push(&step.name);
            place = step.above.as_ref();
        }
        let mut path = TreePath::default();
        for name in names.into_iter().rev() {
            path.push(name);
        }
        path
    }
}

impl Drop for PathStep {
    /// Step by step: a recursive drop would need a stack as deep as the tree.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(NodePath(step)) = above {
            above = Arc::into_inner(step).and_then(|mut step| step.above.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_path_and_a_very_deep_one_is_dropped_without_recursion() {
        let root = NodePath::root(b"root");
        let mut place = root.clone();
        assert_eq!(place.path().to_string(), "root");
        assert_eq!(place.join(b"a").join(b"b").path().to_string(), "root/a/b");
        for _ in 0..1_000_000 {
            place = place.join(b"d");
        }
        drop(place);
        assert_eq!(root.path().to_string(), "root");
    }
}
