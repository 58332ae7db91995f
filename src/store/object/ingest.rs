//! Adding to a bucket.
//!
//! Chunks are sent as they come, a blob's list after its chunks, Directories and roots at the
//! commit: an object is written after all that it refers to. An interrupted addition leaves chunks
//! and blobs there that cost only space.
//!
//! What is there already is not sent. A garbage collection may run meanwhile: [`super::relied`] knows what can be
//! relied on, and the commit makes sure of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;

use bytes::Bytes;
use fastcdc::v2020::{FastCDC, StreamCDC};
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use prost::Message;

use super::ObjectStoreCalls;
use super::gc::ObjectKind;
use super::relied::{CheckFailure, GcState, NeededObjects};
use crate::castore::{
    BlobHasher, Digest, Directory, GroupTable, Name, Node, NodeRef, Root, bao_field,
};
use crate::nix::PathInfo;
use crate::proto::castore::v1::StatBlobResponse;
use crate::proto::castore::v1::stat_blob_response::ChunkMeta;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::missing::{missing, not_put};
use crate::store::root_change::RootChange;
use crate::store::staged_directories::{StagedDirectories, leaves_first};
use crate::store::upstream;
use crate::store::{AddedTotals, BlobWriter, Error, Ingest};

/// Chunk sizes in bytes, least, mean and most, as in other implementations: equal files have equal
/// chunks.
const CHUNKS: (usize, usize, usize) = (128 << 10, 256 << 10, 512 << 10);
/// Objects in flight at once.
const AT_ONCE: usize = 32;
/// zstd's own default.
const LEVEL: i32 = 3;
/// Attempts at a commit that garbage collections come between.
const COMMITS: usize = 5;

/// A root, and what is known of its Nix store path.
type FormerRoot = (Root, Option<PathInfo>);

pub(super) struct ObjectIngest(Arc<ObjectAddition>);

struct ObjectAddition {
    store: Arc<ObjectStoreCalls>,
    staged: Mutex<ObjectStaged>,
}

#[derive(Default)]
struct ObjectStaged {
    blobs: HashSet<Digest>,
    /// Chunks of these blobs.
    chunks: HashSet<Digest>,
    directories: StagedDirectories,
    roots: Vec<RootChange>,
    added: AddedTotals,
}

impl ObjectIngest {
    pub(super) fn new(store: Arc<ObjectStoreCalls>) -> Self {
        Self(Arc::new(ObjectAddition {
            store,
            staged: Mutex::default(),
        }))
    }
}

impl ObjectAddition {
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, CallFailure>> + Send + 'static,
    ) -> Result<T, Error> {
        upstream::wait(&self.store.bucket.runtime, work).map_err(|failure| self.error(failure))
    }

    fn error(&self, failure: CallFailure) -> Error {
        failure.of(&self.store.bucket.url, "the addition")
    }

    fn missing(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        let wanted = not_put(digests, &self.staged.lock().blobs);
        let relied = self.store.relied.clone();
        self.wait(missing(wanted, move |digest| {
            let relied = relied.clone();
            async move { relied.has(ObjectKind::Blob, &digest).await }
        }))
    }

    /// Sends chunks, each packed by the calling thread.
    fn put_chunks(&self, chunks: Vec<(Digest, Bytes)>) -> Result<(), Error> {
        let digests = chunks.iter().map(|(digest, _)| *digest);
        self.staged.lock().chunks.extend(digests);
        let relied = self.store.relied.clone();
        self.wait(async move {
            let puts = chunks.into_iter().map(|(digest, packed)| {
                let relied = relied.clone();
                async move {
                    if relied.has(ObjectKind::Chunk, &digest).await? {
                        return Ok(());
                    }
                    relied.put(ObjectKind::Chunk, &digest, packed).await
                }
            });
            stream::iter(puts)
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await
        })
    }

    /// Sends a blob's list, after its chunks.
    fn put_list(
        &self,
        digest: Digest,
        size: u64,
        chunks: &[(Digest, u64)],
        groups: &GroupTable,
    ) -> Result<(), Error> {
        let list = match chunks {
            // One chunk, itself: the format has no list for it.
            [] | [_] => Vec::new(),
            chunks => StatBlobResponse {
                chunks: chunks
                    .iter()
                    .map(|(digest, size)| ChunkMeta {
                        digest: Bytes::copy_from_slice(digest.as_bytes()),
                        size: *size,
                    })
                    .collect(),
                bao: bao_field::encode(size, groups).into(),
            }
            .encode_to_vec(),
        };
        let relied = self.store.relied.clone();
        self.wait(async move { relied.put(ObjectKind::Blob, &digest, list.into()).await })?;
        let mut staged = self.staged.lock();
        if staged.blobs.insert(digest) {
            staged.added.blobs += 1;
            staged.added.blob_bytes += size;
        }
        Ok(())
    }

    fn packed(&self, chunk: &[u8]) -> Result<(Digest, Bytes), Error> {
        let packed = zstd::encode_all(chunk, LEVEL).map_err(|error| self.internal(&error))?;
        Ok((Digest::of(chunk), packed.into()))
    }

    fn internal(&self, error: &dyn std::error::Error) -> Error {
        self.error(CallFailure::Failed(FailureKind::Other, error.to_string()))
    }

    fn download_buffer(&self, error: &std::io::Error) -> Error {
        self.error(CallFailure::BufferFile(std::env::temp_dir(), error.kind()))
    }

    /// A Directory of this addition, or one that exists.
    fn directory(&self, digest: &Digest) -> Result<Directory, Error> {
        if let Some(directory) = self.staged.lock().directories.get(digest) {
            return Ok(directory);
        }
        let (directories, wanted) = (self.store.directories.clone(), *digest);
        let found = self.wait(async move { directories.get(&wanted).await })?;
        found.ok_or_else(|| Error::Refused {
            store: self.store.bucket.url.clone(),
            what: format!("directory {digest}"),
            why: "it was neither added nor there before".to_owned(),
        })
    }
}

