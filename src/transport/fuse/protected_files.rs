//! Files that this program needs to answer requests: no mount of its own may hide them.
//!
//! A mount at or above the store's directory is a deadlock: to answer a request the store opens a
//! file below the mount, which is a request that waits for the first one. Only an abort of the
//! connection ends it. The same holds for sockets, certificates, the program's own libraries and
//! all files that are opened by their paths later. So such a mount point is refused.
//!
//! Directories are compared in three ways, since one has many names. By path, after symbolic links.
//! By file system and place in it, which sees through bind mounts and mounts that cover a
//! directory. And by device and inode, for file systems that know one directory by several names.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mount_error::MountError;
use super::mount_table::MountTable;
use super::trail::{FileIdentity, trail};
use crate::stores::UsedFile;

/// Files and directories that must stay accessible. Those of the program itself are always among
/// them.
#[derive(Clone, Debug, Default)]
pub struct ProtectedFiles(Vec<UsedFile>);

impl Extend<UsedFile> for ProtectedFiles {
    fn extend<I: IntoIterator<Item = UsedFile>>(&mut self, files: I) {
        self.0.extend(files);
    }
}

impl ProtectedFiles {
    /// Adds `path`, which error messages call `what`.
    pub fn add(&mut self, what: impl Into<String>, path: impl Into<PathBuf>) {
        self.0.push(UsedFile {
            what: what.into(),
            path: path.into(),
            whole: false,
        });
    }

    /// Fails if `mountpoint` is `/`, is no directory, or is at or above one of these files, or in a directory
    /// that is used as a whole. It need not exist yet.
    pub fn check(&self, mountpoint: &Path) -> Result<(), MountError> {
        let failed = |source| MountError::System {
            action: "find",
            mountpoint: mountpoint.to_owned(),
            source,
        };
        let table = MountTable::read().map_err(failed)?;
        let steps = trail(mountpoint, &table, |_| false).map_err(failed)?;
        let Some(target) = steps.last() else {
            return Ok(());
        };
        if target.path == Path::new("/") {
            return Err(MountError::RootDirectory);
        }
        if target.is_directory == Some(false) {
            return Err(MountError::NotADirectory(mountpoint.to_owned()));
        }
        for file in self.0.iter().chain(&program_files()) {
            // No further than to the mount point: an automount there waits for this mount. A path
            // that cannot be looked up is not used either.
            let way = trail(&file.path, &table, |step| is_below(step, target));
            let last = way.ok().and_then(|way| way.into_iter().next_back());
            let is_hidden = |step: &FileIdentity| {
                is_below(step, target)
                    || file.whole && steps.iter().any(|above| is_below(above, step))
            };
            if last.is_some_and(|step| is_hidden(&step)) {
                return Err(MountError::HidesOwnFile {
                    mountpoint: mountpoint.to_owned(),
                    what: file.what.clone(),
                    path: file.path.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Whether `step` is `target` or a place below it.
fn is_below(step: &FileIdentity, target: &FileIdentity) -> bool {
    let same_place = match (&step.place, &target.place) {
        (Some((device, place)), Some((other, above))) => {
            device == other && place.starts_with(above)
        }
        _ => false,
    };
    let same_inode = step.inode.is_some() && step.inode == target.inode;
    step.path == target.path || same_place || same_inode
}

/// The executable and the libraries of this process, files named in its environment, and those of
/// the kernel that it needs.
fn program_files() -> Vec<UsedFile> {
    let file = |what: &str, path| UsedFile {
        what: what.to_owned(),
        path,
        whole: false,
    };
    let mut files = vec![
        file("what it reads of the kernel", "/proc/self".into()),
        file("the device of FUSE", "/dev/fuse".into()),
    ];
    for (variable, what) in [
        ("CREDENTIALS_DIRECTORY", "its credentials"),
        ("NOTIFY_SOCKET", "the service manager's socket"),
    ] {
        let path = std::env::var_os(variable).map(PathBuf::from);
        let path = path.filter(|path| path.is_absolute());
        files.extend(path.map(|path| file(what, path)));
    }
    let executable = fs::read_link("/proc/self/exe").into_iter();
    files.extend(executable.map(|path| file("its program", path)));
    // proc_pid_maps(5): address, permissions, offset, device, inode, path.
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    for line in maps.split(|&byte| byte == b'\n') {
        let mut columns = line.split(|&byte| byte == b' ');
        let is_code = columns.nth(1).is_some_and(|bits| bits.contains(&b'x'));
        let path = line.iter().position(|&byte| byte == b'/');
        if let Some(path) = path.map(|at| Path::new(std::ffi::OsStr::from_bytes(&line[at..])))
            && is_code
            && files.iter().all(|file| file.path != path)
        {
            files.push(file("a library of its program", path.to_owned()));
        }
    }
    files
}
