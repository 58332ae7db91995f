//! Roots in a bucket.
//!
//! The common layout has none; those of castore-fs are beside it, each under the BLAKE3 digest of
//! its name (a name may be longer than a file name that encodes it): `castore-fs/roots/b3/XXXX/H`
//! is a `castore_fs.v1.Root` message. Changes are not reported: a found root is read again after
//! [`FOUND_HOLDS`], a missing one after [`ABSENT_HOLDS`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;

use super::bucket::Bucket;
use crate::castore::{Digest, Name, Root};
use crate::nix::PathInfo;
use crate::proto::castore_fs::v1::Root as RootMessage;
use crate::store::Error;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::root_change::admit;
use crate::store::root_list::{self, RootList};

const DIR: &str = "castore-fs/roots";
const FOUND_HOLDS: Duration = Duration::from_secs(60);
const ABSENT_HOLDS: Duration = Duration::from_secs(10);
/// Names cached; beyond that, all are dropped.
const MAX_KNOWN: usize = 100_000;
/// Objects read at once for a listing.
const AT_ONCE: usize = 64;
/// The largest object of a root, in bytes: a name, a node, and a path info.
const MAX_ROOT: u64 = 1 << 20;

/// Attempts to add a root whose name is added by others at the same time.
const ATTEMPTS: usize = 3;

fn encoded(root: &Root, path_info: Option<Box<PathInfo>>) -> Bytes {
    let message = RootMessage {
        entry: Some(root.into()),
        path_info: path_info.map(|known| *known),
    };
    message.encode_to_vec().into()
}

/// The roots of a bucket.
#[derive(Debug)]
pub(super) struct BucketRoots {
    bucket: Arc<Bucket>,
    state: Mutex<BucketRootsState>,
}

#[derive(Debug, Default)]
struct BucketRootsState {
    version: u64,
    known: HashMap<Vec<u8>, (Option<Root>, Instant)>,
    absent_since: Option<Instant>,
}

impl BucketRoots {
    pub(super) fn new(bucket: Arc<Bucket>) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            state: Mutex::default(),
        })
    }

    fn path(&self, name: &[u8]) -> String {
        self.bucket.path(DIR, &Digest::of(name))
    }

    pub(super) fn known(&self, name: &[u8]) -> Option<Option<Root>> {
        let state = self.state.lock();
        let (root, when) = state.known.get(name)?;
        let holds = if root.is_some() {
            FOUND_HOLDS
        } else {
            ABSENT_HOLDS
        };
        (when.elapsed() < holds).then(|| root.clone())
    }

    pub(super) async fn get(&self, name: &[u8]) -> Result<Option<Root>, CallFailure> {
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let version = self.state.lock().version;
        let root = self.ask(name).await?.map(|(root, _)| root);
        let mut state = self.state.lock();
        if root.is_none() {
            state.absent_since.get_or_insert_with(Instant::now);
        }
        if state.version == version {
            if state.known.len() >= MAX_KNOWN {
                state.known.clear();
            }
            state
                .known
                .insert(name.to_vec(), (root.clone(), Instant::now()));
        }
        Ok(root)
    }

    pub(super) async fn ask(
        &self,
        name: &[u8],
    ) -> Result<Option<(Root, Option<PathInfo>)>, CallFailure> {
        let path = self.path(name);
        let found = self.read(&path).await?;
        match found {
            Some((root, _)) if root.name.as_bytes() != name => Err(CallFailure::Failed(
                FailureKind::Corrupt,
                format!("{path} holds the root \"{}\"", root.name),
            )),
            found => Ok(found),
        }
    }

    async fn read(&self, path: &str) -> Result<Option<(Root, Option<PathInfo>)>, CallFailure> {
        let Some(bytes) = self.bucket.get(path, MAX_ROOT).await? else {
            return Ok(None);
        };
        let wrong =
            |why: String| CallFailure::Failed(FailureKind::Corrupt, format!("{path}: {why}"));
        let message = RootMessage::decode(bytes).map_err(|error| wrong(error.to_string()))?;
        let root = Root::try_from(message.entry.unwrap_or_default())
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Some((root, message.path_info)))
    }

    pub(super) async fn list(&self) -> Result<Vec<Root>, CallFailure> {
        let listed = self.bucket.list(DIR, root_list::MOST_ROOTS).await?;
        let (paths, memory) = listed.ok_or_else(root_list::too_many)?;
        let reads = paths
            .into_iter()
            .map(|path| async move { self.read(&path).await });
        let mut found = stream::iter(reads).buffer_unordered(AT_ONCE);
        let mut roots = RootList::with(memory);
        while let Some(found) = found.next().await {
            // Removed meanwhile.
            if let Some((root, _)) = found? {
                roots.receive(root).await?;
            }
        }
        let mut roots = Vec::from(roots);
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(roots)
    }

    pub(super) async fn put(
        &self,
        root: &Root,
        path_info: Option<Box<PathInfo>>,
    ) -> Result<(), CallFailure> {
        let bytes = encoded(root, path_info);
        self.bucket.put(&self.path(&root.name), bytes).await
    }

    /// As [`Ingest::add_root`](crate::store::Ingest::add_root).
    pub(super) async fn add(
        &self,
        root: &Root,
        path_info: Option<Box<PathInfo>>,
    ) -> Result<(), CallFailure> {
        for _ in 0..ATTEMPTS {
            let before = self.ask(&root.name).await?;
            let is_there = before.is_some();
            let before = before.map(|(root, known)| (root.node, known));
            let path_info = path_info.as_deref().cloned();
            let admitted = admit(&self.bucket.url, before, root, path_info);
            let path_info = admitted.map_err(|error| match error {
                Error::NameTaken { why, .. } => CallFailure::Failed(FailureKind::Exists, why),
                error => CallFailure::Failed(FailureKind::Refused, error.to_string()),
            })?;
            let path_info = path_info.map(Box::new);
            if is_there {
                return self.put(root, path_info).await;
            }
            let bytes = encoded(root, path_info);
            if self.bucket.create(&self.path(&root.name), bytes).await? {
                return Ok(());
            }
        }
        let why = format!("root node \"{}\" comes and goes", root.name);
        Err(CallFailure::Failed(FailureKind::Conflict, why))
    }

    pub(super) async fn remove(&self, name: &Name) -> Result<(), CallFailure> {
        self.bucket.delete(&self.path(name)).await
    }

    /// Drops cached answers: this process has changed something.
    pub(super) fn changed_by_us(&self) {
        let mut state = self.state.lock();
        state.known.clear();
        state.version += 1;
    }

    /// Another program may have added a root: an "absent" expires after a while.
    pub(super) fn version(&self) -> u64 {
        let mut state = self.state.lock();
        let since = state.absent_since;
        if since.is_some_and(|since| since.elapsed() >= ABSENT_HOLDS) {
            state.absent_since = None;
            state.known.retain(|_, (root, _)| root.is_some());
            state.version += 1;
        }
        state.version
    }
}
