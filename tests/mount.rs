//! The file system through a real mount, against the reference model.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::fs::{FsOptions, MountRoot, NodeOwner, RootListing, RootNames, UnreachableLookup};
use castore_fs::nix::NarinfoFile;
use castore_fs::store::{LocalStore, MemoryStore, Store, ValidPath};
use castore_fs::transport::fuse::UnmountOutcome;
use kit::double::{DEADLINE, Double, Fate, Trouble};
use kit::model::{Model, directory, file, program, symlink};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::patience::wait_until;
use kit::xattr::xattr;
use parking_lot::RwLock;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn stored(model: &Model) -> (Arc<MemoryStore>, Node) {
    let store = Arc::new(MemoryStore::new());
    let node = model.put_root(&*store, "root");
    (store, node)
}

fn mounted(model: &Model) -> Mounted {
    let (store, node) = stored(model);
    Mounted::mount_root(store, &node)
}

fn walk(path: &Path) -> usize {
    let mut seen = 1;
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            seen += walk(&entry.unwrap().path());
        }
    }
    seen
}

/// How many names there are below a directory. No name is looked up for that.
fn names_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => 1 + names_below(&entry.path()),
                false => 1,
            }
        })
        .sum()
}

fn os_error(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

// What trees look like.

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 1..12),
        1 => vec(1..=255u8, 200..=255),
        2 => "[a-c]{1,2}".prop_map(String::into_bytes),
    ]
    .prop_filter("a legal name", |name| Name::new(name).is_ok())
}

fn any_tree() -> impl Strategy<Value = Model> {
    let content = prop_oneof![
        Just(Vec::new()),
        Just(b"the same in many places".to_vec()),
        vec(any::<u8>(), 0..300),
        (any::<u8>(), 4000..300_000usize)
            .prop_map(|(seed, length)| { (0..length).map(|at| (at / 7) as u8 ^ seed).collect() }),
    ];
    let leaf = prop_oneof![
        4 => (content, any::<bool>())
            .prop_map(|(bytes, executable)| Model::File { bytes, executable }),
        1 => vec(1..=255u8, 1..300).prop_map(Model::Symlink),
    ];
    leaf.prop_recursive(5, 60, 12, |inner| {
        btree_map(any_name(), inner, 0..12).prop_map(Model::Directory)
    })
    .prop_map(|tree| match tree {
        Model::Directory(_) => tree,
        leaf => directory([("only", leaf)]),
    })
}

/// Something to do to a file of a tree.
#[derive(Clone, Debug)]
enum Operation {
    ReadAt {
        file: prop::sample::Index,
        offset: prop::sample::Index,
        length: usize,
    },
    Missing {
        name: Vec<u8>,
    },
    Walk,
    DropCaches,
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..70_000usize)
            .prop_map(|(file, offset, length)| Operation::ReadAt { file, offset, length }),
        2 => any_name().prop_map(|name| Operation::Missing { name }),
        1 => Just(Operation::Walk),
        1 => Just(Operation::DropCaches),
    ]
}

fn files(model: &Model, path: &Path, found: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    match model {
        Model::File { bytes, .. } => found.push((path.to_owned(), bytes.clone())),
        Model::Symlink(_) => {}
        Model::Directory(entries) => {
            for (name, entry) in entries {
                files(entry, &path.join(OsStr::from_bytes(name)), found);
            }
        }
    }
}

/// All tests share the kernel's caches: a test that depends on their contents holds this to read,
/// one that drops them to write.
static CACHES: RwLock<()> = RwLock::new(());

/// Makes the kernel forget every unused name and inode. Only the superuser can; without, the tests
/// that do this are as true.
fn drop_caches() -> std::io::Result<()> {
    let _alone = CACHES.write();
    fs::write("/proc/sys/vm/drop_caches", "2")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_mount_is_the_tree_whatever_is_done_with_it(
        tree in any_tree(),
        operations in vec(any_operation(), 0..20),
    ) {
        if !can_mount() { return Ok(()); }
        let mount = mounted(&tree);
        let mut all = Vec::new();
        files(&tree, mount.path(), &mut all);
        for operation in operations {
            match operation {
                Operation::ReadAt { file, offset, length } if !all.is_empty() => {
                    let (path, bytes) = file.get(&all);
                    let offset = offset.index(bytes.len() + 2);
                    let mut buffer = vec![0; length];
                    let read = fs::File::open(path).unwrap()
                        .read_at(&mut buffer, offset as u64).unwrap();
                    let expected = bytes.get(offset..).unwrap_or_default();
                    let expected = &expected[..expected.len().min(length)];
                    prop_assert!(buffer[..read] == *expected, "{path:?} at {offset}");
                }
                Operation::Missing { name } => {
                    let Model::Directory(entries) = &tree else { unreachable!() };
                    if !entries.contains_key(&name) {
                        let path = mount.join(OsStr::from_bytes(&name));
                        let error = fs::symlink_metadata(path).unwrap_err();
                        prop_assert_eq!(os_error(error), libc::ENOENT);
                    }
                }
                Operation::Walk => { walk(mount.path()); }
                Operation::DropCaches => {
                    let _ = drop_caches();
                }
                Operation::ReadAt { .. } => {}
            }
        }
        tree.assert_is_at(mount.path());
    }
}

