//! The cached roots of the upstream.
//!
//! **Freshness.** The upstream's answer for a name is valid for `roots-max-age`, and no longer than
//! until the upstream reports that its roots have changed. After that it is requested again. If the
//! upstream is unreachable, the old answer is served, however old; a name without one is then an
//! error, never "absent".
//!
//! Each root has the time of its last use, by which the cache chooses what to evict, and whether it
//! is pinned. All of this is in the local store's index and outlives the process; it is written now
//! and then, not with every use.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::castore::{Name, Root};
use crate::clock::unix_millis;
use crate::nix::PathInfo;
use crate::store::local::CachedRoot;

/// How long "not found" is valid at most.
const ABSENT: Duration = Duration::from_secs(10);
/// Absent names that are cached; beyond that, all are dropped.
const MAX_ABSENT: usize = 10_000;
/// A use is worth writing if it is so many milliseconds later than the one on the disk.
const WORTH_WRITING: u64 = 1000;

/// The cached data.
#[derive(Debug)]
pub(super) struct CachedUpstreamRoots {
    max_age: Duration,
    state: Mutex<CachedRootsState>,
}

#[derive(Debug, Default)]
struct CachedRootsState {
    known: HashMap<Bytes, CachedRootEntry>,
    absent: HashMap<Bytes, Instant>,
    /// The upstream's version to which the data belong.
    upstream_version: Option<u64>,
    /// Changes that lookups noticed.
    version: u64,
    /// Names that were removed from the cache and are still on the disk.
    forgotten: Vec<Bytes>,
    /// Something is new that is not on the disk.
    news: bool,
}

#[derive(Clone, Debug, Default)]
struct CachedRootEntry {
    kept: CachedRoot,
    /// Different from what is on the disk.
    dirty: bool,
    /// The use that is on the disk.
    used_on_disk: u64,
    /// The upstream has changed its roots since.
    outdated: bool,
    /// Was served although it was too old.
    served_old: bool,
}

/// What is cached about a name.
#[derive(Debug)]
pub(super) enum RootMemory {
    /// Cached, and fresh.
    Fresh(Option<Root>),
    /// Cached, and too old.
    Old(Root),
    Nothing,
}

impl CachedUpstreamRoots {
    pub(super) fn new(max_age: Duration, kept: HashMap<Bytes, CachedRoot>) -> Self {
        let known = kept.into_iter().map(|(name, kept)| {
            let known = CachedRootEntry {
                used_on_disk: kept.used,
                kept,
                ..CachedRootEntry::default()
            };
            (name, known)
        });
        let state = CachedRootsState {
            known: known.collect(),
            ..CachedRootsState::default()
        };
        Self {
            max_age,
            state: Mutex::new(state),
        }
    }

    /// What is cached about `name`; counts as a use.
    pub(super) fn recall(&self, name: &[u8], upstream_version: u64) -> RootMemory {
        let mut state = self.state.lock();
        state.follow(upstream_version);
        if let Some(since) = state.absent.get(name)
            && since.elapsed() < self.max_age.min(ABSENT)
        {
            return RootMemory::Fresh(None);
        }
        let Some(known) = state.known.get_mut(name) else {
            return RootMemory::Nothing;
        };
        let Some(root) = &known.kept.root else {
            return RootMemory::Nothing;
        };
        let root = root.clone();
        known.kept.used = unix_millis();
        let age = known.kept.used.saturating_sub(known.kept.asked);
        match !known.outdated && u128::from(age) < self.max_age.as_millis() {
            true => RootMemory::Fresh(Some(root)),
            false => {
                known.served_old = true;
                RootMemory::Old(root)
            }
        }
    }

    /// Records the upstream's answer for `name`.
    pub(super) fn note(&self, name: &[u8], root: Option<&Root>, used: bool) {
        let mut state = self.state.lock();
        let now = unix_millis();
        let Some(root) = root else {
            if state.absent.len() >= MAX_ABSENT {
                state.absent.clear();
            }
            let name = Bytes::copy_from_slice(name);
            state.absent.insert(name.clone(), Instant::now());
            return state.forget(name);
        };
        let was_absent = state.absent.remove(name).is_some();
        let known = state.known.entry(Bytes::copy_from_slice(name));
        let known = known.or_default();
        let changed = known.kept.root.as_ref() != Some(root);
        let was_other = changed && known.kept.root.is_some();
        if changed {
            known.kept.path_info = None;
            known.kept.root = Some(root.clone());
        }
        known.kept.asked = now;
        if used {
            known.kept.used = now;
        }
        known.outdated = false;
        known.served_old = false;
        known.dirty = true;
        state.news |= changed;
        if was_other || was_absent {
            state.version += 1;
        }
    }

