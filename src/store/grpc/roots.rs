//! Roots from a server.
//!
//! castore-fs servers know roots by name and report changes ([`watch_for_changes`]): a cached
//! answer is valid until then. Other servers know only Nix store paths, by the hash in the name,
//! and report nothing: a found root is requested again after [`FOUND_HOLDS`], a missing one after
//! [`ABSENT_HOLDS`], a listing as [`LastListing`] decides. They resolve any name that starts with the right hash; castore-fs does not.
//!
//! When the server is unreachable, the cached answer is used.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::endpoint::{GrpcEndpoint, StreamRest, USUAL_MESSAGE};
use crate::castore::Root;
use crate::nix::{self, PathInfo};
use crate::proto::castore::v1::Entry;
use crate::proto::castore_fs::services::root_service_client::RootServiceClient;
use crate::proto::castore_fs::v1::{GetRootRequest, ListRootsRequest, WatchRootsRequest};
use crate::proto::store::services::path_info_service_client::PathInfoServiceClient;
use crate::proto::store::v1::{
    GetPathInfoRequest, ListPathInfoRequest, get_path_info_request::ByWhat,
};
use crate::store::failure::{CallFailure, FailureKind, found};
use crate::store::last_listing::LastListing;
use crate::store::pace::Payload;
use crate::store::root_list::RootList;

/// How long an answer of a server that reports no changes is valid.
const FOUND_HOLDS: Duration = Duration::from_secs(300);
const ABSENT_HOLDS: Duration = Duration::from_secs(10);
/// Names cached; beyond that, all are dropped.
const MAX_KNOWN: usize = 100_000;
/// The pause before a broken watch is started again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// Changes in a second that are acted on; of those that come together the last counts.
const CHANGES_A_SECOND: u32 = 100;
/// Changes that come together, at most.
const MOST_TOGETHER: usize = 10_000;

/// The roots of a server.
#[derive(Debug)]
pub(super) struct ServerRoots {
    endpoint: Arc<GrpcEndpoint>,
    state: Mutex<ServerRootsState>,
    changed: Condvar,
    /// Aborted on drop, which ends the watch.
    _alive: watch::Sender<()>,
}

#[derive(Debug)]
struct ServerRootsState {
    version: u64,
    known: HashMap<Bytes, KnownRoot>,
    server: ServerKind,
    /// When the last "absent" was returned that has not expired.
    absent_since: Option<Instant>,
    listing: LastListing,
}

/// The kind of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerKind {
    /// Not known yet, or not connected.
    Silent,
    /// It reports changes; the last report was of this instance and version.
    Reports(u64, u64),
    /// It does not know roots by name.
    PathInfosOnly,
}

#[derive(Clone, Debug)]
struct KnownRoot {
    root: Option<Root>,
    when: Instant,
}

impl ServerRootsState {
    fn new() -> Self {
        Self {
            version: 0,
            known: HashMap::new(),
            server: ServerKind::Silent,
            absent_since: None,
            listing: LastListing::default(),
        }
    }

    /// Remembers what the server answered for `name`.
    fn remember(&mut self, name: &[u8], root: Option<Root>) {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let when = Instant::now();
        let name = Bytes::copy_from_slice(name);
        self.known.insert(name, KnownRoot { root, when });
    }
}

