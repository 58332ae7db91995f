//! Nix store paths: the field's PathInfoService.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::Served;
use super::respond::{Stream, answer, ask, status, stream};
use crate::castore::{Name, Root};
use crate::nix::{self, PathInfo};
use crate::proto::castore::v1::Entry;
use crate::proto::store::services::path_info_service_server::PathInfoService;
use crate::proto::store::v1::{
    CalculateNarResponse, GetPathInfoRequest, ListPathInfoRequest, get_path_info_request::ByWhat,
};
use crate::store::{Error, Store};

/// The service, with an index from output hashes to the names that a store knows its roots by.
#[derive(Clone)]
pub(super) struct PathInfos {
    served: Served,
    index: Arc<Mutex<Index>>,
}

#[derive(Default)]
struct Index {
    /// The version of the roots that `names` is of.
    version: Option<u64>,
    names: HashMap<[u8; 20], Name>,
}

impl PathInfos {
    pub(super) fn new(served: Served) -> Self {
        Self {
            served,
            index: Arc::default(),
        }
    }

    /// The name of the root whose Nix hash is `hash`.
    async fn name(&self, hash: &[u8; 20]) -> Result<Option<Name>, Error> {
        let store = &self.served.store;
        let version = store.roots_version()?;
        {
            let index = self.index.lock();
            if index.version == Some(version) {
                return Ok(index.names.get(hash).cloned());
            }
        }
        let names: HashMap<_, _> = store
            .roots()
            .await?
            .into_iter()
            .filter_map(|root| Some((nix::output_hash(&root.name)?, root.name)))
            .collect();
        let name = names.get(hash).cloned();
        *self.index.lock() = Index {
            version: Some(version),
            names,
        };
        Ok(name)
    }
}

/// What is known of `root`, at least its node.
async fn path_info(store: &dyn Store, root: &Root) -> Result<PathInfo, Error> {
    let mut known = store.path_info(&root.name).await?.unwrap_or_default();
    known.entry = Some(root.into());
    Ok(known)
}

#[tonic::async_trait]
impl PathInfoService for PathInfos {
    async fn get(
        &self,
        request: Request<GetPathInfoRequest>,
    ) -> Result<Response<PathInfo>, Status> {
        let Some(ByWhat::ByOutputHash(hash)) = request.into_inner().by_what else {
            return Err(Status::invalid_argument("the request names no output hash"));
        };
        let hash: [u8; 20] = hash[..].try_into().map_err(|_| {
            Status::invalid_argument(format!("an output hash has 20 bytes, not {}", hash.len()))
        })?;
        let path_infos = self.clone();
        answer(async move {
            let failed = |error: Error| status(&error);
            let store = &path_infos.served.store;
            let missing = || {
                let text = nix::encode_base32(&hash);
                Status::not_found(format!("no store path {text}-*"))
            };
            let name = path_infos.name(&hash).await.map_err(failed)?;
            let name = name.ok_or_else(missing)?;
            let root = store.root(&name).await.map_err(failed)?;
            let root = root.ok_or_else(missing)?;
            let known = path_info(store.as_ref(), &root).await.map_err(failed)?;
            Ok(Response::new(known))
        })
        .await
    }

    async fn put(&self, request: Request<PathInfo>) -> Result<Response<PathInfo>, Status> {
        let path_info = request.into_inner();
        let store = self.served.writable()?;
        let refused = |why: String| Status::invalid_argument(why);
        let entry = path_info.entry.clone().unwrap_or_default();
        let root = Root::try_from(entry).map_err(|error| refused(error.to_string()))?;
        if nix::output_hash(&root.name).is_none() {
            return Err(refused(format!(
                "\"{}\" is no base name of a store path",
                root.name
            )));
        }
        if let Some(reference) = path_info.references.iter().find(|hash| hash.len() != 20) {
            let length = reference.len();
            return Err(refused(format!("a reference has 20 bytes, not {length}")));
        }
        answer(async move {
            let failed = |error: Error| status(&error);
            let ingest = store.ingest().map_err(failed)?;
            ingest.put_root(&root, Some(&path_info)).map_err(failed)?;
            ingest.commit().map_err(failed)?;
            Ok(Response::new(path_info))
        })
        .await
    }

    async fn calculate_nar(
        &self,
        request: Request<Entry>,
    ) -> Result<Response<CalculateNarResponse>, Status> {
        let root = named(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let store = self.served.store.clone();
        answer(async move {
            // What was computed when the tree came in need not be computed again.
            let roots = store.roots().await.map_err(|error| status(&error))?;
            for other in roots.iter().filter(|other| other.node == root.node) {
                let known = store.path_info(&other.name).await;
                let narinfo = known
                    .map_err(|error| status(&error))?
                    .and_then(|known| known.narinfo);
                if let Some(narinfo) = narinfo {
                    return Ok(Response::new(CalculateNarResponse {
                        nar_size: narinfo.nar_size,
                        nar_sha256: narinfo.nar_sha256,
                    }));
                }
            }
            Err(Status::unimplemented(
                "this server knows the NAR hash only of what was imported with one",
            ))
        })
        .await
    }

    type ListStream = Stream<PathInfo>;

    async fn list(
        &self,
        _: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.served.store.clone();
        Ok(Response::new(stream(move |sender| async move {
            let asked = store.clone();
            for root in ask(async move { asked.roots().await }).await? {
                if nix::output_hash(&root.name).is_some() {
                    let asked = store.clone();
                    let known = ask(async move { path_info(asked.as_ref(), &root).await });
                    sender.send(known.await?).await?;
                }
            }
            Ok(())
        })))
    }
}

/// The node in `entry`. A caller that only wants to know a node's NAR may leave its name empty.
fn named(mut entry: Entry) -> Result<Root, crate::castore::NodeError> {
    use crate::proto::castore::v1::entry::Entry as Kind;
    let name = match &mut entry.entry {
        Some(Kind::Directory(directory)) => &mut directory.name,
        Some(Kind::File(file)) => &mut file.name,
        Some(Kind::Symlink(symlink)) => &mut symlink.name,
        None => return Err(crate::castore::NodeError::Empty),
    };
    if name.is_empty() {
        *name = Bytes::from_static(b"unnamed");
    }
    Root::try_from(entry)
}
