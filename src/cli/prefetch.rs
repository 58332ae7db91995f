//! `castore-fs prefetch`.

use std::io::Write;
use std::sync::Arc;

use crate::quantity::count;
use crate::service::{ControlRequest, ControlResult, PrefetchStatus};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use parking_lot::Mutex;

use super::control::{NamedRoots, ServiceCacheArguments, not_that};
use super::failure::CommandFailure;
use super::output::Output;
use super::progress::{ProgressLine, ProgressState, QuietArgument};

/// Make the running service fetch everything below some roots into its cache
///
/// Waits until all of it is cached. If the command is interrupted, the service stops fetching; the next
/// `prefetch` of the same roots continues from there. `castore-fs status` shows the progress, too.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs prefetch tree && castore-fs pin tree
  castore-fs prefetch --store main app-1 app-2")]
pub(super) struct PrefetchCommand {
    #[command(flatten)]
    cache: ServiceCacheArguments,
    #[command(flatten)]
    roots: NamedRoots,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
}

impl PrefetchCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let last = Arc::new(Mutex::new(PrefetchStatus::default()));
        let shown = last.clone();
        let line = ProgressLine::show("fetching", move || {
            let status = shown.lock();
            let words = match status.total_blobs {
                0 => count(status.blobs, "blob", "blobs"),
                total => format!(
                    "{} of {}",
                    HumanCount(status.blobs),
                    count(total, "blob", "blobs")
                ),
            };
            ProgressState {
                words,
                bytes: status.bytes,
                part: (status.total_bytes > 0).then_some((status.bytes, status.total_bytes)),
            }
        });
        let request = ControlRequest::Prefetch(self.cache.roots(&self.roots)?);
        let done = self
            .cache
            .send_request(&request, |status| *last.lock() = status.clone())?;
        drop(line);
        let ControlResult::Fetched(fetched) = done else {
            return Err(not_that(&done));
        };
        let mut output = Output::open()?;
        match self.json {
            true => output.json(&fetched)?,
            false => output.line(&format!(
                "{} and {} ({}) are in {}",
                count(fetched.directories, "directory", "directories"),
                count(fetched.blobs, "blob", "blobs"),
                HumanBytes(fetched.bytes),
                fetched.store
            ))?,
        }
        output.flush()?;
        Ok(())
    }
}
