//! Mounting and unmounting.
//!
//! As the superuser through mount(2), which has every option; otherwise through the setuid helper
//! `fusermount3`, which passes the descriptor back over a socket. Or another program has opened
//! `/dev/fuse`, and perhaps mounted it as well: then that program unmounts it. After the mount is
//! up this process must not access paths below it outside of a thread that nothing waits for.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::deadline;
use super::device;
use super::fork_server::ForkServer;
use super::generic_options::GenericOptions;
use super::mount_error::MountError;
use super::mount_table::{DeviceNumber, FS_TYPE, MountEntry, MountTable, mount_of};
use super::mounter;
use super::protected_files::ProtectedFiles;
use super::servers;
use super::trail::trail;
use super::unmount::{MountIdentity, MountState, UnmountObstacles};
use super::users::MountUsers;

/// The device number of `/dev/fuse` (the kernel's `Documentation/admin-guide/devices.txt`).
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// How long a mount may take to show that a process serves it.
const LIFE_SIGN: Duration = Duration::from_secs(1);
/// How long the connection of an unused unmounted mount may take to end.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// The largest READ, in bytes.
const MAX_READ: u32 = 1 << 20;

/// A mount that this process serves.
#[derive(Clone, Debug)]
pub struct Mountpoint {
    /// Where it was mounted.
    path: PathBuf,
    /// Which mount it is; None if it is not in this mount namespace.
    identity: Option<MountIdentity>,
    made_by: MountMaker,
    /// What serves the image, if it is the mount of one.
    image: Option<ImageServer>,
    /// Its helpers unmount an image.
    fork_server: Option<Arc<ForkServer>>,
}

/// What serves the image that a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageServer {
    /// The number of the FUSE connection.
    pub(super) connection: u32,
    /// The file system of the image.
    pub(super) device: DeviceNumber,
}

/// The maker of a mount, which has the right to unmount it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum MountMaker {
    /// This process, or one of the same rights before it.
    Ourselves,
    /// fusermount3, for this process.
    Helper,
    /// Another program, which passed the descriptor.
    Others,
}

/// The outcome of an unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnmountOutcome {
    /// It is gone, and so are its users.
    Cleanly,
    /// It is detached from the tree. It is to be served until these users have finished.
    InUse(MountUsers),
    /// It is where it was, since these mounts are on it or below. It can be unmounted once they are
    /// gone.
    Blocked(UnmountObstacles),
    /// Another program has made it, and only that may unmount it. It ends with this process.
    NotOurs,
}

/// The parameters of mount(2) or of the helper.
pub(super) struct MountRequest<'a> {
    /// The first column of `/proc/mounts`: the store's URL.
    pub source: &'a str,
    /// Whether users other than the one that mounts have access.
    pub allow_other: bool,
    /// Flags of the mount.
    pub generic: &'a GenericOptions,
    /// Files that the mount must not hide.
    pub protected_files: &'a ProtectedFiles,
    /// Its helpers unmount a dead image that is in the way.
    pub fork_server: Option<&'a ForkServer>,
}

/// Mounts on `path`; returns the descriptor for requests.
pub(super) fn mount(
    path: &Path,
    request: &MountRequest<'_>,
) -> Result<(OwnedFd, Mountpoint), MountError> {
    let path = resolve(path)?;
    remove_dead_mount(&path, request.fork_server)?;
    let target = open_target(&path, request)?;
    let is_root = rustix::process::geteuid().is_root();
    let opened = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let mounted = match opened {
        Ok(device) => mount_directly(&device, &target, request).map(|()| device),
        // The helper may open it.
        Err(Errno::ACCESS) if !is_root => Err(Errno::ACCESS),
        Err(errno) => return Err(MountError::NoDevice(errno.into())),
    };
    let (device, made_by) = match mounted {
        Ok(device) => (device, MountMaker::Ourselves),
        Err(Errno::PERM | Errno::ACCESS) if !is_root => {
            (mount_by_helper(&path, request)?, MountMaker::Helper)
        }
        Err(errno) => return Err(refused(&path, errno)),
    };
    let mountpoint = made(&device, path, &target, made_by, request)?;
    Ok((device, mountpoint))
}

