//! Files that hold secrets or certificates.
//!
//! A path without a slash is the name of a systemd credential if the unit has any: systemd puts
//! them (`LoadCredential=`) into a directory that only the unit can read, and names it in
//! `$CREDENTIALS_DIRECTORY`. So one URL works in every unit.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The path of the file that a URL calls `path`.
pub(crate) fn place(path: &Path) -> PathBuf {
    let is_name = path.components().count() == 1 && path.is_relative();
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(dir) if is_name => Path::new(&dir).join(path),
        _ => path.to_owned(),
    }
}

/// As [`read`], of a secret. Logs a warning if every user can read it.
pub(super) fn read_secret(parameter: &str, path: &Path) -> Result<Vec<u8>, String> {
    warn_if_public(&place(path));
    read(parameter, path)
}

/// Logs a warning if every user of this machine can read the file `path`, which holds a secret.
pub(crate) fn warn_if_public(path: &Path) {
    let mode = std::fs::metadata(path).map(|found| found.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o004 != 0) {
        let path = path.display();
        tracing::warn!("{path} holds a secret and every user can read it: chmod o-r {path}");
    }
}

/// The contents of the file that the `parameter` of a URL calls `path`.
pub(crate) fn read(parameter: &str, path: &Path) -> Result<Vec<u8>, String> {
    let place = place(path);
    std::fs::read(&place).map_err(|error| {
        let shown = place.display();
        let what = match place.is_relative() {
            true => "write the absolute path of a file that this user may read",
            false => "name a file that this user may read",
        };
        format!("its {parameter} {shown} cannot be read: {error}; {what}")
    })
}
