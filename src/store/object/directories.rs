//! Directories, by the closure.
//!
//! `dirs/…` holds, under the digest of a closure's root, every Directory of the closure: zstd of,
//! for each, its length as a big-endian u32 and its bytes; the root first, each after one that
//! refers to it. A Directory that is not the root of a closure is found through a closure that
//! contains it, so that closure is remembered.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::blobs::MAX_WINDOW;
use super::bucket::Bucket;
use crate::castore::{Digest, Directory, NodeRef};
use crate::proto::MAX_MESSAGE_BYTES;
use crate::store::bounded::Bounded;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::single_flight::SingleFlight;
use crate::store::{Damage, Object};

/// The largest closure, in bytes: some ten million entries.
const MAX_CLOSURE: u64 = 1 << 30;
/// Directories whose closure is remembered: 64 MiB.
const KNOWN: usize = 1 << 20;
/// zstd's own default.
const LEVEL: i32 = 3;

/// A closure, root first, as far as it is cached.
#[derive(Debug)]
struct FetchedClosure {
    directories: Vec<Directory>,
    /// Whether every Directory of it was read.
    is_whole: bool,
}

/// The Directories of a bucket.
#[derive(Debug)]
pub(super) struct ClosureDirectories {
    bucket: Arc<Bucket>,
    cached: Mutex<Bounded<Digest, Directory>>,
    /// The root of a closure that each is in.
    closures: Mutex<Bounded<Digest, Digest>>,
    fetching: SingleFlight<Digest, Result<Option<Arc<FetchedClosure>>, CallFailure>>,
    /// Bytes of one closure that are cached: half of the cache, so that none evicts all others.
    most_kept: usize,
}

impl ClosureDirectories {
    pub(super) fn new(bucket: Arc<Bucket>, cache_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            cached: Mutex::new(Bounded::new(cache_bytes)),
            closures: Mutex::new(Bounded::new(KNOWN)),
            fetching: SingleFlight::default(),
            most_kept: cache_bytes / 2,
        })
    }

    pub(super) fn cached(&self, digest: &Digest) -> Option<Directory> {
        self.cached.lock().get(digest)
    }

    pub(super) async fn get(&self, digest: &Digest) -> Result<Option<Directory>, CallFailure> {
        if let Some(directory) = self.cached(digest) {
            return Ok(Some(directory));
        }
        let mut root = self.source(digest);
        loop {
            let (bucket, wanted, most) = (self.bucket.clone(), *digest, self.most_kept);
            let fetched = self
                .fetching
                .join(root, &self.bucket.runtime, || async move {
                    let path = bucket.path("dirs", &root);
                    let start =
                        || ClosureReader::new(&bucket, root, ClosureUse::Cache { wanted, most });
                    let Some(reader) = bucket.fetch(&path, start, take_packed).await? else {
                        return Ok(None);
                    };
                    let reader = reader.map_err(|error| {
                        CallFailure::Failed(FailureKind::Other, error.to_string())
                    })?;
                    Ok(Some(Arc::new(reader.finish()?)))
                });
            let fetched = fetched
                .await
                .unwrap_or_else(|| Err(CallFailure::crashed()))?;
            let Some(closure) = fetched else {
                if root == *digest {
                    return Ok(None);
                }
                // That closure was deleted: this Directory may have one of its own.
                root = *digest;
                self.closures.lock().remove(digest);
                continue;
            };
            let mut found = None;
            let (mut cached, mut closures) = (self.cached.lock(), self.closures.lock());
            for directory in &closure.directories {
                let own = directory.digest();
                if own == *digest {
                    found = Some(directory.clone());
                }
                closures.insert(own, root, 1);
                cached.insert(own, directory.clone(), directory.resident_bytes());
            }
            // Another reader's fetch may have ended before it came to this one.
            if found.is_some() || closure.is_whole {
                return Ok(found);
            }
        }
    }

    /// The root of the closure that `digest` is read from, unless it is cached.
    pub(super) fn source(&self, digest: &Digest) -> Digest {
        self.closures.lock().get(digest).unwrap_or(*digest)
    }

    /// Passes each Directory of the closure of `root` to `visit`, without caching them; returns whether
    /// there is such a closure. After a failure that is repeated, each comes again.
    pub(super) async fn visit(
        &self,
        root: Digest,
        visit: &DirectoryVisitor,
    ) -> Result<bool, CallFailure> {
        let path = self.bucket.path("dirs", &root);
        let start = || ClosureReader::new(&self.bucket, root, ClosureUse::Visit(visit.clone()));
        let Some(reader) = self.bucket.fetch(&path, start, take_packed).await? else {
            return Ok(false);
        };
        let reader =
            reader.map_err(|error| CallFailure::Failed(FailureKind::Other, error.to_string()))?;
        reader.finish().map(|_| true)
    }

    /// Writes a closure; `leaves_first` ends with its root.
    pub(super) async fn put(&self, leaves_first: &[Directory]) -> Result<(), CallFailure> {
        let Some(root) = leaves_first.last() else {
            return Ok(());
        };
        let mut plain = Vec::new();
        for directory in leaves_first.iter().rev() {
            let bytes = directory.as_bytes();
            plain.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            plain.extend_from_slice(bytes);
        }
        let packed = zstd::encode_all(&plain[..], LEVEL)
            .map_err(|error| CallFailure::Failed(FailureKind::Other, error.to_string()))?;
        let path = self.bucket.path("dirs", &root.digest());
        self.bucket.put(&path, Bytes::from(packed)).await
    }
}

