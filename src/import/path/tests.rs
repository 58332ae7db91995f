use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use parking_lot::Mutex;

use super::*;
use crate::castore::{Digest, Directory, Name, Root};
use crate::import::tests::FreshStore;
use crate::import::{ImportSource, SMALL};
use crate::nix::PathInfo;
use crate::store::{self, AddedTotals, BlobWriter, MemoryStore, Store};

/// An addition that notes what is put, and does something before it takes a large file's bytes.
struct WatchedIngest {
    inner: Box<dyn Ingest>,
    put: Mutex<Vec<Digest>>,
    before_write: Arc<dyn Fn() + Send + Sync>,
}

impl WatchedIngest {
    fn new(before_write: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            inner: MemoryStore::new().ingest().unwrap(),
            put: Mutex::default(),
            before_write: Arc::new(before_write),
        }
    }

    fn add(&self, path: &Path) -> Result<Node, ImportError> {
        add(
            self,
            path,
            &ImportOptions::default(),
            &ImportProgress::new(),
        )
    }
}

struct WatchedWriter {
    inner: Box<dyn BlobWriter>,
    before_write: Arc<dyn Fn() + Send + Sync>,
}

impl BlobWriter for WatchedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), store::Error> {
        (self.before_write)();
        self.inner.write(bytes)
    }
    fn finish(self: Box<Self>) -> Result<(Digest, u64), store::Error> {
        self.inner.finish()
    }
}

impl Ingest for WatchedIngest {
    fn has_blob(&self, digest: &Digest) -> Result<bool, store::Error> {
        self.inner.has_blob(digest)
    }
    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, store::Error> {
        self.inner.missing_blobs(digests)
    }
    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), store::Error> {
        self.put
            .lock()
            .extend(blobs.iter().map(|(digest, _)| *digest));
        self.inner.put_blobs(blobs)
    }
    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, store::Error> {
        Ok(Box::new(WatchedWriter {
            inner: self.inner.blob_writer()?,
            before_write: self.before_write.clone(),
        }))
    }
    fn put_directory(&self, directory: &Directory) -> Result<(), store::Error> {
        self.inner.put_directory(directory)
    }
    fn remove_root(&self, name: &Name) -> Result<(), store::Error> {
        self.inner.remove_root(name)
    }
    fn check_root_name(&self, name: &Name) -> Result<(), store::Error> {
        self.inner.check_root_name(name)
    }

    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), store::Error> {
        self.inner.put_root(root, path_info)
    }
    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), store::Error> {
        self.inner.add_root(root, path_info)
    }
    fn put_incomplete_root(
        &self,
        root: &Root,
        path_info: Option<&PathInfo>,
    ) -> Result<(), store::Error> {
        self.inner.put_incomplete_root(root, path_info)
    }

    fn release(&self) {
        self.inner.release();
    }

    fn commit(self: Box<Self>) -> Result<AddedTotals, store::Error> {
        self.inner.commit()
    }
}

/// The readers take turns: however long each has to read, blobs are put in the order of the walk.
/// Sizes are such that a batch fills its buffer several times, and large files lie between.
#[test]
fn blobs_are_put_in_the_order_of_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for directory in 0..40 {
        let path = dir.path().join(format!("d{directory:02}"));
        fs::create_dir(&path).unwrap();
        for file in 0..30 {
            let size = match (directory, file) {
                (3 | 17, 5..15) => SMALL as usize,
                (5, 2) => SMALL as usize + 1,
                _ => 8 + file,
            };
            let mut bytes = vec![file as u8; size];
            bytes[0] = directory;
            fs::write(path.join(format!("f{file:02}")), &bytes).unwrap();
            if size <= SMALL as usize {
                expected.push(Digest::of(&bytes));
            }
        }
    }
    let watched = WatchedIngest::new(|| ());
    watched.add(dir.path()).unwrap();
    assert!(*watched.put.lock() == expected);
}

#[test]
fn a_file_that_grows_or_shrinks_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for change in [1, -1] {
        fs::write(&path, vec![1; 4 * SMALL as usize]).unwrap();
        let target = path.clone();
        let watched = WatchedIngest::new(move || {
            let file = OpenOptions::new().write(true).open(&target).unwrap();
            let size = file.metadata().unwrap().len() as i64;
            file.set_len((size + change * SMALL as i64) as u64).unwrap();
        });
        let error = watched.add(dir.path()).unwrap_err();
        assert!(
            matches!(&error, ImportError::Changed { path: changed } if *changed == path),
            "{error}"
        );
    }
}

