//! Importing a tar archive as it is read.
//!
//! An archive is a list of changes to a tree, not a tree: entries come in any order, directories
//! may be implied by the paths of their entries, and a later entry replaces an earlier one. So the
//! names and digests are kept in memory, and the contents go straight to the store.
//!
//! Paths begin at the root of the tree, as for GNU tar and Docker: a leading `/` of a name or of a
//! hard link's target is removed, with one warning for the archive. `./` and empty components are
//! removed; `..` is refused, and so is a path through a symlink of the archive (unpacking would
//! follow it to any target). Symlink targets stay as they are.

mod entries;
mod error;
mod pax;
mod sparse;

use std::io::{BufReader, Read};

use super::assembly::{AssembledValue, DirectoryId, ReadFiles, TreeAssembly};
use super::packet::BlobPacket;
use super::{ImportOptions, ImportProgress, MAX_ZEROS, SpecialFiles};
use crate::castore::{Name, Node, Printable, SymlinkTarget};
use crate::nar::MAX_DEPTH;
use crate::store::Ingest;
use entries::{EntryKind, TarEntry, TarReader};

pub use error::TarError;

/// See [`super::add`].
pub(super) fn add(
    ingest: &dyn Ingest,
    input: &mut dyn Read,
    options: &ImportOptions,
    progress: &ImportProgress,
) -> Result<Node, super::ImportError> {
    let mut entries = TarReader::new(
        BufReader::with_capacity(64 << 10, input),
        options.max_size.unwrap_or(MAX_ZEROS),
    );
    let mut assembly = TreeAssembly::default();
    let root = assembly.directory();
    let mut unpacking = ArchiveImport {
        packet: BlobPacket::new(ingest, progress),
        files: ReadFiles::default(),
        assembly,
        root,
        options,
        progress,
        absolute: None,
    };
    progress.add_directory();
    while let Some(entry) = entries.next()? {
        progress.check()?;
        unpacking.entry(entry, &mut entries)?;
    }
    unpacking.packet.put()?;
    let ArchiveImport {
        assembly,
        files,
        absolute,
        ..
    } = unpacking;
    if let Some(path) = absolute {
        tracing::warn!(
            path = %Printable(&path),
            "the archive has absolute names or hard link targets: their leading / is left out"
        );
    }
    assembly.finish(AssembledValue::Directory(root), &files, ingest)
}

struct ArchiveImport<'a> {
    packet: BlobPacket<'a>,
    files: ReadFiles,
    assembly: TreeAssembly,
    root: DirectoryId,
    options: &'a ImportOptions,
    progress: &'a ImportProgress,
    /// The first path or hard link target that began with a slash.
    absolute: Option<Vec<u8>>,
}

impl ArchiveImport<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: TarEntry,
        entries: &mut TarReader<R>,
    ) -> Result<(), super::ImportError> {
        let mut names = self.names(&entry.path, &entry.path)?;
        let strip = self.options.strip_components;
        if names.len() <= strip && strip > 0 {
            return Ok(());
        }
        names.drain(..strip);
        let Some((name, parents)) = names.split_last() else {
            // The root itself: "./".
            return match entry.kind {
                EntryKind::Directory => Ok(()),
                _ => Err(TarError::Root { path: entry.path }.into()),
            };
        };
        let slot = match entry.kind {
            EntryKind::Directory => {
                let parent = self.parent(parents, &entry.path)?;
                return self.directory(parent, name).map(drop);
            }
            EntryKind::File { size, executable } => {
                let file = self
                    .packet
                    .file(size, executable, |buffer| entries.contents(buffer))?;
                let id = self.assembly.file();
                self.files.set(id, file);
                AssembledValue::File(id)
            }
            EntryKind::Symlink { target } => {
                let target = SymlinkTarget::new(&target).map_err(|source| TarError::Name {
                    path: entry.path.clone(),
                    source,
                })?;
                self.progress.add_symlink();
                AssembledValue::Symlink(target)
            }
            EntryKind::HardLink { target } => self.linked(&entry.path, &target)?,
            EntryKind::Special { kind } => match self.options.special_files {
                SpecialFiles::Refuse => {
                    return Err(TarError::Special {
                        path: entry.path,
                        kind,
                    }
                    .into());
                }
                SpecialFiles::Skip => {
                    tracing::warn!(path = %Printable(&entry.path), "left out: a {kind}");
                    self.progress.add_skipped();
                    return Ok(());
                }
            },
        };
        let parent = self.parent(parents, &entry.path)?;
        self.assembly.entries(parent).insert(name.clone(), slot);
        Ok(())
    }

    /// The components of `path`, which is that of `entry` or the target of its hard link.
    fn names(&mut self, path: &[u8], entry: &[u8]) -> Result<Vec<Name>, TarError> {
        if path.starts_with(b"/") && self.absolute.is_none() {
            self.absolute = Some(path.to_vec());
        }
        names(path, entry)
    }

    /// The directory at `parents`; missing ones are made.
    fn parent(&mut self, parents: &[Name], path: &[u8]) -> Result<DirectoryId, super::ImportError> {
        let mut at = self.root;
        for name in parents {
            at = match self.assembly.entries(at).get(name) {
                None => self.directory(at, name)?,
                Some(AssembledValue::Directory(id)) => *id,
                Some(_) => {
                    return Err(TarError::NotDirectory {
                        path: path.to_vec(),
                        parent: name.clone(),
                    }
                    .into());
                }
            };
        }
        Ok(at)
    }

    /// The directory `name` in `parent`; replaces anything else of that name.
    fn directory(
        &mut self,
        parent: DirectoryId,
        name: &Name,
    ) -> Result<DirectoryId, super::ImportError> {
        if let Some(AssembledValue::Directory(id)) = self.assembly.entries(parent).get(name) {
            return Ok(*id);
        }
        let id = self.assembly.directory();
        self.progress.add_directory();
        self.assembly
            .entries(parent)
            .insert(name.clone(), AssembledValue::Directory(id));
        Ok(id)
    }

    /// The slot for the hard link `path` to `target`: the same as the earlier entry.
    fn linked(&mut self, path: &[u8], target: &[u8]) -> Result<AssembledValue, super::ImportError> {
        let dangling = || TarError::Dangling {
            path: path.to_vec(),
            target: target.to_vec(),
        };
        let mut names = self.names(target, path)?;
        let strip = self.options.strip_components;
        if names.len() <= strip {
            return Err(dangling().into());
        }
        names.drain(..strip);
        let mut at = AssembledValue::Directory(self.root);
        for name in &names {
            let id = at.directory().ok_or_else(dangling)?;
            at = self
                .assembly
                .entries(id)
                .get(name)
                .cloned()
                .ok_or_else(dangling)?;
        }
        match at {
            AssembledValue::Directory(_) => Err(dangling().into()),
            AssembledValue::File(_) => {
                self.progress.found_file();
                self.progress.add_file();
                Ok(at)
            }
            AssembledValue::Symlink(_) => {
                self.progress.add_symlink();
                Ok(at)
            }
        }
    }
}

/// The components of `path`; `entry` is the path of the entry that has it, for errors.
fn names(path: &[u8], entry: &[u8]) -> Result<Vec<Name>, TarError> {
    let outside = || TarError::Outside {
        path: entry.to_vec(),
        names: path.to_vec(),
    };
    let mut names = Vec::new();
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(outside()),
            _ => {}
        }
        if names.len() == MAX_DEPTH {
            return Err(TarError::TooDeep {
                path: entry.to_vec(),
            });
        }
        names.push(Name::new(component).map_err(|source| TarError::Name {
            path: entry.to_vec(),
            source,
        })?);
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
