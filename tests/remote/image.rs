//! The image of a tree in an upstream, mounted by EROFS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::fs::FsOptions;
use castore_fs::store::{GrpcStore, MemoryStore, Store};
use kit::link::{Link, Terms};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::server::Server;
use kit::skip::skip;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{name, noise, put_directory, put_file, put_root};

const DIRS: u64 = 500;
const FILES: u64 = 100;

/// A mount that goes when it is dropped.
struct Image<'a>(&'a Path);

impl Drop for Image<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// How many names are below `dir`.
fn names(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap();
    let counts = entries.map(|entry| {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        1 + if found.is_dir() {
            names(&entry.path())
        } else {
            0
        }
    });
    counts.sum()
}

#[test]
fn fifty_thousand_names_are_mounted_and_listed_in_three_round_trips_without_a_blob() {
    if !can_mount() {
        return;
    }
    let store = MemoryStore::new();
    put_root(&store, "tree", |ingest| {
        let dirs = (0..DIRS).map(|dir| {
            let files = (0..FILES).map(|file| {
                let content = noise(dir * FILES + file, 64);
                (name(&format!("{file}")), put_file(ingest, &content))
            });
            let node = put_directory(ingest, files.collect());
            (name(&format!("dir-{dir}")), node)
        });
        put_directory(ingest, dirs.collect())
    });
    let server = Server::read_only(Arc::new(store));
    let terms = Terms {
        round_trip: Duration::from_millis(10),
        bytes_per_second: None,
    };
    let address = server.url.trim_start_matches("grpc+http://");
    let link = Link::to(address.parse().unwrap(), terms);
    let upstream = GrpcStore::open(&format!("grpc+http://{}", link.address())).unwrap();
    // Connecting, and finding out what the server is, is no part of it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(
        runtime
            .block_on(upstream.root(b"missing"))
            .unwrap()
            .is_none()
    );
    let before = upstream.calls();
    let root = runtime.block_on(upstream.root(b"tree")).unwrap().unwrap();
    let options = FsOptions {
        mount_root: mount_root_of(&root.node),
        images: Some(Arc::default()),
        ..FsOptions::default()
    };
    let mounted = Mounted::new(Arc::new(upstream.clone()), options);
    let at = tempfile::tempdir().unwrap();
    let digest = root.node.digest().unwrap().to_hex();
    let file = mounted.join(format!(".images/{digest}.erofs"));
    let image = rustix::mount::mount(&file, at.path(), "erofs", MountFlags::RDONLY, c"");
    if let Err(error) = image {
        return skip(&format!(
            "it needs EROFS backed by a file (Linux 6.12): {error}"
        ));
    }
    let _image = Image(at.path());
    assert_eq!(names(at.path()), DIRS * (FILES + 1));
    // The root by its name, and its Directories.
    let calls = upstream.calls() - before;
    println!("{calls} calls");
    assert!(calls <= 3, "{calls} calls");
    let read = std::fs::read(at.path().join("dir-7/3")).unwrap();
    assert!(read == noise(7 * FILES + 3, 64));
    assert!(upstream.calls() - before > calls, "a blob had been fetched");
}
