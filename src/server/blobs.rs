//! Blobs: BlobService.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tonic::{Request, Response, Status, Streaming};

use super::ServedState;
use super::chunks::{BlobChunks, ChunkLocation};
use super::path_infos::patience;
use super::respond::{
    MessageStream, ResponseSender, StreamEnd, answer, ask, digest, not_found, status, stream,
};
use super::turns::ConnectionTurns;
use super::upload::{BegunUpload, Upload};
use crate::castore::{Digest, bao_field};
use crate::proto::castore::services::blob_service_server::BlobService;
use crate::proto::castore::v1::stat_blob_response::ChunkMeta;
use crate::proto::castore::v1::{
    BlobChunk, PutBlobResponse, ReadBlobRequest, StatBlobRequest, StatBlobResponse,
};
use crate::store::{BlobWriter, Error, Object};

/// Bytes in a message of a blob: large enough that the cost of a message (a few microseconds)
/// vanishes, small enough that the first byte does not wait for the last.
const BUFFER_BYTES: u64 = 256 << 10;
/// Bytes that are written at once.
const TOGETHER: usize = 256 << 10;
/// Bytes of a blob that stay in memory, at most: until there are more, it may be a small one.
const HEAD: usize = 1 << 20;

#[tonic::async_trait]
impl BlobService for ServedState {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        let patience = patience(request.metadata());
        let turns = self.turns(&request);
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let (store, send_bao) = (self.store.clone(), request.send_bao);
        let answered = answer(async move {
            let failed = |error: Error| status(&error);
            let size = store.blob_size(&digest).await.map_err(failed)?;
            let mut bao = Bytes::new();
            if let Some(size) = size
                && send_bao
                && let Some(groups) = store.group_table(&digest, size).await.map_err(failed)?
            {
                bao = bao_field::encode(size, &groups).into();
            }
            Ok((size, bao))
        });
        let (size, bao) = match answered.await {
            Ok((Some(size), bao)) => (size, bao),
            // A chunk exists if its blob does, and is not cut itself.
            Ok((None, _)) => match self.chunk(digest).await? {
                Some(_) => (0, Bytes::new()),
                None => return Err(not_found(Object::Blob, &digest)),
            },
            Err(status) => return Err(status),
        };
        let mut chunks = Vec::new();
        // A client with the table needs no list: it gets one that is known.
        let list = match (request.send_chunks, bao.is_empty()) {
            (false, _) => None,
            (true, false) => self.chunks.known(digest, size),
            (true, true) => self.chunks_in_time(digest, size, patience, turns).await?,
        };
        if let Some(list) = list {
            chunks.extend(list.iter().map(|(digest, size)| ChunkMeta {
                digest: Bytes::copy_from_slice(digest.as_bytes()),
                size: *size,
            }));
        }
        Ok(Response::new(StatBlobResponse { chunks, bao }))
    }

    type ReadStream = MessageStream<BlobChunk>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let served = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let store = served.store.clone();
            let size = ask(async move { store.blob_size(&digest).await }).await?;
            let message = |data| BlobChunk { data };
            if let Some(size) = size {
                let part = 0..size;
                return served
                    .send_blob(&sender, &digest, size, part, message)
                    .await;
            }
            let place = served.chunk(digest).await?;
            let place = place.ok_or_else(|| not_found(Object::Blob, &digest))?;
            let part = place.offset..place.offset + place.length;
            served
                .send_blob(&sender, &place.blob, place.size, part, message)
                .await
        })))
    }

    async fn put(
        &self,
        request: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        let mut upload = Upload::<Option<Box<dyn BlobWriter>>>::of(self, &request)?;
        let mut messages = request.into_inner();
        let mut waiting = Vec::new();
        let (mut bytes, mut head) = (0, 0);
        while let Some(BlobChunk { data }) = messages.message().await? {
            // A hop to another thread costs as much as some thousand bytes.
            let more = (head + data.len()).min(HEAD) - head;
            head += more;
            upload.keep(more)?;
            bytes += data.len();
            waiting.push(data);
            if bytes >= TOGETHER {
                let data = std::mem::take(&mut waiting);
                let write = move |begun: &mut BegunUpload<_>| write(begun, &data);
                upload.work(bytes, write).await?;
                bytes = 0;
            }
        }
        upload
            .work(bytes, move |begun| write(begun, &waiting))
            .await?;
        let finish =
            move |BegunUpload { ingest, kept }: BegunUpload<Option<Box<dyn BlobWriter>>>| {
                let failed = |error: Error| status(&error);
                let writer = kept.ok_or_else(|| Status::internal("the blob went missing"))?;
                let (digest, _) = writer.finish().map_err(failed)?;
                ingest.commit().map_err(failed)?;
                Ok(Response::new(PutBlobResponse {
                    digest: Bytes::copy_from_slice(digest.as_bytes()),
                }))
            };
        upload.finish(finish).await
    }
}

/// Writes the received bytes of a blob.
fn write(
    begun: &mut BegunUpload<Option<Box<dyn BlobWriter>>>,
    data: &[Bytes],
) -> Result<(), Status> {
    let failed = |error: Error| status(&error);
    let writer = match &mut begun.kept {
        Some(writer) => writer,
        None => begun
            .kept
            .insert(begun.ingest.blob_writer().map_err(failed)?),
    };
    data.iter()
        .try_for_each(|data| writer.write(data).map_err(failed))
}

impl ServedState {
    /// The place of the chunk `digest`, if it is one.
    async fn chunk(&self, digest: Digest) -> Result<Option<ChunkLocation>, Status> {
        self.chunks.place(digest).await
    }

    /// The chunks of a blob, for a client that waits for `patience`.
    async fn chunks_in_time(
        &self,
        digest: Digest,
        size: u64,
        patience: Duration,
        turns: ConnectionTurns,
    ) -> Result<Option<BlobChunks>, Status> {
        let chunks = self.chunks.clone();
        // It continues when this client waits no longer.
        let cutting = tokio::spawn(async move { chunks.of(digest, size, &turns).await }.boxed());
        match tokio::time::timeout(patience, cutting).await {
            Ok(Ok(list)) => list,
            Ok(Err(stopped)) => Err(Status::internal(stopped.to_string())),
            Err(_) => Err(Status::unavailable(
                "this blob is being cut into chunks: ask again in a while",
            )),
        }
    }

    /// Sends a part of a blob piece by piece, each as the message that `message` makes of it.
    pub(super) async fn send_blob<T>(
        &self,
        sender: &ResponseSender<T>,
        digest: &Digest,
        size: u64,
        part: std::ops::Range<u64>,
        mut message: impl FnMut(Bytes) -> T,
    ) -> Result<(), StreamEnd> {
        let mut at = part.start;
        while at < part.end {
            sender.wanted().await?;
            let length = BUFFER_BYTES.min(part.end - at) as usize;
            let (store, digest) = (self.store.clone(), *digest);
            let data = ask(async move { store.read(&digest, size, at, length).await }).await?;
            let data = data.ok_or_else(|| not_found(Object::Blob, &digest))?;
            if data.is_empty() {
                return Err(Status::out_of_range(format!(
                    "blob {digest} ends at {at}, before {}",
                    part.end
                ))
                .into());
            }
            at += data.len() as u64;
            sender.send(message(data)).await?;
        }
        Ok(())
    }
}
