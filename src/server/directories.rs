//! Directories: DirectoryService.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::ServedState;
use super::capacity::ConnectionState;
use super::respond::{MessageStream, answer, ask, digest, not_found, status, stream};
use super::upload::{BegunUpload, Upload};
use crate::castore::{Digest, Directory, NodeRef, Printable};
use crate::proto::RawDirectory;
use crate::proto::castore::services::directory_service_server::DirectoryService;
use crate::proto::castore::v1::{
    GetDirectoryRequest, PutDirectoryResponse, get_directory_request::ByWhat,
};
use crate::store::{Object, Store};

/// Directories that are read at once: a hop to the thread that reads them costs as much as reading
/// one.
const AT_ONCE: usize = 32;
/// Bytes of Directories that are put at once.
const TOGETHER: usize = 256 << 10;
/// The approximate memory of a Directory beside its bytes.
const KEPT: usize = 256;
/// The memory of a Directory while those below it are sent.
const SEEN: usize = 160;

#[tonic::async_trait]
impl DirectoryService for ServedState {
    type GetStream = MessageStream<RawDirectory>;

    async fn get(
        &self,
        request: Request<GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let connection = request.extensions().get::<Arc<ConnectionState>>().cloned();
        let request = request.into_inner();
        let Some(ByWhat::Digest(bytes)) = request.by_what else {
            return Err(Status::invalid_argument("the request names no digest"));
        };
        let root = digest(&bytes)?;
        let store = self.store.clone();
        Ok(Response::new(stream(move |sender| async move {
            let raw =
                |directory: &Directory| RawDirectory(Bytes::copy_from_slice(directory.as_bytes()));
            let asked = store.clone();
            let Some(directory) = ask(async move { asked.directory(&root).await }).await? else {
                if request.recursive {
                    // Other clients take an empty stream for "not found".
                    return Ok(());
                }
                return Err(not_found(Object::Directory, &root).into());
            };
            sender.send(raw(&directory)).await?;
            if !request.recursive {
                return Ok(());
            }
            let mut seen = HashSet::from([root]);
            let mut queue = VecDeque::new();
            queue_children(&directory, &mut seen, &mut queue);
            let share = connection.map(|connection| connection.responses.clone());
            let mut held = share.and_then(|share| share.try_hold(0));
            let mut counted = 0;
            while !queue.is_empty() {
                if let Some(held) = &mut held
                    && seen.len() > counted
                {
                    if !held.grow((seen.len() - counted) * SEEN) {
                        let why =
                            "this server has no memory left to list closures to this connection";
                        return Err(Status::resource_exhausted(why).into());
                    }
                    counted = seen.len();
                }
                sender.wanted().await?;
                let batch: Vec<_> = queue.drain(..queue.len().min(AT_ONCE)).collect();
                for directory in read(store.clone(), batch).await? {
                    sender.send(raw(&directory)).await?;
                    queue_children(&directory, &mut seen, &mut queue);
                }
            }
            Ok(())
        })))
    }

    async fn put(
        &self,
        request: Request<Streaming<RawDirectory>>,
    ) -> Result<Response<PutDirectoryResponse>, Status> {
        let mut upload = Upload::<ReceivedClosure>::of(self, &request)?;
        let mut messages = request.into_inner();
        let mut waiting = Vec::new();
        let mut bytes = 0;
        while let Some(RawDirectory(directory)) = messages.message().await? {
            upload.keep(directory.len() + KEPT)?;
            bytes += directory.len() + KEPT;
            waiting.push(directory);
            if bytes >= TOGETHER {
                let directories = std::mem::take(&mut waiting);
                upload
                    .work(bytes, move |begun| put(begun, directories))
                    .await?;
                bytes = 0;
            }
        }
        upload.work(bytes, move |begun| put(begun, waiting)).await?;
        let finish = move |BegunUpload { ingest, kept }: BegunUpload<ReceivedClosure>| {
            let root = kept.root().map_err(Status::invalid_argument)?;
            ingest.commit().map_err(|error| status(&error))?;
            Ok(Response::new(PutDirectoryResponse {
                root_digest: Bytes::copy_from_slice(root.as_bytes()),
            }))
        };
        upload.finish(finish).await
    }
}