/// A function for each Directory of a closure.
pub(super) type DirectoryVisitor = Arc<dyn Fn(&Directory) -> Result<(), CallFailure> + Send + Sync>;

/// What becomes of the Directories of a closure.
enum ClosureUse {
    /// They are cached up to `most` bytes, and `wanted` in any case.
    Cache {
        wanted: Digest,
        most: usize,
    },
    Visit(DirectoryVisitor),
}

/// Passes packed bytes on to a reader, if it could be made.
fn take_packed(
    reader: &mut std::io::Result<ClosureReader>,
    packed: Bytes,
) -> Result<bool, CallFailure> {
    match reader {
        Ok(reader) => reader.take(&packed),
        Err(_) => Ok(false),
    }
}

/// A closure that is unpacked and parsed as it comes, so that an invalid one is detected at its
/// first wrong byte, and only useful parts are held.
struct ClosureReader {
    unpacker: zstd::stream::write::Decoder<'static, ClosureParser>,
    path: String,
}

/// The Directories of a closure, out of its unpacked bytes.
struct ClosureParser {
    bucket: Arc<Bucket>,
    root: Digest,
    purpose: ClosureUse,
    path: String,
    /// The bytes after the last whole Directory.
    rest: Vec<u8>,
    came: u64,
    announced: HashSet<Digest>,
    /// Announced Directories that have not come.
    awaited: HashSet<Digest>,
    /// Those that are to be cached, and their bytes.
    directories: Vec<Directory>,
    kept: usize,
    has_root: bool,
    has_wanted: bool,
    /// Why it is invalid: the unpacker can return only an I/O error.
    failure: Option<CallFailure>,
}

impl ClosureReader {
    /// For the closure of `root`.
    fn new(bucket: &Arc<Bucket>, root: Digest, purpose: ClosureUse) -> std::io::Result<Self> {
        let path = bucket.path("dirs", &root);
        let parser = ClosureParser {
            bucket: bucket.clone(),
            root,
            purpose,
            path: path.clone(),
            rest: Vec::new(),
            came: 0,
            announced: HashSet::from([root]),
            awaited: HashSet::from([root]),
            directories: Vec::new(),
            kept: 0,
            has_root: false,
            has_wanted: false,
            failure: None,
        };
        let mut unpacker = zstd::stream::write::Decoder::new(parser)?;
        unpacker.window_log_max(MAX_WINDOW)?;
        Ok(Self { unpacker, path })
    }

    /// Takes more packed bytes; returns whether more are useful.
    fn take(&mut self, packed: &[u8]) -> Result<bool, CallFailure> {
        let unpacked = self.unpacker.write_all(packed);
        self.check(unpacked)?;
        Ok(!self.unpacker.get_ref().has_enough())
    }

