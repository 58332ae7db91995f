//! The entries of an archive, one after the other, with all that several headers say of one entry
//! put together.
//!
//! The header block is read by the crate `tar`. The sequence of headers is followed here, because
//! that crate cuts PAX records at line feeds (and so loses names that have one), knows of one of the
//! four kinds of sparse files, and takes an archive that was cut short between two entries for a
//! whole one.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::Error;
use super::pax::{Records, decimal};
use super::sparse::{MAX_SEGMENTS, Map, Segment, Stretch};

const BLOCK: usize = 512;

/// The longest path or symlink target that is read into memory, in bytes.
const MAX_HEADER: u64 = 1 << 20;
/// The longest PAX header that is read into memory, in bytes: GNU tar puts the names of all files of a
/// directory into one (`GNU.dumpdir`), and the map of a sparse file.
const MAX_PAX_HEADER: u64 = 64 << 20;

/// An entry of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Directory,
    /// A regular file; [`Entries::contents`] gives its bytes.
    File {
        size: u64,
        executable: bool,
    },
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    /// A device or named pipe.
    Special {
        kind: &'static str,
    },
}

/// Reads an archive.
#[derive(Debug)]
pub(super) struct Entries<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Bytes of the current entry in the archive that are not read yet, with the padding.
    left: u64,
    /// Where the bytes of the current file come from.
    map: Map,
    /// What the global PAX headers so far say of every entry after them.
    global: Records,
    /// The most zeros that holes may add up to, and how many more there may be.
    max_zeros: u64,
    zeros_left: u64,
}

/// What the headers before an entry's own say of it.
#[derive(Default)]
struct Before {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Records>,
}

impl<R: Read> Entries<R> {
    /// Reads `input`, in which the holes of sparse files have at most `max_zeros` bytes.
    pub(super) fn new(input: R, max_zeros: u64) -> Self {
        Self {
            input,
            offset: 0,
            left: 0,
            map: Map::default(),
            global: Records::default(),
            max_zeros,
            zeros_left: max_zeros,
        }
    }

