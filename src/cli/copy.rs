//! `castore-fs copy`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::castore::{Printable, Root};
use crate::nix::{MAX_GRAPH_BYTES, NarinfoFile, STORE_DIR, parse_reference_graph};
use crate::quantity::count;
use crate::store::Blocking;
use crate::tree::copy::{self, CopyProgress};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::failure::{CommandFailure, failure};
use super::import_paths::import_graph;
use super::interrupt::on_interrupt;
use super::names::{closure_roots, root_name};
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, QuietArgument};
use super::store::{ConfigArguments, StoreLocation};

/// Copy roots and everything below them from one store to another
///
/// Sends only what the other store lacks. An interrupted copy continues where it stopped when it is
/// started again. A root of the same name is replaced.
///
/// With --closure everything is copied that the named Nix store paths refer to, by what the store --from
/// knows of them.
///
/// With --graph the paths of a reference graph are copied, with their references, signatures and
/// derivers: of the store --from, or without it of this machine. Each has to have the NAR of the
/// graph. The graph is JSON: the attributes of a derivation with exportReferencesGraph, its graph alone, or
/// what `nix path-info --json --recursive` prints.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs copy --from local:/srv/castore --to grpc+https://cache.example tree
  castore-fs copy --from grpc+unix:/run/castore.sock --to local:/srv/castore --all
  castore-fs copy --from nix+https://cache.example --to local:/srv/castore --closure \
    /nix/store/dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1
  nix path-info --json --recursive nixpkgs#hello | castore-fs copy --graph - --to local:/srv/castore")]
pub(super) struct CopyCommand {
    /// The store to read from: a URL, or store:NAME
    #[arg(long, value_name = "URL", required_unless_present = "graph")]
    from: Option<String>,
    /// The store to write to: a URL, or store:NAME
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    config: ConfigArguments,
    /// Every root of the store
    #[arg(long, conflicts_with_all = ["names", "closure", "graph"])]
    all: bool,
    /// With every Nix store path that the roots refer to
    #[arg(long, conflicts_with = "graph")]
    closure: bool,
    /// The paths of this reference graph; - reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "names")]
    graph: Option<PathBuf>,
    /// With --graph and without --from: the directory that the store paths are in
    #[arg(long, value_name = "DIR", default_value = STORE_DIR, conflicts_with = "from")]
    paths_in: PathBuf,
    #[command(flatten)]
    quiet: QuietArgument,
    /// One JSON object: roots, and the directories, blobs and bytes that were sent, or were there already
    #[arg(long)]
    json: bool,
    /// The roots' names
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "graph"])]
    names: Vec<PathBuf>,
}

impl CopyCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let graph = self.graph.as_deref().map(read_graph).transpose()?;
        let runtime = Runtime::new()?;
        let from = self.from.as_deref().map(|from| self.config.place(from));
        let (from, to) = (from.transpose()?, self.config.place(&self.to)?);
        let open = |place: StoreLocation| {
            let store = place.open(&runtime)?;
            Ok::<_, CommandFailure>(Blocking::new(store, runtime.handle().clone()))
        };
        if let Some(from) = &from {
            from.must_exist()?;
        }
        let (from, to) = (from.map(open).transpose()?, open(to)?);
        let mut output = Output::open()?;
        match (from, graph) {
            (Some(from), graph) => self.copy(&runtime, &from, &to, graph, &mut output)?,
            (None, Some(graph)) => {
                let imported = import_graph(&runtime, &to, &graph, &self.paths_in)?;
                match self.json {
                    true => output.json(&imported)?,
                    false => output.line(&imported.to_string())?,
                }
            }
            (None, None) => return Err(failure("there is neither --from nor --graph")),
        }
        output.flush()?;
        Ok(())
    }

    fn copy(
        &self,
        runtime: &Runtime,
        from: &Blocking,
        to: &Blocking,
        graph: Option<Vec<NarinfoFile>>,
        output: &mut Output,
    ) -> Result<(), CommandFailure> {
        let roots = match &graph {
            Some(_) => Vec::new(),
            None => self.roots(from)?,
        };
        let progress = Arc::new(CopyProgress::default());
        let stopped = progress.clone();
        on_interrupt(runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let counted = progress.clone();
        // Of a graph the nodes are not known yet.
        let all = graph
            .is_none()
            .then(|| roots.iter().map(|root| root.node.stated_names()).sum());
        let line = ProgressLine::show("copying", move || {
            let blobs = count(counted.blobs.load(Ordering::Relaxed), "blob", "blobs");
            let skipped = HumanCount(counted.skipped.load(Ordering::Relaxed));
            ProgressState {
                words: format!("{blobs} sent, {skipped} there already"),
                bytes: counted.bytes.load(Ordering::Relaxed),
                part: all.map(|all| (counted.entries.load(Ordering::Relaxed), all)),
            }
        });
        match &graph {
            Some(graph) => copy::copy_graph(from, to, graph, &progress)?,
            None => copy::copy(from, to, &roots, &progress)?,
        };
        drop(line);
        let copied_roots = graph.map_or(roots.len(), |graph| graph.len());
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let copied = CopiedRoots {
            roots: copied_roots as u64,
            directories: load(&progress.directories),
            blobs: load(&progress.blobs),
            blob_bytes: load(&progress.bytes),
            blobs_there: load(&progress.skipped),
        };
        if self.json {
            return output.json(&copied);
        }
        writeln!(
            output,
            "{}; sent {}, {}, {}; {} there already",
            count(copied.roots, "root", "roots"),
            count(copied.directories, "directory", "directories"),
            count(copied.blobs, "blob", "blobs"),
            HumanBytes(copied.blob_bytes),
            count(copied.blobs_there, "blob was", "blobs were"),
        )?;
        Ok(())
    }

    /// The roots that were named, or all.
    fn roots(&self, from: &Blocking) -> Result<Vec<Root>, CommandFailure> {
        if self.all {
            return Ok(from.roots()?);
        }
        if self.closure {
            return closure_roots(from, &self.names);
        }
        let mut roots = Vec::new();
        for path in &self.names {
            let name = root_name(path)?;
            let root = from.root(&name)?;
            roots.push(
                root.ok_or_else(|| {
                    let store = from.url();
                    failure(format!(
                        "{store} has no root named {name}; `castore-fs ls --store {store}` lists the names it has"
                    ))
                })?,
            );
        }
        Ok(roots)
    }
}

/// The output.
#[derive(Serialize)]
struct CopiedRoots {
    roots: u64,
    /// What was sent.
    directories: u64,
    blobs: u64,
    blob_bytes: u64,
    /// Blobs that were there already.
    blobs_there: u64,
}

/// Reads the reference graph in `path`; `-` is standard input.
fn read_graph(path: &Path) -> Result<Vec<NarinfoFile>, CommandFailure> {
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