// Inodes.

#[test]
fn equal_directories_keep_their_own_paths() {
    if !can_mount() {
        return;
    }
    let twin = directory([("x", directory([("f", file("twin"))]))]);
    let mount = mounted(&directory([("a", twin.clone()), ("b", twin)]));
    let held = fs::File::open(mount.join("a/x")).unwrap();
    let mut walker = Command::new("sh")
        .args(["-c", "read go && /bin/pwd -P && cat f && ls ../../b/x"])
        .current_dir(mount.join("a/x"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    assert!(mount.join("b/x/f").exists());
    walk(mount.path());
    let _ = drop_caches();
    assert!(mount.join("b/x").exists());
    let path = fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&held)
    ));
    assert_eq!(path.unwrap(), mount.join("a/x"));
    std::io::Write::write_all(walker.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let output = String::from_utf8(walker.wait_with_output().unwrap().stdout).unwrap();
    let expected = format!("{}\ntwinf\n", mount.join("a/x").display());
    assert_eq!(output, expected);
}

#[test]
fn ten_thousand_equal_directories_are_ten_thousand_places() {
    if !can_mount() {
        return;
    }
    let twin = directory([("f", file("twin")), ("d", directory([("g", file("twin"))]))]);
    let names: Vec<String> = (0..10_000).map(|number| format!("{number:05}")).collect();
    let mount = mounted(&directory(names.iter().map(|name| (name, twin.clone()))));
    let first = fs::File::open(mount.join("00000/d")).unwrap();
    assert_eq!(walk(mount.path()), 1 + 10_000 * 4);
    let inodes: std::collections::HashSet<u64> = names
        .iter()
        .map(|name| fs::metadata(mount.join(name).join("d")).unwrap().ino())
        .collect();
    assert_eq!(inodes.len(), 10_000);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&first);
    assert_eq!(
        fs::read_link(format!("/proc/self/fd/{fd}")).unwrap(),
        mount.join("00000/d")
    );
}

#[test]
fn the_table_shrinks_when_the_kernel_forgets() {
    if !can_mount() {
        return;
    }
    let many = directory((0..300).map(|number| {
        let files = (0..20).map(|file_number| {
            (
                format!("f{file_number}"),
                file(format!("{number} {file_number}")),
            )
        });
        (format!("d{number}"), directory(files))
    }));
    let mount = mounted(&many);
    {
        let _guard = CACHES.read();
        walk(mount.path());
        let full = mount.session.nodes();
        assert_eq!(full.directories, 301);
    }
    if drop_caches().is_err() {
        kit::skip::skip("only the superuser can make the kernel forget");
        return;
    }
    let mut remaining = mount.session.nodes();
    for _ in 0..50 {
        if remaining.directories == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        let _ = drop_caches();
        remaining = mount.session.nodes();
    }
    assert_eq!(remaining.directories, 1, "{remaining:?}");
    many.assert_is_at(mount.path());
}

#[test]
fn directories_beyond_the_limit_are_read_again() {
    if !can_mount() {
        return;
    }
    let tree = directory((0..200).map(|number| {
        let inside = directory([
            (format!("own {number}"), file(format!("{number}"))),
            ("same".to_owned(), file("same everywhere")),
        ]);
        (format!("{number}"), inside)
    }));
    let (store, node) = stored(&tree);
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        directory_limit: 20_000,
        ..FsOptions::default()
    };
    let mount = Mounted::new(store, options);
    let held = fs::File::open(mount.join("7/own 7")).unwrap();
    for _ in 0..2 {
        tree.assert_is_at(mount.path());
    }
    let kept = mount.session.nodes().directory_bytes;
    // The one in use stays whatever the limit is.
    assert!(kept < 20_000 + 30_000, "{kept} bytes");
    let mut text = String::new();
    (&held).read_to_string(&mut text).unwrap();
    assert_eq!(text, "7");
}

// Listings.

#[test]
fn no_entry_is_lost_in_a_listing_of_any_size() {
    if !can_mount() {
        return;
    }
    for count in [0, 1, 2, 30, 31, 32, 500, 3000] {
        let store = Arc::new(MemoryStore::new());
        let ingest = store.ingest().unwrap();
        let node = file("x").put(&*ingest);
        let mut expected = Vec::new();
        for number in 0..count {
            let name = format!("{}{number:05}", "n".repeat(number % 200));
            let root = Root {
                name: Name::new(name.as_bytes()).unwrap(),
                node: node.clone(),
            };
            ingest.put_root(&root, None).unwrap();
            expected.push(name);
        }
        ingest.commit().unwrap();
        let tree = directory(expected.iter().map(|name| (name, file("x"))));
        let mount_root = tree.put_root(&*store, "all");
        expected.push("all".to_owned());
        expected.sort();
        let list = |path: &Path| {
            let mut names: Vec<String> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let roots = Mounted::new(store.clone(), FsOptions::default());
        assert!(list(roots.path()) == expected, "{count} root nodes");
        expected.retain(|name| name != "all");
        assert!(
            list(Mounted::mount_root(store, &mount_root).path()) == expected,
            "{count} entries"
        );
    }
}

/// As `ls` does, which stats a directory before it lists it. The kernel is notified of new roots
/// soon after they appear; without a notification, it sees that its listing is stale.
#[test]
fn a_new_root_is_listed_although_the_kernel_was_not_notified() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(Double {
        silent: true,
        ..Double::local_store("double:", MemoryStore::new())
    });
    let mount = Mounted::new(store.clone(), FsOptions::default());
    let list = || {
        assert!(fs::metadata(mount.path()).unwrap().is_dir());
        fs::read_dir(mount.path()).unwrap().count()
    };
    for roots in 0..20 {
        wait_until("the new listing", || list() == roots);
        assert_eq!(list(), roots);
        directory([("file", file("x"))]).put_root(&*store, &format!("root {roots}"));
    }
}

