//! A castore over gRPC.
//!
//! The client of two protocols: the common one of tvix and snix, in both its generations, and the additional
//! services of castore-fs servers (`docs/protocol.md`). The first calls show which of them an endpoint
//! supports; later calls use that.
//!
//! **Nothing is trusted.** Directories and small blobs are hashed whole. Parts of large blobs are checked
//! against a table that was itself checked against the digest. If a server sends no table, no byte of a blob
//! is returned before all of it was hashed ([`super::extents`]). Wrong bytes are discarded, and the error and
//! the log name the endpoint.
//!
//! **Fetched objects are cached** in memory within bounds; `…_now` answers from there and returns
//! `Wait` otherwise. Fetches run on a runtime of their own ([`super::network`]); all readers of an object share
//! one fetch.

mod address;
mod blobs;
mod directories;
mod endpoint;
mod ingest;
mod payload;
mod roots;
mod status;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;

use self::address::GrpcAddress;
use self::blobs::ServerBlobs;
use self::directories::ServerDirectories;
use self::endpoint::GrpcEndpoint;
use self::roots::ServerRoots;
use super::extents::Extents;
use super::failure::CallFailure;
use super::upstream::{self, UpstreamCalls, UpstreamStore};
use super::{EndpointHealth, Error, Ingest, network};
use crate::castore::{Digest, Directory, Root};
use crate::nix::PathInfo;

/// A store on a gRPC server. Clones share everything.
pub type GrpcStore = UpstreamStore<GrpcServer>;

/// A server as its client sees it: the calls, and what is cached of the answers.
#[derive(Debug)]
pub struct GrpcServer {
    endpoint: Arc<GrpcEndpoint>,
    directories: Arc<ServerDirectories>,
    blobs: Arc<ServerBlobs>,
    extents: Arc<Extents<ServerBlobs>>,
    roots: Arc<ServerRoots>,
}

impl GrpcStore {
    /// Opens the store at `url`: `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT` or
    /// `grpc+unix:/PATH`, with the parameters that `docs/protocol.md` lists. Connects with the
    /// first call, unless the URL has `wait-connect=1`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let address = GrpcAddress::parse(url).map_err(|why| Error::Url {
            url: url.to_owned(),
            why,
        })?;
        Self::open_address(url, address)
    }

    /// As [`open`](Self::open), with `name` in the place of the URL in errors and logs.
    pub fn open_named(url: &str, name: String) -> Result<Self, Error> {
        let mut address = GrpcAddress::parse(url).map_err(|why| Error::Url {
            url: url.to_owned(),
            why,
        })?;
        address.shown = name;
        Self::open_address(url, address)
    }

    fn open_address(url: &str, address: GrpcAddress) -> Result<Self, Error> {
        let failed = |why: String| Error::NotOpened {
            url: url.to_owned(),
            why,
        };
        let token = address.token().map_err(failed)?;
        let runtime = network::handle()
            .map_err(|error| failed(format!("cannot start threads: {error}")))?
            .clone();
        let channel = {
            let _within = runtime.enter();
            address.channel().map_err(failed)?
        };
        let endpoint = GrpcEndpoint::new(address.shown, channel, token, address.deadlines, runtime);
        let blobs = ServerBlobs::new(endpoint.clone());
        let server = GrpcServer {
            directories: ServerDirectories::new(endpoint.clone(), address.cache / 2),
            extents: Extents::new(
                blobs.clone(),
                address.verify,
                address.cache / 2,
                address.download_buffer,
            ),
            blobs,
            roots: ServerRoots::new(endpoint.clone()),
            endpoint,
        };
        if address.wait {
            let blobs = server.blobs.clone();
            let asked = async move { blobs.has(&Digest::empty_blob()).await };
            upstream::wait(&server.endpoint.runtime, asked)
                .map_err(|failure| server.endpoint.error("connecting", failure))?;
        }
        Ok(Self::new(server))
    }

    /// Returns what is wrong with `url`, without connecting.
    pub(crate) fn check_url(url: &str) -> Result<(), String> {
        GrpcAddress::parse(url).map(drop)
    }

    /// Calls to the server so far; each is a round trip.
    pub fn calls(&self) -> u64 {
        self.upstream_calls().endpoint.calls.attempts()
    }
}

#[async_trait]
impl UpstreamCalls for GrpcServer {
    type Blobs = ServerBlobs;

    fn url(&self) -> &str {
        &self.endpoint.url
    }

    fn endpoint_health(&self) -> EndpointHealth {
        self.endpoint.calls.health()
    }

    fn runtime(&self) -> &Handle {
        &self.endpoint.runtime
    }

    fn extents(&self) -> &Arc<Extents<ServerBlobs>> {
        &self.extents
    }

    fn cached_directory(&self, digest: &Digest) -> Option<Directory> {
        self.directories.cached(digest)
    }

    fn known_root(&self, name: &[u8]) -> Option<Option<Root>> {
        self.roots.known(name)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, CallFailure> {
        self.directories.get(digest).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, CallFailure> {
        self.roots.get(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, CallFailure> {
        self.roots.list().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, CallFailure> {
        self.roots.path_info(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, CallFailure> {
        match self.blobs.has_tree(digest).await? {
            Some(whole) => Ok(whole),
            // Writers of the common protocol store a Directory after everything below it: if it is there, so
            // is its tree.
            None => Ok(self.directory(digest).await?.is_some()),
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, CallFailure> {
        self.blobs.has(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, CallFailure> {
        self.blobs.size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, CallFailure> {
        self.blobs.chunks(digest).await
    }

    fn roots_version(&self) -> u64 {
        self.roots.version()
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> u64 {
        self.roots.wait(seen, timeout)
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.roots.keep_listings_fresh(max_age);
    }

    fn ingest(self: Arc<Self>) -> Result<Box<dyn Ingest>, Error> {
        ingest::begin(self)
    }
}
