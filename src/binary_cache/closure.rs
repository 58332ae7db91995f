//! Prefetching the references of a path.
//!
//! A program needs its libraries as soon as it starts, and their names are in its narinfo. The
//! narinfos of all references are requested at once, so that a closure costs one round trip for
//! each level of it; NARs follow, a few at a time, and leave room for those that readers wait for.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::nix::{NarinfoFile, StorePath};

/// NARs that are prefetched at once.
const NARS: usize = 4;
/// Narinfos that are prefetched at once.
const NARINFOS: usize = 64;
/// Paths that wait for a prefetch, at the most; beyond that, references are left to their readers.
const MOST_WAITING: usize = 100_000;

/// What is prefetched of the paths that a path refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClosureMode {
    /// Their narinfos and NARs.
    #[default]
    Fetch,
    /// Their narinfos.
    Narinfos,
    /// Nothing.
    Off,
}

impl std::str::FromStr for ClosureMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fetch" => Ok(Self::Fetch),
            "narinfos" => Ok(Self::Narinfos),
            "off" => Ok(Self::Off),
            _ => Err("closure: expected fetch, narinfos or off".to_owned()),
        }
    }
}
/// The running prefetches.
#[derive(Debug)]
pub(super) struct Prefetcher {
    wanted: Arc<Mutex<HashSet<StorePath>>>,
    pub(super) narinfos: Semaphore,
    pub(super) nars: Semaphore,
}

impl Default for Prefetcher {
    fn default() -> Self {
        Self {
            wanted: Arc::default(),
            narinfos: Semaphore::new(NARINFOS),
            nars: Semaphore::new(NARS),
        }
    }
}

impl Prefetcher {
    /// Takes the references of `narinfo` that are not prefetched already.
    pub(super) fn take(&self, narinfo: &NarinfoFile) -> Vec<FetchAhead> {
        let mut wanted = self.wanted.lock();
        let mut is_new =
            |path: &StorePath| wanted.len() < MOST_WAITING && wanted.insert(path.clone());
        let taken = narinfo.references.iter();
        let taken = taken.filter(|path| **path != narinfo.path && is_new(path));
        let taken = taken.map(|path| FetchAhead {
            wanted: self.wanted.clone(),
            path: path.clone(),
        });
        taken.collect()
    }
}

/// One path that is prefetched; no longer wanted once this is dropped.
pub(super) struct FetchAhead {
    wanted: Arc<Mutex<HashSet<StorePath>>>,
    pub(super) path: StorePath,
}

impl Drop for FetchAhead {
    fn drop(&mut self) {
        self.wanted.lock().remove(&self.path);
    }
}