    /// The next entry; nothing after the end marker, and then the input has been read to its end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let at = self.offset;
            let Some(header) = self.header()? else {
                self.end()?;
                return Ok(None);
            };
            let wrong = |what: &str| format(at, what);
            // A label of GNU tar has no size at all.
            let size = match is_blank(&header.as_old().size) {
                true => 0,
                false => header
                    .entry_size()
                    .map_err(|_| wrong("a size that is no number"))?,
            };
            match header.entry_type() {
                EntryType::GNULongName => before.long_path = Some(self.long_string(at, size)?),
                EntryType::GNULongLink => before.long_link = Some(self.long_string(at, size)?),
                // Solaris writes PAX headers of the kind X.
                kind if kind == EntryType::XHeader || kind.as_byte() == b'X' => {
                    let mut records = self.global.clone();
                    let text = self.text(at, size, MAX_PAX_HEADER)?;
                    records.read(&text).map_err(wrong)?;
                    before.pax = Some(records);
                }
                EntryType::XGlobalHeader => {
                    let mut records = std::mem::take(&mut self.global);
                    let text = self.text(at, size, MAX_PAX_HEADER)?;
                    records.read(&text).map_err(wrong)?;
                    self.global = records;
                }
                // A volume's label: no entry.
                label if label.as_byte() == b'V' => self.begin(at, size)?,
                rest if rest.as_byte() == b'M' => {
                    let path = before.long_path;
                    let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                    return Err(Error::Continued { path });
                }
                _ => return self.entry(at, &header, size, before).map(Some),
            }
        }
    }

    /// Fills `buffer` with the next bytes of the file that was given last.
    pub(super) fn contents(&mut self, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            let length = match self.map.next(buffer.len() as u64) {
                Some(Stretch::Data(length)) => {
                    self.exact(&mut buffer[..length as usize])?;
                    self.left -= length;
                    length
                }
                Some(Stretch::Zeros(length)) => {
                    buffer[..length as usize].fill(0);
                    length
                }
                None => return Err(format(self.offset, "a file with less bytes than it has")),
            };
            buffer = &mut buffer[length as usize..];
        }
        Ok(())
    }

    /// Puts together what the headers say.
    fn entry(
        &mut self,
        at: u64,
        header: &Header,
        size: u64,
        before: Before,
    ) -> Result<Entry, Error> {
        let wrong = |what: &str| format(at, what);
        let pax = before.pax.unwrap_or_else(|| self.global.clone());
        let path = before
            .long_path
            .or(pax.sparse.name.clone())
            .or(pax.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            before
                .long_link
                .or(pax.link_path)
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .ok_or_else(|| wrong("a link to nothing"))
        };
        let size = pax.size.unwrap_or(size);
        let kind = match header.entry_type() {
            // Only files have data: others may carry a size that means something else.
            EntryType::Directory => Kind::Directory,
            // A directory of an incremental archive: its data name what was in it.
            other if other.as_byte() == b'D' => {
                self.begin(at, size)?;
                Kind::Directory
            }
            EntryType::Symlink => Kind::Symlink { target: link()? },
            EntryType::Link => Kind::HardLink { target: link()? },
            EntryType::Fifo => Kind::Special { kind: "named pipe" },
            EntryType::Char => Kind::Special {
                kind: "character device",
            },
            EntryType::Block => Kind::Special {
                kind: "block device",
            },
            // Archives of old mark directories by a slash alone.
            EntryType::Regular if path.ends_with(b"/") => {
                self.begin(at, size)?;
                Kind::Directory
            }
            EntryType::Regular | EntryType::Continuous => {
                self.begin(at, size)?;
                self.map = match pax.sparse.real_size {
                    None => Map::dense(size),
                    Some(real_size) => self.pax_sparse(at, pax.sparse, size, real_size)?,
                };
                self.file(at, header)?
            }
            EntryType::GNUSparse => {
                let segments = self.gnu_segments(at, header)?;
                let gnu = header.as_gnu().ok_or_else(|| wrong("no GNU header"))?;
                let real_size = gnu
                    .real_size()
                    .map_err(|_| wrong("a sparse file without a size"))?;
                self.begin(at, size)?;
                self.map = Map::sparse(segments, real_size, size).map_err(wrong)?;
                self.file(at, header)?
            }
            other => {
                let kind = char::from(other.as_byte()).escape_default();
                return Err(wrong(&format!("an entry of the unknown kind '{kind}'")));
            }
        };
        if let Kind::File { .. } = kind {
            self.zeros_left = self
                .zeros_left
                .checked_sub(self.map.zeros())
                .ok_or_else(|| Error::TooSparse {
                    path: path.clone(),
                    limit: self.max_zeros,
                })?;
        }
        Ok(Entry { path, kind })
    }

    fn file(&self, at: u64, header: &Header) -> Result<Kind, Error> {
        let mode = match is_blank(&header.as_old().mode) {
            true => 0,
            false => header
                .mode()
                .map_err(|_| format(at, "a mode that is no number"))?,
        };
        Ok(Kind::File {
            size: self.map.size(),
            executable: mode & 0o100 != 0,
        })
    }

    /// The map of a sparse file in a PAX archive.
    fn pax_sparse(
        &mut self,
        at: u64,
        sparse: super::pax::Sparse,
        mut stored: u64,
        real_size: u64,
    ) -> Result<Map, Error> {
        let wrong = |what: &str| format(at, what);
        let segments = match (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(0)) {
            (0, 0 | 1) => sparse.map,
            (1, 0) => {
                // The map stands before the data, in blocks of its own.
                let mut map = Numbers {
                    entries: self,
                    stored: &mut stored,
                    at,
                    block: [0; BLOCK],
                    next: BLOCK,
                };
                let count = map.number()?;
                if count > MAX_SEGMENTS as u64 {
                    return Err(wrong("a sparse file with too many segments"));
                }
                let mut segments = Vec::new();
                for _ in 0..count {
                    segments.push(Segment {
                        offset: map.number()?,
                        length: map.number()?,
                    });
                }
                segments
            }
            _ => return Err(wrong("a sparse file of an unknown version")),
        };
        Map::sparse(segments, real_size, stored).map_err(wrong)
    }

    /// The map of a sparse file in the older GNU format, some of which follows the header.
    fn gnu_segments(&mut self, at: u64, header: &Header) -> Result<Vec<Segment>, Error> {
        let wrong = |what: &str| format(at, what);
        let gnu = header.as_gnu().ok_or_else(|| wrong("no GNU header"))?;
        let mut segments = Vec::new();
        let mut add = |more: &[GnuSparseHeader]| {
            for segment in more.iter().filter(|segment| !segment.is_empty()) {
                match (segment.offset(), segment.length()) {
                    (Ok(offset), Ok(length)) if segments.len() < MAX_SEGMENTS => {
                        segments.push(Segment { offset, length });
                    }
                    _ => return Err(wrong("a malformed sparse map")),
                }
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            self.exact(more.as_mut_bytes())?;
            add(&more.sparse)?;
            extended = more.is_extended();
        }
        Ok(segments)
    }

    /// The next header; nothing at the end marker.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let at = self.offset;
        let mut header = Header::new_old();
        self.exact(header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The sum of all bytes, with spaces in the place of the sum. Some have summed signed bytes.
        let sum = |value: fn(u8) -> i64| -> i64 {
            let counted = bytes[..148].iter().chain(&bytes[156..]);
            counted.map(|&byte| value(byte)).sum::<i64>() + 8 * i64::from(b' ')
        };
        let sums = [sum(i64::from), sum(|byte| i64::from(byte as i8))];
        match header.cksum() {
            Ok(said) if sums.contains(&i64::from(said)) => Ok(Some(header)),
            _ => Err(format(at, "a header whose checksum is wrong")),
        }
    }

    /// The data of a GNU header for a long name: the name, with a NUL after it.
    fn long_string(&mut self, at: u64, size: u64) -> Result<Vec<u8>, Error> {
        let mut text = self.text(at, size, MAX_HEADER)?;
        let end = text.iter().position(|&byte| byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    /// The data of a header that is all text, of at most `limit` bytes. Memory is taken as they come.
    fn text(&mut self, at: u64, size: u64, limit: u64) -> Result<Vec<u8>, Error> {
        if size > limit {
            let what = format!("a header of more than {} MiB", limit >> 20);
            return Err(format(at, &what));
        }
        self.begin(at, size)?;
        let mut text = Vec::new();
        while (text.len() as u64) < size {
            let start = text.len();
            let step = (size - start as u64).min(1 << 20) as usize;
            text.resize(start + step, 0);
            self.exact(&mut text[start..])?;
        }
        self.left -= size;
        Ok(text)
    }

    /// Starts an entry with `size` bytes of data.
    fn begin(&mut self, at: u64, size: u64) -> Result<(), Error> {
        self.left = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| format(at, "a size beyond 64 bits"))?;
        Ok(())
    }

    /// Reads what is left of the entry.
    fn skip(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8 << 10];
        while self.left > 0 {
            let length = self.left.min(buffer.len() as u64);
            self.exact(&mut buffer[..length as usize])?;
            self.left -= length;
        }
        Ok(())
    }

    /// Reads the rest after the end marker, so that the writing program does not get a closed pipe.
    fn end(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8 << 10];
        loop {
            match self.some(&mut buffer)? {
                0 => return Ok(()),
                length if buffer[..length].iter().all(|&byte| byte == 0) => {}
                _ => return Err(Error::Trailing),
            }
        }
    }

    fn exact(&mut self, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            match self.some(buffer)? {
                0 => {
                    return Err(Error::Truncated {
                        offset: self.offset,
                    });
                }
                length => buffer = &mut buffer[length..],
            }
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.input.read(buffer) {
                Ok(length) => {
                    self.offset += length as u64;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
    }
}

/// The numbers of a sparse map that stands before its data: decimal, a line each.
struct Numbers<'a, R> {
    entries: &'a mut Entries<R>,
    /// Bytes of the entry from here on.
    stored: &'a mut u64,
    at: u64,
    block: [u8; BLOCK],
    next: usize,
}

impl<R: Read> Numbers<'_, R> {
    fn number(&mut self) -> Result<u64, Error> {
        let at = self.at;
        let malformed = || format(at, "a malformed sparse map");
        let mut digits = Vec::new();
        loop {
            if self.next == BLOCK {
                let Some(stored) = self.stored.checked_sub(BLOCK as u64) else {
                    return Err(malformed());
                };
                self.entries.exact(&mut self.block)?;
                self.entries.left -= BLOCK as u64;
                *self.stored = stored;
                self.next = 0;
            }
            let byte = self.block[self.next];
            self.next += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or_else(malformed),
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(malformed()),
            }
        }
    }
}

/// Whether a field holds no number at all.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

fn format(offset: u64, what: &str) -> Error {
    Error::Format {
        offset,
        what: what.to_owned(),
    }
}
