//! What a mount records of its users, and what the next one does with it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castore_fs::castore::{Digest, Node};
use castore_fs::fs::{FsOptions, MountRoot, ReadPath, RootListing, WarmUpOptions};
use castore_fs::profile::{Profile, Profiles};
use castore_fs::store::{Cache, CacheOptions, LocalStore, MemoryStore, Store};

use super::{STARTS_WITH, contents, profile_key_of, start, tree};
use kit::directory::StoresDirectory;
use kit::double::{Double, Trouble};
use kit::model::{directory, file};
use kit::mounted::{Mounted, can_mount, mount_root_of};
use kit::patience::wait_until;
use kit::skip::skip;

/// An upstream, a directory for profiles, and for caches.
pub(crate) struct Scene {
    pub memory: MemoryStore,
    dir: StoresDirectory,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            memory: MemoryStore::new(),
            dir: StoresDirectory::default(),
        }
    }

    /// The upstream, and an empty cache in front of it.
    pub(crate) fn cold(&self) -> (Arc<Double>, Arc<dyn Store>) {
        let upstream = Arc::new(Double::upstream("double:", self.memory.clone()));
        let local_store = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let local_store = LocalStore::open(&local_store.join("near")).unwrap();
        let cache = Cache::new(local_store, upstream.clone(), CacheOptions::default()).unwrap();
        (upstream, Arc::new(cache))
    }

    pub(crate) fn profiles(&self) -> Arc<Profiles> {
        Arc::new(Profiles::new(self.dir.path().join("profiles")))
    }

    pub(crate) fn recording(&self, mount_root: MountRoot, profile_key: Option<&str>) -> FsOptions {
        let warm_up =
            WarmUpOptions::new(self.profiles(), profile_key.map(profile_key_of), u64::MAX);
        FsOptions {
            mount_root,
            warm_up: Some(warm_up),
            ..FsOptions::default()
        }
    }

    fn profile(&self, profile_key: &str) -> Option<Profile> {
        self.profiles().load(&profile_key_of(profile_key)).unwrap()
    }
}

fn paths(profile: &Profile) -> Vec<String> {
    let path =
        |file: &castore_fs::profile::ProfileFile| String::from_utf8(file.path.to_vec()).unwrap();
    profile.files().iter().map(path).collect()
}

/// The files of a start, as digests, in order.
fn digests(version: u32) -> Vec<Digest> {
    let digest = |dir: &usize| Digest::of(contents(version, *dir).as_bytes());
    STARTS_WITH.iter().map(digest).collect()
}

fn sorted_digests(version: u32) -> Vec<Digest> {
    let mut digests = digests(version);
    digests.sort();
    digests
}

/// What was read from `upstream`.
fn sorted(upstream: &Double) -> Vec<Digest> {
    let mut read = upstream.read.lock().clone();
    read.sort();
    read
}

/// Records a start of the tree `name`, shown as the top.
pub(crate) fn record(scene: &Scene, name: &str, version: u32) -> Node {
    let node = tree(version).put_root(&scene.memory, name);
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some(name)));
    start(mount.path(), version);
    drop(mount);
    node
}

#[test]
fn the_next_cold_mount_prefetches_what_was_read() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = record(&scene, "tree", 1);
    let expected: Vec<_> = STARTS_WITH.map(|dir| format!("dir-{dir}/file")).into();
    assert_eq!(paths(&scene.profile("tree").unwrap()), expected);

    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    wait_until("all is fetched", || {
        upstream.reads.load(Ordering::Relaxed) == 6
    });
    assert_eq!(sorted(&upstream), sorted_digests(1));
    upstream.trouble(Trouble::Unreachable);
    start(mount.path(), 1);
    let others = fs::read(mount.join("dir-7/other"));
    assert_eq!(others.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(fs::read(mount.join("dir-1/file")).is_err());
}

#[test]
fn it_is_fetched_in_the_order_in_which_it_was_touched() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = record(&scene, "tree", 1);
    // With no component in between that reads from threads of its own.
    let upstream = Arc::new(Double::upstream("double:", scene.memory.clone()));
    let mount = Mounted::new(
        upstream.clone(),
        scene.recording(mount_root_of(&node), Some("tree")),
    );
    wait_until("all is fetched", || {
        upstream.reads.load(Ordering::Relaxed) == 6
    });
    assert_eq!(*upstream.read.lock(), digests(1));
    drop(mount);
}

#[test]
fn the_order_is_that_of_the_last_start() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = record(&scene, "tree", 1);
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    for path in ["dir-5/other", "dir-2/file", "dir-7/file"] {
        fs::read(mount.join(path)).unwrap();
    }
    drop(mount);
    let known = paths(&scene.profile("tree").unwrap());
    assert_eq!(known[..3], ["dir-5/other", "dir-2/file", "dir-7/file"]);
    assert_eq!(known.len(), STARTS_WITH.len() + 1);
}

#[test]
fn a_mount_without_recording_writes_and_fetches_nothing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = tree(1).put_root(&scene.memory, "tree");
    let (_, store) = scene.cold();
    let mount = Mounted::mount_root(store, &node);
    start(mount.path(), 1);
    drop(mount);
    assert!(!scene.profiles().dir().exists());
    record(&scene, "tree", 1);
    let (upstream, store) = scene.cold();
    let mount = Mounted::mount_root(store, &node);
    fs::metadata(mount.join("dir-1/file")).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(upstream.reads.load(Ordering::Relaxed), 0);
}