/// The mount of a descriptor that another program has opened: made on `path` unless it exists. If
/// it does, and the kernel reports where, that overrides `path`.
pub(super) fn from_device(
    device: &OwnedFd,
    path: &Path,
    request: &MountRequest<'_>,
) -> Result<Mountpoint, MountError> {
    let status = rustix::fs::fstat(device).map_err(|errno| refused(path, errno))?;
    let (major, minor) = (
        rustix::fs::major(status.st_rdev),
        rustix::fs::minor(status.st_rdev),
    );
    if (major, minor) != FUSE_DEVICE {
        return Err(MountError::NotADevice(path.to_owned()));
    }
    if device::is_mounted(device) {
        return Ok(known(
            device,
            path.to_owned(),
            None,
            MountMaker::Others,
            None,
        ));
    }
    let path = resolve(path)?;
    remove_dead_mount(&path, request.fork_server)?;
    let target = open_target(&path, request)?;
    match mount_directly(device, &target, request) {
        Ok(()) => {}
        Err(Errno::PERM | Errno::ACCESS) => return Err(MountError::NotMounted(path)),
        Err(errno) => return Err(refused(&path, errno)),
    }
    made(device, path, &target, MountMaker::Ourselves, request)
}

/// The mount that was just made on the directory `target`, with what is set only then.
fn made(
    device: &OwnedFd,
    path: PathBuf,
    target: &OwnedFd,
    made_by: MountMaker,
    request: &MountRequest<'_>,
) -> Result<Mountpoint, MountError> {
    let mountpoint = Mountpoint {
        identity: identify(device, &path, target),
        path,
        made_by,
        image: None,
        fork_server: None,
    };
    for propagation in request.generic.propagation() {
        if let Err(errno) = rustix::mount::mount_change(&mountpoint.path, *propagation) {
            let _ = mountpoint.detach();
            return Err(MountError::System {
                action: "change the propagation of",
                mountpoint: mountpoint.path,
                source: errno.into(),
            });
        }
    }
    Ok(mountpoint)
}

/// The mount of `device` that another process made: on `path`, as mount `id`.
pub(super) fn known(
    device: &OwnedFd,
    path: PathBuf,
    id: Option<u64>,
    made_by: MountMaker,
    image: Option<ImageServer>,
) -> Mountpoint {
    if let Some(mut server) = image {
        let mut identity = id.map(|id| MountIdentity {
            id,
            device: server.device,
        });
        if identity.is_none() {
            // That process may have died before it knew.
            let table = MountTable::read().unwrap_or_default();
            identity = table.of_image(server.connection).map(MountIdentity::of);
            server.device = identity.map_or(server.device, |identity| identity.device);
        }
        let image = Some(server);
        return Mountpoint {
            path,
            identity,
            made_by,
            image,
            fork_server: None,
        };
    }
    let table = MountTable::read().unwrap_or_default();
    let found = match (id, connection(device)) {
        // It may be gone, and another mount have its id.
        (Some(id), Some(device)) => {
            let identity = Some(MountIdentity { id, device });
            return Mountpoint {
                path,
                identity,
                made_by,
                image: None,
                fork_server: None,
            };
        }
        (None, Some(device)) => table.of_device(device).last(),
        (Some(id), None) => table.by_id(id),
        (None, None) => table.mounted_on(&path),
    };
    let found = found.filter(|entry| entry.fs_type == FS_TYPE);
    Mountpoint {
        identity: found.map(MountIdentity::of),
        path: found.map_or(path, |entry| entry.path.clone()),
        made_by,
        image: None,
        fork_server: None,
    }
}

/// The device number of the mount that `device` serves. Older kernels do not report it.
fn connection(device: &OwnedFd) -> Option<DeviceNumber> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    let mut lines = about.lines();
    let number = lines.find_map(|line| line.strip_prefix("fuse_connection:"))?;
    Some(DeviceNumber {
        major: 0,
        minor: number.trim().parse().ok()?,
    })
}

