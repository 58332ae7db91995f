//! Standard output: results, and nothing else.
//!
//! Names are bytes. On a terminal those that could move its cursor, or are not text, are escaped
//! ([`Printable`]); in a pipe every byte is unchanged, as in `ls` and `find`. Sentences, which may
//! contain names, are escaped everywhere ([`Output::line`]).
//!
//! A standard output that is closed or full is an error: the output is the result.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use crate::castore::{Printable, printable_json};

use super::closed::stdout_was_closed;
use super::failure::{CommandFailure, OutputError, failure, print_error};

/// Standard output, buffered. Flush it before the end: what is dropped is lost.
pub(super) struct Output {
    out: BufWriter<File>,
    terminal: bool,
}

impl Output {
    /// Opens standard output, by its descriptor: the library's own handle would flush at every line
    /// end.
    pub(super) fn open() -> Result<Self, CommandFailure> {
        if stdout_was_closed() {
            return Err(failure("cannot write to standard output: it is closed"));
        }
        let stdout = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| failure(format!("cannot write to standard output: {error}")))?;
        let file = File::from(stdout);
        Ok(Self {
            terminal: file.is_terminal(),
            out: BufWriter::with_capacity(64 << 10, file),
        })
    }

    /// Whether it is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A name, path or symlink target as it is to be written here.
    pub(super) fn name<'n>(&self, bytes: &'n [u8]) -> Cow<'n, [u8]> {
        match self.terminal {
            true => Printable(bytes).to_string().into_bytes().into(),
            false => bytes.into(),
        }
    }

    /// A line of text, made printable.
    pub(super) fn line(&mut self, line: &str) -> Result<(), CommandFailure> {
        writeln!(self, "{}", Printable(line.as_bytes()))?;
        Ok(())
    }

    /// One JSON object, on a line of its own.
    pub(super) fn json(&mut self, object: &impl serde::Serialize) -> Result<(), CommandFailure> {
        let line = serde_json::to_string(object)?;
        writeln!(self, "{}", printable_json(&line))?;
        Ok(())
    }
}

impl CommandFailure {
    /// Reports the failure of one of several targets, after the output of the others; fails when no
    /// other can be tried.
    pub(super) fn and_continue(self, output: &mut Output) -> Result<(), CommandFailure> {
        match self {
            CommandFailure::Message(message) => {
                output.flush()?;
                print_error(&message);
                Ok(())
            }
            CommandFailure::Reported => Ok(()),
            other => Err(other),
        }
    }
}

fn failed(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), OutputError(error))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(failed)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(failed)
    }
}
