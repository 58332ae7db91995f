//! A server of the castore protocol with switchable faults.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use castore_fs::castore::{Digest, Name, Node, NodeRef, SymlinkTarget};
use castore_fs::proto::RawDirectory;
use castore_fs::proto::castore::services::blob_service_server::{BlobService, BlobServiceServer};
use castore_fs::proto::castore::services::directory_service_server::{
    DirectoryService, DirectoryServiceServer,
};
use castore_fs::proto::castore::v1::*;
use castore_fs::proto::castore_fs::services::root_service_server::{
    RootService, RootServiceServer,
};
use castore_fs::proto::castore_fs::v1::{
    GetRootRequest, ListRootsRequest, Root as RootMessage, RootsVersion, WatchRootsRequest,
};
use castore_fs::store::{MemoryStore, Store};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio_stream::Stream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    Honest,
    /// A bit is wrong in every blob and Directory.
    Flips,
    /// Half of every blob.
    Truncates,
    /// Every blob and more.
    Exceeds,
    /// Messages without content, without end.
    Empty,
    /// A byte a second.
    Drips,
    /// Bytes without end, Directories that nothing refers to, and changes of the roots.
    Endless,
    /// Every blob in one message.
    Together,
    /// Silent, until it is released.
    Hangs,
    /// Half of every blob, then nothing more.
    Stalls,
    /// Half of every blob, then an error.
    Resets,
    /// An error at once.
    Refuses,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
struct Services {
    store: MemoryStore,
    habit: Arc<Mutex<Habit>>,
    calls: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    let_go: tokio::sync::watch::Sender<bool>,
}

/// The server, for as long as it lives.
pub(crate) struct HostileServer {
    services: Services,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl HostileServer {
    /// Serves `store`.
    pub(crate) fn start(store: &MemoryStore, habit: Habit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = Self {
            services: Services {
                store: store.clone(),
                habit: Arc::new(Mutex::new(habit)),
                calls: Arc::default(),
                sent: Arc::default(),
                let_go: tokio::sync::watch::Sender::new(false),
            },
            address: listener.local_addr().unwrap(),
            runtime: None,
        };
        server.listen(listener);
        server
    }

    fn listen(&mut self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let services = self.services.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(BlobServiceServer::new(services.clone()))
                .add_service(DirectoryServiceServer::new(services.clone()))
                .add_service(RootServiceServer::new(services))
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
                .await
        });
        self.runtime = Some(runtime);
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc+http://{}", self.address)
    }

    /// From here on it answers so.
    pub(crate) fn be(&self, habit: Habit) {
        *self.services.habit.lock() = habit;
    }

    /// Answers what hangs.
    pub(crate) fn let_go(&self) {
        self.services.let_go.send_replace(true);
    }

    /// Calls that it got.
    pub(crate) fn calls(&self) -> u64 {
        self.services.calls.load(Ordering::Relaxed)
    }

    /// Messages of blobs that it sent.
    pub(crate) fn sent(&self) -> u64 {
        self.services.sent.load(Ordering::Relaxed)
    }

    /// Dies: all connections break, and nothing listens.
    pub(crate) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }

    /// Whether it has not died, or has come back.
    pub(crate) fn is_alive(&self) -> bool {
        self.runtime.is_some()
    }

    /// Comes back, if its address is free by now.
    pub(crate) fn revive(&mut self) {
        if self.runtime.is_none()
            && let Ok(listener) = TcpListener::bind(self.address)
        {
            self.listen(listener);
        }
    }
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Services {
    async fn begin(&self) -> Result<Habit, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let habit = *self.habit.lock();
        match habit {
            Habit::Hangs => {
                let mut waits = self.let_go.subscribe();
                let _ = waits.wait_for(|gone| *gone).await;
                Ok(Habit::Honest)
            }
            Habit::Refuses => Err(Status::unavailable("not now")),
            habit => Ok(habit),
        }
    }
}

fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 4;
    }
    bytes
}

#[tonic::async_trait]
impl BlobService for Services {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        let habit = self.begin().await?;
        let digest = Digest::try_from(&request.into_inner().digest[..]);
        let digest = digest.map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.store.blob_size(&digest).await {
            Ok(Some(_)) => Ok(Response::new(StatBlobResponse::default())),
            _ if habit == Habit::Endless => Ok(Response::new(StatBlobResponse::default())),
            _ => Err(Status::not_found("no such blob")),
        }
    }

    type ReadStream = Answers<BlobChunk>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let habit = self.begin().await?;
        let digest = Digest::try_from(&request.into_inner().digest[..]);
        let digest = digest.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let size = self.store.blob_size(&digest).await.ok().flatten();
        let size = size.unwrap_or_default();
        let read = self.store.read(&digest, size, 0, size as usize).await;
        let blob = match read {
            Ok(Some(bytes)) => bytes.to_vec(),
            _ if habit == Habit::Endless => Vec::new(),
            _ => return Err(Status::not_found("no such blob")),
        };
        let buffers = |bytes: &[u8]| -> Vec<Result<BlobChunk, Status>> {
            let buffers = bytes.chunks(64 << 10).map(|buffer| {
                let data = Bytes::copy_from_slice(buffer);
                Ok(BlobChunk { data })
            });
            buffers.collect()
        };
        let empty = || Ok(BlobChunk::default());
        let answer: Answers<BlobChunk> = match habit {
            Habit::Flips => Box::pin(stream::iter(buffers(&flipped(blob)))),
            Habit::Truncates => Box::pin(stream::iter(buffers(&blob[..blob.len() / 2]))),
            Habit::Exceeds => Box::pin(stream::iter(buffers(&[blob, vec![1; 100_000]].concat()))),
            // Without end, but the connection has to hear that it is not wanted any more.
            Habit::Empty => Box::pin(stream::repeat_with(empty).then(|message| async move {
                tokio::task::yield_now().await;
                message
            })),
            Habit::Endless => {
                let data = Bytes::from(vec![0; 64 << 10]);
                Box::pin(stream::repeat_with(move || {
                    Ok(BlobChunk { data: data.clone() })
                }))
            }
            Habit::Together => {
                let whole = BlobChunk { data: blob.into() };
                Box::pin(stream::once(async move { Ok(whole) }))
            }
            Habit::Drips => {
                let bytes = stream::iter(blob.into_iter().map(|byte| vec![byte]));
                Box::pin(bytes.then(|data| async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok(BlobChunk { data: data.into() })
                }))
            }
            Habit::Stalls => {
                let half = buffers(&blob[..blob.len() / 2]);
                Box::pin(stream::iter(half).chain(stream::pending()))
            }
            Habit::Resets => {
                let mut half = buffers(&blob[..blob.len() / 2]);
                half.push(Err(Status::unavailable("gone")));
                Box::pin(stream::iter(half))
            }
            Habit::Honest | Habit::Hangs | Habit::Refuses => Box::pin(stream::iter(buffers(&blob))),
        };
        let sent = self.sent.clone();
        Ok(Response::new(Box::pin(answer.inspect(move |_| {
            sent.fetch_add(1, Ordering::Relaxed);
        }))))
    }

    async fn put(
        &self,
        _: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        Err(Status::permission_denied("read only"))
    }
}

