//! The mounts of this process's mount namespace, as `/proc/self/mountinfo` lists them
//! (proc_pid_mountinfo(5)).
//!
//! A mount is identified by its id and the device number of its file system, not by its path: it
//! can be moved, its parent can be renamed, and another mount can cover it. The mount at a path is
//! determined from the table alone. Looking the path up would wait for whatever is mounted there,
//! and that may be a mount that no process serves.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::{Deserialize, Serialize};

/// The type of a FUSE mount of this program.
pub(super) const FS_TYPE: &str = "fuse.castore-fs";
/// The type of an image's mount.
const IMAGE_FS_TYPE: &str = "erofs";
/// What the source of an image's mount begins with; the number of the FUSE connection that serves the
/// image follows, a colon, and the store's URL.
pub(super) const IMAGE_SOURCE: &str = "castore-fs:";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The device number of a file system: `st_dev`, and the third column of mountinfo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// 0 for file systems without a block device.
    pub major: u32,
    /// Which of them.
    pub minor: u32,
}

/// A line of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// The mount's id. The kernel gives the id of a mount that is gone to a later one.
    pub id: u64,
    /// The id of the mount that it is mounted in.
    pub parent: u64,
    /// Its file system.
    pub device: DeviceNumber,
    /// The directory of the file system that is seen, from the file system's root.
    pub root: PathBuf,
    /// Where it is mounted, from this process's root directory.
    pub path: PathBuf,
    /// The mount's own options, separated by commas: `ro,nosuid,…`.
    pub options: String,
    /// The type, such as `ext4` or `fuse.castore-fs`.
    pub fs_type: String,
    /// What is mounted, as named by the program that mounted it: the store's URL.
    pub source: String,
    /// The options of the file system, separated by commas.
    pub fs_options: String,
}

/// All mounts that can be reached from this process's root directory.
#[derive(Clone, Debug, Default)]
pub(super) struct MountTable {
    entries: Vec<MountEntry>,
    /// The mount of the root directory, which need not be listed (in a chroot).
    root: Option<u64>,
}

impl fmt::Display for DeviceNumber {
    /// In the form of mountinfo and `/sys/class/bdi`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => Ok(Self { major, minor }),
            _ => Err(()),
        }
    }
}

/// The error for a file below `/proc/self`, which is there if `/proc` is.
pub(super) fn name_missing_proc(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::NotFound,
            "/proc is not mounted, where the kernel lists what is mounted: mount -t proc proc /proc",
        ),
        _ => error,
    }
}

impl MountTable {
    /// Reads the table of this process.
    pub(super) fn read() -> io::Result<Self> {
        Self::read_of(Path::new(MOUNTINFO))
    }

    /// Reads the table in the file `mountinfo`, which may be another process's: then
    /// [`visible_at`](Self::visible_at) means nothing.
    pub(super) fn read_of(mountinfo: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        let opened = File::open(mountinfo);
        let opened = match mountinfo == Path::new(MOUNTINFO) {
            true => opened.map_err(name_missing_proc),
            false => opened,
        };
        opened?.read_to_end(&mut text)?;
        Ok(Self::parse(&text, root_mount()))
    }

    /// Parses `text`, of a process whose root directory is in the mount `root`. Invalid lines are
    /// skipped.
    fn parse(text: &[u8], root: Option<u64>) -> Self {
        let lines = text.split(|&byte| byte == b'\n');
        let entries: Vec<MountEntry> = lines.filter_map(MountEntry::parse).collect();
        // Kernels before 5.8 do not report which mount the root directory is in.
        let by_path = || entries.iter().rfind(|entry| entry.path == Path::new("/"));
        let root = root.or_else(|| by_path().map(|entry| entry.id));
        Self { entries, root }
    }

    /// The mount `id`.
    pub(super) fn by_id(&self, id: u64) -> Option<&MountEntry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// The mounts of the file system `device`: one, and its bind mounts.
    pub(super) fn of_device(&self, device: DeviceNumber) -> impl Iterator<Item = &MountEntry> {
        let entries = self.entries.iter();
        entries.filter(move |entry| entry.device == device)
    }

