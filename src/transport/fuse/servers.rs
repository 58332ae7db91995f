//! The processes that serve a FUSE connection, as `/proc` shows them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::fork_server::HELPERS;

/// The arguments of the process of the directory `process`, if it serves the FUSE connection.
pub(super) fn server_arguments(process: &Path, connection: u64) -> Option<Vec<OsString>> {
    if serves(process, connection) != Ok(true) {
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

/// Whether any process that can answer has the descriptor of the FUSE connection `number`, as far as that
/// can be seen: also if a descriptor does not show which connection it is of (Linux before 6.16).
pub(super) fn may_be_served(number: u64) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.map(|process| process.path());
    // A helper outlives the server that it is of by some time, and answers nothing.
    let is_helper = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        HELPERS.contains(&name.trim_end())
    };
    let mut processes = processes.filter(|process| !is_helper(process));
    processes.any(|process| {
        !matches!(
            serves(&process, number),
            Ok(false) | Err(UnknownServer::Process)
        )
    })
}

/// Why it is not known which FUSE connections a process serves.
#[derive(Debug, PartialEq, Eq)]
enum UnknownServer {
    /// It is gone, or may not be looked at.
    Process,
    /// The kernel does not show it for one of its descriptors.
    Connection,
}

/// Whether the process of the directory `process` has the descriptor of the FUSE connection `number`.
fn serves(process: &Path, number: u64) -> Result<bool, UnknownServer> {
    let wanted = format!("fuse_connection:\t{number}");
    let mut serves = Ok(false);
    let descriptors = fs::read_dir(process.join("fd")).map_err(|_| UnknownServer::Process)?;
    for descriptor in descriptors.flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_else(|_| PathBuf::new());
        if target != Path::new("/dev/fuse") {
            continue;
        }
        let about = process.join("fdinfo").join(descriptor.file_name());
        let about = fs::read_to_string(about).unwrap_or_default();
        if about.lines().any(|line| line == wanted) {
            return Ok(true);
        }
        if !about.contains("fuse_connection:") {
            serves = Err(UnknownServer::Connection);
        }
    }
    serves
}
