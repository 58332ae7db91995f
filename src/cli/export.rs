//! `castore-fs export`.

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::castore::{Directory, Node, Root};
use crate::image::{ImageRoot, ImageVersion};
use crate::nix::STORE_DIR;
use crate::quantity::count;
use crate::store::Blocking;
use crate::tree::{
    self, ImageFile, KindPreference, NewFile, ResolvedTarget, Target, TreePath, export, image_root,
    image_to_file, nar, tar, write_image,
};
use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::failure::{CommandFailure, failure};
use super::interrupt::on_interrupt;
use super::json::{JsonNode, JsonPath};
use super::names::closure_roots;
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, QuietArgument};
use super::store::StoreArguments;

/// Write a tree out: as files, as a tar or NAR archive, or as a disk image
///
/// As files: modes are 0644 and 0755 whatever the umask, times are second 1, and DESTINATION is
/// complete or does not exist, also for archives and images. As tar: owner 0:0, times second 1,
/// names in byte order, so that equal trees give equal archives. As erofs: an image that Linux
/// mounts, with the same bytes as the file that a mount shows in .images; zeros take no room on the
/// disk.
///
/// With --closure: a directory, archive or image that holds TARGET and every Nix store path that it
/// refers to, each under its name.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs export tree ./copy
  castore-fs export --format tar tree/share | zstd > share.tar.zst
  castore-fs export --closure --format erofs dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1 hello.erofs")]
pub(super) struct ExportCommand {
    #[command(flatten)]
    store: StoreArguments,
    /// The output format
    #[arg(long, value_enum, default_value_t = ExportFormat::Dir)]
    format: ExportFormat,
    /// TARGET is a root: with every Nix store path that it refers to
    #[arg(long)]
    closure: bool,
    /// One JSON object: `path`, `destination`, what TARGET is, and `written`, the bytes of its files
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
    /// What to export: NAME[/PATH] or a digest
    target: PathBuf,
    /// The output; must not exist. Archives and images go to standard output without it
    destination: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Files, directories and symbolic links
    Dir,
    /// A tar archive (ustar with pax headers)
    Tar,
    /// A Nix archive
    Nar,
    /// An EROFS disk image
    Erofs,
}

/// What is exported, and of which store.
struct ExportedTree {
    store: Blocking,
    found: ResolvedTarget,
    /// Of a closure: its roots, which `found` lists.
    closure: Option<Vec<Root>>,
}

/// What was exported, in JSON.
#[derive(Serialize)]
struct ExportedObject {
    #[serde(flatten)]
    path: JsonPath,
    #[serde(flatten)]
    node: JsonNode,
    destination: JsonPath,
    written: u64,
}

