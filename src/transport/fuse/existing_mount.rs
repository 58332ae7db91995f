//! Changing the flags of an existing mount, for `mount -o remount`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::deadline;
use super::generic_options::GenericOptions;
use super::mount_error::MountError;
use super::mount_table::{MountEntry, MountTable};
use super::mountpoint::resolve;
use super::servers::server_arguments;

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
            Some(entry) if entry.is_ours() => Ok(Self(entry.clone())),
            _ => Err(MountError::NothingMounted(path)),
        }
    }

    /// The store's URL: the first column of `/proc/mounts`, or the end of it.
    pub fn source(&self) -> &str {
        let image = self.0.image_source();
        image.map_or(&*self.0.source, |(_, url)| url)
    }

    /// The number of the FUSE connection that serves it.
    fn connection(&self) -> u64 {
        let image = self.0.image_source();
        image.map_or(self.0.device.minor.into(), |(connection, _)| connection)
    }

    /// Whether it has this option of FUSE: `allow_other`, `user_id=0`.
    pub fn has_fuse_option(&self, option: &str) -> bool {
        // An image is for all users.
        if self.0.image_source().is_some() && option == "allow_other" {
            return true;
        }
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
    /// at, if the kernel reports it. A process that holds the connection of an earlier mount with the same
    /// number is among them.
    ///
    /// A process that cannot be looked at within half a second, since it waits itself, is left out.
    pub fn servers_arguments(&self) -> Vec<Vec<OsString>> {
        let connection = self.connection();
        let deadline = Instant::now() + PATIENCE;
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.take_while(|_| Instant::now() < deadline);
        let is_process = |name: OsString| name.as_bytes().iter().all(u8::is_ascii_digit);
        let processes = processes.filter(|entry| is_process(entry.file_name()));
        let arguments = processes.filter_map(|process| {
            let look = move || server_arguments(&process.path(), connection);
            deadline::within(PROCESS_PATIENCE, "servers", look)?
        });
        arguments.collect()
    }
}
