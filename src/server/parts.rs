//! Parts of blobs, and many blobs at once: PartService of castore_fs.v1.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status};

use super::ServedState;
use super::respond::{MessageStream, answer, ask, digest, not_found, status, stream};
use crate::castore::{Digest, ExtentProofs, extent_size};
use crate::proto::castore_fs::services::part_service_server::PartService;
use crate::proto::castore_fs::v1::blobs_together::Blob;
use crate::proto::castore_fs::v1::{
    BlobsTogether, HasTreeRequest, HasTreeResponse, MissingRequest, MissingResponse, PartChunk,
    ReadPartRequest, ReadTogetherRequest,
};
use crate::store::{Answer, Object, Store};

/// Digests in one request.
const MAX_QUESTIONS: usize = 4096;
/// The largest blob that is sent together with others, in bytes.
const MAX_TOGETHER: u64 = 1 << 20;
/// Approximate bytes of blobs in one message: the first need not wait for the last.
const TOGETHER: usize = 128 << 10;
/// Blobs whose proofs are cached: 256 KiB for one of 1 GiB, and never more than 4 MiB.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The proofs of the blobs that were read last.
#[derive(Clone)]
pub(super) struct Proofs(Arc<Mutex<LruCache<(Digest, u64), SharedProofs>>>);

/// Made once for all readers of the blob.
type SharedProofs = Arc<OnceCell<Arc<ExtentProofs>>>;

impl Default for Proofs {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(KEPT))))
    }
}

impl Proofs {
    async fn of(
        &self,
        store: &Arc<dyn Store>,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<ExtentProofs>, Status> {
        let kept = self
            .0
            .lock()
            .get_or_insert((digest, size), SharedProofs::default)
            .clone();
        let made = kept.get_or_try_init(|| async {
            let store = store.clone();
            let table = ask(async move { store.group_table(&digest, size).await }).await?;
            let table = table.ok_or_else(|| not_found(Object::Blob, &digest))?;
            Ok::<_, Status>(Arc::new(ExtentProofs::new(&table)))
        });
        made.await.cloned()
    }
}

#[tonic::async_trait]
impl PartService for ServedState {
    type ReadStream = MessageStream<PartChunk>;

    async fn read(
        &self,
        request: Request<ReadPartRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let ReadPartRequest {
            digest: wanted,
            size,
            offset,
            length,
        } = request.into_inner();
        let digest = digest(&wanted)?;
        let end = offset
            .checked_add(length)
            .map(|end| end.min(size))
            .ok_or_else(|| Status::invalid_argument("offset + length overflow"))?;
        let served = self.clone();
        Ok(Response::new(stream(move |sender| async move {
            let store = served.store.clone();
            let has = ask(async move { store.blob_size(&digest).await }).await?;
            match has {
                None => return Err(not_found(Object::Blob, &digest).into()),
                Some(has) if has != size => {
                    let why = format!("blob {digest} has {has} bytes, not {size}");
                    return Err(Status::out_of_range(why).into());
                }
                Some(_) => {}
            }
            if offset >= end {
                return Ok(());
            }
            let mut proof = Bytes::new();
            let part = extent_size(size);
            if size > part && end - offset == part.min(size.saturating_sub(offset)) {
                let proofs = served.proofs.of(&served.store, digest, size).await?;
                proof = proofs.proof(offset).map(Bytes::from).unwrap_or_default();
            }
            let message = |data| PartChunk {
                data,
                proof: std::mem::take(&mut proof),
            };
            served
                .send_blob(&sender, &digest, size, offset..end, message)
                .await
        })))
    }

    type ReadTogetherStream = MessageStream<BlobsTogether>;

    async fn read_together(
        &self,
        request: Request<ReadTogetherRequest>,
    ) -> Result<Response<Self::ReadTogetherStream>, Status> {
        let request = request.into_inner();
        if request.blobs.len() > MAX_QUESTIONS {
            return Err(too_many(request.blobs.len()));
        }
        let mut wanted = Vec::with_capacity(request.blobs.len());
        for (index, blob) in request.blobs.iter().enumerate() {
            if blob.size <= MAX_TOGETHER {
                wanted.push((index as u32, digest(&blob.digest)?, blob.size));
            }
        }
        let store = self.store.clone();
        Ok(Response::new(stream(move |sender| async move {
            let claims: Vec<_> = wanted
                .iter()
                .map(|(_, digest, size)| (*digest, *size))
                .collect();
            store.will_need(&claims);
            let mut wanted = wanted.into_iter();
            loop {
                sender.wanted().await?;
                let store = store.clone();
                let batch;
                (wanted, batch) = answer(async move {
                    let batch = some_together(store.as_ref(), &mut wanted).await;
                    Ok((wanted, batch))
                })
                .await?;
                match batch {
                    Some(blobs) => sender.send(BlobsTogether { blobs }).await?,
                    None => return Ok(()),
                }
            }
        })))
    }

    async fn missing(
        &self,
        request: Request<MissingRequest>,
    ) -> Result<Response<MissingResponse>, Status> {
        let request = request.into_inner();
        if request.digests.len() > MAX_QUESTIONS {
            return Err(too_many(request.digests.len()));
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

    async fn has_tree(
        &self,
        request: Request<HasTreeRequest>,
    ) -> Result<Response<HasTreeResponse>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let store = self.store.clone();
        let whole = ask(async move { store.has_tree(&digest).await }).await?;
        Ok(Response::new(HasTreeResponse { whole }))
    }
}

fn too_many(count: usize) -> Status {
    Status::invalid_argument(format!(
        "{count} blobs are more than {MAX_QUESTIONS}, the limit of one request"
    ))
}

/// The next of the blobs wanted, as many as one message holds; nothing when all have been sent.
async fn some_together(
    store: &dyn Store,
    wanted: &mut impl Iterator<Item = (u32, Digest, u64)>,
) -> Option<Vec<Blob>> {
    let mut blobs = Vec::new();
    let mut bytes = 0;
    let mut any = false;
    // One for all: a thousand sizes that are only claimed cost no more than the largest.
    let mut buffer = Vec::new();
    for (index, digest, size) in wanted {
        any = true;
        let length = size as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let buffer = &mut buffer[..length];
        let data = match store.read_now(&digest, size, 0, buffer) {
            Ok(Answer::Found(length)) if length == buffer.len() => {
                Some(Bytes::copy_from_slice(buffer))
            }
            Ok(Answer::Wait) => store
                .read(&digest, size, 0, size as usize)
                .await
                .ok()
                .flatten(),
            // A separate request for it gets the error.
            _ => None,
        };
        if let Some(data) = data {
            bytes += data.len();
            blobs.push(Blob { index, data });
        }
        if bytes >= TOGETHER {
            break;
        }
    }
    any.then_some(blobs)
}
