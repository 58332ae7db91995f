//! `castore-fs check-config`.

use std::path::PathBuf;

use castore_fs::service::Config;
use clap::Args;

use super::failure::{Failure, say};

/// Say what is wrong with a configuration file
///
/// Needs nothing but the file: no store is opened and nothing is mounted. Every mistake is a line:
/// file, line, key, and what would be right.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs check-config /etc/castore-fs/config.toml")]
pub(super) struct CheckConfig {
    /// The configuration
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<(), Failure> {
        match Config::load(&self.file) {
            Ok(_) => Ok(()),
            Err(problems) => {
                problems
                    .iter()
                    .for_each(|problem| say(&problem.to_string()));
                Err(Failure::Reported)
            }
        }
    }
}
