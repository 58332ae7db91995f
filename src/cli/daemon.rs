//! `castore-fs daemon`.

use std::path::PathBuf;

use crate::service;
use clap::Args;

use super::failure::{CommandFailure, print_error};
use super::store::DEFAULT_CONFIG;

/// Run the service: stores, mounts and sockets of a configuration file
///
/// Made to be started by systemd as Type=notify: reports when everything is up, reads the file
/// again at SIGHUP, and hands its mounts over to the next process when it is restarted.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs daemon
  castore-fs daemon --config ./config.toml")]
pub(super) struct DaemonCommand {
    /// The configuration: see docs/config.md
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

impl DaemonCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        service::run(&self.config).map_err(|error| {
            // A configuration can have several errors: a line each.
            error.to_string().lines().for_each(print_error);
            CommandFailure::Reported
        })
    }
}
