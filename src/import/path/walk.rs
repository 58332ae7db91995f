//! The walk: lists directories and hands their files out.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

use super::queue::{FileBatch, ImportAbandoned, ImportQueue};
use super::{
    ImportError, ImportProgress, InputDirectory, ReadJob, SpecialFiles, failed, open, open_flags,
    special,
};
use crate::castore::{Name, Printable, SymlinkTarget};
use crate::descent::{Descent, DescentError};
use crate::import::assembly::{AssembledValue, DirectoryId, TreeAssembly};

/// A buffer for names, in bytes: several hundred entries a system call.
const LISTING: usize = 64 << 10;

/// The most directories to keep open of those that the walk is inside of.
const MAX_WINDOW: usize = 256;

/// A name in a directory, and what it was when it was listed.
struct ListedName {
    name: CString,
    kind: FileType,
}

/// A directory that the walk is in.
struct OpenDirectory {
    id: DirectoryId,
    /// What is still to come, the next one last.
    rest: Vec<ListedName>,
}

pub(super) struct ImportWalk<'a> {
    queue: &'a ImportQueue,
    special_files: SpecialFiles,
    progress: &'a ImportProgress,
    assembly: TreeAssembly,
    /// The files found since the last batch was handed out.
    batch: FileBatch,
    /// The most directories to keep open.
    window: usize,
    listing: Vec<MaybeUninit<u8>>,
}

impl<'a> ImportWalk<'a> {
    pub(super) fn new(
        queue: &'a ImportQueue,
        special_files: SpecialFiles,
        progress: &'a ImportProgress,
        batch: FileBatch,
        open_files: usize,
    ) -> Self {
        Self {
            queue,
            special_files,
            progress,
            assembly: TreeAssembly::default(),
            batch,
            window: (open_files / 8).min(MAX_WINDOW),
            listing: vec![MaybeUninit::uninit(); LISTING],
        }
    }

