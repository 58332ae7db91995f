//! Images as files of a mount.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::Name;
use castore_fs::fs::{FsOptions, ImageClosures, ReadPath};
use castore_fs::image::{ImageRoot, ImageVersion};
use castore_fs::store::{MemoryStore, Store};
use castore_fs::tree::ImageFile;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::others::assert_shows;
use kit::double::{Double, Trouble};
use kit::model::{Model, directory, file, program, symlink};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::noise::noise;
use kit::skip::skip;

fn tree() -> Model {
    let files = (0..300).map(|n| (format!("{n}"), file(vec![n as u8; n * 50])));
    directory([
        ("files", directory(files)),
        ("link", symlink("files/1")),
        ("program", program(vec![7; 3_000_000])),
    ])
}

fn with_images() -> FsOptions {
    FsOptions {
        images: Some(Arc::default()),
        ..FsOptions::default()
    }
}

fn image(mounted: &Mounted, name: &str) -> PathBuf {
    mounted.join(format!(".images/{name}.erofs"))
}

fn kind(error: std::io::Error) -> ErrorKind {
    error.kind()
}

#[test]
fn a_root_is_shown_by_name_and_by_digest_and_nothing_else_is() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let node = tree().put_root(&*store, "tree");
    file("one file").put_root(&*store, "single");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mount_root = ImageRoot::Directory(node.digest().unwrap());
    let upstream: Arc<dyn Store> = store.clone();
    let expected =
        ImageFile::new(upstream, mount_root, ImageVersion::V1, runtime.handle()).unwrap();
    let mut bytes = vec![0; expected.size() as usize];
    expected.read_at(0, &mut bytes, runtime.handle()).unwrap();

    let mounted = Mounted::new(store.clone(), with_images());
    let names = |path: PathBuf| {
        let listed = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(mounted.path().to_owned()), ["single", "tree"]);
    assert_eq!(
        names(mounted.join(".images")),
        ["single.erofs", "tree.erofs"]
    );
    let digest = node.digest().unwrap().to_hex();
    for name in ["tree", &digest] {
        let path = image(&mounted, name);
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.len(), stat.mode()), (expected.size(), 0o100_444));
        assert!(fs::read(&path).unwrap() == bytes, "{name}");
    }
    let single = fs::read(image(&mounted, "single")).unwrap();
    assert!(single.windows(8).any(|window| window == b"one file"));
    // A digest below a root is not a root's.
    let below = match &tree() {
        Model::Directory(entries) => {
            let ingest = store.ingest().unwrap();
            entries[b"files".as_slice()].put(&*ingest).digest().unwrap()
        }
        _ => unreachable!("a directory"),
    };
    for name in ["other", &below.to_hex(), &digest.to_uppercase()] {
        let error = fs::metadata(image(&mounted, name)).unwrap_err();
        assert_eq!(kind(error), ErrorKind::NotFound, "{name}");
    }
    let error = fs::metadata(mounted.join(".images/tree")).unwrap_err();
    assert_eq!(kind(error), ErrorKind::NotFound);
    let error = fs::File::create(mounted.join(".images/new.erofs")).unwrap_err();
    assert_eq!(kind(error), ErrorKind::ReadOnlyFilesystem);

    // Off, as it is without the option.
    let off = Mounted::new(store.clone(), FsOptions::default());
    assert!(!off.join(".images").exists());
    // And one root at the top.
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        ..with_images()
    };
    let one = Mounted::new(store, options);
    assert_eq!(
        names(one.join(".images")),
        [format!("{digest}.erofs").as_str()]
    );
    assert!(fs::read(image(&one, &digest)).unwrap() == bytes);
    assert!(!image(&one, "tree").exists());
}

