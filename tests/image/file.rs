//! Images out of a store: the same bytes however it is read, and errors where they belong.

use std::sync::Arc;

use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::image::{BLOCK, ErofsReader, ImageRoot, ImageVersion};
use castore_fs::store::{MemoryStore, Store};
use castore_fs::tree::{ImageFile, ImageFileError, image_root};
use tokio::runtime::{Handle, Runtime};

use kit::double::Double;
use kit::model::{Model, directory, file, program, symlink};

fn tree() -> Model {
    let files = (0..300).map(|n| (format!("{n}"), file(vec![n as u8; n * 50])));
    directory([
        ("files", directory(files)),
        ("link", symlink("files/1")),
        ("program", program(vec![7; 3_000_000])),
    ])
}

fn image(store: impl Store + 'static, node: &Node, runtime: &Handle) -> ImageFile {
    let image_root = ImageRoot::Directory(node.digest().unwrap());
    ImageFile::new(Arc::new(store), image_root, ImageVersion::V1, runtime).unwrap()
}

fn whole(image: &ImageFile, part: usize, runtime: &Handle) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let to = bytes.len().min(at + part);
        let read = image.read_at(at as u64, &mut bytes[at..to], runtime);
        at += read.unwrap();
    }
    bytes
}

#[test]
fn an_upstream_gives_the_same_bytes_as_a_local_store() {
    let runtime = Runtime::new().unwrap();
    let store = MemoryStore::new();
    let node = tree().put_root(&store, "tree");
    let local_store = image(store.clone(), &node, runtime.handle());
    let expected = whole(&local_store, 1 << 20, runtime.handle());
    let upstream = Double::upstream("far:", store);
    let upstream = image(upstream, &node, runtime.handle());
    assert!(whole(&upstream, 300_001, runtime.handle()) == expected);
    let mut beyond = [0; 10];
    let at_end = upstream.read_at(upstream.size() - 3, &mut beyond, runtime.handle());
    assert_eq!(at_end.unwrap(), 3);
    let after = upstream.read_at(upstream.size() + 3, &mut beyond, runtime.handle());
    assert_eq!(after.unwrap(), 0);
}

/// The offset of the file `path` in `image`.
fn offset_of(image: &ImageFile, path: &[&str], runtime: &Handle) -> u64 {
    let read = |at: u64, buffer: &mut [u8]| {
        let read = image.read_at(at, buffer, runtime);
        read.map(drop).map_err(|error| error.to_string())
    };
    let reader = ErofsReader::new(read).unwrap();
    let mut inode = reader.root().unwrap();
    for name in path {
        let entry = reader.find(&inode, name.as_bytes()).unwrap().unwrap();
        inode = reader.inode(entry.nid).unwrap();
    }
    u64::from(inode.block) * BLOCK
}

#[test]
fn what_is_missing_or_of_another_size_fails_in_its_own_pages_and_is_named() {
    let runtime = Runtime::new().unwrap();
    let runtime = runtime.handle();
    let store = MemoryStore::new();
    let good = file("good");
    let ingest = store.ingest().unwrap();
    let lost = Node::File {
        digest: Digest::of(b"lost"),
        size: 4,
        executable: false,
    };
    let wrong = Node::File {
        digest: good.put(&*ingest).digest().unwrap(),
        size: 5000,
        executable: false,
    };
    let name = |text: &str| Name::new(text.as_bytes()).unwrap();
    let below = Directory::from_entries(vec![(name("lost"), lost), (name("wrong"), wrong)]);
    let below = below.unwrap();
    ingest.put_directory(&below).unwrap();
    let image_root = Directory::from_entries(vec![
        (name("below"), below.node()),
        (name("good"), good.put(&*ingest)),
    ]);
    let image_root = image_root.unwrap();
    ingest.put_directory(&image_root).unwrap();
    ingest.commit().unwrap();

    let image = image(store, &image_root.node(), runtime);
    let mut page = [0; 4096];
    let mut read = |path: &[&str]| {
        let at = offset_of(&image, path, runtime);
        (
            at,
            image
                .read_at(at, &mut page, runtime)
                .map(|_| page[..4].to_vec()),
        )
    };
    let (_, read_good) = read(&["good"]);
    assert_eq!(read_good.unwrap(), b"good");
    let (lost_at, lost) = read(&["below", "lost"]);
    assert!(
        matches!(lost, Err(ImageFileError::Absent { .. })),
        "{lost:?}"
    );
    let (wrong_at, wrong) = read(&["below", "wrong"]);
    assert!(matches!(wrong, Err(ImageFileError::Store(_))), "{wrong:?}");
    let location = image.location(lost_at).unwrap();
    assert_eq!(location.path, "/below/lost");
    assert_eq!(location.digest, Digest::of(b"lost"));
    let location = image.location(wrong_at + 4096).unwrap();
    assert_eq!(location.path, "/below/wrong");
    // Metadata belongs to the directory whose entries' inodes are there.
    let location = image.location(1024).unwrap();
    assert_eq!(
        (location.path.as_str(), location.digest),
        ("/", image_root.digest())
    );
}

#[test]
fn one_root_is_the_top_and_several_are_listed() {
    let runtime = Runtime::new().unwrap();
    let store = MemoryStore::new();
    let roots: Vec<Root> = ["one", "two"]
        .map(|text| Root {
            name: Name::new(text.as_bytes()).unwrap(),
            node: directory([(text, file(text))]).put_root(&store, text),
        })
        .into();
    let single = image_root(&roots[..1]).unwrap();
    assert_eq!(Some(single.digest()), roots[0].node.digest());
    let both = image_root(&roots).unwrap();
    let image = ImageFile::new(Arc::new(store), both, ImageVersion::V1, runtime.handle());
    let image = image.unwrap();
    let at = offset_of(&image, &["two", "two"], runtime.handle());
    let mut bytes = [0; 4];
    image.read_at(at, &mut bytes, runtime.handle()).unwrap();
    assert_eq!(&bytes, b"two\0");
    let location = image.location(at).unwrap();
    assert_eq!(location.path, "/two/two");
}

#[test]
fn metadata_is_had_without_a_blob() {
    let runtime = Runtime::new().unwrap();
    let store = MemoryStore::new();
    let node = tree().put_root(&store, "tree");
    let expected = whole(
        &image(store.clone(), &node, runtime.handle()),
        1 << 20,
        runtime.handle(),
    );
    // A copy of the Directories alone.
    let empty = MemoryStore::new();
    let ingest = empty.ingest().unwrap();
    for digest in [
        node.digest().unwrap(),
        match &tree() {
            Model::Directory(entries) => {
                let scratch = MemoryStore::new();
                let ingest = scratch.ingest().unwrap();
                entries[b"files".as_slice()].put(&*ingest).digest().unwrap()
            }
            _ => unreachable!("a directory"),
        },
    ] {
        let directory = runtime.block_on(store.directory(&digest));
        ingest.put_directory(&directory.unwrap().unwrap()).unwrap();
    }
    ingest.commit().unwrap();
    let image = image(empty, &node, runtime.handle());
    let mut metadata = vec![0; image.layout().metadata_size() as usize];
    image.read_at(0, &mut metadata, runtime.handle()).unwrap();
    assert!(metadata == expected[..metadata.len()]);
}