/// Which mount of `device` was just made on the directory `target`, which is at `path`: the one in
/// the mount of that directory. Where mounts propagate there can be others.
fn identify(device: &OwnedFd, path: &Path, target: &OwnedFd) -> Option<MountIdentity> {
    let table = MountTable::read().ok()?;
    let parent = mount_of(target);
    let in_parent = |entry: &&MountEntry| parent.is_none_or(|parent| entry.parent == parent);
    let found = match connection(device) {
        Some(number) => table.of_device(number).filter(in_parent).last(),
        None => table
            .mounted_on(path)
            .filter(|entry| entry.fs_type == FS_TYPE),
    };
    found.map(MountIdentity::of)
}

pub(super) fn refused(path: &Path, errno: Errno) -> MountError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => MountError::NoMountpoint(path),
        Errno::NOTDIR => MountError::NotADirectory(path),
        errno => MountError::System {
            action: "mount on",
            mountpoint: path,
            source: errno.into(),
        },
    }
}

/// The path without symbolic links. Mounts of castore-fs are not entered: one may be without a
/// server.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |source: io::Error| MountError::System {
        action: "find",
        mountpoint: path.to_owned(),
        source,
    };
    let table = MountTable::read().map_err(failed)?;
    let steps = trail(path, &table, |_| false).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory => MountError::NoMountpoint(path.to_owned()),
        _ => failed(error),
    })?;
    let last = steps.into_iter().next_back();
    Ok(last.map_or_else(|| PathBuf::from("/"), |last| last.path))
}

/// Opens the directory to mount on, after all checks.
pub(super) fn open_target(path: &Path, request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    request.protected_files.check(path)?;
    // Not with O_DIRECTORY: where an automount waits for this mount, that would wait for it too.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let opened = opened.map_err(|errno| refused(path, errno))?;
    let found = rustix::fs::fstat(&opened).map_err(|errno| refused(path, errno))?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Ok(opened),
        _ => Err(MountError::NotADirectory(path.to_owned())),
    }
}

