//! The entries of an archive, one after the other, with all that several headers have of one entry
//! put together.
//!
//! The header block is read by the crate `tar`. The sequence of headers is followed here, because
//! that crate cuts PAX records at line feeds (and so loses names that have one), knows of one of the
//! four kinds of sparse files, and takes an archive that was cut short between two entries for a
//! whole one.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::TarError;
use super::pax::{PaxRecords, decimal};
use super::sparse::{MAX_SEGMENTS, SparseMap, SparseRange, SparseSegment};

const BLOCK: usize = 512;

/// The longest path or symlink target that is read into memory, in bytes.
const MAX_HEADER: u64 = 1 << 20;
/// The longest PAX header that is read into memory, in bytes: GNU tar puts the names of all files of a
/// directory into one (`GNU.dumpdir`), and the map of a sparse file.
const MAX_PAX_HEADER: u64 = 64 << 20;

/// An entry of an archive.
#[derive(Debug)]
pub(super) struct TarEntry {
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
}

#[derive(Debug)]
pub(super) enum EntryKind {
    Directory,
    /// A regular file; [`TarReader::contents`] gives its bytes.
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
pub(super) struct TarReader<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Bytes of the current entry in the archive that are not read yet, with the padding.
    remaining: u64,
    /// Where the bytes of the current file come from.
    map: SparseMap,
    /// What the global PAX headers so far apply to every entry after them.
    global: PaxRecords,
    /// The most zeros that holes may add up to, and how many more there may be.
    max_zeros: u64,
    remaining_zeros: u64,
}

/// What the headers before an entry's own have of it.
#[derive(Default)]
struct PrecedingHeaders {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<PaxRecords>,
}

impl<R: Read> TarReader<R> {
    /// Reads `input`, in which the holes of sparse files have at most `max_zeros` bytes.
    pub(super) fn new(input: R, max_zeros: u64) -> Self {
        Self {
            input,
            offset: 0,
            remaining: 0,
            map: SparseMap::default(),
            global: PaxRecords::default(),
            max_zeros,
            remaining_zeros: max_zeros,
        }
    }

