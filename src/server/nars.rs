//! NAR hashes, computed by this server.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, watch};
use tonic::{Code, Status};

use super::respond::status;
use super::turns::{ConnectionTurns, WorkSlice};
use crate::castore::Node;
use crate::nix::NarHash;
use crate::proto::castore::v1::Entry;
use crate::store::{Blocking, Store};
use crate::tree::nar::write_nar;
use crate::tree::{self, TreePath, export};

/// Trees whose hash is cached, about 200 bytes each.
const KEPT: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not zero");
/// Bytes of a NAR, at most. Each Directory may have the same one below it many times: a hundred of them
/// make a NAR that no machine ends.
const LONGEST: u64 = 1 << 40;

/// The hashes that were computed last, by node.
#[derive(Clone)]
pub(super) struct NarHashes(Arc<NarHashesShared>);

struct NarHashesShared {
    store: Arc<dyn Store>,
    known: Mutex<LruCache<Vec<u8>, ComputedNarHash>>,
    /// Bytes of a NAR, at most.
    longest: u64,
    stopping: watch::Receiver<bool>,
}

/// Computed once for all requests.
type ComputedNarHash = Arc<OnceCell<NarHash>>;

impl NarHashes {
    pub(super) fn new(store: Arc<dyn Store>, stopping: watch::Receiver<bool>) -> Self {
        Self(Arc::new(NarHashesShared {
            store,
            known: Mutex::new(LruCache::new(KEPT)),
            longest: LONGEST,
            stopping,
        }))
    }

    /// The NAR's hash of the tree `node`. Reads the whole tree, unless that was done before. The status
    /// is FAILED_PRECONDITION if something of the tree is not in the store.
    pub(super) async fn of(&self, node: &Node, turns: &ConnectionTurns) -> Result<NarHash, Status> {
        let computed = self.computed(node);
        let compute = || async {
            let (shared, node) = (self.0.clone(), node.clone());
            let runtime = Handle::current();
            turns
                .take_long(move |slice| shared.compute(&node, runtime, slice))
                .await
        };
        computed.get_or_try_init(compute).await.copied()
    }

    /// Remembers the hash of a NAR that was taken apart into `node`.
    pub(super) fn remember(&self, node: &Node, nar: NarHash) {
        // One that is being computed gives the same.
        let _ = self.computed(node).set(nar);
    }

    /// The hash, if it is known already.
    pub(super) fn known(&self, node: &Node) -> Option<NarHash> {
        let key = key(node);
        self.0.known.lock().get(&key)?.get().copied()
    }

    fn computed(&self, node: &Node) -> ComputedNarHash {
        let mut known = self.0.known.lock();
        known
            .get_or_insert(key(node), ComputedNarHash::default)
            .clone()
    }
}

/// Whether `error` means that an object of a tree is missing.
pub(super) fn is_incomplete(error: &Status) -> bool {
    error.code() == Code::FailedPrecondition
}

fn key(node: &Node) -> Vec<u8> {
    Entry::anonymous(node).encode_to_vec()
}

impl NarHashesShared {
    fn compute(
        &self,
        node: &Node,
        runtime: Handle,
        slice: &mut WorkSlice,
    ) -> Result<NarHash, Status> {
        let store = Blocking::new(self.store.clone(), runtime).before_waiting(slice.give_up());
        let mut sink = NarHashSink {
            hasher: Sha256::new(),
            size: 0,
            longest: self.longest,
            slice,
            stopping: self.stopping.clone(),
        };
        let progress = export::ExportProgress::default();
        write_nar(&store, &TreePath::new(b""), node, &mut sink, &progress).map_err(|error| {
            match &error {
                tree::TreeError::Absent { .. } => Status::failed_precondition(error.to_string()),
                tree::TreeError::Object { source, .. } | tree::TreeError::Store(source) => status(source),
                tree::TreeError::Output(_) if sink.size > self.longest => {
                    let most = self.longest;
                    Status::resource_exhausted(format!(
                        "the NAR of this tree has more than {most} bytes, and this server computes no \
                         longer ones"
                    ))
                }
                tree::TreeError::Output(_) => {
                    Status::unavailable("the server is stopping, or the client has gone away")
                }
                _ => Status::internal(error.to_string()),
            }
        })?;
        Ok(NarHash {
            size: sink.size,
            sha256: sink.hasher.finalize().into(),
        })
    }
}

/// Hashes what is written to it, until the server stops or no request waits for the result.
struct NarHashSink<'a> {
    hasher: Sha256,
    size: u64,
    longest: u64,
    slice: &'a mut WorkSlice,
    stopping: watch::Receiver<bool>,
}

impl Write for NarHashSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        if !self.slice.may_continue() || *self.stopping.borrow() || self.size > self.longest {
            return Err(io::ErrorKind::Other.into());
        }
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::ClientId;
    use super::super::turns::ServerTurns;
    use super::*;
    use crate::castore::Digest;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_nar_has_an_end() {
        let store = MemoryStore::new();
        let file = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            let ingest = store.ingest().unwrap();
            ingest.put_blobs(&[(digest, bytes)]).unwrap();
            ingest.commit().unwrap();
            Node::File {
                digest,
                size: bytes.len() as u64,
                executable: false,
            }
        };
        let (_stop, stopping) = watch::channel(false);
        let nars = NarHashes(Arc::new(NarHashesShared {
            store: Arc::new(store.clone()),
            known: Mutex::new(LruCache::new(NonZeroUsize::new(2).unwrap())),
            longest: 1000,
            stopping,
        }));
        let turns = ServerTurns::new().share(ClientId::Server);
        let long = nars.of(&file(&[7; 2000]), &turns).await.unwrap_err();
        assert_eq!(long.code(), Code::ResourceExhausted, "{long}");
        let node = file(b"short");
        let short = nars.of(&node, &turns).await.unwrap();
        assert_eq!(nars.known(&node), Some(short));
        // Two are remembered.
        for other in [b"a", b"b"] {
            nars.of(&file(other), &turns).await.unwrap();
        }
        assert_eq!(nars.known(&node), None);
    }
}
