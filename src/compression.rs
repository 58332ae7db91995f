//! Decompressing a stream as it is read: gzip, xz, zstd, bzip2, brotli.
//!
//! [`Decoder`] is a [`Read`] around another one. Which compression it undoes is given by name (as in
//! a narinfo's `Compression`) or recognised by the stream's first bytes; what is not compressed goes
//! through as it is. Several members in a row (gzip, bzip2), streams (xz) or frames (zstd) are one
//! input, as for `gzip -d`, `bzip2 -d`, `xz -d` and `zstd -d`.
//!
//! **Bombs.** A few kilobytes can stand for terabytes, or demand gigabytes of memory before the first
//! byte comes out. [`DecompressionLimits`] bounds both: memory by what a decoder may allocate for its window, and
//! output by a number of bytes and a multiple of the input that was read. The multiple is above what
//! gzip can reach at all (1032), so that it only ever concerns data that are nearly all alike.
//!
//! Errors are [`io::Error`]s with an [`enum@DecompressionError`] inside, except those of the input itself, which come
//! out unchanged.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use thiserror::Error;

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz format, around LZMA2.
    Xz,
    /// RFC 8878.
    Zstd,
    /// Bzip2.
    Bzip2,
    /// RFC 7932. It has no signature: it is known by name only.
    Brotli,
}

/// Bytes from a stream's start that are enough to recognise its compression.
const SIGNATURE: usize = 10;

/// Of formats that are recognised and not decompressed: their first bytes, their name, and the
/// command that unpacks them.
const FOREIGN: [(&[u8], &str, &str); 8] = [
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
    (b"LZIP\x01", "lzip", "lzip -dc"),
    (b"\x89LZO\x00\r\n\x1a\n", "lzop", "lzop -dc"),
    (b"\x5d\x00\x00\x80\x00\xff", "lzma", "xz -dc --format=lzma"),
    (b"\x1f\x9d\x90", "compress (.Z)", "gzip -dc"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
    (b"Rar!\x1a\x07", "rar", "unrar x"),
];

impl Compression {
    /// The compression of this name: `gzip`, `xz`, `zstd`, `bzip2`, and `br` or `brotli`, as narinfo
    /// files and HTTP's `Content-Encoding` have them.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gzip" => Self::Gzip,
            "xz" => Self::Xz,
            "zstd" => Self::Zstd,
            "bzip2" => Self::Bzip2,
            "br" | "brotli" => Self::Brotli,
            _ => return None,
        })
    }

    /// The name that [`Compression::from_name`] knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Brotli => "brotli",
        }
    }

    /// The compression of a stream that begins with `start`.
    pub fn of_signature(start: &[u8]) -> Option<Self> {
        match start {
            // Identification, and the only method there is: deflate.
            [0x1f, 0x8b, 0x08, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // A skippable frame, with which seekable files and those of pzstd begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            // The header can be a file's name in a tar archive; the block's or end's mark cannot.
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Some(Self::Bzip2),
            _ => None,
        }
    }
}

/// How much a stream may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecompressionLimits {
    /// Bytes of memory for a decoder's window.
    pub memory: u64,
    /// Bytes of output that are allowed in any case.
    pub output: u64,
    /// Bytes of output that are allowed for each byte of input, beyond [`DecompressionLimits::output`].
    pub ratio: u64,
}

impl Default for DecompressionLimits {
    /// 128 MiB of memory: what `xz -9` (65 MiB) and `zstd --ultra -22` (128 MiB) need. 8 GiB of
    /// output, or 2000 times the input.
    fn default() -> Self {
        Self {
            memory: 128 << 20,
            output: 8 << 30,
            ratio: 2000,
        }
    }
}

impl DecompressionLimits {
    /// The default memory, and `output` bytes of output whatever the input.
    pub fn of_output(output: u64) -> Self {
        Self {
            output,
            ratio: 0,
            ..Self::default()
        }
    }
}

/// Why a stream cannot be decompressed.
#[derive(Debug, Error)]
pub enum DecompressionError {
    /// The data break the format, or a checksum is wrong.
    #[error("the {} data are damaged: {source}", compression.name())]
    Damaged {
        /// The format.
        compression: Compression,
        /// The decoder's error.
        source: io::Error,
    },
    /// The input ends inside the compressed data.
    #[error("the {} data end early: they were cut short", compression.name())]
    Truncated {
        /// The format.
        compression: Compression,
    },
    /// Something else than zeros and further members follows the compressed data.
    #[error("bytes that are no {} data follow the compressed data", compression.name())]
    Trailing {
        /// The format.
        compression: Compression,
    },
    /// The window is larger than [`DecompressionLimits::memory`].
    #[error(
        "the {} data need more than {} MiB of memory; decompress them first, and import the result",
        compression.name(), limit >> 20
    )]
    Memory {
        /// The format.
        compression: Compression,
        /// Bytes allowed.
        limit: u64,
    },
    /// More comes out than [`DecompressionLimits::output`] and [`DecompressionLimits::ratio`] allow.
    #[error(
        "the {} data decompress to more than {limit} bytes, which is suspicious after {input} bytes of \
         input",
        compression.name()
    )]
    Output {
        /// The format.
        compression: Compression,
        /// Bytes allowed.
        limit: u64,
        /// Bytes of input read.
        input: u64,
    },
    /// A format that is not decompressed here.
    #[error("the input is in {name} format, which is not supported; unpack it first ({command})")]
    Foreign {
        /// The format's name.
        name: &'static str,
        /// What unpacks it.
        command: &'static str,
    },
}

