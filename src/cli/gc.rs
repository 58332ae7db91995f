//! `castore-fs gc`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::quantity::count;
use crate::store::{
    BucketGcOptions, BucketGcReport, BucketObjects, GcOptions, GcProgress, GcReport, GcResult,
    ObjectStore, SparedObjects, Store, shown_url,
};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use url::Url;

use super::failure::{CommandFailure, failure};
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, be_quiet};
use super::store::StoreArguments;
use super::units::time;
use super::utc::{rfc_3339, utc};

/// The default of `--grace`.
pub(super) const DEFAULT_GRACE: Duration = Duration::from_secs(60 * 60);
/// The longest grace of a local store, which has no older records.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Delete everything not reachable from a root and free its space
///
/// Works on a local: store, beside readers and imports: waits for a running import. What is mounted
/// or open stays, whether its root was removed or not. So does what was added within the grace
/// period, and what was below a root that was removed within it; how much that is and until when it
/// stays is printed. In a cache, objects reachable from a cached root are kept.
///
/// On an object store, in two calls, with --no-other-writers: the first writes a list of candidates, which are
/// older than the grace period; one after the grace period of that list deletes those that no root reaches
/// then, and writes the next list. Imports may run meanwhile, mounts too, but those do not keep what they show
/// of removed roots. With --grace 0s one call does both.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs gc --dry-run
  castore-fs gc --store local:/srv/castore --grace 10min
  castore-fs gc --store objectstore+s3://castore/store --no-other-writers --grace 1d")]
pub(super) struct Gc {
    #[command(flatten)]
    store: StoreArguments,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// The least age of what is removed: 0s spares nothing. On a local store at most 1d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
    grace: Duration,
    /// On a local store, how long to wait for running imports
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
    wait: Duration,
    /// Of an object store: no other program writes to it or needs what is in it
    ///
    /// An object store cannot keep writers out. castore-fs reads the list of candidates before it relies on what
    /// is there already; older versions and other programs (snix) do not, and would lose it. Contents that no
    /// root of castore-fs reaches are deleted, whichever program put them there.
    #[arg(long)]
    no_other_writers: bool,
    /// One JSON object
    ///
    /// Of a local store: `blobs`, `blob_bytes`, `directories`, `parts` (of blobs in a cache) and `freed` (bytes on
    /// the disk) of what was removed, and in `spared` the objects that no root reaches and that stay: `grace`,
    /// with `until`, the time (RFC 3339) when the grace of the last one ends; `in_use`, by mounts and guests;
    /// `incomplete`, of paths whose content has not come completely.
    ///
    /// Of an object store: `deleted`; `candidates`, with `until`, from when on they are deleted, and `waiting`,
    /// whether that list was there already; and `grace`, what is too young for the list, with `until`. Each has
    /// `closures`, `blobs`, `chunks` and `bytes`. `omitted` objects did not fit on the list.
    #[arg(long)]
    json: bool,
    /// Print what was removed and errors only: not what stays, no progress, no notes
    ///
    /// Progress is shown on a terminal only.
    #[arg(long, short)]
    quiet: bool,
}

/// The result of `gc` on a local store, in JSON.
#[derive(Debug, Serialize)]
struct JsonCollected {
    // First, so that a script which looks for the last "blobs" of the line finds those that were removed.
    spared: JsonSpared,
    #[serde(flatten)]
    removed: GcResult,
}

#[derive(Debug, Serialize)]
struct JsonSpared {
    grace: JsonObjects,
    in_use: JsonObjects,
    incomplete: JsonObjects,
}

#[derive(Debug, Serialize)]
struct JsonObjects {
    blobs: u64,
    blob_bytes: u64,
    directories: u64,
    /// In RFC 3339, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl From<&SparedObjects> for JsonObjects {
    fn from(spared: &SparedObjects) -> Self {
        Self {
            blobs: spared.blobs,
            blob_bytes: spared.blob_bytes,
            directories: spared.directories,
            until: None,
        }
    }
}

