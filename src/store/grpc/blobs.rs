//! Blobs from a server: what it offers of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryFutureExt;
use tokio::runtime::Handle;
use tonic::Code;

use super::endpoint::{Connection, Endpoint, Rest};
use crate::castore::bao_field::{self, BaoFieldError};
use crate::castore::{Digest, GroupTable};
use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::castore::services::blob_service_client::BlobServiceClient;
use crate::proto::castore::v1::{BlobChunk, ReadBlobRequest, StatBlobRequest, StatBlobResponse};
use crate::proto::castore_fs::services::part_service_client::PartServiceClient;
use crate::proto::castore_fs::v1::{MissingRequest, ReadPartRequest};
use crate::store::failure::{Failure, found};
use crate::store::segments::{Part, Sink, Source};
use crate::store::{Damage, Object};

/// Digests in one question.
const MAX_QUESTIONS: usize = 4096;

/// The blobs of a server, without any cache.
#[derive(Debug)]
pub(super) struct ServerBlobs {
    endpoint: Arc<Endpoint>,
    /// The server has no parts of blobs, or no tables: whole blobs then.
    whole_only: AtomicBool,
}

#[async_trait]
impl Source for ServerBlobs {
    fn runtime(&self) -> &Handle {
        &self.endpoint.runtime
    }

    fn lied(&self, object: Object, digest: &Digest, damage: Damage) -> Failure {
        self.endpoint.lied(object, digest, damage)
    }

    async fn whole(&self, digest: &Digest, sink: Sink<'_>) -> Result<bool, Failure> {
        let Some(mut next) = found(self.read_whole(digest).await)? else {
            return Ok(false);
        };
        while let Some((chunk, mut rest)) = next {
            sink(chunk.data)?;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        Ok(true)
    }

    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Failure> {
        if self.whole_only.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(answer) = self.stat(digest, true).await? else {
            return Ok(None);
        };
        bao_field::decode(&answer.bao, digest, size).map_err(|error| {
            let damage = match error {
                BaoFieldError::Size { expected, actual } => Damage::WrongSize { expected, actual },
                BaoFieldError::Groups(error) => Damage::Groups(error),
            };
            self.endpoint.lied(Object::Blob, digest, damage)
        })
    }

    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<Part, Failure> {
        if self.whole_only.load(Ordering::Relaxed) {
            return Ok(Part::Unavailable);
        }
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let answer = self.endpoint.stream(|connection| {
            let request = ReadPartRequest {
                digest: asked.clone(),
                size,
                offset: start,
                length,
            };
            async move { part_client(connection).read(request).await }
        });
        match answer.and_then(|stream| collect(stream, length)).await {
            Err(failure) if failure.is(Code::Unimplemented) => {
                self.whole_only.store(true, Ordering::Relaxed);
                Ok(Part::Unavailable)
            }
            answer => Ok(found(answer)?.map_or(Part::Absent, Part::Found)),
        }
    }
}

impl ServerBlobs {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Arc<Self> {
        let whole_only = AtomicBool::new(false);
        Arc::new(Self {
            endpoint,
            whole_only,
        })
    }

    async fn read_whole(
        &self,
        digest: &Digest,
    ) -> Result<Option<(BlobChunk, Rest<BlobChunk>)>, Failure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        self.endpoint
            .stream(|connection| {
                let digest = asked.clone();
                async move { client(connection).read(ReadBlobRequest { digest }).await }
            })
            .await
    }

    async fn stat(&self, digest: &Digest, bao: bool) -> Result<Option<StatBlobResponse>, Failure> {
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let answer = self.endpoint.call(|connection| {
            let request = StatBlobRequest {
                digest: asked.clone(),
                send_chunks: false,
                send_bao: bao,
            };
            async move { Ok(client(connection).stat(request).await?.into_inner()) }
        });
        found(answer.await)
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, Failure> {
        Ok(self.stat(digest, false).await?.is_some())
    }

    /// Which of `digests` the server does not have, by index.
    pub(super) async fn missing(&self, digests: &[Digest]) -> Result<Vec<usize>, Failure> {
        let mut missing = Vec::new();
        for (chunk, digests) in digests.chunks(MAX_QUESTIONS).enumerate() {
            let asked: Vec<_> = digests
                .iter()
                .map(|digest| Bytes::copy_from_slice(digest.as_bytes()))
                .collect();
            let answer = self.endpoint.call(|connection| {
                let digests = asked.clone();
                async move {
                    let mut client = part_client(connection);
                    Ok(client
                        .missing(MissingRequest { digests })
                        .await?
                        .into_inner())
                }
            });
            let base = chunk * MAX_QUESTIONS;
            missing.extend(
                answer
                    .await?
                    .missing
                    .into_iter()
                    .map(|at| base + at as usize),
            );
        }
        Ok(missing)
    }

    /// The blob's size; from a server that does not say, by reading it.
    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        let Some(answer) = self.stat(digest, true).await? else {
            return Ok(None);
        };
        if let Some(size) = bao_field::size(&answer.bao) {
            return Ok(Some(size));
        }
        let sizes = answer.chunks.iter().map(|chunk| chunk.size);
        if let Some(size) = sizes.reduce(u64::saturating_add) {
            return Ok(Some(size));
        }
        let mut size = 0;
        let mut next = self.read_whole(digest).await?;
        while let Some((chunk, mut rest)) = next {
            size += chunk.data.len() as u64;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        Ok(Some(size))
    }
}

/// All of a stream that should be `expected` bytes long; gives up soon after it is longer.
async fn collect(
    stream: Option<(BlobChunk, Rest<BlobChunk>)>,
    expected: u64,
) -> Result<Bytes, Failure> {
    let Some((first, mut rest)) = stream else {
        return Ok(Bytes::new());
    };
    let Some(second) = rest.next().await? else {
        return Ok(first.data);
    };
    let mut all = BytesMut::from(&first.data[..]);
    all.extend_from_slice(&second.data);
    while all.len() as u64 <= expected
        && let Some(next) = rest.next().await?
    {
        all.extend_from_slice(&next.data);
    }
    Ok(all.freeze())
}

fn client(connection: Connection) -> BlobServiceClient<Connection> {
    BlobServiceClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn part_client(connection: Connection) -> PartServiceClient<Connection> {
    PartServiceClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
