//! Making and undoing the mount itself.
//!
//! As root through mount(2), which gives us every option; otherwise through the setuid helper
//! `fusermount3`, which passes the descriptor back over a socket. Or somebody with more rights has
//! opened `/dev/fuse` for us, and perhaps mounted it as well: then that is for them to undo. After
//! the mount is up this process must not touch paths below it outside of a thread that nothing waits
//! for.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::device;

/// The type in `/proc/mounts`.
const FS_TYPE: &str = "fuse.castore-fs";
/// The device number of `/dev/fuse` (the kernel's `Documentation/admin-guide/devices.txt`).
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// How long a mount may take to show that somebody serves it.
const LIFE_SIGN: Duration = Duration::from_secs(1);
/// The largest READ, in bytes.
const MAX_READ: u32 = 1 << 20;

/// Why there is no mount.
#[derive(Debug, Error)]
pub enum MountError {
    /// The folder to mount on is not there.
    #[error("{} does not exist; make that folder first", .0.display())]
    NoMountpoint(PathBuf),
    /// It is not a folder.
    #[error("{} is not a folder, and only a folder can be mounted on", .0.display())]
    NotAFolder(PathBuf),
    /// A mount whose server is gone is in the way, and cannot be taken out of it.
    #[error("{} holds a mount whose server is gone; remove it with umount --lazy", .0.display())]
    DeadMount(PathBuf),
    /// There is no FUSE.
    #[error(
        "cannot open /dev/fuse: {0}; load the kernel module fuse, or give this container the device"
    )]
    NoDevice(io::Error),
    /// The helper is not installed, and without root there is no other way.
    #[error(
        "only root can mount without the helper fusermount3, which is not installed (package fuse3)"
    )]
    NoHelper,
    /// The helper refused; its own words.
    #[error("fusermount3 did not mount on {}: {said}", mountpoint.display())]
    Helper {
        /// Where.
        mountpoint: PathBuf,
        /// What it printed.
        said: String,
    },
    /// The descriptor that was given is something else.
    #[error("the descriptor that was given for {} is not of /dev/fuse", .0.display())]
    NotADevice(PathBuf),
    /// The descriptor that was given is not mounted, and this process may not do it.
    #[error(
        "the descriptor that was given for {} is not mounted yet, which takes CAP_SYS_ADMIN: mount \
         it before it is passed on (type fuse.castore-fs, options \
         fd=N,rootmode=40555,user_id=N,group_id=N), or give this process the capability",
        .0.display()
    )]
    NotMounted(PathBuf),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", mountpoint.display())]
    System {
        /// What was tried: a verb.
        action: &'static str,
        /// Where.
        mountpoint: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A mount that this process made.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// The kernel's number of the mount, which tells it from another one at the same place.
    id: Option<u64>,
    made_by: Maker,
}

/// Who made a mount, and has the right to undo it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Maker {
    /// This process, or one of the same rights before it.
    Ourselves,
    /// fusermount3, on our behalf.
    Helper,
    /// Whoever gave us the descriptor.
    Others,
}

/// What to ask of mount(2) or of the helper.
pub struct Request<'a> {
    /// The first column of `/proc/mounts`: the store's URL.
    pub source: &'a str,
    /// Whether users other than the one who mounts can see it.
    pub allow_other: bool,
}

/// Mounts on `path`; gives the descriptor on which requests come.
pub fn mount(path: &Path, request: &Request<'_>) -> Result<(OwnedFd, Mountpoint), MountError> {
    let path = absolute(path)?;
    take_away_dead(&path)?;
    let is_root = rustix::process::geteuid().is_root();
    let opened = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let mounted = match opened {
        Ok(device) => mount_directly(&device, &path, request).map(|()| device),
        // The helper may open it.
        Err(Errno::ACCESS) if !is_root => Err(Errno::ACCESS),
        Err(errno) => return Err(MountError::NoDevice(errno.into())),
    };
    let (device, made_by) = match mounted {
        Ok(device) => (device, Maker::Ourselves),
        Err(Errno::PERM | Errno::ACCESS) if !is_root => {
            (mount_by_helper(&path, request)?, Maker::Helper)
        }
        Err(errno) => return Err(refused(&path, errno)),
    };
    let id = find_mount(&path).map(|mount| mount.id);
    Ok((device, Mountpoint { path, id, made_by }))
}

