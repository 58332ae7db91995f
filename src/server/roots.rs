//! Root nodes by name: our RootService.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::Served;
use super::respond::{Stream, answer, status, stream};
use crate::proto::castore_fs::services::root_service_server::RootService;
use crate::proto::castore_fs::v1::{
    GetRootRequest, ListRootsRequest, Root, RootsVersion, WatchRootsRequest,
};

/// How long a watcher's thread waits for a change before it looks whether the client is still
/// there.
const WATCH_STEP: Duration = Duration::from_millis(500);

#[tonic::async_trait]
impl RootService for Served {
    async fn get(&self, request: Request<GetRootRequest>) -> Result<Response<Root>, Status> {
        let name = request.into_inner().name;
        let store = self.store.clone();
        answer(async move {
            let failed = |error| status(&error);
            let root = store.root(&name).await.map_err(failed)?;
            let root = root.ok_or_else(|| {
                Status::not_found(format!("no root node \"{}\"", name.escape_ascii()))
            })?;
            Ok(Response::new(Root {
                entry: Some((&root).into()),
                path_info: store.path_info(&name).await.map_err(failed)?,
            }))
        })
        .await
    }

    type ListStream = Stream<Root>;

    async fn list(
        &self,
        _: Request<ListRootsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store.clone();
        Ok(Response::new(stream(move |sender| async move {
            for root in store.roots().await? {
                let entry = Some((&root).into());
                let path_info = None;
                sender.send(Root { entry, path_info }).await?;
            }
            Ok(())
        })))
    }

    type WatchStream = Stream<RootsVersion>;

    async fn watch(
        &self,
        _: Request<WatchRootsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let Served {
            store,
            instance,
            mut stopping,
            ..
        } = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let mut version = store.roots_version()?;
            sender.send(RootsVersion { instance, version }).await?;
            loop {
                let waiting = {
                    let store = store.clone();
                    tokio::task::spawn_blocking(move || store.wait_for_roots(version, WATCH_STEP))
                };
                let now = tokio::select! {
                    now = waiting => now.map_err(|stopped| Status::internal(stopped.to_string()))??,
                    () = sender.gone() => return Ok(()),
                    _ = stopping.wait_for(|stop| *stop) => {
                        return Err(Status::unavailable("the server is stopping").into());
                    }
                };
                if now != version {
                    version = now;
                    sender.send(RootsVersion { instance, version }).await?;
                }
            }
        })))
    }
}