#[test]
fn a_directory_of_200_000_entries_lists_and_answers_quickly() {
    if !can_mount() {
        return;
    }
    let count = 200_000;
    let tree = directory((0..count).map(|number| (format!("entry {number}"), file(""))));
    let mount = mounted(&tree);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), count);
    assert!(mount.join("entry 77777").exists());
    assert!(!mount.join("entry x").exists());
}

#[test]
fn seekdir_goes_back_to_where_telldir_was() {
    if !can_mount() {
        return;
    }
    let names: Vec<String> = (0..1000).map(|number| format!("{number:04}")).collect();
    let mount = mounted(&directory(names.iter().map(|name| (name, file("")))));
    let path = CString::new(mount.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: the stream is opened, used and closed here alone, and every name is read before the
    // next call.
    let (all, again) = unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let mut all = Vec::new();
        loop {
            let place = libc::telldir(stream);
            let entry = libc::readdir64(stream);
            if entry.is_null() {
                break;
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr());
            all.push((place, name.to_owned()));
        }
        let mut again = Vec::new();
        for (place, _) in all.iter().rev() {
            libc::seekdir(stream, *place);
            let entry = libc::readdir64(stream);
            again.push(std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned());
        }
        libc::closedir(stream);
        (all, again)
    };
    assert_eq!(all.len(), 1002);
    let expected: Vec<_> = all.into_iter().rev().map(|(_, name)| name).collect();
    assert_eq!(again, expected);
}

#[test]
fn a_top_that_is_not_listed_still_looks_up() {
    if !can_mount() {
        return;
    }
    let (store, _) = stored(&directory([("f", file("f"))]));
    let options = FsOptions {
        mount_root: MountRoot::Roots {
            list: RootListing::Refused,
        },
        ..FsOptions::default()
    };
    let mount = Mounted::new(store, options);
    let error = fs::read_dir(mount.path())
        .and_then(|mut entries| entries.next().unwrap())
        .unwrap_err();
    assert_eq!(os_error(error), libc::EPERM);
    assert_eq!(fs::read(mount.join("root/f")).unwrap(), b"f");
    assert_eq!(fs::read_dir(mount.join("root")).unwrap().count(), 1);
}

#[test]
fn a_top_that_lists_nothing_is_an_empty_directory_and_still_looks_up() {
    if !can_mount() {
        return;
    }
    let (store, _) = stored(&directory([("f", file("f"))]));
    let options = FsOptions {
        mount_root: MountRoot::Roots {
            list: RootListing::Nothing,
        },
        ..FsOptions::default()
    };
    let mount = Mounted::new(store, options);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    assert_eq!(fs::read(mount.join("root/f")).unwrap(), b"f");
    assert_eq!(fs::read_dir(mount.join("root")).unwrap().count(), 1);
    // What was looked up is not listed either.
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
}

/// An upstream with the root [`SEEN`], which lists its roots or does not.
fn far_with_a_store_path(lists: bool) -> Double {
    let memory = MemoryStore::new();
    directory([("f", file("f"))]).put_root(&memory, SEEN);
    Double {
        unlisted: !lists,
        ..Double::upstream("double:", memory)
    }
}

/// A mount below a Nix store.
fn below_a_nix_store(store: Double) -> (Arc<Double>, Mounted) {
    let store = Arc::new(store);
    let options = FsOptions {
        mount_root: MountRoot::Roots {
            list: RootListing::Nothing,
        },
        root_names: RootNames::StorePaths,
        when_unreachable: UnreachableLookup::Absent,
        ..FsOptions::default()
    };
    let mount = Mounted::new(store.clone(), options);
    (store, mount)
}

const SEEN: &str = "00000000000000000000000000000000-seen";

fn errno_of(path: PathBuf) -> i32 {
    os_error(fs::metadata(path).unwrap_err())
}

/// Names of store paths that no store has.
fn new_names() -> impl Iterator<Item = String> {
    (10..110).map(|number| format!("{number:032}-new"))
}

/// Waits until the mount has the store's list, and answers from it.
fn wait_for_the_list(store: &Double, mount: &Mounted) {
    wait_until("the store's list", || {
        store.asked();
        let is_absent = !mount.join("22222222222222222222222222222222-none").exists();
        is_absent && store.asked() == 0
    });
}