impl From<DecompressionError> for io::Error {
    fn from(error: DecompressionError) -> Self {
        let kind = match &error {
            DecompressionError::Damaged { .. } | DecompressionError::Trailing { .. } => {
                io::ErrorKind::InvalidData
            }
            DecompressionError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            DecompressionError::Memory { .. } => io::ErrorKind::OutOfMemory,
            DecompressionError::Output { .. } => io::ErrorKind::FileTooLarge,
            DecompressionError::Foreign { .. } => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error)
    }
}

/// Decompresses what it reads.
pub struct Decoder<R: Read> {
    inner: StreamDecoder<R>,
    compression: Option<Compression>,
    limits: DecompressionLimits,
    meter: Arc<InputMeter>,
    /// Bytes given out.
    output: u64,
}

/// What the input has given so far.
#[derive(Debug, Default)]
struct InputMeter {
    bytes: AtomicU64,
    /// The last read failed, so that its error is the input's and not the decoder's.
    failed: AtomicBool,
    ended: AtomicBool,
}

/// The input, with what was read of it to recognise it in front.
type Input<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, MeteredReader<R>>>;

struct MeteredReader<R> {
    input: R,
    meter: Arc<InputMeter>,
}

impl<R: Read> Read for MeteredReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                Ok(length) => {
                    self.meter.bytes.fetch_add(length as u64, Ordering::Relaxed);
                    if length == 0 && !buffer.is_empty() {
                        self.meter.ended.store(true, Ordering::Relaxed);
                    }
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.meter.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }
}

enum StreamDecoder<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MemberReader<GzDecoder<Input<R>>, Input<R>>>),
    Xz(Box<liblzma::bufread::XzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
    Bzip2(Box<MemberReader<bzip2::bufread::BzDecoder<Input<R>>, Input<R>>>),
    Brotli(Box<brotli_decompressor::Decompressor<Input<R>>>),
}

/// Where a format stands whose members are decompressed one by one.
enum MemberReader<D, I> {
    Open(D),
    /// After a member's end.
    Between(I),
    /// Only for as long as one becomes another.
    Moving,
}

