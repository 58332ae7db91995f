//! A server of the field: the castore protocol and nothing of ours, with the habits that were
//! observed of the real ones: it has the empty blob only if that was put, computes NARs of nodes without a
//! name, takes path infos with a narinfo under names of store paths, and messages of 4 MiB.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, NodeRef, Root};
use castore_fs::nix::{PathInfo, output_hash};
use castore_fs::proto::castore::services::blob_service_server::{BlobService, BlobServiceServer};
use castore_fs::proto::castore::services::directory_service_server::{
    DirectoryService, DirectoryServiceServer,
};
use castore_fs::proto::castore::v1::*;
use castore_fs::proto::store::services::path_info_service_server::{
    PathInfoService, PathInfoServiceServer,
};
use castore_fs::proto::store::v1::{
    CalculateNarResponse, GetPathInfoRequest, ListPathInfoRequest, get_path_info_request,
};
use castore_fs::proto::{ProtocolGeneration, RawDirectory, with_generation};
use castore_fs::store::{Blocking, MemoryStore, Store};
use castore_fs::tree::nar::write_nar;
use castore_fs::tree::{TreePath, TreeWalk, export};
use sha2::Digest as _;
use tokio::runtime::Handle;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tower::util::MapRequestLayer;

use kit::server::Server;

/// Bytes of a chunk; a smaller blob is one.
pub(crate) const CHUNK: usize = 300_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Default)]
pub(crate) struct Peer {
    pub store: MemoryStore,
    /// Flips a bit in every blob and chunk.
    pub corrupt_responses: bool,
    /// Answers questions for the chunks of one blob with those of another, each of which is right.
    pub list_of: Option<(Digest, Digest)>,
    /// The chunks that it has listed: they can be read by their digests.
    pub chunks: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    pub blob_reads: Arc<AtomicU64>,
    pub unavailable: Arc<AtomicBool>,
    /// Whether a client put the empty blob.
    pub has_empty: Arc<AtomicBool>,
    /// Additions that were begun: of blobs, Directories and path infos.
    pub puts: Arc<AtomicU64>,
    /// Cannot list, as those that serve a cache.
    pub cannot_list: bool,
    pub listings: Arc<AtomicU64>,
}

impl Peer {
    /// Starts it; `older` for one that has only the older generation's names.
    pub(crate) fn serve(self, older: bool) -> Server {
        Server::of(move |incoming| {
            tonic::transport::Server::builder()
                .layer(MapRequestLayer::new(
                    move |mut request: http::Request<_>| {
                        let uri: http::Uri = std::mem::take(request.uri_mut());
                        *request.uri_mut() = match (older, uri.path().starts_with("/tvix.")) {
                            (true, true) => with_generation(uri, ProtocolGeneration::Current),
                            (false, false) => uri,
                            // A name without a service.
                            _ => "/unknown.Service/Method".parse().unwrap(),
                        };
                        request
                    },
                ))
                .add_service(BlobServiceServer::new(self.clone()))
                .add_service(DirectoryServiceServer::new(self.clone()))
                .add_service(PathInfoServiceServer::new(self))
                .serve_with_incoming(incoming)
        })
    }

    fn up(&self) -> Result<(), Status> {
        if self.unavailable.load(Ordering::Relaxed) {
            return Err(Status::unavailable("down for a moment"));
        }
        Ok(())
    }

    async fn blob(&self, digest: &[u8]) -> Result<Vec<u8>, Status> {
        let digest = Digest::try_from(digest)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Some(chunk) = self.chunks.lock().unwrap().get(&digest) {
            return Ok(chunk.clone());
        }
        if digest == Digest::empty_blob() && !self.has_empty.load(Ordering::Relaxed) {
            return Err(Status::not_found("blob"));
        }
        let size = self.store.blob_size(&digest).await.unwrap();
        let size = size.ok_or_else(|| Status::not_found("blob"))?;
        let read = self.store.read(&digest, size, 0, size as usize).await;
        Ok(read.unwrap().unwrap().to_vec())
    }
}

