//! `castore-fs import`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use castore_fs::castore::{Name, Printable};
use castore_fs::import::{
    Error, Imported, Naming, Options, Progress, Source, SpecialFiles, Stage, import, tar,
};
use castore_fs::nix::StorePath;
use castore_fs::service::config::Size;
use castore_fs::store::{Added, Blocking};
use castore_fs::{compression, nar};
use clap::{Args, ValueEnum};
use data_encoding::BASE64;
use indicatif::{HumanBytes, HumanCount};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::failure::{Failure, failure, say};
use super::interrupt::on_interrupt;
use super::json;
use super::output::Output;
use super::progress::{self, Line};
use super::store::StoreArguments;

/// Put directories, files or archives into a store; prints the name of each
///
/// What the store has already costs nothing: importing the same again adds nothing. A root of the
/// same name is replaced. A failed or interrupted import leaves nothing. A symbolic link is
/// imported as a link.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs import ./tree
  castore-fs import --nix --json ./source
  castore-fs import --format tar tree.tar.zst
  curl https://example.org/tree.tar.gz | castore-fs import --format tar --name tree -")]
pub(super) struct Import {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    how: How,
    /// One JSON object a line: the root, what was read, and what of it was new
    #[arg(long)]
    json: bool,
    /// What to import; - reads an archive from standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// How a tree is read and named. The default is a directory or file under its own name.
#[derive(Debug, Default, Args)]
pub(super) struct How {
    /// The root's name; by default the last component of PATH
    #[arg(long)]
    name: Option<OsString>,
    /// Name it as Nix would (a content-addressed store path), and print the store path
    #[arg(long)]
    nix: bool,
    /// PATH is an archive of this format; gzip, xz, zstd and bzip2 around it are recognised
    #[arg(long, value_enum)]
    format: Option<Format>,
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
fn refuse_store_path(path: &Path, name: &OsString) -> Result<(), Failure> {
    if StorePath::from_base_name(name.as_bytes()).is_err() {
        return Ok(());
    }
    let path = Printable::path(path);
    Err(failure(format!(
        "{path} is a Nix store path already: import it under its own name with `castore-fs import {path}`, \
         or copy it with all that is known of it to `castore-fs serve --writable --binary-cache ADDRESS` \
         with `nix copy --to http://ADDRESS {path}`; --name NAME with --nix makes a new store path of it"
    )))
}

fn size(text: &str) -> Result<u64, String> {
    text.parse().map(|Size(bytes)| bytes)
}

/// Adds to a limit's error the option that raises it.
fn explain(error: Error) -> Failure {
    let limit = match &error {
        Error::Tar(tar::Error::TooSparse { .. }) => true,
        Error::Tar(tar::Error::Io { source, .. }) | Error::Nar(nar::Error::Io { source, .. }) => {
            let inner = source.get_ref().and_then(|inner| inner.downcast_ref());
            matches!(inner, Some(compression::Error::Output { .. }))
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
enum Format {
    /// A tar archive
    Tar,
    /// A Nix archive
    Nar,
}

#[derive(Serialize)]
struct Object {
    #[serde(flatten)]
    name: json::Name,
    #[serde(flatten)]
    node: json::Node,
    read: castore_fs::import::Totals,
    added: Added,
    #[serde(skip_serializing_if = "Option::is_none")]
    nix: Option<Nix>,
}

#[derive(Serialize)]
struct Nix {
    store_path: String,
    nar_size: u64,
    nar_hash: String,
}

impl Import {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.check()?;
        let opened = self.store.open_or_make()?;
        let mut output = Output::open()?;
        let current = Arc::new(Current::default());
        let interrupted = current.clone();
        on_interrupt(&opened.runtime, move || interrupted.cancel())?;
        let mut all_done = true;
        for path in &self.paths {
            match self.how.import(&opened.store, path, &current) {
                Ok(imported) => {
                    self.print(&imported, &mut output)?;
                    // One result at a time, for a reader that follows the output.
                    output.flush()?;
                }
                Err(_) if current.is_cancelled() => return Err(Failure::Interrupted),
                Err(Failure::Message(message)) => {
                    say(&message);
                    all_done = false;
                }
                Err(failure) => return Err(failure),
            }
        }
        match all_done {
            true => Ok(()),
            false => Err(Failure::Reported),
        }
    }

    /// Fails if the arguments exclude each other.
    fn check(&self) -> Result<(), Failure> {
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
        Err(Failure::Usage(wrong.to_owned()))
    }

    fn reads_stdin(&self) -> bool {
        self.paths.iter().any(|path| path.as_os_str() == "-")
    }

    fn print(&self, imported: &Imported, output: &mut Output) -> Result<(), Failure> {
        if self.json {
            return output.json(&Object {
                name: imported.root.name.as_bytes().into(),
                node: imported.root.node.borrow().into(),
                read: imported.totals,
                added: imported.added,
                nix: imported.nix.as_ref().map(|(path, nar)| Nix {
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

impl How {
    /// Imports `path`, with a progress display.
    pub(super) fn import(
        &self,
        store: &Blocking,
        path: &Path,
        current: &Current,
    ) -> Result<Imported, Failure> {
        let progress = current.next();
        let naming = self.naming(path)?;
        let options = Options {
            special_files: match self.skip_special {
                true => SpecialFiles::Skip,
                false => SpecialFiles::Refuse,
            },
            strip_components: self.strip_components,
            max_size: self.max_size,
        };
        let mut archive: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(Stdin::open(current)?)
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
            None => Source::Path(path),
            Some(Format::Nar) => Source::Nar(&mut archive),
            Some(Format::Tar) => Source::Tar(&mut archive),
        };
        let watched = progress.clone();
        let line = Line::show("importing", move || state(&watched));
        let imported = import(store, source, naming, &options, &progress);
        drop(line);
        let imported = imported.map_err(explain)?;
        if progress::is_shown() {
            let (totals, added) = (imported.totals, imported.added);
            say(&format!(
                "{} files, {}; new: {} blobs, {}",
                HumanCount(totals.files),
                HumanBytes(totals.bytes),
                HumanCount(added.blobs),
                HumanBytes(added.blob_bytes)
            ));
        }
        Ok(imported)
    }

    fn naming(&self, path: &Path) -> Result<Naming, Failure> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.base_name(path)?,
        };
        if self.nix && self.name.is_none() && self.format.is_none() {
            refuse_store_path(path, &name)?;
        }
        if self.nix {
            return match name.into_string() {
                Ok(name) => Ok(Naming::Nix(name)),
                Err(name) => Err(failure(format!(
                    "{} cannot be the name of a Nix store path: it is not UTF-8; \
                     give another with --name NAME",
                    Printable(name.as_bytes())
                ))),
            };
        }
        Name::new(name.as_bytes())
            .map(Naming::Name)
            .map_err(|error| failure(format!("{}: {error}", Printable(name.as_bytes()))))
    }

    /// The last component of `path`, for an archive without its suffix.
    fn base_name(&self, path: &Path) -> Result<OsString, Failure> {
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
            Some(Format::Tar) => &[b".tar", b".tgz", b".txz", b".tzst", b".tbz2", b".tbz"],
            Some(Format::Nar) => &[b".nar"],
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

/// The running import, and whether it is to stop.
#[derive(Default)]
pub(super) struct Current {
    progress: Mutex<Arc<Progress>>,
    cancelled: AtomicBool,
}

impl Current {
    /// Starts another import.
    pub(super) fn next(&self) -> Arc<Progress> {
        let progress = Arc::new(Progress::new());
        *self.progress.lock() = progress.clone();
        if self.is_cancelled() {
            progress.cancel();
        }
        progress
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.progress.lock().cancel();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// Standard input, which stops waiting for more once the import is to stop.
///
/// Read by its descriptor: the library's own handle has a buffer, whose contents poll(2) does not
/// see.
struct Stdin<'c> {
    file: File,
    current: &'c Current,
}

impl<'c> Stdin<'c> {
    fn open(current: &'c Current) -> Result<Self, Failure> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned();
        let file = descriptor
            .map_err(|error| failure(format!("cannot read standard input: {error}")))?
            .into();
        Ok(Self { file, current })
    }
}

impl Read for Stdin<'_> {
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
fn state(progress: &Progress) -> (String, u64) {
    let totals = progress.totals();
    match progress.stage() {
        Stage::Reading => {
            let files = HumanCount(totals.files);
            let found = HumanCount(progress.files_found());
            (format!("{files} of {found} files"), totals.bytes)
        }
        Stage::Committing => ("making it durable".to_owned(), totals.bytes),
        Stage::HashingNar => ("hashing the NAR".to_owned(), progress.nar_bytes()),
    }
}
