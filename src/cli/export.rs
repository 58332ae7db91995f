//! `castore-fs export`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Node, Root};
use castore_fs::image::{ImageTop, ImageVersion};
use castore_fs::store::Blocking;
use castore_fs::tree::{
    self, Found, ImageFile, NewFile, Preference, Target, export, image_to_file, image_top, nar,
    tar, write_image,
};
use clap::{Args, ValueEnum};
use indicatif::HumanCount;

use super::failure::{Failure, failure};
use super::interrupt::on_interrupt;
use super::output::Output;
use super::progress::Line;
use super::store::StoreArguments;

/// Write a tree out: as files, as a tar or NAR archive, or as a disk image
///
/// As files: modes are 0644 and 0755 whatever the umask, times are second 1, and DESTINATION is
/// complete or does not exist, also for archives and images. As tar: owner 0:0, times second 1,
/// names in byte order, so that equal trees give equal archives. As erofs: an image that Linux
/// mounts, with the same bytes as the file that a mount shows in .images; zeros take no room on the
/// disk.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs export tree ./copy
  castore-fs export --format tar tree/share | zstd > share.tar.zst")]
pub(super) struct Export {
    #[command(flatten)]
    store: StoreArguments,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Dir)]
    format: Format,
    /// What to export: NAME[/PATH] or a digest
    target: PathBuf,
    /// The output; must not exist. Archives and images go to standard output without it
    destination: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Files, directories and symbolic links
    Dir,
    /// A tar archive (ustar with pax headers)
    Tar,
    /// A Nix archive
    Nar,
    /// An EROFS disk image
    Erofs,
}

impl Export {
    pub(super) fn run(self) -> Result<(), Failure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let target = Target::try_from(self.target.as_path())?;
        let found = target.resolve(store, Preference::Directory)?;
        let progress = Arc::new(export::Progress::default());
        let stopped = progress.clone();
        on_interrupt(&opened.runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let destination = self.destination.filter(|path| path.as_os_str() != "-");
        let counted = progress.clone();
        let state = move || {
            let nodes = HumanCount(counted.nodes.load(Ordering::Relaxed));
            let bytes = counted.bytes.load(Ordering::Relaxed);
            (format!("{nodes} files"), bytes)
        };
        match (self.format, destination) {
            (Format::Dir, None) => Err(failure(
                "files need a DESTINATION: castore-fs export TARGET DESTINATION",
            )),
            (Format::Dir, Some(path)) => {
                let _line = Line::show("exporting", state);
                export::to_directory(store, &found.path, &found.node, &path, &progress)?;
                Ok(())
            }
            (format, None) => {
                let mut output = Output::open()?;
                if output.is_terminal() {
                    return Err(failure(
                        "an archive or image does not belong on a terminal: give a DESTINATION or a pipe",
                    ));
                }
                let _line = Line::show("exporting", state);
                match format {
                    Format::Erofs => {
                        let image = image(store, &found)?;
                        Ok(write_image(&image, store, &mut output, &progress)?)
                    }
                    _ => write_archive(store, &found, format, &mut output, &progress),
                }
            }
            (format, Some(path)) => {
                let _line = Line::show("exporting", state);
                to_file(store, &found, format, &path, &progress)
            }
        }
    }
}

/// Writes an archive to a new file, which appears when it is complete.
fn to_file(
    store: &Blocking,
    found: &Found,
    format: Format,
    path: &Path,
    progress: &export::Progress,
) -> Result<(), Failure> {
    let new = NewFile::make(path)?;
    match format {
        Format::Erofs => {
            image_to_file(&image(store, found)?, store, new.file(), path, progress)?;
        }
        _ => {
            let mut out = BufWriter::with_capacity(256 << 10, new.file());
            write_archive(store, found, format, &mut out, progress)?;
            out.flush().map_err(tree::Error::Output)?;
        }
    }
    Ok(new.place()?)
}

fn write_archive(
    store: &Blocking,
    found: &Found,
    format: Format,
    out: &mut dyn Write,
    progress: &export::Progress,
) -> Result<(), Failure> {
    let Found {
        path, node, name, ..
    } = found;
    match format {
        Format::Nar => nar::write_nar(store, path, node, out, progress)?,
        Format::Tar | Format::Dir | Format::Erofs => {
            tar::write_tar(store, path, node, name, out, progress)?
        }
    }
    Ok(())
}

/// The image of the target: of a file or symbolic link, a directory that contains it under its
/// name.
fn image(store: &Blocking, found: &Found) -> Result<ImageFile, Failure> {
    let top = match &found.node {
        Node::Directory { digest, .. } => ImageTop::Directory(*digest),
        node => {
            let root = Root {
                name: found.name.clone(),
                node: node.clone(),
            };
            image_top(&[root]).map_err(tree::Error::from)?
        }
    };
    let version = ImageVersion::default();
    let made = ImageFile::new(store.store().clone(), top, version, store.runtime());
    Ok(made.map_err(tree::Error::from)?)
}
