//! Blobs from a server.
//!
//! castore-fs servers prove parts and send many small blobs in one answer. Other servers list
//! chunks, which can be fetched side by side, and return whole blobs.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use super::endpoint::{CallConnection, GrpcEndpoint, StreamRest, USUAL_MESSAGE};
use crate::castore::bao_field::{self, BaoFieldError};
use crate::castore::{Digest, GroupTable, extent_size};
use crate::proto::castore::services::blob_service_client::BlobServiceClient;
use crate::proto::castore::v1::{BlobChunk, ReadBlobRequest, StatBlobRequest, StatBlobResponse};
use crate::proto::castore_fs::services::part_service_client::PartServiceClient;
use crate::proto::castore_fs::v1::read_together_request::Wanted;
use crate::proto::castore_fs::v1::{
    HasTreeRequest, MissingRequest, PartChunk, ReadPartRequest, ReadTogetherRequest,
};
use crate::store::chunked::{ChunkFetches, ChunkSource};
use crate::store::extents::{BlobClaim, BlobSink, BlobSource, ExtentAnswer, SmallBlobSink};
use crate::store::failure::{CallFailure, FailureKind, found};
use crate::store::pace::Payload;
use crate::store::{Damage, Object};

/// Digests in one request.
const MAX_QUESTIONS: usize = 4096;
/// The largest blob whose bytes are counted to learn its size, in bytes: needed only for servers
/// that neither list chunks nor report sizes.
const MOST_COUNTED: u64 = 64 << 30;

/// The blobs of a server, without any cache.
#[derive(Debug)]
pub(in crate::store) struct ServerBlobs {
    endpoint: Arc<GrpcEndpoint>,
    chunked: ChunkFetches<ServerChunks>,
}

/// Chunk lists and chunks of a server.
#[derive(Debug)]
struct ServerChunks(Arc<GrpcEndpoint>);

#[async_trait]
impl ChunkSource for ServerChunks {
    fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure {
        self.0.calls.sent_corrupt(object, digest, damage)
    }

    async fn stat(&self, digest: &Digest) -> Result<Option<StatBlobResponse>, CallFailure> {
        stat(&self.0, digest, StatCall::Chunks).await
    }

    async fn chunk(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, CallFailure> {
        let asked = async { collect(read_whole(&self.0, digest).await?, limit).await };
        found(asked.await)
    }
}

#[async_trait]
impl BlobSource for ServerBlobs {
    fn runtime(&self) -> &Handle {
        &self.endpoint.runtime
    }

    fn sent_corrupt(&self, object: Object, digest: &Digest, damage: Damage) -> CallFailure {
        self.endpoint.calls.sent_corrupt(object, digest, damage)
    }

    fn has_sent_corrupt(&self) -> bool {
        self.endpoint.calls.has_sent_corrupt()
    }

    async fn whole(
        &self,
        digest: &Digest,
        size: u64,
        sink: BlobSink<'_>,
    ) -> Result<bool, CallFailure> {
        // The chunk list of a small blob costs a round trip, and the blob comes at once anyway.
        if size > extent_size(size) && self.endpoint.is_field_only() {
            let Some(list) = self.chunked.list(digest).await? else {
                return Ok(false);
            };
            if list.size() == Some(size) {
                self.chunked.whole(digest, &list, sink).await?;
                return Ok(true);
            }
        }
        let Some(mut next) = found(read_whole(&self.endpoint, digest).await)? else {
            return Ok(false);
        };
        while let Some((chunk, mut rest)) = next {
            sink(chunk.data)?;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        Ok(true)
    }

    async fn table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, CallFailure> {
        if self.endpoint.is_field_only() {
            return Ok(None);
        }
        let Some(answer) = stat(&self.endpoint, digest, StatCall::Table).await? else {
            return Ok(None);
        };
        bao_field::decode(&answer.bao, digest, size).map_err(|error| {
            let damage = match error {
                BaoFieldError::Size { expected, actual } => Damage::WrongSize { expected, actual },
                BaoFieldError::Groups(error) => Damage::Groups(error),
            };
            self.endpoint
                .calls
                .sent_corrupt(Object::Blob, digest, damage)
        })
    }

    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
        chunks_suffice: bool,
    ) -> Result<ExtentAnswer, CallFailure> {
        if !self.endpoint.is_field_only() {
            let part = self.proven_extent(digest, size, start, length).await?;
            if !matches!(part, ExtentAnswer::Unavailable) {
                return Ok(part);
            }
        }
        if !chunks_suffice {
            return Ok(ExtentAnswer::Unavailable);
        }
        let Some(list) = self.chunked.list(digest).await? else {
            return Ok(ExtentAnswer::Absent);
        };
        if list.chunks.is_empty() {
            return Ok(ExtentAnswer::Unavailable);
        }
        self.chunked.part(digest, &list, size, start, length).await
    }

