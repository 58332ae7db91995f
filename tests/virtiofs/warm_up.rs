//! What a guest reads first is recorded, and the next cold guest finds it there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castore_fs::castore::Node;
use castore_fs::fs::{FsOptions, MountRoot, RootListing, WarmUpCount, WarmUpOptions};
use castore_fs::profile::{ProfileKey, Profiles};
use castore_fs::store::{Cache, CacheOptions, LocalStore, MemoryStore, Store};

use super::front_end::FrontEnd;
use super::{ROOM, ROOT, Served, fuse, mount_root_of};
use kit::directory::StoresDirectory;
use kit::double::{Double, Trouble};
use kit::manager::Manager;
use kit::model::{Model, directory, file};
use kit::mounted::{Mounted, can_mount};
use kit::patience::wait_until;

const DIRS: usize = 12;
/// The directories whose files a guest reads when it starts, in its order.
const STARTS_WITH: [usize; 6] = [7, 3, 11, 0, 8, 2];

fn content(dir: usize) -> String {
    format!("directory {dir}\n").repeat(100)
}

fn tree() -> Model {
    let dir = |dir| {
        let files = [("file", file(content(dir))), ("other", file("other"))];
        (format!("dir-{dir}"), directory(files))
    };
    directory((0..DIRS).map(dir))
}

/// An upstream, and a directory for profiles and for caches.
struct Scene {
    memory: MemoryStore,
    node: Node,
    dir: StoresDirectory,
}

impl Scene {
    fn new() -> Self {
        let memory = MemoryStore::new();
        Self {
            node: tree().put_root(&memory, "tree"),
            memory,
            dir: StoresDirectory::default(),
        }
    }

    /// The upstream, 5 ms away, and an empty cache in front of it.
    fn cold(&self) -> (Arc<Double>, Arc<dyn Store>) {
        let upstream = Arc::new(Double::upstream("double:", self.memory.clone()));
        upstream.trouble(Trouble::Slow(Duration::from_millis(5)));
        let local_store = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let local_store = LocalStore::open(&local_store.join("near")).unwrap();
        let cache = Cache::new(local_store, upstream.clone(), CacheOptions::default()).unwrap();
        (upstream, Arc::new(cache))
    }

    fn profiles(&self) -> Arc<Profiles> {
        Arc::new(Profiles::new(self.dir.path().join("profiles")))
    }

    /// The options of a mount or a device that records.
    fn recording(&self, mount_root: MountRoot) -> FsOptions {
        let profile_key =
            matches!(mount_root, MountRoot::Directory { .. }).then(|| profile_key("tree"));
        FsOptions {
            mount_root,
            warm_up: Some(WarmUpOptions::new(self.profiles(), profile_key, u64::MAX)),
            ..FsOptions::default()
        }
    }

    /// A device that shows the tree and records.
    fn device(&self, store: Arc<dyn Store>) -> Served {
        Served::with(store, self.recording(mount_root_of(&self.node)))
    }

    /// The files of the profile of the tree, in their order, and how many extents of them.
    fn profile(&self) -> (Vec<String>, u32) {
        profile(&self.profiles())
    }
}

fn profile(profiles: &Profiles) -> (Vec<String>, u32) {
    let Some(profile) = profiles.load(&profile_key("tree")).unwrap() else {
        return (Vec::new(), 0);
    };
    let path =
        |file: &castore_fs::profile::ProfileFile| String::from_utf8(file.path.to_vec()).unwrap();
    let extents = profile.runs().iter().map(|run| run.count).sum();
    (profile.files().iter().map(path).collect(), extents)
}

fn profile_key(name: &str) -> ProfileKey {
    ProfileKey::new(name.as_bytes()).unwrap()
}

fn starts_with() -> Vec<String> {
    let path = |dir: &usize| format!("dir-{dir}/file");
    STARTS_WITH.iter().map(path).collect()
}

/// Reads the file in `dir` below the node `mount_root`; or its errno.
fn read(guest: &mut FrontEnd, mount_root: u64, dir: usize) -> Result<String, i32> {
    let mut node = mount_root;
    for name in [format!("dir-{dir}"), "file".to_owned()] {
        let reply = guest.request(1, &fuse::lookup(node, name.as_bytes()), ROOM);
        fuse::body(&reply)?;
        node = fuse::entry(&reply).node;
    }
    let reply = guest.request(2, &fuse::read(node, 0, ROOM - 100), ROOM);
    Ok(String::from_utf8(fuse::body(&reply)?.to_vec()).unwrap())
}

