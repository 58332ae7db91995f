//! An addition by the common methods, each durable by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{AHEAD, GrpcServer, MESSAGE};
use crate::castore::{BlobHasher, Digest, Directory, Name, Root};
use crate::nix::{self, PathInfo};
use crate::proto::castore::services::blob_service_client::BlobServiceClient;
use crate::proto::castore::services::directory_service_client::DirectoryServiceClient;
use crate::proto::castore::v1::{BlobChunk, Entry};
use crate::proto::store::services::path_info_service_client::PathInfoServiceClient;
use crate::proto::store::v1::NarInfo;
use crate::proto::{MAX_MESSAGE_BYTES, RawDirectory};
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::missing::{missing, not_put};
use crate::store::root_change::{RootChange, admit};
use crate::store::staged_directories::{StagedDirectories, leaves_first};
use crate::store::{AddedTotals, BlobWriter, Error, Ingest};

/// Blobs in flight at once.
const AT_ONCE: usize = 32;

/// An addition by the common methods.
pub(super) struct PiecewiseIngest {
    store: Arc<GrpcServer>,
    state: Arc<Mutex<PiecewiseStaged>>,
    slots: Arc<tokio::sync::Semaphore>,
}

#[derive(Default)]
struct PiecewiseStaged {
    blobs: HashSet<Digest>,
    directories: StagedDirectories,
    roots: Vec<RootChange>,
    added: AddedTotals,
    /// The first put of a blob that failed.
    failure: Option<CallFailure>,
}

impl PiecewiseIngest {
    pub(super) fn new(store: Arc<GrpcServer>) -> Self {
        Self {
            store,
            state: Arc::default(),
            slots: Arc::new(tokio::sync::Semaphore::new(AT_ONCE)),
        }
    }

    fn error(&self, failure: CallFailure) -> Error {
        self.store.endpoint.error("the addition", failure)
    }