/// The inode numbers of everything in `.images`, by path: as `stat` gives them, which is as a listing does.
fn numbers(mounted: &Mounted) -> BTreeMap<String, u64> {
    let directory = mounted.join(".images");
    let number = |path: &std::path::Path| fs::metadata(path).unwrap().ino();
    let mut numbers = BTreeMap::from([("".to_owned(), number(&directory))]);
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), number(&entry.path()), "{entry:?}");
        numbers.insert(
            entry.file_name().into_string().unwrap(),
            number(&entry.path()),
        );
    }
    numbers
}

#[test]
fn every_path_of_an_image_has_an_inode_number_of_its_own() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let node = tree().put_root(&*store, "tree");
    tree().put_root(&*store, "same");
    file("one file").put_root(&*store, "single");
    let closures = Arc::new(ImageClosures::default());
    let name = |name: &str| Name::new(name.as_bytes()).unwrap();
    closures.set(BTreeMap::from([
        (name("both"), vec![name("tree"), name("single")]),
        // The same tree under another name.
        (name("twice"), vec![name("single"), name("tree")]),
        (name("lost"), vec![name("nothing")]),
    ]));
    let options = FsOptions {
        images: Some(closures.clone()),
        ..FsOptions::default()
    };
    let mounted = Mounted::new(store.clone(), options);
    let images = numbers(&mounted);
    assert_eq!(
        images.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "",
            "both.erofs",
            "same.erofs",
            "single.erofs",
            "tree.erofs",
            "twice.erofs"
        ]
    );
    let by_digest = image(&mounted, &node.digest().unwrap().to_hex());
    let mut all: Vec<u64> = images.values().copied().collect();
    all.push(fs::metadata(&by_digest).unwrap().ino());
    for name in ["", "tree", "same", "single", "tree/link", "same/files/7"] {
        all.push(fs::symlink_metadata(mounted.join(name)).unwrap().ino());
    }
    assert!(all.iter().all(|ino| *ino < 1 << 32), "{all:?}");
    assert_eq!(HashSet::<u64>::from_iter(all.clone()).len(), all.len());
    assert!(fs::read(image(&mounted, "same")).unwrap() == fs::read(&by_digest).unwrap());
    // Another tree under the same name is another file, and what is as it was keeps its number.
    let before = images["both.erofs"];
    closures.set(BTreeMap::from([
        (name("both"), vec![name("tree")]),
        (name("twice"), vec![name("single"), name("tree")]),
    ]));
    let images = numbers(&mounted);
    assert_ne!(images["both.erofs"], before);
    assert!(all.contains(&images["twice.erofs"]) && all.contains(&images["tree.erofs"]));

    // A mount of one tree gives the same numbers each time, and to the tree those that it has without
    // images.
    let one = |options: FsOptions| {
        let mount_root = mount_root_of(&node);
        Mounted::new(
            store.clone(),
            FsOptions {
                mount_root,
                ..options
            },
        )
    };
    let (first, second) = (one(with_images()), one(with_images()));
    assert_eq!(numbers(&first), numbers(&second));
    let plain = one(FsOptions::default());
    let number = |mounted: &Mounted| fs::metadata(mounted.join("files/9")).unwrap().ino();
    assert_eq!(number(&first), number(&plain));
}

#[test]
fn a_root_called_as_the_directory_wins() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    tree().put_root(&*store, "tree");
    let mounted = Mounted::new(store.clone(), with_images());
    assert!(image(&mounted, "tree").exists());
    file("a root").put_root(&*store, ".images");
    assert_eq!(fs::read(mounted.join(".images")).unwrap(), b"a root");
}

#[test]
fn an_open_image_stays_while_its_name_moves_on() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    directory([("a", file("first"))]).put_root(&*store, "tree");
    let mounted = Mounted::new(store.clone(), with_images());
    let mut open = fs::File::open(image(&mounted, "tree")).unwrap();
    directory([("a", file("second"))]).put_root(&*store, "tree");
    let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
    assert!(has(&fs::read(image(&mounted, "tree")).unwrap(), b"second"));
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(has(&bytes, b"first") && !has(&bytes, b"second"));
}

