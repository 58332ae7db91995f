//! Importing Nix store paths of this machine, with what is known of them: parts of `import` and `copy`.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::castore::{Name, Printable};
use crate::import::{self, DAEMON_SOCKET, ImportedPath, NixDaemon, NixDaemonError};
use crate::nix::{NarinfoFile, STORE_DIR, StorePath};
use crate::quantity::count;
use crate::store::Blocking;
use std::os::unix::ffi::OsStrExt;
use tokio::runtime::Runtime;

use super::failure::{CommandFailure, failure, print_error};
use super::interrupt::on_interrupt;
use super::progress::{ProgressLine, ProgressState};
use super::running_import::RunningImport;

/// The store path that `path` is, if it is one and nothing below it: `/nix/store/HASH-NAME`.
pub(super) fn store_path(path: &Path) -> Option<StorePath> {
    if path.parent() != Some(Path::new(STORE_DIR)) {
        return None;
    }
    StorePath::from_base_name(path.file_name()?.as_bytes()).ok()
}

/// The Nix daemon of this machine.
fn daemon() -> Result<NixDaemon, NixDaemonError> {
    let named = env::var_os("NIX_DAEMON_SOCKET_PATH").map(PathBuf::from);
    NixDaemon::connect(named.as_deref().unwrap_or(Path::new(DAEMON_SOCKET)))
}

/// What this machine's Nix knows of `paths` and of everything that they refer to, references first.
pub(super) fn closure_of_machine(paths: &[PathBuf]) -> Result<Vec<NarinfoFile>, CommandFailure> {
    let paths = paths.iter().map(|path| {
        // A link stands for the path that it points to, as `result` of `nix build` does.
        let linked = || store_path(&std::fs::canonicalize(path).ok()?);
        store_path(path).or_else(linked).ok_or_else(|| {
            failure(format!(
                "{}: --closure takes paths of the Nix store, {STORE_DIR}/HASH-NAME",
                Printable::path(path)
            ))
        })
    });
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let closure = daemon().and_then(|mut daemon| daemon.closure(&paths));
    closure.map_err(|error| match error {
        NixDaemonError::Connect { .. } => failure(format!(
            "{error}; a Nix without a daemon prints what it knows: `nix path-info --json --recursive PATH | \
             castore-fs copy --graph - --to STORE`"
        )),
        error => error.into(),
    })
}

/// What this machine's Nix knows of `path`. Nothing, and a line with the reason, if that cannot be found out.
pub(super) fn path_of_machine(path: &StorePath) -> Option<NarinfoFile> {
    let known = daemon().and_then(|mut daemon| daemon.path_info(path));
    let why = match known {
        Ok(Some(known)) => return Some(known),
        Ok(None) => NixDaemonError::Invalid(path.clone()),
        Err(error) => error,
    };
    print_error(&format!(
        "the references and signatures of {path} are not known: {why}"
    ));
    None
}

/// Imports each path of `closure` from `directory`, with a progress display; `done` gets each.
pub(super) fn import_closure(
    store: &Blocking,
    closure: &[NarinfoFile],
    directory: &Path,
    current: &RunningImport,
    mut done: impl FnMut(ImportedPath) -> Result<(), CommandFailure>,
) -> Result<(), CommandFailure> {
    let mut before = HashSet::new();
    for (number, path) in closure.iter().enumerate() {
        let required = path.references.iter().filter(|path| before.contains(path));
        let required = required.filter_map(|path| Name::new(path.to_string().as_bytes()).ok());
        let required: Vec<Name> = required.collect();
        before.insert(&path.path);
        let progress = current.next();
        let (counted, all) = (progress.clone(), closure.len());
        let line = ProgressLine::show("importing", move || {
            let bytes = counted.totals().bytes;
            ProgressState {
                words: format!("path {} of {all}", number + 1),
                bytes,
                part: None,
            }
        });
        let imported = import::import_path(store, directory, path, &required, &progress);
        drop(line);
        match imported {
            Ok(imported) => done(imported)?,
            Err(_) if current.is_cancelled() => return Err(CommandFailure::Interrupted),
            Err(error) => return Err(error.into()),
        }
    }
    // One that was there already may have been removed since.
    for path in closure {
        if store.root(&path.root_name())?.is_none() {
            return Err(failure(format!(
                "{} was removed from {} during the import: run it again",
                path.path,
                store.url()
            )));
        }
    }
    Ok(())
}

/// What became of a reference graph.
#[derive(serde::Serialize)]
pub(super) struct ImportedGraph {
    paths: u64,
    /// Paths that were there already.
    paths_there: u64,
}

impl fmt::Display for ImportedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = count(self.paths, "path", "paths");
        let there = count(self.paths_there, "was", "were");
        write!(f, "{paths}; {there} there already")
    }
}

/// Imports the paths of a reference graph.
pub(super) fn import_graph(
    runtime: &Runtime,
    to: &Blocking,
    graph: &[NarinfoFile],
    directory: &Path,
) -> Result<ImportedGraph, CommandFailure> {
    let current = Arc::new(RunningImport::default());
    let interrupted = current.clone();
    on_interrupt(runtime, move || interrupted.cancel())?;
    let mut there = 0;
    import_closure(to, graph, directory, &current, |imported| {
        there += u64::from(imported.was_there);
        Ok(())
    })?;
    Ok(ImportedGraph {
        paths: graph.len() as u64,
        paths_there: there,
    })
}
