//! Random readers of a mount over a cache whose endpoints send wrong bytes, drip, reset, hang and
//! die, in turns and all at once.
//!
//! Two minutes, or `CASTORE_FS_SOAK_SECONDS` seconds; what was counted is printed (and
//! seen with `--nocapture`). The longer runs that were made are in `docs/reliability.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use castore_fs::store::MemoryStore;
use parking_lot::Mutex;

use super::endpoint::{Habit, HostileServer};
use super::noise;
use kit::manager::Manager;
use kit::model::{directory, file};
use kit::mounted::can_mount;

const DIRECTORIES: usize = 20;
const FILES: usize = 12;
const READERS: usize = 24;
/// What the service may take at any moment.
const MOST_MEMORY: u64 = 512 << 20;
const MOST_THREADS: u64 = 64;
const MOST_DESCRIPTORS: u64 = 256;

const STORES: &str = "[stores.near]\nurl = 'local:@/near'\n\
     [stores.far]\nmirrors = { of = ['a', 'b', 'c'] }\n\
     [stores.main]\ncache = { near = 'near', far = ['far'], size = '4MiB' }\n\
     [mounts.tree]\nstore = 'main'\npath = '@/mnt'\n";

/// The size of a file: most are small, some have a few MiB.
fn size(directory: usize, number: usize) -> usize {
    let number = directory * FILES + number;
    match number % 20 {
        0..12 => 1 + number * 97 % 20_000,
        12..19 => 100_000 + number * 1009 % 500_000,
        _ => (2 << 20) + number * 10_007 % (2 << 20),
    }
}

fn contents(directory: usize, number: usize) -> Vec<u8> {
    noise((directory * FILES + number) as u64, size(directory, number))
}

#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    bytes: AtomicU64,
    wrong: AtomicU64,
    failures: Mutex<BTreeMap<i32, u64>>,
}

