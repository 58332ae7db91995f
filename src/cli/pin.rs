//! `castore-fs pin` and `castore-fs unpin`.

use std::io::Write;

use crate::service::{ControlRequest, ControlResult};
use clap::Args;

use super::control::{NamedRoots, ServiceCacheArguments, not_that};
use super::failure::CommandFailure;
use super::json;
use super::output::Output;

/// Make the running service keep in its cache what was read below some roots
///
/// Regardless of the cache's size, and of other reads. Prints the names that are pinned now, a line
/// each. `castore-fs prefetch` fetches what was not read yet. A root need not exist yet, unless --closure
/// has to find what it refers to.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs pin tree
  castore-fs pin --store main app-1 app-2")]
pub(super) struct Pin {
    #[command(flatten)]
    pins: PinArguments,
}

/// Undo `castore-fs pin`
///
/// Objects below these roots are evicted like all others when space is needed. Prints the names
/// that are still pinned, a line each.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs unpin tree")]
pub(super) struct Unpin {
    #[command(flatten)]
    pins: PinArguments,
}

#[derive(Debug, Args)]
struct PinArguments {
    #[command(flatten)]
    cache: ServiceCacheArguments,
    #[command(flatten)]
    roots: NamedRoots,
    /// One JSON object a line: the name of a pinned root
    #[arg(long)]
    json: bool,
}

impl Pin {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let request = ControlRequest::Pin(self.pins.cache.roots(&self.pins.roots)?);
        self.pins.send_request(&request)
    }
}

impl Unpin {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let request = ControlRequest::Unpin(self.pins.cache.roots(&self.pins.roots)?);
        self.pins.send_request(&request)
    }
}

impl PinArguments {
    fn send_request(&self, request: &ControlRequest) -> Result<(), CommandFailure> {
        let done = self.cache.send_request(request, |_| {})?;
        let ControlResult::Pinned(pins) = done else {
            return Err(not_that(&done));
        };
        let mut output = Output::open()?;
        for pin in pins {
            match self.json {
                true => output.json(&json::JsonName::from(pin.as_bytes()))?,
                false => output.line(&pin)?,
            }
        }
        output.flush()?;
        Ok(())
    }
}
