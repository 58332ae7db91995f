//! The images are EROFS for other programs too, and not only for the reader of this crate.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use castore_fs::castore::{Digest, Directory, Node};
use castore_fs::image::{DirectorySource, ImageExtent, ImageLayout, ImageRoot, ImageVersion};
use castore_fs::store::{Answer, MemoryStore, Store};
use rustix::mount::{MountFlags, UnmountFlags};

use kit::model::{Model, directory, file, program, symlink};
use kit::skip::skip;

struct Source<'a>(&'a MemoryStore);

impl DirectorySource for Source<'_> {
    type Error = String;

    fn directory(&self, digest: &Digest) -> Result<Directory, String> {
        match self.0.directory_now(digest) {
            Ok(Answer::Found(directory)) => Ok(directory),
            other => Err(format!("{other:?}")),
        }
    }

    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, String> {
        digests
            .iter()
            .map(|digest| self.directory(digest))
            .collect()
    }
}

/// Writes the image of the root directory `node` of `store` to `path`.
fn write_image(store: &MemoryStore, node: &Node, path: &Path) {
    let source = Source(store);
    let image_root = ImageRoot::Directory(node.digest().unwrap());
    let layout = ImageLayout::new(image_root, ImageVersion::V1, &source).unwrap();
    let out = fs::File::create(path).unwrap();
    out.set_len(layout.size()).unwrap();
    let mut at = 0;
    while let Some(buffer) = layout.extent_at(at, &source).unwrap() {
        match buffer {
            ImageExtent::Metadata(length) => {
                let mut bytes = vec![0; length as usize];
                layout.read_metadata(at, &mut bytes, &source).unwrap();
                out.write_all_at(&bytes, at).unwrap();
            }
            ImageExtent::Zeros(_) => {}
            ImageExtent::Blob {
                digest,
                size,
                offset,
                length,
            } => {
                let mut bytes = vec![0; length as usize];
                let read = store.read_now(&digest, size, offset, &mut bytes).unwrap();
                assert_eq!(read, Answer::Found(bytes.len()));
                out.write_all_at(&bytes, at).unwrap();
            }
        }
        at += buffer.length();
    }
}

/// Fails unless what is at `path` is `model`. Collects inode numbers.
pub(crate) fn assert_shows(model: &Model, path: &Path, inodes: &mut Vec<u64>) {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1, 0), "{path:?}");
    assert_eq!((stat.uid(), stat.gid()), (0, 0), "{path:?}");
    inodes.push(stat.ino());
    let mode = stat.permissions().mode() & 0o7777;
    match model {
        Model::File { bytes, executable } => {
            assert!(stat.is_file(), "{path:?}");
            assert_eq!(mode, if *executable { 0o555 } else { 0o444 }, "{path:?}");
            assert_eq!(stat.nlink(), 1, "{path:?}");
            assert!(fs::read(path).unwrap() == *bytes, "{path:?}: other bytes");
        }
        Model::Symlink(target) => {
            assert!(stat.is_symlink(), "{path:?}");
            let actual = fs::read_link(path).unwrap().into_os_string().into_vec();
            assert_eq!(actual, *target, "{path:?}");
        }
        Model::Directory(entries) => {
            assert!(stat.is_dir(), "{path:?}");
            assert_eq!(mode, 0o555, "{path:?}");
            let is_directory = |model: &&Model| matches!(model, Model::Directory(_));
            let subdirectories = entries.values().filter(is_directory).count() as u64;
            assert_eq!(stat.nlink(), 2 + subdirectories, "{path:?}");
            let listed: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_vec())
                .collect();
            let expected: Vec<_> = entries.keys().cloned().collect();
            assert!(listed == expected, "{path:?}: the listing is another");
            assert!(!path.join("no such name").exists());
            for (name, model) in entries {
                assert_shows(model, &path.join(OsStr::from_bytes(name)), inodes);
            }
        }
    }
}

