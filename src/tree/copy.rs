//! Trees from one store into another, sending only what is missing there.
//!
//! The walk is depth first and sends a directory after everything below it, so a Directory that is
//! at the destination proves that its whole closure is, and an interrupted copy continues where it
//! was: its work is committed every 256 MiB, without roots, which come last.
//!
//! The time of a copy between machines is its round trips, so nothing is requested one by one:
//! blobs are checked and read by the thousand, and only Directories with much below them are
//! checked; to send a small one again costs less than the check.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::nar::hash_nar;
use super::node_path::NodePath;
use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef, Root};
use crate::nix::{NarHash, NarMismatch, NarinfoFile, PathInfo};
use crate::store::{AddedTotals, Blocking, Ingest, Object};

/// Small blobs that are checked, read and sent together, in number and bytes.
const BATCH: usize = 1024;
const BATCH_BYTES: u64 = 16 << 20;
/// Bytes from which a blob is sent alone, piece by piece.
const LARGE: u64 = 1 << 20;
/// Bytes of a large blob that are read at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes after which what was sent is committed.
const SLICE: u64 = 256 << 20;
/// Size of a Directory's node (twice the entries below) from which it is checked whether the
/// destination has it.
const WORTH_ASKING: u64 = 128;

/// The progress of a copy; other threads may read it, and may stop the copy.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Directories sent.
    pub directories: AtomicU64,
    /// Blobs sent.
    pub blobs: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Blobs that were there already.
    pub skipped: AtomicU64,
    /// Names below the roots, and the roots, that were visited or are known to be there.
    pub entries: AtomicU64,
    /// Set it to end the copy with [`TreeError::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

/// Copies `roots`, everything below them and their Nix path infos.
pub fn copy(
    from: &Blocking,
    to: &Blocking,
    roots: &[Root],
    progress: &CopyProgress,
) -> Result<AddedTotals, TreeError> {
    copy_in_slices(from, to, roots, progress, SLICE)
}

/// Copies the paths of a closure, each with what `closure` knows of it: references, signatures and
/// deriver. Its NARs are those that the other store knows, or they are hashed: none of the names is there
/// unless all are what is described.
pub fn copy_graph(
    from: &Blocking,
    to: &Blocking,
    closure: &[NarinfoFile],
    progress: &CopyProgress,
) -> Result<AddedTotals, TreeError> {
    let mut roots = Vec::with_capacity(closure.len());
    for path in closure {
        let name = path.root_name();
        roots.push(from.root(&name)?.ok_or_else(|| TreeError::NoRoot {
            store: from.url().to_owned(),
            name: name.to_string(),
        })?);
    }
    let mut copy = TreeCopy::new(from, to, progress);
    copy.check_names(&roots)?;
    for root in &roots {
        copy.tree(&NodePath::root(&root.name), &root.node)?;
    }
    copy.flush()?;
    let mut infos = Vec::with_capacity(closure.len());
    for (path, root) in closure.iter().zip(&roots) {
        infos.push(described(from, root, path, progress)?);
    }
    for (root, info) in roots.iter().zip(&infos) {
        copy.ingest()?.put_root(root, Some(info))?;
    }
    copy.commit()?;
    Ok(copy.added)
}

/// What is known of `root`, which has to be the `path` that is described.
fn described(
    from: &Blocking,
    root: &Root,
    path: &NarinfoFile,
    progress: &CopyProgress,
) -> Result<PathInfo, TreeError> {
    let narinfo = from.path_info(&root.name)?.and_then(|known| known.narinfo);
    let known = narinfo.as_ref().and_then(|narinfo| {
        let sha256 = narinfo.nar_sha256[..].try_into().ok()?;
        Some(NarHash {
            size: narinfo.nar_size,
            sha256,
        })
    });
    let actual = match known {
        Some(known) => known,
        None => {
            let place = TreePath::new(root.name.as_bytes());
            hash_nar(from, &place, &root.node, &progress.stop)?
        }
    };
    if actual != path.nar {
        return Err(NarMismatch {
            path: path.path.to_string(),
            stated: path.nar,
            actual,
        }
        .into());
    }
    let mut info = path.path_info(root.node.clone());
    if let Some(ours) = &mut info.narinfo {
        for signature in narinfo.into_iter().flat_map(|theirs| theirs.signatures) {
            if !ours.signatures.contains(&signature) {
                ours.signatures.push(signature);
            }
        }
    }
    Ok(info)
}

