//! The service as systemd runs it, with a small stand-in for systemd. The real one is in
//! `tests/system`.

mod binary_cache;
mod follow;
mod image_view;
mod images;
mod in_use;
mod passthrough;
mod refused;
mod secrets;
mod seeing;
mod upstream;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::manager::Manager;
use kit::mounted::can_mount;

const ONE_MOUNT: &str = "[stores.disk]\nurl = 'local:@/store'\n[mounts.tree]\npath = '@/mnt'\n";

/// A tree with `dirs` directories of 20 files, each of which contains its own place.
fn make_tree(at: &Path, dirs: usize) {
    for dir in 0..dirs {
        let dir = at.join(format!("dir-{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..20 {
            let path = dir.join(format!("file-{file}"));
            fs::write(&path, content(&dir, file)).unwrap();
        }
    }
}

fn content(dir: &Path, file: usize) -> Vec<u8> {
    let name = dir.file_name().unwrap().to_str().unwrap();
    format!("{name}/{file} ")
        .repeat(300 * (file + 1))
        .into_bytes()
}

fn service(dirs: usize) -> Manager {
    let manager = Manager::new(ONE_MOUNT);
    let tree = manager.join("tree");
    make_tree(&tree, dirs);
    manager.import(&tree, "tree");
    manager
}

fn drop_caches() {
    // Only root may; without, the load is served from the page cache and proves less.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

/// Readers that check every byte, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    readers: Vec<std::thread::JoinHandle<Vec<String>>>,
    operations: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
}

impl Load {
    fn start(tree: &Path, dirs: usize, readers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (operations, longest) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let readers = (0..readers)
            .map(|seed| {
                let (stop, tree) = (stop.clone(), tree.to_owned());
                let (operations, longest) = (operations.clone(), longest.clone());
                std::thread::spawn(move || {
                    let mut failures = Vec::new();
                    let mut at = seed * 7919;
                    while !stop.load(Ordering::Relaxed) {
                        at = at.wrapping_mul(25).wrapping_add(13) % 1_000_003;
                        let dir = tree.join(format!("dir-{}", at % dirs));
                        let began = Instant::now();
                        if let Err(what) = operate(&dir, at) {
                            failures.push(what);
                        }
                        let took = began.elapsed().as_millis() as u64;
                        longest.fetch_max(took, Ordering::Relaxed);
                        operations.fetch_add(1, Ordering::Relaxed);
                    }
                    failures
                })
            })
            .collect();
        Self {
            stop,
            readers,
            operations,
            longest,
        }
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Stops the readers; gives what went wrong.
    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let readers = self.readers.into_iter();
        readers.flat_map(|reader| reader.join().unwrap()).collect()
    }
}

/// One thing that a program does: read, list, look for what is not there, stat.
fn operate(dir: &Path, at: usize) -> Result<(), String> {
    let reported = |what: &str, error: std::io::Error| format!("{what} {}: {error}", dir.display());
    match at % 5 {
        0 => {
            let listed = fs::read_dir(dir).map_err(|error| reported("list", error))?;
            let count = listed.filter(|entry| entry.is_ok()).count();
            (count == 20)
                .then_some(())
                .ok_or(format!("{count} entries listed"))
        }
        1 => match dir.join(format!("missing-{at}")).symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(reported("look up", error)),
            Ok(_) => Err("found what is not there".to_owned()),
        },
        _ => {
            let file = at / 5 % 20;
            let path = dir.join(format!("file-{file}"));
            let read = fs::read(&path).map_err(|error| reported("read", error))?;
            let right = read == content(dir, file);
            right
                .then_some(())
                .ok_or(format!("wrong bytes in {}", path.display()))
        }
    }
}

#[test]
fn ready_means_that_mounts_and_sockets_answer() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    // Nothing is waited for here.
    assert_eq!(fs::read_dir(manager.join("mnt/tree")).unwrap().count(), 2);
    let status = manager.status();
    assert_eq!(status["mounts"]["tree"]["mounted"], true);
    assert_eq!(status["mounts"]["tree"]["store"], "disk");
    assert!(
        status["mounts"]["tree"]["requests"]["LOOKUP"]
            .as_u64()
            .unwrap()
            > 0
    );
    let reported = manager
        .messages()
        .into_iter()
        .find(|line| line.starts_with("STATUS="));
    assert!(reported.unwrap().starts_with("STATUS=serving 1 mount"));
    assert_eq!(manager.kept(), ["mount.tree", "nodes.tree"]);
    // Stopped without a restart.
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert_eq!(manager.count("STOPPING=1"), 1);
    assert!(manager.kept().is_empty());
    assert_eq!(fs::read_dir(manager.join("mnt")).unwrap().count(), 0);
}