impl From<&GcReport> for JsonCollected {
    fn from(report: &GcReport) -> Self {
        Self {
            removed: report.removed,
            spared: JsonSpared {
                grace: JsonObjects {
                    until: Some(report.grace_until)
                        .filter(|until| *until > 0)
                        .and_then(rfc_3339),
                    ..JsonObjects::from(&report.grace)
                },
                in_use: JsonObjects::from(&report.in_use),
                incomplete: JsonObjects::from(&report.incomplete),
            },
        }
    }
}

/// The result of `gc` on an object store, in JSON.
#[derive(Debug, Serialize)]
struct JsonBucketReport {
    deleted: BucketObjects,
    candidates: JsonCandidates,
    grace: JsonBucketObjects,
    omitted: u64,
}

#[derive(Debug, Serialize)]
struct JsonCandidates {
    #[serde(flatten)]
    objects: JsonBucketObjects,
    waiting: bool,
}

#[derive(Debug, Serialize)]
struct JsonBucketObjects {
    #[serde(flatten)]
    objects: BucketObjects,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl From<&BucketGcReport> for JsonBucketReport {
    fn from(report: &BucketGcReport) -> Self {
        let objects = |objects, until: Option<u64>| JsonBucketObjects {
            objects,
            until: until.and_then(rfc_3339),
        };
        Self {
            deleted: report.deleted,
            candidates: JsonCandidates {
                objects: objects(report.candidates, report.candidates_until),
                waiting: report.is_waiting,
            },
            grace: objects(report.grace, report.grace_until),
            omitted: report.omitted,
        }
    }
}

fn shown(objects: &BucketObjects) -> String {
    format!(
        "{} ({}, {}, {}; {})",
        count(objects.count(), "object", "objects"),
        count(objects.closures, "closure", "closures"),
        count(objects.blobs, "blob", "blobs"),
        count(objects.chunks, "chunk", "chunks"),
        HumanBytes(objects.bytes),
    )
}

/// Objects of a local store: `2 blobs (3 B), 1 directory`.
fn local_objects(blobs: u64, blob_bytes: u64, directories: u64) -> String {
    format!(
        "{} ({}), {}",
        count(blobs, "blob", "blobs"),
        HumanBytes(blob_bytes),
        count(directories, "directory", "directories"),
    )
}

/// The directory of an object store in a directory, if it does not exist: the lock of gc would make it.
fn missing_directory(url: &str) -> Option<PathBuf> {
    let url = Url::parse(url.strip_prefix("objectstore+")?).ok()?;
    let dir = url.to_file_path().ok().filter(|_| url.scheme() == "file")?;
    let is_missing = matches!(dir.try_exists(), Ok(false));
    is_missing.then_some(dir)
}

impl Gc {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        if self.quiet {
            be_quiet();
        }
        let place = self.store.place()?;
        if let Some(url) = place.bucket_url() {
            return self.collect_bucket(url);
        }
        if self.no_other_writers {
            return Err(CommandFailure::Usage(
                "--no-other-writers is for object stores (objectstore+URL): another store keeps writers out by itself"
                    .to_owned(),
            ));
        }
        if self.grace > LONGEST_GRACE {
            return Err(CommandFailure::Usage(
                "--grace: a local store remembers one day; write 1d or less".to_owned(),
            ));
        }
        let store = place.open_dir()?;
        let options = GcOptions {
            grace: self.grace,
            dry_run: self.dry_run,
            patience: self.wait,
        };
        let progress = Arc::new(GcProgress::default());
        let counted = progress.clone();
        let all = store.usage()?.map_or(0, |usage| usage.directories);
        let line = ProgressLine::show_without_bytes("looking for what stays", move || {
            let read = counted.directories.load(Ordering::Relaxed);
            let all = count(all, "directory", "directories");
            ProgressState {
                words: format!("{} of {all} read", HumanCount(read)),
                bytes: 0,
                // What no root reaches is not read: the end comes before all are.
                part: None,
            }
        });
        let report = store.collect_with_progress(&options, progress)?;
        drop(line);
        let mut output = Output::open()?;
        if self.json {
            output.json(&JsonCollected::from(&report))?;
        } else {
            self.print(&report, &mut output)?;
        }
        output.flush()?;
        Ok(())
    }

