//! A castore behind gRPC.
//!
//! The client of two protocols: the field's, in both its generations, and on top of it what our own
//! servers offer (`docs/protocol.md`). Which of them an endpoint speaks is found out by asking,
//! and remembered.
//!
//! **Nothing is believed.** Directories and small blobs are hashed whole, parts of large blobs
//! checked against a table that was checked against the digest, and where a server sends no table,
//! whole blobs are held back until they were hashed ([`super::segments`]). What fails is thrown away, the
//! error names the endpoint, and the log says so.
//!
//! **What was fetched stays**, in memory and within bounds; `…_now` answers from there and says
//! `Wait` otherwise. Fetches run on a runtime of their own ([`super::network`]), one for all who
//! want the same object.

mod address;
mod blobs;
mod directories;
mod endpoint;
mod ingest;
mod roots;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::address::Address;
use self::blobs::ServerBlobs;
use self::directories::Directories;
use self::endpoint::Endpoint;
use self::roots::Roots;
use super::failure::Failure;
use super::segments::{self, Segments};
use super::{Answer, Error, Ingest, Store, Usage, network};
use crate::castore::{Digest, Directory, GroupTable, Root};
use crate::nix::PathInfo;

/// The share of the cache that Directories get.
const DIRECTORIES_SHARE: usize = 4;

/// A store behind a gRPC server. Clones share everything.
#[derive(Clone, Debug)]
pub struct GrpcStore {
    endpoint: Arc<Endpoint>,
    directories: Arc<Directories>,
    blobs: Arc<ServerBlobs>,
    segments: Arc<Segments<ServerBlobs>>,
    roots: Arc<Roots>,
}

impl GrpcStore {
    /// Opens the store at `url`: `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT` or
    /// `grpc+unix:/PATH`, with the parameters that `docs/protocol.md` lists. Connects when first
    /// asked, unless the URL says `wait-connect=1`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Url {
            // The query may name files that are nobody's business, but holds no secret.
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
        let store = Self {
            directories: Directories::new(endpoint.clone(), address.cache / DIRECTORIES_SHARE),
            segments: Segments::new(blobs.clone(), address.cache, address.spool),
            blobs,
            roots: Roots::new(endpoint.clone()),
            endpoint,
        };
        if address.wait {
            let blobs = store.blobs.clone();
            let asked = store.run(async move { blobs.has(&Digest::empty_blob()).await });
            asked
                .recv()
                .unwrap_or_else(|_| Err(Failure::crashed()))
                .map_err(|failure| store.endpoint.error("connecting", failure))?;
        }
        Ok(store)
    }

    /// Says what is wrong with `url`, without connecting.
    pub(super) fn check_url(url: &str) -> Result<(), String> {
        Address::parse(url).map(drop)
    }

    /// Calls made to the server so far: what a round trip is paid for.
    pub fn calls(&self) -> u64 {
        self.endpoint.calls()
    }

    /// Runs `work` on the network's runtime, for a thread that blocks.
    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.endpoint.runtime.spawn(async move {
            // Whoever waited may be gone.
            let _ = sender.send(work.await);
        });
        receiver
    }

    /// Runs `work` on the network's runtime, whose clock the deadlines need.
    async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let task = self.endpoint.runtime.spawn(work);
        task.await.unwrap_or_else(|_| Err(Failure::crashed()))
    }
}

#[async_trait]
impl Store for GrpcStore {
    fn url(&self) -> &str {
        &self.endpoint.url
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        if *digest == Digest::empty_blob() {
            let empty = Directory::decode(Vec::new()).expect("nothing is the empty Directory");
            return Ok(Answer::Found(empty));
        }
        let here = self.directories.here(digest);
        Ok(here.map_or(Answer::Wait, Answer::Found))
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.check_empty(digest, size)?;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(Answer::Found(0));
        }
        let buffer = &mut buffer[..length];
        Ok(match self.segments.read_now(digest, size, offset, buffer) {
            true => Answer::Found(length),
            false => Answer::Wait,
        })
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.roots.known(name).map_or(Answer::Wait, Answer::from))
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if let Answer::Found(directory) = self.directory_now(digest)? {
            return Ok(Some(directory));
        }
        let (directories, wanted) = (self.directories.clone(), *digest);
        self.spawn(async move { directories.get(&wanted).await })
            .await
            .map_err(|failure| {
                self.endpoint
                    .error(format!("reading directory {digest}"), failure)
            })
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.check_empty(digest, size)?;
        let length = size.saturating_sub(offset).min(length as u64);
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        let (segments, wanted) = (self.segments.clone(), *digest);
        self.spawn(async move { segments.read(&wanted, size, offset, length).await })
            .await
            .map_err(|failure| {
                self.endpoint
                    .error(format!("reading blob {digest}"), failure)
            })
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let (roots, wanted) = (self.roots.clone(), name.to_vec());
        self.spawn(async move { roots.get(&wanted).await })
            .await
            .map_err(|failure| {
                let name = name.escape_ascii();
                self.endpoint
                    .error(format!("looking up root \"{name}\""), failure)
            })
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let roots = self.roots.clone();
        self.spawn(async move { roots.list().await })
            .await
            .map_err(|failure| self.endpoint.error("listing the roots", failure))
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let (roots, wanted) = (self.roots.clone(), name.to_vec());
        self.spawn(async move { roots.path_info(&wanted).await })
            .await
            .map_err(|failure| {
                let name = name.escape_ascii();
                self.endpoint
                    .error(format!("asking about \"{name}\""), failure)
            })
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(true);
        }
        let (blobs, wanted) = (self.blobs.clone(), *digest);
        self.spawn(async move { blobs.has(&wanted).await })
            .await
            .map_err(|failure| {
                self.endpoint
                    .error(format!("asking for blob {digest}"), failure)
            })
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let (blobs, wanted) = (self.blobs.clone(), *digest);
        self.spawn(async move { blobs.size(&wanted).await })
            .await
            .map_err(|failure| {
                self.endpoint
                    .error(format!("asking for blob {digest}"), failure)
            })
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let (segments, wanted) = (self.segments.clone(), *digest);
        self.spawn(async move { segments.group_table(&wanted, size).await })
            .await
            .map_err(|failure| {
                self.endpoint
                    .error(format!("reading blob {digest}"), failure)
            })
    }

    /// A server does not say how much it holds.
    fn usage(&self) -> Result<Option<Usage>, Error> {
        Ok(None)
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(self.roots.version())
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        Ok(self.roots.wait(seen, timeout))
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        ingest::begin(self)
    }
}

impl GrpcStore {
    fn check_empty(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        segments::check_empty(digest, size)
            .map_err(|failure| self.endpoint.error("reading", failure))
    }
}