impl ExportCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let has_destination = self
            .destination
            .as_ref()
            .is_some_and(|path| path.as_os_str() != "-");
        if self.format == ExportFormat::Dir && !has_destination {
            return Err(CommandFailure::Usage(
                "files need a DESTINATION: castore-fs export TARGET DESTINATION; an archive (--format tar) goes to \
                 standard output without one"
                    .to_owned(),
            ));
        }
        let opened = self.store.open()?;
        let tree = self.find(&opened.store)?;
        let progress = Arc::new(export::ExportProgress::default());
        let stopped = progress.clone();
        on_interrupt(&opened.runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let destination = self.destination.filter(|path| path.as_os_str() != "-");
        if self.json && destination.is_none() {
            return Err(CommandFailure::Usage(
                "--json needs a DESTINATION: without one, standard output has the archive"
                    .to_owned(),
            ));
        }
        let object = destination.clone().filter(|_| self.json);
        let image = match self.format {
            ExportFormat::Erofs => Some(tree.image()?),
            _ => None,
        };
        let (counted, all) = (progress.clone(), tree.found.node.stated_names());
        let image_size = image.as_ref().map(ImageFile::size);
        let state = move || {
            let nodes = counted.nodes.load(Ordering::Relaxed);
            let bytes = counted.bytes.load(Ordering::Relaxed);
            match image_size {
                Some(size) => ProgressState {
                    words: format!("of an image of {}", HumanBytes(size)),
                    bytes,
                    part: Some((bytes, size)),
                },
                None => ProgressState {
                    words: format!("{} of {}", HumanCount(nodes), count(all, "file", "files")),
                    bytes,
                    part: Some((nodes, all)),
                },
            }
        };
        match (self.format, destination) {
            (ExportFormat::Dir, Some(path)) => {
                let _line = ProgressLine::show("exporting", state);
                let ExportedTree { store, found, .. } = &tree;
                export::to_directory(store, &found.path, &found.node, &path, &progress)?;
            }
            (format, None) => {
                let mut output = Output::open()?;
                if output.is_terminal() {
                    return Err(failure(
                        "an archive or image does not belong on a terminal: give a DESTINATION or a pipe",
                    ));
                }
                let _line = ProgressLine::show("exporting", state);
                match image {
                    Some(image) => write_image(&image, &tree.store, &mut output, &progress)?,
                    None => tree.write_archive(format, &mut output, &progress)?,
                }
            }
            (format, Some(path)) => {
                let _line = ProgressLine::show("exporting", state);
                tree.write_file(format, image.as_ref(), &path, &progress)?;
            }
        }
        if let Some(path) = object {
            let mut output = Output::open()?;
            output.json(&ExportedObject {
                path: tree.found.path.as_bytes().into(),
                node: tree.found.node.borrow().into(),
                destination: path.as_os_str().as_bytes().into(),
                written: progress.bytes.load(Ordering::Relaxed),
            })?;
            output.flush()?;
        }
        Ok(())
    }

    fn find(&self, store: &Blocking) -> Result<ExportedTree, CommandFailure> {
        let target = Target::try_from(self.target.as_path())?;
        let found = target.resolve(store, KindPreference::Directory)?;
        if !self.closure {
            return Ok(ExportedTree {
                store: store.clone(),
                found,
                closure: None,
            });
        }
        if self.format == ExportFormat::Nar {
            return Err(failure(
                "a NAR holds one store path: --closure takes the formats dir, tar and erofs",
            ));
        }
        let root = found.root.filter(|root| root.name == found.name);
        let root = root.ok_or_else(|| {
            failure("--closure exports a whole root: give its name, without a path below it")
        })?;
        let roots = closure_roots(store, &[OsStr::from_bytes(&root.name)])?;
        let entries = roots.iter().cloned().map(|root| (root.name, root.node));
        let listing = Directory::from_entries(entries.collect())?;
        let found = ResolvedTarget {
            path: TreePath::new(STORE_DIR.as_bytes()),
            node: listing.node(),
            root: None,
            name: root.name,
        };
        Ok(ExportedTree {
            store: store.clone().with_directory(listing),
            found,
            closure: Some(roots),
        })
    }
}

impl ExportedTree {
    /// Writes an archive or image to a new file, which appears when it is complete.
    fn write_file(
        &self,
        format: ExportFormat,
        image: Option<&ImageFile>,
        path: &Path,
        progress: &export::ExportProgress,
    ) -> Result<(), CommandFailure> {
        let new = NewFile::make(path)?;
        match image {
            Some(image) => image_to_file(image, &self.store, new.file(), path, progress)?,
            None => {
                let mut out = BufWriter::with_capacity(256 << 10, new.file());
                self.write_archive(format, &mut out, progress)?;
                out.flush().map_err(tree::TreeError::Output)?;
            }
        }
        Ok(new.place()?)
    }

    fn write_archive(
        &self,
        format: ExportFormat,
        out: &mut dyn Write,
        progress: &export::ExportProgress,
    ) -> Result<(), CommandFailure> {
        let store = &self.store;
        let ResolvedTarget {
            path, node, name, ..
        } = &self.found;
        match format {
            ExportFormat::Nar => nar::write_nar(store, path, node, out, progress)?,
            ExportFormat::Tar | ExportFormat::Dir | ExportFormat::Erofs => {
                tar::write_tar(store, path, node, name, out, progress)?
            }
        }
        Ok(())
    }

    /// The image: of a file or symbolic link, of a directory that contains it under its name.
    fn image(&self) -> Result<ImageFile, CommandFailure> {
        let image_root = match (&self.closure, &self.found.node) {
            (Some(roots), _) => ImageRoot::roots(roots)?,
            (None, Node::Directory { digest, .. }) => ImageRoot::Directory(*digest),
            (None, node) => {
                let root = Root {
                    name: self.found.name.clone(),
                    node: node.clone(),
                };
                image_root(&[root]).map_err(tree::TreeError::from)?
            }
        };
        let version = ImageVersion::default();
        let store = self.store.store().clone();
        let made = ImageFile::new(store, image_root, version, self.store.runtime());
        Ok(made.map_err(tree::TreeError::from)?)
    }
}
