//! Objects in use by the kernel, held in the stores so that no garbage collection removes them.
//!
//! A root that was looked up can be read from the kernel's caches for as long as the kernel knows
//! it, without any request, and any of it can be requested at any time, also when its name is gone
//! from the store. So it is held in every embedded store ([`Store::embedded`]) before the reply to
//! the lookup, and released when the store no longer has this root and the kernel has forgotten it,
//! or with the mount. A mount of one directory holds that directory.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use crate::castore::Node;
use crate::store::{InUseLease, Store};

/// The objects that a mount or a guest's session uses.
#[derive(Default)]
pub(super) struct ObjectsInUse(Mutex<LeasedRoots>);

#[derive(Default)]
struct LeasedRoots {
    leases: Vec<InUseLease>,
    /// Roots by their index.
    roots: HashMap<u32, Node>,
    /// Roots that the store no longer has.
    gone: Vec<u32>,
    /// What may become a root, and has no index yet.
    next: Option<Node>,
}

impl ObjectsInUse {
    /// Begins to hold. `connection` is the FUSE connection of a mount.
    pub(super) fn begin(&self, store: &dyn Store, connection: Option<u64>) {
        let stores = store.embedded();
        let leases = stores.iter().filter_map(|store| store.lease(connection));
        self.0.lock().leases = leases.collect();
    }

    /// Takes over what the previous process holds.
    pub(super) fn succeed(&self, store: &dyn Store, connection: Option<u64>) {
        if let Some(connection) = connection {
            for store in store.embedded() {
                store.succeed_lease(connection);
            }
        }
    }

    /// Holds everything below `node`, for as long as the mount lives.
    pub(super) fn hold(&self, node: &Node) {
        let held = self.0.lock();
        for lease in &held.leases {
            lease.hold(node);
        }
    }

    /// Holds what may be shown next, in the place of what was held so before.
    pub(super) fn hold_next(&self, node: &Node) {
        let held = &mut *self.0.lock();
        for lease in &held.leases {
            lease.hold(node);
        }
        let former = held.next.replace(node.clone());
        held.release(former.iter());
    }

    /// Holds the root with this index; returns whether it was not held before.
    pub(super) fn hold_root(&self, index: u32, node: &Node) -> bool {
        let held = &mut *self.0.lock();
        if held.leases.is_empty() || held.roots.contains_key(&index) {
            return false;
        }
        for lease in &held.leases {
            lease.hold(node);
        }
        held.roots.insert(index, node.clone());
        held.next.take_if(|next| next == node);
        true
    }

    /// Releases the roots that the store no longer has (`gone` is true) and that the kernel has
    /// forgotten (`forgotten` is true). `changed`: whether the store's roots have changed since the
    /// last call.
    pub(super) fn release_roots(
        &self,
        changed: bool,
        gone: impl Fn(u32) -> bool,
        forgotten: impl Fn(u32) -> bool,
    ) {
        let held = &mut *self.0.lock();
        if changed {
            held.gone = held.roots.keys().copied().filter(|at| gone(*at)).collect();
        }
        let over: Vec<u32> = held
            .gone
            .iter()
            .copied()
            .filter(|at| forgotten(*at))
            .collect();
        if over.is_empty() {
            return;
        }
        held.gone.retain(|index| !over.contains(index));
        let released: Vec<_> = over.iter().filter_map(|at| held.roots.remove(at)).collect();
        held.release(released.iter());
    }

    /// Releases everything.
    pub(super) fn end(&self) {
        let held = std::mem::take(&mut *self.0.lock());
        held.leases.into_iter().for_each(InUseLease::end);
    }
}

impl LeasedRoots {
    /// Releases these nodes, which are none of its roots any more.
    fn release<'a>(&self, nodes: impl Iterator<Item = &'a Node>) {
        // Two names may stand for one tree.
        let still = self.roots.values().chain(&self.next);
        let still: HashSet<_> = still.map(Node::digest).collect();
        for node in nodes.filter(|node| !still.contains(&node.digest())) {
            self.leases.iter().for_each(|lease| lease.release(node));
        }
    }
}
