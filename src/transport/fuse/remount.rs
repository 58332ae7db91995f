//! Changing the flags of an existing mount, for `mount -o remount`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::detour;
use super::generic_options::GenericOptions;
use super::mount_table::{DeviceNumber, MountEntry, MountTable};
use super::mountpoint::{FS_TYPE, MountError, resolve};

/// How long the search for a mount's server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the look at one process may take.
const PROCESS_PATIENCE: Duration = Duration::from_millis(500);

/// A mount of castore-fs, whichever process serves it.
#[derive(Clone, Debug)]
pub struct ExistingMount(MountEntry);

impl ExistingMount {
    /// The one at `path`.
    pub fn find(path: &Path) -> Result<Self, MountError> {
        let path = resolve(path)?;
        let table = MountTable::read().map_err(|source| MountError::System {
            action: "find",
            mountpoint: path.clone(),
            source,
        })?;
        match table.mounted_on(&path) {
            Some(entry) if entry.fs_type == FS_TYPE => Ok(Self(entry.clone())),
            _ => Err(MountError::NothingMounted(path)),
        }
    }

    /// The first column of `/proc/mounts`: the store's URL.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether it has this option of FUSE: `allow_other`, `user_id=0`.
    pub fn has_fuse_option(&self, option: &str) -> bool {
        self.0.fs_options.split(',').any(|has| has == option)
    }

    /// Whether it has the flags of `options`.
    pub fn has(&self, options: &GenericOptions) -> bool {
        options.are_those_of(&self.0)
    }

    /// Gives it the flags of `options`, and takes away all others.
    pub fn remount(&self, options: &GenericOptions) -> Result<(), MountError> {
        let failed = |errno: rustix::io::Errno| MountError::System {
            action: "remount",
            mountpoint: self.0.path.clone(),
            source: errno.into(),
        };
        rustix::mount::mount_remount(&self.0.path, options.flags(), c"").map_err(failed)?;
        for propagation in options.propagation() {
            rustix::mount::mount_change(&self.0.path, *propagation).map_err(failed)?;
        }
        Ok(())
    }

    /// The arguments of the processes that serve it, program first: of those that this process may look
    /// at, if the kernel tells. A process that holds the connection of an earlier mount with the same
    /// number is among them.
    ///
    /// A process that cannot be looked at within half a second, since it waits itself, is left out.
    pub fn servers_arguments(&self) -> Vec<Vec<OsString>> {
        let device = self.0.device;
        let deadline = Instant::now() + PATIENCE;
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.take_while(|_| Instant::now() < deadline);
        let is_process = |name: OsString| name.as_bytes().iter().all(u8::is_ascii_digit);
        let processes = processes.filter(|entry| is_process(entry.file_name()));
        let arguments = processes.filter_map(|process| {
            let look = move || server_arguments(&process.path(), device);
            detour::within(PROCESS_PATIENCE, "servers", look)?
        });
        arguments.collect()
    }
}

/// The arguments of the process of the directory `process`, if it serves the mount of `device`.
fn server_arguments(process: &Path, device: DeviceNumber) -> Option<Vec<OsString>> {
    if !serves(process, device).unwrap_or(false) {
        return None;
    }
    let line = fs::read(process.join("cmdline")).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let arguments = line.split(|&byte| byte == 0);
    Some(
        arguments
            .map(|one| OsString::from_vec(one.to_vec()))
            .collect(),
    )
}

/// Whether the process of the directory `process` has the descriptor of the FUSE connection `device`.
fn serves(process: &Path, device: DeviceNumber) -> io::Result<bool> {
    let wanted = format!("fuse_connection:\t{}", device.minor);
    for descriptor in fs::read_dir(process.join("fd"))? {
        let descriptor = descriptor?;
        let target = fs::read_link(descriptor.path()).unwrap_or_else(|_| PathBuf::new());
        if target == Path::new("/dev/fuse") {
            let about = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()));
            if about.is_ok_and(|about| about.lines().any(|line| line == wanted)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
