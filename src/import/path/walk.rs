//! The walk: lists directories and hands their files out.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

use super::queue::{Abandoned, Batch, Queue};
use super::{Error, Folder, Job, Progress, SpecialFiles, failed, open, open_flags, special};
use crate::castore::{Name, Printable, SymlinkTarget};
use crate::descent::{Descent, DescentError};
use crate::import::assembly::{Assembly, DirectoryId, Slot};

/// A buffer for names, in bytes: several hundred entries a system call.
const LISTING: usize = 64 << 10;

/// The most directories to keep open of those that the walk is inside of.
const MAX_WINDOW: usize = 256;

/// A name in a directory, and what it was when it was listed.
struct Listed {
    name: CString,
    kind: FileType,
}

/// A directory that the walk is in.
struct Open {
    id: DirectoryId,
    /// What is still to come, the next one last.
    rest: Vec<Listed>,
}

pub(super) struct Walk<'a> {
    queue: &'a Queue,
    special_files: SpecialFiles,
    progress: &'a Progress,
    assembly: Assembly,
    /// The files found since the last batch was handed out.
    batch: Batch,
    /// The most directories to keep open.
    window: usize,
    listing: Vec<MaybeUninit<u8>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        queue: &'a Queue,
        special_files: SpecialFiles,
        progress: &'a Progress,
        batch: Batch,
        open_files: usize,
    ) -> Self {
        Self {
            queue,
            special_files,
            progress,
            assembly: Assembly::default(),
            batch,
            window: (open_files / 8).min(MAX_WINDOW),
            listing: vec![MaybeUninit::uninit(); LISTING],
        }
    }

    /// Walks everything at `path`; returns the tree's root.
    pub(super) fn root(&mut self, path: &Path) -> Result<Slot, Error> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("find", path.to_owned(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = rustix::fs::openat(CWD, path, open_flags() | OFlags::DIRECTORY, Mode::empty())
                .map_err(|error| failed("open", path.to_owned(), error))?;
            return self.tree(fd, path).map(Slot::Directory);
        }
        // A file is read as an entry of its directory, like all others.
        let (Some(name), parent) = (path.file_name(), path.parent().unwrap_or(Path::new("")))
        else {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        };
        let name = CString::new(name.as_bytes())
            .map_err(|error| Error::io("find", path.to_owned(), error))?;
        let at = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, at, flags, Mode::empty())
            .map_err(|error| Error::io("open", at.to_owned(), error))?;
        let folder = Arc::new(Folder {
            fd,
            path: parent.to_owned(),
        });
        match kind {
            FileType::RegularFile => self.file(&folder, name),
            FileType::Symlink => self.symlink(&folder, &name),
            _ => Err(Error::Special {
                path: path.to_owned(),
                kind: special(kind),
            }),
        }
    }

    /// Hands out the last batch; returns the tree.
    pub(super) fn finish(mut self) -> Result<Assembly, Error> {
        self.hand_out()?;
        Ok(self.assembly)
    }

    /// Walks the directory `fd` at `path`, and all below it.
    fn tree(&mut self, fd: OwnedFd, path: &Path) -> Result<DirectoryId, Error> {
        let root = Arc::new(Folder {
            fd,
            path: path.to_owned(),
        });
        let listed = self.list(&root)?;
        let id = listed.id;
        let mut descent = Descent::new(self.window);
        let enter = |descent: &mut Descent<Arc<Folder>>, folder: Arc<Folder>| {
            let path = folder.path.clone();
            let entered = descent.enter(folder);
            entered.map_err(|error| Error::io("stat", path, error))
        };
        enter(&mut descent, root)?;
        let mut open_directories = vec![listed];
        while let (Some(here), Some(folder)) = (open_directories.last_mut(), descent.here()) {
            self.progress.check()?;
            let Some(listed) = here.rest.pop() else {
                open_directories.pop();
                let path = folder.path.clone();
                descent.leave(again).map_err(|error| match error {
                    DescentError::Moved => Error::Changed { path },
                    DescentError::Io(error) => Error::io("open the folder above", path, error),
                })?;
                continue;
            };
            let parent = here.id;
            let folder = folder.clone();
            let path = || folder.path_of(&listed.name);
            let name = Name::new(listed.name.as_bytes()).map_err(|source| Error::Name {
                path: path(),
                source,
            })?;
            let slot = match listed.kind {
                FileType::Directory => {
                    let fd = open(&folder, &listed.name, OFlags::DIRECTORY)?;
                    let child = Arc::new(Folder { fd, path: path() });
                    let listed = self.list(&child)?;
                    enter(&mut descent, child)?;
                    let slot = Slot::Directory(listed.id);
                    open_directories.push(listed);
                    slot
                }
                FileType::RegularFile => self.file(&folder, listed.name)?,
                FileType::Symlink => self.symlink(&folder, &listed.name)?,
                kind => match self.special_files {
                    SpecialFiles::Refuse => {
                        return Err(Error::Special {
                            path: path(),
                            kind: special(kind),
                        });
                    }
                    SpecialFiles::Skip => {
                        tracing::warn!(path = %Printable::path(&path()), "left out: a {}", special(kind));
                        self.progress.add_skipped();
                        continue;
                    }
                },
            };
            self.assembly.entries(parent).insert(name, slot);
        }
        Ok(id)
    }

    /// Lists a directory.
    fn list(&mut self, folder: &Folder) -> Result<Open, Error> {
        let mut rest = Vec::new();
        let mut listing = RawDir::new(&folder.fd, &mut self.listing);
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(|error| Error::io("list", folder.path.clone(), error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(folder, name)?,
                kind => kind,
            };
            rest.push(Listed {
                name: name.to_owned(),
                kind,
            });
        }
        rest.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        self.progress.add_directory();
        Ok(Open {
            id: self.assembly.directory(),
            rest,
        })
    }

    fn file(&mut self, folder: &Arc<Folder>, name: CString) -> Result<Slot, Error> {
        if self.batch.is_full() {
            self.hand_out()?;
        }
        let file = self.assembly.file();
        self.batch.push(Job {
            folder: folder.clone(),
            name,
            file,
            sizeless: false,
        });
        self.progress.found_file();
        Ok(Slot::File(file))
    }

    fn symlink(&mut self, folder: &Folder, name: &CString) -> Result<Slot, Error> {
        let path = || folder.path_of(name);
        let target = rustix::fs::readlinkat(&folder.fd, name, Vec::new()).map_err(|error| {
            // It is no longer a symlink.
            match error {
                rustix::io::Errno::INVAL => Error::Changed { path: path() },
                _ => failed("read the symlink", path(), error),
            }
        })?;
        let target = SymlinkTarget::new(target.as_bytes()).map_err(|source| Error::Name {
            path: path(),
            source,
        })?;
        self.progress.add_symlink();
        Ok(Slot::Symlink(target))
    }

    fn hand_out(&mut self) -> Result<(), Error> {
        let next = self.batch.next();
        let batch = std::mem::replace(&mut self.batch, next);
        // The thread that abandoned the import has the reason.
        self.queue.push(batch).map_err(|Abandoned| Error::Cancelled)
    }
}

/// The directory above `below`, which was closed meanwhile.
fn again(fd: OwnedFd, below: &Arc<Folder>) -> Arc<Folder> {
    Arc::new(Folder {
        fd,
        path: below.path.parent().unwrap_or(Path::new("")).to_owned(),
    })
}

/// What `name` is, on file systems whose listings do not say.
fn kind_of(folder: &Folder, name: &CStr) -> Result<FileType, Error> {
    let stat = rustix::fs::statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("find", folder.path_of(&name.to_owned()), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}
