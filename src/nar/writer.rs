//! Writing an archive, entry by entry.

use std::io::{self, BufWriter, Write};

use super::{MAGIC, padding};
use crate::castore::{check_name, check_symlink_target};

/// Writes an archive.
///
/// A node inside a directory has a name, the archive's root has none; entries come sorted by the
/// bytes of their names. A call that would not continue a valid archive gives an error of kind
/// [`InvalidInput`](io::ErrorKind::InvalidInput), as does [`finish`](Self::finish) before the end.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: BufWriter<W>,
    /// The directories that are open, outermost first: each the name of the last entry in it.
    open: Vec<Vec<u8>>,
    /// Bytes that the file that is open still lacks, and its padding.
    file: Option<(u64, usize)>,
    /// Whether the root has been started.
    started: bool,
}

impl<W: Write> Writer<W> {
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
        self.string(b"directory")?;
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
        self.string(b"regular")?;
        if executable {
            self.string(b"executable")?;
            self.string(b"")?;
        }
        self.string(b"contents")?;
        self.out.write_all(&size.to_le_bytes())?;
        self.file = Some((size, padding(size)));
        self.contents(b"")
    }

    /// The next bytes of the file. It ends by itself once it has all.
    pub fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (left, padding) = match self.file {
            Some(file) => file,
            None if bytes.is_empty() => return Ok(()),
            None => return misuse("more contents than the file was said to have"),
        };
        let Some(left) = left.checked_sub(bytes.len() as u64) else {
            return misuse("more contents than the file was said to have");
        };
        self.out.write_all(bytes)?;
        self.file = Some((left, padding));
        if left == 0 {
            self.file = None;
            self.out.write_all(&[0; 8][..padding])?;
            self.end_node()?;
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) -> io::Result<()> {
        check_symlink_target(target)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.start_node(name)?;
        self.string(b"symlink")?;
        self.string(b"target")?;
        self.string(target)?;
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
                self.string(MAGIC)?;
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
                for string in [b"entry", &b"("[..], b"name", name, b"node"] {
                    self.string(string)?;
                }
            }
            _ => {
                return misuse("an archive has one root, and only nodes in directories have names");
            }
        }
        self.string(b"(")?;
        self.string(b"type")
    }

    fn end_node(&mut self) -> io::Result<()> {
        self.string(b")")?;
        if !self.open.is_empty() {
            self.string(b")")?;
        }
        Ok(())
    }

    fn check_file_ended(&self) -> io::Result<()> {
        match self.file {
            Some(_) => misuse("less contents than the file was said to have"),
            None => Ok(()),
        }
    }

    fn string(&mut self, string: &[u8]) -> io::Result<()> {
        let length = string.len() as u64;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(string)?;
        self.out.write_all(&[0; 8][..padding(length)])
    }
}

fn misuse<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}