fn copy_in_slices(
    from: &Blocking,
    to: &Blocking,
    roots: &[Root],
    progress: &CopyProgress,
    slice: u64,
) -> Result<AddedTotals, TreeError> {
    let mut copy = TreeCopy {
        slice,
        ..TreeCopy::new(from, to, progress)
    };
    copy.check_names(roots)?;
    for root in roots {
        copy.tree(&NodePath::root(&root.name), &root.node)?;
    }
    copy.flush()?;
    for root in roots {
        let path_info = from.path_info(&root.name)?;
        copy.ingest()?.put_root(root, path_info.as_ref())?;
    }
    copy.commit()?;
    Ok(copy.added)
}

/// A copy under way.
pub(super) struct TreeCopy<'a> {
    from: &'a Blocking,
    to: &'a Blocking,
    progress: &'a CopyProgress,
    /// The current slice.
    ingest: Option<Box<dyn Ingest>>,
    added: AddedTotals,
    /// Objects that are done.
    seen: HashSet<(bool, Digest)>,
    /// Objects to send: small blobs, then Directories, each with the place where it was found.
    blobs: Vec<(Digest, u64, NodePath)>,
    blob_bytes: u64,
    directories: Vec<Directory>,
    /// Bytes since the last commit, and after how many there is the next.
    uncommitted: u64,
    slice: u64,
}

/// A directory on the way down.
struct CopyLevel {
    directory: Directory,
    place: NodePath,
    next: usize,
}

impl<'a> TreeCopy<'a> {
    /// A copy of nothing yet.
    pub(super) fn new(from: &'a Blocking, to: &'a Blocking, progress: &'a CopyProgress) -> Self {
        Self {
            from,
            to,
            progress,
            ingest: None,
            added: AddedTotals::default(),
            seen: HashSet::new(),
            blobs: Vec::new(),
            blob_bytes: 0,
            directories: Vec::new(),
            uncommitted: 0,
            slice: SLICE,
        }
    }

    /// Fails before anything is sent if the other store does not take all of these names.
    fn check_names(&mut self, roots: &[Root]) -> Result<(), TreeError> {
        use crate::store::Error::Refused;
        let ingest = self.ingest()?;
        let check = |root: &Root| ingest.check_root_name(&root.name).err();
        let mut refused = roots.iter().filter_map(check);
        match (refused.next(), refused.count()) {
            (None, _) => Ok(()),
            (Some(Refused { store, what, why }), more @ 1..) => {
                let what = format!("{what} and {more} more");
                Err(Refused { store, what, why }.into())
            }
            (Some(error), _) => Err(error.into()),
        }
    }

    /// Sends and commits the rest.
    pub(super) fn end(mut self) -> Result<(), TreeError> {
        self.flush()?;
        self.commit()
    }

    /// Copies a node and everything below it that is missing at the destination.
    pub(super) fn tree(&mut self, place: &NodePath, node: &Node) -> Result<(), TreeError> {
        let mut levels = Vec::new();
        levels.extend(self.node(place, node.borrow())?);
        while let Some(level) = levels.last_mut() {
            if self.progress.stop.load(Ordering::Relaxed) {
                return Err(TreeError::Interrupted);
            }
            let Some(entry) = level.directory.get(level.next) else {
                if let Some(CopyLevel { directory, .. }) = levels.pop() {
                    self.directories.push(directory);
                    self.progress.directories.fetch_add(1, Ordering::Relaxed);
                }
                if self.directories.len() >= BATCH {
                    self.flush()?;
                }
                continue;
            };
            level.next += 1;
            let place = level.place.join(entry.name);
            // The entry borrows the level, which stays in place while another is pushed on top.
            let node = entry.node.to_owned().map_err(|error| TreeError::Object {
                path: place.path(),
                source: crate::store::Error::Refused {
                    store: self.from.url().to_owned(),
                    what: "a symbolic link".to_owned(),
                    why: error.to_string(),
                },
            })?;
            let below = self.node(&place, node.borrow())?;
            levels.extend(below);
        }
        Ok(())
    }

