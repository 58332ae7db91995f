//! Requests that wait for a silent server.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use castore_fs::store::{MemoryStore, Store};
use castore_fs::transport::fuse::UnmountOutcome;

use super::endpoint::{Habit, HostileServer};
use super::{client, noise, wait_until};
use kit::model::{directory, file};
use kit::mounted::{Mounted, can_mount};

/// Readers that wait at once.
const READERS: usize = 700;

fn contents(number: usize) -> Vec<u8> {
    noise(number as u64, 5000)
}

/// A mount of files whose bytes do not come, but for those of `complete`.
fn mount() -> (HostileServer, Mounted) {
    let store = MemoryStore::new();
    let files = (0..READERS).map(|number| (format!("file-{number}"), file(contents(number))));
    let complete = [("here".to_owned(), file(noise(9999, 200_000)))];
    let node = directory(files.chain(complete)).put_root(&store, "tree");
    let server = HostileServer::start(&store, Habit::Honest);
    let store: Arc<dyn Store> = Arc::new(client(&server, "first-byte-timeout=600"));
    let mounted = Mounted::mount_root(store, &node);
    assert_eq!(
        fs::read(mounted.join("here")).unwrap(),
        noise(9999, 200_000)
    );
    server.be(Habit::Hangs);
    (server, mounted)
}

/// Opens a file that is read past the page cache, as one request that a signal can interrupt.
fn open_directly(path: &Path) -> File {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

fn read_directly(path: &Path) -> std::io::Result<Vec<u8>> {
    // O_DIRECT wants an aligned buffer.
    let mut buffer = vec![0; 3 * 8192];
    let from = buffer.as_ptr().align_offset(8192);
    let read = open_directly(path).read(&mut buffer[from..from + 8192])?;
    Ok(buffer[from..from + read].to_vec())
}

/// The threads of this process that serve mounts.
fn workers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "fuse").count()
}

/// A program that reads a file, past the page cache.
fn reader(path: &Path) -> Child {
    let input = format!("if={}", path.display());
    Command::new("dd")
        .args([&input, "of=/dev/null", "bs=8192", "count=1", "iflag=direct"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn seven_hundred_waiting_readers_delay_no_other_request() {
    if !can_mount() {
        return;
    }
    let (server, mounted) = mount();
    let waiting: Vec<_> = (0..READERS)
        .map(|number| {
            let path = mounted.join(format!("file-{number}"));
            let read = move || read_directly(&path);
            let thread = std::thread::Builder::new().stack_size(128 << 10);
            thread.spawn(read).unwrap()
        })
        .collect();
    let before = mounted.session.requests();
    wait_until("all of them ask", || {
        mounted.session.requests().of("READ") >= READERS as u64
    });
    // A name that the kernel does not know, a listing, and bytes that only the daemon's memory has.
    assert!(!mounted.join("nothing of this name").exists());
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), READERS + 1);
    let complete = File::open(mounted.join("here")).unwrap();
    // SAFETY: it has no effect on memory.
    unsafe { libc::posix_fadvise(complete.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(
        fs::read(mounted.join("here")).unwrap(),
        noise(9999, 200_000)
    );
    let made = mounted.session.requests().since(&before);
    assert!(made.of("LOOKUP") > 0 && made.of("READ") > 0, "{made:?}");
    assert_eq!(workers(), 3, "those that it began with");
    // A reader that is killed dies, although nothing came.
    let reads = mounted.session.requests().of("READ");
    let mut killed = reader(&mounted.join("file-0"));
    wait_until("it asks", || mounted.session.requests().of("READ") > reads);
    killed.kill().unwrap();
    let killed = std::thread::spawn(move || killed.wait());
    wait_until("it dies", || killed.is_finished());
    let status = killed.join().unwrap().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    // The others get theirs.
    server.let_go();
    for (number, thread) in waiting.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap().unwrap(), contents(number));
    }
}

/// Installs a handler that does nothing and lets system calls be interrupted.
fn handle(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the handler does nothing, and the action is whole.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn a_signal_that_does_not_kill_breaks_no_read() {
    if !can_mount() {
        return;
    }
    let (server, mounted) = mount();
    handle(libc::SIGURG);
    handle(libc::SIGALRM);
    let path = mounted.join("file-1");
    let reads = mounted.session.requests().of("READ");
    let reader = std::thread::spawn(move || read_directly(&path));
    wait_until("it asks", || mounted.session.requests().of("READ") > reads);
    for signal in [libc::SIGURG, libc::SIGALRM] {
        std::thread::sleep(std::time::Duration::from_millis(50));
        // SAFETY: the thread was not joined.
        unsafe { libc::pthread_kill(reader.as_pthread_t(), signal) };
    }
    wait_until("the kernel reports it", || {
        mounted.session.requests().of("INTERRUPT") > 0
    });
    // Long enough for it to be looked at more than once.
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(!reader.is_finished(), "it gave up");
    server.let_go();
    assert_eq!(reader.join().unwrap().unwrap(), contents(1));
}

#[test]
fn a_mount_ends_while_a_fetch_hangs() {
    if !can_mount() {
        return;
    }
    let (_server, mounted) = mount();
    let reads = mounted.session.requests().of("READ");
    let mut reader = reader(&mounted.join("file-2"));
    wait_until("it asks", || mounted.session.requests().of("READ") > reads);
    reader.kill().unwrap();
    assert_eq!(reader.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(mounted.session.unmount().unwrap(), UnmountOutcome::Cleanly);
    // Returns when the last worker has ended.
    mounted.session.wait();
}
