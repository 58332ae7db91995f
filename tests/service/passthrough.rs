//! Mounts with `reads = "passthrough"`, whose open files and registered files the kernel keeps
//! while one process dies and another takes over.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

const MOUNT: &str = "[stores.disk]\nurl = 'local:@/store'\n\
    [mounts.tree]\npath = '@/mnt'\nreads = 'passthrough'\n";
/// Files that are large enough to be files of their own in the store.
const LARGE: usize = 10;
/// And others.
const SMALL: usize = 10;
const LARGE_BYTES: usize = 1_200_000;

fn name(file: usize) -> String {
    format!("file-{file}")
}

fn size(file: usize) -> usize {
    match file < LARGE {
        true => LARGE_BYTES + 10_007 * file,
        false => 500 * file,
    }
}

/// The byte of a file at a place.
fn byte(file: usize, at: usize) -> u8 {
    ((at >> 12) * 31 + at * 7 + file * 101) as u8
}

fn is_right(file: usize, from: usize, bytes: &[u8]) -> bool {
    let mut bytes = bytes.iter().enumerate();
    bytes.all(|(at, found)| *found == byte(file, from + at))
}

/// Where some page of so many bytes starts.
fn page_at(place: usize, bytes: usize) -> usize {
    place % bytes / 4096 * 4096
}

fn make_files(at: &Path) {
    fs::create_dir_all(at.join("again")).unwrap();
    for file in 0..LARGE + SMALL {
        let bytes: Vec<u8> = (0..size(file)).map(|place| byte(file, place)).collect();
        fs::write(at.join(name(file)), &bytes).unwrap();
        // The same content by another path, and so by another inode.
        fs::write(at.join("again").join(name(file)), &bytes).unwrap();
    }
}

/// A service with the files, if this machine's kernel has passthrough; it is skipped if not.
fn started() -> Option<Manager> {
    if !can_mount() {
        return None;
    }
    let mut manager = Manager::new(MOUNT);
    let tree = manager.join("tree");
    make_files(&tree);
    manager.import(&tree, "tree");
    manager.start_and_wait();
    if manager.status()["mounts"]["tree"]["open"].is_null() {
        kit::skip::skip("it needs passthrough: Linux 6.9 and CAP_SYS_ADMIN");
        return None;
    }
    Some(manager)
}

fn open_count(manager: &Manager, what: &str) -> u64 {
    let count = manager.status()["mounts"]["tree"]["open"][what].clone();
    count
        .as_u64()
        .unwrap_or_else(|| panic!("no {what}: {count}"))
}

/// RELEASE comes when the kernel has time for it.
fn wait_for_count(manager: &Manager, what: &str, wanted: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while open_count(manager, what) != wanted {
        let open = manager.status()["mounts"]["tree"]["open"].clone();
        assert!(Instant::now() < deadline, "{what} is not {wanted}: {open}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file in memory.
pub(super) struct Map {
    start: *const u8,
    bytes: usize,
}

impl Map {
    pub(super) fn new(of: &File, bytes: usize) -> std::io::Result<Self> {
        let (reads, private) = (ProtFlags::READ, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the address; the file is neither changed nor truncated.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, reads, private, of, 0) }?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    pub(super) fn page(&self, at: usize) -> &[u8] {
        let from = page_at(at, self.bytes);
        let length = 4096.min(self.bytes - from);
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.add(from), length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no page outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.cast_mut().cast(), self.bytes) };
    }
}

/// A program that holds files open, maps them, opens them again and reads them, until it is stopped
/// stop. Gives what went wrong, and how often nothing did.
fn use_files(tree: &Path, seed: usize, stop: &AtomicBool) -> (Vec<String>, u64) {
    let mut failures = Vec::new();
    let (mut done, mut at) = (0, seed * 7919);
    let mut held: VecDeque<(usize, File)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        at = at.wrapping_mul(25).wrapping_add(13) % 1_000_003;
        let file = at / 7 % (LARGE + SMALL);
        let dir = if at % 3 == 0 {
            tree.join("again")
        } else {
            tree.to_owned()
        };
        let outcome = || -> std::io::Result<Vec<&str>> {
            let mut wrong = Vec::new();
            let opened = File::open(dir.join(name(file)))?;
            let from = at * 131 % size(file).max(1);
            let mut part = vec![0; 30_000.min(size(file) - from)];
            opened.read_exact_at(&mut part, from as u64)?;
            if !is_right(file, from, &part) {
                wrong.push("a file that was just opened");
            }
            if at % 4 == 0 && size(file) > 0 {
                let map = Map::new(&opened, size(file))?;
                drop(opened);
                for step in 0..8 {
                    let page = page_at(at + step * 99_991, size(file));
                    if !is_right(file, page, map.page(page)) {
                        wrong.push("a mapped file");
                    }
                }
            } else if at % 4 == 1 {
                held.push_back((file, opened));
            }
            if let Some((file, oldest)) = held.front() {
                let from = at % size(*file).max(1);
                let mut part = vec![0; 5_000.min(size(*file) - from)];
                oldest.read_exact_at(&mut part, from as u64)?;
                if !is_right(*file, from, &part) {
                    wrong.push("a file that is held open");
                }
            }
            if held.len() > 6 {
                held.pop_front();
            }
            Ok(wrong)
        };
        match { outcome }() {
            Ok(wrong) if wrong.is_empty() => done += 1,
            Ok(wrong) => failures.push(format!("{wrong:?} reads other bytes, at {at}")),
            Err(error) => failures.push(format!("{} in {}: {error}", name(file), dir.display())),
        }
    }
    (failures, done)
}

