//! `castore-fs du`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::quantity::count;
use crate::tree::{KindPreference, Target, TreePath, TreeUsage, UsageProgress, usage};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::failure::CommandFailure;
use super::json;
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, QuietArgument};
use super::store::StoreArguments;

/// Show how much space trees take: as files, in the store, and alone
///
/// Four sizes for each TARGET: `size`, the bytes of its files; `stored`, the bytes of the distinct blobs and
/// Directories that hold them; `shared`, the part of those that another TARGET refers to as well; and `unshared`,
/// the rest, which removing only this one would free. Without a TARGET, all roots, so that `unshared` is what
/// `rm` and `gc` would free. The last line is the distinct objects of all. Directories are read, blobs are not.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs du
  castore-fs du --json tree/bin tree/share")]
pub(super) struct Du {
    #[command(flatten)]
    store: StoreArguments,
    /// One JSON object a line, sizes in bytes: path, size, stored, shared, unshared; the last has only stored
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
    /// What to measure: NAME[/PATH] or a digest; without any, all roots
    targets: Vec<PathBuf>,
}

#[derive(Serialize)]
struct DuLine {
    #[serde(flatten)]
    path: json::JsonPath,
    #[serde(flatten)]
    usage: TreeUsage,
    shared: u64,
}

#[derive(Serialize)]
struct StoredTotal {
    stored: u64,
}

impl Du {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut output = Output::open()?;
        let mut all_found = true;
        let mut trees = Vec::new();
        if self.targets.is_empty() {
            let roots = store.roots()?.into_iter();
            trees.extend(roots.map(|root| (TreePath::new(&root.name), root.node)));
        }
        for target in &self.targets {
            let found = Target::try_from(target.as_path())
                .and_then(|target| target.resolve(store, KindPreference::Directory));
            match found {
                Ok(found) => trees.push((found.path, found.node)),
                Err(error) => {
                    CommandFailure::from(error).and_continue(&mut output)?;
                    all_found = false;
                }
            }
        }
        let progress = Arc::new(UsageProgress::default());
        let counted = progress.clone();
        let all: u64 = trees.iter().map(|(_, node)| node.stated_names()).sum();
        let line = ProgressLine::show_without_bytes("measuring", move || {
            let names = counted.names.load(Ordering::Relaxed);
            ProgressState {
                words: format!("{} of {}", HumanCount(names), count(all, "name", "names")),
                bytes: 0,
                part: Some((names, all)),
            }
        });
        let usages = usage(store, &trees, &progress)?;
        drop(line);
        if !self.json && !trees.is_empty() {
            let [size, stored, shared, unshared] = ["size", "stored", "shared", "unshared"];
            output.line(&format!(
                "{size:>12} {stored:>12} {shared:>12} {unshared:>12} path"
            ))?;
        }
        for ((path, _), usage) in trees.iter().zip(&usages.trees) {
            let shared = usage.stored.saturating_sub(usage.unshared);
            if self.json {
                let path = path.as_bytes().into();
                output.json(&DuLine {
                    path,
                    usage: *usage,
                    shared,
                })?;
                continue;
            }
            let sizes = [usage.size, usage.stored, shared, usage.unshared];
            let name = output.name(path.as_bytes()).into_owned();
            for size in sizes {
                write!(output, "{:>12} ", HumanBytes(size).to_string())?;
            }
            output.write_all(&name)?;
            writeln!(output)?;
        }
        let stored = usages.stored;
        match self.json {
            true => output.json(&StoredTotal { stored })?,
            false => output.line(&format!("{} in distinct objects", HumanBytes(stored)))?,
        }
        output.flush()?;
        match all_found {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }
}
