//! `castore-fs drop-cache`.

use std::io::Write;

use crate::quantity::count;
use crate::service::{ControlRequest, ControlResult};
use clap::Args;
use indicatif::HumanBytes;

use super::control::{ServiceCacheArguments, not_that};
use super::failure::CommandFailure;
use super::output::Output;

/// Make the running service remove everything from its cache that is not pinned
///
/// Readers notice only that objects are fetched again.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs drop-cache
  castore-fs drop-cache --store main")]
pub(super) struct DropCache {
    #[command(flatten)]
    cache: ServiceCacheArguments,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl DropCache {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let request = ControlRequest::DropCache {
            store: self.cache.store.clone(),
        };
        let done = self.cache.send_request(&request, |_| {})?;
        let ControlResult::Dropped(dropped) = done else {
            return Err(not_that(&done));
        };
        let mut output = Output::open()?;
        match self.json {
            true => output.json(&dropped)?,
            false => writeln!(
                output,
                "removed {}, parts of {} and {}; freed {}",
                count(dropped.blobs, "blob", "blobs"),
                count(dropped.parts, "blob", "blobs"),
                count(dropped.directories, "directory", "directories"),
                HumanBytes(dropped.freed)
            )?,
        }
        output.flush()?;
        Ok(())
    }
}
