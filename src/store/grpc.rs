//! A castore behind gRPC.
//!
//! The client of two protocols: the common one, in both its generations, and the additional
//! services of castore-fs servers (`docs/protocol.md`). Which of them an endpoint supports is found
//! out by calls, and remembered.
//!
//! **Nothing is trusted.** Directories and small blobs are hashed whole, parts of large blobs
//! checked against a table that was checked against the digest, and if a server sends no table,
//! whole blobs are held back until they are hashed ([`super::segments`]). Wrong bytes are
//! discarded, and the error and the log name the endpoint.
//!
//! **Fetched objects are cached** in memory within bounds; `…_now` answers from there and returns
//! `Wait` otherwise. Fetches run on a runtime of their own ([`super::network`]), one for all
//! readers of an object.

mod address;
mod blobs;
mod directories;
mod endpoint;
mod ingest;
mod payload;
mod roots;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;

use self::address::Address;
use self::blobs::ServerBlobs;
use self::directories::Directories;
use self::endpoint::Endpoint;
use self::roots::Roots;
use super::failure::Failure;
use super::far::{self, Behind, Far};
use super::segments::Segments;
use super::{Error, Ingest, network};
use crate::castore::{Digest, Directory, Root};
use crate::nix::PathInfo;

/// The share of the cache that Directories get.
const DIRECTORIES_SHARE: usize = 4;

/// A store behind a gRPC server. Clones share everything.
pub type GrpcStore = Far<Server>;

/// A server, and cached answers.
#[derive(Debug)]
pub struct Server {
    endpoint: Arc<Endpoint>,
    directories: Arc<Directories>,
    blobs: Arc<ServerBlobs>,
    segments: Arc<Segments<ServerBlobs>>,
    roots: Arc<Roots>,
}

impl GrpcStore {
    /// Opens the store at `url`: `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT` or
    /// `grpc+unix:/PATH`, with the parameters that `docs/protocol.md` lists. Connects with the
    /// first call, unless the URL has `wait-connect=1`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Url {
            url: url.to_owned(),
            why,
        };
        let address = Address::parse(url).map_err(wrong)?;
        let token = address.token().map_err(wrong)?;
        let runtime = network::handle()
            .map_err(|error| wrong(format!("cannot start threads: {error}")))?
            .clone();
        let channel = {
            let _within = runtime.enter();
            address.channel().map_err(wrong)?
        };
        let endpoint = Endpoint::new(address.shown, channel, token, address.deadlines, runtime);
        let blobs = ServerBlobs::new(endpoint.clone());
        let server = Server {
            directories: Directories::new(endpoint.clone(), address.cache / DIRECTORIES_SHARE),
            segments: Segments::new(blobs.clone(), address.verify, address.cache, address.spool),
            blobs,
            roots: Roots::new(endpoint.clone()),
            endpoint,
        };
        if address.wait {
            let blobs = server.blobs.clone();
            let asked = async move { blobs.has(&Digest::empty_blob()).await };
            far::wait(&server.endpoint.runtime, asked)
                .map_err(|failure| server.endpoint.error("connecting", failure))?;
        }
        Ok(Self::new(server))
    }

    /// Returns what is wrong with `url`, without connecting.
    pub(crate) fn check_url(url: &str) -> Result<(), String> {
        Address::parse(url).map(drop)
    }

    /// Calls made to the server so far, each of which costs a round trip.
    pub fn calls(&self) -> u64 {
        self.behind().endpoint.calls()
    }
}

#[async_trait]
impl Behind for Server {
    type Blobs = ServerBlobs;

    fn url(&self) -> &str {
        &self.endpoint.url
    }

    fn runtime(&self) -> &Handle {
        &self.endpoint.runtime
    }

    fn segments(&self) -> &Arc<Segments<ServerBlobs>> {
        &self.segments
    }

    fn directory_here(&self, digest: &Digest) -> Option<Directory> {
        self.directories.here(digest)
    }

    fn known_root(&self, name: &[u8]) -> Option<Option<Root>> {
        self.roots.known(name)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Failure> {
        self.directories.get(digest).await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Failure> {
        self.roots.get(name).await
    }

    async fn roots(&self) -> Result<Vec<Root>, Failure> {
        self.roots.list().await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Failure> {
        self.roots.path_info(name).await
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Failure> {
        match self.blobs.has_tree(digest).await? {
            Some(whole) => Ok(whole),
            // The field's writers put what is below a Directory before it.
            None => Ok(self.directory(digest).await?.is_some()),
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Failure> {
        self.blobs.has(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        self.blobs.size(digest).await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Failure> {
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