impl ObjectAddition {
    /// Puts the closures and changes the roots. Once the roots are written, a collection that begins sees
    /// them; if one has deleted meanwhile, everything is made sure of again.
    fn commit_roots(&self, new: &[Node], changes: &[RootChange]) -> Result<(), Error> {
        let mut needed = None;
        let former = self.former_roots(changes)?;
        for attempt in 0..COMMITS {
            let before = self.make_sure(new, &mut needed).inspect_err(|error| {
                if attempt > 0 && matches!(error, Error::Refused { .. }) {
                    self.withdraw(changes, &former);
                }
            })?;
            // Where a collection ran, the closure of a root that was there before may be a candidate.
            match before.has_list() {
                true => self.put_closures(new)?,
                false => self.put_closures(&self.without_closure(new)?)?,
            }
            self.change_roots(changes)?;
            let relied = self.store.relied.clone();
            let after = self.wait(async move { relied.refresh().await })?;
            if after.is_same(&before) {
                return Ok(());
            }
        }
        let why = "garbage collections ran again and again meanwhile";
        Err(self.error(CallFailure::Failed(FailureKind::Conflict, why.to_owned())))
    }

    /// Makes sure that everything is there that the `new` roots need, if a collection ever ran; returns
    /// the state of collections for which that holds. `needed` keeps what that is.
    fn make_sure(
        &self,
        new: &[Node],
        needed: &mut Option<Arc<NeededObjects>>,
    ) -> Result<GcState, Error> {
        let relied = self.store.relied.clone();
        let state = self.wait(async move { relied.refresh().await })?;
        if !state.has_list() {
            return Ok(state);
        }
        let needed = match needed {
            Some(needed) => needed.clone(),
            None => needed.insert(Arc::new(self.needed(new)?)).clone(),
        };
        let relied = self.store.relied.clone();
        let checked = self.wait(async move { Ok(relied.check(state, &needed).await) })?;
        checked.map_err(|failure| self.lost(failure))
    }

    /// What the names of `changes` stand for before those.
    fn former_roots(&self, changes: &[RootChange]) -> Result<HashMap<Name, FormerRoot>, Error> {
        let names = changes.iter().filter_map(RootChange::root);
        let names: Vec<Name> = names.map(|root| root.name.clone()).collect();
        let roots = self.store.roots.clone();
        self.wait(async move {
            let asked = names.into_iter().map(|name| {
                let roots = roots.clone();
                async move {
                    match roots.ask(&name).await {
                        Ok(found) => Ok(found.map(|found| (name, found))),
                        // What cannot be read is overwritten.
                        Err(failure) if failure.is(FailureKind::Corrupt) => Ok(None),
                        Err(failure) => Err(failure),
                    }
                }
            });
            let asked: Vec<_> = stream::iter(asked)
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            Ok(asked.into_iter().flatten().collect())
        })
    }