    /// Walks everything at `path`; returns the tree's root.
    pub(super) fn root(&mut self, path: &Path) -> Result<AssembledValue, ImportError> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| ImportError::io("find", path.to_owned(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = rustix::fs::openat(CWD, path, open_flags() | OFlags::DIRECTORY, Mode::empty())
                .map_err(|error| failed("open", path.to_owned(), error))?;
            return self.tree(fd, path).map(AssembledValue::Directory);
        }
        // A file is read as an entry of its directory, like all others.
        let (Some(name), parent) = (path.file_name(), path.parent().unwrap_or(Path::new("")))
        else {
            return Err(ImportError::Changed {
                path: path.to_owned(),
            });
        };
        let name = CString::new(name.as_bytes())
            .map_err(|error| ImportError::io("find", path.to_owned(), error))?;
        let at = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, at, flags, Mode::empty())
            .map_err(|error| ImportError::io("open", at.to_owned(), error))?;
        let dir = Arc::new(InputDirectory {
            fd,
            path: parent.to_owned(),
        });
        match kind {
            FileType::RegularFile => self.file(&dir, name),
            FileType::Symlink => self.symlink(&dir, &name),
            _ => Err(ImportError::Special {
                path: path.to_owned(),
                kind: special(kind),
            }),
        }
    }

    /// Hands out the last batch; returns the tree.
    pub(super) fn finish(mut self) -> Result<TreeAssembly, ImportError> {
        self.hand_out()?;
        Ok(self.assembly)
    }

    /// Walks the directory `fd` at `path`, and all below it.
    fn tree(&mut self, fd: OwnedFd, path: &Path) -> Result<DirectoryId, ImportError> {
        let root = Arc::new(InputDirectory {
            fd,
            path: path.to_owned(),
        });
        let listed = self.list(&root)?;
        let id = listed.id;
        let mut descent = Descent::new(self.window);
        let enter = |descent: &mut Descent<Arc<InputDirectory>>, dir: Arc<InputDirectory>| {
            let path = dir.path.clone();
            let entered = descent.enter(dir);
            entered.map_err(|error| ImportError::io("stat", path, error))
        };
        enter(&mut descent, root)?;
        let mut open_directories = vec![listed];
        while let (Some(innermost), Some(dir)) = (open_directories.last_mut(), descent.innermost())
        {
            self.progress.check()?;
            let Some(listed) = innermost.rest.pop() else {
                open_directories.pop();
                let path = dir.path.clone();
                descent.leave(again).map_err(|error| match error {
                    DescentError::Moved => ImportError::Changed { path },
                    DescentError::Io(error) => {
                        ImportError::io("open the directory above", path, error)
                    }
                })?;
                continue;
            };
            let parent = innermost.id;
            let dir = dir.clone();
            let path = || dir.path_of(&listed.name);
            let name = Name::new(listed.name.as_bytes()).map_err(|source| ImportError::Name {
                path: path(),
                source,
            })?;
            let slot = match listed.kind {
                FileType::Directory => {
                    let fd = open(&dir, &listed.name, OFlags::DIRECTORY)?;
                    let child = Arc::new(InputDirectory { fd, path: path() });
                    let listed = self.list(&child)?;
                    enter(&mut descent, child)?;
                    let slot = AssembledValue::Directory(listed.id);
                    open_directories.push(listed);
                    slot
                }
                FileType::RegularFile => self.file(&dir, listed.name)?,
                FileType::Symlink => self.symlink(&dir, &listed.name)?,
                kind => match self.special_files {
                    SpecialFiles::Refuse => {
                        return Err(ImportError::Special {
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
    fn list(&mut self, dir: &InputDirectory) -> Result<OpenDirectory, ImportError> {
        let mut rest = Vec::new();
        let mut listing = RawDir::new(&dir.fd, &mut self.listing);
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(|error| ImportError::io("list", dir.path.clone(), error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(dir, name)?,
                kind => kind,
            };
            rest.push(ListedName {
                name: name.to_owned(),
                kind,
            });
        }
        rest.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        self.progress.add_directory();
        Ok(OpenDirectory {
            id: self.assembly.directory(),
            rest,
        })
    }

    fn file(
        &mut self,
        dir: &Arc<InputDirectory>,
        name: CString,
    ) -> Result<AssembledValue, ImportError> {
        if self.batch.is_full() {
            self.hand_out()?;
        }
        let file = self.assembly.file();
        self.batch.push(ReadJob {
            dir: dir.clone(),
            name,
            file,
            sizeless: false,
        });
        self.progress.found_file();
        Ok(AssembledValue::File(file))
    }

    fn symlink(
        &mut self,
        dir: &InputDirectory,
        name: &CString,
    ) -> Result<AssembledValue, ImportError> {
        let path = || dir.path_of(name);
        let target = rustix::fs::readlinkat(&dir.fd, name, Vec::new()).map_err(|error| {
            // It is no longer a symlink.
            match error {
                rustix::io::Errno::INVAL => ImportError::Changed { path: path() },
                _ => failed("read the symlink", path(), error),
            }
        })?;
        let target = SymlinkTarget::new(target.as_bytes()).map_err(|source| ImportError::Name {
            path: path(),
            source,
        })?;
        self.progress.add_symlink();
        Ok(AssembledValue::Symlink(target))
    }

    fn hand_out(&mut self) -> Result<(), ImportError> {
        let next = self.batch.next();
        let batch = std::mem::replace(&mut self.batch, next);
        // The thread that abandoned the import has the reason.
        self.queue
            .push(batch)
            .map_err(|ImportAbandoned| ImportError::Cancelled)
    }
}

/// The directory above `below`, which was closed meanwhile.
fn again(fd: OwnedFd, below: &Arc<InputDirectory>) -> Arc<InputDirectory> {
    Arc::new(InputDirectory {
        fd,
        path: below.path.parent().unwrap_or(Path::new("")).to_owned(),
    })
}

/// What `name` is, on file systems whose listings do not have the kind.
fn kind_of(dir: &InputDirectory, name: &CStr) -> Result<FileType, ImportError> {
    let stat = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("find", dir.path_of(&name.to_owned()), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}