    /// Waits for a free slot.
    fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        let permit = self.slots.clone().acquire_owned();
        let permit = async move { permit.await.map_err(|_| CallFailure::crashed()) };
        self.store
            .wait(permit)
            .map_err(|failure| self.error(failure))
    }

    /// Waits until every blob is there.
    fn settle(&self) -> Result<(), Error> {
        let all = self.slots.clone().acquire_many_owned(AT_ONCE as u32);
        let all = async move { all.await.map_err(|_| CallFailure::crashed()) };
        drop(
            self.store
                .wait(all)
                .map_err(|failure| self.error(failure))?,
        );
        match self.state.lock().failure.take() {
            Some(failure) => Err(self.error(failure)),
            None => Ok(()),
        }
    }

    fn put_blob(
        &self,
        digest: Option<Digest>,
        chunks: mpsc::Receiver<BlobChunk>,
    ) -> Result<(), Error> {
        let slot = self.slot()?;
        let connection = self.store.endpoint.connection();
        let (state, limit) = (self.state.clone(), self.store.endpoint.deadlines.commit);
        self.store.endpoint.runtime.spawn(
            async move {
                let _slot = slot;
                let mut client = BlobServiceClient::new(connection);
                let put = client.put(ReceiverStream::new(chunks));
                let failure = match tokio::time::timeout(limit, put).await {
                    Err(_) => CallFailure::Timeout(limit),
                    Ok(Err(status)) => status.into(),
                    Ok(Ok(answer)) => {
                        let stored = answer.into_inner().digest;
                        match digest {
                            Some(digest) if stored != digest.as_bytes()[..] => CallFailure::Failed(
                                FailureKind::Corrupt,
                                format!("the server stored blob {digest} under another digest"),
                            ),
                            _ => return,
                        }
                    }
                };
                state.lock().failure.get_or_insert(failure);
            }
            .boxed(),
        );
        Ok(())
    }

    /// Sends the closure of `root`, leaves first.
    fn put_closure(&self, root: &Directory) -> Result<(), Error> {
        let order = leaves_first(root, |digest| self.directory(digest))?;
        let messages: Vec<_> = order
            .iter()
            .map(|directory| RawDirectory(Bytes::copy_from_slice(directory.as_bytes())))
            .collect();
        let endpoint = self.store.endpoint.clone();
        let asked = self.store.wait(async move {
            endpoint
                .call(|connection| {
                    let messages = messages.clone();
                    async move {
                        let mut client = DirectoryServiceClient::new(connection)
                            .max_encoding_message_size(MAX_MESSAGE_BYTES);
                        client.put(tokio_stream::iter(messages)).await
                    }
                })
                .await
        });
        let answer = asked.map_err(|failure| self.error(failure))?;
        if answer.into_inner().root_digest != root.digest().as_bytes()[..] {
            return Err(self.error(CallFailure::Failed(
                FailureKind::Corrupt,
                format!(
                    "the server stored directory {} under another digest",
                    root.digest()
                ),
            )));
        }
        Ok(())
    }

    /// A Directory of this addition, or one that the server has.
    fn directory(&self, digest: &Digest) -> Result<Directory, Error> {
        if let Some(directory) = self.state.lock().directories.get(digest) {
            return Ok(directory);
        }
        let (directories, wanted) = (self.store.directories.clone(), *digest);
        let asked = self
            .store
            .wait(async move { directories.get(&wanted).await });
        asked
            .map_err(|failure| self.error(failure))?
            .ok_or_else(|| Error::Refused {
                store: self.store.endpoint.url.clone(),
                what: format!("directory {digest}"),
                why: "it was neither added nor there before".to_owned(),
            })
    }

    fn stage(&self, root: &Root, change: RootChange) -> Result<(), Error> {
        self.check_root_name(&root.name)?;
        self.state.lock().roots.push(change);
        Ok(())
    }

    fn put_path_info(&self, root: &Root, path_info: Option<Box<PathInfo>>) -> Result<(), Error> {
        let endpoint = self.store.endpoint.clone();
        let entry = Some(Entry::from(root));
        let anonymous = Entry::anonymous(&root.node);
        let asked = self.store.wait(async move {
            let mut path_info = path_info.map(|info| *info).unwrap_or_default();
            path_info.entry = entry;
            if path_info.narinfo.is_none() {
                // The server reads the whole tree for it.
                let limit = endpoint.deadlines.commit;
                let nar = endpoint.call_within(limit, |connection| {
                    let entry = anonymous.clone();
                    async move {
                        let mut client = PathInfoServiceClient::new(connection);
                        Ok(client.calculate_nar(entry).await?.into_inner())
                    }
                });
                let nar = nar.await?;
                path_info.narinfo = Some(NarInfo {
                    nar_size: nar.nar_size,
                    nar_sha256: nar.nar_sha256,
                    ..NarInfo::default()
                });
            }
            endpoint
                .call(|connection| {
                    let path_info = path_info.clone();
                    async move { PathInfoServiceClient::new(connection).put(path_info).await }
                })
                .await
        });
        asked.map_err(|failure| self.error(failure))?;
        Ok(())
    }
}

