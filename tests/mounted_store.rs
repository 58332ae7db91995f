//! Mounts of the embedded store: real trees, damage on the disk, very large files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use castore_fs::castore::{Name, Node};
use castore_fs::fs::{FsOptions, MountRoot, ReadPath, RootListing};
use castore_fs::import::{self, ImportProgress, ImportSource, RootNaming, import};
use castore_fs::store::{Blocking, GcOptions, LocalStore, Store};
use kit::model::{Model, directory, file};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::xattr::xattr;

/// A store in a directory of its own.
struct Dir {
    store: Arc<LocalStore>,
    dir: tempfile::TempDir,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(&dir.path().join("store")).unwrap());
        Self { store, dir }
    }

    /// The store as another process would see it: opened again, with nothing cached.
    fn reopened(&self) -> Arc<LocalStore> {
        Arc::new(LocalStore::open(&self.dir.path().join("store")).unwrap())
    }

    fn import(&self, source: ImportSource<'_>) -> Node {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let store = Blocking::new(self.store.clone(), runtime.handle().clone());
        let naming = RootNaming::Name(Name::new(b"tree").unwrap());
        let options = import::ImportOptions::default();
        let imported = import(&store, source, naming, &options, &ImportProgress::new());
        imported.unwrap().root.node
    }

    /// Every file below the store's directory with `part` in its path.
    fn files(&self, part: &str) -> Vec<PathBuf> {
        fn collect(path: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => collect(&path, found),
                    false => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        collect(&self.dir.path().join("store"), &mut found);
        found.retain(|path| path.to_str().unwrap().contains(part));
        found
    }
}

fn os_error(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

/// The tree in a tar archive.
fn model_of_tar(archive: impl Read) -> Model {
    let mut mount_root = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let mut names: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .collect();
        let Some(last) = names.pop() else { continue };
        let header = entry.header().clone();
        let model = match header.entry_type() {
            tar::EntryType::Directory => Model::Directory(BTreeMap::new()),
            tar::EntryType::Symlink => {
                Model::Symlink(entry.link_name_bytes().unwrap().into_owned())
            }
            tar::EntryType::Regular => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                let executable = header.mode().unwrap() & 0o100 != 0;
                Model::File { bytes, executable }
            }
            other => panic!("{other:?} in the fixture"),
        };
        let mut place = &mut mount_root;
        for name in names {
            place = match place.get_mut(name) {
                Some(Model::Directory(entries)) => entries,
                _ => panic!("the archive names a file before its directory"),
            };
        }
        place.insert(last.to_vec(), model);
    }
    Model::Directory(mount_root)
}

#[test]
fn the_fixture_tree_is_mounted_as_it_is_in_every_byte_mode_link_and_attribute() {
    let Some(dir) = kit::fixtures::fixture("snix") else {
        return;
    };
    if !can_mount() {
        return;
    }
    let archive = fs::read(dir.join("tree.tar.zst")).unwrap();
    let archive = zstd::decode_all(&archive[..]).unwrap();
    let mut model = model_of_tar(&archive[..]);
    if let Model::Directory(entries) = &mut model
        && entries.len() == 1
        && let Some(Model::Directory(_)) = entries.values().next()
    {
        model = entries.pop_first().unwrap().1;
    }
    let disk = tempfile::tempdir().unwrap();
    write(&model, &disk.path().join("tree"));
    let store = Dir::new();
    let node = store.import(ImportSource::Path(&disk.path().join("tree")));
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        xattr: true,
        ..FsOptions::default()
    };
    let mount = Mounted::new(store.store.clone(), options);
    model.assert_is_at(mount.path());

    let expected = fs::read(dir.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let mut checked = 0;
    for (path, entry) in expected["entries"].as_object().unwrap() {
        let Some(hex) = entry["digest"].as_str() else {
            continue;
        };
        let digest = hex.parse::<castore_fs::castore::Digest>().unwrap();
        let path = mount.join(OsStr::from_bytes(&kit::fixtures::unescape(path)));
        let kind = match entry["type"].as_str() {
            Some("directory") => "directory",
            _ => "blob",
        };
        for name in [
            "user.castore.digest".to_owned(),
            format!("user.snix.castore.{kind}.digest"),
            format!("user.tvix.castore.{kind}.digest"),
        ] {
            assert_eq!(xattr(&path, &name), Ok(digest.to_string()), "{path:?}");
        }
        checked += 1;
    }
    assert!(checked > 10, "{checked} entries checked");
}

