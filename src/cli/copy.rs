//! `castore-fs copy`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::{Name, Printable, Root};
use castore_fs::import;
use castore_fs::nix::{MAX_GRAPH_BYTES, NarinfoFile, STORE_DIR, parse_reference_graph};
use castore_fs::store::Blocking;
use castore_fs::tree::copy::{self, Progress};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use std::os::unix::ffi::OsStrExt;
use tokio::runtime::Runtime;

use super::failure::{Failure, failure};
use super::import::Current;
use super::interrupt::on_interrupt;
use super::output::Output;
use super::progress::Line;
use super::store::{ConfigArguments, Place};

/// Copy roots and everything below them from one store to another
///
/// Sends only what the other store lacks. An interrupted copy continues where it stopped when it is
/// started again. A root of the same name is replaced.
///
/// With --closure the paths of a reference graph are copied, with their references, signatures and
/// derivers: of the store --from, or without it of this machine. Each has to have the NAR that the graph
/// says. The graph is JSON: the attributes of a derivation with exportReferencesGraph, its graph alone, or
/// what `nix path-info --json --recursive` prints.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs copy --from local:/srv/castore --to grpc+https://cache.example tree
  castore-fs copy --from grpc+unix:/run/castore.sock --to local:/srv/castore --all
  nix path-info --json --recursive nixpkgs#hello | castore-fs copy --closure - --to local:/srv/castore")]
pub(super) struct Copy {
    /// The store to read from: a URL, or store:NAME
    #[arg(long, value_name = "URL", required_unless_present = "closure")]
    from: Option<String>,
    /// The store to write to: a URL, or store:NAME
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    config: ConfigArguments,
    /// Every root of the store
    #[arg(long, conflicts_with_all = ["names", "closure"])]
    all: bool,
    /// The paths of this reference graph; - reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "names")]
    closure: Option<PathBuf>,
    /// With --closure and without --from: the directory that the store paths are in
    #[arg(long, value_name = "DIR", default_value = STORE_DIR, conflicts_with = "from")]
    paths_in: PathBuf,
    /// The roots' names
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "closure"])]
    names: Vec<PathBuf>,
}

impl Copy {
    pub(super) fn run(self) -> Result<(), Failure> {
        let closure = self.closure.as_deref().map(read_graph).transpose()?;
        let runtime = Runtime::new()?;
        let from = self.from.as_deref().map(|from| self.config.place(from));
        let (from, to) = (from.transpose()?, self.config.place(&self.to)?);
        let open = |place: Place| {
            let store = place.open(&runtime)?;
            Ok::<_, Failure>(Blocking::new(store, runtime.handle().clone()))
        };
        if let Some(from) = &from {
            from.must_exist()?;
        }
        let (from, to) = (from.map(open).transpose()?, open(to)?);
        let mut output = Output::open()?;
        match (from, closure) {
            (Some(from), closure) => self.copy(&runtime, &from, &to, closure, &mut output)?,
            (None, Some(closure)) => self.import(&runtime, &to, &closure, &mut output)?,
            (None, None) => return Err(failure("there is neither --from nor --closure")),
        }
        output.flush()?;
        Ok(())
    }

    fn copy(
        &self,
        runtime: &Runtime,
        from: &Blocking,
        to: &Blocking,
        closure: Option<Vec<NarinfoFile>>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let roots = match &closure {
            Some(_) => Vec::new(),
            None => self.roots(from)?,
        };
        let progress = Arc::new(Progress::default());
        let stopped = progress.clone();
        on_interrupt(runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let counted = progress.clone();
        let line = Line::show("copying", move || {
            let blobs = HumanCount(counted.blobs.load(Ordering::Relaxed));
            let skipped = HumanCount(counted.skipped.load(Ordering::Relaxed));
            let bytes = counted.bytes.load(Ordering::Relaxed);
            (
                format!("{blobs} blobs sent, {skipped} there already"),
                bytes,
            )
        });
        match &closure {
            Some(closure) => copy::copy_closure(from, to, closure, &progress)?,
            None => copy::copy(from, to, &roots, &progress)?,
        };
        drop(line);
        let count = closure.map_or(roots.len(), |closure| closure.len());
        let sent = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        writeln!(
            output,
            "{} roots; sent {} directories, {} blobs, {}; {} blobs were there already",
            HumanCount(count as u64),
            HumanCount(sent(&progress.directories)),
            HumanCount(sent(&progress.blobs)),
            HumanBytes(sent(&progress.bytes)),
            HumanCount(sent(&progress.skipped)),
        )?;
        Ok(())
    }

    /// The roots that were named, or all.
    fn roots(&self, from: &Blocking) -> Result<Vec<Root>, Failure> {
        if self.all {
            return Ok(from.roots()?);
        }
        let mut roots = Vec::new();
        for path in &self.names {
            let bytes = path.as_os_str().as_bytes();
            let name = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
            let name =
                Name::new(name).map_err(|error| failure(format!("{}: {error}", path.display())))?;
            let root = from.root(&name)?;
            roots.push(
                root.ok_or_else(|| failure(format!("{} has no root named {name}", from.url())))?,
            );
        }
        Ok(roots)
    }

    /// Imports the paths of `closure` from this machine.
    fn import(
        &self,
        runtime: &Runtime,
        to: &Blocking,
        closure: &[NarinfoFile],
        output: &mut Output,
    ) -> Result<(), Failure> {
        let current = Arc::new(Current::default());
        let interrupted = current.clone();
        on_interrupt(runtime, move || interrupted.cancel())?;
        let mut new = 0;
        for (done, path) in closure.iter().enumerate() {
            let progress = current.next();
            let (counted, all) = (progress.clone(), closure.len());
            let line = Line::show("copying", move || {
                let bytes = counted.totals().bytes;
                (format!("path {} of {all}", done + 1), bytes)
            });
            let imported = import::import_path(to, &self.paths_in, path, &progress);
            drop(line);
            match imported {
                Ok(imported) => new += u64::from(imported),
                Err(_) if current.is_cancelled() => return Err(Failure::Interrupted),
                Err(error) => return Err(error.into()),
            }
        }
        writeln!(
            output,
            "{} paths; {} were there already",
            HumanCount(closure.len() as u64),
            HumanCount(closure.len() as u64 - new),
        )?;
        Ok(())
    }
}

/// Reads the reference graph in `path`; `-` is standard input.
fn read_graph(path: &Path) -> Result<Vec<NarinfoFile>, Failure> {
    let shown = Printable::path(path);
    let wrong = |why: &dyn std::fmt::Display| failure(format!("{shown}: {why}"));
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(|error| wrong(&error))?),
    };
    let mut text = Vec::new();
    let mut input = input.take(MAX_GRAPH_BYTES + 1);
    input
        .read_to_end(&mut text)
        .map_err(|error| wrong(&error))?;
    if text.len() as u64 > MAX_GRAPH_BYTES {
        return Err(wrong(&format!(
            "a reference graph has at most {} MiB",
            MAX_GRAPH_BYTES >> 20
        )));
    }
    parse_reference_graph(&text).map_err(|error| wrong(&error))
}
