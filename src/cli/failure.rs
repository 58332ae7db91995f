//! The failure of a command: one line, and an exit status.

use std::any::Any;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use castore_fs::castore::Printable;
use castore_fs::tree;
use clap::error::ErrorKind;

use super::closed::stdout_was_closed;
use super::output::{Output, OutputError};

/// Why a command ends with another status than 0.
#[derive(Debug)]
pub(super) enum Failure {
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

impl Failure {
    /// Prints it on standard error; returns the exit status.
    pub(super) fn report(self) -> ExitCode {
        match self {
            Failure::Message(message) => {
                say(&message);
                ExitCode::FAILURE
            }
            Failure::Reported => ExitCode::FAILURE,
            Failure::Usage(message) => {
                say(&format!("{message}; try --help"));
                ExitCode::from(2)
            }
            // As if killed by SIGINT or SIGPIPE: 128 and the signal's number.
            Failure::Interrupted => {
                say("interrupted");
                ExitCode::from(130)
            }
            Failure::BrokenPipe => ExitCode::from(141),
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
    let paragraphs = wrong.split("\n\n").map(|paragraph| {
        let words = paragraph.split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    });
    let message = paragraphs.collect::<Vec<_>>().join("; ");
    say(&format!("{message}; try --help"));
    ExitCode::from(2)
}

/// Prints the requested help or version.
fn print_help(error: &clap::Error) -> ExitCode {
    let printed = match stdout_was_closed() {
        true => Err("it is closed".to_owned()),
        false => match error.print().and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Failure::BrokenPipe.report();
            }
            printed => printed.map_err(|error| error.to_string()),
        },
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("cannot write to standard output: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints one line on standard error. A closed standard error is no reason to stop.
pub(super) fn say(message: &str) {
    let _ = writeln!(
        io::stderr(),
        "castore-fs: {}",
        Printable(message.as_bytes())
    );
}

/// A failure with this message.
pub(super) fn failure(message: impl Into<String>) -> Failure {
    Failure::Message(message.into())
}

impl Failure {
    /// Reports the failure of one of several targets, after the output of the others; fails when no
    /// other can be tried.
    pub(super) fn and_go_on(self, output: &mut Output) -> Result<(), Failure> {
        match self {
            Failure::Message(message) => {
                output.flush()?;
                say(&message);
                Ok(())
            }
            Failure::Reported => Ok(()),
            other => Err(other),
        }
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if let Some(castore_fs::import::Error::Cancelled) = any.downcast_ref() {
            return Failure::Interrupted;
        }
        let io = match any.downcast_ref::<tree::Error>() {
            Some(tree::Error::Interrupted) => return Failure::Interrupted,
            Some(tree::Error::Output(io)) => Some(io),
            _ => any.downcast_ref::<io::Error>(),
        };
        match io {
            Some(io) if io.kind() == io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            Some(io) if io.get_ref().is_some_and(|inner| inner.is::<OutputError>()) => {
                Failure::Message(io.to_string())
            }
            _ => Failure::Message(error.to_string()),
        }
    }
}
