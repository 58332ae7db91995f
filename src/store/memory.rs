//! A store in memory: for tests, and for trees that need not outlive the process.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use prost::Message;

use super::root_change::{RootChange, admit};
use super::{
    AddedTotals, Answer, BackingFile, BlobWriter, Damage, Error, Health, Ingest, Object, Store,
    StoreUsage, in_place,
};
use crate::castore::{BlobHasher, Digest, Directory, GroupTable, Name, Root};
use crate::nix::{PathInfo, renew};

const URL: &str = "memory:";

/// Bytes of everything in a store, additions that are under way included.
const MOST: u64 = 1 << 30;
/// Approximate bytes that an object or a root takes beside its contents.
const EACH: u64 = 128;

/// A store in this process's memory, of up to 1 GiB. Clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<MemoryInner>);

struct MemoryInner {
    most: u64,
    used: Mutex<u64>,
    contents: RwLock<MemoryContents>,
    version: Mutex<u64>,
    changed: Condvar,
}

impl Default for MemoryInner {
    fn default() -> Self {
        Self {
            most: MOST,
            used: Mutex::default(),
            contents: RwLock::default(),
            version: Mutex::default(),
            changed: Condvar::default(),
        }
    }
}

/// Memory of a store that an addition has taken; given back when dropped.
struct ReservedMemory {
    shared: Arc<MemoryInner>,
    bytes: u64,
}

