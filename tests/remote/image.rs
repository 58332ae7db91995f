//! The image of a tree far away, mounted by EROFS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::fs::Options;
use castore_fs::store::{GrpcStore, MemoryStore, Store};
use kit::link::{Link, Terms};
use kit::mounted::{Mounted, can_mount, top_of};
use kit::server::Server;
use kit::skip::skip;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{name, noise, put_directory, put_file, put_root};

const FOLDERS: u64 = 500;
const FILES: u64 = 100;

/// A mount that goes when it is dropped.
struct Image<'a>(&'a Path);

impl Drop for Image<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// How many names are below `folder`.
fn names(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
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
        let folders = (0..FOLDERS).map(|folder| {
            let files = (0..FILES).map(|file| {
                let content = noise(folder * FILES + file, 64);
                (name(&format!("{file}")), put_file(ingest, &content))
            });
            let node = put_directory(ingest, files.collect());
            (name(&format!("folder-{folder}")), node)
        });
        put_directory(ingest, folders.collect())
    });
    let server = Server::read_only(Arc::new(store));
    let terms = Terms {
        round_trip: Duration::from_millis(10),
        bytes_per_second: None,
    };
    let address = server.url.trim_start_matches("grpc+http://");
    let link = Link::to(address.parse().unwrap(), terms);
    let far = GrpcStore::open(&format!("grpc+http://{}", link.address())).unwrap();
    // Connecting, and finding out what the server is, is no part of it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(far.root(b"missing")).unwrap().is_none());
    let before = far.calls();
    let root = runtime.block_on(far.root(b"tree")).unwrap().unwrap();
    let options = Options {
        top: top_of(&root.node),
        images: Some(Arc::default()),
        ..Options::default()
    };
    let mounted = Mounted::new(Arc::new(far.clone()), options);
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
    assert_eq!(names(at.path()), FOLDERS * (FILES + 1));
    // The root by its name, and its Directories.
    let calls = far.calls() - before;
    println!("{calls} calls");
    assert!(calls <= 3, "{calls} calls");
    let read = std::fs::read(at.path().join("folder-7/3")).unwrap();
    assert!(read == noise(7 * FILES + 3, 64));
    assert!(far.calls() - before > calls, "a blob had been fetched");
}
