//! Mounting and unmounting EROFS in a process of its own.
//!
//! Mounting an image reads it, and unmounting it waits for what is being read of it: both wait for
//! answers of the process that serves the image. A thread of that process that waited for them could
//! not be killed, and neither could the process: its descriptors would stay open, and nothing would
//! answer. So a helper, forked by the [`ForkServer`](super::fork_server::ForkServer), makes these calls. If the server dies meanwhile,
//! the helper waits for the next one, or gets errors if there is none.
//!
//! A helper does one job: a message brings it, with descriptors, and a message returns the outcome.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Advice, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::mount_table::DeviceNumber;
use super::unmount::MountIdentity;

/// The longest message: a path of 4,096 bytes, each as a number of JSON, and the rest.
const LONGEST: usize = 64 << 10;
/// Metadata that is read ahead of the first walk, in bytes, at most: that of some 200,000 names.
const READ_AHEAD: u64 = 16 << 20;
/// The most that EROFS reads ahead of sequential readers, in KiB. A reader waits for each of its windows as a
/// whole, and the FUSE file below reads ahead of EROFS anyway. docs/performance.md
/// has the times with other values ("One large file").
const EROFS_READ_AHEAD_KIB: u32 = 128;
/// How long umount(2) may take before it counts as done if the mount is out of the tree.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// The longest component of a path.
const NAME_MAX: usize = 255;

/// An image to mount.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MountJob {
    /// The image's path below the directory that comes with the message.
    pub image: String,
    /// What mountinfo shows as the source.
    pub source: String,
    /// Bytes of metadata at the start of the image.
    pub metadata: u64,
    /// How far the mount reads ahead of sequential readers, in KiB; EROFS never more than
    /// [`EROFS_READ_AHEAD_KIB`].
    pub read_ahead_kib: u32,
    /// `MOUNT_ATTR_*`.
    pub attributes: u32,
    /// Options of the file system without a value.
    pub flags: Vec<String>,
    /// Options of the file system with a value.
    pub values: Vec<(String, String)>,
    /// `MS_SHARED` and its like, to be set once it is mounted.
    pub propagation: Vec<u32>,
    /// Whether the target is the root of a mount, in whose place it is mounted: beneath it first, and then that
    /// mount is detached. At no moment is nothing mounted there.
    pub in_place_of_target: bool,
}

/// `MOVE_MOUNT_BENEATH` of the kernel's `mount.h` (Linux 6.5).
const BENEATH: u32 = 0x200;

#[derive(Debug, Serialize, Deserialize)]
enum MounterJob {
    Mount(MountJob),
    Unmount { path: Vec<u8>, flags: u32 },
}

/// What comes of a job.
#[derive(Debug, Serialize, Deserialize)]
enum JobOutcome {
    Mounted(MountIdentity),
    Unmounted,
    Failed(MounterRefusal),
}

/// Why a job was not done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MounterRefusal {
    /// What was tried.
    pub step: MountStep,
    /// The errno of the system call.
    pub errno: i32,
    /// The message of the file system.
    pub words: String,
}

/// What a helper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MountStep {
    /// Open the image.
    Open,
    /// Give the image the name that mountinfo shows.
    Name,
    /// Find EROFS in the kernel.
    FindErofs,
    /// Set its options.
    Configure,
    /// Have EROFS read the image.
    Read,
    /// Mount it.
    Attach,
    /// Set its propagation.
    Propagate,
    /// Unmount it.
    Unmount,
    /// Reach the helper.
    Help,
}

impl MounterRefusal {
    fn of(step: MountStep) -> impl Fn(Errno) -> Self {
        move |errno| Self {
            step,
            errno: errno.raw_os_error(),
            words: String::new(),
        }
    }

    fn helpless(error: &io::Error) -> Self {
        Self {
            step: MountStep::Help,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            words: String::new(),
        }
    }