/// Writes a tree to the disk.
fn write(model: &Model, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    match model {
        Model::File { bytes, executable } => {
            fs::write(path, bytes).unwrap();
            let mode = if *executable { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        Model::Symlink(target) => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path).unwrap();
        }
        Model::Directory(entries) => {
            fs::create_dir(path).unwrap();
            for (name, entry) in entries {
                write(entry, &path.join(OsStr::from_bytes(name)));
            }
        }
    }
}

#[test]
fn a_byte_that_changed_on_the_disk_reaches_no_reader() {
    if !can_mount() {
        return;
    }
    let needle = b"the byte after this one will change: ";
    let mut small = needle.to_vec();
    small.push(b'x');
    let mut large = vec![7u8; 3 << 20];
    large[2_500_000..2_500_000 + small.len()].copy_from_slice(&small);
    let tree = directory([
        ("good", file("good")),
        ("good-large", file(vec![9u8; 3 << 20])),
        ("large", file(large.clone())),
        ("small", file(small)),
    ]);
    let dir = Dir::new();
    let node = tree.put_root(&*dir.store, "tree");
    for path in dir.files("/store/") {
        let mut bytes = fs::read(&path).unwrap();
        let places: Vec<usize> = (0..bytes.len().saturating_sub(needle.len()))
            .filter(|&at| bytes[at..].starts_with(needle))
            .collect();
        if places.is_empty() {
            continue;
        }
        for at in places {
            bytes[at + needle.len()] ^= 1;
        }
        let opened = fs::File::options().write(true).open(&path).unwrap();
        opened.write_all_at(&bytes, 0).unwrap();
    }
    let mount = Mounted::mount_root(dir.reopened(), &node);
    for _ in 0..3 {
        let read = |name: &str| fs::read(mount.join(name)).map_err(os_error);
        assert_eq!(read("small"), Err(libc::EIO));
        assert_eq!(read("large"), Err(libc::EIO));
        assert_eq!(read("good"), Ok(b"good".to_vec()));
        assert!(read("good-large").unwrap() == vec![9u8; 3 << 20]);
        // What is before the damage in a large file is still good.
        let mut part = vec![0; 2_000_000];
        let opened = fs::File::open(mount.join("large")).unwrap();
        opened.read_exact_at(&mut part, 0).unwrap();
        assert!(part == large[..2_000_000]);
    }
}

#[test]
fn a_sparse_file_of_10_gib_goes_in_and_can_be_read_anywhere() {
    if !can_mount() {
        return;
    }
    let size = 10u64 << 30;
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().join("sparse");
    let sparse = fs::File::create(&path).unwrap();
    sparse.set_len(size).unwrap();
    let marks = [0, 4096, (5 << 30) + 12345, size - 9];
    for at in marks {
        sparse.write_all_at(b"a mark", at).unwrap();
    }
    let dir = Dir::new();
    let node = dir.import(ImportSource::Path(disk.path()));
    let used: u64 = dir
        .files("/store/")
        .iter()
        .map(|path| fs::metadata(path).unwrap().blocks() * 512)
        .sum();
    assert!(used < 64 << 20, "the holes take {used} bytes");
    let mount = Mounted::mount_root(dir.store.clone(), &node);
    let opened = fs::File::open(mount.join("sparse")).unwrap();
    assert_eq!(opened.metadata().unwrap().len(), size);
    let mut mark = [0; 6];
    for at in marks {
        opened.read_exact_at(&mut mark, at).unwrap();
        assert_eq!(&mark, b"a mark", "at {at}");
    }
    let mut zeros = [1; 5000];
    opened.read_exact_at(&mut zeros, 7 << 30).unwrap();
    assert_eq!(zeros, [0; 5000]);
    assert_eq!(opened.read_at(&mut zeros, size).unwrap(), 0);
}

