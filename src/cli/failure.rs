//! How a command fails: one line, and an exit status.

use std::any::Any;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use castore_fs::tree::{self, Printable};

/// Why a command ends with another status than 0.
#[derive(Debug)]
pub(super) enum Failure {
    /// What is wrong and what to do.
    Message(String),
    /// Everything was said already.
    Reported,
    /// Whoever read the output went away; that is no error of ours and needs no words.
    BrokenPipe,
    /// Told to stop, by SIGINT or SIGTERM.
    Interrupted,
}

impl Failure {
    /// Says it on standard error; gives the exit status.
    pub(super) fn report(self) -> ExitCode {
        match self {
            Failure::Message(message) => {
                say(&message);
                ExitCode::FAILURE
            }
            Failure::Reported => ExitCode::FAILURE,
            // As if killed by SIGINT or SIGPIPE: 128 and the signal's number.
            Failure::Interrupted => {
                say("interrupted");
                ExitCode::from(130)
            }
            Failure::BrokenPipe => ExitCode::from(141),
        }
    }
}

/// One line on standard error. A standard error that is closed is no reason to stop.
pub(super) fn say(message: &str) {
    let _ = writeln!(
        io::stderr(),
        "castore-fs: {}",
        Printable(message.as_bytes())
    );
}

/// A failure with the words for it.
pub(super) fn failure(message: impl Into<String>) -> Failure {
    Failure::Message(message.into())
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
            _ => Failure::Message(error.to_string()),
        }
    }
}
