//! Additions in one stream: IngestService of castore_fs.v1.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::ServedState;
use super::client_root_changes::{ClientRootChange, check_form};
use super::respond::{digest, status};
use super::upload::{BegunUpload, DroppedOffThread, Upload};
use crate::castore::{Digest, Directory, Name, Root};
use crate::proto::castore_fs::services::ingest_service_server::IngestService;
use crate::proto::castore_fs::v1::ingest_request::What;
use crate::proto::castore_fs::v1::{IngestRequest, IngestResponse, Root as RootMessage};
use crate::store::{BlobWriter, Error};

/// Large blobs in progress at once.
const MAX_LARGE: usize = 64;
/// Bytes of a large blob that stay in memory, at most: until there are more, it may be a small one.
const HEAD: usize = 1 << 20;
/// What a Directory takes in memory beside its bytes, about.
const DIRECTORY: usize = 256;

#[tonic::async_trait]
impl IngestService for ServedState {
    async fn ingest(
        &self,
        request: Request<Streaming<IngestRequest>>,
    ) -> Result<Response<IngestResponse>, Status> {
        let may_replace = self.rights(&request).replace;
        let turns = self.turns(&request);
        let mut upload = Upload::<AdditionSideState>::of(self, &request)?;
        let mut messages = request.into_inner();
        // Memory in use, by the client's number of the blob; and for the rest.
        let mut heads: HashMap<u32, usize> = HashMap::new();
        let mut kept = 0;
        loop {
            let message = messages.message().await?;
            let Some(what) = message.and_then(|message| message.what) else {
                // A client checks so whether additions are accepted. What it sent was not added.
                upload.work(0, |_| Ok(())).await?;
                return Err(Status::aborted("the stream ended without a commit"));
            };
            let mut bytes = 0;
            match &what {
                What::Commit(_) => break,
                What::RemoveRoot(_) if !may_replace => {
                    return Err(Status::permission_denied(
                        "root nodes are removed by `castore-fs serve --allow-replace`, or with the \
                         right `replace` in the server's token file",
                    ));
                }
                What::Blobs(blobs) => {
                    bytes = blobs.blobs.iter().map(|blob| blob.data.len()).sum();
                }
                What::Part(part) => {
                    bytes = part.data.len();
                    let head = heads.entry(part.blob).or_default();
                    let more = (*head + bytes).min(HEAD) - *head;
                    *head += more;
                    upload.keep(more)?;
                }
                What::End(end) => {
                    heads.remove(&end.blob);
                    upload.keep_only(kept + heads.values().sum::<usize>());
                }
                What::Directories(directories) => {
                    let directories = directories.directories.iter();
                    bytes = directories.map(|bytes| bytes.len() + DIRECTORY).sum();
                    kept += bytes;
                    upload.keep(bytes)?;
                }
                What::PutRoot(_) | What::AddRoot(_) | What::RemoveRoot(_) => {}
            }
            let wanted = root_change(&what, may_replace)?;
            let memory = wanted.as_ref().map_or(0, ClientRootChange::memory);
            kept += memory;
            upload.keep(memory)?;
            upload
                .work(bytes, move |begun| begun.take(what, wanted))
                .await?;
        }
        let (begun, _held) = upload.end().await?;
        let BegunUpload { ingest, kept } = begun.into_inner()?;
        let ingest = DroppedOffThread::new(ingest);
        if !kept.large.is_empty() {
            DroppedOffThread::new(kept.large);
            return Err(Status::invalid_argument("a blob was not ended"));
        }
        let added = self.commit(ingest, kept.roots, Vec::new(), &turns).await?;
        Ok(Response::new(IngestResponse {
            blobs: added.blobs,
            blob_bytes: added.blob_bytes,
            directories: added.directories,
        }))
    }
}

/// What `what` does to a root node.
fn root_change(what: &What, may_replace: bool) -> Result<Option<ClientRootChange>, Status> {
    let replaces = may_replace && matches!(what, What::PutRoot(_));
    Ok(match what {
        What::PutRoot(RootMessage { entry, path_info })
        | What::AddRoot(RootMessage { entry, path_info }) => {
            let root = Root::try_from(entry.clone().unwrap_or_default())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            path_info.as_ref().map_or(Ok(()), check_form)?;
            let path_info = path_info.clone().map(Box::new);
            Some(ClientRootChange::new(root, path_info, replaces))
        }
        What::RemoveRoot(name) => Some(ClientRootChange::Remove(
            Name::new(name).map_err(|error| Status::invalid_argument(error.to_string()))?,
        )),
        _ => None,
    })
}

/// The state of an addition beside the added objects.
#[derive(Default)]
struct AdditionSideState {
    /// The large blobs in progress, by the client's number for them.
    large: HashMap<u32, Box<dyn BlobWriter>>,
    roots: Vec<ClientRootChange>,
}

impl BegunUpload<AdditionSideState> {
    fn take(&mut self, what: What, wanted: Option<ClientRootChange>) -> Result<(), Status> {
        let failed = |error: Error| status(&error);
        self.kept.roots.extend(wanted);
        match what {
            What::Blobs(blobs) => {
                let mut checked = Vec::with_capacity(blobs.blobs.len());
                for blob in &blobs.blobs {
                    let digest = digest(&blob.digest)?;
                    if Digest::of(&blob.data) != digest {
                        return Err(Status::invalid_argument(format!(
                            "what came as blob {digest} hashes to {}",
                            Digest::of(&blob.data)
                        )));
                    }
                    checked.push((digest, &blob.data[..]));
                }
                self.ingest.put_blobs(&checked).map_err(failed)
            }
            What::Part(part) => self.large(part.blob)?.write(&part.data).map_err(failed),
            What::End(end) => {
                if end.digest.is_empty() {
                    self.kept.large.remove(&end.blob);
                    return Ok(());
                }
                let expected = digest(&end.digest)?;
                self.large(end.blob)?;
                let writer = self.kept.large.remove(&end.blob);
                let writer = writer.ok_or_else(|| Status::internal("a blob went missing"))?;
                let (actual, _) = writer.finish().map_err(failed)?;
                if actual != expected {
                    return Err(Status::invalid_argument(format!(
                        "what came as blob {expected} hashes to {actual}"
                    )));
                }
                Ok(())
            }
            What::Directories(directories) => {
                directories
                    .directories
                    .into_iter()
                    .try_for_each(|bytes: Bytes| {
                        let directory = Directory::decode(Vec::from(bytes))
                            .map_err(|error| Status::invalid_argument(error.to_string()))?;
                        self.ingest.put_directory(&directory).map_err(failed)
                    })
            }
            What::PutRoot(_) | What::AddRoot(_) | What::RemoveRoot(_) | What::Commit(_) => Ok(()),
        }
    }

    fn large(&mut self, number: u32) -> Result<&mut Box<dyn BlobWriter>, Status> {
        let large = &mut self.kept.large;
        if large.len() >= MAX_LARGE && !large.contains_key(&number) {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_LARGE} blobs at once"
            )));
        }
        Ok(match large.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let writer = self.ingest.blob_writer();
                entry.insert(writer.map_err(|error| status(&error))?)
            }
        })
    }
}
