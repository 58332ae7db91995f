//! `castore-fs prefetch`.

use std::io::Write;
use std::sync::Arc;

use castore_fs::service::{Done, PrefetchStatus, Request};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use parking_lot::Mutex;

use super::control::{CacheArguments, not_that};
use super::failure::Failure;
use super::output::Output;
use super::progress::Line;

/// Make the running service fetch everything below some roots into its cache
///
/// Waits until all of it is there. When it is interrupted, the service stops as well; started
/// again, it continues where it stopped. `castore-fs status` shows the progress, too.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs prefetch tree && castore-fs pin tree
  castore-fs prefetch --store main app-1 app-2")]
pub(super) struct Prefetch {
    #[command(flatten)]
    cache: CacheArguments,
    /// Names of roots
    #[arg(value_name = "NAME", required = true)]
    roots: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Prefetch {
    pub(super) fn run(self) -> Result<(), Failure> {
        let last = Arc::new(Mutex::new(PrefetchStatus::default()));
        let shown = last.clone();
        let line = Line::show("fetching", move || {
            let status = shown.lock();
            let of = match status.total_blobs {
                0 => String::new(),
                total => format!(" of {}", HumanCount(total)),
            };
            let words = format!("{}{of} blobs", HumanCount(status.blobs));
            (words, status.bytes)
        });
        let request = Request::Prefetch(self.cache.roots(&self.roots));
        let done = self
            .cache
            .tell(&request, |status| *last.lock() = status.clone())?;
        drop(line);
        let Done::Fetched(fetched) = done else {
            return Err(not_that(&done));
        };
        let mut output = Output::open()?;
        match self.json {
            true => output.json(&fetched)?,
            false => output.line(&format!(
                "{} directories and {} blobs ({}) are in {}",
                HumanCount(fetched.directories),
                HumanCount(fetched.blobs),
                HumanBytes(fetched.bytes),
                fetched.store
            ))?,
        }
        output.flush()?;
        Ok(())
    }
}
