//! An addition in one stream, durable and visible at its end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{AHEAD, GrpcServer, MESSAGE};
use crate::castore::{BlobHasher, Digest, Directory, Name, Root};
use crate::nix::PathInfo;
use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::castore_fs::services::ingest_service_client::IngestServiceClient;
use crate::proto::castore_fs::v1::ingest_request::{
    Blob, Blobs, Commit, Directories, End, Part, What,
};
use crate::proto::castore_fs::v1::{IngestRequest, IngestResponse, Root as RootMessage};
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::root_change::RootChange;
use crate::store::upstream;
use crate::store::{AddedTotals, BlobWriter, Error, Ingest};

/// An addition in one stream.
pub(super) struct StreamedIngest {
    line: Arc<UploadStream>,
    next_large: AtomicU32,
}

/// The stream, and the server's response at its end.
struct UploadStream {
    store: Arc<GrpcServer>,
    messages: mpsc::Sender<IngestRequest>,
    ended: Mutex<std::sync::mpsc::Receiver<Result<IngestResponse, CallFailure>>>,
    /// Blobs of this addition.
    sent: Mutex<HashSet<Digest>>,
}

impl StreamedIngest {
    pub(super) fn new(store: Arc<GrpcServer>) -> Self {
        let (messages, receiver) = mpsc::channel(AHEAD);
        let connection = store.endpoint.connection();
        let ended = upstream::start(&store.endpoint.runtime, async move {
            let mut client =
                IngestServiceClient::new(connection).max_encoding_message_size(MAX_MESSAGE_BYTES);
            let answer = client.ingest(ReceiverStream::new(receiver)).await;
            Ok(answer.map_err(CallFailure::from)?.into_inner())
        });
        Self {
            line: Arc::new(UploadStream {
                store,
                messages,
                ended: Mutex::new(ended),
                sent: Mutex::default(),
            }),
            next_large: AtomicU32::new(0),
        }
    }
}