#[test]
fn names_that_cannot_be_store_paths_with_content_cause_no_request() {
    if !can_mount() {
        return;
    }
    let (store, mount) = below_a_nix_store(far_with_a_store_path(false));
    assert!(mount.join(SEEN).exists());
    let hash = "11111111111111111111111111111111";
    store.asked();
    for name in [
        ".links".to_owned(),
        "tmp-4711-0".to_owned(),
        format!("{hash}-a.drv"),
        format!("{hash}-a.drv.lock"),
        format!("{hash}-a.lock"),
        format!("{hash}-a.drv.chroot"),
    ] {
        assert_eq!(errno_of(mount.join(&name)), libc::ENOENT, "{name}");
    }
    assert_eq!(store.asked(), 0);
    assert_eq!(errno_of(mount.join(format!("{hash}-a"))), libc::ENOENT);
    assert_eq!(store.asked(), 1);
}

#[test]
fn a_path_that_is_valid_for_nix_is_never_absent_and_other_names_need_not_be_there() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let (lost, other) = (
        "11111111111111111111111111111111-lost",
        "22222222222222222222222222222222-other",
    );
    for name in [SEEN, other] {
        directory([("f", file("f"))]).put_root(&store, name);
    }
    let valid = [SEEN, lost].map(|name| {
        let hash = "0".repeat(64);
        let text =
            format!("StorePath: /nix/store/{name}\nURL: -\nNarHash: sha256:{hash}\nNarSize: 1\n");
        ValidPath::new(NarinfoFile::parse(text.as_bytes()).unwrap(), None)
    });
    assert!(store.add_valid_paths(&valid, &[]).unwrap());
    for root_names in [RootNames::Any, RootNames::StorePaths, RootNames::ValidPaths] {
        let options = FsOptions {
            root_names,
            when_unreachable: UnreachableLookup::Absent,
            ..FsOptions::default()
        };
        let mount = Mounted::new(Arc::new(store.clone()), options);
        assert_eq!(fs::read(mount.join(SEEN).join("f")).unwrap(), b"f");
        assert_eq!(errno_of(mount.join(lost)), libc::EIO);
        assert_eq!(
            mount.join(other).exists(),
            root_names != RootNames::ValidPaths
        );
        let none = mount.join("33333333333333333333333333333333-none");
        assert_eq!(errno_of(none), libc::ENOENT);
    }
}

#[test]
fn a_store_that_lists_its_roots_is_not_asked_for_other_names() {
    if !can_mount() {
        return;
    }
    let (store, mount) = below_a_nix_store(far_with_a_store_path(true));
    wait_for_the_list(&store, &mount);
    assert_eq!(fs::read(mount.join(SEEN).join("f")).unwrap(), b"f");
    store.asked();
    for name in new_names() {
        assert_eq!(errno_of(mount.join(&name)), libc::ENOENT);
    }
    assert_eq!(store.asked(), 0);
    // What it has got since is found: it reports that its roots have changed.
    let added = "33333333333333333333333333333333-added";
    assert_eq!(errno_of(mount.join(added)), libc::ENOENT);
    directory([("f", file("new"))]).put_root(store.inner().as_ref(), added);
    wait_until("what was added", || mount.join(added).exists());
    // Where it becomes unreachable the list still answers, and what is in it is an error.
    store.trouble(Trouble::Unreachable);
    for name in new_names() {
        assert_eq!(errno_of(mount.join(&name)), libc::ENOENT);
    }
    assert_eq!(
        os_error(fs::read(mount.join(added).join("f")).unwrap_err()),
        libc::EIO
    );
}

#[test]
fn what_was_added_is_found_in_a_store_that_reports_no_changes() {
    if !can_mount() {
        return;
    }
    let store = Double {
        silent: true,
        ..far_with_a_store_path(true)
    };
    let (store, mount) = below_a_nix_store(store);
    wait_for_the_list(&store, &mount);
    let added = "33333333333333333333333333333333-added";
    directory([("f", file("new"))]).put_root(store.inner().as_ref(), added);
    // After the 10 s that its list holds.
    wait_until("what was added", || mount.join(added).exists());
}

#[test]
fn an_unreachable_store_hides_what_was_never_seen_and_nothing_else() {
    if !can_mount() {
        return;
    }
    for trouble in [
        Trouble::Unreachable,
        Trouble::Hangs,
        Trouble::Slow(DEADLINE),
    ] {
        let (store, mount) = below_a_nix_store(far_with_a_store_path(false));
        let seen = mount.join(SEEN);
        assert!(seen.exists());
        store.trouble(trouble);
        store.asked();
        // Those after the first make no request, so that none of them waits.
        for name in new_names() {
            assert_eq!(errno_of(mount.join(&name)), libc::ENOENT, "{trouble:?}");
        }
        let asked = store.asked();
        assert!((1..20).contains(&asked), "{trouble:?}: {asked} requests");
        if trouble == Trouble::Unreachable {
            assert_eq!(os_error(fs::read(seen.join("f")).unwrap_err()), libc::EIO);
        }
        store.trouble(Trouble::None);
        // Without a change of the store's roots, nothing but another look-up finds it.
        assert_eq!(fs::read(seen.join("f")).unwrap(), b"f");
    }
}

