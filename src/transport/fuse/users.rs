//! Who still uses a file system whose mount is gone from this mount namespace: bind mounts, mounts in
//! other mount namespaces, and processes with open files, working directories or programs in it.
//!
//! Found in /proc, as fuser(1) does, without asking the file system anything. A process without
//! privilege sees its own user's processes only.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::mount_table::{DeviceNumber, MountTable};

/// Users that are named, at most.
const MOST: usize = 4;
/// How long the search may take: there can be many processes with many open files.
const PATIENCE: Duration = Duration::from_secs(1);

/// Some of the users of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(Vec<User>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum User {
    /// A mount of the same file system.
    Mount(PathBuf),
    /// A mount in the mount namespace of this process.
    Namespace(Process),
    /// A process with an open file, a working directory or a mapped file.
    Process(Process),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    name: String,
}

impl fmt::Display for Users {
    /// A phrase that goes on after "used by".
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
                User::Mount(path) => write!(formatter, "the bind mount on {}", path.display())?,
                User::Namespace(process) => {
                    write!(formatter, "the mount namespace of {process}")?;
                }
                User::Process(process) => write!(formatter, "{process}")?,
            }
        }
        match self.0.len() < MOST {
            true => Ok(()),
            false => formatter.write_str(" and perhaps others"),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {} ({:?})", self.id, self.name)
    }
}

impl Users {
    /// Looks for users of the file system `device`.
    pub fn find(device: DeviceNumber) -> Self {
        let mut users = Vec::new();
        if let Ok(table) = MountTable::read() {
            let mounts = table.of_device(device).take(MOST);
            users.extend(mounts.map(|entry| User::Mount(entry.path.clone())));
        }
        let deadline = Instant::now() + PATIENCE;
        let mut namespaces: BTreeSet<PathBuf> =
            fs::read_link("/proc/self/ns/mnt").into_iter().collect();
        let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
        for id in ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if users.len() >= MOST || Instant::now() > deadline {
                break;
            }
            let folder = PathBuf::from(format!("/proc/{id}"));
            let process = || Process {
                id,
                name: fs::read_to_string(folder.join("comm"))
                    .map_or_else(|_| "?".to_owned(), |name| name.trim_end().to_owned()),
            };
            if uses(&folder, device) {
                users.push(User::Process(process()));
            }
            // Any process tells for all others in its mount namespace.
            if fs::read_link(folder.join("ns/mnt")).is_ok_and(|ns| namespaces.insert(ns))
                && has_mount(&folder, device)
            {
                users.push(User::Namespace(process()));
            }
        }
        users.truncate(MOST);
        Self(users)
    }
}

/// Whether the process of `folder` has a working directory, open or mapped file in `device`.
fn uses(folder: &Path, device: DeviceNumber) -> bool {
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten();
    let open = open.flatten().map(|entry| entry.path());
    let links = ["cwd", "root"].map(|link| folder.join(link));
    links
        .into_iter()
        .chain(open)
        .any(|link| is_in(&link, device))
        || maps(folder, device)
}

/// Whether `link` leads into `device`.
fn is_in(link: &Path, device: DeviceNumber) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, link, flags, StatxFlags::empty()).is_ok_and(|found| {
        (found.stx_dev_major, found.stx_dev_minor) == (device.major, device.minor)
    })
}

/// Whether a file of `device` is mapped: proc_pid_maps(5) has the device in its fourth column.
fn maps(folder: &Path, device: DeviceNumber) -> bool {
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    maps.split(|&byte| byte == b'\n').any(|line| {
        let mut columns = line.split(|&byte| byte == b' ');
        columns.nth(3) == Some(wanted.as_bytes())
    })
}

/// Whether the mount namespace of the process of `folder` has a mount of `device`.
fn has_mount(folder: &Path, device: DeviceNumber) -> bool {
    let table: io::Result<MountTable> = MountTable::read_of(&folder.join("mountinfo"));
    table.is_ok_and(|table| table.of_device(device).next().is_some())
}
