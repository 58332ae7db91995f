//! Nix store paths: PathInfoService.
//!
//! Other clients accept no PathInfo without a narinfo, and fail as a whole at a listing that has
//! one. So missing NAR hashes are computed: in the background, and for requests for the path.
//! Listings leave out paths without one.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::ServedState;
use super::client_root_changes::{ClientRootChange, check_form, check_nar};
use super::nars::is_incomplete;
use super::respond::{MessageStream, answer, ask, status, stream};
use super::turns::ConnectionTurns;
use super::upload::{DroppedOffThread, check_room};
use crate::castore::{Name, Node, Root};
use crate::nix::{self, NarHash, NarInfo, PathInfo};
use crate::proto::castore::v1::Entry;
use crate::proto::store::services::path_info_service_server::PathInfoService;
use crate::proto::store::v1::{
    CalculateNarResponse, GetPathInfoRequest, ListPathInfoRequest, get_path_info_request::ByWhat,
};
use crate::store::{Error, Store, check_free};

/// How long a client without a deadline waits for a computation.
const PATIENCE: Duration = Duration::from_secs(60);
/// Roots without content that a store keeps, at most: each commit checks all of them.
const MOST_KEPT: usize = 4096;
/// How often it is checked whether content has come, or roots without a narinfo.
const LOOK: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone)]
pub(super) struct PathInfos {
    served: ServedState,
}

impl PathInfos {
    pub(super) fn new(served: ServedState) -> Self {
        Self { served }
    }

    /// The root and path info of the path `hash`.
    async fn known(&self, hash: [u8; 20]) -> Result<Option<(Root, PathInfo)>, Status> {
        let path_infos = self.clone();
        ask(async move {
            let store = path_infos.served.store.as_ref();
            let Some(name) = path_infos.served.paths.all().await?.get(&hash).cloned() else {
                return Ok(None);
            };
            let Some(root) = store.root(&name).await? else {
                return Ok(None);
            };
            let known = path_info(store, &root).await?;
            Ok(Some((root, known)))
        })
        .await
    }

    /// Computes what is lacking of `known`, and puts it into the store if that takes additions.
    async fn complete(
        &self,
        root: Root,
        mut known: PathInfo,
        turns: &ConnectionTurns,
    ) -> Result<PathInfo, Status> {
        let nar = self.served.nars.of(&root.node, turns).await?;
        let stated =
            nix::output_hash(&root.name).and_then(|hash| self.served.incomplete.get(&hash));
        let is_true = |stated: &PathInfo| {
            stated.entry == known.entry
                && stated.narinfo.is_some()
                && check_nar(&root, stated, &nar).is_ok()
        };
        match stated.filter(is_true) {
            // Its content has just come.
            Some(stated) => known = stated,
            None => known.narinfo = Some(narinfo(&nar)),
        }
        if self.served.writable {
            let wanted = ClientRootChange::Add(root, Some(Box::new(known.clone())));
            if let Err(error) = self.put_root(wanted, turns).await {
                // It is known in memory.
                tracing::debug!("cannot keep a NAR's hash: {}", error.message());
            }
        }
        Ok(known)
    }

    /// Adds a root node.
    async fn put_root(
        &self,
        wanted: ClientRootChange,
        turns: &ConnectionTurns,
    ) -> Result<(), Status> {
        let (store, limits) = (self.served.store.clone(), self.served.limits.clone());
        let ingest = turns.work(move || {
            check_room(&limits)?;
            let ingest = store.ingest().map_err(|error| status(&error))?;
            Ok(DroppedOffThread::new(ingest))
        });
        let ingest = ingest.await?;
        let added = self
            .served
            .commit(ingest, vec![wanted], Vec::new(), turns)
            .await;
        added.map(drop)
    }

    /// Takes `info` of `root`, whose content is there or comes later.
    async fn take(
        &self,
        root: Root,
        mut info: PathInfo,
        may_replace: bool,
        turns: &ConnectionTurns,
    ) -> Result<PathInfo, Status> {
        let nar = match self.served.nars.of(&root.node, turns).await {
            Ok(nar) => nar,
            Err(error) if is_incomplete(&error) => {
                return self.keep_incomplete(root, info, turns).await;
            }
            // The node differs from the blob.
            Err(error) if error.code() == Code::DataLoss => {
                return Err(Status::invalid_argument(error.message()));
            }
            Err(error) => return Err(error),
        };
        check_nar(&root, &info, &nar)?;
        info.narinfo.get_or_insert_with(|| narinfo(&nar));
        let wanted = ClientRootChange::new(root, Some(Box::new(info.clone())), may_replace);
        self.put_root(wanted, turns).await?;
        Ok(info)
    }

