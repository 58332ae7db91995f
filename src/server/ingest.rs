//! Additions in one stream: our IngestService.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::Served;
use super::respond::{answer, digest, status};
use crate::castore::{Digest, Directory, Name, Root};
use crate::proto::castore_fs::services::ingest_service_server::IngestService;
use crate::proto::castore_fs::v1::ingest_request::What;
use crate::proto::castore_fs::v1::{IngestRequest, IngestResponse, Root as RootMessage};
use crate::store::{BlobWriter, Error, Ingest};

/// Large blobs under way at once.
const MAX_LARGE: usize = 64;

#[tonic::async_trait]
impl IngestService for Served {
    async fn ingest(
        &self,
        request: Request<Streaming<IngestRequest>>,
    ) -> Result<Response<IngestResponse>, Status> {
        let mut request = request.into_inner();
        let store = self.writable()?;
        answer(async move {
            let mut addition = Addition {
                ingest: store.ingest().map_err(|error| status(&error))?,
                large: HashMap::new(),
            };
            loop {
                let message = request.message().await?;
                // Whoever goes away without a commit has added nothing.
                let what = message
                    .and_then(|message| message.what)
                    .ok_or_else(|| Status::aborted("the stream ended without a commit"))?;
                if matches!(what, What::Commit(_)) {
                    return addition.commit().map(Response::new);
                }
                addition.take(what)?;
            }
        })
        .await
    }
}

struct Addition {
    ingest: Box<dyn Ingest>,
    /// The large blobs that are coming in, by the client's number for them.
    large: HashMap<u32, Box<dyn BlobWriter>>,
}

impl Addition {
    fn take(&mut self, what: What) -> Result<(), Status> {
        let failed = |error: Error| status(&error);
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
                    self.large.remove(&end.blob);
                    return Ok(());
                }
                let expected = digest(&end.digest)?;
                self.large(end.blob)?;
                let writer = self.large.remove(&end.blob);
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
            What::PutRoot(RootMessage { entry, path_info }) => {
                let root = Root::try_from(entry.unwrap_or_default())
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                self.ingest
                    .put_root(&root, path_info.as_ref())
                    .map_err(failed)
            }
            What::RemoveRoot(name) => {
                let name = Name::new(&name)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                self.ingest.remove_root(&name).map_err(failed)
            }
            What::Commit(_) => Ok(()),
        }
    }

    fn large(&mut self, number: u32) -> Result<&mut Box<dyn BlobWriter>, Status> {
        if self.large.len() >= MAX_LARGE && !self.large.contains_key(&number) {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_LARGE} blobs at once"
            )));
        }
        Ok(match self.large.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let writer = self.ingest.blob_writer();
                entry.insert(writer.map_err(|error| status(&error))?)
            }
        })
    }

    fn commit(self) -> Result<IngestResponse, Status> {
        if !self.large.is_empty() {
            return Err(Status::invalid_argument("a blob was not ended"));
        }
        let added = self.ingest.commit().map_err(|error| status(&error))?;
        Ok(IngestResponse {
            blobs: added.blobs,
            blob_bytes: added.blob_bytes,
            directories: added.directories,
        })
    }
}