impl UploadStream {
    fn send(&self, what: What) -> Result<(), Error> {
        let message = IngestRequest { what: Some(what) };
        let limit = self.store.endpoint.deadlines.stall;
        // The runtime's timers are on its own threads; this one only waits.
        let runtime = &self.store.endpoint.runtime;
        let sent = runtime
            .block_on(async { tokio::time::timeout(limit, self.messages.send(message)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.broken()),
            Err(_) => Err(self.error(CallFailure::Timeout(limit))),
        }
    }

    /// Why the server has ended the stream.
    fn broken(&self) -> Error {
        match self
            .ended
            .lock()
            .recv()
            .unwrap_or_else(|_| Err(CallFailure::crashed()))
        {
            Err(failure) => self.error(failure),
            Ok(_) => self.error(CallFailure::Failed(
                FailureKind::Other,
                "the server ended the addition by itself".to_owned(),
            )),
        }
    }

    fn error(&self, failure: CallFailure) -> Error {
        self.store.endpoint.error("the addition", failure)
    }
}

impl StreamedIngest {
    /// Which of `digests` the server does not have, by index.
    fn missing_of(&self, digests: Vec<Digest>) -> Result<Vec<usize>, Error> {
        let store = &self.line.store;
        let blobs = store.blobs.clone();
        let asked = store.wait(async move { blobs.missing(&digests).await });
        asked.map_err(|failure| self.line.error(failure))
    }
}

impl Ingest for StreamedIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        if *digest == Digest::empty_blob() || self.line.sent.lock().contains(digest) {
            return Ok(true);
        }
        let (blobs, wanted) = (self.line.store.blobs.clone(), *digest);
        let asked = self
            .line
            .store
            .wait(async move { blobs.has(&wanted).await });
        asked.map_err(|failure| self.line.error(failure))
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        let mut missing = self.missing_of(digests.to_vec())?;
        let sent = self.line.sent.lock();
        let known = |digest: &Digest| *digest == Digest::empty_blob() || sent.contains(digest);
        missing.retain(|&at| digests.get(at).is_some_and(|digest| !known(digest)));
        Ok(missing)
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        let mut new: Vec<_> = {
            let mut sent = self.line.sent.lock();
            let fresh = blobs.iter().filter(|(digest, _)| sent.insert(*digest));
            fresh.collect()
        };
        if new.len() > 1 || new.iter().any(|(_, bytes)| bytes.len() > MESSAGE / 16) {
            // A check costs a round trip; sending a blob that exists already might cost more.
            let digests: Vec<_> = new.iter().map(|(digest, _)| *digest).collect();
            let missing: HashSet<_> = self.missing_of(digests)?.into_iter().collect();
            let mut index = 0;
            new.retain(|_| {
                index += 1;
                missing.contains(&(index - 1))
            });
        }
        let mut batch = Blobs::default();
        let mut bytes = 0;
        for (digest, data) in new {
            if data.len() > MESSAGE {
                let mut writer = self.blob_writer()?;
                writer.write(data)?;
                writer.finish()?;
                continue;
            }
            if bytes + data.len() > MESSAGE {
                self.line.send(What::Blobs(std::mem::take(&mut batch)))?;
                bytes = 0;
            }
            bytes += data.len();
            batch.blobs.push(Blob {
                digest: Bytes::copy_from_slice(digest.as_bytes()),
                data: Bytes::copy_from_slice(data),
            });
        }
        if batch.blobs.is_empty() {
            return Ok(());
        }
        self.line.send(What::Blobs(batch))
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(StreamedWriter {
            line: self.line.clone(),
            number: self.next_large.fetch_add(1, Ordering::Relaxed),
            hasher: BlobHasher::new(),
            size: 0,
            ended: false,
        }))
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        let bytes = Bytes::copy_from_slice(directory.as_bytes());
        self.line.send(What::Directories(Directories {
            directories: vec![bytes],
        }))
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        let name = Bytes::copy_from_slice(name);
        self.line.send(What::RemoveRoot(name))
    }

    /// The server decides, when it has all of the addition.
    fn check_root_name(&self, _: &Name) -> Result<(), Error> {
        Ok(())
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.line.send(What::PutRoot(RootMessage {
            entry: Some(root.into()),
            path_info: path_info.cloned(),
        }))
    }

    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.line.send(What::AddRoot(RootMessage {
            entry: Some(root.into()),
            path_info: path_info.cloned(),
        }))
    }

    fn put_incomplete_root(&self, root: &Root, _: Option<&PathInfo>) -> Result<(), Error> {
        Err(RootChange::needs_content(
            &self.line.store.endpoint.url,
            root,
        ))
    }

    /// There is no lock to release.
    fn release(&self) {}

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        self.line.send(What::Commit(Commit {}))?;
        let limit = self.line.store.endpoint.deadlines.commit;
        let ended = self.line.ended.lock().recv_timeout(limit);
        let added = ended
            .unwrap_or(Err(CallFailure::Timeout(limit)))
            .map_err(|failure| self.line.error(failure))?;
        self.line.store.roots.changed_by_us();
        Ok(AddedTotals {
            blobs: added.blobs,
            blob_bytes: added.blob_bytes,
            directories: added.directories,
        })
    }
}

struct StreamedWriter {
    line: Arc<UploadStream>,
    number: u32,
    hasher: BlobHasher,
    size: u64,
    ended: bool,
}

impl BlobWriter for StreamedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        for part in bytes.chunks(MESSAGE) {
            self.line.send(What::Part(Part {
                blob: self.number,
                data: Bytes::copy_from_slice(part),
            }))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(Digest, u64), Error> {
        let (digest, _) = std::mem::take(&mut self.hasher).finish();
        self.ended = true;
        self.line.send(What::End(End {
            blob: self.number,
            digest: Bytes::copy_from_slice(digest.as_bytes()),
        }))?;
        self.line.sent.lock().insert(digest);
        Ok((digest, self.size))
    }
}

impl Drop for StreamedWriter {
    fn drop(&mut self) {
        if !self.ended && self.size > 0 {
            // If the message cannot be sent, the addition is broken and leaves nothing in any case.
            let _ = self.line.send(What::End(End {
                blob: self.number,
                digest: Bytes::new(),
            }));
        }
    }
}