    /// Keeps `info` of `root` until its content comes.
    async fn keep_incomplete(
        &self,
        root: Root,
        info: PathInfo,
        turns: &ConnectionTurns,
    ) -> Result<PathInfo, Status> {
        let (store, wanted) = (self.served.store.clone(), root.clone());
        ask(async move {
            let before = store.root(&wanted.name).await?;
            check_free(store.url(), before, &wanted)
        })
        .await?;
        if let Some(hash) = nix::output_hash(&root.name) {
            let incomplete = &self.served.incomplete;
            incomplete.put(hash, root.clone(), info.clone());
            if incomplete.count() > MOST_KEPT {
                return Ok(info);
            }
        }
        // A local store protects arriving content from garbage collections. The claims about the
        // NAR are not passed on before they are checked.
        let (store, mut unproven) = (self.served.store.clone(), info.clone());
        unproven.narinfo = None;
        let kept = turns.work(move || {
            let failed = |error: Error| status(&error);
            let ingest = store.ingest().map_err(failed)?;
            let kept = ingest.put_incomplete_root(&root, Some(&unproven));
            kept.map_err(failed)?;
            ingest.commit().map_err(failed).map(drop)
        });
        match kept.await {
            // Other stores keep none.
            Err(error) if error.code() != Code::InvalidArgument => Err(error),
            _ => Ok(info),
        }
    }

    /// Checks until the server stops whether the content of roots has come, and computes what is
    /// missing of others.
    pub(super) async fn look_after(
        self,
        ahead: bool,
        mut version: watch::Receiver<u64>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let turns = self.served.own_turns.clone();
        let mut seen = HashSet::new();
        version.mark_changed();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            for (hash, root, info) in self.served.incomplete.due() {
                match self.served.nars.of(&root.node, &turns).await {
                    Err(error) if error.code() == Code::DataLoss => {}
                    Err(_) => continue,
                    Ok(_) => {}
                }
                if let Err(error) = self.take(root.clone(), info, false, &turns).await {
                    let name = &root.name;
                    tracing::warn!(
                        "the content of \"{name}\" came, and not the root node: {error}"
                    );
                }
                self.served.incomplete.remove(&hash, &root);
            }
            if ahead && version.has_changed().unwrap_or(false) {
                version.mark_unchanged();
                if let Err(error) = self.compute_lacking(&mut seen, &stopping).await {
                    tracing::warn!(
                        "cannot compute the hashes of NARs ahead: {}",
                        error.message()
                    );
                }
            }
        }
    }

    /// Computes the missing narinfos of roots that were not `seen` before.
    async fn compute_lacking(
        &self,
        seen: &mut HashSet<Name>,
        stopping: &watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let paths = self.served.paths.clone();
        let names = ask(async move { paths.all().await }).await?;
        seen.retain(|name| nix::output_hash(name).is_some_and(|hash| names.contains_key(&hash)));
        for (hash, name) in names.iter() {
            if *stopping.borrow() {
                return Ok(());
            }
            if !seen.insert(name.clone()) {
                continue;
            }
            let known = self.known(*hash).await?;
            if let Some((root, known)) = known.filter(|(_, known)| known.narinfo.is_none())
                && let Err(error) = self.complete(root, known, &self.served.own_turns).await
            {
                let why = error.message();
                tracing::warn!("cannot compute the hash of the NAR of \"{name}\": {why}");
            }
        }
        Ok(())
    }
}

/// The path info of `root`, at least its node.
pub(super) async fn path_info(store: &dyn Store, root: &Root) -> Result<PathInfo, Error> {
    let mut known = store.path_info(&root.name).await?.unwrap_or_default();
    known.entry = Some(root.into());
    Ok(known)
}

fn narinfo(nar: &NarHash) -> NarInfo {
    NarInfo {
        nar_size: nar.size,
        nar_sha256: bytes::Bytes::copy_from_slice(&nar.sha256),
        ..NarInfo::default()
    }
}