    /// The mount of the image that the FUSE connection of this number serves.
    pub(super) fn of_image(&self, connection: u32) -> Option<&MountEntry> {
        let serves = |(number, _)| number == u64::from(connection);
        let mut entries = self.entries.iter();
        entries.find(|entry| entry.image_source().is_some_and(serves))
    }

    /// The mounts that are mounted in the mount `id`, at its root or below.
    pub(super) fn children(&self, id: u64) -> impl Iterator<Item = &MountEntry> {
        let entries = self.entries.iter();
        entries.filter(move |entry| entry.parent == id && entry.id != id)
    }

    /// A mount on a name of the file system `device`, in any of its mounts. One that covers a whole mount is on
    /// none.
    pub(super) fn below_names_of(&self, device: DeviceNumber) -> Option<&MountEntry> {
        self.of_device(device).find_map(|entry| {
            let shows_all = entry.root == Path::new("/");
            self.children(entry.id)
                .find(|child| !shows_all || child.path != entry.path)
        })
    }

    /// The mount at `path`: of several at one place the topmost. `path` is absolute, without
    /// symbolic links, `.` and `..`. None if that mount is not listed.
    pub(super) fn visible_at(&self, path: &Path) -> Option<&MountEntry> {
        let mut id = self.root?;
        let mut found = self.by_id(id);
        let mut reached = Path::new("/");
        // A lookup begins in the root directory itself, even if something is mounted on that.
        let mut below_root = false;
        // Each step goes one mount up; no more steps than mounts, in case the table is
        // inconsistent.
        for _ in 0..self.entries.len() {
            let on_the_way = self.children(id).filter(|entry| {
                path.starts_with(&entry.path)
                    && entry.path.starts_with(reached)
                    && (below_root || entry.path != reached)
            });
            let Some(next) = on_the_way.min_by_key(|entry| entry.path.components().count()) else {
                break;
            };
            (id, reached, below_root) = (next.id, next.path.as_path(), true);
            found = Some(next);
        }
        found
    }

    /// The topmost mount whose mount point is `path`, if that is a mount point.
    pub(super) fn mounted_on(&self, path: &Path) -> Option<&MountEntry> {
        self.visible_at(path).filter(|entry| entry.path == path)
    }

    /// The mounts that keep `entry` from being unmounted: one that covers it, and those below it.
    pub(super) fn obstacles(&self, entry: &MountEntry) -> Vec<&MountEntry> {
        let covering = self.visible_at(&entry.path);
        let covering = covering.filter(|visible| visible.id != entry.id);
        let below = self.children(entry.id);
        let mut obstacles: Vec<&MountEntry> = covering.into_iter().collect();
        obstacles.extend(below.filter(|below| covering.is_none_or(|other| other.id != below.id)));
        obstacles
    }
}

impl MountEntry {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut columns = line.split(|&byte| byte == b' ');
        let text = |column: &[u8]| String::from_utf8_lossy(column).into_owned();
        let number = |column: &[u8]| std::str::from_utf8(column).ok()?.parse().ok();
        let id = number(columns.next()?)?;
        let parent = number(columns.next()?)?;
        let device = std::str::from_utf8(columns.next()?).ok()?.parse().ok()?;
        let root = unescape(columns.next()?);
        let path = unescape(columns.next()?);
        let options = text(columns.next()?);
        // Any number of optional columns ends with a dash.
        let mut rest = columns.skip_while(|column| *column != b"-").skip(1);
        let fs_type = text(rest.next()?);
        let source = rest.next().map(unescape).unwrap_or_default();
        let source = source.to_string_lossy().into_owned();
        let fs_options = rest.next().map(text).unwrap_or_default();
        Some(Self {
            id,
            parent,
            device,
            root,
            path,
            options,
            fs_type,
            source,
            fs_options,
        })
    }

    /// Whether this program made it: a FUSE mount, or the mount of an image.
    pub(super) fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE || self.image_source().is_some()
    }

    /// The number of the FUSE connection that serves the image, and the store's URL, if it is the mount
    /// of an image.
    pub(super) fn image_source(&self) -> Option<(u64, &str)> {
        let source = self.source.strip_prefix(IMAGE_SOURCE)?;
        let (number, url) = source.split_once(':').unwrap_or((source, ""));
        let is_image = self.fs_type == IMAGE_FS_TYPE;
        is_image.then_some((number.parse().ok()?, url))
    }

    /// The place of `path`, which is in this mount, in its file system, from the file system's
    /// root.
    pub(super) fn inside(&self, path: &Path) -> Option<PathBuf> {
        Some(self.root.join(path.strip_prefix(&self.path).ok()?))
    }
}

