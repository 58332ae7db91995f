//! The remaining users of a file system whose mount is gone from this mount namespace: bind mounts,
//! mounts in other mount namespaces, and processes with open files, working directories or programs
//! in it.
//!
//! Found in /proc, as by fuser(1), without a request to the file system. A process without
//! privilege sees its own user's processes only.
//!
//! A look at a process can wait for ever: its links and maps wait while it closes files in execve(2), and
//! that for a server which does not answer ([`deadline`](super::deadline)). So threads of their own look,
//! another one begins where one waits, and what was found within [`PATIENCE`] counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::mount_table::{DeviceNumber, MountTable};

/// Users that are named, at most.
const MOST: usize = 4;
/// How long a search may take: there can be many processes with many open files, and few processors.
const PATIENCE: Duration = Duration::from_secs(3);
/// After how long another thread begins, because those that look may wait.
const STALL: Duration = Duration::from_millis(100);
/// Threads of a search, at most.
const MOST_THREADS: usize = 16;

/// Some of the users of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountUsers(Vec<MountUser>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum MountUser {
    /// A mount of the same file system.
    Mount(PathBuf),
    /// A mount in the mount namespace of this process.
    Namespace(UsingProcess),
    /// A process with an open file, a working directory or a mapped file.
    Process(UsingProcess),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct UsingProcess {
    id: u32,
    name: String,
}

impl fmt::Display for MountUsers {
    /// A phrase after "used by".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter
                .write_str("an overlay, process or mount namespace that cannot be seen from here");
        }
        for (at, user) in self.0.iter().enumerate() {
            if at > 0 {
                formatter.write_str(", ")?;
            }
            match user {
                MountUser::Mount(path) => {
                    write!(formatter, "the bind mount on {}", path.display())?
                }
                MountUser::Namespace(process) => {
                    write!(formatter, "the mount namespace of {process}")?;
                }
                MountUser::Process(process) => write!(formatter, "{process}")?,
            }
        }
        match self.0.len() < MOST {
            true => Ok(()),
            false => formatter.write_str(" and perhaps others"),
        }
    }
}

impl fmt::Display for UsingProcess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {} ({:?})", self.id, self.name)
    }
}

impl MountUsers {
    /// Looks for users of the file system `device`, for no longer than three seconds.
    pub fn find(device: DeviceNumber) -> Self {
        let mut users = Vec::new();
        if let Ok(table) = MountTable::read() {
            let mounts = table.of_device(device).take(MOST);
            users.extend(mounts.map(|entry| MountUser::Mount(entry.path.clone())));
        }
        let seen: BTreeSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
        let namespaces = Mutex::new(seen);
        let look = move |id| {
            let dir = dir(id);
            let process = uses(&dir, device).then(|| MountUser::Process(UsingProcess::new(id)));
            // Any process stands for all others in its mount namespace.
            let namespace = fs::read_link(dir.join("ns/mnt"));
            let is_new = namespace.is_ok_and(|namespace| namespaces.lock().insert(namespace));
            let namespace = (is_new && has_mount(&dir, device))
                .then(|| MountUser::Namespace(UsingProcess::new(id)));
            [process, namespace]
        };
        for_each_process(look, |found| {
            users.extend(found.into_iter().flatten());
            users.len() < MOST
        });
        users.truncate(MOST);
        Self(users)
    }
}

/// How many processes have files of a file system open or mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileUsers {
    /// Processes, in all.
    pub processes: u64,
    /// Processes by the inode number of the file.
    pub by_inode: BTreeMap<u64, u64>,
}

impl FileUsers {
    /// Looks for users of the file system that is mounted on `path`, for no longer than three seconds.
    /// A process without privilege sees its own user's processes only.
    pub fn of_mount(path: &Path) -> Self {
        let mut users = Self::default();
        let table = MountTable::read().ok();
        let Some(device) = table.and_then(|table| Some(table.mounted_on(path)?.device)) else {
            return users;
        };
        for_each_process(
            move |id| inodes(&dir(id), device),
            |used| {
                users.processes += u64::from(!used.is_empty());
                for inode in used {
                    *users.by_inode.entry(inode).or_default() += 1;
                }
                true
            },
        );
        users
    }
}

