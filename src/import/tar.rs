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

use super::assembly::{Assembly, DirectoryId, Files, Slot};
use super::packet::Packet;
use super::{MAX_ZEROS, Options, Progress, SpecialFiles};
use crate::castore::{Name, Node, Printable, SymlinkTarget};
use crate::nar::MAX_DEPTH;
use crate::store::Ingest;
use entries::{Entries, Entry, Kind};

pub use error::Error;

/// See [`super::add`].
pub(super) fn add(
    ingest: &dyn Ingest,
    input: &mut dyn Read,
    options: &Options,
    progress: &Progress,
) -> Result<Node, super::Error> {
    let mut entries = Entries::new(
        BufReader::with_capacity(64 << 10, input),
        options.max_size.unwrap_or(MAX_ZEROS),
    );
    let mut assembly = Assembly::default();
    let root = assembly.directory();
    let mut unpacking = Unpacking {
        packet: Packet::new(ingest, progress),
        files: Files::default(),
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
    let Unpacking {
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
    assembly.finish(Slot::Directory(root), &files, ingest)
}

struct Unpacking<'a> {
    packet: Packet<'a>,
    files: Files,
    assembly: Assembly,
    root: DirectoryId,
    options: &'a Options,
    progress: &'a Progress,
    /// The first path or hard link target that began with a slash.
    absolute: Option<Vec<u8>>,
}

impl Unpacking<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: Entry,
        entries: &mut Entries<R>,
    ) -> Result<(), super::Error> {
        let mut names = self.names(&entry.path, &entry.path)?;
        let strip = self.options.strip_components;
        if names.len() <= strip && strip > 0 {
            return Ok(());
        }
        names.drain(..strip);
        let Some((name, parents)) = names.split_last() else {
            // The root itself: "./".
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(Error::Root { path: entry.path }.into()),
            };
        };
        let slot = match entry.kind {
            Kind::Directory => {
                let parent = self.parent(parents, &entry.path)?;
                return self.directory(parent, name).map(drop);
            }
            Kind::File { size, executable } => {
                let file = self
                    .packet
                    .file(size, executable, |buffer| entries.contents(buffer))?;
                let id = self.assembly.file();
                self.files.set(id, file);
                Slot::File(id)
            }
            Kind::Symlink { target } => {
                let target = SymlinkTarget::new(&target).map_err(|source| Error::Name {
                    path: entry.path.clone(),
                    source,
                })?;
                self.progress.add_symlink();
                Slot::Symlink(target)
            }
            Kind::HardLink { target } => self.linked(&entry.path, &target)?,
            Kind::Special { kind } => match self.options.special_files {
                SpecialFiles::Refuse => {
                    return Err(Error::Special {
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
    fn names(&mut self, path: &[u8], entry: &[u8]) -> Result<Vec<Name>, Error> {
        if path.starts_with(b"/") && self.absolute.is_none() {
            self.absolute = Some(path.to_vec());
        }
        names(path, entry)
    }

    /// The directory at `parents`; missing ones are made.
    fn parent(&mut self, parents: &[Name], path: &[u8]) -> Result<DirectoryId, super::Error> {
        let mut at = self.root;
        for name in parents {
            at = match self.assembly.entries(at).get(name) {
                None => self.directory(at, name)?,
                Some(Slot::Directory(id)) => *id,
                Some(_) => {
                    return Err(Error::NotDirectory {
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
    fn directory(&mut self, parent: DirectoryId, name: &Name) -> Result<DirectoryId, super::Error> {
        if let Some(Slot::Directory(id)) = self.assembly.entries(parent).get(name) {
            return Ok(*id);
        }
        let id = self.assembly.directory();
        self.progress.add_directory();
        self.assembly
            .entries(parent)
            .insert(name.clone(), Slot::Directory(id));
        Ok(id)
    }

    /// The slot for the hard link `path` to `target`: the same as the earlier entry.
    fn linked(&mut self, path: &[u8], target: &[u8]) -> Result<Slot, super::Error> {
        let dangling = || Error::Dangling {
            path: path.to_vec(),
            target: target.to_vec(),
        };
        let mut names = self.names(target, path)?;
        let strip = self.options.strip_components;
        if names.len() <= strip {
            return Err(dangling().into());
        }
        names.drain(..strip);
        let mut at = Slot::Directory(self.root);
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
            Slot::Directory(_) => Err(dangling().into()),
            Slot::File(_) => {
                self.progress.found_file();
                self.progress.add_file();
                Ok(at)
            }
            Slot::Symlink(_) => {
                self.progress.add_symlink();
                Ok(at)
            }
        }
    }
}

/// The components of `path`; `entry` is the path of the entry that has it, for errors.
fn names(path: &[u8], entry: &[u8]) -> Result<Vec<Name>, Error> {
    let outside = || Error::Outside {
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
            return Err(Error::TooDeep {
                path: entry.to_vec(),
            });
        }
        names.push(Name::new(component).map_err(|source| Error::Name {
            path: entry.to_vec(),
            source,
        })?);
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