#[test]
fn nothing_fails_while_the_service_is_killed_again_and_again() {
    if !can_mount() {
        return;
    }
    let times = match std::env::var("CASTORE_FS_KILLS") {
        Ok(times) => times.parse().unwrap(),
        Err(_) => 25,
    };
    const DIRS: usize = 40;
    let mut manager = service(DIRS);
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    // What a program holds: a working directory, an open file, an open directory.
    let sleeper = Command::new("sh")
        .args(["-c", "read line; cat file-3 | wc -c; pwd -P"])
        .current_dir(mnt.join("tree/dir-7"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = fs::File::open(mnt.join("tree/dir-1/file-19")).unwrap();
    let inode = fs::metadata(mnt.join("tree/dir-1")).unwrap().ino();
    let load = Load::start(&mnt.join("tree"), DIRS, 6);
    let mut pauses = Vec::new();
    for round in 0..times {
        std::thread::sleep(Duration::from_millis(40 + 17 * (round % 5)));
        drop_caches();
        let before = load.operations();
        let began = Instant::now();
        manager.kill();
        manager.start_and_wait();
        pauses.push(began.elapsed().as_millis());
        let deadline = Instant::now() + Duration::from_secs(20);
        while load.operations() < before + 20 {
            assert!(
                Instant::now() < deadline,
                "readers are stuck in round {round}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut bytes = Vec::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(Path::new("dir-1"), 19));
    }
    let (operations, longest) = (load.operations(), load.longest.load(Ordering::Relaxed));
    let failures = load.stop();
    pauses.sort_unstable();
    println!(
        "{times} kills, {operations} operations, {} failed; from kill to ready: median {} ms, most \
         {} ms; the longest operation took {longest} ms",
        failures.len(),
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
    );
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);
    assert_eq!(fs::metadata(mnt.join("tree/dir-1")).unwrap().ino(), inode);
    assert!(
        !manager.log().contains("mounting again"),
        "{}",
        manager.log()
    );
    let mut sleeper = sleeper;
    drop(sleeper.stdin.take());
    let output = sleeper.wait_with_output().unwrap();
    let expected = format!(
        "{}\n{}\n",
        content(Path::new("dir-7"), 3).len(),
        mnt.canonicalize().unwrap().join("tree/dir-7").display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

/// By the helper process; readers notice only that they need no request.
/// The inode number of every path in a directory, from readdir and stat.
fn numbers(dir: &Path, all: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let stat = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(stat.ino(), entry.ino(), "{entry:?}");
        assert_eq!(all.insert(entry.path(), stat.ino()), None);
        if stat.is_dir() {
            numbers(&entry.path(), all);
        }
    }
}

/// Of equal trees under several names, which only the hand-over state distinguishes: their numbers go by
/// the order in which they were first looked up.
#[test]
fn inode_numbers_are_handed_over() {
    if !can_mount() {
        return;
    }
    let mut manager = service(3);
    let tree = manager.join("tree");
    for name in ["c", "a", "b"] {
        manager.import(&tree, name);
    }
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    let mut before = BTreeMap::new();
    for name in ["c", "tree"] {
        assert!(fs::metadata(mnt.join(name).join("dir-1")).is_ok());
    }
    numbers(&mnt, &mut before);
    let distinct: HashSet<_> = before.values().collect();
    assert_eq!(distinct.len(), before.len());
    assert_eq!(before.len(), 4 * (1 + 3 * 21));
    for _ in 0..2 {
        drop_caches();
        manager.kill();
        manager.start_and_wait();
        manager.import(&tree, "new");
        let mut after = BTreeMap::new();
        for name in ["a", "b", "c", "tree"] {
            let at = mnt.join(name);
            after.insert(at.clone(), fs::metadata(&at).unwrap().ino());
            numbers(&at, &mut after);
        }
        assert_eq!(after, before);
        let new = fs::metadata(mnt.join("new")).unwrap().ino();
        assert!(before.values().all(|ino| *ino != new));
    }
}

#[test]
fn files_that_are_read_in_order_are_pushed_ahead_and_are_right() {
    if !can_mount() {
        return;
    }
    let mut manager = service(30);
    manager.start_and_wait();
    let tree = manager.join("mnt/tree");
    let mut files = 0;
    let mut dirs: Vec<_> = fs::read_dir(&tree)
        .unwrap()
        .map(|at| at.unwrap().path())
        .collect();
    dirs.sort();
    for dir in dirs {
        // As tar does: names and attributes first.
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                entry.metadata().unwrap();
                entry.file_name().into_string().unwrap()
            })
            .collect();
        names.sort();
        for name in names {
            let number = name.strip_prefix("file-").unwrap().parse().unwrap();
            assert!(
                fs::read(dir.join(&name)).unwrap() == content(&dir, number),
                "{name}"
            );
            files += 1;
        }
    }
    let reads = manager.status()["mounts"]["tree"]["requests"]["READ"].clone();
    let reads = reads.as_u64().unwrap_or(0);
    assert!(
        reads < files,
        "{reads} READs for {files} files: nothing was pushed"
    );
}

#[test]
fn a_change_while_no_process_serves_is_seen_by_the_next_one() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    let names = |mnt: &Path| {
        let listed = fs::read_dir(mnt).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&mnt), ["tree"]);
    assert_eq!(fs::read_dir(mnt.join("tree")).unwrap().count(), 2);
    manager.kill();
    let other = manager.join("other");
    make_tree(&other, 3);
    manager.import(&other, "other");
    manager.import(&other, "tree");
    manager.start_and_wait();
    let deadline = Instant::now() + Duration::from_secs(10);
    while names(&mnt) != ["other", "tree"] || fs::read_dir(mnt.join("tree")).unwrap().count() != 3 {
        assert!(Instant::now() < deadline, "{:?}", names(&mnt));
        std::thread::sleep(Duration::from_millis(20));
    }
    // And what another process adds while the next one serves.
    manager.import(&other, "third");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !names(&mnt).contains(&"third".into()) {
        assert!(Instant::now() < deadline, "{:?}", names(&mnt));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_table_of_another_version_means_a_new_mount_and_a_line_in_the_log() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    assert_eq!(fs::read_dir(manager.join("mnt/tree")).unwrap().count(), 2);
    manager.kill();
    // The version is the 32-bit word after the 8 bytes that every such file starts with.
    let table = manager.held_descriptor("nodes.tree");
    rustix::io::pwrite(&table, &99u32.to_ne_bytes(), 8).unwrap();
    drop(table);
    manager.start_and_wait();
    assert_eq!(fs::read_dir(manager.join("mnt/tree")).unwrap().count(), 2);
    assert!(manager.log().contains("layout 99"), "{}", manager.log());
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], false);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = manager.join("mnt").display().to_string();
    assert_eq!(mounts.lines().filter(|line| line.contains(&mnt)).count(), 1);
    // And the new one is handed over again.
    manager.kill();
    manager.start_and_wait();
    assert_eq!(manager.status()["mounts"]["tree"]["taken_over"], true);
}

