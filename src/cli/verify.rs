//! `castore-fs verify`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::castore::Node;
use crate::quantity::count;
use crate::store::{Blocking, LocalStore};
use crate::tree::verify::{self, FaultCause, TreeFault, VerifyReport};
use crate::tree::{KindPreference, Target, TreePath, copy, repair};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::failure::{CommandFailure, failure};
use super::interrupt::on_interrupt;
use super::json;
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, QuietArgument};
use super::store::{CommandStore, StoreArguments};

/// Read and hash again everything below some roots; report damage, and repair it
///
/// Every object is read once, however many places refer to it, on all cores. A fault is a line for
/// each affected path; the last line is the sum. The exit status is 1 when a fault was found and
/// not repaired, or a TARGET does not exist; the others are verified all the same. The index of a
/// local: store is checked as well, and whether it can be written to.
///
/// With --repair a local: store is made usable again: its file `format`, an index that is lost,
/// unreadable or older than the rest, and with --from the objects that are damaged or missing.
/// Nothing is overwritten: an index that is replaced stays beside the new one.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs verify
  castore-fs verify tree/share b3:60fb70bc9273f606459a6dcfa8b10eb2064ca3cd15e4286db7a9f06843417ba8
  castore-fs verify --repair --from grpc+https://cache.example")]
pub(super) struct VerifyCommand {
    #[command(flatten)]
    store: StoreArguments,
    /// Repair the store, which has to be local:PATH
    #[arg(long)]
    repair: bool,
    /// Fetch damaged and missing objects from this store: a URL, or store:NAME; can be given
    /// several times
    #[arg(long, value_name = "URL", requires = "repair")]
    from: Vec<String>,
    /// One JSON object a line: one for each damaged object, then the sum
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
    /// What to verify: NAME[/PATH] or a digest; without any, all roots
    targets: Vec<PathBuf>,
}

/// Rounds of fetching and verifying, at most: a Directory that was fetched may lead to more damage.
const ROUNDS: usize = 10;

#[derive(Serialize)]
struct FaultObject {
    object: String,
    digest: String,
    fault: &'static str,
    why: String,
    paths: Vec<json::JsonPath>,
    more_paths: u64,
}

/// A problem of the index, or a repair.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum IndexNote {
    Index(String),
    Repaired(String),
    NotFetched(String),
}

#[derive(Serialize)]
struct VerifySummary {
    directories: u64,
    blobs: u64,
    blob_bytes: u64,
    faults: u64,
}