#[test]
fn a_mount_with_passthrough_shows_images_too() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    tree().put_root(&*store, "tree");
    let plain = Mounted::new(store.clone(), with_images());
    let options = FsOptions {
        reads: ReadPath::Passthrough,
        ..with_images()
    };
    let mounted = Mounted::new(store, options);
    let expected = fs::read(image(&plain, "tree")).unwrap();
    assert!(fs::read(image(&mounted, "tree")).unwrap() == expected);
}

#[test]
fn what_cannot_be_read_is_an_error_in_its_own_pages() {
    if !can_mount() {
        return;
    }
    let memory = MemoryStore::new();
    let large = vec![9; 100_000];
    let model = directory([
        ("bad", file(large.clone())),
        ("good", file(vec![8; 50_000])),
    ]);
    model.put_root(&memory, "tree");
    let damaged = castore_fs::castore::Digest::of(&large);
    let store = Arc::new(Double::local_store("double:", memory).damaging(&damaged));
    let mounted = Mounted::new(store, with_images());
    let file = fs::File::open(image(&mounted, "tree")).unwrap();
    // Metadata first, then "bad", then "good".
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    let data = 4096;
    for at in 0..25 {
        let read = file.read_at(&mut page, data + at * 4096);
        assert_eq!(
            read.unwrap_err().raw_os_error(),
            Some(libc::EIO),
            "page {at}"
        );
    }
    file.read_exact_at(&mut page, data + 25 * 4096).unwrap();
    assert_eq!(page, [8; 4096]);
}

/// An EROFS mount of `image`, on a directory that is to be unmounted; nothing where none can be made.
fn mount_erofs(image: &std::path::Path) -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        skip("it needs mount(2), which only the superuser may call");
        return None;
    }
    let at = tempfile::tempdir().unwrap();
    match rustix::mount::mount(image, at.path(), "erofs", MountFlags::RDONLY, c"") {
        Ok(()) => Some(at),
        Err(error) => {
            skip(&format!(
                "it needs EROFS backed by a file (Linux 6.12): {error}"
            ));
            None
        }
    }
}

#[test]
fn the_kernel_mounts_an_image_that_a_mount_shows() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    tree().put_root(&*store, "tree");
    let mounted = Mounted::new(store, with_images());
    let image = image(&mounted, "tree");
    let Some(at) = mount_erofs(&image) else {
        return;
    };
    let shown = std::panic::catch_unwind(|| assert_shows(&tree(), at.path(), &mut Vec::new()));
    rustix::mount::unmount(at.path(), UnmountFlags::empty()).unwrap();
    shown.unwrap();
}

/// Before Linux 6.12.80, 6.18.21, 6.19.11 and 7.0, EROFS shows zeros then.
#[test]
fn a_killed_reader_leaves_no_zeros_to_the_next() {
    if !can_mount() {
        return;
    }
    let memory = MemoryStore::new();
    let content = noise(80, 24 << 20);
    directory([("large", file(content.clone()))]).put_root(&memory, "tree");
    let store = Arc::new(Double::upstream("double:", memory));
    let mounted = Mounted::new(store.clone(), with_images());
    let image = image(&mounted, "tree");
    let Some(at) = mount_erofs(&image) else {
        return;
    };
    let path = at.path().join("large");
    let forget = |path: &std::path::Path| {
        let file = fs::File::open(path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    let killed_and_read = || {
        for round in 0..40 {
            forget(&path);
            forget(&image);
            store.trouble(Trouble::Slow(Duration::from_millis(3)));
            let mut reader = Command::new("cat");
            let mut reader = reader.arg(&path).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(5 + round * 2));
            reader.kill().unwrap();
            reader.wait().unwrap();
            store.trouble(Trouble::None);
            assert!(fs::read(&path).unwrap() == content, "round {round}");
        }
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(killed_and_read));
    rustix::mount::unmount(at.path(), UnmountFlags::empty()).unwrap();
    outcome.unwrap();
}