/// Ends every registration that the kernel has for the mount; gives their numbers.
fn end_registrations(device: &OwnedFd) -> Vec<u32> {
    /// `FUSE_DEV_IOC_BACKING_CLOSE`.
    const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
    (1..100_000u32)
        .filter(|id| {
            // SAFETY: the ioctl reads one u32, which `id` is.
            let ended = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, id) } == 0;
            let error = std::io::Error::last_os_error();
            assert!(
                ended || error.raw_os_error() == Some(libc::ENOENT),
                "{error}"
            );
            ended
        })
        .collect()
}

#[test]
fn open_files_outlive_the_process_again_and_again() {
    let Some(mut manager) = started() else { return };
    let times: u64 = match std::env::var("CASTORE_FS_KILLS") {
        Ok(times) => times.parse().unwrap(),
        Err(_) => 30,
    };
    let tree = manager.join("mnt/tree");
    // A program that runs from the mount: the kernel maps it.
    let program = fs::read("/bin/sleep").unwrap();
    let programs = manager.join("programs");
    fs::create_dir(&programs).unwrap();
    let long = [program.as_slice(), &vec![0; 2 << 20]].concat();
    fs::write(programs.join("sleep"), long).unwrap();
    let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(programs.join("sleep"), runs).unwrap();
    manager.import(&programs, "programs");
    let mut running = Command::new(manager.join("mnt/programs/sleep"))
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // What is open from the first to the last.
    let held: Vec<File> = (0..LARGE + SMALL)
        .map(|file| File::open(tree.join(name(file))).unwrap())
        .collect();
    let map = Map::new(&held[3], size(3)).unwrap();
    let stop = AtomicBool::new(false);
    let mut pauses = Vec::new();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..5)
            .map(|seed| {
                let (tree, stop) = (&tree, &stop);
                scope.spawn(move || use_files(tree, seed, stop))
            })
            .collect();
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..times {
                std::thread::sleep(Duration::from_millis(20 + 17 * (round % 5)));
                if round % 4 == 0 {
                    drop_caches();
                }
                let began = Instant::now();
                manager.kill();
                // While no process serves, the kernel reads its backing files.
                let mut part = [0; 4096];
                held[5]
                    .read_exact_at(&mut part, 4096 * (round % 200))
                    .unwrap();
                assert!(is_right(5, 4096 * (round as usize % 200), &part));
                manager.start_and_wait();
                pauses.push(began.elapsed().as_millis());
                for (file, held) in held.iter().enumerate() {
                    let again = File::open(tree.join(name(file))).unwrap();
                    let from = size(file) / 2;
                    let mut part = vec![0; 1000.min(size(file) - from)];
                    for file_of in [held, &again] {
                        file_of.read_exact_at(&mut part, from as u64).unwrap();
                        assert!(is_right(file, from, &part), "file {file}");
                    }
                }
                let page = page_at(round as usize * 8191, size(3));
                assert!(is_right(3, page, map.page(page)));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let outcomes = readers.into_iter().map(|reader| reader.join().unwrap());
        let outcomes = outcomes.collect();
        if let Err(panic) = rounds {
            std::panic::resume_unwind(panic);
        }
        outcomes
    });
    let done: u64 = outcomes.iter().map(|(_, done)| done).sum();
    let failures: Vec<_> = outcomes.iter().flat_map(|(failures, _)| failures).collect();
    pauses.sort_unstable();
    println!(
        "{times} kills, {done} times a file was used, {} failed; from kill to ready: median {} ms, \
         most {} ms",
        failures.len(),
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1]
    );
    assert!(
        failures.is_empty(),
        "{} failed: {:?}",
        failures.len(),
        &failures[..1]
    );
    assert!(
        !manager.log().contains("mounting again"),
        "{}",
        manager.log()
    );
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);

    assert!(running.try_wait().unwrap().is_none(), "the program ended");
    running.kill().unwrap();
    running.wait().unwrap();
    wait_for_count(&manager, "files", (LARGE + SMALL) as u64);
    wait_for_count(&manager, "backed", LARGE as u64);
    drop(held);
    // A mapping keeps what it maps, and needs no request any more.
    assert!(is_right(3, 0, map.page(0)));
    drop(map);
    wait_for_count(&manager, "files", 0);
    let registered = open_count(&manager, "registered");
    assert!(
        registered > 0 && registered <= LARGE as u64 + 1,
        "{registered}"
    );
    // And the kernel has those and no others.
    manager.kill();
    let device = manager.held_descriptor("mount.tree");
    let ended = end_registrations(&device);
    assert_eq!(ended.len() as u64, registered, "{ended:?}");
    assert_eq!(end_registrations(&device), [0; 0]);
}

