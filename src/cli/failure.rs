//! The failure of a command: one line, and an exit status.

use std::any::Any;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::castore::Printable;
use crate::tree;
use clap::error::ErrorKind;
use thiserror::Error as ThisError;

use super::closed::stdout_was_closed;

/// Why a command ends with another status than 0.
#[derive(Debug)]
pub(super) enum CommandFailure {
    /// What is wrong, and what to do.
    Message(String),
    /// Everything was printed already.
    Reported,
    /// The reader of the output closed it, which is no error.
    BrokenPipe,
    /// The arguments exclude each other.
    Usage(String),
    /// Stopped by SIGINT or SIGTERM.
    Interrupted,
}

/// Writing to standard output failed.
#[derive(Debug, ThisError)]
#[error("cannot write to standard output: {0}")]
pub(super) struct OutputError(pub(super) io::Error);

impl CommandFailure {
    /// Prints it on standard error; returns the exit status.
    pub(super) fn report(self) -> ExitCode {
        match self {
            CommandFailure::Message(message) => {
                print_error(&message);
                ExitCode::FAILURE
            }
            CommandFailure::Reported => ExitCode::FAILURE,
            CommandFailure::Usage(message) => {
                print_error(&format!("{message}; try --help"));
                ExitCode::from(2)
            }
            // As if killed by SIGINT or SIGPIPE: 128 and the signal's number.
            CommandFailure::Interrupted => {
                print_error("interrupted");
                ExitCode::from(130)
            }
            CommandFailure::BrokenPipe => ExitCode::from(141),
        }
    }
}

/// Prints what is wrong with the arguments, in one line; or the requested help.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return print_help(error);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // The error is followed by hints, in paragraphs of their own, then the usage.
    let (wrong, _) = text.split_once("\n\nUsage:").unwrap_or((text, ""));
    let (wrong, _) = wrong.split_once("\n\nFor more").unwrap_or((wrong, ""));
    // What no verb takes is no value, so the tip how to pass it as one misleads.
    let lines = wrong
        .lines()
        .filter(|line| !line.trim_start().starts_with("tip: to pass '--"));
    let wrong = lines.collect::<Vec<_>>().join("\n");
    let paragraphs = wrong.trim_end().split("\n\n").map(|paragraph| {
        let words = paragraph.split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    });
    let message = paragraphs.collect::<Vec<_>>().join("; ");
    print_error(&format!("{message}; try --help"));
    ExitCode::from(2)
}

/// Prints the requested help or version.
fn print_help(error: &clap::Error) -> ExitCode {
    let printed = match stdout_was_closed() {
        true => Err("it is closed".to_owned()),
        false => match error.print().and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return CommandFailure::BrokenPipe.report();
            }
            printed => printed.map_err(|error| error.to_string()),
        },
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            print_error(&format!("cannot write to standard output: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints one line on standard error. A closed standard error is no reason to stop.
pub(super) fn print_error(message: &str) {
    let _ = writeln!(
        io::stderr(),
        "castore-fs: {}",
        Printable(message.as_bytes())
    );
}

/// A failure with this message.
pub(super) fn failure(message: impl Into<String>) -> CommandFailure {
    CommandFailure::Message(message.into())
}

impl<E: Error + 'static> From<E> for CommandFailure {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if let Some(crate::import::ImportError::Cancelled) = any.downcast_ref() {
            return CommandFailure::Interrupted;
        }
        let io = match any.downcast_ref::<tree::TreeError>() {
            Some(tree::TreeError::Interrupted) => return CommandFailure::Interrupted,
            Some(tree::TreeError::Output(io)) => Some(io),
            _ => any.downcast_ref::<io::Error>(),
        };
        match io {
            Some(io) if io.kind() == io::ErrorKind::BrokenPipe => CommandFailure::BrokenPipe,
            Some(io) if io.get_ref().is_some_and(|inner| inner.is::<OutputError>()) => {
                CommandFailure::Message(io.to_string())
            }
            _ => CommandFailure::Message(error.to_string()),
        }
    }
}