#[test]
fn a_root_is_found_again_after_its_store_was_unreachable() {
    if !can_mount() {
        return;
    }
    for lists in [false, true] {
        let store = far_with_a_store_path(lists);
        store.trouble(Trouble::Unreachable);
        let (store, mount) = below_a_nix_store(store);
        let path = mount.join(SEEN);
        assert_eq!(errno_of(path.clone()), libc::ENOENT);
        store.trouble(Trouble::None);
        // The pause of 5 s is over at some time, and nothing has to be dropped from a cache.
        wait_until("the root that is there again", || path.exists());
        assert_eq!(fs::read(path.join("f")).unwrap(), b"f");
    }
}

#[test]
fn by_default_an_unreachable_store_is_an_error() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(Double::upstream("double:", MemoryStore::new()));
    store.trouble(Trouble::Unreachable);
    let mount = Mounted::new(store, FsOptions::default());
    assert_eq!(errno_of(mount.join(SEEN)), libc::EIO);
}

// Caching.

#[test]
fn warm_operations_make_no_request() {
    if !can_mount() {
        return;
    }
    let _guard = CACHES.read();
    let tree = directory([
        ("big", file(vec![7; 3 << 20])),
        ("d", directory([("f", file("f")), ("l", symlink("../big"))])),
        ("empty", directory::<&str>([])),
    ]);
    let mount = mounted(&tree);
    let everything = || {
        tree.assert_is_at(mount.path());
        assert!(!mount.join("d/missing").exists());
        assert!(!mount.join("missing/below").exists());
    };
    everything();
    // The second round finds the listings cached, which the first one filled.
    everything();
    let (requests, ()) = mount.requests_of(everything);
    assert_eq!(requests.total(), 0, "{requests:?}");
    // Not even the first round opened anything more than once.
    let all = mount.session.requests();
    assert!(all.of("OPEN") <= 1 && all.of("OPENDIR") <= 1, "{all:?}");
    assert_eq!(all.of("RELEASE") + all.of("RELEASEDIR"), 0, "{all:?}");
}

/// Every path goes through the top, whose attributes can change when it shows root nodes.
#[test]
fn warm_paths_through_a_top_of_root_nodes_make_next_to_no_request() {
    if !can_mount() {
        return;
    }
    let _guard = CACHES.read();
    let store = Arc::new(MemoryStore::new());
    directory([("d", directory([("f", file("f"))]))]).put_root(&*store, "name");
    let mount = Mounted::new(store, FsOptions::default());
    let path = mount.join("name/d/f");
    assert_eq!(fs::read(&path).unwrap(), b"f");
    let (requests, ()) = mount.requests_of(|| {
        for _ in 0..1000 {
            assert_eq!(fs::read(&path).unwrap(), b"f");
            fs::metadata(mount.path()).unwrap();
        }
    });
    // One in 10 ms, instead of two each time.
    assert!(requests.total() < 500, "{requests:?}");
}

#[test]
fn cold_operations_make_few_requests() {
    if !can_mount() {
        return;
    }
    let _guard = CACHES.read();
    let (directories, files) = (50, 10);
    let tree = directory((0..directories).map(|number| {
        let inside = (0..files).map(|at| (format!("f{at}"), file(format!("{number} {at}"))));
        (format!("d{number}"), directory(inside))
    }));
    let mount = mounted(&tree);
    let (walked, _) = mount.requests_of(|| walk(mount.path()));
    // The names and all attributes of a directory in one request; a second one finds the end.
    assert!(
        walked.of("READDIRPLUS") <= 2 * (directories + 1),
        "{walked:?}"
    );
    // Now and then an attribute is omitted as a trial: of the 1st, 3rd, 6th, 11th, 20th
    // and 37th directory.
    assert!(
        walked.of("LOOKUP") + walked.of("GETATTR") <= 1 + 6,
        "{walked:?}"
    );
    let (read, ()) = mount.requests_of(|| tree.assert_is_at(mount.path()));
    assert!(read.of("READ") <= directories * files, "{read:?}");
    // What is left are the listings, which the first round did not read to their ends in the cache,
    let other = read.total() - read.of("READ") - read.of("READDIRPLUS") - read.of("READDIR");
    // and OPEN and FLUSH, each refused once and for all.
    assert!(other <= 2, "{read:?}");
}