    fn check(&mut self, unpacked: std::io::Result<()>) -> Result<(), CallFailure> {
        let Err(error) = unpacked else { return Ok(()) };
        let known = self.unpacker.get_mut().failure.take();
        Err(known.unwrap_or_else(|| {
            CallFailure::Failed(FailureKind::Corrupt, format!("{}: {error}", self.path))
        }))
    }

    /// Everything that was cached.
    fn finish(mut self) -> Result<FetchedClosure, CallFailure> {
        let flushed = self.unpacker.flush();
        self.check(flushed)?;
        let parser = self.unpacker.into_inner();
        let is_whole = !parser.has_enough();
        if !parser.has_root {
            return Err(parser.wrong("it is empty"));
        }
        if is_whole && !(parser.rest.is_empty() && parser.awaited.is_empty()) {
            return Err(parser.wrong("it ends too early"));
        }
        Ok(FetchedClosure {
            directories: parser.directories,
            is_whole,
        })
    }
}

impl ClosureParser {
    fn has_enough(&self) -> bool {
        match self.purpose {
            ClosureUse::Cache { most, .. } => self.has_wanted && self.kept >= most,
            ClosureUse::Visit(_) => false,
        }
    }

    fn wrong(&self, why: &str) -> CallFailure {
        CallFailure::Failed(FailureKind::Corrupt, format!("{}: {why}", self.path))
    }

    /// Parses the complete Directories of what has come.
    fn parse(&mut self) -> Result<(), CallFailure> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut at = 0;
        while !self.has_enough()
            && let Some(length) = bytes[at..].first_chunk()
        {
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_MESSAGE_BYTES {
                return Err(self.wrong(&format!("a directory of {length} bytes is announced")));
            }
            let Some(directory) = bytes.get(at + 4..at + 4 + length) else {
                break;
            };
            self.directory(directory)?;
            at += 4 + length;
        }
        bytes.drain(..at);
        self.rest = bytes;
        Ok(())
    }

    fn directory(&mut self, bytes: &[u8]) -> Result<(), CallFailure> {
        let is_root = !self.has_root;
        let directory = match is_root {
            true => Directory::decode_verified(bytes, &self.root).map_err(|error| {
                tracing::error!("{:?} holds {}, and {error}", self.bucket, self.path);
                CallFailure::Damaged(Object::Directory, self.root, Damage::Directory(error))
            })?,
            false => Directory::decode(bytes).map_err(|error| self.wrong(&error.to_string()))?,
        };
        let own = directory.digest();
        if !self.announced.contains(&own) {
            return Err(self.wrong(&format!("nothing before {own} refers to it")));
        }
        let children = directory.iter().filter_map(|entry| match entry.node {
            NodeRef::Directory { digest, .. } => Some(digest),
            _ => None,
        });
        for child in children {
            // The empty Directory needs no bytes, and some writers omit it.
            if self.announced.insert(child) && child != Digest::empty_blob() {
                self.awaited.insert(child);
            }
        }
        self.awaited.remove(&own);
        self.has_root = true;
        match &self.purpose {
            ClosureUse::Cache { wanted, most } => {
                let is_wanted = own == *wanted;
                self.has_wanted |= is_wanted;
                if is_root || is_wanted || self.kept < *most {
                    self.kept += directory.resident_bytes();
                    self.directories.push(directory);
                }
                Ok(())
            }
            ClosureUse::Visit(visit) => visit(&directory),
        }
    }
}

impl Write for ClosureParser {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.has_enough() {
            return Ok(bytes.len());
        }
        self.came += bytes.len() as u64;
        self.rest.extend_from_slice(bytes);
        let parsed = match self.came > MAX_CLOSURE {
            true => Err(self.wrong(&format!("it unpacks to more than {MAX_CLOSURE} bytes"))),
            false => self.parse(),
        };
        parsed.map_err(|failure| {
            self.failure = Some(failure);
            std::io::Error::from(std::io::ErrorKind::InvalidData)
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