/// The mount of a descriptor that somebody else has opened: made on `path` unless it is there. If it
/// is, and the kernel tells where, that goes before `path`.
pub fn given(
    device: &OwnedFd,
    path: &Path,
    request: &Request<'_>,
) -> Result<Mountpoint, MountError> {
    let status = rustix::fs::fstat(device).map_err(|errno| refused(path, errno))?;
    let (major, minor) = (
        rustix::fs::major(status.st_rdev),
        rustix::fs::minor(status.st_rdev),
    );
    if (major, minor) != FUSE_DEVICE {
        return Err(MountError::NotADevice(path.to_owned()));
    }
    let made_by = match device::is_mounted(device) {
        true => Maker::Others,
        false => match mount_directly(device, &absolute(path)?, request) {
            Ok(()) => Maker::Ourselves,
            Err(Errno::PERM | Errno::ACCESS) => {
                return Err(MountError::NotMounted(path.to_owned()));
            }
            Err(errno) => return Err(refused(path, errno)),
        },
    };
    let told = connection(device).and_then(|number| find(|line| line.device == number));
    let found = told.or_else(|| find_mount(path));
    Ok(Mountpoint {
        id: found.as_ref().map(|line| line.id),
        path: found.map_or_else(|| path.to_owned(), |line| line.path),
        made_by,
    })
}

/// The device number of the mount that `device` serves, as `/proc/self/mountinfo` writes it. Older
/// kernels do not tell.
fn connection(device: &OwnedFd) -> Option<String> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    let mut lines = about.lines();
    let number = lines.find_map(|line| line.strip_prefix("fuse_connection:"))?;
    Some(format!("0:{}", number.trim()))
}

fn refused(path: &Path, errno: Errno) -> MountError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => MountError::NoMountpoint(path),
        Errno::NOTDIR => MountError::NotAFolder(path),
        Errno::NOTCONN => MountError::DeadMount(path),
        errno => MountError::System {
            action: "mount on",
            mountpoint: path,
            source: errno.into(),
        },
    }
}

/// The path without symlinks, except that its last part is not looked into: it may be a mount that
/// nobody serves.
fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoMountpoint(path.to_owned()),
        _ => MountError::System {
            action: "find",
            mountpoint: path.to_owned(),
            source,
        },
    };
    let whole = std::path::absolute(path).map_err(failed)?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
        _ => Ok(whole),
    }
}

fn mount_directly(device: &OwnedFd, path: &Path, request: &Request<'_>) -> Result<(), Errno> {
    let mut options = format!(
        "fd={},rootmode=40555,user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(request.source, path, FS_TYPE, flags, options.as_c_str())
}

/// Has `fusermount3` mount, and takes the descriptor that it sends.
fn mount_by_helper(path: &Path, request: &Request<'_>) -> Result<OwnedFd, MountError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoHelper,
        _ => MountError::System {
            action: "mount through fusermount3 on",
            mountpoint: path.to_owned(),
            source,
        },
    };
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        // The helper has to inherit its end; ours is marked below.
        SocketFlags::empty(),
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)
        .map_err(|errno| failed(errno.into()))?;
    // A comma would end the option, a backslash hides one.
    let source = request.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!(
        "ro,nodev,nosuid,noatime,default_permissions,max_read={MAX_READ},subtype=castore-fs,\
         fsname={source}"
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    let helper = Command::new("fusermount3")
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = helper.wait_with_output().map_err(failed)?;
    match device {
        Ok(Some(device)) if output.status.success() => {
            rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC)
                .map_err(|errno| failed(errno.into()))?;
            Ok(device)
        }
        _ => Err(MountError::Helper {
            mountpoint: path.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::empty(),
    )?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

impl Mountpoint {
    /// A mount that another process made.
    pub(super) fn known(path: PathBuf, id: Option<u64>, made_by: Maker) -> Self {
        Self { path, id, made_by }
    }

    /// The kernel's number of the mount.
    pub(super) fn id(&self) -> Option<u64> {
        self.id
    }

    /// Who made it.
    pub(super) fn made_by(&self) -> Maker {
        self.made_by
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the mount that is now seen at the path is this one.
    pub fn is_mounted(&self) -> bool {
        // Where others have mounted, it need not be where we can see it.
        if self.made_by == Maker::Others && self.id.is_none() {
            return true;
        }
        find_mount(&self.path).is_some_and(|mount| self.id.is_none_or(|id| id == mount.id))
    }

    /// Undoes the mount; with `lazily`, takes it out of the tree at once and lets its users finish.
    pub fn unmount(&self, lazily: bool) -> io::Result<()> {
        if self.made_by == Maker::Helper {
            return self.unmount_by_helper(lazily);
        }
        let mut flags = UnmountFlags::NOFOLLOW;
        if lazily {
            flags |= UnmountFlags::DETACH;
        }
        Ok(rustix::mount::unmount(&self.path, flags)?)
    }

    fn unmount_by_helper(&self, lazily: bool) -> io::Result<()> {
        let output = Command::new("fusermount3")
            .arg(if lazily { "-uz" } else { "-u" })
            .arg("--")
            .arg(&self.path)
            .stdin(Stdio::null())
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )),
        }
    }

    /// Sets how far the kernel reads ahead of sequential readers. Without the right to, the
    /// kernel's default of 128 KiB stays.
    pub fn set_read_ahead(&self, kib: u32) {
        let Some(mount) = find_mount(&self.path) else {
            return;
        };
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
        if let Err(error) = fs::write(&setting, kib.to_string()) {
            tracing::debug!(%setting, %error, "read-ahead stays at the kernel's default");
        }
    }
}

