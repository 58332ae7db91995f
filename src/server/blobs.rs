//! Blobs: the field's BlobService, and our PartService.

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::Served;
use super::respond::{Ended, Sender, Stream, answer, ask, digest, not_found, status, stream};
use crate::castore::{Digest, bao_field};
use crate::proto::castore::services::blob_service_server::BlobService;
use crate::proto::castore::v1::{
    BlobChunk, PutBlobResponse, ReadBlobRequest, StatBlobRequest, StatBlobResponse,
};
use crate::proto::castore_fs::services::part_service_server::PartService;
use crate::proto::castore_fs::v1::{MissingRequest, MissingResponse, ReadPartRequest};
use crate::store::{Error, Object};

/// Bytes in a message of a blob: large enough that the cost of a message (a few microseconds)
/// vanishes, small enough that the first byte does not wait for the last.
const PIECE: u64 = 256 << 10;
/// Digests in one question.
const MAX_QUESTIONS: usize = 4096;

#[tonic::async_trait]
impl BlobService for Served {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let store = self.store.clone();
        answer(async move {
            let failed = |error: Error| status(&error);
            let size = store.blob_size(&digest).await.map_err(failed)?;
            let size = size.ok_or_else(|| not_found(Object::Blob, &digest))?;
            let mut bao = Bytes::new();
            if request.send_bao
                && let Some(groups) = store.group_table(&digest, size).await.map_err(failed)?
            {
                bao = bao_field::encode(size, &groups).into();
            }
            // No chunks: the blob is one chunk, itself. Whoever can use parts asks PartService.
            let chunks = Vec::new();
            Ok(Response::new(StatBlobResponse { chunks, bao }))
        })
        .await
    }

    type ReadStream = Stream<BlobChunk>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let served = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let store = served.store.clone();
            let size = ask(async move { store.blob_size(&digest).await }).await?;
            let size = size.ok_or_else(|| not_found(Object::Blob, &digest))?;
            served.send_blob(&sender, &digest, size, 0..size).await
        })))
    }

    async fn put(
        &self,
        request: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        let mut request = request.into_inner();
        let store = self.writable()?;
        answer(async move {
            let failed = |error: Error| status(&error);
            let ingest = store.ingest().map_err(failed)?;
            let mut writer = ingest.blob_writer().map_err(failed)?;
            while let Some(chunk) = request.message().await? {
                writer.write(&chunk.data).map_err(failed)?;
            }
            let (digest, _) = writer.finish().map_err(failed)?;
            ingest.commit().map_err(failed)?;
            Ok(Response::new(PutBlobResponse {
                digest: Bytes::copy_from_slice(digest.as_bytes()),
            }))
        })
        .await
    }
}

#[tonic::async_trait]
impl PartService for Served {
    type ReadStream = Stream<BlobChunk>;

    async fn read(
        &self,
        request: Request<ReadPartRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let end = request
            .offset
            .checked_add(request.length)
            .map(|end| end.min(request.size))
            .ok_or_else(|| Status::invalid_argument("offset + length overflow"))?;
        let served = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let part = request.offset..end;
            if part.is_empty() {
                let store = served.store.clone();
                let found = ask(async move { store.has_blob(&digest).await }).await?;
                return if found {
                    Ok(())
                } else {
                    Err(not_found(Object::Blob, &digest).into())
                };
            }
            served.send_blob(&sender, &digest, request.size, part).await
        })))
    }

    async fn missing(
        &self,
        request: Request<MissingRequest>,
    ) -> Result<Response<MissingResponse>, Status> {
        let request = request.into_inner();
        if request.digests.len() > MAX_QUESTIONS {
            return Err(Status::invalid_argument(format!(
                "{} digests are more than {MAX_QUESTIONS}",
                request.digests.len()
            )));
        }
        let store = self.store.clone();
        answer(async move {
            let mut missing = Vec::new();
            for (index, bytes) in request.digests.iter().enumerate() {
                let digest = digest(bytes)?;
                let found = store.has_blob(&digest).await;
                if !found.map_err(|error| status(&error))? {
                    missing.push(index as u32);
                }
            }
            Ok(Response::new(MissingResponse { missing }))
        })
        .await
    }
}

impl Served {
    async fn send_blob(
        &self,
        sender: &Sender<BlobChunk>,
        digest: &Digest,
        size: u64,
        part: std::ops::Range<u64>,
    ) -> Result<(), Ended> {
        let mut at = part.start;
        while at < part.end {
            let length = PIECE.min(part.end - at) as usize;
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
            sender.send(BlobChunk { data }).await?;
        }
        Ok(())
    }

    /// The store, if it may be added to.
    pub(super) fn writable(&self) -> Result<std::sync::Arc<dyn crate::store::Store>, Status> {
        if self.writable {
            Ok(self.store.clone())
        } else {
            Err(Status::permission_denied(
                "this server is read-only; `castore-fs serve --writable` takes additions",
            ))
        }
    }
}