#[tonic::async_trait]
impl DirectoryService for Services {
    type GetStream = Answers<RawDirectory>;

    async fn get(
        &self,
        request: Request<GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let habit = self.begin().await?;
        let request = request.into_inner();
        let Some(get_directory_request::ByWhat::Digest(digest)) = request.by_what else {
            return Err(Status::invalid_argument("no digest"));
        };
        let digest = Digest::try_from(&digest[..]);
        let digest = digest.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (mut queue, mut seen, mut found) = (vec![digest], HashSet::new(), Vec::new());
        while let Some(digest) = queue.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let Ok(Some(directory)) = self.store.directory(&digest).await else {
                return Err(Status::not_found("no such directory"));
            };
            let bytes = directory.as_bytes().to_vec();
            let bytes = match habit {
                Habit::Flips => flipped(bytes),
                _ => bytes,
            };
            found.push(Ok(RawDirectory(bytes.into())));
            if request.recursive {
                queue.extend(directory.iter().filter_map(|entry| match entry.node {
                    NodeRef::Directory { digest, .. } => Some(digest),
                    _ => None,
                }));
            }
        }
        let found = stream::iter(found);
        if habit != Habit::Endless {
            return Ok(Response::new(Box::pin(found)));
        }
        let (sent, mut number) = (self.sent.clone(), 0u64);
        Ok(Response::new(Box::pin(found.chain(stream::repeat_with(
            move || {
                number += 1;
                sent.fetch_add(1, Ordering::Relaxed);
                let name = Name::new(format!("n{number}").as_bytes()).unwrap();
                let target = SymlinkTarget::new(b"target").unwrap();
                let entries = vec![(name, Node::Symlink { target })];
                let directory = castore_fs::castore::Directory::from_entries(entries).unwrap();
                Ok(RawDirectory(directory.as_bytes().to_vec().into()))
            },
        )))))
    }

    async fn put(
        &self,
        _: Request<Streaming<RawDirectory>>,
    ) -> Result<Response<PutDirectoryResponse>, Status> {
        Err(Status::permission_denied("read only"))
    }
}

#[tonic::async_trait]
impl RootService for Services {
    async fn get(&self, request: Request<GetRootRequest>) -> Result<Response<RootMessage>, Status> {
        self.begin().await?;
        match self.store.root(&request.into_inner().name).await {
            Ok(Some(root)) => Ok(Response::new(RootMessage {
                entry: Some((&root).into()),
                path_info: None,
            })),
            _ => Err(Status::not_found("no such root")),
        }
    }

    type ListStream = Answers<RootMessage>;

    async fn list(
        &self,
        _: Request<ListRootsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let habit = self.begin().await?;
        if habit == Habit::Endless {
            let mut number = 0u64;
            return Ok(Response::new(Box::pin(stream::repeat_with(move || {
                number += 1;
                let entry = entry::Entry::Symlink(SymlinkEntry {
                    name: format!("n{number}").into(),
                    target: vec![b'x'; 4000].into(),
                });
                Ok(RootMessage {
                    entry: Some(Entry { entry: Some(entry) }),
                    path_info: None,
                })
            }))));
        }
        let roots = self.store.roots().await.unwrap();
        let roots: Vec<_> = roots
            .iter()
            .map(|root| {
                Ok(RootMessage {
                    entry: Some(root.into()),
                    path_info: None,
                })
            })
            .collect();
        Ok(Response::new(Box::pin(stream::iter(roots))))
    }

    type WatchStream = Answers<RootsVersion>;

    async fn watch(
        &self,
        _: Request<WatchRootsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if *self.habit.lock() == Habit::Endless {
            let mut version = 0;
            let changes = stream::repeat_with(move || {
                version += 1;
                let instance = 1;
                Ok(RootsVersion { instance, version })
            });
            return Ok(Response::new(Box::pin(changes.then(|change| async move {
                // One at a time: those that come together count once.
                tokio::time::sleep(Duration::from_millis(1)).await;
                change
            }))));
        }
        let version = RootsVersion {
            instance: 1,
            version: 1,
        };
        let silence = stream::pending();
        Ok(Response::new(Box::pin(
            stream::once(async move { Ok(version) }).chain(silence),
        )))
    }
}