/// Reads as a guest does when it starts.
fn start(guest: &mut FrontEnd, mount_root: u64) {
    for dir in STARTS_WITH {
        assert_eq!(read(guest, mount_root, dir), Ok(content(dir)));
    }
}

fn count(device: &Served) -> WarmUpCount {
    device.endpoint.status().warm_up.unwrap()
}

#[test]
fn the_next_cold_guest_finds_what_was_touched_first() {
    let scene = Scene::new();
    let (upstream, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    start(&mut guest, ROOT);
    let cold = upstream.objects.load(Ordering::Relaxed);
    assert!(cold >= 12, "{cold} calls of a start that is cold");
    // A machine that is shut off.
    drop(guest);
    wait_until("the profile is written", || {
        scene.profile() == (starts_with(), 6)
    });
    drop(device);

    let (upstream, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    wait_until("all is fetched", || count(&device).fetches == 1);
    let fetched = count(&device);
    assert_eq!((fetched.own, fetched.extents), (1, 6));
    let asked = || upstream.objects.load(Ordering::Relaxed);
    let before = asked();
    start(&mut guest, ROOT);
    assert_eq!(asked() - before, 0, "calls of a start that is warm");
    // It is readable without the upstream, and what was not read is not cached.
    upstream.trouble(Trouble::Unreachable);
    assert_eq!(read(&mut guest, ROOT, 1), Err(libc::EIO));
    device.endpoint.remember();
    assert_eq!((count(&device).hits, count(&device).recorded), (6, 6));
}

#[test]
fn a_guest_that_reboots_loses_nothing_and_records_nothing_twice() {
    let scene = Scene::new();
    let (_, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    read(&mut guest, ROOT, 5).unwrap();
    read(&mut guest, ROOT, 3).unwrap();
    // The boot loader has had its turn: no DESTROY.
    guest.init();
    wait_until("what it read is found by the kernel", || {
        count(&device).own == 1
    });
    wait_until("one session is watched", || count(&device).recording == 1);
    start(&mut guest, ROOT);
    for _ in 0..3 {
        guest.init();
        start(&mut guest, ROOT);
    }
    guest.request(1, &fuse::request(fuse::DESTROY, 0, &[]), ROOM);
    drop(guest);
    wait_until("no root is recorded", || count(&device).recording == 0);
    // The last start comes first, and all but one file of the first are in it.
    let mut files = starts_with();
    files.push("dir-5/file".to_owned());
    assert_eq!(scene.profile(), (files, 7));
}

#[test]
fn a_session_that_was_over_at_once_is_recorded() {
    let scene = Scene::new();
    let (_, store) = scene.cold();
    let device = scene.device(store);
    for dir in STARTS_WITH {
        let mut guest = device.mounted();
        read(&mut guest, ROOT, dir).unwrap();
    }
    wait_until("all of them are recorded", || {
        let (mut files, extents) = scene.profile();
        let mut expected = starts_with();
        files.sort();
        expected.sort();
        (files, extents) == (expected, 6)
    });
}

/// By a service that is being stopped: the recording thread may not even run yet.
#[test]
fn what_is_to_be_written_at_once_is() {
    for _ in 0..50 {
        let scene = Scene::new();
        let device = scene.device(Arc::new(scene.memory.clone()));
        let mut guest = device.mounted();
        read(&mut guest, ROOT, 5).unwrap();
        device.endpoint.poison();
        assert_eq!(scene.profile(), (vec!["dir-5/file".to_owned()], 1));
    }
}

/// A guest that mounts for the fun of it costs one thread.
#[test]
fn a_guest_that_mounts_again_and_again_has_one_thread() {
    let scene = Scene::new();
    let (_, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    for _ in 0..500 {
        guest.init();
    }
    // Other tests run beside this one.
    let more = threads().saturating_sub(before);
    assert!(more < 250, "{more} threads for 500 sessions");
    start(&mut guest, ROOT);
    wait_until("the last is recorded", || {
        device.endpoint.remember();
        scene.profile() == (starts_with(), 6)
    });
}

#[test]
fn a_mount_without_recording_writes_and_fetches_nothing() {
    let scene = Scene::new();
    let (upstream, store) = scene.cold();
    let device = Served::new(store, mount_root_of(&scene.node));
    let mut guest = device.mounted();
    read(&mut guest, ROOT, 4).unwrap();
    device.endpoint.remember();
    drop(guest);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!scene.profiles().dir().exists());
    assert_eq!(device.endpoint.status().warm_up, None);
    assert_eq!(upstream.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_mounts_profile_serves_a_guest_and_the_other_way() {
    if !can_mount() {
        return;
    }
    let roots = || MountRoot::Roots {
        list: RootListing::All,
    };
    for guest_records in [true, false] {
        let scene = Scene::new();
        let (_, store) = scene.cold();
        if guest_records {
            // One shows the root by its name, the other at its top: it is the same profile.
            let device = Served::with(store, scene.recording(roots()));
            let mut guest = device.mounted();
            let mount_root = guest.look_up(ROOT, "tree").node;
            start(&mut guest, mount_root);
            device.endpoint.remember();
        } else {
            let mount = Mounted::new(store, scene.recording(mount_root_of(&scene.node)));
            let read = |dir| {
                let path = mount.join(format!("dir-{dir}/file"));
                let file = std::fs::File::open(path).unwrap();
                assert_eq!(std::io::read_to_string(&file).unwrap(), content(dir));
                file
            };
            // Kept open until they are recorded: other tests of this machine drop its caches, and
            // what the kernel has forgotten by then is not recorded.
            let open = STARTS_WITH.map(read);
            mount.session.remember();
            drop(open);
        }
        assert_eq!(
            scene.profile(),
            (starts_with(), 6),
            "by a guest: {guest_records}"
        );

        let (upstream, store) = scene.cold();
        if guest_records {
            let mount = Mounted::new(store, scene.recording(mount_root_of(&scene.node)));
            let count = || mount.session.warm_up_count().unwrap();
            wait_until("all is fetched", || count().extents == 6);
            upstream.trouble(Trouble::Unreachable);
            for dir in STARTS_WITH {
                let path = mount.join(format!("dir-{dir}/file"));
                assert_eq!(std::fs::read_to_string(path).unwrap(), content(dir));
            }
        } else {
            let device = Served::with(store, scene.recording(roots()));
            let mut guest = device.mounted();
            let mount_root = guest.look_up(ROOT, "tree").node;
            wait_until("all is fetched", || count(&device).fetches == 1);
            upstream.trouble(Trouble::Unreachable);
            start(&mut guest, mount_root);
        }
    }
}

/// A service whose device and mount record.
fn service(root: &str) -> Manager {
    let manager = Manager::new(&format!(
        "state-dir = '@/state'\n\
         [stores.disk]\nurl = 'local:@/store'\n\
         [virtiofs.guest]\nsocket = '@/guest.sock'\nwarmup = 'learn'\n{root}"
    ));
    for dir in 0..DIRS {
        let dir_of = manager.join(&format!("tree/dir-{dir}"));
        std::fs::create_dir_all(&dir_of).unwrap();
        std::fs::write(dir_of.join("file"), content(dir)).unwrap();
    }
    manager.import(&manager.join("tree"), "tree");
    manager
}

#[test]
fn the_next_process_keeps_the_recording_and_does_not_continue_it() {
    for root in ["root = 'tree'\n", ""] {
        let mut manager = service(root);
        let profiles = Profiles::new(manager.join("state/profiles"));
        let known = || profile(&profiles);
        manager.start_and_wait();
        let mut guest = FrontEnd::connect(&manager.join("guest.sock"), 2, 0);
        guest.init();
        let mount_root = match root.is_empty() {
            true => guest.look_up(ROOT, "tree").node,
            false => ROOT,
        };
        start(&mut guest, mount_root);
        // A sudden death loses the last seconds only.
        wait_until("the profile is written", || known() == (starts_with(), 6));
        manager.kill();
        manager.start_and_wait();
        // What the guest's kernel does not know from before is not part of its start.
        read(&mut guest, mount_root, 5).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let warmup = manager.status()["virtiofs"]["guest"]["warmup"].clone();
        assert_eq!(
            (&warmup["recorded"], &warmup["saves"]),
            (&0.into(), &0.into())
        );
        assert_eq!(known(), (starts_with(), 6));
        // It boots again: that is a start.
        guest.init();
        let mount_root = match root.is_empty() {
            true => guest.look_up(ROOT, "tree").node,
            false => ROOT,
        };
        read(&mut guest, mount_root, 5).unwrap();
        manager.signal(libc::SIGTERM);
        assert!(manager.wait(), "{}", manager.log());
        let mut files = vec!["dir-5/file".to_owned()];
        files.extend(starts_with());
        assert_eq!(known(), (files, 7), "{root}");
    }
}