/// Adds received Directories.
fn put(begun: &mut BegunUpload<ReceivedClosure>, directories: Vec<Bytes>) -> Result<(), Status> {
    for bytes in directories {
        let directory = Directory::decode(Vec::from(bytes))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let kept = begun.kept.add(&directory);
        kept.map_err(Status::invalid_argument)?;
        let put = begun.ingest.put_directory(&directory);
        put.map_err(|error| status(&error))?;
    }
    Ok(())
}

/// The Directories of `batch`, each with one that refers to it.
async fn read(
    store: Arc<dyn Store>,
    batch: Vec<(Digest, Digest)>,
) -> Result<Vec<Directory>, Status> {
    answer(async move {
        let mut directories = Vec::with_capacity(batch.len());
        for (digest, parent) in batch {
            let found = store.directory(&digest).await;
            let found = found.map_err(|error| status(&error))?;
            directories.push(found.ok_or_else(|| {
                Status::data_loss(format!(
                    "directory {digest}, which {parent} refers to, is not in this store"
                ))
            })?);
        }
        Ok(directories)
    })
    .await
}

/// Appends those child directories of `directory` that were not `seen` before.
fn queue_children(
    directory: &Directory,
    seen: &mut HashSet<Digest>,
    queue: &mut VecDeque<(Digest, Digest)>,
) {
    for entry in directory.iter() {
        if let NodeRef::Directory { digest, .. } = entry.node
            && seen.insert(digest)
        {
            queue.push_back((digest, directory.digest()));
        }
    }
}

/// Checks that Directories come leaves first and hang together under one root, the last.
#[derive(Default)]
struct ReceivedClosure {
    /// Their sizes, and whether a later one has referred to them.
    known: HashMap<Digest, (u64, bool)>,
    last: Option<Digest>,
}

impl ReceivedClosure {
    fn add(&mut self, directory: &Directory) -> Result<(), String> {
        for entry in directory.iter() {
            let NodeRef::Directory { digest, size } = entry.node else {
                continue;
            };
            let name = Printable(entry.name);
            let (actual, referred) = self.known.get_mut(&digest).ok_or_else(|| {
                format!(
                    "directory {} refers to {digest} as \"{name}\", which did not come before it",
                    directory.digest()
                )
            })?;
            if *actual != size {
                return Err(format!(
                    "directory {} has the size {size} for \"{name}\"; it is {actual}",
                    directory.digest()
                ));
            }
            *referred = true;
        }
        self.known
            .entry(directory.digest())
            .or_insert((directory.size(), false));
        self.last = Some(directory.digest());
        Ok(())
    }

    fn root(self) -> Result<Digest, String> {
        let last = self.last.ok_or("no directory came")?;
        let loose = self
            .known
            .iter()
            .find(|&(digest, (_, referred))| !referred && *digest != last);
        match loose {
            Some((digest, _)) => Err(format!("directory {digest} does not hang below the last")),
            None => Ok(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, Node};

    fn parent(children: &[(&str, Node)]) -> Directory {
        let entries = children
            .iter()
            .map(|(name, node)| (Name::new(name.as_bytes()).unwrap(), node.clone()))
            .collect();
        Directory::from_entries(entries).unwrap()
    }

    #[test]
    fn a_closure_comes_leaves_first_under_one_root_with_right_sizes() {
        let leaf = parent(&[]);
        let root = parent(&[("leaf", leaf.node())]);
        let root_of = |directories: &[&Directory]| {
            let mut closure = ReceivedClosure::default();
            directories.iter().try_for_each(|one| closure.add(one))?;
            closure.root()
        };
        assert_eq!(root_of(&[&leaf, &root]), Ok(root.digest()));
        assert!(root_of(&[]).unwrap_err().contains("no directory"));
        assert!(root_of(&[&root]).unwrap_err().contains("did not come"));
        let Node::Directory { digest, size } = leaf.node() else {
            unreachable!("the node of a Directory");
        };
        let size = size + 1;
        let wrong = parent(&[("leaf", Node::Directory { digest, size })]);
        assert!(root_of(&[&leaf, &wrong]).unwrap_err().contains("size"));
        let loose = parent(&[(
            "a",
            Node::File {
                digest,
                size,
                executable: false,
            },
        )]);
        assert!(
            root_of(&[&loose, &leaf, &root])
                .unwrap_err()
                .contains("hang")
        );
    }
}