impl Counts {
    fn failed(&self, error: &std::io::Error) {
        let errno = error.raw_os_error().unwrap_or_default();
        // Everything that is looked for is there.
        if errno == libc::ENOENT {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        *self.failures.lock().entry(errno).or_default() += 1;
    }

    fn check(&self, is_right: bool) {
        self.wrong
            .fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }
}

/// One operation on the tree at `mount_root`.
fn operate(mount_root: &std::path::Path, counts: &Counts) -> std::io::Result<()> {
    let (number, place) = (fastrand::usize(..FILES), fastrand::usize(..DIRECTORIES));
    let dir = mount_root.join(format!("directory-{place}"));
    let path = dir.join(format!("file-{number}"));
    match fastrand::u8(..20) {
        0 => {
            let mut names = BTreeSet::new();
            for entry in fs::read_dir(&dir)? {
                names.insert(entry?.file_name().into_string().unwrap());
            }
            let expected: BTreeSet<_> = (0..FILES).map(|number| format!("file-{number}")).collect();
            counts.check(names == expected);
        }
        1 => counts.check(fs::metadata(&path)?.size() == size(place, number) as u64),
        2 => {
            let missing = fs::metadata(dir.join("nothing"));
            match missing {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
                Ok(_) => counts.check(false),
            }
        }
        _ => {
            let expected = contents(place, number);
            let open = File::open(&path)?;
            let from = fastrand::usize(..expected.len());
            let length = match fastrand::bool() {
                true => expected.len() - from,
                false => fastrand::usize(..=(expected.len() - from).min(50_000)),
            };
            let mut read = vec![0; length];
            let outcome = open.read_exact_at(&mut read, from as u64);
            // SAFETY: it has no effect on memory.
            unsafe { libc::posix_fadvise(open.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            outcome?;
            counts.check(read == expected[from..from + length]);
            counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Makes endpoints misbehave, until stopped; restores them at the end.
fn torment(servers: &mut [HostileServer], stop: &AtomicBool) -> u64 {
    const HABITS: [Habit; 10] = [
        Habit::Flips,
        Habit::Truncates,
        Habit::Exceeds,
        Habit::Empty,
        Habit::Drips,
        Habit::Endless,
        Habit::Hangs,
        Habit::Stalls,
        Habit::Resets,
        Habit::Refuses,
    ];
    let mut deaths = 0;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..500)));
        let which = fastrand::usize(..servers.len());
        let server = &mut servers[which];
        server.revive();
        match fastrand::u8(..20) {
            0..6 => server.be(Habit::Honest),
            6 => {
                server.die();
                deaths += 1;
            }
            _ => server.be(HABITS[fastrand::usize(..HABITS.len())]),
        }
    }
    for server in servers {
        server.be(Habit::Honest);
        while !server.is_alive() {
            server.revive();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    deaths
}

/// Resident bytes, threads and descriptors of a process.
fn usage(process: i32) -> [u64; 3] {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse::<u64>().ok())
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
    [
        field("VmRSS:").unwrap_or_default() << 10,
        field("Threads:").unwrap_or_default(),
        descriptors as u64,
    ]
}

#[test]
fn random_readers_over_hostile_endpoints_never_see_a_wrong_byte() {
    if !can_mount() {
        return;
    }
    let seconds = std::env::var("CASTORE_FS_SOAK_SECONDS");
    let seconds = seconds.map_or(120, |seconds| seconds.parse().expect("a number of seconds"));
    let store = MemoryStore::new();
    let tree = directory((0..DIRECTORIES).map(|place| {
        let files =
            (0..FILES).map(|number| (format!("file-{number}"), file(contents(place, number))));
        (format!("directory-{place}"), directory(files))
    }));
    tree.put_root(&store, "tree");
    let mut servers: Vec<_> = (0..3)
        .map(|_| HostileServer::start(&store, Habit::Honest))
        .collect();
    let upstream: String = ["a", "b", "c"]
        .iter()
        .zip(&servers)
        .map(|(name, server)| {
            let deadlines = "first-byte-timeout=1&stall-timeout=1&cache=1&spool=16";
            format!("[stores.{name}]\nurl = '{}?{deadlines}'\n", server.url())
        })
        .collect();
    let mut manager = Manager::new(&format!("{upstream}{STORES}"));
    manager.start_and_wait();
    let mount_root: PathBuf = manager.join("mnt/tree");
    assert!(fs::read_dir(&mount_root).unwrap().count() == DIRECTORIES);

    let (stop, counts) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(Counts::default()),
    );
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (stop, counts, mount_root) = (stop.clone(), counts.clone(), mount_root.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    counts.operations.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = operate(&mount_root, &counts) {
                        counts.failed(&error);
                    }
                }
            })
        })
        .collect();
    let tormented = {
        let stop = stop.clone();
        std::thread::spawn(move || (torment(&mut servers, &stop), servers))
    };
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut most = [0; 3];
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
        for (most, now) in most.iter_mut().zip(usage(manager.pid())) {
            *most = now.max(*most);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (deaths, _servers) = tormented.join().unwrap();
    for reader in readers {
        reader.join().unwrap();
    }
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let [memory, threads, descriptors] = most;
    let failures = counts.failures.lock().clone();
    eprintln!(
        "soak: {seconds} s, {} operations, {} MB read, failures by errno {failures:?}, {} wrong, \
         {deaths} deaths of endpoints; at most {} MiB, {threads} threads, {descriptors} descriptors",
        load(&counts.operations),
        load(&counts.bytes) / 1_000_000,
        load(&counts.wrong),
        memory >> 20,
    );
    assert_eq!(load(&counts.wrong), 0);
    assert!(
        failures
            .keys()
            .all(|errno| [libc::EIO, libc::ETIMEDOUT].contains(errno))
    );
    assert!(memory <= MOST_MEMORY, "{memory} bytes");
    assert!(threads <= MOST_THREADS, "{threads} threads");
    assert!(descriptors <= MOST_DESCRIPTORS, "{descriptors} descriptors");
    // No wrong byte, and no failure, has had a lasting effect.
    for place in 0..DIRECTORIES {
        for number in 0..FILES {
            let path = mount_root.join(format!("directory-{place}/file-{number}"));
            let mut read = fs::read(&path);
            // Circuit breakers may be open for some seconds.
            for _ in 0..100 {
                if read.is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
                read = fs::read(&path);
            }
            assert!(read.unwrap() == contents(place, number), "{path:?}");
        }
    }
}