#[test]
fn a_reload_changes_what_changed_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    let pid = manager.pid();
    let mnt = manager.join("mnt");
    let device = |path: PathBuf| fs::metadata(path).unwrap().dev();
    let before = device(mnt.clone());
    let reload = |manager: &mut Manager| {
        let (reloading, ready) = (manager.count("RELOADING=1"), manager.count("READY=1"));
        manager.signal(libc::SIGHUP);
        manager.wait_for("RELOADING=1", reloading + 1);
        manager.wait_for("READY=1", ready + 1);
    };

    manager.configure(&format!(
        "{ONE_MOUNT}[mounts.second]\npath = '@/second'\nuid = 7\n"
    ));
    reload(&mut manager);
    assert!(
        manager
            .messages()
            .iter()
            .any(|line| line.starts_with("MONOTONIC_USEC="))
    );
    let second = manager.join("second");
    assert_eq!(fs::metadata(second.join("tree")).unwrap().uid(), 7);
    assert_eq!(device(mnt.clone()), before);

    // Wrong: refused as a whole.
    manager.configure("[stores.disk]\nurl = 'local:@/store'\n[mount.tree]\npath = '@/mnt'\n");
    reload(&mut manager);
    assert!(manager.log().contains("did you mean"), "{}", manager.log());
    assert_eq!(device(mnt.clone()), before);
    assert_eq!(fs::metadata(second.join("tree")).unwrap().uid(), 7);

    // Changed, while it is in use.
    let mut used = fs::File::open(second.join("tree/dir-1/file-0")).unwrap();
    manager.configure(&format!(
        "{ONE_MOUNT}[mounts.second]\npath = '@/second'\nuid = 8\n"
    ));
    reload(&mut manager);
    assert_eq!(fs::metadata(second.join("tree")).unwrap().uid(), 8);
    let mut bytes = Vec::new();
    used.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content(Path::new("dir-1"), 0));
    assert_eq!(manager.status()["leaving"], 1);

    // Removed.
    manager.configure(ONE_MOUNT);
    reload(&mut manager);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 0);
    assert_eq!(manager.kept(), ["mount.tree", "nodes.tree"]);
    assert_eq!(device(mnt.clone()), before);
    assert_eq!(manager.pid(), pid);
}

