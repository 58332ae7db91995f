//! `castore-fs gc`.

use std::io::Write;
use std::time::Duration;

use castore_fs::service::config::TimeSpan;
use castore_fs::store::{GcOptions, GcReport, GcResult, SparedObjects};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::failure::CommandFailure;
use super::output::Output;
use super::store::StoreArguments;
use super::utc::{rfc_3339, utc};

/// The default of `--grace`.
pub(super) const DEFAULT_GRACE: Duration = Duration::from_secs(60 * 60);

/// Delete everything not reachable from a root and free its space
///
/// Works on a local: store, beside readers and imports: waits for a running import. What is mounted
/// or open stays, whether its root was removed or not. So does what was added within the grace
/// period, and what was below a root that was removed within it; how much that is and until when it
/// stays is printed. In a cache, objects reachable from a cached root are kept.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs gc --dry-run
  castore-fs gc --store local:/srv/castore --grace 10min")]
pub(super) struct Gc {
    #[command(flatten)]
    store: StoreArguments,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// The least age of what is removed, at most 1d: 0s spares nothing
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = grace)]
    grace: Duration,
    /// How long to wait for running imports
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
    wait: Duration,
    /// One JSON object
    ///
    /// With `blobs`, `blob_bytes`, `directories`, `parts` (of blobs in a cache) and `freed` (bytes on the disk) of what
    /// was removed, and in `spared` the objects that no root reaches and that stay: `grace`, with `until`, the
    /// time (RFC 3339) when the grace of the last one ends; `in_use`, by mounts and guests; `incomplete`, of
    /// paths whose content has not come completely.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    text.parse().map(|TimeSpan(time)| time)
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = time(text)?;
    match grace <= Duration::from_secs(24 * 60 * 60) {
        true => Ok(grace),
        false => Err("a store remembers one day; write 1d or less".to_owned()),
    }
}

/// The result of `gc` on a local store, in JSON.
#[derive(Debug, Serialize)]
struct JsonCollected {
    #[serde(flatten)]
    removed: GcResult,
    spared: JsonSpared,
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

impl Gc {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let store = self.store.place()?.open_dir()?;
        let report = store.collect_and_report(&GcOptions {
            grace: self.grace,
            dry_run: self.dry_run,
            patience: self.wait,
        })?;
        let mut output = Output::open()?;
        if self.json {
            output.json(&JsonCollected::from(&report))?;
        } else {
            self.print(&report, &mut output)?;
        }
        output.flush()?;
        Ok(())
    }

    fn print(&self, report: &GcReport, output: &mut Output) -> Result<(), CommandFailure> {
        let removed = &report.removed;
        let did = match self.dry_run {
            true => "would remove",
            false => "removed",
        };
        let objects = format!(
            "{did} {} blobs ({}), {} directories",
            HumanCount(removed.blobs),
            HumanBytes(removed.blob_bytes),
            HumanCount(removed.directories),
        );
        let parts = match removed.parts {
            0 => String::new(),
            parts => format!(", parts of {} blobs", HumanCount(parts)),
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
            if !spared.is_empty() {
                let objects = format!(
                    "{} blobs ({}), {} directories",
                    HumanCount(spared.blobs),
                    HumanBytes(spared.blob_bytes),
                    HumanCount(spared.directories),
                );
                writeln!(output, "spared {objects}: {why}")?;
            }
        }
        Ok(())
    }
}