    /// Records every root that the upstream has.
    pub(super) fn note_all(&self, roots: &[Root]) {
        for root in roots {
            self.note(&root.name, Some(root), false);
        }
        let mut state = self.state.lock();
        let gone = {
            let there: std::collections::HashSet<&[u8]> =
                roots.iter().map(|root| root.name.as_bytes()).collect();
            let names = state.known.keys();
            let gone = names.filter(|name| !there.contains(&name[..]));
            gone.cloned().collect::<Vec<_>>()
        };
        for name in gone {
            state.forget(name);
        }
    }

    /// Records the upstream's path info.
    pub(super) fn note_path_info(&self, name: &[u8], info: &PathInfo) {
        let mut state = self.state.lock();
        if let Some(known) = state.known.get_mut(name)
            && known.kept.root.is_some()
            && known.kept.path_info.as_deref() != Some(info)
        {
            known.kept.path_info = Some(Box::new(info.clone()));
            known.dirty = true;
            state.news = true;
        }
    }

    pub(super) fn path_info(&self, name: &[u8]) -> Option<PathInfo> {
        let state = self.state.lock();
        state.known.get(name)?.kept.path_info.as_deref().cloned()
    }

    /// Whether the root `name` is cached, however old.
    pub(super) fn remembers(&self, name: &[u8]) -> bool {
        let state = self.state.lock();
        let known = state.known.get(name);
        known.is_some_and(|known| known.kept.root.is_some())
    }

    /// Every cached root, in no particular order.
    pub(super) fn all(&self) -> Vec<Root> {
        let state = self.state.lock();
        let known = state.known.values();
        known.filter_map(|known| known.kept.root.clone()).collect()
    }

    /// Every root with its cached data: for the choice of what to evict.
    pub(super) fn kept(&self) -> Vec<CachedRoot> {
        let state = self.state.lock();
        let known = state.known.values();
        known.map(|known| known.kept.clone()).collect()
    }

    /// The same, by name.
    pub(super) fn kept_by_name(&self) -> Vec<(Name, CachedRoot)> {
        let state = self.state.lock();
        let known = state.known.iter();
        known
            .filter_map(|(name, known)| Some((Name::new(name).ok()?, known.kept.clone())))
            .collect()
    }

    /// How often a lookup noticed a change.
    pub(super) fn version(&self) -> u64 {
        self.state.lock().version
    }

    /// Pins or unpins a name; returns whether that is a change.
    pub(super) fn pin(&self, name: &Name, pinned: bool) -> bool {
        let mut state = self.state.lock();
        let name = Bytes::copy_from_slice(name);
        if !pinned && !state.known.contains_key(&name) {
            return false;
        }
        let known = state.known.entry(name.clone()).or_default();
        if known.kept.pinned == pinned {
            return false;
        }
        known.kept.pinned = pinned;
        known.dirty = true;
        if known.kept.root.is_none() && !pinned {
            state.known.remove(&name);
            state.forgotten.push(name);
        }
        true
    }

    /// The pinned names, in order.
    pub(super) fn pins(&self) -> Vec<Name> {
        let state = self.state.lock();
        let pinned = state.known.iter().filter(|(_, known)| known.kept.pinned);
        let mut pins: Vec<_> = pinned
            .filter_map(|(name, _)| Name::new(name).ok())
            .collect();
        pins.sort();
        pins
    }

    /// Names whose answers were too old, to be requested again.
    pub(super) fn served_old(&self) -> Vec<Bytes> {
        let mut state = self.state.lock();
        let known = state.known.iter_mut();
        let old = known.filter_map(|(name, known)| {
            std::mem::take(&mut known.served_old).then(|| name.clone())
        });
        old.collect()
    }

    /// Notes that a name could not be requested again.
    pub(super) fn still_old(&self, name: &[u8]) {
        if let Some(known) = self.state.lock().known.get_mut(name) {
            known.served_old = true;
        }
    }

    /// Whether something other than a use is to be written to the disk.
    pub(super) fn has_news(&self) -> bool {
        let state = self.state.lock();
        !state.forgotten.is_empty() || state.news
    }

