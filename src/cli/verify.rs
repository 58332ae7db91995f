//! `castore-fs verify`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use castore_fs::castore::Node;
use castore_fs::store::{Blocking, LocalStore};
use castore_fs::tree::verify::{self, Fault, Report, Why};
use castore_fs::tree::{Preference, Target, TreePath, copy, repair};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::failure::{Failure, failure};
use super::interrupt::on_interrupt;
use super::json;
use super::output::Output;
use super::progress::Line;
use super::store::{Opened, StoreArguments};

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
pub(super) struct Verify {
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
    paths: Vec<json::Path>,
    more_paths: u64,
}

/// A problem of the index, or a repair.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Note {
    Index(String),
    Repaired(String),
    NotFetched(String),
}

#[derive(Serialize)]
struct Sum {
    directories: u64,
    blobs: u64,
    blob_bytes: u64,
    faults: u64,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
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
                self.note(&mut output, Note::Index(problem))?;
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        on_interrupt(&opened.runtime, move || {
            stopped.store(true, Ordering::Relaxed);
        })?;
        let (trees, all_found) = self.trees(store, &mut output)?;
        let mut report = verify(store, &trees, &stop)?;
        for _ in 0..ROUNDS {
            if report.faults.is_empty() || !self.fetch(&opened, &report, &stop, &mut output)? {
                break;
            }
            report = verify(store, &trees, &stop)?;
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
            false => Err(Failure::Reported),
        }
    }

    fn note(&self, output: &mut Output, note: Note) -> Result<(), Failure> {
        if self.json {
            return output.json(&note);
        }
        match note {
            Note::Index(problem) => writeln!(output, "index: {problem}")?,
            Note::Repaired(what) => writeln!(output, "repaired: {what}")?,
            Note::NotFetched(why) => writeln!(output, "not fetched: {why}")?,
        }
        Ok(())
    }

    /// Repairs the files that are needed to open a store.
    fn repair_files(&self, output: &mut Output) -> Result<(), Failure> {
        let place = self.store.place()?;
        let folder = place.folder().ok_or_else(|| {
            failure("only a store in a directory (--store local:PATH) can be repaired")
        })?;
        place.must_exist()?;
        let (_, repaired) = LocalStore::repair(&folder)?;
        if repaired.format {
            self.note(output, Note::Repaired("wrote the file format".to_owned()))?;
        }
        let Some(index) = repaired.index else {
            return Ok(());
        };
        let mut text = format!(
            "made a new index of {} blobs, {} directories, {} roots, {} pins",
            HumanCount(index.blobs),
            HumanCount(index.directories),
            HumanCount(index.roots),
            HumanCount(index.pins),
        );
        if let Some(aside) = &index.aside {
            text += &format!("; the old one is {}, and can be deleted", aside.display());
        }
        if index.damaged > 0 {
            text += &format!(
                "; {} places in packs or journal were unreadable, and their objects are missing",
                HumanCount(index.damaged)
            );
        }
        if index.names_lost {
            text += "; the names of the roots are lost, as there is no journal: import or copy them \
                     again before the next gc, what is there already is not sent again";
        }
        self.note(
            output,
            Note::Repaired(format!("{text} (rebuilt because {})", index.why)),
        )
    }

    /// Fetches damaged and missing objects; returns whether any came.
    fn fetch(
        &self,
        opened: &Opened,
        report: &Report,
        stop: &Arc<AtomicBool>,
        output: &mut Output,
    ) -> Result<bool, Failure> {
        let mut came = false;
        for (number, url) in self.from.iter().enumerate() {
            let place = self.store.other(url)?;
            place.must_exist()?;
            let from = Blocking::new(
                place.open(&opened.runtime)?,
                opened.runtime.handle().clone(),
            );
            let progress = copy::Progress {
                stop: stop.clone(),
                ..copy::Progress::default()
            };
            let fetched = repair::repair(&from, &opened.store, &report.faults, &progress)?;
            came |= fetched.objects > 0;
            if fetched.objects > 0 {
                let objects = HumanCount(fetched.objects);
                let text = format!("fetched {objects} objects from {}", from.url());
                self.note(output, Note::Repaired(text))?;
            }
            // What one store does not have, the next may.
            if number + 1 == self.from.len() && !came {
                for why in fetched.failed {
                    self.note(output, Note::NotFetched(why))?;
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
    ) -> Result<(Vec<(TreePath, Node)>, bool), Failure> {
        let mut trees = Vec::new();
        if self.targets.is_empty() {
            let roots = store.roots()?.into_iter();
            trees.extend(roots.map(|root| (TreePath::new(&root.name), root.node)));
        }
        let mut all_found = true;
        for target in &self.targets {
            let found = Target::try_from(target.as_path())
                .and_then(|target| target.resolve(store, Preference::Directory));
            match found {
                Ok(found) => trees.push((found.path, found.node)),
                Err(error) => {
                    all_found = false;
                    Failure::from(error).and_go_on(output)?;
                }
            }
        }
        if trees.is_empty() && !all_found {
            return Err(Failure::Reported);
        }
        Ok((trees, all_found))
    }
}

fn verify(
    store: &Blocking,
    trees: &[(TreePath, Node)],
    stop: &Arc<AtomicBool>,
) -> Result<Report, Failure> {
    let progress = Arc::new(verify::Progress {
        stop: stop.clone(),
        ..verify::Progress::default()
    });
    let counted = progress.clone();
    let line = Line::show("verifying", move || {
        let directories = counted.directories.load(Ordering::Relaxed);
        let blobs = counted.blobs.load(Ordering::Relaxed);
        let objects = HumanCount(directories + blobs);
        let bytes = counted.bytes.load(Ordering::Relaxed);
        (format!("{objects} objects"), bytes)
    });
    let report = verify::verify(store, trees, &progress)?;
    drop(line);
    Ok(report)
}

fn fault_name(fault: &Fault) -> &'static str {
    match fault.why {
        Why::Missing => "missing",
        Why::Store(_) => "damaged",
        Why::NodeSize { .. } => "wrong size",
    }
}

fn print(report: &Report, output: &mut Output) -> Result<(), Failure> {
    for fault in &report.faults {
        for path in &fault.paths {
            let name = fault_name(fault);
            let object = format!("{name}: {path}: {} {}", fault.object, fault.digest);
            match &fault.why {
                Why::Missing => output.line(&object)?,
                why => output.line(&format!("{object}: {why}"))?,
            }
        }
        if fault.more_paths > 0 {
            writeln!(
                output,
                "{}: {} more paths: {} {}",
                fault_name(fault),
                fault.more_paths,
                fault.object,
                fault.digest
            )?;
        }
    }
    let verdict = match report.faults.len() {
        0 => "nothing is damaged".to_owned(),
        1 => "1 object is damaged or missing".to_owned(),
        count => format!(
            "{} objects are damaged or missing",
            HumanCount(count as u64)
        ),
    };
    writeln!(
        output,
        "{} directories, {} blobs, {}: {verdict}",
        HumanCount(report.directories),
        HumanCount(report.blobs),
        HumanBytes(report.blob_bytes),
    )?;
    Ok(())
}

fn print_json(report: &Report, output: &mut Output) -> Result<(), Failure> {
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
    output.json(&Sum {
        directories: report.directories,
        blobs: report.blobs,
        blob_bytes: report.blob_bytes,
        faults: report.faults.len() as u64,
    })
}