/// Takes the mount at `path` out of the tree, if it is one of this program's; whether it was. For
/// mounts that nobody serves: a served one should be ended by its server.
pub fn detach(path: &Path) -> io::Result<bool> {
    let path = absolute(path).map_err(io::Error::other)?;
    if find_mount(&path).is_none_or(|mount| mount.fs_type != FS_TYPE) {
        return Ok(false);
    }
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    match rustix::mount::unmount(&path, flags) {
        Err(Errno::PERM) => Mountpoint::known(path, None, Maker::Helper).unmount(true)?,
        outcome => outcome?,
    }
    Ok(true)
}

/// Takes mounts of ours whose server is gone away from `path`. mount(2) would put the new mount on top of
/// them, and they would be back when that ends.
fn take_away_dead(path: &Path) -> Result<(), MountError> {
    while find_mount(path).is_some_and(|mount| mount.fs_type == FS_TYPE) && is_dead(path) {
        match detach(path) {
            Ok(true) => {
                let path = path.display();
                tracing::warn!(%path, "took a mount whose server is gone out of the way");
            }
            Ok(false) | Err(_) => return Err(MountError::DeadMount(path.to_owned())),
        }
    }
    Ok(())
}

/// Whether the server of the mount at `path` is gone for good: nobody has its descriptor.
fn is_dead(path: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    // In a thread of its own, which nobody waits for: a mount that somebody serves can take its time.
    let asked = std::thread::Builder::new()
        .name("life-sign".into())
        .spawn(move || {
            let _ = tell.send(rustix::fs::statfs(&path).map(drop));
        });
    asked.is_ok() && told.recv_timeout(LIFE_SIGN) == Ok(Err(Errno::NOTCONN))
}

/// A line of `/proc/self/mountinfo`.
struct MountLine {
    id: u64,
    path: PathBuf,
    fs_type: String,
    /// `major:minor`.
    device: String,
}

/// The mount that is seen at `path`: of several, the last.
fn find_mount(path: &Path) -> Option<MountLine> {
    find(|line| line.path == path)
}

/// The last mount of which `is` says so.
fn find(is: impl Fn(&MountLine) -> bool) -> Option<MountLine> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let lines = table.split(|&byte| byte == b'\n');
    let mut found = None;
    for line in lines {
        let mut columns = line.split(|&byte| byte == b' ');
        let (Some(id), Some(device), Some(place)) =
            (columns.next(), columns.nth(1), columns.nth(1))
        else {
            continue;
        };
        // A number of optional columns ends with a dash; the type follows.
        let fs_type = columns.skip_while(|column| *column != b"-").nth(1);
        let line = MountLine {
            fs_type: String::from_utf8_lossy(fs_type.unwrap_or_default()).into_owned(),
            id: std::str::from_utf8(id).ok()?.parse().ok()?,
            path: unescape(place),
            device: String::from_utf8_lossy(device).into_owned(),
        };
        if is(&line) {
            found = Some(line);
        }
    }
    found
}

/// Undoes the kernel's escapes: a backslash and three octal digits.
fn unescape(column: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(column.len());
    let mut rest = column;
    while let [first, tail @ ..] = rest {
        let octal = |digit: &u8| (b'0'..=b'7').contains(digit).then(|| digit - b'0');
        match (first, tail) {
            (b'\\', [a, b, c, after @ ..])
                if let (Some(a @ 0..=3), Some(b), Some(c)) = (octal(a), octal(b), octal(c)) =>
            {
                bytes.push(a << 6 | b << 3 | c);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn paths_in_the_mount_table_are_unescaped() {
        assert_eq!(
            unescape(br"/a\040b\134c\0").as_os_str().as_bytes(),
            br"/a b\c\0"
        );
    }

    #[test]
    fn the_root_of_the_tree_is_a_mount() {
        assert!(find_mount(Path::new("/")).is_some());
        assert!(find_mount(Path::new("/no/such/mount")).is_none());
    }
}
