//! `castore-fs gc`.

use std::io::Write;
use std::time::Duration;

use castore_fs::service::config::TimeSpan;
use castore_fs::store::GcOptions;
use clap::Args;
use indicatif::{HumanBytes, HumanCount};

use super::failure::CommandFailure;
use super::output::Output;
use super::store::StoreArguments;

/// Delete everything not reachable from a root and free its space
///
/// Works on a local: store, beside readers and imports: waits for a running import. What is mounted
/// or open stays, whether its root was removed or not. So does what was added within the grace
/// period, and what was below a root that was removed within it. In a cache, objects reachable from
/// a cached root are kept.
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

impl Gc {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let store = self.store.place()?.open_dir()?;
        let collected = store.collect_garbage(&GcOptions {
            grace: self.grace,
            dry_run: self.dry_run,
            patience: self.wait,
        })?;
        let mut output = Output::open()?;
        if self.json {
            output.json(&collected)?;
        } else {
            let did = match self.dry_run {
                true => "would remove",
                false => "removed",
            };
            let objects = format!(
                "{did} {} blobs ({}), {} directories",
                HumanCount(collected.blobs),
                HumanBytes(collected.blob_bytes),
                HumanCount(collected.directories),
            );
            let parts = match collected.parts {
                0 => String::new(),
                parts => format!(", parts of {} blobs", HumanCount(parts)),
            };
            let freed = HumanBytes(collected.freed);
            match self.dry_run {
                true => writeln!(output, "{objects}{parts}: about {freed}")?,
                false => writeln!(output, "{objects}{parts}; freed {freed}")?,
            }
        }
        output.flush()?;
        Ok(())
    }
}
