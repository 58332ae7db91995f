//! `castore-fs import`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::castore::Printable;
use crate::import::{
    ImportError, ImportOptions, ImportProgress, ImportResult, ImportSource, ImportStage,
    RootNaming, SpecialFiles, import, tar,
};
use crate::nix::{NarinfoFile, STORE_DIR, StorePath};
use crate::quantity::count;
use crate::store::{AddedTotals, Blocking};
use crate::{compression, nar};
use clap::{Args, ValueEnum};
use data_encoding::BASE64;
use indicatif::{HumanBytes, HumanCount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::failure::{CommandFailure, failure, print_error};
use super::import_paths::{closure_of_machine, import_closure, path_of_machine, store_path};
use super::interrupt::on_interrupt;
use super::json;
use super::names::root_name;
use super::output::Output;
use super::progress::{self, ProgressLine, ProgressState, QuietArgument};
use super::running_import::RunningImport;
use super::store::StoreArguments;
use super::units::size;

/// Put directories, files or archives into a store; prints the name of each
///
/// What the store has already costs nothing: importing the same again adds nothing. A root of the
/// same name is replaced. A failed or interrupted import leaves nothing. A symbolic link is
/// imported as a link.
///
/// A path of the Nix store, /nix/store/HASH-NAME, is imported with its references, signatures and deriver, as
/// the Nix daemon of this machine knows them ($NIX_DAEMON_SOCKET_PATH, by default
/// /nix/var/nix/daemon-socket/socket), and only if it has the NAR that Nix knows.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs import ./tree
  castore-fs import --nix --json ./source
  castore-fs import --closure $(readlink -f /run/current-system)
  castore-fs import --format tar tree.tar.zst
  curl https://example.org/tree.tar.gz | castore-fs import --format tar --name tree -")]
pub(super) struct Import {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    how: ImportArguments,
    /// PATH is a path of the Nix store, or a link to one: import it and every path that it refers to
    #[arg(long, conflicts_with_all = ["name", "nix", "format", "skip_special", "strip_components"])]
    closure: bool,
    /// With --closure: the directory that the store paths are in
    #[arg(long, value_name = "DIR", default_value = STORE_DIR, requires = "closure")]
    paths_in: PathBuf,
    /// One JSON object a line: the root, what was read, and what of it was new
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
    /// What to import; - reads an archive from standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// How a tree is read and named. The default is a directory or file under its own name.
#[derive(Debug, Default, Args)]
pub(super) struct ImportArguments {
    /// The root's name; by default the last component of PATH
    #[arg(long)]
    name: Option<OsString>,
    /// Name it as Nix would (a content-addressed store path), and print the store path
    #[arg(long)]
    nix: bool,
    /// PATH is an archive of this format; gzip, xz, zstd and bzip2 around it are recognised
    #[arg(long, value_enum)]
    format: Option<ImportFormat>,
    /// Leave out devices, sockets and named pipes, which a castore cannot hold
    #[arg(long)]
    skip_special: bool,
    /// Of a tar archive, remove so many leading components from every path
    #[arg(long, value_name = "N", default_value_t = 0)]
    strip_components: usize,
    /// The most that an archive may decompress to, such as 100GiB. By default 8 GiB or 2000 times the
    /// archive, and 256 GiB of zeros in sparse files
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
}

/// A store path has its name, which is not to be made part of another one.
fn refuse_store_path(path: &Path, name: &OsString) -> Result<(), CommandFailure> {
    if StorePath::from_base_name(name.as_bytes()).is_err() {
        return Ok(());
    }
    let path = Printable::path(path);
    Err(failure(format!(
        "{path} is a Nix store path already: import it under its own name with `castore-fs import {path}`, \
         or with everything that it refers to with `castore-fs import --closure {path}`; --name NAME with \
         --nix makes a new store path of it"
    )))
}

/// Adds to a limit's error the option that raises it.
fn explain(error: ImportError) -> CommandFailure {
    let limit = match &error {
        ImportError::Tar(tar::TarError::TooSparse { .. }) => true,
        ImportError::Tar(tar::TarError::Io { source, .. })
        | ImportError::Nar(nar::NarError::Io { source, .. }) => {
            let inner = source.get_ref().and_then(|inner| inner.downcast_ref());
            matches!(inner, Some(compression::DecompressionError::Output { .. }))
        }
        _ => false,
    };
    match limit {
        true => failure(format!(
            "{error}; if that is right, allow more with --max-size SIZE"
        )),
        false => error.into(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImportFormat {
    /// A tar archive
    Tar,
    /// A Nix archive
    Nar,
}

#[derive(Serialize)]
struct ImportedObject {
    #[serde(flatten)]
    name: json::JsonName,
    #[serde(flatten)]
    node: json::JsonNode,
    read: crate::import::ImportTotals,
    added: AddedTotals,
    #[serde(skip_serializing_if = "Option::is_none")]
    nix: Option<ImportedNixPath>,
}

#[derive(Serialize)]
struct ImportedNixPath {
    store_path: String,
    nar_size: u64,
    nar_hash: String,
}

impl Import {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.check()?;
        self.quiet.apply();
        // Before a signal is handled: until the daemon has answered, it ends the command.
        let closure = match self.closure {
            true => Some(closure_of_machine(&self.paths)?),
            false => None,
        };
        let opened = self.store.open_or_make()?;
        let mut output = Output::open()?;
        let current = Arc::new(RunningImport::default());
        let interrupted = current.clone();
        on_interrupt(&opened.runtime, move || interrupted.cancel())?;
        if let Some(closure) = closure {
            import_closure(&opened.store, &closure, &self.paths_in, &current, |path| {
                self.print(&path.imported, &mut output)?;
                Ok(output.flush()?)
            })?;
            return Ok(());
        }
        let mut all_done = true;
        for path in &self.paths {
            match self.how.import(&opened.store, path, &current) {
                Ok(imported) => {
                    self.print(&imported, &mut output)?;
                    // One result at a time, for a reader that follows the output.
                    output.flush()?;
                }
                Err(_) if current.is_cancelled() => return Err(CommandFailure::Interrupted),
                Err(CommandFailure::Message(message)) => {
                    print_error(&message);
                    all_done = false;
                }
                Err(failure) => return Err(failure),
            }
        }
        match all_done {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }

    /// Fails if the arguments exclude each other.
    fn check(&self) -> Result<(), CommandFailure> {
        let wrong = if self.how.name.is_some() && self.paths.len() > 1 {
            "--name names one tree: give one PATH with it"
        } else if !self.reads_stdin() {
            return Ok(());
        } else if self.how.format.is_none() {
            "- needs --format tar or --format nar, to know what standard input is"
        } else if self.how.name.is_none() {
            "- needs --name NAME, since standard input has no name"
        } else {
            return Ok(());
        };
        Err(CommandFailure::Usage(wrong.to_owned()))
    }

    fn reads_stdin(&self) -> bool {
        self.paths.iter().any(|path| path.as_os_str() == "-")
    }

    fn print(&self, imported: &ImportResult, output: &mut Output) -> Result<(), CommandFailure> {
        if self.json {
            return output.json(&ImportedObject {
                name: imported.root.name.as_bytes().into(),
                node: imported.root.node.borrow().into(),
                read: imported.totals,
                added: imported.added,
                nix: imported.nix.as_ref().map(|(path, nar)| ImportedNixPath {
                    store_path: path.absolute(),
                    nar_size: nar.size,
                    nar_hash: format!("sha256-{}", BASE64.encode(&nar.sha256)),
                }),
            });
        }
        let mut line = match &imported.nix {
            Some((path, _)) => path.absolute().into_bytes(),
            None => output.name(&imported.root.name).into_owned(),
        };
        line.push(b'\n');
        output.write_all(&line)?;
        Ok(())
    }
}

impl ImportArguments {
    /// Imports `path`, with a progress display.
    pub(super) fn import(
        &self,
        store: &Blocking,
        path: &Path,
        current: &RunningImport,
    ) -> Result<ImportResult, CommandFailure> {
        if let Some(known) = self.known(path) {
            let mut imported = None;
            import_closure(store, &[known], Path::new(STORE_DIR), current, |path| {
                imported = Some(path.imported);
                Ok(())
            })?;
            if let Some(imported) = imported {
                return Ok(imported);
            }
        }
        let progress = current.next();
        let naming = self.naming(path)?;
        let options = ImportOptions {
            special_files: match self.skip_special {
                true => SpecialFiles::Skip,
                false => SpecialFiles::Refuse,
            },
            strip_components: self.strip_components,
            max_size: self.max_size,
        };
        let mut archive: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(PolledStdin::open(current)?)
        } else if self.format.is_some() {
            let file = File::open(path);
            Box::new(file.map_err(|error| {
                failure(format!(
                    "cannot open the archive {}: {error}",
                    Printable::path(path)
                ))
            })?)
        } else {
            Box::new(io::empty())
        };
        let source = match self.format {
            None => ImportSource::Path(path),
            Some(ImportFormat::Nar) => ImportSource::Nar(&mut archive),
            Some(ImportFormat::Tar) => ImportSource::Tar(&mut archive),
        };
        let watched = progress.clone();
        let line = ProgressLine::show("importing", move || state(&watched));
        let imported = import(store, source, naming, &options, &progress);
        drop(line);
        let imported = imported.map_err(explain)?;
        if progress::is_shown() {
            let (totals, added) = (imported.totals, imported.added);
            print_error(&format!(
                "{}, {}; new: {}, {}",
                count(totals.files, "file", "files"),
                HumanBytes(totals.bytes),
                count(added.blobs, "blob", "blobs"),
                HumanBytes(added.blob_bytes)
            ));
        }
        Ok(imported)
    }

    /// What this machine's Nix knows of `path`, if that is imported as a path of the Nix store.
    fn known(&self, path: &Path) -> Option<NarinfoFile> {
        if self.name.is_some() || self.nix || self.format.is_some() || self.skip_special {
            return None;
        }
        path_of_machine(&store_path(path)?)
    }

    fn naming(&self, path: &Path) -> Result<RootNaming, CommandFailure> {
        let name = match &self.name {
            // As for every other verb.
            Some(name) => match name.as_bytes().strip_prefix(b"/nix/store/") {
                Some(name) => OsString::from_vec(name.to_vec()),
                None => name.clone(),
            },
            None => self.base_name(path)?,
        };
        if self.nix && self.name.is_none() && self.format.is_none() {
            refuse_store_path(path, &name)?;
        }
        if self.nix {
            return match name.into_string() {
                Ok(name) => Ok(RootNaming::Nix(name)),
                Err(name) => Err(failure(format!(
                    "{} cannot be the name of a Nix store path: it is not UTF-8; \
                     give another with --name NAME",
                    Printable(name.as_bytes())
                ))),
            };
        }
        root_name(Path::new(&name)).map(RootNaming::Name)
    }

    /// The last component of `path`, for an archive without its suffix.
    fn base_name(&self, path: &Path) -> Result<OsString, CommandFailure> {
        let name = match path.file_name() {
            Some(name) => name.to_owned(),
            // A path that ends in `.` or `..` has a name all the same.
            None => fs::canonicalize(path)
                .map_err(|error| {
                    failure(format!("cannot open {}: {error}", Printable::path(path)))
                })?
                .file_name()
                .map(ToOwned::to_owned)
                .ok_or_else(|| {
                    failure(format!(
                        "{} has no name: give --name NAME",
                        Printable::path(path)
                    ))
                })?,
        };
        let endings: &[&[u8]] = match self.format {
            None => return Ok(name),
            Some(ImportFormat::Tar) => &[b".tar", b".tgz", b".txz", b".tzst", b".tbz2", b".tbz"],
            Some(ImportFormat::Nar) => &[b".nar"],
        };
        let whole = name.as_bytes();
        let compressed = [&b".gz"[..], b".xz", b".zst", b".bz2"];
        let mut endings_of_compression = compressed.iter();
        let bytes = endings_of_compression
            .find_map(|ending| whole.strip_suffix(*ending))
            .unwrap_or(whole);
        let stem = endings
            .iter()
            .find_map(|ending| bytes.strip_suffix(*ending));
        match stem {
            Some(stem) if !stem.is_empty() => Ok(OsString::from_vec(stem.to_vec())),
            _ => Ok(name),
        }
    }
}

/// Standard input, which stops waiting for more once the import is to stop.
///
/// Read by its descriptor: the library's own handle has a buffer, whose contents poll(2) does not
/// see.
struct PolledStdin<'c> {
    file: File,
    current: &'c RunningImport,
}

impl<'c> PolledStdin<'c> {
    fn open(current: &'c RunningImport) -> Result<Self, CommandFailure> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned();
        let file = descriptor
            .map_err(|error| failure(format!("cannot read standard input: {error}")))?
            .into();
        Ok(Self { file, current })
    }
}

impl Read for PolledStdin<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.current.is_cancelled() {
                return Err(io::Error::other("interrupted"));
            }
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let ready = {
                let mut wait = [PollFd::new(&self.file, PollFlags::IN)];
                match poll(&mut wait, Some(&timeout)) {
                    Ok(ready) => ready > 0,
                    Err(Errno::INTR) => false,
                    Err(error) => return Err(error.into()),
                }
            };
            if ready {
                return self.file.read(buffer);
            }
        }
    }
}

/// The progress of an import, for display.
fn state(progress: &ImportProgress) -> ProgressState {
    let totals = progress.totals();
    let (words, bytes) = match progress.stage() {
        ImportStage::Reading => {
            let files = HumanCount(totals.files);
            let found = count(progress.files_found(), "file", "files");
            (format!("{files} of {found}"), totals.bytes)
        }
        ImportStage::Committing => ("making it durable".to_owned(), totals.bytes),
        ImportStage::HashingNar => ("hashing the NAR".to_owned(), progress.nar_bytes()),
    };
    ProgressState {
        words,
        bytes,
        part: None,
    }
}