    fn collect_bucket(&self, url: &str) -> Result<(), CommandFailure> {
        if !self.no_other_writers && !self.dry_run {
            return Err(CommandFailure::Usage(format!(
                "gc of {} needs --no-other-writers, as an object store cannot keep writers out: programs that do not know \
                 the list of candidates (older castore-fs, snix) would lose what they rely on, and contents that no root \
                 of castore-fs reaches are deleted. Stop such programs, and add that option",
                shown_url(url)
            )));
        }
        if let Some(dir) = missing_directory(url) {
            return Err(failure(format!(
                "{}: there is nothing to collect: {} does not exist",
                shown_url(url),
                dir.display()
            )));
        }
        let options = BucketGcOptions {
            grace: self.grace,
            dry_run: self.dry_run,
        };
        let store = ObjectStore::open(url)?;
        let asked = store.clone();
        let line = ProgressLine::show_without_bytes("collecting", move || ProgressState {
            words: count(asked.calls(), "request", "requests"),
            bytes: 0,
            part: None,
        });
        let report = store.collect_garbage(&options)?;
        drop(line);
        let mut output = Output::open()?;
        if self.json {
            output.json(&JsonBucketReport::from(&report))?;
        } else {
            self.print_bucket(&report, &mut output)?;
        }
        output.flush()?;
        Ok(())
    }

    fn print_bucket(
        &self,
        report: &BucketGcReport,
        output: &mut Output,
    ) -> Result<(), CommandFailure> {
        let did = match self.dry_run {
            true => "would delete",
            false => "deleted",
        };
        writeln!(output, "{did} {}", shown(&report.deleted))?;
        if let Some(until) = report.candidates_until.filter(|_| !self.quiet) {
            let listed = match (report.is_waiting, self.dry_run) {
                (true, _) => "candidates since an earlier call",
                (false, true) => "would become candidates",
                (false, false) => "candidates",
            };
            writeln!(
                output,
                "{listed}: {}; gc deletes those that no root reaches then, from {} on",
                shown(&report.candidates),
                utc(until)
            )?;
        }
        if let Some(until) = report.grace_until.filter(|_| !self.quiet) {
            let why = format!("within the grace period, until {}", utc(until));
            writeln!(output, "spared {}: {why}", shown(&report.grace))?;
        }
        if report.omitted > 0 {
            writeln!(
                output,
                "the list has no room for {} more, which later calls take",
                HumanCount(report.omitted)
            )?;
        }
        Ok(())
    }

    fn print(&self, report: &GcReport, output: &mut Output) -> Result<(), CommandFailure> {
        let removed = &report.removed;
        let did = match self.dry_run {
            true => "would remove",
            false => "removed",
        };
        let objects = local_objects(removed.blobs, removed.blob_bytes, removed.directories);
        let objects = format!("{did} {objects}");
        let parts = match removed.parts {
            0 => String::new(),
            parts => format!(", parts of {}", count(parts, "blob", "blobs")),
        };
        let freed = HumanBytes(removed.freed);
        match self.dry_run {
            true => writeln!(output, "{objects}{parts}: about {freed}")?,
            false => writeln!(output, "{objects}{parts}; freed {freed}")?,
        }
        let until = format!("within the grace period, until {}", utc(report.grace_until));
        for (spared, why) in [
            (&report.grace, until.as_str()),
            (&report.in_use, "in use by mounts or guests, until they end"),
            (
                &report.incomplete,
                "of paths whose content has not come completely, for a day at most",
            ),
        ] {
            if !spared.is_empty() && !self.quiet {
                let objects = local_objects(spared.blobs, spared.blob_bytes, spared.directories);
                writeln!(output, "spared {objects}: {why}")?;
            }
        }
        Ok(())
    }
}