    async fn together(
        &self,
        wanted: &[BlobClaim],
        sink: SmallBlobSink<'_>,
    ) -> Result<(), CallFailure> {
        if self.endpoint.is_field_only() {
            return Ok(());
        }
        let blobs: Vec<_> = wanted
            .iter()
            .map(|(digest, size)| Wanted {
                digest: Bytes::copy_from_slice(digest.as_bytes()),
                size: *size,
            })
            .collect();
        let answer = self.endpoint.stream(|connection| {
            let request = ReadTogetherRequest {
                blobs: blobs.clone(),
            };
            async move { part_client(connection).read_together(request).await }
        });
        let mut next = match answer.await {
            Err(failure) if failure.is(FailureKind::Unsupported) => {
                self.endpoint.knows_the_field_only();
                return Ok(());
            }
            answer => answer?,
        };
        let mut remaining = wanted.iter().map(|(_, size)| *size).sum::<u64>();
        while let Some((message, mut rest)) = next {
            let Some(still_remaining) = remaining.checked_sub(message.payload()) else {
                return Err(too_much("it sent more bytes than requested"));
            };
            remaining = still_remaining;
            for blob in message.blobs {
                sink(blob.index as usize, blob.data);
            }
            next = rest.next().await?.map(|message| (message, rest));
        }
        Ok(())
    }
}

impl ServerBlobs {
    pub(super) fn new(endpoint: Arc<GrpcEndpoint>) -> Arc<Self> {
        Arc::new(Self {
            chunked: ChunkFetches::new(Arc::new(ServerChunks(endpoint.clone()))),
            endpoint,
        })
    }

