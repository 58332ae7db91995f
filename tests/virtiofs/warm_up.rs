//! What a guest touches first is learned, and the next cold guest finds it there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use castore_fs::castore::Node;
use castore_fs::fs::{Options, RootListing, Top, WarmUp, WarmUpCount};
use castore_fs::profile::{Profiles, Subject};
use castore_fs::store::{Cache, CacheOptions, LocalStore, MemoryStore, Store};
use castore_fs::transport::virtiofs::ROOT_TIMEOUT;

use super::front_end::FrontEnd;
use super::{ROOM, ROOT, Served, fuse, top_of};
use kit::double::{Double, Trouble};
use kit::manager::Manager;
use kit::model::{Model, directory, file};
use kit::mounted::{Mounted, can_mount};
use kit::patience::wait_until;

const FOLDERS: usize = 12;
/// The folders whose files a guest reads when it starts, in its order.
const STARTS_WITH: [usize; 6] = [7, 3, 11, 0, 8, 2];

fn content(folder: usize) -> String {
    format!("folder {folder}\n").repeat(100)
}

fn tree() -> Model {
    let folder = |folder| {
        let files = [("file", file(content(folder))), ("other", file("other"))];
        (format!("folder-{folder}"), directory(files))
    };
    directory((0..FOLDERS).map(folder))
}