    /// Puts the `former` roots in the place of those that this addition has written, as something below
    /// these is gone. A root whose content was deleted meanwhile is removed.
    fn withdraw(&self, changes: &[RootChange], former: &HashMap<Name, FormerRoot>) {
        for root in changes.iter().filter_map(RootChange::root) {
            let former = former.get(&root.name).cloned();
            if former
                .as_ref()
                .is_some_and(|(former, _)| former.node == root.node)
            {
                continue;
            }
            let (store, root) = (self.store.clone(), root.clone());
            let withdrawn = self.wait(async move {
                let found = store.roots.ask(&root.name).await?;
                if found.is_none_or(|(found, _)| found.node != root.node) {
                    return Ok(());
                }
                let Some((former, known)) = former else {
                    return store.roots.remove(&root.name).await;
                };
                // A collection deletes closures first: while it is there, so is what is below it.
                let (kind, digest) = match &former.node {
                    Node::Directory { digest, .. } => (ObjectKind::Closure, *digest),
                    Node::File { digest, .. } => (ObjectKind::Blob, *digest),
                    Node::Symlink { .. } => {
                        return store.roots.put(&former, known.map(Box::new)).await;
                    }
                };
                match store
                    .bucket
                    .has(&store.bucket.path(kind.dir(), &digest))
                    .await?
                {
                    true => store.roots.put(&former, known.map(Box::new)).await,
                    false => store.roots.remove(&root.name).await,
                }
            });
            if let Err(error) = withdrawn {
                tracing::warn!("{error}");
            }
        }
        self.store.roots.changed_by_us();
    }

    /// Something is not there that this addition relies on: what it added itself and is broken now is
    /// removed, so that the next one sends it.
    fn lost(&self, failure: CheckFailure) -> Error {
        if let CheckFailure::Lost(lost) = &failure {
            let blobs = self.staged.lock().blobs.iter().copied().collect();
            let (relied, lost) = (self.store.relied.clone(), lost.clone());
            let discarded = self.wait(async move { relied.discard(blobs, &lost).await });
            if let Err(error) = discarded {
                tracing::warn!("{error}");
            }
        }
        self.error(failure.into())
    }

    /// What the new roots need.
    fn needed(&self, new: &[Node]) -> Result<NeededObjects, Error> {
        let mut needed = NeededObjects {
            chunks: self.staged.lock().chunks.clone(),
            ..NeededObjects::default()
        };
        for closure in self.closures(new) {
            let closure = closure?;
            needed.written.extend(closure.last().map(Directory::digest));
            for directory in closure {
                let digest = directory.digest();
                let is_staged = self.staged.lock().directories.get(&digest).is_some();
                let blobs = match is_staged {
                    true => &mut needed.blobs,
                    false => {
                        let source = self.store.directories.source(&digest);
                        needed.shared.entry(source).or_default()
                    }
                };
                blobs.extend(directory.iter().filter_map(|entry| match entry.node {
                    NodeRef::File { digest, .. } => Some(digest),
                    _ => None,
                }));
            }
        }
        for node in new {
            if let Node::File { digest, .. } = node {
                needed.blobs.insert(*digest);
            }
        }
        needed.blobs.insert(Digest::empty_blob());
        Ok(needed)
    }

    /// The closures of the Directories that were added and that no other refers to, and those of these
    /// nodes, each once, leaves first.
    fn closures<'a>(
        &'a self,
        nodes: &'a [Node],
    ) -> impl Iterator<Item = Result<Vec<Directory>, Error>> + 'a {
        let tops = self.staged.lock().directories.tops();
        let known: HashSet<Digest> = tops.iter().map(Directory::digest).collect();
        let others = nodes.iter().filter_map(move |node| match node {
            Node::Directory { digest, .. } if !known.contains(digest) => {
                Some(self.directory(digest))
            }
            _ => None,
        });
        let all = tops.into_iter().map(Ok).chain(others);
        all.map(|top: Result<Directory, Error>| {
            leaves_first(&top?, |digest| self.directory(digest))
        })
    }

    /// The nodes of `new` that are no closure of their own, here or in the bucket, but a part of another:
    /// only the Directory at the top of a closure is found by its digest.
    fn without_closure(&self, new: &[Node]) -> Result<Vec<Node>, Error> {
        let tops = self.staged.lock().directories.tops();
        let tops: HashSet<Digest> = tops.iter().map(Directory::digest).collect();
        let mut parts = Vec::new();
        for node in new {
            if let Node::Directory { digest, .. } = node
                && !tops.contains(digest)
            {
                let (relied, wanted) = (self.store.relied.clone(), *digest);
                let has = async move { relied.has(ObjectKind::Closure, &wanted).await };
                if !self.wait(has)? {
                    parts.push(node.clone());
                }
            }
        }
        Ok(parts)
    }

    fn put_closures(&self, nodes: &[Node]) -> Result<(), Error> {
        for closure in self.closures(nodes) {
            let (closure, directories) = (closure?, self.store.directories.clone());
            self.wait(async move { directories.put(&closure).await })?;
        }
        Ok(())
    }

    fn change_roots(&self, changes: &[RootChange]) -> Result<(), Error> {
        let (roots, changes) = (self.store.roots.clone(), changes.to_vec());
        self.wait(async move {
            for change in changes {
                match change {
                    RootChange::Put(root, path_info) => roots.put(&root, path_info).await?,
                    RootChange::Add(root, path_info) => roots.add(&root, path_info).await?,
                    RootChange::Remove(name) => roots.remove(&name).await?,
                }
            }
            Ok(())
        })
    }
}