impl ReservedMemory {
    /// Takes `bytes` more.
    fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        let mut used = self.shared.used.lock();
        let most = self.shared.most;
        let then = used.saturating_add(bytes);
        if then > most {
            return Err(Error::Full {
                store: URL.to_owned(),
                why: format!(
                    "it holds at most {most} bytes; local:/PATH holds as much as its disk, which can \
                     be a tmpfs"
                ),
            });
        }
        *used = then;
        self.bytes += bytes;
        Ok(())
    }

    /// Leaves `bytes` of it to what was added.
    fn leave(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for ReservedMemory {
    fn drop(&mut self) {
        *self.shared.used.lock() -= self.bytes;
    }
}

/// Bytes that a root takes.
fn root_bytes(root: &Root, path_info: Option<&PathInfo>) -> u64 {
    let known = path_info.map_or(0, |info| 2 * info.encoded_len());
    EACH + (2 * root.name.as_bytes().len() + known) as u64
}

#[derive(Default)]
struct MemoryContents {
    blobs: HashMap<Digest, Bytes>,
    directories: HashMap<Digest, Directory>,
    roots: RootMap,
}

type RootMap = BTreeMap<Name, (Root, Option<Box<PathInfo>>)>;

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    fn of_at_most(most: u64) -> Self {
        Self(Arc::new(MemoryInner {
            most,
            ..MemoryInner::default()
        }))
    }

    /// The blob `digest`, which a node states to have `size` bytes.
    fn blob(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>, Error> {
        let blob = self.0.contents.read().blobs.get(digest).cloned();
        let blob = match blob {
            Some(blob) => blob,
            None if *digest == Digest::empty_blob() => Bytes::new(),
            None => return Ok(None),
        };
        if blob.len() as u64 != size {
            return Err(Error::Damaged {
                store: URL.to_owned(),
                object: Object::Blob,
                digest: *digest,
                damage: Box::new(Damage::WrongSize {
                    expected: size,
                    actual: blob.len() as u64,
                }),
            });
        }
        Ok(Some(blob))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        URL
    }

    fn directory_now(&self, digest: &Digest) -> Result<Answer<Directory>, Error> {
        let contents = self.0.contents.read();
        Ok(contents.directories.get(digest).cloned().into())
    }

    fn read_now(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Answer<usize>, Error> {
        let Some(blob) = self.blob(digest, size)? else {
            return Ok(Answer::Absent);
        };
        let rest = blob.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(Answer::Found(length))
    }

    /// Everything is in memory already.
    fn will_need(&self, _: &[(Digest, u64)]) {}

    fn forget(&self, _: &Digest, _: u64, _: u64, _: u64) {}

    fn root_now(&self, name: &[u8]) -> Result<Answer<Root>, Error> {
        let contents = self.0.contents.read();
        Ok(Name::new(name)
            .ok()
            .and_then(|name| contents.roots.get(&name))
            .map(|(root, _)| root.clone())
            .into())
    }

    fn backing_file(&self, _: &Digest, _: u64) -> Result<Option<BackingFile>, Error> {
        Ok(None)
    }

    async fn directory(&self, digest: &Digest) -> Result<Option<Directory>, Error> {
        in_place::directory(self, digest)
    }

    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<Bytes>, Error> {
        in_place::read(self, digest, size, offset, length)
    }

    async fn root(&self, name: &[u8]) -> Result<Option<Root>, Error> {
        in_place::root(self, name)
    }

    async fn roots(&self) -> Result<Vec<Root>, Error> {
        let contents = self.0.contents.read();
        Ok(contents
            .roots
            .values()
            .map(|(root, _)| root.clone())
            .collect())
    }

    async fn path_info(&self, name: &[u8]) -> Result<Option<PathInfo>, Error> {
        let contents = self.0.contents.read();
        Ok(Name::new(name)
            .ok()
            .and_then(|name| contents.roots.get(&name)?.1.as_deref().cloned()))
    }

    async fn incomplete_root(&self, _: &[u8]) -> Result<Option<(Root, Option<PathInfo>)>, Error> {
        Ok(None)
    }

    async fn has_tree(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.directory(digest).await?.is_some())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.0.contents.read().blobs.contains_key(digest) || *digest == Digest::empty_blob())
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let contents = self.0.contents.read();
        let size = contents.blobs.get(digest).map(|blob| blob.len() as u64);
        Ok(size.or((*digest == Digest::empty_blob()).then_some(0)))
    }

    /// There are no chunk lists.
    async fn chunks(&self, _: &Digest) -> Result<Option<Vec<(Digest, u64)>>, Error> {
        Ok(None)
    }

    async fn group_table(&self, digest: &Digest, size: u64) -> Result<Option<GroupTable>, Error> {
        let Some(blob) = self.blob(digest, size)? else {
            return Ok(None);
        };
        let mut hasher = BlobHasher::new();
        hasher.update(&blob);
        let (hashed, table) = hasher.finish();
        // A store returns only verified bytes; a bug here must not spread.
        Ok((hashed == *digest).then_some(table))
    }

    fn usage(&self) -> Result<Option<StoreUsage>, Error> {
        let contents = self.0.contents.read();
        Ok(Some(StoreUsage {
            blobs: contents.blobs.len() as u64,
            blob_bytes: contents.blobs.values().map(|blob| blob.len() as u64).sum(),
            directories: contents.directories.len() as u64,
        }))
    }

    fn embedded(&self) -> Vec<crate::store::LocalStore> {
        Vec::new()
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn roots_version(&self) -> Result<u64, Error> {
        Ok(*self.0.version.lock())
    }

    fn wait_for_roots(&self, seen: u64, timeout: Duration) -> Result<u64, Error> {
        let mut version = self.0.version.lock();
        if *version == seen {
            self.0.changed.wait_for(&mut version, timeout);
        }
        Ok(*version)
    }

    /// Every change is seen as it is made.
    fn keep_listings_fresh(&self, _: Duration) {}

    fn ingest(&self) -> Result<Box<dyn Ingest>, Error> {
        Ok(Box::new(MemoryIngest {
            store: self.clone(),
            staged: Arc::new(Mutex::new(MemoryStaged {
                blobs: HashMap::new(),
                directories: HashMap::new(),
                roots: Vec::new(),
                room: ReservedMemory {
                    shared: self.0.clone(),
                    bytes: 0,
                },
            })),
        }))
    }
}

/// An addition that is not committed yet.
struct MemoryIngest {
    store: MemoryStore,
    staged: Arc<Mutex<MemoryStaged>>,
}

struct MemoryStaged {
    blobs: HashMap<Digest, Bytes>,
    directories: HashMap<Digest, Directory>,
    roots: Vec<RootChange>,
    room: ReservedMemory,
}

impl MemoryStaged {
    /// Stages a change of a root.
    fn change(&mut self, change: RootChange) -> Result<(), Error> {
        self.room.grow(match &change {
            RootChange::Put(root, info) | RootChange::Add(root, info) => {
                root_bytes(root, info.as_deref())
            }
            RootChange::Remove(name) => EACH + name.as_bytes().len() as u64,
        })?;
        self.roots.push(change);
        Ok(())
    }
}

impl Ingest for MemoryIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(*digest == Digest::empty_blob()
            || self.staged.lock().blobs.contains_key(digest)
            || self.store.0.contents.read().blobs.contains_key(digest))
    }

    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        in_place::missing_blobs(self, digests)
    }

    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        let mut staged = self.staged.lock();
        for (digest, bytes) in blobs {
            if !staged.blobs.contains_key(digest) {
                staged.room.grow(EACH + bytes.len() as u64)?;
                let bytes = Bytes::copy_from_slice(bytes);
                staged.blobs.insert(*digest, bytes);
            }
        }
        Ok(())
    }

    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(MemoryWriter {
            staged: self.staged.clone(),
            room: ReservedMemory {
                shared: self.store.0.clone(),
                bytes: 0,
            },
            bytes: Vec::new(),
        }))
    }

    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        let mut staged = self.staged.lock();
        let digest = directory.digest();
        if !staged.directories.contains_key(&digest) {
            staged.room.grow(EACH + directory.resident_bytes() as u64)?;
            staged.directories.insert(digest, directory.clone());
        }
        Ok(())
    }

    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        let mut staged = self.staged.lock();
        staged.change(RootChange::remove(name))
    }

    fn check_root_name(&self, _: &Name) -> Result<(), Error> {
        Ok(())
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let mut staged = self.staged.lock();
        staged.change(RootChange::put(root, path_info))
    }

    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        let mut staged = self.staged.lock();
        staged.change(RootChange::add(root, path_info))
    }

    fn put_incomplete_root(&self, root: &Root, _: Option<&PathInfo>) -> Result<(), Error> {
        Err(RootChange::needs_content(self.store.url(), root))
    }

    /// There is no lock to release.
    fn release(&self) {}

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        let mut staged = self.staged.lock();
        let staged = &mut *staged;
        let mut contents = self.store.0.contents.write();
        let mut roots = contents.roots.clone();
        let changed = !staged.roots.is_empty();
        for change in std::mem::take(&mut staged.roots) {
            match change {
                RootChange::Put(root, path_info) => {
                    let before = roots.get(&root.name).cloned();
                    let same = before.filter(|(before, _)| before.node == root.node);
                    let known = same.and_then(|(_, known)| known).map(|known| *known);
                    let path_info = renew(known, path_info.map(|info| *info));
                    roots.insert(root.name.clone(), (root, path_info.map(Box::new)));
                }
                RootChange::Add(root, path_info) => {
                    let before = roots.get(&root.name).cloned();
                    let before = before.map(|(root, known)| (root.node, known.map(|known| *known)));
                    let path_info = path_info.map(|info| *info);
                    let path_info = admit(self.store.url(), before, &root, path_info)?;
                    roots.insert(root.name.clone(), (root, path_info.map(Box::new)));
                }
                RootChange::Remove(name) => {
                    roots.remove(&name);
                }
            }
        }
        let bytes_of = |roots: &RootMap| {
            let roots = roots.values();
            let bytes = roots.map(|(root, info)| root_bytes(root, info.as_deref()));
            bytes.sum::<u64>()
        };
        if changed {
            let (before, after) = (bytes_of(&contents.roots), bytes_of(&roots));
            staged.room.leave(after.saturating_sub(before));
            *self.store.0.used.lock() -= before.saturating_sub(after);
            contents.roots = roots;
        }
        let mut added = AddedTotals::default();
        for (digest, blob) in std::mem::take(&mut staged.blobs) {
            let length = blob.len() as u64;
            if contents.blobs.insert(digest, blob).is_none() {
                added.blobs += 1;
                added.blob_bytes += length;
                staged.room.leave(EACH + length);
            }
        }
        for (digest, directory) in std::mem::take(&mut staged.directories) {
            let length = directory.resident_bytes() as u64;
            if contents.directories.insert(digest, directory).is_none() {
                added.directories += 1;
                staged.room.leave(EACH + length);
            }
        }
        drop(contents);
        if changed {
            *self.store.0.version.lock() += 1;
            self.store.0.changed.notify_all();
        }
        Ok(added)
    }
}