#[test]
fn passthrough_reads_are_right_however_files_are_opened() {
    if !can_mount() {
        return;
    }
    let large: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3) as u8).collect();
    let tree = directory([
        ("again", directory([("large", file(large.clone()))])),
        ("large", file(large.clone())),
        ("program", kit::model::program(large.clone())),
        ("small", file("small")),
    ]);
    let dir = Dir::new();
    let node = tree.put_root(&*dir.store, "tree");
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        reads: ReadPath::Passthrough,
        ..FsOptions::default()
    };
    let mount = Mounted::new(dir.store.clone(), options);
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (mount, large) = (&mount, &large);
            scope.spawn(move || {
                let name = ["large", "again/large", "program"][reader % 3];
                for round in 0..30 {
                    let opened = fs::File::open(mount.join(name)).unwrap();
                    let second = fs::File::open(mount.join("large")).unwrap();
                    let at = (reader * 31 + round * 77_777) % large.len();
                    let mut part = vec![0; 10_000.min(large.len() - at)];
                    opened.read_exact_at(&mut part, at as u64).unwrap();
                    assert!(part == large[at..at + part.len()], "{name} at {at}");
                    drop(opened);
                    second.read_exact_at(&mut part, at as u64).unwrap();
                    assert!(part == large[at..at + part.len()], "large at {at}");
                    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
                }
            });
        }
    });
    tree.assert_is_at(mount.path());
    let (requests, bytes) = mount.requests_of(|| fs::read(mount.join("large")).unwrap());
    assert!(bytes == large);
    if mount.session.reads() == ReadPath::Passthrough {
        assert_eq!(requests.of("READ"), 0, "the kernel reads: {requests:?}");
    } else {
        eprintln!("no passthrough here; the mount fell back to its page cache");
    }
}

#[test]
fn a_tree_that_is_read_in_order_is_pushed_ahead_of_its_reader() {
    if !can_mount() {
        return;
    }
    let count = 3000;
    let tree = directory((0..count).map(|number| {
        let content = format!("{number} ").repeat(number % 700);
        (format!("{number:05}"), file(content))
    }));
    let dir = Dir::new();
    let node = tree.put_root(&*dir.store, "tree");
    let mount = Mounted::mount_root(dir.store.clone(), &node);
    let (requests, ()) = mount.requests_of(|| tree.assert_is_at(mount.path()));
    // How far ahead it gets depends on the machine; that it gets ahead at all does not.
    assert!(requests.of("READ") < count as u64, "{requests:?}");
}

#[test]
fn a_mount_sees_what_another_process_imports() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let options = FsOptions {
        mount_root: MountRoot::Roots {
            list: RootListing::All,
        },
        ..FsOptions::default()
    };
    let mount = Mounted::new(dir.store.clone(), options);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    let other = dir.reopened();
    let tree = directory([("f", file("f"))]);
    tree.put_root(&*other, "new");
    tree.assert_is_at(&mount.join("new"));
    for _ in 0..200 {
        if fs::read_dir(mount.path()).unwrap().count() == 1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the listing never showed the new root node");
}

/// Reads everything below an open directory, whatever its name was.
fn assert_tree_is(tree: &Model, mount_root: &fs::File) {
    use std::os::fd::AsRawFd;
    tree.assert_is_at(Path::new(&format!(
        "/proc/self/fd/{}/",
        mount_root.as_raw_fd()
    )));
}

#[test]
fn what_is_mounted_stays_readable_after_rm_and_gc_until_it_is_unmounted() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    let tree = directory([
        ("large", file(large)),
        ("small", file("small")),
        ("below", directory([("deep", file("deep"))])),
    ]);
    let by_name = Mounted::new(dir.store.clone(), FsOptions::default());
    let other = dir.reopened();
    let collect = || {
        let options = GcOptions {
            grace: std::time::Duration::ZERO,
            ..GcOptions::default()
        };
        other.collect_garbage(&options).unwrap().blobs
    };
    let collected = |what| {
        for _ in 0..1000 {
            if collect() > 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it is never collected, although {what}");
    };
    let remove = || {
        let ingest = other.ingest().unwrap();
        ingest.remove_root(&Name::new(b"tree").unwrap()).unwrap();
        ingest.commit().unwrap();
    };
    // The kernel knows the root of the tree by an open file, and none of what is below.
    tree.put_root(&*other, "tree");
    let mount_root = fs::File::open(by_name.join("tree")).unwrap();
    remove();
    assert_eq!(collect(), 0);
    drop(mount_root);
    collected("the kernel has forgotten it");

    let node = tree.put_root(&*other, "tree");
    let by_digest = Mounted::mount_root(dir.reopened(), &node);
    let mount_root = fs::File::open(by_name.join("tree")).unwrap();
    remove();
    assert_eq!(collect(), 0);
    assert_tree_is(&tree, &mount_root);
    tree.assert_is_at(by_digest.path());
    drop(by_digest);
    assert_eq!(collect(), 0);
    assert_tree_is(&tree, &mount_root);
    drop(mount_root);
    drop(by_name);
    collected("it is unmounted");
}