/// Something of everything.
fn trees() -> Vec<(&'static str, Model)> {
    let none = || directory::<&str>([]);
    let names = (0..5000).map(|n| {
        let model = match n % 4 {
            0 => file(vec![n as u8; n * 3]),
            1 => program(vec![n as u8; 4096 * (n % 3)]),
            2 => symlink(&"t".repeat(n % 4000 + 1)),
            _ => directory([("in", file("the same"))]),
        };
        (format!("{n:x}"), model)
    });
    let long = (0..300).map(|n| {
        let mut name = vec![0xff; 255];
        name[..3].copy_from_slice(format!("{n:03}").as_bytes());
        (name, file(format!("{n}")))
    });
    let links = (4050..=4095).map(|length| (format!("{length}"), symlink(&"t".repeat(length))));
    let mixed = [
        ("!before", directory(names)),
        (".-between", directory(long)),
        ("links", directory(links)),
        ("none", none()),
        ("a file", file("content")),
    ];
    let many = (0..70_000).map(|n| (format!("{n}"), none()));
    let flat = (0..200_000).map(|n| (format!("file {n}"), file("one content")));
    vec![
        ("empty", none()),
        ("mixed", directory(mixed)),
        ("subdirectories", directory(many)),
        ("entries", directory(flat)),
    ]
}

fn tool(name: &str, arguments: &[&str], image: &Path) -> Option<String> {
    let done = match Command::new(name).args(arguments).arg(image).output() {
        Ok(done) => done,
        Err(error) => {
            skip(&format!("it needs {name}: {error}"));
            return None;
        }
    };
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{name}: {text}{error}");
    Some(text)
}

#[test]
fn erofs_own_tools_find_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in trees() {
        let store = MemoryStore::new();
        let node = model.put_root(&store, "root");
        let image = dir.path().join(name);
        write_image(&store, &node, &image);
        // Reads all data, and writes it nowhere.
        if tool("fsck.erofs", &["--extract"], &image).is_none() {
            return;
        }
        let output = tool("dump.erofs", &["-s"], &image).unwrap_or_default();
        let count = count(&model);
        assert!(
            output.contains(&count.to_string()),
            "{count} inodes: {output}"
        );
        fs::remove_file(image).unwrap();
    }
}

fn count(model: &Model) -> usize {
    match model {
        Model::Directory(entries) => 1 + entries.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// A mount that goes when it is dropped.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn the_kernel_shows_the_tree() {
    if !rustix::process::geteuid().is_root() {
        return skip("it needs mount(2), which only the superuser may call");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mount");
    fs::create_dir(&at).unwrap();
    for (name, model) in trees() {
        let store = MemoryStore::new();
        let node = model.put_root(&store, "root");
        let image = dir.path().join(name);
        write_image(&store, &node, &image);
        let mounted = rustix::mount::mount(&image, &at, "erofs", MountFlags::RDONLY, c"");
        if let Err(error) = mounted {
            return skip(&format!(
                "it needs EROFS backed by a file (Linux 6.12): {error}"
            ));
        }
        let mount = Mount(&at);
        let mut inodes = Vec::new();
        assert_shows(&model, &at, &mut inodes);
        let paths = inodes.len();
        inodes.sort_unstable();
        inodes.dedup();
        assert_eq!(inodes.len(), paths, "two paths share an inode");
        assert!(inodes.last() < Some(&(1 << 32)));
        drop(mount);
    }
}

#[test]
fn equal_trees_have_equal_images_whatever_else_is_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let model = directory([("a", file("content")), ("b", program("content"))]);
    let images = ["one", "two"].map(|name| {
        let store = MemoryStore::new();
        directory([("other", file(name))]).put_root(&store, "first");
        let node = model.put_root(&store, name);
        let image = dir.path().join(name);
        write_image(&store, &node, &image);
        fs::read(image).unwrap()
    });
    assert!(images[0] == images[1]);
    let other = Model::Directory(BTreeMap::from([(b"a".to_vec(), file("other"))]));
    let store = MemoryStore::new();
    let node = other.put_root(&store, "root");
    let image = dir.path().join("three");
    write_image(&store, &node, &image);
    assert!(fs::read(image).unwrap() != images[0]);
}