/// How long the client waits, less the time of the way back.
pub(super) fn patience(metadata: &MetadataMap) -> Duration {
    let stated = metadata.get("grpc-timeout").and_then(|stated| {
        let stated = stated.to_str().ok()?;
        let (digits, unit) = stated.split_at_checked(stated.len().checked_sub(1)?)?;
        let number: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number.saturating_mul(3600)),
            "M" => Duration::from_secs(number.saturating_mul(60)),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    stated.map_or(PATIENCE, |stated| stated.min(PATIENCE) * 9 / 10)
}

#[tonic::async_trait]
impl PathInfoService for PathInfos {
    async fn get(
        &self,
        request: Request<GetPathInfoRequest>,
    ) -> Result<Response<PathInfo>, Status> {
        let patience = patience(request.metadata());
        let turns = self.served.turns(&request);
        let Some(ByWhat::ByOutputHash(hash)) = request.into_inner().by_what else {
            return Err(Status::invalid_argument("the request names no output hash"));
        };
        let hash: [u8; 20] = hash[..].try_into().map_err(|_| {
            Status::invalid_argument(format!("an output hash has 20 bytes, not {}", hash.len()))
        })?;
        let Some((root, known)) = self.known(hash).await? else {
            let incomplete = self.served.incomplete.get(&hash);
            let hash = nix::encode_base32(&hash);
            return incomplete
                .map(Response::new)
                .ok_or_else(|| Status::not_found(format!("no path with the hash {hash}")));
        };
        if known.narinfo.is_some() {
            return Ok(Response::new(known));
        }
        // It continues when this client waits no longer.
        let path_infos = self.clone();
        let computing =
            tokio::spawn(async move { path_infos.complete(root, known, &turns).await }.boxed());
        match tokio::time::timeout(patience, computing).await {
            Ok(Ok(completed)) => completed.map(Response::new),
            Ok(Err(stopped)) => Err(Status::internal(stopped.to_string())),
            Err(_) => Err(Status::unavailable(
                "the hash of this path's NAR is being computed: ask again in a while",
            )),
        }
    }

    async fn put(&self, request: Request<PathInfo>) -> Result<Response<PathInfo>, Status> {
        self.served.may_add(&request)?;
        let may_replace = self.served.rights(&request).replace;
        let turns = self.served.turns(&request);
        let path_info = request.into_inner();
        let refused = |why: String| Status::invalid_argument(why);
        let entry = path_info.entry.clone().unwrap_or_default();
        let root = Root::try_from(entry).map_err(|error| refused(error.to_string()))?;
        if nix::output_hash(&root.name).is_none() {
            return Err(refused(format!(
                "\"{}\" is no base name of a store path",
                root.name
            )));
        }
        check_form(&path_info)?;
        self.take(root, path_info, may_replace, &turns)
            .await
            .map(Response::new)
    }

    async fn calculate_nar(
        &self,
        request: Request<Entry>,
    ) -> Result<Response<CalculateNarResponse>, Status> {
        let turns = self.served.turns(&request);
        let node = node(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let nar = self.served.nars.of(&node, &turns).await?;
        Ok(Response::new(CalculateNarResponse {
            nar_size: nar.size,
            nar_sha256: bytes::Bytes::copy_from_slice(&nar.sha256),
        }))
    }

    type ListStream = MessageStream<PathInfo>;

    async fn list(
        &self,
        _: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let path_infos = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let paths = path_infos.served.paths.clone();
            let names = ask(async move { paths.all().await }).await?;
            let mut names: Vec<_> = names.values().cloned().collect();
            names.sort_unstable();
            for name in names {
                sender.wanted().await?;
                let store = path_infos.served.store.clone();
                let found = answer(async move {
                    let failed = |error: Error| status(&error);
                    let root = store.root(&name).await.map_err(failed)?;
                    match root {
                        Some(root) => {
                            let known = path_info(store.as_ref(), &root).await.map_err(failed)?;
                            Ok(Some((root, known)))
                        }
                        None => Ok(None),
                    }
                });
                let Some((root, mut known)) = found.await? else {
                    continue;
                };
                if known.narinfo.is_none() {
                    let nar = path_infos.served.nars.known(&root.node);
                    known.narinfo = nar.as_ref().map(narinfo);
                }
                if known.narinfo.is_some() {
                    sender.send(known).await?;
                }
            }
            Ok(())
        })))
    }
}

/// The node in `entry`. A request for a node's NAR leaves its name empty.
fn node(mut entry: Entry) -> Result<Node, crate::castore::NodeError> {
    use crate::proto::castore::v1::entry::Entry as Kind;
    let name = match &mut entry.entry {
        Some(Kind::Directory(directory)) => &mut directory.name,
        Some(Kind::File(file)) => &mut file.name,
        Some(Kind::Symlink(symlink)) => &mut symlink.name,
        None => return Err(crate::castore::NodeError::Empty),
    };
    *name = bytes::Bytes::from_static(b"unnamed");
    Ok(Root::try_from(entry)?.node)
}
