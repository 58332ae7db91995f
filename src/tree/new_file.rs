//! A file that appears only when it is complete.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::Errno;

use super::TreeError;
use super::unfinished::UnfinishedTarget;

/// A file that gets its name when it is complete ([`NewFile::place`]).
///
/// It has no name until then (`O_TMPFILE`), so that nothing is left of it however the process ends.
/// On a file system without that it has a hidden name beside its target, which is removed on drop; if
/// the process is killed, by the next new file for that target.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    target: PathBuf,
    /// The hidden name.
    hidden: Option<UnfinishedTarget>,
}

impl NewFile {
    /// Makes a file for `target`, which must not exist.
    pub fn make(target: &Path) -> Result<Self, TreeError> {
        let name = match (target.file_name(), target.symlink_metadata()) {
            (Some(name), Err(error)) if error.kind() == io::ErrorKind::NotFound => name,
            (Some(_), Err(error)) => return Err(failed("look at", target, error)),
            _ => return Err(TreeError::Exists(target.to_owned())),
        };
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mode = Mode::from_raw_mode(0o666);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // Without /proc a file cannot get a name later.
        let can_be_named = Path::new("/proc/self/fd").exists();
        if can_be_named && let Ok(fd) = openat(CWD, dir, flags | OFlags::TMPFILE, mode) {
            return Ok(Self {
                file: fd.into(),
                target: target.to_owned(),
                hidden: None,
            });
        }
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let make = |path: &Path| openat(CWD, path, flags, mode);
        let made = UnfinishedTarget::make(dir, name, make);
        let (hidden, fd) = made.map_err(|(_, error)| match error {
            Errno::NOENT => TreeError::NoDirectory(dir.to_owned()),
            _ => failed("make the file", target, error),
        })?;
        Ok(Self {
            file: fd.into(),
            target: target.to_owned(),
            hidden: Some(hidden),
        })
    }

    /// The file, to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, unless that is taken meanwhile.
    pub fn place(mut self) -> Result<(), TreeError> {
        let placed = match self.hidden.take() {
            None => {
                let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, path, CWD, &self.target, AtFlags::SYMLINK_FOLLOW)
            }
            Some(hidden) => {
                let path = hidden.path();
                match renameat_with(CWD, path, CWD, &self.target, RenameFlags::NOREPLACE) {
                    // File systems without that flag: a link does not replace either.
                    Err(Errno::INVAL) => linkat(CWD, path, CWD, &self.target, AtFlags::empty()),
                    renamed => renamed.inspect(|()| hidden.forget()),
                }
            }
        };
        match placed {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(TreeError::Exists(self.target.clone())),
            Err(error) => Err(failed("give its name to", &self.target, error)),
        }
    }
}

fn failed(action: &'static str, path: &Path, source: impl Into<io::Error>) -> TreeError {
    TreeError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_gets_its_name_when_it_is_complete_and_replaces_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let count = || fs::read_dir(dir.path()).unwrap().count();
        let new = NewFile::make(&target).unwrap();
        new.file().write_all(b"half").unwrap();
        drop(new);
        assert_eq!(count(), 0);
        for hidden in [false, true] {
            let mut new = NewFile::make(&target).unwrap();
            if hidden {
                let make = |path: &Path| {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                    openat(CWD, path, flags, Mode::RWXU)
                };
                let name = target.file_name().unwrap();
                let (path, fd) = UnfinishedTarget::make(dir.path(), name, make).unwrap();
                new.file = fd.into();
                new.hidden = Some(path);
            }
            new.file().write_all(b"whole").unwrap();
            new.place().unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"whole");
            assert_eq!(count(), 1);
            assert!(matches!(NewFile::make(&target), Err(TreeError::Exists(_))));
            fs::remove_file(&target).unwrap();
            let new = NewFile::make(&target).unwrap();
            fs::write(&target, "another's").unwrap();
            assert!(matches!(new.place(), Err(TreeError::Exists(_))));
            assert_eq!(fs::read(&target).unwrap(), b"another's");
            fs::remove_file(&target).unwrap();
        }
    }
}