impl<R: Read> Decoder<R> {
    /// A decoder for what `input` turns out to be by its first bytes. A known format that is not
    /// supported is an error; anything else goes through as it is.
    pub fn detect(mut input: R, limits: DecompressionLimits) -> io::Result<Self> {
        let mut start = vec![0; SIGNATURE];
        let mut length = 0;
        while length < SIGNATURE {
            match input.read(&mut start[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        start.truncate(length);
        let foreign = FOREIGN.iter().find(|(first, ..)| start.starts_with(first));
        if let Some(&(_, name, command)) = foreign {
            return Err(DecompressionError::Foreign { name, command }.into());
        }
        let compression = Compression::of_signature(&start);
        Self::after(start, input, compression, limits)
    }

    /// A decoder for `compression`; without any, what goes through as it is.
    pub fn new(
        input: R,
        compression: Option<Compression>,
        limits: DecompressionLimits,
    ) -> io::Result<Self> {
        Self::after(Vec::new(), input, compression, limits)
    }

    /// A decoder for `start` and the rest of `input`.
    fn after(
        start: Vec<u8>,
        input: R,
        compression: Option<Compression>,
        limits: DecompressionLimits,
    ) -> io::Result<Self> {
        let meter = Arc::new(InputMeter::default());
        meter.bytes.store(start.len() as u64, Ordering::Relaxed);
        let metered = MeteredReader {
            input,
            meter: meter.clone(),
        };
        let input = BufReader::with_capacity(64 << 10, io::Cursor::new(start).chain(metered));
        let inner = match compression {
            None => StreamDecoder::Plain(input),
            Some(Compression::Gzip) => StreamDecoder::Gzip(Box::new(MemberReader::Between(input))),
            Some(Compression::Bzip2) => {
                StreamDecoder::Bzip2(Box::new(MemberReader::Between(input)))
            }
            Some(Compression::Xz) => {
                let stream = Stream::new_stream_decoder(limits.memory, CONCATENATED)?;
                StreamDecoder::Xz(Box::new(liblzma::bufread::XzDecoder::new_stream(
                    input, stream,
                )))
            }
            Some(Compression::Zstd) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                // The smallest window that the format knows has 2^10 bytes.
                decoder.window_log_max(limits.memory.max(1 << 10).ilog2())?;
                StreamDecoder::Zstd(decoder)
            }
            Some(Compression::Brotli) => StreamDecoder::Brotli(Box::new(
                brotli_decompressor::Decompressor::new(input, 64 << 10),
            )),
        };
        Ok(Self {
            inner,
            compression,
            limits,
            meter,
            output: 0,
        })
    }

    /// The compression that is undone; none if there is none.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// What the failure of a decoder means.
    fn error(&self, compression: Compression, source: io::Error) -> io::Error {
        if self.meter.failed.swap(false, Ordering::Relaxed) {
            return source;
        }
        if source
            .get_ref()
            .is_some_and(|inner| inner.is::<DecompressionError>())
        {
            return source;
        }
        let text = source.to_string();
        let memory = match source.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(liblzma::stream::Error::MemLimit) => true,
            _ => compression == Compression::Zstd && text.contains("too much memory"),
        };
        // Brotli's decoder takes the end of the input for damage.
        let at_end = self.meter.ended.load(Ordering::Relaxed);
        let brotli = compression == Compression::Brotli;
        if memory {
            let limit = self.limits.memory;
            DecompressionError::Memory { compression, limit }.into()
        } else if source.kind() == io::ErrorKind::UnexpectedEof || (brotli && at_end) {
            DecompressionError::Truncated { compression }.into()
        } else {
            DecompressionError::Damaged {
                compression,
                source,
            }
            .into()
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(compression) = self.compression else {
            return match &mut self.inner {
                StreamDecoder::Plain(input) => input.read(buffer),
                _ => unreachable!("only what goes through has no compression"),
            };
        };
        let read = match &mut self.inner {
            StreamDecoder::Plain(input) => input.read(buffer),
            StreamDecoder::Gzip(member) => member.read(buffer, GzDecoder::new),
            StreamDecoder::Xz(decoder) => decoder.read(buffer),
            StreamDecoder::Zstd(decoder) => decoder.read(buffer),
            StreamDecoder::Bzip2(member) => member.read(buffer, bzip2::bufread::BzDecoder::new),
            StreamDecoder::Brotli(decoder) => decoder.read(buffer),
        };
        let read = read.map_err(|error| self.error(compression, error))?;
        self.output += read as u64;
        let input = self.meter.bytes.load(Ordering::Relaxed);
        let limit = self
            .limits
            .output
            .max(input.saturating_mul(self.limits.ratio));
        if self.output > limit {
            return Err(DecompressionError::Output {
                compression,
                limit,
                input,
            }
            .into());
        }
        Ok(read)
    }
}

/// A decoder of one member, which reads no further than its end.
trait MemberDecoder<I>: Read {
    const COMPRESSION: Compression;
    /// The first byte of every member.
    const FIRST: u8;

    /// The input after the member.
    fn into_input(self) -> I;
}

impl<I: BufRead> MemberDecoder<I> for GzDecoder<I> {
    const COMPRESSION: Compression = Compression::Gzip;
    const FIRST: u8 = 0x1f;

    fn into_input(self) -> I {
        self.into_inner()
    }
}

impl<I: BufRead> MemberDecoder<I> for bzip2::bufread::BzDecoder<I> {
    const COMPRESSION: Compression = Compression::Bzip2;
    const FIRST: u8 = b'B';

    fn into_input(self) -> I {
        self.into_inner()
    }
}

impl<I: BufRead, D: MemberDecoder<I>> MemberReader<D, I> {
    /// Reads on, from member to member. Zeros after the last one are padding (tapes have it).
    fn read(&mut self, buffer: &mut [u8], open: impl Fn(I) -> D) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, MemberReader::Moving) {
                MemberReader::Open(mut decoder) => match decoder.read(buffer) {
                    Ok(0) => *self = MemberReader::Between(decoder.into_input()),
                    read => {
                        *self = MemberReader::Open(decoder);
                        return read;
                    }
                },
                MemberReader::Between(mut input) => {
                    let first = loop {
                        let bytes = input.fill_buf()?;
                        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                        if bytes.is_empty() {
                            break None;
                        }
                        let first = bytes.get(zeros).copied();
                        input.consume(zeros);
                        if first.is_some() {
                            break first;
                        }
                    };
                    match first {
                        None => {
                            *self = MemberReader::Between(input);
                            return Ok(0);
                        }
                        Some(first) if first == D::FIRST => *self = MemberReader::Open(open(input)),
                        Some(_) => {
                            *self = MemberReader::Between(input);
                            let compression = D::COMPRESSION;
                            return Err(DecompressionError::Trailing { compression }.into());
                        }
                    }
                }
                // A read that failed halfway: what was decoded is lost.
                MemberReader::Moving => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
