//! Standard output: results, and nothing else.
//!
//! Names are bytes. On a terminal those that could move its cursor, or are no text, are escaped;
//! in a pipe every byte goes through as it is, as `ls` and `find` do it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use castore_fs::tree::Printable;

use super::failure::{Failure, failure};

/// Standard output, buffered. Flush it before the end: what is dropped is lost.
pub(super) struct Output {
    out: BufWriter<File>,
    terminal: bool,
}

impl Output {
    /// Opens standard output, by its descriptor: the library's own handle would look for line
    /// ends in everything.
    pub(super) fn open() -> Result<Self, Failure> {
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

    /// Whether a person reads along.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A name, path or link target as it is to be written here.
    pub(super) fn name<'n>(&self, bytes: &'n [u8]) -> Cow<'n, [u8]> {
        match self.terminal {
            true => Printable(bytes).to_string().into_bytes().into(),
            false => bytes.into(),
        }
    }

    /// One JSON object, on a line of its own.
    pub(super) fn json(&mut self, object: &impl serde::Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(object)?;
        line.push(b'\n');
        self.write_all(&line)?;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
