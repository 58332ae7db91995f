//! Directories from a server: a tree at a time, kept in memory.
//!
//! A request for a Directory is usually followed by requests for those below it. So a fetch is
//! recursive: the requested one is returned as soon as it has come, and the rest streams in after it.
//! A child that a received Directory announces is waited for, not requested again. The metadata of
//! a tree then costs round trips by the number of fetches' bounds, not by the number of
//! directories.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::endpoint::{GrpcEndpoint, StreamRest, USUAL_MESSAGE};
use crate::castore::{Digest, Directory, NodeRef};
use crate::proto::RawDirectory;
use crate::proto::castore::services::directory_service_client::DirectoryServiceClient;
use crate::proto::castore::v1::{GetDirectoryRequest, get_directory_request::ByWhat};
use crate::store::bounded::Bounded;
use crate::store::failure::{CallFailure, found};
use crate::store::{Damage, Object};

/// Directories in one fetch, at most; those below need a fetch of their own.
const MAX_FETCH: usize = 64 << 10;
/// How long an announced Directory is waited for before it is requested by itself: a large tree may
/// have much else to send first.
const PATIENCE: Duration = Duration::from_millis(250);

/// The Directories of a server.
#[derive(Debug)]
pub(super) struct ServerDirectories {
    endpoint: Arc<GrpcEndpoint>,
    state: Mutex<DirectoryFetches>,
    /// Bytes in one fetch, at most: half of the cache, so that no tree evicts all others.
    max_fetch_bytes: usize,
}

#[derive(Debug)]
struct DirectoryFetches {
    cached: Bounded<Digest, Directory>,
    /// Directories that fetches in flight have announced.
    coming: HashMap<Digest, PendingDirectories>,
}

/// A fetch in flight, for its waiters.
#[derive(Clone, Debug)]
struct PendingDirectories {
    root: Digest,
    progress: watch::Receiver<FetchProgress>,
}

#[derive(Clone, Debug, Default)]
struct FetchProgress {
    /// The result for the requested Directory.
    root: Option<Result<Option<Directory>, CallFailure>>,
    came: usize,
}

impl ServerDirectories {
    pub(super) fn new(endpoint: Arc<GrpcEndpoint>, cache_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            state: Mutex::new(DirectoryFetches {
                cached: Bounded::new(cache_bytes),
                coming: HashMap::new(),
            }),
            max_fetch_bytes: cache_bytes / 2,
        })
    }

    /// The Directory `digest`, if it is in memory.
    pub(super) fn cached(&self, digest: &Digest) -> Option<Directory> {
        self.state.lock().cached.get(digest)
    }

    /// The Directory `digest`, with those below it in flight.
    pub(super) async fn get(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<Directory>, CallFailure> {
        loop {
            let mut fetch = {
                let mut state = self.state.lock();
                if let Some(directory) = state.cached.get(digest) {
                    return Ok(Some(directory));
                }
                match state.coming.get(digest) {
                    Some(fetch) => {
                        let mut fetch = fetch.clone();
                        fetch.progress.borrow_and_update();
                        fetch
                    }
                    None => self.start(*digest, &mut state),
                }
            };
            if fetch.root == *digest {
                let done = fetch.progress.wait_for(|now| now.root.is_some()).await;
                let done = done.map(|now| now.root.clone()).ok().flatten();
                return done.unwrap_or_else(|| Err(CallFailure::crashed()));
            }
            let next = tokio::time::timeout(PATIENCE, self.arrival(digest, &mut fetch));
            if next.await.is_err() {
                let mut state = self.state.lock();
                let still = state
                    .coming
                    .get(digest)
                    .is_some_and(|now| now.root == fetch.root);
                if still {
                    self.start(*digest, &mut state);
                }
            }
        }
    }

    /// Waits until `digest` has arrived or is no longer coming.
    async fn arrival(&self, digest: &Digest, fetch: &mut PendingDirectories) {
        while fetch.progress.changed().await.is_ok() {
            let state = self.state.lock();
            if state.cached.contains(digest) || !state.coming.contains_key(digest) {
                return;
            }
        }
    }

    fn start(self: &Arc<Self>, root: Digest, state: &mut DirectoryFetches) -> PendingDirectories {
        let (progress, seen) = watch::channel(FetchProgress::default());
        let fetch = PendingDirectories {
            root,
            progress: seen,
        };
        state.coming.insert(root, fetch.clone());
        let run = RunningFetch {
            directories: self.clone(),
            fetch: fetch.clone(),
            progress,
            announced: HashSet::from([root]),
            awaited: HashSet::from([root]),
        };
        self.endpoint.runtime.spawn(run.fly().boxed());
        fetch
    }

    async fn request(
        &self,
        digest: &Digest,
    ) -> Result<Option<(RawDirectory, StreamRest<RawDirectory>)>, CallFailure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let answer = self.endpoint.large(|limit| {
            let asked = &asked;
            async move {
                let answer = self.endpoint.stream(|connection| {
                    let request = GetDirectoryRequest {
                        by_what: Some(ByWhat::Digest(asked.clone())),
                        // A very large one is fetched alone.
                        recursive: limit == USUAL_MESSAGE,
                    };
                    let mut client =
                        DirectoryServiceClient::new(connection).max_decoding_message_size(limit);
                    async move { client.get(request).await }
                });
                answer.await
            }
        });
        // Other servers answer a recursive request for a missing Directory with an empty stream.
        found(answer.await).map(Option::flatten)
    }
}