    /// The next entry; nothing after the end marker, and then the input has been read to its end.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut before = PrecedingHeaders::default();
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
                    return Err(TarError::Continued { path });
                }
                _ => return self.entry(at, &header, size, before).map(Some),
            }
        }
    }

    /// Fills `buffer` with the next bytes of the file that was given last.
    pub(super) fn contents(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            let length = match self.map.next(buffer.len() as u64) {
                Some(SparseRange::Data(length)) => {
                    self.exact(&mut buffer[..length as usize])?;
                    self.remaining -= length;
                    length
                }
                Some(SparseRange::Zeros(length)) => {
                    buffer[..length as usize].fill(0);
                    length
                }
                None => return Err(format(self.offset, "a file with less bytes than it has")),
            };
            buffer = &mut buffer[length as usize..];
        }
        Ok(())
    }

    /// Puts together what the headers have.
    fn entry(
        &mut self,
        at: u64,
        header: &Header,
        size: u64,
        before: PrecedingHeaders,
    ) -> Result<TarEntry, TarError> {
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
            EntryType::Directory => EntryKind::Directory,
            // A directory of an incremental archive: its data name what was in it.
            other if other.as_byte() == b'D' => {
                self.begin(at, size)?;
                EntryKind::Directory
            }
            EntryType::Symlink => EntryKind::Symlink { target: link()? },
            EntryType::Link => EntryKind::HardLink { target: link()? },
            EntryType::Fifo => EntryKind::Special { kind: "named pipe" },
            EntryType::Char => EntryKind::Special {
                kind: "character device",
            },
            EntryType::Block => EntryKind::Special {
                kind: "block device",
            },
            // Archives of old mark directories by a slash alone.
            EntryType::Regular if path.ends_with(b"/") => {
                self.begin(at, size)?;
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous => {
                self.begin(at, size)?;
                self.map = match pax.sparse.real_size {
                    None => SparseMap::dense(size),
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
                self.map = SparseMap::sparse(segments, real_size, size).map_err(wrong)?;
                self.file(at, header)?
            }
            other => {
                let kind = char::from(other.as_byte()).escape_default();
                return Err(wrong(&format!("an entry of the unknown kind '{kind}'")));
            }
        };
        if let EntryKind::File { .. } = kind {
            self.remaining_zeros = self
                .remaining_zeros
                .checked_sub(self.map.zeros())
                .ok_or_else(|| TarError::TooSparse {
                    path: path.clone(),
                    limit: self.max_zeros,
                })?;
        }
        Ok(TarEntry { path, kind })
    }

    fn file(&self, at: u64, header: &Header) -> Result<EntryKind, TarError> {
        let mode = match is_blank(&header.as_old().mode) {
            true => 0,
            false => header
                .mode()
                .map_err(|_| format(at, "a mode that is no number"))?,
        };
        Ok(EntryKind::File {
            size: self.map.size(),
            executable: mode & 0o100 != 0,
        })
    }

    /// The map of a sparse file in a PAX archive.
    fn pax_sparse(
        &mut self,
        at: u64,
        sparse: super::pax::SparseRecords,
        mut stored: u64,
        real_size: u64,
    ) -> Result<SparseMap, TarError> {
        let wrong = |what: &str| format(at, what);
        let segments = match (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(0)) {
            (0, 0 | 1) => sparse.map,
            (1, 0) => {
                // The map stands before the data, in blocks of its own.
                let mut map = SparseNumbers {
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
                    segments.push(SparseSegment {
                        offset: map.number()?,
                        length: map.number()?,
                    });
                }
                segments
            }
            _ => return Err(wrong("a sparse file of an unknown version")),
        };
        SparseMap::sparse(segments, real_size, stored).map_err(wrong)
    }

    /// The map of a sparse file in the older GNU format, some of which follows the header.
    fn gnu_segments(&mut self, at: u64, header: &Header) -> Result<Vec<SparseSegment>, TarError> {
        let wrong = |what: &str| format(at, what);
        let gnu = header.as_gnu().ok_or_else(|| wrong("no GNU header"))?;
        let mut segments = Vec::new();
        let mut add = |more: &[GnuSparseHeader]| {
            for segment in more.iter().filter(|segment| !segment.is_empty()) {
                match (segment.offset(), segment.length()) {
                    (Ok(offset), Ok(length)) if segments.len() < MAX_SEGMENTS => {
                        segments.push(SparseSegment { offset, length });
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
    fn header(&mut self) -> Result<Option<Header>, TarError> {
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
            Ok(reported) if sums.contains(&i64::from(reported)) => Ok(Some(header)),
            _ => Err(format(at, "a header whose checksum is wrong")),
        }
    }

    /// The data of a GNU header for a long name: the name, with a NUL after it.
    fn long_string(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut text = self.text(at, size, MAX_HEADER)?;
        let end = text.iter().position(|&byte| byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    /// The data of a header that is all text, of at most `limit` bytes. Memory is taken as they come.
    fn text(&mut self, at: u64, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
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
        self.remaining -= size;
        Ok(text)
    }

    /// Starts an entry with `size` bytes of data.
    fn begin(&mut self, at: u64, size: u64) -> Result<(), TarError> {
        self.remaining = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| format(at, "a size beyond 64 bits"))?;
        Ok(())
    }

    /// Reads what is left of the entry.
    fn skip(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 8 << 10];
        while self.remaining > 0 {
            let length = self.remaining.min(buffer.len() as u64);
            self.exact(&mut buffer[..length as usize])?;
            self.remaining -= length;
        }
        Ok(())
    }

    /// Reads the rest after the end marker, so that the writing program does not get a closed pipe.
    fn end(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 8 << 10];
        loop {
            match self.some(&mut buffer)? {
                0 => return Ok(()),
                length if buffer[..length].iter().all(|&byte| byte == 0) => {}
                _ => return Err(TarError::Trailing),
            }
        }
    }

    fn exact(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            match self.some(buffer)? {
                0 => {
                    return Err(TarError::Truncated {
                        offset: self.offset,
                    });
                }
                length => buffer = &mut buffer[length..],
            }
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(buffer) {
                Ok(length) => {
                    self.offset += length as u64;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Io {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
    }
}

/// The numbers of a sparse map that stands before its data: decimal, a line each.
struct SparseNumbers<'a, R> {
    entries: &'a mut TarReader<R>,
    /// Bytes of the entry from here on.
    stored: &'a mut u64,
    at: u64,
    block: [u8; BLOCK],
    next: usize,
}

impl<R: Read> SparseNumbers<'_, R> {
    fn number(&mut self) -> Result<u64, TarError> {
        let at = self.at;
        let malformed = || format(at, "a malformed sparse map");
        let mut digits = Vec::new();
        loop {
            if self.next == BLOCK {
                let Some(stored) = self.stored.checked_sub(BLOCK as u64) else {
                    return Err(malformed());
                };
                self.entries.exact(&mut self.block)?;
                self.entries.remaining -= BLOCK as u64;
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

fn format(offset: u64, what: &str) -> TarError {
    TarError::Format {
        offset,
        what: what.to_owned(),
    }
}