/// Files of `/proc` state a size of 0, and those of `/sys` a page, and all have another length:
/// read by their stated size, they would be lost.
#[test]
fn files_without_a_size_are_read_to_their_end() {
    let fresh = FreshStore::new();
    for path in [
        "/proc/version",
        "/proc/filesystems",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ] {
        let expected = fs::read(path).unwrap();
        let reported = fs::metadata(path).unwrap().len();
        assert_ne!(expected.len() as u64, reported, "{path}");
        let imported = fresh.import(ImportSource::Path(Path::new(path))).unwrap();
        assert_eq!(
            imported.root.node,
            Node::File {
                digest: Digest::of(&expected),
                size: expected.len() as u64,
                executable: false,
            }
        );
    }
    // A whole directory, of which one file is longer than what is read at once.
    let path = Path::new("/proc/self/net");
    let imported = fresh.import(ImportSource::Path(path)).unwrap();
    assert!(imported.totals.files > 10);
    let kallsyms = fs::read("/proc/kallsyms").unwrap();
    assert!(kallsyms.len() as u64 > SMALL);
    let imported = fresh
        .import(ImportSource::Path(Path::new("/proc/kallsyms")))
        .unwrap();
    assert_eq!(imported.root.node.digest(), Some(Digest::of(&kallsyms)));
    assert_eq!(imported.totals.bytes, kallsyms.len() as u64);
}

#[test]
fn a_file_without_an_end_is_refused_as_such() {
    for path in ["/proc/kmsg", "/proc/kcore"] {
        let path = Path::new(path);
        if !rustix::process::geteuid().is_root() {
            kit::skip::skip("only the superuser can open /proc/kmsg and /proc/kcore");
            return;
        }
        if fs::metadata(path).is_err() {
            continue;
        }
        // Existing log entries can be read without waiting: only the end cannot.
        let error = FreshStore::new()
            .import(ImportSource::Path(path))
            .unwrap_err();
        assert!(matches!(&error, ImportError::Endless { .. }), "{error}");
    }
}

/// Between listing and opening, anything can happen to a name.
#[test]
fn a_file_that_is_not_what_was_listed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink("/etc/passwd", at("link")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), Mode::RWXU).unwrap();
    let fd: OwnedFd = File::open(dir.path()).unwrap().into();
    let dir = Arc::new(InputDirectory {
        fd,
        path: dir.path().to_owned(),
    });
    let mut assembly = TreeAssembly::default();
    let mut open = |name: &str| {
        let job = ReadJob {
            dir: dir.clone(),
            name: CString::new(name).unwrap(),
            file: assembly.file(),
            sizeless: false,
        };
        read::open_file(&job).unwrap_err()
    };
    for name in ["vanished", "link", "directory"] {
        let error = open(name);
        assert!(
            matches!(error, ImportError::Changed { .. }),
            "{name}: {error}"
        );
    }
    let error = open("pipe");
    assert!(matches!(error, ImportError::Special { .. }), "{error}");
}

#[test]
fn special_files_are_refused_by_name_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let fresh = FreshStore::new();
    let error = fresh.import(ImportSource::Path(dir.path())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is a socket, which a castore cannot hold; leave it out, or all such files with --skip-special",
            socket.display()
        )
    );
    fresh.assert_empty();
    let options = ImportOptions {
        special_files: SpecialFiles::Skip,
        ..ImportOptions::default()
    };
    let imported = fresh
        .import_with(ImportSource::Path(dir.path()), &options)
        .unwrap();
    assert_eq!(imported.totals.skipped, 1);
    assert_eq!(imported.totals.files, 1);

    let error = fresh
        .import(ImportSource::Path(Path::new("/dev/null")))
        .unwrap_err();
    assert!(matches!(error, ImportError::Special { .. }), "{error}");
}

#[test]
fn any_legal_name_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let long = [b'n'; 255];
    let names: [&[u8]; 5] = [b"\xff\xfe", b"line\nfeed", b" ", b"...", &long];
    for name in names {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let fresh = FreshStore::new();
    let node = fresh
        .import(ImportSource::Path(dir.path()))
        .unwrap()
        .root
        .node;
    let directory = fresh.store.directory(&node.digest().unwrap());
    let directory = directory.unwrap().unwrap();
    assert_eq!(directory.len(), names.len());
    for name in names {
        let found = directory.lookup(name).unwrap();
        assert_eq!(found.digest(), Some(Digest::of(name)));
    }
}

