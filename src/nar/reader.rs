//! Reading an archive, strictly, as a stream of events.

use std::io::{self, BufRead, BufReader, Read};

use thiserror::Error;

use super::{MAGIC, MAX_DEPTH, padding};
use crate::castore::{Name, NameError, SymlinkTarget};

/// The longest string other than a file's contents, in bytes: a symlink target's limit. Longer
/// ones are refused before they are read.
const MAX_STRING: u64 = 4096;

/// Reads an archive.
#[derive(Debug)]
pub struct NarReader<R> {
    input: BufReader<R>,
    /// Bytes read so far.
    offset: u64,
    state: NarReaderState,
    /// The directories that are open, outermost first: each the name of the last entry seen in it.
    open: Vec<Option<Name>>,
    /// The string read last.
    string: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NarReaderState {
    /// Nothing read yet.
    Start,
    /// In a directory, before an entry or its end.
    Directory,
    /// In a file: bytes of contents not read yet, and the zeros after them.
    Contents { remaining: u64, padding: usize },
    /// After the end.
    End,
}

/// The next event of an archive. The name is that of the entry in the open directory; the archive's
/// root has none.
#[derive(Debug)]
pub enum NarEvent<'a, R> {
    /// A directory starts: its entries follow, then [`NarEvent::EndDirectory`].
    Directory {
        /// The entry's name.
        name: Option<Name>,
    },
    /// The directory that was opened last ends.
    EndDirectory,
    /// A regular file. Contents that are left unread are skipped.
    File {
        /// The entry's name.
        name: Option<Name>,
        /// Whether the file can be executed.
        executable: bool,
        /// The file's bytes.
        contents: NarContents<'a, R>,
    },
    /// A symbolic link.
    Symlink {
        /// The entry's name.
        name: Option<Name>,
        /// Where it points.
        target: SymlinkTarget,
    },
}

/// The contents of the file that a [`NarReader`] stands at.
#[derive(Debug)]
pub struct NarContents<'a, R> {
    reader: &'a mut NarReader<R>,
    size: u64,
}

/// Input that is no archive. Offsets are bytes from the start of the archive.
#[derive(Debug, Error)]
pub enum NarError {
    /// The input could not be read.
    #[error("cannot read the NAR at byte {offset}: {source}")]
    Io {
        /// Bytes read before.
        offset: u64,
        /// The error of the system.
        source: io::Error,
    },
    /// The input ends early.
    #[error("the NAR ends at byte {offset}, inside {expected}")]
    Truncated {
        /// Where the input ends.
        offset: u64,
        /// What should be there.
        expected: &'static str,
    },
    /// A string other than what the format has there.
    #[error("not a NAR: byte {offset} should start {expected}, but it starts \"{found}\"")]
    Unexpected {
        /// Where the string starts.
        offset: u64,
        /// What should be there.
        expected: &'static str,
        /// What is there, escaped.
        found: String,
    },
    /// A length beyond what the format has there.
    #[error("not a NAR: byte {offset} should start {expected}, but it announces {length} bytes")]
    TooLong {
        /// Where the string starts.
        offset: u64,
        /// What should be there.
        expected: &'static str,
        /// The length.
        length: u64,
    },
    /// Bytes other than zero after a string.
    #[error("the NAR has bytes other than zero in the padding at byte {offset}")]
    Padding {
        /// Where the padding starts.
        offset: u64,
    },
    /// A name or symlink target that breaks the rules.
    #[error("the name or symlink target at byte {offset} of the NAR: {source}")]
    Name {
        /// Where the string starts.
        offset: u64,
        /// The rule.
        source: NameError,
    },
    /// A name that does not sort after the one before it.
    #[error("the NAR is not sorted: at byte {offset}, \"{name}\" comes after \"{previous}\"")]
    Unsorted {
        /// Where the name starts.
        offset: u64,
        /// The name.
        name: Name,
        /// The one before.
        previous: Name,
    },
    /// More than [`MAX_DEPTH`] directories inside one another.
    #[error("the NAR nests more than {MAX_DEPTH} directories at byte {offset}")]
    TooDeep {
        /// Where the directory starts.
        offset: u64,
    },
    /// Bytes after the end.
    #[error("the NAR ends at byte {offset}, but more bytes follow")]
    Trailing {
        /// Where the archive ends.
        offset: u64,
    },
}

