//! Writing an archive, entry by entry.

use std::io::{self, BufWriter, Write};

use super::framing;
use crate::castore::{check_name, check_symlink_target};

/// Writes an archive.
///
/// A node inside a directory has a name, the archive's root has none; entries come sorted by the
/// bytes of their names. A call that would not continue a valid archive gives an error of kind
/// [`InvalidInput`](io::ErrorKind::InvalidInput), as does [`finish`](Self::finish) before the end.
#[derive(Debug)]
pub struct NarWriter<W: Write> {
    out: BufWriter<W>,
    /// The directories that are open, outermost first: each the name of the last entry in it.
    open: Vec<Vec<u8>>,
    /// The file that is open.
    file: Option<WrittenFile>,
    /// Whether the root has been started.
    started: bool,
}

impl<W: Write> NarWriter<W> {
    /// Writes to `out`; no buffer is needed around it.
    pub fn new(out: W) -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, out),
            open: Vec::new(),
            file: None,
            started: false,
        }
    }

    /// Starts a directory.
    pub fn directory(&mut self, name: Option<&[u8]>) -> io::Result<()> {
        self.start_node(name)?;
        framing::directory(&mut self.out)?;
        self.open.push(Vec::new());
        Ok(())
    }

    /// Ends the directory that was started last.
    pub fn end_directory(&mut self) -> io::Result<()> {
        self.check_file_ended()?;
        if self.open.pop().is_none() {
            return misuse("there is no directory to end");
        }
        self.end_node()
    }

    /// Starts a regular file of `size` bytes, which [`contents`](Self::contents) then takes.
    pub fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64) -> io::Result<()> {
        self.start_node(name)?;
        framing::file(&mut self.out, executable, size)?;
        self.file = Some(WrittenFile {
            size,
            remaining: size,
        });
        self.contents(b"")
    }

    /// The next bytes of the file. It ends by itself once it has all.
    pub fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        let WrittenFile { size, remaining } = match self.file {
            Some(file) => file,
            None if bytes.is_empty() => return Ok(()),
            None => return misuse("more contents than the file's size"),
        };
        let Some(remaining) = remaining.checked_sub(bytes.len() as u64) else {
            return misuse("more contents than the file's size");
        };
        self.out.write_all(bytes)?;
        self.file = Some(WrittenFile { size, remaining });
        if remaining == 0 {
            self.file = None;
            framing::after_contents(&mut self.out, size)?;
            self.end_node()?;
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) -> io::Result<()> {
        check_symlink_target(target)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.start_node(name)?;
        framing::symlink(&mut self.out, target)?;
        self.end_node()
    }

    /// Ends the archive; returns the output, flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.check_file_ended()?;
        if !self.started || !self.open.is_empty() {
            return misuse("the archive is not whole yet");
        }
        self.out.flush()?;
        self.out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
    }

    fn start_node(&mut self, name: Option<&[u8]>) -> io::Result<()> {
        self.check_file_ended()?;
        match (name, self.open.last_mut()) {
            (None, None) if !self.started => {
                self.started = true;
            }
            (Some(name), Some(last)) => {
                check_name(name)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                // No name is empty, so the first one sorts after the empty start value.
                if name <= &last[..] {
                    return misuse("the names are not sorted");
                }
                last.clear();
                last.extend_from_slice(name);
            }
            _ => {
                return misuse("an archive has one root, and only nodes in directories have names");
            }
        }
        framing::start_node(&mut self.out, name)
    }

    fn end_node(&mut self) -> io::Result<()> {
        framing::end_node(&mut self.out, !self.open.is_empty())
    }

    fn check_file_ended(&self) -> io::Result<()> {
        match self.file {
            Some(_) => misuse("less contents than the file's size"),
            None => Ok(()),
        }
    }
}

/// A file whose contents are being written, in bytes.
#[derive(Clone, Copy, Debug)]
struct WrittenFile {
    size: u64,
    remaining: u64,
}

fn misuse<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}
