//! Roots whose content has not come yet.
//!
//! A client that fills a cache puts the metadata of a path first, and its content as it is read.
//! Until then `Get` returns the path from here, and listings, mounts and copies do not include it.
//! A local store keeps the root, so that arriving content is no garbage; the client's metadata is
//! kept in memory until it was checked. A restart drops it, and the client puts it again.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;

use crate::castore::Root;
use crate::nix::PathInfo;

/// Bytes of metadata of paths without content, at most: the oldest are dropped.
const MOST_BYTES: usize = 16 << 20;
/// The first pause before it is checked whether the content has come, and the longest, as it
/// doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The roots without content, by the hash in their names.
pub(super) struct IncompleteRoots {
    /// How long one is kept.
    keep: Duration,
    roots: Mutex<IncompleteByHash>,
}

#[derive(Default)]
struct IncompleteByHash {
    by_hash: HashMap<[u8; 20], IncompleteRoot>,
    bytes: usize,
}

struct IncompleteRoot {
    root: Root,
    info: PathInfo,
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl IncompleteRoot {
    fn bytes(&self) -> usize {
        256 + 2 * self.info.encoded_len()
    }
}

impl IncompleteRoots {
    pub(super) fn new(keep: Duration) -> Self {
        Self {
            keep,
            roots: Mutex::default(),
        }
    }

    /// Keeps `root`, replacing any of that hash.
    pub(super) fn put(&self, hash: [u8; 20], root: Root, info: PathInfo) {
        let now = Instant::now();
        let waiting = IncompleteRoot {
            root,
            info,
            since: now,
            next: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        };
        let roots = &mut *self.roots.lock();
        roots.remove(&hash);
        roots.bytes += waiting.bytes();
        while roots.bytes > MOST_BYTES
            && let Some(oldest) = roots.oldest()
        {
            roots.remove(&oldest);
        }
        roots.by_hash.insert(hash, waiting);
    }

    /// The metadata of the path of `hash`.
    pub(super) fn get(&self, hash: &[u8; 20]) -> Option<PathInfo> {
        let roots = self.roots.lock();
        let waiting = roots.by_hash.get(hash)?;
        (waiting.since.elapsed() < self.keep).then(|| waiting.info.clone())
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.roots.lock().by_hash.len()
    }

    /// Drops those that have waited for too long, and returns those whose content may have come.
    pub(super) fn due(&self) -> Vec<([u8; 20], Root, PathInfo)> {
        let now = Instant::now();
        let roots = &mut *self.roots.lock();
        let old = |waiting: &IncompleteRoot| now.duration_since(waiting.since) >= self.keep;
        let expired = roots.by_hash.iter().filter(|(_, waiting)| old(waiting));
        let expired: Vec<_> = expired.map(|(hash, _)| *hash).collect();
        expired.iter().for_each(|hash| roots.remove(hash));
        let mut due = Vec::new();
        for (hash, waiting) in &mut roots.by_hash {
            if waiting.next <= now {
                waiting.pause = (waiting.pause * 2).min(LONGEST_PAUSE);
                waiting.next = now + waiting.pause;
                due.push((*hash, waiting.root.clone(), waiting.info.clone()));
            }
        }
        due
    }

    /// Drops the root of `hash` if it still is `root`.
    pub(super) fn remove(&self, hash: &[u8; 20], root: &Root) {
        let roots = &mut *self.roots.lock();
        if roots
            .by_hash
            .get(hash)
            .is_some_and(|waiting| waiting.root == *root)
        {
            roots.remove(hash);
        }
    }
}

impl IncompleteByHash {
    fn remove(&mut self, hash: &[u8; 20]) {
        if let Some(waiting) = self.by_hash.remove(hash) {
            self.bytes -= waiting.bytes();
        }
    }

    fn oldest(&self) -> Option<[u8; 20]> {
        let oldest = self.by_hash.iter().min_by_key(|(_, waiting)| waiting.since);
        oldest.map(|(hash, _)| *hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Digest, Name, Node};

    #[tokio::test(start_paused = true)]
    async fn a_root_without_content_can_be_replaced_and_expires() {
        let day = Duration::from_secs(24 * 60 * 60);
        let incomplete = IncompleteRoots::new(day);
        let root = |content: &[u8]| Root {
            name: Name::new(b"x").unwrap(),
            node: Node::File {
                digest: Digest::of(content),
                size: 1,
                executable: false,
            },
        };
        let info = |root: &Root| PathInfo {
            entry: Some(root.into()),
            ..PathInfo::default()
        };
        let (one, two) = (root(b"1"), root(b"2"));
        incomplete.put([1; 20], one.clone(), info(&one));
        assert!(incomplete.due().is_empty());
        incomplete.put([1; 20], two.clone(), info(&two));
        assert_eq!(incomplete.get(&[1; 20]), Some(info(&two)));
        tokio::time::advance(FIRST_PAUSE).await;
        assert_eq!(incomplete.due().len(), 1);
        assert!(incomplete.due().is_empty(), "it is looked for again later");
        incomplete.remove(&[1; 20], &one);
        assert!(incomplete.get(&[1; 20]).is_some(), "that was another");
        tokio::time::advance(day).await;
        assert_eq!(incomplete.get(&[1; 20]), None);
        assert!(incomplete.due().is_empty());
        assert_eq!(incomplete.roots.lock().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_dropped() {
        let incomplete = IncompleteRoots::new(Duration::from_secs(100));
        let root = Root {
            name: Name::new(b"x").unwrap(),
            node: Node::Symlink {
                target: crate::castore::SymlinkTarget::new(b"t").unwrap(),
            },
        };
        let large = PathInfo {
            references: vec![vec![0; 1 << 20].into()],
            ..PathInfo::default()
        };
        for number in 0..20 {
            incomplete.put([number; 20], root.clone(), large.clone());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(incomplete.get(&[0; 20]).is_none() && incomplete.get(&[19; 20]).is_some());
        assert!(incomplete.roots.lock().bytes <= MOST_BYTES);
    }
}