#[test]
fn a_stop_waits_for_remaining_readers_and_reports_it() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    let mut used = fs::File::open(mnt.join("tree/dir-1/file-5")).unwrap();
    manager.signal(libc::SIGTERM);
    manager.wait_for("EXTEND_TIMEOUT_USEC=10000000", 1);
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0, "out of the tree");
    drop_caches();
    let mut bytes = Vec::new();
    used.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content(Path::new("dir-1"), 5));
    drop(used);
    let began = Instant::now();
    assert!(manager.wait());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it waits although the mount is unused"
    );
}

#[test]
fn the_watchdog_hears_from_a_service_that_works() {
    if !can_mount() {
        return;
    }
    let mut manager = service(1).with_watchdog(Duration::from_millis(200));
    manager.start_and_wait();
    manager.wait_for("WATCHDOG=1", 5);
}

#[test]
fn a_mount_that_was_lost_is_made_again() {
    if !can_mount() {
        return;
    }
    let mut manager = service(2);
    manager.start_and_wait();
    // Its descriptors are kept nowhere: a service manager without a descriptor store.
    manager.kill();
    manager.forget_everything();
    assert!(fs::read_dir(manager.join("mnt")).is_err());
    manager.start_and_wait();
    assert_eq!(fs::read_dir(manager.join("mnt/tree")).unwrap().count(), 2);
    // It is not on top of the one that is dead, which would be back at the end.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = manager.join("mnt").display().to_string();
    assert_eq!(mounts.lines().filter(|line| line.contains(&mnt)).count(), 1);
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert_eq!(fs::read_dir(manager.join("mnt")).unwrap().count(), 0);
}

/// At first a better process could follow; once the service is stopped, none will.
#[test]
fn a_stop_while_the_next_process_cannot_start_ends_the_mounts() {
    if !can_mount() {
        return;
    }
    let mut manager = service(1);
    manager.start_and_wait();
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = manager.join("mnt").display().to_string();
    manager.kill();
    manager.configure("[mounts.tree]\npaht = '@/mnt'\n");
    manager.start();
    assert!(!manager.wait());
    assert_eq!(manager.kept(), ["mount.tree", "nodes.tree"]);
    assert!(mounts().contains(&mnt));
    let before = manager.count("STATUS=cannot start");
    manager.start();
    manager.wait_for("STATUS=cannot start", before + 1);
    manager.signal(libc::SIGTERM);
    assert!(!manager.wait());
    assert!(manager.kept().is_empty());
    assert!(!mounts().contains(&mnt));
}

#[test]
fn a_start_that_fails_names_what_failed_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let mut manager = service(1);
    manager.configure(&format!(
        "{ONE_MOUNT}[mounts.second]\npath = '@/second'\nroot = 'no-such'\n"
    ));
    manager.start();
    assert!(!manager.wait());
    assert!(manager.log().contains("second"), "{}", manager.log());
    assert!(manager.log().contains("no-such"), "{}", manager.log());
    assert!(manager.kept().is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(manager.path().to_str().unwrap()));
}

fn list_over(socket: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["ls", "--store"])
        .arg(format!("grpc+unix:{}", socket.display()))
        .output()
        .unwrap()
}

#[test]
fn an_empty_configuration_serves_the_embedded_store_on_its_own_socket() {
    let mut manager = Manager::new("state-dir = '@/store'\n");
    let tree = manager.join("tree");
    make_tree(&tree, 1);
    manager.import(&tree, "tree");
    manager.start_and_wait();
    // After READY the socket accepts at once.
    let listed = list_over(&manager.join("castore.sock"));
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout),
        "tree\n",
        "{listed:?}"
    );
    // Through the service, as through the directory.
    let url = format!("grpc+unix:{}", manager.join("castore.sock").display());
    let imported = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["import", "--store", &url, "--name", "through"])
        .arg(&tree)
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let listed = list_over(&manager.join("castore.sock"));
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "through\ntree\n");
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}

