//! The directories on a path.
//!
//! Symbolic links are followed here and not by the kernel: each directory on the way counts, also
//! those of a link's target. Mounts of castore-fs are not entered, since a lookup in one without a
//! server would wait.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;

use super::mount_table::{DeviceNumber, MountEntry, MountTable};

/// Symbolic links that are followed, at most: as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The identity of a directory or file, independent of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    /// Its absolute path without symbolic links.
    pub path: PathBuf,
    /// Its file system, and its place there from the file system's root.
    pub place: Option<(DeviceNumber, PathBuf)>,
    /// `st_dev` and `st_ino`, if it exists.
    pub inode: Option<(u64, u64)>,
    /// Whether it is a directory; None if it does not exist or is a mount of castore-fs.
    pub is_directory: Option<bool>,
}

/// The steps of `path`, from the root directory to its end. Missing ones are taken for directories
/// that will be made. The way ends early at a step for which `is_last` is true.
pub(super) fn trail(
    path: &Path,
    table: &MountTable,
    is_last: impl Fn(&FileIdentity) -> bool,
) -> io::Result<Vec<FileIdentity>> {
    let mut rest = components(&std::path::absolute(path)?);
    let mut at = PathBuf::from("/");
    let mut steps = vec![step(&at, None, table)];
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match name.as_bytes() {
            b"/" => at = PathBuf::from("/"),
            b".." => drop(at.pop()),
            _ => {
                let next = at.join(&name);
                let mount = table.visible_at(&next);
                let is_ours = mount.is_some_and(MountEntry::is_ours);
                let found = match is_ours {
                    true => None,
                    false => look(&next)?,
                };
                let is_link = found.as_ref().is_some_and(|found| kind(found).is_symlink());
                if is_link {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    rest.extend(components(&std::fs::read_link(&next)?));
                    continue;
                }
                at = next;
                let mut made = step(&at, found.as_ref(), table);
                if is_ours && table.mounted_on(&at).is_some() {
                    // The directory that is covered by the mount.
                    made.place = covered(&at, table);
                }
                let is_last = is_last(&made);
                steps.push(made);
                if is_last {
                    return Ok(steps);
                }
            }
        }
    }
    // After `..` the last step is not the end of the path.
    if steps.last().is_some_and(|last| last.path != at) {
        let found = look(&at)?;
        steps.push(step(&at, found.as_ref(), table));
    }
    Ok(steps)
}

/// The parts of a path, the first one last; `/` for an absolute path.
fn components(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    let parts = parts.filter(|part| *part != Component::CurDir);
    parts
        .map(|part| OsStr::to_owned(part.as_os_str()))
        .collect()
}

fn look(path: &Path) -> io::Result<Option<Stat>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statat(CWD, path, flags) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

fn step(path: &Path, found: Option<&Stat>, table: &MountTable) -> FileIdentity {
    let mount = table.visible_at(path);
    FileIdentity {
        path: path.to_owned(),
        place: mount.and_then(|entry| Some((entry.device, entry.inside(path)?))),
        inode: found.map(|found| (found.st_dev, found.st_ino)),
        is_directory: found.map(|found| kind(found).is_dir()),
    }
}

/// The place of the directory that mounts on `path` cover.
fn covered(path: &Path, table: &MountTable) -> Option<(DeviceNumber, PathBuf)> {
    let mut mount = table.mounted_on(path)?;
    while let Some(below) = table.by_id(mount.parent) {
        if below.path != path {
            return Some((below.device, below.inside(path)?));
        }
        mount = below;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(path: &Path, below: &Path) -> Vec<String> {
        let steps = trail(path, &MountTable::read().unwrap(), |_| false).unwrap();
        let paths = steps
            .iter()
            .filter_map(|step| step.path.strip_prefix(below).ok());
        paths.map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn every_directory_on_the_way_is_a_step_that_of_a_link_too() {
        let dir = tempfile::tempdir().unwrap();
        let mount_root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(mount_root.join("a/b")).unwrap();
        fs::create_dir_all(mount_root.join("c/d")).unwrap();
        symlink("../../c/./d", mount_root.join("a/b/link")).unwrap();
        assert_eq!(
            paths(&mount_root.join("a/b/link/new/x"), &mount_root),
            ["", "a", "a/b", "c", "c/d", "c/d/new", "c/d/new/x"]
        );
        assert_eq!(
            paths(&mount_root.join("a/b/.."), &mount_root),
            ["", "a", "a/b", "a"]
        );
        symlink("circle", mount_root.join("circle")).unwrap();
        let table = MountTable::read().unwrap();
        let circle = trail(&mount_root.join("circle"), &table, |_| false).unwrap_err();
        assert_eq!(circle.raw_os_error(), Some(libc::ELOOP));
    }
}
