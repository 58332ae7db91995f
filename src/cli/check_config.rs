//! `castore-fs check-config`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use castore_fs::service::{self, Config, ProbeOutcome};
use clap::Args;

use super::failure::{CommandFailure, print_error};
use super::output::Output;
use super::store::DEFAULT_CONFIG;

/// How long the stores may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Check a configuration file
///
/// No store is opened and nothing is mounted. Every mistake is a line: file, line, key, and what would be
/// right. Mount points are checked against this machine's files: one that would hide what the service
/// needs is a mistake. So is a file with tokens or certificates that the service could not use, and an
/// address whose host is not known. What the service finds only as it starts is whether a port is free, a
/// socket unit passes on what is wanted, and a store has the roots that are to be mounted.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs check-config /etc/castore-fs/config.toml
  castore-fs check-config --online /etc/castore-fs/config.toml")]
pub(super) struct CheckConfig {
    /// Check as well whether every store answers: a line for each, within ten seconds
    #[arg(long)]
    online: bool,
    /// Look at no file with tokens or certificates and look up no host: on another machine than its own
    #[arg(long, conflicts_with = "online")]
    no_files: bool,
    /// The configuration
    #[arg(default_value = DEFAULT_CONFIG)]
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let config = Config::load_with_files(&self.file, !self.no_files).map_err(|problems| {
            problems
                .iter()
                .for_each(|problem| print_error(&problem.to_string()));
            CommandFailure::Reported
        })?;
        match self.online {
            true => check_online(&config),
            false => Ok(()),
        }
    }
}

fn check_online(config: &Config) -> Result<(), CommandFailure> {
    let mut output = Output::open()?;
    let mut all_answer = true;
    for reached in service::check_reachability(config, PATIENCE)? {
        let name = reached.name;
        match reached.outcome {
            ProbeOutcome::Answered(after) => {
                let millis = after.as_secs_f64() * 1000.0;
                output.line(&format!("{name}: ok, {millis:.1} ms"))?;
            }
            ProbeOutcome::ToBeMade => {
                output.line(&format!("{name}: ok, to be made by the service"))?
            }
            ProbeOutcome::Failed { why, advice } => {
                all_answer = false;
                output.flush()?;
                let advice = advice.map(|advice| format!("; {advice}"));
                print_error(&format!("{name}: {why}{}", advice.unwrap_or_default()));
            }
        }
    }
    output.flush()?;
    match all_answer {
        true => Ok(()),
        false => Err(CommandFailure::Reported),
    }
}
