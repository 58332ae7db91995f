//! Roots by name: RootService of castore_fs.v1.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::ServedState;
use super::respond::{MessageStream, answer, ask, status, stream};
use crate::castore::Printable;
use crate::proto::castore_fs::services::root_service_server::RootService;
use crate::proto::castore_fs::v1::{
    GetRootRequest, ListRootsRequest, Root, RootsVersion, WatchRootsRequest,
};
use crate::store::Store;

/// How long the thread that waits for changes does so before it checks whether the server still
/// runs.
const WATCH_STEP: Duration = Duration::from_millis(500);

#[tonic::async_trait]
impl RootService for ServedState {
    async fn get(&self, request: Request<GetRootRequest>) -> Result<Response<Root>, Status> {
        let name = request.into_inner().name;
        let store = self.store.clone();
        answer(async move {
            let failed = |error| status(&error);
            let root = store.root(&name).await.map_err(failed)?;
            let root =
                root.ok_or_else(|| Status::not_found(format!("no root \"{}\"", Printable(&name))))?;
            Ok(Response::new(Root {
                entry: Some((&root).into()),
                path_info: store.path_info(&name).await.map_err(failed)?,
            }))
        })
        .await
    }

    type ListStream = MessageStream<Root>;

    async fn list(
        &self,
        _: Request<ListRootsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store.clone();
        Ok(Response::new(stream(move |sender| async move {
            for root in ask(async move { store.roots().await }).await? {
                let entry = Some((&root).into());
                let path_info = None;
                sender.send(Root { entry, path_info }).await?;
            }
            Ok(())
        })))
    }

    type WatchStream = MessageStream<RootsVersion>;

    async fn watch(
        &self,
        _: Request<WatchRootsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let ServedState {
            instance,
            mut stopping,
            version: mut versions,
            ..
        } = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            loop {
                let version = *versions.borrow_and_update();
                sender.send(RootsVersion { instance, version }).await?;
                let stopping = tokio::select! {
                    changed = versions.changed() => changed.is_err(),
                    _ = stopping.wait_for(|stop| *stop) => true,
                    () = sender.gone() => return Ok(()),
                };
                if stopping {
                    return Err(Status::unavailable("the server is stopping").into());
                }
            }
        })))
    }
}

/// The version of the roots of `store`, kept up to date by a thread of its own until the server
/// stops.
pub(super) fn version_of(
    store: Arc<dyn Store>,
    stopping: watch::Receiver<bool>,
) -> watch::Receiver<u64> {
    let failed = |error| tracing::warn!("cannot find out whether roots have changed: {error}");
    let first = store.roots_version().unwrap_or_else(|error| {
        failed(error);
        0
    });
    let (sender, receiver) = watch::channel(first);
    tokio::task::spawn_blocking(move || {
        let mut version = first;
        // An error means that the server is gone.
        while stopping.has_changed().is_ok() && !*stopping.borrow() {
            match store.wait_for_roots(version, WATCH_STEP) {
                Ok(now) if now != version => {
                    version = now;
                    if sender.send(version).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    failed(error);
                    std::thread::sleep(WATCH_STEP);
                }
            }
        }
    });
    receiver
}
