//! Directories, by the closure.
//!
//! `dirs/…` holds, under the digest of a closure's root, every Directory of the closure: zstd of,
//! for each, its length as a big-endian u32 and its bytes; the root first, each after one that
//! refers to it. A Directory that is no closure's root is found through one whose closure it is in,
//! so it is remembered which that was.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tonic::Code;

use super::blobs::unpacked;
use super::bucket::Bucket;
use crate::castore::{Digest, Directory, NodeRef};
use crate::store::bounded::Bounded;
use crate::store::failure::Failure;
use crate::store::flights::Flights;
use crate::store::{Damage, Object};

/// The largest closure, in bytes: some ten million entries.
const MAX_CLOSURE: u64 = 1 << 30;
/// Directories whose closure is remembered: 64 MiB.
const KNOWN: usize = 1 << 20;
/// zstd's own default.
const LEVEL: i32 = 3;

/// A closure, root first.
type Closure = Arc<Vec<Directory>>;

/// The Directories of a bucket.
#[derive(Debug)]
pub(super) struct ClosureDirectories {
    bucket: Arc<Bucket>,
    here: Mutex<Bounded<Digest, Directory>>,
    /// The root of a closure that each is in.
    closures: Mutex<Bounded<Digest, Digest>>,
    fetching: Flights<Digest, Result<Option<Closure>, Failure>>,
}

impl ClosureDirectories {
    pub(super) fn new(bucket: Arc<Bucket>, cache_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            here: Mutex::new(Bounded::new(cache_bytes)),
            closures: Mutex::new(Bounded::new(KNOWN)),
            fetching: Flights::default(),
        })
    }

    pub(super) fn here(&self, digest: &Digest) -> Option<Directory> {
        self.here.lock().get(digest)
    }

    pub(super) async fn get(&self, digest: &Digest) -> Result<Option<Directory>, Failure> {
        if let Some(directory) = self.here(digest) {
            return Ok(Some(directory));
        }
        let root = self.closures.lock().get(digest).unwrap_or(*digest);
        let bucket = self.bucket.clone();
        let fetched = self
            .fetching
            .join(root, &self.bucket.runtime, || async move {
                let packed = bucket.get(&bucket.path("dirs", &root)).await?;
                let closure = packed.map(|packed| decode(&bucket, &packed, &root));
                Ok(closure.transpose()?.map(Arc::new))
            });
        let fetched = fetched.await.unwrap_or_else(|| Err(Failure::crashed()))?;
        let Some(closure) = fetched else {
            return Ok(None);
        };
        let mut found = None;
        let (mut here, mut closures) = (self.here.lock(), self.closures.lock());
        for directory in closure.iter() {
            let own = directory.digest();
            if own == *digest {
                found = Some(directory.clone());
            }
            closures.insert(own, root, 1);
            here.insert(own, directory.clone(), directory.resident_bytes());
        }
        Ok(found)
    }

    /// Writes a closure; `leaves_first` ends with its root.
    pub(super) async fn put(&self, leaves_first: &[Directory]) -> Result<(), Failure> {
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
            .map_err(|error| Failure::Status(Code::Internal, error.to_string()))?;
        let path = self.bucket.path("dirs", &root.digest());
        self.bucket.put(&path, Bytes::from(packed)).await
    }
}

fn decode(bucket: &Bucket, packed: &[u8], root: &Digest) -> Result<Vec<Directory>, Failure> {
    let path = bucket.path("dirs", root);
    let wrong = |why: String| Failure::Status(Code::DataLoss, format!("{path}: {why}"));
    let plain = unpacked(packed, MAX_CLOSURE).map_err(|error| wrong(error.to_string()))?;
    let mut rest = &plain[..];
    let mut directories = Vec::new();
    let mut announced = HashSet::from([*root]);
    while !rest.is_empty() {
        let (length, after) = rest
            .split_first_chunk()
            .ok_or_else(|| wrong("it ends inside a length".to_owned()))?;
        let (bytes, after) = after
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or_else(|| wrong("it ends inside a directory".to_owned()))?;
        rest = after;
        let directory = match directories.is_empty() {
            true => Directory::decode_verified(bytes, root).map_err(|error| {
                tracing::error!("{bucket:?} holds {path}, and {error}");
                Failure::Damaged(Object::Directory, *root, Damage::Directory(error))
            })?,
            false => Directory::decode(bytes).map_err(|error| wrong(error.to_string()))?,
        };
        if !announced.contains(&directory.digest()) {
            let strange = directory.digest();
            return Err(wrong(format!("nothing before {strange} refers to it")));
        }
        announced.extend(directory.iter().filter_map(|entry| match entry.node {
            NodeRef::Directory { digest, .. } => Some(digest),
            _ => None,
        }));
        directories.push(directory);
    }
    if directories.is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    Ok(directories)
}