struct MemoryWriter {
    staged: Arc<Mutex<MemoryStaged>>,
    room: ReservedMemory,
    bytes: Vec<u8>,
}

impl BlobWriter for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.room.grow(bytes.len() as u64)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(Digest, u64), Error> {
        let mut hasher = BlobHasher::new();
        hasher.update(&self.bytes);
        let (digest, _) = hasher.finish();
        let size = self.bytes.len() as u64;
        let mut staged = self.staged.lock();
        if !staged.blobs.contains_key(&digest) {
            self.room.grow(EACH)?;
            staged.room.bytes += std::mem::take(&mut self.room.bytes);
            let bytes = std::mem::take(&mut self.bytes);
            staged.blobs.insert(digest, bytes.into());
        }
        Ok((digest, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Node, SymlinkTarget};

    fn root(number: u64) -> Root {
        let target = SymlinkTarget::new(b"target").unwrap();
        Root {
            name: Name::new(format!("root-{number}").as_bytes()).unwrap(),
            node: Node::Symlink { target },
        }
    }

    /// Blobs, Directories and roots count, those of unfinished additions too, and twice the same once.
    #[test]
    fn a_store_in_memory_is_bounded_in_total() {
        let store = MemoryStore::of_at_most(100_000);
        let used = || *store.0.used.lock();
        let blob = vec![7; 40_000];
        let put = |ingest: &dyn Ingest, blob: &[u8]| ingest.put_blobs(&[(Digest::of(blob), blob)]);
        let ingest = store.ingest().unwrap();
        put(&*ingest, &blob).unwrap();
        put(&*ingest, &blob).unwrap();
        ingest.put_root(&root(0), None).unwrap();
        ingest.commit().unwrap();
        let before = used();
        assert!((40_000..41_000).contains(&before), "{before}");

        let unfinished = store.ingest().unwrap();
        let mut writer = unfinished.blob_writer().unwrap();
        writer.write(&[1; 50_000]).unwrap();
        let full = |done: Result<(), Error>| matches!(done, Err(Error::Full { .. }));
        assert!(full(writer.write(&[1; 50_000])));
        let other = store.ingest().unwrap();
        assert!(full(put(&*other, &[2; 20_000])));
        let failed = (1..)
            .map(|number| other.add_root(&root(number), None))
            .find(Result::is_err);
        assert!(full(failed.unwrap()));
        drop(other);
        writer.finish().unwrap();
        drop(unfinished);
        assert_eq!(used(), before, "what was not committed takes nothing");

        let again = store.ingest().unwrap();
        put(&*again, &blob).unwrap();
        again.commit().unwrap();
        assert_eq!(used(), before, "the same blob");
        let removal = store.ingest().unwrap();
        removal.remove_root(&root(0).name).unwrap();
        removal.commit().unwrap();
        assert!(used() < before);
        let error = put(&*store.ingest().unwrap(), &[3; 100_000]).unwrap_err();
        assert!(error.to_string().contains("local:/PATH"), "{error}");
    }
}