#[test]
fn a_walk_that_wants_names_only_gets_no_attributes_and_they_are_there_when_wanted() {
    if !can_mount() {
        return;
    }
    let _guard = CACHES.read();
    let (directories, files) = (50, 10);
    let tree = directory((0..directories).map(|number| {
        let inside = (0..files).map(|at| (format!("f{at}"), file(format!("{number} {at}"))));
        let link = [("to".to_owned(), symlink("f0"))];
        (format!("d{number}"), directory(inside.chain(link)))
    }));
    let mount = mounted(&tree);
    let (listed, names) = mount.requests_of(|| names_below(mount.path()));
    assert_eq!(names, directories as usize * (1 + files as usize + 1));
    assert_eq!(listed.of("LOOKUP"), 0, "{listed:?}");
    // Another thread wants attributes: it asks for those of one directory, and gets those of the
    // directories after it with their listings.
    let stat_all = |dir: &Path| {
        for at in 0..files {
            fs::symlink_metadata(dir.join(format!("f{at}"))).unwrap();
        }
    };
    let other = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (asked, ()) = mount.requests_of(|| stat_all(&mount.join("d20")));
            assert_eq!(asked.of("LOOKUP"), files, "{asked:?}");
            let next = mount.join("d21");
            wait_until("a listing that is dropped", || {
                let (listed, _) = mount.requests_of(|| names_below(&next));
                listed.of("READDIRPLUS") > 0
            });
            let (asked, ()) = mount.requests_of(|| stat_all(&next));
            assert!(asked.of("LOOKUP") <= 1, "a trial at most: {asked:?}");
        });
        other.join()
    });
    other.unwrap();
    tree.assert_is_at(mount.path());
}

#[test]
fn a_root_node_is_seen_as_soon_as_it_is_there_and_gone_as_soon_as_it_is_not() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let mount = Mounted::new(store.clone(), FsOptions::default());
    let names = || {
        let mut names: Vec<_> = fs::read_dir(mount.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let eventually = |expected: &[&str]| {
        wait_until(&format!("{expected:?}"), || names() == expected);
    };
    assert_eq!(names(), [""; 0]);
    assert!(!mount.join("one").exists());
    let tree = directory([("f", file("first"))]);
    tree.put_root(&*store, "one");
    // A missing name is looked up again each time; there is no wait here.
    assert_eq!(fs::read(mount.join("one/f")).unwrap(), b"first");
    eventually(&["one"]);
    let held = fs::File::open(mount.join("one/f")).unwrap();
    directory([("f", file("second"))]).put_root(&*store, "one");
    file("two").put_root(&*store, "two");
    eventually(&["one", "two"]);
    wait_until("the new contents", || {
        fs::read(mount.join("one/f")).unwrap() == b"second"
    });
    let mut text = String::new();
    (&held).read_to_string(&mut text).unwrap();
    assert_eq!(text, "first");
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&Name::new(b"one").unwrap()).unwrap();
    ingest.commit().unwrap();
    eventually(&["two"]);
    // The listing is requested again; that a known name is gone is notified to the kernel.
    wait_until("the end of a name", || !mount.join("one").exists());
}

// Attributes.

#[test]
fn everything_has_the_owner_that_the_mount_sets_and_nothing_can_be_changed() {
    if !can_mount() {
        return;
    }
    let tree = directory([("d", directory([("f", file("f"))])), ("l", symlink("d"))]);
    let (store, node) = stored(&tree);
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        owner: NodeOwner { uid: 12, gid: 34 },
        ..FsOptions::default()
    };
    let mount = Mounted::new(store, options);
    for path in ["", "d", "d/f", "l"] {
        let stat = fs::symlink_metadata(mount.join(path)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (12, 34), "{path}");
    }
    let refused: [(&str, std::io::Result<()>); 8] = [
        ("write", fs::write(mount.join("d/f"), "x")),
        ("create", fs::write(mount.join("d/new"), "x")),
        ("mkdir", fs::create_dir(mount.join("d/new"))),
        ("unlink", fs::remove_file(mount.join("d/f"))),
        ("rmdir", fs::remove_dir(mount.join("d"))),
        ("rename", fs::rename(mount.join("d/f"), mount.join("d/g"))),
        (
            "symlink",
            std::os::unix::fs::symlink("x", mount.join("d/new")),
        ),
        ("link", fs::hard_link(mount.join("d/f"), mount.join("d/g"))),
    ];
    for (what, outcome) in refused {
        assert_eq!(os_error(outcome.unwrap_err()), libc::EROFS, "{what}");
    }
    tree_is_unchanged(&tree, &mount);
}

fn tree_is_unchanged(tree: &Model, mount: &Mounted) {
    let _ = drop_caches();
    tree.assert_is_at(mount.path());
}

#[test]
fn sizes_do_not_change_after_the_first_listing() {
    if !can_mount() {
        return;
    }
    let tree = directory([(
        "d",
        directory([("e", directory([("f", file("f"))])), ("g", file("g"))]),
    )]);
    let mount = mounted(&tree);
    let look = || {
        let stat = fs::metadata(mount.join("d")).unwrap();
        (stat.size(), stat.nlink(), stat.ino(), stat.blocks())
    };
    let before = look();
    walk(mount.path());
    let _ = drop_caches();
    walk(mount.path());
    assert_eq!(look(), before);
    assert_eq!(before.1, 3);
}