impl VerifyCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let mut output = Output::open()?;
        if self.repair {
            self.repair_files(&mut output)?;
        }
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut bad_index = false;
        for local in store.store().embedded() {
            for problem in local.check_index()? {
                bad_index = true;
                self.note(&mut output, IndexNote::Index(problem))?;
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        on_interrupt(&opened.runtime, move || {
            stopped.store(true, Ordering::Relaxed);
        })?;
        let (trees, all_found) = self.trees(store, &mut output)?;
        // Of all roots: what no root reaches is part of it, so the time left is an estimate from above.
        let all_bytes = match self.targets.is_empty() {
            true => store.usage()?.map(|usage| usage.blob_bytes),
            false => None,
        };
        let mut report = verify(store, &trees, all_bytes, &stop)?;
        for _ in 0..ROUNDS {
            if report.faults.is_empty() || !self.fetch(&opened, &report, &stop, &mut output)? {
                break;
            }
            report = verify(store, &trees, all_bytes, &stop)?;
        }
        if self.repair {
            for local in store.store().embedded() {
                local.release_sound()?;
            }
        }
        match self.json {
            true => print_json(&report, &mut output)?,
            false => print(&report, &mut output)?,
        }
        output.flush()?;
        match report.faults.is_empty() && !bad_index && all_found {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }

    fn note(&self, output: &mut Output, note: IndexNote) -> Result<(), CommandFailure> {
        if self.json {
            return output.json(&note);
        }
        match note {
            IndexNote::Index(problem) => writeln!(output, "index: {problem}")?,
            IndexNote::Repaired(what) => writeln!(output, "repaired: {what}")?,
            IndexNote::NotFetched(why) => writeln!(output, "not fetched: {why}")?,
        }
        Ok(())
    }

    /// Repairs the files that are needed to open a store.
    fn repair_files(&self, output: &mut Output) -> Result<(), CommandFailure> {
        let place = self.store.place()?;
        let dir = place.dir().ok_or_else(|| {
            failure("only a store in a directory (--store local:PATH) can be repaired")
        })?;
        place.must_exist()?;
        let (_, repaired) = LocalStore::repair(&dir)?;
        if repaired.format {
            self.note(
                output,
                IndexNote::Repaired("wrote the file format".to_owned()),
            )?;
        }
        let Some(index) = repaired.index else {
            return Ok(());
        };
        let mut text = format!(
            "made a new index of {}, {}, {}, {}",
            count(index.blobs, "blob", "blobs"),
            count(index.directories, "directory", "directories"),
            count(index.roots, "root", "roots"),
            count(index.pins, "pin", "pins"),
        );
        if let Some(aside) = &index.aside {
            text += &format!("; the old one is {}, and can be deleted", aside.display());
        }
        if index.damaged > 0 {
            text += &format!(
                "; {} unreadable, and the objects there are missing",
                count(
                    index.damaged,
                    "place in packs or journal was",
                    "places in packs or journal were"
                )
            );
        }
        if index.names_lost {
            text += "; the names of the roots are lost, as there is no journal: import or copy them \
                     again before the next gc, what is there already is not sent again; if the store is served to \
                     Nix (nix-daemon), the paths that were reported as valid are lost too, which Nix stores above \
                     it still take for valid: once the roots are back, `nix path-info --all | xargs nix-store \
                     --store unix:///SOCKET --check-validity --print-invalid` has all of them reported again, and \
                     prints those that are still missing";
        }
        self.note(
            output,
            IndexNote::Repaired(format!("{text} (rebuilt because {})", index.why)),
        )
    }

    /// Fetches damaged and missing objects; returns whether any came.
    fn fetch(
        &self,
        opened: &CommandStore,
        report: &VerifyReport,
        stop: &Arc<AtomicBool>,
        output: &mut Output,
    ) -> Result<bool, CommandFailure> {
        let mut came = false;
        for (number, url) in self.from.iter().enumerate() {
            let place = self.store.other(url)?;
            place.must_exist()?;
            let from = Blocking::new(
                place.open(&opened.runtime)?,
                opened.runtime.handle().clone(),
            );
            let progress = copy::CopyProgress {
                stop: stop.clone(),
                ..copy::CopyProgress::default()
            };
            let fetched = repair::repair(&from, &opened.store, &report.faults, &progress)?;
            came |= fetched.objects > 0;
            if fetched.objects > 0 {
                let objects = count(fetched.objects, "object", "objects");
                let text = format!("fetched {objects} from {}", from.url());
                self.note(output, IndexNote::Repaired(text))?;
            }
            // What one store does not have, the next may.
            if number + 1 == self.from.len() && !came {
                for why in fetched.failed {
                    self.note(output, IndexNote::NotFetched(why))?;
                }
            }
        }
        Ok(came)
    }

    /// The trees to verify, and whether all of them exist.
    fn trees(
        &self,
        store: &Blocking,
        output: &mut Output,
    ) -> Result<(Vec<(TreePath, Node)>, bool), CommandFailure> {
        let mut trees = Vec::new();
        if self.targets.is_empty() {
            let roots = store.roots()?.into_iter();
            trees.extend(roots.map(|root| (TreePath::new(&root.name), root.node)));
        }
        let mut all_found = true;
        for target in &self.targets {
            let found = Target::try_from(target.as_path())
                .and_then(|target| target.resolve(store, KindPreference::Directory));
            match found {
                Ok(found) => trees.push((found.path, found.node)),
                Err(error) => {
                    all_found = false;
                    CommandFailure::from(error).and_continue(output)?;
                }
            }
        }
        if trees.is_empty() && !all_found {
            return Err(CommandFailure::Reported);
        }
        Ok((trees, all_found))
    }
}

fn verify(
    store: &Blocking,
    trees: &[(TreePath, Node)],
    all_bytes: Option<u64>,
    stop: &Arc<AtomicBool>,
) -> Result<VerifyReport, CommandFailure> {
    let progress = Arc::new(verify::VerifyProgress {
        stop: stop.clone(),
        ..verify::VerifyProgress::default()
    });
    let counted = progress.clone();
    let line = ProgressLine::show("verifying", move || {
        let directories = counted.directories.load(Ordering::Relaxed);
        let blobs = counted.blobs.load(Ordering::Relaxed);
        let objects = count(directories + blobs, "object", "objects");
        let bytes = counted.bytes.load(Ordering::Relaxed);
        ProgressState {
            words: objects,
            bytes,
            part: all_bytes.map(|all| (bytes, all)),
        }
    });
    let report = verify::verify(store, trees, &progress)?;
    drop(line);
    Ok(report)
}

fn fault_name(fault: &TreeFault) -> &'static str {
    match fault.why {
        FaultCause::Missing => "missing",
        FaultCause::Store(_) => "damaged",
        FaultCause::NodeSize { .. } => "wrong size",
    }
}

fn print(report: &VerifyReport, output: &mut Output) -> Result<(), CommandFailure> {
    for fault in &report.faults {
        for path in &fault.paths {
            let name = fault_name(fault);
            let object = format!("{name}: {path}: {} {}", fault.object, fault.digest);
            match &fault.why {
                FaultCause::Missing => output.line(&object)?,
                why => output.line(&format!("{object}: {why}"))?,
            }
        }
        if fault.more_paths > 0 {
            writeln!(
                output,
                "{}: {}: {} {}",
                fault_name(fault),
                count(fault.more_paths, "more path", "more paths"),
                fault.object,
                fault.digest
            )?;
        }
    }
    let verdict = match report.faults.len() {
        0 => "nothing is damaged".to_owned(),
        faults => count(
            faults as u64,
            "object is damaged or missing",
            "objects are damaged or missing",
        ),
    };
    writeln!(
        output,
        "{}, {}, {}: {verdict}",
        count(report.directories, "directory", "directories"),
        count(report.blobs, "blob", "blobs"),
        HumanBytes(report.blob_bytes),
    )?;
    Ok(())
}

fn print_json(report: &VerifyReport, output: &mut Output) -> Result<(), CommandFailure> {
    for fault in &report.faults {
        let paths = fault.paths.iter().map(|path| path.as_bytes().into());
        output.json(&FaultObject {
            object: fault.object.to_string(),
            digest: fault.digest.to_string(),
            fault: fault_name(fault),
            why: fault.why.to_string(),
            paths: paths.collect(),
            more_paths: fault.more_paths,
        })?;
    }
    output.json(&VerifySummary {
        directories: report.directories,
        blobs: report.blobs,
        blob_bytes: report.blob_bytes,
        faults: report.faults.len() as u64,
    })
}