/// The inode numbers of the files in `device` that the process of `dir` has open or mapped, or works in.
fn inodes(dir: &Path, device: DeviceNumber) -> BTreeSet<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let used = links(dir).filter_map(|link| {
        let found = rustix::fs::statx(CWD, link, flags, StatxFlags::INO).ok()?;
        let of = (found.stx_dev_major, found.stx_dev_minor);
        (of == (device.major, device.minor)).then_some(found.stx_ino)
    });
    let mut inodes: BTreeSet<u64> = used.collect();
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    let maps = fs::read_to_string(dir.join("maps")).unwrap_or_default();
    inodes.extend(maps.lines().filter_map(|line| {
        let mut columns = line.split(' ').skip(3);
        let is_in = columns.next()? == wanted;
        let inode = columns.next()?.parse::<u64>().ok()?;
        is_in.then_some(inode)
    }));
    inodes
}

/// The ids of all processes.
fn process_ids() -> impl Iterator<Item = u32> {
    let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
    ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Passes what `look` finds of each process to `found`, until that returns false, for no longer than
/// [`PATIENCE`]. Processes at which a look waits are left out.
fn for_each_process<T: Send + 'static>(
    look: impl Fn(u32) -> T + Send + Sync + 'static,
    mut found: impl FnMut(T) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    let ids: Vec<u32> = process_ids().collect();
    let mut unseen = ids.len();
    let remaining = Arc::new(Mutex::new(ids));
    let look = Arc::new(look);
    let (sender, receiver) = mpsc::channel();
    let begin = || {
        let (look, remaining, sender) = (look.clone(), remaining.clone(), sender.clone());
        let run = move || {
            // The queue is locked for one statement, and not while this looks.
            while Instant::now() < deadline
                && let Some(id) = { remaining.lock().pop() }
            {
                // Another thread may wait for what this process waits for: one is enough.
                let inspection = ProcessInspection::begin(id);
                if sender.send(inspection.map(|_| look(id))).is_err() {
                    return;
                }
            }
        };
        // Without a thread, all that is known is that the file system is in use.
        let _ = std::thread::Builder::new()
            .name("mount-users".into())
            .spawn(run);
    };
    begin();
    let mut threads = 1;
    while unseen > 0 && Instant::now() < deadline {
        match receiver.recv_timeout(STALL) {
            Ok(of_process) => {
                unseen -= 1;
                if of_process.is_some_and(|of_process| !found(of_process)) {
                    return;
                }
            }
            Err(_) if threads < MOST_THREADS && !remaining.lock().is_empty() => {
                begin();
                threads += 1;
            }
            Err(_) => {}
        }
    }
}

/// The processes that threads of this one look at, and may wait for.
static LOOKED_AT: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A look at a process.
struct ProcessInspection(u32);

impl ProcessInspection {
    /// None if another thread looks at it.
    fn begin(id: u32) -> Option<Self> {
        LOOKED_AT.lock().insert(id).then_some(Self(id))
    }
}

impl Drop for ProcessInspection {
    fn drop(&mut self) {
        LOOKED_AT.lock().remove(&self.0);
    }
}

fn dir(id: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{id}"))
}

impl UsingProcess {
    fn new(id: u32) -> Self {
        let name = fs::read_to_string(dir(id).join("comm"));
        let name = name.map_or_else(|_| "?".to_owned(), |name| name.trim_end().to_owned());
        Self { id, name }
    }
}

/// Whether the process of `dir` has a working directory, open or mapped file in `device`.
fn uses(dir: &Path, device: DeviceNumber) -> bool {
    links(dir).any(|link| is_in(&link, device)) || maps(dir, device)
}

/// The links in `dir` to what its process has open, and to its directories.
fn links(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let open = fs::read_dir(dir.join("fd")).into_iter().flatten();
    let open = open.flatten().map(|entry| entry.path());
    let directories = ["cwd", "root"].map(|link| dir.join(link));
    directories.into_iter().chain(open)
}

/// Whether `link` points into `device`.
fn is_in(link: &Path, device: DeviceNumber) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, link, flags, StatxFlags::empty()).is_ok_and(|found| {
        (found.stx_dev_major, found.stx_dev_minor) == (device.major, device.minor)
    })
}

/// Whether a file of `device` is mapped: proc_pid_maps(5) has the device in its fourth column.
fn maps(dir: &Path, device: DeviceNumber) -> bool {
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    maps.split(|&byte| byte == b'\n').any(|line| {
        let mut columns = line.split(|&byte| byte == b' ');
        columns.nth(3) == Some(wanted.as_bytes())
    })
}

/// Whether the mount namespace of the process of `dir` has a mount of `device`.
fn has_mount(dir: &Path, device: DeviceNumber) -> bool {
    let table: io::Result<MountTable> = MountTable::read_of(&dir.join("mountinfo"));
    table.is_ok_and(|table| table.of_device(device).next().is_some())
}