fn mount_directly(
    device: &OwnedFd,
    target: &OwnedFd,
    request: &MountRequest<'_>,
) -> Result<(), Errno> {
    let mut options = format!(
        "fd={},rootmode=40555,user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    options.push_str(&request.generic.data());
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    // The directory that was checked, wherever its path leads by now.
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::mount::mount(
        request.source,
        target,
        FS_TYPE,
        request.generic.flags(),
        options.as_c_str(),
    )
}

/// Mounts by `fusermount3`, and receives the descriptor from it.
fn mount_by_helper(path: &Path, request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
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
        "{},default_permissions,max_read={MAX_READ},subtype=castore-fs,fsname={source}",
        request.generic.for_helper()
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
            reported: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
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
    /// The mount `identity` of an image on `path`, which this process serves from the hidden mount `server`.
    pub(super) fn of_image(path: PathBuf, identity: MountIdentity, server: ImageServer) -> Self {
        Self {
            path,
            identity: Some(identity),
            made_by: MountMaker::Ourselves,
            image: Some(server),
            fork_server: None,
        }
    }

    /// The mount of an image on `path` that is about to be made, and that the connection of this number serves.
    pub(super) fn of_next_image(path: PathBuf, connection: u32) -> Self {
        Self {
            path,
            identity: None,
            made_by: MountMaker::Ourselves,
            image: Some(ImageServer {
                connection,
                device: DeviceNumber::default(),
            }),
            fork_server: None,
        }
    }

    /// The same, of which helpers of `fork_server` unmount an image.
    pub fn with_fork_server(self, fork_server: Option<Arc<ForkServer>>) -> Self {
        Self {
            fork_server,
            ..self
        }
    }

    /// What serves the image that it shows, if it is the mount of one.
    pub(super) fn image(&self) -> Option<ImageServer> {
        self.image
    }

    /// The number of the FUSE connection that `device` serves for this mount: from the kernel, or
    /// else the minor number of the mount's device.
    pub fn connection(&self, device: &OwnedFd) -> Option<u64> {
        if let Some(server) = self.image {
            return Some(server.connection.into());
        }
        let number = connection(device).or_else(|| Some(self.identity.as_ref()?.device));
        number.map(|number| u64::from(number.minor))
    }

    /// Which mount it is, if that is known.
    pub(super) fn identity(&self) -> Option<MountIdentity> {
        self.identity
    }

    /// The id of the mount in mountinfo.
    pub(super) fn id(&self) -> Option<u64> {
        self.identity.map(|identity| identity.id)
    }

    /// Its maker.
    pub(super) fn made_by(&self) -> MountMaker {
        self.made_by
    }

    /// Whether the kernel checks modes itself, as it does in every mount that this program or
    /// fusermount3 makes. One that another program made may not, which is known only in this mount
    /// namespace.
    pub(super) fn has_default_permissions(&self) -> bool {
        let has = |entry: &MountEntry| {
            let mut options = entry.fs_options.split(',');
            options.any(|option| option == "default_permissions")
        };
        let is_seen = || {
            let table = MountTable::read().ok()?;
            let device = self.identity?.device;
            Some(table.of_device(device).any(has))
        };
        self.made_by != MountMaker::Others || is_seen().unwrap_or(false)
    }

    /// Where it was mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The present mount point, which is another if it or a directory above it was moved; the
    /// original one if the mount is gone.
    pub fn current_path(&self) -> PathBuf {
        let found = self.identity.and_then(|identity| identity.path().ok()?);
        found.unwrap_or_else(|| self.path.clone())
    }

    /// Whether the mount is still in this mount namespace, wherever that is.
    pub fn is_mounted(&self) -> bool {
        match self.identity {
            Some(identity) => identity.path().is_ok_and(|path| path.is_some()),
            // Another program mounted it where it cannot be seen from here.
            None => self.made_by == MountMaker::Others,
        }
    }

    /// Unmounts it where it is now. `has_ended` is whether its connection has ended.
    pub(super) fn unmount(&self, has_ended: impl Fn() -> bool) -> io::Result<UnmountOutcome> {
        if has_ended() {
            return Ok(UnmountOutcome::Cleanly);
        }
        let Some(identity) = self.identity else {
            return Ok(match self.made_by {
                MountMaker::Others => UnmountOutcome::NotOurs,
                _ => UnmountOutcome::InUse(MountUsers::default()),
            });
        };
        match identity.unmount(|path, flags| self.umount(path, flags)) {
            Ok(MountState::Blocked(obstacles)) => Ok(UnmountOutcome::Blocked(obstacles)),
            Ok(MountState::Gone | MountState::Detached) => {
                let deadline = Instant::now() + END_PATIENCE;
                while !has_ended() {
                    if Instant::now() > deadline {
                        return Ok(self.in_use());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(UnmountOutcome::Cleanly)
            }
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && self.made_by == MountMaker::Others =>
            {
                Ok(UnmountOutcome::NotOurs)
            }
            Err(error) => Err(error),
        }
    }

    /// Its users, after it was unmounted.
    pub(super) fn in_use(&self) -> UnmountOutcome {
        let device = self.identity.map(|identity| identity.device);
        UnmountOutcome::InUse(device.map(MountUsers::find).unwrap_or_default())
    }

    fn umount(&self, path: &Path, flags: UnmountFlags) -> io::Result<()> {
        match self.made_by {
            MountMaker::Helper => unmount_by_helper(path, flags.contains(UnmountFlags::DETACH)),
            _ if self.image.is_some() => unmount_image(self.fork_server.as_deref(), path, flags),
            _ => Ok(rustix::mount::unmount(path, flags)?),
        }
    }

    /// Detaches the mount, which no process serves; returns whether it was there.
    pub fn detach(&self) -> io::Result<bool> {
        match self.identity {
            Some(identity) => {
                let fork_server = self.image.is_some().then_some(self.fork_server.as_deref());
                detach_mount(identity, fork_server)
            }
            None => Ok(false),
        }
    }

    /// The device by which the kernel knows how far to read ahead.
    pub(super) fn bdi(&self) -> Option<DeviceNumber> {
        let of_image = self.image.map(ImageServer::bdi);
        of_image.or_else(|| Some(self.identity?.device))
    }
}

impl ImageServer {
    /// The device of the FUSE connection.
    pub(super) fn bdi(self) -> DeviceNumber {
        DeviceNumber {
            major: 0,
            minor: self.connection,
        }
    }
}

/// Sets how far the kernel reads ahead of sequential readers on the file system `device`. Without the
/// right to, the kernel's default of 128 KiB stays.
pub(super) fn set_read_ahead(device: Option<DeviceNumber>, kib: u32) {
    let Some(device) = device else {
        return;
    };
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, kib.to_string()) {
        tracing::debug!(%setting, %error, "read-ahead stays at the kernel's default");
    }
}

fn unmount_by_helper(path: &Path, lazily: bool) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .arg(if lazily { "-uz" } else { "-u" })
        .arg("--")
        .arg(path)
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

/// Unmounts the image that is mounted on `path`, by a helper of `fork_server` if there is one.
fn unmount_image(
    fork_server: Option<&ForkServer>,
    path: &Path,
    flags: UnmountFlags,
) -> io::Result<()> {
    let Some(fork_server) = fork_server else {
        return Ok(rustix::mount::unmount(path, flags)?);
    };
    let is_gone = || {
        let table = MountTable::read().unwrap_or_default();
        !table.mounted_on(path).is_some_and(MountEntry::is_ours)
    };
    mounter::unmount(|| fork_server.mounter(), path, flags, is_gone)
}

/// Detaches the mount of this program at `path`; whether there was one. For mounts that no process
/// serves: a served one should be ended by its server.
pub fn detach(path: &Path, fork_server: Option<&ForkServer>) -> io::Result<bool> {
    let path = resolve(path).map_err(io::Error::other)?;
    let table = MountTable::read()?;
    match table.mounted_on(&path) {
        Some(entry) if entry.is_ours() => detach_entry(entry, fork_server),
        _ => Ok(false),
    }
}

fn detach_entry(entry: &MountEntry, fork_server: Option<&ForkServer>) -> io::Result<bool> {
    let fork_server = entry.image_source().is_some().then_some(fork_server);
    detach_mount(MountIdentity::of(entry), fork_server)
}

/// Detaches a mount that no process serves; whether it was there. `image` is whose helper does it, if it
/// is the mount of an image.
fn detach_mount(identity: MountIdentity, image: Option<Option<&ForkServer>>) -> io::Result<bool> {
    if identity.path()?.is_none() {
        return Ok(false);
    }
    let detach = |path: &Path, flags| {
        let flags = flags | UnmountFlags::DETACH;
        if let Some(fork_server) = image {
            return unmount_image(fork_server, path, flags);
        }
        match rustix::mount::unmount(path, flags) {
            Err(Errno::PERM) => unmount_by_helper(path, true),
            outcome => Ok(outcome?),
        }
    };
    match identity.unmount(detach)? {
        MountState::Blocked(obstacles) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("first unmount {obstacles}"),
        )),
        MountState::Gone | MountState::Detached => Ok(true),
    }
}