/// Reports changes of the table.
#[derive(Debug)]
pub struct MountWatch(File);

impl MountWatch {
    /// Reports changes from now on.
    pub fn new() -> io::Result<Self> {
        Ok(Self(File::open(MOUNTINFO)?))
    }

    /// Waits for a change, for no longer than `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<()> {
        let mut polled = [PollFd::new(&self.0, PollFlags::PRI)];
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        match rustix::event::poll(&mut polled, Some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The id of the mount of the root directory. None before Linux 5.8.
fn root_mount() -> Option<u64> {
    statx_mount_id(CWD, c"/", AtFlags::NO_AUTOMOUNT)
}

/// The id of the mount that an open file is in. None before Linux 5.8.
pub(super) fn mount_of(file: impl AsFd) -> Option<u64> {
    statx_mount_id(file, c"", AtFlags::EMPTY_PATH)
}

fn statx_mount_id(at: impl AsFd, path: &CStr, flags: AtFlags) -> Option<u64> {
    // The file system gets no request for attributes.
    let flags = flags | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(at, path, flags, StatxFlags::MNT_ID).ok()?;
    let reported = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    reported.then_some(found.stx_mnt_id)
}

/// Undoes the kernel's escapes: a backslash and three octal digits.
fn unescape(column: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(column.len());
    let mut rest = column;
    let octal = |digit: &u8| (b'0'..=b'7').contains(digit).then(|| digit - b'0');
    let escaped = |tail: &[u8]| match tail
        .get(..3)?
        .iter()
        .map(octal)
        .collect::<Option<Vec<_>>>()?[..]
    {
        [a @ 0..=3, b, c] => Some(a << 6 | b << 3 | c),
        _ => None,
    };
    while let [first, tail @ ..] = rest {
        let byte = escaped(tail).filter(|_| *first == b'\\');
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// A root on an older root; `/a` with a mount in it that another covers; `/b` with a mount in it that
    /// cannot be reached because `/b` is covered.
    const TABLE: &str = "\
1 1 0:1 / / rw - rootfs rootfs rw
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 20 0:40 / /a rw - tmpfs tmpfs rw,size=4k
31 30 0:41 / /a/m ro,nosuid,nodev - fuse.castore-fs local:/s ro,user_id=0
32 31 0:42 / /a/m rw - tmpfs tmpfs rw
33 20 0:43 / /b rw - tmpfs tmpfs rw
34 33 0:41 /sub /b/x ro - fuse.castore-fs local:/s ro
36 99 0:45 / /ab rw - proc proc rw
37 33 0:46 / /b rw - tmpfs tmpfs rw
";

    fn table() -> MountTable {
        MountTable::parse(TABLE.as_bytes(), Some(20))
    }

    fn visible(path: &str) -> u64 {
        table().visible_at(Path::new(path)).unwrap().id
    }

    #[test]
    fn a_path_leads_to_the_topmost_mount() {
        assert_eq!(visible("/"), 20);
        assert_eq!(visible("/etc"), 20);
        assert_eq!(visible("/a"), 30);
        assert_eq!(visible("/a/n"), 30);
        assert_eq!(visible("/a/m/file"), 32);
        // Not a mount whose path begins with the same letters.
        assert_eq!(visible("/abc"), 20);
        assert_eq!(visible("/b/x"), 37);
        assert!(table().mounted_on(Path::new("/b/x")).is_none());
        assert_eq!(table().mounted_on(Path::new("/b")).unwrap().id, 37);
    }

    #[test]
    fn a_mount_is_kept_by_what_covers_it_and_by_what_is_below_it() {
        let table = table();
        let obstacles = |id| {
            let entry = table.by_id(id).unwrap();
            let obstacles = table.obstacles(entry);
            obstacles.iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(obstacles(31), [32]);
        assert_eq!(obstacles(30), [31]);
        assert_eq!(obstacles(34), [37]);
        assert!(obstacles(32).is_empty());
    }

    #[test]
    fn a_mount_is_on_a_name_of_a_file_system_unless_it_covers_all_of_it() {
        let text = "\
30 20 0:40 / /a ro - fuse.castore-fs s ro
31 30 0:41 / /a rw - tmpfs tmpfs rw
40 20 0:50 / /b ro - fuse.castore-fs s ro
41 40 0:41 / /b/x rw - tmpfs tmpfs rw
50 20 0:60 /dir /c ro - fuse.castore-fs s ro
51 50 0:41 / /c rw - tmpfs tmpfs rw
60 20 0:70 / /d ro - erofs castore-fs:9:s ro
";
        let table = MountTable::parse(text.as_bytes(), Some(20));
        let below = |minor| {
            let below = table.below_names_of(DeviceNumber { major: 0, minor });
            below.map(|entry| entry.id)
        };
        assert_eq!(below(40), None, "it covers the mount root");
        assert_eq!(below(50), Some(41));
        assert_eq!(
            below(60),
            Some(51),
            "it covers the directory of a bind mount"
        );
        assert_eq!(table.of_image(9).map(|entry| entry.id), Some(60));
        assert_eq!(table.of_image(40), None);
    }

    #[test]
    fn a_line_names_the_file_system_and_the_place_in_it() {
        let table = table();
        let of_device: Vec<u64> = {
            let device = "0:41".parse().unwrap();
            table.of_device(device).map(|entry| entry.id).collect()
        };
        assert_eq!(of_device, [31, 34]);
        let bound = table.by_id(34).unwrap();
        assert_eq!(bound.fs_type, "fuse.castore-fs");
        let inside = bound.inside(Path::new("/b/x/y"));
        assert_eq!(inside.unwrap(), Path::new("/sub/y"));
        assert_eq!(
            table.by_id(31).unwrap().fs_options,
            "ro,user_id=0",
            "behind the source"
        );
    }

    #[test]
    fn a_root_directory_that_is_no_mount_point_is_where_a_lookup_begins() {
        // As in a chroot: only what is below it is listed.
        let text = b"40 20 0:50 / /m rw - tmpfs tmpfs rw\n";
        let table = MountTable::parse(text, Some(20));
        assert!(table.visible_at(Path::new("/etc")).is_none());
        assert_eq!(table.visible_at(Path::new("/m/x")).unwrap().id, 40);
    }

    #[test]
    fn lines_that_are_not_understood_are_left_out() {
        let text =
            b"\n1\n1 2 x / / rw - a b c\n7 7 0:1 / / rw shared:1 master:2 - tmpfs t rw\n1 2 3";
        let table = MountTable::parse(text, None);
        assert_eq!(table.entries.len(), 1);
        assert_eq!(table.visible_at(Path::new("/x")).unwrap().fs_type, "tmpfs");
    }

    #[test]
    fn paths_are_unescaped() {
        assert_eq!(
            unescape(br"/a\040b\134c\0").as_os_str().as_bytes(),
            br"/a b\c\0"
        );
    }

    #[test]
    fn the_mount_of_an_image_names_its_connection_and_store() {
        let line = |rest: &str| {
            let line = format!("31 30 0:41 / /a ro - {rest} ro");
            MountEntry::parse(line.as_bytes()).unwrap()
        };
        let image = line("erofs castore-fs:47:local:/s");
        assert_eq!(image.image_source(), Some((47, "local:/s")));
        assert!(image.is_ours());
        assert_eq!(line("erofs castore-fs:47").image_source(), Some((47, "")));
        assert!(!line("erofs /dev/sda1").is_ours());
        assert!(!line("ext4 castore-fs:47:x").is_ours());
        assert!(line("fuse.castore-fs local:/s").is_ours());
    }

    #[test]
    fn this_process_has_a_root() {
        let table = MountTable::read().unwrap();
        assert!(table.visible_at(Path::new("/no/such/place")).is_some());
        assert!(table.mounted_on(Path::new("/no/such/place")).is_none());
    }
}
