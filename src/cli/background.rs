//! The process in the background that `mount.castore-fs` starts.
//!
//! It writes `READY=1` to its standard output, which is a pipe. If the helper is gone by then, because the
//! user interrupted mount(8), it unmounts and ends as well.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::Child;

/// Set for the process in the background.
pub(super) const BACKGROUND: &str = "CASTORE_FS_MOUNT_HELPER";
/// The message of that process, and its name in `ps`.
const READY: &str = "READY=1";
pub(super) const PROGRAM: &CStr = c"castore-fs";

/// Whether this process is the one in the background.
pub(super) fn is_background() -> bool {
    std::env::var_os(BACKGROUND).is_some()
}

/// Detaches this process from the terminal and the session of mount(8), and gives it the program's
/// name.
pub(super) fn become_background() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::thread::set_name(PROGRAM)?;
    Ok(())
}

/// Reports that the mount is up, and closes what mount(8) holds the other end of. Fails if that has
/// ended.
pub(super) fn report_ready() -> io::Result<()> {
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    writeln!(output, "{READY}")
}

/// Whether the mount is up; it is not if the process ends before it reports that.
pub(super) fn wait_until_ready(child: &mut Child) -> io::Result<bool> {
    let Some(output) = child.stdout.take() else {
        return Ok(false);
    };
    for line in BufReader::new(output).lines() {
        if line? == READY {
            return Ok(true);
        }
    }
    Ok(false)
}