    /// The changes to be written to the disk; they count as written.
    pub(super) fn changes(&self) -> Vec<(Bytes, Option<CachedRoot>)> {
        let mut state = self.state.lock();
        state.news = false;
        let mut changes: Vec<_> = std::mem::take(&mut state.forgotten)
            .into_iter()
            .map(|name| (name, None))
            .collect();
        for (name, known) in &mut state.known {
            if known.dirty || known.kept.used >= known.used_on_disk + WORTH_WRITING {
                known.dirty = false;
                known.used_on_disk = known.kept.used;
                changes.push((name.clone(), Some(known.kept.clone())));
            }
        }
        changes
    }

    /// Reverts that `changes` count as written.
    pub(super) fn not_written(&self, changes: Vec<(Bytes, Option<CachedRoot>)>) {
        let mut state = self.state.lock();
        for (name, root) in changes {
            match (root, state.known.get_mut(&name)) {
                (_, Some(known)) => known.dirty = true,
                (None, None) => state.forgotten.push(name),
                (Some(_), None) => {}
            }
        }
    }
}

impl CachedRootsState {
    /// The upstream reports the version of its roots.
    fn follow(&mut self, upstream_version: u64) {
        let before = self.upstream_version.replace(upstream_version);
        if before.is_some_and(|before| before != upstream_version) {
            self.absent.clear();
            self.known
                .values_mut()
                .for_each(|known| known.outdated = true);
        }
    }

    /// The upstream has no such root any more. A pin stays.
    fn forget(&mut self, name: Bytes) {
        let Some(known) = self.known.get_mut(&name) else {
            return;
        };
        let was_there = known.kept.root.take().is_some();
        known.kept.path_info = None;
        known.dirty = true;
        if !known.kept.pinned {
            self.known.remove(&name);
            self.forgotten.push(name);
        }
        self.version += u64::from(was_there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Digest, Node};

    fn root(name: &str, of: &[u8]) -> Root {
        Root {
            name: Name::new(name.as_bytes()).unwrap(),
            node: Node::File {
                digest: Digest::of(of),
                size: of.len() as u64,
                executable: false,
            },
        }
    }

    #[test]
    fn an_answer_is_valid_for_its_time_and_until_the_upstream_reports_a_change() {
        let roots = CachedUpstreamRoots::new(Duration::from_secs(60), HashMap::new());
        assert!(matches!(roots.recall(b"a", 1), RootMemory::Nothing));
        roots.note(b"a", Some(&root("a", b"1")), true);
        roots.note(b"b", None, true);
        assert!(matches!(roots.recall(b"a", 1), RootMemory::Fresh(Some(_))));
        assert!(matches!(roots.recall(b"b", 1), RootMemory::Fresh(None)));
        assert!(matches!(roots.recall(b"a", 2), RootMemory::Old(_)));
        assert!(matches!(roots.recall(b"b", 2), RootMemory::Nothing));
        assert_eq!(roots.served_old(), [&b"a"[..]]);
        let before = roots.version();
        roots.note(b"a", Some(&root("a", b"1")), true);
        assert_eq!(roots.version(), before);
        roots.note(b"a", Some(&root("a", b"2")), true);
        assert_ne!(roots.version(), before, "it stands for something else");
        let old = CachedUpstreamRoots::new(Duration::ZERO, HashMap::new());
        old.note(b"a", Some(&root("a", b"1")), true);
        assert!(matches!(old.recall(b"a", 1), RootMemory::Old(_)));
    }

    #[test]
    fn what_changed_is_written_once_and_pins_outlive_their_root() {
        let roots = CachedUpstreamRoots::new(Duration::from_secs(60), HashMap::new());
        let name = Name::new(b"a").unwrap();
        assert!(roots.pin(&name, true));
        assert!(!roots.pin(&name, true));
        roots.note(b"a", Some(&root("a", b"1")), true);
        assert_eq!(roots.changes().len(), 1);
        assert_eq!(roots.changes(), []);
        roots.note_all(&[]);
        assert_eq!(roots.all(), []);
        assert_eq!(roots.pins(), std::slice::from_ref(&name));
        let changes = roots.changes();
        assert!(matches!(&changes[..], [(_, Some(kept))] if kept.pinned && kept.root.is_none()));
        roots.not_written(changes);
        assert!(roots.pin(&name, false));
        assert!(matches!(&roots.changes()[..], [(_, None)]));
    }
}