impl<R: Read> NarReader<R> {
    /// Reads the archive that `input` is, to its last byte. Reads ahead; no buffer is needed around
    /// `input`.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            offset: 0,
            state: NarReaderState::Start,
            open: Vec::new(),
            string: Vec::new(),
        }
    }

    /// The next event; nothing once the archive, and the input with it, has ended.
    #[expect(
        clippy::should_implement_trait,
        reason = "an event borrows the reader, which Iterator cannot express"
    )]
    pub fn next(&mut self) -> Result<Option<NarEvent<'_, R>>, NarError> {
        if let NarReaderState::Contents { remaining, padding } = self.state {
            self.skip(remaining)?;
            self.zeros(padding)?;
            self.end_node()?;
        }
        match self.state {
            NarReaderState::Start => {
                self.expect(MAGIC, "\"nix-archive-1\"")?;
                self.node(None).map(Some)
            }
            NarReaderState::Directory => self.entry().map(Some),
            NarReaderState::End | NarReaderState::Contents { .. } => Ok(None),
        }
    }

    /// An entry of the directory that is open, or its end.
    fn entry(&mut self) -> Result<NarEvent<'_, R>, NarError> {
        const EXPECTED: &str = "an entry or the end of a directory";
        let at = self.offset;
        self.string(EXPECTED)?;
        match &self.string[..] {
            b")" => {
                self.open.pop();
                self.end_entry()?;
                return Ok(NarEvent::EndDirectory);
            }
            b"entry" => {}
            _ => return Err(self.unexpected(at, EXPECTED)),
        }
        self.expect(b"(", "\"(\"")?;
        self.expect(b"name", "\"name\"")?;
        let offset = self.offset;
        self.string("a name")?;
        let name = Name::new(&self.string).map_err(|source| NarError::Name { offset, source })?;
        if let Some(last) = self.open.last_mut() {
            match last.replace(name.clone()) {
                Some(previous) if previous >= name => {
                    return Err(NarError::Unsorted {
                        offset,
                        name,
                        previous,
                    });
                }
                _ => {}
            }
        }
        self.expect(b"node", "\"node\"")?;
        self.node(Some(name))
    }

    /// The start of a node; all of it if it is a symlink.
    fn node(&mut self, name: Option<Name>) -> Result<NarEvent<'_, R>, NarError> {
        const TYPE: &str = "\"regular\", \"symlink\" or \"directory\"";
        self.expect(b"(", "\"(\"")?;
        self.expect(b"type", "\"type\"")?;
        let at = self.offset;
        self.string(TYPE)?;
        match &self.string[..] {
            b"directory" => {
                if self.open.len() == MAX_DEPTH {
                    return Err(NarError::TooDeep { offset: at });
                }
                self.open.push(None);
                self.state = NarReaderState::Directory;
                Ok(NarEvent::Directory { name })
            }
            b"regular" => self.file(name),
            b"symlink" => {
                self.expect(b"target", "\"target\"")?;
                let offset = self.offset;
                self.string("a symlink target")?;
                let target = SymlinkTarget::new(&self.string)
                    .map_err(|source| NarError::Name { offset, source })?;
                self.end_node()?;
                Ok(NarEvent::Symlink { name, target })
            }
            _ => Err(self.unexpected(at, TYPE)),
        }
    }

    fn file(&mut self, name: Option<Name>) -> Result<NarEvent<'_, R>, NarError> {
        const EXPECTED: &str = "\"executable\" or \"contents\"";
        let at = self.offset;
        self.string(EXPECTED)?;
        let executable = match &self.string[..] {
            b"executable" => {
                self.expect(b"", "the empty string after \"executable\"")?;
                self.expect(b"contents", "\"contents\"")?;
                true
            }
            b"contents" => false,
            _ => return Err(self.unexpected(at, EXPECTED)),
        };
        let size = self.length("the size of a file")?;
        self.state = NarReaderState::Contents {
            remaining: size,
            padding: padding(size),
        };
        let contents = NarContents { reader: self, size };
        Ok(NarEvent::File {
            name,
            executable,
            contents,
        })
    }

    /// The end of a node that is no directory.
    fn end_node(&mut self) -> Result<(), NarError> {
        self.expect(b")", "the end of a node, \")\"")?;
        self.end_entry()
    }

    /// The end of the entry that a node was in, or of the archive.
    fn end_entry(&mut self) -> Result<(), NarError> {
        if !self.open.is_empty() {
            self.state = NarReaderState::Directory;
            return self.expect(b")", "the end of an entry, \")\"");
        }
        self.state = NarReaderState::End;
        let offset = self.offset;
        match self.input.fill_buf() {
            Ok([]) => Ok(()),
            Ok(_) => Err(NarError::Trailing { offset }),
            Err(source) => Err(NarError::Io { offset, source }),
        }
    }

    fn expect(&mut self, string: &[u8], expected: &'static str) -> Result<(), NarError> {
        let at = self.offset;
        self.string(expected)?;
        if self.string != string {
            return Err(self.unexpected(at, expected));
        }
        Ok(())
    }

    fn unexpected(&self, offset: u64, expected: &'static str) -> NarError {
        let found = self.string.get(..32).unwrap_or(&self.string);
        NarError::Unexpected {
            offset,
            expected,
            found: found.escape_ascii().to_string(),
        }
    }

    /// Reads a short string into `self.string`.
    fn string(&mut self, expected: &'static str) -> Result<(), NarError> {
        let offset = self.offset;
        let length = self.length(expected)?;
        if length > MAX_STRING {
            return Err(NarError::TooLong {
                offset,
                expected,
                length,
            });
        }
        let mut string = std::mem::take(&mut self.string);
        string.resize(length as usize, 0);
        let read = self.exact(&mut string, expected);
        self.string = string;
        read?;
        self.zeros(padding(length))
    }

    fn length(&mut self, expected: &'static str) -> Result<u64, NarError> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes, expected)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn zeros(&mut self, count: usize) -> Result<(), NarError> {
        let offset = self.offset;
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..count];
        self.exact(bytes, "padding")?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(NarError::Padding { offset });
        }
        Ok(())
    }

    fn exact(&mut self, mut buffer: &mut [u8], expected: &'static str) -> Result<(), NarError> {
        while !buffer.is_empty() {
            let read = self.some(buffer, expected)?;
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    /// Reads at least one byte into `buffer`, which is not empty.
    fn some(&mut self, buffer: &mut [u8], expected: &'static str) -> Result<usize, NarError> {
        let offset = self.offset;
        loop {
            match self.input.read(buffer) {
                Ok(0) => return Err(NarError::Truncated { offset, expected }),
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NarError::Io { offset, source }),
            }
        }
    }

    fn skip(&mut self, mut remaining: u64) -> Result<(), NarError> {
        let mut buffer = [0; 8 << 10];
        while remaining > 0 {
            let part = remaining.min(buffer.len() as u64) as usize;
            remaining -= self.some(&mut buffer[..part], "the contents of a file")? as u64;
        }
        Ok(())
    }
}

impl<R: Read> NarContents<'_, R> {
    /// Bytes of the file, as the archive states them: not to be used for an allocation.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the next bytes into `buffer`; returns their number, 0 at the end of the file. Fills
    /// `buffer` unless the file ends first.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, NarError> {
        let NarReaderState::Contents { remaining, padding } = self.reader.state else {
            return Ok(0);
        };
        let length = remaining.min(buffer.len() as u64) as usize;
        self.reader
            .exact(&mut buffer[..length], "the contents of a file")?;
        self.reader.state = NarReaderState::Contents {
            remaining: remaining - length as u64,
            padding,
        };
        Ok(length)
    }
}