/// Detaches mounts of ours on `path` whose server is gone. mount(2) would put the new mount on top of
/// them, and they would be back when that ends.
pub(super) fn remove_dead_mount(
    path: &Path,
    fork_server: Option<&ForkServer>,
) -> Result<(), MountError> {
    let failed = |source| MountError::System {
        action: "find",
        mountpoint: path.to_owned(),
        source,
    };
    loop {
        let table = MountTable::read().map_err(failed)?;
        match table.mounted_on(path) {
            Some(entry) if entry.is_ours() => {
                let is_dead = match entry.image_source() {
                    // Much of an image can be read although no process serves it.
                    Some((connection, _)) => {
                        let look = move || servers::may_be_served(connection);
                        deadline::within(LIFE_SIGN, "life-sign", look) == Some(false)
                    }
                    None => is_dead(path),
                };
                if !is_dead {
                    return Err(MountError::AlreadyMounted(path.to_owned()));
                }
                detach_entry(entry, fork_server).map_err(|error| MountError::DeadMount {
                    mountpoint: path.to_owned(),
                    why: error.to_string(),
                })?;
                let path = path.display();
                tracing::warn!(%path, "unmounted a mount without a server");
            }
            _ => return Ok(()),
        }
    }
}

/// Whether the mount at `path` has no server any more: no process has its descriptor.
fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    // A mount that is served can take its time.
    let asked = deadline::within(LIFE_SIGN, "life-sign", move || {
        rustix::fs::statfs(&path).map(drop)
    });
    asked == Some(Err(Errno::NOTCONN))
}