#[tonic::async_trait]
impl BlobService for Peer {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        self.up()?;
        let mut wanted = request.into_inner().digest;
        if let Some((of, other)) = &self.list_of
            && of.as_bytes()[..] == wanted
        {
            wanted = Bytes::copy_from_slice(other.as_bytes());
        }
        let blob = self.blob(&wanted).await?;
        let mut known = self.chunks.lock().unwrap();
        let chunks = match blob.len() {
            0..CHUNK => Vec::new(),
            _ => blob
                .chunks(CHUNK)
                .map(|chunk| {
                    let digest = Digest::of(chunk);
                    known.insert(digest, chunk.to_vec());
                    stat_blob_response::ChunkMeta {
                        digest: Bytes::copy_from_slice(digest.as_bytes()),
                        size: chunk.len() as u64,
                    }
                })
                .collect(),
        };
        let bao = Bytes::new();
        Ok(Response::new(StatBlobResponse { chunks, bao }))
    }

    type ReadStream = Answers<BlobChunk>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.up()?;
        self.blob_reads.fetch_add(1, Ordering::Relaxed);
        let mut blob = self.blob(&request.into_inner().digest).await?;
        let middle = blob.len() / 2;
        if self.corrupt_responses
            && let Some(byte) = blob.get_mut(middle)
        {
            *byte ^= 1;
        }
        let chunks: Vec<_> = blob
            .chunks(4096)
            .map(|chunk| {
                let data = Bytes::copy_from_slice(chunk);
                Ok(BlobChunk { data })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn put(
        &self,
        request: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let mut request = request.into_inner();
        let ingest = self.store.ingest().unwrap();
        let mut writer = ingest.blob_writer().unwrap();
        while let Some(chunk) = request.next().await {
            writer.write(&chunk?.data).unwrap();
        }
        let (digest, _) = writer.finish().unwrap();
        ingest.commit().unwrap();
        if digest == Digest::empty_blob() {
            self.has_empty.store(true, Ordering::Relaxed);
        }
        Ok(Response::new(PutBlobResponse {
            digest: Bytes::copy_from_slice(digest.as_bytes()),
        }))
    }
}

#[tonic::async_trait]
impl DirectoryService for Peer {
    type GetStream = Answers<RawDirectory>;

    async fn get(
        &self,
        request: Request<GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        self.up()?;
        let request = request.into_inner();
        let Some(get_directory_request::ByWhat::Digest(digest)) = request.by_what else {
            return Err(Status::invalid_argument("no digest"));
        };
        let mut queue = vec![Digest::try_from(&digest[..]).unwrap()];
        let mut seen = std::collections::HashSet::new();
        let mut answers = Vec::new();
        while let Some(digest) = queue.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let Some(directory) = self.store.directory(&digest).await.unwrap() else {
                if request.recursive {
                    break;
                }
                return Err(Status::not_found("directory"));
            };
            let bytes = Bytes::copy_from_slice(directory.as_bytes());
            answers.push(Ok(RawDirectory(bytes)));
            if request.recursive {
                queue.extend(directory.iter().filter_map(|entry| match entry.node {
                    NodeRef::Directory { digest, .. } => Some(digest),
                    _ => None,
                }));
            }
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn put(
        &self,
        request: Request<Streaming<RawDirectory>>,
    ) -> Result<Response<PutDirectoryResponse>, Status> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let mut request = request.into_inner();
        let ingest = self.store.ingest().unwrap();
        let mut came = std::collections::HashMap::new();
        let mut last = None;
        while let Some(raw) = request.next().await {
            let directory = Directory::decode(Vec::from(raw?.0))
                .map_err(|error| Status::internal(error.to_string()))?;
            for entry in directory.iter() {
                if let NodeRef::Directory { digest, size } = entry.node
                    && came.get(&digest) != Some(&size)
                {
                    return Err(Status::internal("dangling child or wrong size"));
                }
            }
            came.insert(directory.digest(), directory.size());
            ingest.put_directory(&directory).unwrap();
            last = Some(directory.digest());
        }
        ingest.commit().unwrap();
        let last = last.ok_or_else(|| Status::internal("nothing came"))?;
        Ok(Response::new(PutDirectoryResponse {
            root_digest: Bytes::copy_from_slice(last.as_bytes()),
        }))
    }
}

#[tonic::async_trait]
impl PathInfoService for Peer {
    /// Resolves by hash alone, whatever the name.
    async fn get(
        &self,
        request: Request<GetPathInfoRequest>,
    ) -> Result<Response<PathInfo>, Status> {
        self.up()?;
        let Some(get_path_info_request::ByWhat::ByOutputHash(hash)) = request.into_inner().by_what
        else {
            return Err(Status::invalid_argument("no hash"));
        };
        for root in self.store.roots().await.unwrap() {
            if output_hash(&root.name).is_some_and(|other| other[..] == hash[..]) {
                let known = self.store.path_info(&root.name).await.unwrap();
                return Ok(Response::new(PathInfo {
                    entry: Some((&root).into()),
                    ..known.unwrap_or_default()
                }));
            }
        }
        Err(Status::not_found("path info"))
    }

    async fn put(&self, request: Request<PathInfo>) -> Result<Response<PathInfo>, Status> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let path_info = request.into_inner();
        let invalid = |why: &str| Status::invalid_argument(format!("Invalid path info: {why}"));
        let root = path_info
            .entry
            .clone()
            .and_then(|entry| Root::try_from(entry).ok());
        let root = root.ok_or_else(|| invalid("no node"))?;
        if output_hash(&root.name).is_none() {
            return Err(invalid("no store path"));
        }
        let narinfo = path_info.narinfo.as_ref();
        let narinfo = narinfo.ok_or_else(|| invalid("NarInfo field is missing"))?;
        if narinfo.nar_sha256.len() != 32 || narinfo.nar_size == 0 {
            return Err(invalid("the NAR's hash"));
        }
        let ingest = self.store.ingest().unwrap();
        ingest.put_root(&root, Some(&path_info)).unwrap();
        ingest.commit().unwrap();
        Ok(Response::new(path_info))
    }

    async fn calculate_nar(
        &self,
        request: Request<Entry>,
    ) -> Result<Response<CalculateNarResponse>, Status> {
        let mut entry = request.into_inner();
        let name = match &mut entry.entry {
            Some(entry::Entry::Directory(entry)) => &mut entry.name,
            Some(entry::Entry::File(entry)) => &mut entry.name,
            Some(entry::Entry::Symlink(entry)) => &mut entry.name,
            None => return Err(Status::invalid_argument("invalid root node")),
        };
        if !name.is_empty() {
            return Err(Status::invalid_argument("invalid root node"));
        }
        *name = Bytes::from_static(b"x");
        let node = Root::try_from(entry).unwrap().node;
        let has_empty = self.has_empty.load(Ordering::Relaxed);
        let store = Blocking::new(Arc::new(self.store.clone()), Handle::current());
        let rendered = tokio::task::spawn_blocking(move || {
            let mut walk = TreeWalk::new(&store, TreePath::default(), node.clone());
            while let Some(step) = walk.step()? {
                if let NodeRef::File { size: 0, .. } = step.node
                    && !has_empty
                {
                    return Ok(None);
                }
            }
            let mut nar = Vec::new();
            let progress = export::ExportProgress::default();
            write_nar(&store, &TreePath::default(), &node, &mut nar, &progress)?;
            Ok::<_, castore_fs::tree::TreeError>(Some(nar))
        });
        let nar = rendered.await.unwrap();
        let nar = nar.map_err(|error| Status::not_found(error.to_string()))?;
        let nar =
            nar.ok_or_else(|| Status::not_found("unable to find blob, referred to by a node"))?;
        Ok(Response::new(CalculateNarResponse {
            nar_size: nar.len() as u64,
            nar_sha256: Bytes::copy_from_slice(&sha2::Sha256::digest(&nar)),
        }))
    }

    type ListStream = Answers<PathInfo>;

    async fn list(
        &self,
        _: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        if self.cannot_list {
            let refused = Err(Status::internal("storage error: unimplemented"));
            return Ok(Response::new(Box::pin(tokio_stream::once(refused))));
        }
        let roots = self.store.roots().await.unwrap();
        let mut answers = Vec::new();
        for root in roots {
            let known = self.store.path_info(&root.name).await.unwrap();
            answers.push(Ok(PathInfo {
                entry: Some((&root).into()),
                ..known.unwrap_or_default()
            }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }
}
