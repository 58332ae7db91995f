//! `castore-fs verify`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::tree::verify::{self, Fault, Report, Why};
use castore_fs::tree::{Preference, Target, TreePath};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::failure::Failure;
use super::interrupt::on_interrupt;
use super::json;
use super::output::Output;
use super::progress::Line;
use super::store::StoreArguments;

/// Read and hash again everything below some roots; name what is damaged or missing
///
/// Every object is read once, however many places refer to it, on all cores. What is wrong is a
/// line for each path that it spoils; the last line is the sum. The exit status is 1 when anything
/// is wrong, or a TARGET does not exist; the others are verified all the same.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs verify
  castore-fs verify tree/share b3:60fb70bc9273f606459a6dcfa8b10eb2064ca3cd15e4286db7a9f06843417ba8")]
pub(super) struct Verify {
    #[command(flatten)]
    store: StoreArguments,
    /// One JSON object a line: one for each damaged object, then the sum
    #[arg(long)]
    json: bool,
    /// What to verify: NAME[/PATH] or a digest; without any, all roots
    targets: Vec<PathBuf>,
}

#[derive(Serialize)]
struct FaultObject {
    object: String,
    digest: String,
    fault: &'static str,
    why: String,
    paths: Vec<json::Path>,
    more_paths: u64,
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
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut output = Output::open()?;
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
                    Failure::from(error).and_go_on(&mut output)?;
                }
            }
        }
        if trees.is_empty() && !all_found {
            return Err(Failure::Reported);
        }
        let progress = Arc::new(verify::Progress::default());
        let stopped = progress.clone();
        on_interrupt(&opened.runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let counted = progress.clone();
        let line = Line::show("verifying", move || {
            let directories = counted.directories.load(Ordering::Relaxed);
            let blobs = counted.blobs.load(Ordering::Relaxed);
            let objects = HumanCount(directories + blobs);
            let bytes = counted.bytes.load(Ordering::Relaxed);
            (format!("{objects} objects"), bytes)
        });
        let report = verify::verify(store, &trees, &progress)?;
        drop(line);
        match self.json {
            true => print_json(&report, &mut output)?,
            false => print(&report, &mut output)?,
        }
        output.flush()?;
        match report.faults.is_empty() && all_found {
            true => Ok(()),
            false => Err(Failure::Reported),
        }
    }
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
