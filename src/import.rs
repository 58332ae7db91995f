//! Importing trees into a store: from the local file system, a NAR or a tar archive.
//!
//! Every importer does the same three things in the same order: blobs go to the store as they are
//! read, in the order in which a walk over the tree meets their files (that order becomes the
//! layout on disk, and a cold walk over the mount then reads forwards); then Directories are built
//! and added, leaves first; then the root is named and the addition committed. Until the commit
//! nothing is visible, and an importer that fails or is cancelled leaves nothing.
//!
//! **Nix names** depend on the hash of the tree's NAR, which not every source can give. So the NAR
//! is rendered out of the store, once everything else is committed, and the root is put in a second
//! addition. This serves all sources alike, and hashes what the store will serve.

mod assembly;
mod closure;
mod error;
mod nar;
mod packet;
mod path;
mod progress;
pub mod tar;

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

pub use closure::import_path;
pub use error::Error;
pub use progress::{Progress, Stage, Totals};

use crate::castore::{Name, Node, Root};
use crate::compression::{Decoder, Limits};
use crate::nix::{self, NarHash, PathInfo, StorePath};
use crate::store::{Added, Blocking, Ingest};
use crate::tree::nar::write_nar;
use crate::tree::{TreePath, export};

/// Files up to this size, in bytes, are read whole and put into the store many at a time; larger
/// ones are streamed.
const SMALL: u64 = 1 << 20;

/// Zeros that the holes of an archive's sparse files may add up to, in bytes. They cost an archive
/// nothing, but a store their hashes: 512 MiB for so many.
pub const MAX_ZEROS: u64 = 256 << 30;

/// The source of a tree.
pub enum Source<'a> {
    /// A file, directory or symlink of the local file system. A symlink is not followed.
    Path(&'a Path),
    /// A NAR as it is, to its end.
    PlainNar(&'a mut dyn Read),
    /// A NAR, to its end. gzip, xz, zstd and bzip2 around it are recognised and decompressed.
    Nar(&'a mut dyn Read),
    /// A tar archive. gzip, xz, zstd and bzip2 around it are recognised and decompressed.
    Tar(&'a mut dyn Read),
}

/// How the root is named.
pub enum Naming {
    /// With this name.
    Name(Name),
    /// As Nix would name the tree, with this name after the hash; a [`PathInfo`] is stored with it.
    Nix(String),
}

/// How to treat devices, sockets and named pipes, which a castore cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialFiles {
    /// Fail, naming the file.
    #[default]
    Refuse,
    /// Leave them out, with a warning in the log.
    Skip,
}

/// How to import.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How to treat files that are neither regular, directory nor symlink.
    pub special_files: SpecialFiles,
    /// For a tar archive: how many leading components to remove from every path. Entries with fewer
    /// are left out.
    pub strip_components: usize,
    /// The most bytes that an archive may decompress to, and the most zeros that the holes of its
    /// sparse files may add up to. None: the defaults of [`Limits`], and [`MAX_ZEROS`].
    pub max_size: Option<u64>,
}

/// The result of an import.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The root, as it is in the store now.
    pub root: Root,
    /// What was not in the store before.
    pub added: Added,
    /// What was read.
    pub totals: Totals,
    /// Of a tree with a Nix name: the store path and the NAR.
    pub nix: Option<(StorePath, NarHash)>,
}

/// Imports a tree into `store` under a name. Blocks; see [`Blocking`] for where not to call it.
pub fn import(
    store: &Blocking,
    source: Source<'_>,
    naming: Naming,
    options: &Options,
    progress: &Progress,
) -> Result<Imported, Error> {
    if let Naming::Nix(name) = &naming {
        StorePath::check_name(name.as_bytes())?;
    }
    let ingest = store.ingest()?;
    if let Naming::Name(name) = &naming {
        ingest.check_root_name(name)?;
    }
    progress.enter(Stage::Reading);
    let node = add(&*ingest, source, options, progress)?;
    progress.check()?;
    match naming {
        Naming::Name(name) => {
            let root = Root { name, node };
            ingest.put_root(&root, None)?;
            progress.enter(Stage::Committing);
            let added = ingest.commit()?;
            Ok(Imported {
                root,
                added,
                totals: progress.totals(),
                nix: None,
            })
        }
        Naming::Nix(name) => {
            progress.enter(Stage::Committing);
            let added = ingest.commit()?;
            progress.enter(Stage::HashingNar);
            let nar = nar_hash(store, &TreePath::new(name.as_bytes()), &node, progress)?;
            let path = nix::content_addressed(&name, &nar)?;
            let root = path.root(node);
            let path_info = PathInfo::content_addressed(&root, &nar);
            progress.check()?;
            progress.enter(Stage::Committing);
            let ingest = store.ingest()?;
            ingest.put_root(&root, Some(&path_info))?;
            ingest.commit()?;
            Ok(Imported {
                root,
                added,
                totals: progress.totals(),
                nix: Some((path, nar)),
            })
        }
    }
}

/// Adds a tree's blobs and Directories; returns the node of the tree. Names and commits nothing.
pub fn add(
    ingest: &dyn Ingest,
    source: Source<'_>,
    options: &Options,
    progress: &Progress,
) -> Result<Node, Error> {
    match source {
        Source::Path(path) => path::add(ingest, path, options, progress),
        Source::PlainNar(input) => nar::add(ingest, input, progress),
        Source::Nar(input) => {
            let mut input = decompressed(input, options)
                .map_err(|source| crate::nar::Error::Io { offset: 0, source })?;
            nar::add(ingest, &mut input, progress)
        }
        Source::Tar(input) => {
            let mut input = decompressed(input, options)
                .map_err(|source| tar::Error::Io { offset: 0, source })?;
            tar::add(ingest, &mut input, options, progress)
        }
    }
}

/// An archive without its compression, if it has one.
fn decompressed<'a>(
    input: &'a mut dyn Read,
    options: &Options,
) -> io::Result<Decoder<&'a mut dyn Read>> {
    let limits = options
        .max_size
        .map_or_else(Limits::default, Limits::of_output);
    Decoder::detect(input, limits)
}

/// Size and hash of the NAR of a tree in `store`.
fn nar_hash(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    progress: &Progress,
) -> Result<NarHash, Error> {
    let mut sink = HashingSink {
        progress,
        size: 0,
        hasher: Sha256::new(),
    };
    let uncounted = export::Progress::default();
    let written = write_nar(store, path, node, &mut sink, &uncounted);
    progress.check()?;
    written?;
    Ok(NarHash {
        size: sink.size,
        sha256: sink.hasher.finalize().into(),
    })
}

/// Hashes what is written to it, until the import is cancelled.
struct HashingSink<'a> {
    progress: &'a Progress,
    size: u64,
    hasher: Sha256,
}

impl Write for HashingSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.check().map_err(io::Error::other)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.progress.add_nar_bytes(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