    /// A part with its proof, from a server that supports that.
    async fn proven_extent(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        length: u64,
    ) -> Result<ExtentAnswer, CallFailure> {
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
        let part = async {
            let Some((PartChunk { data, proof }, rest)) = answer.await? else {
                return Ok::<_, CallFailure>((Bytes::new(), Bytes::new()));
            };
            let data = rest_of(data, rest, |chunk: PartChunk| chunk.data, length).await?;
            Ok((data, proof))
        };
        match part.await {
            Err(failure) if failure.is(FailureKind::Unsupported) => {
                self.endpoint.knows_the_field_only();
                Ok(ExtentAnswer::Unavailable)
            }
            answer => {
                let part = found(answer)?;
                Ok(part.map_or(ExtentAnswer::Absent, |(data, proof)| {
                    ExtentAnswer::Proven(data, proof)
                }))
            }
        }
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, CallFailure> {
        Ok(stat(&self.endpoint, digest, StatCall::Presence)
            .await?
            .is_some())
    }

    /// Whether the server has the Directory and everything below it; nothing if it cannot report it.
    pub(super) async fn has_tree(&self, digest: &Digest) -> Result<Option<bool>, CallFailure> {
        if self.endpoint.is_field_only() {
            return Ok(None);
        }
        let asked = Bytes::copy_from_slice(digest.as_bytes());
        let answer = self.endpoint.call(|connection| {
            let digest = asked.clone();
            async move {
                let mut client = part_client(connection);
                let answer = client.has_tree(HasTreeRequest { digest }).await?;
                Ok(answer.into_inner().whole)
            }
        });
        match answer.await {
            Err(failure) if failure.is(FailureKind::Unsupported) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Which of `digests` the server does not have, by index.
    pub(super) async fn missing(&self, digests: &[Digest]) -> Result<Vec<usize>, CallFailure> {
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

    /// The chunks that the server lists of the blob.
    pub(super) async fn chunks(
        &self,
        digest: &Digest,
    ) -> Result<Option<Vec<(Digest, u64)>>, CallFailure> {
        let list = self.chunked.list(digest).await?;
        let list = list.filter(|list| !list.chunks.is_empty());
        Ok(list.map(|list| list.chunks.clone()))
    }

    /// The blob's size; from a server that does not report it, by reading the blob.
    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, CallFailure> {
        let Some(answer) = stat(&self.endpoint, digest, StatCall::All).await? else {
            return Ok(None);
        };
        if let Some(size) = bao_field::size(&answer.bao) {
            return Ok(Some(size));
        }
        let sizes = answer.chunks.iter().map(|chunk| chunk.size);
        if let Some(size) = sizes.reduce(u64::saturating_add) {
            return Ok(Some(size));
        }
        let mut count = CountedBytes::up_to(MOST_COUNTED);
        let mut next = read_whole(&self.endpoint, digest).await?;
        while let Some((chunk, mut rest)) = next {
            count.add(chunk.data.len() as u64)?;
            next = rest.next().await?.map(|chunk| (chunk, rest));
        }
        Ok(Some(count.bytes))
    }
}

/// Bytes that are counted as they come, up to a limit.
struct CountedBytes {
    bytes: u64,
    most: u64,
}

impl CountedBytes {
    fn up_to(most: u64) -> Self {
        Self { bytes: 0, most }
    }

    fn add(&mut self, bytes: u64) -> Result<(), CallFailure> {
        self.bytes += bytes;
        match self.bytes > self.most {
            true => Err(too_much(&format!(
                "more than the {} bytes that are counted",
                self.most
            ))),
            false => Ok(()),
        }
    }
}

/// The call for information about a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatCall {
    Presence,
    Chunks,
    Table,
    All,
}

async fn stat(
    endpoint: &GrpcEndpoint,
    digest: &Digest,
    ask: StatCall,
) -> Result<Option<StatBlobResponse>, CallFailure> {
    let asked = Bytes::copy_from_slice(digest.as_bytes());
    let answer = endpoint.large(|limit| {
        let asked = &asked;
        async move {
            let answer = endpoint.call(|connection| {
                let request = StatBlobRequest {
                    digest: asked.clone(),
                    send_chunks: matches!(ask, StatCall::Chunks | StatCall::All),
                    send_bao: matches!(ask, StatCall::Table | StatCall::All),
                };
                let mut client = client(connection).max_decoding_message_size(limit);
                async move { Ok(client.stat(request).await?.into_inner()) }
            });
            answer.await
        }
    });
    found(answer.await)
}

/// The error for an answer that is larger than any right one.
fn too_much(why: &str) -> CallFailure {
    CallFailure::Failed(FailureKind::Exhausted, why.to_owned())
}

async fn read_whole(
    endpoint: &Arc<GrpcEndpoint>,
    digest: &Digest,
) -> Result<Option<(BlobChunk, StreamRest<BlobChunk>)>, CallFailure> {
    let asked = Bytes::copy_from_slice(digest.as_bytes());
    endpoint
        .stream(|connection| {
            let digest = asked.clone();
            async move { client(connection).read(ReadBlobRequest { digest }).await }
        })
        .await
}

/// All of a stream that should be no longer than `limit`; fails soon after it is longer.
async fn collect(
    stream: Option<(BlobChunk, StreamRest<BlobChunk>)>,
    limit: u64,
) -> Result<Bytes, CallFailure> {
    match stream {
        Some((first, rest)) => rest_of(first.data, rest, |chunk| chunk.data, limit).await,
        None => Ok(Bytes::new()),
    }
}

/// `first` and what comes after it.
async fn rest_of<M: Payload>(
    first: Bytes,
    mut rest: StreamRest<M>,
    data: impl Fn(M) -> Bytes,
    limit: u64,
) -> Result<Bytes, CallFailure> {
    let Some(second) = rest.next().await? else {
        return Ok(first);
    };
    let mut all = BytesMut::from(&first[..]);
    all.extend_from_slice(&data(second));
    while all.len() as u64 <= limit
        && let Some(next) = rest.next().await?
    {
        all.extend_from_slice(&data(next));
    }
    Ok(all.freeze())
}

fn client(connection: CallConnection) -> BlobServiceClient<CallConnection> {
    BlobServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE)
}

fn part_client(connection: CallConnection) -> PartServiceClient<CallConnection> {
    PartServiceClient::new(connection).max_decoding_message_size(USUAL_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_has_an_end() {
        let mut count = CountedBytes::up_to(MOST_COUNTED);
        for _ in 0..64 {
            count.add(1 << 30).unwrap();
        }
        assert_eq!(count.bytes, 64 << 30);
        let failure = count.add(1).unwrap_err();
        assert!(failure.is(FailureKind::Exhausted));
    }
}
