//! Blobs: the field's BlobService.

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::Served;
use super::respond::{Ended, Sender, Stream, answer, ask, digest, not_found, status, stream};
use super::upload::{Begun, Upload};
use crate::castore::{Digest, bao_field};
use crate::proto::castore::services::blob_service_server::BlobService;
use crate::proto::castore::v1::{
    BlobChunk, PutBlobResponse, ReadBlobRequest, StatBlobRequest, StatBlobResponse,
};
use crate::store::{BlobWriter, Error, Object};

/// Bytes in a message of a blob: large enough that the cost of a message (a few microseconds)
/// vanishes, small enough that the first byte does not wait for the last.
const PIECE: u64 = 256 << 10;
/// Bytes that are written at once.
const TOGETHER: usize = 256 << 10;
/// Bytes of a blob that stay in memory, at most: until there are more, it may be a small one.
const HEAD: usize = 1 << 20;

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
            let message = |data| BlobChunk { data };
            served
                .send_blob(&sender, &digest, size, 0..size, message)
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
                let write = move |begun: &mut Begun<_>| write(begun, &data);
                upload.work(bytes, write).await?;
                bytes = 0;
            }
        }
        upload
            .work(bytes, move |begun| write(begun, &waiting))
            .await?;
        let finish = move |Begun { ingest, kept }: Begun<Option<Box<dyn BlobWriter>>>| {
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

/// Writes what came of a blob.
fn write(begun: &mut Begun<Option<Box<dyn BlobWriter>>>, data: &[Bytes]) -> Result<(), Status> {
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

impl Served {
    /// Sends a part of a blob piece by piece, each as the message that `message` makes of it.
    pub(super) async fn send_blob<T>(
        &self,
        sender: &Sender<T>,
        digest: &Digest,
        size: u64,
        part: std::ops::Range<u64>,
        mut message: impl FnMut(Bytes) -> T,
    ) -> Result<(), Ended> {
        let mut at = part.start;
        while at < part.end {
            sender.wanted().await?;
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
            sender.send(message(data)).await?;
        }
        Ok(())
    }
}
