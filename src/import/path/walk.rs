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
use crate::import::assembly::{Assembly, DirectoryId, Slot};

/// A buffer for names, in bytes: several hundred entries a system call.
const LISTING: usize = 64 << 10;

/// A name in a directory, and what it was when it was listed.
struct Listed {
    name: CString,
    kind: FileType,
}

/// A directory that the walk is in.
struct Open {
    id: DirectoryId,
    folder: Arc<Folder>,
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
    listing: Vec<MaybeUninit<u8>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        queue: &'a Queue,
        special_files: SpecialFiles,
        progress: &'a Progress,
    ) -> Self {
        Self {
            queue,
            special_files,
            progress,
            assembly: Assembly::default(),
            batch: Batch::new(0),
            listing: vec![MaybeUninit::uninit(); LISTING],
        }
    }

    /// Walks everything at `path`; gives the tree's root.
    pub(super) fn root(&mut self, path: &Path) -> Result<Slot, Error> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("find", path.to_owned(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = rustix::fs::openat(CWD, path, open_flags() | OFlags::DIRECTORY, Mode::empty())
                .map_err(|error| failed("open", path.to_owned(), error))?;
            return self.tree(fd, path).map(Slot::Directory);
        }
        // A file is read as an entry of its directory, as all others are.
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

    /// Hands out the last batch; gives the tree.
    pub(super) fn finish(mut self) -> Result<Assembly, Error> {
        self.hand_out()?;
        Ok(self.assembly)
    }

    /// Walks the directory `fd` at `path`, and all below it.
    fn tree(&mut self, fd: OwnedFd, path: &Path) -> Result<DirectoryId, Error> {
        let root = self.enter(Folder {
            fd,
            path: path.to_owned(),
        })?;
        let id = root.id;
        let mut open_directories = vec![root];
        while let Some(here) = open_directories.last_mut() {
            self.progress.check()?;
            let Some(listed) = here.rest.pop() else {
                open_directories.pop();
                continue;
            };
            let parent = here.id;
            let folder = here.folder.clone();
            let path = || folder.path_of(&listed.name);
            let name = Name::new(listed.name.as_bytes()).map_err(|source| Error::Name {
                path: path(),
                source,
            })?;
            let slot = match listed.kind {
                FileType::Directory => {
                    let fd = open(&folder, &listed.name, OFlags::DIRECTORY)?;
                    let child = self.enter(Folder { fd, path: path() })?;
                    let slot = Slot::Directory(child.id);
                    open_directories.push(child);
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
    fn enter(&mut self, folder: Folder) -> Result<Open, Error> {
        let mut rest = Vec::new();
        let mut listing = RawDir::new(&folder.fd, &mut self.listing);
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(|error| Error::io("list", folder.path.clone(), error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(&folder, name)?,
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
            folder: Arc::new(folder),
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
        });
        self.progress.found_file();
        Ok(Slot::File(file))
    }

    fn symlink(&mut self, folder: &Folder, name: &CString) -> Result<Slot, Error> {
        let path = || folder.path_of(name);
        let target = rustix::fs::readlinkat(&folder.fd, name, Vec::new()).map_err(|error| {
            // What is no symlink any more.
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
        let next = Batch::new(self.batch.number + 1);
        let batch = std::mem::replace(&mut self.batch, next);
        // Whoever abandoned the import says why.
        self.queue.push(batch).map_err(|Abandoned| Error::Cancelled)
    }
}

/// What `name` is, on file systems whose listings do not say.
fn kind_of(folder: &Folder, name: &CStr) -> Result<FileType, Error> {
    let stat = rustix::fs::statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("find", folder.path_of(&name.to_owned()), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}