#[test]
fn a_listener_requires_a_token_if_configured() {
    let mut manager = Manager::new(
        "state-dir = '@/store'\n[listen.l]\naddress = 'unix:@/castore.sock'\n\
         token-file = '@/tokens'\n",
    );
    fs::write(manager.join("tokens"), "an-old-one\nsesame\n").unwrap();
    fs::write(manager.join("token"), "sesame\n").unwrap();
    let tree = manager.join("tree");
    make_tree(&tree, 1);
    manager.import(&tree, "tree");
    manager.start_and_wait();
    let socket = manager.join("castore.sock");
    let refused = list_over(&socket);
    let reported = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{refused:?}");
    assert!(reported.contains("token"), "{reported}");
    let token = manager.join("token");
    let with_token = format!("{}?token-file={}", socket.display(), token.display());
    let listed = list_over(Path::new(&with_token));
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout),
        "tree\n",
        "{listed:?}"
    );
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}

#[test]
fn a_reload_changes_listeners_and_devices_and_leaves_the_others() {
    const BASE: &str = "[stores.disk]\nurl = 'local:@/store'\n[listen.a]\naddress = 'unix:@/a'\n";
    let mut manager = Manager::new(&format!("{BASE}[virtiofs.vm]\nsocket = '@/vm'\n"));
    let tree = manager.join("tree");
    make_tree(&tree, 1);
    manager.import(&tree, "tree");
    manager.start_and_wait();
    assert!(list_over(&manager.join("a")).status.success());
    // The device takes its monitor's connection.
    let monitor = std::os::unix::net::UnixStream::connect(manager.join("vm")).unwrap();
    let status = manager.status();
    assert_eq!(status["virtiofs"]["vm"]["store"], "disk");
    assert_eq!(status["listen"]["a"]["writable"], false);
    let before = fs::metadata(manager.join("a")).unwrap().ino();
    drop(monitor);

    manager.configure(&format!(
        "{BASE}[listen.b]\naddress = 'unix:@/b'\nsocket-mode = '660'\n"
    ));
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
    assert!(list_over(&manager.join("b")).status.success());
    assert!(list_over(&manager.join("a")).status.success());
    assert_eq!(fs::metadata(manager.join("a")).unwrap().ino(), before);
    assert_eq!(
        fs::metadata(manager.join("b")).unwrap().mode() & 0o777,
        0o660
    );
    assert!(std::os::unix::net::UnixStream::connect(manager.join("vm")).is_err());
    assert!(manager.status()["virtiofs"].as_object().unwrap().is_empty());
    assert!(!manager.join("vm").exists(), "what is gone leaves no file");
    manager.configure("[stores.disk]\nurl = 'local:@/store'\n[virtiofs.vm]\nsocket = '@/vm'\n");
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
    assert!(manager.join("vm").exists());
    assert!(!manager.join("a").exists() && !manager.join("b").exists());
    manager.signal(libc::SIGTERM);
    assert!(manager.wait());
    assert!(!manager.join("vm").exists());
}

#[test]
fn metrics_are_served_where_configured_and_nowhere_else() {
    use std::io::Write;
    let mut manager =
        Manager::new("state-dir = '@/store'\n[metrics]\naddress = 'unix:@/metrics'\n");
    manager.start_and_wait();
    let get = |path: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(manager.join("metrics")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\ncastore_fs_uptime_seconds "), "{answer}");
    assert!(get("/").starts_with("HTTP/1.1 404 "));
    // What is too long to be a scraper's.
    let long = |length: usize| {
        let mut stream = std::os::unix::net::UnixStream::connect(manager.join("metrics")).unwrap();
        let head = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length));
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // The rest that was not read may reset the connection after the answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    assert!(long(15_000).starts_with("HTTP/1.1 200 "));
    assert!(long(20_480).starts_with("HTTP/1.1 431 "));
    // Silent connections keep no other out.
    let open = || std::os::unix::net::UnixStream::connect(manager.join("metrics")).unwrap();
    let silent: Vec<_> = (0..300).map(|_| open()).collect();
    assert!(get("/metrics").starts_with("HTTP/1.1 200 "));
    drop(silent);
}
