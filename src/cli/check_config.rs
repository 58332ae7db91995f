//! `castore-fs check-config`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::service::{self, Config, ConfigProblem, ProbeOutcome};
use clap::Args;
use serde::Serialize;

use super::failure::{CommandFailure, print_error};
use super::json::JsonPath;
use super::output::Output;
use super::store::DEFAULT_CONFIG;
use super::units::micros;

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
    /// One JSON object a line: `path`, `line`, `key` and `mistake`; with --online, a store and whether it
    /// answers
    #[arg(long)]
    json: bool,
    /// The configuration
    #[arg(default_value = DEFAULT_CONFIG)]
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let config = match Config::load_with_files(&self.file, !self.no_files) {
            Ok(config) => config,
            Err(problems) => return self.report(&problems),
        };
        match self.online {
            true => self.check_online(&config),
            false => Ok(()),
        }
    }

    fn report(&self, problems: &[ConfigProblem]) -> Result<(), CommandFailure> {
        if self.json {
            let mut output = Output::open()?;
            for problem in problems {
                output.json(&MistakeObject {
                    file: JsonPath::from(problem.file.as_os_str().as_bytes()),
                    line: problem.line,
                    key: &problem.key,
                    mistake: &problem.what,
                })?;
            }
            output.flush()?;
        } else {
            let problems = problems.iter();
            problems.for_each(|problem| print_error(&problem.to_string()));
        }
        Err(CommandFailure::Reported)
    }

    fn check_online(&self, config: &Config) -> Result<(), CommandFailure> {
        let mut output = Output::open()?;
        let mut all_answer = true;
        for reached in service::check_reachability(config, PATIENCE)? {
            let name = reached.name;
            if self.json {
                all_answer &= !matches!(reached.outcome, ProbeOutcome::Failed { .. });
                output.json(&StoreObject::new(&name, &reached.outcome))?;
                continue;
            }
            match reached.outcome {
                ProbeOutcome::Answered(after) => {
                    let after = micros(after.as_micros() as u64);
                    output.line(&format!("{name}: ok, {after}"))?;
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
}

/// A mistake in the file.
#[derive(Serialize)]
struct MistakeObject<'a> {
    #[serde(flatten)]
    file: JsonPath,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    key: &'a str,
    mistake: &'a str,
}

/// A store, and whether it answers.
#[derive(Serialize)]
struct StoreObject<'a> {
    store: &'a str,
    /// `answers`, `to-be-made` or `fails`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl<'a> StoreObject<'a> {
    fn new(store: &'a str, outcome: &'a ProbeOutcome) -> Self {
        let (state, micros, why, advice) = match outcome {
            ProbeOutcome::Answered(after) => {
                ("answers", Some(after.as_micros() as u64), None, None)
            }
            ProbeOutcome::ToBeMade => ("to-be-made", None, None, None),
            ProbeOutcome::Failed { why, advice } => ("fails", None, Some(&why[..]), *advice),
        };
        Self {
            store,
            state,
            micros,
            why,
            advice,
        }
    }
}