/// An inode that is open through the page cache when its blob comes to have a file: until all have
/// closed it, it is opened in the same way, before and after a restart.
#[test]
fn a_file_that_is_open_while_it_is_fetched_can_be_opened_again() {
    if !can_mount() {
        return;
    }
    let mut manager = Manager::new(
        "[stores.near]\nurl = 'local:@/near'\n[stores.far]\nurl = 'local:@/store'\n\
         [stores.main]\ncache = { near = 'near', far = ['far'] }\n\
         [mounts.tree]\nstore = 'main'\npath = '@/mnt'\nreads = 'passthrough'\n",
    );
    let tree = manager.join("tree");
    make_files(&tree);
    manager.import(&tree, "tree");
    manager.start_and_wait();
    if manager.status()["mounts"]["tree"]["open"].is_null() {
        return kit::skip::skip("it needs passthrough: Linux 6.9 and CAP_SYS_ADMIN");
    }
    let path = manager.join("mnt/tree").join(name(2));
    let check = |file: &File| {
        let mut bytes = vec![0; size(2)];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(is_right(2, 0, &bytes));
    };
    let first = File::open(&path).unwrap();
    check(&first);
    assert_eq!(
        open_count(&manager, "backed"),
        0,
        "it was cached from the start"
    );
    // Another inode of the same content is handed over as soon as there is a file.
    let again = manager.join("mnt/tree/again").join(name(2));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut opened = File::open(&again).unwrap();
    while open_count(&manager, "backed") == 0 {
        assert!(
            Instant::now() < deadline,
            "it is never cached: {}",
            manager.status()
        );
        check(&opened);
        drop(opened);
        std::thread::sleep(Duration::from_millis(50));
        opened = File::open(&again).unwrap();
    }
    check(&File::open(&path).unwrap());
    for _ in 0..2 {
        manager.kill();
        manager.start_and_wait();
        check(&File::open(&path).unwrap());
        check(&File::open(&again).unwrap());
        check(&first);
        assert_eq!(open_count(&manager, "backed"), 1);
    }
    drop((first, opened));
    wait_for_count(&manager, "files", 0);
    let first = File::open(&path).unwrap();
    check(&first);
    assert_eq!(open_count(&manager, "backed"), 1);
}

#[test]
fn a_mount_with_another_kind_of_reads_is_made_again() {
    let Some(mut manager) = started() else { return };
    manager.kill();
    manager.configure(&MOUNT.replace("passthrough", "page-cache"));
    manager.start_and_wait();
    let status = manager.status();
    assert!(status["mounts"]["tree"]["open"].is_null(), "{status}");
    assert_eq!(status["mounts"]["tree"]["taken_over"], false);
    // The state of a page-cache mount has no room for open files.
    manager.kill();
    manager.configure(MOUNT);
    manager.start_and_wait();
    let status = manager.status();
    assert_eq!(status["mounts"]["tree"]["open"]["files"], 0);
    assert_eq!(status["mounts"]["tree"]["taken_over"], false);
    assert!(
        manager
            .log()
            .contains("the configuration of the mount has changed"),
        "{}",
        manager.log()
    );
}