#[test]
fn statfs_has_the_size_of_the_store() {
    if !can_mount() {
        return;
    }
    let mount = mounted(&directory([
        ("a", file(vec![1; 10_000])),
        ("b", file(vec![2; 5_000])),
    ]));
    let path = CString::new(mount.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: zeros are a value of statvfs64, and the call fills it.
    let stat = unsafe {
        let mut stat: libc::statvfs64 = std::mem::zeroed();
        assert_eq!(libc::statvfs64(path.as_ptr(), &mut stat), 0);
        stat
    };
    assert_eq!(
        stat.f_blocks * stat.f_frsize,
        15_000u64.div_ceil(4096) * 4096
    );
    assert_eq!((stat.f_bfree, stat.f_bavail), (0, 0));
    assert_eq!(stat.f_files, 3);
    assert_eq!(stat.f_namemax, 255);
    assert_ne!(stat.f_flag & libc::ST_RDONLY, 0);
}

fn xattr_names(path: &Path) -> Vec<String> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = [0u8; 1024];
    // SAFETY: the path ends in NUL, and the buffer has the stated length.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = &names[..usize::try_from(length).unwrap()];
    let names = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

#[test]
fn digests_are_extended_attributes_if_the_mount_has_them() {
    if !can_mount() {
        return;
    }
    let tree = directory([("d", directory([("f", file("f"))])), ("l", symlink("d"))]);
    let (store, node) = stored(&tree);
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        xattr: true,
        ..FsOptions::default()
    };
    let mount = Mounted::new(store.clone(), options);
    let blob = Digest::of(b"f").to_string();
    let path = mount.join("d/f");
    assert_eq!(xattr(&path, "user.castore.digest"), Ok(blob.clone()));
    assert_eq!(
        xattr(&path, "user.snix.castore.blob.digest"),
        Ok(blob.clone())
    );
    assert_eq!(xattr(&path, "user.tvix.castore.blob.digest"), Ok(blob));
    let other = xattr(&path, "user.tvix.castore.directory.digest");
    assert_eq!(other, Err(libc::ENODATA));
    let mount_root = node.digest().unwrap().to_string();
    for name in [
        "user.castore.digest",
        "user.snix.castore.directory.digest",
        "user.tvix.castore.directory.digest",
    ] {
        assert_eq!(xattr(mount.path(), name), Ok(mount_root.clone()));
        assert!(xattr_names(mount.path()).contains(&name.to_owned()));
    }
    assert_eq!(xattr_names(&mount.join("l")), [""; 0]);
    let without = Mounted::mount_root(store, &node);
    let refused = xattr(&without.join("d/f"), "user.castore.digest");
    assert_eq!(refused, Err(libc::EOPNOTSUPP));
}

// Using it.

#[test]
fn programs_run_from_the_mount() {
    if !can_mount() {
        return;
    }
    let shell = fs::read("/bin/sh").unwrap();
    let mount = mounted(&directory([
        ("sh", program(shell)),
        ("script", program("#!/bin/sh\necho \"it ran: $1\"\n")),
        ("no", file("#!/bin/sh\n")),
    ]));
    let output = Command::new(mount.join("sh"))
        .args(["-c", "echo from the mount"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"from the mount\n");
    let output = Command::new(mount.join("script")).arg("yes").output();
    assert_eq!(output.unwrap().stdout, b"it ran: yes\n");
    let error = Command::new(mount.join("no")).output().unwrap_err();
    assert_eq!(os_error(error), libc::EACCES);
}

#[test]
fn mapped_memory_is_the_file() {
    if !can_mount() {
        return;
    }
    let bytes: Vec<u8> = (0..5_000_001u32).map(|at| (at * 7 / 3) as u8).collect();
    let mount = mounted(&directory([("f", file(bytes.clone()))]));
    let opened = fs::File::open(mount.join("f")).unwrap();
    // SAFETY: a private read-only mapping of a file that cannot change, unmapped after its use.
    unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let map = libc::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            fd,
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        let mapped = std::slice::from_raw_parts(map.cast::<u8>(), bytes.len());
        // From the back, so that readahead does not do it all.
        for at in (0..bytes.len()).rev().step_by(99_991) {
            assert_eq!(mapped[at], bytes[at]);
        }
        assert!(mapped == bytes);
        libc::munmap(map, bytes.len());
    }
}

#[test]
fn readers_side_by_side_all_read_right() {
    if !can_mount() {
        return;
    }
    let contents: BTreeMap<String, Vec<u8>> = (0..40)
        .map(|number| {
            let length = number * number * 1000;
            let bytes = (0..length).map(|at| (at ^ number) as u8).collect();
            (format!("{number}"), bytes)
        })
        .collect();
    let tree = directory(
        contents
            .iter()
            .map(|(name, bytes)| (name, file(bytes.clone()))),
    );
    let mount = mounted(&tree);
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (mount, contents) = (&mount, &contents);
            scope.spawn(move || {
                for round in 0..3 {
                    for (name, bytes) in contents {
                        let mut opened = fs::File::open(mount.join(name)).unwrap();
                        let from = bytes.len() / (1 + (reader + round) % 4);
                        opened.seek(SeekFrom::Start(from as u64)).unwrap();
                        let mut tail = Vec::new();
                        opened.read_to_end(&mut tail).unwrap();
                        assert!(tail == bytes[from..], "{name} from {from}");
                    }
                    if reader == 0 {
                        let _ = drop_caches();
                    }
                }
            });
        }
    });
}

