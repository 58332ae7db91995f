//! A mount for the length of a test.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use castore_fs::castore::Node;
use castore_fs::fs::{Options, Top};
use castore_fs::store::Store;
use castore_fs::transport::fuse::{MountOptions, RequestCounts, Session};

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
});

/// Whether this machine can mount. If not the test is skipped.
pub fn can_mount() -> bool {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    let Err(error) = device else { return true };
    crate::skip::skip(&format!("it needs a mount, and /dev/fuse: {error}"));
    false
}

/// A mount that goes when it is dropped.
pub struct Mounted {
    pub session: Session,
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Mounts `store` with `options`.
    pub fn new(store: Arc<dyn Store>, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = MountOptions {
            threads: 3,
            ..MountOptions::default()
        };
        let runtime = RUNTIME.handle().clone();
        let session = Session::mount(store, folder.path(), options, &mount, runtime).unwrap();
        Self { session, folder }
    }

    /// Mounts the directory `node` as the top.
    pub fn top(store: Arc<dyn Store>, node: &Node) -> Self {
        Self::new(
            store,
            Options {
                top: top_of(node),
                ..Options::default()
            },
        )
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The requests that `work` makes, and what it gives.
    pub fn requests_of<T>(&self, work: impl FnOnce() -> T) -> (RequestCounts, T) {
        let before = self.session.requests();
        let outcome = work();
        (self.session.requests().since(&before), outcome)
    }
}

pub fn top_of(node: &Node) -> Top {
    match node {
        Node::Directory { digest, size } => Top::Directory {
            digest: *digest,
            size: *size,
        },
        other => panic!("{other:?} is no directory"),
    }
}