#[test]
fn a_file_or_a_symlink_can_be_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "contents").unwrap();
    let link = dir.path().join("link");
    symlink("nowhere", &link).unwrap();
    let fresh = FreshStore::new();
    let node = |path: &Path| fresh.import(ImportSource::Path(path)).unwrap().root.node;
    assert!(matches!(node(&file), Node::File { size: 8, .. }));
    assert!(matches!(node(&link), Node::Symlink { .. }));
}

#[test]
fn holes_are_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let size = 40 << 20;
    let mut expected = vec![0; size];
    let mut file = File::create(&path).unwrap();
    for (at, text) in [(5 << 20, &b"middle"[..]), (30 << 20, b"later")] {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(text).unwrap();
        expected[at..at + text.len()].copy_from_slice(text);
    }
    file.set_len(size as u64).unwrap();
    let fresh = FreshStore::new();
    let imported = fresh.import(ImportSource::Path(&path)).unwrap();
    assert_eq!(imported.root.node.digest(), Some(Digest::of(&expected)));
    assert_eq!(imported.totals.bytes, size as u64);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let missing = Path::new("/nonexistent/tree");
    let error = FreshStore::new()
        .import(ImportSource::Path(missing))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot find /nonexistent/tree: No such file or directory (os error 2)"
    );
}

#[test]
fn a_file_without_permission_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "x").unwrap();
    let may = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    may(dir.path(), 0o755).unwrap();
    may(&path, 0o000).unwrap();
    let error = std::thread::scope(|scope| {
        // The superuser may read everything, so become another user: in this thread, and those that
        // it starts.
        let import = || {
            if rustix::process::geteuid().is_root() {
                let unprivileged = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(unprivileged, unprivileged, unprivileged)
                    .unwrap();
            }
            FreshStore::new()
                .import(ImportSource::Path(dir.path()))
                .unwrap_err()
        };
        scope.spawn(import).join().unwrap()
    });
    assert_eq!(
        error.to_string(),
        format!(
            "cannot open {}: Permission denied (os error 13)",
            path.display()
        )
    );
}

/// Deeper than the process may have files open.
#[test]
fn a_tree_deeper_than_the_limit_of_descriptors_is_walked() {
    let dir = tempfile::tempdir().unwrap();
    let depth = 300;
    let mut at: OwnedFd = File::open(dir.path()).unwrap().into();
    for level in 0..depth {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        for (name, bytes) in [("a", "same"), ("z", &format!("{level}"))] {
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let file = rustix::fs::openat(&at, name, flags, Mode::RWXU).unwrap();
            File::from(file).write_all(bytes.as_bytes()).unwrap();
        }
        at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let import = |window: usize| {
        let (queue, progress) = (ImportQueue::default(), ImportProgress::new());
        let ingest = MemoryStore::new().ingest().unwrap();
        let batch = FileBatch::first(1, window * 8);
        let walk = ImportWalk::new(&queue, SpecialFiles::Refuse, &progress, batch, window * 8);
        let walked = thread::scope(|scope| {
            scope.spawn(|| read::serve(&queue, &*ingest, &progress));
            let walked = walk_all(walk, dir.path(), &queue);
            queue.close();
            walked
        });
        let (assembly, root) = walked.unwrap();
        let files = queue.into_files().unwrap();
        (
            assembly.finish(root, &files, &*ingest).unwrap(),
            progress.totals(),
        )
    };
    let (node, totals) = import(3);
    assert_eq!((totals.directories, totals.files), (depth + 1, 2 * depth));
    assert_eq!(import(1000).0, node);
}

#[test]
fn a_deep_tree_is_no_problem() {
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_owned();
    for _ in 0..400 {
        path.push("d");
        fs::create_dir(&path).unwrap();
    }
    fs::write(path.join("leaf"), "x").unwrap();
    let imported = FreshStore::new()
        .import(ImportSource::Path(dir.path()))
        .unwrap();
    assert_eq!(imported.totals.directories, 401);
    assert_eq!(imported.totals.files, 1);
}