/// A mount that shows root nodes records each by itself, and a new version of one is served by what is
/// known of another.
#[test]
fn the_users_of_another_version_are_served_by_path() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    tree(1).put_root(&scene.memory, "app-1");
    tree(2).put_root(&scene.memory, "app-2");
    tree(3).put_root(&scene.memory, "else");
    let roots = || MountRoot::Roots {
        list: RootListing::All,
    };
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(roots(), None));
    start(&mount.join("app-1"), 1);
    fs::read(mount.join("else/dir-4/other")).unwrap();
    drop(mount);
    assert_eq!(paths(&scene.profile("else").unwrap()), ["dir-4/other"]);
    assert!(scene.profile("app-2").is_none());

    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(roots(), None));
    let read = || upstream.read.lock().clone();
    // To list the names is no use of what they name.
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(read(), []);
    drop(mount);

    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(roots(), None));
    let read = || upstream.read.lock().clone();
    fs::metadata(mount.join("app-2")).unwrap();
    wait_until("all is fetched", || read().len() == STARTS_WITH.len());
    assert_eq!(sorted(&upstream), sorted_digests(2));
    upstream.trouble(Trouble::Unreachable);
    start(&mount.join("app-2"), 2);
    drop(mount);
    // It has its own profile from now on.
    let own = scene.profile("app-2").unwrap();
    assert_eq!(paths(&own).len(), STARTS_WITH.len());
}

#[test]
fn of_a_large_file_that_is_fetched_which_was_read() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| (at / 999) as u8).collect();
    let node = directory([("large", file(large.clone()))]).put_root(&scene.memory, "tree");
    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    let read_at = |mount: &Mounted, at: usize| {
        let mut buffer = [0; 100];
        let file = fs::File::open(mount.join("large")).unwrap();
        // Without the kernel's reading ahead.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let read = file.read_exact_at(&mut buffer, at as u64);
        read.map(|()| assert_eq!(buffer, large[at..at + 100]))
    };
    for at in [15 << 20, 5 << 20, (5 << 20) + 700_000] {
        read_at(&mount, at).unwrap();
    }
    drop(mount);
    let once = upstream.bytes.load(Ordering::Relaxed);

    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    let bytes = || upstream.bytes.load(Ordering::Relaxed);
    wait_until("two extents are fetched", || bytes() >= 2 << 20);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bytes(), 2 << 20, "the first time it was {once}");
    upstream.trouble(Trouble::Unreachable);
    for at in [15 << 20, 5 << 20, (5 << 20) + 700_000] {
        read_at(&mount, at).unwrap();
    }
    assert!(read_at(&mount, 10 << 20).is_err());
}

#[test]
fn no_more_is_fetched_than_may_be() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let files = (0..4).map(|number| (format!("{number}"), file(vec![number as u8; 3 << 20])));
    let node = directory(files).put_root(&scene.memory, "tree");
    let (_, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    for number in 0..4 {
        fs::read(mount.join(number.to_string())).unwrap();
    }
    drop(mount);
    let (upstream, store) = scene.cold();
    let mut options = scene.recording(mount_root_of(&node), Some("tree"));
    options.warm_up.as_mut().unwrap().most_ahead = 2 << 20;
    let mount = Mounted::new(store, options);
    std::thread::sleep(Duration::from_millis(700));
    let fetched = upstream.bytes.load(Ordering::Relaxed);
    assert!((2 << 20..=3 << 20).contains(&fetched), "{fetched}");
    drop(mount);
}

#[test]
fn a_profile_of_what_is_not_there_does_no_harm() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    record(&scene, "tree", 1);
    let other = directory([("dir-7", file("a file")), ("else", file("x"))]);
    let node = other.put_root(&scene.memory, "tree");
    let (upstream, store) = scene.cold();
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    assert_eq!(fs::read(mount.join("dir-7")).unwrap(), b"a file");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(upstream.reads.load(Ordering::Relaxed), 1);
    drop(mount);
}

#[test]
fn a_file_that_the_kernel_reads_by_itself_is_recorded_too() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let local = LocalStore::open(&scene.dir.path().join("local")).unwrap();
    let large = directory([("large", file(vec![7; 8 << 20]))]);
    let node = large.put_root(&local, "tree");
    let options = FsOptions {
        reads: ReadPath::Passthrough,
        ..scene.recording(mount_root_of(&node), Some("tree"))
    };
    let mount = Mounted::new(Arc::new(local), options);
    if mount.session.reads() != ReadPath::Passthrough {
        return skip("it needs passthrough: Linux 6.9 and CAP_SYS_ADMIN");
    }
    let (requests, read) = mount.requests_of(|| fs::read(mount.join("large")).unwrap());
    assert_eq!((read.len(), requests.0.get("READ")), (8 << 20, None));
    drop(mount);
    let known = scene.profile("tree").unwrap();
    assert_eq!(
        (paths(&known), known.runs().len()),
        (vec!["large".to_owned()], 1)
    );
}

#[test]
fn a_store_that_does_not_answer_yet_is_retried() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let node = record(&scene, "tree", 1);
    let (upstream, store) = scene.cold();
    upstream.trouble(Trouble::Unreachable);
    let mount = Mounted::new(store, scene.recording(mount_root_of(&node), Some("tree")));
    let count = || mount.session.warm_up_count().unwrap();
    wait_until("it has begun", || count().fetching == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((count().fetching, count().extents), (1, 0));
    upstream.trouble(Trouble::None);
    wait_until("all is fetched", || count().extents == 6);
    wait_until("and it is done", || count().fetching == 0);
    upstream.trouble(Trouble::Unreachable);
    start(mount.path(), 1);
}
