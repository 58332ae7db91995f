//! Prefetching the references of a path.
//!
//! A program needs its libraries as soon as it starts, and their names are in its narinfo. The
//! narinfos of all references are requested at once, so that a closure costs one round trip for
//! each level of it; NARs follow, a few at a time, and leave room for those that readers wait for.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::upstream::{ClosureMode, Inner};
use crate::nix::{NarinfoFile, StorePath};
use crate::store::Store;

/// NARs that are prefetched at once.
const NARS: usize = 4;
/// Narinfos that are prefetched at once.
const NARINFOS: usize = 64;
/// Paths that wait for a prefetch, at the most; beyond that, references are left to their readers.
const MOST_WAITING: usize = 100_000;

/// The running prefetches.
#[derive(Debug)]
pub(super) struct Prefetcher {
    wanted: Arc<Mutex<HashSet<StorePath>>>,
    narinfos: Arc<Semaphore>,
    nars: Arc<Semaphore>,
}

impl Default for Prefetcher {
    fn default() -> Self {
        Self {
            wanted: Arc::default(),
            narinfos: Arc::new(Semaphore::new(NARINFOS)),
            nars: Arc::new(Semaphore::new(NARS)),
        }
    }
}

impl Prefetcher {
    /// Prefetches the references of `narinfo`, and theirs. Returns at once.
    pub(super) fn want(&self, inner: &Arc<Inner>, narinfo: &NarinfoFile, mode: ClosureMode) {
        for path in &narinfo.references {
            let is_new = {
                let mut wanted = self.wanted.lock();
                wanted.len() < MOST_WAITING && wanted.insert(path.clone())
            };
            if *path == narinfo.path || !is_new {
                continue;
            }
            let ahead = FetchAhead {
                wanted: self.wanted.clone(),
                path: path.clone(),
            };
            let (narinfos, nars) = (self.narinfos.clone(), self.nars.clone());
            let inner = inner.clone();
            inner.runtime().clone().spawn(async move {
                ahead.fetch(&inner, mode, &narinfos, &nars).await;
            });
        }
    }
}

/// One path that is prefetched; no longer wanted once this is dropped.
struct FetchAhead {
    wanted: Arc<Mutex<HashSet<StorePath>>>,
    path: StorePath,
}

impl FetchAhead {
    async fn fetch(
        self,
        inner: &Arc<Inner>,
        mode: ClosureMode,
        narinfos: &Semaphore,
        nars: &Semaphore,
    ) {
        if inner.has(&self.path).await {
            return;
        }
        let asked = {
            let _permit = narinfos.acquire().await;
            inner.known(self.path.clone()).await
        };
        let Ok(Some(known)) = asked else {
            // The reader that looks it up gets the error.
            return;
        };
        match mode {
            ClosureMode::Fetch => {
                // Its own references are requested meanwhile, not after its arrival.
                inner.prefetch(&known.narinfo, mode);
                let _permit = nars.acquire().await;
                let fetched = inner.fetch(self.path.clone()).await;
                if let Err(error) = fetched.and_then(|_| inner.remember(&self.path)) {
                    tracing::debug!("cannot fetch {} ahead: {error}", self.path);
                }
            }
            ClosureMode::Narinfos => inner.prefetch(&known.narinfo, mode),
            ClosureMode::Off => {}
        }
    }
}

impl Drop for FetchAhead {
    fn drop(&mut self) {
        self.wanted.lock().remove(&self.path);
    }
}

impl Inner {
    /// Whether the contents of `path` are in the local store, as far as a lookup there shows.
    async fn has(&self, path: &StorePath) -> bool {
        if matches!(self.at_hand(path), Ok(Some(_))) {
            return true;
        }
        let name = path.to_string();
        let cached = self.into().cached_root(name.as_bytes());
        match cached.ok().flatten() {
            Some(root) => self.into().is_whole(&root.node).unwrap_or(false),
            None => matches!(self.into().root(name.as_bytes()).await, Ok(Some(_))),
        }
    }
}