/// Records changes for as long as the store exists and the server can report them.
async fn watch_for_changes(
    endpoint: Arc<GrpcEndpoint>,
    roots: Weak<ServerRoots>,
    mut store_gone: watch::Receiver<()>,
) {
    loop {
        let watching = async {
            let answer = endpoint.call_in_background(|connection| async move {
                let mut client = RootServiceClient::new(connection);
                Ok(client.watch(WatchRootsRequest {}).await?.into_inner())
            });
            let mut stream = answer.await?;
            // No deadline: there may be no change for weeks, and a dead connection is found by its
            // keep-alive.
            let (mut since, mut changes) = (tokio::time::Instant::now(), 0);
            while let Some(mut report) = stream.message().await? {
                for _ in 0..MOST_TOGETHER {
                    match stream.message().now_or_never() {
                        Some(Ok(Some(later))) => report = later,
                        _ => break,
                    }
                }
                if let Some(roots) = roots.upgrade() {
                    roots.reported(ServerKind::Reports(report.instance, report.version));
                }
                changes += 1;
                let second = since + Duration::from_secs(1);
                if changes >= CHANGES_A_SECOND {
                    tokio::time::sleep_until(second).await;
                }
                if tokio::time::Instant::now() >= second {
                    (since, changes) = (tokio::time::Instant::now(), 0);
                }
            }
            Ok::<_, CallFailure>(())
        };
        let ended = tokio::select! {
            ended = watching => ended,
            _ = store_gone.changed() => return,
        };
        let Some(roots) = roots.upgrade() else { return };
        if ended.is_err_and(|failure| failure.is(FailureKind::Unsupported)) {
            roots.state.lock().server = ServerKind::PathInfosOnly;
            endpoint.knows_the_field_only();
            return;
        }
        drop(roots);
        tracing::debug!("{endpoint:?} does not report changes for the moment");
        tokio::time::sleep(WATCH_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
}

impl ServerRoots {
    pub(super) fn new(endpoint: Arc<GrpcEndpoint>) -> Arc<Self> {
        let (alive, store_gone) = watch::channel(());
        let roots = Arc::new(Self {
            endpoint,
            state: Mutex::new(ServerRootsState::new()),
            changed: Condvar::new(),
            _alive: alive,
        });
        let endpoint = roots.endpoint.clone();
        let watched = Arc::downgrade(&roots);
        let runtime = endpoint.runtime.clone();
        runtime.spawn(watch_for_changes(endpoint, watched, store_gone).boxed());
        roots
    }

    /// The server reported the version of its roots.
    fn reported(&self, now: ServerKind) {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.server, now);
        if before != now {
            state.known.clear();
            if before != ServerKind::Silent || state.absent_since.is_some() {
                state.version += 1;
                state.absent_since = None;
                self.changed.notify_all();
            }
        }
    }

    /// The cached answer for `name`, if it is still valid.
    pub(super) fn known(&self, name: &[u8]) -> Option<Option<Root>> {
        let state = self.state.lock();
        let known = state.known.get(name)?;
        let holds = match (state.server, &known.root) {
            (ServerKind::Reports(..), _) => true,
            (_, Some(_)) => known.when.elapsed() < FOUND_HOLDS,
            (_, None) => known.when.elapsed() < ABSENT_HOLDS,
        };
        holds.then(|| known.root.clone())
    }

    pub(super) async fn get(&self, name: &[u8]) -> Result<Option<Root>, CallFailure> {
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let version = self.state.lock().version;
        let asked = self.ask(name).await;
        let mut state = self.state.lock();
        match asked {
            Ok((root, _)) => {
                if root.is_none() {
                    state.absent_since.get_or_insert_with(Instant::now);
                }
                if state.version == version {
                    state.remember(name, root.clone());
                }
                Ok(root)
            }
            Err(failure) => match state.known.get(name) {
                Some(known) if known.root.is_some() => Ok(known.root.clone()),
                _ => Err(failure),
            },
        }
    }

    pub(super) async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, CallFailure> {
        Ok(self.ask(name).await?.1)
    }

    /// The root of that name and its path info.
    async fn ask(&self, name: &[u8]) -> Result<(Option<Root>, Option<PathInfo>), CallFailure> {
        if self.state.lock().server != ServerKind::PathInfosOnly {
            let asked = Bytes::copy_from_slice(name);
            let answer = self.endpoint.call(|connection| {
                let name = asked.clone();
                async move {
                    let mut client =
                        RootServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE);
                    Ok(client.get(GetRootRequest { name }).await?.into_inner())
                }
            });
            match found(answer.await) {
                Err(failure) if failure.is(FailureKind::Unsupported) => {
                    self.endpoint.knows_the_field_only();
                }
                Err(failure) => return Err(failure),
                Ok(None) => return Ok((None, None)),
                Ok(Some(answer)) => {
                    let root = self.root(answer.entry, Some(name))?;
                    return Ok((root, answer.path_info));
                }
            }
        }
        let Some(hash) = nix::output_hash(name) else {
            return Ok((None, None));
        };
        let hash = Bytes::copy_from_slice(&hash);
        let answer = self.endpoint.call(|connection| {
            let request = GetPathInfoRequest {
                by_what: Some(ByWhat::ByOutputHash(hash.clone())),
            };
            async move {
                let mut client =
                    PathInfoServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE);
                Ok(client.get(request).await?.into_inner())
            }
        });
        let Some(answer) = found(answer.await)? else {
            return Ok((None, None));
        };
        let root = self.root(answer.entry.clone(), Some(name))?;
        Ok(root.map_or((None, None), |root| (Some(root), Some(answer))))
    }

    pub(super) async fn list(&self) -> Result<Vec<Root>, CallFailure> {
        let listed = match self.list_by_name().await {
            Err(failure) if failure.is(FailureKind::Unsupported) => self.list_path_infos().await,
            listed => listed,
        };
        let mut roots = listed.map_err(cannot_list)?;
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        roots.dedup_by(|a, b| a.name == b.name);
        let mut state = self.state.lock();
        if !matches!(state.server, ServerKind::Reports(..)) && state.listing.note(&roots) {
            self.change(&mut state);
        }
        drop(state);
        Ok(roots)
    }

    /// Requests the listing again if that is due.
    fn renew_listing(self: &Arc<Self>, state: &mut ServerRootsState) {
        if matches!(state.server, ServerKind::Reports(..)) || !state.listing.begin() {
            return;
        }
        let roots = self.clone();
        self.endpoint.runtime.spawn(
            async move {
                let listed = roots.list().await;
                roots.state.lock().listing.end(listed.is_ok());
            }
            .boxed(),
        );
    }

    async fn list_by_name(&self) -> Result<Vec<Root>, CallFailure> {
        let answer = self.endpoint.stream(|connection| async move {
            let mut client =
                RootServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE);
            client.list(ListRootsRequest {}).await
        });
        self.roots_in(answer.await?, |message| message.entry).await
    }

    async fn list_path_infos(&self) -> Result<Vec<Root>, CallFailure> {
        let answer = self.endpoint.stream(|connection| async move {
            let mut client =
                PathInfoServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE);
            client.list(ListPathInfoRequest {}).await
        });
        self.roots_in(answer.await?, |message| message.entry).await
    }

    /// The root nodes of a stream, in each of whose messages there is an `entry`.
    async fn roots_in<T: Payload>(
        &self,
        mut next: Option<(T, StreamRest<T>)>,
        entry: impl Fn(T) -> Option<Entry>,
    ) -> Result<Vec<Root>, CallFailure> {
        let mut roots = RootList::default();
        while let Some((message, mut rest)) = next {
            if let Some(root) = self.root(entry(message), None)? {
                roots.receive(root).await?;
            }
            next = rest.next().await?.map(|message| (message, rest));
        }
        Ok(roots.into())
    }

    /// The root in `entry`; nothing if it has another name than the requested one.
    fn root(
        &self,
        entry: Option<Entry>,
        asked: Option<&[u8]>,
    ) -> Result<Option<Root>, CallFailure> {
        let root = Root::try_from(entry.unwrap_or_default())
            .map_err(|error| CallFailure::Failed(FailureKind::Corrupt, error.to_string()))?;
        Ok(match asked {
            Some(asked) if root.name.as_bytes() != asked => None,
            _ => Some(root),
        })
    }

    /// Drops cached answers: this client has changed something.
    pub(super) fn changed_by_us(&self) {
        self.change(&mut self.state.lock());
    }

    fn change(&self, state: &mut ServerRootsState) {
        state.known.clear();
        state.version += 1;
        self.changed.notify_all();
    }

    /// See [`Store::keep_listings_fresh`](crate::store::Store::keep_listings_fresh).
    pub(super) fn keep_listings_fresh(&self, max_age: Duration) {
        self.state.lock().listing.keep_fresh(max_age);
    }

    pub(super) fn version(&self) -> u64 {
        Self::version_in(&mut self.state.lock())
    }

    /// A server that reports no changes may have gained a root: an "absent" and a listing expire after
    /// a while.
    fn version_in(state: &mut ServerRootsState) -> u64 {
        if matches!(state.server, ServerKind::Reports(..)) {
            return state.version;
        }
        let stale = state
            .absent_since
            .is_some_and(|since| since.elapsed() >= ABSENT_HOLDS);
        if stale {
            state.absent_since = None;
            state.known.retain(|_, known| known.root.is_some());
        }
        if stale || state.listing.is_too_old() {
            state.version += 1;
        }
        state.version
    }

    pub(super) fn wait(self: &Arc<Self>, seen: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        loop {
            self.renew_listing(&mut state);
            let version = Self::version_in(&mut state);
            let remaining = deadline.saturating_duration_since(Instant::now());
            if version != seen || remaining.is_zero() {
                return version;
            }
            self.changed
                .wait_for(&mut state, remaining.min(Duration::from_secs(1)));
        }
    }
}

/// The failure of a listing, as [`CallFailure::Unlisted`] if the server supports none: a peer that serves a
/// cache composition answers INTERNAL.
fn cannot_list(failure: CallFailure) -> CallFailure {
    match failure {
        CallFailure::Failed(FailureKind::Unsupported, why) => CallFailure::Unlisted(why),
        CallFailure::Failed(FailureKind::Other, why)
            if why.to_ascii_lowercase().contains("implemented") =>
        {
            CallFailure::Unlisted(why)
        }
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_are_remembered_are_bounded() {
        let mut state = ServerRootsState::new();
        for number in 0..100_000 {
            state.remember(format!("{number}").as_bytes(), None);
        }
        assert_eq!(state.known.len(), 100_000);
        state.remember(b"7", None);
        state.remember(b"another", None);
        assert!(state.known.len() <= 2);
        assert!(state.known.contains_key(&b"another"[..]));
    }
}
