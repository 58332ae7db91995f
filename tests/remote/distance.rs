//! An upstream with a round trip of 10 ms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::castore::{Digest, Node};
use castore_fs::image::{ImageRoot, ImageVersion};
use castore_fs::store::{GrpcStore, Store};
use castore_fs::tree::ImageFile;
use castore_fs::tree::copy::{CopyProgress, copy};

use super::{memory, name, noise, put_directory, put_file, put_root, put_tree, walk};
use kit::link::{Link, Terms};
use kit::mounted::{Mounted, can_mount};
use kit::server::Server;

const ROUND_TRIP: Duration = Duration::from_millis(10);

/// A way to the server at `url`, of any bandwidth.
fn long_way_to(url: &str) -> Link {
    let target = url.trim_start_matches("grpc+http://").parse().unwrap();
    let terms = Terms {
        round_trip: ROUND_TRIP,
        bytes_per_second: None,
    };
    Link::to(target, terms)
}

async fn connected(link: &Link) -> GrpcStore {
    let client = GrpcStore::open(&format!("grpc+http://{}", link.address())).unwrap();
    // Connecting is no part of what is measured.
    assert!(client.root(b"missing").await.unwrap().is_none());
    client
}

/// Does `work` over `client`, which may take so many calls and no more; prints how long that took.
/// A call is a round trip at most.
async fn within<T>(what: &str, client: &GrpcStore, most: u64, work: impl Future<Output = T>) -> T {
    let (before, started) = (client.calls(), Instant::now());
    let outcome = work.await;
    let (calls, took) = (client.calls() - before, started.elapsed());
    println!("{what}: {calls} calls, {took:?} at {ROUND_TRIP:?} a round trip");
    assert!(calls <= most, "{what} took {calls} calls");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_costs_few_round_trips() {
    let store = memory();
    let large = noise(1, 64 << 20);
    let root = put_root(&store, "far", |ingest| {
        let large = put_file(ingest, &large);
        let tree = put_tree(ingest, 1, 17, 3);
        put_directory(ingest, vec![(name("large"), large), (name("tree"), tree)])
    });
    let server = Server::tcp(Arc::new(store));
    let link = long_way_to(&server.url);

    let client = connected(&link).await;
    let found = walk(&client, &root.node);
    let found = within("find over 5,221 directories", &client, 10, found).await;
    assert_eq!(found, 5221);

    let (digest, size) = (Digest::of(&large), large.len() as u64);
    let client = connected(&link).await;
    let first = client.read(&digest, size, 0, 1);
    let first = within("the first byte of a cold 64 MiB blob", &client, 3, first).await;
    assert_eq!(first.unwrap().unwrap(), large[..1]);

    let client = connected(&link).await;
    let all = async {
        let mut at = 0;
        while at < size {
            let read = client.read(&digest, size, at, 128 << 10).await;
            let read = read.unwrap().unwrap();
            assert_eq!(read, large[at as usize..at as usize + read.len()]);
            at += read.len() as u64;
        }
    };
    // In 512 reads of 128 KiB. The printed time shows how many of these calls overlap.
    within("64 MiB from front to back", &client, 256, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_of_an_image_takes_three_round_trips() {
    let store = memory();
    // Nodes of blobs that are nowhere: none is requested.
    let root = put_root(&store, "tree", |ingest| {
        let directories = (0..1000u32).map(|d| {
            let files = (0..49u32).map(|f| {
                let node = Node::File {
                    digest: Digest::of(&(d * 49 + f).to_le_bytes()),
                    size: 1000,
                    executable: false,
                };
                (name(&format!("file {f}")), node)
            });
            let files = files.collect();
            (
                name(&format!("directory {d}")),
                put_directory(ingest, files),
            )
        });
        let directories = directories.collect();
        put_directory(ingest, directories)
    });
    let server = Server::tcp(Arc::new(store));
    let link = long_way_to(&server.url);
    let client = connected(&link).await;
    let upstream: Arc<dyn Store> = Arc::new(client.clone());
    let runtime = tokio::runtime::Handle::current();
    let listed = tokio::task::spawn_blocking(move || {
        let mount_root = ImageRoot::Directory(root.node.digest().unwrap());
        let image =
            ImageFile::new(upstream, mount_root, ImageVersion::default(), &runtime).unwrap();
        let mut metadata = vec![0; image.layout().metadata_size() as usize];
        image.read_at(0, &mut metadata, &runtime).unwrap();
        image.layout().paths()
    });
    let what = "the metadata of an image of 50,000 names";
    let paths = within(what, &client, 3, listed).await.unwrap();
    assert_eq!(paths, 50_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_to_an_upstream_waits_by_the_batch() {
    let source = memory();
    let root = put_root(&source, "tree", |ingest| put_tree(ingest, 1, 9, 3));
    let target = memory();
    let server = Server::tcp(Arc::new(target.clone()));
    let link = long_way_to(&server.url);
    let client = connected(&link).await;
    let runtime = tokio::runtime::Handle::current();
    let upstream = client.clone();
    let copied = tokio::task::spawn_blocking(move || {
        use castore_fs::store::Blocking;
        let from = Blocking::new(Arc::new(source), runtime.clone());
        let to = Blocking::new(Arc::new(upstream), runtime);
        copy(&from, &to, &[root], &CopyProgress::default()).unwrap()
    });
    let what = "a copy of 820 directories with a file each";
    let copied = within(what, &client, 40, copied).await.unwrap();
    assert_eq!((copied.directories, copied.blobs), (820, 820));
    assert_eq!(target.roots().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_is_cut_costs_what_is_not_here_and_nothing_once_it_is_mended() {
    let store = memory();
    let large = noise(1, 8 << 20);
    put_root(&store, "large", |ingest| put_file(ingest, &large));
    let server = Server::tcp(Arc::new(store));
    let link = long_way_to(&server.url);
    let client = connected(&link).await;
    let (digest, size) = (Digest::of(&large), large.len() as u64);
    let read = |at: u64| {
        let client = client.clone();
        async move { client.read(&digest, size, at, 1000).await }
    };
    assert_eq!(read(0).await.unwrap().unwrap(), large[..1000]);
    link.cut();
    // Wherever it is interrupted, the reader gets an error, and does not wait for ever.
    let failed = tokio::time::timeout(Duration::from_secs(40), read(size - 1000)).await;
    failed.expect("a reader hangs").unwrap_err();
    assert_eq!(read(10).await.unwrap().unwrap(), large[10..1010]);
    link.mend();
    let started = Instant::now();
    let last = loop {
        match read(size - 1000).await {
            Ok(last) => break last.unwrap(),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(40), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(last, large[large.len() - 1000..]);
}

#[test]
fn reads_here_and_there_fetch_what_they_read_and_nothing_else() {
    if !can_mount() {
        return;
    }
    const FILES: u64 = 400;
    let store = memory();
    let root = put_root(&store, "files", |ingest| {
        let files = (0..FILES).map(|index| {
            let content = noise(index, 20_000);
            (name(&format!("{index:04}")), put_file(ingest, &content))
        });
        let files = files.collect();
        put_directory(ingest, files)
    });
    let server = Server::read_only(Arc::new(store));
    let link = long_way_to(&server.url);
    let client = GrpcStore::open(&format!("grpc+http://{}", link.address())).unwrap();
    let mount = Mounted::mount_root(Arc::new(client), &root.node);
    let read = |index: u64| std::fs::read(mount.join(format!("{index:04}"))).unwrap();
    // 37 and 400 have no common divisor: each once, none right after another.
    for step in 0..40 {
        let index = step * 37 % FILES;
        assert_eq!(read(index), noise(index, 20_000));
    }
    let (_, came) = link.carried();
    assert!(came < 40 * 20_000 * 3 / 2, "{came} bytes came");
    // In order, a walk is seen at the second file, and the rest comes together.
    for index in 0..FILES {
        assert_eq!(read(index), noise(index, 20_000));
    }
    let (_, came) = link.carried();
    assert!(
        came < FILES * 20_000 * 11 / 10,
        "{came} bytes came: some came twice"
    );
}