impl Ingest for PiecewiseIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        if self.state.lock().blobs.contains(digest) {
            return Ok(true);
        }
        let (blobs, wanted) = (self.store.blobs.clone(), *digest);
        let asked = self.store.wait(async move { blobs.has(&wanted).await });
        asked.map_err(|failure| self.error(failure))
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        let wanted = not_put(digests, &self.state.lock().blobs);
        let blobs = self.store.blobs.clone();
        let asked = self.store.wait(missing(wanted, move |digest| {
            let blobs = blobs.clone();
            async move { blobs.has(&digest).await }
        }));
        asked.map_err(|failure| self.error(failure))
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        let missing = self.missing_blobs(&digests)?;
        for (digest, data) in missing.iter().filter_map(|&at| blobs.get(at)) {
            {
                let mut state = self.state.lock();
                if !state.blobs.insert(*digest) {
                    continue;
                }
                state.added.blobs += 1;
                state.added.blob_bytes += data.len() as u64;
            }
            let buffers = data.chunks(MESSAGE).map(|buffer| BlobChunk {
                data: Bytes::copy_from_slice(buffer),
            });
            let (sender, receiver) = mpsc::channel(buffers.len().max(1));
            for buffer in buffers {
                // There is room for all of them, so this cannot fail.
                let _ = sender.try_send(buffer);
            }
            drop(sender);
            self.put_blob(Some(*digest), receiver)?;
        }
        Ok(())
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        let file = tempfile::tempfile().map_err(|error| {
            self.error(CallFailure::BufferFile(std::env::temp_dir(), error.kind()))
        })?;
        Ok(Box::new(PiecewiseWriter {
            addition: Self {
                store: self.store.clone(),
                state: self.state.clone(),
                slots: self.slots.clone(),
            },
            file,
            hasher: BlobHasher::new(),
            size: 0,
        }))
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.directories.add(directory) {
            state.added.directories += 1;
        }
        Ok(())
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        Err(Error::Refused {
            store: self.store.endpoint.url.clone(),
            what: format!("to remove \"{name}\""),
            why: "the server's protocol knows no removal".to_owned(),
        })
    }

    fn check_root_name(&self, name: &Name) -> Result<(), Error> {
        match nix::output_hash(name) {
            Some(_) => Ok(()),
            None => Err(Error::Refused {
                store: self.store.endpoint.url.clone(),
                what: format!("root \"{name}\""),
                why: "the server knows roots only as Nix store paths (<hash>-<name>), as \
                      `import --nix` names them"
                    .to_owned(),
            }),
        }
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.stage(root, RootChange::put(root, path_info))
    }

    /// The protocol has no such condition: whether the name is taken is asked before.
    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.stage(root, RootChange::add(root, path_info))
    }

    fn put_incomplete_root(&self, root: &Root, _: Option<&PathInfo>) -> Result<(), Error> {
        Err(RootChange::needs_content(&self.store.endpoint.url, root))
    }

    /// There is no lock to release.
    fn release(&self) {}

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        if !self.state.lock().roots.is_empty() {
            // Trees that were there before may lack it, and cannot be read at the server then.
            self.put_blobs(&[(Digest::empty_blob(), b"")])?;
        }
        self.settle()?;
        let tops = {
            let state = self.state.lock();
            let roots = state.roots.iter().filter_map(RootChange::root);
            state.directories.tops_and(roots.map(|root| &root.node))
        };
        for top in tops {
            self.put_closure(&top)?;
        }
        let (roots, added) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.roots), state.added)
        };
        for change in roots {
            match change {
                RootChange::Put(root, info) => self.put_path_info(&root, info)?,
                RootChange::Add(root, info) => {
                    let (roots, name) = (self.store.roots.clone(), root.name.clone());
                    let before = self.store.wait(async move { roots.get(&name).await });
                    let before = before.map_err(|failure| self.error(failure))?;
                    let before = before.map(|before| (before.node, None));
                    admit(&self.store.endpoint.url, before, &root, None)?;
                    self.put_path_info(&root, info)?;
                }
                // None is taken.
                RootChange::Remove(_) => {}
            }
        }
        self.store.roots.changed_by_us();
        Ok(added)
    }
}

/// A large blob: its digest must be known before it is sent, as otherwise a blob that the server
/// has would be sent again.
struct PiecewiseWriter {
    addition: PiecewiseIngest,
    file: std::fs::File,
    hasher: BlobHasher,
    size: u64,
}

impl BlobWriter for PiecewiseWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        use std::io::Write;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| {
            self.addition
                .error(CallFailure::BufferFile(std::env::temp_dir(), error.kind()))
        })
    }

    fn finish(self: Box<Self>) -> Result<(Digest, u64), Error> {
        use std::os::unix::fs::FileExt;
        let Self {
            addition,
            file,
            hasher,
            size,
        } = *self;
        let (digest, _) = hasher.finish();
        if addition.has_blob(&digest)? {
            return Ok((digest, size));
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        addition.put_blob(Some(digest), receiver)?;
        let limit = addition.store.endpoint.deadlines.stall;
        let mut at = 0;
        while at < size {
            let length = (size - at).min(MESSAGE as u64) as usize;
            let mut data = vec![0; length];
            file.read_exact_at(&mut data, at).map_err(|error| {
                addition.error(CallFailure::BufferFile(std::env::temp_dir(), error.kind()))
            })?;
            at += length as u64;
            let chunk = BlobChunk { data: data.into() };
            if !send_within(&addition.store, &sender, chunk, limit)? {
                // The server ended the call; commit returns its error at the latest.
                break;
            }
        }
        let mut state = addition.state.lock();
        state.blobs.insert(digest);
        state.added.blobs += 1;
        state.added.blob_bytes += size;
        Ok((digest, size))
    }
}

fn send_within(
    store: &GrpcServer,
    sender: &mpsc::Sender<BlobChunk>,
    chunk: BlobChunk,
    limit: Duration,
) -> Result<bool, Error> {
    let sent = store
        .endpoint
        .runtime
        .block_on(async { tokio::time::timeout(limit, sender.send(chunk)).await });
    match sent {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => Err(store
            .endpoint
            .error("sending a blob", CallFailure::Timeout(limit))),
    }
}