#[test]
fn a_busy_mount_is_unmounted_lazily_and_its_user_finishes() {
    if !can_mount() {
        return;
    }
    let mount = mounted(&directory([("f", file(vec![5; 200_000]))]));
    let mut held = fs::File::open(mount.join("f")).unwrap();
    let UnmountOutcome::InUse(users) = mount.session.unmount().unwrap() else {
        panic!("it is in use");
    };
    let this = format!("process {} ", std::process::id());
    assert!(users.to_string().contains(&this), "{users}");
    assert!(!mount.join("f").exists());
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 200_000);
    drop(held);
    mount.session.wait();
    assert_eq!(mount.session.unmount().unwrap(), UnmountOutcome::Cleanly);
}

#[test]
fn an_unmount_from_outside_ends_the_session() {
    if !can_mount() {
        return;
    }
    let mount = mounted(&directory([("f", file("f"))]));
    let status = Command::new("umount").arg(mount.path()).status().unwrap();
    assert!(status.success());
    mount.session.wait();
}

#[test]
fn a_mount_ends_with_its_users_although_a_request_waits_for_ever() {
    if !can_mount() {
        return;
    }
    let inner = MemoryStore::new();
    let node = directory([("f", file(vec![5; 200_000]))]).put_root(&inner, "root");
    let store = Arc::new(Double::local_store("gated:", inner));
    let mount = Mounted::mount_root(store.clone(), &node);
    store.close();
    let mut reader = Command::new("cat")
        .arg(mount.join("f"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a read waits", || *store.at_gate.borrow() > 0);
    reader.kill().unwrap();
    reader.wait().unwrap();
    let status = Command::new("umount").arg(mount.path()).status().unwrap();
    assert!(status.success());
    let (send_request, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        mount.session.wait();
        send_request.send(mount).unwrap();
    });
    let mount = receiver.recv_timeout(Duration::from_secs(20));
    let mount = mount.expect("the end of the mount is noticed");
    assert!(*store.at_gate.borrow() > 0, "the request still waits");
    store.open();
    drop(mount);
}

// Failing stores.

#[test]
fn what_is_damaged_or_missing_fails_alone_and_nothing_hangs() {
    if !can_mount() {
        return;
    }
    let inner = MemoryStore::new();
    let broken_inside = directory([("inside", file("inside"))]);
    let ingest = inner.ingest().unwrap();
    let damaged_directory = broken_inside.put(&*ingest).digest().unwrap();
    // A node whose blob is in no store, and one with a wrong size.
    let missing = Node::File {
        digest: Digest::of(b"in no store"),
        size: 15,
        executable: false,
    };
    let lying = Node::File {
        digest: Digest::of(b"good"),
        size: 4000,
        executable: false,
    };
    let name = |name: &str| Name::new(name.as_bytes()).unwrap();
    let mount_root = Directory::from_entries(vec![
        (name("damaged"), broken_inside.put(&*ingest)),
        (name("good"), file("good").put(&*ingest)),
        (name("lying"), lying),
        (name("missing"), missing),
        (name("panics"), file("panics").put(&*ingest)),
        (name("slow"), file("slow").put(&*ingest)),
    ])
    .unwrap();
    ingest.put_directory(&mount_root).unwrap();
    ingest.commit().unwrap();
    let store = Double::local_store("broken:", inner)
        .damaging(&damaged_directory)
        .with(&Digest::of(b"slow"), Fate::TimesOut)
        .with(&Digest::of(b"panics"), Fate::Panics);
    let mount = Mounted::mount_root(Arc::new(store), &mount_root.node());
    // More times than there are workers.
    for _ in 0..8 {
        let read = |name: &str| fs::read(mount.join(name)).map_err(os_error);
        assert_eq!(read("missing"), Err(libc::EIO));
        assert_eq!(read("lying"), Err(libc::EIO));
        assert_eq!(read("slow"), Err(libc::ETIMEDOUT));
        assert_eq!(read("panics"), Err(libc::EIO));
        assert_eq!(read("damaged/inside"), Err(libc::EIO));
        let listing = fs::read_dir(mount.join("damaged"))
            .and_then(|mut entries| entries.next().expect("an error is an entry"));
        assert_eq!(os_error(listing.unwrap_err()), libc::EIO);
        assert_eq!(read("good"), Ok(b"good".to_vec()));
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 6);
        let _ = drop_caches();
    }
}

#[test]
fn a_failed_mount_reports_why() {
    if !can_mount() {
        return;
    }
    let (store, node) = stored(&directory([("f", file("f"))]));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let try_on = |path: &Path| {
        let options = FsOptions {
            mount_root: mount_root_of(&node),
            ..FsOptions::default()
        };
        let mount = castore_fs::transport::fuse::MountOptions::default();
        let handle = runtime.handle().clone();
        match castore_fs::transport::fuse::FuseSession::mount(
            store.clone(),
            path,
            options,
            &mount,
            handle,
        ) {
            Ok(_) => panic!("mounted on {path:?}"),
            Err(error) => error.to_string(),
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let missing = try_on(&dir.path().join("missing"));
    assert!(missing.contains("does not exist"), "{missing}");
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let no_dir = try_on(&plain);
    assert!(no_dir.contains("is not a directory"), "{no_dir}");
}