    pub(super) fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Has a helper mount the image that is in `directory`, on the directory `target`. Both are closed here
/// before the helper begins, so that only the helper can be the last to use the image. `start_helper` gives
/// the channel to a new helper.
pub(super) fn mount(
    start_helper: impl FnOnce() -> io::Result<OwnedFd>,
    job: MountJob,
    directory: OwnedFd,
    target: &OwnedFd,
) -> Result<MountIdentity, MounterRefusal> {
    let channel = start_helper();
    let channel = channel.map_err(|error| MounterRefusal::helpless(&error))?;
    let sent = send(
        &channel,
        &MounterJob::Mount(job),
        &[directory.as_fd(), target.as_fd()],
    );
    drop(directory);
    sent.map_err(|error| MounterRefusal::helpless(&error))?;
    match receive_outcome(&channel, None) {
        Ok(JobOutcome::Mounted(identity)) => Ok(identity),
        Ok(JobOutcome::Failed(refusal)) => Err(refusal),
        Ok(JobOutcome::Unmounted) => {
            Err(MounterRefusal::helpless(&io::ErrorKind::InvalidData.into()))
        }
        Err(error) => Err(MounterRefusal::helpless(&error)),
    }
}

/// Has a helper unmount `path`, or a thread if there is no helper any more. One that takes long counts as
/// done if `is_gone`: the mount is out of the tree, and the helper continues.
///
/// No thread that serves calls this: what is unmounted may have to be read first.
pub(super) fn unmount(
    start_helper: impl FnOnce() -> io::Result<OwnedFd>,
    path: &Path,
    flags: UnmountFlags,
    is_gone: impl Fn() -> bool,
) -> io::Result<()> {
    let job = MounterJob::Unmount {
        path: path.as_os_str().as_bytes().to_vec(),
        flags: flags.bits(),
    };
    let by_helper = || {
        let channel = start_helper()?;
        send(&channel, &job, &[])?;
        receive_outcome(&channel, Some(UNMOUNT_PATIENCE))
    };
    match by_helper() {
        Ok(JobOutcome::Failed(refusal)) => Err(refusal.error()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => match is_gone() {
            true => Ok(()),
            false => Err(error),
        },
        Err(error) => {
            tracing::warn!(%error, "the helper process that unmounts images is gone");
            unmount_by_thread(path, flags, is_gone)
        }
    }
}

fn unmount_by_thread(
    path: &Path,
    flags: UnmountFlags,
    is_gone: impl Fn() -> bool,
) -> io::Result<()> {
    let (done, outcome) = std::sync::mpsc::channel();
    let path = path.to_owned();
    let work = move || {
        let _ = done.send(rustix::mount::unmount(path, flags));
    };
    std::thread::Builder::new()
        .name("unmount-image".to_owned())
        .spawn(work)?;
    match outcome.recv_timeout(UNMOUNT_PATIENCE) {
        Ok(outcome) => Ok(outcome?),
        Err(_) if is_gone() => Ok(()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn send(
    channel: &OwnedFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let message = [IoSlice::new(&message)];
    loop {
        match rustix::net::sendmsg(channel, &message, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            outcome => return outcome.map(drop).map_err(io::Error::from),
        }
    }
}

/// A message and its descriptors; nothing when the other end is closed.
fn receive(channel: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; LONGEST];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut message)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(channel, &mut slices, &mut ancillary, flags) {
            Err(Errno::INTR) => continue,
            received => received?.bytes,
        };
        let descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        message.truncate(received);
        return Ok((message, descriptors));
    }
}

fn receive_outcome(channel: &OwnedFd, patience: Option<Duration>) -> io::Result<JobOutcome> {
    if let Some(patience) = patience {
        let mut polled = [PollFd::new(channel, PollFlags::IN)];
        let patience = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut polled, Some(&patience)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (message, _) = receive(channel)?;
    match message[..] {
        [] => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Ok(serde_json::from_slice(&message)?),
    }
}

// What follows runs in the helper, a process with one thread.

/// Does the job that `channel` brings.
pub(super) fn work(channel: &OwnedFd) {
    let Ok((message, descriptors)) = receive(channel) else {
        return;
    };
    let outcome = match (serde_json::from_slice(&message), &descriptors[..]) {
        (Ok(MounterJob::Mount(job)), [directory, target]) => {
            make_mount(channel, &job, directory, target)
        }
        (Ok(MounterJob::Unmount { path, flags }), []) => make_unmount(path, flags),
        _ => return,
    };
    let _ = send(channel, &outcome.unwrap_or_else(JobOutcome::Failed), &[]);
}

fn make_unmount(path: Vec<u8>, flags: u32) -> Result<JobOutcome, MounterRefusal> {
    let path = PathBuf::from(OsString::from_vec(path));
    let unmounted = rustix::mount::unmount(path, UnmountFlags::from_bits_retain(flags));
    unmounted.map_err(MounterRefusal::of(MountStep::Unmount))?;
    Ok(JobOutcome::Unmounted)
}

/// Whether the process that wants the outcome is gone.
fn is_alone(channel: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(channel, PollFlags::empty())];
    let found = rustix::event::poll(&mut polled, Some(&Timespec::default()));
    found.is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

fn make_mount(
    channel: &OwnedFd,
    job: &MountJob,
    directory: &OwnedFd,
    target: &OwnedFd,
) -> Result<JobOutcome, MounterRefusal> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let image = rustix::fs::openat(directory, &*job.image, flags, Mode::empty());
    let image = image.map_err(MounterRefusal::of(MountStep::Open))?;
    // EROFS reads metadata by the page, and each would be a request.
    let ahead = std::num::NonZeroU64::new(job.metadata.min(READ_AHEAD));
    let _ = rustix::fs::fadvise(&image, 0, ahead, Advice::WillNeed);
    name(&image, &job.source).map_err(MounterRefusal::of(MountStep::Name))?;
    let erofs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC);
    let erofs = erofs.map_err(MounterRefusal::of(MountStep::FindErofs))?;
    let words = |step| {
        let erofs = &erofs;
        move |errno: Errno| MounterRefusal {
            words: messages(erofs),
            ..MounterRefusal::of(step)(errno)
        }
    };
    let configure = || {
        rustix::mount::fsconfig_set_string(&erofs, "source", &*job.source)?;
        for flag in &job.flags {
            rustix::mount::fsconfig_set_flag(&erofs, &**flag)?;
        }
        for (key, value) in &job.values {
            rustix::mount::fsconfig_set_string(&erofs, &**key, &**value)?;
        }
        Ok(())
    };
    configure().map_err(words(MountStep::Configure))?;
    let before = read_ahead_settings();
    rustix::mount::fsconfig_create(&erofs).map_err(words(MountStep::Read))?;
    let made = read_ahead_settings();
    // Which one is of this file system, the kernel does not report; usually no other comes meanwhile.
    if let [setting] = &made.difference(&before).collect::<Vec<_>>()[..] {
        let kib = job.read_ahead_kib.min(EROFS_READ_AHEAD_KIB);
        let _ = std::fs::write(setting, kib.to_string());
    }
    let attach = || {
        let attributes = MountAttrFlags::from_bits_retain(job.attributes);
        let mounted = rustix::mount::fsmount(&erofs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let found = rustix::fs::statx(
            &mounted,
            "",
            AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
            StatxFlags::MNT_ID,
        )?;
        let mut flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        if job.in_place_of_target {
            flags |= MoveMountFlags::from_bits_retain(BENEATH);
            // The next process continues with what is mounted.
            if is_alone(channel) {
                return Err(Errno::PIPE);
            }
        }
        rustix::mount::move_mount(&mounted, "", target, "", flags)?;
        if job.in_place_of_target {
            // By the descriptor: the path leads to whatever is on top.
            let covering = format!("/proc/self/fd/{}", target.as_raw_fd());
            rustix::mount::unmount(&*covering, UnmountFlags::DETACH)?;
        }
        let identity = MountIdentity {
            id: found.stx_mnt_id,
            device: DeviceNumber {
                major: found.stx_dev_major,
                minor: found.stx_dev_minor,
            },
        };
        Ok((mounted, identity))
    };
    let (mounted, identity) = attach().map_err(words(MountStep::Attach))?;
    let target_path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
    for propagation in &job.propagation {
        let propagation = MountPropagationFlags::from_bits_retain(*propagation);
        // What is in the place of another mount stays: nothing else is there any more.
        if let Err(errno) = rustix::mount::mount_change(&*target_path, propagation)
            && !job.in_place_of_target
        {
            let _ = rustix::mount::unmount(&*target_path, UnmountFlags::DETACH);
            return Err(MounterRefusal::of(MountStep::Propagate)(errno));
        }
    }
    Ok(JobOutcome::Mounted(identity))
}

/// The settings of how far EROFS file systems read ahead.
fn read_ahead_settings() -> BTreeSet<PathBuf> {
    let all = std::fs::read_dir("/sys/class/bdi").into_iter().flatten();
    let all = all.flatten();
    let of_erofs = all.filter(|bdi| bdi.file_name().as_bytes().starts_with(b"erofs-"));
    of_erofs
        .map(|bdi| bdi.path().join("read_ahead_kb"))
        .collect()
}

/// Makes `source`, as a path from the working directory of this process, lead to `image`: EROFS opens
/// the file that its source names, and mountinfo shows that name for as long as it is mounted. The working
/// directory is the top of a file system in memory that is attached nowhere.
fn name(image: &OwnedFd, source: &str) -> Result<(), Errno> {
    let memory = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&memory)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let memory = rustix::mount::fsmount(&memory, flags, MountAttrFlags::empty())?;
    rustix::process::fchdir(&memory)?;
    let mut at = PathBuf::new();
    let mut parts = Path::new(source).components().peekable();
    while let Some(part) = parts.next() {
        at.push(part);
        match parts.peek() {
            Some(_) => rustix::fs::mkdir(&at, Mode::RWXU)?,
            None => {
                let image = format!("/proc/self/fd/{}", image.as_raw_fd());
                rustix::fs::symlink(image, &at)?;
            }
        }
    }
    Ok(())
}

/// `source` if it can be a path as [`name`] makes it, else what of it can be.
pub(super) fn as_source(prefix: &str, source: &str) -> String {
    let whole = format!("{prefix}{source}");
    let can_be = |part: &str| part.len() <= NAME_MAX && part != "." && part != "..";
    let is_path = whole.split('/').all(can_be)
        && !whole.ends_with('/')
        && !whole.contains('\0')
        && whole.len() < libc::PATH_MAX as usize / 2;
    match is_path {
        true => whole,
        false => prefix.trim_end_matches(':').to_owned(),
    }
}

/// The messages of the file system about the context that it was configured in (fsopen(2)).
fn messages(context: &OwnedFd) -> String {
    let mut words = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        // A letter for the level and a blank go before each message.
        let message = String::from_utf8_lossy(&buffer[..length]);
        let message = message.trim();
        words.push(
            message
                .split_once(' ')
                .map_or(message, |(_, text)| text)
                .to_owned(),
        );
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_or_shortened_to_one() {
        let source = |url| as_source("castore-fs:7:", url);
        assert_eq!(source("local:/srv/store"), "castore-fs:7:local:/srv/store");
        assert_eq!(source("grpc+http://h:1"), "castore-fs:7:grpc+http://h:1");
        assert_eq!(source("local:/srv/../store"), "castore-fs:7");
        assert_eq!(source("https://h/"), "castore-fs:7");
        assert_eq!(source(&"x".repeat(250)), "castore-fs:7");
    }
}