/// A fetch, from within.
struct RunningFetch {
    directories: Arc<ServerDirectories>,
    fetch: PendingDirectories,
    progress: watch::Sender<FetchProgress>,
    /// Announced Directories, received or not.
    announced: HashSet<Digest>,
    /// Announced Directories that have not come.
    awaited: HashSet<Digest>,
}

impl RunningFetch {
    async fn fly(mut self) {
        let root = self.fetch.root;
        let mut rest = match self.root().await {
            Ok(Some((directory, rest))) => {
                self.take(directory.clone());
                self.send_request(Ok(Some(directory)));
                rest
            }
            Ok(None) => return self.send_request(Ok(None)),
            Err(failure) => return self.send_request(Err(failure)),
        };
        let mut bytes = 0;
        for _ in 1..MAX_FETCH {
            // A Directory that is dropped is requested again by its next reader, which gets the
            // error.
            match rest.next().await {
                Ok(Some(RawDirectory(raw))) => {
                    let directory = match Directory::decode(Vec::from(raw)) {
                        Ok(directory) if self.awaited.contains(&directory.digest()) => directory,
                        Ok(directory) => {
                            let strange = directory.digest();
                            tracing::warn!(
                                "{:?} sent directory {strange}, which nothing below {root} refers to",
                                self.directories.endpoint
                            );
                            return;
                        }
                        Err(error) => {
                            tracing::warn!(
                                "{:?} sent no directory below {root}: {error}",
                                self.directories.endpoint
                            );
                            return;
                        }
                    };
                    bytes += directory.resident_bytes();
                    self.take(directory);
                    if self.awaited.is_empty() || bytes > self.directories.max_fetch_bytes {
                        return;
                    }
                }
                Ok(None) => return,
                Err(failure) => {
                    tracing::debug!("the directories below {root} stopped coming: {failure:?}");
                    return;
                }
            }
        }
    }

    async fn root(&self) -> Result<Option<(Directory, StreamRest<RawDirectory>)>, CallFailure> {
        let root = self.fetch.root;
        let Some((RawDirectory(raw), rest)) = self.directories.request(&root).await? else {
            return Ok(None);
        };
        let directory = Directory::decode_verified(Vec::from(raw), &root).map_err(|error| {
            self.directories.endpoint.calls.sent_corrupt(
                Object::Directory,
                &root,
                Damage::Directory(error),
            )
        })?;
        Ok(Some((directory, rest)))
    }

    fn take(&mut self, directory: Directory) {
        let mut state = self.directories.state.lock();
        let digest = directory.digest();
        for entry in directory.iter() {
            if let NodeRef::Directory { digest, .. } = entry.node
                && self.announced.insert(digest)
            {
                self.awaited.insert(digest);
                if !state.cached.contains(&digest) {
                    let fetch = &self.fetch;
                    state.coming.entry(digest).or_insert_with(|| fetch.clone());
                }
            }
        }
        let bytes = directory.resident_bytes();
        state.cached.insert(digest, directory, bytes);
        self.awaited.remove(&digest);
        if state
            .coming
            .get(&digest)
            .is_some_and(|now| now.root == self.fetch.root)
        {
            state.coming.remove(&digest);
        }
        drop(state);
        self.progress.send_modify(|now| now.came += 1);
    }

    fn send_request(&mut self, root: Result<Option<Directory>, CallFailure>) {
        // Removed first: a reader that repeats the request after a failure gets a new fetch.
        self.leave();
        self.progress.send_modify(|now| now.root = Some(root));
    }

    /// Removes what this fetch has announced, once its root is known to be missing.
    fn leave(&mut self) {
        let mut state = self.directories.state.lock();
        let root = self.fetch.root;
        if state.coming.get(&root).is_some_and(|now| now.root == root) {
            state.coming.remove(&root);
        }
    }
}

impl Drop for RunningFetch {
    fn drop(&mut self) {
        let mut state = self.directories.state.lock();
        for digest in &self.awaited {
            if state
                .coming
                .get(digest)
                .is_some_and(|now| now.root == self.fetch.root)
            {
                state.coming.remove(digest);
            }
        }
    }
}
