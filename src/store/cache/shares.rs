//! How much of each root a cache has.
//!
//! Nothing is requested from the upstream and nothing counts as a use: only what the local store's index
//! knows is looked at, so that a status changes neither the cache nor the order in which it evicts. What is
//! below a Directory that is not cached is not known, and counts as missing.
//!
//! A tree may have millions of files, and a cache thousands of roots, so the work has a bound in objects;
//! the roots that were used last come first.

use std::collections::HashSet;

use super::Cache;
use crate::castore::{Digest, NodeRef};
use crate::store::{Answer, Error, Store};

/// Files and Directories that are looked at for one question, at most: two seconds of work.
const MOST_OBJECTS: usize = 1 << 20;

/// The cached share of a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CachedShare {
    /// The name of the root.
    pub name: String,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Bytes of its distinct files that are cached.
    pub cached_bytes: u64,
    /// Bytes of its distinct files, as far as its Directories are cached.
    pub known_bytes: u64,
    /// Directories below it that are not cached: what is in them is not known.
    pub missing_directories: u64,
    /// Bytes of its NAR, if that is known: a little more than those of all of its files, each path counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_size: Option<u64>,
}

impl CachedShare {
    /// The cached part, from 0 to 1; nothing while not all of its Directories are known.
    pub fn share(&self) -> Option<f64> {
        match (self.missing_directories, self.known_bytes) {
            (0, 0) => Some(1.0),
            (0, known) => Some(self.cached_bytes as f64 / known as f64),
            _ => None,
        }
    }
}

impl Cache {
    /// The cached share of each cached or pinned root, those that were used last first; and how many roots
    /// are left out since there is too much to look at.
    pub fn shares(&self) -> Result<(Vec<CachedShare>, u64), Error> {
        self.shares_within(MOST_OBJECTS)
    }

    fn shares_within(&self, most: usize) -> Result<(Vec<CachedShare>, u64), Error> {
        let mut roots = self.0.inner.writer.roots.kept_by_name();
        roots.sort_by(|(a, left), (b, right)| right.used.cmp(&left.used).then(a.cmp(b)));
        let (mut shares, mut looked_at, mut omitted) = (Vec::new(), 0, 0);
        for (name, kept) in roots {
            if looked_at >= most {
                omitted += 1;
                continue;
            }
            let narinfo = kept.path_info.and_then(|info| info.narinfo);
            let mut share = CachedShare {
                name: name.to_string(),
                pinned: kept.pinned,
                nar_size: narinfo.map(|narinfo| narinfo.nar_size),
                ..CachedShare::default()
            };
            match &kept.root {
                Some(root) => looked_at += self.measure(root.node.borrow(), &mut share)?,
                None => {
                    looked_at += 1;
                    share.missing_directories = 1;
                }
            }
            shares.push(share);
        }
        Ok((shares, omitted))
    }

    /// Adds what is below `node` to `share`; returns how many objects were looked at.
    fn measure(&self, node: NodeRef<'_>, share: &mut CachedShare) -> Result<usize, Error> {
        let local_store = &self.0.inner.local_store;
        let (mut seen, mut below) = (HashSet::new(), Vec::new());
        let mut blob = |digest: Digest, size: u64| -> Result<(), Error> {
            share.known_bytes = share.known_bytes.saturating_add(size);
            let cached = match local_store.indexed_size(&digest)? {
                Some(_) => size,
                None => local_store.parts().present_bytes(&digest).min(size),
            };
            share.cached_bytes = share.cached_bytes.saturating_add(cached);
            Ok(())
        };
        match node {
            NodeRef::Directory { digest, .. } => below.push(digest),
            NodeRef::File { digest, size, .. } => blob(digest, size)?,
            NodeRef::Symlink { .. } => {}
        }
        let mut missing = 0;
        while let Some(digest) = below.pop() {
            if !seen.insert((true, digest)) {
                continue;
            }
            let Ok(Answer::Found(directory)) = local_store.directory_now(&digest) else {
                missing += 1;
                continue;
            };
            for entry in directory.iter() {
                match entry.node {
                    NodeRef::Directory { digest, .. } => below.push(digest),
                    NodeRef::File { digest, size, .. } if seen.insert((false, digest)) => {
                        blob(digest, size)?;
                    }
                    NodeRef::File { .. } | NodeRef::Symlink { .. } => {}
                }
            }
        }
        share.missing_directories += missing;
        Ok(seen.len().max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::castore::Name;
    use crate::store::{CacheOptions, LocalStore, MemoryStore};

    #[test]
    fn roots_beyond_the_limit_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let local_store = LocalStore::open(dir.path()).unwrap();
        let upstream = Arc::new(MemoryStore::new());
        let cache = Cache::new(local_store, upstream, CacheOptions::default()).unwrap();
        for name in ["a", "b", "c"] {
            cache.pin(&Name::new(name.as_bytes()).unwrap()).unwrap();
        }
        let (shares, omitted) = cache.shares_within(2).unwrap();
        let names: Vec<_> = shares.iter().map(|share| share.name.as_str()).collect();
        assert_eq!((names, omitted), (vec!["a", "b"], 1));
    }
}
