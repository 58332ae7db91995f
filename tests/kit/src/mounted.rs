//! A mount for the length of a test.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use castore_fs::castore::Node;
use castore_fs::fs::{FsOptions, MountRoot};
use castore_fs::store::Store;
use castore_fs::transport::fuse::{FuseSession, MountOptions, RequestCounts};

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
    pub session: FuseSession,
    dir: tempfile::TempDir,
}

impl Mounted {
    /// Mounts `store` with `options`.
    pub fn new(store: Arc<dyn Store>, options: FsOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = MountOptions {
            threads: 3,
            ..MountOptions::default()
        };
        let runtime = RUNTIME.handle().clone();
        let session = FuseSession::mount(store, dir.path(), options, &mount, runtime).unwrap();
        Self { session, dir }
    }

    /// Mounts the directory `node` as the top.
    pub fn mount_root(store: Arc<dyn Store>, node: &Node) -> Self {
        Self::new(
            store,
            FsOptions {
                mount_root: mount_root_of(node),
                ..FsOptions::default()
            },
        )
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The requests that `work` makes, and what it gives.
    pub fn requests_of<T>(&self, work: impl FnOnce() -> T) -> (RequestCounts, T) {
        let before = self.session.requests();
        let outcome = work();
        (self.session.requests().since(&before), outcome)
    }
}

pub fn mount_root_of(node: &Node) -> MountRoot {
    match node {
        Node::Directory { digest, size } => MountRoot::Directory {
            digest: *digest,
            size: *size,
        },
        other => panic!("{other:?} is no directory"),
    }
}
