//! An upstream: the common part of all kinds.
//!
//! The kinds differ in the calls for objects ([`UpstreamCalls`]): to a gRPC server, or to an object store.
//! The rest is here: answers from memory in place, fetches on the network's runtime
//! ([`super::network`]), which the deadlines need, blobs by extent ([`super::extents`]), and
//! errors with the endpoint's name and the request.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use super::extents::{self, BlobSource, Extents};
use super::failure::CallFailure;
use super::{Answer, BackingFile, EndpointHealth, Error, Health, Ingest, Store, StoreUsage};
use crate::castore::{Digest, Directory, GroupTable, Printable, Root};
use crate::nix::PathInfo;
use crate::spans;

/// The calls of an upstream.
#[async_trait]
pub(super) trait UpstreamCalls: Debug + Send + Sync + 'static {
    /// The source of blobs.
    type Blobs: BlobSource;

    /// The endpoint's URL without secrets.
    fn url(&self) -> &str;

    /// The endpoint as its calls so far show it.
    fn endpoint_health(&self) -> EndpointHealth;

    /// The runtime of fetches.
    fn runtime(&self) -> &Handle;

    /// The blobs, by extent.
    fn extents(&self) -> &Arc<Extents<Self::Blobs>>;

    /// The Directory `digest`, if it is in memory.
    fn cached_directory(&self, digest: &Digest) -> Option<Directory>;

    /// The cached answer for the root `name`, if it is still valid.
    fn known_root(&self, name: &[u8]) -> Option<Option<Root>>;

    /// As [`Store::directory`].
    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, CallFailure>;

    /// As [`Store::root`].
    async fn root(&self, name: &[u8]) -> Result<Option<Root>, CallFailure>;

    /// As [`Store::roots`].
    async fn roots(&self) -> Result<Vec<Root>, CallFailure>;

    /// As [`Store::path_info`].
    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, CallFailure>;

    /// As [`Store::has_tree`].
    async fn has_tree(&self, digest: &Digest) -> Result<bool, CallFailure>;

    /// Whether the blob `digest` is there.
    async fn has_blob(&self, digest: &Digest) -> Result<bool, CallFailure>;

    /// The size of the blob `digest`, which is not the empty one.
    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, CallFailure>;

    /// As [`Store::chunks`].
    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, CallFailure>;

    /// As [`Store::roots_version`].
    fn roots_version(&self) -> u64;

    /// As [`Store::wait_for_roots`].
    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> u64;

    /// As [`Store::keep_listings_fresh`].
    fn keep_listings_fresh(&self, max_age: Duration);

    /// As [`Store::ingest`].
    fn ingest(self: Arc<Self>) -> Result<Box<dyn Ingest>, Error>;
}

/// An upstream. Clones share everything.
#[derive(Debug)]
pub struct UpstreamStore<B>(Arc<B>);

impl<B> Clone for UpstreamStore<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> UpstreamStore<B> {
    pub(super) fn new(upstream_calls: B) -> Self {
        Self(Arc::new(upstream_calls))
    }

    pub(super) fn upstream_calls(&self) -> &Arc<B> {
        &self.0
    }
}

#[expect(private_bounds, reason = "all of it is private")]
impl<B: UpstreamCalls> UpstreamStore<B> {
    /// Does `work`, named `name`, on the network's runtime; a failure is one of `request`.
    async fn ask<T, F>(
        &self,
        name: &'static str,
        digest: Option<&Digest>,
        request: impl FnOnce() -> String,
        work: impl FnOnce(Arc<B>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallFailure>> + Send + 'static,
    {
        let span = match spans::wanted() {
            true => self.span(name, digest),
            false => Span::none(),
        };
        let work = work(self.0.clone()).instrument(span.clone());
        let done = self.0.runtime().spawn(work.boxed()).await;
        done.unwrap_or_else(|_| Err(CallFailure::crashed()))
            .map_err(|failure| failure.of(self.0.url(), request()))
            .inspect_err(|error| {
                span.record("error", display(error));
            })
    }

    fn span(&self, name: &'static str, digest: Option<&Digest>) -> Span {
        tracing::trace_span!(
            target: spans::TARGET,
            "fetch",
            otel.kind = "client",
            otel.name = name,
            endpoint = self.0.url(),
            digest = digest.map(display),
            blobs = Empty,
            error = Empty,
        )
    }

    fn check_claim(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        extents::check_claim(digest, size).map_err(|failure| failure.of(self.0.url(), "reading"))
    }
}

/// Does `work` on the network's runtime for a thread that blocks.
pub(super) fn wait<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, CallFailure>> + Send + 'static,
) -> Result<T, CallFailure> {
    let answer = start(runtime, work).recv();
    answer.unwrap_or_else(|_| Err(CallFailure::crashed()))
}

/// Starts `work` on the network's runtime; returns a receiver for its outcome.
pub(super) fn start<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> std::sync::mpsc::Receiver<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(
        async move {
            // The waiting caller may be gone.
            let _ = sender.send(work.await);
        }
        .boxed(),
    );
    receiver
}