impl Ingest for ObjectIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.0.missing(&[*digest])?.is_empty())
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        self.0.missing(digests)
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        let missing = self.0.missing(&digests)?;
        let (least, mean, most) = CHUNKS;
        let mut chunks = Vec::new();
        let mut lists = Vec::new();
        for (digest, bytes) in missing.iter().filter_map(|&at| blobs.get(at)) {
            let mut list = Vec::new();
            for chunk in FastCDC::new(bytes, least, mean, most) {
                let chunk = bytes
                    .get(chunk.offset..chunk.offset + chunk.length)
                    .unwrap_or_default();
                let (digest, packed) = self.0.packed(chunk)?;
                list.push((digest, chunk.len() as u64));
                chunks.push((digest, packed));
            }
            let mut hasher = BlobHasher::new();
            hasher.update(bytes);
            let (_, groups) = hasher.finish();
            lists.push((*digest, bytes.len() as u64, list, groups));
        }
        self.0.put_chunks(chunks)?;
        for (digest, size, list, groups) in lists {
            self.0.put_list(digest, size, &list, &groups)?;
        }
        Ok(())
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        let file = tempfile::tempfile().map_err(|error| self.0.download_buffer(&error))?;
        Ok(Box::new(ObjectWriter {
            addition: self.0.clone(),
            file,
            hasher: BlobHasher::new(),
            size: 0,
        }))
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        let mut staged = self.0.staged.lock();
        if staged.directories.add(directory) {
            staged.added.directories += 1;
        }
        Ok(())
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        self.0.staged.lock().roots.push(RootChange::remove(name));
        Ok(())
    }

    fn check_root_name(&self, _: &Name) -> Result<(), Error> {
        Ok(())
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let change = RootChange::put(root, path_info);
        self.0.staged.lock().roots.push(change);
        Ok(())
    }

    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let change = RootChange::add(root, path_info);
        self.0.staged.lock().roots.push(change);
        Ok(())
    }

    fn put_incomplete_root(&self, root: &Root, _: Option<&PathInfo>) -> Result<(), Error> {
        Err(RootChange::needs_content(&self.0.store.bucket.url, root))
    }

    /// There is no lock to release.
    fn release(&self) {}

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        let puts_root = |change: &RootChange| matches!(change, RootChange::Put(..));
        if self.0.staged.lock().roots.iter().any(puts_root) {
            // Trees that were there before may lack it, and other programs cannot read them then.
            self.put_blobs(&[(Digest::empty_blob(), b"")])?;
        }
        let addition = &self.0;
        let (changes, added) = {
            let mut staged = addition.staged.lock();
            (std::mem::take(&mut staged.roots), staged.added)
        };
        let new: Vec<Node> = changes
            .iter()
            .filter_map(|change| change.root().map(|root| root.node.clone()))
            .collect();
        if new.is_empty() {
            addition.put_closures(&new)?;
            addition.change_roots(&changes)?;
        } else {
            addition.commit_roots(&new, &changes)?;
        }
        addition.store.roots.changed_by_us();
        Ok(added)
    }
}

/// A large blob: whether it exists already is known only at its end, so it waits in a file.
struct ObjectWriter {
    addition: Arc<ObjectAddition>,
    file: File,
    hasher: BlobHasher,
    size: u64,
}

impl BlobWriter for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.addition.download_buffer(&error))
    }

    fn finish(self: Box<Self>) -> Result<(Digest, u64), Error> {
        let Self {
            addition,
            mut file,
            hasher,
            size,
        } = *self;
        let (digest, groups) = hasher.finish();
        if addition.missing(&[digest])?.is_empty() {
            return Ok((digest, size));
        }
        file.rewind()
            .map_err(|error| addition.download_buffer(&error))?;
        let (least, mean, most) = CHUNKS;
        let mut list = Vec::new();
        let mut batch = Vec::new();
        for chunk in StreamCDC::new(file.take(size), least, mean, most) {
            let chunk = chunk.map_err(|error| addition.internal(&error))?;
            let (digest, packed) = addition.packed(&chunk.data)?;
            list.push((digest, chunk.data.len() as u64));
            batch.push((digest, packed));
            if batch.len() >= AT_ONCE {
                addition.put_chunks(std::mem::take(&mut batch))?;
            }
        }
        addition.put_chunks(batch)?;
        addition.put_list(digest, size, &list, &groups)?;
        Ok((digest, size))
    }
}
