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
mod nix_daemon;
mod packet;
mod path;
mod progress;
pub mod tar;

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

pub use closure::{ImportedPath, import_path};
pub use error::ImportError;
pub use nix_daemon::{DAEMON_SOCKET, MAX_CLOSURE, NixDaemon, NixDaemonError};
pub use progress::{ImportProgress, ImportStage, ImportTotals};

use crate::castore::{Name, Node, Root};
use crate::compression::{Decoder, DecompressionLimits};
use crate::nix::{self, NarHash, PathInfo, StorePath};
use crate::store::{AddedTotals, Blocking, Ingest};
use crate::tree::nar::write_nar;
use crate::tree::{TreePath, export};

/// Files up to this size, in bytes, are read whole and put into the store many at a time; larger
/// ones are streamed.
const SMALL: u64 = 1 << 20;

/// Zeros that the holes of an archive's sparse files may add up to, in bytes. They cost an archive
/// nothing, but a store their hashes: 512 MiB for so many.
pub const MAX_ZEROS: u64 = 256 << 30;

/// The source of a tree.
pub enum ImportSource<'a> {
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
pub enum RootNaming {
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
pub struct ImportOptions {
    /// How to treat files that are neither regular, directory nor symlink.
    pub special_files: SpecialFiles,
    /// For a tar archive: how many leading components to remove from every path. Entries with fewer
    /// are left out.
    pub strip_components: usize,
    /// The most bytes that an archive may decompress to, and the most zeros that the holes of its
    /// sparse files may add up to. None: the defaults of [`DecompressionLimits`], and [`MAX_ZEROS`].
    pub max_size: Option<u64>,
}

/// The result of an import.
#[derive(Clone, Debug)]
pub struct ImportResult {
    /// The root, as it is in the store now.
    pub root: Root,
    /// What was not in the store before.
    pub added: AddedTotals,
    /// What was read.
    pub totals: ImportTotals,
    /// Of a tree with a Nix name: the store path and the NAR.
    pub nix: Option<(StorePath, NarHash)>,
}

/// Imports a tree into `store` under a name. Blocks; see [`Blocking`] for where not to call it.
///
/// ```
/// use castore_fs::castore::{Name, Node};
/// use castore_fs::import::{ImportOptions, ImportProgress, ImportSource, RootNaming, import};
/// use castore_fs::store::Blocking;
///
/// let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("greeting"), "hello")?;
///
/// let runtime = tokio::runtime::Runtime::new()?;
/// let store = castore_fs::stores::open("memory:")?;
/// let store = Blocking::new(store, runtime.handle().clone());
/// let imported = import(
///     &store,
///     ImportSource::Path(dir.path()),
///     RootNaming::Name(Name::new(b"tree")?),
///     &ImportOptions::default(),
///     &ImportProgress::default(),
/// )?;
/// assert!(matches!(imported.root.node, Node::Directory { .. }));
/// assert_eq!(store.root(b"tree")?, Some(imported.root));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import(
    store: &Blocking,
    source: ImportSource<'_>,
    naming: RootNaming,
    options: &ImportOptions,
    progress: &ImportProgress,
) -> Result<ImportResult, ImportError> {
    if let RootNaming::Nix(name) = &naming {
        StorePath::check_name(name.as_bytes())?;
    }
    let ingest = store.ingest()?;
    if let RootNaming::Name(name) = &naming {
        ingest.check_root_name(name)?;
    }
    progress.enter(ImportStage::Reading);
    let node = add(&*ingest, source, options, progress)?;
    progress.check()?;
    match naming {
        RootNaming::Name(name) => {
            let root = Root { name, node };
            ingest.put_root(&root, None)?;
            progress.enter(ImportStage::Committing);
            let added = ingest.commit()?;
            Ok(ImportResult {
                root,
                added,
                totals: progress.totals(),
                nix: None,
            })
        }
        RootNaming::Nix(name) => {
            progress.enter(ImportStage::Committing);
            // It begins before, so that no garbage collection runs until the contents have a root.
            let named = store.ingest()?;
            let added = ingest.commit()?;
            progress.enter(ImportStage::HashingNar);
            let nar = nar_hash(store, &TreePath::new(name.as_bytes()), &node, progress)?;
            let path = nix::content_addressed(&name, &nar)?;
            let root = path.root(node);
            let path_info = PathInfo::content_addressed(&root, &nar);
            progress.check()?;
            progress.enter(ImportStage::Committing);
            named.put_root(&root, Some(&path_info))?;
            named.commit()?;
            Ok(ImportResult {
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
    source: ImportSource<'_>,
    options: &ImportOptions,
    progress: &ImportProgress,
) -> Result<Node, ImportError> {
    match source {
        ImportSource::Path(path) => path::add(ingest, path, options, progress),
        ImportSource::PlainNar(input) => nar::add(ingest, input, progress),
        ImportSource::Nar(input) => {
            let mut input = decompressed(input, options)
                .map_err(|source| crate::nar::NarError::Io { offset: 0, source })?;
            nar::add(ingest, &mut input, progress)
        }
        ImportSource::Tar(input) => {
            let mut input = decompressed(input, options)
                .map_err(|source| tar::TarError::Io { offset: 0, source })?;
            tar::add(ingest, &mut input, options, progress)
        }
    }
}

/// An archive without its compression, if it has one.
fn decompressed<'a>(
    input: &'a mut dyn Read,
    options: &ImportOptions,
) -> io::Result<Decoder<&'a mut dyn Read>> {
    let limits = options
        .max_size
        .map_or_else(DecompressionLimits::default, DecompressionLimits::of_output);
    Decoder::detect(input, limits)
}

/// Size and hash of the NAR of a tree in `store`.
fn nar_hash(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    progress: &ImportProgress,
) -> Result<NarHash, ImportError> {
    let mut sink = ImportHashingSink {
        progress,
        size: 0,
        hasher: Sha256::new(),
    };
    let uncounted = export::ExportProgress::default();
    let written = write_nar(store, path, node, &mut sink, &uncounted);
    progress.check()?;
    written?;
    Ok(NarHash {
        size: sink.size,
        sha256: sink.hasher.finalize().into(),
    })
}

/// Hashes what is written to it, until the import is cancelled.
struct ImportHashingSink<'a> {
    progress: &'a ImportProgress,
    size: u64,
    hasher: Sha256,
}

impl Write for ImportHashingSink<'_> {
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
