//! NAR hashes: what this server vouches for, it has computed.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, watch};
use tonic::{Code, Status};

use super::respond::status;
use crate::castore::Node;
use crate::nix::NarHash;
use crate::proto::castore::v1::Entry;
use crate::store::{Blocking, Store};
use crate::tree::nar::write_nar;
use crate::tree::{self, TreePath, export};

/// Trees whose hash is remembered, about 200 bytes each.
const KEPT: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not zero");
/// Trees that are rendered at once: each takes a processor and reads all of the tree.
const AT_ONCE: usize = 2;

/// The hashes that were computed last, by node.
#[derive(Clone)]
pub(super) struct Nars(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    known: Mutex<LruCache<Vec<u8>, Computed>>,
    working: Semaphore,
    stopping: watch::Receiver<bool>,
}

/// Computed once for all who ask.
type Computed = Arc<OnceCell<NarHash>>;

impl Nars {
    pub(super) fn new(store: Arc<dyn Store>, stopping: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Shared {
            store,
            known: Mutex::new(LruCache::new(KEPT)),
            working: Semaphore::new(AT_ONCE),
            stopping,
        }))
    }

    /// The NAR's hash of the tree `node`. Reads the whole tree, unless that was done before. The status
    /// is FAILED_PRECONDITION if something of the tree is not in the store.
    pub(super) async fn of(&self, node: &Node) -> Result<NarHash, Status> {
        let computed = self.computed(node);
        let compute = || async {
            let _turn = self.0.working.acquire().await;
            let (shared, node) = (self.0.clone(), node.clone());
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || shared.compute(&node, runtime))
                .await
                .unwrap_or_else(|stopped| {
                    Err(Status::internal(format!("the call broke off: {stopped}")))
                })
        };
        computed.get_or_try_init(compute).await.copied()
    }

    /// What is known of it already.
    pub(super) fn known(&self, node: &Node) -> Option<NarHash> {
        let key = key(node);
        self.0.known.lock().get(&key)?.get().copied()
    }

    fn computed(&self, node: &Node) -> Computed {
        let mut known = self.0.known.lock();
        known.get_or_insert(key(node), Computed::default).clone()
    }
}

/// Whether `error` says that something of a tree is not there.
pub(super) fn is_incomplete(error: &Status) -> bool {
    error.code() == Code::FailedPrecondition
}

fn key(node: &Node) -> Vec<u8> {
    Entry::anonymous(node).encode_to_vec()
}

impl Shared {
    fn compute(&self, node: &Node, runtime: Handle) -> Result<NarHash, Status> {
        let store = Blocking::new(self.store.clone(), runtime);
        let mut sink = Sink {
            hasher: Sha256::new(),
            size: 0,
            stopping: self.stopping.clone(),
        };
        let progress = export::Progress::default();
        write_nar(&store, &TreePath::new(b""), node, &mut sink, &progress).map_err(|error| {
            match &error {
                tree::Error::Absent { .. } => Status::failed_precondition(error.to_string()),
                tree::Error::Object { source, .. } | tree::Error::Store(source) => status(source),
                tree::Error::Output(_) => Status::unavailable("the server is stopping"),
                _ => Status::internal(error.to_string()),
            }
        })?;
        Ok(NarHash {
            size: sink.size,
            sha256: sink.hasher.finalize().into(),
        })
    }
}

/// Hashes what is written to it, until the server stops.
struct Sink {
    hasher: Sha256,
    size: u64,
    stopping: watch::Receiver<bool>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.stopping.borrow() {
            return Err(io::ErrorKind::Other.into());
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