    /// Handles a node; returns the directory to descend into, if it is one that is missing.
    fn node(
        &mut self,
        place: &NodePath,
        node: NodeRef<'_>,
    ) -> Result<Option<CopyLevel>, TreeError> {
        let done = |entries: u64| {
            let count = &self.progress.entries;
            count.fetch_add(entries, Ordering::Relaxed);
        };
        done(1);
        match node {
            NodeRef::Symlink { .. } => Ok(None),
            NodeRef::File { digest, size, .. } => {
                if self.seen.insert((false, digest)) {
                    self.blob(digest, size, place)?;
                }
                Ok(None)
            }
            NodeRef::Directory { digest, size } => {
                let is_there = !self.seen.insert((true, digest))
                    || size >= WORTH_ASKING && self.to.has_tree(&digest)?;
                if is_there {
                    done(size / 2);
                    return Ok(None);
                }
                let directory = self.from.directory(&digest).map_err(error_at(place))?;
                let directory =
                    directory.ok_or_else(|| self.absent(place, Object::Directory, digest))?;
                Ok(Some(CopyLevel {
                    directory,
                    place: place.clone(),
                    next: 0,
                }))
            }
        }
    }

    fn blob(&mut self, digest: Digest, size: u64, place: &NodePath) -> Result<(), TreeError> {
        if size >= LARGE {
            return self.large(digest, size, place);
        }
        self.blobs.push((digest, size, place.clone()));
        self.blob_bytes += size;
        if self.blobs.len() >= BATCH || self.blob_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn large(&mut self, digest: Digest, size: u64, place: &NodePath) -> Result<(), TreeError> {
        if self.ingest()?.has_blob(&digest)? {
            self.progress.skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let mut writer = self.ingest()?.blob_writer()?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut at = 0;
        while at < size {
            if self.progress.stop.load(Ordering::Relaxed) {
                return Err(TreeError::Interrupted);
            }
            let read = self.from.read(&digest, size, at, &mut buffer);
            let read = read.map_err(error_at(place))?.filter(|&read| read > 0);
            let read = read.ok_or_else(|| self.absent(place, Object::Blob, digest))?;
            writer.write(&buffer[..read])?;
            at += read as u64;
            self.progress
                .bytes
                .fetch_add(read as u64, Ordering::Relaxed);
        }
        writer.finish()?;
        self.progress.blobs.fetch_add(1, Ordering::Relaxed);
        self.sent(size)
    }

    /// Sends the waiting objects, blobs first.
    pub(super) fn flush(&mut self) -> Result<(), TreeError> {
        let blobs = std::mem::take(&mut self.blobs);
        self.blob_bytes = 0;
        let digests: Vec<_> = blobs.iter().map(|(digest, ..)| *digest).collect();
        let missing = self.ingest()?.missing_blobs(&digests)?;
        let missing: Vec<_> = missing.iter().filter_map(|&at| blobs.get(at)).collect();
        let skipped = (blobs.len() - missing.len()) as u64;
        self.progress.skipped.fetch_add(skipped, Ordering::Relaxed);
        let wanted: Vec<_> = missing
            .iter()
            .map(|(digest, size, _)| (*digest, *size))
            .collect();
        let mut bytes = 0;
        let mut contents = Vec::with_capacity(missing.len());
        for (read, (digest, _, place)) in self.from.read_whole(&wanted).into_iter().zip(&missing) {
            let read = read.map_err(error_at(place))?;
            let read = read.ok_or_else(|| self.absent(place, Object::Blob, *digest))?;
            bytes += read.len() as u64;
            contents.push((*digest, read));
        }
        let put: Vec<_> = contents
            .iter()
            .map(|(digest, read)| (*digest, &read[..]))
            .collect();
        self.ingest()?.put_blobs(&put)?;
        self.progress
            .blobs
            .fetch_add(put.len() as u64, Ordering::Relaxed);
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        for directory in std::mem::take(&mut self.directories) {
            self.ingest()?.put_directory(&directory)?;
        }
        self.sent(bytes)
    }

    fn sent(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.uncommitted += bytes;
        if self.uncommitted >= self.slice {
            self.commit()?;
        }
        Ok(())
    }

    fn ingest(&mut self) -> Result<&dyn Ingest, TreeError> {
        let ingest = match self.ingest.take() {
            Some(ingest) => ingest,
            None => self.to.ingest()?,
        };
        Ok(&**self.ingest.insert(ingest))
    }

    fn commit(&mut self) -> Result<(), TreeError> {
        self.uncommitted = 0;
        if let Some(ingest) = self.ingest.take() {
            let added = ingest.commit()?;
            self.added.blobs += added.blobs;
            self.added.blob_bytes += added.blob_bytes;
            self.added.directories += added.directories;
        }
        Ok(())
    }

    fn absent(&self, place: &NodePath, object: Object, digest: Digest) -> TreeError {
        TreeError::Absent {
            path: place.path(),
            store: self.from.url().to_owned(),
            object,
            digest,
        }
    }
}

/// Turns a store's error into one at `place`.
fn error_at(place: &NodePath) -> impl FnOnce(crate::store::Error) -> TreeError + '_ {
    move |error| TreeError::at(&place.path())(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Name;
    use crate::store::{MemoryStore, Store};

    #[test]
    fn an_interrupted_copy_continues_where_it_was() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (source, target) = (MemoryStore::new(), MemoryStore::new());
        let blocking =
            |store: &MemoryStore| Blocking::new(Arc::new(store.clone()), runtime.handle().clone());
        let (from, to) = (blocking(&source), blocking(&target));
        let blobs: Vec<_> = (0..3).map(|seed| vec![seed; LARGE as usize]).collect();
        let entries = blobs.iter().enumerate().map(|(index, blob)| {
            let node = Node::File {
                digest: Digest::of(blob),
                size: LARGE,
                executable: false,
            };
            (Name::new(index.to_string().as_bytes()).unwrap(), node)
        });
        let directory = Directory::from_entries(entries.collect()).unwrap();
        let root = Root {
            name: Name::new(b"tree").unwrap(),
            node: directory.node(),
        };
        let put = |blobs: &[Vec<u8>]| {
            let ingest = source.ingest().unwrap();
            for blob in blobs {
                ingest.put_blobs(&[(Digest::of(blob), blob)]).unwrap();
            }
            ingest.put_directory(&directory).unwrap();
            ingest.commit().unwrap();
        };
        put(&blobs[..2]);
        let copy = |slice| {
            let progress = CopyProgress::default();
            let copied = copy_in_slices(&from, &to, std::slice::from_ref(&root), &progress, slice);
            let counts = [&progress.blobs, &progress.skipped, &progress.directories];
            (copied, counts.map(|count| count.load(Ordering::Relaxed)))
        };
        let (broken, _) = copy(LARGE);
        let error = broken.unwrap_err().to_string();
        assert!(error.starts_with("tree/2: "), "{error}");
        assert_eq!(target.usage().unwrap().unwrap().blobs, 2);
        assert_eq!(target.usage().unwrap().unwrap().directories, 0);
        assert_eq!(to.root(b"tree").unwrap(), None);
        put(&blobs[2..]);
        let (whole, counts) = copy(LARGE);
        assert_eq!(whole.unwrap().blobs, 1);
        assert_eq!(counts, [1, 2, 1]);
        // The root and its three files; when it is there, as much is known at once.
        let progress = CopyProgress::default();
        copy_in_slices(&from, &to, &[root.clone(), root.clone()], &progress, LARGE).unwrap();
        assert_eq!(progress.entries.load(Ordering::Relaxed), 4 + 4);
        assert_eq!(to.root(b"tree").unwrap(), Some(root.clone()));
    }
}