#[async_trait]
impl<B: UpstreamCalls> Store for UpstreamStore<B> {
    fn url(&self) -> &str {
        self.0.url()
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(Answer::Found(Directory::empty()));
        }
        let cached = self.0.cached_directory(digest);
        Ok(cached.map_or(Answer::Wait, Answer::Found))
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        self.check_claim(digest, size)?;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(Answer::Found(0));
        }
        let buffer = &mut buffer[..length];
        let extents = self.0.extents();
        Ok(match extents.read_now(digest, size, offset, buffer) {
            true => Answer::Found(length),
            false => Answer::Wait,
        })
    }

    fn will_need(&self, blobs: &[(Digest, u64)]) {
        let span = match spans::wanted() {
            true => self.span("fetch ahead", None),
            false => Span::none(),
        };
        span.record("blobs", blobs.len());
        span.in_scope(|| self.0.extents().will_need(blobs));
    }

    fn forget(&self, digest: &Digest, size: u64, offset: u64, length: u64) {
        self.0.extents().forget(digest, size, offset, length);
    }

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        Ok(self.0.known_root(name).map_or(Answer::Wait, Answer::from))
    }

    fn backing_file(&self, _: &Digest, _: u64) -> Result<Option<BackingFile>, Error> {
        Ok(None)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        if let Answer::Found(directory) = self.directory_now(digest)? {
            return Ok(Some(directory));
        }
        let wanted = *digest;
        let request = || format!("reading directory {digest}");
        self.ask(
            "fetch directory",
            Some(digest),
            request,
            move |upstream_calls| async move { upstream_calls.directory(&wanted).await },
        )
        .await
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        self.check_claim(digest, size)?;
        let length = size.saturating_sub(offset).min(length as u64);
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        let wanted = *digest;
        let request = || format!("reading blob {digest}");
        self.ask(
            "fetch blob",
            Some(digest),
            request,
            move |upstream_calls| async move {
                let extents = upstream_calls.extents();
                extents.read(&wanted, size, offset, length).await
            },
        )
        .await
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        let wanted = name.to_vec();
        let request = || format!("looking up root \"{}\"", Printable(name));
        self.ask(
            "look up root",
            None,
            request,
            move |upstream_calls| async move { upstream_calls.root(&wanted).await },
        )
        .await
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let request = || "listing the roots".to_owned();
        self.ask("list roots", None, request, |upstream_calls| async move {
            upstream_calls.roots().await
        })
        .await
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let wanted = name.to_vec();
        let request = || format!("asking about \"{}\"", Printable(name));
        self.ask(
            "ask about path",
            None,
            request,
            move |upstream_calls| async move { upstream_calls.path_info(&wanted).await },
        )
        .await
    }

    async fn incomplete_root(&self, _: &[u8]) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        let wanted = *digest;
        let request = || format!("asking for all of directory {digest}");
        self.ask(
            "ask for tree",
            Some(digest),
            request,
            move |upstream_calls| async move { upstream_calls.has_tree(&wanted).await },
        )
        .await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        // The empty blob too: other programs cannot read a tree with it unless it was put.
        let wanted = *digest;
        let request = || format!("asking for blob {digest}");
        self.ask(
            "ask for blob",
            Some(digest),
            request,
            move |upstream_calls| async move { upstream_calls.has_blob(&wanted).await },
        )
        .await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        if *digest == Digest::empty_blob() {
            return Ok(Some(0));
        }
        let wanted = *digest;
        let request = || format!("asking for blob {digest}");
        self.ask(
            "ask for size",
            Some(digest),
            request,
            move |upstream_calls| async move { upstream_calls.blob_size(&wanted).await },
        )
        .await
    }

    async fn chunks(&self, digest: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        let wanted = *digest;
        let request = || format!("asking for the chunks of blob {digest}");
        self.ask(
            "ask for chunks",
            Some(digest),
            request,
            move |upstream_calls| async move { upstream_calls.chunks(&wanted).await },
        )
        .await
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        self.check_claim(digest, size)?;
        let wanted = *digest;
        let request = || format!("reading blob {digest}");
        self.ask(
            "fetch table",
            Some(digest),
            request,
            move |upstream_calls| async move {
                upstream_calls.extents().group_table(&wanted, size).await
            },
        )
        .await
    }

    /// A server does not report how much it holds, and counting the objects of a bucket takes as
    /// many requests as it has thousands of them.
    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        Ok(None)
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        Vec::new()
    }

    fn health(&self) -> Health {
        Health {
            endpoint: Some(self.0.endpoint_health()),
            ..Health::default()
        }
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(self.0.roots_version())
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        Ok(self.0.wait_for_roots(seen, timeout))
    }

    fn keep_listings_fresh(&self, max_age: Duration) {
        self.0.keep_listings_fresh(max_age);
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        self.0.clone().ingest()
    }
}