/// An upstream, and a directory for profiles and for caches.
struct Scene {
    memory: MemoryStore,
    node: Node,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let memory = MemoryStore::new();
        Self {
            node: tree().put_root(&memory, "tree"),
            memory,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The upstream, 5 ms away, and an empty cache in front of it.
    fn cold(&self) -> (Arc<Double>, Arc<dyn Store>) {
        let far = Arc::new(Double::far("double:", self.memory.clone()));
        far.trouble(Trouble::Slow(Duration::from_millis(5)));
        let near = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let near = LocalStore::open(&near.join("near")).unwrap();
        let cache = Cache::new(near, far.clone(), CacheOptions::default()).unwrap();
        (far, Arc::new(cache))
    }

    fn profiles(&self) -> Arc<Profiles> {
        Arc::new(Profiles::new(self.folder.path().join("profiles")))
    }

    /// The options of a mount or a device that records.
    fn learning(&self, top: Top) -> Options {
        let subject = matches!(top, Top::Directory { .. }).then(|| subject("tree"));
        Options {
            top,
            root_timeout: ROOT_TIMEOUT,
            warm_up: Some(WarmUp::new(self.profiles(), subject, u64::MAX)),
            ..Options::default()
        }
    }

    /// A device that shows the tree and learns.
    fn device(&self, store: Arc<dyn Store>) -> Served {
        Served::with(store, self.learning(top_of(&self.node)))
    }

    /// The files of the profile of the tree, in their order, and how many stretches of them.
    fn profile(&self) -> (Vec<String>, u32) {
        profile(&self.profiles())
    }
}

fn profile(profiles: &Profiles) -> (Vec<String>, u32) {
    let Some(profile) = profiles.load(&subject("tree")).unwrap() else {
        return (Vec::new(), 0);
    };
    let path = |file: &castore_fs::profile::File| String::from_utf8(file.path.to_vec()).unwrap();
    let stretches = profile.runs().iter().map(|run| run.count).sum();
    (profile.files().iter().map(path).collect(), stretches)
}

fn subject(name: &str) -> Subject {
    Subject::new(name.as_bytes()).unwrap()
}

fn starts_with() -> Vec<String> {
    let path = |folder: &usize| format!("folder-{folder}/file");
    STARTS_WITH.iter().map(path).collect()
}

/// Reads the file in `folder` below the node `top`; or its errno.
fn read(guest: &mut FrontEnd, top: u64, folder: usize) -> Result<String, i32> {
    let mut node = top;
    for name in [format!("folder-{folder}"), "file".to_owned()] {
        let reply = guest.request(1, &fuse::lookup(node, name.as_bytes()), ROOM);
        fuse::body(&reply)?;
        node = fuse::entry(&reply).node;
    }
    let reply = guest.request(2, &fuse::read(node, 0, ROOM - 100), ROOM);
    Ok(String::from_utf8(fuse::body(&reply)?.to_vec()).unwrap())
}

/// Reads as a guest does when it starts.
fn start(guest: &mut FrontEnd, top: u64) {
    for folder in STARTS_WITH {
        assert_eq!(read(guest, top, folder), Ok(content(folder)));
    }
}

fn count(device: &Served) -> WarmUpCount {
    device.endpoint.status().warm_up.unwrap()
}

#[test]
fn the_next_cold_guest_finds_what_was_touched_first() {
    let scene = Scene::new();
    let (far, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    start(&mut guest, ROOT);
    let cold = far.objects.load(Ordering::Relaxed);
    assert!(cold >= 12, "{cold} calls of a start that is cold");
    // A machine that is shut off.
    drop(guest);
    wait_until("the profile is written", || {
        scene.profile() == (starts_with(), 6)
    });
    drop(device);

    let (far, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    wait_until("all is fetched", || count(&device).fetches == 1);
    let fetched = count(&device);
    assert_eq!((fetched.own, fetched.stretches), (1, 6));
    let asked = || far.objects.load(Ordering::Relaxed);
    let before = asked();
    start(&mut guest, ROOT);
    assert_eq!(asked() - before, 0, "calls of a start that is warm");
    // It is readable without the upstream, and what was not read is not cached.
    far.trouble(Trouble::Unreachable);
    assert_eq!(read(&mut guest, ROOT, 1), Err(libc::EIO));
    device.endpoint.remember();
    assert_eq!((count(&device).hits, count(&device).learned), (6, 6));
}

#[test]
fn a_guest_that_reboots_loses_nothing_and_learns_nothing_twice() {
    let scene = Scene::new();
    let (_, store) = scene.cold();
    let device = scene.device(store);
    let mut guest = device.mounted();
    read(&mut guest, ROOT, 5).unwrap();
    read(&mut guest, ROOT, 3).unwrap();
    // The boot loader has had its turn: no DESTROY.
    guest.init();
    wait_until("what it touched is found by the kernel", || {
        count(&device).own == 1
    });
    wait_until("one session is watched", || count(&device).learning == 1);
    start(&mut guest, ROOT);
    for _ in 0..3 {
        guest.init();
        start(&mut guest, ROOT);
    }
    guest.request(1, &fuse::request(fuse::DESTROY, 0, &[]), ROOM);
    drop(guest);
    wait_until("no root is recorded", || count(&device).learning == 0);
    // The last start comes first, and all but one file of the first are in it.
    let mut files = starts_with();
    files.push("folder-5/file".to_owned());
    assert_eq!(scene.profile(), (files, 7));
}

#[test]
fn a_session_that_was_over_at_once_is_learned_of() {
    let scene = Scene::new();
    let (_, store) = scene.cold();
    let device = scene.device(store);
    for folder in STARTS_WITH {
        let mut guest = device.mounted();
        read(&mut guest, ROOT, folder).unwrap();
    }
    wait_until("all of them are learned", || {
        let (mut files, stretches) = scene.profile();
        let mut expected = starts_with();
        files.sort();
        expected.sort();
        (files, stretches) == (expected, 6)
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
        device.endpoint.break_off();
        assert_eq!(scene.profile(), (vec!["folder-5/file".to_owned()], 1));
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
    wait_until("the last is learned of", || {
        device.endpoint.remember();
        scene.profile() == (starts_with(), 6)
    });
}

#[test]
fn who_does_not_learn_writes_nothing_and_fetches_nothing() {
    let scene = Scene::new();
    let (far, store) = scene.cold();
    let device = Served::new(store, top_of(&scene.node));
    let mut guest = device.mounted();
    read(&mut guest, ROOT, 4).unwrap();
    device.endpoint.remember();
    drop(guest);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!scene.profiles().folder().exists());
    assert_eq!(device.endpoint.status().warm_up, None);
    assert_eq!(far.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_mounts_profile_serves_a_guest_and_the_other_way() {
    if !can_mount() {
        return;
    }
    let roots = || Top::Roots {
        list: RootListing::All,
    };
    for guest_learns in [true, false] {
        let scene = Scene::new();
        let (_, store) = scene.cold();
        if guest_learns {
            // One shows the root by its name, the other at its top: it is the same profile.
            let device = Served::with(store, scene.learning(roots()));
            let mut guest = device.mounted();
            let top = guest.look_up(ROOT, "tree").node;
            start(&mut guest, top);
            device.endpoint.remember();
        } else {
            let mount = Mounted::new(store, scene.learning(top_of(&scene.node)));
            let read = |folder| {
                let path = mount.join(format!("folder-{folder}/file"));
                let file = std::fs::File::open(path).unwrap();
                assert_eq!(std::io::read_to_string(&file).unwrap(), content(folder));
                file
            };
            // Kept open until they are recorded: other tests of this machine drop its caches, and
            // what the kernel has forgotten by then is not learned.
            let open = STARTS_WITH.map(read);
            mount.session.remember();
            drop(open);
        }
        assert_eq!(
            scene.profile(),
            (starts_with(), 6),
            "by a guest: {guest_learns}"
        );

        let (far, store) = scene.cold();
        if guest_learns {
            let mount = Mounted::new(store, scene.learning(top_of(&scene.node)));
            let count = || mount.session.warm_up_count().unwrap();
            wait_until("all is fetched", || count().stretches == 6);
            far.trouble(Trouble::Unreachable);
            for folder in STARTS_WITH {
                let path = mount.join(format!("folder-{folder}/file"));
                assert_eq!(std::fs::read_to_string(path).unwrap(), content(folder));
            }
        } else {
            let device = Served::with(store, scene.learning(roots()));
            let mut guest = device.mounted();
            let top = guest.look_up(ROOT, "tree").node;
            wait_until("all is fetched", || count(&device).fetches == 1);
            far.trouble(Trouble::Unreachable);
            start(&mut guest, top);
        }
    }
}

/// A service whose device and mount learn.
fn service(root: &str) -> Manager {
    let manager = Manager::new(&format!(
        "state-dir = '@/state'\n\
         [stores.disk]\nurl = 'local:@/store'\n\
         [virtiofs.guest]\nsocket = '@/guest.sock'\nwarmup = 'learn'\n{root}"
    ));
    for folder in 0..FOLDERS {
        let folder_of = manager.join(&format!("tree/folder-{folder}"));
        std::fs::create_dir_all(&folder_of).unwrap();
        std::fs::write(folder_of.join("file"), content(folder)).unwrap();
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
        let top = match root.is_empty() {
            true => guest.look_up(ROOT, "tree").node,
            false => ROOT,
        };
        start(&mut guest, top);
        // A sudden death loses the last seconds only.
        wait_until("the profile is written", || known() == (starts_with(), 6));
        manager.kill();
        manager.start_and_wait();
        // What the guest's kernel does not know from before is not part of its start.
        read(&mut guest, top, 5).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let warmup = manager.status()["virtiofs"]["guest"]["warmup"].clone();
        assert_eq!(
            (&warmup["learned"], &warmup["saves"]),
            (&0.into(), &0.into())
        );
        assert_eq!(known(), (starts_with(), 6));
        // It boots again: that is a start.
        guest.init();
        let top = match root.is_empty() {
            true => guest.look_up(ROOT, "tree").node,
            false => ROOT,
        };
        read(&mut guest, top, 5).unwrap();
        manager.signal(libc::SIGTERM);
        assert!(manager.wait(), "{}", manager.log());
        let mut files = vec!["folder-5/file".to_owned()];
        files.extend(starts_with());
        assert_eq!(known(), (files, 7), "{root}");
    }
}
